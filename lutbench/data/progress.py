"""A progress bar for what may take long: it appears after two seconds."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lutbench.progress import Bar

PATIENCE = 2.0
"""Seconds before the bar is shown."""

T = TypeVar("T")


def tracked(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """``items``, with a bar titled ``title`` once they take longer than two seconds; from the first process only."""
    shown = os.environ.get("RANK", "0") == "0"
    started = time.monotonic()
    done = 0
    source = iter(items)
    for item in source:
        yield item
        done += 1
        if time.monotonic() - started > PATIENCE:
            break
    else:
        return
    with Bar(title, total, done, shown) as bar:
        for item in source:
            yield item
            done += 1
            bar.update(done)
