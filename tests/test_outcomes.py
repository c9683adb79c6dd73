"""Accuracy as mean per class is the textbook's, kept with its outcomes, compared on the same images and printed first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analysed import IMAGES
from analysed import outcomes as analysed
from reported import build_tables
from toy_runs import SCENES, SUITE, performed, toy_run, write_images, write_scenes

from analysis.block_outcomes import BlockOutcomes
from downstream.segmentation.confusions import Confusions
from lutbench.arrays import read_arrays
from lutbench.evaluate.image_names import folder_of_class
from lutbench.evaluate.outcomes import PER_CLASS, Outcomes, PerImage, compare_per_class, names_fingerprint
from lutbench.recipes.loading import load_suite
from lutbench.record import read_record
from lutbench.record_writing import _packed
from lutbench.report.comparisons import comparison_sections
from lutbench.report.sections import View
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.kept_conditions import ConditionOutcomes, pack, unpack


def outcomes(labels: list[int], predictions: list[int]) -> Outcomes:
    ranks = [0 if label == guess else 1 for label, guess in zip(labels, predictions, strict=True)]
    return replace(Outcomes.of(labels, predictions, ranks, map(str, range(len(labels)))), metric=PER_CLASS)


def test_mean_per_class_is_the_mean_of_each_classs_accuracy() -> None:
    """Of class 0 three of four are right, of class 2 none of one, of class 5 one of one; classes 1, 3, 4 have no images."""
    found = outcomes([0, 0, 0, 0, 2, 5], [0, 0, 0, 2, 0, 5]).measurements()
    assert [m.metric for m in found] == [PER_CLASS, "top-1", "top-5"]
    assert found[0].value == pytest.approx(100 * (3 / 4 + 0 + 1) / 3)
    assert found[0].n == 6
    assert found[1].value == pytest.approx(100 * 4 / 6)


def test_a_resample_weighs_images_and_leaves_out_classes_it_has_none_of() -> None:
    one = outcomes([0, 0, 1, 2], [0, 1, 1, 0])
    weights = np.array([[1, 1, 1, 1], [3, 1, 0, 2], [0, 0, 4, 0]], float)
    assert one.per_class(weights) == pytest.approx([(1 / 2 + 1 + 0) / 3, (3 / 4 + 0) / 2, 1])


def test_the_interval_holds_the_value_and_narrows_with_more_images() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for count in (100, 1600):
        labels = draw.integers(0, 5, count)
        predictions = np.where(draw.random(count) < 0.7, labels, (labels + 1) % 5)
        first = outcomes(labels.tolist(), predictions.tolist()).measurements()[0]
        assert first.low is not None
        assert first.high is not None
        assert first.low < first.value < first.high
        widths.append(first.high - first.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.25)


def test_thousands_of_classes_need_little_memory() -> None:
    labels = np.arange(24_426) % 8_142
    one = outcomes(labels.tolist(), np.where(labels % 2, labels, labels + 1).tolist())
    assert one.per_class(np.ones((2, len(labels)))) == pytest.approx([0.5, 0.5])
    assert one._classes.data.nbytes < 2**20


def test_two_methods_are_compared_by_the_metric_that_is_asked_for() -> None:
    names = [f"cat/{number}.png" for number in range(4)]
    one, other = (Outcomes.of([0] * 4, np.minimum(ranks, 1), ranks, names) for ranks in ([0, 0, 3, 9], [0, 7, 3, 9]))
    assert Outcomes.compare([one], [other], "top-1").difference == pytest.approx(1 / 4)
    assert Outcomes.compare([one], [other], "top-5").difference == pytest.approx(1 / 4)
    later = Outcomes.of([0] * 4, [0, 1, 1, 1], [0, 3, 3, 9], names)
    assert Outcomes.compare([one], [later], "top-1").difference == pytest.approx(1 / 4)
    assert Outcomes.compare([one], [later], "top-5").difference == 0
    with pytest.raises(ValueError, match="there is no mIoU"):
        Outcomes.compare([one], [other], "mIoU")


def test_two_methods_are_compared_in_mean_per_class_on_the_same_images() -> None:
    labels = [0] * 60 + [1] * 20
    first = outcomes(labels, [0] * 60 + [1] * 10 + [0] * 10)
    second = outcomes(labels, [0] * 48 + [1] * 12 + [1] * 10 + [0] * 10)
    told = compare_per_class([first], [second])
    assert told.difference == pytest.approx((1 - 48 / 60) / 2)
    assert told.interval.low < told.difference < told.interval.high
    assert told.interval.low > 0, "the second class, of which both know half, adds no spread of its own"
    assert compare_per_class([first], [first]).difference == 0


def test_what_is_kept_of_outcomes_has_the_metric_only_where_it_is_not_top_1() -> None:
    one = outcomes([0, 1], [0, 0])
    again = Outcomes.from_arrays(one.arrays())
    assert again.metric == PER_CLASS
    assert again.measurements() == one.measurements()
    assert "metric" not in replace(one, metric="top-1").arrays()


def test_a_set_in_mean_per_class_is_recorded_printed_and_compared_so(tmp_path: Path) -> None:
    write_images(tmp_path)
    text = SUITE.replace('path = "toy"', 'path = "toy"\nmetric = "mean per class"') + 'kind = "knn"'
    text = text.replace('title = "toy"', 'title = "toy"\ncompare = [["scratch", "other"]]')
    text = text.replace("[downstream.task]", '[method.other]\nscratch = true\nencoder = "toy"\n[downstream.task]')
    run = toy_run(tmp_path, suite_text=text)
    performed(run)
    suite = load_suite(str(tmp_path / "toy.toml"))
    record = read_record(next(run.workspace.results.rglob("*.json")))
    assert [m.metric for m in record.measurements] == [PER_CLASS, "top-1", "top-5", "ECE, 15 bins"], "no NLL of votes"
    view = View.read(suite, run.workspace.results)
    [entry] = [entry for entry in view.entries if entry.runs]
    assert (entry.metric, entry.measured) == (PER_CLASS, record.measurements[0])
    text = build_tables(suite, run.workspace.results)["main.md"]
    assert "| mean per class | " in text
    assert "interval: percentiles of 2000 resamples of the images." in text
    both = View(suite, view.records, [entry, replace(entry, method="other")])
    [compared] = comparison_sections(both)
    assert compared.frame["metric"].tolist() == [f"{PER_CLASS} ↑"]
    assert compared.frame["difference"].tolist() == ["+0.0 [+0.0, +0.0]"]
    assert "resamples of the images" in compared.legend


@pytest.mark.parametrize(("then", "now"), [("top-1", PER_CLASS), (PER_CLASS, "top-1")])
def test_a_finished_run_is_printed_in_the_metric_that_its_set_has_now(tmp_path: Path, then: str, now: str) -> None:
    write_images(tmp_path)
    for number in range(4):
        (tmp_path / f"toy/val/amber/{number}.png").rename(tmp_path / f"toy/val/blue/amber{number}.png")
    run = toy_run(tmp_path, changes=[f"data.toy.metric={then}"], kind="knn")
    performed(run)
    results, suite = run.workspace.results, load_suite(str(tmp_path / "toy.toml"), [f"data.toy.metric={now}"])
    record = read_record(next(results.rglob("*.json")))
    kept = record.outcomes
    assert isinstance(kept, Outcomes)
    right, label = kept.right(), kept.label
    by_class = [right[label == one].mean() for one in range(3)]
    expected = {"top-1": 100 * right.mean(), PER_CLASS: 100 * np.mean(by_class)}
    assert expected["top-1"] != expected[PER_CLASS]
    assert (record.measurements[0].metric, record.measurements[0].value) == (then, pytest.approx(expected[then]))
    [entry] = View.read(suite, results).entries
    assert entry.measured is not None
    assert (entry.metric, entry.measured.value) == (now, pytest.approx(expected[now]))
    text = build_tables(suite, results)["main.md"]
    assert f"| {now} " in text
    assert f": {then} {expected[then]:.1f} %" in text, "the run's own line tells what its record has first"


# Names of images

NAMES = ("cat/1.png", "cat/é.png", "dog/a\nb.png", "dog/ .png")


def conditions(*of: tuple[str, tuple[str, ...]]) -> tuple[ConditionOutcomes, ...]:
    answers = np.zeros((4, 1, 3))
    answers[2:, 0, :2] = [[1, 2], [1, 1]]
    return tuple(ConditionOutcomes.of(name, "", ["2 classes"], [0, 0, 1, 0], answers, names) for name, names in of)


def every_kind(names: tuple[str, ...] = NAMES) -> list[PerImage]:
    """Outcomes of every type on four images."""
    counts = [np.array([[0, 0, 5], [0, 1, n]]) for n in (1, 2, 20, 3)]
    several = Confusions.of(counts, ["sky", "sea"], names)
    block = analysed(3, 4, 16)
    shown = {name: array[:4] if len(array) == IMAGES else array for name, array in block.measured.items()}
    return [
        Outcomes.of([0, 0, 1, 1], [0, 1, 0, 1], [0, 2, 5, 0], names),
        Confusions.of(counts, ["sky", "sea"], names, several),
        RobustnessOutcomes("corruptions", conditions(("fog/1", names), ("fog/2", names))),
        replace(block, measured=shown, count=4, images=names_fingerprint(names), names=names),
    ]


def read_back(outcomes: PerImage) -> PerImage:
    return type(outcomes).from_arrays(read_arrays(_packed(outcomes), outcomes.layout))


def without_names(outcomes: PerImage) -> PerImage:
    if isinstance(outcomes, RobustnessOutcomes):
        return replace(outcomes, conditions=tuple(replace(one, names=()) for one in outcomes.conditions))
    assert isinstance(outcomes, Outcomes | Confusions | BlockOutcomes)
    return replace(outcomes, names=())


@pytest.mark.parametrize("kind", range(4))
def test_outcomes_of_every_kind_keep_the_names_of_their_images(kind: int) -> None:
    one = every_kind()[kind]
    back = read_back(one)
    assert list(dict.fromkeys(back.frame()["image"])) == list(NAMES)
    assert _packed(back) == _packed(one), "the same outcomes make the same bytes"
    assert back.images == one.images
    older = read_back(without_names(one))
    assert list(dict.fromkeys(older.frame()["image"])) == ["row 0", "row 1", "row 2", "row 3"]
    assert older.images == one.images
    assert older.measurements() == one.measurements(), "names change no number"
    assert not [key for key in older.arrays() if key.endswith("names")]


@pytest.mark.parametrize("kind", range(4))
def test_names_that_are_not_those_of_the_images_are_refused(kind: int) -> None:
    one, other = (every_kind(names)[kind] for names in (NAMES, (*NAMES[:3], "dog/2.png")))
    (key,) = [key for key in one.arrays() if key.endswith("names")]
    with pytest.raises(ValueError, match="the names of the images do not match"):
        type(one).from_arrays({**one.arrays(), key: other.arrays()[key]})
    with pytest.raises(ValueError, match="the names of the images do not match"):
        type(one).from_arrays({**one.arrays(), key: one.arrays()[key][:-1]})


@pytest.mark.parametrize("kind", range(4))
def test_a_comparison_on_other_images_names_the_first_that_differs(kind: int) -> None:
    one, other = (every_kind(names)[kind] for names in (NAMES, (*NAMES[:3], "dog/2.png")))
    metric = one.measurements()[0].metric
    assert type(one).compare([one], [without_names(one)], metric).difference == 0
    with pytest.raises(ValueError, match=r"different images: row 3 is 'dog/ .png' and 'dog/2.png'"):
        type(one).compare([one], [other], metric)
    with pytest.raises(ValueError, match=r"different images: .* are the fingerprints of their names"):
        type(one).compare([one], [without_names(other)], metric)


def test_conditions_of_the_same_images_keep_their_names_once() -> None:
    others = tuple(f"other {row}" for row in range(4))
    made = conditions(("a", NAMES), ("b", others), ("c", NAMES))
    arrays = pack(made)
    assert [key for key in arrays if key.endswith(".names")] == ["0.names", "1.names"]
    assert [one.names for one in unpack(arrays, 3)] == [NAMES, others, NAMES]
    of_before = (replace(made[0], names=()), *made[1:])
    assert [one.names for one in unpack(pack(of_before), 3)] == [NAMES, others, NAMES], "known from another condition"


def test_names_of_fifty_thousand_images_stay_small() -> None:
    draw = np.random.default_rng(0)
    numbers = np.sort(draw.permutation(50_000).reshape(1000, 50))
    names = [f"n{10**7 + 97 * of:08d}/ILSVRC2012_val_{n:08d}.JPEG" for of, row in enumerate(numbers) for n in row]
    one = Outcomes.of(np.zeros(50_000, int), np.zeros(50_000, int), np.zeros(50_000, int), names)
    assert len(_packed(one)) < 250_000


def test_the_images_that_are_most_wrong_come_first_by_name() -> None:
    classified, segmented, shifted, analysed_ = every_kind()
    assert classified.most_wrong(10)[1].to_numpy().tolist() == [
        ["dog/a\nb.png", "dog", "cat", 5],
        ["cat/é.png", "cat", "dog", 2],
    ]
    assert segmented.most_wrong(2)[1]["image"].tolist() == ["dog/a\nb.png", "dog/ .png"]
    assert segmented.most_wrong(1)[1]["mIoU"].tolist() == [round(100 * 5 / 25 / 2, 1)]
    assert shifted.most_wrong(10)[1].to_numpy().tolist() == [["dog/a\nb.png", 2, 2, 2.0], ["dog/ .png", 2, 2, 1.0]]
    sentence, rows = analysed_.most_wrong(10)
    assert (sentence, len(rows)) == ("", 0)


def test_of_a_detection_the_unknown_images_that_look_most_known_come_first() -> None:
    scores = {"known": [0.9, 0.8, 0.7, 0.2], "unknown": [0.1, 0.95, 0.3, 0.6]}
    made = []
    for name, score in scores.items():
        answers = np.zeros((4, 1, 3))
        answers[:, 0, 1], answers[:, 0, 2] = (0 if name == "known" else -1), score
        names = [f"{name}/{row}" for row in range(4)]
        made.append(ConditionOutcomes.of(name, "", ["2 classes"], [0, 0, 0, 0], answers, names, scored=True))
    rows = RobustnessOutcomes("detection", tuple(made)).most_wrong(2)[1]
    assert rows["image"].tolist() == ["unknown/1", "unknown/3"]


def test_a_class_is_known_by_its_folder_only_where_folders_tell_classes_apart() -> None:
    label = np.array([0, 0, 1])
    assert folder_of_class(["a/1", "a/2", "b/1"], label) == {0: "a", 1: "b"}
    assert folder_of_class(["a/x/1", "a/y/2", "b/x/1"], label) == {0: "a", 1: "b"}
    assert folder_of_class(["all/a/1", "all/a/2", "all/b/1"], label) == {0: "a", 1: "b"}
    assert folder_of_class(["val/00", "val/01", "val/02"], label) == {}
    assert folder_of_class(["1.png", "2.png", "3.png"], label) == {}
    assert folder_of_class(["a/1", "b/2", "b/1"], label) == {}
    assert folder_of_class((), label) == {}


def test_a_run_keeps_the_names_of_its_validation_images(tmp_path: Path) -> None:
    write_images(tmp_path, val=2)
    performed(run := toy_run(tmp_path, kind="knn"))
    record = read_record(next(run.workspace.results.rglob("*.json")))
    expected = [f"{of}/{number}.png" for of in ("amber", "blue", "green") for number in range(2)]
    assert list(record.outcomes.names) == expected


def test_a_segmentation_keeps_the_names_of_its_validation_images(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    write_scenes(tmp_path, val=3)
    performed(
        run := toy_run(
            tmp_path, suite_text=SCENES, changes=["downstream.task.iterations=2", "downstream.task.warmup=1"]
        )
    )
    record = read_record(next(run.workspace.results.rglob("*.json")))
    assert list(record.outcomes.names) == ["0.jpg", "1.jpg", "2.jpg"]
