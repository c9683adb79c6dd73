"""The momentum teacher: an exponential moving average of the student's encoder and projector, and of the mask token if needed."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.train.processes import full_precision
from lutbench.train.sharding import local
from pretrain.context import Targets
from pretrain.masking import visible_patches
from pretrain.student import Student
from pretrain.token_targets import interpolate, match, shares
from pretrain.views import Views


class Teacher(nn.Module):
    """An encoder and a projector that start as copies of the student's and follow them.

    No gradients, and always in evaluation mode, so that its BatchNorm uses the averaged running statistics. It has no
    predictor and no decoder, except if its own views are masked with a mask token of the framework (SimMIM): then the decoder, which holds
    the mask token, is averaged too.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        assert student.context is not None, "a student without the context loss has no teacher"
        assert student.projector is not None
        self.context = student.context
        self.framework = student.framework
        self.visible_count = student.visible_count
        self.encoder = copy.deepcopy(student.encoder)
        self.projector = copy.deepcopy(student.projector)
        if self.context.masked_teacher and self.framework.masks_in_encoder:
            self.framework = copy.deepcopy(self.framework)
            self.decoder = self.framework.decoder
        self.requires_grad_(False)
        self.eval()
        self._pairs: _Pairs | None = None
        self._bf16: list[VisionTransformer] = []  # in a list, so that it is no part of the state

    def encode_in_bf16(self) -> None:
        """From now on encode with a bf16 copy of the encoder; every update makes the copy again.

        The averages stay in float32: bf16 has a relative precision of 1/256, so small updates would be lost.
        """
        self._bf16 = [copy.deepcopy(self.encoder).to(torch.bfloat16)]
        self._pairs = None

    @property
    def running_encoder(self) -> VisionTransformer:
        """The encoder that :meth:`forward` computes with: the averages, or their copy in bf16."""
        return self._bf16[0] if self._bf16 else self.encoder

    def _encode(self, images: Tensor, visible: Tensor | None) -> Tensor:
        if not self._bf16:
            return self.framework.encode(self.encoder, images, visible)
        with full_precision(images.device):  # autocast would have the norms in float32
            return self.framework.encode(self._bf16[0], images.to(torch.bfloat16), visible).float()

    @torch.no_grad()
    def forward(self, views: Views) -> Targets:
        """Return the targets of a batch: for whole views, or for views masked like the student's (control)."""
        assert views.view2 is not None, "the context loss needs view 2"
        both = self.context.both_directions
        images = torch.cat([views.view1, views.view2]) if both else views.view2
        visible = None
        if self.context.masked_teacher:
            each = visible_patches(views.noise, self.visible_count, self.framework.mask_unit)
            visible = torch.cat(each) if both else each.view2
        tokens = self.framework.unmasked(self._encode(images, visible), visible)
        if self.context.target == "tokens":
            return self._per_token(tokens, views)
        output = self.projector(self.context.pool(tokens)).float()
        return Targets(*output.chunk(2)) if both else Targets(None, output)

    def _per_token(self, tokens: Tensor, views: Views) -> Targets:
        """Return the targets of visible patches, of whole views' ``tokens`` (2 B or B, 1 + N, D), see :mod:`pretrain.token_targets`."""
        assert views.boxes is not None, "per-token targets need the boxes of both views"
        visible = visible_patches(views.noise, self.visible_count, self.framework.mask_unit)
        box1, box2 = views.boxes.unbind(1)
        grid = self.encoder.patch_embed.grid_size[0]
        in_view2 = match(box1, box2, visible.view1, grid)
        *first, second = tokens[:, 1:].split(len(views.view1))
        if not first:
            output = self.projector(interpolate(second, in_view2.places, grid)).float()
            return Targets(None, output, None, shares(in_view2.matched))
        in_view1 = match(box2, box1, visible.view2, grid)
        found = [interpolate(first[0], in_view1.places, grid), interpolate(second, in_view2.places, grid)]
        output1, output2 = self.projector(torch.cat(found)).float().chunk(2)
        return Targets(output1, output2, shares(in_view1.matched), shares(in_view2.matched))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """Update the teacher: teacher <- momentum * teacher + (1 - momentum) * student, for parameters and float buffers; others are copied.

        The lists of tensors are made once, so ``student`` must not move to another device after the first update.
        """
        if self._pairs is None or self._pairs.student is not student:
            self._pairs = _Pairs(self, student)
        self._pairs.update(momentum)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._pairs = None  # moving to another device makes new tensors
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


class _Pairs:
    """The teacher's tensors and the student's that they follow, in the same order; of sharded ones the parts of this process."""

    def __init__(self, teacher: Teacher, student: Student) -> None:
        self.student = student
        own, theirs = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
        averaged = [name for name, tensor in own.items() if tensor.is_floating_point()]
        counted = [name for name in own if name not in averaged]
        self.averages, self.values = ([local(of[name]) for name in averaged] for of in (own, theirs))
        self.counters, self.counts = ([local(of[name]) for name in counted] for of in (own, theirs))
        copied = teacher.running_encoder is not teacher.encoder  # in bf16
        self.encoder, self.running = (
            list(encoder.state_dict(keep_vars=True).values()) if copied else []
            for encoder in (teacher.encoder, teacher.running_encoder)
        )

    def update(self, momentum: float) -> None:
        torch._foreach_lerp_(self.averages, self.values, 1 - momentum)
        if self.counters:
            torch._foreach_copy_(self.counters, self.counts)
        if self.running:
            torch._foreach_copy_(self.running, self.encoder)
