"""Something computed from every image of a set: a classifier's outcomes, features, answers to questions.

The images are spread over the processes: process r of w takes images r, r + w, r + 2w ...; results are put back in
the set's order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lutbench.data.images import ImageDataset, UndecodableImage
from lutbench.progress import Bar
from lutbench.train.processes import accelerator, autocast


class Pace(Protocol):
    """What of a recipe says how images are gone through."""

    @property
    def precision(self) -> str: ...
    @property
    def eval_batch(self) -> int: ...
    @property
    def workers(self) -> int: ...


@dataclass(frozen=True)
class Computed:
    """A row for every image that could be decoded."""

    values: Tensor
    """(m, ...), on the CPU."""
    index: NDArray[np.int64]
    """(m,) Which images these are, ascending."""


@torch.no_grad()
def over_images(
    function: Callable[[Tensor, Tensor], Tensor],
    images: ImageDataset,
    transform: Callable[[Image.Image], Tensor],
    recipe: Pace,
    title: str,
) -> Computed:
    """``function(pixels, index)`` of every image, on every process, in the set's order.

    ``transform`` gives uint8 pixels. The function gets them, (B, ...), and index (B,) on the device, under the
    recipe's precision, and returns (B, ...).
    ``title`` names the progress bar; none is shown if it is empty.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those.
    """
    processes = accelerator()
    device, world = processes.device, processes.num_processes
    share = -(-len(images) // world)
    own = [min(processes.process_index + world * k, len(images) - 1) for k in range(share)]
    loader = DataLoader(
        _Decoded(images, transform, own),
        batch_size=recipe.eval_batch,
        num_workers=recipe.workers,
        pin_memory=device.type == "cuda",
    )
    values, decoded, done = [], [], 0
    with Bar(title, len(images), shown=bool(title) and processes.is_main_process) as bar:
        for pixels, index, whole in loader:
            with autocast(recipe.precision):
                values.append(function(pixels.to(device, non_blocking=True), index.to(device)))
            decoded.append(whole.to(device))
            done += len(index)
            bar.update(min(done * world, len(images)))
    kept = _in_order(torch.cat(decoded), len(images))
    return Computed(_in_order(torch.cat(values), len(images))[kept], np.flatnonzero(kept.numpy()))


class _Decoded(Dataset[tuple[Tensor, int, bool]]):
    """Pixels of some images of a set, which images they are, and whether they could be decoded."""

    def __init__(self, images: ImageDataset, transform: Callable[[Image.Image], Tensor], index: Sequence[int]) -> None:
        self.images, self.transform, self.index = images, transform, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, int, bool]:
        index = self.index[place]
        try:
            return self.transform(self.images.image(index)), index, True
        except UndecodableImage:
            if not self.images.skip_undecodable:
                raise
            return self.transform(Image.new("RGB", (64, 64))), index, False


def _in_order(own: Tensor, images: int) -> Tensor:
    """All processes' rows (images, ...) in the set's order, on the CPU, from this process's ``own`` (share, ...)."""
    processes = accelerator()
    if processes.num_processes == 1:
        return own.cpu()
    gathered: Tensor = processes.gather(own.contiguous())
    by_process = gathered.view(processes.num_processes, len(own), *own.shape[1:])
    return by_process.transpose(0, 1).flatten(0, 1)[:images].cpu()
