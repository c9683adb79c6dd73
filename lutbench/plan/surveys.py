"""The datasets that a suite needs, and which of them are absent."""

from collections.abc import Mapping

from lutbench.data.subsets import restricted_survey
from lutbench.data.survey import Survey
from lutbench.kinds import dataset_module
from lutbench.plan.costs import DONE, Costs
from lutbench.progress import tracked
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import refusal, warnings
from lutbench.run_status import weights_problem
from lutbench.workspace import Workspace


def survey_all(suite: LoadedSuite, workspace: Workspace) -> dict[str, Survey]:
    """Return what is known of the dataset of every run, by the run's name, or of the part that it reads; each dataset is listed once."""
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


def missing(costs: Costs, surveys: Mapping[str, Survey]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is absent that the suite does not make itself, and why runs cannot be done as they are.

    Known datasets by name, each with what it lacks or where it was looked for; and a paragraph for everything else, by name of the run.
    """
    known, refused = dict[str, str](), dict[str, str]()
    chosen = {one.run.name for one in costs.runs}
    for one in costs.runs:
        run, survey = one.run, surveys[one.run.name]
        problem = next((survey.problems[split] for split in run.recipe.splits if split in survey.problems), "")
        if problem and survey.known and not survey.made:
            known.setdefault(survey.known, problem)
        elif problem and not survey.made:
            refused[run.name] = problem
        done = one.origin == DONE
        found = weights_problem(run, finished=done) if problem or done else refusal(run, chosen)
        if found := found or one.refused:
            refused[run.name] = found
    return known, refused


def foreseen(costs: Costs, surveys: Mapping[str, Survey]) -> dict[str, str]:
    """Return by name of the run, of those to come, what a user should know before it."""
    images = {one.run.name: surveys[one.run.name].images for one in costs.to_run}
    return warnings((one.run for one in costs.to_run), images)
