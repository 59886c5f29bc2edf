"""The judges of others: the residuals of the BLAS testers over their lists of sizes, and oneDNN's integers.

Dongarra et al., A Set of Level 3 Basic Linear Algebra Subprograms (ACM TOMS 16, 1990), call a product right if every
|got - exact| / (eps · gauge) is below 16, where the gauge of C = α A B + β C is |α| |A| |B| + |β| |C|. Here it is 4.
"""

from itertools import product

import numpy as np
import pytest

from fastlinear import reference

from .helpers import (
    DTYPES,
    LIMIT,
    Problem,
    assert_same_bits,
    assert_untouched_around,
    exact,
    integers,
    magnitudes,
    placed,
    run,
)

SIZES = [(0, 1, 2, 3, 5, 9), (0, 1, 7, 8, 9, 16, 31, 33, 64)]
FACTORS = [0.0, 1.0, 0.7]


@pytest.fixture(scope="module", params=list(product(SIZES, DTYPES)), ids=lambda p: f"{p[0]}-{p[1].__name__}")
def judged(request):
    """Problems of all sizes of a list, with their factors, exact results and gauges. Matrices are uniform in ±0.5."""
    sizes, dtype = request.param
    rng = np.random.default_rng(0)
    whole = {name: rng.random((2, max(sizes), max(sizes)), dtype) - dtype(0.5) for name in ("x", "g", "w")}
    problems = []
    for case, (batch, in_features, out_features) in enumerate(product(sizes, repeat=3)):
        problem = Problem(
            whole["x"][0, :batch, :in_features],
            whole["g"][0, :batch, :out_features],
            whole["w"][0, :out_features, :in_features],
            whole["w"][1, 0, :out_features],
        )
        factor = FACTORS[case % 3]
        problems.append((problem, factor, exact(problem, factor, factor), magnitudes(problem, factor, factor)))
    return problems


def test_residuals(judged, kernels):
    """Every operation in all sizes of the lists: the residual is at most 4, and neither the inputs nor the memory
    around any array was written to."""
    worst = 0.0
    for problem, factor, expected, gauge in judged:
        inputs = problem.map(placed)
        got = run(kernels, inputs, scale=factor, lr=factor)
        for array, original in zip(inputs, problem, strict=True):
            assert_same_bits(array, np.ascontiguousarray(original))
            assert_untouched_around(array, "an input")
        for name, value in got.items():
            what = f"{name} of x {problem.x.shape}, weight {problem.weight.shape}, times {factor}"
            assert_untouched_around(value, what)
            error = np.abs(value.astype(expected[name].dtype) - expected[name])
            assert not np.any(error[gauge[name] == 0]), what
            residual = error[gauge[name] > 0] / (np.finfo(value.dtype).eps * gauge[name][gauge[name] > 0])
            assert np.all(residual <= LIMIT), what
            worst = max(worst, *residual.ravel(), 0)
    assert worst > 0


@pytest.mark.parametrize("sizes", [(3, 16_384, 5), (17, 5, 16_384), (16_384, 7, 3), (64, 4_096, 40)], ids=str)
def test_integers(kernels, dtype, sizes):
    """Integers to ±32 are exact in sums of 16,384 terms, however they are added up: the results are equal, and their
    norms are above zero, so that an output of zeros cannot pass."""
    problem = integers(*sizes, dtype, most=32)
    expected = run(reference, problem.map(lambda a: a.astype(np.float64)), 1.0, 1.0)
    for name, value in run(kernels, problem, 1.0, 1.0).items():
        assert np.array_equal(value, expected[name]), name
        assert np.linalg.norm(value) > 0 or name == "stepped"
