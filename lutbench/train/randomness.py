"""Random numbers are always drawn from a key, never from the state of a generator.

Random draws for an image use the key (seed, epoch, image index), those for an optimiser step (seed, step). So results do not depend on
the number of workers or processes or on interruptions, and checkpoints contain no generator state.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np


class RngStream(IntEnum):
    """The purpose of a key, its first number, so that equal numbers used for two purposes give independent draws."""

    WEIGHTS = 1
    """Initial weights: (WEIGHTS, seed, part)."""
    ORDER = 2
    """The order of the images in one epoch: (ORDER, seed, epoch)."""
    IMAGE = 3
    """Crop, flip, colour and mask noise of one image: (IMAGE, seed, epoch, index)."""
    STEP = 4
    """Mixup and drop path of one optimiser step: (STEP, seed, step, ...)."""
    BUILD = 5
    """Data sets that the suite builds itself: (BUILD, set, ...)."""
    CORRUPTION = 6
    """What corrupts one image: (CORRUPTION, corruption, severity, index); sheets of frost: (CORRUPTION, sheet)."""
    OCCLUSION = 7
    """Patches of one image that are dropped or shuffled: (OCCLUSION, grid, index)."""
    ANALYSIS = 8
    """Which images are resampled together: (ANALYSIS, images)."""
    PICTURE = 9
    """Patches of one pictured image that are masked: (PICTURE, patches, place among the images)."""
    VIEW = 10
    """The second view of one image of an analysis: (VIEW, index)."""
    HELD_OUT = 12
    """Which training images of each class a setting is chosen on: (HELD_OUT, seed)."""
    CHOICE = 13
    """The images of a class that settings are chosen on: (CHOICE, class)."""
    SUBSET = 11
    """The images of a class that few shots are: (SUBSET, draw, class)."""


def generator(*key: int) -> np.random.Generator:
    """Return a NumPy generator that depends on ``key`` alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def reseed(*key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, so that the draws of libraries depend only on ``key``.

    CUDA's generators are seeded only if CUDA is in use in this process.
    """
    import torch  # here, so that what only lists files need not wait for it

    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - libraries draw from it
    torch_seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch_seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed all generators for a block as :func:`reseed` does, and put the CPU's generators back afterwards."""
    import torch

    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    reseed(*key)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.random.set_rng_state(state[2])
