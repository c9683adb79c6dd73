"""What is known about a dataset before a run: from its files if they exist, otherwise from the catalogue.

Files are listed, but nothing is built, downloaded or decoded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbench.data.catalogue import in_hub_cache, known_by
from lutbench.errors import UserError
from lutbench.recipes.base import DatasetRecipe

if TYPE_CHECKING:
    from lutbench.workspace import Workspace

DATA, HUB = "data", "HF_HOME"
"""Folders with datasets: the data root, and the cache of `datasets` for the Hub."""


@dataclass(frozen=True)
class DiskUse:
    """Disk space of one item."""

    name: str
    folder: str = DATA
    """The folder that contains it: :data:`DATA`, :data:`HUB`, or another folder of the suite."""
    present: int | None = 0
    """Bytes that exist; None if it exists but was not measured."""
    to_come: int | None = 0
    """Additional bytes that it will need; None if unknown."""
    paths: tuple[Path, ...] = ()
    """Its folders. A folder inside another dataset's is counted only there. If empty, the item is always counted."""

    @classmethod
    def dataset(cls, name: str, whole: bool, size: int | None, gigabytes: float | None, *paths: Path) -> "DiskUse":
        """Return the disk space of a dataset: ``size`` bytes if it is complete (``whole``), else the published size if known."""
        if whole:
            return cls(name, DATA, size, 0, paths)
        if gigabytes is None:
            return cls(f"{name} (size unknown)", DATA, 0, None, paths)
        return cls(f"{name} (as published)", DATA, 0, int(gigabytes * 1e9), paths)


@dataclass(frozen=True)
class Survey:
    """Information about a dataset for a plan."""

    name: str
    images: Mapping[str, int]
    """Number of images per split, from its files or as published. Splits of unknown size are left out."""
    problems: Mapping[str, str]
    """For each split that cannot be used now, the reason."""
    classes: int
    """Number of classes, from its files or as published; 0 if unknown."""
    disk: tuple[DiskUse, ...]
    """Disk space of its files, and of other datasets whose images it uses."""
    made: bool
    """Whether the suite builds it on first use."""
    known: str
    """Its name in the catalogue; empty if it is not a known dataset."""


def survey_splits(recipe: DatasetRecipe, workspace: "Workspace", size: Callable[[Any], int]) -> Survey:
    """Return the survey of a training dataset; ``size`` returns the bytes of a split."""
    name = recipe.label or recipe.path or recipe.source
    known = known_by(recipe)
    made = bool(known and known.built)
    path = (workspace.data / recipe.folder).absolute()
    hub = recipe.source == "huggingface"
    offline = replace(workspace, download=False)
    absent = not path.exists() and not (hub and in_hub_cache(recipe.path))
    opened, images, problems = dict[str, Any](), dict[str, int](), dict[str, str]()
    for split in recipe.splits:
        try:
            if made and not (path / "manifest.json").is_file():
                raise UserError(f"{name}: built on first use.")
            opened[split] = offline.open(recipe, split)
            images[split] = len(opened[split])
        except UserError as error:
            to_fetch = f"not at {path}{', will be downloaded from the Hub' if hub else ''}"
            problems[split] = to_fetch if known and absent else str(error)
            share = getattr(recipe, "held_out", None)
            of = "train" if share else split
            if known and of in known.images and getattr(known.recipe, of, of) == getattr(recipe, of, of):
                part = 1.0 if share is None else share if split == "val" else 1 - share
                images[split] = round(part * known.images[of])
    bytes_present = None if problems else sum(map(size, opened.values()))
    paths = () if path == workspace.data.absolute() else (path,)
    use = DiskUse.dataset(name, not problems, bytes_present, known.gigabytes if known else None, *paths)
    return Survey(
        name=name,
        images=images,
        problems=problems,
        classes=len(opened["train"].classes) if "train" in opened else known.classes if known else 0,
        disk=(replace(use, folder=HUB) if hub and not path.exists() else use,),
        made=made,
        known=known.name if known else "",
    )
