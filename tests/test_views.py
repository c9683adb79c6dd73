"""The two views of pre-training are those of the paper, and depend on nothing but the key they are drawn under."""

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import tree
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional

from lutbench.data.decoding import Pixels
from lutbench.data.images import open_dataset
from lutbench.data.random_crop import random_resized_crop
from lutbench.data.tensors import resize_short_side, to_tensor
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.batches import FromStep, Rows, Samples, Schedule, stacked, stream
from lutbench.train.randomness import RngStream, seeded
from pretrain.photometrics import draw_photometrics
from pretrain.views import PretrainTransform, Views, padded_crop, upright

SIDE = 32
CPU = torch.device("cpu")


def recipe(**changes: object) -> PretrainRecipe:
    encoder = EncoderRecipe(model="vit_tiny_patch16_224", image_size=SIDE, patch_size=8, width=32, depth=1, heads=2)
    return PretrainRecipe(data=DataRecipe(), encoder=encoder, **changes)  # type: ignore[arg-type]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = random.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def shipped(changes: dict[str, object], image: Image.Image | Pixels, key: int = 0) -> dict[str, Tensor]:
    with seeded(RngStream.IMAGE, key):
        return PretrainTransform(recipe(**changes))(image)


def drawn(changes: dict[str, object], image: Image.Image | Pixels, key: int = 0) -> dict[str, Tensor]:
    """A sample with its views as the device turns them."""
    sample = shipped(changes, image, key)
    views = [name for name in ("view1", "view2") if name in sample]
    for flipped, name in zip(sample.pop("flips"), views, strict=True):
        sample[name] = upright(sample[name][None], flipped[None], CPU)[0]
    return sample


def flipped_crop(image: Image.Image, side: int, padding: int) -> Pixels:
    pixels = np.empty((side, side, 3), np.uint8)
    box = padded_crop(np.asarray(image), pixels, padding)
    return pixels[:, ::-1] if box.flipped else pixels


def test_a_sample_holds_two_views_and_one_noise_per_patch() -> None:
    sample = shipped({}, picture(50, 40))
    assert sample["view1"].shape == sample["view2"].shape == (SIDE, SIDE, 3)
    assert sample["flips"].dtype == torch.bool
    assert sample["view1"].dtype == sample["view2"].dtype == torch.uint8
    assert sample["view1"].is_contiguous()
    assert sample["view2"].is_contiguous()
    assert sample["noise"].shape == ((SIDE // 8) ** 2,)
    assert sample["noise"].dtype == torch.float32
    assert 0 <= sample["noise"].min() <= sample["noise"].max() < 1


def test_patches_are_counted_with_the_models_own_patch_size() -> None:
    default = PretrainTransform(PretrainRecipe(data=DataRecipe()))
    assert default.patches == 196


@pytest.mark.parametrize("crop", ["simple", "random"])
def test_view_1_and_noise_are_the_same_whatever_is_done_with_view_2(crop: str) -> None:
    image = picture(50, 40)
    lut = drawn({"crop": crop}, image)
    mae = drawn({"crop": crop, "context_weight": 0.0}, image)
    plain = drawn({"crop": crop, "photometric": False}, image)
    assert "view2" not in mae
    for other in (mae, plain):
        assert torch.equal(lut["view1"], other["view1"])
        assert torch.equal(lut["noise"], other["noise"])
    assert not torch.equal(lut["view2"], plain["view2"])


def test_all_recipes_mask_alike() -> None:
    image = picture(50, 40)
    noise = drawn({}, image)["noise"]
    for changes in (
        {"crop": "random"},
        {"context_weight": 0.0},
        {"framework": "simmim", "mask_unit": 16},
        {"crop_padding": 0},
    ):
        assert torch.equal(drawn(changes, image)["noise"], noise), changes
    assert not torch.equal(drawn({}, image, key=1)["noise"], noise)


def test_the_key_alone_decides_what_is_drawn() -> None:
    image = picture(50, 40)
    first, again, other = drawn({}, image, 1), drawn({}, image, 1), drawn({}, image, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_pickled_transform_draws_the_same() -> None:
    image = picture(50, 40)
    transform = PretrainTransform(recipe())
    copy = pickle.loads(pickle.dumps(transform))
    with seeded(5):
        expected = transform(image)
    with seeded(5):
        found = copy(image)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"photometrics_on": "device"}, {"crop": "random"}, {"context_weight": 0.0}], ids=str
)
def test_a_loader_brings_the_samples_of_single_images_though_one_cannot_be_decoded(
    changes: dict[str, object], workers: int, tmp_path: Path
) -> None:
    tree(tmp_path / "set" / "train")
    broken = sorted((tmp_path / "set").rglob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:40])
    images = open_dataset(DataRecipe(path="set", undecodable="skip"), "train", tmp_path)
    transform, schedule = PretrainTransform(recipe(**changes)), Schedule(len(images), 2, 4, 4, seed=3)
    samples = Samples(images, transform, 3, "Pillow")
    skipped = 0
    for keys, batch in zip(FromStep(schedule, 0), stream(images, transform, schedule, workers=workers), strict=True):
        for row, key in enumerate(keys):
            expected = samples.sample(*key)
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[name][row], torch.as_tensor(value)) for name, value in expected.items())
            skipped += expected["skipped"]
    assert skipped >= 2, "once an epoch"


@pytest.mark.parametrize("photometrics_on", ["device", "loader"])
@pytest.mark.parametrize("crop", ["simple", "random"])
def test_a_batch_holds_the_samples_and_simple_crops_are_written_into_it(crop: str, photometrics_on: str) -> None:
    transform = PretrainTransform(recipe(crop=crop, photometrics_on=photometrics_on))
    images = [picture(50, 40, seed) for seed in range(3)]
    rows, samples = Rows(3), []

    def made() -> Iterator[dict[str, Tensor]]:
        for number, image in enumerate(images):
            with seeded(RngStream.IMAGE, number):
                samples.append(transform(image, rows))
            yield samples[-1]

    batch = stacked(made(), rows)
    for number, image in enumerate(images):
        with seeded(RngStream.IMAGE, number):
            expected = transform(image)
        assert expected.keys() == batch.keys()
        assert all(torch.equal(batch[name][number], expected[name]) for name in expected)
        in_place = {
            name for name in ("view1", "view2") if samples[number][name].data_ptr() == batch[name][number].data_ptr()
        }
        written = {"view1", "view2"} if photometrics_on == "device" else {"view1"}
        assert in_place == (written if crop == "simple" else set())


def test_a_loader_lets_simple_crops_be_written_into_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "set" / "train")
    images = open_dataset(DataRecipe(path="set"), "train", tmp_path)
    samples = Samples(images, PretrainTransform(recipe(photometrics_on="device")), 3, "Pillow")
    put, copied = Rows.put, []

    def noting(rows: Rows, name: str, pixels: Tensor) -> None:
        copied.append(rows.batch[name][rows.row].data_ptr() != pixels.data_ptr())
        put(rows, name, pixels)

    monkeypatch.setattr(Rows, "put", noting)
    samples.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert copied == [False] * 6


def test_pixels_written_in_another_order_are_copied_and_those_of_a_later_sample_alone_are_refused() -> None:
    rows = Rows(2)
    turned = torch.from_numpy(rows.of("image", 4, 4, 3)).permute(2, 0, 1)
    turned.copy_(torch.arange(48).view(3, 4, 4))
    with pytest.raises(RuntimeError):  # it is of another shape
        rows.put("image", turned)
    square = torch.from_numpy(rows.of("other", 4, 4))
    square.copy_(torch.arange(16).view(4, 4))
    rows.put("other", square.T.clone())
    assert torch.equal(rows.batch["other"][0], torch.arange(16, dtype=torch.uint8).view(4, 4).T)
    rows.row = 1
    with pytest.raises(KeyError, match="late"):
        rows.put("late", square)


@pytest.mark.parametrize("size", [(32, 32), (45, 32), (32, 60)])
@pytest.mark.parametrize("padding", [0, 4, 15])
def test_the_padded_crop_is_torchvisions(size: tuple[int, int], padding: int) -> None:
    image = picture(*size)
    padded = functional.pad(image, [padding] * 4, padding_mode="reflect") if padding else image
    for key in range(40):
        with seeded(key):
            found = flipped_crop(image, SIDE, padding)
        with seeded(key):
            down, across, flip = torch.rand(3).tolist()
        upper = int(down * (padded.height - SIDE + 1))
        left = int(across * (padded.width - SIDE + 1))
        expected = functional.crop(padded, upper, left, SIDE, SIDE)
        expected = functional.horizontal_flip(expected) if flip < 0.5 else expected
        assert np.array_equal(found, expected)


def test_every_place_of_the_padded_crop_is_drawn_and_half_are_flipped() -> None:
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    image = Image.fromarray(np.stack([rows, columns, columns], -1).astype(np.uint8))
    places: Counter[tuple[int, int]] = Counter()
    flipped = 0
    with seeded(0):
        for _ in range(3000):
            crop = flipped_crop(image, SIDE, 2).astype(int)
            is_flipped = crop[0, 10, 1] > crop[0, 20, 1]
            flipped += is_flipped
            middle = crop[:, ::-1] if is_flipped else crop
            places[middle[16, 16, 0] - 16, middle[16, 16, 1] - 16] += 1
    assert set(places) == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}
    assert min(places.values()) > 70  # 120 expected of each
    assert 1400 < flipped < 1600


def test_the_simple_crop_keeps_the_scale_and_resizes_the_short_side() -> None:
    image = picture(64, 128)
    small = functional.resize(image, [SIDE], functional.InterpolationMode.BICUBIC)
    assert small.size == (SIDE, 2 * SIDE)
    with seeded(3):
        torch.rand((SIDE // 8) ** 2)  # the noise
        expected = Image.fromarray(flipped_crop(small, SIDE, 4))
    assert torch.equal(drawn_view1(image, 3), to_tensor(expected))
    assert resize_short_side(small, SIDE) is small, "an image of the right size is not resampled"


def drawn_view1(image: Image.Image, key: int) -> Tensor:
    with seeded(key):
        sample = PretrainTransform(recipe())(image)
    return upright(sample["view1"][None], sample["flips"][:1], CPU)[0]


def test_the_random_crop_covers_a_fifth_to_all_of_the_area() -> None:
    rows, columns = np.meshgrid(np.arange(200), np.arange(200), indexing="ij")
    image = Image.fromarray(np.stack([rows, columns, columns], -1).astype(np.uint8))
    areas = []
    with seeded(0):
        for _ in range(300):
            crop = np.asarray(random_resized_crop(image, 50, (0.2, 1.0))[0]).astype(float)
            height = abs(crop[40, 25, 0] - crop[10, 25, 0]) / 30 * 50
            width = abs(crop[25, 40, 1] - crop[25, 10, 1]) / 30 * 50
            areas.append(height * width / 200**2)
    assert 0.17 < min(areas) < 0.25
    assert 0.9 < max(areas) < 1.05
    assert 0.5 < np.mean(areas) < 0.65


def test_two_plain_views_differ_in_their_crops_only() -> None:
    image = picture(60, 40)
    sample = drawn({"photometric": False}, image)
    assert not torch.equal(sample["view1"], sample["view2"])
    small = functional.resize(image, [SIDE], functional.InterpolationMode.BICUBIC)
    colours = {tuple(colour) for colour in np.asarray(small).reshape(-1, 3)}
    assert {tuple(colour) for colour in sample["view2"].flatten(1).T.numpy()} <= colours


def test_a_batch_becomes_normalised_views() -> None:
    samples, expected = ([of({}, picture(50, 40, seed), seed) for seed in range(6)] for of in (shipped, drawn))
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    assert len(batch["flips"][:, 0].unique()) == 2, "some are flipped and some are not"
    normalise = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    found = Views.from_batch(batch, CPU)
    assert found.view2 is not None
    for name, view in (("view1", found.view1), ("view2", found.view2)):
        assert view.dtype == torch.float32
        assert view.is_contiguous(), "a model's sums have another order in another layout"
        pixels = torch.stack([sample[name] for sample in expected])
        torch.testing.assert_close(view, normalise(pixels / 255), atol=1e-6, rtol=1e-6)
    assert torch.equal(found.noise, batch["noise"])
    del batch["view2"]
    assert Views.from_batch(batch, CPU).view2 is None


@pytest.mark.parametrize("on", ["loader", "device"])
@pytest.mark.parametrize("crop", ["simple", "random"])
def test_views_are_what_pillow_alone_makes_of_the_image_bit_by_bit(crop: str, on: str) -> None:
    for key in range(12):
        image = picture(70, 45, key)
        found = drawn({"crop": crop, "photometrics_on": on}, image, key)
        small = resize_short_side(image, SIDE) if crop == "simple" else image

        def plain(source: Image.Image = small) -> Image.Image:
            """One view, by Pillow and torchvision."""
            if crop == "random":
                place = RandomResizedCrop.get_params(source, [0.2, 1.0], [3 / 4, 4 / 3])
                view = functional.resized_crop(source, *place, [SIDE, SIDE], functional.InterpolationMode.BICUBIC)
                flip = torch.rand(1).item()
            else:
                down, across, flip = torch.rand(3).tolist()
                padded = functional.pad(source, [4] * 4, padding_mode="reflect")
                place = int(down * (padded.height - SIDE + 1)), int(across * (padded.width - SIDE + 1))
                view = functional.crop(padded, *place, SIDE, SIDE)
            return functional.horizontal_flip(view) if flip < 0.5 else view

        with seeded(RngStream.IMAGE, key):
            assert torch.equal(found["noise"], torch.rand((SIDE // 8) ** 2))
            view1, view2, colours = plain(), plain(), draw_photometrics()
        assert torch.equal(found["view1"], to_tensor(view1))
        if on == "device":
            assert torch.equal(found["view2"], to_tensor(view2))
            assert torch.equal(found["photometrics"], colours.numbers())
        else:
            assert torch.equal(found["view2"], to_tensor(colours.apply(view2)))


@pytest.mark.parametrize("crop", ["simple", "random"])
def test_torchvisions_views_have_the_same_draws_and_differ_by_a_grey_level_at_most(crop: str) -> None:
    differing = 0
    for key in range(20):
        image = picture(90 + key, 60 + 3 * key, key)
        changes = {"crop": crop, "photometrics_on": "device"}
        pillows, pixels = shipped(changes, image, key), shipped(changes, np.array(image), key)
        assert pillows.keys() == pixels.keys()
        for name in pillows:
            if name.startswith("view"):
                difference = (pillows[name].int() - pixels[name].int()).abs()
                assert difference.max() <= 1
                differing += int(difference.sum())
            else:
                assert torch.equal(pillows[name], pixels[name]), name
    assert differing, "if nothing differed, no record would have to say who resized"


def test_padding_that_cannot_be_reflected_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="crop_padding = 16"):
        PretrainTransform(recipe(crop_padding=16))
