"""Check that the arrays attached to a record of an analysis match its outcomes, so that tables and figures can use them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.block_outcomes import ATTENTION
from lutbench.errors import UserError
from lutbench.record import Record


def check_attachments(record: Record) -> None:
    """Check the shapes of a record's arrays, and that they are finite.

    Raises:
        UserError: naming the one that no run leaves, or as :meth:`Record.array` does.
    """
    for kept in record.attachments:
        if kept.kind == "array":
            array = record.array(kept.name)
            try:
                fits = _fits(record, kept.name, array) and bool(np.isfinite(array).all())
            except (LookupError, OSError, TypeError, ValueError):  # of its pictures or its extra values
                fits = False
            if not fits:
                raise UserError(
                    f"{record.run}: its record has {kept.name} with unexpected shape {array.shape} for an analysis of {record.outcomes.blocks} "
                    f"blocks. Restore the record from a copy (git), or remove it and run {record.run} again."
                )


def _fits(record: Record, name: str, array: NDArray[Any]) -> bool:
    """Return whether an array is of a shape that goes with outcomes, extra values and pictures; of an unknown name it may have any."""
    shape, blocks, grid = array.shape, record.outcomes.blocks, record.outcomes.grid
    if name == "heads":
        return array.ndim == 3 and shape[:2] == (len(ATTENTION), blocks)
    if name == "grams":
        size = round((1 + (1 + 8 * shape[-1]) ** 0.5) / 2)
        return array.ndim == 3 and shape[0] == blocks + 1 and size * (size - 1) // 2 == shape[2]
    if name not in ("maps", "colours", "reconstructions"):
        return True
    extra: Any = record.extra
    width, side = Image.open(io.BytesIO(record.picture("images"))).size
    shown, (row, column) = width // side, extra["marked"]
    of_pictures = {
        "maps": (len(extra["drawn blocks"]), shown, 2, grid, grid),
        "colours": (shown, grid, grid, 3),
        "reconstructions": (len(extra.get("mask ratios", ())), shown, side, side, 3),
    }
    return shape == of_pictures[name] and width == shown * side and max(row, column) < grid
