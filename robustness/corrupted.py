"""Write a corrupted copy of a labelled dataset to disk, once; the same on every machine, in the layout of ImageNet-C.

``FOLDER/CORRUPTION/SEVERITY/CLASS/IMAGE.png``. Every corruption at one severity is a condition. Conditions are written atomically; an
interrupted build continues with the missing ones, and conditions can be added later. FOLDER/manifest.json contains the source of the images
and the package versions, CONDITION/manifest.json the strength of the corruption and a checksum of the pixels.

Images are stored losslessly: the JPEGs of quality 85 in ImageNet-C and Tiny-ImageNet-C are an additional corruption, which clean images do
not have, and the pixels of a JPEG depend on the decoder. So errors on these copies are not comparable with published ones, which were
measured on the official files.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset

from lutbench.data.folder import open_folder
from lutbench.data.images import ImageDataset, UndecodableImage
from lutbench.data.toy.build import pixel_digest
from lutbench.data.toy.photographs import UNCOMPRESSED
from lutbench.errors import UserError, listed
from lutbench.files import saving, write_json
from lutbench.interruption import interruption_explained
from lutbench.progress import Bar
from lutbench.train.loader import Loader
from robustness.corrupted_folder import MANIFEST, read_origin
from robustness.corruptions import CORRUPTIONS, REVISION, SEVERITIES, check_names, constants_for, corrupt, draw_of

PACKAGES = ("numpy", "pillow", "scikit-image", "scipy")
"""Those that the pixels depend on."""

RESIZED = 256 / 224
"""Short side that a larger image is resized to, over the side of the crop: as ImageNet-C was made."""


def build_corrupted(
    images: ImageDataset,
    folder: Path,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    *,
    side: int,
    per_class: int | None = None,
    workers: int = 0,
) -> bool:
    """Write the conditions that ``folder`` lacks; return whether there were any.

    ``images`` are copied at ``side`` x ``side`` pixels: those of this size as they are, others resized to 256/224 of it
    and cropped in the centre, bilinearly, as for ImageNet-C. Of every class ``per_class`` are taken, evenly spaced, or
    all. An image is corrupted in the same way whichever others are taken, and whatever the number of ``workers``, which are
    processes. Processes that build at once wait for one.

    Raises:
        UserError: if there is no such corruption or severity, the images have no labels or their names cannot be told
            apart, one cannot be decoded, the folder holds something else or cannot be written, or it was begun with other
            packages.
    """
    check_names(corruptions, severities)
    targets = _targets(images, per_class)
    origin = {
        "revision": REVISION,
        "set": images.name,
        "split": images.split,
        "source": images.fingerprint,
        "side": side,
        "per_class": per_class,
        "constants": constants_for(side).name,
    }
    with saving(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            conditions = [f"{name}/{severity}" for name in corruptions for severity in severities]
            missing = [condition for condition in conditions if not (folder / condition / MANIFEST).is_file()]
            _begin(folder, origin, bool(missing))
            if not missing:
                return False
            work = _Conditions(images, folder, targets, side, missing)
            loader = Loader(work, batch_size=None, num_workers=workers, in_order=False, patience=0)
            present = len(conditions) - len(missing)
            with (
                interruption_explained(lambda: _built_so_far(folder, conditions)),
                Bar(f"corrupting {images.name} {images.split}", len(conditions), present) as bar,
            ):
                for done, problem in enumerate(loader, present + 1):
                    if problem is not None:
                        raise problem
                    bar.update(done)
    return True


def _built_so_far(folder: Path, conditions: Sequence[str]) -> str:
    built = sum((folder / condition / MANIFEST).is_file() for condition in conditions)
    return f"{built} of {len(conditions)} conditions in {folder} are finished and stay on disk."


@dataclass(frozen=True)
class _Conditions(Dataset[UserError | OSError | None]):
    """Conditions to write: a loader that asks for an item has one written, and gets the error if there was one."""

    images: ImageDataset
    folder: Path
    targets: dict[str, int]
    """The index of the image that each file, by name, is a corrupted copy of."""
    side: int
    conditions: list[str]
    """``fog/3``: its folder below ``folder``."""

    def __len__(self) -> int:
        return len(self.conditions)

    def __getitem__(self, number: int) -> UserError | OSError | None:
        target = self.folder / self.conditions[number]
        if target.exists():
            return UserError(
                f"{target.absolute()} has no {MANIFEST}, so it was not written by this suite. Remove or rename it."
            )
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a build that was killed: our parent holds the lock
        try:
            with saving(target):
                self._write(target.parent.name, int(target.name), partial)
                partial.rename(target)
        except (UserError, OSError) as error:
            return error  # raised here, it would reach the user inside the loader's traceback
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return None

    def _write(self, corruption: str, severity: int, folder: Path) -> None:
        pixels = pixel_digest(self._written(corruption, severity, folder))
        written = open_folder(folder, self.images.name, f"{corruption}/{severity}")
        metadata = {
            "strengths": constants_for(self.side).rows[corruption][severity - 1],
            "images": len(written),
            "pixels": pixels,
            "files": written.fingerprint,
        }
        write_json(folder / MANIFEST, metadata)

    def _written(self, corruption: str, severity: int, folder: Path) -> Iterator[tuple[str, Image.Image]]:
        for name, index in self.targets.items():
            try:
                clean = prepared(self.images.image(index), self.side)
            except UndecodableImage:
                if not self.images.skip_undecodable:
                    raise
                continue
            draw = draw_of(corruption, severity, index)
            image = Image.fromarray(corrupt(np.asarray(clean), corruption, severity, draw))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name, compress_level=UNCOMPRESSED)
            yield name, image


def prepared(image: Image.Image, side: int) -> Image.Image:
    """Return ``image`` at ``side`` x ``side`` pixels: as it is if it has that size, else resized and cropped as for ImageNet-C."""
    if image.size == (side, side):
        return image
    scale = round(side * RESIZED) / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, upper = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, upper, left + side, upper + side))


def _targets(images: ImageDataset, per_class: int | None) -> dict[str, int]:
    """Return the index of each image by its file's name in a condition, in the order in which a folder is listed."""
    if images.labels is None:
        raise UserError(
            f"{images.name}: split {images.split!r} has no labels, but a corrupted copy needs class folders."
        )
    if bad := [name for name in images.classes if "/" in name or name.startswith(".")]:
        raise UserError(f"{images.name}: {listed(bad)}: not a valid name of a class folder. Rename the class.")
    targets: dict[str, int] = {}
    for label, cls in sorted(enumerate(images.classes), key=lambda item: item[1]):
        own = np.flatnonzero(images.labels == label)
        if per_class is not None and per_class < len(own):
            own = own[np.linspace(0, len(own) - 1, per_class).round().astype(np.int64)]
        named = {f"{cls}/{_stem(images.image_name(index), cls)}.png": index for index in own.tolist()}
        if len(named) < len(own):
            raise UserError(
                f"{images.name}: {len(own) - len(named)} images of class {cls} have the same name as another except for the suffix "
                "or folder, and would be the same file in a corrupted copy. Rename them."
            )
        targets.update(sorted(named.items()))
    return targets


def _stem(name: str, cls: str) -> str:
    """Return the name of an image's copy: its own without class folder and suffix."""
    path = PurePosixPath(name).with_suffix("")
    inside = path.parts[1:] if path.parts[0] == cls and len(path.parts) > 1 else path.parts[-1:]
    return "_".join(inside)


def _begin(folder: Path, origin: dict[str, Any], more: bool) -> None:
    """Write the folder's manifest, or compare it with what is to be built.

    Raises:
        UserError: if the folder holds something else, or conditions are to be added with other packages than it was begun with.
    """
    packages = {name: version(name) for name in PACKAGES}
    if not (folder / MANIFEST).is_file():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder.absolute()} is not empty and has no {MANIFEST}, so it was not written by this suite. Use another folder."
            )
        write_json(folder / MANIFEST, {**origin, "packages": packages})
        return
    begun_from = read_origin(folder)
    if differing := _differing(begun_from, origin):
        raise UserError(
            f"{folder.absolute()} holds a corrupted copy of other images: it differs in {differing}. "
            "Remove it, or use another folder."
        )
    if more and (differing := _differing(begun_from["packages"], packages)):
        raise UserError(
            f"{folder.absolute()} was started with other versions of {differing}, which may give other pixels. "
            "Install those versions, or remove the folder to build it again."
        )


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what of ``now`` was otherwise before, for a message; empty if nothing was."""
    differing = {key: value for key, value in now.items() if before.get(key) != value}
    return listed(f"{key} ({before.get(key)} before, {value} now)" for key, value in differing.items())
