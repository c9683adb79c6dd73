"""Subsets of a training split: a number of images per class, a share of each class, or the images in a list file.

The selection depends only on the number of the draw and the class, so it is the same for every method and seed. Subsets of a draw are
nested: its two shots include its one shot, and its 10 % include its 1 %.
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
    """A subset of the images of a split, in the same order and with the same names and classes."""

    whole: "ImageDataset"
    index: NDArray[np.int64]
    """(n,) Ascending indices in the whole split."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    fingerprint: str
    skip_undecodable: bool

    def __len__(self) -> int:
        return len(self.index)

    @property
    def name(self) -> str:
        """Name of the whole dataset in messages."""
        return self.whole.name

    @property
    def split(self) -> str:
        """Name of the whole split, ``train``."""
        return self.whole.split

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of every encoded image."""
        return self.whole.sizes[self.index]

    @property
    def bits(self) -> int | None:
        """Bit depth of images with more than 8 bits, if set."""
        return getattr(self.whole, "bits", None)

    def at(self, index: NDArray[np.int64]) -> Self:
        """Return the part of the subset with the ascending indices ``index`` (n,); all classes are kept."""
        whole: Any = self.whole
        return replace(
            self,
            whole=whole.at(self.index[index]),
            index=np.arange(len(index)),
            labels=None if self.labels is None else self.labels[index],
            fingerprint=fingerprint_of([*self.classes], self.fingerprint.encode(), index),
        )

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB. Raises the same errors as the whole split."""
        return self.whole.image(int(self.index[index]))

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of an image. Raises the same errors as the whole split."""
        return self.whole.pixels(int(self.index[index]))

    def content(self, index: int) -> bytes:
        """Return the encoded image."""
        return self.whole.content(int(self.index[index]))

    def image_name(self, index: int) -> str:
        """Return the name of the image in the whole split."""
        return self.whole.image_name(int(self.index[index]))


def whole_of(images: "ImageDataset") -> "ImageDataset":
    """Return the whole split of a subset; any other dataset unchanged."""
    return images.whole if type(images) is SubsetImages else images


def restricted(images: "ImageDataset", chosen: TrainingSubset, root: Path, few: int | None = None) -> SubsetImages:
    """Return the subset ``chosen`` of a training split, or a ``few`` images of it. Its fingerprint depends on the selected images.

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
    """Return the ascending indices (n,) of the subset ``chosen`` of a training split; list files are below the data root ``root``.

    A share selects at least one image of every class that has images.

    Raises:
        UserError: if the split has no labels, a class has fewer images than ``shots``, or the list is missing, is empty, or names images
            that are not in the split.
    """
    if images.labels is None:
        raise UserError(
            f"{images.name}: split {images.split!r} has no labels, but shots and share select images per class. Put its images "
            "into class folders, or set label_column to the label column of a Hugging Face dataset."
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
        others = f" {len(fewer) - 1:,} other classes also have fewer than {shots}." if len(fewer) > 1 else ""
        raise UserError(
            f"shots = {shots}: class {images.classes[least]!r} of {images.name} has only {counts[least]} images in split {images.split!r}. "
            f"Lower shots to {counts[least]}, or use share = 0.1 instead.{others}"
        )


def _listed_images(images: "ImageDataset", path: Path) -> NDArray[np.int64]:
    """Return the indices of the listed images: by path below the split's folder, or, for names without a slash, by file name."""
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
            f"{path}: {len(twice):,} of its {len(wanted):,} names match several images of {images.name}, such as {first!r}: "
            f"{both}. Write them with the class folder: CLASS/{first}."
        )
    if lacking := sorted(wanted - found.keys()):
        classes = {name.partition("/")[0] if "/" in name else name.partition("_")[0] for name in lacking}
        others = sorted(classes - set(images.classes)) if classes & set(images.classes) or _are_ids(images) else []
        of = f" They belong to {len(others):,} classes that it does not have: {listed(others)}." if others else ""
        raise UserError(
            f"{path}: {len(lacking):,} of its {len(wanted):,} names are not in split {images.split!r} of {images.name}, such as "
            f"{lacking[0]!r}.{of} The split's images have names like {images.image_name(0)!r}. Check that the dataset is complete and "
            "that the list belongs to it."
        )
    return np.sort(np.fromiter(set(found.values()), np.int64))


def _are_ids(images: "ImageDataset") -> bool:
    """Return whether file names begin with the class, as in ImageNet: ``n01440764/n01440764_10026.JPEG``."""
    name = images.image_name(0).rpartition("/")[2]
    return name.partition("_")[0] in images.classes


def _names_in(path: Path) -> set[str]:
    """Return the names in a list file, one per line.

    Raises:
        UserError: if the file does not exist, is not text, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"subset: the list {path.absolute()} does not exist; expected it below the data root (--data-root). SimCLR's lists for ImageNet are "
            "imagenet_subsets/1percent.txt and 10percent.txt in its repository, google-research/simclr. Without a list, use "
            "share = 0.01, which draws the same number of images."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"subset: {path.absolute()} cannot be read: {why}. Expected one image name per line."
        ) from error
    if not (names := {line.strip() for line in lines} - {""}):
        raise UserError(f"subset: {path.absolute()} is empty. Expected one image name per line.")
    return names


def restricted_survey(survey: Survey, recipe: RunRecipe, workspace: "Workspace", table: str) -> Survey:
    """Return the survey of a dataset, with the number of training images that the run reads.

    If the dataset is missing, the number is computed from the published numbers of images and classes, or is the length of the list. If
    the subset cannot be selected, the reason becomes a problem of the split; it names the run's ``table`` in the suite file.
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
