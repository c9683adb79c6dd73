"""Which images make which optimiser step, on which process, and the loader that brings them.

A run is one stream of images: the epochs' shuffled orders one after another, cut into full batches. The last
batch is filled from the order of the next epoch, so no step is ever partial and no image is left out; with fewer
images than the batch holds, a step still happens. Which images a step sees depends on (seed, step) alone.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import chain, groupby, islice
from multiprocessing.queues import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from lutbench.data.images import ImageDataset, is_streamed, load_or_next
from lutbench.errors import UserError
from lutbench.interruption import SIGNALS
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator, reseed

if TYPE_CHECKING:
    from lutbench.data.streaming import StreamedImages

Key = tuple[int, int]
"""(epoch, image index): one sample of one image, and the key of all that is random about it."""


@lru_cache(maxsize=2)
def _epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    return generator(RngStream.ORDER, seed, epoch).permutation(images)


@dataclass(frozen=True)
class Schedule:
    """How a stream of images becomes optimiser steps.

    A step's batch is cut into ``micro_batches`` of ``micro_batch`` images, whose gradients are accumulated, each spread over
    the processes. Images 2k and 2k + 1 of a batch stay on one process and in one micro-batch, first and last, second and last
    but one ... of what that process gets, so that a flip of it (timm's Mixup) pairs the same images however the
    batch is cut.

    Raises:
        UserError: if a micro-batch does not divide over the processes.
    """

    images: int
    epochs: int | Fraction
    """A fraction for runs that are counted in iterations, see :meth:`of_iterations`."""
    batch: int
    micro_batch: int
    seed: int
    rank: int = field(default_factory=lambda: accelerator().process_index)
    processes: int = field(default_factory=lambda: accelerator().num_processes)

    def __post_init__(self) -> None:
        if self.micro_batch % self.processes:
            raise UserError(
                f"micro_batch = {self.micro_batch} images do not divide over {self.processes} processes: "
                f"set batch and micro_batch to multiples of {self.processes}, or start another number of processes."
            )

    @classmethod
    def of_iterations(cls, images: int, iterations: int, batch: int, seed: int) -> "Schedule":
        """Return the schedule of exactly so many optimiser steps of one micro-batch each."""
        return cls(images, Fraction(iterations * batch, images), batch, batch, seed)

    @property
    def steps(self) -> int:
        """Optimiser steps in the run: ceil(epochs * images / batch)."""
        return -(-self.epochs * self.images // self.batch)

    @property
    def micro_batches(self) -> int:
        """How many are accumulated per optimiser step."""
        return self.batch // self.micro_batch

    def steps_in(self, epochs: float) -> int:
        """Return the optimiser steps that ``epochs`` take, rounded; for the warm-up."""
        return round(epochs * self.images / self.batch)

    def key(self, position: int) -> Key:
        """Return the key of what comes at ``position`` in the run's stream of images."""
        epoch, index = divmod(position, self.images)
        return epoch, int(_epoch_order(self.images, self.seed, epoch)[index])

    def batch_keys(self, step: int) -> list[Key]:
        """Return the keys of the whole batch of a step, in order."""
        return [self.key(position) for position in range(step * self.batch, (step + 1) * self.batch)]

    def rows(self, accumulated: int) -> list[int]:
        """Return this process's rows of the batch in one of its micro-batches."""
        share = self.micro_batch // self.processes
        first = accumulated * self.micro_batch + self.rank * share
        rows = list(range(first, first + share))
        return rows[0::2] + rows[1::2][::-1]

    def positions(self, start: int) -> Iterator[list[int]]:
        """Yield the positions, in the run's stream of images, of each of this process's micro-batches from step ``start`` on."""
        for step in range(start, self.steps):
            for accumulated in range(self.micro_batches):
                yield [step * self.batch + row for row in self.rows(accumulated)]


class FromStep(Sampler[list[Key]]):
    """Samples this process's micro-batches, from step ``start`` to the end of the run."""

    def __init__(self, schedule: Schedule, start: int) -> None:
        self.schedule = schedule
        self.start = start

    def __len__(self) -> int:
        return max(0, self.schedule.steps - self.start) * self.schedule.micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        for positions in self.schedule.positions(self.start):
            yield [self.schedule.key(position) for position in positions]


class _StreamedSamples(IterableDataset[dict[str, Tensor]]):
    """The micro-batches of a streamed dataset: a loader's worker w of W takes those numbered w, w + W ... of its process.

    An image that cannot be decoded gives its place to the next one in the set.
    """

    def __init__(self, samples: "_Samples", images: "StreamedImages", schedule: Schedule, start: int) -> None:
        self.samples = samples
        self.images = images
        self.schedule = schedule
        self.start = start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        coming = self._in_order()
        for positions in self._micro_batches():
            taken = {}
            for position in sorted(positions):
                epoch = position // self.schedule.images
                index, content = next(coming)
                taken[position] = self.samples.sample(epoch, index, content)
            yield default_collate([taken[position] for position in positions])

    def _micro_batches(self) -> Iterator[list[int]]:
        """Yield the positions of every micro-batch of this worker."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        return islice(self.schedule.positions(self.start), number, None, workers)

    def _in_order(self) -> Iterator[tuple[int, bytes]]:
        """Yield index and content of this worker's images, epoch by epoch."""
        positions = chain.from_iterable(map(sorted, self._micro_batches()))
        for epoch, some in groupby(positions, lambda position: position // self.schedule.images):
            ranks = np.fromiter(some, np.int64) % self.schedule.images
            yield from self.images.contents(self.schedule.seed, epoch, ranks)


class _Samples(Dataset[dict[str, Any]]):
    """One image by one: decoded and transformed under its own key.

    The generators are not put back: nothing draws without a key, and keeping NumPy's state costs as much as a crop.
    """

    def __init__(self, images: ImageDataset, transform: Callable[[Image], dict[str, Tensor]], seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.sample(*key)

    def sample(self, epoch: int, index: int, content: bytes | None = None) -> dict[str, Any]:
        """Return the sample of an image, whose ``content`` may have been read already."""
        image, used, skipped = load_or_next(self.images, index, content)
        reseed(RngStream.IMAGE, self.seed, epoch, index)
        made: dict[str, Any] = {**self.transform(image), "index": used, "skipped": skipped}
        if self.images.labels is not None:
            made["label"] = int(self.images.labels[used])
        return made


def stream(
    images: ImageDataset,
    transform: Callable[[Image], dict[str, Tensor]],
    schedule: Schedule,
    start: int = 0,
    workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Return this process's micro-batches from step ``start`` on, ``schedule.micro_batches`` for every optimiser step.

    Every batch is a dict of stacked tensors: what ``transform`` returns, and ``index`` (B,) into ``images``,
    ``skipped`` (B,) how many undecodable images were passed over, and ``label`` (B,) where there are labels.
    """
    options, samples = loader_options(workers), _Samples(images, transform, schedule.seed)
    if is_streamed(images):
        return iter(Loader(_StreamedSamples(samples, images, schedule, start), batch_size=None, **options))
    return iter(Loader(samples, batch_sampler=FromStep(schedule, start), **options))


def loader_options(workers: int) -> dict[str, Any]:
    """Return the arguments of a training loop's :class:`Loader` with so many ``workers``."""
    pin_memory = accelerator().device.type == "cuda"
    return {"num_workers": workers, "pin_memory": pin_memory} | ({"prefetch_factor": 4} if workers else {})


PATIENCE = 1800.0
"""Seconds after which a batch is no longer waited for: a worker lives on that could not hand over its own (our choice)."""


OPEN_FILES = 65536
"""Far more than loaders keep open; Linux's usual limit is 1,024."""


class Loader(DataLoader[Any]):
    """A DataLoader whose workers leave signals, from their first moment on, to the process that needs them to save.

    A batch is waited for ``patience`` seconds, :data:`PATIENCE` if not given; 0 for those that may take any time. Workers hand
    tensors over by open files, so as many may be open from here on as the system allows.
    """

    def __init__(self, dataset: Dataset[Any], patience: float | None = None, **options: Any) -> None:
        raise_file_limit()
        timeout = (PATIENCE if patience is None else patience) if options.get("num_workers") else 0
        super().__init__(dataset, worker_init_fn=follow_parent, timeout=timeout, **options)

    def __iter__(self) -> Any:
        """Start the workers, with signals held back until they have left the process group."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return self._explained(super().__iter__())
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _explained(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            raise UserError(
                f"No batch came from the {self.num_workers} loader processes in {self.timeout:,.0f} seconds. Does the disk answer? Too "
                "many open files can be the cause: raise the limit (ulimit -n), or set workers = 0 to read without loader processes. "
                "The same command goes on from what was saved."
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
    """Leave the process group: what is sent to all of it, a worker does not hear.

    A scheduler sends to every process of a job by itself: so SIGTERM is heard of the parent alone.
    Its errors a worker hands to its parent, those of handing over too; that the parent ends in the middle of a handover is none.
    """
    os.setpgid(0, 0)
    while sent := signal.sigpending() & set(SIGNALS):
        signal.sigwait(sent)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - {signal.SIGTERM})
        Thread(target=_end_when_parent_says, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Queue._on_queue_feeder_error = send_error  # type: ignore[attr-defined]
    sys.excepthook = lambda *_: None


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(128 + signal.SIGTERM)
