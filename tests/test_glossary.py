"""The glossary explains every metric that tables print, and the statistics beside them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.block_outcomes import PRINTED, PRINTED_ELSE
from analysis.report import HEADINGS
from downstream.instance_retrieval import PROTOCOLS
from downstream.retrieval import PRECISION
from lutbench.evaluate.calibration import NLL
from lutbench.evaluate.outcomes import PER_CLASS, Outcomes
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.detection import NAMES

ROOT = Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").split("```{glossary}\n")[1]
ENTRIES = dict(re.findall(r"^(\S.*)\n((?:  .+\n)+)", GLOSSARY, re.MULTILINE))
TERMS = [term for line in ENTRIES for term in line.split(", ")]


def metrics() -> Iterator[str]:
    """Yield the names of metrics: those that the code lists, and those of the reference records."""
    yield from (
        *HEADINGS,
        *PRINTED,
        *PRINTED_ELSE,
        *NAMES,
        NLL,
        PER_CLASS,
        PRECISION,
        "recall@1",
        "mP@10",
        "mIoU",
        "mAcc",
    )
    yield from (*Outcomes.LOWER, *RobustnessOutcomes.LOWER, *(f"mAP {name}" for name in PROTOCOLS))
    for path in (ROOT / "results/reference/records").rglob("*.json"):
        yield from (made["metric"] for made in json.loads(path.read_text(encoding="utf-8"))["measurements"])


def is_explained(metric: str) -> bool:
    """Return whether a term is the metric without its protocol and "mean", or without the class or the k that it is measured for."""
    plain = metric.split(", ")[0].removeprefix("mean ") if metric.startswith("mean top-1") else metric.split(", ")[0]
    return any(
        name in TERMS for name in (plain, plain.split("@")[0], re.sub(r"@\d+", "@k", plain), plain.split(" ")[0])
    )


def test_every_metric_that_tables_print_is_in_the_glossary() -> None:
    assert not [metric for metric in dict.fromkeys(metrics()) if not is_explained(metric)]


@pytest.mark.parametrize(
    "term",
    ["CKA", "UPerNet", "Wilson interval", "nats", "severity", "occlusion", "entropy", "p", "difference", "over seeds",
     "over draws", "only first", "seeds for", "FLOP ratio", "Holm's correction", "share of uniform", "pooled"],
)  # fmt: skip
def test_a_word_of_tables_and_legends_is_in_the_glossary(term: str) -> None:
    assert term in TERMS


def test_terms_stand_in_the_order_of_the_alphabet_with_a_short_text_and_link_to_pages_that_exist() -> None:
    assert list(ENTRIES) == sorted(ENTRIES, key=str.lower)
    for term, text in ENTRIES.items():
        assert len(text) < 400, term
        assert all((ROOT / f"docs/{page}.md").is_file() for page in re.findall(r"\{doc\}`([^`]+)`", text)), term
