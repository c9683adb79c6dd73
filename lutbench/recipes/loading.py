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
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, read_recipe
from lutbench.recipes.expand import AnyData, expand
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
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}.") from error
    for override in overrides:
        _override(tables, override)
    given = " ".join([name_or_path, *(f"--set {quote(override)}" for override in overrides)])
    return _expand(given, path, tables)


def _expand(given: str, path: Path, tables: dict[str, Any]) -> LoadedSuite:
    suite = read_recipe(Suite, tables, "")
    for key, settings in suite.defaults.items():
        if key not in KINDS:
            raise unknown(f"defaults.{key}: no such stage or task", key, KINDS)
        known = KINDS[key].recipe.model_fields
        for setting in settings:
            if setting not in known:
                raise UserError(f"defaults.{key}.{setting}: no such setting.{nearest(setting, known)}")
    for pair in suite.compare:
        rows = [*suite.method, *suite.classifier]
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(rows):
            raise UserError(
                f"compare: expected pairs of methods such as ['lut', 'mae'], found {pair}. Methods: {', '.join(rows)}."
            )
    if both := sorted(set(suite.method) & set(suite.classifier)):
        raise UserError(
            f"classifier.{both[0]}: there is a method of this name. Rename one: both are rows of the tables."
        )
    data = {name: _data(name, values) for name, values in suite.data.items()}
    runs = expand(path.stem, suite, data)
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
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
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
