"""FLOP per image of evaluating a classifier."""

from functools import cache

import timm

from lutbench.models.meta import shapes_only
from lutbench.plan.compute import count, transformer
from lutbench.plan.cost import Cost
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.run import Run
from robustness.classifier import size_argument

SIDE = 224
"""Side in pixels of the input of a timm model whose configuration is not asked: most of them."""


def cost(run: Run[RobustnessRecipe], classes: int) -> Cost:
    """Return what the forward pass takes of the run's classifier: a fine-tuned one of ``classes`` outputs, or timm's."""
    recipe = run.recipe
    if run.needs is None:
        return Cost(evaluate=_of_timm(recipe.classifier.model, recipe.image_size or SIDE))
    tuned = run.needs.recipe
    return Cost(evaluate=transformer(tuned.encoder.architecture, recipe.image_size or tuned.side, classes).flop)


@cache
def _of_timm(name: str, side: int) -> float:
    with shapes_only():
        return count(timm.create_model(name, **size_argument(name, side)).eval(), side).flop
