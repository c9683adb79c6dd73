"""Folders of every shifted set mean the classes that their authors say, in the order of a classifier's outputs."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from lutbench.errors import UserError
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.conditions import open_condition
from robustness.labels import (
    Answer,
    LabelSpace,
    answers_of,
    imagenet_1k,
    imagenet_subset,
    known_folders,
    label_space,
    real_labels,
    val_numbers,
)
from robustness.listing import DatasetState, look_for
from robustness.preprocessing import view

SAMPLE = os.environ.get("LUTBENCH_IMAGENET_SAMPLE", "")
"""A folder with one image of every ImageNet class, ``val/WNID/WNID_name.jpg``, 224 pixels."""

NOWHERE = Path("nowhere.json")

WORDS = ImageNetInfo().label_descriptions()


def answers(labels: str, *folders: str, space: LabelSpace | None = None, file: Path = NOWHERE) -> tuple[Answer, ...]:
    return answers_of(labels, folders, space or imagenet_1k(), file)


def words(answer: Answer) -> list[str]:
    """The first word or phrase for each class."""
    return [WORDS[place].split(", ")[0] for place in answer]


def test_there_are_a_thousand_classes_in_the_order_of_their_wordnet_identifiers() -> None:
    names = imagenet_1k().names
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert (names[0], names[207], names[999]) == ("n01440764", "n02099601", "n15075141")


@pytest.mark.parametrize(
    ("name", "first", "last", "sha256"),
    [
        ("imagenet-a", (6, 11, 13, 15, 17), (981, 984, 986, 987, 988), "973e8c3e530b"),
        ("imagenet-r", (1, 2, 4, 6, 8), (967, 980, 981, 983, 988), "a1d9a9ace309"),
        ("imagenet-o", (1, 51, 70), (987, 988, 996), "38e74578856f"),
    ],
)
def test_subsets_are_200_ascending_classes(name: str, first: Answer, last: Answer, sha256: str) -> None:
    found = imagenet_subset(name)
    assert len(found) == len(set(found)) == 200
    assert list(found) == sorted(found)
    assert found[: len(first)] == first
    assert found[-len(last) :] == last
    assert hashlib.sha256(",".join(map(str, found)).encode()).hexdigest().startswith(sha256)


def test_imagenet_a_and_r_share_86_classes() -> None:
    assert len(set(imagenet_subset("imagenet-a")) & set(imagenet_subset("imagenet-r"))) == 86


def test_wordnet_identifiers_are_read_by_name_and_not_by_their_place_in_the_listing() -> None:
    assert answers("imagenet-1k", "n15075141", "n01443537") == ((999,), (1,))
    assert known_folders("imagenet-1k", "imagenet-a")[:2] == ("n01498041", "n01531178")  # type: ignore[index]
    with pytest.raises(UserError, match=r"1 of 2 class folders .* n01443538.*Did you mean 'n01443537'"):
        answers("imagenet-1k", "n15075141", "n01443538")


def test_numbers_are_read_by_value_and_not_sorted_as_text() -> None:
    as_listed = sorted(str(place) for place in range(1000))
    assert as_listed[:4] == ["0", "1", "10", "100"]
    assert answers("imagenet-1k-numbers", *as_listed) == tuple((int(name),) for name in as_listed)
    for wrong in ("1000", "-1", "one"):
        with pytest.raises(UserError, match="0 to 999"):
            answers("imagenet-1k-numbers", "7", wrong)


def test_objectnets_113_classes_are_125_of_imagenets() -> None:
    folders = known_folders("objectnet")
    assert folders is not None
    found = answers("objectnet", *folders)
    assert len(folders) == 113
    assert len({place for answer in found for place in answer}) == sum(map(len, found)) == 125
    assert words(answers("objectnet", "chair")[0]) == ["barber chair", "folding chair", "rocking chair"]
    assert words(answers("objectnet", "dress")[0]) == ["gown"]
    assert words(answers("objectnet", "t-shirt")[0]) == ["jersey"]


def test_imagenet_9_has_370_of_imagenets_classes_each_once() -> None:
    folders = known_folders("imagenet-9")
    assert folders is not None
    found = dict(zip(folders, answers("imagenet-9", *folders), strict=True))
    assert [len(answer) for answer in found.values()] == [116, 52, 42, 36, 35, 27, 26, 20, 16]
    assert len({place for answer in found.values() for place in answer}) == 370
    assert "Chihuahua" in words(found["00_dog"])
    assert "timber wolf" in words(found["04_carnivore"])
    assert "tench" in words(found["08_fish"])


def test_si_scores_61_classes_are_those_that_their_names_say() -> None:
    folders = known_folders("si-score")
    assert folders is not None
    assert len(folders) == len(set(folders)) == 61
    for folder, (place,) in zip(folders, answers("si-score", *folders), strict=True):
        assert folder.removesuffix("s") in WORDS[place].lower()


def test_real_has_50000_lists_of_which_3163_are_empty() -> None:
    real = real_labels()
    assert len(real) == 50_000
    assert sum(not answer for answer in real) == 3163
    assert max(map(len, real)) > 1


def test_a_file_of_real_labels_is_read_and_one_of_another_length_or_class_refused(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    lists: list[list[int]] = [[]] * 49_999 + [[7, 8]]
    file.write_text(json.dumps(lists))
    assert real_labels(file)[-1] == (7, 8)
    for wrong in (lists[1:], [*lists[1:], [1000]], [*lists[1:], 7], {}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="expected 50,000 lists"):
            real_labels(file)
    with pytest.raises(UserError, match="does not exist"):
        real_labels(tmp_path / "missing.json")


def test_reals_labels_follow_the_number_in_a_file_name_and_not_its_place() -> None:
    names = ["n01440764/ILSVRC2012_val_00000293.JPEG", "n15075141/ILSVRC2012_val_00000001.JPEG"]
    assert val_numbers(names).tolist() == [292, 0]
    for wrong in ("n01440764/0.jpg", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"):
        with pytest.raises(UserError, match="has another name"):
            val_numbers([wrong])


def test_a_classifier_of_its_own_classes_is_asked_by_their_names() -> None:
    space = LabelSpace(("grass", "cat", "moon"))
    assert answers("classifier", "cat", "grass", space=space) == ((1,), (0,))
    with pytest.raises(UserError, match=r"the classifier's classes: cats\. Did you mean 'cat'"):
        answers("classifier", "cats", space=space)


@pytest.mark.parametrize("labels", ["imagenet-1k", "imagenet-1k-numbers", "imagenet-9", "objectnet", "si-score"])
def test_imagenets_labels_are_refused_for_a_classifier_of_other_classes(labels: str) -> None:
    with pytest.raises(UserError, match="has 3 other classes: grass, cat, moon"):
        answers(labels, "0", space=LabelSpace(("grass", "cat", "moon")))


def test_a_classifier_whose_classes_are_imagenets_in_words_is_one_of_imagenets() -> None:
    assert label_space(WORDS).imagenet
    assert label_space(imagenet_1k().names).imagenet
    assert not label_space(WORDS[::-1]).imagenet
    assert label_space(["a", "b"]).names == ("a", "b")


def test_a_map_gives_folders_classes_by_name_or_number_one_or_several(tmp_path: Path) -> None:
    space = LabelSpace(("grass", "cat", "moon"))
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"lawns": "grass", "night": ["moon", 1], "sky": 2, "other": []}))
    assert answers("map.json", "sky", "night", "lawns", "other", space=space, file=file) == ((2,), (1, 2), (0,), ())
    with pytest.raises(UserError, match="sea"):
        answers("map.json", "sea", space=space, file=file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": "gras"}, r"no class 'gras'\. Did you mean 'grass'"),
        ({"a": 3}, "no class 3"),
        ({"a": -1}, "no class -1"),
        ({"a": True}, "no class True"),
        ({"a": "twice"}, "no class 'twice'"),
        (["grass"], "with a class or a list of classes for each folder"),
    ],
)
def test_a_map_that_names_no_class_is_refused(tmp_path: Path, content: object, told: str) -> None:
    space = LabelSpace(("grass", "twice", "twice"))
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        answers("map.json", "a", space=space, file=tmp_path / "map.json")


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the file .*map\.json does not exist"):
        answers("map.json", "a", file=tmp_path / "map.json")


@pytest.mark.skipif(not SAMPLE, reason="LUTBENCH_IMAGENET_SAMPLE names no folder with an image of every class")
def test_every_image_of_an_imagenet_sample_has_the_class_that_its_file_is_named_after() -> None:
    recipe = RobustnessDatasetRecipe(
        parts={"": "val"}, labels="imagenet-1k", images=1000, classes=1000, preprocessing=["whole"]
    )
    assert look_for(recipe, Path(SAMPLE)).state is DatasetState.WHOLE
    cell = open_condition(recipe, Path(SAMPLE), "", imagenet_1k())
    [protocol] = cell.protocols
    assert protocol.name == "1000 classes"
    seen = set()
    for index in range(len(cell.images)):
        folder, file = cell.images.image_name(index).split("/")
        [place] = protocol.answers[protocol.answer[index]]
        wnid, name = Path(file).stem.split("_", 1)
        assert wnid == folder == imagenet_1k().names[place]
        assert _plain(name) in map(_plain, WORDS[place].split(", "))
        assert view(cell.images.image(index), recipe, "whole", 224, 1.0, IMAGENETS).shape == (3, 224, 224)
        seen.add(place)
    assert seen == set(range(1000))


@pytest.mark.skipif(not SAMPLE, reason="LUTBENCH_IMAGENET_SAMPLE names no folder with an image of every class")
def test_real_images_in_numbered_folders_keep_the_class_that_their_file_is_named_after(tmp_path: Path) -> None:
    for place, wnid in enumerate(imagenet_1k().names):
        (tmp_path / str(place)).symlink_to((Path(SAMPLE) / "val" / wnid).absolute())
    recipe = RobustnessDatasetRecipe(labels="imagenet-1k-numbers", images=1000, classes=1000)
    cell = open_condition(recipe, tmp_path, "", imagenet_1k())
    [protocol] = cell.protocols
    for index in range(len(cell.images)):
        [place] = protocol.answers[protocol.answer[index]]
        assert Path(cell.images.image_name(index)).name.split("_")[0] == imagenet_1k().names[place]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
