"""The images of every optimiser step on every process, and the loader that delivers them.

A run is one stream of images: the shuffled orders of the epochs, one after another, divided into full batches. The last
batch is filled from the order of the next epoch, so no step is partial and no image is left out; this also works with fewer
images than a batch. The images of a step depend only on (seed, step).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate, default_convert, get_worker_info

from lutbench.data.decoding import Pixels
from lutbench.data.images import ImageDataset, UndecodableImage, is_streamed, load_or_next
from lutbench.errors import UserError
from lutbench.recipes.base import Form
from lutbench.train.loader import Flight, bytes_of, cut, loaded, loaded_stream
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator, reseed, seeded

if TYPE_CHECKING:
    from lutbench.data.streaming import StreamedImages
    from lutbench.evaluate.crop_store import FreshCrops

Key = tuple[int, int]
"""(epoch, image index): one sample of an image, and the key of its random draws."""

RAGGED = ("erased_noise",)
"""Entries of samples with varying length, which are concatenated in a batch instead of stacked."""

BLANK = 256
"""Side in pixels of the image that is made for the size of samples."""


@lru_cache(maxsize=2)
def _epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    return generator(RngStream.ORDER, seed, epoch).permutation(images)


@dataclass(frozen=True)
class Schedule:
    """How a stream of images is divided into optimiser steps.

    A step's batch is divided into ``micro_batches`` of ``micro_batch`` images, whose gradients are accumulated; each micro-batch is divided
    over the processes. Images 2k and 2k + 1 of a batch stay on one process and in one micro-batch, where they are placed first and last,
    second and second-to-last, and so on. So timm's Mixup, which pairs a batch with its reversed order, pairs the same images however the
    batch is divided.

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
                f"micro_batch = {self.micro_batch} images cannot be divided among {self.processes} processes: "
                f"set batch and micro_batch to multiples of {self.processes}, or start a different number of processes."
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
    """The micro-batches of a streamed dataset in units: a loader's worker w of W takes those numbered w, w + W ... of its process.

    An image that cannot be decoded gives its place to the next one in the set.
    """

    def __init__(self, samples: "Samples", images: "StreamedImages", schedule: Schedule, start: int, unit: int) -> None:
        self.samples = samples
        self.images = images
        self.schedule = schedule
        self.start = start
        self.unit = unit

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        coming = self._in_order()
        for positions in self._units():
            taken = {}
            for position in sorted(positions):
                epoch = position // self.schedule.images
                index, content = next(coming)
                taken[position] = self.samples.sample(epoch, index, content)
            yield stacked((taken[position] for position in positions), Rows(len(positions)))

    def _units(self) -> Iterator[Sequence[int]]:
        """Yield the positions of every unit of this worker."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        micro_batches = self.schedule.positions(self.start)
        units = chain.from_iterable(cut(positions, self.unit) for positions in micro_batches)
        return islice(units, number, None, workers)

    def _in_order(self) -> Iterator[tuple[int, bytes]]:
        """Yield index and content of this worker's images, epoch by epoch."""
        positions = chain.from_iterable(map(sorted, self._units()))
        for epoch, some in groupby(positions, lambda position: position // self.schedule.images):
            ranks = np.fromiter(some, np.int64) % self.schedule.images
            yield from self.images.contents(self.schedule.seed, epoch, ranks)


class Samples(Dataset[dict[str, Any]]):
    """One image by one: decoded and transformed under its own key.

    The generators are not put back: nothing draws without a key, and keeping NumPy's state costs as much as a crop.
    """

    def __init__(
        self,
        images: ImageDataset,
        transform: Callable[[Any], dict[str, Tensor]],
        seed: int,
        form: Form,
        crops: "FreshCrops | None" = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.form = form
        self.crops = crops

    @property
    def size(self) -> int:
        """Bytes of a sample, of a blank image."""
        blank = Image.new("RGB", (BLANK, BLANK))
        with seeded(RngStream.IMAGE, self.seed):
            return bytes_of(self.transform(blank if self.form == "Pillow" else np.array(blank)))

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        rows = Rows(len(keys))
        return stacked((self.sample(*key, rows=rows) for key in keys), rows)

    def sample(
        self, epoch: int, index: int, content: bytes | None = None, rows: "Rows | None" = None
    ) -> dict[str, Any]:
        """Return the sample of an image, whose ``content`` may have been read already; its pixels may lie in ``rows``."""
        made = self._kept(epoch, index) if content is None else None
        if made is None:
            image, used, skipped = load_or_next(self.images, index, content, self.form)
            made = {**self._seen(epoch, index, image, rows), "index": used, "skipped": skipped}
        if self.images.labels is not None:
            made["label"] = int(self.images.labels[made["index"]])
        return made

    def _seen(self, epoch: int, index: int, image: Any, rows: "Rows | None" = None) -> dict[str, Any]:
        """Return an image transformed under its key."""
        reseed(RngStream.IMAGE, self.seed, epoch, index)
        return self.transform(image, rows) if isinstance(self.transform, RowTransform) else self.transform(image)

    def _kept(self, epoch: int, index: int) -> dict[str, Any] | None:
        """Return a sample whose crop is shared; None if no crops are, or if the image cannot be decoded, so that another replaces it."""
        if self.crops is None:
            return None

        def decoded() -> Tensor:
            image = (self.images.image if self.form == "Pillow" else self.images.pixels)(index)
            made: Tensor = self._seen(epoch, index, image)["image"]
            return made

        try:
            return {"image": self.crops.crop(epoch, index, decoded), "index": index, "skipped": 0}
        except UndecodableImage:
            return None


def stream(
    images: ImageDataset,
    transform: Callable[[Any], dict[str, Tensor]],
    schedule: Schedule,
    start: int = 0,
    workers: int = 0,
    form: Form = "Pillow",
    crops: "FreshCrops | None" = None,
) -> Iterator[dict[str, Tensor]]:
    """Return this process's micro-batches from step ``start`` on, ``schedule.micro_batches`` for every optimiser step.

    Every batch is a dict of stacked tensors: what ``transform`` returns of images in that ``form``, and ``index`` (B,) into ``images``,
    ``skipped`` (B,) how many undecodable images were passed over, and ``label`` (B,) where there are labels. If ``transform`` returns
    the pixels ``image`` alone they come from ``crops``, where these are given, and those that it makes are kept there.
    """
    samples = Samples(images, transform, schedule.seed, form, crops)
    share = schedule.micro_batch // schedule.processes
    flight = Flight.of(share, samples.size if workers else 0, workers)
    if is_streamed(images):
        unit = flight.unit if workers else share
        counts = [len(cut(range(share), unit))] * len(FromStep(schedule, start))
        return loaded_stream(_StreamedSamples(samples, images, schedule, start, unit), counts, workers, flight)
    return loaded(samples, FromStep(schedule, start), workers, flight, default_convert)


class Rows:
    """The uint8 pixels of a batch of ``count`` samples, by name; a transform that writes a sample's into its row saves copying them."""

    def __init__(self, count: int) -> None:
        self.batch: dict[str, Tensor] = {}
        self.row = 0
        """The row of the sample that is made now."""
        self._count = count
        self._arrays: dict[str, Pixels] = {}

    def of(self, name: str, *shape: int) -> Pixels:
        """Return the sample's row, of that shape; what it holds is undefined."""
        if name not in self.batch:
            self.batch[name] = _room(self._count, *shape)
            self._arrays[name] = self.batch[name].numpy()
        row: Pixels = self._arrays[name][self.row]
        return row

    def put(self, name: str, pixels: Tensor) -> None:
        """Copy pixels into the sample's row, unless they were written there.

        Raises:
            KeyError: if samples before this one have no such pixels.
        """
        if self.row and name not in self.batch:
            raise KeyError(name)
        self.of(name, *pixels.shape)
        row = self.batch[name][self.row]
        if row.data_ptr() != pixels.data_ptr() or row.stride() != pixels.stride():
            row.copy_(pixels)


class RowTransform(ABC):
    """A transform that writes pixels into their row of a batch."""

    @abstractmethod
    def __call__(self, image: Any, rows: Rows | None = None) -> dict[str, Tensor]:
        """Return a sample, whose pixels may lie in ``rows``."""


def stacked(samples: Iterable[dict[str, Any]], rows: Rows) -> dict[str, Tensor]:
    """Return samples as a batch: stacked, but for what is :data:`RAGGED`, which lies in one row. Pixels lie in ``rows``.

    Pixels are put there as each sample comes: it is in the processor's cache then, and leaves its memory to the next one.
    """
    others: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        others.append({})
        for name, value in sample.items():
            if isinstance(value, Tensor) and value.dtype == torch.uint8:
                rows.put(name, value)
            else:
                others[number][name] = value
        rows.row = number + 1
    ragged = {name: torch.cat([sample.pop(name) for sample in others]) for name in RAGGED if name in others[0]}
    return {**rows.batch, **default_collate(others), **ragged}


def _room(*shape: int) -> Tensor:
    """Return room for pixels; in a loader process in shared memory, as torch's own collation does."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)
