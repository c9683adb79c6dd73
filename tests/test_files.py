"""Files are whole or absent, also where the operating system refuses; and what it refuses is said in a paragraph."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lutbench.errors import Halt, UserError, listed
from lutbench.files import DamagedError, check_plain, read_json, whole_file, whole_folder, write_json
from lutbench.system_errors import explanation

MEGABYTE = 2**20

WRITE = """
import os
from pathlib import Path
from lutbench.files import Halt, whole_file

try:
    with whole_file(Path("weights.bin")) as partial:
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(open_files)]
        partial.write_bytes(bytes(2**22))
except Halt as error:
    print(error)
"""


def told_under(limit: int, value: int, folder: Path, open_files: int = 0) -> str:
    """What a process says that writes 4 MB and opens so many files, with a limit of the operating system's."""
    (folder / "weights.bin").write_bytes(b"before")
    answer = subprocess.run(
        [sys.executable, "-c", f"open_files = {open_files}\n{WRITE}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [file.name for file in folder.iterdir()] == ["weights.bin"]
    assert (folder / "weights.bin").read_bytes() == b"before"
    return answer.stdout


def test_a_file_that_is_too_large_for_the_limit_leaves_the_one_before(tmp_path: Path) -> None:
    told = told_under(resource.RLIMIT_FSIZE, MEGABYTE, tmp_path)
    assert told.startswith(
        "The file is larger than this disk or your limit allows: weights.bin could not be saved. Everything saved before "
    )


def test_too_many_open_files_are_said_to_be_that(tmp_path: Path) -> None:
    told = told_under(resource.RLIMIT_NOFILE, 64, tmp_path, open_files=80)
    assert told.startswith("Too many files are open: weights.bin could not be saved.")
    assert "lower workers, and repeat the command." in told


def test_a_path_that_is_too_long_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300) / "one.json"
    with pytest.raises(Halt, match=r"^The path is too long for this disk: .* could not be saved"):
        write_json(path, {})
    with pytest.raises(Halt, match=r"^The path is too long for this disk"), whole_folder(path.parent):
        raise AssertionError("there is no such folder to fill")


def test_a_folder_that_is_removed_while_it_is_written_to_is_said_to_be_gone(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one.json"

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("{}")
            shutil.rmtree(tmp_path / "runs")

    with pytest.raises(Halt, match=r"^A file or folder is missing: .*one\.json could not be saved"):
        write()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing", "link to itself"])
def test_what_stands_in_the_place_of_a_file_or_folder_concerns_that_one_alone(
    tmp_path: Path, kind: str, inside: bool
) -> None:
    """Elsewhere there is room: no reason to end the whole command."""
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        (place / "mine").mkdir(parents=True)
    else:
        place.symlink_to(place if kind == "link to itself" else tmp_path / "nowhere")
    path = place / "one" if inside else place

    def filled() -> None:
        with whole_folder(path):
            pass

    writes: list[Callable[[], None]] = [lambda: write_json(path, {}), filled]
    refused = []
    for write in writes:
        with suppress(UserError):
            write()
            continue
        with pytest.raises(UserError, match=rf"^{path} could not be saved \(") as caught:
            write()
        refused.append(type(caught.value))
    assert set(refused) <= {UserError}
    assert refused or (kind, inside) == ("folder", True)


def test_a_folder_in_the_place_of_json_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"expected a JSON file, found a folder"):
        read_json(tmp_path)


@pytest.mark.parametrize("character", "\u200b\u200e\u200f\ufeff\u061c\u202e\x1b\x9b")
def test_characters_that_cannot_be_seen_are_named(character: str) -> None:
    with pytest.raises(ValueError, match=r"label: the control character '\\"):
        check_plain({"label": f"LU{character}T"})


def test_names_that_cannot_be_printed_are_escaped_in_lists() -> None:
    assert listed(["norm.weight", "head\x1b[31m.bias", "a\u200bb"]) == r"norm.weight, 'head\x1b[31m.bias', 'a\u200bb'"


def test_a_users_mistake_inside_the_block_stays_what_it_is(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"^a\.jpg cannot be read: No space left") as caught,
        whole_file(tmp_path / "one"),
    ):
        raise UserError("a.jpg cannot be read: No space left on device")
    assert not isinstance(caught.value, Halt)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "The disk is full"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "Too many files are open"),
        (OSError(errno.EROFS, "Read-only file system"), "The disk is read-only"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), os.strerror(errno.ELOOP)),
    ],
)
def test_errors_of_the_system_are_known_whoever_reports_them(error: Exception, what: str) -> None:
    found = explanation(error)
    assert found is not None
    assert found[0] == what


def test_other_errors_are_no_errors_of_the_system() -> None:
    assert explanation(ValueError("shapes differ")) is None
