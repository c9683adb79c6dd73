"""Outcomes of a retrieval for every query, and its metrics: means over queries of scores between 0 and 1."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lutbench.arrays import Layout
from lutbench.evaluate.image_names import ARRAY, KEY, check_same_images, labelled_names, packed_names, unpacked_names
from lutbench.evaluate.outcomes import Measurement, PerImage, fingerprint_text, names_fingerprint
from lutbench.evaluate.statistics import QUERIES, Comparison, bootstrap, percentiles, resampled
from lutbench.files import check_plain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class QueryScores(PerImage):
    """How every query of a retrieval did, in the set's order: its average precision, whether one of its class was found, ..."""

    layout: ClassVar[Layout] = {
        "scores": (("f8",), 2), "metrics": (("U",), 1), "shown": (("i8",), 0), "images": (("U",), 0), KEY: ARRAY,
    }  # fmt: skip
    scores: NDArray[np.float64]
    """(q, m) Between 0 and 1; NaN where a query has nothing to find, and does not count."""
    metrics: tuple[str, ...]
    """Their names."""
    shown: int
    """How many of them, from the first, tables print."""
    images: str
    """sha256 over the queries' names, see :func:`names_fingerprint`: scores are paired only if it is equal."""
    names: tuple[str, ...] = ()
    """The queries' names."""

    @classmethod
    def of(cls, scores: NDArray[np.float64], metrics: Sequence[str], shown: int, names: Iterable[str]) -> "QueryScores":
        """Return the scores (q, m) of the queries ``names`` by ``metrics``, of which tables print the first ``shown``.

        Raises:
            ValueError: if numbers differ, a score is not between 0 and 1, or a metric has no score at all.
        """
        queries = tuple(names)
        made = cls(scores, tuple(metrics), shown, names_fingerprint(queries), queries)
        if len(queries) != len(scores):
            raise ValueError(f"{len(scores)} rows of scores for {len(queries)} queries")
        made._check()
        return made

    def _check(self) -> None:
        known = ~np.isnan(self.scores)
        if self.scores.ndim != 2 or self.scores.shape[1] != len(self.metrics) or not known.any(0).all():
            raise ValueError(
                f"scores of shape {self.scores.shape} for {len(self.metrics)} metrics, or a metric without any score"
            )
        if ((self.scores[known] < 0) | (self.scores[known] > 1)).any() or not 0 < self.shown <= len(self.metrics):
            raise ValueError("a score that is not between 0 and 1, or more metrics shown than there are")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("a metric that is named twice")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""
        return {
            "scores": self.scores, "metrics": np.array(self.metrics), "shown": np.array(self.shown),
            "images": np.array(self.images), **packed_names(self.names),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "QueryScores":
        """Return the outcomes that :meth:`arrays` gave; raises as :meth:`PerImage.from_arrays` does."""
        metrics, images = tuple(arrays["metrics"].tolist()), fingerprint_text(arrays["images"])
        check_plain(list(metrics), "metrics")
        names = unpacked_names(arrays, len(arrays["scores"]), images)
        made = cls(arrays["scores"], metrics, int(arrays["shown"]), images, names)
        made._check()
        return made

    def measurements(self) -> list[Measurement]:
        """Return the mean over queries of every score, in percent, with its 95 % interval over resamples of the queries."""
        low, high = 100 * percentiles(bootstrap(self._counted(), _means))
        values, counts = 100 * np.nanmean(self.scores, 0), (~np.isnan(self.scores)).sum(0)
        made = []
        for place, (metric, n) in enumerate(zip(self.metrics, counts.tolist(), strict=True)):
            ends: dict[str, Any] = (
                {"low": float(low[place]), "high": float(high[place]), "interval": QUERIES} if n > 1 else {}
            )
            made.append(Measurement(metric=metric, value=float(values[place]), n=n, **ends))
        return made

    def printed(self) -> list[str]:
        """Return the metrics that tables print."""
        return list(self.metrics[: self.shown])

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare the means of a score by a bootstrap over queries."""
        check_same_images([*first, *second])
        if any(metric not in one.metrics for one in (*first, *second)):
            raise ValueError(f"methods cannot be compared by {metric}: it was not measured")
        counted = [
            np.stack([one._counted()[:, :, one.metrics.index(metric)] for one in seeds]) for seeds in (first, second)
        ]
        return resampled(counted[0], counted[1], lambda sums: _means(sums[..., None])[..., 0])

    def _counted(self) -> NDArray[np.float64]:
        """(q, 2, m) The score, 0 where there is none, and whether there is one."""
        known = ~np.isnan(self.scores)
        return np.stack([np.where(known, self.scores, 0), known], 1)

    def frame(self) -> "pd.DataFrame":
        """Return a row per query: ``image``, and its scores by metric."""
        import pandas as pd

        columns = {metric: self.scores[:, place] for place, metric in enumerate(self.metrics)}
        return pd.DataFrame({"image": labelled_names(self.names, len(self.scores)), **columns})

    def most_wrong(self, count: int) -> "tuple[str, pd.DataFrame]":
        """Return the queries with the lowest score of the finest kind, an average precision."""
        metric = next((one for one in self.metrics if one.startswith("mAP")), self.metrics[0])
        found = self.frame()[["image", metric]].dropna().nsmallest(count, metric)
        return f"Most wrong: queries with the lowest {metric.removeprefix('m')} (0 to 1).", found.round(3)


def _means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means (..., m) from sums (..., 2, m) of scores and of queries that have one; NaN where none has."""
    total, known = sums[..., 0, :], sums[..., 1, :]
    return np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)
