"""Retrieval counts what its papers count: recall and precision on classes, and average precision of revisited Oxford with its junk."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_runs import SCRATCH, TOY, performed, performed_by, toy_run, write_images

from downstream.instance_retrieval import average_precision, precision_at, protocol_scores, ranks_of
from downstream.retrieval import class_scores
from lutbench.data.catalogue import CATALOGUE, status_of
from lutbench.data.describe import render_dataset, render_list
from lutbench.data.plain_pickle import read_plain_pickle
from lutbench.data.revisited import open_dataset, read_lists
from lutbench.data.toy.miniatures import write_revisited as write_set
from lutbench.data.verify import verify
from lutbench.errors import UserError
from lutbench.evaluate.queries import QueryScores
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.run import Run

METHOD = f"""
{SCRATCH}
[downstream.task]
"""

REVISITED = TOY.replace('source = "folder"\npath = "toy"\nundecodable = "skip"\n', 'source = "roxford5k"\n')


def class_run(folder: Path, home: str = "here", **settings: Any) -> Run:
    return toy_run(
        folder, home, suite_text=f'{TOY}{METHOD}data = "toy"\nkind = "retrieval"', **{"threads": 1} | settings
    )


def instance_run(folder: Path, home: str = "here", **settings: Any) -> Run:
    text = f'{REVISITED}{METHOD}data = "toy"\nkind = "instance-retrieval"'
    return toy_run(folder, home, suite_text=text, **{"threads": 1} | settings)


# Sets with classes


def test_scores_are_those_worked_out_by_hand() -> None:
    """On a circle, where nearest is the nearest angle. Classes 0, 1, 0, 0, 1, 2 at 0, 10, 25, 60, 100 and 170 degrees."""
    angles, labels = torch.tensor([0, 10, 25, 60, 100, 170]).deg2rad(), torch.tensor([0, 1, 0, 0, 1, 2])
    found = class_scores(torch.stack([angles.cos(), angles.sin()], 1), labels, [1, 2, 4])
    # Of image 0 the others are, the nearest first, 1 2 3 4 5: of class 0 the second and third, of which R = 2 places have one.
    np.testing.assert_allclose(found[0], [0, 1, 1, (1 / 2) / 2])
    # Of image 1: 0 2 3 4 5, and the only one of its class is the fourth.
    np.testing.assert_allclose(found[1], [0, 0, 1, 0])
    # Of image 2: 1 0 3 4 5.
    np.testing.assert_allclose(found[2], [0, 1, 1, (1 / 2) / 2])
    # Of image 3: 2 4 1 0 5.
    np.testing.assert_allclose(found[3], [1, 1, 1, (1 / 1) / 2])
    # Of image 4: 3 5 2 1 0.
    np.testing.assert_allclose(found[4], [0, 0, 1, 0])
    assert np.isnan(found[5]).all(), "the only one of its class is no query"


def test_an_image_is_not_found_in_itself_but_in_its_copy() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    assert class_scores(features, torch.tensor([0, 1, 0, 1]), [1])[:2, 0].tolist() == [0, 0]
    assert class_scores(features, torch.tensor([0, 0, 1, 1]), [1])[:, 0].tolist() == [1, 1, 1, 1]


def test_a_run_on_classes_keeps_the_scores_of_every_query(tmp_path: Path) -> None:
    write_images(tmp_path)
    run = class_run(tmp_path)
    found = performed(run)
    assert list(found["measurements"]) == ["recall@1", "recall@2", "recall@4", "recall@8", "mAP@R"]
    assert found["n"] == 21
    assert found["measurements"]["recall@1"] > 80, "classes differ in colour"
    values = list(found["measurements"].values())[:4]
    assert values == sorted(values)


def test_two_processes_and_other_workers_find_the_bits_of_one(tmp_path: Path) -> None:
    write_images(tmp_path)
    one = performed_by(class_run(tmp_path, "one", eval_batch=4), 1)
    assert performed_by(class_run(tmp_path, "helped", eval_batch=4, workers=2), 1) == one
    assert performed_by(class_run(tmp_path, "two", eval_batch=4), 2) == one


def test_a_set_whose_classes_have_one_image_each_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, val=1)
    run = class_run(tmp_path, recall_at=[1])
    with pytest.raises(UserError, match="every class of split 'val' has only one image"):
        run.planned.kind.module.check(run)


def test_a_number_of_nearest_images_that_the_set_has_not_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    run = class_run(tmp_path, recall_at=[1, 21])
    with pytest.raises(UserError, match=r"recall_at = 21 is too large: .* has 21 images, so a query has 20"):
        run.planned.kind.module.check(run)
    with pytest.raises(UserError, match="recall_at: expected different numbers in ascending order"):
        class_run(tmp_path, recall_at=[2, 1])


def test_a_plan_counts_the_validation_images_alone(tmp_path: Path) -> None:
    write_images(tmp_path)
    run = class_run(tmp_path)
    assert run.recipe.samples({"train": 30, "val": 21}) == (0, 21)
    assert run.planned.kind.module.cost(run, 3).evaluate > 0


# The published average precision


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0], 1.0),  # (1 + 1/1) / 2
        ([1], 0.25),  # (0/1 + 1/2) / 2
        ([0, 1, 2], 1.0),
        ([0, 2], ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2),
        ([1, 4], ((0 + 1 / 2) / 2 + (1 / 4 + 2 / 5) / 2) / 2),
    ],
)
def test_average_precision_is_the_area_by_trapezoids(places: list[int], expected: float) -> None:
    assert average_precision(np.array(places)) == pytest.approx(expected)


def test_a_query_with_nothing_to_find_has_no_precision() -> None:
    assert np.isnan(average_precision(np.array([], int)))
    assert np.isnan(precision_at(np.array([], int), 10))


def test_precision_counts_no_more_images_than_up_to_the_last_that_is_to_be_found() -> None:
    assert precision_at(np.array([0, 2, 30]), 10) == pytest.approx(2 / 10)
    assert precision_at(np.array([0, 2]), 10) == pytest.approx(2 / 3)
    assert precision_at(np.array([0, 2]), 1) == 1.0


def test_junk_is_left_out_of_the_ranking_as_if_it_were_not_there() -> None:
    ranked = np.array([7, 3, 0, 5, 1, 2, 4, 6])
    assert ranks_of(ranked, np.array([3, 1]), np.array([7, 5])).tolist() == [0, 2]
    assert ranks_of(ranked, np.array([3, 1]), np.array([], int)).tolist() == [1, 4]


def test_the_three_protocols_are_those_published() -> None:
    """Ranking 0 to 5; 1 is easy, 3 hard, 0 junk."""
    relations = {"easy": np.array([1]), "hard": np.array([3]), "junk": np.array([0])}
    scores, metrics = protocol_scores(np.arange(6)[None], (relations,))
    found = dict(zip(metrics, scores[0], strict=True))
    assert found["mAP Easy"] == 1.0, "junk and hard are left out: 1 is the first"
    assert found["mAP Medium"] == pytest.approx((1.0 + (1 / 2 + 2 / 3) / 2) / 2), "junk is left out: places 0 and 2"
    assert found["mAP Hard"] == pytest.approx(((0 / 1) + 1 / 2) / 2), "junk and easy are left out: 2 is before it"
    assert (found["mP@1 Medium"], found["mP@5 Medium"], found["mP@10 Hard"]) == (1, pytest.approx(2 / 3), 1 / 2)
    assert metrics[:3] == ["mAP Medium", "mAP Hard", "mAP Easy"]


def test_a_query_without_hard_images_does_not_count_for_hard() -> None:
    relations = (
        {"easy": np.array([1]), "hard": np.array([], int), "junk": np.array([], int)},
        {"easy": np.array([1]), "hard": np.array([2]), "junk": np.array([], int)},
    )
    scores, metrics = protocol_scores(np.stack([np.arange(4)] * 2), relations)
    made = {m.metric: m for m in QueryScores.of(scores, metrics, 2, ["a", "b"]).measurements()}
    assert (made["mAP Hard"].n, made["mAP Medium"].n) == (1, 2)
    assert made["mAP Hard"].value == pytest.approx(100 * average_precision(np.array([1])))


# Revisited Oxford, in its layout


def write_revisited(root: Path, protocol: int = 2) -> Path:
    """A set of three buildings, five photographs each and a query, in the published layout; returns the pickle."""
    recipe, home = RevisitedDataRecipe(source="roxford5k"), root / "roxford5k"
    write_set(recipe, home, 24, protocol)
    return home / recipe.lists


def rewritten(path: Path, **changes: Any) -> None:
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **changes}))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_read_as_the_lists_that_were_written(tmp_path: Path, protocol: int) -> None:
    path = write_revisited(tmp_path, protocol)
    expected, found = pickle.loads(path.read_bytes()), read_lists(path, "x")
    assert (found.database, found.queries) == (expected["imlist"], expected["qimlist"])
    for given, one in zip(expected["gnd"], found.relations, strict=True):
        assert {key: places.tolist() for key, places in one.items()} == {
            key: list(given[key]) for key in ("easy", "hard", "junk")
        }
    assert found.boxes.tolist() == [[4, 4, 28, 20]] * 3


def test_numbers_of_every_kind_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    given = [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float32(1.5),
        np.zeros(0, int),
    ]
    path.write_bytes(pickle.dumps(given, 2))
    found = read_plain_pickle(path)
    for one, other in zip(given, found, strict=True):
        np.testing.assert_array_equal(np.asarray(other), one)


class Payload:
    """What a pickle could do on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_revisited(tmp_path)
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**content, "more": Payload()}))
    with pytest.raises(UserError, match=r"it contains pathlib\S*, which could run code"):
        read_lists(path, "x")
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # the payload works where it is let
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [np.array(["a", None], object), np.array(["text"]), np.zeros(2, "i4,f8")])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="it has an array of type"):
        read_plain_pickle(path)


def test_queries_are_cropped_to_their_boxes(tmp_path: Path) -> None:
    write_revisited(tmp_path)
    recipe = RevisitedDataRecipe(source="roxford5k")
    queries, database = (open_dataset(recipe, split, tmp_path) for split in ("queries", "database"))
    assert (len(queries), len(database)) == (3, 15)
    with Image.open(tmp_path / "roxford5k/jpg/dome_000009.jpg") as whole:
        assert list(queries.image(1).getdata()) == list(whole.crop((4, 4, 28, 20)).getdata())
    assert queries.image(0).size == (24, 16)
    assert database.image(0).size == (32, 24)


def test_the_fingerprint_tells_boxes_and_lists_apart(tmp_path: Path) -> None:
    path = write_revisited(tmp_path)
    recipe = RevisitedDataRecipe(source="roxford5k")
    before = open_dataset(recipe, "queries", tmp_path).fingerprint
    gnd = pickle.loads(path.read_bytes())["gnd"]
    rewritten(path, gnd=[{**one, "bbx": [4.0, 4.0, 28.0, 21.0]} for one in gnd])
    boxed = open_dataset(recipe, "queries", tmp_path).fingerprint
    rewritten(path, gnd=[{**one, "junk": []} for one in gnd])
    assert len({before, boxed, open_dataset(recipe, "queries", tmp_path).fingerprint}) == 3


def test_a_run_finds_the_buildings_and_keeps_every_querys_precision(tmp_path: Path) -> None:
    write_revisited(tmp_path)
    run = instance_run(tmp_path)
    found = performed(run)
    assert list(found["measurements"])[:3] == ["mAP Medium", "mAP Hard", "mAP Easy"]
    assert found["measurements"]["mAP Medium"] > 80, "buildings differ in colour"
    record = json.loads(next(run.workspace.results.rglob("*.json")).read_text())
    assert record["measurements"][0]["interval"] == "bootstrap over queries"
    assert run.recipe.samples({"database": 15, "queries": 3}) == (0, 18)


def test_two_processes_find_the_bits_of_one(tmp_path: Path) -> None:
    write_revisited(tmp_path)
    one = performed_by(instance_run(tmp_path, "one", eval_batch=4), 1)
    assert performed_by(instance_run(tmp_path, "two", eval_batch=4), 2) == one


# Bad input


def test_a_set_without_its_lists_is_told_where_they_come_from(tmp_path: Path) -> None:
    write_revisited(tmp_path).unlink()
    with pytest.raises(
        UserError,
        match=r"gnd_roxford5k\.pkl is missing.*revisitop/data/datasets/roxford5k/gnd_roxford5k\.pkl and put it there",
    ):
        open_dataset(RevisitedDataRecipe(source="roxford5k"), "queries", tmp_path)


def test_images_that_the_lists_name_and_are_absent_are_counted_and_named(tmp_path: Path) -> None:
    write_revisited(tmp_path)
    for name in ("arch_000000", "dome_000003"):
        (tmp_path / f"roxford5k/jpg/{name}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"2 of the 15 images .* database are missing in .*: arch_000000\.jpg, dome_000003\.jpg"
    ):
        open_dataset(RevisitedDataRecipe(source="roxford5k"), "database", tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"qimlist": ["arch_000009"]}, "1 queries, 3 lists"),
        ({"imlist": ["../secret"] * 1}, "a name points outside the folder"),
        ({"imlist": [b"bytes"]}, "a name is not text"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [15], "hard": [], "junk": []}] * 3}, "an index is not in 0 to 14"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [1.5], "hard": [], "junk": []}] * 3}, "an index is not in 0 to 14"),
        ({"gnd": [{"bbx": [5, 0, 1, 1], "easy": [1], "hard": [], "junk": []}] * 3}, "a box has no area"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [1], "hard": [1], "junk": []}] * 3}, "an image is in two lists"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "ok": [1]}] * 3}, "but 'easy' is missing"),
        ({"gnd": "nothing"}, "expected the published lists"),
    ],
)
def test_lists_that_are_not_as_published_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = write_revisited(tmp_path)
    rewritten(path, **changes)
    with pytest.raises(UserError, match=told):
        read_lists(path, "x")


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", pickle.dumps([1, 2])[:-2], pickle.dumps([1])])
def test_a_damaged_pickle_is_a_paragraph(tmp_path: Path, content: bytes) -> None:
    path = write_revisited(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x: .*expected the published lists|expected a pickle with only lists"):
        read_lists(path, "x")


def test_classes_where_queries_are_needed_are_refused_and_the_reverse(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a dataset of photographs with queries .*, found toy"):
        toy_run(tmp_path, suite_text=f'{TOY}{METHOD}data = "toy"\nkind = "instance-retrieval"')
    with pytest.raises(UserError, match="expected a dataset of images, found toy with source = 'roxford5k'"):
        toy_run(tmp_path, suite_text=f'{REVISITED}{METHOD}data = "toy"\nkind = "knn"')


# The catalogue


def test_the_sets_are_known_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = CATALOGUE["roxford5k"]
    assert known.images == {"database": 4993, "queries": 70}
    assert status_of(known, tmp_path).state == "missing"
    path = write_revisited(tmp_path)
    assert status_of(known, tmp_path).state == "here"
    report = verify("roxford5k", tmp_path)
    assert "database, images: expected 4,993, found 15 (-4,978)." in report.problems
    assert "queries: 3 of 3 images checked can be decoded" in report.lines
    path.unlink()
    assert status_of(known, tmp_path).state == "gnd_roxford5k.pkl is missing"
    from lutbench.progress import console

    console.print(render_list(tmp_path), render_dataset(status_of(known, tmp_path)))
    printed = " ".join(capsys.readouterr().out.split())
    assert "roxford5k 4,993 database, 70 queries mAP Medium" in printed
    assert "gnd_roxford5k.pkl into" in printed


# Outcomes


def scores(*rows: list[float]) -> QueryScores:
    return QueryScores.of(np.array(rows), ["recall@1", "mAP@R"], 1, [f"{n}.jpg" for n in range(len(rows))])


def test_outcomes_are_kept_and_read_as_they_are() -> None:
    made = scores([0, 0.25], [1, 0.5], [np.nan, np.nan])
    again = QueryScores.from_arrays(made.arrays())
    np.testing.assert_array_equal(again.scores, made.scores)
    assert (again.metrics, again.names, again.printed()) == (made.metrics, made.names, ["recall@1"])
    assert [(m.value, m.n) for m in again.measurements()] == [(50, 2), (37.5, 2)]


@pytest.mark.parametrize("wrong", [[2.0, 0.5], [-0.1, 0.5]])
def test_scores_that_cannot_be_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        scores(wrong, [0, 0])


def test_two_methods_are_compared_query_by_query() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((200, 2))
    better = QueryScores.compare([scores(*np.clip(values + 0.05, 0, 1))], [scores(*values)], "mAP@R")
    expected = (np.clip(values + 0.05, 0, 1) - values)[:, 1].mean()
    assert better.difference == pytest.approx(expected)
    assert 0 < better.interval.low < expected < better.interval.high
    assert better.p < 0.01
    with pytest.raises(ValueError, match="different images"):
        QueryScores.compare(
            [scores([0, 0], [1, 1])], [QueryScores.of(np.zeros((2, 2)), ["recall@1", "mAP@R"], 1, ["x", "y"])], "mAP@R"
        )
