"""Weights that are none, or do not fit, are found by their names and shapes before any run begins, and by status and plan."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from toy_runs import SCENES, TOY, write_images, write_scenes

from downstream.stage import check_weights
from lutbench.errors import UserError
from lutbench.models import weights
from lutbench.models.encoders import create_encoder
from lutbench.models.licences import licence_of
from lutbench.models.pretrained import encoder_of
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

TASKS = {
    "finetune": 'kind = "finetune"\nbatch = 6',
    "linear": 'kind = "linear"\nbatch = 6\nfresh_crops = false',
    "knn": 'kind = "knn"\nneighbours = 3',
}
OWN = f'{TOY}\n[method.own]\nencoder = "toy"\ncheckpoint = "{{}}"\n'
CLASSIFIERS = """
[shifted.toy]
path = "toy/val"
kind = "occlusion"
drops = [0]
drop_grid = 4
[robustness.shift]
sets = ["toy"]
classifiers = ["own"]
[classifier.own]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    write_scenes(tmp_path)
    return tmp_path


def told(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run of the suite is refused with, before anything of it is on disk; status and plan tell the same."""
    (folder / "mine.toml").write_text(text)
    suite, workspace = load_suite(str(folder / "mine.toml")), Workspace(folder, folder / "runs", folder / "results")
    with pytest.raises(UserError) as error:
        run_suite(suite, [], [], workspace)
    assert not list(folder.glob("runs/**/run.json"))
    for show in (show_status, planned):
        capsys.readouterr()
        show(suite, workspace)
        shown = "".join(capsys.readouterr().out.split())  # the plan breaks lines and long words
        assert shown.count("".join(str(error.value).split())) == 1, shown
    return str(error.value)


def planned(suite: LoadedSuite, workspace: Workspace) -> None:
    show_plan(suite, workspace, Rates())


def encoder_of_another_width(path: Path) -> None:
    recipe = EncoderRecipe(
        model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=4 if "4" in path.stem else 2, heads=2
    )
    save_file(create_encoder(recipe).state_dict(), path)


def of_whole_numbers(path: Path) -> None:
    recipe = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    kind = torch.complex64 if "complex" in path.stem else torch.int64
    save_file({name: tensor.to(kind) for name, tensor in create_encoder(recipe).state_dict().items()}, path)


def of_another_network(path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(2)}}, path)


def text(path: Path) -> None:
    path.write_text("no weights")


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "width.safetensors": (encoder_of_another_width, "The weights have a width of 32, the encoder a width of 16."),
    "whole.safetensors": (of_whole_numbers, "expected floating-point numbers, found int64"),
    "complex.safetensors": (of_whole_numbers, "expected floating-point numbers, found complex64"),
    "conv.pth": (of_another_network, "expected the weights of one encoder"),
    "text.pth": (text, "expected a checkpoint of torch.save"),
    "text.safetensors": (text, "expected safetensors"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_does_not_fit_an_encoder(
    folder: Path, task: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write, problem = FILES[name]
    write(folder / name)
    message = told(folder, f'{OWN.format(folder / name)}[downstream.task]\ndata = "toy"\n{TASKS[task]}', capsys)
    assert str(folder / name) in message
    assert problem in message


def test_a_checkpoint_that_does_not_fit_a_segmenters_encoder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "width4.safetensors"
    encoder_of_another_width(path)
    mine = SCENES.replace("scratch = true", f'checkpoint = "{path}"')
    assert "The weights have a width of 32, the encoder a width of 16." in told(folder, mine, capsys)


def test_a_checkpoint_is_read_once_however_many_runs_start_from_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_another_network(folder / "conv.pth")
    read, reads = weights.read_tensors, list[Path]()
    monkeypatch.setattr(weights, "read_tensors", lambda path, *more: reads.append(path) or read(path, *more))
    tasks = "".join(f'[downstream.{name}]\ndata = "toy"\n{settings}\n' for name, settings in TASKS.items())
    told(folder, f"seeds = [0, 1]\n{OWN.format(folder / 'conv.pth')}{tasks}", capsys)
    assert reads == [folder / "conv.pth"]


def noted(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed when the weights are checked of all runs of a suite, on one line."""
    (folder / "mine.toml").write_text(text)
    suite, workspace = load_suite(str(folder / "mine.toml")), Workspace(folder, folder / "runs", folder / "results")
    capsys.readouterr()
    for planned in suite.runs:
        check_weights(open_run(suite, planned, workspace))
    return " ".join(capsys.readouterr().out.split())


TWO_SEEDS = f'seeds = [0, 1]\n{OWN}PART[downstream.task]\ndata = "toy"\n{TASKS["knn"]}'


def fitting_encoder() -> dict[str, torch.Tensor]:
    recipe = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    return create_encoder(recipe).state_dict()


def test_what_was_read_is_noted_once_with_its_licence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "mae.safetensors"
    save_file(fitting_encoder() | {"mask_token": torch.zeros(1)}, path, {"license": "cc-by-nc-4.0"})
    out = noted(folder, TWO_SEEDS.format(path).replace("PART", ""), capsys)
    assert out.count("mae.safetensors, read as: timm, 30 tensors, 1 left out, licence: cc-by-nc-4.0.") == 1


def test_a_folder_is_read_with_the_licence_of_its_readme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vit").mkdir()
    save_file(fitting_encoder(), folder / "vit" / "model.safetensors")
    (folder / "vit" / "README.md").write_text("---\nlicense: other\nlicense_name: dinov3-license\n---\n# ViT\n")
    out = noted(folder, TWO_SEEDS.format(folder / "vit").replace("PART", ""), capsys)
    assert "vit, read as: timm, 30 tensors, 0 left out, licence: dinov3-license." in out


def test_a_readme_that_says_nothing_of_a_licence_stops_nothing(folder: Path) -> None:
    for text in ("# Mine", "---\n: [\n---\n", "---\nlicense: [1]\n---\n", ""):
        save_file(fitting_encoder(), folder / "own.safetensors")
        (folder / "README.md").write_text(text)
        assert licence_of(folder / "own.safetensors") == ""


def test_part_chooses_one_of_several_encoders_and_tells_runs_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = {
        "student": {f"module.backbone.{name}": tensor for name, tensor in fitting_encoder().items()},
        "teacher": {f"backbone.{name}": tensor for name, tensor in fitting_encoder().items()},
    }
    torch.save(networks, folder / "dino.pth")
    text = TWO_SEEDS.format(folder / "dino.pth")
    message = told(folder, text.replace("PART", ""), capsys)
    assert 'found 2: student.backbone, teacher.backbone. Choose one: part = "student.backbone"' in message
    identities = set()
    for part in ("student", "teacher"):
        out = noted(folder, text.replace("PART", f'part = "{part}"\n'), capsys)
        assert f"read as: DINO {part}, 30 tensors, 0 left out." in out
        suite = load_suite(str(folder / "mine.toml"))
        run = open_run(suite, suite.runs[0], Workspace(folder, folder / "runs", folder / "results"))
        assert run.identity_inputs["recipe"]["encoder"]["part"] == part
        identities.add(run.identity)
        assert torch.equal(encoder_of(run, None).cls_token, next(t for n, t in networks[part].items() if "cls" in n))
    assert len(identities) == 2


def test_a_part_goes_with_a_checkpoint_alone(folder: Path) -> None:
    (folder / "mine.toml").write_text(f'{TOY}[method.own]\nencoder = "toy"\nscratch = true\npart = "teacher"\n')
    with pytest.raises(UserError, match="part = 'teacher': only together with checkpoint"):
        load_suite(str(folder / "mine.toml"))


def test_a_file_that_is_not_there_is_told_where_it_was_sought(folder: Path) -> None:
    (folder / "mine.toml").write_text(TWO_SEEDS.format(folder / "gone.pth").replace("PART", ""))
    suite = load_suite(str(folder / "mine.toml"))
    with pytest.raises(UserError, match=r"method\.own\.checkpoint: there is no file or folder .*gone\.pth"):
        check_weights(open_run(suite, suite.runs[0], Workspace(folder, folder / "runs", folder / "results")))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ('model = "vit_base_patch32_plus_256"', "timm has no pre-trained weights for it"),
        (
            'model = "vit_tiny_patch16_224"\nwidth = 96',
            "timm's weights of vit_tiny_patch16_224: the weights do not fit",
        ),
    ],
)
def test_timms_weights_that_are_none_or_do_not_fit(
    folder: Path, change: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method = f'[encoder.timms]\n{change}\n[method.own]\nencoder = "timms"\ntimm = true\n'
    assert problem in told(folder, f'{TOY}{method}[downstream.task]\ndata = "toy"\n{TASKS["knn"]}', capsys)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("resnet18", "the weights do not fit ResNet"),
        ("vit_tiny_patch16_224", "the weights do not fit the encoder"),
    ],
)
def test_a_checkpoint_that_does_not_fit_a_classifier(
    folder: Path, model: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of_another_network(folder / "conv.pth")
    source = f'model = "{model}"\ncheckpoint = "{folder / "conv.pth"}"\n'
    assert problem in told(folder, f"{TOY}{CLASSIFIERS}{source}", capsys)


def test_a_classifier_of_unknown_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(timm.create_model("resnet18", num_classes=7).state_dict(), folder / "seven.safetensors")
    source = f'model = "resnet18"\ncheckpoint = "{folder / "seven.safetensors"}"\n'
    assert "found 7 outputs with unknown classes" in told(folder, f"{TOY}{CLASSIFIERS}{source}", capsys)


def test_a_classifier_of_which_timm_has_no_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = f'{TOY}{CLASSIFIERS}model = "vit_base_patch32_plus_256"\n'
    assert "timm has no pre-trained weights for it" in told(folder, mine, capsys)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"num_attention_heads": 4}, "config.json beside the weights has 4 heads"),
        ({"hidden_act": "silu"}, "config.json beside the weights has hidden_act = 'silu'"),
        ({"layer_norm_eps": 0.01}, "config.json beside the weights has layer_norm_eps = 0.01"),
    ],
)
def test_a_configuration_that_says_another_computation_than_the_architecture(
    folder: Path, content: dict[str, object], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(fitting_encoder(), folder / "own.safetensors")
    mine = f'{OWN.format(folder / "own.safetensors")}[downstream.task]\ndata = "toy"\nkind = "knn"\n'
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, "hidden_act": "gelu"}))
    assert "read as: timm" in noted(folder, mine, capsys)
    (folder / "config.json").write_text(json.dumps(content))
    assert problem in told(folder, mine, capsys)


def test_a_position_embedding_that_is_resized_is_told_with_both_grids(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 x 8 patches too, as there is no telling these from 4 x 4."""
    save_file(fitting_encoder(), folder / "own.safetensors")
    task = '[downstream.task]\ndata = "toy"\nkind = "knn"\n'
    mine = f"{OWN.format(folder / 'own.safetensors')}{task}"
    assert "resized" not in noted(folder, mine, capsys)
    resized = "0 left out, position embedding resized from 4 x 4 patches (assumed to be square) to 8 x 8"
    assert resized in noted(folder, f"{mine}image_size = 32\n", capsys)
