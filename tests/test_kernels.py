"""The kernels themselves, and the reference as one of them: every size, exactly and within the error bound."""

import csv
import ctypes
import inspect
import math
import platform
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fastlinear import _dispatch, reference

from .helpers import (
    DTYPES,
    Problem,
    assert_close,
    assert_same_bits,
    assert_untouched_around,
    exact,
    integers,
    magnitudes,
    normal,
    placed,
    run,
    sampled,
    wider,
)

MOST = 40
TILE_EDGES = product(range(14), (0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33), range(18))
SAMPLE = [(b, i, o) for b, i, o in product(range(MOST + 1), repeat=3) if (b + 3 * i + 9 * o) % 13 == 0]
SMALL = sorted({*TILE_EDGES, *SAMPLE})
FIFTH = 5
"""Of so many sizes each run takes one. 5 divides the length of no list below, so each value on them comes with some."""

# Both sides of the edges where a kernel begins to do something else: the widths of axpy tiles (2 to 8 vectors of 16 to
# 64 bytes), the blocks of the three sums (k: 1024 float32, 512 float64; o: 256; b: 256), the columns that wait in L1
# (4096 for one float32 vector, fewer for more rows), the batches and outputs from which forward packs W, layers of up
# to 16 features, a W of more than 16 MiB, whose next rows are fetched ahead, and long blocks of k (32768 float32, 16384
# float64). The edges of what goes through long blocks together are in tests/test_space.py.
EDGES = (48, 64, 80, 96, 128, 256, 512, 1024, 2048)
WIDTHS = sorted({edge + step for edge in EDGES for step in (-1, 0, 1)})
BLOCKS = [
    *product((1, 3, 7), WIDTHS, (9,)),
    *product((1, 4, 6, 7), (5, 70, 515), (255, 256, 257, 511, 513, 769)),
    *product((1, 5, 7), (2049, 4097), (257, 769)),
    *product((127, 128, 129, 255, 256, 257, 385, 513), (21, 67), (11,)),
    *product((7, 8, 9, 11, 63, 64, 65), (39, 1030), (3, 4, 15, 16, 17, 33)),
    *product((15, 16, 31, 32, 33, 48, 63), (70, 1030), (47, 48, 49, 97)),
    *product((1, 2, 3, 33), (1, 7, 8, 9, 15, 16, 17), (31, 32, 33, 129)),
    *product((128, 256, 260), (127, 128, 129, 255, 256, 257), (31, 61, 65)),
    *product((63, 256), (520, 1030), (63, 64, 1000)),
    (129, 1025, 33),
    (1, 2049, 2060),
    (7, 2049, 2060),
    *product((1, 31, 32, 33), (2**14, 2**14 + 1, 2**15, 2**15 + 1), (7,)),
    *product((3, 34), (2**15 + 1100,), (127, 128, 129)),
    *product((1,), (4095, 4096, 4097, 8193), (9, 263)),
    *product((7, 65, 300), (1,), (257, 769)),
    *product((1, 2, 3, 33), (39, 40, 41), (31, 33)),
    (257, 66, 258),
    (7, 513, 513),
]


def by_hand(problem, scale=0.5, lr=0.25):
    """The formulas of the kernels, one scalar at a time, on Python's own integers and floats."""
    x, g, w, b = (a.tolist() for a in problem)
    n, o_range, i_range = len(x), range(problem.weight.shape[0]), range(problem.weight.shape[1])
    grad_w = [[sum(g[k][o] * x[k][i] for k in range(n)) for i in i_range] for o in o_range]
    grad_b = [sum(g[k][o] for k in range(n)) for o in o_range]
    grad_input = [[sum(g[k][o] * w[o][i] for o in o_range) for i in i_range] for k in range(n)]
    return {
        "output": [[sum(x[k][i] * w[o][i] for i in i_range) + b[o] for o in o_range] for k in range(n)],
        "grad_input": grad_input,
        "grad_weight": [[w[o][i] + scale * grad_w[o][i] for i in i_range] for o in o_range],
        "grad_bias": [b[o] + scale * grad_b[o] for o in o_range],
        "update_input": grad_input,
        "updated_weight": [[w[o][i] - lr * grad_w[o][i] for i in i_range] for o in o_range],
        "updated_bias": [b[o] - lr * grad_b[o] for o in o_range],
        "stepped": [b[o] - lr * b[o] for o in o_range],
    }


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 4), (2, 7, 1), (4, 1, 3)], ids=str)
def test_formulas_by_hand(kernels, dtype, sizes):
    """Every kernel, the reference too, is its formula worked out in scalars."""
    problem = integers(*sizes, dtype, seed=sum(sizes))
    got, expected = run(kernels, problem), by_hand(problem)
    assert {name: value.tolist() for name, value in got.items()} == expected


def prefix_sums(p, scale=0.5, lr=0.25):
    """The exact result of run() for every size up to that of p, by (batch, in, out), from one table for each sum."""

    def table(a, b, axis):
        return np.insert(np.cumsum(a * b, axis), 0, 0, axis)

    x, g, w = p.x[:, :, None], p.grad_output[:, None, :], p.weight.T[None]  # all as (batch, in, out)
    over_in, over_out, over_batch = table(x, w, 1), table(g, w, 2), table(g, x, 0)
    rows = np.insert(np.cumsum(p.grad_output, 0), 0, 0, 0)

    def expected(b, i, o):
        bias, grad_bias = p.bias[:o], rows[b, :o]
        weight, grad_weight = p.weight[:o, :i], over_batch[b, :i, :o].T
        return {
            "output": over_in[:b, i, :o] + bias,
            "grad_input": over_out[:b, :i, o],
            "grad_weight": weight + scale * grad_weight,
            "grad_bias": bias + scale * grad_bias,
            "update_input": over_out[:b, :i, o],
            "updated_weight": weight - lr * grad_weight,
            "updated_bias": bias - lr * grad_bias,
            "stepped": bias - lr * bias,
        }

    return expected


@pytest.mark.parametrize(("scale", "lr"), [(0.5, 0.25), (1, -1)], ids=["scaled", "scale 1"])
@pytest.mark.parametrize("every", [FIFTH, pytest.param(1, marks=pytest.mark.sweep)], ids=["some", "all"])
def test_every_small_size(kernels, dtype, scale, lr, every):
    """Sizes 0 to 40 in batch, in and out: equal to exact sums, all of an output written, nothing beside it touched."""
    whole = integers(MOST, MOST, MOST, dtype)
    expected = prefix_sums(whole, scale, lr)
    for b, i, o in SMALL[::every]:
        part = whole.x[:b, :i], whole.grad_output[:b, :o], whole.weight[:o, :i], whole.bias[:o]
        got = run(kernels, Problem(*map(placed, part)), scale, lr)
        for name, value in expected(b, i, o).items():
            what = f"{name} of {b}x{i}x{o}"
            assert np.array_equal(got[name], value), what
            assert_untouched_around(got[name], what)


@pytest.mark.parametrize("sizes", sampled(BLOCKS, FIFTH, 2**22), ids=lambda sizes: "x".join(map(str, sizes)))
def test_block_edges_exactly(kernels, dtype, sizes):
    """On both sides of every block's edge, integer data gives equal results."""
    problem = integers(*sizes, dtype)
    for scale, lr in ((0.5, 0.25), (1, -1)):
        expected = run(reference, problem.map(lambda a: a.astype(np.float64)), scale, lr)
        for name, value in run(kernels, problem.map(placed), scale, lr).items():
            assert np.array_equal(value, expected[name]), name
            assert_untouched_around(value, name)


JUDGED = [(*sizes, dtype) for sizes in [(40, 40, 40), (33, 17, 5), (1, 1, 1), *BLOCKS[::4]] for dtype in DTYPES]


@pytest.fixture(
    scope="module",
    params=sampled(JUDGED, most=2**20, products=lambda case: math.prod(case[:3])),
    ids=lambda case: f"{'x'.join(map(str, case[:3]))}-{case[3].__name__}",
)
def judged(request):
    """Zero-mean data, the exact results of all kernels, and their Σ|a||b|, worked out once for all kernels."""
    problem = normal(*request.param)
    return problem, exact(problem, scale=0.7, lr=0.3), magnitudes(problem, scale=0.7, lr=0.3)


def test_error_bound(judged, kernels):
    """Zero-mean data stays within 4 eps Σ|a||b| of the reference in a wider dtype."""
    problem, expected, terms = judged
    for name, value in run(kernels, problem, scale=0.7, lr=0.3).items():
        assert_close(value, expected[name], terms[name], name)


def real_shapes():
    with (Path(__file__).parent / "shapes.csv").open() as file:
        rows = {(int(r["batch"] or 7), int(r["in_features"]), int(r["out_features"])) for r in csv.DictReader(file)}
    return sorted(rows)


@pytest.fixture(
    scope="module",
    params=sampled(list(product(real_shapes(), DTYPES)), most=2**25, products=lambda case: math.prod(case[0])),
    ids=lambda p: f"{p[0]}-{p[1].__name__}",
)
def real_layer(request):
    """Integer data in ±32 for a real layer, its exact output and gradients."""
    sizes, dtype = request.param
    p = integers(*sizes, dtype, most=32)
    x, g, w, b = (a.astype(np.float64) for a in p)
    return p, {"output": x @ w.T + b, "grad_input": g @ w, "grad_weight": g.T @ x, "grad_bias": g.sum(0)}


def test_real_layers_exactly(real_layer, kernels):
    """The layers of shapes.csv: integer data gives equal results, and not all zeros."""
    (x, g, w, b), expected = real_layer
    got = {name: np.full(value.shape, np.nan, x.dtype) for name, value in expected.items()}
    kernels.forward(x, w, b, got["output"])
    kernels.grad_input(g, w, got["grad_input"])
    for name in ("grad_weight", "grad_bias"):
        got[name].fill(0)
    kernels.grad_weight(x, g, 1.0, got["grad_weight"])
    kernels.grad_bias(g, 1.0, got["grad_bias"])
    for name, value in expected.items():
        assert np.any(value), name
        assert np.array_equal(got[name], value), name


@pytest.mark.parametrize("sizes", [s for s in real_shapes() if s[1] * s[2] <= 2**22], ids=str)
def test_real_layers_error_bound(kernels, dtype, sizes):
    """All but the largest layers of shapes.csv on zero-mean data: nine outputs and nine inputs of each are judged."""
    _, in_features, out_features = sizes
    x, g, w, b = p = normal(*sizes, dtype)
    output, grad_input = np.empty_like(g), np.empty_like(x)
    kernels.forward(x, w, b, output)
    kernels.grad_input(g, w, grad_input)
    some_out, some_in = (np.linspace(0, n - 1, min(n, 9), dtype=int) for n in (out_features, in_features))
    x, g, w, b = p.map(lambda a: a.astype(wider(dtype)))
    assert_close(
        output[:, some_out],
        x @ w[some_out].T + b[some_out],
        abs(x) @ abs(w[some_out]).T + abs(b[some_out]),
        "output",
    )
    assert_close(grad_input[:, some_in], g @ w[:, some_in], abs(g) @ abs(w[:, some_in]), "grad_input")


def test_optional_arguments(kernels, dtype):
    """Without a bias nothing is added, without an out the update writes parameters only, and they are the same."""
    x, g, w, b = integers(5, 19, 11, dtype)
    output = np.full_like(g, np.nan)
    kernels.forward(x, w, None, output)
    assert np.array_equal(output, x @ w.T)
    plain, no_out, no_bias = w.copy(), w.copy(), w.copy()
    bias = b.copy()
    kernels.update(x, g, 0.5, plain, b.copy(), np.empty_like(x))
    kernels.update(x, g, 0.5, no_out, bias, None)
    kernels.update(x, g, 0.5, no_bias, None, None)
    assert np.array_equal(plain, w - 0.5 * (g.T @ x))
    assert_same_bits(no_out, plain)
    assert_same_bits(no_bias, plain)
    assert np.array_equal(bias, b - 0.5 * g.sum(0))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_special_values_spread_from_every_position(kernels, dtype, special):
    """NaN and Inf in any place reach all they touch, tail lanes too; 0 · Inf is NaN; nothing else changes."""
    for size in (1, 7, 16, 23, 40):
        x, g, w, b = normal(size, size, 5, dtype, seed=size)
        w[0] = 0
        x[np.diag_indices(size)] = special
        g[:, 3] = special
        output, grad_input, grad_weight = np.empty_like(g), np.empty_like(x), np.zeros_like(w)
        kernels.forward(x, w, b, output)
        kernels.grad_input(g, w, grad_input)
        g[:, 3] = 1
        kernels.grad_weight(x, g, 1.0, grad_weight)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(output, special * w.T + b, equal_nan=True)
            assert np.array_equal(grad_input, np.broadcast_to(special * w[3], x.shape), equal_nan=True)
            assert np.array_equal(grad_weight, special * g.T, equal_nan=True)


def test_denormals_are_kept(kernels, dtype):
    """A product below the smallest normal number is not flushed to zero."""
    tiny = np.finfo(dtype).smallest_normal
    small, eighth = np.full((1, 1), tiny), np.full((1, 1), dtype(0.125))
    output, grad_input = np.zeros((2, 1, 1), dtype)
    kernels.forward(small, eighth, None, output)
    kernels.grad_input(small, eighth, grad_input)
    assert output == grad_input == tiny / 8 > 0


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the flags' numbers are those of x86 Linux"
)
def test_no_spurious_floating_point_flags(compiled, dtype):
    """Padded lanes raise no flag (invalid, division by zero, overflow), with Inf on both sides of all memory, and with
    what an earlier call on huge numbers left in the scratch."""
    libm, flags = ctypes.CDLL("libm.so.6"), 1 | 4 | 8
    huge = np.finfo(dtype).max / 4
    thin = product((2, 5, 13), range(1, 9), (1, 5, 33))
    for sizes in [(5, 17, 3), (3, 33, 9), (7, 70, 13), (0, 3, 2), (2, 0, 3), *thin]:
        problem = normal(*sizes, dtype).map(lambda a: placed(a, 1, np.inf))
        output, grad_input = placed(problem.grad_output, 1, np.inf), placed(problem.x, 1, np.inf)
        for width in (2, 40):
            huge_x, huge_g = np.full((5, width), huge, dtype), np.full((5, 200), huge, dtype)
            compiled.grad_weight(huge_x, huge_g, 3.9, np.zeros((200, width), dtype))
        libm.feclearexcept(flags)
        compiled.forward(problem.x, problem.weight, problem.bias, output)
        compiled.grad_input(problem.grad_output, problem.weight, grad_input)
        compiled.grad_weight(problem.x, problem.grad_output, 20.0, problem.weight)
        compiled.update(problem.x, problem.grad_output, 0.1, problem.weight, problem.bias, grad_input)
        assert libm.fetestexcept(flags) == 0, sizes


def wrong(**changes):
    """Arguments for 3 rows, 5 in and 4 out, with some of another shape."""
    shapes = {
        "x": (3, 5),
        "grad_output": (3, 4),
        "weight": (4, 5),
        "bias": (4,),
        "output": (3, 4),
        "grad_input": (3, 5),
    }
    return {name: np.zeros(shape, np.float32) for name, shape in (shapes | changes).items()}


WRONG = [
    ("forward", "x weight bias output", wrong(x=(3, 6))),
    ("forward", "x weight bias output", wrong(bias=(5,))),
    ("forward", "x weight bias output", wrong(output=(2, 4))),
    ("forward", "x weight bias output", wrong(output=(3, 5))),
    ("grad_input", "grad_output weight grad_input", wrong(grad_output=(3, 5))),
    ("grad_input", "grad_output weight grad_input", wrong(grad_input=(4, 5))),
    ("grad_input", "grad_output weight grad_input", wrong(grad_input=(3, 4))),
    ("grad_weight", "x grad_output 1 weight", wrong(x=(2, 5))),
    ("grad_weight", "x grad_output 1 weight", wrong(weight=(5, 5))),
    ("grad_weight", "x grad_output 1 weight", wrong(weight=(4, 4))),
    ("grad_bias", "grad_output 1 bias", wrong(bias=(3,))),
    ("update", "x grad_output 1 weight bias grad_input", wrong(x=(3, 4))),
    ("update", "x grad_output 1 weight bias grad_input", wrong(grad_output=(2, 4))),
    ("update", "x grad_output 1 weight bias grad_input", wrong(bias=(3,))),
    ("update", "x grad_output 1 weight bias grad_input", wrong(grad_input=(3, 4))),
    ("step", "weight 1 x", wrong(x=(3, 6))),
]


@pytest.mark.parametrize(("kernel", "names", "arrays"), WRONG, ids=[f"{k}-{n}" for n, (k, *_) in enumerate(WRONG)])
def test_wrong_shapes(kernels, kernel, names, arrays):
    """Every kernel, the reference too, refuses shapes that do not fit, and writes nothing."""
    arguments = [arrays[name] if name in arrays else float(name) for name in names.split()]
    if kernel == "step":
        arguments = [a.ravel() if isinstance(a, np.ndarray) else a for a in arguments]
    copies = {name: a.copy() for name, a in arrays.items()}
    with pytest.raises(ValueError, match=r"\d.* expected"):
        getattr(kernels, kernel)(*arguments)
    for name, value in copies.items():
        assert_same_bits(arrays[name], value, name)


@pytest.mark.parametrize("kernel", ["forward", "grad_input", "grad_weight", "grad_bias", "update", "step"])
def test_reference_has_the_kernels_signatures(compiled, kernel):
    """The reference and the compiled kernels take the same parameters in the same order, with the same defaults."""

    def parameters(module):
        return [(p.name, p.default) for p in inspect.signature(getattr(module, kernel)).parameters.values()]

    assert parameters(reference) == parameters(compiled)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_impossible_numbers_of_threads(compiled, threads):
    """A kernel that is called by itself divides its work among 1 to 1024 threads, or refuses."""
    x, g, w, b = integers(3, 5, 4, np.float32)
    for kernel, arguments in {
        "forward": (x, w, b, g),
        "grad_input": (g, w, x),
        "grad_weight": (x, g, 1.0, w),
        "update": (x, g, 1.0, w, b, None),
    }.items():
        with pytest.raises(ValueError, match="threads must be from 1 to 1024, got"):
            getattr(compiled, kernel)(*arguments, threads=threads)


@pytest.mark.parametrize("way", ["dots", "narrow", "packed"])
def test_each_way_through_forward_gives_the_same_bits(compiled_isa, dtype, way):
    """Whichever forward picks for a shape is a question of speed alone: sizes that it would give to another, too."""
    kernels = _dispatch.load(compiled_isa)
    rng = np.random.default_rng(7)
    most = 16 if way == "narrow" else 2 * 4096 // np.dtype(dtype).itemsize
    for _ in range(60):
        batch, outs = (int(np.exp(rng.uniform(0, np.log(70)))) for _ in range(2))
        features = int(np.exp(rng.uniform(0, np.log(most + 1))))
        x, weight = (
            rng.standard_normal((batch, features)).astype(dtype),
            rng.standard_normal((outs, features)).astype(dtype),
        )
        expected, got = np.empty((batch, outs), dtype), np.full((batch, outs), np.nan, dtype)
        for b in range(batch):
            kernels.forward(x[b : b + 1], weight, None, expected[b : b + 1])
        kernels.forward_by(way, x, weight, got)
        assert got.tobytes() == expected.tobytes(), f"{batch} rows, {features} to {outs}"
