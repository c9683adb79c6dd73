"""Randomness of a whole fine-tuning step: mixup and CutMix, and drop path.

Both are drawn from the key (seed, step), drop path for the whole batch and mixing for every group of its images, so they do not depend on how
the batch is divided into forward passes and processes.
"""

from collections.abc import Sequence
from typing import Self

import torch
from timm.data.mixup import Mixup
from timm.layers import drop as timm_drop
from torch import Tensor, nn
from torch.nn import functional

from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.train.device import moved
from lutbench.train.randomness import RngStream, generator, seeded

MIX, DROP = 0, 1
"""What follows in the keys (STEP, seed, step, ...); of mixing, the number of the group comes last."""


class Mixing:
    """timm's Mixup and CutMix with label smoothing: one ratio and one box for every ``mix_group`` images of a step's batch.

    Group g is the rows from g * mix_group on of the batch; the last may be smaller, as is the only one of a small batch. The
    schedule brings rows 2k and 2k + 1 to one pass, in the order in which each is mixed with its mirror in the group.
    """

    def __init__(self, recipe: FinetuneRecipe, classes: int, seed: int) -> None:
        self.classes, self.seed, self.smoothing = classes, seed, recipe.label_smoothing
        self.group = recipe.mix_group
        self.mixup: Mixup | None = None
        if recipe.mixes:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mixed images (B, 3, S, S), changed in place, and targets (B, C), from images and ``labels`` (B,) at ``rows`` of the batch."""
        targets = smoothed(labels, self.classes, self.smoothing)
        if self.mixup is None:
            return images, targets
        groups = torch.tensor(rows) // self.group
        for group in groups.unique().tolist():
            found = moved((groups == group).nonzero()[:, 0])
            with seeded(RngStream.STEP, self.seed, step, MIX, group):
                images[found], targets[found] = self.mixup(images[found], labels[found])
        return images, targets


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Targets (B, C): 1 - smoothing on the label, and smoothing spread evenly over all classes, as timm's are."""
    return functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


class DropPath(nn.Module):
    """Stochastic depth (timm's DropPath) that is told which images lose this branch instead of drawing them."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None
        """(B,) 0 where the branch is dropped, 1 / (1 - rate) where it is kept."""

    def forward(self, branch: Tensor) -> Tensor:
        """Scale ``branch`` (B, N, D), or maps (B, C, H, W), per image in training."""
        if not self.training:
            return branch
        assert self.scale is not None, "draw the paths before the pass"
        return branch * self.scale.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))


class DropPaths:
    """All of a model's paths that can be dropped."""

    def __init__(self, paths: list[DropPath], seed: int) -> None:
        self.paths, self.seed = paths, seed

    @classmethod
    def replacing(cls, model: nn.Module, seed: int) -> Self:
        """Put :class:`DropPath` in the place of every DropPath of timm's in ``model``."""
        paths = []
        for name, module in list(model.named_modules()):
            if isinstance(module, timm_drop.DropPath):
                paths.append(DropPath(module.drop_prob))
                model.set_submodule(name, paths[-1])
        return cls(paths, seed)

    def draw(self, step: int, batch: int, rows: Sequence[int], device: torch.device) -> None:
        """Decide for the images at ``rows`` of the step's ``batch``, before their pass."""
        if not self.paths:
            return
        rates = torch.tensor([path.rate for path in self.paths])[:, None]
        uniform = torch.from_numpy(generator(RngStream.STEP, self.seed, step, DROP).random((len(self.paths), batch)))
        scales = (uniform[:, list(rows)] >= rates).float() / (1 - rates)
        for path, scale in zip(self.paths, moved(scales), strict=True):
            path.scale = scale
