"""An analysis is one pass over the images: what it keeps of an encoder, and what it refuses before any compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_runs import LOOKS, TOY, encoder, in_processes, toy_run

from analysis.analyse import check
from analysis.block_outcomes import ATTENTION, VIEWS, BlockOutcomes
from lutbench.errors import UserError
from lutbench.evaluate.inference import encode_images
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.loading import load_suite
from lutbench.recipes.probes import KnnRecipe
from lutbench.record import Record, read_records
from lutbench.run import Run, open_run
from lutbench.stages import perform
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace

NAME = "analysis/looks/scratch/seed0"


def analysis_run(folder: Path, home: str = "here", **settings: Any) -> Run:
    return toy_run(folder, home, suite_text=settings.pop("suite_text", LOOKS), threads=1, **settings)


def record_of(run: Run) -> Record:
    return read_records(run.workspace.results, "toy")[run.name]


def analysed(run: Run) -> BlockOutcomes:
    perform(run)
    outcomes = record_of(run).outcomes
    assert isinstance(outcomes, BlockOutcomes)
    return outcomes


def test_what_is_kept_of_an_encoder_of_two_blocks(folder: Path) -> None:
    run = analysis_run(folder)
    measured = analysed(run).measured
    shapes = {name: array.shape for name, array in measured.items()}
    assert shapes == {
        **dict.fromkeys(ATTENTION, (21, 2)), **dict.fromkeys(("similarity", "token_rank"), (21, 3)), "amplitude": (21, 2, 2),
        **dict.fromkeys(VIEWS, (21,)), **dict.fromkeys(("right_pooled", "right_class"), (21, 3)),
        **dict.fromkeys(("spectrum_pooled", "spectrum_tokens"), (3, 16)), "resampled": (2, 4, 300),
    }  # fmt: skip
    record = record_of(run)
    kept = {one.name: record.array(one.name).shape for one in record.attachments if one.kind == "array"}
    assert kept == {"heads": (5, 2, 2), "grams": (3, 1, 210), "maps": (2, 8, 2, 4, 4), "colours": (8, 4, 4, 3)}
    np.testing.assert_allclose(record.array("heads").mean(2), [measured[name].mean(0) for name in ATTENTION], rtol=1e-6)
    with Image.open(run.folder / "attention.png") as picture:
        assert picture.width > 300
    assert record.extra["drawn blocks"] == [1, 2]
    assert record.images_per_second is not None


def test_features_are_those_that_a_task_is_given(folder: Path) -> None:
    outcomes = analysed(analysis_run(folder))
    task = f"{TOY}\n[method.scratch]\nscratch = true\nencoder = 'toy'\n[downstream.task]\nkind = 'knn'\ndata = 'toy'\nneighbours = 5\n"
    knn = toy_run(folder, "knn", suite_text=task, threads=1)
    perform(knn)
    assert outcomes.measured["right_pooled"][:, -1].tolist() == record_of(knn).outcomes.right().tolist()
    recipe = knn.recipe
    assert isinstance(recipe, KnnRecipe)
    features = encode_images(encoder_of(knn, None), knn.dataset("val"), recipe, knn.preprocessing, "").values.double()
    expected = torch.linalg.svdvals(features - features.mean(0))
    np.testing.assert_allclose(outcomes.measured["spectrum_pooled"][-1], expected, atol=1e-6 * float(expected[0]))


def test_two_processes_find_what_one_does(folder: Path) -> None:
    def found(home: str) -> None:
        accelerator()  # which sets the number of threads, where there are several processes; the run's own comes after it
        perform(analysis_run(folder, home, eval_batch=4))

    in_processes(lambda: found("one"))
    in_processes(lambda: found("two"), 2)
    one, two = (record_of(analysis_run(folder, home, eval_batch=4)) for home in ("one", "two"))
    for name, array in one.outcomes.measured.items():
        if name.startswith("spectrum") or name == "resampled":
            np.testing.assert_allclose(two.outcomes.measured[name], array, rtol=1e-9, atol=1e-7 * np.abs(array).max())
        else:
            assert np.array_equal(two.outcomes.measured[name], array), name
    for attached in one.attachments:
        if attached.kind == "array":
            assert np.array_equal(one.array(attached.name), two.array(attached.name)), attached.name


def test_an_image_that_cannot_be_decoded_is_in_no_number(folder: Path) -> None:
    whole = analysed(analysis_run(folder))
    (folder / "toy/val/amber/3.png").write_bytes(b"no image")
    less = analysed(analysis_run(folder, "less"))
    assert less.count == 20
    assert np.array_equal(less.measured["distance"], np.delete(whole.measured["distance"], 3, axis=0))
    (folder / "toy/val/amber/3.png").unlink()
    without = analysed(analysis_run(folder, "without"))
    np.testing.assert_allclose(
        less.measured["spectrum_tokens"], without.measured["spectrum_tokens"], rtol=1e-9, atol=1e-6
    )


def test_some_of_the_images_evenly_spaced(folder: Path) -> None:
    some = analysed(analysis_run(folder, images=11, measures=["attention"]))
    every = analysed(analysis_run(folder, "all", measures=["attention"]))
    assert np.array_equal(some.measured["distance"], every.measured["distance"][::2])
    assert set(some.measured) == set(ATTENTION)


def test_a_few_images_may_be_of_one_class(folder: Path) -> None:
    for name in ("amber", "green"):
        for path in (folder / "toy/val" / name).glob("*"):
            path.rename(folder / "toy/val/blue" / f"{name}-{path.name}")
        Image.new("RGB", (20, 20)).save(folder / "toy/val" / name / "0.png")
    (folder / "toy/val/amber/0.png").rename(folder / "toy/val/blue/first.png")
    (folder / "toy/val/amber").rmdir()
    (folder / "toy/val/green/0.png").write_bytes(b"no image")
    assert analysed(analysis_run(folder, measures=["attention"], images=3)).count == 2


def test_too_few_images_that_can_be_decoded_are_not_analysed(folder: Path) -> None:
    for number in range(5):
        (folder / "toy/val/amber" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="needs at least 17 images, found 16"):
        perform(analysis_run(folder))
    for path in (folder / "toy/val").glob("*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 21 selected images of split 'val' can be decoded"):
        perform(analysis_run(folder))


def test_without_labels_everything_but_neighbours_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for path in sorted((folder / "toy" / split).glob("*/*.png")):
            path.rename(folder / "toy" / split / f"{path.parent.name}-{path.name}")
        for path in (folder / "toy" / split).iterdir():
            if path.is_dir():
                path.rmdir()
    run = analysis_run(folder)
    check(run)
    assert "has no labels." in capsys.readouterr().out
    assert {"distance", "amplitude", "similarity", "alignment", "spectrum_pooled"} <= set(analysed(run).measured)
    assert not record_of(run).outcomes.has("right_pooled")
    assert record_of(run).array("grams").shape == (3, 1, 210)


def test_a_set_without_train_is_analysed_without_depth(folder: Path) -> None:
    (folder / "toy/train").rename(folder / "elsewhere")
    (folder / "toy.toml").write_text(LOOKS)
    suite = load_suite(str(folder / "toy.toml"))
    workspace = Workspace(data=folder, runs=folder / "runs", results=folder / "results")
    with pytest.raises(UserError, match=r"train.*remove \"depth\" from the measures of analysis\.looks"):
        check(open_run(suite, suite.runs[0], workspace))
    measures = ["attention", "spectrum", "fourier", "similarity"]
    run = analysis_run(folder, measures=measures)
    check(run)
    assert {"distance", "spectrum_pooled", "amplitude", "alignment"} <= set(analysed(run).measured)


def test_on_train_there_are_no_neighbours(folder: Path) -> None:
    run = analysis_run(folder, split="train")
    check(run)
    outcomes = analysed(run)
    assert outcomes.count == 30
    assert not outcomes.has("right_pooled")
    assert run.recipe.samples({"train": 30}) == (0, 60), "no bank, and a second view of each"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": [2, 3]}, r"analysis\.looks: blocks = \[2, 3\]: there is no block 3; toy has 2 blocks"),
        ({"images": 16}, "17"),
        ({"alpha_from": 10}, "alpha_from"),
        ({"neighbours": 31}, "neighbours = 31"),
        ({"viewed": 1}, "viewed"),
        ({"images": 1, "measures": ["attention"]}, "at least 2 images, found 1"),
        ({"image_size": 4, "measures": ["attention"]}, "an image of 4 pixels is a single patch.*Set image_size to 8"),
        ({"split": "train", "measures": ["depth"]}, 'split = "train" would search.*then has nothing to measure'),
        ({"neighbours": 6, "bank": 5}, "neighbours = 6 must not be more than bank = 5"),
    ],
)
def test_what_cannot_be_measured_is_said_before_compute(folder: Path, settings: dict[str, Any], message: str) -> None:
    text = "\n".join(line for line in LOOKS.splitlines() if line.split(" = ")[0] not in settings)
    with pytest.raises(UserError, match=message):
        check(analysis_run(folder, suite_text=text, **settings))


MIXED = f"""
{encoder("fine", patch_size=2)}
[method.fine]
scratch = true
encoder = "fine"
"""


def test_encoders_of_other_patches_need_a_table_of_their_own(folder: Path) -> None:

    (folder / "mixed.toml").write_text(
        LOOKS.replace("[analysis", f"{MIXED}[analysis").replace('["scratch"]', '["scratch", "fine"]')
    )
    suite = load_suite(str(folder / "mixed.toml"))
    workspace = Workspace(data=folder, runs=folder / "runs", results=folder / "results")
    first, second = (open_run(suite, planned, workspace) for planned in suite.runs)
    check(first)
    with pytest.raises(UserError, match=r"scratch with images of 16 and patches of 4 pixels, and fine with 16 and 2"):
        check(second)


def test_an_untrained_encoder_of_every_architecture_is_a_row(folder: Path) -> None:

    methods = f"""
{encoder("deep", depth=3)}
[pretrain.mae]
data = "toy"
encoder = "toy"
[pretrain.deep]
data = "toy"
encoder = "deep"
[method.mae]
pretrain = "mae"
[method.deep]
pretrain = "deep"
[analysis"""
    path = folder / "rows.toml"
    path.write_text(LOOKS.replace("[analysis", methods).replace('methods = ["scratch"]', ""))
    rows = [run.name.split("/")[2] for run in load_suite(str(path)).runs if run.stage == "analysis"]
    assert rows == ["mae", "deep", "untrained-toy", "untrained-deep"]
    path.write_text(LOOKS.replace("[analysis", methods).replace('["scratch"]', '["mae"]'))
    assert [run.method for run in load_suite(str(path)).runs if run.stage == "analysis"] == ["mae", "untrained"]
    path.write_text(LOOKS.replace("[analysis", methods).replace('["scratch"]', '["mae", "scratch"]'))
    assert [run.method for run in load_suite(str(path)).runs if run.stage == "analysis"] == ["mae", "scratch"]


def test_the_name_of_the_untrained_row_is_not_given_to_another_encoder(folder: Path) -> None:

    path = folder / "named.toml"
    path.write_text(
        LOOKS.replace("[method.scratch]\nscratch = true", "[method.untrained]\ntimm = true").replace(
            '"scratch"', '"untrained"'
        )
    )
    with pytest.raises(
        UserError, match=r"method.untrained: analysis.looks uses this name for its untrained encoder.*Rename the method"
    ):
        load_suite(str(path))
