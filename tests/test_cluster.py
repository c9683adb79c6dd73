"""What jobs are made of a suite and what a job does on its node, where there is no SLURM; with one see test_slurm.py."""

import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chained import CHAINED
from processes import children_of
from toy_runs import TOY, defaults, write_images

from lutbench.cluster.job_arrays import Job
from lutbench.cluster.sbatch import perform_run
from lutbench.cluster.states import job_states
from lutbench.cluster.submissions import JobEnd, Submitted, job_folder, key_of, last_lines, write_end, write_submitted
from lutbench.cluster.submit import plan_jobs, recipe_for, submit_suite
from lutbench.errors import UserError
from lutbench.locks import Held, lock
from lutbench.recipes.cluster import minutes_of
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_records
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.workspace import Workspace

CLUSTER = """
[cluster]
partition = "gpu"
gpus = 1
time = "12:00:00"
options = { exclude = "node7" }
[cluster.pretrain]
gpus = 8
gpu_type = "h100"
memory = 500
setup = ["module load cuda"]
[cluster."pretrain/lut"]
nodes = 2
"""

GUIDE = (Path(__file__).parents[1] / "docs/cluster.md").read_text()


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No command of SLURM is found, nor is this process a part of a job."""
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def suite_in(folder: Path, more: str = CLUSTER, seeds: str = "[0, 1]", *overrides: str) -> LoadedSuite:
    if not (folder / "toy").exists():
        write_images(folder)
    text = CHAINED.replace('kind = "pipeline"\n', f'kind = "pipeline"\nseeds = {seeds}\n', 1)
    (folder / "toy.toml").write_text(f"{text}{more}")
    return load_suite(str(folder / "toy.toml"), overrides)


def workspace(folder: Path) -> Workspace:
    return Workspace(folder, folder / "runs", folder / "results")


def drafted(
    folder: Path, suite: LoadedSuite, capsys: pytest.CaptureFixture[str], *only: str, **changes: Any
) -> list[str]:
    """What a dry run shows, a text for each job."""
    submit_suite(suite, workspace(folder), [], only, changes, [], dry_run=True)
    return re.split(r"\n(?=JOB\d+)", capsys.readouterr().out)[1:]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("0:59:01", 60), ("2-00", 2880), ("1-2:30", 1590), ("1-00:00:01", 1441)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "0", "-5", "2-"])
def test_what_is_no_time_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.time: "):
        suite_in(tmp_path, f'[cluster]\ntime = "{text}"\n')


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[cluster]\npartion = "gpu"\n', "cluster.partion: no such setting. Did you mean 'partition'?"),
        ("[cluster.pretrain]\ngpu = 8\n", "cluster.runs.pretrain.gpu: no such setting. Did you mean 'gpus'?"),
        ('[cluster]\ngpus = "8"\n', "cluster.gpus: "),
    ],
)
def test_a_setting_that_is_none_is_refused_with_the_nearest(tmp_path: Path, more: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        suite_in(tmp_path, more)


def test_a_table_of_no_run_is_refused_where_jobs_are_made(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, "[cluster.pretrian]\ngpus = 8\n")
    with pytest.raises(
        UserError, match=r"cluster\.pretrian: this is neither a setting nor .* Did you mean 'pretrain'\?"
    ):
        plan_jobs(suite, workspace(tmp_path), [], [], {})


def test_the_last_table_that_matches_a_run_counts_and_options_go_over_all(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    pretraining, probe = (
        recipe_for(suite, suite.run(name), {}) for name in ("pretrain/lut/seed0", "downstream/near/lut/seed1")
    )
    assert (pretraining.partition, pretraining.gpus, pretraining.nodes, pretraining.minutes) == ("gpu", 8, 2, 720)
    assert (probe.partition, probe.gpus, probe.nodes, probe.memory) == ("gpu", 1, 1, 0)
    given = recipe_for(suite, suite.run("pretrain/lut/seed0"), {"gpus": 4, "time": "30"})
    assert (given.gpus, given.nodes, given.minutes) == (4, 2, 30)


def test_cores_are_one_for_each_process_and_its_loader_processes(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, CLUSTER, "[0]", "defaults.pretrain.workers=10")
    run = suite.run("pretrain/lut/seed0")
    assert recipe_for(suite, run, {}).cpus == 88
    assert recipe_for(suite, run, {"cpus": 64}).cpus == 64


def test_nothing_of_it_is_in_an_identity(tmp_path: Path) -> None:
    identities = []
    for more in ("", CLUSTER):
        suite = suite_in(tmp_path, more)
        run = open_run(suite, suite.runs[0], workspace(tmp_path))
        identities.append((run.identity, [key_of(suite, planned) for planned in suite.runs]))
    assert identities[0] == identities[1]


def test_set_changes_it_also_where_the_suite_says_nothing(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, "", "[0]", "cluster.pretrain.gpus=4")
    assert [recipe_for(suite, run, {}).gpus for run in suite.runs[:2]] == [4, 0]


# Jobs


def test_a_dry_run_shows_what_sbatch_is_given_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = drafted(tmp_path, suite_in(tmp_path), capsys, "pretrain/lut", "tuned")
    asked = [sorted(re.findall(r"#SBATCH --(\S+)", job)) for job in jobs]
    assert jobs[0].startswith(
        "JOB1, 2 jobs: pretrain/lut/seed0, pretrain/lut/seed1; 2 nodes with 8 GPUs and 8 cores, for 12:00:00, in partition gpu\n"
    )
    for wanted in (
        *(
            "partition=gpu",
            "gpus-per-node=h100:8",
            "nodes=2",
            "time=720",
            "mem=512000M",
            "cpus-per-task=8",
            "ntasks-per-node=1",
        ),
        *(
            "array=0-1%2",
            "requeue",
            "signal=USR2@120",
            "kill-on-invalid-dep=yes",
            "exclude=node7",
            "job-name=toy/pretrain/lut",
        ),
    ):
        assert wanted in asked[0], wanted
    assert "\nmodule load cuda\n" in jobs[0]
    assert re.search(r"\nsrun .*--cpus-per-task=8 --wait=600 ", jobs[0])
    assert "dependency" not in jobs[0]
    assert "dependency=aftercorr:JOB1" in asked[1]
    assert "module load" not in jobs[1]
    assert not (tmp_path / "runs").exists()


def test_seeds_are_arrays_each_of_which_waits_for_its_own_and_of_which_a_part_waits_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_in(tmp_path, "", "[0, 1, 2]")

    def waiting(*only: str) -> dict[str, str]:
        """What each job waits for, by the runs in it."""
        found = {}
        for job in drafted(tmp_path, suite, capsys, *only):
            title = re.match(r"JOB\d+(?:, \d jobs)?: (.*); 1 node with .*? for [^;\n]*(?:; (.*))?", job)
            assert title
            found[title[1]] = title[2] or ""
        return found

    seeds = {
        name: ", ".join(f"{name}/seed{seed}" for seed in range(3)) for name in ("pretrain/lut", "downstream/tuned/lut")
    }
    every = waiting()
    assert every[seeds["pretrain/lut"]] == ""
    assert every[seeds["downstream/tuned/lut"]] == "aftercorr:JOB1"
    assert (
        every[seeds["downstream/tuned/lut"].replace("downstream/tuned", "robustness/shift/hidden")] == "aftercorr:JOB2"
    )
    assert every[seeds["downstream/tuned/lut"].replace("tuned/lut", "near/scratch")] == ""
    assert waiting("pretrain/lut", "tuned/lut/seed2") == {
        seeds["pretrain/lut"]: "",
        "downstream/tuned/lut/seed2": "afterok:JOB1_2",
    }
    assert waiting("pretrain/lut/seed1", "near/*/seed1") == {
        "pretrain/lut/seed1": "",
        "downstream/near/lut/seed1": "afterok:JOB1",
        "downstream/near/teacher/seed1": "afterok:JOB1",
        "downstream/near/scratch/seed1": "",
    }


@pytest.mark.parametrize("number", [0, 1])
def test_the_small_tests_of_the_guide_make_the_jobs_that_it_says(number: int, tiny_data: Path, tmp_path: Path) -> None:
    lines = [line for line in GUIDE.splitlines() if line.startswith("    lutbench submit tiny ")]
    assert len(lines) == 2
    folders = ["--dry-run", "--data-root", str(tiny_data), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(lines[number], comments=True), *folders],
        capture_output=True,
        text=True,
        check=True,
    )
    jobs = re.findall(r"(?m)^JOB\d+(?:, \d+ jobs)?: ([^;\n]*); ([^;\n]*)", done.stdout)
    if number == 1:
        named = {name for names, _ in jobs for name in names.split(", ")}
        assert named == {run.name for run in load_suite("tiny").runs}
        assert {request for _, request in jobs} == {"1 node with 1 core, for 30 minutes"}
    else:
        ((names, request),) = jobs
        assert (names, request.split(",")[0]) == ("pretrain/lut/seed0", "2 nodes with 1 core")
    assert not (tmp_path / "runs").exists()


def test_the_table_of_the_guide_asks_for_what_it_says(tmp_path: Path) -> None:
    (table,) = re.findall(r"(?ms)^```toml\n(\[cluster\].*?)^```", GUIDE)
    (tmp_path / "mine.toml").write_text(f'extends = "paper"\n{table}')
    suite = load_suite(str(tmp_path / "mine.toml"))
    runs = ("pretrain/lut-l/seed0", "pretrain/lut-b/seed0", next(r.name for r in suite.runs if r.stage == "robustness"))
    large, base, shifted = (recipe_for(suite, suite.run(name), {}) for name in runs)
    assert (large.nodes, large.gpus, large.constraint, large.partition) == (2, 8, "h100", "gpu")
    assert (base.nodes, base.gpus, base.constraint) == (1, 8, "")
    assert (shifted.parallel, shifted.gpus, shifted.options) == (20, 1, {"exclude": "node7"})
    assert [minutes_of(one.time) for one in (large, shifted)] == [2880, 720]


@pytest.mark.slow
def test_the_lines_of_the_guide_for_two_machines_make_the_run_of_one_process(tmp_path: Path) -> None:
    """As they stand, with the numbers of this machine: one process on each "machine", a suite of toys, a free port."""
    suite = suite_in(tmp_path, "", "[0]")
    run_suite(suite, [], ["pretrain/lut"], workspace(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    changes = {"FIRST": "127.0.0.1", "29500": port, "--nproc-per-node 8": "--nproc-per-node 1"}
    changes |= {"paper": str(tmp_path / "toy.toml"), "lut-l": "lut", "DIR": str(tmp_path)}
    lines = [line.strip() for line in GUIDE.splitlines() if line.startswith("    torchrun --nnodes 2")]
    assert len(lines) == 2
    started = []
    for line in lines:
        for before, after in changes.items():
            assert before in line
            line = line.replace(before, after)
        folders = [f"--{name}={tmp_path / 'two' / name}" for name in ("runs", "results")]
        command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:], *folders]
        started.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    assert [one.wait(300) for one in started] == [0, 0]
    one, two = (
        {m.metric: m.value for m in read_records(folder, "toy")["pretrain/lut/seed0"].measurements}
        for folder in (tmp_path / "results", tmp_path / "two/results")
    )
    assert len(one) >= 3
    assert two == pytest.approx(one, rel=1e-4)


def test_what_cannot_be_done_is_told_and_what_needs_it_is_not_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_in(tmp_path, "", "[0]")
    with pytest.raises(UserError, match=r"1 run cannot run, and would be not submitted\.\n.*pretrain/lut/seed0"):
        submit_suite(suite, workspace(tmp_path), [], ["near/lut"], {}, [], dry_run=True)
    (tmp_path / "toy/train").rename(tmp_path / "toy/gone")
    submission = plan_jobs(
        load_suite(str(tmp_path / "toy.toml")), workspace(tmp_path), [], ["pretrain/lut", "tuned"], {}
    )
    assert set(submission.refused) == {"pretrain/lut/seed0", "downstream/tuned/lut/seed0"}
    assert not submission.jobs


def test_without_slurm_it_is_said_what_can_be_done(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SLURM not found: .*--dry-run"):
        submit_suite(suite_in(tmp_path, "", "[0]"), workspace(tmp_path), [], ["pretrain/lut"], {}, [], dry_run=False)


# What status says when SLURM knows nothing any more


def test_how_jobs_ended_is_known_without_slurm(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, "", "[0]")
    assert job_states(suite, tmp_path / "runs") == {}
    folder = job_folder(tmp_path / "runs", "toy")
    (tmp_path / "log.err").write_text("submitit WARNING (...)\n" + "".join(f"line {number}\n" for number in range(20)))
    names = ["pretrain/lut/seed0", "downstream/tuned/lut/seed0", "downstream/near/scratch/seed0"]
    for number, (name, after) in enumerate(zip(names, ("", names[0], ""), strict=True)):
        key = key_of(suite, suite.run(name))
        write_submitted(
            folder, Submitted(run=name, key=key, job=str(number), after=after, err=str(tmp_path / "log.err"))
        )
    write_end(folder, JobEnd(job="0", status=1, node="node1", when="2026-01-01T12:00:00+00:00"))
    states = job_states(suite, tmp_path / "runs")
    assert states[names[0]].text == "failed, exit status 1, job 0"
    assert states[names[0]].paragraph.endswith("\n    ".join(["", *(f"line {number}" for number in range(12, 20))]))
    assert states[names[1]].text == f"cancelled, because {names[0]} failed, job 1"
    assert states[names[2]].text == "unknown: SLURM no longer lists job 2"
    write_end(folder, JobEnd(job="2", status=143, signal="SIGTERM", when="2026-01-01T12:00:00+00:00"))
    assert job_states(suite, tmp_path / "runs")[names[2]].text.startswith("stopped by SIGTERM at 2026-01-0")
    changed = load_suite(str(tmp_path / "toy.toml"), ["pretrain.lut.epochs=7"])
    assert set(job_states(changed, tmp_path / "runs")) == {names[2]}, "another recipe is another run"


def test_the_last_lines_are_of_the_log_that_has_any_and_not_submitits_own(tmp_path: Path) -> None:
    for name, text in (("err", "submitit INFO: x\n\n"), ("out", "1\n2\n3\n4\n5\n6\n7\n8\n9\r10\n")):
        (tmp_path / name).write_text(text)
    told = last_lines(str(tmp_path / "none"), str(tmp_path / "err"), str(tmp_path / "out"))
    assert told == ["3", "4", "5", "6", "7", "8", "9", "10"]


def test_what_status_asks_of_jobs_needs_no_torch() -> None:
    code = "import sys, lutbench.cluster.states; sys.exit(bool({'torch', 'submitit', 'timm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# On a node

CHILD = """
import signal, sys, time
from pathlib import Path
from lutbench.interruption import hearing
heard, started = [], Path(sys.argv[1])
time.sleep(1)  # a signal that comes now waits until it is heard
with hearing(lambda number, again: heard.append(number)):
    started.touch()
    while not heard:
        time.sleep(0.01)
    time.sleep(1)  # for those that come twice
sys.exit(100 + len(heard))
"""

JOB = """
import sys
from lutbench.cluster.job import watched
print(*watched(sys.argv[1:]))
"""


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_to_a_job_reaches_the_run_once_whenever_it_comes(tmp_path: Path, early: bool) -> None:
    """Also if the scheduler sends it to every process of the job."""
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "started")]
    job = subprocess.Popen([sys.executable, "-c", JOB, *command], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (children_of(job.pid) if early else (tmp_path / "started").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in (job.pid, children_of(job.pid)[0], job.pid):
        os.kill(process, signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert out.split() == ["101", str(int(signal.SIGTERM))]


def test_torchrun_as_a_job_has_it_passes_signals_by_and_ends_as_its_processes_do(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        CHILD.replace("sys.exit(100 + len(heard))", "sys.exit(128 + heard[0])").replace(
            "[1])", '[1] + __import__("os").environ["RANK"])'
        )
    )
    line = [
        "-m",
        "lutbench.cluster.launch",
        "--standalone",
        "--nproc-per-node=2",
        str(tmp_path / "child.py"),
        str(tmp_path / "started"),
    ]
    job = subprocess.Popen([sys.executable, "-c", JOB, sys.executable, *line], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"started{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    launcher = children_of(job.pid)[0]
    for process in (launcher, job.pid):
        os.kill(process, signal.SIGUSR1)
    out, _ = job.communicate(timeout=120)
    assert out.split() == ["138", str(int(signal.SIGUSR1))]


def test_a_job_whose_suite_file_changed_since_does_nothing(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, "", "[0]")
    run = open_run(suite, suite.runs[0], workspace(tmp_path))
    job = Job([run], recipe_for(suite, run.planned, {}))
    perform = perform_run(run, job, suite, workspace(tmp_path), [], tmp_path / "jobs")
    assert perform._changed() == ""
    text = (tmp_path / "toy.toml").read_text()
    (tmp_path / "toy.toml").write_text(text.replace("epochs = 1", "epochs = 3", 1))
    assert "its settings in the suite file have changed since it was submitted" in perform._changed()


def test_images_on_the_disk_of_a_node_are_found_by_what_the_node_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_in(tmp_path, '[cluster]\ndata_root = "$SCRATCH/images"\n', "[0]")
    run = open_run(suite, suite.runs[0], workspace(tmp_path))
    perform = perform_run(
        run, Job([run], recipe_for(suite, run.planned, {})), suite, workspace(tmp_path), [], tmp_path / "jobs"
    )
    monkeypatch.setenv("SCRATCH", "/local/7")
    assert "--data-root=/local/7/images" in perform.command()


def _hold(home: Path, ready: Any) -> None:
    from filelock import FileLock

    home.mkdir(parents=True)
    with FileLock(home / ".lock"):
        ready.set()
        time.sleep(600)


def test_a_lock_of_a_process_that_is_killed_is_free_and_a_job_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(f"{TOY}{defaults('pretrain')}\n[pretrain.lut]\n")
    suite = load_suite(str(tmp_path / "toy.toml"))
    run = open_run(suite, suite.runs[0], workspace(tmp_path))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(run.home, ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(Held), lock(run):
        pass
    monkeypatch.setenv("LUTBENCH_LOCK_PATIENCE", "60")
    assert other.pid is not None
    killed = context.Process(target=lambda: (time.sleep(1), os.kill(other.pid, signal.SIGKILL)))
    killed.start()
    with lock(run):
        assert json.loads((run.home / ".holder.json").read_text())["process"] == os.getpid()
    for process in (killed, other):
        process.join()
