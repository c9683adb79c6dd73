"""Runs that another suite has finished, or this one under another name: found by their identity, and not repeated.

Two runs with one identity have the same result, whatever they are called. So of a run that has not finished in its own
folder, every other folder below ``--runs`` that is named by its identity is looked at: if a run has finished there and is
whole, it is this run, its weights are read there, and its record is brought into the results under this run's name.
Nothing is ever written to another run's folder. One that is damaged is passed over, and so is one that was interrupted: to go on
there is for the suite whose it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lutbench.errors import UserError
from lutbench.files import DamagedError
from lutbench.models.weight_files import sha256_of
from lutbench.record import Record, read_record, record_path
from lutbench.run_files import FINISHED, STARTED, Finished, read_finished

if TYPE_CHECKING:
    from lutbench.run import Run


class FoundRun(NamedTuple):
    """A finished run in another folder."""

    folder: Path
    finished: Finished
    record: Record

    @property
    def name(self) -> str:
        """What it is called there, ``SUITE/RUN``."""
        return f"{self.record.suite}/{self.record.run}"


def find_run(run: "Run[Any]") -> tuple[FoundRun | None, list[str]]:
    """Return the finished run of the same identity in another folder, if there is one, and what is damaged of others.

    Of several the first by path. Its weights and the files of its record are not read: see :func:`check_found`.
    """
    damage: list[str] = []
    for folder in _others(run):
        if not (folder / FINISHED).is_file():
            continue
        try:
            if problem := run.workspace.passed_over.get(folder):
                raise DamagedError(problem)
            finished = read_finished(folder, run.identity)
            return FoundRun(folder, finished, _record(run, folder, finished.checkpoint)), damage
        except DamagedError as error:
            damage.append(f"{error} So that run is not taken for this one.")
    return None, damage


def check_found(run: "Run[Any]") -> None:
    """Read all of the run that was found for a run, and pass it over if it is damaged, and so on with the next."""
    while (found := find_run(run)[0]) is not None:
        try:
            for kept in found.record.files:
                found.record.content(kept)
            _check_weights(run, found)
            return
        except UserError as error:
            run.workspace.passed_over[found.folder] = str(error)


def begun_elsewhere(run: "Run[Any]") -> Iterator[Path]:
    """Yield the other folders in which a run of the same identity has begun and not finished."""
    for folder in _others(run):
        if (folder / STARTED).is_file() and not (folder / FINISHED).is_file():
            yield folder


def _others(run: "Run[Any]") -> list[Path]:
    """Return the folders that may hold a run of this identity, but its own: also where that has two paths, by a link."""
    folders, own = run.workspace.run_folders.get(run.identity[:12], []), run.folder.resolve()
    return [folder for folder in folders if folder.resolve() != own]


def _record(run: "Run[Any]", folder: Path, checkpoint: str | None) -> Record:
    """Return the whole record of a finished run, from its folder or else the results; its files are not read.

    Raises:
        DamagedError: if neither has one of this identity, with these weights.
    """
    suite, *name, _ = folder.relative_to(run.workspace.runs).parts
    kept = sorted((folder / "records").rglob("*.json"))
    problem = "there is none"
    for path in (*kept, record_path(run.workspace.results, suite, "/".join(name))):
        try:
            record = read_record(path, "/".join(name))
        except FileNotFoundError:
            continue
        except UserError as error:
            problem = str(error)
            continue
        if (record.identity, record.checkpoint) == (run.identity, checkpoint):
            return record
        problem = f"{path} is another run's"
    raise DamagedError(
        f"{folder / FINISHED}: it says that the run has finished, and no whole record says so: {problem}."
    )


def _check_weights(run: "Run[Any]", found: FoundRun) -> None:
    """Check what a run left, if it did not end with the weights that it began with; raises DamagedError."""
    files = found.finished.files
    left = {*files, *(path.name for path in found.folder.glob("*.safetensors"))}
    hashes = {name: sha256_of(path) for name in sorted(left) if (path := found.folder / name).is_file()}
    wrong = [name for name, sha256 in files.items() if hashes.get(name) != sha256]
    if wrong or found.finished.checkpoint not in (None, run.weights_sha256, *hashes.values()):
        what = wrong[0] if wrong else "the weights that it ended with"
        raise DamagedError(f"{found.folder}: {what}: missing, or not what {FINISHED} says of it.")
