"""The mark of smoke runs, and their refusal where a measurement is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lutbench.errors import UserError
from lutbench.files import DamagedError
from lutbench.run_files import STARTED, read_started

MARK = "Smoke run: not a measurement."
"""The note beside every number of a smoke run."""

HOME = ".smoke"
"""A file that marks the folder of smoke runs."""


def is_smoke(identity_inputs: Mapping[str, Any]) -> bool:
    """Return whether these are the identity inputs of a smoke run."""
    return bool(identity_inputs.get("smoke"))


def refuse_smoke(identity_inputs: Mapping[str, Any], what: str) -> None:
    """Raise UserError if these are the identity inputs of a smoke run; ``what`` is the thing that must not be used as a measurement."""
    if is_smoke(identity_inputs):
        raise _refusal(what)


def refuse_smoke_weights(weights: Path) -> None:
    """Raise UserError if a file or folder of weights is what a smoke run left, or was drawn for one."""
    if any((folder / HOME).is_file() for folder in weights.absolute().parents):
        raise _refusal(str(weights))
    if (weights.parent / STARTED).is_file():
        try:
            started = read_started(weights.parent)
        except DamagedError:
            return  # a file of this name that is somebody else's
        refuse_smoke(started.document, str(weights))


def _refusal(what: str) -> UserError:
    return UserError(
        f"{what}: this is from a smoke run, which only tests a suite with few images and few steps and measures nothing. Use that of a real "
        "run instead: lutbench run SUITE, without --smoke."
    )
