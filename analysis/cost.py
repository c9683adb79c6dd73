"""What an analysis computes for one image: the forward pass, and the largest products that its measures add."""

from lutbench.models.encoders import geometry_of
from lutbench.plan.compute import Cost, transformer
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.run import Run


def cost(run: Run[AnalysisRecipe], classes: int) -> Cost:
    """Return what an image takes that is analysed, and one of the neighbours' bank, which is only encoded; nothing is kept.

    Counted beside the forward pass are attention's products of queries and keys, which are computed once more, and the second
    moments of all tokens in every block.
    """
    recipe = run.recipe
    geometry, forward = (
        geometry_of(recipe.encoder.architecture),
        transformer(recipe.encoder.architecture, recipe.side).flop,
    )
    patches, width = (recipe.side // geometry.patch_size) ** 2, geometry.width
    attention = 2 * patches**2 * width * geometry.depth if "attention" in recipe.measures else 0
    moments = 2 * patches * width**2 * (geometry.depth + 1) if "spectrum" in recipe.measures else 0
    return Cost(forward, forward + attention + moments)
