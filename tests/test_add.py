"""From somebody's weights to a suite file of a few lines that is a suite."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lutbench.adding import Choices, add_row
from lutbench.cli import app
from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 1, "num_classes": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


PRETRAINED = ("lut", "mae", "simmim", "simmim-lut")
"""The rows of tiny that a new pre-trained one stands beside."""


def vit(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL | changes).state_dict()


def added(given: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["add", given, "--to", "tiny", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.output.split())


def test_a_dino_teacher_becomes_a_row_of_every_table_in_which_it_can_be() -> None:
    teacher = {f"backbone.{name}": tensor for name, tensor in vit(img_size=48, patch_size=12).items()}
    torch.save({"teacher": teacher | {"head.last.weight": torch.zeros(2)}, "epoch": 1}, "mine.pth")
    told = added("mine.pth", "--label", "My DINO")
    assert "mine.pth, read as: DINO teacher, 54 tensors, 1 left out." in told
    assert "The number of heads is not stored" in told
    assert "48 x 48 pixels, normalised with mean (0.485, 0.456, 0.406)" in told
    assert "resized with bicubic interpolation" in told
    assert (
        "Next: lutbench run my-dino.toml --only my-dino --data-root DIR Without --only, it also does the runs of tiny"
        in told
    )
    written = tomllib.loads(Path("my-dino.toml").read_text())
    model = written["encoder"]["my-dino"]["model"]
    label = f"{model} (patch 12, width 64, depth 4, heads 1)"
    assert written == {
        "extends": "tiny",
        "title": "tiny, with My DINO",
        "compare": [["my-dino", row] for row in PRETRAINED],
        "encoder": {
            "my-dino": {
                "label": label,
                "model": model,
                "image_size": 48,
                "patch_size": 12,
                "width": 64,
                "depth": 4,
                "heads": 1,
            }
        },
        "method": {"my-dino": {"label": "My DINO", "checkpoint": "mine.pth", "encoder": "my-dino"}},
    }
    suite, base = load_suite("my-dino.toml"), load_suite("tiny")
    rows = {run.method for run in base.runs}
    new = {f"{run.stage}/{run.task}" for run in suite.runs if run.method == "my-dino"}
    assert new == {f"{run.stage}/{run.task}" for run in base.runs if run.method == "lut"}
    assert suite.config.compare == [*base.config.compare, *(["my-dino", row] for row in PRETRAINED)]
    assert {run.recipe.encoder_label for run in suite.runs if run.method == "my-dino" and run.kind.name == "knn"} == {
        label
    }
    assert {run.method for run in suite.runs} - rows == {"my-dino"} | {
        m for m in {r.method for r in suite.runs} if "untrained" in m
    } - rows


def test_an_encoder_that_the_base_has_already_is_named() -> None:
    base = load_suite("tiny").config.encoder
    name, recipe = next(iter(base.items()))
    arguments = {
        "img_size": recipe.image_size,
        "patch_size": recipe.patch_size,
        "embed_dim": recipe.width,
        "depth": recipe.depth,
    }
    model = timm.create_model(recipe.model, **arguments, num_heads=recipe.heads, num_classes=0)
    folder = Path("theirs")
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", {"license": "mit"})
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": recipe.heads}))
    told = added(str(folder))
    assert "licence: mit" in told
    written = tomllib.loads(Path("theirs.toml").read_text())
    assert written["method"]["theirs"]["encoder"] == name
    assert "encoder" not in written


def test_an_encoder_without_class_token_is_pooled_by_the_mean_and_the_base_keeps_its_pooling() -> None:
    save_file(vit(class_token=False, global_pool="avg", fc_norm=False), "ijepa.safetensors")
    added("ijepa.safetensors", "--like", "mae")
    assert tomllib.loads(Path("ijepa.toml").read_text())["method"]["ijepa"]["pool"] == "mean"
    suite = load_suite("ijepa.toml", ["defaults.linear.pool=class"])
    pools = {run.method: run.recipe.pool for run in suite.runs if run.kind.name == "linear"}  # type: ignore[attr-defined]
    assert pools["ijepa"] == "mean"
    assert pools["lut"] == "class"


def test_a_network_without_patches_is_told_by_its_shapes() -> None:
    model = timm.create_model("resnet10t", num_classes=10)
    torch.save({"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}}, "res.pth.tar")
    told = added("res.pth.tar", "--image-size", "64")
    assert "Architecture: timm's resnet10t" in told
    written = tomllib.loads(Path("res.toml").read_text())
    assert written["encoder"]["res"] == {"label": "resnet10t", "model": "resnet10t", "image_size": 64}
    assert "--image-size" not in told, "the ratio is told of patches"
    assert written["method"]["res"]["pool"] == "mean"
    assert "analysis.looks, row res: an analysis needs a sequence of blocks" in told
    assert "So res.toml leaves it out of analysis.looks." in told
    assert written["analysis"] == {"looks": {"methods": ["lut", "mae", "lut-tuned"]}}
    looked = {run.method for run in load_suite("res.toml").runs if run.stage == "analysis"}
    assert looked == {"lut", "mae", "lut-tuned", "untrained"}


def test_an_encoder_of_other_patches_has_an_analysis_of_its_own() -> None:
    save_file(vit(img_size=48), "other.safetensors")
    told = added("other.safetensors")
    assert "leaves it out of analysis.looks, and adds the table [analysis.looks-other] for it." in told
    suite = load_suite("other.toml")
    looked = {run.task: run.recipe for run in suite.runs if run.stage == "analysis" and run.method in ("lut", "other")}
    assert looked["looks-other"].model_dump(exclude={"encoder"}) == looked["looks"].model_dump(exclude={"encoder"})


def test_heads_that_cannot_be_seen_are_asked_for_and_can_be_said() -> None:
    save_file(vit(embed_dim=96, num_heads=3), "narrow.safetensors")
    refused("narrow.safetensors", r"lutbench add --heads N, or heads = N in \[encoder\.NAME\]")
    refused("narrow.safetensors", "--heads 5: expected a divisor of the width, 96", heads=5)
    added("narrow.safetensors", "--heads", "3")
    encoder = tomllib.loads(Path("narrow.toml").read_text())["encoder"]["narrow"]
    assert (encoder["width"], encoder["heads"]) == (96, 3)
    changes = ["--file", "named-2.toml", "--label", "Named"]
    sizes = {"patch_size": 8, "embed_dim": 384, "num_heads": 12, "depth": 12}
    save_file(vit(**sizes), "named.safetensors")
    added("named.safetensors", "--model", "vit_small_patch8_224", "--image-size", "32", "--heads", "12", *changes)
    encoder = tomllib.loads(Path("named-2.toml").read_text())["encoder"]["named"]
    assert encoder["label"] == "vit_small_patch8_224 (heads 12)"
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), "net.pth")
    refused("net.pth", "--heads is for plain Vision Transformers", heads=2)


def test_a_row_is_compared_with_the_pretrained_rows_that_share_its_tables() -> None:
    Path("base.toml").write_text(
        'title = "Base"\nabout = "for tests"\nkind = "pipeline"\ncompare = [["one", "two"]]\n[data.toy]\npath = "toy"\n'
        '[encoder.toy]\nmodel = "vit_tiny_patch16_224"\nimage_size = 32\npatch_size = 8\nwidth = 32\ndepth = 1\nheads = 2\n'
        '[defaults.pretrain]\ndata = "toy"\nencoder = "toy"\n[pretrain.one]\n[pretrain.two]\n'
        '[method.one]\npretrain = "one"\n[method.two]\npretrain = "two"\n[method.other]\npretrain = "two"\n'
        '[method.teacher]\npretrain = "one"\nteacher = true\n[method.random]\nscratch = true\nencoder = "toy"\n'
        '[downstream.near]\nkind = "knn"\ndata = "toy"\nmethods = ["one", "two", "teacher", "random"]\n'
        '[downstream.far]\nkind = "knn"\ndata = "toy"\nmethods = ["other"]\n'
    )
    save_file(vit(), "mine.safetensors")
    add_row("mine.safetensors", "base.toml", Choices(like="one"))
    written = tomllib.loads(Path("mine.toml").read_text())
    assert written["compare"] == [["mine", "one"], ["mine", "two"]]
    assert written["title"] == "Base, with mine"
    assert load_suite("mine.toml").config.compare[0] == ["one", "two"]
    add_row("mine.safetensors", "base.toml", Choices(like="other"), Path("far.toml"))
    assert tomllib.loads(Path("far.toml").read_text())["compare"] == [["mine", "other"]]


def test_the_size_that_the_bases_encoders_see_is_told_with_what_it_saves() -> None:
    save_file(vit(img_size=224), "large.safetensors")
    told = added("large.safetensors")
    assert (
        "The encoders of tiny use 48 x 48 pixels: --image-size 48 is about 21.8 times cheaper, by the number of patches."
        in told
    )
    same = added("large.safetensors", "--image-size", "48", "--file", "same.toml")
    assert "--image-size" not in same


def test_what_is_written_runs() -> None:
    """The head of the suite file is all that is needed: a base of the test's own, with a set of drawn images."""
    from PIL import Image

    for split in ("train", "val"):
        for label in ("dark", "light"):
            Path("data", "toy", split, label).mkdir(parents=True)
            for number in range(6):
                shade = 40 * number + (0 if label == "dark" else 15)
                image = Image.effect_noise((40, 40), 60).point(lambda value, shade=shade: (value + shade) // 2)
                image.convert("RGB").save(Path("data", "toy", split, label, f"{number}.png"))
    Path("base.toml").write_text(
        'title = "Base"\nabout = "for tests"\nkind = "pipeline"\n[data.toy]\npath = "toy"\n'
        '[encoder.toy]\nmodel = "vit_tiny_patch16_224"\nimage_size = 16\npatch_size = 8\nwidth = 32\ndepth = 1\nheads = 2\n'
        '[method.random]\nscratch = true\nencoder = "toy"\n'
        '[downstream.near]\nkind = "knn"\ndata = "toy"\nneighbours = 3\nworkers = 0\n'
    )
    save_file(vit(), "mine.safetensors")
    add_row("mine.safetensors", "base.toml", Choices())
    folders = ["--data-root", "data", "--runs", "runs", "--results", "results"]
    result = CliRunner().invoke(app, ["run", "mine.toml", *folders], catch_exceptions=False)
    assert result.exit_code == 0
    assert sorted(path.parent.name for path in Path("results/records/mine").rglob("seed0.json")) == ["mine", "random"]


def refused(given: str, match: str, base: str = "tiny", **choices: Any) -> None:
    before = set(Path().iterdir())
    with pytest.raises(UserError, match=match):
        add_row(given, base, Choices(**choices))
    assert set(Path().iterdir()) == before, "no file is left"


def test_what_cannot_be_a_row_leaves_no_file() -> None:
    refused("nothing.pth", r"no file or folder of weights nothing\.pth")
    refused("vit_base_patch16_224.maee", r"maee.*Did you mean")
    refused("vit_smal_patch16_224", "Did you mean 'vit_small_patch16_224'")
    refused("vit_tiny_patch16_224", "no suite 'smal'.*'small'", base="smal")
    state = vit()
    torch.save(
        {
            "student": {f"backbone.{n}": t for n, t in state.items()},
            "teacher": {f"backbone.{n}": t for n, t in state.items()},
        },
        "two.pth",
    )
    refused("two.pth", r"found 2: student\.backbone, teacher\.backbone.*--part student\.backbone")
    save_file({name: tensor for name, tensor in state.items() if "norm2" not in name}, "broken.safetensors")
    refused("broken.safetensors", "No timm model fits these 44 tensors")
    refused("broken.safetensors", r"do not fit", model="vit_tiny_patch16_224")
    state["blocks.0.norm1.bias"][0] = float("nan")
    save_file(state, "nan.safetensors")
    refused("nan.safetensors", "not finite")
    save_file(vit(), "fine.safetensors")
    refused("fine.safetensors", "no method 'maee'", like="maee")


def test_nothing_is_overwritten() -> None:
    save_file(vit(), "mine.safetensors")
    Path("mine.toml").write_text("precious")
    refused("mine.safetensors", "mine.toml exists")
    Path("mine.safetensors").write_bytes(b"these would be refused if they were read")
    refused("mine.safetensors", "mine.toml exists")
    assert Path("mine.toml").read_text() == "precious"


def test_the_file_is_a_suite_file() -> None:
    with pytest.raises(UserError, match=r"--file tiny: expected the name of a suite file, which ends in \.toml"):
        add_row("mine.safetensors", "tiny", Choices(), Path("tiny"))
    assert not list(Path().iterdir())
