"""Builds ``fastlinear._layer`` and its neighbours, and for each instruction set in ``fastlinear/_isa.py`` a
``fastlinear._kernels_*`` and a ``fastlinear._elementwise_*``.

Switches, all read from the environment:

    FASTLINEAR_DEBUG=1            -O0 -g
    FASTLINEAR_SANITIZE=address   -O1 -g, AddressSanitizer and UndefinedBehaviorSanitizer
    FASTLINEAR_SANITIZE=thread    -O1 -g, ThreadSanitizer, no OpenMP (CONTRIBUTING.md says how to run both)
    FASTLINEAR_COVERAGE=1         -O0, counters for gcov, by the lines of the .pyx files
    FASTLINEAR_PLAIN=1            the tiles on plain arrays, as for compilers without vector types
    FASTLINEAR_WIDE=1             the tiles on vectors of 64 bytes, as on AVX-512, for tests on a machine with AVX2
    FASTLINEAR_OPENMP=0           no threads
    CC=cl                         on Windows: MSVC, which has no vector types, in place of Clang (clang_cl)

CC, CFLAGS, CPPFLAGS and LDFLAGS, and what Python itself was built with, come before the flags that are set here, so
these have the last word: NEUTRAL undoes what would break a promise. _promises.h, read before each module, makes an
error of what cannot be undone, and LOADED looks at what was linked.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import LinkError

INSTRUCTION_SETS = runpy.run_path("fastlinear/_isa.py")["INSTRUCTION_SETS"]
MSVC = sys.platform == "win32"


def switch(name: str, default: bool = False) -> bool:
    """Whether the environment variable is set to something other than 0 or nothing."""
    return os.environ.get(f"FASTLINEAR_{name}", "1" if default else "0") not in ("", "0")


DEBUG, COVERAGE, PLAIN, WIDE = map(switch, ("DEBUG", "COVERAGE", "PLAIN", "WIDE"))

SANITIZERS = {
    "0": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer"],
}
WANTED = os.environ.get("FASTLINEAR_SANITIZE") or "0"
if WANTED not in SANITIZERS:
    sys.exit(f"FASTLINEAR_SANITIZE must be one of {', '.join(SANITIZERS)}, got {WANTED!r}")
SANITIZE = SANITIZERS[WANTED]

# GCC's OpenMP is not built with ThreadSanitizer, which then does not see that its threads wait for each other, and
# reports what they do one after another.
OPENMP = switch("OPENMP", default=True) and WANTED != "thread"


def clang_cl() -> str | None:
    """Clang in MSVC's place, on Windows: what CC names, or PATH has, or the installer of LLVM or Visual Studio brought.

    None if there is none, or if CC asks for another. MSVC's linker links its objects, with MSVC's libraries.
    """
    wanted = os.environ.get("CC", "")
    if not MSVC or (wanted and not Path(wanted).stem.lower().endswith("clang-cl")):
        return None
    programs = Path(os.environ.get("PROGRAMFILES", "C:/Program Files"))
    installed = [programs / "LLVM/bin/clang-cl.exe"]
    installed += programs.glob("Microsoft Visual Studio/*/*/VC/Tools/Llvm/x64/bin/clang-cl.exe")
    found = shutil.which(wanted or "clang-cl") or next((str(file) for file in installed if file.exists()), None)
    if wanted and not found:
        sys.exit(f"CC={wanted} was not found; without CC the compiler that is there is taken")
    return found


CLANG_CL = clang_cl()
VECTORS = not PLAIN and bool(CLANG_CL or not MSVC)
"""Whether there are vector types. Without them, the baseline on plain arrays is the one build."""

if MSVC:
    # Clang's -ffp-contract is on by itself, even with /fp:precise.
    COMPILE = ["/O2", "/fp:precise", "/std:c11", "/FIfastlinear/_promises.h"]
    COMPILE += ["/clang:-O3", "/clang:-ffp-contract=off"] if CLANG_CL else []
    LINK = []
else:
    COMPILE = [
        "-O0" if DEBUG or COVERAGE else "-O1" if SANITIZE else "-O3",
        "-include",
        "fastlinear/_promises.h",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-sign-compare",
        "-Wno-cast-function-type",
        "-Wno-missing-field-initializers",
        *SANITIZE,
    ]
    COMPILE += ["-g"] if DEBUG or SANITIZE else ["-g0"]
    LINK = ["-O3", *SANITIZE]  # the linker's -Ofast would link code that turns on flush-to-zero for the whole process
    LINK += [] if DEBUG or SANITIZE else ["-Wl,-x" if sys.platform == "darwin" else "-Wl,-s"]
if COVERAGE:
    COMPILE += ["--coverage", "-fprofile-update=atomic"]
    LINK += ["--coverage"]

NEUTRAL = (
    "-std=c11",
    # The sums of the source. Contraction is off because what is fused is written as fma in _vector.h. The parts of
    # -ffast-math are named because what the environment names by itself survives -fno-fast-math. At linking, they keep
    # out the code that turns on flush-to-zero, too.
    *("-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-associative-math"),
    *("-fno-reciprocal-math", "-fno-finite-math-only", "-fsigned-zeros", "-fno-single-precision-constant"),
    *("-fno-approx-func", "-fhonor-nans", "-fhonor-infinities", "-fno-cx-limited-range", "-fno-rounding-math"),
    *("-fdenormal-fp-math=ieee", "-mno-daz-ftz", "-mno-recip", "-mrecip=none", "-fexcess-precision=standard"),
    *("-mfpmath=sse", "-ffp-contract=off"),
    # The oldest processors; the flags of the instruction set come after.
    *("-march=x86-64", "-mno-sse3", "-mno-bmi", "-mno-bmi2", "-mno-lzcnt", "-mno-popcnt", "-mno-movbe", "-mno-adx"),
    *("-mno-tbm", "-march=armv8-a"),
    # The memory of Python, of NumPy and of other threads.
    *("-mabi=sysv", "-fno-pack-struct", "-fno-short-enums", "-fno-allow-store-data-races"),
    # A module is one file, so there is nothing to optimise when it is linked.
    "-fno-lto",
)
"""Each undoes what the environment might have asked for. A compiler is told those that it knows."""

LOADED = """
import ctypes, os, struct, sys
import numpy as np

[smallest] = struct.unpack("=d", struct.pack("=q", 1))

def mode():
    return {
        "subnormal results": sys.float_info.min / 2 > 0,
        "subnormal operands": smallest > 0,
        "the x87 unit's precision": np.nextafter(np.longdouble(1), 2) - 1 + np.longdouble(1) > 1,
    }

before = mode()
ctypes.CDLL(sys.argv[1], os.RTLD_NOW)
changed = [what for what, value in mode().items() if value != before[what]]
sys.exit(f"it changes {', '.join(changed)} for the whole process" if changed else 0)
"""
"""Loads a module and sees whether that changes how the process computes. Start-up code linked to it would."""

MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")]
MACROS += [("FASTLINEAR_PLAIN", "1")] if PLAIN else []
MACROS += [("FASTLINEAR_WIDE", "1")] if WIDE else []


def machine() -> str:
    """The processor built for, which is not the one built on when a cross compiler says so."""
    return os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2].lower()


class Build(build_ext):
    """The usual command, with flags that depend on the compiler, and a look at what came out."""

    def build_extensions(self) -> None:
        if CLANG_CL:
            if not self.compiler.initialized:
                self.compiler.initialize()  # finds MSVC, whose linker and libraries stay
            self.compiler.cc = CLANG_CL
        compile_flags, link_flags = self.flags()
        # A loop of a tile begins a line of the instruction cache, however seldom GCC believes that it turns: 1 %
        # faster, and up to a fifth where the core's other thread is busy.
        flags = () if MSVC else ("-falign-loops=64", "--param=align-loop-iterations=0")
        aligned = [flag for flag in flags if self.takes(flag)]
        for module in self.extensions:
            tiles = aligned if "_kernels_" in module.name else []
            # The flags of the instruction set come last.
            module.extra_compile_args[:0] = [*COMPILE, *compile_flags, *tiles]
            module.extra_link_args = [*LINK, *link_flags]
            if module.name == "fastlinear._layer":
                told = self.record([*compile_flags, *aligned])
                module.define_macros = [*module.define_macros, ("FASTLINEAR_FLAGS", told)]
        super().build_extensions()
        if not (MSVC or SANITIZE or "_PYTHON_HOST_PLATFORM" in os.environ):
            for module in self.extensions:
                self.look_at(self.get_ext_fullpath(module.name))

    def flags(self) -> tuple[list[str], list[str]]:
        """What this compiler is told beyond COMPILE and LINK, and what it is told when it links."""
        if MSVC:
            # Clang's OpenMP would need a DLL that neither Windows nor Python has.
            return ["/openmp"] if OPENMP and not CLANG_CL else [], []
        clang = self.takes(source="#ifndef __clang__\n#error\n#endif")
        # A flag that Clang would only ignore is one that it does not take.
        strict = ["-Werror=ignored-optimization-argument"] if clang else []
        neutral = [flag for flag in NEUTRAL if self.takes(flag, *strict)]
        # To Clang this is not the default to go back to, but another way of compiling.
        neutral += [] if clang else ["-ftrapping-math"]
        threads = OPENMP and self.takes(*neutral, "-fopenmp", source="#include <omp.h>", link=True)
        neutral += ["-fopenmp" if threads else "-fno-openmp"]
        return neutral, neutral

    def takes(self, *flags: str, source: str = "", link: bool = False) -> bool:
        """Whether the compiler, after all that the environment tells it, takes these flags and compiles the source."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "probe.c")
            file.write_text(f"{source}\nint probe(void) {{ return 0; }}\n")
            tool = self.compiler.linker_so if link else [*self.compiler.compiler_so, "-c"]
            command = [*tool, *flags, str(file), "-o", str(Path(folder, "probe"))]
            return subprocess.run(command, capture_output=True).returncode == 0

    def record(self, flags: list[str]) -> str:
        """What show_config says of the flags, as a C string: all that change code, in order."""
        told = [*getattr(self.compiler, "compiler_so", []), *COMPILE, *flags]
        text = " ".join(flag for flag in told if not flag.startswith(("-W", "-I", "-i", "/FI", "fastlinear/")))
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def look_at(self, path: str) -> None:
        """Refuse a module that cannot be loaded, or that changes how the process computes when it is."""
        seen = subprocess.run([sys.executable, "-c", LOADED, path], capture_output=True, text=True)
        if seen.returncode:
            raise LinkError(
                f"fastlinear: {path} was built but is not fit for use: {seen.stderr.strip() or seen.returncode}\n"
                f"It was linked by: {' '.join([*self.compiler.linker_so, *LINK])}\n"
                "Take out of CC, CFLAGS and LDFLAGS what does this. (Sanitizers: FASTLINEAR_SANITIZE=address or thread)"
            )


def extension(name: str, source: str, features: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> list[Extension]:
    """One module; the generated C of each has a folder of its own, so one .pyx can become several."""
    [module] = cythonize(
        [Extension(f"fastlinear.{name}", [f"fastlinear/{source}"])],
        quiet=True,
        build_dir=f"build/cython/{name}",
        emit_linenums=COVERAGE,
    )
    # Set only now: cythonize() merges the flags of all extensions that share a source.
    module.include_dirs = ["fastlinear", np.get_include()]
    module.define_macros = [*MACROS, *((f"FASTLINEAR_{feature.upper()}", None) for feature in features)]
    module.undef_macros = [f"FASTLINEAR_{name}" for name, wanted in (("PLAIN", PLAIN), ("WIDE", WIDE)) if not wanted]
    module.extra_compile_args = [*flags]
    # A new list: Cython's own is shared between the calls, and would copy the headers to build_dir, to go stale there.
    module.depends = [*module.depends, *map(str, Path("fastlinear").glob("*.h"))]
    return [module]


modules = []
for name in ("_layer", "_learn", "_losses", "_network", "_optimisers"):
    modules += extension(name, f"{name}.pyx")
for name, isa in INSTRUCTION_SETS.items():
    if not isa.machines or (machine() in isa.machines and VECTORS and not WIDE):
        built_as = INSTRUCTION_SETS["avx2"] if WIDE else isa
        # Beside the others the baseline is for processors older than AVX2, and -O3 would add 5 % to the wheel. Only
        # where the W of a narrow layer stays in registers is -O2 slower: half as fast, measured on AVX2.
        beside_others = machine() in INSTRUCTION_SETS["avx2"].machines and VECTORS and not WIDE
        optimised = {"-O3", "/clang:-O3"} & {*COMPILE} if name == "baseline" and beside_others else ()
        small = tuple(flag.replace("3", "2") for flag in optimised)
        for source in ("_kernels", "_elementwise"):
            modules += extension(f"{source}_{name}", f"{source}.pyx", built_as.features, (*built_as.flags, *small))

setup(ext_modules=modules, cmdclass={"build_ext": Build}, options={"build_ext": {"parallel": os.cpu_count()}})
