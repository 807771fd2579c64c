"""The agent of a site: asks for work, has it trained, answers. One thread, one loop, everything it knows on disk.

Each waiting request is moved one step further in each turn of the loop:

    pending -> checked (signature, floor, campaign) -> downloaded and inspected -> trained -> staged -> released -> sent

The worker trains in a process of its own and outlives the agent. A crash at any point loses at most the step it was in.
Whatever one request does, it costs that request: an unforeseen exception refuses it, and one that ends the process
three times is set aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from enum import StrEnum

from usfmae.client import outbox, site_policy
from usfmae.client.flower import messages, transport_errors
from usfmae.client.flower.connection import Connection, ConnectionStopped, KeyRefusedError
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.flower.upload import Uploader
from usfmae.client.rounds import jobs, participation
from usfmae.client.rounds.workers import Workers
from usfmae.client.site import Site, read_json
from usfmae.client.status import stopped_by_signals, write_status
from usfmae.core import flower_objects
from usfmae.core.errors import NetworkError, PolicyError, ResourceError, TryLaterError, UsfmaeError
from usfmae.core.federated import messages as protocol
from usfmae.core.federated.messages import DeclineReason, TrainRequest, UnspokenVersionError
from usfmae.core.log import note
from usfmae.core.mae import allocator

logger = logging.getLogger(__name__)

MOST_BEGINNINGS = 3  # times that a request may end the process before it is set aside
DONE_EVERY = 0.1  # seconds between two checks whether the training is done
LONGEST_WAIT = 20.0  # seconds between two tries to reach a server that is away


class AgentState(StrEnum):
    """What the agent is doing; `status` and the page show it."""

    CONNECTING = "connecting"
    IDLE = "idle"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    PAUSED = "paused"
    QUIET = "quiet"
    WAITING = "waiting for approval"  # an update in the outbox
    WAITING_CAMPAIGN = "waiting for approval of a campaign"
    OFFLINE = "offline"
    STOPPED = "stopped"


WAITING_STATES = {
    participation.Wait.QUIET_HOURS: AgentState.QUIET,
    participation.Wait.CAMPAIGN: AgentState.WAITING_CAMPAIGN,
}


class Agent:
    """One site's agent; `until_idle` ends it after so many seconds without anything to do."""

    def __init__(self, site: Site, until_idle: float | None = None) -> None:
        self.site, self.until_idle = site, until_idle
        self.connection = Connection(site, lambda: self.stopping, lambda seconds: self.wake.wait(seconds))
        self.sender = Uploader(site, self.connection)
        self.workers = Workers(site)
        self.current: jobs.Job | None = None
        self.wake = threading.Event()
        self.stopping = False
        self.busy_at = time.monotonic()
        self.failures = 0
        self.unspoken = False  # the last request was in a version that this program does not speak
        self.problem = self.logged = ""
        self.state = AgentState.CONNECTING
        self.contact = (read_json(site.root / "status.json") or {}).get("contact")  # Unix time of the last answer

    # --- the loop

    def run(self) -> None:
        """Until SIGTERM or Ctrl-C, or until nothing was to do for `until_idle` seconds.

        UsageError where another agent serves this site; NetworkError where the server refuses this site's key.
        """
        allocator.keep()
        with self.site.served_alone(), stopped_by_signals(self._stop):
            self.site.close_to_others()
            self.site.note("agent.start", pid=os.getpid())
            self.current = jobs.unfinished(self.site)
            self.workers.warm_up()
            self.connection.keep_alive()
            try:
                while not self.stopping and not self._idle():
                    self._rest(self._turn())
            finally:
                self._end()

    def _rest(self, seconds: float) -> None:
        """Wait; no longer than until the training is done."""
        end = time.monotonic() + seconds
        while not self.wake.is_set() and not self._done() and (left := end - time.monotonic()) > 0:
            self.wake.wait(min(left, DONE_EVERY) if self.current else left)
        self.wake.clear()

    def _done(self) -> bool:
        return self.current is not None and self.current.ended

    def _turn(self) -> float:
        """See to everything once; returns the seconds to wait before the next turn."""
        wait, self.problem = self.site.settings.poll, ""
        began = time.monotonic()
        try:
            if self._see_to_requests():
                wait = max(wait - (time.monotonic() - began), 0.0)
            self.failures, self.contact = 0, time.time()
            self.logged = self.problem
        except ConnectionStopped:
            pass
        except KeyRefusedError:
            raise
        except transport_errors.UnknownKeyError as error:
            self.connection.lost()
            wait = self._back_off(error)
        except (NetworkError, ResourceError) as error:
            wait = self._back_off(error)
        except Exception as error:  # no request's fault alone: the network's answers, the disk, a bug
            wait = self._back_off(self._unforeseen("agent.failed", error))
        try:
            self._tend()
        except Exception as error:
            wait = max(wait, self._back_off(self._unforeseen("worker.failed", error)))
        try:
            self._write_status()
        except Exception as error:
            self._unforeseen("status.failed", error)
        return wait

    def _unforeseen(self, event: str, error: Exception, **fields: str) -> UsfmaeError:
        """An unforeseen exception: logged with its place, noted in the audit log, and the agent continues."""
        logger.error("%s: %r", event, error, exc_info=error)
        with contextlib.suppress(UsfmaeError, OSError):
            self.site.note(event, "failed", why=f"{type(error).__name__}: {error}"[:300], **fields)
        return error if isinstance(error, UsfmaeError) else UsfmaeError(type(error).__name__, str(error)[:200])

    def _back_off(self, error: UsfmaeError) -> float:
        self._say(error)
        self.failures += 1
        return min(self.site.settings.poll * 2.0**self.failures, LONGEST_WAIT)

    def _see_to_requests(self) -> bool:
        """Move every request on. True where the wait for the next has been spent at the aggregator already.

        A site with nothing to do lets the aggregator hold its call, so it is answered the moment a round opens.
        """
        self.connection.connect()
        paused = site_policy.paused(self.site)
        self.state = AgentState.PAUSED if paused else AgentState.TRAINING if self.current else AgentState.IDLE
        idle = self.current is None and not PendingRequest.all(self.site)
        self._pull(self.site.settings.poll if idle else 0.0)
        waiting = PendingRequest.all(self.site)
        for pending in waiting:
            self.busy_at = time.monotonic()
            late = time.time() + self.connection.fleet.clock_offset > pending.request.expires
            if late or pending.older_than(waiting):
                event = "request.expired" if late else "request.superseded"
                self.site.note(event, "dropped", message=pending.request.id[:12])
                pending.drop()
            else:
                self._advance(pending)
        return idle

    def _pull(self, hold: float) -> None:
        """Take one new request; none while the disk is too full to keep it: it would be delivered only once."""
        try:
            site_policy.check_disk(self.site)
        except ResourceError as error:
            self._say(error)
            return
        request = self.connection.fleet.pull(hold)
        if request is not None:
            PendingRequest.save(self.site, request)
            note(logger, "request received", message=request.id[:12])

    def _advance(self, pending: PendingRequest) -> None:
        """One step with one request. Whatever it raises but a network or a disk that is away refuses it."""
        if pending.begin() > MOST_BEGINNINGS:
            self.site.note("request.set-aside", "refused", message=pending.request.id[:12])
            self._decline(pending, f"{DeclineReason.REFUSED}: it ended this site's agent {MOST_BEGINNINGS} times")
            return
        try:
            self._answer(pending, self._checked(pending))
        except transport_errors.GoneError as error:
            self.site.note("request.gone", "dropped", message=pending.request.id[:12], why=str(error))
            pending.drop()
        except UnspokenVersionError as error:
            # The first one is how a newer aggregator learns which version to ask in; a second in a row is a failure.
            event = "request.refused" if self.unspoken else "request.version"
            self.unspoken = True
            self._refuse(pending, error, event)
        except PolicyError as error:
            self._refuse(pending, error, "request.refused")
        except (NetworkError, ResourceError, ConnectionStopped):
            raise
        except Exception as error:
            self._unforeseen("request.failed", error, message=pending.request.id[:12])
            self._decline(pending, f"{DeclineReason.REFUSED}: it failed here")
        finally:
            pending.end()

    def _refuse(self, pending: PendingRequest, error: PolicyError, event: str) -> None:
        logger.warning("request refused: %s", error)
        self.site.note(event, "refused", message=pending.request.id[:12], why=str(error))
        self._decline(pending, participation.refusal(error))

    def _answer(self, pending: PendingRequest, request: TrainRequest) -> None:
        place = outbox.folder(self.site, outbox.key(request))
        if (place / "entry.json").exists():
            self._release(pending, request, outbox.state(place))
            return
        reason = participation.unwilling(self.site, request)
        if isinstance(reason, participation.Wait):
            self.state = WAITING_STATES[reason]
        elif reason:
            self._decline(pending, reason)
        else:
            self._work(pending, request)

    # --- the request

    def _checked(self, pending: PendingRequest) -> TrainRequest:
        """The request's record, fetched and checked once. PolicyError where the coordinator did not sign it."""
        if pending.record is None:
            fetch = self.connection.fetcher(pending.request.run)
            ids = flower_objects.records(pending.request.id, fetch)
            if protocol.RECORD not in ids:
                raise PolicyError(
                    "request", f"has no record {protocol.RECORD!r}", "the aggregator runs another program"
                )
            pending.remember(messages.config_record(fetch(ids[protocol.RECORD])), ids)
        request = participation.checked(self.site, pending.record or {})
        self.unspoken = False
        return request

    def _work(self, pending: PendingRequest, request: TrainRequest) -> None:
        """Have the request's job prepared, training, or staged when it is done."""
        work = jobs.job(self.site, request)
        if work.error:
            self._decline(pending, participation.failure(work))
        elif work.result:
            participation.stage(self.site, work, request)
            self.wake.set()
        else:
            if work.ready:
                jobs.extend(work, request.expires)
            else:
                self._download(pending, request, work)
            self._take_up(work, request)

    def _download(self, pending: PendingRequest, request: TrainRequest, work: jobs.Job) -> None:
        """The base, and the seed's decoder where it comes along; nothing is trained on what fails the inspection."""
        self.state = AgentState.DOWNLOADING
        self._write_status()
        self.workers.warm_up()
        seen = participation.fetch(self.site, work, request, pending.ids, self.connection.fetcher(pending.request.run))
        participation.accept(self.site, work, request, seen)
        with contextlib.suppress(NetworkError):  # it frees the aggregator's memory, no more
            self.connection.fleet.confirm(pending.request)

    def _take_up(self, work: jobs.Job, request: TrainRequest) -> None:
        """Train this job now, in place of an older round's; another campaign's is finished first."""
        if self.current is not None and self.current.place != work.place:
            other = self.current.request
            if other.get("campaign") != request.campaign or other.get("round", 0) > request.round:
                return
            self.site.note("training.given-up", "superseded", job=self.current.place.name, by=work.place.name)
            self.workers.stop(self.current, self.site.settings.stop_wait)
        if self.current is None or self.current.place != work.place:
            note(logger, "training", job=work.place.name)
        self.current, self.state = work, AgentState.TRAINING

    # --- the answer

    def _release(self, pending: PendingRequest, request: TrainRequest, state: outbox.EntryState) -> None:
        """Send what may leave; hold what waits for a person."""
        if participation.stays(self.site, state):
            self._decline(pending, f"{DeclineReason.REFUSED}: kept by the site")
        elif state is outbox.EntryState.WAITING:
            self.state = AgentState.WAITING
        else:
            self._send_update(pending, request)

    def _send_update(self, pending: PendingRequest, request: TrainRequest) -> None:
        self.state = AgentState.UPLOADING
        self._write_status()
        self.sender.update(pending, request)
        self.wake.set()

    def _decline(self, pending: PendingRequest, why: str) -> None:
        self.sender.decline(pending, why)
        self.wake.set()

    # --- the worker, and the end

    def _tend(self) -> None:
        """Keep the current job's worker going; stopped while the site is paused or quiet, given up once it expired."""
        if self._done() or (self.current is not None and not self.current.ready):
            self.current = None
            self.wake.set()
        if self.current is not None and self._is_late(self.current):
            self.site.note("training.given-up", "expired", job=self.current.place.name)
            self.workers.stop(self.current, self.site.settings.stop_wait)
            self.current = None
        try:
            site_policy.check(self.site)
            if self.current is not None:
                self.busy_at = time.monotonic()
                site_policy.check_disk(self.site)
                self.workers.tend(self.current)
        except TryLaterError as error:
            self.workers.stop(self.current, self.site.settings.stop_wait)
            if self.current is not None:
                self.state = AgentState.PAUSED if site_policy.paused(self.site) else AgentState.QUIET
                self.problem = str(error)
        except ResourceError as error:
            self._say(error)

    def _is_late(self, work: jobs.Job) -> bool:
        expires = float(work.request.get("expires", 0.0))
        return 0 < expires < time.time() + self.connection.fleet.clock_offset

    def _idle(self) -> bool:
        return self.until_idle is not None and time.monotonic() - self.busy_at > self.until_idle

    def _end(self) -> None:
        """Worker checkpointed, node signed off, last status written."""
        self.stopping = True
        self.workers.stop(self.current, self.site.settings.stop_wait)
        self.connection.close()
        self.state = AgentState.STOPPED
        self._write_status()
        self.site.note("agent.stop")

    def _stop(self) -> None:
        """End after the call that the loop is in."""
        self.stopping = True
        self.wake.set()

    # --- what it says

    def _say(self, error: UsfmaeError) -> None:
        """A problem is logged once, not in every turn."""
        self.problem = str(error)
        if self.problem != self.logged:
            logger.warning("%s", error)
        self.logged = self.problem
        if isinstance(error, NetworkError):
            self.state = AgentState.OFFLINE

    def _write_status(self) -> None:
        request = self.current.request if self.current else {}
        status = {
            "state": self.state,
            "pid": os.getpid(),
            "time": time.time(),
            "online": self.connection.online and self.state != AgentState.OFFLINE,
            "contact": self.contact,
            "problem": self.problem,
            "campaign": request.get("campaign", ""),
            "round": request.get("round"),
            "progress": self.current.progress if self.current else {},
            "waiting_requests": len(PendingRequest.all(self.site)),
        }
        write_status(self.site, status)
