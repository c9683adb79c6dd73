"""Check a dataset before a run: decode a sample of its images, and look for image files that were not recognised.

A run on blank, truncated or missing images gives plausible-looking numbers. So a problem with nearly all images stops the run, and a
problem with some images prints a warning.
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
"""Number of images to decode, evenly spaced: 1,000 photographs of 500 x 375 pixels take a fifth of a second on two cores."""

ONE_COLOUR = 8
"""An image counts as nearly uniform if no channel has a wider range of values (of 255), about the range of a JPEG of a plain area."""

SPECKS = 1000
"""One pixel in this many, at least one, is ignored at each end of a channel's range."""

MOST = 0.9
"""A run stops if at least this share of the sample is nearly uniform or truncated (our choice)."""

OF_CLASS = 4
"""Number of images per class, evenly spaced, to try until one can be decoded, if undecodable images are skipped."""

USED_BITS = 14
"""16-bit images that use at most this many bits are too dark: white becomes at most a quarter of full brightness."""

UNREAD = {
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".svg", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
}  # fmt: skip
"""Suffixes of image formats that are not read; some depend on the installed Pillow."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM")
"""Formats that are detected by content in files without a known suffix."""


class Look(NamedTuple):
    """Findings about one image."""

    name: str
    fault: str = ""
    """Why it cannot be decoded; empty if it can."""
    greatest: int = -1
    """The maximum value of a one-channel image with more than 8 bits; -1 for others."""
    deep: bool = False
    """Whether it has 16-bit colours, of which Pillow reads the upper 8 bits."""
    blank: bool = False
    """Whether it is nearly uniform when decoded, or nearly black for 16-bit colours."""
    transparent: bool = False
    cut: bool = False
    """Whether the file is truncated, see :func:`lutbench.data.decoding.lacks_end`."""


def preflight(run: "Run[Any]", *datasets: Any, bits_can_be_set: bool = True, by_class: bool = False) -> None:
    """Check datasets before a run on them; print each warning once per command.

    Each of the ``datasets`` is an :class:`ImageDataset` or a :class:`SegmentationDataset` of the run's recipe. Datasets made by the suite
    are not checked, and a plan decodes nothing. With ``by_class``, some images of every class are checked if undecodable images are skipped.

    Raises:
        UserError: as :func:`check_images` and :func:`check_classes`.
    """
    workspace = run.workspace
    if not workspace.download:  # a command that only reads
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
    """Return the dataset that lists the files: the whole split, if this is a subset of one."""
    while hasattr(dataset, "whole"):
        dataset = dataset.whole
    return dataset


def check_images(images: Any, bits_can_be_set: bool = True) -> list[str]:
    """Decode a sample of a dataset's images; return warnings, one sentence each.

    Raises:
        UserError: if an image cannot be decoded and the dataset does not skip such images; if nearly all are uniform or truncated; if
            they have more than 8 bits but use a small part of that range, and the recipe does not set ``bits``.
    """
    skips, looks = bool(getattr(images, "skip_undecodable", False)), list(_looks(images))
    return [
        *_undecodable(images, looks, skips),
        *_deep(images, looks, bits_can_be_set),
        *_cut(images, looks),
        *_blank(images, looks),
    ]


def check_classes(images: Any) -> Iterator[str]:
    """Yield warnings about classes of which none of :data:`OF_CLASS` sampled images can be decoded.

    Raises:
        UserError: if fewer than two classes are left.
    """
    order = np.argsort(images.labels, kind="stable")
    own = np.split(order, np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))[:-1])
    present = [label for label, indices in enumerate(own) if len(indices)]

    def found(label: int) -> bool:
        sample = own[label][evenly_spaced(len(own[label]), OF_CLASS)].tolist()
        return any(not _look(images, index).fault for index in sample)

    title = f"checking the classes of {images.name} {images.split}"
    lost = [images.classes[k] for k, one in zip(present, in_threads(found, present, title), strict=True) if not one]
    if not lost:
        return
    said = (
        f"{images.name}: split {images.split!r}: none of the sampled images can be decoded in {len(lost):,} of {len(present):,} classes: "
        f"{listed(lost)}."
    )
    if len(present) - len(lost) < 2:
        raise UserError(f"{said} At most one class is left, but classification needs two. Restore the images.")
    yield f"{said} These images are skipped."


def passed_over(images: Any) -> Iterator[str]:
    """Yield warnings about files that are images, by suffix or content, but were not listed."""
    passed = getattr(images, "passed_over", PassedOver())
    found = {}
    for ending, count in passed.counts.items():
        named = ending in UNREAD
        if named or any(_is_image(images.folder / name) for name in passed.names[ending]):
            why = "which the installed Pillow does not read" if named else "but are images by their content"
            found[ending] = (
                f"{count:,} that {f'end in {ending}' if ending else 'have no suffix'}, {why} ({passed.names[ending][0]})"
            )
    if found:
        many = sum(passed.counts[ending] for ending in found)
        yield (
            f"{images.name}: split {images.split!r} has {len(images):,} images; {many:,} other image files in its folder are ignored: "
            f"{listed(found.values())}. If they belong to the dataset, convert them or add the right suffix."
        )


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # other file contents raise many kinds of errors
        return False


def _looks(images: Any) -> Iterator[Look]:
    if is_streamed(images):
        return iter([_look(images, index, content) for index, content in enumerate(images.first_contents(SAMPLE))])
    indices = evenly_spaced(len(images), SAMPLE).tolist()
    return in_threads(lambda index: _look(images, index), indices, f"checking {images.name} {images.split}")


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
    """Return the minimum and maximum (3,) of each channel of an RGB image, without outliers (:data:`SPECKS`)."""
    counts = np.array(image.histogram()).reshape(3, 256)
    left_out = max(1, image.width * image.height // SPECKS)
    low, high = ((np.cumsum(one, axis=1) > left_out).argmax(1) for one in (counts, counts[:, ::-1]))
    return low, 255 - high


def _undecodable(images: Any, looks: list[Look], skips: bool) -> Iterator[str]:
    faults = [look for look in looks if look.fault]
    if not faults:
        return
    many = f"{images.name}: {len(faults)} of {len(looks)} sampled images of split {images.split!r} cannot be decoded"
    if not skips or len(faults) == len(looks):
        others = f" Others: {listed(look.name for look in faults[1:])}." if faults[1:] else ""
        raise UndecodableImage(f"{many}. {faults[0].fault}{others}")
    yield f"{many} and are skipped: {listed(look.name for look in faults)}."


def _deep(images: Any, looks: list[Look], bits_can_be_set: bool) -> Iterator[str]:
    deep = [look for look in looks if look.greatest >= 0]
    if not deep:
        return
    brightest = max(deep, key=lambda look: look.greatest)
    used, given = max(8, brightest.greatest.bit_length()), getattr(images, "bits", None)
    found = (
        f"{images.name}: {len(deep)} of {len(looks)} sampled images of split {images.split!r} have more than 8 bits, with a maximum "
        f"value of {brightest.greatest:,} ({brightest.name}), which is {used} bits"
    )
    if given is not None:
        if used > given:
            yield f"{found}: values above bits = {given} become white."
    elif used > 16:
        raise UserError(
            f"{found}, but at most 16 bits are read: higher values would be white. Convert the images to 8 or 16 bits."
        )
    elif used <= USED_BITS:
        advice = (
            f"Set bits = {used} in the suite file's [data] table, or" if bits_can_be_set else "Convert them to 8 bits:"
        )
        rest = (
            " bits = 16 if the images are really that dark." if bits_can_be_set else " the upper 8 of 16 bits are kept."
        )
        raise UserError(f"{found}: read as 16 bits, they would be nearly black. {advice}{rest}")


def _cut(images: Any, looks: list[Look]) -> Iterator[str]:
    cut = [look.name for look in looks if look.cut]
    if not cut:
        return
    found = (
        f"{images.name}: {len(cut)} of {len(looks)} sampled images of split {images.split!r} are truncated files. They can be decoded, but the "
        f"missing part is black or grey: {listed(cut)}."
    )
    if len(cut) >= MOST * len(looks):
        raise UserError(f"{found} Copy, unpack or download them again.")
    yield f"{found} Was the disk full, or a download interrupted? Download them again."


def _blank(images: Any, looks: list[Look]) -> Iterator[str]:
    decoded = [look for look in looks if not look.fault]
    blank = [look for look in decoded if look.blank]
    if not blank:
        return
    causes: dict[str, Callable[[Look], bool]] = {
        "They are transparent and composited on white; perhaps only the alpha channel has content.": lambda look: (
            look.transparent
        ),
        "They have 16-bit colours but use only the lower bits, and Pillow reads the upper 8: convert them to 8 bits.": lambda look: (
            look.deep
        ),
    }
    cause = next((text for text, holds in causes.items() if all(map(holds, blank))), "")
    found = (
        f"{images.name}: {len(blank)} of {len(decoded)} sampled images of split {images.split!r} are nearly uniform in colour: "
        f"{listed(look.name for look in blank)}.{f' {cause}' if cause else ''}"
    )
    if len(blank) >= MOST * len(decoded):
        raise UserError(f"{found} Nothing can be learned from such images. Open some of them and check the dataset.")
    yield f"{found} Check that this is intended."
