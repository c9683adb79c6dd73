"""What a record of an analysis has attached is read only if it goes with its outcomes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import analysed
import numpy as np
import pytest
from numpy.typing import NDArray
from toy_runs import HEAD

from analysis.attachments import check_attachments
from analysis.block_outcomes import BlockOutcomes
from lutbench.errors import UserError
from lutbench.recipes.loading import load_suite
from lutbench.record import Record, read_records

SUITE = f"""{HEAD}[data.toy]
path = "toy"
[encoder.b]
model = "vit_base_patch16_224"
image_size = 64
[method.scratch]
scratch = true
encoder = "b"
[analysis.looks]
data = "toy"
methods = ["scratch"]
"""
PIXELS = analysed.photographs(64)


def recorded(folder: Path, **changed: NDArray[Any]) -> Record:
    (folder / "toy.toml").write_text(SUITE)
    found = analysed.outcomes(4, 4, 16)
    kept = {**analysed.arrays(found, 3, 2, PIXELS), **changed}
    analysed.recorded(folder, load_suite(str(folder / "toy.toml")), "scratch", found, kept, PIXELS)
    return read_records(folder, "toy")["analysis/looks/scratch/seed0"]


def test_what_a_run_leaves_goes_together(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    check_attachments(record)
    names = {one.name for one in record.attachments}
    assert names == {"images", "heads", "grams", "maps", "colours", "reconstructions"}, "all that is refused below"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("heads", lambda of: of[:, :2]), ("heads", lambda of: of[0]), ("heads", lambda of: of * np.nan),
        ("grams", lambda of: of[..., 3:]), ("grams", lambda of: of[1:]), ("maps", lambda of: of[:1]),
        ("colours", lambda of: of[..., :2]), ("reconstructions", lambda of: of[:2]),
    ],
)  # fmt: skip
def test_what_no_run_leaves_is_refused_by_name(
    tmp_path: Path, name: str, change: Callable[[Any], NDArray[Any]]
) -> None:
    array = analysed.arrays(analysed.outcomes(4, 4, 16), 3, 2, PIXELS)[name]
    with pytest.raises(UserError, match=f"its record has {name} with unexpected shape .* for an analysis of 4 blocks"):
        check_attachments(recorded(tmp_path, **{name: change(array)}))


def test_maps_without_the_images_that_they_are_of_are_refused(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    del record.extra["marked"]
    with pytest.raises(UserError, match="its record has maps"):
        check_attachments(record)


def test_outcomes_of_no_block_and_spectra_of_zeros_are_none() -> None:
    arrays = analysed.outcomes(4, 4, 16).arrays()
    about = {name: arrays[name] for name in ("images", "count", "grid", "patch_size", "fitted")}
    with pytest.raises(ValueError, match="whose lengths do not match"):
        BlockOutcomes.from_arrays({**about, "alignment": np.ones(3, np.float32)})
    arrays["spectrum_pooled"] = arrays["spectrum_pooled"] * 0
    with pytest.raises(ValueError, match="a spectrum of zeros"):
        BlockOutcomes.from_arrays(arrays)
