"""Hand-made logits and outcomes give hand-computed numbers on every kind of shifted set."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from lutbench.arrays import read_arrays
from lutbench.evaluate.statistics import RESAMPLES, paired, wilson
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes, pack
from robustness.corruptions import CORRUPTIONS, EXTRA
from robustness.detection import AT_ONCE, Detection, _draws, compare_detections
from robustness.labels import Answer, answers_of, imagenet_1k, imagenet_subset, real_labels
from robustness.metrics import (
    ALEXNET_ERROR,
    ALEXNET_EXTRA_ERROR,
    compare,
    corruption_quantities,
    gap,
    measure,
    share,
)
from robustness.protocols import Asked, Protocol

IMAGES = 50_000
"""Of ImageNet-C: AlexNet's errors have six digits, so over five severities of so many images they are whole numbers."""


def asked(
    logits: Sequence[Sequence[float]] | torch.Tensor,
    answers: Sequence[Answer],
    columns: Answer | None = None,
    classes: int = 5,
) -> torch.Tensor:
    """Prediction, rank and score (n, 3) of images with these answers under one protocol."""
    scores = torch.as_tensor(logits, dtype=torch.float32)
    protocol = Protocol("some", columns, tuple(answers), np.arange(len(answers)))
    return Asked([protocol], classes, torch.device("cpu"))(scores, torch.arange(len(answers)))[:, 0]


def alexnet_errors(corruptions: Sequence[str] = tuple(ALEXNET_ERROR)) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """As many errors at every corruption as AlexNet makes, unevenly over severities."""
    errors: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for name in corruptions:
        wrong = round(ALEXNET_ERROR[name] * 5 * IMAGES)
        assert wrong == pytest.approx(ALEXNET_ERROR[name] * 5 * IMAGES, abs=1e-6)
        flat = np.arange(5 * IMAGES) < wrong
        errors[name] = {severity + 1: flat[severity::5] for severity in range(5)}
    return errors


def outcomes_of(rights: NDArray[np.bool_], cell: str = "", seen: str = "", names: str = "image") -> ConditionOutcomes:
    """A cell under one protocol."""
    places = np.stack([np.where(rights, 0, 1), np.where(rights, 0, 1), np.zeros(len(rights))], 1)[:, None]
    return ConditionOutcomes.of(
        cell, seen, ["2 classes"], np.zeros(len(rights)), places, [f"{names} {i}" for i in range(len(rights))]
    )


def measured(outcomes: RobustnessOutcomes) -> dict[str, float]:
    return {m.metric: m.value for m in outcomes.measurements()}


# --- Corruptions


def test_a_classifier_with_alexnets_errors_has_an_mce_of_100() -> None:
    first = corruption_quantities(alexnet_errors(), EXTRA, alexnet=True)[0]
    assert first.metric == "mCE"
    assert 100 * first.value == pytest.approx(100, abs=1e-9)


def test_an_mce_weighs_corruptions_by_alexnets_errors_and_not_by_their_own() -> None:
    errors = alexnet_errors()
    none = {severity: np.zeros(IMAGES, bool) for severity in range(1, 6)}
    without = {q.metric: q.value for q in corruption_quantities({**errors, "fog": none}, alexnet=True)}
    assert without["mCE"] == pytest.approx(14 / 15, abs=1e-12)
    assert without["mean error, 15 corruptions"] == pytest.approx(
        (sum(ALEXNET_ERROR.values()) - ALEXNET_ERROR["fog"]) / 15, abs=1e-12
    )
    assert without["CE, fog"] == 0
    assert without["CE, snow"] == pytest.approx(1, abs=1e-12)
    assert without["error, snow"] == pytest.approx(ALEXNET_ERROR["snow"], abs=1e-12)


def test_extra_corruptions_are_never_part_of_the_mce_or_of_the_mean_over_fifteen() -> None:
    errors = {name: {s: wrong[:1000] for s, wrong in cells.items()} for name, cells in alexnet_errors().items()}
    extra = {name: {s: np.ones(1000, bool) for s in range(1, 6)} for name in EXTRA}
    alone, together = (
        {q.metric: q.value for q in corruption_quantities(both, EXTRA, alexnet=True)}
        for both in (errors, errors | extra)
    )
    for metric in ("mCE", "mean error, 15 corruptions"):
        assert together[metric] == alone[metric]
    assert together["mean error, 4 extra corruptions"] == 1
    assert together["CE, spatter"] == pytest.approx(1 / 0.7175)
    assert together["mean error, 19 corruptions"] == pytest.approx(
        (15 * alone["mean error, 15 corruptions"] + 4) / 19, abs=1e-12
    )


def test_there_is_no_mce_without_a_severity_or_a_corruption_or_for_other_images_than_imagenet_cs() -> None:
    errors = alexnet_errors()
    short = {**errors, "snow": {s: e for s, e in errors["snow"].items() if s != 3}}
    fewer = {name: cells for name, cells in errors.items() if name != "snow"}
    for some, alexnet in ((short, True), (fewer, True), (errors, False)):
        assert "mCE" not in [q.metric for q in corruption_quantities(some, alexnet=alexnet)]


def test_errors_of_severities_corruptions_and_their_mean_are_counted_by_hand() -> None:
    yes, no = True, False
    errors = {
        "fog": {1: np.array([no, no, no, yes]), 3: np.array([no, yes, yes, yes])},
        "snow": {1: np.array([no, no, no, no]), 3: np.array([no, no, no, yes])},
    }
    found = {q.metric: q.value for q in corruption_quantities(errors)}
    assert found == {
        "mean error, 2 corruptions": 5 / 16,
        "error, fog": 1 / 2,
        "error, snow": 1 / 8,
        "error, fog 1": 1 / 4,
        "error, fog 3": 3 / 4,
        "error, snow 1": 0,
        "error, snow 3": 1 / 4,
    }


def test_a_mean_over_corruptions_resamples_images_and_not_cells() -> None:
    half = np.arange(200) % 2 == 0
    errors = {"fog": {1: half}, "snow": {1: ~half}}  # every image is wrong in exactly one of the two
    found = {m.metric: m for m in measure(corruption_quantities(errors))}
    mean, fog = found["mean error, 2 corruptions"], found["error, fog"]
    assert mean.low == mean.high == mean.value == 50
    assert fog.low is not None
    assert fog.low < 45


def test_the_corruptions_that_are_made_are_those_that_are_measured() -> None:
    assert tuple(ALEXNET_ERROR) == CORRUPTIONS
    assert set(ALEXNET_EXTRA_ERROR) == set(EXTRA)
    assert np.mean(list(ALEXNET_ERROR.values())) == pytest.approx(0.788993, abs=5e-7)


# --- Logits


def test_of_200_or_1000_logits_each_protocol_has_its_own_prediction_from_the_same_logits() -> None:
    inside = imagenet_subset("imagenet-a")
    outside = next(place for place in range(1000) if place not in inside)
    logits = torch.zeros(3, 1000)
    logits[:, inside[0]] = 1
    logits[1:, outside] = 2  # a class that ImageNet-A does not have is surer
    logits[2, inside[5]] = 1.5
    answers = ((inside[0],),)
    every = np.zeros(3, np.int64)
    protocols = [Protocol("200 classes", inside, answers, every), Protocol("1000 classes", None, answers, every)]
    found = Asked(protocols, 1000, torch.device("cpu"))(logits, torch.arange(3))
    assert found[:, 0, :2].tolist() == [[inside[0], 0], [inside[0], 0], [inside[5], 1]]
    assert found[:, 1, :2].tolist() == [[inside[0], 0], [outside, 1], [outside, 2]]
    cell = ConditionOutcomes.of("", "bicubic", [p.name for p in protocols], every, found, "abc")
    assert measured(RobustnessOutcomes("accuracy", (cell,))) == {
        "top-1, 200 classes, bicubic": pytest.approx(200 / 3),
        "top-1, 1000 classes, bicubic": pytest.approx(100 / 3),
    }


def test_an_image_whose_class_does_not_compete_is_wrong_and_one_without_a_class_is_not_counted() -> None:
    found = asked([[0, 0, 3, 0, 0]] * 3, [(2,), (4,), ()], columns=(1, 2))
    assert found[:, :2].tolist() == [[2, 0], [2, 2], [2, -1]]
    cell = ConditionOutcomes.of("", "", ["2 classes"], [0, 1, 2], found[:, None], "abc")
    [top_1] = RobustnessOutcomes("accuracy", (cell,)).measurements()
    assert (top_1.value, top_1.n) == (50, 2)


def test_with_real_labels_any_of_them_is_right_and_images_without_one_are_skipped() -> None:
    real = real_labels()
    chosen = [0, 1, 2]
    assert [real[place] for place in chosen] == [(), (970, 795), (230, 231)]
    logits = torch.zeros(6, 1000)
    for image, prediction in enumerate((5, 795, 970, 5, 231, 230)):
        logits[image, prediction] = 1
    answers = [real[place] for place in (0, 1, 1, 1, 2, 2)]
    found = asked(logits, answers, classes=1000)
    cell = ConditionOutcomes.of("", "bicubic", ["ReaL"], range(6), found[:, None], "abcdef")
    [top_1] = RobustnessOutcomes("accuracy", (cell,)).measurements()
    assert (top_1.metric, top_1.value, top_1.n) == ("top-1, ReaL, bicubic", 80, 5)
    assert cell.rank[0].tolist() == [-1, 0, 0, 795, 0, 0]


def test_any_imagenet_class_of_an_objectnet_class_is_right_and_one_of_none_is_wrong() -> None:
    chair, orange = answers_of("objectnet", ["chair", "orange"], imagenet_1k(), Path())
    assert chair == (423, 559, 765)
    logits = torch.zeros(5, 1000)
    for image, prediction in enumerate((423, 765, 0, 950, 423)):  # tench, 0, is no class of ObjectNet
        logits[image, prediction] = 1
    found = asked(logits, [chair, chair, chair, orange, orange], classes=1000)
    assert (found[:, 1] == 0).tolist() == [True, True, False, True, False]


def test_the_rank_is_that_of_the_best_right_answer_and_of_equal_scores_the_lower_class_comes_first() -> None:
    found = asked([[1, 5, 3, 3, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [(3, 4), (1,), (0,)])
    assert found[:, :2].tolist() == [[1, 2], [0, 1], [0, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_make_no_outcome(bad: float) -> None:
    found = asked([[0, 1, 0, 0, 0], [0, bad, 0, 0, 0]], [(1,), (1,)], columns=(0, 2))
    assert found[:, 0].tolist() == [0, -1]
    with pytest.raises(ValueError, match="not finite"):
        ConditionOutcomes.of("", "", ["some"], [0, 0], found[:, None], "ab")


def test_the_score_is_the_highest_softmax_among_the_classes_that_compete() -> None:
    logits = torch.tensor([[2.0, 9.0, 1.0, 0.0, 0.0]])
    [[_, _, surest]] = asked(logits, [()], columns=(0, 2))
    assert surest == pytest.approx(torch.tensor([2.0, 1.0]).softmax(0)[0].item(), abs=1e-7)


# --- Detection


def detection(known: Sequence[float], unknown: Sequence[float]) -> Detection:
    return Detection(np.array(known, float), np.array(unknown, float))


def test_aupr_auroc_and_fpr95_are_counted_by_hand() -> None:
    # Falling: u .9, k .8, u .7, u .6, k .5, k .4; all three unknown are found when one known was taken.
    aupr, auroc, fpr = detection([0.8, 0.5, 0.4], [0.9, 0.7, 0.6]).rates()
    assert aupr == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert auroc == pytest.approx(7 / 9)
    assert fpr == pytest.approx(1 / 3)


def test_fpr95_asks_for_19_of_20_and_not_for_all() -> None:
    unknown = [*range(1, 20), -5]
    assert detection([0, -1, -2, -3], unknown).rates()[2] == 0
    assert detection([0, -1, -2, -3], [*range(1, 19), -5, -6]).rates()[2] == 1


@pytest.mark.parametrize("digits", [1, 6])
def test_detection_is_scikit_learns_also_where_scores_are_equal(digits: int) -> None:
    generator = np.random.default_rng(digits)
    known, unknown = generator.normal(0, 1, 300).round(digits), generator.normal(0.7, 1, 80).round(digits)
    positive, scores = np.repeat([0, 1], [300, 80]), np.concatenate([known, unknown])
    aupr, auroc, _ = detection(known.tolist(), unknown.tolist()).rates()
    assert aupr == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    assert auroc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_resampled_detections_are_scikit_learns_on_the_images_that_were_drawn() -> None:
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(0, 1, 30).round(1), generator.normal(0.7, 1, 12).round(1)
    drawn = Detection(known, unknown).resampled_rates()
    [(times_known, times_unknown)] = _draws(30, 12)
    assert (times_known.sum(1) == 30).all()
    assert (times_unknown.sum(1) == 12).all()
    for row in (*range(4), AT_ONCE - 1, AT_ONCE, RESAMPLES - 1):
        again = [np.repeat(s, t[row].astype(int)) for s, t in ((known, times_known), (unknown, times_unknown))]
        positive, scores = np.repeat([0, 1], [30, 12]), np.concatenate(again)
        assert drawn[row, 0] == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
        assert drawn[row, 1] == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_known_and_unknown_images_are_drawn_apart() -> None:
    known, unknown = (np.concatenate(parts) for parts in zip(*_draws(40, 40), strict=True))
    assert len(known) == 2000
    assert abs(np.corrcoef(known[:, 0], unknown[:, 0])[0, 1]) < 0.1


def test_unsure_predictions_look_unknown_and_known_images_of_other_classes_do_not_count() -> None:
    def cell(name: str, surest: Sequence[float], ranks: Sequence[int]) -> ConditionOutcomes:
        places = np.stack([np.zeros(len(ranks)), ranks, surest], 1)[:, None]
        names = [f"{name} {i}" for i in range(len(ranks))]
        return ConditionOutcomes.of(name, "bicubic", ["200 classes"], np.zeros(len(ranks)), places, names, scored=True)

    known, unknown = cell("known", [0.9, 0.8, 0.1], [0, 4, -1]), cell("unknown", [0.5, 0.85], [-1, -1])
    found = RobustnessOutcomes("detection", (known, unknown)).measurements()
    assert [m.metric for m in found] == [f"{rate}, 200 classes, bicubic" for rate in ("AUPR", "AUROC", "FPR95")]
    # Falling unsureness: unknown .5, known .8, unknown .85, known .9
    assert [m.value for m in found] == pytest.approx([100 * (1 + 2 / 3) / 2, 75, 50])
    assert {m.n for m in found} == {4}
    with pytest.raises(ValueError, match="known and unknown"):
        RobustnessOutcomes("detection", (known,))


# --- Intervals, gap, comparisons


def test_accuracies_have_wilsons_interval() -> None:
    [top_1] = RobustnessOutcomes("accuracy", (outcomes_of(np.arange(100) < 81),)).measurements()
    assert (top_1.value, top_1.n, top_1.interval) == (81, 100, "Wilson")
    assert (top_1.low, top_1.high) == pytest.approx(tuple(100 * end for end in wilson(81, 100)))


def test_a_gap_is_a_difference_of_two_parts_with_newcombes_interval() -> None:
    # Newcombe 1998, table II, first example: 56/70 - 48/80, method 10
    [found] = measure([gap("gap", np.arange(70) < 56, np.arange(80) < 48)])
    assert (found.value, found.low, found.high) == pytest.approx((20, 5.24, 33.39), abs=0.005)


def test_the_background_gap_is_mixed_same_minus_mixed_rand() -> None:
    parts = {"original": 9, "mixed_same": 8, "mixed_rand": 5}
    cells = tuple(outcomes_of(np.arange(10) < right, name, names=name) for name, right in parts.items())
    found = measured(RobustnessOutcomes("accuracy", cells, gap=("mixed_same", "mixed_rand")))
    assert next(iter(found)) == "top-1, original, 2 classes"
    assert found["gap, mixed_same - mixed_rand, 2 classes"] == pytest.approx(30)


def backgrounds(right: NDArray[np.bool_], other: NDArray[np.bool_], names: tuple[str, str]) -> RobustnessOutcomes:
    """Two parts with a gap, as they are measured: images of the same names are the same on another background."""
    recipe = RobustnessDatasetRecipe(parts={"same": "", "rand": ""}, gap=["same", "rand"])
    parts = zip(("same", "rand"), (right, other), names, strict=True)
    return RobustnessOutcomes.of(recipe, [outcomes_of(hits, part, names=name) for part, hits, name in parts])


def test_a_gap_of_the_same_images_on_other_backgrounds_has_the_paired_interval() -> None:
    right = np.arange(400) < 300
    other = right & (np.arange(400) >= 20)  # 20 images of 400 are lost with the background
    paired_gap, apart = (
        next(m for m in backgrounds(right, other, names).measurements() if m.metric.startswith("gap"))
        for names in (("image", "image"), ("image", "another"))
    )
    assert (paired_gap.value, paired_gap.n, paired_gap.interval) == (pytest.approx(5), 400, "Bonett-Price")
    told = paired(right[None], other[None]).interval
    assert (paired_gap.low, paired_gap.high) == pytest.approx((100 * told.low, 100 * told.high))
    assert (apart.value, apart.n, apart.interval) == (pytest.approx(5), 800, "Newcombe")
    assert apart.low is not None
    assert apart.low < 0 < told.low, "of other images the same gap could be chance"


def test_a_gap_that_was_kept_before_there_was_a_paired_interval_is_read_as_its_record_has_it() -> None:
    kept = backgrounds(np.arange(40) < 30, np.arange(40) < 20, ("image", "image"))
    arrays = kept.arrays()
    assert RobustnessOutcomes.from_arrays(arrays).measurements() == kept.measurements()
    del arrays["paired_gap"]
    assert RobustnessOutcomes.from_arrays(arrays).measurements()[-1].interval == "Newcombe"


def test_a_gap_of_the_same_images_is_read_from_the_file_that_keeps_it() -> None:
    kept, content = backgrounds(np.arange(40) < 30, np.arange(40) < 20, ("image", "image")), BytesIO()
    np.savez(content, **kept.arrays())
    found = RobustnessOutcomes.from_arrays(read_arrays(content.getvalue(), RobustnessOutcomes.layout))
    assert found.measurements() == kept.measurements()


def test_accuracies_of_two_methods_are_compared_image_by_image() -> None:
    first, second = (RobustnessOutcomes("accuracy", (outcomes_of(np.arange(20) < n),)) for n in (15, 7))
    found = RobustnessOutcomes.compare([first], [second], "top-1, 2 classes")
    assert (found.first_only, found.second_only, found.difference) == (8, 0, 0.4)
    assert found.p == paired(np.arange(20)[None] < 15, np.arange(20)[None] < 7).p


def test_mean_errors_of_two_methods_are_compared_on_the_same_resamples() -> None:
    wrong = np.random.default_rng(0).random((4, 500)) < 0.4
    cells = ("fog/1", "fog/2", "snow/1", "snow/2")
    easier = wrong & (np.arange(500) % 10 > 0)  # a tenth of the errors is mended, whatever else is hard about an image
    first, second = (
        RobustnessOutcomes("corruptions", tuple(outcomes_of(~w, c) for w, c in zip(some, cells, strict=True)))
        for some in (easier, wrong)
    )
    metric = "mean error, 2 corruptions"
    found = RobustnessOutcomes.compare([first], [second], metric)
    assert (found.first_only, found.second_only) == (None, None)
    assert 100 * found.difference == pytest.approx(measured(first)[metric] - measured(second)[metric])
    whole = next(m for m in first.measurements() if m.metric == metric)
    assert whole.low is not None
    assert whole.high is not None
    assert found.interval.high < 0
    assert 100 * (found.interval.high - found.interval.low) < (whole.high - whole.low) / 1.3


def test_detections_of_two_methods_are_compared_on_the_same_resamples() -> None:
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(0, 1, 300), generator.normal(0.5, 1, 100)
    better = Detection(known, unknown + 0.2)
    found = compare_detections([better], [Detection(known, unknown)], rate=1)
    assert found.difference == pytest.approx(better.rates()[1] - Detection(known, unknown).rates()[1])
    assert found.interval.low > 0
    assert found.p < 0.01
    same = compare_detections([better], [better], rate=1)
    assert (same.difference, same.interval, same.p) == (0, (0, 0), 1)


def test_only_outcomes_of_the_same_images_and_an_existing_metric_are_compared() -> None:
    one = RobustnessOutcomes("accuracy", (outcomes_of(np.arange(9) < 4),))
    other = RobustnessOutcomes("accuracy", (outcomes_of(np.arange(9) < 4, names="another"),))
    with pytest.raises(ValueError, match="different images"):
        RobustnessOutcomes.compare([one], [other], "top-1, 2 classes")
    with pytest.raises(ValueError, match="there is no top-1, 3"):
        RobustnessOutcomes.compare([one], [one], "top-1, 3 classes")
    with pytest.raises(ValueError, match="one metric"):
        compare([share("a", np.ones(3, bool))], [share("b", np.ones(3, bool))])


def test_corruptions_of_other_images_are_no_set() -> None:
    cells = outcomes_of(np.ones(5, bool), "fog/1"), outcomes_of(np.ones(5, bool), "fog/2", names="another")
    with pytest.raises(ValueError, match="the same images"):
        RobustnessOutcomes("corruptions", cells)


# --- Kept outcomes


def test_a_set_of_either_kind_of_accuracy_and_of_corruptions_is_measured_as_its_recipe_says() -> None:
    parts, right = ("first", "second"), np.arange(10) < 6
    two = RobustnessDatasetRecipe(parts=dict.fromkeys(parts, ""), gap=list(parts))
    assert [*measured(RobustnessOutcomes.of(two, [outcomes_of(right, part) for part in parts]))] == [
        "top-1, first, 2 classes",
        "top-1, second, 2 classes",
        "gap, first - second, 2 classes",
    ]
    views = [outcomes_of(np.arange(10) < n, cell, "bicubic") for n, cell in ((8, "drop 0/10"), (3, "drop 3/10"))]
    occluded = RobustnessOutcomes.of(RobustnessDatasetRecipe(kind="occlusion"), views)
    assert measured(occluded) == pytest.approx(
        {
            "mean top-1, patches dropped": 55,
            "top-1, drop 0/10, 2 classes, bicubic": 80,
            "top-1, drop 3/10, 2 classes, bicubic": 30,
        }
    )
    corrupted = RobustnessDatasetRecipe(kind="corruptions", extra=["fog"])
    made = RobustnessOutcomes.of(corrupted, [outcomes_of(right, f"{name}/1") for name in ("snow", "fog")])
    assert next(iter(measured(made).items())) == ("mean error, 1 corruption", 40)
    assert measured(made)["mean error, 1 extra corruption"] == 40


def test_outcomes_read_back_are_those_that_were_kept_and_measure_the_same() -> None:
    rights = np.random.default_rng(0).random((4, 50)) < 0.5
    kept = RobustnessOutcomes(
        "corruptions",
        tuple(outcomes_of(right, f"{name}/1", "bicubic") for right, name in zip(rights, "abcd", strict=True)),
        extra=("c", "d"),
        alexnet=True,
    )
    read = RobustnessOutcomes.from_arrays(kept.arrays())
    assert read.measurements() == kept.measurements()
    assert read.images == kept.images
    for name, values in kept.arrays().items():
        assert read.arrays()[name].dtype == values.dtype
        np.testing.assert_array_equal(read.arrays()[name], values)
    with pytest.raises(KeyError):
        RobustnessOutcomes.from_arrays({"label": np.zeros(3)})


def test_an_image_takes_two_bytes_for_its_label_and_four_for_every_protocol() -> None:
    found = torch.zeros(1000, 3, 3)
    found[:, :, 0] = 999
    cell = ConditionOutcomes.of("", "", ["a", "b", "c"], np.arange(1000), found, map(str, range(1000)))
    kept = pack([cell])
    assert kept.pop("0.names").nbytes == sum(len(str(number)) + 1 for number in range(1000))
    assert sum(values.nbytes for values in kept.values() if values.size > 3) == 1000 * (2 + 3 * 4)


def test_lengths_that_differ_are_refused() -> None:
    def of(**changed: Any) -> ConditionOutcomes:
        whole: dict[str, Any] = {"label": [0, 0], "answers": np.zeros((2, 1, 3)), "names": ["a", "b"]}
        return ConditionOutcomes.of("", "", ["some"], **{**whole, **changed})

    of()
    for changed in ({"label": [0]}, {"answers": np.zeros((2, 2, 3))}, {"names": ["a"]}):
        with pytest.raises(ValueError, match="expected answers"):
            of(**changed)
