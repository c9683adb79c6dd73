"""Frequencies over the grid, and how alike tokens and images are: closed forms, plain loops, and intervals that cover."""

import math

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from analysis import similarity
from analysis.attention import through_blocks
from analysis.fourier import log_amplitudes
from analysis.similarity import alignment, token_similarity, uniformity
from lutbench.evaluate.statistics import bootstrap


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(side: int, frequency: int) -> Tensor:
    """Patch tokens (1, N, 3) of a wave that changes ``frequency`` times along rows and columns."""
    places = torch.arange(side)
    map_ = torch.cos(2 * math.pi * frequency * (places[:, None] + places) / side)
    return map_.reshape(1, -1, 1).expand(-1, -1, 3)


def test_a_checkerboard_has_all_amplitude_at_the_highest_frequency() -> None:
    board = (-1.0) ** (torch.arange(14)[:, None] + torch.arange(14))
    amplitudes = log_amplitudes(board.reshape(1, 196, 1).expand(-1, -1, 5))
    assert amplitudes.shape == (1, 7)
    assert amplitudes[0, -1] == pytest.approx(math.log(196 / 1e-6), abs=1e-3)
    assert amplitudes[0, :-1].abs().max() < 1e-3


@pytest.mark.parametrize("side", [7, 8])
def test_a_wave_has_its_amplitude_at_its_frequency(side: int) -> None:
    for frequency in range(1, side // 2 + 1):
        amplitudes = log_amplitudes(wave(side, frequency))[0]
        assert amplitudes.shape == (side // 2,)
        assert amplitudes.argmax() == frequency - 1


def test_a_constant_has_all_amplitude_at_frequency_zero() -> None:
    amplitudes = log_amplitudes(torch.ones(1, 16, 4))
    torch.testing.assert_close(amplitudes, torch.full((1, 2), math.log(1e-6 / 16)), rtol=0, atol=1e-3)


def plain_amplitudes(tokens: NDArray[np.float64]) -> list[float]:
    """The curve of one image, channel after channel, by the sums that define the transform."""
    side = math.isqrt(len(tokens))
    rows, columns = np.divmod(np.arange(len(tokens)), side)
    curve = []
    for k in range(side // 2 + 1):
        phases = np.exp(-2j * np.pi * k * (rows + columns) / side)
        curve.append(float(np.mean([math.log(abs(channel @ phases) + 1e-6) for channel in tokens.T])))
    return [value - curve[0] for value in curve[1:]]


def plain_similarity(tokens: NDArray[np.float64]) -> float:
    """The mean cosine of one image's pairs, from all of them."""
    directions = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    return float((directions @ directions.T)[~np.eye(len(tokens), dtype=bool)].mean())


def test_tokens_of_a_vit_base_have_the_values_of_plain_loops() -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("vit_base_patch16_224", depth=2, num_classes=0).eval()
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            blocks = through_blocks(encoder, drawn(4, 3, 224, 224))
            patches = [tokens[:, 1:] for tokens in blocks.tokens]
            found = [(log_amplitudes(tokens), token_similarity(tokens)) for tokens in patches]
        for tokens, (amplitudes, similarities) in zip(patches, found, strict=True):
            assert amplitudes.dtype == similarities.dtype == torch.float32
            for image, values in enumerate(tokens.double().numpy()):
                np.testing.assert_allclose(amplitudes[image], plain_amplitudes(values), rtol=0, atol=1e-4)
                assert similarities[image] == pytest.approx(plain_similarity(values), abs=1e-5)


def test_tokens_of_half_precision_are_compared_in_float32() -> None:
    tokens = drawn(2, 16, 64).bfloat16()
    for measure in (log_amplitudes, token_similarity):
        assert torch.equal(measure(tokens), measure(tokens.float()))


def test_similarity_is_one_of_the_same_and_below_zero_of_opposites() -> None:
    same = drawn(1, 1, 8).expand(1, 5, 8) * torch.arange(1, 6)[None, :, None]
    assert token_similarity(same).item() == pytest.approx(1)
    assert token_similarity(torch.eye(6)[None]).item() == pytest.approx(0, abs=1e-7)
    assert token_similarity(torch.tensor([[[1.0, 0], [-3, 0]]])).item() == pytest.approx(-1)


def test_alignment_is_the_squared_distance_of_directions() -> None:
    first = drawn(5, 12)
    assert alignment(first, 3 * first).tolist() == pytest.approx([0] * 5, abs=1e-6)
    assert alignment(first, -first).tolist() == pytest.approx([4] * 5)
    second = drawn(5, 12, seed=1)
    expected = 2 - 2 * functional.cosine_similarity(first.double(), second.double())
    assert alignment(first, second).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("rows", [7, 512])
def test_uniformity_is_that_of_all_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ROWS", rows)
    features = drawn(30, 6) + 0.5
    directions = functional.normalize(features.double())
    kernel = [
        math.exp(-2 * float((one - other).square().sum()))
        for i, one in enumerate(directions)
        for j, other in enumerate(directions)
        if i != j
    ]
    assert uniformity(features).mean().item() == pytest.approx(math.log(np.mean(kernel)), abs=1e-6)


def test_the_bootstrap_error_of_uniformity_is_its_spread_over_fresh_images() -> None:
    images = 200
    samples = [uniformity(drawn(images, 8, seed=seed) + torch.tensor([1.5] + [0.0] * 7)).numpy() for seed in range(400)]
    spread = float(np.std([values.mean() for values in samples], ddof=1))
    errors = [float(bootstrap(values[:, None], lambda sums: sums[:, 0] / images).std()) for values in samples[:20]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
