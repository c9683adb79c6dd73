"""Datasets that the suite builds itself on first use: whole or absent, built once, and compared with pinned checksums."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock
from PIL import Image

from lutbench.errors import UserError, listed
from lutbench.files import read_json, write_json
from lutbench.interruption import interruption_explained
from lutbench.progress import console, tracked

D = TypeVar("D")


@dataclass(frozen=True)
class ToyDataset(Generic[D]):
    """How a dataset is made. Whoever changes this, or the code that makes it, raises ``revision`` and pins the checksums."""

    name: str
    """The dataset's name, and its folder's below the data root."""
    revision: int
    key: int
    """The dataset's number in the random key."""
    pixels: dict[str, str]
    """The expected :func:`pixel_digest` of every split."""

    def recipe(self) -> dict[str, Any]:
        """Return what decides the pixels, as it stands in the manifest."""
        raise NotImplementedError

    def write(self, folder: Path, root: Path) -> dict[str, dict[str, Any]]:
        """Fill ``folder``, and return what the manifest says of each split, with its checksum under ``pixels``."""
        raise NotImplementedError

    def list_files(self, folder: Path, split: str, skip_undecodable: bool = False) -> D:
        """List one split of the dataset that lies in ``folder``, with a fingerprint over names and sizes of its files."""
        raise NotImplementedError

    def names(self, split: str) -> Iterable[str]:
        """Return the names of a split's images, of a dataset whose manifest does not hold them."""
        return ()

    def build(self, root: Path) -> bool:
        """Write the dataset below ``root`` if it is absent; return whether it was written now.

        It is filled beside its folder and renamed, so what is present is whole. Processes that build at once wait for one.

        Raises:
            UserError: if what is present was not built here, what it is made of is not installed, or it cannot be written.
        """
        folder = root / self.name
        if (folder / "manifest.json").is_file():
            return False
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{self.name}.lock"):
                if folder.exists():
                    self.manifest(folder)
                    return False
                partial = root / f".{self.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)  # left by a build that was killed: we hold the lock
                try:
                    with interruption_explained(
                        lambda: f"{self.name} was being built; the unfinished copy is removed."
                    ):
                        splits = self.write(partial, root)
                    packages = {name: version(name) for name in ("numpy", "pillow", "scikit-image", "scikit-learn")}
                    manifest = {"set": self.name, "recipe": self.recipe(), "packages": packages, "splits": splits}
                    write_json(partial / "manifest.json", manifest)
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"{folder.absolute()} could not be built: {error.strerror or error}. It takes up to 60 MB: give a data "
                "root with room that you may write to, with --data-root."
            ) from error
        # Not an error: another version of Pillow or of the packages may decode a JPEG one grey level apart, and the run is
        # no worse for it. Records carry the fingerprint, so nothing built so is mixed up with the pinned dataset's.
        if {split: metadata["pixels"] for split, metadata in splits.items()} != self.pixels:
            console.print(
                f"{self.name} was built, but its pixels differ from those that the suite's published records were measured "
                "on: another version of Pillow, scikit-image or scikit-learn decodes the photographs differently. "
                "Everything works; scores may differ in the last digits. For the same pixels install the versions in "
                "constraints.txt."
            )
        return True

    def manifest(self, folder: Path) -> dict[str, Any]:
        """Return what was noted when the dataset in ``folder`` was built.

        Raises:
            UserError: if it was not built here, or in another way than this.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{folder.absolute()} holds no manifest.json, so it is not a set that was built here. {_rebuild(folder)}"
            )
        manifest: dict[str, Any] = read_json(path)
        if manifest.get("set") != self.name or manifest.get("recipe") != self.recipe():
            raise UserError(
                f"{folder.absolute()} was cut by another version of the suite, which cuts {self.name} in another way. "
                f"{_rebuild(folder)}"
            )
        return manifest

    def open(self, split: str, root: Path, *, skip_undecodable: bool = False) -> D:
        """List one split, after building the dataset below ``root`` if it is absent.

        Its fingerprint is the manifest's checksum of the split's pixels, so it is the same however PNG was compressed.

        Raises:
            UserError: see :meth:`build`; also if a file is missing, was added or changed in size. (Pixels changed within
                the same number of bytes are found by :func:`check_pixels`.)
        """
        self.build(root)
        folder = root / self.name
        written = self.manifest(folder)["splits"][split]
        try:
            dataset: Any = self.list_files(folder, split, skip_undecodable)
        except UserError as error:
            raise UserError(f"{error} {_rebuild(folder)}") from error
        if dataset.fingerprint != written["files"]:
            present = [dataset.image_name(index) for index in range(len(dataset))]
            raise _changed(folder, split, written.get("names") or self.names(split), present)
        built: D = replace(dataset, fingerprint=written["pixels"])
        return built


def _changed(folder: Path, split: str, expected: Iterable[str], found: Iterable[str]) -> UserError:
    """Return the error that a split of the dataset in ``folder`` does not have the files that were written."""
    written, present = set(expected), set(found)
    if missing := sorted(written - present):
        difference = f"{len(missing)} files are missing ({listed(missing)})"
    elif added := sorted(present - written):
        difference = f"{len(added)} files were added ({listed(added)})"
    else:
        difference = "a file changed in size"
    return UserError(f"{folder.absolute()}: split {split!r} is not as it was built: {difference}. {_rebuild(folder)}")


def _rebuild(folder: Path) -> str:
    """Return what to do about a dataset that is no longer as it was built."""
    return f"Remove or rename {folder.absolute()}; the dataset is built again, in seconds, at its next use."


def pixel_digest(images: Iterable[tuple[str, Image.Image]]) -> str:
    """Return the sha256, in hex, over names, sizes and pixels in the order given; the same however the files are compressed."""
    digest = hashlib.sha256()
    for name, image in images:
        digest.update(f"{name} {image.width} {image.height}\n".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def check_pixels(dataset: Any) -> str:
    """Return the :func:`pixel_digest` of a listed split, to compare with its fingerprint; reads every file.

    Where there are masks, each follows its image, with the values that training sees.

    Raises:
        UndecodableImage: naming the first file that cannot be decoded.
    """

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        for index in tracked(range(len(dataset)), len(dataset), f"checking {dataset.name} {dataset.split}"):
            yield dataset.image_name(index), dataset.image(index)
            if hasattr(dataset, "mask"):
                yield dataset.mask_path(index).name, Image.fromarray(dataset.mask(index))

    return pixel_digest(pictures())
