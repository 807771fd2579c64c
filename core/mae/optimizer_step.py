"""One optimizer step: gradients of the global batch, a micro-batch at a time, clipped and applied."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from usfmae.core.checkpoint import DECODER
from usfmae.core.config import TrainRecipe, TrainSettings
from usfmae.core.corpus.loader import Prepared
from usfmae.core.corpus.sampling import generator
from usfmae.core.errors import ResourceError, UsageError, UsfmaeError
from usfmae.core.mae.device import autocast, compiles, device_of, micro_batch, out_of_memory, ranks
from usfmae.core.mae.device_batches import DeviceBatch, normalise
from usfmae.core.mae.model import MaskedAutoencoder

DP_NOISE = 6  # purpose of random numbers, beside those of core/corpus


def optimizer_of(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over every tensor that is trained."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if settings.optimizer == "muon":
        return Muon(trained, settings)
    return _adamw([p for _, p in trained], settings)


def _adamw(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


class Muon(torch.optim.Optimizer):
    """torch's Muon (Jordan et al. 2024) for the two-dimensional weights of the blocks, AdamW for all others.

    Updates of matrices are orthogonalised and scaled to the size AdamW's would have ("match_rms_adamw", Liu et al. 2025,
    arXiv:2502.16982), so that one learning rate serves both.
    """

    def __init__(self, trained: list[tuple[str, nn.Parameter]], settings: TrainSettings) -> None:
        matrices = [p for name, p in trained if p.ndim == 2 and "blocks." in name]
        chosen = {id(p) for p in matrices}
        self._muon = torch.optim.Muon(
            matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = _adamw([p for _, p in trained if id(p) not in chosen], settings)
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]
        self.state = _Routed(chosen, self._muon.state, self._adamw.state)  # type: ignore[assignment]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self._muon.step(closure)
        self._adamw.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._muon.zero_grad(set_to_none)
        self._adamw.zero_grad(set_to_none)


class _Routed(MutableMapping[Tensor, Any]):
    """One view of two optimizers' states: a parameter's entry lies with the optimizer that trains it."""

    def __init__(self, first: set[int], *states: MutableMapping[Tensor, Any]) -> None:
        self._first, self._states = first, states

    def _of(self, parameter: Tensor) -> MutableMapping[Tensor, Any]:
        return self._states[0 if id(parameter) in self._first else 1]

    def __getitem__(self, parameter: Tensor) -> Any:
        return self._of(parameter)[parameter]

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        self._of(parameter)[parameter] = value

    def __delitem__(self, parameter: Tensor) -> None:
        del self._of(parameter)[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        for state in self._states:
            yield from state

    def __len__(self) -> int:
        return sum(len(state) for state in self._states)

    def __contains__(self, parameter: object) -> bool:
        return isinstance(parameter, Tensor) and parameter in self._of(parameter)


Stop = Callable[[], bool]  # true as soon as a person or the system wants the training to end


def never() -> bool:
    return False


class Stepper:
    """What every step of a call of `train` shares: the model, its optimizer, and the weights it began with."""

    def __init__(self, model: MaskedAutoencoder, settings: TrainRecipe) -> None:
        self.model, self.settings = model, settings
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(model, settings)
        self.anchor = anchored(model) if settings.proximal else []

    @cached_property
    def runner(self) -> nn.Module:
        """What computes the loss. Made at the first step, when a checkpoint's weights are in their place."""
        module: nn.Module = torch.compile(self.model) if compiles(self.settings, device_of(self.model)) else self.model  # type: ignore[assignment]
        return DistributedDataParallel(module, gradient_as_bucket_view=True) if ranks()[1] > 1 else module

    def step(self, batch: Prepared | DeviceBatch, rate: float, stop: Stop = never) -> tuple[float, float] | None:
        """One update; returns the global batch's loss and gradient norm. The weights stay untouched on an error.

        None, and no update, where `stop` is true between two micro-batches.

        Raises UsfmaeError where the loss is not finite, ResourceError where memory is full.
        """
        values = self.update(batch, rate, stop)
        return None if values is None else checked(batch, values)

    def update(
        self, batch: Prepared | DeviceBatch, rate: float, stop: Stop = never, wait: bool = True
    ) -> Tensor | None:
        """`step` whose loss and norm, (2,), stay on the device. Without `wait` nothing waits for it: an update of
        values that are not finite is left out there, and `checked` says so when they are read."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            loss = self.gradients(batch, stop)
            if loss is None:
                self.optimizer.zero_grad(set_to_none=True)
                return None
            pull(self.anchor, self.settings.proximal)
            norm = nn.utils.clip_grad_norm_(self.trained, self.settings.clip)
            values = torch.stack([loss, norm])
            if wait:
                checked(batch, values)
            else:
                leave_out(self.optimizer, ~values.isfinite().all())
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise _memory_full(min(micro_batch(self.settings, device_of(self.model)), len(batch))) from None
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def gradients(self, batch: Prepared | DeviceBatch, stop: Stop) -> Tensor | None:
        """Fill in the gradients of the batch's mean loss; that loss, or None where `stop` came before its end."""
        return backward(self.runner, batch, self.settings, device_of(self.model), stop)


class PatientStepper(Stepper):
    """DP-SGD: steps that see the sum of patients' cut gradients with noise, and nothing else of the images.

    One patient more or less changes that sum by `dp.clip` at most, so that a step is a Gaussian mechanism on a Poisson
    sample (core/corpus/patients.py). The last blocks of the encoder are trained alone; all else of the model is frozen here,
    since noise grows with the square root of the weights. UsageError under torchrun.
    """

    def __init__(self, model: MaskedAutoencoder, settings: TrainRecipe) -> None:
        if ranks()[1] > 1:
            raise UsageError("train.dp", f"runs in one process, not in {ranks()[1]}", "start it without torchrun")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and settings.dp.trains(name, model.settings.depth))
        super().__init__(model, settings)

    def gradients(self, batch: Prepared | DeviceBatch, stop: Stop) -> Tensor | None:
        """Fill in gradients; the mean loss of the patients in the step, or None where `stop` came between two of them."""
        settings, device = self.settings, device_of(self.model)
        sums = [torch.zeros_like(parameter) for parameter in self.trained]
        total = torch.zeros((), device=device)
        for row in range(len(batch)):
            if stop():
                return None
            images, noise = rows_of(batch, slice(row, row + 1), settings, device)
            with autocast(device, settings.precision):
                loss = self.runner(images, noise, full=False)[0]
            self._add_cut(sums, torch.autograd.grad(loss, self.trained))
            total += loss.detach()
        random = generator(settings.seed, DP_NOISE, batch.step)
        for parameter, summed in zip(self.trained, sums, strict=True):
            drawn = random.standard_normal(tuple(parameter.shape), dtype=np.float32)
            noised = summed + settings.dp.noise * settings.dp.clip * torch.from_numpy(drawn).to(device)
            parameter.grad = noised / settings.batch_size
        return total / max(1, len(batch))

    def _add_cut(self, sums: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add one patient's gradient, at most `dp.clip` long; one that is not finite counts as none."""
        length = torch.sqrt(sum((g.float().square().sum() for g in gradients), torch.zeros((), device=sums[0].device)))
        factor = torch.where(length.isfinite(), (self.settings.dp.clip / length.clamp_min(1e-12)).clamp_max(1.0), 0.0)
        for summed, gradient in zip(sums, gradients, strict=True):
            summed += torch.nan_to_num(gradient.float(), 0.0, 0.0, 0.0) * factor


def leave_out(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Let a fused AdamW skip its next update where `bad`, (), is true, without telling the host."""
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # what torch's own GradScaler sets
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def checked(batch: Prepared | DeviceBatch, values: Tensor) -> tuple[float, float]:
    """Loss and gradient norm, read from the device. Raises UsfmaeError where one is not finite."""
    loss, norm = values.tolist()
    check_finite(batch, loss, norm)
    return loss, norm


def check_finite(batch: Prepared | DeviceBatch, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        images = ", ".join(id_[:12] for id_ in batch.ids[:4])
        raise UsfmaeError(
            f"step {batch.step + 1}: loss {loss}, gradient norm {norm}",
            f"not finite, in the batch of images {images}, ...",
            "the last checkpoint is kept; lower train.lr or train.clip, or look at these images",
        )


def _memory_full(size: int) -> ResourceError:
    smaller = f"try --set train.micro_batch={size // 2}: same result, less memory"
    return ResourceError(
        f"memory, with {size} images at a time", "is full", smaller if size > 1 else "take a smaller model.*"
    )


def backward(
    runner: nn.Module, batch: Prepared | DeviceBatch, settings: TrainSettings, device: torch.device, stop: Stop = never
) -> Tensor | None:
    """Gradients of the global batch's mean loss, a micro-batch at a time; that loss, or None where `stop` came."""
    world, size = ranks()[1], micro_batch(settings, device)
    total = torch.zeros((), device=device)
    starts = range(0, len(batch), size)
    # One autocast region for the whole step: each weight is cast to bf16 once, not once a micro-batch.
    with autocast(device, settings.precision):
        for start in starts:
            if world == 1 and stop():  # several processes stop together, after a step
                return None
            rows = slice(start, start + size)
            images, noise = rows_of(batch, rows, settings, device)
            last = start == starts[-1]
            with contextlib.nullcontext() if last or world == 1 else runner.no_sync():  # type: ignore[operator]
                loss = runner(images, noise, full=False)[0] * (len(images) * world / settings.batch_size)
                with torch.autocast(device.type, enabled=False):
                    loss.backward()
            total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total / world


def rows_of(
    batch: Prepared | DeviceBatch, rows: slice, settings: TrainSettings, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and mask noise (B, L) of some rows of a batch, on the device."""
    if isinstance(batch, DeviceBatch):
        return batch.images(rows, settings), batch.noise[rows]
    return normalise(batch.pixels[rows], settings, device), torch.from_numpy(batch.noise[rows]).to(device)


def anchored(model: MaskedAutoencoder) -> list[tuple[Tensor, Tensor]]:
    """Each trained tensor of the encoder with a copy of its value now; a site's decoder is its own affair."""
    named = ((n, p) for n, p in model.named_parameters() if p.requires_grad and not n.startswith(DECODER))
    return [(parameter, parameter.detach().clone()) for _, parameter in named]


@torch.no_grad()
def pull(anchor: Sequence[tuple[Tensor, Tensor]], proximal: float) -> None:
    """Add the gradient of proximal / 2 * |w - anchor|^2, the term of FedProx (Li et al. 2020, arXiv:1812.06127)."""
    for parameter, start in anchor:
        assert parameter.grad is not None
        parameter.grad.add_(parameter - start, alpha=proximal)
