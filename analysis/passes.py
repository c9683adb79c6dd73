"""Forward passes for all measures at once: per-image statistics of every block, and sums over all images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from analysis.attention import Blocks, attention_statistics, through_blocks
from analysis.block_outcomes import TOKENS
from analysis.fourier import log_amplitudes
from analysis.grid import token_grid
from analysis.similarity import token_similarity
from analysis.spectrum import GROUPS, Covariances, groups_of, token_rank
from analysis.uniform import patch_distances
from lutbench.data.decoding import Pixels
from lutbench.data.images import ImageDataset
from lutbench.data.random_crop import random_resized_crop
from lutbench.data.tensors import normalised, to_tensor
from lutbench.errors import UserError
from lutbench.evaluate.crop_store import Crops
from lutbench.evaluate.inference import check_finite, decoded_batches, in_order, whatever_index
from lutbench.evaluate.transform import eval_transform
from lutbench.models.encoders import encode
from lutbench.models.preprocessing import Preprocessing
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.train.device import may_wait
from lutbench.train.processes import accelerator, autocast
from lutbench.train.randomness import RngStream, seeded

SCALE = (0.2, 1.0)
"""The second view: MAE's crop, of 20 to 100 % of the area, and a flip (our choice: they change where things are, not what they are)."""


@dataclass
class Passed:
    """What came of a pass over images: the same on every process."""

    index: NDArray[np.int64]
    """(n,) Which images of the dataset could be decoded, ascending."""
    values: dict[str, Tensor]
    """By name a row for each of them: ``attention`` (n, L, H, 5), ``amplitude`` (n, L, F), ``similarity`` and ``token_rank``
    (n, L + 1), ``features`` (n, L + 1, pools, D); on the CPU."""
    spectra: dict[str, list[Covariances]] = field(default_factory=dict)
    """``pooled`` and ``tokens``: of every block and the output, that of the output in groups of images."""


@torch.no_grad()
def through_images(
    encoder: nn.Module,
    images: ImageDataset,
    chosen: NDArray[np.int64],
    recipe: AnalysisRecipe,
    prepared: Preprocessing,
    title: str,
    measures: Sequence[str],
    crops: Crops | None = None,
) -> Passed:
    """Take the images ``chosen`` (n,), ascending, of a dataset through an encoder; on every process.

    Without measures only features are kept. The network computes in the recipe's precision, everything else in float32, sums in
    float64. Images go group by group, so that a batch is of few groups. ``crops`` are those that are kept.

    Raises:
        UserError: if what comes out is not finite, or an image cannot be decoded and the set does not skip those.
    """
    encoder.eval()
    grid, device, spread = token_grid(encoder), accelerator().device, accelerator().num_processes > 1
    distances = torch.from_numpy(patch_distances(grid.side, grid.patch_size)).float().to(device)
    reduce = None
    if "attention" in measures:
        reduce = partial(attention_statistics, prefix=grid.prefix, distances=distances, class_token=grid.class_token)
    spectra: dict[str, list[Covariances]] = {}
    groups = groups_of(len(chosen))
    order = chosen
    if "spectrum" in measures:
        order = chosen[groups.argsort(kind="stable")]
        depths = [1] * grid.depth + [min(GROUPS, len(chosen))]
        spectra = {rows: [Covariances(grid.width, count, device) for count in depths] for rows in TOKENS}

    found: dict[str, list[Tensor]] = {}
    transform = eval_transform(recipe.side, prepared.crop_pct or recipe.eval_crop, prepared.interpolation)
    see = partial(whatever_index, transform)
    for batch in decoded_batches(images, see, recipe, title, order, recipe.form, crops):
        with autocast(recipe.precision):
            blocks = through_blocks(encoder, normalised(batch.pixels, mean=prepared.mean, std=prepared.std), reduce)
        patches = [tokens[:, grid.prefix :].float() for tokens in blocks.tokens]
        pooled = _pooled(encoder, [of.mean(1) for of in patches])
        now = {"counts": batch.counts} | _values(encoder, blocks, patches, pooled, grid.class_token, measures)
        if "spectrum" in measures:
            with may_wait():
                group = torch.from_numpy(groups[np.searchsorted(chosen, batch.index.cpu().numpy())])
                group[~batch.counts.cpu()] = -1
            for rows, features in zip(TOKENS, (pooled, patches), strict=True):
                for covariances, of in zip(spectra[rows], features, strict=True):
                    covariances.add(of, group if covariances is spectra[rows][-1] else group.clamp(max=0))
        with may_wait():  # for values of a batch: those of all images would need too much memory of the device
            for name, value in now.items():
                found.setdefault(name, []).append(value if spread else value.cpu())  # processes gather on their devices

    values = {name: in_order(torch.cat(of), order, recipe) for name, of in found.items()}
    kept = values.pop("counts")
    values, index = {name: of[kept] for name, of in values.items()}, chosen[kept.numpy()]
    if len(index) == 0:
        raise UserError(
            f"{images.name}: none of the {len(chosen):,} selected images of split {images.split!r} can be decoded. Restore them."
        )
    for of in values.values():
        check_finite(of.isfinite().flatten(1).all(1).numpy(), images, index, "the encoder's features or attention")
    gathered = {rows: [covariances.gather() for covariances in every_depth] for rows, every_depth in spectra.items()}
    return Passed(index, values, gathered)


def _values(
    encoder: nn.Module,
    blocks: Blocks[Tensor],
    patches: Sequence[Tensor],
    pooled: Sequence[Tensor],
    class_token: bool,
    measures: Sequence[str],
) -> dict[str, Tensor]:
    """Return what is kept of every image of a batch, see :attr:`Passed.values`.

    ``patches`` (B, N, D) are those of every depth, and ``pooled`` (B, D) their means.
    """
    values = {}
    if "depth" in measures or not measures:
        classes = _pooled(encoder, [tokens[:, 0].float() for tokens in blocks.tokens])
        kinds = [pooled, classes] if class_token else [pooled]
        values["features"] = torch.stack([torch.stack(list(of), 1) for of in kinds], 2)
    elif "similarity" in measures:
        values["features"] = pooled[-1][:, None, None]
    if "attention" in measures:
        values["attention"] = torch.stack(blocks.attention, 1)
    if "fourier" in measures:
        values["amplitude"] = torch.stack([log_amplitudes(of) for of in patches[:-1]], 1)
    if "similarity" in measures:
        values["similarity"] = torch.stack([token_similarity(of) for of in patches], 1)
    if "spectrum" in measures:
        values["token_rank"] = torch.stack([token_rank(of) for of in patches], 1)
    return values


def _pooled(encoder: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """Return one feature (B, D) for each depth; the output's after the norm that some encoders have behind the pooling."""
    norm: nn.Module = getattr(encoder, "fc_norm", nn.Identity())
    return [*features[:-1], norm(features[-1])]


@torch.no_grad()
def second_views(
    encoder: nn.Module,
    images: ImageDataset,
    chosen: NDArray[np.int64],
    recipe: AnalysisRecipe,
    prepared: Preprocessing,
    title: str,
) -> Tensor:
    """Return the output (m, D), mean over patches, for a random crop of each of the images ``chosen`` (m,); on every process.

    A crop depends on the image's index alone, so that all encoders see the same.
    """
    see = partial(_second_view, recipe.side, prepared.interpolation)
    found = []
    for batch in decoded_batches(images, see, recipe, title, chosen, recipe.form):
        with autocast(recipe.precision):
            found.append(encode(encoder, normalised(batch.pixels, mean=prepared.mean, std=prepared.std), "mean"))
    return in_order(torch.cat(found), chosen, recipe)


def _second_view(side: int, interpolation: str, image: Image.Image | Pixels, index: int) -> Tensor:
    with seeded(RngStream.VIEW, index):
        pixels, box = random_resized_crop(image, side, SCALE, interpolation)
    return to_tensor(pixels[:, ::-1] if box.flipped else pixels)
