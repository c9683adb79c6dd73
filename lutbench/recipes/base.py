"""Recipes: typed, checked settings in which a field either affects results or does not.

Fields that affect results are part of a run's identity; fields marked :data:`Runtime` (workers, log cadence,
paths) are not. Unknown keys, wrong types and values out of range are refused with the nearest known name.
"""

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Metric = Literal["top-1", "mean per class"]
"""Metrics of a classification: accuracy over images, or its mean over classes."""

SEED_BOUND = 2**32
"""NumPy's legacy generator, which MMSegmentation seeds, takes 32 bits."""


def check_name(text: str) -> str:
    """Return a name that folders and files can have on every system; raises ValueError for any other."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(
            "a name has at most 64 of the letters a to z and A to Z, digits, '.', '_' and '-', and no '.' at its beginning"
        )
    return text


Name = Annotated[str, AfterValidator(check_name)]
"""A name in a suite file, or that of the suite: folders and files are named by it."""

# Bounds far above what anybody has trained, so that a slip of the keyboard is answered before it fills the memory.
Count = Annotated[int, Field(gt=0, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Pixels = Annotated[int, Field(gt=0, le=8192)]
Border = Annotated[int, Field(ge=0, le=8192)]
"""Pixels that may be none."""
Width = Annotated[int, Field(gt=0, le=2**16)]
Depth = Annotated[int, Field(gt=0, le=1024)]
"""Layers, heads, or patches on a side."""
CropShare = Annotated[float, Field(ge=0.1, le=1)]
"""Side of the crop that is evaluated over the resized short side: below a tenth, images would be enlarged to nothing known."""
Batch = Annotated[int, Field(gt=0, le=2**17)]
Processes = Annotated[int, Field(ge=0, le=1024)]
"""Threads, or loader processes."""


Compile = bool | Literal["auto"]
"""Whether a network is compiled, block by block; ``auto``: where the device is a GPU. The last bits differ as between devices."""


class Runtime:
    """Marks a field that cannot change a result."""


class Later:
    """Marks a field that came after runs were made: at its default it is no part of the identity, which those keep."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet"]

Trackers = Annotated[list[TrackerName], Runtime]
"""Where a training is watched, see :mod:`lutbench.train.trackers`."""
Few = Annotated[int | None, Later, Field(ge=2, le=10**6)]
"""Of each split or condition so many images at most are read, some of a few classes: what smoke runs take, see :mod:`lutbench.smoke`."""


class Recipe(BaseModel):
    """Base of all settings: frozen, strict about types, closed to unknown keys, to infinity and to NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, as plain JSON values; subclasses drop what has no effect in context."""
        fields: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if Runtime in info.metadata or (Later in info.metadata and value == info.default):
                continue
            fields[name] = (
                value.affecting_results()
                if isinstance(value, Recipe)
                else self.model_dump(mode="json", include={name})[name]
            )
        return fields


class EncoderRecipe(Recipe):
    """A Vision Transformer of timm, by name, with the changes that make it smaller or larger."""

    label: Annotated[str, Runtime] = ""
    """How tables name the architecture, such as ``ViT-B/16``; the model's name if empty."""
    model: str = "vit_base_patch16_224"
    """Name in timm (paper: ViT-S/B/L with patch 16)."""
    image_size: Pixels = 224
    """Side of the square input in pixels (paper)."""
    patch_size: Pixels | None = None
    """Side of a patch in pixels; timm's for the model if not given, like the next three."""
    width: Width | None = None
    depth: Depth | None = None
    heads: Depth | None = None


class DatasetRecipe(Recipe):
    """A dataset: what is behind it, and where it lies."""

    label: Annotated[str, Runtime] = ""
    """How tables name the dataset; its name in the suite file if empty."""
    source: str
    path: Annotated[str, Runtime] = ""
    """Folder below the data root; a dataset of photographs that ship in packages has its own."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has."""
        return ("train", "val")

    @property
    def folder(self) -> str:
        """Where it lies, below the data root."""
        return self.path

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """What has to stand beside every number on it, a sentence; empty if nothing."""
        return ""

    @property
    def image_counts(self) -> str:
        """How many images its parts have, such as ``75 x 50,000``; empty of one that has splits."""
        return ""

    def same_as(self, other: "DatasetRecipe") -> bool:
        """Return whether the two mean one dataset: of the same source, in the same folder."""
        return (type(self), self.source, self.folder) == (type(other), other.source, other.folder)


class DataRecipe(DatasetRecipe):
    """One image set with a training and a validation split."""

    source: Literal[
        "folder", "huggingface", "photographs", "photograph-tiles",
        "cub", "cars", "aircraft", "flowers102", "pets", "dogs", "inaturalist", "food101", "dtd", "places365",
    ] = "folder"  # fmt: skip
    """``folder`` (class folders under train and val, or any images without labels), ``huggingface`` (a
    `datasets` set, local or on the Hub), one of the two sets built from photographs that ship in packages, or a set
    as it unpacks, with its authors' lists (``lutbench/data/official.py``): its ``train`` and ``val`` are official splits."""
    path: Annotated[str, Runtime] = ""
    """Folder below the data root, or the name of the Hugging Face set."""
    train: str = "train"
    """Name of the training split or folder."""
    val: str = "val"
    """Name of the validation split or folder; may be empty for a set that is only pre-trained on."""
    image_column: str = "image"
    label_column: str = "label"
    """Columns of a Hugging Face set; an empty label column means no labels."""
    revision: str | None = None
    """Git revision of a Hub set, to pin it."""
    undecodable: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does: stop the run, or be passed over and counted."""
    metric: Annotated[Metric, Runtime] = "top-1"
    """The metric of a classification that tables print: accuracy over images, which is recorded in any case, or its mean over classes."""
    bits: Annotated[int | None, Later, Field(ge=8, le=16)] = None
    """Bits that are used of grey pixels of more than 8, whose upper 8 are kept: 12 for a camera of 12 bits in 16-bit files. If
    not given 16, and a run stops where the images use less than a quarter of that range."""
    config: Annotated[str, Later] = ""
    """The configuration of a Hugging Face set that has several."""
    streaming: Annotated[bool, Later] = False
    """Read a Hugging Face set as a stream, which needs no room for it on disk; for pre-training only."""
    held_out: Annotated[float | None, Later, Field(gt=0, lt=1)] = None
    """This share of the training images of each class takes the place of ``val``, and is not trained on: settings are chosen on it,
    and tables print what is measured on the real ``val`` by another suite. See :mod:`lutbench.data.held_out`."""
    few: Few = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has: a set that is only pre-trained on has no val."""
        return ("train", "val") if self.val or self.held_out else ("train",)

    @property
    def folder(self) -> str:
        """Where it lies, below the data root."""
        return self.source if self.source.startswith("photograph") else self.path

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        return self.metric

    @model_validator(mode="after")
    def _settings_of_hugging_faces_sets(self) -> Self:
        if self.streaming and self.source != "huggingface":
            raise ValueError(f"streaming = true reads Hugging Face sets; source = {self.source!r} has files of its own")
        if self.config and self.source != "huggingface":
            raise ValueError(f"config names a configuration of a Hugging Face set; source = {self.source!r} has none")
        if self.streaming and self.held_out:
            raise ValueError(
                "held_out takes images out of a set by their classes; streaming = true reads it as it comes. Give one"
            )
        return self


Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
"""A value of each channel (red, green, blue), of pixels between 0 and 1; some weights are trained on pixels as they are, with mean 0."""


class PreprocessingRecipe(Recipe):
    """How the images were prepared that weights were trained on; what is not given, the weights' own description says.

    See :func:`lutbench.models.preprocessing.preprocessing_of`.
    """

    mean: Annotated[Mean | None, Later] = None
    std: Annotated[Deviation | None, Later] = None
    """Mean and standard deviation that pixels are normalised by."""
    interpolation: Annotated[Literal["bicubic", "bilinear", "lanczos", "nearest"] | None, Later] = None
    """How images are resized."""
    crop_pct: Annotated[CropShare | None, Later] = None
    """Side of the crop in evaluation over the resized short side, where a task's table does not give ``eval_crop`` itself. Of
    classifiers where images are preprocessed as their ``own``."""

    def preprocessing(self) -> dict[str, Any]:
        """Return those of these settings that are given."""
        return self.model_dump(include=set(PreprocessingRecipe.model_fields), exclude_none=True)


class WeightsSource(PreprocessingRecipe):
    """Where the weights come from that a run starts from."""

    kind: Literal["run", "timm", "checkpoint", "scratch"]
    path: Annotated[str, Runtime] = ""
    """File or folder of a checkpoint; its hash is part of the identity."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm; empty for a run's, which brings its own."""
        raise NotImplementedError

    @property
    def snapshot_share(self) -> float | None:
        """At which share of a pre-training it is that run's encoder; None at its end, and of all that no pre-training made."""
        return None

    @property
    def export_name(self) -> str:
        """Of ``kind = "run"``, the NAME of the ``NAME.safetensors`` in that run's folder."""
        raise NotImplementedError


class Samples(NamedTuple):
    """Images that go through the network in one run; the six scales of one image are six."""

    train: int
    """Images trained on, or encoded for a probe."""
    evaluate: int
    """Images evaluated, on the way and at the end."""


class TrainingSubset(NamedTuple):
    """A part of the images of a training split, see :func:`lutbench.data.subsets.subset_of`: one of the first three is given."""

    shots: int | None = None
    """So many images of each class."""
    share: float | None = None
    """This share of the images of each class."""
    file: str = ""
    """A list of images, below the data root."""
    draw: int = 0
    """Which images shots and shares are."""

    def __str__(self) -> str:
        """Return ``5 images of each class, draw 0``, or the name of the list."""
        if self.file:
            return f"the list {PurePath(self.file).name}"
        many = f"{self.shots} image{'s' if self.shots != 1 else ''}" if self.shots else f"{100 * (self.share or 1):g} %"
        return f"{many} of each class, draw {self.draw}"


Form = Literal["Pillow", "pixels"]
"""What images are decoded to: Pillow's, or arrays (H, W, 3) of the same pixels."""

ResizedBy = Annotated[Literal["Pillow", "torchvision"], Later]
"""What resizes images: Pillow, as libraries expect it, or torchvision, from pixels as they are decoded. That is up to twice as
fast and differs by a grey level at most (our choice). Where nothing is resized, or an interpolation is neither bicubic nor bilinear, it
changes nothing."""


MOST_WORKERS = 32
"""Loader processes of one training process at most, where nobody says how many (our choice: more than a GPU needs)."""


def default_workers() -> int:
    """Return the cores that this process may use over the training processes that torchrun started on this machine, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class RunRecipe(Recipe):
    """All settings of one run, and what follows from them alone."""

    revision: ClassVar[int]
    """Number of the code that performs it: raised whenever its results change for the same settings. Finished runs and
    records of an older revision are then stale."""
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    """The splits of its dataset that it reads."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 where the GPU has it or, for ViTs of width 192 and above, the CPU multiplies it (avx512_bf16 or amx_bf16); else
    float32. A run that has begun keeps what it began with. Losses and targets are float32 always (our choice)."""
    threads: Processes = 0
    """torch's threads on a CPU; 0 takes one per core. The last bits depend on it: give a number where machines with
    different numbers of cores shall agree. One thread and one loader worker suit a toy on two cores."""
    workers: Annotated[Processes, Runtime] = Field(default_factory=default_workers)
    """Loader processes per training process: the cores over the training processes of this machine, if not given; those of runs side
    by side (``--jobs``) count."""

    @property
    def dataset(self) -> DatasetRecipe:
        """The dataset that it reads."""
        return self.data  # type: ignore[attr-defined, no-any-return]

    @property
    def source(self) -> WeightsSource | None:
        """Where the weights come from that it starts from; None if it starts from none."""
        return None

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """What of its weights' preprocessing (:class:`lutbench.models.preprocessing.Preprocessing`) it applies to images."""
        return ("mean", "std", "interpolation")

    def crop_for(self, crop_pct: float | None) -> float | None:
        """Return the ``crop_pct`` that it applies where its weights bring this one; None for its own."""
        return crop_pct

    @property
    def encoder_exports(self) -> tuple[str, ...]:
        """The encoders that it leaves for other runs to start from, by the NAME of their ``NAME.safetensors``."""
        return ()

    @property
    def encoder_label(self) -> str:
        """How tables name the architecture."""
        return ""

    @property
    def metric(self) -> str | None:
        """The metric that tables print, where the settings choose one; the record's first otherwise."""
        return None

    @property
    def cache_side(self) -> int | None:
        """Short side of the cache that it reads its training images from; None if it reads them as they are."""
        return None

    @property
    def chosen(self) -> tuple[str, ...]:
        """Dotted names of what its settings choose out of tables of :mod:`lutbench.kinds`, beside the module of its kind."""
        return ()

    @property
    def training_subset(self) -> TrainingSubset | None:
        """The part of the training split that it reads; None if it reads all of it."""
        return None

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return how many images go through the network: unless a kind says otherwise, those of its splits once.

        ``images`` has the size of every split whose size is known.

        Raises:
            KeyError: if it lacks a split that counts.
        """
        evaluated = (images[split] for split in self.splits if split != "train")
        return Samples(images["train"] if "train" in self.splits else 0, sum(evaluated))

    def warning(self, images: Mapping[str, int]) -> str:
        """Return what a user should know before a run of it that can be done and will hardly be what was meant; empty if nothing.

        ``images`` has the size of every split whose size is known.
        """
        return ""

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay on disk, of which a run keeps the last ``keep``: none, unless a kind saves any.

        ``images`` has the size of every split whose size is known; where it matters and is not, they are ``keep``.
        """
        return 0


def _ascending(shares: list[float]) -> list[float]:
    if shares[0] > shares[1]:
        raise ValueError("the smaller share comes first")
    return shares


Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
"""The two decay rates of Adam's averages."""

CropScale = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_ascending)
]
"""Least and greatest share of an image's area in a random crop."""
