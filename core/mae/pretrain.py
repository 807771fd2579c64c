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
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from usfmae.core.checkpoint import encoder_of, load, save, tensors_id
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import ModelSettings, Settings, TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import CheckpointError, CorpusError, UsageError
from usfmae.core.files import replacing, write_atomic
from usfmae.core.mae import train_log
from usfmae.core.mae.device import computed, ranks
from usfmae.core.mae.evaluation import Stopped, evaluate, panel, target_variance
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.mae.number_type import NumberType, computing_in, number_type
from usfmae.core.mae.optimizer_step import Stop, never
from usfmae.core.mae.targets import plain, predicting
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, TrainResult, train
from usfmae.core.mae.weights.init_weights import InitWeights, architecture, build, read

logger = logging.getLogger(__name__)

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
    teacher: str = ""  # path of the frozen teacher, for train.target latents or mixture
    teacher_id: str = ""  # hash of its encoder
    heads_stated: bool = False
    ends: tuple[int, ...] = ()  # global steps at which it ends: several where it was extended, none before it began
    logs: tuple[str, ...] = ()  # loggers beside log.jsonl
    number_type: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a CPU computes in, and why


@dataclass(frozen=True)
class Measured:
    """What a checkpoint's measurement found."""

    step: int
    held_out_loss: float
    held_out_variance: float | None  # of the same images: the loss of the best constant
    panel: Path  # reconstructions of some held-out images


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to know of a run, and how it ends it."""

    on_step: OnStep | None = None  # may return True to stop after the step
    on_checkpoint: Callable[[Measured], None] | None = None  # after each checkpoint that is measured
    stop: Stop = never  # true as soon as the run should end, within seconds


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


@dataclass(frozen=True)
class InitFile:
    """The weights a run starts from, random ones without a path; and those it learns from, for a teacher's features."""

    path: Path | None = None
    heads_stated: bool = False  # a person named the decoder's heads
    teacher: Path | None = None


def pretrain(
    corpora: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    init: InitFile = InitFile(),
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> PretrainSummary:
    """Start a run in the new folder `out`. `on_step(record, steps of the run)` may return True to stop.

    Raises UsageError where `out` holds a run, and what `train`, `Corpus` and `start.build` raise.
    """
    return new_run(corpora, out, settings, init).go(device, Hooks(on_step))


def resume(out: Path, *, device: str = "cpu", on_step: OnStep | None = None) -> PretrainSummary:
    """Go on with the run in `out`: the same settings, the same shards, the same weights as if it had never stopped.

    Raises UsageError where there is no run, CorpusError where its shards have changed.
    """
    return open_run(out).go(device, Hooks(on_step))


def new_run(
    corpora: Sequence[Path],
    out: Path,
    settings: Settings,
    init: InitFile = InitFile(),
    logs: Sequence[str] = (),
) -> Run:
    """A run that is about to begin in the new folder `out`: all is checked, and nothing written where it cannot be."""
    # The first process writes the folder; a later one may come when it is there already.
    if ranks()[0] == 0 and (out / "run.json").exists():
        raise UsageError(f"run {out}", "exists already", "add --resume, or give another --out")
    corpus = Corpus(corpora)
    start = read(init.path) if init.path else None
    facts = RunFolder(
        tuple(str(Path(path).resolve()) for path in corpora),
        tuple(index.sha256 for index in corpus.shards),
        corpus.fingerprint,
        architecture(settings.model, start).model_dump(mode="json"),
        TrainRecipe.of(settings.train).model_dump(mode="json"),
        str(init.path.resolve()) if init.path else "",
        *_stated(init.teacher),
        init.heads_stated,
        logs=tuple(logs),
    )
    run = Run(out, facts, corpus, start)
    run.write()
    return run


def open_run(out: Path, steps: int | None = None, logs: Sequence[str] = ()) -> Run:
    """The run in `out`, to go on with. `steps`: a later end; the rate then warms up and falls again from the old one.

    Raises UsageError where there is no run or `steps` lie before its end, CorpusError where its shards have changed.
    """
    facts = read_run(out)
    corpus = Corpus([Path(path) for path in facts.corpora], only=facts.shards)
    if corpus.fingerprint != facts.fingerprint:
        raise CorpusError(f"corpus of run {out}", "has changed since the run began", "restore it, or begin a new run")
    run = Run(out, facts, corpus, read(Path(facts.init)) if facts.init else None)
    run.extend(steps or run.ends[-1], logs)
    return run


def _stated(teacher: Path | None) -> tuple[str, str]:
    """Path of a teacher and hash of its encoder, as run.json keeps them."""
    return (str(teacher.resolve()), tensors_id(encoder_of(read(teacher).tensors))) if teacher else ("", "")


def read_run(out: Path) -> RunFolder:
    """The run stored in a folder. Raises UsageError."""
    try:
        values: dict[str, Any] = json.loads((out / "run.json").read_text())
        lists = {name: tuple(values.get(name, ())) for name in ("corpora", "shards", "ends", "logs")}
        return RunFolder(**{**values, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"run {out}", f"cannot be resumed: {error}", "begin it without --resume") from None


def sides(corpus: Corpus, settings: TrainSettings) -> tuple[Positions, Positions]:
    """Training and held-out positions of a run."""
    return corpus.split(settings.held_out, settings.seed)


def steps_of(settings: TrainSettings, images: int) -> int:
    return settings.steps or math.ceil(settings.epochs * images / settings.batch_size)


class Run:
    """A run with its corpus and its model in memory. What cannot be trained is refused here, before it is written."""

    def __init__(self, out: Path, facts: RunFolder, corpus: Corpus, start: InitWeights | None) -> None:
        self.out, self.facts, self.corpus, self.start = out, facts, corpus, start
        self.settings = TrainRecipe.model_validate(facts.train)
        self.positions, held = sides(corpus, self.settings)
        self.held = held[: self.settings.held_out_images]
        self.ends = facts.ends or (steps_of(self.settings, len(self.positions)),)
        self.hooks = Hooks()
        built = build(
            start, ModelSettings.model_validate(facts.model), self.settings, self._loss_of_a_few, facts.heads_stated
        )
        self.model = self._with_teacher(built)
        if self.model.settings.image_size > corpus.size:
            logger.warning(
                "the model sees images of %d pixels, those of the corpus have %d and are enlarged: "
                "'usfmae prepare --set model.image_size=%d' makes a corpus of that size",
                *(self.model.settings.image_size, corpus.size, self.model.settings.image_size),
            )
        self.variance = self._variance()

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.ends[-1]

    @property
    def logs(self) -> tuple[str, ...]:
        return self.facts.logs

    def write(self) -> None:
        """run.json, by the first process."""
        if ranks()[0] == 0:
            write_atomic(self.out / "run.json", json.dumps(dataclasses.asdict(self.facts), indent=2).encode())

    def extend(self, steps: int, logs: Sequence[str]) -> None:
        """Let the run end later, and log to more places; remembered for every later call."""
        if steps < self.steps:
            raise UsageError(
                f"--steps {steps}", f"the run in {self.out} ends at {self.steps}", "give more steps, or begin a new run"
            )
        ends = self.ends if steps == self.steps else (*self.ends, steps)
        facts = dataclasses.replace(self.facts, ends=ends, logs=tuple(dict.fromkeys([*self.facts.logs, *logs])))
        if (ends, facts.logs) != (self.ends, self.facts.logs):
            self.facts, self.ends = facts, ends
            self.write()

    def _with_teacher(self, built: MaskedAutoencoder) -> MaskedAutoencoder:
        """The model that predicts what the settings name. CheckpointError where the teacher has changed since."""
        if not self.facts.teacher:
            return predicting(built, self.settings, None)
        teacher = read(Path(self.facts.teacher))
        if tensors_id(encoder_of(teacher.tensors)) != self.facts.teacher_id:
            raise CheckpointError(
                f"teacher {self.facts.teacher}", "has changed since the run began", "restore it, or begin a new run"
            )
        return predicting(built, self.settings, encoder_of(teacher.tensors), teacher.model)

    def _loss_of_a_few(self, model: MaskedAutoencoder) -> float:
        few = self.held if len(self.held) else self.positions
        return evaluate(model, self.corpus, few[:16], self.settings)

    def _variance(self) -> float | None:
        if not len(self.held):
            return None
        return target_variance(self.model, self.corpus, self.held, self.settings)

    def go(self, device: str = "cpu", hooks: Hooks = Hooks()) -> PretrainSummary:
        """Train from the last checkpoint, or from the start, to the end."""
        self.model.to(device)
        self.hooks = hooks
        with self._number_type(torch.device(device).type):
            return self._finish(self._trained())

    def _trained(self) -> TrainResult:
        result = None
        # A run that was extended is trained as it was before, then on from there with a schedule of its own.
        for begin, end in zip((0, *self.ends), self.ends, strict=False):
            if end != self.steps and self.reached >= end:
                continue
            if begin:
                self._load(begin)
            result = self._train(begin, end)
            if not result.finished:
                break
        assert result is not None
        return result

    def _number_type(self, kind: str) -> AbstractContextManager[None]:
        """What a CPU computes in is measured when a run begins, and stays so to its end on whatever machine."""
        if kind != "cpu" or ranks()[1] > 1:
            return nullcontext()
        if not self.facts.number_type:
            by_flags = NumberType(computed(self.settings.precision, kind), "the run was begun by the processor's flags")
            chosen = by_flags if self.reached else number_type(self.model.settings, self.settings, kind)
            self.facts = dataclasses.replace(self.facts, number_type=dataclasses.asdict(chosen))
            self.write()
        return computing_in(self.facts.number_type["chosen"])

    @property
    def reached(self) -> int:
        """The last step that a whole checkpoint was written for."""
        names = (path.name for path in (self.out / "state").glob("step-*.optimizer.safetensors"))
        return max((int(name[5:14]) for name in names), default=0)

    def _load(self, step: int) -> None:
        load_tensors(self.model, load(self.out / "state" / f"step-{step:09d}.safetensors").tensors)

    def _train(self, begin: int, end: int) -> TrainResult:
        on_step = self.hooks.on_step
        return train(
            self.model,
            self.corpus,
            self.settings.model_copy(update={"origin": begin}) if begin else self.settings,
            TrainPlan(self.positions, end - begin, begin, end),
            TrainContext(
                state=self.out / "state",
                log=self.out / "log.jsonl",
                on_step=(lambda record: on_step(record, self.steps)) if on_step else None,
                on_checkpoint=self._measure if len(self.held) and ranks()[0] == 0 else None,
                stop=self.hooks.stop,
            ),
        )

    def _measure(self, step: int) -> None:
        """The loss on held-out images goes to the log, pictures of some of them to `panels`."""
        try:
            loss = evaluate(self.model, self.corpus, self.held, self.settings, self.hooks.stop)
        except Stopped:
            return
        entry = {"step": step, "held_out_loss": loss, "held_out_variance": self.variance}
        train_log.append(self.out / "log.jsonl", entry)
        # Spread over the held-out images: neighbours come from one data set.
        rows = self.held[np.unique(np.linspace(0, len(self.held) - 1, PANEL_ROWS).round().astype(int))]
        picture = Image.fromarray(panel(self.model, self.corpus, rows, self.settings))
        path = self.out / "panels" / f"step-{step:09d}.png"
        with replacing(path) as partial:
            picture.save(partial, "PNG")
        if self.hooks.on_checkpoint:
            self.hooks.on_checkpoint(Measured(step, loss, self.variance, path))

    def _finish(self, result: TrainResult) -> PretrainSummary:
        """The final checkpoint, written by the first process, and what there is to say."""
        loss, saved, finished = None, None, result.finished
        if finished and len(self.held):
            try:
                loss = evaluate(self.model, self.corpus, self.held, self.settings, self.hooks.stop)
            except Stopped:
                finished = False  # trained, but not measured: --resume does that
        if finished and ranks()[0] == 0:
            saved = save(self.out / RESULT, plain(self.model.state_dict()), self._metadata(result.step, loss))
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
            finished=finished,
        )

    def _metadata(self, step: int, loss: float | None) -> dict[str, str]:
        """Recipe, lineage and what was measured, for the checkpoint."""
        measured = {"held_out_loss": loss, "held_out_variance": self.variance} if loss is not None else {}
        return describe(
            self.model.settings,
            self.settings,
            parents=tuple(filter(None, (self.start.id if self.start else "", self.facts.teacher_id))),
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
