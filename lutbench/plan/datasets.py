"""The datasets that a suite needs, each surveyed once, and which of them are missing."""

from dataclasses import dataclass, field

from lutbench.data.survey import Survey
from lutbench.errors import UserError
from lutbench.kinds import dataset_module
from lutbench.recipes.base import DatasetRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import checkpoint_of
from lutbench.workspace import Workspace


@dataclass
class Surveys:
    """Surveys of datasets, by recipe. Nothing is built or downloaded for them."""

    workspace: Workspace
    _made: dict[str, Survey] = field(default_factory=dict)

    def of(self, recipe: DatasetRecipe) -> Survey:
        """Return what is known of a dataset."""
        key = recipe.model_dump_json()
        if key not in self._made:
            self._made[key] = dataset_module(recipe).survey(recipe, self.workspace)
        return self._made[key]


def datasets_of(suite: LoadedSuite) -> list[DatasetRecipe]:
    """Return the datasets of a suite, each once, those that are trained on first."""
    found: list[DatasetRecipe] = []
    for run in suite.runs:
        recipe = run.recipe.dataset
        same = next((place for place, other in enumerate(found) if other.same_as(recipe)), None)
        if same is None:
            found.append(recipe)
        elif len(recipe.splits) > len(found[same].splits):  # the other recipe of the same dataset says more
            found[same] = recipe
    return sorted(found, key=lambda recipe: "train" not in recipe.splits)


def missing(suite: LoadedSuite, surveys: Surveys) -> tuple[dict[str, str], list[str]]:
    """Return what is missing that the suite does not make itself.

    Known datasets by name, each with what it lacks or where it was looked for; and a paragraph for everything else.
    """
    known, paragraphs = dict[str, str](), list[str]()
    for recipe in datasets_of(suite):
        survey = surveys.of(recipe)
        if survey.lacks and survey.known:
            known[survey.known] = survey.lacks
        elif survey.lacks:
            paragraphs.append(survey.lacks)
    for run in suite.runs:
        try:
            checkpoint_of(run)
        except UserError as error:
            paragraphs.append(str(error))
    return known, list(dict.fromkeys(paragraphs))
