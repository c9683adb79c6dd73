"""The vote of the nearest patches of the training set on every patch of an image (Balazevic et al. 2023, section 3.1)."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from downstream.segmentation.cost import dense_knn as cost
from downstream.segmentation.dense import check_dense, check_weights, padded, windows_of
from downstream.segmentation.task import quiet
from downstream.segmentation.tokens import grid_of, tokens_of
from lutbench.data.scene_folder import IGNORED
from lutbench.errors import UserError
from lutbench.evaluate.inference import in_order
from lutbench.evaluate.neighbours import QUERIES, nearest_neighbours
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.dense import DenseKnnRecipe
from lutbench.run import Run
from lutbench.train.device import moved
from lutbench.train.processes import accelerator, autocast
from lutbench.train.randomness import RngStream, generator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for


def check(run: Run[DenseKnnRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_dense`; also if the bank has no room for a patch of every image.
    """
    check_dense(run)
    images = len(run.dataset("train"))
    if run.recipe.bank < images:
        raise UserError(
            f"bank = {run.recipe.bank} patches are less than one for each of the {images:,} training images of "
            f"{run.dataset('train').name}: set bank to {images} or more."
        )


def perform(run: Run[DenseKnnRecipe]) -> None:
    """Let training patches vote on those of the validation images, and write the record; features are not kept.

    Leaves ``predictions.png`` in the run's folder.

    Raises:
        UserError: if the encoder's weights do not fit, or features are not finite.
    """
    with quiet():
        from downstream.segmentation.dense_data import evaluated
    recipe, processes, grid = run.recipe, accelerator(), grid_of(run.recipe)
    encoder = encoder_of(run, recipe.crop).to(processes.device).eval()

    @torch.no_grad()
    def encoded(windows: Tensor) -> Tensor:
        """Return the patch tokens (n g g, D) of windows (n, 3, S, S), of length 1."""
        with autocast(recipe.precision):
            tokens = tokens_of(encoder, windows, grid.blocks)
        return functional.normalize(tokens.permute(0, 2, 3, 1).flatten(0, 2), dim=1)

    began = time.monotonic()
    bank, shares = patches_of(run, encoded)
    run.log(f"{len(bank):,} patches of {len(run.dataset('train')):,} training images vote.")

    def scores(windows: Tensor) -> Tensor:
        """Return the votes (n, C, g, g) on every patch of windows (n, 3, S, S)."""
        votes = patch_votes(encoded(windows), bank, shares, recipe.neighbours, recipe.temperature)
        return votes.view(len(windows), grid.side, grid.side, -1).permute(0, 3, 1, 2)

    outcomes = evaluated(run, scores)
    if outcomes is not None:
        seconds = time.monotonic() - began
        images = len(run.dataset("train")) + len(run.dataset("val"))
        run.save_results(outcomes, seconds=seconds, images_per_second=images / seconds, extra={"bank": len(bank)})


def patches_of(run: Run[DenseKnnRecipe], encoded: Any) -> tuple[Tensor, Tensor]:
    """Return tokens (M, D) of training patches, and the shares (M, C) of classes among their pixels; on every process.

    As many of each image, drawn under the key of the image among the patches of its windows that have a pixel with a class.
    """
    from downstream.segmentation.config import ignored, whole_with_mask
    from downstream.segmentation.dense_data import mask_of, own_images, pixels_of, prepared_pixels

    recipe, device, scenes, grid = run.recipe, accelerator().device, run.dataset("train"), grid_of(run.recipe)
    classes, each = len(scenes.classes), recipe.bank // len(scenes)
    rows = []
    for index, sample in own_images(scenes, whole_with_mask(recipe), recipe, f"{run.name} features"):
        mask = padded(mask_of(sample, ignored(scenes)), recipe.crop, IGNORED)
        counts = class_counts(windows_of(mask, recipe), grid.side, classes)
        labelled = np.flatnonzero(counts.sum(1).numpy())
        drawn = generator(RngStream.IMAGE, run.seed, 0, index).permutation(labelled)[:each]
        chosen = torch.from_numpy(np.sort(drawn))
        image = padded(prepared_pixels(pixels_of(sample), run.preprocessing), recipe.crop)
        tokens = encoded(windows_of(image, recipe))[moved(chosen)]
        of_image = torch.cat([tokens, moved(functional.normalize(counts[chosen].float(), p=1, dim=1))], 1)
        rows.append(functional.pad(of_image, (0, 0, 0, each - len(of_image))))
    empty = torch.zeros(0, each, grid.width + classes, device=device)
    found = in_order(torch.cat([empty, *(row[None] for row in rows)]), np.arange(len(scenes)), recipe).flatten(0, 1)
    tokens, shares = found.split([grid.width, classes], 1)
    voting = shares.sum(1) > 0
    if not tokens.isfinite().all():
        raise UserError(
            f"{run.name}: the encoder's tokens are not finite. The training diverged, or the weights are unusable."
        )
    return tokens[voting].to(device), shares[voting].to(device)


def class_counts(masks: Tensor, side: int, classes: int) -> Tensor:
    """Return the pixels (n g g, C) of every class in every patch of windows of masks (n, S, S), of ``side`` g patches."""
    windows, size = len(masks), masks.shape[-1]
    along = torch.arange(size) * side // size
    patch = (torch.arange(windows)[:, None, None] * side + along[:, None]) * side + along
    known = masks != IGNORED
    pair = patch[known] * classes + masks[known].long()
    return torch.bincount(pair, minlength=windows * side * side * classes).view(-1, classes)


def patch_votes(queries: Tensor, bank: Tensor, shares: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Return the votes (Q, C), whose sum is 1, of the nearest of ``bank`` (M, D) with ``shares`` (M, C) on ``queries`` (Q, D)."""
    votes = []
    for chunk in torch.split(queries, QUERIES):
        similarity, index = nearest_neighbours(chunk, bank, neighbours)
        weights = (similarity / temperature).softmax(1)
        votes.append(torch.einsum("qk,qkc->qc", weights, shares[index]))
    return torch.cat(votes)
