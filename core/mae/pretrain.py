"""A pretraining run in a folder: settings, log, checkpoints, panels and the final weights, resumable at any time.

run.json                settings, shards, start: what --resume reads
log.jsonl               one line a step; held-out measurements at each checkpoint
state/                  step-N.safetensors and its optimizer, the last k
panels/                 reconstructions of held-out images, PNG
checkpoint.safetensors  the result
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from usfmae.core.checkpoint import describe, save
from usfmae.core.config import ModelSettings, Settings, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import CorpusError, UsageError
from usfmae.core.files import replacing, write_atomic
from usfmae.core.mae import train_log
from usfmae.core.mae.distributed import ranks
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.reconstructions import panel
from usfmae.core.mae.train import StepRecord, TrainResult, evaluate, target_variance, train
from usfmae.core.mae.weights.init_weights import InitWeights, architecture, build, read

RESULT = "checkpoint.safetensors"
PANEL_ROWS = 8
OnStep = Callable[[StepRecord, int], bool | None]  # a step, the steps of the run; True asks to stop


@dataclass(frozen=True)
class RunFolder:
    """All that decides the result of a run; stored as run.json."""

    corpora: tuple[str, ...]
    shards: tuple[str, ...]  # checksums; a resumed run reads these and no others
    fingerprint: str
    model: dict[str, Any]
    train: dict[str, Any]
    init: str = ""  # path of the weights it starts from
    heads_stated: bool = False


@dataclass(frozen=True)
class PretrainSummary:
    """What a run came to."""

    checkpoint: str  # path of the weights, "" where it was stopped early
    id: str  # their content id
    step: int
    steps: int  # steps of the whole run
    images: int  # images trained on
    loss: float
    held_out_loss: float | None  # masked loss on held-out groups, None without any
    held_out_variance: float | None  # of the same images: the loss of the best constant
    images_per_second: float
    data_wait: float
    seconds: float
    finished: bool

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def pretrain(  # noqa: PLR0913
    corpora: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    init: Path | None = None,
    heads_stated: bool = False,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> PretrainSummary:
    """Start a run in the new folder `out`. `on_step(record, steps of the run)` may return True to stop.

    Raises UsageError where `out` holds a run, and what `train`, `Corpus` and `start.build` raise.
    """
    # The first process writes the folder; a later one may come when it is there already.
    if ranks()[0] == 0 and (out / "run.json").exists():
        raise UsageError(f"run {out}", "exists already", "add --resume, or give another --out")
    corpus = Corpus(corpora)
    model, start = settings.model, None
    if init:
        start = read(init)
        model = architecture(settings.model, start)
    run = RunFolder(
        tuple(str(Path(path).resolve()) for path in corpora),
        tuple(index.sha256 for index in corpus.shards),
        corpus.fingerprint,
        model.model_dump(mode="json"),
        settings.train.model_dump(mode="json"),
        str(init.resolve()) if init else "",
        heads_stated,
    )
    work = _Work(run, corpus, start)
    if ranks()[0] == 0:
        write_atomic(out / "run.json", json.dumps(dataclasses.asdict(run), indent=2).encode())
    return work.go(out, device, on_step)


def resume(out: Path, *, device: str = "cpu", on_step: OnStep | None = None) -> PretrainSummary:
    """Go on with the run in `out`: the same settings, the same shards, the same weights as if it had never stopped.

    Raises UsageError where there is no run, CorpusError where its shards have changed.
    """
    run = read_run(out)
    corpus = Corpus([Path(path) for path in run.corpora], only=run.shards)
    if corpus.fingerprint != run.fingerprint:
        raise CorpusError(f"corpus of run {out}", "has changed since the run began", "restore it, or begin a new run")
    start = read(Path(run.init)) if run.init else None
    return _Work(run, corpus, start).go(out, device, on_step)


def read_run(out: Path) -> RunFolder:
    """The run stored in a folder. Raises UsageError."""
    try:
        values: dict[str, Any] = json.loads((out / "run.json").read_text())
        return RunFolder(**{**values, "corpora": tuple(values["corpora"]), "shards": tuple(values["shards"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"run {out}", f"cannot be resumed: {error}", "begin it without --resume") from None


def sides(corpus: Corpus, settings: TrainSettings) -> tuple[Positions, Positions]:
    """Training and held-out positions of a run."""
    return corpus.split(settings.held_out, settings.seed)


def steps_of(settings: TrainSettings, images: int) -> int:
    return settings.steps or math.ceil(settings.epochs * images / settings.batch_size)


class _Work:
    """A run with its corpus and its model in memory. What cannot be trained is refused here, before it is written."""

    def __init__(self, run: RunFolder, corpus: Corpus, start: InitWeights | None) -> None:
        self.run, self.corpus, self.start = run, corpus, start
        self.settings = TrainSettings.model_validate(run.train)
        self.positions, held = sides(corpus, self.settings)
        self.held = held[: self.settings.held_out_images]
        self.steps = steps_of(self.settings, len(self.positions))
        self.model = build(
            start, ModelSettings.model_validate(run.model), self.settings, self._loss_of_a_few, run.heads_stated
        )
        self.variance = self._variance()

    def _loss_of_a_few(self, model: MaskedAutoencoder) -> float:
        few = self.held if len(self.held) else self.positions
        return evaluate(model, self.corpus, few[:16], self.settings)

    def _variance(self) -> float | None:
        if not len(self.held):
            return None
        return target_variance(self.model, self.corpus, self.held, self.settings)

    def go(self, out: Path, device: str, on_step: OnStep | None) -> PretrainSummary:
        """Train from the last checkpoint in `out`, or from the start, to the end."""
        self.model.to(device)

        def after(record: StepRecord) -> bool | None:
            at_a_checkpoint = record.step % self.settings.checkpoint_steps == 0 or record.step == self.steps
            if at_a_checkpoint and len(self.held) and ranks()[0] == 0:
                self._measure(out, record.step)
            return on_step(record, self.steps) if on_step else None

        result = train(
            self.model,
            self.corpus,
            self.settings,
            positions=self.positions,
            steps=self.steps,
            total_steps=self.steps,
            state=out / "state",
            log=out / "log.jsonl",
            on_step=after,
        )
        return self._finish(out, result)

    def _measure(self, out: Path, step: int) -> None:
        """The loss on held-out images goes to the log, pictures of some of them to `panels`."""
        loss = evaluate(self.model, self.corpus, self.held, self.settings)
        entry = {"step": step, "held_out_loss": loss, "held_out_variance": self.variance}
        train_log.append(out / "log.jsonl", entry)
        picture = Image.fromarray(panel(self.model, self.corpus, self.held[:PANEL_ROWS], self.settings))
        with replacing(out / "panels" / f"step-{step:09d}.png") as partial:
            picture.save(partial, "PNG")

    def _finish(self, out: Path, result: TrainResult) -> PretrainSummary:
        """The final checkpoint, written by the first process, and what there is to say."""
        loss, saved = None, None
        if result.finished and len(self.held):
            loss = evaluate(self.model, self.corpus, self.held, self.settings)
        if result.finished and ranks()[0] == 0:
            saved = save(out / RESULT, self.model.state_dict(), self._metadata(result.step, loss))
        return PretrainSummary(
            checkpoint=str(saved.path) if saved else "",
            id=saved.trail.id if saved else "",
            step=result.step,
            steps=self.steps,
            images=len(self.positions),
            loss=result.loss,
            held_out_loss=loss,
            held_out_variance=self.variance,
            images_per_second=result.images_per_second,
            data_wait=result.data_wait,
            seconds=result.seconds,
            finished=result.finished,
        )

    def _metadata(self, step: int, loss: float | None) -> dict[str, str]:
        """Recipe, lineage and what was measured, for the checkpoint."""
        measured = {"held_out_loss": loss, "held_out_variance": self.variance} if loss is not None else {}
        return describe(
            self.model.settings,
            self.settings,
            parents=(self.start.id,) if self.start else (),
            corpus=self.corpus.fingerprint,
            step=step,
            images=len(self.positions),
            datasets=json.dumps(Counter(self.corpus.datasets[p] for p in self.positions)),
            **{name: f"{value:.6f}" for name, value in measured.items() if value is not None},
        )


def free_device(name: str | None) -> str:
    """The device asked for, else a GPU if there is one. Raises UsageError where it does not exist."""
    if name and name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}", "no GPU that torch can use", "use --device cpu, or install the driver")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
