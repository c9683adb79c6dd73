"""MMEngine's checkpoints, sealed: each has a JSON beside it with its hash, and nothing unsealed is ever read.

MMEngine writes a file in place and, where torch refuses a pickle that could run code, loads it all the same. Here a
file counts only once it is sealed, which happens after it is whole, and torch's refusal stands.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutbench.checkpoint import newest_whole, read_seal
from lutbench.files import write_json
from lutbench.models.weights import read_pickle, sha256_of

NAME = "step-{:08d}.pth"
"""Name of a checkpoint after so many iterations; its seal ends in ``.json``."""


@dataclass(frozen=True)
class Sealed:
    """A whole checkpoint."""

    path: Path
    step: int
    extra_state: dict[str, Any]
    """What the training log keeps of the iterations so far."""


def seal(path: Path, identity: str, step: int, extra_state: dict[str, Any]) -> None:
    """Declare a checkpoint whole, and remove the seals of those that are gone."""
    value = {"identity": identity, "step": step, "sha256": sha256_of(path), "facts": extra_state}
    write_json(path.with_suffix(".json"), value)
    for other in path.parent.glob("step-*.json"):
        if not other.with_suffix(".pth").is_file():
            other.unlink()


def newest_sealed(folder: Path, identity: str) -> tuple[Sealed | None, list[str]]:
    """Return the newest whole checkpoint, and a line about each newer one that is damaged.

    Raises:
        UserError: if a checkpoint belongs to another recipe, or if there are checkpoints and all are damaged.
    """
    files = [path.with_suffix(".pth") for path in sorted(folder.glob("step-*.json"), reverse=True)]
    return newest_whole(folder, files, lambda file: _read(file, identity))


def _read(file: Path, identity: str) -> Sealed:
    value = read_seal(file.with_suffix(".json"), file, file, identity)
    return Sealed(file, int(value["step"]), value["facts"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: tensors and plain values, on the CPU.

    MMEngine's history of losses, which is objects of its own, is not among them: the suite's logger keeps it.

    Raises:
        UserError: if it holds anything else, which could run code.
    """
    content: dict[str, Any] = read_pickle(
        path,
        "It is not one of the suite's checkpoints, or was changed: remove it, and the run goes on from the one before.",
    )
    return content
