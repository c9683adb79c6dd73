"""Settings of semantic segmentation: the data in ADE20K's layout, and UPerNet's recipe as MMSegmentation runs it."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import Betas, Count, CountOrZero, DatasetRecipe, Few, Pixels, Runtime, Samples, Width
from lutbench.recipes.downstream import DownstreamRecipe

MULTI_SCALE = 12
"""Times that an evaluation with ``tta`` looks at each image: six scales, each also flipped."""

Grey = Annotated[int, Field(ge=0, le=255)]
Suffix = Annotated[str, Field(min_length=1)]


class SegmentationDataRecipe(DatasetRecipe):
    """Images and masks in ADE20K's layout: ``PATH/images/SPLIT/NAME.jpg`` and ``PATH/annotations/SPLIT/NAME.png``."""

    source: Literal["scenes", "ade20k", "mosaics"]
    """``scenes``: any set in this layout. ``ade20k``: the same with ADE20K's 150 classes, colours and counts.
    ``mosaics``: a set built from photographs that ship in packages."""
    train: str = Field(default="training", min_length=1)
    val: str = Field(default="validation", min_length=1)
    """Names of the splits' folders."""
    image_suffix: Suffix | Annotated[list[Suffix], Field(min_length=1)] = ".jpg"
    mask_suffix: Suffix = ".png"
    """What file names end in: of the image ``NAME.jpg`` the mask is ``NAME.png``. Images may end in one of several:
    ``[".jpg", ".jpeg"]``. Known for ``mosaics``."""
    classes: list[str] = Field(default_factory=list)
    """Names in the order of the masks' values; known for ``ade20k`` and ``mosaics``."""
    palette: Annotated[list[Annotated[list[Grey], Field(min_length=3, max_length=3)]], Runtime] = Field(
        default_factory=list
    )
    """A colour (red, green, blue) for every class, for pictures; chosen for you if not given."""
    reduce_zero_label: bool = False
    """Whether 0 in a mask means no class and 1 the first one (ADE20K), or 0 the first one."""
    ignore: Grey = 255
    """The value in a mask that counts neither in training nor in evaluation, besides a reduced zero."""
    few: Few = None

    @property
    def folder(self) -> str:
        """Where it lies, below the data root."""
        own = {"ade20k": "ADEChallengeData2016", "mosaics": "mosaics"}  # what ADE20K's archive unpacks to
        return self.path or own.get(self.source, "")

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """What names of images may end in."""
        return (self.image_suffix,) if isinstance(self.image_suffix, str) else tuple(self.image_suffix)

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        return "mIoU"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "scenes" and not self.classes:
            raise ValueError("classes: name them, in the order of the masks' values")
        if self.source != "scenes" and (self.classes or self.palette or self.reduce_zero_label or self.ignore != 255):
            raise ValueError(
                f"classes, palette, reduce_zero_label and ignore are known for {self.source}: leave them out"
            )
        if self.palette and len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        if any(one != other and one.endswith(other) for one in self.image_suffixes for other in self.image_suffixes):
            raise ValueError(
                "image_suffix: one ending is the end of another, and it is not clear what is left of a name"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name is given twice")
        if self.reduce_zero_label and self.ignore != 255:
            raise ValueError("ignore: where zero is reduced, 0 and 255 are ignored: leave it at 255")
        if len(self.classes) > 255 - self.reduce_zero_label:
            raise ValueError(
                f"masks of 8 bits hold at most {255 - self.reduce_zero_label} classes beside {self.ignore}"
            )
        if not self.reduce_zero_label and self.ignore < len(self.classes):
            raise ValueError(f"ignore = {self.ignore} is the value of class {self.classes[self.ignore]!r}")
        return self


class WindowsRecipe(DownstreamRecipe):
    """How images with masks are seen in evaluation: resized whole, under a window that slides over them."""

    data: SegmentationDataRecipe
    crop: Pixels = 512
    """Side of the crops that are trained on, and of the window that slides over test images, in pixels."""
    stride: Pixels = 341
    """Pixels between windows (MMSegmentation's released configs, and implus)."""
    scale: list[Pixels] = Field([2048, 512], min_length=2, max_length=2)
    """Images are resized, aspect kept, so that the long side is at most the first and the short at most the second."""

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """What of its weights' preprocessing it applies: MMSegmentation's pipelines have their own interpolation."""
        return ("mean", "std")

    def _default(self, name: str) -> str:
        """Return what messages say of a setting that has the value it has where nobody gives one."""
        return " (the default)" if getattr(self, name) == type(self).model_fields[name].default else ""

    @model_validator(mode="after")
    def _windows_that_cover(self) -> Self:
        if self.stride > self.crop:
            raise ValueError(
                f"stride = {self.stride}{self._default('stride')} would leave gaps between windows of crop = {self.crop}: lower stride "
                f"to {self.crop} or less"
            )
        if self.scale[0] < self.scale[1]:
            raise ValueError("scale: the long side comes first")
        return self


class CropsRecipe(WindowsRecipe):
    """What is trained on besides: random crops of images resized at random, in batches that are counted in iterations."""

    ratio: list[PositiveFloat] = Field([0.5, 2.0], min_length=2, max_length=2)
    """Range of the random resize in training, in multiples of ``scale``."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """A crop is drawn again, up to ten times, where one class covers more than this share of it."""
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = True
    """Whether colours are changed in training, by MMSegmentation's PhotoMetricDistortion."""
    iterations: Count
    warmup: CountOrZero = 1500
    """Iterations of linear warm-up, from 1e-6 of the rate."""
    save_every: Annotated[Count, Runtime] = 2000
    """Iterations between checkpoints."""

    @model_validator(mode="after")
    def _crops_that_can_be(self) -> Self:
        if self.warmup >= self.iterations:
            raise ValueError(
                f"warmup = {self.warmup} iterations{self._default('warmup')} leave nothing of iterations = {self.iterations}: make the warm-up shorter or "
                "the run longer"
            )
        if self.ratio[0] > self.ratio[1]:
            raise ValueError("ratio: the smaller comes first")
        if (least := self.scale[1] * self.ratio[0]) < 4 or self.ratio[1] > 16:
            raise ValueError(
                f"scale and ratio: images would be resized to {least:g} pixels on the short side, or to {self.ratio[1]:g} times the scale; "
                "at least 4 and at most 16 times are possible"
            )
        return self


class SegmentationRecipe(CropsRecipe):
    """UPerNet on the encoder, by MMSegmentation's Runner.

    Defaults are the recipe by which MAE's ViT-B was reproduced at 48.1 mIoU on ADE20K: MMSegmentation's config
    mae-base_upernet_8xb2-amp-160k_ade20k-512x512 and implus/mae_segmentation.
    """

    revision: ClassVar[int] = 1
    kind: Literal["segmentation"] = "segmentation"
    iterations: Count = 160_000
    batch: int = Field(16, ge=2, le=2**17)
    """Images per iteration over all processes; BatchNorm in the head needs two."""
    lr: PositiveFloat = 1e-4
    power: PositiveFloat = 1.0
    """Exponent of the polynomial decay of the learning rate to 0."""
    betas: Betas = Field([0.9, 0.999])
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: float = Field(0.65, gt=0, le=1)
    """A block at depth d of D learns at layer_decay^(D + 1 - d) of the rate."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    layer_scale: PositiveFloat = 1.0
    """Initial value of LayerScale, which the pre-trained encoder does not have."""

    blocks: list[CountOrZero] | None = None
    """The four blocks, from 0, whose outputs feed the pyramid; those at 1/3, 1/2, 2/3 and all of the depth if not given
    (3, 5, 7, 11 of 12; BEiT's 7, 11, 15, 23 of 24), the last four of an encoder with four or five."""
    channels: Width | None = None
    """Channels of UPerHead; the encoder's width if not given (768 for ViT-B)."""
    auxiliary_channels: Width = 256
    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the loss of the FCN head on the last but one level."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Before the classifier of both heads."""

    tta: bool = False
    """Measure also with six scales from 0.5 to 1.75 and flips, as ``mIoU, multi-scale``; about twelve times the time.
    No scale is so small that the short side would be less than the crop (BEiT's min_size)."""
    val_every: Annotated[Count | None, Runtime] = None
    """Iterations between evaluations on the way, for the curve; only at the end if not given."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results; images were smaller than the crop in multi-scale testing once."""
        fields = super().affecting_results()
        return fields | ({"tta": "at least the crop"} if self.tta else {})

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the images of all batches, and the validation images of every evaluation and scale."""
        evaluations = ceil(self.iterations / self.val_every) if self.val_every else 1
        return Samples(self.iterations * self.batch, (evaluations + MULTI_SCALE * self.tta) * images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many stay of those saved every ``save_every`` iterations, before evaluations on the way and at the end."""
        on_the_way = (self.iterations - 1) // self.val_every if self.val_every else 0
        return min(keep, ceil(self.iterations / self.save_every) + on_the_way)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.blocks is not None and (len(self.blocks) != 4 or sorted(set(self.blocks)) != self.blocks):
            raise ValueError("blocks: expected four, ascending, each once")
        return self
