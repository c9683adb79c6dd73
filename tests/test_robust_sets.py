"""Every published layout is read, counted before anything runs, and seen by its own preprocessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lutbench.data.catalogue import MEASURED_ON
from lutbench.data.tensors import to_tensor
from lutbench.errors import UserError
from lutbench.evaluate.transform import Transform, eval_transform
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import ClassificationRecipe, EncoderSource
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import EXTRA_CORRUPTIONS, ClassifierSource, RobustnessDatasetRecipe, RobustnessRecipe
from robustness.conditions import check_set, open_condition
from robustness.corruptions import EXTRA
from robustness.datasets import make
from robustness.labels import LabelSpace, imagenet_1k, imagenet_subset, known_folders
from robustness.listing import DatasetState, condition_folders, look_for
from robustness.metrics import ALEXNET_ERROR
from robustness.occlusion import occlusions
from robustness.preprocessing import all_views, preprocessing_label, view

PIXEL = Image.new("RGB", (1, 1))

OWN = LabelSpace(("grass", "cat", "moon"))


def eval_transform_of(recipe: ClassificationRecipe) -> Transform:
    return eval_transform(recipe.side, recipe.eval_crop)


def write(folder: Path, classes: Sequence[str], images: int = 1, stem: str = "") -> None:
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            PIXEL.save(folder / name / f"{stem}{number}.png")


def recipe_of(**settings: Any) -> RobustnessDatasetRecipe:
    return read_recipe(RobustnessDatasetRecipe, {"label": "toy", "path": "toy", **settings}, "shifted.toy")


def small(name: str, images: Any) -> RobustnessDatasetRecipe:
    """A published set with other numbers of images."""
    return MEASURED_ON[name].recipe.model_copy(update={"images": images})


# --- What is there


def test_published_sets_have_the_counts_that_were_published() -> None:
    known = {name: published for name, published in MEASURED_ON.items() if not published.built}
    per_cell = {name: published.recipe.images for name, published in known.items()}
    assert per_cell == {
        "imagenet-val": 50_000,
        "imagenet-v2": 10_000,
        "imagenet-a": 7_500,
        "imagenet-r": 30_000,
        "imagenet-o": {"unknown": 2_000, "known": 10_000},
        "imagenet-c": 50_000,
        "imagenet-sketch": 50_889,
        "objectnet": 18_574,
        "si-score-size": 92_884,
        "si-score-location": 541_548,
        "si-score-rotation": 39_540,
        "imagenet-9": 4_050,
        "stylized-imagenet": 50_000,
        "imagenet-occlusion": 50_000,
    }
    cells = condition_folders(MEASURED_ON["imagenet-c"].recipe, Path("nowhere"))
    assert len(cells) * 50_000 == 3_750_000
    assert len(condition_folders(MEASURED_ON["imagenet-v2"].recipe, Path("nowhere"))) == 3
    for name, published in known.items():
        folders = known_folders(published.recipe.labels, published.recipe.subset)
        assert folders is not None
        assert published.recipe.classes == len(folders), name


@pytest.mark.parametrize("name", MEASURED_ON)
def test_a_set_that_is_absent_is_not_run_and_that_is_no_error(tmp_path: Path, name: str) -> None:
    found = look_for(MEASURED_ON[name].recipe, tmp_path)
    assert found.state is DatasetState.ABSENT
    assert str(found.state) == "not run"
    assert "the folder does not exist" in found.problems[0]
    with pytest.raises(UserError, match=f"not run at .*{tmp_path.name}"):
        found.require()


def test_an_empty_folder_is_a_set_that_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "imagenet-v2").mkdir()
    found = look_for(MEASURED_ON["imagenet-v2"].recipe, tmp_path)
    assert found.state is DatasetState.ABSENT
    assert found.problems == ("all of it is missing (matched-frequency, threshold0.7, top-images).",)


def test_a_set_with_all_that_is_expected_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-a", known_folders("imagenet-1k", "imagenet-a") or ())
    found = look_for(small("imagenet-a", 200), tmp_path)
    assert (found.state, found.problems, found.images) == (DatasetState.WHOLE, (), {"": 200})
    found.require()


def test_missing_classes_are_named_and_missing_images_counted(tmp_path: Path) -> None:
    wnids = known_folders("imagenet-1k", "imagenet-r") or ()
    write(tmp_path / "imagenet-r", [name for name in wnids if name not in ("n01443537", "n02099601")])
    found = look_for(MEASURED_ON["imagenet-r"].recipe, tmp_path)
    assert found.state is DatasetState.INCOMPLETE
    assert found.problems == (
        "expected 200 classes, found 198; missing: n01443537, n02099601.",
        "expected 30,000 images, found 198 (-29,802).",
    )


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-v2" / "imagenetv2-top-images-format-val", known_folders("imagenet-1k-numbers") or ())
    found = look_for(small("imagenet-v2", 1000), tmp_path)
    assert found.state is DatasetState.INCOMPLETE
    assert found.problems == ("missing: matched-frequency, threshold0.7.",)


def test_missing_corruptions_and_severities_are_named_once_each(tmp_path: Path) -> None:
    for name in ALEXNET_ERROR:
        for severity in range(1, 6):
            if name != "fog" and (name, severity) not in {("snow", 2), ("snow", 5)}:
                write(tmp_path / "toy" / name / str(severity), OWN.names)
    recipe = recipe_of(kind="corruptions", corruptions=list(ALEXNET_ERROR), images=3, classes=3)
    found = look_for(recipe, tmp_path)
    assert found.problems == ("missing: snow at 2, 5, fog.",)
    assert len(found.images) == 75 - 7


def test_extra_corruptions_may_be_absent_but_not_in_part(tmp_path: Path) -> None:
    recipe = recipe_of(kind="corruptions", severities=[1, 2])
    for name in ("fog", "snow"):
        write(tmp_path / "toy" / name / "1", OWN.names)
        write(tmp_path / "toy" / name / "2", OWN.names)
    assert look_for(recipe, tmp_path).state is DatasetState.WHOLE
    assert list(condition_folders(recipe, tmp_path)) == ["fog/1", "fog/2", "snow/1", "snow/2"]
    write(tmp_path / "toy" / "spatter" / "1", OWN.names)
    found = look_for(recipe, tmp_path)
    assert found.problems == ("missing: speckle_noise, gaussian_blur, spatter at 2, saturate.",)
    assert set(EXTRA_CORRUPTIONS) == set(EXTRA)


def test_corruptions_of_other_images_are_found_before_they_run(tmp_path: Path) -> None:
    for cell, stem in (("fog/1", ""), ("fog/2", ""), ("snow/1", "other"), ("snow/2", "")):
        write(tmp_path / "toy" / cell, OWN.names, stem=stem)
    [problem] = look_for(recipe_of(kind="corruptions", severities=[1, 2]), tmp_path).problems
    assert problem.startswith("snow/1: expected the same images as in fog/1")


def test_an_empty_class_folder_is_a_problem_of_its_cell_and_not_a_crash(tmp_path: Path) -> None:
    write(tmp_path / "toy", OWN.names)
    (tmp_path / "toy" / "empty").mkdir()
    found = look_for(recipe_of(), tmp_path)
    assert found.state is DatasetState.INCOMPLETE
    assert "no images in class folder empty" in found.problems[0]


def test_the_fingerprint_changes_with_the_content_and_with_the_place_only_if_cells_do(tmp_path: Path) -> None:
    for root in ("one", "two"):
        write(tmp_path / root / "toy", OWN.names)
    one, two = (look_for(recipe_of(), tmp_path / root).fingerprint for root in ("one", "two"))
    assert one == two
    write(tmp_path / "two" / "toy", ["cat"], stem="more")
    assert look_for(recipe_of(), tmp_path / "two").fingerprint != one


# --- What is asked


def test_numbered_folders_are_asked_by_their_number_though_they_are_listed_as_text(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-v2" / "imagenetv2-top-images-format-val", known_folders("imagenet-1k-numbers") or ())
    cell = open_condition(MEASURED_ON["imagenet-v2"].recipe, tmp_path, "top-images", imagenet_1k())
    [protocol] = cell.protocols
    assert cell.images.image_name(2) == "10/0.png"
    assert protocol.answers[protocol.answer[2]] == (10,)
    for index in range(1000):
        assert protocol.answers[protocol.answer[index]] == (int(cell.images.image_name(index).split("/")[0]),)


def test_imagenet_a_is_asked_over_200_logits_first_and_over_1000_as_well(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-a", known_folders("imagenet-1k", "imagenet-a") or ())
    cell = open_condition(MEASURED_ON["imagenet-a"].recipe, tmp_path, "", imagenet_1k())
    first, second = cell.protocols
    assert (first.name, first.columns) == ("200 classes", imagenet_subset("imagenet-a"))
    assert (second.name, second.columns) == ("1000 classes", None)
    assert [first.answers[place] for place in first.answer] == [(place,) for place in imagenet_subset("imagenet-a")]


def test_imagenet_o_is_asked_with_validation_images_of_its_200_classes(tmp_path: Path) -> None:
    wnids = known_folders("imagenet-1k", "imagenet-o") or ()
    write(tmp_path / "imagenet-1k" / "val", imagenet_1k().names)
    write(tmp_path / "imagenet-o", wnids, images=2)
    recipe = small("imagenet-o", {"unknown": 400, "known": 200})
    found = look_for(recipe, tmp_path)
    assert (found.state, found.images) == (DatasetState.WHOLE, {"known": 200, "unknown": 400})
    known, unknown = (open_condition(recipe, tmp_path, cell, imagenet_1k()) for cell in ("known", "unknown"))
    for cell in (known, unknown):
        assert [(p.name, p.columns) for p in cell.protocols] == [("200 classes", imagenet_subset("imagenet-o"))]
    assert known.images.classes == wnids
    assert [known.protocols[0].answers[place] for place in known.protocols[0].answer] == [
        (place,) for place in imagenet_subset("imagenet-o")
    ]
    assert known.images.image_name(1) == f"{wnids[1]}/0.png"
    assert {unknown.protocols[0].answers[place] for place in unknown.protocols[0].answer} == {()}


def test_unknown_images_need_no_class_folders_and_known_ones_may_be_of_the_classifiers_own_classes(
    tmp_path: Path,
) -> None:
    write(tmp_path / "val", OWN.names, images=2)
    (tmp_path / "toy").mkdir()
    for number in range(4):
        PIXEL.save(tmp_path / "toy" / f"{number}.png")
    recipe = recipe_of(kind="detection", known="val")
    found = look_for(recipe, tmp_path)
    assert (found.state, found.images) == (DatasetState.WHOLE, {"known": 6, "unknown": 4})
    check_set(recipe, tmp_path, found, OWN, 1)
    unknown = open_condition(recipe, tmp_path, "unknown", OWN)
    assert [(p.name, p.answers) for p in unknown.protocols] == [("3 classes", ((),))]
    assert unknown.labels.tolist() == [0] * 4


def test_only_objectnets_classes_that_imagenet_has_are_read(tmp_path: Path) -> None:
    folders = known_folders("objectnet") or ()
    write(tmp_path / "objectnet", [*folders, "air_freshener", "wrench"])
    recipe = small("objectnet", 113)
    found = look_for(recipe, tmp_path)
    assert (found.state, found.images) == (DatasetState.WHOLE, {"": 113})
    cell = open_condition(recipe, tmp_path, "", imagenet_1k())
    assert [p.name for p in cell.protocols] == ["1000 classes", "113 classes"]
    assert cell.protocols[1].columns is not None
    assert len(cell.protocols[1].columns) == 125
    chair = cell.images.classes.index("chair")
    [index] = np.flatnonzero(cell.labels == chair)
    assert cell.images.image_name(int(index)) == "chair/0.png"
    assert cell.protocols[0].answers[chair] == (423, 559, 765)


def test_the_parts_of_imagenet_9_lie_in_val_folders_and_have_a_gap(tmp_path: Path) -> None:
    recipe = small("imagenet-9", 9)
    for part in recipe.parts:
        write(tmp_path / "imagenet-9" / part / "val", known_folders("imagenet-9") or ())
    assert look_for(recipe, tmp_path).state is DatasetState.WHOLE
    cell = open_condition(recipe, tmp_path, "mixed_rand", imagenet_1k())
    assert [len(answer) for answer in cell.protocols[0].answers] == [116, 52, 42, 36, 35, 27, 26, 20, 16]
    assert recipe.gap == ["mixed_same", "mixed_rand"]


def test_real_is_asked_of_validation_images_by_their_numbers(tmp_path: Path) -> None:
    for wnid, number in (("n01440764", 293), ("n02110063", 2), ("n04033901", 1)):
        (tmp_path / "imagenet-1k" / "val" / wnid).mkdir(parents=True)
        PIXEL.save(tmp_path / "imagenet-1k" / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG")
    cell = open_condition(MEASURED_ON["imagenet-val"].recipe, tmp_path, "", imagenet_1k())
    own, real = cell.protocols
    assert (own.name, real.name) == ("1000 classes", "ReaL")
    assert [own.answers[place] for place in own.answer] == [(0,), (249,), (749,)]
    assert [real.answers[place] for place in real.answer] == [(0,), (970, 795), ()]
    with pytest.raises(UserError, match="need a classifier of ImageNet-1k"):
        open_condition(recipe_of(path="imagenet-1k/val", real="timm", labels="m.json"), _mapped(tmp_path), "", OWN)


def _mapped(root: Path) -> Path:
    (root / "m.json").write_text('{"n01440764": 0, "n02110063": 1, "n04033901": 2}')
    return root


def test_a_users_set_with_a_map_needs_no_code(tmp_path: Path) -> None:
    write(tmp_path / "toy", ["lawn", "sky"], images=2)
    (tmp_path / "map.json").write_text('{"lawn": "grass", "sky": ["moon", "cat"]}')
    recipe = recipe_of(labels="map.json", logits=["all", "subset"], images=4)
    found = look_for(recipe, tmp_path)
    check_set(recipe, tmp_path, found, OWN, 1)
    cell = open_condition(recipe, tmp_path, "", OWN)
    assert [(p.name, p.columns) for p in cell.protocols] == [("3 classes", None), ("2 classes", (0, 1, 2))]
    assert [cell.protocols[0].answers[place] for place in cell.labels] == [(0,), (0,), (1, 2), (1, 2)]
    write(tmp_path / "toy", ["sea"])
    with pytest.raises(UserError, match=r"1 of 3 class folders .*sea"):
        check_set(recipe, tmp_path, look_for(recipe, tmp_path), OWN, 1)


def test_one_protocol_is_asked_once_if_a_set_has_all_classes(tmp_path: Path) -> None:
    write(tmp_path / "toy", OWN.names)
    cell = open_condition(recipe_of(logits=["subset", "all"]), tmp_path, "", OWN)
    assert [p.name for p in cell.protocols] == ["3 classes"]


def test_an_occluded_set_has_a_change_for_every_cell(tmp_path: Path) -> None:
    write(tmp_path / "toy", OWN.names)
    recipe = recipe_of(kind="occlusion", drops=[0, 5], drop_grid=2, shuffles=[4])
    found = look_for(recipe, tmp_path)
    assert found.images == {"drop 0/10": 3, "drop 5/10": 3, "shuffle 4x4": 3}
    assert len(open_condition(recipe, tmp_path, "drop 5/10", OWN).images) == 3
    dropped = occlusions(recipe)["drop 5/10"](torch.full((3, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(3))
    assert (dropped == 0).float().mean() == 0.5


# --- What is seen


def test_images_stored_at_224_pixels_are_not_resized() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    stored = Image.fromarray(noise)
    for name in ("imagenet-c", "imagenet-9", "stylized-imagenet"):
        recipe = MEASURED_ON[name].recipe
        [pixels] = all_views(stored, recipe, 224, 0.5, IMAGENETS)
        assert torch.equal(pixels.permute(2, 0, 1), to_tensor(stored)), name
        assert pixels.dtype == torch.uint8
        assert preprocessing_label(recipe.preprocessing[0]) == ""


def test_a_stored_size_that_is_not_the_classifiers_is_refused_before_it_runs(tmp_path: Path) -> None:
    write(tmp_path / "toy", OWN.names)
    larger = Image.new("RGB", (256, 256))
    crop, whole = recipe_of(preprocessing=["crop"]), recipe_of(preprocessing=["whole"])
    assert all_views(larger, crop, 224, 1.0, IMAGENETS).shape == (1, 224, 224, 3)
    with pytest.raises(UserError, match="expected images of 224 x 224 pixels"):
        all_views(larger, whole, 224, 1.0, IMAGENETS)
    for recipe in (crop, whole):
        found = look_for(recipe, tmp_path)
        check_set(recipe, tmp_path, found, OWN, 1)
        with pytest.raises(UserError, match="found one of 1 x 1"):
            check_set(recipe, tmp_path, found, OWN, 224)


def test_bicubic_is_what_fine_tuning_evaluates_on_and_bilinear_is_not() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    tuned = ClassificationRecipe(
        encoder=EncoderSource(architecture=EncoderRecipe(image_size=32), kind="scratch"), data=DataRecipe()
    )
    recipe = recipe_of(preprocessing=["bicubic", "bilinear"])
    bicubic, bilinear = all_views(image, recipe, 32, tuned.eval_crop, IMAGENETS).permute(0, 3, 1, 2)
    assert torch.equal(bicubic, eval_transform_of(tuned)(image))
    assert not torch.equal(bicubic, bilinear)
    assert (bicubic.float() - bilinear.float()).abs().mean() < 30


def test_the_sets_own_crop_goes_before_the_runs() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    without, own = recipe_of(), recipe_of(eval_crop=0.5)
    assert torch.equal(
        view(image, own, "bicubic", 32, 1.0, IMAGENETS), view(image, without, "bicubic", 32, 0.5, IMAGENETS)
    )
    assert torch.equal(view(image, own, "bicubic", 32, 1.0, IMAGENETS), to_tensor(image)[:, 16:48, 16:48])


def test_objectnets_red_border_is_cut_off_before_anything_else() -> None:
    grey = Image.new("RGB", (104, 84), (90, 90, 90))
    framed = Image.new("RGB", (104, 84), (255, 0, 0))
    framed.paste(grey.crop((0, 0, 100, 80)), (2, 2))
    recipe = MEASURED_ON["objectnet"].recipe
    [pixels] = all_views(framed, recipe, 40, 224 / 256, IMAGENETS)
    assert pixels.unique().tolist() == [90]
    left = framed.copy()
    left.putpixel((2 + 10, 2), (0, 0, 255))  # short side to 40, so nothing is lost above and below
    assert not torch.equal(all_views(left, recipe, 40, 224 / 256, IMAGENETS)[0], pixels)


def test_a_border_that_leaves_nothing_of_an_image_is_refused_with_its_size() -> None:
    image = Image.new("RGB", (104, 84))
    for border in (35, 42, 8192):
        with pytest.raises(
            UserError, match=rf"border = {border} pixels .* fewer than 16 pixels of an image of 104 x 84"
        ):
            all_views(image, recipe_of(border=border), 40, 224 / 256, IMAGENETS)
    assert all_views(image, recipe_of(border=34), 40, 224 / 256, IMAGENETS).shape == (1, 40, 40, 3)


@pytest.mark.parametrize("path", ["../outside", "inside/../../outside", ".", "", "{absolute}"])
def test_a_corrupted_copy_is_written_below_the_data_root_alone(tmp_path: Path, path: str) -> None:
    root = tmp_path / "data"
    write(root / "clean", ["cat"])
    settings = {"source": "corrupted", "copy_of": "clean", "kind": "corruptions", "copy_side": 32}
    recipe = recipe_of(**settings, path=path.format(absolute=tmp_path / "outside"))
    with pytest.raises(UserError, match=r"is not a valid path below .*data"):
        make(recipe, root)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    assert [file.name for file in root.iterdir()] == ["clean"]


@pytest.mark.parametrize("path", ["mine/train/z", "mine/train/cat/z"])
def test_a_corrupted_copy_is_not_written_among_the_images_of_a_dataset(tmp_path: Path, path: str) -> None:
    write(tmp_path / "mine/train", ["cat", "dog"])
    before = sorted(tmp_path.rglob("*"))
    recipe = recipe_of(source="corrupted", copy_of="mine/train", kind="corruptions", copy_side=32, path=path)
    with pytest.raises(UserError, match="would write corrupted images into"):
        make(recipe, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_both_interpolations_in_use_are_named_where_images_are_resized() -> None:
    for name in ("imagenet-val", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-o", "imagenet-sketch"):
        assert [preprocessing_label(how) for how in MEASURED_ON[name].recipe.preprocessing] == ["bicubic", "bilinear"]


# --- Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"labels": "imagenet"}, "expected one of classifier, imagenet-1k"),
        ({"subset": "imagenet-a"}, "it needs labels = 'imagenet-1k'"),
        ({"kind": "occlusion", "real": "timm"}, 'real: only for kind = "classes"'),
        ({"gap": ["a", "b"]}, "expected two of the parts"),
        ({"kind": "corruptions", "parts": {"a": "a"}}, "Remove parts"),
        ({"kind": "detection"}, 'known: required for kind = "detection"'),
        ({"known": "val"}, "not allowed otherwise"),
        ({"kind": "corruptions", "preprocessing": ["bicubic", "bilinear"]}, "expected one preprocessing"),
        ({"alexnet": True}, 'only for kind = "corruptions"'),
        ({"preprocessing": ["crop", "crop"]}, "appears twice"),
        ({"preprocesing": ["crop"]}, "Did you mean 'preprocessing'"),
        ({"drops": [10]}, "less than or equal to 9"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        recipe_of(**settings)


def test_a_runs_identity_holds_the_settings_that_affect_its_kind_and_no_paths() -> None:
    def fields(**settings: Any) -> dict[str, Any]:
        shifted = recipe_of(**settings)
        source = ClassifierSource(kind="timm", model="vit_tiny_patch16_224")
        return RobustnessRecipe(classifier=source, set=shifted).affecting_results()

    assert fields() == fields(path="elsewhere", label="Toy", images=7, classes=2, drops=[1], severities=[2])
    assert fields() != fields(labels="imagenet-1k")
    assert fields(kind="corruptions") != fields(kind="corruptions", severities=[2])
    assert fields(kind="occlusion") != fields(kind="occlusion", drops=[1])


@pytest.mark.parametrize(
    "source",
    [{"kind": "timm"}, {"kind": "run", "model": "a"}, {"kind": "checkpoint", "model": "a"}, {"kind": "scratch"}],
)
def test_a_classifier_has_a_run_a_model_of_timm_or_a_checkpoint(source: dict[str, str]) -> None:
    with pytest.raises(UserError, match="classifier"):
        read_recipe(ClassifierSource, source, "classifier")
