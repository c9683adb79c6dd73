"""Copy batches to the device, and mark where the host may wait for the device: never within a training step.

If the host runs ahead of its GPU, the work of the next step is ready when the current step ends. Code that reads numbers back (a loss to
print, a checkpoint, results) must wait and is marked with :func:`may_wait`; any other wait fails a test, see ``tests/test_waits.py``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lutbench.train.processes import accelerator

ON_HOST = ("index", "skipped", "erased")
"""Entries of a batch that stay on the CPU: image indices and counts, which only the log reads, and rectangles, used on the host."""


def on_device(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield ``batches`` with all but :data:`ON_HOST` on this process's device; on a CPU as they come.

    They are copied on a separate CUDA stream from pinned memory, so the next batch is copied while the GPU computes the current step.
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
    """Mark an intended wait for the device; ``torch.cuda.set_sync_debug_mode`` reports unintended ones."""
    if accelerator().device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
