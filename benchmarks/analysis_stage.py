"""Images per second of an analysis against plain feature extraction, measure by measure, in one run.

    python benchmarks/analysis_stage.py --size B --images 64 --batch 16

Goes through the stage's own pass, with crops of photographs that ship in packages, 224 x 224, as JPEG files; weights are random, which
costs the same. Of ``similarity`` some images have a second
view, which is another forward pass. The resamples of spectra, which come once, are left out. Each line is the faster of two rounds, after one that warms up; a round is over all images, loading included.
The neighbours' bank and vote of ``depth`` are left out as well. Prints a Markdown table with hardware and versions.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import MODELS, heading, write_crops

from analysis.passes import second_views, through_images
from lutbench.data.images import open_dataset
from lutbench.evaluate.inference import encode_images
from lutbench.models.preprocessing import IMAGENETS
from lutbench.models.pretrained import load_encoder
from lutbench.recipes.analysis import MEASURES, AnalysisRecipe
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.probes import KnnRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.processes import accelerator, precision_of


def main(
    size: Annotated[str, typer.Option(help="S, B or L.")] = "B",
    images: Annotated[int, typer.Option(min=2, help="How many images.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch and process.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 1,
    viewed: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the images that have a second view: 1,000 of 5,000, as in suite paper."
        ),
    ] = 0.2,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16; auto is bf16 where the GPU has it.")] = "auto",
) -> None:
    """Measure plain feature extraction, each measure alone and all together; print images/s and how often the plain time."""
    settings = {
        "encoder": {"architecture": {"model": MODELS[size.upper()]}, "kind": "scratch"},
        "data": {"path": ".", "train": "train", "val": "train"},
        "eval_batch": batch,
        "workers": workers,
        "precision": precision,
    }
    recipe = read_recipe(AnalysisRecipe, settings, "benchmark")
    plain = read_recipe(KnnRecipe, settings, "benchmark")
    encoder = load_encoder(recipe.encoder).to(accelerator().device)
    with tempfile.TemporaryDirectory() as folder:
        write_crops(Path(folder) / "train", images, ["0", "1"])
        dataset = open_dataset(DataRecipe.model_validate(settings["data"]), "train", Path(folder))
        every = np.arange(len(dataset))
        some = every[: max(1, round(viewed * len(every)))]

        def analyse(*measures: str) -> Callable[[], object]:
            def go() -> None:
                through_images(encoder, dataset, every, recipe, IMAGENETS, "", measures)
                if "similarity" in measures:
                    second_views(encoder, dataset, some, recipe, IMAGENETS, "")

            return go

        rows = {"plain features": _rate(lambda: encode_images(encoder, dataset, plain, IMAGENETS, ""), images)}
        rows |= {measure: _rate(analyse(measure), images) for measure in MEASURES}
        rows["all but depth"] = _rate(analyse(*(m for m in MEASURES if m != "depth")), images)
        rows["all"] = _rate(analyse(*MEASURES), images)
    if accelerator().is_main_process:
        print(heading(f"{precision_of(precision)}; batch {batch}; {workers} workers"))
        print(f"| ViT-{size.upper()}/16 | images/s | times plain |")
        print("|---|---:|---:|")
        for name, rate in rows.items():
            print(f"| {name} | {rate:,.1f} | {rows['plain features'] / rate:.2f} |")


def _rate(go: Callable[[], object], images: int) -> float:
    """Images per second of the faster of two rounds."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        go()
        taken.append(time.perf_counter() - started)
    return images / min(taken[1:])


if __name__ == "__main__":
    typer.run(main)
