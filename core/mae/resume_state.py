"""What a run keeps on disk to go on: `step-N.safetensors` (weights) and `step-N.optimizer.safetensors` beside it.

Seed and step are all there is to the state of order, masks and augmentation, so they are not stored as such.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from usfmae.core.checkpoint import load, read_metadata, read_tensors, save, write_tensors
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import TrainSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.mae.device import ranks
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors

logger = logging.getLogger(__name__)

OPTIMIZER = ".optimizer.safetensors"
Described = tuple[Mapping[str, Tensor], Mapping[str, str]]  # tensors and their metadata


class ResumeState:
    """The checkpoints of one call of `train` (`call` names it) in a folder shared with the calls before it."""

    def __init__(self, folder: Path | None, call: str, start: int, settings: TrainSettings) -> None:
        self.folder, self.call, self.start, self.settings = folder, call, start, settings
        self.restored = start  # the step `restore` came to
        self.updates = 0  # optimizer updates behind the moments when the call began
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved, self._saved_at = -1, time.monotonic()

    def restore(self, model: MaskedAutoencoder, optimizer: torch.optim.Optimizer) -> int:
        """Go on after this call's last checkpoint, else with an earlier call's moments. Returns the global step.

        A damaged checkpoint is passed over in favour of the one before; one that was cut short in writing is removed.
        """
        if self.folder and ranks()[0] == 0:
            for unfinished in self.folder.glob(".step-*.partial"):
                unfinished.unlink(missing_ok=True)
        states = sorted(self._found().items(), reverse=True)
        for step, path in states:
            try:
                same = step > self.start and read_metadata(path).get("call") == self.call
                if not same and step > self.start:
                    continue
                moments, metadata = read_tensors(path)
                if same:
                    load_tensors(model, load(self._weights(step)).tensors)
                set_moments(model, optimizer, moments, int(metadata["updates"]))
            except (CheckpointError, KeyError, ValueError) as error:
                logger.warning("checkpoint of step %d is passed over: %s", step, error)
                continue
            self.restored = step if same else self.start
            self._saved = step if same else -1
            self.updates = int(metadata["updates"]) - (step - self.start if same else 0)
            break
        if self.restored == self.start and states and states[0][0] > self.start:
            logger.warning("the checkpoints in %s are of other settings or images: begun anew", self.folder)
        return self.restored

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step: every so many steps, else every so many minutes."""
        if self.settings.checkpoint_steps:
            return step % self.settings.checkpoint_steps == 0
        return time.monotonic() - self._saved_at > 60 * self.settings.checkpoint_minutes

    def __enter__(self) -> ResumeState:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the checkpoint that is being written. Raises ResourceError where it could not be."""
        try:
            self._wait()
        finally:
            if ranks()[1] > 1 and error[0] is None:
                dist.barrier()  # the others may read what the first process wrote

    def save(self, model: MaskedAutoencoder, optimizer: torch.optim.Optimizer, step: int, corpus: str) -> None:
        """Copy weights and moments, and write them in a thread while training goes on; the first process writes.

        Raises ResourceError where an earlier checkpoint could not be written.
        """
        self._saved_at = time.monotonic()
        if self.folder is None or ranks()[0] != 0 or step == self._saved:
            return
        self._wait()
        self._saved = step
        updates = self.updates + step - self.start
        metadata = {"call": self.call, "step": str(step), "updates": str(updates)}
        described = describe(model.settings, self.settings, corpus=corpus, step=step)
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        moments = {name: tensor.to("cpu", copy=True) for name, tensor in moments_of(model, optimizer).items()}
        self._writing = self._writer.submit(self._write, step, (weights, described), (moments, metadata))

    def _wait(self) -> None:
        if self._writing is not None:
            written, self._writing = self._writing, None
            written.result()

    def _write(self, step: int, weights: Described, moments: Described) -> None:
        """Both files, weights first (they count once the optimizer is there); then the oldest go."""
        save(self._weights(step), *weights)
        write_tensors(self._weights(step).with_suffix(OPTIMIZER), *moments)
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the last k, and the moments this call began with; drop what a call given up has left further on."""
        states = self._found()
        recent = sorted(s for s in states if s <= step)[-self.settings.keep :]
        began = [s for s in states if s <= self.start][-1:]
        for old in set(states) - set(recent) - set(began):
            states[old].unlink(missing_ok=True)
            self._weights(old).unlink(missing_ok=True)

    def _found(self) -> dict[int, Path]:
        """Steps and optimizer files of whole checkpoints, by step."""
        paths = sorted(self.folder.glob(f"step-*{OPTIMIZER}")) if self.folder else []
        return {int(path.name[5 : -len(OPTIMIZER)]): path for path in paths}

    def _weights(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{step:09d}.safetensors"


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps of every trained tensor (AdamW: two moments, Muon: one), as kind/name."""
    return {
        f"{kind}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for kind, value in optimizer.state[parameter].items()
        if kind != "step" and isinstance(value, Tensor)
    }


def set_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor], updates: int
) -> None:
    """Put stored moments back. KeyError where one is missing."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        kind, _, name = key.partition("/")
        by_name.setdefault(name, {})[kind] = value
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stored = {kind: value.to(parameter.device).clone() for kind, value in by_name[name].items()}
            count = torch.tensor(float(updates), device=parameter.device)
            optimizer.state[parameter] = {"step": count, **stored}
