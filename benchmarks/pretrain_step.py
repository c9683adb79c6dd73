"""Images per second and peak memory of one LUT step, ours against the obvious way, on the machine at hand.

    python benchmarks/pretrain_step.py --sizes S,B,L --batch 128 --compile

Both steps compute the same losses for the same student on the same random views: teacher, student, backward, fused
AdamW, update of the teacher. The plain step does it as one would first write it: each view goes through the encoder
by itself, the teacher is a copy of the whole student, and its update is a loop over tensors. Loading of data is not
part of it. Every measurement has a process of its own; the steps take turns, round by round, and each row shows the
round in which its step was fastest, so that what else the machine does weighs on all alike. Prints a Markdown table
with hardware and versions.
"""

import copy
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from common import MODELS, heading
from timm.models import VisionTransformer
from torch import Tensor

from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.processes import accelerator, autocast, precision_of
from lutbench.train.regional import checkpoint_blocks, compile_blocks
from pretrain.frameworks.interface import Framework
from pretrain.frameworks.vit import patchify
from pretrain.student import Student, build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import Views

MOMENTUM = 0.996

Way = Literal["plain", "ours", "regional", "compiled", "bf16 teacher", "checkpointed"]
"""How a step is taken: as one would first write it; ours, eagerly; ours compiled block by block, as runs on a GPU are; compiled as a
whole; block by block with a teacher that computes from a copy in bf16, or with the student's activations computed again."""


class Result(NamedTuple):
    """What was measured."""

    images_per_second: float
    peak_gib: float
    """Of the GPU's memory, or of the process's resident memory on a CPU."""


def main(
    sizes: Annotated[str, typer.Option(help="Which of S, B and L, with commas between.")] = "S,B,L",
    batch: Annotated[int, typer.Option(min=2, help="Images per step.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before, which are not.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; the fastest counts.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="Add a row with torch.compile.")] = False,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16; auto is bf16 where the GPU has it.")] = "auto",
) -> None:
    """Measure the LUT step of each size, ours against the plain one, and print a Markdown table."""
    chosen = [size.strip().upper() for size in sizes.split(",")]
    if not set(chosen) <= set(MODELS):
        raise typer.BadParameter(f"{sizes!r}: choose among {', '.join(MODELS)}.", param_hint="--sizes")
    if precision not in ("auto", "fp32", "bf16"):
        raise typer.BadParameter(f"{precision!r}: choose auto, fp32 or bf16.", param_hint="--precision")
    ways: dict[Way, str] = {"plain": "plain", "ours": "ours"} | ({"regional": "ours, compiled"} if compile else {})
    on_gpu = accelerator().device.type == "cuda"
    print(heading(precision_of(precision)))
    print(f"| ViT | step | images/s | against plain | peak {'GPU' if on_gpu else 'resident'} memory, GiB |")
    print("|---|---|---:|---:|---:|")
    for size in chosen:
        measured = [[in_own_process(size, way, batch, steps, warmup, precision) for way in ways] for _ in range(rounds)]
        best = [max(results) for results in zip(*measured, strict=True)]
        for name, result in zip(ways.values(), best, strict=True):
            ratio = result.images_per_second / best[0].images_per_second
            print(f"| {size} | {name} | {result.images_per_second:.2f} | {ratio:.2f}x | {result.peak_gib:.2f} |")


def in_own_process(*case: Any) -> Result:
    """Measure a case, the arguments of :func:`measure`, in a process that does nothing else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *case).result()


def measure(size: str, way: Way, batch: int, steps: int, warmup: int, precision: str) -> Result:
    """Time one kind of step in this process."""
    recipe = read_recipe(PretrainRecipe, {"data": {}, "encoder": {"model": MODELS[size]}}, "benchmark")
    step, device = lut_step(recipe, way, batch, precision), accelerator().device
    for _ in range(warmup):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    seconds = time.perf_counter() - start
    return Result(batch * steps / seconds, _peak_bytes(device) / 2**30)


def lut_step(
    recipe: PretrainRecipe,
    way: Way,
    batch: int,
    precision: str = "auto",
    *,
    compiles: bool = True,
    sparse: bool | None = None,
) -> Callable[[], None]:
    """Return a step of LUT on random views, which takes teacher, student, optimiser and the teacher's update.

    Without ``compiles`` the ways that compile do not. ``sparse`` is whether the student is shown patches, as on a GPU; there it is if
    nothing else is said. The plain way never is.
    """
    device = accelerator().device
    student = build_student(recipe, seed=0).to(device)
    groups = parameter_groups(student, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    student.sparse = way != "plain" and (device.type == "cuda" if sparse is None else sparse)
    run_student, run_teacher, update = (_plain if way == "plain" else _ours)(student)
    if way == "bf16 teacher":
        run_teacher.encode_in_bf16()
    if way == "checkpointed":
        checkpoint_blocks(student.encoder, student.decoder)
    if compiles and way in ("regional", "bf16 teacher", "checkpointed"):
        compile_blocks(student.encoder, student.decoder, run_teacher.running_encoder)
        student.compile_loss()
    if compiles and way == "compiled":
        run_student, run_teacher = (torch.compile(module, dynamic=False) for module in (student, run_teacher))
    views = _random_views(student, batch, device)

    def step() -> None:
        with autocast(precision):
            losses = run_student(views, run_teacher(views))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        update()

    return step


def _random_views(student: Student, batch: int, device: torch.device) -> Views:
    """Return views of noise, as patches if the student is shown these."""
    embedding, draw = student.encoder.patch_embed, torch.Generator().manual_seed(0)
    images = [torch.randn(batch, 3, *embedding.img_size, generator=draw).to(device) for _ in range(2)]
    if student.sparse:
        images = [patchify(view, embedding.patch_size[0]) for view in images]
    return Views(*images, torch.rand(batch, embedding.num_patches, generator=draw).to(device))


def _ours(student: Student) -> tuple[Student, Teacher, Callable[[], None]]:
    """Return student, teacher, and the update of the teacher, as the suite has them."""
    teacher = Teacher(student)
    return student, teacher, partial(teacher.update, student, MOMENTUM)


def _plain(student: Student) -> tuple[Student, Teacher, Callable[[], None]]:
    """Return student, teacher, and the update of the teacher, as one would first write them."""
    student.framework = ViewByView(student.framework)
    whole = copy.deepcopy(student).eval().requires_grad_(False)
    assert whole.projector is not None
    teacher = Teacher(student)
    teacher.encoder, teacher.projector = whole.encoder, whole.projector

    @torch.no_grad()
    def update() -> None:
        for own, their in zip(whole.state_dict().values(), student.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.mul_(MOMENTUM).add_(their, alpha=1 - MOMENTUM)

    return student, teacher, update


class ViewByView:
    """A framework whose encoder is shown the two views of a batch one after the other."""

    def __init__(self, framework: Framework) -> None:
        self.decoder, self.mask_unit = framework.decoder, framework.mask_unit
        self.unmasked, self.loss, self.reconstruct = framework.unmasked, framework.loss, framework.reconstruct
        self._encode = framework.encode

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        """Return the tokens that the framework's own ``encode`` returns for both views at once."""
        of_views = (None, None) if visible is None else visible.chunk(2)
        views = zip(images.chunk(2), of_views, strict=True)
        return torch.cat([self._encode(encoder, view, of_view) for view, of_view in views])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    typer.run(main)
