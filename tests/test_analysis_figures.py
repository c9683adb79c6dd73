"""Figures of analyses show what records say: invented outcomes and arrays, written and read as real ones are."""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysed import IMAGES, arrays, outcomes, photographs, recorded, strip
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2lab

from analysis.block_outcomes import BlockOutcomes
from analysis.depth_curves import depth_curves, spectrum_curve
from analysis.depth_figures import drawings
from analysis.pictures import (
    PictureRow,
    attention_picture,
    component_picture,
    picture_strip,
    principal_colours,
    reconstruction_picture,
    run_pictures,
)
from analysis.uniform import uniform_distance, uniform_entropy
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.report.figures import GREYS, PALETTE
from lutbench.report.sections import View

SUITE = """
title = "Toys"
about = "for tests"
kind = "pipeline"
compare = [["ours", "theirs"]]
[data.toys]
path = "toys"
[encoder.toy]
label = "ViT-toy/12"
image_size = 48
patch_size = 12
width = 64
depth = 4
heads = 2
[encoder.deep]
label = "ViT-deep/16"
image_size = 96
patch_size = 16
width = 64
depth = 12
heads = 2
[method.ours]
checkpoint = "ours.pth"
encoder = "toy"
label = "LUT"
[method.theirs]
checkpoint = "theirs.pth"
encoder = "toy"
label = "MAE"
[method.large]
checkpoint = "large.pth"
encoder = "deep"
label = "LUT"
[classifier.supervised]
model = "deit_base_patch16_224"
[analysis.looks]
title = "Insides"
data = "toys"
methods = ["ours", "theirs"]
"""
BOTH = 'analysis.looks.methods=["ours", "theirs", "large"]'
ROWS = {"ours": 0.05, "theirs": 0.6, "untrained": 0.01}
"""The rows of one architecture, and how much each selects."""
tiny = functools.partial(outcomes, 4, 4, 12)


def suite(folder: Path, *changes: str) -> LoadedSuite:
    (folder / "toy.toml").write_text(SUITE)
    return load_suite(str(folder / "toy.toml"), changes)


def keep(
    folder: Path, loaded: LoadedSuite, method: str, selects: float, *, seed: int = 0, without: Sequence[str] = ()
) -> BlockOutcomes:
    """Keep a record of a tiny encoder; ``without`` are outcomes and arrays that it lacks."""
    whole = tiny(selects=selects, seed=seed)
    found = tiny(selects=selects, seed=seed, without=without)
    pixels = photographs(48)
    kept = arrays(whole, 2, 2, pixels, selects=selects, seed=seed)
    recorded(folder, loaded, method, found, {name: of for name, of in kept.items() if name not in without}, pixels, seed=seed)  # fmt: skip
    return found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of every row; tests only read it."""
    folder = tmp_path_factory.mktemp("full")
    loaded = suite(folder)
    for method, selects in ROWS.items():
        keep(folder, loaded, method, selects)
    return folder


def drawn(folder: Path, *changes: str) -> dict[str, tuple[str, Figure]]:
    """All figures by the name of their file, with their titles."""
    view = View.read(suite(folder, *changes), folder)
    return {one.name: (one.title, one.draw()) for one in drawings(view, view.of_kind("analysis"))}


@pytest.fixture(scope="module")
def figures(full: Path) -> dict[str, tuple[str, Figure]]:
    return drawn(full)


def panel(figure: Figure, title: str) -> Any:
    (found,) = [axes for axes in figure.axes if title in axes.get_title()]
    return found


def lines(axes: Any) -> dict[str, Any]:
    return {f"{line.get_label()} {line.get_linestyle()}": line for line in axes.get_lines()}


def legend(figure: Figure) -> list[list[str]]:
    """The labels below each group."""
    return [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]


def written(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


# --- Colours


def test_a_method_has_one_colour_in_all_figures_of_a_suite_and_untrained_encoders_are_grey(tmp_path: Path) -> None:
    view = View.read(suite(tmp_path, BOTH), tmp_path)
    colours = [view.colour(method) for method in ("ours", "theirs", "large", "supervised")]
    assert colours == list(PALETTE[:4])
    assert [view.colour(f"untrained-{name}") for name in ("toy", "deep")] == list(GREYS[:2])


SEEN_WITHOUT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What is seen of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)."""


@pytest.mark.parametrize("kind", SEEN_WITHOUT)
def test_colour_blind_readers_tell_all_colours_of_the_palette_apart(kind: str) -> None:
    assert len(set(PALETTE)) >= 10
    rgb = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SEEN_WITHOUT[kind]).T).clip(0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(lab), 1)]
    assert apart.min() > 12, "2.3 is just noticeable"


# --- Curves


def test_a_curve_is_the_mean_over_images_within_its_interval_and_spans_what_the_mean_of_many_would() -> None:
    found = tiny(selects=0.5)
    curves = depth_curves([found])
    distances = found.measured["distance"].astype(float)
    mean, low, high = curves["distance"]
    assert np.allclose(mean, distances.mean(0))
    error = distances.std(0) / IMAGES**0.5
    assert np.allclose(high - low, 2 * 1.96 * error, rtol=0.15)
    assert curves["radial"].shape == (3, 2)
    assert np.allclose(curves["radial"][:, -1], curves["highest"][:, -1]), (
        "the last block's highest frequency is in both"
    )
    assert curves["right_pooled"].shape == (3, 5)
    assert np.allclose(curves["right_pooled"][0], 100 * found.measured["right_pooled"].mean(0))


def test_of_several_seeds_a_curve_has_students_interval_which_leaves_what_is_possible_to_none() -> None:
    seeds = [tiny(selects=selects, seed=seed) for seed, selects in enumerate((0.0, 0.6))]
    curves = depth_curves(seeds)
    by_seed = np.array([one.measured["nmi"].mean(0, dtype=float) for one in seeds])
    half = 12.706 * np.abs(by_seed[0] - by_seed[1]) / 2
    assert np.allclose(curves["nmi"][0], by_seed.mean(0))
    assert np.allclose(curves["nmi"][1:], [np.zeros(4), np.minimum(1, by_seed.mean(0) + half)], atol=1e-4)
    assert curves["highest"][1].min() < -5, "a logarithm may have any value"
    ends = curves["rank_pooled"][1:]
    assert (ends[0] < ends[1]).all()


def test_the_interval_of_a_rank_is_that_of_the_table() -> None:
    found = tiny(selects=0.5)
    curves = depth_curves([found])
    for rows in ("pooled", "tokens"):
        measured = found.measurement(f"effective rank, {rows}")
        assert measured is not None
        assert curves[f"rank_{rows}"][:, -1] == pytest.approx([measured.value, measured.low, measured.high])
        assert (curves[f"rank_{rows}"][1:, :-1] == curves[f"rank_{rows}"][0, :-1]).all(), (
            "of blocks there are no resamples"
        )


def test_a_spectrum_is_drawn_as_far_as_it_is_no_rounding() -> None:
    found = tiny(selects=0.5)
    share, curve = spectrum_curve([found], "pooled")
    width = found.measured["spectrum_pooled"].shape[1]
    assert len(share) == width - 2, "two values are 1e-11 of the first"
    assert (share[0], curve[0, 0]) == (1 / width, 0)
    assert curve[0, 9] == pytest.approx(-1.5), "a power law with exponent 1.5"
    assert len(spectrum_curve([found], "tokens")[0]) == width


# --- Figures


def test_a_table_has_all_figures_titled_with_the_suite_and_the_table(figures: Mapping[str, tuple[str, Figure]]) -> None:
    names = ("attention", "features", "spectra", "cka", "maps-1", "maps-2", "components", "reconstructions")
    assert list(figures) == [f"looks-{name}.png" for name in names]
    for title, figure in figures.values():
        assert title.startswith("Toys, Insides: ")
        assert figure.get_suptitle() == title
        assert "no evidence about the method" in figure.get_supxlabel()


def test_attention_is_drawn_with_what_uniform_attention_would_give_and_the_sentence(
    figures: Mapping[str, tuple[str, Figure]], full: Path
) -> None:
    _, figure = figures["looks-attention.png"]
    assert (
        "Attention that reaches as far as uniform attention, with NMI near 0, selects nothing."
        in figure.get_supxlabel()
    )
    assert legend(figure) == [["LUT", "MAE", "Untrained", "uniform attention"]]
    expected = {"distance": uniform_distance(4, 12), "NMI": 0, "entropy": uniform_entropy(4), "to itself": 1 / 17}
    for title, value in expected.items():
        axes = panel(figure, title)
        uniform = lines(axes)["uniform attention --"]
        assert list(uniform.get_ydata()) == [value, value]
        assert uniform.get_color() == "black"
        assert axes.get_xlabel() == "block"
    distance = panel(figure, "distance")
    assert distance.get_ylabel() == "px"
    (shares,) = distance.child_axes
    assert shares.get_ylabel() == "share of uniform"
    written(figure)
    assert shares.get_ylim()[1] == pytest.approx(distance.get_ylim()[1] / uniform_distance(4, 12))
    for method, label in (("ours", "LUT"), ("theirs", "MAE")):
        record = View.read(suite(full), full).records[f"analysis/looks/{method}/seed0"]
        line = lines(distance)[f"{label} -"]
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert np.allclose(line.get_ydata(), record.outcomes.measured["distance"].mean(0, dtype=float))
        assert f"{label} :" in lines(panel(figure, "to itself"))
        heads = record.array("heads")[0]
        dots = [dots.get_offsets() for dots in distance.collections if len(dots.get_offsets()) == heads.size]
        assert any(np.allclose(np.asarray(of)[:, 1], heads.ravel()) for of in dots), "a dot for every head"


def test_lines_have_the_colours_of_the_suite(figures: Mapping[str, tuple[str, Figure]]) -> None:
    for name in ("attention", "features", "spectra"):
        for axes in figures[f"looks-{name}.png"][1].axes:
            for label, colour in (("LUT", PALETTE[0]), ("MAE", PALETTE[1]), ("Untrained", GREYS[0])):
                found = [line for line in axes.get_lines() if line.get_label() == label]
                assert found
                assert {to_hex(line.get_color()) for line in found} == {colour}


def test_features_against_depth_end_with_the_output(figures: Mapping[str, tuple[str, Figure]]) -> None:
    _, figure = figures["looks-features.png"]
    assert len(figure.axes) == 6
    for title in ("similarity", "rank of the tokens", "k-NN", "effective rank"):
        axes = panel(figure, title)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "out"]
        assert len(lines(axes)["MAE -"].get_xdata()) == 5
    assert {"MAE -", "MAE :"} <= set(lines(panel(figure, "k-NN")))
    bars = [
        bars.get_segments() for bars in panel(figure, "effective rank").collections if hasattr(bars, "get_segments")
    ]
    assert [[ends[0][0] for ends in of] for of in bars] == [[5.0]] * 6, "an interval of the output, pooled and tokens"
    assert len(lines(panel(figure, "highest"))["MAE -"].get_xdata()) == 4
    assert list(lines(panel(figure, "last block"))["MAE -"].get_xdata()) == [0.25, 0.5], "cycles per patch"


def test_blocks_are_compared_within_encoders_and_between_the_suites_pairs(
    figures: Mapping[str, tuple[str, Figure]],
) -> None:
    _, figure = figures["looks-cka.png"]
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(shown) == ["LUT", "MAE", "Untrained", "LUT and MAE"]
    for title, axes in shown.items():
        (image,) = axes.get_images()
        assert image.get_clim() == (0, 1)
        values = np.asarray(image.get_array())
        assert values.shape == (5, 5)
        assert np.allclose(np.diag(values), 1) == (title != "LUT and MAE")
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "4", "out"]
    assert shown["LUT and MAE"].get_ylabel() == "LUT, block"
    assert shown["LUT and MAE"].get_xlabel() == "MAE, block"


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    loaded = suite(tmp_path)
    assert drawn(tmp_path) == {}
    keep(tmp_path, loaded, "ours", 0.3, without=["distance", "entropy", "nmi", "to_class", "to_itself", "heads", "spectrum_pooled", "spectrum_tokens", "resampled", "amplitude", "grams", "maps", "reconstructions"])  # fmt: skip
    made = drawn(tmp_path)
    assert list(made) == ["looks-features.png", "looks-components.png"]
    _, figure = made["looks-features.png"]
    assert [axes.get_title().split()[0] for axes in figure.axes] == ["similarity", "rank", "k-NN,"]
    assert legend(figure) == [["LUT"]]


def test_encoders_of_different_architectures_stand_below_each_other_each_with_its_own_uniform_attention(
    tmp_path: Path,
) -> None:
    loaded = suite(tmp_path, BOTH)
    for method in ("ours", "theirs", "untrained-toy"):
        keep(tmp_path, loaded, method, 0.4)
    pixels = photographs(96)
    for method in ("large", "untrained-deep"):
        found = outcomes(12, 6, 16)
        recorded(tmp_path, loaded, method, found, arrays(found, 2, 2, pixels), pixels, drawn=[6, 12])
    made = drawn(tmp_path, BOTH)
    _, figure = made["looks-attention.png"]
    assert [part.get_suptitle() for part in figure.subfigs] == [
        "ViT-toy/12: 4 x 4 patches of 12 px",
        "ViT-deep/16: 6 x 6 patches of 16 px",
    ]
    assert legend(figure) == [
        ["LUT", "MAE", "Untrained", "uniform attention"],
        ["LUT", "Untrained", "uniform attention"],
    ]
    small, large = (
        lines(part.axes[0])["uniform attention --"].get_ydata()[0] for part in figure.subfigs
    )  # fmt: skip
    assert (small, large) == (uniform_distance(4, 12), uniform_distance(6, 16))
    ticks = [label.get_text() for label in figure.subfigs[1].axes[0].get_xticklabels()]
    assert ticks == ["2", "4", "6", "8", "10", "12"]
    title, picture = made["looks-maps-2.png"]
    assert title == "Toys, Insides: attention in block 4 or 12"
    labels = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert labels.count("images") == 2, "images of another size are shown apart"
    assert "LUT, ViT-deep/16\nblock 12, marked patch" in labels
    written(picture)


def test_several_seeds_are_one_line_and_pictures_are_of_the_first(tmp_path: Path) -> None:
    several = "seeds=[0, 1, 2]"
    loaded = suite(tmp_path, several)
    for seed in range(3):
        keep(tmp_path, loaded, "ours", 0.2 + 0.1 * seed, seed=seed)
    made = drawn(tmp_path, several)
    _, figure = made["looks-attention.png"]
    assert legend(figure) == [["LUT, 3 seeds", "uniform attention"]]
    assert "The first of several seeds." in made["looks-maps-1.png"][1].get_supxlabel()
    assert "The first of several seeds." not in figure.get_supxlabel()
    values = np.asarray(made["looks-cka.png"][1].axes[0].get_images()[0].get_array())
    assert np.allclose(np.diag(values), 1)


# --- Pictures


def row(label: str, side: int, grid: int, **kept: Any) -> PictureRow:
    extra = {"drawn blocks": [2, 4], "marked": [1, 2], "mask ratios": [0.5, 0.75, 0.9]}
    pixels = photographs(side)
    maps = np.full((2, 8, 2, grid, grid), 1 / grid**2, np.float32)
    return PictureRow(label, strip(pixels), {"maps": maps, **kept}, extra)


def canvas(figure: Figure) -> np.ndarray:
    """What is shown, before it is scaled to the figure."""
    return np.asarray(figure.axes[0].get_images()[0].get_array())


def test_uniform_attention_leaves_an_image_grey_and_attention_to_one_patch_colours_it_red() -> None:
    uniform, selecting = row("Uniform", 48, 4), row("Selecting", 48, 4)
    selecting.arrays["maps"][0, :, 0] = 0.01
    selecting.arrays["maps"][0, :, 0, 3, 1] = 0.85
    shown = canvas(attention_picture("Toys", [uniform, selecting], [0])).astype(int)
    cell = 144 + 4
    flat = shown[cell : cell + 144, 4:148]
    assert (flat.max(2) == flat.min(2)).all(), "no colour anywhere"
    looked = shown[3 * cell : 3 * cell + 144, 4:148]
    red = looked[..., 0] > looked[..., 2]
    assert red[108:144, 36:72].all(), "row 3, column 1 of the grid"
    assert red.sum() == 36 * 36
    labels = [text.get_text() for text in attention_picture("", [selecting], [1]).axes[0].get_yticklabels()]
    assert labels == ["images", "Selecting\nblock 4, class token", "Selecting\nblock 4, marked patch"]


def test_the_marked_patch_has_a_frame_on_the_image_and_on_what_it_looks_at() -> None:
    shown = canvas(attention_picture("Toys", [row("LUT", 48, 4)], [0])).astype(int)
    yellow = (np.abs(shown - [255, 230, 0]) <= 2).all(2)
    places = np.argwhere(yellow[:144, 4:148])
    assert places.min(0) == pytest.approx([36, 72], abs=3)
    assert places.max(0) == pytest.approx([71, 107], abs=3)
    counts = [yellow[line * 148 : line * 148 + 144].sum() for line in range(3)]
    assert counts[0] == counts[2] > 0 == counts[1], "not where the class token looks"


def test_toy_images_are_enlarged_by_whole_pixels_and_every_patch_is_a_square_of_its_colour() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    shown = canvas(component_picture("Toys", [row("LUT", 48, 4, colours=colours)]))
    images, patches = (shown[top : top + 144, 4:148] for top in (0, 148))
    assert (images == np.repeat(np.repeat(photographs(48)[0].transpose(1, 2, 0), 3, 0), 3, 1)).all()
    assert (patches == np.repeat(np.repeat(colours[0], 36, 0), 36, 1)).all()


def test_reconstructions_of_all_encoders_stand_together_for_each_share_that_is_masked() -> None:
    made = np.arange(3, dtype=np.uint8)[:, None, None, None, None] * np.ones((3, 8, 224, 224, 3), np.uint8)
    rows = [row("LUT", 224, 14, reconstructions=40 * made), row("MAE", 224, 14, reconstructions=100 * made)]
    figure = reconstruction_picture("Toys", rows, "No evidence.")
    labels = [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()]
    assert labels == ["images", *(f"{name} {share} % masked" for share in (50, 75, 90) for name in ("LUT", "MAE"))]
    assert [canvas(figure)[line * 148 + 70, 70, 0] for line in range(1, 7)] == [0, 0, 40, 100, 80, 200]
    assert "No evidence." in figure.get_supxlabel()


def test_principal_colours_separate_what_differs_most_whatever_the_basis() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = 0.01 * torch.randn(8, 16, 10, generator=random)
    tokens[:, :8, 3] += 5
    tokens[:4, :, 7] += 2
    made = principal_colours(tokens)
    assert made.shape == (8, 4, 4, 3)
    assert made.dtype == np.uint8
    assert made[:, :2, :, 0].min() > 250, "the upper half has the largest loading, which is positive"
    assert made[:, 2:, :, 0].max() < 5
    assert made[:4, ..., 1].min() > 245
    assert made[4:, ..., 1].max() < 10
    moved = principal_colours(3 * tokens + 7)
    assert np.abs(moved.astype(int) - made).max() <= 1
    flat = principal_colours(torch.ones(8, 16, 10))
    assert len(np.unique(flat)) == 1, "tokens that are all the same have one colour"


def test_a_strip_has_the_images_side_by_side() -> None:
    pixels = photographs(48)
    shown = np.asarray(Image.open(io.BytesIO(picture_strip(torch.from_numpy(pixels)))))
    assert shown.shape == (48, 8 * 48, 3)
    assert (shown[:, 3 * 48 : 4 * 48] == pixels[3].transpose(1, 2, 0)).all()


def test_a_run_leaves_pictures_of_its_own_encoder_and_reconstructions_if_it_has_a_decoder(tmp_path: Path) -> None:
    pixels = photographs(48)
    kept = arrays(tiny(), 2, 2, pixels)
    extra = row("", 48, 4).extra
    run_pictures("LUT", strip(pixels), kept, extra, tmp_path / "with")
    assert {path.name for path in (tmp_path / "with").iterdir()} == {
        "attention.png",
        "components.png",
        "reconstructions.png",
    }
    del kept["reconstructions"]
    run_pictures("LUT", strip(pixels), kept, extra, tmp_path / "without")
    assert {path.name for path in (tmp_path / "without").iterdir()} == {"attention.png", "components.png"}
    for path in (tmp_path / "without").iterdir():
        assert path.read_bytes() == (tmp_path / "with" / path.name).read_bytes(), "the same arrays, the same bytes"
        assert min(Image.open(path).size) > 300


def test_no_label_is_cut_off_at_the_edge_of_a_picture(figures: Mapping[str, tuple[str, Figure]]) -> None:
    for name, (_, figure) in figures.items():
        border = np.asarray(written(figure).convert("L"))
        for edge in (border[:, 0], border[:, -1], border[0], border[-1]):
            assert (edge == 255).all(), name
