"""Equal compute: the ``budget`` of a pre-training run, which gives it as many epochs as another run's compute is worth.

::

    [pretrain.mae]
    context_weight = 0.0
    crop = "random"
    budget = {like = "lut", unit = "flop"}     # in place of epochs

sets the epochs of ``mae`` so that its FLOP equal those of ``pretrain.lut``, to the nearest whole epoch, and so to within half an
epoch. What is left is said by ``lutbench run``, ``plan`` and ``tables``.

- ``unit = "flop"``, the default: FLOP for an image, forward and backward, of student and teacher, as ``lutbench plan`` counts them
  (:mod:`pretrain.cost`): from the recipe alone, without data and whatever the machine.
- ``unit = "seconds"``: images per second of two records of one machine, see :mod:`lutbench.recipes.speeds`.
- The warm-up is the same share of the run as that of the other, to the nearest epoch, unless the table gives ``warmup_epochs``
  itself (our choice: a schedule is stretched as a whole, as where papers train longer). The learning rate follows the epochs.
- The other run may have a budget itself. Both read the same dataset: then images of an epoch are equal, and need not be known.

All this happens while the suite file is read. What follows sees plain epochs: a run is the run in which they are typed, and
changing the other's epochs changes these.
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
    """How long a run is, in the compute of another one."""

    like: str
    """The other pre-training run of the suite."""
    unit: Literal["flop", "seconds"] = "flop"
    """What of the two is equal."""


class MeasuredIn(NamedTuple):
    """Where speeds are looked for, and for whom."""

    suite: str
    given: str
    """The suite as the command named it, for messages that say what to run."""
    results: Path
    keep: bool
    """Whether those that are used are kept, so that later ones change nothing."""


def check_places(suite: Suite) -> None:
    """Check that nothing but a pre-training run has a budget; raises UserError."""
    tasks = {f"{stage}.{name}": table for stage in STAGES for name, table in getattr(suite, stage).items()}
    given = {where: table.model_extra or {} for where, table in tasks.items() if not isinstance(table, dict)}
    for where, settings in {**given, **{f"defaults.{kind}": table for kind, table in suite.defaults.items()}}.items():
        if "budget" in settings:
            raise UserError(
                f"{where}.budget: a budget is what one pre-training run has, in its own table [pretrain.NAME]. Put it there."
            )


def within_budgets(suite: Suite, data: Mapping[str, AnyData], where: MeasuredIn) -> tuple[Suite, dict[str, Budget]]:
    """Return a suite with epochs in the place of budgets, and what these were; without any it is the suite as it is.

    Raises:
        UserError: for a budget that is malformed, stands beside ``epochs``, is like no run, like itself, like one that reads another
            dataset, or in a circle; that is less than an epoch, or not longer than the warm-up; in seconds, if a speed was not
            measured.
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
    """Return the table of one more pre-training run with epochs in the place of its budget, and what that was; others stay as they are.

    Raises:
        UserError: as :func:`within_budgets`.
    """
    if "budget" not in table:
        return table, {}
    suite, found = within_budgets(_with(suite, name, table), data, where)
    return suite.pretrain[name], found


def _read(suite: Suite, name: str) -> BudgetRecipe:
    """Return the budget of a table, whose run may be like any other."""
    table, at = suite.pretrain[name], f"pretrain.{name}.budget"
    given = table["budget"]
    if not isinstance(given, dict):
        raise UserError(f'{at}: expected a table such as {{like = "lut", unit = "flop"}}, found {str(given)[:80]!r}.')
    budget = read_recipe(BudgetRecipe, given, at)
    if "epochs" in table:
        raise UserError(
            f"pretrain.{name}: expected epochs or a budget, which sets them, and found both. Take one of them out."
        )
    if budget.like == name:
        raise UserError(f"{at}.like: a run cannot have a budget like its own. Name another run of [pretrain].")
    if budget.like not in suite.pretrain:
        others = [other for other in suite.pretrain if other != name]
        raise unknown(f"{at}.like: there is no [pretrain.{budget.like}] in the suite file", budget.like, others)
    return budget


def _in_order(budgets: Mapping[str, BudgetRecipe]) -> list[str]:
    """Return the names of the runs, each after the one that it is like."""
    order: dict[str, None] = {}
    for name in budgets:
        chain = [name]
        while (like := budgets[chain[-1]].like) in budgets:
            if like in chain:
                way = " -> ".join([*chain[chain.index(like) :], like])
                raise UserError(
                    f"pretrain.{like}.budget: the budgets go in a circle, {way}. Give one of these runs epochs instead."
                )
            chain.append(like)
        order |= dict.fromkeys(reversed(chain))
    return list(order)


def _check_dataset(at: str, like: str, recipe: PretrainRecipe, other: PretrainRecipe) -> None:
    one, another = (recipe.data, other.data)
    if not one.same_as(another) or one.affecting_results() != another.affecting_results():
        raise UserError(
            f"{at}: expected two runs on one dataset, found {one.label or one.folder} and, of pretrain.{like}, "
            f"{another.label or another.folder}, whose epochs are not of the same images. Give epochs, or name another run."
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
    """Return the nearest whole number of epochs."""
    if exact < 1:
        raise UserError(
            f"{at}: the compute of pretrain.{like} is worth {exact:.2g} epochs of this run, and a run has at least one. Give "
            f"pretrain.{like} more epochs, or this run epochs of its own."
        )
    return floor(exact + 0.5)


def _warmup(at: str, own: Mapping[str, Any], epochs: int, like: str, other: PretrainRecipe) -> Any:
    """Return the warm-up that a table gives, or the other run's share of the epochs, which leaves an epoch at least."""
    if "warmup_epochs" not in own:
        return min(floor(epochs * other.warmup_epochs / other.epochs + 0.5), epochs - 1)
    given = own["warmup_epochs"]
    if isinstance(given, int) and given >= epochs:
        raise UserError(
            f"{at}: the compute of pretrain.{like} is worth {epochs} epochs of this run, of which warmup_epochs = {given} leave "
            "nothing. Make the warm-up shorter, or leave it out: it is then the same share of the run as the other's."
        )
    return given


def _with(suite: Suite, name: str, table: dict[str, Any]) -> Suite:
    """Return a suite with another table of a pre-training run."""
    return suite.model_copy(update={"pretrain": {**suite.pretrain, name: table}})
