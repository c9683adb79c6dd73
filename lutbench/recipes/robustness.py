"""Settings of the robustness stage: a test set whose images are shifted, and a finished classifier on it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lutbench.recipes.base import (
    Batch,
    Border,
    Count,
    CropShare,
    DatasetRecipe,
    Depth,
    Few,
    Form,
    Later,
    Pixels,
    PreprocessingRecipe,
    Recipe,
    ResizedBy,
    RunRecipe,
    Runtime,
    Samples,
    WeightsSource,
)
from lutbench.recipes.downstream import default_crop

Resizing = Literal["bicubic", "bilinear", "own", "crop", "whole"]
"""How an image comes to the classifier's size: its short side resized, then the centre; as the classifier's own
evaluation has it; the centre alone; as it is."""

STORED: tuple[Resizing, ...] = ("crop", "whole")
"""Those that never resize."""

SEVERITIES = [1, 2, 3, 4, 5]

EXTRA_CORRUPTIONS = ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
"""Corruptions that ImageNet-C's authors made for validation: reported apart, never part of a mean over the fifteen."""

DRAWN_FROST = (
    "Frost is drawn, not photographed, and changes an image by a fifth more than ImageNet-C's: its error and the means with it "
    "are this suite's own."
)
"""Mean change at severity 3 and 224 pixels: 82 grey levels, with the official photographs 68 (robustness/corruptions/frost.py)."""

_ONLY_OF = {
    "classes": ("parts", "gap"),
    "corruptions": ("corruptions", "severities", "extra", "alexnet"),
    "occlusion": ("drops", "drop_grid", "shuffles"),
}
"""Settings that have no effect on other kinds."""

NAMED_LABELS = ("classifier", "imagenet-1k", "imagenet-1k-numbers", "imagenet-9", "objectnet", "si-score")


class RobustnessDatasetRecipe(DatasetRecipe):
    """A set on which finished classifiers are measured: a published one or a user's own, ``PATH/CLASS/IMAGE.jpg``."""

    source: Annotated[Literal["folder", "corrupted", "photographs-a", "photographs-r", "photographs-o"], Runtime] = (
        "folder"
    )
    """``folder``: it is there. ``corrupted``: a corrupted copy of ``copy_of``, made at ``path`` before the first run.
    The others are made of photographs that ship in packages; they are named after the sets whose idea they follow."""
    copy_of: Annotated[str, Runtime] = ""
    """Folder below the data root, of class folders, that a corrupted copy is made of."""
    copy_side: Annotated[Pixels, Runtime] = 224
    """Side of a corrupted copy's images in pixels."""
    copy_per_class: Annotated[Count | None, Runtime] = None
    """Images of each class in a corrupted copy, evenly spaced; all if not given."""
    kind: Literal["classes", "corruptions", "detection", "occlusion"] = "classes"
    """``classes``: accuracy. ``corruptions``: error on every PATH/CORRUPTION/SEVERITY, and means of it. ``detection``:
    how well images of no class are told from those of ``known``, by how unsure the classifier is. ``occlusion``:
    accuracy where patches are dropped or shuffled."""
    parts: dict[str, str] = Field(default_factory=lambda: {"": ""})
    """Name and folder below ``path`` of every part of the set that has an accuracy of its own."""
    gap: list[str] = Field(default_factory=list)
    """Two parts: the accuracy on the first minus that on the second is measured too."""

    labels: str = "classifier"
    """What the names of class folders say: ``classifier`` (the classifier's own class names), ``imagenet-1k`` (WordNet
    identifiers), ``imagenet-1k-numbers`` (0 to 999), ``imagenet-9``, ``objectnet``, ``si-score``, or a JSON file below
    the data root that gives each folder a class or a list of classes, by name or by number."""
    subset: Literal["", "imagenet-a", "imagenet-r", "imagenet-o"] = ""
    """A published list of ImageNet classes that the set is about; those that its folders name if empty."""
    logits: list[Literal["all", "subset"]] = Field(["all"], min_length=1)
    """Which outputs of the classifier compete: all, or only those of the set's classes. The first is what tables print;
    all are recorded under their names."""
    real: str = ""
    """Label lists of ImageNet's validation images (ReaL) to measure as well: ``timm`` for those that ship in timm, or
    a JSON file below the data root; none if empty."""

    preprocessing: list[Resizing] = Field(["bicubic"], min_length=1)
    """Each is measured and recorded under its name, the first is what tables print. ``own`` has interpolation and crop as
    the classifier's weights say (timm's ``crop_pct``). ``crop`` and ``whole`` are for images that are stored at the
    classifier's size."""
    eval_crop: CropShare | None = None
    """Where images are resized, side of the crop over the resized short side; the run's if not given."""
    border: Border = 0
    """Pixels to cut off on every side before anything else (ObjectNet: 2)."""

    corruptions: list[str] = Field(default_factory=list)
    """Folders of ``kind = "corruptions"``; all that are there if not given."""
    severities: list[Count] = Field(SEVERITIES, min_length=1)
    extra: list[str] = Field(EXTRA_CORRUPTIONS)
    """Corruptions that are reported apart, where they are there."""
    alexnet: bool = False
    """Measure mCE: errors over AlexNet's. For ImageNet-C's own files only: of other images AlexNet's are unknown."""

    known: Annotated[str, Runtime] = ""
    """Of ``kind = "detection"``: folder below the data root with images of known classes, in class folders."""

    drops: list[Annotated[int, Field(ge=0, le=9)]] = Field(list(range(10)))
    """Of ``kind = "occlusion"``: how many tenths of the patches are dropped."""
    drop_grid: Depth = 14
    """Patches on a side (Naseer et al. 2021: 14)."""
    shuffles: list[Depth] = Field([2, 4, 8, 14, 16])
    """Tiles on a side of the images whose tiles are shuffled (the square ones of bytedance/ibot's eval_shuffle.sh)."""

    images: Annotated[Count | dict[str, Count] | None, Runtime] = None
    """How many there must be in every part, or by name of the part; not checked if not given."""
    classes: Annotated[Count | None, Runtime] = None
    """How many class folders there must be in every part; not checked if not given."""
    few: Few = None
    published: Annotated[dict[str, str], Runtime] = Field(default_factory=dict)
    """Task in lutbench/report/published.toml by what a metric's name says: its first word, the part, or the protocol."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has."""
        return ("test",)

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        if self.kind == "corruptions":
            return "mCE" if self.alexnet else "mean error"
        return "AUPR" if self.kind == "detection" else "top-1"

    @property
    def note(self) -> str:
        """What has to stand beside every number on it: that the suite's own corruptions have another frost."""
        return DRAWN_FROST if self.source == "corrupted" and "frost" in (self.corruptions or ["frost"]) else ""

    @property
    def image_counts(self) -> str:
        """How many images its parts have, such as ``75 x 50,000``, or the sum where parts differ; empty if it is not known."""
        if not isinstance(self.images, int):
            return f"{sum(self.images.values()):,}" if self.images else ""
        parts = len(self.corruptions) * len(self.severities) if self.kind == "corruptions" else len(self.parts)
        return f"{parts} x {self.images:,}" if parts > 1 else f"{self.images:,}"

    def same_as(self, other: DatasetRecipe) -> bool:
        """Return whether the two mean one dataset: several share the images of ImageNet, so by name too."""
        return super().same_as(other) and isinstance(other, RobustnessDatasetRecipe) and self.name == other.name

    @property
    def folder(self) -> str:
        """Where it lies, below the data root."""
        return self.source if self.source.startswith("photographs") else self.path

    @property
    def name(self) -> str:
        """How messages name the set."""
        return self.label or self.folder

    @property
    def occlusions(self) -> dict[str, tuple[Literal["drop", "shuffle"], int]]:
        """Cells of ``kind = "occlusion"``: ``drop 3/10`` with its tenths, ``shuffle 4x4`` with its tiles on a side."""
        dropped = {f"drop {tenths}/10": ("drop", tenths) for tenths in self.drops}
        return {**dropped, **{f"shuffle {side}x{side}": ("shuffle", side) for side in self.shuffles}}  # type: ignore[dict-item]

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results, without the settings of other kinds."""
        fields = super().affecting_results()
        others = {name for kind, names in _ONLY_OF.items() if kind != self.kind for name in names}
        return {name: value for name, value in fields.items() if name not in others}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.source == "corrupted") != bool(self.copy_of) or (self.copy_of and self.kind != "corruptions"):
            raise ValueError(
                'copy_of: name the images for source = "corrupted", kind = "corruptions", and only for that'
            )
        if self.path and self.source.startswith("photographs"):
            raise ValueError(f'path: a set of source = "{self.source}" has a folder of its own: leave it out')
        if self.labels not in NAMED_LABELS and not self.labels.endswith(".json"):
            raise ValueError(f"labels = {self.labels!r}: expected one of {', '.join(NAMED_LABELS)}, or a .json file")
        if self.subset and not self.labels.startswith("imagenet-1k"):
            raise ValueError(
                f"subset = {self.subset!r} is a list of ImageNet's classes: set labels = 'imagenet-1k' with it"
            )
        if self.real and self.kind != "classes":
            raise ValueError('real: for kind = "classes" only')
        if self.gap and (len(set(self.gap)) != 2 or not set(self.gap) <= set(self.parts)):
            raise ValueError(f"gap: expected two of the parts {', '.join(self.parts)}")
        if self.kind != "classes" and self.parts != {"": ""}:
            raise ValueError(f'parts: a set of kind = "{self.kind}" has parts of its own: leave them out')
        if (self.kind == "detection") != bool(self.known):
            raise ValueError('known: name the images of known classes for kind = "detection", and only for that')
        if self.kind == "corruptions" and (len(self.preprocessing) > 1 or self.logits != ["all"]):
            raise ValueError('kind = "corruptions" is measured in one preprocessing and over all logits')
        if self.alexnet and self.kind != "corruptions":
            raise ValueError('alexnet: for kind = "corruptions" only')
        if self.kind == "detection" and len(self.logits) > 1:
            raise ValueError('kind = "detection" is measured over one choice of logits')
        for name in ("preprocessing", "logits", "corruptions", "severities", "drops", "shuffles"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: one is named twice")
        return self


class ClassifierTable(PreprocessingRecipe):
    """``[classifier.NAME]`` of a suite file: a row of the robustness tables that no run of the suite made."""

    model: str
    """Name of the model in timm."""
    checkpoint: str = ""
    """File of its weights; timm's own if empty."""
    image_size: Pixels | None = None
    """Side of the input in pixels; the model's own if not given."""
    label: str = ""
    """How tables name it; its name in the suite file if empty."""
    encoder: str = ""
    """Its architecture, as in lutbench/report/published.toml."""
    published: str = ""
    """The method's name in lutbench/report/published.toml."""


class ClassifierSource(WeightsSource):
    """Where a classifier comes from: a fine-tuning or a linear probe, timm, or a checkpoint of a timm model."""

    kind: Literal["run", "timm", "checkpoint"]
    export: Annotated[Literal["classifier", "linear"], Later] = "classifier"
    """What a run left: a fine-tuning its classifier, a linear probe the layer behind its frozen encoder."""
    model: str = ""
    """Name of the model in timm; a run brings its own."""
    encoder: Annotated[str, Runtime] = ""
    """How tables name the architecture."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm."""
        return self.model

    @property
    def export_name(self) -> str:
        """What of a run's it is."""
        return self.export

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "run") == bool(self.model):
            raise ValueError("model: name it for timm and checkpoint; a run brings its own")
        if (self.kind == "checkpoint") != bool(self.path):
            raise ValueError("path: name the file of a checkpoint, and only of that")
        if self.export == "linear" and self.kind != "run":
            raise ValueError("export: a linear layer is a run's")
        return self


class RobustnessRecipe(RunRecipe):
    """One classifier on one robustness dataset: ``[robustness.NAME]`` has one such run for each of its sets and methods."""

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("test",)
    kind: Literal["robustness"] = "robustness"
    classifier: ClassifierSource
    set: RobustnessDatasetRecipe
    image_size: Pixels | None = None
    """Side of the input in pixels; the classifier's own if not given."""
    eval_crop: CropShare = Field(default_factory=lambda given: default_crop(given["image_size"] or 224))
    """Where images are resized and the set says nothing; that of the fine-tuning or probe if not given."""
    resized_by: ResizedBy = "Pillow"
    """What resizes the images of sets that are preprocessed ``bicubic`` or ``bilinear``."""
    eval_batch: Annotated[Batch, Runtime] = 256
    """Images per batch and process."""

    @property
    def form(self) -> Form:
        """What its images are decoded to: their pixels, unless Pillow resizes them."""
        resized = any(how not in STORED for how in self.set.preprocessing)
        return "Pillow" if resized and self.resized_by == "Pillow" else "pixels"

    @property
    def dataset(self) -> RobustnessDatasetRecipe:
        """The dataset that it reads."""
        return self.set

    @property
    def source(self) -> ClassifierSource:
        """Where its classifier comes from."""
        return self.classifier

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """What of its weights' preprocessing it applies: interpolation and crop are the set's, unless it asks for ``own``."""
        own = ("interpolation", "crop_pct", "crop_mode") if "own" in self.set.preprocessing else ()
        return ("mean", "std", *own)

    @property
    def encoder_label(self) -> str:
        """How tables name the classifier's architecture."""
        return self.classifier.encoder

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results: what resizes images where none is, or timm's own transform does, is none of them."""
        fields = super().affecting_results()
        if all(how in (*STORED, "own") for how in self.set.preprocessing):
            fields.pop("resized_by", None)
        return fields

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the images of all conditions, in every preprocessing."""
        return Samples(0, len(self.set.preprocessing) * images["test"])


class RobustnessTable(Recipe, extra="allow"):
    """``[robustness.NAME]`` of a suite file. The other keys of the table are those of :class:`RobustnessRecipe`."""

    sets: list[str] = Field(min_length=1)
    """[shifted.NAME] tables of the suite file, or published sets."""
    tasks: list[str] = Field(default_factory=list)
    """The [downstream.NAME] fine-tunings and linear probes whose classifiers are measured: of a method one of each at most. A probe's
    are rows ``TABLE/SET/linear-probe``, beside those of the fine-tuned, ``TABLE/SET``."""
    title: str = ""
    """What tables put before the sets' names; its name in the suite file if empty."""
    methods: list[str] | None = None
    """The methods it is run for; all that the tasks are run for, if not given."""
    classifiers: list[str] | None = None
    """The [classifier.NAME] tables it is run for; all if not given."""
    preprocessing: list[Resizing] | None = Field(None, min_length=1)
    """How the images of all its sets are preprocessed; as each set says if not given."""
