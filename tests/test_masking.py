"""Which patches are visible, and the positions that their tokens get."""

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_lut import sincos

from lutbench.errors import UserError
from pretrain.frameworks.vit import sincos_position, take
from pretrain.masking import visible_count, visible_patches


def test_the_views_see_disjoint_patches_in_order_of_noise() -> None:
    noise = torch.rand(5, 196)
    visible = visible_patches(noise, 49)
    for row, first, second in zip(noise, *visible, strict=True):
        assert len(first) == len(second) == 49
        assert not set(first.tolist()) & set(second.tolist())
        assert row[first].max() < row[second].min()
        assert row[second].max() <= row.sort().values[97]
        assert torch.equal(row[first], row[first].sort().values)


def test_mask_units_are_squares_of_patches_and_disjoint() -> None:
    visible = visible_patches(torch.rand(5, 36), 2, unit=2)
    for first, second in zip(*visible, strict=True):
        assert not set(first.tolist()) & set(second.tolist())
        for patches in (first, second):
            units = [(number // 6 // 2, number % 6 // 2) for number in patches.tolist()]
            assert len(units) == 8
            assert [units.count(unit) for unit in set(units)] == [4, 4]


def test_every_unit_is_as_often_visible() -> None:
    torch.manual_seed(0)
    seen = torch.bincount(visible_patches(torch.rand(4000, 16), 1, unit=2).view1.flatten(), minlength=16)
    assert seen.min() > 900
    assert seen.max() < 1100


@pytest.mark.parametrize(
    ("patches", "ratio", "expected"), [(196, 0.75, 49), (16, 0.75, 4), (9, 0.75, 2), (64, 0.5, 32), (196, 0.9, 19)]
)
def test_the_number_of_visible_patches_is_rounded_down(patches: int, ratio: float, expected: int) -> None:
    assert visible_count(patches, ratio, views=2) == expected


def test_a_mask_ratio_that_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="leaves 0 of 4"):
        visible_count(4, 0.9, views=1)
    with pytest.raises(UserError, match="leaves 16 of 16"):
        visible_count(16, 1e-20, views=1)
    with pytest.raises(UserError, match="two views"):
        visible_count(16, 0.4, views=2)
    assert visible_count(16, 0.4, views=1) == 9


def test_take_picks_the_visible_tokens() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    taken = take(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


@pytest.mark.parametrize(("grid", "width"), [(1, 4), (3, 8), (14, 768)])
def test_position_embeddings_follow_the_formula(grid: int, width: int) -> None:
    assert torch.allclose(sincos_position(grid, width), sincos(grid, width).float(), atol=1e-5)


def test_position_embeddings_are_those_of_the_published_model() -> None:
    with np.load(Path(__file__).parent / "fixtures" / "lut_steps.npz") as file:
        assert np.abs(sincos_position(4, 48).numpy() - file["init/pos_embed"]).max() < 1e-6
        assert np.abs(sincos_position(4, 32).numpy() - file["init/decoder_pos_embed"]).max() < 1e-6


def test_a_width_that_rows_and_columns_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="multiples of 4"):
        sincos_position(4, 30)
