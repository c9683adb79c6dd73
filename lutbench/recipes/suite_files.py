"""Suite files: where they lie, what is in them, and what ``extends`` takes from others.

A file with ``extends = "small"`` (a suite that comes with the package, the path of a ``.toml`` relative to the extending
file, or a list of them) is read as if it had all tables of that suite, and its own put over them:

- A table of the same name is merged setting by setting, as ``--set`` would; a value or a list replaces the base's. The
  ``budget`` of a pre-training run replaces its ``epochs``, and the other way round.
- ``title``, ``about`` and ``seeds`` are its own if given; else the base's text is said to be the base's. ``compare`` adds pairs to the base's.
- ``kind`` is the base's, and the weakest of several. What extends a pipeline is one: its tables have the numbers
  of a pipeline. ``kind = "evidence"`` is refused there, and ``--set kind=evidence`` says it all the same.
- A new ``[method.NAME]`` is a row of the base's tables too, and a new ``[classifier.NAME]``: see :mod:`lutbench.recipes.joining`.
- Several bases may define one name only alike, unless the extending file says how it is.

Runs and records are those of the extending suite, by its own name; what a base has finished already is found and used, see
:mod:`lutbench.run_lookup`.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from lutbench.errors import UserError, listed, nearest
from lutbench.files import check_plain
from lutbench.kinds import KINDS

SUITES = Path(str(files("suites")))
"""Where ``lutbench run tiny`` finds ``tiny.toml``."""

WEAKEST_FIRST = ("pipeline", "exploration", "evidence")
"""The kinds of suites, by what their numbers say of the methods."""

LISTS = ("methods", "classifiers")
"""The settings of a table that say which rows it has."""

LENGTHS = {"epochs": "budget", "budget": "epochs"}
"""The two settings that say how long a pre-training run is: what extends a suite, or ``--set``, gives one in place of the other."""

Setting = tuple[str, str, str]
"""Where a list of rows stands: ``("downstream", "photos", "methods")``."""


@dataclass(frozen=True)
class NewRows:
    """The rows that one file adds to what it extends."""

    file: Path
    methods: tuple[str, ...]
    classifiers: tuple[str, ...]
    beside: tuple[str, ...]
    """The methods of what it extends."""
    lists: frozenset[Setting]
    """The lists of rows in what it extends, but those that this file, or one that extends it, gives itself."""
    unlisted: frozenset[Setting]
    """Where the other tables there would have theirs, which have all rows because they list none."""

    def without(self, given: Collection[tuple[str, ...]]) -> "NewRows":
        """Return them with the lists left as they are that stand at one of these paths, or in a table there."""

        def kept(settings: frozenset[Setting]) -> frozenset[Setting]:
            return frozenset(at for at in settings if not any(at[:depth] in given for depth in (1, 2, 3)))

        return replace(self, lists=kept(self.lists), unlisted=kept(self.unlisted))


@dataclass(frozen=True)
class SuiteTables:
    """The tables of a suite file with all that it extends."""

    path: Path
    tables: dict[str, Any]
    bases: tuple[str, ...] = ()
    """The suites that it extends, the nearest first, with those that they extend."""
    new_rows: tuple[NewRows, ...] = ()
    """Of every file that extends another, those that are extended first."""


def suite_path(name_or_path: str, folder: Path = Path(), where: str = "") -> Path:
    """Return the suite file of this name, or at this path relative to ``folder``; ``where`` names who asks, for messages.

    Raises:
        UserError: if there is none, with the nearest that there is.
    """
    by_path = name_or_path.endswith(".toml")
    path = folder / Path(name_or_path).expanduser() if by_path else SUITES / f"{name_or_path}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in SUITES.glob("*.toml"))
        beside = sorted(file.name for file in (path.parent if by_path else folder).glob("*.toml")) if where else []
        raise UserError(
            f"{where}{'there' if where else 'There'} is no suite {name_or_path!r}.{nearest(name_or_path, [*known, *beside])} "
            f"Suites here: {', '.join(known)}; or give the path of a .toml file."
        )
    return path


def read_suite(path: Path, before: tuple[Path, ...] = ()) -> SuiteTables:
    """Read a suite file with all that it extends; ``before`` are the files that extend it.

    Raises:
        UserError: for a file that cannot be read, ``extends`` of a missing suite, in a circle or of a suite of the same name, and
            for several that do not fit each other.
    """
    own = _read(path)
    if "extends" not in own:
        return SuiteTables(path, own)
    chain = (*before, path)
    bases = [read_suite(base, chain) for base in _extended(own.pop("extends"), chain)]
    for one, other in combinations(bases, 2):
        _check_alike(one, other, own, path)
    tables = _together([base.tables for base in bases])
    if tables.get("kind") == "pipeline" and own.get("kind") in ("exploration", "evidence"):
        raise UserError(
            f"{path}: kind: it extends a pipeline, {listed(base.path.stem for base in bases)}, whose numbers are no evidence and stand in its "
            f"tables. Leave kind out; if all that makes them none is changed here, say --set kind={own['kind']}."
        )
    given = frozenset(_lists(own))
    new_rows = NewRows(
        path,
        _new("method", own, tables),
        _new("classifier", own, tables),
        tuple(_section("method", tables)),
        frozenset(_lists(tables)) - given,
        frozenset(_unlisted(tables)) - given,
    )
    earlier = {rows.file.resolve(): rows for base in bases for rows in base.new_rows}
    names = dict.fromkeys([*(base.path.stem for base in bases), *(name for base in bases for name in base.bases)])
    if isinstance(about := tables.get("about"), str) and "about" not in own:
        own["about"] = f"It extends {listed(base.path.stem for base in bases)}, whose own text is:\n\n{about.strip()}\n"
    return SuiteTables(
        path, _over(tables, own), tuple(names), (*(rows.without(given) for rows in earlier.values()), new_rows)
    )


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ValueError, also where tomllib meets its limits."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise ValueError("tables or lists nested without end" if deep else "a number of thousands of digits") from error


def check_texts(tables: Mapping[str, Any], where: str) -> None:
    """Check that tables can be compared, printed and written again; raises UserError, which begins with ``where``."""
    decided = tables.get("decided")
    one_line = {"about": _in_one_line(tables.get("about"))}
    if isinstance(decided, dict):  # its texts may have several lines too, and no other
        one_line["decided"] = {key: _in_one_line(value) for key, value in decided.items()}
    try:
        check_plain({**tables, **one_line})
    except ValueError as error:
        raise UserError(f"{where}: {error}. Change it there.") from error


def _in_one_line(value: Any) -> Any:
    """Return a text without breaks of lines; anything else as it is."""
    return value.replace("\n", " ").replace("\t", " ") if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = parse_toml(path.read_text(encoding="utf-8-sig"))  # with or without a byte-order mark
    except (OSError, ValueError) as error:  # ValueError: not UTF-8 or not TOML
        raise UserError(f"{path}: not a TOML file that can be read: {error}.") from error
    check_texts(tables, str(path))
    return tables


def _extended(given: Any, chain: tuple[Path, ...]) -> list[Path]:
    """Return the files that the last of a ``chain`` extends, each of which extends the next."""
    path = chain[-1]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: extends: expected a suite, its file or a list of them, found {given!r}.")
    found = [suite_path(name, path.parent, f"{path}: extends: ") for name in names]
    for base in found:
        way = " -> ".join(file.stem for file in (*chain, base))
        if any(base.resolve() == file.resolve() for file in chain):
            raise UserError(f"{path}: extends: a suite cannot extend itself, and here {way}. Take one of these out.")
        if base.stem in {file.stem for file in chain}:
            raise UserError(
                f"{path}: extends: {base} has the name of what extends it ({way}), and with it the same folders of runs and "
                "results. Rename one of the files."
            )
    if len({base.resolve() for base in found}) < len(found):
        raise UserError(f"{path}: extends: one suite is named twice, in {given!r}.")
    return found


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite's tables with those of one that extends it over them."""
    tables = _merged(base, own)
    for name, given in _section("pretrain", own).items():
        for length, other in LENGTHS.items() if isinstance(given, dict) else ():
            if length in given and other not in given:
                tables["pretrain"][name].pop(other, None)
    pairs = [*_list("compare", base), *_list("compare", own)]
    if pairs and isinstance(own.get("compare", []), list):
        tables["compare"] = [pair for index, pair in enumerate(pairs) if pair not in pairs[:index]]
    return tables


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = {key for key in base if isinstance(base[key], dict) and isinstance(own.get(key), dict)}
    return {**base, **{key: _merged(base[key], value) if key in both else value for key, value in own.items()}}


def _together(bases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tables of several suites that define nothing differently which the extending file leaves open."""
    tables = dict(bases[0])
    for base in bases[1:]:
        kinds = {tables.get("kind"), base.get("kind")}
        texts = {key: _joined(tables.get(key), base.get(key), by) for key, by in (("title", " + "), ("about", "\n\n"))}
        tables = _over(tables, base) | {key: text for key, text in texts.items() if text is not None}
        tables |= {"kind": next(kind for kind in (*WEAKEST_FIRST, None) if kind in kinds)}
    return tables


def _joined(one: Any, other: Any, by: str) -> Any:
    both = isinstance(one, str) and isinstance(other, str) and one != other
    return f"{one.strip()}{by}{other.strip()}" if both else one


def _check_alike(one: SuiteTables, other: SuiteTables, own: Mapping[str, Any], path: Path) -> None:
    """Check that what two suites say of one name is the same, or said by the file at ``path`` that extends both."""
    settled = {key for key, _ in _leaves(own)}
    values = [dict(_leaves(_comparable(suite.tables, beside.tables))) for suite, beside in ((one, other), (other, one))]
    different = [
        f"{'.'.join(key)} is {_shown(values[0], key)} in {one.path.stem} and {_shown(values[1], key)} in {other.path.stem}"
        for key in dict.fromkeys([*values[0], *values[1]])
        if key not in settled and values[0].get(key, _leaves) != values[1].get(key, _leaves)
    ]
    if different:
        raise UserError(
            f"{path}: extends: {one.path.stem} and {other.path.stem} define one name differently: {listed(different, 4)}. Say in "
            f"{path.name} which it is, or extend one of them."
        )


def _comparable(tables: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two suites must not say differently: seeds, the tables of names that both have, and defaults that concern both."""
    kinds = _kinds(tables) & _kinds(beside)
    found: dict[str, Any] = {"seeds": tables.get("seeds", [0])}
    for section, named in tables.items():
        if isinstance(named, dict) and section != "cluster":
            shared = kinds if section == "defaults" else _section(section, beside)
            found[section] = {name: values for name, values in named.items() if name in shared}
    return found


def _kinds(tables: Mapping[str, Any]) -> set[str]:
    """Return the kinds of run that a suite's tables make."""
    kinds = set()
    for stage in {kind.stage for kind in KINDS.values()}:
        first = next(kind.name for kind in KINDS.values() if kind.stage == stage)
        named = (table for table in _section(stage, tables).values() if isinstance(table, dict))
        kinds |= {str(table.get("kind", first)) for table in named}
    return kinds


def _leaves(tables: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting of nested tables, by its path."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key), value


def _shown(values: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return repr(values[key])[:60] if key in values else "not given"


def _lists(tables: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield the lists of rows that tables have."""
    for stage in {kind.stage for kind in KINDS.values()}:
        for task, table in _section(stage, tables).items():
            if isinstance(table, dict):
                yield from ((stage, task, key) for key in LISTS if key in table)


def _unlisted(tables: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield where tasks could list their methods that do not."""
    for stage in {kind.stage for kind in KINDS.values() if kind.starts_from == "encoder"}:
        for task, table in _section(stage, tables).items():
            if isinstance(table, dict) and "methods" not in table:
                yield stage, task, "methods"


def _new(section: str, own: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in _section(section, own) if name not in _section(section, base))


def _section(name: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _list(key: str, tables: Mapping[str, Any]) -> list[Any]:
    found = tables.get(key)
    return found if isinstance(found, list) else []
