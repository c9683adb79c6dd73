"""What is known of a dataset without building, downloading or decoding anything of it: for plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutbench.data.catalogue import PRESENT, KnownDataset, in_hub_cache, known_by, location, status_of
from lutbench.errors import UserError
from lutbench.recipes.base import DatasetRecipe
from lutbench.workspace import Workspace

DATA, HUB = "data", "HF_HOME"
"""Where a dataset is kept: below the data root, or in the cache of `datasets`, which keeps what it fetches from the Hub."""


@dataclass(frozen=True)
class Holding:
    """Files that a dataset needs on disk."""

    name: str
    paths: tuple[Path, ...]
    """Folders that hold them, by which datasets that share images are told from others."""
    present: bool
    size: int | None = None
    """Bytes: of what is present, None if not measured; of what is to come, None if nothing says."""
    folder: str = DATA


@dataclass(frozen=True)
class Survey:
    """What a plan needs to know of a dataset."""

    problem: str
    """Why it cannot be used now; empty if it can."""
    images: Mapping[str, int]
    """The size of every split whose size is known, as listed or else as published."""
    classes: int
    """The number of classes as listed, else as published; 0 if nothing says."""
    holdings: tuple[Holding, ...]
    """What of it is on disk, and what is to come."""
    known: str = ""
    """Its name in the catalogue, if it is known."""
    lacks: str = ""
    """What is missing that the suite does not make itself; of a dataset that is not known, a whole paragraph."""


def survey(recipe: DatasetRecipe, workspace: Workspace) -> Survey:
    """Survey a dataset with a training and a validation split."""
    known, path = known_by(recipe), (workspace.data / recipe.folder).absolute()
    problems = {split: _problem(recipe, known, path, split, workspace) for split in recipe.splits}
    problem = next(filter(None, problems.values()), "")
    images = {}
    for split in recipe.splits:
        if not problems[split]:
            images[split] = len(workspace.open(recipe, split))
        elif known and getattr(known.recipe, split) == getattr(recipe, split) and split in known.images:
            images[split] = known.images[split]
    classes = len(getattr(recipe, "classes", ())) or (known.classes if known else 0)
    if not problems["train"]:
        classes = len(workspace.open(recipe, "train").classes)
    return Survey(
        problem=problem,
        images=images,
        classes=classes,
        holdings=_holdings(recipe, known, path, problem, workspace),
        known=known.name if known else "",
        lacks="" if not problem or (known and known.built) else _lacks(recipe, known, path, problem),
    )


def to_come(name: str, paths: tuple[Path, ...], known: KnownDataset | None, folder: str = DATA) -> Holding:
    """Return the holding of files that are absent, of the size that is published, if one is."""
    if known is None or known.gigabytes is None:
        return Holding(f"{name} (size unknown)", paths, False, None, folder)
    return Holding(f"{name} (as published)", paths, False, int(known.gigabytes * 1e9), folder)


def _problem(recipe: DatasetRecipe, known: KnownDataset | None, path: Path, split: str, workspace: Workspace) -> str:
    """Return why a split cannot be listed as it lies; empty if it can."""
    if known and known.built and not (location(known, workspace.data) / "manifest.json").is_file():
        return f"{known.name}: built when it is first used."
    present = path.exists() or (known is not None and status_of(known, workspace.data).state == PRESENT)
    if recipe.source == "huggingface" and not present:  # to open it would be to download it
        return f"{recipe.label or recipe.path}: not at {path}; it would be fetched from the Hub."
    try:
        workspace.open(recipe, split)
    except UserError as error:
        return str(error)
    return ""


def _lacks(recipe: DatasetRecipe, known: KnownDataset | None, path: Path, problem: str) -> str:
    of_hub = recipe.source == "huggingface"
    if known is None or path.exists() or (of_hub and in_hub_cache(recipe.path)):
        return problem
    return f"not at {path}{', to be fetched from the Hub' if of_hub else ''}"


def _holdings(
    recipe: DatasetRecipe, known: KnownDataset | None, path: Path, problem: str, workspace: Workspace
) -> tuple[Holding, ...]:
    if getattr(recipe, "streaming", False):
        return ()
    name = recipe.label or recipe.path or recipe.source
    if problem:
        folder = HUB if recipe.source == "huggingface" and not path.exists() else DATA
        return (to_come(name, (path,), known, folder),)
    size = sum(_bytes(workspace.open(recipe, split)) for split in recipe.splits)
    return (Holding(name, (path,), True, size),)


def _bytes(dataset: Any) -> int:
    """Return the bytes of a split's images, and of its masks if it has any."""
    masks = (dataset.mask_path(index) for index in range(len(dataset))) if hasattr(dataset, "mask_path") else ()
    size: int = int(np.maximum(dataset.sizes, 0).sum()) + sum(mask.stat().st_size for mask in masks)
    return size
