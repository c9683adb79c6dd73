"""A smoke run goes through all of a suite in little time, and nobody can take it for a measurement."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from toy_runs import TOY, in_processes, write_images

import lutbench
from lutbench.adding import Choices, add_row
from lutbench.data.catalogue import CATALOGUE
from lutbench.data.subsets import whole_of
from lutbench.errors import NotRun, UserError
from lutbench.exporting import export_run
from lutbench.kinds import dataset_module
from lutbench.recipes.loading import load_suite
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.report.html.page import KINDS
from lutbench.report.sections import View
from lutbench.run import open_run
from lutbench.smoke import Width
from lutbench.smoke.command import smoke_suite
from lutbench.smoke.inputs import lay_out
from lutbench.smoke.shortened import FEW, SIDE, Smoke, datasets_of, smoke_workspace, smoked
from lutbench.stages import run_suite
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace

CHAIN = f"""{TOY}
[method.mae]
pretrain = "mae"
[method.lut]
pretrain = "lut"
[method.released]
checkpoint = "nowhere.pth"
encoder = "toy"
[pretrain.mae]
data = "toy"
encoder = "toy"
context_weight = 0.0
crop = "random"
[pretrain.lut]
data = "toy"
encoder = "toy"
snapshots = [0.02, 0.5]
[downstream.tuned]
kind = "finetune"
data = "toy"
methods = ["mae"]
[downstream.knn]
kind = "knn"
data = "toy"
[downstream.few]
kind = "logistic"
data = "toy"
subset = "lists/few.txt"
methods = ["mae"]
[downstream.way]
kind = "knn"
data = "toy"
methods = ["lut"]
at = [0.02, 0.5, 1]
[shifted.own]
path = "shifted"
[robustness.shifted]
sets = ["own"]
tasks = ["tuned"]
[analysis.inside]
data = "toy"
methods = ["mae"]
[sweep.weight]
of = "pretrain.lut"
context_weight = [0.0, 0.1, 0.25, 0.5]
tasks = ["knn"]
"""
"""Every stage, a list, weights and a set that are nowhere, a study on the way and a sweep."""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A data root with images for :data:`CHAIN`, which is ``chain.toml`` of the current folder."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data")
    text = CHAIN.replace('kind = "pipeline"', 'kind = "pipeline"\nseeds = [0, 1]')
    Path("chain.toml").write_text(text)
    return Workspace(Path("data"), Path("runs"), Path("results"))


def smoke_of(workspace: Workspace, width: Width = "toy", processes: int = 1) -> Smoke:
    return Smoke(width, workspace.runs / "smoke" / width, workspace.data, processes)


def files_outside(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is not in a folder called smoke."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "smoke" not in path.relative_to(folder).parts
    }


def test_a_smoke_goes_through_all_stages_to_tables_and_writes_nothing_else(chain: Workspace, tmp_path: Path) -> None:
    width: Width = "toy"
    before = files_outside(tmp_path)
    suite = load_suite("chain.toml")
    smoke_suite(suite, [], [], chain, [], width)
    assert files_outside(tmp_path) == before
    done = sorted(path.relative_to(tmp_path / f"results/smoke/{width}/records/chain") for path in tmp_path.rglob("seed*.json")
                  if "records" in path.parts and "results" in path.parts)  # fmt: skip
    stages = {path.parts[0] for path in done}
    assert stages == {"pretrain", "downstream", "robustness", "analysis"}
    tables = Path(f"results/smoke/{width}/tables/chain")
    texts = {path.name: path.read_text() for path in tables.iterdir()}
    assert {"main.md", "main.csv", "main.tex", "sweep-weight.csv", "analysis.csv"} <= set(texts)
    for name, text in texts.items():
        assert "smoke run: not a measurement" in text.lower(), name
    for name in (name for name in texts if name.endswith(".csv")):
        rows = texts[name].splitlines()
        assert all("Smoke run: not a measurement." in row for row in rows[1:]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The runs of a small suite, smoked."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "data")
    (folder / "short.toml").write_text(
        f'{TOY}[method.mae]\npretrain = "mae"\n[pretrain.mae]\ndata = "toy"\nencoder = "toy"\ncontext_weight = 0.0\n'
        'crop = "random"\nepochs = 1\nwarmup_epochs = 0\nbatch = 10\ndecoder_width = 16\ndecoder_depth = 1\ndecoder_heads = 2\n'
        '[downstream.knn]\nkind = "knn"\ndata = "toy"\n'
    )
    workspace = Workspace(folder / "data", folder / "runs", folder / "results")
    smoke_suite(load_suite(str(folder / "short.toml")), [], [], workspace, [], "toy")
    return workspace


def test_the_report_of_a_smoke_is_marked_at_the_top_and_beside_all_that_it_shows(finished: Workspace) -> None:
    page = (finished.results / "smoke/toy/reports/short.html").read_text(encoding="utf-8")
    label, sentence = KINDS["smoke"]
    assert f"<strong>{label}.</strong> {sentence}" in page
    shown = [
        one for one in re.findall(r"<section id=.*?</section>", page, re.DOTALL) if re.search("<tbody>|<figure", one)
    ]
    assert len(shown) > 3
    for section in shown:
        assert re.search(r'<h\d>[^\n]*<span class="mark">Smoke run</span></h\d>', section), section[:200]
    assert set(re.findall(r'data-mark="([^"]*)"', page)) == {"Smoke run"}, "what is copied of a table"
    assert not re.search(r'class="mark">(?!Smoke run<)', page)
    assert not re.search("kind kind-(?!smoke)", page)


def test_models_and_numbers_of_a_smoke_are_refused(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs, results = finished.runs / "smoke/toy", finished.results / "smoke/toy"
    name = "short/pretrain/mae/seed0"
    with pytest.raises(UserError, match="measures nothing"):
        export_run(name, tmp_path / "out", runs=runs, results=results)
    with pytest.raises(UserError, match="measures nothing"):
        lutbench.encoder(name, runs)
    with pytest.raises(UserError, match="measures nothing"):
        lutbench.records("short", results)
    with pytest.raises(UserError, match="measures nothing"):
        lutbench.outcomes("short/downstream/knn/mae/seed0", results)
    [weights] = (runs / name).glob("*/encoder.safetensors")
    with pytest.raises(UserError, match="measures nothing"):
        add_row(str(weights), "tiny", Choices(label="Mine"))
    elsewhere = tmp_path / "copied"
    elsewhere.mkdir()
    for file in weights.parent.iterdir():
        if file.is_file():
            (elsewhere / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="measures nothing"):
        add_row(str(elsewhere / weights.name), "tiny", Choices(label="Mine"))
    text = f'{TOY}[method.mine]\ncheckpoint = {json.dumps(str(weights))}\nencoder = "toy"\n[downstream.knn]\nkind = "knn"\ndata = "toy"\n'
    Path("mine.toml").write_text(text)
    with pytest.raises(UserError, match="measures nothing"):
        run_suite(load_suite("mine.toml"), [], [], finished)


def test_the_real_tables_take_no_record_of_a_smoke_nor_the_other_way_round(finished: Workspace, tmp_path: Path) -> None:
    suite = load_suite(str(finished.data.parent / "short.toml"))
    changed = smoked(suite, smoke_of(finished))
    assert not View.read(suite, finished.results).has_records
    assert View.read(changed, finished.results / "smoke/toy").has_records
    with pytest.raises(UserError, match="of a smoke run, but this folder is for real runs"):
        View.read(suite, finished.results / "smoke/toy")
    run_suite(suite, ["pretrain"], [], Workspace(finished.data, tmp_path / "runs", tmp_path / "results"))
    with pytest.raises(UserError, match="of a real run, but this folder is for smoke runs"):
        View.read(changed, tmp_path / "results")


def test_a_smoke_is_another_run_even_where_nothing_else_differs(chain: Workspace) -> None:
    suite = load_suite("chain.toml")
    changed = smoked(suite, smoke_of(chain, "own"))
    lay_out(changed, smoke_of(chain, "own"))
    planned = changed.runs[0]
    workspace = Workspace(chain.runs / "smoke/own/data", chain.runs, chain.results)
    smoke = open_run(changed, planned, workspace)
    unmarked = open_run(changed, replace(planned, smoke=""), workspace)
    assert smoke.identity != unmarked.identity
    assert smoke.identity_inputs == {**unmarked.identity_inputs, "smoke": planned.smoke}


def settings(suite: LoadedSuite) -> dict[str, Any]:
    return {run.name: run.recipe for run in suite.runs}


def test_a_smoked_suite_has_a_run_of_every_kind_and_few_seeds_draws_and_points(tmp_path: Path) -> None:
    for name in ("tiny", "camvid", "small", "paper"):
        suite = load_suite(name)
        changed = smoked(suite, Smoke("toy", tmp_path, tmp_path / "nothing"))
        names = {run.name for run in changed.runs}
        assert {run.kind.name for run in changed.runs} == {run.kind.name for run in suite.runs}
        assert {run.task for run in changed.runs if run.row not in suite.study_rows} == {
            run.task for run in suite.runs if run.row not in suite.study_rows
        }
        assert all(run.seed == suite.config.seeds[0] and run.smoke for run in changed.runs)
        assert all(run.needs is None or run.needs in names for run in changed.runs)
        assert all(len(study.points) == 2 for study in changed.studies)
        assert [study.name for study in changed.studies] == [study.name for study in suite.studies]


def test_sets_of_masks_that_the_suite_builds_are_read_in_part_too(tmp_path: Path) -> None:
    recipe = settings(smoked(load_suite("tiny"), Smoke("toy", tmp_path, tmp_path)))["downstream/mosaics/lut/seed0"].data
    module = dataset_module(recipe)
    module.write_miniature(recipe, tmp_path, SIDE)
    assert [len(module.open_dataset(recipe, split, tmp_path)) for split in ("train", "val")] == [8, 4]
    assert len(module.few_files(recipe, tmp_path)) == 2 * (8 + 4)


def test_so_many_shots_are_as_a_few_images_of_a_class_have(tmp_path: Path) -> None:
    runs = settings(smoked(load_suite("small"), Smoke("own", tmp_path, tmp_path))).values()
    kinds = {recipe.kind: recipe.shots for recipe in runs if getattr(recipe, "shots", None)}
    assert kinds == {"finetune": 2, "logistic": 2}


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_batches_divide_over_processes_in_pairs(tmp_path: Path, processes: int) -> None:
    for recipe in settings(smoked(load_suite("paper"), Smoke("toy", tmp_path, tmp_path, processes))).values():
        for name in ("batch", "micro_batch"):
            assert (getattr(recipe, name, None) or 2 * processes) % (2 * processes) == 0


def test_every_set_that_is_missing_is_written_and_read_by_its_own_reader(tmp_path: Path) -> None:
    suite, smoke = load_suite("paper"), Smoke("toy", tmp_path / "smoke", tmp_path / "nothing")
    changed = smoked(suite, smoke)
    lay_out(changed, smoke)
    found = {}
    for recipe in datasets_of(changed):
        module = dataset_module(recipe)
        for split in recipe.splits:
            opened = module.open_dataset(recipe, split, smoke.data)
            if isinstance(recipe, RobustnessDatasetRecipe):
                opened.require()
                found[recipe.name, split] = max(opened.images.values())
            else:
                found[recipe.label, split] = len(opened)
    assert set(CATALOGUE) & {name for name, _ in found} >= {
        "cub-200-2011",
        "cifar-10",
        "ade20k",
        "roxford5k",
        "flowers-102",
    }
    assert len({name for name, _ in found}) == 30
    assert 0 < min(found.values()) <= max(found.values()) == FEW
    mark = smoke.data / "CUB_200_2011/classes.txt"
    mark.write_text("as it was left")
    lay_out(changed, smoke)
    assert mark.read_text() == "as it was left", "what is there is not written again"


def test_sets_that_are_there_are_linked_and_a_few_of_their_images_read(chain: Workspace) -> None:
    smoke = smoke_of(chain)
    changed = smoked(load_suite("chain.toml"), smoke)
    lay_out(changed, smoke)
    assert (smoke.data / "toy/train").resolve() == (chain.data / "toy/train").resolve()
    recipe = changed.runs[0].recipe.dataset
    train = dataset_module(recipe).open_dataset(recipe, "train", smoke.data)
    assert len(train) == FEW < 30
    assert [train.labels.tolist().count(label) for label in range(3)] == [8, 8, 8]
    shifted = next(run.recipe.dataset for run in changed.runs if run.stage == "robustness")
    assert dataset_module(shifted).open_dataset(shifted, "test", smoke.data).classes == ("amber", "blue", "green")
    listed = (smoke.data / "lists/few.txt").read_text().splitlines()
    assert len(listed) == FEW
    few = next(run.recipe for run in changed.runs if run.task == "few")
    subset = Workspace(smoke.data, smoke.home, smoke.home).subset(few.dataset, few.training_subset)
    assert len(whole_of(subset)) == len(subset) == FEW, "of which features are kept, and no image more is encoded"


def test_a_miniature_gives_way_to_the_set_when_that_is_there(chain: Workspace) -> None:
    smoke, suite = smoke_of(chain), load_suite("chain.toml")
    (chain.data / "toy").rename(chain.data / "later")
    lay_out(smoked(suite, smoke), smoke)
    assert not (smoke.data / "toy/train").is_symlink()
    assert (smoke.data / "toy/train/ash").is_dir()
    (chain.data / "later").rename(chain.data / "toy")
    lay_out(smoked(suite, smoke), smoke)
    assert (smoke.data / "toy/train").resolve() == (chain.data / "toy/train").resolve()


def test_nothing_is_drawn_for_a_set_of_which_the_real_run_would_say_that_it_is_incomplete(chain: Workspace) -> None:
    smoke, suite = smoke_of(chain), load_suite("chain.toml")
    (chain.data / "toy/val").rename(chain.data / "elsewhere")
    changed = smoked(suite, smoke)
    lay_out(changed, smoke)
    recipe = changed.runs[0].recipe.dataset
    with pytest.raises((UserError, NotRun), match="there is no such folder"):
        dataset_module(recipe).open_dataset(recipe, "val", smoke.data)


def test_two_processes_smoke_together(chain: Workspace) -> None:
    suite = load_suite("chain.toml")

    def both() -> None:
        accelerator()
        smoke_suite(suite, [], ["pretrain/mae", "tuned/mae"], chain, [], "toy")

    in_processes(both, 2)
    tuned = json.loads(next(Path("results/smoke/toy/records").rglob("tuned/mae/seed0.json")).read_text())
    assert tuned["recipe"]["batch"] == 8
    assert tuned["hardware"]["processes"] == 2


def test_the_command_takes_a_width_or_none(chain: Workspace) -> None:
    line = ("run", "chain.toml", "--only", "pretrain/mae", "--data-root", "data")
    for given, width in ((["--smoke"], "own"), (["--smoke", "toy"], "toy")):
        done = Command(*line, *given)
        assert done.wait() == 0, done.communicate()
        assert Path(f"results/smoke/{width}/records/chain/pretrain/mae/seed0.json").is_file()
    assert Command(*line, "--smoke=huge").wait() == 2


def test_toy_encoders_are_small_and_own_ones_the_suites(tmp_path: Path) -> None:
    suite = load_suite("paper")
    toy = settings(smoked(suite, Smoke("toy", tmp_path, tmp_path)))["pretrain/lut-l/seed0"]
    own = settings(smoked(suite, Smoke("own", tmp_path, tmp_path)))["pretrain/lut-l/seed0"]
    assert (toy.encoder.image_size, toy.encoder.width) == (SIDE, 20)
    assert own.encoder == settings(suite)["pretrain/lut-l/seed0"].encoder


def test_messages_of_another_process_name_the_folders_that_the_command_was_given() -> None:
    apart = smoke_workspace(Workspace(Path("images"), Path("kept"), Path("results")), "toy")
    assert apart.unopened().options == apart.options == " --data-root images --runs kept"
