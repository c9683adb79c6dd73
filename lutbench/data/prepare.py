"""Prepare a dataset before runs: build it, download it, or make its cache; otherwise explain how to get it."""

from dataclasses import dataclass
from pathlib import Path

from lutbench.data.cache_build import make_cache, repair_cache
from lutbench.data.catalogue import MEASURED_ON, PRESENT, KnownDataset, find, location, status_of
from lutbench.data.images import UndecodableImage, open_dataset
from lutbench.errors import UserError
from lutbench.kinds import dataset_module
from lutbench.progress import console
from lutbench.recipes.base import DataRecipe

READY = (PRESENT, "on the Hub")
"""States in which a dataset can be opened."""

SIDE = 224
"""Default short side of a cache in pixels (paper)."""


@dataclass(frozen=True)
class Prepared:
    """Result of preparing a dataset."""

    ready: bool
    """Whether the dataset can be used now."""
    text: str
    """What was done, or how to get the dataset."""


def prepare_set(
    name: str, root: Path, side: int | None = None, *, download: bool = False, skip_undecodable: bool = False
) -> Prepared:
    """Build a dataset that the suite builds, or make the cache of a dataset's training images with short side ``side``.

    Datasets that the suite builds get a cache only if ``side`` is given; datasets without pre-training get none. The checksums of an
    existing cache are verified, and damaged files are made again. If a dataset is missing, the result explains how to get it; with
    ``download``, torchvision downloads it if it can.

    Raises:
        UserError: if there is no known dataset of that name, it cannot be built or downloaded, an image cannot be decoded
            (without ``skip_undecodable``), or there is not enough disk space for the cache.
    """
    known = find(name)
    status = status_of(known, root)
    advice = f"How to get it:\n{status.steps}\nTerms: {known.terms}."
    if known.built:
        new = dataset_module(known.recipe).built_by(known.recipe).build(root)
        built = f"{name} {'was built' if new else 'exists already'}: {status.path}"
        return Prepared(True, built if side is None else f"{built}\n{_cached(known, side, root, skip_undecodable)}")
    if name in MEASURED_ON:
        return Prepared(False, f"{name} is used only for evaluation: nothing to prepare except its files. {advice}")
    if status.state not in READY and download:
        _download(known, status.path)
        status = status_of(known, root)
    if status.state not in READY:
        also = f"\nOr: lutbench data prepare {name} --download" if known.torchvision else ""
        return Prepared(False, f"{name} is not complete at {status.path} ({status.state}). {advice}{also}")
    done = _cached(known, side or SIDE, root, skip_undecodable)
    return Prepared(True, f"{done}\nTo check that the dataset is complete: lutbench data check {name}")


def _download(known: KnownDataset, path: Path) -> None:
    """Download a dataset with torchvision's class, which verifies the checksums of the archives."""
    if not known.torchvision:
        raise UserError(
            f"{known.name} cannot be downloaded by this command: its terms require registration, or it has no stable public address. "
            f"`lutbench data list {known.name}` shows how to get it."
        )
    import torchvision.datasets  # here, because it takes seconds

    console.print(f"{known.name}: downloading to {path}. Terms: {known.terms}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, known.torchvision)(path.parent, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{known.name} could not be downloaded to {path}: {error}. Check the network connection, and that {known.gigabytes:g} GB are free. "
            f"`lutbench data list {known.name}` shows how to get it manually."
        ) from error


def _cached(known: KnownDataset, side: int, root: Path, skip: bool) -> str:
    """Make the cache, or verify its checksums; return a message."""
    if not isinstance(known.recipe, DataRecipe):  # pre-training uses only this type of dataset
        return (
            f"{known.name} is complete: {location(known, root)}. It is not used for pre-training, so it has no cache."
        )
    recipe = known.recipe.model_copy(update={"undecodable": "skip" if skip else "stop"})
    images = open_dataset(recipe, "train", root)
    try:
        broken = repair_cache(images, side, root)
        cached = make_cache(images, side, root)
    except UndecodableImage as error:
        raise UserError(
            f"{error} Or skip such images: lutbench data prepare {known.name} --skip-undecodable."
        ) from error
    state = "was made" if broken is None else "exists, and its checksums are correct"
    if broken:
        state = f"was repaired ({broken} damaged files made again)"
    return f"{known.name}: the cache with short side {side} {state}: {len(cached):,} images in {cached.folder}"
