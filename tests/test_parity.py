"""The published model's numbers come out, for any geometry, and stop coming out when the method is changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_lut import Geometry, golden_file
from torch import Tensor

import pretrain.student
from lutbench.errors import UserError
from pretrain.context import ContextLoss, Targets
from pretrain.masking import Visible
from pretrain.parity import TOLERANCES, Comparison, check_parity, parity_table
from pretrain.teacher import Teacher

PUBLISHED = Path(__file__).parent / "fixtures" / "lut_steps.npz"

GEOMETRIES = {
    "another patch size, width, depth, heads and MLP": Geometry(),
    "one step, a grid of 3, head depth 3": Geometry(grid=3, patch=8, depth=1, steps=1, head_depth=3, heads=2),
    "half masked, deeper decoder": Geometry(mask_ratio=0.5, decoder_depth=3, decoder_heads=4, batch=4, steps=4),
    "heads without BatchNorm": Geometry(head_norm="none", context_weight=1.0, weight_decay=0.5, momentum=0.5),
    "heads with LayerNorm": Geometry(head_norm="layer", lr=1e-2, hidden=29, width=12, heads=1),
    "one linear layer as head, one visible patch": Geometry(head_depth=1, grid=2, batch=8),
}


def failed(rows: list[Comparison]) -> set[str]:
    return {row.kind for row in rows if not row.passed}


def test_the_published_numbers_come_out() -> None:
    rows = check_parity(PUBLISHED)
    assert [row.kind for row in rows] == list(TOLERANCES)
    assert failed(rows) == set()
    assert all(row.difference <= row.tolerance for row in rows)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_parity_holds_for(geometry: Geometry, tmp_path: Path) -> None:
    golden_file(tmp_path / "golden.npz", geometry)
    assert failed(check_parity(tmp_path / "golden.npz")) == set()


def test_the_table_says_what_failed() -> None:
    table = parity_table([Comparison("losses", "step0/mae_loss", 0.5, 1e-5, False)])
    assert [str(cell) for cell in table.columns[3].cells] == ["fail"]


def test_a_wrong_momentum_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Teacher.update
    monkeypatch.setattr(Teacher, "update", lambda self, student, momentum: right(self, student, 0.5))
    assert "teacher weights" in failed(check_parity(PUBLISHED))


def test_a_teacher_without_averaged_statistics_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "train", torch.nn.Module.train)
    monkeypatch.setattr(Teacher, "eval", lambda self: self)
    assert "outputs" in failed(check_parity(PUBLISHED))


def test_a_comparison_with_the_same_view_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContextLoss.__call__

    def same_view(self: ContextLoss, student1: Tensor, student2: Tensor, targets: Targets) -> Tensor:
        return right(self, student2, student1, targets)

    monkeypatch.setattr(ContextLoss, "__call__", same_view)
    assert {"losses", "gradients"} <= failed(check_parity(PUBLISHED))


def test_one_direction_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContextLoss.__call__
    monkeypatch.setattr(ContextLoss, "__call__", lambda self, q1, q2, targets: right(self, q1, None, targets))
    assert {"losses", "gradients"} <= failed(check_parity(PUBLISHED))


def test_a_pool_with_the_class_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextLoss, "pool", lambda self, tokens: tokens.mean(dim=1))
    assert "outputs" in failed(check_parity(PUBLISHED))


def test_two_views_that_see_the_same_places_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pretrain.student.visible_patches

    def overlapping(noise: Tensor, count: int, unit: int) -> Visible:
        return Visible(right(noise, count).view1, right(noise, count).view1)

    monkeypatch.setattr(pretrain.student, "visible_patches", overlapping)
    assert "outputs" in failed(check_parity(PUBLISHED))


@pytest.fixture
def entries() -> dict[str, np.ndarray]:
    with np.load(PUBLISHED) as file:
        return {name: file[name] for name in file.files}


def refused(tmp_path: Path, entries: dict[str, np.ndarray]) -> str:
    np.savez(tmp_path / "broken.npz", **entries)
    with pytest.raises(UserError) as error:
        check_parity(tmp_path / "broken.npz")
    assert "broken.npz" in str(error.value)
    return str(error.value)


def test_an_unknown_entry_is_refused_by_name(tmp_path: Path, entries: dict[str, np.ndarray]) -> None:
    assert "unknown entries: final/blocks.0.gamma" in refused(
        tmp_path, {**entries, "final/blocks.0.gamma": np.zeros(3)}
    )


@pytest.mark.parametrize(
    "name", ["meta/lr", "decays", "init/pos_embed", "init/head.0.weight", "step1/view2", "grad0/norm.bias"]
)
def test_a_missing_entry_is_refused_by_name(tmp_path: Path, entries: dict[str, np.ndarray], name: str) -> None:
    del entries[name]
    assert name in refused(tmp_path, entries)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("init/norm.bias", np.zeros(5)),
        ("step2/noise", np.zeros((6, 15))),
        ("init/pos_embed", np.zeros((1, 16, 48))),
        ("init/pos_embed", np.zeros((1, 0, 48))),
        ("init/head.0.weight", np.zeros(48)),
        ("meta/patch_size", np.array(0)),
        ("meta/num_heads", np.array(5)),
        ("meta/num_heads", np.array(0)),
        ("meta/num_heads", np.array(np.nan)),
        ("meta/patch_size", np.array(4)),
        ("meta/mask_ratio", np.array(0.01)),
        ("meta/lr", np.array(-1.0)),
        ("decays", np.array(0.9)),
        ("init/norm.bias", np.array(["text"])),
    ],
)
def test_an_impossible_entry_is_refused(
    tmp_path: Path, entries: dict[str, np.ndarray], name: str, value: np.ndarray
) -> None:
    found_by = {"meta/patch_size": "init/patch_embed.proj.weight"}.get(name, name)
    assert found_by.removeprefix("meta/") in refused(tmp_path, {**entries, name: value})


def test_a_number_that_is_not_finite_fails(tmp_path: Path, entries: dict[str, np.ndarray]) -> None:
    entries["step2/bc_loss"] = np.array(np.nan)
    np.savez(tmp_path / "nan.npz", **entries)
    rows = {row.kind: row for row in check_parity(tmp_path / "nan.npz")}
    assert not rows["losses"].passed
    assert rows["losses"].tensor == "step2/bc_loss"


def test_what_is_no_golden_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        check_parity(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not numbers")
    shutil.copy(PUBLISHED, tmp_path / "cut.npz")
    with (tmp_path / "cut.npz").open("r+b") as file:
        file.truncate(100_000)
    flipped = bytearray(PUBLISHED.read_bytes())
    flipped[1_000_000:1_000_100] = bytes(100)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.savez_compressed(tmp_path / "bomb.npz", decays=np.zeros(2**26))  # half a gigabyte, in half a megabyte
    np.savez(tmp_path / "pickle.npz", decays=np.array([object()]))
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "cut.npz", "flipped.npz", "pickle.npz", "bomb.npz", "array.npy"):
        with pytest.raises(UserError, match=f"{name} could not be read"):
            check_parity(tmp_path / name)
    with pytest.raises(UserError):
        check_parity(tmp_path)
