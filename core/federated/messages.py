"""The wire contract between aggregator and site: the only place that names message keys.

A round is one request and one reply. Both travel as a record of scalars (str, int, float) and, beside it, named
byte strings. Neither side ever sends code, paths, names or identifiers of scans. A signature covers the whole record,
whom it is for and until when it counts; never the transport's run or message id, which change on a resubmission.

    request  aggregator -> site   record + encoder tensors, or the packed step to them from the encoder `delta_from` names
                                  (+ decoder tensors where `with_decoder`,
                                  + the public corpus' files where `with_replay`,
                                  + the frozen teacher's tensors where `with_teacher`)
    reply    site -> aggregator   record + packed delta of the encoder (see codec.py)
    decline  site -> aggregator   record with `declined` set: no images, paused, need-..., refused
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from usfmae.core.errors import PolicyError
from usfmae.core.federated.encodings import part

# Versions of the protocol that this program reads and writes, newest first. A later one adds fields: they stand in SINCE,
# and a message of an earlier version neither carries nor signs them. The aggregator asks in the newest; a site that does
# not speak it declines in its own, and is asked in that one from then on (server/rounds/loop.py).
SPOKEN: tuple[int, ...] = (3,)
SINCE: dict[str, int] = {}  # field -> the version it came with
# Versions that are refused for what they lack, not for their age.
UNSAFE = dict.fromkeys((1, 2), "its signatures did not cover the whole message")
VERSION = SPOKEN[0]

# Names of the records inside a message.
RECORD = "usfmae"  # the scalars of a TrainRequest, TrainReply
ENCODER = "encoder"  # request: fp32 tensors of the base encoder
STEP = "step"  # request: what leads to the base from the encoder before it, packed as an update
DECODER = "decoder"  # request: fp32 tensors of the seed's decoder
REPLAY = "replay"  # request: files of the public corpus as arrays of bytes, by name
TEACHER = "teacher"  # request: fp32 tensors of the encoder whose features the campaign predicts
UPDATE = "update"  # reply: the packed delta

# How tensors stand in a message. A request's are Flower's own (npy, float32). A reply's have the tensor's true shape,
# the name of the encoding as dtype, this serialisation type, and bytes packed as codec.py says. A file of the public
# corpus is a uint8 array of this type, its bytes as they are.
RAW = "usfmae.raw"

CLOCKS_APART = 3600.0  # seconds that the clocks of aggregator and hospital may differ
REPLY_COUNTS = 7 * 86400.0  # seconds for which a signed reply counts

# Bounds of a reply's figures. Whatever lies outside is a broken or a hostile site, and would spoil means and charts.
HIGHEST_LOSS = 1e4
LONGEST_SECONDS = 1e7

# What a record may hold for a field of each type; a whole number is a valid float.
WANTED: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}

T = TypeVar("T")


class UnspokenVersionError(PolicyError):
    """A message in a version of the protocol that this program does not speak."""


class DeclineReason(StrEnum):
    """Why a site sends no update: what `TrainReply.declined` holds. A refusal is followed by a colon and the cause."""

    PAUSED = "paused"
    NO_IMAGES = "no-images"
    NO_NEW_IMAGES = "no-new-images"
    NEED_BASE = "need-base"  # the whole encoder, not a step to it
    NEED_DECODER = "need-decoder"
    NEED_REPLAY = "need-replay"
    NEED_TEACHER = "need-teacher"
    NO_REPLAY = "no-replay"  # it has no copy of the public corpus and takes none
    REFUSED = "refused"


class VerdictCode(StrEnum):
    """What became of a site's reply in a round; every code but the first two says why it was not merged."""

    ADMITTED = "admitted"
    DECLINED = "declined"  # the site's own no

    # the reply alone
    BAD_MESSAGE = "bad-message"
    BAD_RECORD = "bad-record"
    BAD_SIGNATURE = "bad-signature"
    WRONG_SITE = "wrong-site"
    WRONG_CAMPAIGN = "wrong-campaign"
    WRONG_ROUND = "wrong-round"
    WRONG_BASE = "wrong-base"
    WRONG_ENCODING = "wrong-encoding"
    EXAMPLE_COUNT = "example-count"
    STEP_COUNT = "step-count"
    MISSING_TENSOR = "missing-tensor"
    EXTRA_TENSOR = "extra-tensor"
    WRONG_SHAPE = "wrong-shape"
    WRONG_DTYPE = "wrong-dtype"
    WRONG_SIZE = "wrong-size"
    WRONG_RECIPIENT = "wrong-recipient"  # it is for another coordinator, or does not count any more
    NOT_FINITE = "not-finite"
    TAMPERED = "tampered"
    REPLAYED = "replayed"
    LATE = "late"
    MASK = "mask"  # the custodian of a sealed round cannot take this site's mask off

    # beside the others
    NORM = "norm"
    TOO_SMALL = "too-small"
    DIRECTION = "direction"
    DRIFT = "drift"  # its held-out loss jumped: its images are not what they were
    FORGETS = "forgets"  # it broke the forgetting budget
    REVOKED = "revoked"


@dataclass(frozen=True)
class TrainRequest:
    """What a site is asked to do in one round."""

    campaign: str
    round: int
    base: str  # tensors_id of the encoder to start from, however it comes
    global_step: int  # optimizer steps taken by the federation before this round; places the learning rate
    steps: int  # local optimizer steps asked for
    recipe: str  # canonical JSON: {"model": ModelSettings, "train": TrainSettings}
    decoder: str = ""  # tensors_id of the seed's decoder
    encoding: str = "int8"  # how the delta should be packed: int8, bf16, fp32
    delta_from: str = ""  # tensors_id of the encoder from which STEP leads to the base; "" where ENCODER comes
    with_decoder: bool = False  # the seed's decoder comes along (a site's first round in a campaign)
    with_replay: bool = False  # the public corpus comes along (the site said it has none)
    with_teacher: bool = False  # the frozen teacher comes along (the site said it has none)
    min_new: int = 0  # a site with fewer images it never trained on declines; 0 asks every site
    deadline: float = 0.0  # Unix time after which the reply is not used; 0 for none
    recipient: str = ""  # fingerprint of the site it is for
    expires: float = 0.0  # Unix time after which a site does not take it up
    custodian: str = ""  # name of the custodian's key whose sealed round this is; "" where it is not sealed
    bound: float = 0.0  # length to which a site cuts its update; 0 for none
    signature: str = ""  # the coordinator's Ed25519 signature over all of the above, base64
    version: int = VERSION

    @property
    def step_encoding(self) -> str:
        """How STEP is packed."""
        if not self.custodian:
            return self.encoding
        return part.name("int8", self.round - 1) if part.SIGN in self.encoding else "int8"


@dataclass(frozen=True)
class TrainReply:
    """The short record that leaves a hospital beside the delta."""

    campaign: str
    round: int
    base: str
    content: str = ""  # payload_id of the packed delta
    images: int = 0  # images of the site's corpus that the training could use
    steps: int = 0  # local optimizer steps taken
    encoding: str = "int8"
    loss_before: float = 0.0  # held-out masked loss at this site, base encoder
    loss_after: float = 0.0  # the same after local training
    seconds: float = 0.0  # training time
    declined: str = ""  # a DeclineReason, "" with an update
    site: str = ""  # fingerprint of the site's public key
    recipient: str = ""  # fingerprint of the coordinator's key
    expires: float = 0.0  # Unix time after which the reply does not count
    mask: str = ""  # in a sealed round: the seed of the update's mask, in a box for the custodian
    task: str = ""  # in a sealed round: hash of what was asked of every site alike
    signature: str = ""  # the site's Ed25519 signature over all of the above, base64
    version: int = VERSION


def fields_of(kind: Any, version: int) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a message of this version has, by name."""
    return {field.name: field for field in dataclasses.fields(kind) if SINCE.get(field.name, 0) <= version}


def to_record(message: TrainRequest | TrainReply) -> dict[str, str | int | float | bool]:
    return {name: getattr(message, name) for name in fields_of(message, message.version)}


def spoken_version(record: Mapping[str, Any]) -> int:
    """The version of a record. PolicyError where this program does not speak it."""
    version = record.get("version", VERSION)
    if isinstance(version, int) and not isinstance(version, bool) and version in SPOKEN:
        return version
    unsafe = UNSAFE.get(version) if isinstance(version, int) else None
    spoken = " and ".join(str(one) for one in SPOKEN)
    why = f"{unsafe}; this side speaks version {spoken}" if unsafe else f"this side speaks version {spoken}"
    raise UnspokenVersionError(f"protocol version {version!r:.20}", why, "update usfmae on the older side")


def from_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """A message from an untrusted record. PolicyError on a missing or unknown key or a value of the wrong type."""
    fields = fields_of(kind, spoken_version(record))
    unknown = sorted(set(record) - set(fields))
    if unknown:
        raise PolicyError(f"message key {unknown[0]!r:.60}", "is not part of the protocol", "update this program")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in record:
            if field.default is dataclasses.MISSING:
                raise PolicyError(f"message key {name!r}", "is missing", "update the other side")
            continue
        expected = WANTED[str(field.type)]
        value: Any = record[name]
        if not isinstance(value, expected) or (isinstance(value, bool) and field.type != "bool"):
            raise PolicyError(f"message key {name!r}", f"holds {type(value).__name__}, not {field.type}", "refused")
        values[name] = _float(name, value) if field.type == "float" else value
    return kind(**values)


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise PolicyError(f"message key {name!r}", "is larger than any float", "refused") from None


def signed_bytes(message: TrainRequest | TrainReply) -> bytes:
    """The canonical bytes under a signature: every field but the signature itself."""
    values = {
        field.name: float(getattr(message, field.name)) if field.type == "float" else getattr(message, field.name)
        for field in fields_of(message, message.version).values()
        if field.name != "signature"
    }
    return json.dumps([type(message).__name__, values], sort_keys=True, separators=(",", ":")).encode()


def sign(message: T, key: Ed25519PrivateKey) -> T:
    signature = base64.b64encode(key.sign(signed_bytes(message))).decode()  # type: ignore[arg-type]
    return dataclasses.replace(message, signature=signature)  # type: ignore[type-var]


def verify(message: TrainRequest | TrainReply, key: Ed25519PublicKey) -> None:
    """PolicyError where the signature is not this key's over exactly this message."""
    try:
        key.verify(base64.b64decode(message.signature, validate=True), signed_bytes(message))
    except (InvalidSignature, ValueError):
        raise PolicyError("signature", "does not match the message and the enrolled key", "refused") from None


def check_addressed(message: TrainRequest | TrainReply, recipient: str, now: float) -> None:
    """PolicyError where a message names nobody or somebody else, or does not count any more, or for ever."""
    if message.recipient != recipient:
        raise PolicyError("message", f"is for {message.recipient[:20] or 'nobody'}, not for {recipient}", "refused")
    if not 0 < message.expires < math.inf:  # false for NaN as well
        raise PolicyError("message", f"has no end ({message.expires:g})", "refused")
    if now > message.expires + CLOCKS_APART:
        late = f"{now - message.expires:.0f} s ago"
        raise PolicyError("message", f"expired {late}", "compare the clocks of both machines")


def fingerprint(key: Ed25519PublicKey) -> str:
    """A short public name of a key: 16 hex digits of the SHA-256 of its raw bytes."""
    import hashlib

    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


# What a request asks of every site alike; the rest is what comes along, and when.
TASK = ("campaign", "round", "base", "recipe", "global_step", "steps", "encoding", "bound", "custodian")


def task_id(request: TrainRequest) -> str:
    """Hash of what a request asks of every site alike. A custodian adds up only what was made for one and the same."""
    import hashlib

    parts = [f"{name}={getattr(request, name)!r}" for name in TASK]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
