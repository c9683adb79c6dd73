"""MMEngine's checkpoints, sealed: each has a JSON beside it with its hash, and nothing unsealed is ever read.

Where torch refuses a pickle that could run code, MMEngine loads it all the same. Here torch's refusal stands.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutbench.checkpoint import check_usable, newest_whole, read_seal
from lutbench.models.weights import read_pickle

NAME = "step-{:08d}.pth"
"""Name of a checkpoint after so many iterations; its seal ends in ``.json``."""


@dataclass(frozen=True)
class Sealed:
    """A whole checkpoint."""

    path: Path
    step: int
    extra_state: dict[str, Any]
    """What the training log keeps of the iterations so far."""


def newest_sealed(folder: Path, identity: str, steps: int) -> tuple[Sealed | None, list[str]]:
    """Return the newest whole checkpoint of a run of so many ``steps``, and a line about each newer one that is damaged.

    Raises:
        UserError: if a checkpoint belongs to another recipe, or if there are checkpoints and all are damaged.
    """
    files = [path.with_suffix(".pth") for path in folder.glob("step-*.json")]
    return newest_whole(folder, files, lambda file: _read(file, identity, steps))


def _read(file: Path, identity: str, steps: int) -> Sealed:
    seal = read_seal(file.with_suffix(".json"), file, file, identity, steps)
    check_usable(read_checkpoint(file)["state_dict"])
    return Sealed(file, seal.step, seal.extra_state.model_dump(exclude_unset=True))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: tensors and plain values, on the CPU.

    MMEngine's history of losses, which is objects of its own, is not among them: the suite's logger keeps it.

    Raises:
        UserError: if it holds anything else, which could run code.
    """
    content: dict[str, Any] = read_pickle(
        path,
        "It is not a checkpoint of this suite, or was changed: remove it, and the run resumes from the previous one.",
    )
    return content
