"""The names of checkpoints, and how many are kept: what can be known without reading one."""

import re
from pathlib import Path

KEEP = 2
"""Number of checkpoints that are kept: the newest, and one to fall back on."""


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, from its name only: a folder, or the JSON file that seals a file."""
    whole = [path for path in folder.glob("step-*") if path.is_dir() or path.suffix == ".json"]
    return max((step for path in whole if (step := step_of(path)) is not None), default=None)


def step_of(path: Path) -> int | None:
    """Return the step in the name of a checkpoint or of one of its files; None for other names."""
    found = re.fullmatch(r"step-(\d{8,})(\.pth|\.json)?", path.name)
    return int(found[1]) if found else None
