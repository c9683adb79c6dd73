"""What classifiers see: shapes, sources and exact repeatability, in this process and in loader workers."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from downstream.augment import classifier_input, linear_transform, train_transform
from lutbench.data.tensors import normalised as on_device
from lutbench.evaluate.transform import Transform, eval_transform
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import ClassificationRecipe, EncoderSource, FinetuneRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe, LinearRecipe
from lutbench.train.batches import Rows, stacked
from lutbench.train.loader import together
from lutbench.train.randomness import RngStream, seeded
from pretrain.views import PretrainTransform

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
BICUBIC = functional.InterpolationMode.BICUBIC

ENCODER = EncoderRecipe(model="vit_tiny_patch16_224", image_size=48, patch_size=8, width=32, depth=1, heads=2)
SOURCE = EncoderSource(architecture=ENCODER, kind="scratch")


def eval_transform_of(recipe: ClassificationRecipe) -> Transform:
    return eval_transform(recipe.side, recipe.eval_crop)


def finetune(**changes: object) -> FinetuneRecipe:
    return FinetuneRecipe(data=DataRecipe(), encoder=SOURCE, **changes)  # type: ignore[arg-type]


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), 3)


def normalised(image: Image.Image) -> Tensor:
    pixels: Tensor = functional.pil_to_tensor(image).float() / 255
    return (pixels - MEAN) / STD


class Seen:
    """What the classifier sees of an image in fine-tuning."""

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self.transform = train_transform(recipe, IMAGENETS)

    def __call__(self, image: Image.Image) -> Tensor:
        return classifier_input(stacked([self.transform(image)], Rows(1)), torch.device("cpu"), IMAGENETS)[0]


TRANSFORMS: dict[str, Callable[[], Callable[[Image.Image], Tensor]]] = {
    "train": lambda: Seen(finetune(erasing=0.9)),
    "linear": lambda: linear_transform(LinearRecipe(data=DataRecipe(), encoder=SOURCE), IMAGENETS),
    "eval": lambda: eval_transform_of(KnnRecipe(data=DataRecipe(), encoder=SOURCE)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(48, 48), (20, 31), (500, 90)])
def test_images_of_any_size_become_squares_of_the_recipes_side(name: str, size: tuple[int, int]) -> None:
    with seeded(0):
        found = TRANSFORMS[name]()(picture(*size))
    assert found.shape == (3, 48, 48)
    assert found.dtype == (torch.float32 if name == "train" else torch.uint8)


def test_another_image_size_of_the_recipe_is_used() -> None:
    assert eval_transform_of(finetune(image_size=80))(picture(60, 60)).shape == (3, 80, 80)


@pytest.mark.parametrize(("side", "resized"), [(224, 256), (448, 448), (64, 73)])
def test_evaluation_takes_the_centre_of_the_resized_image(side: int, resized: int) -> None:
    image = picture(300, 200)
    expected = functional.center_crop(functional.resize(image, [resized], BICUBIC), [side])
    found = eval_transform_of(finetune(image_size=side))(image)
    assert torch.equal(found, functional.pil_to_tensor(expected))


def test_evaluation_without_a_margin_takes_the_whole_square() -> None:
    image = picture(48, 48)
    assert torch.equal(eval_transform_of(finetune(eval_crop=1.0))(image), functional.pil_to_tensor(image))


def test_training_and_evaluation_normalise_alike() -> None:
    image = picture(48, 48)
    found = on_device(eval_transform_of(finetune(eval_crop=1.0))(image)[None], torch.device("cpu"))[0]
    torch.testing.assert_close(found, normalised(image), atol=1e-6, rtol=1e-6)


def test_training_with_everything_off_is_a_plain_resize() -> None:
    recipe = finetune(rand_augment="", erasing=0.0, crop_scale=[1.0, 1.0], flip=0.0)
    image = picture(96, 96)
    with seeded(0):
        found = Seen(recipe)(image)
    torch.testing.assert_close(
        found, normalised(image.resize((48, 48), Image.Resampling.BICUBIC)), atol=1e-6, rtol=1e-6
    )


def test_flip_is_the_recipes() -> None:
    image = picture(48, 48)
    plain = {"rand_augment": "", "erasing": 0.0, "crop_scale": [1.0, 1.0]}
    mirrored = normalised(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    with seeded(0):
        found = Seen(finetune(**plain, flip=1.0))(image)
    torch.testing.assert_close(found, mirrored, atol=1e-6, rtol=1e-6)


def test_erased_rectangles_hold_noise_that_differs_from_pixel_to_pixel() -> None:
    recipe = finetune(rand_augment="", erasing=1.0, crop_scale=[1.0, 1.0], flip=0.0)
    image = Image.new("RGB", (48, 48), (124, 116, 104))  # the mean: 0 when normalised
    with seeded(0):
        found = Seen(recipe)(image)
    erased = found[0].abs() > 0.02
    assert 0.01 < erased.float().mean() < 0.4
    assert found[0][erased].unique().numel() > 0.9 * erased.sum()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_erased_on_the_device_is_what_timms_own_transform_erases(device: str) -> None:
    recipe = finetune(erasing=0.5)
    timms = create_transform(
        48, is_training=True, scale=(0.08, 1.0), hflip=0.5, color_jitter=0.0, auto_augment=recipe.rand_augment,
        interpolation="bicubic", re_prob=0.5, re_mode="pixel", mean=IMAGENETS.mean, std=IMAGENETS.std,
    )  # fmt: skip
    ours, samples, expected = train_transform(recipe, IMAGENETS), [], []
    for key in range(40):
        with seeded(RngStream.IMAGE, key):
            expected.append(timms(picture(60, 50)))
        with seeded(RngStream.IMAGE, key):
            samples.append(ours(picture(60, 50)))
    assert all(sample["image"].dtype == torch.uint8 for sample in samples)
    lengths = [len(sample["erased_noise"]) for sample in samples]
    assert 10 < sum(length > 0 for length in lengths) < 30, "some are erased"
    batch = together([stacked(samples[:15], Rows(15)), stacked(samples[15:], Rows(25))])
    found = classifier_input(batch, torch.device(device), IMAGENETS).cpu()
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_torchvision_resizes_what_is_evaluated_and_probed_within_a_grey_level(interpolation: str) -> None:
    prepared = IMAGENETS._replace(interpolation=interpolation)
    evaluating = eval_transform(48, 0.875, interpolation)
    probing = linear_transform(LinearRecipe(data=DataRecipe(), encoder=SOURCE), prepared)
    for transform in (evaluating, probing):
        levels = set()
        for key in range(20):
            image = picture(120 + key, 90 + 2 * key)
            looks = []
            for form in (image, np.array(image)):
                with seeded(RngStream.IMAGE, key):
                    looks.append(transform(form))
            assert looks[0].shape == looks[1].shape == (3, 48, 48)
            assert looks[1].is_contiguous()
            levels.add(int((looks[0].int() - looks[1].int()).abs().max()))
        assert max(levels) == (0 if interpolation == "lanczos" else 1)


def test_rand_augment_changes_images() -> None:
    image = picture(48, 48)
    off = {"erasing": 0.0, "crop_scale": [1.0, 1.0], "flip": 0.0}
    policy = Seen(finetune(**off))
    with seeded(0):
        found = [policy(image) for _ in range(8)]
    assert sum(not torch.allclose(each, normalised(image), atol=1e-5) for each in found) >= 6


def test_no_draw_of_the_default_recipe_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its posterize asks for 0 bits about once in 600 images, which some versions of Pillow refuse."""
    bits, posterize = [], NAME_TO_OP["PosterizeIncreasing"]

    def noted(image: Image.Image, asked: int, **others: object) -> Image.Image:
        bits.append(asked)
        changed: Image.Image = posterize(image, asked, **others)
        return changed

    monkeypatch.setitem(NAME_TO_OP, "PosterizeIncreasing", noted)
    transform, image = Seen(finetune()), picture(48, 48)
    for index in range(10_000):
        with seeded(RngStream.IMAGE, 0, 0, index):
            assert transform(image).isfinite().all()
        if 0 in bits:
            break
    assert 0 in bits


def test_crops_are_as_small_as_the_recipe_allows() -> None:
    rows, columns = np.meshgrid(np.arange(200), np.arange(200), indexing="ij")
    ramp = Image.fromarray(np.stack([rows, columns, columns], -1).astype(np.uint8))
    small, large = ([0.01, 0.02], [0.9, 1.0])
    for scale, extent in ((small, (0.0, 0.3)), (large, (0.8, 1.2))):
        off = finetune(rand_augment="", erasing=0.0, crop_scale=scale)
        linear = LinearRecipe(data=DataRecipe(), encoder=SOURCE, crop_scale=scale)
        for transform in (Seen(off), linear_transform(linear, IMAGENETS)):
            with seeded(0):
                seen = transform(ramp)
            levels = seen if seen.dtype == torch.uint8 else (seen * STD + MEAN) * 255
            height = float(levels[0].max() - levels[0].min()) / 200
            assert extent[0] < height < extent[1]


@pytest.mark.parametrize("name", ["train", "linear"])
def test_the_key_alone_decides_what_is_drawn(name: str) -> None:
    transform, image = TRANSFORMS[name](), picture(60, 50)
    looks = []
    for key in (1, 1, 2):
        with seeded(RngStream.IMAGE, key):
            looks.append(transform(image))
        torch.rand(3), np.random.rand(2)  # noqa: NPY002 - states left behind must not matter
    assert torch.equal(looks[0], looks[1])
    assert not torch.equal(looks[0], looks[2])


class Samples(Dataset[dict[str, Tensor]]):
    """Every transform of the suite that draws, on one image, under the image's key."""

    def __init__(self) -> None:
        self.train, self.linear = TRANSFORMS["train"](), TRANSFORMS["linear"]()
        self.pretrain = PretrainTransform(PretrainRecipe(data=DataRecipe(), encoder=ENCODER))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = picture(60 + index, 50)
        with seeded(RngStream.IMAGE, index):
            return {"train": self.train(image), "linear": self.linear(image), **self.pretrain(image)}


@pytest.mark.parametrize(("context", "workers"), [("fork", 1), ("fork", 2), ("spawn", 1)])
def test_loader_workers_draw_the_same_bits(context: str, workers: int) -> None:
    looks = Samples()
    loader = DataLoader(looks, batch_size=2, num_workers=workers, multiprocessing_context=context)
    for number, batch in enumerate(loader):
        for place in range(2):
            for name, expected in looks[2 * number + place].items():
                assert torch.equal(batch[name][place], expected), (name, number, place)


def test_transforms_can_be_sent_to_a_worker() -> None:
    for make in TRANSFORMS.values():
        transform, image = make(), picture(60, 50)
        with seeded(0):
            expected = transform(image)
        with seeded(0):
            assert torch.equal(pickle.loads(pickle.dumps(transform))(image), expected)


@pytest.mark.parametrize(
    "policy",
    [
        *(
            "",
            "rand",
            "rand-m9-mstd0.5-inc1",
            "rand-m9-n3-mstd0.5",
            "rand-mstd1-tweights",
            "rand-m10-n15-p0.5-mmax20-mstd101",
        ),
        *("augmix-m5-w4-d2", "augmix-m3-b1-mstd0.5", "original", "originalr", "v0", "v0r-mstd0.5", "3a"),
    ],
)
def test_every_policy_that_timm_documents_is_taken(policy: str) -> None:
    image = picture(60, 40)
    transform = Seen(finetune(rand_augment=policy))
    assert transform(image).isfinite().all()


@pytest.mark.parametrize(
    "policy",
    [
        *("rand-mnan", "rand-m9-mstdinf-inc1", "rand-m9-mstd1e400", "rand-wx", "rand-m11", "rand-m9-m3", "rand-m9-n0"),
        *("rand-m9999999999-n99999999999-mstd0.5", "augmix-w99", "original-m9", "v1", "rand-", " rand", "randaug-9"),
    ],
)
def test_a_policy_that_timm_would_half_understand_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="expected one of timm's policies"):
        finetune(rand_augment=policy)
