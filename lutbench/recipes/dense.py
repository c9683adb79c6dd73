"""Settings of the dense probes: semantic segmentation from the patch tokens of a frozen encoder. Preprocessing is UPerNet's."""

from collections.abc import Mapping
from math import ceil
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Betas, Count, Samples
from lutbench.recipes.probes import Blocks
from lutbench.recipes.segmentation import CropsRecipe, WindowsRecipe


class DenseRecipe(WindowsRecipe):
    """Settings of both dense probes: which tokens they use.

    Source of the defaults: DINOv2 (arXiv 2304.07193), section 7.4, its linear setting.
    """

    blocks: Blocks | None = None
    """Blocks whose patch tokens are concatenated, each after the encoder's final norm. By default the last block; DINOv2's "+ms"
    uses the last four."""

    @property
    def eval_batch(self) -> int:
        """Images per forward pass: the windows of one image, so that its features do not depend on other images."""
        return 1


class DenseLinearRecipe(DenseRecipe, CropsRecipe):
    """A BatchNorm and one linear layer on patch tokens, trained with AdamW on crops.

    Source of the defaults: DINOv2's published linear heads on ADE20K and VOC2012 (their configs for MMSegmentation: BNHead,
    40,000 iterations of 16 crops, AdamW with learning rate 1e-3, sliding window of 512 pixels with stride 341).
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation-linear"] = "segmentation-linear"
    """The kind of this task."""
    iterations: Count = 40_000
    batch: Count = 16
    """Crops per iteration, summed over processes."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    power: PositiveFloat = 1.0
    """Exponent of the polynomial decay of the learning rate to 0."""
    betas: Betas = Field([0.9, 0.999])
    """AdamW's beta1 and beta2."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of the linear layer."""

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the crops of all batches, and the validation images once."""
        return Samples(self.iterations * self.batch, images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay; they are saved every ``save_every`` iterations and at the end."""
        return min(keep, ceil(self.iterations / self.save_every))


class DenseKnnRecipe(DenseRecipe):
    """Weighted vote of the nearest training patches (Balazevic et al. 2023, arXiv 2306.01667, section 3.1).

    The label of a patch is the class distribution of its pixels, as in the paper.

    Source of the defaults: open-hummingbird-eval, the public reproduction.
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation-knn"] = "segmentation-knn"
    """The kind of this task."""
    neighbours: Count = 30
    """Number of training patches that vote for the classes of a patch."""
    temperature: PositiveFloat = 0.02
    """A neighbour with cosine similarity s votes with weight exp(s / temperature)."""
    bank: Count = 1_024_000
    """Maximum number of training patches among which neighbours are searched: equally many per image, drawn with the run's seed.
    3 GB for the tokens of a ViT-B. Source: one of the sizes in open-hummingbird-eval; the paper uses up to ten times as many."""

    @model_validator(mode="after")
    def _enough_to_vote(self) -> Self:
        if self.neighbours > self.bank:
            raise ValueError(
                f"neighbours = {self.neighbours} must not be more than bank = {self.bank}: lower neighbours or raise bank"
            )
        return self
