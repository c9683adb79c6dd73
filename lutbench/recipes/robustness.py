"""Settings of the robustness stage: a trained classifier is evaluated on a test set with a distribution shift."""

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
"""How an image is brought to the classifier's input size. ``bicubic``, ``bilinear``: resize the short side, then centre crop.
``own``: as in the classifier's own evaluation. ``crop``: centre crop only. ``whole``: unchanged."""

STORED: tuple[Resizing, ...] = ("crop", "whole")
"""The options that never resize."""

SEVERITIES = [1, 2, 3, 4, 5]

EXTRA_CORRUPTIONS = ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
"""ImageNet-C's extra corruptions, meant for validation: reported separately, not part of the mean over the fifteen."""

DRAWN_FROST = (
    "Frost is drawn, not photographed, and changes an image by a fifth more than ImageNet-C's: the error on frost, and means "
    "that include it, are not comparable with published ones."
)
"""Mean change of a pixel at severity 3 and 224 pixels: 82 grey levels; 68 with the official photographs
(robustness/corruptions/frost.py)."""

_ONLY_OF = {
    "classes": ("parts", "gap"),
    "corruptions": ("corruptions", "severities", "extra", "alexnet"),
    "occlusion": ("drops", "drop_grid", "shuffles"),
}
"""Settings that have an effect on this kind only."""

NAMED_LABELS = ("classifier", "imagenet-1k", "imagenet-1k-numbers", "imagenet-9", "objectnet", "si-score")


class RobustnessDatasetRecipe(DatasetRecipe):
    """A test set on which trained classifiers are evaluated: a published one or your own, ``PATH/CLASS/IMAGE.jpg``.

    Source of the defaults: our choice. Published sets state their own values, with the source of each, in
    ``lutbench/data/sets.toml``.
    """

    source: Annotated[Literal["folder", "corrupted", "photographs-a", "photographs-r", "photographs-o"], Runtime] = (
        "folder"
    )
    """``folder``: the images exist on disk. ``corrupted``: a corrupted copy of ``copy_of``, written to ``path`` before the first run.
    The others are built from photographs that ship in Python packages, and named after the dataset whose idea they follow."""
    copy_of: Annotated[str, Runtime] = ""
    """For ``source = "corrupted"``: folder below the data root with class folders, from which the copy is made."""
    copy_side: Annotated[Pixels, Runtime] = 224
    """Side length of the images in a corrupted copy, in pixels."""
    copy_per_class: Annotated[Count | None, Runtime] = None
    """Number of images per class in a corrupted copy, evenly spaced; by default all."""
    kind: Literal["classes", "corruptions", "detection", "occlusion"] = "classes"
    """``classes``: accuracy. ``corruptions``: error on every PATH/CORRUPTION/SEVERITY, and mean errors. ``detection``:
    out-of-distribution detection against the images of ``known``, scored by the classifier's confidence. ``occlusion``:
    accuracy with patches dropped or shuffled."""
    parts: dict[str, str] = Field(default_factory=lambda: {"": ""})
    """Parts of the test set for which accuracy is measured separately: name and folder below ``path``."""
    gap: list[str] = Field(default_factory=list)
    """Names of two parts: also measure the accuracy on the first minus that on the second."""

    labels: str = "classifier"
    """How the names of class folders map to classes: ``classifier`` (the classifier's own class names), ``imagenet-1k`` (WordNet
    identifiers), ``imagenet-1k-numbers`` (0 to 999), ``imagenet-9``, ``objectnet``, ``si-score``, or a JSON file below
    the data root that maps each folder to a class or a list of classes, by name or by number."""
    subset: Literal["", "imagenet-a", "imagenet-r", "imagenet-o"] = ""
    """Published list of the ImageNet classes in the test set. If empty, the classes of its folders."""
    logits: list[Literal["all", "subset"]] = Field(["all"], min_length=1)
    """Logits among which the prediction is taken: ``all``, or ``subset``, only those of the test set's classes. Each is recorded
    under its name; tables print the first."""
    real: str = ""
    """Also measure accuracy on the ReaL labels of ImageNet's validation images: ``timm`` for the labels that ship in timm, or
    a JSON file below the data root; empty for none."""

    preprocessing: list[Resizing] = Field(["bicubic"], min_length=1)
    """How images are brought to the input size. ``bicubic``, ``bilinear``: resize the short side, then centre crop. ``own``:
    interpolation and crop of the classifier's weights (timm's ``crop_pct``). ``crop`` (centre crop only) and ``whole`` (unchanged):
    for images stored at the input size. Each is measured and recorded under its name; tables print the first."""
    eval_crop: CropShare | None = None
    """If images are resized: side of the centre crop divided by the resized short side. By default the run's."""
    border: Border = 0
    """Pixels to cut off on every side of the original image (ObjectNet: 2)."""

    corruptions: list[str] = Field(default_factory=list)
    """For ``kind = "corruptions"``: the corruption folders; by default all that exist."""
    severities: list[Count] = Field(SEVERITIES, min_length=1)
    """For ``kind = "corruptions"``: the severities, which are the names of the folders in a corruption. Source: ImageNet-C."""
    extra: list[str] = Field(EXTRA_CORRUPTIONS)
    """Corruptions that are reported separately, if they exist. Source: ImageNet-C, whose four extra corruptions are for
    validation."""
    alexnet: bool = False
    """Measure mCE, with errors relative to AlexNet's. Only for the original images of ImageNet-C: for others, AlexNet's errors are
    unknown."""

    known: Annotated[str, Runtime] = ""
    """For ``kind = "detection"``: folder below the data root with in-distribution images, in class folders."""

    drops: list[Annotated[int, Field(ge=0, le=9)]] = Field(list(range(10)))
    """For ``kind = "occlusion"``: tenths of the patches to drop; 3 means 30 %. Source: Naseer et al. 2021, their released code."""
    drop_grid: Depth = 14
    """For ``kind = "occlusion"``: patches per side of the grid. Source: Naseer et al. 2021."""
    shuffles: list[Depth] = Field([2, 4, 8, 14, 16])
    """For ``kind = "occlusion"``: tiles per side of the images whose tiles are shuffled. Source: the square grids of
    bytedance/ibot's eval_shuffle.sh."""

    images: Annotated[Count | dict[str, Count] | None, Runtime] = None
    """Expected number of images in every part, or a table with the number for each part; by default not checked."""
    classes: Annotated[Count | None, Runtime] = None
    """Expected number of class folders in every part; by default not checked."""
    few: Few = None
    """Read at most this many images of each condition; by default all. For smoke runs, see :mod:`lutbench.smoke`."""
    published: Annotated[dict[str, str], Runtime] = Field(default_factory=dict)
    """Names of tasks in lutbench/report/published.toml, by a key from the metric's name: its first word, the part, or the protocol."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset."""
        return ("test",)

    @property
    def printed_metric(self) -> str:
        """The main metric, which tables print first."""
        if self.kind == "corruptions":
            return "mCE" if self.alexnet else "mean error"
        return "AUPR" if self.kind == "detection" else "top-1"

    @property
    def note(self) -> str:
        """A sentence to print beside every number: that frost is synthetic, if the suite made the corruptions itself."""
        return DRAWN_FROST if self.source == "corrupted" and "frost" in (self.corruptions or ["frost"]) else ""

    @property
    def image_counts(self) -> str:
        """Number of images, such as ``75 x 50,000``, or the sum if parts differ in size; empty if unknown."""
        if not isinstance(self.images, int):
            return f"{sum(self.images.values()):,}" if self.images else ""
        parts = len(self.corruptions) * len(self.severities) if self.kind == "corruptions" else len(self.parts)
        return f"{parts} x {self.images:,}" if parts > 1 else f"{self.images:,}"

    def same_as(self, other: DatasetRecipe) -> bool:
        """Return whether both describe the same dataset. Names are compared too, as several datasets share the images of ImageNet."""
        return super().same_as(other) and isinstance(other, RobustnessDatasetRecipe) and self.name == other.name

    @property
    def folder(self) -> str:
        """Folder of the dataset, relative to the data root."""
        return self.source if self.source.startswith("photographs") else self.path

    @property
    def name(self) -> str:
        """Name of the dataset in messages."""
        return self.label or self.folder

    @property
    def occlusions(self) -> dict[str, tuple[Literal["drop", "shuffle"], int]]:
        """Conditions of ``kind = "occlusion"``: ``drop 3/10`` with the tenths, ``shuffle 4x4`` with the tiles per side."""
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
                'copy_of: required for source = "corrupted" with kind = "corruptions", and not allowed otherwise'
            )
        if self.path and self.source.startswith("photographs"):
            raise ValueError(f'path: source = "{self.source}" has a fixed folder. Remove path')
        if self.labels not in NAMED_LABELS and not self.labels.endswith(".json"):
            raise ValueError(f"labels = {self.labels!r}: expected one of {', '.join(NAMED_LABELS)}, or a .json file")
        if self.subset and not self.labels.startswith("imagenet-1k"):
            raise ValueError(
                f"subset = {self.subset!r} is a list of ImageNet classes: it needs labels = 'imagenet-1k' or 'imagenet-1k-numbers'"
            )
        if self.real and self.kind != "classes":
            raise ValueError(f'real: only for kind = "classes", found kind = "{self.kind}". Remove real')
        if self.gap and (len(set(self.gap)) != 2 or not set(self.gap) <= set(self.parts)):
            raise ValueError(f"gap: expected two of the parts {', '.join(self.parts)}, found {', '.join(self.gap)}")
        if self.kind != "classes" and self.parts != {"": ""}:
            raise ValueError(f'parts: only for kind = "classes", found kind = "{self.kind}". Remove parts')
        if (self.kind == "detection") != bool(self.known):
            raise ValueError('known: required for kind = "detection", and not allowed otherwise')
        if self.kind == "corruptions" and (len(self.preprocessing) > 1 or self.logits != ["all"]):
            raise ValueError('kind = "corruptions": expected one preprocessing, and logits = ["all"]')
        if self.alexnet and self.kind != "corruptions":
            raise ValueError(f'alexnet: only for kind = "corruptions", found kind = "{self.kind}". Remove alexnet')
        if self.kind == "detection" and len(self.logits) > 1:
            raise ValueError('kind = "detection": expected one choice of logits')
        for name in ("preprocessing", "logits", "corruptions", "severities", "drops", "shuffles"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: a value appears twice. List every value once")
        return self


class ClassifierTable(PreprocessingRecipe):
    """``[classifier.NAME]`` of a suite file: a row of the robustness tables with a classifier that was trained elsewhere.

    Source of the defaults: our choice.
    """

    model: str
    """Name of the model in timm."""
    checkpoint: str = ""
    """File with the weights; if empty, timm's pre-trained weights."""
    image_size: Pixels | None = None
    """Side length of the input in pixels; by default the model's own."""
    label: str = ""
    """Name of the row in tables. If empty, its name in the suite file."""
    encoder: str = ""
    """The architecture's name in lutbench/report/published.toml."""
    published: str = ""
    """The method's name in lutbench/report/published.toml."""


class ClassifierSource(WeightsSource):
    """Where a classifier comes from: a fine-tuning or a linear probe of the suite, timm, or a checkpoint of a timm model."""

    kind: Literal["run", "timm", "checkpoint"]
    export: Annotated[Literal["classifier", "linear"], Later] = "classifier"
    """Exported file of the run: ``classifier`` of a fine-tuning, or ``linear``, the linear layer of a probe."""
    model: str = ""
    """Name of the model in timm; not for runs, which define their own."""
    encoder: Annotated[str, Runtime] = ""
    """Name of the architecture in tables."""

    @property
    def timm_model(self) -> str:
        """Name of the model in timm."""
        return self.model

    @property
    def export_name(self) -> str:
        """Name of the exported file in the run's folder."""
        return self.export

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "run") == bool(self.model):
            raise ValueError('model: required for kind = "timm" and "checkpoint", not allowed for "run"')
        if (self.kind == "checkpoint") != bool(self.path):
            raise ValueError('path: required for kind = "checkpoint", not allowed otherwise')
        if self.export == "linear" and self.kind != "run":
            raise ValueError('export = "linear": only for kind = "run"')
        return self


class RobustnessRecipe(RunRecipe):
    """Evaluation of one classifier on one robustness dataset. ``[robustness.NAME]`` makes such a run for each of its sets and
    methods.

    Source of the defaults: our choice.
    """

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("test",)
    kind: Literal["robustness"] = "robustness"
    """The kind of this run."""
    classifier: ClassifierSource
    """The classifier to evaluate: of a fine-tuning or linear probe of the suite, or of a ``[classifier.NAME]``."""
    set: RobustnessDatasetRecipe
    """The test set to evaluate on."""
    image_size: Pixels | None = None
    """Side length of the input in pixels; by default the classifier's own."""
    eval_crop: CropShare = Field(default_factory=lambda given: default_crop(given["image_size"] or 224))
    """Side of the centre crop divided by the resized short side, for datasets that do not set it. By default that of the fine-tuning
    or probe."""
    resized_by: ResizedBy = "Pillow"
    """Library that resizes images with ``preprocessing`` ``bicubic`` or ``bilinear``."""
    eval_batch: Annotated[Batch | None, Runtime] = None
    """Images per batch and process; by default 32 on a CPU, whose caches hold the values of few images, and 256 on a GPU. Source: our
    choice, measured in docs/benchmarks.md."""

    @property
    def form(self) -> Form:
        """What images are decoded to: arrays of pixels, unless Pillow resizes them."""
        resized = any(how not in STORED for how in self.set.preprocessing)
        return "Pillow" if resized and self.resized_by == "Pillow" else "pixels"

    @property
    def dataset(self) -> RobustnessDatasetRecipe:
        """The dataset that the run reads."""
        return self.set

    @property
    def source(self) -> ClassifierSource:
        """Where the classifier comes from."""
        return self.classifier

    @property
    def prepared_by(self) -> tuple[str, ...]:
        """The fields of the weights' preprocessing that the run applies; interpolation and crop only with ``own``."""
        own = ("interpolation", "crop_pct", "crop_mode") if "own" in self.set.preprocessing else ()
        return ("mean", "std", *own)

    @property
    def encoder_label(self) -> str:
        """Name of the classifier's architecture in tables."""
        return self.classifier.encoder

    def affecting_results(self) -> dict[str, Any]:
        """Return the fields that affect results; ``resized_by`` only if it is used."""
        fields = super().affecting_results()
        if all(how in (*STORED, "own") for how in self.set.preprocessing):
            fields.pop("resized_by", None)
        return fields

    def samples(self, images: Mapping[str, int]) -> Samples:
        """Return the images of all conditions, in every preprocessing."""
        return Samples(0, len(self.set.preprocessing) * images["test"])


class RobustnessTable(Recipe, extra="allow"):
    """``[robustness.NAME]`` of a suite file. Its other keys are settings of :class:`RobustnessRecipe`.

    Source of the defaults: our choice.
    """

    sets: list[str] = Field(min_length=1)
    """Names of the test sets: [shifted.NAME] tables of the suite file, or published sets."""
    tasks: list[str] = Field(default_factory=list)
    """Names of the [downstream.NAME] fine-tunings and linear probes whose classifiers are evaluated; for each method at most one
    fine-tuning and one probe. Task names are ``TABLE/SET`` for fine-tuned classifiers and ``TABLE/SET/linear-probe`` for probes."""
    title: str = ""
    """Text before the names of the sets in tables. If empty, the table's name in the suite file."""
    methods: list[str] | None = None
    """Methods to evaluate; by default all methods of the tasks."""
    classifiers: list[str] | None = None
    """Names of the [classifier.NAME] tables to evaluate; by default all."""
    preprocessing: list[Resizing] | None = Field(None, min_length=1)
    """Preprocessing for all sets of this table; by default as each set defines it."""
