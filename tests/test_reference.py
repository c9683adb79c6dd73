"""How records compare with those that come with the repository: the shipped records of ``tiny``, and changes to them."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Outcomes, PerImage, names_fingerprint
from lutbench.recipes.loading import load_suite
from lutbench.record import Attachment, Record, read_records
from lutbench.record_writing import write_record
from lutbench.report.reference import (
    Agreement,
    agreement_frame,
    agreement_sentence,
    compare_with_reference,
    reference_section,
)
from lutbench.report.sections import View

RESULTS = Path(__file__).parents[1] / "results/reference"
TUNED, LOSSES, OCCLUSION = (
    "downstream/photographs-finetune/lut/seed0",
    "pretrain/lut/seed0",
    "robustness/photographs/occlusion/lut/seed0",
)
WITHIN = "within machine variation"


@pytest.fixture(scope="module")
def shipped() -> dict[str, Record]:
    return read_records(RESULTS, "tiny")


def measured(record: Record, outcomes: PerImage, folder: Path) -> Record:
    """The same record with other outcomes."""
    write_record(record.model_copy(update={"measurements": outcomes.measurements()}), outcomes, folder)
    return read_records(folder, record.suite)[record.run]


def flipped(outcomes: Outcomes, to_wrong: int, to_right: int) -> Outcomes:
    """So many of the images that were right are wrong, and so many of the wrong ones right."""
    rank, prediction = outcomes.rank.copy(), outcomes.prediction.copy()
    wrong, right = np.flatnonzero(outcomes.right())[:to_wrong], np.flatnonzero(~outcomes.right())[:to_right]
    rank[wrong], rank[right] = 1, 0
    prediction[wrong], prediction[right] = (outcomes.label[wrong] + 1) % 19, outcomes.label[right]
    return replace(outcomes, rank=rank, prediction=prediction, scores=None)  # which would be of other predictions


def agreement(own: Record, shipped: Mapping[str, Record]) -> Agreement:
    (found,) = [one for one in compare_with_reference({**shipped, own.run: own}, shipped) if one.own is own]
    return found


def with_inputs(record: Record, **inputs: Any) -> Record:
    return record.model_copy(update={"identity_inputs": {**record.identity_inputs, **inputs}})


def test_the_shipped_records_have_the_same_bits_as_themselves(shipped: dict[str, Record]) -> None:
    agreements = compare_with_reference(shipped, shipped)
    assert {one.own.run for one in agreements} == set(shipped)
    assert {one.verdict for one in agreements} == {"same bits"}
    assert agreement_sentence(agreements) == "42 of 42 records agree with the reference: 42 same bits."


@pytest.mark.parametrize(
    ("to_wrong", "to_right", "verdict"),
    [
        (1, 1, WITHIN),  # the same top-1 of other images
        (9, 0, WITHIN),  # 0.95 points, with an interval that does not hold 0
        (10, 0, "different"),  # 1.05 points
        (50, 40, WITHIN),  # 1.05 points, with an interval that holds 0
        (50, 20, "different"),  # 3.2 points
    ],
)
def test_per_image_outcomes_are_compared_on_the_same_images(
    shipped: dict[str, Record], tmp_path: Path, to_wrong: int, to_right: int, verdict: str
) -> None:
    reference = shipped[TUNED]
    own = measured(reference, flipped(reference.outcomes, to_wrong, to_right), tmp_path)
    found = agreement(own, shipped)
    assert found.verdict == verdict
    assert found.difference == Outcomes.compare([own.outcomes], [reference.outcomes], "top-1")
    assert found.difference is not None
    assert found.difference.difference == pytest.approx((to_right - to_wrong) / 950)
    assert (found.measured, found.expected) == (own.measurements[0], reference.measurements[0])


def test_outcomes_on_other_images_are_different(shipped: dict[str, Record], tmp_path: Path) -> None:
    others = replace(shipped[TUNED].outcomes, images="0" * 64, names=())
    found = agreement(measured(shipped[TUNED], others, tmp_path), shipped)
    assert (found.verdict, found.difference) == ("different", None)


def test_names_of_images_that_a_record_of_before_does_not_keep_are_no_other_bits(
    shipped: dict[str, Record], tmp_path: Path
) -> None:
    names = tuple(f"{row}.png" for row in range(950))
    named = replace(shipped[TUNED].outcomes, images=names_fingerprint(names), names=names)
    now = measured(shipped[TUNED], named, tmp_path / "now")
    before = measured(shipped[TUNED], replace(named, names=()), tmp_path / "before")
    assert now.files != before.files
    assert agreement(now, {TUNED: before}).verdict == agreement(before, {TUNED: now}).verdict == "same bits"
    rank = named.rank.copy()
    rank[np.flatnonzero(named.rank > 5)[0]] -= 1  # which changes neither top-1 nor top-5
    other = measured(shipped[TUNED], replace(named, rank=rank, names=()), tmp_path / "other")
    assert agreement(now, {TUNED: other}).verdict == WITHIN


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1, "same bits"), (1.0009, WITHIN), (0.9991, WITHIN), (1.0011, "different"), (0.8, "different")],
)
def test_losses_are_compared_by_their_relative_difference(
    shipped: dict[str, Record], factor: float, verdict: str
) -> None:
    reference = shipped[LOSSES]
    losses = [
        m.model_copy(update={"value": factor * m.value}) if m.metric == "context loss" else m
        for m in reference.measurements
    ]
    found = agreement(reference.model_copy(update={"measurements": losses}), shipped)
    assert (found.verdict, found.difference) == (verdict, None)
    assert found.measured.metric == ("total loss" if factor == 1 else "context loss")


def test_every_metric_that_tables_print_decides(shipped: dict[str, Record], tmp_path: Path) -> None:
    reference = shipped[OCCLUSION]
    cells = [
        replace(cell, rank=np.ones_like(cell.rank)) if cell.condition.startswith("shuffle") else cell
        for cell in reference.outcomes.conditions
    ]
    found = agreement(measured(reference, replace(reference.outcomes, conditions=tuple(cells)), tmp_path), shipped)
    assert (found.verdict, found.measured.metric) == ("different", "mean top-1, tiles shuffled")


def test_equal_numbers_with_another_array_are_not_the_same_bits(shipped: dict[str, Record]) -> None:
    array = Attachment(name="spectrum", kind="array", file="seed0-spectrum-0.npy", sha256="0" * 64)
    assert agreement(shipped[LOSSES].model_copy(update={"attachments": [array]}), shipped).verdict == WITHIN


@pytest.mark.parametrize(
    "changed", [{"revision": 99}, {"seed": 1}, {"recipe": {}}, {"data": {"train": "0", "val": "0"}}, {"stage": "knn"}]
)
def test_only_runs_of_the_same_recipe_kind_revision_seed_and_data_are_compared(
    shipped: dict[str, Record], changed: dict[str, Any]
) -> None:
    own = {**shipped, TUNED: with_inputs(shipped[TUNED], **changed)}
    compared = {one.own.run for one in compare_with_reference(own, shipped)}
    after = {name for name in shipped if (name.startswith("robustness") and "/lut/" in name) or "/lut-tuned/" in name}
    assert compared == set(shipped) - after - {TUNED}, "nor those of the classifier that came out"


def test_the_bits_of_the_encoder_that_a_run_starts_from_may_differ_but_not_where_they_are_from(
    shipped: dict[str, Record],
) -> None:
    pretrained = shipped[LOSSES].model_copy(update={"identity": "1" * 64})
    tuned = with_inputs(shipped[TUNED], encoder={"run": "1" * 64, "sha256": "2" * 64})
    own = {LOSSES: pretrained, TUNED: tuned}
    assert [one.verdict for one in compare_with_reference(own, shipped)] == ["same bits", "same bits"]
    assert compare_with_reference({TUNED: tuned}, shipped) == [], "nobody knows its encoder's recipe"
    longer = with_inputs(pretrained, recipe={**pretrained.identity_inputs["recipe"], "epochs": 3})
    assert compare_with_reference({**own, LOSSES: longer}, shipped) == []
    mine, yours = (with_inputs(shipped[TUNED], encoder={"sha256": digit * 64}) for digit in "12")
    assert compare_with_reference({TUNED: mine}, {TUNED: yours}) == [], "another file of weights"
    assert len(compare_with_reference({TUNED: mine}, {TUNED: mine})) == 1


def test_a_row_has_both_values_and_the_sentence_names_what_is_different(
    shipped: dict[str, Record], tmp_path: Path
) -> None:
    own = {**shipped, TUNED: measured(shipped[TUNED], flipped(shipped[TUNED].outcomes, 95, 0), tmp_path)}
    agreements = compare_with_reference(own, shipped)
    frame = agreement_frame(agreements)
    assert len(frame) == 42
    (row,) = frame[frame[""] == "different"].to_dict("records")
    assert row.pop("difference").startswith("-10.0 [-11.")
    value = shipped[TUNED].measurements[0].value
    assert row == {
        "task": "downstream/photographs-finetune", "metric": "top-1", "run": "lut/seed0",
        "yours": f"{value - 10:.1f}", "reference": f"{value:.1f}", "": "different",
    }  # fmt: skip
    assert agreement_sentence(agreements) == (
        f"41 of 42 records agree with the reference: 41 same bits. Different: {TUNED} (top-1)."
    )


def test_tables_say_it_where_there_is_a_reference_and_nothing_where_not(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "reference"):
        shutil.copytree(RESULTS / "records/tiny/pretrain", folder / "records/tiny/pretrain")
    view = View.read(load_suite("tiny"), tmp_path)
    for given in (None, RESULTS):
        section = reference_section(view, tmp_path, given)
        assert section is not None
        assert section.legend.startswith("5 of 5 records agree with the reference: 5 same bits. ")
        assert len(section.frame) == 5
    with pytest.raises(UserError, match=r"--reference .*elsewhere: there are no records of suite tiny"):
        reference_section(view, tmp_path, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "reference")
    assert reference_section(view, tmp_path) is None
