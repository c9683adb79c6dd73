"""A user's records stand beside the reference's: the same bits, as near as another machine's, or different."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbench.evaluate.outcomes import Measurement, Outcomes
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record, read_record, read_records
from lutbench.record_writing import make_record, write_record
from lutbench.report.reference import compare_with_reference, reference_section

SUITE = """
title = "Toys"
about = "for tests"
kind = "pipeline"
[data.toys]
path = "toys"
[encoder.base]
[pretrain.mae]
data = "toys"
encoder = "base"
epochs = 50
[method.mae]
pretrain = "mae"
[downstream.near]
kind = "knn"
data = "toys"
"""


@pytest.fixture
def suite(tmp_path: Path) -> LoadedSuite:
    (tmp_path / "toy.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "toy.toml"))


def record(
    suite: LoadedSuite, folder: Path, name: str, made: Outcomes | float, encoder: str = "a", **inputs: Any
) -> Record:
    """Write the record of a run with these outcomes, or with this loss."""
    planned = suite.run(name)
    identity_inputs = {
        "stage": planned.kind.name, "revision": 1, "seed": 0, "recipe": planned.recipe.affecting_results(),
        "data": {"train": "ab"}, "encoder": {"sha256": encoder}, **inputs,
    }  # fmt: skip
    outcomes = made if isinstance(made, Outcomes) else None
    measured = outcomes.measurements() if outcomes else [Measurement(metric="total loss", value=made, unit="")]  # type: ignore[arg-type]
    written = write_record(make_record(planned, identity_inputs, measured, wall_seconds=1.0), outcomes, folder)
    return read_record(written)


def right(*images: int, names: str = "image") -> Outcomes:
    """Outcomes on 1,000 images of which these are right."""
    hits = np.isin(np.arange(1000), images)
    every = (f"{names}{number}.png" for number in range(1000))
    return Outcomes.of(np.ones(1000, int), np.where(hits, 1, 2), np.where(hits, 0, 3), every)


NEAR, LOSS = "downstream/near/mae/seed0", "pretrain/mae/seed0"


@pytest.mark.parametrize(
    ("own", "reference", "verdict"),
    [
        (right(*range(500)), right(*range(500)), "same bits"),
        (right(*range(500)), right(*range(3, 500)), "within what another machine changes"),
        (right(*range(500)), right(*range(400, 900)), "within what another machine changes"),
        (right(*range(500)), right(*range(400)), "different"),
        (right(*range(400)), right(*range(500)), "different"),
        (right(*range(500), names="other"), right(*range(500)), "different"),
    ],
)
def test_outcomes_are_compared_image_by_image(
    suite: LoadedSuite, tmp_path: Path, own: Outcomes, reference: Outcomes, verdict: str
) -> None:
    mine = {NEAR: record(suite, tmp_path / "own", NEAR, own, encoder="other bits")}
    theirs = {NEAR: record(suite, tmp_path / "reference", NEAR, reference)}
    (found,) = compare_with_reference(mine, theirs)
    expected = verdict, "top-1", own.measurements()[0].value, reference.measurements()[0].value
    assert (found.verdict, found.metric, found.value, found.expected) == expected
    assert (found.difference is None) == (verdict == "same bits" or own.images != reference.images)


@pytest.mark.parametrize(
    ("own", "verdict"),
    [(0.5, "same bits"), (0.50049, "within what another machine changes"), (0.5006, "different"), (0.4, "different")],
)
def test_losses_are_compared_by_their_size(suite: LoadedSuite, tmp_path: Path, own: float, verdict: str) -> None:
    mine, theirs = (record(suite, tmp_path / name, LOSS, loss) for name, loss in (("own", own), ("reference", 0.5)))
    (found,) = compare_with_reference({LOSS: mine}, {LOSS: theirs})
    assert (found.verdict, found.difference) == (verdict, None)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"revision": 2}, {"data": {"train": "cd"}}, {"recipe": {"neighbours": 3}}]
)
def test_records_of_another_recipe_seed_revision_or_data_are_not_compared(
    suite: LoadedSuite, tmp_path: Path, other: dict[str, Any]
) -> None:
    mine = record(suite, tmp_path / "own", NEAR, right(1))
    changed = mine.model_copy(update={"identity_inputs": mine.identity_inputs | other})
    assert compare_with_reference({NEAR: mine}, {NEAR: changed}) == []
    assert len(compare_with_reference({NEAR: mine}, {NEAR: mine})) == 1


def test_what_is_printed_names_what_is_different(suite: LoadedSuite, tmp_path: Path) -> None:
    for name, hits, loss in (("own", 400, 0.5), ("reference", 500, 0.5)):
        record(suite, tmp_path / name, NEAR, right(*range(hits)))
        record(suite, tmp_path / name, LOSS, loss)
    section = reference_section(suite, tmp_path / "own", tmp_path / "reference")
    assert section is not None
    assert "2 of your records have a reference of the same recipe and data: 1 same bits, 1 different." in section.legend
    assert f"Look into {NEAR}:" in section.legend
    rows = section.frame.set_index("task")
    assert rows.loc["downstream/near", "difference"].startswith("-10.0 [-11.8, -8.1]")
    assert len(read_records(tmp_path / "own", "toy")) == 2


def test_nothing_is_said_without_reference_records(suite: LoadedSuite, tmp_path: Path) -> None:
    record(suite, tmp_path / "own", NEAR, right(1))
    assert reference_section(suite, tmp_path / "own", tmp_path / "own") is None
    assert reference_section(suite, tmp_path / "own", tmp_path / "nothing") is None
