"""What a run made is taken away: timm, transformers, the Hub's cards and MMSegmentation load it as it is, and compute the same."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.models import VisionTransformer
from toy_runs import CLASSES, SCENES, TOY, defaults, performed, toy_run, write_images, write_scenes
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTMAEForPreTraining,
    ViTModel,
)

from lutbench.cli import app
from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.transform import eval_transform
from lutbench.files import write_sealed
from lutbench.models.encoders import encode
from lutbench.models.weight_files import sha256_of
from lutbench.recipes.loading import load_suite
from lutbench.record import read_records
from lutbench.run import open_run
from lutbench.run_files import read_finished, write_finished
from lutbench.stages import run_suite
from lutbench.workspace import Workspace
from pretrain.masking import visible_patches
from pretrain.student import Student, build_student
from pretrain.vitmae import unlike_vit

SUITE = (
    TOY.replace("depth = 2", "depth = 4")
    + f"""
{defaults("pretrain", epochs=2, base_lr=0.01, decoder_width=24, decoder_depth=2, decoder_heads=3)}
{defaults("finetune", head_std=1.0)}
[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
normalise_target = false
[method.lut]
pretrain = "lut"
[method.mae]
pretrain = "mae"
[method.lut-teacher]
pretrain = "lut"
teacher = true
[downstream.tuned]
kind = "finetune"
data = "toy"
image_size = 20
methods = ["lut"]
[downstream.nearest]
kind = "knn"
data = "toy"
workers = 0
[downstream.probe]
kind = "linear"
data = "toy"
epochs = 2
warmup_epochs = 0
batch = 10
fresh_crops = false
methods = ["lut"]
workers = 0
[shifted.dropped]
path = "toy/val"
kind = "occlusion"
drops = [0, 5]
drop_grid = 4
shuffles = [2]
[robustness.shifted]
tasks = ["tuned"]
sets = ["dropped"]
workers = 0
"""
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all runs of two suites that differ in what they say they are; to be read only."""
    folder = tmp_path_factory.mktemp("done")
    write_images(folder)
    (folder / "toy.toml").write_text(SUITE)
    run_suite(load_suite(str(folder / "toy.toml")), [], [], Workspace(folder, folder / "runs", folder / "results"))
    return folder


def export(folder: Path, run: str, target: Path, *options: str) -> Path:
    places = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    app(["export", run, str(target), *options, *places], standalone_mode=False)
    return target


def card_of(folder: Path, run: str, target: Path, *options: str) -> ModelCard:
    export(folder, run, target, "--to", "huggingface", "--suite", str(folder / "toy.toml"), *options)
    return ModelCard.load(target / "README.md")


def left(folder: Path, run: str) -> Path:
    """The folder of a finished run."""
    (found,) = (folder / "runs" / run).glob("*/finished.json")
    return found.parent


def student_of(folder: Path, task: str) -> Student:
    """The student that a pre-training left, by the suite's own code."""
    loaded = load_suite(str(folder / "toy.toml"))
    student = build_student(
        loaded.run(f"pretrain/{task}/seed0").recipe, seed=7
    )  # other weights than the run's at first
    run = left(folder, f"toy/pretrain/{task}/seed0")
    student.encoder.load_state_dict(load_file(run / "encoder.safetensors"))
    student.decoder.load_state_dict(load_file(run / "decoder.safetensors"))
    return student.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# timm


def test_timm_loads_an_encoder_from_the_folder_alone_with_the_same_features(
    done: Path, tmp_path: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    target = export(done, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert sorted(file.name for file in target.iterdir()) == ["config.json", "model.safetensors"]
    assert (
        sha256_of(target / "model.safetensors")
        == read_records(done / "results", "toy")["pretrain/lut/seed0"].checkpoint
    )
    printed: dict[str, object] = {}
    exec("import timm\n" + capsys.readouterr().out, printed)  # the lines that were printed
    model = printed["model"]
    assert isinstance(model, VisionTransformer)
    torch.testing.assert_close(
        encode(model.eval(), images, "mean"), encode(student_of(done, "lut").encoder, images, "mean"), rtol=0, atol=0
    )
    assert "augreg" not in (target / "config.json").read_text(), "nothing of timm's own weights of this name"
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 16, 16)


def test_timm_loads_a_classifier_with_its_labels_and_its_transform_gives_the_runs_own_predictions(
    done: Path, tmp_path: Path
) -> None:
    target = export(done, "toy/downstream/tuned/lut/seed0", tmp_path / "away", "--to", "timm")
    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    assert list(model.pretrained_cfg["label_names"]) == list(CLASSES)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    loaded = load_suite(str(done / "toy.toml"))
    tuned = loaded.run("downstream/tuned/lut/seed0")
    val = open_run(loaded, tuned, Workspace(done, done / "runs", done / "results")).dataset("val")
    with torch.no_grad():
        scores = model(torch.stack([transform(val.image(index)) for index in range(len(val))]))
    outcomes = read_records(done / "results", "toy")[tuned.name].outcomes
    assert len(set(outcomes.prediction.tolist())) > 1
    assert scores.argmax(1).tolist() == outcomes.prediction.tolist()
    ranks = (
        scores.argsort(dim=1, descending=True, stable=True)
        .argsort(dim=1)
        .gather(1, torch.tensor(outcomes.label).long()[:, None])
    )
    assert ranks[:, 0].tolist() == outcomes.rank.tolist()


# Hugging Face


def test_transformers_auto_classes_load_the_folder_strictly(done: Path, tmp_path: Path, images: torch.Tensor) -> None:
    card_of(done, "toy/pretrain/lut/seed0", tmp_path / "encoder")
    card_of(done, "toy/downstream/tuned/lut/seed0", tmp_path / "classifier")
    encoder, report = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(report.values())
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path / "classifier", output_loading_info=True
    )
    assert not any(report.values())
    assert classifier.config.id2label == dict(enumerate(CLASSES))
    larger = torch.randn(2, 3, 20, 20)
    own = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True).eval()
    with torch.no_grad():
        features = student_of(done, "lut").encoder.forward_features(images)
        torch.testing.assert_close(encoder.eval()(images).last_hidden_state, features, rtol=0, atol=1e-6)
        torch.testing.assert_close(classifier.eval()(larger).logits, own(larger), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["lut", "mae"])
def test_vitmae_encodes_and_reconstructs_what_the_suites_student_does(
    done: Path, tmp_path: Path, images: torch.Tensor, task: str
) -> None:
    card_of(done, f"toy/pretrain/{task}/seed0", tmp_path / "away")
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path / "away" / "vitmae", output_loading_info=True)
    assert not any(report.values())
    ours, noise = student_of(done, task), torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = theirs.eval()(images, noise=noise)
        visible = visible_patches(noise, ours.visible_count).view1
        tokens = ours.framework.encode(ours.encoder, images, visible)
        encoded = theirs.vit(images, noise=noise).last_hidden_state
        pixels = ours.decoder(tokens, visible)
        mask = torch.ones(5, 16).scatter(1, visible, 0.0)
        torch.testing.assert_close(encoded, tokens, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.logits, pixels, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.mask, mask)
        torch.testing.assert_close(found.loss, ours.framework.loss(pixels, images, visible), rtol=1e-6, atol=0)
        shown = ours.framework.reconstruct(pixels, images, visible)
    assert theirs.config.norm_pix_loss is (task == "lut")
    if task == "mae":  # whose pixels are not normalised, so that transformers puts them together without the image
        whole = theirs.unpatchify(torch.where(mask[..., None] == 1, found.logits, theirs.patchify(images)))
        torch.testing.assert_close(whole, shown, rtol=0, atol=1e-6)


def test_the_image_processor_prepares_images_as_the_suite_evaluates_them(done: Path, tmp_path: Path) -> None:
    card_of(done, "toy/pretrain/lut/seed0", tmp_path / "away")
    pixels = torch.linspace(0, 255, 3 * 60 * 44).reshape(60, 44, 3).round().to(torch.uint8)
    image = Image.fromarray(pixels.numpy())
    ours = normalised(eval_transform(16, 224 / 256)(image))
    for folder, size in ((tmp_path / "away" / "vitmae", (16, 16)), (tmp_path / "away", (16, 16))):
        processor = AutoImageProcessor.from_pretrained(folder)
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        assert theirs.shape[1:] == size
        assert (theirs - ours).abs().max() < 0.05  # a rounded byte is 0.018, and other code resizes


def test_a_run_that_kept_no_decoder_is_a_vit_of_transformers(done: Path, tmp_path: Path, images: torch.Tensor) -> None:
    shutil.copytree(done / "runs", tmp_path / "runs")
    shutil.copytree(done / "results", tmp_path / "results")
    shutil.copy(done / "toy.toml", tmp_path)
    run = left(tmp_path, "toy/pretrain/lut/seed0")
    kept = read_finished(run)
    write_finished(run, str(kept.identity), kept.checkpoint, kept.sources, ["encoder.json"])
    card = card_of(tmp_path, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert "ViTModel.from_pretrained" in card.text
    assert not (tmp_path / "away" / "vitmae").exists()
    model, report = ViTModel.from_pretrained(
        tmp_path / "away" / "vit", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        features = student_of(done, "lut").encoder.forward_features(images)
        torch.testing.assert_close(model.eval()(images).last_hidden_state, features, rtol=0, atol=1e-6)


def test_simmim_is_a_vit_of_transformers_and_no_vitmae_and_says_what_it_is(
    tmp_path: Path, images: torch.Tensor
) -> None:
    """Its decoder is a linear layer, and its encoder has no mask token."""
    write_images(tmp_path)
    settings = 'framework = "simmim"\nmask_unit = 8\n'
    defaults = SUITE[SUITE.index("[defaults.pretrain]") : SUITE.index("[defaults.finetune]")]
    text = TOY + defaults + f"[pretrain.lut]\n{settings}[pretrain.alone]\n{settings}context_weight = 0.0\n"
    (tmp_path / "toy.toml").write_text(text)
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    run_suite(load_suite(str(tmp_path / "toy.toml")), [], [], workspace)
    card = card_of(tmp_path, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert "ViTModel.from_pretrained" in card.text
    assert "ViTMAE" not in card.text
    assert "by LUT (SimMIM with a broader-context loss of weight 0.25)" in card.text
    assert not (tmp_path / "away" / "vitmae").exists()
    model, report = ViTModel.from_pretrained(
        tmp_path / "away" / "vit", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        features = timm.create_model(f"local-dir:{tmp_path / 'away'}", pretrained=True).eval().forward_features(images)
        torch.testing.assert_close(model.eval()(images).last_hidden_state, features, rtol=0, atol=1e-6)
    alone = card_of(tmp_path, "toy/pretrain/alone/seed0", tmp_path / "alone")
    assert "by SimMIM, without the broader-context loss of LUT" in alone.text


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("vit_tiny_patch16_224", ""),
        ("vit_little_patch16_reg4_gap_256", "transformers' ViT has no place for"),
        ("vit_base_patch16_clip_quickgelu_224", "transformers' ViT has no place for norm_pre"),
        ("vit_base_patch16_siglip_224", "transformers' ViT has no place for attn_pool"),
    ],
)
def test_an_encoder_that_transformers_vit_does_not_compute_is_not_written_as_one(model: str, reason: str) -> None:
    with torch.device("meta"):
        assert unlike_vit(timm.create_model(model, num_classes=0)).startswith(reason)
        assert bool(unlike_vit(timm.create_model(model, num_classes=0))) is bool(reason)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"act_layer": "gelu_tanh"}, "its activations are"),
        ({"act_layer": "quick_gelu"}, "its activations are"),
        ({"norm_layer": torch.nn.LayerNorm}, r"epsilon \[1e-05\]"),
        ({"qkv_bias": False}, "biases of queries"),
    ],
)
def test_nor_is_one_with_another_activation_or_norm(changed: dict[str, object], reason: str) -> None:
    assert re.search(reason, unlike_vit(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, **changed)))


# The model card


def test_the_card_has_every_result_of_these_weights_with_its_interval_and_no_others(done: Path, tmp_path: Path) -> None:
    card, records = card_of(done, "toy/pretrain/lut/seed0", tmp_path / "away"), read_records(done / "results", "toy")
    rows = [
        line for line in card.text.splitlines() if line.startswith("| ") and "toy: " in line and "finished" not in line
    ]
    named = {line.split("toy: ")[1].split(" |")[0].strip() for line in rows}
    shifted = "robustness/shifted/dropped/lut/seed0"
    assert named == {f"downstream/{task}/lut/seed0" for task in ("tuned", "nearest", "probe")} | {shifted}
    for name in named:
        for metric in records[name].outcomes.printed():
            m = records[name].measured(metric)
            assert m is not None
            (row,) = [line for line in rows if f"toy: {name}" in line and f"| {metric} " in line]
            assert f"| {m.value:.{m.decimals}f} % " in row
            assert f"| {m.low:.{m.decimals}f} to {m.high:.{m.decimals}f} " in row
            assert f"| {m.n} " in row
    own = records["pretrain/lut/seed0"]
    for said in (
        own.identity,
        str(own.checkpoint),
        own.identity_inputs["data"]["train"][:16],
        str(own.hardware),
        str(own.code),
    ):
        assert said in card.text
    assert "`epochs` = 2 (1600)" in card.text
    assert "`mask_ratio`" not in card.text, "which is the default"
    assert "seed 0" in card.text
    assert "arXiv" in card.text
    assert str(done) not in card.text
    assert str(tmp_path) not in card.text


def test_the_results_of_a_classifier_are_its_own_and_its_card_tells_the_pre_training_too(
    done: Path, tmp_path: Path
) -> None:
    card = card_of(done, "toy/downstream/tuned/lut/seed0", tmp_path / "away")
    assert "downstream/nearest" not in card.text
    assert "robustness/shifted/dropped/lut/seed0" in card.text
    assert card.text.index("Pre-training of the encoder") < card.text.index("## Fine-tuning")
    assert read_records(done / "results", "toy")["pretrain/lut/seed0"].identity[:12] in card.text


def test_a_card_of_a_toy_suite_says_so_and_keeps_its_numbers_out_of_the_hubs_index(done: Path, tmp_path: Path) -> None:
    toys = card_of(done, "toy/pretrain/lut/seed0", tmp_path / "toys")
    assert "They are no evidence about the method." in toys.text
    assert "model-index" not in toys.data.to_dict()
    copy = shutil.copytree(done, tmp_path / "copy")
    (copy / "toy.toml").write_text(SUITE.replace('kind = "pipeline"', 'kind = "exploration"'))
    card = card_of(copy, "toy/pretrain/lut/seed0", tmp_path / "exploration")
    assert "no evidence" not in card.text
    results = {one.metric_name: one for one in card.data.eval_results}
    assert {name.split(", ")[-1] for name in results} == {
        "fine-tuning (%)",
        "k-NN (%)",
        "linear probe (%)",
        "robustness (%)",
    }
    found = results["top-1, k-NN (%)"]
    measured = read_records(done / "results", "toy")["downstream/nearest/lut/seed0"].measurements[0]
    assert found.metric_value == round(measured.value, measured.decimals)
    assert (found.metric_args["low"], found.metric_args["images"]) == (measured.low, measured.n)
    assert (found.dataset_name, found.metric_type, found.task_type) == ("toy", "accuracy", "image-classification")


def test_the_licence_is_the_users_and_is_not_made_up(done: Path, tmp_path: Path) -> None:
    silent = card_of(done, "toy/pretrain/mae/seed0", tmp_path / "silent")
    assert "license" not in silent.data.to_dict()
    assert "No licence is stated for the weights" in silent.text
    card = card_of(done, "toy/pretrain/mae/seed0", tmp_path / "said", "--licence", "cc-by-4.0")
    assert card.data.license == "cc-by-4.0"
    assert "The weights: cc-by-4.0." in card.text
    assert "without the broader-context loss" in card.text
    with pytest.raises(UserError, match=r"'CC BY': expected one of the Hub's identifiers"):
        card_of(done, "toy/pretrain/mae/seed0", tmp_path / "odd", "--licence", "CC BY")
    with pytest.raises(UserError, match=r"but --to timm writes none"):
        export(done, "toy/pretrain/mae/seed0", tmp_path / "odd", "--licence", "mit")


def test_names_of_runs_and_data_make_no_markup_in_the_card(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    write_images(folder)
    text = SUITE.partition("[downstream.tuned]")[0].replace('path = "toy"', 'path = "toy"\nlabel = "a|b <script>"')
    (folder / "toy.toml").write_text(
        text + '[downstream.nearest]\nkind = "knn"\ndata = "toy"\nmethods = ["lut"]\nworkers = 0\n'
    )
    loaded = load_suite(str(folder / "toy.toml"))
    only = ["pretrain/lut", "nearest"]
    run_suite(loaded, [], only, Workspace(folder, folder / "runs", folder / "results"))
    card = card_of(folder, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert "a\\|b \\<script>" in card.text
    assert "<script>" not in card.text.replace("\\<script>", "")


def test_a_suite_that_is_nowhere_is_asked_for(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"records of suite 'toy'.*--suite PATH/toy\.toml"):
        export(done, "toy/pretrain/lut/seed0", tmp_path / "away", "--to", "huggingface")
    assert not (tmp_path / "away").exists()
    shutil.copy(done / "toy.toml", tmp_path)
    assert (export(done, "toy/pretrain/lut/seed0", tmp_path / "away", "--to", "huggingface") / "README.md").is_file()


def test_weights_of_another_run_of_the_same_name_have_no_results_of_this_one(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    record = folder / "results/records/toy/downstream/nearest/lut/seed0.json"
    shutil.rmtree(record.parents[2])
    shutil.rmtree(folder / "results/records/toy/robustness")
    card = card_of(folder, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert "have no results of these weights" in card.text
    damaged = shutil.copytree(done, tmp_path / "damaged") / "results/records/toy/downstream/nearest/lut/seed0.json"
    damaged.write_text(damaged.read_text().replace('"value": ', '"value": 1'))
    with pytest.raises(UserError, match=r"seed0\.json: damaged or changed"):
        card_of(tmp_path / "damaged", "toy/pretrain/lut/seed0", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_number_that_its_outcomes_do_not_give_is_not_published(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    path = folder / "results/records/toy/downstream/nearest/lut/seed0.json"
    values = json.loads(path.read_text())
    del values["seal"]
    values["measurements"][0]["value"] = 99.9
    write_sealed(path, values)
    with pytest.raises(UserError, match=r"the record has top-1 99\.9 .*, but its outcomes give"):
        card_of(folder, "toy/pretrain/lut/seed0", tmp_path / "away")


# MMSegmentation


def test_mmsegmentation_builds_a_backbone_from_the_config_and_computes_what_the_encoder_does(
    done: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    mmengine = pytest.importorskip("mmengine.config")
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    export(done, "toy/pretrain/lut/seed0", tmp_path / "first", "--to", "mmseg")
    target = (tmp_path / "first").rename(tmp_path / "moved")  # it names no path of the machine
    (tmp_path / "own.py").write_text("_base_ = ['moved/backbone.py']\n")
    config = mmengine.Config.fromfile(tmp_path / "own.py").model
    backbone = MODELS.build(config.backbone)
    backbone.init_weights()
    encoder = student_of(done, "lut").encoder
    assert str(tmp_path) not in (target / "backbone.py").read_text()
    with torch.no_grad():
        backbone.eval()
        maps = backbone(images)
        tokens = encoder.forward_intermediates(images, indices=[0, 1, 2, 3], norm=False, intermediates_only=True)
    for theirs, ours in zip(maps, tokens, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_a_segmenter_goes_to_mmsegmentation_unless_something_else_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path)
    settings = {"iterations": 4, "warmup": 1}
    lines = [line for line in SCENES.splitlines() if line.split(" = ")[0] not in settings]
    run = toy_run(tmp_path, suite_text="\n".join(lines), **settings)
    performed(run)
    name = "toy/downstream/task/scratch/seed0"
    target = export(tmp_path / "here", name, tmp_path / "away")
    assert "checkpoint.pth', device='cpu')  # or 'cuda:0'" in capsys.readouterr().out.replace("\n", "")
    assert sorted(file.name for file in target.iterdir()) == ["checkpoint.pth", "config.py"]
    with pytest.raises(UserError, match=r"which timm cannot load\. Give --to mmseg"):
        export(tmp_path / "here", name, tmp_path / "other", "--to", "timm")


# What is refused


@pytest.mark.parametrize("task", ["downstream/nearest", "downstream/probe", "robustness/shifted/dropped"])
@pytest.mark.parametrize("library", ["timm", "huggingface", "mmseg"])
def test_a_run_without_a_model_says_what_to_export_instead(done: Path, tmp_path: Path, task: str, library: str) -> None:
    before = "downstream/tuned/lut" if task.startswith("robustness") else "pretrain/lut"
    with pytest.raises(UserError, match=rf"has nothing to export: .* It started from toy/{before}/seed0\."):
        export(done, f"toy/{task}/lut/seed0", tmp_path / "away", "--to", library)
    assert not (tmp_path / "away").exists()


def test_an_unfinished_run_is_none(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    (left(folder, "toy/pretrain/lut/seed0") / "finished.json").unlink()
    with pytest.raises(UserError, match=r"There is no finished run 'toy/pretrain/lut/seed0'.*pretrain/mae/seed0"):
        export(folder, "toy/pretrain/lut/seed0", tmp_path / "away")


@pytest.mark.parametrize("library", ["timm", "huggingface", "mmseg"])
def test_nothing_is_overwritten(done: Path, tmp_path: Path, library: str) -> None:
    target = tmp_path / "away"
    target.mkdir()
    suite = ["--suite", str(done / "toy.toml")] if library == "huggingface" else []
    (target / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"expected a new or empty folder, found one with mine\.txt in it"):
        export(done, "toy/pretrain/lut/seed0", target, "--to", library, *suite)
    assert [file.name for file in tmp_path.iterdir()] == ["away"]
    assert (target / "mine.txt").read_text() == "kept"
    (target / "mine.txt").unlink()
    export(done, "toy/pretrain/lut/seed0", target, "--to", library, *suite)
    with pytest.raises(UserError, match="expected a new or empty folder"):
        export(done, "toy/pretrain/lut/seed0", target, "--to", library, *suite)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="expected the name of a new or empty folder, found a file"):
        export(done, "toy/pretrain/lut/seed0", file, "--to", library, *suite)


@pytest.mark.parametrize("file", ["encoder.safetensors", "encoder.json", "decoder.safetensors", "finished.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_damaged_weights_are_not_exported(done: Path, tmp_path: Path, file: str, damage: str) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    path = left(folder, "toy/pretrain/lut/seed0") / file
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(UserError):
        card_of(folder, "toy/pretrain/lut/seed0", tmp_path / "away")
    assert not (tmp_path / "away").exists()
    assert not list(tmp_path.glob(".*partial*"))
