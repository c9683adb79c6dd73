"""How checkpoints are named, and how many stay: what is known of them without reading one."""

import re
from pathlib import Path

KEEP = 2
"""How many checkpoints stay: the newest, and one to fall back on."""


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, by its name alone: a folder, or the JSON that seals a file."""
    whole = [path for path in folder.glob("step-*") if path.is_dir() or path.suffix == ".json"]
    return max((step for path in whole if (step := step_of(path)) is not None), default=None)


def step_of(path: Path) -> int | None:
    """Return the step in the name of a checkpoint or of a file of it; None of anything else."""
    found = re.fullmatch(r"step-(\d{8,})(\.pth|\.json)?", path.name)
    return int(found[1]) if found else None
