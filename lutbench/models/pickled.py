"""Safe placeholders for the objects that checkpoints contain besides tensors, so that no code in them can run.

Only tensors are read from a checkpoint. Arguments, paths, NumPy scalars and configurations are replaced by placeholders. Any name that
is not in this list is rejected.
"""

from collections.abc import Callable
from typing import Any


class PassedOver:
    """Stands in for a value that is not needed, whatever it is made of."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def defaultdict_passed_over(*parts: object) -> dict[object, object]:
    """Stand in for a mapping that makes what it lacks; what is put in it is kept, as in any."""
    return {}


def deque_passed_over(*parts: object) -> list[object]:
    """Stand in for a queue; what is put in it is kept, as in any list."""
    return []


_VALUES = {
    "argparse": ["Namespace"],
    "types": ["SimpleNamespace"],
    # Paths: those of Windows cannot be made elsewhere, and Python 3.13 has them in a module of its own.
    "pathlib": ["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"],
    "pathlib._local": ["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"],
    # Scalars and arrays, such as the best accuracy and a generator's state, of NumPy before and after 2.
    "numpy": ["dtype", "ndarray", "bool_", "str_", "float16", "float32", "float64", "int32", "int64", "uint8"],
    "numpy.core.multiarray": ["scalar", "_reconstruct"],
    "numpy._core.multiarray": ["scalar", "_reconstruct"],
    "datetime": ["datetime", "date", "time", "timedelta", "timezone"],
    "builtins": ["frozenset", "range", "slice", "int", "float", "str", "bool", "list", "tuple", "dict"],
    "__builtin__": [
        "frozenset",
        "xrange",
        "slice",
        "int",
        "long",
        "float",
        "str",
        "unicode",
        "bool",
        "list",
        "tuple",
        "dict",
    ],
    "typing": ["Any"],
    "torch.torch_version": ["TorchVersion"],
    # Configurations as Lightning and Hydra keep them.
    "omegaconf.dictconfig": ["DictConfig"],
    "omegaconf.listconfig": ["ListConfig"],
    "omegaconf.base": ["ContainerMetadata", "Metadata"],
    "omegaconf.nodes": ["AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"],
}

_MAPPINGS = [
    f"{module}.AttributeDict"
    for module in (
        "lightning.fabric.utilities.data",
        "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing",
    )
]
"""Lightning's, for hyperparameters."""

# MMEngine's histories of losses refer to their own methods, through a getattr that here is none.
_HISTORIES = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr")

BESIDE_WEIGHTS: list[tuple[Callable[..., Any], str]] = [
    *((PassedOver, f"{module}.{name}") for module, names in _VALUES.items() for name in names),
    *((PassedOver, name) for name in _HISTORIES),
    *((dict, name) for name in _MAPPINGS),
    (defaultdict_passed_over, "collections.defaultdict"),
    (deque_passed_over, "collections.deque"),
]
"""What stands in for each name, as :func:`torch.serialization.safe_globals` takes it."""
