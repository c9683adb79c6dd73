"""The datasets that a suite needs, and which of them are absent."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lutbench.data.subsets import restricted_survey
from lutbench.data.survey import Survey
from lutbench.kinds import dataset_module
from lutbench.plan.costs import DONE, Costs, settings_of
from lutbench.plan.known import answer
from lutbench.progress import tracked
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import refusal, warnings
from lutbench.run import Run
from lutbench.run_status import weights_problem
from lutbench.workspace import Workspace


def survey_all(suite: LoadedSuite, workspace: Workspace) -> dict[str, Survey]:
    """Return the survey of the dataset, or the part of it, that each run reads, by name of the run; files are listed once per dataset."""
    different = {run.recipe.dataset.model_dump_json(): run.recipe.dataset for run in suite.runs}
    surveys = {
        key: dataset_module(recipe).survey(recipe, workspace)
        for key, recipe in tracked(different.items(), len(different), "listing datasets")
    }
    whole = {run.name: surveys[run.recipe.dataset.model_dump_json()] for run in suite.runs}
    return {
        run.name: restricted_survey(whole[run.name], run.recipe, workspace, f"{run.stage}.{run.task}")
        for run in suite.runs
    }


def missing(costs: Costs, surveys: Mapping[str, Survey], check: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Return the missing datasets that lutbench does not build itself, and the reasons why runs cannot start.

    The first are the known datasets, by name, each with what is missing or where it was expected; the second has a paragraph for
    everything else, by name of the run. ``check``: find also what would stop runs whose data is present, for which their models are
    built.
    """
    known, refused = dict[str, str](), dict[str, str]()
    chosen = {one.run.name for one in costs.runs}
    absent = {one.run.name: _absent(one.run, surveys[one.run.name]) for one in costs.runs}
    looked_at = [one.run for one in costs.runs if (absent[one.run.name] or not check) and one.origin != DONE]
    of_weights = weights_problems(looked_at) if len(looked_at) == len(costs.to_run) else {}
    for one in costs.runs:
        run, survey, problem = one.run, surveys[one.run.name], absent[one.run.name]
        if problem and not survey.made:
            if survey.known:
                known.setdefault(survey.known, problem)
            else:
                refused[run.name] = problem
        if run.name in of_weights:
            found = of_weights[run.name]
        else:
            done = one.origin == DONE
            found = weights_problem(run, finished=done) if problem or done or not check else refusal(run, chosen)
        if found := found or one.refused:
            refused[run.name] = found
    return known, refused


def _absent(run: Run[Any], survey: Survey) -> str:
    """Return what is missing of the data that a run reads; empty if nothing is."""
    return next((survey.problems[split] for split in run.recipe.splits if split in survey.problems), "")


def weights_problems(runs: Sequence[Run[Any]]) -> dict[str, str]:
    """Return why each run cannot start from its weights, by name; empty if it can. See :func:`lutbench.run_status.weights_problem`.

    If no run of a task starts from a file, the answer may be known already, and no model is built.
    """
    found: dict[str, str] = {}
    tasks: dict[tuple[str, str], list[Run[Any]]] = {}
    for run in runs:
        tasks.setdefault((run.planned.stage, run.planned.task), []).append(run)
    for task in tasks.values():
        found |= _problems_of(task)
    return found


class _SomeProblem(Exception):
    """There is a problem, so the answer is not cached."""


def _problems_of(task: Sequence[Run[Any]]) -> dict[str, str]:
    """Return the same for the runs of one task, whose encoders may have to fit each other."""
    found: dict[str, str] = {}

    def find() -> list[float]:
        found.update((run.name, weights_problem(run)) for run in task)
        if any(found.values()):
            raise _SomeProblem
        return []

    if any(_tells_of_weights(run) for run in task):
        with suppress(_SomeProblem):
            find()
        return found
    asked = {"about": "weights", "runs": [[run.planned.method, *settings_of(run)] for run in task]}
    with suppress(_SomeProblem):
        answer(asked, [run.recipe for run in task], find)
    return found or {run.name: "" for run in task}


def _tells_of_weights(run: Run[Any]) -> bool:
    """Return whether a run starts from a file of the user, or prints the licence of the encoder it starts from: these are always checked."""
    source = run.recipe.source
    if source is None or source.kind in ("run", "scratch"):
        return False
    return source.kind != "timm" or run.planned.kind.starts_from == "encoder"


def foreseen(costs: Costs, surveys: Mapping[str, Survey]) -> dict[str, str]:
    """Return the warnings of the runs that have not finished, by name."""
    images = {one.run.name: surveys[one.run.name].images for one in costs.to_run}
    return warnings((one.run for one in costs.to_run), images)
