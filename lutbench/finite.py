"""Whether numbers are finite: asked before anything is kept, so that what is kept can be gone back to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lutbench.errors import UserError, listed

if TYPE_CHECKING:
    from torch import Tensor

CAUSES = (
    "Either the learning rate is too high: lower it. Or an image or a mask is not usable: look at the last ones, and mend or "
    "remove what is wrong."
)
"""Why a training ends in numbers that are not finite, and what to do."""


def not_finite(tensors: Mapping[str, "Tensor"]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity; waits for their device."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check_finite(tensors: Mapping[str, "Tensor"], where: str) -> None:
    """Check that all ``tensors`` are finite before they are kept; ``where`` begins the message.

    Raises:
        UserError: naming the first that are not.
    """
    require_finite(not_finite(tensors), len(tensors), where)


def require_finite(wrong: Sequence[str], count: int, where: str) -> None:
    """Raises UserError, beginning with ``where``, if there are names of tensors, of so many, that are not finite: ``wrong``."""
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} of {count} tensors are not finite ({listed(wrong, 3)}), and nothing of them is kept; "
            f"what was saved before stays, and the same command goes on from there. {CAUSES}"
        )


@contextmanager
def refused_numbers_explained(where: str) -> Iterator[None]:
    """Turn the refusal of a number, as a measurement or in a record, into a UserError that begins with ``where``."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] != "finite_number":
            raise
        field = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{where}: no record is written, because a number of it is not finite ({field} is {problem['input']}). {CAUSES}"
        ) from error
