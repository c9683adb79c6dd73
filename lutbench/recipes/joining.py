"""New rows of a suite that extends another, in the tables of what it extends.

A table without ``methods`` has all rows in any case. One that lists them has a new row as well if the new row is like one in
the list: weights that are there already, or none (``scratch``), and of several architectures the same. So where a suite
fine-tunes ViT-S and ViT-B by recipes of their own, and trains from scratch by a third, a new ViT-B is fine-tuned as the ViT-B
are. What a table has no like of, ``like = "NAME"`` in ``[method.NAME]`` decides: it is a row wherever that one is. If nothing
in what is extended is like a row, it joins every list that it can be run for.

- A robustness table has of the new rows only those that its ``tasks`` fine-tune or probe.
- A table with ``at`` has of the new pre-trained rows only those whose run keeps these snapshots.
- An analysis has untrained encoders of its own, and not ``scratch``; it has the encoders of fine-tuned classifiers
  (``finetuned``), which a task has only if it names them.
- ``like = "none"`` keeps a row out of every table of what is extended, those without ``methods`` included; it is a row of the tables of
  the extending file alone, and of those whose list names it.
- A list that the extending file gives itself, or ``--set`` does, is as it says.
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
"""``like = "none"``: a row that joins no table of what is extended."""


def join_rows(suite: Suite, new_rows: Sequence[NewRows]) -> Suite:
    """Return a suite with its new rows in the lists of what it extends.

    Raises:
        UserError: if ``like`` names no row of what is extended, or nothing tells which of several architectures a row is like.
    """
    new = {method for rows in new_rows for method in rows.methods}
    for method, row in suite.method.items():
        if row.like and method not in new:
            raise UserError(
                f"method.{method}.like: for a new row of a suite that extends another. Name this one in the methods of the tables instead."
            )
    for rows in new_rows:
        rows = replace(rows, lists=frozenset(at for at in rows.lists if _is_list(suite, at)))
        for method in rows.methods:
            if suite.method[method].like != NONE:
                suite = _with_method(suite, method, rows)
        for setting in sorted(rows.lists):
            if setting[2] == "classifiers" and _listed(suite, setting):  # none listed: it is about methods alone
                suite = _with(suite, setting, rows.classifiers)
    for setting in sorted({at for rows in new_rows for at in rows.unlisted}):
        alone = {one for rows in new_rows for one in rows.methods if setting in rows.unlisted and _is_alone(suite, one)}
        if alone and _lists_none(suite, setting):
            suite = _with(suite, setting, [name for name in _rows_of(suite, setting) if name not in alone])
    return suite


def joined(suite: Suite, new_rows: Sequence[NewRows]) -> str:
    """Return a sentence on the new methods of the file itself, of ``new_rows`` the last, in tables of what it extends; empty if none is."""
    methods, tables = set[str](), set[Setting]()
    for rows in new_rows[-1:]:
        for setting in (at for at in rows.lists | rows.unlisted if at[2] == "methods"):
            if here := set(rows.methods) & set(_rows_of(suite, setting)):
                methods |= here
                tables.add(setting)
    if not methods:
        return ""
    one, table = len(methods) == 1, f"{len(tables)} table{'s' * (len(tables) > 1)} of {listed(suite.extends)}"
    stand = "1 method of this file stands" if one else f"{len(methods)} methods of this file stand"
    return f'{stand} in {table}; like = "{NONE}" in [method.NAME] keeps a row out.'


def _is_alone(suite: Suite, method: str) -> bool:
    return suite.method[method].like == NONE


def _with_method(suite: Suite, method: str, rows: NewRows) -> Suite:
    row = suite.method[method]
    lists = [at for stage in STAGES for at in sorted(rows.lists) if (at[0], at[2]) == (stage, "methods")]
    lists = [at for at in lists if row.like or _can_be_run(row, at[0])]
    alike = _alike(suite, method, rows, lists)
    for setting in lists:  # in the order of the stages: what is measured follows from what is fine-tuned
        table = getattr(suite, setting[0])[setting[1]]
        if isinstance(table, RobustnessTable) and not any(method in _rows(suite, task) for task in table.tasks):
            continue
        if not _keeps(suite, row, getattr(table, "at", None) or ()):
            continue
        if not alike or alike & set(_listed(suite, setting)):
            suite = _with(suite, setting, [method])
    return suite


def _keeps(suite: Suite, row: MethodRecipe, shares: Sequence[float]) -> bool:
    """Return whether a row has snapshots at ``shares`` of its pre-training, if one of the suite makes it."""
    if not row.pretrain:
        return True
    kept = (suite.defaults.get("pretrain", {}) | suite.pretrain.get(row.pretrain, {})).get("snapshots", [])
    return all(share in kept for share in shares if share < 1)


def _can_be_run(row: MethodRecipe, stage: str) -> bool:
    return not (row.scratch and stage == "analysis") and not (row.finetuned and stage != "analysis")


def _alike(suite: Suite, method: str, rows: NewRows, lists: Sequence[Setting]) -> set[str]:
    """Return the rows of what is extended beside which a new one stands; none if there are none like it."""
    row = suite.method[method]
    if row.like:
        if row.like not in rows.beside:
            raise unknown(
                f"method.{method}.like: there is no row {row.like!r} in what is extended", row.like, rows.beside
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
            f"method.{method}: its encoder is none of those in what {rows.file.stem} extends, and the tables there are each for one of these. "
            f"Say beside which row it stands: like = {rows.beside[0]!r} in [method.{method}]. Rows: {listed(rows.beside, 20)}."
        )
    return set().union(*by_architecture.values())


def _architecture(suite: Suite, row: MethodRecipe) -> str:
    """Return what tells the architecture of a row from any other's."""
    named: Any = row.encoder
    if row.pretrain:
        named = (suite.defaults.get("pretrain", {}) | suite.pretrain.get(row.pretrain, {})).get("encoder")
    recipe = suite.encoder.get(named) if isinstance(named, str) else None
    return repr(named if recipe is None else recipe.affecting_results())


def _rows(suite: Suite, task: str) -> set[str]:
    """Return the rows that a task is run for."""
    return set(_rows_of(suite, ("downstream", task, "methods"))) if task in suite.downstream else set()


def _rows_of(suite: Suite, setting: Setting) -> list[str]:
    """Return the methods that a table is run for, listed or not."""
    if not _lists_none(suite, setting):
        return _listed(suite, setting) if _is_list(suite, setting) else []
    if setting[0] == "robustness":
        tasks = getattr(suite, setting[0])[setting[1]].tasks
        return list(dict.fromkeys(row for task in tasks for row in _rows(suite, task)))
    return [name for name, row in suite.method.items() if _can_be_run(row, setting[0])]


def _is_list(suite: Suite, setting: Setting) -> bool:
    """Return whether a setting is one of the lists that its table may have: what is given elsewhere is refused later."""
    return _is_field(suite, setting) and _listed(suite, setting) is not None


def _lists_none(suite: Suite, setting: Setting) -> bool:
    """Return whether a table could list its rows, and does not."""
    return _is_field(suite, setting) and _listed(suite, setting) is None


def _is_field(suite: Suite, setting: Setting) -> bool:
    stage, task, key = setting
    return key in getattr(type(getattr(suite, stage).get(task)), "model_fields", {})


def _listed(suite: Suite, setting: Setting) -> list[str]:
    """Return one of a suite's lists of rows."""
    names: list[str] = getattr(getattr(suite, setting[0])[setting[1]], setting[2])
    return names


def _with(suite: Suite, setting: Setting, names: Sequence[str]) -> Suite:
    """Return a suite with names added to one of its lists."""
    stage, task, key = setting
    tables = getattr(suite, stage)
    longer = tables[task].model_copy(update={key: list(dict.fromkeys([*(_listed(suite, setting) or []), *names]))})
    return suite.model_copy(update={stage: {**tables, task: longer}})
