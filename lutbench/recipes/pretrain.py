"""Settings of pre-training. The defaults are those of the paper's LUT; MAE and the controls change a few."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from lutbench.kinds import CONTEXT_LOSSES, FRAMEWORKS
from lutbench.recipes.base import (
    Batch,
    Betas,
    Border,
    Compile,
    Count,
    CountOrZero,
    CropScale,
    DataRecipe,
    Depth,
    EncoderRecipe,
    Form,
    Later,
    Pixels,
    ResizedBy,
    RunRecipe,
    Runtime,
    Samples,
    Trackers,
    Width,
)
from lutbench.recipes.shares import Snapshots
from lutbench.train.momentum import kept_of_the_first_weights


def _one_of(known: Mapping[str, str]) -> AfterValidator:
    """Return a validator that accepts only the names in ``known``."""

    def check(name: str) -> str:
        if name not in known:
            raise PydanticCustomError("unknown_name", "expected one of {expected}", {"expected": ", ".join(known)})
        return name

    return AfterValidator(check)


class PretrainRecipe(RunRecipe):
    """One pre-training run. "Paper" means LUT (arXiv 2310.13593, with its released code and documents), "MAE" arXiv 2111.06377.

    Source of the defaults: LUT's documents (PRETRAIN.md) and released code.
    """

    revision: ClassVar[int] = 2
    splits: ClassVar[tuple[str, ...]] = ("train",)
    data: DataRecipe
    """The images to train on."""
    encoder: EncoderRecipe = EncoderRecipe()
    """The architecture to train."""

    # Views
    crop: Literal["simple", "random"] = "simple"
    """``simple``: resize the short side, then a random crop with 4 pixels of reflection padding (paper). ``random``: random
    resized crop of 20 to 100 % of the area (MAE)."""
    crop_padding: Border = 4
    """Reflection padding of the simple crop, in pixels per side (paper)."""
    crop_scale: Annotated[CropScale, Later] = Field([0.2, 1.0])
    """Area of the random crop, as shares of the image's area (SimMIM, section 4.1.1: 0.67 to 1). Source: MAE, section A.1."""
    resized_by: ResizedBy = "Pillow"
    """Library that resizes the crop or the short side: Pillow, or torchvision, far faster; pixels differ by at most one grey
    level. No effect on images from a cache, which are resized already. Source: our choice."""
    photometric: bool = True
    """Apply colour jitter and one of grayscale, solarize and blur to view 2 (paper)."""
    photometrics_on: Annotated[Literal["loader", "device"], Later] = "loader"
    """Where the colour augmentation of view 2 runs: in the loader processes with Pillow, or in batches on the training device.
    Both use the same random draws; ``device`` is far faster and differs by rounding. Source: our choice."""

    # Masked image modelling
    framework: Annotated[str, _one_of(FRAMEWORKS), Later] = "mae"
    """``mae``: the masked autoencoder. ``simmim``: SimMIM (arXiv 2111.09886), whose encoder also sees mask tokens."""
    mask_ratio: float = Field(default_factory=lambda given: 0.6 if given["framework"] == "simmim" else 0.75, gt=0, lt=1)
    """Share of the patches that are masked: 0.75 for MAE, 0.6 for SimMIM. Source: MAE, section 3; SimMIM, section 4.1.2."""
    mask_unit: Annotated[Pixels, Later] = 32
    """Side length in pixels of the squares that SimMIM masks. MAE masks single patches. Source: SimMIM, section 4.1.2."""
    decoder_width: Width = 512
    """Number of features of a token in MAE's decoder, the same for every encoder. Source: MAE, table 1."""
    decoder_depth: Depth = 8
    """Number of transformer blocks of MAE's decoder, the same for every encoder. Source: MAE, table 1."""
    decoder_heads: Depth = 16
    """Attention heads of a block of MAE's decoder, the same for every encoder."""
    normalise_target: bool = Field(default_factory=lambda given: given["framework"] != "simmim")
    """Normalise the target pixels per patch, as MAE. SimMIM predicts unnormalised pixels. Source: MAE, section 4.1."""

    # Broader context: the loss on unmasked tokens
    context_weight: NonNegativeFloat = 0.25
    """Weight of the context loss (paper). With 0 there is no second view, no heads and no teacher: MAE."""
    second_view: Annotated[Literal["needed", "always"], Later] = "needed"
    """``always``: load view 2 and compute the context loss even at weight 0. This is MAE with LUT's crop at LUT's computational
    cost (control). Source: our choice."""
    context_loss: Annotated[str, _one_of(CONTEXT_LOSSES)] = "cosine"
    """``cosine``: 2 - 2 cos (paper). Mean squared or smooth-L1 distance of the unnormalised outputs (controls, our choice of form).
    ``infonce``: InfoNCE over the images of one forward pass on all processes (control)."""
    context_temperature: Annotated[PositiveFloat, Later] = 0.2
    """Temperature of InfoNCE. Source: MoCo v3 (arXiv 2104.02057), for ViTs."""
    context_target: Literal["pooled", "class", "tokens"] = "pooled"
    """Input of the heads. ``pooled``: the mean of the patch tokens (paper). ``class``: the class token (control, our choice).
    ``tokens``: every patch token, compared with the teacher's features at the same position in the image (control, our choice of
    form)."""
    both_directions: bool = True
    """True: compare the student's sparse view of each view with the teacher's other view (released code). False: only sparse
    view 1 with whole view 2 (the paper's figure)."""
    teacher_view: Literal["whole", "masked"] = "whole"
    """``whole``: the teacher sees every patch (paper). ``masked``: only the patches that the student sees in that view (control)."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Teacher momentum at the start (paper). With 1 the teacher keeps its random initial weights; with 0 it is the student of the
    previous step. Choose it for the number of steps, see :func:`lutbench.train.momentum.initial_share`: the paper's value is for
    1,600 epochs."""
    momentum_schedule: Annotated[Literal["cosine", "fixed"], Later] = "cosine"
    """``cosine``: raise the momentum to 1 along a half cosine (paper). ``fixed``: keep it constant (control)."""
    teacher_precision: Annotated[Literal["student's", "bf16"], Later] = "student's"
    """Precision of the teacher's encoder. ``student's``: as the student. ``bf16``: all operations in bf16, norms and sums
    included, from a bf16 copy that each update writes, for less memory traffic. Source: our choice."""
    head_depth: Depth = 2
    """Number of linear layers in projector and predictor (paper)."""
    head_width: Width = 4096
    """Hidden width of projector and predictor (paper)."""
    head_norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation between the layers of the heads (paper: BatchNorm, synchronised over processes)."""

    # Optimisation
    epochs: Count = 1600
    """Number of epochs (paper). A suite file may give ``budget`` instead: epochs for the same compute as another run
    (:mod:`lutbench.recipes.budget`)."""
    warmup_epochs: CountOrZero = 40
    """Epochs of linear warm-up from 0 (paper); then a half cosine to ``min_lr``, updated every step."""
    batch: Batch = 4096
    """Images per optimiser step, summed over processes and micro-batches (paper: 8 x 128 x 4)."""
    micro_batch: Batch | None = None
    """Images per forward pass, summed over processes; by default the whole batch (paper: 8 x 128 = 1024). It affects results if
    the heads have BatchNorm, whose statistics are over these images, or with InfoNCE, whose negatives are among them. Source: our
    choice."""
    base_lr: PositiveFloat = 1.5e-4
    """Learning rate that ``lr_rule`` scales with the batch; the peak learning rate is 2.4e-3 at the default batch."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """Scaling of the peak learning rate with the batch. ``sqrt``: base_lr * sqrt(batch) / 4 (released code). ``linear``:
    base_lr * batch / 256 (MAE). Both are equal for a batch of 4096."""
    lr_schedule: Annotated[Literal["cosine", "step"], Later] = "cosine"
    """Schedule after the warm-up. ``cosine``: a half cosine (paper). ``step``: constant, divided by 10 after 7/8 of the run
    (SimMIM's released code: at epoch 700 of 800)."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine (paper)."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; not applied to biases and one-dimensional parameters (paper)."""
    betas: Betas = Field([0.9, 0.95])
    """AdamW's beta1 and beta2 (paper)."""
    clip_gradient: Annotated[PositiveFloat | None, Later] = None
    """Maximum norm of the gradient over all parameters, for gradient clipping. By default no clipping (paper, MAE)."""

    # Runtime: nothing below affects results
    cache: Annotated[bool, Runtime] = False
    """Read the training images from a cache in which they are already resized to the short side of the simple crop. It is made if
    it does not exist (also by ``lutbench data prepare``). In the run's identity, the cache's fingerprint (which includes the
    resampling) replaces that of the dataset. No effect with ``crop = "random"``, which crops the original images."""
    save_every: Annotated[Count, Runtime] = 500
    """Optimiser steps between checkpoints."""
    log_every: Annotated[Count, Runtime] = 20
    """Optimiser steps between log entries."""
    trackers: Trackers = Field(default=["tensorboard"])
    """Experiment trackers for losses and other curves: ``tensorboard`` (files in the run's folder), ``wandb``, ``mlflow``,
    ``trackio``, ``comet``. The last four need the extra ``trackers``."""
    shard: Annotated[bool, Runtime] = False
    """Shard parameters, gradients, optimiser state and the teacher over the processes (FSDP2), for models that are too large for
    one GPU's memory. Not with ``compile``. No effect with one process."""
    compile: Annotated[Compile, Runtime] = "auto"
    """Compile the blocks of student and teacher, the reconstruction loss and, on a GPU, the colour augmentation (torch.compile)."""
    checkpointing: Annotated[bool, Runtime] = False
    """Activation checkpointing: keep only the input of each block and recompute the block in the backward pass. A third more
    compute, but larger micro-batches fit."""
    snapshots: Annotated[Snapshots, Runtime] = Field([])
    """Shares of the training after which the encoder is saved as well, such as ``[0, 0.1, 0.5]``; 0 is the initial encoder."""
    snapshot_teacher: Annotated[bool, Runtime] = False
    """Save the teacher's encoder, if there is one, at these snapshots too."""
    knn_every: Annotated[Count | None, Runtime] = None
    """Epochs between k-NN evaluations of the student's encoder during training, with one at the end. By default none."""
    knn_images: Annotated[Count, Runtime] = 20_000
    """Maximum number of images of each split in these evaluations, evenly spaced (our choice: an epoch of ImageNet has 64 times
    as many)."""
    knn_neighbours: Annotated[Count, Runtime] = 20
    """Number of neighbours, as in the task ``knn``."""

    @property
    def has_context(self) -> bool:
        """Whether the run computes the context loss, and so has view 2, heads and a teacher."""
        return self.context_weight > 0 or self.second_view == "always"

    @property
    def mixes_images(self) -> bool:
        """Whether the result for an image depends on the other images of its forward pass."""
        return self.has_context and (self.head_norm == "batch" or self.context_loss == "infonce")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Dotted names of the framework and, if there is one, the context loss."""
        return FRAMEWORKS[self.framework], *([CONTEXT_LOSSES[self.context_loss]] if self.has_context else [])

    @property
    def cache_side(self) -> int | None:
        """Short side of the cached images in pixels; None if the run does not read from a cache."""
        return self.encoder.image_size if self.cache and self.crop == "simple" else None

    @property
    def form(self) -> Form:
        """What images are decoded to: arrays of pixels, unless Pillow resizes them."""
        return "Pillow" if self.cache_side is None and self.resized_by == "Pillow" else "pixels"

    @property
    def encoder_exports(self) -> tuple[str, ...]:
        """The student's encoder, and the teacher's if there is a teacher."""
        return ("encoder", "teacher") if self.has_context else ("encoder",)

    @property
    def snapshot_exports(self) -> tuple[str, ...]:
        """The encoders that are saved at each of the ``snapshots``."""
        return self.encoder_exports if self.snapshot_teacher else ("encoder",)

    @property
    def knn_epochs(self) -> list[int]:
        """The epochs after which the encoder is evaluated with k-NN."""
        return [*range(self.knn_every, self.epochs, self.knn_every), self.epochs] if self.knn_every else []

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images of all epochs, and the images encoded for k-NN during training."""
        encoded = sum(min(images[split], self.knn_images) for split in ("train", "val")) if self.knn_every else 0
        return Samples(self.epochs * images["train"], len(self.knn_epochs) * encoded)

    def warning(self, images: Mapping[str, int]) -> str:
        """Return a warning if the momentum is so high that the teacher would stay close to its random initial weights."""
        if not self.has_context or "train" not in images:
            return ""
        steps = ceil(self.epochs * images["train"] / self.batch)
        return kept_of_the_first_weights(self.momentum, steps, self.momentum_schedule)

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay; they are saved every ``save_every`` steps and before every k-NN evaluation."""
        regular = kept_checkpoints(images, keep, self.epochs, self.batch, self.save_every)
        return min(keep, regular + len(self.knn_epochs[:-1]))

    @property
    def lr(self) -> float:
        """Peak learning rate of the schedule."""
        scale = self.batch / 256 if self.lr_rule == "linear" else self.batch**0.5 / 4
        return self.base_lr * scale

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without those of parts that this recipe does not use."""
        fields = super().affecting_results()
        if not self.has_context:  # so that LUT with weight 0 and MAE with LUT's crop are the same run
            for name in _CONTEXT_FIELDS:
                fields.pop(name, None)
        for name in (
            ("decoder_width", "decoder_depth", "decoder_heads") if self.framework == "simmim" else ("mask_unit",)
        ):
            fields.pop(name, None)
        without_effect = {
            "resized_by": self.cache_side is not None,
            "photometrics_on": not self.photometric,
            "crop_scale": self.crop == "simple",
            "min_lr": self.lr_schedule == "step",
            "second_view": self.context_weight > 0,
            "context_temperature": self.context_loss != "infonce",
            "momentum_schedule": self.momentum == 1,
            "micro_batch": not self.mixes_images,
        }
        for name in (name for name, unused in without_effect.items() if unused):
            fields.pop(name, None)
        # in older code this case used the student's mask token
        if self.framework == "simmim" and fields.get("teacher_view") == "masked":
            fields["teacher_view"] = "masked, with an average of the mask token"
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch, self.micro_batch)
        check_shard(self.shard, self.compile is True)
        if self.shard and self.teacher_precision == "bf16":
            raise ValueError(
                "shard = true distributes the teacher, but teacher_precision = 'bf16' needs a whole copy of it: change one of the two"
            )
        if self.cache and self.data.streaming:
            raise ValueError(
                "cache = true stores the images on disk, data.streaming = true reads them without storing: set one of the two to false"
            )
        if self.knn_every and (self.data.streaming or not self.data.val):
            found = "data.val is empty" if not self.data.val else "data.streaming = true has no fixed order of images"
            raise ValueError(
                f"knn_every needs a training and a validation split that can be read in a fixed order, but {found}: remove knn_every, or "
                "use another dataset"
            )
        if self.has_context and self.head_norm == "batch" and (self.micro_batch or self.batch) < 2:
            raise ValueError(
                "the heads' BatchNorm needs at least 2 images per forward pass: set batch and micro_batch to at least 2, "
                "or head_norm to 'layer'"
            )
        if self.has_context:
            self._check_context()
        return self

    def _check_context(self) -> None:
        if self.context_loss == "infonce" and (self.micro_batch or self.batch) < 2:
            raise ValueError(
                "context_loss = 'infonce' needs negatives, so at least 2 images per forward pass: set batch and micro_batch to at least 2"
            )
        if self.context_target == "tokens" and self.teacher_view == "masked":
            raise ValueError(
                "context_target = 'tokens' needs all of the teacher's patch tokens, but teacher_view = 'masked' hides most of "
                "them: change one of the two"
            )
        if self.context_target == "tokens" and self.context_loss == "infonce":
            raise ValueError(
                "context_loss = 'infonce' compares whole images, but context_target = 'tokens' compares positions within one image: change "
                "one of the two"
            )


def kept_checkpoints(
    images: Mapping[str, int], keep: int, epochs: int, batch: int, save_every: int | None = None
) -> int:
    """Return how many checkpoints stay on disk, saved every ``save_every`` steps (None: every epoch) and after the last step.

    Return ``keep`` if the size of the training split is not in ``images``.
    """
    if "train" not in images:
        return keep
    steps = ceil(epochs * images["train"] / batch)
    return min(keep, ceil(steps / (save_every or max(1, steps // epochs))))


def check_schedule(epochs: int, warmup_epochs: int, batch: int, micro_batch: int | None = None) -> None:
    """Raise ValueError if the warm-up is as long as the run, or ``batch`` is not a multiple of ``micro_batch``."""
    if warmup_epochs >= epochs:
        raise ValueError(
            f"warmup_epochs = {warmup_epochs} must be less than epochs = {epochs}: lower warmup_epochs or raise epochs"
        )
    if micro_batch is not None and batch % micro_batch:
        raise ValueError(f"batch = {batch} is not a multiple of micro_batch = {micro_batch}: change one of them")


def check_shard(shard: bool, compiled: bool) -> None:
    """Raise ValueError if a model would be both sharded and compiled."""
    if shard and compiled:
        raise ValueError("shard = true and compile = true cannot be combined: set one of the two to false")


_CONTEXT_FIELDS = (
    "photometric",
    "photometrics_on",
    "context_loss",
    "context_temperature",
    "context_target",
    "both_directions",
    "teacher_view",
    "momentum",
    "momentum_schedule",
    "teacher_precision",
    "head_depth",
    "head_width",
    "head_norm",
)
"""Fields that have an effect only through the second view, the heads or the teacher."""
