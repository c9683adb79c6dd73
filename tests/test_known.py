"""The catalogue of image sets holds what is published, and every set of it stands in a suite by its name alone."""

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torchvision.datasets
from PIL import Image, ImageOps

from lutbench.data.catalogue import CATALOGUE, MEASURED_ON, SEARCHED, TRAINED_ON, status_of
from lutbench.data.official import FORMATS
from lutbench.data.prepare import prepare_set
from lutbench.data.toy.mosaics import MOSAICS
from lutbench.data.toy.photographs import BUILT
from lutbench.data.verify import verify
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.retrieval import RevisitedDataRecipe
from robustness.toy_sets import SETS

PUBLISHED_SIZES = {
    "imagenet-1k": (1000, 1_281_167, 50_000),
    "ade20k": (150, 20_210, 2_000),
    "cub-200-2011": (200, 5_994, 5_794),
    "stanford-cars": (196, 8_144, 8_041),
    "fgvc-aircraft": (100, 6_667, 3_333),
    "flowers-102": (102, 2_040, 6_149),
    "oxford-pets": (37, 3_680, 3_669),
    "stanford-dogs": (120, 12_000, 8_580),
    "inaturalist-2017": (5089, 579_184, 95_986),
    "inaturalist-2018": (8142, 437_513, 24_426),
    "inaturalist-2019": (1010, 265_213, 3_030),
    "cifar-10": (10, 50_000, 10_000),
    "cifar-100": (100, 50_000, 10_000),
    "food-101": (101, 75_750, 25_250),
    "dtd": (47, 3_760, 1_880),
    "places365": (365, 1_803_460, 36_500),
    "camvid": (11, 367, 101),
}
"""Classes, images to train and to test on, as their authors and those who publish scores on them count."""


def test_the_catalogue_counts_what_is_published() -> None:
    known = {name: CATALOGUE[name] for name in PUBLISHED_SIZES}
    assert {name: (k.classes, k.images["train"], k.images["val"]) for name, k in known.items()} == PUBLISHED_SIZES


@pytest.mark.parametrize("name", [*TRAINED_ON, *SEARCHED])
def test_a_set_is_told_completely(name: str) -> None:
    known = CATALOGUE[name]
    assert known.name == known.recipe.label == name
    assert set(known.images) in ({*known.recipe.splits}, {"train", "val"}, {"all"})
    assert known.gigabytes > 0
    for text in (known.title, known.layout, known.split, known.paper, known.terms, known.get):
        assert text == text.strip() != ""
    assert "DIR" in known.layout
    assert "DIR" not in status_of(known, Path("/data")).steps
    assert hasattr(torchvision.datasets, known.torchvision or "DTD")


@pytest.mark.parametrize("name", TRAINED_ON)
def test_an_official_set_names_splits_that_its_format_has(name: str) -> None:
    recipe = CATALOGUE[name].recipe
    if recipe.source in FORMATS and (splits := FORMATS[recipe.source].splits):
        assert {*recipe.train.split("+"), *recipe.val.split("+")} <= set(splits)
        assert not {*recipe.train.split("+")} & {*recipe.val.split("+")}


def test_the_metric_is_the_mean_per_class_where_the_published_scores_are() -> None:
    recipes = [known.recipe for known in TRAINED_ON.values()]
    per_class = {recipe.label for recipe in recipes if isinstance(recipe, DataRecipe) and recipe.metric != "top-1"}
    assert per_class == {"oxford-pets"}


@pytest.mark.parametrize("name", [*TRAINED_ON, *SEARCHED])
def test_a_suite_needs_one_line_for_a_known_set(name: str, tmp_path: Path) -> None:
    expected = CATALOGUE[name].recipe
    kind = {DataRecipe: "knn", RevisitedDataRecipe: "instance-retrieval"}.get(type(expected), "segmentation")
    suite = tmp_path / "toy.toml"
    suite.write_text(
        f'title = "toy"\nabout = "for tests"\nkind = "pipeline"\n[data.x]\nknown = "{name}"\n[encoder.b]\n'
        '[method.scratch]\nscratch = true\nencoder = "b"\n'
        f'[downstream.x]\nkind = "{kind}"\ndata = "x"\n'
    )
    assert load_suite(str(suite)).runs[0].recipe.data == expected  # type: ignore[attr-defined]
    assert load_suite(str(suite), ["data.x.label=Own"]).runs[0].recipe.data.label == "Own"  # type: ignore[attr-defined]


def test_the_sets_that_the_suite_builds_hold_what_the_catalogue_says() -> None:
    built = {known.name: (known.classes, known.images) for known in TRAINED_ON.values() if known.built}
    counts = {
        name: (len(cut.classes), {split: len(cut.classes) * count for split, count in cut.counts.items()})
        for name, cut in BUILT.items()
    }
    assert built == counts | {"mosaics": (len(MOSAICS.classes), MOSAICS.counts)}


def test_the_robustness_datasets_that_the_suite_builds_are_known_and_whole(tiny_data: Path, tmp_path: Path) -> None:
    own = [name for name, known in MEASURED_ON.items() if known.built]
    assert own == list(SETS)
    shutil.copytree(tiny_data / "photographs", tmp_path / "photographs")  # whose classes photographs-o has none of
    for name in own:
        shutil.copytree(tiny_data / name, tmp_path / name)
        assert "exists already" in prepare_set(name, tmp_path).text
        report = verify(name, tmp_path, full=True)
        assert (report.problems, report.notes) == ([], []), name
        path = next((tmp_path / name).rglob("*.png"))
        size = path.stat().st_size
        with Image.open(path) as image:
            changed = ImageOps.invert(image)
        changed.save(path, compress_level=0)
        assert path.stat().st_size == size
        assert any(
            "pixels changed since they were written" in one for one in verify(name, tmp_path, full=True).problems
        )
    assert "was built" in prepare_set("photographs-o", tmp_path / "anew").text


@pytest.mark.parametrize("name", MEASURED_ON)
def test_a_robustness_dataset_is_described_completely(name: str) -> None:
    known = MEASURED_ON[name]
    assert known.recipe.label == known.title
    for text in (known.title, known.layout, known.protocol, known.paper, known.terms, known.get):
        assert text == text.strip() != ""
    assert "DIR" in known.layout


def test_every_recipe_of_the_catalogue_is_the_one_that_identities_rest_on() -> None:
    pinned = json.loads((Path(__file__).parent / "fixtures" / "known_recipes.json").read_text())
    later = [
        ("bits", None),
        ("config", ""),
        ("held_out", None),
        ("few", None),
    ]  # settings that came later, which count only where they are not so
    found = {}
    for name, known in CATALOGUE.items():
        fields = [item for item in known.recipe.model_dump(mode="json").items() if item not in later]
        found[name] = hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:16]
    assert found == pinned


def test_the_catalogue_is_read_without_anything_heavy() -> None:
    code = "import sys, lutbench.recipes.loading, lutbench.data.describe; print(*{'torch', 'datasets', 'skimage', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_whether_a_robustness_dataset_is_present_is_seen_without_torch(tmp_path: Path) -> None:
    (tmp_path / "imagenet-a").mkdir()
    code = (
        "import sys; from pathlib import Path; from lutbench.data.catalogue import find, status_of; "
        f"print(status_of(find('imagenet-a'), Path({str(tmp_path)!r})).state, *{{'torch', 'skimage'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["here"]


def test_the_catalogue_is_in_the_package() -> None:
    folder = Path(sys.modules["lutbench.data.catalogue"].__file__ or "").parent
    tables = tomllib.loads((folder / "sets.toml").read_text(encoding="utf-8"))
    assert list(tables.pop("robustness")) == list(MEASURED_ON)
    assert list(tables) == [*TRAINED_ON, *SEARCHED]
