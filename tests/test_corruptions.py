"""Corruptions are ImageNet-C's, as strong as published, and the same pixels on every run and machine."""

import json
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corruption_digests import digests
from numpy.typing import NDArray
from PIL import Image
from record_imagecorruptions import FIXTURE, clean_images, statistics
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.feature import canny

from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph
from lutbench.errors import UserError
from lutbench.train.randomness import generator
from robustness.corruptions import CORRUPTIONS, EXTRA, REVISION, SEVERITIES, constants_for, corrupt, draw_of
from robustness.corruptions.blur import glass_blur
from robustness.corruptions.constants import CIFAR_10_C, IMAGENET_C, PUBLISHED, TINY_IMAGENET_C
from robustness.corruptions.digital import brightness, elastic_transform
from robustness.corruptions.frost import SHEETS, frost_crop
from robustness.corruptions.noise import impulse_noise, shot_noise
from robustness.corruptions.pixels import Pixels, from_bytes, smear, to_bytes, zoomed
from robustness.corruptions.spatter import edges_of
from robustness.corruptions.weather import plasma

ALL = CORRUPTIONS + EXTRA

PINNED = {
    "gaussian_noise": "577d57ef3cbb26e2",
    "shot_noise": "6c10960c7cfa481e",
    "impulse_noise": "4572feb53b3d1169",
    "defocus_blur": "414c03ec2b726fed",
    "glass_blur": "7d0a15218c1f3a8a",
    "motion_blur": "5b0a2ef4b7c6fa5b",
    "zoom_blur": "ac74cdb2747d386b",
    "snow": "04507bcb7dab4c78",
    "frost": "cf5a9e95fc6e22b8",
    "fog": "e32b30f73c2accd5",
    "brightness": "5d128069c12118dd",
    "contrast": "9646f80c20a45010",
    "elastic_transform": "a14fe712f89bd43d",
    "pixelate": "2471b7b08778d5ec",
    "jpeg_compression": "65e8dbd01ade70fb",
    "speckle_noise": "e75d3ea8357cd415",
    "gaussian_blur": "0c5542094bf79698",
    "spatter": "cf3f0a258e2320a4",
    "saturate": "691e128f9540819a",
}
"""Of :mod:`corruption_digests`, with the versions in constraints.txt."""

WITHOUT_CHANCE = {
    "defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate",
}  # fmt: skip


def photographs(side: int, count: int = 19) -> list[NDArray[np.uint8]]:
    """The upper left squares of photographs, reduced to ``side``."""
    found = []
    for file in list(PHOTOGRAPHS.values())[:count]:
        image = load_photograph(file)
        square = min(image.size)
        found.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, (0, 0, square, square))))
    return found


# The same pixels


def test_there_are_fifteen_corruptions_and_four_extra_ones() -> None:
    assert (len(CORRUPTIONS), len(EXTRA)) == (15, 4)
    assert CORRUPTIONS[0] == "gaussian_noise"
    assert CORRUPTIONS[-1] == "jpeg_compression"
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def test_pixels_are_those_of_the_revision() -> None:
    assert (REVISION, digests()) == (1, PINNED), "if that is meant, raise REVISION and pin the new ones"


def test_pixels_do_not_depend_on_the_processor() -> None:
    plain = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3", "OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "1"}
    if platform.machine() != "x86_64":
        pytest.skip("these are features of an x86-64")
    environment = {**os.environ, **plain, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("corruption_digests.py")
    answer = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == digests()


def test_everything_random_comes_from_the_generator_that_is_given() -> None:
    image = photographs(64, 1)[0]
    for name in ALL:
        first = corrupt(image, name, 4, draw_of(name, 4, 0))
        np.random.seed(3)  # noqa: NPY002 - to see that it has no effect
        assert np.array_equal(corrupt(image, name, 4, draw_of(name, 4, 0)), first), name
        other = corrupt(image, name, 4, draw_of(name, 4, 1))
        assert np.array_equal(other, first) == (name in WITHOUT_CHANCE), name


def test_no_two_images_corruptions_or_severities_share_a_generator() -> None:
    keys = [(name, severity, index) for name in ALL for severity in SEVERITIES for index in range(3)]
    assert len({int(draw_of(*key).integers(2**62)) for key in keys}) == len(keys)


def test_an_image_is_not_changed_in_place() -> None:
    image = photographs(64, 1)[0].copy()
    before = image.copy()
    for name in ALL:
        corrupt(image, name, 5, draw_of(name, 5, 0))
    assert np.array_equal(image, before)


def test_whole_grey_levels_survive_errors_of_rounding() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_bytes(from_bytes(levels)), levels)
    assert np.array_equal(to_bytes(from_bytes(levels) - 1e-12), levels)
    assert to_bytes(np.array([99.99 / 255])).tolist() == [99], "otherwise it is truncated, as published"


@pytest.mark.parametrize("level", [0, 93, 201, 255])
def test_what_moves_and_mixes_pixels_leaves_a_flat_image_as_it_is(level: int) -> None:
    flat = np.full((64, 64, 3), level, np.uint8)
    mixing = [name for name in ALL if name.endswith("_blur")] + ["elastic_transform", "pixelate", "contrast"]
    for name in mixing:
        for severity in (2, 4):
            draw = draw_of(name, severity, 0)
            assert np.array_equal(corrupt(flat, name, severity, draw, TINY_IMAGENET_C), flat), name


# How strong


def test_strengths_are_those_published_for_the_nearest_side() -> None:
    assert [constants_for(side).name for side in (32, 45, 46, 64, 96, 119, 120, 224, 384)] == [
        *["CIFAR-10-C"] * 2, *["Tiny-ImageNet-C"] * 4, *["ImageNet-C"] * 3,
    ]  # fmt: skip
    for published in PUBLISHED:
        assert tuple(published.rows) == ALL
        for name, rows in published.rows.items():
            assert len(rows) == len(SEVERITIES)
            assert len(set(rows)) == 5, f"{published.name}: {name} has two equal severities"
    assert [c.rows["gaussian_noise"][4] for c in PUBLISHED] == [(0.38,), (0.18,), (0.10,)]
    image = photographs(64, 1)[0]
    weak, strong = (corrupt(image, "contrast", 1, draw_of("contrast", 1, 0), c) for c in (CIFAR_10_C, IMAGENET_C))
    assert weak.std() > 1.5 * strong.std()
    assert np.array_equal(corrupt(image, "contrast", 1, generator(0)), strong), "Tiny-ImageNet-C's is ImageNet-C's here"


@pytest.mark.parametrize("side", [32, 64, 224])
def test_every_corruption_changes_every_image(side: int) -> None:
    for index, image in enumerate(photographs(side, 9 if side < 224 else 2)):
        grey = not np.ptp(image.astype(int), axis=2).any()
        for name in ALL:
            for severity in SEVERITIES if side < 224 else (1, 5):
                after = corrupt(image, name, severity, draw_of(name, severity, index))
                assert after.shape == image.shape
                assert after.dtype == np.uint8
                if name == "saturate" and grey:  # greys have no saturation, and severities 1 to 3 only multiply it
                    assert np.array_equal(after, image) == (severity <= 3)
                else:
                    assert not np.array_equal(after, image), (name, severity, index)


NOT_FURTHER = {
    "glass_blur": "severity 2 shuffles as severity 1 does, and blurs the dots away",
    "frost": "ever more ice, and ever less of the image, on sheets of different brightness",
    "elastic_transform": "its severities are different kinds of distortion, the first mostly shifts",
    "spatter": "drops of water at severities 1 to 3, splashes of mud at 4 and 5",
    "saturate": "less saturation at severities 1 and 2, more from 3 on",
}
"""Corruptions that do not take an image further away with every severity, by the published strengths."""


def test_severity_takes_images_further_away() -> None:
    images = photographs(64)
    for name in ALL:
        distances = []
        for severity in SEVERITIES:
            after = [corrupt(image, name, severity, draw_of(name, severity, k)) for k, image in enumerate(images)]
            distances.append(np.mean([statistics(*pair)[0] for pair in zip(images, after, strict=True)]))
        further = all(low < high for low, high in pairwise(distances))
        assert further == (name not in NOT_FURTHER), (name, distances)


# Compared with another implementation

TOLERANCE = {"impulse_noise": 0.01, "glass_blur": 0.015, "motion_blur": 0.05, "snow": 0.05, "spatter": 0.09}
"""Of statistics, as a share: what chance leaves. Splashes and drops are few and large."""


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("frost", "elastic_transform")])
def test_statistics_are_those_of_another_implementation(name: str) -> None:
    recorded = json.loads(FIXTURE.read_text())["values"][name]
    for severity, theirs in zip(SEVERITIES, recorded, strict=True):
        found = []
        for number, clean in enumerate(clean_images()):
            for repeat in range(1 if name in WITHOUT_CHANCE else 20):
                draw = draw_of(name, severity, 20 * number + repeat)
                found.append(statistics(clean, corrupt(clean, name, severity, draw, IMAGENET_C)))
        change, mean, *neighbours = np.mean(found, 0)
        allowed = TOLERANCE.get(name, 0.005)
        assert [change, *neighbours] == pytest.approx([theirs[0], *theirs[2:]], rel=0.03 if name == "fog" else allowed)
        assert mean == pytest.approx(theirs[1], abs=(0.15 if name == "fog" else allowed) * theirs[0])


def test_zooming_is_scipys() -> None:
    image = from_bytes(photographs(64, 4)[3])
    for factor in (1.05, 1.25, 2.25, 4.5):
        part = int(np.ceil(64 / factor))
        top = (64 - part) // 2
        whole = ndimage.zoom(image[top : top + part, top : top + part], (factor, factor, 1), order=1)
        cut = (len(whole) - 64) // 2
        assert np.allclose(zoomed(image, factor), whole[cut : cut + 64, cut : cut + 64], atol=1e-12)


def test_smearing_weighs_the_pixels_on_one_side_by_half_a_gaussian() -> None:
    dot = np.zeros((9, 9))
    dot[4, 4] = 1
    weights = np.exp(-(np.arange(5) ** 2) / 8)
    weights /= weights.sum()
    across, up = smear(dot, 2, 2, 0), smear(dot, 2, 2, -90)
    assert np.allclose(across[4], [*weights[::-1], 0, 0, 0, 0])
    assert np.allclose(up[:, 4], [0, 0, 0, 0, *weights])
    assert across.sum() == pytest.approx(1)
    assert np.array_equal(smear(np.full((5, 5), 0.25), 3, 2, 30), np.full((5, 5), 0.25)), "edges are repeated"


def test_brightness_raises_the_value_of_hsv() -> None:
    image = from_bytes(photographs(64, 4)[3]).copy()
    image[:8] = 0
    hsv = rgb2hsv(image)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.3, 1)
    assert np.allclose(brightness(image, generator(0), 0.3), hsv2rgb(hsv), atol=1e-12)


def test_edges_of_a_square_are_one_pixel_wide() -> None:
    square = np.zeros((20, 20), np.uint8)
    square[5:15, 6:16] = 180
    edges = edges_of(square)
    assert edges[10].nonzero()[0].tolist() == [5, 15], "of two equal neighbours the first"
    assert edges[:, 10].nonzero()[0].tolist() == [4, 14]
    assert not edges_of(np.minimum(square, 10)).any()
    blurred = to_bytes(ndimage.gaussian_filter(square / 255, 1.5))
    theirs = canny(blurred / 255, 0, 50 / 255, 150 / 255)  # type: ignore[no-untyped-call]
    assert (edges_of(blurred) <= ndimage.binary_dilation(theirs, np.ones((3, 3)))).all()


# What chance does


def test_impulses_are_black_or_white_and_as_many_as_said() -> None:
    grey = np.full((200, 200, 3), 0.5)
    after = impulse_noise(grey, generator(0), 0.17)
    assert np.unique(after).tolist() == [0, 0.5, 1]
    assert (after != 0.5).mean() == pytest.approx(0.17, abs=0.004)
    assert (after == 1).mean() == pytest.approx(0.085, abs=0.003)


def test_shot_noise_has_the_variance_of_counted_photons() -> None:
    after = shot_noise(np.full((300, 300, 3), 0.4), generator(0), 12)
    assert after.mean() == pytest.approx(0.4, abs=0.002)
    assert after.var() == pytest.approx(0.4 / 12, rel=0.02)


def test_glass_shows_pixels_of_the_image_that_come_from_near() -> None:
    rows, columns = np.indices((40, 50))
    image = from_bytes(np.stack([rows, columns, rows + columns], -1).astype(np.uint8))
    after = np.rint(glass_blur(image, generator(0), 0.0, 2, 1) * 255).astype(int)
    assert np.array_equal(after[..., 2], after[..., 0] + after[..., 1]), "channels stay together"
    moved = np.abs(after[..., 0] - rows) + np.abs(after[..., 1] - columns)
    assert (moved[3:38, 3:48] > 0).mean() > 0.8
    assert np.median(moved[3:38, 3:48]) <= 3
    assert not moved[:3].any(), "pixels that lie too near the edge stay"
    copied = np.unique(rows.size - len(np.unique(after[..., 0] * 50 + after[..., 1])))
    assert copied > 0.2 * rows.size, "one pixel is copied, not two swapped: as in the published sets"


def test_clouds_have_all_sizes_and_grow_rougher_as_their_decay_falls() -> None:
    smooth, rough = ([plasma(64, decay, generator(0, k)) for k in range(8)] for decay in (3.0, 1.4))
    for cloud in smooth + rough:
        assert (cloud.min(), cloud.max()) == (0, 1)
        wrapped = np.abs(cloud[0] - cloud[-1]).mean()
        assert wrapped < 3 * np.abs(np.diff(cloud, axis=0)).mean(), "opposite edges meet"

    def roughness(clouds: list[Pixels]) -> float:
        return float(np.mean([np.abs(np.diff(cloud, axis=0)).mean() / cloud.std() for cloud in clouds]))

    assert roughness(rough) > 2 * roughness(smooth)


def test_elastic_distortion_moves_pixels_as_far_as_published() -> None:
    rows, columns = np.indices((64, 64))
    image = np.stack([rows, columns, rows], -1) / 63
    inside = (slice(16, 48), slice(16, 48))

    def shifts(name_row: tuple[float, ...], number: int) -> Pixels:
        came_from = elastic_transform(image, generator(0, number), *name_row)[..., :2] * 63
        return (came_from - np.stack([rows, columns], -1))[inside]

    affine, *_, warped = TINY_IMAGENET_C.rows["elastic_transform"]
    places = np.column_stack([rows[inside].ravel(), columns[inside].ravel(), np.ones(32 * 32)])
    for number in range(6):
        shift = shifts(affine, number).reshape(-1, 2)
        assert np.abs(places @ np.linalg.lstsq(places, shift, rcond=None)[0] - shift).max() < 1e-9, (
            "severity 1 is affine"
        )
        assert 0.5 < np.abs(shift).max() < 4 * affine[2]
    height, sigma, _ = warped
    expected = height / np.sqrt(3) / (2 * sigma * np.sqrt(np.pi))  # of uniform noise blurred by a Gaussian
    found = np.std([shifts((height, sigma, 0.0), number) for number in range(20)])
    assert found == pytest.approx(expected, rel=0.05)


def test_frost_has_colours_contrast_and_grain_of_the_photographs() -> None:
    crops = [frost_crop((64, 64), generator(0, k)) for k in range(80)]
    nearest = [min(range(5), key=lambda k: np.abs(crop.mean((0, 1)) - SHEETS[k][0]).sum()) for crop in crops]
    assert {nearest.count(k) > 5 for k in (0, 1, 3, 4)} == {True}
    contrast = float(np.mean([crop.mean(2).std() for crop in crops]))
    assert 0.06 < contrast < 0.12, "photographs, in crops of 64 after reduction: 0.05 to 0.11"
    spectrum = np.mean([np.abs(np.fft.fft2(crop.mean(2) - crop.mean())) ** 2 for crop in crops], 0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    middle = (frequency > 2 / 64) & (frequency < 0.45)
    slope = np.polyfit(np.log(frequency[middle]), np.log(spectrum[middle]), 1)[0]
    assert -2.6 < slope < -1.5, "photographs: -2.6 to -1.5"


# What is refused


def test_an_unknown_corruption_is_refused_with_the_nearest_name() -> None:
    image = photographs(64, 1)[0]
    with pytest.raises(
        UserError, match=r"no corruption 'gausian_noise'\. Did you mean 'gaussian_noise'\? .*extra: speckle"
    ):
        corrupt(image, "gausian_noise", 1, generator(0))


@pytest.mark.parametrize("severity", [0, 6])
def test_an_unknown_severity_is_refused(severity: int) -> None:
    with pytest.raises(UserError, match=f"no severity {severity}: severities are 1, 2, 3, 4, 5"):
        corrupt(photographs(64, 1)[0], "fog", severity, generator(0))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((64, 64), np.uint8), ((64, 64, 1), np.uint8), ((64, 64, 3), np.float64), ((31, 64, 3), np.uint8)],
)
def test_what_is_no_8_bit_rgb_image_or_too_small_is_refused(shape: tuple[int, ...], kind: type) -> None:
    with pytest.raises(UserError, match="expected an 8-bit RGB image") as error:
        corrupt(np.zeros(shape, kind), "fog", 1, generator(0))
    assert f"{np.dtype(kind)} {shape}" in str(error.value)


def test_images_need_not_be_square() -> None:
    image = np.asarray(load_photograph(PHOTOGRAPHS["coffee"]).crop((0, 0, 80, 50)))
    for name in ALL:
        assert corrupt(image, name, 3, draw_of(name, 3, 0)).shape == (50, 80, 3), name
