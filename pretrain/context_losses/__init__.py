"""Forms of the context loss: how an output of the student is compared with the teacher's.

A new one is a file with a function that takes a recipe and returns a :data:`LossFunction`, and a line in
:data:`lutbench.kinds.CONTEXT_LOSSES`.
"""

from collections.abc import Callable
from pkgutil import resolve_name

from torch import Tensor

from lutbench.kinds import CONTEXT_LOSSES
from lutbench.recipes.pretrain import PretrainRecipe

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Takes the outputs of student and teacher, float32 (R, D) each, of which rows of one number belong together, and returns the
loss of every row (R,), or of every row and channel (R, D); the context loss is their mean. Gradients flow to the student's alone."""


def build_loss(recipe: PretrainRecipe) -> LossFunction:
    """Return the context loss of a recipe."""
    loss: LossFunction = resolve_name(CONTEXT_LOSSES[recipe.context_loss])(recipe)
    return loss
