"""Holds a program to one instruction set: ours, and that of every peer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PEERS_TO_AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
ROOT = Path(__file__).resolve().parents[1]


def hold(isa: str | None = None) -> str:
    """Start the program again on that instruction set (None: the one in use), unless it runs on it; which one it is.

    The libraries read these variables when they are loaded, so that setting them here would be too late.
    """
    if isa is None:
        import fastlinear

        isa = fastlinear.isa
    wanted = {"FASTLINEAR_ISA": isa} | (PEERS_TO_AVX2 if isa == "avx2" else {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    return isa


def kernels() -> str:
    """The commit that last changed the kernels or the way to them, or the version where there is no git."""
    sources = [f"fastlinear/{name}" for name in ("_kernels.pyx", "_tile.h", "_vector.h", "_layer.pyx")]
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", *sources]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        from fastlinear import __version__

        return __version__
