"""Garbage is collected rarely while libraries are imported; a command's process ends like any other, but at once."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_runs import TOY, defaults, write_images

from lutbench.garbage import RARE, USUAL, collect_as_usual, collect_rarely
from lutbench.recipes.loading import load_suite
from lutbench.stages import run_suite
from lutbench.workspace import Workspace

ROOT = Path(__file__).parents[1]

PRETRAIN = f"""{TOY}
{defaults("pretrain", epochs=1)}
[method.mae]
pretrain = "mae"
[pretrain.mae]
context_weight = 0.0
"""


@pytest.fixture
def thresholds() -> Iterator[None]:
    yield
    gc.set_threshold(*USUAL)
    gc.unfreeze()


def python(program: str, *arguments: str, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    """A program in a process of its own."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=surroundings, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("thresholds")
def test_collections_never_go_through_what_existed_before_runs() -> None:
    collect_as_usual()
    assert gc.get_freeze_count() == 0  # nothing changed before
    collect_rarely()
    assert gc.get_threshold()[0] == RARE[0]
    collect_as_usual()
    assert gc.get_threshold() == USUAL
    assert gc.get_freeze_count() > 100_000
    frozen = gc.get_freeze_count()
    collect_as_usual()
    assert gc.get_freeze_count() == frozen


@pytest.mark.usefixtures("thresholds")
def test_runs_collect_as_usual(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(PRETRAIN)
    collect_rarely()
    suite = load_suite(str(tmp_path / "toy.toml"), [])
    run_suite(suite, ["pretrain"], [], Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"))
    assert gc.get_threshold() == USUAL


ENDS = """
import atexit, threading, time
from lutbench.garbage import end_process
class Kept:
    def __del__(self): print("searched", flush=True)
kept = Kept()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
print("printed")
end_process(3)
"""


def test_a_process_ends_after_its_threads_and_exit_functions_with_all_output() -> None:
    done = python(ENDS)
    assert (done.returncode, done.stdout.split("\n")) == (3, ["printed", "thread", "exit function", ""])


def test_output_that_nobody_reads_is_an_exit_status() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = python(PRINTS, stdout=writes)
    os.close(writes)
    assert done.returncode == 120


@pytest.mark.parametrize("closed", ["sys.stdout.close()", "sys.stdout = None", "sys.stderr = None"])
def test_a_stream_that_is_closed_is_no_error(closed: str) -> None:
    done = python(f"import sys; {closed}; {PRINTS.partition(';')[0]}; end_process(0)")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_profile_is_written() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cProfile", "-m", "lutbench", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "function calls" in done.stdout


PRINTS = "from lutbench.garbage import end_process; print('printed'); end_process(0)"

COMMAND = """
import sys
import lutbench.__main__
def ends():
    %s
lutbench.__main__.main = ends
lutbench.__main__.command()
"""


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(75)", 75, ""),
        ("sys.exit('a sentence')", 1, "a sentence\n"),
        ("sys.exit(1.5)", 1, "1.5\n"),
        ("raise ValueError('a defect')", 1, "ValueError: a defect\n"),
    ],
)
def test_a_command_ends_with_its_exit_status(end: str, status: int, told: str) -> None:
    done = python(COMMAND % end)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.endswith(told)
    assert ("Traceback" in done.stderr) == ("Error" in told)


def test_the_command_line_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "lutbench", "no-such"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command" in done.stderr
