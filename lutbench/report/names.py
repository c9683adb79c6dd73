"""How tables name tasks, methods and metrics."""

from collections import Counter
from collections.abc import Mapping

from lutbench.recipes.robustness import ClassifierTable, RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, MethodRecipe

LOWER = ("mCE", "CE", "error", "mean error", "gap", "FPR95")
"""Of these metrics of shifted sets lower values are better."""


def task_title(suite: LoadedSuite, task: str) -> str:
    """How tables name a task, or a shifted set: with its table where the suite has several."""
    if task in suite.config.downstream:
        return suite.config.downstream[task].title or task
    recipe = next(run.recipe for run in suite.runs if run.stage == "robustness" and run.task == task)
    assert isinstance(recipe, RobustnessRecipe)
    if len(suite.config.robustness) == 1:
        return recipe.set.name
    table = task.split("/")[0]
    return f"{suite.config.robustness[table].title or table}, {recipe.set.name}"


def method_label(suite: LoadedSuite, method: str) -> str:
    """How tables name a method or a classifier."""
    return row_of(suite, method).label or method


def method_names(suite: LoadedSuite, encoders: Mapping[str, str]) -> dict[str, str]:
    """How the methods of one task are told apart without a column for the encoder, from their ``encoders``.

    By their labels; where two have the same, with the encoder: LUT with ViT-S/16 and with ViT-B/16.
    """
    names = {method: method_label(suite, method) for method in encoders}
    for suffixes in (encoders, {method: method for method in encoders}):
        times = Counter(names.values())
        names = {m: f"{name}, {suffixes[m]}" if times[name] > 1 else name for m, name in names.items()}
    return names


def pair_name(suite: LoadedSuite, encoders: Mapping[str, str], first: str, second: str) -> str:
    """``LUT - MAE``, or ``LUT - MAE, ViT-B/16`` where one of the labels stands for several methods of the task."""
    names = method_names(suite, encoders)
    labels = [method_label(suite, method) for method in (first, second)]
    if encoders[first] == encoders[second] and all(
        names[method] in (label, f"{label}, {encoders[method]}")
        for method, label in zip((first, second), labels, strict=True)
    ):
        plain = [names[first], names[second]] == labels
        return " - ".join(labels) + ("" if plain else f", {encoders[first]}")
    return f"{names[first]} - {names[second]}"


def directed(metric: str) -> str:
    """How tables name a metric where shifted sets are: with an arrow that says which values are better."""
    return metric and f"{metric} {'↓' if metric.split(', ')[0] in LOWER else '↑'}"


def row_of(suite: LoadedSuite, method: str) -> MethodRecipe | ClassifierTable:
    """The suite file's table of a method or a classifier."""
    return suite.config.method[method] if method in suite.config.method else suite.config.classifier[method]
