"""Threads: how many, who sets that, forks, and many Python threads on one layer."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, _dispatch, _layer, _threads

from .helpers import COMPILED, assert_same_bits, layer_of, memory_of, python, wild

pytestmark = pytest.mark.thread_unsafe(reason="counts and sets the process's threads")

openmp = pytest.mark.skipif(not _layer.has_openmp, reason="built without OpenMP: always one thread")
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")

# Work that is worth all the threads there can be, and how many the process has.
PARALLEL = """
import os
import numpy as np
import fastlinear

layer = fastlinear.Linear(1024, 1024, rng=0)
x = np.random.default_rng(0).standard_normal((64, 1024), np.float32)

def count():
    return len(os.listdir("/proc/self/task"))

before = count()
"""


@openmp
@pytest.mark.parametrize("n", [1, 2, 7, np.int64(3), 1024], ids=repr)
def test_set_and_get(threads, n):
    assert threads(n) is None
    assert fastlinear.get_num_threads() == n


@pytest.mark.parametrize(
    ("n", "error"),
    [
        *[(n, ValueError) for n in (0, -1, 1025, 10**30)],
        *[(n, TypeError) for n in (2.0, "2", None, [2])],
    ],
    ids=repr,
)
def test_bad_numbers_of_threads(threads, n, error):
    """Nothing but an integer from 1 to 1024, and then the setting stays."""
    before = fastlinear.get_num_threads()
    with pytest.raises(error, match=r"n must be .*, got"):
        threads(n)
    assert fastlinear.get_num_threads() == before


def test_default(monkeypatch):
    """No more than the cores that the process may use, and at least one."""
    assert 1 <= _threads.default_num_threads() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
        assert _threads.default_num_threads() == 1


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_default_obeys_the_quota(monkeypatch, tmp_path, quota, cores):
    """The control group's quota, rounded up, bounds the default; an unlimited or unreadable one does not."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    files = {"/sys/fs/cgroup/cpu.max": tmp_path / "cpu.max"}
    monkeypatch.setattr("builtins.open", lambda name, real=open: real(files.get(name, tmp_path / "none")))
    assert _threads.default_num_threads() == cores


@pytest.mark.parametrize("value", ["1", "3", "1024", ""])
def test_environment_variable(value):
    """FASTLINEAR_NUM_THREADS sets the number; empty is as if it were not set."""
    run = python("import fastlinear as f; print(f.get_num_threads())", FASTLINEAR_NUM_THREADS=value)
    assert run.returncode == 0, run.stderr
    expected = int(value or min(_threads.default_num_threads(), 1024))
    assert int(run.stdout) == (expected if _layer.has_openmp else 1)


@pytest.mark.parametrize("value", ["0", "-1", "1025", "two", "1.5", "٣", " 2", "9" * 5000], ids=lambda v: v[:9])
def test_nonsense_in_the_environment_variable(value):
    """It is an ImportError that says what may be there."""
    run = python("import fastlinear", FASTLINEAR_NUM_THREADS=value, PYTHONUTF8="1")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: FASTLINEAR_NUM_THREADS=")
    assert last.endswith("must be an integer from 1 to 1024")


@openmp
def test_openmp_variable_bounds_the_default():
    run = python("import fastlinear as f; print(f.get_num_threads())", OMP_NUM_THREADS="1")
    assert run.stdout == "1\n", run.stderr


@pytest.mark.parametrize("name", _dispatch.available())
def test_isa_variable(name):
    """FASTLINEAR_ISA forces each instruction set of this machine."""
    code = "import numpy, fastlinear as f; l = f.Linear(5, 4, rng=0); print(f.isa, l(numpy.ones(5, 'f4')).shape)"
    run = python(code, FASTLINEAR_ISA=name)
    assert run.stdout == f"{name} (4,)\n", run.stderr


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "reference ", "../reference", "0"])
def test_nonsense_in_the_isa_variable(name):
    """It is an ImportError that lists the choices."""
    run = python("import fastlinear", FASTLINEAR_ISA=name)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == (
        f"ImportError: FASTLINEAR_ISA={name!r} is unknown; the choices here are: {', '.join(_dispatch.available())}"
    )


def test_choice_of_kernels(monkeypatch):
    """The best there is unless one is asked for; one that this machine lacks is an ImportError with the choices."""
    monkeypatch.setattr(_dispatch, "available", lambda: ["avx2", "baseline", "reference"])
    assert _dispatch.choose(None) == _dispatch.choose("") == "avx2"
    assert _dispatch.choose("baseline") == "baseline"
    with pytest.raises(ImportError, match=r"avx512' is not supported .* avx2, baseline, reference"):
        _dispatch.choose("avx512")


@openmp
@linux
def test_threads_are_used_and_no_more():
    """Three threads set: two more than before run, in a call worth them; none in a small one."""
    code = (
        PARALLEL
        + """
fastlinear.set_num_threads(3)
fastlinear.Linear(64, 64)(x[:, :64])
small = count() - before
layer(x)
print(small, count() - before)
"""
    )
    run = python(code, OPENBLAS_NUM_THREADS="1")
    assert run.stdout == "0 2\n", run.stderr


@openmp
@linux
def test_threadpoolctl_limits_are_obeyed():
    """threadpoolctl sees the pool; under its limit no more threads run, and after it as many as were set."""
    pytest.importorskip("threadpoolctl")
    code = (
        PARALLEL
        + """
from threadpoolctl import threadpool_info, threadpool_limits

assert "openmp" in {pool["user_api"] for pool in threadpool_info()}
fastlinear.set_num_threads(4)
with threadpool_limits(limits=2, user_api="openmp"):
    inside = fastlinear.get_num_threads()
    layer(x)
    used = count() - before
layer(x)
print(inside, used, fastlinear.get_num_threads(), count() - before)
"""
    )
    run = python(code, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="4")
    assert run.stdout == "2 1 4 3\n", run.stderr


@openmp
@pytest.mark.parametrize("limit", [1, 3, 5, 8])
def test_a_limit_above_what_openmp_had(limit):
    """Six threads were asked for where OpenMP itself had two; a limit set after that is obeyed all the same."""
    pytest.importorskip("threadpoolctl")
    code = """
import fastlinear
from threadpoolctl import threadpool_limits
fastlinear.set_num_threads(6)
with threadpool_limits(limits=LIMIT, user_api="openmp"):
    inside = fastlinear.get_num_threads()
print(inside, fastlinear.get_num_threads())
"""
    run = python(code.replace("LIMIT", str(limit)), OMP_NUM_THREADS="2")
    assert run.stdout == f"{min(limit, 6)} 6\n", run.stderr


FORK = (
    PARALLEL.replace("before = count()", "")
    + """
fastlinear.set_num_threads(4)
expected = layer(x).tobytes()

def child(depth):
    pid = os.fork()
    if pid == 0:
        right = layer(x).tobytes() == expected and fastlinear.get_num_threads() == 1
        os._exit(0 if right and (depth == 0 or child(depth - 1) == 0) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(child(1), layer(x).tobytes() == expected)
"""
)

POOL = (
    PARALLEL.replace("before = count()", "")
    + """
import multiprocessing
import warnings

def work(row):
    return layer(x[: row + 32]).tobytes()

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, on any fork beside threads
    fastlinear.set_num_threads(4)
    expected = [work(row) for row in range(8)]
    with multiprocessing.get_context("METHOD").Pool(2) as pool:
        print(pool.map(work, range(8)) == expected)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_fork_after_parallel_work():
    """A child and a grandchild forked after parallel work compute the same bits, on one thread, and do not hang."""
    run = python(FORK)
    assert run.stdout == "0 True\n", run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(tmp_path, method):
    """Pools of every start method, made after parallel work, compute the same bits and do not hang."""
    script = tmp_path / "script.py"
    script.write_text(POOL.replace("METHOD", method))
    run = python(None, str(script), PYTHONPATH=os.path.dirname(os.path.dirname(fastlinear.__file__)))  # noqa: PTH120
    assert run.stdout == "True\n", run.stderr


# Sizes that hold the GIL and that release it, and how often eight threads go round.
many = pytest.mark.parametrize(
    ("sizes", "rounds"),
    [((4, 30, 20), 500), pytest.param((4, 30, 20), 3125, marks=pytest.mark.sweep), ((40, 70, 60), 60)],
    ids=["GIL held", "GIL held, 100,000 calls", "GIL released"],
)


@many
def test_many_python_threads_on_one_layer(isa, dtype, sizes, rounds):
    """Eight Python threads call one layer at once: every result has the bits of a call alone."""
    problem = wild(*sizes, dtype)
    layer = layer_of(problem)
    arguments = [(problem.x * n, problem.grad_output * n) for n in range(8)]
    expected = [(layer(x).tobytes(), layer.backward_input(g).tobytes()) for x, g in arguments]

    def work(n):
        x, g = arguments[n]
        y, gx = np.empty_like(g), np.empty_like(x)
        right = 0
        for _ in range(rounds):
            right += layer(x).tobytes() == expected[n][0]
            right += layer.forward(x, out=y).tobytes() == expected[n][0]
            right += layer.backward_input(g).tobytes() == expected[n][1]
            right += layer.backward_input(g, out=gx).tobytes() == expected[n][1]
        return right

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [4 * rounds] * 8


@many
def test_many_python_threads_on_layers_of_their_own(isa, dtype, sizes, rounds):
    """Eight Python threads train eight layers at once: each ends as it would alone."""
    problem = wild(*sizes, dtype)

    def train(seed):
        layer = Linear(*sizes[1:], dtype=dtype, rng=seed)
        for _ in range(rounds):
            layer.zero_grad()
            layer.backward(problem.x, layer(problem.x), scale=1e-6)
            layer.backward_update(problem.x, problem.grad_output, 1e-9)
        layer.step(1e-9)
        return memory_of(layer)

    expected = [train(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(train, range(8)), expected, strict=True):
            for name, value in alone.items():
                assert_same_bits(got[name], value, name)


POOLS = (
    PARALLEL.replace("before = count()", "")
    + """
import threading
from threadpoolctl import threadpool_limits

fastlinear.set_num_threads(4)
a = np.random.default_rng(1).standard_normal((300, 300))
OTHERS
exact = a @ a
expected = layer(x).tobytes(), layer.backward_input(x).tobytes()

def turns(times):
    for _ in range(times):
        assert np.allclose(a @ a, exact)
        assert layer(x).tobytes() == expected[0]
        others()
        assert layer.backward_input(x).tobytes() == expected[1]

turns(20)
for limit in (1, 2, None):
    with threadpool_limits(limits=limit):
        assert fastlinear.get_num_threads() == (limit or 4)
        turns(5)
assert fastlinear.get_num_threads() == 4
threads = [threading.Thread(target=turns, args=(5,)) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
turns(5)
print("right")
"""
)


@openmp
@pytest.mark.parametrize(
    "others",
    [
        "def others(): pass",
        """
import torch
torch.set_num_threads(4)
b = torch.from_numpy(a)
def others():
    assert np.allclose((b @ b).numpy(), exact)
    assert np.allclose(torch.relu(b).sum().item(), np.maximum(a, 0).sum())
""",
    ],
    ids=["NumPy", "NumPy and PyTorch"],
)
def test_other_pools_in_turns(others):
    """NumPy's, PyTorch's and fastlinear's threads in turns, from one Python thread and from three, under the limits of
    threadpoolctl and without: right results, no hang, the limits obeyed."""
    pytest.importorskip("threadpoolctl")
    if "torch" in others:
        pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
    run = python(POOLS.replace("OTHERS", others), OMP_NUM_THREADS="4", OPENBLAS_NUM_THREADS="2", timeout=300)
    assert run.stdout == "right\n", run.stderr


# Another library can have a destructor of a thread's values that runs Python, as this one does. POSIX gives destructors
# no order. glibc runs them by the age of their keys, so that of the scratch comes first.
AT_THE_END = """
import ctypes, threading, time
import numpy as np
from fastlinear import Linear

layer = Linear(20, 30, rng=0)
x = np.ones((40, 20), np.float32)
expected, results = layer(x), []
key, library = ctypes.c_uint(), ctypes.CDLL(None)

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def destructor(value):
    results.append(np.array_equal(layer(x), expected))

def work():
    layer(x)
    library.pthread_setspecific(key, ctypes.c_void_p(1))

assert library.pthread_key_create(ctypes.byref(key), destructor) == 0
for _ in range(3):
    before = len(results)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    while len(results) == before:  # join() returns before the destructors run
        time.sleep(0.001)
print(results)
"""


@linux
@pytest.mark.parametrize("name", COMPILED)
def test_a_call_while_a_thread_ends(name):
    """A layer that is called in the destructor of a thread's value, after its scratch was freed, gets new scratch."""
    done = python(AT_THE_END, FASTLINEAR_ISA=name)
    assert (done.returncode, done.stdout) == (0, "[True, True, True]\n"), done.stderr
