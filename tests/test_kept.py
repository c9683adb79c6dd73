"""What is kept between commands: believed only if it is whole, bounded, and never in the way."""

from pathlib import Path

import pytest

from lutbench import kept

KEY, OTHER = "0" * 63 + "1", "0" * 63 + "2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which entries are kept."""
    monkeypatch.setenv("LUTBENCH_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept/counts"


def test_what_was_kept_is_recalled_under_its_own_key_and_sort() -> None:
    kept.keep("counts", KEY, [1, 2.5])
    assert kept.recall("counts", KEY) == [1, 2.5]
    assert kept.recall("counts", "1" * 64) is None
    assert kept.recall("figures", KEY) is None


def test_a_key_that_only_begins_like_one_that_is_kept_recalls_nothing() -> None:
    kept.keep("counts", KEY, [1])
    assert kept.recall("counts", OTHER) is None  # both are in the file of their first digits


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: text.replace("7.0", "8.0"), lambda _: ""]
)
def test_an_entry_that_is_cut_off_or_edited_counts_as_none_and_gives_way_to_the_next(damage, folder: Path) -> None:  # type: ignore[no-untyped-def]
    kept.keep("counts", KEY, [7.0])
    (path,) = folder.iterdir()
    path.write_text(damage(path.read_text()))
    assert kept.recall("counts", KEY) is None
    kept.keep("counts", KEY, [7.0])
    assert kept.recall("counts", KEY) == [7.0]


def test_the_oldest_entries_give_way_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(kept, "MOST", 8)
    keys = [f"{number:064x}"[::-1] for number in range(12)]
    for key in keys:
        kept.keep("counts", key, [1])
        assert len(list(folder.iterdir())) <= 8
    assert kept.recall("counts", keys[0]) is None
    assert kept.recall("counts", keys[-1]) == [1]


def test_nothing_is_kept_where_no_folder_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTBENCH_CACHE", str(tmp_path / "file"))
    kept.keep("counts", KEY, [1])
    assert kept.recall("counts", KEY) is None


def test_entries_are_in_the_users_folder_of_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.kept_folder() == tmp_path / "lutbench"
