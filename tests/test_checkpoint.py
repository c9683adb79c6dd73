"""A checkpoint is whole or passed over, and the newest whole one wins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lutbench import files
from lutbench.checkpoint import Checkpoint, finite_state, newest_checkpoint, save_checkpoint
from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError


def model() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def save(folder: Path, step: int) -> None:
    layer, optimizer = model()
    tensors = finite_state({"layer": layer}, optimizer, "toy")
    save_checkpoint(folder, "a" * 64, Checkpoint(step, tensors, {"seconds": 1.5}))


def newest(folder: Path, identity: str = "a" * 64, steps: int = 10) -> tuple[Checkpoint | None, list[str]]:
    return newest_checkpoint(folder, identity, steps)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    checkpoint, damage = newest(tmp_path)
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
    assert ours["param_groups"][0]["lr"] == 0.5, "settings are the recipe's"


@pytest.mark.parametrize("file", ["tensors.safetensors", "checkpoint.json"])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    broken = tmp_path / "step-00000002" / file
    broken.write_bytes(broken.read_bytes()[:-20])
    checkpoint, damage = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step-00000002 is damaged" in damage[0]


def test_if_all_are_damaged_the_run_does_not_start_over_in_silence(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint in .* is intact"):
        newest(tmp_path)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match="belongs to another recipe"):
        newest(tmp_path, "b" * 64)


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
    checkpoint, _ = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert json.loads((tmp_path / "step-00000001" / "checkpoint.json").read_text())["step"] == 1


# What is sealed


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))


@pytest.mark.parametrize(
    "change", [{"step": 9}, {"step": 10**9}, {"facts": {"seconds": 0.5}}, {"param_groups": []}, {"sha256": "f" * 64}]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_that_says_anything_else_than_was_saved_is_damaged(
    tmp_path: Path, change: dict[str, Any], sealed: bool
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002/checkpoint.json"
    edit(file, lambda said: said.update(change))
    if not sealed:
        edit(file, lambda said: said.pop("seal"))
    checkpoint, damage = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert len(damage) == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"digest": "5"},
        {"seconds": "x"},
        {"seconds": -1.0},
        {"losses": [1.0]},
        {"losses": {"loss": None}},
        {"skipped": 0.5},
        {"unread": [1.0]},
        {"more": 1},
    ],
)
def test_what_no_loop_keeps_is_damage_even_under_a_seal(tmp_path: Path, facts: dict[str, Any]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002/checkpoint.json"
    values = json.loads(file.read_text()) | {"facts": facts}
    del values["seal"]
    files.write_sealed(file, values)
    checkpoint, [line] = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert f"facts.{next(iter(facts))}" in line


@pytest.mark.parametrize("name", ["layer.bias", "layer.more", "optimizer.x.step", "optimizer.0"])
def test_a_checkpoint_that_cannot_be_restored_is_passed_over(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    layer, optimizer = model()
    tensors = finite_state({"layer": layer}, optimizer, "toy") | {name: torch.ones(7)}
    save_checkpoint(tmp_path, "a" * 64, Checkpoint(2, tensors, {}))
    checkpoint, [line] = newest_checkpoint(
        tmp_path, "a" * 64, 10, lambda found: found.restore({"layer": layer}, optimizer)
    )
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step-00000002 is damaged" in line


def test_settings_of_the_optimiser_that_earlier_versions_kept_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "step-00000001/checkpoint.json"
    values = json.loads(file.read_text()) | {"param_groups": [{}]}
    del values["seal"]
    files.write_sealed(file, values)
    layer, optimizer = model()
    checkpoint, damage = newest_checkpoint(
        tmp_path, "a" * 64, 10, lambda found: found.restore({"layer": layer}, optimizer)
    )
    assert checkpoint is not None
    assert (checkpoint.step, damage) == (1, [])


@pytest.mark.parametrize("content", ["[]", "7", '"text"', "{}", '{"step": "2"}', '{"seal": 3}'])
def test_json_of_anything_else_is_damage_told_in_one_line(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000002/checkpoint.json").write_text(content)
    checkpoint, [line] = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "\n" not in line


def test_a_step_beyond_the_runs_last_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint, [line] = newest(tmp_path, steps=1)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "it states step 2 of 1" in line


def test_strangers_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("step-old", "step-00000002.bak", "step-3", "20260101_000000"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-old.json").write_text("{}")
    before = {path.name for path in tmp_path.iterdir()}
    assert newest_step(tmp_path) == 1
    checkpoint, damage = newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, damage) == (1, [])
    save(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == before | {"step-00000004"}


# What is damaged is replaced


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000002" / "tensors.safetensors").write_bytes(b"")
    save(tmp_path, 2)
    checkpoint, damage = newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, damage) == (2, [])


def test_a_damaged_one_never_takes_the_place_of_a_whole_one_among_the_last_two(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 3)
    (tmp_path / "step-00000003" / "tensors.safetensors").write_bytes(b"")
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


# What is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_nothing_that_is_not_finite_is_saved(part: str, value: float) -> None:
    layer, optimizer = model()
    tensor = layer.weight if part == "weights" else optimizer.state[layer.weight]["exp_avg"]
    with torch.no_grad():
        tensor[0, 0] = value
    with pytest.raises(UserError, match=r"^toy, after step 7: 1 of 8 tensors are not finite.*learning rate.*image"):
        finite_state({"layer": layer}, optimizer, "toy, after step 7")


def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path: Path) -> None:
    """As earlier versions saved them."""
    save(tmp_path, 1)
    save_checkpoint(tmp_path, "a" * 64, Checkpoint(2, {"layer.bias": torch.tensor([torch.nan])}, {}))
    checkpoint, [line] = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "not finite: layer.bias" in line
