"""The masked autoencoder (arXiv 2111.06377): encode the visible patches, reconstruct the pixels of the others."""

import torch
from timm.layers import LayerNorm
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lutbench.errors import UserError
from pretrain.masking import take
from pretrain.position import sincos_position


def fix_position(encoder: VisionTransformer) -> None:
    """Give timm's encoder the fixed sine-cosine position embedding, which is not trained.

    Raises:
        UserError: if its tokens are not one class token and a square grid of patches, all with a position.
    """
    grid = encoder.patch_embed.grid_size[0]
    expected = (1, 1 + grid * grid, encoder.embed_dim)
    found = None if encoder.pos_embed is None else tuple(encoder.pos_embed.shape)
    if encoder.pos_embed is None or encoder.cls_token is None or found != expected:
        raise UserError(
            "This encoder cannot be pre-trained here: expected one class token and a square grid of patches with "
            f"position embeddings of shape {expected}, found {found or 'none'}. Choose a plain ViT of timm, such as "
            "vit_base_patch16_224."
        )
    with torch.no_grad():
        encoder.pos_embed.copy_(sincos_position(grid, encoder.embed_dim))
    encoder.pos_embed.requires_grad_(False)


def encode(encoder: VisionTransformer, images: Tensor, places: Tensor | None = None) -> Tensor:
    """Tokens (B, 1 + K, D), class token first, of ``images`` (B, 3, S, S) seen at ``places`` (B, K), or whole."""
    assert encoder.pos_embed is not None
    assert encoder.cls_token is not None
    patches = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    if places is not None:
        patches = take(patches, places)
    class_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
    tokens: Tensor = encoder.norm_pre(torch.cat([class_token, patches], dim=1))
    tokens = encoder.norm(encoder.blocks(tokens))
    return tokens


class Decoder(nn.Module):
    """A narrower ViT that sees encoded and mask tokens in their places and predicts every patch's pixels.

    Raises:
        UserError: if ``width`` does not divide into ``heads`` or does not suit the position embedding.
    """

    def __init__(
        self, encoder_width: int, width: int, depth: int, heads: int, grid: int, patch_size: int, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"decoder_width = {width} is not a multiple of decoder_heads = {heads}: change one of them."
            )
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_position(grid, width), requires_grad=False)
        self.blocks = nn.Sequential(
            *[Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)]
        )
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, patch_size * patch_size * 3)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Pixels (B, N, P * P * 3) of all patches, from the encoder's ``tokens`` (B, 1 + K, D) at ``places`` (B, K)."""
        tokens = self.embed(tokens)
        batch, _, width = tokens.shape
        masked = self.mask_token.to(tokens.dtype).expand(batch, self.pos_embed.shape[1] - 1, width)
        patches = masked.scatter(1, places.unsqueeze(-1).expand(-1, -1, width), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        pixels: Tensor = self.predict(self.norm(self.blocks(tokens)))
        return pixels[:, 1:]


def reconstruction_loss(pixels: Tensor, images: Tensor, places: Tensor, patch_size: int, normalise: bool) -> Tensor:
    """Mean squared error, 0-d, of predicted ``pixels`` (B, N, P * P * 3) over the patches not at ``places`` (B, K).

    With ``normalise``, each patch's target has mean 0 and variance 1 (MAE, section 4.1).
    """
    target = patchify(images, patch_size)
    if normalise:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    error = (pixels - target).square().mean(dim=2)
    masked = torch.ones_like(error).scatter(1, places, 0.0)
    return (error * masked).sum() / masked.sum()


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (B, N, 1) each, of the pixels in each of ``patches`` (B, N, P * P * 3)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)  # unbiased
    return mean, (variance + 1e-6).sqrt()  # MAE's code


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Patches (B, N, P * P * 3) of ``images`` (B, 3, S, S): grid row-major, inside a patch row, column, channel."""
    batch, channels, side, _ = images.shape
    grid = side // patch_size
    patches = images.reshape(batch, channels, grid, patch_size, grid, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid * grid, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, S, S) of ``patches`` (B, N, P * P * 3): the inverse of :func:`patchify`."""
    batch, count, _ = patches.shape
    grid = round(count**0.5)
    images = patches.reshape(batch, grid, grid, patch_size, patch_size, 3)
    return images.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, grid * patch_size, grid * patch_size)
