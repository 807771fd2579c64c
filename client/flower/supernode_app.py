"""The way in for a stock SuperNode, where a hospital must run Flower's own: the same round, another transport.

A SuperNode fetches the coordinator's app (FAB) and runs it. Started through this file instead of Flower's
`flwr-clientapp`, nothing that came over the wire is unpacked or run: the app is the one of the installed package, and
a FAB with another hash than the one in site.yaml (`fab`) is refused and audited. docs/site.md says how to start it.

"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import save_file

from usfmae.client import outbox, site_policy
from usfmae.client.flower import download, pinned
from usfmae.client.rounds import apply_step, jobs, participation, replay_corpus
from usfmae.client.rounds.model_inspection import Inspection
from usfmae.client.rounds.workers import Workers
from usfmae.client.site import Site
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainReply, TrainRequest
from usfmae.core.files import replacing
from usfmae.core.tensors import TensorFile

SITE = "USFMAE_SITE"  # environment: the site's directory
POLL_SECONDS = 0.5  # seconds between two checks of the worker

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One request, answered when its update may leave, or with a signed no."""
    site = Site.open(Path(os.environ.get(SITE, "")))
    record = dict(message.content.config_records.get(messages.RECORD, {}))
    try:
        request = participation.checked(site, record)
        why = answer(site, request, message.content)
        if not why:
            return Message(_update(site, request), reply_to=message)
        reply = participation.declined(site, record, why)
    except PolicyError as error:
        site.note("request.refused", "refused", why=str(error))
        reply = participation.declined(site, record, participation.refusal(error))
    return Message(_content(reply), reply_to=message)


def answer(site: Site, request: TrainRequest, content: RecordDict, workers: Workers | None = None) -> str:
    """See the round through to a released update; returns why there is none, or nothing."""
    workers, place = workers or Workers(site), outbox.folder(site, outbox.key(request))
    while not (place / "entry.json").exists():
        why = participation.unwilling(site, request)
        if why and not isinstance(why, participation.Wait):
            return why
        if not why and _worked(site, request, content, workers):
            return participation.failure(jobs.job(site, request))
        time.sleep(POLL_SECONDS)
    while not participation.stays(site, outbox.state(place)):
        if outbox.state(place) is not outbox.EntryState.WAITING:
            return ""
        time.sleep(POLL_SECONDS)
    return "refused: kept by the site"


def _worked(site: Site, request: TrainRequest, content: RecordDict, workers: Workers) -> bool:
    """See to the round's job once; True where it cannot be done."""
    work = jobs.job(site, request)
    if work.result:
        participation.stage(site, work, request)
    elif not work.ready:
        site_policy.check_disk(site)
        room = lambda size: site_policy.check_disk(site, size)  # noqa: E731
        seen = _base(site, request, work, content, room)
        if request.with_decoder:
            _write(content, messages.DECODER, work.decoder)
        if request.with_teacher:
            _write(content, messages.TEACHER, work.teacher)
        if request.with_replay:
            files = {name: array.data for name, array in content.array_records[messages.REPLAY].items()}
            replay_corpus.put(site, participation.recipe_of(request).train, files, room)
        participation.accept(site, work, request, seen)
    else:
        workers.tend(work)
    return bool(work.error)


def _base(
    site: Site, request: TrainRequest, work: jobs.Job, content: RecordDict, room: Callable[[int], None]
) -> Inspection | None:
    """The round's encoder, whole or by the step that leads to it."""
    if not request.delta_from:
        _write(content, messages.ENCODER, work.base)
        return None
    step = work.place / "step.bin"
    data = content.array_records[messages.STEP][messages.STEP].data
    work.place.mkdir(parents=True, exist_ok=True)
    download.write_bytes(step, len(data), [data])
    return apply_step.apply_step(request, work, step, room)


def _write(content: RecordDict, name: str, target: Path) -> None:
    """An ArrayRecord of float32 as a safetensors file."""
    tensors = {}
    for key, array in content.array_records.get(name, {}).items():
        if array.dtype != "float32":
            raise PolicyError(f"tensor {key!r:.80}", f"is {array.dtype:.20}, not float32", "refused")
        tensors[key] = np.ascontiguousarray(array.numpy(), "<f4")
    with replacing(target) as partial:
        save_file(tensors, partial)


def _content(reply: TrainReply) -> RecordDict:
    return RecordDict({messages.RECORD: ConfigRecord(dict(messages.to_record(reply)))})


def _update(site: Site, request: TrainRequest) -> RecordDict:
    """The released update of a request, with its signed record."""
    place, reply = outbox.folder(site, outbox.key(request)), participation.released(site, request)
    with TensorFile(place / outbox.UPDATE) as file:
        outbox.check(file, reply.content)
        signed, parts = participation.outgoing(site, request, reply, outbox.parts(file, reply.encoding))
        arrays = {n: Array(p.dtype, p.shape, p.encoding, p.read(0, p.size)) for n, p in parts.items()}
    content = _content(signed)
    content[messages.UPDATE] = ArrayRecord(arrays)
    outbox.mark_sent(site, place, sum(part.size for part in parts.values()))
    return content


# --- in place of `flwr-clientapp`: what a SuperNode calls by that name -----------------------------------------------


def judge(site: Site, fab: bytes) -> None:
    """PolicyError, and an audit entry, where a FAB is not the one the hospital agreed to."""
    digest = hashlib.sha256(fab).hexdigest()
    if digest != site.settings.fab:
        site.note("fab.refused", "refused", hash=digest)
        raise PolicyError(f"app {digest[:16]}", "is not the one named in site.yaml", "compare with the coordinator")


def guarded(site: Site) -> tuple[Callable[..., None], Callable[..., Callable[..., ClientApp]]]:
    """Replaces Flower's `install_from_fab` and `get_load_client_app_fn`: check the FAB, then run the installed app."""

    def install(fab: bytes, *_: object, **__: object) -> None:
        judge(site, fab)

    def loader(*_: object, **__: object) -> Callable[..., ClientApp]:
        return lambda *_: app

    return install, loader


def main() -> None:
    """Flower's `flwr-clientapp` with the two steps replaced that would unpack and import a FAB."""
    if not os.environ.get(SITE):
        raise ConfigError(f"environment variable {SITE}", "is not set", "name the site's directory in it")
    install, loader = guarded(Site.open(Path(os.environ[SITE])))
    pinned.run_clientapp(install, loader)


if __name__ == "__main__":
    main()
