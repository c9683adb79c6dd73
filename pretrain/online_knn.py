"""Online k-NN: evaluate the student's encoder with k-NN during training, without affecting the training."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lutbench.data.images import ImageDataset, aligned
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError
from lutbench.evaluate.inference import encode_images, labels_of
from lutbench.evaluate.neighbours import knn_classify
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator
from lutbench.train.regional import not_compiled

METRIC = "online k-NN top-1"


def labelled_splits(run: Run[PretrainRecipe]) -> tuple[ImageDataset, ImageDataset]:
    """Return the splits for online k-NN, from the original files: the labelled training images and the validation images.

    Raises:
        UserError: if there is no validation split, there are no labels, or fewer images than neighbours.
    """
    recipe, where = run.recipe, f"pretrain.{run.planned.task}"
    train: ImageDataset = run.workspace.open(recipe.dataset, "train")
    if train.labels is None:
        raise UserError(
            f"{where}.knn_every: k-NN during pre-training needs labels, but {train.name} has none. Remove knn_every, or pre-train on a dataset "
            "with class folders."
        )
    held_out: ImageDataset = aligned(train, run.workspace.open(recipe.dataset, "val"))
    if recipe.knn_neighbours > (found := min(len(train), recipe.knn_images)):
        raise UserError(
            f"{where}.knn_neighbours = {recipe.knn_neighbours}, but only {found} training images to search (of {len(train)}; "
            f"knn_images = {recipe.knn_images} at most). Lower it, or use more images."
        )
    return train, held_out


class OnlineKnn:
    """Evaluations of an encoder at the end of some epochs, and their results.

    Weighted k-NN with the defaults of the task ``knn``: centre crops, mean over patches. Results are stored in checkpoints: an evaluation
    that was due when a run was stopped is made when it resumes, and none is made twice.
    """

    def __init__(self, run: Run[PretrainRecipe], schedule: Schedule, extra_state: dict[str, Any]) -> None:
        """``extra_state`` is stored in checkpoints; results are written into it."""
        recipe = run.recipe
        self.run = run
        self.epochs = {
            min(schedule.steps, -(-epoch * schedule.images // schedule.batch)): epoch for epoch in recipe.knn_epochs
        }
        """The optimiser steps after which an evaluation is due, with the epoch that ends there."""
        self.rows: list[list[float]] = []
        """Epoch, top-1 in percent, and seconds of each evaluation."""
        if recipe.knn_every:
            self.rows = extra_state.setdefault("knn", [])
            self.images, self.held_out = labelled_splits(run)
            self.recipe = KnnRecipe(
                data=recipe.data,
                encoder=EncoderSource(kind="run", architecture=recipe.encoder),
                neighbours=recipe.knn_neighbours,
                precision=recipe.precision,
                workers=recipe.workers,
            )

    def measure(self, done: int, encoder: Callable[[], nn.Module], logger: TrainingLogger) -> None:
        """Evaluate what ``encoder`` returns if that is due after so many steps and was not done before; to be called on every process.

        Raises:
            UserError: if features are not finite, or an image cannot be decoded and the dataset does not skip those.
        """
        epoch = self.epochs.get(done)
        if epoch is None or epoch in (row[0] for row in self.rows):
            return
        began = time.monotonic()
        with logger.evaluation(), not_compiled():
            top1 = self._top1(encoder())
        seconds = time.monotonic() - began
        self.rows.append([float(epoch), top1, seconds])
        logger.log(done, **{METRIC: top1})
        self.run.log(f"epoch {epoch} of {self.run.recipe.epochs}: {METRIC} {top1:.1f} %, in {seconds:.1f} s.")

    @torch.no_grad()
    def _top1(self, encoder: nn.Module) -> float:
        """Return top-1 in percent, and leave the encoder's mode and all random states as they were."""
        training, device, most = encoder.training, accelerator().device, self.run.recipe.knn_images
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers, needed or not
            (bank, bank_labels), (queries, labels) = (
                (found.values.to(device), labels_of(images)[torch.from_numpy(found.index)].to(device))
                for images in (self.images, self.held_out)
                for found in [
                    encode_images(encoder, images, self.recipe, IMAGENETS, "", chosen=evenly_spaced(len(images), most))
                ]
            )
        encoder.train(training)
        classes, recipe = len(self.images.classes), self.recipe
        voted = knn_classify(queries, labels, bank, bank_labels, classes, recipe.neighbours, recipe.temperature)
        return 100 * int((voted[:, 0] == labels).sum()) / len(labels)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for the record: the epochs (n,), and top-1 (n,) in percent after each; empty if nothing was measured."""
        if not self.rows:
            return {}
        epochs, top1, _ = np.array(self.rows).T
        return {"online-knn-epoch": epochs.astype(np.int64), "online-knn-top-1": np.ascontiguousarray(top1)}

    @property
    def extra(self) -> Mapping[str, float]:
        """Values for the record: the last top-1 in percent, and the seconds of all evaluations, which are part of no other time."""
        if not self.rows:
            return {}
        return {METRIC: self.rows[-1][1], "seconds of online k-NN": sum(row[2] for row in self.rows)}
