"""Arrays for the pictures of eight images, the same for all encoders, stored in the record."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.attention import attention_maps, through_blocks
from analysis.grid import token_grid
from analysis.pictures import picture_strip, principal_colours
from lutbench.data.images import ImageDataset, load_or_next
from lutbench.data.tensors import normalised
from lutbench.data.walking import evenly_spaced
from lutbench.evaluate.transform import eval_transform
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator, autocast

SHOWN = 8
"""Images that are drawn."""

MASK_RATIOS = (0.5, 0.75, 0.9)
"""Of reconstructions: easier than MAE's 0.75, as it is, and harder."""


class Specimens(NamedTuple):
    """What a record keeps of the images that are drawn."""

    arrays: dict[str, NDArray[Any]]
    """``maps`` (P, 8, 2, G, G), ``colours`` (8, G, G, 3) and, of an encoder with a decoder, ``reconstructions`` (3, 8, S, S, 3)."""
    images: bytes
    """The images side by side, a PNG."""
    about: dict[str, Any]
    """Which blocks were drawn, from 1, which patch is marked, and the mask ratios."""


@torch.no_grad()
def specimens(
    run: Run[AnalysisRecipe], encoder: nn.Module, images: ImageDataset, index: NDArray[np.int64]
) -> Specimens:
    """Look at a few of the images ``index`` (n,) of a dataset, evenly spaced.

    The marked patch is the centre's, of a grid with an even side the one below and right of it.
    """
    recipe, prepared = run.recipe, run.preprocessing
    see = eval_transform(recipe.side, prepared.crop_pct or recipe.eval_crop, prepared.interpolation)
    shown = [
        see(load_or_next(images, int(index[number]), form=recipe.form)[0])
        for number in evenly_spaced(len(index), SHOWN)
    ]
    pixels = torch.stack(shown)
    tokens = token_grid(encoder)
    grid, prefix = tokens.side, tokens.prefix
    blocks = drawn_blocks(recipe, tokens.depth)
    marked = grid // 2 * grid + grid // 2
    reduce = partial(attention_maps, prefix=prefix, marked=marked, class_token=tokens.class_token)
    with autocast(recipe.precision):
        found = through_blocks(
            encoder,
            normalised(pixels, accelerator().device, mean=prepared.mean, std=prepared.std),
            reduce,
        )
    arrays: dict[str, NDArray[Any]] = {
        "maps": torch.stack([found.attention[block - 1] for block in blocks]).float().cpu().numpy(),
        "colours": principal_colours(found.tokens[-1][:, prefix:].float().cpu()),
    }
    about: dict[str, Any] = {"drawn blocks": blocks, "marked": [grid // 2, grid // 2]}
    if not tokens.class_token:
        about["first query"] = "mean over patches"
    if (made := _reconstructed(run, pixels)) is not None:
        arrays["reconstructions"] = made.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()
        about["mask ratios"] = list(MASK_RATIOS)
    return Specimens(arrays, picture_strip(pixels), about)


def drawn_blocks(recipe: AnalysisRecipe, blocks: int) -> list[int]:
    """Return the blocks, from 1, whose attention is drawn: those of the recipe, else the middle one and the last."""
    return recipe.blocks or sorted({(blocks + 1) // 2, blocks})


def _reconstructed(run: Run[AnalysisRecipe], pixels: Tensor) -> Tensor | None:
    """Return what the run that made the encoder reconstructs of uint8 images; None if it cannot, or sees another size."""
    if run.needs is None or run.recipe.encoder.export_name != "encoder":
        return None
    reconstruct = getattr(run.needs.planned.kind.module, "reconstruct", None)
    if reconstruct is None or run.recipe.side != run.recipe.encoder.architecture.image_size:
        return None
    made: Tensor | None = reconstruct(run.needs, pixels, MASK_RATIOS)
    return made
