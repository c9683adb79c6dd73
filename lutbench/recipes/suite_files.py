"""Suite files: where they are, how they are read, and how ``extends`` works.

A file with ``extends = "small"`` (a suite that comes with the package, the path of a ``.toml`` relative to the extending
file, or a list of them) starts with all tables of that suite, the base; its own tables are then merged into them:

- Tables of the same name are merged setting by setting, as with ``--set``; a value or a list replaces that of the base. The
  ``budget`` of a pre-training run replaces its ``epochs``, and vice versa.
- ``title``, ``about`` and ``seeds`` replace those of the base if given; otherwise ``about`` quotes the base's text. Pairs in
  ``compare`` are added to those of the base.
- ``kind`` is that of the base, and with several bases the weakest. A suite that extends a pipeline is a pipeline too, because its
  tables include the pipeline's numbers: ``kind = "evidence"`` is rejected there. ``--set kind=evidence`` overrides this.
- A new ``[method.NAME]`` or ``[classifier.NAME]`` is added to the base's tables too, see :mod:`lutbench.recipes.joining`.
- If several bases define the same name differently, the extending file must define it.

Runs and records belong to the extending suite, under its own name. Finished runs of a base are found and reused, see
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
"""The folder of the shipped suites, where ``lutbench run tiny`` finds ``tiny.toml``."""

WEAKEST_FIRST = ("pipeline", "exploration", "evidence")
"""The kinds of suites, ordered by how much their numbers can show about the methods."""

LISTS = ("methods", "classifiers")
"""The settings of a table that list its rows."""

LENGTHS = {"epochs": "budget", "budget": "epochs"}
"""The two settings for the length of a pre-training run: in an extending suite or by ``--set``, one replaces the other."""

Setting = tuple[str, str, str]
"""Path of a list of rows: ``("downstream", "photos", "methods")``."""


@dataclass(frozen=True)
class NewRows:
    """The methods and classifiers that one file adds to the suite it extends."""

    file: Path
    methods: tuple[str, ...]
    classifiers: tuple[str, ...]
    beside: tuple[str, ...]
    """The methods of the extended suite."""
    lists: frozenset[Setting]
    """The lists of rows in the extended suite, except those that this file or one that extends it replaces."""
    unlisted: frozenset[Setting]
    """Paths of lists that the other tables there could have; without a list they have all methods."""

    def without(self, given: Collection[tuple[str, ...]]) -> "NewRows":
        """Return the new rows without the lists at or below these paths, which then stay unchanged."""

        def kept(settings: frozenset[Setting]) -> frozenset[Setting]:
            return frozenset(at for at in settings if not any(at[:depth] in given for depth in (1, 2, 3)))

        return replace(self, lists=kept(self.lists), unlisted=kept(self.unlisted))


@dataclass(frozen=True)
class SuiteTables:
    """The merged tables of a suite file and all suites it extends."""

    path: Path
    tables: dict[str, Any]
    bases: tuple[str, ...] = ()
    """The suites that it extends, directly or not, the nearest first."""
    new_rows: tuple[NewRows, ...] = ()
    """The new rows of every extending file, bases first."""


def suite_path(name_or_path: str, folder: Path = Path(), where: str = "") -> Path:
    """Return the suite file of this name, or at this path relative to ``folder``; messages begin with ``where``.

    Raises:
        UserError: if it does not exist; the message suggests the nearest existing name.
    """
    by_path = name_or_path.endswith(".toml")
    path = folder / Path(name_or_path).expanduser() if by_path else SUITES / f"{name_or_path}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in SUITES.glob("*.toml"))
        beside = sorted(file.name for file in (path.parent if by_path else folder).glob("*.toml")) if where else []
        raise UserError(
            f"{where}{'there' if where else 'There'} is no suite {name_or_path!r}.{nearest(name_or_path, [*known, *beside])} "
            f"Shipped suites: {', '.join(known)}. Or give the path of a .toml file."
        )
    return path


def read_suite(path: Path, before: tuple[Path, ...] = (), text: str | None = None) -> SuiteTables:
    """Read a suite file, or the ``text`` that one is to have, and all suites it extends; ``before`` are the files that extend it.

    Raises:
        UserError: for a file that cannot be read; if ``extends`` names a missing suite, forms a cycle or names a suite of the same
            name; if several bases contradict each other.
    """
    own = _read(path, text)
    if "extends" not in own:
        return SuiteTables(path, own)
    chain = (*before, path)
    bases = [read_suite(base, chain) for base in _extended(own.pop("extends"), chain)]
    for one, other in combinations(bases, 2):
        _check_alike(one, other, own, path)
    tables = _together([base.tables for base in bases])
    if tables.get("kind") == "pipeline" and own.get("kind") in ("exploration", "evidence"):
        raise UserError(
            f"{path}: kind = {own['kind']!r} is not allowed, because the suite extends {listed(base.path.stem for base in bases)}, a pipeline, whose "
            f"numbers are no evidence. Remove kind. If this file replaces every setting that makes it a pipeline, use --set kind={own['kind']}."
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
        own["about"] = f"Extends {listed(base.path.stem for base in bases)}, described as:\n\n{about.strip()}\n"
    return SuiteTables(
        path, _over(tables, own), tuple(names), (*(rows.without(given) for rows in earlier.values()), new_rows)
    )


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ValueError, also where tomllib reaches its limits."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise ValueError("tables or lists are nested too deeply" if deep else "a number has too many digits") from error


def check_texts(tables: Mapping[str, Any], where: str) -> None:
    """Check that tables can be compared, printed and written again; raises UserError, whose message begins with ``where``."""
    decided = tables.get("decided")
    one_line = {"about": _in_one_line(tables.get("about"))}
    if isinstance(decided, dict):  # besides ``about``, only texts in [decided] may have several lines
        one_line["decided"] = {key: _in_one_line(value) for key, value in decided.items()}
    try:
        check_plain({**tables, **one_line})
    except ValueError as error:
        raise UserError(f"{where}: {error}. Correct it there.") from error


def _in_one_line(value: Any) -> Any:
    """Return a text without breaks of lines; anything else as it is."""
    return value.replace("\n", " ").replace("\t", " ") if isinstance(value, str) else value


def _read(path: Path, text: str | None = None) -> dict[str, Any]:
    try:
        tables = parse_toml(
            path.read_text(encoding="utf-8-sig") if text is None else text
        )  # -sig: a byte-order mark may stand first
    except (OSError, ValueError) as error:  # ValueError: not UTF-8 or not TOML
        raise UserError(f"{path} cannot be read as a TOML file: {error}.") from error
    check_texts(tables, str(path))
    return tables


def _extended(given: Any, chain: tuple[Path, ...]) -> list[Path]:
    """Return the files that the last file of ``chain`` extends; each file in ``chain`` extends the next."""
    path = chain[-1]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: extends: expected the name or file of a suite, or a list of these, found {given!r}.")
    found = [suite_path(name, path.parent, f"{path}: extends: ") for name in names]
    for base in found:
        way = " -> ".join(file.stem for file in (*chain, base))
        if any(base.resolve() == file.resolve() for file in chain):
            raise UserError(f"{path}: extends: a suite cannot extend itself, found {way}. Remove one of these.")
        if base.stem in {file.stem for file in chain}:
            raise UserError(
                f"{path}: extends: {base} has the same name as a suite that extends it ({way}), so both would use the same folders for runs and "
                "results. Rename one of the files."
            )
    if len({base.resolve() for base in found}) < len(found):
        raise UserError(f"{path}: extends: a suite appears twice in {given!r}. List every suite once.")
    return found


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a base merged with those of the suite that extends it."""
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
    """Return the merged tables of several bases, which do not contradict each other."""
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
    """Check that two bases define the same names equally, unless the file at ``path``, which extends both, defines them."""
    settled = {key for key, _ in _leaves(own)}
    values = [dict(_leaves(_comparable(suite.tables, beside.tables))) for suite, beside in ((one, other), (other, one))]
    different = [
        f"{'.'.join(key)} is {_shown(values[0], key)} in {one.path.stem} and {_shown(values[1], key)} in {other.path.stem}"
        for key in dict.fromkeys([*values[0], *values[1]])
        if key not in settled and values[0].get(key, _leaves) != values[1].get(key, _leaves)
    ]
    if different:
        raise UserError(
            f"{path}: extends: {one.path.stem} and {other.path.stem} contradict each other: {listed(different, 4)}. Set the value in "
            f"{path.name}, or extend only one of them."
        )


def _comparable(tables: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal in two bases: seeds, tables that both have, and defaults of kinds that both use."""
    kinds = _kinds(tables) & _kinds(beside)
    found: dict[str, Any] = {"seeds": tables.get("seeds", [0])}
    for section, named in tables.items():
        if isinstance(named, dict) and section != "cluster":
            shared = kinds if section == "defaults" else _section(section, beside)
            found[section] = {name: values for name, values in named.items() if name in shared}
    return found


def _kinds(tables: Mapping[str, Any]) -> set[str]:
    """Return the kinds of run in a suite's tables."""
    kinds = set()
    for stage in {kind.stage for kind in KINDS.values()}:
        first = next(kind.name for kind in KINDS.values() if kind.stage == stage)
        named = (table for table in _section(stage, tables).values() if isinstance(table, dict))
        kinds |= {str(table.get("kind", first)) for table in named}
    return kinds


def _leaves(tables: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting of nested tables with its path."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key), value


def _shown(values: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return repr(values[key])[:60] if key in values else "not given"


def _lists(tables: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield the paths of all lists of rows in the tables."""
    for stage in {kind.stage for kind in KINDS.values()}:
        for task, table in _section(stage, tables).items():
            if isinstance(table, dict):
                yield from ((stage, task, key) for key in LISTS if key in table)


def _unlisted(tables: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield the paths of the ``methods`` lists that tasks do not have."""
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
