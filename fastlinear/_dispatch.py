"""Which kernels this process runs on.

The choice is made before any build of the kernels is imported: module initialisation already contains instructions of
that set.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType

from fastlinear import _layer
from fastlinear._isa import INSTRUCTION_SETS

REFERENCE = "reference"


def available() -> list[str]:
    """The instruction sets that were built and that this machine runs, best first; the reference last."""
    folder = [os.path.dirname(__file__)]
    names = [
        name
        for name, isa in INSTRUCTION_SETS.items()
        if all(map(_layer.supports, isa.features)) and PathFinder.find_spec(f"_kernels_{name}", folder)
    ]
    return [*names, REFERENCE]


def load(name: str, source: str = "_kernels") -> ModuleType:
    """The build of a source, ``_kernels`` or ``_elementwise``, of that name; the reference stands for both."""
    return import_module("fastlinear.reference" if name == REFERENCE else f"fastlinear.{source}_{name}")


def choose(wanted: str | None) -> str:
    """What FASTLINEAR_ISA asks for, or the best there is. An unknown or unsupported one is an ImportError."""
    choices = available()
    if not wanted:
        return choices[0]
    if wanted in choices:
        return wanted
    problem = "is not supported by this machine or build" if wanted in INSTRUCTION_SETS else "is unknown"
    raise ImportError(f"FASTLINEAR_ISA={wanted!r} {problem}; the choices here are: {', '.join(choices)}")


def use(name: str) -> None:
    """Run every layer of this process on the kernels of that name."""
    _layer.use_kernels(load(name), load(name, "_elementwise"))
