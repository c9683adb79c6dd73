"""Equal compute: the ``budget`` of a pre-training run sets its epochs for the same compute as another run.

::

    [pretrain.mae]
    context_weight = 0.0
    crop = "random"
    budget = {like = "lut", unit = "flop"}     # in place of epochs

sets the epochs of ``mae`` so that its FLOP equal those of ``pretrain.lut``, rounded to whole epochs, so within half an epoch.
``lutbench run``, ``plan`` and ``tables`` print the remaining difference.

- ``unit = "flop"``, the default: FLOP per image, forward and backward, of student and teacher, as ``lutbench plan`` counts them
  (:mod:`pretrain.cost`). They follow from the recipe alone and do not depend on data or machine.
- ``unit = "seconds"``: images per second, from two records measured on the same machine, see :mod:`lutbench.recipes.speeds`.
- The warm-up is the same share of the run as in the other run, rounded to whole epochs, unless the table gives ``warmup_epochs``
  (our choice: the whole schedule is stretched, as when papers train longer). The learning rate schedule follows the epochs.
- The other run may have a budget itself. Both must read the same dataset, so that an epoch has the same number of images.

Budgets are resolved when the suite file is read. After that only the number of epochs counts: the run is the same as one with these
epochs written in the suite file, and changing the epochs of the other run changes them.
"""

from collections.abc import Mapping
from importlib import import_module
from math import floor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lutbench.errors import UserError, unknown
from lutbench.kinds import STAGES, TOOLS
from lutbench.recipes.base import Recipe
from lutbench.recipes.equal_compute import Budget
from lutbench.recipes.expand import pretraining_recipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.suite import Suite
from lutbench.recipes.suite_tables import AnyData


class BudgetRecipe(Recipe):
    """Length of a pre-training run, given as the compute of another run.

    Source of the defaults: our choice.
    """

    like: str
    """Name of the other pre-training run in the suite file."""
    unit: Literal["flop", "seconds"] = "flop"
    """Quantity that is equal for both runs: ``flop``, or ``seconds`` measured on one machine."""


class MeasuredIn(NamedTuple):
    """Where to look for measured speeds."""

    suite: str
    given: str
    """The suite as given on the command line, for messages with commands to run."""
    results: Path
    keep: bool
    """Whether to store the speeds that are used, so that later measurements do not change anything."""


def check_places(suite: Suite) -> None:
    """Check that only pre-training runs have a budget; raises UserError."""
    tasks = {f"{stage}.{name}": table for stage in STAGES for name, table in getattr(suite, stage).items()}
    given = {where: table.model_extra or {} for where, table in tasks.items() if not isinstance(table, dict)}
    for where, settings in {**given, **{f"defaults.{kind}": table for kind, table in suite.defaults.items()}}.items():
        if "budget" in settings:
            raise UserError(
                f"{where}.budget: only pre-training runs can have a budget. Move it to a table [pretrain.NAME], or remove it."
            )


def within_budgets(suite: Suite, data: Mapping[str, AnyData], where: MeasuredIn) -> tuple[Suite, dict[str, Budget]]:
    """Return the suite with budgets replaced by epochs, and the budgets by name of the run.

    Raises:
        UserError: for a budget that is malformed, given beside ``epochs``, or whose ``like`` is unknown, the run itself, a run on
            another dataset, or part of a cycle; for one worth less than an epoch, or not longer than the warm-up; for one in seconds
            without a measured speed.
    """
    budgets = {name: _read(suite, name) for name, table in suite.pretrain.items() if "budget" in table}
    found: dict[str, Budget] = {}
    for name in _in_order(budgets):
        at, like, unit = f"pretrain.{name}.budget", budgets[name].like, budgets[name].unit
        own = {key: value for key, value in suite.pretrain[name].items() if key != "budget"}
        suite = _with(suite, name, own)
        other = pretraining_recipe(suite, data, like)
        recipe = pretraining_recipe(suite, data, name, epochs=other.epochs, warmup_epochs=0)
        _check_dataset(at, like, recipe, other)
        measured: tuple[float, float, str, Path | None, str]
        if unit == "flop":
            measured = _flop(name, recipe), _flop(like, other), "", None, ""
        else:
            from lutbench.recipes.speeds import seconds_per_image  # here: it reads records, which need NumPy

            others = [other for other, budget in budgets.items() if budget.unit == "seconds"]
            measured = seconds_per_image(where, suite.seeds, (name, like), (recipe, other), others)
        epochs = _epochs(at, like, other.epochs * measured[1] / measured[0])
        found[name] = Budget(like, unit, epochs, other.epochs, *measured)
        suite = _with(suite, name, {**own, "epochs": epochs, "warmup_epochs": _warmup(at, own, epochs, like, other)})
    return suite, found


def table_within(
    suite: Suite, name: str, table: dict[str, Any], data: Mapping[str, AnyData], where: MeasuredIn
) -> tuple[dict[str, Any], dict[str, Budget]]:
    """Return the table of one more pre-training run with its budget replaced by epochs, and the budgets.

    Raises:
        UserError: as :func:`within_budgets`.
    """
    if "budget" not in table:
        return table, {}
    suite, found = within_budgets(_with(suite, name, table), data, where)
    return suite.pretrain[name], found


def _read(suite: Suite, name: str) -> BudgetRecipe:
    """Return the budget of a table, checked by itself."""
    table, at = suite.pretrain[name], f"pretrain.{name}.budget"
    given = table["budget"]
    if not isinstance(given, dict):
        raise UserError(f'{at}: expected a table such as {{like = "lut", unit = "flop"}}, found {str(given)[:80]!r}.')
    budget = read_recipe(BudgetRecipe, given, at)
    if "epochs" in table:
        raise UserError(
            f"pretrain.{name}: expected either epochs or a budget, which sets the epochs, found both. Remove one of them."
        )
    if budget.like == name:
        raise UserError(f"{at}.like: a run cannot take its budget from itself. Name another pre-training run.")
    if budget.like not in suite.pretrain:
        others = [other for other in suite.pretrain if other != name]
        raise unknown(f"{at}.like: there is no [pretrain.{budget.like}] in the suite file", budget.like, others)
    return budget


def _in_order(budgets: Mapping[str, BudgetRecipe]) -> list[str]:
    """Return the names of the runs, each after the run that its budget refers to."""
    order: dict[str, None] = {}
    for name in budgets:
        chain = [name]
        while (like := budgets[chain[-1]].like) in budgets:
            if like in chain:
                way = " -> ".join([*chain[chain.index(like) :], like])
                raise UserError(
                    f"pretrain.{like}.budget: the budgets form a cycle, {way}. Give one of these runs epochs instead."
                )
            chain.append(like)
        order |= dict.fromkeys(reversed(chain))
    return list(order)


def _check_dataset(at: str, like: str, recipe: PretrainRecipe, other: PretrainRecipe) -> None:
    one, another = (recipe.data, other.data)
    if not one.same_as(another) or one.affecting_results() != another.affecting_results():
        raise UserError(
            f"{at}: expected two runs on the same dataset, found {one.label or one.folder} here and {another.label or another.folder} "
            f"in pretrain.{like}. Give epochs instead, or name another run."
        )


def _flop(name: str, recipe: PretrainRecipe) -> float:
    """Return the FLOP for one image."""
    from lutbench.plan.known import answer  # here: few suites have budgets

    try:
        asked = {"about": "flop", "recipe": recipe.affecting_results()}
        return answer(asked, [recipe], lambda: [float(import_module(TOOLS["flop"]).flop_per_image(recipe))])[0]
    except UserError as error:
        raise UserError(f"pretrain.{name}: {error}") from error


def _epochs(at: str, like: str, exact: float) -> int:
    """Return the number of epochs, rounded."""
    if exact < 1:
        raise UserError(
            f"{at}: the compute of pretrain.{like} is only {exact:.2g} epochs of this run, expected at least 1. Raise the epochs of "
            f"pretrain.{like}, or give this run epochs instead of a budget."
        )
    return floor(exact + 0.5)


def _warmup(at: str, own: Mapping[str, Any], epochs: int, like: str, other: PretrainRecipe) -> Any:
    """Return the table's own ``warmup_epochs``, or the same share of the epochs as in the other run, but less than all epochs."""
    if "warmup_epochs" not in own:
        return min(floor(epochs * other.warmup_epochs / other.epochs + 0.5), epochs - 1)
    given = own["warmup_epochs"]
    if isinstance(given, int) and given >= epochs:
        raise UserError(
            f"{at}: the compute of pretrain.{like} is {epochs} epochs of this run, which must be more than warmup_epochs = {given}. "
            "Lower warmup_epochs, or remove it: the warm-up is then the same share of the run as in the other run."
        )
    return given


def _with(suite: Suite, name: str, table: dict[str, Any]) -> Suite:
    """Return the suite with the table of one pre-training run replaced."""
    return suite.model_copy(update={"pretrain": {**suite.pretrain, name: table}})
