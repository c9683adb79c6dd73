"""One process or many: device, precision and the process group, through accelerate."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in signature(DDP).parameters else "broadcast_buffers"
"""The name since torch 2.13, with which buffers are still sent once, at the start; and the name before, with which they are not."""

DDP_OPTIONS = {"gradient_as_bucket_view": True, _SYNC_BUFFERS: False}
"""Options of torch's DistributedDataParallel for all training.

Gradients lie in the buckets that are reduced, and are not copied there. Buffers are not sent before every forward pass, because
BatchNorm's are of all processes already. Nothing looks for unused parameters, so a static graph would save nothing; it would reduce
the first step's gradients only after its backward pass, and torch refuses it under no_sync, which micro-batches need.
"""


class _Options(DistributedDataParallelKwargs):  # type: ignore[misc]
    """:data:`DDP_OPTIONS` for accelerate, which does not know the later name."""

    def to_kwargs(self) -> dict[str, bool]:
        """Return the arguments of DistributedDataParallel."""
        return dict(DDP_OPTIONS)


@lru_cache(maxsize=1)
def accelerator() -> Accelerator:
    """Return the process group of this command: one process under ``python``, many under ``torchrun`` (gloo on CPU)."""
    cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    made = Accelerator(cpu=cpu)
    made.ddp_handler = _Options()  # set here, because it would not be accepted as one of its own
    return made


def greatest(number: int) -> int:
    """Return the maximum ``number`` over all processes, exchanged between CPUs, so that nothing waits for a device.

    About 0.1 ms if the processes are in step.
    """
    if accelerator().num_processes == 1:
        return number
    numbers = torch.tensor([number])
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group=_cpu_group())
    return int(numbers)


@lru_cache(maxsize=1)
def _cpu_group() -> Any:
    """Return the group of all processes over gloo; the first call is made by all of them at once."""
    return torch.distributed.new_group(backend="gloo")


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Return the ``rows`` (R, ...) of all processes in the order of ranks, and the index of this process's first row.

    All processes must have the same number of rows. No gradient passes through. With one process, and on the meta device, returns the rows
    themselves.
    """
    rows = rows.detach()
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not together or rows.is_meta:
        return rows, 0
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts), dist.get_rank() * len(rows)


_begun_in: ContextVar[str] = ContextVar("_begun_in", default="")


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Let ``auto`` mean this precision inside the block: the one a run started with, see :mod:`lutbench.train.precision`.

    Empty for old runs without this information: then ``auto`` depends on this machine.
    """
    before = _begun_in.set(precision)
    try:
        yield
    finally:
        _begun_in.reset(before)


def precision_of(setting: str) -> str:
    """Return the meaning of ``auto``: the precision that the current run started with; else bf16 if the GPU supports it, and fp32 on a CPU."""
    if setting != "auto":
        return setting
    if begun_in := _begun_in.get():
        return begun_in
    return "bf16" if accelerator().device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(setting: str) -> AbstractContextManager[None]:
    """Mixed precision for a forward pass, as the recipe's ``precision`` says."""
    enabled = precision_of(setting) == "bf16"
    return torch.autocast(accelerator().device.type, torch.bfloat16, enabled=enabled)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Switch mixed precision off for a block; the meta device, on which only shapes are computed, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def reducing(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average the gradients over the processes only in the last forward pass of a step, not in every accumulated one."""
    context: AbstractContextManager[None] = nullcontext() if last else accelerator().no_sync(model)
    return context
