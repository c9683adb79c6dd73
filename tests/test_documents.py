"""What the documents name in the repository is there."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from lutbench.recipes.loading import load_suite

ROOT = Path(__file__).parents[1]

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "results/README.md", "docs/*.md", "suites/*.toml")
    for path in ROOT.glob(pattern)
)

NAMED = re.compile(
    r"(?<![\w/.-])(?:lutbench|pretrain|downstream|robustness|suites|tests|benchmarks|results)/[\w/.-]*\w(?:\.\w+|/)"
)
"""A file or a folder of the repository, by its first folder."""

LINKED = re.compile(r"\]\(([\w./-]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_exists(document: str) -> None:
    text = re.sub(
        r"\bruns/\S*|results/(?:records|tables|figures)/\S*", "", (ROOT / document).read_text(encoding="utf-8")
    )
    named = {path.split(":")[0] for path in NAMED.findall(text)}
    linked = {str((ROOT / document).parent.joinpath(link).relative_to(ROOT)) for link in LINKED.findall(text)}
    missing = [path for path in sorted(named | linked) if not (ROOT / path).exists()]
    assert not missing


def test_the_whole_suite_in_the_readme_is_one(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (suite,) = re.findall(r"\n\n(    title = .*\n(?:\n|    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(dedent(suite), encoding="utf-8")
    runs = load_suite(str(tmp_path / "mine.toml")).runs
    assert [run.name for run in runs] == [f"analysis/looks/{row}/seed0" for row in ("mine", "mae", "untrained")]


def test_the_suite_in_the_readme_that_extends_another_is_one(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (suite,) = re.findall(r"\n\n(    extends = .*\n(?:\n|    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(dedent(suite), encoding="utf-8")
    found, base = load_suite(str(tmp_path / "mine.toml")), load_suite("small")
    new = {f"{run.stage}/{run.task}" for run in found.runs if run.method == "mine"}
    assert new == {f"{run.stage}/{run.task}" for run in base.runs if run.method == "mae"}
    assert found.config.compare[len(base.config.compare) :] == [["mine", row] for row in ("lut", "mae", "mae-crop")]


def test_documents_name_paths_at_all() -> None:
    assert len(NAMED.findall((ROOT / "README.md").read_text(encoding="utf-8"))) > 20
