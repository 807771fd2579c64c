"""The round loop: ask, collect, judge, merge, commit; and go on from wherever a crash left it.

A round is asked of every enrolled site that is connected, and again of a site that comes back, until it has answered.
Each reply is judged as it comes and spooled to disk before it is noted. When the round closes, the admitted replies are
merged in site order, the encoder is written, and only then is the round committed. Whatever dies in between, the
same steps lead to the same bytes: nothing is merged twice, and sites answer a repeated request from their disk.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from usfmae.core import audit
from usfmae.core.errors import NetworkError, PolicyError, ResourceError
from usfmae.core.federated.admission import Refusal, UnsignedRefusal, arriving_size, check_figures, examine, identify
from usfmae.core.federated.drift import check_drift
from usfmae.core.federated.enrolment import EnrolledSite, SiteState
from usfmae.core.federated.messages import (
    VERSION,
    DeclineReason,
    TrainReply,
    TrainRequest,
    VerdictCode,
    fingerprint,
    sign,
)
from usfmae.core.federated.rules import check_rule
from usfmae.core.log import note, printable
from usfmae.core.tensors import TensorFile
from usfmae.server import campaign, checkpoints
from usfmae.server.campaign import Campaign
from usfmae.server.layout import Federation, check_disk
from usfmae.server.ledger import CLOSE, Round, Verdict
from usfmae.server.rounds import commit, sealing, spool
from usfmae.server.rounds.quorum import Attendance, announce, closing, hopeless
from usfmae.server.rounds.request import replayed, train_request
from usfmae.server.rounds.sealing import Sealing
from usfmae.server.rounds.transport import Answer, RoundTask, Transport

if TYPE_CHECKING:
    from usfmae.server.rounds.forgetting_gate import ForgettingGate

logger = logging.getLogger(__name__)

TICK = 0.05  # seconds between two polls for replies
SEEN_EVERY = 10.0  # seconds between two notes of who is connected
MOST_UNSIGNED = 3  # replies without a site's signature in one round; it may answer on, but is not waited for
ASK_AGAIN = 5.0  # seconds before a site whose reply was lost is asked again
QUORUM_REFUSED = "quorum refused"  # why a round is void
LEAST_SECONDS = 600.0  # for which an answer is wanted, however near the deadline is
DECLINE_HOLDS = 60.0  # seconds before a site that declined is asked again


@dataclass(frozen=True)
class Clock:
    """The time and how to wait; tests and simulations bring their own."""

    now: Callable[[], float] = time.time  # Unix seconds
    wait: Callable[[float], object] = time.sleep


class Loop:
    """Runs rounds of a federation over a transport; `committed` is called with the number of each round at its end."""

    def __init__(
        self,
        federation: Federation,
        transport: Transport,
        clock: Clock = Clock(),
        committed: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.home, self.ledger, self.settings = federation.home, federation.ledger, federation.settings
        self.transport, self.key = transport, federation.signing_key()
        check_rule(self.settings)
        self.sealing: Sealing | None = None
        if self.settings.rounds.sealed:
            self.settings = sealing.checked(self.settings)
            self.sealing = sealing.Sealing(self.home, self.settings, self.key)
        self.coordinator = fingerprint(self.key.public_key())
        self.clock, self.wait, self.committed = clock.now, clock.wait, committed
        self.outstanding: dict[str, tuple[str, TrainRequest]] = {}  # message -> (site, request)
        self.not_before: dict[str, float] = {}  # site -> time before which it is not asked again
        self.late: dict[str, tuple[str, TrainRequest]] = {}  # messages of closed rounds still out
        self.without_replay: set[str] = set()  # sites that have said they hold no copy of the replay corpus
        self.without_teacher: set[str] = set()  # sites that have said they lack the campaign's frozen teacher
        self.teacher: Path | None = None  # that teacher, where features are predicted
        self.teacher_id = ""  # its hash
        self.first = 1  # number of the running campaign's first round
        self.without_base: set[str] = set()  # sites that have said they do not hold the encoder before the round's
        self.speaks: dict[str, int] = {}  # sites that have answered in an earlier protocol -> its version
        self.unsigned: Counter[str] = Counter()  # replies of this round that their site had not signed
        self.checked = checkpoints.CheckedFiles()
        self.noted = 0.0
        self.gate: ForgettingGate | None = None  # opened by `run`
        self.decoder = ""  # hash of the seed's, read by `run`

    def run(self, rounds: int) -> None:
        """Go on until this many rounds are committed; 0 for ever."""
        running = campaign.resume(self.ledger, self.settings, rounds)
        self.gate = self._gate()
        self.decoder = checkpoints.check(self.home.decoder)
        while (not rounds or self._committed() < rounds) and campaign.goes_on(self.ledger, running):
            try:
                running = campaign.placed(self.home, self.ledger, self.settings, running, rounds)
                self.one_round(running)
            except (ResourceError, NetworkError) as error:
                # A full disk, or a custodian that is away, mends itself or is mended; the round stays open.
                note(logger, "waiting", level=logging.ERROR, reason=str(error))
                self.wait(10.0)

    def one_round(self, running: Campaign) -> None:
        number = self._committed() + 1
        check_disk(self.home, self.settings.min_free_gib)
        before = self.home.checkpoint(number - 1)
        last = self.ledger.last_round()
        content = self.checked.check(before, last.result or "" if last else "")
        with TensorFile(before) as base:
            step = last.global_step + last.steps if last else 0
            current = self.ledger.open_round(number, content, step, self.settings.rounds.steps)
            self.first = running.first
            request = train_request(self.settings, current, running, self.decoder, self._teacher(running))
            note(logger, "round open", round=number, base=content[:12])
            this, result = commit.OpenRound(self.home, self.ledger, self.settings, current, base, self.sealing), ""
            if self.sealing:
                moved = commit.moved_weights(base, self.settings)
                request = self.sealing.asked(request, commit.prior_of(this), moved)
            while not result:
                refused = self._collect(current, request, base)
                self.transport.release()
                if refused:
                    result = commit.void(this, refused)
                else:
                    result = commit.finish(this, self.gate)
            self.checked.written(self.home.checkpoint(number), result)
            self._let_go()
        self.without_base.clear()
        self.unsigned.clear()
        note(logger, "round committed", round=number, result=result[:12])
        spool.clear(self.home, number)
        commit.prune(self.home, self.settings.keep, number, running.seed)
        self.committed(number)

    def _committed(self) -> int:
        last = self.ledger.last_round()
        return last.number if last else 0

    def _teacher(self, running: Campaign) -> str:
        """Hash of the encoder whose features the campaign predicts, the one it began with; "" for pixels."""
        if self.settings.train.target == "pixels":
            return ""
        if self.teacher != self.home.checkpoint(running.seed):
            self.teacher = self.home.checkpoint(running.seed)
            self.teacher_id = checkpoints.check(self.teacher)
        return self.teacher_id

    def _gate(self) -> ForgettingGate | None:
        """The forgetting gate, where the campaign asks for one: it loads torch, the loop does not."""
        options = self.settings.continual
        if not (options.panel or options.pull or options.anchor_every or options.ema):
            return None
        from usfmae.server.rounds.forgetting_gate import ForgettingGate

        return ForgettingGate(self.home, self.ledger, self.settings)

    # collecting

    def _collect(self, current: Round, request: TrainRequest, base: TensorFile) -> str:
        """Ask and judge until the round may be merged; returns why it never can be, else ""."""
        spool.forget_unnoted(self.home, self.ledger, current.number)
        self._forget_damaged(current.number)
        silent = self.ledger.silent(current.number)
        while True:
            sites = {name: site for name, site in self.ledger.sites().items() if site.state == SiteState.ACTIVE}
            connected = self.transport.connected() & set(sites)
            self._note_seen(connected)
            verdicts = self.ledger.verdicts(current.number)
            for site in sorted(connected - set(verdicts)):
                self._ask(sites[site], request)
            self._take_answers(sites, base)
            self._take_late()
            now, age = self.ledger.verdicts(current.number), self.clock() - current.opened
            waited = [site for site in sites if site in now or self.unsigned[site] < MOST_UNSIGNED]
            attendance = Attendance(waited, connected, silent)
            end = closing(now, attendance, current.opened, self.settings.rounds)
            if end.due(self.clock()) or (end.closes is not None and self._told_to_close(current.number)):
                return ""
            if hopeless(now, sites, age, self.settings.rounds):
                return QUORUM_REFUSED
            self._ask_decliners(current, verdicts)
            self.wait(TICK)

    def _told_to_close(self, number: int) -> bool:
        """The coordinator has said `round close`."""
        return self.ledger.fact(CLOSE) == str(number)

    def _forget_damaged(self, number: int) -> None:
        """After a restart: what was admitted must still be what its site signed, else the site is asked again."""
        for verdict in self.ledger.verdicts(number).values():
            if verdict.verdict == VerdictCode.ADMITTED and spool.damaged(self.home, verdict):
                audit.append(self.home.audit, "gate", "spool", "damaged", round=number, site=verdict.site)
                note(logger, "spooled update damaged, asking again", level=logging.ERROR, site=verdict.site)
                self.ledger.withdraw_verdict(number, verdict.site)

    def _ask(self, site: EnrolledSite, request: TrainRequest) -> None:
        if any(other == site.site for other, _ in self.outstanding.values()) or self.clock() < self.not_before.get(
            site.site, 0
        ):
            return
        ships, before = site.site in self.without_replay, self._holds(site.site, request.round)
        wanted = max(request.deadline - self.clock(), LEAST_SECONDS)
        request = dataclasses.replace(
            request,
            delta_from=before,
            with_decoder=not site.has_decoder,
            with_replay=ships,
            with_teacher=site.site in self.without_teacher,
            recipient=site.site,
            version=self.speaks.get(site.site, VERSION),
            expires=self.clock() + wanted,
        )
        request = sign(request, self.key)
        task = RoundTask(
            site.site,
            request,
            self.home.checkpoint(request.round - 1),
            self.home.step(request.round - 1) if before else None,
            None if site.has_decoder else self.home.decoder,
            self.settings.continual.replay if ships else None,
            self.teacher if request.with_teacher else None,
            wanted,
        )
        message = self.transport.ask(task)
        if message:
            self.outstanding[message] = (site.site, request)
            note(logger, "asked", round=request.round, site=site.name)

    def _holds(self, site: str, number: int) -> str:
        """Hash of the encoder before the round's, where the site has it and the step can be applied to it; else ""."""
        last = self.ledger.last_round()
        if last is None or site in self.without_base or not self.home.step(number - 1).exists():
            return ""
        answered = self.ledger.verdicts(last.number).get(site)
        return last.base if answered and answered.verdict != VerdictCode.DECLINED else ""

    def _take_answers(self, sites: Mapping[str, EnrolledSite], base: TensorFile) -> None:
        """Judge what has arrived. A transport that fails is asked again later; the answers it has not given wait."""
        answers = iter(self.transport.answers(list(self.outstanding)))
        while True:
            try:
                answer = next(answers)
            except StopIteration:
                return
            except Exception as error:
                note(logger, "transport failed", level=logging.ERROR, reason=cause(error))
                return
            self._take(answer, sites, base)

    def _take(self, answer: Answer, sites: Mapping[str, EnrolledSite], base: TensorFile) -> None:
        """Judge one answer, spool what is admitted, note the verdict; a reply that was lost is asked for again."""
        site_id, request = self.outstanding.pop(answer.message)
        site = sites.get(site_id)
        if site is None or site_id in self.ledger.verdicts(request.round):
            return  # revoked while it trained, or judged already
        try:
            if answer.hostile:
                raise UnsignedRefusal(VerdictCode.BAD_MESSAGE, answer.error)
            if answer.error:
                note(logger, "reply lost", round=request.round, site=site.name, reason=answer.error)
                self.not_before[site_id] = self.clock() + ASK_AGAIN
                return
            self._admit(answer, site, request, base)
        except UnsignedRefusal as refusal:
            self._drop(request.round, site, refusal)
        except Refusal as refusal:
            self._verdict(Verdict(request.round, site_id, refusal.code, refusal.detail), site)
        except PolicyError as error:  # found as its bytes were read
            self._verdict(Verdict(request.round, site_id, VerdictCode.BAD_MESSAGE, str(error)), site)
        except ResourceError as error:
            note(logger, "reply not stored, asking again", site=site.name, reason=str(error))
            self.not_before[site_id] = self.clock() + ASK_AGAIN
        except Exception as error:  # any exception that a reply causes costs its own site this round, never the loop
            logger.exception("a reply could not be judged")
            self._verdict(Verdict(request.round, site_id, VerdictCode.BAD_MESSAGE, cause(error)), site)

    def _drop(self, number: int, site: EnrolledSite, refusal: UnsignedRefusal) -> None:
        """A reply that its site did not sign does not count as its answer: a stolen node key is enough to send one."""
        self.unsigned[site.site] += 1
        self.not_before[site.site] = self.clock() + min(ASK_AGAIN * 2 ** (self.unsigned[site.site] - 1), 60.0)
        self.ledger.refuse(number, site.site, refusal.code, printable(refusal.detail))
        announce(self.home, Verdict(number, site.site, refusal.code, printable(refusal.detail)), site.name)

    def _admit(self, answer: Answer, site: EnrolledSite, request: TrainRequest, base: TensorFile) -> None:
        reply = identify(answer.record, site, request, self.coordinator, self.clock())
        if reply.version < request.version:
            note(logger, "asking in an earlier protocol", site=site.name, version=reply.version)
            self.speaks[site.site] = reply.version
            return
        if self._lacks(reply, site, request):
            return
        self.without_replay.discard(site.site)
        self.without_teacher.discard(site.site)
        if reply.declined:
            self._verdict(Verdict(request.round, site.site, VerdictCode.DECLINED, reply.declined), site)
            return
        if self.ledger.seen_content(site.site, reply.content, request.round):
            raise Refusal(VerdictCode.REPLAYED, "the same update was admitted in another round")
        check_figures(reply, site, request, self.settings.gate)
        if not request.with_decoder:  # with the seed's decoder, a site's loss begins anew
            lowest = self.ledger.lowest_loss(site.site, self.first)
            check_drift(reply, lowest, self.settings.gate.drift_limit)
        sizes = {n: arriving_size(math.prod(s), reply) for n, s in base.shapes.items()}
        with spool.storing(self.home, request.round, site.site, sizes) as keep:
            norm = examine(reply, answer.arrays, base, keep)
        if request.custodian:
            spool.note_record(self.home, request.round, site.site, answer.record)
        if not site.has_decoder:
            self.ledger.note_decoder(site.site, True)
        verdict = Verdict(
            request.round,
            site.site,
            VerdictCode.ADMITTED,
            content=reply.content,
            images=reply.images,
            steps=reply.steps,
            bytes=sum(sizes.values()),
            norm=norm,
            loss_before=reply.loss_before,
            loss_after=reply.loss_after,
            seconds=reply.seconds,
        )
        self._verdict(verdict, site)

    def _lacks(self, reply: TrainReply, site: EnrolledSite, request: TrainRequest) -> bool:
        """Whether a decline says what has to come along; the site is asked again in the same round, with that."""
        why = reply.declined
        if why == DeclineReason.NEED_DECODER and site.has_decoder:
            self.ledger.note_decoder(site.site, False)
        elif why == DeclineReason.NEED_REPLAY and not request.with_replay and replayed(self.settings):
            self.without_replay.add(site.site)
        elif why == DeclineReason.NEED_TEACHER and self.teacher and not request.with_teacher:
            self.without_teacher.add(site.site)
        elif why == DeclineReason.NEED_BASE and request.delta_from:
            self.without_base.add(site.site)
        else:
            return False
        return True

    def _verdict(self, verdict: Verdict, site: EnrolledSite) -> None:
        verdict = dataclasses.replace(verdict, detail=printable(verdict.detail))
        self.ledger.record(verdict)
        announce(self.home, verdict, site.name)

    def _ask_decliners(self, current: Round, verdicts: Mapping[str, Verdict]) -> None:
        """A site that declined is asked again after a while, as long as its round is open."""
        for site, verdict in verdicts.items():
            if verdict.verdict == VerdictCode.DECLINED and self.clock() - verdict.received > DECLINE_HOLDS:
                self.ledger.withdraw_verdict(current.number, site)

    def _let_go(self) -> None:
        """The round is closed: no further site gets its request; one that still trains may answer, and its reply counts as late."""
        unread = [message for message, (site, _) in self.outstanding.items() if site not in self.transport.connected()]
        self.transport.withdraw(unread)
        self.late.update({message: sent for message, sent in self.outstanding.items() if message not in unread})
        self.outstanding.clear()

    def _take_late(self) -> None:
        """Replies that come after their round closed are never merged."""
        for answer in self._late_answers():
            site, request = self.late.pop(answer.message)
            if not answer.error and self.settings.rounds.late == "record":
                code, number = VerdictCode.LATE, request.round
                self.ledger.refuse(number, site, code, "the round had closed")
                audit.append(self.home.audit, "gate", "reply", "refused", round=number, site=site, verdict=code)

    def _late_answers(self) -> list[Answer]:
        try:
            return list(self.transport.answers(list(self.late))) if self.late else []
        except Exception as error:
            note(logger, "transport failed", level=logging.ERROR, reason=cause(error))
            return []

    def _note_seen(self, connected: set[str]) -> None:
        if connected and self.clock() - self.noted > SEEN_EVERY:
            self.noted = self.clock()
            self.ledger.saw(connected)


def cause(error: Exception) -> str:
    """An unforeseen exception in one line."""
    return f"{type(error).__name__}: {error}"[:300]
