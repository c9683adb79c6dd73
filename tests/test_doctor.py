"""``lutbench doctor`` tells what is wrong with an installation, and the line that mends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lutbench.doctor import (
    Finding,
    constraint_finding,
    folder_findings,
    library_findings,
    package_findings,
    probed,
    python_finding,
    requirements,
    show,
)

ROOT = Path(__file__).parents[1]
FINE = {
    "torch": (["2.15.0", "13.2"], ""),
    "GPU": (["NVIDIA H100, 80 GiB"], ""),
    "torchvision": (["0.29.2"], ""),
    "timm": (["1.0.31"], ""),
    "MMSegmentation": (["1.4.2"], ""),
}
"""What a machine with a GPU answers on which all is well."""


def found(
    answers: dict[str, tuple[list[str], str]], driver: bool = True, segmentation: bool = True
) -> dict[str, Finding]:
    return {finding.about: finding for finding in library_findings(answers, driver, segmentation)}


def doctor(folder: Path, modules: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Give the command in ``folder``, with what lies in ``modules`` in the place of the installed modules of those names."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT)])}
    line = [sys.executable, "-m", "lutbench", "doctor", *options]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_torch_that_cannot_be_imported_is_told_with_the_line_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/torch.py").write_text('raise ImportError("libcudart.so.12: cannot open shared object file")')
    done = doctor(tmp_path, tmp_path / "modules")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("WRONG  torch: "))
    assert "libcudart.so.12: cannot open shared object file" in lines[place]
    assert lines[place + 1].startswith("       fix: ")
    assert "install" in lines[place + 1]
    assert lines[-1] == "1 problem found."


def test_a_library_of_the_system_that_opencv_lacks_is_named_with_its_package() -> None:
    missing = "ImportError: libxcb.so.1: cannot open shared object file: No such file or directory"
    finding = found({**FINE, "MMSegmentation": ([], missing)})["MMSegmentation"]
    assert (finding.status, finding.text) == ("wrong", f"cannot be imported: {missing}")
    assert "apt-get install" in finding.mend
    assert "libxcb1" in finding.mend


def test_a_library_that_ends_its_process_is_a_finding() -> None:
    answers = probed({"torch": "import os; os._exit(77)", "timm": "found = ['1']"})
    assert answers == {"torch": ([], "the process ended with exit status 77 during the import")}


def test_what_libraries_print_is_no_answer() -> None:
    assert probed({"timm": "print('Welcome!'); found = ['1.0']"}) == {"timm": (["1.0"], "")}


def test_a_machine_on_which_all_is_well_has_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert {finding.status for finding in found(FINE).values()} == {"ok"}
    assert show(found(FINE).values())
    assert capsys.readouterr().out.endswith("No problems found.\n")


def test_a_gpu_that_torch_does_not_see_is_wrong_where_there_is_a_driver() -> None:
    unseen = FINE | {"GPU": ([], "")}
    assert found(unseen)["GPU"].status == "wrong"
    assert "CUDA 13.2, which may be newer than the driver" in found(unseen)["GPU"].text
    assert "is built for CPUs" in found(unseen | {"torch": (["2.15.0", ""], "")})["GPU"].text
    assert found(unseen, driver=False)["GPU"].status == "note"


def test_mmsegmentation_may_be_absent_but_not_broken() -> None:
    absent = FINE | {"MMSegmentation": ([], "ModuleNotFoundError: No module named 'mmseg'")}
    assert found(absent, segmentation=False)["MMSegmentation"].status == "note"
    assert found(absent)["MMSegmentation"].status == "wrong"
    assert "[segmentation]" in found(absent)["MMSegmentation"].mend


def test_missing_and_old_packages_are_named() -> None:
    (finding,) = package_findings(
        ["numpy>=2", "torch>=2.11", "pandas[extra]>=2.2"], {"numpy": "1.26.4", "pandas": "2.2"}
    )
    assert finding.status == "wrong"
    assert finding.text == "numpy is 1.26.4, but >=2 is required; torch is missing."
    assert finding.mend.endswith('-c constraints.txt -e "."')


def test_what_is_needed_is_what_pyproject_says() -> None:
    assert any(line.startswith("torch>=") for line in requirements())
    assert not any(line.startswith("pytest") for line in requirements())


def test_versions_other_than_the_tested_ones_are_a_note() -> None:
    constraints, needed = "numpy==2.4.1\ntorch==2.15.0 ; sys_platform == 'linux'\n", ["numpy>=2", "torch>=2.11"]
    same = constraint_finding(constraints, needed, {"numpy": "2.4.1", "torch": "2.15.0+cu132"})
    assert (same.status, same.mend) == ("ok", "")
    other = constraint_finding(constraints, needed, {"numpy": "2.3.0", "torch": "2.15.0"})
    assert other.status == "note"
    assert "numpy 2.3.0 (2.4.1)" in other.text
    assert "torch" not in other.text


def test_an_old_python_is_wrong() -> None:
    assert python_finding((3, 10)).status == "wrong"
    assert python_finding((3, 11)).status == "ok"


def test_a_folder_that_is_a_file_is_wrong_and_one_to_come_is_not(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    (finding,) = folder_findings("--runs", tmp_path / "runs")
    assert finding.status == "wrong"
    assert finding.mend.startswith("mv ")
    (finding,) = folder_findings("--runs", tmp_path / "to/come")
    assert finding.status == "ok"
    assert "does not exist yet" in finding.text
    assert not (tmp_path / "to").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_wrong(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (finding,) = folder_findings("--results", tmp_path)
    assert finding.status == "wrong"
    assert "No permission to write to" in finding.text


def test_a_disk_without_room_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutbench.doctor.ROOM", 10**18)
    (finding,) = folder_findings("--results", tmp_path)
    assert finding.status == "wrong"
    assert "more space" in finding.mend
    (finding,) = folder_findings("--data-root", tmp_path)
    assert finding.status == "ok"


def test_completion_is_offered() -> None:
    from typer.testing import CliRunner

    from lutbench.cli import app

    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in shown
    answered = CliRunner(env={"_LUTBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "lutbench doc", "COMP_CWORD": "1"})
    result = answered.invoke(app, [], prog_name="lutbench")
    assert result.output.split() == ["doctor"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run t", ["tiny"]),
        ("tables mi", ["mine.toml"]),
        ("report evidence-", ["evidence-ablations", "evidence-gpu", "evidence-settings"]),
        ("add mine.pth --to sm", ["small"]),
    ],
)
def test_the_names_of_suites_are_completed_without_importing_anything_slow(
    typed: str, offered: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").touch()
    asked = {
        "_LUTBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"lutbench {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    code = (
        "import sys; from lutbench.cli import app\n"
        "try: app([], prog_name='lutbench')\n"
        "finally: sys.stderr.write(' '.join(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **asked}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == offered
    assert not set(ended.stderr.split()) & {"torch", "timm", "pandas", "datasets", "matplotlib"}
