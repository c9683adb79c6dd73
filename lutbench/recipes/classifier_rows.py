"""The runs of ``[robustness.NAME]`` tables: trained classifiers are evaluated on shifted test sets."""

from collections.abc import Sequence
from typing import Any

from lutbench.data.catalogue import MEASURED_ON
from lutbench.errors import UserError, listed, unknown
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.snapshot_rows import study_rows_of
from lutbench.recipes.suite import PlannedRun, Suite
from lutbench.recipes.suite_tables import Table, labelled

PROBES = {"linear": "linear-probe"}
"""Suffix of robustness task names for linear probes on frozen encoders, by the kind of the probe."""


def from_classifiers(name: str, suite: Suite, before: Sequence[PlannedRun], table: Table) -> list[PlannedRun]:
    """Return the runs of a robustness table: every classifier on every dataset."""
    kind, where, given = table.kind, table.where, table.given
    datasets = {known.name: known.recipe for known in MEASURED_ON.values()} | suite.shifted
    measured, runs = _measured(given, before, where), []
    rows = suite.classifier if given.classifiers is None else given.classifiers
    for dataset in given.sets:
        if dataset not in datasets:
            problem = f"{where}.sets: expected a [shifted.NAME] table of the suite file or a published set, found"
            raise unknown(f"{problem} {dataset!r}", dataset, datasets)
        chosen = {"preprocessing": given.preprocessing} if given.preprocessing else {}
        settings = {**table.settings, "set": {**labelled(dataset, datasets[dataset]), **chosen}}
        task = f"{table.task}/{dataset}"
        for run in measured:  # images are preprocessed as in that task, unless the table says otherwise
            as_tuned = {"image_size": run.recipe.side, "eval_crop": run.recipe.eval_crop}  # type: ignore[attr-defined]
            probe = PROBES.get(run.kind.name)
            source = {"kind": "run", "encoder": run.recipe.encoder_label, "export": "linear" if probe else "classifier"}
            values = {**as_tuned, **settings, "classifier": source}
            recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
            row_of = f"{task}/{probe}" if probe else task
            runs.append(PlannedRun(name, kind, row_of, run.method, run.seed, recipe, run.name))
        for row in rows:
            # not trained by the suite, so without a seed: recorded under the suite's first seed
            values = {**settings, **_classifier_settings(suite, row, where)}
            recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
            runs.append(PlannedRun(name, kind, task, row, suite.seeds[0], recipe))
    return runs


def _measured(given: RobustnessTable, before: Sequence[PlannedRun], where: str) -> list[PlannedRun]:
    """Return the fine-tunings and then the probes whose classifiers the table evaluates; of several draws only the first."""
    kinds = {"finetune": "fine-tune", **dict.fromkeys(PROBES, "probe")}
    possible = (run for run in before if run.kind.name in kinds and not run.draw)
    classifiers = sorted(possible, key=lambda run: run.kind.name in PROBES)
    fitting = list(dict.fromkeys(run.task for run in classifiers))
    for task in given.tasks:
        if task not in fitting:
            raise unknown(f"{where}.tasks: expected a fine-tuning or linear probe, found {task!r}", task, fitting)
    measured = [run for run in classifiers if run.task in given.tasks]
    known = list(dict.fromkeys(run.method for run in measured))
    on_the_way = {row for *_, row in study_rows_of(measured)}  # snapshots are evaluated only if listed
    methods = [row for row in known if row not in on_the_way] if given.methods is None else given.methods
    for method in methods:
        if method not in known:
            of = listed(given.tasks) or "none"
            raise unknown(f"{where}.methods: {method!r} is not a method of its tasks ({of})", method, known)
        for kind, verb in kinds.items():
            runs = [run for run in measured if (run.method, run.kind.name) == (method, kind)]
            if len(same := dict.fromkeys(run.task for run in runs)) > 1:
                raise UserError(
                    f"{where}.tasks: {' and '.join(same)} each {verb} {method}, but a table can have only one such classifier per "
                    "method. Keep one of these tasks here, and use another [robustness.NAME] table for the others."
                )
    return [run for run in measured if run.method in methods]


def _classifier_settings(suite: Suite, row: str, where: str) -> dict[str, Any]:
    """Return the settings of the classifier and its input from ``[classifier.NAME]``."""
    if row not in suite.classifier:
        raise unknown(f"{where}.classifiers: there is no [classifier.{row}] in the suite file", row, suite.classifier)
    given = suite.classifier[row]
    source = {
        "kind": "checkpoint" if given.checkpoint else "timm",
        "model": given.model,
        "path": given.checkpoint,
        "encoder": given.encoder or given.model,
        **given.preprocessing(),
    }
    return {"classifier": source} | ({} if given.image_size is None else {"image_size": given.image_size})
