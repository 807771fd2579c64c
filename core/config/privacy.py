"""What a site demands of every request before it trains: its own floor, which no coordinator can lift.

The defaults keep an update from telling about one picture or one patient. An update of one step on one image with one
visible patch is that patch (the gradient of the patch projection has rank one then); many images, patients and steps
in one update are what protects each of them. docs/threat-model.md says what is left.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from usfmae.core.config.base import Options


class NewCampaigns(StrEnum):
    """Who agrees to a campaign that this site has never seen."""

    APPROVE = "approve"
    AUTO = "auto"


class PrivacySettings(Options):
    new_campaigns: NewCampaigns = NewCampaigns.APPROVE
    """approve: a campaign's first request waits for a person (usfmae-client campaign). auto: one within the bounds
    below is agreed to at once, unless it wants another model than the last campaign."""
    min_batch: int = Field(32, ge=1)
    """Fewest images an optimizer step."""
    min_steps: int = Field(20, ge=1)
    """Fewest optimizer steps an update."""
    min_images: int = Field(256, ge=1)
    """Fewest different images of this site that an update really draws on, counted where they are drawn."""
    min_patients: int = Field(50, ge=1)
    """Fewest different patients (groups of the corpus) that an update really draws on."""
    max_patient_share: float = Field(0.1, gt=0, le=1)
    """Largest share of one patient in the images that an update draws."""
    min_masked: float = Field(0.1, ge=0, lt=1)
    """Smallest share of patches that are masked, and so predicted."""
    min_visible: float = Field(0.25, ge=0, lt=1)
    """Smallest share of patches that stay visible."""
    min_visible_patches: int = Field(32, ge=1)
    """Fewest visible patches an image."""
    max_lr: float = Field(1e-2, gt=0)
    """Largest learning rate: a larger one turns AdamW's first steps into the plain gradient."""
    min_clip: float = Field(1e-2, ge=0)
    """Smallest gradient clip: far below it AdamW passes the plain gradient on."""
    max_weight_decay: float = Field(1.0, ge=0)
    """Largest weight decay."""
    augmentation: bool = True
    """Refuse a recipe that switches augmentation off."""
    inspection: bool = True
    """Refuse an encoder whose rows point one way or that behaves on this site's images as no trained one does. Hash,
    finite values, copies, shapes and norms are checked in any case."""
    probe: bool = True
    """Hold an update for a person where one of its pictures could be read out of it, before anything leaves."""
    epsilon: float = Field(0.0, ge=0)
    """With one, this site trains with differential privacy alone (train.dp), and declines once all campaigns together
    would have spent more than this on a patient. docs/privacy.md says what it costs."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Chance with which epsilon may not hold; well below one patient's share of all."""
    canary: bool = False
    """Train on one frame with an invented name beside this site's images, and hold an update that has learned it by
    heart. Only with `probe`, and without differential privacy."""
    encodings: tuple[str, ...] = ("int8", "int4", "bf16", "sparse")
    """Encodings in which an update may leave. fp32 carries every digit of the change."""
    campaigns_a_day: int = Field(2, ge=1)
    """Most campaigns that are begun within 24 hours."""
    requests_a_day: int = Field(200, ge=1)
    """Most rounds that are trained within 24 hours, over all campaigns."""
    max_steps: int = Field(100_000, ge=1)
    """Most optimizer steps in one request."""
    max_tokens: int = Field(4096, ge=1)
    """Most patches an image; attention's memory grows with their square."""
    max_memory_gb: float = Field(0.0, ge=0)
    """Memory of the training process, in gigabytes; 0 allows nine tenths of this machine's. Not enforced on a GPU."""
