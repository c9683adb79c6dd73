"""The pages of the documentation that are made from the code have every setting, command and module."""

import json
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from lutbench.cli import app
from lutbench.data.catalogue import CATALOGUE
from lutbench.kinds import KINDS
from lutbench.recipes.base import Recipe
from lutbench.recipes.loading import load_draft, load_suite

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


ENTRY = re.compile(r"::::\{confval\} (\S+)\n:type: (.+)\n:default: (.+)\n\n(.+)\n::::")
CHANGES, CHANGES_NONE = "*Changes results.*", "*Changes no result.*"
CHOOSES, TABLE = "*Chooses which runs there are; changes the result of none.*", "*A table: see its settings.*"


def marked(meaning: str) -> tuple[str, str, str]:
    """Return the text of an entry, what the setting changes, and the source of its default."""
    found = re.fullmatch(r"(.*\S) (\*[^*]+\*)(?: Source: (.+)\.)?", meaning)
    assert found, meaning
    return found[1], found[2], found[3] or ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_has_its_settings_in_order_below_what_the_kind_is(generated: Path, kind: str) -> None:
    text, recipe = (generated / f"settings/kind-{kind}.md").read_text(encoding="utf-8"), KINDS[kind].recipe
    assert [name for name, *_ in ENTRY.findall(text)] == [f"{kind}.{name}" for name in recipe.model_fields]
    assert (recipe.__doc__ or "").split("\n")[0].split("`")[0].strip() in text.split("::::")[0]


def test_every_setting_has_a_text_of_its_own_a_type_a_default_and_if_it_changes_results_a_source(
    generated: Path,
) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (generated / "settings").glob("*.md")]
    entries = [entry for page in pages for entry in ENTRY.findall(page)]
    assert len(entries) == sum(page.count("{confval}") for page in pages) > 400
    texts: dict[str, dict[str, str]] = {}
    for name, shape, default, meaning in entries:
        text, effect, source = marked(meaning)
        assert shape != "any", name
        assert default, name
        assert effect in (CHANGES, CHANGES_NONE, CHOOSES, TABLE), name
        assert bool(source) == (effect == CHANGES), name
        assert (source == "you set it") == (default == "required" and effect == CHANGES), name
        assert not re.search(r":\w+:`|See `\w+`|[Dd]oes not affect|Source", text), name
        table, _, setting = name.rpartition(".")
        assert texts.setdefault(table, {}).setdefault(text, setting) == setting, name
    (workers,) = (meaning for name, _, _, meaning in entries if name == "pretrain.workers")
    assert workers.startswith("Loader processes per training process. ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_a_run_is_marked_as_changing_results_exactly_if_it_is_in_the_identity(
    generated: Path, kind: str
) -> None:
    recipe = next(run.recipe for suite in ("tiny", "paper") for run in load_suite(suite).runs if run.kind.name == kind)
    text = (generated / f"settings/kind-{kind}.md").read_text(encoding="utf-8")
    for name, _, _, meaning in ENTRY.findall(text):
        setting = name.removeprefix(f"{kind}.")
        changed = recipe.model_copy(update={} if isinstance(getattr(recipe, setting), Recipe) else {setting: "another"})
        with warnings.catch_warnings(action="ignore"):  # "another" may be of another type
            in_identity = setting in Recipe.affecting_results(changed)
        assert marked(meaning)[1] == (CHANGES if in_identity else CHANGES_NONE), name


SUITE = """
title = "marks"
kind = "exploration"
about = "One of each table."
seeds = [0]
compare = [["a", "b"]]

[decided]
question = "Q?"
settings = "S."
seeds = [0, 1]
primary = [{pair = ["a", "b"], task = "near", metric = "top-1"}]
secondary = []

[data.photographs]
source = "photographs"

[encoder.toy]
model = "vit_tiny_patch16_224"
image_size = 48
patch_size = 12
width = 64
depth = 4
heads = 2

[encoder.wide]
model = "vit_tiny_patch16_224"
image_size = 48
patch_size = 12
width = 96
depth = 4
heads = 2

[defaults.pretrain]
data = "photographs"
encoder = "toy"
epochs = 8
warmup_epochs = 1
snapshots = [0.5]

[pretrain.a]
[pretrain.b]
context_weight = 0.1
[pretrain.priced]
epochs = 4

[method.a]
pretrain = "a"
[method.b]
pretrain = "b"
[method.file]
checkpoint = "file.pth"
encoder = "toy"
[method.new]
scratch = true
encoder = "toy"
[method.tuned]
finetuned = "tuned/a"

[downstream.near]
kind = "knn"
data = "photographs"
shots = 1
[downstream.tuned]
kind = "finetune"
data = "photographs"
warmup_epochs = 0
[downstream.again]
kind = "finetune"
data = "photographs"
warmup_epochs = 0
[analysis.looks]
data = "photographs"

[shifted.moved]
path = "moved"
[shifted.turned]
path = "turned"
[classifier.other]
model = "vit_tiny_patch16_224"
[classifier.second]
model = "vit_small_patch16_224"
[robustness.shift]
tasks = ["tuned"]
sets = ["moved"]

[sweep.weight]
of = "pretrain.a"
context_weight = [0.05, 0.2]
tasks = ["near"]
[sweep.votes]
of = "downstream.near"
neighbours = [5, 10]
"""

METHOD, FILE, TASK, SWEEP = "[method.a]\n", "[method.file]\n", "[downstream.near]\n", "[sweep.weight]\n"
ROBUST, CLASSIFIER, PRICED = "[robustness.shift]\n", "[classifier.other]\n", "[pretrain.priced]\nepochs = 4\n"
ONLY_CHOICE = ("analysis-table.kind", "analysis-table.draws")
"""Settings with one possible value."""

OTHER_VALUES = {
    "suite.title": ('title = "marks"', 'title = "other"'),
    "suite.about": ("One of each table.", "Other."),
    "suite.kind": ('kind = "exploration"', 'kind = "pipeline"'),
    "suite.decided": ('question = "Q?"', 'question = "R?"'),
    "suite.seeds": ("seeds = [0]\n", "seeds = [0, 1]\n"),
    "suite.compare": ('[["a", "b"]]', '[["b", "a"]]'),
    "suite.cluster": ("[data.photographs]", '[cluster]\npartition = "gpu"\n[data.photographs]'),
    "encoder.label": ("[encoder.toy]\n", '[encoder.toy]\nlabel = "Toy"\n'),
    "encoder.model": ('[encoder.toy]\nmodel = "vit_tiny', '[encoder.toy]\nmodel = "vit_small'),
    "encoder.image_size": ("image_size = 48", "image_size = 96"),
    "encoder.patch_size": ("patch_size = 12", "patch_size = 6"),
    "encoder.width": ("width = 64", "width = 128"),
    "encoder.depth": ("depth = 4", "depth = 5"),
    "encoder.heads": ("heads = 2", "heads = 4"),
    "method.pretrain": (f'{METHOD}pretrain = "a"', f'{METHOD}pretrain = "b"'),
    "method.teacher": (METHOD, f"{METHOD}teacher = true\n"),
    "method.finetuned": ('"tuned/a"', '"tuned/b"'),
    "method.timm": ("scratch = true", "timm = true"),
    "method.checkpoint": ("file.pth", "other.pth"),
    "method.part": (FILE, f'{FILE}part = "teacher"\n'),
    "method.scratch": ("scratch = true", 'checkpoint = "file.pth"'),
    "method.encoder": ('file.pth"\nencoder = "toy"', 'file.pth"\nencoder = "wide"'),
    "method.pool": (METHOD, f'{METHOD}pool = "class"\n'),
    "method.label": (METHOD, f'{METHOD}label = "A"\n'),
    "method.published": (METHOD, f'{METHOD}published = "MAE"\n'),
    **{
        f"{table}.{name}": (below, f"{below}{name} = {value}\n")
        for table, below in (("method", FILE), ("classifier", CLASSIFIER))
        for name, value in (
            ("mean", "[0.1, 0.2, 0.3]"),
            ("std", "[0.1, 0.2, 0.3]"),
            ("interpolation", '"nearest"'),
            ("crop_pct", "0.5"),
        )
    },
    "task.kind": ('[downstream.again]\nkind = "finetune"', '[downstream.again]\nkind = "linear"'),
    "task.title": (TASK, f'{TASK}title = "T"\n'),
    "task.methods": ("[downstream.again]\n", '[downstream.again]\nmethods = ["a"]\n'),
    "task.draws": (TASK, f"{TASK}draws = 2\n"),
    "task.at": (TASK, f"{TASK}at = [0.5, 1]\n"),
    "task.published": (TASK, f'{TASK}published = "imagenet-1k"\n'),
    "analysis-table.title": ("[analysis.looks]\n", '[analysis.looks]\ntitle = "T"\n'),
    "analysis-table.methods": ("[analysis.looks]\n", '[analysis.looks]\nmethods = ["a"]\n'),
    "analysis-table.at": ("[analysis.looks]\n", "[analysis.looks]\nat = [0.5, 1]\n"),
    "analysis-table.published": ("[analysis.looks]\n", '[analysis.looks]\npublished = "imagenet-1k"\n'),
    "robustness-table.sets": ('sets = ["moved"]', 'sets = ["moved", "turned"]'),
    "robustness-table.tasks": ('tasks = ["tuned"]', "tasks = []"),
    "robustness-table.title": (ROBUST, f'{ROBUST}title = "T"\n'),
    "robustness-table.methods": (ROBUST, f'{ROBUST}methods = ["a"]\n'),
    "robustness-table.classifiers": (ROBUST, f'{ROBUST}classifiers = ["other"]\n'),
    "robustness-table.preprocessing": (ROBUST, f'{ROBUST}preprocessing = ["own"]\n'),
    "classifier.model": (f'{CLASSIFIER}model = "vit_tiny', f'{CLASSIFIER}model = "vit_base'),
    "classifier.checkpoint": (CLASSIFIER, f'{CLASSIFIER}checkpoint = "c.pth"\n'),
    "classifier.image_size": (CLASSIFIER, f"{CLASSIFIER}image_size = 96\n"),
    "classifier.label": (CLASSIFIER, f'{CLASSIFIER}label = "O"\n'),
    "classifier.encoder": (CLASSIFIER, f'{CLASSIFIER}encoder = "ViT-B/16"\n'),
    "classifier.published": (CLASSIFIER, f'{CLASSIFIER}published = "MAE"\n'),
    "sweep.of": ('of = "downstream.near"\nneighbours = [5', 'of = "downstream.again"\nbatch = [6'),
    "sweep.tasks": ('tasks = ["near"]', 'tasks = ["near", "again"]'),
    "sweep.methods": ("neighbours = [5, 10]", 'neighbours = [5, 10]\nmethods = ["a"]'),
    "sweep.teacher": (SWEEP, f"{SWEEP}teacher = true\n"),
    "sweep.title": (SWEEP, f'{SWEEP}title = "T"\n'),
    "sweep.label": (SWEEP, f'{SWEEP}label = "L"\n'),
    "budget.like": (PRICED, '[pretrain.priced]\nbudget = {like = "b"}\n'),
    "budget.unit": (PRICED, '[pretrain.priced]\nbudget = {like = "b", unit = "flop"}\n'),
    "decided.question": ('"Q?"', '"R?"'),
    "decided.settings": ('settings = "S."', 'settings = "T."'),
    "decided.seeds": ("seeds = [0, 1]", "seeds = [0, 1, 2]"),
    "decided.primary": (', metric = "top-1"}', "}"),
    "decided.secondary": ("secondary = []", 'secondary = [{pair = ["a", "b"], task = "tuned"}]'),
    "decided.primary.pair": ('pair = ["a", "b"]', 'pair = ["b", "a"]'),
    "decided.primary.task": ('task = "near"', 'task = "tuned"'),
    "decided.primary.metric": ('metric = "top-1"', 'metric = "mean per class"'),
}
"""By setting, a part of :data:`SUITE` and that part with another value of the setting."""

EXTENDED = ("suite.extends", "method.like")
"""Settings of a suite that extends another; the test below has a case of its own for each."""


def identities(text: str, folder: Path) -> dict[str, tuple[object, ...]]:
    """Return by run what its identity follows from: its settings, and where its weights come from."""
    return {
        run.name: (
            json.dumps(run.recipe.affecting_results()),
            run.needs,
            run.recipe.source.path if run.recipe.source else "",
        )
        for run in load_draft(text, folder / "marks.toml").runs
    }


def effect_on(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> str:
    both = before.keys() & after.keys()
    if any(before[run] != after[run] for run in both):
        return CHANGES
    return CHANGES_NONE if before.keys() == after.keys() else CHOOSES


def test_a_setting_of_a_table_is_marked_with_what_another_value_of_it_does(generated: Path, tmp_path: Path) -> None:
    entries = [
        (name, marked(meaning)[1])
        for page in ("suite", "rows", "tables")
        for name, _, _, meaning in ENTRY.findall((generated / f"settings/{page}.md").read_text(encoding="utf-8"))
    ]
    before = identities(SUITE, tmp_path)
    for name, mark in entries:
        if mark == TABLE or name in (*ONLY_CHOICE, *EXTENDED):
            continue
        part, other = OTHER_VALUES[name]
        assert SUITE.count(part) >= 1, name
        assert effect_on(before, identities(SUITE.replace(part, other, 1), tmp_path)) == mark, name


def test_the_marks_of_settings_that_extend_a_suite(generated: Path, tmp_path: Path) -> None:
    marks = {
        name: marked(meaning)[1]
        for page in ("suite", "rows")
        for name, _, _, meaning in ENTRY.findall((generated / f"settings/{page}.md").read_text(encoding="utf-8"))
    }
    (tmp_path / "base.toml").write_text(SUITE)
    short = SUITE.replace("epochs = 8\n", "")
    extending = identities(f'extends = ["base.toml"]\n{short}', tmp_path)
    assert effect_on(identities(short, tmp_path), extending) == marks["suite.extends"]
    new = 'title = "marks"\nextends = ["base.toml"]\n[pretrain.c]\n[method.c]\npretrain = "c"\n'
    assert effect_on(identities(new, tmp_path), identities(f'{new}like = "none"\n', tmp_path)) == marks["method.like"]


def test_a_default_stands_as_a_suite_file_has_it(generated: Path) -> None:
    for name, default in (
        ("pretrain.epochs", "`1600`"),
        ("pretrain.betas", "`[0.9, 0.95]`"),
        ("pretrain.crop", '`"simple"`'),
        ("pretrain.photometric", "`true`"),
        ("pretrain.mask_ratio", "depends on other settings"),
        ("pretrain.workers", "depends on the machine"),
        ("logistic.C_grid", "`[1e-06, 0.0001, 0.01, 1, 100, 10000, 1e+06]`"),
        ("shifted.parts", '`{"" = ""}`'),
        ("suite.cluster", "the defaults of its table"),
    ):
        pages = [path.read_text(encoding="utf-8") for path in (generated / "settings").glob("*.md")]
        assert any(
            re.search(rf"confval\}} {re.escape(name)}\n.*\n:default: {re.escape(default)}\n", page) for page in pages
        ), name


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


def test_the_reference_has_every_module_that_the_guide_its_example_and_the_notebooks_use(generated: Path) -> None:
    text = (generated / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^## (\S+)$", text)
    named = re.findall(
        r"`((?:lutbench|pretrain|downstream)/[\w/]+)\.py`", (ROOT / "docs/extending.md").read_text("utf-8")
    )
    assert len(named) > 8
    assert {name.replace("/", ".") for name in named} <= set(listed)
    example = (ROOT / "docs/examples/nearest_mean.py").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^ *from ((?:lutbench|downstream)[\w.]+) import", example)) <= set(listed)
    assert {"lutbench.evaluate.statistics", "lutbench.record_search", "lutbench.models.pretrained"} <= set(listed)
    assert all(find_spec(name) for name in listed)


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
