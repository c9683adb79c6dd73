"""Read and check ``[sweep.NAME]`` tables: what is varied, and which values it takes."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from lutbench.errors import UserError, nearest, unknown
from lutbench.kinds import STAGES, Kind
from lutbench.recipes.base import check_name
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.suite import Study, StudyPoint, Suite, SweepTable
from lutbench.recipes.suite_tables import table_of


class Sweep(NamedTuple):
    """A sweep, as its own table defines it."""

    name: str
    given: SweepTable
    kind: Kind
    task: str
    """The pre-training run or task that is varied, the TASK in ``[STAGE.TASK]``."""
    axes: Mapping[str, Sequence[Any]]

    @property
    def stage(self) -> str:
        """The stage of the pre-training run or task."""
        return self.kind.stage

    @property
    def points(self) -> list[dict[str, Any]]:
        """All combinations of values."""
        return [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]

    def name_of(self, values: Mapping[str, Any]) -> str:
        """Return the name of the table that a point makes."""
        name = "-".join([self.name, *map(_value_name, values.values())])
        try:
            return check_name(name)
        except ValueError as error:
            raise UserError(
                f"{self.where(values)}: its runs would be named {name!r}, and {error}. Rename the sweep."
            ) from error

    def where(self, values: Mapping[str, Any]) -> str:
        """Return the name of a point in messages."""
        return f"sweep.{self.name}, {', '.join(f'{axis} = {shown(value)}' for axis, value in values.items())}"

    def study(self, title: str, points: Sequence[StudyPoint], base: int | None) -> Study:
        """Return the study for the report."""
        axes = " and ".join(map(in_words, self.axes))
        title = self.given.title or f"{title}: {axes}"
        return Study(f"sweep.{self.name}", title, tuple(self.axes), tuple(points), base)


def in_words(axis: str) -> str:
    """Return the name of a setting in tables and figures."""
    return axis.replace("_", " ")


def value_text(value: Any) -> str:
    """Return a value as printed in tables: ``0.05``, ``batch``, ``0.2, 1``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(one)}" for key, one in value.items())
    return ", ".join(map(value_text, value)) if isinstance(value, list) else str(value)


def _value_name(value: Any) -> str:
    return "".join(one if one.isalnum() or one in "._-" else "-" for one in value_text(value).replace(", ", "-"))


def read_sweep(suite: Suite, name: str, table: SweepTable) -> Sweep:
    """Return the sweep of a table, after checking that each axis is a known setting with at least two different values."""
    where = f"sweep.{name}"
    stage, _, task = table.of.partition(".")
    varied = {f"{of}.{key}": given for of in STAGES for key, given in getattr(suite, of).items()}
    varied = {of: given for of, given in varied.items() if not isinstance(given, RobustnessTable)}
    if table.of not in varied:
        robust = " (to vary classifiers, sweep their fine-tuning)" if stage == "robustness" else ""
        raise unknown(
            f"{where}.of: expected a pre-training run or a task that evaluates an encoder, found {table.of!r}{robust}",
            table.of, varied,
        )  # fmt: skip
    kind = table_of(suite, stage, task, varied[table.of]).kind
    known, axes = kind.recipe.model_fields, table.model_extra or {}
    for axis, values in axes.items():
        if axis not in known or (axis == "encoder" and kind.starts_from == "encoder"):
            also = ", ".join(known)
            hint = nearest(axis, known) or f" Its settings: {also}."
            if axis == "encoder":
                hint = " Tasks run for the encoders of all methods: sweep the pre-training run instead."
            raise UserError(f"{where}.{axis}: {table.of} has no setting {axis!r} to vary.{hint}")
        if not isinstance(values, list) or len(values) < 2:
            raise UserError(
                f"{where}.{axis}: expected a list of at least two values, found {values!r}. Set a single value in [{table.of}]."
            )
        names = [_value_name(value) for value in values]
        if twice := [value for place, value in enumerate(values) if names[place] in names[:place]]:
            raise UserError(
                f"{where}.{axis}: {shown(twice[0])} appears twice, or two values give the same name. List every value once."
            )
    if not axes:
        raise UserError(
            f"{where}: nothing varies. Add a setting of {table.of} with a list of values: SETTING = [A, B]."
        )
    nothing = kind.starts_from == "nothing"
    if nothing and not table.tasks:
        raise UserError(
            f'{where}.tasks: required, but missing. List the tasks that evaluate the encoders, such as ["knn"].'
        )
    if misplaced := "methods" if nothing and table.methods is not None else "" if nothing else table.tasks and "tasks":
        raise UserError(
            f"{where}.{misplaced}: not allowed, because {table.of} is a {'pre-training run' if nothing else 'task'}. "
            f"Use {'tasks' if nothing else 'methods'} instead."
        )
    if table.teacher and not nothing:
        raise UserError(
            f"{where}.teacher: only for sweeps of a pre-training run. To evaluate a teacher, list its method in methods."
        )
    return Sweep(name, table, kind, task, axes)


def shown(value: Any) -> str:
    """Return a value as text for messages, whatever its TOML type."""
    return json.dumps(value, default=str, ensure_ascii=False)
