"""Two-view images per second and core of the pre-training input pipeline, four ways, on the same images in one run.

    python benchmarks/loader.py --images 256 --rounds 3
    python benchmarks/loader.py --folder DIR/imagenet-1k/train

- **obvious**: decode the JPEG, then resize, crop, flip and change colours of each view by itself, with torchvision on Pillow
  images, to normalised float tensors: what one would first write.
- **files**: this suite's path from the full files: the resize is shared by both views, tensors stay bytes.
- **cache**: the same from the cache that ``lutbench data prepare`` makes.
- **cache, colours on the device**: the loader draws the changes of colour and leaves them to the device; what the device
  does is timed apart.

Everything up to the stacked batch, in one process and one thread, so that times are those of one core. Rounds take turns,
and each way counts with its fastest. Without ``--folder`` the images are JPEGs of 500 x 375 pixels, cut from photographs that
ship in scikit-image: ImageNet's mean is about that size.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageFilter
from torch.utils.data import default_collate
from torchvision import transforms

from lutbench.data.cache_build import make_cache
from lutbench.data.images import ImageDataset, load_or_next, open_dataset
from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph
from lutbench.provenance import hardware, packages
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator, reseed
from pretrain.photometrics import apply_in_batch
from pretrain.views import PretrainTransform

BATCH = 64
QUALITY = 90
"""Of the JPEGs that are made: files of some 70 KB, ImageNet's mean is 110 KB."""
SIZE = (500, 375)

Load = Callable[[int], Any]


def main(
    images: Annotated[int, typer.Option(min=BATCH, help="How many images each way loads in a round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="How often; the fastest round counts.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="A folder of images; JPEGs of 500 x 375 are made if not given.")
    ] = None,
) -> None:
    """Measure the ways and print a Markdown table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if folder is None:
            write_photographs(root / "photographs", images)
        recipe = DataRecipe(label="photographs", path=str((folder or root / "photographs").absolute()), train="")
        files = open_dataset(recipe, "train", root)
        some = files if len(files) <= images else first_images(files, images, root)
        cached = make_cache(some, 224, root)
        ways = {
            "obvious": obvious(some),
            "files": ours(some, recipe, "loader"),
            "cache": ours(cached, recipe, "loader"),
            "cache, colours on the device": ours(cached, recipe, "device"),
        }
        size = np.mean([files.image(index).size for index in range(min(32, len(files)))], 0)
        count = images // BATCH * BATCH
        rates = dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            for name, load in ways.items():
                rates[name] = max(rates[name], count / seconds(load, count, len(some)))
        last = default_collate([ways["cache, colours on the device"](index % len(some)) for index in range(BATCH)])
        device = min(device_seconds(last) for _ in range(rounds + 1))
    versions = ", ".join(f"{name} {packages()[name]}" for name in ("python", "torch", "torchvision", "pillow"))
    print(
        f"{hardware()}; one core; {versions}. Images of {size[0]:.0f} x {size[1]:.0f} pixels, {files.sizes.mean() / 1e3:.0f} KB.\n"
    )
    print(f"    {' '.join(['python', *sys.argv])}\n")
    print("| two views of an image | images/s | against the obvious way |")
    print("|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates['obvious']:.1f}x |")
    kind = accelerator().device.type
    print(
        f"\nThe changes of colour of a batch on this device ({kind}): {BATCH / device:.0f} images/s, beside the loader."
    )


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs of :data:`SIZE` pixels: random crops, of random scale, of photographs in colour that are large enough."""
    folder.mkdir()
    every = map(load_photograph, PHOTOGRAPHS.values())
    large = [image for image in every if image.width >= 400 and image.height >= 300]
    for number in range(count):
        draw = generator(RngStream.BUILD, number)
        image = large[number % len(large)]
        width = int(image.width * draw.uniform(0.7, 1))
        height = min(image.height, width * SIZE[1] // SIZE[0])
        left, upper = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
        crop = image.crop((left, upper, left + width, upper + height)).resize(SIZE, Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:05d}.jpg", quality=QUALITY)


def first_images(files: ImageDataset, count: int, root: Path) -> ImageDataset:
    """Copies of images evenly spaced over a set, as a set."""
    (root / "chosen").mkdir()
    for number, index in enumerate(np.linspace(0, len(files) - 1, count).astype(int).tolist()):
        (root / "chosen" / f"{number:05d}.jpg").write_bytes(files.content(index))
    return open_dataset(DataRecipe(label="chosen", path="chosen", train=""), "train", root)


def obvious(images: ImageDataset) -> Load:
    """Each view by itself, by torchvision's transforms of Pillow images."""
    crop = [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.RandomCrop(224, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    mean_and_deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    tensor = [transforms.ToTensor(), transforms.Normalize(*mean_and_deviation)]
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8)
    effects = [transforms.Grayscale(3), transforms.RandomSolarize(128, 1.0), transforms.Lambda(_blurred)]
    view1 = transforms.Compose([*crop, *tensor])
    view2 = transforms.Compose([*crop, jitter, transforms.RandomChoice(effects), *tensor])

    def load(index: int) -> dict[str, Any]:
        image = images.image(index)
        return {"view1": view1(image), "view2": view2(image), "noise": torch.rand(196)}

    return load


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(torch.empty(1).uniform_(0.1, 2.0).item()))


def ours(images: ImageDataset, data: DataRecipe, on: str) -> Load:
    """As the suite's loader does it, its seeding included."""
    transform = PretrainTransform(PretrainRecipe.model_validate({"data": data, "photometrics_on": on}))

    def load(index: int) -> dict[str, Any]:
        image, used, skipped = load_or_next(images, index)
        reseed(RngStream.IMAGE, 0, 0, index)
        return {**transform(image), "index": used, "skipped": skipped}

    return load


def seconds(load: Load, count: int, among: int) -> float:
    """What ``count`` images take, stacked in batches."""
    load(0)
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        default_collate([load(index % among) for index in range(first, first + BATCH)])
    return time.perf_counter() - start


def device_seconds(batch: dict[str, torch.Tensor]) -> float:
    """What changing the colours of one batch takes on the device."""
    device = accelerator().device
    view2 = batch["view2"].to(device)
    start = time.perf_counter()
    apply_in_batch(view2, batch["photometrics"]).sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
