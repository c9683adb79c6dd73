"""From a suite file to the runs it makes: names resolved, every recipe checked."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any, get_args

from lutbench.data.catalogue import MEASURED_ON, TRAINED_ON
from lutbench.errors import UserError, nearest, unknown
from lutbench.files import check_plain
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, check_name
from lutbench.recipes.expand import AnyData, expand
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import LoadedSuite, Suite

SOURCES: dict[str, type[AnyData]] = {
    source: recipe
    for recipe in (DataRecipe, SegmentationDataRecipe)
    for source in get_args(recipe.model_fields["source"].annotation)
}
"""The type of recipe that describes each source of data: images with or without labels, or images with masks."""

SUITES = Path(str(files("suites")))
"""Where ``lutbench run tiny`` finds ``tiny.toml``."""


def load_suite(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedSuite:
    """Read ``suites/NAME.toml`` or the file given, apply ``PATH=VALUE`` overrides and check every recipe.

    Raises:
        UserError: for a missing or malformed file, and for every setting that is unknown, mistyped, out of range
            or contradictory, before anything is run.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else SUITES / f"{name_or_path}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in SUITES.glob("*.toml"))
        raise UserError(
            f"There is no suite {name_or_path!r}.{nearest(name_or_path, known)} Suites here: {', '.join(known)}; or give the path of a .toml file."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
        tables = _toml(text)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8 or not TOML
        raise UserError(f"{path}: not a TOML file that can be read: {error}.") from error
    for override in overrides:
        _override(tables, override)
    try:
        check_plain(_about_in_one_line(tables))
    except ValueError as error:
        raise UserError(
            f"{path}{' with what --set changes' if overrides else ''}: {error}. Change it there."
        ) from error
    given = " ".join([name_or_path, *(f"--set {quote(override)}" for override in overrides)])
    return _expand(given, path, tables)


def _toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ValueError, also where tomllib meets its limits."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise ValueError("tables or lists nested without end" if deep else "a number of thousands of digits") from error


def _about_in_one_line(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with the one text that may have several lines in one."""
    about = tables.get("about")
    return tables if not isinstance(about, str) else {**tables, "about": about.replace("\n", " ").replace("\t", " ")}


def _expand(given: str, path: Path, tables: dict[str, Any]) -> LoadedSuite:
    try:
        check_name(path.stem)
    except ValueError as error:
        raise UserError(f"{str(path)!r}: a suite is named by its file, and {error}. Rename the file.") from error
    suite = read_recipe(Suite, tables, "")
    for key, settings in suite.defaults.items():
        if key not in KINDS:
            raise unknown(f"defaults.{key}: no such stage or task", key, KINDS)
        known = KINDS[key].recipe.model_fields
        for setting in settings:
            if setting not in known:
                raise UserError(f"defaults.{key}.{setting}: no such setting.{nearest(setting, known)}")
    if both := sorted(set(suite.method) & set(suite.classifier)):
        raise UserError(
            f"classifier.{both[0]}: there is a method of this name. Rename one: both are rows of the tables."
        )
    data = {name: _data(name, values) for name, values in suite.data.items()}
    runs = expand(path.stem, suite, data)
    added = (run.method for run in runs if run.method)  # by an analysis: untrained encoders
    rows = list(dict.fromkeys([*suite.method, *suite.classifier, *added]))
    for pair in suite.compare:
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(rows):
            raise UserError(
                f"compare: expected pairs of methods such as ['lut', 'mae'], found {pair}. Methods: {', '.join(rows)}."
            )
    for run, times in Counter(run.name for run in runs).items():
        if times > 1:
            raise UserError(f"{run} would be run {times} times: name every seed, and every method of a task, once.")
    return LoadedSuite(path.stem, suite, tuple(runs), given)


def _data(name: str, values: dict[str, Any]) -> AnyData:
    """Return the recipe of ``[data.NAME]``; with ``known`` that of a known dataset, and what else is given changes it."""
    if "known" in values:
        known = values["known"]
        problem = f"data.{name}.known: there is no set {known!r} to train on"
        if known in list(MEASURED_ON):
            raise UserError(f"{problem}. It is a robustness dataset: name it in the sets of a [robustness.NAME].")
        if known not in list(TRAINED_ON):
            raise unknown(problem, known, TRAINED_ON)
        recipe = TRAINED_ON[known].recipe.model_dump(exclude_defaults=True)
        values = {**recipe, **{key: value for key, value in values.items() if key != "known"}}
    source = values.get("source", "folder")
    if source not in list(SOURCES):
        raise unknown(f"data.{name}.source: there is no {source!r}", source, SOURCES)
    return read_recipe(SOURCES[source], values, f"data.{name}")


def _override(tables: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set PATH=VALUE``; the value is read as TOML, and as plain text if it is not TOML."""
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {assignment}: expected PATH=VALUE, such as pretrain.lut.epochs=20.")
    try:
        value = _toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except ValueError as error:
        raise UserError(f"--set {assignment[:80]}...: a value that cannot be read: {error}.") from error
    table = tables
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {}) if parts[0] == "defaults" else table.get(part)
        if not isinstance(inner, dict):
            known = ", ".join(k for k, v in table.items() if isinstance(v, dict))
            raise UserError(
                f"--set {assignment}: the suite has no table {'.'.join(parts[: depth + 1])}.{nearest(part, table)} Tables there: {known or 'none'}."
            )
        table = inner
    table[parts[-1]] = value
