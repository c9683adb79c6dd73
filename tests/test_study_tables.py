"""What the tables, files and figures of a suite say of its sweeps: hand-made outcomes, and what a hand makes of them."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_made import answers, keep
from matplotlib.axes import Axes
from reported import build_tables, check_tables, sections, show_tables, write_tables

from lutbench.evaluate.outcomes import Outcomes
from lutbench.evaluate.statistics import paired
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite, Study, StudyPoint
from lutbench.record import Record
from lutbench.report.sections import Section, View
from lutbench.report.studies import study_sections
from lutbench.report.study_curves import axis_of

SUITE = """
title = "Toys"
about = "for tests"
kind = "exploration"
seeds = [0]
[data.toys]
path = "toys"
[encoder.s]
label = "ViT-S/16"
model = "vit_small_patch16_224"
[encoder.b]
label = "ViT-B/16"
[defaults.pretrain]
data = "toys"
encoder = "s"
[pretrain.lut]
[pretrain.mae-crop]
context_weight = 0.0
[method.lut]
label = "LUT"
pretrain = "lut"
[method.mae-crop]
label = "MAE, LUT's crop"
pretrain = "mae-crop"
[downstream.near]
kind = "knn"
title = "k-NN"
data = "toys"
methods = ["lut", "mae-crop"]
[downstream.linear]
kind = "linear"
title = "Linear probe"
data = "toys"
methods = ["lut"]
"""

WEIGHT = """
[sweep.weight]
of = "pretrain.lut"
context_weight = [0, 0.05, 0.25, 1]
tasks = ["near", "linear"]
"""

IMAGES = 200


def outcomes(right: float, seed: int) -> Outcomes:
    """So large a share of the images is right: the easier ones, but for a few that a seed draws."""
    generator = np.random.default_rng(seed)
    hard = np.linspace(0, 1, IMAGES) + generator.normal(0, 0.03, IMAGES)
    return answers(hard < right)


def written(folder: Path, text: str, *changes: str) -> LoadedSuite:
    (folder / "toy.toml").write_text(text)
    return load_suite(str(folder / "toy.toml"), changes)


def recorded(folder: Path, loaded: LoadedSuite, share: Callable[[str, str, int], float | None]) -> None:
    """Keep records of all runs as they would leave them; ``share`` says how many images are right by task, method and seed."""
    made: dict[str, Record] = {}
    for planned in loaded.runs:
        found, inputs = None, {}
        if planned.stage == "downstream":
            right = share(planned.task, planned.method, planned.seed)
            if right is None:
                continue
            found = outcomes(right, planned.seed)
            inputs = {"encoder": planned.needs and {"run": made[planned.needs].identity}}
        made[planned.name] = keep(folder, planned, found, **inputs)


SHARES = {"mae-crop": 0.60, "weight-0.05": 0.65, "lut": 0.70, "weight-1": 0.62}


def by_method(task: str, method: str, seed: int) -> float:
    return SHARES[method] - (0.1 if task == "linear" else 0) + 0.005 * seed


def of_study(loaded: LoadedSuite, folder: Path) -> list[Section]:
    return study_sections(View.read(loaded, folder))


@pytest.fixture
def swept(tmp_path: Path) -> LoadedSuite:
    loaded = written(tmp_path, SUITE + WEIGHT)
    recorded(tmp_path, loaded, by_method)
    return loaded


def value(method: str, task: str = "near") -> str:
    return f"{100 * float(outcomes(by_method(task, method, 0), 0).right().mean()):.1f}"


def test_a_sweep_has_a_row_for_each_value_and_a_column_for_each_task(swept: LoadedSuite, tmp_path: Path) -> None:
    table, *_ = of_study(swept, tmp_path)
    assert table.title == "LUT: context weight"
    assert list(table.frame)[:3] == [("context weight", ""), ("k-NN", "top-1 ↑"), ("Linear probe", "top-1 ↑")]
    rows = [list(row) for row in table.frame.itertuples(index=False)]
    assert [row[0] for row in rows] == ["0", "0.05", "0.25", "1"]
    for row, method in zip(rows, SHARES, strict=True):
        assert row[1].split(" [")[0] == value(method)
        assert row[2].split(" [")[0] == value(method, "linear")
        assert row[1].endswith("]"), "with its interval"
    assert {place: rank for place, rank in table.marks.items() if place[1] == 1} == {(2, 1): 1, (1, 1): 2}
    assert "The base is 0.25." in table.legend


def test_every_value_is_compared_with_the_base_on_the_same_images(swept: LoadedSuite, tmp_path: Path) -> None:
    _, differences = of_study(swept, tmp_path)
    assert differences.title == "LUT: context weight, differences to 0.25"
    rows = differences.frame.to_dict("records")
    assert [(row["task"], row["context weight"]) for row in rows] == [
        (task, weight) for task in ("k-NN", "Linear probe") for weight in ("0", "0.05", "1")
    ]
    first, base = (outcomes(SHARES[method], 0).right()[None] for method in ("weight-1", "lut"))
    expected = paired(first, base)
    assert rows[2]["difference"].startswith(f"{100 * expected.difference:+.1f} [")
    assert (rows[2]["only 1st"], rows[2]["only 2nd"]) == (str(expected.first_only), str(expected.second_only))
    assert "seeds" not in differences.frame, "there is one"


def test_with_several_seeds_the_differences_say_how_many_are_for_them(tmp_path: Path) -> None:
    loaded = written(tmp_path, SUITE + WEIGHT, "seeds=[0, 1, 2]", 'compare=[["lut", "mae-crop"]]')
    against = {"weight-0.05": 0.78}  # of one seed of three it is above the base
    recorded(
        tmp_path,
        loaded,
        lambda task, m, seed: against.get(m, by_method(task, m, seed)) if seed == 2 else by_method(task, m, seed),
    )
    table, differences = of_study(loaded, tmp_path)
    assert "Student's t over seeds" in table.whole_legend
    assert "[" in table.frame[("k-NN", "top-1 ↑")][0]
    rows = {(row["task"], row["context weight"]): row for row in differences.frame.to_dict("records")}
    assert rows["k-NN", "0"]["seeds"] == "3 : 0"
    assert rows["k-NN", "0.05"]["seeds"] == "2 : 1"
    assert "Seeds: the number of seeds whose difference has the same sign" in differences.legend
    main = next(section for section in sections(loaded, tmp_path) if section.name == "comparisons")
    assert list(main.frame["seeds"]) == ["3 : 0"]
    numbers = pd.read_csv(io.StringIO(build_tables(loaded, tmp_path)["comparisons.csv"]))
    assert numbers[["seeds", "seeds for", "seeds against"]].to_numpy().tolist() == [[3, 3, 0]]


def test_the_tables_of_methods_are_those_without_the_sweep(swept: LoadedSuite, tmp_path: Path) -> None:
    plain = replace(written(tmp_path, SUITE), given=swept.given)
    recorded(
        tmp_path / "plain", plain, lambda task, m, seed: by_method(task, m, seed) if m in ("lut", "mae-crop") else None
    )
    with_sweep, without = sections(swept, tmp_path), sections(plain, tmp_path / "plain")
    names = {"main", "wide", "comparisons"}
    shown = [
        [s.frame.drop(columns="runs", errors="ignore").to_dict() for s in of if s.name in names]
        for of in (with_sweep, without)
    ]
    assert shown[0] == shown[1]
    text = build_tables(swept, tmp_path)["main.md"]
    assert "`downstream/near/weight-1/seed0`" in text, "every row has its footnote"
    numbers = pd.read_csv(io.StringIO(build_tables(swept, tmp_path)["main.csv"]))
    assert set(numbers["method"]) == set(SHARES), "programs have every row"


def test_programs_read_every_point_with_its_difference(swept: LoadedSuite, tmp_path: Path) -> None:
    numbers = pd.read_csv(io.StringIO(build_tables(swept, tmp_path)["sweep-weight.csv"]))
    assert list(numbers["context_weight"]) == [0, 0.05, 0.25, 1] * 2 or len(numbers) == 8
    near = numbers[numbers["column"] == "near"].set_index("context_weight")
    assert list(near.index[near["base"]]) == [0.25]
    assert np.isnan(near.loc[0.25, "difference"]), "the base has none to itself"
    difference = near.loc[1, "value"] - near.loc[0.25, "value"]
    assert near.loc[1, "difference"] == pytest.approx(difference)
    assert near.loc[1, "difference: low"] < difference < near.loc[1, "difference: high"]


def test_the_files_of_a_sweep_are_written_checked_and_removed_with_it(
    swept: LoadedSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(swept, tmp_path)
    folder = tmp_path / "tables/toy"
    assert {"sweep-weight.csv", "sweep-weight.tex"} <= {path.name for path in folder.iterdir()}
    assert (tmp_path / "figures/toy/sweep-weight.png").stat().st_size > 10_000
    assert check_tables(swept, tmp_path) == []
    (folder / "sweep-weight.csv").write_text("edited")
    assert "sweep-weight.csv in the folder" in check_tables(swept, tmp_path)[0]
    (folder / "sweep-of-mine.txt").write_text("nobody's business")

    show_tables(swept, tmp_path)
    printed = capsys.readouterr().out
    assert "LUT: context weight" in printed
    assert "differences to 0.25" in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80

    write_tables(written(tmp_path, SUITE), tmp_path)
    assert {path.name for path in folder.glob("sweep-*")} == {"sweep-of-mine.txt"}


def test_what_was_not_run_is_told_and_stale_is_stale(tmp_path: Path) -> None:
    loaded = written(tmp_path, SUITE + WEIGHT)
    recorded(
        tmp_path,
        loaded,
        lambda task, m, seed: None if (task, m) == ("linear", "weight-1") else by_method(task, m, seed),
    )
    table, _ = of_study(loaded, tmp_path)
    assert table.frame[("Linear probe", "top-1 ↑")][3] == ""
    assert "Not run: Linear probe with 1." in table.legend
    changed = load_suite(str(tmp_path / "toy.toml"), ["defaults.knn.neighbours=7"])
    table, *_ = of_study(changed, tmp_path)
    assert (
        list(table.frame[("k-NN", "top-1 ↑")] if ("k-NN", "top-1 ↑") in table.frame else table.frame.iloc[:, 1])
        == ["stale"] * 4
    )
    assert of_study(written(tmp_path, SUITE + WEIGHT), tmp_path / "nowhere") == []


def test_a_sweep_without_its_base_has_no_differences(tmp_path: Path) -> None:
    loaded = written(tmp_path, SUITE + WEIGHT, "sweep.weight.context_weight=[0, 1]")
    recorded(tmp_path, loaded, by_method)
    (table,) = of_study(loaded, tmp_path)
    assert "base" not in table.legend


def test_a_grid_has_lines_for_its_second_axis(tmp_path: Path) -> None:
    text = f"""{SUITE}[sweep.grid]
of = "pretrain.lut"
context_weight = [0.05, 0.25, 1]
encoder = ["s", "b"]
tasks = ["near"]
"""
    loaded = written(tmp_path, text)
    shares = {
        "lut": 0.7,
        "grid-0.05-s": 0.65,
        "grid-1-s": 0.6,
        "grid-0.05-b": 0.75,
        "grid-0.25-b": 0.8,
        "grid-1-b": 0.7,
    }
    recorded(tmp_path, loaded, lambda task, method, _: shares.get(method))
    table, differences = of_study(loaded, tmp_path)
    assert [tuple(row[:2]) for row in table.frame.itertuples(index=False)] == [
        (weight, size) for weight in ("0.05", "0.25", "1") for size in ("ViT-S/16", "ViT-B/16")
    ]
    assert differences.title.endswith("differences to 0.25, ViT-S/16")
    assert len(differences.frame) == 5
    (axes,) = panels(table)
    lines = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    assert set(lines) == {"encoder ViT-S/16", "encoder ViT-B/16"}
    heights = lines["encoder ViT-B/16"].get_ydata()
    assert list(heights) == pytest.approx([75, 80, 70], abs=2)


def panels(section: Section) -> list[Axes]:
    (drawing,) = section.figures
    return [axes for axes in drawing.draw().axes if axes.axison]


def test_the_curves_are_the_values_of_the_table_with_its_intervals(swept: LoadedSuite, tmp_path: Path) -> None:
    table, *_ = of_study(swept, tmp_path)
    near, linear = panels(table)
    assert [axes.get_title() for axes in (near, linear)] == ["k-NN", "Linear probe"]
    assert [label.get_text() for label in near.get_xticklabels()] == ["0", "0.05", "0.25", "1"]
    line = next(line for line in near.get_lines() if len(line.get_xdata()) == 3)
    assert [f"{height:.1f}" for height in line.get_ydata()] == [value(m) for m in ("weight-0.05", "lut", "weight-1")]
    assert list(line.get_xdata()) == pytest.approx(np.log10([0.05, 0.25, 1]))
    band = near.collections[0].get_paths()[0].vertices[:, 1]
    _, low, high = table.frame[("k-NN", "top-1 ↑")][2].replace("[", "").replace("]", "").replace(",", "").split()
    assert any(abs(band - float(low)) < 0.06)
    assert any(abs(band - float(high)) < 0.06)


def test_a_study_of_several_methods_has_a_series_for_each(tmp_path: Path) -> None:
    """As ``at`` makes them: rows of other methods, columns of one task, shares of the training for values."""
    loaded = written(
        tmp_path,
        SUITE + "[method.early]\npretrain = 'lut'\n[method.mae-early]\npretrain = 'mae-crop'\n"
        "[downstream.more]\nkind = 'knn'\ndata = 'toys'\n",
    )
    recorded(tmp_path, loaded, lambda task, m, _: {"lut": 0.7, "mae-crop": 0.6, "early": 0.5, "mae-early": 0.3}[m])
    points = tuple(
        StudyPoint({"at": share}, {("more", series): ("downstream", "more", method) for series, method in rows.items()})
        for share, rows in (
            (0.1, {"lut": "early", "mae-crop": "mae-early"}),
            (1.0, {"lut": "lut", "mae-crop": "mae-crop"}),
        )
    )
    added = frozenset({("downstream", "more", "early"), ("downstream", "more", "mae-early")})
    study = Study("at.more", "more on the way", ("at",), points, 1)
    table, differences = of_study(replace(loaded, studies=(study,), study_rows=added), tmp_path)
    rows = [list(row)[:2] for row in table.frame.itertuples(index=False)]
    assert rows == [["LUT", "0.1"], ["LUT", "1"], ["MAE, LUT's crop", "0.1"], ["MAE, LUT's crop", "1"]]
    assert list(table.frame)[1] == ("share of the training", "")
    assert table.marks == {(0, 2): 2, (1, 2): 1, (2, 2): 2, (3, 2): 1}, "the best of each method"
    assert [row["method"] for row in differences.frame.to_dict("records")] == ["LUT", "MAE, LUT's crop"]
    assert differences.frame["difference"][1].startswith("-28.0")
    (axes,) = panels(table)
    assert {line.get_label() for line in axes.get_lines()} >= {"LUT", "MAE, LUT's crop"}
    assert table.name == "at-more"


def test_a_sweep_of_a_task_has_a_series_for_each_method(tmp_path: Path) -> None:
    loaded = written(tmp_path, f"{SUITE}[sweep.k]\nof = 'downstream.near'\nneighbours = [5, 20]\n")
    recorded(tmp_path, loaded, lambda task, method, _: 0.5 if task == "k-5" else 0.6)
    table, differences = of_study(loaded, tmp_path)
    assert table.title == "k-NN: neighbours"
    (axes,) = panels(table)
    assert axes.get_title() == "", "the figure's has it"
    assert list(table.frame)[:3] == [("method", ""), ("neighbours", ""), ("k-NN", "top-1 ↑")]
    assert (len(table.frame), len(differences.frame)) == (4, 2)
    assert "k-5" not in next(s for s in sections(loaded, tmp_path) if s.name == "main").frame["task"].to_list()


@pytest.mark.parametrize(
    ("keys", "kind", "positions"),
    [
        ([0, 1, 2], "linear", [0, 1, 2]),
        ([0.1, 1], "log", [-1, 0]),
        ([0, 0.01, 0.1, 1], "log", [-3, -2, -1, 0]),
        ([0, 1], "linear", [0, 1]),
        ([-10, 0, 100], "linear", [-10, 0, 100]),
        ([0.9, 0.99, 0.996, 0.999, 1.0], "even", [0, 1, 2, 3, 4]),
        (["batch", "none"], "categories", [0, 1]),
        ([1, "all"], "categories", [0, 1]),
    ],
)
def test_values_lie_where_they_can_be_told_apart(keys: list[Any], kind: str, positions: list[float]) -> None:
    axis = axis_of(keys)
    assert axis.kind == kind
    assert [axis.positions[key] for key in keys] == pytest.approx(positions)


def test_categories_are_no_line(tmp_path: Path) -> None:
    text = f'{SUITE}[sweep.norm]\nof = "pretrain.lut"\nhead_norm = ["batch", "layer", "none"]\ntasks = ["near"]\n'
    loaded = written(tmp_path, text)
    recorded(tmp_path, loaded, lambda task, method, _: 0.5)
    table, *_ = of_study(loaded, tmp_path)
    (axes,) = panels(table)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["batch", "layer", "none"]
    assert all(len(set(line.get_xdata())) == 1 for line in axes.get_lines())


def test_snapshots_have_the_label_of_their_method(tmp_path: Path) -> None:
    way = '[downstream.way]\nkind = "knn"\ntitle = "k-NN"\ndata = "toys"\nmethods = ["lut"]\nat = [0.25, 1]\n'
    mine = written(tmp_path, SUITE + way, "pretrain.lut.snapshots=[0.25]")
    assert View.read(mine, tmp_path).method_label("lut-at-0.25") == "LUT, at 25 %"


def test_the_terminal_does_not_explain_brackets_and_bold(
    swept: LoadedSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "In brackets: 95 % interval" in build_tables(swept, tmp_path)["main.md"]
    show_tables(swept, tmp_path)
    told = " ".join(capsys.readouterr().out.split())
    assert "The base is 0.25." in told
    assert "brackets" not in told
    assert "bold" not in told


def test_what_an_extended_suite_has_finished_is_not_here_before_it_is_brought(tmp_path: Path) -> None:
    base = written(tmp_path, SUITE)
    recorded(tmp_path, base, by_method)
    (tmp_path / "mine.toml").write_text('extends = "toy.toml"\n')
    mine = load_suite(str(tmp_path / "mine.toml"))
    recorded(tmp_path, mine, lambda task, method, seed: 0.5 if (task, method) == ("near", "lut") else None)
    text = build_tables(mine, tmp_path)["main.md"]
    told = re.search(r"^Not run: .*", text, re.MULTILINE)
    assert told is not None
    assert told[0].endswith(f" `lutbench run {tmp_path / 'mine.toml'}` also copies finished runs of toy.")
