"""How many images/s loader processes bring, by their number, from files and from the cache."""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench import Bench, photographs

from lutbench.data.cache_build import make_cache
from lutbench.data.images import ImageDataset, open_dataset
from lutbench.recipes.base import DataRecipe, Form
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.batches import Schedule, stream
from lutbench.train.device import on_device
from lutbench.train.loader import Flight, bytes_of
from pretrain.views import PretrainTransform, Views

FAST: dict[str, Any] = {"photometrics_on": "device", "resized_by": "torchvision"}
"""Settings of loading for speed, as in ``suites/paper.toml``."""

Way = tuple[ImageDataset, dict[str, Any], Form | None]
"""Images, settings of the recipe, and the form in which images are loaded, if it is not the recipe's."""


def data(bench: Bench) -> None:
    """Loader rates, and what turning a batch into views takes on the device.

    The ways that runs for speed use are measured with several numbers of processes; those before them, for comparison, with the largest.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        recipe = photographs(Path(folder), 8 if bench.toy else 1024)
        files = open_dataset(recipe, "train", Path(folder))
        cached = make_cache(files, 224, Path(folder))
        fast: dict[str, Way] = {
            "files, by torchvision, colours on the device": (files, FAST, None),
            "cache, colours on the device": (cached, {**FAST, "cache": True}, None),
        }
        before: dict[str, Way] = {
            "files, by Pillow, colours in the loader": (files, {}, None),
            "files, by Pillow, colours on the device": (files, {"photometrics_on": "device"}, None),
            "cache through Pillow, colours on the device": (cached, {**FAST, "cache": True}, "Pillow"),
        }
        several = [0] if bench.toy else sorted({1, cores // 2, cores}, reverse=True)
        for workers, ways in [*((workers, fast) for workers in several), (several[0], before)]:
            for name, way in ways.items():
                with bench.section("data", f"{name} {workers}"):
                    _load(bench, name, recipe, way, workers)


def _load(bench: Bench, name: str, data: DataRecipe, way: Way, workers: int) -> None:
    batch, budget = (4, 0.0) if bench.toy else (256, 3.0)
    images, settings, form = way
    recipe = read_recipe(PretrainRecipe, {"data": data.model_dump(), **settings}, "gpu")
    schedule = Schedule(len(images), 10**6, batch, batch, 0)
    start = time.perf_counter()
    coming = on_device(stream(images, PretrainTransform(recipe), schedule, 0, workers, form or recipe.form))
    found = next(coming)
    first = time.perf_counter() - start
    flight = Flight.of(batch, bytes_of(found) // batch, workers)
    for _ in range(-(-workers * flight.ahead * flight.unit // batch)):  # past what was fetched ahead
        next(coming)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < budget or not batches:
        found, batches = next(coming), batches + 1
    rate = batches * batch / (time.perf_counter() - start)
    to_views = bench.seconds(partial(Views.from_batch, found, bench.device, patch_size=16, compiled=bench.cuda), 0.3)
    bench.emit(
        "data", what=name, workers=workers, images_per_second=round(rate), first_batch_s=round(first, 2), to_views_ms=round(1e3 * to_views, 2)
    )  # fmt: skip
