"""The logistic regression is scikit-learn's, its penalty is chosen on training images alone, and it is exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from toy_runs import outcome, performed, performed_by, toy_run, write_images

from downstream import logistic
from downstream.logistic import fitted, held_out_rows, layer, score, searched
from lutbench.data.survey import Survey
from lutbench.errors import UserError
from lutbench.evaluate.features import features_of
from lutbench.evaluate.inference import Computed
from lutbench.plan.costs import Rates, costs_of
from lutbench.recipes.loading import load_suite
from lutbench.recipes.probes import LogisticRecipe
from lutbench.run import Run

SHORT: dict[str, Any] = {"kind": "logistic", "pool": "mean", "threads": 1}


def recipe_of(run: Run) -> LogisticRecipe:
    assert isinstance(run.planned.recipe, LogisticRecipe)
    return run.planned.recipe


def blobs(count: int, classes: int = 4, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Overlapping classes in 6 dimensions."""
    centres = np.random.default_rng(9).normal(size=(classes, 6))
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=count)
    return centres[labels] + draw.normal(size=(count, 6)), labels


@pytest.mark.parametrize("transform", ["none", "standardise"])
def test_predictions_are_scikit_learns_and_the_kept_layer_makes_them(folder: Path, transform: str) -> None:
    run = toy_run(folder, **SHORT, C=0.5, feature_transform=transform)
    performed(run)
    seen, unseen = (features_of(run, split) for split in ("train", "val"))
    images = run.dataset("train")
    x, queries = seen.values.double().numpy(), unseen.values.double().numpy()
    if transform == "standardise":
        mean, deviation = x.mean(0), x.std(0)
        x, queries = (x - mean) / deviation, (queries - mean) / deviation
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(x, images.labels).predict(queries)
    recorded = json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())
    outcomes = np.load(next(run.workspace.results.rglob(recorded["outcomes"]["file"])))
    assert outcomes["prediction"].tolist() == expected.tolist()
    kept = load_file(run.folder / "logistic.safetensors")
    assert {name: (tuple(of.shape), of.dtype) for name, of in kept.items()} == {
        "weight": ((3, 16), torch.float32),
        "bias": ((3,), torch.float32),
    }
    scores = torch.nn.functional.linear(unseen.values, kept["weight"], kept["bias"])  # on features as they are
    assert scores.argmax(1).tolist() == expected.tolist()
    assert recorded["extra"]["C"] == 0.5
    assert "C_tried" not in recorded["extra"]


def test_of_two_classes_and_of_one_that_no_training_image_has_the_layer_is_scikit_learns_too(folder: Path) -> None:
    recipe = recipe_of(toy_run(folder, **SHORT))
    for classes, missing in ((2, None), (4, 1)):
        features, labels = blobs(300, classes)
        features, labels = features[labels != missing], labels[labels != missing]
        fit = fitted(features, labels, 1.0, recipe)
        weight, bias = layer(fit, classes)
        queries = blobs(100, classes, seed=1)[0]
        unseen = Computed(torch.from_numpy(queries), np.arange(100))
        found = score({"weight": weight, "bias": bias}, unseen, torch.zeros(100, dtype=torch.long))[:, 0]
        assert found.tolist() == fit.model.predict(queries).tolist()
        assert missing is None or missing not in found


def test_the_strength_is_searched_as_clip_does(folder: Path) -> None:
    """Seven strengths, then the gaps beside the best are halved until there are 8 to a decade; of equal ones the smallest is taken."""
    recipe = recipe_of(toy_run(folder, **SHORT))
    features, labels = blobs(400)
    search = searched(features, labels, recipe, seed=0)
    exponents = sorted(np.log10(list(search.right)).round(6).tolist())
    assert set(exponents) >= {-6, -4, -2, 0, 2, 4, 6}
    assert len(exponents) == 7 + 2 * 4
    at = exponents.index(round(float(np.log10(search.best)), 6))
    assert exponents[at + 1] - exponents[at] == pytest.approx(0.125)
    held_out = held_out_rows(labels, 0.2, 0)
    model = LogisticRegression(C=search.best, max_iter=1000).fit(features[~held_out], labels[~held_out])
    right = int((model.predict(features[held_out]) == labels[held_out]).sum())
    assert right == search.right[search.best] == max(search.right.values())
    assert all(right > of for strength, of in search.right.items() if strength < search.best)


def test_the_best_at_an_end_of_the_grid_is_searched_on_one_side(folder: Path) -> None:
    recipe = recipe_of(toy_run(folder, **SHORT, C_grid=[1e-8, 1e-6], halvings=1))
    features, labels = blobs(300)
    found = searched(features, labels, recipe, seed=0)
    assert sorted(found.right) == pytest.approx([1e-8, 1e-7, 1e-6])


def test_a_share_of_every_class_is_held_out_drawn_by_the_seed() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 2 + [3])
    held_out = held_out_rows(labels, 0.2, seed=0)
    assert [int(held_out[labels == label].sum()) for label in range(4)] == [2, 1, 1, 0]
    assert (held_out_rows(labels, 0.2, seed=0) == held_out).all()
    assert any((held_out_rows(labels, 0.2, seed=seed) != held_out).any() for seed in range(1, 4))
    with pytest.raises(UserError, match=r"no class has at least two images. Set C, such as C = 1.0"):
        held_out_rows(np.arange(5), 0.2, seed=0)


def test_a_set_of_one_image_a_class_is_refused_before_compute_unless_c_is_set(tmp_path: Path) -> None:
    write_images(tmp_path, train=1)
    with pytest.raises(UserError, match="C is chosen on held-out training images"):
        logistic.check(toy_run(tmp_path, **SHORT))
    run = toy_run(tmp_path, **SHORT, C=1.0)
    logistic.check(run)
    performed(run)


def test_the_search_never_sees_the_test_images(folder: Path) -> None:
    """Other images under val change neither the strength nor the layer."""
    first = toy_run(folder, "first", **SHORT)
    performed(first)
    for number in range(5):
        shutil.copy(folder / "toy/train/amber/0.png", folder / f"toy/val/blue/more-{number}.png")
    second = toy_run(folder, "second", **SHORT)
    performed(second)
    layers = [load_file(run.folder / "logistic.safetensors") for run in (first, second)]
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])
    assert outcome(first)["n"] != outcome(second)["n"]


def test_what_was_tried_and_whether_it_converged_is_told_and_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = performed(toy_run(folder, "whole", **SHORT))["extra"]
    assert found["converged"] is True
    assert found["iterations"] < 1000
    assert len(found["C_tried"]) == len(found["held_out_top_1"]) >= 7
    assert found["held_out_images"] == 6
    assert found["C"] in found["C_tried"]
    said = capsys.readouterr().out
    assert f"C = {found['C']:g}, the best of {len(found['C_tried'])} values on 6 held-out training images" in said
    assert "converged after" in said
    found = performed(toy_run(folder, "short", **SHORT, C=1e4, max_iter=3))["extra"]
    assert (found["converged"], found["iterations"]) == (False, 3)
    assert "C = 10000; not converged after 3 iterations: raise max_iter = 3" in capsys.readouterr().out


def test_two_runs_and_two_processes_have_the_same_bits(folder: Path) -> None:
    one = performed_by(toy_run(folder, "one", **SHORT), 1)
    assert performed_by(toy_run(folder, "two", **SHORT), 1) == one
    assert performed_by(toy_run(folder, "three", **SHORT), 2) == one


def test_settings_of_the_search_are_no_part_of_the_identity_where_c_is_given(folder: Path) -> None:
    def inputs(**settings: Any) -> dict[str, Any]:
        return recipe_of(toy_run(folder, **SHORT, **settings)).affecting_results()

    assert inputs(C=1.0, halvings=2, held_out=0.1, C_grid=[1.0]) == inputs(C=1.0)
    assert inputs(halvings=2) != inputs()
    assert inputs(C_grid=[2.0, 1.0]) == inputs(C_grid=[1.0, 2.0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"C": 0.0}, "greater than 0"),
        ({"C_grid": [1.0, 1.0]}, "appears twice"),
        ({"C_grid": []}, "at least 1"),
        ({"held_out": 0.6}, "less than or equal to 0.5"),
        ({"feature_transform": "sphere"}, "'none', 'centre', 'standardise' or 'whiten'"),
    ],
)
def test_settings_out_of_range_are_refused(folder: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        toy_run(folder, **SHORT, **settings)


def test_a_plan_counts_its_images_and_its_layer(folder: Path) -> None:
    run = toy_run(folder, **SHORT)
    suite = load_suite(str(folder / "toy.toml"))
    surveys = {run.name: Survey("toy", {"train": 30, "val": 21}, {}, 3, (), False, "")}
    cost = costs_of(suite, run.workspace, surveys, Rates(flops=1e9)).runs[0]
    assert cost.images == 51
    assert cost.flop > 0
    assert cost.cost.exported == 3 * 17
