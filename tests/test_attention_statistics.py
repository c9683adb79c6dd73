"""Statistics and maps of attention are those of closed forms and of plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.attention import attention_maps, attention_statistics, through_blocks
from analysis.uniform import patch_distances, uniform_distance, uniform_entropy

GRID, PATCH, COUNT = 4, 16, 16
DISTANCES = torch.from_numpy(patch_distances(GRID, PATCH))


def with_prefix(patches: Tensor, *shares: float) -> Tensor:
    """Attention (1, 1, P + N, P + N) whose patch queries give ``shares`` to the prefix, and the rest as ``patches`` (N, N) says."""
    rest = torch.cat([torch.tensor(shares).expand(COUNT, -1), (1 - sum(shares)) * patches], 1)
    return torch.cat([torch.eye(len(shares), COUNT + len(shares)), rest])[None, None]


def statistics(attention: Tensor, prefix: int, **named: Any) -> list[float]:
    """The five quantities of one image and head."""
    return attention_statistics(attention, prefix, DISTANCES, **named)[0, 0].tolist()


UNIFORM = torch.full((COUNT, COUNT), 1 / COUNT)


def test_uniform_attention_has_the_grids_distance_and_no_information() -> None:
    expected = [uniform_distance(GRID, PATCH), uniform_entropy(GRID), 0, 0, 1 / COUNT]
    assert statistics(with_prefix(UNIFORM), 0) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_attention_to_prefix_tokens_changes_the_shares_alone() -> None:
    expected = [uniform_distance(GRID, PATCH), uniform_entropy(GRID), 0]
    attention = with_prefix(UNIFORM, 0.25, 0.5)
    assert statistics(attention, 2) == pytest.approx([*expected, 0.25, 0.25 / COUNT], abs=1e-6, rel=1e-6)
    assert statistics(attention, 2, class_token=False) == pytest.approx(
        [*expected, 0, 0.25 / COUNT], abs=1e-6, rel=1e-6
    )
    # Attention that leaves nothing for patches is taken as uniform, not as no number.
    assert statistics(with_prefix(UNIFORM, 1.0), 1) == pytest.approx([*expected, 1, 0], abs=1e-5, rel=1e-6)


def test_attention_to_itself_has_no_distance_and_all_information() -> None:
    assert statistics(with_prefix(torch.eye(COUNT), 0.5), 1) == pytest.approx([0, 0, 1, 0.5, 0.5], abs=1e-6, rel=1e-6)


def test_attention_to_the_neighbour_has_one_patch_side_for_distance() -> None:
    right = torch.arange(COUNT) + (torch.arange(COUNT) % GRID < GRID - 1)  # those of the last column look at themselves
    below = (torch.arange(COUNT) + GRID).clamp(max=COUNT - 1)
    assert statistics(with_prefix(torch.eye(COUNT)[right]), 0)[0] == pytest.approx(PATCH * (GRID - 1) / GRID)
    moved = with_prefix(torch.eye(COUNT)[below])
    assert statistics(moved, 0)[0] == pytest.approx((PATCH * 12 + PATCH * (3 + 2 + 1)) / COUNT)


def test_nmi_of_a_permutation_is_one_and_of_one_key_for_all_zero() -> None:
    drawn = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    assert statistics(with_prefix(torch.eye(COUNT)[drawn], 0.5), 1)[1:3] == pytest.approx([0, 1], abs=1e-6, rel=1e-6)
    for key in range(COUNT):
        one = torch.zeros(COUNT, COUNT)
        one[:, key] = 1
        assert statistics(with_prefix(one, 0.5), 1)[1:3] == pytest.approx([0, 0], abs=1e-6, rel=1e-6)


def test_nmi_stays_within_its_bounds_where_rounding_is_all_there_is() -> None:
    draw = torch.Generator().manual_seed(0)
    strengths = torch.linspace(0, 40, 81).repeat_interleave(6)[:, None, None]
    scores = torch.randn(len(strengths), 196, 196, generator=draw) * torch.rand(len(strengths), 1, 1, generator=draw)
    for looked_at in (torch.zeros(196, 196).index_fill(1, torch.tensor([9]), 1), torch.eye(196)):
        attention = (scores + strengths * looked_at).softmax(-1)
        nmi = attention_statistics(attention[None], 0, torch.from_numpy(patch_distances(14, 16)))[0, :, 2]
        assert ((nmi >= 0) & (nmi < 1 + 1e-6)).all()
    one_patch = attention_statistics(torch.ones(1, 1, 1, 1), 0, torch.zeros(1, 1))
    assert one_patch[0, 0].tolist() == [0, 0, 0, 0, 1]
    same = torch.full((1, 1, 196, 196), 1 / 196)
    assert attention_statistics(same, 0, torch.from_numpy(patch_distances(14, 16)))[0, 0, 2] == pytest.approx(
        0, abs=1e-5
    )


def test_nmi_is_that_of_a_drawn_joint_distribution() -> None:
    attention = (2 * torch.randn(COUNT, COUNT, generator=torch.Generator().manual_seed(3))).softmax(-1)
    joint = attention.double().numpy() / COUNT
    key = joint.sum(0)
    information = (joint * np.log(joint / (key / COUNT))).sum()
    expected = information / math.sqrt(math.log(COUNT) * -(key * np.log(key)).sum())
    assert 0.1 < expected < 0.9
    assert statistics(with_prefix(attention), 0)[2] == pytest.approx(expected, abs=1e-6, rel=1e-6)


def plain_statistics(attention: NDArray[np.float64], side: int, patch: int) -> list[float]:
    """The five quantities of one image and head with a class token, query after query."""
    count = side**2
    distance, entropy, to_class, to_itself, marginal = 0.0, 0.0, 0.0, 0.0, np.zeros(count)
    for query in range(count):
        row = attention[1 + query, 1:] / attention[1 + query, 1:].sum()
        far = [math.hypot(key // side - query // side, key % side - query % side) * patch for key in range(count)]
        distance += float(np.dot(row, far)) / count
        entropy -= float(np.dot(row, np.log(row))) / count
        marginal += row / count
        to_class += attention[1 + query, 0] / count
        to_itself += attention[1 + query, 1 + query] / count
    of_keys = -float(np.dot(marginal, np.log(marginal)))
    return [distance, entropy, (of_keys - entropy) / math.sqrt(math.log(count) * of_keys), to_class, to_itself]


def test_statistics_of_a_vit_base_are_those_of_plain_loops() -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("vit_base_patch16_224", depth=2, num_classes=0).eval()
    products: list[Tensor] = []
    for block in encoder.blocks:
        block.attn.qkv.weight.data *= 5  # away from uniform
        block.attn.qkv.register_forward_hook(lambda _, __, output: products.append(output))
    distances = torch.from_numpy(patch_distances(14, 16))
    read = through_blocks(encoder, torch.randn(4, 3, 224, 224), lambda of: attention_statistics(of, 1, distances))
    for found, qkv in zip(read.attention, products, strict=True):
        assert found.shape == (4, 12, 5)
        assert found.dtype == torch.float32
        values = qkv.double().numpy()
        for image in range(4):
            for head in range(12):
                query, key = (values[image, :, part * 768 + head * 64 :][:, :64] for part in (0, 1))
                scores = np.exp(query @ key.T / math.sqrt(64))
                expected = plain_statistics(scores / scores.sum(1, keepdims=True), 14, 16)
                np.testing.assert_allclose(found[image, head], expected, rtol=1e-4, atol=1e-5)
    assert read.attention[1][..., 2].mean() > 0.01


def test_maps_are_those_of_the_class_token_and_of_the_marked_patch() -> None:
    attention = torch.rand(2, 3, 2 + COUNT, 2 + COUNT, generator=torch.Generator().manual_seed(0))
    for token in (True, False):
        maps = attention_maps(attention, 2, 5, class_token=token).double().numpy()
        heads = attention.double().numpy().mean(1)
        first = heads[:, 0, 2:] if token else heads[:, 2:, 2:].mean(1)
        for found, expected in zip(maps.swapaxes(0, 1), (first, heads[:, 7, 2:]), strict=True):
            expected = expected / expected.sum(1, keepdims=True)
            np.testing.assert_allclose(found, expected.reshape(2, GRID, GRID), rtol=1e-5)
    without = attention_maps(attention[:, :, 2:, 2:], 0, 5)[:, 0]
    torch.testing.assert_close(without, attention_maps(attention, 2, 5, class_token=False)[:, 0])
