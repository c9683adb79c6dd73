"""Galleries of the report: images that one method alone gets right, predictions beside the ground truth; and the charts that were pictures."""

import base64
import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand_made import keep
from PIL import Image
from playwright.sync_api import expect

from downstream.segmentation import predictions
from downstream.segmentation.confusions import Confusions
from downstream.segmentation.predicted_gallery import cut
from lutbench.data.folder import open_folder
from lutbench.evaluate.outcomes import Outcomes
from lutbench.recipes.loading import load_suite
from lutbench.report import alone_right as alone_right_module
from lutbench.report.alone_right import MOST, alone_right, alone_section
from lutbench.report.charts import CategoryPanel, Chart, ChartLine, MapPanel
from lutbench.report.figures import Point, new_figure
from lutbench.report.galleries import AtHand, GallerySection, spread_out
from lutbench.report.html.page import Names, Page, block_of, suite_page
from lutbench.report.html.panel_specs import chart_specs
from lutbench.report.html.rendering import render
from lutbench.report.sections import Drawing, Section, View
from lutbench.report.tables import all_sections

ROOT = Path(__file__).parents[1]

SUITE = """
title = "Toys"
about = "for tests"
kind = "exploration"
seeds = [0, 1]
[data.toys]
path = "toys"
label = "Toys"
[data.streets]
source = "scenes"
path = "streets"
classes = ["sky", "<b>road</b>"]
palette = [[0, 0, 255], [255, 0, 0]]
[encoder.toy]
label = "ViT-toy"
model = "vit_tiny_patch16_224"
image_size = 32
patch_size = 8
width = 32
depth = 4
heads = 2
[method.lut]
checkpoint = "lut.pth"
encoder = "toy"
label = "LUT"
[method.mae]
checkpoint = "mae.pth"
encoder = "toy"
label = "MAE"
[downstream.near]
kind = "knn"
title = "Nearest"
data = "toys"
eval_crop = 0.5
[downstream.masks]
kind = "segmentation"
title = "Streets"
data = "streets"
methods = ["lut", "mae"]
crop = 32
stride = 32
scale = [64, 32]
"""

CLASSES = ("cup", "owl")
EACH = 8
"""Images of a class."""

RIGHT = {"lut": ([0, 1, 2, 9], [0, 1, 9]), "mae": ([1, 10], [1, 10])}
"""The images on which each method is right, by seed: LUT alone on 0 and 9, of which seed 1 does not get 2; MAE alone on 10."""


def write_images(folder: Path) -> None:
    """Grey frames around a centre that is red or green, twice as wide as high: a crop of half the short side shows the centre alone."""
    for label, cls in enumerate(CLASSES):
        for number in range(EACH):
            pixels = np.full((40, 80, 3), 128, np.uint8)
            pixels[10:30, 30:50] = ([255, 0, 0], [0, 160, 0])[label]
            path = folder / "val" / cls / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (folder / "train").mkdir()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two methods; their images below ``data``, and what their segmentations left below ``runs``."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "toy.toml").write_text(SUITE)
    write_images(folder / "data/toys")
    images = open_folder(folder / "data/toys/val", "Toys", "val")
    assert images.labels is not None
    names = [images.image_name(place) for place in range(len(images))]
    loaded = load_suite(str(folder / "toy.toml"))
    for method, seeds in RIGHT.items():
        for seed, right in enumerate(seeds):
            hits = np.isin(np.arange(len(images)), right)
            taken = np.where(hits, images.labels, 1 - images.labels)
            made = Outcomes.of(images.labels, taken, np.where(hits, 0, 1), names)
            keep(folder, loaded.run(f"downstream/near/{method}/seed{seed}"), made, data={"val": images.fingerprint})
            pixels = np.array([[0, 0, 500 + 100 * seed], [0, 1, 12]])
            scenes = Confusions.of([pixels] * 6, ["sky", "<b>road</b>"], [f"{number}.jpg" for number in range(6)])
            record = keep(folder, loaded.run(f"downstream/masks/{method}/seed{seed}"), scenes)
            left = folder / "runs/toy" / record.run / record.identity[:12]
            left.mkdir(parents=True)
            write_predictions(left / "predictions.png", prediction=0 if method == "lut" else 1)
    return folder


class Streets:
    """Six scenes, the last two half as wide, as MMSegmentation's datasets give them."""

    def __init__(self, folder: Path, prediction: int) -> None:
        import torch

        self.folder, self.prediction, self.tensor = folder, prediction, torch.tensor
        for number in range(6):
            Image.new("RGB", self.size(number), (40 * number, 90, 60)).save(folder / f"{number}.png")

    def size(self, number: int) -> tuple[int, int]:
        return (160, 320) if number > 3 else (320, 320)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> dict[str, Any]:
        width, height = self.size(number)
        mask = self.tensor(np.full((1, height, width), 1, np.uint8))
        return {"number": number, "data_samples": SimpleNamespace(gt_sem_seg=SimpleNamespace(data=mask))}

    def get_data_info(self, number: int) -> dict[str, str]:
        return {"img_path": str(self.folder / f"{number}.png")}

    def predict(self, sample: dict[str, Any]) -> Any:
        width, height = self.size(sample["number"])
        return self.tensor(np.full((height, width), self.prediction, np.uint8))


def write_predictions(path: Path, prediction: int) -> None:
    """Write what a run leaves that takes every pixel for one class; the ground truth is class 1."""
    streets = Streets(path.parent, prediction)
    scenes: Any = SimpleNamespace(palette=((0, 0, 255), (255, 0, 0)))
    predictions.picture_predictions(streets.predict, streets, scenes, path)


def view_of(home: Path) -> View:
    return View.read(load_suite(str(home / "toy.toml")), home)


def decoded(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")


def middle(image: Image.Image) -> list[int]:
    """The colour in the middle, to the next multiple of 64: WebP changes it a little."""
    found: Any = image.getpixel((image.width // 2, image.height // 2))
    return [64 * round(one / 64) for one in found]


# --- Right by one method alone


def test_an_image_is_one_methods_alone_if_all_of_its_runs_and_none_of_others_are_right() -> None:
    right = {
        "a": [np.array([1, 1, 1, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)],
        "b": [np.array([0, 0, 1, 1, 0], bool)],
        "c": [np.array([0, 0, 0, 0, 0], bool), np.array([0, 0, 0, 0, 1], bool)],
    }
    assert {method: found.tolist() for method, found in alone_right(right).items()} == {"a": [0], "b": [3], "c": []}


def test_what_is_shown_of_many_is_evenly_spaced_with_first_and_last() -> None:
    assert spread_out(3, 6) == [0, 1, 2]
    assert spread_out(101, 6) == [0, 20, 40, 60, 80, 100]


def near(home: Path, at_hand: AtHand) -> tuple[GallerySection, list[Any]]:
    section = alone_section(view_of(home), at_hand)
    assert section is not None
    (gallery,) = section.galleries
    assert gallery.title == "Nearest"
    return section, list(gallery.rows)


def test_images_that_one_method_alone_gets_right_are_shown_as_the_evaluation_crops_them(home: Path) -> None:
    section, (lut, mae) = near(home, AtHand(home / "data"))
    assert "Not shown" not in section.legend
    assert (lut.label, lut.detail) == ("LUT", "2 of 16 images")
    assert (mae.label, mae.detail) == ("MAE", "1 of 16 images")
    assert [(shot.caption, shot.detail) for shot in lut.shots] == [("cup", "others: owl"), ("owl", "others: cup")]
    for shot, colour in zip(lut.shots, ((255, 0, 0), (0, 160, 0)), strict=True):
        pixels = np.asarray(decoded(shot.picture)).astype(int)
        assert pixels.shape == (32, 32, 3)
        assert np.abs(pixels - colour).mean() < 12, "the crop of half the short side is the centre, without the frame"


def test_of_many_images_as_many_as_fit_are_shown_and_all_counted(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "many")
    loaded = load_suite(str(tmp_path / "many/toy.toml"))
    names = [f"{cls}/{number}.png" for cls in CLASSES for number in range(EACH)]
    labels = np.repeat([0, 1], EACH)
    for method, right in (("lut", True), ("mae", False)):
        made = Outcomes.of(labels, labels if right else 1 - labels, np.full(16, int(not right)), names)
        for seed in (0, 1):
            keep(tmp_path / "many", loaded.run(f"downstream/near/{method}/seed{seed}"), made)
    section, (lut,) = near(tmp_path / "many", AtHand())
    assert lut.detail == f"16 of 16 images, {MOST} of them here"
    assert len(lut.shots) == MOST
    assert section.galleries[0].note == "No such image among 16: MAE."


def test_with_many_methods_and_tasks_each_has_fewer_images_and_the_page_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone_right_module, "PICTURES", 2)
    section, (lut, mae) = near(home, AtHand(home / "data"))
    assert [len(lut.shots), len(mae.shots)] == [1, 1]
    assert lut.detail == "2 of 16 images, 1 of them here"
    assert "No more than 1 for each of the 2 methods and tasks, to keep the page small." in section.legend


def test_without_the_data_images_are_named_and_a_line_says_how_to_see_them(home: Path, tmp_path: Path) -> None:
    for at_hand, why in (
        (AtHand(), "no data root was given"),
        (AtHand(tmp_path), "not found in the data root"),
    ):
        section, (lut, _) = near(home, at_hand)
        assert [(shot.caption, shot.picture) for shot in lut.shots] == [
            ("cup/0.png (cup)", ""),
            ("owl/1.png (owl)", ""),
        ]
        assert f"Not shown: images of Toys ({why})." in section.legend
        assert "--data-root DIR` shows them" in section.legend
    assert list(tmp_path.iterdir()) == [], "nothing is built or downloaded"


def test_images_are_not_shown_that_are_others_than_the_runs_saw(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    Image.new("RGB", (90, 90)).save(tmp_path / "data/toys/val/cup/0.png")
    section, (lut, _) = near(home, AtHand(tmp_path / "data"))
    assert not any(shot.picture for shot in lut.shots)
    assert "the images in the data root differ from those of these runs" in section.legend


def test_a_dataset_that_the_suite_builds_is_not_built_for_a_report(tmp_path: Path) -> None:
    view = View.read(load_suite("tiny"), ROOT / "results/reference")
    section = alone_section(view, AtHand(tmp_path))
    assert section is not None
    assert "(not found in the data root)" in section.legend
    assert list(tmp_path.iterdir()) == []


# --- Predictions beside the ground truth


def test_what_a_run_leaves_is_cut_into_the_scenes_that_it_is_made_of(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.png", prediction=0)
    scenes = cut((tmp_path / "predictions.png").read_bytes(), 6)
    assert [scene[0].size for scene in scenes] == [(160, 160)] * 4 + [(80, 160)] * 2
    for number, (image, truth, prediction) in enumerate(scenes):
        own = np.array([40 * number, 90, 60])
        assert np.asarray(image)[5, 5].tolist() == own.tolist()
        for shown, colour in ((truth, [255, 0, 0]), (prediction, [0, 0, 255])):
            veiled = 0.6 * np.array(colour) + 0.4 * own
            assert np.abs(np.asarray(shown)[80, 40] - veiled).max() <= 1


@pytest.mark.parametrize("size", [(1000, 100), (989, 496), (988, 332), (4, 496)])
def test_a_picture_of_another_size_is_none_of_a_runs(size: tuple[int, int]) -> None:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "PNG")
    with pytest.raises(ValueError, match="expected a picture of 6 scenes"):
        cut(content.getvalue(), 6)


def streets(home: Path, at_hand: AtHand) -> GallerySection:
    from downstream.segmentation.report import galleries

    section = galleries(view_of(home), at_hand)
    assert section is not None
    return section


def test_predictions_of_all_methods_stand_beside_image_and_ground_truth(home: Path) -> None:
    section = streets(home, AtHand(runs=home / "runs"))
    (gallery,) = section.galleries
    assert gallery.title == "Streets"
    assert [row.label for row in gallery.rows] == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert list(gallery.legend) == [("sky", "#0000ff"), ("<b>road</b>", "#ff0000")]
    for row in gallery.rows:
        assert [shot.caption for shot in row.shots] == ["image", "ground truth", "LUT", "MAE"]
        _, truth, lut, mae = (middle(decoded(shot.picture)) for shot in row.shots)
        assert truth == mae != lut, "MAE takes all for road, which it is"
        assert row.shots[2].detail == row.shots[3].detail == "mIoU 48.8 %", "of 500 and 12 pixels of sky"
    assert "Not shown" not in section.legend


def test_a_run_whose_picture_is_not_at_hand_is_named_with_how_to_see_it(home: Path, tmp_path: Path) -> None:
    section = streets(home, AtHand())
    assert list(section.galleries) == []
    assert section.legend.startswith("Not shown: Streets. Records contain no predictions")
    shutil.copytree(home / "runs", tmp_path / "runs")
    next((tmp_path / "runs/toy/downstream/masks/mae/seed0").rglob("*.png")).parent.joinpath(
        "predictions.png"
    ).write_bytes(b"no PNG")
    section = streets(home, AtHand(runs=tmp_path / "runs"))
    assert [shot.caption for shot in section.galleries[0].rows[0].shots] == ["image", "ground truth", "LUT"]
    assert "Not shown: Streets (MAE)." in section.legend
    assert "--runs DIR`" in section.legend


# --- On the page, and in a browser


CHART = Chart(
    [
        CategoryPanel(
            "2 classes",
            "IoU, %",
            ["sky", "</script><b>road</b>"],
            [
                ChartLine("LUT", "#0072b2", {0.0: Point(80, 70, 90), 1.0: Point(30, 30, 30)}, "dots"),
                ChartLine("MAE", "#e69f00", {0.0: Point(60, 50, 70)}, "dots"),
            ],
            95.0,
        ),
        MapPanel("LUT", "block", "block", "linear CKA", ["1", "2", "out"], ["1", "out"], [[1, 0.5, float("nan")], [0.5, 1, 0]]),
    ],
    "Bars are intervals.",
)  # fmt: skip


def test_a_chart_by_category_and_a_map_have_the_values_of_their_panels() -> None:
    categories, field = chart_specs(CHART, {"downstream/masks/lut/seed0": "run-1"})
    assert [(one["s"], one["p"], one["x"], one["t"]) for one in categories["data"]["values"]] == [
        ("LUT", "sky", 80, "80 [70, 90]"),
        ("LUT", "</script><b>road</b>", 30, "30"),
        ("MAE", "sky", 60, "60 [50, 70]"),
    ]
    assert [(one["y"], one["x"], one["v"]) for one in field["data"]["values"]] == [
        ("1", "1", 1), ("1", "2", 0.5), ("out", "1", 0.5), ("out", "2", 1), ("out", "out", 0),
    ]  # fmt: skip
    assert field["layer"][0]["encoding"]["y"]["scale"]["domain"] == ["out", "1"], "the first row is at the bottom"
    assert CHART.colours == {"LUT": "#0072b2", "MAE": "#e69f00"}


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    view = view_of(home)
    return suite_page(view, all_sections(view), home, AtHand(home / "data", home / "runs"))


def test_galleries_are_on_the_page_with_the_mark_of_what_is_no_evidence(page: str) -> None:
    for title in ("Predictions and ground truth", "Images that only one method classifies correctly"):
        assert f'{title} <span class="mark">Exploration</span></h2>' in page
        assert f">{title}</a>" in page, "in the contents"
    assert "&lt;b&gt;road&lt;/b&gt;" in page
    assert "<b>road</b>" not in page.replace("\\u003cb", "")
    assert page.count('src="data:image/webp;base64,') == 4 * 4 + 3


@pytest.fixture(scope="module")
def opened(page: str, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page with the charts, and the page of the suite, in Chromium, with what both logged."""
    folder = tmp_path_factory.mktemp("pages")
    holder = Page("Toys")
    section = Section("Charts", figures=[Drawing("c.png", "By class", lambda: new_figure(1, 1), lambda: CHART)])
    blocks = [block_of(1, section, holder, "", Names())]
    (folder / "charts.html").write_text(
        render("comparison.html.j2", title="Toys", folders=[], kinds=[], blocks=blocks, contents=[], rows=[], specs=holder.specs), encoding="utf-8"
    )  # fmt: skip
    (folder / "toy.html").write_text(page, encoding="utf-8")
    found = SimpleNamespace(logged=[])
    for name in ("charts", "toy"):
        one = browser.new_page(viewport={"width": 1280, "height": 900})
        one.set_default_timeout(120_000)  # of a machine that has much else to do
        one.on("console", lambda message: found.logged.append(f"{message.type}: {message.text}"))
        one.on("pageerror", lambda error: found.logged.append(str(error)))
        one.goto((folder / f"{name}.html").as_uri())
        one.wait_for_selector("html[data-drawn]", state="attached")
        setattr(found, name, one)
    return found


def test_charts_by_category_and_maps_are_drawn_and_have_their_numbers(opened: Any) -> None:
    assert opened.logged == []
    dots, field = (opened.charts.locator(".panel").nth(place) for place in (0, 1))
    assert dots.locator(".mark-symbol path").count() == 3
    assert field.locator(".mark-rect.role-mark path").count() == 5, "no square where there is no number"
    opened.charts.locator(".legend button", has_text="MAE").click()
    expect(dots.locator(".mark-symbol path")).to_have_count(2)
    opened.charts.locator(".numbers summary").click()
    expect(opened.charts.locator(".numbers tbody tr")).to_have_count(8)


def test_a_print_of_the_dark_page_is_black_on_white_and_has_no_controls(opened: Any) -> None:
    opened.toy.locator('[data-theme-choice="dark"]').click()
    opened.toy.emulate_media(media="print", color_scheme="dark")
    assert opened.toy.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.toy.locator(".shot-row img").first.is_visible()
    assert not any(opened.toy.locator(one).first.is_visible() for one in (".tools", ".top", "nav", "td.hide"))
    ink = "() => getComputedStyle(document.querySelector('.shot-row p')).color"
    assert opened.toy.evaluate(ink) == "rgb(29, 28, 26)"
    opened.toy.emulate_media(media="screen", color_scheme="light")
    opened.toy.locator('[data-theme-choice="auto"]').click()


def test_a_number_of_a_gallery_opens_the_runs_behind_it(opened: Any) -> None:
    for text, run in (("2 of 16 images", "downstream/near/mae/seed1"), ("mIoU 48.8 %", "downstream/masks/lut/seed0")):
        opened.toy.locator(".shots a", has_text=text).first.click()
        expect(opened.toy.locator("#drawer")).to_contain_text(f"--again {run}")
        opened.toy.keyboard.press("Escape")


def test_galleries_fit_a_narrow_screen_and_axe_finds_nothing_serious(opened: Any) -> None:
    opened.toy.set_viewport_size({"width": 320, "height": 900})
    assert opened.toy.evaluate("() => document.documentElement.scrollWidth") <= 320
    assert opened.toy.locator(".shot-row img").count() == 19
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is in the extra `dev`")
    for one, theme in ((opened.toy, "light"), (opened.toy, "dark"), (opened.charts, "light"), (opened.charts, "dark")):
        one.locator(f'[data-theme-choice="{theme}"]').click()
        found = axe.Axe().run(one).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
