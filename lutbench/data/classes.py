"""The classes of a training split and of what is measured: train's define the labels, and val has no others.

Names are compared in Unicode's composed form (NFC): archives of macOS unpack ``é`` as two characters, others as one.
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
"""Images, evenly spaced, whose bytes tell whether train and val are the same."""


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def check_pair(train: "ImageDataset", val: "ImageDataset") -> None:
    """Check that a classifier can be trained on ``train`` and measured on ``val``, which may lack some of the classes.

    Raises:
        UserError: if one has no labels, a class twice, or val images of a class that train does not have; or if all images of
            train are of one class.
    """
    for images in (train, val):
        if images.labels is None:
            raise UserError(
                f"{images.name}: split {images.split!r} has no labels, and classification needs them. Sort its images "
                "into class folders, or name the label column of a Hugging Face set with label_column."
            )
        times = Counter(map(composed, images.classes))
        if twice := [name for name, count in times.items() if count > 1]:
            raise UserError(
                f"{images.name}: split {images.split!r} has two classes of one name, written with different characters of Unicode "
                f"for the same letters: {listed(twice)}. Put the images of both into one folder, or rename one."
            )
    known, measured = set(map(composed, train.classes)), set(map(composed, val.classes))
    others = [name for name in _with_images(val) if composed(name) not in known]
    if others:
        lacking = [name for name in train.classes if composed(name) not in measured]
        differences = [f"only in train: {listed(lacking)}"] if lacking else []
        raise UserError(
            f"{train.name}: train and val must have the same classes, of which val may lack some, but train "
            f"has {len(train.classes):,} and val {len(val.classes):,}; {'; '.join([*differences, f'only in val: {listed(others)}'])}."
            f"{_alike(others, train.classes)}{_wrapped(val)}{_wrapped(train)} Was one of them unpacked incompletely, or is it another set's?"
        )
    if len(present := _with_images(train)) < 2:
        raise UserError(
            f"{train.name}: all {len(train):,} images of split {train.split!r} are of one class, {listed(map(repr, present))}: there is "
            f"nothing to learn, and every answer would be right.{_wrapped(train)}{_wrapped(val)} Classification needs two classes or more."
        )


def class_notes(train: "ImageDataset", val: "ImageDataset") -> Iterator[str]:
    """Yield what the user should know of the classes of two splits that :func:`check_pair` accepts."""
    present = set(map(composed, _with_images(val)))
    if lacking := [name for name in train.classes if composed(name) not in present]:
        yield (
            f"{val.name}: val has no image of {len(lacking):,} of the {len(train.classes):,} classes of train, and what is measured says "
            f"nothing of them: {listed(lacking)}."
        )
    present = set(_with_images(train))
    if lacking := [name for name in train.classes if name not in present]:
        yield f"{train.name}: train has no image of {len(lacking):,} of its {len(train.classes):,} classes: {listed(lacking)}."
    if pairs := list(_pairs_alike(train.classes)):
        yield f"{train.name}: classes whose names differ only in case or space: {listed(pairs)}. Are they two?"
    yield from filter(None, map(_all_wrapped, (train, val)))
    if train.fingerprint == val.fingerprint and _same_bytes(train, val):
        yield f"{train.name}: train and val are the same images: what is measured is how well they are remembered."


def _same_bytes(train: "ImageDataset", val: "ImageDataset") -> bool:
    """Return whether a sample of the images is equal: a fingerprint is over names and sizes, which files of raw pixels share."""
    return all(train.content(index) == val.content(index) for index in evenly_spaced(len(train), COMPARED).tolist())


def _with_images(images: "ImageDataset") -> list[str]:
    """Return the names of the classes that an image is of."""
    assert images.labels is not None
    return [images.classes[label] for label in np.unique(images.labels).tolist()]


def _bare(name: str) -> str:
    """Return a name without case, space and compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _alike(others: Iterable[str], known: Iterable[str]) -> str:
    """Return a sentence about names that differ from a known one only in case, space or form; empty if there is none."""
    bare = {_bare(name): name for name in known}
    pairs = [f"{name!r} is {bare[_bare(name)]!r}" for name in others if _bare(name) in bare]
    return f" But for case or space {listed(pairs)}: rename one." if pairs else ""


def _pairs_alike(names: Iterable[str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(_bare(name), name)
        if other != name:
            yield f"{other!r} and {name!r}"


def _all_wrapped(images: Any) -> str:
    """Return a sentence on class folders that all hold folders of the same names, which may be the classes; empty if they do not.

    The first and last image of every class tell: names are sorted.
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
        f"{images.name}: every class folder of split {images.split!r} holds folders of the same names, {first} to {last}, and counts as "
        f"one class. If these are the classes, bring them together in one folder and name that, or name one such as {images.split} = "
        f'"{images.folder.name}/{images.classes[0]}".'
    )


def _wrapped(images: Any) -> str:
    """Return the likely setting where the one class folder of a split holds folders, which may be the classes."""
    if len(images.classes) != 1 or not hasattr(images, "folder"):
        return ""
    parts = (images.image_name(index).split("/") for index in range(len(images)))
    inner = sorted({part[1] for part in parts if len(part) > 2})
    if not inner:
        return ""
    here = f"{images.folder.name}/{images.classes[0]}"
    return f' {here} holds the folders {listed(inner)}: if these are the classes, set {images.split} = "{here}".'
