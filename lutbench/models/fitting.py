"""Check whether weights fit a model: apply timm's checkpoint filters, and report differing sizes, names and shapes."""

import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

import torch
from torch import Tensor, nn

from lutbench.errors import UserError, listed


def sizes_that_differ(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return the differences in size between ``given`` weights of a Vision Transformer and the ``expected`` ones, with both numbers.

    Empty if there are none, or one of them is not a Vision Transformer.
    """
    wanted, found = _sizes(expected), _sizes(given)
    return ". ".join(
        f"The weights have {found[size]}, the encoder {wanted[size]}"
        for size in wanted
        if size in found and wanted[size] != found[size]
    )


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the sizes of a Vision Transformer under timm's names, in words."""
    patches, hidden = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if patches is None or patches.ndim != 4 or not blocks:
        return {}
    registers = tensors.get("reg_token", tensors.get("storage_tokens"))
    sizes = {
        "patch": f"patches of {patches.shape[-1]} pixels",
        "channels": f"{patches.shape[1]} channels of input",
        "width": f"a width of {len(patches)}",
        "depth": f"{len(blocks)} blocks",
        "class token": "a class token" if "cls_token" in tensors else "no class token",
        "registers": f"{0 if registers is None else registers.shape[-2]} registers",
    }
    if hidden is not None:
        sizes["hidden"] = f"MLPs of {len(hidden)} hidden units"
    return sizes


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], model: str) -> str:
    """Return the missing, unexpected and wrongly shaped or typed tensors of ``given`` for the ``model``; empty if all fit."""
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    problems = [f"missing: {listed(missing)}"] if missing else []
    problems += [f"not part of the {model}: {listed(unknown)}"] if unknown else []
    problems += [
        f"{listed([name])}: expected {tuple(expected[name].shape)}, found {tuple(given[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name].shape != given[name].shape
    ][:5]
    problems += [
        f"{name}: expected floating-point numbers, found {str(given[name].dtype).removeprefix('torch.')}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name].is_floating_point() and not given[name].is_floating_point()
    ][:5]
    return "; ".join(problems)


def filtered(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights converted by timm's ``checkpoint_filter_fn`` for a ``model``: timm's names and the model's sizes.

    Raises:
        UserError: if the conversion fails, or would drop non-zero biases, such as those of a DINOv3 for a timm model without them.
    """
    own = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if own is None:
        return dict(tensors)
    held = {name: torch.zeros(t.shape) if t.is_meta and name.endswith(TABLE) else t for name, t in tensors.items()}
    try:
        with torch.device("cpu"), redirect_stdout(StringIO()):  # it prints what it comes across
            found: dict[str, Tensor] = own(held, model)
    except Exception as error:  # of names and shapes that it was not written for, whatever these lead to
        raise UserError(
            f"{where}: the weights do not fit {type(model).__name__}: timm's own conversion failed ({type(error).__name__}: {error}). "
            "Set the architecture that the weights belong to, or use other weights."
        ) from error
    for name, bias in tensors.items():
        if name.endswith(QKV_BIAS) and "storage_tokens" in tensors and not bias.is_meta:
            kept = name.replace(QKV_BIAS, "q_bias") in found
            if (bias.chunk(3)[1] if kept else bias).any():
                raise UserError(
                    f"{where}: {name} is not zero, but the encoder has no such bias. Choose timm's model of the same name with qkvb."
                )
    return found


TABLE = "relative_position_bias_table"
QKV_BIAS = "qkv.bias"
