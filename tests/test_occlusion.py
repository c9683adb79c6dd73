"""Patches are dropped and tiles shuffled under the key of each image, and nothing else happens to its pixels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.occlusion import drop_patches, occlusions, shuffle_tiles


def images(count: int = 4, side: int = 28) -> Tensor:
    """Noise without black, so that what is dropped shows."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, 3, side, side), np.uint8)
    return torch.from_numpy(pixels)


def patches(pixels: Tensor, grid: int) -> Tensor:
    """(B, grid * grid, pixels of a patch), row by row."""
    side = pixels.shape[-1] // grid
    cut = [
        pixels[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side].flatten(1)
        for row in range(grid)
        for column in range(grid)
    ]
    return torch.stack(cut, 1)


@pytest.mark.parametrize("tenths", range(10))
def test_so_many_tenths_of_the_patches_are_black_and_the_others_untouched(tenths: int) -> None:
    before, after = (patches(p, 14) for p in (images(), drop_patches(images(), torch.arange(4), tenths)))
    black = (after == 0).all(2)
    assert black.sum(1).tolist() == [196 * tenths // 10] * 4
    assert torch.equal(after[~black], before[~black])


def test_more_dropped_patches_include_the_fewer() -> None:
    black = [drop_patches(images(), torch.arange(4), tenths) == 0 for tenths in range(10)]
    for fewer, more in pairwise(black):
        assert (more | ~fewer).all()


def test_every_image_loses_its_own_patches_whatever_the_batch() -> None:
    whole = drop_patches(images(), torch.tensor([5, 6, 7, 8]), 5)
    halves = [drop_patches(images()[i : i + 2], torch.tensor([5, 6, 7, 8])[i : i + 2], 5) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(halves))
    black = (whole == 0).all(1)
    assert len({tuple(one.flatten().tolist()) for one in black}) == 4


def test_patches_are_drawn_evenly() -> None:
    count = 600
    black = patches(drop_patches(images(1, 8).expand(count, -1, -1, -1), torch.arange(count), 5, grid=4), 4).sum(2) == 0
    share = black.float().mean(0)
    assert (share - 0.5).abs().max() < 4 * (0.25 / count) ** 0.5


@pytest.mark.parametrize("grid", [2, 4, 7, 14])
def test_shuffled_tiles_are_the_same_tiles_in_another_order(grid: int) -> None:
    before, after = (patches(p, grid) for p in (images(), shuffle_tiles(images(), torch.arange(4), grid)))
    for one, other in zip(before.tolist(), after.tolist(), strict=True):
        assert sorted(one) == sorted(other)
        assert one != other or grid == 2


def test_every_image_is_shuffled_in_its_own_order_whatever_the_batch() -> None:
    same = images(1).expand(3, -1, -1, -1)
    together = shuffle_tiles(same, torch.tensor([3, 4, 3]), 7)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(together[:1], shuffle_tiles(same[:1], torch.tensor([3]), 7))


def test_the_draws_are_the_same_on_every_machine() -> None:
    dropped = patches(drop_patches(images(1, 8), torch.tensor([0]), 5, grid=4), 4)[0].sum(1) == 0
    assert torch.nonzero(dropped).flatten().tolist() == [0, 1, 5, 6, 9, 12, 13, 15]
    numbered = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2).contiguous()
    shuffled = [shuffle_tiles(numbered, torch.tensor([place]), 2)[0, 0].flatten().tolist() for place in range(3)]
    assert shuffled == [[0, 1, 3, 2], [2, 1, 0, 3], [1, 0, 2, 3]]


def test_the_input_is_left_as_it_was() -> None:
    pixels = images()
    drop_patches(pixels, torch.arange(4), 5)
    shuffle_tiles(pixels, torch.arange(4), 4)
    assert torch.equal(pixels, images())


def test_a_side_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"48 x 48 pixels cannot be divided into 14 x 14 .* 2, 3, 4, 6, 8, 12, 16, 24"):
        drop_patches(images(1, 48), torch.tensor([0]), 5)
    with pytest.raises(UserError, match="cannot be divided into 5 x 5"):
        shuffle_tiles(images(), torch.arange(4), 5)


def test_the_cells_of_an_occluded_set_are_named_by_what_is_done() -> None:
    made = occlusions(RobustnessDatasetRecipe(kind="occlusion", drops=[0, 9], drop_grid=4, shuffles=[2]))
    assert list(made) == ["drop 0/10", "drop 9/10", "shuffle 2x2"]
    pixels, index = images(side=8), torch.arange(4)
    assert torch.equal(made["drop 0/10"](pixels, index), pixels)
    assert torch.equal(made["drop 9/10"](pixels, index), drop_patches(pixels, index, 9, grid=4))
    assert torch.equal(made["shuffle 2x2"](pixels, index), shuffle_tiles(pixels, index, 2))
