"""A site of the round's benchmark: the real agent, whose training is one multiplication of every weight.

    python benchmarks/round_site.py agent DIR             the agent of `usfmae-client run`, to the end
    python benchmarks/round_site.py upload DIR...         sites that take turns in one process

The second kind, for the aggregator's memory, speaks the same fleet API, with the same objects, keys and signatures, but
has no agent: the first of its sites downloads the base, each makes an update of its own and uploads it.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from usfmae.client import outbox
from usfmae.client.agent import Agent
from usfmae.client.flower import download, fleet_client, messages
from usfmae.client.rounds import jobs, update_files
from usfmae.client.rounds.workers import Workers
from usfmae.client.site import Site, write_json
from usfmae.core import flower_objects, log
from usfmae.core.errors import NetworkError
from usfmae.core.federated import codec
from usfmae.core.federated import messages as protocol
from usfmae.core.federated.messages import TrainReply, TrainRequest
from usfmae.core.tensors import TensorFile, TensorMapping


def factor(site: Site, number: int) -> float:
    """Different at every site and in every round: nothing is shared by content, and nothing is a replay.

    About as long as a step of AdamW at the rate of the settings: the gate sets aside what is much shorter.
    """
    return 1 + 1e-3 * (1 + int(site.fingerprint[:4], 16) / 65536 + 0.01 * number)


class TrainedEncoder(TensorMapping):
    """What a training would have made of a base: every weight a little larger."""

    def __init__(self, file: TensorFile, factor: float) -> None:
        super().__init__(file)
        self.factor = factor

    def __getitem__(self, name: str) -> Any:
        values = super().__getitem__(name)
        return values * values.dtype.type(self.factor)


def packed(work: jobs.Job, before: jobs.Job | None, request: TrainRequest) -> dict[str, Any]:
    """Pack and keep the residual as the real worker does."""
    with TensorFile(work.base) as file, update_files.residual_of(before, file, request.encoding) as residual:
        trained = TrainedEncoder(file, factor(work.site, request.round))
        payload = codec.encode(TensorMapping(file), trained, request.encoding, residual, request.bound)
        began = time.process_time()
        content = update_files.write(work, before, file, payload, request.encoding)  # packs as it writes
        with (work.site.root / "encoding-seconds").open("a") as seconds:
            seconds.write(f"{time.process_time() - began}\n")
        return content


class Instant(Workers):
    """Trains in no time; packs and keeps the residue as the real worker does."""

    def warm_up(self) -> None:
        pass

    def tend(self, work: jobs.Job) -> None:
        if not work.result:
            request = protocol.from_record(TrainRequest, work.request)
            before = jobs.previous(work.site, request)
            update = packed(work, before, request)
            shutil.copyfile(
                work.decoder if work.decoder.exists() or not before else before.trained_decoder, work.trained_decoder
            )
            figures = {"images": 1000, "steps": request.steps, "loss_before": 1.0, "loss_after": 1.0, "seconds": 0.0}
            figures |= {"drawn": {"images": 1, "patients": 1, "largest_share": 1.0}}
            write_json(work.place / "result.json", {**update, **figures})

    def stop(self, work: jobs.Job | None, wait: float) -> None:
        pass


def agent(place: Path) -> None:
    log.setup()
    site = Site.open(place)
    served = Agent(site)
    served.workers = Instant(site)
    served.run()


def upload(places: list[Path]) -> None:
    sites = [Site.open(place) for place in places]
    base = places[0] / "base.safetensors"
    lines = {
        site: fleet_client.FleetClient(fleet_client.address_of(site), site.node_key, timeout=300) for site in sites
    }
    for fleet in lines.values():
        _come_online(fleet)
    waiting = dict(lines)
    while waiting:
        for site, fleet in list(waiting.items()):
            request = fleet.pull()
            if request is None:
                time.sleep(0.2)
                continue
            _answer(site, fleet, request, base)
            del waiting[site]


def _come_online(fleet: fleet_client.FleetClient) -> None:
    while True:
        try:
            fleet.activate(1800)
            return
        except NetworkError:
            time.sleep(0.2)


def _answer(site: Site, fleet: fleet_client.FleetClient, request: messages.RequestMessage, base: Path) -> None:
    fetch = lambda id_: fleet.fetch(request.run, id_)  # noqa: E731
    ids = flower_objects.records(request.id, fetch)
    train_request = protocol.from_record(TrainRequest, messages.config_record(fetch(ids[protocol.RECORD])))
    if not base.exists():
        download.receive(ids[protocol.ENCODER], fetch, base, 4e9)
    fleet.confirm(request)
    work = jobs.Job(site, site.root / "jobs" / outbox.key(train_request))
    work.place.mkdir(parents=True)
    work.base.symlink_to(base)
    content = packed(work, None, train_request)["content"]
    reply = TrainReply(
        train_request.campaign,
        train_request.round,
        train_request.base,
        content,
        1000,
        train_request.steps,
        train_request.encoding,
    )
    addressed = {
        "site": site.fingerprint,
        "recipient": protocol.fingerprint(site.coordinator),
        "expires": train_request.expires,
    }
    signed = protocol.to_record(protocol.sign(replace(reply, **addressed), site.signing_key))
    with TensorFile(work.place / outbox.UPDATE) as file:
        arrays = {protocol.UPDATE: flower_objects.array_record(outbox.parts(file, train_request.encoding))}
        fleet.push(messages.reply(messages.reply_metadata(request, time.time()), {protocol.RECORD: signed}, arrays))
    for left in work.place.iterdir():
        left.unlink()


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        agent(Path(sys.argv[2]))
    else:
        upload([Path(place) for place in sys.argv[2:]])
