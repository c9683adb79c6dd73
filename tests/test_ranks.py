"""Ranks of known spectra have their known values."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lutbench.evaluate.ranks import (
    PowerLawRange,
    components,
    effective_rank,
    participation_ratio,
    power_law,
    statistics,
)


def of_rank(rank: int, width: int = 64) -> NDArray[np.float64]:
    """Singular values of white noise: ``rank`` equal ones, the others 0."""
    return np.where(np.arange(width) < rank, 3.0, 0.0)


def of_power(alpha: float, width: int = 64) -> NDArray[np.float64]:
    """Singular values whose squares fall as i^-alpha."""
    return np.arange(1, width + 1.0) ** (-alpha / 2)


@pytest.mark.parametrize("rank", [1, 2, 17, 64])
def test_of_equal_singular_values_all_ranks_are_their_number(rank: int) -> None:
    assert effective_rank(of_rank(rank)) == pytest.approx(rank)
    assert participation_ratio(of_rank(rank)) == pytest.approx(rank)


def test_the_effective_rank_is_of_singular_values_and_the_participation_ratio_of_variances() -> None:
    singular = np.array([2.0, 1.0, 1.0])
    assert effective_rank(singular) == pytest.approx(2**1.5), "entropy of 1/2, 1/4, 1/4 is 1.5 bits"
    assert participation_ratio(singular) == pytest.approx(36 / 18)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_a_power_law_has_its_exponent_whatever_ranks_it_is_fitted_to(alpha: float) -> None:
    for first, last in ((1, 64), (10, 32), (4, 7)):
        assert power_law(7 * of_power(alpha), first, last) == pytest.approx(alpha, abs=1e-12)


def test_only_the_fitted_ranks_make_the_exponent() -> None:
    singular = of_power(1.5)
    singular[:9] *= 100
    singular[32:] = 0
    assert power_law(singular, 10, 32) == pytest.approx(1.5)
    assert power_law(singular, 9, 32) > 2


def test_ranks_that_features_do_not_reach_give_a_large_exponent_that_rounding_does_not_change() -> None:
    exact, rounded = of_rank(5), np.where(np.arange(64) < 5, 3.0, 1e-9)
    assert np.isfinite(power_law(exact, 3, 32))
    assert power_law(exact, 3, 32) > 10
    assert power_law(exact, 3, 32) == power_law(rounded, 3, 32)


def test_components_are_the_fewest_with_that_share_of_the_variance() -> None:
    assert components(of_rank(10)) == 9, "nine of ten are 90 %, for all rounding"
    assert components(np.sqrt([89.0, 2, 9])) == 2
    assert components(np.array([5.0, 0, 0])) == 1
    assert components(of_rank(10), 0.5) == 5


def test_every_statistic_takes_the_last_axis_and_does_not_depend_on_scale() -> None:
    spectra = np.stack([[of_power(0.5), of_power(1)], [of_power(2), 10 * of_power(1)]])
    for statistic in statistics(PowerLawRange(2, 32)).values():
        found = statistic(spectra)
        assert found.shape == (2, 2)
        assert found[0, 1] == pytest.approx(found[1, 1])
        assert found[1, 0] == statistic(of_power(2))
        assert found[0, 0] != found[1, 0]


def test_the_range_is_from_a_rank_to_a_share_of_the_width() -> None:
    assert PowerLawRange.of(10, 0.5, 769) == (10, 384)


def test_the_effective_rank_has_the_bits_of_scipys_entropy() -> None:
    singular = -np.sort(-np.random.default_rng(0).gamma(0.3, size=(4, 7, 192)), -1)
    singular[..., 150:] = 0
    assert np.array_equal(effective_rank(singular), np.exp(stats.entropy(singular, axis=-1)))
