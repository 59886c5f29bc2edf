"""Arrays of more than 2**31 elements, where an index or an offset of 32 bits would go wrong.

An array is one small piece of memory, mapped again and again over many gigabytes of addresses. All values are small
integers, so the right results are known exactly from the piece. An offset that wraps lands in another place of the
piece, or where no memory is; because of the latter each test runs in a child process. ps and top say that it takes as
much memory as it has addresses, but it takes some megabytes, and two more for each GiB of addresses.

All on the kernels of the best instruction set: the others come from the same source, in which only the vectors differ.
"""

from pathlib import Path

import numpy as np
import pytest

from fastlinear import Linear, _dispatch, set_num_threads

from .helpers import COMPILED
from .memory import AVAILABLE, in_child, repeated

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="maps memory in Linux's way")

MANY = 2**31
FEW = 2**22
"""Arrays up to that many elements are ordinary ones."""
SHORT, LONG = 3 * 2**12, 3 * 2**14
"""Features: for forward, a few blocks of k, and more than a long block; in both dtypes."""
PIECE = 3 * 2**18
"""Elements of a piece of a row."""


def rows(features):
    """So many rows are more than MANY elements."""
    return MANY // features + 40


def pieces(count, piece=PIECE):
    """Features, so that `count` rows are more than MANY elements, in whole pieces."""
    return (MANY // (count * piece) + 1) * piece


def times(n, period):
    """How many of the first n numbers have each remainder."""
    period = max(1, min(n, period))
    return n // period + (np.arange(min(n, period)) < n % period)


def spread(values, shape):
    """values, again and again along both axes."""
    if 0 in shape:
        return np.empty(shape, values.dtype)
    return values[np.ix_(*(np.arange(n) % period for n, period in zip(shape, values.shape, strict=True)))]


class Periodic:
    """An array that repeats `values` along both axes; if it is large, in one piece of memory."""

    def __init__(self, values, shape, dtype):
        self.values, self.shape, self.alone = values.astype(dtype), shape, None
        if shape[0] * shape[1] > FEW:
            self.array, self.alone = repeated(self.values, shape)
        else:
            self.array = spread(self.values, shape)

    def sharing(self):
        """How many elements share the memory of each, and all that is added to them."""
        if self.alone is None:
            return 1
        return np.multiply.outer(*map(times, self.shape, self.values.shape))

    def check(self, expected, what):
        assert np.abs(expected).max() < 2**23, f"{what}: not exact in float32"
        got, wanted = (self.array, spread(expected, self.shape)) if self.alone is None else (self.alone, expected)
        assert np.array_equal(got, wanted), f"{what}: {np.count_nonzero(got != wanted)} of {got.size} differ"


def run_case(kernel, dtype, sizes, periods, threads):
    """One kernel on arrays that repeat themselves along batch, in and out with these periods. In a child."""
    kernels, rng = _dispatch.load(COMPILED[0]), np.random.default_rng(0)
    batch, in_features, out_features = sizes
    b, i, o = map(min, sizes, periods)
    b_times, i_times, o_times = map(times, sizes, periods)

    def integers(*shape):
        return rng.integers(-4, 4, shape, endpoint=True).astype(np.float64)

    def periodic(values, *shape):
        return Periodic(values, shape, dtype)

    def nothing(*shape):
        return np.full(shape, np.nan)

    x_values, g_values, w_values, b_values = integers(b, i), integers(b, o), integers(o, i), integers(1, o)
    grad_weight, grad_bias = (g_values.T * b_times) @ x_values, b_times @ g_values
    grad_input = (g_values * o_times) @ w_values

    x = periodic(x_values, batch, in_features).array if kernel not in ("grad_input", "grad_bias") else None
    g = periodic(g_values, batch, out_features).array if kernel != "forward" else None
    if kernel == "forward":
        w, bias = periodic(w_values, out_features, in_features), periodic(b_values, 1, out_features)
        y = periodic(nothing(b, o), batch, out_features)
        kernels.forward(x, w.array, bias.array[0], y.array, threads)
        y.check((x_values * i_times) @ w_values.T + b_values, "output")
    if kernel == "grad_input":
        w, gx = periodic(w_values, out_features, in_features), periodic(nothing(b, i), batch, in_features)
        kernels.grad_input(g, w.array, gx.array, threads)
        gx.check(grad_input, "grad_input")
    if kernel == "grad_weight":
        for scale in (1, 0.5):
            gw = periodic(w_values, out_features, in_features)
            kernels.grad_weight(x, g, scale, gw.array, threads)
            gw.check(w_values + scale * grad_weight * gw.sharing(), f"grad_weight, scale {scale}")
    if kernel == "grad_bias":
        for scale in (1, 0.5):
            gb = periodic(b_values, 1, out_features)
            kernels.grad_bias(g, scale, gb.array[0])
            gb.check(b_values + scale * grad_bias, f"grad_bias, scale {scale}")
    if kernel == "update":
        w, bias = periodic(w_values, out_features, in_features), periodic(b_values, 1, out_features)
        # Rows of a weight that share memory change each other before they are read; run_update sees to those.
        gx = periodic(nothing(b, i), batch, in_features) if w.alone is None else None
        kernels.update(x, g, 0.5, w.array, bias.array[0], gx and gx.array, threads)
        w.check(w_values - 0.5 * grad_weight * w.sharing(), "weight")
        bias.check(b_values - 0.5 * grad_bias * bias.sharing(), "bias")
        if gx is not None:
            gx.check(grad_input, "grad_input")


# What is large, and the way that the kernel takes: (batch, in, out), and the periods of the three.
ALL = 2**60
CASES = {
    "forward": {
        "x, dots": ((rows(SHORT), SHORT, 2), (48, ALL, ALL)),
        "x, one output": ((rows(SHORT), SHORT, 1), (48, ALL, ALL)),
        "x, packed": ((rows(SHORT), SHORT, 16), (48, ALL, ALL)),
        "x, long": ((rows(LONG), LONG, 3), (12, ALL, ALL)),
        "x, narrow": ((rows(16), 16, 2), (3 * 2**14, ALL, ALL)),
        "weight, dots": ((3, SHORT, rows(SHORT)), (ALL, ALL, 48)),
        "weight, long": ((3, LONG, rows(LONG)), (ALL, ALL, 12)),
        "weight, packed": ((25, 32, pieces(32, 3 * 2**15)), (1, ALL, 3 * 2**15)),
        "weight, narrow": ((2, 16, pieces(16, 3 * 2**15)), (1, ALL, 3 * 2**15)),
        "output, packed": ((rows(LONG), 17, LONG), (12, ALL, ALL)),
        "output, narrow": ((rows(LONG), 4, LONG), (12, ALL, ALL)),
        "output, dots": ((3, 0, pieces(3)), (1, ALL, PIECE)),
        "output and weight, packed": ((16, 17, pieces(16, 3 * 2**15)), (1, ALL, 3 * 2**15)),
    },
    "grad_input": {
        "weight, one": ((1, LONG, rows(LONG)), (ALL, ALL, 12)),
        "weight, stream": ((5, LONG, rows(LONG)), (ALL, ALL, 12)),
        "weight, blocks": ((13, LONG, rows(LONG)), (ALL, ALL, 12)),
        "grad_output, stream": ((6, 1, pieces(6)), (1, ALL, PIECE)),
        "grad_output, blocks": ((rows(LONG), 1, LONG), (12, ALL, ALL)),
        "grad_input, stream": ((6, pieces(6), 1), (1, PIECE, ALL)),
        "grad_input, blocks": ((rows(LONG), LONG, 5), (12, ALL, ALL)),
    },
    "grad_weight": {
        "grad_weight": ((3, LONG, rows(LONG)), (ALL, ALL, 12)),
        "grad_weight, direct": ((2, 48, pieces(48, 3 * 2**14)), (1, ALL, 3 * 2**14)),
        "grad_weight, thin": ((2, 3, pieces(3, 3 * 2**17)), (1, ALL, 3 * 2**17)),
        "grad_weight, turned": ((6, 2, pieces(2, 3 * 2**17)), (1, ALL, 3 * 2**17)),
        "x": ((rows(SHORT), SHORT, 2), (48, ALL, ALL)),
        "x, direct": ((rows(64), 64, 1), (3 * 2**13, ALL, ALL)),
        "grad_output": ((rows(LONG), 1, LONG), (12, ALL, ALL)),
    },
    "grad_bias": {
        "grad_output": ((rows(LONG), 1, LONG), (12, ALL, ALL)),
    },
    "update": {
        "x and grad_input": ((rows(LONG), LONG, 5), (12, ALL, ALL)),
        "grad_output": ((rows(LONG), 1, LONG), (12, ALL, ALL)),
        "weight": ((3, LONG, rows(LONG)), (ALL, ALL, 12)),
    },
}


class LargeWeight:
    """A large weight that can be updated, and a grad_output that is zero but for a few of its rows: nothing comes of
    the others, with which these share memory, so that each is what it was when grad_input reads it."""

    def __init__(self, batch, dtype):
        rng = np.random.default_rng(0)
        out_features = rows(LONG)
        # On both sides of 2, 4 and 8 GiB (twice that in float64), no two in the same memory.
        few = [0, 2**29 // LONG, 2**30 // LONG, MANY // LONG, out_features - 1]
        assert len({o % 12 for o in few}) == len(few)
        values = rng.integers(-4, 4, (12, LONG), endpoint=True)
        self.x = rng.integers(-4, 4, (batch, LONG), endpoint=True).astype(dtype)
        self.grad_output = np.zeros((batch, out_features), dtype)
        self.grad_output[:, few] = rng.integers(1, 4, (batch, len(few)), endpoint=True)
        self.bias = rng.integers(-4, 4, out_features, endpoint=True).astype(dtype)
        self.weight = Periodic(values, (out_features, LONG), dtype)
        self.grad_input = np.full_like(self.x, np.nan)
        places = [o % 12 for o in few]
        self._output = spread((self.x @ values.T), self.grad_output.shape) + self.bias
        self._grad_input = self.grad_output[:, few] @ values[places]
        self._updated = values.astype(dtype)
        self._updated[places] -= 0.5 * self.grad_output[:, few].T @ self.x
        self._updated_bias = self.bias - 0.5 * self.grad_output.sum(0)

    def check_output(self, y):
        assert np.array_equal(y, self._output)

    def check_grad_input(self):
        assert np.array_equal(self.grad_input, self._grad_input)
        self.grad_input.fill(np.nan)

    def check_update(self):
        """With lr = 0.5."""
        self.check_grad_input()
        self.weight.check(self._updated, "weight")
        assert np.array_equal(self.bias, self._updated_bias)


def run_update(dtype, batch):
    p = LargeWeight(batch, dtype)
    _dispatch.load(COMPILED[0]).update(p.x, p.grad_output, 0.5, p.weight.array, p.bias, p.grad_input)
    p.check_update()


def run_step(dtype):
    rng, shape = np.random.default_rng(0), (1, pieces(1))
    parameter, gradient = (Periodic(rng.integers(1, 4, (1, PIECE)), shape, dtype) for _ in range(2))
    expected = parameter.values - 0.5 * gradient.values * parameter.sharing()
    _dispatch.load(COMPILED[0]).step(gradient.array[0], 0.5, parameter.array[0])
    parameter.check(expected, "parameter")


def run_layer_of_large_weight(dtype):
    p = LargeWeight(5, dtype)
    layer = Linear.from_weights(p.weight.array, p.bias, copy=False)
    set_num_threads(2)
    p.check_output(layer(p.x))
    layer.backward_input(p.grad_output, out=p.grad_input)
    p.check_grad_input()
    set_num_threads(1)  # two would add to the same memory at once
    layer.backward_update(p.x, p.grad_output, 0.5, out=p.grad_input)
    p.check_update()


def run_layer_on_large_batch(dtype):
    rng = np.random.default_rng(0)
    batch, out_features = rows(LONG), 5
    w, b = (rng.integers(-4, 4, shape, endpoint=True).astype(dtype) for shape in ((out_features, LONG), out_features))
    x = Periodic(rng.integers(-4, 4, (12, LONG), endpoint=True), (batch, LONG), dtype)
    g = Periodic(rng.integers(-4, 4, (12, out_features), endpoint=True), (batch, out_features), dtype)
    gx = Periodic(np.full((12, LONG), np.nan), (batch, LONG), dtype)
    lead = 2, batch // 2
    layer = Linear.from_weights(w, b)
    set_num_threads(2)
    y = layer(x.array.reshape(*lead, LONG))
    assert np.array_equal(y.reshape(batch, out_features), spread(x.values @ w.T + b, g.shape))
    layer.backward(
        x.array.reshape(*lead, LONG), g.array.reshape(*lead, out_features), out=gx.array.reshape(*lead, LONG)
    )
    gx.check(g.values @ w, "grad_input")
    assert np.array_equal(layer.grad_weight, (g.values.T * times(batch, 12)) @ x.values)
    assert np.array_equal(layer.grad_bias, times(batch, 12) @ g.values)


def assert_ran(run):
    assert run.returncode == 0, f"exit status {run.returncode}\n{run.stderr[-2000:]}"


@pytest.mark.large
@pytest.mark.parametrize(("kernel", "name"), [(kernel, name) for kernel in CASES for name in CASES[kernel]])
def test_kernel(kernel, name, dtype):
    """Right results where one of the arrays has more than 2**31 elements."""
    assert_ran(in_child(run_case, kernel, dtype.__name__, *CASES[kernel][name], 1))


@pytest.mark.large
@pytest.mark.parametrize("batch", [1, 5, 13], ids=["one", "stream", "blocks"])
def test_update_of_large_weight(batch, dtype):
    """grad_input from the weight as it was, and the weight moved where it should be and nowhere else."""
    assert_ran(in_child(run_update, dtype.__name__, batch))


@pytest.mark.large
def test_step(dtype):
    """Each of more than 2**31 parameters moves by its own gradient."""
    assert_ran(in_child(run_step, dtype.__name__))


@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.sweep)], ids=["float32", "float64"]
)
def test_layer_of_large_weight(dtype):
    """forward and backward_input on two threads, and backward_update on one."""
    assert_ran(in_child(run_layer_of_large_weight, dtype.__name__))


@pytest.mark.large
def test_layer_on_large_batch(dtype):
    """forward and backward on two threads, with x and grad_input of three axes."""
    assert_ran(in_child(run_layer_on_large_batch, dtype.__name__))


def run_in_real_memory(out_features):
    block = 1024

    def integers(seed, *shape):
        return np.random.default_rng(seed).integers(-4, 4, shape, np.int8, endpoint=True).astype(np.float32)

    def blocks():
        for o in range(0, out_features, block):
            yield slice(o, o + block), integers(o, min(block, out_features - o), LONG)

    x, g, b = (integers(shape, *shape) for shape in ((3, LONG), (3, out_features), (out_features,)))
    w = np.empty((out_features, LONG), np.float32)
    for part, values in blocks():
        w[part] = values
    layer = Linear.from_weights(w, b.copy(), copy=False)
    set_num_threads(2)
    y, gx = layer(x), layer.backward_update(x, g, 0.5)
    for part, values in blocks():
        assert np.array_equal(y[:, part], x @ values.T + b[part]), "output"
        gx -= g[:, part] @ values
        assert np.array_equal(w[part], values - 0.5 * g[:, part].T @ x), "weight"
    assert not gx.any(), "grad_input"


def free_memory():
    """In bytes: of the machine, and of the control group if it has a limit."""
    sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = [int(sizes["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text() if (group / "memory.max").exists() else "max"
    if limit.strip() != "max":
        free.append(int(limit) - int((group / "memory.current").read_text()))
    return min(free)


@pytest.mark.large
def test_layer_in_real_memory():
    """A weight of 8.6 GB in which all elements have a place of their own."""
    need, free = rows(LONG) * LONG * 4 + 2**30, free_memory()
    if free < need:
        pytest.skip(f"needs {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} are free")
    assert_ran(in_child(run_in_real_memory, rows(LONG), timeout=900))
