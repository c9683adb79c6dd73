"""Files of weights are read without running anything in them, and what is wrong with one is said plainly."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch

from lutbench.errors import UserError
from lutbench.models.weights import read_weights, save_weights, sha256_of

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
    with pytest.raises(UserError, match=rf"{name}: expected .* found {path.stat().st_size} bytes.*truncated"):
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
    with pytest.raises(UserError, match=r"no file of weights .*gone\.pth"):
        read_weights(tmp_path / "gone.pth")
