"""The image sets that the suite knows: those of the literature and those that it builds itself."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from lutbench.data.literature import LITERATURE, KnownSet
from lutbench.data.toy.mosaics import MOSAICS, build_mosaics
from lutbench.data.toy.photographs import BUILT, build
from lutbench.recipes import DataRecipe, SegmentationDataRecipe

BUILT_FROM = "Built in seconds when it is first used, from photographs that ship in scikit-image and scikit-learn."

PHOTOGRAPHS_TERMS = "the photographs' own; see skimage/data and sklearn/datasets/images in the installed packages"


def _built(name: str, title: str) -> KnownSet:
    cut = BUILT[name]
    return KnownSet(
        name=name,
        title=title,
        recipe=DataRecipe.model_validate({"label": name, "source": name}),
        classes=len(cut.classes),
        images={split: len(cut.classes) * count for split, count in cut.counts.items()},
        get=BUILT_FROM,
        terms=PHOTOGRAPHS_TERMS,
        layout="DIR/train/CLASS/0000.png and DIR/val/CLASS/0000.png",
        split="bands of the photographs by turns; top-1",
        paper="this suite",
        gigabytes=0.12,
    )


CATALOGUE = {
    known.name: known
    for known in (
        _built("photographs", "Crops of 19 photographs"),
        _built("photograph-tiles", "Crops of the quarters of six photographs"),
        KnownSet(
            name="mosaics",
            title="Mosaics of crops of photographs, with masks",
            recipe=SegmentationDataRecipe(label="mosaics", source="mosaics"),
            classes=len(MOSAICS.classes),
            images=MOSAICS.counts,
            get=BUILT_FROM,
            terms=PHOTOGRAPHS_TERMS,
            layout="DIR/images/{training,validation}/*.jpg and DIR/annotations/{training,validation}/*.png",
            split="crops of photographs by bands, as theirs; mIoU",
            paper="this suite",
            gigabytes=0.01,
        ),
        *LITERATURE.values(),
    )
}
"""The known sets, by name."""

BUILDERS: dict[str, Callable[[Path], bool]] = {name: partial(build, name) for name in BUILT} | {
    "mosaics": build_mosaics
}
"""Of the sets that the suite builds itself: writes one below the data root, and says whether it was written now."""


def in_hub_cache(name: str) -> bool:
    """Whether a set of the Hugging Face Hub was downloaded to this machine."""
    cache = Path(os.environ.get("HF_DATASETS_CACHE", f"{HF_HOME}/datasets"))
    return (cache / name.replace("/", "___")).exists()


def place(known: KnownSet, root: Path) -> Path:
    """Where the set lies, or would lie."""
    return (root / (known.name if known.name in BUILDERS else known.recipe.path)).absolute()
