"""Minibatch CKA is that of its definition, blind to rotation and scale, and unbiased."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.cka import cka, grams
from lutbench.errors import UserError


def features(seed: int, images: int = 300, blocks: int = 3, width: int = 20) -> NDArray[np.float32]:
    """Features (n, L + 1, D), each block's unrelated to the others', with a mean."""
    return (np.random.default_rng(seed).standard_normal((images, blocks, width)) + 3).astype(np.float32)


def by_definition(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The U-statistic that HSIC_1 is (Song et al. 2012, equation 6's kernel), by all ordered quadruples of images."""
    one, other = first @ first.T, second @ second.T
    terms = [
        one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in permutations(range(len(one)), 4)
    ]
    return float(np.mean(terms))


def dense(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """HSIC_1 as Nguyen et al. print it, with whole matrices."""
    n = len(first)
    one, other = (of @ of.T * (1 - np.eye(n)) for of in (first, second))
    ones = np.ones(n)
    terms = np.trace(one @ other) + (ones @ one @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return float((terms - 2 / (n - 2) * (ones @ one @ other @ ones)) / (n * (n - 3)))


def test_it_is_the_ratio_of_u_statistics() -> None:
    one, other = features(0, images=7, blocks=2, width=4), features(1, images=7, blocks=3, width=6)
    other[:, 0, :4] += one[:, 0]
    found = cka(grams(one), grams(other))
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            x, y = one[:, i].astype(np.float64), other[:, j].astype(np.float64)
            own = by_definition(x, x) * by_definition(y, y)
            if own > 0 and by_definition(x, x) > 0:
                assert found[i, j] == pytest.approx(by_definition(x, y) / own**0.5, abs=1e-5)
            else:
                assert np.isnan(found[i, j])
    assert np.isfinite(found).sum() >= 4


@pytest.mark.parametrize(("images", "minibatch", "count"), [(100, 64, 1), (300, 64, 4), (50, 8, 6), (6, 64, 1)])
def test_it_is_the_ratio_of_means_over_minibatches_of_whole_matrices(images: int, minibatch: int, count: int) -> None:
    one, other = features(2, images), features(3, images, width=30)
    other[:, 1, :20] += 2 * one[:, 2]
    size = images // count
    made = grams(one, minibatch), grams(other, minibatch)
    assert made[0].shape == (3, count, size * (size - 1) // 2)
    assert made[0].dtype == np.float32

    def mean(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
        cut = [of[: size * count].astype(np.float64) for of in (first, second)]
        return float(np.mean([dense(cut[0][k::count], cut[1][k::count]) for k in range(count)]))

    found = cka(*made)
    for i in range(3):
        for j in range(3):
            x, y = one[:, i], other[:, j]
            wanted = mean(x, y) / (mean(x, x) * mean(y, y)) ** 0.5
            assert found[i, j] == pytest.approx(wanted, abs=1e-5)
    assert found[2, 1] > found[0, 0] + 0.2


def test_a_rotation_a_scale_and_a_shift_change_nothing() -> None:
    one = features(4)
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((20, 20)))[0]
    turned = (1e4 * one.astype(np.float64) @ rotation - 2e5).astype(np.float32)
    wanted = cka(grams(one), grams(one))
    assert np.diag(wanted) == pytest.approx(np.ones(3), abs=1e-12)
    assert cka(grams(one), grams(turned)) == pytest.approx(wanted, abs=1e-3)
    assert cka(grams(turned), grams(turned)) == pytest.approx(wanted, abs=1e-3)


def test_a_wider_encoder_that_says_the_same_is_equal_and_one_that_says_more_is_not() -> None:
    one, other = features(6, blocks=1), features(7, blocks=1)
    twice = np.concatenate([one, one], 2)
    more = np.concatenate([one, other], 2)
    assert cka(grams(one), grams(twice))[0, 0] == pytest.approx(1, abs=1e-6)
    assert 0.6 < cka(grams(one), grams(more))[0, 0] < 0.8, "half of its variance is shared: 1 / sqrt(2)"


def test_independent_features_have_nothing_in_common_however_few_images_there_are() -> None:
    """The biased estimator would find 0.4 here."""
    found = [cka(grams(features(k, 32, 1, 40)), grams(features(1000 + k, 32, 1, 40)))[0, 0] for k in range(200)]
    assert abs(np.mean(found)) < 0.03
    assert min(found) < 0 < max(found)


def test_every_minibatch_has_images_of_all_classes_where_these_lie_side_by_side() -> None:
    centres = 10 * np.random.default_rng(8).standard_normal((4, 1, 20))
    one = (features(9, 256, 1) + np.repeat(centres, 64, 0)).astype(np.float32)
    other = (features(10, 256, 1) + np.repeat(centres, 64, 0)).astype(np.float32)
    assert cka(grams(one), grams(other))[0, 0] > 0.95, "what they share is the class"


def test_features_that_are_the_same_for_all_images_have_none() -> None:
    one = features(11)
    one[:, 1] = 0.3
    assert np.isnan(cka(grams(one), grams(one))).tolist() == [[False, True, False], [True] * 3, [False, True, False]]


def test_fewer_images_than_the_estimator_needs_are_refused() -> None:
    assert grams(features(12, 4)).shape == (3, 1, 6)
    with pytest.raises(UserError, match="needs at least 4 images, found 3"):
        grams(features(12, 3))


def test_encoders_on_other_numbers_of_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="of the same images"):
        cka(grams(features(13, 100)), grams(features(13, 120)))
