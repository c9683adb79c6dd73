"""The k-NN vote is the one of a plain loop and of scikit-learn, in bounded memory."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional
from toy_runs import SUITE, in_processes, outcome, performed, toy_run, write_images

from downstream import knn
from lutbench.errors import UserError
from lutbench.evaluate import neighbours
from lutbench.evaluate.neighbours import knn_classify, nearest_neighbours
from lutbench.evaluate.outcomes import Measurement
from lutbench.models.pretrained import encoder_of

CLASSES, K, TEMPERATURE = 6, 20, 0.07


def features(seed: int, count: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (count, 12) around one direction per class, and labels."""
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(9))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return centres[labels] + spread * torch.randn(count, 12, generator=draw), labels


def by_loop(query: Tensor, bank: Tensor, labels: Tensor) -> list[float]:
    """The votes of every class, one neighbour after the other."""
    cosines = [float(functional.cosine_similarity(query, image, dim=0)) for image in bank]
    votes = [0.0] * CLASSES
    for place in sorted(range(len(bank)), key=lambda place: -cosines[place])[:K]:
        votes[labels[place]] += math.exp(cosines[place] / TEMPERATURE)
    return votes


def test_predictions_and_places_are_those_of_a_plain_loop() -> None:
    (queries, wanted), (bank, labels) = features(0, 40), features(1, 300)
    found = knn_classify(queries, wanted, bank, labels, CLASSES, K, TEMPERATURE)[:, :2].tolist()
    for query, label, (prediction, place) in zip(queries, wanted, found, strict=True):
        votes = by_loop(query, bank, labels)
        assert prediction == int(np.argmax(votes))
        ahead = sum(other > votes[label] for other in votes)
        assert place == (ahead if votes[label] else CLASSES - 1)


def test_predictions_are_those_of_scikit_learn() -> None:
    (queries, wanted), (bank, labels) = features(2, 500, 2.0), features(3, 1500, 2.0)
    reference = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )
    expected = reference.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    found = knn_classify(queries, wanted, bank, labels, CLASSES, K, TEMPERATURE)[:, 0]
    assert 0.2 < (found == wanted).float().mean() < 0.95, "too easy or too hard to tell anything"
    assert found.tolist() == expected.tolist()


def test_the_nearest_neighbours_do_not_depend_on_how_the_bank_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = features(4, 30)[0], features(5, 333)[0]
    similarity, places = nearest_neighbours(queries, bank, K)
    expected = (queries @ bank.T).topk(K)
    assert torch.equal(places, expected.indices)
    for size in (7, 20, 100, 332):
        monkeypatch.setattr(neighbours, "BANK", size)
        cut_similarity, cut_places = nearest_neighbours(queries, bank, K)
        assert torch.allclose(cut_similarity, similarity)
        assert torch.equal(cut_places, places)


def test_the_vote_does_not_depend_on_how_the_queries_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    (queries, wanted), (bank, labels) = features(6, 50), features(7, 200)
    whole = knn_classify(queries, wanted, bank, labels, CLASSES, K, TEMPERATURE)
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    again = knn_classify(queries, wanted, bank, labels, CLASSES, K, TEMPERATURE)
    assert torch.equal(again[:, [0, 1]], whole[:, [0, 1]])
    assert torch.allclose(again, whole, equal_nan=True)


def test_no_more_than_a_chunk_of_similarities_is_ever_there(monkeypatch: pytest.MonkeyPatch) -> None:
    (queries, wanted), (bank, labels) = features(8, 40), features(9, 500)
    monkeypatch.setattr(neighbours, "QUERIES", 8)
    monkeypatch.setattr(neighbours, "BANK", 100)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.ndim == 2 and bank.shape[1] not in result.shape:
                largest = max(largest, result.numel())
            return result

    with Watch():
        knn_classify(queries, wanted, bank, labels, CLASSES, K, TEMPERATURE)
    assert 0 < largest <= 8 * 100


def test_a_class_that_no_neighbour_belongs_to_comes_last_whatever_its_number() -> None:
    bank = torch.eye(4)
    found = knn_classify(torch.eye(4)[:1], torch.tensor([0]), bank, torch.tensor([3, 3, 2, 2]), 5, 2, TEMPERATURE)
    assert found[:, :2].tolist() == [[3, 4]]
    assert found[0, 3:8].tolist() == [3, 2, -1, -1, -1], "and is not among the most likely"
    assert found[0, 8:].tolist() == pytest.approx([1, math.exp(-1 / TEMPERATURE), 0, 0, 0], rel=1e-5)
    assert found[0, 2].isnan()


def test_the_lowest_temperature_is_the_nearest_neighbour_and_does_not_overflow() -> None:
    (queries, wanted), (bank, labels) = features(10, 60), features(11, 200)
    found = knn_classify(queries, wanted, bank, labels, CLASSES, K, 1e-4)[:, 0]
    nearest = (functional.normalize(queries, dim=1) @ functional.normalize(bank, dim=1).T).argmax(1)
    assert torch.equal(found, labels[nearest])


def test_a_run_leaves_a_record_with_every_images_outcome_for_any_number_of_processes(tmp_path: Path) -> None:
    write_images(tmp_path)
    alone = performed(toy_run(tmp_path, "one", kind="knn", neighbours=5))
    assert alone["n"] == 21
    assert alone["measurements"]["top-1"] > 60, "three colours are easily told apart"
    run = toy_run(tmp_path, "two", kind="knn", neighbours=5)
    in_processes(lambda: performed_on_one(run), 2)
    assert outcome(run) == alone


def performed_on_one(run: knn.Run) -> None:
    knn.perform(run)


def test_fewer_images_than_neighbours_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, train=6)
    with pytest.raises(UserError, match=r"neighbours = 20, .* has only 18 images"):
        performed(toy_run(tmp_path, kind="knn"))


def test_features_that_are_not_finite_are_no_result_and_name_the_first_image(tmp_path: Path) -> None:
    """Of weights that overflow."""
    write_images(tmp_path)
    run = toy_run(tmp_path, "first", kind="knn", neighbours=3)
    weights = {name: tensor * 1e30 for name, tensor in encoder_of(run, None).state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    suite = SUITE.replace("scratch = true", f'checkpoint = "{tmp_path}/weights.safetensors"')
    run = toy_run(tmp_path, "second", suite_text=suite, kind="knn", neighbours=3)
    with pytest.raises(UserError, match=r"the encoder's features are not finite for 30 of 30 images, such as \S+\.png"):
        performed(run)
    assert not list(run.workspace.results.rglob("*.json"))


def test_a_number_that_is_not_finite_makes_no_record(tmp_path: Path) -> None:
    write_images(tmp_path)
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    performed(run)
    shutil.rmtree(run.workspace.results)
    with pytest.raises(UserError, match=r"no record was written, .*extra\.loss.* is nan.*learning rate"):
        run.save_results([Measurement(metric="loss", value=1.0)], seconds=1.0, extra={"loss": math.nan})
    assert not run.workspace.results.exists()
