"""The masked autoencoder (arXiv 2111.06377): encode the visible patches, reconstruct the pixels of the others."""

import torch
from timm.layers import LayerNorm, build_sincos2d_pos_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.encoders import create_vit
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.randomness import RngStream, seeded
from pretrain.frameworks.interface import Part


class MAE:
    """The framework MAE, see :class:`pretrain.frameworks.interface.Framework`; the defaults are the paper's.

    Making it gives ``encoder`` the fixed position embedding.

    Raises:
        UserError: if the encoder is no plain ViT, or its or the decoder's sizes do not go together.
    """

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
        patches = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
        if visible is not None:
            patches = take(patches, visible)
        class_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens: Tensor = encoder.norm_pre(torch.cat([class_token, patches], dim=1))
        tokens = encoder.norm(encoder.blocks(tokens))
        return tokens

    def unmasked(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Return ``tokens`` as they are: MAE encodes no others."""
        return tokens

    def loss(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        """Return the mean squared error, 0-d, of ``pixels`` (B, N, P * P * 3) over patches that are not ``visible``.

        With ``normalise_target``, each patch's target has mean 0 and variance 1 (MAE, section 4.1).
        """
        target = patchify(images, self.patch_size)
        if self.normalise_target:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        error = (pixels - target).square().mean(dim=2)
        masked = torch.ones_like(error).scatter(1, visible, 0.0)
        return (error * masked).sum() / masked.sum()

    def reconstruct(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        """Return ``images`` with the patches that are not ``visible`` replaced by ``pixels`` (B, N, P * P * 3).

        Where targets are normalised per patch, predictions get the patch's own mean and deviation back.
        """
        truth = patchify(images, self.patch_size)
        if self.normalise_target:
            mean, deviation = patch_statistics(truth)
            pixels = pixels * deviation + mean
        index = visible.unsqueeze(-1).expand(-1, -1, pixels.shape[2])
        return unpatchify(pixels.scatter(1, index, truth.gather(1, index)), self.patch_size)


def build_mae(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, MAE]:
    """Return the encoder and the framework of a recipe, see :func:`pretrain.frameworks.build_framework`."""
    with seeded(RngStream.WEIGHTS, seed, Part.ENCODER):
        encoder = create_vit(recipe.encoder)
        initialise(encoder)
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
        elif isinstance(module, Decoder):
            nn.init.normal_(module.mask_token, std=0.02)


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
        self.blocks = nn.Sequential(
            *[Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)]
        )
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, patch_size * patch_size * 3)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return the pixels (B, N, P * P * 3) of all patches, from ``tokens`` (B, 1 + K, D) of ``visible`` (B, K)."""
        tokens = self.embed(tokens)
        batch, _, width = tokens.shape
        masked = self.mask_token.to(tokens.dtype).expand(batch, self.pos_embed.shape[1] - 1, width)
        patches = masked.scatter(1, visible.unsqueeze(-1).expand(-1, -1, width), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        pixels: Tensor = self.predict(self.norm(self.blocks(tokens)))
        return pixels[:, 1:]


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


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, (B, N, 1) each, of the pixels in each of ``patches`` (B, N, P * P * 3)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)  # unbiased
    return mean, (variance + 1e-6).sqrt()  # MAE's code


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
