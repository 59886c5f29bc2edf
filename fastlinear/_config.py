"""What this build is and what it runs on."""

from __future__ import annotations

import os
import platform
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, overload

import numpy as np

from fastlinear import _dispatch, _layer
from fastlinear._isa import INSTRUCTION_SETS
from fastlinear._threads import get_num_threads
from fastlinear._version import __version__

if TYPE_CHECKING:
    from typing import Any, Literal


def processor() -> str:
    """The processor's name if the system tells it, its architecture, and how many cores this process may use."""
    name = ""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name or platform.processor() or 'unknown'} ({platform.machine()}), {cores} usable cores"


def isa_reason() -> str:
    """Why this process runs on its instruction set."""
    forced = os.environ.get("FASTLINEAR_ISA")
    return f"forced by FASTLINEAR_ISA={forced}" if forced else "the best that was built and this machine runs"


def flags() -> str:
    """The flags that the compiler was given: those of the environment first, those of the instruction set last."""
    import fastlinear

    isa = INSTRUCTION_SETS.get(fastlinear.isa)
    return " ".join([_layer.flags, *(isa.flags if isa else ())])


def subnormals() -> str:
    """Whether this thread computes with subnormal numbers. fastlinear never changes that; other libraries can."""
    [smallest] = struct.unpack("=d", struct.pack("=q", 1))  # by its bits: arithmetic might not give it
    lost = [
        what
        for what, flushed in {
            "results": not any(struct.pack("=d", sys.float_info.min / 2)),
            "operands": smallest == 0,
        }.items()
        if flushed
    ]
    return f"{' and '.join(lost)} are flushed to zero in this thread, not by fastlinear" if lost else "kept"


def libraries() -> list[dict[str, Any]] | None:
    """The BLAS and OpenMP runtimes in this process, as threadpoolctl sees them; None where it is not installed."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return list(threadpool_info())


def config() -> dict[str, Any]:
    """The lines of show_config by name. All are strings but ``libraries``, which is a list."""
    import fastlinear

    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name in ENVIRONMENT]
    return {
        "fastlinear": f"{__version__} in {os.path.dirname(__file__)}",
        "compiler": _layer.compiler,
        "flags": flags(),
        "instruction set": f"{fastlinear.isa}: {isa_reason()} (available: {', '.join(_dispatch.available())})",
        "threads": f"{get_num_threads()} " + ("(OpenMP)" if _layer.has_openmp else "(built without OpenMP: serial)"),
        "subnormals": subnormals(),
        "environment": " ".join(variables) or "nothing set",
        "processor": processor(),
        "python": f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}",
        "numpy": np.__version__,
        "libraries": libraries(),
    }


ENVIRONMENT = ("FASTLINEAR_ISA", "FASTLINEAR_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""The variables that fastlinear or the OpenMP runtime reads and that change the speed."""


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print the version, the compiler, the instruction set in use and why, the threads, and what all of it runs on.

    If threadpoolctl is installed, the BLAS and OpenMP runtimes of the process are listed, too. Several of them that use
    all cores at once are a usual reason for slowness. With ``mode="dicts"`` nothing is printed, and a dictionary is
    returned, as NumPy's function of this name does. Another mode is a ValueError.

    >>> fastlinear.show_config("dicts")["fastlinear"].startswith(fastlinear.__version__)
    True
    """
    if mode not in ("stdout", "dicts"):
        from fastlinear._advice import shown

        raise ValueError(f"show_config: mode must be 'stdout' or 'dicts', got {shown(mode)}")
    found = config()
    if mode == "dicts":
        return found
    runtimes = found.pop("libraries")
    for name, value in found.items():
        print(f"{name + ':':17}{value}")
    if runtimes is None:
        print("libraries:       not known: pip install threadpoolctl")
    for name, library in zip(["libraries:", *[""] * 100], runtimes or (), strict=False):
        threads = f"{library['num_threads']} thread{'s' * (library['num_threads'] != 1)}"
        print(f"{name:17}{library['internal_api']} {library['version'] or ''} ({threads}) {library['filepath']}")
    return None
