"""Settings of semantic segmentation: datasets in ADE20K's layout, and the recipe of UPerNet in MMSegmentation."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Betas, Count, CountOrZero, DatasetRecipe, Few, Pixels, Runtime, Samples, Width
from lutbench.recipes.downstream import DownstreamRecipe, exact_drop_path

MULTI_SCALE = 12
"""Forward passes per image in an evaluation with ``tta``: six scales, each with and without flip."""

Grey = Annotated[int, Field(ge=0, le=255)]
Suffix = Annotated[str, Field(min_length=1)]


class SegmentationDataRecipe(DatasetRecipe):
    """Images and masks in ADE20K's layout: ``PATH/images/SPLIT/NAME.jpg`` and ``PATH/annotations/SPLIT/NAME.png``.

    Source of the defaults: our choice, as ADE20K's archive names its files.
    """

    source: Literal["scenes", "ade20k", "mosaics"]
    """``scenes``: any dataset in this layout. ``ade20k``: ADE20K, with its 150 classes, colours and image counts.
    ``mosaics``: built from photographs that ship in Python packages."""
    train: str = Field(default="training", min_length=1)
    """Folder name of the training split."""
    val: str = Field(default="validation", min_length=1)
    """Folder name of the validation split."""
    image_suffix: Suffix | Annotated[list[Suffix], Field(min_length=1)] = ".jpg"
    """File name suffix of the images, or a list of possible suffixes: ``[".jpg", ".jpeg"]``. Predefined for ``mosaics``."""
    mask_suffix: Suffix = ".png"
    """File name suffix of the masks: the mask of ``NAME.jpg`` is ``NAME.png``."""
    classes: list[str] = Field(default_factory=list)
    """Class names in the order of the mask values. Predefined for ``ade20k`` and ``mosaics``."""
    palette: Annotated[list[Annotated[list[Grey], Field(min_length=3, max_length=3)]], Runtime] = Field(
        default_factory=list
    )
    """A colour (red, green, blue) per class, for figures. By default chosen automatically."""
    reduce_zero_label: bool = False
    """True: mask value 0 means no class and 1 is the first class (ADE20K). False: 0 is the first class."""
    ignore: Grey = 255
    """Mask value that is ignored in training and evaluation (besides 0, if ``reduce_zero_label``)."""
    few: Few = None
    """Read at most this many images of each split; by default all. For smoke runs, see :mod:`lutbench.smoke`."""

    @property
    def folder(self) -> str:
        """Folder of the dataset, relative to the data root."""
        own = {"ade20k": "ADEChallengeData2016", "mosaics": "mosaics"}  # the folder in ADE20K's archive
        return self.path or own.get(self.source, "")

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """The possible file name suffixes of images."""
        return (self.image_suffix,) if isinstance(self.image_suffix, str) else tuple(self.image_suffix)

    @property
    def printed_metric(self) -> str:
        """The main metric, which tables print first."""
        return "mIoU"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "scenes" and not self.classes:
            raise ValueError(
                'classes: required for source = "scenes". List the class names in the order of the mask values'
            )
        if self.source != "scenes" and (self.classes or self.palette or self.reduce_zero_label or self.ignore != 255):
            raise ValueError(
                f"classes, palette, reduce_zero_label and ignore are predefined for {self.source}: remove them"
            )
        if self.palette and len(self.palette) != len(self.classes):
            raise ValueError(f"palette: expected {len(self.classes)} colours, one per class, found {len(self.palette)}")
        if any(one != other and one.endswith(other) for one in self.image_suffixes for other in self.image_suffixes):
            raise ValueError(
                "image_suffix: one suffix ends with another one, so file names are ambiguous. Remove one of them"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name appears twice. List every class once")
        if self.reduce_zero_label and self.ignore != 255:
            raise ValueError(
                "ignore: with reduce_zero_label = true, the values 0 and 255 are ignored. Leave ignore at 255"
            )
        if len(self.classes) > 255 - self.reduce_zero_label:
            raise ValueError(
                f"classes: 8-bit masks hold at most {255 - self.reduce_zero_label} classes besides the ignored value {self.ignore}"
            )
        if not self.reduce_zero_label and self.ignore < len(self.classes):
            raise ValueError(f"ignore = {self.ignore} is also the mask value of class {self.classes[self.ignore]!r}")
        return self


class WindowsRecipe(DownstreamRecipe):
    """Evaluation of images with masks: the whole image is resized, then a sliding window moves over it.

    Source of the defaults: MMSegmentation's config mae-base_upernet_8xb2-amp-160k_ade20k-512x512.
    """

    data: SegmentationDataRecipe
    """The images and masks of the task."""
    crop: Pixels = 512
    """Side length of the training crops and of the sliding window at test time, in pixels."""
    stride: Pixels = 341
    """Stride of the sliding window in pixels. Source: MMSegmentation's released configs, and implus/mae_segmentation."""
    scale: list[Pixels] = Field([2048, 512], min_length=2, max_length=2)
    """Images are resized with their aspect ratio kept: long side at most the first number, short side at most the second."""

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """The fields of the weights' preprocessing that the run applies; the interpolation is that of MMSegmentation's pipelines."""
        return ("mean", "std")

    def _default(self, name: str) -> str:
        """Return the note for messages that a setting has its default value; empty if it does not."""
        return " (the default)" if getattr(self, name) == type(self).model_fields[name].default else ""

    @model_validator(mode="after")
    def _windows_that_cover(self) -> Self:
        if self.stride > self.crop:
            raise ValueError(
                f"stride = {self.stride}{self._default('stride')} leaves gaps between windows of crop = {self.crop} pixels: lower stride "
                f"to {self.crop} or less"
            )
        if self.scale[0] < self.scale[1]:
            raise ValueError("scale: expected the long side first, then the short side")
        return self


class CropsRecipe(WindowsRecipe):
    """Training on random crops of randomly resized images; the length of the training is given in iterations.

    Source of the defaults: MMSegmentation's config mae-base_upernet_8xb2-amp-160k_ade20k-512x512.
    """

    ratio: list[PositiveFloat] = Field([0.5, 2.0], min_length=2, max_length=2)
    """Range of the random resize in training, in multiples of ``scale``."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """If one class covers more than this share of a crop, the crop is drawn again, up to ten times."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Use colour augmentation in training (MMSegmentation's PhotoMetricDistortion)."""
    iterations: Count
    """Number of optimiser steps."""
    warmup: CountOrZero = 1500
    """Iterations of linear warm-up, from 1e-6 times the learning rate."""
    save_every: Annotated[Count, Runtime] = 2000
    """Iterations between checkpoints."""

    @model_validator(mode="after")
    def _crops_that_can_be(self) -> Self:
        if self.warmup >= self.iterations:
            raise ValueError(
                f"warmup = {self.warmup}{self._default('warmup')} must be less than iterations = {self.iterations}: lower warmup or raise "
                "iterations"
            )
        if self.ratio[0] > self.ratio[1]:
            raise ValueError("ratio: expected the smaller number first, then the larger")
        if (least := self.scale[1] * self.ratio[0]) < 4 or self.ratio[1] > 16:
            raise ValueError(
                f"scale and ratio: expected a short side of at least 4 pixels and at most 16 times the scale after resizing, found {least:g} "
                f"pixels and {self.ratio[1]:g} times"
            )
        return self


class SegmentationRecipe(CropsRecipe):
    """UPerNet on top of the encoder, trained with MMSegmentation.

    Defaults are the recipe that reproduced MAE's ViT-B with 48.1 mIoU on ADE20K.

    Source of the defaults: MMSegmentation's config mae-base_upernet_8xb2-amp-160k_ade20k-512x512, and implus/mae_segmentation.
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation"] = "segmentation"
    """The kind of this task."""
    iterations: Count = 160_000
    batch: int = Field(16, ge=2, le=2**17)
    """Images per iteration, summed over processes; at least 2, for the BatchNorm in the head."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    power: PositiveFloat = 1.0
    """Exponent of the polynomial decay of the learning rate to 0."""
    betas: Betas = Field([0.9, 0.999])
    """AdamW's beta1 and beta2."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; which parameters it is applied to is MMSegmentation's, see docs/protocols.md."""
    layer_decay: float = Field(0.65, gt=0, le=1)
    """Layer-wise learning rate decay: block d of D has the learning rate times layer_decay^(D + 1 - d)."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Probability of stochastic depth at the last block; it grows linearly from 0 at the first."""
    layer_scale: PositiveFloat = 1.0
    """Initial value of LayerScale, which is added to the pre-trained encoder."""

    blocks: list[CountOrZero] | None = None
    """The four blocks whose outputs feed the feature pyramid, counted from 0. Default: at 1/3, 1/2, 2/3 and the end of the depth
    (3, 5, 7, 11 of 12; 7, 11, 15, 23 of 24, as in BEiT); for an encoder with four or five blocks, the last four."""
    channels: Width | None = None
    """Channels of UPerHead; by default the encoder's width (768 for ViT-B)."""
    auxiliary_channels: Width = 256
    """Channels of the auxiliary FCN head."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Loss weight of the auxiliary FCN head on the second-to-last level of the pyramid."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the classifiers of both heads."""

    tta: bool = False
    """Test-time augmentation: also evaluate with six scales from 0.5 to 1.75 and flips, recorded as ``mIoU, multi-scale``; takes
    about twelve times as long. Scales are limited so that the short side is never smaller than the crop (BEiT's min_size)."""
    val_every: Annotated[Count | None, Runtime] = None
    """Iterations between evaluations during training, for the curve. By default only at the end."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results; where older code did something else by the same settings, they differ from its.

        With ``tta`` images could be smaller than the crop; see also :func:`exact_drop_path`.
        """
        tta = {"tta": "at least the crop"} if self.tta else {}
        return super().affecting_results() | tta | exact_drop_path(self.encoder.architecture.model, self.drop_path)

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the images of all batches, and the validation images of every evaluation and scale."""
        evaluations = ceil(self.iterations / self.val_every) if self.val_every else 1
        return Samples(self.iterations * self.batch, (evaluations + MULTI_SCALE * self.tta) * images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay; they are saved every ``save_every`` iterations, before evaluations and at the end."""
        on_the_way = (self.iterations - 1) // self.val_every if self.val_every else 0
        return min(keep, ceil(self.iterations / self.save_every) + on_the_way)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.blocks is not None and (len(self.blocks) != 4 or sorted(set(self.blocks)) != self.blocks):
            raise ValueError("blocks: expected four different numbers in ascending order")
        return self
