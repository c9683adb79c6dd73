"""JPEGs are decoded without Pillow to Pillow's pixels, bit by bit; what is another kind of image is left to Pillow."""

from collections.abc import Callable
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lutbench.data import decoding
from lutbench.data.decoding import UndecodableImage, decode, decode_pixels
from lutbench.data.images import load_or_next, open_dataset
from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph
from lutbench.recipes.base import DataRecipe

ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held."""


def written(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photographs(size: tuple[int, int]) -> list[Image.Image]:
    every = map(load_photograph, PHOTOGRAPHS.values())
    return [image.convert("RGB").resize(size) for image in every][:5]


@pytest.mark.parametrize("size", [(500, 375), (225, 224), (33, 250), (17, 9), (1, 1)])
def test_jpegs_in_colour_have_pillows_pixels_whatever_their_subsampling(size: tuple[int, int]) -> None:
    kinds = product(photographs(size), ("4:4:4", "4:2:2", "4:2:0", "4:1:1"), (20, 75, 95), (False, True))
    for image, subsampling, quality, progressive in kinds:
        content = written(image, subsampling=subsampling, quality=quality, progressive=progressive)
        found = decoding._jpeg(content)
        assert found is not None, "Pillow was not needed"
        assert found.flags.c_contiguous
        assert np.array_equal(found, np.asarray(decode(content, "one")))


def rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return written(image, exif=exif)


OTHERS: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda image: written(image.convert("L")),
    "CMYK": lambda image: written(image.convert("CMYK")),
    "rotated by EXIF": rotated,
    "RGB within": lambda image: written(image, keep_rgb=True),
    "restart markers": lambda image: written(image, restart_marker_blocks=3),
    "PNG": lambda image: written(image, "PNG"),
    "PNG with transparency": lambda image: written(image.convert("RGBA"), "PNG"),
    "palette": lambda image: written(image.convert("P"), "GIF"),
    "WEBP": lambda image: written(image, "WEBP", lossless=True),
    "several in one": lambda image: written(image, "MPO", save_all=True, append_images=[image.rotate(90)]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_kind_of_image_has_pillows_pixels_too(kind: str) -> None:
    for image in photographs((61, 40)):
        content = OTHERS[kind](image)
        assert np.array_equal(decode_pixels(content, "one"), np.asarray(decode(content, "one")))


@pytest.mark.parametrize("lost", [1, 20, 400, 2000])
def test_what_pillow_refuses_is_refused_by_its_name(lost: int) -> None:
    content = written(photographs((200, 150))[0])[:-lost]
    for decoder in (decode, decode_pixels):
        with pytest.raises(UndecodableImage, match=r"^one cannot be decoded: .*truncated"):
            decoder(content, "one")


def test_where_the_two_decoders_differ_pillows_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(photographs((60, 40))[0])
    exact = np.asarray(decode(content, "one"))
    jpeg = decoding._jpeg
    monkeypatch.setattr(decoding, "_jpeg", lambda content: 255 - jpeg(content))  # type: ignore[operator]
    decoding._jpegs_are_pillows.cache_clear()
    try:
        assert np.array_equal(decode_pixels(content, "one"), exact)
    finally:
        decoding._jpegs_are_pillows.cache_clear()


def test_a_dataset_gives_the_same_pixels_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number, make in enumerate([written, *OTHERS.values()]):
        ends = "png" if number in (6, 7) else "gif" if number == 8 else "webp" if number == 9 else "jpg"
        (tmp_path / f"set/{number:02d}.{ends}").write_bytes(make(photographs((50, 61))[1]))
    images = open_dataset(DataRecipe(path="set", train=""), "train", tmp_path)
    assert len(images) == 11
    for index in range(len(images)):
        pixels, *rest = load_or_next(images, index, form="pixels")
        image, *expected = load_or_next(images, index)
        assert rest == expected
        assert np.array_equal(pixels, np.asarray(image))
