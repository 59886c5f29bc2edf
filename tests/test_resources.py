"""Memory: no allocation with out=, no growth, reference counts as before, after good calls and bad."""

import sys
import tracemalloc
from contextlib import contextmanager, suppress
from itertools import repeat

import numpy as np
import pytest

from fastlinear import Linear

from .helpers import METHODS, assert_same_bits, layer_of, normal, result_shape, unchanged

SHAPE = (5, 64, 48)

# Each call with all its outputs given, as a user writes it in a loop.
CALLS = {
    "call": lambda layer, x, g, y, gx: layer(x, y),
    "call, out=": lambda layer, x, g, y, gx: layer(x, out=y),
    "forward": lambda layer, x, g, y, gx: layer.forward(x, out=y),
    "backward": lambda layer, x, g, y, gx: layer.backward(x, g, out=gx),
    "backward, scale": lambda layer, x, g, y, gx: layer.backward(x, g, out=gx, scale=0.5, input_grad=True),
    "backward without grad_input": lambda layer, x, g, y, gx: layer.backward(x, g, input_grad=False),
    "backward_input": lambda layer, x, g, y, gx: layer.backward_input(g, out=gx),
    "backward_params": lambda layer, x, g, y, gx: layer.backward_params(x, g),
    "backward_update": lambda layer, x, g, y, gx: layer.backward_update(x, g, 1e-9, out=gx),
    "step": lambda layer, x, g, y, gx: layer.step(1e-9),
    "zero_grad": lambda layer, x, g, y, gx: layer.zero_grad(),
}


@pytest.fixture(params=[SHAPE, (1, 64, 48), (64, 64, 48)], ids=["batch", "one row", "GIL released"])
def arguments(request, dtype):
    """A layer with gradients, x, grad_output, and an output for each pass."""
    problem = normal(*request.param, dtype)
    layer = layer_of(problem)
    layer.backward(problem.x, problem.grad_output)
    return layer, problem.x, problem.grad_output, np.empty_like(problem.grad_output), np.empty_like(problem.x)


def peak(call, arguments, times):
    """The most memory that is in use at any moment of so many calls, beyond that before them, in bytes."""
    call(*arguments)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in repeat(None, times):
            call(*arguments)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in CALLS if name != "zero_grad"])
def test_no_allocation(compiled_isa, arguments, name):
    """With its outputs given, a call takes not one byte more than a function that does nothing."""
    assert peak(CALLS[name], arguments, 100) <= peak(lambda *arguments: None, arguments, 100)


def test_an_allocation_would_be_seen(arguments):
    """The measure above sees the array that a call without out= makes."""
    output = arguments[3]
    assert peak(lambda layer, x, g, y, gx: layer(x), arguments, 3) >= output.nbytes


BAD_CALLS = {
    f"{method} of {what}": (METHODS[method], spoil)
    for method in METHODS
    for what, spoil in {
        "wrong shape": lambda a: a[..., 1:],
        "wrong dtype": lambda a: a.astype(complex),
        "text": lambda a: "text",
        "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
        "list": np.ndarray.tolist,
    }.items()
}


def growth(call, times):
    """How many more blocks of memory are in use after so many calls than after a few."""
    for _ in repeat(None, 20):
        call()
    before = sys.getallocatedblocks()
    for _ in repeat(None, times):
        call()
    return sys.getallocatedblocks() - before


@contextmanager
def same_reference_counts(*objects):
    before = [sys.getrefcount(o) for o in objects]
    yield
    assert [sys.getrefcount(o) for o in objects] == before


@pytest.mark.parametrize("name", CALLS)
def test_good_calls_leave_nothing_behind(isa, arguments, name):
    """No memory and no reference stays after many calls; result objects are those that were given."""
    with same_reference_counts(*arguments, arguments[0].dtype, arguments[0].weight):
        assert growth(lambda: CALLS[name](*arguments), 300) < 20


@pytest.mark.parametrize("name", METHODS)
def test_fresh_results_leave_nothing_behind(isa, arguments, name):
    layer, x, grad_output, *_ = arguments
    with same_reference_counts(*arguments, layer.dtype, layer.weight):
        assert growth(lambda: METHODS[name](layer, x, grad_output, None), 300) < 20


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_and_odd_calls_leave_nothing_behind(isa, name):
    """The careful way of a call, which converts or raises, keeps no memory and no reference either."""
    problem = normal(*SHAPE, np.float32)
    layer, (call, spoil) = layer_of(problem), BAD_CALLS[name]
    x, grad_output = spoil(problem.x), spoil(problem.grad_output)
    out = np.empty(result_shape(name.split()[0], SHAPE[:1], *SHAPE[1:]), np.float32)

    def attempt():
        with suppress(TypeError, ValueError):
            call(layer, x, grad_output, out)

    attempt()
    with same_reference_counts(layer, x, grad_output, out, layer.dtype, layer.weight):
        assert growth(attempt, 300) < 20


@pytest.mark.parametrize("name", ["call", "forward", "backward", "backward_input", "backward_update"])
def test_memory_error_changes_nothing(isa, name):
    """A result that no memory holds is a MemoryError, and the layer is as it was."""
    rows = 1 << 46
    problem = normal(1, 1, 3, np.float32) if name in ("call", "forward") else normal(1, 3, 1, np.float32)
    layer = layer_of(problem)
    # Arrays of so many rows that take next to no memory: with no features at all on the other side.
    x = np.lib.stride_tricks.as_strided(problem.x, (rows, layer.in_features), (0, 4))
    grad_output = np.lib.stride_tricks.as_strided(problem.grad_output, (rows, layer.out_features), (0, 4))
    with unchanged(layer), pytest.raises((MemoryError, ValueError)):
        METHODS[name](layer, x, grad_output, None)


def test_memory_error_of_the_result_itself():
    """The same on the short way of a call: x has no elements, the result would have 2^61."""
    layer = Linear(0, 1 << 10, rng=0)
    with unchanged(layer), pytest.raises(MemoryError):
        layer(np.empty((1 << 47, 0), np.float32))
    layer = Linear(1 << 10, 0, rng=0)
    with unchanged(layer), pytest.raises(MemoryError):
        layer.backward_input(np.empty((1 << 47, 0), np.float32))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 33, 17), (130, 70, 260), (3, 0, 5), (3, 5, 0)], ids=str)
def test_nan_never_shows_through(isa, dtype, sizes):
    """An out full of NaN is overwritten in every element, on one thread and on several."""
    problem = normal(*sizes, dtype)
    layer = layer_of(problem)
    for name in ("forward", "backward", "backward_input", "backward_update"):
        out = np.full(result_shape(name, sizes[:1], *sizes[1:]), np.nan, dtype)
        expected = METHODS[name](layer_of(problem), problem.x, problem.grad_output, None)
        assert_same_bits(METHODS[name](layer_of(problem), problem.x, problem.grad_output, out), expected)
        assert not np.isnan(out).any()
    assert not np.isnan(layer.weight).any()
