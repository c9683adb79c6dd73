"""A suite as it is smoked: a function of its recipes, which read a few images and train for a few steps."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lutbench.data.catalogue import MEASURED_ON
from lutbench.errors import UserError
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.base import DatasetRecipe, EncoderRecipe, RunRecipe, WeightsSource
from lutbench.recipes.dense import DenseKnnRecipe, DenseLinearRecipe
from lutbench.recipes.downstream import DownstreamRecipe, EncoderSource, FinetuneRecipe, ImageTaskRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe, LinearRecipe, LogisticRecipe
from lutbench.recipes.retrieval import InstanceRetrievalRecipe, RetrievalRecipe
from lutbench.recipes.robustness import ClassifierSource, RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.recipes.segmentation import CropsRecipe, SegmentationRecipe, WindowsRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun, Study, StudyPoint
from lutbench.workspace import Workspace

Width = Literal["own", "toy"]

REVISION = 1
"""Raised whenever smoke runs of before are to be run anew."""

FEW = 24
"""Images of each split, database or condition that are read: more than the toy encoders are wide, for their spectra."""

BATCH = 8
"""Images per step where that many divide over the processes in pairs, twice."""

SIDE, PATCH, DEPTH, HEADS = 32, 8, 4, 2
"""Of toy encoders: side of the input and of a patch in pixels, blocks (UPerNet takes maps of four), heads."""

TOY_CLASSIFIER = "deit_tiny_patch16_224"
"""timm's model in the place of released classifiers at toy width, for the same input as the toy encoders."""


@dataclass(frozen=True)
class Smoke:
    """How a suite is smoked."""

    width: Width
    home: Path
    """The folder of its runs, with the data and the weights that are laid out for them."""
    real: Path
    """The data root, of which only what is there is read."""
    processes: int = 1

    @property
    def data(self) -> Path:
        """The data root of smoke runs."""
        return self.home / "data"

    @property
    def batch(self) -> int:
        """Images per step: a multiple of four times the processes, so that half of them still are pairs on every process."""
        unit = 4 * self.processes
        return -(-BATCH // unit) * unit

    @property
    def toy(self) -> bool:
        """Whether encoders are small ones."""
        return self.width == "toy"


@dataclass(frozen=True)
class SmokeWorkspace(Workspace):
    """The folders of smoke runs; messages name those that the command was given."""

    asked: str = ""

    @property
    def options(self) -> str:
        """What a command is to be given for the folders that it was given."""
        return self.asked


def smoke_workspace(workspace: Workspace, width: Width) -> SmokeWorkspace:
    """Return the folders of smoke runs of this width, apart from the ``workspace`` of the real ones."""
    home = workspace.runs / "smoke" / width
    results = workspace.results / "smoke" / width
    return SmokeWorkspace(home / "data", home, results, feature_bytes=workspace.feature_bytes, asked=workspace.options)


def smoked(suite: LoadedSuite, smoke: Smoke) -> LoadedSuite:
    """Return a suite with the same kinds of runs, on a few images and for a few steps; of its seeds and sweeps a part.

    The first seed, two draws, of every study its base and another point.
    """
    seed = suite.config.seeds[0]
    runs = [run for run in suite.runs if run.seed == seed and run.draw < 2]
    studies = [_of_two_points(study) for study in suite.studies]
    rows = {row for study in studies for point in study.points for row in point.rows.values()}
    wanted, kept = set[str](), list[PlannedRun]()
    for run in reversed(runs):  # each before the one that it needs
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
        update={"title": f"{suite.config.title} (smoke run, no measurement)", "seeds": [seed]}
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
    """Return a study with its base and one more point: on the way through a pre-training that which is nearest to the middle."""
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
    """Return at which shares of every pre-training, by its name, an encoder of it is measured, short of the end."""
    found: dict[str, set[float]] = {}
    for run in runs:
        source = run.recipe.source
        if run.needs and source is not None and source.snapshot_share is not None:
            found.setdefault(run.needs, set()).add(source.snapshot_share)
    return {name: sorted(shares) for name, shares in found.items()}


def _smoked_recipe(run: PlannedRun, smoke: Smoke, shares: list[float]) -> RunRecipe:
    """Return the settings of a smoke run, checked as those of a suite file are."""
    recipe = run.recipe
    changes: dict[str, Any] = {"workers": 0 if smoke.toy else min(recipe.workers, 2)}
    changes |= {"threads": 1} if smoke.toy else {}
    changes |= _of_data(recipe, smoke)
    if isinstance(recipe, PretrainRecipe):
        changes |= _of_pretraining(recipe, smoke, shares)
    elif isinstance(recipe, RobustnessRecipe):
        changes |= _of_robustness(recipe, run, smoke)
    elif isinstance(recipe, DownstreamRecipe):
        changes |= {"encoder": _source(recipe.encoder, run, smoke), "log_every": 1}
        changes |= _of_images(recipe, smoke)
        changes |= _of_task(recipe, smoke)
    changed = recipe.model_copy(
        update={name: value for name, value in changes.items() if name in type(recipe).model_fields}
    )
    type(recipe).model_validate(changed.model_dump())  # raises if they do not go together
    return changed


def _of_data(recipe: RunRecipe, smoke: Smoke) -> dict[str, Any]:
    """Return the change of what is read: a few images, and of a robustness dataset a few conditions."""
    dataset = recipe.dataset
    if isinstance(dataset, RobustnessDatasetRecipe):
        return {"set": _few_conditions(dataset, smoke)}
    return {"data": dataset.model_copy(update={"few": FEW})}


def _few_conditions(dataset: RobustnessDatasetRecipe, smoke: Smoke) -> RobustnessDatasetRecipe:
    """Return a robustness dataset with a few images of a few conditions, of which counts are no longer known."""
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
        changes["preprocessing"] = ["bilinear"]  # images that are there are stored at another size
    return dataset.model_copy(update=changes)


def _of_pretraining(recipe: PretrainRecipe, smoke: Smoke, shares: list[float]) -> dict[str, Any]:
    batch = smoke.batch
    micro = batch // 2 if recipe.micro_batch and recipe.micro_batch < recipe.batch else None
    changes: dict[str, Any] = {
        "epochs": _epochs(shares, FEW // batch), "warmup_epochs": 0, "batch": batch, "micro_batch": micro, "snapshots": shares,
        "log_every": 1, "knn_every": 1 if recipe.knn_every else None, "knn_images": FEW, "knn_neighbours": 5,
        "encoder": _architecture(recipe.encoder, smoke),
    }  # fmt: skip
    if smoke.toy:
        changes |= {
            "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "head_width": 32, "mask_unit": PATCH,
            "mask_ratio": min(recipe.mask_ratio, 0.9), "compile": False,
        }  # fmt: skip
    return changes


def _epochs(shares: list[float], steps: int) -> int:
    """Return how many epochs of so many steps it takes until no two of these shares, the beginning and the end come to one step."""
    for epochs in range(1, 10_000):
        places = [round(share * epochs * max(1, steps)) for share in (0.0, *(share for share in shares if share), 1.0)]
        if len(set(places)) == len(places):
            return epochs
    raise UserError(f"snapshots: the shares {shares} are too near to each other for a smoke run.")


def _of_images(recipe: DownstreamRecipe, smoke: Smoke) -> dict[str, Any]:
    """Return the change of how images are seen: as many at once as are read, at toy width smaller by as much as the encoder's input."""
    changes: dict[str, Any] = {"eval_batch": FEW}
    own = recipe.encoder.architecture.image_size
    if isinstance(recipe, ImageTaskRecipe | InstanceRetrievalRecipe) and recipe.image_size and smoke.toy:
        changes["image_size"] = max(1, round(recipe.image_size / own * SIDE / PATCH)) * PATCH
    if isinstance(recipe, WindowsRecipe) and smoke.toy:
        changes |= {"crop": SIDE, "stride": SIDE * 2 // 3, "scale": [4 * SIDE, SIDE]}
    if isinstance(recipe, CropsRecipe):
        batch = max(2 * smoke.processes, 2)
        changes |= {"iterations": 3, "warmup": 0, "batch": batch, "val_every": None}
    return changes


def _of_task(recipe: DownstreamRecipe, smoke: Smoke) -> dict[str, Any]:
    """Return the change of a task's own settings."""
    batch, short = smoke.batch, {"epochs": 1, "warmup_epochs": 0, "batch": smoke.batch}
    if isinstance(recipe, FinetuneRecipe):
        micro = batch // 2 if recipe.micro_batch and recipe.micro_batch < recipe.batch else None
        return {**short, "micro_batch": micro, "mix_group": min(recipe.mix_group, batch), "eval_every": None}
    if isinstance(recipe, LinearRecipe | AttentiveRecipe):
        return short | _blocks(recipe, smoke) | ({"heads": None} if smoke.toy else {})
    if isinstance(recipe, LogisticRecipe):
        return {"C_grid": [1e-2, 1.0], "halvings": 1, "max_iter": 20, **_few_shots(recipe)} | _blocks(recipe, smoke)
    if isinstance(recipe, KnnRecipe):
        return {"neighbours": min(recipe.neighbours, 5), **_few_shots(recipe)} | _blocks(recipe, smoke)
    if isinstance(recipe, RetrievalRecipe):
        return {"recall_at": [k for k in recipe.recall_at if k <= 8] or [1]} | _blocks(recipe, smoke)
    if isinstance(recipe, SegmentationRecipe):
        toy = {"channels": 16, "auxiliary_channels": 8, "blocks": None} if smoke.toy else {}
        return {**toy, "save_every": 2}
    if isinstance(recipe, DenseLinearRecipe | DenseKnnRecipe):
        return {"bank": 512, "neighbours": 5} | _blocks(recipe, smoke)
    if isinstance(recipe, AnalysisRecipe):
        return _of_analysis(recipe, smoke)
    return _blocks(recipe, smoke)


def _few_shots(recipe: Any) -> dict[str, Any]:
    return {"shots": min(recipe.shots, 2)} if recipe.shots else {}


def _blocks(recipe: Any, smoke: Smoke) -> dict[str, Any]:
    """Return the change of the blocks that are read: at toy width those that there are."""
    blocks = getattr(recipe, "blocks", None)
    if not blocks or not smoke.toy:
        return {}
    depth = recipe.encoder.architecture.depth or 12
    return {"blocks": list(dict.fromkeys(_scaled(block, depth) for block in blocks))}


def _scaled(block: int, depth: int) -> int:
    """Return the block of a toy encoder in the place of a block, counted from 1 or back from -1; the last ones stay the last ones."""
    if -DEPTH <= block <= DEPTH:
        return block
    return (1 if block > 0 else -1) * max(1, min(DEPTH, round(abs(block) * DEPTH / depth)))


def _of_analysis(recipe: AnalysisRecipe, smoke: Smoke) -> dict[str, Any]:
    """Return few images, as many as a spectrum needs at toy width; at their own, encoders are wider than that, and it is left out."""
    changes: dict[str, Any] = {"images": FEW, "bank": FEW, "viewed": 4, "neighbours": 5, "alpha_from": 1}
    if smoke.toy:
        return changes | {"blocks": None}
    measures = [measure for measure in recipe.measures if measure != "spectrum"] or ["attention"]
    return changes | {"measures": measures}


def _of_robustness(recipe: RobustnessRecipe, run: PlannedRun, smoke: Smoke) -> dict[str, Any]:
    changes: dict[str, Any] = {"classifier": _source(recipe.classifier, run, smoke), "eval_batch": FEW}
    if smoke.toy:
        own = 224 if recipe.image_size is None else recipe.image_size
        changes["image_size"] = SIDE if run.needs is None or own <= 224 else 2 * SIDE
    return changes


def _source(source: Any, run: PlannedRun, smoke: Smoke) -> Any:
    """Return where the weights come from: those of another run as they are, others drawn where they are not there, and at toy width."""
    changes: dict[str, Any] = {}
    if isinstance(source, EncoderSource):
        changes["architecture"] = _architecture(source.architecture, smoke)
    elif isinstance(source, ClassifierSource) and source.kind != "run" and smoke.toy:
        changes["model"] = TOY_CLASSIFIER
    if source.kind in ("timm", "checkpoint") and (smoke.toy or not _at_hand(source)):
        path = smoke.home / "weights" / f"{run.method}.safetensors"
        changes |= {
            "kind": "checkpoint",
            "path": str(path),
            **({"part": ""} if isinstance(source, EncoderSource) else {}),
        }
    return source.model_copy(update=changes)


def _at_hand(source: WeightsSource) -> bool:
    """Return whether weights are on this machine: a file of the user's, or timm's in the cache of the Hugging Face Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if source.kind == "checkpoint":
        return Path(source.path).expanduser().exists()
    return (Path(HF_HUB_CACHE) / f"models--timm--{source.timm_model}").is_dir()


def _architecture(recipe: EncoderRecipe, smoke: Smoke) -> EncoderRecipe:
    """Return an encoder at the width of the smoke: at toy width a plain ViT becomes a small one, the wider the wider it was."""
    if not smoke.toy:
        return recipe
    from lutbench.models.encoders import geometry_of, is_plain  # here, because timm takes seconds to import

    if not is_plain(recipe):
        return recipe
    width = 20 if (own := geometry_of(recipe).width) >= 1024 else 16 if own >= 768 else 12
    sizes = {"image_size": SIDE, "patch_size": PATCH, "width": width, "depth": DEPTH, "heads": HEADS}
    return recipe.model_copy(update=sizes)


def datasets_of(suite: LoadedSuite) -> list[DatasetRecipe]:
    """Return the datasets that the runs of a suite read, each once, those of robustness last."""
    found = {run.recipe.dataset.model_dump_json(): run.recipe.dataset for run in suite.runs}
    return sorted(found.values(), key=lambda recipe: isinstance(recipe, RobustnessDatasetRecipe))
