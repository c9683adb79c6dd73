"""Calibration is Guo et al.'s by hand and by a plain loop, its intervals hold 0 where nothing is wrong, and old records have none."""

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy_runs import SUITE, encoder, write_images

from lutbench.api import outcomes as images_of
from lutbench.arrays import read_arrays
from lutbench.evaluate.calibration import BINS, ECE, NLL, calibration, differences
from lutbench.evaluate.inference import rank_of_label
from lutbench.evaluate.outcomes import Outcomes
from lutbench.evaluate.scores import Scores
from lutbench.evaluate.statistics import BASIC, BOOTSTRAP
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.probes import LinearRecipe
from lutbench.recipes.suite import PlannedRun
from lutbench.record import read_record, read_records, record_path
from lutbench.record_writing import _packed, write_record
from lutbench.report.comparisons import points
from lutbench.report.sections import Section, View
from lutbench.report.tables import all_sections
from lutbench.show import show_record
from lutbench.stages import run_suite
from lutbench.workspace import Workspace


def classified(logits: torch.Tensor, labels: torch.Tensor) -> Outcomes:
    """The outcomes of a classifier with these outputs (n, C)."""
    ranked = rank_of_label(logits, labels).numpy()
    prediction, rank = ranked[:, :2].T.astype(np.int64)
    names = (f"{number}.png" for number in range(len(labels)))
    return replace(Outcomes.of(labels.numpy(), prediction, rank, names), scores=Scores.of(ranked))


def drawn(n: int, temperature: float = 1.0, classes: int = 7) -> Outcomes:
    """A classifier whose labels are drawn from its own probabilities, then its outputs divided by a temperature: 1 is calibrated."""
    draw = torch.Generator().manual_seed(n)
    logits = 2 * torch.randn(n, classes, generator=draw)
    return classified(logits / temperature, torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0])


def scores(confidence: list[float], log_probability: list[float] | None = None) -> Scores:
    """Scores of a classifier of two classes that predicts class 0 with this confidence."""
    likely = np.array([[sure, 1 - sure] for sure in confidence], np.float32)
    own = None if log_probability is None else np.array(log_probability, np.float32)
    return Scores(np.tile([0, 1], (len(confidence), 1)), likely, own)


# --- The numbers


def test_ece_and_nll_are_those_computed_by_hand() -> None:
    """Bins of 1/15: 0.50 and 0.52 are in (7/15, 8/15], 0.90 is in (13/15, 14/15], 0.97 in the last."""
    right = np.array([True, False, False, True])
    made = scores([0.50, 0.52, 0.90, 0.97], [math.log(0.5), math.log(0.48), math.log(0.1), math.log(0.97)])
    found = {one.metric: one for one in calibration(made, right)}
    by_hand = 2 / 4 * abs((0.50 + 0.52) / 2 - 1 / 2) + 1 / 4 * abs(0.90 - 0) + 1 / 4 * abs(0.97 - 1)
    assert found[ECE].value == pytest.approx(100 * by_hand, abs=1e-5)
    assert found[NLL].value == pytest.approx(-(math.log(0.5) + math.log(0.48) + math.log(0.1) + math.log(0.97)) / 4)
    assert [(one.unit, one.n, one.interval) for one in found.values()] == [("%", 4, BASIC), ("nats", 4, BOOTSTRAP)]


def test_a_bin_holds_its_upper_end_and_not_its_lower() -> None:
    found = differences([1 / 15, 1 / 15 + 1e-6, 1.0, 0.0], [0, 0, 0, 0])
    assert found.argmax(1).tolist()[:3] == [0, 1, BINS - 1]
    assert found.shape == (4, BINS)


def by_loop(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """ECE in percent as equation 3 of Guo et al. 2017 reads."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = [i for i, sure in enumerate(confidence.tolist()) if (m - 1) / BINS < sure <= m / BINS]
        if inside:
            accuracy, mean = np.mean(right[inside]), np.mean(confidence[inside].astype(np.float64))
            total += len(inside) / len(right) * abs(accuracy - mean)
    return 100 * float(total)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_calibration_is_that_of_a_plain_loop_and_of_torch(temperature: float) -> None:
    draw = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(400, 9, generator=draw) / temperature, torch.arange(400) % 9
    made = classified(logits, labels)
    assert made.scores is not None
    found = {m.metric: m.value for m in made.measurements()}
    assert found[ECE] == pytest.approx(by_loop(made.scores.confidence, made.right()), abs=1e-9)
    assert found[NLL] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), labels)), rel=1e-6)


def test_a_confidence_near_one_keeps_its_digits() -> None:
    made = classified(torch.tensor([[12.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0]))
    assert made.scores is not None
    assert made.scores.log_probability is not None
    assert made.scores.log_probability == pytest.approx(
        [-math.log1p(math.exp(-12)), -math.log1p(math.exp(-9))], rel=2e-2
    )
    assert 1 - made.scores.confidence.astype(float) == pytest.approx([math.exp(-12), math.exp(-9)], abs=1e-7)


@pytest.mark.parametrize("n", [100, 1000])
def test_the_interval_of_a_calibrated_classifier_is_near_0_and_of_another_is_not(n: int) -> None:
    calibrated, unsure = (next(m for m in drawn(n, of).measurements() if m.metric == ECE) for of in (1.0, 4.0))
    assert calibrated.low is not None
    assert unsure.low is not None
    assert calibrated.low < 3
    assert unsure.low > 15
    assert calibrated.value > 0, "chance alone makes bins differ"


def test_methods_are_compared_in_both_on_the_same_images() -> None:
    good, bad = drawn(800), drawn(800, 3.0)
    values = [{m.metric: m.value for m in one.measurements()} for one in (good, bad)]
    for metric, unit in ((ECE, 100), (NLL, 1)):
        compared = Outcomes.compare([good], [bad], metric)
        assert unit * compared.difference == pytest.approx(values[0][metric] - values[1][metric])
        assert compared.interval.high < 0
        assert compared.way == "resampled"
        assert Outcomes.compare([good, bad], [bad, good], metric).difference == pytest.approx(0)
    votes = replace(good, scores=replace(good.scores, log_probability=None))
    with pytest.raises(ValueError, match="NLL cannot be computed: the record has no probabilities"):
        Outcomes.compare([good], [votes], NLL)
    with pytest.raises(ValueError, match="ECE, 15 bins cannot be computed: the record has no probabilities"):
        Outcomes.compare([good], [replace(good, scores=None)], ECE)


# --- What is kept


def test_the_most_likely_classes_are_in_the_order_of_their_scores() -> None:
    logits = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    made = classified(logits, torch.arange(60) % 8)
    assert made.scores is not None
    expected = logits.softmax(1).sort(1, descending=True)
    assert made.scores.top.tolist() == expected.indices[:, :5].tolist()
    assert made.scores.top_probability == pytest.approx(expected.values[:, :5].numpy(), rel=1e-5)
    own = logits.log_softmax(1).gather(1, (torch.arange(60) % 8)[:, None])[:, 0]
    assert made.scores.log_probability == pytest.approx(own.numpy(), rel=1e-5)
    few = classified(logits[:, :3], torch.arange(60) % 3)
    assert few.scores is not None
    assert few.scores.top.shape == (60, 3)
    assert (made.scores.top.dtype, made.scores.top_probability.dtype) == (np.int16, np.float32)


def test_outcomes_with_scores_are_read_as_they_were_kept_and_those_without_as_before() -> None:
    made = drawn(50)
    back = Outcomes.from_arrays(read_arrays(_packed(made), Outcomes.layout))
    assert _packed(back) == _packed(made)
    assert back.measurements() == made.measurements()
    older = Outcomes.from_arrays(read_arrays(_packed(replace(made, scores=None)), Outcomes.layout))
    assert older.scores is None
    assert older.measurements() == made.measurements()[:2], "no calibration, and all else as it is"
    assert "confidence" not in older.frame()
    assert [made.frame()[name].tolist() for name in older.frame()] == [
        older.frame()[name].tolist() for name in older.frame()
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_probability", 1.5, "out of range"),
        ("top_probability", -0.1, "out of range"),
        ("top_probability", float("nan"), "out of range"),
        ("log_probability", 0.1, "out of range"),
        ("log_probability", -float("inf"), "out of range"),
        ("top", 6, "not the prediction"),
    ],
)
def test_scores_that_cannot_be_are_refused(name: str, value: float, message: str) -> None:
    arrays = drawn(50).arrays()
    changed = arrays[name].copy()
    changed[arrays["top"][:, 0] < 6] = value
    with pytest.raises(ValueError, match=message):
        Outcomes.from_arrays({**arrays, name: changed})
    with pytest.raises(KeyError, match="top_probability"):
        Outcomes.from_arrays({key: array for key, array in arrays.items() if key != "top_probability"})
    with pytest.raises(ValueError, match="most likely classes"):
        Outcomes.from_arrays({**arrays, "log_probability": arrays["log_probability"][1:]})


def test_a_label_that_is_elsewhere_than_at_its_rank_is_refused() -> None:
    arrays = drawn(50).arrays()
    top = arrays["top"].copy()
    top[:, 1], top[:, 2] = arrays["top"][:, 2], arrays["top"][:, 1]
    with pytest.raises(ValueError, match="not among the most likely classes at its rank"):
        Outcomes.from_arrays({**arrays, "top": top})


# --- Runs and tables


PROBED = f"""
{encoder("shallow", depth=1)}
[method.other]
scratch = true
encoder = "shallow"
[defaults.knn]
workers = 0
[defaults.linear]
workers = 0
epochs = 2
warmup_epochs = 0
batch = 8
fresh_crops = false
[downstream.linear]
kind = "linear"
title = "Linear"
data = "toy"
[defaults.robustness]
workers = 0
[shifted.plain]
path = "toy/val"
[robustness.shift]
tasks = ["linear"]
sets = ["plain"]
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders by k-NN and by linear probe, and these probes on the same images as a shifted set."""
    folder = tmp_path_factory.mktemp("calibration")
    write_images(folder)
    text = SUITE.replace('title = "toy"', 'title = "toy"\ncompare = [["scratch", "other"]]') + 'kind = "knn"\n' + PROBED
    (folder / "toy.toml").write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        run_suite(load_suite(str(folder / "toy.toml")), [], [], Workspace(folder, folder / "runs", folder / "results"))
    return folder


def view_of(folder: Path) -> View:
    return View.read(load_suite(str(folder / "toy.toml")), folder / "results")


def section(view: View, title: str) -> Section:
    return next(one for one in all_sections(view) if one.title == title)


def test_records_have_calibration_of_every_classifier_and_no_nll_of_votes(measured: Path) -> None:
    metrics = {
        name: [m.metric for m in r.measurements] for name, r in read_records(measured / "results", "toy").items()
    }
    assert metrics["downstream/linear/other/seed0"] == ["top-1", "top-5", ECE, NLL]
    assert metrics["downstream/task/other/seed0"] == ["top-1", "top-5", ECE]
    assert metrics["robustness/shift/plain/linear-probe/other/seed0"][-1] == f"{ECE}, 3 classes, bicubic"


def test_tables_have_calibration_in_sections_of_its_own_and_nowhere_else(measured: Path) -> None:
    view = view_of(measured)
    made = section(view, "Calibration")
    titles = {"task": 2, "Linear": 2, "plain, linear probe, 3 classes, bicubic": 2}
    assert made.frame["task"].value_counts().to_dict() == titles
    record = view.records["downstream/linear/other/seed0"]
    row = made.frame[(made.frame["task"] == "Linear") & (made.frame["method"] == "other")].iloc[0]
    expected = [record.measured(metric) for metric in (ECE, NLL)]
    assert [row["ECE, % ↓"], row["NLL ↓"]] == [m.text() for m in expected if m]
    votes = made.frame[made.frame["task"] == "task"]
    assert votes["NLL ↓"].tolist() == ["", ""]
    assert "the share of the votes" in made.legend
    assert "smoothing" not in made.legend, "nothing was fine-tuned"
    assert made.data is not None
    assert set(made.data["metric"]) == {ECE, NLL, f"{ECE}, 3 classes, bicubic"}
    assert made.data[made.data["metric"] == NLL]["value"].tolist() == [
        m.value for name in ("scratch", "other") if (m := view.records[f"downstream/linear/{name}/seed0"].measured(NLL))
    ]
    for title in ("", "Differences on the same images", "Shifted test sets"):
        for one in (one for one in all_sections(view) if one.title == title):
            assert not [text for text in one.frame.to_numpy().ravel() if ECE in str(text) or NLL in str(text)]


def test_rows_that_are_there_for_a_study_alone_have_no_calibration(measured: Path) -> None:
    view = view_of(measured)
    suite = replace(view.suite, study_rows=frozenset({("downstream", "linear", "other")}))
    made = section(View(suite, view.records, view.entries), "Calibration").frame
    assert made[made["task"] == "Linear"]["method"].tolist() == ["scratch"]


def test_pairs_of_methods_are_compared_in_calibration_on_the_same_images(measured: Path) -> None:
    view = view_of(measured)
    pairs = section(view, "Calibration, pairs on the same images").frame
    assert pairs["task"].tolist() == ["task", "Linear", "plain, linear probe, 3 classes, bicubic"]
    first, second = (view.records[f"downstream/linear/{name}/seed0"] for name in ("scratch", "other"))
    compared = Outcomes.compare([first.outcomes], [second.outcomes], ECE)
    assert pairs["ECE"].tolist()[1] == points(compared.difference, compared.interval)
    assert [bool(text) for text in pairs["NLL"]] == [False, True, False]


def test_a_record_of_before_there_were_scores_is_read_and_has_no_row(measured: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for record in read_records(measured / "results", "toy").values():
        made, kept = record.outcomes, record.measurements
        if isinstance(made, Outcomes) and record.method == "other":
            made, kept = replace(made, scores=None), [m for m in kept if m.metric not in (ECE, NLL)]
        write_record(record.model_copy(update={"measurements": kept}), made, results)
    view = View.read(load_suite(str(measured / "toy.toml")), results)
    made = section(view, "Calibration").frame
    assert made[made["task"] == "Linear"]["method"].tolist() == ["scratch"]
    [older] = [one for one in view.entries if (one.task, one.method) == ("linear", "other")]
    assert older.measured is not None, "it has its row in the main table"
    assert section(view, "Calibration, pairs on the same images").frame["task"].tolist() == [
        "plain, linear probe, 3 classes, bicubic"
    ]


def test_smoothed_labels_are_told_where_a_classifier_was_trained_with_them(measured: Path) -> None:
    view = view_of(measured)

    def tuned(run: PlannedRun) -> PlannedRun:
        if run.task != "linear":
            return run
        assert isinstance(run.recipe, LinearRecipe)
        return replace(run, recipe=FinetuneRecipe(encoder=run.recipe.encoder, data=run.recipe.data))

    suite = replace(view.suite, runs=tuple(map(tuned, view.suite.runs)))
    made = section(View(suite, view.records, view.entries), "Calibration")
    told = "Trained with label smoothing, mixup or cutmix: Linear; plain, linear probe."
    assert told in made.legend, "a shifted set's classifier was trained by the run that it measures"


def test_show_and_python_have_the_columns(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(record_path(measured / "results", "toy", "downstream/linear/other/seed0"))
    frame = images_of(record)
    assert (
        frame["confidence"].tolist() == frame["top1_probability"].tolist() == record.outcomes.scores.confidence.tolist()
    )
    assert frame["top1"].tolist() == frame["prediction"].tolist()
    assert frame["log_probability"].mean() == pytest.approx(
        -next(m.value for m in record.measurements if m.metric == NLL)
    )
    assert {"top3", "top3_probability"} <= set(frame)
    assert "top4" not in frame, "there are three classes"
    shifted = images_of(record_path(measured / "results", "toy", "robustness/shift/plain/linear-probe/other/seed0"))
    assert shifted["score"].tolist() == pytest.approx(frame["confidence"].tolist(), abs=1e-6)
    assert show_record(record, measured / "runs", measured / "results")
    shown = capsys.readouterr().out
    assert ECE in shown
    assert " nats" in shown
    assert "confidence" in shown


# --- Linear probes on shifted sets


def test_on_its_own_validation_images_a_probe_does_as_it_did_in_stage_two(measured: Path) -> None:
    for method in ("scratch", "other"):
        record = read_record(record_path(measured / "results", "toy", f"downstream/linear/{method}/seed0"))
        path = record_path(measured / "results", "toy", f"robustness/shift/plain/linear-probe/{method}/seed0")
        [found] = read_record(path).outcomes.conditions
        assert len(set(found.prediction[0].tolist())) > 1
        assert found.prediction[0].tolist() == record.outcomes.prediction.tolist()
        assert found.rank[0].tolist() == record.outcomes.rank.tolist()
        shares = [read.measurements[0].value for read in (record, read_record(path))]
        assert shares[0] == pytest.approx(shares[1], rel=1e-12)
        errors = [
            next(m for m in read.measurements if m.metric.startswith(ECE)) for read in (record, read_record(path))
        ]
        for name in ("value", "low", "high"):
            assert getattr(errors[0], name) == pytest.approx(getattr(errors[1], name), abs=1e-4)
