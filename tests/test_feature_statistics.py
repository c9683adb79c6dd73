"""Features are centred, standardised and whitened by the training images' statistics, as plain formulas and scikit-learn have it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional
from toy_runs import performed, toy_run, write_images

from lutbench.errors import UserError
from lutbench.evaluate import feature_statistics
from lutbench.evaluate.feature_statistics import FLOOR, statistics_of, transform_of
from lutbench.evaluate.ranks import effective_rank


def cone(count: int, width: int = 12, seed: int = 0) -> Tensor:
    """Correlated features around one direction, float32."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(7))
    return torch.randn(count, width, generator=draw) @ mixing + 10


def transformed(name: str, features: Tensor, others: Tensor) -> Tensor:
    transform = transform_of(statistics_of(features), name)
    assert transform is not None
    return transform(others)


def test_mean_cosine_and_effective_rank_are_those_of_plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    features = cone(60)
    found = statistics_of(features)
    unit = functional.normalize(features.double(), dim=1)
    pairs = (unit @ unit.T)[~torch.eye(60, dtype=torch.bool)]
    assert found.mean_cosine == pytest.approx(pairs.mean().item(), abs=1e-12)
    centred = (features.double() - features.double().mean(0)).numpy()
    assert found.effective_rank == pytest.approx(effective_rank(np.linalg.svd(centred, compute_uv=False)), rel=1e-9)
    monkeypatch.setattr(feature_statistics, "ROWS", 7)
    cut = statistics_of(features)
    assert cut.mean_cosine == pytest.approx(found.mean_cosine, abs=1e-12)
    assert cut.effective_rank == pytest.approx(found.effective_rank, rel=1e-9)


def test_centring_takes_the_training_mean_off() -> None:
    features, others = cone(60), cone(20, seed=1)
    assert torch.allclose(transformed("centre", features, others), others - features.mean(0), atol=1e-4)


def test_standardising_is_scikit_learns_also_of_a_feature_that_does_not_vary() -> None:
    features, others = cone(60), cone(20, seed=1)
    features[:, 3] = 0.1
    expected = StandardScaler().fit(features.double().numpy()).transform(others.double().numpy())
    assert np.allclose(transformed("standardise", features, others.double()).numpy(), expected, atol=1e-9)


def test_whitened_features_have_the_identity_for_their_covariance_and_are_scikit_learns() -> None:
    features, others = cone(600).double(), cone(20, seed=1).double()
    white = transformed("whiten", features, features)
    assert torch.allclose(white.T @ white / 600, torch.eye(12, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(white.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-9)
    reference = PCA(whiten=True).fit(features.numpy())
    expected = reference.transform(others.numpy()) * (600 / 599) ** 0.5  # which divides by n - 1
    found = transformed("whiten", features, others).numpy()
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-6), "the same but for a rotation"


def test_fewer_images_than_features_are_whitened_in_the_directions_that_they_have() -> None:
    features = cone(8, width=40)
    white = transformed("whiten", features, features)
    assert white.shape == (8, 7)
    assert torch.allclose(white.T @ white / 8, torch.eye(7), atol=1e-4)
    assert transformed("whiten", features, cone(5, width=40, seed=1)).isfinite().all()


def test_directions_below_the_floor_are_left_out() -> None:
    draw = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    draw = torch.linalg.qr(draw - draw.mean(0))[0]
    variances = torch.tensor([1.0, 1.1 * FLOOR, 0.9 * FLOOR], dtype=torch.float64)
    assert transformed("whiten", draw * variances.sqrt(), draw).shape == (500, 2)


def test_a_layer_on_transformed_features_is_folded_into_one_on_features() -> None:
    features = cone(60).double()
    for name in ("centre", "standardise", "whiten"):
        transform = transform_of(statistics_of(features), name)
        assert transform is not None
        on = transform(features)
        weight, bias = torch.randn(4, on.shape[1]).double(), torch.randn(4).double()
        own_weight, own_bias = transform.folded(weight, bias)
        assert torch.allclose(features @ own_weight.T + own_bias, on @ weight.T + bias, atol=1e-8), name


def test_equal_features_have_no_direction_to_whiten() -> None:
    statistics = statistics_of(torch.ones(5, 3))
    assert (statistics.effective_rank, statistics.mean_cosine) == (0.0, pytest.approx(1.0))
    with pytest.raises(UserError, match="features of all training images are equal"):
        transform_of(statistics, "whiten")


@pytest.mark.parametrize("kind", [{"kind": "knn", "neighbours": 5}, {"kind": "logistic", "C": 1.0, "pool": "mean"}])
def test_a_probe_sees_transformed_features_and_records_what_they_were_before(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    """Of 30 images with 16 features, of which a few directions have nearly all of the variance."""
    write_images(tmp_path)
    found = {
        name: performed(toy_run(tmp_path, name, **kind, feature_transform=name, threads=1))
        for name in ("none", "centre", "standardise", "whiten")
    }
    assert len({(of["outcomes"], of["checkpoint"]) for of in found.values()}) > 1
    for name in ("mean_cosine", "effective_rank"):
        assert len({of["extra"][name] for of in found.values()}) == 1
    assert -1 < found["none"]["extra"]["mean_cosine"] < 1
    assert 1 < found["none"]["extra"]["effective_rank"] < 16
    assert all(of["measurements"]["top-1"] > 60 for of in found.values()), "three colours are easily told apart"
