"""SimMIM (arXiv 2111.09886): encode all patches, masked ones as mask tokens, and predict raw pixels by one linear layer."""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.randomness import RngStream, seeded
from pretrain.frameworks.interface import Part
from pretrain.frameworks.vit import (
    build_vit,
    embedded,
    fix_position,
    initialise,
    masked_mean,
    shown_again,
    standardised,
    take,
    targets,
)


class SimMIM:
    """The framework SimMIM, see :class:`pretrain.frameworks.interface.Framework`; the defaults are the paper's for images of 224 px.

    The encoder is the one that MAE trains here, with fixed position embeddings, where the authors' has a shared relative
    position bias and LayerScale (our choice: rows of two frameworks then differ in nothing else). Making it gives ``encoder``
    that embedding. The mask token is in ``decoder``, so that the encoder exports without it.

    Raises:
        UserError: if the encoder is no plain ViT, or the mask units are not whole patches or do not divide the image.
    """

    masks_in_encoder = True
    sparse = True

    def __init__(self, encoder: VisionTransformer, mask_unit: int = 32, *, normalise_target: bool = False) -> None:
        fix_position(encoder)
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        self.mask_unit = units_of(mask_unit, self.patch_size, encoder.patch_embed.grid_size[0])
        self.normalise_target = normalise_target
        self.decoder = LinearHead(encoder.embed_dim, self.patch_size)

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        """Return tokens (B, 1 + N, D), class token first; patches that are not ``visible`` (B, K) go in as the mask token.

        The position is added to mask tokens too (section 3.2).
        """
        assert encoder.pos_embed is not None
        assert encoder.cls_token is not None
        patches = embedded(encoder, images, visible)
        if visible is not None:
            index = visible.unsqueeze(-1).expand(-1, -1, patches.shape[2])
            masked = self.decoder.mask_token.to(patches.dtype).expand(len(images), encoder.patch_embed.num_patches, -1)
            patches = masked.scatter(1, index, patches)
        tokens = torch.cat([encoder.cls_token.expand(len(images), -1, -1), patches], dim=1) + encoder.pos_embed
        encoded: Tensor = encoder.norm(encoder.blocks(encoder.norm_pre(tokens)))
        return encoded

    def unmasked(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Return the class token and the ``visible`` patches of ``tokens`` (B, 1 + N, D): what LUT's heads may read."""
        return tokens if visible is None else torch.cat([tokens[:, :1], take(tokens[:, 1:], visible)], dim=1)

    def loss(self, pixels: Tensor, images: Tensor, visible: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the mean absolute error, 0-d, of ``pixels`` (B, N, P * P * 3) over the pixels that are masked (section 3.4).

        With ``masked`` (B, M), ``pixels`` (B, M, P * P * 3) are of these patches alone.
        """
        target = targets(images, self.patch_size, masked)
        if self.normalise_target:
            target = standardised(target)
        return masked_mean((pixels - target).abs().mean(dim=2), visible, masked)

    def reconstruct(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        """Return ``images`` with the patches that are not ``visible`` replaced by ``pixels`` (B, N, P * P * 3)."""
        return shown_again(pixels, images, visible, self.patch_size, self.normalise_target)


class LinearHead(nn.Module):
    """The mask token, and one linear layer from a token to its patch's pixels (section 3.3)."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predict = nn.Linear(width, patch_size * patch_size * 3)

    def forward(self, tokens: Tensor, visible: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the pixels (B, N, P * P * 3) of all patches, or (B, M, ...) of the ``masked`` alone, from ``tokens`` (B, 1 + N, D)."""
        patches = tokens[:, 1:]
        pixels: Tensor = self.predict(patches if masked is None else take(patches, masked))
        return pixels


def build_simmim(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, SimMIM]:
    """Return the encoder and the framework of a recipe, see :func:`pretrain.frameworks.build_framework`."""
    encoder = build_vit(recipe.encoder, seed)
    with seeded(RngStream.WEIGHTS, seed, Part.DECODER):
        simmim = SimMIM(encoder, recipe.mask_unit, normalise_target=recipe.normalise_target)
        initialise(simmim.decoder)
    return encoder, simmim


def units_of(mask_unit: int, patch_size: int, grid: int) -> int:
    """Return the side of a mask unit of ``mask_unit`` pixels in patches.

    Raises:
        UserError: if it is no whole number of patches, or the units do not divide the ``grid``.
    """
    patches = mask_unit // patch_size
    if mask_unit % patch_size or grid % patches:
        side = grid * patch_size
        fitting = [patch_size * n for n in range(1, grid // 2 + 1) if grid % n == 0]
        way = (
            f"Set mask_unit to {' or '.join(map(str, fitting))}"
            if fitting
            else "With one patch nothing stays visible: use a smaller patch_size"
        )
        default = " (the default, SimMIM's)" if mask_unit == PretrainRecipe.model_fields["mask_unit"].default else ""
        raise UserError(
            f"mask_unit = {mask_unit} pixels{default} does not divide images of {side} into units of whole patches of {patch_size}. {way}."
        )
    return patches
