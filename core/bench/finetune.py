"""Fine-tuning a whole encoder on a benchmark: the paper's grid, early stopping on the validation part, several seeds.

The paper states the grid (learning rate, weight decay, batch size) and the augmentations, not the rest. Here: AdamW,
linear warm-up and cosine, a linear head on pooled features, cross-entropy. The validation part alone chooses; the test
part is read once for each seed. A run that is done is never done again.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from usfmae.core.bench.base import Positions, Split, Task
from usfmae.core.bench.encoders import Encoder
from usfmae.core.bench.features import device, images_id
from usfmae.core.bench.metrics import Predictions, measures, pooled
from usfmae.core.bench.probe import predictions
from usfmae.core.config import AugmentSettings
from usfmae.core.config.bench import FinetuneSettings
from usfmae.core.corpus.augment import augment, draws, plain
from usfmae.core.device import autocast, out_of_memory
from usfmae.core.errors import ResourceError
from usfmae.core.files import replacing
from usfmae.core.flow import Pixels, content_id

Floats = NDArray[np.float64]
TEST_BATCH = 64
RAN_AWAY = 1e9


@dataclass(frozen=True)
class Choice:
    """One point of the grid."""

    lr: float
    weight_decay: float
    batch: int


@dataclass(frozen=True)
class Run:
    """One training: what it was, how it went, and its probabilities for the test part (T, K)."""

    split: str
    choice: Choice
    seed: int
    validation: float  # best balanced accuracy on the validation part; -1 where the loss ran away
    validation_loss: float  # cross-entropy there, at that epoch; RAN_AWAY likewise
    epochs: int
    best_epoch: int
    seconds: float
    probabilities: Floats


def grid(settings: FinetuneSettings) -> list[Choice]:
    return [Choice(*point) for point in itertools.product(settings.lrs, settings.weight_decays, settings.batch_sizes)]


def finetune(
    task: Task,
    build: Callable[[], Encoder],
    pixels: Pixels,
    settings: FinetuneSettings,
    out: Path,
    on_run: Callable[[Run, bool], None] | None = None,
) -> tuple[list[Predictions], list[Run]]:
    """Predictions over all splits, one entry for each seed, and every run. `build` gives a fresh encoder.

    pixels: (N, S, S, C) uint8 squares of the task's images. Runs are kept under `out/runs`; `on_run` is told each run
    and whether it was read back.
    """
    runs: list[Run] = []
    key = content_id(
        build().id, images_id(task), settings.model_dump_json(exclude={"seeds", "lrs", "weight_decays", "batch_sizes"})
    )

    def run(split: Split, choice: Choice, seed: int) -> Run:
        path = (
            out
            / "runs"
            / f"{content_id(key, split.name, json.dumps(asdict(choice)), str(seed), *_parts(split))[:32]}.npz"
        )
        kept = _read(path)
        done = kept or train_one(task, split, build(), pixels, settings, choice, seed)
        if kept is None:
            _write(path, done)
        runs.append(done)
        if on_run:
            on_run(done, kept is not None)
        return done

    by_seed: dict[int, list[Predictions]] = {seed: [] for seed in settings.seeds}
    for split in task.splits:
        tried = [run(split, choice, settings.seeds[0]) for choice in grid(settings)]
        best = max(tried, key=lambda r: (r.validation, -r.validation_loss))
        for seed in settings.seeds:
            found = best if seed == settings.seeds[0] else run(split, best.choice, seed)
            by_seed[seed].append(predictions(task, split, found.probabilities))
    return [pooled(parts) for parts in by_seed.values()], runs


def train_one(
    task: Task, split: Split, encoder: Encoder, pixels: Pixels, settings: FinetuneSettings, choice: Choice, seed: int
) -> Run:
    """Train encoder and head on one split; the weights of the best validation epoch give the test probabilities.

    Raises ResourceError where memory is full.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    where = device()
    model = nn.Sequential(encoder.module.train(), nn.Linear(encoder.width, len(task.classes))).to(where)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=choice.lr, weight_decay=choice.weight_decay
    )
    batches = math.ceil(len(split.train) / choice.batch)
    best, best_epoch, kept = (-1.0, -RAN_AWAY), 0, None
    epoch = 0
    try:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            for number, (images, labels) in enumerate(
                _batches(task, split.train, pixels, encoder, settings, choice, seed, epoch)
            ):
                step = (epoch - 1) * batches + number
                for group in optimizer.param_groups:
                    group["lr"] = choice.lr * _rate(step, settings.epochs * batches, settings.warmup)
                with autocast(where, settings.precision):
                    loss = F.cross_entropy(model(encoder.prepare(images.to(where))).float(), labels.to(where))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            if not math.isfinite(float(loss.detach())):
                break
            found = _worth(task, split.validation, probabilities(model, encoder, pixels, split.validation, settings))
            if found > best:
                best, best_epoch = found, epoch
                kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            if epoch - best_epoch >= settings.patience:
                break
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"memory, with batches of {choice.batch}", "is full", "set bench.finetune.batch_sizes lower"
        ) from None
    if kept is not None:
        model.load_state_dict(kept)
        said = probabilities(model, encoder, pixels, split.test, settings)
    else:  # the loss ran away before the first validation: the run says nothing
        said = np.full((len(split.test), len(task.classes)), 1 / len(task.classes))
    return Run(split.name, choice, seed, best[0], -best[1], epoch, best_epoch, time.perf_counter() - began, said)


def _batches(
    task: Task,
    train: Positions,
    pixels: Pixels,
    encoder: Encoder,
    settings: FinetuneSettings,
    choice: Choice,
    seed: int,
    epoch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of one epoch; the next is made while the model works on this one."""
    order = np.random.default_rng((seed, epoch)).permutation(train)
    wanted = AugmentSettings(
        rotation=settings.rotation, flips=settings.flips, zoom_min=settings.zoom_min, zoom_max=settings.zoom_max
    )
    starts = range(0, len(order), choice.batch)

    def make(start: int) -> tuple[Tensor, Tensor]:
        rows = order[start : start + choice.batch]
        chosen = draws(len(rows), pixels.shape[1], wanted, seed, epoch * 1_000_003 + start)
        images = augment(pixels[rows], chosen, encoder.size, wanted)
        return torch.from_numpy(images), torch.from_numpy(task.labels[rows])

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make, starts[0])
        for start in starts:
            batch = following.result()
            if start + choice.batch < len(order):
                following = pool.submit(make, start + choice.batch)
            yield batch


def probabilities(
    model: nn.Module, encoder: Encoder, pixels: Pixels, positions: Positions, settings: FinetuneSettings
) -> Floats:
    """(T, K) for images at `positions`, without augmentation."""
    where = device()
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(positions), TEST_BATCH):
            rows = plain(pixels[positions[start : start + TEST_BATCH]], encoder.size)
            with autocast(where, settings.precision):
                logits = model(encoder.prepare(torch.from_numpy(rows).to(where)))
            parts.append(logits.float().softmax(dim=1).double().cpu().numpy())
    return np.concatenate(parts)


def _worth(task: Task, positions: Positions, said: Floats) -> tuple[float, float]:
    """Balanced accuracy, then the smaller cross-entropy: while a rare class is never named yet, only that moves."""
    labels = task.labels[positions]
    found = Predictions(labels, said, ("",) * len(said), (), ())
    likelihood = np.log(np.maximum(said[np.arange(len(said)), labels], 1e-12)).mean()
    return float(measures(found)["balanced_accuracy"]), float(likelihood)


def _rate(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0."""
    warm = warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))


def _parts(split: Split) -> tuple[bytes, ...]:
    return (split.train.tobytes(), split.validation.tobytes(), split.test.tobytes())


def _write(path: Path, run: Run) -> None:
    facts = {k: v for k, v in asdict(run).items() if k != "probabilities"}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, probabilities=run.probabilities, facts=np.array(json.dumps(facts)))


def _read(path: Path) -> Run | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            return Run(**{**facts, "choice": Choice(**facts["choice"])}, probabilities=stored["probabilities"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
