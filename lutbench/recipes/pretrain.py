"""Settings of pre-training. The defaults are the paper's LUT; MAE and the controls change a few fields."""

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
    """Return what checks that a setting is a name of that table."""

    def check(name: str) -> str:
        if name not in known:
            raise PydanticCustomError("unknown_name", "expected one of {expected}", {"expected": ", ".join(known)})
        return name

    return AfterValidator(check)


class PretrainRecipe(RunRecipe):
    """One pre-training run. "Paper" is arXiv 2310.13593 as its release and documents give it; "MAE" arXiv 2111.06377."""

    revision: ClassVar[int] = 2
    splits: ClassVar[tuple[str, ...]] = ("train",)
    data: DataRecipe
    encoder: EncoderRecipe = EncoderRecipe()

    # Views
    crop: Literal["simple", "random"] = "simple"
    """``simple``: short side resized, random crop with 4 px of reflected padding (paper). ``random``: random
    resized crop of 20 to 100 % of the area (MAE)."""
    crop_padding: Border = 4
    """Pixels of reflected padding of the simple crop (paper)."""
    crop_scale: Annotated[CropScale, Later] = Field([0.2, 1.0])
    """Share of the image's area in the random crop (MAE, section A.1; SimMIM, section 4.1.1: 0.67 to 1)."""
    resized_by: ResizedBy = "Pillow"
    """What resizes the crop, or the short side: Pillow, or torchvision, far faster and within a grey level (our choice). No part of
    it are images that come from a cache, which are resized."""
    photometric: bool = True
    """Colour jitter and one of grayscale, solarize and blur on view 2 (paper)."""
    photometrics_on: Annotated[Literal["loader", "device"], Later] = "loader"
    """Where view 2 is changed in colour: in the loader's processes with Pillow, or in batches on the training device
    from the same draws, which is far faster and differs by rounding (our choice)."""

    # Masked image modelling
    framework: Annotated[str, _one_of(FRAMEWORKS), Later] = "mae"
    """The masked autoencoder, or SimMIM (arXiv 2111.09886), which encodes mask tokens too."""
    mask_ratio: float = Field(default_factory=lambda given: 0.6 if given["framework"] == "simmim" else 0.75, gt=0, lt=1)
    """Share of the patches that the encoder does not see: 0.75 (MAE, section 3), of SimMIM 0.6 (section 4.1.2)."""
    mask_unit: Annotated[Pixels, Later] = 32
    """Side of the squares that SimMIM masks, in pixels (section 4.1.2). MAE masks single patches."""
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Depth = 16
    """The decoder of every model size (MAE, table 1)."""
    normalise_target: bool = Field(default_factory=lambda given: given["framework"] != "simmim")
    """Pixels are normalised per patch before the loss (MAE, section 4.1); SimMIM predicts them as they are."""

    # Broader context: the loss on unmasked tokens
    context_weight: NonNegativeFloat = 0.25
    """Weight of the context loss (paper). 0 leaves the second view, the heads and the teacher out: MAE."""
    second_view: Annotated[Literal["needed", "always"], Later] = "needed"
    """``always``: at weight 0, too, view 2 is loaded and all of the context loss computed, for nothing: MAE with LUT's crop at
    LUT's cost (control)."""
    context_loss: Annotated[str, _one_of(CONTEXT_LOSSES)] = "cosine"
    """2 - 2 cos (paper); mean squared or smooth-L1 distance of the raw outputs (controls, our choice of form); or ``infonce``
    over the images of one pass, on all processes (control)."""
    context_temperature: Annotated[PositiveFloat, Later] = 0.2
    """What InfoNCE divides cosines by (MoCo v3, arXiv 2104.02057: of its ViTs)."""
    context_target: Literal["pooled", "class", "tokens"] = "pooled"
    """What the heads read: the mean of the patch tokens (paper), the class token (control, our choice), or ``tokens``: each
    patch token, which is compared with what the teacher has at the same place of the image (control, our choice of form)."""
    both_directions: bool = True
    """Each sparse view against the teacher's other view (the release's code). False: only sparse view 1
    against whole view 2 (the paper's figure)."""
    teacher_view: Literal["whole", "masked"] = "whole"
    """The teacher sees every patch (paper), or only those that the student sees in that view (control)."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Teacher momentum at the start (paper). 1 leaves the teacher as it was drawn, 0 makes it the student of the step before. It is to suit
    the number of steps, see :func:`lutbench.train.momentum.initial_share`: the paper's is for its 1,600 epochs."""
    momentum_schedule: Annotated[Literal["cosine", "fixed"], Later] = "cosine"
    """Momentum is raised to 1 by a half cosine (paper), or stays (control)."""
    teacher_precision: Annotated[Literal["student's", "bf16"], Later] = "student's"
    """What the teacher's encoder computes in: as the student, or in bf16 throughout, norms and sums too, from a copy that its
    update makes (our choice: less memory traffic)."""
    head_depth: Depth = 2
    """Linear layers in projector and predictor (paper)."""
    head_width: Width = 4096
    """Width between those layers (paper)."""
    head_norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation between those layers (paper: batch, synchronised over processes)."""

    # Optimisation
    epochs: Count = 1600
    """Epochs (paper); in a suite file ``budget`` in its place sets it by another run's compute (:mod:`lutbench.recipes.budget`)."""
    warmup_epochs: CountOrZero = 40
    """Epochs of warm-up (paper), which is linear from 0; then a half cosine to ``min_lr``, per step."""
    batch: Batch = 4096
    """Images per optimiser step, over all processes and micro-batches (paper: 8 x 128 x 4)."""
    micro_batch: Batch | None = None
    """Images per forward pass over all processes; the whole batch if not given. BatchNorm in the heads sees this many
    images, so it affects results wherever they are batch-normalised (paper: 8 x 128 = 1024), and InfoNCE has its negatives
    among them."""
    base_lr: PositiveFloat = 1.5e-4
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """``sqrt``: lr = base_lr * sqrt(batch) / 4 (the release). ``linear``: base_lr * batch / 256 (MAE). Equal at 4096."""
    lr_schedule: Annotated[Literal["cosine", "step"], Later] = "cosine"
    """After the warm-up a half cosine (paper), or constant, and a tenth from 7/8 of the run on (SimMIM's release: from epoch 700
    of 800)."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine (paper)."""
    weight_decay: NonNegativeFloat = 0.05
    """Decay of parameters with more than one dimension that are not biases (paper)."""
    betas: Betas = Field([0.9, 0.95])
    """Decay rates of AdamW's averages (paper)."""
    clip_gradient: Annotated[PositiveFloat | None, Later] = None
    """Greatest norm of all gradients together, to which longer ones are shortened; not at all if not given (paper, MAE)."""

    # Runtime: nothing below affects results
    cache: Annotated[bool, Runtime] = False
    """Read the images from a cache, resized once to the short side that the simple crop resizes to anyway; it is made if
    it is not there (``lutbench data prepare``). Its fingerprint, with the resampling, takes the data's place in the
    run's identity. Without effect on ``crop = "random"``, which cuts from full images."""
    save_every: Annotated[Count, Runtime] = 500
    """Optimiser steps between checkpoints."""
    log_every: Annotated[Count, Runtime] = 20
    """Optimiser steps between readings of the losses."""
    trackers: Trackers = Field(default=["tensorboard"])
    """Where losses and what else is seen of the training are written: ``tensorboard`` (files in the run's folder), ``wandb``, ``mlflow``,
    ``trackio``, ``comet``; the last four come with the extra ``trackers``."""
    shard: Annotated[bool, Runtime] = False
    """Share parameters, gradients and the optimiser's state, and the teacher, out over the processes (FSDP2), for models that are large beside a
    GPU's memory; not with ``compile``. With one process it does nothing."""
    compile: Annotated[Compile, Runtime] = "auto"
    """Compile the blocks of student and teacher, the reconstruction loss and, on a GPU, the changes of colour (torch.compile)."""
    checkpointing: Annotated[bool, Runtime] = False
    """Keep a block's input alone for the backward pass, and compute the block again there: a third more compute, for larger
    micro-batches."""
    snapshots: Annotated[Snapshots, Runtime] = Field([])
    """Shares of the optimiser steps at which the encoder is kept too; 0 is the initial one."""
    snapshot_teacher: Annotated[bool, Runtime] = False
    """Keep the teacher's encoder, where there is one, at these shares as well: what a run keeps, and so its disk, is said in its own table."""
    knn_every: Annotated[Count | None, Runtime] = None
    """Epochs between evaluations of the student's encoder by k-NN on the way, and one at the end; none if not given."""
    knn_images: Annotated[Count, Runtime] = 20_000
    """Images of either split that these take at most, evenly spaced (our choice: an epoch of ImageNet has 64 times as many)."""
    knn_neighbours: Annotated[Count, Runtime] = 20
    """As the task ``knn`` has them."""

    @property
    def has_context(self) -> bool:
        """Whether the second loss, and with it view 2, heads and teacher, is there at all."""
        return self.context_weight > 0 or self.second_view == "always"

    @property
    def mixes_images(self) -> bool:
        """Whether what an image does depends on the others of its pass."""
        return self.has_context and (self.head_norm == "batch" or self.context_loss == "infonce")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Dotted names of its framework and, if it has one, its context loss."""
        return FRAMEWORKS[self.framework], *([CONTEXT_LOSSES[self.context_loss]] if self.has_context else [])

    @property
    def cache_side(self) -> int | None:
        """Short side of the images in the cache, if it reads from one."""
        return self.encoder.image_size if self.cache and self.crop == "simple" else None

    @property
    def form(self) -> Form:
        """What its images are decoded to: where Pillow does not resize them, their pixels."""
        return "Pillow" if self.cache_side is None and self.resized_by == "Pillow" else "pixels"

    @property
    def encoder_exports(self) -> tuple[str, ...]:
        """The student's encoder, and the teacher's where there is one."""
        return ("encoder", "teacher") if self.has_context else ("encoder",)

    @property
    def snapshot_exports(self) -> tuple[str, ...]:
        """Which of them are kept at each share of ``snapshots``."""
        return self.encoder_exports if self.snapshot_teacher else ("encoder",)

    @property
    def knn_epochs(self) -> list[int]:
        """The epochs after which the encoder is evaluated by k-NN."""
        return [*range(self.knn_every, self.epochs, self.knn_every), self.epochs] if self.knn_every else []

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images, once per epoch, and those that are encoded for k-NN on the way."""
        encoded = sum(min(images[split], self.knn_images) for split in ("train", "val")) if self.knn_every else 0
        return Samples(self.epochs * images["train"], len(self.knn_epochs) * encoded)

    def warning(self, images: Mapping[str, int]) -> str:
        """Return that the teacher will hardly leave its first random weights, where it is so."""
        if not self.has_context or "train" not in images:
            return ""
        steps = ceil(self.epochs * images["train"] / self.batch)
        return kept_of_the_first_weights(self.momentum, steps, self.momentum_schedule)

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of those saved every ``save_every`` steps, and before every evaluation by k-NN, stay."""
        regular = kept_checkpoints(images, keep, self.epochs, self.batch, self.save_every)
        return min(keep, regular + len(self.knn_epochs[:-1]))

    @property
    def lr(self) -> float:
        """The highest learning rate of the schedule."""
        scale = self.batch / 256 if self.lr_rule == "linear" else self.batch**0.5 / 4
        return self.base_lr * scale

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that the result depends on: without those of parts that this recipe does not use."""
        fields = super().affecting_results()
        if not self.has_context:  # then weight 0 of LUT and MAE with LUT's crop are one and the same run
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
        if (
            self.framework == "simmim" and fields.get("teacher_view") == "masked"
        ):  # other than when it was the student's token
            fields["teacher_view"] = "masked, with an average of the mask token"
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch, self.micro_batch)
        check_shard(self.shard, self.compile is True)
        if self.shard and self.teacher_precision == "bf16":
            raise ValueError(
                "shard = true shares the teacher out, of which teacher_precision = 'bf16' keeps a copy: set one of them otherwise"
            )
        if self.cache and self.data.streaming:
            raise ValueError(
                "cache = true keeps on disk what data.streaming = true shall not: set one of them to false"
            )
        if self.knn_every and (self.data.streaming or not self.data.val):
            found = "data.val is empty" if not self.data.val else "data.streaming = true gives no fixed order"
            raise ValueError(
                f"knn_every evaluates on a validation split, among the training images, and {found}: leave knn_every out, or give such a set"
            )
        if self.has_context and self.head_norm == "batch" and (self.micro_batch or self.batch) < 2:
            raise ValueError(
                "a pass of one image has no statistics for the heads' batch norm: make batch and micro_batch at least 2, "
                "or set head_norm to 'layer'"
            )
        if self.has_context:
            self._check_context()
        return self

    def _check_context(self) -> None:
        if self.context_loss == "infonce" and (self.micro_batch or self.batch) < 2:
            raise ValueError(
                "context_loss = 'infonce' has no negatives in a pass of one image: make batch and micro_batch at least 2"
            )
        if self.context_target == "tokens" and self.teacher_view == "masked":
            raise ValueError(
                "context_target = 'tokens' looks places up in all of the teacher's tokens, and teacher_view = 'masked' hides most of "
                "them: set one of them otherwise"
            )
        if self.context_target == "tokens" and self.context_loss == "infonce":
            raise ValueError(
                "context_loss = 'infonce' tells images apart, and context_target = 'tokens' compares places of one image: set one of "
                "them otherwise"
            )


def kept_checkpoints(
    images: Mapping[str, int], keep: int, epochs: int, batch: int, save_every: int | None = None
) -> int:
    """Return how many of the checkpoints stay that a run saves every so many steps or, without ``save_every``, every epoch.

    The last step saves one too. They are ``keep`` if ``images`` lacks the size of the training split.
    """
    if "train" not in images:
        return keep
    steps = ceil(epochs * images["train"] / batch)
    return min(keep, ceil(steps / (save_every or max(1, steps // epochs))))


def check_schedule(epochs: int, warmup_epochs: int, batch: int, micro_batch: int | None = None) -> None:
    """Raises ValueError if the warm-up is longer than the run, or ``batch`` is not a whole number of passes."""
    if warmup_epochs >= epochs:
        raise ValueError(
            f"warmup_epochs = {warmup_epochs} leaves nothing of epochs = {epochs}: make the warm-up shorter or the run longer"
        )
    if micro_batch is not None and batch % micro_batch:
        raise ValueError(f"batch = {batch} is not a multiple of micro_batch = {micro_batch}")


def check_shard(shard: bool, compiled: bool) -> None:
    """Raises ValueError if a model is to be both sharded and compiled."""
    if shard and compiled:
        raise ValueError(
            "shard = true gathers each block as it is needed, which compile = true takes no account of: set one of them to false"
        )


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
"""Fields that act through the second view, the heads or the teacher only."""
