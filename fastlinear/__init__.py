"""fastlinear: a fully-connected (Linear) layer for Python on CPUs, with its gradients."""

import os
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if not PathFinder.find_spec("_layer", __path__):
    raise ImportError(
        f"the compiled modules of fastlinear are not in {os.path.dirname(__file__)}. If that is the source folder, it "
        "hides the installed package: start Python in another folder, or build in place with `pip install -e .`"
    )

from fastlinear import _dispatch, _threads

isa: str = _dispatch.choose(os.environ.get("FASTLINEAR_ISA"))
"""The name of the instruction set in use, "avx512", "avx2", "baseline" (NEON on Arm) or "reference"."""
_dispatch.use(isa)
_threads.initialise()

from fastlinear import reference  # noqa: E402
from fastlinear._config import show_config  # noqa: E402
from fastlinear._threads import get_num_threads, set_num_threads  # noqa: E402
from fastlinear._verify import verify  # noqa: E402
from fastlinear._version import __version__  # noqa: E402
from fastlinear.linear import Linear  # noqa: E402
from fastlinear.sequential import Sequential  # noqa: E402

if TYPE_CHECKING:
    from fastlinear import losses
    from fastlinear.optimisers import SGD, Adam, AdamW, clip_grad_norm

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Linear",
    "Sequential",
    "__version__",
    "clip_grad_norm",
    "get_num_threads",
    "isa",
    "losses",
    "reference",
    "set_num_threads",
    "show_config",
    "verify",
]

_IMPORTED_WHEN_USED = dict.fromkeys(["SGD", "Adam", "AdamW", "clip_grad_norm"], "optimisers") | {"losses": "losses"}
"""The names that are not needed to run a layer, and the module that each is in, or is."""


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_IMPORTED_WHEN_USED[name]}")
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
