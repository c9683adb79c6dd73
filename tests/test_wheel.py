"""The wheel has all that a run needs: installed outside the clone, it runs the suite tiny to the end."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SHORTER = (
    "defaults.pretrain.data=tiles", "defaults.pretrain.epochs=1", "defaults.pretrain.warmup_epochs=0", "defaults.finetune.epochs=1",
    "defaults.finetune.warmup_epochs=0", "defaults.linear.epochs=4", "defaults.linear.warmup_epochs=0",
    "defaults.segmentation.iterations=4", "defaults.segmentation.warmup=1", "shifted.c.corruptions=['fog']",
    "shifted.c.extra=[]", "shifted.c.severities=[1]", "shifted.occlusion.drops=[0]", "shifted.occlusion.shuffles=[3]",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, of the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_code_the_suites_and_the_published_numbers_and_no_records(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.startswith("lutbench-")}
    assert tops == {"lutbench", "pretrain", "downstream", "robustness", "suites"}
    for needed in (
        "suites/tiny.toml", "lutbench/data/sets.toml", "lutbench/data/ade20k.json", "lutbench/report/published.toml",
        "robustness/data/objectnet.json", "robustness/corruptions/constants.toml", "pretrain/frameworks/mae.py",
    ):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.endswith((".npz", ".npy", ".png", ".pyc"))]


@pytest.mark.slow
def test_an_installed_wheel_runs_tiny_to_the_end_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="tiny segments with MMSegmentation, of the extra `segmentation`")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:  # as an installer unpacks it: it is pure Python
        archive.extractall(site)
    # The other packages are those of this environment, whose editable install of the clone comes with a .pth, which is not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    asked = "import lutbench, suites, pretrain; print(lutbench.__file__, suites.__file__, pretrain.__file__, sep='\\n')"
    files = subprocess.run([python, "-c", asked], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert all(Path(file).is_relative_to(site) for file in files.split())

    options = [word for setting in SHORTER for word in ("--set", setting)]
    run = subprocess.run(
        [python, "-m", "lutbench", "run", "tiny", "--only", "lut", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    tables = [python, "-m", "lutbench", "tables", "tiny", *options]
    shown = subprocess.run(tables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "Fine-tuning" in shown.stdout
    assert len(list((tmp_path / "results/records/tiny").rglob("*.json"))) == 11, (
        "every stage and kind of task, of one method"
    )
