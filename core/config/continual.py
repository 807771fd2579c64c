"""Options of learning without forgetting: campaign, panel, budget, averaging, replay, release."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from usfmae.core.config.base import Options


class ContinualSettings(Options):
    panel: Path | None = None
    """Public images that measure forgetting: a folder of corpora, PANEL/ORGAN or PANEL/ORGAN/CLASS."""
    panel_images: int = Field(96, ge=8)
    """At most this many images of an organ are measured, and as many again fit the probe."""
    panel_every: int = Field(1, ge=1)
    """Rounds between two looks at the panel; a round without one is not gated."""
    declared: tuple[str, ...] = ()
    """Public data sets that sites have said they train on; a panel that holds one of them is refused."""
    anatomies: dict[str, int] = Field(default_factory=dict)
    """Images by anatomy over all sites, as they have told the coordinator; stands in the model card of a release."""
    old: tuple[str, ...] = ()
    """Organs the seed knows, for backward transfer; none given means every organ of the panel."""
    budget: float = Field(0.10, ge=0)
    """A round that leaves an organ's masked loss more than this share above the seed's is moved back or refused."""
    steps_back: tuple[float, ...] = (0.5, 0.25)
    """Shares of a round's change that are tried in turn when all of it breaks the budget; none refuses at once."""
    blame: bool = True
    """When a round breaks the budget, leave out the sites whose updates alone cost most, if that mends it."""
    pull: float = Field(0.0, ge=0, le=1)
    """L2 to the campaign's seed, decoupled: after each merge the encoder moves back by this share."""
    anchor_every: int = Field(0, ge=0)
    """SFA: rounds between two averages with the campaign's seed; 0 is off."""
    anchor_share: float = Field(0.25, ge=0, le=1)
    """SFA: share of the seed in such an average."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the rounds' encoders, a candidate at release; 0 is off."""
    alphas: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Shares of the campaign's change that a release tries between the seed and its best round."""
    replay: Path | None = None
    """Public corpus (at most 1 GiB) that is sent to sites that have no copy; they mix it into their own images."""
    replay_share: float = Field(0.0, ge=0, le=0.5)
    """Share of replayed images in a site's training."""
    min_new: int = Field(0, ge=0)
    """A site joins a round when it has this many images it never trained on; 0 asks every site, always."""
