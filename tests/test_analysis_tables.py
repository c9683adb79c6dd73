"""Tables of the insides of encoders say what records say: hand-made outcomes, and what a hand computes from them."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_made import keep
from numpy.typing import NDArray
from reported import build_tables, check_tables, section, sections, show_tables, write_tables

from analysis.block_outcomes import ATTENTION, BlockOutcomes
from analysis.report import COLUMNS, every_measurement
from analysis.uniform import uniform_distance
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Measurement, decimals, names_fingerprint
from lutbench.evaluate.ranks import PowerLawRange, effective_rank, statistics
from lutbench.evaluate.statistics import BASIC, Interval, over_seeds
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record, read_records
from lutbench.report.comparisons import comparison_sections, interval_points, points
from lutbench.report.reference import Agreement, agreement_frame, compare_with_reference
from lutbench.report.render import terminal
from lutbench.report.sections import Section, View, not_run
from lutbench.report.values import INTERVALS, number_text
from lutbench.run import open_run
from lutbench.workspace import Workspace

SUITE = """
title = "Toys"
about = "for tests"
kind = "exploration"
seeds = [0, 1]
compare = [["ours", "theirs"], ["ours", "untrained"]]
[data.toys]
path = "toys"
label = "Toys"
[encoder.base]
label = "ViT-B/16"
[method.ours]
checkpoint = "ours.pth"
encoder = "base"
label = "LUT"
[method.theirs]
checkpoint = "theirs.pth"
encoder = "base"
label = "MAE"
[analysis.looks]
data = "toys"
"""
MORE = """
[analysis.again]
title = "Once more"
data = "toys"
methods = ["ours"]
measures = ["attention"]
"""
BLOCKS, HEADS, WIDTH, IMAGES, GRID, PATCH, DRAWN = 6, 2, 16, 50, 14, 16, 300
FITTED = PowerLawRange(2, 8)
ALL = ("attention", "spectrum", "fourier", "depth", "similarity")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def suite(folder: Path, *changes: str) -> LoadedSuite:
    return load_suite(str(folder / "toy.toml"), changes)


def around(mean: float, *shape: int, seed: int = 0, spread: float = 0.1) -> NDArray[np.float32]:
    """Values of which every column over the images has this mean."""
    drawn = np.random.default_rng(seed).normal(0, spread * mean, (IMAGES, *shape))
    return (mean + drawn - drawn.mean(0)).astype(np.float32)


def analysed(
    distance: float = 90.0,
    nmi: float = 0.17,
    slope: float = 0.5,
    right: int = 30,
    grid: int = GRID,
    patch_size: int = PATCH,
    measures: tuple[str, ...] = ALL,
    blocks: int = BLOCKS,
    width: int = WIDTH,
    seed: int = 0,
) -> BlockOutcomes:
    """Attention of block b, from 1, reaches b / 6 times as far again; 2 fewer images are right in every block before the last but one."""
    measured: dict[str, Any] = {}
    if "attention" in measures:
        measured["distance"] = around(distance, blocks, seed=seed) + np.arange(blocks, dtype=np.float32)
        measured["entropy"], measured["nmi"] = around(5, blocks, seed=1 + seed), around(nmi, blocks, seed=2 + seed)
        measured["to_class"], measured["to_itself"] = around(0.1, blocks, seed=3), around(0.05, blocks, seed=4)
    if "similarity" in measures:
        measured["similarity"] = around(0.4, blocks + 1, seed=5)
    if "spectrum" in measures:
        measured["token_rank"] = around(9, blocks + 1, seed=6)
        for rows, extra in (("pooled", 0.0), ("tokens", 0.3)):
            ranks = np.arange(1, width + 1, dtype=np.float64)
            measured[f"spectrum_{rows}"] = np.tile(ranks ** -(slope + extra), (blocks + 1, 1))
        shifted = np.random.default_rng(seed).normal(-0.2, 0.1, (2, 4, DRAWN))
        of_output = [
            [of(measured[f"spectrum_{rows}"][-1]) for of in statistics(FITTED).values()]
            for rows in ("pooled", "tokens")
        ]
        measured["resampled"] = np.array(of_output)[..., None] + shifted
    if "fourier" in measures:
        measured["amplitude"] = around(2, blocks, 3, seed=7)
    if "depth" in measures:
        depths = [right - 2 * abs(blocks - 1 - block) for block in range(blocks + 1)]
        hits = np.arange(IMAGES)[:, None] < np.array(depths)
        measured["right_pooled"], measured["right_class"] = hits, hits[::-1]
    names = names_fingerprint(f"{number}.png" for number in range(IMAGES))
    return BlockOutcomes(names, IMAGES, grid, patch_size, FITTED, measured)


def heads(outcomes: BlockOutcomes) -> NDArray[np.float64]:
    """One head a tenth less than the mean over heads, and one a tenth more."""
    means = np.stack([outcomes.measured[name].mean(0) for name in ATTENTION]).astype(np.float64)
    return np.stack([0.9 * means, 1.1 * means], 2)


def recorded(folder: Path, loaded: LoadedSuite, name: str, outcomes: BlockOutcomes) -> Record:
    """Keep a record as the run of that name would leave it."""
    arrays = {"heads": heads(outcomes)} if outcomes.has("distance") else {}
    return keep(folder, loaded.run(f"analysis/{name}"), outcomes, arrays=arrays)


def full_suite(folder: Path) -> LoadedSuite:
    """Two methods with two seeds, of which one lacks the second, and the untrained encoder."""
    (folder / "toy.toml").write_text(SUITE)
    loaded = suite(folder)
    recorded(folder, loaded, "looks/ours/seed0", analysed(100, 0.1, 0.4, 40))
    recorded(folder, loaded, "looks/ours/seed1", analysed(102, 0.12, 0.42, 38, seed=10))
    recorded(folder, loaded, "looks/theirs/seed0", analysed(80, 0.2, 0.7, 36, seed=20))
    recorded(folder, loaded, "looks/untrained/seed0", analysed(117, 0.002, 0.9, 10, seed=30))
    recorded(folder, loaded, "looks/untrained/seed1", analysed(117, 0.002, 0.9, 10, seed=40))
    return loaded


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests only read it."""
    folder = tmp_path_factory.mktemp("full")
    full_suite(folder)
    return folder


@pytest.fixture(scope="module")
def files(full: Path) -> dict[str, str]:
    return build_tables(suite(full), full)


@pytest.fixture(scope="module")
def table(full: Path) -> pd.DataFrame:
    return every_measurement(View.read(suite(full), full))


def rows(folder: Path, loaded: LoadedSuite) -> dict[str, dict[str, str]]:
    """The cells of the first table by method, under headings of one line."""
    frame = section(loaded, folder, "analysis").frame
    frame.columns = pd.Index([", ".join(filter(None, name)) for name in frame])
    return {row["method"]: row for row in frame.to_dict("records")}


# --- The table


def test_a_row_per_method_then_the_floor(full: Path) -> None:
    found = rows(full, suite(full))
    assert list(found) == ["LUT", "MAE", "Untrained", "Uniform attention"]
    assert list(found["LUT"]) == [
        "method", "encoder", "distance, px, first", "distance, px, last", "distance, px, all", "of uniform", "NMI",
        "effective rank, pooled", "effective rank, tokens", "alpha", "k-NN, depth", "k-NN, top-1", "seeds", "runs",
    ]  # fmt: skip
    assert section(suite(full), full, "analysis").title == "Analysis"


def test_one_seed_has_its_interval_over_images_to_two_digits(full: Path) -> None:
    mae, (record,) = (
        rows(full, suite(full))["MAE"],
        [r for r in read_records(full, "toy").values() if r.method == "theirs"],
    )
    m = record.measured("attention distance")
    assert m is not None
    assert m.low is not None
    assert m.high is not None
    assert (mae["distance, px, all"], mae["seeds"], mae["runs"]) == (
        f"82.50 [{m.low:.2f}, {m.high:.2f}]",
        "1 of 2",
        "[2]",
    )
    assert mae["distance, px, first"].startswith("80.5 [")
    assert mae["distance, px, last"].startswith("84.5 [")
    assert mae["of uniform"].startswith(f"{82.5 / uniform_distance(14, 16):.4f} [")
    assert mae["NMI"].startswith("0.2000 [")
    assert mae["effective rank, pooled"].startswith(f"{float(effective_rank(np.arange(1, 17) ** -0.7)):.2f} [")
    assert (mae["alpha"][:6], mae["k-NN, depth"], mae["k-NN, top-1"]) == ("1.40 [", "6", "72.0 [58.3, 82.5]")


def test_several_seeds_have_students_interval_of_their_mean(full: Path) -> None:
    assert over_seeds([102.5, 104.5]) == pytest.approx((103.5 - 12.706, 103.5 + 12.706), abs=1e-3)
    assert rows(full, suite(full))["LUT"]["distance, px, all"] in ("103 [91, 116]", "104 [91, 116]")
    assert rows(full, suite(full))["LUT"]["distance, px, first"] == "102 [89, 114]"
    assert rows(full, suite(full))["LUT"]["k-NN, top-1"].startswith("78.0 [")


def test_seeds_that_change_nothing_leave_the_interval_over_images(folder: Path) -> None:
    loaded = suite(folder)
    for seed in (0, 1):  # a checkpoint is the same under every seed
        for method, distance in (("ours", 90.0), ("theirs", 80.0)):
            recorded(folder, loaded, f"looks/{method}/seed{seed}", analysed(distance, measures=("attention",)))
    found = rows(folder, loaded)["LUT"]
    low, high = map(float, re.findall(r"[\d.]+", found["distance, px, all"])[1:])
    assert low < 92.5 < high
    assert "Student's t" not in section(loaded, folder, "analysis").legend
    (compared,) = comparison_sections(View.read(loaded, folder))
    assert "over seeds" not in compared.frame


def test_frequencies_and_similarity_alone_have_a_table_too(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0]")
    recorded(folder, loaded, "looks/ours/seed0", analysed(measures=("fourier", "similarity")))
    found = rows(folder, loaded)["LUT"]
    assert found["highest frequency"]
    assert found["token similarity"].startswith("0.400")
    legend = section(loaded, folder, "analysis").legend
    assert "Token similarity: " in legend
    assert "Highest frequency: " in legend


@pytest.mark.parametrize(("enough", "few"), [(3, False), (4, True)])
def test_too_few_images_for_the_intervals_of_ranks_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, enough: int, few: bool
) -> None:
    monkeypatch.setattr("analysis.report.ENOUGH", enough)
    loaded = suite(folder, "seeds=[0]")
    recorded(folder, loaded, "looks/ours/seed0", analysed(measures=("spectrum",)))
    legend = section(loaded, folder, "analysis").legend
    assert (f"50 images for features 16 wide: with fewer than {enough} images per dimension" in legend) is few


def test_uniform_attention_is_always_there_with_the_distance_of_the_grid_and_nothing_but_attention(
    folder: Path,
) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "looks/ours/seed0", analysed())
    uniform = rows(folder, loaded)["Uniform attention"]
    distance = f"{uniform_distance(14, 16):.1f}"
    assert {name: value for name, value in uniform.items() if value} == {
        "method": "Uniform attention", "distance, px, first": distance, "distance, px, last": distance,
        "distance, px, all": distance, "of uniform": "1", "NMI": "0",
    }  # fmt: skip


def test_every_grid_of_patches_has_its_own_uniform_attention(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "looks/ours/seed0", analysed())
    recorded(folder, loaded, "looks/theirs/seed0", analysed(grid=7, patch_size=32))
    frame = section(loaded, folder, "analysis").frame
    uniform = frame[frame[("method", "")] == "Uniform attention"]
    assert list(uniform[("encoder", "")]) == ["14 x 14 patches of 16 px", "7 x 7 patches of 32 px"]
    assert list(uniform[("distance, px", "all")]) == [f"{uniform_distance(*grid):.1f}" for grid in ((14, 16), (7, 32))]


def test_what_was_not_measured_has_no_column_and_of_one_method_an_empty_cell(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "looks/ours/seed0", analysed(measures=("spectrum",)))
    assert list(rows(folder, loaded)) == ["LUT"], "no distance, so no uniform attention"
    assert "NMI" not in rows(folder, loaded)["LUT"]
    legend = section(loaded, folder, "analysis").legend
    assert "Effective rank: " in legend
    assert "Distance: " not in legend
    assert "floor" not in legend
    recorded(folder, loaded, "looks/theirs/seed0", analysed(measures=("attention",)))
    found = rows(folder, loaded)
    assert (found["LUT"]["NMI"], found["MAE"]["alpha"]) == ("", "")
    assert found["LUT"]["alpha"]
    assert found["MAE"]["NMI"]


@pytest.mark.parametrize(("measure", "column"), [("fourier", "highest frequency"), ("similarity", "token similarity")])
def test_a_measure_that_tables_print_only_where_it_is_alone_has_its_row_and_figures(
    folder: Path, measure: str, column: str
) -> None:
    loaded = suite(folder, "seeds=[0]")
    for method in ("ours", "theirs"):
        recorded(folder, loaded, f"looks/{method}/seed0", analysed(measures=(measure,)))
    found = rows(folder, loaded)
    assert list(found) == ["LUT", "MAE"]
    assert all(row[column] not in ("", "stale") for row in found.values())
    made = section(loaded, folder, "analysis")
    assert column.capitalize() in made.legend
    assert [drawing.name for drawing in made.figures] == ["looks-features.png"]
    assert build_tables(loaded, folder)["analysis.csv"].count("\n") > 5


def test_the_best_depth_may_be_the_output_and_is_told_of_every_seed(folder: Path) -> None:
    loaded = suite(folder)
    best_at_last = analysed()
    hits = best_at_last.measured["right_pooled"].copy()
    hits[:, -1] = True
    recorded(
        folder,
        loaded,
        "looks/ours/seed0",
        replace(best_at_last, measured={**best_at_last.measured, "right_pooled": hits}),
    )
    assert rows(folder, loaded)["LUT"]["k-NN, depth"] == "output"
    recorded(folder, loaded, "looks/ours/seed1", analysed())
    assert rows(folder, loaded)["LUT"]["k-NN, depth"] == "output, 6"


def test_a_stale_record_says_so_and_prints_no_value(folder: Path) -> None:
    recorded(folder, suite(folder), "looks/ours/seed0", analysed())
    changed = suite(folder, "analysis.looks.alpha_from=11")
    (lut,) = rows(folder, changed).values()
    assert (lut["distance, px, all"], lut["runs"]) == ("stale", "[1]")
    recorded(folder, changed, "looks/theirs/seed0", analysed())
    lut, mae, _ = rows(folder, changed).values()
    assert {lut["distance, px, all"], lut["NMI"], lut["alpha"], lut["k-NN, top-1"]} == {"stale"}
    assert "stale" not in mae.values()
    main = build_tables(changed, folder)["main.md"]
    assert "- [1] `analysis/looks/ours/seed0` stale: alpha_from changed from 10 to 11\n" in main
    assert "- [2] [`analysis/looks/theirs/seed0`](" in main


def named_as_not_run(loaded: LoadedSuite, folder: Path) -> str:
    view = View.read(loaded, folder)
    return not_run(view, view.of_kind("analysis"))


def test_what_was_not_run_is_named_below(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = suite(folder)
    assert named_as_not_run(loaded, folder) == "Not run: looks."
    show_tables(loaded, folder)
    assert "Not run: looks." in capsys.readouterr().out
    recorded(folder, loaded, "looks/ours/seed0", analysed())
    assert "Not run: looks with MAE, Untrained." in build_tables(loaded, folder)["main.md"]


def test_rows_of_which_names_have_commas_are_separated_by_semicolons(folder: Path) -> None:
    loaded = suite(folder, "method.theirs.label=Ours, retrained", "method.ours.label=Ours")
    assert named_as_not_run(loaded, folder) == "Not run: looks."
    recorded(folder, loaded, "looks/ours/seed0", analysed())
    assert named_as_not_run(loaded, folder) == "Not run: looks with Ours, retrained; Untrained."


def test_nothing_is_said_to_be_not_run_where_all_was(files: dict[str, str]) -> None:
    assert "Not run" not in files["main.md"]


def test_several_analyses_have_a_table_each_with_its_title(folder: Path) -> None:
    (folder / "toy.toml").write_text(SUITE + MORE)
    loaded = suite(folder)
    for task in ("looks", "again"):
        recorded(folder, loaded, f"{task}/ours/seed0", analysed(measures=("attention",)))
    titles = [one.title for one in sections(loaded, folder) if one.name == "analysis" and one.title]
    assert titles == ["Analysis: looks", "Analysis: Once more"]
    assert build_tables(loaded, folder)["analysis.tex"].count(r"\begin{tabular}") == 2
    listed = pd.read_csv(io.StringIO(build_tables(loaded, folder)["analysis.csv"]))
    assert list(dict.fromkeys(listed["table"])) == ["looks", "again"]


def test_the_legend_says_how_intervals_are_made_and_what_the_floor_is_for(full: Path) -> None:
    legend = section(suite(full), full, "analysis").whole_legend
    assert INTERVALS[BASIC] == "resamples of the images, corrected for bias"
    assert (
        f"{INTERVALS[BASIC]} (effective rank, alpha) for one seed or seeds with the same result, Student's t over seeds for several seeds."
        in legend
    )
    assert "attention distance is that of uniform attention and whose NMI is near 0 selects nothing." in legend
    assert "The value may be below its interval" in legend
    assert "chosen on the same images" in legend


def test_the_table_fits_into_100_columns_for_one_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = suite(folder, "seeds=[0]")
    for method in ("ours", "theirs", "untrained"):
        recorded(folder, loaded, f"looks/{method}/seed0", analysed())
    show_tables(loaded, folder)
    shown = capsys.readouterr().out.splitlines()
    start = shown.index("Analysis")
    above, head, encoder, *lines = shown[start + 2 : start + 9]
    assert max(map(len, (above, head, *lines))) <= 100
    assert re.split("  +", above.strip()) == ["distance, px", "effective rank", "k-NN"]
    assert above.index("effective rank") == head.index("pooled")
    assert above.index("k-NN") == head.index("depth")
    assert above.index("distance, px") == head.index("first")
    assert encoder == "ViT-B/16"
    assert [re.split("  +", line.strip())[0] for line in lines] == ["LUT", "MAE", "Untrained", "Uniform attention"]
    assert [line[head.index("NMI") :].split()[0] for line in lines] == ["0.1700"] * 3 + ["0"]


def test_the_upper_line_of_a_heading_may_be_wider_than_the_columns_below_it() -> None:
    columns = pd.MultiIndex.from_tuples(
        [("method", ""), ("a long heading", "a"), ("a long heading", "b"), ("other", "c")]
    )
    lines = terminal([Section(frame=pd.DataFrame([["LUT", "1", "2", "3"]], columns=columns))], 80).splitlines()
    assert lines == ["          a long heading  other", "  method  a  b            c", "  LUT     1  2            3"]


def test_papers_have_the_headings_over_their_columns_and_no_footnotes(files: dict[str, str]) -> None:
    tex = files["analysis.tex"]
    assert r"& \multicolumn{3}{c}{distance, px} & of uniform & NMI &" in tex
    assert "runs" not in tex
    assert "MAE & ViT-B/16 & 80.5 [" in tex


def test_tables_that_were_written_pass_their_check(full: Path, tmp_path: Path) -> None:
    write_tables(suite(full), full)
    assert check_tables(suite(full), full) == []
    assert {"analysis.csv", "analysis.tex"} <= {path.name for path in (full / "tables/toy").iterdir()}


# --- analysis.csv


def values(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows in which the columns have these values, None standing for none."""
    for name, value in wanted.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    return table


def test_every_measurement_is_there_unrounded(full: Path, table: pd.DataFrame) -> None:
    assert list(table) == COLUMNS
    for r in read_records(full, "toy").values():
        mine = values(table[table["run"].notna()], run=f"{r.run}@{r.identity[:12]}").head(len(r.measurements))
        assert mine["block"].isna().all()
        assert mine["head"].isna().all()
        told = mine.rename(columns={"quantity": "metric"}).astype(object)
        assert [
            Measurement(**{name: row[name] for name in Measurement.model_fields if not pd.isna(row[name])})
            for row in told.to_dict("records")
        ] == r.measurements


def test_every_block_has_its_mean_with_its_interval(table: pd.DataFrame) -> None:
    blocks = values(table, method="theirs", quantity="attention distance", head=None)[1:]
    assert list(blocks["block"]) == [1, 2, 3, 4, 5, 6]
    assert list(blocks["value"]) == [80, 81, 82, 83, 84, 85]
    assert (blocks["low"] < blocks["value"]).all()
    assert (blocks["value"] < blocks["high"]).all()
    assert set(blocks["interval"]) == {"bootstrap over images"}
    assert set(blocks["n"]) == {50}
    third = analysed(80, 0.2, 0.7, 36, seed=20, measures=("attention",))
    measured = {name: of[:, 2:3] for name, of in third.measured.items()}
    alone = replace(third, measured=measured).measurement("attention distance")
    assert alone is not None
    assert blocks.iloc[2][["low", "high"]].tolist() == pytest.approx([alone.low, alone.high], rel=1e-6)


def test_the_output_is_a_block_more_and_says_so(table: pd.DataFrame) -> None:
    found = values(table, method="theirs", quantity="token similarity")[1:]
    assert list(found["block"]) == [1, 2, 3, 4, 5, 6, 7]
    assert list(found["note"]) == [""] * 6 + ["after the last block: the output"]
    ranks = values(table, method="theirs", quantity="effective rank, tokens")
    assert list(ranks["block"][1:]) == [1, 2, 3, 4, 5, 6, 7]
    assert ranks["value"].iloc[0] == pytest.approx(ranks["value"].iloc[-1], rel=1e-6)


def test_neighbours_are_counted_in_every_block(table: pd.DataFrame) -> None:
    found = values(table, method="theirs", quantity="k-NN top-1, pooled")
    assert list(found["value"]) == [52, 56, 60, 64, 68, 72, 68], "of 50 images 36 in block 6, and 2 fewer a block"
    assert set(found["unit"]) == {"%"}
    assert set(found["interval"]) == {"Wilson"}
    assert len(values(table, method="theirs", quantity="k-NN top-1, class token")) == 7


def test_heads_have_values_without_intervals(table: pd.DataFrame) -> None:
    found = values(table, method="theirs", quantity="attention distance")
    found = found[found["head"].notna()]
    assert [*zip(found["block"], found["head"], strict=True)][:3] == [(1, 1), (1, 2), (2, 1)]
    assert list(found["value"][:3]) == pytest.approx([72, 88, 0.9 * 81], rel=1e-6)
    assert len(found) == 12
    assert found["low"].isna().all()


def test_singular_values_of_the_output_have_their_ranks_and_amplitudes_their_frequencies(table: pd.DataFrame) -> None:
    found = values(table, method="theirs", quantity="singular value, pooled")
    assert list(found["rank"]) == list(range(1, 17))
    assert set(found["block"]) == {7}
    assert found["value"].tolist() == pytest.approx((np.arange(1, 17) ** -0.7).tolist(), rel=1e-6)
    amplitudes = values(table, method="theirs", quantity="relative log amplitude")
    assert [*zip(amplitudes["block"], amplitudes["frequency"], strict=True)][:4] == [(1, 1), (1, 2), (1, 3), (2, 1)]


def test_uniform_attention_is_in_it(table: pd.DataFrame) -> None:
    found = values(table, method="uniform attention").set_index("quantity")["value"]
    assert found.to_dict() == {
        "attention distance": pytest.approx(uniform_distance(14, 16), rel=1e-6),
        "attention distance, share of uniform": 1, "attention entropy": pytest.approx(np.log(196), rel=1e-6), "NMI": 0,
    }  # fmt: skip


def test_whole_numbers_are_written_as_such_and_of_nothing_the_columns_are_left(
    files: dict[str, str], folder: Path
) -> None:
    assert "looks,theirs,ViT-B/16,0,NMI,3,,,,0.2,," in files["analysis.csv"]
    assert "looks,theirs,ViT-B/16,0,NMI,3,2,,,0.22,," in files["analysis.csv"]
    recorded(folder, suite(folder), "looks/ours/seed0", analysed())
    stale = build_tables(suite(folder, "analysis.looks.alpha_from=11"), folder)["analysis.csv"]
    assert stale == ",".join(COLUMNS) + "\n"


def test_a_large_encoder_takes_a_few_thousand_rows(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "looks/ours/seed0", analysed(blocks=24, width=1024))
    assert 3000 > len(every_measurement(View.read(loaded, folder))) > 2 * 1024


# --- Differences


def test_differences_of_what_is_no_percentage_are_in_its_unit(full: Path) -> None:
    neighbours, other = comparison_sections(View.read(suite(full), full))
    rows = other.frame.set_index("metric").to_dict("index")
    assert set(other.frame["pair"]) == {"LUT - Untrained"}, "MAE lacks a seed"
    assert rows["attention distance, px"]["difference"].startswith("-16.0 [-17.")
    assert rows["NMI"]["difference"].startswith("+0.108")
    assert rows["NMI"]["over seeds"] == "[-0.02, +0.24]"
    assert "Difference in points (if the metric is not a percentage: in the unit beside it)" in other.legend
    assert "Metrics that are not a mean over images, effective rank and alpha, are biased" in other.legend
    assert neighbours.frame["metric"].tolist() == ["k-NN top-1, best depth ↑"]
    assert neighbours.frame["difference"].item().startswith("+58.0 [")
    assert neighbours.legend.startswith("Difference in points: ")
    assert "unit" not in neighbours.legend
    data = neighbours.data
    assert data is not None
    differences = data.set_index("metric")["difference"].to_dict()
    assert differences["attention distance"] == pytest.approx(-16, abs=1e-5)
    assert differences["NMI"] == pytest.approx(0.108, abs=1e-7)
    assert differences["k-NN top-1, best depth"] == 58


def test_a_metric_that_only_one_of_a_pair_has_is_passed_over(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0]")
    recorded(folder, loaded, "looks/ours/seed0", analysed())
    recorded(folder, loaded, "looks/theirs/seed0", analysed(measures=("spectrum", "similarity")))
    (found,) = comparison_sections(View.read(loaded, folder))
    assert found.frame["metric"].tolist() == ["effective rank, pooled", "alpha, pooled", "effective rank, tokens"]


def test_rows_that_an_analysis_adds_may_be_compared_and_others_are_refused(folder: Path) -> None:
    assert suite(folder).config.compare[1] == ["ours", "untrained"]
    with pytest.raises(UserError, match=r"found \['ours', 'untrained-base'\]. Methods: ours, theirs, untrained\."):
        suite(folder, 'compare=[["ours", "untrained-base"]]')
    alone = SUITE[: SUITE.index("[analysis.looks]")]
    (folder / "toy.toml").write_text(alone + '[downstream.near]\nkind = "knn"\ndata = "toys"\n')
    with pytest.raises(UserError, match=r"found \['ours', 'untrained'\]. Methods: ours, theirs\."):
        suite(folder)


@pytest.mark.parametrize(
    ("difference", "low", "high", "unit", "text"),
    [
        (0.012, 0.002, 0.022, "%", "+1.2 [+0.2, +2.2]"),
        (5.1234, 4.93, 5.31, "px", "+5.12 [+4.93, +5.31]"),
        (-0.00312, -0.00412, -0.00212, "", "-0.0031 [-0.0041, -0.0021]"),
        (312.4, 290.0, 340.2, "", "+312 [+290, +340]"),
        (0.0, 0.0, 0.0, "px", "+0 [+0, +0]"),
    ],
)
def test_a_difference_has_the_digits_that_its_interval_tells_apart(
    difference: float, low: float, high: float, unit: str, text: str
) -> None:
    assert points(difference, Interval(low, high), unit) == text
    assert interval_points(Interval(low, high), unit) == text.split(" ", 1)[1]


@pytest.mark.parametrize(
    ("unit", "value", "half", "expected"),
    [
        ("%", 78.123, 0.01, 1), ("px", 24.1, 0.19, 2), ("px", 24.1, 12.0, 0), ("px", 24.1, 1e-9, 2), ("", 0.1713, 0.0016, 4),
        ("", 1900, 0, 0), ("", 0.5, 0, 4), ("", 0.0, 0, 0), ("", 1234.5, 0, 0), ("", 1e-9, 1e-3, 4),
    ],
)  # fmt: skip
def test_plain_numbers_have_at_most_four_significant_digits(
    unit: str, value: float, half: float, expected: int
) -> None:
    assert decimals(unit, value, half) == expected


def test_a_number_without_its_interval_is_printed_short() -> None:
    texts = [number_text(value, "") for value in (1900, 0.123456789, 24.0987654, 3.0)]
    assert texts == ["1900", "0.1235", "24.10", "3"]


# --- Beside the reference, and in a line


def against_reference(folder: Path, own: BlockOutcomes, reference: BlockOutcomes) -> Agreement:
    loaded = suite(folder)
    for results, outcomes in ((folder, own), (folder / "reference", reference)):
        recorded(results, loaded, "looks/ours/seed0", outcomes)
    (found,) = compare_with_reference(*(read_records(results, "toy") for results in (folder, folder / "reference")))
    return found


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "same bits"), (1.019, "within machine variation"), (1.021, "different")]
)
def test_what_is_no_percentage_may_differ_by_two_hundredths_of_the_reference(
    folder: Path, factor: float, verdict: str
) -> None:
    reference = analysed(measures=("attention",))
    own = replace(reference, measured={**reference.measured, "nmi": np.float32(factor) * reference.measured["nmi"]})
    found = against_reference(folder, own, reference)
    assert found.verdict == verdict
    if factor > 1:
        assert found.measured.metric == "NMI", "which differs by far less than a point, and distances not at all"
        (row,) = agreement_frame([found]).to_dict("records")
        assert (row["reference"], row["yours"]) == ("0.1700", f"{0.17 * factor:.4f}")
        assert float(row["difference"].split()[0]) == pytest.approx(0.17 * (factor - 1), rel=1e-3)


def test_the_metric_decides_that_differs_most_of_what_it_may(folder: Path) -> None:
    reference = analysed(measures=("attention",))
    changed = {
        "nmi": np.float32(1.018) * reference.measured["nmi"],
        "distance": np.float32(1.01) * reference.measured["distance"],
    }
    found = against_reference(folder, replace(reference, measured={**reference.measured, **changed}), reference)
    assert (found.verdict, found.measured.metric) == ("within machine variation", "NMI")


def test_a_larger_difference_that_could_be_these_images_agrees(folder: Path) -> None:
    reference, own = (analysed(nmi, measures=("attention",)) for nmi in (90.0, 90.0))
    noisy = around(0.17, BLOCKS, seed=9, spread=2) + np.float32(0.01)
    own = replace(own, measured={**own.measured, "nmi": noisy})
    assert against_reference(folder, own, reference).verdict == "within machine variation"


def test_the_result_of_a_run_is_told_in_one_line(folder: Path) -> None:
    loaded = suite(folder)
    record = recorded(folder, loaded, "looks/ours/seed0", analysed())
    run = open_run(loaded, loaded.run(record.run), Workspace(data=folder, runs=folder, results=folder))
    run.__dict__["identity"] = record.identity  # which needs the images otherwise
    assert re.fullmatch(
        r"attention distance, share of uniform 0\.79\d* \[0\.78\d*, 0\.80\d*\], NMI 0\.1700 \[0\.16\d\d, 0\.17\d\d\]",
        run.result(),
    )
    spectra = recorded(folder, loaded, "looks/ours/seed0", analysed(measures=("spectrum",)))
    assert spectra.measurements[0].metric == "effective rank, pooled"
    assert run.result().startswith("effective rank, pooled 14.6")
