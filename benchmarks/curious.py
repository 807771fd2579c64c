"""A coordinator that turned curious: it signs whatever it likes, and asks a real `usfmae-client run` over TLS.

What benchmarks/leak.py measures and tests/e2e/test_attacks_coordinator.py tries. Everything here is what a coordinator
has by itself: its keys, its port, and the replies.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from usfmae.client import site as client_site
from usfmae.core import audit, keys
from usfmae.core.checkpoint import decoder_of, encoder_of, tensors_id, write_tensors
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe, validated
from usfmae.core.config.site import SiteSettings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated import codec
from usfmae.core.federated.messages import TrainRequest, sign
from usfmae.core.mae.model import fresh
from usfmae.server.aggregator import Refusals
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.flower.gateway import Gateway
from usfmae.server.flower.gateway_transport import GatewayTransport
from usfmae.server.flower.link_state import LinkState
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.transport import Answer, RoundTask
from usfmae.server.sites import add

SEED = ["model.image_size=32", "model.patch_size=8", "model.width=32", "model.depth=1", "model.heads=2"]
SEED += ["model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2"]
Change = Callable[[dict[str, Tensor]], None]  # crafts a model's tensors in place


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model on the coordinator's disk, ready to be sent."""

    encoder: Path
    decoder: Path
    encoder_id: str
    decoder_id: str
    tensors: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back for a request: a no, or the change of each tensor of the encoder."""

    declined: str
    record: dict[str, Any]
    changes: dict[str, NDArray[np.float64]]


class CuriousCoordinator:
    """With its port open and one hospital's agent running, from entering the block to its end."""

    def __init__(self, root: Path, port: int, images: Sequence[PackedImage], privacy: dict[str, Any]) -> None:
        self.root, self.home = root, Layout(root / "coordinator")
        create(self.home.root, NewFederation("curious", port=port), ["network.host=127.0.0.1", "min_free_gib=0", *SEED])
        values: dict[str, Any] = {"name": "clinic", "server": f"https://127.0.0.1:{port}", "device": "cpu"}
        values |= {"poll": 0.2, "heartbeat": 10, "disk_floor_gb": 0, "threads": 1, "stop_wait": 3, "capacity": 10_000}
        options = validated(SiteSettings, {**values, "privacy": privacy}, "the curious coordinator's clinic")
        self.site = client_site.create(root / "clinic", options, self.home.ca, self.home.public_key)
        write_shard(self.site.corpus, "all", images)
        add(self.home, self.site.root / "enrol.json")
        self.key = keys.read_signing_key(self.home.signing_key)
        self.ledger = Ledger(self.home.ledger)
        self.log = root / "agent.log"

    def __enter__(self) -> CuriousCoordinator:
        link = LinkState(self.home.transit, 2 * 10**9)
        files = (self.home.certificate, self.home.tls_key)
        self.gateway = Gateway(link, self.home.settings().network, *files, Refusals(self.home.audit).count)
        self.gateway.__enter__()
        self.transport = GatewayTransport(link, self.ledger.sites)
        self.transport.connected()
        self.start_agent()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_agent()
        self.gateway.__exit__(*error)
        self.ledger.close()

    def start_agent(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "usfmae.client", "run", str(self.site.root)]
            self.agent = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 90
        while not self.transport.connected():
            if time.monotonic() > end or self.agent.poll() is not None:
                raise SystemExit(f"the agent did not come online\n{self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop_agent(self) -> None:
        if self.agent.poll() is None:
            self.agent.terminate()
            try:
                self.agent.wait(30)
            except subprocess.TimeoutExpired:
                self.agent.kill()
                self.agent.wait()

    def weights(self, name: str, model: ModelSettings, craft: Change | None = None, seed: int = 0) -> Weights:
        """Fresh weights, as `craft` changes them."""
        tensors = {key: value.clone() for key, value in fresh(model, 0.5, False, seed).state_dict().items()}
        if craft:
            craft(tensors)
        encoder, decoder = encoder_of(tensors), decoder_of(tensors)
        files = self.root / f"{name}-encoder.safetensors", self.root / f"{name}-decoder.safetensors"
        for file, part in zip(files, (encoder, decoder), strict=True):
            write_tensors(file, part, {})
        self.transport.release()
        return Weights(*files, tensors_id(encoder), tensors_id(decoder), encoder)

    def request(
        self, model: ModelSettings, train: TrainRecipe, weights: Weights, campaign: str, **fields: Any
    ) -> TrainRequest:
        """Any request, signed. `fields`: of TrainRequest; round 1, step 0 and one optimizer step by default."""
        defaults = {"round": 1, "global_step": 0, "steps": 1, "recipe": recipe_text(model, train)}
        defaults |= {"recipient": self.site.fingerprint, "expires": time.time() + 3600}
        defaults |= {"base": weights.encoder_id, "decoder": weights.decoder_id, "with_decoder": True}
        return sign(TrainRequest(**{**defaults, "campaign": campaign, **fields}), self.key)

    def ask(self, request: TrainRequest, weights: Weights, seconds: float = 180) -> Reply | None:
        """Send it; what the hospital answers, or None where it says nothing in time."""
        self.transport.connected()
        task = RoundTask(self.site.fingerprint, request, weights.encoder, decoder=weights.decoder, ttl=3600.0)
        message = self.transport.ask(task)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for answer in self.transport.answers([message]):
                return self._reply(answer, request, weights)
            time.sleep(0.05)
        self.transport.withdraw([message])
        return None

    def _reply(self, answer: Answer, request: TrainRequest, weights: Weights) -> Reply:
        record: dict[str, Any] = dict(answer.record or {})
        changes = {}
        for name, arrived in (answer.arrays or {}).items():
            before = weights.tensors[name].numpy()
            changes[name] = codec.unpack(arrived.read(10**10), before, request.encoding).reshape(before.shape)
        return Reply(str(record.get("declined", answer.error)), record, changes)

    def audited(self) -> list[str]:
        """Events of the hospital's own audit log."""
        return [entry["event"] for entry in audit.entries(self.site.audit_log)]

    def downloaded(self) -> int:
        """Encoders that came to the hospital's disk."""
        return len(list((self.site.root / "jobs").glob("*/base.*")))
