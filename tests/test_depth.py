"""What is right at every depth is what the task k-NN finds right with that depth's features."""

import torch
from torch import Tensor

from analysis.depth import right_by_depth
from lutbench.evaluate.neighbours import knn_classify


def encoded(seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Features (n, 4, 2, 12) that tell classes apart the better the deeper they are, the second kind worse; and labels."""
    centres = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (images,), generator=draw)
    noise = torch.randn(images, 4, 2, 12, generator=draw)
    share = torch.tensor([[0.0, 0.0], [0.3, 0.1], [1.0, 0.5], [3.0, 1.0]])
    return share[None, :, :, None] * centres[labels][:, None, None] + noise, labels


def test_each_depth_and_kind_of_features_votes_as_the_task_does() -> None:
    (queries, labels), (bank, bank_labels) = encoded(0, 90), encoded(1, 400)
    right = right_by_depth(queries, labels, bank, bank_labels, 6, 20, 0.07, torch.device("cpu"))
    assert right.shape == (90, 4, 2)
    assert right.dtype == bool
    for depth in range(4):
        for kind in range(2):
            ranked = knn_classify(queries[:, depth, kind], labels, bank[:, depth, kind], bank_labels, 6, 20, 0.07)
            assert right[:, depth, kind].tolist() == (ranked[:, 1] == 0).tolist()
    shares = right.mean(0)
    assert shares[0].max() < 0.35, "nothing but noise"
    assert shares[3, 0] > 0.95 > shares[2, 1] > shares[1, 1]


def test_an_encoder_without_a_class_token_has_one_kind_of_features() -> None:
    (queries, labels), (bank, bank_labels) = encoded(0, 30), encoded(1, 60)
    both = right_by_depth(queries, labels, bank, bank_labels, 6, 5, 0.07, torch.device("cpu"))
    one = right_by_depth(queries[:, :, :1], labels, bank[:, :, :1], bank_labels, 6, 5, 0.07, torch.device("cpu"))
    assert one.shape == (30, 4, 1)
    assert one[:, :, 0].tolist() == both[:, :, 0].tolist()
