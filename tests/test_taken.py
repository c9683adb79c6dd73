"""Tables have what finished under another name: of a suite that is extended, and of one that is not where the data are known."""

import re
from pathlib import Path
from typing import Any

import pytest
from reported import build_tables, show_tables
from test_study_tables import SUITE, WEIGHT, by_method, outcomes, recorded

from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record_writing import make_record, write_record
from lutbench.report.sections import View

AT = '[downstream.way]\nkind = "knn"\ntitle = "k-NN"\ndata = "toys"\nmethods = ["lut"]\nat = [0.25, 1]\n'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The results of toy, with which nothing else was run."""
    (tmp_path / "toy.toml").write_text(SUITE)
    recorded(tmp_path, load_suite(str(tmp_path / "toy.toml")), by_method)
    return tmp_path


def suite(folder: Path, text: str, *changes: str) -> LoadedSuite:
    (folder / "mine.toml").write_text(text)
    return load_suite(str(folder / "mine.toml"), changes)


def test_what_an_extended_suite_has_run_stands_in_the_tables_with_a_link_to_it(base: Path) -> None:
    mine = suite(base, f'extends = "toy.toml"\ntitle = "mine"\n{WEIGHT}')
    view = View.read(mine, base)
    assert view.taken["downstream/near/lut/seed0"] == "toy/downstream/near/lut/seed0"
    text = build_tables(mine, base)["main.md"]
    assert re.search(r"\| k-NN +\| LUT +\| ViT-S/16 +\| top-1 +\| \d", text)
    assert "(../../records/toy/downstream/near/lut/seed0.json)" in text
    assert "made as `toy/downstream/near/lut/seed0`" in text
    assert "5 runs are in these tables by a record of the same settings and data under another name, of toy" in text
    assert not (base / "records" / "mine").exists(), "nothing is written"


def test_other_settings_and_other_encoders_are_not_taken(base: Path) -> None:
    mine = suite(base, 'extends = "toy.toml"\ntitle = "mine"\n', "pretrain.lut.epochs=700")
    assert sorted(View.read(mine, base).taken) == ["downstream/near/mae-crop/seed0", "pretrain/mae-crop/seed0"]
    elsewhere = suite(base, 'extends = "toy.toml"\ntitle = "mine"\n[data.toys]\npath = "other"\n')
    assert not View.read(elsewhere, base).taken


def test_of_a_suite_that_is_not_extended_nothing_is_taken_unless_the_data_are_known(base: Path) -> None:
    other = suite(base, SUITE)
    for run in load_suite(str(base / "toy.toml")).runs + other.runs:
        if run.name != "pretrain/lut/seed0" and (run.suite, run.name) != ("toy", "pretrain/mae-crop/seed0"):
            continue
        document: dict[str, Any] = {
            "stage": "pretrain", "revision": run.recipe.revision, "seed": 0, "recipe": run.recipe.affecting_results(),
            "data": {"train": "a" * 64},
        }  # fmt: skip
        if (run.suite, run.name) != ("toy", "pretrain/lut/seed0"):
            write_record(make_record(run, document, outcomes(0.5, 0).measurements(), wall_seconds=1), None, base)
    assert set(View.read(other, base).taken) == {"pretrain/mae-crop/seed0"}
    (base / "records/mine/pretrain/lut/seed0.json").unlink()
    assert not View.read(other, base).taken, "whose data these are is not known"


def test_snapshots_have_the_label_of_their_method(base: Path) -> None:
    mine = suite(base, f"{SUITE}{AT}", "pretrain.lut.snapshots=[0.25]")
    assert View.read(mine, base).method_label("lut-at-0.25") == "LUT, at 25 %"


def test_the_terminal_does_not_explain_brackets_and_bold(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = suite(base, f'extends = "toy.toml"\ntitle = "mine"\n{WEIGHT}')
    assert "In brackets the 95 % interval" in build_tables(mine, base)["main.md"]
    show_tables(mine, base)
    told = " ".join(capsys.readouterr().out.split())
    assert "The base is 0.25." in told
    assert "brackets" not in told
    assert "bold" not in told
