"""Checks that numbers are finite, made before anything is saved, so that a run can always resume from what was saved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lutbench.errors import UserError, listed

if TYPE_CHECKING:
    from torch import Tensor

CAUSES = (
    "Either the learning rate is too high: lower it. Or an image or a mask is not usable: look at the last ones, and repair or "
    "remove it."
)
"""Why training ends in numbers that are not finite, and what to do."""


def not_finite(tensors: Mapping[str, "Tensor"]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity; waits for their device."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check_finite(tensors: Mapping[str, "Tensor"], where: str) -> None:
    """Check that all ``tensors`` are finite before they are saved; ``where`` begins the message.

    Raises:
        UserError: with the names of the first that are not.
    """
    require_finite(not_finite(tensors), len(tensors), where)


def require_finite(wrong: Sequence[str], count: int, where: str) -> None:
    """Raise UserError, beginning with ``where``, if any of ``count`` tensors are not finite: those named in ``wrong``."""
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} of {count} tensors are not finite ({listed(wrong, 3)}). They are not saved; what was saved before "
            f"is kept, and repeating the command resumes from there. {CAUSES}"
        )


@contextmanager
def refused_numbers_explained(where: str) -> Iterator[None]:
    """Turn the validation error of a number that is not finite into a UserError that begins with ``where``."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] != "finite_number":
            raise
        field = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{where}: no record was written, because a number in it is not finite ({field} is {problem['input']}). {CAUSES}"
        ) from error
