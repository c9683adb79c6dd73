"""Which of the known sets are there; nothing here reads an image.

What a set holds, and how to get it, is in :mod:`lutbench.data.known` and, for the shifted ones,
:mod:`robustness.published_sets`; whether one is whole is for :mod:`lutbench.data.verify`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lutbench.data.images import Split
from lutbench.data.known import BUILDERS, CATALOGUE, in_hub_cache, place
from lutbench.data.literature import KnownSet
from lutbench.data.official import FORMATS
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes import DataRecipe, SegmentationDataRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.published_sets import PUBLISHED, PublishedSet

HERE, MISSING = "here", "missing"

AnySet = KnownSet | PublishedSet


@dataclass(frozen=True)
class DatasetStatus:
    """Whether a known set is there, as far as a glance tells."""

    known: AnySet
    state: str
    """``here``, ``built on first use``, ``on the Hub``, ``missing``, or what of it is missing."""
    where: Path


def list_sets(root: Path) -> list[DatasetStatus]:
    """Every known set, the shifted ones last. Samples at folders by name and lists none, so it is instant."""
    return [status_of(any_set(name), root) for name in (*CATALOGUE, *PUBLISHED)]


def status_of(known: AnySet, root: Path) -> DatasetStatus:
    """Whether a set is below ``root``."""
    where = (root / known.recipe.folder).absolute() if isinstance(known, PublishedSet) else place(known, root)
    try:
        state = _shifted_state(known.recipe, root) if isinstance(known, PublishedSet) else _state(known, root)
    except PermissionError as error:
        state = f"cannot be read: {error.strerror}"
    return DatasetStatus(known, state, where)


def how_to_get(status: DatasetStatus) -> str:
    """The steps to have a set, with the folder filled in."""
    return status.known.get.replace("DIR", str(status.where))


def any_set(name: str) -> AnySet:
    """A set, shifted or not, by name.

    Raises:
        UserError: with the nearest name, if there is none.
    """
    found: Mapping[str, AnySet] = {**CATALOGUE, **PUBLISHED}
    if name not in found:
        raise UserError(f"There is no known set {name!r}.{nearest(name, found)} `lutbench data list` names all.")
    return found[name]


def sets_here(root: Path) -> list[str]:
    """Names of the known sets that are below ``root``, whole or in part.

    A shifted set that is made of another's images, as ImageNet with patches dropped, is not named beside it.

    Raises:
        UserError: if none is.
    """
    names = [known.name for known in CATALOGUE.values() if place(known, root).exists()]
    others = {place(known, root) for known in CATALOGUE.values()}
    for published in PUBLISHED.values():
        status = status_of(published, root)
        if status.state != MISSING and not others & {status.where, *status.where.parents}:
            names.append(published.name)
    if not names:
        raise UserError(
            f"None of the known sets is below {root.absolute()}: point --data-root at the folder that holds them. "
            "`lutbench data list` says what they are and how to get them."
        )
    return names


def splits_of(recipe: DataRecipe | SegmentationDataRecipe) -> tuple[Split, ...]:
    """The splits that a set has: a set that is only pre-trained on has no val."""
    return ("train", "val") if recipe.val else ("train",)


def _state(known: KnownSet, root: Path) -> str:
    where, recipe = place(known, root), known.recipe
    if recipe.source == "huggingface":
        return HERE if where.exists() or in_hub_cache(recipe.path) else "on the Hub"
    if known.name in BUILDERS and not where.exists():
        return "built on first use"
    if isinstance(recipe, DataRecipe) and recipe.source not in ("folder", *BUILDERS):
        parts = (part.strip() for split in (recipe.train, recipe.val) for part in split.split("+"))
        return _glance(where, [*dict.fromkeys(need for part in parts for need in FORMATS[recipe.source].needs(part))])
    kinds = ("images/", "annotations/") if isinstance(recipe, SegmentationDataRecipe) else ("",)
    names = {"train": recipe.train, "val": recipe.val}
    return _glance(where, [kind + names[split] for split in splits_of(recipe) for kind in kinds])


def _shifted_state(recipe: RobustnessDatasetRecipe, root: Path) -> str:
    where = root / recipe.folder
    if recipe.kind == "corruptions":
        return _glance(where, recipe.corruptions or [""])
    state = _glance(where, list(recipe.parts.values()) if recipe.kind == "classes" else [""])
    return f"{recipe.known} is missing" if state == HERE and not (root / recipe.known).is_dir() else state


def _glance(where: Path, folders: list[str]) -> str:
    missing = [folder for folder in folders if not (where / folder).exists()]
    if not missing:
        return HERE
    return MISSING if missing == folders else f"{listed(missing, 1)} {'is' if len(missing) == 1 else 'are'} missing"
