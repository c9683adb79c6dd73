"""Weighted k-nearest neighbours on frozen features (Wu et al. 2018, section 3.4; the values are DINO's)."""

import time
from functools import cache, partial

import torch

from downstream.cost import encoding as cost
from downstream.stage import check_classification, check_weights
from lutbench.data.images import ImageDataset
from lutbench.evaluate.feature_statistics import statistics_of, transform_of
from lutbench.evaluate.features import encoding_rate, features_of, kept_splits
from lutbench.evaluate.inference import labels_of, outcomes_of
from lutbench.evaluate.neighbours import check_neighbours, knn_classify
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.probes import KnnRecipe
from lutbench.run import Run, row_named
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for


def check(run: Run[KnnRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_classification`; also if there are fewer images than neighbours.
    """
    check_classification(run)
    with row_named(run):
        check_neighbours(run.recipe.neighbours, run.dataset("train"))


def perform(run: Run[KnnRecipe]) -> None:
    """Classify the validation images by their nearest training images, and write the record.

    Raises:
        UserError: if the encoder's weights do not fit, an image cannot be decoded, or there are too few images.
    """
    recipe, processes = run.recipe, accelerator()
    device = processes.device
    images: ImageDataset = run.dataset("train")
    held_out: ImageDataset = run.dataset("val")
    check_neighbours(recipe.neighbours, images)

    # Features, encoded here or by another probe
    encoder = cache(partial(encoder_of, run, recipe.image_size))  # made once, if at all
    bank = features_of(run, "train", encoder=encoder)
    queries = features_of(run, "val", encoder=encoder)

    # The vote
    began = time.monotonic()
    if processes.is_main_process:
        statistics = statistics_of(bank.values)
        transform = transform_of(statistics, recipe.feature_transform)
        asking, voting = (of.values if transform is None else transform(of.values) for of in (queries, bank))
        ranked = knn_classify(
            asking.to(device),
            labels_of(held_out)[torch.from_numpy(queries.index)].to(device),
            voting.to(device),
            labels_of(images)[torch.from_numpy(bank.index)].to(device),
            len(images.classes),
            recipe.neighbours,
            recipe.temperature,
        )
        run.save_results(
            outcomes_of(ranked.cpu(), held_out, queries.index, recipe.metric),
            seconds=bank.seconds + queries.seconds + time.monotonic() - began,
            images_per_second=encoding_rate([bank, queries]),
            extra={
                "skipped": len(images) - len(bank.index) + len(held_out) - len(queries.index),
                **statistics.extra(),
                **kept_splits([bank, queries]),
            },
        )
