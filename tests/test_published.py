"""The literature's numbers are those that were read, each has a source, and mistakes in the file are told by entry."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lutbench.errors import UserError
from lutbench.report.published import Published, PublishedValue, load_published

SMALL = """
[task.finetune]
title = "ImageNet-1K, fine-tuned"
metric = "top-1"

[task.corrupted]
title = "ImageNet-C"
metric = "mCE"
better = "lower"

[task.time]
title = "Pre-training"
metric = "wall-clock time"
unit = "h"
better = "lower"

[source]
mae = "MAE, table 3"
lut = "LUT, README"

[[reported]]
method = "MAE"
task = "finetune"
source = "mae"
values = { "ViT-B/16" = 83.6 }
note = "1600 epochs"

[[reported]]
method = "MAE"
task = "finetune"
source = "lut"
values = { "ViT-S/16" = 81.4, "ViT-B/16" = 83.7 }
secondary = true

[[reported]]
method = "MAE"
task = "corrupted"
source = "mae"
values = { "ViT-B/16" = 51.7 }

[[reported]]
method = "MAE"
task = "time"
source = "mae"
values = { "ViT-L/16" = 840 }
"""

FINETUNE = "imagenet-1k/finetune/top-1"


@pytest.fixture(scope="module")
def published() -> Published:
    return load_published()


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Published]:
    """Load SMALL with texts replaced: ``small((old, new), ...)``."""

    def load(*replacements: tuple[str, str]) -> Published:
        text = SMALL
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "small.toml"
        path.write_text(text, encoding="utf-8")
        return load_published(path)

    return load


def test_lut_and_mae_are_as_their_authors_report_them(published: Published) -> None:
    lut = published.value("LUT", FINETUNE, "ViT-B/16")
    mae = published.value("MAE", FINETUNE, "ViT-B/16")
    assert lut is not None
    assert mae is not None
    assert (lut.value, lut.source) == (84.2, "naver-ai/lut@4420a27:README.md")
    assert (mae.value, mae.source) == (83.6, "He et al. 2022 (MAE), table 3")


@pytest.mark.parametrize(
    ("method", "task", "encoder", "value"),
    [
        ("LUT", FINETUNE, "ViT-S/16", 82.0),
        ("LUT", FINETUNE, "ViT-L/16", 86.0),
        ("MAE", FINETUNE, "ViT-H/14@448", 87.8),
        ("MAE", "imagenet-1k/linear/top-1", "ViT-B/16", 68.0),
        ("MAE", "imagenet-c/finetune/mce", "ViT-B/16", 51.7),
        ("MAE", "imagenet-c/finetune/mce", "ViT-H/14", 33.8),
        ("Supervised (MAE paper)", "imagenet-c/finetune/mce", "ViT-L/16", 42.3),
        ("MAE", "imagenet-a/finetune/top-1", "ViT-L/16", 57.1),
        ("MAE", "imagenet-r/finetune/top-1", "ViT-B/16", 48.3),
        ("MAE", "ade20k/upernet/miou", "ViT-B/16", 48.1),
        ("MAE", "coco/mask-rcnn/mask-ap", "ViT-L/16", 47.2),
        ("MAE", "inaturalist-2019/finetune/top-1", "ViT-B/16", 80.5),
        ("MAE", "places365/finetune/top-1", "ViT-H/14@448", 60.3),
        ("RC-MAE", FINETUNE, "ViT-L/16", 86.1),
        ("iBOT", "imagenet-1k/knn/top-1", "ViT-B/16", 77.1),
        ("iBOT", "ade20k/linear/miou", "ViT-B/16", 38.3),
        ("iBOT", "cars/finetune/top-1", "ViT-S/16", 94.0),
        ("iBOT", "imagenet-c/linear/error", "ViT-S/16", 48.1),
        ("iBOT", "backgrounds-only-bg-t/linear/top-1", "ViT-S/16", 17.4),
        ("DINO", FINETUNE, "ViT-B/16", 82.8),
        ("MoCo v3", "imagenet-1k/linear/top-1", "ViT-S/16", 73.2),
        ("BEiT", "ade20k/setr-pup/miou", "not noted", 45.6),
        ("SimMIM", FINETUNE, "ViT-B/16", 83.8),
        ("DeiT (timm)", "imagenet-sketch/finetune/top-1", "ViT-S/16", 29.435),
        ("DeiT (timm)", "imagenet-v2-matched-frequency/finetune/top-1", "ViT-B/16", 70.97),
    ],
)
def test_numbers_are_those_of_the_papers(
    published: Published, method: str, task: str, encoder: str, value: float
) -> None:
    found = published.value(method, task, encoder)
    assert found is not None
    assert found.value == value


def test_errors_and_times_are_better_when_lower_and_nothing_else_is(published: Published) -> None:
    lower = {name for name, task in published.task.items() if task.better == "lower"}
    assert lower == {
        "imagenet-c/finetune/mce",
        "imagenet-c/linear/error",
        "backgrounds/finetune/bg-gap",
        "imagenet-1k/pretrain/hours",
        "imagenet-1k/finetune/minutes",
    }


def test_every_entry_has_a_source(published: Published) -> None:
    assert len(published.reported) > 200
    assert all(published.source[entry.source] for entry in published.reported)


def test_lut_is_published_for_fine_tuning_on_imagenet_only(published: Published) -> None:
    assert {entry.task for entry in published.reported if entry.method == "LUT"} == {FINETUNE}


def test_what_others_report_of_a_method_is_not_its_published_value(published: Published) -> None:
    told = [entry for entry in published.reported if (entry.method, entry.task) == ("MAE", FINETUNE)]
    assert sorted(e.values["ViT-S/16"] for e in told if "ViT-S/16" in e.values) == [81.4, 81.8]
    assert published.value("MAE", FINETUNE, "ViT-S/16") is None


def test_a_primary_value_comes_with_source_setting_and_note(small: Callable[..., Published]) -> None:
    found = small().value("MAE", "finetune", "ViT-B/16")
    assert found == PublishedValue(83.6, "MAE, table 3", "", "1600 epochs")
    assert small().value("MAE", "finetune", "ViT-L/16") is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "secondary = true\n",
            "",
            r"MAE on finetune in lut: a second primary value for ViT-B/16, 83\.7; mae has 83\.6",
        ),
        ('task = "corrupted"', 'task = "corupted"', r"MAE on corupted in mae: .*Did you mean 'corrupted'"),
        ('source = "lut"', 'source = "luut"', r"MAE on finetune in luut: .*Did you mean 'lut'"),
        ("83.6", "840", r"MAE on finetune in mae: ViT-B/16 has 840\.0, expected percent between 0 and 100"),
        ("51.7", "-0.1", r"MAE on corrupted in mae: ViT-B/16 has -0\.1"),
        ("83.6", "nan", r"MAE on finetune in mae.*ViT-B/16.*finite"),
        ("83.6", '"83.6"', r"MAE on finetune in mae.*ViT-B/16.*valid number"),
        ('{ "ViT-B/16" = 83.6 }', "{}", r"MAE on finetune in mae.*values.*at least 1"),
        ('source = "lut"\n', "", r"MAE on finetune in \?.*source: required"),
        ("note =", "nota =", r"MAE on finetune in mae.*nota: no such setting.*'note'"),
        ('lut = "LUT, README"', 'lut = ""', r"source\.lut: .*at least 1"),
        ('better = "lower"', 'better = "less"', r"task\.corrupted\.better"),
        ("[task.time]", '[task.unused]\ntitle = "T"\nmetric = "M"\n[task.time]', r"no entry uses the task unused"),
        ('mae = "MAE, table 3"', 'mae = "MAE"\nold = "gone"', r"no entry uses the source old"),
        ("[source]", "[source", r"not a TOML file"),
    ],
)
def test_a_mistake_is_refused_by_the_name_of_the_entry(
    small: Callable[..., Published], old: str, new: str, told: str
) -> None:
    with pytest.raises(UserError, match=told) as refused:
        small((old, new))
    assert "small.toml: " in str(refused.value)
    assert "\n" not in str(refused.value)
