"""Rows of encoders as they were on the way through their pre-training, and the curves that they make: ``at`` of a task."""

from collections.abc import Iterator, Sequence
from typing import Any

from lutbench.errors import UserError, listed
from lutbench.recipes.base import check_name
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.shares import at_share
from lutbench.recipes.suite import PlannedRun, Study, StudyPoint, Suite


def snapshot_sources(
    suite: Suite, method: str, made_by: PlannedRun, source: dict[str, Any], shares: Sequence[float], where: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the row of each of the ``shares`` short of the end, ``METHOD-at-0.1``, with the ``encoder`` of its recipe.

    ``source`` is that of the method itself, whose encoder the pre-training ``made_by`` makes.

    Raises:
        UserError: if that run does not keep such a snapshot, or a row of this name is there already.
    """
    recipe, table = made_by.recipe, f"{made_by.stage}.{made_by.task}"
    assert isinstance(recipe, PretrainRecipe)
    earlier = [share for share in shares if share < 1]
    if absent := [share for share in earlier if share not in recipe.snapshots]:
        raise UserError(
            f"{where}.at: {method} comes from {table}, which keeps no snapshot at {_list(absent)}; those that it keeps: "
            f"{_list(recipe.snapshots) or 'none'}. Add the share to snapshots in [{table}], or take it out of at."
        )
    if source["export"] not in recipe.snapshot_exports:
        raise UserError(
            f"{where}.at: {method} is the teacher of {table}, whose snapshots are of the student alone. Set snapshot_teacher = true in "
            f"[{table}], or take {method} out of the methods of {where}."
        )
    for share in earlier:
        row = at_share(method, share)
        try:
            check_name(row)
        except ValueError as error:
            raise UserError(
                f"{where}.at: {row!r} cannot be the name of a row: {error}. Name {method} otherwise."
            ) from error
        if row in suite.method or row in suite.classifier:
            raise UserError(
                f"{where}.at: the row {row} would be {method} at {share:g} of its pre-training, and what the suite file calls so is another. Give "
                "that another name."
            )
        yield row, {**source, "at": share}


def snapshot_studies(suite: Suite, runs: Sequence[PlannedRun]) -> list[Study]:
    """Return the curve of every task with ``at``: its metrics against the share of the run, a line per method; the end is the base."""
    studies = []
    for stage in ("downstream", "analysis"):
        for task, table in getattr(suite, stage).items():
            rows: dict[float, dict[str, str]] = {}
            for run in runs:
                share = run.recipe.source.snapshot_share if run.recipe.source else None
                if (run.stage, run.task) == (stage, task) and share is not None:
                    method = run.method.removesuffix(at_share("", share))
                    rows.setdefault(share, {})[method] = run.method
                    rows.setdefault(1.0, {})[method] = method
            points = [
                StudyPoint({"at": at}, {(task, method): (stage, task, row) for method, row in of_share.items()})
                for at, of_share in sorted(rows.items())
            ]
            if points:
                title = table.title or task
                title += "" if "on the way" in title else ", on the way"
                studies.append(Study(f"at.{task}", title, ("at",), tuple(points), len(points) - 1))
    return studies


def study_rows_of(runs: Sequence[PlannedRun]) -> frozenset[tuple[str, str, str]]:
    """Return stage, task and method of the rows that are there for these curves alone."""
    return frozenset(
        (run.stage, run.task, run.method)
        for run in runs
        if (source := run.recipe.source) and source.snapshot_share is not None
    )


def _list(shares: Sequence[float]) -> str:
    return listed([f"{share:g}" for share in shares])
