"""Tests run on the CPU, with one thread and offline, so that they are exact and need nothing that is not here.

Those marked ``gpu`` need one: ``pytest -m gpu`` runs them, and no other run sees a GPU.
"""

import os
import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, before anything imports torch, unless tests on a GPU are what was asked for; compute in one thread."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start too
    import torch  # here, because it counts GPUs and threads when it is imported

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that are marked ``gpu`` where torch sees none."""
    import torch

    if torch.cuda.is_available():
        return
    asked = config.getoption("markexpr") == "gpu"
    reason = "torch sees no GPU here" if asked else "needs a GPU, which `pytest -m gpu` uses"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def kept_by_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep what commands find out apart from what those of the user kept, see :mod:`lutbench.kept`."""
    folder = tmp_path_factory.mktemp("kept")
    os.environ["LUTBENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def kept(kept_by_tests: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test know what another found out."""
    os.environ["LUTBENCH_CACHE"] = str(kept_by_tests / sha256(request.node.nodeid.encode()).hexdigest()[:16])
    yield
    os.environ["LUTBENCH_CACHE"] = str(kept_by_tests)


@pytest.fixture(autouse=True)
def signal_mask() -> Iterator[None]:
    """Begin every test with no signal held back, and fail one that holds any back when it ends: whatever it starts would inherit that."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    yield
    held = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assert not held, f"the test left signals blocked: {sorted(held)}"


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
