"""Per-image results on a robustness dataset: predictions, and the images that are wrong in most conditions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lutbench.evaluate.image_names import labelled_names
from robustness.kept_conditions import ConditionOutcomes


def image_rows(conditions: Sequence[ConditionOutcomes]) -> pd.DataFrame:
    """Return a row per condition, protocol and image: ``image``, ``condition``, ``preprocessing``, ``protocol``, ``label``,
    ``prediction``, ``rank`` (-1 where an image has no answer and does not count), whether it is ``right``, and ``score`` if kept.
    """
    frames = []
    for one in conditions:
        names = labelled_names(one.names, len(one.label))
        for index, protocol in enumerate(one.protocols):
            about = {"condition": one.condition, "preprocessing": one.preprocessing, "protocol": protocol}
            found = {"label": one.label, "prediction": one.prediction[index], "rank": one.rank[index]}
            scored = {"score": one.score} if len(one.score) and index == 0 else {}
            frames.append(pd.DataFrame({"image": names, **about, **found, "right": one.rank[index] == 0, **scored}))
    rows = pd.concat(frames, ignore_index=True)
    return rows.astype(dict.fromkeys(("condition", "preprocessing", "protocol"), "category"))


def most_wrong(conditions: Sequence[ConditionOutcomes], count: int) -> tuple[str, pd.DataFrame]:
    """Return the images that are wrong in most conditions, and what that means; of a detection those taken for known the most.

    Of several preprocessings and protocols the first, which tables print.
    """
    first = [one for one in conditions if one.preprocessing == conditions[0].preprocessing]
    of_nothing = [one for one in first if len(one.score) and (one.rank[0] < 0).all()]
    if of_nothing:
        scored = pd.concat(
            pd.DataFrame({"image": labelled_names(o.names, len(o.score)), "score": o.score}) for o in of_nothing
        )
        return (
            "Most wrong: out-of-distribution images with the highest confidence (softmax of the predicted class).",
            scored.nlargest(count, "score").round(3),
        )
    counted = [
        pd.DataFrame(
            {
                "images": one.images,
                "image": labelled_names(one.names, len(one.label)),
                "wrong in": (one.rank[0] > 0).astype(np.int64),
                "of": (one.rank[0] >= 0).astype(np.int64),
                "mean rank": one.rank[0].clip(0).astype(np.int64),
            }
        )
        for one in first
    ]
    sums = pd.concat(counted).groupby(["images", "image"], sort=False, as_index=False).sum()
    sums = sums[sums["wrong in"] > 0].assign(**{"mean rank": lambda rows: (rows["mean rank"] / rows["of"]).round(1)})
    return (
        "Most wrong: images that are wrong in most of their conditions; among equals, those with the highest mean rank of the "
        "correct class over these conditions.",
        sums.sort_values(["wrong in", "mean rank"], ascending=False, kind="stable").head(count).drop(columns="images"),
    )
