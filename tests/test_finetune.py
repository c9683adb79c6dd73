"""Fine-tuning is MAE's and the release's, layer by layer, and does not depend on how a batch is cut."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.layers import DropPath as TimmDropPath
from timm.layers import calculate_drop_path_rates
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import check_same_answers, killed_at_a_checkpoint, performed, performed_by, toy_run, write_images

from downstream import finetune
from downstream.finetune import build_classifier, evaluation_steps, layer_decay_groups, schedule_of
from downstream.mixing import DropPath, DropPaths, Mixing, smoothed
from lutbench.checkpoint_names import KEEP
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.models.preprocessing import IMAGENETS
from lutbench.models.pretrained import load_encoder
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.record import read_record
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.schedule import learning_rate, set_learning_rate

SHORT: dict[str, Any] = {"kind": "finetune", "epochs": 4, "warmup_epochs": 1, "batch": 8, "base_lr": 2e-3}
"""30 images: 15 steps."""

CUTS = [(8, 1), (4, 1), (2, 1), (8, 2), (4, 2), (8, 4)]
"""Images per pass, and processes, for a batch of 8."""


def recipe(**settings: Any) -> FinetuneRecipe:
    architecture = {"model": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "width": 16}
    architecture |= {"depth": 3, "heads": 2}
    encoder = {"architecture": architecture, "kind": "scratch"}
    return FinetuneRecipe.model_validate({"data": {"path": "toy"}, "encoder": encoder, "batch": 8, **settings})


def classifier_of(settings: FinetuneRecipe, classes: int = 3) -> VisionTransformer:
    return build_classifier(load_encoder(settings.encoder), settings, classes, seed=0)


def units(micro_batch: int, processes: int) -> Iterator[list[int]]:
    """The rows of every pass of every process."""
    for rank in range(processes):
        schedule = Schedule(30, 4, 8, micro_batch, seed=0, rank=rank, processes=processes)
        for accumulated in range(schedule.micro_batches):
            yield schedule.rows(accumulated)


# The classifier


def test_every_group_of_vit_b_learns_at_its_depths_rate() -> None:
    paper = FinetuneRecipe.model_validate(
        {"data": {"path": "imagenet"}, "encoder": {"architecture": {}, "kind": "scratch"}}
    )
    with torch.device("meta"):
        classifier = create_encoder(paper.encoder.architecture, classes=1000, pooled_norm=True)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    optimizer = torch.optim.AdamW(layer_decay_groups(classifier, paper), lr=paper.lr)
    assert paper.lr == pytest.approx(4e-3)
    for step in (0, 3, 50, 99):
        lr = learning_rate(step, 100, 5, paper.lr, paper.min_lr)
        set_learning_rate(optimizer, lr)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                block = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else None
                depth = block if block is not None else 13 if name.startswith(("fc_norm.", "head.")) else 0
                assert group["lr"] == pytest.approx(lr * 0.75 ** (13 - depth), rel=1e-12), name
    assert len({group["lr"] for group in optimizer.param_groups}) == 14
    assert sorted(id(p) for group in optimizer.param_groups for p in group["params"]) == sorted(names)


def test_weight_decay_spares_vectors_and_what_is_added_to_tokens() -> None:
    classifier = classifier_of(recipe())
    decayed = {
        id(p) for group in layer_decay_groups(classifier, recipe()) if group["weight_decay"] for p in group["params"]
    }
    for name, parameter in classifier.named_parameters():
        spared = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert (id(parameter) not in decayed) == spared, name
        assert parameter.requires_grad, name


def test_the_classifier_is_a_new_norm_and_head_on_the_mean_of_the_encoders_patches() -> None:
    encoder = load_encoder(recipe().encoder, seed=3).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        classifier = build_classifier(encoder, recipe(head_std=0.5), classes=3, seed=0).eval()
        pixels = torch.randn(2, 3, 16, 16)
        encoder.norm = nn.Identity()  # type: ignore[assignment]
        mean = encoder.forward_features(pixels)[:, 1:].mean(1)
        expected = classifier.head(functional.layer_norm(mean, (16,), eps=1e-6))
        assert torch.allclose(classifier(pixels), expected, atol=1e-5)


def test_the_head_starts_with_the_recipes_deviation_truncated_and_from_the_seed() -> None:
    wide = recipe(head_std=2e-5)
    weights = [build_classifier(load_encoder(wide.encoder), wide, 2000, seed).head.weight for seed in (0, 0, 1)]  # type: ignore[union-attr]
    assert weights[0].std().item() == pytest.approx(2e-5, rel=0.05)  # type: ignore[operator]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]


# What is random about a step


@pytest.mark.parametrize("mix_group", [2, 4, 6, 32])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixing_is_timms_and_does_not_depend_on_how_the_batch_is_cut(
    mixup: float, cutmix: float, mix_group: int
) -> None:
    """Groups of 6 in a batch of 8 have a rest of 2, and one of 32 is the whole batch."""
    settings = recipe(mixup=mixup, cutmix=cutmix, mix_group=mix_group)
    pixels, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    for step in range(6):
        results = []
        for micro_batch, processes in CUTS:
            mixed, targets = torch.zeros_like(pixels), torch.zeros(8, 3)
            for rows in units(micro_batch, processes):
                mixed[rows], targets[rows] = Mixing(settings, 3, seed=5)(pixels[rows], labels[rows], step, rows)
            results.append((mixed, targets))
        for mixed, targets in results[1:]:
            assert torch.equal(mixed, results[0][0])
            assert torch.equal(targets, results[0][1])
        assert not torch.equal(results[0][0], pixels)
        assert torch.allclose(results[0][1].sum(1), torch.ones(8))
    reference = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=3)
    np.random.seed(0)  # noqa: NPY002
    shares = {round(float(reference(pixels.clone(), labels)[1][0, 0]), 6) for _ in range(20)}
    mixing, (rows,) = Mixing(settings, 3, 0), units(8, 1)
    ours = {round(float(mixing(pixels[rows], labels[rows], step, rows)[1][0, 0]), 6) for step in range(20)}
    assert len(ours) > 15
    assert abs(np.mean(list(ours)) - np.mean(list(shares))) < 0.25


def test_a_step_of_the_recipe_draws_for_every_32_images_as_the_release_does() -> None:
    paper = FinetuneRecipe.model_validate(
        {"data": {"path": "imagenet"}, "encoder": {"architecture": {}, "kind": "scratch"}}
    )
    rows = Schedule(5000, 1, paper.batch, paper.batch, seed=0, rank=0, processes=1).rows(0)
    mixing = Mixing(paper.model_copy(update={"label_smoothing": 0.0, "cutmix": 0.0}), 1024, seed=0)
    own = torch.arange(1024)[rows]
    _, targets = mixing(torch.zeros(1024, 3, 2, 2), own, 3, rows)
    share = {row: round(float(of[row]), 5) for row, of in zip(rows, targets, strict=True)}
    partner = {row: (of > 0).nonzero()[:, 0].tolist() for row, of in zip(rows, targets, strict=True)}
    groups = [{share[row] for row in range(first, first + 32)} for first in range(0, 1024, 32)]
    assert all(len(group) == 1 for group in groups), "one ratio for each group"
    assert len(set.union(*groups)) == 32, "and another for every other"
    assert all(pair == [row - row % 2, row - row % 2 + 1] for row, pair in partner.items())


def test_a_steps_mixing_depends_on_seed_and_step_alone_and_disturbs_no_generator() -> None:
    pixels, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    np.random.seed(1)  # noqa: NPY002
    first = Mixing(recipe(), 3, seed=0)(pixels.clone(), labels, 7, range(8))[0]
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == drawn  # noqa: NPY002
    assert torch.equal(Mixing(recipe(), 3, seed=0)(pixels.clone(), labels, 7, range(8))[0], first)
    assert not torch.equal(Mixing(recipe(), 3, seed=0)(pixels.clone(), labels, 8, range(8))[0], first)
    assert not torch.equal(Mixing(recipe(), 3, seed=1)(pixels.clone(), labels, 7, range(8))[0], first)


def test_without_mixing_labels_are_smoothed_as_torch_and_timm_do() -> None:
    scores, labels = torch.randn(8, 5), torch.arange(8) % 5
    pixels = torch.randn(8, 3, 4, 4)
    same, targets = Mixing(recipe(mixup=0, cutmix=0, label_smoothing=0.1), 5, 0)(pixels, labels, 0, range(8))
    assert same is pixels
    assert torch.equal(targets, smoothed(labels, 5, 0.1))
    loss = functional.cross_entropy(scores, targets)
    assert torch.allclose(loss, functional.cross_entropy(scores, labels, label_smoothing=0.1))
    assert torch.allclose(loss, SoftTargetCrossEntropy()(scores, targets))


def test_paths_are_dropped_at_timms_rates_and_scaled_as_timm_does() -> None:
    classifier = classifier_of(recipe(drop_path=0.4))
    paths = DropPaths.replacing(classifier, seed=0)
    assert not any(isinstance(module, TimmDropPath) for module in classifier.modules())
    rates = [rate for rate in calculate_drop_path_rates(0.4, 3) if rate for _ in range(2)]
    assert [path.rate for path in paths.paths] == rates == pytest.approx([0.2, 0.2, 0.4, 0.4])
    paths.draw(0, 20000, range(20000), torch.device("cpu"))
    for path in paths.paths:
        assert path.scale is not None
        assert set(path.scale.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - path.rate)))}
        assert (path.scale == 0).float().mean().item() == pytest.approx(path.rate, abs=0.01)
    branch = torch.randn(20000, 2, 3)
    dropped = paths.paths[-1].train()(branch)
    assert torch.equal(dropped[3], branch[3] * paths.paths[-1].scale[3])
    assert torch.equal(paths.paths[-1].eval()(branch), branch)


def test_each_path_of_each_step_drops_other_images() -> None:
    paths = DropPaths([DropPath(0.5) for _ in range(4)], seed=0)
    drawn = []
    for step in range(4):
        paths.draw(step, 64, range(64), torch.device("cpu"))
        drawn += [tuple(path.scale.tolist()) for path in paths.paths if path.scale is not None]
    assert len(set(drawn)) == 16


@pytest.mark.parametrize(("micro_batch", "processes"), CUTS[1:])
def test_a_steps_gradient_does_not_depend_on_how_the_batch_is_cut(micro_batch: int, processes: int) -> None:
    settings = recipe(drop_path=0.5, head_std=0.5, mix_group=6)
    pixels, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3

    def gradient(cuts: Iterator[list[int]]) -> Tensor:
        classifier = classifier_of(settings).train()
        paths, mixing = DropPaths.replacing(classifier, 0), Mixing(settings, 3, 0)
        for rows in cuts:
            mixed, targets = mixing(pixels[rows], labels[rows], 11, rows)
            paths.draw(11, 8, rows, torch.device("cpu"))
            (functional.cross_entropy(classifier(mixed), targets) * len(rows) / 8).backward()
        return torch.cat([p.grad.flatten() for p in classifier.parameters() if p.grad is not None])

    whole = gradient(units(8, 1))
    assert torch.allclose(gradient(units(micro_batch, processes)), whole, atol=1e-6 * float(whole.abs().max()) * 10)


def test_an_image_without_a_partner_to_mix_with_is_refused_before_anything_is_computed(folder: Path) -> None:
    run = toy_run(folder, **SHORT | {"batch": 6, "micro_batch": 3})
    with pytest.raises(UserError, match="odd number of images, but mixup"):
        performed(run)
    settings = run.planned.recipe
    assert isinstance(settings, FinetuneRecipe)
    assert schedule_of(settings.model_copy(update={"mixup": 0.0, "cutmix": 0.0}), 30, 0).micro_batches == 2


def test_evaluations_on_the_way_are_at_the_ends_of_epochs_and_not_at_the_end(folder: Path) -> None:
    schedule = Schedule(30, 4, 8, 8, seed=0)
    assert evaluation_steps(recipe(epochs=4, warmup_epochs=0), schedule) == set()
    assert evaluation_steps(recipe(epochs=4, warmup_epochs=0, eval_every=1), schedule) == {4, 8, 11}
    assert evaluation_steps(recipe(epochs=4, warmup_epochs=0, eval_every=3), schedule) == {11}


# Whole runs


def test_a_run_learns_and_leaves_a_record_and_a_classifier_that_timm_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 20, "rand_augment": "", "crop_scale": [0.5, 1.0], "head_std": 0.02, "eval_every": 10}
    run = toy_run(folder, **SHORT | settings)
    found = performed(run)
    assert found["n"] == 21
    assert found["measurements"]["top-1"] > 60, "three colours are easily told apart"
    description = json.loads((run.folder / "classifier.json").read_text())
    assert description["class_names"] == ["amber", "blue", "green"]
    assert description["sha256"] == found["checkpoint"]
    monkeypatch.chdir(run.folder)
    loaded = timm.create_model(
        description["model"], **description["arguments"], checkpoint_path="classifier.safetensors"
    )
    again = finetune.evaluate(loaded, run.dataset("val"), run.planned.recipe, IMAGENETS, title="")  # type: ignore[arg-type]
    assert {m.metric: m.value for m in again.measurements()} == found["measurements"]


def test_evaluating_on_the_way_changes_nothing(folder: Path) -> None:
    alone = performed(toy_run(folder, "alone", **SHORT))
    watched = toy_run(folder, "watched", **SHORT | {"eval_every": 1})
    assert performed(watched) == alone
    planned = watched.recipe.checkpoints({"train": 30, "val": 21}, KEEP)
    assert len(list(watched.checkpoints.glob("step-*"))) == planned == 2, "one is saved before every evaluation"


def test_a_killed_run_started_again_ends_with_the_same_bits(folder: Path) -> None:
    settings = SHORT | {"epochs": 8, "save_every": 1}
    whole = performed_by(toy_run(folder, "whole", **settings), 1)
    run = toy_run(folder, "killed", **settings)
    killed_at_a_checkpoint(run, step=3)
    killed_at_a_checkpoint(run, step=12)
    assert performed_by(run, 1) == whole


def test_the_number_of_loader_workers_changes_nothing(folder: Path) -> None:
    alone = performed(toy_run(folder, "alone", **SHORT))
    assert performed(toy_run(folder, "helped", **SHORT | {"workers": 3})) == alone


def test_two_processes_and_passes_make_the_losses_of_one(folder: Path) -> None:
    settings = SHORT | {"drop_path": 0.5, "head_std": 0.02, "log_every": 1, "mix_group": 6}
    alone = toy_run(folder, "one", **settings)
    one = performed(alone)
    run = toy_run(folder, "two", **settings | {"micro_batch": 4})
    two = performed_by(run, 2)
    assert two["extra"]["loss"] == pytest.approx(one["extra"]["loss"], rel=1e-5)
    check_same_answers(alone, run)


def test_a_run_in_which_nothing_can_move_is_an_error(folder: Path) -> None:
    run = toy_run(folder, **SHORT | {"base_lr": 1e-45, "min_lr": 0.0})
    with pytest.raises(UserError, match="No weight changed"):
        performed(run)


def test_a_last_update_that_ruins_the_weights_is_no_result(folder: Path) -> None:
    """Of a single step, whose loss is taken before its update."""
    run = toy_run(folder, **SHORT | {"base_lr": 1e300, "epochs": 1, "batch": 30, "warmup_epochs": 0})
    with pytest.raises(UserError, match=r"after step 1: .* tensors are not finite"):
        performed(run)
    assert not list(run.checkpoints.glob("step-*"))
    assert not list(run.folder.glob("*.safetensors"))
    assert not list(run.workspace.results.rglob("*.json"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_images(folder: Path) -> None:
    run: Run = toy_run(folder, **SHORT | {"base_lr": 1e30, "log_every": 1})
    with pytest.raises(UserError, match="not finite at step"):
        performed(run)
    report = json.loads((run.folder / "non-finite-0.json").read_text())
    assert len(report["images"]) == 8
    assert not (run.folder / "finished.json").exists()


def test_the_runs_seconds_hold_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    evaluate = finetune.evaluate
    monkeypatch.setattr(finetune, "evaluate", lambda *of, **named: time.sleep(5) or evaluate(*of, **named))
    run = toy_run(tmp_path, kind="finetune", epochs=1, warmup_epochs=0, batch=10)
    performed(run)
    assert read_record(next(run.folder.rglob("records/**/*.json"))).wall_seconds > 5
