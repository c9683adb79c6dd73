"""The features of a frozen encoder, encoded once for all probes that take the same: see :mod:`lutbench.evaluate.feature_store`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.evaluate.feature_store import Kept, read_features, write_features
from lutbench.evaluate.inference import Computed, encode_images
from lutbench.files import DamagedError
from lutbench.kinds import DATASETS
from lutbench.models.blocks import blocks_taken, depth_of, encode_blocks
from lutbench.models.encoders import encode, has_class_token
from lutbench.models.pretrained import encoder_of
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
    """Return what a probe takes of the centre crop of every image of a split: features (m, F); on every process.

    Of the recipe's encoder, crop, blocks and pooling; ``pool`` in place of the recipe's. ``"tokens"`` are those of the output: class
    token, if there is one, and patches, (m, 1 + N, D) or (m, N, D). The encoder is made, by ``encoder`` if that is given, only if
    features are not kept that another run left. A block is kept by itself, and one pass encodes all blocks if they take little
    (:data:`OF_ALL`), so that a sweep over blocks encodes once. The bits are the same, kept or not.

    Raises:
        UserError: if the encoder's weights do not fit, it has no such blocks or tokens, its features are not finite, or an image cannot
            be decoded and the set does not skip those.
    """
    recipe, processes = run.recipe, accelerator()
    pool = pool or recipe.pooling
    blocks = () if pool == "tokens" else recipe.blocks_taken
    numbers = blocks_taken(recipe.encoder.architecture, recipe.side, blocks) or (OUTPUT,)
    images, began = run.dataset(split), time.monotonic()
    found = {number: _kept(run, split, pool, number) for number in numbers}
    missing = [number for number in numbers if greatest(int(found[number] is None))]  # on any process
    if missing:
        model = (encoder or partial(encoder_of, run, recipe.image_size))().to(processes.device).eval()
        began = time.monotonic()
        encoded = _encoded(run, split, pool, missing, model)
        found |= encoded
        if processes.is_main_process:
            inputs = feature_inputs(run, split, pool)
            some = [({**inputs, "block": number}, kept) for number, kept in encoded.items()]
            if reason := write_features(run.workspace.features, some, run.workspace.feature_bytes):
                run.workspace.note(f"{run.name}: the features of {split} are not kept for other probes: {reason}.")
        processes.wait_for_everyone()  # so that all of them find the file the next time
    else:
        run.log(f"features of {split} are there already, and are not encoded again.")
    parts = [found[number] for number in numbers]
    values = torch.cat([part.values for part in parts if part is not None], 1) if len(parts) > 1 else parts[0].values  # type: ignore[union-attr]
    index: Tensor = parts[0].index  # type: ignore[union-attr]
    return Features(values, index.numpy(), split, not missing, len(images), time.monotonic() - began)


def encoding_rate(features: Sequence[Features]) -> float | None:
    """Return the images/s of those features that were encoded; None if all were kept: nothing was measured then."""
    encoded = [of for of in features if not of.kept]
    return sum(of.images for of in encoded) / sum(of.seconds for of in encoded) if encoded else None


def kept_splits(features: Sequence[Features]) -> dict[str, JsonValue]:
    """Return, for a record, the splits whose features were kept already; nothing if none were."""
    kept: list[JsonValue] = [of.split for of in features if of.kept]
    return {"features_kept": kept} if kept else {}


def feature_inputs(run: "Run[Any]", split: str, pool: Taken) -> dict[str, Any]:
    """Return everything that decides the bits of a run's features, but which block they are of."""
    recipe, prepared, device = run.recipe, run.preprocessing, accelerator().device
    source, machine, installed = recipe.encoder, hardware(), packages()
    return {
        "encoder": source.affecting_results(),
        "weights": run.weights_sha256,
        "seed": run.seed if source.kind == "scratch" else None,
        "data": recipe.data.affecting_results(),
        "split": split,
        "fingerprint": run.fingerprint(split),
        "side": recipe.side,
        "crop": prepared.crop_pct or recipe.eval_crop,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "interpolation": prepared.interpolation,
        "pool": pool,
        "precision": precision_of(recipe.precision),
        "batch": recipe.eval_batch,
        "threads": torch.get_num_threads(),
        "device": [device.type, machine.cpu, *machine.gpus],
        "packages": {name: installed.get(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")},
        "sources": [digest_of(__name__), digest_of(DATASETS[type(recipe.data).__name__])],
    }


def _kept(run: "Run[Any]", split: str, pool: Taken, number: int) -> Kept | None:
    """Return the features that are kept; None, and a line about it, if they are damaged."""
    try:
        return read_features(run.workspace.features, {**feature_inputs(run, split, pool), "block": number})
    except DamagedError as error:
        run.log(f"{error} Its images are encoded anew.")
        return None


def _encoded(run: "Run[Any]", split: str, pool: Taken, missing: Sequence[int], encoder: nn.Module) -> dict[int, Kept]:
    """Encode a split's images, and return features by the number of the block: of those that are ``missing``, and of all if they take little."""
    recipe, images = run.recipe, run.dataset(split)
    numbers = list(missing)
    take: Callable[[nn.Module, Tensor], Tensor]
    if pool == "tokens":
        take = _tokens
    elif numbers == [OUTPUT]:
        take = partial(encode, pool=pool)
    else:
        every = range(1, depth_of(encoder) + 1)
        width: int = encoder.num_features  # type: ignore[assignment]
        if 4 * len(images) * width * len(every) <= run.workspace.feature_bytes / OF_ALL:
            numbers = list(every)
        take = partial(encode_blocks, pool=pool, numbers=numbers)
    computed = encode_images(encoder, images, recipe, run.preprocessing, f"{run.name} features of {split}", take)
    index = torch.from_numpy(computed.index)
    if numbers == [OUTPUT]:
        return {OUTPUT: Kept(computed.values, index)}
    return {number: Kept(computed.values[:, at].contiguous(), index) for at, number in enumerate(numbers)}


def _tokens(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return class token, if there is one, and patches of the output (B, 1 + N, D) or (B, N, D), float32."""
    model: Any = encoder
    found: Tensor = model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    if not isinstance(prefix, int) or found.ndim != 3:
        raise UserError(
            f"Expected an encoder that gives tokens, found timm's {type(model).__name__}, which gives maps. Choose another."
        )
    first = found[:, :1] if has_class_token(model) else found[:, :0]
    return torch.cat([first, found[:, prefix:]], 1).float()
