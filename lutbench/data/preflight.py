"""What is looked at in a dataset before a run on it: a sample of its images, and the files that its listing passed over.

A run on images that are blank, cut off or left out gives numbers like any other. So what would spoil all of them stops it, and
what concerns some is said in the terminal.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.catalogue import made_by_suite
from lutbench.data.decoding import lacks_end
from lutbench.data.images import UndecodableImage, is_streamed
from lutbench.data.walking import PassedOver, evenly_spaced, in_threads
from lutbench.errors import UserError, listed
from lutbench.train.processes import accelerator

if TYPE_CHECKING:
    from lutbench.run import Run

SAMPLE = 64
"""Images that are looked at, evenly spaced: 1,000 photographs of 500 x 375 pixels take a fifth of a second on two cores."""

ONE_COLOUR = 8
"""An image is nearly of one colour if no channel has a wider range, of 255: about what JPEG makes of a plain area."""

SPECKS = 1000
"""One in so many pixels, the darkest and the brightest of a channel, does not count for its range, nor does a single one."""

MOST = 0.9
"""Share of the images looked at that are nearly of one colour, or cut off, from which a run stops (our choice)."""

OF_CLASS = 4
"""Images of every class, evenly spaced, that are looked at until one can be decoded, where undecodable ones are skipped."""

USED_BITS = 14
"""A range of 16 bits of which no more are used makes white a dark grey, a quarter of what it could be."""

UNREAD = {
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".svg", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
}  # fmt: skip
"""Endings of images that are not read, some of them depending on the Pillow that is installed."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM")
"""Formats that are recognised in a file whose name does not say what it is."""


class Look(NamedTuple):
    """What one image looks like."""

    name: str
    fault: str = ""
    """Why it cannot be decoded; empty if it can."""
    greatest: int = -1
    """The greatest value in an image of one channel of more than 8 bits; -1 for others."""
    deep: bool = False
    """Whether it has colours of 16 bits, of which Pillow reads the upper 8."""
    blank: bool = False
    """Whether it is nearly of one colour when decoded; or nearly black, of colours of 16 bits."""
    transparent: bool = False
    cut: bool = False
    """Whether its file ends before the image does, see :func:`lutbench.data.decoding.lacks_end`."""


def preflight(run: "Run[Any]", *datasets: Any, bits_can_be_set: bool = True, by_class: bool = False) -> None:
    """Look at datasets before a run on them; print, once for a command, what the user should know.

    ``datasets`` are an :class:`ImageDataset` or a :class:`SegmentationDataset` each, of the run's recipe. What the suite made itself is
    as it should be, and not looked at, and a plan decodes nothing. With ``by_class`` some of every class are looked at where undecodable images are skipped.

    Raises:
        UserError: as :func:`check_images` and :func:`check_classes`.
    """
    workspace = run.workspace
    if not workspace.download:  # a command that only looks
        return
    if accelerator().is_main_process and not made_by_suite(run.recipe.dataset, workspace.data):
        for dataset in datasets:
            skips = getattr(dataset, "skip_undecodable", False)
            where = getattr(dataset, "folder", dataset.name), dataset.split  # two folders may have one fingerprint
            parts: list[Callable[[], Iterable[str]]] = [
                partial(passed_over, _files_of(dataset)),
                partial(check_images, dataset, bits_can_be_set),
            ]
            parts += [partial(check_classes, dataset)] if by_class and skips else []
            for number, part in enumerate(parts):
                workspace.look(f"{dataset.fingerprint} {where} {skips} {number}", part)
    accelerator().wait_for_everyone()


def _files_of(dataset: Any) -> Any:
    """Return what lists the files of a dataset: the split that it is a part of, where it is one."""
    while hasattr(dataset, "whole"):
        dataset = dataset.whole
    return dataset


def check_images(images: Any, bits_can_be_set: bool = True) -> list[str]:
    """Decode a sample of a dataset's images; return what is noteworthy, a sentence each.

    Raises:
        UserError: if an image cannot be decoded and the dataset does not skip those; if nearly all are of one colour or cut off; or
            if they have more than 8 bits, use a small part of that range, and the recipe does not say which.
    """
    skips, looks = bool(getattr(images, "skip_undecodable", False)), list(_looks(images))
    return [
        *_undecodable(images, looks, skips),
        *_deep(images, looks, bits_can_be_set),
        *_cut(images, looks),
        *_blank(images, looks),
    ]


def check_classes(images: Any) -> Iterator[str]:
    """Yield what to say of the classes of a labelled dataset of which, of a sample of :data:`OF_CLASS`, no image can be decoded.

    Raises:
        UserError: if that leaves fewer than two classes: there would be nothing to tell apart.
    """
    order = np.argsort(images.labels, kind="stable")
    own = np.split(order, np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))[:-1])
    present = [label for label, indices in enumerate(own) if len(indices)]

    def found(label: int) -> bool:
        sample = own[label][evenly_spaced(len(own[label]), OF_CLASS)].tolist()
        return any(not _look(images, index).fault for index in sample)

    title = f"looking at the classes of {images.name} {images.split}"
    lost = [images.classes[k] for k, one in zip(present, in_threads(found, present, title), strict=True) if not one]
    if not lost:
        return
    said = (
        f"{images.name}: of {len(lost):,} of {len(present):,} classes of split {images.split!r} no image that was looked at can be decoded: "
        f"{listed(lost)}."
    )
    if len(present) - len(lost) < 2:
        raise UserError(f"{said} What is left is of one class, and every answer would be right. Restore the others.")
    yield f"{said} They are passed over."


def passed_over(images: Any) -> Iterator[str]:
    """Yield what to say of files of a folder that are images and were not listed: by their names, or by how they begin."""
    passed = getattr(images, "passed_over", PassedOver())
    found = {}
    for ending, count in passed.counts.items():
        named = ending in UNREAD
        if named or any(_is_image(images.folder / name) for name in passed.names[ending]):
            why = "which Pillow does not read here" if named else "which are images by their first bytes"
            found[ending] = (
                f"{count:,} that {f'end in {ending}' if ending else 'have no ending'}, {why} ({passed.names[ending][0]})"
            )
    if found:
        many = sum(passed.counts[ending] for ending in found)
        yield (
            f"{images.name}: split {images.split!r} has {len(images):,} images, and {many:,} other files in its folder are left out: "
            f"{listed(found.values())}. Convert them, or give them the ending of their format, if they belong to it."
        )


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # of whatever the file holds instead
        return False


def _looks(images: Any) -> Iterator[Look]:
    if is_streamed(images):
        return iter([_look(images, index, content) for index, content in enumerate(images.first_contents(SAMPLE))])
    indices = evenly_spaced(len(images), SAMPLE).tolist()
    return in_threads(lambda index: _look(images, index), indices, f"looking at {images.name} {images.split}")


def _look(images: Any, index: int, content: bytes | None = None) -> Look:
    name = images.image_name(index)
    try:
        stored = images.content(index) if content is None else content
        image = images.image(index) if content is None else images.decoded(index, content)
    except UndecodableImage as error:
        return Look(name, fault=str(error))
    low, high = _range(image)
    with Image.open(BytesIO(stored)) as opened:
        deep = opened.mode == "RGB" and any(";16" in str(tile) for tile in opened.tile)
        transparent = opened.has_transparency_data
        greatest = int(np.asarray(opened).max()) if opened.mode.startswith("I") else -1
        cut = lacks_end(stored, opened.format)
    dark = deep and int(high.max()) >> (USED_BITS - 8) == 0
    return Look(name, "", greatest, deep, dark or int((high - low).max()) <= ONE_COLOUR, transparent, cut)


def _range(image: Image.Image) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the least and greatest value (3,) of each channel of an RGB image, :data:`SPECKS` left out."""
    counts = np.array(image.histogram()).reshape(3, 256)
    left_out = max(1, image.width * image.height // SPECKS)
    low, high = ((np.cumsum(one, axis=1) > left_out).argmax(1) for one in (counts, counts[:, ::-1]))
    return low, 255 - high


def _undecodable(images: Any, looks: list[Look], skips: bool) -> Iterator[str]:
    faults = [look for look in looks if look.fault]
    if not faults:
        return
    many = f"{images.name}: {len(faults)} of {len(looks)} images of split {images.split!r} that were looked at cannot be decoded"
    if not skips or len(faults) == len(looks):
        others = f" Others: {listed(look.name for look in faults[1:])}." if faults[1:] else ""
        raise UndecodableImage(f"{many}. {faults[0].fault}{others}")
    yield f"{many}, and are passed over: {listed(look.name for look in faults)}."


def _deep(images: Any, looks: list[Look], bits_can_be_set: bool) -> Iterator[str]:
    deep = [look for look in looks if look.greatest >= 0]
    if not deep:
        return
    brightest = max(deep, key=lambda look: look.greatest)
    used, given = max(8, brightest.greatest.bit_length()), getattr(images, "bits", None)
    found = (
        f"{images.name}: {len(deep)} of {len(looks)} images of split {images.split!r} that were looked at have more than 8 bits, and their "
        f"greatest value is {brightest.greatest:,} ({brightest.name}), of {used} bits"
    )
    if given is not None:
        if used > given:
            yield f"{found}: what is above the {given} bits that are set becomes white."
    elif used > 16:
        raise UserError(
            f"{found}, where 16 are read: what is above would all be white. Convert the images to 8 or 16 bits."
        )
    elif used <= USED_BITS:
        advice = (
            f"Set bits = {used} in the data table of the suite file, or"
            if bits_can_be_set
            else "Convert them to 8 bits:"
        )
        rest = (
            " bits = 16 if they are meant to be as dark as that."
            if bits_can_be_set
            else " of 16 bits the upper 8 are kept."
        )
        raise UserError(f"{found}: read as 16 bits they would be nearly black. {advice}{rest}")


def _cut(images: Any, looks: list[Look]) -> Iterator[str]:
    cut = [look.name for look in looks if look.cut]
    if not cut:
        return
    found = (
        f"{images.name}: {len(cut)} of {len(looks)} images of split {images.split!r} that were looked at are cut off, though they can be "
        f"decoded: their files lack the end, and what is missing is black or grey: {listed(cut)}."
    )
    if len(cut) >= MOST * len(looks):
        raise UserError(f"{found} Copy, unpack or download them again.")
    yield f"{found} Was the disk full, or a download interrupted? Get them again."


def _blank(images: Any, looks: list[Look]) -> Iterator[str]:
    decoded = [look for look in looks if not look.fault]
    blank = [look for look in decoded if look.blank]
    if not blank:
        return
    causes: dict[str, Callable[[Look], bool]] = {
        "They have transparency, which is laid on white: is what they show in it alone?": lambda look: look.transparent,
        "They have colours of 16 bits, of which Pillow reads the upper 8, and use the lower ones: convert them to 8 bits.": lambda look: (
            look.deep
        ),
    }
    cause = next((text for text, holds in causes.items() if all(map(holds, blank))), "")
    found = (
        f"{images.name}: {len(blank)} of {len(decoded)} images of split {images.split!r} that were looked at are nearly of one colour: "
        f"{listed(look.name for look in blank)}.{f' {cause}' if cause else ''}"
    )
    if len(blank) >= MOST * len(decoded):
        raise UserError(
            f"{found} There is nothing to learn from such images. Look at them: are they the ones that are meant?"
        )
    yield f"{found} Are they meant to be?"
