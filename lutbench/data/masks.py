"""Check all masks of a segmentation dataset before training.

A mask value outside the classes would crash a GPU hours into training without naming the file, and a mask of another size than its
image would train on wrong pixels. So every mask is decoded, and every image's header read, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from pydantic import BaseModel, ConfigDict

from lutbench.data.scene_folder import SegmentationDataset, opened, opened_mask
from lutbench.data.walking import in_threads
from lutbench.errors import UserError, listed
from lutbench.files import DamagedError, read_sealed, write_sealed

REVISION = 3
"""Revision of the check: raised when the check becomes stricter, so that older results are no longer used."""

ENOUGH = 3
"""The check stops after this many faulty masks."""


class Stamp(BaseModel):
    """Stored result: all masks of a dataset are valid."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    check: int
    fingerprint: str
    set: str
    split: str
    masks: int
    absent: list[str]


@dataclass(frozen=True)
class Inspection:
    """Findings in some of a dataset's masks."""

    scenes: SegmentationDataset
    pixels: NDArray[np.int64]
    """(256,) Number of pixels of every mask value."""
    faults: list[str]
    """Descriptions of the first faulty masks."""

    @property
    def absent(self) -> list[str]:
        """The classes without pixels in any mask."""
        first = int(self.scenes.reduce_zero_label)
        return [name for value, name in enumerate(self.scenes.classes, first) if not self.pixels[value]]

    @property
    def ignored(self) -> str:
        """Share of the ignored pixels by mask value, for messages; empty if none are ignored."""
        values = [0] if self.scenes.reduce_zero_label else []
        shares = {value: self.pixels[value] / max(1, self.pixels.sum()) for value in [*values, self.scenes.ignore]}
        why = {
            0: "reduce_zero_label = true ignores",
            **({self.scenes.ignore: f"ignore = {self.scenes.ignore} ignores"}),
        }
        return listed(
            f"{share:.0%} of the pixels have the value {value}, which {why[value]}"
            for value, share in shares.items()
            if share
        )

    @property
    def lesson(self) -> str:
        """An error text if the masks are useless for training: all valid pixels have one class, or there are none; else empty.

        An evaluation split may have only one class.
        """
        present = [name for name in self.scenes.classes if name not in set(self.absent)]
        if len(present) > (self.scenes.split == "train"):
            return ""
        found = f"all valid pixels have the same class, {present[0]}" if present else "all pixels are ignored"
        ignored = (
            f" {self.ignored}. If one of these values is a class, renumber the mask values from "
            f"{int(self.scenes.reduce_zero_label)}, in the order of classes (for masks with 0 and 255, write 1 instead of 255)."
            if self.ignored
            else ""
        )
        return (
            f"{self.scenes.name}, split {self.scenes.split!r}: the masks in {self.scenes.masks.absolute()} are useless for training and "
            f"evaluation: {found}.{ignored}"
        )

    @property
    def problem(self) -> str:
        """An error text about the faulty masks; empty if there are none."""
        if not self.faults:
            return ""
        names_of: dict[str, list[str]] = {}
        for fault in self.faults:  # several masks may have the same fault
            name, _, text = fault.partition(": ")
            names_of.setdefault(text, []).append(name)
        parts = [
            f"{self.scenes.name}, split {self.scenes.split!r}: faulty masks in {self.scenes.masks.absolute()}:",
            *(f"{', '.join(names)}: {text}" for text, names in names_of.items()),
        ]
        if len(self.faults) == ENOUGH:
            parts.append("The check stopped there; there may be more.")
        if self.pixels[~_expected(self.scenes)].any():
            parts.append(
                f"Mask values must be those of the {len(self.scenes.classes)} classes in the suite file. If there are more classes, add them. If a "
                "value means no class, set ignore to it; if 0 means no class and 1 the first class, set reduce_zero_label = true."
            )
        return " ".join(parts)


LONGEST = 32
"""Maximum aspect ratio of an image: a thinner one would shrink to zero width when resized."""


def check_masks(scenes: SegmentationDataset, stamps: Path | None = None) -> list[str]:
    """Decode every mask and read every image's header; return the classes without pixels in any mask.

    With ``stamps``, the result is stored in that folder, and a dataset with the same fingerprint is not read again.
    Two cores read ADE20K's 22,210 masks in about a minute.

    Raises:
        UserError: if a mask cannot be read, does not have one channel of 1 or 8 bits, has a value outside the classes, differs in size from
            its image, or is too thin; names the first files, what was expected and what was found. Also if all valid pixels have the same
            class, or all pixels are ignored.
    """
    stamp = stamps / f"masks-{scenes.fingerprint[:16]}.json" if stamps else None
    known = _read_stamp(stamp) if stamp else None
    if known and (known.check, known.fingerprint) == (REVISION, scenes.fingerprint):
        return known.absent
    inspection = inspect_masks(scenes, range(len(scenes)))
    if inspection.faults:
        raise UserError(inspection.problem)
    if inspection.lesson:
        raise UserError(inspection.lesson)
    if stamp:
        found = Stamp(
            check=REVISION, fingerprint=scenes.fingerprint,
            set=scenes.name, split=scenes.split, masks=len(scenes), absent=inspection.absent,
        )  # fmt: skip
        write_sealed(stamp, found.model_dump())
    return inspection.absent


def inspect_masks(scenes: SegmentationDataset, indices: Sequence[int]) -> Inspection:
    """Inspect some of the masks; stop after :data:`ENOUGH` faulty ones."""
    pixels = np.zeros(256, np.int64)
    faults: list[str] = []
    expected = _expected(scenes)
    title = f"checking the masks of {scenes.name} {scenes.split}"
    for found, fault in in_threads(lambda index: _inspect(scenes, index, expected), indices, title):
        pixels += found
        faults += [fault] if fault else []
        if len(faults) == ENOUGH:
            break
    return Inspection(scenes, pixels, faults)


def _expected(scenes: SegmentationDataset) -> NDArray[np.bool_]:
    """Return which values are allowed in a mask file, (256,)."""
    expected = np.zeros(256, bool)
    expected[: len(scenes.classes) + scenes.reduce_zero_label] = True
    expected[scenes.ignore] = True
    return expected


def _inspect(scenes: SegmentationDataset, index: int, expected: NDArray[np.bool_]) -> tuple[NDArray[np.int64], str]:
    """Return the number of pixels (256,) of every value in a mask, and its fault; empty if it has none."""
    name = scenes.stems[index] + scenes.mask_suffix
    try:
        with opened_mask(scenes.mask_path(index)) as mask:
            size, pixels = mask.size, np.array(mask.histogram(), np.int64)
            if mask.mode == "1":
                pixels[[1, 255]] = pixels[[255, 1]]  # Pillow counts its ones as 255
        with opened(scenes.image_path(index)) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # OpenCV rotates it
            image_size = image.size[::-1] if sideways else image.size
    except UserError as error:
        return np.zeros(256, np.int64), str(error)
    fault = ""
    strange = np.flatnonzero((pixels > 0) & ~expected)
    if len(strange):
        values = listed(f"{value} in {pixels[value]:,} pixels" for value in strange)
        fault = f"{name}: expected values {_ranges(expected)}, found {values}."
    elif size != image_size:
        turned = " (after EXIF rotation)" if sideways else ""
        fault = f"{name}: expected the size of its image, {_by(image_size)}{turned}, found {_by(size)}."
    elif max(size) > LONGEST * min(size):
        fault = f"{name}: expected an aspect ratio of at most {LONGEST}, found {_by(size)}."
    return pixels, fault


def _ranges(expected: NDArray[np.bool_]) -> str:
    """Return the values as ranges, such as ``0 to 10 and 255``."""
    values = np.flatnonzero(expected)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return " and ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _read_stamp(path: Path) -> Stamp | None:
    try:
        return read_sealed(path, Stamp, "")
    except (FileNotFoundError, DamagedError):
        return None
