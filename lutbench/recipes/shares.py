"""Snapshots: shares of the pre-training after which the encoder is saved, and the names of the saved files."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _ascending(shares: list[float]) -> list[float]:
    """Return ``shares``; raises ValueError unless they are from 0 to 1, ascending, different, and of at most six digits."""
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError("expected shares of the run from 0 to 1: 0 is the start, 0.5 the middle, 1 the end")
    if any(float(f"{share:g}") != share for share in shares):
        raise ValueError("expected shares of at most six digits, because files and rows are named after them")
    if shares != sorted(set(shares)):
        raise ValueError("expected different shares in ascending order")
    return shares


def _before_the_end(shares: list[float]) -> list[float]:
    """Return ``shares``; raises ValueError if they contain 1."""
    if 1 in shares:
        raise ValueError("expected shares below 1: the final encoder is always saved. Remove 1")
    return shares


Snapshots = Annotated[list[float], AfterValidator(_ascending), AfterValidator(_before_the_end)]
"""Shares of a run from 0 (start) to below 1. The encoder at the end is always saved."""

At = Annotated[list[float], Field(min_length=1), AfterValidator(_ascending)]
"""Shares of a run after which its encoder is evaluated; 1 is the end."""


def at_share(name: str, share: float) -> str:
    """Return the name of a file or row at a share of the run, such as ``encoder-at-0.1``; at share 1 the name itself."""
    return name if share == 1 else f"{name}-at-{share:g}"
