"""Tables say what records say: hand-made outcomes, and the numbers that a hand computes from them."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_made import answers, keep
from markdown_it import MarkdownIt
from matplotlib.colors import to_hex
from reported import build_tables, check_tables, section, show_tables, write_tables

from downstream.segmentation.confusions import Confusions
from lutbench import cli
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Measurement, Outcomes
from lutbench.kinds import KINDS
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe
from lutbench.recipes.suite import LoadedSuite, Suite, TaskTable
from lutbench.record import PerImage, Record
from lutbench.record_writing import make_record
from lutbench.report import tables
from lutbench.report.comparisons import comparison_sections
from lutbench.report.entries import TableEntry, entries
from lutbench.report.figures import PALETTE
from lutbench.report.published import PublishedValue
from lutbench.report.render import latex, markdown
from lutbench.report.sections import Section, View, signed
from lutbench.report.tables import all_sections
from lutbench.report.values import value_table

ROOT = Path(__file__).parents[1]

SUITE = """
title = "Toys & trains"
about = "for tests, 100 % by hand"
kind = "exploration"
compare = [["ours", "theirs"]]
[data.toys]
path = "toys"
label = "ImageNet-1K"
[encoder.base]
label = "ViT-B/16"
[method.ours]
checkpoint = "ours.pth"
encoder = "base"
label = "LUT_100%"
published = "LUT"
[method.theirs]
checkpoint = "theirs.pth"
encoder = "base"
label = "MAE"
published = "MAE"
[downstream.tuned]
kind = "finetune"
title = "Fine-tuning"
data = "toys"
published = "imagenet-1k/finetune/top-1"
[downstream.near]
kind = "knn"
data = "toys"
"""

SEGMENTATION = """
[data.streets]
source = "scenes"
path = "streets"
classes = ["road", "sky"]
[downstream.masks]
kind = "segmentation"
title = "Streets"
data = "streets"
published = "ade20k/upernet/miou"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def suite(folder: Path, *changes: str) -> LoadedSuite:
    return load_suite(str(folder / "toy.toml"), changes)


def outcomes(*right: bool, names: str = "image") -> Outcomes:
    return answers(right, names)


def share(count: int, of: int = 100) -> Outcomes:
    return outcomes(*(number < count for number in range(of)))


def streets(*hits: int, names: str = "street") -> Confusions:
    """An image for every number: so many of 100 pixels of road and of sky are right."""
    counts = [np.array([[0, 0, hit], [0, 1, 100 - hit], [1, 0, 100 - hit], [1, 1, hit]]) for hit in hits]
    return Confusions.of(counts, ["road", "sky"], (f"{names}{number}.jpg" for number in range(len(hits))))


def recorded(
    folder: Path, loaded: LoadedSuite, name: str, made: PerImage | None, encoder: Record | None = None
) -> Record:
    """Keep a record as the run of that name would leave it; ``encoder`` is that of the run before it."""
    planned = next(run for run in loaded.runs if run.name in (name, f"downstream/{name}"))
    return keep(folder, planned, made, encoder=encoder and {"run": encoder.identity})


def row(folder: Path, loaded: LoadedSuite, task: str, method: str) -> dict[str, str]:
    table = section(loaded, folder, "main").frame
    (found,) = table[(table["task"] == task) & (table["method"] == method)].to_dict("records")
    return {str(key): value for key, value in found.items()}


def test_one_seed_has_wilsons_interval_over_images(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    found = row(folder, loaded, "Fine-tuning", "LUT_100%")
    assert (found["metric"], found["measured"], found["95 % interval"]) == ("top-1", "80.0", "71.1 to 86.7")
    assert (found["encoder"], found["seeds"], found["runs"]) == ("ViT-B/16", "1", "[1]")


def test_the_footnote_of_every_number_is_a_link_to_its_record(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1]")
    for name in ("tuned/ours/seed0", "tuned/ours/seed1", "near/theirs/seed0"):
        recorded(folder, loaded, name, share(80))
    write_tables(loaded, folder)
    page = folder / "tables/toy/main.md"
    found = footnote_links(page)
    assert {number: [path.name for path in paths] for number, paths in found.items()} == {
        "1": ["seed0.json", "seed1.json"],
        "4": ["seed0.json"],
    }
    (record,) = found["4"]
    assert json.loads(record.read_text())["run"] == "downstream/near/theirs/seed0"
    assert check_tables(loaded, folder) == []


@pytest.mark.parametrize("name", ["tiny", "camvid"])
def test_every_row_of_the_shipped_tables_has_links_to_its_records(name: str) -> None:
    page = ROOT / f"results/reference/tables/{name}/main.md"
    cells = set(re.findall(r"\| \[(\d+)\] +\|$", page.read_text(encoding="utf-8"), re.M))
    found = footnote_links(page)
    assert cells
    assert cells <= set(found)
    assert all(path.is_file() for paths in found.values() for path in paths)


def footnote_links(page: Path) -> dict[str, list[Path]]:
    """The files that the runs of every footnote of a page link to, as Markdown is read."""
    links: dict[str, list[Path]] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8").split("## Runs\n")[1].split("\n## ")[0]):
        if token.children and (number := re.match(r"\[(\d+)\] ", token.content)):
            targets = [str(one.attrs["href"]) for one in token.children if one.type == "link_open"]
            links.setdefault(number[1], []).extend((page.parent / target).resolve() for target in targets)
    return links


def test_several_seeds_have_students_interval_of_their_mean(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1, 2]")
    for seed, count in enumerate((80, 82, 84)):
        recorded(folder, loaded, f"tuned/ours/seed{seed}", share(count))
    found = row(folder, loaded, "Fine-tuning", "LUT_100%")  # 82 +- 4.303 * 2 / sqrt(3)
    assert (found["measured"], found["95 % interval"], found["seeds"]) == ("82.0", "77.0 to 87.0", "3")


def test_seeds_that_were_not_run_are_told(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1, 2]")
    for seed, count in ((0, 80), (2, 82)):
        recorded(folder, loaded, f"tuned/ours/seed{seed}", share(count))
    found = row(folder, loaded, "Fine-tuning", "LUT_100%")  # 81 +- 12.706 * 1
    assert (found["measured"], found["95 % interval"], found["seeds"]) == ("81.0", "68.3 to 93.7", "2 of 3")


def test_a_published_value_stands_beside_the_measured_one_of_the_same_encoder_only(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    recorded(folder, loaded, "near/ours/seed0", share(80))
    found = row(folder, loaded, "Fine-tuning", "LUT_100%")
    assert (found["published"], found["difference"]) == ("84.2 [a]", "-4.2")
    absent = row(folder, loaded, "Fine-tuning", "MAE")
    assert (absent["published"], absent["difference"], absent["measured"]) == ("83.6 [b]", "", "")
    assert row(folder, loaded, "near", "LUT_100%")["published"] == "", "the task names no published one"
    other = suite(folder, "encoder.base.label=ViT-T/16")
    assert "published" not in section(other, folder, "main").frame.columns


def test_a_value_by_another_recipe_has_a_mark_and_its_note_and_no_difference(folder: Path) -> None:
    loaded = suite(folder, "downstream.tuned.epochs=20", "downstream.tuned.warmup_epochs=1")
    for method in ("ours", "theirs"):
        recorded(folder, loaded, f"tuned/{method}/seed0", share(80))
    found = row(folder, loaded, "Fine-tuning", "MAE")
    assert (found["measured"], found["published"], found["difference"]) == ("80.0", "83.6 [b]*", "")
    files = build_tables(loaded, folder)
    other = "finetune.epochs changed from 100 to 20, finetune.warmup_epochs changed from 5 to 1."
    note = f"[b]* ViT-B/16: 1600 epochs, normalised pixels. Its recipe differs (published to run): {other}"
    assert note in files["main.md"].split("## ")[0]
    assert note.replace("_", r"\_") in files["main.tex"]
    (_, mae) = pd.read_csv(io.StringIO(files["main.csv"])).to_dict("records")
    assert (mae["published"], mae["published recipe"]) == (83.6, f"Its recipe differs (published to run): {other}")


def test_sources_are_listed_under_the_letters_of_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    text = build_tables(loaded, folder)["main.md"]
    assert re.search(r"^- \[a\] .*/lut@", text, re.M)
    with_its_protocol = r"^- \[b\] .*\(MAE\), table 3: ImageNet-1K, trained end to end \(ViT-B/16: pre-trained for 1600 epochs, fine-tuned for 100 epochs at 224 px\)$"
    assert re.search(with_its_protocol, text, re.M)
    show_tables(loaded, folder)
    assert re.search(with_its_protocol.strip("^$"), " ".join(capsys.readouterr().out.split()))


def test_more_sources_than_letters_go_on_with_two(folder: Path) -> None:
    loaded = suite(folder)
    values = (PublishedValue(80.0, f"source {number}", "", "") for number in range(60))
    made = [TableEntry(KINDS["finetune"], "tuned", "ours", "ViT-B/16", 1, published=value) for value in values]
    letters = [text.split()[1] for text in value_table(View(loaded, {}, made), made)["published"]]
    assert len(set(letters)) == 60
    assert [letters[place] for place in (0, 25, 26, 51, 52)] == ["[a]", "[z]", "[aa]", "[az]", "[ba]"]


def test_a_record_of_other_settings_is_stale_and_prints_no_value(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(folder, suite(folder), "tuned/ours/seed0", share(80))
    changed = suite(folder, "downstream.tuned.epochs=50")
    found = row(folder, changed, "Fine-tuning", "LUT_100%")
    assert (found["measured"], found["runs"]) == ("stale", "[1]")
    assert (found["95 % interval"], found["difference"], found["seeds"]) == ("", "", "")
    reason = "`downstream/tuned/ours/seed0` stale: epochs changed from 100 to 50"
    files = build_tables(changed, folder)
    assert f"- [1] {reason}\n" in files["main.md"]
    show_tables(changed, folder)
    shown = capsys.readouterr().out
    assert reason in shown
    assert not [text for text in (*files.values(), shown) if "80.0" in text]
    harmless = suite(folder, "downstream.tuned.workers=3", "downstream.tuned.log_every=1")
    assert row(folder, harmless, "Fine-tuning", "LUT_100%")["measured"] == "80.0"


def test_a_record_of_older_code_is_stale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    monkeypatch.setattr(KnnRecipe, "revision", 7)
    assert row(folder, loaded, "Fine-tuning", "LUT_100%")["measured"] == "80.0", "another stage's code"
    monkeypatch.setattr(FinetuneRecipe, "revision", 7)
    assert row(folder, loaded, "Fine-tuning", "LUT_100%")["measured"] == "stale"
    assert (
        "`downstream/tuned/ours/seed0` stale: revision changed from 1 to 7" in build_tables(loaded, folder)["main.md"]
    )


def test_where_every_record_is_stale_programs_still_read_a_table(folder: Path) -> None:
    recorded(folder, suite(folder), "tuned/ours/seed0", share(80))
    text = build_tables(suite(folder, "downstream.tuned.epochs=50"), folder)["main.csv"]
    table = pd.read_csv(io.StringIO(text))
    assert len(table) == 0
    assert {"task", "method", "value", "published"} <= set(table.columns)


def test_a_seed_that_is_stale_is_told_beside_the_others(folder: Path) -> None:
    recorded(folder, suite(folder), "tuned/ours/seed0", share(80))
    loaded = suite(folder, "seeds=[0, 1]", "downstream.tuned.epochs=50")
    recorded(folder, loaded, "tuned/ours/seed1", share(70))
    found = row(folder, loaded, "Fine-tuning", "LUT_100%")
    assert (found["measured"], found["seeds"]) == ("70.0", "1 of 2")
    assert "[1] `downstream/tuned/ours/seed0` stale: epochs changed" in build_tables(loaded, folder)["main.md"]


def test_a_value_is_stale_if_the_run_that_its_encoder_comes_from_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "toy.toml").write_text(f'{SUITE}[pretrain.lut]\ndata = "toys"\n[method.mine]\npretrain = "lut"')
    loaded, changed = suite(folder), suite(folder, "pretrain.lut.epochs=700")
    first = recorded(folder, loaded, "pretrain/lut/seed0", None)
    recorded(folder, loaded, "near/mine/seed0", share(80), first)
    assert row(folder, loaded, "near", "mine")["measured"] == "80.0"
    assert row(folder, changed, "near", "mine")["measured"] == "stale"
    with monkeypatch.context() as newer:
        newer.setattr(PretrainRecipe, "revision", 3)
        text = build_tables(loaded, folder)["main.md"]
        assert "stale: pretrain/lut/seed0: revision changed from 2 to 3" in text
    assert "stale: pretrain/lut/seed0: epochs changed from" in build_tables(changed, folder)["main.md"]

    recorded(folder, changed, "pretrain/lut/seed0", None)
    assert row(folder, changed, "near", "mine")["measured"] == "stale", "its encoder is of the first epochs still"
    assert "stale: its encoder is not the one in the record of pretrain/lut" in build_tables(changed, folder)["main.md"]

    (folder / "records/toy/pretrain/lut/seed0.json").unlink()
    assert "pretrain/lut/seed0, has no record" in build_tables(loaded, folder)["main.md"]


def test_two_methods_are_compared_on_the_same_images(folder: Path) -> None:
    loaded = suite(folder)
    both = [True] * 60 + [False] * 28
    recorded(folder, loaded, "tuned/ours/seed0", outcomes(*both, *[True] * 10, *[False] * 2))
    recorded(folder, loaded, "tuned/theirs/seed0", outcomes(*both, *[False] * 10, *[True] * 2))
    (compared,) = comparison_sections(View.read(loaded, folder))
    (found,) = compared.frame.to_dict("records")
    assert (found["task"], found["pair"], found["images"]) == ("Fine-tuning", "LUT_100% - MAE", "100")
    assert (found["only 1st"], found["only 2nd"]) == ("10", "2")
    assert found["difference"] == "+8.0 [+0.8, +14.9]"  # 8 / 102 +- 1.96 sqrt(14 - 64 / 102) / 102
    assert found["p"] == "0.029"  # of 8 / sqrt(14 - 64 / 102) = 2.19 standard errors


def test_methods_seen_on_other_images_or_with_other_seeds_are_not_compared(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1]")
    for name, made in (
        ("tuned/ours/seed0", outcomes(True, False)),
        ("tuned/theirs/seed0", outcomes(True, False, names="other")),
        ("near/ours/seed0", outcomes(True, False)),
        ("near/theirs/seed1", outcomes(True, False)),
    ):
        recorded(folder, loaded, name, made)
    assert comparison_sections(View.read(loaded, folder)) == []
    assert "same images" not in build_tables(loaded, folder)["main.md"]


# --- Segmentation


@pytest.fixture
def segmented(folder: Path) -> Path:
    (folder / "toy.toml").write_text(SUITE + SEGMENTATION)
    return folder


def test_a_segmentation_shows_its_miou_with_the_interval_over_images(segmented: Path) -> None:
    loaded = suite(segmented)
    record = recorded(segmented, loaded, "masks/ours/seed0", streets(60, 70, 80, 90))
    found = row(segmented, loaded, "Streets", "LUT_100%")
    assert (found["metric"], found["measured"]) == ("mIoU", "60.0")  # 300 right of 500 in label or prediction
    first = record.measurements[0]
    assert found["95 % interval"] == f"{first.low:.1f} to {first.high:.1f}"
    assert "interval: percentiles of 2000 resamples of the images." in build_tables(loaded, segmented)["main.md"]
    assert row(segmented, loaded, "Streets", "MAE")["published"] == "48.1 [c]*"


def test_two_segmentations_are_compared_by_resampling_the_images_in_a_table_of_their_own(segmented: Path) -> None:
    loaded = suite(segmented)
    recorded(segmented, loaded, "tuned/ours/seed0", share(80))
    recorded(segmented, loaded, "tuned/theirs/seed0", share(71))
    recorded(segmented, loaded, "masks/ours/seed0", streets(*[80] * 30))
    recorded(segmented, loaded, "masks/theirs/seed0", streets(*[75] * 30))
    counted, resampled = comparison_sections(View.read(loaded, segmented))
    assert list(counted.frame["task"]) == ["Fine-tuning"]
    (found,) = resampled.frame.to_dict("records")
    assert (found["task"], found["pair"], found["images"]) == ("Streets", "LUT_100% - MAE", "30")
    assert found["difference"] == "+6.7 [+6.7, +6.7]"  # 80 / 120 - 75 / 125, the same in every image
    assert found["p"] == "0.001"
    assert "only 1st" not in found
    text = build_tables(loaded, segmented)["main.md"].split("## Differences on the same images\n")[1]
    assert (
        text.index("Bonett and Price")
        < text.index("+6.7 [+6.7, +6.7]")
        < text.index("resamples of the images, the same for")
    )


def test_segmentations_of_other_images_are_not_compared(segmented: Path) -> None:
    loaded = suite(segmented)
    recorded(segmented, loaded, "masks/ours/seed0", streets(80, 90))
    recorded(segmented, loaded, "masks/theirs/seed0", streets(80, 90, names="other"))
    assert comparison_sections(View.read(loaded, segmented)) == []


def test_the_classes_of_a_segmentation_are_drawn_and_the_tables_lead_to_the_figure(segmented: Path) -> None:
    loaded = suite(segmented)
    recorded(segmented, loaded, "tuned/ours/seed0", share(80))
    write_tables(loaded, segmented)
    assert not (segmented / "figures").exists(), "no segmentation was measured"
    recorded(segmented, loaded, "masks/ours/seed0", streets(60, 70))
    write_tables(loaded, segmented)
    tables = segmented / "tables/toy"
    (link,) = re.findall(
        r"^!\[Toys & trains, Streets: IoU per class\]\((.*)\)$", (tables / "main.md").read_text(), re.M
    )
    figure = (tables / link).resolve()
    assert figure == segmented / "figures/toy/masks-iou.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    figure.write_bytes(b"as another version draws it")
    assert check_tables(loaded, segmented) == []
    figure.unlink()
    assert check_tables(loaded, segmented) == [f"{figure} is missing"]


def test_a_published_value_in_another_metric_is_refused(segmented: Path) -> None:
    loaded = suite(segmented, "downstream.masks.published=ade20k/upernet/macc", "method.theirs.published=iBOT")
    View.read(loaded, segmented)
    recorded(segmented, loaded, "masks/theirs/seed0", streets(60, 70))
    with pytest.raises(
        UserError, match=r"masks\.published: the metric of ade20k/upernet/macc is mAcc, .* measured in mIoU"
    ):
        View.read(loaded, segmented)


IMPORTED = """
import sys
from pathlib import Path
from lutbench.cli import tables
for results in sys.argv[2:]:
    tables(sys.argv[1], results=Path(results))
    print("imported:", *{"torch", "timm", "mmseg", "pandas", "matplotlib"} & set(sys.modules))
"""


def test_tables_need_no_torch_and_matplotlib_only_where_a_figure_is_drawn(segmented: Path) -> None:
    loaded = suite(segmented)
    recorded(segmented / "one", loaded, "tuned/ours/seed0", share(80))
    recorded(segmented / "two", loaded, "masks/ours/seed0", streets(60, 70))
    arguments = [segmented / name for name in ("toy.toml", "one", "two")]
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [set(line.split()[1:]) for line in ended.stdout.splitlines() if line.startswith("imported:")]
    assert found == [{"pandas"}, {"pandas", "matplotlib"}]


# --- What is in the files


def test_a_value_leads_to_its_run(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "near/ours/seed0", share(1))
    record = recorded(folder, loaded, "tuned/theirs/seed0", share(80))
    assert row(folder, loaded, "Fine-tuning", "MAE")["runs"] == "[2]"
    text = build_tables(loaded, folder)["main.md"]
    assert (
        "- [2] [`downstream/tuned/theirs/seed0`](../../records/toy/downstream/tuned/theirs/seed0.json) "
        f"{record.identity[:12]}: top-1 80.0 %, 61 s on {record.hardware}, code"
    ) in text


def test_programs_read_unrounded_numbers(folder: Path) -> None:
    loaded = suite(folder)
    record = recorded(folder, loaded, "tuned/ours/seed0", share(66, of=99))
    (found,) = pd.read_csv(io.StringIO(build_tables(loaded, folder)["main.csv"])).to_dict("records")
    assert found["value"] == 100 * 66 / 99
    assert (found["low"], found["high"]) == (record.measurements[0].low, record.measurements[0].high)
    assert (found["task"], found["method"], found["seeds"], found["published"]) == ("tuned", "ours", 1, 84.2)
    assert found["runs"] == f"downstream/tuned/ours/seed0@{record.identity[:12]}"


def test_the_three_files_tell_the_same(folder: Path) -> None:
    loaded = suite(folder)
    for name, count in (("tuned/ours", 80), ("tuned/theirs", 71), ("near/theirs", 9)):
        recorded(folder, loaded, f"{name}/seed0", share(count))
    files = build_tables(loaded, folder)

    programs = pd.read_csv(io.StringIO(files["main.csv"])).to_dict("records")
    labels = {"ours": "LUT_100%", "theirs": "MAE"}
    told = [(labels[r["method"]], f"{r['value']:.1f}", f"{r['low']:.1f} to {r['high']:.1f}") for r in programs]
    assert [value for _, value, _ in told] == ["80.0", "71.0", "9.0"]

    lines = (files["main.md"] + files["main.tex"].replace(r"\_", "_").replace(r"\%", "%")).splitlines()
    rows = [[cell.strip() for cell in re.split(r"[|&\\]", line)] for line in lines]
    found = [tuple(cells[cells.index("top-1") + step] for step in (-2, 1, 2)) for cells in rows if "top-1" in cells]
    assert [row for row in found if row[1]] == [*told, *told]
    assert ("LUT_100%", "", "") not in found
    for text in (files["main.md"], files["main.tex"].replace(r"\_", "_").replace(r"\%", "%")):
        assert "Not run: near with LUT_100%." in text, "a row without any number is named below"


# --- One row per method


WIDE = """
[encoder.small]
label = "ViT-S/16"
[method.third]
scratch = true
encoder = "base"
label = "Third"
[method.small]
scratch = true
encoder = "small"
label = "LUT_100%"
[method.never]
checkpoint = "never.pth"
encoder = "base"
"""


@pytest.fixture
def several(folder: Path) -> Path:
    """Four methods of two encoders, of which one was not run on the second task, and one not at all."""
    (folder / "toy.toml").write_text(SUITE + WIDE)
    loaded = suite(folder)
    for name, count in (
        ("tuned/ours", 80), ("tuned/theirs", 90), ("tuned/third", 80), ("tuned/small", 95),
        ("near/ours", 30), ("near/third", 20), ("near/small", 10),
    ):  # fmt: skip
        recorded(folder, loaded, f"{name}/seed0", share(count))
    return folder


def columns(text: str, start: str) -> list[list[str]]:
    """The columns of the rows of a Markdown table that begin with the names ``start``."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[column.strip() for column in line.strip("|").split("|")] for line in lines]


def test_beside_the_long_table_there_is_one_with_a_row_per_method_and_a_column_per_task(several: Path) -> None:
    text = build_tables(suite(several), several)["main.md"].split("### One row per method")[1].split("## ")[0]
    assert columns(text, "method") == [["method", "encoder", "Fine-tuning, top-1 ↑", "near, top-1 ↑"]]
    # Wilson's interval of 80 of 100 is 71.1 to 86.7, of 90 82.6 to 94.5; of 95 88.8 to 97.8; of 30, 20 and 10 likewise.
    assert columns(text, "LUT_100%") == [
        ["LUT_100%", "ViT-B/16", "<u>80.0</u> ± 7.8", "**30.0** ± 8.8"],
        ["LUT_100%", "ViT-S/16", "95.0 ± 4.5", "10.0 ± 6.0"],
    ]
    assert columns(text, "MAE") == [["MAE", "ViT-B/16", "**90.0** ± 6.0", ""]]
    assert columns(text, "Third") == [["Third", "ViT-B/16", "<u>80.0</u> ± 7.8", "<u>20.0</u> ± 7.8"]]
    assert "never" not in text, "a method without any value"
    assert "±: half the width of the 95 % interval, Wilson's over images." in text


def test_the_wide_table_is_for_papers_too(several: Path) -> None:
    text = build_tables(suite(several), several)["wide.tex"]
    assert r"method & encoder & Fine-tuning & near \\" in text
    assert r"LUT\_100\% & ViT-B/16 & \underline{80.0} $\pm$ 7.8 & \textbf{30.0} $\pm$ 8.8 \\" in text
    assert r"MAE & ViT-B/16 & \textbf{90.0} $\pm$ 6.0 &  \\" in text
    assert r"LUT\_100\% & ViT-S/16 & 95.0 $\pm$ 4.5 & 10.0 $\pm$ 6.0 \\" in text
    assert r"half the width of the 95 \% interval" in text
    assert text.isascii()


def test_the_terminal_has_the_long_table_alone(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_tables(suite(several), several)
    shown = capsys.readouterr().out
    assert "One row per method" not in shown
    assert not re.search(r"±|\*\*|<u>", shown)


# --- Seeds


@pytest.fixture
def seeds(folder: Path) -> Path:
    """Of 100 images LUT gets 80 and 84 right, MAE 78 and 80: differences of 2 and 4."""
    loaded = suite(folder, "seeds=[0, 1]")
    for name, count in (("ours/seed0", 80), ("ours/seed1", 84), ("theirs/seed0", 78), ("theirs/seed1", 80)):
        recorded(folder, loaded, f"tuned/{name}", share(count))
    return folder


def test_with_several_seeds_a_difference_has_its_interval_over_seeds_too(
    seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(seeds, "seeds=[0, 1]")
    (compared,) = comparison_sections(View.read(loaded, seeds))
    (found,) = compared.frame.to_dict("records")
    assert found["difference"].startswith("+3.0 [")
    assert found["over seeds"] == "[-9.7, +15.7]"  # 3 +- 12.706 * 1
    assert "the interval over seeds is the one that counts" in compared.legend
    files = build_tables(loaded, seeds)
    assert "| [-9.7, +15.7] |" in files["main.md"]
    assert "& [-9.7, +15.7] &" in files["comparisons.tex"]
    (listed,) = pd.read_csv(io.StringIO(files["comparisons.csv"])).to_dict("records")
    assert (listed["task"], listed["first"], listed["second"], listed["seeds"]) == ("tuned", "ours", "theirs", 2)
    assert (listed["difference"], listed["low over seeds"], listed["high over seeds"]) == (
        3, pytest.approx(3 - 12.7062), pytest.approx(3 + 12.7062),
    )  # fmt: skip
    assert listed["low"] < 3 < listed["high"]
    assert (listed["only first"], listed["only second"], listed["images"]) == (6, 0, 100)
    for text in (files["main.md"], files["comparisons.tex"]):
        assert "the interval over seeds is the one that counts" in text
    show_tables(loaded, seeds)
    shown = capsys.readouterr().out
    assert "[-9.7, +15.7]" in shown
    assert "the interval over seeds is the one that counts" in " ".join(shown.split())


def test_with_one_seed_nothing_is_said_over_seeds(folder: Path) -> None:
    loaded = suite(folder)
    for method in ("ours", "theirs"):
        recorded(folder, loaded, f"tuned/{method}/seed0", share(80))
    (compared,) = comparison_sections(View.read(loaded, folder))
    assert "over seeds" not in compared.frame
    assert "not over training runs" in compared.legend
    files = build_tables(loaded, folder)
    assert not [name for name, text in files.items() if "ver seeds:" in text]
    (listed,) = pd.read_csv(io.StringIO(files["comparisons.csv"])).to_dict("records")
    assert np.isnan(listed["low over seeds"])


# --- Any kind of run


def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSuite:
    """A suite in which the tasks ``near`` are of a kind that only counts, in a stage of its own."""
    kind = replace(KINDS["knn"], name="count", stage="counting", outcomes_name="")
    monkeypatch.setattr(Suite, "counting", {"many": TaskTable(kind="count", title="Images")}, raising=False)
    loaded = suite(folder)
    near = [replace(run, kind=kind, task="many") for run in loaded.runs if run.task == "near"]
    return replace(loaded, runs=(*loaded.runs, *near))


def test_a_kind_without_outcomes_in_a_stage_of_its_own_has_its_rows_and_no_comparison(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = counted(folder, monkeypatch)
    view = View.read(loaded, folder)
    planned = [run for run in loaded.runs if run.stage == "counting"]
    records = {}
    for run, count in zip(planned, (1900, 30), strict=True):
        document = {"revision": run.recipe.revision, "recipe": run.recipe.affecting_results()}
        measured = [Measurement(metric="images", value=count, unit="")]
        records[run.name] = make_record(run, document, measured, wall_seconds=1)
    view = View(loaded, records, entries(loaded, records))
    texts = tables.build_tables(view, tables.all_sections(view))
    assert columns(texts["main.md"], "Images") == [
        ["Images", label, "ViT-B/16", "images", value, "", "1", *rest, f"[{number}]"]
        for label, value, number, rest in (("LUT_100%", "1900", 5, ["", ""]), ("MAE", "30", 6, ["", ""]))
    ]
    assert "in percent, except images." in texts["main.md"]
    wide = texts["main.md"].split("### One row per method")[1]
    assert columns(wide, "LUT_100%") == [["LUT_100%", "ViT-B/16", "1900"]], "nobody knows which is the best"
    assert "comparisons.csv" not in texts
    assert not [text for text in texts.values() if "same images" in text]


def test_a_logistic_regression_at_the_end_of_its_grid_or_not_converged_is_told(folder: Path) -> None:
    change = "downstream.near={kind = 'logistic', data = 'toys', C_grid = [0.1, 1.0, 10.0]}"
    loaded = suite(folder, change, "seeds=[0, 1]")
    told: dict[str, tuple[float, bool]] = {
        "ours/seed0": (10.0, True),
        "ours/seed1": (1.0, True),
        "theirs/seed0": (1.0, False),
    }
    for name, (strength, converged) in told.items():
        run = loaded.run(f"downstream/near/{name}")
        keep(folder, run, share(80), extra={"C": strength, "converged": converged})
    legend = section(loaded, folder, "main").legend
    assert "C is an end of its grid: near with LUT_100% (1 of 2 runs)." in legend
    assert "Not converged: near with MAE (1 of 1 runs)." in legend


def test_every_file_of_the_records_is_read_once(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(segmented)
    for method in ("ours", "theirs"):
        recorded(segmented, loaded, f"tuned/{method}/seed0", share(80))
        recorded(segmented, loaded, f"masks/{method}/seed0", streets(60, 70))
    read: list[Path] = []
    for name in ("read_bytes", "read_text"):
        original = getattr(Path, name)

        def counting(path: Path, *given: Any, original: Any = original, **named: Any) -> Any:
            read.append(path)
            return original(path, *given, **named)

        monkeypatch.setattr(Path, name, counting)
    cli.tables(str(segmented / "toy.toml"), results=segmented)
    assert "Streets" in capsys.readouterr().out
    files = sorted(path for path in read if "records" in path.parts)
    assert files == sorted(path for path in (segmented / "records").rglob("*") if path.is_file())
    assert len(files) == 8


# --- Files


def test_no_table_names_a_folder_of_the_machine(folder: Path) -> None:
    loaded = suite(folder, f"data.toys.path={folder}/toys")
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    for text in build_tables(loaded, folder).values():
        assert not [private for private in (str(folder), str(Path.cwd()), f"{Path.home()}/") if private in text]


def test_latex_escapes_what_it_would_stumble_over(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    text = build_tables(loaded, folder)["main.tex"]
    assert r"LUT\_100\%" in text
    assert r"Toys \& trains" in text
    assert not re.search(r"(?<!\\)[%_]", text)
    assert "80.0" in text


HOSTILE = r"A | B <img src=x> [l](http://e) ![p](q) *b* `c` &lt; \<i> _u_ ~~s~~ LUT_100%"
"""A name in which Markdown would find a cell's end, HTML, a link, an image, emphasis, code and an entity."""

PROSE = """one
# Heading
  ```sh
| a | b |
|---|---|
<!-- \\<b> [l](http://e)
[1]: http://e
> quoted
---
===
"""


def shown_by(text: str) -> tuple[list[str], list[str], set[str], list[str]]:
    """What a reader of Markdown sees as headings and as cells, the HTML in it, and the targets of links and images."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inline = [(before, token) for before, token in pairwise(tokens) if token.type == "inline"]
    plain = {
        kind: ["".join(c.content for c in t.children or []) for b, t in inline if b.type in kind]
        for kind in (HEADS, CELLS)
    }
    parts = [part for _, token in inline for part in token.children or []]
    html = {token.content for token in [*tokens, *parts] if token.type.startswith("html")}
    targets = [
        str(part.attrs.get("href") or part.attrs["src"]) for part in parts if part.type in ("link_open", "image")
    ]
    assert [token.content for token in tokens if token.type in ("fence", "code_block", "hr", "blockquote_open")] == [
        "```sh\n"
    ], "the indented line of the prose, as it is"
    return plain[HEADS], plain[CELLS], html, targets


HEADS, CELLS = ("heading_open",), ("th_open", "td_open")


def test_markdown_shows_names_and_prose_as_they_are_and_not_as_markup(segmented: Path) -> None:
    keys = ("title", "method.ours.label", "method.theirs.label", "downstream.tuned.title", "encoder.base.label")
    changes = [f"{key}='{HOSTILE}'" for key in keys]
    loaded = suite(segmented, *changes, f"about='''{PROSE}'''", f"data.streets.classes=['{HOSTILE}', 'sky']")
    for method in ("ours", "theirs"):
        recorded(segmented, loaded, f"tuned/{method}/seed0", share(80 if method == "ours" else 70))
        counts = [np.array([[0, 0, 60], [1, 1, 40]]), np.array([[0, 1, 9], [1, 1, 4]])]
        recorded(
            segmented, loaded, f"masks/{method}/seed0", Confusions.of(counts, [HOSTILE, "sky"], ["a.jpg", "b.jpg"])
        )
    headings, cells, html, targets = shown_by(build_tables(loaded, segmented)["main.md"])
    assert headings[0] == HOSTILE
    assert "Heading" not in headings
    assert HOSTILE in cells
    assert [cell for cell in cells if cell.startswith(f"{HOSTILE}, top-1")], "the heading of a column"
    assert html == {"<u>", "</u>"}
    assert targets
    assert all(target.startswith(("../../figures/toy/", "../../records/toy/downstream/")) for target in targets)


def test_a_dollar_in_a_label_begins_no_formula_in_a_figure(segmented: Path) -> None:
    loaded = suite(segmented, "method.ours.label='LUT $\\frac{$'", "title='a $^$ b'")
    recorded(segmented, loaded, "masks/ours/seed0", streets(60, 70))
    (figure,) = [drawing.draw() for part in all_sections(View.read(loaded, segmented)) for drawing in part.figures]
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle().startswith("a $^$ b")


def test_bars_have_the_colour_that_the_method_has_in_the_whole_suite(segmented: Path) -> None:
    loaded = suite(segmented)
    recorded(segmented, loaded, "masks/theirs/seed0", streets(60, 70))
    (figure,) = [drawing.draw() for part in all_sections(View.read(loaded, segmented)) for drawing in part.figures]
    assert {to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches} == {PALETTE[1]}


def test_the_terminal_prints_names_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = suite(folder, "method.ours.label='[red]LUT[/red] :warning:'")
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    show_tables(loaded, folder)
    assert "[red]LUT[/red] :warning:" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pipeline", "exploration"])
def test_a_suite_that_shows_the_pipeline_says_so_in_every_file_and_another_does_not(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(folder, f"kind={kind}")
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    files = build_tables(loaded, folder)
    assert set(files) == {"main.md", "main.csv", "main.tex", "wide.tex"}
    show_tables(loaded, folder)
    for text in (*files.values(), capsys.readouterr().out):
        assert ("no evidence about the method" in " ".join(text.split())) == (kind == "pipeline")


def test_what_is_shown_fits_into_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    loaded = suite(folder, "method.theirs.label=MAE, LUT's crop", "downstream.near.title=k-NN of ViT-B/16")
    for name in ("tuned/ours", "tuned/theirs", "near/ours"):
        recorded(folder, loaded, f"{name}/seed0", share(80))
    show_tables(loaded, folder)
    shown = capsys.readouterr().out.splitlines()
    assert re.match(
        r"  LUT_100% +80\.0 +71\.1 to 86\.7 +1 +84\.2 \[a\] +-4\.2$",
        shown[shown.index("Fine-tuning, top-1, ViT-B/16") + 1],
    )
    assert "k-NN of ViT-B/16, top-1" in shown, "no encoder twice"
    assert re.match(r"  LUT_100% - MAE, LUT's crop +\+0\.0 \[", shown[shown.index("Fine-tuning, top-1 ↑") + 1])
    assert max(len(line) for line in shown if not line.startswith("Runs, sources")) <= 80


def test_names_wider_than_the_terminal_are_not_cut(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    loaded = suite(folder, "method.ours.label=A method with a name that alone is wider than half of a terminal")
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    show_tables(loaded, folder)
    shown = capsys.readouterr().out
    assert "…" not in shown
    (line,) = [line for line in shown.splitlines() if "71.1 to 86.7" in line]
    assert "wider than half of a terminal" in line
    assert "84.2 [a]" in line


def test_tables_that_were_written_pass_their_check_and_edited_ones_are_named(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "tuned/ours/seed0", share(80))
    write_tables(loaded, folder)
    assert check_tables(loaded, folder) == []
    tables = folder / "tables/toy"
    before = (tables / "main.md").read_text()
    (tables / "main.md").write_text(before.replace("80.0", "81.0"))
    (tables / "main.tex").unlink()
    edited, missing = check_tables(loaded, folder)
    assert "main.md in the folder" in edited
    assert any(line.startswith("-") and "81.0" in line for line in edited.splitlines())
    assert "main.tex from the records" in missing
    write_tables(loaded, folder)
    assert (tables / "main.md").read_text() == before
    recorded(folder, loaded, "near/theirs/seed0", share(1))
    assert len(check_tables(loaded, folder)) == 4, "a record more changes every table"


def test_without_records_there_are_no_files_and_the_terminal_says_what_to_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(folder)
    write_tables(loaded, folder)
    assert not (folder / "tables").exists()
    assert check_tables(loaded, folder) == []
    show_tables(loaded, folder)
    shown = capsys.readouterr().out
    assert "84.2 [a]" in shown, "the literature's values are known all the same"
    assert not re.search("measured +95 %", shown), "nor columns without values"
    assert f"nox -s downstream results -- {folder / 'toy.toml'}" in shown


def test_a_suite_without_tasks_has_no_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "toy.toml").write_text(SUITE[: SUITE.index("[downstream.tuned]")])
    show_tables(suite(folder), folder)
    assert "There are no results yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("method.ours.published=LUTT", r"method\.ours\.published: .* no 'LUTT'\. Did you mean 'LUT'"),
        ("downstream.tuned.published=imagenet/finetune/top-1", r"downstream\.tuned\.published: .* Did you mean"),
    ],
)
def test_a_published_name_that_nobody_knows_is_refused_with_the_nearest(folder: Path, change: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        View.read(suite(folder, change), folder)


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    assert [signed(value) for value in (-0.04, 0.0, 0.04, -0.06)] == ["+0.0", "+0.0", "+0.0", "-0.1"]


def test_lines_that_are_indented_stay_as_they_are_written_in_markdown() -> None:
    about = "Needs:\n  DIR/train/*.jpg    10 images\n  DIR/val/*.jpg      5 images\n\nMachine: any."
    assert markdown([Section(legend=about)], "figures") == (
        "Needs:\n\n```\nDIR/train/*.jpg    10 images\nDIR/val/*.jpg      5 images\n```\n\nMachine: any.\n"
    )


def test_a_latex_table_has_a_label_of_its_own_and_is_no_wider_than_the_page() -> None:
    frame = pd.DataFrame({"method": ["LUT"]})
    text = latex([Section("One row per method", 3, frame), Section("One row per method", 3, frame)], "Toy & co", "")
    assert [line for line in text.splitlines() if "label" in line] == [
        rf"\label{{tab:toy-co-one-row-per-method-{number}}}" for number in (1, 2)
    ]
    assert text.count(r"\begin{adjustbox}{max width=\linewidth}") == text.count(r"\end{adjustbox}") == 2
