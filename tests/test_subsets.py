"""Few shots are the images that the draw says, the same for every method and seed; a run on them is a run like any other."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_runs import TOY, encoder, performed, toy_run

from downstream import finetune
from lutbench.data.folder import open_folder
from lutbench.data.images import ImageDataset
from lutbench.data.subsets import restricted, subset_of
from lutbench.errors import UserError
from lutbench.plan.costs import Rates, costs_of
from lutbench.plan.show import show_plan
from lutbench.plan.surveys import survey_all
from lutbench.recipes.base import TrainingSubset
from lutbench.recipes.loading import load_suite
from lutbench.record import read_records
from lutbench.report.calibration_table import calibration_sections
from lutbench.report.comparisons import compare, comparison_sections
from lutbench.report.entries import OF_DRAWS, STUDENT, over_runs
from lutbench.report.sections import View
from lutbench.report.studies import study_sections
from lutbench.report.tables import all_sections, build_tables
from lutbench.run import Run, open_run
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

IDS = ("n01440764", "n01443537", "n01484850")

SUITE = f"""{TOY.replace('kind = "pipeline"', 'kind = "pipeline"' + chr(10) + 'compare = [["one", "two"]]' + chr(10) + "SEEDS")}
[method.one]
scratch = true
encoder = "toy"
[method.two]
scratch = true
encoder = "toy2"
{encoder("toy2", patch_size=8)}
[defaults.knn]
neighbours = 2
workers = 0
threads = 1
[downstream.few]
kind = "knn"
data = "toy"
"""


def training(folder: Path) -> ImageDataset:
    return open_folder(folder / "toy" / "train", "toy", "train")


def drawn(images: ImageDataset, **chosen: Any) -> list[int]:
    return subset_of(images, TrainingSubset(**chosen), Path()).tolist()


def write_imagenet(folder: Path, counts: tuple[int, ...] = (13, 7, 1)) -> None:
    """Images under the names of ImageNet's, so many of each class."""
    for split in ("train", "val"):
        for name, count in zip(IDS, counts, strict=True):
            (folder / "imagenet" / split / name).mkdir(parents=True)
            for number in range(count):
                colour = tuple(np.random.default_rng(number).integers(0, 255, 3).tolist())
                Image.new("RGB", (8, 8), colour).save(folder / "imagenet" / split / name / f"{name}_{number}.JPEG")


def suite_of(folder: Path, lines: str, seeds: str = "") -> tuple[Any, Workspace]:
    (folder / "mine.toml").write_text(SUITE.replace("SEEDS", seeds) + lines)
    return load_suite(str(folder / "mine.toml")), Workspace(folder, folder / "runs", folder / "results")


def test_shots_are_so_many_images_of_each_class_in_the_order_of_the_set(folder: Path) -> None:
    images = training(folder)
    assert images.labels is not None
    for shots in (1, 4, 10):
        chosen = drawn(images, shots=shots)
        assert chosen == sorted(set(chosen))
        assert Counter(images.labels[chosen].tolist()) == dict.fromkeys(range(3), shots)


def test_draws_differ_and_each_contains_its_own_fewer_shots_and_smaller_shares(folder: Path) -> None:
    images = training(folder)
    draws = [drawn(images, shots=3, draw=draw) for draw in range(5)]
    assert len(set(map(tuple, draws))) == 5
    assert draws[2] == drawn(images, shots=3, draw=2)
    for draw in range(5):
        nested = [set(drawn(images, shots=shots, draw=draw)) for shots in range(1, 11)]
        assert all(fewer < more for fewer, more in pairwise(nested))
        assert nested[1] == set(drawn(images, share=0.2, draw=draw))


def test_every_image_of_a_class_can_be_drawn_and_classes_are_drawn_apart(folder: Path) -> None:
    images = training(folder)
    first = np.array([drawn(images, shots=1, draw=draw) for draw in range(200)]) - [0, 10, 20]
    assert [sorted(set(column)) for column in first.T.tolist()] == [list(range(10))] * 3
    assert len({tuple(row) for row in first.tolist()}) > 150, "one place of all classes would be 10"


def test_a_share_is_of_each_class_rounded_and_at_least_one(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    images = open_folder(tmp_path / "imagenet" / "train", "imagenet", "train")
    assert images.labels is not None
    for share, counts in ((0.01, [1, 1, 1]), (0.1, [1, 1, 1]), (0.25, [3, 2, 1]), (0.5, [7, 4, 1])):
        assert np.bincount(images.labels[drawn(images, share=share)]).tolist() == counts


def test_a_subset_has_the_images_labels_and_names_of_the_whole_set(folder: Path) -> None:
    images = training(folder)
    few = restricted(images, TrainingSubset(shots=2, draw=1), folder)
    assert (len(few), few.classes, few.name, few.split) == (6, images.classes, "toy", "train")
    assert few.labels is not None
    for place, index in enumerate(few.index.tolist()):
        assert few.image_name(place) == images.image_name(index)
        assert few.image_name(place).startswith(f"{few.classes[few.labels[place]]}/")
        assert few.content(place) == images.content(index)
        assert few.image(place).tobytes() == images.image(index).tobytes()
        assert few.sizes[place] == images.sizes[index]
    other = restricted(images, TrainingSubset(shots=2, draw=2), folder)
    assert len({images.fingerprint, few.fingerprint, other.fingerprint}) == 3


def test_a_list_names_images_by_their_files_or_below_the_folder(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    images = open_folder(tmp_path / "imagenet" / "train", "imagenet", "train")
    listed = tmp_path / "1percent.txt"
    listed.write_text("n01443537_3.JPEG\nn01440764_10.JPEG\n\nn01484850/n01484850_0.JPEG\n")
    chosen = subset_of(images, TrainingSubset(file="1percent.txt"), tmp_path)
    names = [images.image_name(index) for index in chosen.tolist()]
    assert names == [
        "n01440764/n01440764_10.JPEG", "n01443537/n01443537_3.JPEG", "n01484850/n01484850_0.JPEG",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("n01440764_1.JPEG\nn01440764_99.JPEG\nn01443537_98.JPEG", r"2 of its 3 names are not in split 'train' of imagenet, such as 'n01440764_99"),
        ("n01440764_1.JPEG\nn07000000_5.JPEG", r"1 of its 2 names .* They belong to 1 classes that it does not have: n07000000\."),
        ("other/n01440764_1.JPEG", r"1 of its 1 names .* to 1 classes that it does not have: other"),
        ("\n  \n", r"1percent\.txt is empty"),
        (b"\xff\xfe\x00", r"1percent\.txt cannot be read: it is not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit_the_set_is_refused(tmp_path: Path, content: str | bytes, problem: str) -> None:
    write_imagenet(tmp_path)
    images = open_folder(tmp_path / "imagenet" / "train", "imagenet", "train")
    (tmp_path / "1percent.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=problem):
        subset_of(images, TrainingSubset(file="1percent.txt"), tmp_path)


def test_a_list_with_names_that_several_images_have_is_refused(folder: Path) -> None:
    (folder / "few.txt").write_text("amber/0.png\n3.png\n")
    with pytest.raises(UserError, match=r"1 of its 2 names .* such as '3\.png': amber/3\.png and blue/3\.png"):
        subset_of(training(folder), TrainingSubset(file="few.txt"), folder)


def test_what_is_listed_decides_the_identity_and_where_the_list_lies_does_not(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    for path, names in (("few.txt", "amber/0.png\nblue/1.png"), ("elsewhere/few.txt", "blue/1.png\namber/0.png\n")):
        (folder / path).write_text(names)
    own, other = (toy_run(folder, kind="knn", subset=path) for path in ("few.txt", "elsewhere/few.txt"))
    assert own.identity == other.identity
    (folder / "few.txt").write_text("amber/0.png\nblue/2.png")
    assert toy_run(folder, kind="knn", subset="few.txt").identity != other.identity


def test_all_of_the_images_are_one_run_however_they_are_asked_for(folder: Path) -> None:
    assert toy_run(folder, kind="knn", share=1.0).identity == toy_run(folder, kind="knn").identity
    assert toy_run(folder, kind="knn", share=0.5).identity != toy_run(folder, kind="knn").identity


FINETUNE: dict[str, Any] = {
    "kind": "finetune", "epochs": 2, "warmup_epochs": 0, "batch": 6, "mixup": 0.0, "cutmix": 0.0, "shots": 3, "draw": 1,
}  # fmt: skip
KNN = {"kind": "knn", "shots": 3, "draw": 1, "neighbours": 2}
LINEAR = {"kind": "linear", "shots": 3, "draw": 1, "epochs": 2, "warmup_epochs": 0, "batch": 6}
ATTENTIVE = {"kind": "attentive", "shots": 3, "draw": 1, "epochs": 2, "batch": 6}


@pytest.mark.parametrize(
    "settings",
    [FINETUNE, KNN, LINEAR, LINEAR | {"fresh_crops": False}, ATTENTIVE, ATTENTIVE | {"fresh_crops": False}],
    ids=lambda settings: f"{settings['kind']}{'' if settings.get('fresh_crops', True) else '-once'}",
)
def test_a_task_decodes_the_chosen_images_and_no_others(
    folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_run(folder, **settings)
    whole = run.workspace.open(run.recipe.dataset, "train")
    chosen = set(drawn(whole, shots=3, draw=1))
    decoded: Counter[int] = Counter()
    decode = type(whole).image

    def counting(self: Any, index: int) -> Any:
        if self is whole:
            decoded[index] += 1
        return decode(self, index)

    monkeypatch.setattr(type(whole), "image", counting)
    performed(run)
    rows_of_all = settings["kind"] in ("knn", "linear") and not settings.get(
        "fresh_crops", settings["kind"] == "linear"
    )
    assert set(decoded) == (set(range(len(whole))) if rows_of_all else chosen), "pooled features are kept of all images"
    record = next(iter(read_records(folder / "here" / "results", "toy").values()))
    assert record.recipe["shots"] == 3
    assert record.identity_inputs["data"]["train"] == run.dataset("train").fingerprint != whole.fingerprint


def test_a_fine_tuning_on_few_images_has_few_steps(folder: Path) -> None:
    run = toy_run(folder, **FINETUNE)
    assert finetune.schedule_of(run.recipe, len(run.dataset("train")), 0).steps == 3  # 2 epochs of 9 images


def test_undecodable_images_of_a_subset_are_passed_over(folder: Path) -> None:
    images = training(folder)
    lost = folder / "toy" / "train" / images.image_name(drawn(images, shots=4)[0])
    lost.write_bytes(b"")
    # the file's size counts for the set, and for none of the draws
    assert performed(toy_run(folder, kind="knn", shots=4, neighbours=2))["extra"]["skipped"] == 1
    assert performed(toy_run(folder, "fresh", **LINEAR | {"shots": 10, "draw": 0}))["extra"]["skipped"] >= 1


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("shots = 11", r"downstream\.\w+: shots = 11: class 'amber' of toy has only 10 images in split 'train'\. Lower shots to 10, .* 2 other classes"),
        ('subset = "lists/1percent.txt"', r"downstream\.\w+: subset: the list .*lists/1percent\.txt does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_stops_a_run_before_it_begins_and_status_and_plan_tell_it(
    folder: Path, lines: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, workspace = suite_of(folder, lines)
    with pytest.raises(UserError, match=problem) as error:
        run_suite(suite, [], [], workspace)
    assert not list(folder.glob("runs/**/run.json"))
    for show in (show_status, lambda *of: show_plan(*of, Rates())):
        capsys.readouterr()
        show(suite, workspace)
        assert "".join(capsys.readouterr().out.split()).count("".join(str(error.value).split())) == 1


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("shots = 2\nshare = 0.5", "expected at most one of shots, share and subset, found shots and share"),
        ('share = 0.5\nsubset = "a.txt"', "found share and subset"),
        ("shots = 0", "shots: input should be greater than 0"),
        ("share = 0.0", "share: input should be greater than 0"),
        ("share = 1.5", "share: input should be less than or equal to 1"),
        ("draw = 1", "draw = 1: the task trains on all images"),
        ('subset = "a.txt"\ndraw = 1', "draw = 1: subset lists the images"),
        ("draws = 2", "draws = 2: the task uses all training images"),
        ('subset = "a.txt"\ndraws = 2', r"draws = 2: the list a\.txt fixes the images"),
        ("shots = 2\ndraw = 1\ndraws = 2", "draws = 2 runs the draws 0 to 1, but draw = 1 selects one"),
        ("shots = 2\ndraws = 0", "draws: input should be greater than or equal to 1"),
    ],
)
def test_contradictory_settings_are_refused(folder: Path, lines: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        suite_of(folder, lines)


def test_draws_of_all_images_are_one_run(folder: Path) -> None:
    suite, _ = suite_of(folder, "share = 1.0\ndraws = 3")
    assert [run.name for run in suite.runs] == ["downstream/few/one/seed0", "downstream/few/two/seed0"]


def test_images_are_the_same_for_every_method_and_seed(folder: Path) -> None:
    suite, workspace = suite_of(folder, "shots = 2\ndraws = 3", "seeds = [0, 7]")
    runs = [open_run(suite, planned, workspace) for planned in suite.runs]
    assert len({run.identity for run in runs}) == len(runs) == 12
    by_draw: dict[int, set[str]] = {}
    for run in runs:
        by_draw.setdefault(run.planned.draw, set()).add(run.identity_inputs["data"]["train"])
    assert [len(of) for of in by_draw.values()] == [1, 1, 1]
    assert len(set.union(*by_draw.values())) == 3


def finished(folder: Path, lines: str, seeds: str = "") -> View:
    """Classes hardly differ in colour, so that which images are drawn decides how many are right."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("amber", "blue", "green")):
        for path in sorted((folder / "toy").glob(f"*/{name}/*.png")):
            pixels = generator.integers(0, 160, (20, 20, 3)) + generator.integers(0, 40, 3)
            pixels[..., channel] += 10
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    suite, workspace = suite_of(folder, lines, seeds)
    run_suite(suite, [], [], workspace)
    return View.read(suite, folder / "results")


def test_draws_of_one_seed_have_their_mean_its_interval_and_paired_differences(folder: Path) -> None:
    view = finished(folder, "shots = 2\ndraws = 4")
    one, two = view.entries
    values = {entry.method: [r.measurements[0].value for r in entry.runs] for entry in view.entries}
    assert [r.run.rpartition("/")[2] for r in one.runs] == ["seed0", "seed0-draw1", "seed0-draw2", "seed0-draw3"]
    assert [r.draw for r in one.runs] == [0, 1, 2, 3]
    assert one.measured is not None
    assert one.measured.interval == OF_DRAWS
    assert one.measured.value == pytest.approx(np.mean(values["one"]))
    half = 3.182446 * np.std(values["one"], ddof=1) / 2  # Student's t of 3 degrees of freedom
    assert one.measured.high == pytest.approx(np.mean(values["one"]) + half, rel=1e-6)
    compared = compare(one, two, "top-1")
    differences = (np.array(values["one"]) - values["two"]) / 100
    assert compared.over == "draws"
    assert np.allclose(compared.seed_differences, differences)
    assert compared.difference == pytest.approx(differences.mean())
    calibrated, _ = calibration_sections(view)
    assert calibrated.frame["seeds"].tolist() == ["1 x 4 draws"] * 2
    assert calibrated.data is not None
    assert set(calibrated.data["interval"]) == {OF_DRAWS}
    assert "over draws of the training images" in calibrated.legend
    (section,) = comparison_sections(view)
    assert "over draws" in section.frame
    assert "over seeds" not in section.frame
    assert section.data is not None
    assert section.data["seeds"].tolist() == [1]
    texts = build_tables(view, all_sections(view))
    assert "1 x 4 draws" in texts["main.md"]
    assert "over draws of the training images" in texts["main.md"]
    assert "`downstream/few/one/seed0-draw3`" in texts["main.md"]


def test_draws_of_several_seeds_count_once_for_each_seed(folder: Path) -> None:
    view = finished(folder, "shots = 2\ndraws = 3", "seeds = [0, 1, 2]")
    one, two = view.entries
    assert one.measured is not None
    assert (one.measured.interval, one.planned, one.draws) == (STUDENT, 9, 3)
    values = np.array([[r.measurements[0].value for r in entry.runs] for entry in (one, two)]).reshape(2, 3, 3)
    means = values[0].mean(1)
    assert one.measured.value == pytest.approx(means.mean())
    half = 4.302653 * np.std(means, ddof=1) / 3**0.5  # of 2 degrees: three seeds, and not nine runs
    assert one.measured.high == pytest.approx(means.mean() + half, rel=1e-6)
    compared = compare(one, two, "top-1")
    assert compared.over == "seeds"
    assert np.allclose(compared.seed_differences, (values[0] - values[1]).mean(1) / 100)


def test_of_weights_that_no_seed_has_made_draws_alone_differ(folder: Path) -> None:
    """The same weights under two seeds: k-NN gives the same numbers, and the interval is over draws."""
    one = finished(folder, "shots = 2\ndraws = 3").entries[0]
    found = [r.measurements[0] for r in one.runs][:3] * 2
    assert over_runs(found, [0, 0, 0, 1, 1, 1]).interval == OF_DRAWS
    assert over_runs([found[0]] * 4, [0, 0, 1, 1]) == found[0]


def test_a_pair_without_the_same_draws_is_not_compared(folder: Path) -> None:
    finished(folder, "shots = 2\ndraws = 3")
    next((folder / "results").rglob("two/seed0-draw1.json")).unlink()
    suite, _ = suite_of(folder, "shots = 2\ndraws = 3")
    view = View.read(suite, folder / "results")
    assert comparison_sections(view) == []
    assert "2 of 3 runs" in build_tables(view, all_sections(view))["main.md"]


def test_draws_are_compared_with_the_one_run_on_all_images(folder: Path) -> None:
    sweep = '[sweep.part]\nof = "downstream.few"\nshare = [0.2, 1.0]\nmethods = ["one"]\n'
    view = finished(folder, f"share = 0.2\ndraws = 3\n{sweep}")
    found = {entry.task: entry for entry in view.entries if entry.method == "one"}
    few, whole = found["few"], found["part-1"]
    assert [len(entry.runs) for entry in (few, whole)] == [3, 1]
    compared = compare(few, whole, "top-1")
    values = np.array([r.measurements[0].value for r in few.runs]) - whole.runs[0].measurements[0].value
    assert compared.over == "draws"
    assert np.allclose(compared.seed_differences, values / 100)
    assert compared.seeds_for_and_against is None, "draws are no seeds"
    (_, differences) = study_sections(view)
    assert differences.frame["share"].tolist() == ["1"]
    assert "over draws" in differences.frame


def test_writing_the_record_of_the_first_draw_leaves_those_of_the_others(folder: Path) -> None:
    view = finished(folder, "shots = 2\ndraws = 3")
    suite, workspace = suite_of(folder, "shots = 2\ndraws = 3")
    first = open_run(suite, suite.runs[0], workspace)
    record = folder / "results/records/mine/downstream/few/one/seed0.json"
    content = json.loads(record.read_text())
    record.unlink()
    first.restore_record()
    assert json.loads(record.read_text()) == content
    assert "draw" not in content, "as records were before there were any"
    assert read_records(folder / "results", "mine").keys() == view.records.keys()
    assert {name: r.outcomes_file for name, r in read_records(folder / "results", "mine").items()} == {
        name: r.outcomes_file for name, r in view.records.items()
    }


def test_a_draw_that_another_task_asks_for_by_number_is_the_same_run(folder: Path) -> None:
    finished(folder, "shots = 2\ndraws = 2")
    more = '[downstream.again]\nkind = "knn"\ndata = "toy"\nshots = 2\ndraw = 1\n'
    view = finished(folder, f"shots = 2\ndraws = 2\n{more}")
    again = view.records["downstream/again/one/seed0"]
    assert again.made_as == "mine/downstream/few/one/seed0-draw1"
    assert (again.draw, again.identity) == (0, view.records["downstream/few/one/seed0-draw1"].identity)


def test_a_plan_counts_the_images_of_the_subset(folder: Path) -> None:
    tuning = "\n".join(f"{name} = {json.dumps(value)}" for name, value in FINETUNE.items())
    suite, workspace = suite_of(
        folder,
        f'shots = 2\ndraws = 2\nmethods = ["one"]\n[downstream.tuned]\ndata = "toy"\nmethods = ["one"]\n{tuning}\n'
        '[downstream.whole]\ndata = "toy"\nkind = "knn"\nmethods = ["one"]\n',
    )
    costs = costs_of(suite, workspace, survey_all(suite, workspace), Rates())
    images = {task: [one.images for one in part.runs] for task, part in costs.by("task").items()}
    assert images == {"few": [6 + 21] * 2, "tuned": [2 * 9 + 21], "whole": [30 + 21]}


@pytest.mark.parametrize(
    ("lines", "images"),
    [("shots = 5", 5_000), ("share = 0.01", 12_812), ("share = 0.000001", 1_000), ('subset = "two.txt"', 2)],
)
def test_a_plan_counts_them_of_a_known_set_that_is_not_here_too(folder: Path, lines: str, images: int) -> None:
    (folder / "two.txt").write_text("n01440764_1.JPEG\nn01440764_2.JPEG\n")
    suite, workspace = suite_of(folder, f'methods = ["one"]\n[data.imagenet]\npath = "imagenet-1k"\n[downstream.far]\nkind = "knn"\ndata = "imagenet"\n{lines}')  # fmt: skip
    surveys = survey_all(suite, workspace)
    assert surveys["downstream/far/one/seed0"].images["train"] == images


def test_robustness_measures_the_classifier_of_the_first_draw(folder: Path) -> None:
    tuning = "\n".join(f"{name} = {json.dumps(value)}" for name, value in FINETUNE.items() if name != "draw")
    suite, _ = suite_of(
        folder,
        f'methods = ["one"]\n[downstream.tuned]\ndata = "toy"\nmethods = ["one"]\ndraws = 3\n{tuning}\n'
        '[shifted.toy]\npath = "toy/val"\nkind = "occlusion"\ndrops = [0]\ndrop_grid = 4\n'
        '[robustness.shift]\ntasks = ["tuned"]\nsets = ["toy"]\n',
    )
    measured = [run for run in suite.runs if run.stage == "robustness"]
    assert [run.needs for run in measured] == ["downstream/tuned/one/seed0"]


def test_folders_of_other_draws_are_found(folder: Path) -> None:
    finished(folder, "shots = 2\ndraws = 2")
    suite, workspace = suite_of(folder, "shots = 2\ndraws = 2")
    runs = [open_run(suite, planned, workspace) for planned in suite.runs]
    assert all(run.folder in workspace.run_folders[run.folder.name] for run in runs)
    assert all(isinstance(run, Run) and run.status().state == "finished" for run in runs)
