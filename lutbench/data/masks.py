"""Whether every mask of a set can be trained on, said before anything is computed.

A value outside the classes stops a GPU hours into training, with a message that does not name the file; a mask of
another size than its image trains on the wrong pixels. So every mask is decoded, and every image's header read, once.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from lutbench.data.progress import tracked
from lutbench.data.scenes import Scenes, opened, opened_mask
from lutbench.errors import UserError, listed
from lutbench.files import NotJsonError, read_json, write_json

REVISION = 1
"""Of the check: raised when it looks for more, so that older stamps no longer count."""

ENOUGH = 5
"""Faulty masks after which a check stops."""


@dataclass(frozen=True)
class Inspected:
    """What was found in one mask."""

    pixels: NDArray[np.int64]
    """(256,) pixels of every value; zeros if it cannot be read."""
    fault: str = ""
    """Why it cannot be trained on; empty if it can."""


def check_masks(scenes: Scenes, stamps: Path | None = None) -> list[str]:
    """Decode every mask and read every image's header; returns the classes of which no mask has a pixel.

    With ``stamps`` the outcome is kept in that folder, and a set that is there by its fingerprint is not read again.
    For one process: let the others wait.

    Raises:
        UserError: if a mask cannot be read, is not one channel of 8 bits, has a value that is no class, or differs in
            size from its image; names the first files, what was found and what was expected.
    """
    stamp = stamps / f"masks-{scenes.fingerprint[:16]}.json" if stamps else None
    key = {"check": REVISION, "fingerprint": scenes.fingerprint}
    known = _read_stamp(stamp) if stamp else {}
    if key.items() <= known.items():
        absent: list[str] = known["absent"]
        return absent
    pixels, faults = inspect_masks(scenes, range(len(scenes)))
    if faults:
        raise UserError(explain_faults(scenes, faults))
    absent = [name for name, count in zip(scenes.classes, pixels, strict=False) if not count]
    if stamp:
        write_json(stamp, {**key, "set": scenes.name, "split": scenes.split, "masks": len(scenes), "absent": absent})
    return absent


def inspect_masks(scenes: Scenes, indices: Sequence[int]) -> tuple[NDArray[np.int64], list[str]]:
    """The pixels (C,) of every class in some of the masks, and what is wrong with the first faulty ones."""
    found = np.zeros(256, np.int64)
    faults: list[str] = []
    for mask in tracked(
        _inspected(scenes, indices), len(indices), f"checking the masks of {scenes.name} {scenes.split}"
    ):
        found += mask.pixels
        faults += [mask.fault] if mask.fault else []
        if len(faults) == ENOUGH:
            break
    first = int(scenes.reduce_zero_label)
    return found[first : first + len(scenes.classes)], faults


def explain_faults(scenes: Scenes, faults: list[str]) -> str:
    """One paragraph about the masks that cannot be trained on."""
    stopped = " The check stopped there; there may be more." if len(faults) == ENOUGH else ""
    return (
        f"{scenes.name}, split {scenes.split!r}: {len(faults)} of {len(scenes):,} masks cannot be trained on. "
        f"{' '.join(faults)}{stopped} The values must be those of the {len(scenes.classes)} classes that are named: are "
        "there more? If one value means no class, set ignore to it; if that is 0, and 1 the first class, set "
        "reduce_zero_label = true."
    )


def _inspected(scenes: Scenes, indices: Sequence[int], at_once: int = 512) -> Iterator[Inspected]:
    """By threads, since Pillow decodes in parallel."""
    expected = _values(scenes)
    with ThreadPoolExecutor() as threads:
        for first in range(0, len(indices), at_once):
            yield from threads.map(lambda index: _inspect(scenes, index, expected), indices[first : first + at_once])


def _values(scenes: Scenes) -> NDArray[np.bool_]:
    """(256,) whether a value may be in a mask file."""
    expected = np.zeros(256, bool)
    expected[: len(scenes.classes) + scenes.reduce_zero_label] = True
    expected[scenes.ignore] = True
    return expected


def _inspect(scenes: Scenes, index: int, expected: NDArray[np.bool_]) -> Inspected:
    path = scenes.mask_path(index)
    try:
        with opened_mask(path) as mask:
            size, pixels = mask.size, np.array(mask.histogram(), np.int64)
        with opened(scenes.image_path(index)) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # OpenCV turns it
            image_size = image.size[::-1] if sideways else image.size
    except UserError as error:
        return Inspected(np.zeros(256, np.int64), str(error))
    fault = ""
    strange = np.flatnonzero((pixels > 0) & ~expected)
    if len(strange):
        values = listed(f"{value} in {pixels[value]:,} pixels" for value in strange)
        fault = f"{path}: expected values {_ranges(expected)}, found {values}."
    elif size != image_size:
        turned = ", its EXIF orientation applied" if sideways else ""
        fault = f"{path}: expected the size of its image, {_by(image_size)}{turned}, found {_by(size)}."
    return Inspected(pixels, fault)


def _ranges(expected: NDArray[np.bool_]) -> str:
    """Such as ``0 to 10 and 255``."""
    values = np.flatnonzero(expected)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return " and ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp: dict[str, Any] = read_json(path)
    except (FileNotFoundError, NotJsonError):
        return {}
    return stamp
