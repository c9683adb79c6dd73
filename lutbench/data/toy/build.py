"""Sets that the suite builds itself on first use: whole or not there, built once, and compared with pinned checksums."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from PIL import Image

from lutbench.errors import UserError, listed
from lutbench.files import read_json, write_json
from lutbench.progress import console


class Buildable(Protocol):
    """What is known of a set before it is built."""

    @property
    def name(self) -> str:
        """Also of its folder below the data root."""
        ...

    @property
    def pixels(self) -> dict[str, str]:
        """The expected :func:`pixel_digest` of train and val."""
        ...

    def recipe(self) -> dict[str, Any]:
        """What decides the pixels, as it stands in the manifest."""
        ...


def build_once(built: Buildable, root: Path, write: Callable[[Path], Mapping[str, Mapping[str, Any]]]) -> bool:
    """Have ``write`` fill the set's folder below ``root`` if nothing is there; returns whether it was written now.

    ``write`` returns what the manifest says of each split, with its checksum under ``pixels``. The folder is filled
    beside its place and renamed: what is there is whole. Processes that build at once wait for one.

    Raises:
        UserError: if what is there was not built here, or the set cannot be written.
    """
    folder = root / built.name
    if (folder / "manifest.json").is_file():
        return False
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{built.name}.lock"):
            if folder.exists():
                read_manifest(built, folder)
                return False
            partial = root / f".{built.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # left by a build that was killed: we hold the lock
            try:
                splits = write(partial)
                _write_manifest(built, splits, partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder.absolute()} could not be built: {error.strerror or error}. It takes up to 120 MB: give a data root with "
            "room that you may write to, with --data-root."
        ) from error
    _compare(built, {split: facts["pixels"] for split, facts in splits.items()})
    return True


def read_manifest(built: Buildable, folder: Path) -> dict[str, Any]:
    """What was noted when the set in ``folder`` was built.

    Raises:
        UserError: if it was not built here, or in another way than ``built`` says.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{folder.absolute()} holds no manifest.json, so it is not a set that was built here. {rebuild(folder)}"
        )
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("set") != built.name or manifest.get("recipe") != built.recipe():
        raise UserError(
            f"{folder.absolute()} was cut by another version of the suite, which cuts {built.name} in another way. {rebuild(folder)}"
        )
    return manifest


def changed(folder: Path, part: Path, expected: Iterable[str], found: Iterable[str]) -> UserError:
    """What to say if the files in ``part`` of the set in ``folder`` are not those that were written."""
    written, here = set(expected), set(found)
    if missing := sorted(written - here):
        difference = f"{len(missing)} files are missing ({listed(missing)})"
    elif added := sorted(here - written):
        difference = f"{len(added)} files were added ({listed(added)})"
    else:
        difference = "a file changed in size"
    return UserError(f"{part.absolute()} is not as it was built: {difference}. {rebuild(folder)}")


def rebuild(folder: Path) -> str:
    """What to do about a set that is no longer as it was built."""
    return f"Remove or rename {folder.absolute()}; the set is built anew, in seconds, when it is next used."


def pixel_digest(images: Iterable[tuple[str, Image.Image]]) -> str:
    """sha256, in hex, over names, sizes and pixels in the order given; the same however the files are compressed."""
    digest = hashlib.sha256()
    for name, image in images:
        digest.update(f"{name} {image.width} {image.height}\n".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _write_manifest(built: Buildable, splits: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    manifest = {
        "set": built.name,
        "recipe": built.recipe(),
        "packages": {name: version(name) for name in ("numpy", "pillow", "scikit-image", "scikit-learn")},
        "splits": splits,
    }
    write_json(folder / "manifest.json", manifest)


def _compare(built: Buildable, pixels: dict[str, str]) -> None:
    """Say so, and go on, if the pixels are not the pinned ones.

    Not an error: another version of Pillow or of the packages may decode a JPEG one grey level apart, and the run is
    no worse for it. Records carry the fingerprint, so nothing built so is mixed up with the pinned set's.
    """
    if pixels != built.pixels:
        console.print(
            f"{built.name} was built, but its pixels differ from those that the suite's published records were measured on: "
            "another version of Pillow, scikit-image or scikit-learn decodes the photographs differently. Everything "
            "works; scores may differ in the last digits. For the same pixels install the versions in constraints.txt."
        )
