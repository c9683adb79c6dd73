"""The parts of ``benchmarks/gpu/measure.py``: each writes what it finds as lines of JSON.

With ``Bench.toy`` all of them run in seconds on a CPU, at sizes that say nothing about speed: that is how they are kept working.
"""

import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lutbench.provenance import code, hardware, packages
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.processes import accelerator, autocast
from lutbench.train.randomness import reseed
from lutbench.train.regional import compile_blocks
from pretrain.cost import flop_per_image
from pretrain.frameworks.vit import patchify
from pretrain.photometrics import apply_everywhere, apply_in_batch, draw_photometrics
from pretrain.student import Student, build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import PretrainTransform, Views, changed

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks, which measure the same on any machine

MODELS = {"S": "vit_small_patch16_224", "B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}
TOY_ENCODER = {"model": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
TOY_HEADS = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "head_width": 64}
ROOT = Path(__file__).parents[2]

Step = Callable[[], object]


@dataclass
class Bench:
    """Where results go, and how large everything is."""

    out: Path
    toy: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return accelerator().device

    @property
    def cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.device.type == "cuda"

    def emit(self, part: str, **values: Any) -> None:
        """Append a measurement of a ``part`` to ``results.jsonl``, with the seconds since the beginning as ``t``."""
        line = json.dumps({"part": part, "t": round(time.monotonic() - self.started, 1), **values}, default=str)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def section(self, part: str, name: str) -> Iterator[None]:
        """One measurement: an error is a result too, and the next goes on."""
        try:
            yield
        except Exception as error:
            where = traceback.format_exc()[-1500:]
            self.emit(part, name=name, error=f"{type(error).__name__}: {str(error)[:300]}", where=where)
        finally:
            gc.collect()
            if self.cuda:
                torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, step: Step, budget: float = 1.0, warm: int = 2) -> float:
        """Return the median seconds of a call, of those that fit into ``budget`` seconds, three at least."""
        if self.toy:
            budget, warm = 0.0, 1
        for _ in range(warm):
            step()
        self.wait()
        times: list[float] = []
        began = time.monotonic()
        while len(times) < (1 if self.toy else 3) or (time.monotonic() - began < budget and len(times) < 200):
            start = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    def in_a_row(self, step: Step, steps: int) -> float:
        """Return the seconds of a call among many in a row, as a loop has them: nothing waits in between."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        self.wait()
        return (time.perf_counter() - start) / steps


def recipe_of(bench: Bench, size: str, **changes: Any) -> PretrainRecipe:
    """Return LUT's recipe for an encoder of that size."""
    encoder: dict[str, Any] = TOY_ENCODER if bench.toy else {"model": MODELS[size]}
    return read_recipe(
        PretrainRecipe, {"data": {}, "encoder": encoder, **(TOY_HEADS if bench.toy else {}), **changes}, "gpu"
    )


def random_views(bench: Bench, student: Student, batch: int, patches: bool) -> Views:
    """Return views of noise on the device, as patches if asked for."""
    embedding = student.encoder.patch_embed
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(batch, 3, *embedding.img_size, generator=draw).to(bench.device) for _ in range(2)]
    noise = torch.rand(batch, embedding.num_patches, generator=draw).to(bench.device)
    if patches:
        images = [patchify(view, embedding.patch_size[0]) for view in images]
    return Views(images[0], images[1], noise)


# Environment and peaks


def env(bench: Bench) -> None:
    """What machine, which versions."""
    gpu = torch.cuda.get_device_properties(0) if bench.cuda else None
    bench.emit(
        "env",
        hardware=str(hardware()),
        card=gpu.name if gpu else None,
        memory_gib=round(gpu.total_memory / 2**30, 1) if gpu else None,
        cuda=torch.version.cuda,
        cores=len(os.sched_getaffinity(0)),
        packages=packages(),
        code=str(code()),
    )


def peak(bench: Bench) -> None:
    """What the device can do: matrix products large and of the step's own shapes, copies."""
    side = 256 if bench.toy else 8192
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        with bench.section("peak", name):
            a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
            took = bench.seconds(lambda: a @ b, 0.5)  # noqa: B023
            bench.emit("peak", what=f"matrix product, {name}", side=side, tflops=round(2 * side**3 / took / 1e12, 2))
    batch = 1 if bench.toy else 256
    shapes = {
        "teacher's qkv, ViT-B": (2 * batch * 197, 768, 2304),
        "teacher's fc1, ViT-B": (2 * batch * 197, 768, 3072),
        "student's fc1, ViT-B": (2 * batch * 50, 768, 3072),
        "decoder's fc1": (batch * 197, 512, 2048),
        "patch embedding, ViT-B": (2 * batch * 196, 768, 768),
    }
    for name, (rows, width, into) in shapes.items():
        with bench.section("peak", name):
            x = torch.randn(rows, width, device=bench.device, dtype=torch.bfloat16)
            weight = torch.randn(into, width, device=bench.device, dtype=torch.bfloat16)
            took = bench.seconds(lambda: functional.linear(x, weight), 0.3)  # noqa: B023
            bench.emit("peak", what=name, tflops=round(2 * rows * width * into / took / 1e12, 2))
    if bench.cuda:
        with bench.section("peak", "copies"):
            one = torch.empty(2**30, dtype=torch.uint8, device=bench.device)
            other, pinned = torch.empty_like(one), torch.empty(2**28, dtype=torch.uint8).pin_memory()
            bench.emit(
                "peak", what="copy on the device", GBps=round(2 * 2**30 / bench.seconds(lambda: other.copy_(one)) / 1e9)
            )
            to_device = bench.seconds(lambda: other[: 2**28].copy_(pinned, non_blocking=True))
            bench.emit("peak", what="copy to the device, pinned", GBps=round(2**28 / to_device / 1e9, 1))


# Correctness


def correct(bench: Bench) -> None:
    """The device against the CPU, bf16 against float32, golden parity, changes of colour, what waits for the device."""
    from pretrain import parity
    from pretrain.golden import GoldenFile

    class OnDevice(GoldenFile):
        """A golden file whose steps are taken on the device."""

        def student(self) -> Student:
            return super().student().to(bench.device)

        def views(self, step: int, student: Student) -> Views:
            views = super().views(step, student)
            assert views.view2 is not None
            return Views(views.view1.to(bench.device), views.view2.to(bench.device), views.noise.to(bench.device))

        def difference(self, name: str, ours: Tensor) -> float:
            return super().difference(name, ours.cpu())

    with bench.section("correct", "golden parity"):
        original, parity.GoldenFile = parity.GoldenFile, OnDevice  # type: ignore[misc]
        try:
            rows = parity.check_parity(ROOT / "tests/fixtures/lut_steps.npz")
        finally:
            parity.GoldenFile = original  # type: ignore[misc]
        found = {row.kind: f"{row.difference:.1e}" for row in rows}
        bench.emit("correct", what="golden parity", found=found, passed=all(row.passed for row in rows))

    def losses(device: torch.device, steps: int, batch: int, half: bool = False) -> Tensor:
        """Return both losses (steps, 2) of a short training; on a GPU by its shortcuts."""
        student = build_student(recipe_of(bench, "S"), 0).to(device)
        student.sparse = device.type == "cuda"
        teacher, draw = Teacher(student), torch.Generator().manual_seed(1)
        optimizer = torch.optim.AdamW(parameter_groups(student, 0.05), lr=3e-4, betas=(0.9, 0.95), fused=True)
        side, patches, found = student.encoder.patch_embed.img_size[0], student.encoder.patch_embed.num_patches, []
        for _ in range(steps):
            base = functional.interpolate(torch.randn(batch, 3, 8, 8, generator=draw), side, mode="bicubic")
            other = base + 0.1 * torch.randn(base.shape, generator=draw)
            images = [base.to(device), other.to(device)]
            if student.sparse:
                images = [patchify(view, student.encoder.patch_embed.patch_size[0]) for view in images]
            views = Views(images[0], images[1], torch.rand(batch, patches, generator=draw).to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                made = student(views, teacher(views))
            made.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(student, 0.99)
            assert made.context is not None
            found.append([made.mim.item(), made.context.item()])
        return torch.tensor(found, dtype=torch.float64)

    def apart(one: Tensor, other: Tensor) -> list[str]:
        return [f"{value:.1e}" for value in ((one - other).abs() / other.abs()).amax(0).tolist()]

    with bench.section("correct", "device against CPU"):
        on_device, on_cpu = (losses(torch.device(name), 2, 2 if bench.toy else 16) for name in (bench.device, "cpu"))
        bench.emit("correct", what="losses, device against CPU, float32", relative=apart(on_device, on_cpu))
    with bench.section("correct", "bf16 against float32"):
        half, whole = (
            losses(bench.device, 2 if bench.toy else 40, 2 if bench.toy else 64, half) for half in (True, False)
        )
        bench.emit("correct", what="losses, bf16 against float32", relative=apart(half, whole))
    with bench.section("correct", "colours"):
        _colours(bench)
    if bench.cuda:
        for name, step in (
            ("pre-training", step_of(bench, "ours", "S", 32)),
            ("fine-tuning", finetune_step(bench, "S", 32)),
        ):
            with bench.section("correct", f"waits, {name}"):
                step()
                bench.emit("correct", what=f"waits for the device, a step of {name}", where=_waits(step))


def _colours(bench: Bench) -> None:
    from lutbench.data.tensors import to_tensor
    from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph

    photographs = [load_photograph(file).convert("RGB") for file in list(PHOTOGRAPHS.values())[:4]]
    count, side, images, drawn = (4, 48, [], []) if bench.toy else (256, 224, [], [])
    for number in range(count):
        reseed(3, number)
        images.append(photographs[number % len(photographs)].crop((8, 8, 8 + side, 8 + side)))
        drawn.append(draw_photometrics())
    pixels, numbers = torch.stack([to_tensor(i) for i in images]), torch.stack([d.numbers() for d in drawn])
    pillow = torch.stack([to_tensor(d.apply(i)) for d, i in zip(drawn, images, strict=True)]).int()
    on_device, numbers_there = pixels.to(bench.device), numbers.to(bench.device)
    ways: dict[str, Callable[[], Tensor]] = {"chosen images": lambda: apply_in_batch(on_device, numbers)}
    ways["all images"] = lambda: apply_everywhere(on_device, numbers_there)
    if bench.cuda:
        ways["all images, compiled"] = lambda: changed(on_device, numbers_there, compiled=True)
    for name, way in ways.items():
        apart = (way().cpu().int() - pillow).abs().float()
        took = bench.seconds(way, 0.5)
        bench.emit(
            "correct", what=f"colours, {name}", batch=count, mean_difference=round(float(apart.mean()), 4),
            largest=int(apart.max()), ms=round(1e3 * took, 2),
        )  # fmt: skip


def _waits(step: Step) -> dict[str, int]:
    """Return where a step waits for the device, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    where: dict[str, int] = {}
    for warning in told:
        if "synchroniz" in str(warning.message):
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            where[place] = where.get(place, 0) + 1
    return where


# The step


def step_of(bench: Bench, kind: str, size: str, batch: int) -> Step:
    """Return a step: ``plain``, as one would first write it; ``ours``; ``regional``, compiled block by block; ``compiled``, as a whole;
    ``bf16 teacher``, regional with a teacher in bf16; ``checkpointed``, regional.
    """
    from pretrain_step import _plain

    from lutbench.train.regional import checkpoint_blocks

    recipe = recipe_of(bench, size)
    student = build_student(recipe, 0).to(bench.device)
    groups = parameter_groups(student, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    if kind == "plain":
        run_student, run_teacher, update = _plain(student)
    else:
        student.sparse = True
        teacher = Teacher(student)
        if kind == "bf16 teacher":
            teacher.encode_in_bf16()
        if kind == "checkpointed":
            checkpoint_blocks(student.encoder, student.decoder)
        if bench.cuda and kind in ("regional", "bf16 teacher", "checkpointed"):
            compile_blocks(student.encoder, student.decoder, teacher.running_encoder)
            student.compile_loss()
        run_student, run_teacher = student, teacher
        if bench.cuda and kind == "compiled":
            run_student, run_teacher = (torch.compile(module, dynamic=False) for module in (student, teacher))

        def update() -> None:
            teacher.update(student, 0.996)

    views = random_views(bench, student, batch, patches=kind != "plain")

    def step() -> None:
        with autocast("auto"):
            losses = run_student(views, run_teacher(views))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        update()

    return step


def speed(bench: Bench) -> None:
    """Images/s of the pre-training step."""
    cases = [("B", 256, kind) for kind in ("plain", "ours", "regional", "bf16 teacher", "compiled")]
    cases += [("S", 256, "ours"), ("S", 256, "regional"), ("L", 128, "ours"), ("L", 128, "regional")]
    cases += [("L", 1024, "checkpointed"), ("B", 1024, "regional"), ("S", 1024, "regional")]
    if bench.toy:
        cases = [("S", 2, kind) for kind in ("plain", "ours", "bf16 teacher", "checkpointed")]
    for size, batch, kind in cases:
        with bench.section("speed", f"{kind} {size} {batch}"):
            _time_step(
                bench,
                "speed",
                kind,
                size,
                batch,
                step_of(bench, kind, size, batch),
                flop_per_image(recipe_of(bench, size)),
            )


def _time_step(
    bench: Bench, part: str, kind: str, size: str, batch: int, step: Step, flop: float | None = None
) -> None:
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step()
    bench.wait()
    first = time.perf_counter() - start
    took = bench.seconds(step, 1.0)
    took = bench.in_a_row(step, 1 if bench.toy else max(3, int(1.5 / took)))
    bench.emit(
        part, size=size, batch=batch, kind=kind, first_s=round(first, 1), images_per_second=round(batch / took, 1),
        tflops=round(batch * flop / took / 1e12, 2) if flop else None,
        gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.cuda else None,
    )  # fmt: skip


def trace(bench: Bench) -> None:
    """Where the time of a step goes: kernels by name, and the share of the time that the device is busy."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step, steps = step_of(bench, "regional", "S" if bench.toy else "B", 2 if bench.toy else 256), 1 if bench.toy else 3
    for _ in range(1 if bench.toy else 3):
        step()
    bench.wait()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
        bench.wait()
    took = time.perf_counter() - start
    kernels = [e for e in profiled.events() if e.device_type == DeviceType.CUDA]
    names: dict[str, list[float]] = {}
    for kernel in kernels:
        of = names.setdefault(kernel.name[:90], [0.0, 0.0])
        of[0] += kernel.time_range.elapsed_us() / 1e3 / steps
        of[1] += 1 / steps
    top = sorted(names.items(), key=lambda item: -item[1][0])[:20]
    bench.emit(
        "trace", ms_per_step=round(1e3 * took / steps, 1), kernels_per_step=round(len(kernels) / steps),
        busy_ms=round(sum(of[0] for of in names.values()), 1), top=[[n, round(ms, 2), round(k, 1)] for n, (ms, k) in top],
    )  # fmt: skip


def attention(bench: Bench) -> None:
    """Attention's backends at the step's own shapes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch = 1 if bench.toy else 256
    shapes = {
        "teacher, ViT-B": (2 * batch, 12, 197, 64),
        "student, ViT-B": (2 * batch, 12, 50, 64),
        "decoder": (batch, 16, 197, 32),
    }
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    for name, (rows, heads, tokens, width) in shapes.items():
        packed = torch.randn(
            rows, tokens, 3, heads, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True
        )
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # strides as timm has them
        for backend in backends if bench.cuda else backends[-1:]:
            with bench.section("attention", f"{name} {backend}"), sdpa_kernel(backend):

                def both(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                    out = functional.scaled_dot_product_attention(q, k, v)
                    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

                bench.emit("attention", what=name, backend=backend.name, ms=round(1e3 * bench.seconds(both, 0.2), 3))


# Data


def photographs(bench: Bench, root: Path, count: int) -> DataRecipe:
    """Return a set of JPEGs made of photographs that ship in packages."""
    from loader import write_photographs

    if not (root / "photographs").is_dir():
        write_photographs(root / "photographs", count)
    return DataRecipe(label="photographs", path=str(root / "photographs"), train="")


def data(bench: Bench) -> None:
    """Images/s that loader processes bring, by their number, from files and from the cache."""
    from lutbench.data.cache_build import make_cache
    from lutbench.data.images import open_dataset
    from lutbench.train.batches import Schedule, stream
    from lutbench.train.device import on_device

    count, batch, each = (8, 4, 0.0) if bench.toy else (1024, 256, 3.0)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        recipe = photographs(bench, Path(folder), count)
        files = open_dataset(recipe, "train", Path(folder))
        cached = make_cache(files, 224, Path(folder))
        for workers in [0] if bench.toy else sorted({1, cores // 2, cores}):
            for name, images, on in (
                ("files", files, "loader"),
                ("files, colours on the device", files, "device"),
                ("cache, colours on the device", cached, "device"),
            ):
                with bench.section("data", f"{name} {workers}"):
                    pretrain = read_recipe(PretrainRecipe, {"data": recipe.model_dump(), "photometrics_on": on}, "gpu")
                    transform, schedule = PretrainTransform(pretrain), Schedule(count, 10**6, batch, batch, 0)
                    start = time.perf_counter()
                    coming = on_device(stream(images, transform, schedule, 0, workers))
                    found = next(coming)
                    first = time.perf_counter() - start
                    for _ in range(0 if bench.toy else 8):  # past what was fetched ahead
                        next(coming)
                    start, batches = time.perf_counter(), 0
                    while time.perf_counter() - start < each or not batches:
                        found, batches = next(coming), batches + 1
                    rate = batches * batch / (time.perf_counter() - start)
                    prepare = partial(Views.from_batch, found, bench.device, patch_size=16, compiled=bench.cuda)
                    to_views = bench.seconds(prepare, 0.3)
                    bench.emit(
                        "data",
                        what=name,
                        workers=workers,
                        images_per_second=round(rate),
                        first_batch_s=round(first, 2),
                        to_views_ms=round(1e3 * to_views, 2),
                    )
                    del coming


# Whole loops

SUITE = """
title = "GPU"
kind = "pipeline"
about = "measured on this machine"
[data.photographs]
path = {path}
train = ""
[encoder.e]
{encoder}
[defaults.pretrain]
data = "photographs"
encoder = "e"
{settings}
[pretrain.lut]
[method.lut]
pretrain = "lut"
"""


def lines(values: dict[str, Any]) -> str:
    """Return values as lines of TOML."""
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def loop(bench: Bench) -> None:
    """Images/s of a run as users start it, with real loading; and whether a resumed run ends as an unbroken one on this device."""
    from safetensors.torch import load_file

    from lutbench.recipes.loading import load_suite
    from lutbench.run import Run, open_run
    from lutbench.stages import perform
    from lutbench.workspace import Workspace

    cores, count = len(os.sched_getaffinity(0)), 8 if bench.toy else 1024
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = photographs(bench, root, count).path

        def performed(home: str, encoder: dict[str, Any], settings: dict[str, Any]) -> Run[Any]:
            (root / "gpu.toml").write_text(
                SUITE.format(path=json.dumps(path), encoder=lines(encoder), settings=lines(settings))
            )
            suite = load_suite(str(root / "gpu.toml"))
            run = open_run(suite, suite.runs[0], Workspace(root, root / home / "runs", root / home / "results"))
            run.start()
            perform(run)
            return run

        def weights(run: Run[Any]) -> dict[str, Tensor]:
            return load_file(run.folder / "encoder.safetensors")

        with bench.section("loop", "resume"):
            small = {
                **TOY_HEADS,
                "epochs": 4,
                "warmup_epochs": 1,
                "batch": 4 if bench.toy else 64,
                "workers": 0,
                "save_every": 4,
            }
            first, again = (performed(home, TOY_ENCODER, small) for home in ("first", "again"))
            newest = max(again.checkpoints.glob("step-*"))
            shutil.rmtree(newest)
            kept = bool(list(again.checkpoints.glob("step-*")))
            repeated = weights(again)
            perform(again)
            same = [
                all(torch.equal(weights(first)[n], other[n]) for n in other) for other in (repeated, weights(again))
            ]
            bench.emit("loop", what="the same bits", repeated=same[0], resumed=kept and same[1])
        sizes: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("S", {"model": MODELS["S"]}, {"batch": 256, "epochs": 40, "cache": True, "photometrics_on": "device"}),
            ("B", {"model": MODELS["B"]}, {"batch": 256, "epochs": 16, "photometrics_on": "device"}),
        ]
        if bench.toy:
            sizes = [("S", TOY_ENCODER, {**TOY_HEADS, "batch": 4, "epochs": 2, "photometrics_on": "device"})]
        for size, encoder, settings in sizes:
            with bench.section("loop", size):
                more = {"warmup_epochs": 1, "log_every": 10, "save_every": 10**5, "workers": 0 if bench.toy else cores}
                run = performed(size, encoder, settings | more)
                record = run.record(run.workspace.results)
                assert record is not None
                bench.emit(
                    "loop",
                    what="a run",
                    size=size,
                    batch=settings["batch"],
                    images_per_second=record.images_per_second,
                    waiting_for_data=record.extra["waiting_for_data"],
                )


# Downstream


def finetune_step(bench: Bench, size: str, batch: int) -> Step:
    """Return a step of fine-tuning on a thousand classes, compiled block by block on a GPU."""
    from downstream.finetune import build_classifier, layer_decay_groups
    from downstream.mixing import DropPaths, Mixing
    from lutbench.models.encoders import create_encoder
    from lutbench.train.device import moved

    architecture: dict[str, Any] = TOY_ENCODER if bench.toy else {"model": MODELS[size]}
    settings = {"data": {}, "encoder": {"architecture": architecture, "kind": "scratch"}, "batch": batch}
    recipe = read_recipe(FinetuneRecipe, settings, "gpu")
    classifier = build_classifier(create_encoder(recipe.encoder.architecture), recipe, 1000, 0).to(bench.device)
    paths, mixing = DropPaths.replacing(classifier, 0), Mixing(recipe, 1000, 0)
    optimizer = torch.optim.AdamW(layer_decay_groups(classifier, recipe), lr=1e-4, fused=True)
    if bench.cuda:
        compile_blocks(classifier)
    classifier.train()
    pixels = moved(torch.randn(batch, 3, recipe.side, recipe.side))
    labels, rows, number = moved(torch.randint(0, 1000, (batch,))), list(range(batch)), 0

    def step() -> None:
        nonlocal number
        images, targets = mixing(pixels.clone(), labels, number, rows)
        paths.draw(number, batch, rows, bench.device)
        number += 1
        with autocast("auto"):
            scores = classifier(images)
        functional.cross_entropy(scores.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def downstream(bench: Bench) -> None:
    """Images/s of fine-tuning, of the robustness stage from files, and the seconds of k-NN at ImageNet's size."""
    import robustness_stage as stage
    import timm

    from lutbench.evaluate.neighbours import knn_classify
    from lutbench.models.preprocessing import IMAGENETS
    from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
    from robustness.classifier import Classifier
    from robustness.conditions import open_condition
    from robustness.labels import imagenet_1k

    for size, batch in [("S", 2)] if bench.toy else [("S", 256), ("B", 256), ("L", 128)]:
        with bench.section("downstream", f"fine-tuning {size}"):
            _time_step(bench, "fine-tuning", "regional", size, batch, finetune_step(bench, size, batch))
    with bench.section("downstream", "robustness"), tempfile.TemporaryDirectory() as folder:
        count, batch, workers = (4, 4, 0) if bench.toy else (4096, 256, len(os.sched_getaffinity(0)))
        stage._write_cell(Path(folder), count)
        shifted = read_recipe(
            RobustnessDatasetRecipe, {"path": ".", "labels": "imagenet-1k", "preprocessing": ["crop"]}, "shifted"
        )
        settings = {
            "classifier": {"kind": "timm", "model": MODELS["S"]},
            "set": shifted.model_dump(),
            "eval_batch": batch,
            "workers": workers,
        }
        recipe, condition = (
            read_recipe(RobustnessRecipe, settings, "gpu"),
            open_condition(shifted, Path(folder), "", imagenet_1k()),
        )
        model = timm.create_model("vit_tiny_patch16_224" if bench.toy else MODELS["S"]).to(bench.device).eval()
        classifier = Classifier(model, 224, imagenet_1k(), IMAGENETS)
        took = bench.in_a_row(lambda: stage._classify(classifier, condition, recipe), 1)
        bench.emit("downstream", what="robustness, ViT-S, from files", images_per_second=round(count / took))
    with bench.section("downstream", "k-NN"):
        queries, bank, width = (8, 64, 16) if bench.toy else (50_000, 1_281_167, 768)
        asking, voting = (torch.randn(rows, width, device=bench.device) for rows in (queries, bank))
        labels, of_bank = (torch.randint(0, 10, (rows,), device=bench.device) for rows in (queries, bank))
        took = bench.in_a_row(lambda: knn_classify(asking, labels, voting, of_bank, 1000, 20, 0.07), 1)
        bench.emit("downstream", what="k-NN", queries=queries, bank=bank, seconds=round(took, 2))


PARTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "env": (env, 10),
    "peak": (peak, 30),
    "correct": (correct, 90),
    "speed": (speed, 150),
    "trace": (trace, 40),
    "data": (data, 50),
    "loop": (loop, 90),
    "downstream": (downstream, 60),
    "attention": (attention, 25),
}
"""Every part, in the order in which they run, and the seconds that it may take at most."""
