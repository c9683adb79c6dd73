"""How glibc's malloc treats large blocks: it keeps those that are freed, so that the next ones need not be faulted in again."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""

KEPT = 2**31 - 1
"""Bytes, the most that mallopt takes: blocks up to this size come from the heap, and so much may lie free at its top."""


def keep_freed_memory() -> bool:
    """Tell malloc of this process, and so of those that are forked, to keep large blocks that are freed; return whether it does.

    By default each tensor above 32 MB is mapped, touched page by page and unmapped again, in every forward pass: told to keep
    them, an EfficientNet evaluated 66 images/s in place of 27 on two cores, and a ViT trained 5 % faster. Results are the same. Where there
    is no glibc nothing is done.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names or not os.confstr("CS_GNU_LIBC_VERSION"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
