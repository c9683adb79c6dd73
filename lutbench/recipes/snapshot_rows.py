"""Rows for snapshots of encoders during pre-training, and the curves over training that they make: ``at`` of a task."""

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
    """Yield the row name ``METHOD-at-SHARE`` and the ``encoder`` of the recipe for each of the ``shares`` below 1.

    ``source`` is the method's own ``encoder``, which the pre-training ``made_by`` makes.

    Raises:
        UserError: if that run does not save such a snapshot, or there is a row of this name already.
    """
    recipe, table = made_by.recipe, f"{made_by.stage}.{made_by.task}"
    assert isinstance(recipe, PretrainRecipe)
    earlier = [share for share in shares if share < 1]
    if absent := [share for share in earlier if share not in recipe.snapshots]:
        raise UserError(
            f"{where}.at: {method} comes from {table}, which saves no snapshot at {_list(absent)}. Its snapshots: "
            f"{_list(recipe.snapshots) or 'none'}. Add the share to snapshots in [{table}], or remove it from at."
        )
    if source["export"] not in recipe.snapshot_exports:
        raise UserError(
            f"{where}.at: {method} is the teacher of {table}, but its snapshots contain only the student. Set snapshot_teacher = true in "
            f"[{table}], or remove {method} from the methods of {where}."
        )
    for share in earlier:
        row = at_share(method, share)
        try:
            check_name(row)
        except ValueError as error:
            raise UserError(f"{where}.at: {row!r} is not a valid name of a row: {error}. Rename {method}.") from error
        if row in suite.method or row in suite.classifier:
            raise UserError(
                f"{where}.at: the row for {method} at {share:g} of its pre-training would be named {row}, but the suite file has another row of "
                "this name. Rename that row."
            )
        yield row, {**source, "at": share}


def snapshot_studies(suite: Suite, runs: Sequence[PlannedRun]) -> list[Study]:
    """Return a study for every task with ``at``: metrics over the share of the pre-training, one line per method; the end is the base."""
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
    """Return stage, task and method of the rows that exist only for these curves."""
    return frozenset(
        (run.stage, run.task, run.method)
        for run in runs
        if (source := run.recipe.source) and source.snapshot_share is not None
    )


def _list(shares: Sequence[float]) -> str:
    return listed([f"{share:g}" for share in shares])
