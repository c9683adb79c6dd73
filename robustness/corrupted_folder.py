"""Open a corrupted copy on disk, without the code that makes one, :mod:`robustness.corrupted`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lutbench.data.folder import FolderImages, open_folder
from lutbench.errors import UserError, listed, nearest
from lutbench.files import read_json
from robustness.corruption_names import REVISION, check_names

MANIFEST = "manifest.json"


def open_corrupted(folder: Path, corruption: str, severity: int) -> FolderImages:
    """List a condition. Its fingerprint is the manifest's checksum of the pixels, the same on every machine.

    Raises:
        UserError: if it is absent, was made by another version of the suite, or its files are not those that were
            written: one is missing, was added or changed in size. (Pixels changed within the same number of bytes
            are found by :func:`lutbench.data.toy.build.check_pixels`.)
    """
    check_names([corruption], [severity])
    origin = read_origin(folder)
    wanted = f"{corruption}/{severity}"
    condition = folder / wanted
    if not (condition / MANIFEST).is_file():
        present = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/[0-9]/{MANIFEST}"))
        raise UserError(
            f"{folder.absolute()} has no {wanted}.{nearest(wanted, present)} Existing: {listed(present) or 'none'}. "
            "Build it with the same command as these."
        )
    metadata = read_json(condition / MANIFEST)
    images = open_folder(condition, f"{origin['set']}-c", wanted)
    if images.fingerprint != metadata["files"]:
        raise UserError(
            f"{condition.absolute()} was changed: expected the {metadata['images']} images that were written, found {len(images)}, or other "
            "names or sizes. Remove it; the same command builds it again."
        )
    return replace(images, fingerprint=metadata["pixels"])


def read_origin(folder: Path) -> dict[str, Any]:
    """Read the folder's manifest.

    Raises:
        UserError: if there is none, or the conditions were made by another version of the corruptions.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder.absolute()} has no {MANIFEST}, so it is not a corrupted copy written by this suite. Build it first."
        )
    origin: dict[str, Any] = read_json(path)
    if origin.get("revision") != REVISION:
        raise UserError(
            f"{folder.absolute()} was made by another version of the corruptions ({origin.get('revision')}, now {REVISION}). "
            "Remove it to build it again."
        )
    return origin
