"""A run makes more than one row: the student's encoder, its teacher's, and what fine-tuning made of it; and it keeps its decoder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from toy_runs import TOY, defaults, write_images

from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.inference import encode_images
from lutbench.files import write_sealed
from lutbench.models.encoders import create_encoder
from lutbench.models.pretrained import encoder_of
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_records
from lutbench.report.entries import entries
from lutbench.report.reference import compare_with_reference
from lutbench.run import Run, open_run
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.train.randomness import seeded
from lutbench.workspace import Workspace
from pretrain import train
from pretrain.frameworks.vit import patchify
from pretrain.masking import visible_patches
from pretrain.reconstruction import picture_noise, reconstruct
from pretrain.student import build_student
from pretrain.views import Views

GREY = "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]"

SUITE = f"""{TOY}
{defaults("pretrain", epochs=2, base_lr=0.01, momentum=0.5)}
{defaults("finetune", head_std=1.0)}
[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
[method.lut]
pretrain = "lut"
[method.lut-teacher]
pretrain = "lut"
teacher = true
[method.lut-tuned]
finetuned = "tuned/lut"
[method.drawn]
checkpoint = "CHECKPOINT"
encoder = "toy"
{GREY}
[method.drawn-tuned]
finetuned = "tuned/drawn"
[downstream.tuned]
kind = "finetune"
data = "toy"
image_size = 20
methods = ["lut", "drawn"]
[downstream.neighbours]
kind = "knn"
data = "toy"
neighbours = 3
methods = ["lut", "lut-teacher", "lut-tuned", "drawn-tuned"]
workers = 0
"""
"""A checkpoint of anybody's is fine-tuned too: of images that are normalised otherwise than ImageNet's. Classifiers begin with large
weights, so that predictions differ after a few steps."""

PRETRAINED, TUNED = "pretrain/lut/seed0", "downstream/tuned/lut/seed0"
OF_STUDENT, OF_TEACHER, OF_TUNED = (f"downstream/neighbours/lut{row}/seed0" for row in ("", "-teacher", "-tuned"))


def opened(folder: Path, *changes: str) -> tuple[LoadedSuite, Workspace]:
    suite = load_suite(str(folder / "toy.toml"), changes)
    return suite, Workspace(folder, folder / "runs", folder / "results")


def the_run(folder: Path, name: str, *changes: str) -> Run:
    suite, workspace = opened(folder, *changes)
    return open_run(suite, suite.run(name), workspace)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite whose runs have all finished; to be read only."""
    folder = tmp_path_factory.mktemp("rows")
    write_images(folder)
    toy = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    with seeded(0):
        torch.save(create_encoder(toy).state_dict(), folder / "drawn.pth")
    (folder / "toy.toml").write_text(SUITE.replace("CHECKPOINT", str(folder / "drawn.pth")))
    suite, workspace = opened(folder)
    run_suite(suite, [], [], workspace)
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """A copy of that, to be changed."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def without_later_files(run: Run) -> None:
    """Make of a finished run one of before there were teachers and decoders among what runs leave."""
    finished = run.folder / "finished.json"
    values = json.loads(finished.read_text())
    values["files"] = {"encoder.json": values["files"]["encoder.json"]}
    del values["seal"]
    write_sealed(finished, values)
    for file in ("teacher.safetensors", "teacher.json", "decoder.safetensors"):
        (run.folder / file).unlink()


# What a pre-training leaves


def test_teacher_and_decoder_are_those_of_the_last_checkpoint(done: Path) -> None:
    run = the_run(done, PRETRAINED)
    [file] = run.checkpoints.rglob("tensors.safetensors")
    kept = load_file(file)
    for name, module in (
        ("teacher", "teacher.encoder."),
        ("decoder", "student.decoder."),
        ("encoder", "student.encoder."),
    ):
        expected = {key.removeprefix(module): tensor for key, tensor in kept.items() if key.startswith(module)}
        found = load_file(run.folder / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), name
    files = json.loads((run.folder / "finished.json").read_text())["files"]
    assert set(files) == {"encoder.json", "teacher.json", "teacher.safetensors", "decoder.safetensors"}


def test_a_run_without_the_second_loss_has_a_decoder_and_no_teacher(done: Path) -> None:
    run = the_run(done, "pretrain/mae/seed0")
    assert (run.folder / "decoder.safetensors").is_file()
    assert not list(run.folder.glob("teacher*"))


def test_the_plan_counts_what_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lut", "mae"):
        run = the_run(folder, f"pretrain/{name}/seed0")
        weights = [load_file(file) for file in run.folder.glob("*.safetensors")]
        assert len(weights) == (3 if name == "lut" else 2)
        numbers = sum(tensor.numel() for tensors in weights for tensor in tensors.values())
        assert train.cost(run, 3).exported == numbers


# Rows


def test_rows_of_one_run_start_from_its_student_its_teacher_and_what_was_tuned(done: Path) -> None:
    pretrained, tuned = the_run(done, PRETRAINED), the_run(done, TUNED)
    for name, made_by, file in (
        (OF_STUDENT, pretrained, "encoder"),
        (OF_TEACHER, pretrained, "teacher"),
        (OF_TUNED, tuned, "classifier"),
    ):
        run = the_run(done, name)
        assert run.status().state is RunState.FINISHED
        assert run.weights == made_by.folder / f"{file}.safetensors"
        expected, found = load_file(run.weights), encoder_of(run, None)
        assert {key for key in expected if key not in found.state_dict()} == (
            {"head.weight", "head.bias"} if made_by is tuned else set()
        )
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.state_dict().items())
        assert run.identity_inputs["encoder"]["run"] == made_by.identity


def test_a_tuned_encoder_is_what_the_classifier_pools_at_its_size_of_images_as_it_saw_them(done: Path) -> None:
    run = the_run(done, "downstream/neighbours/drawn-tuned/seed0")
    assert run.recipe.side == 20
    assert (run.preprocessing.mean, run.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    assert run.needs is not None
    held_out, encoder = run.dataset("val"), encoder_of(run, None).eval()
    features = encode_images(encoder, held_out, run.recipe, run.preprocessing, "")
    head = load_file(run.needs.folder / "classifier.safetensors")
    scores = features.values @ head["head.weight"].T + head["head.bias"]
    outcomes = read_records(done / "results", "toy")["downstream/tuned/drawn/seed0"].outcomes
    assert scores.argmax(1).tolist() == outcomes.prediction.tolist(), "with its own layer it is the classifier again"
    assert len(set(outcomes.prediction.tolist())) > 1
    assert the_run(done, OF_TUNED).preprocessing[:3] == the_run(done, OF_TEACHER).preprocessing[:3], "ImageNet's"


def test_the_identity_of_the_students_row_has_no_word_of_exports(done: Path) -> None:
    recipes = {name: the_run(done, name).identity_inputs["recipe"] for name in (OF_STUDENT, OF_TEACHER, OF_TUNED)}
    assert [recipe["encoder"].get("export") for recipe in recipes.values()] == [None, "teacher", "classifier"]
    assert recipes[OF_TUNED]["encoder"]["architecture"]["image_size"] == 20


def test_a_task_without_methods_is_not_run_for_rows_that_a_fine_tuning_made(done: Path) -> None:
    text = (done / "toy.toml").read_text().replace('methods = ["lut", "drawn"]\n', "")
    (done / "other.toml").write_text(text)
    rows = [run.method for run in load_suite(str(done / "other.toml")).runs if run.task == "tuned"]
    assert rows == ["lut", "lut-teacher", "drawn"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["method.lut-teacher.pretrain=mae"], r"method.lut-teacher.teacher: pretrain.mae has no teacher, because it has no context loss"),
        (
            ["method.lut-teacher.pretrain=mae", "downstream.neighbours.methods=['lut']"],
            r"method.lut-teacher.teacher: pretrain.mae has no teacher, because it has no context loss",
        ),
        (["pretrain.lut.context_weight=0.0"], r"method.lut-teacher.teacher: pretrain.lut has no teacher, because it has no context loss"),
        (["method.drawn.teacher=true"], r"method.drawn: teacher = true: only together with pretrain"),
        (["method.lut-tuned.teacher=true"], r"method.lut-tuned: teacher = true: only together with pretrain"),
        (["method.lut.finetuned=tuned/lut"], r"method.lut: expected exactly one of .*, found pretrain, finetuned"),
        (["method.lut-tuned.encoder=toy"], r"not allowed for pretrain and finetuned"),
        (["method.lut-tuned.mean=[0.5, 0.5, 0.5]"], r"method.lut-tuned: mean: .*with finetuned, images are preprocessed as in"),
        (["method.lut-tuned.finetuned=tuned"], r"finetuned = 'tuned': expected TASK/METHOD"),
        (["method.lut-tuned.finetuned=tunned/lut"], r"there is no fine-tuning 'tunned'\. Did you mean 'tuned'\?"),
        (
            ["method.lut-tuned.finetuned=neighbours/lut"],
            r"no fine-tuning 'neighbours'; downstream.neighbours is of kind knn\..* Known: tuned",
        ),
        (["method.lut-tuned.finetuned=tuned/lot"], r"tuned is not run for 'lot'\. Did you mean 'lut'\?"),
        (["method.lut-tuned.finetuned=tuned/lut-teacher"], r"tuned is not run for 'lut-teacher'"),
        (
            ["downstream.tuned.methods=['lut', 'drawn', 'lut-tuned']"],
            r"lut-tuned.finetuned: downstream.tuned needs lut-tuned, which downstream.tuned makes, but comes before it",
        ),
        (
            ["downstream.neighbours.kind=finetune", "downstream.tuned.methods=['lut', 'drawn', 'lut-tuned']",
             "downstream.neighbours.methods=['lut']", "method.lut-tuned.finetuned=neighbours/lut"],
            r"downstream.tuned needs lut-tuned, which downstream.neighbours makes",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_row_is_refused_when_the_suite_is_loaded(done: Path, changes: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        opened(done, *changes)


def test_untrained_encoders_of_an_analysis_have_a_name_each_where_one_was_tuned_at_another_size(done: Path) -> None:
    text = f'{(done / "toy.toml").read_text()}\n[analysis.looks]\ndata = "toy"\n'
    (done / "analysed.toml").write_text(text)
    found = {run.method: run for run in load_suite(str(done / "analysed.toml")).runs if run.stage == "analysis"}
    assert list(found) == [
        "lut", "lut-teacher", "lut-tuned", "drawn", "drawn-tuned", "untrained-toy", "untrained-toy-20"
    ]  # fmt: skip
    assert (found["lut-tuned"].needs, found["lut-teacher"].needs) == (TUNED, PRETRAINED)
    assert found["untrained-toy-20"].recipe.side == 20


# What depends on what


def test_a_change_of_the_first_of_three_makes_the_last_stale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = "pretrain.lut.mask_ratio=0.5"
    suite, workspace = opened(folder, change)
    with pytest.raises(
        UserError, match=r"starts from the encoder of pretrain/lut/seed0, which is stale because recipe.mask_ratio"
    ):
        the_run(folder, TUNED, change).status()
    records = read_records(folder / "results", "toy")
    assert not [stale for entry in entries(opened(folder)[0], records) for stale in entry.stale]
    stale = [line for entry in entries(suite, records) if entry.method == "lut-tuned" for line in entry.stale]
    assert stale == [f"`{OF_TUNED}` stale: {TUNED}: {PRETRAINED}: mask_ratio changed from 0.75 to 0.5"], "in tables"
    show_status(suite, workspace)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [OF_TUNED, "missing", "needs", TUNED] in shown
    run_suite(suite, ["pretrain"], ["lut"], workspace)
    run_suite(suite, ["downstream"], ["tuned/lut"], workspace)
    status = the_run(folder, OF_TUNED, change).status()
    assert status.state is RunState.STALE
    assert "encoder.run changed" in status.detail
    assert "encoder.sha256 changed" in status.detail


def test_another_export_of_the_same_run_is_another_record(done: Path) -> None:
    suite, _ = opened(done, "method.lut-teacher.teacher=false")
    found = [
        line
        for e in entries(suite, read_records(done / "results", "toy"))
        if e.task == "neighbours"
        for line in e.stale
    ]
    assert found == [f"`{OF_TEACHER}` stale: encoder.export changed from teacher to not set"]


def test_such_rows_are_compared_with_a_reference_by_what_made_their_encoders(done: Path) -> None:
    records = read_records(done / "results", "toy")
    agreements = compare_with_reference(records, records)
    assert {one.own.run for one in agreements} == set(records)
    first = records[PRETRAINED]
    other = first.model_copy(update={"identity_inputs": {**first.identity_inputs, "seed": 7}})
    compared = {one.own.run for one in compare_with_reference({**records, PRETRAINED: other}, records)}
    assert set(records) - compared == {PRETRAINED, TUNED, OF_STUDENT, OF_TEACHER, OF_TUNED}


def test_a_run_of_before_there_were_teachers_says_how_to_have_one_before_anything_is_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_later_files(the_run(folder, PRETRAINED))
    suite, workspace = opened(folder)
    told = f"has no teacher: it was made by an earlier version that did not keep it. To get it, repeat the run: lutbench run {suite.given}{workspace.options} --again {PRETRAINED}."
    with pytest.raises(UserError, match="see above"):
        run_suite(suite, [], [], workspace)
    shown = capsys.readouterr().out
    assert " ".join(told.split()) in " ".join(shown.split())
    assert shown.index("1 of 8 runs cannot be completed") < shown.index("finished already"), (
        "before any other is looked at"
    )
    show_status(suite, workspace)
    shown = capsys.readouterr().out
    assert f"{OF_TEACHER}" in shown
    assert " ".join(told.split()) in " ".join(shown.split())
    show_plan(suite, workspace, Rates())
    assert "1 runs to do, 7 finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no teacher: it was made by an earlier version"):
        run_suite(suite, ["downstream"], ["lut-teacher"], workspace)
    capsys.readouterr()
    run_suite(suite, [], [], workspace, again=[PRETRAINED])
    assert the_run(folder, OF_TEACHER).status().state is RunState.FINISHED
    assert f"{OF_TUNED}: finished already" in capsys.readouterr().out, "the same encoder came out"


def test_a_teacher_that_was_changed_is_refused(folder: Path) -> None:
    run = the_run(folder, OF_TEACHER)
    assert run.weights is not None
    run.weights.write_bytes(run.weights.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"teacher.safetensors: expected sha256 \w+, found \w+: the file is damaged or was changed"
    ):
        encoder_of(the_run(folder, OF_TEACHER), None)


# Reconstructions

RATIOS = [0.5, 0.75, 0.9]


def pixels(count: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw)


def masked(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Which patches (B, N) are no longer those of the images."""
    return (patchify(images, 4) != patchify(rebuilt, 4)).any(dim=2)


def test_reconstructions_are_the_students_under_masks_of_their_own(done: Path) -> None:
    run, images = the_run(done, PRETRAINED), pixels()
    found = train.reconstruct(run, images, RATIOS)
    assert found is not None
    assert (found.shape, found.dtype) == ((3, 5, 3, 16, 16), torch.uint8)
    [file] = run.checkpoints.rglob("tensors.safetensors")
    student = build_student(run.recipe, run.seed)
    trained = {key.removeprefix("student."): t for key, t in load_file(file).items() if key.startswith("student.")}
    student.load_state_dict(trained)
    noise = picture_noise(5, 16)
    views = Views(normalised(images), None, noise)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for rebuilt, visible in zip(found, (8, 4, 1), strict=True):
        expected = (reconstruct(student.eval(), views, visible) * deviation + mean).clamp(0, 1) * 255
        assert torch.equal(rebuilt, expected.round().to(torch.uint8))
        hidden = torch.ones(5, 16, dtype=torch.bool).scatter(1, visible_patches(noise, visible).view1, False)
        assert torch.equal(masked(images, rebuilt), hidden), "what is visible is kept to the bit"


def test_masks_are_those_of_an_images_place_whatever_the_encoder_and_the_images(done: Path) -> None:
    lut, mae = (the_run(done, f"pretrain/{name}/seed0") for name in ("lut", "mae"))
    images = pixels()
    one, other = train.reconstruct(lut, images, RATIOS), train.reconstruct(mae, 255 - images, RATIOS)
    assert one is not None
    assert other is not None
    assert not torch.equal(one, other)
    for ratio in range(3):
        assert torch.equal(masked(images, one[ratio]), masked(255 - images, other[ratio]))
    fewer = train.reconstruct(lut, images[:2], [0.75])
    assert fewer is not None
    assert torch.equal(masked(images[:2], fewer[0]), masked(images[:2], one[1][:2])), "nor on how many images there are"
    assert len({tuple(noise.tolist()) for noise in picture_noise(5, 16)}) == 5, "each image has its own"


def test_a_ratio_that_would_hide_everything_leaves_a_patch(done: Path) -> None:
    found = train.reconstruct(the_run(done, PRETRAINED), pixels(), [0.99])
    assert found is not None
    assert masked(pixels(), found[0]).sum(1).tolist() == [15] * 5


def test_a_run_of_before_there_were_decoders_has_none_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = the_run(folder, PRETRAINED)
    without_later_files(run)
    assert train.reconstruct(run, pixels(), RATIOS) is None
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "has no decoder: it was made by an earlier version that did not keep it. To get it, repeat the run: lutbench run"
        in shown
    )
    assert f"--again {PRETRAINED}" in shown


def test_a_decoder_that_was_changed_is_refused(folder: Path) -> None:
    run = the_run(folder, PRETRAINED)
    file = run.folder / "decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"decoder.safetensors: expected sha256"):
        train.reconstruct(run, pixels(), RATIOS)
