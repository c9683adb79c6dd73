"""The figure of classes shows what records say, and so many classes as can be read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from downstream.segmentation.report import class_bars, class_figure
from lutbench.evaluate.outcomes import Measurement
from lutbench.provenance import Code, Hardware
from lutbench.record import Record
from lutbench.report.figures import write_figure


def record(ious: dict[str, float], half: float | None = 2.0, seed: int = 0) -> Record:
    """Of a segmentation with these IoUs, each with an interval of ``half`` to either side."""
    mean = Measurement(metric="mIoU", value=float(np.mean(list(ious.values()))))
    ends = [(None, None) if half is None else (value - half, value + half) for value in ious.values()]
    classes = [
        Measurement(metric=f"IoU {name}", value=value, low=low, high=high)
        for (name, value), (low, high) in zip(ious.items(), ends, strict=True)
    ]
    return Record(
        suite="toy",
        stage="downstream",
        task="masks",
        method="mine",
        seed=seed,
        run=f"downstream/masks/mine/seed{seed}",
        identity="a" * 64,
        document={"revision": 1, "recipe": {}},
        recipe={},
        measurements=[mean, Measurement(metric="mAcc", value=50.0), *classes],
        code=Code(version="0"),
        packages={},
        hardware=Hardware(system="", cpu="", cores=1, memory_gib=1, threads=1, processes=1, gpus=[]),
        wall_seconds=1,
        created="",
    )


def many(count: int, lift: float = 0.0) -> dict[str, float]:
    """So many classes with an IoU of 50; in the last ten ``lift`` more, rising."""
    return {f"class {k}": 50 + (lift * (1 + k / count) if k >= count - 10 else 0) for k in range(count)}


def shown(figure: Figure) -> list[str]:
    """The classes, from top to bottom."""
    (axes,) = figure.axes
    assert axes.yaxis_inverted()
    return [label.get_text() for label in axes.get_yticklabels()]


def lengths(figure: Figure) -> dict[str, list[float]]:
    """The bars of every method from top to bottom, by its name in the legend."""
    (axes,) = figure.axes
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    return {str(one.get_label()): [bar.get_width() for bar in one.patches] for one in bars}


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def test_every_class_has_a_bar_for_every_method_the_best_of_the_first_on_top() -> None:
    figure = class_figure(
        "Toys", [("LUT", [record({"sky": 70, "sea": 90, "car": 20})]), ("MAE", [record({"sky": 75, "sea": 60})])]
    )
    assert shown(figure) == ["sea", "sky", "car"]
    assert lengths(figure) == {"LUT: mIoU 60.0 %": [90, 70, 20], "MAE: mIoU 67.5 %": [60, 75]}
    assert title(figure) == "Toys"


def test_the_lines_are_the_records_intervals() -> None:
    (axes,) = class_figure("Toys", [("LUT", [record({"sky": 70, "sea": 90}, half=5)])]).axes
    (bars,) = (container for container in axes.containers if isinstance(container, BarContainer))
    assert bars.errorbar is not None
    (lines,) = bars.errorbar.lines[2]
    ends = [[float(x) for x, _ in segment] for segment in lines.get_segments()]
    assert ends == [pytest.approx([85, 95]), pytest.approx([65, 75])]


def test_several_seeds_show_their_mean_with_students_interval() -> None:
    """80, 82, 84: 82 +- 4.303 * 2 / sqrt(3); a share cannot be above 100 %."""
    records = [record({"sky": 80 + 2 * seed, "sea": 99 + seed / 2}, seed=seed) for seed in range(3)]
    bars = class_bars(records)
    assert bars["sky"] == pytest.approx((82, 77.03, 86.97), abs=0.01)
    assert bars["sea"].high == 100
    assert list(lengths(class_figure("Toys", [("LUT", records)]))) == ["LUT: mIoU 90.8 %, 3 seeds"]


def test_a_class_without_an_interval_has_a_bar_all_the_same() -> None:
    assert class_bars([record({"sky": 70}, half=None)]) == {"sky": (70, 70, 70)}


def test_of_many_classes_those_are_shown_in_which_the_first_two_methods_differ_most_and_the_title_says_so() -> None:
    figure = class_figure("Toys", [("LUT", [record(many(150, 10))]), ("MAE", [record(many(150))])])
    assert len(shown(figure)) == 30
    assert shown(figure)[:10] == [f"class {k}" for k in range(149, 139, -1)]
    assert title(figure) == "Toys\nThe 30 of 150 classes in which LUT and MAE differ most"
    alone = class_figure("Toys", [("LUT", [record(many(31, 10))])])
    assert "The 30 of 31 classes with the highest IoU" in title(alone)
    assert title(class_figure("Toys", [("LUT", [record(many(30))])])) == "Toys"


def test_the_same_records_make_the_same_file_and_a_note_is_in_it(tmp_path: Path) -> None:
    methods = [("LUT", [record({"sky": 70, "sea": 90})])]
    for name in ("one.png", "two.png", "noted.png"):
        write_figure(tmp_path / name, class_figure("Toys", methods, "No evidence." if name == "noted.png" else ""))
    one, two, noted = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png", "noted.png"))
    assert one == two != noted
    assert "No evidence." in class_figure("Toys", methods, "No evidence.").get_supxlabel()


def test_a_figure_has_the_bytes_that_matplotlib_itself_would_write(tmp_path: Path) -> None:
    """Which draws it twice."""
    figures = [class_figure("Toys", [("LUT", [record(many(9, 10))]), ("MAE", [record(many(9))])]) for _ in range(2)]
    write_figure(tmp_path / "own.png", figures[0])
    figures[1].savefig(tmp_path / "matplotlib.png", metadata={"Software": None})
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "matplotlib.png").read_bytes()
