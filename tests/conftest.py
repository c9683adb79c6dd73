"""Tests run on the CPU, with one thread and offline, so that they are exact and need nothing that is not here."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all that suite ``tiny`` reads, as the checks before its runs build it; to be read only."""
    from lutbench.recipes.loading import load_suite
    from lutbench.run import open_run
    from lutbench.workspace import Workspace

    root = tmp_path_factory.mktemp("tiny")
    suite = load_suite("tiny")
    for planned in suite.runs:
        run = open_run(suite, planned, Workspace(root / "data", root / "runs", root / "results"))
        planned.kind.module.check(run)
    return root / "data"
