"""Settings of the analysis stage: measurements on an encoder's attention and features."""

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
"""Settings that have an effect only with this measure."""


def _in_order(measures: list[Measure]) -> list[Measure]:
    """Return measures in a fixed order, so that the identity does not depend on it; raises ValueError for duplicates."""
    if len(set(measures)) != len(measures):
        raise ValueError("a measure appears twice. List every measure once")
    return sorted(measures, key=MEASURES.index)


class AnalysisRecipe(ImageTaskRecipe):
    """Measurements on an encoder, block by block, on the same images for every encoder of a table.

    Source of the defaults: our choice. The source of each measure is in docs/protocols.md.
    """

    revision: ClassVar[int] = 1
    kind: Literal["analysis"] = "analysis"
    """The kind of this run."""
    split: Literal["train", "val"] = "val"
    """The split whose images are analysed."""
    images: Count | None = None
    """Number of images to analyse, evenly spaced in the split; by default all."""
    measures: Annotated[list[Measure], AfterValidator(_in_order)] = Field(
        default_factory=lambda: list(MEASURES), min_length=1
    )
    """``attention``: attention distance, entropy and NMI. ``spectrum``: singular values of the features. ``fourier``: frequency
    amplitudes over the patch grid. ``depth``: k-NN accuracy after every block, and CKA between blocks. ``similarity``: between
    the patches of an image, and between two views of it."""
    alpha_from: Count = 10
    """First rank of the power-law fit to the singular values. Source: our choice, as the first few singular values are large."""
    alpha_to: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Last rank of the power-law fit to the singular values, as a share of the width. Source: our choice, as the last ones are
    noise."""
    neighbours: Count = 20
    """Number of neighbours of the k-NN vote after every block. Source: Wu et al. 2018, as in the task ``knn``."""
    temperature: PositiveFloat = 0.07
    """Temperature of the k-NN vote after every block. Source: Wu et al. 2018, as in the task ``knn``."""
    bank: Count = 20_000
    """Number of training images among which neighbours are searched, evenly spaced. Two features per image and block are kept,
    1.6 GB for a ViT-B."""
    viewed: Annotated[int, Field(ge=2, le=10**9)] = 1000
    """Number of images that are compared with a second view, evenly spaced among the analysed ones."""
    blocks: list[Depth] | None = Field(None, min_length=1, max_length=4)
    """Blocks whose attention maps are drawn, counted from 1; by default the middle and the last block."""
    eval_batch: Annotated[Batch, Runtime] = 64
    """Images per batch and process."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without those of measures that are not selected."""
        fields = super().affecting_results()
        others = {name for measure, names in _ONLY_OF.items() if measure not in self.measures for name in names}
        return {name: value for name, value in fields.items() if name not in others}

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """The splits that the run reads; train defines the classes and provides the neighbours."""
        return ("train", self.split) if self._has_bank else (self.split,)

    @property
    def _has_bank(self) -> bool:
        """Whether neighbours are searched in the training split, not among the analysed images."""
        return "depth" in self.measures and self.split == "val"

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the images of the bank, and the analysed images plus their second views."""
        analysed = min(images[self.split], self.images or images[self.split])
        viewed = min(analysed, self.viewed) if "similarity" in self.measures else 0
        bank = min(images["train"], self.bank) if self._has_bank else 0
        return Samples(bank, analysed + viewed)

    @model_validator(mode="after")
    def _blocks_once(self) -> Self:
        if self.blocks is not None and len(set(self.blocks)) != len(self.blocks):
            raise ValueError("blocks: a block appears twice. List every block once")
        return self
