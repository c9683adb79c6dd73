"""Load a suite file: resolve names, validate every recipe, and expand the tables into runs."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, get_args

from lutbench.data.catalogue import CATALOGUE, MEASURED_ON
from lutbench.errors import UserError, nearest, unknown
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, check_name
from lutbench.recipes.budget import MeasuredIn, check_places, table_within, within_budgets
from lutbench.recipes.decided import check_decided
from lutbench.recipes.expand import expand
from lutbench.recipes.joining import join_rows, joined
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.snapshot_rows import snapshot_studies, study_rows_of
from lutbench.recipes.studies import Priced, with_sweeps
from lutbench.recipes.suite import LoadedSuite, Suite
from lutbench.recipes.suite_files import (
    LENGTHS,
    SUITES,
    NewRows,
    SuiteTables,
    check_texts,
    parse_toml,
    read_suite,
    suite_path,
)
from lutbench.recipes.suite_tables import AnyData

__all__ = ["SUITES", "load_draft", "load_suite"]

SOURCES: dict[str, type[AnyData]] = {
    source: recipe
    for recipe in (DataRecipe, SegmentationDataRecipe, RevisitedDataRecipe)
    for source in get_args(recipe.model_fields["source"].annotation)
}
"""The recipe type for each data source: images with or without labels, images with masks, or images with queries."""


def load_suite(
    name_or_path: str, overrides: Sequence[str] = (), results: Path = Path("results"), keep: bool = False
) -> LoadedSuite:
    """Read ``suites/NAME.toml`` or the given file, and the suites it extends; apply ``PATH=VALUE`` overrides; validate every recipe.

    ``results`` is the folder with measured speeds, for budgets in seconds. With ``keep``, the speeds that are used are stored there, so
    that later measurements do not change anything, see :mod:`lutbench.recipes.speeds`.

    Raises:
        UserError: for a missing or malformed file, and for every setting that is unknown, of the wrong type, out of range
            or contradictory, before anything is run.
    """
    found = read_suite(suite_path(name_or_path))
    for override in overrides:
        _override(found.tables, override)
    if overrides:
        check_texts(found.tables, f"{found.path} with the changes by --set")
    changed = {tuple(override.partition("=")[0].strip().split(".")) for override in overrides}
    new_rows = [rows.without(changed) for rows in found.new_rows]
    given = " ".join([name_or_path, *(f"--set {quote(override)}" for override in overrides)])
    return _expand(given, found, new_rows, results, keep)


def load_draft(text: str, path: Path) -> LoadedSuite:
    """Load the suite that a file at ``path`` with this ``text`` would be; nothing is written.

    Raises:
        UserError: as :func:`load_suite`.
    """
    found = read_suite(path, text=text)
    return _expand(str(path), found, found.new_rows, Path("results"), keep=False)


def _expand(given: str, found: SuiteTables, new_rows: Sequence[NewRows], results: Path, keep: bool) -> LoadedSuite:
    path = found.path
    try:
        check_name(path.stem)
    except ValueError as error:
        raise UserError(f"{str(path)!r}: the file name is the suite's name, and {error}. Rename the file.") from error
    suite = join_rows(read_recipe(Suite, {**found.tables, "extends": list(found.bases)}, ""), new_rows)
    check_places(suite)
    rows_joined = joined(suite, new_rows)
    for key, settings in suite.defaults.items():
        if key not in KINDS:
            raise unknown(f"defaults.{key}: there is no kind of run {key!r}", key, KINDS)
        known = KINDS[key].recipe.model_fields
        for setting in settings:
            if setting not in known:
                raise UserError(f"defaults.{key}.{setting}: no such setting.{nearest(setting, known)}")
    if both := sorted(set(suite.method) & set(suite.classifier)):
        raise UserError(
            f"classifier.{both[0]}: there is also a method of this name, and both are rows of the tables. Rename one of them."
        )
    data = {name: _data(name, values) for name, values in suite.data.items()}
    given_runs, where = suite.pretrain, MeasuredIn(path.stem, given, results, keep)
    suite, budgets = within_budgets(suite, data, where)
    made = with_sweeps(path.stem, suite, data, Priced(given_runs, partial(table_within, data=data, where=where)))
    suite = made.suite
    runs = expand(path.stem, suite, data, made.rows)
    added = (run.method for run in runs if run.method)  # includes untrained encoders, which an analysis adds
    rows = list(dict.fromkeys([*suite.method, *suite.classifier, *added]))
    for pair in suite.compare:
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(rows):
            raise UserError(
                f"compare: expected pairs of methods such as ['lut', 'mae'], found {pair}. Methods: {', '.join(rows)}."
            )
    for run, times in Counter(run.name for run in runs).items():
        if times > 1:
            raise UserError(f"{run} would run {times} times: list every seed, and every method of a task, only once.")
    check_decided(suite, runs)
    studies = [*made.studies, *snapshot_studies(suite, runs)]
    rows_of_studies = made.rows | study_rows_of(runs)
    return LoadedSuite(
        path.stem, suite, tuple(runs), given, rows_joined, {**budgets, **made.budgets}, tuple(studies), rows_of_studies
    )


def _data(name: str, values: dict[str, Any]) -> AnyData:
    """Return the recipe of ``[data.NAME]``. ``known`` starts from the recipe of a known dataset; other keys change it."""
    if "known" in values:
        known = values["known"]
        problem = f"data.{name}.known: there is no known dataset {known!r} for [data.NAME]"
        if known in list(MEASURED_ON):
            raise UserError(
                f"data.{name}.known: {known!r} is a robustness dataset. Add it to the sets of a [robustness.NAME] table instead."
            )
        if known not in list(CATALOGUE):
            raise unknown(problem, known, [name for name in CATALOGUE if name not in MEASURED_ON])
        recipe = CATALOGUE[known].recipe.model_dump(exclude_defaults=True)
        values = {**recipe, **{key: value for key, value in values.items() if key != "known"}}
    source = values.get("source", "folder")
    if source not in list(SOURCES):
        raise unknown(f"data.{name}.source: unknown source {source!r}", source, SOURCES)
    return read_recipe(SOURCES[source], values, f"data.{name}")


def _override(tables: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set PATH=VALUE``; the value is parsed as TOML, or taken as plain text if it is not valid TOML."""
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {assignment}: expected PATH=VALUE, such as pretrain.lut.epochs=20.")
    if parts[0] == "extends":
        raise UserError(f"--set {assignment}: extends can only be set in the suite file. Change it there.")
    if parts[0] == "decided":
        raise UserError(
            f"--set {assignment}: [decided] is written before the first run and cannot be changed by a command. To ask another question, "
            "write another suite file."
        )
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except ValueError as error:
        raise UserError(f"--set {assignment[:80]}...: the value cannot be read: {error}.") from error
    table = tables
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {}) if parts[0] in ("defaults", "cluster") else table.get(part)
        if not isinstance(inner, dict):
            known = ", ".join(k for k, v in table.items() if isinstance(v, dict))
            raise UserError(
                f"--set {assignment}: the suite has no table {'.'.join(parts[: depth + 1])}.{nearest(part, table)} Tables: {known or 'none'}."
            )
        table = inner
    table[parts[-1]] = value
    if parts[0] == "pretrain" and len(parts) == 3 and parts[-1] in LENGTHS:
        table.pop(LENGTHS[parts[-1]], None)
