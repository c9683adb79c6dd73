"""Errors that a user can fix, printed as one paragraph."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can fix. The message says what was expected, what was found and what to do.

    The command line prints the message alone; ``--traceback`` shows where it came from.
    """


class Halt(UserError):
    """An error after which no further run is started: the disk is full, or the user asked to stop."""


class NotRun(UserError):
    """An optional dataset is absent: runs on it are left out, and the message says why."""


MANY = 20
"""Number of names above which an error lists only the nearest one."""


@contextmanager
def named(table: str, row: str = "") -> Iterator[None]:
    """Put the name of a table of the suite file, and of a row, before the message of a :class:`UserError`, unless it is there already."""
    try:
        yield
    except UserError as error:
        if str(error).startswith((f"{table}:", f"{table},", f"{table}.")):
            raise
        raise type(error)(f"{table}{row}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion such as ``" Did you mean 'epochs'?"``, or the empty string if nothing is near."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown(problem: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name: the problem, the nearest known name, and all of them unless there are too many."""
    names = list(known)
    suggestion = nearest(str(name), names)
    all_names = "" if suggestion and len(names) > MANY else f" Known: {', '.join(names) or 'none'}."
    return UserError(f"{problem}.{suggestion}{all_names}")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few of many names, for a message: ``a, b, c and 12 more``; what cannot be printed is escaped."""
    all_names = [name if name.isprintable() else repr(name) for name in names]
    shown = ", ".join(all_names[:limit])
    return shown if len(all_names) <= limit else f"{shown} and {len(all_names) - limit} more"
