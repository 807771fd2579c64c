"""What hidden patches are predicted as, beside their pixels: the features of a frozen teacher.

A teacher is an encoder that no longer changes (the seed of a federation, which every site holds). The student sees the
visible patches and predicts, for each hidden one, what the teacher makes of it in the whole picture. Because the
teacher stands still there is nothing to collapse, and it holds the student near what the seed knew (SALT,
arXiv:2509.24317; for ultrasound US-JEPA, arXiv:2602.19322). The loss is the mean squared error to the teacher's features,
each token normalised over its width; `mixture` adds the pixel loss of the masked autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usfmae.core.checkpoint import encoder_of
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import CheckpointError, UsageError
from usfmae.core.mae.model import MaskedAutoencoder, fresh, take


class LatentPredictor(MaskedAutoencoder):
    """A masked autoencoder whose decoder also predicts a frozen teacher's features of the hidden patches.

    `decoder_latent` (E -> teacher's width) belongs to the decoder: it stays where it was trained. The teacher is not
    part of the weights: checkpoints, updates and exports hold the student alone.
    """

    def __init__(self, model: ModelSettings, settings: TrainSettings, teacher: MaskedAutoencoder) -> None:
        super().__init__(model, settings.mask_ratio, settings.norm_pix)
        self.share = 1.0 if settings.target == "latents" else settings.latent_share
        self.decoder_latent = nn.Linear(model.decoder_width, teacher.settings.width)
        nn.init.xavier_uniform_(self.decoder_latent.weight)
        nn.init.zeros_(self.decoder_latent.bias)
        if self.share == 1:  # nobody predicts pixels: no gradient, and no state of the optimizer
            self.decoder_pred.requires_grad_(False)
        for parameter in teacher.parameters():
            parameter.requires_grad = False
        self._teacher = (teacher.eval(),)  # in a tuple: torch does not take it for a part of this model

    def forward(self, images: Tensor, noise: Tensor | None = None, full: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """As of the masked autoencoder; the loss is `share` of the latent loss and the rest of the pixel loss."""
        patches = self.patchify(images)  # (B, L, P)
        noise = torch.rand(patches.shape[:2], device=images.device) if noise is None else noise
        order = noise.argsort(dim=1)  # (B, L), visible patches first
        visible = int(order.shape[1] * (1 - self.mask_ratio))
        hidden = order[:, visible:]  # (B, M)

        # The student sees the visible patches alone; the teacher sees the whole picture.
        decoded = self._hidden_states(self._encode(patches, order[:, :visible]), order, full)  # (B, L or M, E)
        with torch.no_grad():
            teacher_features = take(
                self._teacher[0].features(images)[:, 1:].float(), hidden
            )  # (B, M, D of the teacher)
        teacher_target = F.layer_norm(teacher_features, teacher_features.shape[-1:])
        loss = self.share * F.mse_loss(self.decoder_latent(decoded[:, -hidden.shape[1] :]).float(), teacher_target)

        prediction = self.decoder_pred(decoded)
        if self.share < 1:
            target = self.target(take(patches, hidden))  # (B, M, P)
            loss = loss + (1 - self.share) * F.mse_loss(prediction[:, -target.shape[1] :].float(), target)
        restore = order.argsort(dim=1)
        return loss, take(prediction, restore) if full else prediction, (restore >= visible).float()


LATENT_HEAD = (
    "decoder_latent."  # prefix of the tensors that predict features; with the decoder they stay where they are
)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a masked autoencoder, without what predicts features: what a checkpoint holds."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(LATENT_HEAD)}


def predicting(
    built: MaskedAutoencoder,
    settings: TrainSettings,
    teacher: Mapping[str, Tensor] | None,
    teacher_model: ModelSettings | None = None,
) -> MaskedAutoencoder:
    """The model with the weights of `built` that predicts what `settings.target` names; for pixels `built` itself.

    `teacher_model`: the teacher's architecture, the student's own where it is None. Raises what `student` raises.
    """
    if settings.target == "pixels":
        return built
    made = student(built.settings, settings, teacher, teacher_model or built.settings)
    made.load_state_dict({**made.state_dict(), **built.state_dict()})
    return made


def student(
    model: ModelSettings, settings: TrainSettings, teacher: Mapping[str, Tensor] | None, teacher_model: ModelSettings
) -> MaskedAutoencoder:
    """The model to train with fresh weights: plain for pixels, with the teacher's tensors for latents or a mixture.

    Raises UsageError where the target needs a teacher, CheckpointError where it cannot be this student's.
    """
    if settings.target == "pixels":
        return fresh(model, settings.mask_ratio, settings.norm_pix, settings.seed)
    if teacher is None:
        raise UsageError(f"train.target {settings.target}", "needs a frozen teacher", "give --teacher CHECKPOINT")
    if (teacher_model.image_size, teacher_model.patch_size) != (model.image_size, model.patch_size):
        size = f"{teacher_model.image_size} / {teacher_model.patch_size}"
        raise CheckpointError("teacher", f"has image and patch size {size}", "take one of the model's own sizes")
    frozen = MaskedAutoencoder(teacher_model)
    frozen.load_state_dict({**frozen.state_dict(), **encoder_of(dict(teacher))})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LatentPredictor(model, settings, frozen)
