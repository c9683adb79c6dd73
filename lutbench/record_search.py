"""Find a record by its name or a part of it, by its path, or by the identity of its run; and read those that are intact."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lutbench.errors import UserError, listed, nearest
from lutbench.recipes.suite import name_matches
from lutbench.record import Record, read_record


def find_record(run: str, results: Path) -> Record:
    """Return the record that ``run`` names: ``SUITE/RUN``, consecutive parts of it that match one run only, or the path of its JSON.

    Records with the same identity, from several suites, are one run; the one of the suite that performed it is returned.

    Raises:
        UserError: if no record matches, several do, or it is damaged.
    """
    if run.endswith(".json"):
        path = Path(run).expanduser()
        if not path.is_file():
            raise UserError(f"There is no record {path.absolute()}. Check the path, or give the run's name: SUITE/RUN.")
        return read_record(path)
    wanted = run.strip("/")
    paths = {path.relative_to(results / "records").with_suffix("").as_posix(): path for path in _files(results)}
    found = [wanted] if wanted in paths else [name for name in paths if name_matches(name, wanted)]
    if not found:
        where = (results / "records").absolute()
        raise UserError(
            f"There is no record of a run {run!r} below {where}.{nearest(wanted, paths)} Records found: {listed(paths) or 'none'}. "
            "Set another results folder with --results (in Python: results=)."
        )
    if len(found) > 1:
        with suppress(UserError):  # the identity of a damaged record is not reliable
            named = [read_record(paths[name], name) for name in found]
            if len({record.identity for record in named}) == 1:
                return next((record for record in named if record.made_as is None), named[0])
        raise UserError(f"{run!r} matches {len(found)} records: {listed(found, 12)}. Give more of the name.")
    return read_record(paths[found[0]], found[0])


def record_of(identity: str, results: Path) -> Record | None:
    """Return the record of the run of an ``identity``, from any suite, preferably the one that performed it; None if there is no intact one."""
    wanted, taken = f'"identity": "{identity}"', None
    for record in intact_records(
        path for path in _files(results) if wanted in path.read_text(encoding="utf-8", errors="replace")
    ):
        if record.identity == identity and record.made_as is None:
            return record
        if record.identity == identity:
            taken = taken or record
    return taken


def intact_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records at ``paths`` that :func:`read_record` accepts; the others are left out: ``tables`` reports them."""
    for path in paths:
        try:
            record = read_record(path)
        except UserError:
            continue
        yield record


def suites_in(results: Path) -> list[str]:
    """Return the suites that have records."""
    return sorted({path.relative_to(results / "records").parts[0] for path in _files(results)})


def _files(results: Path) -> Iterator[Path]:
    yield from sorted((results / "records").rglob("*.json"))
