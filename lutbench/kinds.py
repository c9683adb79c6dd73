"""Every kind of run, declared once; and every kind of dataset.

The one place through which the suite knows its stages. What a declaration names is imported when it is used, so that help
and tables need no torch.

A kind's module has two functions, a third where its runs multiply matrices, a fourth where they may start from weights
that the suite did not make, and a fifth where they make an encoder with a decoder::

    check(run)              find what would stop the run before any compute is spent; raises UserError, or NotRun
    perform(run)            do it: write the record, finish the run
    cost(run, classes)      what one image of it costs, see lutbench.plan.compute.Cost
    check_weights(run)      the part of check that needs those weights and no data, which status and plan tell too
    reconstruct(run, images, ratios)
                            what the decoder of a finished run makes of images (B, 3, S, S) of the run's size, uint8, of
                            which such shares of the patches are masked: (len(ratios), B, 3, S, S), uint8, what is visible as
                            it was. An image's masks follow from its place among the images and the number of patches alone.
                            None, with a line about it, of a run that kept no decoder

A new kind is a module, a recipe and a line here; what makes a smoke run of it short is known for settings of names that others have, and
of another name is a line of :data:`lutbench.smoke.shortened.SHORT`. A new stage also has a table in :class:`lutbench.recipes.suite.Suite`, whose
type says what its tables look like: a ``TaskTable`` names its kind, and starts from nothing or from the encoder of every
method; a ``RobustnessTable`` names datasets and starts from classifiers; plain settings are those of the stage's first kind.
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
"""What goes into a run: nothing but data, the encoder of a method, or the classifier that a fine-tuning or a linear probe left."""


@dataclass(frozen=True)
class Kind:
    """A kind of run. All names are dotted: ``module`` or ``module:attribute``."""

    name: str
    """``kind = "NAME"`` in a suite file, and what the identity of its runs begins with."""
    stage: str
    recipe_name: str
    module_name: str
    starts_from: StartsFrom
    outcomes_name: str = ""
    """The type of its per-image outcomes, see :class:`lutbench.evaluate.outcomes.PerImage`; empty if it has none."""
    report_name: str = ""
    """A module with ``sections(view)``: what tables say of its runs beside the rows that every kind has."""

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
        """The module that has more to say in the tables, if there is one."""
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
"""The module behind each type of dataset, by the name of its recipe's type. It has

- ``open_dataset(recipe, split, root)``: one split, whose content is told by a ``fingerprint``; raises UserError or NotRun;
- ``survey(recipe, workspace)``: what is present and what it takes, see :mod:`lutbench.data.survey`;
- ``needs(recipe, root)``: the files and folders without which it is not whole, by the names that messages give them;
- ``built_by(recipe)``: what builds it, if it is the suite's own; else None;
- ``few_files(recipe, root)``: the files and folders below ``root`` that a smoke run links, none where nothing is there;
- ``write_miniature(recipe, root, side, classes)``: write it in miniature, see :mod:`lutbench.smoke.inputs`, unless it lies there so;
  return whether it was written;
- ``check_pair(train, val)``, if it has both: raises UserError if one does not fit the other;
- ``verify(known, root, full, report)``, if it has other splits than train and val: what ``lutbench data check`` finds;
- ``inspect(dataset, scan, full, report)``, if more than images is to be checked, such as masks.
"""

FRAMEWORKS: Mapping[str, str] = {
    "mae": "pretrain.frameworks.mae:build_mae",
    "simmim": "pretrain.frameworks.simmim:build_simmim",
}
"""What builds each framework of masked image modelling, by its name in a recipe, see :func:`pretrain.frameworks.build_framework`."""

CONTEXT_LOSSES: Mapping[str, str] = {
    "cosine": "pretrain.context_losses.distances:cosine",
    "l2": "pretrain.context_losses.distances:l2",
    "smooth_l1": "pretrain.context_losses.distances:smooth_l1",
    "infonce": "pretrain.context_losses.infonce:infonce",
}
"""What builds each form of the context loss, by its name in a recipe, see :func:`pretrain.context_losses.build_loss`."""

TOOLS: Mapping[str, str] = {
    "parity": "pretrain.parity",
    "export": "downstream.segmentation.export",
    "backbone": "downstream.segmentation.backbone_export",
    "vitmae": "pretrain.vitmae",
    "flop": "pretrain.cost",
}
"""The stage's module behind what a command of the command line does, by a name of that: ``export``, ``backbone`` and ``vitmae`` are
parts of ``export``, and ``flop`` has ``flop_per_image(recipe)``, which budgets of pre-training runs compare."""


def kinds_of(stage: str) -> dict[str, Kind]:
    """Return the kinds of a stage by name."""
    return {name: kind for name, kind in KINDS.items() if kind.stage == stage}


def dataset_module(recipe: "Recipe") -> ModuleType:
    """Return the module behind a dataset."""
    return import_module(DATASETS[type(recipe).__name__])
