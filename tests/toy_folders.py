"""Known sets in small, as they lie on disk, and what a check says of them."""

from pathlib import Path

import numpy as np
from image_files import COLOURS, encoded, picture
from PIL import Image
from rich.console import Console, RenderableType

from lutbench.data.verify import VerifyReport


def text_of(shown: RenderableType, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(shown)
    return console.export_text()


def flowers(root: Path, train: int = 60, val: int = 20) -> Path:
    """Flowers-17's layout, with one small image per file."""
    content = encoded(picture(COLOURS["newt"], side=4), "png")  # what follows an image's end is not read
    for split, count in (("train", train), ("val", val)):
        for number in range(1, 18):
            folder = root / "flowers17" / split / f"c{number}"
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"image_{k:04d}.jpg").write_bytes(content + f"{split} {number} {k}".encode())
    return root / "flowers17"


def camvid(root: Path, highest: int = 10) -> Path:
    """CamVid's layout, with small frames, and masks with every value from 0 to ``highest``, and 255."""
    mask = np.full((4, 6), 255, np.uint8)
    mask.flat[: highest + 1] = np.arange(highest + 1)
    frame, labels = encoded(picture(COLOURS["newt"]).resize((6, 4)), "jpeg"), encoded(Image.fromarray(mask), "png")
    for split, count in (("training", 367), ("validation", 101)):
        for kind, content, suffix in (("images", frame, "jpg"), ("annotations", labels, "png")):
            folder = root / "camvid" / kind / split
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k:04d}.{suffix}").write_bytes(content + split.encode())
    return root / "camvid"


def told(report: VerifyReport) -> str:
    return " ".join(report.problems)
