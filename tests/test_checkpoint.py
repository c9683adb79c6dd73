"""A checkpoint is whole or passed over, and the newest whole one wins."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lutbench import files
from lutbench.checkpoint import newest_checkpoint, save_checkpoint
from lutbench.errors import UserError


def model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def save(folder: Path, step: int) -> None:
    layer, optimizer = model()
    save_checkpoint(folder, "a" * 64, step, {"layer": layer}, optimizer, {"seconds": 1.5})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    checkpoint, damage = newest_checkpoint(tmp_path, "a" * 64)
    assert checkpoint is not None
    assert damage == []
    assert (checkpoint.step, checkpoint.extra_state) == (7, {"seconds": 1.5})
    layer, optimizer = nn.Linear(3, 2), None
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5)
    checkpoint.restore({"layer": layer}, optimizer)
    first, first_optimizer = model()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), first.parameters(), strict=True))
    ours, theirs = optimizer.state_dict(), first_optimizer.state_dict()
    assert all(torch.equal(ours["state"][0][key], theirs["state"][0][key]) for key in theirs["state"][0])
    assert ours["param_groups"][0]["lr"] == 0.1


@pytest.mark.parametrize("file", ["tensors.safetensors", "checkpoint.json"])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    broken = tmp_path / "step-00000002" / file
    broken.write_bytes(broken.read_bytes()[:-20])
    checkpoint, damage = newest_checkpoint(tmp_path, "a" * 64)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step-00000002 is damaged" in damage[0]


def test_if_all_are_damaged_the_run_does_not_start_over_in_silence(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole"):
        newest_checkpoint(tmp_path, "a" * 64)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match="belongs to another recipe"):
        newest_checkpoint(tmp_path, "b" * 64)


def test_only_the_last_two_stay(tmp_path: Path) -> None:
    for step in range(1, 5):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_leaves_the_checkpoint_before_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(UserError, match="The disk is full"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint, _ = newest_checkpoint(tmp_path, "a" * 64)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert json.loads((tmp_path / "step-00000001" / "checkpoint.json").read_text())["step"] == 1
