"""Memory: no allocation with out=, no growth, reference counts as before, after good calls and bad."""

import copy
import os
import pickle
import sys
import tracemalloc
from contextlib import contextmanager, suppress
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, _dispatch

from .helpers import METHODS, assert_same_bits, layer_of, normal, result_shape, unchanged

pytestmark = pytest.mark.thread_unsafe(reason="counts what the whole process holds")

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


@pytest.mark.parametrize("name", CALLS)
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
    """How many more blocks of memory are in use after so many calls than after a few: in the best of three rounds, for
    the interpreter keeps some now and then."""

    def blocks_after(n):
        for _ in repeat(None, n):
            call()
        return sys.getallocatedblocks()

    in_use = [blocks_after(n) for n in (20, times, times, times)]
    return min(after - before for before, after in pairwise(in_use))


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


# Every way into the library, on a small layer: good and, by name, bad.
ENTRIES = {
    **{name: lambda layer, x, g, y, gx, call=call: call(layer, x, g, y, gx) for name, call in CALLS.items()},
    "call, fresh": lambda layer, x, g, y, gx: layer(x),
    "backward, fresh": lambda layer, x, g, y, gx: layer.backward(x, g),
    "backward_update, fresh": lambda layer, x, g, y, gx: layer.backward_update(x, g, 1e-9),
    "a vector": lambda layer, x, g, y, gx: layer(x[0]),
    "a strided view": lambda layer, x, g, y, gx: layer(x[:, ::-1]),
    "a list": lambda layer, x, g, y, gx: layer([1, 2, 3]),
    "a cast": lambda layer, x, g, y, gx: layer(HALF),
    "out overlaps x": lambda layer, x, g, y, gx: layer.backward(gx, g, out=gx),
    "Linear": lambda *arguments: Linear(3, 2),
    "from_weights": lambda layer, *arguments: Linear.from_weights(layer.weight, layer.bias),
    "from_weights, shared": lambda layer, *arguments: Linear.from_weights(layer.weight, layer.bias, copy=False),
    "attributes": lambda layer, *arguments: (layer.weight, layer.bias, layer.grad_weight, layer.grad_bias, layer.dtype),
    "assignment": lambda layer, *arguments: setattr(layer, "weight", layer.weight),
    "state_dict": lambda layer, *arguments: layer.load_state_dict(layer.state_dict()),
    "reset": lambda layer, *arguments: layer.reset(0),
    "astype": lambda layer, *arguments: layer.astype(float),
    "deepcopy": lambda layer, *arguments: copy.deepcopy(layer),
    "pickle": lambda layer, *arguments: pickle.loads(pickle.dumps(layer)),
    "repr": lambda layer, *arguments: repr(layer),
    "verify": lambda layer, x, g, y, gx: fastlinear.verify(layer, x, g),
    "set_num_threads": lambda *arguments: fastlinear.set_num_threads(fastlinear.get_num_threads()),
    "bad: shape": lambda layer, x, g, y, gx: layer(y),
    "bad: dtype": lambda layer, x, g, y, gx: layer(COMPLEX),
    "bad: no array": lambda layer, *arguments: layer("x"),
    "bad: shape of out": lambda layer, x, g, y, gx: layer(x, out=gx),
    "bad: grad_output": lambda layer, x, g, y, gx: layer.backward(x, x),
    "bad: scale": lambda layer, x, g, y, gx: layer.backward(x, g, scale="1"),
    "bad: batches": lambda layer, x, g, y, gx: layer.backward_update(x, g[:1], 0.1),
    "bad: lr": lambda layer, *arguments: layer.step(None),
    "bad: arguments": lambda layer, *arguments: layer.backward(),
    "bad: size": lambda *arguments: Linear(-1, 2),
    "bad: weights": lambda layer, x, *arguments: Linear.from_weights(x, x),
    "bad: to share": lambda layer, x, *arguments: Linear.from_weights(x[:, ::-1], copy=False),
    "bad: state": lambda layer, *arguments: layer.load_state_dict({"weight": layer.weight, "gain": 1}),
    "bad: assignment": lambda layer, x, *arguments: setattr(layer, "bias", x),
    "bad: threads": lambda *arguments: fastlinear.set_num_threads(0),
    "bad: kernel": lambda layer, x, g, y, gx: _dispatch.load(_dispatch.available()[0]).forward(x, g, None, y),
}
HALF, COMPLEX = np.ones((2, 3), np.float16), np.ones((2, 3), complex)


def resident():
    """What the process has of the machine's memory, in bytes."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "times",
    [1_000, pytest.param(3_000, marks=pytest.mark.sweep), pytest.param(1_000_000, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_point_many_times(name, times):
    """A thousand calls, three thousand in the sweep, a million with -m long (verify, pickle, deepcopy less): no block
    of memory and no page more than after the first."""
    problem = normal(2, 3, 2, np.float32)
    layer, call = layer_of(problem), ENTRIES[name]
    arguments = layer, problem.x, problem.grad_output, np.empty_like(problem.grad_output), problem.x.copy()
    error = (TypeError, ValueError) if name.startswith("bad") else ()
    times = times // 20 if name in ("verify", "pickle", "deepcopy") else times

    def attempt():
        try:
            call(*arguments)
        except error:
            return
        assert not error

    growth(attempt, 1000)  # three times: Python keeps up to 2,000 freed tuples of each size
    before = resident()
    with same_reference_counts(*arguments, layer.dtype, layer.weight):
        assert growth(attempt, times) < 20 + times // 1000
    if "ASAN_OPTIONS" not in os.environ:  # AddressSanitizer keeps back what was freed
        assert resident() - before < 2**20 + 8 * times


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
