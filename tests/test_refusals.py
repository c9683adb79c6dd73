"""What is told of runs that cannot be done: by ``run``, ``plan`` and ``status`` alike, a paragraph for each cause."""

from pathlib import Path

import pytest
from chained import CHAINED
from toy_runs import SUITE, write_images

from lutbench.errors import UserError
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.plan.summary import show_summary
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import Failures, paragraphs
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

NEAR = "downstream/near/{}/seed0".format
SWEEP = '[sweep.weight]\nof = "pretrain.lut"\ncontext_weight = [0.1, 0.25, 0.5]\ntasks = ["near"]\n'


def opened(folder: Path, text: str) -> tuple[LoadedSuite, Workspace]:
    (folder / "toy.toml").write_text(text)
    return load_suite(str(folder / "toy.toml")), Workspace(folder, folder / "runs", folder / "results", download=False)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('kind = "knn"\nneighbours = 4\nshots = 1', "neighbours = 4, but the training split of toy has only 3 images"),
        ('kind = "linear"\nshots = 11', "shots = 11: class 'amber' of toy has only 10 images"),
        ('kind = "retrieval"\nrecall_at = [500]', "recall_at = 500"),
        ('kind = "attentive"\nheads = 5', "heads = 5"),
    ],
)
def test_what_run_refuses_plan_and_status_tell_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, told: str
) -> None:
    write_images(tmp_path)
    suite, workspace = opened(tmp_path, SUITE + settings)
    with pytest.raises(UserError) as error:
        run_suite(suite, [], [], workspace)
    reason = "".join(str(error.value).split())
    assert "".join(told.split()) in reason
    capsys.readouterr()
    for show in (show_status, lambda *of, check: show_plan(*of, Rates(), check=check)):
        show(suite, workspace, check=True)
        said = capsys.readouterr().out
        assert "".join(said.split()).count(reason) == 1
        assert "unknown size" not in said
    show_summary(suite, workspace, Rates(), check=True)
    assert "Problem: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "nothing is made to look"


def test_runs_that_want_for_others_are_told_in_one_paragraph_and_where_their_study_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    suite, workspace = opened(tmp_path, CHAINED + SWEEP)
    with pytest.raises(UserError) as error:
        run_suite(suite, [], ["near/weight-*"], workspace)
    head, told = str(error.value).splitlines()
    assert head == "2 of 2 runs cannot be completed."
    assert told.startswith(
        f"{NEAR('weight-0.1')}, {NEAR('weight-0.5')}: each starts from the encoder of the run before it (pretrain/"
    )
    assert "which is missing. First run: " in told
    assert told.endswith("name the study: --only sweep.weight.")
    show_plan(suite, workspace, Rates(), ["near/weight-*"], check=True)
    assert "".join(told.split()) in "".join(capsys.readouterr().out.split()), "as run has it"
    show_plan(suite, workspace, Rates(), ["sweep.weight"], check=True)
    said = capsys.readouterr().out
    assert "First run" not in said
    assert "tuned" not in said


def test_one_cause_is_one_paragraph_and_names_within_names_are_left(tmp_path: Path) -> None:
    suite, _ = opened(tmp_path, CHAINED)
    failed = {NEAR(name): f"{NEAR(name)} is not as {NEAR(name)}-draw1." for name in ("lut", "teacher")}
    assert len(paragraphs(suite, failed)) == 2, "other draws are other runs"
    same = {NEAR(name): f"{NEAR(name)} is full." for name in ("lut", "teacher")}
    assert paragraphs(suite, same) == [f"{NEAR('lut')}, {NEAR('teacher')}: each is full."]
    assert Failures(suite, same, told={NEAR("lut")}).summary(5).splitlines() == [
        "2 of 5 runs cannot be completed.",
        f"{NEAR('lut')}: see above.",
        f"{NEAR('teacher')} is full.",
    ]
