"""Which setting is likely meant where a dataset's folder is not laid out as expected."""

import os
from pathlib import Path

from lutbench.data.walking import ARCHIVE_LITTER, explained, walk
from lutbench.errors import listed, nearest

OTHER_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test", "dev", "eval")}
"""What people call the folders of the splits."""


@explained()
def likely_setting(root: Path, path: str, part: str, split: str, inside: str = "") -> str:
    """Return a sentence that says what to set, if ``root / path / inside / part`` is not there and likely elsewhere.

    ``part`` is the folder of ``split`` that the recipe names, and ``inside`` the folder of the dataset that it should be in.
    Empty if it is there, or nothing like it is found.

    Raises:
        UserError: if a folder cannot be read.
    """
    home = root / path
    if (home / inside / part).is_dir():
        return ""
    if not home.is_dir():
        if (root / inside / part).is_dir():
            return (
                f" {root.absolute()} is itself such a dataset: give the folder above it as --data-root, with path = "
                f'"{root.absolute().name}", or set path = ".".'
            )
        return ""
    for within in _folders(home):
        if (home / within / inside / part).is_dir():
            return f' {home.absolute() / within} holds it: set path = "{(Path(path) / within).as_posix()}".'
    beside = _folders(home / inside)
    if nearest(part, beside):
        return ""  # which the caller names
    if others := [name for name in OTHER_NAMES[split] if name in beside]:
        return f' Did you mean {split} = "{others[0]}"?'
    if not inside and has_image(home):
        return f' {home.absolute()} has images and no splits: train = "" and val = "" pre-train on them.'
    if not inside and beside and not set(beside) & {name for names in OTHER_NAMES.values() for name in names}:
        with_images = [name for name in beside if has_image(home / name)]
        if with_images:
            return (
                f" Its folders {listed(with_images)} hold images, and may be classes of a dataset that is not split: divide them "
                'into train/CLASS and val/CLASS; or, for pre-training alone, set train = "" and val = "".'
            )
    return ""


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != ARCHIVE_LITTER)


def has_image(folder: Path) -> bool:
    """Return whether an image lies in ``folder`` itself."""
    return next(walk(os.fsencode(folder), deep=False), None) is not None
