"""What counts as an answer is written down before the first run, and the tables hold it against what came out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hand_made import keep
from test_tables import SUITE, recorded, share

from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.report.decided import answers, decided_sections, holm, p_over_seeds, verdict
from lutbench.report.sections import View
from lutbench.report.tables import all_sections, build_tables

DECIDED = """
[decided]
question = "Is ours better?"
settings = "Those of the article."
seeds = [0, 1, 2]
primary = [{ pair = ["ours", "theirs"], task = "tuned" }]
secondary = [{ pair = ["ours", "theirs"], task = "near" }]
"""


def decided(folder: Path, more: str = DECIDED, kind: str = "evidence", seeds: int = 3) -> LoadedSuite:
    text = SUITE.replace('kind = "exploration"', f'kind = "{kind}"\nseeds = {list(range(seeds))}') + more
    (folder / "asked.toml").write_text(text)
    return load_suite(str(folder / "asked.toml"))


def sections(loaded: LoadedSuite, folder: Path) -> str:
    (section,) = decided_sections(View.read(loaded, folder))
    return section.legend + "\n" + section.frame.to_string()


def measured(folder: Path, loaded: LoadedSuite, task: str, ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Records of both rows, so many of 100 images right with each seed."""
    for method, right in (("ours", ours), ("theirs", theirs)):
        for seed, count in enumerate(right):
            recorded(folder, loaded, f"{task}/{method}/seed{seed}", share(count))


def test_evidence_without_a_decision_is_refused_and_exploration_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a table \[decided\] with question, settings, seeds and primary"):
        decided(tmp_path, "")
    loaded = decided(tmp_path, "", "exploration")
    assert "Nothing was decided before these numbers were seen" in sections(loaded, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('task = "tuned"', 'task = "tune"'), "no run has task = 'tune'. Did you mean 'tuned'"),
        (('["ours", "theirs"], task = "tuned"', '["ours", "their"], task = "tuned"'), "not run for 'their'"),
        (('task = "near"', 'task = "tuned"'), "each comparison only once"),
        (('["ours", "theirs"], task = "near"', '["ours", "ours"], task = "near"'), "two different rows"),
        (('primary = [{ pair = ["ours", "theirs"], task = "tuned" }]', "primary = []"), "primary"),
    ],
)
def test_a_decision_that_no_run_can_answer_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decided(tmp_path, DECIDED.replace(*change))


def test_what_is_not_measured_is_said_and_nothing_is_concluded(tmp_path: Path) -> None:
    loaded = decided(tmp_path)
    text = sections(loaded, tmp_path)
    assert "No verdict yet" in text
    assert "not measured: no run of " in text
    measured(tmp_path, loaded, "tuned", (80, 81), (70, 70))
    assert "not measured: 2 of 3 runs of " in sections(loaded, tmp_path)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((80, 82, 81), (70, 71, 71), "support"),
        ((70, 71, 71), (80, 82, 81), "contradiction"),
        ((80, 70, 81), (70, 80, 71), "undecided"),
    ],
)
def test_the_verdict_follows_from_the_primary_comparisons_over_seeds(
    tmp_path: Path, ours: tuple[int, ...], theirs: tuple[int, ...], said: str
) -> None:
    loaded = decided(tmp_path)
    measured(tmp_path, loaded, "tuned", ours, theirs)
    assert f"Verdict: {said}." in sections(loaded, tmp_path)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_another_number_of_seeds_than_was_decided_on_answers_nothing(tmp_path: Path, seeds: int) -> None:
    loaded = decided(tmp_path, seeds=seeds)
    measured(tmp_path, loaded, "tuned", (90, 91, 89, 90)[:seeds], (10, 11, 10, 10)[:seeds])
    text = sections(loaded, tmp_path)
    assert f"seeds 0, 1, 2 were decided on, {', '.join(map(str, range(seeds)))} measured" in text
    assert "Rule: seeds 0, 1, 2, no more and no fewer." in text
    assert "No verdict yet" in text


def test_as_many_seeds_of_which_one_is_another_answer_nothing(tmp_path: Path) -> None:
    loaded = decided(tmp_path, DECIDED.replace("[0, 1, 2]", "[0, 1, 3]"))
    measured(tmp_path, loaded, "tuned", (90, 91, 89), (10, 11, 10))
    text = sections(loaded, tmp_path)
    assert "seeds 0, 1, 3 were decided on, 0, 1, 2 measured" in text
    assert "No verdict yet" in text


@pytest.mark.parametrize("seeds", ["[1]", "[0, 1, 1]"])
def test_a_decision_on_one_seed_or_on_one_twice_is_refused(tmp_path: Path, seeds: str) -> None:
    with pytest.raises(UserError, match=r"decided\.seeds"):
        decided(tmp_path, DECIDED.replace("[0, 1, 2]", seeds))


def test_no_command_changes_what_was_decided(tmp_path: Path) -> None:
    decided(tmp_path)
    with pytest.raises(UserError, match="cannot be changed by a command"):
        load_suite(str(tmp_path / "asked.toml"), ["decided.seeds=[0, 1]"])


def test_draws_of_a_seed_count_as_one(tmp_path: Path) -> None:
    few = '[downstream.near]\nkind = "knn"\nshots = 1\ndraws = 2'
    decided(tmp_path)
    (tmp_path / "asked.toml").write_text(
        (tmp_path / "asked.toml").read_text().replace('[downstream.near]\nkind = "knn"', few)
    )
    loaded = load_suite(str(tmp_path / "asked.toml"))
    for method, counts in (("ours", (50, 52, 54, 56, 58, 60)), ("theirs", (40, 41, 45, 44, 46, 50))):
        names = [f"near/{method}/seed{seed}{draw}" for seed in range(3) for draw in ("", "-draw1")]
        for name, count in zip(names, counts, strict=True):
            recorded(tmp_path, loaded, name, share(count))
    (_, few_labels) = answers(View.read(loaded, tmp_path))
    assert few_labels.compared is not None
    assert few_labels.p == pytest.approx(p_over_seeds([0.105, 0.105, 0.11]))


def test_the_same_difference_with_every_seed_is_an_answer(tmp_path: Path) -> None:
    loaded = decided(tmp_path)
    measured(tmp_path, loaded, "tuned", (80, 81, 79), (70, 71, 69))
    measured(tmp_path, loaded, "near", (80, 81, 79), (80, 81, 79))
    (tuned, near) = answers(View.read(loaded, tmp_path))
    assert (tuned.p, tuned.outcome) == (0, "for")
    assert (near.p, near.outcome) == (1, "open")


@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_that_were_measured_on_other_copies_of_the_data_are_not_compared(tmp_path: Path, split: str) -> None:
    loaded = decided(tmp_path)
    for number, run in enumerate(run for run in loaded.runs if run.task == "tuned"):
        data = {"train": "t", "val": "v"} | ({split: "other"} if number == 0 else {})
        keep(tmp_path, run, share(80 + number), data=data)
    text = sections(loaded, tmp_path)
    assert "No verdict yet" in text
    why = {"train": "its runs have different copies of ImageNet-1K, train", "val": "not the same images or seeds"}
    assert f"not measured: {why[split]}" in text


@pytest.mark.parametrize("cached", ["cache", "another cache"])
def test_a_cache_is_no_other_copy_than_its_files_but_than_another_cache(tmp_path: Path, cached: str) -> None:
    loaded = load_suite("evidence")
    pairs = {"lut": cached, "mae-crop": "cache", "mae-equal": "files"}  # the last one's crop is not that of the cache
    trained = {}
    for run in loaded.runs:
        if run.stage == "pretrain" and run.task in pairs:
            trained[run.name] = keep(tmp_path, run, None, data={"train": pairs[run.task]})
        elif run.task == "caltech101-whitened" and run.method in pairs:
            encoder = {"run": trained[str(run.needs)].identity}
            keep(tmp_path, run, share(50 + run.seed), data={"train": "t", "val": "v"}, encoder=encoder)
    why_not = {
        one.decided.pair[1]: one.why_not
        for one in answers(View.read(loaded, tmp_path))
        if one.decided.task == "caltech101-whitened" and one.decided.pair[1] in pairs
    }
    other = "" if cached == "cache" else "its runs have different copies of Caltech-101, train"
    assert why_not == {"mae-equal": "", "mae-crop": other}


def test_the_machine_and_packages_behind_a_verdict_are_told(tmp_path: Path) -> None:
    loaded = decided(tmp_path)
    assert "behind these comparisons" not in sections(loaded, tmp_path)
    measured(tmp_path, loaded, "tuned", (80, 82, 81), (70, 71, 71))
    assert "The 6 runs behind these comparisons were made on " in sections(loaded, tmp_path)
    assert ", with the same packages." in sections(loaded, tmp_path)


def test_a_metric_that_the_task_lacks_is_named_with_those_that_it_has(tmp_path: Path) -> None:
    loaded = decided(tmp_path, DECIDED.replace('task = "tuned"', 'task = "tuned", metric = "mIoU"'))
    measured(tmp_path, loaded, "tuned", (80, 81, 82), (70, 70, 70))
    assert "no metric 'mIoU'; the task has top-1" in sections(loaded, tmp_path)


def test_the_tables_of_evidence_have_the_answers_for_programs_too(tmp_path: Path) -> None:
    loaded = decided(tmp_path)
    measured(tmp_path, loaded, "tuned", (80, 82, 81), (70, 71, 71))
    view = View.read(loaded, tmp_path)
    files = build_tables(view, all_sections(view))
    assert "primary,tuned,top-1,ours,theirs,10.333333," in files["decided.csv"]
    assert "**Verdict: support.**" in files["main.md"]
    (first, second) = answers(view)
    assert (first.outcome, second.outcome) == ("for", "not measured")


def test_a_family_is_corrected_as_holm_says() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_over_seeds_is_that_of_students_t() -> None:
    from scipy import stats

    differences = np.random.default_rng(0).normal(0.5, 1, 5).tolist()
    assert p_over_seeds(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-12)
    assert p_over_seeds([0.1]) is None
    assert (p_over_seeds([0.0, 0.0]), p_over_seeds([0.1, 0.1])) == (1, 0)


def test_support_needs_every_primary_comparison_and_contradiction_one_against_and_none_for() -> None:
    assert verdict(["for", "for"]) == "support"
    assert verdict(["for", "open"]) == "undecided"
    assert verdict(["against", "open"]) == "contradiction"
    assert verdict(["against", "for"]) == "undecided"
    assert verdict(["for", "not measured"]) == "not measured"
