"""The report is one file that fetches nothing: in a browser its tables sort, its drawers open, and no text of a record becomes markup."""

import base64
import gzip
import html
import io
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import analysed
import numpy as np
import pandas as pd
import pytest
import typer
from hand_made import answers, keep
from playwright.sync_api import expect

from lutbench import cli, cli_report
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Outcomes
from lutbench.losses import LossCurve
from lutbench.recipes.loading import load_suite
from lutbench.record import Record, read_records
from lutbench.report.html.page import suite_page
from lutbench.report.sections import View
from lutbench.report.tables import all_sections
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes

ROOT = Path(__file__).parents[1]

HOSTILE = "</script></td><img src=x onerror=alert(1)> & \"quoted\" 'MAE'"
"""A label that is markup wherever it is not escaped."""

SUITE = f"""
title = "Toys {HOSTILE.replace('"', "")}"
about = "for tests: `code`, **bold** and <b>no markup</b>"
kind = "pipeline"
seeds = [0, 1]
compare = [["ours", "theirs"]]
[data.toys]
path = "toys"
label = "ImageNet-1K"
[encoder.base]
label = "ViT-B/16"
[encoder.small]
label = "ViT-toy"
model = "vit_tiny_patch16_224"
image_size = 32
patch_size = 8
width = 32
depth = 4
heads = 2
[method.ours]
checkpoint = "ours.pth"
encoder = "base"
label = "LUT"
published = "LUT"
[method.theirs]
checkpoint = "theirs.pth"
encoder = "base"
label = '''{HOSTILE}'''
published = "MAE"
[downstream.tuned]
kind = "finetune"
title = "Fine-tuning"
data = "toys"
published = "imagenet-1k/finetune/top-1"
[downstream.near]
kind = "knn"
title = "=1+1 | near"
data = "toys"
[shifted.corrupted]
label = "Corrupted"
path = "c"
kind = "corruptions"
preprocessing = ["crop"]
[robustness.shifts]
tasks = ["tuned"]
sets = ["corrupted"]
[analysis.looks]
data = "toys"
"""

RIGHT = {"ours": (80, 84), "theirs": (78, 76)}
"""Of 100 images, by seed."""


def classified(right: int) -> Outcomes:
    return answers(np.arange(100) < right)


def corrupted(right: int) -> list[ConditionOutcomes]:
    """Right on fewer images at every further severity of fog and of snow."""
    made = []
    for cell, count in ((f"{name}/{level}", right - 9 * level) for name in ("fog", "snow") for level in (1, 2, 3)):
        hits = (np.arange(100) < count)[None]
        places = np.stack([hits * 1, 1 - hits, np.full(hits.shape, 0.5)], 2).swapaxes(0, 1)
        names = (f"{number}.png" for number in range(100))
        made.append(ConditionOutcomes.of(cell, "", ("9 classes",), np.ones(100, int), places, names, False))
    return made


def recorded(folder: Path, name: str, kind: str, made: Any, before: Record | None = None) -> Record:
    loaded = load_suite(str(folder / "toy.toml"))
    planned = loaded.run(name)
    outcomes = RobustnessOutcomes.of(planned.recipe.set, made) if kind == "robustness" else made  # type: ignore[attr-defined]
    inputs = {"classifier": {"run": before.identity}} if before else {}
    curve = LossCurve(steps=[*range(10, 110, 10)], losses={"loss": [2 / step for step in range(1, 11)]})
    return keep(
        folder, planned, outcomes, curve=curve if kind == "finetune" else None, extra={"note": HOSTILE}, **inputs
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two methods on all stages but pre-training, of two seeds; the suite file lies beside them."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "toy.toml").write_text(SUITE)
    for method, counts in RIGHT.items():
        for seed, right in enumerate(counts):
            tuned = recorded(folder, f"downstream/tuned/{method}/seed{seed}", "finetune", classified(right))
            recorded(folder, f"robustness/shifts/corrupted/{method}/seed{seed}", "robustness", corrupted(right), tuned)
        recorded(folder, f"downstream/near/{method}/seed0", "knn", classified(right - 20))
    loaded = load_suite(str(folder / "toy.toml"))
    for number, method in enumerate(RIGHT):
        found = analysed.outcomes(4, 4, 8, selects=0.5 + 0.1 * number)
        analysed.recorded(folder, loaded, method, found, {}, analysed.photographs(32, 4))
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    view = View.read(load_suite(str(results / "toy.toml")), results)
    return suite_page(view, all_sections(view), results)


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# --- The file


def test_no_text_of_a_suite_or_a_record_becomes_markup(page: str) -> None:
    assert "onerror=alert(1)&gt;" in page, "the label is shown"
    tags = Tags(page).found
    assert not [attributes for _, attributes in tags if "onerror" in attributes]
    assert [tag for tag, _ in tags].count("script") == 3, "specifications, Vega, and the page's own"
    assert "<b>no markup</b>" not in page
    assert "<code>code</code>" in page
    assert "<strong>bold</strong>" in page


def test_the_page_names_no_file_and_no_server_that_a_browser_would_fetch(page: str) -> None:
    for tag, attributes in Tags(page).found:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
    (policy,) = (a["content"] for t, a in Tags(page).found if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_the_page_says_at_the_top_and_beside_every_table_that_nothing_is_evidence(page: str) -> None:
    assert "They are no evidence about the method." in page
    with_numbers = re.findall(r'<section id="section-\d+".*?</section>', page, re.DOTALL)
    assert all('class="mark">Pipeline check' in one for one in with_numbers if "<tbody>" in one or "<figure" in one)


def test_the_csv_behind_a_table_has_the_same_bytes_as_that_of_the_tables(page: str, results: Path) -> None:
    view = View.read(load_suite(str(results / "toy.toml")), results)
    expected = next(one.data for one in all_sections(view) if one.name == "main" and one.data is not None)
    kept = [gzip.decompress(base64.b64decode(text)).decode() for text in re.findall(r'data-csv="([^"]+)"', page)]
    assert expected.to_csv(index=False) in kept


@pytest.fixture(scope="module")
def real() -> str:
    """The page of the records of ``tiny`` that come with the repository."""
    results = ROOT / "results/reference"
    view = View.read(load_suite("tiny"), results)
    return suite_page(view, all_sections(view), results)


TEXTS = {"method", "encoder", "task", "metric", "pair", "run", "machine", "like", "corruption"}
"""Columns that say what a row is of."""


def test_every_number_of_every_table_is_a_link_to_what_is_behind_it(page: str, real: str) -> None:
    for one in (page, real):
        ids = {attributes["id"] for _, attributes in Tags(one).found if "id" in attributes}
        behind = [attributes["data-behind"] or "" for _, attributes in Tags(one).found if "data-behind" in attributes]
        assert len(behind) > 40
        assert {name for of in behind for name in of.split()} <= ids
    names = re.findall(r'<div class="grid" data-name="([^"]+)"', real)
    assert {"main", "wide", "robustness", "calibration", "comparisons", "compute", "analysis", "sweep-weight"} <= {
        *names
    }
    without = []
    for table in re.findall(r'<div class="grid" .*?</table>', real, re.DOTALL):
        heads = [re.sub("<.*?>", "", head) for head in re.findall(r'<th scope="col".*?</th>', table, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL):
            cells = dict(zip(heads, re.findall(r"<td(?! class=.hide).*?</td>", row, re.DOTALL), strict=True))
            if "uniform attention" in row.lower():
                continue  # which nobody measured
            numbers = {head: cell for head, cell in cells.items() if re.search(r'data-text="\[?[+-]?\d', cell)}
            without += [
                (head, cell) for head, cell in numbers.items() if head not in TEXTS and "data-behind" not in cell
            ]
    assert without == []


def test_the_page_of_a_suite_is_small(real: str) -> None:
    size = len(real.encode())
    runs = re.findall(r'<details class="run".*?\n</details>', real, re.DOTALL)
    assert len(runs) == 42
    assert sum(len(run.encode()) for run in runs) < 4500 * len(runs), "small has 591 of them"
    assert size < 2_200_000, "of these, 0.9 MB draw the charts"


def test_a_large_page_is_called_large(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (str(results / "toy.toml"), "--results", str(results), "--output", str(tmp_path / "report.html"))
    command(*line)
    told = capsys.readouterr().out
    assert re.search(r"\(\d\.\d MB\)", told)
    assert "larger than" not in told
    monkeypatch.setattr(cli_report, "LARGE", 1_000_000)
    command(*line)
    assert "larger than 1 MB" in capsys.readouterr().out


def test_pictures_have_their_captions_as_text(real: str) -> None:
    figures = re.findall(r'<figure class="gallery">.*?</figure>', real, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        title = re.findall(r"<figcaption>(.*?)</figcaption>", figure)[0]
        (alt,) = re.findall(r' alt="(.*?)"', figure)
        (note,) = re.findall(r'<p class="note">(.*?)</p>', figure, re.DOTALL)
        assert alt.startswith(f"{title}. Each column is one image. Lines, from the top: images; LUT")
        assert "Lines, from the top: images; LUT" in note
    assert "Uniform attention leaves the image grey." in figures[0]
    assert "Colours: attention / uniform attention." in figures[0]


def repeats(page: str) -> list[dict[str, Any]]:
    """What `lutbench run` is asked for by the commands of a page that repeat its runs."""
    lines = re.findall(r'<h4>Repeat it</h4>\s*<pre tabindex="0">(.*?)</pre>', page, re.DOTALL)
    asked = []
    for line in lines:
        program, name, *arguments = shlex.split(html.unescape(line))
        assert (program, name) == ("lutbench", "run")
        run = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
        given = run.make_context("run", arguments).params
        asked.append({name: _plain(value) for name, value in given.items()})
    return asked


def _plain(value: Any) -> Any:
    """What the versions of Typer give alike: paths as text, several values as a list, None if there are none."""
    if isinstance(value, (list, tuple)):
        return [*value] or None
    return str(value) if isinstance(value, Path) else value


def test_the_command_that_repeats_a_run_is_whole(results: Path, tmp_path: Path) -> None:
    suite = tmp_path / "my suites/toy.toml"
    suite.parent.mkdir()
    shutil.copy(results / "toy.toml", suite)
    folders = {"results": results, "data_root": tmp_path / "my data", "runs": tmp_path / "my runs"}
    options = [part for name, folder in folders.items() for part in (f"--{name.replace('_', '-')}", str(folder))]
    changes = ['title="Toys & more"', "kind=exploration"]
    sets = [part for change in changes for part in ("--set", change)]
    command(str(suite), *options, *sets, "--output", str(tmp_path / "report.html"))
    asked = repeats((tmp_path / "report.html").read_text())
    assert len(asked) == len(read_records(results, "toy"))
    for one in asked:
        assert {name: one[name] for name in folders} == {name: str(folder) for name, folder in folders.items()}
        assert (one["suite"], one["overrides"], one["smoke"]) == (str(suite), changes, None)
        assert one["again"] == one["only"][-1:]
    (shifted,) = (one["only"] for one in asked if one["again"] == ["robustness/shifts/corrupted/ours/seed1"])
    assert shifted == ["downstream/tuned/ours/seed1", "robustness/shifts/corrupted/ours/seed1"]


def test_with_default_folders_the_command_names_none(page: str) -> None:
    assert {(one["results"], one["data_root"], one["runs"]) for one in repeats(page)} == {("results", "data", "runs")}


def test_the_same_records_make_the_same_page(page: str, results: Path) -> None:
    view = View.read(load_suite(str(results / "toy.toml")), results)
    assert suite_page(view, all_sections(view), results) == page


def test_a_suite_without_records_has_a_page_of_published_numbers_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(SUITE)
    view = View.read(load_suite(str(tmp_path / "toy.toml")), tmp_path)
    found = suite_page(view, all_sections(view), tmp_path)
    assert "There are no results yet" in found
    assert "84.2" in found


def test_a_list_of_files_in_what_a_suite_is_about_ends_where_the_text_goes_on(tmp_path: Path) -> None:
    view = View.read(load_suite("evidence"), tmp_path)
    found = suite_page(view, all_sections(view), tmp_path)
    about = found.split('<div class="prose about">')[1].split("</div>")[0]
    (files,) = re.findall("<pre>(.*?)</pre>", about, re.DOTALL)
    assert all(line.lstrip().startswith("DIR/") for line in files.splitlines()), files
    assert "<p>The images of Caltech-101 and Flowers-17" in about


# --- The command


def command(*arguments: str) -> None:
    cli.app(["report", *arguments], standalone_mode=False)


def test_the_command_says_where_the_report_is_and_imports_no_torch(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    line = f"import sys; from lutbench.cli import app; app(['report', {str(results / 'toy.toml')!r}, '--results', {str(results)!r}, '--output', {str(target)!r}], standalone_mode=False); assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"Report: {target}" in ended.stdout
    assert target.read_text().startswith("<!doctype html>")


def test_two_folders_are_compared_run_by_run(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(results, other)
    shutil.rmtree(other / "records/toy/downstream/near/ours")
    recorded(other, "downstream/tuned/ours/seed0", "finetune", classified(60))
    command(str(results), str(other), "--output", str(tmp_path / "both.html"))
    assert "both.html" in capsys.readouterr().out.replace("\n", "")
    found = (tmp_path / "both.html").read_text()
    tuned = re.findall(r'<tr><td class="groups[^"]*" data-text="downstream/tuned".*?</tr>', found, re.DOTALL)
    cells = [re.findall(r'data-text="([^"]*)"', row) for row in tuned]
    (changed,) = (row for row in cells if row[2] == "ours/seed0")
    assert changed[3:5] == ["80.0", "60.0"]
    assert changed[5].startswith("+20.0 [")
    assert changed[6] == "different"
    assert {row[6] for row in cells if row is not changed} == {"same bits"}
    assert "only in A" in found
    assert "downstream/near/ours/seed0" in found


def test_records_of_other_settings_are_named_with_what_is_other(results: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "toy.toml").write_text(f"{SUITE}[defaults.knn]\nneighbours = 7\n")
    recorded(other, "downstream/near/ours/seed0", "knn", classified(60))
    command(str(results), str(other), "--output", str(tmp_path / "both.html"))
    assert "neighbours changed from 7 to 20" in (tmp_path / "both.html").read_text()


def test_the_commands_of_a_comparison_have_the_settings_and_folders_of_each_side(results: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "toy.toml").write_text(f"{SUITE}[defaults.knn]\nneighbours = 7\n")
    recorded(other, "downstream/near/ours/seed0", "knn", classified(60))
    given, run = str(results / "toy.toml"), "downstream/near/ours/seed0"
    line = [str(results), str(other), "--output", str(tmp_path / "both.html"), "--data-root", "d", "--runs", "r"]
    command(*line, "--suite", given)
    asked = [one for one in repeats((tmp_path / "both.html").read_text()) if one["again"] == [run]]
    for one, folder in zip(asked, (results, other), strict=True):
        assert (one["suite"], one["only"], one["results"]) == (given, [run], str(folder))
        assert (one["data_root"], one["runs"]) == ("d", "r")
        planned = load_suite(one["suite"], one["overrides"] or ()).run(run)
        assert planned.recipe.affecting_results() == read_records(folder, "toy")[run].identity_inputs["recipe"]
    assert [one["overrides"] for one in asked] == [None, ["downstream.near.neighbours=7"]]
    command(*line)
    assert "The file of this suite was not found." in (tmp_path / "both.html").read_text()


def test_nox_leaves_the_report(results: Path, tmp_path: Path) -> None:
    if (nox := shutil.which("nox")) is None:
        pytest.skip("nox has an environment of its own")
    for name in ("noxfile.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / ".venv/bin/lutbench"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m lutbench "$@"\n')
    program.chmod(0o755)
    installed = (tmp_path / "pyproject.toml").read_text() + (tmp_path / "constraints.txt").read_text()
    (tmp_path / ".venv/installed.txt").write_text(installed)
    shutil.copytree(results, tmp_path / "results")
    line = [nox, "-f", str(tmp_path / "noxfile.py"), "-s", "results", "--", "results/toy.toml"]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "results/reports/toy.html").read_text().startswith("<!doctype html>")
    assert "Report: results/reports/toy.html" in ended.stdout


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b", "c"), "expected one suite or two results folders, found 3 names"),
        (("RESULTS",), "is a results folder. For the report of a suite"),
        (("RESULTS", "EMPTY"), "expected a results folder, with records in"),
        (("RESULTS", "RESULTS", "--suite", "tiny"), "Not both folders have records of tiny"),
        (("tiny", "--suite", "tiny"), "--suite is for two results folders"),
    ],
)
def test_what_cannot_be_reported_is_answered_with_what_to_give(
    names: tuple[str, ...], expected: str, results: Path, tmp_path: Path
) -> None:
    given = [{"RESULTS": str(results), "EMPTY": str(tmp_path)}.get(name, name) for name in names]
    with pytest.raises(UserError, match=re.escape(expected)):
        command(*given)


# --- In a browser


class Opened:
    """The page in Chromium, with what it logged and asked for."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.logged: list[str] = []
        self.requested: list[str] = []
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.on("console", lambda message: self.logged.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")
        self.page.set_default_timeout(10_000)

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture(scope="module")
def opened(page: str, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("page") / "toy.html"
    path.write_text(page, encoding="utf-8")
    return Opened(browser, path)


WIDE = '.grid[data-name="wide"] >> nth=0'
LONG = '.grid[data-name="main"]'


def test_the_page_logs_no_error_and_asks_for_nothing_but_itself(opened: Opened) -> None:
    assert opened.logged == []
    assert [url.partition(":")[0] for url in opened.requested if not url.startswith("data:")] == ["file"]


def test_every_chart_is_drawn_with_the_colours_of_its_methods(opened: Opened) -> None:
    plots = opened.page.locator(".plot")
    assert plots.count() > 15
    assert opened.page.locator(".plot svg").count() == plots.count()
    linked = """async () => (Object.values(await unpacked)).flatMap(one => one.data.values).every(one => one.k)"""
    assert opened.page.evaluate(linked), "every value knows its runs"
    losses = opened.page.locator("figure", has_text="Losses, downstream")
    strokes = losses.locator("svg path[stroke]").evaluate_all("all => all.map(one => one.getAttribute('stroke'))")
    assert {"#0072b2", "#e69f00"} <= {stroke.lower() for stroke in strokes}


def test_a_method_that_is_switched_off_in_a_legend_leaves_all_plots_of_the_chart(opened: Opened) -> None:
    chart = opened.page.locator("figure", has_text="attention by depth")
    lines = chart.locator(".mark-line path")
    before = lines.count()
    assert before > 0
    button = chart.locator(".legend button", has_text="LUT").first
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(lines).to_have_count(before // 2)
    button.click()
    expect(lines).to_have_count(before)


def test_a_table_is_sorted_by_numbers_and_then_as_it_was(opened: Opened) -> None:
    grid = opened.page.locator(LONG)
    head = grid.locator("th", has_text="measured")
    values = f"{LONG} tbody td:nth-child(5)"
    before = opened.texts(values)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    numbers = [float(text) for text in opened.texts(values)]
    assert numbers == sorted(numbers, reverse=True)
    head.locator("button").click()
    assert [float(text) for text in opened.texts(values)] == sorted(numbers) != [float(text) for text in before]
    head.locator("button").click()
    assert opened.texts(values) == before


def test_a_table_shows_the_rows_that_have_all_words_of_its_filter(opened: Opened) -> None:
    grid = opened.page.locator(LONG)
    grid.locator("input").fill("fine LUT")
    expect(grid.locator("tbody tr:visible")).to_have_count(1)
    grid.locator("input").fill("")
    expect(grid.locator("tbody tr:visible")).to_have_count(4)


def test_a_row_that_was_hidden_comes_back(opened: Opened) -> None:
    grid = opened.page.locator(LONG)
    grid.locator("[data-action=hide]").first.focus()
    opened.page.keyboard.press("Enter")
    expect(grid.locator("tbody tr:visible")).to_have_count(3)
    grid.get_by_text("Show 1 hidden row").click()
    expect(grid.locator("tbody tr:visible")).to_have_count(4)


def test_what_is_copied_is_the_table_as_it_is_shown(opened: Opened) -> None:
    opened.page.evaluate("() => { navigator.clipboard.writeText = async text => { window.copied = text; }; }")
    grid = opened.page.locator(WIDE)
    grid.locator("[data-action=markdown]").click()
    lines = opened.page.evaluate("() => window.copied").splitlines()
    assert lines[0] == "| method | encoder | Fine-tuning, top-1 ↑ | =1+1 \\| near, top-1 ↑ |"
    assert lines[1] == "| :--- | :--- | ---: | ---: |"
    assert lines[2].startswith("| LUT | ViT-B/16 | **82.0** ± ")
    assert lines[3].startswith("| \\</script>\\</td>\\<img src=x")
    assert lines[-1] == "Pipeline check: no evidence about the method."
    grid.locator("[data-action=latex]").click()
    latex = opened.page.evaluate("() => window.copied")
    assert "\\begin{tabular}{llrr}" in latex
    assert "Fine-tuning, top-1 $\\uparrow$" in latex
    assert "\\textbf{82.0} $\\pm$ " in latex
    assert "\\&" in latex


def test_a_downloaded_table_opens_in_a_spreadsheet_and_is_no_formula_there(opened: Opened) -> None:
    with opened.page.expect_download() as started:
        opened.page.locator(LONG).locator("[data-action=csv]").click()
    text = Path(started.value.path()).read_text()
    frame = pd.read_csv(io.StringIO(text), dtype=str)
    assert list(frame["measured"][:2]) == ["82.0", "77.0"]
    assert set(frame["task"]) == {"Fine-tuning", "'=1+1 | near"}
    with opened.page.expect_download() as started:
        opened.page.locator(LONG).locator("[data-action=all]").click()
    assert set(pd.read_csv(started.value.path())["task"]) == {"tuned", "near", "shifts/corrupted", "looks"}


def test_a_number_opens_a_drawer_with_its_chain_and_the_command_that_repeats_it(opened: Opened, results: Path) -> None:
    number = opened.page.locator("a[data-behind]", has_text="82.0").first
    number.focus()
    opened.page.keyboard.press("Enter")
    drawer = opened.page.locator("#drawer")
    expect(drawer).to_be_visible()
    text = drawer.inner_text()
    record = read_records(results, "toy")["downstream/tuned/ours/seed0"]
    for expected in (
        record.identity,
        str(record.code),
        "ImageNet-1K",
        "--only downstream/tuned/ours/seed0",
        record.files[0].sha256,
    ):
        assert expected in text, expected
    assert "machine" in text
    opened.page.keyboard.press("Escape")
    expect(drawer).not_to_be_visible()
    assert number.evaluate("one => one === document.activeElement"), "who closes it goes on where it was opened"


def test_a_published_number_opens_its_source(opened: Opened) -> None:
    opened.page.locator(LONG).locator("a", has_text="84.2").click()
    expect(opened.page.locator("#drawer")).to_contain_text(re.compile(r"README\.md\s*ImageNet-1K, trained end to end"))
    opened.page.locator("#drawer-close").click()


def test_the_numbers_of_a_chart_are_there_as_a_table(opened: Opened) -> None:
    chart = opened.page.locator("figure", has_text="attention by depth")
    chart.locator(".numbers summary").click()
    rows = chart.locator(".numbers tbody tr")
    expect(rows).not_to_have_count(0)  # the browser tells the page a moment later that it was opened
    assert rows.count() > 20
    assert rows.locator("a[data-behind]").count() == rows.count()
    rows.locator("a").first.click()
    expect(opened.page.locator("#drawer")).to_contain_text("--only analysis/looks/ours/seed0")
    opened.page.keyboard.press("Escape")
    chart.locator(".numbers summary").click()


def test_the_keyboard_reaches_whatever_can_be_pressed(opened: Opened) -> None:
    unreachable = opened.page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], input, summary, [role=region]')]
            .filter(one => one.checkVisibility() && (one.tabIndex < 0 || one.getAttribute('tabindex') > 0)).map(one => one.outerHTML)"""
    )
    assert unreachable == []


@pytest.mark.parametrize("width", [320, 1280, 2560])
def test_no_width_makes_the_page_itself_scroll_sideways(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width


def serious(page: Any) -> list[tuple[str, str]]:
    """What axe-core finds on a page that is serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is in the extra `dev`")
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Opened, theme: str) -> None:
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.page.locator(f'[data-theme-choice="{theme}"]').click()
    ground = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[theme]
    assert serious(opened.page) == []
    opened.page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
    expect(opened.page.locator(".numbers tbody tr").first).to_be_visible()
    assert serious(opened.page) == [], "with the details of runs and the numbers of charts"
    opened.page.locator("a[data-behind]").first.click()
    expect(opened.page.locator("#drawer")).to_be_visible()
    assert serious(opened.page) == [], "with the drawer"
    opened.page.keyboard.press("Escape")
    opened.page.evaluate("() => document.querySelectorAll('main details').forEach(one => { one.open = false; })")


def test_a_comparison_says_what_its_numbers_are_and_is_as_usable(results: Path, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    command(str(results), str(results), "--suite", str(results / "toy.toml"), "--output", str(path))
    both = Opened(browser, path)
    assert both.logged == []
    assert [url.partition(":")[0] for url in both.requested if not url.startswith("data:")] == ["file"]
    assert "They are no evidence about the method." in both.page.locator("header.title").inner_text()
    assert both.texts("h2 .mark") == ["Pipeline check"]
    both.page.evaluate("() => { navigator.clipboard.writeText = async text => { window.copied = text; }; }")
    both.page.locator("[data-action=markdown]").first.click()
    assert "Pipeline check: no evidence about the method." in both.page.evaluate("() => window.copied")
    assert serious(both.page) == []
    both.page.locator("td a[data-behind]").first.click()
    expect(both.page.locator("#drawer")).to_contain_text("--only")
    assert serious(both.page) == []
    both.page.close()
