"""Images and masks for the dense probes, by the pipelines that UPerNet is trained and tested with: MMSegmentation's."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from downstream.segmentation.config import Step, crops, dataset_config, ignored, whole
from downstream.segmentation.confusions import Confusions
from downstream.segmentation.dense import Scores, padded, slide
from downstream.segmentation.hooks import KeyedDataset
from downstream.segmentation.predictions import picture_predictions
from downstream.segmentation.scores import rows_of
from downstream.segmentation.sheet import FILE
from lutbench.data.scene_folder import IGNORED
from lutbench.data.scenes import SegmentationDataset
from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.models.preprocessing import Preprocessing
from lutbench.progress import Bar
from lutbench.recipes.dense import DenseLinearRecipe, DenseRecipe
from lutbench.run import Run
from lutbench.train.batches import FromStep, Schedule
from lutbench.train.device import may_wait, moved
from lutbench.train.loader import Loader, loader_options
from lutbench.train.processes import accelerator

TOGETHER = 64
"""Number of images whose counts are read back from the device at once (our choice: 11 MB for 150 classes)."""

register_all_modules()  # so that configs can name MMSegmentation's components

PIXEL_BYTES = 3 + 1
"""Bytes of a pixel of a training crop: three colours, and the class as uint8."""


def training_crops(
    scenes: SegmentationDataset, recipe: DenseLinearRecipe, schedule: Schedule, start: int
) -> Iterator[dict[str, Any]]:
    """Return this process's batches from step ``start`` on, of random crops.

    Each has ``image``, a list of uint8 pixels (3, h, w), ``mask``, (B, S, S) with 255 where a pixel is ignored or outside of the image,
    and ``skipped`` (B,), none of which there are.
    """
    dataset = KeyedDataset(DATASETS.build(dataset_config(scenes, crops(recipe, scenes))), schedule.seed)
    together = partial(_batch, crop=recipe.crop, ignore=ignored(scenes))
    options = loader_options(recipe.workers, schedule.micro_batch // schedule.processes * recipe.crop**2 * PIXEL_BYTES)
    return iter(Loader(dataset, batch_sampler=FromStep(schedule, start), collate_fn=together, **options))


def _batch(samples: Sequence[dict[str, Any]], crop: int, ignore: int) -> dict[str, Any]:
    masks = [padded(mask_of(sample, ignore), crop, IGNORED) for sample in samples]
    images = [pixels_of(sample) for sample in samples]
    return {"image": images, "mask": torch.stack(masks), "skipped": torch.zeros(len(samples), dtype=torch.long)}


def pixels_of(sample: dict[str, Any]) -> Tensor:
    """Return the uint8 pixels (3, H, W), red first, of a sample of MMSegmentation's."""
    pixels: Tensor = sample["inputs"]
    return pixels.flip(0)


def mask_of(sample: dict[str, Any], ignore: int) -> Tensor:
    """Return the classes (H, W), uint8, of a sample of MMSegmentation's, in which ``ignore`` marks what does not count; 255 does here."""
    mask: Tensor = sample["data_samples"].gt_sem_seg.data[0]
    return mask.where(mask != ignore, IGNORED).to(torch.uint8)


def prepared_pixels(pixels: Tensor, prepared: Preprocessing) -> Tensor:
    """Return uint8 pixels (3, H, W) normalised on the device, as the encoder is ``prepared`` for."""
    return normalised(pixels, accelerator().device, prepared.mean, prepared.std)


def own_images(
    scenes: SegmentationDataset, pipeline: list[Step], recipe: DenseRecipe, title: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and sample of this process's share of a split: every w-th image, of w processes."""
    processes, dataset = accelerator(), DATASETS.build(dataset_config(scenes, pipeline))
    indices = range(processes.process_index, len(scenes), processes.num_processes)
    loader = Loader(Subset(dataset, indices), batch_size=None, num_workers=recipe.workers)
    with Bar(title, len(scenes), shown=processes.is_main_process) as bar:
        for index, sample in zip(indices, loader, strict=True):
            yield index, sample
            bar.update(min(len(scenes), index + processes.num_processes))


@torch.no_grad()
def evaluated(run: Run[DenseRecipe], scores: Scores) -> Confusions | None:
    """Return what a probe's ``scores`` of windows make of the validation images, on the first process, and picture some of them.

    Raises:
        UserError: if scores are not finite.
    """
    recipe, scenes = run.recipe, run.dataset("val")
    classes = len(scenes.classes)
    found: list[tuple[int, NDArray[np.int64]]] = []
    unread: list[tuple[int, Tensor]] = []

    def predict(sample: dict[str, Any]) -> Tensor:
        """Return the classes (H, W) of the mask's size."""
        height, width = mask_of(sample, ignored(scenes)).shape
        return slide(prepared_pixels(pixels_of(sample), run.preprocessing), scores, recipe, (height, width))

    def read() -> None:
        """Move the counts that are still on the device to those that were found."""
        with may_wait():
            counts = torch.stack([one for _, one in unread]).cpu().numpy()
        for (index, _), of_image in zip(unread, counts, strict=True):
            if of_image[-1]:
                raise UserError(
                    f"{scenes.image_path(index)}: the probe's scores are not finite. The training diverged, or the weights are unusable."
                )
            found.append((index, rows_of(of_image[:-2], classes)))
        unread.clear()

    for index, sample in own_images(scenes, whole(recipe), recipe, f"{run.name} evaluation"):
        label = moved(mask_of(sample, ignored(scenes)))
        unread.append((index, counted(label, predict(sample), classes)))
        if len(unread) == TOGETHER:
            read()
    if unread:
        read()
    counts = [one for _, one in sorted(gather_object(found), key=lambda pair: pair[0])]
    if not accelerator().is_main_process:
        return None
    dataset: Any = DATASETS.build(dataset_config(scenes, whole(recipe)))
    picture_predictions(predict, dataset, scenes, run.folder / FILE)
    return Confusions.of(counts, scenes.classes, [scenes.image_name(index) for index in range(len(scenes))])


def counted(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the pixels (C C + 2,) of each pair of label and prediction of an image, (H, W) both; without waiting for the device.

    The last but one counts ignored pixels, the last those without a prediction, -1.
    """
    pair = (label.long() * classes + predicted).where(label != IGNORED, classes**2)
    pair = pair.where(predicted >= 0, classes**2 + 1).flatten()
    return pair.new_zeros(classes**2 + 2).scatter_add_(0, pair, torch.ones_like(pair))
