"""A sweep makes ordinary runs, takes those that are there, and is refused before anything is run where it makes no sense."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_runs import TOY, defaults, write_images

from lutbench.adding import _rows
from lutbench.errors import UserError
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite, Study
from lutbench.run import open_run
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

SUITE = f"""seeds = [0, 1]
compare = [["lut", "mae"]]
{TOY}
[encoder.wide]
model = "vit_tiny_patch16_224"
image_size = 16
patch_size = 4
width = 32
depth = 2
heads = 2
[data.other]
path = "other"
undecodable = "skip"
{defaults("pretrain", batch=8)}
{defaults("knn")}
{defaults("finetune", batch=8)}
[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
crop = "random"
[pretrain.mae-crop]
context_weight = 0.0
[method.lut]
label = "LUT"
pretrain = "lut"
published = "LUT"
[method.mae]
label = "MAE"
pretrain = "mae"
[method.mae-crop]
label = "MAE, LUT's crop"
pretrain = "mae-crop"
[downstream.near]
kind = "knn"
title = "k-NN"
published = "imagenet-1k/knn/top-1"
methods = ["lut", "mae"]
[downstream.all]
kind = "knn"
neighbours = 5
[downstream.tuned]
kind = "finetune"
methods = ["lut", "mae"]
[shifted.dark]
path = "toy/val"
[robustness.shifted]
tasks = ["tuned"]
sets = ["dark"]
[analysis.inside]
data = "toy"
measures = ["attention"]
images = 6
workers = 0
"""

WEIGHT = """
[sweep.weight]
of = "pretrain.lut"
context_weight = [0, 0.05, 0.25, 1]
tasks = ["near", "inside"]
"""


def written(folder: Path, sweep: str, name: str = "toy", suite: str = SUITE) -> str:
    (folder / f"{name}.toml").write_text(suite + sweep)
    return str(folder / f"{name}.toml")


def swept(folder: Path, sweep: str, *changes: str) -> LoadedSuite:
    return load_suite(written(folder, sweep), changes)


def refused(folder: Path, sweep: str, *changes: str) -> str:
    with pytest.raises(UserError) as error:
        swept(folder, sweep, *changes)
    return str(error.value)


def of_task(loaded: LoadedSuite, task: str) -> list[str]:
    return list(dict.fromkeys(run.method for run in loaded.runs if f"{run.stage}.{run.task}" == task))


def rows(study: Study, column: str) -> list[str]:
    """The methods, or the tasks of a sweep of one, by point: of the first series."""
    found = (next(row for (of, _), row in point.rows.items() if of == column) for point in study.points)
    return [task if task != column else method for _, task, method in found]


def test_a_value_makes_a_run_a_method_and_rows_of_the_tasks_that_it_names(tmp_path: Path) -> None:
    loaded = swept(tmp_path, WEIGHT)
    made = loaded.run("pretrain/weight-0.05/seed1").recipe
    assert made == loaded.run("pretrain/lut/seed1").recipe.model_copy(update={"context_weight": 0.05})
    assert loaded.run("downstream/near/weight-0.05/seed1").needs == "pretrain/weight-0.05/seed1"
    assert loaded.run("analysis/inside/weight-1/seed0").needs == "pretrain/weight-1/seed0"
    row = loaded.config.method["weight-0.05"]
    assert (row.label, row.published) == ("LUT, context weight 0.05", "")


def test_a_value_that_is_there_already_is_the_run_that_is_there(tmp_path: Path) -> None:
    loaded = swept(tmp_path, WEIGHT)
    assert {run.task for run in loaded.runs if run.stage == "pretrain"} == {
        "lut",
        "mae",
        "mae-crop",
        "weight-0.05",
        "weight-1",
    }
    (study,) = loaded.studies
    assert (study.name, study.title, study.axes, study.base) == (
        "sweep.weight",
        "LUT: context weight",
        ("context_weight",),
        2,
    )
    assert [dict(point.values) for point in study.points] == [{"context_weight": v} for v in (0, 0.05, 0.25, 1)]
    assert rows(study, "near") == ["mae-crop", "weight-0.05", "lut", "weight-1"]


def test_a_row_that_pools_otherwise_stands_for_no_point(tmp_path: Path) -> None:
    pooled = SUITE.replace('pretrain = "mae-crop"', 'pretrain = "mae-crop"\npool = "class"')
    sweep = '[sweep.weight]\nof = "pretrain.lut"\ncontext_weight = [0, 0.25]\ntasks = ["near"]\n'
    (tmp_path / "toy.toml").write_text(pooled + sweep)
    suite = load_suite(str(tmp_path / "toy.toml"))
    nearest = {run.method: run for run in suite.runs if (run.task, run.seed) == ("near", 0)}
    assert nearest["weight-0"].needs == "pretrain/mae-crop/seed0"
    assert {run.recipe.pooling for run in nearest.values()} == {"mean"}  # type: ignore[attr-defined]


def test_a_task_with_a_curve_on_the_way_is_swept_at_the_end(tmp_path: Path) -> None:
    way = SUITE.replace("[pretrain.lut]", "[pretrain.lut]\nsnapshots = [0.5]")
    task = '[downstream.way]\nkind = "knn"\nmethods = ["lut"]\nat = [0.5]\n'
    (tmp_path / "toy.toml").write_text(f'{way}{task}[sweep.k]\nof = "downstream.way"\nneighbours = [1, 20]\n')
    suite = load_suite(str(tmp_path / "toy.toml"))
    found = {(run.task, run.method) for run in suite.runs if run.task in ("way", "k-1", "k-20")}
    assert found == {("way", "lut"), ("way", "lut-at-0.5"), ("k-1", "lut")}


def test_every_other_run_is_as_without_the_sweep(tmp_path: Path) -> None:
    plain = load_suite(written(tmp_path, "", "plain"))
    loaded = swept(
        tmp_path, WEIGHT + '[sweep.size]\nof = "pretrain.lut"\nencoder = ["toy", "wide"]\ntasks = ["inside"]\n'
    )
    kept = [run for run in loaded.runs if run.row not in loaded.study_rows]
    assert [(run.name, run.recipe, run.needs) for run in kept] == [(r.name, r.recipe, r.needs) for r in plain.runs]
    assert of_task(loaded, "downstream.all") == ["lut", "mae", "mae-crop"], (
        "a table without methods has no row of a sweep"
    )
    assert of_task(loaded, "robustness.shifted/dark") == ["lut", "mae"]
    assert ("downstream", "near", "mae-crop") in loaded.study_rows, "it is there for the sweep alone"
    assert ("analysis", "inside", "mae-crop") not in loaded.study_rows


def test_a_run_comes_after_the_one_it_needs(tmp_path: Path) -> None:
    loaded = swept(
        tmp_path, WEIGHT + '[sweep.k]\nof = "downstream.near"\nneighbours = [1, 20]\nmethods = ["weight-1"]\n'
    )
    names = [run.name for run in loaded.runs]
    assert len(set(names)) == len(names)
    assert all(run.needs in names[:place] for place, run in enumerate(loaded.runs) if run.needs)


def test_a_grid_runs_every_combination_and_shares_what_another_sweep_has(tmp_path: Path) -> None:
    grid = '[sweep.grid]\nof = "pretrain.lut"\ncontext_weight = [0, 0.05, 0.25]\nmomentum = [0.9, 0.996]\ntasks = ["near"]\n'
    loaded = swept(tmp_path, WEIGHT + grid)
    study = loaded.studies[1]
    assert [tuple(point.values[axis] for axis in study.axes) for point in study.points] == [
        (0, 0.9), (0, 0.996), (0.05, 0.9), (0.05, 0.996), (0.25, 0.9), (0.25, 0.996),
    ]  # fmt: skip
    assert rows(study, "near") == ["mae-crop", "mae-crop", "grid-0.05-0.9", "weight-0.05", "grid-0.25-0.9", "lut"]
    assert study.base == 5


@pytest.mark.parametrize(
    ("axis", "made"),
    [
        ('encoder = ["toy", "wide"]', ["lut", "x-wide"]),
        ('crop = ["simple", "random"]', ["lut", "x-random"]),
        ("both_directions = [true, false]", ["lut", "x-no"]),
        ("betas = [[0.9, 0.95], [0.9, 0.999]]", ["lut", "x-0.9-0.999"]),
        ('data = ["toy", "other"]', ["lut", "x-other"]),
        ('framework = ["mae", "simmim"]', ["lut", "x-simmim"]),
        ("batch = [8, 16]", ["lut", "x-16"]),
        ("base_lr = [1e-5, 1.5e-4]", ["x-1e-05", "lut"]),
    ],
)
def test_an_axis_is_any_setting_of_the_run(tmp_path: Path, axis: str, made: list[str]) -> None:
    loaded = swept(tmp_path, f'[sweep.x]\nof = "pretrain.lut"\n{axis}\ntasks = ["near"]\n')
    assert rows(loaded.studies[0], "near") == made


def test_what_follows_from_a_value_follows_it(tmp_path: Path) -> None:
    loaded = swept(tmp_path, '[sweep.x]\nof = "pretrain.lut"\nframework = ["mae", "simmim"]\ntasks = ["near"]\n')
    assert loaded.run("pretrain/x-simmim/seed0").recipe.mask_ratio == 0.6  # type: ignore[attr-defined]


def test_a_sweep_of_a_task_makes_tasks_for_its_methods(tmp_path: Path) -> None:
    loaded = swept(tmp_path, '[sweep.k]\nof = "downstream.near"\nneighbours = [5, 20]\n')
    (study,) = loaded.studies
    assert (study.title, study.base) == ("k-NN: neighbours", 1)
    assert dict(study.points[1].rows) == {("near", m): ("downstream", "near", m) for m in ("lut", "mae")}
    assert rows(study, "near") == ["all", "lut"], "5 neighbours is what [downstream.all] has"
    named = swept(tmp_path, '[sweep.k]\nof = "downstream.near"\nneighbours = [7, 20]\nmethods = ["mae", "mae-crop"]\n')
    assert of_task(named, "downstream.k-7") == ["mae", "mae-crop"]
    assert named.config.downstream["k-7"].title == "k-NN, neighbours 7"
    assert named.config.downstream["k-7"].published == "", "what was published is by the task as it was"
    assert ("downstream", "near", "mae-crop") in named.study_rows


def test_a_sweep_of_an_analysis_adds_no_untrained_encoders(tmp_path: Path) -> None:
    loaded = swept(tmp_path, '[sweep.few]\nof = "analysis.inside"\nimages = [3, 6]\n')
    assert of_task(loaded, "analysis.few-3") == ["lut", "mae", "mae-crop"]
    assert "untrained" in of_task(loaded, "analysis.inside")


def test_the_teacher_is_swept_where_it_is_asked_for(tmp_path: Path) -> None:
    sweep = WEIGHT.replace("[0, ", "[") + "teacher = true\n"
    loaded = swept(tmp_path, sweep)
    assert rows(loaded.studies[0], "near") == ["weight-0.05", "weight-0.25", "weight-1"]
    found = loaded.run("downstream/near/weight-0.05/seed0").recipe
    assert (found.source and found.source.export_name) == "teacher"
    own = '[method.ema]\npretrain = "lut"\nteacher = true\n'
    assert rows(swept(tmp_path, sweep + own).studies[0], "near") == ["weight-0.05", "ema", "weight-1"]
    told = refused(tmp_path, WEIGHT + "teacher = true\n")
    assert told.startswith("sweep.weight, context_weight = 0: there is no teacher without a context loss")


def test_a_run_without_a_method_gets_one_of_its_name(tmp_path: Path) -> None:
    loaded = swept(tmp_path, "[pretrain.short]\nepochs = 3\n" + WEIGHT.replace("pretrain.lut", "pretrain.short"))
    assert rows(loaded.studies[0], "near") == ["weight-0", "weight-0.05", "short", "weight-1"]
    assert loaded.config.method["weight-1"].label == "short, context weight 1"


def test_what_a_sweep_makes_can_be_named_elsewhere(tmp_path: Path) -> None:
    loaded = swept(
        tmp_path,
        WEIGHT,
        'compare=[["weight-1", "lut"]]',
        'robustness.shifted.methods=["lut"]',
        'downstream.all.methods=["lut", "weight-1"]',
    )
    assert of_task(loaded, "downstream.all") == ["lut", "weight-1"]
    assert ("downstream", "all", "weight-1") not in loaded.study_rows, "the table itself asks for it"
    assert _rows(loaded, "downstream.near") == ["lut", "mae"], "a new row stands beside methods"


def test_set_changes_a_sweep_as_any_table(tmp_path: Path) -> None:
    loaded = swept(tmp_path, WEIGHT, "sweep.weight.context_weight=[0, 1]", "sweep.weight.title=Mine")
    assert rows(loaded.studies[0], "near") == ["mae-crop", "weight-1"]
    assert (loaded.studies[0].title, loaded.studies[0].base) == ("Mine", None)
    follows = swept(tmp_path, WEIGHT, "pretrain.lut.epochs=9")
    assert follows.run("pretrain/weight-1/seed0").recipe.epochs == 9  # type: ignore[attr-defined]
    assert rows(follows.studies[0], "near")[0] == "weight-0", "mae-crop is of other epochs now"


def test_only_names_a_point_or_the_whole_study_with_what_it_starts_from(tmp_path: Path) -> None:
    loaded = swept(tmp_path, WEIGHT)
    assert {run.row for run in loaded.chosen(only=["weight-0.05"])} == {
        ("pretrain", "weight-0.05", ""), ("downstream", "near", "weight-0.05"), ("analysis", "inside", "weight-0.05"),
    }  # fmt: skip
    whole = loaded.chosen(only=["sweep.weight"])
    methods = ["mae-crop", "weight-0.05", "lut", "weight-1"]
    assert {run.row for run in whole} == {
        *(("pretrain", method, "") for method in methods),
        *((*task, method) for task in (("downstream", "near"), ("analysis", "inside")) for method in methods),
    }
    assert [run.stage for run in loaded.chosen(["pretrain"], ["sweep.weight"])] == ["pretrain"] * 8
    tuned = '[method.after]\nfinetuned = "tuned/lut"\n[sweep.few]\nof = "analysis.inside"\nimages = [3, 6]\nmethods = ["after"]\n'
    chain = swept(tmp_path, tuned, "seeds=[0]").chosen(only=["sweep.few"])
    assert [run.row[:2] for run in chain][:2] == [("pretrain", "lut"), ("downstream", "tuned")]
    with pytest.raises(UserError, match=r"sweep\.wait: no run .*Did you mean 'sweep.weight'"):
        loaded.chosen(only=["sweep.wait"])


def test_an_extending_suite_takes_changes_and_adds_sweeps(tmp_path: Path) -> None:
    written(tmp_path, WEIGHT, "base")
    mine = """extends = "base.toml"
[sweep.weight]
context_weight = [0.25, 2]
[pretrain.mine]
momentum = 0.9
[method.mine]
pretrain = "mine"
[sweep.own]
of = "pretrain.mine"
epochs = [1, 3]
tasks = ["near"]
[sweep.k]
of = "downstream.near"
neighbours = [3, 20]
"""
    (tmp_path / "mine.toml").write_text(mine)
    loaded = load_suite(str(tmp_path / "mine.toml"))
    assert [rows(study, "near") for study in loaded.studies] == [["lut", "weight-2"], ["mine", "own-3"], ["k-3", "lut"]]
    assert of_task(loaded, "downstream.k-3") == ["lut", "mae", "mine"], (
        "the new row is one of the task, and so of its sweep"
    )
    assert of_task(loaded, "downstream.near")[:3] == ["lut", "mae", "mine"]
    assert ("downstream", "near", "mine") not in loaded.study_rows


def one(**settings: Any) -> str:
    """A sweep as ``--set`` gives it."""
    given = {"of": "pretrain.lut", "context_weight": [0, 1], "tasks": ["near"]} | settings
    texts = {key: "true" if value is True else repr(value) for key, value in given.items() if value is not None}
    lines = (f"{key} = {text}" for key, text in texts.items())
    return "[sweep.x]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        (one(contxt_weight=[0, 1]), "sweep.x.contxt_weight: pretrain.lut has no setting 'contxt_weight' to vary. Did you mean 'context_weight'?"),
        (one(context_weight=[1]), "sweep.x.context_weight: expected a list of at least two values, found [1]."),
        (one(context_weight=0.5), "sweep.x.context_weight: expected a list of at least two values, found 0.5."),
        (one(context_weight=[0, 1, 1.0]), "sweep.x.context_weight: 1.0 appears twice"),
        (one(context_weight=[0, -1]), "sweep.x, context_weight = -1: pretrain.lut.context_weight: input should be greater than or equal to 0, found -1."),
        (one(context_weight=[0, "a"]), 'sweep.x, context_weight = "a": pretrain.lut.context_weight: input should be a valid number'),
        ("[sweep.x]\nof = 'pretrain.lut'\nmomentum = [2020-01-01, 1]\ntasks = ['near']\n", 'sweep.x, momentum = "2020-01-01": pretrain.lut.momentum'),
        (one(context_weight=None, epochs=[1, 3], warmup_epochs=[0, 2]), "sweep.x, epochs = 1, warmup_epochs = 2: pretrain.lut: warmup_epochs = 2 must be less than epochs = 1"),
        (one(context_weight=None, workers=[1, 2]), "sweep.x.workers: the values [1, 2] all give the same results of pretrain.lut."),
        (one(of="pretrain.mae", context_weight=None, head_depth=[1, 2]), "sweep.x.head_depth: the values [1, 2] all give the same results of pretrain.mae"),
        (one(workers=[1, 2]), "sweep.x.workers: the values [1, 2] all give the same results"),
        (one(of="downstream.near", context_weight=None, tasks=None, eval_batch=[1, 2]), "sweep.x.eval_batch: the values [1, 2] all give the same results of downstream.near"),
        (one(tasks=["neer"]), "sweep.x.tasks: expected a task that evaluates an encoder, found 'neer'. Did you mean 'near'?"),
        (one(tasks=["shifted"]), "sweep.x.tasks: expected a task that evaluates an encoder, found 'shifted'."),
        (one(tasks=None), "sweep.x.tasks: required"),
        (one(tasks=[]), "sweep.x.tasks: required"),
        (one(tasks=["near", "downstream.near"]), "sweep.x.tasks: a task appears twice"),
        (one(context_weight=None), "sweep.x: nothing varies."),
        (one(of="pretrain.lutt"), "sweep.x.of: expected a pre-training run or a task that evaluates an encoder, found 'pretrain.lutt'. Did you mean 'pretrain.lut'?"),
        (one(of="robustness.shifted"), "sweep.x.of: expected a pre-training run or a task that evaluates an encoder"),
        (one(of=None), "sweep.x.of: required, but missing."),
        (one(title=["a", "b"]), "sweep.x: title = ['a', 'b']: expected one value, found a list. title is one of the sweep's own keys"),
        (one(methods=["lut"]), "sweep.x.methods: not allowed, because pretrain.lut is a pre-training run."),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2]), "sweep.x.tasks: not allowed, because downstream.near is a task."),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2], tasks=None, methods=["lutt"]), "sweep.x.methods: unknown method 'lutt'. Did you mean 'lut'?"),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2], tasks=None, methods=["lut", "lut"]), "sweep.x.methods: lut appears twice."),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2], tasks=None, methods=[]), "sweep.x: downstream.near has no methods."),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 0], tasks=None), "sweep.x, neighbours = 0: downstream.near.neighbours: input should be greater than 0"),
        (one(of="downstream.near", context_weight=None, encoder=["toy", "wide"], tasks=None), "sweep.x.encoder: downstream.near has no setting 'encoder' to vary. Tasks run for the encoders of all methods"),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2], tasks=None, teacher=True), "sweep.x.teacher: only for sweeps of a pre-training run."),
        (one(context_weight=None, encoder=["toy", "wied"]), 'sweep.x, encoder = "wied": pretrain.lut.encoder: there is no [encoder.wied] in the suite file. Did you mean'),
        (one() + "[pretrain.x-1]\nepochs = 7\n", "sweep.x: it would add a table [pretrain.x-1], but the suite has another [pretrain.x-1]."),
        (one() + "[method.x-1]\npretrain = 'mae'\n", "sweep.x: it would add a table [method.x-1], but the suite has another [method.x-1]."),
        (one() + "[classifier.x-1]\nmodel = 'deit_tiny_patch16_224'\n", "sweep.x: it would add a table [method.x-1], but the suite has another [classifier.x-1]"),
        (one(of="downstream.near", context_weight=None, neighbours=[1, 2], tasks=None) + "[downstream.x-1]\nkind = 'finetune'\n", "sweep.x: it would add a table [downstream.x-1], but the suite has another [downstream.x-1]"),
        (one().replace("sweep.x", f"sweep.{'x' * 64}"), "its runs would be named"),
        ("[sweep]\nx = 1\n", "sweep.x: "),
        (one() + "[analysis.near]\ndata = 'toy'\n", "sweep.x.tasks: 'near' is ambiguous: it may be downstream.near and analysis.near. Write one of these."),
    ],
)  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused_in_a_paragraph(tmp_path: Path, sweep: str, told: str) -> None:
    found = refused(tmp_path, sweep)
    assert told in found
    assert "\n" not in found


def test_a_task_of_two_stages_is_told_apart_by_its_stage(tmp_path: Path) -> None:
    loaded = swept(tmp_path, one(tasks=["analysis.near"]) + "[analysis.near]\ndata = 'toy'\n")
    assert of_task(loaded, "analysis.near") == ["lut", "mae", "mae-crop", "x-1", "untrained"]
    assert "x-1" not in of_task(loaded, "downstream.near")


def test_a_sweep_is_run_planned_and_shown_as_any_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    loaded = swept(
        tmp_path,
        '[sweep.weight]\nof = "pretrain.lut"\ncontext_weight = [0.25, 0.5, 1]\ntasks = ["near"]\n',
        "seeds=[0]",
        "pretrain.lut.momentum=1",  # else status warns of a teacher that stays random
    )
    workspace = Workspace(data=tmp_path, runs=tmp_path / "runs", results=tmp_path / "results")
    for name in ("lutbench.status.console", "lutbench.plan.show.console", "lutbench.progress.console"):
        monkeypatch.setattr(name, Console(width=200))

    def shown() -> tuple[str, str]:
        capsys.readouterr()
        show_plan(loaded, workspace, Rates())
        plan = capsys.readouterr().out
        show_status(loaded, workspace)
        return plan, capsys.readouterr().out

    def line(text: str, start: str) -> list[list[str]]:
        return [found.split() for found in text.splitlines() if found.strip().startswith(start)]

    plan, status = shown()
    assert [words[1] for words in line(plan, "sweep.weight")] == ["2", "2"], "pre-training, then k-NN"
    assert line(status, "sweep.weight") == [["sweep.weight", "missing", "4", "runs", "of", "this", "study"]]
    assert "weight-0.5" not in status

    run_suite(loaded, [], ["sweep.weight"], workspace)
    kept = {path.parent.parent.relative_to(workspace.runs / "toy") for path in workspace.runs.rglob("finished.json")}
    assert {str(run) for run in kept} == {run.name for run in loaded.chosen(only=["sweep.weight"])}
    assert open_run(loaded, loaded.run("pretrain/weight-1/seed0"), workspace).status().state is RunState.FINISHED
    plan, status = shown()
    assert [words[1] for words in line(plan, "sweep.weight")] == ["done", "done"]
    assert len(line(status, "downstream/near/weight-")) == 2
