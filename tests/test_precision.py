"""What ``precision = "auto"`` means on processors that multiply bf16 and on others, and what a run keeps of it."""

import json
from pathlib import Path

import pytest
from toy_runs import killed_at_a_checkpoint, performed, toy_run

from lutbench.recipes.loading import load_suite
from lutbench.run import Run, open_run
from lutbench.run_files import read_started, write_started
from lutbench.train import precision
from lutbench.train.precision import MULTIPLIES_BF16, flags_of, precision_at_start
from lutbench.workspace import Workspace

KNN = {"kind": "knn", "neighbours": 3, "threads": 1}
FINETUNE = {"kind": "finetune", "epochs": 2, "warmup_epochs": 0, "batch": 10, "save_every": 1, "threads": 1}


@pytest.fixture
def multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine passes for one with avx512_bf16: it computes the same, slowly."""
    monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: True)


def knn(folder: Path, width: int, **settings: object) -> Run:
    return toy_run(folder, f"of{width}", [f"encoder.toy.width={width}"], **KNN, **settings)


def recorded(run: Run) -> str:
    record = json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())
    return str(record["extra"]["precision"])


@pytest.mark.parametrize(
    ("flags", "multiplies"),
    [
        ("fpu sse avx512f avx512_bf16 amx_bf16", True),
        ("fpu sse avx512f avx512_bf16", True),
        ("fpu sse avx512f avx512_vnni", False),
    ],
)
def test_the_flags_of_a_processor_say_whether_it_multiplies_bf16(tmp_path: Path, flags: str, multiplies: bool) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: one\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert bool(flags_of(info) & MULTIPLIES_BF16) == multiplies
    assert flags_of(tmp_path / "absent") == frozenset()


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize(("width", "expected"), [(16, "fp32"), (190, "fp32"), (192, "bf16"), (384, "bf16")])
def test_wide_transformers_begin_in_bf16_where_the_processor_multiplies_it(
    folder: Path, width: int, expected: str
) -> None:
    assert precision_at_start(knn(folder, width)) == expected


@pytest.mark.usefixtures("multiplies_bf16")
def test_a_precision_that_a_table_gives_is_that_one(folder: Path) -> None:
    assert precision_at_start(knn(folder, 192, precision="fp32")) == "fp32"
    assert precision_at_start(knn(folder, 16, precision="bf16")) == "bf16"


def test_on_other_processors_a_wide_transformer_begins_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: False)
    assert precision_at_start(knn(folder, 192)) == "fp32"


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("suite", ["tiny", "camvid"])
def test_the_suites_of_narrow_encoders_are_in_float32_on_every_cpu(suite: str, tmp_path: Path) -> None:
    loaded = load_suite(suite)
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results", download=False)
    assert {precision_at_start(open_run(loaded, planned, workspace)) for planned in loaded.runs} == {"fp32"}


def test_the_record_says_what_a_run_computed_in(folder: Path) -> None:
    run = knn(folder, 16)
    performed(run)
    assert recorded(run) == "fp32"


def test_a_run_keeps_the_precision_that_it_began_with_on_another_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Began on a processor that multiplies bf16, performed on one that does not; and the other way round."""
    for begins, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: begins)  # noqa: B023 - called before the next
        run = knn(folder, 192, image_size=16 if begins else 32)
        assert read_started(run.folder).precision == expected
        monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: not begins)  # noqa: B023
        run.start()
        performed(run)
        assert recorded(run) == expected
        assert f"continues in {expected}, the precision it began with" in capsys.readouterr().out


def test_a_half_finished_run_goes_on_in_the_precision_that_it_began_with_to_the_same_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began(home: str, on_bf16: bool) -> Run:
        monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: on_bf16)
        return toy_run(folder, home, ["encoder.toy.width=192"], **FINETUNE)

    whole = performed(began("whole", on_bf16=True))
    run = began("here", on_bf16=True)
    killed_at_a_checkpoint(run, step=2)
    monkeypatch.setattr(precision, "processors_multiply_bf16", lambda: False)
    run.start()
    assert performed(run) == whole
    assert performed(began("float32", on_bf16=False))["checkpoint"] != whole["checkpoint"]


@pytest.mark.usefixtures("multiplies_bf16")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_half_finished_run_that_does_not_say_its_precision_keeps_what_auto_meant_then(
    folder: Path, capsys: pytest.CaptureFixture[str], damaged: bool
) -> None:
    """One begun before runs said so, on a CPU: in float32, as all were on CPUs."""
    run = toy_run(folder, "here", ["encoder.toy.width=192"], **FINETUNE)

    def forget() -> None:
        write_started(run.folder, run.name, run.identity, run.identity_inputs, run.sources)
        if damaged:
            (run.folder / "run.json").write_text("{")

    forget()
    run.start()
    assert run.begun_in == "bf16", "nothing of it is there that was computed otherwise"
    forget()
    (run.checkpoints / "step-00000002").mkdir(parents=True)
    run.start()
    assert run.begun_in == "fp32"
    assert "continues in fp32" in capsys.readouterr().out
