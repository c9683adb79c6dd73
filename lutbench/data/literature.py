"""The literature's image sets, from ``sets.toml``: what each holds, how a suite file opens it, and how to get it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutbench.recipes import DataRecipe, SegmentationDataRecipe, read_recipe


@dataclass(frozen=True)
class KnownSet:
    """A set as its authors describe it."""

    name: str
    title: str
    recipe: DataRecipe | SegmentationDataRecipe
    """How a suite file opens it, with the metric that the literature prints."""
    classes: int
    images: dict[str, int]
    """Of each split; under ``all`` the sum, for a set that has no fixed split."""
    get: str
    """What to do to have it, step by step; ``DIR`` stands for the set's folder."""
    terms: str
    layout: str
    """What lies where on disk."""
    split: str
    """Which splits the literature trains and tests on."""
    paper: str
    gigabytes: float
    """On disk, unpacked, approximately."""
    torchvision: str = ""
    """The class of torchvision that can download it; empty if there is none."""


def _read(name: str, values: dict[str, Any]) -> KnownSet:
    given = {"label": name, **values.pop("recipe")}
    model: type[DataRecipe | SegmentationDataRecipe] = (
        SegmentationDataRecipe if given.get("source") in ("scenes", "ade20k") else DataRecipe
    )
    recipe = read_recipe(model, given, f"sets.toml: {name}.recipe")
    return KnownSet(name=name, recipe=recipe, **{**values, "get": values["get"].strip()})


LITERATURE = {
    name: _read(name, values)
    for name, values in tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8")).items()
}
"""By name."""
