"""The build: which instructions are in which module, what this machine is offered, what an import brings along."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import types
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import _dispatch, _layer
from fastlinear._isa import INSTRUCTION_SETS

from .helpers import COMPILED, ISAS, python

pytestmark = pytest.mark.thread_unsafe(reason="looks at the process")

PACKAGE = str(Path(fastlinear.__file__).parent)
ROOT = Path(__file__).parents[1]
BUILT_ONCE = ("_layer", "_learn", "_losses", "_network", "_optimisers")
"""The modules that every instruction set shares."""

x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads x86 code and /proc/cpuinfo"
)


@x86_linux
def test_available_agrees_with_cpuinfo():
    """Offered is what was built and what the kernel lists for this processor, best first."""
    flags = set(re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    folder = Path(fastlinear.__file__).parent
    expected = [
        name
        for name, isa in INSTRUCTION_SETS.items()
        if flags.issuperset(isa.features) and [*folder.glob(f"_kernels_{name}.*so")]
    ]
    assert _dispatch.available() == [*expected, "reference"]
    assert "baseline" in expected


@x86_linux
@pytest.mark.parametrize("feature", sorted({f for isa in INSTRUCTION_SETS.values() for f in isa.features}))
def test_each_feature_is_there_if_the_kernel_says_so(feature):
    """CPUID is read here and there, and a feature whose registers are not saved is none."""
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split()
    assert _layer.supports(feature) == (feature in flags)


def test_the_best_is_used():
    run = python("import fastlinear; print(fastlinear.isa)")
    assert run.stdout.strip() == _dispatch.available()[0], run.stderr


def test_unknown_features_are_not_supported():
    assert not _layer.supports("avx1024")
    assert not _layer.supports("")


@pytest.mark.parametrize("feature", ["fma", "avx2", "avx512vl"])
def test_an_instruction_set_needs_all_its_features(monkeypatch, feature):
    """A machine without one of them is not offered those that need it, and is offered the rest."""
    before = _dispatch.available()
    monkeypatch.setattr(_layer, "supports", lambda name: name != feature)
    expected = [name for name in INSTRUCTION_SETS if feature not in INSTRUCTION_SETS[name].features]
    assert [name for name in _dispatch.available() if name in before] == [n for n in before if n in expected] + [
        "reference"
    ]


def code_of(file):
    """The instructions of a compiled module, one in a line."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    command = [objdump, "-d", "--no-show-raw-insn", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


VEX = r"\t(v[a-z]\S*)"
"""Every AVX instruction's name begins with a v; no other that a compiler makes does."""


def file_of(module):
    """Looked up, not imported: a machine without that instruction set would crash."""
    return PathFinder.find_spec(module, [PACKAGE]).origin


def assert_no_avx(file):
    code = code_of(file)
    assert "xmm" in code
    assert not set(re.findall(VEX, code)) - {"verr", "verw"}
    assert not re.search(r"%[yz]mm", code)


@x86_linux
@pytest.mark.parametrize("module", [*BUILT_ONCE, "_kernels_baseline", "_elementwise_baseline"])
def test_no_avx_where_any_machine_runs(module):
    """Neither the module that asks the processor nor the baseline has an instruction of AVX."""
    assert_no_avx(file_of(module))


@x86_linux
def test_only_their_own_registers_where_avx_is():
    """AVX2 code has 256-bit vectors and fused multiply-adds, and nothing of AVX-512, which has its own."""
    if not [*Path(fastlinear.__file__).parent.glob("_kernels_avx2.*so")]:
        pytest.skip("FASTLINEAR_PLAIN builds the baseline alone")
    avx2, avx512 = (code_of(file_of(f"_kernels_{name}")) for name in ("avx2", "avx512"))
    assert re.search(r"vfmadd\d+ps\s.*%ymm", avx2)
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3\d)|%k[0-7]", avx2)
    assert re.search(r"vfmadd\d+ps\s.*%zmm", avx512)


SUMS = """
def regrouped(double a, double b): return (a + b) - a
def contracted(double a, double b, double c): return a * b + c
def reciprocal(double a, double b): return a / b
def positive(double a): return a + 0.0
def same(double a): return a == a
def tenth(): return 0.1
"""
"""What a compiler that was told so computes in another way. The cdivision is C's, without Python's check."""

COMPUTE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    kernels = importlib.import_module(f"fastlinear.{name}")
    a = 1 + 2.0**-30
    found[name] = [
        kernels.regrouped(1, 2.0**-60),
        kernels.contracted(a, a, -(a * a)),
        kernels.reciprocal(5, 49),
        str(kernels.positive(-0.0)),
        kernels.same(float("nan")),
        kernels.tenth(),
        sys.float_info.min / 2,
    ]
from fastlinear._layer import flags
print(json.dumps([found, flags]))
"""


@pytest.fixture
def small_build(tmp_path):
    """Runs this setup.py over modules of a few lines in place of those that take minutes."""
    for module in ("Cython", "setuptools"):
        pytest.importorskip(module)
    if not (ROOT / "setup.py").exists():
        pytest.skip("setup.py is not here")
    package = tmp_path / "fastlinear"
    package.mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("_isa.py", "_promises.h", "_machine.h"):
        shutil.copy(ROOT / "fastlinear" / name, package)
    (package / "__init__.py").touch()
    for name in ("_kernels", "_elementwise", *BUILT_ONCE[1:]):
        (package / f"{name}.pyx").write_text(f"# cython: language_level=3, cdivision=True\n{SUMS}")
    (package / "_layer.pyx").write_text(
        'cdef extern from "_machine.h":\n    const char* FASTLINEAR_FLAGS\nflags = FASTLINEAR_FLAGS.decode()\n'
    )

    def run(*command, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTLINEAR_")}
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=clean | environment, capture_output=True, text=True
        )

    def build(**environment):
        return run("setup.py", "--quiet", "build_ext", "--inplace", "--force", **environment)

    def compute(*modules):
        return json.loads(run("-c", COMPUTE, *modules).stdout)

    return package, build, compute


@x86_linux
@pytest.mark.sweep
def test_flags_of_the_environment_break_no_promise(small_build):
    """Each of these would, were it not undone: sums in another order, NaN that is equal to itself, instructions that
    not every processor has, flush-to-zero in the whole process, structures laid out in another way."""
    package, build, compute = small_build
    run = build(
        CC="gcc -ffast-math",
        CFLAGS="-Ofast -march=native -mavx2 -mfma -mbmi2 -mpopcnt -funsafe-math-optimizations -fassociative-math "
        "-freciprocal-math -ffinite-math-only -fno-signed-zeros -fno-trapping-math -fsingle-precision-constant "
        "-ffp-contract=fast -mfpmath=387 -mrecip -fexcess-precision=fast -fshort-enums -fpack-struct -fno-openmp "
        "-fallow-store-data-races -flto -std=c89 -DFASTLINEAR_PLAIN",
        LDFLAGS="-Ofast -ffast-math -funsafe-math-optimizations -flto",
    )
    assert run.returncode == 0, run.stderr
    built = {file.name.partition(".")[0] for file in package.glob("*.so")}
    sources = ("_kernels", "_elementwise")
    assert built == {*BUILT_ONCE, *(f"{source}_{name}" for source in sources for name in INSTRUCTION_SETS)}
    found, flags = compute(*(f"{source}_{name}" for source in sources for name in COMPILED))
    for name, values in found.items():
        assert values == [0, 0, 5 / 49, "0.0", False, 0.1, sys.float_info.min / 2], name
    assert flags.startswith("gcc -ffast-math")
    assert flags.endswith("-fopenmp")
    for module in (*BUILT_ONCE, "_kernels_baseline", "_elementwise_baseline"):
        assert_no_avx(next(package.glob(f"{module}.*so")))


BAD = {
    "#pragma GCC optimize": ("CFLAGS", "-include {}/fast.h", "-ffast-math or a part of it is on"),
    "another processor": ("CFLAGS", "-msse2 -include {}/target.h", "not every processor that is offered this module"),
    "precision": ("LDFLAGS", "-mpc32", "it changes the x87 unit's precision for the whole process"),
    "flush-to-zero": ("LDFLAGS", "-Wl,{}/mode.o", "it changes subnormal results for the whole process"),
    "a sanitizer": ("CFLAGS", "-fsanitize=address", "FASTLINEAR_SANITIZE=address"),
    "missing symbols": ("LDFLAGS", "-Wl,{}/missing.o", "undefined symbol: nowhere"),
}


@x86_linux
@pytest.mark.long
@pytest.mark.parametrize(("variable", "flags", "word"), BAD.values(), ids=BAD)
def test_what_cannot_be_undone_is_an_error(small_build, variable, flags, word):
    """That says what is wrong. The last four are only seen in what was linked, and it is loaded to see them."""
    package, build, _ = small_build
    (package / "fast.h").write_text('#pragma GCC optimize("fast-math")\n')
    (package / "target.h").write_text("#define __AVX__ 1\n")
    start = "__attribute__((constructor)) static void start(void) { __builtin_ia32_ldmxcsr(0x9f80); }"
    (package / "mode.c").write_text(start)
    (package / "missing.c").write_text("int nowhere(void); int somewhere(void) { return nowhere(); }")
    for name in ("mode", "missing"):
        subprocess.run(["gcc", "-fPIC", "-c", f"{name}.c"], cwd=package, check=True)
    run = build(**{variable: flags.format(package)})
    assert run.returncode != 0
    assert word in run.stderr, run.stderr


def test_an_unknown_sanitizer_is_an_error(small_build):
    _, build, _ = small_build
    run = build(FASTLINEAR_SANITIZE="1")
    assert run.returncode != 0
    assert "FASTLINEAR_SANITIZE must be one of 0, address, thread, got '1'" in run.stderr


ON_WINDOWS = """
import json, platform, runpy, sys, types
import Cython.Build, numpy, setuptools
from setuptools.command.build_ext import build_ext

sys.platform, platform.machine = "win32", lambda: "AMD64"
found = {}
setuptools.setup = lambda **arguments: found.update(arguments)
Cython.Build.cythonize = lambda modules, **_: modules
build_ext.build_extensions = lambda self: None
runpy.run_path("setup.py")
build = found["cmdclass"]["build_ext"](setuptools.Distribution())
build.extensions = found["ext_modules"]
build.compiler = types.SimpleNamespace(initialized=False, initialize=lambda: None, cc="cl.exe")
build.build_extensions()
print(json.dumps([build.compiler.cc, {module.name: module.extra_compile_args for module in build.extensions}]))
"""
"""What setup.py would have compiled on Windows, with which compiler and flags; nothing is compiled."""


@pytest.mark.skipif(sys.platform != "linux", reason="makes a program that stands for clang-cl")
@pytest.mark.usefixtures("small_build")
def test_on_windows_clang_builds_every_instruction_set(tmp_path):
    """The flags of its row come last, contraction is off, and the baseline is a small one beside the others. MSVC,
    which CC can ask for, builds the baseline alone; a Clang that CC names must be there."""
    clang = tmp_path / "clang-cl"
    clang.write_text("")
    clang.chmod(0o755)

    def on_windows(cc):
        command = [sys.executable, "-c", ON_WINDOWS]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTLINEAR_")} | {"CC": cc}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    run = on_windows(str(clang))
    compiler, modules = json.loads(run.stdout)
    assert compiler == str(clang), run.stderr
    sources = ("_kernels", "_elementwise")
    names = {*BUILT_ONCE, *(f"{source}_{name}" for source in sources for name in INSTRUCTION_SETS)}
    assert {*modules} == {f"fastlinear.{name}" for name in names}
    for source in sources:
        for name, isa in INSTRUCTION_SETS.items():
            flags = modules[f"fastlinear.{source}_{name}"]
            rows = (*isa.flags, "/clang:-O2") if name == "baseline" else isa.flags
            assert flags[len(flags) - len(rows) :] == [*rows]
            assert flags[: len(flags) - len(rows)] == modules["fastlinear._layer"]
    assert {"/clang:-ffp-contract=off", "/clang:-O3"} <= {*modules["fastlinear._layer"]}
    assert "/openmp" not in modules["fastlinear._layer"]

    compiler, modules = json.loads(on_windows("cl").stdout)
    assert compiler == "cl.exe"
    assert {*modules} == {f"fastlinear.{name}" for name in (*BUILT_ONCE, *(f"{s}_baseline" for s in sources))}
    assert "/openmp" in modules["fastlinear._layer"]
    assert not [flag for flags in modules.values() for flag in flags if flag.startswith(("/clang", "-"))]

    missing = on_windows("/nowhere/clang-cl")
    assert missing.returncode != 0
    assert "CC=/nowhere/clang-cl was not found" in missing.stderr


@x86_linux
def test_show_config_sees_flush_to_zero():
    """Whoever turned it on. In a process of its own, because the mode stays."""
    code = """
import ctypes, fastlinear
libm = ctypes.CDLL("libm.so.6")
mode = (ctypes.c_uint32 * 8)()  # glibc's fenv_t, MXCSR last
def with_bits(bits):
    libm.fegetenv(mode)
    mode[7] = mode[7] & ~0x8040 | bits
    libm.fesetenv(mode)
    print(fastlinear.show_config("dicts")["subnormals"])
for bits in (0, 0x8000, 0x40, 0x8040, 0):
    with_bits(bits)
"""
    run = python(code)
    ending = "flushed to zero in this thread, not by fastlinear"
    said = ["kept", *(f"{what} are {ending}" for what in ("results", "operands", "results and operands")), "kept"]
    assert run.stdout.splitlines() == said, run.stderr


def test_show_config_has_the_flags():
    """Of the instruction set in use, its own come last."""
    for name in COMPILED:
        run = python("import fastlinear; print(fastlinear.show_config('dicts')['flags'])", FASTLINEAR_ISA=name)
        assert run.stdout.strip() == " ".join([_layer.flags, *INSTRUCTION_SETS[name].flags]), run.stderr


@pytest.mark.parametrize("name", COMPILED)
def test_denormals_after_import(name):
    """No module turns on flush-to-zero for the process: 1e-30 · 1e-10 is a denormal float32, before and after work."""
    code = """
import numpy, fastlinear
layer = fastlinear.Linear(1024, 1024, rng=0)
for _ in range(2):
    print(numpy.float32(1e-30) * numpy.float32(1e-10))
    layer(numpy.ones((64, 1024), "f4"))
"""
    run = python(code, FASTLINEAR_ISA=name)
    assert run.stdout.split() == [str(np.float32(1e-40))] * 2, run.stderr


def test_import_brings_nothing_but_numpy():
    """No package is imported but NumPy and the standard library, and no other instruction set's module."""
    code = """
import sys, numpy
before = set(sys.modules)
import fastlinear
print(*(set(sys.modules) - before))
"""
    modules = python(code, "-W", "error").stdout.split()
    tops = {name.partition(".")[0] for name in modules}
    assert not {t for t in tops - sys.stdlib_module_names if not t.startswith(("_cython", "cython_runtime"))} - {
        "fastlinear",
        "numpy",
    }
    built = [name for name in modules if name.startswith(("fastlinear._kernels_", "fastlinear._elementwise_"))]
    assert sorted(built) == [
        f"fastlinear.{source}_{_dispatch.available()[0]}" for source in ("_elementwise", "_kernels")
    ]
    assert not tops & {"multiprocessing", "subprocess", "unittest", "asyncio", "concurrent"}


def test_no_network_and_no_processes():
    """No source of the package imports what opens a connection or starts a process, except for python -m fastlinear."""
    risky = r"socket|ssl|http|urllib|ftplib|smtplib|asyncio|subprocess|multiprocessing|ctypes"
    used = rf"^\s*(?:from|import) (?:{risky})\b|\bos\.(?:system|popen|exec|spawn|posix_spawn|fork)\w*\("
    sources = [path for path in Path(PACKAGE).iterdir() if path.suffix in (".py", ".pyx")]
    found = [
        (path.name, line.strip())
        for path in sources
        for line in re.findall(used, path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == [("__main__.py", "import subprocess")]


def test_import_is_silent():
    """An import prints nothing and warns of nothing."""
    run = python("import fastlinear", "-W", "error")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has its GIL")
@pytest.mark.parametrize("name", ISAS)
def test_the_gil_stays_off(name):
    """Every module declares that it needs no GIL, those that are imported on first use, too; one that does not would
    turn it on, with a warning."""
    code = (
        "import sys, numpy; before = sys._is_gil_enabled(); from fastlinear import *\n"
        "modules = {name for name in sys.modules if name.startswith('fastlinear._')}\n"
        "wanted = 'layer', 'learn', 'losses', 'network', 'optimisers'\n"
        "missing = {f'fastlinear._{name}' for name in wanted} - modules\n"
        "print(before, sys._is_gil_enabled(), len(missing))"
    )
    run = python(code, "-W", "error", FASTLINEAR_ISA=name)
    assert run.stdout.split() == ["False", "False", "0"], run.stderr


def test_methods_are_plain_descriptors():
    """Without a GIL, threads count references to an object that they share with atomic instructions, unless it is one
    of those that Python leaves uncounted. Descriptors are. Cython's own function objects are not: with those, two
    threads with layers of their own did 1.2 to 1.6 times the calls of one."""
    for name in ("forward", "backward", "backward_input", "backward_params", "backward_update", "step"):
        assert type(getattr(fastlinear.Linear, name)) is types.MethodDescriptorType, name


def test_version_is_that_of_the_distribution():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("fastlinear") == fastlinear.__version__
    except PackageNotFoundError:
        pytest.skip("fastlinear runs from its source here and is not installed")


def test_changelog_begins_with_this_version():
    """The version is written once, in _version.py; the newest heading of the changelog is of that version."""
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == fastlinear.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="OMP_STACKSIZE is of the OpenMP runtime on Linux")
def test_half_a_megabyte_of_stack_is_enough():
    """Of each kernel, on Python's threads and on OpenMP's; glibc's thread takes some of it for itself."""
    code = """
import threading, numpy as np, fastlinear
fastlinear.set_num_threads(3)
SHAPES = (1, 3000, 900), (6, 3000, 900), (24, 520, 500), (300, 520, 64), (40, 40000, 40)
def work():
    for dtype in (np.float32, np.float64):
        for batch, size_in, size_out in SHAPES:
            layer = fastlinear.Linear(size_in, size_out, dtype=dtype, rng=0)
            x, grad_output = np.ones((batch, size_in), dtype), np.ones((batch, size_out), dtype)
            layer(x), layer.backward(x, grad_output), layer.backward_update(x, grad_output, 0.1)
    print("done")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=work)
thread.start(), thread.join()
"""
    run = python(code, OMP_STACKSIZE="512k")
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
