"""A model that is sharded over two processes is the model of one process: in training, on disk, stopped and gone on with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.tensor import DTensor
from toy_runs import (
    SCRATCH,
    TOY,
    check_same_answers,
    defaults,
    in_processes,
    outcome,
    performed,
    performed_by,
    toy_run,
    write_images,
)

from downstream.finetune import build_classifier, layer_decay_groups
from lutbench.checkpoint import finite_state
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.run import Run
from lutbench.train.processes import accelerator
from lutbench.train.sharding import blocks, is_sharded, local, share

LUT = f"""{TOY}
{defaults("pretrain", batch=8, micro_batch=4, epochs=3, base_lr=1e-3, clip_gradient=0.5, save_every=5, knn_every=2)}
[pretrain.lut]
snapshots = [0.5]
"""
TUNED = f"""{TOY}
{SCRATCH}
{defaults("finetune", batch=8, micro_batch=4, epochs=3, base_lr=1e-3, save_every=5, head_std=0.02, drop_path=0.3, layer_decay=0.6)}
[downstream.task]
kind = "finetune"
"""
SUITES = {"pretrain": LUT, "finetune": TUNED}
"""12 steps each, with checkpoints after 10 and at the end; every pass is of two images on each of two processes."""

WEIGHTS = {
    "pretrain": ("encoder", "teacher", "decoder", "encoder-at-0.5"),
    "finetune": ("classifier",),
}


def toy(folder: Path, home: str, kind: str, shard: bool) -> Run:
    return toy_run(folder, home, suite_text=SUITES[kind], shard=shard)


def all_perform(run: Run) -> None:
    run.planned.kind.module.perform(run)
    accelerator().wait_for_everyone()


def hand_on(folder: Path, home: str, other: str, kind: str) -> None:
    """Give another home what a run that was killed after step 10 would have left."""
    whole, killed = toy(folder, home, kind, shard=False), toy(folder, other, kind, shard=False)
    shutil.copytree(whole.folder, killed.folder, dirs_exist_ok=True)
    shutil.rmtree(killed.checkpoints / "step-00000012")
    (killed.folder / "finished.json").unlink()
    assert killed.status().detail == "at step 10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every kind ran whole on one process, sharded over two, and changed from each to the other after step 10."""
    folder = tmp_path_factory.mktemp("sharded")
    write_images(folder)
    for kind in SUITES:
        in_processes(lambda kind=kind: performed(toy(folder, f"one {kind}", kind, shard=False)))
        hand_on(folder, f"one {kind}", f"one to two {kind}", kind)
    runs = [toy(folder, f"{home} {kind}", kind, shard=True) for kind in SUITES for home in ("two", "one to two")]
    in_processes(lambda: [all_perform(run) for run in runs] and None, 2)
    for kind in SUITES:
        hand_on(folder, f"two {kind}", f"two to one {kind}", kind)
        in_processes(lambda kind=kind: performed(toy(folder, f"two to one {kind}", kind, shard=False)))
    return folder


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that names, shapes and values are the same, but for the biases of keys.

    Softmax takes no notice of those, so that their gradients are rounding alone, which AdamW makes steps of full length of.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        counts = torch.ones_like(tensor, dtype=torch.bool)
        if name.endswith("qkv.bias"):
            counts.view(3, -1)[1] = False
        torch.testing.assert_close(found[name][counts], tensor[counts], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("home", ["two", "one to two", "two to one"])
@pytest.mark.parametrize("kind", SUITES)
def test_a_sharded_run_makes_what_one_process_makes_also_where_only_a_part_of_it_was_sharded(
    folder: Path, kind: str, home: str
) -> None:
    one, other = (toy(folder, f"{each} {kind}", kind, shard=False) for each in ("one", home))
    for name in WEIGHTS[kind]:
        check_equal(*(load_file(run.folder / f"{name}.safetensors") for run in (other, one)))
    expected, found = outcome(one), outcome(other)
    assert found["measurements"] == pytest.approx(expected["measurements"], rel=1e-5)
    if kind == "finetune":
        assert found["extra"]["loss"] == pytest.approx(expected["extra"]["loss"], rel=1e-5)
        check_same_answers(one, other)
    else:
        assert found["extra"]["online k-NN top-1"] == expected["extra"]["online k-NN top-1"]


@pytest.mark.parametrize("kind", SUITES)
def test_a_checkpoint_has_the_names_shapes_and_values_of_one_that_is_not_sharded(folder: Path, kind: str) -> None:
    one, two = (toy(folder, f"{home} {kind}", kind, shard=False) for home in ("one", "two"))
    assert one.identity == two.identity
    expected, found = (load_file(run.checkpoints / "step-00000010" / "tensors.safetensors") for run in (one, two))
    assert any(name.startswith("optimizer.") for name in found)
    check_equal(found, expected)


def test_the_health_of_a_sharded_student_is_that_of_one_process(folder: Path) -> None:
    logged = []
    for home in ("one", "two"):
        found = EventAccumulator(str(toy(folder, f"{home} pretrain", "pretrain", shard=False).folder / "tensorboard"))
        found.Reload()
        names = ("spread", "mean cosine", "effective rank")
        logged.append({(name, event.step): event.value for name in names for event in found.Scalars(name)})
    one, two = logged
    assert {step for _, step in one} == {5, 8, 10, 12}
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("kind", SUITES)
def test_on_one_process_it_does_nothing(folder: Path, kind: str) -> None:
    asked = performed_by(toy(folder, f"asked {kind}", kind, shard=True), 1)
    one = outcome(toy(folder, f"one {kind}", kind, shard=False))
    for extra in (asked["extra"], one["extra"]):
        for seconds in ("waiting_for_data", "seconds of online k-NN"):
            extra.pop(seconds, None)
    assert asked == one


def test_each_process_holds_half_of_parameters_gradients_and_moments_and_all_stop_where_one_part_is_not_finite(
    folder: Path,
) -> None:
    def looked_at() -> dict[str, Any]:
        run = toy(folder, f"looked at {accelerator().process_index}", "finetune", shard=True)
        recipe = run.recipe
        encoder = create_encoder(recipe.encoder.architecture, 16)
        classifier = build_classifier(encoder, recipe, 3, 0)
        count = sum(parameter.numel() for parameter in classifier.parameters())
        shared = share({"": classifier}, recipe.shard)[""]
        groups = layer_decay_groups(classifier, recipe)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        classifier(torch.rand(2, 3, 16, 16)).square().sum().backward()
        optimizer.step()
        parameters = list(classifier.parameters())
        kept = {
            "parameters": parameters,
            "gradients": [p.grad for p in parameters if p.grad is not None],
            "moments": [optimizer.state[p]["exp_avg"] for p in parameters if p in optimizer.state],
        }
        found: dict[str, Any] = {
            name: sum(local(tensor).numel() for tensor in tensors) / count for name, tensors in kept.items()
        }
        found["rates"] = sorted({group["lr_scale"] for group in groups})
        found["blocks"] = len(blocks(classifier))
        found["sharded"] = is_sharded(classifier), is_sharded(shared.whole())
        if accelerator().process_index:
            assert isinstance(parameters[0], DTensor)
            with torch.no_grad():
                next(local(p) for p in parameters if local(p).numel() and p.requires_grad).fill_(torch.nan)
        try:
            finite_state({"classifier": classifier}, optimizer, "here")
        except UserError as error:
            found["told"] = str(error)
        return found

    for found in in_processes(looked_at, 2):
        for name in ("parameters", "gradients", "moments"):
            assert 0.4 < found[name] < 0.6, name
        assert found["rates"] == pytest.approx([0.6**3, 0.6**2, 0.6, 1.0])
        assert found["blocks"] == 2
        assert found["sharded"] == (True, False)
        assert found["told"].startswith("here: 1 of ")


def test_what_it_does_not_go_with_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"shard = true and compile = true cannot be combined"):
        toy_run(folder, "refused", suite_text=LUT, shard=True, compile=True)
    linear = TUNED.replace('kind = "finetune"', 'kind = "linear"')
    with pytest.raises(UserError, match=r"shard: no such setting\. Kinds that have it: finetune"):
        toy_run(folder, "refused", suite_text=linear, shard=True)
