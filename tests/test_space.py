"""Random points of the space of all calls, each held to the whole contract on bits and to an emulation of the order.

A point is an operation, a dtype, sizes, threads, values and a layout, all drawn from a seed and an index, so that

    python -m tests.test_space SEED INDEX         (or SEED BEGIN END; on FASTLINEAR_ISA or the best there is)

runs it again. `check` says what is held to what. What each thread does is asked of the kernels by `thread=`, one thread
after another on the calling thread; so 64 threads cost no more than one, and what goes wrong goes wrong every time.
A point that fails goes into CASES when it is mended.
"""

import os
import sys
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, _dispatch, reference

from . import emulation
from .bits import FUSED
from .helpers import COMPILED, Problem, misaligned, read_only, strided


class Point(NamedTuple):
    """One point. The seed decides all the rest: data, alignment, which rows, cuts and layouts are tried."""

    operation: str
    dtype: str
    batch: int
    in_features: int
    out_features: int
    threads: int
    bias: bool = True
    input_grad: bool = True
    scale: float = 0.3
    values: str = "usual"
    seed: int = 0


CASES = [
    # The rows of the batch over threads, one row left to the last: it had grad_input of the first row.
    Point("grad_input", "float32", 7, 6, 40000, 2),
    Point("grad_input", "float32", 43, 40, 2500, 8),
    Point("grad_input", "float64", 43, 40, 2500, 8),
    Point("grad_input", "float32", 97, 96, 1024, 32),
]
"""Points where a result was wrong once."""
FAR = [
    Point("forward", "float64", 33, 16400, 130, 5),
    Point("forward", "float32", 34, 33000, 9, 40),
    Point("grad_input", "float32", 70, 2100, 400, 9),
    Point("update", "float64", 1, 4200, 390, 9),
    Point("grad_weight", "float32", 300, 1100, 9, 7),
    # Few outputs of an x past L2: eight rows at a time, the last of which are fewer; with a scale, which is packed.
    Point("grad_weight", "float64", 133, 1101, 7, 1, scale=1.0),
    Point("grad_weight", "float32", 270, 1025, 11, 1),
    # Packed: more panels of W than stay in L2 together.
    Point("forward", "float32", 16, 64, 2000, 1),
    # Long rows for more than 64 rows of x, or 256 outputs; none, and a bias of -0; no outputs.
    Point("forward", "float64", 65, 16400, 3, 5),
    Point("forward", "float64", 2, 16400, 259, 5),
    Point("forward", "float32", 5, 0, 17, 2, values="zeros"),
    Point("grad_input", "float32", 5, 40, 0, 3),
    # Packed: one block of k, and two with panels of each past what stays in L2; one output, which is a vector of rows.
    Point("forward", "float32", 32, 70, 100, 3),
    Point("forward", "float64", 64, 520, 400, 7),
    Point("forward", "float32", 301, 70, 1, 5),
    # Few columns, with lanes along the outputs: two blocks of the batch; more outputs than are turned at a time.
    Point("grad_weight", "float32", 300, 7, 100, 5),
    Point("grad_weight", "float32", 40, 7, 2400, 5),
    # Few features: more rows than pass them at a time.
    Point("forward", "float64", 101, 5, 30, 1),
    # More rows than are packed at a time, and two blocks of what is summed over.
    Point("forward", "float64", 160, 520, 64, 3),
    Point("grad_input", "float64", 200, 140, 400, 7),
    Point("grad_weight", "float64", 260, 70, 300, 5),
    # A few columns of a few rows: more blocks of o than go side by side; a thread that has no others, and one with two
    # whole vectors (AVX2's); three vectors, of which two blocks go side by side, and seven, of which one does.
    Point("grad_input", "float64", 3, 2, 3900, 2),
    Point("grad_input", "float32", 3, 18, 400, 2),
    Point("grad_input", "float32", 3, 21, 1546, 1),
    Point("grad_input", "float32", 1, 53, 1200, 1),
    # The sign of a NaN.
    Point("update", "float32", 2, 7, 8, 7, scale=0.0, values="special", seed=947307778),
    # One feature, whose gradient lies as the outputs do; two and few rows, whose gradient is one line.
    Point("grad_weight", "float32", 89, 1, 998, 7, scale=1.0),
    Point("update", "float64", 2, 2, 2027, 3),
]
"""Points past several edges at once, which random ones seldom are."""

# ---- points

MULTIPLY_ADDS = 1 << 21
ELEMENTS = 1 << 18  # of each matrix
STACK = 1 << 20  # elements that all threads write together
EDGES = [255, 256, 257, 511, 512, 513, 767, 768, 769, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096]
EDGES += [4097, 8191, 8192, 8193, 16383, 16384, 16385, 32767, 32768, 32769, 65537]
"""Sizes on both sides of the blocks that the documents name, and of powers of two."""
GRAINS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64]
"""Sizes that tiles of rows and columns can have: work is shared in multiples of them."""


def log_uniform(rng, most):
    return min(int(np.exp(rng.uniform(0, np.log(most + 1)))), most)


def any_size(rng, most):
    """From 1 to most: of any magnitude, or small, or near an edge."""
    edges = [edge for edge in EDGES if edge <= most]
    kind = rng.integers(3)
    if kind == 0 and edges:
        return int(rng.choice(edges))
    return log_uniform(rng, min(most, 64) if kind == 1 else most)


def shared_size(rng, threads):
    """So many rows, columns or outputs that each thread has one tile of them or so, and one has next to nothing."""
    grain = int(rng.choice(GRAINS))
    tiles = threads + int(rng.integers(-1, 2)) if rng.random() < 0.7 else log_uniform(rng, 2 * threads)
    return max(grain * tiles + int(rng.choice([-1, 0, 1, 1, int(rng.integers(grain))])), 1)


def draw_point(seed, index):
    """The point of that index."""
    rng = np.random.default_rng([seed, index])
    threads = int(rng.integers(2, 9)) if rng.random() < 0.4 else log_uniform(rng, 64)
    size = {}
    regime = rng.choice(["any", "thin", "middle", "shared"], p=[0.2, 0.2, 0.15, 0.45])
    names = [str(name) for name in rng.permutation(["batch", "in_features", "out_features"])]
    if regime == "shared":
        size[names[0]] = shared_size(rng, threads)
    elif regime == "thin":
        names.sort(key="batch".__eq__)  # the batch comes last, one of the others first
        size[names[0]] = int(rng.integers(1, 20))
    elif regime == "middle":
        size = {name: int(np.exp(rng.uniform(np.log(8), np.log(250)))) for name in names}
    left, largest = MULTIPLY_ADDS, ELEMENTS
    if rng.random() < 0.02:
        left, largest = left * 8, largest * 8
    for name in names:
        most = max(min(left, largest // max(size.values(), default=1)), 1)
        if name not in size:
            # Often less than what is shared: that work is shared along the one may depend on which is larger.
            most = min(most, size[names[0]]) if regime == "shared" and rng.random() < 0.5 else most
            size[name] = any_size(rng, most)
        left = max(left // size[name], 1)
    if rng.random() < 0.01:
        size[names[0]] = 0
    per_row = size["batch"] * max(size["in_features"], size["out_features"])
    return Point(
        str(rng.choice(["forward", "grad_input", "grad_weight", "update"])),
        str(rng.choice(["float32", "float64"])),
        **size,
        threads=max(min(threads, STACK // max(per_row, 1)), 1),
        bias=bool(rng.random() < 0.7),
        input_grad=bool(rng.random() < 0.8),
        scale=float(rng.choice([0.3, 1.0, -1.0, 2.0, 0.0, rng.standard_normal()])),
        values=str(rng.choice([*VALUES], p=[0.75, 0.1, 0.05, 0.05, 0.05])),
        seed=int(rng.integers(1 << 31)),
    )


VALUES = {"usual": 0, "zeros": 0, "special": 0, "tiny": -0.5, "huge": 0.5}
"""Where exponents lie: 0.5 is half way to the largest, so that products overflow now and then."""


def draw(rng, shape, dtype, values):
    """Numbers over six decades, of which other orders have other sums. Made of random bits, because that is fast."""
    integer, mantissa, bias = {4: (np.uint32, 23, 127), 8: (np.uint64, 52, 1023)}[dtype.itemsize]
    bits = rng.integers(np.iinfo(integer).max, size=shape, dtype=integer, endpoint=True)
    sign_and_mantissa = integer(1 << 8 * dtype.itemsize - 1 | (1 << mantissa) - 1)
    exponent = (bits >> integer(mantissa)) % integer(20) + integer(bias + int(VALUES[values] * bias) - 10)
    result = (bits & sign_and_mantissa | exponent << integer(mantissa)).view(dtype)
    if values == "zeros":
        # Ones and zeros of both signs: sums cancel, and the sign of a 0 shows where it comes from.
        result = np.where(rng.random(shape) < 0.5, 0, 1).astype(dtype) * np.sign(result)
    elif values == "special":
        strange = [np.inf, -np.inf, np.nan, 0.0, -0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max]
        for _ in range(3 if result.size else 0):
            result.flat[rng.integers(result.size)] = rng.choice(strange)
    elif values == "tiny":
        result[rng.random(shape) < 0.05] *= dtype.type(2.0 ** -(bias // 2))  # subnormal themselves, or close to it
    return result


# ---- memory

UNWRITTEN = {4: np.int32(0x7FC5A5A5), 8: np.int64(0x7FF8A5A5A5A5A5A5)}
"""A NaN that no arithmetic makes, by the size of its dtype."""


def bits_of(array):
    return array.view(UNWRITTEN[array.itemsize].dtype)


def blank(shape, dtype, offset=0):
    """Unwritten memory that begins `offset` elements past a cache line, and more of it on both sides."""
    size, line = int(np.prod(shape)), 64 // dtype.itemsize
    memory = np.empty(size + 4 * line, dtype)
    bits_of(memory).fill(UNWRITTEN[dtype.itemsize])
    begin = line + (-memory.ctypes.data % 64) // dtype.itemsize + offset
    return memory[begin : begin + size].reshape(shape)


def put(array, offset=0):
    """A copy in such memory: whoever reads beside it reads NaN."""
    copy = blank(array.shape, array.dtype, offset)
    copy[...] = array
    return copy


def assert_nothing_around(array, what):
    memory = array.base
    begin = (array.ctypes.data - memory.ctypes.data) // array.itemsize
    for side in (memory[:begin], memory[begin + array.size :]):
        assert (bits_of(side) == UNWRITTEN[array.itemsize]).all(), f"{what}: written beside its memory"


def assert_same_numbers(got, expected, what):
    """The same bits, but any NaN for a NaN: its sign and payload are no part of the contract."""
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    differ = (bits_of(got) != bits_of(expected)) & ~(np.isnan(got) & np.isnan(expected))
    assert not differ.any(), (
        f"{what}: {np.count_nonzero(differ)} of {got.size} differ, at first {np.argwhere(differ)[0]}"
    )


# ---- an operation: what it reads, what it writes

OVERWRITTEN = {"forward": ["output"], "grad_input": ["grad_input"], "grad_weight": [], "update": ["grad_input"]}
ACCUMULATED = {"forward": [], "grad_input": [], "grad_weight": ["weight"], "update": ["weight", "bias"]}


class Call:
    """The operation of a point on its data: `blanks` makes what a call writes into, `run` is the call."""

    def __init__(self, point):
        self.point, self.dtype = point, np.dtype(point.dtype)
        self.rng = np.random.default_rng(point.seed)
        p = point
        shapes = {"x": (p.batch, p.in_features), "grad_output": (p.batch, p.out_features)}
        shapes |= {"weight": (p.out_features, p.in_features), "bias": (p.out_features,)}
        made = {name: draw(self.rng, shape, self.dtype, p.values) for name, shape in shapes.items()}
        self.problem = Problem(**{name: put(array, self.offset()) for name, array in made.items()})
        self.bias = self.problem.bias if p.bias else None
        self.overwritten = [name for name in OVERWRITTEN[p.operation] if p.input_grad or p.operation != "update"]
        self.accumulated = [name for name in ACCUMULATED[p.operation] if p.bias or name != "bias"]

    def offset(self):
        return int(self.rng.integers(64 // self.dtype.itemsize))

    def blanks(self, rows, more=()):
        """Memory for what is overwritten, by a batch of so many rows, and copies of what is accumulated."""
        p = self.point
        width = {"output": p.out_features, "grad_input": p.in_features}
        to = {name: blank((*more, rows, width[name]), self.dtype, self.offset()) for name in self.overwritten}
        return to | {name: put(getattr(self.problem, name), self.offset()) for name in self.accumulated}

    def run(self, kernels, to, begin=0, end=None, **threads):
        """On the rows begin:end, into `to`."""
        x, grad_output = self.problem.x[begin:end], self.problem.grad_output[begin:end]
        scale, operation = self.point.scale, getattr(kernels, self.point.operation)
        if self.point.operation == "forward":
            operation(x, self.problem.weight, self.bias, to["output"], **threads)
        elif self.point.operation == "grad_input":
            operation(grad_output, self.problem.weight, to["grad_input"], **threads)
        elif self.point.operation == "grad_weight":
            operation(x, grad_output, scale, to["weight"], **threads)
        else:
            operation(x, grad_output, scale, to["weight"], to.get("bias"), to.get("grad_input"), **threads)
        return to

    def whole(self, kernels, **threads):
        """The plain call, and that it wrote all of what it should and nothing else."""
        before = [array.tobytes() for array in self.problem]
        to = self.run(kernels, self.blanks(self.point.batch), **threads)
        for name, array in to.items():
            assert_nothing_around(array, name)
            assert name in self.accumulated or (bits_of(array) != UNWRITTEN[array.itemsize]).all(), f"{name}: not all"
        for array, bytes_before in zip(self.problem, before, strict=True):
            assert array.tobytes() == bytes_before, "an input has changed"
        return to

    def by_thread(self, kernels, threads):
        """What each of the threads does, one after another in any order; each element of what is overwritten is
        written by one of them. (Of what is accumulated, the result shows whether all was added once.)"""
        to = self.blanks(self.point.batch, more=(threads,))
        for thread in self.rng.permutation(threads):
            of_this = {name: to[name][thread] if name in self.overwritten else to[name] for name in to}
            self.run(kernels, of_this, threads=threads, thread=int(thread))
        for name in to:
            assert_nothing_around(to[name], f"{name} by thread")
        for name in self.overwritten:
            written = bits_of(to[name]) != UNWRITTEN[self.dtype.itemsize]
            times = np.count_nonzero(written, axis=0)
            assert (times == 1).all(), f"{name}: elements written by {np.unique(times)} of {threads} threads"
            to[name] = (
                np.where(written, bits_of(to[name]), 0).sum(axis=0, dtype=bits_of(to[name]).dtype).view(self.dtype)
            )
        return to


# ---- what is checked at each point


def some(rng, size, most):
    """Indices, at most so many: all, or the ends and others."""
    if size <= most:
        return np.arange(size)
    ends = [0, size - 1] if most > 2 else []
    return np.unique([*ends, *rng.integers(size, size=most - len(ends))])


def some_outputs(rng, rows, columns, terms, budget):
    """Indices of rows and of columns, for so many multiply-adds, terms of them for each output."""
    outputs = max(budget // max(terms, 1), 1)
    width = min(columns, max(int(outputs**0.5), outputs // max(rows, 1)))
    return some(rng, rows, max(outputs // max(width, 1), 1)), some(rng, columns, width)


def check_emulation(call, kernels, plain, multiply_add, budget=1 << 14, most_rows=128):
    """The documented order of additions, for some of the outputs; of a running sum over many rows, for the last."""
    (x, grad_output, weight, bias), scale, operation = call.problem, call.point.scale, call.point.operation
    batch, in_features, out_features = call.point.batch, call.point.in_features, call.point.out_features
    if call.dtype == np.float64:
        budget //= 16 if call.point.values in ("tiny", "huge") else 2  # the former are worked out in integers
    if operation == "forward":
        rows, outs = some_outputs(call.rng, batch, out_features, in_features, budget)
        bias = bias[outs] if call.point.bias else None
        expected = emulation.forward(x[rows], weight[outs], bias, multiply_add)
        assert_same_numbers(plain["output"][np.ix_(rows, outs)], expected, "the documented order of output")
    if "grad_input" in plain:
        rows, columns = some_outputs(call.rng, batch, in_features, out_features, budget)
        expected = emulation.grad_input(grad_output[rows], weight[:, columns], multiply_add, weight.shape[1])
        assert_same_numbers(plain["grad_input"][np.ix_(rows, columns)], expected, "the documented order of grad_input")
    if operation == "update":
        scale = -scale
    if "weight" in plain:
        begin = max(batch - most_rows, 0) if call.rng.random() < 0.97 else 0
        start = call.run(kernels, call.blanks(begin), 0, begin)["weight"]
        outs, columns = some_outputs(call.rng, out_features, in_features, batch - begin, budget)
        x, g, at = x[begin:, columns], grad_output[begin:, outs], np.ix_(outs, columns)
        expected = emulation.grad_weight(x, g, scale, start[at], multiply_add)
        assert_same_numbers(plain["weight"][at], expected, "the documented order of weight")
    if "bias" in plain:
        outs = some(call.rng, out_features, 1000)
        expected = emulation.grad_bias(grad_output[:, outs], scale, bias[outs])
        assert_same_numbers(plain["bias"][outs], expected, "the documented order of bias")


def check_threads(call, kernels, plain):
    """Point 3: what the threads do, together, is the plain call; now and then with real ones."""
    per_row = call.point.batch * max(call.point.in_features, call.point.out_features)
    for threads in {call.point.threads, *(log_uniform(call.rng, min(64, STACK // max(per_row, 1) + 1)) for _ in "abc")}:
        assert_all_same(call.by_thread(kernels, threads), plain, f"by each of {threads} threads")
    if call.rng.random() < 0.02:
        threads = int(call.rng.integers(2, 9))
        assert_all_same(call.whole(kernels, threads=threads), plain, f"on {threads} threads")


def check_parts(call, kernels, plain):
    """Points 2 and 5: rows alone, and the batch in consecutive parts."""
    batch = call.point.batch
    # Any NaN for a NaN: on x86 its sign is that of an operand, whose order the compiler chooses for each tile.
    if call.overwritten:
        begins = some(call.rng, batch, 4)
        parts = [(b, b + 1) for b in begins] + [(b, int(call.rng.integers(b, batch)) + 1) for b in begins[-2:]]
        for begin, end in parts:
            to = call.run(kernels, call.blanks(end - begin), begin, end)
            for name in call.overwritten:
                assert_same_numbers(to[name], plain[name][begin:end], f"{name} of the rows {begin}:{end}")
    if call.accumulated:
        cuts = sorted({0, *map(int, call.rng.integers(batch + 1, size=3)), batch})
        to = call.blanks(batch)
        for begin, end in pairwise(cuts):
            into = {name: to[name][begin:end] if name in call.overwritten else to[name] for name in to}
            call.run(kernels, into, begin, end)
        for name in call.accumulated:
            assert_same_numbers(to[name], plain[name], f"{name} of the rows, cut at {cuts}")


LAYOUTS = {
    "plain": np.copy,
    "fortran": np.asfortranarray,
    "strided": strided,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "columns of a wider array": lambda a: np.hstack([a, a])[:, : a.shape[1]],
    "misaligned": misaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": read_only,
}
OUTS = ["none", "plain", "fortran", "strided", "reversed", "columns of a wider array", "misaligned", "overlapping"]


def overlapping(rng, array, shape):
    """The array again, and an out of that shape that shares some of its memory."""
    size = int(np.prod(shape))
    begin, out_begin = (0, int(rng.integers(array.size + 1)))[:: rng.choice([1, -1])]
    memory = np.zeros(max(begin + array.size, out_begin + size), array.dtype)
    copy = memory[begin : begin + array.size].reshape(array.shape)
    copy[...] = array
    return copy, memory[out_begin : out_begin + size].reshape(shape)


def check_layer(call, plain):
    """Point 4: through the layer, with arrays of any layout and any `out`."""
    rng, point, (x, grad_output, weight, bias) = call.rng, call.point, call.problem
    layer = Linear.from_weights(weight, bias if point.bias else None)
    layout, kind = rng.choice([*LAYOUTS]), rng.choice(OUTS)
    x, grad_output = LAYOUTS[layout](x), LAYOUTS[layout](grad_output)
    out, what = None, f"with arrays {layout} and out {kind}"
    if call.overwritten and kind != "none":
        shape = plain[call.overwritten[0]].shape
        if kind != "overlapping":
            out = LAYOUTS[kind](np.full(shape, np.nan, call.dtype))
        elif point.operation == "grad_input":
            grad_output, out = overlapping(rng, call.problem.grad_output, shape)
        else:
            x, out = overlapping(rng, call.problem.x, shape)
    if point.operation == "forward":
        result = layer.forward(x, out=out)
    elif point.operation == "grad_input":
        result = layer.backward_input(grad_output, out=out)
    elif point.operation == "update":
        result = layer.backward_update(x, grad_output, point.scale, out=out, input_grad=point.input_grad)
    else:
        layer.grad_weight = weight
        layer.backward_params(x, grad_output, scale=point.scale)
    got = {"weight": layer.grad_weight if point.operation == "grad_weight" else layer.weight, "bias": layer.bias}
    for name in call.overwritten:
        assert out is None or result is out, what
        got[name] = np.ascontiguousarray(result)
    assert_all_same(got, plain, what)


def assert_all_same(got, plain, what):
    for name, value in plain.items():
        assert_same_numbers(got[name], value, f"{name} {what}")


def check(point, isa):
    """All of the contract at one point, on the kernels of one instruction set, which the layer uses, too."""
    kernels, call = _dispatch.load(isa), Call(point)
    plain = call.whole(kernels)
    assert_all_same(call.whole(kernels), plain, "again")
    for other in FUSED if isa in FUSED else ():
        for name, value in call.whole(_dispatch.load(other)).items():
            assert_same_numbers(value, plain[name], f"{name} on {other}")
    check_emulation(call, kernels, plain, emulation.fused if isa in FUSED else emulation.unfused)
    check_threads(call, kernels, plain)
    check_parts(call, kernels, plain)
    if call.rng.random() < 0.4:
        check_layer(call, plain)


def check_points(seed, indices, isa):
    for index in indices:
        point = draw_point(seed, index)
        try:
            check(point, isa)
        except Exception as error:
            replay = f"FASTLINEAR_ISA={isa} python -m tests.test_space {seed} {index}"
            raise AssertionError(f"{error}\nat {point}\nto run it again: {replay}") from error


# ---- the tests

CHUNK = 50
NEW_SEED = int.from_bytes(os.urandom(4), "little")
sets_the_kernels = pytest.mark.thread_unsafe(reason="the layers of a point run on what the fixture chose")


@sets_the_kernels
@pytest.mark.parametrize(
    ("compiled_isa", "chunk"),
    [(isa, chunk) for isa in COMPILED for chunk in range(12 if isa in FUSED or not FUSED else 2)],
    indirect=["compiled_isa"],
)
def test_points(compiled_isa, chunk):
    """Points 1 to 6 and the documented order, at the same random points in every run."""
    check_points(0, range(chunk * CHUNK, (chunk + 1) * CHUNK), compiled_isa)


@sets_the_kernels
@pytest.mark.long
@pytest.mark.parametrize("chunk", range(100))
def test_many_points(compiled_isa, chunk):
    """The same at 100,000 points that are new in every run."""
    check_points(NEW_SEED, range(chunk * 1000, (chunk + 1) * 1000), compiled_isa)


@sets_the_kernels
@pytest.mark.parametrize("point", CASES + FAR, ids=lambda p: "-".join(map(str, p[:6])))
def test_cases(compiled_isa, point):
    """The same at points where a result was wrong once, and at points past several edges."""
    check(point, compiled_isa)


OPERATIONS = pytest.mark.parametrize("operation", OVERWRITTEN)
AXES = pytest.mark.parametrize("axis", ["batch", "in_features", "out_features"])


def check_parts_of_all_threads(kernels, dtype, operation, axis, size, counts):
    """Each element of what is overwritten is written by one thread, each of what is accumulated once, for each number
    of threads. The other sizes are smaller in most cases: then work is shared along this axis."""
    rng = np.random.default_rng(size)
    others = {other: int(rng.choice([1, 2, 5, min(size, 9)])) for other in ("batch", "in_features", "out_features")}
    call = Call(Point(operation, dtype.__name__, **others | {axis: size}, threads=0, seed=size))
    plain = call.whole(kernels)
    for threads in counts:
        assert_all_same(call.by_thread(kernels, threads), plain, f"by each of {threads} threads at {call.point}")


@OPERATIONS
@AXES
def test_every_part(compiled, dtype, operation, axis):
    """Point 3 over small sizes, shared by as many threads as there are tiles of a usual height, and by more: all that
    begins above 0."""
    for size in (1, 2, 5, 6, 7, 8, 9, 12, 13, 16, 17, 19, 25, 31, 33, 43, 48, 49, 64, 65, 97, 129, 193):
        counts = {min(-(-size // grain), 64) for grain in (3, 4, 6, 8, 64)} | {2, 5}
        check_parts_of_all_threads(compiled, dtype, operation, axis, size, counts - {1})


@pytest.mark.long
@OPERATIONS
@AXES
def test_every_part_of_every_size(compiled, dtype, operation, axis):
    """The same over all sizes up to past two tiles of any width, with 2 to 64 threads."""
    for size in range(1, 200):
        check_parts_of_all_threads(compiled, dtype, operation, axis, size, range(2, 65))


@OPERATIONS
def test_the_thread_is_one_of_them(compiled, operation):
    """A kernel refuses a thread that is none of the threads, and says which there are; nothing is written."""
    call = Call(Point(operation, "float32", 3, 5, 4, threads=2))
    for thread in (-2, 2, 64):
        to = call.blanks(3)
        before = {name: array.tobytes() for name, array in to.items()}
        with pytest.raises(ValueError, match=rf"thread must be from 0 to 1, or -1 for all, got {thread}"):
            call.run(compiled, to, threads=2, thread=thread)
        assert {name: array.tobytes() for name, array in to.items()} == before


@OPERATIONS
def test_the_references_first_thread_does_it_all(dtype, operation):
    """The reference shares nothing: its first thread does what all do, and the others do nothing."""
    call = Call(Point(operation, dtype.__name__, 7, 5, 4, threads=3))
    assert_all_same(call.by_thread(reference, 3), call.whole(reference), "by each of 3 threads")


def test_grad_bias_and_step(compiled, dtype):
    """The two operations that have no threads: points 4 and 5 and the documented order, at random sizes and values."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        batch, size, scale = log_uniform(rng, 300), any_size(rng, 3000), rng.standard_normal()
        values = rng.choice([*VALUES])
        shapes = [(batch, size), (size,), (size,)]
        grad_output, start, gradient = (put(draw(rng, s, np.dtype(dtype), values), rng.integers(16)) for s in shapes)
        grad_bias, stepped, cut = put(start), put(start, rng.integers(16)), rng.integers(batch + 1)
        compiled.grad_bias(grad_output[:cut], scale, grad_bias)
        compiled.grad_bias(grad_output[cut:], scale, grad_bias)
        compiled.step(gradient, scale, stepped)
        what = f"{batch} rows, cut at {cut}, of {size} {values} numbers"
        assert_same_numbers(grad_bias, emulation.grad_bias(grad_output, scale, start), f"grad_bias of {what}")
        assert_same_numbers(stepped, emulation.step(gradient, scale, start), f"step of {what}")
        assert_nothing_around(grad_bias, "grad_bias")
        assert_nothing_around(stepped, "step")


if __name__ == "__main__":
    seed, begin, *end = map(int, sys.argv[1:])
    check_points(seed, range(begin, end[0] if end else begin + 1), fastlinear.isa)
    print(f"right: {draw_point(seed, begin)}" if not end else f"right: {end[0] - begin} points")
