"""The GPU benchmark goes on working: all of its parts at toy sizes, on a CPU; and what it keeps is what plan and page have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lutbench.plan.measured import measured_cards

ROOT = Path(__file__).parents[1]
PARTS = ("env", "peak", "correct", "speed", "trace", "data", "loop", "fine-tuning", "inference", "attention")
PAGE = "before\n<!-- the GPU's table begins -->\n\nold\n\n<!-- the GPU's table ends -->\nafter\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run measures."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "benchmarks/gpu/measure.py", "--out", str(folder)]
    environment = os.environ | {"TOY": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "results.jsonl"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes the table."""
    for folder in ("benchmarks", "benchmarks/gpu"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import table

    return table


def rows(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_measures_and_none_fails(results: Path) -> None:
    found = rows(results)
    assert [row for row in found if "error" in row] == []
    assert {row["part"] for row in found} == set(PARTS)


@pytest.mark.slow
def test_what_it_checks_holds_on_a_cpu(results: Path) -> None:
    found = {row["what"]: row for row in rows(results) if "what" in row}
    assert found["golden parity"]["passed"]
    assert found["losses, device against CPU, float32"]["relative"] == ["0.0e+00", "0.0e+00"]
    assert found["compiled for steps of fine-tuning"]["past_limit"] == 0
    assert found["the same bits"]["repeated"]
    assert found["the same bits"]["resumed"]
    assert found["colours, all images"]["mean_difference"] == found["colours, chosen images"]["mean_difference"] < 0.1


@pytest.mark.slow
def test_what_a_run_measures_is_a_card_where_there_is_one(results: Path, table: ModuleType, tmp_path: Path) -> None:
    assert table.card_of(results, "") is None, "there is none here"
    with_card = [row | ({"card": "a card", "memory_gib": 80} if row["part"] == "env" else {}) for row in rows(results)]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, with_card)))
    card = table.card_of(tmp_path / "results.jsonl", "")
    found = {(speed.kind, speed.variant) for speed in card.speeds}
    of_runs = ("a whole run from files", "a whole run from cache")
    of_pretraining = {("pretrain", way) for way in ("plain", "bf16 teacher", "checkpointed", *of_runs)}
    assert found == {*of_pretraining, ("finetune", ""), ("robustness", "")}


def test_what_is_kept_of_a_card_is_read_back_and_shown(tmp_path: Path, table: ModuleType) -> None:
    packages = {"python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31", "numpy": "2"}
    lines: list[dict[str, Any]] = [
        {"part": "env", "card": "NVIDIA H100", "memory_gib": 79.1, "hardware": "16 cores", "cuda": "13.0", "code": "0.1.0", "packages": packages},
        {"part": "peak", "what": "matrix product, bf16", "tflops": 800.0},
        {"part": "speed", "way": "ours", "size": "B", "batch": 256, "images_per_second": 2000.4, "flop_per_image": 1.5e11, "gib": 31.5},
        {"part": "speed", "way": "regional", "size": "B", "batch": 256, "images_per_second": 2250.4, "flop_per_image": 1.5e11, "gib": 31.5},
        {"part": "speed", "name": "compiled L 128", "error": "OutOfMemoryError: no"},
        {"part": "loop", "what": "a run", "size": "S", "batch": 256, "images_per_second": 3999.7, "flop_per_image": 5e10, "source": "files", "waiting_for_data": 0.02},
    ]  # fmt: skip
    kept, page = tmp_path / "measured.json", tmp_path / "page.md"
    kept.write_text('{"cards": []}')
    page.write_text(PAGE)
    for command in ("python measure.py", "python measure.py --budget 480"):
        (tmp_path / "results.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
        table.keep(table.card_of(tmp_path / "results.jsonl", command), kept, page)
    (card,) = measured_cards(kept)
    assert card.command == "python measure.py --budget 480", "the newer of two of one name"
    assert card.matrix_flops == 8e14
    assert [(speed.kind, speed.variant) for speed in card.speeds[:2]] == [("pretrain", "eager"), ("pretrain", "")]
    text = page.read_text()
    assert text.startswith(
        "before\n<!-- the GPU's table begins -->\n\nOn NVIDIA H100 of 79.1 GiB (16 cores), CUDA 13.0"
    )
    assert text.endswith("<!-- the GPU's table ends -->\nafter\n")
    assert "    python measure.py --budget 480\n" in text
    assert "torch 2.15.0" in text
    assert "| pre-training | `vit_base_patch16_224` | 256 | 2,250.4 | 337.6 | 42% | 31.5 |" in text
    assert (
        "| pre-training, a whole run from files, 2% waiting for data | `vit_small_patch16_224` | 256 | 3,999.7 | 200.0 | 25% |  |"
        in text
    )
    assert "ERROR in speed, compiled L 128: OutOfMemoryError: no" in table.summary(tmp_path / "results.jsonl")


def test_the_shipped_page_shows_the_shipped_table(table: ModuleType) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert page.count(table.BEGIN) == page.count(table.END) == 1
    assert page.partition(table.BEGIN)[2].partition(table.END)[0].strip() == table.shown(measured_cards())


def test_without_a_card_the_page_says_that_none_was_measured(table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    table.write_page(tmp_path / "page.md", [])
    assert f"begins -->\n\n{table.NONE}\n\n<!--" in (tmp_path / "page.md").read_text()
