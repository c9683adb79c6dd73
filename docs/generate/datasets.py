"""The page of every known dataset, from the catalogue."""

import inspect
from itertools import groupby

from lutbench.data.catalogue import CATALOGUE, KnownDataset
from lutbench.recipes.robustness import RobustnessDatasetRecipe


def dataset_pages() -> dict[str, str]:
    """Return the page of the known datasets, from the catalogue: those to train on and to search in, then the shifted test sets."""
    known = list(CATALOGUE.values())
    shifted = [one for one in known if isinstance(one.recipe, RobustnessDatasetRecipe)]
    parts = [
        "# Every dataset",
        "Generated from `lutbench/data/sets.toml`, which the code reads; `lutbench data list NAME` prints the same, and whether a "
        "dataset is on your disk. DIR is the folder of the dataset below the data root. To use one in a suite file, write "
        '`known = "NAME"` in its `[data.NAME]` table ({doc}`/own-data`), or list the name in the `sets` of a `[robustness.NAME]` '
        "({doc}`/tasks`).",
        "## Datasets for training and evaluation",
        *(_dataset(one) for one in known if one not in shifted),
        "## Shifted test sets",
        "How each protocol is computed: {doc}`/protocols`.",
        *(_dataset(one) for one in shifted),
    ]
    return {"datasets.md": "\n\n".join(parts) + "\n"}


def _dataset(known: KnownDataset) -> str:
    """Return the section of one dataset: a list of its properties, without those that are not known."""
    counts = ", ".join(f"{count:,} {split}" for split, count in known.images.items())
    metric, scoring = known.recipe.printed_metric, ""
    if isinstance(known.recipe, RobustnessDatasetRecipe):
        counts = known.recipe.image_counts
        scoring = f"logits: {', '.join(known.recipe.logits)}; preprocessing: {', '.join(known.recipe.preprocessing)}"
    rows = {
        "Source": known.paper,
        "Images": counts,
        "Classes": f"{known.classes:,}" if known.classes else "",
        "Splits and metric": known.split,
        "Printed metric": metric,
        "Protocol": known.protocol,
        "Scored with": scoring,
        "Files": f"`{known.layout}`",
        "Size on disk": f"{known.gigabytes:g} GB" if known.gigabytes else "",
        "Licence": known.terms,
    }
    listed = "\n".join(f"- **{name}**: {_plain(' '.join(text.split()))}" for name, text in rows.items() if text)
    steps = "\n\n".join(
        f"```sh\n{inspect.cleandoc(text)}\n```" if command else _plain(text)  # as lutbench.data.describe prints them
        for command, lines in groupby(known.get.strip("\n").splitlines(), lambda line: line.startswith(" "))
        for text in ["\n".join(lines)]
        if text.strip()
    )
    return f"### {known.name}\n\n{known.title}\n\n{listed}\n\n**How to get it**\n\n{steps}"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: an asterisk, as in ``*.jpg``, begins no emphasis; code keeps its own."""
    return "`".join(part if place % 2 else part.replace("*", r"\*") for place, part in enumerate(text.split("`")))
