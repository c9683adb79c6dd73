"""Tests run on the CPU, with one thread and offline, so that they are exact and need nothing that is not here.

Those marked ``gpu`` need one: ``pytest -m gpu`` runs them, and no other run sees a GPU.
"""

import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

LONGEST = (
    "interruption", "slurm", "wheel", "jobs", "segmentation", "encoders",
    "smoke", "extends", "pretrain", "identities", "shard", "gpu_benchmark",
)  # fmt: skip
"""Files whose tests take half a minute or more: begun first, so that none goes on alone when all others have ended."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, before anything imports torch, unless tests on a GPU are what was asked for; compute in one thread.

    pytest-xdist begins files in the order of :data:`LONGEST` too, not those of most tests first.
    """
    config.option.loadscopereorder = False
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start too
    import torch  # here, because it counts GPUs and threads when it is imported

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; skip tests that are marked ``gpu`` where torch sees none."""
    import torch

    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
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


@pytest.fixture(scope="session", autouse=True)
def fast_machine() -> Iterator[None]:
    """Save what every run and record costs beside its computation, of which there are thousands here.

    Git and the packages tell their versions once, where they take a twentieth of a second. Files that are written are not waited
    for until they are on the disk: no test pulls the plug. Processes that are started anew do all this as ever.
    """
    from lutbench import provenance

    with pytest.MonkeyPatch.context() as patched:
        for name in ("_git", "version"):
            patched.setattr(provenance, name, functools.cache(getattr(provenance, name)))
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def signal_mask() -> Iterator[None]:
    """Begin every test with no signal held back, and fail one that holds any back when it ends: whatever it starts would inherit that."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    yield
    held = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assert not held, f"the test left signals blocked: {sorted(held)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images of :func:`toy_runs.write_images`; files with suites of their own put them there instead, or other images."""
    from toy_runs import write_images

    write_images(tmp_path)
    return tmp_path


def built_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that the first test that needs it builds, for all processes of pytest-xdist; to be read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a build that failed has left
            folder.mkdir()
            build(folder)
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all that suite ``tiny`` reads, as the checks before its runs build it: every set that the suite can build."""
    from lutbench.recipes.loading import load_suite
    from lutbench.run import open_run
    from lutbench.workspace import Workspace

    def build(folder: Path) -> None:
        suite = load_suite("tiny")
        for planned in suite.runs:
            run = open_run(suite, planned, Workspace(folder / "data", folder / "runs", folder / "results"))
            planned.kind.module.check(run)

    return built_once(tmp_path_factory, "tiny", build) / "data"


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a suite of every stage was run, see :func:`chained.run_chain`; to be read only."""
    from chained import run_chain

    return built_once(tmp_path_factory, "chain", run_chain)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, where it is there."""
    from playwright import sync_api as playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium here: `apt-get install chromium`, or any other way to have it on PATH")
    playwright.expect.set_options(timeout=120_000)  # of a machine that has much else to do
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
