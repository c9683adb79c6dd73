"""Golden files: numbers that the published model computed for a few steps of LUT, and the geometry that they imply.

An ``.npz`` holds ``meta/*`` (settings), ``init/NAME`` (the student before step 0), ``decays`` (the teacher's momentum
at each step), ``stepS/*`` (views, noise, losses and outputs of step S), ``grad0/NAME`` (gradients of step 0), and
``final/NAME`` and ``final_teacher/NAME`` (weights after the last step), under the published model's names.
"""

import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor

from lutbench.arrays import MAX_BYTES, read_arrays
from lutbench.errors import UserError, listed
from pretrain.context import ContextLoss, head
from pretrain.frameworks.mae import MAE
from pretrain.student import Student
from pretrain.views import Views

_PUBLISHED_PREFIXES = {
    "encoder.": "",
    "decoder.mask_token": "mask_token",
    "decoder.predict.": "decoder_pred.",
    "decoder.": "decoder_",
    "projector.": "head.",
    "predictor.": "predictor.",
}

_NOT_COMPARED = r"final_teacher/(decoder_.*|mask_token|predictor\..*|.*\.num_batches_tracked)"
"""Entries without a meaningful value: the published teacher's decoder, predictor and counters, which are never used."""


def published_name(name: str) -> str:
    """Return the published model's name of the student's parameter or buffer ``name``."""
    prefix = next(prefix for prefix in _PUBLISHED_PREFIXES if name.startswith(prefix))
    return _PUBLISHED_PREFIXES[prefix] + name.removeprefix(prefix)


class GoldenFile:
    """A golden file. When an entry is read, its existence and shape are checked.

    Raises:
        UserError: if the file is missing or is not an ``.npz`` of arrays; in every method, if an entry is not as expected.
    """

    def __init__(self, path: Path) -> None:
        self._arrays = _read(path)
        self._unread = {name for name in self._arrays if not re.fullmatch(_NOT_COMPARED, name)}

    def number(self, name: str) -> float:
        """Return a scalar entry, at least 0."""
        value = float(self._array(name, ()))
        if not 0 <= value < math.inf:
            raise UserError(f"expected a number of at least 0 as {name}, found {value}.")
        return value

    def momenta(self) -> list[float]:
        """Return the teacher's momentum at each step."""
        return [float(decay) for decay in self._array("decays", (None,))]

    def student(self) -> Student:
        """Return a student of the file's geometry with its initial weights."""
        patch_size = int(self.number("meta/patch_size"))
        _, positions, width = self._array("init/pos_embed", (1, None, None)).shape
        self._array("init/patch_embed.proj.weight", (width, 3, patch_size, patch_size))
        depth, heads, mlp_ratio = self._blocks("blocks", "meta/num_heads", width)
        encoder = VisionTransformer(
            img_size=math.isqrt(positions - 1) * patch_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
        )
        decoder_width = len(self._array("init/decoder_embed.weight", (None, width)))
        mae = MAE(encoder, decoder_width, *self._blocks("decoder_blocks", "meta/decoder_num_heads", decoder_width))
        norm: Literal["batch", "layer", "none"] = "layer" if "init/head.1.weight" in self._arrays else "none"
        if "init/head.1.running_mean" in self._arrays:
            norm = "batch"
        hidden = len(self._array("init/head.0.weight", (None, width)))
        head_depth = self._count(r"init/head\.\d+\.weight", dimensions=2)
        student = Student(
            encoder,
            mae,
            mask_ratio=self.number("meta/mask_ratio"),
            context=ContextLoss(weight=self.number("meta/context_weight")),
            projector=head(width, hidden, head_depth, norm),
            predictor=head(width, hidden, head_depth, norm),
        )
        initial = {n: self._tensor(f"init/{published_name(n)}", t.shape) for n, t in student.state_dict().items()}
        student.load_state_dict(initial)
        return student

    def views(self, step: int, student: Student) -> Views:
        """Return the batch of a step."""
        embedding = student.encoder.patch_embed
        batch = len(self._array(f"step{step}/view1", (None, None, None, None)))
        view1, view2 = (self._tensor(f"step{step}/{v}", (batch, 3, *embedding.img_size)) for v in ("view1", "view2"))
        return Views(view1, view2, self._tensor(f"step{step}/noise", (batch, embedding.num_patches)))

    def difference(self, name: str, ours: Tensor) -> float:
        """Return norm(ours - file) / norm(file); the norm of ``ours`` alone where the file has zeros only.

        Leaves out the middle third of an ``attn.qkv.bias``: the keys' bias cancels in the softmax, so its gradient is
        rounding noise, out of which AdamW makes whole steps.
        """
        file = torch.from_numpy(self._array(name, ours.shape).astype(np.float64))
        our = ours.detach().double()
        if name.endswith("attn.qkv.bias"):
            file, our = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (file, our))
        scale = float(file.norm()) or 1.0
        return float((our - file).norm()) / scale

    def check_all_read(self) -> None:
        """Raise UserError if the file has entries that nothing asked for."""
        if self._unread:
            raise UserError(f"unknown entries: {listed(sorted(self._unread))}.")

    def _array(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return an entry of ``shape``, in which None stands for any size."""
        if name not in self._arrays:
            raise UserError(f"it has no entry {name}.")
        array = self._arrays[name]
        if array.ndim != len(shape) or any(
            want not in (None, has) for want, has in zip(shape, array.shape, strict=True)
        ):
            raise UserError(f"expected shape {tuple(shape)} of {name}, found {array.shape}.")
        self._unread.discard(name)
        return array

    def _tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        return torch.from_numpy(self._array(name, shape).astype(np.float32))

    def _blocks(self, blocks: str, heads_name: str, width: int) -> tuple[int, int, float]:
        """Return depth, attention heads and MLP ratio of the encoder's or the decoder's blocks."""
        heads = int(self.number(heads_name))
        if heads < 1 or width % heads:
            raise UserError(f"the width {width} is not a multiple of {heads_name} = {heads}.")
        hidden = len(self._array(f"init/{blocks}.0.mlp.fc1.weight", (None, width)))
        depth = self._count(rf"init/{blocks}\.\d+\.mlp\.fc1\.weight", dimensions=2)
        return depth, heads, (hidden + 0.5) / width  # timm multiplies by the width and rounds down

    def _count(self, pattern: str, dimensions: int) -> int:
        return sum(re.fullmatch(pattern, name) is not None and a.ndim == dimensions for name, a in self._arrays.items())


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than the maximum of {MAX_BYTES:,}")
        arrays = read_arrays(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}: give the path of a golden file (.npz) of the LUT step.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} could not be read: expected an .npz of plain arrays, found {error}.") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not array.size:
            raise UserError(f"{path}: expected numbers in {name}, found {array.size} of {array.dtype}.")
    return arrays
