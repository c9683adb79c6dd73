"""Distances of the student's output from the teacher's of the same image, row by row."""

from functools import partial

from torch import Tensor
from torch.nn import functional

from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.context_losses import LossFunction


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 2 - 2 cos of every row, (R,) (paper)."""
    return 2 - 2 * functional.cosine_similarity(student, teacher, dim=1)


def cosine(recipe: PretrainRecipe) -> LossFunction:
    """Build :func:`cosine_distance`, whose form no setting changes (paper)."""
    return cosine_distance


def l2(recipe: PretrainRecipe) -> LossFunction:
    """Build the squared distance of raw outputs, (R, D) (control, our choice of form)."""
    return partial(functional.mse_loss, reduction="none")


def smooth_l1(recipe: PretrainRecipe) -> LossFunction:
    """Build the smooth-L1 distance of raw outputs, (R, D), with threshold 1 (control, our choice of form)."""
    return partial(functional.smooth_l1_loss, reduction="none")
