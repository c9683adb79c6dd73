"""A run that did not change keeps its identity: records and runs of before stay valid.

``fixtures/tiny_identities.json`` has, of every run of suite ``tiny``, the identity and what goes into it beside the recipe:
the data's fingerprints, and the identity and the sha256 of the encoder or classifier that it starts from.
"""

import json
from pathlib import Path

import pytest

from lutbench.recipes.loading import load_suite
from lutbench.record import identity_of
from lutbench.run import open_run
from lutbench.workspace import Workspace

KNOWN = json.loads((Path(__file__).parent / "fixtures/tiny_identities.json").read_text())


def test_every_run_of_tiny_has_the_identity_that_was_written_down() -> None:
    found = {}
    for planned in load_suite("tiny").runs:
        inputs = {name: value for name, value in KNOWN[planned.name].items() if name != "identity"}
        inputs |= {"stage": planned.kind.name, "revision": planned.recipe.revision, "seed": planned.seed}
        found[planned.name] = identity_of({**inputs, "recipe": planned.recipe.affecting_results()})
    assert len(found) == 42
    assert found == {name: known["identity"] for name, known in KNOWN.items()}


def test_a_run_is_known_by_the_identity_of_the_run_that_it_starts_from() -> None:
    for planned in load_suite("tiny").runs:
        source = KNOWN[planned.name].get(planned.kind.starts_from, {})
        assert source.get("run") == (KNOWN[planned.needs]["identity"] if planned.needs else None), planned.name


@pytest.mark.slow
def test_tinys_datasets_as_they_are_built_today_have_the_fingerprints_that_were_written_down(tiny_data: Path) -> None:
    suite, workspace = load_suite("tiny"), Workspace(tiny_data, tiny_data / "no runs", tiny_data / "no results")
    for planned in suite.runs:
        run = open_run(suite, planned, workspace)
        assert {split: run.fingerprint(split) for split in planned.recipe.splits} == KNOWN[planned.name]["data"], (
            run.name
        )
