"""IoU is MMSegmentation's, and its interval tells what other images would change."""

import numpy as np
import pytest
from numpy.typing import NDArray

from downstream.segmentation.confusions import Confusions, mean_iou
from lutbench.evaluate.outcomes import Measurement, names_fingerprint

CLASSES = ("sky", "tree", "car", "sea", "ship")
IGNORED = 255

Maps = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Label and prediction (H, W) of every image."""


def maps(images: int = 12, seed: int = 0) -> Maps:
    """Predictions right by half; `sea` is predicted and never a label, `ship` a label and never right, and some pixels
    have no label."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        label = generator.choice([0, 1, 2, 4, IGNORED], (9, 7), p=[0.4, 0.2, 0.2, 0.1, 0.1])
        guess = generator.choice([0, 1, 2, 3], (9, 7))
        made.append((label, np.where(generator.random((9, 7)) < 0.5, label, guess)))
    return [(label, np.where(prediction >= 4, 0, prediction)) for label, prediction in made]


def counted(label: NDArray[np.int64], prediction: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels by label and prediction (k, 3), counted one by one."""
    pixels: dict[tuple[int, int], int] = {}
    for pair in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if pair[0] != IGNORED:
            pixels[pair] = pixels.get(pair, 0) + 1
    return np.array([(*pair, number) for pair, number in sorted(pixels.items())]).reshape(-1, 3)


def confusions(of: Maps, classes: tuple[str, ...] = CLASSES) -> Confusions:
    return Confusions.of((counted(*one) for one in of), classes, names(len(of)))


def names(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def by_name(measurements: list[Measurement]) -> dict[str, Measurement]:
    return {m.metric: m for m in measurements}


def test_all_numbers_equal_mmsegmentations() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("mmseg.evaluation.metrics").IoUMetric
    images, classes = maps(), (*CLASSES, "nowhere")
    areas = [
        metrics.intersect_and_union(torch.from_numpy(prediction), torch.from_numpy(label), len(classes), IGNORED)
        for label, prediction in images
    ]
    told = metrics.total_area_to_metrics(*(sum(area).double() for area in zip(*areas, strict=True)), ["mIoU"])
    found = confusions(images, classes).measurements()
    assert [m.metric for m in found] == ["mIoU", "mAcc", "aAcc", *(f"IoU {name}" for name in CLASSES)]
    expected = [np.nanmean(told["IoU"]), np.nanmean(told["Acc"]), told["aAcc"], *told["IoU"][: len(CLASSES)]]
    assert [m.value for m in found] == pytest.approx(100 * np.array(expected), rel=1e-12)
    assert np.isnan(told["IoU"][-1]), "a class that is nowhere has no IoU there, and no measurement here"


def test_a_class_in_no_label_counts_only_where_it_was_predicted() -> None:
    """By hand: sky 3 right of 4 labelled and 3 predicted; tree predicted once, ship labelled once and missed."""
    counts = [np.array([[0, 0, 3], [0, 1, 1], [4, 2, 1]])]
    found = by_name(Confusions.of(counts, CLASSES, names(1)).measurements())
    assert {name: m.value for name, m in found.items()} == {
        "mIoU": pytest.approx(100 * 0.75 / 4),  # sky 3/4, tree 0/1, car 0/1, ship 0/1; sea is nowhere
        "mAcc": pytest.approx(100 * 0.75 / 2),  # sky 3/4, ship 0/1
        "aAcc": pytest.approx(60.0),
        **{"IoU sky": 75.0, "IoU tree": 0.0, "IoU car": 0.0, "IoU ship": 0.0},
    }


def test_several_scales_stand_beside_the_single_one() -> None:
    one, other = confusions(maps()), confusions(maps(seed=1))
    both = Confusions.of((counted(*m) for m in maps()), CLASSES, names(12), multi_scale=other)
    found, alone, several = by_name(both.measurements()), by_name(one.measurements()), by_name(other.measurements())
    assert list(found)[:5] == ["mIoU", "mAcc", "aAcc", "mIoU, multi-scale", "IoU sky"]
    assert found.pop("mIoU, multi-scale") == several["mIoU"].model_copy(update={"metric": "mIoU, multi-scale"})
    assert found == alone


def test_intervals_are_over_images_and_of_a_class_over_the_images_that_it_is_in() -> None:
    rows = [np.array([[0, 0, 50 + 5 * image], [0, 2, 40 - 5 * image]]) for image in range(8)]
    rows[3] = np.array([[1, 1, 9], [2, 2, 50]])
    found = by_name(Confusions.of(rows, CLASSES, names(8)).measurements())
    assert [found[name].n for name in ("mIoU", "mAcc", "aAcc", "IoU sky", "IoU tree", "IoU car")] == [8, 8, 8, 7, 1, 8]
    for name, one in found.items():
        if name == "IoU tree":
            assert (one.value, one.low, one.high, one.interval) == (100, None, None, ""), "one image: no resampling"
        else:
            assert one.low is not None
            assert one.high is not None
            assert one.low < one.value < one.high
            assert one.interval == "bootstrap over images"


def test_the_same_confusions_have_the_same_intervals_to_the_last_bit() -> None:
    first, again = confusions(maps()).measurements(), confusions(maps()).measurements()
    assert first == again


def test_the_interval_of_miou_is_about_that_of_a_normal_approximation() -> None:
    """One class over large images, IoU nearly a mean over images: the bootstrap has its standard error."""
    right = np.random.default_rng(0).integers(300, 700, 400)
    counts = [np.array([[0, 0, hit], [0, 1, 1000 - hit]]) for hit in right]
    (sky,) = (m for m in Confusions.of(counts, CLASSES, names(400)).measurements() if m.metric == "IoU sky")
    error = 100 * right.std() / 1000 / 20
    assert sky.value == pytest.approx(right.mean() / 10)
    assert (sky.low, sky.high) == pytest.approx((sky.value - 1.96 * error, sky.value + 1.96 * error), abs=0.1)


def test_an_image_without_a_labelled_pixel_counts_as_an_image_and_changes_no_value() -> None:
    counts = [counted(*one) for one in maps()]
    empty = Confusions.of([*counts, np.zeros((0, 3), np.int64)], CLASSES, names(13))
    found, without = by_name(empty.measurements()), by_name(confusions(maps()).measurements())
    assert {name: m.value for name, m in found.items()} == {name: m.value for name, m in without.items()}
    assert found["mIoU"].n == 13
    assert empty.areas()[12].sum() == 0


def test_mean_iou_is_taken_row_by_row_and_is_not_a_number_where_nothing_is() -> None:
    areas = confusions(maps()).areas()
    told = mean_iou(np.stack([areas.sum(0), areas[0], np.zeros((3, len(CLASSES)))]))
    assert told[:2] == pytest.approx([float(mean_iou(areas.sum(0))), float(mean_iou(areas[0]))])
    assert np.isnan(told[2])


def test_pairs_of_images_are_known_by_their_names() -> None:
    assert confusions(maps()).images == names_fingerprint(names(12))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 5, 1]], "expected the numbers of pixels by label and prediction of 5 classes"),
        ([[-1, 0, 1]], "expected the numbers of pixels"),
        ([[0, 0, 0]], "expected the numbers of pixels"),
        ([[0, 1, 3], [0, 1, 2]], "expected the numbers of pixels"),
        ([[1, 0, 3], [0, 1, 2]], "ascending"),
        ([], "no pixel of any image"),
    ],
)
def test_counts_that_are_none_are_refused(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Confusions.of([np.array(rows, np.int64).reshape(-1, 3)], CLASSES, ["a"])


def test_counts_of_other_images_than_the_names_are_refused() -> None:
    counts = [counted(*one) for one in maps(2)]
    for wrong in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            Confusions.of(counts, CLASSES, wrong)
    with pytest.raises(ValueError, match="other images or classes"):
        Confusions.of(counts, CLASSES, ["a", "b"], multi_scale=confusions(maps(2)))


def test_very_large_sets_are_summed_exactly() -> None:
    """Beyond what float32, in which MMSegmentation sums, can tell apart."""
    counts = [np.array([[0, 0, 2**30], [0, 1, 1]])] * 64
    areas = Confusions.of(counts, CLASSES, names(64)).areas().sum(0)
    assert areas[1, 0] == 2**36 + 64
