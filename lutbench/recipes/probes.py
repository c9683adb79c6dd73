"""Settings of the probes: what is measured on the features of a frozen encoder. Defaults are those of their papers."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Count, CountOrZero, CropScale, Samples
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.recipes.pretrain import check_schedule, kept_checkpoints


class LinearRecipe(ClassificationRecipe):
    """Linear probe (MAE, table 10): LARS on one linear layer behind a BatchNorm without affine parameters."""

    revision: ClassVar[int] = 1
    kind: Literal["linear"] = "linear"
    epochs: Count = 90
    warmup_epochs: CountOrZero = 10
    batch: Batch = 16384
    base_lr: PositiveFloat = 0.1
    """lr = base_lr * batch / 256 (MAE's rule)."""
    weight_decay: NonNegativeFloat = 0.0
    momentum: float = Field(0.9, ge=0, lt=1)
    pool: Literal["class", "mean"] = "class"
    """The class token (MAE), or the mean of the patch tokens."""
    fresh_crops: bool = True
    """A random resized crop and flip of every image in every epoch (MAE). False: the centre crop, so that features
    are encoded once; far cheaper, and a little worse (our choice for small suites)."""
    crop_scale: CropScale = Field([0.08, 1.0])

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images that are encoded, in every epoch anew or once, and the validation images."""
        return Samples((self.epochs if self.fresh_crops else 1) * images["train"], images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of those saved every epoch stay; the last alone where features are encoded once, and training is quick."""
        return kept_checkpoints(images, keep, self.epochs, self.batch) if self.fresh_crops else 1

    @property
    def lr(self) -> float:
        """The highest learning rate of the schedule."""
        return self.base_lr * self.batch / 256

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch)
        if self.batch < 2:
            raise ValueError(
                "batch = 1: the probe's BatchNorm takes mean and deviation of each feature over the batch, and those of one image say "
                "nothing. Take 2 or more, better hundreds"
            )
        return self


class KnnRecipe(ClassificationRecipe):
    """Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, as DINO evaluates)."""

    revision: ClassVar[int] = 1
    kind: Literal["knn"] = "knn"
    neighbours: Count = 20
    temperature: PositiveFloat = 0.07
    pool: Literal["class", "mean"] = "mean"
    """The mean of the patch tokens, or the class token. Our choice: LUT trains the mean."""
