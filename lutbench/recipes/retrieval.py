"""Settings of retrieval: which images are nearest to an image, on sets with classes, and on revisited Oxford and Paris."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lutbench.recipes.base import Batch, Count, DatasetRecipe, Few, Pixels, Runtime
from lutbench.recipes.downstream import DownstreamRecipe, ImageTaskRecipe
from lutbench.recipes.probes import FeatureSettings


class RevisitedDataRecipe(DatasetRecipe):
    """Revisited Oxford or Paris as it unpacks: ``PATH/jpg/*.jpg`` and ``PATH/gnd_SOURCE.pkl`` (Radenovic et al. 2018, arXiv 1803.11285)."""

    source: Literal["roxford5k", "rparis6k"]
    few: Few = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has."""
        return ("database", "queries")

    @property
    def folder(self) -> str:
        """Where it lies, below the data root."""
        return self.path or self.source

    @property
    def lists(self) -> str:
        """The file of its lists, in its folder."""
        return f"gnd_{self.source}.pkl"

    @property
    def printed_metric(self) -> str:
        """The metric that tables print first."""
        return "mAP Medium"


class RetrievalRecipe(FeatureSettings, ImageTaskRecipe):
    """Every validation image is a query on all others; those of its class are to be found (recall@k of Oh Song et al. 2016, section 6).

    Of the set's own split, whose classes are those of training: papers on metric learning hold half of the classes out.
    """

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val",)
    kind: Literal["retrieval"] = "retrieval"
    recall_at: list[Count] = Field([1, 2, 4, 8], min_length=1)
    """Numbers of nearest images among which one of the class is looked for: those of CUB and Cars (Oh Song et al. 2016, table 2); of
    Stanford Online Products 1, 10, 100 and 1000."""

    @model_validator(mode="after")
    def _ascending_numbers(self) -> Self:
        if sorted(set(self.recall_at)) != self.recall_at:
            raise ValueError("recall_at: expected ascending numbers, each once")
        return self


class InstanceRetrievalRecipe(FeatureSettings, DownstreamRecipe):
    """Every query of revisited Oxford or Paris, cropped to its box, on the whole database, by the three published protocols."""

    revision: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("database", "queries")
    kind: Literal["instance-retrieval"] = "instance-retrieval"
    data: RevisitedDataRecipe
    image_size: Pixels | None = None
    """Side of the input in pixels; the encoder's own if not given. Whole images and boxes are resized to a square, so that nothing of a
    building is cut off (our choice, as encoders take squares; papers keep the aspect)."""
    eval_batch: Annotated[Batch, Runtime] = 256

    @property
    def side(self) -> int:
        """Side of the input in pixels."""
        return self.image_size or self.encoder.architecture.image_size
