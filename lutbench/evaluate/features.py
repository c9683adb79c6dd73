"""Features of a frozen encoder, computed once and shared by probes, see :mod:`lutbench.evaluate.feature_store`."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor, nn

from lutbench.data.images import ImageDataset
from lutbench.data.subsets import whole_of
from lutbench.evaluate.crop_store import crop_inputs, kept_crops
from lutbench.evaluate.feature_store import Kept, making, read_features, write_features
from lutbench.evaluate.inference import Computed, batch_size, encode_images
from lutbench.files import DamagedError
from lutbench.kinds import DATASETS
from lutbench.models.blocks import blocks_taken, depth_of, encode_blocks
from lutbench.models.encoders import encode
from lutbench.models.pretrained import encoder_of
from lutbench.models.tokens import patch_tokens
from lutbench.provenance import hardware, packages
from lutbench.recipes.downstream import Pool
from lutbench.sources import digest_of
from lutbench.train.processes import accelerator, greatest, precision_of

if TYPE_CHECKING:
    from lutbench.run import Run

Taken = Pool | Literal["tokens"]

OF_ALL = 4
"""The features of all blocks are kept where they take no more than this part of the room for features, a fourth (our choice)."""

OUTPUT = 0
"""In place of the number of a block: the encoder's output."""


@dataclass(frozen=True)
class Features(Computed):
    """The features of one split, float32, and what they took."""

    split: str
    kept: bool
    """Whether they were there already, so that no image was encoded."""
    images: int
    """Images of the split, those that could not be decoded included."""
    seconds: float
    """Of encoding, without loading the encoder's weights; of reading where they were kept."""


def features_of(
    run: "Run[Any]", split: str, pool: Taken | None = None, encoder: Callable[[], nn.Module] | None = None
) -> Features:
    """Return the features (m, F) of the centre crop of every image of a split, for a probe; on every process.

    Uses the recipe's encoder, crop, blocks and pooling (or ``pool``); ``"tokens"`` are the output's patch tokens (m, N, D). The encoder is
    loaded (by ``encoder`` if given) only if the features are not in the cache. Every block is stored separately, and one forward pass
    stores all blocks if they are small (:data:`OF_ALL`), so that a sweep over blocks encodes once. For low-shot tasks, the features of the
    whole split are stored, so that all draws encode once; tokens, which are much larger, only for the subset. Cached and computed
    features have the same bits.

    Raises:
        UserError: if the encoder's weights do not fit, it has no such blocks or tokens, its features are not finite, or an image cannot
            be decoded and the dataset does not skip such images.
    """
    recipe, processes = run.recipe, accelerator()
    pool = pool or recipe.pooling
    blocks = () if pool == "tokens" else recipe.blocks_taken
    numbers = blocks_taken(recipe.encoder.architecture, recipe.side, blocks) or (OUTPUT,)
    images, began = run.dataset(split), time.monotonic()
    encoded_images = images if pool == "tokens" else whole_of(images)
    found = {number: _kept(run, encoded_images, pool, number) for number in numbers}
    missing = [number for number in numbers if greatest(int(found[number] is None))]  # on any process
    inputs = feature_inputs(run, encoded_images, pool)
    # several processes make them together, and wait for no other command
    shared = bool(missing) and processes.num_processes == 1 and run.workspace.feature_bytes > 0
    with making(run.workspace.features, inputs) if shared else nullcontext():
        if shared:  # another run may have made them since they were looked for
            found |= {number: _kept(run, encoded_images, pool, number) for number in missing}
            missing = [number for number in missing if found[number] is None]
        if missing:
            model = (encoder or partial(encoder_of, run, recipe.image_size))().to(processes.device).eval()
            began = time.monotonic()
            encoded = _encoded(run, encoded_images, pool, missing, model)
            found |= encoded
            if processes.is_main_process:
                some = [({**inputs, "block": number}, kept) for number, kept in encoded.items()]
                if reason := write_features(run.workspace.features, some, run.workspace.feature_bytes):
                    run.workspace.note(
                        f"{run.name}: the features of {split} are not cached for other probes: {reason}."
                    )
            processes.wait_for_everyone()  # so that all of them find the file the next time
        else:
            run.log(f"features of {split} are in the cache and are not computed again.")
    parts = [found[number] for number in numbers]
    values = torch.cat([part.values for part in parts if part is not None], 1) if len(parts) > 1 else parts[0].values  # type: ignore[union-attr]
    index: NDArray[np.int64] = parts[0].index.numpy()  # type: ignore[union-attr]
    if encoded_images is not images:
        values, index = _rows(values, index, images.index)
    return Features(values, index, split, not missing, len(encoded_images), time.monotonic() - began)


def encoding_rate(features: Sequence[Features]) -> float | None:
    """Return the images/s of those features that were encoded; None if all were kept: nothing was measured then."""
    encoded = [of for of in features if not of.kept]
    return sum(of.images for of in encoded) / sum(of.seconds for of in encoded) if encoded else None


def kept_splits(features: Sequence[Features]) -> dict[str, JsonValue]:
    """Return, for a record, the splits whose features were kept already; nothing if none were."""
    kept: list[JsonValue] = [of.split for of in features if of.kept]
    return {"features_kept": kept} if kept else {}


def _rows(values: Tensor, index: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the features of the images ``chosen`` (n,) out of those of the images ``index`` (m,), and which of the chosen they are."""
    rows = np.flatnonzero(np.isin(index, chosen))
    return values[torch.from_numpy(rows)], np.searchsorted(chosen, index[rows])


def feature_inputs(run: "Run[Any]", images: ImageDataset, pool: Taken) -> dict[str, Any]:
    """Return everything that decides the bits of a run's features of ``images``, but which block they are of."""
    recipe, prepared, device = run.recipe, run.preprocessing, accelerator().device
    source, machine, installed = recipe.encoder, hardware(), packages()
    return {
        "encoder": source.affecting_results(),
        "weights": run.weights_sha256,
        "seed": run.seed if source.kind == "scratch" else None,
        **crop_inputs(run, images),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "pool": pool,
        "precision": precision_of(recipe.precision),
        "batch": batch_size(recipe),
        "threads": torch.get_num_threads(),
        "device": [device.type, machine.cpu, *machine.gpus],
        "packages": {name: installed.get(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")},
        "sources": [digest_of(__name__), digest_of(DATASETS[type(recipe.data).__name__])],
    }


def _kept(run: "Run[Any]", images: ImageDataset, pool: Taken, number: int) -> Kept | None:
    """Return the features that are kept; None, and a line about it, if they are damaged."""
    try:
        return read_features(run.workspace.features, {**feature_inputs(run, images, pool), "block": number})
    except DamagedError as error:
        run.log(f"{error} The images are encoded again.")
        return None


def _encoded(
    run: "Run[Any]", images: ImageDataset, pool: Taken, missing: Sequence[int], encoder: nn.Module
) -> dict[int, Kept]:
    """Encode images, and return features by the number of the block: of those that are ``missing``, and of all if they take little."""
    recipe, numbers = run.recipe, list(missing)
    take: Callable[[nn.Module, Tensor], Tensor]
    if pool == "tokens":
        take = patch_tokens
    elif numbers == [OUTPUT]:
        take = partial(encode, pool=pool)
    else:
        every = range(1, depth_of(encoder) + 1)
        width: int = encoder.num_features  # type: ignore[assignment]
        if 4 * len(images) * width * len(every) <= run.workspace.feature_bytes / OF_ALL:
            numbers = list(every)
        take = partial(encode_blocks, pool=pool, numbers=numbers)
    title = f"{run.name} features of {images.split}"
    with kept_crops(run, images) as crops:
        computed = encode_images(encoder, images, recipe, run.preprocessing, title, take, crops=crops)
    index = torch.from_numpy(computed.index)
    if numbers == [OUTPUT]:
        return {OUTPUT: Kept(computed.values, index)}
    return {number: Kept(computed.values[:, at].contiguous(), index) for at, number in enumerate(numbers)}
