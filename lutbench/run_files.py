"""What a run's folder says of the run: ``run.json`` from its start on, ``finished.json`` from its end on. Both are sealed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from lutbench.errors import UserError, listed, nearest
from lutbench.files import DamagedError, read_sealed, write_sealed
from lutbench.models.weights import sha256_of

STARTED, FINISHED = "run.json", "finished.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Started(_Closed):
    """A run that has begun."""

    name: str
    identity: Sha256
    document: dict[str, Any]
    """What the identity is the hash of."""
    sources: dict[str, str] = {}
    """Hashes of the sources that it depends on, see :mod:`lutbench.sources`; runs of before there were any say none."""


class Finished(_Closed):
    """A run that has finished."""

    identity: Sha256 | None = None
    """The run's; runs of before there were seals do not say it."""
    checkpoint: Sha256 | None = Field(validation_alias=AliasChoices("checkpoint", "encoder"))
    """sha256 of the weights that it ended with; None if it made none."""
    sources: dict[str, str] = {}
    """As those of :class:`Started`."""
    files: dict[str, Sha256] = {}
    """sha256 of further files in its folder that are read again."""


M = TypeVar("M", Started, Finished)


def write_started(
    folder: Path, name: str, identity: str, identity_inputs: dict[str, Any], sources: dict[str, str]
) -> None:
    """Write down what a folder is of."""
    started = Started(name=name, identity=identity, document=identity_inputs, sources=sources)
    write_sealed(folder / STARTED, started.model_dump())


def write_finished(
    folder: Path, identity: str, checkpoint: str | None, sources: dict[str, str], files: Iterable[str]
) -> None:
    """Mark a run finished."""
    hashes = {file: sha256_of(folder / file) for file in files}
    finished = Finished(identity=identity, checkpoint=checkpoint, sources=sources, files=hashes)
    write_sealed(folder / FINISHED, finished.model_dump())


def read_started(folder: Path) -> Started:
    """Read what a folder is of.

    Raises:
        DamagedError: if that is not there, or not as it was written.
    """
    return _read(folder / STARTED, Started)


def read_finished(folder: Path, identity: str | None = None) -> Finished:
    """Read what a run left that has finished; it has this ``identity``, if one is given.

    Raises:
        DamagedError: if it is not as it was written, or another run's.
    """
    path = folder / FINISHED
    finished = _read(path, Finished)
    if identity is not None and finished.identity not in (None, identity):
        raise DamagedError(f"{path}: it is that of another run, {str(finished.identity)[:12]}. {_REMEDY}")
    return finished


def finished_folder(name: str, runs: Path) -> Path:
    """Return the folder of a finished run, by itself or by ``SUITE/NAME`` below ``runs``; of several recipes the latest.

    Raises:
        UserError: if there is none; names those that there are.
    """
    for home in (Path(name), runs / name):
        if (home / FINISHED).is_file():
            return home
        finished = sorted(home.glob(f"*/{FINISHED}"), key=lambda path: path.stat().st_mtime)
        if finished:
            return finished[-1].parent
    known = sorted({path.parents[1].relative_to(runs).as_posix() for path in runs.glob(f"**/{FINISHED}")})
    raise UserError(
        f"There is no finished run {name!r} in {runs.absolute()}.{nearest(name, known)} Finished there: {listed(known) or 'none'}."
    )


_REMEDY = "Restore it from a copy; without it the run counts as not finished."


def _read(path: Path, kind: type[M]) -> M:
    try:
        return read_sealed(path, kind, _REMEDY, older=lambda values: not values.sources)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: it is missing. {_REMEDY}") from error
