"""The log of a run: one JSON object a line, the truth from which every curve is drawn; TensorBoard and others beside it.

A further logger is one class here and one row of LOGGERS. None of them needs a network: MLflow writes to a folder of
the run, Weights & Biases runs offline unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from usfmae.core.errors import needs
from usfmae.core.files import append_line, write_atomic

SCALARS = ("loss", "lr", "grad_norm", "images_per_second", "data_wait")


class Journal:
    """Appends records to a file (nowhere for None); lines after `step`, of a run that was cut, are dropped first."""

    def __init__(self, path: Path | None, step: int) -> None:
        self.path, self.last_loss = path, math.nan
        if path and path.exists():
            entries = [entry for entry in read(path) if entry["step"] <= step]
            write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
            self.last_loss = next((float(e["loss"]) for e in reversed(entries) if "loss" in e), math.nan)
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: Any) -> None:
        """One line: a dataclass or a mapping with the key `step`."""
        if self.path:
            values = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # type: ignore[arg-type]
            append_line(self.path, json.dumps(values))


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a last line that a crash has cut is left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """One line more, in a log that a Journal keeps."""
    append_line(path, json.dumps(entry))


class RunLogger(Protocol):
    """What takes a run's figures somewhere else."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, path: Path) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, out: Path, name: str, step: int) -> None:
        needs("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # What a run that was cut has logged beyond its last checkpoint comes again.
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_image("reconstructions", np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run in the tracking store that MLFLOW_TRACKING_URI names, else in the run's own folder."""

    def __init__(self, out: Path, name: str, step: int) -> None:
        needs("mlflow", "mlflow")
        import mlflow

        store = f"sqlite:///{(out / 'mlflow.db').absolute()}"
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", store))
        run_file = out / "mlflow-run"
        mlflow.set_experiment("usfmae")
        run = mlflow.start_run(run_id=run_file.read_text() if run_file.exists() else None, run_name=name)
        write_atomic(run_file, run.info.run_id.encode())
        self.mlflow = mlflow

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self.mlflow.log_artifact(str(path), "reconstructions")

    def close(self) -> None:
        self.mlflow.end_run()


class WeightsAndBiases:
    """Offline below the run's folder unless WANDB_MODE says otherwise."""

    def __init__(self, out: Path, name: str, step: int) -> None:
        needs("wandb", "wandb")
        import wandb

        out.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(project="usfmae", name=name, dir=str(out), mode=mode, reinit="create_new")
        self.wandb = wandb

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self.run.log({"reconstructions": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], RunLogger]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
