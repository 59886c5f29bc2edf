"""Limits of the system, of OpenMP and of memory: a call does with less, or raises and leaves all as it was."""

import pickle
import sys
from itertools import count, product

import numpy as np
import pytest

from fastlinear import Linear, _dispatch, _layer, _threads

from .helpers import ISAS, METHODS, integers, layer_of, python
from .memory import in_child

pytestmark = pytest.mark.thread_unsafe(reason="limits and threads are the process's")

openmp = pytest.mark.skipif(not _layer.has_openmp, reason="built without OpenMP: always one thread")
linux = pytest.mark.skipif(sys.platform != "linux", reason="sets Linux's limits and counts threads in /proc")


# ---- memory, one allocation of Python after another


STARVED = {
    **METHODS,
    "forward of a cast": lambda layer, x, g, out: layer(x.astype(np.float16)),
    "forward of a list": lambda layer, x, g, out: layer(x.tolist()),
    "backward of views": lambda layer, x, g, out: layer.backward(x[::-1], g[::-1], out),
    "backward_update of views": lambda layer, x, g, out: layer.backward_update(x[::-1], g[::-1], 0.5, out),
    "strided out": lambda layer, x, g, out: layer.backward(x, g, np.repeat(out, 2, 1)[:, ::2]),
    "wrong shape": lambda layer, x, g, out: layer.backward(x[:, 1:], g),
    "step": lambda layer, x, g, out: layer.step(0.5),
    "zero_grad": lambda layer, x, g, out: layer.zero_grad(),
    "reset": lambda layer, x, g, out: layer.reset(0),
    "attributes": lambda layer, x, g, out: (layer.weight, layer.bias, layer.grad_weight, layer.grad_bias),
    "assign": lambda layer, x, g, out: setattr(layer, "weight", [[1.0] * layer.in_features] * layer.out_features),
    "load_state_dict": lambda layer, x, g, out: layer.load_state_dict(Linear(7, 3, rng=1).state_dict()),
    "copies": lambda layer, x, g, out: pickle.loads(pickle.dumps(layer)),
    "from_weights": lambda layer, x, g, out: Linear.from_weights(x.copy(), g[0].copy(), copy=False),
}


def state(layer):
    """The bytes of the parameters, and of the gradients."""
    return [[None if a is None else a.tobytes() for a in part] for part in (layer._memory()[:2], layer._memory()[2:])]


def starve(name):
    """Let the first allocation of a call fail, then the second, and so on until the call does not notice any more."""
    import _testcapi

    _dispatch.use(name)
    problem = integers(3, 7, 3, np.float32)
    x, grad_output, *_ = problem
    zeros = [bytes(4 * 7 * 3), bytes(4 * 3)]
    failures = 0
    for (what, call), trained in product(STARVED.items(), (False, True)):

        def run(n, what=what, call=call, trained=trained):
            """Whether allocation n was missed, and the layer."""
            layer, out = layer_of(problem), np.zeros((3, 3 if what in ("call", "forward") else 7), np.float32)
            if trained:
                layer.backward(x, grad_output)
            if n is None:
                return False, layer
            _testcapi.set_nomemory(n, n + 1)
            missed = False
            try:
                call(layer, x, grad_output, out)
            except ValueError:  # "wrong shape"
                pass
            except Exception:  # a MemoryError, unless NumPy or Python makes something else of it
                missed = True
            finally:
                _testcapi.remove_mem_hooks()
            return missed, layer

        before, after = state(run(None)[1]), state(run(1 << 30)[1])
        successes = 0
        for n in count():
            missed, layer = run(n)
            parameters, gradients = state(layer)
            if name != "reference":  # which changes one array after another
                assert parameters in (before[0], after[0]), (what, n)
                assert gradients in (before[1], after[1], zeros), (what, n)
            assert layer(x).shape == (3, 3)
            failures, successes = failures + missed, 0 if missed else successes + 1
            if successes == 20:
                break
    assert failures > 100, failures


@pytest.mark.parametrize("name", ISAS)
def test_every_allocation_may_fail(name):
    """Whichever allocation of Python's fails: an exception, no crash, and the parameters are whole before or after, as
    are the gradients. (The reference accumulates in several steps of NumPy.)"""
    pytest.importorskip("_testcapi")
    run = in_child(starve, name)
    assert run.returncode == 0, run.stderr[-3000:]


# ---- threads that cannot be made


NO_THREADS = """
import os, resource, threading
import numpy as np
import fastlinear
from fastlinear import Linear

layer = Linear(1024, 1024, rng=0)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((2, 64, 1024), np.float32)
fastlinear.set_num_threads(1)
expected = layer(x).tobytes(), layer.backward_input(x).tobytes()
fastlinear.set_num_threads(FIRST)

def count():
    return len(os.listdir("/proc/self/task"))

def right():
    return (layer(x, y).tobytes(), layer.backward_input(x, y).tobytes()) == expected

before = count()
right()
threads = [count() - before]
LIMIT
gate, started, refused = threading.Event(), [], False
for _ in range(4):  # the limit is in force
    try:
        thread = threading.Thread(target=gate.wait)
        thread.start()
        started.append(thread)
    except RuntimeError:
        refused = True
gate.set()
for thread in started:
    thread.join()
fastlinear.set_num_threads(6)
results = {right() for _ in range(10)}
threads.append(count() - before)
LIFT
results |= {right() for _ in range(70)}
threads.append(count() - before)
print(refused, results, threads)
"""

LIMITS = {
    "RLIMIT_NPROC": (
        """
if os.getuid() == 0:  # whom this limit does not bind
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
""",
        "resource.setrlimit(resource.RLIMIT_NPROC, (resource.getrlimit(resource.RLIMIT_NPROC)[1],) * 2)",
    ),
    "RLIMIT_AS": (
        """
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), -1))
""",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ),
}


@openmp
@linux
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("limit", LIMITS)
def test_threads_that_cannot_be_made(limit, first):
    """Where the system refuses more threads, calls do with those that are there, right to the bit; when it has them
    again, calls use them again."""
    code = NO_THREADS.replace("FIRST", str(first))
    for word, part in zip(("LIMIT", "LIFT"), LIMITS[limit], strict=True):
        code = code.replace(f"\n{word}\n", f"\n{part}\n")
    run = python(code, OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1")
    assert run.stdout == f"True {{True}} [{first - 1}, {first - 1}, 5]\n", (run.stdout, run.stderr)


@openmp
@linux
@pytest.mark.parametrize("room", [2, 8, 14, 24])
def test_room_for_the_threads_but_not_for_their_scratch(room):
    """Under RLIMIT_AS with room for 15 more threads and so many MiB, where their scratch takes 16: right on one thread,
    or on all. The threads are tried once the scratch is there, so OpenMP finds what the trial found."""
    code = (
        NO_THREADS.split("fastlinear.set_num_threads(FIRST)")[0]
        + LIMITS["RLIMIT_AS"][0].replace("(4 << 20)", f"15 * ((8 << 20) + 4096) + ({room} << 20)")
        + """
fastlinear.set_num_threads(16)
print((layer(x, y).tobytes(), layer.backward_input(x, y).tobytes()) == expected)
"""
    )
    run = python(code, OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1", OMP_STACKSIZE="8M")
    assert run.stdout == "True\n", (run.stdout, run.stderr)


@openmp
@linux
def test_a_result_that_does_not_fit():
    """Under RLIMIT_AS a result that finds no room is a MemoryError, and the layer and its arguments are as before."""
    code = (
        NO_THREADS.split("before = count()")[0].replace("FIRST", "2")
        + LIMITS["RLIMIT_AS"][0].replace("4 << 20", "24 << 20")
        + """
before = layer.weight.tobytes()
x = np.lib.stride_tricks.as_strided(x, (1 << 14, 1024), (0, 4))
for call in (lambda: layer(x), lambda: layer.backward_input(x), lambda: layer.backward_update(x, x, 1.0),
             lambda: layer.backward(x, x), lambda: Linear(4096, 4096), lambda: Linear(1024, 1 << 14)):
    try:
        call()
    except MemoryError:
        print(layer.weight.tobytes() == before, end=" ")
"""
    )
    run = python(code, OPENBLAS_NUM_THREADS="1")
    assert run.stdout == "True " * 6, (run.stdout, run.stderr)


OPENMP_SETTINGS = {
    "thread limit": ({"OMP_THREAD_LIMIT": "2"}, 2),
    "no more than one": ({"OMP_THREAD_LIMIT": "1"}, 1),
    "dynamic": ({"OMP_DYNAMIC": "true"}, 5),
    "nested": ({"OMP_MAX_ACTIVE_LEVELS": "4", "OMP_NESTED": "true"}, 5),
    "passive": ({"OMP_WAIT_POLICY": "passive", "OMP_PROC_BIND": "true"}, 5),
    "stack": ({"OMP_STACKSIZE": "1M"}, 5),
    "nonsense as a stack": ({"OMP_STACKSIZE": "1 byte"}, 5),
}


@openmp
@pytest.mark.parametrize(("variables", "most"), OPENMP_SETTINGS.values(), ids=OPENMP_SETTINGS)
def test_settings_of_openmp(variables, most):
    """Under whatever OpenMP's variables say the results are those of one thread, to the bit."""
    code = (
        NO_THREADS.split("threads = [")[0].replace("FIRST", "5")
        + """
expected_update = []
for n in (1, 5):
    fastlinear.set_num_threads(n)
    trained = Linear(1024, 1024, rng=0)
    trained.backward(x, x)
    trained.backward_update(x, x, 0.5)
    expected_update.append((trained.weight.tobytes(), trained.grad_weight.tobytes()))
print(fastlinear.get_num_threads(), right(), expected_update[0] == expected_update[1])
"""
    )
    run = python(code, **variables)
    assert run.stdout == f"{most} True True\n", (run.stdout, run.stderr)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("", 0),
        ("64", 1 << 16),
        ("64K", 1 << 16),
        (" 64 k ", 1 << 16),
        ("4096B", 4096),
        ("2m", 2 << 20),
        ("1G", 1 << 30),
        ("-1", 0),
        ("0x10", 0),
        ("1T", 0),
        ("64 K B", 0),
        ("٣", 0),
    ],
)
def test_the_stack_that_openmp_gives(monkeypatch, value, size):
    """OMP_STACKSIZE as OpenMP reads it: kilobytes unless it says otherwise; nonsense is as if it were not set."""
    for variable in ("GOMP_STACKSIZE", "KMP_STACKSIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_STACKSIZE", value)
    assert _threads.openmp_stack_size() == size


@openmp
@pytest.mark.parametrize("size", ["64K", "128K"])
def test_small_stacks(size):
    """Threads with the stack of OMP_STACKSIZE=64K run every kernel: none keeps its scratch there."""
    code = NO_THREADS.split("threads = [")[0].replace("FIRST", "3")
    code += """
trained = Linear(1024, 1024, rng=0)
trained.backward(x, x)
trained.backward_update(x, x, 0.5)
print(right())
"""
    run = python(code, OMP_STACKSIZE=size)
    assert run.stdout == "True\n", (run.returncode, run.stderr)
