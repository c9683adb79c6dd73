"""How many images/s loader processes bring, by their number, from files and from the cache."""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import Bench, photographs

from lutbench.data.cache_build import make_cache
from lutbench.data.images import ImageDataset, open_dataset
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.batches import Schedule, stream
from lutbench.train.device import on_device
from pretrain.views import PretrainTransform, Views


def data(bench: Bench) -> None:
    """Loader rates, and what turning a batch into views takes on the device."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        recipe = photographs(Path(folder), 8 if bench.toy else 1024)
        files = open_dataset(recipe, "train", Path(folder))
        cached = make_cache(files, 224, Path(folder))
        ways = {
            "files": (files, "loader"),
            "files, colours on the device": (files, "device"),
            "cache, colours on the device": (cached, "device"),
        }
        for workers in [0] if bench.toy else sorted({1, cores // 2, cores}):
            for name, (images, colours) in ways.items():
                with bench.section("data", f"{name} {workers}"):
                    _load(bench, name, recipe, images, colours, workers)


def _load(bench: Bench, name: str, data: DataRecipe, images: ImageDataset, colours: str, workers: int) -> None:
    batch, budget, ahead = (4, 0.0, 0) if bench.toy else (256, 3.0, 8)
    recipe = read_recipe(PretrainRecipe, {"data": data.model_dump(), "photometrics_on": colours}, "gpu")
    schedule = Schedule(len(images), 10**6, batch, batch, 0)
    start = time.perf_counter()
    coming = on_device(stream(images, PretrainTransform(recipe), schedule, 0, workers))
    found = next(coming)
    first = time.perf_counter() - start
    for _ in range(ahead):  # past what was fetched ahead
        next(coming)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < budget or not batches:
        found, batches = next(coming), batches + 1
    rate = batches * batch / (time.perf_counter() - start)
    to_views = bench.seconds(partial(Views.from_batch, found, bench.device, patch_size=16, compiled=bench.cuda), 0.3)
    bench.emit(
        "data", what=name, workers=workers, images_per_second=round(rate), first_batch_s=round(first, 2), to_views_ms=round(1e3 * to_views, 2)
    )  # fmt: skip
