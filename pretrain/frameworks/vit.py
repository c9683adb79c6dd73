"""What frameworks have in common that train a plain ViT: its initial weights and positions, and images as patches."""

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from lutbench.errors import UserError
from lutbench.models.encoders import create_vit
from lutbench.recipes.base import EncoderRecipe
from lutbench.train.randomness import RngStream, seeded
from pretrain.frameworks.interface import Part


def build_vit(recipe: EncoderRecipe, seed: int) -> VisionTransformer:
    """Return an encoder with the initial weights of :func:`initialise`, which depend on ``seed`` alone, whatever the framework.

    Raises:
        UserError: if it cannot be built.
    """
    with seeded(RngStream.WEIGHTS, seed, Part.ENCODER):
        encoder = create_vit(recipe)
        initialise(encoder)
    return encoder


@torch.no_grad()
def initialise(component: nn.Module) -> None:
    """Draw initial weights (MAE, section A.1): Xavier uniform for linear layers and the flattened patch embedding,
    N(0, 0.02) for class and mask token.

    Biases are zero (our choice for the patch embedding's; the release leaves torch's default there). Normalisation
    layers are left as torch makes them: weight 1, bias 0.
    """
    for module in component.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, VisionTransformer):
            projection = module.patch_embed.proj
            nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            if module.cls_token is not None:
                nn.init.normal_(module.cls_token, std=0.02)
        elif isinstance(token := getattr(module, "mask_token", None), nn.Parameter):
            nn.init.normal_(token, std=0.02)


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


def sincos_position(grid: int, width: int) -> Tensor:
    """Return embeddings (1, 1 + grid * grid, width) of a class token (zeros) and a row-major grid of patches.

    The first half of the channels encodes the column, the second half the row (release); in each half come the sines
    and then the cosines of the coordinate times 10000^(-i / (width / 4)), i = 0 ... width / 4 - 1 (MAE, section A.1).

    Raises:
        UserError: if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"A width of {width} does not suit two-dimensional sine-cosine position embeddings: sines and cosines of "
            "rows and columns share it equally. Set the encoder's and the decoder's width to multiples of 4."
        )
    row, column = build_sincos2d_pos_embed([grid, grid], width, interleave_sin_cos=True).chunk(2, dim=1)
    return torch.cat([torch.zeros(1, width), torch.cat([column, row], dim=1)]).unsqueeze(0)


def take(tokens: Tensor, visible: Tensor) -> Tensor:
    """Return the tokens (B, K, D) with the indices ``visible`` (B, K) out of ``tokens`` (B, N, D)."""
    return torch.take_along_dim(tokens, visible.unsqueeze(-1), dim=1)


def embedded(encoder: VisionTransformer, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return the embedded patches (B, K, D), without positions, with the indices ``kept`` (B, K) of ``images``; all if not given.

    Of images (B, 3, S, S) timm's convolution embeds all patches, and some are kept. Of images as patches (B, N, P * P * 3) it is a
    matrix product on those that are kept alone: the same values but for the order of sums.
    """
    if images.ndim == 4:
        patches: Tensor = encoder.patch_embed(images)
        return patches if kept is None else take(patches, kept)
    projection = encoder.patch_embed.proj
    pixels = images if kept is None else take(images, kept)
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # a patch's row, column, channel, as patchify has them
    embedding: Tensor = encoder.patch_embed.norm(functional.linear(pixels, weight, projection.bias))
    return embedding


def targets(images: Tensor, patch_size: int, masked: Tensor | None) -> Tensor:
    """Return the patches (B, N, P * P * 3) of ``images`` (B, 3, S, S), which may be patches already; those ``masked`` (B, M) if given."""
    patches = patchify(images, patch_size) if images.ndim == 4 else images
    return patches if masked is None else take(patches, masked)


def masked_mean(error: Tensor, visible: Tensor, masked: Tensor | None) -> Tensor:
    """Return the mean, 0-d, of ``error`` over patches that are not ``visible`` (B, K): (B, N) of all, or (B, N - K) of the ``masked``."""
    if masked is not None:
        return error.mean()
    hidden = torch.ones_like(error).scatter(1, visible, 0.0)
    return (error * hidden).sum() / hidden.sum()


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, (B, N, 1) each, of the pixels in each of ``patches`` (B, N, P * P * 3)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)  # unbiased
    return mean, (variance + 1e-6).sqrt()  # MAE's code


def standardised(patches: Tensor) -> Tensor:
    """Return ``patches`` (B, N, P * P * 3) with mean 0 and variance 1 in each (MAE, section 4.1)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def shown_again(pixels: Tensor, images: Tensor, visible: Tensor, patch_size: int, standardised: bool) -> Tensor:
    """Return ``images`` with the patches that are not ``visible`` replaced by predicted ``pixels`` (B, N, P * P * 3).

    Where targets are ``standardised`` patch by patch, predictions get the patch's own mean and deviation back.
    """
    truth = patchify(images, patch_size)
    if standardised:
        mean, deviation = patch_statistics(truth)
        pixels = pixels * deviation + mean
    index = visible.unsqueeze(-1).expand(-1, -1, pixels.shape[2])
    return unpatchify(pixels.scatter(1, index, truth.gather(1, index)), patch_size)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut ``images`` (B, 3, S, S) into patches (B, N, P * P * 3): row-major grid; in each row, column, channel."""
    batch, channels, side, _ = images.shape
    grid = side // patch_size
    patches = images.reshape(batch, channels, grid, patch_size, grid, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid * grid, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Return images (B, 3, S, S) of ``patches`` (B, N, P * P * 3): the inverse of :func:`patchify`."""
    batch, count, _ = patches.shape
    grid = round(count**0.5)
    images = patches.reshape(batch, grid, grid, patch_size, patch_size, 3)
    return images.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, grid * patch_size, grid * patch_size)
