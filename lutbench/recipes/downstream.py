"""Settings that all tasks share, and the settings of fine-tuning. Defaults are LUT's recipe for ViT-B."""

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
"""Image feature from the encoder's tokens: the class token, or the mean of the patch tokens."""


class EncoderSource(WeightsSource):
    """An encoder and the source of its weights: a run of this suite, timm, a checkpoint, or none (random weights)."""

    architecture: EncoderRecipe
    export: Annotated[Literal["encoder", "teacher", "classifier"], Later] = "encoder"
    """Which encoder of a run: the student or the teacher of a pre-training, or the encoder of a fine-tuned classifier."""
    at: Annotated[float, Later, Field(ge=0, le=1)] = 1.0
    """Share of the pre-training after which the encoder was saved: 1 is the final encoder, less than 1 a snapshot."""
    part: Annotated[str, Later] = ""
    """Which encoder of a checkpoint that holds several, such as ``teacher.backbone``; empty if it holds one."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm."""
        return self.architecture.model

    @property
    def snapshot_share(self) -> float | None:
        """Share of the pre-training after which the encoder was saved; None for a final encoder and for one without pre-training here."""
        return self.at if self.at < 1 else None

    @property
    def export_name(self) -> str:
        """Name of the exported file in the run's folder."""
        return at_share(self.export, self.at)


class DownstreamRecipe(RunRecipe):
    """Settings of every task that evaluates an encoder.

    Source of the defaults: our choice.
    """

    encoder: EncoderSource
    """The encoder to evaluate: one of the suite's methods."""
    log_every: Annotated[Count, Runtime] = 20
    """Optimiser steps between log entries."""
    trackers: Trackers = Field(default=["tensorboard"])
    """Experiment trackers for the training losses, as in pre-training."""

    @property
    def source(self) -> EncoderSource:
        """Where the encoder comes from."""
        return self.encoder

    @property
    def encoder_label(self) -> str:
        """Name of the architecture in tables."""
        return self.encoder.architecture.label or self.encoder.architecture.model


def default_crop(image_size: int) -> float:
    """Return the default ``eval_crop``, as in the released code: 224 / 256, and 1 (no crop) for inputs of more than 224 pixels."""
    return 1.0 if image_size > 224 else 224 / 256


class ImageTaskRecipe(DownstreamRecipe):
    """Settings of every task that evaluates on centre crops.

    Source of the defaults: our choice.
    """

    data: DataRecipe
    """The images and labels of the task."""
    image_size: Pixels | None = None
    """Side length of the input in pixels; by default the encoder's own. Position embeddings are interpolated to fit."""
    eval_crop: CropShare = Field(
        default_factory=lambda given: default_crop(given["image_size"] or given["encoder"].architecture.image_size)
    )
    """Evaluation resizes the short side to image_size / eval_crop and crops the centre. Default: 224 / 256, and 1 for inputs of
    more than 224 pixels, unless the weights come with their own ``crop_pct``, see
    :func:`lutbench.models.preprocessing.preprocessing_for`. Source: released code of LUT, as MAE and DeiT."""
    resized_by: ResizedBy = "Pillow"
    """Library that resizes the images for evaluation and feature extraction, and the random crops of probes. The training crops of
    fine-tuning always use timm and Pillow."""
    eval_batch: Annotated[Batch | None, Runtime] = None
    """Images per batch and process in evaluation; by default 32 on a CPU, whose caches hold the values of few images, and 256 on a
    GPU. Source: our choice, measured in docs/benchmarks.md."""

    @property
    def form(self) -> Form:
        """What images are decoded to."""
        return "Pillow" if self.resized_by == "Pillow" else "pixels"

    @property
    def side(self) -> int:
        """Side length of the input in pixels."""
        return self.image_size or self.encoder.architecture.image_size

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """The fields of the weights' preprocessing that the run applies; the crop only if the run does not set its own."""
        return ("mean", "std", "interpolation", "crop_pct")

    def crop_for(self, crop_pct: float | None) -> float | None:
        """Return the ``crop_pct`` to apply, given that of the weights; None if the run uses its own ``eval_crop``.

        A ``crop_pct`` in the method's table has priority, then the task's ``eval_crop``, then the weights' own. The latter is
        ignored for weights made by runs of the suite, so that all encoders of a suite are cropped alike.
        """
        crop = crop_pct if self.source.kind in ("checkpoint", "timm") else self.source.crop_pct
        by_table = "eval_crop" in self.model_fields_set and self.source.crop_pct is None
        return None if by_table or crop == self.eval_crop else crop

    @property
    def pooling(self) -> Pool:
        """How tokens are pooled to an image feature."""
        return "mean"

    @property
    def blocks_taken(self) -> tuple[int, ...]:
        """The blocks after which features are taken; empty for the encoder's output."""
        return ()

    @model_validator(mode="after")
    def _not_streamed(self) -> Self:
        if self.data.streaming:
            raise ValueError("data.streaming = true is for pre-training only: tasks need images in a fixed order")
        return self


class ClassificationRecipe(ImageTaskRecipe):
    """Settings of every classification task: the training split or a subset of it (low-shot), and the metric.

    Source of the defaults: our choice.
    """

    shots: Annotated[Count | None, Later] = None
    """Train on this many images per class, drawn at random. By default on all images (likewise for ``share`` and ``subset``). Within
    one draw, the images of fewer shots are a subset of those of more shots."""
    share: Annotated[float | None, Later, Field(gt=0, le=1)] = None
    """Train on this share of the images of each class, drawn at random, at least one image; 1 is all. For 1 % and 10 % of ImageNet
    there are official lists, see ``subset``."""
    subset: Annotated[str, Later] = ""
    """Train on the images listed in this file below the data root, one name per line, such as SimCLR's lists of 1 % and 10 % of
    ImageNet (``n01440764_10026.JPEG``). The content of the file is part of the identity."""
    draw: Annotated[CountOrZero, Later] = 0
    """Number of the random draw for ``shots`` and ``share``. A draw selects the same images for every method and seed. ``draws = 5`` in
    a task's table runs the draws 0 to 4."""

    @property
    def training_subset(self) -> TrainingSubset | None:
        """The subset of the training split that the run reads; None if it reads the whole split."""
        if self.share == 1 or not (self.shots or self.share or self.subset):
            return None
        return TrainingSubset(self.shots, self.share, self.subset, self.draw)

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results: no draw if all images are used, and for a list its file name without the folder."""
        fields = super().affecting_results()
        if self.training_subset is None:
            return {name: value for name, value in fields.items() if name not in ("share", "draw")}
        return fields | ({"subset": PurePath(self.subset).name} if self.subset else {})

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        given = [name for name in ("shots", "share", "subset") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"expected at most one of shots, share and subset, found {' and '.join(given)}")
        if self.draw and given in ([], ["subset"]):
            why = (
                "subset lists the images, nothing is drawn"
                if given
                else "the task trains on all images, nothing is drawn"
            )
            raise ValueError(f"draw = {self.draw}: {why}. Use draw with shots or share only")
        return self

    @property
    def metric(self) -> Metric:
        """The metric that is usually reported for the dataset."""
        return self.data.metric


def _zero_or_more(strength: float) -> float:
    if 0 < strength < 0.01:
        raise ValueError("expected 0 (off) or at least 0.01: smaller values make the drawn mixing ratio NaN")
    return strength


MixingStrength = Annotated[float, Field(ge=0, le=1000), AfterValidator(_zero_or_more)]
"""Alpha of the distribution Beta(alpha, alpha) that the mixing ratio is drawn from; 0 turns it off."""

_DEVIATION = r"mstd\d{1,3}(\.\d{1,4})?"
POLICIES = {
    "rand": rf"m(10|\d)|n([1-9]|1[0-5])|p(0(\.\d{{1,4}})?|1(\.0)?)|{_DEVIATION}|mmax[1-9]\d?|inc[01]|t(weights|3aw?)",
    "augmix": rf"m(10|\d)|w[1-9]|d[1-9]|b[01]|{_DEVIATION}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), _DEVIATION),
}
"""timm's augmentation policies, and for each a pattern of the settings that may follow after dashes, as in its documentation.
Checked here because timm ignores settings that it does not know and accepts numbers without bounds."""


def check_policy(text: str) -> str:
    """Return ``text`` if it is empty or one of timm's :data:`POLICIES` with valid settings; else raise ValueError."""
    name, *settings = text.split("-")
    keys = [re.sub(r"\d.*", "", one) for one in settings]
    allowed = POLICIES.get(name)
    if text and not (allowed and len(set(keys)) == len(keys) and all(re.fullmatch(allowed, one) for one in settings)):
        raise ValueError(
            "expected one of timm's policies, such as 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or 'original-mstd0.5' (magnitude m up "
            "to 10, n up to 15, each setting once), or '' for none"
        )
    return text


OWN_DROP_PATH = ("cpubone", "efficientformerv2", "fasternet", "focalnet", "nest", "nextvit", "swin", "tiny_vit")
"""How the names of timm's models begin whose own ``drop_path_rate`` is not 0."""


def exact_drop_path(model: str, drop_path: float) -> dict[str, str]:
    """Return the ``drop_path`` for ``affecting_results`` where 0 has another effect than in older code, which then kept timm's own rate."""
    return {"drop_path": "none"} if drop_path == 0 and model.startswith(OWN_DROP_PATH) else {}


class FinetuneRecipe(ClassificationRecipe):
    """End-to-end fine-tuning of the encoder with a classifier.

    Source of the defaults: LUT's documents (FINETUNE.md), ViT-B; equal to MAE, table 9.
    """

    revision: ClassVar[int] = 1
    kind: Literal["finetune"] = "finetune"
    """The kind of this task."""
    epochs: Count = 100
    """Number of epochs."""
    warmup_epochs: CountOrZero = 5
    """Epochs of linear warm-up from 0; then a half cosine to ``min_lr``, updated every step."""
    batch: Batch = 1024
    """Images per optimiser step, summed over processes and micro-batches."""
    micro_batch: Annotated[Batch | None, Runtime] = None
    """Images per forward pass, summed over processes; by default the whole batch. Images that are mixed with each other stay in one
    forward pass."""
    base_lr: PositiveFloat = 1e-3
    """Learning rate that ``lr_rule`` scales with the batch; the peak learning rate is 4e-3 at the default batch."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """Scaling of the peak learning rate with the batch. ``sqrt``: base_lr * sqrt(batch) / 8 (released code). ``linear``:
    base_lr * batch / 256 (MAE). Both are equal for a batch of 1024."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate at the end of the cosine."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Layer-wise learning rate decay: block d of D has the learning rate times layer_decay^(D + 1 - d)."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; not applied to one-dimensional parameters, class token and positions."""
    betas: Betas = Field([0.9, 0.999])
    """AdamW's beta1 and beta2."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Probability of stochastic depth at the last block; it grows linearly from 0 at the first."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    mixup: MixingStrength = 0.8
    """Alpha of Mixup, whose mixing ratio is drawn from Beta(alpha, alpha); 0 turns it off."""
    cutmix: MixingStrength = 1.0
    """Alpha of CutMix, whose mixing ratio is drawn from Beta(alpha, alpha); 0 turns it off."""
    mix_group: Batch = 32
    """Number of images that share one mixing ratio and box. The last group of a batch may be smaller. Source: released code of
    LUT, as MAE: the images of one GPU's micro-batch."""
    rand_augment: Annotated[str, AfterValidator(check_policy)] = "rand-m9-mstd0.5-inc1"
    """Augmentation policy, as timm writes it (:data:`POLICIES`); empty for none."""
    erasing: float = Field(0.25, ge=0, le=1)
    """Probability of random erasing with per-pixel noise."""
    crop_scale: CropScale = Field([0.08, 1.0])
    """Area of the random resized crop, as shares of the image's area. Source: default of MAE's code and timm."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip. Source: default of timm."""
    head_std: PositiveFloat = 2e-5
    """Standard deviation of the classifier's initial weights (truncated normal)."""
    eval_every: Annotated[Count | None, Runtime] = None
    """Epochs between evaluations during training, for the curve. By default only at the end."""
    save_every: Annotated[Count, Runtime] = 500
    """Optimiser steps between checkpoints."""
    shard: Annotated[bool, Runtime] = False
    """Shard parameters, gradients and optimiser state over the processes (FSDP2), for models that are too large for one GPU's
    memory. Not with ``compile``. No effect with one process."""
    compile: Annotated[Compile, Runtime] = "auto"
    """Compile the classifier block by block (torch.compile). A model without a sequence of blocks is not compiled with ``auto``, and
    as a whole with ``true``."""
    checkpointing: Annotated[bool, Runtime] = False
    """Activation checkpointing: keep only the input of each block and recompute the block in the backward pass. For plain Vision
    Transformers."""

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results; ``drop_path`` of 0 differs from that of older code for some models."""
        return super().affecting_results() | exact_drop_path(self.encoder.architecture.model, self.drop_path)

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the training images of all epochs, and the images of all evaluations."""
        return Samples(self.epochs * images["train"], (self._on_the_way + 1) * images["val"])

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay; they are saved every ``save_every`` steps and before every evaluation."""
        return min(keep, kept_checkpoints(images, keep, self.epochs, self.batch, self.save_every) + self._on_the_way)

    @property
    def _on_the_way(self) -> int:
        return (self.epochs - 1) // self.eval_every if self.eval_every else 0

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is used."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def lr(self) -> float:
        """Peak learning rate of the schedule, before layer decay."""
        scale = self.batch / 256 if self.lr_rule == "linear" else self.batch**0.5 / 8
        return self.base_lr * scale

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.epochs, self.warmup_epochs, self.batch, self.micro_batch)
        check_shard(self.shard, self.compile is True)
        for name in ("batch", "mix_group"):
            if self.mixes and getattr(self, name) % 2:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: mixup and CutMix need an even number. Change it, or set mixup and cutmix to 0"
                )
        return self
