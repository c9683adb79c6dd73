"""Settings of the analysis stage: what is measured inside an encoder, on which images."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Count, Depth, Runtime, Samples
from lutbench.recipes.downstream import ImageTaskRecipe

Measure = Literal["attention", "spectrum", "fourier", "depth", "similarity"]

MEASURES: tuple[Measure, ...] = get_args(Measure)


_ONLY_OF: dict[Measure, tuple[str, ...]] = {
    "depth": ("neighbours", "temperature", "bank"), "spectrum": ("alpha_from", "alpha_to"), "similarity": ("viewed",),
}  # fmt: skip
"""Settings that have no effect without a measure."""


def _in_order(measures: list[Measure]) -> list[Measure]:
    """Return measures in one order, in which they make one identity; raises ValueError if one is named twice."""
    if len(set(measures)) != len(measures):
        raise ValueError("one is named twice")
    return sorted(measures, key=MEASURES.index)


class AnalysisRecipe(ImageTaskRecipe):
    """What is measured of an encoder, block by block, on the same images for every encoder of a table."""

    revision: ClassVar[int] = 1
    kind: Literal["analysis"] = "analysis"
    split: Literal["train", "val"] = "val"
    """The split whose images are analysed."""
    images: Count | None = None
    """How many of them, evenly spaced; all if not given."""
    measures: Annotated[list[Measure], AfterValidator(_in_order)] = Field(
        default_factory=lambda: list(MEASURES), min_length=1
    )
    """``attention``: where it looks. ``spectrum``: singular values of features. ``fourier``: amplitudes of frequencies over
    the grid of patches. ``depth``: nearest neighbours in every block, and how alike blocks are. ``similarity``: of the
    patches of an image, and of two views of it."""
    alpha_from: Count = 10
    alpha_to: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The power law is fitted to the singular values from this rank to this share of the width (our choice: the first are
    few and large, the last are noise)."""
    neighbours: Count = 20
    temperature: PositiveFloat = 0.07
    """As the task ``knn`` has them."""
    bank: Count = 20_000
    """Training images among which neighbours are looked for, evenly spaced (our choice: of every block two features are
    kept of each, 1.6 GB for a ViT-B)."""
    viewed: Annotated[int, Field(ge=2, le=10**9)] = 1000
    """Images of which a second view is compared, evenly spaced among those that are analysed (our choice)."""
    blocks: list[Depth] | None = Field(None, min_length=1, max_length=4)
    """Blocks whose attention is drawn, the first is 1; one in the middle and the last if not given."""
    eval_batch: Annotated[Batch, Runtime] = 64

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without those of measures that are not asked for."""
        fields = super().affecting_results()
        others = {name for measure, names in _ONLY_OF.items() if measure not in self.measures for name in names}
        return {name: value for name, value in fields.items() if name not in others}

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """The splits that it reads: train defines the classes, and has the neighbours."""
        return ("train", self.split) if self._has_bank else (self.split,)

    @property
    def _has_bank(self) -> bool:
        """Whether neighbours are looked for: not among the images that are analysed."""
        return "depth" in self.measures and self.split == "val"

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the bank's images, and those that are analysed with the second views of some."""
        analysed = min(images[self.split], self.images or images[self.split])
        viewed = min(analysed, self.viewed) if "similarity" in self.measures else 0
        bank = min(images["train"], self.bank) if self._has_bank else 0
        return Samples(bank, analysed + viewed)

    @model_validator(mode="after")
    def _blocks_once(self) -> Self:
        if self.blocks is not None and len(set(self.blocks)) != len(self.blocks):
            raise ValueError("blocks: one is named twice")
        return self
