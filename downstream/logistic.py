"""Logistic regression on frozen features: scikit-learn's, by L-BFGS in float64, its penalty chosen on training images (CLIP, section A.3)."""

import time
import warnings
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from downstream.cost import logistic_regression as cost
from downstream.stage import check_classification, check_weights
from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.evaluate.feature_statistics import statistics_of, transform_of
from lutbench.evaluate.features import encoding_rate, features_of, kept_splits
from lutbench.evaluate.inference import Computed, labels_of, outcomes_of, rank_of_label
from lutbench.models.pretrained import encoder_of
from lutbench.models.weights import save_weights
from lutbench.recipes.probes import LogisticRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

SCORED = 4096
"""Images that are scored at once."""

NEVER = -1e9
"""Score of a class that no training image has: below all others."""

Rows = NDArray[np.float64]


def check(run: Run[LogisticRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_classification` and :func:`held_out_rows`.
    """
    check_classification(run)
    if run.recipe.C is None:
        held_out_rows(labels_of(run.dataset("train")).numpy(), run.recipe.held_out, run.seed)


def perform(run: Run[LogisticRecipe]) -> None:
    """Fit a linear layer to the training images' features, and classify the validation images.

    Every process fits the same layer: only encoding is spread. Leaves ``logistic.safetensors`` in the run's folder, a layer ``weight``
    (C, D) and ``bias`` (C,) on features as the encoder gives them, and the record.

    Raises:
        UserError: if the encoder's weights do not fit, an image cannot be decoded, no part can be held out, or the disk is full.
    """
    recipe = run.recipe
    images: ImageDataset = run.dataset("train")
    held_out: ImageDataset = run.dataset("val")

    # Features, encoded here or by another probe
    encoder = cache(partial(encoder_of, run, recipe.image_size))  # made once, if at all
    seen = features_of(run, "train", encoder=encoder)
    unseen = features_of(run, "val", encoder=encoder)

    # The layer
    began = time.monotonic()
    statistics = statistics_of(seen.values)
    transform = transform_of(statistics, recipe.feature_transform)
    exact = seen.values.double()
    features = (exact if transform is None else transform(exact)).numpy()
    labels = labels_of(images)[torch.from_numpy(seen.index)].numpy()
    search = None if recipe.C else searched(features, labels, recipe, run.seed)
    strength = recipe.C or (search.best if search else 1.0)
    fit = fitted(features, labels, strength, recipe)
    weight, bias = layer(fit, len(images.classes))
    if transform is not None:
        weight, bias = transform.folded(weight, bias)
    kept = {"weight": weight.float(), "bias": bias.float()}

    # What came of it
    if accelerator().is_main_process:
        run.log(_told(fit, strength, search, recipe))
        run.save_results(
            outcomes_of(score(kept, unseen, labels_of(held_out)), held_out, unseen.index, recipe.metric),
            seconds=seen.seconds + unseen.seconds + time.monotonic() - began,
            images_per_second=encoding_rate([seen, unseen]),
            checkpoint=save_weights(kept, run.folder / "logistic.safetensors"),
            extra={
                "C": strength,
                "iterations": fit.iterations,
                "converged": fit.converged,
                **(search.extra() if search else {}),
                **statistics.extra(),
                "skipped": len(images) - len(seen.index) + len(held_out) - len(unseen.index),
                **kept_splits([seen, unseen]),
            },
        )


class Fit(NamedTuple):
    """A fitted regression."""

    model: LogisticRegression
    iterations: int
    converged: bool


class Search(NamedTuple):
    """What was tried, on how many training images that were held out."""

    right: dict[float, int]
    """By C how many of them were right."""
    images: int

    @property
    def best(self) -> float:
        """The C with the most right; of equal ones the smallest, which penalises most."""
        return max(self.right, key=lambda strength: (self.right[strength], -strength))

    def extra(self) -> dict[str, JsonValue]:
        """Return what a record keeps of it: every C in ascending order, and the percentage that was right."""
        tried = sorted(self.right)
        return {
            "C_tried": list(tried),
            "held_out_top_1": [100 * self.right[strength] / self.images for strength in tried],
            "held_out_images": self.images,
        }


def searched(features: Rows, labels: NDArray[np.int64], recipe: LogisticRecipe, seed: int) -> Search:
    """Try every C of the grid, then those halfway, on the logarithm, between the best and its neighbours, ``halvings`` times.

    ``features`` (m, D) and ``labels`` (m,) are the training images': each C is fitted without those that are held out, and measured on them.

    Raises:
        UserError: see :func:`held_out_rows`.
    """
    held_out = held_out_rows(labels, recipe.held_out, seed)
    parts = features[~held_out], labels[~held_out]
    search = Search({}, int(held_out.sum()))

    def attempt(strength: float) -> None:
        found = fitted(*parts, strength, recipe).model.predict(features[held_out])
        search.right[strength] = int((found == labels[held_out]).sum())

    for strength in recipe.C_grid:
        attempt(strength)
    for _ in range(recipe.halvings):
        tried, best = sorted(search.right), search.best
        at = tried.index(best)
        for neighbour in tried[max(at - 1, 0) : at] + tried[at + 1 : at + 2]:
            attempt(float(np.sqrt(best * neighbour)))
    return search


def held_out_rows(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Draw a ``share`` of the images of every class, at least one and not all; return which of them (m,). Of a class of one image none.

    Raises:
        UserError: if no class has two images.
    """
    draw, held_out = generator(RngStream.HELD_OUT, seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held_out[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    if not held_out.any():
        raise UserError(
            "C is chosen on held-out training images, but no class has at least two images. Set C, such as C = 1.0, or use more "
            "images."
        )
    return held_out


def fitted(features: Rows, labels: NDArray[np.int64], strength: float, recipe: LogisticRecipe) -> Fit:
    """Fit scikit-learn's logistic regression, on as many threads as the run has: the last bits depend on their number."""
    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=recipe.max_iter, tol=recipe.tol)
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(features, labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in told)
    return Fit(model, int(np.max(model.n_iter_)), converged)


def layer(fit: Fit, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,), float64, for all ``classes``; one without training images is never the answer.

    Of two classes scikit-learn has one score, that of the second over the first, whose own is 0 here.
    """
    model, coefficients, intercept = fit.model, fit.model.coef_, fit.model.intercept_
    if len(model.classes_) == 2:
        coefficients, intercept = np.concatenate([0 * coefficients, coefficients]), np.append(0 * intercept, intercept)
    weight = torch.zeros(classes, coefficients.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), NEVER, dtype=torch.float64)
    present = torch.from_numpy(model.classes_)
    weight[present], bias[present] = torch.from_numpy(coefficients), torch.from_numpy(intercept)
    return weight, bias


def score(kept: dict[str, Tensor], unseen: Computed, labels: Tensor) -> Tensor:
    """Return prediction and rank of the label (m, 2) of every image in ``unseen`` by a layer, in float64; ``labels`` (n,) are the whole set's."""
    weight, bias = kept["weight"].double(), kept["bias"].double()
    wanted = labels[torch.from_numpy(unseen.index)]
    return torch.cat(
        [
            rank_of_label(features.double() @ weight.T + bias, chosen)
            for features, chosen in zip(torch.split(unseen.values, SCORED), torch.split(wanted, SCORED), strict=True)
        ]
    )


def _told(fit: Fit, strength: float, search: Search | None, recipe: LogisticRecipe) -> str:
    """Return a line about the fit."""
    chosen = ""
    if search:
        share = 100 * search.right[strength] / search.images
        chosen = (
            f", the best of {len(search.right)} values on {search.images:,} held-out training images ({share:.1f} %)"
        )
    if fit.converged:
        return f"C = {strength:g}{chosen}; converged after {fit.iterations} iterations."
    return f"C = {strength:g}{chosen}; not converged after {fit.iterations} iterations: raise max_iter = {recipe.max_iter}, or set feature_transform."
