"""What this build is and what it runs on."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress

import numpy as np

from fastlinear import _dispatch, _layer
from fastlinear._threads import get_num_threads
from fastlinear._version import __version__


def processor() -> str:
    """The processor's own name where the system tells it, its architecture, and how many this process may use."""
    name = ""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name or platform.processor() or 'unknown'} ({platform.machine()}), {cores} usable cores"


def isa_reason() -> str:
    """Why this process runs on its instruction set."""
    forced = os.environ.get("FASTLINEAR_ISA")
    return f"forced by FASTLINEAR_ISA={forced}" if forced else "the best that was built and this machine runs"


def config() -> dict[str, str]:
    """The lines of show_config, by name."""
    import fastlinear

    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name in ENVIRONMENT]
    return {
        "fastlinear": f"{__version__} in {os.path.dirname(__file__)}",
        "compiler": _layer.compiler,
        "instruction set": f"{fastlinear.isa}: {isa_reason()} (available: {', '.join(_dispatch.available())})",
        "threads": f"{get_num_threads()} " + ("(OpenMP)" if _layer.has_openmp else "(built without OpenMP: serial)"),
        "environment": " ".join(variables) or "nothing set",
        "processor": processor(),
        "python": f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}",
        "numpy": np.__version__,
    }


ENVIRONMENT = ("FASTLINEAR_ISA", "FASTLINEAR_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What is read from the environment here or by the OpenMP runtime and changes the speed."""


def show_config() -> None:
    """Print the version, the compiler, the instruction set in use, the threads, and what it all runs on."""
    for name, value in config().items():
        print(f"{name + ':':17}{value}")
