"""Find the encoder in a checkpoint from any code base, by the names of its tensors.

Every Vision Transformer has a patch embedding; the text before its name is the encoder's prefix. If there are several such prefixes, the
user chooses one (``part``). Tensors without the prefix are ignored. Every tensor with the prefix must be part of the encoder, or match a
pattern of parts that are left out (heads, decoders); otherwise the strict loading reports it by name.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from lutbench.errors import UserError, listed
from lutbench.models.converters import DIALECTS, Dialect, bias_in_every_block, without_class_position

WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\."
)
"""What parallel training, torch.compile, FSDP and activation checkpointing put into names."""

CONTAINERS = ("model", "state_dict", "model_state_dict", "net")
"""Keys of checkpoints that say nothing of what is under them, where everything is."""

FLATTENED = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?")
"""Parameters that FSDP made one of many, of which the shapes are lost."""

OPTIMIZERS = re.compile(r"(?:opt|optim|optimizers?|optimizer_states?|schedulers?|lr_schedulers?|scaler)\..*")
"""Where the state of an optimiser may have the names of the parameters."""

BESIDE = re.compile(
    r"(?:decoder|decoder_\w+|head|head_dist|heads|fc|classifier|projector|projection_head|predictor|prototypes|lm_head|cls_head"
    r"|pre_logits|dino_head|ibot_head)\..*"
    r"|decoder_pos_embed|mask_token|masked_embed"  # of masked image modelling: MAE, DINOv2 and SimMIM; iBOT
    r"|local_cls_norm\..*|rope_embed\.periods|(?:.*\.)?bias_mask|(?:.*\.)?relative_position_index"  # DINOv3; BEiT: what is computed
)
"""What may lie under an encoder's prefix besides the encoder: heads, projectors, decoders, mask tokens, and constants."""

MARKS = ("layer1.0.conv1.weight", "stages.0.blocks.0.conv_dw.weight")
"""A tensor of every ResNet, and one of every ConvNeXt, which have no patch embedding."""

OWN = re.compile(r"(?:fc_norm|attn_pool|head\.norm)\..*")
"""What some of timm's encoders have, and others have not: the fit decides."""


class ForeignEncoder(NamedTuple):
    """An encoder found in a checkpoint."""

    tensors: dict[str, Tensor]
    """Its tensors, with timm's names."""
    left_out: list[str]
    """Names in the file of tensors that were left out and belong to no other encoder."""
    read_as: str
    """The detected format, such as ``DINO teacher`` or ``timm``."""
    resized: str = ""
    """How the position embedding was resized, in words; empty if it was not."""

    def without(self, names: Collection[str]) -> "ForeignEncoder":
        """Return it without tensors that a model does not take."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}
        return self._replace(tensors=tensors, left_out=[*self.left_out, *names])

    def __str__(self) -> str:
        resized = f", {self.resized}" if self.resized else ""
        return f"read as: {self.read_as}, {len(self.tensors)} tensors, {len(self.left_out)} left out{resized}"


def encoder_in(tensors: Mapping[str, Tensor], where: str, part: str = "", like: Collection[str] = ()) -> ForeignEncoder:
    """Return the only encoder in ``tensors`` (names joined by dots), or the one that ``part`` selects.

    ``like`` are the tensor names of the timm model; a network without a patch embedding is found by the first of them, or without
    ``like`` by :data:`MARKS`.

    Raises:
        UserError: if there is no encoder, or several without ``part``, or none with that name (the message lists all); or if its
            parameters are flattened.
    """
    names = _unwrapped(tensors)
    found = _encoders(names) or _networks(names, [like] if like else [[mark] for mark in MARKS])
    if not found:
        raise _none_found(tensors, where, like)
    prefix = _chosen(list(found), where, part)
    inside = {name.removeprefix(prefix): name for name in _under(names, prefix, found)}
    if flat := [names[name] for name in inside.values() if FLATTENED.fullmatch(name)]:
        raise _flattened(flat, where)
    dialect = found[prefix]
    if prefix:
        inside |= {name: name for name in names if dialect.also.fullmatch(name)}
    beside = prefix.rpartition(".")[0].rpartition(".")[0]  # what wraps the encoder and, say, its head
    neighbours = set(_under(names, f"{beside}." if beside else "", found) if prefix else []) - set(inside.values())
    left_out = [n for n in inside if not OWN.fullmatch(n) and (BESIDE.fullmatch(n) or dialect.left_out.fullmatch(n))]
    own = {name: tensors[names[full]] for name, full in inside.items() if name not in left_out}
    return ForeignEncoder(
        as_timm(dialect.convert(own)),
        [names[inside[name]] for name in left_out] + [names[name] for name in sorted(neighbours)],
        _read_as(dialect, prefix, names, list(inside)),
    )


def as_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose names are like timm's under those that timm has, as far as they differ in no other way.

    - DINOv2's blocks in chunks, ``blocks.CHUNK.N``, are counted without.
    - DINOv2's registers are ``reg_token``; timm's models have no position embedding of the class token then, which is added to it.
    - DINOv2's SwiGLU is ``mlp.fc1`` and ``mlp.fc2``.
    - BEiT's relative position biases that all blocks share are each block's.
    - LayerScale is ``ls1.gamma``, but in BEiT, which timm has with ``gamma_1``.
    """
    found = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): tensor for name, tensor in tensors.items()}
    renamed: list[tuple[str, str]] = []
    if _has(found, r".*\.mlp\.w12\..*"):
        renamed += [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
    if not _has(found, r".*(\.q_bias|relative_position_bias_table|storage_tokens|reg_token)"):
        renamed += [(r"\.gamma_([12])$", r".ls\1.gamma")]
    for pattern, replacement in renamed:
        found = {re.sub(pattern, replacement, name): tensor for name, tensor in found.items()}
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        without_class_position(found)
    bias_in_every_block(found, "rel_pos_bias.relative_position_bias_table")
    return found


def _has(names: Collection[str], pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names without :data:`WRAPPERS`, and what each is in the file; the optimiser's are left out."""
    names = {WRAPPERS.sub("", name): name for name in tensors}
    if len(names) < len(tensors):  # two networks that differ in these alone
        names = {name: name for name in tensors}
    return {name: full for name, full in names.items() if not OPTIMIZERS.fullmatch(name)}


def _encoders(names: Collection[str]) -> dict[str, Dialect]:
    """Return the prefix of every patch embedding, ``teacher.backbone.`` or nothing, with its dialect."""
    return {
        prefix: dialect
        for name in names
        for dialect in DIALECTS
        if name.endswith(dialect.patch_embedding)
        and ((prefix := name.removesuffix(dialect.patch_embedding)).endswith(".") or not prefix)
    }


def _networks(names: Collection[str], likes: Iterable[Collection[str]]) -> dict[str, Dialect]:
    """Return the prefix of every network that has most of the names in one of ``likes``."""
    timm, found = next(dialect for dialect in DIALECTS if dialect.name == "timm"), dict[str, Dialect]()
    for like in likes:
        first = next(iter(like))
        prefixes = [name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")]
        found |= {p: timm for p in prefixes if sum(p + name in names for name in like) > len(like) / 2}
    return found


def _under(names: Collection[str], prefix: str, found: Collection[str]) -> list[str]:
    """Return the ``names`` under ``prefix`` that are not those of an encoder further in."""
    inner = tuple(other for other in found if other.startswith(prefix) and other != prefix)
    return [name for name in names if name.startswith(prefix) and not name.startswith(inner)]


def _chosen(prefixes: list[str], where: str, part: str) -> str:
    """Return the prefix of the encoder that ``part`` names, in full or by consecutive components; of one alone it need not."""
    if not part and len(prefixes) == 1:
        return prefixes[0]
    parts = [prefix.removesuffix(".") or "." for prefix in prefixes]
    common = next((f"{key}." for key in CONTAINERS if all(name.startswith(f"{key}.") for name in parts)), "")
    offered = [name.removeprefix(common) for name in parts]
    choose = f'Choose one: part = "{offered[0]}" in [method.NAME], or --part {offered[0]} of lutbench add.'
    if not part:
        raise UserError(f"{where}: expected one encoder, found {len(offered)}: {listed(offered, 8)}. {choose}")
    wanted = WRAPPERS.sub("", f"{part}.").removesuffix(".") or "."
    exact = [p for p, short, full in zip(prefixes, offered, parts, strict=True) if wanted in (short, full)]
    fitting = exact or [prefix for prefix in prefixes if f".{wanted}." in f".{prefix}"]
    if len(fitting) == 1:
        return fitting[0]
    found = f"found {len(fitting)} that match" if fitting else "found none with that name"
    raise UserError(
        f'{where}: expected the encoder part = "{part}", {found}. Encoders in it: {listed(offered, 8)}. {choose}'
    )


def _none_found(tensors: Mapping[str, Tensor], where: str, like: Collection[str]) -> UserError:
    if flat := [name for name in tensors if FLATTENED.fullmatch(name)]:
        return _flattened(flat, where)
    tried = ", ".join(f"{dialect.name} ({dialect.patch_embedding})" for dialect in DIALECTS)
    return UserError(
        f"{where}: expected the weights of one encoder, found no patch embedding with any known name: {tried}, "
        f"nor the names of the timm model ({listed(like, 2)}). "
        f"The first keys are {listed(tensors, 4)}. Use a checkpoint of the encoder in one of these formats."
    )


def _flattened(names: list[str], where: str) -> UserError:
    return UserError(
        f"{where}: expected named parameters, found {len(names)} parameters flattened by FSDP ({listed(names, 3)}), without names and shapes. "
        "Save the full state dict in the training code: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True, cpu_offload=True))."
    )


ROLES = (
    (r".*momentum_encoder\..*", "momentum encoder"),
    (r".*momentum_backbone\..*", "momentum backbone"),
    (r".*target_encoder\..*", "target encoder"),
    (r".*teacher.*", "teacher"),
    (r".*student.*", "student"),
    (r"(.*[._])?ema([._].*)?", "averaged weights"),
    (r".*encoder\..*", "encoder"),
    (r".*backbone\..*", "backbone"),
)
"""What an encoder's prefix says that it is; the first that fits."""


_METHODS: dict[str, Callable[[str, Collection[str], Collection[str]], bool]] = {
    "DINOv3": lambda prefix, names, inside: "storage_tokens" in inside,
    "iBOT": lambda prefix, names, inside: "masked_embed" in inside,
    "DINOv2": lambda prefix, names, inside: (
        "register_tokens" in inside
        or {"mask_token", "blocks.0.ls1.gamma"} <= set(inside)
        or _has(inside, r"blocks\.\d+\.\d+\..*")
        or _has(names, r"(.*\.)?(dino|ibot)_head\..*")
    ),
    "DINO": lambda prefix, names, inside: _has([prefix], r"(.*\.)?(teacher|student)\.backbone\."),
    "MoCo v3": lambda prefix, names, inside: _has([prefix], r"(.*\.)?(base|momentum)_encoder\."),
    "I-JEPA": lambda prefix, names, inside: _with_target(prefix, names) and "cls_token" not in inside,
    "MSN": lambda prefix, names, inside: _with_target(prefix, names),
    "SimMIM": lambda prefix, names, inside: (
        prefix.endswith("encoder.") and "mask_token" in inside and _has(names, r"(.*\.)?decoder\.0\..*")
    ),
    "MAE": lambda prefix, names, inside: "decoder_embed.weight" in inside,
    "BEiT": lambda prefix, names, inside: "blocks.0.attn.q_bias" in inside,
    "solo-learn": lambda prefix, names, inside: (
        prefix.endswith(("state_dict.backbone.", "momentum_backbone."))
        and _has(names, r"(.*\.)?(classifier|projector|momentum_\w+)\..*")
    ),
}
"""By what a method's checkpoints are known that has timm's names; the first that fits."""


def _read_as(dialect: Dialect, prefix: str, names: Collection[str], inside: Collection[str]) -> str:
    """Return whose encoder it is and which: by its prefix, by what it has besides a plain one, and by what lies beside it."""
    role = next((role for pattern, role in ROLES if re.fullmatch(pattern, prefix)), "")
    if dialect.name != "timm":
        return dialect.name
    method = next((method for method, signs in _METHODS.items() if signs(prefix, names, inside)), "")
    if method:
        return f"{method} {role}".strip()
    return f"timm ({role})" if role else "timm"


def _with_target(prefix: str, names: Collection[str]) -> bool:
    return prefix in ("encoder.", "target_encoder.") and any(name.startswith("target_encoder.") for name in names)
