"""A site whose images are no longer what they were: a broken export, a wrong folder, noise.

The panel does not see it: what such a site sends costs the features little, since a decoder that follows takes up the
rest. Its length and direction do not show it either, near convergence, where honest sites point apart. What shows it is
the site's own held-out loss. It is measured twice a round, before and after training, and goes on from round to round.

Null hypothesis: the site's held-out images are of the kind they were. Then the loss before a round's training lies near
the lowest the site has reached: the encoder in between was merged with others', the decoder is its own. In
`benchmarks/forgetting.py` the ratio of the two was 0.93 to 1.13 in all honest rounds, early and near convergence. Images
that no model can predict have another: noise among tissue had 5.9 to 6.1, and it never falls, where that of a new organ
falls within rounds, as the site's decoder learns it, whether its updates are merged or not.

It is a witness against faults, not against lies: a site that reports the losses it had before is not found by it.
"""

from __future__ import annotations

from usfmae.core.federated.admission import Refusal
from usfmae.core.federated.messages import TrainReply, VerdictCode


def check_drift(reply: TrainReply, lowest: float | None, limit: float) -> None:
    """Refused where the loss before training is more than `limit` times the lowest this site reached in the campaign.

    `lowest`: the least held-out loss after training of its admitted rounds; None before the first.
    """
    if lowest is not None and lowest > 0 and reply.loss_before > limit * lowest:
        raise Refusal(
            VerdictCode.DRIFT,
            f"held-out loss {reply.loss_before:.3g} before training; it had reached {lowest:.3g}: its images are not what"
            " they were",
        )
