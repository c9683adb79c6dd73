"""What the documents name in the repository is there."""

import ast
import re
from pathlib import Path
from textwrap import dedent

import pytest
from typer.main import get_command

from lutbench.cli import app
from lutbench.kinds import KINDS
from lutbench.recipes.base import Recipe
from lutbench.recipes.loading import load_suite

ROOT = Path(__file__).parents[1]

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "results/README.md", "docs/*.md", "suites/*.toml")
    for path in ROOT.glob(pattern)
)

NAMED = re.compile(
    r"(?<![\w/.-])(?:lutbench|pretrain|downstream|robustness|suites|tests|benchmarks|results)/[\w/.-]*\w(?:\.\w+|/)"
)
"""A file or a folder of the repository, by its first folder."""

LINKED = re.compile(r"\]\((?!generated/)([\w./-]+)\)")
"""A link to a file; not to those that the build of the documentation makes."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_exists(document: str) -> None:
    text = re.sub(
        r"\bruns/\S*|results/(?:records|tables|figures|reports)/\S*", "", (ROOT / document).read_text(encoding="utf-8")
    )
    named = {path.split(":")[0] for path in NAMED.findall(text)}
    linked = {str((ROOT / document).parent.joinpath(link).relative_to(ROOT)) for link in LINKED.findall(text)}
    missing = [path for path in sorted(named | linked) if not (ROOT / path).exists()]
    assert not missing


def test_the_whole_suite_of_an_analysis_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    (suite,) = re.findall(r"\n\n(    title = .*\n(?:\n|    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(dedent(suite), encoding="utf-8")
    runs = load_suite(str(tmp_path / "mine.toml")).runs
    assert [run.name for run in runs] == [f"analysis/looks/{row}/seed0" for row in ("mine", "mae", "untrained")]


def test_the_suite_that_extends_small_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/own-row.md").read_text(encoding="utf-8")
    (suite,) = re.findall(r"\n\n(    extends = .*\n(?:\n|    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(dedent(suite), encoding="utf-8")
    found, base = load_suite(str(tmp_path / "mine.toml")), load_suite("small")
    new = {f"{run.stage}/{run.task}" for run in found.runs if run.method == "mine"}
    assert new == {f"{run.stage}/{run.task}" for run in base.runs if run.method == "mae"}
    assert found.config.compare[len(base.config.compare) :] == [["mine", row] for row in ("lut", "mae", "mae-crop")]


def blocks(language: str, document: str) -> list[str]:
    """Return the fenced blocks of a document that are of this language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [dedent(block) for block in re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```", text)]


def statements(code: str) -> list[str]:
    """Return the statements of a module, without docstrings."""
    module = ast.parse(code)
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return [ast.unparse(statement) for statement in module.body]


def test_the_suites_of_the_guide_are_what_it_says(tmp_path: Path) -> None:
    (sweep,) = blocks("toml", "docs/studies.md")
    mine, _ = blocks("toml", "docs/extending.md")
    (tmp_path / "sweep.toml").write_text(f'extends = "tiny"\n{sweep}', encoding="utf-8")
    found, base = load_suite(str(tmp_path / "sweep.toml")), load_suite("tiny")
    (study,) = (one for one in found.studies if one.name == "sweep.weight")
    assert [point.values["context_weight"] for point in study.points] == [0, 0.05, 0.1, 0.25, 0.5, 1]
    assert study.base == 3
    names = {run.name for run in found.runs} - {run.name for run in base.runs}
    assert {"pretrain/weight-0.05/seed0", "downstream/photographs-linear/weight-0.05/seed0"} <= names
    assert not [name for name in names if "weight-0.25" in name], "it is lut"
    (tmp_path / "my.toml").write_text(mine, encoding="utf-8")
    found, base = load_suite(str(tmp_path / "my.toml")), load_suite("small")
    curves = {"downstream/caltech101-way", "analysis/caltech101"}  # of snapshots, which the new run does not keep
    expected = {f"{run.stage}/{run.task}" for run in base.runs if run.method == "lut"} - curves
    assert {f"{run.stage}/{run.task}" for run in found.runs if run.method == "lut-infonce"} == expected
    assert {run.recipe.context_loss for run in found.runs if run.task == "lut-infonce"} == {"infonce"}  # type: ignore[attr-defined]


def test_the_code_of_the_guide_is_that_of_the_repository() -> None:
    loss, loss_table, build, framework_table = blocks("python", "docs/extending.md")
    assert statements(loss) == statements((ROOT / "pretrain/context_losses/infonce.py").read_text(encoding="utf-8"))
    assert set(statements(build)) <= set(
        statements((ROOT / "pretrain/frameworks/simmim.py").read_text(encoding="utf-8"))
    )
    kinds = (ROOT / "lutbench/kinds.py").read_text(encoding="utf-8").splitlines()
    for table in (loss_table, framework_table):
        lines = [line for line in table.splitlines() if line.strip() != "..."]
        assert len(lines) > 2
        assert set(lines) <= set(kinds)


def test_the_fine_tuning_of_the_tasks_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"\n\n(    \[downstream\.tuned\]\n(?:    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(f'extends = "small"\n{dedent(task)}', encoding="utf-8")
    runs = [run for run in load_suite(str(tmp_path / "mine.toml")).runs if run.task == "tuned" and not run.seed]
    assert [(run.method, run.kind.name) for run in runs] == [("lut", "finetune"), ("mae", "finetune")]


def test_the_probe_of_few_labels_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    (probe,) = re.findall(r"\n\n(    \[downstream\.few\]\n(?:    .*\n)+)", text)
    (tmp_path / "mine.toml").write_text(f'extends = "small"\n{dedent(probe)}', encoding="utf-8")
    runs = [run for run in load_suite(str(tmp_path / "mine.toml")).runs if run.task == "few"]
    assert [(run.method, run.draw) for run in runs if not run.seed] == [
        (row, draw) for row in ("lut", "mae") for draw in range(3)
    ]
    assert {run.kind.name for run in runs} == {"attentive"}


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document.endswith(".md")])
def test_every_command_and_option_that_is_named_exists(document: str) -> None:
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    commands |= {f"data {name}": command for name, command in commands.pop("data").commands.items()}
    text = (ROOT / document).read_text(encoding="utf-8")
    for line in re.findall(r"(?:^    |`|/|-m )lutbench ([a-z][^\n`]*)", text, re.MULTILINE):
        name = next((name for name in commands if re.match(rf"{name}\b", line)), "")
        assert name, line
        known = {flag for option in commands[name].params for flag in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) <= known, line


def all_recipes(base: type[Recipe] = Recipe) -> set[type[Recipe]]:
    return {base, *(one for below in base.__subclasses__() for one in all_recipes(below))}


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document.startswith("docs/")])
def test_every_setting_that_is_named_exists(document: str) -> None:
    assert all(kind.recipe for kind in KINDS.values())
    known = {name for recipe in all_recipes() for name in recipe.model_fields} | {"known", "budget"}
    known |= {"visible"}  # an argument of a framework, in docs/extending.md
    assert set(re.findall(r"`(\w+) = ", (ROOT / document).read_text(encoding="utf-8"))) <= known


def test_documents_name_paths_at_all() -> None:
    assert len(NAMED.findall((ROOT / "docs/reading.md").read_text(encoding="utf-8"))) > 20
