"""Golden files: numbers that the published model gave for a few steps of LUT, and the geometry that they imply.

An ``.npz`` holds ``meta/*`` (settings), ``init/NAME`` (the student before step 0), ``decays`` (the teacher's momentum
at each step), ``stepS/*`` (views, noise, losses and outputs of step S), ``grad0/NAME`` (gradients of step 0), and
``final/NAME`` and ``final_teacher/NAME`` (weights after the last step), under the published model's names.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor

from lutbench.errors import UserError, listed
from pretrain.autoencoder import Decoder
from pretrain.context import ContextLoss, head
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

_SETTINGS = ("patch_size", "num_heads", "decoder_num_heads", "mask_ratio", "lr", "weight_decay", "context_weight")


def published_name(name: str) -> str:
    """What the published model calls the student's parameter or buffer ``name``."""
    prefix = next(prefix for prefix in _PUBLISHED_PREFIXES if name.startswith(prefix))
    return _PUBLISHED_PREFIXES[prefix] + name.removeprefix(prefix)


class GoldenFile:
    """A golden file, read and checked: every entry is one that the format has, with the shape that follows.

    Raises:
        UserError: if the file is missing, is no ``.npz`` of arrays, or has unknown, missing or misshapen entries.
    """

    def __init__(self, path: Path) -> None:
        self._arrays = _read(path)
        try:
            self.momenta: list[float] = [float(decay) for decay in self._array("decays", dimensions=1)]
            """The teacher's, at each step."""
            self.student = self._build_student()
            """With the file's initial weights."""
            self._check_entries()
        except UserError as error:
            raise UserError(f"{path} is not a golden file of the LUT step: {error}") from error
        state = self.student.state_dict()
        self.student.load_state_dict({name: self.tensor(f"init/{published_name(name)}") for name in state})

    def number(self, name: str) -> float:
        """A scalar entry, at least 0."""
        value = float(self._array(name, dimensions=0))
        if not 0 <= value < math.inf:
            raise UserError(f"expected a number of at least 0 as {name}, found {value}.")
        return value

    def tensor(self, name: str) -> Tensor:
        """An entry, float32."""
        return torch.from_numpy(self._array(name).astype(np.float32))

    def views(self, step: int) -> Views:
        """The batch of a step."""
        view1, view2, noise = (self.tensor(f"step{step}/{name}") for name in ("view1", "view2", "noise"))
        return Views(view1=view1, view2=view2, noise=noise)

    def difference(self, name: str, ours: Tensor) -> float:
        """norm(ours - file) / norm(file); the norm of ``ours`` alone where the file has zeros only.

        Leaves out the middle third of an ``attn.qkv.bias``: the keys' bias cancels in the softmax, so its gradient is
        rounding noise, out of which AdamW makes whole steps.
        """
        file, our = torch.from_numpy(self._array(name).astype(np.float64)), ours.detach().double()
        if name.endswith("attn.qkv.bias"):
            file, our = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (file, our))
        scale = float(file.norm()) or 1.0
        return float((our - file).norm()) / scale

    def _array(self, name: str, dimensions: int | None = None) -> np.ndarray:
        if name not in self._arrays:
            raise UserError(f"it has no entry {name}.")
        array = self._arrays[name]
        if dimensions is not None and array.ndim != dimensions:
            raise UserError(f"expected {dimensions} dimensions of {name}, found shape {array.shape}.")
        return array

    def _size(self, name: str, dimension: int = 0) -> int:
        shape = self._array(name).shape
        if len(shape) <= dimension:
            raise UserError(f"expected more than {dimension} dimensions of {name}, found shape {shape}.")
        return int(shape[dimension])

    def _build_student(self) -> Student:
        patch_size = int(self.number("meta/patch_size"))
        width, patches = self._size("init/pos_embed", 2), self._size("init/pos_embed", 1) - 1
        grid = math.isqrt(patches)
        if grid * grid != patches:
            raise UserError(f"init/pos_embed has {patches} positions of patches, which make no square image.")
        if patch_size != self._size("init/patch_embed.proj.weight", 2):
            raise UserError(f"meta/patch_size = {patch_size} is not the side of init/patch_embed.proj.weight.")
        encoder = VisionTransformer(
            img_size=grid * patch_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=width,
            depth=self._depth("blocks"),
            num_heads=self._heads("meta/num_heads", width),
            mlp_ratio=self._mlp_ratio("blocks", width),
        )
        decoder_width = self._size("init/decoder_embed.weight")
        decoder = Decoder(
            width,
            decoder_width,
            self._depth("decoder_blocks"),
            self._heads("meta/decoder_num_heads", decoder_width),
            grid,
            patch_size,
            self._mlp_ratio("decoder_blocks", decoder_width),
        )
        hidden = self._size("init/head.0.weight")
        head_depth = self._count(r"init/head\.\d+\.weight", dimensions=2)
        norm: Literal["batch", "layer", "none"] = "none"
        if self._count(r"init/head\.\d+\.weight", dimensions=1):
            norm = "batch" if self._count(r"init/head\.\d+\.running_mean", dimensions=1) else "layer"
        return Student(
            encoder,
            decoder,
            mask_ratio=self.number("meta/mask_ratio"),
            context=ContextLoss(weight=self.number("meta/context_weight")),
            projector=head(width, hidden, head_depth, norm),
            predictor=head(width, hidden, head_depth, norm),
        )

    def _count(self, pattern: str, dimensions: int) -> int:
        return sum(re.fullmatch(pattern, name) is not None and a.ndim == dimensions for name, a in self._arrays.items())

    def _depth(self, blocks: str) -> int:
        return self._count(rf"init/{blocks}\.\d+\.attn\.qkv\.weight", dimensions=2)

    def _heads(self, name: str, width: int) -> int:
        heads = int(self.number(name))
        if heads < 1 or width % heads:
            raise UserError(f"a width of {width} does not divide into {name} = {heads} heads.")
        return heads

    def _mlp_ratio(self, blocks: str, width: int) -> float:
        hidden = self._size(f"init/{blocks}.0.mlp.fc1.weight")
        return (hidden + 0.5) / width  # timm multiplies by the width and rounds down

    def _check_entries(self) -> None:
        """Compare names and shapes with those that the student implies, and look at the settings."""
        expected = self._expected_shapes()
        of_no_use = {
            name for name in self._arrays if re.match(r"final_teacher/(decoder_|mask_token|predictor\.)", name)
        }
        problems = {
            "missing": expected.keys() - self._arrays.keys(),
            "unknown": self._arrays.keys() - expected.keys() - of_no_use,
            "of another shape than the others imply": {
                f"{name} {self._arrays[name].shape} instead of {shape}"
                for name, shape in expected.items()
                if name in self._arrays and self._arrays[name].shape != shape
            },
        }
        told = "; ".join(f"{what}: {listed(sorted(names))}" for what, names in problems.items() if names)
        if told:
            raise UserError(f"entries {told}.")
        for name in _SETTINGS:
            self.number(f"meta/{name}")

    def _expected_shapes(self) -> Mapping[str, tuple[int, ...]]:
        student = self.student
        shapes: dict[str, tuple[int, ...]] = {"decays": (len(self.momenta),)}
        settings = (
            "patch_size",
            "num_heads",
            "decoder_num_heads",
            "mask_ratio",
            "lr",
            "weight_decay",
            "context_weight",
        )
        shapes |= {f"meta/{name}": () for name in settings}
        for name, value in student.state_dict().items():
            published = published_name(name)
            shapes |= {f"init/{published}": tuple(value.shape), f"final/{published}": tuple(value.shape)}
            if name.startswith(("encoder.", "projector.")):
                shapes[f"final_teacher/{published}"] = tuple(value.shape)
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                shapes[f"grad0/{published_name(name)}"] = tuple(parameter.shape)
        embedding, width = student.encoder.patch_embed, student.encoder.embed_dim
        for step in range(len(self.momenta)):
            batch = self._size(f"step{step}/view1")
            images = (batch, 3, *embedding.img_size)
            outputs = (2 * batch, width)
            shapes |= {f"step{step}/view1": images, f"step{step}/view2": images}
            shapes |= {f"step{step}/noise": (batch, embedding.num_patches)}
            shapes |= {f"step{step}/mae_loss": (), f"step{step}/bc_loss": ()}
            shapes |= {f"step{step}/student": outputs, f"step{step}/teacher": outputs}
        shapes["step0/pred"] = (self._size("step0/view1"), embedding.num_patches, 3 * student.patch_size**2)
        return shapes


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}: give the path of a golden file (.npz) of the LUT step.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} could not be read: expected an .npz of plain arrays, found {error}.") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise UserError(f"{path}: expected numbers in {name}, found {array.dtype}.")
    return arrays
