"""FedProx: FedAvg here; the proximal term is added to the loss at the sites (Li et al. 2020, arXiv:1812.06127)."""

from __future__ import annotations

from usfmae.core.federated.rules import fedavg


class Rule(fedavg.Rule):
    @property
    def proximal(self) -> float:
        return self.settings.proximal
