"""MMEngine's checkpoints, sealed: each has a JSON beside it with its hash, and nothing unsealed is ever read.

MMEngine writes a file in place and, where torch refuses a pickle that could run code, loads it all the same. Here a
file counts only once it is sealed, which happens after it is whole, and torch's refusal stands.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lutbench.errors import UserError
from lutbench.files import NotJsonError, read_json, write_json
from lutbench.models.weights import sha256_of

NAME = "step-{:08d}.pth"
"""Name of a checkpoint after so many iterations; its seal ends in ``.json``."""

KEEP = 2
"""How many stay: the newest, and one to fall back on."""


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
    damage: list[str] = []
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        file = path.with_suffix(".pth")
        try:
            value = read_json(path)
            if value["identity"] != identity:
                raise UserError(
                    f"{file} belongs to another recipe: expected identity {identity[:12]}, found "
                    f"{value['identity'][:12]}. Move it away, or run the recipe that it belongs to."
                )
            if (found := sha256_of(file)) == value["sha256"]:
                return Sealed(file, int(value["step"]), value["facts"]), damage
            damage.append(
                f"{file.name} is damaged (expected sha256 {value['sha256'][:12]}, found {found[:12]}) and is passed over"
            )
        except (OSError, NotJsonError, KeyError, TypeError, ValueError) as error:
            damage.append(f"{file.name} is damaged ({error}) and is passed over")
    if damage:
        raise UserError(
            f"No checkpoint in {folder} is whole: {'; '.join(damage)}. Restore one from a copy, "
            "or remove the folder to start the run from the beginning."
        )
    return None, damage


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: tensors and plain values, on the CPU.

    MMEngine's history of losses, which is objects of its own, is not among them: the suite's logger keeps it.

    Raises:
        UserError: if it holds anything else, which could run code.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler lets through whatever a damaged pickle trips over
        needed = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path}: expected tensors and plain values, found {f'{needed[1]}, which could run code' if needed else error}. "
            "It is not one of the suite's checkpoints, or was changed: remove it, and the run goes on from the one before."
        ) from error
    return content
