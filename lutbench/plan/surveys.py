"""The datasets that a suite needs, and which of them are absent."""

from lutbench.data.survey import Survey
from lutbench.errors import UserError
from lutbench.kinds import dataset_module
from lutbench.progress import tracked
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import checkpoint_of
from lutbench.workspace import Workspace


def survey_all(suite: LoadedSuite, workspace: Workspace) -> dict[str, Survey]:
    """Return what is known of the dataset of every run, by the run's name; each dataset is listed once."""
    recipes = {run.name: run.recipe.dataset for run in suite.runs}
    different = {recipe.model_dump_json(): recipe for recipe in recipes.values()}
    surveys = {
        key: dataset_module(recipe).survey(recipe, workspace)
        for key, recipe in tracked(different.items(), len(different), "listing datasets")
    }
    return {name: surveys[recipe.model_dump_json()] for name, recipe in recipes.items()}


def missing(suite: LoadedSuite, surveys: dict[str, Survey]) -> tuple[dict[str, str], list[str]]:
    """Return what is absent that the suite does not make itself.

    Known datasets by name, each with what it lacks or where it was looked for; and a paragraph for everything else.
    """
    known, paragraphs = dict[str, str](), list[str]()
    for run in suite.runs:
        survey = surveys[run.name]
        problem = next((survey.problems[split] for split in run.recipe.splits if split in survey.problems), "")
        if problem and survey.known and not survey.made:
            known.setdefault(survey.known, problem)
        elif problem and not survey.made:
            paragraphs.append(problem)
        try:
            checkpoint_of(run)
        except UserError as error:
            paragraphs.append(str(error))
    return known, list(dict.fromkeys(paragraphs))
