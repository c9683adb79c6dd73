"""Find runs that another suite has finished, or this suite under another name, by their identity, so that they are not repeated.

Two runs with the same identity have the same result, whatever their names. So if a run has not finished in its own folder, every
other folder below ``--runs`` that is named after its identity is checked. If an intact, finished run is found, its weights are read
there, and its record is copied to the results under this run's name. Nothing is ever written to another run's folder. Damaged and
interrupted runs are skipped: only their own suite resumes them.
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
        """Its name there, ``SUITE/RUN``."""
        return f"{self.record.suite}/{self.record.run}"


def find_run(run: "Run[Any]") -> tuple[FoundRun | None, list[str]]:
    """Return a finished run of the same identity in another folder, if there is one, and messages about damaged ones.

    If there are several, the first by path. Does not read its weights and the files of its record: see :func:`check_found`.
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
            damage.append(f"{error} So that run is not reused.")
    return None, damage


def check_found(run: "Run[Any]") -> None:
    """Read all files of the run that was found in place of a run; if it is damaged, skip it and check the next."""
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
    """Return the folders that may hold a run of this identity, except its own, also if a link gives that a second path."""
    folders, own = run.workspace.run_folders.get(run.identity[:12], []), run.folder.resolve()
    return [folder for folder in folders if folder.resolve() != own]


def _record(run: "Run[Any]", folder: Path, checkpoint: str | None) -> Record:
    """Return the record of a finished run, from its folder or else from the results; the record's files are not read.

    Raises:
        DamagedError: if neither has an intact one of this identity, with these weights.
    """
    suite, *name, _ = folder.relative_to(run.workspace.runs).parts
    kept = sorted((folder / "records").rglob("*.json"))
    problem = "no record found"
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
        problem = f"{path} belongs to another run"
    raise DamagedError(f"{folder / FINISHED} says that the run has finished, but it has no intact record: {problem}.")


def _check_weights(run: "Run[Any]", found: FoundRun) -> None:
    """Check the files that a run left, unless it ended with the weights it started from; raises DamagedError."""
    files = found.finished.files
    left = {*files, *(path.name for path in found.folder.glob("*.safetensors"))}
    hashes = {name: sha256_of(path) for name in sorted(left) if (path := found.folder / name).is_file()}
    wrong = [name for name, sha256 in files.items() if hashes.get(name) != sha256]
    if wrong or found.finished.checkpoint not in (None, run.weights_sha256, *hashes.values()):
        what = wrong[0] if wrong else "final weights"
        raise DamagedError(f"{found.folder}: {what}: missing, or the sha256 differs from the one in {FINISHED}.")
