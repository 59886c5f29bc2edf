"""The build: which instructions are in which module, what this machine is offered, what an import brings along."""

import platform
import re
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import _dispatch, _layer
from fastlinear._isa import INSTRUCTION_SETS

from .helpers import COMPILED, python

pytestmark = pytest.mark.thread_unsafe(reason="looks at the process")

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


def code_of(module):
    """The instructions of a module, one in a line."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    # Not imported: a machine without that instruction set would crash.
    file = PathFinder.find_spec(module, [str(Path(fastlinear.__file__).parent)]).origin
    command = [objdump, "-d", "--no-show-raw-insn", file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


VEX = r"\t(v[a-z]\S*)"
"""Every AVX instruction's name begins with a v; no other that a compiler makes does."""


@x86_linux
@pytest.mark.parametrize("module", ["_layer", "_kernels_baseline"])
def test_no_avx_where_any_machine_runs(module):
    """Neither the module that asks the processor nor the baseline has an instruction of AVX."""
    code = code_of(module)
    assert "xmm" in code
    assert not set(re.findall(VEX, code)) - {"verr", "verw"}
    assert not re.search(r"%[yz]mm", code)


@x86_linux
def test_only_their_own_registers_where_avx_is():
    """AVX2 code has 256-bit vectors and fused multiply-adds, and nothing of AVX-512, which has its own."""
    if not [*Path(fastlinear.__file__).parent.glob("_kernels_avx2.*so")]:
        pytest.skip("FASTLINEAR_PLAIN builds the baseline alone")
    avx2, avx512 = code_of("_kernels_avx2"), code_of("_kernels_avx512")
    assert re.search(r"vfmadd\d+ps\s.*%ymm", avx2)
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3\d)|%k[0-7]", avx2)
    assert re.search(r"vfmadd\d+ps\s.*%zmm", avx512)


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
    kernels = [name for name in modules if name.startswith("fastlinear._kernels_")]
    assert kernels == [f"fastlinear._kernels_{_dispatch.available()[0]}"]
    assert not tops & {"multiprocessing", "subprocess", "unittest", "asyncio", "concurrent"}


def test_import_is_silent():
    """An import prints nothing and warns of nothing."""
    run = python("import fastlinear", "-W", "error")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_version_is_that_of_the_distribution():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("fastlinear") == fastlinear.__version__
    except PackageNotFoundError:
        pytest.skip("fastlinear runs from its source here and is not installed")


ROOT = Path(__file__).parents[1]


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
