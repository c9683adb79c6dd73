"""Images per second of the robustness stage, and how long the whole of ImageNet-C takes on the machine at hand.

    python benchmarks/robustness_stage.py --sizes S,B --images 512 --workers 8

Goes through the stage's own code, from JPEG files on disk to per-image outcomes: one condition in ImageNet-C's layout, of crops
of photographs that ship in packages, 224 x 224, stored as ImageNet-C is (JPEG, quality 85). Weights are random, which
costs the same. The first condition warms up and is not timed. `torchrun` spreads the images over processes as in a run.
Prints a Markdown table with hardware and versions.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import timm
import typer
from common import MODELS, heading, write_crops

from lutbench.evaluate.inference import over_images
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.train.processes import accelerator, precision_of
from robustness.classifier import Classifier
from robustness.conditions import Condition, open_condition
from robustness.labels import imagenet_1k
from robustness.measure import measure_conditions
from robustness.preprocessing import all_views

IMAGES = 50_000
"""Images in every condition of ImageNet-C."""
CONDITIONS = {"15 corruptions": 75, "with the 4 extra": 95}


def main(
    sizes: Annotated[str, typer.Option(help="Which of S, B and L, with commas between.")] = "S,B,L",
    images: Annotated[int, typer.Option(min=1, help="Images of the condition that is timed.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass and process.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16; auto is bf16 where the GPU has it.")] = "auto",
) -> None:
    """Measure each size, print images/s and the predicted time for ImageNet-C."""
    chosen = [size.strip().upper() for size in sizes.split(",")]
    if not set(chosen) <= set(MODELS):
        raise typer.BadParameter(f"{sizes!r}: choose among {', '.join(MODELS)}.", param_hint="--sizes")
    main_process = accelerator().is_main_process
    shifted = read_recipe(
        RobustnessDatasetRecipe, {"path": ".", "labels": "imagenet-1k", "preprocessing": ["crop"]}, "shifted"
    )
    settings = {"classifier": {"kind": "timm", "model": MODELS["S"]}, "set": shifted.model_dump()}
    settings |= {"eval_batch": batch, "workers": workers, "precision": precision}
    recipe = read_recipe(RobustnessRecipe, settings, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        write_crops(Path(folder), images, imagenet_1k().names[:10])
        cell = open_condition(shifted, Path(folder), "", imagenet_1k())
        rows = [("decoding alone", _timed(lambda: _decode(cell, recipe), images))]
        for size in chosen:
            classifier = Classifier(
                timm.create_model(MODELS[size]).to(accelerator().device).eval(),
                224, imagenet_1k(), IMAGENETS,
            )  # fmt: skip
            rows.append((f"ViT-{size}/16", _timed(lambda: classify(classifier, cell, recipe), images)))  # noqa: B023
    if main_process:
        print(heading(f"{precision_of(precision)}; {workers} workers"))
        print(f"| | images/s | {' | '.join(f'ImageNet-C, {name}' for name in CONDITIONS)} |")
        print(f"|---|---:|{'---:|' * len(CONDITIONS)}")
        for name, rate in rows:
            hours = (f"{cells * IMAGES / rate / 3600:,.1f} h" for cells in CONDITIONS.values())
            print(f"| {name} | {rate:,.1f} | {' | '.join(hours)} |")


def _timed(go: Callable[[], object], images: int) -> float:
    """Images per second of the second of two times."""
    go()
    started = time.perf_counter()
    go()
    return images / (time.perf_counter() - started)


def classify(classifier: Classifier, cell: Condition, recipe: RobustnessRecipe) -> object:
    """Take the images of a condition through a classifier, to their outcomes."""
    return measure_conditions(classifier, cell, {"": lambda pixels, index: pixels}, recipe, title="")


def _decode(cell: Condition, recipe: RobustnessRecipe) -> object:
    return over_images(
        lambda pixels, index: index,
        cell.images,
        lambda image: all_views(image, recipe.set, 224, 1.0, IMAGENETS),
        recipe,
        "",
        form=recipe.form,
    )


if __name__ == "__main__":
    typer.run(main)
