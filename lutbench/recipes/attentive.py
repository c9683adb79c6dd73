"""Settings of the attentive probe: one query that attends to the tokens of a frozen encoder. Defaults are V-JEPA's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Batch, Betas, Count, CountOrZero, CropScale, Depth, Samples
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.recipes.pretrain import check_schedule, kept_checkpoints


class AttentiveRecipe(ClassificationRecipe):
    """Attentive probe (V-JEPA, arXiv 2404.08471; so too CAPI and AIM): AdamW on a cross-attention block and a linear layer.

    Of what papers sweep over, the learning rate among it, this is one setting.
    """

    revision: ClassVar[int] = 1
    kind: Literal["attentive"] = "attentive"
    epochs: Count = 20
    """V-JEPA's release, which gives the next three too, for its frozen evaluation."""
    batch: Batch = 256
    lr: PositiveFloat = 1e-3
    """The highest learning rate, whatever the batch; from it a half cosine to 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Decay of parameters with more than one dimension."""
    warmup_epochs: CountOrZero = 0
    """None (V-JEPA's release)."""
    betas: Betas = Field([0.9, 0.999])
    """Decay rates of AdamW's averages (torch's)."""
    heads: Depth | None = None
    """Heads of the attention; one for every 64 features if not given, as ViTs have and V-JEPA's 16 are for ViT-L."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Width of the block's MLP over that of its features (V-JEPA, as ViTs)."""
    fresh_crops: bool = True
    """A random resized crop and flip of every image in every epoch, encoded as it comes. False: the centre crops, whose tokens are
    encoded once and held in memory; far cheaper, for small sets (our choice)."""
    crop_scale: CropScale = Field([0.08, 1.0])
    """Area of the random resized crop (as the linear probe's)."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results: without fresh crops no scale of them."""
        fields = super().affecting_results()
        return fields if self.fresh_crops else {name: value for name, value in fields.items() if name != "crop_scale"}

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images that are encoded, in every epoch anew or once, and the validation images."""
        return Samples((self.epochs if self.fresh_crops else 1) * images["train"], images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of those saved every epoch stay."""
        return kept_checkpoints(images, keep, self.epochs, self.batch)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch)
        return self
