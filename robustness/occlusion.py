"""Images with patches dropped, or cut into tiles and shuffled (Naseer et al. 2021), from pixels in memory.

Which patches is drawn under the key of the image alone, so the same for every classifier, batch and process; more
dropped patches include the fewer, so a curve over shares follows one order of losing patches in each image. Our choices,
with black for what is dropped: bytedance/ibot's analysis/occlusion/eval.py draws once for a batch, afresh for every
share, and drops after normalisation, which leaves the mean colour.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.train.device import may_wait, moved
from lutbench.train.randomness import RngStream, generator

Change = Callable[[Tensor, Tensor], Tensor]
"""A function from uint8 pixels (B, 3, S, S) and the images' indices in their dataset (B,) to other pixels."""


def occlusions(recipe: RobustnessDatasetRecipe) -> dict[str, Change]:
    """Return the changes of a set of ``kind = "occlusion"``, by name of the condition: ``drop 3/10``, ``shuffle 4x4``."""
    return {
        condition: partial(drop_patches, tenths=many, grid=recipe.drop_grid)
        if kind == "drop"
        else partial(shuffle_tiles, grid=many)
        for condition, (kind, many) in recipe.occlusions.items()
    }


def drop_patches(pixels: Tensor, index: Tensor, tenths: int, grid: int = 14) -> Tensor:
    """Return ``pixels`` (B, 3, S, S) with ``tenths`` of their ``grid`` x ``grid`` patches black, rounded down.

    Raises:
        UserError: if the side is not a whole number of patches.
    """
    tiles = _tiles(pixels, grid)
    dropped = moved(_orders(index, grid)[:, : tenths * grid * grid // 10])
    kept = torch.ones(len(pixels), grid * grid, dtype=pixels.dtype, device=pixels.device).scatter_(1, dropped, 0)
    return _joined(tiles * kept[:, :, None, None, None])


def shuffle_tiles(pixels: Tensor, index: Tensor, grid: int) -> Tensor:
    """Return ``pixels`` (B, 3, S, S) with their ``grid`` x ``grid`` tiles in another order.

    Raises:
        UserError: if the side is not a whole number of tiles.
    """
    tiles = _tiles(pixels, grid)
    order = moved(_orders(index, grid))
    return _joined(tiles.gather(1, order[:, :, None, None, None].expand_as(tiles)))


def check_grid(side: int, grid: int) -> None:
    """Check that images of this side can be cut.

    Raises:
        UserError: if the side is not a whole number of tiles.
    """
    if side % grid:
        fitting = [n for n in range(2, side + 1) if side % n == 0 and n <= 2 * grid]
        raise UserError(
            f"Images of {side} x {side} pixels cannot be divided into {grid} x {grid} patches. "
            f"Set drop_grid and shuffles to values among {', '.join(map(str, fitting))}."
        )


def _orders(index: Tensor, grid: int) -> Tensor:
    """Return an order (B, grid * grid) of the tiles of every image, from bits that NumPy promises never to change."""
    with may_wait():
        numbers = index.tolist()
    keys = [generator(RngStream.OCCLUSION, grid, number).bit_generator.random_raw(grid * grid) for number in numbers]
    return torch.from_numpy(np.argsort(np.stack(keys), axis=1, kind="stable"))


def _tiles(pixels: Tensor, grid: int) -> Tensor:
    """Return the tiles (B, grid * grid, 3, S / grid, S / grid), row by row."""
    check_grid(pixels.shape[-1], grid)
    batch, channels, side = len(pixels), pixels.shape[1], pixels.shape[-1] // grid
    rows = pixels.view(batch, channels, grid, side, grid, side)
    return rows.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels, side, side)


def _joined(tiles: Tensor) -> Tensor:
    """Return the images whose :func:`_tiles` these are."""
    batch, count, channels, side, _ = tiles.shape
    grid = round(count**0.5)
    rows = tiles.view(batch, grid, grid, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(batch, channels, grid * side, grid * side)
