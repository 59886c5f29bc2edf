"""Data, comparisons and runners that several modules share."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fastlinear
from fastlinear import _dispatch, reference

ISAS = _dispatch.available()
COMPILED = [name for name in ISAS if name != _dispatch.REFERENCE]
DTYPES = [np.float32, np.float64]
LIMIT = 4
"""|got - exact| may be this many eps · Σ|a||b| on zero-mean data."""


def sampled(cases, every=1, most=math.inf, products=math.prod):
    """Sizes to parametrise by: each run takes every so many of those with at most so many products, -m sweep all."""
    return [
        pytest.param(case, marks=() if n % every == 0 and products(case) <= most else pytest.mark.sweep)
        for n, case in enumerate(cases)
    ]


class Problem(NamedTuple):
    """What all kernels need. weight and bias also are what gradients start from, so that accumulation shows."""

    x: np.ndarray
    grad_output: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def map(self, function):
        return Problem(*map(function, self))


def _problem(draw, batch, in_features, out_features):
    shapes = (batch, in_features), (batch, out_features), (out_features, in_features), (out_features,)
    return Problem(*map(draw, shapes))


def integers(batch, in_features, out_features, dtype, seed=0, most=4):
    """Integer-valued data: every partial sum is exact in any order, so results must be equal."""
    rng = np.random.default_rng(seed)
    return _problem(
        lambda shape: rng.integers(-most, most, shape, np.int8, endpoint=True).astype(dtype),
        batch,
        in_features,
        out_features,
    )


def normal(batch, in_features, out_features, dtype, seed=0):
    """Zero-mean data whose sums round in nearly every step."""
    rng = np.random.default_rng(seed)
    return _problem(lambda shape: rng.standard_normal(shape, dtype), batch, in_features, out_features)


def wild(batch, in_features, out_features, dtype, seed=0):
    """Zero-mean data over six decades: any other order of additions gives other bits."""
    rng = np.random.default_rng(seed)
    return _problem(
        lambda shape: (rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3, shape)).astype(dtype),
        batch,
        in_features,
        out_features,
    )


def wider(dtype):
    return np.longdouble if np.dtype(dtype) == np.float64 else np.float64


def placed(array, offset=0, around=np.nan):
    """A contiguous copy that begins `offset` elements past a cache line, in memory full of `around`."""
    guard = 64
    memory = np.full(array.size + offset + 3 * guard, around, array.dtype)
    start = guard + offset - memory.ctypes.data % 64 // array.itemsize
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def strided(array):
    """The same values, with gaps between rows and between columns."""
    return np.repeat(np.repeat(array, 2, 0), 3, 1)[::2, ::3]


def misaligned(array):
    """The same values, from an odd address on."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array):
    """The same values, which nobody may change."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def run(kernels, problem, scale=0.5, lr=0.25, **threads):
    """Every kernel on one problem. Outputs begin as NaN, gradients as weight and bias."""
    x, grad_output, weight, bias = problem
    output, grad_input, update_input = (placed(np.full_like(a, np.nan)) for a in (grad_output, x, x))
    grad_weight, grad_bias, new_weight, new_bias, stepped = map(placed, (weight, bias, weight, bias, bias))
    kernels.forward(x, weight, bias, output, **threads)
    kernels.grad_input(grad_output, weight, grad_input, **threads)
    kernels.grad_weight(x, grad_output, scale, grad_weight, **threads)
    kernels.grad_bias(grad_output, scale, grad_bias)
    kernels.update(x, grad_output, lr, new_weight, new_bias, update_input, **threads)
    kernels.step(bias, lr, stepped)
    return {
        "output": output,
        "grad_input": grad_input,
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
        "update_input": update_input,
        "updated_weight": new_weight,
        "updated_bias": new_bias,
        "stepped": stepped,
    }


def exact(problem, scale=0.5, lr=0.25):
    """What run() must give, by the reference in a wider dtype."""
    return run(reference, problem.map(lambda a: a.astype(wider(a.dtype))), scale, lr)


def magnitudes(problem, scale=0.5, lr=0.25):
    """Σ|a||b| of each element of what run() gives."""
    return exact(problem.map(np.abs), abs(scale), -abs(lr))


def assert_close(got, expected, terms, what):
    """|got - expected| <= 4 eps Σ|a||b| for every element."""
    bound = LIMIT * np.finfo(got.dtype).eps * terms
    excess = np.abs(got.astype(expected.dtype) - expected) > bound
    assert not excess.any(), f"{what}: {np.count_nonzero(excess)} of {got.size} over the bound"


def assert_same_bits(got, expected, what=""):
    """Equal shape, dtype and bytes."""
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    assert got.tobytes() == expected.tobytes(), f"{what}: {np.count_nonzero(got != expected)} of {got.size} differ"


def assert_untouched_around(array, what):
    """Of memory made by placed(), all of the window was written and nothing beside it."""
    assert np.count_nonzero(np.isnan(array.base)) == array.base.size - array.size, what


def layer_of(problem):
    return fastlinear.Linear.from_weights(problem.weight, problem.bias)


def memory_of(layer):
    """Copies of the parameters and the gradients."""
    names = ("weight", "bias", "grad_weight", "grad_bias")
    return {name: getattr(layer, name).copy() for name in names if getattr(layer, name) is not None}


def assert_same_memory(layer, expected):
    got = memory_of(layer)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert_same_bits(value, expected[name], name)


@contextmanager
def unchanged(layer, *arrays):
    """The layer's parameters and gradients and these arrays are bit for bit as before."""
    before, copies = memory_of(layer), [a.copy() for a in arrays]
    yield
    assert_same_memory(layer, before)
    for array, copy in zip(arrays, copies, strict=True):
        assert_same_bits(array, copy, "an argument")


METHODS = {
    "call": lambda layer, x, grad_output, out: layer(x, out=out),
    "forward": lambda layer, x, grad_output, out: layer.forward(x, out=out),
    "backward": lambda layer, x, grad_output, out: layer.backward(x, grad_output, out=out),
    "backward_input": lambda layer, x, grad_output, out: layer.backward_input(grad_output, out=out),
    "backward_params": lambda layer, x, grad_output, out: layer.backward_params(x, grad_output),
    "backward_update": lambda layer, x, grad_output, out: layer.backward_update(x, grad_output, 0.25, out=out),
}
READS_X = [name for name in METHODS if name != "backward_input"]
READS_GRAD_OUTPUT = [name for name in METHODS if name not in ("call", "forward")]
WRITES_OUT = [name for name in METHODS if name != "backward_params"]


def result_shape(method, batch_shape, in_features, out_features):
    return (*batch_shape, out_features if method in ("call", "forward") else in_features)


def python(code, *options, timeout=120, **environment):
    """Run code in a new interpreter that imports the fastlinear under test. The timeout only ends a hang."""
    import os

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTLINEAR_", "OMP_", "OPENBLAS_"))}
    command = [sys.executable, *options, *(["-c", code] if code else [])]
    home = Path(fastlinear.__file__).parents[1]
    return subprocess.run(
        command, cwd=home, env=clean | environment, capture_output=True, text=True, timeout=timeout, check=False
    )
