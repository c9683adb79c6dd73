"""Sweeps: a pre-training run or a task with several values of a setting, expanded to ordinary tables and runs.

::

    [sweep.weight]
    of = "pretrain.lut"
    context_weight = [0, 0.1, 0.25, 1]
    tasks = ["photographs-knn", "photographs-linear"]

is read as if the suite had a table ``[pretrain.weight-0.1]`` (LUT with that weight), a ``[method.weight-0.1]``, and this method in the
``methods`` of both tasks; likewise for the other values. A value with the same results as an existing run reuses that run:
0.25 is ``lut``, 0 is ``mae-crop`` if the suite has it. Several axes make a grid, with names such as ``weight-0.1-0.996``.

A sweep of a task, ``of = "downstream.photographs-knn"`` with ``neighbours = [5, 20]``, makes the tasks ``NAME-5`` and ``NAME-20`` for
the methods of the task. Rows that exist only for a sweep are not in the tables of methods but in the sweep's own section.

Sweeps are expanded after ``extends`` and ``--set`` are applied, those of pre-training first, so that a sweep of a task can use the
methods that they make.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from lutbench.errors import UserError, unknown
from lutbench.kinds import STAGES
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.equal_compute import Budget
from lutbench.recipes.expand import (
    expand_stages,
    methods_of,
    recipe_from_nothing,
    recipes_from_encoder,
)
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.suite import MethodRecipe, PlannedRun, Row, Study, StudyPoint, Suite, TaskTable
from lutbench.recipes.suite_tables import AnyData, table_of
from lutbench.recipes.sweeps import Sweep, in_words, read_sweep, shown, value_text


class Priced(NamedTuple):
    """Pre-training runs with a budget, see :mod:`lutbench.recipes.budget`; each point of a sweep gets its own epochs."""

    tables: Mapping[str, dict[str, Any]]
    """The tables of the suite file, with their budgets."""
    within: Callable[[Suite, str, dict[str, Any]], tuple[dict[str, Any], dict[str, Budget]]]
    """:func:`lutbench.recipes.budget.table_within`."""


class Swept(NamedTuple):
    """A suite with the tables that its sweeps make."""

    suite: Suite
    studies: Sequence[Study] = ()
    rows: frozenset[Row] = frozenset()
    """The rows that exist only for sweeps."""
    budgets: Mapping[str, Budget] = MappingProxyType({})
    """Budgets of the runs that sweeps make."""


def with_sweeps(name: str, suite: Suite, data: Mapping[str, AnyData], priced: Priced) -> Swept:
    """Return the suite with the tables that its sweeps make. The budgets of ``suite`` itself are already replaced by epochs.

    Raises:
        UserError: for a sweep of something unknown, over a setting that does not exist or does not affect results, with fewer than two
            values, with an invalid value, without tasks, or whose names are already in use.
    """
    if not suite.sweep:
        return Swept(suite)
    sweeps = [read_sweep(suite, sweep, table) for sweep, table in suite.sweep.items()]
    suite = _with_methods_listed(suite)
    studies, rows, budgets = dict[str, Study](), set[Row](), dict[str, Budget]()
    for sweep in sorted(sweeps, key=lambda sweep: STAGES.index(sweep.stage)):
        if sweep.kind.starts_from == "nothing":
            suite, studies[sweep.name] = _of_pretraining(suite, data, sweep, rows, priced, budgets)
        else:
            suite, studies[sweep.name] = _of_task(name, suite, data, sweep, rows)
    return Swept(suite, [studies[sweep.name] for sweep in sweeps], frozenset(rows), budgets)


def _of_pretraining(
    suite: Suite,
    data: Mapping[str, AnyData],
    sweep: Sweep,
    rows: set[Row],
    priced: Priced,
    budgets: dict[str, Budget],
) -> tuple[Suite, Study]:
    """Return the suite with a sweep's pre-training runs and methods, added to its tasks; extend ``rows`` and ``budgets``."""
    given = sweep.given
    columns = {column: _task(suite, sweep, column) for column in given.tasks}
    if len(set(columns.values())) < len(given.tasks):
        raise UserError(f"sweep.{sweep.name}.tasks: a task appears twice in {given.tasks}. List every task once.")
    identities = {
        _identity(recipe_from_nothing(suite, data, table_of(suite, sweep.stage, task, table))): task
        for task, table in reversed(getattr(suite, sweep.stage).items())  # the first of several that are alike
    }
    own = next(iter(_methods(suite, sweep.task, given.teacher)), None)
    pool = suite.method[own].pool if own else None
    label = _label(suite, sweep, own)
    found, points = dict[str, Sequence[str]](), []
    for values in sweep.points:
        made = sweep.name_of(values)
        with _told(sweep, values):
            table, budget = priced.within(suite, made, {**priced.tables[sweep.task], **values})
            recipe = recipe_from_nothing(suite, data, table_of(suite, sweep.stage, sweep.task, table))
        if given.teacher and "teacher" not in recipe.encoder_exports:
            raise UserError(
                f"{sweep.where(values)}: there is no teacher without a context loss. Remove teacher = true, or these values."
            )
        identity = _identity(recipe)
        found[shown(values)] = [identity]
        if identity not in identities:
            identities[identity] = made
            suite = _with(suite, sweep, sweep.stage, made, table)
            budgets |= budget
        run = identities[identity]
        alike = (name for name in _methods(suite, run, given.teacher) if suite.method[name].pool == pool)
        method = next(alike, None)
        if method is None:
            method = run if run not in suite.method and run not in suite.classifier else made
            row = MethodRecipe(
                pretrain=run,
                teacher=given.teacher,
                pool=pool,
                label=label if run == sweep.task else f"{label}, {_in_words(values)}",
            )
            suite = _with(suite, sweep, "method", method, row)
        if run == made:
            rows.add((sweep.stage, run, ""))
        for stage, task in columns.values():
            suite = _run_for(suite, (stage, task, method), rows)
        points.append(StudyPoint(values, {(c, own or sweep.task): (*of, method) for c, of in columns.items()}))
    _check_effect(sweep, found)
    own_table = table_of(suite, sweep.stage, sweep.task, suite.pretrain[sweep.task])
    base = _identity(recipe_from_nothing(suite, data, own_table))
    places = [place for place, identity in enumerate(found.values()) if identity == [base]]
    return suite, sweep.study(label, points, next(iter(places), None))


def _of_task(name: str, suite: Suite, data: Mapping[str, AnyData], sweep: Sweep, rows: set[Row]) -> tuple[Suite, Study]:
    """Return the suite with the tasks of a sweep; extend ``rows``."""
    stage, tables = sweep.stage, getattr(suite, sweep.stage)
    task: TaskTable = tables[sweep.task]
    plain = [
        m for m in methods_of(suite, table_of(suite, stage, sweep.task, task)) if (stage, sweep.task, m) not in rows
    ]
    methods = plain if sweep.given.methods is None else sweep.given.methods
    for place, method in enumerate(methods):
        if method not in suite.method:
            raise unknown(f"sweep.{sweep.name}.methods: unknown method {method!r}", method, suite.method)
        if method in methods[:place]:
            raise UserError(f"sweep.{sweep.name}.methods: {method} appears twice. List every method once.")
    if not methods:
        raise UserError(f"sweep.{sweep.name}: {sweep.given.of} has no methods. List some in methods.")
    tuned = any(suite.method[method].finetuned for method in methods)
    before = expand_stages(name, suite, data, STAGES[: 2 if tuned else 1], rows)

    def identities(given: TaskTable) -> list[str]:
        return [_identity(_recipe(suite, data, before, sweep, given, method)) for method in methods]

    known = {key: identities(table) for key, table in tables.items() if table.kind == task.kind}
    label, found, points = sweep.given.label or task.title or sweep.task, dict[str, Sequence[str]](), []
    for values in sweep.points:
        table = task.model_copy(update={**values, "at": None})  # only the task itself has a curve over snapshots
        with _told(sweep, values):
            identity = identities(table)
        found[shown(values)] = identity
        made = next((key for key, other in known.items() if other == identity), None)
        if made is None:
            made = sweep.name_of(values)
            known[made] = identity
            about = {"title": f"{label}, {_in_words(values)}", "published": "", "methods": []}
            suite = _with(suite, sweep, stage, made, table.model_copy(update=about))
        for method in methods:
            suite = _run_for(suite, (stage, made, method), rows)
        points.append(StudyPoint(values, {(sweep.task, method): (stage, made, method) for method in methods}))
    _check_effect(sweep, found)
    places = [place for place, identity in enumerate(found.values()) if identity == known[sweep.task]]
    return suite, sweep.study(label, points, next(iter(places), None))


def _recipe(
    suite: Suite,
    data: Mapping[str, AnyData],
    before: Sequence[PlannedRun],
    sweep: Sweep,
    given: TaskTable,
    method: str,
) -> RunRecipe:
    return recipes_from_encoder(suite, data, before, table_of(suite, sweep.stage, sweep.task, given), method)[1][method]


@contextmanager
def _told(sweep: Sweep, values: Mapping[str, Any]) -> Iterator[None]:
    """Add the sweep and its values to the message of an error about a recipe."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{sweep.where(values)}: {error}") from error


def _task(suite: Suite, sweep: Sweep, column: str) -> tuple[str, str]:
    """Return stage and name of a task that a sweep refers to as ``NAME`` or ``STAGE.NAME``."""
    tasks = [
        (stage, task)
        for stage in STAGES
        for task, table in getattr(suite, stage).items()
        if isinstance(table, TaskTable)
    ]
    fitting = [one for one in tasks if column in (one[1], ".".join(one))]
    where = f"sweep.{sweep.name}.tasks"
    if not fitting:
        raise unknown(
            f"{where}: expected a task that evaluates an encoder, found {column!r}", column, [t for _, t in tasks]
        )
    if len(fitting) > 1:
        both = " and ".join(".".join(one) for one in fitting)
        raise UserError(f"{where}: {column!r} is ambiguous: it may be {both}. Write one of these.")
    return fitting[0]


def _identity(recipe: RunRecipe) -> str:
    """Return a string that is equal for recipes with equal results; datasets are compared by source and folder."""
    dataset = recipe.dataset
    return json.dumps(
        [type(recipe).__name__, recipe.affecting_results(), dataset.source, dataset.folder], sort_keys=True
    )


def _methods(suite: Suite, run: str, teacher: bool) -> list[str]:
    """Return the methods whose encoder is the student (or the teacher) of a pre-training run."""
    return [name for name, row in suite.method.items() if row.pretrain == run and row.teacher == teacher]


def _label(suite: Suite, sweep: Sweep, own: str | None) -> str:
    """Return the label for rows of a pre-training sweep: the sweep's own, or that of the method with the run's encoder."""
    if sweep.given.label:
        return sweep.given.label
    method = own or next(iter(_methods(suite, sweep.task, teacher=False)), None)
    label = (suite.method[method].label if method else "") or sweep.task
    return f"{label}, teacher" if sweep.given.teacher and own is None else label


def _check_effect(sweep: Sweep, found: Mapping[str, Sequence[str]]) -> None:
    """Check that every axis changes results; ``found`` are the identities of all points."""
    points = list(zip(sweep.points, found.values(), strict=True))
    for axis, values in sweep.axes.items():
        pairs = [(one, other) for (a, one), (b, other) in combinations(points, 2) if _differ_in(a, b) == [axis]]
        if all(one == other for one, other in pairs):
            raise UserError(
                f"sweep.{sweep.name}.{axis}: the values {shown(values)} all give the same results of {sweep.given.of}. Some settings never "
                "affect results (workers, log_every), others only together with another one (head_depth needs a context loss). Vary "
                "another setting, or set the one that it needs."
            )


def _differ_in(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [axis for axis in one if one[axis] != other[axis]]


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{in_words(axis)} {value_text(value)}" for axis, value in values.items())


def _with(suite: Suite, sweep: Sweep, section: str, name: str, table: Any) -> Suite:
    """Return the suite with a new table.

    Raises:
        UserError: if there is a table of this name.
    """
    named = getattr(suite, section)
    if name in named or (section == "method" and name in suite.classifier):
        where = f"{section if name in named else 'classifier'}.{name}"
        raise UserError(
            f"sweep.{sweep.name}: it would add a table [{section}.{name}], but the suite has another [{where}]. Rename one of the two."
        )
    return suite.model_copy(update={section: {**named, name: table}})


def _run_for(suite: Suite, row: Row, rows: set[Row]) -> Suite:
    """Return the suite with a method added to a task; if it is new there, add the row to ``rows``."""
    stage, task, method = row
    tables = getattr(suite, stage)
    methods: list[str] = tables[task].methods
    if method in methods:
        return suite
    rows.add(row)
    longer = tables[task].model_copy(update={"methods": [*methods, method]})
    return suite.model_copy(update={stage: {**tables, task: longer}})


def _with_methods_listed(suite: Suite) -> Suite:
    """Return the suite with all ``methods`` lists written out, so that methods made by sweeps are not added to every table."""
    for stage in STAGES:
        tables = getattr(suite, stage)
        for task, given in tables.items():
            if isinstance(given, TaskTable):
                methods = list(methods_of(suite, table_of(suite, stage, task, given)))
            elif isinstance(given, RobustnessTable) and given.methods is None:
                tunings = [suite.downstream[tuning] for tuning in given.tasks if tuning in suite.downstream]
                methods = list(dict.fromkeys(method for tuning in tunings for method in tuning.methods or ()))
            else:
                continue
            tables = {**tables, task: given.model_copy(update={"methods": methods})}
        suite = suite.model_copy(update={stage: tables})
    return suite
