"""The examples of the documentation that are run: a row of one's own, and a task of one's own."""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from test_documents import blocks
from toy_runs import TOY, defaults, write_images

import lutbench
from lutbench import kinds
from lutbench.cli import app
from lutbench.kinds import Kind
from lutbench.recipes.loading import load_suite

ROOT = Path(__file__).parents[1]


def command(line: str) -> str:
    """Give a line of the command line, in this process; return what it printed."""
    program, *arguments = shlex.split(line)
    assert program == "lutbench"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        app(arguments, standalone_mode=False)
    return printed.getvalue()


def test_a_row_of_ones_own_comes_from_a_checkpoint_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = blocks("python", "docs/own-row.md")
    exec(checkpoint, {})  # the page's own code
    add, run, tables = (block.strip() for block in blocks("sh", "docs/own-row.md"))
    command(add)
    (written,) = blocks("toml", "docs/own-row.md")
    assert Path("mine.toml").read_text() == written
    command(run)
    assert Path("results/records/mine/downstream/photographs-knn/mine/seed0.json").is_file()
    printed = command(tables)
    measured = lutbench.records("mine").set_index("metric").loc["top-1"]
    row = rf"Mine +{measured.value:.1f} +{measured.low:.1f} to {measured.high:.1f} +1"
    assert re.search(row, printed)
    (told,) = re.findall(r"Mine +(\d\d\.\d) +\d\d\.\d to \d\d\.\d +1\n", (ROOT / "docs/own-row.md").read_text())
    assert measured.value == pytest.approx(float(told), abs=1), (
        "the page has what came out, but for other machines' digits"
    )


def test_a_task_of_ones_own_is_run_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "docs/examples/nearest_mean.py"
    found = importlib.util.spec_from_file_location("downstream.nearest_mean", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "downstream.nearest_mean", module)
    found.loader.exec_module(module)
    (line,) = re.findall(r"(?m)^    (Kind\(\"nearest-mean\".*\)),$", (ROOT / "docs/extending.md").read_text())
    kind: Kind = eval(line, vars(kinds))
    monkeypatch.setitem(kinds.KINDS, kind.name, kind)  # type: ignore[arg-type]

    write_images(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (_, task) = blocks("toml", "docs/extending.md")
    own = task.replace('"photographs"', '"toy"').replace('["lut", "mae"]', '["scratch"]')
    (tmp_path / "mine.toml").write_text(
        f'{TOY}\n{defaults("knn")}\n[method.scratch]\nscratch = true\nencoder = "toy"\n{own}\nworkers = 0\nthreads = 1\n'
    )
    command("lutbench run mine.toml")
    outcomes = lutbench.outcomes("mine/downstream/means/scratch/seed0")
    assert len(outcomes) == 21
    assert outcomes.right.mean() > 0.9, "the classes differ in colour, which even random features keep"
    assert "top-1" in command("lutbench tables mine.toml")


def test_the_suites_of_the_page_on_data_are_read(tmp_path: Path) -> None:
    text = (ROOT / "docs/own-data.md").read_text()
    tables = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", text)
    suites = ["\n".join(line[4:] for line in table.splitlines()) for table in tables if "    [data." in table]
    assert len(suites) == 3
    encoder = '[encoder.s]\nmodel = "vit_small_patch16_224"\n[method.scratch]\nscratch = true\nencoder = "s"\n'
    head = f'title = "Mine"\nabout = "Mine."\nkind = "exploration"\n{encoder}'
    tasks = [f'[downstream.{name}]\nkind = "knn"\ndata = "{name}"\n' for name in ("mine", "birds")]
    for place, (suite, task, name) in enumerate(zip(suites, [*tasks, ""], ["mine", "birds", "mine"], strict=True)):
        file = tmp_path / f"{place}.toml"
        file.write_text(f"{head}{suite}\n{task}")
        assert [run.name for run in load_suite(str(file)).runs] == [f"downstream/{name}/scratch/seed0"]
