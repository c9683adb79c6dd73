"""What a repository has beside its code says what is there: workflows, templates, the citation, the hooks before a commit."""

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from lutbench import __version__
from lutbench.cli import app

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of nox's sessions."""
    nox = MagicMock()  # it has an environment of its own; only what is registered is needed
    nox.session.side_effect = lambda function=None, **options: (
        function if function else (lambda decorated: names.add(decorated.__name__) or decorated)
    )
    names = set[str]()
    monkeypatch.setitem(sys.modules, "nox", nox)
    found = runpy.run_path(str(ROOT / "noxfile.py"))
    plain = {call.args[0].__name__ for call in nox.session.call_args_list if call.args and "name" not in call.kwargs}
    return names | plain | set(found["STAGES"])


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.stem}/{name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def lines_of(job: dict[str, Any]) -> list[str]:
    """The lines that a job runs, once for each value of its matrix."""
    lines = [step["run"] for step in job["steps"] if "run" in step]
    for name, values in job["strategy"]["matrix"].items():
        lines = list(
            dict.fromkeys(line.replace(f"${{{{ matrix.{name} }}}}", value) for line in lines for value in values)
        )
    return lines


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_a_workflow_only_calls_sessions_that_nox_has(name: str, job: dict[str, Any], sessions: set[str]) -> None:
    install, *called = lines_of(job)
    assert install == 'python -m pip install "nox[uv]"'
    named = [re.fullmatch(r"nox -s ([a-z]+)(?: -- .*)?", line) for line in called]
    assert named
    assert all(named), called
    assert {match[1] for match in named if match} <= sessions


def test_every_session_that_checks_is_in_a_workflow(sessions: set[str]) -> None:
    called = {match[1] for _, job in jobs() for line in lines_of(job) if (match := re.match(r"nox -s ([a-z]+)", line))}
    runs = {"pretrain", "downstream", "robustness", "analysis", "results", "constraints", "vega"}
    assert sessions - runs == called


def test_every_suite_is_smoked() -> None:
    smoked = read(ROOT / ".github/workflows/ci.yml")["jobs"]["smoke"]["strategy"]["matrix"]["suite"]
    assert sorted(smoked) == sorted(path.stem for path in (ROOT / "suites").glob("*.toml"))


def test_tests_run_on_linux_and_macos_with_every_python_that_is_allowed() -> None:
    matrix = read(ROOT / ".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(lowest.split(".")[1]), 15)]


def test_the_lowest_and_the_newest_packages_are_tried_every_week() -> None:
    weekly = read(ROOT / ".github/workflows/weekly.yml")
    assert weekly[True]["schedule"], "YAML reads on as true"
    assert weekly["jobs"]["dependencies"]["strategy"]["matrix"]["session"] == ["lowest", "newest"]


def test_dependabot_looks_at_packages_and_actions() -> None:
    updates = read(ROOT / ".github/dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}
    assert all((ROOT / update["directory"].lstrip("/") / "pyproject.toml").is_file() for update in updates)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_a_template_asks_and_names_commands_that_exist(path: Path) -> None:
    template = read(path)
    assert template["name"]
    assert template["description"]
    assert any(field["validations"]["required"] for field in template["body"] if "validations" in field)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"lutbench ([a-z]+)", path.read_text(encoding="utf-8"))) <= commands


def test_the_hooks_before_a_commit_are_programs_of_the_environment() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert {hook["entry"].split()[0] for hook in local["hooks"]} == {".venv/bin/ruff", ".venv/bin/mypy"}


def test_the_citation_has_this_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    assert paper["title"] == "Learning with Unmasked Tokens Drives Stronger Vision Learners"
    method = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert ", ".join(author["family-names"] for author in paper["authors"]) in method
    assert paper["url"] in method


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
