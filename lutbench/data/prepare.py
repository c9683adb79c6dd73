"""Making a dataset ready before anything runs: building it, or making its cache; else saying how to get it."""

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
"""States of a dataset that can be opened."""

SIDE = 224
"""Short side of a cache, in pixels, if none is given: the paper's."""


@dataclass(frozen=True)
class Prepared:
    """Result of preparing a dataset."""

    ready: bool
    """Whether the dataset can be used now."""
    text: str
    """What was done; or how to get the dataset, if it is not ready."""


def prepare_set(
    name: str, root: Path, side: int | None = None, *, download: bool = False, skip_undecodable: bool = False
) -> Prepared:
    """Build a dataset that the suite builds, or make the cache of a dataset's training images, of short side ``side``.

    Datasets that the suite builds have a cache only if ``side`` is given; those that are not pre-trained on have none. Of a
    cache that is present the checksums are compared, and what is damaged is made again. If a dataset is absent, the result
    says how to get it; with ``download`` torchvision gets it, where it can.

    Raises:
        UserError: if there is no known dataset of that name, it cannot be built or downloaded, an image of it cannot be decoded
            and not ``skip_undecodable``, or the disk has no room for the cache.
    """
    known = find(name)
    status = status_of(known, root)
    advice = f"How to get it:\n{status.steps}\nTerms: {known.terms}."
    if known.built:
        new = dataset_module(known.recipe).built_by(known.recipe).build(root)
        built = f"{name} {'was built' if new else 'is there already'}: {status.path}"
        return Prepared(True, built if side is None else f"{built}\n{_cached(known, side, root, skip_undecodable)}")
    if name in MEASURED_ON:
        return Prepared(
            False, f"{name} is only measured on: there is nothing to prepare, its files are enough. {advice}"
        )
    if status.state not in READY and download:
        _download(known, status.path)
        status = status_of(known, root)
    if status.state not in READY:
        also = f"\nOr: lutbench data prepare {name} --download" if known.torchvision else ""
        return Prepared(False, f"{name} is not complete at {status.path} ({status.state}). {advice}{also}")
    done = _cached(known, side or SIDE, root, skip_undecodable)
    return Prepared(True, f"{done}\nWhether the set is whole: lutbench data check {name}")


def _download(known: KnownDataset, path: Path) -> None:
    """Download a dataset by torchvision's class, which compares the archives' checksums."""
    if not known.torchvision:
        raise UserError(
            f"{known.name} cannot be downloaded by this command: its terms ask for more, or it has no public address that lasts. "
            f"`lutbench data list {known.name}` says how to get it."
        )
    import torchvision.datasets  # here, because it takes seconds

    console.print(f"{known.name}: downloading to {path}. Terms: {known.terms}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, known.torchvision)(path.parent, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{known.name} could not be downloaded to {path}: {error}. Is there a network, and room for {known.gigabytes:g} GB? "
            f"`lutbench data list {known.name}` says how to get it by hand."
        ) from error


def _cached(known: KnownDataset, side: int, root: Path, skip: bool) -> str:
    """Make the cache, or compare its checksums; return what was done."""
    if not isinstance(known.recipe, DataRecipe):  # only images with one label each are pre-trained on
        return f"{known.name} is there: {location(known, root)}. It is not pre-trained on, and has no cache."
    recipe = known.recipe.model_copy(update={"undecodable": "skip" if skip else "stop"})
    images = open_dataset(recipe, "train", root)
    try:
        broken = repair_cache(images, side, root)
        cached = make_cache(images, side, root)
    except UndecodableImage as error:
        raise UserError(
            f"{error} Or leave such images out: lutbench data prepare {known.name} --skip-undecodable."
        ) from error
    state = "was made" if broken is None else "is there, and its checksums are right"
    if broken:
        state = f"is there (damaged files that were made again: {broken})"
    return f"{known.name}: the cache of short side {side} {state}: {len(cached):,} images in {cached.folder}"
