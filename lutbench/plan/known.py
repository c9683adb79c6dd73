"""The FLOP of models, and whether weights fit them, without building the models, which needs torch and half a minute.

Both depend only on settings, source files and timm's version. So every answer is cached between commands (:mod:`lutbench.kept`), and
the answers for the suites in the repository are shipped with it, in ``counts.json``. They are valid as long as the source files that
define the models, and timm, are the same; otherwise models are built. After a change of these source files::

    python -m lutbench.plan.known

computes the answers again, in a minute or two.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lutbench.files import content_sha256, whole_file
from lutbench.kept import keep, recall
from lutbench.recipes.base import RunRecipe
from lutbench.sources import PACKAGES, ROOT, digest_of_all, digest_of_source

SHIPPED = Path(__file__).with_name("counts.json")
SOURCES = (
    "pretrain/cost.py", "pretrain/student.py", "pretrain/teacher.py", "pretrain/context.py", "pretrain/masking.py", "pretrain/token_targets.py",
    "pretrain/frameworks/*.py", "pretrain/context_losses/*.py",
    "downstream/cost.py", "downstream/attentive_pool.py", "downstream/stage.py", "downstream/segmentation/cost.py",
    "downstream/segmentation/pyramid.py", "downstream/segmentation/tokens.py", "robustness/cost.py", "robustness/classifier.py",
    "analysis/cost.py", "analysis/grid.py", "analysis/attention.py", "lutbench/plan/compute.py", "lutbench/train/batchnorm.py",
    "lutbench/models/blocks.py", "lutbench/models/encoders.py", "lutbench/models/meta.py", "lutbench/models/timm_models.py",
    "lutbench/models/tokens.py",
)  # fmt: skip
"""The source files that define the models and what is counted. The settings of a model are part of the question."""

Answer = Sequence[float]
"""Numbers; empty if the answer is that nothing is wrong."""

_asked: dict[str, Answer] = {}
"""The answers of this command, by the hash of the question."""


def answer(asked: Mapping[str, Any], recipes: Iterable[RunRecipe], find: Callable[[], Answer]) -> Answer:
    """Return the answer to a question; ``find`` computes it, with torch, if it is not known. Nothing is cached if ``find`` raises an error.

    ``recipes`` are those that the question is about. If they name code outside this suite, whose sources are not hashed, the answer is
    not cached.
    """
    key = content_sha256(asked)
    known = _shipped().get(key[:16])
    own = all(name.partition(".")[0] in PACKAGES for recipe in recipes for name in recipe.chosen)
    kept_key = (
        content_sha256({"question": key, "code": digest_of_all(), "timm": _timm()}) if known is None and own else ""
    )
    if known is None and kept_key and isinstance(kept := recall("counts", kept_key), list):
        known = [number for number in kept if isinstance(number, int | float)]
    if known is None:
        known = find()
        if kept_key:
            keep("counts", kept_key, list(known))
    _asked[key[:16]] = known
    return known


def models_digest() -> str:
    """Return a hash of :data:`SOURCES`, without comments and formatting, and of timm's version."""
    paths = sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)})
    found = [(path.relative_to(ROOT).as_posix(), digest_of_source(path)) for path in paths]
    return hashlib.sha256(repr([found, _timm()]).encode()).hexdigest()


@cache
def _shipped() -> Mapping[str, Answer]:
    """Return the shipped answers; empty if they are of other source files or of another version of timm."""
    if not SHIPPED.is_file():
        return {}
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    answers: dict[str, Answer] = shipped["answers"]
    return answers if shipped["of"] == models_digest() else {}


@cache
def _timm() -> str:
    try:
        return version("timm")
    except PackageNotFoundError:
        return ""


def write_shipped() -> None:
    """Compute the answers for all suites in the repository, and write ``counts.json``."""
    from tempfile import TemporaryDirectory

    from lutbench.plan.costs import Rates, costs_of
    from lutbench.plan.surveys import missing, survey_all
    from lutbench.recipes.loading import SUITES, load_suite
    from lutbench.workspace import Workspace

    SHIPPED.unlink(missing_ok=True)
    with TemporaryDirectory() as empty:
        at = Path(empty)
        workspace = Workspace(at / "data", at / "runs", at / "results", download=False)
        for path in sorted(SUITES.glob("*.toml")):
            suite = load_suite(path.stem, results=workspace.results)
            surveys = survey_all(suite, workspace)
            missing(costs_of(suite, workspace, surveys, Rates()), surveys)
    answers = ",\n".join(f"{json.dumps(key)}: {json.dumps(found)}" for key, found in sorted(_asked.items()))
    with whole_file(SHIPPED) as partial:
        partial.write_text(f'{{"of": "{models_digest()}", "answers": {{\n{answers}\n}}}}\n', encoding="utf-8")
    print(f"{SHIPPED}: {len(_asked)} answers.")


if __name__ == "__main__":
    from lutbench.plan import known

    known.write_shipped()
