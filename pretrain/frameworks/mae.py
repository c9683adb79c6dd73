"""The masked autoencoder (arXiv 2111.06377): encode the visible patches, reconstruct the pixels of the others."""

from typing import Any, cast

import torch
from timm.layers import LayerNorm
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

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
    sincos_position,
    standardised,
    take,
    targets,
)


class MAE:
    """The framework MAE, see :class:`pretrain.frameworks.interface.Framework`; the defaults are the paper's.

    Making it gives ``encoder`` the fixed position embedding.

    Raises:
        UserError: if the encoder is no plain ViT, or its or the decoder's sizes do not go together.
    """

    mask_unit = 1
    """Patches are masked one by one."""
    masks_in_encoder = False
    sparse = True

    def __init__(
        self,
        encoder: VisionTransformer,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        *,
        normalise_target: bool = True,
    ) -> None:
        fix_position(encoder)
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        self.normalise_target = normalise_target
        grid = encoder.patch_embed.grid_size[0]
        self.decoder = Decoder(encoder.embed_dim, width, depth, heads, grid, self.patch_size, mlp_ratio)

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        """Return tokens (B, 1 + K, D), class token first, of the patches ``visible`` (B, K) of ``images``, or of all.

        The encoder never computes anything for a masked patch (MAE, section 3).
        """
        assert encoder.pos_embed is not None
        assert encoder.cls_token is not None
        position = encoder.pos_embed[:, 1:]
        patches = embedded(encoder, images, visible) + (position if visible is None else take(position, visible))
        class_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens: Tensor = encoder.norm_pre(torch.cat([class_token, patches], dim=1))
        tokens = encoder.norm(encoder.blocks(tokens))
        return tokens

    def unmasked(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Return ``tokens`` as they are: MAE encodes no others."""
        return tokens

    def loss(self, pixels: Tensor, images: Tensor, visible: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the mean squared error, 0-d, of ``pixels`` (B, N, P * P * 3) over patches that are not ``visible``.

        With ``normalise_target``, each patch's target has mean 0 and variance 1 (MAE, section 4.1). With ``masked`` (B, M), ``pixels``
        (B, M, P * P * 3) are of these patches alone.
        """
        target = targets(images, self.patch_size, masked)
        if self.normalise_target:
            target = standardised(target)
        return masked_mean((pixels - target).square().mean(dim=2), visible, masked)

    def reconstruct(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        """Return ``images`` with the patches that are not ``visible`` replaced by ``pixels`` (B, N, P * P * 3)."""
        return shown_again(pixels, images, visible, self.patch_size, self.normalise_target)


def build_mae(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, MAE]:
    """Return the encoder and the framework of a recipe, see :func:`pretrain.frameworks.build_framework`."""
    encoder = build_vit(recipe.encoder, seed)
    with seeded(RngStream.WEIGHTS, seed, Part.DECODER):
        mae = MAE(
            encoder,
            recipe.decoder_width,
            recipe.decoder_depth,
            recipe.decoder_heads,
            normalise_target=recipe.normalise_target,
        )
        initialise(mae.decoder)
    return encoder, mae


class Decoder(nn.Module):
    """A narrower ViT that reads encoded and mask tokens in their positions and predicts every patch's pixels.

    Raises:
        UserError: if ``width`` does not divide into ``heads`` or does not suit the position embedding.
    """

    def __init__(
        self, encoder_width: int, width: int, depth: int, heads: int, grid: int, patch_size: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"decoder_width = {width} is not a multiple of decoder_heads = {heads}: change one of them."
            )
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_position(grid, width), requires_grad=False)
        kinds = [Block] * (depth - 1) + [LastBlock]
        self.blocks = nn.Sequential(
            *[kind(width, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for kind in kinds]
        )
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, patch_size * patch_size * 3)

    def forward(self, tokens: Tensor, visible: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the pixels (B, N, P * P * 3) of all patches, from ``tokens`` (B, 1 + K, D) of ``visible`` (B, K).

        With ``masked`` (B, M), those of these patches alone (B, M, P * P * 3): what the last block would make of the others is not
        computed.
        """
        tokens = self.embed(tokens)
        batch, _, width = tokens.shape
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, self.pos_embed.shape[1] - 1, width)
        patches = mask_tokens.scatter(1, visible.unsqueeze(-1).expand(-1, -1, width), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        if masked is not None:
            *others, last = self.blocks
            for block in others:
                tokens = block(tokens)
            predicted: Tensor = self.predict(self.norm(last(tokens, kept=masked + 1)))  # the class token is the first
            return predicted
        pixels: Tensor = self.predict(self.norm(self.blocks(tokens)))
        return pixels[:, 1:]


class LastBlock(Block):
    """timm's block, which can leave out the tokens that nothing reads any more: they are attended to, and attend to nothing."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, kept: Tensor | None = None
    ) -> Tensor:
        """Return the tokens (B, T, D) after the block, or those with the indices ``kept`` (B, M) alone (B, M, D), without a mask."""
        if kept is None:
            masks: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal}
            return super().forward(x, **{name: mask for name, mask in masks.items() if mask})  # older timm has fewer
        width, attention = x.shape[2], cast(Any, self.attn)
        normed, weight, bias = self.norm1(x), attention.qkv.weight, attention.qkv.bias
        queries = functional.linear(take(normed, kept), weight[:width], bias[:width])
        keys, values = functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=2)
        heads = [t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for t in (queries, keys, values)]
        read = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens: Tensor = take(x, kept) + attention.proj(read)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens
