"""Every known set is listed with what is there of it, and told with how to get it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from image_files import tree
from toy_folders import camvid, flowers, text_of, told

from lutbench.data.catalogue import CATALOGUE, DatasetStatus, find, present, status_of
from lutbench.data.describe import render_dataset, render_list
from lutbench.data.prepare import prepare_set
from lutbench.data.verify import verify
from lutbench.errors import UserError

# The list


def list_sets(root: Path) -> list[DatasetStatus]:
    return [status_of(known, root) for known in CATALOGUE.values()]


def test_the_list_names_every_set_its_size_and_whether_it_is_there(tmp_path: Path) -> None:
    tree(tmp_path / "imagenet-1k/train")
    states = {status.known.name: status.state for status in list_sets(tmp_path)}
    assert list(states) == list(CATALOGUE)
    assert states["photographs"] == "built on first use"
    assert states["imagenet-1k"] == "val is missing"
    assert states["caltech101"] == "missing"
    tree(tmp_path / "imagenet-1k/val")
    assert {s.known.name: s.state for s in list_sets(tmp_path)}["imagenet-1k"] == "here"
    shown = text_of(render_list(tmp_path))
    for words in ("1,281,167", "50,000", "75 x 50,000", "mCE", "mIoU"):
        assert words in shown
    assert "https://" not in shown, "how to get a set is told with the set"


def test_a_set_that_unpacked_to_an_empty_folder_is_not_called_here(tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet").mkdir()
    (tmp_path / "CUB_200_2011/images").mkdir(parents=True)
    states = {status.known.name: status.state for status in list_sets(tmp_path)}
    assert states["oxford-pets"] == "missing"
    assert states["cub-200-2011"] == "images.txt and 3 more are missing"


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder, and no privileges that root may have: permissions count."""
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        try:
            yield Path(root)
        finally:
            os.seteuid(before)
            for folder in (path for path, _, _ in os.walk(root)):
                Path(folder).chmod(0o755)


@pytest.mark.parametrize(
    "where", ["flowers17", "flowers17/train", "flowers17/val/c3", "camvid", "camvid/images/training"]
)
def test_a_folder_that_may_not_be_read_is_told(where: str) -> None:
    with as_nobody() as root:
        flowers(root)
        camvid(root)
        (root / where).chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        name = where.partition("/")[0]
        states = {status.known.name: status.state for status in list_sets(root)}
        report = verify(name, root)
    assert list(states) == list(CATALOGUE)
    assert states[name] in ("cannot be read: Permission denied", "here")
    assert re.search(f"{root}/{where}\\S* cannot be read: Permission denied", told(report))


def test_a_data_root_that_is_not_utf_8_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lutbench", "data", "list", "--data-root", os.fsencode(tmp_path) + b"/\xe9"]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=strict, capture_output=True, text=True, check=True)
    assert f"Datasets below {tmp_path}/\\udce9" in done.stdout.replace("\n", "")


def test_the_list_fits_80_columns_with_nothing_cut(tmp_path: Path) -> None:
    (tmp_path / "ADEChallengeData2016/images/training").mkdir(parents=True)
    shown = text_of(render_list(tmp_path), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for name in CATALOGUE:
        assert name in shown.split()


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_one_set_is_told_with_every_step_to_get_it(tmp_path: Path, name: str) -> None:
    known = find(name)
    status = status_of(known, tmp_path)
    together = "".join(text_of(render_dataset(status), 80).split())
    for step in [*known.get.replace("DIR", str(status.path)).splitlines(), known.title, str(status.path)]:
        assert "".join(step.split()) in together
    assert f"state{status.state.replace(' ', '')}" in together
    for fact in (known.paper, known.terms):
        assert "".join(fact.split()) in together
    assert "layoutDIR/" in together or "layoutthedatasetofthatnameontheHuggingFaceHub" in together


def test_a_set_is_told_with_the_suites_that_use_it(tmp_path: Path) -> None:
    def told(name: str) -> str:
        return text_of(render_dataset(status_of(find(name), tmp_path)))

    assert re.search(r"suites +paper", told("imagenet-c"))
    assert "suites   camvid, evidence, small" in told("camvid")
    assert "suites" not in told("food-101")


def test_parts_of_a_shifted_set_that_are_missing_are_seen_at_a_glance(tmp_path: Path) -> None:
    def state(name: str) -> str:
        return status_of(CATALOGUE[name], tmp_path).state

    assert state("imagenet-o") == state("imagenet-c") == state("imagenet-v2") == "missing"
    (tmp_path / "imagenet-o").mkdir()
    assert state("imagenet-o") == "imagenet-1k/val is missing"
    (tmp_path / "imagenet-1k/val").mkdir(parents=True)
    assert state("imagenet-o") == state("imagenet-occlusion") == "here"
    for name in CATALOGUE["imagenet-c"].recipe.corruptions[:-1]:
        (tmp_path / "imagenet-c" / name).mkdir(parents=True)
    assert state("imagenet-c") == "jpeg_compression is missing"
    (tmp_path / "imagenet-v2/imagenetv2-matched-frequency-format-val").mkdir(parents=True)
    assert state("imagenet-v2") == "imagenetv2-threshold0.7-format-val and 1 more are missing"


def test_the_sets_that_are_here_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no known dataset below"):
        present(tmp_path)
    for folder in ("imagenet-1k/val", "imagenet-a", "flowers17"):
        (tmp_path / folder).mkdir(parents=True)
    assert present(tmp_path) == ["imagenet-1k", "flowers17", "imagenet-a"], "not imagenet-val and -occlusion too"


# One set


def test_preparing_says_how_to_get_what_cannot_be_built(tmp_path: Path) -> None:
    prepared = prepare_set("imagenet-1k", tmp_path)
    assert not prepared.ready
    assert str(tmp_path / "imagenet-1k") in prepared.text
    assert "ILSVRC2012_img_train.tar" in prepared.text
    flowers(tmp_path)
    assert prepare_set("flowers17", tmp_path).ready
    shifted = prepare_set("imagenet-c", tmp_path)
    assert not shifted.ready
    assert f"zenodo.org/records/2235448 in {tmp_path}/imagenet-c." in shifted.text


def test_a_set_that_is_not_there_is_told_once_and_how_to_get_it(tmp_path: Path) -> None:
    for name in ("cub-200-2011", "imagenet-c", "inaturalist-2018"):
        problems = verify(name, tmp_path).problems
        assert len(set(problems)) == len(problems) <= 2
        assert f"How to get it: lutbench data list {name}" in " ".join(problems)


def test_an_unknown_set_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'imagenet-1k'"):
        find("imagenet1k")
    with pytest.raises(UserError, match="Did you mean 'imagenet-sketch'"):
        find("imagenet-sketches")
