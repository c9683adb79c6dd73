"""The student: one masked autoencoder with, for LUT, two heads that speak for its unmasked tokens."""

from typing import Any, NamedTuple

import torch
from timm.models import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from lutbench.models.encoders import create_encoder
from lutbench.recipes import PretrainRecipe
from lutbench.train.randomness import RngStream, seeded
from pretrain.autoencoder import (
    Decoder,
    encode,
    fix_position,
    patch_statistics,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from pretrain.context import ContextLoss, Targets, head
from pretrain.masking import visible_count, visible_patches
from pretrain.views import Views
from pretrain.weights import Part, initialise


class Losses(NamedTuple):
    """0-d float32 tensors on the device: ``total = mim + weight * context``; no context without the second loss."""

    total: Tensor
    mim: Tensor
    context: Tensor | None


class Student(nn.Module):
    """What is trained. Without ``context`` it is MAE, and there are no heads.

    ``encoder.state_dict()`` loads strictly into the same model of timm.

    Raises:
        UserError: if the mask ratio or the encoder does not suit, see :func:`visible_count`, :func:`fix_position`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: Decoder,
        *,
        mask_ratio: float = 0.75,
        normalise_target: bool = True,
        context: ContextLoss | None = None,
        projector: nn.Sequential | None = None,
        predictor: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        fix_position(encoder)
        self.encoder = encoder
        self.decoder = decoder
        self.projector = projector
        self.predictor = predictor
        self.context = context
        self.normalise_target = normalise_target
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        # View 2 is masked where the student sees it, and where a masked teacher does.
        two_views = context is not None and (context.both_directions or context.masked_teacher)
        self.visible = visible_count(encoder.patch_embed.num_patches, mask_ratio, views=2 if two_views else 1)

    def forward(self, views: Views, targets: Targets | None = None) -> Losses:
        """The losses of a batch. ``targets`` are the teacher's outputs for the same views; None without ``context``."""
        visible = visible_patches(views.noise, self.visible)
        tokens2 = None
        if self.context is not None and self.context.both_directions:
            assert views.view2 is not None, "the context loss needs view 2"
            both = encode(self.encoder, torch.cat([views.view1, views.view2]), torch.cat(visible))
            tokens1, tokens2 = both.chunk(2)
        else:
            tokens1 = encode(self.encoder, views.view1, visible.view1)

        pixels = self.decoder(tokens1, visible.view1)
        with torch.autocast(pixels.device.type, enabled=False):
            mim = reconstruction_loss(
                pixels.float(), views.view1, visible.view1, self.patch_size, self.normalise_target
            )
        if self.context is None:
            return Losses(mim, mim, None)

        assert targets is not None, "the context loss needs the teacher's outputs"
        output1 = self._predict(tokens1)
        output2 = None if tokens2 is None else self._predict(tokens2)
        with torch.autocast(pixels.device.type, enabled=False):
            context = self.context(output1, output2, targets)
            return Losses(mim + self.context.weight * context, mim, context)

    def _predict(self, tokens: Tensor) -> Tensor:
        """The prediction (B, D) for one view; once per view, since BatchNorm's statistics are those of a view."""
        assert self.context is not None
        assert self.projector is not None
        assert self.predictor is not None
        prediction: Tensor = self.predictor(self.projector(self.context.pool(tokens)))
        return prediction.float()


def build_student(recipe: PretrainRecipe, seed: int) -> Student:
    """The student of a recipe, with initial weights that depend on ``seed`` alone."""
    with seeded(RngStream.WEIGHTS, seed, Part.ENCODER):
        encoder = create_encoder(recipe.encoder)
        initialise(encoder)
    width, embedding = encoder.embed_dim, encoder.patch_embed
    with seeded(RngStream.WEIGHTS, seed, Part.DECODER):
        decoder = Decoder(
            width,
            recipe.decoder_width,
            recipe.decoder_depth,
            recipe.decoder_heads,
            embedding.grid_size[0],
            embedding.patch_size[0],
        )
        initialise(decoder)
    heads: dict[str, Any] = {}
    if recipe.has_context:
        for name, part in (("projector", Part.PROJECTOR), ("predictor", Part.PREDICTOR)):
            with seeded(RngStream.WEIGHTS, seed, part):
                heads[name] = head(width, recipe.head_width, recipe.head_depth, recipe.head_norm)
                initialise(heads[name])
    return Student(
        encoder,
        decoder,
        mask_ratio=recipe.mask_ratio,
        normalise_target=recipe.normalise_target,
        context=ContextLoss.from_recipe(recipe),
        **heads,
    )


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser: no decay on biases and 1-D parameters (paper); class and mask token are decayed."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(student, weight_decay)
    return groups


@torch.no_grad()
def reconstruct(student: Student, views: Views) -> Tensor:
    """View 1 (B, 3, S, S), normalised as it came, with its masked patches replaced by what the student predicts.

    Where targets are normalised per patch, predictions get the patch's own mean and deviation back.
    """
    places = visible_patches(views.noise, student.visible).view1
    pixels = student.decoder(encode(student.encoder, views.view1, places), places).float()
    truth = patchify(views.view1, student.patch_size)
    if student.normalise_target:
        mean, deviation = patch_statistics(truth)
        pixels = pixels * deviation + mean
    index = places.unsqueeze(-1).expand(-1, -1, pixels.shape[2])
    pasted = pixels.scatter(1, index, truth.gather(1, index))
    return unpatchify(pasted, student.patch_size)
