"""Features are encoded once for all probes that take the same; what is kept has the bits of what is encoded, or is not believed."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy_runs import SUITE, TOY, encoder, in_processes, performed, performed_by, toy_run

from lutbench.evaluate import features
from lutbench.evaluate.feature_store import Kept, path_of, read_features, write_features
from lutbench.evaluate.features import feature_inputs, features_of
from lutbench.evaluate.inference import encode_images
from lutbench.files import DamagedError
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.loading import load_suite
from lutbench.run import Run
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace

KNN: dict[str, Any] = {"kind": "knn", "neighbours": 5, "threads": 1}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which splits were encoded, once for every pass over their images."""
    passes: list[str] = []

    def counting(encoder: Any, images: Any, *others: Any, **named: Any) -> Any:
        passes.append(images.split)
        return encode_images(encoder, images, *others, **named)

    monkeypatch.setattr(features, "encode_images", counting)
    return passes


def kept(run: Run) -> list[Path]:
    return sorted(run.workspace.features.glob("*.safetensors"))


PROBES = f"""{TOY}
[method.first]
scratch = true
encoder = "toy"
[method.second]
scratch = true
encoder = "other"
{encoder("other", patch_size=8)}
[downstream.knn]
kind = "knn"
data = "toy"
neighbours = 5
[downstream.white]
kind = "knn"
data = "toy"
neighbours = 5
feature_transform = "whiten"
[downstream.linear]
kind = "linear"
data = "toy"
pool = "mean"
epochs = 2
warmup_epochs = 0
batch = 12
fresh_crops = false
[downstream.logistic]
kind = "logistic"
data = "toy"
pool = "mean"
C_grid = [1.0]
halvings = 0
"""


def test_probes_of_one_command_encode_a_set_once_for_each_encoder(
    folder: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "probes.toml").write_text(PROBES)
    suite = load_suite(str(folder / "probes.toml"))
    workspace = Workspace(folder, folder / "runs", folder / "results")
    run_suite(suite, [], [], workspace)
    assert len(suite.runs) == 8
    assert encoded == ["train", "val"] * 2
    assert sorted(path.suffix for path in workspace.features.iterdir()) == [".crops"] * 2 + [".safetensors"] * 4
    assert capsys.readouterr().out.count("are in the cache and are not computed again") == 6 * 2
    records = [json.loads(path.read_text()) for path in (folder / "results").rglob("seed0.json")]
    by_reading = [record for record in records if record["extra"].get("features_kept") == ["train", "val"]]
    assert [record["images_per_second"] for record in by_reading] == [None] * 6, (
        "nothing was encoded, so it has no rate"
    )
    assert all(record["images_per_second"] > 0 for record in records if record not in by_reading)
    capsys.readouterr()
    show_status(suite, Workspace(folder, folder / "runs", folder / "results"))
    assert capsys.readouterr().out.count(" finished ") == 8


@pytest.mark.parametrize(
    "settings",
    [
        KNN,
        KNN | {"pool": "class", "blocks": [1, -1]},
        {"kind": "linear", "fresh_crops": False, "epochs": 4, "warmup_epochs": 0, "batch": 12, "threads": 1},
        {"kind": "logistic", "halvings": 1, "threads": 1},
    ],
    ids=["knn", "knn of blocks", "linear", "logistic"],
)
def test_a_probe_has_the_same_bits_whether_its_features_were_there_or_not(
    folder: Path, encoded: list[str], settings: dict[str, Any]
) -> None:
    (folder / "toy" / "train" / "amber" / "0.png").write_bytes(b"")  # one that cannot be decoded
    first = performed(toy_run(folder, "first", **settings))
    assert (encoded, first["extra"]["skipped"]) == (["train", "val"], 1)
    run = toy_run(folder, "second", **settings)
    shutil.copytree(folder / "first" / "runs" / "features", run.workspace.features)
    second = performed(run)
    assert encoded == ["train", "val"], "not encoded again"
    assert second["extra"].pop("features_kept") == ["train", "val"]
    assert second == first


def test_features_are_those_of_the_encoder_on_the_images(folder: Path) -> None:
    run = toy_run(folder, **KNN)
    expected = encode_images(encoder_of(run, None), run.dataset("val"), run.recipe, run.preprocessing, "")
    for _ in range(2):
        found = features_of(run, "val")
        assert torch.equal(found.values, expected.values)
        assert found.index.tolist() == expected.index.tolist()


def test_tokens_are_the_patches(folder: Path) -> None:
    run = toy_run(folder, **KNN)
    tokens = features_of(run, "val", "tokens").values
    assert tokens.shape == (21, 16, 16)
    assert torch.allclose(tokens.mean(1), features_of(run, "val").values, atol=1e-6)


def test_features_of_few_shots_are_rows_of_those_of_the_whole_split(folder: Path, encoded: list[str]) -> None:
    (folder / "toy" / "train" / "amber" / "0.png").write_bytes(b"")
    few = toy_run(folder, **KNN | {"shots": 3, "draw": 1, "neighbours": 2})
    chosen: Any = few.dataset("train")
    rows = features_of(few, "train")
    assert encoded == ["train"]
    whole = features_of(toy_run(folder, **KNN), "train")
    other = features_of(toy_run(folder, **KNN | {"shots": 3, "draw": 2, "neighbours": 2}), "train")
    assert encoded == ["train"], "one encoding for all draws"
    decoded = [index for index in chosen.index.tolist() if index in whole.index]
    assert [chosen.index[index] for index in rows.index] == decoded
    assert torch.equal(rows.values, whole.values[torch.from_numpy(np.searchsorted(whole.index, decoded))])
    assert not torch.equal(rows.values, other.values)
    assert features_of(few, "train", "tokens").images == len(chosen), "tokens are those of the chosen images alone"


CHANGES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "pool": ([], {"pool": "class"}),
    "crop": ([], {"eval_crop": 1.0}),
    "what resizes": ([], {"resized_by": "torchvision"}),
    "size": ([], {"image_size": 24}),
    "precision": ([], {"precision": "bf16"}),
    "batch": ([], {"eval_batch": 4}),
    "block": ([], {"blocks": [2]}),
    "architecture": (["encoder.toy.heads=4"], {}),
    "seed of random weights": (["seeds=[1]"], {}),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_whatever_decides_the_bits_tells_features_apart(folder: Path, encoded: list[str], changed: str) -> None:
    performed(toy_run(folder, **KNN))
    overrides, settings = CHANGES[changed]
    performed(toy_run(folder, changes=overrides, **KNN | settings))
    assert encoded == ["train", "val"] * 2


def test_what_decides_no_bits_does_not(folder: Path, encoded: list[str]) -> None:
    performed(toy_run(folder, **KNN))
    performed(toy_run(folder, **KNN | {"neighbours": 3, "temperature": 0.1, "workers": 1}))
    performed(toy_run(folder, changes=["data.toy.label=Colours", "seeds=[0]"], **KNN | {"feature_transform": "centre"}))
    assert encoded == ["train", "val"]


def test_other_weights_and_other_images_are_other_features(folder: Path, encoded: list[str]) -> None:
    run = toy_run(folder, **KNN)
    performed(run)
    weights = folder / "weights.pth"
    suite = SUITE.replace("scratch = true", f'checkpoint = "{weights}"')
    for factor in (1.0, 2.0):
        torch.save({name: factor * value for name, value in encoder_of(run, None).state_dict().items()}, weights)
        performed(toy_run(folder, suite_text=suite, **KNN))
    assert encoded == ["train", "val"] * 3
    Image.new("RGB", (20, 20)).save(folder / "toy" / "val" / "blue" / "new.png")
    performed(toy_run(folder, suite_text=suite, **KNN))
    assert encoded == ["train", "val"] * 3 + ["val"], "the training images are the same"


def test_other_code_and_another_machine_are_other_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run(folder, **KNN)
    before = feature_inputs(run, run.dataset("val"), "mean")
    for name, other in {
        "digest_of": lambda module: "f" * 16,
        "packages": lambda: {"torch": "9.9"},
        "hardware": lambda: type("Other", (), {"cpu": "another", "gpus": []}),
    }.items():
        with monkeypatch.context() as patched:
            patched.setattr(features, name, other)
            assert feature_inputs(run, run.dataset("val"), "mean") != before, name
    assert feature_inputs(run, run.dataset("val"), "mean") == before


@pytest.mark.parametrize("place", [3, 100, 500, -3])
def test_a_flipped_byte_is_told_and_the_images_are_encoded_anew(
    folder: Path, encoded: list[str], capsys: pytest.CaptureFixture[str], place: int
) -> None:
    first = performed(toy_run(folder, "first", **KNN))
    run = toy_run(folder, "first", **KNN | {"workers": 1})
    damaged = path_of(run.workspace.features, {**feature_inputs(run, run.dataset("train"), "mean"), "block": 0})
    content = bytearray(damaged.read_bytes())
    content[place] ^= 1
    damaged.write_bytes(content)
    second = performed(run)
    assert encoded == ["train", "val", "train"]
    assert second.pop("extra")["features_kept"] == ["val"]
    assert second == {name: value for name, value in first.items() if name != "extra"}
    said = capsys.readouterr().out
    assert f"{damaged}: damaged or changed since it was written" in said
    assert "The images are encoded again." in said
    performed(run)
    assert encoded == ["train", "val", "train"], "mended"


def test_half_a_file_and_an_empty_one_are_not_believed(folder: Path) -> None:
    inputs, whole = {"of": "toy"}, Kept(torch.rand(5, 3), torch.arange(5))
    assert read_features(folder / "features", inputs) is None
    assert write_features(folder / "features", [(inputs, whole)], 10**6) == ""
    path = path_of(folder / "features", inputs)
    content = path.read_bytes()
    for end in (0, 7, 40, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(DamagedError, match="damaged or changed"):
            read_features(folder / "features", inputs)
    path.write_bytes(content)
    found = read_features(folder / "features", inputs)
    assert found is not None
    assert torch.equal(found.values, whole.values)
    path.rename(path_of(folder / "features", {"of": "another"}))
    with pytest.raises(DamagedError, match="contains other features"):
        read_features(folder / "features", {"of": "another"})


def some(number: int) -> tuple[dict[str, int], Kept]:
    """800 bytes of features, the index included."""
    return {"number": number}, Kept(torch.full((50, 2), float(number)), torch.arange(50))


def test_what_was_used_longest_ago_goes_first_where_the_room_is_used_up(tmp_path: Path) -> None:
    for number in range(4):
        assert write_features(tmp_path, [some(number)], 10**6) == ""
        os.utime(path_of(tmp_path, {"number": number}), (number, number))
    assert read_features(tmp_path, {"number": 0}) is not None, "used now"
    size = path_of(tmp_path, {"number": 0}).stat().st_size
    assert write_features(tmp_path, [some(4)], 2 * size + 900) == ""
    assert {number for number in range(5) if path_of(tmp_path, {"number": number}).exists()} == {0, 3, 4}
    assert "they need 0.0 MB, but --features allows" in write_features(tmp_path, [some(5)], 799)
    assert {number for number in range(6) if path_of(tmp_path, {"number": number}).exists()} == {0, 3, 4}


def test_features_larger_than_the_room_are_encoded_and_not_kept(
    folder: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run(folder, **KNN)
    run.workspace = Workspace(run.workspace.data, run.workspace.runs, run.workspace.results, feature_bytes=1600)
    performed(run)
    said = capsys.readouterr().out
    assert (
        "the features of train are not cached for other probes: they need 0.0 MB, but --features allows only 0.0 MB"
        in said
    )
    assert len(kept(run)) == 1, "those of val"
    performed(run)
    assert encoded == ["train", "val", "train"]


def test_a_folder_that_cannot_be_written_keeps_nothing_and_stops_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run(folder, **KNN)
    run.workspace.features.write_text("in the way")
    performed(run)
    assert "are not cached for other probes" in capsys.readouterr().out


def test_what_killed_commands_left_half_written_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    living, dead = tmp_path / f".a.safetensors.partial-{os.getppid()}", tmp_path / ".b.safetensors.partial-99999999"
    living.touch()
    dead.touch()
    write_features(tmp_path, [some(0)], 10**6)
    assert (living.exists(), dead.exists()) == (True, False)


def test_commands_that_write_the_same_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    commands = [context.Process(target=write_often, args=(tmp_path,)) for _ in range(4)]
    for command in commands:
        command.start()
    reads = 0
    while any(command.is_alive() for command in commands):
        found = read_features(tmp_path, {"number": 1})  # raises if it is ever half a file
        reads += found is not None and torch.equal(found.values, some(1)[1].values)
    for command in commands:
        command.join()
    assert [command.exitcode for command in commands] == [0] * 4
    assert reads > 0
    assert [path.name for path in tmp_path.iterdir()] == [path_of(tmp_path, {"number": 1}).name]


def write_often(folder: Path) -> None:
    torch.set_num_threads(1)
    for _ in range(20):
        assert write_features(folder, [some(1)], 10**6) == ""


def test_two_processes_agree_on_what_is_there(folder: Path) -> None:
    """Also where one of them cannot read it."""
    alone = performed_by(toy_run(folder, "one", **KNN), 1)
    run = toy_run(folder, "two", **KNN)
    assert performed_by(run, 2) == alone
    assert len(kept(run)) == 2
    shutil.rmtree(run.workspace.results)

    def with_one_blind() -> list[bool]:
        accelerator()
        torch.set_num_threads(1)
        if os.environ["RANK"] == "1":
            shutil.rmtree(folder / "nowhere", ignore_errors=True)
            run.workspace = Workspace(folder, folder / "nowhere", run.workspace.results)
        own = features_of(run, "val")
        return [own.kept, own.values.shape == (21, 16)]

    assert in_processes(with_one_blind, 2) == [[False, True]] * 2
    found = performed_by(run, 2)
    assert found["extra"].pop("features_kept") == ["train", "val"]
    assert found == alone


def test_a_sweep_over_blocks_encodes_once_if_all_blocks_take_little_and_each_time_if_not(
    folder: Path, encoded: list[str]
) -> None:
    sweep: list[list[int]] = [[1], [2], [1, 2], [-1]]
    values: list[Tensor] = []
    for blocks in sweep:
        values.append(features_of(toy_run(folder, "little", **KNN | {"blocks": blocks}), "train").values)
    assert encoded == ["train"]
    assert torch.equal(values[2], torch.cat(values[:2], 1))
    assert torch.equal(values[3], values[1])
    for blocks, before in zip(sweep, values, strict=True):
        run = toy_run(folder, "much", **KNN | {"blocks": blocks})
        run.workspace = Workspace(folder, run.workspace.runs, run.workspace.results, feature_bytes=15000)
        assert torch.equal(features_of(run, "train").values, before)
    assert encoded == ["train"] * 3, "two blocks of 1,920 bytes each are more than a fourth of 15,000"
