"""A fine-tuned classifier on shifted sets: measured once, kept cell by cell, and the same however it is gone through."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from toy_runs import CLASSES, HIDDEN, SUITE, in_processes, write_images

from lutbench.errors import NotRun, UserError
from lutbench.files import content_sha256, write_sealed
from lutbench.models.encoders import create_encoder, export_encoder
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.robustness import ClassifierSource, RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_record, read_records, record_path
from lutbench.run import Run, open_run
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace
from robustness import measure as measuring
from robustness.classifier import Classifier, check_classifier, load_classifier
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.labels import imagenet_1k
from robustness.measure import perform

SHIFTED = f"""
kind = "finetune"
epochs = 1
warmup_epochs = 0
batch = 8
base_lr = 1e-2
mixup = 0.0
cutmix = 0.0
threads = 1
workers = 0
eval_crop = 1.0
[defaults.robustness]
threads = 1
workers = 0
eval_batch = 5
[shifted.plain]
path = "toy/val"
preprocessing = ["bicubic", "bilinear"]
[shifted.broken]
path = "broken"
kind = "corruptions"
severities = [1, 2]
[shifted.copied]
source = "corrupted"
path = "copied"
copy_of = "toy/val"
copy_side = 32
copy_per_class = 2
kind = "corruptions"
corruptions = ["fog", "contrast"]
extra = []
severities = [5]
{HIDDEN}
[shifted.unknown]
path = "other"
kind = "detection"
known = "toy/val"
[shifted.absent]
path = "nowhere"
[robustness.shift]
tasks = ["task"]
sets = ["plain", "broken", "copied", "hidden", "unknown", "absent"]
"""


def suite_of(folder: Path, text: str = SUITE + SHIFTED) -> LoadedSuite:
    path = folder / "toy.toml"
    path.write_text(text)
    return load_suite(str(path))


def workspace_of(folder: Path) -> Workspace:
    return Workspace(folder, folder / "runs", folder / "results")


def write_shifted(folder: Path) -> None:
    """Corrupted images darker by severity, and images of no class."""
    write_images(folder)
    generator = np.random.default_rng(1)
    for severity in (1, 2):
        for name in CLASSES:
            place = folder / "broken" / "dark" / str(severity) / name
            place.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(generator.integers(0, 200 // severity, (20, 20, 3), np.uint8)).save(
                    place / f"{number}.png"
                )
    (folder / "other").mkdir()
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / "other" / f"{number}.png")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole suite that was run, and what was printed."""
    folder = tmp_path_factory.mktemp("measured")
    write_shifted(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_suite(suite_of(folder), [], [], workspace_of(folder))
    return folder, said.getvalue()


def opened(folder: Path, shifted: str) -> Run:
    suite = suite_of(folder)
    planned = next(run for run in suite.runs if run.task == f"shift/{shifted}")
    run = open_run(suite, planned, workspace_of(folder))
    assert len(run.identity) == 64  # found out now, before a test changes a file
    return run


def outcomes_of(folder: Path, shifted: str) -> RobustnessOutcomes:
    record = read_record(record_path(folder / "results", "toy", f"robustness/shift/{shifted}/scratch/seed0"))
    outcomes = record.outcomes
    assert isinstance(outcomes, RobustnessOutcomes)
    return outcomes


def test_a_set_that_is_not_there_is_said_to_be_not_run_and_the_others_are_run(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    assert set(read_records(folder / "results", "toy")) == {
        "downstream/task/scratch/seed0",
        *(f"robustness/shift/{name}/scratch/seed0" for name in ("plain", "broken", "copied", "hidden", "unknown")),
    }
    with pytest.raises(NotRun, match=r"absent is not at .*nowhere"):
        opened(folder, "absent")


def test_on_its_own_validation_images_a_classifier_does_as_it_did_in_stage_two(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    record = read_record(record_path(folder / "results", "toy", "downstream/task/scratch/seed0"))
    before = record.outcomes
    bicubic, bilinear = outcomes_of(folder, "plain").conditions
    assert (bicubic.preprocessing, bilinear.preprocessing) == ("bicubic", "bilinear")
    assert len(set(bicubic.prediction[0].tolist())) > 1, "one class for all would be the same however images are seen"
    assert bicubic.prediction[0].tolist() == before.prediction.tolist()  # type: ignore[union-attr]
    assert bicubic.rank[0].tolist() == before.rank.tolist()  # type: ignore[union-attr]
    untouched = outcomes_of(folder, "hidden").conditions[0]
    assert untouched.prediction[0].tolist() == before.prediction.tolist()  # type: ignore[union-attr]


def test_images_are_seen_at_the_size_and_crop_of_the_fine_tuning_unless_the_suite_says_otherwise(
    tmp_path: Path,
) -> None:
    def seen(text: str) -> set[tuple[Any, ...]]:
        recipes = [run.recipe for run in suite_of(tmp_path, text).runs if run.stage == "robustness"]
        return {(recipe.image_size, recipe.eval_crop) for recipe in recipes if isinstance(recipe, RobustnessRecipe)}

    assert seen(SUITE + SHIFTED) == {(16, 1.0)}
    assert seen((SUITE + SHIFTED).replace("eval_batch = 5", "eval_batch = 5\nimage_size = 24\neval_crop = 0.5")) == {
        (24, 0.5)
    }


def test_every_kind_of_set_prints_its_own_numbers(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    assert {
        name: outcomes_of(folder, name).printed() for name in ("plain", "broken", "copied", "hidden", "unknown")
    } == {
        "plain": ["top-1, 3 classes, bicubic"],
        "broken": ["mean error, 1 corruption"],
        "copied": ["mean error, 2 corruptions"],
        "hidden": ["mean top-1, patches dropped", "mean top-1, tiles shuffled"],
        "unknown": ["AUPR, 3 classes, bicubic"],
    }


def test_a_finished_run_is_not_measured_again(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.npz")}
    run_suite(suite_of(folder), ["robustness"], [], workspace_of(folder))
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.npz")} == before


def test_an_interrupted_run_measures_only_the_cells_that_are_missing(
    measured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(measured[0], "broken")
    assert run.status().state is RunState.FINISHED
    before = outcomes_of(measured[0], "broken")
    (run.folder / "finished.json").unlink()
    (run.folder / "cells" / "dark-2.npz").unlink()
    assert run.status().state is RunState.RESUMABLE
    opened_cells = []
    honest = measuring.open_condition

    def seen(recipe: Any, root: Path, cell: str, space: Any) -> Any:
        opened_cells.append(cell)
        return honest(recipe, root, cell, space)

    monkeypatch.setattr(measuring, "open_condition", seen)
    perform(run)
    assert opened_cells == ["dark/2"]
    after = outcomes_of(measured[0], "broken")
    assert [m.model_dump() for m in after.measurements()] == [m.model_dump() for m in before.measurements()]


def rewritten(path: Path, **changes: Any) -> None:
    """Change arrays of a part, as somebody does who knows the format."""
    with np.load(path) as read:
        arrays = dict(read) | changes
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a complete .npz file"),
        (lambda path: path.write_bytes(b""), "not a complete .npz file"),
        (
            lambda path: rewritten(path, **{"0.rank": np.zeros((1, 6), np.int16)}),
            "its checksum is wrong, or it belongs to another run",
        ),
        (lambda path: rewritten(path, seconds=np.array(1e9)), "its checksum is wrong, or it belongs to another run"),
        (lambda path: rewritten(path, seal=None), "it has no seal"),
        (lambda path: rewritten(path, ways=np.array(10**15)), "its checksum is wrong, or it belongs to another run"),
        (lambda path: path.write_bytes(path.with_name("dark-1.npz").read_bytes()), "it belongs to another condition"),
    ],
)
def test_a_part_that_is_not_as_it_was_kept_is_named_and_measured_again(
    measured: tuple[Path, str], damage: Callable[[Path], object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, part = opened(measured[0], "broken"), opened(measured[0], "broken").folder / "cells" / "dark-2.npz"
    before, stood = outcomes_of(measured[0], "broken"), part.read_bytes()
    damage(part)
    assert part.read_bytes() != stood
    perform(run)
    assert f"{part}: damaged or changed, so it is measured again: {told}" in " ".join(capsys.readouterr().out.split())
    after = outcomes_of(measured[0], "broken")
    assert [m.model_dump() for m in after.measurements()] == [m.model_dump() for m in before.measurements()]


def test_a_part_of_another_run_is_measured_again(measured: tuple[Path, str]) -> None:
    run = opened(measured[0], "broken")
    assert measuring._intact(run, "dark/2")
    assert not measuring._intact(replace(run, planned=replace(run.planned, seed=1)), "dark/2")
    other = opened(measured[0], "broken")
    other.__dict__["identity"] = run.identity[:12] + "0" * 52  # the same folder
    assert not measuring._intact(other, "dark/2")


def test_another_classifier_or_another_image_makes_another_run(measured: tuple[Path, str], tmp_path: Path) -> None:
    run = opened(measured[0], "plain")
    assert (
        run.identity_inputs["classifier"]["sha256"]
        == read_record(record_path(measured[0] / "results", "toy", "downstream/task/scratch/seed0")).checkpoint
    )
    write_shifted(tmp_path)
    suite = suite_of(tmp_path)
    run_suite(suite, ["downstream"], [], workspace_of(tmp_path))
    first = opened(tmp_path, "broken")
    Image.new("RGB", (30, 30)).save(tmp_path / "broken" / "dark" / "2" / CLASSES[0] / "0.png")
    assert opened(tmp_path, "broken").identity != first.identity


def test_two_processes_and_other_batches_and_workers_give_the_same_outcomes(tmp_path: Path) -> None:
    write_shifted(tmp_path)
    suite = suite_of(tmp_path)
    run_suite(suite, [], ["task", "broken"], workspace_of(tmp_path))
    expected = outcomes_of(tmp_path, "broken").arrays()
    for path in (tmp_path / "runs").glob("toy/robustness/**/*"):
        if path.name == "finished.json" or path.suffix == ".npz":
            path.unlink()
    suite_of(tmp_path, (SUITE + SHIFTED).replace("workers = 0\neval_batch = 5", "workers = 1\neval_batch = 3"))
    in_processes(lambda: _measure_again(tmp_path), 2)
    found = outcomes_of(tmp_path, "broken").arrays()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected if not name.endswith("score"))


def _measure_again(folder: Path) -> None:
    suite = load_suite(str(folder / "toy.toml"))
    planned = next(run for run in suite.runs if run.task == "shift/broken")
    perform(open_run(suite, planned, workspace_of(folder)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('sets = ["plain"', 'sets = ["plane", "plain"'), "expected a .* or a published set, found 'plane'"),
        (('tasks = ["task"]', 'tasks = ["tusk"]'), "expected a fine-tuning or linear probe, found 'tusk'.*task"),
        (('tasks = ["task"]', 'tasks = ["task"]\nmethods = ["lute"]'), "'lute' is not a method of its tasks"),
        (("eval_batch = 5", "eval_bach = 5"), "defaults.robustness.eval_bach"),
        (('copy_of = "toy/val"\n', ""), "copy_of"),
    ],
)
def test_a_mistake_in_the_suite_file_is_named(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    text = SUITE + SHIFTED
    assert change[0] in text
    with pytest.raises(UserError, match=told):
        suite_of(tmp_path, text.replace(*change))


def test_a_set_whose_classes_the_classifier_does_not_have_is_named_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shifted(tmp_path)
    (tmp_path / "broken" / "dark" / "2" / CLASSES[0]).rename(tmp_path / "broken" / "dark" / "2" / "purple")
    (tmp_path / "broken" / "dark" / "1" / CLASSES[0]).rename(tmp_path / "broken" / "dark" / "1" / "purple")
    with pytest.raises(UserError, match="see above"):
        run_suite(suite_of(tmp_path), [], [], workspace_of(tmp_path))
    said = [line for line in capsys.readouterr().out.splitlines() if "not run" not in line]
    assert said[0] == "1 of 7 runs cannot be completed."
    assert said[1].startswith("robustness/shift/broken/scratch/seed0: 1 of 3 class folders are not among")
    assert not list(tmp_path.glob("runs/*/robustness/shift/broken/*/*/*/finished.json"))
    assert len(list(tmp_path.glob("runs/*/robustness/shift/*/*/*/*/finished.json"))) == 4, "the others are measured"


def test_the_classifier_comes_before_its_robustness(tmp_path: Path) -> None:
    write_shifted(tmp_path)
    with pytest.raises(
        UserError, match=r"evaluates the classifier of downstream/task/scratch/seed0.*--stage downstream"
    ):
        run_suite(suite_of(tmp_path), ["robustness"], ["plain"], workspace_of(tmp_path))


def test_a_checkpoint_of_imagenet_is_measured_as_timm_has_it(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=True, **arguments).eval()
    path = tmp_path / "odd.safetensors"
    save_file(model.state_dict(), path)
    with pytest.raises(UserError, match="do not fit"):
        load_classifier(ClassifierSource(kind="checkpoint", model="vit_tiny_patch16_224", path=str(path)), 32, path)
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=True, img_size=32).eval()
    path = tmp_path / "whole.safetensors"
    save_file(model.state_dict(), path)
    source = ClassifierSource(kind="checkpoint", model="vit_tiny_patch16_224", path=str(path))
    loaded = load_classifier(source, 32, path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model((pixels / 255 - mean) / std), atol=1e-5, rtol=1e-5)
    assert (loaded.side, loaded.space) == (32, imagenet_1k())
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    save_file(model.state_dict(), path)
    with pytest.raises(UserError, match="1,000 classes of ImageNet-1k, found 7 outputs"):
        load_classifier(source, None, path)


def test_an_export_of_this_suite_knows_its_classes_wherever_it_is_taken(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    [export] = (folder / "runs").rglob("classifier.safetensors")
    text = (SUITE + SHIFTED).replace(
        'sets = ["plain", "broken", "copied", "hidden", "unknown", "absent"]', 'sets = ["plain"]'
    )
    text += f'[classifier.taken]\nmodel = "vit_tiny_patch16_224"\ncheckpoint = "{export}"\n'
    suite = suite_of(folder, text.replace("eval_batch = 5", "eval_batch = 5\neval_crop = 1.0"))
    run_suite(suite, ["robustness"], ["taken"], workspace_of(folder))
    record = read_record(record_path(folder / "results", "toy", "robustness/shift/plain/taken/seed0"))
    taken = record.outcomes
    assert isinstance(taken, RobustnessOutcomes)
    assert np.array_equal(taken.conditions[0].rank, outcomes_of(folder, "plain").conditions[0].rank)


@pytest.fixture
def tuned(measured: tuple[Path, str], tmp_path: Path) -> Path:
    """The description of a classifier that a run left, in a copy of that run's folder."""
    [export] = (measured[0] / "runs").rglob("classifier.json")
    return shutil.copytree(export.parent, tmp_path / "run") / export.name


def classifier_beside(export: Path) -> Classifier:
    weights = export.with_suffix(".safetensors")
    source = ClassifierSource(kind="checkpoint", model="vit_tiny_patch16_224", path=str(weights))
    assert check_classifier(source, None, weights)[0] == 16
    return load_classifier(source, None, weights)


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda values: values["class_names"].reverse(), "seal"),
    (lambda values: values.pop("class_names"), "0 class names for 3 outputs"),
    (lambda values: values.update(class_names=["a", "b", "c", "d", "e"]), "5 class names for 3 outputs"),
    (lambda values: values.update(class_names=[1, 2, 3]), "class_names.0"),
    (lambda values: values.update(arguments=[]), "arguments"),
    (lambda values: values["arguments"].update(checkpoint_path="/etc/passwd"), "arguments.checkpoint_path"),
    (lambda values: values["arguments"].update(depth=100_000), "arguments.depth"),
    (lambda values: values["arguments"].update(num_heads=5), "is not divisible by heads"),
    (lambda values: values.update(model="resnet50"), "these sizes can only be set for plain Vision Transformers"),
    (lambda values: values.update(model="hf-hub:timm/vit_tiny_patch16_224"), "has no such model"),
    (lambda values: values.update(model=5), "model"),
    (lambda values: values.pop("mean"), "mean"),
    (lambda values: values.update(mean="abc"), "mean"),
    (lambda values: values.update(mean=[0.5, 0.5]), "mean"),
    (lambda values: values.update(std=[0.0, 0.5, 0.5]), "std.0"),
    (lambda values: values.update(interpolation=5), "interpolation"),
    (lambda values: values.update(sha256="0" * 64), "expected weights with sha256 000000000000"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
@pytest.mark.parametrize("how", ["in its run", "edited", "resealed", "without a seal", "as of before"])
def test_a_description_of_a_classifier_is_believed_only_as_it_was_written(
    tuned: Path, change: Callable[[dict[str, Any]], object], told: str, how: str
) -> None:
    assert classifier_beside(tuned).space.names == CLASSES
    if how != "in its run":
        (tuned.parent / "finished.json").unlink()
    values = json.loads(tuned.read_text())
    seal = values.pop("seal")
    change(values)
    if how == "as of before":
        del values["timm"]
    if how in ("resealed", "in its run"):
        seal = content_sha256(values)
    tuned.write_text(json.dumps(values | ({} if how in ("without a seal", "as of before") else {"seal": seal})))
    if told == "seal" and how in ("resealed", "as of before"):  # then it is said nowhere what was there before
        assert classifier_beside(tuned).space.names == CLASSES[::-1]
        return
    told = {"in its run": "changed since the run", "edited": "its hash does not match its seal"}.get(how, told)
    with pytest.raises(UserError, match="no seal" if how == "without a seal" and told == "seal" else None) as caught:
        classifier_beside(tuned)
    assert told in str(caught.value) or "it has no seal" in str(caught.value)


def test_a_run_whose_classifier_has_lost_its_description_measures_nothing(tuned: Path) -> None:
    weights = tuned.with_suffix(".safetensors")
    tuned.unlink()
    with pytest.raises(UserError, match=r"classifier.json: missing, or changed since the run"):
        load_classifier(ClassifierSource(kind="run"), None, weights)
    (tuned.parent / "finished.json").unlink()
    with pytest.raises(UserError, match=r"classifier.json: missing, or not written by a fine-tuning"):
        load_classifier(ClassifierSource(kind="run"), None, weights)


@pytest.mark.parametrize("content", ["[]", "null", "7", '{"model": "mine", "mean": 5}'])
def test_a_strangers_json_beside_weights_says_nothing_of_them(tmp_path: Path, content: str) -> None:
    path = tmp_path / "whole.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    path.with_suffix(".json").write_text(content)
    source = ClassifierSource(kind="checkpoint", model="resnet10t", path=str(path))
    assert load_classifier(source, 64, path).space == imagenet_1k()


def test_the_export_of_an_encoder_is_no_classifier(tmp_path: Path) -> None:
    recipe = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    export_encoder(create_encoder(recipe), recipe, tmp_path)
    with pytest.raises(UserError, match="found an exported encoder, which has no classes"):
        classifier_beside(tmp_path / "encoder.json")


def test_what_a_classifiers_description_says_is_part_of_the_identity(tuned: Path, tmp_path: Path) -> None:
    write_shifted(tmp_path)
    (tuned.parent / "finished.json").unlink()
    weights = tuned.with_suffix(".safetensors")
    text = (
        (SUITE + SHIFTED).replace('tasks = ["task"]', "").replace('"plain", "broken", "copied", "hidden",', '"plain",')
    )
    text += f'[classifier.taken]\nmodel = "vit_tiny_patch16_224"\ncheckpoint = "{weights}"\n'

    def identity() -> str:
        suite = suite_of(tmp_path, text)
        planned = next(run for run in suite.runs if run.method == "taken" and run.task == "shift/plain")
        return open_run(suite, planned, workspace_of(tmp_path)).identity

    first, values = identity(), json.loads(tuned.read_text())
    del values["seal"]
    write_sealed(tuned, values | {"load": "another call", "timm": "0.0"})
    assert identity() == first
    write_sealed(tuned, values | {"class_names": values["class_names"][::-1]})
    assert identity() != first


def test_a_network_that_takes_any_size_is_asked_for_none(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t").eval()
    path = tmp_path / "whole.safetensors"
    save_file(model.state_dict(), path)
    loaded = load_classifier(ClassifierSource(kind="checkpoint", model="resnet10t", path=str(path)), 64, path)
    assert loaded.side == 64
    with torch.no_grad():
        assert loaded(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 1000)


def test_a_set_that_the_suite_makes_is_no_missing_one_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shifted(tmp_path)
    show_status(suite_of(tmp_path), workspace_of(tmp_path))
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert shown["robustness/shift/copied/scratch/seed0"].startswith("missing")
    assert shown["robustness/shift/absent/scratch/seed0"].startswith("not run")
