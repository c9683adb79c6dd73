"""What is said of a run when the sources that it depends on were edited after it finished, and how it is repeated."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_runs import TOY, performed, toy_run, write_images

from lutbench import cli, sources
from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite
from lutbench.run import Run
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

NAME = "downstream/task/scratch/seed0"
EDITED = "downstream/knn.py"


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Edit a source: in a copy of all of them, which counts as what is installed."""
    copy = tmp_path / "installed"
    for package in sources.PACKAGES:
        shutil.copytree(sources.ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "ROOT", copy)

    def forget() -> None:
        sources._closure.cache_clear()
        sources._read.cache_clear()

    def change(old: str, new: str, file: str = EDITED) -> None:
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))
        forget()

    forget()
    yield change
    forget()


@pytest.fixture
def run(tmp_path: Path, edit: object) -> Run:
    write_images(tmp_path, train=2, val=1)
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    performed(run)
    return run


def again(run: Run, *names: str) -> None:
    run_suite(load_suite(str(run.workspace.data / "toy.toml")), [], [], run.workspace, names)


def test_a_kind_depends_on_what_its_module_and_its_data_import_and_not_on_bookkeeping() -> None:
    suite = load_suite("tiny")
    of = {planned.kind.name: sources.sources_of(planned) for planned in suite.runs}
    assert {"pretrain/context.py", "pretrain/frameworks/mae.py", "lutbench/data/toy/photographs.py"} <= of[
        "pretrain"
    ].keys()
    assert not of["pretrain"].keys() & {"pretrain/frameworks/simmim.py", "pretrain/context_losses/infonce.py"}
    assert "lutbench/train/schedule.py" in of["finetune"]
    assert {"robustness/corruptions/frost.py", "lutbench/evaluate/inference.py"} <= of["robustness"].keys()
    assert not [path for path in of["knn"] if path.startswith(("pretrain/", "robustness/"))]
    for paths in of.values():
        assert not paths.keys() & {"lutbench/errors.py", "lutbench/progress.py", "lutbench/run.py", "pretrain/cost.py"}


def test_a_run_depends_on_the_framework_and_the_loss_that_it_chose_and_on_no_other() -> None:
    changes = ("pretrain.mae.framework=simmim", "pretrain.mae.mask_unit=24", "pretrain.lut.context_loss=infonce")
    suite = load_suite("tiny", changes)
    lut, mae = (
        sources.sources_of(next(run for run in suite.runs if run.task == name)).keys() for name in ("lut", "mae")
    )
    assert lut & {"pretrain/frameworks/mae.py", "pretrain/context_losses/infonce.py"} == lut & {
        "pretrain/frameworks/mae.py",
        "pretrain/frameworks/simmim.py",
        "pretrain/context_losses/infonce.py",
    }
    assert "pretrain/frameworks/simmim.py" in mae
    assert not mae & {"pretrain/frameworks/mae.py", "pretrain/context_losses/infonce.py"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import torch\n", "# of the mean\nimport   torch\n"),
        ("def perform(", "\n\ndef perform(\n    # the run\n    "),
        ('"""Weighted', '"""Also: Weighted'),
    ],
)
def test_comments_formatting_and_docstrings_do_not_count(
    run: Run, edit: Callable[..., None], old: str, new: str
) -> None:
    edit(old, new)
    assert str(run.status()) == "finished"


def test_what_an_error_says_does_not_count_but_what_raises_it_does(run: Run, edit: Callable[..., None]) -> None:
    edit(
        "must not be more than bank = {bank}, the number", "exceeds bank, the number", "lutbench/evaluate/neighbours.py"
    )
    assert str(run.status()) == "finished"
    edit("neighbours > len(images)", "neighbours >= len(images)", "lutbench/evaluate/neighbours.py")
    assert run.status().sources == ("lutbench/evaluate/neighbours.py",)


def test_what_other_code_finished_is_said_everywhere_and_repeated_when_asked(
    run: Run, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    suite, results = str(run.workspace.data / "toy.toml"), run.workspace.results
    cli.tables(suite, results=results)
    edit("recipe.temperature,", "2 * recipe.temperature,")
    capsys.readouterr()
    show_status(load_suite(suite), run.workspace)
    assert "finished with different code  top-1" in (said := capsys.readouterr().out)
    assert f"1 of 1 runs finished with different code. Changed since then: {EDITED}." in said
    again(run)
    assert "finished already with different code (1 file); top-1" in (said := capsys.readouterr().out)
    assert said.rstrip().endswith(f"to repeat it: --again {NAME}")
    cli.tables(suite, check=True, results=results)  # the code is no matter of the records
    cli.tables(suite, results=results)
    assert re.search(rf"Finished with different code\n.*`?{NAME}`?: {EDITED}", capsys.readouterr().out, re.DOTALL)
    cli.tables(suite, check=True, results=results)
    before = (run.folder / "finished.json").read_bytes()

    again(run, "task/scratch")
    said = capsys.readouterr().out
    (aside,) = (path for path in run.home.iterdir() if path.name.startswith(f"{run.folder.name}-"))
    assert f"runs again; the old run stays in {aside}" in said
    assert (aside / "finished.json").read_bytes() == before
    assert str(run.status()) == "finished"
    record = json.loads((results / f"records/toy/{NAME}.json").read_text())
    assert record["code"]["sources"] == sources.sources_of(run.planned)
    cli.tables(suite, results=results)
    assert "other code" not in capsys.readouterr().out


def test_what_starts_from_a_run_of_other_code_says_so(
    tmp_path: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, train=2, val=1)
    suite = tmp_path / "two.toml"
    suite.write_text(
        f"""{TOY}
        [pretrain.mine]
        encoder = "toy"
        data = "toy"
        epochs = 1
        warmup_epochs = 0
        batch = 6
        decoder_width = 16
        decoder_depth = 1
        decoder_heads = 2
        head_width = 16
        threads = 1
        workers = 0
        [method.mine]
        pretrain = "mine"
        [downstream.task]
        kind = "knn"
        data = "toy"
        neighbours = 1
        """
    )
    loaded, workspace = load_suite(str(suite)), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    run_suite(loaded, [], [], workspace)
    edit("2 - 2", "2 - 3", "pretrain/context_losses/distances.py")
    capsys.readouterr()
    run_suite(loaded, [], [], workspace)
    first, second = capsys.readouterr().out.splitlines()
    assert "finished already with different code (1 file); " in first
    assert "finished already after pretrain/mine/seed0, with different code (1 file); " in second
    assert second.endswith("--again pretrain/mine/seed0")
    cli.tables(str(suite), results=workspace.results)
    assert re.search(
        r"`?pretrain/mine/seed0`?: pretrain/context_losses/distances.py\n.*`?downstream/task/mine/seed0`?: start from",
        capsys.readouterr().out,
    )


def test_runs_of_the_same_changed_files_are_told_together(
    tmp_path: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, train=2, val=1)
    suite = tmp_path / "four.toml"
    rows = "".join(f'[method.{name}]\nscratch = true\nencoder = "toy"\n' for name in ("one", "two"))
    tasks = "".join(
        f'[downstream.{name}]\nkind = "knn"\ndata = "toy"\nneighbours = 1\n' for name in ("first", "second")
    )
    suite.write_text(TOY + rows + tasks)
    loaded, workspace = load_suite(str(suite)), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    run_suite(loaded, [], [], workspace)
    edit("import torch\n", "import torch as torch\n")
    edit("import Tensor\n", "import Tensor as Tensor\n", "downstream/stage.py")

    def told() -> list[str]:
        cli.tables(str(suite), results=workspace.results)
        capsys.readouterr()
        text = (workspace.results / "tables/four/main.md").read_text()
        return [line for line in text.split("## Finished with different code")[1].splitlines() if line.startswith("- ")]

    assert told() == [f"- `downstream/*` (4 runs): {EDITED}, downstream/stage.py"]
    run_suite(loaded, [], ["second/two"], workspace, ["second/two"])
    names = "`downstream/first/*`, `downstream/second/one/seed0`"
    assert told() == [f"- {names} (3 runs): {EDITED}, downstream/stage.py"]
    edit("import Tensor as Tensor\n", "import Tensor\n", "downstream/stage.py")
    assert told() == [f"- {names} (3 runs): {EDITED}", "- `downstream/second/two/seed0`: downstream/stage.py"]


def test_a_run_on_a_cache_depends_on_what_makes_the_cache() -> None:
    for cache in (False, True):
        planned = load_suite("tiny", [f"pretrain.lut.cache={str(cache).lower()}"]).runs[0]
        assert ("lutbench/data/cache_build.py" in sources.sources_of(planned)) is cache


def test_a_repetition_that_was_stopped_is_gone_on_with(run: Run) -> None:
    run.set_aside()
    assert str(run.status()) == "missing"
    again(run)
    assert str(run.status()) == "finished"


def test_a_run_that_goes_on_with_other_code_counts_as_made_by_neither(
    tmp_path: Path, edit: Callable[..., None]
) -> None:
    write_images(tmp_path, train=2, val=1)
    toy_run(tmp_path, kind="knn", neighbours=1).start()
    edit("import torch\n", "import torch as torch\n")
    gone_on = toy_run(tmp_path, kind="knn", neighbours=1)
    performed(gone_on)
    assert str(gone_on.status()) == f"finished with different code ({EDITED})"
    edit("import torch as torch\n", "import torch\n")
    assert str(gone_on.status()) == f"finished with different code ({EDITED})"


def test_again_names_a_run(run: Run) -> None:
    with pytest.raises(UserError, match=r"--again tusk: no run of suite toy matches.*task"):
        again(run, "tusk")


def test_code_without_a_commit_has_the_digest_of_its_files(tmp_path: Path, edit: Callable[..., None]) -> None:
    before = sources.digest_of_all()
    edit("import torch\n", "import torch  # as it is\n")
    assert sources.digest_of_all() != before
