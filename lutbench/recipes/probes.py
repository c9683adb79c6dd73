"""Settings of the probes: what is measured on the features of a frozen encoder. Defaults are those of their papers."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Count, CountOrZero, CropScale, Later, Recipe, Samples
from lutbench.recipes.downstream import ClassificationRecipe, Pool
from lutbench.recipes.pretrain import check_schedule, kept_checkpoints


def _named_once(blocks: list[int]) -> list[int]:
    """Return the blocks; raises ValueError if one is named twice, or is number 0."""
    if 0 in blocks:
        raise ValueError("expected blocks from 1, the first, or back from -1, the last: there is no block 0")
    if len(set(blocks)) != len(blocks):
        raise ValueError("one is named twice")
    return blocks


Blocks = Annotated[
    list[Annotated[int, Field(ge=-1024, le=1024)]], Field(min_length=1, max_length=64), AfterValidator(_named_once)
]
"""Blocks of an encoder: 1 is the first, as in an analysis, and -1 the last."""

FeatureTransform = Annotated[Literal["none", "centre", "standardise", "whiten"], Later]
"""What is done to features by the statistics of the training images, see :mod:`lutbench.evaluate.feature_statistics`: nothing;
the mean is taken off; every feature is divided by its deviation too; or the directions of the features are, so that all vary alike."""


class FeatureSettings(Recipe):
    """Which features of a frozen encoder are taken."""

    pool: Pool = "mean"
    """The mean of the patch tokens, or the class token."""
    blocks: Annotated[Blocks | None, Later] = None
    """The blocks after which the features are taken, with the encoder's last norm, those of several one behind the other (DINO's and
    DINOv2's linear evaluations take the class tokens of the last four). The encoder's output if not given."""

    @property
    def pooling(self) -> Pool:
        """What it takes of an encoder's tokens."""
        return self.pool

    @property
    def blocks_taken(self) -> tuple[int, ...]:
        """The blocks after which it takes features, as they are given; none of the encoder's output."""
        return tuple(self.blocks or ())


class ProbeRecipe(FeatureSettings, ClassificationRecipe):
    """What every classification on the features of a frozen encoder has."""


class LinearRecipe(ProbeRecipe):
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
    pool: Pool = "class"
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


class KnnRecipe(ProbeRecipe):
    """Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, as DINO evaluates)."""

    revision: ClassVar[int] = 1
    kind: Literal["knn"] = "knn"
    neighbours: Count = 20
    temperature: PositiveFloat = 0.07
    pool: Pool = "mean"
    """The mean of the patch tokens, or the class token. Our choice: LUT trains the mean."""
    feature_transform: FeatureTransform = "none"


def _ascending(strengths: list[float]) -> list[float]:
    """Return strengths in ascending order; raises ValueError if one is named twice."""
    if len(set(strengths)) != len(strengths):
        raise ValueError("one is named twice")
    return sorted(strengths)


class LogisticRecipe(ProbeRecipe):
    """Logistic regression on frozen features, by L-BFGS (CLIP, Radford et al. 2021, section A.3: scikit-learn's, at most 1000 iterations).

    Its strength of regularisation is chosen on a part of the training images that is held out; then it is fitted to all of them. CLIP
    searches among 96 strengths from 1e-6 to 1e6, in equal steps of the logarithm: the seven of ``C_grid`` first, then halving the
    gaps beside the best until there are 8 to a decade.
    """

    revision: ClassVar[int] = 1
    kind: Literal["logistic"] = "logistic"
    C: PositiveFloat | None = None
    """scikit-learn's inverse strength of the L2 penalty; searched for if not given."""
    C_grid: Annotated[list[PositiveFloat], AfterValidator(_ascending)] = Field(
        default_factory=lambda: [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6], min_length=1, max_length=128
    )
    """What is tried first (CLIP)."""
    halvings: Annotated[int, Field(ge=0, le=10)] = 4
    """How often the gaps on both sides of the best are halved, on the logarithm: 4 make two decades an eighth of one (CLIP)."""
    held_out: float = Field(0.2, gt=0, le=0.5)
    """Share of each class's training images that C is chosen on (CLIP takes validation splits, which not every set has; a fifth is our
    choice). The test images of the set have no part in it."""
    max_iter: Count = 1000
    """Iterations of L-BFGS at most (CLIP)."""
    tol: PositiveFloat = 1e-4
    """The largest part of the gradient at which it ends (scikit-learn's)."""
    pool: Pool = "class"
    """The class token (CLIP), or the mean of the patch tokens."""
    feature_transform: FeatureTransform = "none"

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without those of the search where C is given."""
        without = set() if self.C is None else {"C_grid", "halvings", "held_out"}
        return {name: value for name, value in super().affecting_results().items() if name not in without}
