"""Stage 4: analysis of an encoder's attention and features, with one pass over the images for all measures."""

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.attention import check_readable
from analysis.block_outcomes import ATTENTION, FEATURES, POOLED, TOKENS, BlockOutcomes
from analysis.cka import check_enough_for_cka, grams
from analysis.cost import cost
from analysis.depth import right_by_depth
from analysis.grid import run_grid, token_grid
from analysis.passes import Passed, second_views, through_images
from analysis.pictures import run_pictures
from analysis.similarity import alignment, uniformity
from analysis.specimens import specimens
from analysis.spectrum import check_enough, resampled_statistics
from lutbench.data.images import ImageDataset, aligned
from lutbench.data.preflight import preflight
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError
from lutbench.evaluate.crop_store import kept_crops
from lutbench.evaluate.neighbours import check_neighbours
from lutbench.evaluate.outcomes import names_fingerprint
from lutbench.evaluate.ranks import PowerLawRange
from lutbench.models.encoders import create_encoder
from lutbench.models.meta import shapes_only
from lutbench.models.pretrained import check_encoder_weights, encoder_of
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.recipes.base import EncoderRecipe
from lutbench.run import Run, row_named
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

COMPARED = 1024
"""Images of which Gram matrices are kept, evenly spaced: 16 minibatches of 64 (our choice: 1.6 MB for a ViT-B)."""


def check(run: Run[AnalysisRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: if its data is absent or unfit, or of too few images for what is measured; if the encoder cannot be built, has no
            attention that can be read, has not the blocks that are to be drawn, or sees images as a single patch or as another grid
            than the table's others; or if it has no weights that fit.
    """
    recipe = run.recipe
    check_weights(run)
    images, bank = _images(run)
    _check_count(run, min(len(images), recipe.images or len(images)))
    if bank is None and "depth" in recipe.measures:
        if recipe.measures == ["depth"]:
            raise UserError(
                f'{run.name}: {_without_neighbours(run)} measures = ["depth"] then has nothing to measure: add others.'
            )
        run.workspace.note(f"{run.planned.stage}/{run.planned.task}: {_without_neighbours(run)}")
    if bank is not None:
        with row_named(run):
            check_neighbours(recipe.neighbours, bank, recipe.bank)
    preflight(run, images, *([] if bank is None else [bank]))


def check_weights(run: Run[AnalysisRecipe]) -> None:
    """Check that the encoder is one that can be analysed beside the table's others, and its weights, see :func:`check_encoder_weights`."""
    recipe, grid = run.recipe, run_grid(run)
    _check_readable(recipe.encoder.architecture, recipe.side)
    if above := [block for block in recipe.blocks or [] if block > grid.depth]:
        raise UserError(
            f"analysis.{run.planned.task}: blocks = {recipe.blocks}: there is no block {above[0]}; {recipe.encoder_label} has {grid.depth} "
            "blocks, counted from 1. Change blocks, or remove it."
        )
    _check_grid(run, grid.patch_size)
    check_encoder_weights(run, recipe.image_size)


@lru_cache
def _check_readable(architecture: EncoderRecipe, side: int) -> None:
    with shapes_only():
        check_readable(create_encoder(architecture, side), side)


def perform(run: Run[AnalysisRecipe]) -> None:
    """Analyse the run's encoder, and write the record with every image's values.

    Leaves in the run's folder pictures of what the encoder sees in eight images.

    Raises:
        UserError: if the encoder's weights do not fit, what it computes is not finite, an image cannot be decoded, or the disk is full.
    """
    recipe, processes = run.recipe, accelerator()
    encoder = encoder_of(run, recipe.image_size).to(processes.device)
    images, bank = _images(run)
    chosen, prepared = evenly_spaced(len(images), recipe.images or len(images)), run.preprocessing

    # One pass for all measures, one over second views, one over the neighbours' bank
    began = time.monotonic()
    with kept_crops(run, images) as crops:
        found = through_images(encoder, images, chosen, recipe, prepared, run.name, recipe.measures, crops)
    rate = len(chosen) / (time.monotonic() - began)
    _check_count(run, len(found.index))  # without those that could not be decoded
    of_views = {}
    if "similarity" in recipe.measures:
        viewed = evenly_spaced(len(found.index), recipe.viewed)
        views = second_views(encoder, images, found.index[viewed], recipe, prepared, f"{run.name} views")
        output = found.values["features"][viewed, -1, 0]
        of_views = {"alignment": alignment(output, views), "uniformity": uniformity(output)}
    neighbours = {}
    if bank is not None:
        neighbours = _right_by_depth(run, encoder, images, bank, found)

    # What came of it
    if processes.is_main_process:
        grid = token_grid(encoder)
        viewed_twice = {name: of.float().numpy() for name, of in of_views.items()}
        measured = _measured(found, grid.class_token) | viewed_twice | neighbours | _resampled(found, fitted(run))
        drawn = specimens(run, encoder, images, found.index)
        run_pictures(run.name, drawn.images, drawn.arrays, drawn.about, run.folder)
        names = tuple(images.image_name(int(one)) for one in found.index)
        outcomes = BlockOutcomes(
            names_fingerprint(names),
            len(found.index),
            grid.side,
            grid.patch_size,
            fitted(run),
            measured,
            names,
        )
        run.save_results(
            outcomes,
            seconds=time.monotonic() - began,
            images_per_second=rate,
            checkpoint=run.weights_sha256,
            arrays={**_arrays(found, recipe), **drawn.arrays},
            pictures={"images": drawn.images},
            extra={**drawn.about, "skipped": len(chosen) - len(found.index)},
        )


def fitted(run: Run[AnalysisRecipe]) -> PowerLawRange:
    """Return the ranks that the power law is fitted to."""
    return PowerLawRange.of(run.recipe.alpha_from, run.recipe.alpha_to, run_grid(run).width)


def _measured(found: Passed, class_token: bool) -> dict[str, NDArray[Any]]:
    """Return what outcomes keep of a pass."""
    measured: dict[str, NDArray[Any]] = {}
    if "attention" in found.values:
        over_heads = found.values["attention"].double().mean(2).float().numpy()
        shown = [name for name in ATTENTION if class_token or name != "to_class"]
        measured |= {name: np.ascontiguousarray(over_heads[..., ATTENTION.index(name)]) for name in shown}
    measured |= {name: found.values[name].numpy() for name in (*FEATURES, "amplitude") if name in found.values}
    for rows, of_depths in found.spectra.items():
        measured[f"spectrum_{rows}"] = np.stack([covariances.singular_values() for covariances in of_depths])
    return measured


def _resampled(found: Passed, ranks: PowerLawRange) -> dict[str, NDArray[Any]]:
    """Return the statistics of the output's spectra over resampled images, if spectra were measured."""
    if not found.spectra:
        return {}
    return {"resampled": np.stack([resampled_statistics(found.spectra[rows][-1], ranks) for rows in TOKENS])}


def _arrays(found: Passed, recipe: AnalysisRecipe) -> dict[str, NDArray[Any]]:
    """Return what a record keeps of a pass beside its outcomes: means of every head, and Gram matrices of every depth."""
    arrays: dict[str, NDArray[Any]] = {}
    if "attention" in found.values:
        arrays["heads"] = found.values["attention"].double().mean(0).permute(2, 0, 1).numpy()
    if "depth" in recipe.measures:
        some = evenly_spaced(len(found.index), COMPARED)
        arrays["grams"] = grams(found.values["features"][some, :, 0].numpy())
    return arrays


def _right_by_depth(
    run: Run[AnalysisRecipe], encoder: nn.Module, images: ImageDataset, bank: ImageDataset, found: Passed
) -> dict[str, NDArray[Any]]:
    """Return whether each image's neighbours in the bank vote for its label, by depth; empty but on the first process."""
    recipe, processes = run.recipe, accelerator()
    chosen = evenly_spaced(len(bank), recipe.bank)
    with kept_crops(run, bank) as crops:
        of_bank = through_images(encoder, bank, chosen, recipe, run.preprocessing, f"{run.name} neighbours", (), crops)
    if not processes.is_main_process:
        return {}
    assert images.labels is not None
    assert bank.labels is not None
    right = right_by_depth(
        found.values["features"],
        torch.from_numpy(images.labels[found.index]),
        of_bank.values["features"],
        torch.from_numpy(bank.labels[of_bank.index]),
        len(bank.classes),
        recipe.neighbours,
        recipe.temperature,
        processes.device,
    )
    return {f"right_{pool}": np.ascontiguousarray(right[..., k]) for k, pool in enumerate(POOLED[: right.shape[2]])}


def _images(run: Run[AnalysisRecipe]) -> tuple[ImageDataset, ImageDataset | None]:
    """Return the dataset that is analysed, and that of the neighbours, if they are asked for and the two have labels."""
    recipe = run.recipe
    images: ImageDataset = run.workspace.open(recipe.dataset, recipe.split)
    if "depth" not in recipe.measures or recipe.split == "train":
        return images, None
    try:
        bank: ImageDataset = run.workspace.open(recipe.dataset, "train")
    except UserError as error:
        raise UserError(
            f'{error} k-NN searches neighbours in train. Without train, remove "depth" from the measures of '
            f"analysis.{run.planned.task}."
        ) from error
    return (images, None) if images.labels is None else (aligned(bank, images), bank)


def _without_neighbours(run: Run[AnalysisRecipe]) -> str:
    """Return why nearest neighbours are left out."""
    if run.recipe.split == "train":
        return 'k-NN is skipped, because split = "train" would search neighbours among the analysed images themselves.'
    return f"k-NN is skipped, because {run.recipe.data.label or run.recipe.data.path} has no labels."


def _check_count(run: Run[AnalysisRecipe], images: int) -> None:
    """Check that so many images are enough for what is measured. Raises UserError if they are not."""
    if images < 2:
        raise UserError(
            f"{run.name}: an analysis needs at least 2 images, found {images}. Use more images (settings images, split or data)."
        )
    if "spectrum" in run.recipe.measures:
        check_enough(images, run_grid(run).width, fitted(run))
    if "depth" in run.recipe.measures:
        check_enough_for_cka(images)


def _check_grid(run: Run[AnalysisRecipe], patch_size: int) -> None:
    """Check that an encoder sees images as several patches, in a grid like that of the table's other encoders, as far as this command has any.

    Raises:
        UserError: if it does not.
    """
    side, table = run.recipe.side, f"{run.planned.stage}.{run.planned.task}"
    if side == patch_size:
        raise UserError(
            f"{run.name}: an image of {side} pixels is a single patch; expected at least two patches per side. Set image_size to {2 * side} or "
            "more."
        )
    row, other, patches = run.workspace.first_said(f"{table} grid", (run.planned.method, side, patch_size))
    if (other, patches) != (side, patch_size):
        raise UserError(
            f"{table}: expected the same image and patch size for all methods, found {row} with images of {other} and patches of {patches} pixels, "
            f"and {run.planned.method} with {side} and {patch_size}. Measurements depend on the patch grid: use a separate "
            "[analysis.NAME] table for each size."
        )
