"""The pages of the documentation that are made from the code have every setting, command and module."""

import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from lutbench.cli import app
from lutbench.data.catalogue import CATALOGUE
from lutbench.kinds import KINDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate import write_pages
    finally:
        sys.path.remove(str(ROOT / "docs"))
    (folder / "settings").mkdir()
    (folder / "settings/gone.md").touch()  # of a kind that is no more
    write_pages(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_kind_is_told_with_its_type_default_and_meaning(generated: Path, kind: str) -> None:
    text = (generated / f"settings/kind-{kind}.md").read_text(encoding="utf-8")
    entries = re.findall(r"::::\{confval\} (\S+)\n:type: (.+)\n:default: (.+)\n\n(.+)\n::::", text)
    assert [name for name, *_ in entries] == [f"{kind}.{name}" for name in KINDS[kind].recipe.model_fields]
    for name, shape, _, meaning in entries:
        assert shape != "any", name
        assert not re.search(r":\w+:`", meaning), name
        assert re.sub(r"\*Changes (results|no result)\.\*", "", meaning).strip(), name
    (workers,) = (meaning for name, _, _, meaning in entries if name == f"{kind}.workers")
    assert workers.startswith("Loader processes per training process. ")
    assert workers.endswith("included. *Changes no result.*")


def test_a_default_stands_as_a_suite_file_has_it(generated: Path) -> None:
    text = (generated / "settings/kind-pretrain.md").read_text(encoding="utf-8")
    for name, default in (("epochs", "1600"), ("betas", "[0.9, 0.95]"), ("crop", '"simple"'), ("photometric", "true")):
        assert re.search(rf"confval\}} pretrain\.{name}\n.*\n:default: `{re.escape(default)}`\n", text), name


def test_every_command_is_told_with_its_options(generated: Path) -> None:
    text = (generated / "commands.md").read_text(encoding="utf-8")
    root = get_command(app)
    commands = {f"lutbench {name}": command for name, command in root.commands.items()}  # type: ignore[attr-defined]
    commands |= {f"lutbench data {name}": one for name, one in commands.pop("lutbench data").commands.items()}
    for name, command in commands.items():
        assert f"## {name}\n" in text
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        shown = [one for one in command.params if not getattr(one, "hidden", False)]
        assert all(f"`{one.opts[0]}`" in section for one in shown if one.opts[0].startswith("--"))


def test_every_known_dataset_has_its_source_and_its_protocol(generated: Path) -> None:
    sections = (generated / "datasets.md").read_text(encoding="utf-8").replace(r"\*", "*").split("\n### ")[1:]
    assert [section.split("\n")[0] for section in sections] == list(CATALOGUE)
    for section, known in zip(sections, CATALOGUE.values(), strict=True):
        assert all(text in section for text in (known.paper, known.protocol, known.split))
        assert all(line.strip() in section for line in known.get.splitlines())


def test_every_module_with_a_docstring_is_told(generated: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (generated / "modules").glob("*.md"))
    for path in (
        "lutbench/run.py",
        "pretrain/context.py",
        "downstream/knn.py",
        "robustness/measure.py",
        "analysis/analyse.py",
    ):
        assert f"## {path}\n" in text


def test_pages_of_what_is_no_more_are_removed(generated: Path) -> None:
    assert not (generated / "settings/gone.md").exists()


def test_notebooks_come_without_outputs() -> None:
    import json

    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 2
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert all(
            not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
        )
