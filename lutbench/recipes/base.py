"""Recipes: the typed and validated settings of a run. A field either affects results or does not.

Fields that affect results are part of a run's identity; fields marked :class:`Runtime` (workers, logging interval,
paths) are not. Unknown keys, wrong types and values out of range are rejected; for an unknown key the error suggests
the nearest known name.
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
            "a name has at most 64 characters: letters a to z and A to Z, digits, '.', '_' and '-'; it does not start with '.'"
        )
    return text


Name = Annotated[str, AfterValidator(check_name)]
"""The name of a suite or of a table in a suite file. Folders and files are named after it."""

# Upper bounds are far above anything ever trained: they catch typing errors before these fill the memory.
Count = Annotated[int, Field(gt=0, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Pixels = Annotated[int, Field(gt=0, le=8192)]
Border = Annotated[int, Field(ge=0, le=8192)]
"""A number of pixels that may be 0."""
Width = Annotated[int, Field(gt=0, le=2**16)]
Depth = Annotated[int, Field(gt=0, le=1024)]
"""Number of layers, of heads, or of patches per side."""
CropShare = Annotated[float, Field(ge=0.1, le=1)]
"""Side of the evaluation crop divided by the resized short side. Below 0.1, images would be enlarged beyond recognition."""
Batch = Annotated[int, Field(gt=0, le=2**17)]
Processes = Annotated[int, Field(ge=0, le=1024)]
"""Number of threads or of loader processes."""


Compile = bool | Literal["auto"]
"""Whether to compile a network, block by block; ``auto``: only on a GPU. Compiling changes the last bits of results, as
another device does."""


class Runtime:
    """Marks a field that cannot change a result."""


class Later:
    """Marks a field that was added when runs existed already. At its default value it is left out of the identity, so that the
    identities of older runs stay the same."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet"]

Trackers = Annotated[list[TrackerName], Runtime]
"""Experiment trackers that a training logs to, see :mod:`lutbench.train.trackers`."""
Few = Annotated[int | None, Later, Field(ge=2, le=10**6)]
"""Read at most this many images of each split or condition, taken from a few classes. For smoke runs, see
:mod:`lutbench.smoke`."""


class Recipe(BaseModel):
    """Base class of all settings: immutable, strict about types; rejects unknown keys, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, as plain JSON values. Subclasses drop fields without effect given the others."""
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
    """A Vision Transformer from timm, by name, with optional changes of its size.

    Source of the defaults: LUT's release, ViT-B.
    """

    label: Annotated[str, Runtime] = ""
    """Name of the architecture in tables, such as ``ViT-B/16``. If empty, the model's name."""
    model: str = "vit_base_patch16_224"
    """Name of the model in timm. LUT's release has ViT-S, ViT-B and ViT-L with patches of 16 pixels."""
    image_size: Pixels = 224
    """Side length of the square input in pixels."""
    patch_size: Pixels | None = None
    """Side length of a patch in pixels; by default as timm defines the model. Source: timm."""
    width: Width | None = None
    """Number of features of a token; by default as timm defines the model. Source: timm."""
    depth: Depth | None = None
    """Number of transformer blocks; by default as timm defines the model. Source: timm."""
    heads: Depth | None = None
    """Attention heads of a block; by default as timm defines the model. Source: timm."""


class DatasetRecipe(Recipe):
    """A dataset: its type and its folder.

    Source of the defaults: our choice.
    """

    label: Annotated[str, Runtime] = ""
    """Name of the dataset in tables. If empty, its name in the suite file."""
    source: str
    """Layout of the dataset on disk, or what builds it."""
    path: Annotated[str, Runtime] = ""
    """Folder below the data root. Not needed for datasets built from photographs that ship in Python packages."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset."""
        return ("train", "val")

    @property
    def folder(self) -> str:
        """Folder of the dataset, relative to the data root."""
        return self.path

    @property
    def printed_metric(self) -> str:
        """The main metric, which tables print first."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """A sentence to print beside every number measured on the dataset; empty if there is none."""
        return ""

    @property
    def image_counts(self) -> str:
        """Number of images in its parts, such as ``75 x 50,000``; empty for a dataset that has splits."""
        return ""

    def same_as(self, other: "DatasetRecipe") -> bool:
        """Return whether both describe the same dataset: same source, same folder."""
        return (type(self), self.source, self.folder) == (type(other), other.source, other.folder)


class DataRecipe(DatasetRecipe):
    """An image dataset with a training and a validation split.

    Source of the defaults: our choice.
    """

    source: Literal[
        "folder", "huggingface", "photographs", "photograph-tiles",
        "cub", "cars", "aircraft", "flowers102", "pets", "dogs", "inaturalist", "food101", "dtd", "places365",
    ] = "folder"  # fmt: skip
    """``folder``: class folders under train and val, or images without labels. ``huggingface``: a dataset of the library
    `datasets`, local or on the Hub. ``photographs`` and ``photograph-tiles``: built from photographs that ship in Python
    packages. The others: a published dataset as its archive unpacks, with the authors' lists
    (``lutbench/data/official.py``); ``train`` and ``val`` then name official splits."""
    path: Annotated[str, Runtime] = ""
    """Folder below the data root, or the name of the Hugging Face dataset."""
    train: str = "train"
    """Name of the training split or folder."""
    val: str = "val"
    """Name of the validation split or folder. May be empty for a dataset that is used only for pre-training."""
    image_column: str = "image"
    """Column of a Hugging Face dataset with the images."""
    label_column: str = "label"
    """Column of a Hugging Face dataset with the labels; empty for a dataset without labels."""
    revision: str | None = None
    """Git revision of a dataset on the Hub, to pin its version."""
    undecodable: Literal["stop", "skip"] = "stop"
    """What to do with an image that cannot be decoded: stop the run, or skip the image and count it."""
    metric: Annotated[Metric, Runtime] = "top-1"
    """The classification metric that tables print: accuracy over images (always recorded), or accuracy averaged over classes."""
    bits: Annotated[int | None, Later, Field(ge=8, le=16)] = None
    """Bit depth of greyscale images with more than 8 bits per pixel; the upper 8 of these bits are kept. Example: 12 for the
    pixels of a 12-bit camera in 16-bit files. Default 16; a run stops if the images use less than a quarter of that range."""
    config: Annotated[str, Later] = ""
    """Configuration (subset) of a Hugging Face dataset that has several."""
    streaming: Annotated[bool, Later] = False
    """Stream a Hugging Face dataset, without storing it on disk. For pre-training only."""
    held_out: Annotated[float | None, Later, Field(gt=0, lt=1)] = None
    """Hold out this share of each class's training images and use them in place of ``val``. For choosing settings; final numbers
    are measured on the real ``val`` by another suite. See :mod:`lutbench.data.held_out`."""
    few: Few = None
    """Read at most this many images of each split, taken from a few classes; by default all. For smoke runs, see
    :mod:`lutbench.smoke`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset. One that is used only for pre-training has no val."""
        return ("train", "val") if self.val or self.held_out else ("train",)

    @property
    def folder(self) -> str:
        """Folder of the dataset, relative to the data root."""
        return self.source if self.source.startswith("photograph") else self.path

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        return self.metric

    @model_validator(mode="after")
    def _settings_of_hugging_faces_sets(self) -> Self:
        if self.streaming and self.source != "huggingface":
            raise ValueError(f"streaming = true needs source = 'huggingface', found source = {self.source!r}")
        if self.config and self.source != "huggingface":
            raise ValueError(
                f"config is the configuration of a Hugging Face dataset, but source = {self.source!r}: remove config"
            )
        if self.streaming and self.held_out:
            raise ValueError(
                "held_out selects images by class, which streaming = true cannot do: remove one of the two"
            )
        return self


Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
"""One value per channel (red, green, blue), for pixels in [0, 1]. Weights trained on unnormalised pixels have mean 0."""


class PreprocessingRecipe(Recipe):
    """Preprocessing of the images that weights were trained on. What is not given is read from the weights' configuration.

    See :func:`lutbench.models.preprocessing.preprocessing_of`.

    Source of the defaults: the weights, as their training used them.
    """

    mean: Annotated[Mean | None, Later] = None
    """Mean that is subtracted from pixels in [0, 1], one value per channel."""
    std: Annotated[Deviation | None, Later] = None
    """Standard deviation by which pixels are then divided, one value per channel."""
    interpolation: Annotated[Literal["bicubic", "bilinear", "lanczos", "nearest"] | None, Later] = None
    """Interpolation for resizing images."""
    crop_pct: Annotated[CropShare | None, Later] = None
    """Side of the evaluation crop divided by the resized short side (timm's ``crop_pct``). Used unless the task gives
    ``eval_crop``; for classifiers in the robustness stage, used with ``preprocessing = "own"``."""

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing settings that are given."""
        return self.model_dump(include=set(PreprocessingRecipe.model_fields), exclude_none=True)


class WeightsSource(PreprocessingRecipe):
    """Where the initial weights of a run come from."""

    kind: Literal["run", "timm", "checkpoint", "scratch"]
    path: Annotated[str, Runtime] = ""
    """File or folder of a checkpoint. Its hash, not its path, is part of the identity."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm; empty for the model of a run, which defines its own architecture."""
        raise NotImplementedError

    @property
    def snapshot_share(self) -> float | None:
        """Share of the pre-training after which the encoder was saved; None for a final encoder and for one without pre-training here."""
        return None

    @property
    def export_name(self) -> str:
        """For ``kind = "run"``, the NAME of the file ``NAME.safetensors`` in that run's folder."""
        raise NotImplementedError


class Samples(NamedTuple):
    """Number of images that pass through the network in one run. One image at six scales counts as six."""

    train: int
    """Images for training, or encoded for a probe."""
    evaluate: int
    """Images in evaluations, during and after training."""


class TrainingSubset(NamedTuple):
    """A subset of a training split, see :func:`lutbench.data.subsets.subset_of`. Exactly one of the first three is given."""

    shots: int | None = None
    """Number of images per class."""
    share: float | None = None
    """Share of the images of each class."""
    file: str = ""
    """A file below the data root that lists images."""
    draw: int = 0
    """Number of the random draw, for shots and share."""

    def __str__(self) -> str:
        """Return ``5 images of each class, draw 0``, or the name of the list."""
        if self.file:
            return f"the list {PurePath(self.file).name}"
        many = f"{self.shots} image{'s' if self.shots != 1 else ''}" if self.shots else f"{100 * (self.share or 1):g} %"
        return f"{many} of each class, draw {self.draw}"


Form = Literal["Pillow", "pixels"]
"""What images are decoded to: Pillow images, or arrays (H, W, 3) of the same pixels."""

ResizedBy = Annotated[Literal["Pillow", "torchvision"], Later]
"""Library that resizes images: Pillow (as other code bases do), or torchvision, up to twice as fast; pixels differ by at most one
grey level (our choice). No effect where nothing is resized, or where the interpolation is neither bicubic nor bilinear."""


MOST_WORKERS = 32
"""Upper limit of the default number of loader processes per training process (our choice: more than a GPU needs)."""


def default_workers() -> int:
    """Return the available CPU cores divided by the training processes that torchrun started on this machine; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class RunRecipe(Recipe):
    """All settings of one run, and what follows from the settings alone.

    Source of the defaults: our choice.
    """

    revision: ClassVar[int]
    """Revision of the code for this kind of run. Raised when results change for the same settings; finished runs and records of an
    older revision are then stale."""
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    """The splits of the dataset that the run reads."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 if the GPU supports it, or, for ViTs of width 192 or more, if the CPU does (avx512_bf16 or amx_bf16); else
    float32. A resumed run keeps the precision it started with. Losses and targets are always float32 (our choice)."""
    threads: Processes = 0
    """PyTorch threads on a CPU; 0 means one per core. The last bits of results depend on it: set a number for equal results on
    machines with different numbers of cores. For a toy model on two cores, one thread and one loader worker work well."""
    workers: Annotated[Processes, Runtime] = Field(default_factory=default_workers)
    """Loader processes per training process. By default the CPU cores of the machine divided by its training processes, those of
    parallel runs (``--jobs``) included."""

    @property
    def dataset(self) -> DatasetRecipe:
        """The dataset that the run reads."""
        return self.data  # type: ignore[attr-defined, no-any-return]

    @property
    def source(self) -> WeightsSource | None:
        """Where the initial weights come from; None if there are none."""
        return None

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """The fields of the weights' preprocessing (:class:`lutbench.models.preprocessing.Preprocessing`) that the run applies."""
        return ("mean", "std", "interpolation")

    def crop_for(self, crop_pct: float | None) -> float | None:
        """Return the ``crop_pct`` to apply, given that of the weights; None if the run uses its own crop."""
        return crop_pct

    @property
    def encoder_exports(self) -> tuple[str, ...]:
        """The encoders that the run saves for other runs, by the NAME of their files ``NAME.safetensors``."""
        return ()

    @property
    def encoder_label(self) -> str:
        """Name of the architecture in tables."""
        return ""

    @property
    def metric(self) -> str | None:
        """The metric that tables print, if the settings choose one; None: the first metric of the record."""
        return None

    @property
    def cache_side(self) -> int | None:
        """Short side in pixels of the cached images that the run trains on; None if it reads the original images."""
        return None

    @property
    def chosen(self) -> tuple[str, ...]:
        """Dotted names of the implementations that its settings select from the tables of :mod:`lutbench.kinds`."""
        return ()

    @property
    def training_subset(self) -> TrainingSubset | None:
        """The subset of the training split that the run reads; None if it reads the whole split."""
        return None

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return how many images pass through the network. By default every split once; some kinds override this.

        ``images`` gives the size of every split whose size is known.

        Raises:
            KeyError: if a needed split is not in ``images``.
        """
        evaluated = (images[split] for split in self.splits if split != "train")
        return Samples(images["train"] if "train" in self.splits else 0, sum(evaluated))

    def warning(self, images: Mapping[str, int]) -> str:
        """Return a warning about settings that are valid but probably a mistake; empty if there is none.

        ``images`` gives the size of every split whose size is known.
        """
        return ""

    def checkpoints(self, images: Mapping[str, int], keep: int) -> int:
        """Return how many checkpoints stay on disk if a run keeps the last ``keep``; 0 for kinds that save none.

        ``images`` gives the size of every split whose size is known. If a needed size is unknown, return ``keep``.
        """
        return 0


def _ascending(shares: list[float]) -> list[float]:
    if shares[0] > shares[1]:
        raise ValueError("expected the smaller share first, then the larger")
    return shares


Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
"""Adam's two decay rates, beta1 and beta2."""

CropScale = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_ascending)
]
"""Smallest and largest area of a random crop, as shares of the image's area."""
