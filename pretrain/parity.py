"""Run the steps of a golden file with the pre-training code, and compare with the file's numbers.

In float32 on the CPU. The comparison covers the whole method from masking to the teacher's update: any change shows in the weights after
the last step.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.golden import GoldenFile, published_name
from pretrain.student import parameter_groups
from pretrain.teacher import Teacher

TOLERANCES = {"losses": 1e-5, "outputs": 1e-4, "gradients": 1e-4, "student weights": 1e-3, "teacher weights": 1e-3}
"""Maximum of norm(ours - file) / norm(file). Another order of sums gives smaller differences, which AdamW amplifies."""


@dataclass(frozen=True)
class Comparison:
    """Agreement of the tensors of one kind: the largest difference."""

    kind: str
    """One of :data:`TOLERANCES`."""
    tensor: str
    """The name of that tensor in the file."""
    difference: float
    """norm(ours - file) / norm(file)."""
    tolerance: float
    passed: bool


def check_parity(path: Path) -> list[Comparison]:
    """Take the file's steps and compare; return one row for each of :data:`TOLERANCES`.

    Left out, as having no right value, are the keys' bias in ``attn.qkv.bias``
    (see :meth:`GoldenFile.difference`), and the teacher's counters, decoder and predictor.

    Raises:
        UserError: if the file is not a golden file: an entry is missing, unknown, misshapen or impossible.
    """
    file = GoldenFile(path)
    try:
        differences = _differences(file)
        file.check_all_read()
    except UserError as error:
        raise UserError(f"{path} is not a golden file of the LUT step: {error}") from error
    return [_worst(kind, differences[kind]) for kind in TOLERANCES]


def _differences(file: GoldenFile) -> dict[str, dict[str, float]]:
    """Take the file's steps and return the relative differences by kind and by name in the file."""
    student = file.student()
    teacher = Teacher(student)
    first, second = PretrainRecipe.model_fields["betas"].default
    groups = parameter_groups(student, file.number("meta/weight_decay"))
    optimizer = torch.optim.AdamW(groups, lr=file.number("meta/lr"), betas=(first, second), fused=True)
    differences: dict[str, dict[str, float]] = {kind: {} for kind in TOLERANCES}

    def compare(kind: str, name: str, ours: Tensor) -> None:
        differences[kind][name] = file.difference(name, ours)

    for step, momentum in enumerate(file.momenta()):
        views = file.views(step, student)
        targets = teacher(views)
        with _outputs(student.decoder) as pixels, _outputs(student.predictor) as predictions:
            losses = student(views, targets)
        optimizer.zero_grad()
        losses.total.backward()
        compare("losses", f"step{step}/mae_loss", losses.mim)
        compare("losses", f"step{step}/bc_loss", losses.context)
        compare("outputs", f"step{step}/student", torch.cat(predictions))
        compare("outputs", f"step{step}/teacher", torch.cat([target for target in targets if target is not None]))
        if step == 0:
            compare("outputs", "step0/pred", pixels[0])
            for name, parameter in student.named_parameters():
                if parameter.grad is not None:
                    compare("gradients", f"grad0/{published_name(name)}", parameter.grad)
        optimizer.step()
        teacher.update(student, momentum)

    for name, value in student.state_dict().items():
        compare("student weights", f"final/{published_name(name)}", value)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            compare("teacher weights", f"final_teacher/{published_name(name)}", value)
    return differences


def parity_table(rows: list[Comparison]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table("compared", "largest relative difference", "tolerance", "")
    table.add_column("found in")
    for row in rows:
        verdict = Text("pass", style="green") if row.passed else Text("fail", style="red")
        table.add_row(row.kind, f"{row.difference:.1e}", f"{row.tolerance:.0e}", verdict, row.tensor)
    return table


@contextmanager
def _outputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect what ``module`` returns inside the block, call by call."""
    assert module is not None
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _worst(kind: str, differences: dict[str, float]) -> Comparison:
    """Return the largest of the differences, a NaN first."""
    tensor, difference = max(differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    return Comparison(kind, tensor, difference, TOLERANCES[kind], difference <= TOLERANCES[kind])
