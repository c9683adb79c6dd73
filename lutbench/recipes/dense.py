"""Settings of the dense probes: what the patch tokens of a frozen encoder tell of every pixel. Images are seen as UPerNet sees them."""

from collections.abc import Mapping
from math import ceil
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Betas, Count, Samples
from lutbench.recipes.probes import Blocks
from lutbench.recipes.segmentation import CropsRecipe, WindowsRecipe


class DenseRecipe(WindowsRecipe):
    """What both dense probes have: which tokens they take."""

    blocks: Blocks | None = None
    """The blocks whose patch tokens are concatenated, each behind the encoder's last norm; the last if not given (DINOv2's
    linear setting, arXiv 2304.07193, section 7.4; its "+ms" has the last four)."""

    @property
    def eval_batch(self) -> int:
        """Images that are encoded at once: the windows of one, so that their bits depend on no other image."""
        return 1


class DenseLinearRecipe(DenseRecipe, CropsRecipe):
    """One linear layer on patch tokens, behind a BatchNorm, trained by AdamW on crops.

    Defaults are those of DINOv2's published linear heads on ADE20K and VOC2012 (their configs for MMSegmentation: BNHead, 40,000
    iterations of 16 crops, AdamW of 1e-3, sliding windows of 512 at 341).
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation-linear"] = "segmentation-linear"
    iterations: Count = 40_000
    batch: Count = 16
    """Crops per iteration over all processes."""
    lr: PositiveFloat = 1e-3
    power: PositiveFloat = 1.0
    """Exponent of the polynomial decay of the learning rate to 0."""
    betas: Betas = Field([0.9, 0.999])
    weight_decay: NonNegativeFloat = 1e-4

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the crops of all batches, and the validation images once."""
        return Samples(self.iterations * self.batch, images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many stay of those saved every ``save_every`` iterations and at the end."""
        return min(keep, ceil(self.iterations / self.save_every))


class DenseKnnRecipe(DenseRecipe):
    """Weighted vote of the nearest patches of the training set (Balazevic et al. 2023, arXiv 2306.01667, section 3.1).

    A patch votes with the shares of its pixels' classes, as the paper's label of a patch is the mean over its pixels.
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation-knn"] = "segmentation-knn"
    neighbours: Count = 30
    """As its public reproduction, open-hummingbird-eval, evaluates."""
    temperature: PositiveFloat = 0.02
    """A neighbour at cosine s votes with exp(s / temperature); the same source."""
    bank: Count = 1_024_000
    """At most so many patches of the training set vote, as many of each image, drawn by the seed. One of the sizes of the same source;
    the paper has up to ten times as many. 3 GB of a ViT-B's tokens."""

    @model_validator(mode="after")
    def _enough_to_vote(self) -> Self:
        if self.neighbours > self.bank:
            raise ValueError(
                f"neighbours = {self.neighbours} are looked for among bank = {self.bank} patches: lower neighbours, or raise bank"
            )
        return self
