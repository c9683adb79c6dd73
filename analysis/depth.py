"""k-NN accuracy by depth: the vote of the nearest neighbours with the features of every block."""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lutbench.evaluate.neighbours import knn_classify
from lutbench.progress import tracked


@torch.no_grad()
def right_by_depth(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    neighbours: int,
    temperature: float,
    device: torch.device,
) -> NDArray[np.bool_]:
    """Return whether the vote of an image's neighbours is for its label (n, L + 1, P), at every depth and by each of P features.

    ``queries`` (n, L + 1, P, D) with ``labels`` (n,) are the images, ``bank`` (M, L + 1, P, D) with ``bank_labels`` (M,) those that
    vote, on the CPU; the features are the mean over patches and, where there is one, the class token. The vote is
    :func:`lutbench.evaluate.neighbours.knn_classify`'s, that of the task k-NN, and one matrix of features at a time is on ``device``.
    """
    labels, bank_labels = labels.to(device), bank_labels.to(device)

    def right(depth: int, kind: int) -> Tensor:
        asking, voting = queries[:, depth, kind].to(device), bank[:, depth, kind].to(device)
        ranked = knn_classify(asking, labels, voting, bank_labels, classes, neighbours, temperature)
        return (ranked[:, 0] == labels).cpu()

    depths, kinds = range(queries.shape[1]), range(queries.shape[2])
    each = tracked(list(product(depths, kinds)), len(depths) * len(kinds), "neighbours at every depth")
    return np.asarray(torch.stack([right(*one) for one in each], 1).unflatten(1, (len(depths), len(kinds))).numpy())
