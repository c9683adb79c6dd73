"""InfoNCE: identify the teacher's output for the same image among those for all other images (van den Oord et al., arXiv 1807.03748)."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.processes import gathered
from pretrain.context_losses import LossFunction


def infonce(recipe: PretrainRecipe) -> LossFunction:
    """Build :func:`contrast` with the recipe's temperature."""
    return partial(contrast, temperature=recipe.context_temperature)


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of every row of ``student`` (R, D) among the rows of ``teacher`` (R, D) on all processes, (R,).

    Cosines divided by the temperature are logits, of which the one of the same row is the right one: its cross-entropy, times
    twice the temperature. So it is in MoCo v3 (arXiv 2104.02057, algorithm 1), and so the pull to the right row is that of
    2 - 2 cos, which makes weights comparable. Negatives are the other images of the pass: the processes' together, so that
    their number changes nothing, but not those of other micro-batches.
    """
    keys, first = gathered(functional.normalize(teacher, dim=1))
    logits = functional.normalize(student, dim=1) @ keys.T / temperature
    right = first + torch.arange(len(student), device=student.device)
    return 2 * temperature * functional.cross_entropy(logits, right, reduction="none")
