"""A federation in process: virtual hospitals that train with a few additions, the real loop, gate and ledger."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from usfmae.core import keys
from usfmae.core.federated.local_round import Trained
from usfmae.core.federated.messages import TrainReply, TrainRequest, sign, to_record
from usfmae.core.keys import Ed25519PrivateKey
from usfmae.server import layout
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.loop import Clock, Loop
from usfmae.server.simulate import Hospital, InProcess

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TINY |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def nudge(place: Path, request: TrainRequest, encoder: dict[str, np.ndarray], decoder: Path) -> Trained:
    """A training that is quick and different at each hospital and in each round: a common step and an own one."""
    own = int.from_bytes(hashlib.sha256(place.name.encode()).digest()[:4], "big")
    common, noise = np.random.default_rng(request.round), np.random.default_rng(own + request.round)
    step = {n: 0.01 * (common.normal(size=v.shape) + noise.normal(size=v.shape)) for n, v in sorted(encoder.items())}
    moved = {n: (encoder[n] + step[n]).astype(np.float32) for n in encoder}
    return Trained(moved, images=10 + own % 7, steps=request.steps, loss_before=1.0, loss_after=0.5)


class Federation:
    """Some virtual hospitals and a loop over them; `again()` is a new process on the same directory."""

    def __init__(self, root: Path, sites: int, trainer: Any = nudge, capacity: int = 1000, **settings: Any) -> None:
        self.home = Layout(root / "coordinator")
        chosen = {**{f"model.{k}": v for k, v in TINY.items()}, "rounds.quorum": sites, "min_free_gib": 0, **settings}
        create(self.home.root, NewFederation("unit", port=0), [f"{key}={value}" for key, value in chosen.items()])
        self.ledger = Ledger(self.home.ledger)
        self.hospitals = []
        for number in range(sites):
            place = root / f"site-{number}"
            # The same keys in every federation: the merge goes in the order of fingerprints.
            keys.write_private(
                place / "keys" / "signing.pem", Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
            )
            self.hospitals.append(Hospital(place, self.home.fingerprint(), trainer))
            self.ledger.add_site(self.hospitals[-1].enrolment(capacity))
        self.wire = InProcess(self.hospitals, self.home.decoder)
        self.waited = 0

    def loop(
        self,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], object] | None = None,
        committed: Callable[[int], None] = lambda number: None,
    ) -> Loop:
        federation = layout.Federation(self.home, self.ledger, self.home.settings())
        return Loop(federation, self.wire, Clock(clock, wait or self._wait), committed)

    def _wait(self, seconds: float) -> None:
        self.waited += 1
        if self.waited > 500:
            raise AssertionError("the loop waits for ever")

    def again(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.home.ledger)
        self.wire = InProcess(self.hospitals, self.home.decoder)

    def run(self, rounds: int) -> str:
        self.loop().run(rounds)
        return self.ledger.last_round().result

    def encoder(self, number: int) -> dict[str, np.ndarray]:
        return load_file(self.home.checkpoint(number))

    def verdicts(self, number: int = 1) -> list[str]:
        """Verdicts in the order the hospitals were made in."""
        recorded = self.ledger.verdicts(number)
        return [recorded[h.site].verdict if h.site in recorded else "-" for h in self.hospitals]

    def declining(self, reason: str, when: Callable[[TrainRequest], bool]) -> list[bool]:
        """The first hospital declines the requests that `when` picks; the list grows by its answer to each request."""
        real, requests = self.hospitals[0].answer, []

        def answer(request: TrainRequest, encoder: Any, decoder: Any) -> Any:
            requests.append(when(request))
            if not requests[-1]:
                return real(request, encoder, decoder)
            reply = TrainReply(
                request.campaign, request.round, request.base, declined=reason, site=self.hospitals[0].site
            )
            reply = dataclasses.replace(reply, recipient=self.home.fingerprint(), expires=request.expires)
            return to_record(sign(reply, self.hospitals[0].key)), {}

        self.hospitals[0].answer = answer  # type: ignore[method-assign]
        return requests


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Federation]:
    def make(sites: int = 3, name: str = "one", **settings: Any) -> Federation:
        return Federation(tmp_path / name, sites, **settings)

    return make
