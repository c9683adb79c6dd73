"""What is known of a dataset before anything runs: from its files where they are present, else from the catalogue.

Files are listed. Nothing is made, downloaded or decoded.
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
"""Folders that hold datasets: the data root, and where `datasets` keeps what it fetches from the Hub."""


@dataclass(frozen=True)
class DiskUse:
    """Something that takes room on disk."""

    name: str
    folder: str = DATA
    """The folder that holds it: :data:`DATA`, :data:`HUB`, or another of the suite's."""
    present: int | None = 0
    """Bytes that are present; None if it is present and was not measured."""
    to_come: int | None = 0
    """Bytes that it will take more; None if nothing says."""
    paths: tuple[Path, ...] = ()
    """Folders that it fills: what lies within another dataset's is counted with that. If empty, it is counted always."""

    @classmethod
    def dataset(cls, name: str, whole: bool, size: int | None, gigabytes: float | None, *paths: Path) -> "DiskUse":
        """Return the room of a dataset: ``size`` bytes if it is ``whole``, else what its authors say, if they do."""
        if whole:
            return cls(name, DATA, size, 0, paths)
        if gigabytes is None:
            return cls(f"{name} (size unknown)", DATA, 0, None, paths)
        return cls(f"{name} (as published)", DATA, 0, int(gigabytes * 1e9), paths)


@dataclass(frozen=True)
class Survey:
    """What a plan needs to know of a dataset."""

    name: str
    images: Mapping[str, int]
    """Images of every split: listed, else as published. A split of which nothing is known is left out."""
    problems: Mapping[str, str]
    """By split why it cannot be used now; a split that can is left out."""
    classes: int
    """Classes: listed, else as published; 0 if nothing is known."""
    disk: tuple[DiskUse, ...]
    """Its files, and those of the datasets whose images it is about."""
    made: bool
    """Whether the suite makes it when it is first used."""
    known: str
    """Its name in the catalogue; empty if it is not known."""


def survey_splits(recipe: DatasetRecipe, workspace: "Workspace", size: Callable[[Any], int]) -> Survey:
    """Return what is known of a dataset to train on; ``size`` gives the bytes of a split."""
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
                raise UserError(f"{name}: built when it is first used.")
            opened[split] = offline.open(recipe, split)
            images[split] = len(opened[split])
        except UserError as error:
            to_fetch = f"not at {path}{', to be fetched from the Hub' if hub else ''}"
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
