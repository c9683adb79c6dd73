"""Compare the classes of the training and the evaluation split. Those of train define the labels; val must have no others.

Names are compared in Unicode's composed form (NFC), because archives from macOS unpack ``é`` as two characters, others as one.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError, listed

if TYPE_CHECKING:
    from lutbench.data.images import ImageDataset


COMPARED = 64
"""Number of images, evenly spaced, whose bytes are compared to see whether train and val are the same."""


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def check_pair(train: "ImageDataset", val: "ImageDataset") -> None:
    """Check that a classifier can be trained on ``train`` and evaluated on ``val``, which may lack some of the classes.

    Raises:
        UserError: if one has no labels or a class twice, val has a class that train does not have, or all images of train have
            the same class.
    """
    for images in (train, val):
        if images.labels is None:
            raise UserError(
                f"{images.name}: split {images.split!r} has no labels, but classification needs them. Put its images "
                "into class folders, or set label_column to the label column of a Hugging Face dataset."
            )
        times = Counter(map(composed, images.classes))
        if twice := [name for name, count in times.items() if count > 1]:
            raise UserError(
                f"{images.name}: split {images.split!r} has two classes with the same name, written with different Unicode "
                f"characters: {listed(twice)}. Put the images of both into one folder, or rename one."
            )
    known, measured = set(map(composed, train.classes)), set(map(composed, val.classes))
    others = [name for name in _with_images(val) if composed(name) not in known]
    if others:
        lacking = [name for name in train.classes if composed(name) not in measured]
        differences = [f"only in train: {listed(lacking)}"] if lacking else []
        raise UserError(
            f"{train.name}: expected the same classes in train and val (val may lack some), found {len(train.classes):,} in train "
            f"and {len(val.classes):,} in val; {'; '.join([*differences, f'only in val: {listed(others)}'])}."
            f"{_alike(others, train.classes)}{_wrapped(val)}{_wrapped(train)} Is one of them incomplete, or from another dataset?"
        )
    if len(present := _with_images(train)) < 2:
        raise UserError(
            f"{train.name}: all {len(train):,} images of split {train.split!r} have the same class, {listed(map(repr, present))}, but "
            f"classification needs at least two classes.{_wrapped(train)}{_wrapped(val)}"
        )


def class_notes(train: "ImageDataset", val: "ImageDataset") -> Iterator[str]:
    """Yield warnings about the classes of two splits that :func:`check_pair` accepts."""
    present = set(map(composed, _with_images(val)))
    if lacking := [name for name in train.classes if composed(name) not in present]:
        yield (
            f"{val.name}: val has no images of {len(lacking):,} of train's {len(train.classes):,} classes, so these are not "
            f"evaluated: {listed(lacking)}."
        )
    present = set(_with_images(train))
    if lacking := [name for name in train.classes if name not in present]:
        yield f"{train.name}: train has no images of {len(lacking):,} of its {len(train.classes):,} classes: {listed(lacking)}."
    if pairs := list(_pairs_alike(train.classes)):
        yield f"{train.name}: classes whose names differ only in case or spaces: {listed(pairs)}. Are these different classes?"
    yield from filter(None, map(_all_wrapped, (train, val)))
    if train.fingerprint == val.fingerprint and _same_bytes(train, val):
        yield f"{train.name}: train and val contain the same images, so the evaluation measures memorisation."


def _same_bytes(train: "ImageDataset", val: "ImageDataset") -> bool:
    """Return whether a sample of the images is equal; fingerprints (of names and sizes) may be equal for different raw-pixel files."""
    return all(train.content(index) == val.content(index) for index in evenly_spaced(len(train), COMPARED).tolist())


def _with_images(images: "ImageDataset") -> list[str]:
    """Return the names of the classes with at least one image."""
    assert images.labels is not None
    return [images.classes[label] for label in np.unique(images.labels).tolist()]


def _bare(name: str) -> str:
    """Return a name without case, space and compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _alike(others: Iterable[str], known: Iterable[str]) -> str:
    """Return a sentence about names that differ from a known one only in case, spaces or Unicode form; empty if there are none."""
    bare = {_bare(name): name for name in known}
    pairs = [f"{name!r} is {bare[_bare(name)]!r}" for name in others if _bare(name) in bare]
    return f" Apart from case or spaces, {listed(pairs)}: rename one of each." if pairs else ""


def _pairs_alike(names: Iterable[str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(_bare(name), name)
        if other != name:
            yield f"{other!r} and {name!r}"


def _all_wrapped(images: Any) -> str:
    """Return a sentence if all class folders hold subfolders of the same names, which may be the real classes; else empty.

    Only the first and last image of every class are inspected, since names are sorted.
    """
    if len(images.classes) < 2 or not hasattr(images, "folder"):
        return ""
    ends = np.flatnonzero(np.diff(images.labels)).tolist()
    pairs = zip([0, *(end + 1 for end in ends)], [*ends, len(images) - 1], strict=True)
    parts = ([images.image_name(index).split("/") for index in pair] for pair in pairs)
    (first, last), *others = {tuple(part[1] if len(part) > 2 else "" for part in pair) for pair in parts}
    if others or not first or not last or first == last:
        return ""
    return (
        f"{images.name}: every class folder of split {images.split!r} holds subfolders of the same names, {first} to {last}; each class "
        f"folder counts as one class. If the subfolders are the classes, merge them into one folder per class, or select one class folder "
        f'as the split, such as {images.split} = "{images.folder.name}/{images.classes[0]}".'
    )


def _wrapped(images: Any) -> str:
    """Return a suggested setting if the only class folder of a split holds subfolders, which may be the real classes."""
    if len(images.classes) != 1 or not hasattr(images, "folder"):
        return ""
    parts = (images.image_name(index).split("/") for index in range(len(images)))
    inner = sorted({part[1] for part in parts if len(part) > 2})
    if not inner:
        return ""
    here = f"{images.folder.name}/{images.classes[0]}"
    return f' {here} holds the subfolders {listed(inner)}: if these are the classes, set {images.split} = "{here}".'
