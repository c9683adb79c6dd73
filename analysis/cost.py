"""FLOP per image of an analysis: the forward pass, and the largest matrix products of its measures."""

from analysis.grid import run_grid
from lutbench.plan.compute import transformer
from lutbench.plan.cost import Cost
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.run import Run


def cost(run: Run[AnalysisRecipe], classes: int) -> Cost:
    """Return what an image takes that is analysed, and one of the neighbours' bank, which is only encoded; nothing is kept.

    Counted beside the forward pass are attention's products of queries and keys, which are computed once more, and the second
    moments of all tokens in every block.
    """
    recipe = run.recipe
    grid = run_grid(run)
    forward = transformer(recipe.encoder.architecture, recipe.side).flop
    patches = grid.side**2
    attention = 2 * patches**2 * grid.width * grid.depth if "attention" in recipe.measures else 0
    moments = 2 * patches * grid.width**2 * (grid.depth + 1) if "spectrum" in recipe.measures else 0
    return Cost(forward, forward + attention + moments)
