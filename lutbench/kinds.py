"""Every kind of run, declared once; and every kind of dataset.

This is the only place that connects the suite with its stages. The modules named here are imported when they are used, so that help
and tables need no torch.

The module of a kind has two functions; a third if its runs compute with a model, a fourth if they may start from weights
that the suite did not train, and a fifth if they train an encoder with a decoder::

    check(run)              check that the run can start, before any compute is spent; raises UserError, or NotRun
    perform(run)            do the run: write the record, mark the run finished
    cost(run, classes)      the cost of one image, see lutbench.plan.compute.Cost
    check_weights(run)      the part of check that needs those weights but no data; status and plan call it too
    reconstruct(run, images, ratios)
                            the reconstructions by the decoder of a finished run. images: (B, 3, S, S), uint8, of the run's
                            size; ratios: the mask ratios. Returns (len(ratios), B, 3, S, S), uint8, with visible patches
                            unchanged. An image's masks depend only on its index and on the number of patches. Returns None,
                            and logs that, for a run that kept no decoder

A new kind is a module, a recipe and a line here. Its smoke runs shorten all settings whose names other kinds have too; a setting with a
new name needs a line in :data:`lutbench.smoke.shortened.SHORT`. A new stage also has a table in :class:`lutbench.recipes.suite.Suite`, whose
type defines the tables of the stage: a ``TaskTable`` names its kind, and starts from nothing or from the encoder of every
method; a ``RobustnessTable`` names datasets and starts from classifiers; plain settings belong to the stage's first kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lutbench.recipes.base import Recipe, RunRecipe

StartsFrom = Literal["nothing", "encoder", "classifier"]
"""What a run starts from besides data: nothing, the encoder of a method, or the classifier of a fine-tuning or linear probe."""


@dataclass(frozen=True)
class Kind:
    """A kind of run. All names are dotted: ``module`` or ``module:attribute``."""

    name: str
    """``kind = "NAME"`` in a suite file, and the first part of the identity of its runs."""
    stage: str
    recipe_name: str
    module_name: str
    starts_from: StartsFrom
    outcomes_name: str = ""
    """The type of its per-image outcomes, see :class:`lutbench.evaluate.outcomes.PerImage`; empty if it has none."""
    report_name: str = ""
    """A module with ``sections(view)``: sections of the tables besides the main table that every kind is in. Optional:
    ``galleries(view, at_hand)``, pictures for the report, see :mod:`lutbench.report.galleries`."""

    @property
    def recipe(self) -> "type[RunRecipe]":
        """The type of its settings."""
        recipe: type[RunRecipe] = resolve_name(self.recipe_name)
        return recipe

    @property
    def module(self) -> ModuleType:
        """The module that performs its runs."""
        return import_module(self.module_name)

    @property
    def outcomes(self) -> Any:
        """The type of its per-image outcomes; None if it has none."""
        return resolve_name(self.outcomes_name) if self.outcomes_name else None

    @property
    def report(self) -> ModuleType | None:
        """The module with further sections of the tables, if there is one."""
        return import_module(self.report_name) if self.report_name else None


_OUTCOMES = "lutbench.evaluate.outcomes:Outcomes"
_CONFUSIONS = "downstream.segmentation.confusions:Confusions"
_QUERIES = "lutbench.evaluate.queries:QueryScores"

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("pretrain", "pretrain", "lutbench.recipes.pretrain:PretrainRecipe", "pretrain.train", "nothing"),
        Kind("finetune", "downstream", "lutbench.recipes.downstream:FinetuneRecipe", "downstream.finetune", "encoder", _OUTCOMES),
        Kind("linear", "downstream", "lutbench.recipes.probes:LinearRecipe", "downstream.linear", "encoder", _OUTCOMES),
        Kind("knn", "downstream", "lutbench.recipes.probes:KnnRecipe", "downstream.knn", "encoder", _OUTCOMES),
        Kind("logistic", "downstream", "lutbench.recipes.probes:LogisticRecipe", "downstream.logistic", "encoder", _OUTCOMES),
        Kind("attentive", "downstream", "lutbench.recipes.attentive:AttentiveRecipe", "downstream.attentive", "encoder", _OUTCOMES),
        Kind("segmentation", "downstream", "lutbench.recipes.segmentation:SegmentationRecipe", "downstream.segmentation.task", "encoder", _CONFUSIONS, "downstream.segmentation.report"),
        Kind("segmentation-linear", "downstream", "lutbench.recipes.dense:DenseLinearRecipe", "downstream.segmentation.dense_linear", "encoder", _CONFUSIONS, "downstream.segmentation.report"),
        Kind("segmentation-knn", "downstream", "lutbench.recipes.dense:DenseKnnRecipe", "downstream.segmentation.dense_knn", "encoder", _CONFUSIONS, "downstream.segmentation.report"),
        Kind("retrieval", "downstream", "lutbench.recipes.retrieval:RetrievalRecipe", "downstream.retrieval", "encoder", _QUERIES),
        Kind("instance-retrieval", "downstream", "lutbench.recipes.retrieval:InstanceRetrievalRecipe", "downstream.instance_retrieval", "encoder", _QUERIES),
        Kind("robustness", "robustness", "lutbench.recipes.robustness:RobustnessRecipe", "robustness.measure", "classifier", "robustness.condition_outcomes:RobustnessOutcomes", "robustness.report"),
        Kind("analysis", "analysis", "lutbench.recipes.analysis:AnalysisRecipe", "analysis.analyse", "encoder", "analysis.block_outcomes:BlockOutcomes", "analysis.report"),
    )
}  # fmt: skip
"""The kinds by name, in the order in which their stages are run."""

STAGES = tuple(dict.fromkeys(kind.stage for kind in KINDS.values()))
"""The stages, in the order in which they are run."""

DATASETS: Mapping[str, str] = {
    "DataRecipe": "lutbench.data.images",
    "SegmentationDataRecipe": "lutbench.data.scenes",
    "RevisitedDataRecipe": "lutbench.data.revisited",
    "RobustnessDatasetRecipe": "robustness.datasets",
}
"""The module of each type of dataset, by the name of its recipe's type. It has

- ``open_dataset(recipe, split, root)``: open one split; its ``fingerprint`` identifies the content; raises UserError or NotRun;
- ``survey(recipe, workspace)``: what is present and how large it is, see :mod:`lutbench.data.survey`;
- ``needs(recipe, root)``: the required files and folders, by the names that messages give them;
- ``built_by(recipe)``: what builds it, if lutbench builds it itself; else None;
- ``few_files(recipe, root)``: the files and folders below ``root`` that a smoke run links, none if the dataset is absent;
- ``write_miniature(recipe, root, side, classes)``: write a miniature of it, see :mod:`lutbench.smoke.inputs`, unless there is one
  already; return whether it was written;
- ``check_pair(train, val)``, if it has both splits: raises UserError if they do not fit together;
- ``verify(known, root, full, report)``, if it has splits other than train and val: the checks of ``lutbench data check``;
- ``inspect(dataset, scan, full, report)``, if it has more than images to check, such as masks.
"""

FRAMEWORKS: Mapping[str, str] = {
    "mae": "pretrain.frameworks.mae:build_mae",
    "simmim": "pretrain.frameworks.simmim:build_simmim",
}
"""The function that builds each framework of masked image modelling, see :func:`pretrain.frameworks.build_framework`."""

CONTEXT_LOSSES: Mapping[str, str] = {
    "cosine": "pretrain.context_losses.distances:cosine",
    "l2": "pretrain.context_losses.distances:l2",
    "smooth_l1": "pretrain.context_losses.distances:smooth_l1",
    "infonce": "pretrain.context_losses.infonce:infonce",
}
"""The function that builds each form of the context loss, see :func:`pretrain.context_losses.build_loss`."""

TOOLS: Mapping[str, str] = {
    "parity": "pretrain.parity",
    "export": "downstream.segmentation.export",
    "backbone": "downstream.segmentation.backbone_export",
    "vitmae": "pretrain.vitmae",
    "flop": "pretrain.cost",
}
"""Modules of stages that commands use: ``parity`` by that command; ``export``, ``backbone`` and ``vitmae`` by ``lutbench export``;
``flop`` has ``flop_per_image(recipe)``, which budgets of pre-training runs compare."""


def kinds_of(stage: str) -> dict[str, Kind]:
    """Return the kinds of a stage by name."""
    return {name: kind for name, kind in KINDS.items() if kind.stage == stage}


def dataset_module(recipe: "Recipe") -> ModuleType:
    """Return the module behind a dataset."""
    return import_module(DATASETS[type(recipe).__name__])
