"""Any plain encoder of timm is a row: features as timm pools them, every task, and refusals by name of what cannot be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import small_models  # noqa: F401  (registers them)
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from toy_runs import HEAD, SCENES, SUITE, performed, performed_by, toy_run, write_images, write_scenes

from analysis.grid import grid_of, token_grid
from downstream.finetune import build_classifier, layer_decay_groups
from lutbench.cli import main
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, create_vit, encode, export_encoder, feature_width
from lutbench.models.export import export_of
from lutbench.models.pretrained import load_encoder
from lutbench.models.weights import save_weights
from lutbench.plan.compute import transformer
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.train.batchnorm import SyncBatchNorm, batch_norms, synchronise

ENCODERS = {
    "resnet10t": 32,
    "convnext_atto": 64,
    "small_swin": 64,
    "small_eva": 28,
    "small_dinov3": 32,  # EVA with registers and rotary positions
    "small_beit": 32,
    "vit_small_patch14_reg4_dinov2": 28,  # with registers and LayerScale
    "vit_base_patch16_gap_224": 32,  # without a class token
    "deit_tiny_distilled_patch16_224": 32,  # two class tokens
}
"""Sides of their input: small, to be fast."""

PLAIN = ("vit_small_patch14_reg4_dinov2", "vit_base_patch16_gap_224")


def recipe(model: str, **changes: Any) -> EncoderRecipe:
    sizes = {"width": 48, "depth": 4, "heads": 3} if model in PLAIN else {}
    return EncoderRecipe.model_validate({"model": model, "image_size": ENCODERS[model], **sizes, **changes})


def trained(model: str, **changes: Any) -> Any:
    """An encoder without a parameter of special value, and with the statistics of no normal distribution."""
    torch.manual_seed(0)
    made = create_encoder(recipe(model), **changes)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape) * 0.05)
    return made.eval()


def images(model: str, count: int = 2) -> Tensor:
    side = ENCODERS[model]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def source(model: str, kind: str = "scratch") -> EncoderSource:
    return EncoderSource.model_validate({"architecture": recipe(model), "kind": kind})


# Features


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "small_swin", "small_eva",
                                   "small_beit", "small_dinov3", "vit_small_patch14_reg4_dinov2"])  # fmt: skip
@torch.no_grad()
def test_mean_features_are_what_timms_classifier_takes_where_it_pools_by_a_mean(model: str) -> None:
    encoder = trained(model)
    if model in PLAIN:
        encoder.global_pool = "avg"
    expected = encoder.forward_head(encoder.forward_features(images(model)), pre_logits=True)
    found = encode(encoder, images(model), "mean")
    assert torch.equal(found, expected)
    assert found.shape == (2, feature_width(recipe(model)))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("model", ["small_eva", "small_beit", "small_dinov3", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_class_features_are_what_timms_classifier_takes_where_it_pools_by_the_class_token(model: str) -> None:
    encoder = trained(model)
    encoder.global_pool = "token"
    expected = encoder.forward_head(encoder.forward_features(images(model)), pre_logits=True)
    assert torch.equal(encode(encoder, images(model), "class"), expected)


@pytest.mark.parametrize(
    ("model", "changes", "told"),
    [
        ("resnet10t", {"depth": 4, "width": 32}, "width, depth: .* resnet10t is timm's ResNet. Remove them"),
        ("small_swin", {"image_size": 66}, r"image_size = 66: timm's SwinTransformer .* 66 x 66 .*Set image_size to 64"),
        ("small_eva", {"image_size": 30}, "image_size = 30: .* patch size 14.* Set image_size to 28"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_are_refused_with_numbers(model: str, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        create_encoder(recipe(model, **changes))


@pytest.mark.parametrize(
    ("model", "pool", "told"),
    [
        ("resnet10t", "class", 'no class token. Set pool = "mean"'),
        ("vit_base_patch16_gap_224", "class", 'no class token. Set pool = "mean"'),
        (
            "pit_ti_224",
            "mean",
            r"PoolingVisionTransformer does not provide these features, as it pools in another way \(token\)",
        ),
    ],
)
def test_features_that_an_encoder_has_not_are_refused_before_any_compute(model: str, pool: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        feature_width(EncoderRecipe(model=model), None, pool)


def test_pre_training_takes_plain_vision_transformers_alone() -> None:
    with pytest.raises(UserError, match="expected a plain Vision Transformer, found timm's ResNet"):
        create_vit(recipe("resnet10t"))


# Weights


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "small_swin", "small_beit"])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_a_checkpoint_under_timms_names_is_read_without_its_classifier(model: str, prefix: str, tmp_path: Path) -> None:
    classifier = trained(model, classes=5)
    path = tmp_path / "any.safetensors"
    save_weights({prefix + name: tensor for name, tensor in classifier.state_dict().items()}, path)
    loaded = load_encoder(source(model, "checkpoint"), path).eval()
    with torch.no_grad():
        expected = classifier.forward_head(classifier.forward_features(images(model)), pre_logits=True)
        assert torch.equal(encode(loaded, images(model), "mean"), expected)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_weights(trained("resnet10t").state_dict(), path)
    with pytest.raises(
        UserError, match=r"expected the weights of one encoder.*nor the names of the timm model \(stem\.0"
    ):
        load_encoder(source("convnext_atto", "checkpoint"), path)
    tensors = trained("resnet10t").state_dict()
    del tensors["layer1.0.conv1.weight"]
    save_weights(tensors, path)
    with pytest.raises(UserError, match=r"missing: layer1\.0\.conv1\.weight"):
        load_encoder(source("resnet10t", "checkpoint"), path)


@pytest.mark.parametrize(
    ("model", "side"),
    [("small_swin", 32), ("small_beit", 48), ("small_eva", 42)],
)
def test_positions_are_resized_to_another_grid_as_timm_does(model: str, side: int, tmp_path: Path) -> None:
    encoder = trained(model)
    path = tmp_path / "any.safetensors"
    save_weights(encoder.state_dict(), path)
    loaded = load_encoder(source(model, "checkpoint"), path, image_size=side).state_dict()
    larger = timm.create_model(model, img_size=side, num_classes=0)
    module = __import__(type(larger).__module__, fromlist=["checkpoint_filter_fn"])
    expected = module.checkpoint_filter_fn(encoder.state_dict() | {"head.fc.weight": torch.zeros(1)}, larger)
    changed = [name for name, tensor in encoder.state_dict().items() if tensor.shape != loaded[name].shape]
    assert changed
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


# Fine-tuning


def tuning(model: str, **changes: Any) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate({"data": DataRecipe(), "encoder": source(model), "drop_path": 0.1, **changes})


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "small_swin", "small_eva"])
def test_a_classifier_is_timms_own_on_the_encoders_features(model: str) -> None:
    encoder, settings = trained(model), tuning(model, head_std=0.5)
    classifier: Any = build_classifier(encoder, settings, 5, seed=0).eval()
    head: nn.Linear = classifier.get_classifier()
    assert 0.3 < head.weight.std() < 0.6
    assert not head.bias.any()
    with torch.no_grad():
        expected = head(encode(encoder, images(model), "mean"))
        torch.testing.assert_close(classifier(images(model)), expected)
    again: Any = build_classifier(encoder, settings, 5, seed=0)
    assert torch.equal(again.get_classifier().weight, head.weight)
    scales = {group["lr_scale"] for group in layer_decay_groups(classifier, settings)}
    assert max(scales) == 1
    assert len(scales) > 4
    first = next(iter(dict(classifier.named_parameters()).values()))
    of_first = [g["lr_scale"] for g in layer_decay_groups(classifier, settings) if any(p is first for p in g["params"])]
    assert of_first == [min(scales)]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_models_own_drop_path_is_replaced_by_the_recipes(rate: float) -> None:
    """Of timm's Swin it is 0.1."""
    own, made = timm.create_model("small_swin"), create_encoder(recipe("small_swin"), drop_path=rate)
    rates = [max([0, *(m.drop_prob for m in of.modules() if isinstance(m, DropPath))]) for of in (own, made)]
    assert rates == pytest.approx([0.1, rate])


@pytest.mark.parametrize(
    "model",
    ["cpubone_b2_bfrobust", "efficientformerv2_l", "fasternet_s", "focalnet_tiny_srf", "nest_tiny", "nextvit_small", "swin_tiny_patch4_window7_224", "tiny_vit_21m_224"],
)  # fmt: skip
def test_no_drop_path_has_an_identity_of_its_own_where_older_code_kept_the_models(model: str) -> None:
    with torch.device("meta"):
        rates = [module.drop_prob for module in timm.create_model(model).modules() if isinstance(module, DropPath)]
    assert max(rates) > 0
    architecture = {"architecture": {"model": model}, "kind": "scratch"}
    found = [tuning("resnet10t", encoder=architecture, drop_path=rate).affecting_results() for rate in (0.0, 0.1)]
    assert [of["drop_path"] for of in found] == ["none", 0.1]


def test_no_drop_path_is_as_it_was_where_the_models_own_is_0() -> None:
    assert tuning("resnet10t", drop_path=0.0).affecting_results()["drop_path"] == 0


def test_an_export_of_any_encoder_is_read_back(tmp_path: Path) -> None:
    for model in ("resnet10t", "small_swin"):
        export_encoder(trained(model, classes=3), recipe(model), tmp_path, class_names=["a", "b", "c"], image_size=64)
        export = export_of(tmp_path / "encoder.safetensors")
        assert export is not None
        assert (export.side, export.recipe.model, export.recipe.image_size) == (64, model, 64)
        described = json.loads((tmp_path / "encoder.json").read_text())
        assert ("img_size" in described["arguments"]) == (model != "resnet10t")
        loaded = timm.create_model(
            model, **described["arguments"], checkpoint_path=str(tmp_path / "encoder.safetensors")
        )
        assert loaded.num_classes == 3  # type: ignore[comparison-overlap]


def test_what_a_fine_tuning_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    write_images(tmp_path)
    no_paths = tuning("resnet10t", encoder={"architecture": {"model": "vgg11", "image_size": 32}, "kind": "scratch"})
    with (
        pytest.raises(
            UserError, match=r"drop_path = 0\.1: timm's VGG vgg11 does not support drop path.* Set drop_path = 0"
        ),
        torch.device("meta"),
    ):
        build_classifier(create_encoder(no_paths.encoder.architecture), no_paths, 3, seed=0)
    run = toy_run(
        tmp_path, suite_text=of("resnet10t", 32), kind="finetune", epochs=1, warmup_epochs=0, batch=6, micro_batch=2
    )
    with pytest.raises(UserError, match="micro_batch = 2: resnet10t has BatchNorm"):
        run.planned.kind.module.check(run)


# Runs


def of(model: str, side: int, suite: str = SUITE) -> str:
    """A toy suite with another encoder."""
    lines = [
        line for line in suite.splitlines() if line.split(" = ")[0] not in ("patch_size", "width", "depth", "heads")
    ]
    text = "\n".join(lines).replace("vit_tiny_patch16_224", model)
    assert "image_size = 16" in text
    return text.replace("image_size = 16", f"image_size = {side}")


ROW = """
[encoder.{name}]
model = "{model}"
image_size = {side}
[method.{name}]
scratch = true
encoder = "{name}"
"""

TASKS = f"""{HEAD}[data.toy]
source = "folder"
path = "toy"
[defaults.finetune]
epochs = 1
warmup_epochs = 0
batch = 6
mixup = 0.0
cutmix = 0.0
workers = 0
[defaults.linear]
epochs = 1
warmup_epochs = 0
batch = 6
pool = "mean"
fresh_crops = false
workers = 0
[downstream.knn]
kind = "knn"
data = "toy"
neighbours = 3
workers = 0
[downstream.linear]
kind = "linear"
data = "toy"
[downstream.tuned]
kind = "finetune"
data = "toy"
[shifted.occlusion]
path = "toy/val"
kind = "occlusion"
drops = [0, 2]
drop_grid = 4
shuffles = [2]
[robustness.hard]
tasks = ["tuned"]
sets = ["occlusion"]
workers = 0
"""


def test_rows_of_any_encoder_go_through_every_task_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, train=4, val=3)
    rows = [("resnet", "resnet10t", 32), ("swin", "small_swin", 32), ("eva", "small_eva", 28)]
    text = TASKS + "".join(ROW.format(name=name, model=model, side=side) for name, model, side in rows)
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lutbench", "run", "mine.toml", "--data-root", "."])
    with pytest.raises(SystemExit, match="0"):
        main()
    records = sorted((tmp_path / "results/records").rglob("*.json"))
    assert len(records) == 12
    for name, _, _ in rows:
        tuned = json.loads(next(path for path in records if f"tuned/{name}" in str(path)).read_text())
        hard = json.loads(next(path for path in records if f"hard/occlusion/{name}" in str(path)).read_text())
        whole = next(m["value"] for m in hard["measurements"] if "drop" in m["metric"] and "0" in m["metric"])
        assert whole == pytest.approx(next(m["value"] for m in tuned["measurements"] if m["metric"] == "top-1"))


def test_batch_norms_are_put_over_processes_with_the_same_names_and_numbers() -> None:
    ours, theirs = trained("resnet10t"), trained("resnet10t")
    synchronise(ours)
    assert len(batch_norms(ours)) == len(batch_norms(theirs)) > 10
    assert all(type(norm) is SyncBatchNorm for norm in batch_norms(ours))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(ours.train()(images("resnet10t")), theirs.train()(images("resnet10t")))
    with pytest.raises(UserError, match=r"EfficientNet has layers of kind BatchNormAct2d.* Use one process"):
        synchronise(timm.create_model("efficientnet_b0"))


@pytest.mark.slow
def test_a_fine_tuning_in_two_processes_gives_what_one_gives(tmp_path: Path) -> None:
    write_images(tmp_path, train=4, val=3)
    plain: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "rand_augment": "", "threads": 1}
    settings = {"kind": "finetune", "epochs": 1, "warmup_epochs": 0, "batch": 4, "drop_path": 0.2, **plain}
    alone, together = (
        performed_by(toy_run(tmp_path, f"in {count}", suite_text=of("resnet10t", 32), **settings), count)
        for count in (1, 2)
    )
    assert together["extra"]["loss"] == pytest.approx(alone["extra"]["loss"], rel=1e-3)


# Analysis


@pytest.mark.parametrize("model", ["small_eva", "small_dinov3", "small_beit"])
def test_the_tokens_of_an_encoder_in_an_analysis_are_those_of_its_blocks(model: str) -> None:
    found = grid_of(recipe(model), ENCODERS[model])
    assert found == token_grid(trained(model))
    assert (found.side, found.patch_size, found.class_token) == (2, ENCODERS[model] // 2, True)
    assert found.prefix == (5 if "dinov3" in model else 1)
    assert found.depth == 4


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "small_swin"])
def test_an_analysis_of_an_encoder_without_blocks_over_one_grid_is_refused(model: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    run = toy_run(
        tmp_path,
        suite_text=of(model, 64).replace("downstream.task", "analysis.looks"),
        measures=["similarity"],
        methods=["scratch"],
    )
    with pytest.raises(
        UserError, match=r"analysis\.looks, row scratch: .* has no such blocks.* Remove the method from methods"
    ):
        run.planned.kind.module.check(run)


def test_the_compute_of_any_encoder_is_counted() -> None:
    counted = transformer(EncoderRecipe(model="resnet18"), 224)
    assert counted.flop == pytest.approx(2 * 1.814e9, rel=0.01)  # multiply-adds as published, He et al. 2016: 1.8e9
    assert counted.values == sum(t.numel() for t in timm.create_model("resnet18", num_classes=0).state_dict().values())


# Segmentation


@pytest.mark.parametrize(("model", "neck"), [("resnet10t", False), ("convnext_atto", False), ("small_swin", False),
                                             ("small_dinov3", True)])  # fmt: skip
def test_a_segmentation_trains_on_any_encoder(model: str, neck: bool, tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    from mmseg.apis import init_model

    from downstream.segmentation.export import NEEDS_SUITE, export_mmseg

    write_scenes(tmp_path, train=6, val=2)
    suite = (
        of(model, 32, SCENES)
        .replace("crop = 16", "crop = 32")
        .replace("iterations = 12", "iterations = 3")
        .replace("stride = 8", "stride = 32")
    )
    run = toy_run(tmp_path, suite_text=suite)
    run.planned.kind.module.check(run)
    found = performed(run)
    assert 0 < found["measurements"]["mIoU"] < 100
    config, checkpoint = export_mmseg(run.folder, tmp_path / "exported")
    assert "custom_imports" in config.read_text()
    assert config.read_text().startswith(NEEDS_SUITE)
    loaded = init_model(str(config), str(checkpoint), device="cpu")
    assert hasattr(loaded, "neck") == neck
    scores = loaded.encode_decode(torch.zeros(1, 3, 32, 32), [{"img_shape": (32, 32)}])
    assert scores.shape[1] == 3


def test_every_parameter_of_any_encoder_learns_at_its_layers_rate(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    from mmseg.registry import MODELS

    from downstream.segmentation.config import mmseg_config
    from downstream.segmentation.segment import optimizer_of
    from downstream.segmentation.timm_backbone import load_maps

    write_scenes(tmp_path, train=4, val=2)
    suite = of("convnext_atto", 64, SCENES).replace("crop = 16", "crop = 64")
    run = toy_run(tmp_path, suite_text=suite)
    settings = run.recipe.model_copy(update={"layer_decay": 0.5})
    cfg = mmseg_config(settings, run.dataset("train"), run.dataset("val"), norm="BN")
    model = MODELS.build(cfg.model)
    groups = optimizer_of(model, cfg, settings).optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(model.parameters()))
    assert all(rates[id(p)] == settings.lr for name, p in model.named_parameters() if not name.startswith("backbone."))
    stages = [rates[id(next(stage.parameters()))] for stage in model.backbone.maps.model.stages]
    assert rates[id(next(model.backbone.parameters()))] < stages[0] <= stages[1] < stages[3] <= settings.lr / 2
    last = [rates[id(p)] for p in model.backbone.maps.model.stages[3].blocks[-1].parameters()]
    assert set(last) == {settings.lr / 2}

    encoder = trained("convnext_atto")
    load_maps(model.backbone, encoder)
    expected = encoder.forward_intermediates(images("convnext_atto"), intermediates_only=True)
    for one, other in zip(model.backbone.eval()(images("convnext_atto")), expected, strict=True):
        assert torch.equal(one, other)


def test_maps_are_those_of_timms_pyramid() -> None:
    from downstream.segmentation.pyramid import maps_of

    encoder = trained("convnext_atto")
    maps: Any = maps_of(recipe("convnext_atto"), 64, [0, 1, 2, 3]).eval()
    maps.model.load_state_dict({name: t for name, t in encoder.state_dict().items() if name in maps.model.state_dict()})
    pyramid: Any = timm.create_model("convnext_atto", features_only=True).eval()
    pyramid.load_state_dict(
        {
            name: encoder.state_dict()[name.replace("stem_", "stem.").replace("stages_", "stages.")]
            for name in pyramid.state_dict()
        }
    )
    with torch.no_grad():
        for found, expected in zip(maps(images("convnext_atto")), pyramid(images("convnext_atto")), strict=True):
            assert torch.equal(found, expected)
