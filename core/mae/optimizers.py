"""The optimizers of training: AdamW for every tensor, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from usfmae.core.config import TrainSettings


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
