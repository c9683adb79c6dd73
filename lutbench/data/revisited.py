"""Open revisited Oxford and Paris: a database of photographs, queries with boxes, and the correct images for each query.

Layout as published: ``jpg/NAME.jpg`` and a pickle with ``imlist`` and ``qimlist`` (names without suffix) and ``gnd``: for each query
its box ``bbx`` and the indices in ``imlist`` that are ``easy``, ``hard`` and ``junk``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import Pixels
from lutbench.data.folder import FolderImages, fingerprint_of
from lutbench.data.plain_pickle import read_plain_pickle
from lutbench.data.survey import Survey, survey_splits
from lutbench.data.walking import evenly_spaced, explained
from lutbench.errors import UserError, listed
from lutbench.recipes.retrieval import RevisitedDataRecipe

if TYPE_CHECKING:
    from lutbench.workspace import Workspace

RELATIONS = ("easy", "hard", "junk")
"""The lists of database images that each query has."""

SOURCE = "http://cmp.felk.cvut.cz/revisitop"
"""Web address of the published lists."""


@dataclass
class RevisitedImages(FolderImages):
    """The database, or the queries, which are cropped to their boxes."""

    boxes: NDArray[np.float64] | None = field(default=None, repr=False)
    """(n, 4) Left, top, right and bottom in pixels of the query object in each image; None for the database."""
    relations: tuple[dict[str, NDArray[np.int64]], ...] = field(default=(), repr=False)
    """For each query the indices in the database, by :data:`RELATIONS`; empty for the database."""

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB, cropped to its box if it has one. Raises the same errors as :meth:`FolderImages.image`."""
        image = super().image(index)
        return image if self.boxes is None else image.crop(tuple(self.boxes[index].tolist()))

    def pixels(self, index: int) -> Pixels:
        """Decode an image to the pixels (H, W, 3) of :meth:`image`."""
        return super().pixels(index) if self.boxes is None else np.array(self.image(index))


class Lists(NamedTuple):
    """Content of the published pickle."""

    database: list[str]
    queries: list[str]
    boxes: NDArray[np.float64]
    """(q, 4)"""
    relations: tuple[dict[str, NDArray[np.int64]], ...]


def open_dataset(recipe: RevisitedDataRecipe, split: str, root: Path) -> RevisitedImages:
    """List the ``database`` or the ``queries`` below the data root. No image is decoded.

    Raises:
        UserError: if folder or lists are missing, the lists are not as published, or listed images are missing.
    """
    name, folder = recipe.label or recipe.source, (root / recipe.folder).absolute()
    if not folder.is_dir():
        raise UserError(
            f"{name}: expected its folder at {folder}, which does not exist. Set --data-root to the folder that holds your datasets; "
            f"`lutbench data list {recipe.source}` shows how to get it."
        )
    lists = read_lists(folder / recipe.lists, name)
    lists = lists if recipe.few is None else few_lists(lists, recipe.few)
    files = lists.database if split == "database" else lists.queries
    sizes = _sizes(folder / "jpg", files, name, split)
    names = [os.fsencode(f"{file}.jpg") for file in files]
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    queries = split == "queries"
    parts = [] if not queries else [one for found in lists.relations for one in found.values()]
    return RevisitedImages(
        name=name,
        split=split,
        folder=folder / "jpg",
        classes=(),
        labels=None,
        skip_undecodable=False,
        fingerprint=fingerprint_of(
            [split],
            b"".join(names),
            lengths,
            sizes,
            *parts,
            *([lists.boxes.astype("<f8").tobytes()] if queries else []),
        ),
        names=b"".join(names),
        ends=np.cumsum(lengths),
        sizes=sizes,
        boxes=lists.boxes if queries else None,
        relations=lists.relations if queries else (),
    )


def read_lists(path: Path, name: str) -> Lists:
    """Return the published lists from a pickle, without running any code in it.

    Raises:
        UserError: if it is missing or has other content.
    """
    if not path.is_file():
        raise UserError(
            f"{name}: {path} is missing. It lists the queries and their correct images. It is published separately from the photographs: download "
            f"{SOURCE}/data/datasets/{path.stem.removeprefix('gnd_')}/{path.name} and put it there."
        )
    content = read_plain_pickle(path)
    try:
        database, queries = (_names(content[key]) for key in ("imlist", "qimlist"))
        boxes = np.array([np.asarray(one["bbx"], np.float64) for one in content["gnd"]], np.float64)
        relations = tuple({key: _places(one[key], len(database)) for key in RELATIONS} for one in content["gnd"])
        if not len(queries) == len(relations) == len(boxes) > 0 or boxes.shape[1:] != (4,) or not database:
            raise ValueError(f"{len(queries)} queries, {len(relations)} lists and boxes of shape {boxes.shape}")
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any() or np.abs(boxes).max() > 2**16:
            raise ValueError("a box has no area")
        for query, found in zip(queries, relations, strict=True):
            if len(np.unique(np.concatenate([*found.values()]))) != sum(map(len, found.values())):
                raise ValueError(f"an image is in two lists of {query}")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{name}: {path}: expected the published lists (imlist, qimlist and gnd with bbx, easy, hard and junk), but {what}. "
            f"Download it again from {SOURCE}."
        ) from error
    return Lists(database, queries, boxes, relations)


def few_lists(lists: Lists, few: int) -> Lists:
    """Return the lists for about ``few`` queries and database images: the correct images of these queries, then the first others."""
    queries = evenly_spaced(len(lists.queries), max(1, few // 8)).tolist()
    sought = [
        place for query in queries for found in lists.relations[query].values() for place in found[: few // 8].tolist()
    ]
    kept = sorted(list(dict.fromkeys([*sought, *range(len(lists.database))]))[:few])
    new_place = {old: new for new, old in enumerate(kept)}
    return Lists(
        [lists.database[place] for place in kept],
        [lists.queries[query] for query in queries],
        lists.boxes[queries],
        tuple(
            {
                key: np.array([new_place[place] for place in found.tolist() if place in new_place], np.int64)
                for key, found in lists.relations[query].items()
            }
            for query in queries
        ),
    )


def _names(given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(name, str) and name and "\0" not in name for name in given):
        raise ValueError("a name is not text")
    if any(name.startswith("/") or ".." in name.split("/") for name in given):
        raise ValueError("a name points outside the folder jpg")
    if len(set(given)) != len(given):
        raise ValueError("a name appears twice")
    return given


def _places(given: Any, database: int) -> NDArray[np.int64]:
    """Return listed indices in the database; they may have any numeric type, and empty lists have none."""
    found = np.asarray(given)
    whole = found.astype(np.int64)
    if (
        found.ndim != 1
        or not np.array_equal(found, whole)
        or (len(whole) and not 0 <= whole.min() <= whole.max() < database)
    ):
        raise ValueError(f"an index is not in 0 to {database - 1}")
    return whole


@explained()
def _sizes(folder: Path, files: Sequence[str], name: str, split: str) -> NDArray[np.int64]:
    sizes = [path.stat().st_size if (path := folder / f"{file}.jpg").is_file() else -1 for file in files]
    missing = [f"{file}.jpg" for file, size in zip(files, sizes, strict=True) if size < 0]
    if missing:
        raise UserError(
            f"{name}: {len(missing):,} of the {len(files):,} images listed for its {split} are missing in {folder}: "
            f"{listed(missing)}. Unpack the photographs completely, all into this folder."
        )
    return np.array(sizes, np.int64)


def survey(recipe: RevisitedDataRecipe, workspace: "Workspace") -> Survey:
    """Return what is known about a dataset before a run."""
    return survey_splits(recipe, workspace, lambda images: int(images.sizes.sum()))


def needs(recipe: RevisitedDataRecipe, root: Path) -> dict[str, Path]:
    """Return the files and folders that the dataset needs, by their names in messages."""
    return {part: root / recipe.folder / part for part in ("jpg", recipe.lists)}


def built_by(recipe: RevisitedDataRecipe) -> None:
    """Return the builder of a dataset: always None, it cannot be built."""


def few_files(recipe: RevisitedDataRecipe, root: Path) -> list[Path]:
    """Return the folder of a dataset if it exists, for smoke runs."""
    whole = root / recipe.folder
    return [whole] if whole.exists() else []


def write_miniature(recipe: RevisitedDataRecipe, root: Path, side: int, classes: Sequence[str] = ()) -> bool:
    """Write a miniature version of the dataset below ``root``, with images of ``side`` pixels in height."""
    from lutbench.data.toy.miniatures import is_miniature, miniature, write_revisited

    if is_miniature(root / recipe.folder, current=True):
        return False
    with miniature(root / recipe.folder) as home:
        write_revisited(recipe, home, side)
    return True
