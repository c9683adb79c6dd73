"""Hashes of weights are kept between commands, and believed only of files that did not change."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from toy_runs import SUITE, write_images

from lutbench.errors import UserError
from lutbench.files import read_json, write_sealed
from lutbench.models.encoders import create_encoder
from lutbench.models.weights import save_weights
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.loading import load_suite
from lutbench.run import open_run
from lutbench.run_hashes import SETTLED, known_sha256
from lutbench.stages import run_suite
from lutbench.workspace import Workspace

FORGED = "0" * 64


@pytest.fixture
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that a test writes is old enough for its hash to be kept."""
    now = time.time_ns
    monkeypatch.setattr("lutbench.run_hashes.time.time_ns", lambda: now() + SETTLED)


def forge(stamps: Path) -> None:
    """Put another hash into the one stamp: what is returned then shows whether the file was read."""
    (stamp,) = stamps.glob("weights-*.json")
    values = read_json(stamp)
    values.pop("seal")
    write_sealed(stamp, values | {"sha256": FORGED})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("_later")
def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert known_sha256(tmp_path / "w.pth", tmp_path / "kept") == sha256(tmp_path / "w.pth")
    forge(tmp_path / "kept")
    assert known_sha256(tmp_path / "w.pth", tmp_path / "kept") == FORGED


@pytest.mark.usefixtures("_later")
@pytest.mark.parametrize("how", ["rewritten", "replaced", "longer"])
def test_a_file_that_changed_is_read_even_if_its_time_was_set_back(tmp_path: Path, how: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    known_sha256(path, tmp_path / "kept")
    forge(tmp_path / "kept")
    before = path.stat()
    if how == "replaced":
        (tmp_path / "other").write_bytes(b"WEIGHTS")
        (tmp_path / "other").replace(path)
    else:
        path.write_bytes(b"WEIGHTS" if how == "rewritten" else b"weights and more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_sha256(path, tmp_path / "kept") == sha256(path)


def test_a_file_that_changed_a_moment_ago_is_not_believed_the_next_time(tmp_path: Path) -> None:
    """Another change within the same tick of the file system's clock would leave all its times as they are."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    assert known_sha256(path, tmp_path / "kept") == sha256(path)
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("_later")
def test_a_stamp_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    known_sha256(path, tmp_path / "kept")
    (stamp,) = (tmp_path / "kept").iterdir()
    for text in ("", "[]", stamp.read_text().replace(sha256(path), FORGED)):
        stamp.write_text(text)
        assert known_sha256(path, tmp_path / "kept") == sha256(path)


@pytest.mark.usefixtures("_later")
def test_where_nothing_can_be_kept_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    (tmp_path / "w.pth").write_bytes(b"weights")
    for _ in range(2):
        assert known_sha256(tmp_path / "w.pth", tmp_path / "kept") == sha256(tmp_path / "w.pth")


@pytest.mark.usefixtures("_later")
def test_a_run_does_not_start_from_other_weights_than_its_identity_says(tmp_path: Path) -> None:
    """Even where a kept hash is wrong: whoever takes the weights hashes them."""
    write_images(tmp_path)
    toy = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    save_weights(create_encoder(toy).state_dict(), tmp_path / "own.safetensors")
    text = (
        SUITE.replace("scratch = true", f'checkpoint = "{tmp_path / "own.safetensors"}"') + 'kind = "knn"\nworkers = 0'
    )
    (tmp_path / "toy.toml").write_text(text)
    suite, workspace = (
        load_suite(str(tmp_path / "toy.toml")),
        Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"),
    )
    assert open_run(suite, suite.runs[0], workspace).weights_sha256 == sha256(tmp_path / "own.safetensors")
    forge(tmp_path / "runs/checked")
    assert open_run(suite, suite.runs[0], workspace).weights_sha256 == FORGED
    with pytest.raises(UserError, match=f"expected sha256 {FORGED}"):
        run_suite(suite, [], [], workspace)
    (tmp_path / "own.safetensors").touch()
    run_suite(suite, [], [], workspace)
