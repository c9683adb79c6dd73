"""Settings of the attentive probe: one learned query attends to the tokens of a frozen encoder. Defaults are V-JEPA's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Betas, Count, CountOrZero, CropScale, Depth, Samples
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.recipes.pretrain import check_schedule, kept_checkpoints


class AttentiveRecipe(ClassificationRecipe):
    """Attentive probe (also CAPI and AIM): AdamW on a cross-attention block and a linear layer.

    One fixed setting of what papers sweep over, such as the learning rate.

    Source of the defaults: V-JEPA (arXiv 2404.08471), its released frozen evaluation.
    """

    revision: ClassVar[int] = 1
    kind: Literal["attentive"] = "attentive"
    """The kind of this task."""
    epochs: Count = 20
    """Number of epochs."""
    batch: Batch = 256
    """Images per optimiser step, summed over processes."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate, not scaled with the batch; then a half cosine to 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay; not applied to one-dimensional parameters."""
    warmup_epochs: CountOrZero = 0
    """Epochs of linear warm-up from 0."""
    betas: Betas = Field([0.9, 0.999])
    """AdamW's beta1 and beta2. Source: default of PyTorch."""
    heads: Depth | None = None
    """Attention heads; by default one per 64 features, as in ViTs: V-JEPA's 16 for ViT-L."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the block's MLP divided by the width of the features."""
    fresh_crops: bool = True
    """True: a new random resized crop and flip of every image in every epoch, each encoded again. False: centre crops, whose
    tokens are encoded once and kept in memory; far cheaper, for small datasets. Source: our choice, as in the linear probe."""
    crop_scale: CropScale = Field([0.08, 1.0])
    """Area of the random resized crop, as shares of the image's area. Source: our choice, as in the linear probe."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results; ``crop_scale`` only with ``fresh_crops``."""
        fields = super().affecting_results()
        return fields if self.fresh_crops else {name: value for name, value in fields.items() if name != "crop_scale"}

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images that are encoded (once, or in every epoch), and the validation images."""
        return Samples((self.epochs if self.fresh_crops else 1) * images["train"], images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of the checkpoints saved every epoch stay on disk."""
        return kept_checkpoints(images, keep, self.epochs, self.batch)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch)
        return self
