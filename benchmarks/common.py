"""What the benchmarks share: models, the line of a machine, and images cut from photographs that ship in packages."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph, square
from lutbench.provenance import hardware, packages
from lutbench.train.processes import accelerator
from lutbench.train.randomness import generator

MODELS = {"S": "vit_small_patch16_224", "B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}


def heading(*how: str, versions: Sequence[str] = ("python", "torch", "timm")) -> str:
    """Return what stands above a table: the machine, ``how`` it was measured, versions of packages, and the command."""
    of_packages = ", ".join(f"{name} {packages()[name]}" for name in versions)
    line = "; ".join([str(hardware(accelerator().num_processes)), *how, of_packages])
    return f"{line}.\n\n    {' '.join(['python', *sys.argv])}\n"


def write_crops(folder: Path, count: int, names: Sequence[str]) -> None:
    """Write crops of photographs as ImageNet-C stores its images, 224 x 224 JPEGs of quality 85, in class folders in turn."""
    photographs = [load_photograph(file) for file in PHOTOGRAPHS.values()]
    draw = generator(0)
    for number in range(count):
        picture = photographs[number % len(photographs)]
        crop = picture.crop(square(draw, (0, 0, *picture.size), (180, 260))).resize((224, 224))
        of_class = folder / names[number % len(names)]
        of_class.mkdir(parents=True, exist_ok=True)
        crop.save(of_class / f"{number}.JPEG", quality=85)
