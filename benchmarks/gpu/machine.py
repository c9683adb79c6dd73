"""What the machine is and what its device can do at most: matrix products, copies, and attention at the step's own shapes."""

import os

import torch
from bench import Bench
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lutbench.provenance import code, hardware, packages


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
    side = 64 if bench.toy else 8192
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        with bench.section("peak", name):
            a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
            took = bench.seconds(lambda: a @ b, 0.5)  # noqa: B023
            bench.emit("peak", what=f"matrix product, {name}", side=side, tflops=round(2 * side**3 / took / 1e12, 2))
    tokens, batch = (1, 1) if bench.toy else (197, 256)
    shapes = {
        "teacher's qkv, ViT-B": (2 * batch * tokens, 768, 2304),
        "teacher's fc1, ViT-B": (2 * batch * tokens, 768, 3072),
        "student's fc1, ViT-B": (2 * batch * (tokens // 4 + 1), 768, 3072),
        "decoder's fc1": (batch * tokens, 512, 2048),
        "patch embedding, ViT-B": (2 * batch * tokens, 768, 768),
    }
    for name, (rows, width, into) in shapes.items():
        with bench.section("peak", name):
            x = torch.randn(rows, width, device=bench.device, dtype=torch.bfloat16)
            weight = torch.randn(into, width, device=bench.device, dtype=torch.bfloat16)
            took = bench.seconds(lambda: functional.linear(x, weight), 0.3)  # noqa: B023
            bench.emit("peak", what=name, tflops=round(2 * rows * width * into / took / 1e12, 2))
    if bench.cuda:
        with bench.section("peak", "copies"):
            _copies(bench)


def _copies(bench: Bench) -> None:
    one = torch.empty(2**30, dtype=torch.uint8, device=bench.device)
    other, pinned = torch.empty_like(one), torch.empty(2**28, dtype=torch.uint8).pin_memory()
    took = bench.seconds(lambda: other.copy_(one))
    bench.emit("peak", what="copy on the device", GBps=round(2 * 2**30 / took / 1e9))
    took = bench.seconds(lambda: other[: 2**28].copy_(pinned, non_blocking=True))
    bench.emit("peak", what="copy to the device, pinned", GBps=round(2**28 / took / 1e9, 1))


def attention(bench: Bench) -> None:
    """Attention's backends at the step's own shapes."""
    batch, tokens = (1, 8) if bench.toy else (256, 197)
    shapes = {
        "teacher, ViT-B": (2 * batch, 12, tokens, 64),
        "student, ViT-B": (2 * batch, 12, tokens // 4 + 1, 64),
        "decoder": (batch, 16, tokens, 32),
    }
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    for name, (rows, heads, long, width) in shapes.items():
        packed = torch.randn(rows, long, 3, heads, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # strides as timm has them
        for backend in backends if bench.cuda else backends[-1:]:
            with bench.section("attention", f"{name} {backend}"), sdpa_kernel(backend):

                def both(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                    out = functional.scaled_dot_product_attention(q, k, v)
                    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

                bench.emit("attention", what=name, backend=backend.name, ms=round(1e3 * bench.seconds(both, 0.2), 3))
