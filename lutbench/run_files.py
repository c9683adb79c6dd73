"""The files that describe a run in its folder: ``run.json``, written at its start, and ``finished.json``, written at its end.

A folder with ``taken.json`` refers to another folder that holds the finished run. All three are sealed, see :mod:`lutbench.files`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from lutbench.errors import UserError, listed, nearest
from lutbench.files import DamagedError, read_sealed, write_sealed
from lutbench.kinds import STAGES
from lutbench.models.weight_files import sha256_of
from lutbench.recipes.suite import name_matches

STARTED, FINISHED, TAKEN = "run.json", "finished.json", "taken.json"

DEPTH = 4
"""Maximum number of folder levels between a stage and a run: table, dataset, row and seed, in robustness."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class Started(_Closed):
    """A run that has begun."""

    name: str
    identity: Sha256
    document: dict[str, Any]
    """What the identity is the hash of."""
    sources: dict[str, str] = {}
    """Hashes of the source files that it depends on, see :mod:`lutbench.sources`; empty for runs of earlier versions."""
    precision: Literal["", "bf16", "fp32"] = ""
    """The precision it computes in, also after it resumes; empty for runs of earlier versions."""


class Finished(_Closed):
    """A run that has finished."""

    identity: Sha256 | None = None
    """The run's identity; None for runs of earlier versions."""
    checkpoint: Sha256 | None = Field(validation_alias=AliasChoices("checkpoint", "encoder"))
    """sha256 of its final weights; None if it has none."""
    sources: dict[str, str] = {}
    """As in :class:`Started`."""
    files: dict[str, Sha256] = {}
    """sha256 of other files in its folder that are read later."""


class Taken(_Closed):
    """A run whose results are in another folder."""

    identity: Sha256
    folder: str
    """The run's folder, relative to the folder of this file."""


M = TypeVar("M", Started, Finished, Taken)


def write_started(
    folder: Path,
    name: str,
    identity: str,
    identity_inputs: dict[str, Any],
    sources: dict[str, str],
    precision: Literal["", "bf16", "fp32"] = "",
) -> None:
    """Write ``run.json``."""
    started = Started(name=name, identity=identity, document=identity_inputs, sources=sources, precision=precision)
    write_sealed(folder / STARTED, started.model_dump())


def write_finished(
    folder: Path, identity: str, checkpoint: str | None, sources: dict[str, str], files: Iterable[str]
) -> None:
    """Write ``finished.json``, which marks a run finished."""
    hashes = {file: sha256_of(folder / file) for file in files}
    finished = Finished(identity=identity, checkpoint=checkpoint, sources=sources, files=hashes)
    write_sealed(folder / FINISHED, finished.model_dump())


def read_started(folder: Path) -> Started:
    """Read ``run.json``.

    Raises:
        DamagedError: if it is missing or damaged.
    """
    return _read(folder / STARTED, Started)


def read_finished(folder: Path, identity: str | None = None) -> Finished:
    """Read ``finished.json``, and check its ``identity`` if one is given.

    Raises:
        DamagedError: if it is missing or damaged, or belongs to another run.
    """
    path = folder / FINISHED
    finished = _read(path, Finished)
    if identity is not None and finished.identity not in (None, identity):
        raise DamagedError(f"{path}: it belongs to another run, {str(finished.identity)[:12]}. {_REMEDY}")
    return finished


def write_taken(folder: Path, identity: str, found: Path) -> None:
    """Write ``taken.json`` in a run's ``folder``: the run of this identity is in the folder ``found``."""
    relative = os.path.relpath(found.resolve(), folder.resolve())
    write_sealed(folder / TAKEN, Taken(identity=identity, folder=Path(relative).as_posix()).model_dump())


def list_runs(runs: Path) -> dict[str, list[Path]]:
    """Return the folders of all runs below ``runs``, of any suite, by the first 12 characters of their identity.

    They are found by their names, ``SUITE/STAGE/.../seed0/IDENTITY``: no file is opened, and no run's folder is listed.
    """
    found: dict[str, list[Path]] = {}
    for suite in _folders(runs):
        waiting = [(suite / stage, DEPTH) for stage in STAGES]
        while waiting:
            folder, depth = waiting.pop()
            for inner in _folders(folder):
                name = (
                    re.match("[0-9a-f]{12}", inner.name) if re.fullmatch(r"seed\d+(-draw\d+)?", folder.name) else None
                )
                if name is None and depth:
                    waiting.append((inner, depth - 1))
                elif name is not None and name[0] == inner.name:  # else one that was set aside
                    found.setdefault(inner.name, []).append(inner)
    return {name: sorted(folders) for name, folders in found.items()}


def _folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder; none if it does not exist or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def finished_folder(name: str, runs: Path) -> Path:
    """Return the folder of a finished run, given as a folder or by its name below ``runs``; the latest if there are several recipes.

    The name is ``SUITE/NAME``, or consecutive parts of it that match one run only; several names of one identity are one run. The
    folder may be in another suite, if that suite did the run.

    Raises:
        UserError: if no run matches, or several do; lists them.
    """
    for home in (Path(name), runs / name):
        if folder := _latest(home):
            return folder
    homes = sorted({folder.parent for folders in list_runs(runs).values() for folder in folders})
    known = {home.relative_to(runs).as_posix(): folder for home in homes if (folder := _latest(home))}
    found = {other: folder for other, folder in known.items() if name_matches(other, name.strip("/"))}
    if len({folder.name for folder in found.values()}) == 1:  # the identity
        return next(iter(found.values()))
    if found:
        raise UserError(f"{name!r} matches {len(found)} runs: {listed(found, 12)}. Give more of the name.")
    raise UserError(
        f"There is no finished run {name!r} in {runs.absolute()}.{nearest(name, known)} Finished runs: {listed(known) or 'none'}."
    )


def _latest(home: Path) -> Path | None:
    """Return the folder of the latest finished run in ``home``, a run's folder or the folder of all runs of a name; None if there is none."""
    ends = [path for at in (home, *_folders(home)) for path in (at / FINISHED, at / TAKEN) if path.is_file()]
    for end in sorted(ends, key=lambda path: (path.parent == home, path.stat().st_mtime), reverse=True):
        folder = end.parent if end.name == FINISHED else end.parent / _read(end, Taken).folder
        if (folder / FINISHED).is_file():
            return folder.resolve() if end.name == TAKEN else folder
    return None


_REMEDY = "Restore it from a backup; without it the run counts as not finished."


def _read(path: Path, kind: type[M]) -> M:
    try:
        return read_sealed(path, kind, _REMEDY, older=lambda values: not getattr(values, "sources", True))
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: the file is missing. {_REMEDY}") from error
