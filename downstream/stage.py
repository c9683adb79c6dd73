"""What every classification task begins and ends with."""

from collections.abc import Mapping
from dataclasses import replace

from PIL import Image
from pydantic import JsonValue
from timm.models import VisionTransformer
from torch import Tensor

from downstream.augment import Transform
from lutbench.evaluate.outcomes import Outcomes
from lutbench.models.pretrained import load_encoder
from lutbench.recipes import ClassificationRecipe, SegmentationRecipe
from lutbench.record import PerImage, make_record
from lutbench.run import Run
from lutbench.train.processes import accelerator


def encoder_of(run: Run) -> VisionTransformer:
    """The encoder that a run starts from, for the size of its input.

    Raises:
        UserError: if its weights cannot be had, are not those of the run's identity, or do not fit.
    """
    recipe = run.planned.recipe
    assert isinstance(recipe, ClassificationRecipe | SegmentationRecipe)
    side = recipe.crop if isinstance(recipe, SegmentationRecipe) else recipe.image_size
    sha256 = run.document.get("encoder", {}).get("sha256")
    return load_encoder(recipe.encoder, run.weights, sha256, image_size=side, seed=run.planned.seed)


def sample(transform: Transform, image: Image.Image) -> dict[str, Tensor]:
    """What the stream takes of an image: ``image`` (3, S, S)."""
    return {"image": transform(image)}


def save_results(
    run: Run,
    outcomes: PerImage,
    *,
    seconds: float,
    images_per_second: float | None = None,
    checkpoint: str | None = None,
    extra: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write the record with every image's outcome and mark the run finished; from the first process.

    ``seconds`` of training or encoding; ``checkpoint`` is the sha256 of the weights that came out.
    """
    recipe = run.planned.recipe
    if isinstance(outcomes, Outcomes) and isinstance(recipe, ClassificationRecipe):
        outcomes = replace(outcomes, metric=recipe.data.metric)
    record = make_record(
        run.planned,
        run.document,
        outcomes.measurements(),
        wall_seconds=seconds,
        images_per_second=images_per_second,
        checkpoint=checkpoint,
        processes=accelerator().num_processes,
        extra=extra,
    )
    run.record(record, outcomes)
    run.finish({"checkpoint": checkpoint})
