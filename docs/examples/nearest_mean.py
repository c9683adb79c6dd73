"""An example task: assign each image to the class whose mean feature is nearest (nearest class mean, Mensink et al. 2013)."""

import time
from typing import ClassVar, Literal

from lutbench.recipes.probes import ProbeRecipe
from lutbench.run import Run


class NearestMeanRecipe(ProbeRecipe):
    """The settings of every classification probe (data, crop, pooling, blocks); this task adds none."""

    revision: ClassVar[int] = 1
    kind: Literal["nearest-mean"] = "nearest-mean"
    pool: Literal["class", "mean"] = "mean"


def check(run: Run[NearestMeanRecipe]) -> None:
    """Raise an error for anything that would stop the run, before any compute: unreadable images, weights that do not fit."""
    from downstream.stage import check_classification  # imported here, so that tables can read the recipe without torch

    check_classification(run)


def perform(run: Run[NearestMeanRecipe]) -> None:
    """Encode both splits, compare each validation image with the mean of every class, and write the record."""
    import torch
    from torch.nn import functional

    from lutbench.evaluate.features import features_of
    from lutbench.evaluate.inference import labels_of, outcomes_of, rank_of_label

    train, val = run.dataset("train"), run.dataset("val")
    known, asked = features_of(run, "train"), features_of(run, "val")
    began = time.monotonic()
    of_class = functional.one_hot(labels_of(train)[torch.from_numpy(known.index)], len(train.classes)).float()
    means = of_class.T @ functional.normalize(known.values, dim=1)  # (C, D), not normalised
    scores = functional.normalize(asked.values, dim=1) @ functional.normalize(means, dim=1).T
    ranked = rank_of_label(scores, labels_of(val)[torch.from_numpy(asked.index)])
    run.save_results(
        outcomes_of(ranked, val, asked.index, run.recipe.metric),
        seconds=known.seconds + asked.seconds + time.monotonic() - began,
    )
