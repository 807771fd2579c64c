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

from usfmae.core import journal
from usfmae.core.checkpoint import describe, save
from usfmae.core.config import ModelSettings, Settings, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import CorpusError, UsageError
from usfmae.core.files import replacing, write_atomic
from usfmae.core.model import MaskedAutoencoder
from usfmae.core.report.reconstructions import panel
from usfmae.core.start import Start, architecture, build, read
from usfmae.core.train import StepRecord, TrainResult, evaluate, pixel_variance, ranks, train

RESULT = "checkpoint.safetensors"
PANEL_ROWS = 8


@dataclass(frozen=True)
class Run:
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


def pretrain(
    corpora: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    init: Path | None = None,
    heads_stated: bool = False,
    device: str = "cpu",
    on_step: Callable[[StepRecord, int], bool | None] | None = None,
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
    run = Run(
        tuple(str(Path(path).resolve()) for path in corpora),
        tuple(index.sha256 for index in corpus.shards),
        corpus.fingerprint,
        model.model_dump(mode="json"),
        settings.train.model_dump(mode="json"),
        str(init.resolve()) if init else "",
        heads_stated,
    )
    built = _build(run, corpus, start)  # refuses what cannot be trained before anything is written
    if ranks()[0] == 0:
        write_atomic(out / "run.json", json.dumps(dataclasses.asdict(run), indent=2).encode())
    return _go(run, corpus, built, start, out, device, on_step)


def resume(
    out: Path, *, device: str = "cpu", on_step: Callable[[StepRecord, int], bool | None] | None = None
) -> PretrainSummary:
    """Go on with the run in `out`: the same settings, the same shards, the same weights as if it had never stopped.

    Raises UsageError where there is no run, CorpusError where its shards have changed.
    """
    run = read_run(out)
    corpus = Corpus([Path(path) for path in run.corpora], only=run.shards)
    if corpus.fingerprint != run.fingerprint:
        raise CorpusError(f"corpus of run {out}", "has changed since the run began", "restore it, or begin a new run")
    start = read(Path(run.init)) if run.init else None
    return _go(run, corpus, _build(run, corpus, start), start, out, device, on_step)


def read_run(out: Path) -> Run:
    """The run stored in a folder. Raises UsageError."""
    try:
        values: dict[str, Any] = json.loads((out / "run.json").read_text())
        return Run(**{**values, "corpora": tuple(values["corpora"]), "shards": tuple(values["shards"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"run {out}", f"cannot be resumed: {error}", "begin it without --resume") from None


def _build(run: Run, corpus: Corpus, start: Start | None) -> MaskedAutoencoder:
    model, settings = ModelSettings.model_validate(run.model), TrainSettings.model_validate(run.train)
    _, held = sides(corpus, settings)

    def loss_of(candidate: MaskedAutoencoder) -> float:
        return evaluate(candidate, corpus, held[:16] if len(held) else corpus.split(0, 0)[0][:16], settings)

    return build(start, model, settings, loss_of, run.heads_stated)


def sides(corpus: Corpus, settings: TrainSettings) -> tuple[Positions, Positions]:
    """Training and held-out positions of a run."""
    return corpus.split(settings.held_out, settings.seed)


def steps_of(settings: TrainSettings, images: int) -> int:
    return settings.steps or math.ceil(settings.epochs * images / settings.batch_size)


def _go(
    run: Run,
    corpus: Corpus,
    model: MaskedAutoencoder,
    start: Start | None,
    out: Path,
    device: str,
    on_step: Callable[[StepRecord, int], bool | None] | None,
) -> PretrainSummary:
    settings = TrainSettings.model_validate(run.train)
    positions, held = sides(corpus, settings)
    held = held[: settings.held_out_images]
    steps = steps_of(settings, len(positions))
    variance = pixel_variance(corpus, held, settings, model.settings.image_size) if len(held) else None
    model.to(device)

    def after(record: StepRecord) -> bool | None:
        if len(held) and ranks()[0] == 0 and (record.step % settings.checkpoint_steps == 0 or record.step == steps):
            loss = evaluate(model, corpus, held, settings)
            entry = {"step": record.step, "held_out_loss": loss, "held_out_variance": variance}
            journal.append(out / "log.jsonl", entry)
            picture = Image.fromarray(panel(model, corpus, held[:PANEL_ROWS], settings))
            with replacing(out / "panels" / f"step-{record.step:09d}.png") as partial:
                picture.save(partial, "PNG")
        return on_step(record, steps) if on_step else None

    result = train(
        model,
        corpus,
        settings,
        positions=positions,
        steps=steps,
        total_steps=steps,
        state=out / "state",
        log=out / "log.jsonl",
        on_step=after,
    )
    return _finish(corpus, model, settings, start, out, result, steps, positions, held, variance)


def _finish(
    corpus: Corpus,
    model: MaskedAutoencoder,
    settings: TrainSettings,
    start: Start | None,
    out: Path,
    result: TrainResult,
    steps: int,
    positions: Positions,
    held: Positions,
    variance: float | None,
) -> PretrainSummary:
    """The final checkpoint with its lineage, written by the first process."""
    loss = evaluate(model, corpus, held, settings) if len(held) and result.finished else None
    path, id_ = "", ""
    if result.finished and ranks()[0] == 0:
        measured = {"held_out_loss": loss, "held_out_variance": variance} if loss is not None else {}
        metadata = describe(
            model.settings,
            settings,
            parents=(start.id,) if start else (),
            corpus=corpus.fingerprint,
            step=result.step,
            images=len(positions),
            datasets=json.dumps(Counter(corpus.datasets[p] for p in positions)),
            **{name: f"{value:.6f}" for name, value in measured.items() if value is not None},
        )
        saved = save(out / RESULT, model.state_dict(), metadata)
        path, id_ = str(saved.path), saved.trail.id
    return PretrainSummary(
        path,
        id_,
        result.step,
        steps,
        len(positions),
        result.loss,
        loss,
        variance,
        result.images_per_second,
        result.data_wait,
        result.seconds,
        result.finished,
    )


def free_device(name: str | None) -> str:
    """The device asked for, else a GPU if there is one. Raises UsageError where it does not exist."""
    if name and name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}", "no GPU that torch can use", "use --device cpu, or install the driver")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
