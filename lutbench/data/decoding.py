"""Decode image files to 8-bit RGB.

Every Pillow mode is converted to RGB as follows (our choices, where libraries differ):

- transparent images (RGBA, LA, PA, palettes with a transparent colour) are composited on white: the colour of a transparent
  pixel is arbitrary, and dropping the alpha channel, as torchvision does, would show it;
- 16-bit grayscale keeps the high byte, as Pillow does for 16-bit RGB; Pillow's own conversion would clip at 255. If fewer
  bits are used (``bits``), for example by a 12-bit camera, the upper 8 of these are kept;
- floating-point images are rejected, because their range is unknown;
- of an animation the first frame is used; pixels are as stored, without EXIF rotation (as torchvision).
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
"""Exceptions that Pillow raises for files that are truncated, damaged or not images."""


END = {
    "PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "JPEG2000": b"\xff\xd9", "GIF": b";", "WEBP": b"", "AVIF": b"",
}  # fmt: skip
"""End marker of each compressed format; empty if it has none. In uncompressed formats zeros are black pixels."""

ZEROS = 64
"""A compressed file with at least this many zero bytes at its end, and at least an eighth of the file, was not written completely.
(A plain WEBP image can end with a sixteenth of zeros.)"""


class UndecodableImage(UserError):
    """An image file that cannot be decoded. The message names it."""


def decode(content: bytes, name: str, bits: int | None = None) -> Image.Image:
    """Decode the image in ``content`` to mode RGB. ``bits`` is the bit depth of greyscale images with more than 8 bits, by default 16.

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
    """Decode the image in ``content`` to the same pixels as :func:`decode`, bit for bit; colour JPEGs without Pillow.

    torchvision decodes colour JPEGs into memory that tensors can use without a copy. Other images, and all images if the two packages
    use different JPEG libraries, are decoded with Pillow.

    Raises:
        UndecodableImage: as :func:`decode`.
    """
    pixels = _jpeg(content) if content.startswith(b"\xff\xd8") and _jpegs_are_pillows() else None
    return np.array(decode(content, name, bits)) if pixels is None else pixels


def _jpeg(content: bytes) -> Pixels | None:
    """Return the pixels of a JPEG with three channels; None for other images and on errors, which Pillow then reports."""
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
    """Return whether torchvision's decoder gives the same pixels as Pillow's, tested on an image with chroma subsampling."""
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (5, 7, 3), np.uint8)
    written = BytesIO()
    Image.fromarray(picture).resize((61, 43), Image.Resampling.BICUBIC).save(written, "JPEG", quality=80, subsampling=2)
    found = _jpeg(written.getvalue())
    return found is not None and np.array_equal(found, np.array(decode(written.getvalue(), "a picture")))


def lacks_end(content: bytes, kind: str | None) -> bool:
    """Return whether the end of an image file is missing, which decoders may hide by filling in pixels; ``kind`` is Pillow's format.

    An incomplete download or a crash can leave a file of full length that ends with zeros. PNG always ends with a marker; in other
    formats some cameras append zeros after the marker.
    """
    if kind == "PNG":
        return END[kind] not in content
    written = content.rstrip(b"\0")
    zeros = len(content) - len(written)
    return kind in END and zeros > max(ZEROS, len(content) // 8) and not (END[kind] and written.endswith(END[kind]))


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Return ``image`` in mode RGB, converted as described above; ``bits`` as for :func:`decode`, higher values become white.

    Raises:
        ValueError: for a mode that has no conversion.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown; convert it to 8 bits")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return Image.fromarray(np.minimum(wide >> ((bits or 16) - 8), 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _advice(name: str, found: str) -> str:
    return (
        f'{name} cannot be decoded: {found}. Replace or remove the file, or set undecodable = "skip" in the suite file\'s '
        "[data] table to skip and count such images."
    )
