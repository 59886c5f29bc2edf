"""Builds ``fastlinear._layer`` and one ``fastlinear._kernels_*`` for each instruction set in ``fastlinear/_isa.py``.

Switches, all read from the environment:

    FASTLINEAR_DEBUG=1      -O0 -g
    FASTLINEAR_SANITIZE=1   -O1 -g, AddressSanitizer and UndefinedBehaviorSanitizer (see CONTRIBUTING.md for how to run)
    FASTLINEAR_COVERAGE=1   -O0, counters for gcov, by the lines of the .pyx files
    FASTLINEAR_PLAIN=1      the tiles on plain arrays, as for compilers without vector types
    FASTLINEAR_OPENMP=0     no threads
"""

import os
import platform
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

INSTRUCTION_SETS = runpy.run_path("fastlinear/_isa.py")["INSTRUCTION_SETS"]
MSVC = sys.platform == "win32"


def switch(name: str, default: bool = False) -> bool:
    """Whether the environment variable is set to something other than 0 or nothing."""
    return os.environ.get(f"FASTLINEAR_{name}", "1" if default else "0") not in ("", "0")


DEBUG, SANITIZE, COVERAGE, PLAIN = map(switch, ("DEBUG", "SANITIZE", "COVERAGE", "PLAIN"))


def compiles(*flags: str) -> bool:
    """Whether the C compiler builds and links an OpenMP program with these flags."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        command = [*compiler, *flags, str(source), "-o", str(Path(folder, "probe"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def openmp_flags() -> list[str]:
    if not switch("OPENMP", default=True):
        return []
    if MSVC:
        return ["/openmp"]
    return ["-fopenmp"] if compiles("-fopenmp") else []


OPENMP = openmp_flags()
if MSVC:
    # No vector types there: the baseline on plain arrays is the one build.
    COMPILE, LINK = ["/O2", "/fp:precise", "/std:c11"], []
else:
    # Contraction is off because what is fused is written as fma in _vector.h; never -ffast-math, whose start-up code
    # turns on flush-to-zero for the whole process.
    COMPILE = [
        "-std=c11",
        "-O0" if DEBUG or COVERAGE else "-O1" if SANITIZE else "-O3",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-sign-compare",
        "-Wno-cast-function-type",
        "-Wno-missing-field-initializers",
    ]
    COMPILE += ["-g"] if DEBUG or SANITIZE else ["-g0"]
    LINK = [] if DEBUG or SANITIZE else ["-Wl,-x" if sys.platform == "darwin" else "-Wl,-s"]
if SANITIZE:
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    COMPILE += checks
    LINK += checks
if COVERAGE:
    COMPILE += ["--coverage", "-fprofile-update=atomic"]
    LINK += ["--coverage"]

MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")]
MACROS += [("FASTLINEAR_PLAIN", "1")] if PLAIN else []


def extension(name: str, source: str, flags: tuple[str, ...] = ()) -> list[Extension]:
    """One module; the generated C of each has a folder of its own, so one .pyx can become several."""
    [module] = cythonize(
        [Extension(f"fastlinear.{name}", [f"fastlinear/{source}"])],
        quiet=True,
        build_dir=f"build/cython/{name}",
        emit_linenums=COVERAGE,
    )
    # Set only now: cythonize() merges the flags of all extensions that share a source.
    module.include_dirs = ["fastlinear", np.get_include()]
    module.define_macros = MACROS
    module.extra_compile_args = [*COMPILE, *OPENMP, *flags]
    module.extra_link_args = [*LINK, *OPENMP]
    # A new list: Cython's own is shared between the calls, and would copy the headers to build_dir, to go stale there.
    module.depends = [*module.depends, *(f"fastlinear/{header}" for header in ("_vector.h", "_tile.h", "_machine.h", "_scratch.h"))]
    return [module]


def machine() -> str:
    """The processor built for, which is not the one built on when a cross compiler says so."""
    return os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2].lower()


modules = extension("_layer", "_layer.pyx")
for name, isa in INSTRUCTION_SETS.items():
    if not isa.machines or (machine() in isa.machines and not MSVC and not PLAIN):
        modules += extension(f"_kernels_{name}", "_kernels.pyx", isa.flags)

setup(ext_modules=modules, options={"build_ext": {"parallel": os.cpu_count()}})
