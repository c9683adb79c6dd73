"""What goes through many items by threads ends, whatever comes between: an error of one of them, or a signal."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from lutbench.data.walking import in_threads
from lutbench.errors import UserError
from lutbench.interruption import Interrupted


def stopped_at(moment: int, work: Callable[[], Any]) -> tuple[Any, bool]:
    """What comes of ``work`` if a signal is heard at the ``moment``-th moment of this thread, and whether it came to that.

    Python calls a signal's handler where a function begins and after each call of one in C (and where a loop begins again): there a
    profiler is called too.
    """
    left, stopped = moment, False

    def hear(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, stopped
        left -= event in ("call", "c_return")
        if left == 0 and not stopped:
            sys.setprofile(None)
            stopped = True
            raise Interrupted(15)

    sys.setprofile(hear)
    try:
        return work(), stopped
    except Interrupted:
        return None, stopped
    finally:
        sys.setprofile(None)


def squares() -> list[int]:
    return list(in_threads(lambda x: x * x, range(8), "squares", threads=2, at_once=4))


def test_at_whatever_moment_a_signal_comes_nothing_is_left_waiting() -> None:
    """A handler that raises inside one of ``threading``'s conditions leaves it locked, so that threads wait for ever, and who waits for them."""
    moments: list[int] = []

    def stop_at_every_moment() -> None:
        stopped = True
        while stopped:
            moments.append(len(moments) + 1)
            found, stopped = stopped_at(moments[-1], squares)
        assert found == [x * x for x in range(8)]

    thread = threading.Thread(target=stop_at_every_moment, daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive(), f"waits for ever after a signal at moment {moments[-1]}"
    assert len(moments) > 50


def test_the_first_error_in_the_order_of_the_items_is_raised_and_the_rest_is_left() -> None:
    begun = []

    def half(number: int) -> int:
        begun.append(number)
        if number % 2:
            raise UserError(f"{number} is odd")
        return number // 2

    results = in_threads(half, [0, 2, 5, *range(100)], "halves", threads=3, at_once=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="5 is odd"):
        next(results)
    assert sorted(begun) == [0, 2, 5]
