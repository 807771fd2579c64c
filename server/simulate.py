"""Many virtual hospitals in one process, through the very same round loop, gate, ledger and merge.

What is left out is the network: no TLS, no fleet API, no agent. Each hospital has its own corpus of simulated tissue,
decoder, optimizer state, rounding residue and signing key, all on disk, so that memory does not grow with their number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file, save_file

from usfmae.core import keys
from usfmae.core.config.train import read_recipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated import codec
from usfmae.core.federated.admission import Arrived
from usfmae.core.federated.enrolment import Enrolment
from usfmae.core.federated.local_round import (
    Progress,
    StartWeights,
    Trained,
    TrainingData,
    local_round,
    train_autoencoder,
)
from usfmae.core.federated.messages import (
    RAW,
    REPLY_COUNTS,
    DeclineReason,
    TrainReply,
    TrainRequest,
    fingerprint,
    sign,
    to_record,
)
from usfmae.core.files import copy_atomic, replacing
from usfmae.core.keys import read_private
from usfmae.core.types import content_id
from usfmae.server.layout import Federation, Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.loop import Clock, Loop
from usfmae.server.rounds.transport import Answer, RoundTask

TENSORS = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


class Trainer(Protocol):
    """Local training at a virtual hospital."""

    def __call__(self, place: Path, request: TrainRequest, encoder: TENSORS, decoder: Path) -> Trained: ...


def masked_autoencoder(place: Path, request: TrainRequest, encoder: TENSORS, decoder: Path) -> Trained:
    """The real training: the hospital's corpus, its own decoder and optimizer state, the campaign's recipe."""
    recipe = read_recipe(request.recipe)
    settings = recipe.train
    own, frozen = place / "decoder.safetensors", teacher_file(place, settings.teacher)
    if settings.target != "pixels" and not frozen.exists():
        _save(frozen, encoder)  # the campaign's first round: its encoder is the teacher
    corpus = Corpus([place / "corpus"])
    mine, held = corpus.split(settings.held_out, settings.seed)
    trained = train_autoencoder(
        StartWeights(
            encoder,
            load_file(own if own.exists() else decoder),
            load_file(frozen) if frozen.exists() else None,
        ),
        TrainingData(corpus, mine, held if len(held) else mine, len(mine)),
        request,
        recipe,
        Progress(state=place / "state"),
    )
    assert trained is not None, "nobody stops it"
    _save(own, trained.decoder)
    return trained


def teacher_file(place: Path, teacher: str) -> Path:
    """Where a virtual hospital keeps the frozen teacher of this hash."""
    return place / f"teacher-{teacher[:16]}.safetensors"


def _save(path: Path, tensors: Mapping[str, Any]) -> None:
    with replacing(path) as partial:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, partial)


class Hospital:
    """A virtual site: everything it knows lies in its directory, between two requests it holds nothing."""

    def __init__(self, place: Path, coordinator: str, trainer: Trainer = masked_autoencoder) -> None:
        """`coordinator`: fingerprint of the key that its replies are for."""
        self.place, self.coordinator, self.trainer = place, coordinator, trainer
        self.key = read_private(place / "keys" / "signing.pem", Ed25519PrivateKey)
        self.site = fingerprint(self.key.public_key())

    @classmethod
    def create(cls, place: Path, coordinator: str, trainer: Trainer = masked_autoencoder) -> Hospital:
        keys.write_private(place / "keys" / "signing.pem", keys.new_signing_key())
        return cls(place, coordinator, trainer)

    def enrolment(self, capacity: int = 1_000_000) -> Enrolment:
        node = keys.public_pem(keys.new_node_key())  # no fleet API here: the key is only a name
        return Enrolment(self.place.name, node, keys.public_pem(self.key), capacity)

    def answer(self, request: TrainRequest, encoder: Path, decoder: Path) -> tuple[dict[str, Any], dict[str, Arrived]]:
        """Train and answer; a repeated request is answered from disk, as a real site does."""
        base = load_file(encoder)
        folder = self.place / "answers" / f"{request.round:05d}-{request.base[:16]}"
        if not (folder / "reply.json").exists():
            self._work(request, base, decoder, folder)
        record = json.loads((folder / "reply.json").read_text())
        payload = load_file(folder / "update.safetensors")
        shapes = {name: base[name].shape for name in payload}
        arrived = {n: Arrived.whole(request.encoding, shapes[n], RAW, d.tobytes()) for n, d in payload.items()}
        return record, arrived

    def lacking(self, task: RoundTask) -> dict[str, Any] | None:
        """A decline where the campaign's frozen teacher is not here and does not come along; else None."""
        request, teacher = task.request, read_recipe(task.request.recipe).train.teacher
        if not teacher or teacher == request.base or teacher_file(self.place, teacher).exists():
            return None
        if task.teacher is not None:
            copy_atomic(task.teacher, teacher_file(self.place, teacher))
            return None
        why = DeclineReason.NEED_TEACHER
        reply = TrainReply(
            request.campaign, request.round, request.base, declined=why, site=self.site, recipient=self.coordinator,
            expires=time.time() + REPLY_COUNTS,
        )  # fmt: skip
        return to_record(sign(reply, self.key))

    def _work(self, request: TrainRequest, base: TENSORS, decoder: Path, folder: Path) -> None:
        began = time.perf_counter()
        residual = self.place / "residual.safetensors"
        result = local_round(
            base,
            request,
            load_file(residual) if residual.exists() else {},
            partial(self.trainer, self.place, request, base, decoder),
        )
        assert result is not None, "nobody stops it"
        tensors, trained = list(result.payload), result.trained
        if request.encoding != "fp32":
            share = np.float32(codec.decay(request.encoding))
            _save(residual, {tensor.name: tensor.error * share for tensor in tensors if tensor.error is not None})
        payload = {tensor.name: tensor.data for tensor in tensors}
        _save(folder / "update.safetensors", {n: np.frombuffer(d, np.uint8) for n, d in payload.items()})
        reply = TrainReply(
            campaign=request.campaign,
            round=request.round,
            base=request.base,
            content=codec.payload_id(payload),
            images=trained.images,
            steps=trained.steps,
            encoding=request.encoding,
            loss_before=trained.loss_before,
            loss_after=trained.loss_after,
            seconds=time.perf_counter() - began,
            site=self.site,
            version=request.version,
            recipient=self.coordinator,
            expires=request.expires + REPLY_COUNTS,
        )
        (folder / "reply.json").write_text(json.dumps(to_record(sign(reply, self.key))))


class InProcess:
    """Transport without a network: a request is answered when its answer is looked for, one hospital at a time."""

    def __init__(self, hospitals: Iterable[Hospital], decoder: Path) -> None:
        self.hospitals = {hospital.site: hospital for hospital in hospitals}
        self.decoder = decoder
        self.waiting: dict[str, RoundTask] = {}
        self.order: Callable[[list[str]], list[str]] = list  # in which order answers arrive

    def connected(self) -> set[str]:
        return set(self.hospitals)

    def ask(self, task: RoundTask) -> str:
        message = content_id(task.site, str(task.request.round), str(time.monotonic_ns()))
        self.waiting[message] = task
        return message

    def answers(self, messages: Iterable[str]) -> Iterable[Answer]:
        for message in self.order([m for m in messages if m in self.waiting]):
            task = self.waiting.pop(message)
            hospital = self.hospitals[task.site]
            if declined := hospital.lacking(task):
                yield Answer(message, declined)
                continue
            record, arrays = hospital.answer(task.request, task.encoder, self.decoder)
            yield Answer(message, record, arrays)

    def withdraw(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.waiting.pop(message, None)

    def release(self) -> None:
        pass


def populate(home: Layout, sites: int, images: int, trainer: Trainer = masked_autoencoder) -> list[Hospital]:
    """Make and enrol virtual hospitals, each with its own simulated tissue; those that exist stay as they are."""
    ledger = Ledger(home.ledger)
    hospitals = []
    size = home.settings().model.image_size
    coordinator = home.fingerprint()
    for number in range(sites):
        place = home.root / "hospitals" / f"virtual-{number + 1:03d}"
        if (place / "enrolled").exists():
            hospitals.append(Hospital(place, coordinator, trainer))
            continue
        hospital = Hospital.create(place, coordinator, trainer)
        write_shard(place / "corpus", "all", list(tissue(number, images, size)))
        ledger.add_site(hospital.enrolment(), confirmed=True)
        (place / "enrolled").touch()
        hospitals.append(hospital)
    ledger.close()
    return hospitals


def tissue(site: int, images: int, size: int) -> Iterable[PackedImage]:
    """Simulated scans of one hospital: clips of four frames, sector or linear by hospital."""
    from PIL import Image

    from usfmae.core.phantom import Tissue, simulate

    geometry: Literal["linear", "sector"] = "sector" if site % 2 else "linear"
    for clip in range(-(-images // 4)):
        frames, _ = simulate(Tissue(seed=10_000 * (site + 1) + clip, geometry=geometry), frames=4, size=(120, 120))
        for index, frame in enumerate(frames[: images - 4 * clip]):
            gray = Image.fromarray(frame).convert("L").resize((size, size))
            yield PackedImage(np.asarray(gray), content_id(str(site), str(clip), str(index)), f"clip-{clip}")


def run(
    home: Layout,
    sites: int,
    rounds: int,
    images: int,
    trainer: Trainer = masked_autoencoder,
    committed: Callable[[int], None] = lambda number: None,
) -> None:
    """Rounds over virtual hospitals until `rounds` are committed; a second call goes on.

    ConfigError where the settings ask for what virtual hospitals do not do.
    """
    federation = Federation.of(home)
    settings = federation.settings
    if settings.continual.replay and settings.continual.replay_share:
        raise ConfigError("continual.replay", "is not simulated: virtual hospitals mix in nothing", "leave it out")
    hospitals = InProcess(populate(home, sites, images, trainer), home.decoder)

    def wait(seconds: float) -> None:
        if not hospitals.waiting:  # everyone has answered, and the round does not close: nothing would ever change
            raise PolicyError("round", "has fewer admitted hospitals than its quorum", "see the verdicts in 'status'")

    loop = Loop(federation, hospitals, Clock(wait=wait), committed)
    loop.run(rounds)
    federation.ledger.close()
