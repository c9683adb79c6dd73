"""Suggest a setting if a dataset's folder has another layout than expected."""

import os
from pathlib import Path

from lutbench.data.walking import ARCHIVE_LITTER, explained, walk
from lutbench.errors import listed, nearest

OTHER_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test", "dev", "eval")}
"""Common names of the folders of each split."""


@explained()
def likely_setting(root: Path, path: str, part: str, split: str, inside: str = "") -> str:
    """Return a sentence that suggests a setting, if ``root / path / inside / part`` does not exist but something similar does.

    ``part`` is the folder of ``split`` in the recipe, ``inside`` the folder of the dataset that should contain it. Empty if it exists or
    nothing similar is found.

    Raises:
        UserError: if a folder cannot be read.
    """
    home = root / path
    if (home / inside / part).is_dir():
        return ""
    if not home.is_dir():
        if (root / inside / part).is_dir():
            return (
                f" {root.absolute()} is itself such a dataset: set --data-root to the folder above it, with path = "
                f'"{root.absolute().name}", or set path = ".".'
            )
        return ""
    for within in _folders(home):
        if (home / within / inside / part).is_dir():
            return f' It is in {home.absolute() / within}: set path = "{(Path(path) / within).as_posix()}".'
    beside = _folders(home / inside)
    if nearest(part, beside):
        return ""  # the caller suggests it
    if others := [name for name in OTHER_NAMES[split] if name in beside]:
        return f' Did you mean {split} = "{others[0]}"?'
    if not inside and has_image(home):
        return f' {home.absolute()} has images but no splits: to pre-train on them, set train = "" and val = "".'
    if not inside and beside and not set(beside) & {name for names in OTHER_NAMES.values() for name in names}:
        with_images = [name for name in beside if has_image(home / name)]
        if with_images:
            return (
                f" Its folders {listed(with_images)} hold images. If they are the classes of a dataset without splits, divide it into "
                'train/CLASS and val/CLASS, or, for pre-training only, set train = "" and val = "".'
            )
    return ""


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != ARCHIVE_LITTER)


def has_image(folder: Path) -> bool:
    """Return whether ``folder`` itself (not a subfolder) contains an image."""
    return next(walk(os.fsencode(folder), deep=False), None) is not None
