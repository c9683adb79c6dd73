"""``lutbench show RUN``: everything behind a number, from data to the images that a run is most wrong about."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lutbench.cli import main
from lutbench.evaluate.outcomes import PER_CLASS
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.loading import load_suite
from lutbench.record import Record, identity_of, read_record, read_records, record_path
from lutbench.record_writing import write_record

REFERENCE = Path(__file__).parents[1] / "results/reference"

Show = Callable[..., tuple[int, str]]


@pytest.fixture
def results(chain: Path, tmp_path: Path) -> Path:
    """A copy of the records, to be changed."""
    shutil.copytree(chain / "results", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chain: Path) -> Show:
    """The command, called in this process on a terminal of 80 columns: its exit status and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(run: object, results: Path = chain / "results", runs: Path = chain / "runs") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lutbench", "show", str(run), "--results", str(results), "--runs", str(runs)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return call


def record(results: Path, run: str) -> Record:
    return read_record(record_path(results, "toy", run))


def part(text: str, title: str) -> list[str]:
    """The lines below a title, without the spaces at their ends."""
    lines = text.split(f"\n{title}\n")[1].split("\n\n")[0].splitlines()
    return [line.rstrip() for line in lines]


def joined(lines: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(lines))


def test_the_chain_leads_from_data_over_pre_training_and_fine_tuning_to_the_number(show: Show, chain: Path) -> None:
    status, text = show("toy/robustness/shift/hidden/lut/seed0")
    assert status == 0
    names = ("pretrain/lut/seed0", "downstream/tuned/lut/seed0", "robustness/shift/hidden/lut/seed0")
    first, second, last = (record(chain / "results", name) for name in names)
    data = [one.identity_inputs["data"] for one in (first, second, last)]
    assert part(text, "Origin") == [
        "pretrain      toy/pretrain/lut/seed0",
        f"  identity    {first.identity}",
        f"  data        toy: train {data[0]['train'][:12]}",
        f"  encoder     {first.checkpoint}",
        "finetune      toy/downstream/tuned/lut/seed0",
        f"  identity    {second.identity}",
        f"  data        toy: train {data[1]['train'][:12]}, val {data[1]['val'][:12]}",
        f"  classifier  {second.checkpoint}",
        "robustness    toy/robustness/shift/hidden/lut/seed0",
        f"  identity    {last.identity}",
        f"  data        hidden: test {data[2]['test'][:12]}",
    ]


def test_weights_that_no_run_made_and_those_beside_an_encoder_are_told(show: Show, chain: Path) -> None:
    assert part(show("near/scratch")[1], "Origin")[0] == "weights     random weights of vit_tiny_patch16_224"
    teacher = record(chain / "results", "downstream/near/teacher/seed0").identity_inputs["encoder"]["sha256"]
    lines = part(show("near/teacher")[1], "Origin")
    assert f"  teacher   {teacher}" in lines
    assert not [line for line in lines if "repeated" in line]


def test_a_run_without_a_record_is_told_as_missing_with_its_identity(show: Show, results: Path) -> None:
    needed = record(results, "pretrain/lut/seed0")
    shutil.rmtree(results / "records/toy/pretrain")
    status, text = show("tuned/lut", results)
    lines = part(text, "Origin")
    assert status == 0
    assert lines[0] == "missing     the run that the finetune run started from"
    assert lines[1:3] == [f"  identity  {needed.identity}", f"  encoder   {needed.checkpoint}"]
    assert "missing: no record of this identity in" in joined(lines)


def test_a_run_is_found_by_identity_in_another_suite_and_beside_the_records_own(show: Show, results: Path) -> None:
    (results / "records/toy").rename(results / "records/other")
    for path in (results / "records/other").rglob("*.json"):
        values = json.loads(path.read_text()) | {"suite": "other"}
        del values["seal"]
        write = Record.model_validate(values)
        write._folder = path.parent
        write_record(write, write.outcomes if write.outcomes_file else None, results.parent / "moved")
    moved = results.parent / "moved/records/other"
    path = moved / "downstream/tuned/lut/seed0.json"
    assert part(show(path, results.parent / "nowhere")[1], "Origin")[0] == "pretrain    other/pretrain/lut/seed0"
    shutil.rmtree(moved / "pretrain")
    assert part(show(path)[1], "Origin")[0] == "pretrain    toy/pretrain/lut/seed0"


def test_weights_that_are_no_longer_those_of_the_record_are_told(show: Show, results: Path) -> None:
    again = record(results, "pretrain/lut/seed0").model_copy(update={"checkpoint": "f" * 64})
    write_record(again, None, results)
    assert f"its record now has other weights, {'f' * 64}: the run was repeated since then" in joined(
        part(show("tuned/lut", results)[1], "Origin")
    )


def test_how_images_were_prepared_is_told(show: Show, results: Path) -> None:
    """Of the crop of the task, and of what the weights' images were prepared by, if not as ImageNet's."""
    lines = part(show("near/lut", results)[1], "Image preprocessing")
    assert lines == [
        "mean           as ImageNet's",
        "std            as ImageNet's",
        "interpolation  bicubic, as ImageNet's",
        "crop           centre crop in evaluation, 0.875 of the resized short side",
    ]
    one = record(results, "downstream/near/lut/seed0")
    inputs = json.loads(json.dumps(one.identity_inputs))
    inputs["encoder"]["preprocessing"] = {"mean": [0.5, 0.5, 0.25], "interpolation": "bilinear", "crop_pct": 1.0}
    identity = identity_of(inputs)
    write_record(one.model_copy(update={"identity_inputs": inputs, "identity": identity}), one.outcomes, results)
    lines = part(show("near/lut", results)[1], "Image preprocessing")
    assert lines == [
        "mean           0.5, 0.5, 0.25",
        "std            as ImageNet's",
        "interpolation  bilinear",
        "crop           centre crop in evaluation, the whole short side",
    ]
    assert part(show("shift/hidden", results)[1], "Image preprocessing")[2:] == [
        "resizing  bicubic",
        "crop      centre crop in evaluation, 0.875 of the resized short side",
    ]


def test_a_value_outside_its_interval_is_explained(show: Show, tmp_path: Path) -> None:
    text = joined(part(show("tiny/analysis/looks/lut-tuned/seed0", REFERENCE, tmp_path)[1], "Results"))
    assert "Outside its interval: effective rank, pooled. With few images such a value is biased" in text
    assert "Outside its interval" not in show("tiny/downstream/photographs-knn/lut/seed0", REFERENCE, tmp_path)[1]


def test_what_is_kept_besides_is_told_in_words_with_three_digits(show: Show, tmp_path: Path) -> None:
    kept = read_record(record_path(REFERENCE, "tiny", "pretrain/lut/seed0")).extra["waiting_for_data"]
    assert isinstance(kept, float)
    text = joined(part(show("tiny/pretrain/lut/seed0", REFERENCE, tmp_path)[1], "Code and machine"))
    assert f"share of the time spent waiting for data: {100 * kept:.3g} %" in text
    assert "waiting_for_data" not in text
    assert "images skipped because they cannot be decoded: 0" in text
    text = joined(part(show("tiny/analysis/looks/lut/seed0", REFERENCE, tmp_path)[1], "Code and machine"))
    assert "mask ratios of the reconstructions: 50 %, 75 %, 90 %" in text


def test_numbers_are_computed_again_from_the_outcomes(show: Show, results: Path) -> None:
    one = record(results, "downstream/near/lut/seed0")
    m = one.measurements[0]
    status, text = show("near/lut", results)
    assert status == 0
    lines = part(text, "Results")
    assert lines[1].split() == ["top-1", f"{m.value:.1f}", "%", f"[{m.low:.1f},", f"{m.high:.1f}]", "21"]
    assert lines[-1] == "Recomputed from the outcomes: all 3 are equal."
    other = one.model_copy(update={"measurements": [m.model_copy(update={"value": 50.0}), *one.measurements[1:]]})
    write_record(other, one.outcomes, results)
    status, text = show("near/lut", results)
    assert status == 1
    assert part(text, "Results")[-2:] == [
        "Recomputed from the outcomes: 1 differ:",
        f"  top-1: 50.0 % [{m.low:.1f}, {m.high:.1f}] in the record, {m.text('%')} now",
    ]
    write_record(one.model_copy(update={"measurements": one.measurements[:1]}), one.outcomes, results)
    assert "  top-5: not in the record, " in show("near/lut", results)[1]


def test_outcomes_that_are_damaged_or_gone_are_told_and_the_rest_is_shown(show: Show, results: Path) -> None:
    one = record(results, "downstream/near/lut/seed0")
    path = one.folder / one.files[0].file
    path.write_bytes(path.read_bytes()[:-1])
    status, text = show("near/lut", results)
    assert status == 1
    assert "cannot be recomputed" in text
    assert "damaged or changed" in joined(part(text, "Results"))
    assert "damaged" in joined(
        [line for line in part(text, "Files") if line.startswith("outcomes")] + part(text, "Files")
    )
    assert part(text, "Code and machine")
    path.unlink()
    status, text = show("near/lut", results)
    assert status == 1
    assert "missing" in joined(part(text, "Files"))


def test_the_images_that_a_run_is_most_wrong_about_come_by_name(show: Show) -> None:
    lines = part(show("near/lut")[1], "Worst mistakes")
    assert lines[0].split() == ["image", "class", "predicted", "rank", "confidence"]
    assert sorted(line.split()[0] for line in lines[1:5]) == [f"blue/amber{number}.png" for number in range(4)]
    assert [line.split()[1:3] for line in lines[1:5]] == [["blue", "amber"]] * 4
    assert lines[5].startswith("Most wrong: images with the highest rank")
    assert "no image names" not in joined(lines)
    shifted = part(show("shift/hidden")[1], "Worst mistakes")
    assert shifted[0].split() == ["image", "wrong", "in", "of", "mean", "rank"]
    assert re.fullmatch(r"blue/amber\d\.png +[23] +3 +[\d.]+", shifted[1])
    for without in ("looks/lut", "pretrain/lut"):
        assert "Most wrong" not in show(without)[1]


def test_without_names_images_are_told_by_their_rows(show: Show, results: Path) -> None:
    one = record(results, "downstream/near/lut/seed0")
    write_record(one, type(one.outcomes)(**{**vars(one.outcomes), "names": ()}), results)
    status, text = show("near/lut", results)
    assert status == 0
    lines = part(text, "Worst mistakes")
    assert [line.split()[:2] for line in lines[1:5]] == [["row", str(number)] for number in (10, 11, 12, 13)]
    assert "The record has no image names" in joined(lines)


def test_a_recipe_stands_beside_the_default_and_the_papers(show: Show) -> None:
    papers = load_suite("paper").run("downstream/finetune-s/lut-s/seed0")
    assert isinstance(papers.recipe, FinetuneRecipe)
    lines = part(show("tuned/lut")[1], "Settings")
    rows = {line.split("  ")[0].strip() or line.strip(): line for line in lines}
    assert re.fullmatch(r"epochs +2 +default: 100", rows["epochs"])
    assert lines[lines.index(rows["epochs"]) + 1].strip() == f"paper: {papers.recipe.epochs}"
    assert re.fullmatch(r"batch +10 +default, paper: 1024", rows["batch"])
    assert re.fullmatch(r"weight_decay +0\.05", rows["weight_decay"]), "as by default and in the paper"
    assert [line for line in lines if re.fullmatch(r" +image_size +16 +default, paper: 224", line)]
    at = next(number for number, line in enumerate(lines) if re.match(r" +model +vit_tiny", line))
    assert lines[at].endswith("default: vit_base_patch16_224")
    assert lines[at + 1].strip() == "paper: vit_small_patch16_224"
    assert (
        "the value in the run paper/downstream/finetune-s/lut-s/seed0, which is the finetune run of suite paper that differs from this run in "
        "the fewest settings." in joined(lines)
    )
    assert "workers" not in rows, "it affects no result"


def test_code_machine_and_packages_are_told_with_what_changed_since(show: Show, results: Path) -> None:
    lines = part(show("near/lut", results)[1], "Code and machine")
    assert "none changed since then" in joined(lines)
    one = record(results, "downstream/near/lut/seed0")
    assert str(one.hardware) in joined(lines)
    assert "(now " not in joined(lines)
    older = {path: "0" * 16 if path == "downstream/knn.py" else digest for path, digest in one.code.sources.items()}
    code = one.code.model_copy(update={"sources": older, "commit": "a" * 40, "digest": None, "modified": True})
    changed = one.model_copy(update={"code": code, "packages": {**one.packages, "torch": "1.0"}})
    write_record(changed, one.outcomes, results)
    lines = part(show("near/lut", results)[1], "Code and machine")
    assert lines[0].endswith(f"commit {'a' * 10} with uncommitted changes")
    assert "changed since then: downstream/knn.py" in joined(lines)
    assert f"torch 1.0 (now {one.packages['torch']})" in joined(lines)


def test_the_files_are_told_those_of_the_run_too(show: Show, chain: Path, tmp_path: Path) -> None:
    one = record(chain / "results", "pretrain/lut/seed0")
    lines = part(show("pretrain/lut")[1], "Files")
    assert lines[0] == f"record  {one.folder / 'seed0.json'}"
    assert lines[1] == f"run     {chain / 'runs/toy/pretrain/lut/seed0' / one.identity[:12]}"
    assert [line for line in lines if re.fullmatch(r" +encoder\.safetensors, [\d,]+ bytes", line)]
    near = record(chain / "results", "downstream/near/lut/seed0")
    lines = part(show("near/lut", runs=tmp_path)[1], "Files")
    assert re.fullmatch(rf"outcomes  {near.files[0].file}, [\d,]+ bytes", lines[1])
    assert "not found (set the folder of the runs with --runs)" in joined(lines)


def test_a_run_is_known_by_a_part_of_its_name_or_by_the_path_of_its_record(show: Show, chain: Path) -> None:
    whole = show("toy/downstream/near/lut/seed0")
    assert (
        show("near/lut")
        == show("n*/lut/seed0")
        == show(chain / "results/records/toy/downstream/near/lut/seed0.json")
        == whole
    )
    status, text = show("near")
    assert status == 1
    assert "'near' matches 3 records: toy/downstream/near/lut/seed0, " in text
    status, text = show("toy/downstream/neer/lut/seed0")
    assert status == 1
    assert "Did you mean 'toy/downstream/near/lut/seed0'?" in text
    assert show("gone.json")[0] == 1


def test_a_page_fits_80_columns_but_for_paths(show: Show, chain: Path) -> None:
    for run in read_records(chain / "results", "toy"):
        for line in show(f"toy/{run}")[1].splitlines():
            assert len(line.rstrip()) <= 80 or str(chain) in line


SHIPPED = {
    record.kind.name: (suite, record.run)
    for suite in ("camvid", "tiny")
    for record in read_records(REFERENCE, suite).values()
}


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_records_of_every_kind_are_shown(show: Show, kind: str, tmp_path: Path) -> None:
    status, text = show("/".join(SHIPPED[kind]), REFERENCE, tmp_path)
    assert status == 0
    assert "all " in text or kind == "pretrain"
    for title in ("Origin", "Results", "Settings", "Code and machine", "Files"):
        assert part(text, title)


def test_a_metric_that_was_recorded_in_another_order_is_no_other_number(show: Show, results: Path) -> None:
    one = record(results, "downstream/near/lut/seed0")
    write_record(one.model_copy(update={"measurements": one.measurements[::-1]}), one.outcomes, results)
    assert PER_CLASS not in show("near/lut", results)[1]
    assert show("near/lut", results)[0] == 0
