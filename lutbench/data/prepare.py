"""Making a set ready before anything runs: building it, or making its cache; else saying how to get it."""

from dataclasses import dataclass
from pathlib import Path

from lutbench.data.cache_build import make_cache, repair_cache
from lutbench.data.catalogue import HERE, AnySet, any_set, how_to_get, status_of
from lutbench.data.images import UndecodableImage, open_images
from lutbench.data.known import BUILDERS, place
from lutbench.data.literature import KnownSet
from lutbench.errors import UserError
from lutbench.progress import console
from lutbench.recipes import DataRecipe
from robustness.published_sets import PublishedSet

SIDE = 224
"""Short side of a cache, in pixels, if none is given: the paper's."""


@dataclass(frozen=True)
class Prepared:
    """What came of preparing a set."""

    there: bool
    """Whether it can be used now; if not, ``text`` says how to get it."""
    text: str


def prepare_set(
    name: str, root: Path, side: int | None = None, *, download: bool = False, skip_undecodable: bool = False
) -> Prepared:
    """Build a set that the suite builds, and make the cache of a set's training images, of short side ``side``.

    Sets that the suite builds have a cache only where ``side`` is given, sets with masks none. Of a cache that is there the
    checksums are compared, and what is damaged is made again. Of a set that is not there, says how to get it; with
    ``download`` torchvision gets it, where it can.

    Raises:
        UserError: if there is no known set of that name, it cannot be built or downloaded, an image of it cannot be decoded
            and not ``skip_undecodable``, or the disk has no room for the cache.
    """
    known = any_set(name)
    if isinstance(known, PublishedSet):
        return Prepared(False, f"{name} is tested on and needs nothing but its files. {_advice(known, root)}")
    where = place(known, root)
    if name in BUILDERS:
        new = BUILDERS[name](root)
        told = f"{name} {'was built' if new else 'is there already'}: {where}"
        return Prepared(True, told if side is None else f"{told}\n{_cached(known, side, root, skip_undecodable)}")
    state = status_of(known, root).state
    if state not in (HERE, "on the Hub") and download:
        _download(known, root)
        state = status_of(known, root).state
    if state not in (HERE, "on the Hub"):
        return Prepared(
            False,
            f"{name} is not complete at {where} ({state}). {_advice(known, root)}"
            + (f"\nOr: lutbench data prepare {name} --download" if known.torchvision else ""),
        )
    return Prepared(
        True,
        f"{_cached(known, side or SIDE, root, skip_undecodable)}\nWhether the set is whole: lutbench data check {name}",
    )


def _advice(known: AnySet, root: Path) -> str:
    return f"How to get it:\n{how_to_get(status_of(known, root))}\nTerms: {known.terms}."


def _download(known: KnownSet, root: Path) -> None:
    """By torchvision's class, which compares the archives' checksums."""
    if not known.torchvision:
        raise UserError(
            f"{known.name} cannot be downloaded by this command: its terms ask for more, or it has no public address that lasts. "
            f"`lutbench data list {known.name}` says how to get it."
        )
    import torchvision.datasets  # here, because it takes seconds

    where = place(known, root)
    console.print(f"{known.name}: downloading to {where}. Terms: {known.terms}.")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, known.torchvision)(where.parent, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{known.name} could not be downloaded to {where}: {error}. Is there a network, and room for {known.gigabytes:g} GB? "
            f"`lutbench data list {known.name}` says how to get it by hand."
        ) from error


def _cached(known: KnownSet, side: int, root: Path, skip: bool) -> str:
    """Make the cache, or compare its checksums."""
    if not isinstance(known.recipe, DataRecipe):
        return (
            f"{known.name} is there: {place(known, root)}. Sets with masks are not pre-trained on, and have no cache."
        )
    recipe = known.recipe.model_copy(update={"undecodable": "skip" if skip else "stop"})
    images = open_images(recipe, "train", root)
    try:
        broken = repair_cache(images, side, root)
        cached = make_cache(images, side, root)
    except UndecodableImage as error:
        raise UserError(
            f"{error} Or leave such images out: lutbench data prepare {known.name} --skip-undecodable."
        ) from error
    told = "was made"
    if broken is not None:
        told = (
            f"is there (damaged files that were made again: {broken})"
            if broken
            else "is there, and its checksums are right"
        )
    return f"{known.name}: the cache of short side {side} {told}: {len(cached):,} images in {cached.folder}"
