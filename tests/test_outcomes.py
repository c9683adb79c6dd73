"""Accuracy as mean per class is the textbook's, kept with its outcomes, compared on the same images and printed first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reported import build_tables
from toy_runs import SUITE, performed, toy_run, write_images

from lutbench.evaluate.outcomes import PER_CLASS, Outcomes, compare_per_class
from lutbench.recipes.loading import load_suite
from lutbench.record import read_record
from lutbench.report.comparisons import comparison_sections
from lutbench.report.sections import View


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
    assert [m.metric for m in record.measurements] == [PER_CLASS, "top-1", "top-5"]
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
