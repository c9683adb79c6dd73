"""The code that all stages share: recipes, runs, records, training helpers, encoders, data and the command line.

In Python: :func:`records` and :func:`outcomes` return tables of the measurements, :func:`encoder` the encoder of a finished run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutbench.api import encoder, outcomes, records

__version__ = "0.1.0"
__all__ = ["__version__", "encoder", "outcomes", "records"]


def __getattr__(name: str) -> Any:
    """Import :mod:`lutbench.api` on first use of one of its functions: pandas is slow to import, and most commands do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lutbench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
