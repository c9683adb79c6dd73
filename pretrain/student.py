"""The student: a masked image modelling framework and, for LUT, projector and predictor for its unmasked tokens."""

from typing import Any, NamedTuple

import torch
from timm.models import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.batchnorm import SyncBatchNorm, shared_by_processes
from lutbench.train.processes import full_precision
from lutbench.train.randomness import RngStream, seeded
from pretrain.context import ContextLoss, Targets, head
from pretrain.frameworks import build_framework
from pretrain.frameworks.interface import Framework, Part
from pretrain.masking import masked_patches, visible_count, visible_patches
from pretrain.views import Views


class Losses(NamedTuple):
    """0-d float32 tensors on the device: ``total = mim + weight * context``; no context without the second loss."""

    total: Tensor
    mim: Tensor
    context: Tensor | None


class Student(nn.Module):
    """The trained model. Without ``context`` it is only the framework, without heads.

    ``encoder.state_dict()`` loads strictly into the same model of timm.

    Raises:
        UserError: if the mask ratio does not suit, see :func:`visible_count`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        framework: Framework,
        *,
        mask_ratio: float = 0.75,
        context: ContextLoss | None = None,
        projector: nn.Sequential | None = None,
        predictor: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.framework = framework
        self.decoder = framework.decoder
        self.projector = projector
        self.predictor = predictor
        self.context = context
        self.sparse = False
        """Compute only what the losses need, see :class:`Framework`: the same values, summed in another order."""
        self._mim_loss = framework.loss
        # View 2 is masked where the student sees it, and where a masked teacher does.
        two_views = context is not None and (context.both_directions or context.masked_teacher)
        units = encoder.patch_embed.num_patches // framework.mask_unit**2
        self.visible_count = visible_count(units, mask_ratio, views=2 if two_views else 1)

    def forward(self, views: Views, targets: Targets | None = None) -> Losses:
        """Return the losses of a batch; ``targets`` are the teacher's outputs for it, None without ``context``."""
        visible = visible_patches(views.noise, self.visible_count, self.framework.mask_unit)
        tokens2 = None
        if self.context is not None and self.context.both_directions:
            assert views.view2 is not None, "the context loss needs view 2"
            images = torch.cat([views.view1, views.view2])
            tokens1, tokens2 = self.framework.encode(self.encoder, images, torch.cat(visible)).chunk(2)
        else:
            tokens1 = self.framework.encode(self.encoder, views.view1, visible.view1)

        masked: tuple[Tensor, ...] = ()
        if self.sparse:
            masked = (masked_patches(visible.view1, self.encoder.patch_embed.num_patches),)
        pixels = self.decoder(tokens1, visible.view1, *masked)
        with full_precision(pixels.device):
            mim = self._mim_loss(pixels.float(), views.view1, visible.view1, *masked)
        if self.context is None:
            return Losses(mim, mim, None)

        assert targets is not None, "the context loss needs the teacher's outputs"
        pooled = [self.context.pool(self.framework.unmasked(tokens1, visible.view1))]
        if tokens2 is not None:
            pooled.append(self.context.pool(self.framework.unmasked(tokens2, visible.view2)))
        output1, output2 = self._predict(pooled)
        with full_precision(pixels.device):
            context = self.context(output1, output2, targets)
            return Losses(mim + self.context.weight * context, mim, context)

    def compile_loss(self) -> None:
        """Compile the reconstruction loss; blocks are compiled by :func:`lutbench.train.regional.compile_blocks`."""
        self._mim_loss = torch.compile(self.framework.loss, dynamic=False)

    def _predict(self, pooled: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the predictions (R, D) for one or two views. BatchNorm statistics are per view.

        With several processes both views are computed together, so that one message synchronises the statistics of both.
        """
        assert self.projector is not None
        assert self.predictor is not None
        if len(pooled) == 2 and shared_by_processes():
            for module in (*self.projector, *self.predictor):
                if isinstance(module, SyncBatchNorm):
                    module.views = 2
            first, second = self.predictor(self.projector(torch.cat(pooled))).float().chunk(2)
            return first, second
        outputs = [self.predictor(self.projector(one)).float() for one in pooled]
        return outputs[0], outputs[1] if len(outputs) == 2 else None


def build_student(recipe: PretrainRecipe, seed: int) -> Student:
    """Return the student of a recipe, with initial weights that depend only on ``seed``.

    Raises:
        UserError: if encoder, decoder and mask ratio are inconsistent.
    """
    encoder, framework = build_framework(recipe, seed)
    heads: dict[str, Any] = {}
    if recipe.has_context:
        for name, part in (("projector", Part.PROJECTOR), ("predictor", Part.PREDICTOR)):
            with seeded(RngStream.WEIGHTS, seed, part):
                heads[name] = head(encoder.embed_dim, recipe.head_width, recipe.head_depth, recipe.head_norm)
    return Student(encoder, framework, mask_ratio=recipe.mask_ratio, context=ContextLoss.from_recipe(recipe), **heads)


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: no weight decay for biases and 1-D parameters, but for class and mask token (paper)."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(student, weight_decay)
    return groups
