"""The literature's numbers are those that were read, each has a source, and mistakes in the file are told by entry."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite
from lutbench.report.entries import TableEntry, entries
from lutbench.report.published import NOT_KNOWN, Published, PublishedValue, load_published

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

[recipe.base]
kind = "finetune"
data = "imagenet-1k"

[[reported]]
method = "MAE"
task = "finetune"
source = "mae"
values = { "ViT-B/16" = 83.6 }
recipe = { "ViT-B/16" = ["base"] }
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
    assert found == PublishedValue(
        83.6,
        "MAE, table 3",
        "",
        "1600 epochs",
        NOT_KNOWN,
        "ImageNet-1K, fine-tuned",
        "fine-tuned for 100 epochs at 224 px",
    )
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
        ('["base"]', '["bases"]', r"MAE on finetune in mae: there is no recipe 'bases'\. Did you mean 'base'"),
        (
            '{ "ViT-B/16" = ["base"] }',
            '{ "ViT-L/16" = ["base"] }',
            r"in mae: a recipe for ViT-L/16, which has no value",
        ),
        ('["base"]', "[]", r"no entry uses the recipe base"),
        ('kind = "finetune"', 'kind = "finetuned"', r"recipe\.base\.kind: no such kind .*'finetuned'.*'finetune'"),
        ('data = "imagenet-1k"', "epoch = 50", r"recipe\.base\.epoch: no setting of kind finetune.*'epochs'"),
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


# --- The recipe of a value, and that of a run


def of_paper(*changes: str) -> dict[tuple[str, str], TableEntry]:
    """The entries of the suite ``paper`` that have a published value, by task and method; of several metrics the first."""
    found: dict[tuple[str, str], TableEntry] = {}
    for entry in entries(load_suite("paper", changes), {}):
        if entry.published:
            found.setdefault((entry.task, entry.method), entry)
    return found


def why(entry: TableEntry) -> str:
    assert entry.published is not None
    return entry.published.other_recipe


def test_values_by_another_recipe_than_the_papers_suite_has_are_known_as_such() -> None:
    found = of_paper()
    same = {key for key, entry in found.items() if not why(entry)}
    assert {key for key in same if not key[0].startswith("timm/")} == {
        ("finetune-b", "lut-b"), ("finetune-b", "mae-b"), ("finetune-l", "mae-l"), ("linear-b", "mae-b"),
        ("ade20k-b", "mae-b"), ("imagenet/imagenet-val", "lut-b"), ("imagenet/imagenet-val", "mae-b"),
        ("imagenet/imagenet-val", "mae-l"), ("imagenet/imagenet-val/linear-probe", "mae-b"), ("imagenet/imagenet-a", "mae-b"), ("imagenet/imagenet-r", "mae-b"),
        ("imagenet/imagenet-c", "mae-b"), ("imagenet/imagenet-sketch", "mae-b"),
    }  # fmt: skip
    for task in ("inaturalist-2017", "inaturalist-2018", "inaturalist-2019", "places365"):
        assert why(found[task, "mae-b"]) == NOT_KNOWN
        assert "not published" in found[task, "mae-b"].published.note  # type: ignore[union-attr]
    assert why(found["ade20k-l", "mae-l"]) == why(found["finetune-s", "lut-s"]) == NOT_KNOWN
    assert (
        why(found["linear-l", "mae-l"]) == "Its recipe differs (published to run): linear.epochs changed from 90 to 50."
    )
    drop_path = "Its recipe differs (published to run): finetune.drop_path changed from 0.1 to 0.2."
    assert why(found["imagenet/imagenet-a", "mae-l"]) == drop_path


def test_a_rerun_by_the_runs_recipe_goes_before_a_report_by_another() -> None:
    found = of_paper()
    segmented, large = (found[key].published for key in (("ade20k-b", "mae-b"), ("finetune-l", "mae-l")))
    assert segmented is not None
    assert large is not None
    assert (segmented.value, segmented.setting) == (48.13, "re-run, 160k iterations, slide stride 341")
    assert (large.value, large.setting) == (85.87, "PyTorch, mean of 4 trials")
    other = of_paper("downstream.ade20k-b.iterations=80000")["ade20k-b", "mae-b"]
    assert other.published is not None
    assert (other.published.value, why(other)) == (48.1, NOT_KNOWN)


@pytest.mark.parametrize(
    ("change", "task", "method", "told"),
    [
        ("downstream.finetune-b.epochs=20", "finetune-b", "lut-b", "finetune.epochs changed from 100 to 20"),
        ("downstream.finetune-b.epochs=20", "imagenet/imagenet-a", "mae-b", "finetune.epochs changed from 100 to 20"),
        ("downstream.finetune-b.base_lr=5e-4", "finetune-b", "mae-b", "finetune.lr changed from 0.004 to 0.002"),
        ("downstream.linear-b.pool=mean", "linear-b", "mae-b", "linear.pool changed from class to mean"),
        ("pretrain.lut-b.epochs=100", "finetune-b", "lut-b", "pretrain.epochs changed from 1600 to 100"),
        ("pretrain.mae-b.crop=simple", "linear-b", "mae-b", "pretrain.crop changed from random to simple"),
        ("defaults.pretrain.micro_batch=512", "finetune-b", "lut-b", "pretrain.micro_batch changed from 1024 to 512"),
        ("defaults.pretrain.data=cifar-100", "finetune-b", "mae-b", "pretrain.data changed from imagenet-1k to cifar-100"),
        ("method.lut-b.teacher=true; pretrain.lut-b.snapshot_teacher=true", "finetune-b", "lut-b", "encoder.export changed from encoder to teacher"),
        ("encoder.b.width=64; encoder.b.heads=4", "finetune-b", "mae-b", "pretrain.encoder.width changed from None to 64"),
        ("method.mae-b={scratch=true, encoder='b', published='MAE'}", "finetune-b", "mae-b", "there is no pretrain run"),
        ("robustness.timm.preprocessing=['bicubic']", "timm/imagenet-a", "deit-b", "changed from ['own'] to ['bicubic']"),
        ("classifier.deit-b.checkpoint=deit.pth", "timm/imagenet-a", "deit-b", "classifier.kind changed from timm to checkpoint"),
        ("classifier.deit-b.model=deit_base_distilled_patch16_224", "timm/imagenet-a", "deit-b", "classifier.model changed"),
    ],
)  # fmt: skip
def test_a_run_of_other_settings_has_no_difference_and_says_which(
    change: str, task: str, method: str, told: str
) -> None:
    assert told in why(of_paper(*change.split("; "))[task, method])


@pytest.mark.parametrize(
    "change",
    [
        "defaults.finetune.lr_rule=linear",  # the same rate at a batch of 1024
        "defaults.finetune.micro_batch=256",
        "defaults.pretrain.precision=fp32",
        "seeds=[0, 1, 2]",
        "method.mae-b={checkpoint='mae_pretrain_vit_base.pth', encoder='b', published='MAE'}",
    ],
)
def test_a_run_by_the_recipe_in_other_words_keeps_its_difference(change: str) -> None:
    found = of_paper(change)
    assert why(found["finetune-b", "mae-b"]) == why(found["imagenet/imagenet-a", "mae-b"]) == ""


def test_timms_scores_stand_beside_its_classifiers_as_timm_measured_them() -> None:
    timm = {key: entry for key, entry in of_paper().items() if key[0].startswith("timm/")}
    sets = ("imagenet-val", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")
    assert set(timm) == {(f"timm/{name}", row) for name in sets for row in ("deit-s", "deit-b")}
    assert not any(why(entry) for entry in timm.values())
    assert timm["timm/imagenet-a", "deit-b"].published.value == 27.173  # type: ignore[union-attr]


def test_mmsegmentation_slides_by_341_pixels(published: Published) -> None:
    settings = [entry.setting for entry in published.reported if entry.source == "mmsegmentation"]
    assert settings
    assert all("slide stride 341" in setting for setting in settings)
