"""Run the LUT step on a file of numbers from the published model, and compare.

The file holds initial weights, a few batches, and what the published model made of them: losses, outputs, gradients,
and the student's and teacher's weights after the last step. Here the same batches go through the same code that
pre-training runs, in float32 on the CPU. The geometry is inferred from the shapes in the file.
"""

import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError, listed
from lutbench.recipes import PretrainRecipe
from pretrain.autoencoder import Decoder
from pretrain.context import ContextLoss, head
from pretrain.student import Student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import Views

TOLERANCES = {"losses": 1e-5, "outputs": 1e-4, "gradients": 1e-4, "student weights": 1e-3, "teacher weights": 1e-3}
"""Largest norm(ours - file) / norm(file) allowed. float32 sums in another order differ by less; AdamW magnifies it."""


@dataclass(frozen=True)
class Comparison:
    """The worst agreement among all tensors of one kind."""

    what: str
    """One of :data:`TOLERANCES`."""
    tensor: str
    """Name in the file of the tensor that agrees worst."""
    difference: float
    """norm(ours - file) / norm(file)."""
    tolerance: float
    passed: bool


def check_parity(path: Path) -> list[Comparison]:
    """Run the file's steps and compare; a row for each of :data:`TOLERANCES`.

    Left out are the middle third of every ``attn.qkv.bias`` (the keys' bias cancels in the softmax: its true gradient
    is zero, and AdamW turns rounding noise into whole steps there) and the teacher's decoder, predictor and counters.

    Raises:
        UserError: if the file is missing, is not of this format, or has unknown or missing entries.
    """
    file = _GoldenFile(path)
    student = file.student()
    teacher = Teacher(student)
    optimiser = torch.optim.AdamW(
        parameter_groups(student, file.number("meta/weight_decay")),
        lr=file.number("meta/lr"),
        betas=tuple(PretrainRecipe.model_fields["betas"].default),
    )
    outputs = _OutputsOf(student)
    differences: dict[str, dict[str, float]] = {what: {} for what in TOLERANCES}

    def compare(what: str, name: str, ours: Tensor) -> None:
        differences[what][name] = file.difference(name, ours.detach())

    for step, momentum in enumerate(file.momenta):
        views = Views(*(file.tensor(f"step{step}/{name}") for name in ("view1", "view2", "noise")))
        targets = teacher(views)
        losses = student(views, targets)
        optimiser.zero_grad()
        losses.total.backward()
        compare("losses", f"step{step}/mae_loss", losses.mim)
        compare("losses", f"step{step}/bc_loss", losses.context)
        compare("outputs", f"step{step}/teacher", torch.cat(targets))
        compare("outputs", f"step{step}/student", outputs.of("predictor"))
        pixels = outputs.of("decoder")
        if step == 0:
            compare("outputs", "step0/pred", pixels)
            for name, parameter in student.named_parameters():
                if parameter.grad is not None:
                    compare("gradients", f"grad0/{published_name(name)}", parameter.grad)
        optimiser.step()
        teacher.update(student, momentum)

    for name, value in student.state_dict().items():
        compare("student weights", f"final/{published_name(name)}", value)
    for name, value in teacher.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            compare("teacher weights", f"final_teacher/{published_name(name)}", value)
    return [_worst(what, differences[what]) for what in TOLERANCES]
