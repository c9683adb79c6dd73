"""The known datasets: their content, recipe, folder, and how to get them.

All information is in ``sets.toml``. No image is read here: :mod:`lutbench.data.verify` checks datasets.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub.constants import HF_HOME

from lutbench.errors import UserError, listed, nearest
from lutbench.kinds import dataset_module
from lutbench.recipes.base import DataRecipe, DatasetRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe

PRESENT, MISSING, TO_BUILD = "here", "missing", "built on first use"

_ROBUSTNESS = {"labels": "imagenet-1k", "classes": 1000, "eval_crop": 224 / 256}
"""Default settings of the robustness datasets in sets.toml: preprocessing as for ImageNet."""


@dataclass(frozen=True)
class KnownDataset:
    """A known dataset, as described by its authors."""

    name: str
    title: str
    recipe: DatasetRecipe
    """The recipe that opens it in a suite file, with the metric that is usually reported."""
    paper: str
    terms: str
    get: str
    """The steps to get it; ``DIR`` stands for its folder."""
    layout: str
    """Folder layout on disk."""
    classes: int = 0
    """0 if no number is published."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images per split; ``all`` is the sum, for datasets without a fixed split. For robustness datasets it is in the
    recipe."""
    split: str = ""
    """The usual training and test splits."""
    protocol: str = ""
    """Source of the protocol of a robustness dataset."""
    gigabytes: float | None = None
    """Approximate unpacked size on disk in GB; None if unknown, 0 for images of another known dataset."""
    torchvision: str = ""
    """The torchvision class that can download it; empty if there is none."""
    built: bool = False
    """Whether the suite builds it itself."""


@dataclass(frozen=True)
class DatasetStatus:
    """Whether a known dataset is present, judged by its folders alone."""

    known: KnownDataset
    state: str
    """``here``, ``built on first use``, ``on the Hub``, ``missing``, or which part is missing."""
    path: Path

    @property
    def steps(self) -> str:
        """The steps to get it, with the folder filled in."""
        return self.known.get.replace("DIR", str(self.path))


def _read() -> Iterator[KnownDataset]:
    tables = tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8"))
    robustness = tables.pop("robustness")
    for name, values in tables.items():
        source = values["recipe"].get("source")
        others = (SegmentationDataRecipe, RevisitedDataRecipe)
        model = next((one for one in others if source in get_args(one.model_fields["source"].annotation)), DataRecipe)
        yield _known(name, values, model, {"label": name})
    for name, values in robustness.items():
        defaults = {**_ROBUSTNESS, "label": values["title"], "path": name}
        values["classes"] = {**defaults, **values["recipe"]}["classes"]
        yield _known(name, values, RobustnessDatasetRecipe, defaults)


def _known(name: str, values: dict[str, Any], model: type[DatasetRecipe], defaults: dict[str, Any]) -> KnownDataset:
    recipe = read_recipe(model, {**defaults, **values.pop("recipe")}, f"sets.toml: {name}.recipe")
    return KnownDataset(name=name, recipe=recipe, **{**values, "get": values["get"].strip()})


CATALOGUE = {known.name: known for known in _read()}
"""The known datasets by name: those to train on, then those for retrieval, then those for robustness."""

TRAINED_ON = {name: known for name, known in CATALOGUE.items() if "train" in known.recipe.splits}
"""The known datasets to train on."""

SEARCHED = {name: known for name, known in CATALOGUE.items() if "queries" in known.recipe.splits}
"""The known retrieval datasets."""

MEASURED_ON = {name: known for name, known in CATALOGUE.items() if name not in (*TRAINED_ON, *SEARCHED)}
"""The known robustness datasets."""


def find(name: str) -> KnownDataset:
    """Return the known dataset of this name.

    Raises:
        UserError: if there is none; the message suggests the nearest name.
    """
    if name not in CATALOGUE:
        raise UserError(
            f"There is no known dataset {name!r}.{nearest(name, CATALOGUE)} `lutbench data list` lists all of them."
        )
    return CATALOGUE[name]


def known_by(recipe: DatasetRecipe) -> KnownDataset | None:
    """Return the known dataset that a suite file's recipe describes; None if it is not a known one."""
    return next((known for known in CATALOGUE.values() if known.recipe.same_as(recipe)), None)


def location(known: KnownDataset, root: Path) -> Path:
    """Return the folder of a dataset below the data root, present or not."""
    return (root / known.recipe.folder).absolute()


def made_by_suite(recipe: DatasetRecipe, root: Path) -> bool:
    """Return whether the suite made the images: a built dataset, a folder inside one, or a corrupted copy."""
    every = (location(known, root) for known in CATALOGUE.values() if known.built)
    built = [path for path in every if (path / "manifest.json").is_file()]
    return recipe.source == "corrupted" or any(map((root / recipe.folder).absolute().is_relative_to, built))


def status_of(known: KnownDataset, root: Path) -> DatasetStatus:
    """Return whether a dataset is below ``root``. Only checks that folders exist, without listing them, so it is instant."""
    path = location(known, root)
    try:
        state = _state(known, path, root)
    except PermissionError as error:
        state = f"cannot be read: {error.strerror}"
    return DatasetStatus(known, state, path)


def _state(known: KnownDataset, path: Path, root: Path) -> str:
    recipe = known.recipe
    if recipe.source == "huggingface":
        return PRESENT if _exists(path) or in_hub_cache(recipe.path) else "on the Hub"
    if not _exists(path):
        return TO_BUILD if known.built else MISSING
    if known.built:
        return PRESENT
    needs = dataset_module(recipe).needs(recipe, root)
    missing = [label for label, needed in needs.items() if not _exists(needed)]
    if not missing:
        return PRESENT
    if len(missing) == len(needs):
        return MISSING
    return f"{listed(missing, 1)} {'is' if len(missing) == 1 else 'are'} missing"


def _exists(path: Path) -> bool:
    """Return whether a path exists. Raises PermissionError if that may not be known, where Python 3.14's ``Path.exists`` says no."""
    try:
        path.stat()
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def present(root: Path) -> list[str]:
    """Return the names of the known datasets that are completely or partly below ``root``.

    Robustness datasets made of another dataset's images, such as ImageNet with dropped patches, are left out.

    Raises:
        UserError: if there are none.
    """
    names = [name for name, known in (TRAINED_ON | SEARCHED).items() if location(known, root).exists()]
    others = {location(known, root) for known in TRAINED_ON.values()}
    for name, known in MEASURED_ON.items():
        status = status_of(known, root)
        if status.state not in (MISSING, TO_BUILD) and not others & {status.path, *status.path.parents}:
            names.append(name)
    if not names:
        raise UserError(
            f"There is no known dataset below {root.absolute()}. Set --data-root to the folder that holds your datasets; "
            "`lutbench data list` shows the known datasets and how to get them."
        )
    return names


def in_hub_cache(name: str) -> bool:
    """Return whether a dataset of the Hugging Face Hub was downloaded to this machine."""
    cache = Path(os.environ.get("HF_DATASETS_CACHE", f"{HF_HOME}/datasets"))
    return (cache / name.replace("/", "___")).exists()
