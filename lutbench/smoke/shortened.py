"""The suite of a smoke run: its recipes, changed to few images and few steps."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lutbench.data.catalogue import MEASURED_ON
from lutbench.errors import UserError
from lutbench.kinds import dataset_module
from lutbench.recipes.base import DatasetRecipe, EncoderRecipe, RunRecipe, WeightsSource
from lutbench.recipes.suite import LoadedSuite, PlannedRun, Study, StudyPoint
from lutbench.smoke import Width
from lutbench.workspace import Workspace

REVISION = 1
"""Raised whenever earlier smoke runs have to be repeated."""

FEW = 24
"""Images that are read of each split, database or condition: more than the width of the toy encoders, for their spectra."""

BATCH = 8
"""Images per step, if they divide over the processes in pairs, twice."""

SIDE, PATCH, DEPTH, HEADS = 32, 8, 4, 2
"""Toy encoders: side of the input and of a patch in pixels, number of blocks (UPerNet takes the maps of four) and of heads."""

TOY_CLASSIFIER = "deit_tiny_patch16_224"
"""The model of timm that replaces released classifiers at toy width; it has the input size of the toy encoders."""


@dataclass(frozen=True)
class Smoke:
    """The settings of a smoke run of a suite."""

    width: Width
    home: Path
    """The folder of its runs, with the datasets and weights prepared for them."""
    real: Path
    """The data root of real runs, which is only read."""
    processes: int = 1

    @property
    def data(self) -> Path:
        """The data root of smoke runs."""
        return self.home / "data"

    @property
    def batch(self) -> int:
        """Images per step: a multiple of four times the processes, so that half a batch still has pairs on every process."""
        unit = 4 * self.processes
        return -(-BATCH // unit) * unit

    @property
    def toy(self) -> bool:
        """Whether encoders are small ones."""
        return self.width == "toy"


@dataclass(frozen=True)
class SmokeWorkspace(Workspace):
    """The folders of smoke runs; messages name the folders given to the command."""

    asked: str = ""

    @property
    def options(self) -> str:
        """The command-line options for the folders given to the command."""
        return self.asked


def smoke_workspace(workspace: Workspace, width: Width) -> SmokeWorkspace:
    """Return the folders of smoke runs of this width, separate from the ``workspace`` of real runs."""
    home = workspace.runs / "smoke" / width
    results = workspace.results / "smoke" / width
    return SmokeWorkspace(home / "data", home, results, feature_bytes=workspace.feature_bytes, asked=workspace.options)


def smoked(suite: LoadedSuite, smoke: Smoke) -> LoadedSuite:
    """Return a suite with the same kinds of runs, with few images and few steps, and only some of its seeds and studies.

    It has the first seed, two draws, and for every study its base and one other point.
    """
    seed = suite.config.seeds[0]
    runs = [run for run in suite.runs if run.seed == seed and run.draw < 2]
    studies = [_of_two_points(study) for study in suite.studies]
    rows = {row for study in studies for point in study.points for row in point.rows.values()}
    wanted, kept = set[str](), list[PlannedRun]()
    for run in reversed(runs):  # each comes before the run it depends on
        pretrains_a_study = run.row in suite.study_rows and run.kind.starts_from == "nothing"
        if run.name in wanted or (not pretrains_a_study and (run.row in rows or run.row not in suite.study_rows)):
            kept.append(run)
            wanted |= {run.needs} if run.needs else set()
    shares = _shares(kept)
    stamp = f"{smoke.width}, {REVISION}"
    made = [
        replace(run, recipe=_smoked_recipe(run, smoke, shares.get(run.name, [])), smoke=stamp) for run in reversed(kept)
    ]
    config = suite.config.model_copy(
        update={"title": f"{suite.config.title} (smoke run, not a measurement)", "seeds": [seed]}
    )
    flag = "--smoke" if smoke.width == "own" else f"--smoke {smoke.width}"
    return replace(
        suite,
        config=config,
        runs=tuple(made),
        given=f"{suite.given} {flag}",
        budgets={},
        studies=tuple(study for study in studies if study.points),
        smoke=smoke.width,
    )


def _of_two_points(study: Study) -> Study:
    """Return a study with its base and one other point: the last one, or of snapshots the one nearest to the middle of the training."""
    if len(study.points) <= 2:
        return study
    base = study.base if study.base is not None else 0
    others = [place for place in range(len(study.points)) if place != base]
    other = others[-1]
    if study.axes == ("at",):
        other = min(others, key=lambda place: abs(study.points[place].values["at"] - 0.5))
    places = sorted({base, other})
    points: tuple[StudyPoint, ...] = tuple(study.points[place] for place in places)
    return replace(study, points=points, base=None if study.base is None else places.index(base))


def _shares(runs: list[PlannedRun]) -> dict[str, list[float]]:
    """Return the shares of each pre-training, by name, at which a snapshot of its encoder is evaluated."""
    found: dict[str, set[float]] = {}
    for run in runs:
        source = run.recipe.source
        if run.needs and source is not None and source.snapshot_share is not None:
            found.setdefault(run.needs, set()).add(source.snapshot_share)
    return {name: sorted(shares) for name, shares in found.items()}


def _smoked_recipe(run: PlannedRun, smoke: Smoke, shares: list[float]) -> RunRecipe:
    """Return the settings of a smoke run, validated like those of a suite file."""
    rules = {**SHORT, **(TOY if smoke.toy else {}), **OF_KIND.get(run.kind.name, {})}
    changes = {
        name: rule(getattr(run.recipe, name), run, smoke) for name, rule in rules.items() if name in _fields(run.recipe)
    }
    if "snapshots" in changes:
        changes |= {"snapshots": shares, "epochs": _epochs(shares, FEW // smoke.batch)}
    changed = run.recipe.model_copy(update=changes)
    type(run.recipe).model_validate(changed.model_dump())  # raises an error if they contradict each other
    return changed


def _fields(recipe: BaseModel) -> Collection[str]:
    return type(recipe).model_fields


def _epochs(shares: list[float], steps: int) -> int:
    """Return the smallest number of epochs in which the beginning, these shares and the end fall on different steps."""
    for epochs in range(1, 10_000):
        places = [round(share * epochs * max(1, steps)) for share in (0.0, *(share for share in shares if share), 1.0)]
        if len(set(places)) == len(places):
            return epochs
    raise UserError(f"snapshots: the shares {shares} are too close to each other for a smoke run.")


# The rules of the settings

Rule = Callable[[Any, PlannedRun, Smoke], Any]
"""A function of a setting's value and its run that returns the value in the smoke run."""


def _always(value: Any) -> Rule:
    return lambda given, run, smoke: value


def _at_most(most: int) -> Rule:
    return lambda given, run, smoke: None if given is None else min(given, most)


def _batch(given: int, run: PlannedRun, smoke: Smoke) -> int:
    """Return the images per step; two per process for segmentation, whose training is counted in iterations and whose images are large."""
    return 2 * smoke.processes if "iterations" in _fields(run.recipe) else smoke.batch


def _micro_batch(given: int | None, run: PlannedRun, smoke: Smoke) -> int | None:
    """Return half a batch if a batch had several micro-batches."""
    return smoke.batch // 2 if given and given < run.recipe.batch else None  # type: ignore[attr-defined]


def _few(dataset: Any, run: PlannedRun, smoke: Smoke) -> Any:
    """Return a dataset of which a few images are read. One with masks that lutbench builds becomes a folder of the same layout."""
    if layout := getattr(dataset_module(dataset).built_by(dataset), "layout", None):
        known = layout(Path(dataset.folder)).model_dump(exclude={"label"})
        return type(dataset)(label=dataset.label or dataset.folder, **known | {"few": FEW})
    return dataset.model_copy(update={"few": FEW})


def _few_conditions(dataset: Any, run: PlannedRun, smoke: Smoke) -> Any:
    """Return a robustness dataset with a few images of a few conditions, without the known counts."""
    changes: dict[str, Any] = {"few": FEW, "images": None, "classes": None}
    if dataset.kind == "corruptions":
        known: Any = MEASURED_ON["imagenet-c"].recipe
        some = dataset.corruptions or (known.corruptions if dataset.source == "corrupted" else [])
        changes |= {"corruptions": some[:2], "severities": dataset.severities[:2], "extra": dataset.extra[:1]}
        changes |= {"alexnet": False, "copy_per_class": 1}
        changes |= {"copy_side": SIDE} if smoke.toy else {}
    if dataset.kind == "occlusion":
        changes |= {"drops": dataset.drops[::5], "shuffles": dataset.shuffles[:2]}
        changes |= {"drop_grid": SIDE // PATCH, "shuffles": [2, 4]} if smoke.toy else {}
    if smoke.toy and "whole" in dataset.preprocessing and (smoke.real / dataset.folder).is_dir():
        changes["preprocessing"] = ["bilinear"]  # present images are stored at another size
    return dataset.model_copy(update=changes)


def _image_size(given: int | None, run: PlannedRun, smoke: Smoke) -> int | None:
    """Return an image size scaled like the encoder's input; for a released classifier, that of the one that replaces it."""
    if run.kind.starts_from == "classifier":
        return SIDE if run.needs is None or (given or 224) <= 224 else 2 * SIDE
    return given and max(1, round(given / _encoder_of(run).image_size * SIDE / PATCH)) * PATCH


def _blocks(given: list[int] | None, run: PlannedRun, smoke: Smoke) -> list[int] | None:
    """Return the blocks of a toy encoder that replace those of an encoder, counted from 1, or back from -1; the last ones stay the last."""

    def scaled(block: int) -> int:
        near = max(1, min(DEPTH, round(abs(block) * DEPTH / (_encoder_of(run).depth or 12))))
        return block if -DEPTH <= block <= DEPTH else near if block > 0 else -near

    return given and list(dict.fromkeys(map(scaled, given)))


def _encoder_of(run: PlannedRun) -> EncoderRecipe:
    """Return the architecture of the encoder that a run evaluates."""
    architecture: EncoderRecipe = run.recipe.encoder.architecture  # type: ignore[attr-defined]
    return architecture


def _encoder(given: Any, run: PlannedRun, smoke: Smoke) -> Any:
    """Return the encoder of a run: the architecture for a pre-training, otherwise the source of its weights."""
    return _architecture(given, smoke) if run.recipe.source is None else _source(given, run, smoke)


def _source(source: Any, run: PlannedRun, smoke: Smoke) -> Any:
    """Return the source of the weights: unchanged for those of another run; random weights for missing ones, and always at toy width."""
    changes: dict[str, Any] = {}
    if source.kind in ("timm", "checkpoint") and (smoke.toy or not _at_hand(source)):
        path = smoke.home / "weights" / f"{run.method}.safetensors"
        changes |= {"kind": "checkpoint", "path": str(path), "part": ""}
    if "architecture" in _fields(source):
        changes["architecture"] = _architecture(source.architecture, smoke)
    elif source.kind != "run" and smoke.toy:
        changes["model"] = TOY_CLASSIFIER
    return source.model_copy(update={name: value for name, value in changes.items() if name in _fields(source)})


def _at_hand(source: WeightsSource) -> bool:
    """Return whether weights are on this machine: a file of the user, or timm's in the cache of the Hugging Face Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if source.kind == "checkpoint":
        return Path(source.path).expanduser().exists()
    return (Path(HF_HUB_CACHE) / f"models--timm--{source.timm_model}").is_dir()


def _architecture(recipe: EncoderRecipe, smoke: Smoke) -> EncoderRecipe:
    """Return an encoder at the width of the smoke run: at toy width, a plain ViT becomes one of three small ones, by its own width."""
    if not smoke.toy:
        return recipe
    from lutbench.models.encoders import geometry_of, is_plain  # here, because timm takes seconds to import

    if not is_plain(recipe):
        return recipe
    width = 20 if (own := geometry_of(recipe).width) >= 1024 else 16 if own >= 768 else 12
    sizes = {"image_size": SIDE, "patch_size": PATCH, "width": width, "depth": DEPTH, "heads": HEADS}
    return recipe.model_copy(update=sizes)


SHORT: Mapping[str, Rule] = {
    "data": _few, "set": _few_conditions, "encoder": _encoder, "classifier": _source,
    "epochs": _always(1), "warmup_epochs": _always(0), "iterations": _always(3), "warmup": _always(0), "snapshots": _always([]),
    "batch": _batch, "micro_batch": _micro_batch, "mix_group": lambda given, run, smoke: min(given, smoke.batch),
    "eval_batch": _always(FEW), "eval_every": _always(None), "val_every": _always(None), "log_every": _always(1),
    "knn_every": _at_most(1), "knn_images": _always(FEW), "knn_neighbours": _always(5),
    "neighbours": _at_most(5), "shots": _at_most(2), "C_grid": _always([1e-2, 1.0]), "halvings": _always(1), "max_iter": _always(20),
    "recall_at": lambda given, run, smoke: [number for number in given if number <= 8] or [1],
    "bank": _at_most(512), "images": _always(FEW), "viewed": _always(4), "alpha_from": _always(1),
    "measures": lambda given, run, smoke: [one for one in given if one != "spectrum"] or ["attention"],
    "workers": _at_most(2),
}  # fmt: skip
"""The rules by name of the setting, for all kinds of runs: a new kind whose settings have names of other kinds needs no rule. Encoders of
their own width are wider than a few images, whose features have no spectrum then."""

TOY: Mapping[str, Rule] = {
    "workers": _always(0), "threads": _always(1), "compile": _always(False), "image_size": _image_size, "blocks": _blocks,
    "decoder_width": _always(16), "decoder_depth": _always(1), "decoder_heads": _always(2), "head_width": _always(32),
    "mask_unit": _always(PATCH), "mask_ratio": lambda given, run, smoke: min(given, 0.9), "measures": lambda given, run, smoke: given,
    "crop": lambda given, run, smoke: SIDE if "stride" in _fields(run.recipe) else given,  # pre-training has another crop
    "stride": _always(SIDE * 2 // 3), "scale": _always([4 * SIDE, SIDE]),
    "channels": _always(16), "auxiliary_channels": _always(8), "heads": _always(None),
}  # fmt: skip
"""The rules that differ at toy width."""

OF_KIND: Mapping[str, Mapping[str, Rule]] = {
    "segmentation": {"save_every": _always(2), "blocks": lambda given, run, smoke: None if smoke.toy else given},
}
"""The rules of single kinds: UPerNet's blocks are counted from 0."""


def datasets_of(suite: LoadedSuite) -> list[DatasetRecipe]:
    """Return the datasets of a suite's runs, each once; robustness datasets come last."""
    found = {run.recipe.dataset.model_dump_json(): run.recipe.dataset for run in suite.runs}
    return sorted(found.values(), key=lambda recipe: "test" in recipe.splits)
