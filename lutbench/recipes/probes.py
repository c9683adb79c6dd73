"""Settings of the probes: classifiers on the features of a frozen encoder. Defaults are those of the papers."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Count, CountOrZero, CropScale, Later, Recipe, Samples
from lutbench.recipes.downstream import ClassificationRecipe, Pool
from lutbench.recipes.pretrain import check_schedule, kept_checkpoints


def _named_once(blocks: list[int]) -> list[int]:
    """Return the blocks; raises ValueError for duplicates and for block 0."""
    if 0 in blocks:
        raise ValueError("there is no block 0: expected 1 (the first), 2, ... or -1 (the last), -2, ...")
    if len(set(blocks)) != len(blocks):
        raise ValueError("a block appears twice. List every block once")
    return blocks


Blocks = Annotated[
    list[Annotated[int, Field(ge=-1024, le=1024)]], Field(min_length=1, max_length=64), AfterValidator(_named_once)
]
"""Block numbers of an encoder: 1 is the first, as in an analysis, and -1 the last."""

FeatureTransform = Annotated[Literal["none", "centre", "standardise", "whiten"], Later]
"""Transform of the features with statistics of the training images, see :mod:`lutbench.evaluate.feature_statistics`. ``none``.
``centre``: subtract the mean. ``standardise``: also divide each feature by its standard deviation. ``whiten``: PCA whitening."""


class FeatureSettings(Recipe):
    """Which features of a frozen encoder are used.

    Source of the defaults: our choice.
    """

    pool: Pool = "mean"
    """Features of an image. ``mean``: the mean of the patch tokens, which LUT trains. ``class``: the class token."""
    blocks: Annotated[Blocks | None, Later] = None
    """Blocks after which features are taken, each followed by the encoder's final norm; features of several blocks are concatenated
    (the linear evaluations of DINO and DINOv2 use the class tokens of the last four). By default the encoder's output."""

    @property
    def pooling(self) -> Pool:
        """How tokens are pooled to an image feature."""
        return self.pool

    @property
    def blocks_taken(self) -> tuple[int, ...]:
        """The blocks after which features are taken, as given; empty for the encoder's output."""
        return tuple(self.blocks or ())


class ProbeRecipe(FeatureSettings, ClassificationRecipe):
    """Settings of every classification task on the features of a frozen encoder."""


class LinearRecipe(ProbeRecipe):
    """Linear probe: a BatchNorm without affine parameters and one linear layer on frozen features, trained with LARS.

    Source of the defaults: MAE, table 10.
    """

    revision: ClassVar[int] = 1
    kind: Literal["linear"] = "linear"
    """The kind of this task."""
    epochs: Count = 90
    """Number of epochs."""
    warmup_epochs: CountOrZero = 10
    """Epochs of linear warm-up from 0; then a half cosine to 0, updated every step."""
    batch: Batch = 16384
    """Images per optimiser step, summed over processes."""
    base_lr: PositiveFloat = 0.1
    """Peak learning rate = base_lr * batch / 256 (MAE's rule)."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the linear layer."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of LARS."""
    pool: Pool = "class"
    """Features of an image. ``class``: the class token. ``mean``: the mean of the patch tokens. Source: MAE's released code."""
    fresh_crops: bool = True
    """True: a new random resized crop and flip of every image in every epoch. False: the centre crop, whose features are encoded
    once; far cheaper, and a little worse (our choice for small suites)."""
    crop_scale: CropScale = Field([0.08, 1.0])
    """Area of the random resized crop, as shares of the image's area. Source: default of torchvision's random resized crop."""

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images that are encoded (once, or in every epoch), and the validation images."""
        return Samples((self.epochs if self.fresh_crops else 1) * images["train"], images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of the checkpoints saved every epoch stay; without ``fresh_crops`` training is short and keeps only the last."""
        return kept_checkpoints(images, keep, self.epochs, self.batch) if self.fresh_crops else 1

    @property
    def lr(self) -> float:
        """Peak learning rate of the schedule."""
        return self.base_lr * self.batch / 256

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch)
        if self.batch < 2:
            raise ValueError(
                "batch = 1: the probe's BatchNorm needs at least 2 images per batch, better hundreds, for mean and variance. "
                "Raise batch"
            )
        return self


class KnnRecipe(ProbeRecipe):
    """Weighted k-nearest-neighbour vote on frozen features.

    Source of the defaults: Wu et al. 2018, as in DINO's evaluation.
    """

    revision: ClassVar[int] = 1
    kind: Literal["knn"] = "knn"
    """The kind of this task."""
    neighbours: Count = 20
    """Number of training images that vote for the class of an image."""
    temperature: PositiveFloat = 0.07
    """A neighbour with cosine similarity s votes with weight exp(s / temperature)."""
    pool: Pool = "mean"
    """Features of an image. ``mean``: the mean of the patch tokens. ``class``: the class token (DINO). Source: our choice,
    because LUT trains the mean."""
    feature_transform: FeatureTransform = "none"
    """Transform of the features with statistics of the training images. ``centre``: subtract the mean. ``standardise``: also
    divide each feature by its standard deviation. ``whiten``: PCA whitening. Source: our choice."""


def _ascending(strengths: list[float]) -> list[float]:
    """Return strengths in ascending order; raises ValueError for duplicates."""
    if len(set(strengths)) != len(strengths):
        raise ValueError("a value appears twice. List every value once")
    return sorted(strengths)


class LogisticRecipe(ProbeRecipe):
    """Logistic regression on frozen features with L-BFGS, scikit-learn's.

    The regularisation strength C is chosen on held-out training images; then the classifier is fitted to all training images. As
    in CLIP, the search covers 96 log-spaced values from 1e-6 to 1e6: first the seven of ``C_grid``, then the gaps around the best
    value are halved until there are 8 values per decade.

    Source of the defaults: CLIP (Radford et al. 2021), section A.3.
    """

    revision: ClassVar[int] = 1
    kind: Literal["logistic"] = "logistic"
    """The kind of this task."""
    C: PositiveFloat | None = None
    """Inverse strength of the L2 penalty, as in scikit-learn; by default searched."""
    C_grid: Annotated[list[PositiveFloat], AfterValidator(_ascending)] = Field(
        default_factory=lambda: [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6], min_length=1, max_length=128
    )
    """Values of C to try first."""
    halvings: Annotated[int, Field(ge=0, le=10)] = 4
    """How many times the gaps on both sides of the best value are halved, on a log scale: 4 halvings reduce two decades to an
    eighth of a decade."""
    held_out: float = Field(0.2, gt=0, le=0.5)
    """Share of each class's training images that is held out to choose C. Test images are never used. Source: our choice, a
    fifth; CLIP uses validation splits, which not every dataset has."""
    max_iter: Count = 1000
    """Maximum number of L-BFGS iterations."""
    tol: PositiveFloat = 1e-4
    """Stop when the largest entry of the gradient is below this value. Source: default of scikit-learn."""
    pool: Pool = "class"
    """Features of an image. ``class``: the class token, as CLIP. ``mean``: the mean of the patch tokens."""
    feature_transform: FeatureTransform = "none"
    """Transform of the features with statistics of the training images. ``centre``: subtract the mean. ``standardise``: also
    divide each feature by its standard deviation. ``whiten``: PCA whitening. Source: our choice."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without those of the search if C is given."""
        without = set() if self.C is None else {"C_grid", "halvings", "held_out"}
        return {name: value for name, value in super().affecting_results().items() if name not in without}
