"""Intervals and tests are the textbook's, and hold what they promise."""

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from lutbench.evaluate.statistics import (
    RESAMPLES,
    Interval,
    Z,
    bootstrap,
    compare_resampled,
    over_seeds,
    paired,
    paired_difference,
    percentiles,
    resampled,
    resamples,
    student,
    wilson,
)

Outcomes = NDArray[np.bool_]
"""(seeds, images)"""


def cells(both: int, first_only: int, second_only: int, neither: int) -> tuple[Outcomes, Outcomes]:
    """Two classifiers, one seed, with so many images in each cell of the fourfold table."""
    first = np.repeat([True, True, False, False], [both, first_only, second_only, neither])
    second = np.repeat([True, False, True, False], [both, first_only, second_only, neither])
    return first[None], second[None]


# --- Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_printed_by_newcombe(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 340), (340, 340), (170, 340), (41_733, 50_000)])
def test_wilson_ends_are_the_shares_that_lie_95_percent_away(successes: int, n: int) -> None:
    """The definition: an end is a true share whose own standard error puts the observed one Z errors away."""
    for end in wilson(successes, n):
        observed = successes / n
        assert abs(observed - end) == pytest.approx(Z * sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize("n", [1, 10, 1683])
def test_wilson_of_none_and_of_all_is_not_a_point_and_stays_in_0_to_1(n: int) -> None:
    none, every = wilson(0, n), wilson(n, n)
    assert none.low == 0
    assert 0 < none.high < 1
    assert every.high == 1
    assert (every.low, every.high) == pytest.approx((1 - none.high, 1 - none.low))


# --- Student's t over seeds


def test_over_seeds_is_as_in_the_t_table() -> None:
    # mean 2, standard deviation 1, t(0.975; 2) = 4.3027
    assert over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / sqrt(3), 2 + 4.3027 / sqrt(3)), abs=1e-4)
    # two seeds: t(0.975; 1) = 12.706, standard error half the distance
    assert over_seeds([80.0, 81.0]) == pytest.approx((80.5 - 12.706 / 2, 80.5 + 12.706 / 2), abs=1e-3)


def test_over_seeds_is_that_of_a_one_sample_t_test() -> None:
    values = [83.63, 83.66, 83.52, 83.46]
    told = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_seeds(values) == pytest.approx((told.low, told.high))


def test_over_seeds_holds_the_mean_in_95_of_100_experiments() -> None:
    experiments = np.random.default_rng(0).normal(80, 0.5, (2000, 3))
    held = np.mean([low <= 80 <= high for low, high in map(over_seeds, experiments.tolist())])
    assert held == pytest.approx(0.95, abs=0.015)  # 3 standard errors


@pytest.mark.parametrize("values", [[], [81.2]])
def test_one_seed_says_nothing_of_other_seeds(values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least 2 seeds, found {len(values)}"):
        over_seeds(values)


# --- Two classifiers on the same images


def test_without_a_discordant_image_there_is_no_evidence_of_a_difference_and_still_an_interval() -> None:
    told = paired(*cells(30, 0, 0, 10))
    assert (told.difference, told.first_only, told.second_only, told.p) == (0, 0, 0, 1)
    assert told.interval.low == pytest.approx(-told.interval.high)
    assert 0 < told.interval.high < 0.1


def test_the_interval_of_a_difference_is_the_normal_one_after_an_image_more_on_either_side() -> None:
    """Bonett and Price 2012, Statistics in Medicine 31: from the fourfold table, as they write it."""
    told = paired(*cells(794, 150, 86, 570))
    n, p12, p21 = 1602, 151 / 1602, 87 / 1602
    error = sqrt(((p12 + p21) - (p12 - p21) ** 2) / n)
    assert told.interval == pytest.approx((p12 - p21 - Z * error, p12 - p21 + Z * error))
    assert told.difference == pytest.approx(64 / 1600)
    assert (told.images, told.first_only, told.second_only) == (1600, 150, 86)
    assert told.p == pytest.approx(2 * stats.norm.sf((p12 - p21) / error))
    # The exact McNemar test of these counts has 3.7e-05 (Agresti 1990, page 350, R's exact2x2)
    assert told.p == pytest.approx(3.716e-05, rel=0.5)


@pytest.mark.parametrize("images", [20, 57, 400, 1683])
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_out_0(images: int) -> None:
    seen = set()
    for first_only in range(0, min(images, 60) + 1):
        for second_only in range(0, min(images - first_only, 60) + 1):
            told = paired(*cells(images - first_only - second_only, first_only, second_only, 0))
            outside = told.interval.low > 0 or told.interval.high < 0
            assert (told.p < 0.05) == outside, (first_only, second_only, told)
            seen.add(outside)
    assert seen == {True, False}


def test_p_and_interval_agree_with_several_seeds_too() -> None:
    generator = np.random.default_rng(5)
    seen = set()
    for _ in range(400):
        hard = generator.uniform(0, 1, 120)
        first, second = (generator.random((3, 120)) < chance for chance in (hard, hard ** generator.uniform(1, 1.6)))
        told = paired(first, second)
        assert (told.p < 0.05) == (told.interval.low > 0 or told.interval.high < 0)
        seen.add(told.p < 0.05)
    assert seen == {True, False}


@pytest.mark.parametrize(("n", "share"), [(30, 0.1), (30, 0.5), (100, 0.02), (100, 0.2), (400, 0.05)])
def test_of_classifiers_that_are_alike_at_most_5_of_100_pairs_have_a_p_below_5_percent(n: int, share: float) -> None:
    """Every way to be discordant, with its probability; ``share`` of the images are, on either side alike."""
    wrong = sum(
        stats.binom.pmf(discordant, n, share) * stats.binom.pmf(first_only, discordant, 0.5)
        for discordant in range(n + 1)
        if stats.binom.pmf(discordant, n, share) > 1e-9
        for first_only in range(discordant + 1)
        if paired_difference(np.repeat([1.0, -1.0, 0.0], [first_only, discordant - first_only, n - discordant]))[1]
        < 0.05
    )
    assert wrong < 0.0505


@pytest.mark.parametrize("discordant", [(0.10, 0.05), (0.02, 0.02), (0.30, 0.01)])
def test_the_interval_of_a_difference_holds_it_in_95_of_100_test_sets(discordant: tuple[float, float]) -> None:
    share, rest = [0.6, *discordant], 0.4 - sum(discordant)
    tables = np.random.default_rng(1).multinomial(200, [*share, rest], 1000)
    told = [paired(*cells(*table)).interval for table in tables.tolist()]
    held = np.mean([low <= discordant[0] - discordant[1] <= high for low, high in told])
    assert 0.93 < held < 0.985


def test_the_interval_over_images_holds_the_difference_also_with_several_seeds() -> None:
    """Images differ in how hard they are for either method; other test images of the same kind are drawn each time."""
    generator = np.random.default_rng(2)
    held = []
    for _ in range(500):
        hard = generator.uniform(0, 1, 200)  # 0.5 on average, and cubed a quarter
        first, second = (generator.random((3, 200)) < chance for chance in (hard, hard**3))
        low, high = paired(first, second).interval
        held.append(low <= 0.25 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


# --- Several seeds


def test_seeds_that_agree_are_no_more_evidence_than_one() -> None:
    first, second = cells(60, 14, 4, 22)
    one, three = paired(first, second), paired(first.repeat(3, 0), second.repeat(3, 0))
    assert (three.images, three.first_only, three.second_only) == (100, 14, 4)
    assert three.p == pytest.approx(one.p)
    assert three.difference == pytest.approx(0.1)
    assert three.interval == pytest.approx(one.interval)
    assert three.seed_differences == pytest.approx((0.1, 0.1, 0.1))
    assert one.seed_interval is None
    assert three.seed_interval is None, "no spread, as of weights that no seed has made, is no certainty"


def test_an_image_counts_for_the_method_that_is_right_on_it_in_more_seeds() -> None:
    first = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=bool)
    second = np.array([[0, 0, 1, 0, 1], [0, 1, 0, 0, 1], [1, 0, 0, 1, 1]], dtype=bool)
    told = paired(first, second)  # images: 2 against 1, level, level, 3 against 1, 0 against 3
    assert (told.first_only, told.second_only) == (2, 1)
    assert told.difference == pytest.approx(-1 / 15)
    assert told.seed_differences == pytest.approx((1 / 5, 0, -2 / 5))
    assert told.seed_interval == pytest.approx(over_seeds([1 / 5, 0, -2 / 5]))


def test_the_interval_with_seeds_is_that_of_images_and_two_more() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random((2, 3, 50)) < np.array([0.7, 0.5])[:, None, None]
    values = [*(first.astype(float) - second).mean(0), 1, -1]
    mean, half = np.mean(values), Z * np.std(values) / sqrt(52)
    assert paired(first, second).interval == pytest.approx((mean - half, mean + half))


def test_exchanging_the_methods_turns_the_difference_around() -> None:
    first, second = cells(10, 7, 2, 1)
    one, other = paired(first, second), paired(second, first)
    assert one.difference == 0.25
    assert other.difference == -0.25
    assert other.interval == pytest.approx(Interval(-one.interval.high, -one.interval.low))
    assert other.p == one.p


@pytest.mark.parametrize(("first", "second"), [((1, 5), (1, 4)), ((2, 5), (1, 5)), ((5,), (5,)), ((1, 0), (1, 0))])
def test_outcomes_that_cannot_be_paired_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two equal shapes"):
        paired(np.zeros(first, bool), np.zeros(second, bool))


# --- Bootstrap over images


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sums (b, 2): (b,). No mean over images, like IoU; of a value and ones, the mean."""
    return sums[:, 0] / sums[:, 1]


def with_ones(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., images) to (..., images, 2)."""
    return np.stack([values, np.ones_like(values)], -1)


@pytest.mark.parametrize("n", [1, 7, 1000, 3000])
def test_every_resample_has_as_many_images_as_there_are(n: int) -> None:
    weights = np.concatenate(list(resamples(n)))
    assert weights.shape == (RESAMPLES, n)
    assert (weights.sum(1) == n).all()
    if n > 1:
        assert weights.mean(0) == pytest.approx(1, abs=6 / RESAMPLES**0.5)
        assert weights.var() == pytest.approx(1 - 1 / n, abs=0.05), "drawn with replacement"


def test_resamples_are_the_same_on_every_machine_and_at_every_call() -> None:
    """The first draws of NumPy's PCG64, seeded by 0, as they are and always will be: records are checked by them."""
    first, again = next(resamples(10)), next(resamples(10))
    assert first[0].tolist() == [0, 3, 0, 2, 2, 0, 0, 3, 0, 0]
    np.testing.assert_array_equal(first, again)


def test_the_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = np.random.default_rng(4).exponential(2, 500)
    drawn = bootstrap(with_ones(values), ratio)
    assert drawn.shape == (RESAMPLES,)
    assert drawn.std() == pytest.approx(values.std() / sqrt(500), rel=0.05)
    low, high = percentiles(drawn)
    assert (low, high) == pytest.approx(
        (values.mean() - Z * values.std() / sqrt(500), values.mean() + Z * values.std() / sqrt(500)), abs=0.03
    )


def test_percentiles_pass_over_resamples_in_which_there_is_no_number() -> None:
    drawn = np.array([[1.0, np.nan, np.nan]] * 4 + [[2.0, 5.0, np.nan]] * 97)
    ends = percentiles(drawn)
    assert ends[:, 0] == pytest.approx([1, 2])
    assert ends[:, 1] == pytest.approx([5, 5])
    assert np.isnan(ends[:, 2]).all()


# --- Two methods on the same resamples


def test_the_interval_of_a_paired_difference_is_that_of_the_per_image_differences() -> None:
    generator = np.random.default_rng(5)
    first = generator.normal(0, 5, 300)
    second = first + generator.normal(0.2, 1, 300)  # images differ far more than methods
    told = resampled(with_ones(first[None]), with_ones(second[None]), ratio)
    differences = first - second
    half = Z * differences.std() / sqrt(300)
    assert told.difference == pytest.approx(differences.mean())
    assert told.interval == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.012)
    assert (told.images, told.seed_interval) == (300, None)
    assert told.p == pytest.approx(
        2 * stats.norm.sf(abs(differences.mean()) * sqrt(300) / differences.std()), abs=0.005
    )


def test_the_interval_of_a_ratios_difference_holds_it_in_95_of_100_test_sets() -> None:
    """Two methods that hit 60 and 50 % of objects whose sizes differ; other images are drawn each time."""
    generator, held, significant = np.random.default_rng(6), [], []
    for _ in range(200):
        size = generator.exponential(1, 100)
        chance = generator.beta(2, 2, 100)
        hits = [size * (chance + generator.normal(lift, 0.1, 100)) for lift in (0.1, 0.1, 0.0)]
        first, same, second = (np.stack([hit, size], -1)[None] for hit in hits)
        low, high = resampled(first, second, ratio).interval
        held.append(low <= 0.1 <= high)
        significant.append(resampled(first, same, ratio).p < 0.05)
    assert np.mean(held) == pytest.approx(0.95, abs=0.045)  # 3 standard errors
    assert np.mean(significant) == pytest.approx(0.05, abs=0.045)


def test_equal_methods_do_not_differ_and_clear_ones_do() -> None:
    values = with_ones(np.random.default_rng(7).normal(1, 1, (1, 50)))
    level = resampled(values, values, ratio)
    assert (level.difference, level.interval, level.p) == (0, (0, 0), 1)
    apart = resampled(values + np.array([9, 0]), values, ratio)
    assert apart.p == 2 / (RESAMPLES + 1)
    assert apart.interval == pytest.approx((9, 9))


def test_seeds_that_agree_are_no_more_evidence_to_the_bootstrap_either() -> None:
    generator = np.random.default_rng(8)
    first, second = (with_ones(generator.normal(mean, 1, (1, 80))) for mean in (1.1, 1))
    one, three = resampled(first, second, ratio), resampled(first.repeat(3, 0), second.repeat(3, 0), ratio)
    assert three.interval == pytest.approx(one.interval)
    assert three.p == one.p
    assert three.seed_differences == pytest.approx((one.difference,) * 3)


def test_seeds_that_differ_are_averaged_in_every_resample() -> None:
    generator = np.random.default_rng(9)
    first, second = (generator.normal(mean, 1, (3, 200)) for mean in (1.3, 1))
    told = resampled(with_ones(first), with_ones(second), ratio)
    averaged = resampled(with_ones(first.mean(0)[None]), with_ones(second.mean(0)[None]), ratio)
    assert told.difference == pytest.approx(averaged.difference)
    assert told.interval == pytest.approx(averaged.interval)
    assert told.seed_differences == pytest.approx(tuple(first.mean(1) - second.mean(1)))
    assert told.seed_interval == pytest.approx(over_seeds(told.seed_differences))


def test_exchanging_the_methods_turns_the_resampled_difference_around() -> None:
    generator = np.random.default_rng(10)
    first, second = (with_ones(generator.normal(mean, 1, (1, 60))) for mean in (1.2, 1))
    one, other = resampled(first, second, ratio), resampled(second, first, ratio)
    assert other.interval == pytest.approx(Interval(-one.interval.high, -one.interval.low))
    assert (other.difference, other.p) == (-one.difference, one.p)


@pytest.mark.parametrize(("first", "second"), [((1, 5, 2), (1, 4, 2)), ((2, 5, 2), (1, 5, 2)), ((5,), (5,))])
def test_counts_that_cannot_be_paired_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two equal shapes"):
        resampled(np.zeros(first), np.zeros(second), ratio)


def test_intervals_have_the_bits_of_scipys_statistics() -> None:
    for n in (1, 2, 3, 7, 19, 100, 999, 50_000, 1_281_167):
        for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
            expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
            assert wilson(successes, n) == (float(expected.low), float(expected.high)), (successes, n)
    assert float(special.ndtri(0.975)) == Z
    for freedom in (1, 2, 4, 9, 99):
        assert student(freedom) == float(stats.t.ppf(0.975, freedom))


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_what_is_no_share_has_no_interval(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson(successes, n)


def test_a_difference_that_is_only_rounding_is_on_no_side() -> None:
    drawn = np.repeat([0.01, 0.0, -0.01], [1500, 400, 100])
    for rounding in (1e-17, -1e-17):
        noisy = np.where(drawn == 0, rounding, drawn)
        assert compare_resampled(10, [0.005], noisy) == compare_resampled(10, [0.005], drawn)
