"""Options of the aggregator: one file `coordinator.yaml` beside the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from usfmae.core.config.base import Options
from usfmae.core.config.sources import MetricsSettings, NotifySettings, PageSettings
from usfmae.core.config.train import ModelSettings, TrainSettings, check_patches


class ContinualSettings(Options):
    panel: Path | None = None
    """Public images that measure forgetting: a folder of corpora, PANEL/ORGAN or PANEL/ORGAN/CLASS."""
    panel_images: int = Field(64, ge=8)
    """At most this many images of an organ are measured, and as many again fit the probe."""
    panel_every: int = Field(1, ge=1)
    """Rounds between two looks at the panel; a round without one is not gated."""
    declared: tuple[str, ...] = ()
    """Public data sets that sites have said they train on; a panel that holds one of them is refused."""
    anatomies: dict[str, int] = Field(default_factory=dict)
    """Images by anatomy over all sites, as they have told the coordinator; stands in the model card of a release."""
    old: tuple[str, ...] = ()
    """Organs the seed knows, for backward transfer; none given means every organ of the panel."""
    refit_steps: int = Field(40, ge=0)
    """Steps of 16 images in which the server fits a decoder to an encoder before it reads a loss; 0: the seed's decoder."""
    budget: float = Field(0.10, ge=0)
    """A round that leaves an organ's refitted masked loss more than this share above the seed's is moved back or refused."""
    probe_budget: float = Field(0.15, gt=0, le=1)
    """The same where the mean of kNN and linear probe of an organ's classes fell by more than this since the seed."""
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


Rule = Literal["auto", "fedavg", "fedprox", "fedavgm", "fedadam", "trimmed", "median"]


class NetworkSettings(Options):
    host: str = "0.0.0.0"  # noqa: S104
    """Address the fleet API listens on; the only port that must be reachable from the hospitals."""
    port: int = Field(8443, ge=0, le=65535)
    """Port of the fleet API; 0 takes a free one."""
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Host names and addresses the server certificate is made for."""
    body_mib: float = Field(8.0, gt=0, le=64)
    """Largest body of one request; an update comes in pieces of about 5 MiB."""
    body_seconds: float = Field(60.0, gt=0)
    """Seconds a request may take to arrive completely; slower ones are dropped (slow loris)."""
    connections: int = Field(512, ge=8)
    """Connections at the same time that have not proved a key; of more, the one that waited longest is closed."""
    connections_from_one: int = Field(64, ge=4)
    """The same for one address; hospitals behind one proxy count only until their first call has proved their key."""


class RoundSettings(Options):
    steps: int = Field(200, ge=1)
    """Local optimizer steps asked of a site in one round."""
    total_steps: int = Field(0, ge=0)
    """Steps of the whole campaign, which place the learning rate; 0 takes steps x --rounds."""
    encoding: Literal["int8", "int4", "sparse", "bf16", "fp32"] = "int8"
    """How updates travel: int8 or int4 in blocks, sparse (the 64 largest of 4,096 values; a sixteenth of all values in
    turn where rounds are sealed), bf16, all with error feedback; or lossless fp32."""
    sealed: bool = False
    """Nobody sees one site's update: it leaves under a mask that only the custodian can take off, and only from the sum
    of three sites or more. The gate judges sketches; every site counts alike; median and trimmed cannot run."""
    quorum: int = Field(1, ge=1)
    """Admitted updates without which a round does not close; it stays open past its deadline instead."""
    deadline: float = Field(86400.0, gt=0)
    """Seconds after which a round with quorum closes in any case, without the sites that have not answered."""
    grace: float = Field(600.0, ge=0)
    """Seconds from its opening that a round with quorum gives the other sites at least..."""
    grace_factor: float = Field(3.0, ge=1)
    """...or this many times the median answer time of the round, where that is longer. A site that has answered in none
    of the last two rounds is asked but not waited for."""
    patience: float = Field(600.0, ge=0)
    """Seconds a round with quorum waits where no missing site is connected."""
    late: Literal["refuse", "record"] = "record"
    """An update that comes after its round closed is never merged: refuse drops it unseen, record notes it."""


class CustodianLinkSettings(Options):
    url: str = ""
    """Address of the custodian of sealed rounds, https://HOST:PORT."""
    card: Path | None = None
    """Its custodian.json: its public keys and its certificate authority."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that an answer of it may take."""


class GateSettings(Options):
    capacity_factor: float = Field(1.0, gt=0)
    """A site may claim this many times the images it was enrolled with."""
    weight_cap: float = Field(0.4, gt=0, le=1)
    """Largest share of one site in a merge, but at least the fair share 1 / sites. What it loses raises nobody to more
    than twice the share of the images; the rest of the step is not taken."""
    fair_limit: float = Field(1.5, ge=1)
    """Largest share of one site in a merge, in fair shares (1 / sites); the smaller of both caps holds."""
    clip_limit: float = Field(1.5, gt=0)
    """An update longer than this many times the reference length is cut to that length. The reference is the lower
    median of the round, but at least half the median of earlier rounds and a third of the length expected of AdamW."""
    norm_limit: float = Field(4.0, gt=1)
    """An update longer than this many times the reference is refused where more than half of the sites agree on the
    length; where they do not, it is cut."""
    small_limit: float = Field(0.1, ge=0, lt=1)
    """An update shorter than this share of the reference is set aside: it says nothing, and is no yardstick."""
    base_limit: float = Field(1.0, gt=0)
    """An update longer than this many times the encoder itself is refused, whatever the others send."""
    merged_limit: float = Field(2.0, gt=0)
    """A merged step longer than this many times the reference length is cut to that length."""
    tensor_limit: float = Field(2.9, gt=1)
    """A tensor of the merged encoder whose norm would grow or shrink by more than this is moved less: sites refuse such
    a leap (`max_norm_ratio`, 3 unless they set another)."""
    drift_limit: float = Field(2.0, gt=1)
    """A site whose held-out loss before training is more than this many times the lowest it has reached in the campaign is
    set aside for the round: its images are not what they were, as after a broken export."""
    direction_limit: float = Field(-0.1, ge=-1, le=0)
    """With three sites or more, an update whose cosine to the sum of the others is below this points against them..."""
    agreement: float = Field(0.1, ge=-1, le=1)
    """...as long as the others agree: their mean cosine to each other is at least this. Near the end of training honest
    sites pull in different directions, and nobody is blamed for it."""
    direction_strikes: int = Field(3, ge=1)
    """A site that points against the others is refused in this round of the last `direction_rounds`; before, it is noted."""
    direction_rounds: int = Field(5, ge=1)
    """Rounds over which a site's direction is judged."""
    direction_at_once: float = Field(-0.5, ge=-1, le=0)
    """A cosine below this is refused in the round it is seen: no honest site turns a whole step around."""


class MergeSettings(Options):
    rule: Rule = "auto"
    """How updates become the next encoder; auto is trimmed from four sites on and fedavg below, and fedavg where
    rounds are sealed or sparse."""
    rate: float | None = Field(None, gt=0)
    """Server learning rate on the merged update; none given is the rule's own: 1, for fedavgm 1 - momentum, for fedadam
    0.001."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """FedAvgM: momentum; FedAdam: first beta."""
    second_momentum: float = Field(0.99, ge=0, lt=1)
    """FedAdam: second beta."""
    adaptivity: float = Field(1e-3, gt=0)
    """FedAdam: tau, the degree of adaptivity (Reddi et al. 2021, arXiv:2003.00295)."""
    trim: float = Field(0.2, ge=0, lt=0.5)
    """Trimmed mean: share cut off at each end."""
    proximal: float = Field(0.01, ge=0)
    """FedProx: mu of the proximal term that sites add to their loss (Li et al. 2020, arXiv:1812.06127)."""


class CoordinatorSettings(Options):
    PROGRAM: ClassVar[str] = "usfmae-server"

    name: str = Field("federation", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    """Name of the federation, part of its campaign's identity."""
    network: NetworkSettings = NetworkSettings()
    """The one public port."""
    rounds: RoundSettings = RoundSettings()
    """What a round asks, and when it closes."""
    gate: GateSettings = GateSettings()
    """The admission gate."""
    merge: MergeSettings = MergeSettings()
    """The merging rule."""
    custodian: CustodianLinkSettings = CustodianLinkSettings()
    """The second institution of sealed rounds."""
    continual: ContinualSettings = ContinualSettings()
    """Learning on without forgetting."""
    keep: int = Field(0, ge=0)
    """Round checkpoints kept; 0 keeps all."""
    min_free_gib: float = Field(2.0, ge=0)
    """A round does not open with less free disk than this beyond what it needs itself."""
    notify: NotifySettings = NotifySettings()
    """Telling persons that something waits for them."""
    leak_limit: float = Field(0.6, ge=0.5, le=1)
    """A release is refused where an attack on patients of a report given with --leak has an AUC surely above this."""
    page: PageSettings = PageSettings()
    """The coordinator's web page."""
    metrics: MetricsSettings = MetricsSettings()
    """Figures for Prometheus."""
    model: ModelSettings = ModelSettings()
    """The masked autoencoder, part of every request."""
    train: TrainSettings = TrainSettings()
    """Local training, part of every request."""

    @model_validator(mode="after")
    def _patches(self) -> Self:
        check_patches(self.model, self.train)
        return self
