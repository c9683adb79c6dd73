"""A budget gives a pre-training run the epochs that another's compute is worth, and changes nothing else."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import Command
from reported import build_tables, section
from toy_runs import NARROW, write_images

from lutbench.errors import UserError
from lutbench.plan.costs import Costs, Rates, costs_of
from lutbench.plan.show import show_plan
from lutbench.plan.summary import show_summary
from lutbench.plan.surveys import survey_all
from lutbench.recipes.loading import load_suite
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_record, record_path
from lutbench.record_writing import write_record
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.workspace import Workspace
from pretrain.cost import flop_per_image

SUITE = f"""
title = "toy"
about = "for tests"
kind = "exploration"
[data.toy]
path = "toy"
[data.others]
path = "others"
[encoder.toy]
label = "ViT-toy"
model = "vit_tiny_patch16_224"
image_size = 16
patch_size = 4
width = 16
depth = 1
heads = 2
[defaults.pretrain]
data = "toy"
encoder = "toy"
epochs = 8
warmup_epochs = 2
batch = 10
{NARROW}
workers = 0
[pretrain.mae]
context_weight = 0.0
budget = {{like = "lut"}}
[pretrain.lut]
[method.lut]
label = "LUT"
pretrain = "lut"
[method.mae]
label = "MAE"
pretrain = "mae"
[downstream.near]
kind = "knn"
data = "toy"
workers = 0
"""

SECONDS = 'pretrain.mae.budget={like = "lut", unit = "seconds"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def loaded(folder: Path, *changes: str, keep: bool = False) -> LoadedSuite:
    return load_suite(str(folder / "toy.toml"), changes, folder / "results", keep)


def refused(folder: Path, *changes: str) -> str:
    with pytest.raises(UserError) as error:
        loaded(folder, *changes)
    return str(error.value)


def recipe(suite: LoadedSuite, name: str) -> PretrainRecipe:
    found = suite.run(f"pretrain/{name}/seed0").recipe
    assert isinstance(found, PretrainRecipe)
    return found


def workspace(folder: Path) -> Workspace:
    return Workspace(folder, folder / "runs", folder / "results")


# FLOP


@pytest.mark.parametrize("epochs", [1, 8, 50, 1600])
def test_flop_are_equal_to_within_half_an_epoch(folder: Path, epochs: int) -> None:
    suite = loaded(folder, f"pretrain.lut.epochs={epochs}", "pretrain.lut.warmup_epochs=0")
    lut, mae = recipe(suite, "lut"), recipe(suite, "mae")
    flop, other = flop_per_image(lut) * lut.epochs, flop_per_image(mae) * mae.epochs
    assert lut.epochs == epochs < mae.epochs
    assert abs(flop - other) <= flop_per_image(mae) / 2
    assert suite.budgets["mae"].excess == pytest.approx(other / flop - 1)


def test_the_papers_lut_is_worth_so_many_epochs_of_mae() -> None:
    """Of ViT-B, 77.7 and 29.3 G multiplications for an image: 2.65 epochs of MAE for one of LUT."""
    suite = load_suite("paper", ['pretrain.mae-b.budget={like = "lut-b", unit = "flop"}'])
    found = recipe(suite, "mae-b")
    assert found.epochs == pytest.approx(1600 * 77.7 / 29.3, rel=0.002)
    assert found.warmup_epochs == pytest.approx(found.epochs * 40 / 1600, abs=0.5)
    assert abs(suite.budgets["mae-b"].excess) < 0.5 / found.epochs


def test_a_run_with_a_budget_is_the_run_in_which_its_epochs_are_typed(folder: Path) -> None:
    write_images(folder)
    suite = loaded(folder)
    mae = recipe(suite, "mae")
    typed = loaded(folder, f"pretrain.mae.epochs={mae.epochs}", f"pretrain.mae.warmup_epochs={mae.warmup_epochs}")
    assert (suite.budgets.keys(), typed.budgets) == ({"mae"}, {})
    identities = [
        [open_run(one, planned, workspace(folder)).identity for planned in one.runs if planned.stage == "pretrain"]
        for one in (suite, typed)
    ]
    assert identities[0] == identities[1]
    assert suite.runs == typed.runs


def test_the_warm_up_is_the_same_share_unless_it_is_given(folder: Path) -> None:
    suite = loaded(folder)
    mae = recipe(suite, "mae")
    assert mae.warmup_epochs == round(mae.epochs * 2 / 8) > 2
    assert recipe(loaded(folder, "pretrain.mae.warmup_epochs=1"), "mae").warmup_epochs == 1
    nearly_all = recipe(loaded(folder, "defaults.pretrain.epochs=20", "defaults.pretrain.warmup_epochs=19"), "mae")
    assert nearly_all.warmup_epochs < nearly_all.epochs


def test_a_chain_of_budgets_is_followed_whatever_the_order_of_the_tables(folder: Path) -> None:
    chain = '[pretrain.last]\ncontext_weight = 0.0\nmask_ratio = 0.5\nbudget = {like = "mae"}\n[pretrain.mae]'
    (folder / "toy.toml").write_text(SUITE.replace("[pretrain.mae]", chain))
    suite = loaded(folder)
    assert list(suite.budgets) == ["mae", "last"]
    assert suite.budgets["last"].like_epochs == recipe(suite, "mae").epochs
    typed = loaded(folder, f"pretrain.mae.epochs={recipe(suite, 'mae').epochs}")
    assert recipe(typed, "last").epochs == recipe(suite, "last").epochs


def test_the_last_of_set_and_of_a_file_that_extends_decides_between_epochs_and_budget(folder: Path) -> None:
    epochs = recipe(loaded(folder), "mae").epochs
    assert recipe(loaded(folder, "pretrain.mae.epochs=3"), "mae").epochs == 3
    again = loaded(folder, "pretrain.mae.epochs=3", 'pretrain.mae.budget={like = "lut"}')
    assert recipe(again, "mae").epochs == epochs
    (folder / "mine.toml").write_text('extends = "toy.toml"\n[pretrain.mae]\nepochs = 4\nwarmup_epochs = 1\n')
    mine = load_suite(str(folder / "mine.toml"))
    assert (recipe(mine, "mae").epochs, mine.budgets) == (4, {})
    (folder / "back.toml").write_text('extends = "mine.toml"\n[pretrain.mae]\nbudget = {like = "lut"}\n')
    back = load_suite(str(folder / "back.toml"))
    assert (recipe(back, "mae").epochs, recipe(back, "mae").warmup_epochs) == (epochs, 1)


def test_a_budget_needs_no_data_and_the_plan_says_what_it_gave(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = loaded(folder)
    said = suite.budgets["mae"].sentence("mae")
    assert said.startswith(
        f"pretrain.mae: {recipe(suite, 'mae').epochs} epochs, for the same FLOP as 8 epochs of pretrain.lut ("
    )
    show_plan(suite, workspace(folder), Rates())
    assert said in " ".join(capsys.readouterr().out.split())
    show_summary(suite, workspace(folder), Rates())
    out = " ".join(capsys.readouterr().out.split())
    assert f"Equal FLOP: mae {recipe(suite, 'mae').epochs} epochs = lut 8 (" in out
    assert "4 runs use datasets of unknown size: not in the sums." in out


def test_the_plan_counts_equal_flop(folder: Path) -> None:
    write_images(folder)
    suite = loaded(folder)
    tasks: dict[str, Costs] = costs_of(suite, workspace(folder), survey_all(suite, workspace(folder)), Rates()).by(
        "task"
    )
    assert tasks["mae"].flop / tasks["lut"].flop - 1 == pytest.approx(suite.budgets["mae"].excess)
    assert abs(suite.budgets["mae"].excess) < 0.5 / recipe(suite, "mae").epochs


def test_a_suite_without_a_budget_is_read_without_torch(folder: Path) -> None:
    plain = SUITE.replace('budget = {like = "lut"}', "")
    (folder / "toy.toml").write_text(plain)
    code = f"import sys; from lutbench.recipes.loading import load_suite; load_suite({str(folder / 'toy.toml')!r})"
    code += "; print(*sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == ["pydantic"]


# What is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (['pretrain.mae={budget = {like = "lut"}, epochs = 3}'], "pretrain.mae: expected either epochs or a budget, which sets"),
        (["pretrain.mae.budget=lut"], 'expected a table such as {like = "lut", unit = "flop"}, found \'lut\''),
        (["pretrain.mae.budget={}"], "pretrain.mae.budget.like: required"),
        (['pretrain.mae.budget={like = "lut", unti = "flop"}'], "pretrain.mae.budget.unti: no such setting. Did you mean 'unit'"),
        (['pretrain.mae.budget={like = "lut", unit = "hours"}'], "budget.unit: input should be 'flop' or 'seconds', found 'hours'"),
        (['pretrain.mae.budget={like = "lutt"}'], "there is no [pretrain.lutt] in the suite file. Did you mean 'lut'?"),
        (['pretrain.mae.budget={like = "mae"}'], "pretrain.mae.budget.like: a run cannot take its budget from itself"),
        (['pretrain.lut.budget={like = "mae"}'], "form a cycle, mae -> lut -> mae"),
        (["pretrain.lut.data=others"], "expected two runs on the same dataset, found toy here and others in pretrain.lut"),
        (["pretrain.mae.epochs=1", "pretrain.mae.warmup_epochs=0", 'pretrain.lut.budget={like = "mae"}'], "is only 0."),
        (["pretrain.mae.warmup_epochs=500"], "must be more than warmup_epochs = 500"),
        (["pretrain.mae.budgt=1"], "pretrain.mae.budgt: no such setting. Did you mean 'budget'?"),
        (["pretrain.mae.batch=-1"], "pretrain.mae.batch: input should be greater than 0"),
        (["pretrain.mae.warmup_epochs=few"], "pretrain.mae.warmup_epochs: input should be a valid integer"),
        (["pretrain.mae.decoder_heads=3"], "pretrain.mae: "),
        (['downstream.near.budget={like = "lut"}'], "downstream.near.budget: only pre-training runs can have a budget"),
        (['defaults.pretrain.budget={like = "lut"}'], "defaults.pretrain.budget: only pre-training runs can have a budget"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused_by_name(folder: Path, changes: list[str], told: str) -> None:
    assert told in refused(folder, *changes)


# Seconds


def measure(folder: Path, name: str, rate: float, home: str = "results", cpu: str = "", **settings: int) -> Path:
    """Leave the record of a short run, with this speed and processor, as a run on such a machine would."""
    results = folder / home
    run_suite(
        short(folder, **settings), ["pretrain"], [f"pretrain/{name}"], Workspace(folder, folder / "runs", results)
    )
    record = read_record(record_path(results, "toy", f"pretrain/{name}/seed0"))
    hardware = record.hardware.model_copy(update={"cpu": cpu or "CPU A"})
    return write_record(record.model_copy(update={"images_per_second": rate, "hardware": hardware}), None, results)


def short(folder: Path, **settings: int) -> LoadedSuite:
    lengths = [f"pretrain.{name}.{key}" for name in ("lut", "mae") for key in ("epochs=1", "warmup_epochs=0")]
    return loaded(folder, *lengths, *(f"defaults.pretrain.{key}={value}" for key, value in settings.items()))


def test_seconds_are_those_of_records_of_any_length(folder: Path) -> None:
    write_images(folder)
    measure(folder, "lut", 100.0)
    assert "needs the measured speed of pretrain.mae, but" in refused(folder, SECONDS)
    measure(folder, "mae", 175.0)
    suite = loaded(folder, SECONDS)
    assert recipe(suite, "mae").epochs == 14  # 8 epochs at 100 images/s, at 175
    assert suite.budgets["mae"].excess == pytest.approx(0)
    assert "on CPU A, " in suite.budgets["mae"].sentence("mae")
    assert not (folder / "results/speed").exists(), "read to look at, which keeps nothing"


def test_the_command_that_a_refusal_names_measures_what_is_missing(folder: Path) -> None:
    write_images(folder)
    long = "defaults.pretrain.epochs=800"  # so that no speed of so few steps is worth less than an epoch
    told = refused(folder, SECONDS, long)
    assert "needs the measured speed of pretrain.mae and pretrain.lut, but" in told
    command = told[told.index("lutbench run") : told.index(". Or use unit")]
    arguments = [*shlex.split(command)[1:], "--data-root", str(folder), "--runs", str(folder / "runs")]
    assert Command(*arguments).wait() == 0
    suite = loaded(folder, SECONDS, long)
    assert [path.parts[-2] for path in sorted((folder / "results").rglob("seed0.json"))] == ["lut", "mae"]
    assert not (folder / "results/records").exists(), "the suite's own records are left alone"
    budget = suite.budgets["mae"]
    assert abs(budget.excess) <= 0.5 * budget.each / (800 * budget.like_each) + 1e-9


def test_a_speed_of_few_steps_is_told_and_one_of_more_is_taken_before_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    for name, rate in (("lut", 100.0), ("mae", 175.0)):
        measure(folder, name, rate, home="results/speed")
    poor = loaded(folder, SECONDS)
    assert "pretrain/mae/seed0 over 3 and pretrain/lut/seed0 over 3" in poor.budgets["mae"].sentence("mae", True)
    assert "few steps" not in poor.budgets["mae"].sentence("mae"), "tables say what a run was given"
    show_summary(poor, workspace(folder), Rates())
    assert "The speed is inaccurate" in capsys.readouterr().out
    for name, rate in (("lut", 100.0), ("mae", 400.0)):
        path = measure(folder, name, rate)
        record = read_record(path)
        images = {"training_images": 100 * record.identity_inputs["recipe"]["batch"]}
        write_record(record.model_copy(update={"extra": {**record.extra, **images}}), None, folder / "results")
    sure = loaded(folder, SECONDS)
    assert (recipe(sure, "mae").epochs, sure.budgets["mae"].poor) == (32, "")


def test_speeds_that_were_used_are_kept_whatever_is_measured_later(folder: Path) -> None:
    write_images(folder)
    for name, rate in (("lut", 100.0), ("mae", 175.0)):
        measure(folder, name, rate)
    first = loaded(folder, SECONDS, keep=True)
    [kept] = (folder / "results/speed/budgets").iterdir()
    measure(folder, "mae", 400.0)
    assert loaded(folder, SECONDS).runs == first.runs
    assert str(kept) in first.budgets["mae"].sentence("mae", with_file=True)
    assert str(kept) not in first.budgets["mae"].sentence("mae"), "tables have no paths of a machine"
    assert recipe(loaded(folder, SECONDS, "defaults.pretrain.epochs=16"), "mae").epochs == 28, "speeds, not epochs"
    kept.unlink()
    assert recipe(loaded(folder, SECONDS), "mae").epochs == 32


def test_kept_speeds_are_of_the_settings_that_were_measured(folder: Path) -> None:
    write_images(folder)
    for name, rate in (("lut", 100.0), ("mae", 175.0)):
        measure(folder, name, rate)
    loaded(folder, SECONDS, keep=True)
    assert "needs the measured speed" in refused(folder, SECONDS, "defaults.pretrain.decoder_depth=2")
    for name, rate in (("lut", 100.0), ("mae", 400.0)):
        measure(folder, name, rate, decoder_depth=2)
    deeper = loaded(folder, SECONDS, "defaults.pretrain.decoder_depth=2", keep=True)
    assert (recipe(deeper, "mae").epochs, recipe(loaded(folder, SECONDS), "mae").epochs) == (32, 14)
    assert len(list((folder / "results/speed/budgets").iterdir())) == 2


def test_speeds_of_another_suite_count_where_the_settings_are_the_same(folder: Path) -> None:
    write_images(folder)
    for name, rate in (("lut", 100.0), ("mae", 175.0)):
        measure(folder, name, rate)
    records = folder / "results/records"
    (records / "toy").rename(records / "another")
    first = loaded(folder, SECONDS, keep=True)
    assert recipe(first, "mae").epochs == 14
    (records / "another/pretrain/mae/seed0.json").write_text("{")
    assert recipe(loaded(folder, SECONDS), "mae").epochs == 14, "kept, whatever the suite"
    [kept] = (folder / "results/speed/budgets").iterdir()
    kept.unlink()
    assert "needs the measured speed of pretrain.mae, but" in refused(folder, SECONDS)


def test_speeds_of_two_machines_are_not_compared(folder: Path) -> None:
    write_images(folder)
    measure(folder, "lut", 100.0, cpu="CPU A")
    measure(folder, "mae", 175.0, cpu="CPU B")
    told = refused(folder, SECONDS)
    assert "of pretrain.mae on CPU B" in told
    assert "of pretrain.lut on CPU A" in told
    assert "--only pretrain/mae/seed0 --only pretrain/lut/seed0" in told
    for name, rate in (("lut", 300.0), ("mae", 600.0)):
        measure(folder, name, rate, home="results/speed", cpu="CPU B")
    suite = loaded(folder, SECONDS)
    assert (recipe(suite, "mae").epochs, suite.budgets["mae"].like_each) == (16, 1 / 300)


def test_kept_speeds_that_somebody_edited_are_refused(folder: Path) -> None:
    write_images(folder)
    for name, rate in (("lut", 100.0), ("mae", 175.0)):
        measure(folder, name, rate)
    loaded(folder, SECONDS, keep=True)
    [kept] = (folder / "results/speed/budgets").iterdir()
    values = json.loads(kept.read_text())
    values["own"]["images_per_second"] = 500.0
    kept.write_text(json.dumps(values))
    assert "hash does not match its seal. Remove the file" in refused(folder, SECONDS)


# Tables


def ran(folder: Path, only: Sequence[str] = (), *changes: str) -> LoadedSuite:
    write_images(folder)
    suite = loaded(folder, *changes)
    run_suite(suite, [], only, workspace(folder))
    return suite


def test_the_tables_say_what_every_run_took_and_that_it_is_equal(folder: Path) -> None:
    suite = ran(folder)
    lut, mae = recipe(suite, "lut"), recipe(suite, "mae")
    table = section(suite, folder / "results", "compute")
    rows = {row["pretraining"]: row for row in table.data.to_dict("records")}  # type: ignore[union-attr]
    for name, one in (("lut", lut), ("mae", mae)):
        record = read_record(record_path(folder / "results", "toy", f"pretrain/{name}/seed0"))
        assert rows[name]["flop"] == one.epochs * 30 * flop_per_image(one)
        assert rows[name]["hours"] == pytest.approx(record.wall_seconds / 3600, rel=1e-5)
        assert (rows[name]["machine"], rows[name]["gpus"]) == (str(record.hardware), 0)
    assert rows["mae"]["flop ratio"] == pytest.approx(1 + suite.budgets["mae"].excess, rel=1e-5)
    assert rows["mae"]["hours ratio"] == pytest.approx(rows["mae"]["hours"] / rows["lut"]["hours"], rel=1e-4)
    assert (rows["mae"]["like"], rows["mae"]["unit"]) == ("lut", "flop")
    slower = rows["mae"]["hours ratio"] / rows["mae"]["flop ratio"]
    doubted = "the machine may have been busy" in table.legend
    assert doubted == (not 0.5 < slower < 2), slower
    assert list(table.frame["epochs"]) == [str(mae.epochs), "8"]
    assert list(table.frame["like"]) == ["LUT", ""]
    assert suite.budgets["mae"].sentence("mae", labels={"mae": "MAE", "lut": "LUT"}) in table.legend
    texts = build_tables(suite, folder / "results")
    assert "## Compute of pre-training" in texts["main.md"]
    assert {"compute.csv", "compute.tex"} < set(texts)
    assert str(folder) not in texts["main.md"] + texts["compute.tex"] + texts["compute.csv"]


def test_without_budgets_nothing_is_compared_and_of_one_run_there_is_no_table(folder: Path) -> None:
    suite = ran(folder, (), "pretrain.mae.epochs=2", "defaults.pretrain.warmup_epochs=0")
    frame = section(suite, folder / "results", "compute").frame
    assert list(frame) == ["run", "encoder", "epochs", "FLOP", "hours", "seeds"]
    (folder / "toy.toml").write_text(SUITE.replace('[pretrain.mae]\ncontext_weight = 0.0\nbudget = {like = "lut"}\n', "").replace('[method.mae]\nlabel = "MAE"\npretrain = "mae"\n', ""))  # fmt: skip
    assert "compute.csv" not in build_tables(loaded(folder), folder / "results")


def test_what_a_record_does_not_tell_is_an_empty_cell(folder: Path) -> None:
    suite = ran(folder)
    path = record_path(folder / "results", "toy", "pretrain/lut/seed0")
    record = read_record(path)
    older = {name: value for name, value in record.extra.items() if name not in ("flop_per_image", "training_images")}
    write_record(record.model_copy(update={"extra": older}), None, folder / "results")
    frame = section(suite, folder / "results", "compute").frame.set_index("run")
    assert (frame.loc["LUT", "FLOP"], frame.loc["MAE", "FLOP ratio"]) == ("", "")
    assert "" not in (frame.loc["MAE", "FLOP"], frame.loc["LUT", "hours"], frame.loc["MAE", "hours ratio"])
    assert "missing in records of earlier versions" in section(suite, folder / "results", "compute").legend


def test_records_of_other_settings_do_not_count_and_hours_of_other_machines_are_rows_of_their_own(folder: Path) -> None:
    suite = ran(folder, (), "seeds=[0, 1]")
    stale = loaded(folder, "seeds=[0, 1]", "pretrain.lut.batch=5")
    frame = section(stale, folder / "results", "compute").frame.set_index("run")
    assert (frame.loc["LUT", "hours"], frame.loc["LUT", "FLOP"], frame.loc["MAE", "hours ratio"]) == ("stale", "", "")
    record = read_record(record_path(folder / "results", "toy", "pretrain/mae/seed1"))
    other = record.hardware.model_copy(update={"gpus": ["GPU 80 GiB"] * 2, "processes": 2})
    write_record(record.model_copy(update={"hardware": other}), None, folder / "results")
    frame = section(suite, folder / "results", "compute").frame
    assert list(zip(frame["run"], frame["seeds"], frame["GPUs"], frame["hours ratio"] == "", strict=True)) == [
        ("MAE", "1", "", False), ("MAE", "1", "2", True), ("LUT", "2", "", True),
    ]  # fmt: skip
    assert frame["machine"][1] == "2 x GPU 80 GiB, 2 processes"


def test_a_budget_changes_no_table_of_a_suite_whose_epochs_are_typed(folder: Path) -> None:
    suite = ran(folder)
    mae = recipe(suite, "mae")
    typed = loaded(folder, f"pretrain.mae.epochs={mae.epochs}", f"pretrain.mae.warmup_epochs={mae.warmup_epochs}")
    mine, theirs = (build_tables(one, folder / "results")["main.csv"] for one in (suite, typed))
    assert mine == theirs
    shutil.rmtree(folder / "toy")
    assert build_tables(suite, folder / "results")["main.csv"] == mine, "from records alone"
