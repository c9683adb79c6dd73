"""A suite that extends another has its tables and its own, and repeats nothing that the other has run."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import Command
from filelock import FileLock
from reported import build_tables
from toy_runs import SCRATCH, TOY, defaults, in_processes, write_images

import lutbench
from lutbench import stages
from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_records
from lutbench.record_search import find_record, record_of
from lutbench.report.evidence import evidence
from lutbench.report.reference import reference_section
from lutbench.report.sections import View
from lutbench.run import Run, open_run
from lutbench.run_files import finished_folder, list_runs
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.workspace import Workspace

BASE = f"""{TOY}
{defaults("pretrain", batch=8)}
{defaults("finetune", batch=8)}
{defaults("knn")}
[pretrain.mae]
context_weight = 0.0
crop = "random"
[method.mae]
label = "MAE"
pretrain = "mae"
{SCRATCH}
[downstream.tuned]
kind = "finetune"
methods = ["mae"]
[downstream.trained]
kind = "finetune"
methods = ["scratch"]
layer_decay = 1.0
[downstream.near]
kind = "knn"
methods = ["mae"]
[shifted.dark]
path = "toy/val"
[robustness.all]
tasks = ["tuned"]
sets = ["dark"]
methods = ["mae"]
[analysis.inside]
data = "toy"
methods = ["mae"]
measures = ["attention"]
images = 6
workers = 0
"""
"""A pre-training and all that can be measured of it; nothing but MAE and training from scratch."""

MINE = """extends = "base.toml"
[method.mine]
label = "Mine"
scratch = true
encoder = "toy"
like = "mae"
"""
"""A row with random weights, in every table in which MAE has one."""

NEW = ["downstream/tuned/mine/seed0", "downstream/near/mine/seed0", "robustness/all/dark/mine/seed0"]
THEIRS = [
    "pretrain/mae/seed0", "downstream/tuned/mae/seed0", "downstream/trained/scratch/seed0", "downstream/near/mae/seed0",
    "robustness/all/dark/mae/seed0", "analysis/inside/mae/seed0",
]  # fmt: skip
RENAMED = {"analysis/inside/mine/seed0": "analysis/inside/untrained/seed0"}
"""What the base has run under another name: the encoder that the analysis adds has the new row's random weights."""


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def loaded(folder: Path, name: str = "mine", overrides: Sequence[str] = ()) -> LoadedSuite:
    return load_suite(str(folder / f"{name}.toml"), overrides)


def refused(folder: Path, name: str = "mine", overrides: Sequence[str] = ()) -> str:
    with pytest.raises(UserError) as error:
        loaded(folder, name, overrides)
    return str(error.value)


def rows(suite: LoadedSuite, task: str) -> list[str]:
    return [run.method for run in suite.runs if f"{run.stage}.{run.task}" == task]


def test_a_row_that_is_like_none_is_in_no_table_of_the_base_and_the_others_are_counted(tmp_path: Path) -> None:
    mine = MINE + '[downstream.own]\nkind = "knn"\ndata = "toy"\nneighbours = 3\n'
    written(tmp_path, base=BASE, mine=mine, alone=mine.replace('like = "mae"', 'like = "none"'))
    joining, alone = loaded(tmp_path), loaded(tmp_path, "alone")
    assert {run.name for run in joining.runs if run.method == "mine"} >= {*NEW, "downstream/own/mine/seed0"}
    assert [run.name for run in alone.runs if run.method == "mine"] == ["downstream/own/mine/seed0"]
    base = {run.name for run in loaded(tmp_path, "base").runs}
    assert {run.name for run in alone.runs if run.task != "own"} == base
    assert joining.joined == (
        '1 method of this file is added to 4 tables of base; like = "none" in [method.NAME] prevents it.'
    )
    assert alone.joined == ""


def test_a_table_is_merged_setting_by_setting_and_a_list_replaces(tmp_path: Path) -> None:
    written(tmp_path, base=BASE)
    changes = "[pretrain.mae]\nepochs = 2\n[downstream.trained]\nlayer_decay = 0.9\n[encoder.toy]\ndepth = 1\n"
    written(tmp_path, mine=f'extends = "base.toml"\nseeds = [3, 4]\n{changes}')
    suite = loaded(tmp_path)
    same = loaded(
        tmp_path,
        "base",
        ["seeds=[3, 4]", "pretrain.mae.epochs=2", "downstream.trained.layer_decay=0.9", "encoder.toy.depth=1"],
    )
    assert [(run.name, run.recipe) for run in suite.runs] == [(run.name, run.recipe) for run in same.runs]
    assert {run.suite for run in suite.runs} == {"mine"}
    about = "Extends base, described as:\n\nfor tests\n"
    assert (suite.config.title, suite.config.about, suite.config.extends) == ("toy", about, ["base"])
    assert (suite.given, suite.name) == (str(tmp_path / "mine.toml"), "mine")


def test_title_and_about_are_its_own_and_pairs_are_added(tmp_path: Path) -> None:
    written(tmp_path, base=f'compare = [["mae", "scratch"]]\n{BASE}')
    own = 'title = "Mine"\nabout = "With mine."\ncompare = [["mine", "mae"], ["mae", "scratch"]]\n'
    written(tmp_path, mine=own + MINE)
    config = loaded(tmp_path).config
    assert (config.title, config.about) == ("Mine", "With mine.")
    assert config.compare == [["mae", "scratch"], ["mine", "mae"]]
    written(tmp_path, mine=MINE)
    assert loaded(tmp_path).config.compare == [["mae", "scratch"]], "none is proposed"


def test_a_suite_of_the_package_is_extended_by_name_from_any_folder(tmp_path: Path) -> None:
    written(tmp_path, mine='extends = "small"\n[method.mine]\ntimm = true\nencoder = "ti"\n')
    suite, base = loaded(tmp_path), load_suite("small")
    without = [(run.name, run.recipe) for run in suite.runs if run.method != "mine"]
    assert without == [(run.name, run.recipe) for run in base.runs]
    added = {f"{run.stage}.{run.task}" for run in suite.runs} - {
        f"{run.stage}.{run.task}" for run in suite.runs if run.method == "mine"
    }
    from_scratch = {f"downstream.{name}-scratch" for name in ("caltech101", "flowers17", "camvid")}
    assert added == {*from_scratch, *(f"pretrain.{run.task}" for run in base.runs if run.stage == "pretrain")}
    assert [run.seed for run in suite.runs if run.method == "mine"][:3] == [0, 1, 2]


def test_a_new_row_joins_the_lists_that_have_a_row_like_it(tmp_path: Path) -> None:
    written(tmp_path, base=BASE, mine=MINE.replace('like = "mae"', ""))
    suite = loaded(tmp_path)
    assert rows(suite, "downstream.trained") == ["scratch", "mine"]
    assert rows(suite, "downstream.tuned") == ["mae"]
    assert rows(suite, "robustness.all/dark") == ["mae"], "its tasks do not fine-tune it"
    assert rows(suite, "analysis.inside") == ["mae", "untrained"]
    weights = (
        "[pretrain.more]\nepochs = 3\n[method.more]\npretrain = 'more'\n[method.tuned]\nfinetuned = 'tuned/more'\n"
    )
    written(tmp_path, mine=f'extends = "base.toml"\n{weights}')
    suite = loaded(tmp_path)
    assert rows(suite, "downstream.trained") == ["scratch"]
    assert [rows(suite, task) for task in ("downstream.tuned", "downstream.near", "robustness.all/dark")] == [
        ["mae", "more"]
    ] * 3
    assert rows(suite, "analysis.inside") == ["mae", "more", "tuned", "untrained"]


def test_a_new_row_joins_no_curve_of_snapshots_that_its_run_does_not_keep(tmp_path: Path) -> None:
    way = '[downstream.way]\nkind = "knn"\ndata = "toy"\nmethods = ["mae"]\nat = [0.5]\n[shifted.dark]'
    kept = BASE.replace("[shifted.dark]", way).replace("[pretrain.mae]", "[pretrain.mae]\nsnapshots = [0.5]")
    more = 'extends = "base.toml"\n[pretrain.more]\nepochs = 3\n[method.more]\npretrain = "more"\nlike = "mae"\n'
    suite = loaded(written(tmp_path, base=kept, mine=more))
    assert rows(suite, "downstream.way") == ["mae", "mae-at-0.5"]
    assert "more" in rows(suite, "downstream.near")
    suite = loaded(written(tmp_path, mine=more.replace("epochs = 3", "epochs = 3\nsnapshots = [0.5]")))
    assert rows(suite, "downstream.way") == ["mae", "mae-at-0.5", "more", "more-at-0.5"]


def test_a_new_row_joins_the_robustness_of_probes_too(tmp_path: Path) -> None:
    probed = BASE.replace(
        "[shifted.dark]", '[downstream.line]\nkind = "linear"\ndata = "toy"\nmethods = ["mae"]\n[shifted.dark]'
    )
    written(tmp_path, base=probed.replace('tasks = ["tuned"]', 'tasks = ["tuned", "line"]'), mine=MINE)
    suite = loaded(tmp_path)
    assert rows(suite, "robustness.all/dark") == rows(suite, "robustness.all/dark/linear-probe") == ["mae", "mine"]


def test_a_row_like_none_joins_every_list_that_it_can_be_run_for(tmp_path: Path) -> None:
    base = BASE.replace("[downstream.trained]", "[downstream.also]").replace('methods = ["scratch"]', "")
    base = base.replace('[method.scratch]\nscratch = true\nencoder = "toy"\n', "")
    written(tmp_path, base=base, mine=MINE.replace('like = "mae"', ""))
    suite = loaded(tmp_path)
    for task in ("downstream.tuned", "downstream.also", "downstream.near", "robustness.all/dark"):
        assert rows(suite, task) == ["mae", "mine"]


def test_a_list_that_the_extending_file_or_set_gives_stays_as_it_is(tmp_path: Path) -> None:
    given = '[downstream.near]\nmethods = ["scratch"]\n'
    written(tmp_path, base=BASE, mine=MINE + given)
    assert rows(loaded(tmp_path), "downstream.near") == ["scratch"]
    assert rows(loaded(tmp_path), "downstream.tuned") == ["mae", "mine"]
    without = loaded(tmp_path, overrides=['downstream.tuned.methods=["mae"]'])
    assert rows(without, "downstream.tuned") == rows(without, "robustness.all/dark") == ["mae"]
    written(tmp_path, third='extends = "mine.toml"\n[robustness.all]\nmethods = ["mae"]\n')
    third = loaded(tmp_path, "third")
    assert rows(third, "robustness.all/dark") == ["mae"]
    assert rows(third, "downstream.tuned") == ["mae", "mine"]
    assert third.config.extends == ["mine", "base"]


def test_of_tables_for_one_architecture_each_a_row_joins_its_own(tmp_path: Path) -> None:
    written(tmp_path, b='extends = "paper"\n[method.other]\ntimm = true\nencoder = "b"\n')
    suite = loaded(tmp_path, "b")
    tunings = [run.task for run in suite.runs if run.method == "other" and run.task.startswith("finetune")]
    assert tunings == ["finetune-b", "finetune-b-1percent", "finetune-b-10percent"]
    assert "other" in rows(suite, "robustness.imagenet/imagenet-a")
    foreign = '[encoder.x]\nmodel = "vit_base_patch14_dinov2"\n[method.other]\ntimm = true\nencoder = "x"\n'
    written(tmp_path, b=f'extends = "paper"\n{foreign}')
    message = refused(tmp_path, "b")
    assert message.startswith("method.other: its encoder differs from all those")
    assert "like = 'lut-s'" in message
    written(tmp_path, b=f'extends = "paper"\n{foreign}like = "mae-l"\n')
    assert "finetune-l" in {run.task for run in loaded(tmp_path, "b").runs if run.method == "other"}


def test_new_classifiers_join_the_tables_that_have_some(tmp_path: Path) -> None:
    classifier = '[classifier.{}]\nmodel = "deit_tiny_patch16_224"\n'
    base = BASE + '[robustness.theirs]\nsets = ["dark"]\nclassifiers = ["a"]\n' + classifier.format("a")
    written(tmp_path, base=base.replace('sets = ["dark"]\nmethods', 'sets = ["dark"]\nclassifiers = []\nmethods'))
    written(tmp_path, mine=f'extends = "base.toml"\n{classifier.format("b")}')
    suite = loaded(tmp_path)
    assert rows(suite, "robustness.theirs/dark") == ["a", "b"]
    assert rows(suite, "robustness.all/dark") == ["mae"]


def test_like_is_for_new_rows_and_names_one_that_is_there(tmp_path: Path) -> None:
    written(tmp_path, base=BASE, mine=MINE.replace('"mae"', '"mea"'))
    assert "method.mine.like: there is no method 'mea' in the extended suite. Did you mean 'mae'?" in refused(tmp_path)
    written(tmp_path, base=BASE.replace("[method.scratch]", '[method.scratch]\nlike = "mae"'))
    assert "method.scratch.like: only for a new method of a suite that extends another" in refused(tmp_path, "base")


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ('"smal"', "there is no suite 'smal'. Did you mean 'small'?"),
        ('"bass.toml"', "there is no suite 'bass.toml'. Did you mean 'base.toml'?"),
        ('"base"', "there is no suite 'base'. Did you mean 'base.toml'?"),
        ('"mine.toml"', "a suite cannot extend itself, found mine -> mine"),
        ('"other.toml"', "a suite cannot extend itself, found mine -> other -> third -> mine"),
        ('"below/mine.toml"', "has the same name as a suite that extends it (mine -> mine)"),
        ("3", "expected the name or file of a suite, or a list of these, found 3"),
        ("[]", "expected the name or file of a suite, or a list of these, found []"),
        ('["base.toml", "../{name}/base.toml"]', "a suite appears twice"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, extends: str, message: str) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", mine=BASE)
    written(tmp_path, base=BASE, other='extends = "third.toml"', third='extends = "mine.toml"')
    written(tmp_path, mine=f"extends = {extends.format(name=tmp_path.name)}\n")
    assert message in refused(tmp_path)


def test_set_says_nothing_of_what_a_suite_extends(tmp_path: Path) -> None:
    written(tmp_path, base=BASE, mine=MINE)
    assert "extends can only be set in the suite file" in refused(tmp_path, overrides=["extends=tiny"])
    assert "Did you mean 'extends'?" in refused(written(tmp_path, mine=MINE.replace("extends", "extend")))


def test_what_extends_a_pipeline_is_one_unless_set_says_so(tmp_path: Path) -> None:
    written(tmp_path, base=BASE, mine=MINE)
    assert loaded(tmp_path).config.kind == "pipeline"
    assert loaded(tmp_path, overrides=["kind=exploration"]).config.kind == "exploration"
    written(tmp_path, mine=f'kind = "exploration"\n{MINE}')
    assert "the suite extends base, a pipeline, whose numbers are no evidence" in refused(tmp_path)
    exploration = BASE.replace('"pipeline"', '"exploration"')
    written(tmp_path, sound=exploration, mine='extends = ["sound.toml", "base.toml"]')
    assert loaded(tmp_path).config.kind == "pipeline", "one of several is"
    assert loaded(written(tmp_path, mine='extends = "sound.toml"')).config.kind == "exploration"
    assert loaded(written(tmp_path, mine='extends = "sound.toml"\nkind = "pipeline"')).config.kind == "pipeline"


def test_of_several_suites_all_is_taken_and_rows_stay_in_their_own(tmp_path: Path) -> None:
    other = MINE.replace("mine", "yours").replace("Mine", "Yours")
    written(tmp_path, base=BASE, mine=f'title = "Mine"\n{MINE}', yours=other)
    written(tmp_path, both='extends = ["mine.toml", "yours.toml"]')
    both = loaded(tmp_path, "both")
    assert rows(both, "downstream.tuned") == rows(both, "robustness.all/dark") == ["mae", "mine", "yours"]
    assert both.config.title == "Mine + toy"
    assert both.config.extends == ["mine", "yours", "base"]


@pytest.mark.parametrize(
    ("yours", "settles", "message"),
    [
        ("[pretrain.mae]\nepochs = 2\n", "[pretrain.mae]\nepochs = 1\n", "pretrain.mae.epochs is not given in mine and 2 in yours"),
        ("[defaults.knn]\nneighbours = 3\n", "[defaults.knn]\nneighbours = 3\n", "defaults.knn.neighbours is not given in mine and 3"),
        ("seeds = [1]\n", "seeds = [0]\n", "seeds is [0] in mine and [1] in yours"),
        ('[method.mine]\nscratch = true\nencoder = "toy"\n', "[method.mine]\nlabel = 'M'\nlike = 'mae'\n", "method.mine.label is 'Mine' in"),
    ],
)  # fmt: skip
def test_two_suites_that_define_a_name_differently_need_one_that_settles_it(
    tmp_path: Path, yours: str, settles: str, message: str
) -> None:
    first, rest = (yours, "") if yours.startswith("seeds") else ("", yours)
    written(tmp_path, base=BASE, mine=MINE, yours=f'{first}extends = "base.toml"\n{rest}')
    written(tmp_path, both='extends = ["mine.toml", "yours.toml"]\n')
    found = refused(tmp_path, "both")
    assert found.startswith(f"{tmp_path}/both.toml: extends: mine and yours contradict each other: ")
    assert message in found
    first, rest = (settles, "") if settles.startswith("seeds") else ("", settles)
    written(tmp_path, both=f'{first}extends = ["mine.toml", "yours.toml"]\n{rest}')
    assert loaded(tmp_path, "both").runs


# --- Runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, the suites, and all runs of the base; not to be written to."""
    folder = written(tmp_path_factory.mktemp("extends"), base=BASE, mine=MINE)
    write_images(folder)
    run_suite(loaded(folder, "base"), [], [], workspace(folder))
    return folder


@pytest.fixture
def there(base: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(base, tmp_path / "there"))


def workspace(folder: Path, results: str = "results") -> Workspace:
    return Workspace(folder, folder / "runs", folder / results)


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are performed, as they are."""
    names: list[str] = []
    perform = stages.perform

    def noted(run: Run) -> None:
        names.append(run.name)
        perform(run)

    monkeypatch.setattr(stages, "perform", noted)
    return names


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below a folder, but locks."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def opened(folder: Path, name: str, suite: str = "mine") -> Run:
    found = loaded(folder, suite)
    return open_run(found, found.run(name), workspace(folder))


def test_only_the_new_row_is_run_and_all_records_are_brought(there: Path, performed: list[str]) -> None:
    before = state_of(there / "runs/base"), state_of(there / "results/records/base")
    run_suite(loaded(there), [], [], workspace(there))
    assert performed == NEW
    assert (state_of(there / "runs/base"), state_of(there / "results/records/base")) == before, "nothing is touched"
    records, made = (read_records(there / "results", suite) for suite in ("mine", "base"))
    names = {name: name for name in THEIRS} | RENAMED
    assert set(records) == {*NEW, *names}
    assert {name: record.made_as for name, record in records.items() if record.made_as} == {
        name: f"base/{there}" for name, there in names.items()
    }
    for name, theirs in names.items():
        kept = {"suite", "made_as", "run", "method"}
        assert records[name].model_dump(exclude=kept) == made[theirs].model_dump(exclude=kept)
    run_suite(loaded(there), [], [], workspace(there))
    assert performed == NEW, "and then nothing"


def test_the_tables_have_the_rows_of_both_and_say_what_was_made_as_what(there: Path) -> None:
    run_suite(loaded(there), [], [], workspace(there))
    tables, _, calibrated = build_tables(loaded(there), there / "results")["main.md"].partition("## Calibration")
    assert all(f"| tuned | {row}" in " ".join(calibrated.split()) for row in ("MAE", "Mine"))
    (tuned,) = [line for line in tables.splitlines() if line.startswith("| tuned") and "MAE" in line]
    (mine,) = [line for line in tables.splitlines() if line.startswith("| tuned") and "Mine" in line]
    theirs = build_tables(loaded(there, "base"), there / "results")["main.md"]
    assert tuned in theirs
    assert mine not in theirs
    assert "reused from `base/downstream/tuned/mae/seed0`" in calibrated
    assert "stale" not in (tables + calibrated).lower()
    assert "reused from" not in theirs


def test_the_command_line_runs_shows_and_plans_it(there: Path) -> None:
    options = ["--data-root", str(there), "--runs", str(there / "runs"), "--results", str(there / "fresh")]
    changed = [*options, "--set", "pretrain.mae.epochs=2", "--only", "pretrain/mae"]
    commands = [("status", options), ("plan", options), ("run", options), ("tables", options[-2:]), ("run", changed)]
    before = state_of(there / "runs/base")
    answers = []
    for name, more in commands:
        done = Command(name, str(there / "mine.toml"), *more)
        assert done.wait() == 0, done.communicate()
        answers.append(done.communicate()[0])
    status, plan, run, tables, anew = answers
    assert status.count("finished as base/") == len(THEIRS) + len(RENAMED)
    assert status.count("missing") == len(NEW)
    assert "3 runs to do, 7 finished" in plan
    assert "pretrain/mae/seed0: finished already, as base/pretrain/mae/seed0; total loss" in run
    assert f"({opened(there, 'pretrain/mae/seed0', 'base').folder})" in run
    assert "MAE" in tables
    assert "Mine" in tables
    assert "finished already" not in anew
    assert len(read_records(there / "fresh", "mine")) == 10
    assert state_of(there / "runs/base") == before


def test_one_run_alone_reads_the_weights_where_they_are(there: Path, performed: list[str]) -> None:
    written(there, mine=MINE + '[downstream.nearer]\nkind = "knn"\nmethods = ["mae"]\nneighbours = 3\n')
    run = opened(there, "downstream/nearer/mae/seed0")
    made = opened(there, "pretrain/mae/seed0", "base").folder
    assert run.weights == made / "encoder.safetensors"
    assert run.needs is not None
    assert run.needs.folder != made
    run_suite(loaded(there), [], ["nearer"], workspace(there))
    assert performed == ["downstream/nearer/mae/seed0"]
    kept = [path.name for path in (there / "runs/mine/pretrain").rglob("*") if path.is_file()]
    assert set(kept) <= {"taken.json", ".lock"}, "only where the pre-training is"


@pytest.mark.parametrize(
    ("only", "brought"),
    [
        ("near", ["downstream/near/mae/seed0", "downstream/near/mine/seed0", "pretrain/mae/seed0"]),
        ("nearer", ["downstream/nearer/mae/seed0", "pretrain/mae/seed0"]),
        ("all/dark/mae", ["downstream/tuned/mae/seed0", "pretrain/mae/seed0", "robustness/all/dark/mae/seed0"]),
    ],
)
def test_the_records_of_what_a_run_starts_from_are_brought_with_it(there: Path, only: str, brought: list[str]) -> None:
    written(there, mine=MINE + '[downstream.nearer]\nkind = "knn"\nmethods = ["mae"]\nneighbours = 3\n')
    run_suite(loaded(there), [], [only], workspace(there))
    records = read_records(there / "results", "mine")
    assert sorted(records) == brought
    assert records["pretrain/mae/seed0"].made_as == "base/pretrain/mae/seed0"
    assert not [entry.stale for entry in View.read(loaded(there), there / "results").entries if entry.stale]
    run_suite(loaded(there, "base"), [], ["near"], workspace(there, "fresh"))
    assert sorted(read_records(there / "fresh", "base")) == ["downstream/near/mae/seed0", "pretrain/mae/seed0"]


def test_a_record_that_cannot_be_brought_is_told_and_keeps_no_run_from_being_done(
    there: Path, performed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(there, mine=MINE + '[downstream.nearer]\nkind = "knn"\nmethods = ["mae"]\nneighbours = 3\n')

    restore = Run.restore_record

    def refuse(run: Run) -> None:
        if run.name.startswith("pretrain"):
            raise UserError("its file is damaged")
        restore(run)

    monkeypatch.setattr(Run, "restore_record", refuse)
    run_suite(loaded(there), [], ["nearer"], workspace(there))
    assert performed == ["downstream/nearer/mae/seed0"]
    assert "pretrain/mae/seed0: its file is damaged" in capsys.readouterr().out


def test_a_short_name_that_several_suites_have_is_the_run_of_the_one_that_made_it(there: Path) -> None:
    results, runs = there / "results", there / "runs"
    run_suite(loaded(there), [], [], workspace(there))
    written(there, another=MINE)
    run_suite(loaded(there, "another"), [], [], workspace(there))
    for short, run in (("near/mae", "downstream/near/mae/seed0"), ("pretrain/mae", "pretrain/mae/seed0")):
        record = find_record(short, results)
        assert (record.suite, record.run, record.made_as) == ("base", run, None)
        found = record_of(record.identity, results)
        assert found is not None
        assert (found.suite, found.run) == ("base", run)
        assert finished_folder(short, runs).resolve() == opened(there, run, "base").folder.resolve()
    assert finished_folder("mine/pretrain/mae", runs) == opened(there, "pretrain/mae/seed0", "base").folder.resolve()
    model, _ = lutbench.encoder("tuned/mae", runs)
    assert model.class_names
    assert len(lutbench.outcomes("near/mae", results))
    shutil.rmtree(results / "records/base")
    assert find_record("near/mae", results).suite == "another", "the first"
    with pytest.raises(UserError, match=r"'near' matches \d records"):
        find_record("near", results)
    with pytest.raises(UserError, match=r"'near' matches \d runs: another/downstream/near/mae/seed0, .*Give more"):
        finished_folder("near", runs)
    with pytest.raises(UserError, match=r"no finished run 'near/mea' .* Finished runs: another/"):
        finished_folder("near/mea", runs)


def test_a_model_card_is_of_the_suite_that_made_the_numbers(there: Path) -> None:
    run_suite(loaded(there), [], [], workspace(there))
    found = evidence(opened(there, "pretrain/mae/seed0", "base").folder, there / "results")
    assert found.suites == ["base"]
    assert len(found.results) == 3


def test_again_runs_anew_in_a_folder_of_its_own(
    there: Path, performed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(there / "runs/base")
    run_suite(loaded(there), [], ["tuned/mae"], workspace(there), ["tuned/mae"])
    assert performed == ["downstream/tuned/mae/seed0"]
    assert state_of(there / "runs/base") == before
    run = opened(there, performed[0])
    assert run.finished_in == run.folder
    assert run.status().made_as == ""
    assert finished_folder(f"mine/{performed[0]}", there / "runs") == run.folder
    record = run.record(there / "results")
    assert record is not None
    assert record.made_as is None
    made = opened(there, performed[0], "base").record(there / "results")
    assert made is not None
    assert record.measurements == made.measurements
    assert "runs again in its own folder; base/downstream/tuned/mae/seed0 stays in" in capsys.readouterr().out


def test_what_was_taken_is_found_by_its_name_here(there: Path) -> None:
    run_suite(loaded(there), [], ["pretrain/mae"], workspace(there))
    made = opened(there, "pretrain/mae/seed0", "base").folder
    assert finished_folder("mine/pretrain/mae/seed0", there / "runs") == made.resolve()
    run = opened(there, "pretrain/mae/seed0")
    assert finished_folder(str(run.folder), there / "runs") == made.resolve()
    shutil.rmtree(made)
    with pytest.raises(UserError, match="There is no finished run 'mine/pretrain/mae/seed0'"):
        finished_folder("mine/pretrain/mae/seed0", there / "runs")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("end", "its hash does not match its seal"),
        ("weights", "final weights: missing, or the sha256 differs from the one in finished.json"),
        ("no weights", "final weights: missing"),
        ("decoder", "decoder.safetensors: missing, or the sha256 differs from the one in finished.json"),
        ("record", "it has no intact record"),
        ("outcomes", "damaged or changed"),
    ],
)
def test_a_damaged_run_elsewhere_is_not_taken_and_said(
    there: Path, performed: list[str], capsys: pytest.CaptureFixture[str], damage: str, message: str
) -> None:
    name = "downstream/tuned/mae/seed0" if damage == "outcomes" else "pretrain/mae/seed0"
    made = opened(there, name, "base").folder
    if damage == "end":
        values = json.loads((made / "finished.json").read_text())
        (made / "finished.json").write_text(json.dumps(values | {"sources": {}}))
    elif damage == "no weights":
        (made / "encoder.safetensors").unlink()
    elif damage in ("weights", "decoder"):
        file = made / f"{'encoder' if damage == 'weights' else 'decoder'}.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "record":
        shutil.rmtree(made / "records")
        shutil.rmtree(there / "results")
    else:
        next((made / "records").rglob("*.npz")).write_bytes(b"")
    before = state_of(made)
    run_suite(loaded(there), [], [name], workspace(there))
    assert performed == [name]
    assert state_of(made) == before
    told = " ".join(capsys.readouterr().out.split())
    assert message in told
    assert "So that run is not reused." in told
    run = opened(there, name)
    assert run.finished_in == run.folder


def test_a_record_of_the_results_will_do_where_that_in_the_folder_is_gone(there: Path, performed: list[str]) -> None:
    made = opened(there, "pretrain/mae/seed0", "base").folder
    shutil.rmtree(made / "records")
    run_suite(loaded(there), [], ["pretrain/mae"], workspace(there))
    assert performed == []
    assert read_records(there / "results", "mine")["pretrain/mae/seed0"].made_as == "base/pretrain/mae/seed0"


def test_an_interrupted_run_elsewhere_is_not_gone_on_with(there: Path, performed: list[str]) -> None:
    made = opened(there, "pretrain/mae/seed0", "base").folder
    (made / "finished.json").unlink()
    before = state_of(made)
    assert opened(there, "pretrain/mae/seed0").status().state is RunState.MISSING
    run_suite(loaded(there), [], ["pretrain/mae"], workspace(there))
    assert performed == ["pretrain/mae/seed0"]
    assert state_of(made) == before


def test_one_that_another_command_is_at_work_on_is_waited_for(there: Path, performed: list[str]) -> None:
    made = opened(there, "pretrain/mae/seed0", "base").folder
    (made / "finished.json").unlink()
    (made.parent / ".holder.json").write_text('{"process": 7, "machine": "there", "since": "noon"}')
    with FileLock(made.parent / ".lock"), pytest.raises(UserError) as error:
        run_suite(loaded(there), [], ["pretrain/mae"], workspace(there))
    assert f"is being run already, in {made}, by process 7 on there since noon" in str(error.value)
    assert performed == []
    run_suite(loaded(there), [], ["pretrain/mae"], workspace(there))  # it was killed
    assert performed == ["pretrain/mae/seed0"]


def test_a_run_does_not_wait_for_itself_where_its_folder_has_two_paths(there: Path, performed: list[str]) -> None:
    (opened(there, "pretrain/mae/seed0", "base").folder / "finished.json").unlink()
    (there / "runs/alias").symlink_to(there / "runs/base")
    run_suite(loaded(there, "base"), [], ["pretrain/mae"], workspace(there))
    assert performed == ["pretrain/mae/seed0"]


def test_within_a_suite_what_has_two_names_is_run_once(there: Path, performed: list[str]) -> None:
    shutil.rmtree(there / "runs")
    twice = '[pretrain.mae2]\ncontext_weight = 0.0\ncrop = "random"\n[method.mae2]\npretrain = "mae2"\n'
    written(there, base=BASE.replace('["mae"]', '["mae", "mae2"]') + twice)
    run_suite(loaded(there, "base"), ["pretrain", "downstream"], ["mae", "mae2"], workspace(there, "fresh"))
    assert performed == ["pretrain/mae/seed0", "downstream/tuned/mae/seed0", "downstream/near/mae/seed0"]
    records = read_records(there / "fresh", "base")
    assert records["downstream/near/mae2/seed0"].made_as == "base/downstream/near/mae/seed0"
    assert len(records) == 6
    assert opened(there, "pretrain/mae2/seed0", "base").status().made_as == "base/pretrain/mae/seed0"


def test_folders_of_other_people_are_read_only(there: Path, performed: list[str]) -> None:
    (there / "theirs").mkdir()
    (there / "runs/base").rename(there / "theirs/base")
    (there / "runs/other").symlink_to(there / "theirs/base")  # under another name, too
    shutil.rmtree(there / "results")
    folders = [path for path in (there / "theirs").rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        run_suite(loaded(there), [], [], workspace(there))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert performed == NEW
    assert read_records(there / "results", "mine")["pretrain/mae/seed0"].made_as == "base/pretrain/mae/seed0"


def test_two_processes_take_it_alike(there: Path) -> None:
    def run() -> list[str]:
        run_suite(loaded(there), ["pretrain", "downstream"], ["mae"], workspace(there))
        return [path.name for path in (there / "runs/mine").rglob("finished.json")]

    assert in_processes(run, 2) == [[], []]
    assert len(read_records(there / "results", "mine")) == 3


def test_runs_are_listed_once_for_a_command_and_never_opened(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, seen = [], []
    scan = os.scandir

    def listed(runs: Path) -> dict[str, list[Path]]:
        calls.append(runs)
        monkeypatch.setattr(os, "scandir", lambda path: (seen.append(Path(path)), scan(path))[1])
        found = list_runs(runs)
        monkeypatch.setattr(os, "scandir", scan)
        return found

    monkeypatch.setattr("lutbench.workspace.list_runs", listed)
    run_suite(loaded(there), [], [], workspace(there))
    assert len(calls) == 1
    made = [opened(there, name, "base").folder for name in THEIRS]
    assert {folder.parent for folder in made} < set(seen)
    assert not set(made) & set(seen)


def test_folders_that_were_set_aside_and_other_names_are_no_runs(tmp_path: Path) -> None:
    home, name = tmp_path / "a/downstream/seed0/seed1/seed2", "0123456789ab"
    for folder in (home / name, home / f"{name}-20260101T000000", home / "x", tmp_path / "a/other/t/m/seed0" / name):
        (folder / "checkpoints").mkdir(parents=True)
    assert list_runs(tmp_path) == {name: [home / name]}
    assert list_runs(tmp_path / "nothing") == {}


def test_rows_of_the_base_are_compared_with_its_reference_records(there: Path) -> None:
    run_suite(loaded(there), [], [], workspace(there))
    shutil.copytree(there / "results/records/base", there / "results/reference/records/base")
    section = reference_section(View.read(loaded(there), there / "results"), there / "results")
    assert section is not None
    assert section.legend.startswith("6 of 6 records agree with the reference: 6 same bits.")
    assert reference_section(View.read(loaded(there), there / "results"), there / "results/none") is None
