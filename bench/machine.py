"""The limits of the machine, as works that can take turns with what they limit."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from timing import Work

STREAMS = (1, 2, 4)
CHAINS = 12
"""As in machine.c."""
LINE = 64
BLOCK = 8 * LINE


@functools.cache
def library() -> ctypes.CDLL:
    """machine.c, compiled for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "machine.so")
        command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-march=native", "-ffp-contract=fast", "-shared",
                   "-fPIC", str(Path(__file__).with_name("machine.c")), "-o", str(target)]  # fmt: skip
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))


def widths() -> list[int]:
    """The vector widths of this processor, in bits."""
    return [bits for bits in (128, 256, 512) if hasattr(library(), f"fma_float32_{bits}")]


def fma(dtype: str, bits: int, flops: float) -> Work:
    """So many floating-point operations as multiply-adds on registers, on one core."""
    function = library()[f"fma_{dtype}_{bits}"]
    function.argtypes, function.restype = [ctypes.c_long, ctypes.c_double, ctypes.c_double], ctypes.c_double
    steps = max(1, round(flops / (2 * CHAINS * bits // 8 / np.dtype(dtype).itemsize)))
    return Work("fma(steps, 0.5, 1.0)", {"fma": function, "steps": steps})


def read(array: np.ndarray, streams: int, passes: int = 1) -> Work:
    """Read an array, as so many streams."""
    function = library()[f"read_{streams}"]
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long], ctypes.c_float
    return Work("read(at, lines, passes)", {"read": function, "passes": passes, "keep": array} | span(array))


def rewrite(array: np.ndarray, streams: int, passes: int = 1) -> Work:
    """Read an array and write each line back as it was, as so many streams."""
    function = library()[f"rewrite_{streams}"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_float, ctypes.c_float]
    return Work(
        "rewrite(at, lines, passes, 1.0, 0.0)", {"rewrite": function, "passes": passes, "keep": array} | span(array)
    )


def span(array: np.ndarray) -> dict[str, int]:
    """Where the array is, which must be on a cache line, and how many whole blocks of lines it has."""
    assert array.flags.c_contiguous
    assert array.ctypes.data % LINE == 0
    return {"at": array.ctypes.data, "lines": array.nbytes // BLOCK * BLOCK // LINE}


def caches() -> dict[str, int]:
    """The bytes of the data caches of the first core, by name, as Linux tells; {} elsewhere."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            sizes[f"L{(index / 'level').read_text().strip()}"] = int((index / "size").read_text().strip()[:-1]) << 10
    return sizes


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()
