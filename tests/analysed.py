"""Records of analyses with invented outcomes, as runs would leave them, of encoders of any size."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hand_made import keep
from numpy.typing import NDArray
from PIL import Image

from analysis.block_outcomes import BlockOutcomes
from analysis.uniform import uniform_distance, uniform_entropy
from lutbench.evaluate.ranks import PowerLawRange, statistics
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record

IMAGES = 40
"""That an invented encoder was analysed on."""
WIDTH = 32


def outcomes(
    blocks: int, grid: int, patch_size: int, *, selects: float = 0.5, seed: int = 0, without: Sequence[str] = ()
) -> BlockOutcomes:
    """Of an encoder that selects so much, from 0, as uniform attention does, to 1; ``without`` what was not measured."""
    random = np.random.default_rng(seed)
    depth, output = np.linspace(0.2, 1, blocks), np.linspace(0.2, 1, blocks + 1)

    def spread(mean: NDArray[Any], by: float) -> NDArray[np.float32]:
        return (mean * random.normal(1, by, (IMAGES, len(mean)))).astype(np.float32)

    spectra = {
        f"spectrum_{rows}": 100 * np.arange(1, WIDTH + 1.0) ** (-(1 + selects) * output[:, None]) for rows in ("pooled", "tokens")
    }  # fmt: skip
    spectra["spectrum_pooled"][:, -2:] = 1e-9
    fitted = PowerLawRange.of(5, 0.5, WIDTH)
    values = [
        [of(spectra[f"spectrum_{rows}"][-1:])[0] for of in statistics(fitted).values()] for rows in ("pooled", "tokens")
    ]
    frequencies = np.linspace(-0.5, -3 + selects, max(1, grid // 2))
    amplitude = depth[None, :, None] * frequencies + random.normal(0, 0.1, (IMAGES, blocks, len(frequencies)))
    measured = {
        "distance": spread(uniform_distance(grid, patch_size) * (1 - selects * (1 - depth / 2)), 0.04),
        "entropy": spread(uniform_entropy(grid) * (1 - selects * depth / 2), 0.02),
        "nmi": spread(0.4 * selects * depth + 0.003, 0.1),
        "to_class": spread(0.3 * depth, 0.1),
        "to_itself": spread(0.1 * selects * (1.2 - depth) + 1 / grid**2, 0.1),
        "similarity": spread(0.2 + 0.6 * output * (1 - selects), 0.05),
        "token_rank": spread(1 + grid * selects * output, 0.05),
        "amplitude": amplitude.astype(np.float32),
        "right_pooled": random.random((IMAGES, blocks + 1)) < 0.2 + 0.5 * output * selects,
        "right_class": random.random((IMAGES, blocks + 1)) < 0.1 + 0.5 * output * selects,
        **spectra,
        "resampled": np.array(values)[..., None] * random.normal(0.97, 0.02, (2, 4, 200)),
    }
    kept = {name: array for name, array in measured.items() if name not in without}
    return BlockOutcomes("a" * 64, IMAGES, grid, patch_size, fitted, kept)


def photographs(side: int, count: int = 8) -> NDArray[np.uint8]:
    """Smooth colours (B, 3, S, S)."""
    coarse = np.random.default_rng(7).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse]
    return np.stack(images).transpose(0, 3, 1, 2)


def arrays(
    found: BlockOutcomes, heads: int, drawn: int, pixels: NDArray[np.uint8], *, selects: float = 0.5, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """What a record has beside the outcomes ``found`` of an encoder with a decoder, of images (B, 3, S, S)."""
    random = np.random.default_rng(seed)
    grid, count = found.grid, len(pixels)
    means = np.stack([found.measured[name].mean(0) for name in ("distance", "entropy", "nmi", "to_class", "to_itself")])
    patches = pixels.reshape(count, 3, grid, found.patch_size, grid, found.patch_size).mean((3, 5))
    maps = np.exp(selects * 4 * random.normal(0, 1, (drawn, count, 2, grid, grid)) + patches.mean(1)[:, None] / 64)
    noisy = pixels.transpose(0, 2, 3, 1) * np.array([0.9, 0.7, 0.5]).reshape(3, 1, 1, 1, 1)
    common = np.random.default_rng(5).normal(0, 1, (2, 16 * 15 // 2))
    return {
        "heads": means[..., None] * random.normal(1, 0.1, (*means.shape, heads)),
        "grams": (common + selects * random.normal(0, 1, (found.blocks + 1, 2, 16 * 15 // 2)).cumsum(0)).astype(np.float32),
        "maps": (maps / maps.sum((-2, -1), keepdims=True)).astype(np.float32),
        "colours": patches.transpose(0, 2, 3, 1).astype(np.uint8),
        "reconstructions": noisy.astype(np.uint8),
    }  # fmt: skip


def strip(pixels: NDArray[np.uint8]) -> bytes:
    """Images (B, 3, S, S) side by side as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(pixels.transpose(0, 2, 3, 1), 1)).save(file, "PNG")
    return file.getvalue()


def recorded(
    folder: Path,
    loaded: LoadedSuite,
    method: str,
    found: BlockOutcomes,
    kept: Mapping[str, NDArray[Any]],
    pixels: NDArray[np.uint8],
    *,
    drawn: Sequence[int] = (2, 4),
    seed: int = 0,
) -> Record:
    """Keep the record that the analysis ``looks`` of a method would leave."""
    planned = loaded.run(f"analysis/looks/{method}/seed{seed}")
    extra = {
        "drawn blocks": list(drawn), "marked": [1, 2], "mask ratios": [0.5, 0.75, 0.9], "skipped": 0
    }  # fmt: skip
    return keep(folder, planned, found, arrays=kept, pictures={"images": strip(pixels)}, extra=extra)
