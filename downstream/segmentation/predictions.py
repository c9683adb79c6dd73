"""Pictures of what a segmenter sees: for a handful of validation images the input, the ground truth, the prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pad, to_pil_image
from torchvision.utils import make_grid

from downstream.segmentation.sheet import ACROSS, COUNT, GAP, HEIGHT, pictured
from lutbench.data.scenes import SegmentationDataset
from lutbench.data.tensors import to_tensor
from lutbench.files import whole_file

WHITE = 255
VEIL = 0.6
"""Share of a class's colour over the image."""


@torch.no_grad()
def picture_predictions(
    predict: Callable[[dict[str, Any]], Tensor],
    dataset: Any,
    scenes: SegmentationDataset,
    path: Path,
    count: int = COUNT,
) -> None:
    """Write a PNG of ``count`` images, evenly spaced over the set. Ignored pixels keep the image's own colours.

    ``predict`` gives the classes (H, W) of a sample of ``dataset``, which is MMSegmentation's.

    Raises:
        UserError: on a full disk.
    """
    palette = np.array(scenes.palette, np.uint8)
    pictures = []
    for index in pictured(len(dataset), count):
        sample = dataset[index]
        truth = sample["data_samples"].gt_sem_seg.data.squeeze().cpu().numpy()
        prediction = predict(sample).cpu().numpy()
        with Image.open(dataset.get_data_info(index)["img_path"]) as file:
            image = file.convert("RGB").resize(truth.shape[::-1])
        coloured = [_coloured(np.asarray(image), mask, palette) for mask in (truth, prediction)]
        pictures += [_scaled(Image.fromarray(pixels)) for pixels in (np.asarray(image), *coloured)]
    width = max(picture.width for picture in pictures)
    padded = [pad(to_tensor(picture), [0, 0, width - picture.width, 0], fill=WHITE) for picture in pictures]
    grid = make_grid(padded, nrow=ACROSS, padding=GAP, pad_value=WHITE)
    with whole_file(path) as partial:
        to_pil_image(grid).save(partial, format="PNG")


def _coloured(image: NDArray[np.uint8], mask: NDArray[Any], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``image`` (H, W, 3) under a veil of the colours of ``mask`` (H, W)."""
    known = mask < len(palette)
    colours = np.where(known[..., None], palette[np.where(known, mask, 0)], image)
    return (VEIL * colours + (1 - VEIL) * image).astype(np.uint8)


def _scaled(image: Image.Image) -> Image.Image:
    width = max(1, round(image.width * HEIGHT / image.height))
    return image.resize((width, HEIGHT), Image.Resampling.NEAREST if image.height < HEIGHT else Image.Resampling.BOX)
