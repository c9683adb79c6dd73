"""Something computed from every image of a set: a classifier's outcomes, or features.

The images are spread over the processes: process r of w takes images r, r + w, r + 2w ...; results are put back in
the set's order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from downstream.augment import Transform, eval_transform
from lutbench.data.images import ImageSet, UndecodableImage
from lutbench.encoders import encode
from lutbench.errors import UserError
from lutbench.outcomes import Outcomes
from lutbench.pixels import normalised
from lutbench.processes import accelerator, autocast
from lutbench.progress import Bar
from lutbench.recipes import ClassificationRecipe, KnnRecipe, LinearRecipe


@dataclass(frozen=True)
class Computed:
    """A row for every image that could be decoded."""

    values: Tensor
    """(m, ...), on the CPU."""
    index: NDArray[np.int64]
    """(m,) Which images these are, ascending."""


def evaluate(classifier: nn.Module, images: ImageSet, recipe: ClassificationRecipe, title: str) -> Outcomes:
    """How ``classifier`` does on the centre crop of every labelled image of a set; on every process.

    Raises:
        UserError: if its outputs are not finite, or an image cannot be decoded and the set does not skip those.
    """
    labels = labels_of(images).to(accelerator().device)
    training = classifier.training
    classifier.eval()
    computed = over_images(
        lambda pixels, index: place_of_label(classifier(pixels), labels[index]),
        images,
        eval_transform(recipe),
        recipe,
        title,
    )
    classifier.train(training)
    return outcomes_of(computed.values, images, computed.index)


def encode_images(
    encoder: VisionTransformer, images: ImageSet, recipe: LinearRecipe | KnnRecipe, title: str
) -> Computed:
    """Features (m, D), float32, of the centre crops of a set; on every process.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those.
    """
    encoder.eval()
    return over_images(
        lambda pixels, index: encode(encoder, pixels, recipe.pool), images, eval_transform(recipe), recipe, title
    )


def labels_of(images: ImageSet) -> Tensor:
    """The labels (n,), int64, of a set that has them."""
    assert images.labels is not None, "check_pair refuses sets without labels"
    return torch.from_numpy(images.labels.astype(np.int64))


def place_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Prediction and place of the label (B, 2), int64, from ``scores`` (B, C) and ``labels`` (B,).

    The place is 0 where the label has the highest score; of equal scores the lower class comes first. Both are -1
    where a score is not finite.
    """
    order = scores.float().argsort(dim=1, descending=True, stable=True)
    place = (order == labels[:, None]).int().argmax(1)
    result = torch.stack([order[:, 0], place], 1)
    return result.where(scores.isfinite().all(1, keepdim=True), -1)


def outcomes_of(places: Tensor, images: ImageSet, index: NDArray[np.int64]) -> Outcomes:
    """Outcomes of the images ``index`` (m,) of a labelled set, from what :func:`place_of_label` gave, (m, 2).

    Raises:
        UserError: if a classifier's outputs were not finite.
    """
    assert images.labels is not None
    prediction, rank = places.numpy().T
    wrong = prediction < 0
    if wrong.any():
        first = images.image_name(int(index[wrong][0]))
        raise UserError(
            f"{images.name}: the classifier's outputs are not finite for {wrong.sum()} of {len(wrong)} images, "
            f"first for {first}. Training went wrong, or the encoder's weights are not usable."
        )
    return Outcomes.of(images.labels[index], prediction, rank, (images.image_name(int(i)) for i in index))


@torch.no_grad()
def over_images(
    function: Callable[[Tensor, Tensor], Tensor],
    images: ImageSet,
    transform: Transform,
    recipe: ClassificationRecipe,
    title: str,
) -> Computed:
    """``function(pixels, index)`` of every image, on every process, in the set's order.

    ``transform`` gives uint8 pixels. The function gets them normalised, (B, 3, S, S), and index (B,) on the device,
    under the recipe's precision, and returns (B, ...).
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
                values.append(function(normalised(pixels, device), index.to(device)))
            decoded.append(whole.to(device))
            done += len(index)
            bar.update(min(done * world, len(images)))
    kept = _in_order(torch.cat(decoded), len(images))
    return Computed(_in_order(torch.cat(values), len(images))[kept], np.flatnonzero(kept.numpy()))


class _Decoded(Dataset[tuple[Tensor, int, bool]]):
    """Pixels of some images of a set, which images they are, and whether they could be decoded."""

    def __init__(self, images: ImageSet, transform: Transform, index: Sequence[int]) -> None:
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
