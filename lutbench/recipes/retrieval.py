"""Settings of image retrieval: by class on labelled datasets, and by instance on revisited Oxford and Paris."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lutbench.recipes.base import Batch, Count, DatasetRecipe, Few, Pixels, Runtime
from lutbench.recipes.downstream import DownstreamRecipe, ImageTaskRecipe
from lutbench.recipes.probes import FeatureSettings


class RevisitedDataRecipe(DatasetRecipe):
    """Revisited Oxford or Paris, as unpacked: ``PATH/jpg/*.jpg`` and ``PATH/gnd_SOURCE.pkl`` (Radenovic et al. 2018, arXiv
    1803.11285).

    Source of the defaults: our choice.
    """

    source: Literal["roxford5k", "rparis6k"]
    """``roxford5k``: revisited Oxford. ``rparis6k``: revisited Paris."""
    few: Few = None
    """Read at most this many images of each split; by default all. For smoke runs, see :mod:`lutbench.smoke`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset."""
        return ("database", "queries")

    @property
    def folder(self) -> str:
        """Folder of the dataset, relative to the data root."""
        return self.path or self.source

    @property
    def lists(self) -> str:
        """Name of the file in its folder with the queries and their correct images."""
        return f"gnd_{self.source}.pkl"

    @property
    def printed_metric(self) -> str:
        """The main metric, which tables print first."""
        return "mAP Medium"


class RetrievalRecipe(FeatureSettings, ImageTaskRecipe):
    """Every validation image is a query among all others; images of its class are correct (recall@k).

    Queries are from the dataset's own validation split, with the same classes as in training. Metric learning papers instead hold
    out half of the classes.

    Source of the defaults: Oh Song et al. 2016, section 6.
    """

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val",)
    kind: Literal["retrieval"] = "retrieval"
    """The kind of this task."""
    recall_at: list[Count] = Field([1, 2, 4, 8], min_length=1)
    """The k of recall@k; for Stanford Online Products use 1, 10, 100 and 1000. Source: Oh Song et al. 2016, table 2, for CUB and
    Cars."""

    @model_validator(mode="after")
    def _ascending_numbers(self) -> Self:
        if sorted(set(self.recall_at)) != self.recall_at:
            raise ValueError("recall_at: expected different numbers in ascending order")
        return self


class InstanceRetrievalRecipe(FeatureSettings, DownstreamRecipe):
    """Instance retrieval on revisited Oxford or Paris: queries are cropped to their boxes; three published protocols (Easy,
    Medium, Hard).

    Source of the defaults: our choice; the protocols are those of Radenovic et al. 2018.
    """

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("database", "queries")
    kind: Literal["instance-retrieval"] = "instance-retrieval"
    """The kind of this task."""
    data: RevisitedDataRecipe
    """The photographs and queries of the task."""
    image_size: Pixels | None = None
    """Side length of the input in pixels; by default the encoder's own. Images and query boxes are resized to a square without
    cropping. Source: our choice, as encoders take square inputs; papers keep the aspect ratio."""
    eval_batch: Annotated[Batch | None, Runtime] = None
    """Images per batch and process; by default 32 on a CPU, whose caches hold the values of few images, and 256 on a GPU. Source: our
    choice, measured in docs/benchmarks.md."""

    @property
    def side(self) -> int:
        """Side length of the input in pixels."""
        return self.image_size or self.encoder.architecture.image_size
