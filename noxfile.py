"""Sessions of the suite. They share one environment, ``.venv``, and only call the command line.

``nox -s pretrain downstream robustness analysis results`` runs the suite ``tiny``; ``nox -s pretrain downstream -- small --data-root DIR``
another one, with options of ``lutbench run``.
"""

import os
import re
from argparse import ArgumentParser
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
STAGES = {
    "pretrain": "Pre-train every encoder of a suite.",
    "downstream": "Fine-tune, probe and segment with every encoder of a suite.",
    "robustness": "Evaluate a suite's fine-tuned classifiers on shifted test sets.",
    "analysis": "Analyse a suite's encoders: attention, the spectrum of the features, k-NN accuracy of each block.",
}
"""One session per stage, in the order in which they are run: the stages of lutbench/kinds.py, with a description."""

nox.options.sessions = [*STAGES, "results"]

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv"


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program in the shared environment, which is created on first use with constraints.txt and the Python in LUTBENCH_PYTHON.

    After Ctrl-C the program has as much time as it needs to save; a second Ctrl-C stops it at once. If it fails, nox continues with
    the next session; if a signal ended it (SIGHUP, SIGINT, SIGTERM), nox ends too.
    """
    _install(session)
    folder = ENVIRONMENT / ("Scripts" if (ENVIRONMENT / "Scripts").is_dir() else "bin")
    try:
        session.run(str(folder / program), *arguments, external=True, interrupt_timeout=None, terminate_timeout=None)
    except nox.command.CommandFailed as failed:
        if re.search(r"code (-1|-2|-15|129|130|143)$", str(failed)):
            raise KeyboardInterrupt from failed
        raise


def suite_and_options(session: nox.Session) -> list[str]:
    """Return the suite and options after ``--``; the suite is ``tiny`` if none is given."""
    given = list(session.posargs)
    return given if given and not given[0].startswith("-") else ["tiny", *given]


def tables_options(given: list[str], *others: str) -> list[str]:
    """Return the suite and those options of ``lutbench run`` that ``lutbench tables`` accepts too: ``--results`` and ``--set``; and ``others``."""
    parser = ArgumentParser(allow_abbrev=False)
    for option in ("results", "set", *others):
        parser.add_argument(f"--{option}", action="append", default=[])
    options = vars(parser.parse_known_args(given[1:])[0])
    named = [(f"--{name.replace('_', '-')}", value) for name, values in options.items() for value in values]
    return [given[0], *(part for pair in named for part in pair)]


def jobs_option(given: list[str]) -> list[str]:
    """Run two runs of ``tiny`` in parallel on two or more cores, unless ``--jobs`` is given: each uses one core."""
    counted = any(option.partition("=")[0] == "--jobs" for option in given)
    return ["--jobs", "2"] if given[0] == "tiny" and not counted and (os.cpu_count() or 1) > 1 else []


def add_stage(name: str, about: str) -> None:
    """Make the session that runs one stage of a suite."""

    def stage(session: nox.Session) -> None:
        given = suite_and_options(session)
        run(session, "lutbench", "run", *given, *jobs_option(given), "--stage", name)

    stage.__doc__ = about
    nox.session(stage, name=name, venv_backend="none")


for name, about in STAGES.items():
    add_stage(name, about)


@nox.session(venv_backend="none")
def smoke(session: nox.Session) -> None:
    """Test every run of a suite in minutes, with few images and few steps, up to the tables; kept apart from the real runs."""
    given = suite_and_options(session)
    run(session, "lutbench", "run", *given, *([] if "--smoke" in given else ["--smoke"]))


@nox.session(venv_backend="none")
def results(session: nox.Session) -> None:
    """Build and print a suite's tables from its records; write the HTML report and print its path."""
    given = suite_and_options(session)
    run(session, "lutbench", "tables", *tables_options(given))
    run(session, "lutbench", "report", *tables_options(given, "data-root", "runs"))


@nox.session(venv_backend="none")
def tables(session: nox.Session) -> None:
    """Check that the tables in the repository match the records they are built from."""
    for suite in ("tiny", "camvid", "evidence", "evidence-settings", "evidence-ablations", "small", "paper"):
        run(session, "lutbench", "tables", suite, "--check", "--results", "results/reference")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests on all cores. Options after ``--`` go to pytest, such as ``-m gpu -n 0``."""
    run(session, "pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session(reuse_venv=True)
def trackers(session: nox.Session) -> None:
    """Test the experiment trackers, offline, in a separate environment with their packages. Options after ``--`` go to pytest."""
    session.install("-c", "constraints.txt", "-e", ".[dev,trackers]")
    session.run("pytest", "tests/test_trackers.py", *session.posargs)


@nox.session(reuse_venv=True)
def newest(session: nox.Session) -> None:
    """Run the tests with the newest versions of all packages, without constraints.txt, in a separate environment."""
    session.install("--upgrade", "-e", ".[dev,segmentation]")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session(reuse_venv=True)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows, in a separate environment."""
    session.install("--resolution", "lowest-direct", "-e", ".[dev,segmentation]")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment, and smoke-test suite ``tiny`` with it, outside the clone."""
    folder = Path(session.create_tmp()).absolute()
    session.run("uv", "build", "--wheel", "--clear", "--out-dir", str(folder / "wheel"), external=True)
    (built,) = (folder / "wheel").glob("*.whl")
    session.install("-c", "constraints.txt", f"lutbench[segmentation] @ {built.as_uri()}")
    session.chdir(folder)
    session.run("lutbench", "doctor")
    session.run("lutbench", "run", "tiny", "--smoke")


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """Build the documentation and run its notebooks, with warnings as errors, in a separate environment; print the path of the site."""
    session.install("-c", "constraints.txt", "-e", ".[docs]")
    site = ROOT / "docs/_build/html"
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", str(site), *session.posargs)
    session.log(f"The documentation: {(site / 'index.html').as_uri()}")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")


@nox.session(reuse_venv=True)
def vega(session: nox.Session) -> None:
    """Rebuild the script that draws the report's charts, in a separate environment with the package it comes from."""
    session.install("vl-convert-python==1.9.0.post1")
    session.run("python", "docs/bundle_vega.py")


@nox.session(venv_backend="none")
def constraints(session: nox.Session) -> None:
    """Rebuild constraints.txt from pyproject.toml, without the address of a package registry."""
    session.run(
        "uv", "pip", "compile", "--upgrade", "--no-emit-index-url", "--no-header", "--no-annotate", "--universal",
        "--extra", "dev", "--extra", "segmentation", "--extra", "docs", "--extra", "trackers", "--python-version", "3.11", "pyproject.toml", "-o", "constraints.txt", external=True,
    )  # fmt: skip


def _install(session: nox.Session) -> None:
    """Update ``.venv`` to pyproject.toml and constraints.txt, if either has changed."""
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    stamp = ENVIRONMENT / "installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not ENVIRONMENT.is_dir():
        python = os.environ.get("LUTBENCH_PYTHON", ">=3.11")
        session.run("uv", "venv", "--python", python, str(ENVIRONMENT), external=True)
    options = ("--compile-bytecode", "--python", str(ENVIRONMENT), "-c", "constraints.txt")
    session.run("uv", "pip", "install", *options, "-e", ".[dev,segmentation]", external=True)
    stamp.write_text(wanted)
