"""Features after any blocks of an encoder, for probes: normalised with the encoder's final norm, pooled and concatenated."""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, encode, feature_width
from lutbench.models.meta import shapes_only
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import Pool


def probe_features(encoder: nn.Module, images: Tensor, pool: Pool, blocks: Sequence[int] = ()) -> Tensor:
    """Return the features (B, F), float32, of ``images`` (B, 3, S, S): the encoder's output, or the concatenated features after ``blocks``.

    Raises:
        UserError: as :func:`lutbench.models.encoders.encode` and :func:`block_numbers`.
    """
    if not blocks:
        return encode(encoder, images, pool)
    return encode_blocks(encoder, images, pool, block_numbers(encoder, blocks)).flatten(1)


def encode_blocks(encoder: nn.Module, images: Tensor, pool: Pool, numbers: Sequence[int]) -> Tensor:
    """Return the features (B, n, D), float32, of ``images`` (B, 3, S, S) after each of the blocks ``numbers``, 1 being the first.

    Uses timm's ``forward_intermediates(norm=True)``: the tokens after a block pass through the encoder's final norm, as in the linear
    evaluations of DINO and DINOv2. Then the class token or the mean over the patches is taken and, if the encoder has its norm after the
    pooling (``fc_norm``), that norm is applied. So the features after the last block are the encoder's output.
    """
    model: Any = encoder
    chosen = sorted(numbers)
    found = model.forward_intermediates(
        images,
        indices=[number - 1 for number in chosen],
        return_prefix_tokens=True,
        norm=True,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    after = dict(zip(chosen, found, strict=True))
    norm = getattr(model, "fc_norm", nn.Identity())
    pooled = []
    for number in numbers:  # of encoders with prefix tokens, such as a class token, these stand behind the patches
        patches, prefix = after[number] if isinstance(after[number], tuple) else (after[number], after[number][:, :0])
        pooled.append(norm(patches.mean(1) if pool == "mean" else prefix[:, 0]).float())
    return torch.stack(pooled, 1)


def block_numbers(encoder: nn.Module, blocks: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of ``blocks`` of an encoder counted from 1; in ``blocks``, -1 is the last, -2 the one before it.

    Raises:
        UserError: if the encoder has no sequence of blocks, or not these blocks, or a block appears twice.
    """
    depth = depth_of(encoder)
    numbers = tuple(number if number > 0 else depth + 1 + number for number in blocks)
    if absent := [block for block, number in zip(blocks, numbers, strict=True) if not 1 <= number <= depth]:
        raise UserError(
            f"blocks = {list(blocks)}: there is no block {absent[0]}; this encoder has {depth} blocks. Use 1 to {depth}, or -1 (the last) to "
            f"-{depth} (the first)."
        )
    if len(set(numbers)) < len(numbers):
        raise UserError(
            f"blocks = {list(blocks)}: a block of this encoder with {depth} blocks appears twice. List every block once."
        )
    return numbers


def depth_of(encoder: nn.Module) -> int:
    """Return the number of blocks of an encoder.

    Raises:
        UserError: if it is not a sequence of blocks over the same tokens.
    """
    model: Any = encoder
    blocks, forward = getattr(model, "blocks", None), getattr(model, "forward_intermediates", None)
    takes = forward is not None and "return_prefix_tokens" in inspect.signature(forward).parameters
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not takes:
        raise UserError(
            f"blocks: expected a Vision Transformer, found {type(encoder).__name__}, which has no sequence of blocks to take features from. "
            "Remove blocks, or list only other methods in the task's methods."
        )
    return len(blocks)


@lru_cache
def blocks_taken(architecture: EncoderRecipe, side: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of ``blocks`` of an architecture, without making it; raises as :func:`block_numbers`."""
    with shapes_only():
        return block_numbers(create_encoder(architecture, side), blocks) if blocks else ()


@lru_cache
def probe_width(architecture: EncoderRecipe, side: int, pool: Pool, blocks: tuple[int, ...] = ()) -> int:
    """Return how many features :func:`probe_features` gives of an image, without computing any.

    Raises:
        UserError: as :func:`lutbench.models.encoders.create_encoder` and :func:`probe_features`.
    """
    width = feature_width(architecture, side, pool)
    if not blocks:
        return width
    with shapes_only(), torch.no_grad():
        encoder = create_encoder(architecture, side).eval()
        numbers = block_numbers(encoder, blocks)
        try:
            return encode_blocks(encoder, torch.empty(1, 3, side, side), pool, numbers).flatten(1).shape[1]
        except Exception as error:  # models raise many kinds of errors
            raise UserError(
                f"blocks: timm's {type(encoder).__name__} {architecture.model} cannot return features of single blocks "
                f"({type(error).__name__}: {error}). Remove blocks, or choose another model."
            ) from error
