"""Prints a checksum of what every corruption makes of an image: the same everywhere, whatever the processor can do."""

import hashlib
import json

from record_imagecorruptions import clean_images

from robustness.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt, draw_of


def digests() -> dict[str, str]:
    """By corruption, over all severities: the first 16 hex digits of a sha256."""
    found = {}
    for name in CORRUPTIONS + EXTRA:
        digest = hashlib.sha256()
        for index, image in enumerate(clean_images()[1:2]):
            for severity in SEVERITIES:
                digest.update(corrupt(image, name, severity, draw_of(name, severity, index)).tobytes())
        found[name] = digest.hexdigest()[:16]
    return found


if __name__ == "__main__":
    print(json.dumps(digests()))
