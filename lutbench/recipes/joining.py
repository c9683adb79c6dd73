"""How the new methods of a suite that extends another are added to the tables of the extended suite (the base).

A table without ``methods`` has all methods anyway. A table that lists ``methods`` gets a new method if the list contains a similar
one: both pre-trained, or both from ``scratch``, and of the same architecture if there are several. So if the base fine-tunes ViT-S and
ViT-B with different recipes, and trains from scratch with a third one, a new pre-trained ViT-B is fine-tuned like the other ViT-Bs.
``like = "NAME"`` in ``[method.NAME]`` overrides this: the method is added wherever method NAME is. If the base has no similar method,
the new one is added to every list that it can be run for.

- A robustness table gets only those new methods that its ``tasks`` fine-tune or probe.
- A table with ``at`` gets only those new pre-trained methods whose run saves these snapshots.
- An analysis adds untrained encoders itself, so it does not get ``scratch`` methods. It gets the encoders of fine-tuned classifiers
  (``finetuned``); a task gets these only if it lists them.
- ``like = "none"`` keeps a method out of all tables of the base, also those without ``methods``. It is then only in tables of the
  extending file and in lists that name it.
- A list given in the extending file, or by ``--set``, is not changed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lutbench.errors import UserError, listed, unknown
from lutbench.kinds import STAGES
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.suite import MethodRecipe, Suite
from lutbench.recipes.suite_files import NewRows, Setting

NONE = "none"
"""``like = "none"``: the method is added to no table of the extended suite."""


def join_rows(suite: Suite, new_rows: Sequence[NewRows]) -> Suite:
    """Return the suite with its new methods and classifiers added to the lists of the extended suite.

    Raises:
        UserError: if ``like`` names no method of the extended suite, or it is unclear which of several architectures a method resembles.
    """
    new = {method for rows in new_rows for method in rows.methods}
    for method, row in suite.method.items():
        if row.like and method not in new:
            raise UserError(
                f"method.{method}.like: only for a new method of a suite that extends another. Remove like, and list the method in the "
                "methods of the tables instead."
            )
    for rows in new_rows:
        rows = replace(rows, lists=frozenset(at for at in rows.lists if _is_list(suite, at)))
        for method in rows.methods:
            if suite.method[method].like != NONE:
                suite = _with_method(suite, method, rows)
        for setting in sorted(rows.lists):
            if setting[2] == "classifiers" and _listed(suite, setting):  # an empty list: the table is for methods only
                suite = _with(suite, setting, rows.classifiers)
    for setting in sorted({at for rows in new_rows for at in rows.unlisted}):
        alone = {one for rows in new_rows for one in rows.methods if setting in rows.unlisted and _is_alone(suite, one)}
        if alone and _lists_none(suite, setting):
            suite = _with(suite, setting, [name for name in _rows_of(suite, setting) if name not in alone])
    return suite


def joined(suite: Suite, new_rows: Sequence[NewRows]) -> str:
    """Return a sentence on the file's own new methods (the last of ``new_rows``) in tables of the extended suite; empty if none."""
    methods, tables = set[str](), set[Setting]()
    for rows in new_rows[-1:]:
        for setting in (at for at in rows.lists | rows.unlisted if at[2] == "methods"):
            if here := set(rows.methods) & set(_rows_of(suite, setting)):
                methods |= here
                tables.add(setting)
    if not methods:
        return ""
    one, table = len(methods) == 1, f"{len(tables)} table{'s' * (len(tables) > 1)} of {listed(suite.extends)}"
    added = "1 method of this file is" if one else f"{len(methods)} methods of this file are"
    return f'{added} added to {table}; like = "{NONE}" in [method.NAME] prevents it.'


def _is_alone(suite: Suite, method: str) -> bool:
    return suite.method[method].like == NONE


def _with_method(suite: Suite, method: str, rows: NewRows) -> Suite:
    row = suite.method[method]
    lists = [at for stage in STAGES for at in sorted(rows.lists) if (at[0], at[2]) == (stage, "methods")]
    lists = [at for at in lists if row.like or _can_be_run(row, at[0])]
    alike = _alike(suite, method, rows, lists)
    for setting in lists:  # in the order of the stages: robustness rows follow from fine-tuned ones
        table = getattr(suite, setting[0])[setting[1]]
        if isinstance(table, RobustnessTable) and not any(method in _rows(suite, task) for task in table.tasks):
            continue
        if not _keeps(suite, row, getattr(table, "at", None) or ()):
            continue
        if not alike or alike & set(_listed(suite, setting)):
            suite = _with(suite, setting, [method])
    return suite


def _keeps(suite: Suite, row: MethodRecipe, shares: Sequence[float]) -> bool:
    """Return whether a method has snapshots at ``shares`` of its pre-training; True if no run of the suite makes it."""
    if not row.pretrain:
        return True
    kept = (suite.defaults.get("pretrain", {}) | suite.pretrain.get(row.pretrain, {})).get("snapshots", [])
    return all(share in kept for share in shares if share < 1)


def _can_be_run(row: MethodRecipe, stage: str) -> bool:
    return not (row.scratch and stage == "analysis") and not (row.finetuned and stage != "analysis")


def _alike(suite: Suite, method: str, rows: NewRows, lists: Sequence[Setting]) -> set[str]:
    """Return the methods of the extended suite that are similar to a new one; empty if there are none."""
    row = suite.method[method]
    if row.like:
        if row.like not in rows.beside:
            raise unknown(
                f"method.{method}.like: there is no method {row.like!r} in the extended suite", row.like, rows.beside
            )
        return {row.like}
    if row.finetuned:
        return set()
    by_architecture: dict[str, set[str]] = {}
    for other in rows.beside:
        if not suite.method[other].finetuned and suite.method[other].scratch == row.scratch:
            by_architecture.setdefault(_architecture(suite, suite.method[other]), set()).add(other)
    if same := by_architecture.get(_architecture(suite, row)):
        return same
    named = {setting: set(_listed(suite, setting)) for setting in lists}
    places = [{setting for setting, names in named.items() if names & group} for group in by_architecture.values()]
    if any(one != places[0] for one in places if one):
        raise UserError(
            f"method.{method}: its encoder differs from all those in the suite that {rows.file.stem} extends, and the tables there are each for "
            f"one encoder. Name a method whose tables it is added to: like = {rows.beside[0]!r} in [method.{method}]. Methods: "
            f"{listed(rows.beside, 20)}."
        )
    return set().union(*by_architecture.values())


def _architecture(suite: Suite, row: MethodRecipe) -> str:
    """Return a string that identifies the architecture of a method."""
    named: Any = row.encoder
    if row.pretrain:
        named = (suite.defaults.get("pretrain", {}) | suite.pretrain.get(row.pretrain, {})).get("encoder")
    recipe = suite.encoder.get(named) if isinstance(named, str) else None
    return repr(named if recipe is None else recipe.affecting_results())


def _rows(suite: Suite, task: str) -> set[str]:
    """Return the methods that a task is run for."""
    return set(_rows_of(suite, ("downstream", task, "methods"))) if task in suite.downstream else set()


def _rows_of(suite: Suite, setting: Setting) -> list[str]:
    """Return the methods that a table is run for, whether it lists them or not."""
    if not _lists_none(suite, setting):
        return _listed(suite, setting) if _is_list(suite, setting) else []
    if setting[0] == "robustness":
        tasks = getattr(suite, setting[0])[setting[1]].tasks
        return list(dict.fromkeys(row for task in tasks for row in _rows(suite, task)))
    return [name for name, row in suite.method.items() if _can_be_run(row, setting[0])]


def _is_list(suite: Suite, setting: Setting) -> bool:
    """Return whether a setting is a list that its table may have; misplaced ones are rejected later."""
    return _is_field(suite, setting) and _listed(suite, setting) is not None


def _lists_none(suite: Suite, setting: Setting) -> bool:
    """Return whether a table could list its methods but does not."""
    return _is_field(suite, setting) and _listed(suite, setting) is None


def _is_field(suite: Suite, setting: Setting) -> bool:
    stage, task, key = setting
    return key in getattr(type(getattr(suite, stage).get(task)), "model_fields", {})


def _listed(suite: Suite, setting: Setting) -> list[str]:
    """Return one of the suite's lists of methods or classifiers."""
    names: list[str] = getattr(getattr(suite, setting[0])[setting[1]], setting[2])
    return names


def _with(suite: Suite, setting: Setting, names: Sequence[str]) -> Suite:
    """Return a suite with names added to one of its lists."""
    stage, task, key = setting
    tables = getattr(suite, stage)
    longer = tables[task].model_copy(update={key: list(dict.fromkeys([*(_listed(suite, setting) or []), *names]))})
    return suite.model_copy(update={stage: {**tables, task: longer}})
