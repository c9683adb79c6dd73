"""Records what another implementation of the corruptions does, for ``test_corruptions.py`` to compare ours with.

    pip install imagecorruptions-imaug==1.1.5 && python tests/record_imagecorruptions.py

writes ``tests/fixtures/imagecorruptions.json``. The package (Apache-2.0) has the strengths for
224-px images only. They count pixels, so they apply to images of any size; those here are of 96 x 96.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import data

FIXTURE = Path(__file__).parent / "fixtures" / "imagecorruptions.json"

NOT_COMPARED = ("frost", "elastic_transform")
"""The package's frost are photographs, ours are drawn; its elastic transform is another one than ImageNet-C's."""

SEEDED = ("impulse_noise", "glass_blur")
"""RngStream from generators of their own, not from NumPy's global one."""

REPEATS = 60


def clean_images() -> list[NDArray[np.uint8]]:
    """Three crops of 96 x 96 pixels: fur, a red cup, a face."""
    places = {"chelsea": (150, 60), "coffee": (250, 120), "astronaut": (170, 60)}
    return [np.ascontiguousarray(getattr(data, name)()[y : y + 96, x : x + 96]) for name, (x, y) in places.items()]


def statistics(clean: NDArray[np.uint8], corrupted: NDArray[np.uint8]) -> list[float]:
    """In grey levels: root mean square and mean of the change, and mean differences of neighbours across and down."""
    after = corrupted.astype(float)
    change = after - clean
    neighbours = [float(np.abs(np.diff(after, axis=axis)).mean()) for axis in (1, 0)]
    return [float(np.sqrt((change**2).mean())), float(change.mean()), *neighbours]


def record() -> dict[str, Any]:
    """Statistics of every corruption and severity: their means over images and repeats."""
    from imagecorruptions import corrupt, get_corruption_names  # type: ignore[import-not-found,import-untyped,unused-ignore]

    values: dict[str, list[list[float]]] = {}
    for name in get_corruption_names("all"):
        if name in NOT_COMPARED:
            continue
        values[name] = []
        for severity in range(1, 6):
            found = []
            for number, clean in enumerate(clean_images()):
                for seed in range(REPEATS * number, REPEATS * (number + 1)):
                    np.random.seed(seed)  # noqa: NPY002 - the package draws from it
                    own = {"seed": seed} if name in SEEDED else {}
                    found.append(statistics(clean, corrupt(clean, severity, name, **own)))
            values[name].append(np.mean(found, 0).round(3).tolist())
    packages = ("imagecorruptions-imaug", "numpy", "numba", "opencv-python", "scikit-image", "scipy", "pillow")
    return {"packages": {package: version(package) for package in packages}, "values": values}


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(record(), indent=1) + "\n")
