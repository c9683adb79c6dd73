"""Settings that tasks share, and those of fine-tuning. Defaults are LUT's ViT-B recipe."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lutbench.recipes.base import (
    Batch,
    Betas,
    Compile,
    Count,
    CountOrZero,
    CropScale,
    CropShare,
    DataRecipe,
    EncoderRecipe,
    Form,
    Later,
    Metric,
    Pixels,
    ResizedBy,
    RunRecipe,
    Runtime,
    Samples,
    Trackers,
    TrainingSubset,
    WeightsSource,
)
from lutbench.recipes.pretrain import check_schedule, check_shard, kept_checkpoints
from lutbench.recipes.shares import at_share

Pool = Literal["class", "mean"]
"""What is taken of an encoder's tokens: the class token, or the mean over the patches."""


class EncoderSource(WeightsSource):
    """An encoder, and where its weights come from: a run of this suite, timm, a checkpoint, or nowhere."""

    architecture: EncoderRecipe
    export: Annotated[Literal["encoder", "teacher", "classifier"], Later] = "encoder"
    """Which of a run's encoders: the student's or the teacher's of a pre-training, or that in a fine-tuning's classifier."""
    at: Annotated[float, Later, Field(ge=0, le=1)] = 1.0
    """At which share of a pre-training it is that run's; before the end it is one of the run's snapshots."""
    part: Annotated[str, Later] = ""
    """Which of a checkpoint's encoders, such as ``teacher.backbone``; empty for the only one."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm."""
        return self.architecture.model

    @property
    def snapshot_share(self) -> float | None:
        """At which share of a pre-training it is that run's encoder; None at its end, and of all that no pre-training made."""
        return self.at if self.at < 1 else None

    @property
    def export_name(self) -> str:
        """Which of a run's exports it is."""
        return at_share(self.export, self.at)


class DownstreamRecipe(RunRecipe):
    """What every task has that measures an encoder."""

    encoder: EncoderSource
    log_every: Annotated[Count, Runtime] = 20
    trackers: Trackers = Field(default=["tensorboard"])
    """Where the losses of a training are written, as in pre-training."""

    @property
    def source(self) -> EncoderSource:
        """Where its encoder comes from."""
        return self.encoder

    @property
    def encoder_label(self) -> str:
        """How tables name the architecture."""
        return self.encoder.architecture.label or self.encoder.architecture.model


def default_crop(image_size: int) -> float:
    """Return what evaluation crops where nothing says so: as the releases, 224 of 256 pixels, above 224 the whole image."""
    return 1.0 if image_size > 224 else 224 / 256


class ImageTaskRecipe(DownstreamRecipe):
    """What every task has that sees the centre of images."""

    data: DataRecipe
    image_size: Pixels | None = None
    """Side of the input in pixels; the encoder's own if not given. Position embeddings are resized."""
    eval_crop: CropShare = Field(
        default_factory=lambda given: default_crop(given["image_size"] or given["encoder"].architecture.image_size)
    )
    """Evaluation resizes the short side to image_size / eval_crop and crops the centre. If not given, 224 / 256, and 1 for
    inputs of more than 224 pixels (release, as MAE and DeiT: 256 and 224; crop_pct = 1 above), or what an encoder brings: see
    :func:`lutbench.models.preprocessing.preprocessing_for`."""
    resized_by: ResizedBy = "Pillow"
    """What resizes the images that are evaluated or encoded, and the random crops of probes. Fine-tuning's own crops are timm's, of Pillow."""
    eval_batch: Annotated[Batch, Runtime] = 256

    @property
    def form(self) -> Form:
        """What its images are decoded to."""
        return "Pillow" if self.resized_by == "Pillow" else "pixels"

    @property
    def side(self) -> int:
        """Side of the input in pixels."""
        return self.image_size or self.encoder.architecture.image_size

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """What of its weights' preprocessing it applies: the crop too, unless it has one of its own."""
        return ("mean", "std", "interpolation", "crop_pct")

    def crop_for(self, crop_pct: float | None) -> float | None:
        """Return the ``crop_pct`` of its weights, unless its table has a crop; that of a method's table holds in any case.

        Of a run's weights only the latter counts: all encoders of a suite are cropped alike.
        """
        crop = crop_pct if self.source.kind in ("checkpoint", "timm") else self.source.crop_pct
        by_table = "eval_crop" in self.model_fields_set and self.source.crop_pct is None
        return None if by_table or crop == self.eval_crop else crop

    @property
    def pooling(self) -> Pool:
        """What it takes of an encoder's tokens."""
        return "mean"

    @property
    def blocks_taken(self) -> tuple[int, ...]:
        """The blocks after which it takes features; none of the encoder's output."""
        return ()

    @model_validator(mode="after")
    def _not_streamed(self) -> Self:
        if self.data.streaming:
            raise ValueError("data.streaming = true is for pre-training: everything else needs images in a fixed order")
        return self


class ClassificationRecipe(ImageTaskRecipe):
    """What every classification task has: a training split, or a part of it (low-shot), and a metric."""

    shots: Annotated[Count | None, Later] = None
    """Images of each class that are trained on, drawn at random. All if neither this nor one of the next two is given. Of one draw,
    the images of fewer shots are among those of more."""
    share: Annotated[float | None, Later, Field(gt=0, le=1)] = None
    """The same for a share of the images of each class, at least one; 1 is all. ImageNet's 1 % and 10 % have official lists."""
    subset: Annotated[str, Later] = ""
    """The same for a file below the data root that lists images, a name a line, such as SimCLR's lists of 1 % and 10 % of ImageNet
    (``n01440764_10026.JPEG``). What it lists is part of the identity."""
    draw: Annotated[CountOrZero, Later] = 0
    """Which images ``shots`` and ``share`` are: the same for every method, and for every seed. ``draws = 5`` in a task's table runs
    the first five."""

    @property
    def training_subset(self) -> TrainingSubset | None:
        """The part of the training split that it reads; None if it reads all of it."""
        if self.share == 1 or not (self.shots or self.share or self.subset):
            return None
        return TrainingSubset(self.shots, self.share, self.subset, self.draw)

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results: of all images no draw, and of a list its name, which on every machine is one."""
        fields = super().affecting_results()
        if self.training_subset is None:
            return {name: value for name, value in fields.items() if name not in ("share", "draw")}
        return fields | ({"subset": PurePath(self.subset).name} if self.subset else {})

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        given = [name for name in ("shots", "share", "subset") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} each say which images are trained on: give one of shots, share and subset"
            )
        if self.draw and given in ([], ["subset"]):
            why = "a list says itself which images it has" if given else "all images are trained on"
            raise ValueError(f"draw = {self.draw}: {why}. It goes with shots or share")
        return self

    @property
    def metric(self) -> Metric:
        """The metric that the literature prints for the dataset."""
        return self.data.metric


def _zero_or_more(strength: float) -> float:
    if 0 < strength < 0.01:
        raise ValueError("0 for none, or at least 0.01: of less, the ratio that is drawn is no number")
    return strength


MixingStrength = Annotated[float, Field(ge=0, le=1000), AfterValidator(_zero_or_more)]
"""Both parameters of the Beta distribution that the ratio of two mixed images is drawn from."""

_DEVIATION = r"mstd\d{1,3}(\.\d{1,4})?"
POLICIES = {
    "rand": rf"m(10|\d)|n([1-9]|1[0-5])|p(0(\.\d{{1,4}})?|1(\.0)?)|{_DEVIATION}|mmax[1-9]\d?|inc[01]|t(weights|3aw?)",
    "augmix": rf"m(10|\d)|w[1-9]|d[1-9]|b[01]|{_DEVIATION}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), _DEVIATION),
}
"""timm's policies of augmentation, and the settings that may follow each, after dashes, as its documentation lists them. timm
itself passes over what it does not understand, and takes numbers without bound."""


def check_policy(text: str) -> str:
    """Return the name of one of timm's :data:`POLICIES` with its settings, or the empty string; raises ValueError for any other."""
    name, *settings = text.split("-")
    keys = [re.sub(r"\d.*", "", one) for one in settings]
    allowed = POLICIES.get(name)
    if text and not (allowed and len(set(keys)) == len(keys) and all(re.fullmatch(allowed, one) for one in settings)):
        raise ValueError(
            "expected one of timm's policies, such as 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or 'original-mstd0.5' (magnitude m up "
            "to 10, n up to 15, each setting once), or '' for none"
        )
    return text


class FinetuneRecipe(ClassificationRecipe):
    """End-to-end fine-tuning (release's FINETUNE document for ViT-B; equals MAE, table 9)."""

    revision: ClassVar[int] = 1
    kind: Literal["finetune"] = "finetune"
    epochs: Count = 100
    warmup_epochs: CountOrZero = 5
    batch: Batch = 1024
    micro_batch: Annotated[Batch | None, Runtime] = None
    """Images per pass over all processes; the whole batch if not given. Images that are mixed stay together."""
    base_lr: PositiveFloat = 1e-3
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """``sqrt``: lr = base_lr * sqrt(batch) / 8 (the release). ``linear``: base_lr * batch / 256 (MAE). Equal at 1024."""
    min_lr: NonNegativeFloat = 1e-6
    layer_decay: float = Field(0.75, gt=0, le=1)
    """A block at depth d of D learns at layer_decay^(D + 1 - d) of the rate."""
    weight_decay: NonNegativeFloat = 0.05
    betas: Betas = Field([0.9, 0.999])
    drop_path: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    mixup: MixingStrength = 0.8
    cutmix: MixingStrength = 1.0
    mix_group: Batch = 32
    """Images that are mixed by one draw of ratio and box (release, as MAE: what a GPU takes at once). A batch's last may be fewer."""
    rand_augment: Annotated[str, AfterValidator(check_policy)] = "rand-m9-mstd0.5-inc1"
    """timm's name of the policy (:data:`POLICIES`); empty for none."""
    erasing: float = Field(0.25, ge=0, le=1)
    """Probability of random erasing with per-pixel noise."""
    crop_scale: CropScale = Field([0.08, 1.0])
    """Area of the random resized crop (MAE's and timm's default)."""
    flip: float = Field(0.5, ge=0, le=1)
    head_std: PositiveFloat = 2e-5
    """Standard deviation of the classifier's initial weights, normal, truncated."""
    eval_every: Annotated[Count | None, Runtime] = None
    """Epochs between evaluations on the way, for the curve; only at the end if not given."""
    save_every: Annotated[Count, Runtime] = 500
    """Optimiser steps between checkpoints."""
    shard: Annotated[bool, Runtime] = False
    """Share parameters, gradients and the optimiser's state out over the processes (FSDP2), for models that are large beside a
    GPU's memory; not with ``compile``. With one process it does nothing."""
    compile: Annotated[Compile, Runtime] = "auto"
    """Compile the classifier's blocks; of one without a row of blocks nothing, or with ``true`` all of it (torch.compile)."""
    checkpointing: Annotated[bool, Runtime] = False
    """Keep a block's input alone for the backward pass, and compute the block again there; of plain Vision Transformers."""

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images, once per epoch, and those of every evaluation on the way and at the end."""
        return Samples(self.epochs * images["train"], (self._on_the_way + 1) * images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many of those saved every ``save_every`` steps, and before every evaluation on the way, stay."""
        return min(keep, kept_checkpoints(images, keep, self.epochs, self.batch, self.save_every) + self._on_the_way)

    @property
    def _on_the_way(self) -> int:
        return (self.epochs - 1) // self.eval_every if self.eval_every else 0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def lr(self) -> float:
        """The highest learning rate of the schedule, before layer decay."""
        scale = self.batch / 256 if self.lr_rule == "linear" else self.batch**0.5 / 8
        return self.base_lr * scale

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch, self.micro_batch)
        check_shard(self.shard, self.compile is True)
        for name in ("batch", "mix_group"):
            if self.mixes and getattr(self, name) % 2:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is odd, and mixup pairs images: make it even, or set mixup and cutmix to 0"
                )
        return self
