"""Every image's confusion counts, beside the metric that MMSegmentation computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS
from numpy.typing import NDArray

from lutbench.errors import UserError


@METRICS.register_module()
class ConfusionMetric(IoUMetric):
    """MMSegmentation's IoUMetric, that keeps the confusion counts of every image it is computed from."""

    counts: list[NDArray[np.int64]] | None = None
    """Rows (label, prediction, pixels) of every image in the dataset's order, after an evaluation, on the first process."""

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of each image by label and prediction, those with the ignored label left out.

        Raises:
            UserError: if a model's outputs are not finite.
        """
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            if "seg_logits" in sample and not sample["seg_logits"]["data"].isfinite().all():
                raise UserError(
                    f"{sample['img_path']}: the segmenter's outputs are not finite. The training diverged, or the weights are "
                    "unusable."
                )
            prediction = sample["pred_sem_seg"]["data"].squeeze()
            label = sample["gt_sem_seg"]["data"].squeeze().to(prediction)
            self.results.append(pairs_of(label, prediction, classes, self.ignore_index))

    def compute_metrics(self, results: list[NDArray[np.int64]]) -> dict[str, float]:
        """IoUMetric's numbers, in percent; the counts stay in :attr:`counts`."""
        self.counts = list(results)
        classes = len(self.dataset_meta["classes"])
        metrics: dict[str, float] = super().compute_metrics([_areas(rows, classes) for rows in results])
        return metrics


def pairs_of(label: torch.Tensor, prediction: torch.Tensor, classes: int, ignored: int) -> NDArray[np.int64]:
    """Return rows (k, 3) of label, prediction and pixels of an image, (H, W) both, for the pairs that occur; without ``ignored`` labels."""
    counted = label != ignored
    pairs = torch.bincount(label[counted] * classes + prediction[counted], minlength=classes * classes).cpu().numpy()
    return rows_of(pairs, classes)


def rows_of(pairs: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return rows (k, 3) of label, prediction and pixels for the pairs that occur, from the pixels (C C,) of each."""
    kept = np.flatnonzero(pairs)
    return np.stack([kept // classes, kept % classes, pairs[kept]], 1)


def _areas(rows: NDArray[np.int64], classes: int) -> tuple[torch.Tensor, ...]:
    """Return what IoUMetric keeps of an image: pixels (C,) in intersection, union, prediction and label of each class."""
    label, prediction, pixels = rows.T
    by_label = np.bincount(label, pixels, classes)
    by_prediction = np.bincount(prediction, pixels, classes)
    right = np.bincount(label[label == prediction], pixels[label == prediction], classes)
    areas = right, by_label + by_prediction - right, by_prediction, by_label
    return tuple(torch.from_numpy(area) for area in areas)
