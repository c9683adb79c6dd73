"""Files of weights are read without running anything in them, and what is wrong with one is said plainly."""

import argparse
import collections
import datetime
import json
import operator
import os
import pickle
import sys
import types
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from processes import resident
from safetensors.torch import save_file

from lutbench.errors import UserError
from lutbench.models.weight_files import sha256_of
from lutbench.models.weights import read_shapes, read_tensors, read_weights, save_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


class RunsCode:
    """A pickle of it calls os.system."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_saved_weights_are_read_back_bit_for_bit_under_the_hash_that_saving_returned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    sha256 = save_weights(WEIGHTS, path)
    assert sha256 == sha256_of(path)
    assert_same(read_weights(path, sha256))
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_weights_of_a_training_script_are_found_bare_or_under_its_key(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: WEIGHTS, "epoch": 3, "optimizer": {"state": {}}} if key else WEIGHTS, path)
    assert_same(read_weights(path))


def test_arguments_kept_beside_the_weights_as_mae_does_are_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "mae.pth"
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1.5e-4, resume="", betas=(0.9, 0.95))}, path)
    assert_same(read_weights(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path, zipped: bool) -> None:
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    torch.save(
        {"model": WEIGHTS, "args": RunsCode(witness)}, path, _use_new_zipfile_serialization=zipped, pickle_protocol=2
    )
    with pytest.raises(UserError, match=r"evil\.pth.*needs posix\.system"):
        read_weights(path)
    assert not witness.exists()


def test_a_pickle_of_no_checkpoint_at_all_does_not_run_either(tmp_path: Path) -> None:
    path, witness = tmp_path / "raw.pth", tmp_path / "witness"
    path.write_bytes(pickle.dumps(RunsCode(witness)))
    with pytest.raises(UserError, match=r"raw\.pth"):
        read_weights(path)
    assert not witness.exists()


def test_a_pickle_that_needs_a_class_is_refused_by_the_name_of_the_class(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"needs torch\.nn\.modules\.linear\.Linear"):
        read_weights(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "old.pth"])
@pytest.mark.parametrize("left", [0, 10, -5])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, left: int) -> None:
    path = tmp_path / name
    if name == "weights.safetensors":
        save_weights(WEIGHTS, path)
    else:
        torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=name != "old.pth")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=rf"{name}: expected .* its {path.stat().st_size} bytes .*truncated"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([float("-inf")], dtype=torch.float16), "not finite"),
        (torch.eye(2).to_sparse(), "quantised, sparse"),
        (None, "quantised"),
    ],
)
def test_weights_that_nothing_can_be_measured_with_are_refused_by_name(
    tmp_path: Path, odd: torch.Tensor | None, found: str
) -> None:
    if odd is None:
        odd = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"model": {**WEIGHTS, "the.odd.one": odd}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"1 of {len(WEIGHTS) + 1} tensors are .*{found}.*the\.odd\.one"):
        read_weights(tmp_path / "weights.pth")


def test_tensors_by_number_are_no_named_weights(tmp_path: Path) -> None:
    torch.save(dict(enumerate(WEIGHTS.values())), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="expected named tensors"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_with_another_hash_is_refused_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    sha256 = save_weights(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"expected sha256 {sha256}, found {sha256_of(path)}"):
        read_weights(path, sha256)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "found list"),
        ({}, "found the keys"),
        ({"epoch": 1, "best": 0.5}, "epoch, best"),
        ({"model": 1}, "model"),
    ],
)
def test_a_checkpoint_without_weights_is_refused_with_what_it_holds(
    tmp_path: Path, content: object, found: str
) -> None:
    path = tmp_path / "log.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"expected named tensors.*{found}"):
        read_weights(path)


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors", "notes.txt"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("these are not weights\n")
    with pytest.raises(UserError, match=rf"{name}: expected"):
        read_weights(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weight file .*gone\.pth"):
        read_weights(tmp_path / "gone.pth")


# What lies beside the tensors, folders, shapes


def of_module(patch: pytest.MonkeyPatch, module: str, name: str, base: type) -> type:
    """A class that pickles as that of a library does which is not here."""
    parts = module.split(".")
    for i in range(len(parts)):
        patch.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(module))
    kind = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    return kind


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Values of libraries that are not here."""
    attributes = of_module(monkeypatch, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    config = of_module(monkeypatch, "omegaconf.dictconfig", "DictConfig", object)()
    config.__dict__.update(_content={"lr": 1.0}, _type=dict)
    return {"hyper_parameters": attributes(lr=0.1), "cfg": config}


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_of_any_library_beside_the_weights_is_passed_over(
    tmp_path: Path, elsewhere: dict[str, Any], zipped: bool
) -> None:
    beside = elsewhere | {
        "args": argparse.Namespace(data=Path("/imagenet"), windows=PureWindowsPath("c:/data")),
        "best": np.float64(81.2), "epochs": np.arange(3), "rng": np.random.RandomState(0).get_state(), "names": np.array(["a", None], dtype=object),
        "meters": collections.defaultdict(list, {"loss": [1.0]}), "when": datetime.datetime(2024, 1, 1), "version": torch.__version__,
        "callbacks": {"best": {"score": np.float32(0.5)}}, "queue": collections.deque([1]), "more": types.SimpleNamespace(lr=1),
    }  # fmt: skip
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    assert read_tensors(tmp_path / "a.ckpt").keys() == {f"state_dict.{name}" for name in WEIGHTS}


def test_mmengines_history_of_losses_is_passed_over_and_calls_nothing(tmp_path: Path) -> None:
    history_buffer = pytest.importorskip("mmengine.logging").HistoryBuffer
    hub = {"log_scalars": {"loss": history_buffer([1.0, 2.0], [1, 1])}}
    torch.save({"meta": {"epoch": 1}, "state_dict": WEIGHTS, "message_hub": hub}, tmp_path / "epoch_1.pth")
    assert_same(read_weights(tmp_path / "epoch_1.pth"))


@pytest.mark.parametrize("kind", ["reached", "called"])
def test_what_stands_in_for_getattr_reaches_nothing(tmp_path: Path, kind: str) -> None:
    class Reaches:
        def __reduce__(self) -> tuple[object, ...]:
            return getattr, (Path, "cwd")

    class Calls:
        def __reduce__(self) -> tuple[object, ...]:
            return operator.call, (Reaches(),)

    torch.save({"model": WEIGHTS, "x": Reaches() if kind == "reached" else Calls()}, tmp_path / "a.pth")
    if kind == "reached":
        assert_same(read_weights(tmp_path / "a.pth"))
    else:
        with pytest.raises(UserError, match=r"needs _?operator\.call, which could run code"):
            read_weights(tmp_path / "a.pth")


def test_a_pickle_that_holds_itself_is_read_all_the_same(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": dict(WEIGHTS)}
    content["model"]["whole"] = content
    torch.save(content, tmp_path / "a.pth")
    assert_same(read_weights(tmp_path / "a.pth"))


def in_folder(folder: Path, *names: str) -> Path:
    """Weights as Hugging Face's libraries write them: a tensor a file, and an index where there are several."""
    folder.mkdir()
    files = dict(zip(WEIGHTS, names if len(names) > 1 else names * 2, strict=True))
    for file in set(names):
        tensors = {name: tensor for name, tensor in WEIGHTS.items() if files[name] == file}
        if file.endswith(".safetensors"):
            save_weights(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
    if len(names) > 1:
        stem, _, ending = names[0].partition("-")[0], None, Path(names[0]).suffix
        (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PICKLED_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize("names", [("model.safetensors",), SHARDS, ("pytorch_model.bin",), PICKLED_SHARDS])
def test_a_folder_of_weights_is_read_whole_and_its_hash_covers_every_file(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder = in_folder(tmp_path / "vit", *names)
    (folder / "config.json").write_text("{}")
    sha256 = sha256_of(folder)
    assert_same(read_weights(folder, sha256))
    assert {name: tensor.shape for name, tensor in read_shapes(folder).items()} == {
        n: t.shape for n, t in WEIGHTS.items()
    }
    (folder / "config.json").write_text('{"other": 1}')
    assert sha256_of(folder) == sha256
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"expected sha256 {sha256}"):
            read_weights(folder, sha256)
        (folder / name).write_bytes(content)
    if len(names) == 1:
        assert sha256 == sha256_of(folder / names[0])
    else:
        assert_same(read_weights(next(folder.glob("*.index.json")), sha256))


def test_a_tensor_in_two_files_is_that_of_the_file_that_the_index_says(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "vit", *SHARDS)
    first, other = WEIGHTS
    both = {first: torch.zeros(2, 3), other: WEIGHTS[other]}
    save_weights(both, folder / SHARDS[1])
    assert_same(read_weights(folder))
    save_weights({"nobodys": torch.zeros(1)}, folder / SHARDS[0])
    with pytest.raises(UserError, match=rf"1 of the listed tensors are missing in the files \({first}\)"):
        read_weights(folder)
    save_weights({first: WEIGHTS[first], "unlisted": torch.zeros(1)}, folder / SHARDS[0])
    assert "unlisted" in read_weights(folder), "which a strict fit names"


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "vit", *SHARDS)
    (folder / SHARDS[1]).rename(folder / "elsewhere")
    with pytest.raises(
        UserError, match=rf"no weight file .*{SHARDS[1]}, which is listed in model\.safetensors\.index\.json"
    ):
        read_weights(folder)
    save_weights({"other": WEIGHTS["b"]}, folder / SHARDS[1])
    with pytest.raises(UserError, match=r"index\.json: 1 of the listed tensors are missing in the files \(b\)"):
        read_weights(folder)
    for wrong in ("{}", '{"weight_map": {"b": "../b.safetensors"}}', '{"weight_map": {}}', "[]"):
        (folder / "model.safetensors.index.json").write_text(wrong)
        with pytest.raises(UserError, match="expected a weight_map"):
            read_weights(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty: expected a folder with model\.safetensors, .*found nothing\. Give the path"
    ):
        read_weights(tmp_path / "empty")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_shapes_are_read_without_the_values(tmp_path: Path, name: str) -> None:
    tensors = {f"{i}.weight": torch.zeros(64, 1024, 1024, dtype=torch.uint8) for i in range(4)}
    save_file(tensors, tmp_path / name) if name.endswith("safetensors") else torch.save(tensors, tmp_path / name)
    del tensors
    before = resident()
    shapes = read_shapes(tmp_path / name)
    assert {tuple(shape.shape) for shape in shapes.values()} == {(64, 1024, 1024)}
    assert all(shape.is_meta for shape in shapes.values())
    assert resident() - before < 32 * 2**20  # of 256 MiB


def test_shapes_are_read_again_when_a_file_has_changed(tmp_path: Path) -> None:
    save_weights(WEIGHTS, tmp_path / "a.safetensors")
    assert read_shapes(tmp_path / "a.safetensors").keys() == WEIGHTS.keys()
    save_weights({"other": WEIGHTS["b"]}, tmp_path / "a.safetensors")
    os.utime(tmp_path / "a.safetensors", (1, 1))
    assert read_shapes(tmp_path / "a.safetensors").keys() == {"other"}


def test_a_pickle_of_a_protocol_that_torch_does_not_read_safely_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path := tmp_path / "late.pth", pickle_protocol=4)
    with pytest.raises(UserError, match=r"later one.*save it again"):
        read_weights(path)
