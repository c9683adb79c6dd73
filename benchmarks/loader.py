"""Images per second and core of the input pipelines: pre-training's two views, MAE's crop, and what probes and evaluation see.

    python benchmarks/loader.py --images 256 --rounds 3
    python benchmarks/loader.py --folder DIR/imagenet-1k/train

The same images go through all ways in one run. Two views of an image:

- **obvious**: decode the JPEG, then resize, crop, flip and change colours of each view by itself, with torchvision on Pillow
  images, to normalised float tensors: what one would first write.
- **torchvision v2**: the same by torchvision's v2 transforms on uint8 tensors, from its own decoder, the resize shared by both
  views, colours changed in the loader: what a good user would write. And with the colours left out, as if the device changed them.
- **files**: this suite's path from the full files: the resize is shared by both views, tensors stay bytes.
- **files, by torchvision**: with ``resized_by = "torchvision"``.
- **cache**: from the cache that ``lutbench data prepare`` makes.
- **..., colours on the device**: the loader draws the changes of colour and leaves them to the device; what the device
  does is timed apart.
- **cache through Pillow**: how this suite read its cache before it read it in place, for comparison.

The same pixels need the same decoding and resizing, which libraries do: no way from files can be faster than **the libraries alone**,
reading included. Each aim stands beside how many times faster that is.

Everything up to the stacked batch, in one process and one thread, so that times are those of one core, as the
processor counts them; malloc keeps freed memory, as in ``lutbench run``. Rounds take turns, and each
way counts with its fastest; a ratio is the median of those of the rounds, since machines are disturbed. Without ``--folder`` the images
are JPEGs of 500 x 375 pixels, cut from photographs that ship in scikit-image: ImageNet's mean is about that size.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from common import heading
from PIL import Image, ImageFilter
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from downstream.augment import linear_transform
from downstream.stage import sample
from lutbench.allocator import keep_freed_memory
from lutbench.data.cache import CachedImages
from lutbench.data.cache_build import make_cache
from lutbench.data.images import ImageDataset, open_dataset
from lutbench.data.random_crop import random_resized_crop
from lutbench.data.tensors import resize_short_side, to_tensor
from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph
from lutbench.evaluate.transform import eval_transform
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.base import DataRecipe, EncoderRecipe, Form
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import LinearRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.train.batches import Samples
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator, reseed
from pretrain.photometrics import apply_in_batch, draw_photometrics
from pretrain.views import PretrainTransform, padded_crop, upright
from robustness.preprocessing import all_views

BATCH = 64
QUALITY = 90
"""Of the JPEGs that are made: files of some 70 KB, ImageNet's mean is 110 KB."""
SIZE = (500, 375)

Load = Callable[[Sequence[int]], Any]
"""The batch of some images."""

FILES, TORCHVISION = "files, colours on the device", "files, by torchvision, colours on the device"
BEFORE, CACHE = "cache through Pillow, colours on the device", "cache, colours on the device"
ONE_VIEW = ("MAE's crop", "linear probe", "evaluation", "ImageNet-C")
OTHERS = [f"{what}, {by}" for by in ("Pillow", "torchvision") for what in ONE_VIEW]
DECODING = "decoding alone"
AIMS = [
    (CACHE, BEFORE, 5.0),
    (TORCHVISION, FILES, 2.5),
    *((f"{what}, torchvision", f"{what}, Pillow", 2.5) for what in ONE_VIEW),
]
"""A way, what it is compared with, and how many times faster it shall be."""
BOUNDS = {way: f"libraries alone: {way}" for way in (TORCHVISION, *(f"{what}, torchvision" for what in ONE_VIEW))}
"""What remains of a way if everything but decoding and resizing took no time."""


def main(
    images: Annotated[int, typer.Option(min=BATCH, help="How many images each way loads in a round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="How often.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="A folder of images; JPEGs of 500 x 375 are made if not given.")
    ] = None,
) -> None:
    """Measure the ways and print a Markdown table."""
    found = measure(images, rounds, folder)
    rates = found.rates
    print(heading("one core", found.images, versions=("python", "torch", "torchvision", "pillow")))
    print("| two views of an image | images/s | against the obvious way |")
    print("|---|---:|---:|")
    for name in [name for name in rates if name not in (*OTHERS, DECODING, *BOUNDS.values())]:
        print(f"| {name} | {max(rates[name]):.0f} | {ratio(rates, name, 'obvious'):.1f}x |")
    print("\n| one view of an image | images/s |")
    print("|---|---:|")
    for name in (*OTHERS, DECODING):
        print(f"| {name} | {max(rates[name]):.0f} |")
    print("\n| | aim | measured | libraries alone |")
    print("|---|---:|---:|---:|")
    for name, before, aim in AIMS:
        bound = f"{ratio(rates, BOUNDS[name], before):.1f}x" if name in BOUNDS else ""
        print(f"| {name}, against {before} | {aim:.1f}x | {ratio(rates, name, before):.1f}x | {bound} |")
    kind = accelerator().device.type
    print(
        f"\nThe changes of colour of a batch on this device ({kind}): {found.colours:.0f} images/s, beside the loader."
    )


class Measured(NamedTuple):
    """What was measured."""

    rates: dict[str, list[float]]
    """Images/s of every way, in every round."""
    colours: float
    """Images/s of the changes of colour on the device."""
    images: str
    """What the images are, for a heading."""


def measure(count: int, rounds: int, folder: Path | None = None) -> Measured:
    """Measure every way on ``count`` images, those of a ``folder`` or JPEGs that are made."""
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if folder is None:
            write_photographs(root / "photographs", count)
        recipe = DataRecipe(label="photographs", path=str((folder or root / "photographs").absolute()), train="")
        files = open_dataset(recipe, "train", root)
        some = files if len(files) <= count else first_images(files, count, root)
        cached = make_cache(some, 224, root)
        ways = two_views(some, cached, recipe) | others(some, recipe, root)
        width, height = np.mean([files.image(index).size for index in range(min(32, len(files)))], 0)
        whole = count // BATCH * BATCH
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, load in ways.items():
                rates[name].append(whole / seconds(load, whole, len(some)))
        last = ways[CACHE]([index % len(some) for index in range(BATCH)])
        colours = BATCH / min(device_seconds(last) for _ in range(rounds + 1))
    return Measured(rates, colours, f"images of {width:.0f} x {height:.0f} pixels, {files.sizes.mean() / 1e3:.0f} KB")


def two_views(files: ImageDataset, cached: CachedImages, recipe: DataRecipe) -> dict[str, Load]:
    """Two views of an image, by every way."""
    return {
        "obvious": obvious(files),
        "torchvision v2": torchvisions(files, colours=True),
        "torchvision v2, no colours": torchvisions(files, colours=False),
        "files": ours(files, recipe),
        FILES: ours(files, recipe, photometrics_on="device"),
        TORCHVISION: ours(files, recipe, photometrics_on="device", resized_by="torchvision"),
        "cache": ours(cached, recipe, cache=True),
        BEFORE: through_pillow(cached, recipe),
        CACHE: ours(cached, recipe, cache=True, photometrics_on="device"),
    }


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

    return collated(load)


def collated(load: Callable[[int], Any]) -> Load:
    """Batches of what is loaded image by image, by torch's own collation."""
    return lambda indices: default_collate([load(index) for index in indices])


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(torch.empty(1).uniform_(0.1, 2.0).item()))


def torchvisions(images: ImageDataset, colours: bool) -> Load:
    """Both views by torchvision's v2 transforms on uint8 tensors, the resize shared; normalised on the device, as ours."""
    resize = v2.Resize(224, v2.InterpolationMode.BICUBIC)
    crop = v2.Compose([v2.RandomCrop(224, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8)
    effects = v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, 1.0), v2.GaussianBlur(9, (0.1, 2.0))])
    change = v2.Compose([jitter, effects]) if colours else v2.Identity()

    def load(index: int) -> dict[str, Any]:
        content = torch.frombuffer(bytearray(images.content(index)), dtype=torch.uint8)
        image = resize(decode_image(content, ImageReadMode.RGB))
        return {"view1": crop(image).contiguous(), "view2": change(crop(image)).contiguous(), "noise": torch.rand(196)}

    return collated(load)


def ours(images: ImageDataset, data: DataRecipe, **settings: Any) -> Load:
    """As the suite pre-trains."""
    recipe = PretrainRecipe.model_validate({"data": data, **settings})
    return seeded_load(images, PretrainTransform(recipe), recipe.form)


def evaluated(images: ImageDataset, transform: Callable[[Any], torch.Tensor], form: Form) -> Load:
    """As an evaluation loads: it draws nothing, and so seeds nothing."""
    decoded = images.image if form == "Pillow" else images.pixels
    return collated(lambda index: (transform(decoded(index)), index, True))


def seeded_load(images: ImageDataset, transform: Callable[[Any], dict[str, Any]], form: Form) -> Load:
    """As the suite's loader does it, its seeding included."""
    samples = Samples(images, transform, 0, form)
    return lambda indices: samples.__getitems__([(0, index) for index in indices])


def through_pillow(cached: CachedImages, data: DataRecipe) -> Load:
    """The cache as it was read at first: a row of `datasets`, an image of Pillow's, both views flipped and turned to (3, S, S) here."""
    recipe = PretrainRecipe.model_validate({"data": data, "photometrics_on": "device"})

    def view(image: Image.Image) -> torch.Tensor:
        pixels = np.empty((224, 224, 3), np.uint8)
        box = padded_crop(np.asarray(image), pixels, recipe.crop_padding)
        return to_tensor(Image.fromarray(pixels[:, ::-1] if box.flipped else pixels))

    def transform(index: int) -> dict[str, Any]:
        row = cached.rows[index]
        image = Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"])
        reseed(RngStream.IMAGE, 0, 0, index)
        noise, view1, view2 = torch.rand(196), view(image), view(image)
        changes = draw_photometrics().numbers()
        return {"view1": view1, "view2": view2, "noise": noise, "photometrics": changes, "index": index, "skipped": 0}

    return collated(transform)


def others(images: ImageDataset, data: DataRecipe, root: Path) -> dict[str, Load]:
    """One view of an image, resized by Pillow and by torchvision: MAE's, a probe's, that of an evaluation and of ImageNet-C."""
    source = EncoderSource(kind="scratch", architecture=EncoderRecipe())
    linear = LinearRecipe(data=data, encoder=source)
    probing, evaluating = linear_transform(linear, IMAGENETS), eval_transform(224, 224 / 256)
    stored = write_stored(images, root)
    corrupted = RobustnessDatasetRecipe(path="corrupted", kind="corruptions", preprocessing=["crop"])
    seeing = partial(all_views, recipe=corrupted, side=224, eval_crop=224 / 256, prepared=IMAGENETS)
    mae = {"crop": "random", "context_weight": 0.0}
    mae_scale = PretrainRecipe.model_validate({"data": data, **mae}).crop_scale
    found: dict[str, Load] = {}
    forms: tuple[tuple[Form, str], ...] = (("Pillow", "Pillow"), ("pixels", "torchvision"))
    for form, by in forms:
        found[f"MAE's crop, {by}"] = ours(images, data, resized_by=by, **mae)
        found[f"linear probe, {by}"] = seeded_load(images, partial(sample, probing), form)
        found[f"evaluation, {by}"] = evaluated(images, evaluating, form)
        found[f"ImageNet-C, {by}"] = evaluated(stored, seeing, form)
    alone: dict[str, Callable[[Any], Any]] = {
        TORCHVISION: partial(resize_short_side, side=224),
        "MAE's crop, torchvision": partial(random_resized_crop, side=224, scale=mae_scale),
        "linear probe, torchvision": partial(random_resized_crop, side=224, scale=linear.crop_scale),
        "evaluation, torchvision": partial(resize_short_side, side=256),
    }
    return found | {
        DECODING: decoded(images),
        **{BOUNDS[way]: decoded(images, resized) for way, resized in alone.items()},
        BOUNDS["ImageNet-C, torchvision"]: decoded(stored),
    }


def decoded(images: ImageDataset, then: Callable[[Any], Any] = len) -> Load:
    """Nothing but reading, decoding, and what comes ``then``."""

    def load(indices: Sequence[int]) -> None:
        for index in indices:
            then(images.pixels(index))

    return load


def write_stored(images: ImageDataset, root: Path) -> ImageDataset:
    """The images as ImageNet-C stores its own: JPEGs of 224 x 224 pixels and quality 85."""
    (root / "stored").mkdir()
    for index in range(len(images)):
        square = images.image(index).resize((224, 224), Image.Resampling.BICUBIC)
        square.save(root / "stored" / f"{index:05d}.jpg", quality=85)
    return open_dataset(DataRecipe(label="stored", path="stored", train=""), "train", root)


def ratio(rates: dict[str, list[float]], name: str, before: str) -> float:
    """The median over the rounds of how many times faster a way is than another in the same round."""
    return float(np.median(np.array(rates[name]) / np.array(rates[before])))


def seconds(load: Load, count: int, among: int) -> float:
    """The processor's seconds that ``count`` images take, stacked in batches."""
    load([0])
    start = time.process_time()
    for first in range(0, count, BATCH):
        load([index % among for index in range(first, first + BATCH)])
    return time.process_time() - start


def device_seconds(batch: dict[str, torch.Tensor]) -> float:
    """What changing the colours of one batch takes on the device."""
    device = accelerator().device
    view2 = upright(batch["view2"], batch["flips"][:, 1], device)
    start = time.perf_counter()
    apply_in_batch(view2, batch["photometrics"]).sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
