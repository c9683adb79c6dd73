"""Results of an analysis for every image and block, and the metrics computed from them.

Quantities that are means over images are stored per image, so that two encoders can be compared image by image. A spectrum belongs to all
images together: its singular values are stored, with its statistics on resamples of the images.
"""
# ruff: noqa: PD011 - values are a quantity's, not a table's

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from analysis.uniform import uniform_distance
from lutbench.arrays import Layout
from lutbench.evaluate.image_names import ARRAY, KEY, check_same_images, labelled_names, packed_names, unpacked_names
from lutbench.evaluate.outcomes import Measurement, PerImage, fingerprint_text
from lutbench.evaluate.ranks import PowerLawRange, statistics
from lutbench.evaluate.statistics import (
    BASIC,
    BOOTSTRAP,
    Comparison,
    compare_resampled,
    mean_intervals,
    paired,
    percentiles,
    resampled,
    wilson,
)

if TYPE_CHECKING:
    import pandas as pd

ATTENTION = ("distance", "entropy", "nmi", "to_class", "to_itself")
"""Per block: mean distance in pixels, entropy in nats, normalised mutual information, shares for the class token and for itself."""
FEATURES = ("similarity", "token_rank")
"""Per block, and of the output after the last norm."""
VIEWS = ("alignment", "uniformity")
"""Of the output, for images of which there is a second view."""
TOKENS = ("pooled", "tokens")
"""Matrices of features: a row an image, the mean over its patches; and a row a patch."""
ABOUT = ("images", "count", "grid", "patch_size", "fitted")
"""What is kept of the images and the encoder, beside what was measured."""
POOLED = ("pooled", "class")
"""Features that neighbours are found by: the mean over patches, and the class token."""


class Quantity(NamedTuple):
    """One number of an analysis."""

    metric: str
    unit: str
    values: NDArray[np.float64]
    """(n,) Values whose mean it is, one for every image; (1,) the value of a statistic of a spectrum."""
    drawn: NDArray[np.float64] | None = None
    """(R,) Values of a statistic on resamples."""

    @property
    def right(self) -> bool:
        """Whether its values are 1 where an image is right and 0 where it is not."""
        return self.unit == "%"

    @property
    def value(self) -> float:
        """The mean over images, in percent where they are right or not; or the statistic."""
        return float(self.values.mean()) * (100 if self.right else 1)


@dataclass(frozen=True)
class BlockOutcomes(PerImage):
    """What an analysis found of an encoder of L blocks, D wide, on n images; what was not measured is not in it."""

    RESULT: ClassVar[tuple[str, ...]] = ("attention distance, share of uniform", "NMI")
    layout: ClassVar[Layout] = {
        "images": (("U",), 0), "count": (("i8",), 0), "grid": (("i8",), 0), "patch_size": (("i8",), 0), "fitted": (("i8",), 1),
        **dict.fromkeys((*ATTENTION, *FEATURES), (("f4",), 2)), "amplitude": (("f4",), 3), **dict.fromkeys(VIEWS, (("f4",), 1)),
        **dict.fromkeys((f"right_{pool}" for pool in POOLED), (("b1",), 2)),
        **dict.fromkeys((f"spectrum_{rows}" for rows in TOKENS), (("f8",), 2)), "resampled": (("f8",), 3),
        KEY: ARRAY,
    }  # fmt: skip
    images: str
    """sha256 over the images' names: outcomes are paired only if it is equal."""
    count: int
    """How many images were analysed."""
    grid: int
    """Patches on a side."""
    patch_size: int
    """Side of a patch in pixels."""
    fitted: PowerLawRange
    """Ranks that the power law is fitted to."""
    measured: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By name: :data:`ATTENTION` (n, L), mean over heads; :data:`FEATURES` (n, L + 1); ``amplitude`` (n, L, F), of frequencies from the
    lowest but zero to the highest, relative to zero's; :data:`VIEWS` (m,); ``right_pooled`` and ``right_class`` (n, L + 1), whether neighbours
    vote for the label; ``spectrum_pooled`` and ``spectrum_tokens`` (L + 1, D), singular values; ``resampled`` (2, 4, R), of the output
    statistics of both spectra on resamples."""
    names: tuple[str, ...] = ()
    """The images' names; empty in records of before they were kept."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""
        about = {name: np.array(getattr(self, name)) for name in ABOUT}
        return {**about, **self.measured, **packed_names(self.names)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "BlockOutcomes":
        """Return the outcomes that :meth:`arrays` gave; raises as :meth:`PerImage.from_arrays` does."""
        measured = {name: array for name, array in arrays.items() if name not in (*ABOUT, KEY)}
        if not all(np.isfinite(array).all() for array in measured.values()) or len(arrays["fitted"]) != 2:
            raise ValueError("a value that is not finite, or a range without two ends")
        count, grid, patch_size = (int(arrays[name]) for name in ("count", "grid", "patch_size"))
        fitted = PowerLawRange(*(int(rank) for rank in arrays["fitted"]))
        images = fingerprint_text(arrays["images"])
        names = unpacked_names(arrays, count, images)
        made = cls(images, count, grid, patch_size, fitted, measured, names)
        made._check()
        return made

    def _check(self) -> None:
        """Raises ValueError if nothing was measured of a block, or lengths differ."""
        sizes: dict[str, set[int]] = {}

        def note(axes: Sequence[str], *names: str) -> None:
            for array in (self.measured[name] for name in names if name in self.measured):
                for axis, size in zip(axes, array.shape, strict=True):
                    sizes.setdefault(axis, set()).add(size - 1 if axis == "blocks" and names != ATTENTION else size)

        note(("images", "blocks"), *ATTENTION)
        note(("images", "blocks"), *FEATURES, *(f"right_{pool}" for pool in POOLED))
        note(("images", "own", "frequencies"), "amplitude")
        note(("viewed",), *VIEWS)
        note(("blocks", "width"), *(f"spectrum_{rows}" for rows in TOKENS))
        note(("kinds", "statistics", "resamples"), "resampled")
        own = sizes.pop("own", set())
        sizes["blocks"] = sizes.get("blocks", set()) | own
        spectra = {f"spectrum_{rows}" in self.measured for rows in TOKENS} | {"resampled" in self.measured}
        if (
            not sizes["blocks"]
            or any(len(of) > 1 or 0 in of for of in sizes.values())
            or min(self.count, self.grid - 1, self.patch_size) < 1
            or sizes.get("images", {self.count}) != {self.count}
        ):
            raise ValueError(f"arrays whose lengths do not match: {sizes}")
        if len(spectra) > 1 or sizes.get("kinds", {2}) != {2} or sizes.get("statistics", {4}) != {4}:
            raise ValueError("one of the two spectra, or their resamples, missing")
        if True in spectra and not all((self.measured[f"spectrum_{rows}"][:, 0] > 0).all() for rows in TOKENS):
            raise ValueError("a spectrum of zeros")
        if True in spectra and not 0 < self.fitted.first < self.fitted.last <= max(sizes["width"]):
            raise ValueError(f"a power law fitted to ranks {self.fitted.first} to {self.fitted.last}")

    def measurements(self) -> list[Measurement]:
        """Return all numbers, each with its 95 % interval over images."""
        found = list(self.quantities())
        means = [one for one in found if one.drawn is None and not one.right]
        ends: dict[str, Sequence[float]] = {}
        for n in dict.fromkeys(len(one.values) for one in means):  # one bootstrap for all quantities of the same images
            of = [one for one in means if len(one.values) == n]
            intervals = mean_intervals(np.stack([one.values for one in of], 1))
            ends |= {one.metric: pair for one, pair in zip(of, intervals.T.tolist(), strict=True)}
        made = []
        for one in found:
            if one.right:
                n, interval = len(one.values), "Wilson"
                low, high = (100 * end for end in wilson(int(one.values.sum()), n))
            elif one.drawn is not None:
                n, interval = self.count, BASIC
                low, high = percentiles(2 * one.value - one.drawn).tolist()
            else:
                n, interval = len(one.values), BOOTSTRAP
                low, high = ends[one.metric]
            text = {"metric": one.metric, "unit": one.unit, "interval": interval}
            made.append(Measurement(value=one.value, n=n, low=low, high=high, **text))
        if self.has("right_pooled"):
            made.append(Measurement(metric="best depth", value=float(self.best_depth + 1), unit=""))
        return made

    def printed(self) -> list[str]:
        """Return the metrics that tables print: those of :data:`PRINTED`, or without any those of :data:`PRINTED_ELSE`."""
        found = [one.metric for one in self.quantities()]
        return [metric for metric in found if metric in PRINTED] or [
            metric for metric in found if metric in PRINTED_ELSE
        ]

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare means over images and statistics of spectra by a bootstrap over images, neighbours by what is right on each image.

        Differences are in the metric's unit, those of neighbours between shares.
        """
        check_same_images([*first, *second])
        sides = [[q for one in side for q in one.quantities() if q.metric == metric] for side in (first, second)]
        if not all(len(found) == len(side) for found, side in zip(sides, (first, second), strict=True)):
            raise ValueError(f"there is no {metric}")
        values = [np.stack([q.values for q in side]) for side in sides]
        if sides[0][0].right:
            return paired(*(of.astype(bool) for of in values))
        if sides[0][0].drawn is None:
            one, other = (of[..., None] for of in values)
            return resampled(one, other, lambda sums: sums[:, 0] / values[0].shape[1])
        drawn = np.stack([np.subtract(one.drawn, other.drawn) for one, other in zip(*sides, strict=True)])
        by_seed = (values[0] - values[1])[:, 0]
        return compare_resampled(first[0].count, by_seed.tolist(), 2 * by_seed.mean() - drawn.mean(0))

    def frame(self) -> "pd.DataFrame":
        """Return a row per image: ``image``, and under its metric every quantity that is a mean over all images.

        Whether neighbours were right is 1 or 0. Statistics of spectra, and what was measured of some images only, are not in it.
        """
        import pandas as pd

        means = {one.metric: one.values for one in self.quantities() if one.drawn is None}
        columns = {metric: values for metric, values in means.items() if len(values) == self.count}
        return pd.DataFrame({"image": labelled_names(self.names, self.count), **columns})

    def has(self, name: str) -> bool:
        """Return whether something was measured, by its name in :attr:`measured`."""
        return name in self.measured

    @property
    def blocks(self) -> int:
        """How many blocks the encoder has."""
        name, array = next((name, array) for name, array in self.measured.items() if name not in (*VIEWS, "resampled"))
        axis = 0 if name.startswith("spectrum") else 1
        return int(array.shape[axis]) - (name not in (*ATTENTION, "amplitude"))

    @property
    def best_depth(self) -> int:
        """The block, from 0, in which neighbours by the mean over patches are right most often; L for the output."""
        return int(self.measured["right_pooled"].mean(0).argmax())

    def quantities(self) -> Iterator[Quantity]:
        """Yield all numbers but the best depth."""
        third = max(1, self.blocks // 3)
        if self.has("distance"):
            distance = self._over_blocks("distance")
            yield Quantity("attention distance", "px", distance)
            yield Quantity("attention distance, first third", "px", self._over_blocks("distance", slice(third)))
            yield Quantity("attention distance, last third", "px", self._over_blocks("distance", slice(-third, None)))
            of_uniform = distance / uniform_distance(self.grid, self.patch_size)
            yield Quantity("attention distance, share of uniform", "", of_uniform)
            yield Quantity("attention entropy", "nats", self._over_blocks("entropy"))
            yield Quantity("NMI", "", self._over_blocks("nmi"))
            yield Quantity("NMI, last third", "", self._over_blocks("nmi", slice(-third, None)))
            if self.has("to_class"):
                yield Quantity("attention to the class token", "", self._over_blocks("to_class"))
            yield Quantity("attention to itself", "", self._over_blocks("to_itself"))
        for rows, drawn in zip(TOKENS, self.measured["resampled"], strict=True) if self.has("resampled") else ():
            for (name, statistic), of in zip(statistics(self.fitted).items(), drawn, strict=True):
                output = self.measured[f"spectrum_{rows}"][-1:]
                yield Quantity(f"{name}, {rows}", "", statistic(output), of)
        if self.has("token_rank"):
            yield Quantity("token rank in an image", "", self._over_blocks("token_rank", slice(-1, None)))
        if self.has("amplitude"):
            highest = self.measured["amplitude"][:, -1, -1].astype(np.float64)
            yield Quantity("highest frequency, last block", "", highest)
        if self.has("right_pooled"):
            right = self.measured["right_pooled"]
            for name, depth in (("best depth", self.best_depth), ("output", self.blocks)):
                yield Quantity(f"k-NN top-1, {name}", "%", right[:, depth].astype(np.float64))
        if self.has("similarity"):
            yield Quantity("token similarity", "", self._over_blocks("similarity", slice(-1, None)))
        for name in VIEWS:
            if self.has(name):
                yield Quantity(name, "", self.measured[name].astype(np.float64))

    def _over_blocks(self, name: str, blocks: slice = slice(None)) -> NDArray[np.float64]:
        """Return the mean (n,) over some blocks."""
        mean: NDArray[np.float64] = self.measured[name][:, blocks].astype(np.float64).mean(1)
        return mean


PRINTED = (
    "attention distance, first third", "attention distance, last third", "attention distance", "attention distance, share of uniform",
    "NMI", "effective rank, pooled", "effective rank, tokens", "alpha, pooled", "k-NN top-1, best depth",
)  # fmt: skip
"""What tables print of each encoder; the rest is in analysis.csv."""

PRINTED_ELSE = ("highest frequency, last block", "token similarity", "alignment", "uniformity")
"""What they print where frequencies or similarity alone were measured."""
