"""Batches on their way to the device, and where the host may wait for it: nowhere in a training step.

A host that runs ahead of its GPU has the next step's work ready when this one ends. Whatever reads a number back (a loss to be
printed, a checkpoint, results) waits, and says so by :func:`may_wait`; any other wait ends a test, see ``tests/test_waits.py``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lutbench.train.processes import accelerator

ON_HOST = ("index", "skipped", "erased")
"""What of a batch stays on the CPU: names of images and counts, which only the log reads, and rectangles, by which the host cuts."""


def on_device(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield ``batches`` with all but :data:`ON_HOST` on this process's device; on a CPU as they come.

    They are copied on a stream of their own, from pinned memory: while the GPU computes one step, the host, which is ahead of it, has
    the next batch copied.
    """
    device = accelerator().device
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            moved = {name: t if name in ON_HOST else t.to(device, non_blocking=True) for name, t in batch.items()}
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for name, tensor in moved.items():
            if name not in ON_HOST:
                tensor.record_stream(computing)  # else its memory could be given to the next copy too early
        yield moved


def moved(tensor: Tensor) -> Tensor:
    """Return ``tensor`` on this process's device without waiting for it: from pinned memory, into which it is copied if it is not there."""
    device = accelerator().device
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


@contextmanager
def may_wait() -> Iterator[None]:
    """Mark what waits for the device on purpose, where ``torch.cuda.set_sync_debug_mode`` finds what does by mistake."""
    if accelerator().device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
