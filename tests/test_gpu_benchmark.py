"""The GPU benchmark goes on working: all of its parts at toy sizes, on a CPU, and the page that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("env", "peak", "correct", "speed", "trace", "data", "loop", "downstream", "attention")
PAGE = "before\n<!-- the GPU's table begins -->\n\nold\n\n<!-- the GPU's table ends -->\nafter\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a dry run leaves."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "page.md").write_text(PAGE)
    command = [sys.executable, "benchmarks/gpu/measure.py", "--out", str(folder), "--page", str(folder / "page.md")]
    environment = os.environ | {"TOY": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder


def rows(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_part_measures_and_none_fails(results: Path) -> None:
    found = rows(results)
    assert [row for row in found if "error" in row] == []
    assert {row["part"] for row in found} == {*PARTS, "fine-tuning"}


@pytest.mark.slow
def test_what_it_checks_holds_on_a_cpu(results: Path) -> None:
    found = {row["what"]: row for row in rows(results) if "what" in row}
    assert found["golden parity"]["passed"]
    assert found["losses, device against CPU, float32"]["relative"] == ["0.0e+00", "0.0e+00"]
    assert found["the same bits"]["repeated"]
    assert found["the same bits"]["resumed"]
    assert found["colours, all images"]["mean_difference"] == found["colours, chosen images"]["mean_difference"] < 0.1


@pytest.mark.slow
def test_without_a_gpu_the_page_says_that_none_was_measured(results: Path) -> None:
    page = (results / "page.md").read_text()
    assert page.startswith("before\n<!-- the GPU's table begins -->\n\nNo GPU has been measured yet")
    assert page.endswith("<!-- the GPU's table ends -->\nafter\n")
    assert "old" not in page


def test_with_a_gpu_the_page_has_card_versions_command_and_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu"))
    import table

    lines: list[dict[str, Any]] = [
        {"part": "env", "card": "NVIDIA H100", "hardware": "16 cores", "cuda": "13.0", "packages": {"torch": "2.15.0"}},
        {"part": "peak", "what": "matrix product, bf16", "tflops": 800.0},
        {"part": "speed", "kind": "regional", "size": "B", "batch": 256, "images_per_second": 2250.4, "tflops": 350.0, "gib": 31.5},
        {"part": "speed", "name": "compiled L 128", "error": "OutOfMemoryError: no"},
        {"part": "loop", "what": "a run", "size": "S", "batch": 256, "images_per_second": 3999.7, "waiting_for_data": 0.02},
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "page.md").write_text(PAGE)
    table.write_page(tmp_path / "page.md", tmp_path / "results.jsonl", "python measure.py --budget 480")
    page = (tmp_path / "page.md").read_text()
    for part in ("NVIDIA H100", "CUDA 13.0", "torch 2.15.0", "    python measure.py --budget 480"):
        assert part in page
    assert "| pre-training, regional | B | 256 | 2,250.4 | 350.0 | 44% | 31.5 |" in page
    assert "| a whole run, 2% waiting for data | S | 256 | 4,000 | | | |" in page
    assert "ERROR in speed, compiled L 128: OutOfMemoryError: no" in table.summary(tmp_path / "results.jsonl")


def test_the_shipped_page_has_the_tables_place() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert page.count("<!-- the GPU's table begins -->") == page.count("<!-- the GPU's table ends -->") == 1
