"""View 2 changes in colour as published, and on the training device as with Pillow."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from lutbench.data.tensors import to_tensor
from lutbench.train.randomness import seeded
from pretrain.photometrics import EFFECTS, Photometrics, apply_in_batch, draw_photometrics

SIDE = 96


def photographs(count: int) -> list[Image.Image]:
    """Crops in colour, and one that is gray all over, which has no hue."""
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), np.full((200, 200, 3), 77, np.uint8)]
    crops = []
    for number in range(count):
        pixels, start = sources[number % len(sources)], 17 * number % 100
        crops.append(Image.fromarray(pixels[start : start + SIDE, start : start + SIDE]))
    return crops


def drawings(count: int) -> list[Photometrics]:
    with seeded(count):
        return [draw_photometrics() for _ in range(count)]


def on_the_device(images: list[Image.Image], drawn: list[Photometrics]) -> torch.Tensor:
    return apply_in_batch(torch.stack(list(map(to_tensor, images))), torch.stack([one.numbers() for one in drawn]))


def test_photometrics_are_drawn_as_often_and_as_strongly_as_published() -> None:
    with seeded(0):
        drawings = [draw_photometrics() for _ in range(3000)]
    assert 0.77 < np.mean([d.jittered for d in drawings]) < 0.83
    effects = Counter(d.effect for d in drawings)
    assert set(effects) == {"grayscale", "solarize", "blur"}
    assert min(effects.values()) > 900
    factors = np.array([d.factors for d in drawings])
    for found, low, high in zip(factors.T, (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), strict=True):
        assert low <= found.min() < low + 0.01
        assert high - 0.01 < found.max() <= high
    radii = [d.radius for d in drawings]
    assert 0.1 <= min(radii) < 0.12
    assert 1.98 < max(radii) <= 2.0
    assert len({d.order for d in drawings}) == 24


def test_photometrics_are_torchvisions_jitter_and_then_one_effect() -> None:
    image = photographs(1)[0]
    jitter = v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
    seen = set()
    for key in range(30):
        with seeded(key):
            drawing = draw_photometrics()
        with seeded(key):
            expected = jitter(image) if drawing.jittered else image
        if drawing.effect == "grayscale":
            expected = functional.rgb_to_grayscale(expected, 3)
        elif drawing.effect == "solarize":
            pixels = np.asarray(expected)
            expected = np.where(pixels >= 128, 255 - pixels, pixels)
        else:
            expected = expected.filter(ImageFilter.GaussianBlur(drawing.radius))
        assert np.array_equal(drawing.apply(image), expected)
        seen.add((drawing.jittered, drawing.effect))
    assert len(seen) == 6


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("jittered", [True, False])
def test_the_device_changes_colours_as_pillow_does(effect: str, jittered: bool) -> None:
    images = photographs(60)
    drawn = [replace(one, effect=effect, jittered=jittered) for one in drawings(60)]  # type: ignore[arg-type]
    expected = torch.stack([to_tensor(one.apply(image)) for one, image in zip(drawn, images, strict=True)])
    apart = (on_the_device(images, drawn).float() - expected.float()).abs().mean((1, 2, 3))
    assert apart.max() < 0.1, "grey levels, on average over an image"


def test_an_images_colours_do_not_depend_on_its_batch() -> None:
    images, drawn = photographs(24), drawings(24)
    together = on_the_device(images, drawn)
    alone = torch.cat([on_the_device([image], [one]) for image, one in zip(images, drawn, strict=True)])
    assert torch.equal(together, alone)
    assert len(Counter(one.effect for one in drawn)) == 3
