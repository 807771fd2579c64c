"""A site whose images are no longer what they were is set aside; an honest one never is."""

from __future__ import annotations

import dataclasses

import pytest

from usfmae.core.federated.admission import Refusal
from usfmae.core.federated.drift import check_drift
from usfmae.core.federated.messages import TrainReply


@pytest.mark.parametrize(("lowest", "before", "is_refused"), [
    (None, 9.0, False),  # its first round
    (0.25, 0.28, False),  # honest, near convergence
    (0.25, 0.49, False),  # a new kind of image among its own
    (0.278, 1.683, True),  # noise, as benchmarks/forgetting.py has it
    (0.0, 1.0, False),  # virtual sites that report no loss
])  # fmt: skip
def test_a_loss_that_jumps_is_refused(lowest: float | None, before: float, is_refused: bool) -> None:
    reply = TrainReply(campaign="c", round=2, base="", loss_before=before, loss_after=0.2)
    if not is_refused:
        check_drift(reply, lowest, 2.0)
        return
    with pytest.raises(Refusal, match=r"drift: held-out loss 1.68 before training; it had reached 0.278"):
        check_drift(reply, lowest, 2.0)


def test_a_site_that_turns_bad_is_set_aside_and_comes_back_when_it_is_mended(federation) -> None:
    made = federation(2, **{"rounds.quorum": 1})
    bad = made.hospitals[1]
    real = bad.trainer

    def trainer(place, request, encoder, decoder):
        figures = real(place, request, encoder, decoder)
        loss = 1.6 if request.round in (3, 4) else 0.3
        return dataclasses.replace(figures, loss_before=loss, loss_after=loss - 0.01)

    bad.trainer = trainer
    made.run(5)
    verdicts = [made.ledger.verdicts(number)[bad.site].verdict for number in range(1, 6)]
    assert verdicts == ["admitted", "admitted", "drift", "drift", "admitted"]
    others = {made.ledger.verdicts(number)[made.hospitals[0].site].verdict for number in range(1, 6)}
    assert others == {"admitted"}
