"""Finding a record: by its name or a part of it, by its path, or by the identity of its run."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lutbench.errors import UserError, listed, nearest
from lutbench.recipes.suite import name_matches
from lutbench.record import Record, read_record


def find_record(run: str, results: Path) -> Record:
    """Return the record that ``run`` names: ``SUITE/RUN``, consecutive parts of that which no other has, or the path of its JSON.

    Records of one identity are of one run, which several suites may have: of them it is the one that was made under its own name.

    Raises:
        UserError: if there is none or there are several, or it is damaged.
    """
    if run.endswith(".json"):
        path = Path(run).expanduser()
        if not path.is_file():
            raise UserError(f"There is no record {path.absolute()}. Check the path, or name the run: SUITE/RUN.")
        return read_record(path)
    wanted = run.strip("/")
    paths = {path.relative_to(results / "records").with_suffix("").as_posix(): path for path in _files(results)}
    found = [wanted] if wanted in paths else [name for name in paths if name_matches(name, wanted)]
    if not found:
        where = (results / "records").absolute()
        raise UserError(
            f"There is no record of a run {run!r} below {where}.{nearest(wanted, paths)} Records there: {listed(paths) or 'none'}. "
            "Others lie where --results, or results=, says."
        )
    if len(found) > 1:
        with suppress(UserError):  # one that is damaged says no identity to rely on
            named = [read_record(paths[name], name) for name in found]
            if len({record.identity for record in named}) == 1:
                return next((record for record in named if record.made_as is None), named[0])
        raise UserError(
            f"{run!r} could be {len(found)} records: {listed(found, 12)}. Name more of the one that is meant."
        )
    return read_record(paths[found[0]], found[0])


def record_of(identity: str, results: Path) -> Record | None:
    """Return the record of the run of an ``identity``, in whatever suite, first in that which made it; None if none is whole."""
    taken = None
    for path in _files(results):
        if f'"identity": "{identity}"' in path.read_text(encoding="utf-8", errors="replace"):
            try:
                record = read_record(path)
            except UserError:
                continue
            if record.identity == identity and record.made_as is None:
                return record
            if record.identity == identity:
                taken = taken or record
    return taken


def suites_in(results: Path) -> list[str]:
    """Return the suites that there are records of."""
    return sorted({path.relative_to(results / "records").parts[0] for path in _files(results)})


def _files(results: Path) -> Iterator[Path]:
    yield from sorted((results / "records").rglob("*.json"))
