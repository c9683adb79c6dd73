"""``draws`` of a task: one run for each random draw of its training images."""

from dataclasses import replace

from lutbench.errors import UserError
from lutbench.recipes.suite import PlannedRun


def drawn(run: PlannedRun, draws: int, where: str) -> list[PlannedRun]:
    """Return one run for each of the ``draws`` of training images that the table ``where`` requests; one run if all images are used.

    Raises:
        UserError: if several draws are requested but nothing is drawn.
    """
    recipe, key = run.recipe, f"{where}.draws"
    if draws == 1:
        return [run]
    chosen = recipe.training_subset
    if chosen is None and getattr(recipe, "share", None) == 1:
        return [run]
    if chosen is None:
        raise UserError(
            f"{key} = {draws}: the task uses all training images, so nothing is drawn. Add shots = 5 or share = 0.01, or remove draws."
        )
    if chosen.file:
        raise UserError(f"{key} = {draws}: the list {chosen.file} fixes the images, so nothing is drawn. Remove draws.")
    if chosen.draw:
        raise UserError(
            f"{key} = {draws} runs the draws 0 to {draws - 1}, but draw = {chosen.draw} selects one. Remove one of the two."
        )
    return [replace(run, recipe=recipe.model_copy(update={"draw": draw}), draw=draw) for draw in range(draws)]
