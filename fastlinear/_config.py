"""What this build is and what it runs on."""

from __future__ import annotations

import platform
import sys

import numpy as np

from fastlinear import _dispatch, _layer
from fastlinear._threads import get_num_threads
from fastlinear._version import __version__


def config() -> dict[str, str]:
    """The lines of show_config, by name."""
    import fastlinear

    return {
        "fastlinear": __version__,
        "compiler": _layer.compiler,
        "instruction set": f"{fastlinear.isa} (available: {', '.join(_dispatch.available())})",
        "threads": f"{get_num_threads()} " + ("(OpenMP)" if _layer.has_openmp else "(built without OpenMP: serial)"),
        "processor": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}",
        "numpy": np.__version__,
    }


def show_config() -> None:
    """Print the version, the compiler, the instruction set in use, the threads, and what it all runs on."""
    for name, value in config().items():
        print(f"{name + ':':17}{value}")
