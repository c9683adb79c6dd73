"""Loader processes: how much they prefetch, how they end, and how batches are assembled.

A batch is loaded in units of at most :data:`UNIT` images, so that all loader processes work on the first batch together. The number of
prefetched units is limited by :data:`IN_FLIGHT` bytes, whatever the batch size.
"""

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from lutbench.errors import UserError
from lutbench.interruption import SIGNALS
from lutbench.train.processes import accelerator

UNIT = 64
"""Maximum number of images per unit of work of a loader process (our choice: half a second of decoding)."""

IN_FLIGHT = 2**30
"""Maximum bytes that the loaders of a training process prefetch (our choice: 3,400 pairs of views of 224 pixels)."""

UNITS = 8
"""Maximum number of units that a loader process prefetches (our choice): for small images, more would only delay the start."""

PATIENCE = 1800.0
"""Timeout in seconds for a batch: a worker that failed to hand over a batch may stay alive (our choice)."""

OPEN_FILES = 65536
"""Far more than loaders keep open; Linux's usual limit is 1,024."""

PR_SET_PDEATHSIG = 1
"""Linux's number of the setting: the signal that a process gets when its parent ends (prctl(2))."""


class Flight(NamedTuple):
    """How a batch is divided into units, and how many units loader processes prefetch."""

    unit: int
    """Images per unit."""
    ahead: int
    """Units that each loader process prefetches."""

    @classmethod
    def of(cls, batch: int, sample_bytes: int, workers: int) -> "Flight":
        """Return the largest that :data:`IN_FLIGHT` holds, for batches of so many samples; a sample for each worker at least."""
        most = max(1, IN_FLIGHT // (max(1, sample_bytes) * max(1, workers)))
        unit = min(UNIT, most, max(1, batch))
        return cls(unit, max(1, min(UNITS, most // unit)))


def cut(batch: Sequence[Any], unit: int) -> list[Sequence[Any]]:
    """Return a batch in as few pieces of at most ``unit`` as can be, of sizes that differ by at most one."""
    count = -(-len(batch) // unit)
    ends = [len(batch) * number // count for number in range(count + 1)]
    return [batch[first:last] for first, last in pairwise(ends)]


class _Units(Sampler[Sequence[Any]]):
    """The batches of a run in units; notes of how many each consists, for who puts them together."""

    def __init__(self, batches: Iterable[Sequence[Any]], unit: int) -> None:
        self.batches, self.unit = batches, unit
        self.counts: deque[int] = deque()

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for batch in self.batches:
            units = cut(batch, self.unit)
            self.counts.append(len(units))
            yield from units


def loaded(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[Any]],
    workers: int,
    flight: Flight,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> Iterator[Any]:
    """Return the batches of a dataset, each a list of its keys, as tensors or dicts or lists of tensors, in page-locked memory for CUDA.

    Without ``workers`` they are made in this process, when they are asked for.
    """
    units = _Units(batches, flight.unit)
    if not workers:
        options: dict[str, Any] = {"batch_sampler": batches}
        return _joined(Loader(dataset, collate_fn=collate, **options), None)
    options = {"batch_sampler": units, "num_workers": workers, "prefetch_factor": flight.ahead}
    return _joined(Loader(dataset, collate_fn=collate, **options), units.counts)


def loaded_stream(
    units: IterableDataset[Any], counts: Iterable[int], workers: int, flight: Flight
) -> Iterator[dict[str, Tensor]]:
    """Return the batches of a dataset whose workers each yield their share of all units; ``counts`` are the units of each batch."""
    ahead = {"prefetch_factor": flight.ahead} if workers else {}
    return _joined(Loader(units, batch_size=None, num_workers=workers, **ahead), deque(counts))


def _joined(loader: "Loader", counts: deque[int] | None) -> Iterator[Any]:
    """Return the batches of which ``loader`` brings the units, so many for each; its processes start now."""
    units = iter(loader)
    pinned = accelerator().device.type == "cuda"

    def batches() -> Iterator[Any]:
        for first in units:
            rest = counts.popleft() - 1 if counts is not None else 0
            parts = [first, *(next(units) for _ in range(rest))]
            yield together(parts, pinned)

    return batches()


def together(parts: Sequence[Any], pinned: bool = False) -> Any:
    """Return tensors, or dicts or lists of them, one behind the other; in page-locked memory, from where a GPU copies while it computes."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: together([part[name] for part in parts], pinned) for name in first}
    if isinstance(first, list | tuple):
        return [together(of, pinned) for of in zip(*parts, strict=True)]
    if len(parts) == 1 and not pinned:
        return first
    rows = sum(len(part) for part in parts)
    into = torch.empty(rows, *first.shape[1:], dtype=first.dtype, pin_memory=pinned)
    return torch.cat(list(parts), out=into)


def bytes_of(sample: Any) -> int:
    """Return the bytes of a sample's tensors; a number counts as 8."""
    if isinstance(sample, dict):
        return sum(map(bytes_of, sample.values()))
    if isinstance(sample, list | tuple):
        return sum(map(bytes_of, sample))
    return sample.nbytes if isinstance(sample, Tensor) else 8


def loader_options(workers: int, batch_bytes: int) -> dict[str, Any]:
    """Return the arguments of a :class:`Loader` of whole batches of at most so many bytes.

    Each worker prefetches two (our choice); one, or there are fewer workers, if :data:`IN_FLIGHT` does not hold as many.
    """
    most = max(1, IN_FLIGHT // batch_bytes)
    workers = min(workers, most)
    pin_memory = accelerator().device.type == "cuda"
    ahead = {"prefetch_factor": min(2, most // workers)} if workers else {}
    return {"num_workers": workers, "pin_memory": pin_memory} | ahead


class Loader(DataLoader[Any]):
    """A DataLoader whose workers leave signals, from their first moment on, to the process that needs them to save.

    A batch is waited for ``patience`` seconds, :data:`PATIENCE` if not given; 0 for those that may take any time. Workers hand
    tensors over by open files, so as many may be open from here on as the system allows. They end with the process that started them,
    of which they are forks on Linux, whatever is usual there: they share what it has in memory.
    """

    def __init__(self, dataset: Dataset[Any], patience: float | None = None, **options: Any) -> None:
        raise_file_limit()
        timeout = 0.0
        if options.get("num_workers"):
            timeout = PATIENCE if patience is None else patience
            if sys.platform == "linux":
                options.setdefault("multiprocessing_context", "fork")
        super().__init__(dataset, worker_init_fn=follow_parent, timeout=timeout, **options)

    def __iter__(self) -> Any:
        """Start the workers, with signals held back in them for good, and here until they have started.

        What torch returns is kept from the garbage collector until it is let go of here: to end workers it starts threads that close
        the files of queues, which the collector would close too. Closed twice, such a file may be another one that was opened between,
        as the memory of a batch is. For the same reason workers never collect what was garbage here, see :func:`follow_parent`.
        """
        before, collects = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), gc.isenabled()
        gc.disable()
        try:
            units = super().__iter__()
            coming = self._explained(units)
            weakref.finalize(coming, lambda units: None, units)
            return coming
        finally:
            if collects:
                gc.enable()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _explained(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            raise UserError(
                f"No batch came from the {self.num_workers} loader processes in {self.timeout:,.0f} seconds. Does the disk respond? Too "
                "many open files can be the cause: raise the limit (ulimit -n), or set workers = 0 to read without loader processes. "
                "The same command resumes from the last checkpoint."
            ) from error


def raise_file_limit() -> None:
    """Let this process have :data:`OPEN_FILES` files open, or as many as the system allows."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < allowed:
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


def send_error(queue: "Queue[Any]", error: Exception, batch: tuple[Any, ...]) -> None:
    """Send, in the place of a batch that could not be sent, the error that kept it; multiprocessing would drop it, and be waited for."""
    queue.put((batch[0], ExceptionWrapper((type(error), error, error.__traceback__), "in a loader process")))


def follow_parent(worker: int) -> None:
    """Leave the process group, and hear no signal but the parent's, as a scheduler may send them to every process; end when the parent does.

    Its errors a worker hands to its parent, those of handing over too; that the parent ends in the middle of a handover is none. What was
    garbage in the parent is never collected here, where finalizers would close what this process uses.
    """
    gc.freeze()
    gc.enable()
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_when_told, daemon=True).start()
    if sys.platform == "linux":  # elsewhere torch looks every few seconds whether the parent is there
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():
            os._exit(1)  # it ended before
    Queue._on_queue_feeder_error = send_error  # type: ignore[attr-defined]
    sys.excepthook = lambda *_: None


def _end_when_told() -> None:
    """Take the signals that are held back, and end at once, as torch's own workers do, at the parent's SIGTERM."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS: nothing tells who sent one
        signal.sigwait({signal.SIGTERM})
        os._exit(0)
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
