"""From the bytes of an image file to 8-bit RGB.

Every mode that Pillow reads ends as RGB, by these choices (ours, where libraries differ):

- transparency (RGBA, LA, PA, palettes with a transparent colour) is laid on white: the colour under a transparent
  pixel is arbitrary, and dropping the alpha, as torchvision does, would show it;
- 16-bit grayscale keeps its high byte, as Pillow does for 16-bit RGB; its own conversion would clip at 255. Where fewer
  bits are used, as by a camera of 12 bits, the high byte is that of the bits that are;
- floating-point images are refused: their range is unknown;
- the first frame of an animation; pixels as stored, without EXIF rotation (as torchvision).
"""

import struct
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lutbench.errors import UserError

Pixels = NDArray[np.uint8]
"""(H, W, 3) An image, red first."""

WHITE = (255, 255, 255, 255)

BROKEN = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for files that are truncated, damaged or not images."""


END = {
    "PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "JPEG2000": b"\xff\xd9", "GIF": b";", "WEBP": b"", "AVIF": b"",
}  # fmt: skip
"""What the data of a compressed format ends with; empty if with nothing in particular. In others zeros are black pixels."""

ZEROS = 64
"""Zeros at the end of a compressed file, if they are also an eighth of it, that show that its rest was never written. WEBP
ends a plain image with a sixteenth of zeros."""


class UndecodableImage(UserError):
    """An image file that cannot be decoded. The message names it."""


def decode(content: bytes, name: str, bits: int | None = None) -> Image.Image:
    """Decode the image in ``content``, mode RGB. Of grey pixels of more than 8 bits ``bits`` are used; 16 if not given.

    Raises:
        UndecodableImage: naming ``name``, if it is empty, truncated, damaged, or of a kind Pillow cannot read.
    """
    if not content:
        raise UndecodableImage(_advice(name, "the file is empty"))
    try:
        image = Image.open(BytesIO(content))
        image.load()
        return to_rgb(image, bits)
    except BROKEN as error:
        found = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UndecodableImage(_advice(name, found)) from error


def decode_pixels(content: bytes, name: str, bits: int | None = None) -> Pixels:
    """Decode the image in ``content`` to the pixels of :func:`decode`, bit by bit, a JPEG in colour without Pillow.

    torchvision decodes these into memory that tensors take as it is. Of all else, and where the two packages' libraries of JPEG
    differ, the pixels are Pillow's.

    Raises:
        UndecodableImage: as :func:`decode`.
    """
    pixels = _jpeg(content) if content.startswith(b"\xff\xd8") and _jpegs_are_pillows() else None
    return np.array(decode(content, name, bits)) if pixels is None else pixels


def _jpeg(content: bytes) -> Pixels | None:
    """Return the pixels of a JPEG of three channels; None of any other, and where something is wrong, which Pillow shall name."""
    import torch  # here, so that what only lists files need not wait for it

    try:
        from torchvision.io import decode_jpeg  # which a later torchvision may not have

        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (ImportError, RuntimeError):
        return None
    if len(pixels) != 3:
        return None
    decoded: Pixels = pixels.permute(1, 2, 0).numpy()  # as it lies in memory
    return decoded


@cache
def _jpegs_are_pillows() -> bool:
    """Return whether torchvision's decoder gives Pillow's pixels here, of a picture with its colours at half the resolution."""
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (5, 7, 3), np.uint8)
    written = BytesIO()
    Image.fromarray(picture).resize((61, 43), Image.Resampling.BICUBIC).save(written, "JPEG", quality=80, subsampling=2)
    found = _jpeg(written.getvalue())
    return found is not None and np.array_equal(found, np.array(decode(written.getvalue(), "a picture")))


def lacks_end(content: bytes, kind: str | None) -> bool:
    """Return whether the end of an image file of a format of Pillow's is missing, though decoders may fill it up and not say so.

    A file that was given its length before its content, by a download or a crash, ends with zeros. PNG has its end in a mark,
    and others have theirs before the zeros that some cameras add.
    """
    if kind == "PNG":
        return END[kind] not in content
    written = content.rstrip(b"\0")
    zeros = len(content) - len(written)
    return kind in END and zeros > max(ZEROS, len(content) // 8) and not (END[kind] and written.endswith(END[kind]))


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Return ``image`` as mode RGB, by the choices above; ``bits`` as for :func:`decode`, and what is above them is white.

    Raises:
        ValueError: for a mode that has no conversion.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 bits")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return Image.fromarray(np.minimum(wide >> ((bits or 16) - 8), 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _advice(name: str, found: str) -> str:
    return (
        f'{name} cannot be decoded: {found}. Replace or remove the file, or set undecodable = "skip" in the data '
        "table of the suite file to pass over such images and count them."
    )
