"""What libraries save beside weights says how images are prepared for them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from toy_runs import SUITE, write_images

from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Outcomes
from lutbench.evaluate.transform import eval_transform
from lutbench.models.encoders import create_encoder, export_encoder
from lutbench.models.preprocessing import IMAGENETS, Preprocessing, preprocessing_of
from lutbench.models.weights import save_weights
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.loading import load_suite
from lutbench.record import read_record, record_path
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.workspace import Workspace
from robustness.condition_outcomes import RobustnessOutcomes

TOY = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
PROCESSOR: dict[str, Any] = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
    "resample": 2,
    "size": {"shortest_edge": 20},
    "crop_size": {"height": 16, "width": 16},
    "do_center_crop": True,
}
TIMMS = {"pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "crop_pct": 0.95}}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "hers").mkdir()
    path = tmp_path / "hers/model.safetensors"
    save_weights(create_encoder(TOY).state_dict(), path)
    return path


def beside(weights: Path, content: Any, name: str = "preprocessor_config.json") -> None:
    weights.with_name(name).write_text(json.dumps(content))


def prepared_for(weights: Path, **settings: Any) -> Preprocessing:
    source = EncoderSource(architecture=TOY, kind="checkpoint", path=str(weights), **settings)
    return preprocessing_of(source, weights)


# --- Hugging Face's and timm's files


@pytest.mark.parametrize(
    ("processor", "crop"),
    [("ViTImageProcessor", None), ("BitImageProcessor", 224 / 256), ("ConvNextImageProcessor", 0.8)],
)
def test_the_processors_of_hugging_face_are_followed(weights: Path, processor: str, crop: float | None) -> None:
    """As they are saved; and the centre of an image looks as their own pixels do, to what two ways of resizing differ."""
    transformers = pytest.importorskip("transformers")
    size = {"height": 224, "width": 224} if processor.startswith("ViT") else {"shortest_edge": 256}
    extra = {"crop_pct": 0.8, "size": {"shortest_edge": 224}} if processor.startswith("Conv") else {"size": size}
    theirs = getattr(transformers, processor)(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2], **extra)
    theirs.save_pretrained(weights.parent)
    found = prepared_for(weights)
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    assert found[:4] == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), names[theirs.resample], crop)
    assert "from preprocessor_config.json beside the weights" in str(found)
    smooth = np.add.outer(np.linspace(0, 120, 300), np.linspace(0, 120, 300))[..., None] + [0, 5, 10]
    image = Image.fromarray(smooth.astype(np.uint8))
    pixels = eval_transform(224, found.crop_pct or 1.0, found.interpolation)(image)[None]
    expected = torch.as_tensor(np.asarray(theirs(image)["pixel_values"]))
    assert (normalised(pixels, mean=found.mean, std=found.std) - expected).abs().max() < 2 / 255 / 0.2


@pytest.mark.parametrize(
    ("change", "mean", "std"),
    [
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 1 / 127.5}, (0.25, 0.2, 0.15), (0.25, 0.125, 0.1)),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, (0.5,) * 3, (0.2,) * 3),
        ({"rescale_factor": 0.00392156862745098}, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)),
    ],
)
def test_their_units_become_pixels_between_0_and_1(weights: Path, change: dict[str, Any], mean: Any, std: Any) -> None:
    beside(weights, PROCESSOR | change)
    found = prepared_for(weights)
    assert (found.mean, found.std) == (pytest.approx(mean), pytest.approx(std))
    assert found.crop_pct == 0.8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resample": 4}, 'interpolation = "Pillow\'s filter 4"'),
        ({"image_mean": [0.5]}, "mean = "),
        ({"image_std": [0.5, 0.0, 0.5]}, "std.1 = 0.0"),
        ({"crop_size": 1}, "crop_pct = 0.05"),
        ({"image_mean": "ImageNet's"}, "image_mean = "),
    ],
)
def test_what_cannot_be_followed_is_refused(weights: Path, change: dict[str, Any], told: str) -> None:
    beside(weights, PROCESSOR | change)
    with pytest.raises(
        UserError, match=r"preprocessor_config\.json: its preprocessing of images is not supported"
    ) as refused:
        prepared_for(weights)
    assert told in str(refused.value)


def test_the_suite_file_comes_before_the_export_and_that_before_hugging_faces_and_that_before_timms(
    weights: Path,
) -> None:
    assert prepared_for(weights) == IMAGENETS
    beside(weights, {"model_type": "vit"}, "config.json")  # Hugging Face's, which says nothing about images
    assert prepared_for(weights) == IMAGENETS
    beside(weights, TIMMS, "config.json")
    assert prepared_for(weights)[:4] == ((0.1,) * 3, (0.2,) * 3, "bilinear", 0.95)
    beside(weights, {"do_resize": True})  # a processor that does not say how images are normalised
    assert prepared_for(weights).mean == (0.1,) * 3
    beside(weights, PROCESSOR)
    assert prepared_for(weights)[:4] == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), "bilinear", 0.8)
    assert prepared_for(weights.parent) == prepared_for(weights), "a folder is what is in it"
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    encoder.reset_classifier(0)
    export_encoder(encoder, TOY, weights.parent, name="model", prepared=Preprocessing((0.2,) * 3, (0.3,) * 3))
    assert prepared_for(weights)[:4] == ((0.2,) * 3, (0.3,) * 3, "bicubic", None)
    given = prepared_for(weights, mean=[0.9] * 3, crop_pct=0.7)
    assert given[:4] == ((0.9,) * 3, (0.3,) * 3, "bicubic", 0.7)


# --- The crop of an encoder


def suite_of(weights: Path | None, lines: str = "") -> str:
    """The toy suite with one row: the encoder in a file, or timm's."""
    origin = f'checkpoint = "{weights}"' if weights else "timm = true"
    return SUITE.replace("[method.scratch]\nscratch = true", f"[method.hers]\n{origin}\n{lines}")


def encoder_inputs(
    folder: Path, weights: Path | None, lines: str = "", **settings: Any
) -> tuple[str, dict[str, Any], float]:
    """Identity of a run for that row, what goes into it of the encoder, and the crop that holds."""
    text = (
        suite_of(weights, lines) + 'kind = "knn"\n' + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    (folder / "toy.toml").write_text(text)
    suite = load_suite(str(folder / "toy.toml"))
    run: Any = open_run(suite, suite.runs[0], Workspace(folder, folder / "runs", folder / "results"))
    return run.identity, run.identity_inputs["encoder"], run.preprocessing.crop_pct or run.recipe.eval_crop


def test_a_task_has_the_crop_of_the_encoder_unless_its_table_gives_one(tmp_path: Path, weights: Path) -> None:
    write_images(tmp_path)
    imagenets, inputs, crop = encoder_inputs(tmp_path, weights)
    assert (set(inputs), crop) == ({"sha256"}, 224 / 256)
    beside(weights, PROCESSOR | {"image_mean": IMAGENETS.mean, "image_std": IMAGENETS.std, "resample": 3})
    own, inputs, crop = encoder_inputs(tmp_path, weights)
    assert (inputs["preprocessing"], crop) == ({"crop_pct": 0.8}, 0.8)
    assert own != imagenets
    given, inputs, crop = encoder_inputs(tmp_path, weights, eval_crop=224 / 256)
    assert (set(inputs), crop) == ({"sha256"}, 224 / 256)
    assert given == imagenets, "the same pixels"
    for table in ({}, {"eval_crop": 1.0}):
        by_method, inputs, crop = encoder_inputs(tmp_path, weights, "crop_pct = 0.7", **table)
        assert (inputs["preprocessing"], crop) == ({"crop_pct": 0.7}, 0.7)
        assert by_method not in (own, imagenets)


def test_a_crop_that_is_the_tasks_anyway_makes_no_other_run(tmp_path: Path, weights: Path) -> None:
    write_images(tmp_path)
    before = encoder_inputs(tmp_path, weights)[0]
    content = {"mean": list(IMAGENETS.mean), "std": list(IMAGENETS.std), "crop_pct": 0.875}
    beside(weights, {"pretrained_cfg": content}, "config.json")
    assert encoder_inputs(tmp_path, weights)[0] == before


def test_timms_weights_by_name_have_timms_crop_as_those_in_a_folder_do(tmp_path: Path) -> None:
    write_images(tmp_path)
    _, inputs, crop = encoder_inputs(tmp_path, None)
    assert (inputs["preprocessing"]["crop_pct"], crop) == (0.9, 0.9)
    _, inputs, crop = encoder_inputs(tmp_path, None, "crop_pct = 0.8")
    assert (inputs["preprocessing"]["crop_pct"], crop) == (0.8, 0.8)
    _, inputs, crop = encoder_inputs(tmp_path, None, eval_crop=224 / 256)
    assert crop == 224 / 256
    assert "crop_pct" not in inputs["preprocessing"]


TASKS = """
[defaults.knn]
neighbours = 3
workers = 0
[defaults.finetune]
epochs = 4
warmup_epochs = 0
batch = 10
base_lr = 2e-2
crop_scale = [1.0, 1.0]
workers = 0
[defaults.robustness]
workers = 0
[defaults.analysis]
measures = ["depth"]
workers = 0
[downstream.tuned]
data = "toy"
kind = "finetune"
[shifted.plain]
path = "toy/val"
preprocessing = ["own", "bicubic"]
[robustness.shift]
tasks = ["tuned"]
sets = ["plain"]
[analysis.inside]
data = "toy"
"""


def test_every_task_sees_the_crop_and_the_classifier_that_it_makes_keeps_it(tmp_path: Path, weights: Path) -> None:
    """A row with a crop of its own has the outcomes of a row without one in tasks of that crop.

    Images have the colour of some class around the middle, so that the crop decides.
    """
    write_images(tmp_path)
    for number, file in enumerate(sorted((tmp_path / "toy").rglob("*.png"))):
        pixels = np.array(Image.open(file)).repeat(2, 0).repeat(2, 1)
        around = np.roll(pixels, number % 3, axis=2)
        around[10:30, 10:30] = pixels[10:30, 10:30]
        Image.fromarray(around).save(file)
    found: dict[str, dict[str, Any]] = {}
    for name, lines, changes in (
        ("own", "crop_pct = 0.5", []),
        ("task", "", [f"defaults.{kind}.eval_crop=0.5" for kind in ("knn", "finetune", "analysis")]),
        ("none", "", []),
    ):
        file = tmp_path / "toy.toml"
        file.write_text(suite_of(weights, lines) + 'kind = "knn"\n' + TASKS)
        workspace = Workspace(tmp_path, tmp_path / name / "runs", tmp_path / name / "results")
        suite = load_suite(str(file), changes)
        with contextlib.redirect_stdout(io.StringIO()):
            run_suite(suite, [], [], workspace)
        records = {
            run.name: read_record(record_path(workspace.results, "toy", run.name))
            for run in suite.runs
            if "untrained" not in run.name
        }
        found[name] = {run: values(record.outcomes) for run, record in records.items()}
        [export] = workspace.runs.rglob("classifier.json")
        assert json.loads(export.read_text())["crop_pct"] == (0.875 if name == "none" else 0.5)
    assert len(found["own"]) == 4
    assert found["own"] == found["task"]
    assert not [run for run in found["own"] if found["own"][run] == found["none"][run]]


def values(outcomes: Any) -> list[Any]:
    """What happened on every image, as plain values."""
    if isinstance(outcomes, Outcomes):
        return [outcomes.prediction.tolist(), outcomes.rank.tolist()]
    if isinstance(outcomes, RobustnessOutcomes):
        return [[one.preprocessing, one.prediction.tolist(), one.rank.tolist()] for one in outcomes.conditions]
    return [{name: array.tolist() for name, array in outcomes.measured.items()}]


def test_what_is_assumed_of_an_encoder_in_a_file_is_said_once(tmp_path: Path, weights: Path, capsys: Any) -> None:
    write_images(tmp_path)
    file = tmp_path / "toy.toml"

    def said() -> str:
        file.write_text(
            suite_of(weights)
            + 'kind = "knn"\nneighbours = 3\nworkers = 0\n[downstream.more]\ndata = "toy"\nkind = "knn"\nworkers = 0\n'
        )
        run_suite(load_suite(str(file)), [], [], Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"))
        return " ".join(capsys.readouterr().out.split())

    line = "method.hers: images are normalised with ImageNet's mean and std, because"
    assert said().count(line) == 1
    beside(weights, PROCESSOR)
    assert line not in said()
    text = "method.hers: images are normalised with mean (0.5, 0.4, 0.3) and std (0.5, 0.25, 0.2), resized with bilinear interpolation, "
    beside(weights, PROCESSOR | {"resample": 2})
    out = said()
    assert out.count(text) == 1
    assert "cropped to 0.8 of the resized side unless the task sets eval_crop: from preprocessor_config.json" in out
    suite = load_suite(str(file))
    show_plan(suite, Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"), Rates())
    assert " ".join(capsys.readouterr().out.split()).count(text) == 1


def test_of_several_files_beside_one_configuration_it_is_said_that_it_may_be_about_another(weights: Path) -> None:
    beside(weights, PROCESSOR)
    other, third = weights.with_name("vit-a.pth"), weights.with_name("vit-b.pt")
    for path in (other, third):
        path.write_bytes(weights.read_bytes())
    assert "it may belong to one of 2 other weight files in the folder" in str(prepared_for(other))
    assert "other weight files" not in str(prepared_for(weights))
    assert "other weight files" not in str(prepared_for(weights.parent))
    assert "mean from the suite file, everything else from preproc" in str(prepared_for(weights, mean=[0.9] * 3))


def test_timms_configurations_of_before_are_flat(weights: Path) -> None:
    beside(weights, {"architecture": "vit_tiny_patch16_224", **TIMMS["pretrained_cfg"]}, "config.json")
    assert prepared_for(weights)[:4] == ((0.1,) * 3, (0.2,) * 3, "bilinear", 0.95)


def test_timms_crop_mode_is_followed_for_a_classifier_and_of_an_encoder_it_is_said_that_it_is_not(
    weights: Path,
) -> None:
    for mode in ("squash", "border"):
        beside(weights, {"pretrained_cfg": TIMMS["pretrained_cfg"] | {"crop_mode": mode}}, "config.json")
        assert prepared_for(weights).crop_mode == mode
        assert f"crop_mode = '{mode}' is used only for classifiers" in str(prepared_for(weights))
    beside(weights, {"pretrained_cfg": TIMMS["pretrained_cfg"] | {"crop_mode": "none"}}, "config.json")
    with pytest.raises(UserError, match="crop_mode = 'none'"):
        prepared_for(weights)
    beside(weights, TIMMS, "config.json")
    assert "crop_mode" not in str(prepared_for(weights))
