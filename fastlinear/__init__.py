"""fastlinear: a fully-connected (Linear) layer for Python on CPUs, with its gradients."""

import os
from importlib.machinery import PathFinder

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

from fastlinear import activations, reference  # noqa: E402
from fastlinear._config import show_config  # noqa: E402
from fastlinear._threads import get_num_threads, set_num_threads  # noqa: E402
from fastlinear._verify import verify  # noqa: E402
from fastlinear._version import __version__  # noqa: E402
from fastlinear.linear import Linear  # noqa: E402

__all__ = [
    "Linear",
    "__version__",
    "activations",
    "get_num_threads",
    "isa",
    "reference",
    "set_num_threads",
    "show_config",
    "verify",
]
