"""The commands that repeat the runs of a page, whole: suite, settings, folders, and what a run starts from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from lutbench.changes import changes
from lutbench.errors import UserError, listed
from lutbench.lineage import started_from
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record


class Repeat(NamedTuple):
    """How to repeat a run."""

    command: str
    note: str = ""
    """What the command cannot say; empty if it says everything."""


def repeat_command(suite: LoadedSuite, run: str, options: str) -> str:
    """Return the command that repeats a run of a suite, and first what it starts from if that has not finished.

    ``options`` are those for the folders, see :attr:`lutbench.workspace.Workspace.options`.
    """
    name = suite.given.split(" --")[0]
    known = {planned.name: planned for planned in suite.runs}
    names, needs = [run], known[run].needs if run in known else None
    while needs:
        names.insert(0, needs)
        needs = known[needs].needs
    return _command(quote(name) + suite.given.removeprefix(name), names, options)


def repeat_of_record(
    record: Record, known: Mapping[str, Record], suite: LoadedSuite | None, results: Path, options: str
) -> Repeat:
    """Return how to repeat the run of a record, with the settings that the suite's file does not have.

    ``known`` are the records of its results folder by identity, and ``suite`` is its suite; None if its file was not found.
    """
    chain = [record]
    while (before := known.get(started_from(chain[0]).get("run", ""))) is not None:
        chain.insert(0, before)
    names = [one.run for one in chain]
    if suite is None:
        note = f"The file of this suite was not found. If it is PATH/{record.suite}.toml, give --suite PATH/{record.suite}.toml."
        return Repeat(_command(quote(record.suite), names, options), note)
    overrides = tuple(dict.fromkeys(override for one in chain for override in _overrides(suite, one)))
    changed = suite_or_none(suite.given, overrides, results) or suite
    left = dict.fromkeys(text for one in chain for text in _differences(changed, one))
    note = f"The suite's file has changed since this run, code {record.code}: {listed(left, 6)}." if left else ""
    sets = "".join(f" --set {quote(override)}" for override in overrides if changed is not suite)
    return Repeat(_command(quote(suite.given) + sets, names, options), note)


@cache
def suite_or_none(name: str, overrides: tuple[str, ...], results: Path) -> LoadedSuite | None:
    """Return a suite with changed settings; None if it has no file, or cannot have these settings."""
    try:
        return load_suite(name, overrides, results)
    except UserError:
        return None


def _command(suite: str, names: Sequence[str], options: str) -> str:
    chosen = " ".join(f"--only {quote(name)}" for name in names)
    return f"lutbench run {suite} {chosen} --again {quote(names[-1])}{options}"


def _planned(suite: LoadedSuite, record: Record) -> dict[str, Any] | None:
    """Return the settings that a suite has for the run of a record; None if it has no such run."""
    return next((run.recipe.affecting_results() for run in suite.runs if run.name == record.run), None)


def _overrides(suite: LoadedSuite, record: Record) -> Iterator[str]:
    """Yield the changes of settings, as ``--set`` has them, that make a suite's run that of a record, as far as its own table has them."""
    planned, made = _planned(suite, record) or {}, record.identity_inputs["recipe"]
    for name, value in made.items():
        if name in planned and value != planned[name] and (text := _toml(value)) is not None:
            yield f"{record.stage}.{record.task.split('/')[0]}.{name}={text}"


def _differences(suite: LoadedSuite, record: Record) -> list[str]:
    """Return what keeps a suite's run from being that of a record."""
    planned = _planned(suite, record)
    return [f"{record.run} is gone"] if planned is None else changes(record.identity_inputs["recipe"], planned)


def _toml(value: Any) -> str | None:
    """Return a value as TOML, on one line; None of a table, or of nothing, which TOML has no word for."""
    parts = value if isinstance(value, list) else [value]
    return None if any(part is None or isinstance(part, dict | list) for part in parts) else json.dumps(value)
