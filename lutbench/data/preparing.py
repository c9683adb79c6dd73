"""Making a set ready before anything runs: building it, or making its cache; else saying how to get it."""

from dataclasses import dataclass
from pathlib import Path

from lutbench.data.cache import cache_folder, make_cache, remove_damaged
from lutbench.data.catalogue import HERE, status_of
from lutbench.data.images import open_images
from lutbench.data.known import BUILDERS, KnownSet, how_to_get, known_set, place
from lutbench.recipes import DataRecipe

SIDE = 224
"""Short side of a cache, in pixels, if none is given: the paper's."""


@dataclass(frozen=True)
class Prepared:
    """What came of preparing a set."""

    there: bool
    """Whether it can be used now; if not, ``text`` says how to get it."""
    text: str


def prepare_set(name: str, root: Path, side: int | None = None) -> Prepared:
    """Build a set that the suite builds, and make the cache of a set's training images, of short side ``side``.

    Sets that the suite builds have a cache only where ``side`` is given, sets with masks none. Of a cache that is there the
    checksums are compared, and what is damaged is made again. Of a set that is not there, says how to get it.

    Raises:
        UserError: if there is no known set of that name, it cannot be built, an image of it cannot be decoded, or the disk
            has no room for the cache.
    """
    known = known_set(name)
    where = place(known, root)
    if name in BUILDERS:
        new = BUILDERS[name](root)
        told = f"{name} {'was built' if new else 'is there already'}: {where}"
        return Prepared(True, told if side is None else f"{told}\n{_cached(known, side, root)}")
    state = status_of(known, root).state
    if state not in (HERE, "on the Hub"):
        return Prepared(
            False,
            f"{name} is not complete at {where} ({state}). How to get it:\n{how_to_get(known, root)}\nTerms: {known.terms}.",
        )
    return Prepared(True, f"{_cached(known, side or SIDE, root)}\nWhether the set is whole: lutbench data check {name}")


def _cached(known: KnownSet, side: int, root: Path) -> str:
    """Make the cache, or compare its checksums."""
    if not isinstance(known.recipe, DataRecipe):
        return (
            f"{known.name} is there: {place(known, root)}. Sets with masks are not pre-trained on, and have no cache."
        )
    images = open_images(known.recipe, "train", root)
    broken = remove_damaged(cache_folder(images, side, root))
    told = "was made"
    if broken is not None:
        told = (
            f"is there, and {broken} damaged files of it were made again"
            if broken
            else "is there, and its checksums are right"
        )
    cached = make_cache(images, side, root)
    return f"{known.name}: the cache of short side {side} {told}: {len(cached):,} images in {cached.folder}"
