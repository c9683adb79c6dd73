"""Shares of a pre-training at which its encoder is kept, and the names of what was kept at one."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _ascending(shares: list[float]) -> list[float]:
    """Return shares as they are; raises ValueError unless they are parts of a run that ascend, each with a name of its own."""
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError("expected shares of the run, of which 0 is the beginning, 0.5 the middle and 1 the end")
    if any(float(f"{share:g}") != share for share in shares):
        raise ValueError("a share has at most six digits: files and rows are named by it")
    if shares != sorted(set(shares)):
        raise ValueError("name every share once, the smallest first")
    return shares


def _before_the_end(shares: list[float]) -> list[float]:
    """Return shares as they are; raises ValueError if the end is among them."""
    if 1 in shares:
        raise ValueError("expected shares short of 1, the end, whose encoder is kept in any case")
    return shares


Snapshots = Annotated[list[float], AfterValidator(_ascending), AfterValidator(_before_the_end)]
"""Shares of a run short of its end, whose encoder is kept in any case; 0 is the beginning."""

At = Annotated[list[float], Field(min_length=1), AfterValidator(_ascending)]
"""Shares of a run at which its encoder is measured; 1 is the end."""


def at_share(name: str, share: float) -> str:
    """Return what a file or a row of this name is called at a share of the run: ``encoder-at-0.1``; at the end by its own name."""
    return name if share == 1 else f"{name}-at-{share:g}"
