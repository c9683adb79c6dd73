"""Accumulated spectra are those of the whole matrix, and their intervals hold what the features were drawn from."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from toy_runs import in_processes

from analysis.block_outcomes import BlockOutcomes
from analysis.spectrum import (
    GROUPS,
    RESAMPLES,
    Covariances,
    check_enough,
    groups_of,
    resampled_statistics,
    token_rank,
)
from lutbench.errors import UserError
from lutbench.evaluate.ranks import PowerLawRange, effective_rank, statistics
from lutbench.train.processes import accelerator

CPU = torch.device("cpu")


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def accumulated(features: Tensor, group: NDArray[np.int64], batch: int = 64) -> Covariances:
    """The covariances of features (n, ..., D), group by group."""
    covariances = Covariances(features.shape[-1], int(group.max()) + 1, CPU)
    order = torch.from_numpy(np.argsort(group, kind="stable"))
    for some in order.split(batch):
        covariances.add(features[some], torch.from_numpy(group)[some])
    return covariances


def of_whole(features: Tensor) -> NDArray[np.float64]:
    """Singular values of the whole centred matrix."""
    rows = features.double().flatten(0, -2)
    return np.asarray(torch.linalg.svdvals(rows - rows.mean(0)).numpy())


@pytest.mark.parametrize("mean", [0.0, 1000.0, -1e6])
@pytest.mark.parametrize("shape", [(200, 24), (20, 24), (50, 9, 24)])
def test_singular_values_are_those_of_the_whole_centred_matrix(shape: tuple[int, ...], mean: float) -> None:
    features = drawn(0, *shape) * torch.arange(1, 25) ** -1.0 + mean
    wanted = of_whole(features)
    found = accumulated(features, groups_of(shape[0]), 17).singular_values()
    missing = 24 - len(wanted)
    assert found == pytest.approx(np.r_[wanted, np.zeros(missing)], abs=1e-6 * wanted[0])


def test_groups_add_up_and_each_has_its_own_images() -> None:
    features, group = drawn(1, 90, 5, 6), np.arange(90) % 3
    covariances = accumulated(features, group)
    one = accumulated(features, np.zeros(90, np.int64))
    assert covariances.singular_values() == pytest.approx(one.singular_values(), rel=1e-12)
    by_group = covariances.resampled(np.eye(3))
    for number in range(3):
        assert by_group[number] == pytest.approx(of_whole(features[group == number]), rel=1e-9)
    twice = covariances.resampled(np.array([[2.0, 0, 1]]))[0]
    assert twice == pytest.approx(of_whole(torch.cat([features[group != 1], features[group == 0]])), rel=1e-9)


def test_images_of_no_group_are_left_out() -> None:
    features, group = drawn(2, 40, 3, 6), torch.arange(40) % 5 - 1
    covariances = Covariances(6, 4, CPU)
    covariances.add(features.float(), group)
    assert covariances.count.tolist() == [24.0] * 4
    assert covariances.singular_values() == pytest.approx(of_whole(features.float()[group >= 0]), rel=1e-9)


def test_two_processes_find_what_one_does() -> None:
    features = drawn(3, 97, 4, 12) * 0.01 + torch.arange(12) * 50
    group = groups_of(97)

    def share(own: slice | NDArray[np.int64]) -> tuple[Any, ...]:
        covariances = Covariances(12, GROUPS, CPU)
        covariances.add(features[own], torch.from_numpy(group[own]))
        gathered = covariances.gather()
        return gathered.singular_values().tolist(), resampled_statistics(gathered, PowerLawRange(2, 6)).tolist()

    alone = in_processes(lambda: share(slice(None)))[0]
    both = in_processes(lambda: share(slice(accelerator().process_index, None, 2)), 2)
    none = in_processes(lambda: share(np.arange(97 * (1 - accelerator().process_index))), 2)
    assert alone[0] == pytest.approx(of_whole(features), rel=1e-9)
    for found in (*both, *none):
        assert found[0] == pytest.approx(alone[0], rel=1e-12)
        for row, wanted in zip(found[1], alone[1], strict=True):
            assert row == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("images", [1, 5, 32, 1000])
def test_groups_are_equal_parts_drawn_by_the_number_of_images_alone(images: int) -> None:
    groups = groups_of(images)
    assert np.array_equal(groups, groups_of(images))
    sizes = np.bincount(groups)
    assert len(sizes) == min(GROUPS, images)
    assert sizes.max() - sizes.min() <= 1


def test_images_side_by_side_are_spread_over_the_groups() -> None:
    of_one_class = groups_of(1000)[200:300]
    assert len(np.unique(of_one_class)) > 25
    assert not np.array_equal(of_one_class, np.arange(200, 300) % GROUPS), "nor do classes recur in step with groups"


FITTED = PowerLawRange(2, 8)


def intervals(features: Tensor, fitted: PowerLawRange = FITTED) -> dict[str, tuple[float, float]]:
    """Intervals of the statistics, as a record has them."""
    covariances = accumulated(features, groups_of(len(features)), 1000)
    spectrum = covariances.singular_values()[None]
    drawings = resampled_statistics(covariances, fitted)
    assert drawings.shape == (4, RESAMPLES)
    measured = {"spectrum_pooled": spectrum, "spectrum_tokens": spectrum, "resampled": np.stack([drawings, drawings])}
    outcomes = BlockOutcomes("0" * 64, len(features), 2, 16, fitted, measured)
    found = {one.metric: one for one in outcomes.measurements()}
    ends = {name: found[f"{name}, pooled"] for name in statistics(fitted)}
    return {name: (float(one.low or 0), float(one.high or 0)) for name, one in ends.items()}


def covered(features: list[Tensor], spectrum: NDArray[np.float64]) -> dict[str, float]:
    """In what share of drawings the interval holds the statistic of the spectrum that was drawn from."""
    true = {name: float(statistic(spectrum)) for name, statistic in statistics(FITTED).items()}
    hits = [
        [low <= true[name] <= high for name, (low, high) in found.items()] for found in (intervals(x) for x in features)
    ]
    return dict(zip(true, np.mean(hits, 0).tolist(), strict=True))


def test_intervals_hold_the_ranks_of_correlated_features_in_95_of_100_drawings() -> None:
    """In 1000 drawings of each of three power laws they held 93 to 96 % of both ranks and 91 to 93 % of alpha."""
    spectrum = np.arange(1, 17) ** -0.5
    rotation = torch.linalg.qr(drawn(4, 16, 16)).Q
    shares = covered([drawn(100 + k, 2000, 16) * torch.from_numpy(spectrum) @ rotation for k in range(120)], spectrum)
    for name in ("effective rank", "participation ratio", "alpha"):
        assert 0.90 <= shares[name] <= 0.98, (name, shares)


def test_tokens_of_an_image_may_be_alike() -> None:
    """Half of a token's variance is its image's: were tokens resampled one by one, intervals would be too narrow by half."""
    spectrum = np.arange(1, 17) ** -0.5
    tokens = [(drawn(k, 400, 1, 16) + drawn(1000 + k, 400, 9, 16)) * torch.from_numpy(spectrum) for k in range(100)]
    shares = covered(tokens, spectrum)
    for name in ("effective rank", "participation ratio", "alpha"):
        assert 0.88 <= shares[name] <= 0.99, (name, shares)


@pytest.mark.parametrize(("rank", "width"), [(4, 16), (10, 16), (10, 64), (16, 16)])
def test_white_noise_of_a_rank_has_it_within_its_interval_though_the_value_is_lower(rank: int, width: int) -> None:
    for seed in range(5):
        features = drawn(seed, 1000, rank) @ torch.linalg.qr(drawn(50 + seed, width, width)).Q[:rank]
        value = float(effective_rank(of_whole(features)))
        low, high = intervals(features)["effective rank"]
        assert value < rank
        assert low <= rank <= high
        assert high - low < 0.05 * rank


def test_a_drawn_power_law_has_its_exponent_within_its_interval() -> None:
    for alpha in (0.7, 1.0, 2.0):
        features = drawn(7, 4000, 48) * torch.arange(1, 49) ** (-alpha / 2)
        low, high = intervals(features, PowerLawRange(3, 24))["alpha"]
        assert low <= alpha <= high
        assert high - low < 0.15


def test_the_same_images_are_resampled_for_every_encoder() -> None:
    features = drawn(8, 300, 16)
    of_one = resampled_statistics(accumulated(features, groups_of(300)), FITTED)
    of_rotated = resampled_statistics(
        accumulated(features @ torch.linalg.qr(drawn(9, 16, 16)).Q, groups_of(300)), FITTED
    )
    assert of_one == pytest.approx(of_rotated, rel=1e-9)
    assert of_one.std(1).min() > 0


@pytest.mark.parametrize("shape", [(3, 20, 48), (3, 48, 20)])
def test_the_token_rank_is_the_participation_ratio_of_an_images_tokens(shape: tuple[int, int, int]) -> None:
    tokens = drawn(10, *shape) * torch.arange(1, shape[2] + 1) ** -0.7 + 30
    for scale in (1.0, 1e-15, 1e12):
        for found, image in zip(token_rank((scale * tokens).float()), tokens, strict=True):
            variance = torch.linalg.svdvals(image - image.mean(0)) ** 2
            assert float(found) == pytest.approx(float(variance.sum() ** 2 / (variance**2).sum()), rel=1e-4)


def test_the_token_rank_is_float32_whatever_the_networks_precision() -> None:
    tokens = drawn(11, 4, 30, 16).float()
    wanted = token_rank(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_rank(tokens), wanted)
        assert token_rank(tokens.bfloat16()).dtype is torch.float32


def test_equal_tokens_have_no_direction_and_two_kinds_of_tokens_one() -> None:
    assert token_rank(torch.full((1, 9, 4), 0.3)).tolist() == [0.0]
    tokens = torch.zeros(1, 9, 4)
    tokens[:, :4, 2] = 5
    assert token_rank(tokens).tolist() == pytest.approx([1.0])


def test_features_without_a_spectrum_are_refused() -> None:
    group = np.zeros(50, np.int64)
    with pytest.raises(UserError, match="equal for all images"):
        accumulated(torch.full((50, 8), 0.3), group).singular_values()
    features = drawn(12, 50, 8)
    features[7, 3] = math.nan
    with pytest.raises(UserError, match="not finite"):
        accumulated(features, group).singular_values()


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    fitted = PowerLawRange.of(10, 0.5, 768)
    check_enough(769, 768, fitted)
    with pytest.raises(UserError, match=r"width 768 needs at least 769 images, found 768"):
        check_enough(768, 768, fitted)
    with pytest.raises(UserError, match=r"at least 1,537 images"):
        check_enough(1536, 768, PowerLawRange.of(10, 1.0, 768))


@pytest.mark.parametrize(("width", "left"), [(22, 2), (16, 0)])
def test_an_encoder_too_narrow_for_the_fitted_ranks_is_refused(width: int, left: int) -> None:
    check_enough(1000, 24, PowerLawRange.of(10, 0.5, 24))
    with pytest.raises(UserError, match=rf"at least 3 ranks.* leave {left}, from 10 to {width // 2}. Lower alpha_from"):
        check_enough(1000, width, PowerLawRange.of(10, 0.5, width))
