"""Files of arrays are not believed: what they say that they hold is looked at before any of it is unpacked."""

import io
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from downstream.segmentation.confusions import Confusions
from lutbench.arrays import MAX_ARRAYS, MAX_BYTES, Layout, read_array, read_arrays
from lutbench.evaluate.outcomes import Outcomes, PerImage, names_fingerprint
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes

LAYOUT: Layout = {"label": (("i2", "i4"), 1), "images": (("U",), 0), "#.score": (("f4",), 1)}


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def npy(array: Any, shape: tuple[int, ...] | None = None, pickled: bool = False) -> bytes:
    """An array as NumPy keeps it; with a ``shape`` in its header that it need not have."""
    content = io.BytesIO()
    array = np.asarray(array)
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(content, header | ({} if shape is None else {"shape": shape}))
    return content.getvalue() + (b"pickle" if pickled else array.tobytes())


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    return content.getvalue()


def bomb(size: int) -> bytes:
    """So many zero bytes as an array of labels."""
    return zipped({"label": npy(np.zeros(0, np.int16), (size // 2,)) + bytes(size)})


def encrypted(content: bytes) -> bytes:
    """The same with the flag of encryption in both of its headers."""
    values = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        values[content.index(signature) + offset] |= 1
    return bytes(values)


def test_arrays_come_back_as_they_were() -> None:
    label, score = np.arange(7, dtype=np.int16), np.linspace(0, 1, 3, dtype=np.float32)
    read = read_arrays(
        npz(**{"label": label, "images": np.array("ab"), "12.score": score, "3.score": score[:0]}), LAYOUT
    )
    assert read.keys() == {"label", "images", "12.score", "3.score"}
    np.testing.assert_array_equal(read["label"], label)
    np.testing.assert_array_equal(read["12.score"], score)
    assert (str(read["images"]), read["3.score"].shape) == ("ab", (0,))
    with pytest.raises(ValueError, match="read-only"):
        read["label"][0] = 1
    table = np.arange(6.0).reshape(2, 3)
    for order in (table, np.asfortranarray(table)):
        np.testing.assert_array_equal(read_array(_saved(order)), table)


def _saved(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a complete .npz file"),
        (b"PK not a zip", "not a complete .npz file"),
        (npz(label=np.arange(9, dtype=np.int16))[:-30], "not a complete .npz file"),
        (npz(other=np.arange(9)), "arrays other"),
        (npz(**{"x.score": np.zeros(3, np.float32)}), "arrays x.score"),
        (npz(**{"1.2.score": np.zeros(3, np.float32)}), "arrays 1.2.score"),
        (npz(label=np.arange(9.0)), "'label' of shape (9,) and type float64"),
        (npz(label=np.zeros((3, 3), np.int16)), "'label' of shape (3, 3) and type int16"),
        (npz(images=np.array(7)), "'images' of shape () and type int64"),
        (zipped({"label": npy(np.zeros(4, np.int16), (10**15,))}), "shape (1000000000000000,)"),
        (zipped({"label": npy(np.zeros(4, np.int16), (3,))}), "shape (3,) and type int16 in"),
        (zipped({"label": npy(np.zeros(4, np.int16), (-4,))}), "shape (-4,)"),
        (zipped({"label": npy(np.zeros(1, object), pickled=True)}), "type object"),
        (zipped({"label": b"no array"}), "magic string"),
        (zipped({"label": npy(np.arange(4, dtype=np.int16))}, zipfile.ZIP_LZMA), "a compression that NumPy does not write"),
        (encrypted(npz(label=np.arange(9, dtype=np.int16))), "is encrypted"),
        (bomb(MAX_BYTES + 2), "bytes together"),
        (zipped({f"{number}.score": b"" for number in range(MAX_ARRAYS + 1)}), f"{MAX_ARRAYS + 1} arrays of 0 bytes"),
    ],
    ids=lambda given: "" if isinstance(given, bytes) else None,  # a zip holds the time at which it was made
)  # fmt: skip
def test_what_is_no_file_of_these_arrays_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        read_arrays(content, LAYOUT)
    assert len(str(refused.value)) < 400


def test_a_damaged_byte_is_noticed() -> None:
    content = bytearray(npz(label=np.arange(200, dtype=np.int16)))
    content[120] ^= 255
    with pytest.raises(ValueError, match=r"not a complete \.npz file"):
        read_arrays(bytes(content), LAYOUT)


def test_two_arrays_of_one_name_are_refused() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("label.npy", npy(np.arange(3, dtype=np.int16)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("label.npy", npy(np.arange(4, dtype=np.int16)))
    with pytest.raises(ValueError, match="two arrays with the same name"):
        read_arrays(content.getvalue(), LAYOUT)


def test_a_zip_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    """1.6 GB of zeros in 7 MB, and a member that says that it is smaller than it is: read by a process that may have 1 GB."""
    chunk, content = bytes(2**20), tmp_path / "bomb.npz"
    file = zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with file as archive, archive.open("label.npy", "w") as member:
        member.write(npy(np.zeros(0, np.int16), (3 * 2**28,)))
        for _ in range(3 * 2**9):
            member.write(chunk)
    lying = bytearray(content.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", lying, lying.rindex(signature) + offset, 1000)
    (tmp_path / "lying.npz").write_bytes(lying)
    for name in ("bomb", "lying"):
        ended = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path / f"{name}.npz")],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
            env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.stdout.startswith("refused: "), ended.stderr


READ = """
import sys
from lutbench.arrays import read_arrays
try:
    read_arrays(open(sys.argv[1], "rb").read(), {"label": (("i2",), 1)})
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (npy(np.zeros(4), (10**15,)), r"shape \(1000000000000000,\)"),
        (npy(np.array(["a"])), "an array of type <U1"),
        (npy(np.zeros(1, object), pickled=True), "type object"),
        (b"", "EOF"),
        (b"\x93NUMPY\x03\x00", "an unknown version of NumPy's format"),
    ],
)
def test_an_array_that_is_not_one_of_numbers_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_array(content)


# What outcomes can be


IMAGES = names_fingerprint("abc")


def classified() -> Outcomes:
    return Outcomes.of([1, 2, 0], [1, 0, 0], [0, 2, 0], "abc")


def segmented() -> Confusions:
    counts = [np.array([[0, 0, 6], [0, 2, 2]]), np.array([[1, 1, 5], [2, 0, 1]]), np.array([[0, 1, 5]])]
    one = Confusions.of(counts, ["sky", "dog", "sea"], "abc")
    return Confusions.of(counts, ["sky", "dog", "sea"], "abc", one)


def shifted() -> RobustnessOutcomes:
    conditions = [
        ConditionOutcomes.of(name, "crop", ["3 classes"], [0, 1, 2], np.zeros((3, 1, 3)), "abc", scored=True)
        for name in ("fog/1", "fog/2")
    ]
    return RobustnessOutcomes("corruptions", tuple(conditions))


Change = Callable[[dict[str, NDArray[Any]]], object]


def put(name: str, value: Any) -> Change:
    return lambda arrays: arrays.update({name: np.array(value, arrays[name].dtype if name in arrays else None)})


CHANGES: list[tuple[PerImage, Change, str]] = [
    (classified(), put("label", [1, 2]), "2 labels, 3 predictions and 3 ranks"),
    (classified(), lambda a: a.update({name: a[name][:0] for name in ("label", "prediction", "rank")}), "0 labels"),
    (classified(), put("label", [1, 2, -1]), "a negative label, prediction or rank"),
    (classified(), put("rank", [0, -1, 0]), "a negative label, prediction or rank"),
    (classified(), put("rank", [0, 0, 0]), "whose rank is 0 although its prediction is wrong"),
    (classified(), put("rank", [1, 2, 0]), "or not 0 although it is right"),
    (classified(), lambda a: a.update(images=np.array("\x1b[31m")), "a fingerprint '\\x1b[31m'"),
    (segmented(), put("image", [0, 0, 1, 1, 3]), "numbers from 0 to 3, outside 0 to 2"),
    (segmented(), put("image", [0, 0, 1, 1, -1]), "numbers from -1 to 1"),
    (segmented(), put("label", [0, 0, 1, 2, 3]), "numbers from 0 to 3, outside 0 to 2"),
    (segmented(), put("prediction", [0, 2, 1, 0, -1]), "numbers from -1 to 2"),
    (segmented(), put("count", [6, 2, 5, 1, 0]), "numbers from 0 to 6, outside 1 to"),
    (segmented(), put("multi_scale_count", [6, 2, 5, 1, -4]), "numbers from -4 to 6"),
    (segmented(), put("count", [6, 2, 5, 1]), "differ in length"),
    (segmented(), put("image", [0, 1, 0, 1, 2]), "not in ascending order"),
    (segmented(), lambda a: a.update({"label": a["label"] * 0, "prediction": a["prediction"] * 0}), "appear twice"),
    (segmented(), put("n", 10**12), "1000000000000 images of 3 classes"),
    (segmented(), put("n", 0), "0 images of 3 classes"),
    (segmented(), put("classes", ["sky", "sky", "sea"]), "two classes with the same name"),
    (segmented(), put("classes", ["sky", "\x1b[1", "sea"]), "control character"),
    (shifted(), put("0.label", [0, 1]), "condition 0: 2 labels"),
    (shifted(), put("1.rank", [[0, -2, 1]]), "condition 1: a label, prediction, rank or score that is out of range"),
    (shifted(), put("1.prediction", [[0, -2, 1]]), "condition 1: a label, prediction, rank or score that is out of range"),
    (shifted(), put("0.score", [0.5, np.nan, 0.1]), "condition 0: a label, prediction, rank or score that is out of range"),
    (shifted(), put("0.score", [0.5, 0.1]), "condition 0: 3 labels"),
    (shifted(), put("cells", 1), "not those of 1 conditions"),
    (shifted(), put("cells", 10**15), "not those of 1000000000000000 conditions"),
    (shifted(), put("cells", -1), "not those of -1 conditions"),
    (shifted(), lambda a: a.update({"7.cell": a["0.cell"]}), "not those of 2 conditions"),
    (shifted(), lambda a: a.update({"7.cell": a.pop("0.cell")}), "0.cell"),
    (shifted(), lambda a: a.update({"0.cell": np.array("fog/2")}), "appears twice in the same preprocessing"),
    (shifted(), lambda a: a.update({"0.cell": np.array("fog")}), "'fog' is not a condition of corruptions"),
    (shifted(), lambda a: a.update({"0.cell": np.array("\x1b[1/1")}), "control character"),
    (shifted(), lambda a: a.update({"0.protocols": np.array(["a", "b"])}), "2 protocols"),
    (shifted(), lambda a: a.update(gap=np.array(["fog/1", "no"])), "no gap between fog/1 and no"),
    (shifted(), lambda a: a.update(kind=np.array("other")), "a kind of set 'other'"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "change", "told"), CHANGES)
def test_outcomes_that_cannot_be_are_refused(made: PerImage, change: Change, told: str) -> None:
    arrays = made.arrays()
    back = type(made).from_arrays(read_arrays(npz(**arrays), made.layout))
    assert [m.model_dump() for m in back.measurements()] == [m.model_dump() for m in made.measurements()]
    change(arrays)
    with pytest.raises((KeyError, ValueError)) as refused:
        type(made).from_arrays(read_arrays(npz(**arrays), made.layout))
    assert told in str(refused.value)
