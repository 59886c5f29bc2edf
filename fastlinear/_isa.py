"""The instruction sets that the kernels are built for, best first.

setup.py compiles ``_kernels.pyx`` and ``_elementwise.pyx`` once for each row, ``_dispatch.py`` picks the first row that
the processor and the operating system support. To add one, add a row here and its vectors to ``_vector.h``.
"""

from __future__ import annotations

from typing import NamedTuple


class InstructionSet(NamedTuple):
    machines: tuple[str, ...]
    """platform.machine() of the processors that have it, in lower case; () is all of them."""
    flags: tuple[str, ...]
    """The flags for GCC and Clang."""
    features: tuple[str, ...]
    """The features that the processor must have and the operating system must save, in GCC's names."""


X86_64 = ("x86_64", "amd64")

INSTRUCTION_SETS = {
    "avx512": InstructionSet(
        X86_64,
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mavx2"),
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2"),
    ),
    "avx2": InstructionSet(X86_64, ("-mavx2", "-mfma"), ("avx2", "fma")),
    "baseline": InstructionSet((), (), ()),
}
