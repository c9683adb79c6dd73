"""What a plan knows of models without building them: it is what they give when they are built, and else nothing is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lutbench.errors import UserError
from lutbench.plan import known
from lutbench.plan.cost import Cost
from lutbench.plan.costs import recipes_of, settings_of
from lutbench.plan.surveys import survey_all, weights_problems
from lutbench.recipes.loading import load_suite
from lutbench.run import Run, open_run
from lutbench.workspace import Workspace

ASKED = {"about": "cost", "run": "a run"}


@pytest.fixture
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No answers but those that this test keeps."""
    monkeypatch.setattr(known, "SHIPPED", tmp_path / "counts.json")
    monkeypatch.setenv("LUTBENCH_CACHE", str(tmp_path / "kept"))
    known._shipped.cache_clear()
    yield
    known._shipped.cache_clear()


def runs_of_every_kind() -> Iterator[tuple[Run[Any], int]]:
    """A run of every kind of ``tiny``, and of every one that only ``paper`` has, with the number of its classes."""
    kinds = set[str]()
    for name in ("tiny", "paper"):
        suite, workspace = (
            load_suite(name),
            Workspace(Path("nowhere"), Path("nowhere"), Path("nowhere"), download=False),
        )
        surveys = survey_all(suite, workspace)
        for planned in suite.runs:
            if planned.kind.name not in kinds:
                kinds.add(planned.kind.name)
                run = open_run(suite, planned, workspace)
                trained = planned.needs if planned.kind.starts_from == "classifier" and planned.needs else planned.name
                yield run, surveys[trained].classes


def test_the_answers_that_come_with_the_repository_are_of_its_sources() -> None:
    assert known._shipped(), (
        "sources of models, or timm, were changed since: find the answers anew, python -m lutbench.plan.known"
    )


def test_what_is_known_of_a_run_of_every_kind_is_what_its_model_gives() -> None:
    compared = 0
    for run, classes in runs_of_every_kind():
        asked = {"about": "cost", "classes": classes, "run": settings_of(run)}
        told = known.answer(asked, recipes_of(run), lambda: pytest.fail("nothing is known of it"))
        assert Cost._make(told) == run.planned.kind.module.cost(run, classes), run.name
        compared += 1
    assert compared >= 10


@pytest.mark.usefixtures("nothing_shipped")
def test_an_answer_is_found_once_for_the_same_question_code_and_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def find() -> list[float]:
        found.append(0.1)
        return [0.1, 2]

    for _ in range(3):
        assert list(known.answer(ASKED, [], find)) == [0.1, 2]
    assert len(found) == 1
    known.answer({**ASKED, "classes": 3}, [], find)
    assert len(found) == 2
    monkeypatch.setattr(known, "digest_of_all", lambda: "other code")
    known.answer(ASKED, [], find)
    assert len(found) == 3
    monkeypatch.setattr(known, "_timm", lambda: "another")
    known.answer(ASKED, [], find)
    assert len(found) == 4


@pytest.mark.usefixtures("nothing_shipped")
def test_what_ends_in_an_error_is_asked_again() -> None:
    def refuse() -> list[float]:
        raise UserError("no such model")

    for _ in range(2):
        with pytest.raises(UserError, match="no such model"):
            known.answer(ASKED, [], refuse)
    assert list(known.answer(ASKED, [], lambda: [1])) == [1]


def test_answers_of_another_timm_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_timm", lambda: "another")
    known._shipped.cache_clear()
    try:
        assert known._shipped() == {}
    finally:
        known._shipped.cache_clear()


@pytest.mark.usefixtures("nothing_shipped")
def test_weights_that_do_not_fit_are_told_at_every_plan(tmp_path: Path) -> None:
    overrides = ["encoder.toy.heads=3"]
    suite = load_suite("tiny", overrides)
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results", download=False)
    runs = [open_run(suite, planned, workspace) for planned in suite.runs if planned.task == "photographs-knn"]
    for _ in range(2):
        assert (
            "width = 64 is not divisible by heads = 3" in weights_problems(runs)["downstream/photographs-knn/lut/seed0"]
        )
