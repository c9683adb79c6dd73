"""Tables and curves of shifted test sets say what records say: hand-made outcomes, and what a hand computes from them."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hand_made import answers, keep
from matplotlib.figure import Figure
from reported import build_tables, check_tables, section, show_tables, write_tables

from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Outcomes
from lutbench.recipes.loading import load_suite
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record, read_records
from lutbench.report.comparisons import comparison_sections
from lutbench.report.figures import PALETTE
from lutbench.report.sections import View, not_run
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes
from robustness.curves import occlusion_curves, occlusion_figure, severity_chart, severity_curves, severity_figure
from robustness.metrics import ALEXNET_ERROR
from robustness.report import corruption_sections, sections

SUITE = """
title = "Toys"
about = "for tests"
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
label = "LUT"
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
[classifier.supervised]
model = "deit_base_patch16_224"
label = "DeiT"
encoder = "ViT-B/16"
[shifted.adversarial]
label = "Adversarial"
path = "a"
logits = ["subset", "all"]
preprocessing = ["bicubic", "bilinear"]
published = { "200 classes" = "imagenet-a/finetune/top-1" }
[shifted.corrupted]
label = "Corrupted"
path = "c"
kind = "corruptions"
preprocessing = ["crop"]
[shifted.occluded]
label = "Occluded"
path = "o"
kind = "occlusion"
[shifted.outliers]
label = "Outliers"
path = "u"
kind = "detection"
known = "k"
[robustness.shifts]
tasks = ["tuned"]
sets = ["adversarial", "corrupted", "occluded", "outliers"]
"""

METHODS = ("ours", "theirs", "supervised")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method on every set; tests only read it."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "toy.toml").write_text(SUITE)
    loaded = suite(folder)
    for place, method in enumerate(METHODS):
        classifier = tuned(folder, loaded, method) if method in loaded.config.method else None
        for shifted, made in (
            ("adversarial", adversarial(30 + place, 40 + place, 35)),
            ("corrupted", corrupted(10 + place)),
            ("occluded", occluded(5 + place)),
            ("outliers", outliers(18 - place)),
        ):
            recorded(folder, loaded, f"{shifted}/{method}/seed0", made, classifier)
    return folder


@pytest.fixture(scope="module")
def view(full: Path) -> View:
    return View.read(suite(full), full)


@pytest.fixture(scope="module")
def files(full: Path) -> dict[str, str]:
    return build_tables(suite(full), full)


def suite(folder: Path, *changes: str) -> LoadedSuite:
    return load_suite(str(folder / "toy.toml"), changes)


def seen(
    cell: str, *right: Sequence[bool], protocols: Sequence[str] = ("9 classes",), way: str = "", scored: bool = False
) -> ConditionOutcomes:
    """A cell in which under each protocol so many of the images are right."""
    hits = np.array(right)
    scores = np.linspace(0.2, 0.9, hits.shape[1])[None].repeat(len(hits), 0)
    places = np.stack([hits * 1, 1 - hits, scores], 2).swapaxes(0, 1)
    return ConditionOutcomes.of(
        cell, way, protocols, np.ones(hits.shape[1], int), places, (f"{n}.png" for n in range(hits.shape[1])), scored
    )


def first(count: int, of: int = 100) -> list[bool]:
    return [number < count for number in range(of)]


def adversarial(all_right: int, subset_right: int, bilinear: int = 0) -> list[ConditionOutcomes]:
    protocols = ("200 classes", "1000 classes")
    return [
        seen("", first(subset_right), first(all_right), protocols=protocols, way="bicubic"),
        seen("", first(bilinear), first(bilinear), protocols=protocols, way="bilinear"),
    ]


def corrupted(
    falling: int, names: Sequence[str] = ("fog", "snow", "saturate"), severities: int = 3
) -> list[ConditionOutcomes]:
    """Of 100 images 90 less so many at every further severity are right; 10 fewer for every further corruption."""
    return [
        seen(f"{name}/{severity}", first(max(0, 90 - 10 * place - falling * (severity - 1))))
        for place, name in enumerate(names)
        for severity in range(1, severities + 1)
    ]


def occluded(falling: int) -> list[ConditionOutcomes]:
    dropped = [seen(f"drop {tenths}/10", first(90 - falling * tenths), way="bicubic") for tenths in range(10)]
    return dropped + [seen(f"shuffle {n}x{n}", first(80 - falling * n // 4), way="bicubic") for n in (2, 4, 8, 14, 16)]


def outliers(known: int) -> list[ConditionOutcomes]:
    return [seen("known", first(known, 20), scored=True), seen("unknown", [False] * 20, scored=True)]


def recorded(
    folder: Path,
    loaded: LoadedSuite,
    name: str,
    made: Sequence[ConditionOutcomes] | Outcomes,
    classifier: Record | None = None,
    sha256: str = "",
) -> Record:
    """Keep a record as the run of that name would leave it; ``classifier`` is that of the run before it, ``sha256`` that of its weights."""
    planned = next(run for run in loaded.runs if run.name in (name, f"robustness/shifts/{name}"))
    if not isinstance(planned.recipe, RobustnessRecipe):
        assert isinstance(made, Outcomes)
        return keep(folder, planned, made)
    assert not isinstance(made, Outcomes)
    inputs = {}
    if planned.needs:
        before = classifier or tuned(folder, loaded, planned.method, planned.seed)
        inputs["classifier"] = {"run": before.identity} | ({"sha256": sha256} if sha256 else {})
    return keep(folder, planned, RobustnessOutcomes.of(planned.recipe.set, made), **inputs)


def tuned(folder: Path, loaded: LoadedSuite, method: str, seed: int = 0) -> Record:
    """The record of a fine-tuning: 80 of 100 images are right."""
    return recorded(folder, loaded, f"downstream/tuned/{method}/seed{seed}", answers(first(80)))


def rows(folder: Path, loaded: LoadedSuite, task: str, method: str) -> list[dict[str, str]]:
    table = section(loaded, folder, "robustness").frame
    found = table if table.empty else table[(table["task"] == task) & (table["method"] == method)].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]


def told(line: str) -> list[str]:
    """The columns of a line on the terminal."""
    return re.split(r"  +", line.strip())


# --- The table of all sets


def test_every_method_and_classifier_has_a_row_of_each_printed_metric(full: Path) -> None:
    table = section(suite(full), full, "robustness").frame
    assert list(table["method"]) == ["LUT", "MAE", "DeiT"] * 6, "methods stand beside each other in every metric"
    found = list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))
    assert found == [
        ("Adversarial", "top-1, 200 classes, bicubic ↑"),
        ("Corrupted", "mean error, 2 corruptions ↓"),
        ("Corrupted", "mean error, 1 extra corruption ↓"),
        ("Occluded", "mean top-1, patches dropped ↑"),
        ("Occluded", "mean top-1, tiles shuffled ↑"),
        ("Outliers", "AUPR, 9 classes ↑"),
    ]
    assert set(table["encoder"]) == {"ViT-B/16"}


def test_one_seed_has_its_interval_over_images_and_the_published_value_beside_it(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "adversarial/theirs/seed0", adversarial(30, 40))
    (found,) = rows(folder, loaded, "Adversarial", "MAE")
    assert (found["measured"], found["95 % interval"], found["seeds"]) == ("40.0", "30.9 to 49.8", "1")
    assert (found["published"], found["difference"], found["runs"]) == ("35.9 [a]", "+4.1", "[4]")
    text = build_tables(loaded, folder)["main.md"]
    assert "- [4] [`robustness/shifts/adversarial/theirs/seed0`](../../records/toy/robustness/shifts/" in text
    protocol = "ViT-B/16: pre-trained for 1600 epochs, fine-tuned for 100 epochs at 224 px"
    assert f"- [a] He et al. 2022 (MAE), table 13: ImageNet-A, ImageNet-1K classifier ({protocol})\n" in text


def test_a_classifier_that_no_run_made_has_its_own_published_value(folder: Path) -> None:
    loaded = suite(folder, "classifier.supervised.published=MAE")
    recorded(folder, loaded, "adversarial/supervised/seed0", adversarial(30, 40))
    (found,) = rows(folder, loaded, "Adversarial", "DeiT")
    assert (found["measured"], found["published"]) == ("40.0", "35.9 [a]")
    other = suite(folder, "classifier.supervised.published=MAE", "classifier.supervised.encoder=ViT-T/16")
    (found,) = rows(folder, other, "Adversarial", "DeiT")
    assert (found["measured"], found["encoder"], found["published"]) == ("40.0", "ViT-T/16", "")


def test_several_seeds_have_students_interval_and_seeds_that_are_missing_are_told(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1, 2]")
    for seed, count in ((0, 40), (2, 42)):
        recorded(folder, loaded, f"adversarial/ours/seed{seed}", adversarial(30, count))
    (found,) = rows(folder, loaded, "Adversarial", "LUT")  # 41 +- 12.706 * 1
    assert (found["measured"], found["95 % interval"], found["seeds"]) == ("41.0", "28.3 to 53.7", "2 of 3")


def test_a_set_that_was_not_run_has_no_number_and_is_named_below(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "corrupted/ours/seed0", corrupted(10))
    view = View.read(loaded, folder)
    told = "Not run: Adversarial; Corrupted with MAE, DeiT; Occluded; Outliers."
    assert not_run(view, view.of_kind("robustness")) == told
    assert told in build_tables(loaded, folder)["main.md"]
    show_tables(loaded, folder)
    assert told in " ".join(capsys.readouterr().out.split())
    assert rows(folder, loaded, "Corrupted", "MAE") == [], "nothing would be in it either"
    assert [found["published"] for found in rows(folder, loaded, "Adversarial", "MAE")] == ["35.9 [a]"], (
        "known all the same"
    )
    assert rows(folder, loaded, "Occluded", "LUT") == [], "nothing would be in it"
    listed = pd.read_csv(io.StringIO(build_tables(loaded, folder)["main.csv"]))
    assert list(listed["task"]) == ["tuned", *["shifts/corrupted"] * 2]


def test_nothing_is_said_to_be_not_run_where_all_was(view: View, files: dict[str, str]) -> None:
    assert not_run(view, view.of_kind("robustness")) == ""
    assert "Not run" not in files["main.md"]


def test_a_record_of_other_settings_is_stale_and_is_not_said_to_be_not_run(folder: Path) -> None:
    recorded(folder, suite(folder), "adversarial/ours/seed0", adversarial(30, 40))
    changed = suite(folder, "shifted.adversarial.border=2")
    (found,) = rows(folder, changed, "Adversarial", "LUT")
    assert (found["measured"], found["runs"], found["difference"]) == ("stale", "[3]", "")
    view = View.read(changed, folder)
    assert "Adversarial with MAE, DeiT;" in not_run(view, view.of_kind("robustness"))
    files = build_tables(changed, folder)
    assert "[3] `robustness/shifts/adversarial/ours/seed0` stale: set.border changed from 0 to 2\n" in files["main.md"]
    assert "40.0" not in files["robustness.tex"]
    assert pd.read_csv(io.StringIO(files["robustness.csv"])).empty
    harmless = suite(folder, "shifted.adversarial.label=Hard", "defaults.robustness.workers=1")
    assert rows(folder, harmless, "Hard", "LUT")[0]["measured"] == "40.0"


def test_a_value_is_stale_if_the_fine_tuning_that_made_its_classifier_is(folder: Path) -> None:
    loaded, changed = suite(folder), suite(folder, "downstream.tuned.epochs=50")
    recorded(folder, loaded, "adversarial/ours/seed0", adversarial(30, 40))
    assert rows(folder, changed, "Adversarial", "LUT")[0]["measured"] == "stale"
    text = build_tables(changed, folder)["main.md"]
    assert "`robustness/shifts/adversarial/ours/seed0` stale: downstream/tuned/ours/seed0: epochs changed" in text

    tuned(folder, changed, "ours")
    text = build_tables(changed, folder)["main.md"]
    assert "stale: its classifier is not the one in the record of downstream/tuned/ours/seed0" in text

    tuned_run = next(run for run in changed.runs if run.name == "downstream/tuned/ours/seed0")
    again = keep(folder, tuned_run, answers([1] * 10), checkpoint="b" * 64)
    for sha256, expected in (("a" * 64, True), ("b" * 64, False)):
        recorded(folder, changed, "adversarial/ours/seed0", adversarial(30, 40), again, sha256)
        repeated = "its classifier has other weights than the record of downstream/tuned/ours/seed0, which was repeated"
        assert (repeated in build_tables(changed, folder)["main.md"]) == expected

    (folder / "records/toy/downstream/tuned/ours/seed0.json").unlink()
    assert (
        "stale: the run of its classifier, downstream/tuned/ours/seed0, has no record"
        in build_tables(loaded, folder)["main.md"]
    )


def test_the_main_table_is_of_downstream_tasks_only(full: Path, files: dict[str, str]) -> None:
    assert list(section(suite(full), full, "main").frame["task"]) == ["Fine-tuning", "Fine-tuning"]
    assert "Adversarial" not in files["main.tex"]
    assert files["main.md"].index("Fine-tuning") < files["main.md"].index("## Shifted test sets")


def test_a_suite_of_classifiers_alone_has_no_main_table(folder: Path) -> None:
    start, end = SUITE.index("[data.toys]"), SUITE.index("[classifier")
    alone = SUITE[:start].replace('compare = [["ours", "theirs"]]', "") + SUITE[end:].replace('tasks = ["tuned"]\n', "")
    (folder / "toy.toml").write_text(alone)
    loaded = suite(folder)
    recorded(folder, loaded, "adversarial/supervised/seed0", adversarial(30, 40))
    files = build_tables(loaded, folder)
    assert set(files) == {"main.md", "main.csv", "robustness.csv", "robustness.tex", "wide.tex"}
    assert "| Adversarial | DeiT" in files["main.md"]


def test_two_fine_tunings_of_a_method_in_one_table_are_refused_with_the_way_out(folder: Path) -> None:
    more = '[downstream.longer]\nkind = "finetune"\ndata = "toys"\nmethods = ["ours"]\n'
    apart = '[robustness.more]\ntasks = ["longer"]\nclassifiers = []\nsets = ["adversarial"]\n'
    (folder / "toy.toml").write_text(SUITE + more)
    both = 'robustness.shifts.tasks=["tuned", "longer"]'
    with pytest.raises(UserError) as refused:
        suite(folder, both)
    assert str(refused.value) == (
        "robustness.shifts.tasks: tuned and longer each fine-tune ours, but a table can have only one such classifier per method. "
        "Keep one of these tasks here, and use another [robustness.NAME] table for the others."
    )
    assert suite(folder, both, 'robustness.shifts.methods=["theirs"]'), "of this method there is one"
    (folder / "toy.toml").write_text(SUITE + more + apart)
    needed = {run.task: run.needs for run in suite(folder).runs if run.method == "ours" and run.stage == "robustness"}
    assert needed["more/adversarial"] == "downstream/longer/ours/seed0"
    assert needed["shifts/adversarial"] == "downstream/tuned/ours/seed0"


PROBE = '[downstream.probe]\nkind = "linear"\ndata = "toys"\n'


def test_frozen_encoders_with_their_linear_probe_have_rows_beside_the_fine_tuned(folder: Path) -> None:
    (folder / "toy.toml").write_text(SUITE + PROBE)
    loaded = suite(folder, 'robustness.shifts.tasks=["probe", "tuned"]')
    runs = {run.name: run for run in loaded.runs if run.stage == "robustness" and "adversarial" in run.task}
    assert {name: run.needs for name, run in runs.items()} == {
        **{f"robustness/shifts/adversarial/{m}/seed0": f"downstream/tuned/{m}/seed0" for m in ("ours", "theirs")},
        "robustness/shifts/adversarial/supervised/seed0": None,
        **{
            f"robustness/shifts/adversarial/linear-probe/{m}/seed0": f"downstream/probe/{m}/seed0"
            for m in ("ours", "theirs")
        },
    }
    alone = {run.name: run.recipe.affecting_results() for run in suite(folder).runs if run.stage == "robustness"}
    both = {run.name: run.recipe.affecting_results() for run in loaded.runs}
    assert {name: both[name] for name in alone} == alone, "identities of the fine-tuned stay as they are"
    entries = [entry for entry in View.read(loaded, folder).entries if "adversarial" in entry.task]
    view = View.read(loaded, folder)
    assert list(dict.fromkeys(map(view.task_title, entries))) == ["Adversarial", "Adversarial, linear probe"]


def test_what_was_published_of_fine_tuned_classifiers_does_not_stand_beside_a_probe(folder: Path) -> None:
    (folder / "toy.toml").write_text(
        SUITE.replace('published = "MAE"', 'published = "iBOT"').replace("ViT-B", "ViT-S") + PROBE
    )
    loaded = suite(folder, 'robustness.shifts.tasks=["probe", "tuned"]')
    found = {
        (one.task, one.method): one.published for one in View.read(loaded, folder).entries if "adversarial" in one.task
    }
    assert found["shifts/adversarial", "theirs"] is None
    beside = found["shifts/adversarial/linear-probe", "theirs"]
    assert beside is not None
    assert (beside.value, beside.protocol) == (13.8, "ImageNet-A, linear probe"), "iBOT, table 8"
    (folder / "toy.toml").write_text(SUITE + PROBE)
    loaded = suite(folder, 'robustness.shifts.tasks=["probe", "tuned"]')
    found = {
        (one.task, one.method): one.published for one in View.read(loaded, folder).entries if "adversarial" in one.task
    }
    assert found["shifts/adversarial", "theirs"] is not None
    assert found["shifts/adversarial/linear-probe", "theirs"] is None, "MAE's 35.9 is of a fine-tuned classifier"


def test_two_probes_of_a_method_in_one_table_are_refused(folder: Path) -> None:
    (folder / "toy.toml").write_text(SUITE + PROBE + PROBE.replace("probe]", "again]"))
    with pytest.raises(
        UserError, match=r"shifts.tasks: probe and again each probe ours, but a table can have only one"
    ):
        suite(folder, 'robustness.shifts.tasks=["probe", "again"]')


def test_published_sets_have_the_names_that_their_authors_gave_them(folder: Path) -> None:
    loaded = suite(folder, 'robustness.shifts.sets=["imagenet-a", "imagenet-c"]')
    view = View.read(loaded, folder)
    robust = view.of_kind("robustness")
    assert list(dict.fromkeys(map(view.task_title, robust))) == ["ImageNet-A", "ImageNet-C"]
    assert not_run(view, view.of_kind("robustness")) == "Not run: ImageNet-A; ImageNet-C."


def test_sets_of_several_tables_are_told_apart_by_the_tables_title(folder: Path) -> None:
    more = '[robustness.more]\ntitle = "Classifiers"\nsets = ["adversarial"]\n'
    (folder / "toy.toml").write_text(SUITE + more)
    loaded = suite(folder)
    recorded(folder, loaded, "adversarial/ours/seed0", adversarial(30, 40))
    recorded(folder, loaded, "robustness/more/adversarial/supervised/seed0", adversarial(30, 50))
    table = section(loaded, folder, "robustness").frame.set_index(["task", "method"])["measured"]
    assert table["shifts, Adversarial", "LUT"] == "40.0"
    assert table["Classifiers, Adversarial", "DeiT"] == "50.0"


# --- Published values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "classifier.supervised.published=MAEE",
            r"classifier\.supervised\.published: .* no 'MAEE'\. Did you mean 'MAE'",
        ),
        ("method.theirs.published=MAEE", r"method\.theirs\.published: .* no 'MAEE'"),
        (
            'shifted.adversarial.published={"200 classes" = "imagenet-a/top-1"}',
            r"shifted\.adversarial\.published: .* no 'imagenet-a/top-1'\. Did you mean",
        ),
        (
            'shifted.adversarial.published={"200 classes" = "imagenet-c/finetune/mce"}',
            r"adversarial\.published: the metric of imagenet-c/finetune/mce is mCE, but '200 classes' is measured in top-1",
        ),
    ],
)
def test_a_published_name_that_is_unknown_or_of_another_metric_is_refused(
    folder: Path, change: str, message: str
) -> None:
    recorded(folder, suite(folder), "adversarial/ours/seed0", adversarial(30, 40))
    with pytest.raises(UserError, match=message):
        View.read(suite(folder, change), folder)


def test_published_values_stand_beside_the_metric_that_their_key_names(folder: Path) -> None:
    (folder / "toy.toml").write_text(
        SUITE.replace(
            "[shifted.occluded]", 'alexnet = true\npublished = { mCE = "imagenet-c/finetune/mce" }\n[shifted.occluded]'
        )
    )
    loaded = suite(folder)
    (told,) = rows(folder, loaded, "Corrupted", "MAE")
    assert (told["metric"], told["published"], told["measured"]) == ("mCE ↓", "51.7 [a]", "")
    recorded(folder, loaded, "corrupted/theirs/seed0", corrupted(1, list(ALEXNET_ERROR), 5))
    relative, plain = rows(folder, loaded, "Corrupted", "MAE")
    assert (relative["metric"], relative["published"]) == ("mCE ↓", "51.7 [a]")
    assert (plain["metric"], plain["published"]) == ("mean error, 15 corruptions ↓", "")


# --- Corruptions


def test_each_corruption_has_a_row_the_extra_ones_stand_apart_and_the_first_pair_is_compared(
    full: Path, view: View
) -> None:
    heading, one = corruption_sections(view)
    assert "with its 95 % interval: percentiles of 2000 resamples of the images." in heading.legend
    assert (one.title, list(one.frame)) == (
        "Corrupted: top-1 error, %",
        ["corruption", "LUT", "MAE", "DeiT", "LUT - MAE"],
    )
    table = one.frame.set_index("corruption")
    assert list(table.index) == [
        "fog", "snow", "mean, 2 corruptions", "saturate, extra", "mean, 1 extra corruption", "mean, 3 corruptions",
    ]  # fmt: skip
    # Right at the severities: 90, 80, 70 of fog, 80, 70, 60 of snow, 70, 60, 50 of saturate; MAE loses 1 and 2 more.
    assert [value.split()[0] for value in table["LUT"]] == ["20.0", "30.0", "25.0", "40.0", "40.0", "30.0"]
    assert [value.split()[0] for value in table["MAE"]] == ["21.0", "31.0", "26.0", "41.0", "41.0", "31.0"]
    assert {value.split()[0] for value in table["LUT - MAE"]} == {"-1.0"}
    fog = read_records(full, "toy")["robustness/shifts/corrupted/ours/seed0"].measured("error, fog")
    assert fog is not None
    assert table["LUT"]["fog"] == f"20.0 [{fog.low:.1f}, {fog.high:.1f}]"


def test_of_several_seeds_a_corruptions_difference_has_its_interval_over_seeds_too(folder: Path) -> None:
    loaded = suite(folder, "seeds=[0, 1]")
    for seed, wrong in ((0, (10, 12)), (1, (14, 10))):  # the first method is better by 2 points, then worse by 4
        for method, falling in zip(("ours", "theirs"), wrong, strict=True):
            recorded(
                folder,
                loaded,
                f"corrupted/{method}/seed{seed}",
                corrupted(falling),
                tuned(folder, loaded, method, seed),
            )
    _, one = corruption_sections(View.read(loaded, folder))
    assert list(one.frame)[-2:] == ["LUT - MAE", "LUT - MAE, over seeds"]
    fog = one.frame.set_index("corruption").loc["fog"]
    assert fog["LUT - MAE"].startswith("+1.0 [")
    assert fog["LUT - MAE, over seeds"] == "[-37.1, +39.1]"  # 1 +- 12.706 * 3
    assert "Student's t on the differences between runs with the same seed" in one.legend


def test_methods_of_one_label_are_told_apart_by_their_encoder(folder: Path) -> None:
    small = """
    [encoder.small]
    label = "ViT-S/16"
    [method.ours-small]
    scratch = true
    encoder = "small"
    label = "LUT"
    [method.theirs-small]
    scratch = true
    encoder = "small"
    label = "MAE"
    """
    (folder / "toy.toml").write_text(SUITE + small)
    loaded = suite(folder, 'compare=[["ours", "theirs"], ["ours-small", "theirs-small"], ["ours", "ours-small"]]')
    for place, method in enumerate(("ours", "theirs", "ours-small", "theirs-small")):
        recorded(folder, loaded, f"corrupted/{method}/seed0", corrupted(10 + place))
    view = View.read(loaded, folder)
    _, base, other = corruption_sections(view)
    assert base.title == "Corrupted, ViT-B/16: top-1 error, %"
    assert other.title == "Corrupted, ViT-S/16: top-1 error, %"
    assert not base.figures
    assert [drawing.name for drawing in other.figures] == ["shifts-corrupted-severity.png"], "one figure of all"
    for one, fog in ((base, "20.0"), (other, "22.0")):
        assert list(one.frame) == ["corruption", "LUT", "MAE", "LUT - MAE"]
        assert one.frame["LUT"][0].split()[0] == fog
    _, drawn = comparison_sections(view)
    assert list(dict.fromkeys(drawn.frame["pair"])) == [
        "LUT - MAE, ViT-B/16", "LUT - MAE, ViT-S/16", "LUT, ViT-B/16 - LUT, ViT-S/16",
    ]  # fmt: skip
    assert list(view.method_names(view.entries).values()) == [
        "LUT, ViT-B/16", "MAE, ViT-B/16", "LUT, ViT-S/16", "MAE, ViT-S/16", "DeiT",
    ]  # fmt: skip
    assert "; Corrupted with DeiT; " in not_run(view, view.of_kind("robustness"))


def test_methods_that_saw_other_corruptions_are_not_compared(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "corrupted/ours/seed0", corrupted(10))
    recorded(folder, loaded, "corrupted/theirs/seed0", corrupted(10, ["fog"]))
    view = View.read(loaded, folder)
    _, one = corruption_sections(view)
    assert list(one.frame) == ["corruption", "LUT", "MAE"]
    assert one.frame.set_index("corruption")["MAE"]["snow"] == ""
    assert comparison_sections(view)[0].frame["task"].tolist() == ["Fine-tuning"]


def test_frost_that_is_drawn_is_said_to_be_wherever_its_numbers_stand(folder: Path) -> None:
    official = suite(folder)
    (folder / "toy.toml").write_text(
        SUITE.replace('path = "c"\n', 'path = "c"\nsource = "corrupted"\ncopy_of = "toys/val"\n')
    )
    drawn, without = suite(folder), suite(folder, 'shifted.corrupted.corruptions=["fog", "snow"]')
    for method in ("ours", "theirs"):
        recorded(folder, drawn, f"corrupted/{method}/seed0", corrupted(10, ["fog", "frost"]))
    for loaded, times in ((drawn, 4), (official, 0), (without, 0)):
        files, view = build_tables(loaded, folder), View.read(loaded, folder)
        assert files["main.md"].count("Corrupted: Frost is drawn, not photographed") == times, (
            "under the sets, side by side, under the corruptions, under the comparisons"
        )
        assert ("frost, drawn" in files["main.md"]) == bool(times)
        assert files["robustness.tex"].count("Frost is drawn") == times / 2
        for name in ("wide.tex", "comparisons.tex"):
            assert files.get(name, "").count("Frost is drawn") == times / 4
        for name in ("robustness.csv", "main.csv", "comparisons.csv"):
            table = pd.read_csv(io.StringIO(files.get(name, "metric,note\n")))
            noted = table["note"].astype(str).str.startswith("Frost is drawn")
            assert (noted == (table["metric"].str.contains("error") & bool(times))).all()
        for one in corruption_sections(view):
            for drawing in one.figures:
                assert ("Frost is drawn" in drawing.draw().get_supxlabel()) == bool(times)


def test_side_by_side_the_lowest_error_and_the_highest_accuracy_are_bold(files: dict[str, str]) -> None:
    tables = files["main.md"].split("### One row per method")
    (lut, mae, deit) = (
        next(line for line in tables[2].splitlines() if line.startswith(f"| {name} "))
        for name in ("LUT", "MAE", "DeiT")
    )
    values = [re.split(r" *\| *", line)[3:5] for line in (lut, mae, deit)]
    assert [[value.split(" ±")[0] for value in row] for row in values] == [
        ["40.0", "**25.0**"], ["<u>41.0</u>", "<u>26.0</u>"], ["**42.0**", "27.0"],
    ]  # fmt: skip
    assert r"\multicolumn{2}{c}{Corrupted}" in files["wide.tex"]
    assert r"\textbf{25.0} $\pm$" in files["wide.tex"]


# --- The same images


def test_two_methods_are_compared_on_every_set_and_printed_metric(view: View, files: dict[str, str]) -> None:
    counted, drawn = comparison_sections(view)
    assert list(zip(counted.frame["task"], counted.frame["metric"], strict=True)) == [
        ("Fine-tuning", "top-1 ↑"),
        ("Adversarial", "top-1, 200 classes, bicubic ↑"),
    ]
    found = counted.frame.to_dict("records")[1]
    assert (found["pair"], found["only 1st"], found["only 2nd"], found["p"]) == ("LUT - MAE", "0", "1", "0.56")
    assert list(drawn.frame["metric"]) == [
        "mean error, 2 corruptions ↓", "mean error, 1 extra corruption ↓", "mean top-1, patches dropped ↑",
        "mean top-1, tiles shuffled ↑", "AUPR, 9 classes ↑",
    ]  # fmt: skip
    differences = dict(zip(drawn.frame["metric"], drawn.frame["difference"], strict=True))
    assert differences["mean error, 2 corruptions ↓"].startswith("-1.0 [")
    assert differences["mean top-1, patches dropped ↑"].startswith("+4.5 [")  # 0 to 9 images of 100
    assert "percentiles of 2000 resamples" in drawn.legend
    text = files["main.md"].split("## Differences on the same images\n")[1]
    assert text.index("Bonett and Price") < text.index("+4.5 [")


# --- Files


def test_every_protocol_and_severity_is_in_robustness_csv_unrounded(folder: Path) -> None:
    loaded = suite(folder)
    record = recorded(folder, loaded, "adversarial/ours/seed0", [
        seen("", first(1, 3), first(2, 3), protocols=("200 classes", "1000 classes"), way="bicubic")
    ])  # fmt: skip
    other = recorded(folder, loaded, "corrupted/supervised/seed0", corrupted(10))
    table = pd.read_csv(io.StringIO(build_tables(loaded, folder)["robustness.csv"]))
    assert len(table) == len(record.measurements) + len(other.measurements)
    found = table.set_index("metric").to_dict("index")
    one = found["top-1, 1000 classes, bicubic"]
    assert (one["suite"], one["table"], one["set"], one["method"]) == ("toy", "shifts", "adversarial", "ours")
    assert (one["encoder"], one["seed"], one["value"], one["n"]) == (
        "ViT-B/16",
        0,
        pytest.approx(200 / 3, abs=1e-12),
        3,
    )
    assert one["run"] == f"robustness/shifts/adversarial/ours/seed0@{record.identity[:12]}"
    assert found["top-1, 200 classes, bicubic"]["value"] == pytest.approx(100 / 3, abs=1e-12)
    snow = other.measured("error, snow 3")
    assert snow is not None
    assert [found["error, snow 3"][key] for key in ("value", "low", "high")] == [snow.value, snow.low, snow.high]


def test_main_csv_has_the_cells_of_both_tables(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "adversarial/theirs/seed0", adversarial(30, 40))
    _, found = pd.read_csv(io.StringIO(build_tables(loaded, folder)["main.csv"])).to_dict("records")
    assert (found["task"], found["method"], found["metric"]) == (
        "shifts/adversarial", "theirs", "top-1, 200 classes, bicubic",
    )  # fmt: skip
    assert (found["value"], found["published"]) == (40.0, 35.9)


def test_latex_has_arrows_that_its_fonts_know_and_every_corruption(files: dict[str, str]) -> None:
    text = files["robustness.tex"]
    assert text.isascii()
    assert r"top-1, 200 classes, bicubic $\uparrow$ & 40.0" in text
    assert r"mean error, 2 corruptions $\downarrow$ & 25.0" in text
    assert r"saturate, extra & 40.0" in text
    assert "[3]" not in text, "footnotes are in main.md"


def test_robustness_has_no_files_and_no_words_in_a_suite_without_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "toy.toml").write_text(SUITE[: SUITE.index("[classifier")])
    loaded = suite(folder)
    show_tables(loaded, folder)
    assert "nox -s downstream results" in capsys.readouterr().out
    for method in ("ours", "theirs"):
        tuned(folder, loaded, method)
    files = build_tables(loaded, folder)
    compared_in = {"comparisons.csv", "comparisons.tex"}
    assert set(files) == {"main.md", "main.csv", "main.tex", "wide.tex", *compared_in}
    (compared,) = comparison_sections(View.read(loaded, folder))
    assert list(compared.frame) == ["task", "metric", "pair", "difference", "only 1st", "only 2nd", "p", "images"]
    assert not [word for word in ("Shifted", "Not run", "Corruptions", "protocol") if word in files["main.md"]]


def test_a_check_names_edited_leftover_and_missing_files_and_no_others(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "occluded/ours/seed0", occluded(5))
    write_tables(loaded, folder)
    tables, figure = folder / "tables/toy", folder / "figures/toy/shifts-occluded-occlusion.png"
    (tables / "main.md.orig").write_text("of an editor")
    assert check_tables(loaded, folder) == []
    for name in ("robustness.csv", "robustness.tex"):
        text = (tables / name).read_text()
        (tables / name).write_text(text.replace("67.5", "77.5"))
        (edited,) = check_tables(loaded, folder)
        assert f"{name} in the folder" in edited
        (tables / name).unlink()
        assert len(check_tables(loaded, folder)) == 1
        (tables / name).write_text(text)
    figure.unlink()
    assert check_tables(loaded, folder) == [f"{figure} is missing"]

    (folder / "toy.toml").write_text(SUITE[: SUITE.index("[classifier")])
    without = suite(folder)
    assert {text.split()[1] for text in check_tables(without, folder)} >= {"robustness.csv", "robustness.tex"}
    write_tables(without, folder)
    assert {path.name for path in tables.iterdir()} == {"main.md", "main.csv", "main.tex", "wide.tex", "main.md.orig"}
    assert check_tables(without, folder) == []


# --- The terminal


def test_what_is_shown_fits_into_100_columns(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    loaded = suite(full, "method.theirs.label=MAE, LUT's crop", "classifier.supervised.label=Supervised, no masks")
    show_tables(loaded, full)
    shown = capsys.readouterr().out.splitlines()
    place = shown.index("Adversarial, top-1, 200 classes, bicubic ↑, ViT-B/16")
    assert told(shown[place + 1]) == ["LUT", "40.0", "30.9 to 49.8", "1"]
    assert told(shown[place + 2]) == ["MAE, LUT's crop", "41.0", "31.9 to 50.8", "1", "35.9 [a]", "+5.1"]
    place = shown.index("Corrupted: top-1 error, %")
    assert told(shown[place + 3])[:4] == ["fog", "20.0", "21.0", "22.0"]
    assert "Occluded, mean top-1, tiles shuffled ↑" in shown
    assert max(len(line) for line in shown if not line.startswith(("Runs, sources", "Figures"))) <= 100
    assert "main.csv, main.md, main.tex, robustness.csv" in shown[-2]
    assert shown[-1] == f"Figures: {full / 'figures/toy'}"


def test_without_records_published_values_and_what_to_run_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite(folder)
    show_tables(loaded, folder)
    shown = capsys.readouterr().out
    assert f"nox -s downstream robustness results -- {folder / 'toy.toml'}" in shown
    assert re.search(r"Adversarial, top-1, 200 classes ↑, ViT-B/16\n +MAE +35\.9 \[a\]", shown)
    assert "Not run: Adversarial; Corrupted; Occluded; Outliers." in shown
    assert build_tables(loaded, folder) == {}


# --- Curves


def robust(loaded: LoadedSuite, shifted: str, made: Sequence[ConditionOutcomes]) -> RobustnessOutcomes:
    return RobustnessOutcomes.of(loaded.config.shifted[shifted], made)


def legend(figure: Figure) -> list[str]:
    (found,) = [legend for axes in figure.axes if (legend := axes.get_legend())]
    return [text.get_text() for text in found.get_texts()]


def test_the_curve_against_severity_is_the_mean_over_corruptions_without_the_extra_ones(folder: Path) -> None:
    outcomes = robust(suite(folder), "corrupted", corrupted(10))
    curves = severity_curves([outcomes])
    assert list(curves) == ["mean", "fog", "snow", "saturate"]
    assert [round(point.value, 9) for point in curves["mean"].values()] == [85, 75, 65]
    assert [point.value for point in curves["fog"].values()] == [90, 80, 70]
    measured = {m.metric: m for m in outcomes.measurements()}
    for severity, point in curves["saturate"].items():
        error = measured[f"error, saturate {severity}"]
        assert point == pytest.approx((100 - error.value, 100 - (error.high or 0), 100 - (error.low or 0)))


def test_the_interval_of_the_mean_curve_knows_that_the_corruptions_show_the_same_images(folder: Path) -> None:
    loaded = suite(folder)
    half = first(50)
    alike = severity_curves([robust(loaded, "corrupted", [seen("fog/1", half), seen("snow/1", half)])])["mean"][1]
    opposite = [seen("fog/1", half), seen("snow/1", [not hit for hit in half])]
    level = severity_curves([robust(loaded, "corrupted", opposite)])["mean"][1]
    assert alike.value == level.value == 50
    assert alike.high - alike.low > 15
    assert level.high - level.low < 1e-9, "every image is right on one of the two, in every resample"


def test_several_seeds_are_drawn_as_their_mean_with_students_interval(folder: Path) -> None:
    loaded = suite(folder)
    seeds = [robust(loaded, "occluded", occluded(falling)) for falling in (4, 6)]
    point = occlusion_curves(seeds)["drop"][1]  # 85 +- 12.706 * 1
    assert point == pytest.approx((85, 85 - 12.706, 85 + 12.706), abs=1e-3)
    figure = occlusion_figure("Toys", [("LUT", seeds)])
    assert legend(figure) == ["LUT, 2 seeds"]


def test_occlusion_is_drawn_against_the_share_of_dropped_patches_and_the_number_of_tiles(folder: Path) -> None:
    loaded = suite(folder)
    other = [seen(one.condition, [False] * 100, way="bilinear") for one in occluded(5)]
    methods = [
        ("LUT", [robust(loaded, "occluded", [*occluded(5), *other])]),
        ("MAE", [robust(loaded, "occluded", occluded(6))]),
    ]
    dropped, shuffled = occlusion_figure("Toys", methods, "No evidence.").axes
    lines = {str(line.get_label()): np.array(line.get_data()).tolist() for line in dropped.get_lines()}
    assert lines["LUT"] == [[10 * n for n in range(10)], pytest.approx([90 - 5 * n for n in range(10)])]
    assert lines["MAE"][1][9] == pytest.approx(36)
    assert [text.get_text() for text in shuffled.get_xticklabels()] == ["4", "16", "64", "196", "256"]
    assert np.array(shuffled.get_lines()[0].get_ydata())[-1] == pytest.approx(60)


def test_the_severity_figure_has_a_panel_for_every_corruption_on_one_scale(folder: Path) -> None:
    loaded = suite(folder)
    names = ["fog", "snow", "frost", "contrast", "pixelate", "saturate"]
    methods = [
        (label, [robust(loaded, "corrupted", corrupted(5 + n, names))]) for n, label in enumerate(("LUT", "MAE"))
    ]
    figure = severity_figure("Toys", methods, "No evidence. " + "These are toys. " * 20)
    large, *panels = figure.axes
    assert [axes.get_title() for axes in panels] == [*names[:5], "saturate, extra"]
    assert large.get_title() == "Mean over 5 corruptions"
    assert {axes.get_ylim() for axes in panels} == {panels[0].get_ylim()}
    assert all(len(axes.get_lines()) == 2 for axes in figure.axes)
    assert legend(figure) == ["LUT", "MAE"]
    assert "No evidence." in figure.get_supxlabel()
    bands = [path.get_extents().ymax for axes in panels for band in axes.collections for path in band.get_paths()]
    assert max(bands) <= panels[0].get_ylim()[1], "no band is cut off"
    figure.draw_without_rendering()
    (below,) = (text for text in figure.texts if "No evidence." in text.get_text())
    assert figure.bbox.x0 <= below.get_window_extent().x0 < below.get_window_extent().x1 <= figure.bbox.x1


def test_the_chart_has_the_panels_of_the_figure_and_a_mean_over_one_corruption_says_one(folder: Path) -> None:
    methods = [("LUT", [robust(suite(folder), "corrupted", corrupted(10, ["fog", "saturate"]))])]
    titles = [panel.title for panel in severity_chart(methods, PALETTE, [[]] * len(methods)).panels]
    assert titles == ["Mean over 1 corruption", "fog", "saturate, extra"]
    assert titles == [axes.get_title() for axes in severity_figure("Toys", methods).axes]


def test_figures_are_written_and_the_tables_lead_to_them(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "corrupted/ours/seed0", corrupted(10))
    recorded(folder, loaded, "occluded/supervised/seed0", occluded(5))
    write_tables(loaded, folder)
    text = (folder / "tables/toy/main.md").read_text()
    links = re.findall(r"^!\[.*\]\((.*)\)$", text, re.M)
    assert links == [
        "../../figures/toy/shifts-corrupted-severity.png",
        "../../figures/toy/shifts-occluded-occlusion.png",
    ]
    for link in links:
        assert (folder / "tables/toy" / link).read_bytes().startswith(b"\x89PNG")
    assert text.index("### Corrupted") < text.index(links[0]) < text.index("## Occlusion") < text.index(links[1])


def test_a_method_has_the_same_colour_whatever_else_was_measured(folder: Path) -> None:
    loaded = suite(folder)
    recorded(folder, loaded, "corrupted/theirs/seed0", corrupted(10))
    recorded(folder, loaded, "occluded/theirs/seed0", occluded(5))
    recorded(folder, loaded, "occluded/supervised/seed0", occluded(5))
    view = View.read(loaded, folder)
    figures = [drawing.draw() for part in sections(view) for drawing in part.figures]
    assert len(figures) == 2
    for axes in (axes for figure in figures for axes in figure.axes):
        colours = {str(line.get_label()): line.get_color() for line in axes.get_lines()}
        assert colours.pop("DeiT", PALETTE[2]) == PALETTE[2]
        assert colours == {"MAE": PALETTE[1]}
