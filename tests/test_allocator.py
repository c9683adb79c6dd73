"""What malloc does with large blocks that are freed, in a process that was told and in one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import toy_run, write_images

from lutbench import stages

FAULTS = """
import resource, sys
import numpy as np
from lutbench.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MB, written to and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "told":
    assert keep_freed_memory()
faults()
print(faults())
"""


def page_faults(how: str) -> int:
    """Page faults of the second of two large arrays of one size, of which the first was freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="for glibc")
def test_a_large_block_that_was_freed_is_not_faulted_in_again() -> None:
    assert page_faults("told") < 100
    assert page_faults("not told") > page_faults("told") + 50


def test_a_run_tells_it_before_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    write_images(tmp_path)
    run = toy_run(tmp_path, kind="knn")
    monkeypatch.setattr(stages, "keep_freed_memory", lambda: told.append(not list(run.workspace.results.rglob("*"))))
    stages.perform(run)
    assert told == [True]
