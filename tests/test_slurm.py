"""Runs as jobs of a real SLURM, which is started here on two nodes of one machine, where its packages are and root may start it."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chained import CHAINED
from test_interruption import SUITE, made, pretraining
from toy_runs import in_processes, write_images

from lutbench.checkpoint_names import newest_step
from lutbench.cluster.submit import submit_suite
from lutbench.errors import UserError
from lutbench.locks import Held, lock
from lutbench.recipes.loading import load_suite
from lutbench.run import open_run
from lutbench.run_status import RunState
from lutbench.status import show_status
from lutbench.workspace import Workspace
from pretrain.train import perform

LONG = SUITE.replace("epochs = 10", "epochs = 5")
"""A pre-training of 112 steps whose losses are read once, at the end, before which no checkpoint is saved of itself."""

SCRIPT = Path(__file__).parent / "slurm/cluster.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PATIENCE = 240
"""Seconds for what takes some on two cores that do nothing else."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of two nodes, as which this process and what it starts have it."""
    missing = [name for name in PROGRAMS if not (shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"))]
    if missing:
        pytest.skip(f"needs SLURM's packages (slurm-wlm, munge): no {', '.join(missing)} here")
    if os.getuid() != 0:
        pytest.skip("only root can start a SLURM here")
    folder = tmp_path_factory.mktemp("slurm")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=60, check=False)
        assert started.returncode == 0, f"{started.stderr}\n{(folder / 'log/slurmctld.log').read_text()[-3000:]}"
        found = re.search(r"export SLURM_CONF=(.+)", started.stdout)
        assert found
        patch.setenv("SLURM_CONF", found[1])
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
        subprocess.run(["scancel", "--me", "--signal=KILL"], check=False)
        subprocess.run([SCRIPT, "stop", folder], check=True)


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def wait_for(condition: Callable[[], Any], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in folder.rglob("jobs/*/logs/*.err"))
        log = Path(os.environ["SLURM_CONF"]).parent.joinpath("log/slurmctld.log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{asked('squeue', '--states=all')}\n{logs}\n{log}"
        time.sleep(0.2)


def workspace(folder: Path) -> Workspace:
    return Workspace(folder, folder / "here/runs", folder / "here/results")


def submitted(folder: Path, *only: str, overrides: Sequence[str] = (), **changes: Any) -> None:
    suite = load_suite(str(folder / "toy.toml"), overrides)
    submit_suite(suite, workspace(folder), [], only, changes, overrides, dry_run=False)


def states(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[dict[str, str], str]:
    """What ``status`` says of each run, and all that it prints."""
    capsys.readouterr()
    show_status(load_suite(str(folder / "toy.toml"), overrides), workspace(folder))
    out = capsys.readouterr().out
    columns = [re.split(r"  +", line) for line in out.splitlines() if "/seed" in line and not line.startswith(" ")]
    return {row[0]: row[1] for row in columns if len(row) > 1}, out


def in_its_loop(folder: Path) -> Callable[[], Any]:
    return lambda: list(folder.glob("here/runs/toy/pretrain/lut/seed0/*/tensorboard/*"))


def ended(folder: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in folder.glob("here/runs/jobs/toy/ends/*.json")]
    return found[0] if found else {}


def job_of(folder: Path, run: str) -> str:
    [path] = folder.glob(f"here/runs/jobs/toy/runs/{run}/*.json")
    return str(json.loads(path.read_text())["job"])


def alive(pattern: str) -> bool:
    return subprocess.run(["pgrep", "--full", pattern], capture_output=True, check=False).returncode == 0


def far(text: str) -> bool:
    """Whether a job may start in ten seconds at the earliest."""
    start = re.search(r"EligibleTime=(\S+)", text)
    assert start
    return datetime.fromisoformat(start[1]) > datetime.now() + timedelta(seconds=10)


def queue(job: str) -> tuple[str, int]:
    """The state of a job, and how often it was queued again; it begins at once, where SLURM waits for two minutes.

    But not before what it started is gone, whose end SLURM would take for that of the new start, nor in the second in which
    SLURM revoked the old start's credential, which would refuse the new one.
    """
    text = asked("scontrol", "show", "job", job)
    state, restarts = re.search(r"JobState=(\w+)", text), re.search(r"Restarts=(\d+)", text)
    assert state
    assert restarts
    if state[1] == "PENDING" and "BeginTime" in text and far(text) and not alive(rf"slurmstepd: \[{job}\."):
        asked("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    return state[1], int(restarts[1])


def test_a_suite_is_submitted_once_its_seeds_are_an_array_and_each_run_waits_for_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(CHAINED.replace('kind = "pipeline"\n', 'kind = "pipeline"\nseeds = [0, 1]\n', 1))
    runs = [f"{name}/seed{seed}" for name in ("pretrain/lut", "downstream/near/lut") for seed in (0, 1)]
    only = ("pretrain/lut", "downstream/near/lut")
    submitted(tmp_path, *only)
    jobs = {run: job_of(tmp_path, run) for run in runs}
    first, second = (jobs[run].partition("_")[0] for run in (runs[0], runs[2]))
    assert jobs == {run: f"{first if 'pretrain' in run else second}_{run[-1]}" for run in runs}
    assert f"aftercorr:{first}_" in asked("scontrol", "show", "job", second)
    told, _ = states(tmp_path, capsys)
    assert told[runs[3]] == f"queued, job {second}_1"
    assert re.match(rf"queued, job {first}_0|running on node[12] since \S+ \S+, job {first}_0", told[runs[0]])

    submitted(tmp_path, *only)
    assert "already, job" in capsys.readouterr().out
    assert {run: job_of(tmp_path, run) for run in runs} == jobs

    wait_for(lambda: re.match("running on node[12] since", states(tmp_path, capsys)[0][runs[0]]), tmp_path)
    suite = load_suite(str(tmp_path / "toy.toml"))
    results = "here/results/records/toy/downstream/near/lut/seed*.json"
    wait_for(lambda: len(list(tmp_path.glob(results))) == 2, tmp_path)
    for run in runs:
        assert open_run(suite, suite.run(run), workspace(tmp_path)).status().state is RunState.FINISHED
    capsys.readouterr()
    submitted(tmp_path, *only)
    assert capsys.readouterr().out.startswith(f"Finished: {runs[0]}, ")


def test_of_a_job_that_fails_status_shows_the_end_of_its_log_and_one_that_is_cancelled_saves_and_is_not_queued_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, train=60, val=20)
    near = '[method.lut]\npretrain = "lut"\n[downstream.near]\nkind = "knn"\ndata = "toy"\nmethods = ["lut"]\nworkers = 0\n'
    broken = '[data.broken]\npath = "broken"\n[downstream.fails]\nkind = "knn"\ndata = "broken"\nmethods = ["scratch"]\nworkers = 0\n'
    (tmp_path / "toy.toml").write_text(f"{LONG}{near}{broken}")
    shutil.copytree(tmp_path / "toy", tmp_path / "broken")
    (tmp_path / "broken/val/blue/3.png").write_bytes(b"no image")
    submitted(tmp_path, "pretrain/lut", "near", "fails")
    long, failing, waiting = "pretrain/lut/seed0", "downstream/fails/scratch/seed0", "downstream/near/lut/seed0"
    wait_for(in_its_loop(tmp_path), tmp_path)
    asked("scancel", job := job_of(tmp_path, long))
    wait_for(lambda: queue(job)[0] not in ("RUNNING", "COMPLETING"), tmp_path)
    assert queue(job) == ("CANCELLED", 0)
    wait_for(lambda: states(tmp_path, capsys)[0][failing].startswith("failed"), tmp_path)
    told, out = states(tmp_path, capsys)
    assert re.match(rf"stopped by SIGTERM at \S+ \S+, job {job}; resumable at step \d+$", told[long])
    assert told[failing] == f"failed, exit status 1, job {job_of(tmp_path, failing)}"
    assert re.search(
        rf"^{failing}: job \d+ failed on .* exit status 1\. The end of .*_log\.err:\n(    .*\n)*    .*3\.png", out, re.M
    )
    wait_for(lambda: "cancelled" in states(tmp_path, capsys)[0][waiting], tmp_path)

    submitted(tmp_path, "pretrain/lut")
    assert job_of(tmp_path, long) != job, "what was cancelled can be submitted again"
    asked("scancel", job_of(tmp_path, long))


def test_a_job_that_hears_sigusr1_saves_at_the_next_step_and_is_queued_again_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses are read once, at the end, and loader processes hear the signal too."""
    write_images(tmp_path, train=60, val=20)
    (tmp_path / "toy.toml").write_text(LONG)
    whole = pretraining(tmp_path, "whole")
    perform(whole)
    submitted(tmp_path, "pretrain/lut")
    wait_for(in_its_loop(tmp_path), tmp_path)
    job, name = job_of(tmp_path, "pretrain/lut/seed0"), "pretrain/lut/seed0"
    asked("scancel", "--signal=USR1", job)
    wait_for(lambda: ended(tmp_path), tmp_path)
    assert (ended(tmp_path)["signal"], ended(tmp_path)["status"], ended(tmp_path)["requeued"]) == ("SIGUSR1", 138, True)
    run = pretraining(tmp_path, "here")
    assert (newest_step(run.checkpoints) or 0) in range(1, 112)
    preempted = rf"preempted by SIGUSR1 at \S+ \S+, requeued, job {job}; resumable at step \d+$"
    wait_for(lambda: re.match(preempted, states(tmp_path, capsys)[0][name]), tmp_path)
    wait_for(lambda: queue(job)[0] == "COMPLETED", tmp_path)
    assert made(run) == made(whole)


def test_a_job_on_two_nodes_that_is_preempted_saves_is_queued_again_once_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    write_images(tmp_path, train=60, val=20)
    (tmp_path / "toy.toml").write_text(LONG)
    changes = ("pretrain.lut.workers=0", "pretrain.lut.batch=20", "pretrain.lut.epochs=10")
    whole = pretraining(tmp_path, "whole", *changes)
    in_processes(lambda: perform(whole), 2)
    submitted(tmp_path, "pretrain/lut", overrides=changes, nodes=2)
    wait_for(in_its_loop(tmp_path), tmp_path)
    job = job_of(tmp_path, "pretrain/lut/seed0")
    beside = pretraining(tmp_path, "beside", *changes)  # as on a node that does not see the job's lock
    holder = {"process": 1, "machine": "elsewhere", "since": "today", "job": job}
    (beside.home / ".holder.json").write_text(json.dumps(holder))
    with pytest.raises(Held, match=f"by process 1 on elsewhere since today, job {job}"), lock(beside):
        pass
    urgent = asked("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_for(lambda: ended(tmp_path), tmp_path)
    assert (ended(tmp_path)["signal"], ended(tmp_path)["status"], ended(tmp_path)["requeued"]) == ("SIGTERM", 143, True)
    run = pretraining(tmp_path, "here", *changes)
    assert (newest_step(run.checkpoints) or 0) in range(1, 90)
    wait_for(lambda: queue(urgent.split()[-1])[0] == "COMPLETED", tmp_path)
    wait_for(lambda: queue(job)[0] == "COMPLETED", tmp_path)
    assert queue(job) == ("COMPLETED", 1)
    assert made(run) == made(whole)
    assert json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())["hardware"]["processes"] == 2
    with lock(beside):
        pass


def test_a_job_reads_the_images_that_its_setup_copied_to_its_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the lines of docs/cluster.md; those of the shared disk are gone when the job starts."""
    write_images(tmp_path)
    disk, shared, packed = tmp_path / "scratch/images", tmp_path / "toy", tmp_path / "images.tar"
    subprocess.run(["tar", "-cf", packed, "-C", tmp_path, "toy"], check=True)
    page = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
    [table] = re.findall(r"^\[cluster\.pretrain\]\nsetup = .*\ndata_root = .*\n", page, re.M)
    table = table.replace("/scratch/images", str(disk)).replace("/datasets/imagenet-1k.tar", str(packed))
    table = table.replace("setup = [", f"""setup = ["mv {shared} {shared}-gone", """)
    (tmp_path / "toy.toml").write_text(f"{LONG}{table}")
    submitted(tmp_path, "pretrain/lut", overrides=["pretrain.lut.epochs=2"])
    job = job_of(tmp_path, "pretrain/lut/seed0")
    wait_for(lambda: queue(job)[0] in ("COMPLETED", "FAILED"), tmp_path)
    Path(f"{shared}-gone").rename(shared)
    told, out = states(tmp_path, capsys, "pretrain.lut.epochs=2")
    assert told["pretrain/lut/seed0"] == "finished", out
    assert (disk / "toy/train").is_dir()


def test_what_slurm_does_not_take_is_told_in_its_words(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(LONG)
    with pytest.raises(
        UserError,
        match=r"SLURM refused the job: .*[Pp]artition.* It requested 1 node with 1 core, for 1-00:00:00, in partition none\. ",
    ):
        submitted(tmp_path, "pretrain/lut", partition="none", cpus=1)
