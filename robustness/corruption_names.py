"""The corruptions of ImageNet-C by name: what is known of a corrupted copy without making one."""

from collections.abc import Sequence

from lutbench.errors import UserError, nearest

REVISION = 1
"""Revision of the pixels that the functions make: whoever changes them raises it."""

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""Names of the fifteen, in ImageNet-C's order."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Names of the four extra ones: never part of a mean over the fifteen."""

NAMES = (*CORRUPTIONS, *EXTRA)
"""All of them: what is drawn for an image depends on the place of the corruption among these."""


def check_names(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Check that there are such corruptions and severities.

    Raises:
        UserError: naming the first that is not there, and the nearest name.
    """
    for name in corruptions:
        if name not in NAMES:
            raise UserError(
                f"There is no corruption {name!r}.{nearest(name, NAMES)} Corruptions: {', '.join(CORRUPTIONS)}; "
                f"extra: {', '.join(EXTRA)}."
            )
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"There is no severity {severity!r}: severities are {', '.join(map(str, SEVERITIES))}.")
