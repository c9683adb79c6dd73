"""What docs/evidence.md and the README say came out is what the tables made from the records say."""

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "results/reference/tables/evidence"


def rows(text: str) -> list[tuple[str, ...]]:
    """Return the rows of every Markdown table of a text, without padding, headers included."""
    lines = (line.strip() for line in text.splitlines())
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("|")]
    return [row for row in cells if any(cell.strip(":-") for cell in row)]


def section(document: str, title: str) -> str:
    """Return the text below a heading, up to the next one of the same level."""
    text = (ROOT / document).read_text(encoding="utf-8")
    (found,) = re.findall(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text)
    return str(found)


def read(path: Path) -> pd.DataFrame:
    """Return a table with the very numbers that it has: pandas rounds some of them in the last digit."""
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    numbers = [name for name in header if name in ("difference", "value") or "over seeds" in name]
    return pd.read_csv(path, converters=dict.fromkeys(numbers, lambda text: float(text or "nan")))


def said_of_whitened() -> list[str]:
    """Return how the primary differences are written, each with its interval over seeds, and both at equal epochs."""
    frame = read(TABLES / "decided.csv")
    primary = [
        f"{one['difference']:+.1f} points [{one['low over seeds']:+.1f}, {one['high over seeds']:+.1f}]"
        for _, one in frame[frame["family"] == "primary"].iterrows()
    ]
    caltech, cifar = frame[frame["second"] == "mae-crop"]["difference"]
    return [*primary, f"{caltech:.1f} and {cifar:.1f} points ahead"]


def test_the_page_has_every_decided_comparison_as_the_tables_print_it() -> None:
    name = "Comparisons decided beforehand"
    printed = rows(section("results/reference/tables/evidence/main.md", name))
    assert len(printed) == 1 + 14
    assert rows(section("docs/evidence.md", "What came out"))[: len(printed)] == printed


def test_every_difference_in_the_words_is_one_of_the_tables() -> None:
    frame = read(TABLES / "comparisons.csv")
    printed = {
        (f"{one['difference']:+.1f}", f"{one['low over seeds']:+.1f}", f"{one['high over seeds']:+.1f}")
        for _, one in frame.iterrows()
    }
    words = " ".join(section("docs/evidence.md", "What came out").split())
    said = re.findall(r"([+-]\d+\.\d) \[([+-]\d+\.\d), ([+-]\d+\.\d)\]", words)
    assert len(said) == 9
    assert [one for one in said if one not in printed] == []


@pytest.mark.parametrize("document", ["README.md", "docs/evidence.md"])
def test_the_verdict_and_the_primary_differences_are_those_of_the_tables(document: str) -> None:
    (verdict,) = re.findall(r"\*\*Verdict: (\w+)\.\*\*", (TABLES / "main.md").read_text(encoding="utf-8"))
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert f"verdict is **{verdict}**" in text
    assert [one for one in said_of_whitened() if one not in text] == []


def test_the_ablations_on_the_page_are_all_differences_of_the_tables() -> None:
    tables = [read(path) for path in sorted(TABLES.with_name("evidence-ablations").glob("sweep-*.csv"))]
    varied = pd.concat([one[~one["base"]] for one in tables])
    bounds = ["difference: low over seeds", "difference: high over seeds"]
    printed = Counter(
        f"{points(one['difference'])} [{points(one[bounds[0]])}, {points(one[bounds[1]])}]"
        for _, one in varied.iterrows()
    )
    page = section("docs/evidence.md", "Ablations at 12 epochs")
    assert Counter(cell for row in rows(page)[1:] for cell in row[3:]) == printed
    excluded = int((varied[bounds[0]] * varied[bounds[1]] > 0).sum())
    assert (len(varied), excluded) == (26, 4)
    assert "Of the 26 intervals four exclude 0" in page


def test_the_accuracies_in_the_words_on_ablations_are_those_of_the_tables() -> None:
    folder, page = (
        TABLES.with_name("evidence-ablations"),
        " ".join(section("docs/evidence.md", "Ablations at 12 epochs").split()),
    )
    weight, direction = (read(folder / f"sweep-{name}.csv") for name in ("weight", "direction"))
    base, without = (weight[weight["context_weight"] == value]["value"] for value in (0.25, 0))
    one = direction[~direction["base"]]["value"]
    caltech, cifar = (f"{value:.1f}" for value in base)
    assert f"The base has top-1 {caltech} % on Caltech-101 and {cifar} % on CIFAR-10." in page
    texts = [" and ".join(f"{value:.1f}" for value in values) for values in (one, without)]
    assert f"{texts[0]} % against {texts[1]} %" in page
    compute = pd.read_csv(folder / "compute.csv").set_index("pretraining")["flop"]
    assert f"for {100 * compute['weight-0'] / compute['lut-12']:.0f} % of the FLOP" in page


def points(difference: float) -> str:
    """Return a difference as tables print it, which know no negative zero."""
    return f"{round(difference, 1) + 0.0:+.1f}"
