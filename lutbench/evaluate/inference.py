"""Run a model on every image of a dataset: a classifier, an encoder, or any other function of the images.

The content of the batches does not depend on the number of processes, so results have the same bits: process r of w computes the batches
r, r + w, r + 2w, ...; results are returned in the order of the dataset.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from lutbench.data.images import ImageDataset, UndecodableImage
from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.crop_store import Crops
from lutbench.evaluate.outcomes import Outcomes
from lutbench.evaluate.scores import TOP, Scores
from lutbench.evaluate.transform import eval_transform
from lutbench.models.encoders import encode
from lutbench.models.preprocessing import Preprocessing
from lutbench.progress import Bar
from lutbench.recipes.base import Form, Metric
from lutbench.recipes.downstream import Pool
from lutbench.train.device import may_wait, moved
from lutbench.train.loader import Flight, bytes_of, loaded
from lutbench.train.processes import accelerator, autocast


class InferenceRecipe(Protocol):
    """Settings of inference. Batch and workers do not change results, except the last bits of probabilities."""

    @property
    def precision(self) -> str: ...
    @property
    def eval_batch(self) -> int | None: ...
    @property
    def workers(self) -> int: ...


class CentreRecipe(InferenceRecipe, Protocol):
    """The same, with the crop."""

    @property
    def side(self) -> int: ...
    @property
    def eval_crop(self) -> float: ...
    @property
    def form(self) -> Form: ...


class EvaluationRecipe(CentreRecipe, Protocol):
    """The same, with the main metric."""

    @property
    def metric(self) -> Metric: ...


class FeatureRecipe(CentreRecipe, Protocol):
    """The same, with the pooling of an encoder's tokens."""

    @property
    def pool(self) -> Pool: ...


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
    transform: Callable[[Any], Tensor],
    recipe: InferenceRecipe,
    title: str,
    chosen: NDArray[np.int64] | None = None,
    form: Form = "Pillow",
    crops: Crops | None = None,
) -> Computed:
    """Compute ``function(pixels, index)`` of every image, or of those ``chosen`` (n,), ascending, on every process, in the set's order.

    ``transform`` gives uint8 pixels of an image in that ``form``; of those whose pixels ``crops`` keep nothing is decoded. The function gets them, (B, ...), and index (B,) on the device, under the
    recipe's precision, and returns (B, ...).
    ``title`` names the progress bar; none is shown if it is empty.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those; or as :func:`check_classes_left`.
    """
    order = np.arange(len(images)) if chosen is None else chosen
    values, decoded = [], []
    for batch in decoded_batches(images, partial(whatever_index, transform), recipe, title, order, form, crops):
        with autocast(recipe.precision):
            values.append(function(batch.pixels, batch.index))
        decoded.append(batch.counts)
    kept = in_order(torch.cat(decoded), order, recipe)
    index = order[kept.numpy()]
    check_classes_left(images, index)
    return Computed(in_order(torch.cat(values), order, recipe)[kept], index)


@dataclass(frozen=True)
class DecodedBatch:
    """Some images on this process's device."""

    pixels: Tensor
    """(B, ...) What the transform gave."""
    index: Tensor
    """(B,) Which images of the dataset these are."""
    counts: Tensor
    """(B,) False for an image that could not be decoded, whose pixels are black, and for those that another process counts."""


def decoded_batches(
    images: ImageDataset,
    transform: Callable[[Any, int], Tensor],
    recipe: InferenceRecipe,
    title: str,
    order: NDArray[np.int64],
    form: Form = "Pillow",
    crops: Crops | None = None,
) -> Iterator[DecodedBatch]:
    """Yield this process's share of the images ``order`` (n,) of a dataset, as ``transform`` makes them of image, in that ``form``, and index.

    Those whose pixels ``crops`` keep come from there, and the others are kept there.

    Every process has as many batches; where there are fewer left than processes, the last comes again and does not count.
    ``title`` names the progress bar; none is shown if it is empty.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those.
    """
    processes = accelerator()
    world, size = processes.num_processes, min(batch_size(recipe), len(order))
    batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    numbers = range(processes.process_index, -(-len(batches) // world) * world, world)
    dataset, workers = _Decoded(images, transform, form, crops), recipe.workers
    flight = Flight.of(size, bytes_of(dataset[int(order[0])]) if workers else 0, workers)
    loader = loaded(dataset, [batches[min(number, len(batches) - 1)] for number in numbers], workers, flight)
    with Bar(title, len(order), shown=bool(title) and processes.is_main_process) as bar:
        for number, (pixels, index, whole) in zip(numbers, loader, strict=True):
            counts = whole if number < len(batches) else torch.zeros_like(whole)
            yield DecodedBatch(moved(pixels), moved(index), moved(counts))
            bar.update(min((number + world) * size, len(order)))


def in_order(own: Tensor, order: NDArray[np.int64], recipe: InferenceRecipe) -> Tensor:
    """Return the rows (n, ...) of all processes by ascending index, on the CPU, from those of this process's :func:`decoded_batches`."""
    processes, size = accelerator(), min(batch_size(recipe), len(order))
    world = processes.num_processes
    if world > 1:
        share = -(-len(order) // size // world) * size
        own = torch.cat([own, own.new_zeros(share - len(own), *own.shape[1:])])
        gathered: Tensor = processes.gather(own)
        own = gathered.view(world, -1, size, *own.shape[1:]).transpose(0, 1).flatten(0, 2)[: len(order)]
    with may_wait():
        return own.cpu()[torch.from_numpy(order.argsort())]


def batch_size(recipe: InferenceRecipe) -> int:
    """Return the images of a batch on a process: the recipe's, or the default of this process's device."""
    return recipe.eval_batch or (32 if accelerator().device.type == "cpu" else 256)


def check_classes_left(images: ImageDataset, index: NDArray[np.int64]) -> None:
    """Check that the images ``index`` (m,) of a dataset that could be decoded are of two classes, if the dataset has as many.

    Raises:
        UserError: if there are none, or every answer about them would be right.
    """
    labels = np.zeros(len(images)) if images.labels is None else images.labels
    left = np.unique(labels[index])
    if len(index) == 0 or len(left) < min(2, len(np.unique(labels))):
        of = f", all of class {images.classes[int(left[0])]!r}" if len(index) else ""
        raise UserError(
            f"{images.name}: only {len(index):,} of {len(images):,} images of split {images.split!r} could be decoded{of}, but "
            "classification needs at least two classes. Restore the other images."
        )


def evaluate(
    classifier: nn.Module,
    images: ImageDataset,
    recipe: EvaluationRecipe,
    prepared: Preprocessing,
    title: str,
    crops: Crops | None = None,
) -> Outcomes:
    """Classify the centre crop of every image of a labelled dataset, ``prepared`` as in training; on every process.

    ``crops`` are those that are kept.

    Raises:
        UserError: if its outputs are not finite, or an image cannot be decoded and the set does not skip those.
    """
    labels = labels_of(images).to(accelerator().device)
    training = classifier.training
    classifier.eval()
    with float32_head(classifier):
        computed = over_images(
            lambda pixels, index: rank_of_label(
                classifier(normalised(pixels, mean=prepared.mean, std=prepared.std)), labels[index]
            ),
            images,
            eval_transform(recipe.side, prepared.crop_pct or recipe.eval_crop, prepared.interpolation),
            recipe,
            title,
            form=recipe.form,
            crops=crops,
        )
    classifier.train(training)
    return outcomes_of(computed.values, images, computed.index, recipe.metric)


def encode_images(
    encoder: nn.Module,
    images: ImageDataset,
    recipe: FeatureRecipe,
    prepared: Preprocessing,
    title: str,
    take: Callable[[nn.Module, Tensor], Tensor] | None = None,
    chosen: NDArray[np.int64] | None = None,
    crops: Crops | None = None,
) -> Computed:
    """Encode the centre crop of every image of a dataset, ``prepared`` as in training: features (m, D), float32; on every process.

    ``take`` makes features (B, ...) of the encoder and normalised images (B, 3, S, S); :func:`encode` as the recipe pools if not given.
    Of the images ``chosen`` (n,), ascending, if they are given; ``crops`` are those that are kept.

    Raises:
        UserError: if they are not finite, or an image cannot be decoded and the set does not skip those.
    """
    encoder.eval()
    take = take or partial(encode, pool=recipe.pool)
    computed = over_images(
        lambda pixels, index: take(encoder, normalised(pixels, mean=prepared.mean, std=prepared.std)),
        images,
        eval_transform(recipe.side, prepared.crop_pct or recipe.eval_crop, prepared.interpolation),
        recipe,
        title,
        chosen,
        recipe.form,
        crops,
    )
    check_finite(computed.values.isfinite().flatten(1).all(1).numpy(), images, computed.index, "the encoder's features")
    return computed


@contextmanager
def float32_head(classifier: Any) -> Iterator[None]:
    """Let the last layer, or both of a distilled one, of a classifier of timm compute in float32, whatever the precision.

    bfloat16 has 8 bits: of a thousand logits the highest are equal for some images, and the lower class would win.
    """
    found = classifier.get_classifier()
    layers = found if isinstance(found, tuple | list | nn.ModuleList) else (found,)

    def exact(forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return forward(features.float())

    for layer in layers:
        layer.forward = partial(exact, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own stays


def labels_of(images: ImageDataset) -> Tensor:
    """Return the labels (n,), int64, of a dataset that has them."""
    assert images.labels is not None, "check_pair refuses sets without labels"
    return torch.from_numpy(images.labels.astype(np.int64))


def rank_of_label(scores: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return what is kept of ``scores`` (B, C) of images with ``labels`` (B,): (B, 3 + 2 k), float32, in which classes are exact.

    Prediction and rank of the label; logarithm of the label's probability; the k most likely classes, five or C, and behind them
    their probabilities. The rank is 0 where the label has the highest score; of equal scores the lower class comes first.
    Probabilities are the softmax of the scores. Of votes they are ``shares`` (B, C): then the logarithm is NaN, that of no votes being
    infinite, and a class without votes is -1 among the most likely. All are -1 where a score is not finite.
    """
    scores = scores.float()
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = (order == labels[:, None]).int().argmax(1)
    top = order[:, :TOP]
    if shares is None:
        logarithms = scores.log_softmax(1)
        own, likely = logarithms.gather(1, labels[:, None]), logarithms.gather(1, top).exp()
    else:
        own, likely = scores.new_full((len(scores), 1), torch.nan), shares.gather(1, top)
        top = top.where(likely > 0, -1)
    result = torch.cat([order[:, :1], rank[:, None], own, top, likely], 1)
    return result.where(scores.isfinite().all(1, keepdim=True), -1)


def outcomes_of(ranked: Tensor, images: ImageDataset, index: NDArray[np.int64], metric: Metric = "top-1") -> Outcomes:
    """Return the outcomes of the images ``index`` (m,) of a labelled dataset, from what :func:`rank_of_label` gave of each;
    ``metric`` is what tables print of them.

    Raises:
        UserError: if a classifier's outputs were not finite.
    """
    assert images.labels is not None
    found = ranked.numpy()
    prediction, rank = found[:, :2].T.astype(np.int64)
    check_finite(prediction >= 0, images, index)
    names = (images.image_name(int(i)) for i in index)
    made = Outcomes.of(images.labels[index], prediction, rank, names)
    return replace(made, metric=metric, scores=Scores.of(found))


def check_finite(
    finite: NDArray[np.bool_],
    images: ImageDataset,
    index: NDArray[np.int64],
    what: str = "the classifier's outputs",
) -> None:
    """Check that a model's outputs were ``finite`` (m,) for all of the images ``index`` (m,) of a dataset.

    Raises:
        UserError: naming the first image for which they were not.
    """
    if not finite.all():
        first = images.image_name(int(index[~finite][0]))
        raise UserError(
            f"{images.name}: {what} are not finite for {(~finite).sum()} of {len(finite)} images, "
            f"such as {first}. The training diverged, or the weights are unusable."
        )


class _Decoded(Dataset[tuple[Tensor, int, bool]]):
    """Pixels of the images of a set, which images they are, and whether they could be decoded."""

    def __init__(
        self, images: ImageDataset, transform: Callable[[Any, int], Tensor], form: Form, crops: Crops | None
    ) -> None:
        self.images, self.transform, self.form, self.crops = images, transform, form, crops

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        decoded = partial(self._decoded, index)
        try:
            return self.crops.crop(index, decoded) if self.crops else decoded(), index, True
        except UndecodableImage:
            if not self.images.skip_undecodable:
                raise
            black = Image.new("RGB", (64, 64))
            return self.transform(black if self.form == "Pillow" else np.array(black), index), index, False

    def _decoded(self, index: int) -> Tensor:
        image = self.images.image(index) if self.form == "Pillow" else self.images.pixels(index)
        return self.transform(image, index)


def whatever_index(transform: Callable[[Any], Tensor], image: Any, index: int) -> Tensor:
    """Transform an image as a transform of images alone does; a function of a module, so that loaders can send it to workers."""
    return transform(image)
