"""``draws`` of a task: one run for each draw of its few training images."""

from dataclasses import replace

from lutbench.errors import UserError
from lutbench.recipes.suite import PlannedRun


def drawn(run: PlannedRun, draws: int, where: str) -> list[PlannedRun]:
    """Return a run for each of the ``draws`` of its training images that the table ``where`` asks for; of all images there is one.

    Raises:
        UserError: if the table asks for several of what is not drawn.
    """
    recipe, key = run.recipe, f"{where}.draws"
    if draws == 1:
        return [run]
    chosen = recipe.training_subset
    if chosen is None and getattr(recipe, "share", None) == 1:
        return [run]
    if chosen is None:
        raise UserError(
            f"{key} = {draws}: the task is run on all training images, of which there is nothing to draw. Give it shots = 5 or "
            "share = 0.01, or leave draws out."
        )
    if chosen.file:
        raise UserError(f"{key} = {draws}: the list {chosen.file} says which images it has, once. Leave draws out.")
    if chosen.draw:
        raise UserError(
            f"{key} = {draws}: the draws are 0 to {draws - 1}, and draw = {chosen.draw} is one. Leave one of both out."
        )
    return [replace(run, recipe=recipe.model_copy(update={"draw": draw}), draw=draw) for draw in range(draws)]
