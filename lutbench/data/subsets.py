"""Parts of a training split: so many images of each class, a share of them, or those that a list names.

Which images are drawn depends on the number of the draw and on the class alone, so they are the same for every method and every
seed, and draws nest: the two shots of a draw contain its one shot, and its 10 % its 1 %.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import Pixels
from lutbench.data.few import few_of
from lutbench.data.folder import fingerprint_of
from lutbench.data.survey import Survey
from lutbench.errors import UserError, listed
from lutbench.recipes.base import RunRecipe, TrainingSubset
from lutbench.train.randomness import RngStream, generator

if TYPE_CHECKING:
    from lutbench.data.images import ImageDataset
    from lutbench.workspace import Workspace


@dataclass
class SubsetImages:
    """Some of the images of a split, in its order and under its names, with all of its classes."""

    whole: "ImageDataset"
    index: NDArray[np.int64]
    """(n,) Which of its images these are, ascending."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    fingerprint: str
    skip_undecodable: bool

    def __len__(self) -> int:
        return len(self.index)

    @property
    def name(self) -> str:
        """What messages call the dataset that this is a part of."""
        return self.whole.name

    @property
    def split(self) -> str:
        """The name of the split that this is a part of, ``train``."""
        return self.whole.split

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of every encoded image."""
        return self.whole.sizes[self.index]

    @property
    def bits(self) -> int | None:
        """Bits that are used of pixels of more than 8, where that is set."""
        return getattr(self.whole, "bits", None)

    def at(self, index: NDArray[np.int64]) -> Self:
        """Return the images ``index`` (n,), ascending, of the subset, with all classes; as a part of no more images than these."""
        whole: Any = self.whole
        return replace(
            self,
            whole=whole.at(self.index[index]),
            index=np.arange(len(index)),
            labels=None if self.labels is None else self.labels[index],
            fingerprint=fingerprint_of([*self.classes], self.fingerprint.encode(), index),
        )

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB. Raises as the whole split does."""
        return self.whole.image(int(self.index[index]))

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of an image. Raises as the whole split does."""
        return self.whole.pixels(int(self.index[index]))

    def content(self, index: int) -> bytes:
        """Return an image as it is stored, encoded."""
        return self.whole.content(int(self.index[index]))

    def image_name(self, index: int) -> str:
        """Return the name that the image has in the whole split."""
        return self.whole.image_name(int(self.index[index]))


def whole_of(images: "ImageDataset") -> "ImageDataset":
    """Return the split that few shots, a share or a list are of; of any other dataset itself."""
    return images.whole if type(images) is SubsetImages else images


def restricted(images: "ImageDataset", chosen: TrainingSubset, root: Path, few: int | None = None) -> SubsetImages:
    """Return the images of a training split that are ``chosen``, or a ``few`` of them; their fingerprint tells which they are.

    Raises:
        UserError: as :func:`subset_of`.
    """
    index = subset_of(images, chosen, root)
    assert images.labels is not None
    found = SubsetImages(
        whole=images,
        index=index,
        classes=images.classes,
        labels=images.labels[index],
        fingerprint=fingerprint_of(list(images.classes), images.fingerprint.encode(), index),
        skip_undecodable=images.skip_undecodable,
    )
    return found if few is None else found.at(few_of(found, few))


def subset_of(images: "ImageDataset", chosen: TrainingSubset, root: Path) -> NDArray[np.int64]:
    """Return which images (n,), ascending, of a training split are ``chosen``; a list lies below the data root ``root``.

    Classes without images stay without; of a share at least one image of every other class is chosen.

    Raises:
        UserError: if the split has no labels, a class has fewer images than ``shots``, or the list is absent, names images that the
            split lacks, or none.
    """
    if images.labels is None:
        raise UserError(
            f"{images.name}: split {images.split!r} has no labels, and few shots are so many images of each class. Sort its images "
            "into class folders, or name the label column of a Hugging Face set with label_column."
        )
    if chosen.file:
        return _listed_images(images, root / chosen.file)
    counts = np.bincount(images.labels, minlength=len(images.classes))
    if chosen.shots is not None:
        _check_shots(images, counts, chosen.shots)
        wanted = np.minimum(chosen.shots, counts)
    else:
        assert chosen.share is not None
        wanted = np.minimum(counts, np.maximum(1, np.floor(chosen.share * counts + 0.5).astype(np.int64)))
    order, starts = np.argsort(images.labels, kind="stable"), np.cumsum(counts) - counts
    parts = [
        order[start : start + count][generator(RngStream.SUBSET, chosen.draw, label).permutation(count)[:many]]
        for label, (start, count, many) in enumerate(
            zip(starts.tolist(), counts.tolist(), wanted.tolist(), strict=True)
        )
    ]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def _check_shots(images: "ImageDataset", counts: NDArray[np.int64], shots: int) -> None:
    fewer = np.flatnonzero((counts > 0) & (counts < shots))
    if len(fewer):
        least = int(fewer[counts[fewer].argmin()])
        others = f" {len(fewer) - 1:,} more classes have fewer than {shots}." if len(fewer) > 1 else ""
        raise UserError(
            f"shots = {shots}: class {images.classes[least]!r} of {images.name} has {counts[least]} images in split {images.split!r}. "
            f"Lower shots to {counts[least]}, or give share = 0.1.{others}"
        )


def _listed_images(images: "ImageDataset", path: Path) -> NDArray[np.int64]:
    """Return the images that a list names: by their names below the split's folder or, without a slash, by those of their files."""
    wanted = _names_in(path)
    found: dict[str, int] = {}
    twice: dict[str, str] = {}
    for index in range(len(images)):
        name = images.image_name(index)
        for key in {name, name.rpartition("/")[2]} & wanted:
            if key in found:
                twice.setdefault(key, f"{images.image_name(found[key])} and {name}")
            found[key] = index
    if twice:
        first, both = next(iter(twice.items()))
        raise UserError(
            f"{path}: {len(twice):,} of its {len(wanted):,} names are those of several images of {images.name}, the first {first!r} of "
            f"{both}. Name each with its class folder: CLASS/{first}."
        )
    if lacking := sorted(wanted - found.keys()):
        classes = {name.partition("/")[0] if "/" in name else name.partition("_")[0] for name in lacking}
        others = sorted(classes - set(images.classes)) if classes & set(images.classes) or _are_ids(images) else []
        of = f" They are of {len(others):,} classes that it has not: {listed(others)}." if others else ""
        raise UserError(
            f"{path}: {len(lacking):,} of its {len(wanted):,} names are not in split {images.split!r} of {images.name}, the first "
            f"{lacking[0]!r}.{of} Its images are called {images.image_name(0)!r} and so on. Is the set whole, and is the list its own?"
        )
    return np.sort(np.fromiter(set(found.values()), np.int64))


def _are_ids(images: "ImageDataset") -> bool:
    """Return whether the files of a set are named by their classes, as ImageNet's: ``n01440764/n01440764_10026.JPEG``."""
    name = images.image_name(0).rpartition("/")[2]
    return name.partition("_")[0] in images.classes


def _names_in(path: Path) -> set[str]:
    """Return the names in a list, one a line.

    Raises:
        UserError: if there is no such list, it is no text, or it is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"subset: there is no list {path.absolute()}. It lies below the data root (--data-root); SimCLR's lists of ImageNet are "
            "imagenet_subsets/1percent.txt and 10percent.txt of its repository, google-research/simclr. Without one, "
            "share = 0.01 draws as many."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(
            f"subset: {path.absolute()} cannot be read: {why}. Expected the name of an image a line."
        ) from error
    if not (names := {line.strip() for line in lines} - {""}):
        raise UserError(f"subset: {path.absolute()} is empty. Expected the name of an image a line.")
    return names


def restricted_survey(survey: Survey, recipe: RunRecipe, workspace: "Workspace", table: str) -> Survey:
    """Return what a plan needs to know of a dataset, with as many training images as a run reads.

    Where the dataset is not here they are what its published numbers of images and classes give; of a list its lines. What keeps
    them from being chosen is a problem of the split, which names the run's ``table`` in the suite file.
    """
    chosen = recipe.training_subset
    if chosen is None:
        return survey
    images = dict(survey.images)
    whole = images.pop("train", 0)
    try:
        if "train" not in survey.problems:
            images["train"] = len(workspace.subset(recipe.dataset, chosen))
        elif chosen.file:
            images["train"] = len(_names_in(workspace.data / chosen.file))
        elif survey.classes and whole:
            few = chosen.shots * survey.classes if chosen.shots else round((chosen.share or 1) * whole)
            images["train"] = min(whole, max(few, survey.classes))
    except UserError as error:
        if "train" not in survey.problems:
            problems = {**survey.problems, "train": f"{table}: {error}"}
            return replace(survey, images=images, problems=problems, made=False, known="")
    return replace(survey, images=images)
