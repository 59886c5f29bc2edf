"""Rounding, judged by exact sums: math.fsum over products that are split without error.

The unit of an error is eps · Σ|a||b|, over the products that make up the element. Errors on zero-mean data stay within
4 units up to a million terms. On data that is hard to sum, the kernels are compared with NumPy's own product of the
same matrices: their root mean square is at most twice NumPy's (1.66 times was measured on AVX2), or half a unit, which
the last rounding alone can take.
"""

import math
from itertools import product

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fastlinear import Linear, _dispatch, reference

from .helpers import DTYPES, LIMIT

MOST_RATIO = 2
SIZES = [(16, 100, 64), (16, 1_000, 64), (8, 30_000, 16), (3, 1_000_000, 8)]  # rows, terms of a sum, columns


def log_uniform(rng, shape, dtype):
    """±10^(-30..30); of float32 half that, whose products have the same range."""
    decades = 30 if dtype == np.float64 else 15
    return 10 ** rng.uniform(-decades, decades, shape)


def signs(rng, shape):
    return rng.choice([-1.0, 1.0], shape)


KINDS = {
    "zero-mean": lambda rng, shape, dtype: rng.standard_normal(shape),
    "one-signed": lambda rng, shape, dtype: rng.random(shape),
    "log-uniform": lambda rng, shape, dtype: signs(rng, shape) * log_uniform(rng, shape, dtype),
    "log-uniform, one-signed": log_uniform,
    "heavy-tailed": lambda rng, shape, dtype: rng.standard_cauchy(shape),
    "cancelling": lambda rng, shape, dtype: rng.standard_normal(shape),
}


def cancel(x, w):
    """Every product comes a second time, with the other sign and one part in a thousand larger."""
    half = x.shape[1] // 2
    x[:, half : 2 * half] = x[:, :half]
    w[:, half : 2 * half] = -w[:, :half] * x.dtype.type(1.001)


def exact_dot(a, b):
    """Σ a b, rounded once, to float64. Dekker's product (Numer. Math. 18, 1971) splits each a b without error."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    (a1, a0), (b1, b0) = ((high, v - high) for v in (a, b) for high in [v * 134217729.0 - (v * 134217729.0 - v)])
    p = a * b
    return math.fsum(np.concatenate([p, ((a1 * b1 - p) + a1 * b0 + a0 * b1) + a0 * b0]).tolist())


def errors(got, exact, terms):
    return np.abs(got.astype(np.float64) - exact) / (np.finfo(got.dtype).eps * terms)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def draw(kind, sizes, dtype):
    """x (rows, terms), w (columns, terms), some elements of x wᵀ, exactly, their Σ|a||b|, and NumPy's error there."""
    rows, terms, columns = sizes
    rng = np.random.default_rng(terms)
    x, w = (KINDS[kind](rng, (n, terms), dtype).astype(dtype) for n in (rows, columns))
    if kind == "cancelling":
        cancel(x, w)
    some = rng.permutation(rows * columns)[: 48 if terms < 100_000 else 12]
    at = np.unravel_index(some, (rows, columns))
    exact = np.array([exact_dot(x[r], w[c]) for r, c in zip(*at, strict=True)])
    sizes = np.array([np.abs(x[r].astype(float)) @ np.abs(w[c].astype(float)) for r, c in zip(*at, strict=True)])
    theirs = [rms(errors((x @ w.T)[at], exact, sizes)), rms(errors((x @ np.ascontiguousarray(w.T))[at], exact, sizes))]
    return kind, x, w, at, exact, sizes, theirs


def run_both(kernels, x, w):
    """x wᵀ by forward and by grad_input."""
    results = np.full((2, len(x), len(w)), np.nan, x.dtype)
    kernels.forward(x, w, None, results[0])
    kernels.grad_input(x, np.ascontiguousarray(w.T), results[1])
    return results


def each_run(kind, sizes, dtype):
    """Whether every run takes it: of a million terms, which take a second to add up exactly, only one kind."""
    return sizes[1] < 1_000_000 or (kind == "zero-mean" and dtype == np.float32)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=() if each_run(*case) else pytest.mark.sweep) for case in product(KINDS, SIZES, DTYPES)
    ],
    ids=str,
)
def sums(request):
    return draw(*request.param)


def test_forward_and_grad_input(sums, kernels):
    """Both against exact sums of up to a million terms, on six kinds of data."""
    kind, x, w, at, exact, sizes, theirs = sums
    for result, numpys in zip(run_both(kernels, x, w), theirs, strict=True):
        ours = errors(result[at], exact, sizes)
        assert np.any(ours > 0)
        if kind == "zero-mean":
            assert np.max(ours) <= LIMIT
        assert rms(ours) <= max(MOST_RATIO * numpys, 0.5)


def test_the_judge_is_exact():
    """A sum whose large terms cancel to the last digit, which a plain float64 product gets wrong."""
    a, b = np.array([2.0**52 + 1, 1.0, -(2.0**52) - 2]), np.array([2.0**52 + 1, 2.0**-20, 2.0**52])
    assert exact_dot(a, b) == 1 + 2.0**-20
    assert a @ b != 1 + 2.0**-20


@pytest.mark.parametrize("rows", [1, 1000, 1_000_000])
def test_gradients_are_left_folds(compiled, dtype, rows):
    """grad_bias, grad_weight and the update add row after row to what is stored: the bits of a running sum."""
    rng = np.random.default_rng(rows)
    g, ones, start = rng.random((rows, 3), dtype), np.ones((rows, 1), dtype), rng.random((3, 1), dtype)
    expected = np.add.accumulate(np.concatenate([start.T, g]), dtype=dtype)[-1]
    grad_bias, grad_weight, weight, bias = start[:, 0].copy(), start.copy(), start.copy(), start[:, 0].copy()
    compiled.grad_bias(g, 1.0, grad_bias)
    compiled.grad_weight(ones, g, 1.0, grad_weight)
    compiled.update(ones, g, -1.0, weight, bias, None)
    for got in (grad_bias, grad_weight.ravel(), weight.ravel(), bias):
        assert np.array_equal(got, expected)


@pytest.fixture(scope="module")
def many_rows():
    """x and grad_output of a million rows of one sign, and their exact grad_weight."""
    rng, rows = np.random.default_rng(0), 1_000_000
    x, g = rng.random((rows, 4), np.float32), rng.random((rows, 2), np.float32)
    return x, g, np.array([[exact_dot(g[:, o], x[:, i]) for i in range(4)] for o in range(2)])


def test_what_to_do_about_many_rows_of_one_sign(isa, many_rows):
    """docs/reliability.md: parts of a batch, each into gradients of its own, summed in float64. The fold over a
    million rows is off by more than 100 units, the sum of the parts by less than 4."""
    x, g, exact = many_rows
    layer = Linear(4, 2, rng=0)
    layer.backward_params(x, g)
    fold = errors(layer.grad_weight, exact, exact)
    total = np.zeros((2, 4))
    for begin in range(0, len(x), 1000):
        layer.zero_grad()
        layer.backward_params(x[begin : begin + 1000], g[begin : begin + 1000])
        total += layer.grad_weight
    parts = errors(total.astype(np.float32), exact, exact)
    assert np.max(parts) < LIMIT
    if isa != "reference":
        assert np.max(fold) > 100


def test_the_reference_is_numpy(dtype):
    """The reference's promise is NumPy's: its products are NumPy's own."""
    x, w, out = np.ones((2, 3), dtype), np.ones((4, 3), dtype), np.empty((2, 4), dtype)
    reference.forward(x, w, None, out)
    assert np.array_equal(out, x @ w.T)


def main():
    """Print the tables of docs/reliability.md: python -m tests.test_accuracy."""
    kernels = _dispatch.load(_dispatch.available()[0])
    print("| data | terms | forward | grad_input | NumPy, `x @ w.T` |\n| :-- | --: | --: | --: | --: |")
    for kind, sizes in product(KINDS, SIZES):
        _, x, w, at, exact, terms, (numpys, _) = draw(kind, sizes, np.float32)
        ours = (rms(errors(result[at], exact, terms)) for result in run_both(kernels, x, w))
        print(f"| {kind} | {sizes[1]:,} |", " | ".join(f"{figure:.2g}" for figure in (*ours, numpys)), "|")

    print("\n| terms | forward | NumPy, `w @ x` | grad_input | NumPy, `g @ w` |\n| --: | --: | --: | --: | --: |")
    for terms in (100, 1_000, 10_000, 100_000, 1_000_000):
        rng = np.random.default_rng(terms)
        x, w = rng.random((1, terms), np.float32), rng.random((8, terms), np.float32)
        exact = np.array([exact_dot(x[0], row) for row in w])
        forward, grad_input = run_both(kernels, x, w)
        results = forward[0], w @ x[0], grad_input[0], x[0] @ np.ascontiguousarray(w.T)
        print(f"| {terms:,} |", " | ".join(f"{rms(errors(got, exact, exact)):.2g}" for got in results), "|")

    print("\n| rows | grad_weight | NumPy, `g.T @ x` | grad_bias | NumPy, `g.sum(0)` |")
    print("| --: | --: | --: | --: | --: |")
    for rows in (100, 1_000, 10_000, 100_000, 1_000_000):
        rng = np.random.default_rng(rows)
        x, g = rng.random((rows, 16), np.float32), rng.random((rows, 4), np.float32)
        ones = np.ones_like(g[:, 0])
        weight = np.array([[exact_dot(g[:, o], x[:, i]) for i in range(16)] for o in range(4)])
        bias = np.array([exact_dot(g[:, o], ones) for o in range(4)])
        layer = Linear(16, 4, rng=0)
        layer.backward_params(x, g)
        results = (layer.grad_weight, weight), (g.T @ x, weight), (layer.grad_bias, bias), (g.sum(0), bias)
        print(f"| {rows:,} |", " | ".join(f"{rms(errors(got, exact, exact)):.2g}" for got, exact in results), "|")


if __name__ == "__main__":
    with threadpool_limits(1, user_api="blas"):  # whose sums depend on the number of threads
        main()
