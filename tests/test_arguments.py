"""Arguments of every kind: odd but good ones give the right answer, bad ones raise and change nothing."""

import copy
import inspect
import pickle
import re
import sys

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear
from fastlinear._layer import Layer

from .helpers import (
    METHODS,
    READS_GRAD_OUTPUT,
    READS_X,
    WRITES_OUT,
    assert_same_bits,
    assert_same_memory,
    integers,
    layer_of,
    memory_of,
    misaligned,
    read_only,
    result_shape,
    strided,
    unchanged,
)

IN, OUT = 7, 3


# ---- good but odd


class Subclass(np.ndarray):
    pass


class DLPackOnly:
    """An array of another library that speaks DLPack, as a CPU tensor does."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class DLPackOld(DLPackOnly):
    """One whose __dlpack__ takes no arguments, as before 2023."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class ArrayOnly:
    """An object that turns itself into an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class DLPackFails(ArrayOnly):
    """One whose memory is elsewhere, so that DLPack refuses, but which can copy itself."""

    def __dlpack__(self, **kwargs):
        raise BufferError("not on the CPU")

    def __dlpack_device__(self):
        return (2, 0)


def memmap(a, folder):
    mapped = np.memmap(folder / "array", a.dtype, "w+", shape=a.shape)
    mapped[...] = a
    return mapped


ODD = {
    "strided": strided,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "fortran": np.asfortranarray,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read-only": read_only,
    "list": np.ndarray.tolist,
    "list of ints": lambda a: a.astype(int).tolist(),
    "tuple": lambda a: tuple(map(tuple, a.tolist())),
    "list of rows": list,
    "subclass": lambda a: a.view(Subclass),
    "float16": lambda a: a.astype(np.float16),
    "int8": lambda a: a.astype(np.int8),
    "int16": lambda a: a.astype(np.int16),
    "__dlpack__": DLPackOnly,
    "__dlpack__ of old": DLPackOld,
    "__dlpack__ that fails": DLPackFails,
    "__array__": ArrayOnly,
    "no rows": lambda a: a[:0],
    "no rows, strided": lambda a: a[:0, ::-1],
}


def plain(value):
    """The array that an odd one stands for."""
    return np.asarray(getattr(value, "array", value))


@pytest.fixture
def problem(dtype):
    return integers(5, IN, OUT, dtype)


@pytest.fixture
def layer(problem):
    layer = layer_of(problem)
    layer.grad_weight = problem.weight[::-1]
    layer.grad_bias = problem.bias[::-1]
    return layer


def check_odd(method, layer, x, grad_output):
    """The same bits in the result and in the layer as from contiguous arrays of the layer's dtype."""
    twin = copy.deepcopy(layer)
    contiguous = (plain(a).astype(layer.dtype, order="C") for a in (x, grad_output))
    expected = METHODS[method](twin, *contiguous, None)
    got = METHODS[method](layer, x, grad_output, None)
    if expected is None:
        assert got is None
    else:
        assert type(got) is np.ndarray
        assert_same_bits(got, expected)
    assert_same_memory(layer, memory_of(twin))


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("method", METHODS)
def test_odd_arrays(isa, problem, layer, method, odd):
    """Arrays of any layout, order, alignment, class or safe dtype are what they stand for, in every pass."""
    x, grad_output = odd(problem.x), odd(problem.grad_output)
    check_odd(method, layer, x, grad_output)


@pytest.mark.parametrize("method", READS_GRAD_OUTPUT)
def test_odd_and_plain_arrays_mix(isa, problem, layer, method):
    check_odd(method, layer, strided(problem.x), problem.grad_output)
    check_odd(method, layer, problem.x, strided(problem.grad_output))
    check_odd(method, layer, problem.x.tolist(), DLPackOnly(problem.grad_output))


@pytest.mark.parametrize("method", METHODS)
def test_memory_mapped_files(isa, problem, layer, method, tmp_path):
    (tmp_path / "x").mkdir()
    check_odd(method, layer, memmap(problem.x, tmp_path / "x"), memmap(problem.grad_output, tmp_path))


def test_wider_safe_casts(isa):
    """What NumPy casts safely to float64 is taken by a float64 layer: float32 and all integers."""
    problem = integers(5, IN, OUT, np.float64)
    for dtype in (np.float32, np.int32, np.int64, np.uint32):
        layer = layer_of(problem)
        check_odd("backward", layer, abs(problem.x).astype(dtype), abs(problem.grad_output).astype(dtype))


def test_booleans(isa, problem, layer):
    check_odd("backward", layer, problem.x > 0, problem.grad_output > 0)


def test_lists_of_python_floats_round_to_the_layer(isa, dtype):
    """Python's numbers have no dtype of ours, so a list of them is just converted."""
    layer = Linear.from_weights(np.eye(2, dtype=dtype))
    assert_same_bits(layer([0.1, 1 / 3]), np.array([0.1, 1 / 3], dtype))


@pytest.mark.thread_unsafe(reason="counts what is allocated")
@pytest.mark.parametrize("form", [np.asarray, DLPackOnly, ArrayOnly, lambda a: a.view(Subclass)])
def test_taken_without_a_copy(form):
    """An array that needs no conversion is not copied, whoever it comes from: 4 MB pass, next to nothing is used."""
    import tracemalloc

    x, layer = np.ones((1 << 10, 1 << 10), np.float32), Linear(1 << 10, 1, rng=0)
    given = form(x)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        layer(given)
        assert tracemalloc.get_traced_memory()[1] - before < x.nbytes // 64
    finally:
        tracemalloc.stop()


# ---- out, wherever it lies


def odd_out(kind, shape, dtype):
    size = int(np.prod(shape))
    memory = np.full(4 * size + 64, np.nan, dtype)
    if kind == "strided":
        return memory[: 4 * size].reshape(*shape[:-1], shape[-1] * 4)[..., ::4]
    if kind == "reversed":
        return memory[:size][::-1].reshape(shape)
    if kind == "fortran":
        return memory[:size].reshape(shape, order="F")
    if kind == "misaligned":
        return np.ndarray(shape, dtype, memory.view(np.uint8), 1)
    return memory[:size].reshape(shape).view(Subclass)


@pytest.mark.parametrize("kind", ["strided", "reversed", "fortran", "misaligned", "subclass"])
@pytest.mark.parametrize("method", WRITES_OUT)
def test_out_of_any_layout(isa, problem, layer, method, kind):
    """out may have any layout: it gets the bits of a fresh result and is returned, and nothing beside it is written."""
    out = odd_out(kind, result_shape(method, (5,), IN, OUT), problem.x.dtype)
    twin = copy.deepcopy(layer)
    expected = METHODS[method](twin, problem.x, problem.grad_output, None)
    assert METHODS[method](layer, problem.x, problem.grad_output, out) is out
    assert_same_bits(np.asarray(out, order="C"), expected)
    assert_same_memory(layer, memory_of(twin))
    if kind == "strided":
        assert np.count_nonzero(~np.isnan(out.base)) == out.size


def own(array, shape, start=0):
    """A view of the array's memory in another shape."""
    return array.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)


def overlaps(layer, x, grad_output, shape):
    """(x, grad_output, out) that share memory with each other or with the layer, by name. All sizes are 20, so every
    part of one fits into another, and there is more than a tile, all of which is read before any is written."""
    both = np.concatenate([x.ravel(), x.ravel()])
    middle = own(both, x.shape)
    yield "out is x", x, grad_output, x
    yield "out is grad_output", x, grad_output, grad_output
    yield "out begins inside x", middle, grad_output, own(both, shape, 3)
    yield "out ends inside x", own(both, x.shape, 5), grad_output, own(both, shape)
    yield "out begins inside grad_output", x, middle, own(both, shape, 7)
    yield "out is x reversed", x, grad_output, x[::-1, ::-1]
    yield "out is weight", x, grad_output, own(layer.weight, shape)
    yield "out is part of weight", x, grad_output, own(layer.weight, shape, 2)
    yield "out is bias", x, grad_output, layer.bias.reshape(1, -1)
    yield "out is grad_weight", x, grad_output, own(layer.grad_weight, shape)
    yield "out is grad_bias", x, grad_output, layer.grad_bias.reshape(1, -1)
    yield "x is weight", own(layer.weight, x.shape), grad_output, None
    yield "x is weight transposed", layer.weight.T[: len(x)], grad_output, None
    yield "x is grad_weight", own(layer.grad_weight, x.shape, 3), grad_output, None
    yield "grad_output is weight", x, own(layer.weight, grad_output.shape, 1), None
    yield "grad_output is bias", x[:1], layer.bias.reshape(1, -1), None
    yield "grad_output is grad_bias", x[:1], layer.grad_bias.reshape(1, -1), None
    yield "grad_output is grad_weight", x, own(layer.grad_weight, grad_output.shape), None
    yield "x is grad_output", x, x, None
    yield "all are weight", *[own(layer.weight, x.shape)] * 2, own(layer.weight, shape, 4)


OVERLAPS = [name for name, *_ in overlaps(Linear(20, 20), np.zeros((3, 20)), np.zeros((3, 20)), (3, 20))]


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("method", METHODS)
def test_overlapping_arguments(isa, dtype, method, name):
    """Arguments may be views of each other or of the parameters: the answer is as if they were not."""
    x, grad_output, weight, bias = integers(3, 20, 20, dtype, seed=1)

    def arguments(layer):
        for what, *arrays in overlaps(layer, x.copy(), grad_output.copy(), x.shape):
            if what == name:
                a, b, out = arrays
                # A result of one row, for an out of one row.
                return (a[:1], b[:1], out) if out is not None and len(out) == 1 else (a, b, out)
        raise AssertionError

    layer = Linear.from_weights(weight, bias)
    layer.grad_weight, layer.grad_bias = weight[::-1], bias[::-1]
    apart = copy.deepcopy(layer)
    a, b, out_apart = arguments(apart)
    expected = METHODS[method](apart, a.copy(), b.copy(), None)
    a, b, out = arguments(layer)
    got = METHODS[method](layer, a, b, out)
    if out is not None and method in WRITES_OUT:
        assert got is out
        assert np.array_equal(out, expected)
        out_apart[...] = expected  # it is the apart layer's own memory in some cases
    elif expected is not None:
        assert_same_bits(got, expected)
    assert_same_memory(layer, memory_of(apart))


# ---- bad


def bad_arrays(features, dtype):
    """(name, value, exception, what its message says) for an array that should have (5, features)."""
    wide = np.longdouble if dtype == np.float64 else np.float64
    of_float = re.escape(np.dtype(dtype).name)
    expected = f"{features} features in its last axis, got shape "
    yield "0-D", np.array(1, dtype), ValueError, expected + r"\(\)"
    yield "scalar", dtype(1), ValueError, expected + r"\(\)"
    yield "number", 1.0, ValueError, expected + r"\(\)"
    yield "last axis too long", np.ones((5, features + 1), dtype), ValueError, expected + rf"\(5, {features + 1}\)"
    yield "last axis too short", np.ones((5, features - 1), dtype), ValueError, expected + rf"\(5, {features - 1}\)"
    yield "transposed", np.ones((features, 5), dtype), ValueError, expected + rf"\({features}, 5\)"
    yield "long vector", np.ones(features + 1, dtype), ValueError, expected + rf"\({features + 1},\)"
    yield "no features", np.ones((5, 0), dtype), ValueError, expected + r"\(5, 0\)"
    yield "3-D", np.ones((5, features, 1), dtype), ValueError, expected + rf"\(5, {features}, 1\)"
    yield "strided wrong shape", np.ones((5, 2 * features + 2), dtype)[:, ::2], ValueError, expected
    yield "list of wrong shape", [[1.0] * (features + 1)] * 5, ValueError, expected
    yield "empty list", [], ValueError, expected
    yield "ragged list", [[1.0], [1.0, 2.0]], ValueError, "inhomogeneous"
    yield "wider", np.ones((5, features), wide), TypeError, rf"dtype {np.dtype(wide)}, which .* {of_float}"
    yield "complex", np.ones((5, features), np.complex64), TypeError, rf"dtype complex64, which .* {of_float}"
    yield "object", np.ones((5, features), object), TypeError, rf"dtype object, which .* {of_float}"
    yield "strings", np.full((5, features), "1"), TypeError, rf"dtype <U1, which .* {of_float}"
    yield "dates", np.zeros((5, features), "M8[s]"), TypeError, rf"dtype datetime64\[s\], which .* {of_float}"
    yield "time spans", np.zeros((5, features), "m8[s]"), TypeError, rf"dtype timedelta64\[s\], which .* {of_float}"
    yield "structured", np.zeros((5, features), "f4,f4"), TypeError, of_float
    yield "list of complex", [[1j] * features] * 5, TypeError, "complex"
    yield "list of strings", [["1"] * features] * 5, TypeError, "<U1"
    yield "text", "1234567", TypeError, "must be an array of numbers, got str '1234567'"
    yield "None", None, TypeError, "must be an array of numbers, got None"
    yield "dict", {}, TypeError, "must be an array of numbers, got dict"
    yield "DLPack of a wider dtype", DLPackOnly(np.ones((5, features), np.complex128)), TypeError, "complex128"
    yield "__array__ of a wrong shape", ArrayOnly(np.ones((5, features + 1), dtype)), ValueError, expected
    if dtype == np.float32:
        yield "int32", np.ones((5, features), np.int32), TypeError, "int32, which .* float32"
        yield "float64 scalar row", np.ones(features), TypeError, "float64, which .* float32"


BAD_NAMES = {dtype: [name for name, *_ in bad_arrays(5, dtype)] for dtype in (np.float32, np.float64)}
BAD = [(dtype, name) for dtype, names in BAD_NAMES.items() for name in names]


@pytest.mark.parametrize(("dtype", "name"), BAD, ids=[f"{d.__name__}-{n}" for d, n in BAD])
@pytest.mark.parametrize(
    ("method", "argument"), [(m, "x") for m in READS_X] + [(m, "grad_output") for m in READS_GRAD_OUTPUT]
)
def test_bad_arrays(isa, dtype, name, problem, layer, method, argument):
    """Each pass refuses a bad x and a bad grad_output, says what was expected and what came, and changes nothing."""
    features = IN if argument == "x" else OUT
    bad, error, says = next(rest for what, *rest in bad_arrays(features, dtype) if what == name)
    arguments = {"x": problem.x, "grad_output": problem.grad_output} | {argument: bad}
    out = np.full(result_shape(method, (5,), IN, OUT), 42, dtype)
    for result in (None, out):
        with (
            unchanged(layer, problem.x, problem.grad_output, out),
            pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): {argument} .*{says}"),
        ):
            METHODS[method](layer, *arguments.values(), result)


MISMATCHED = [((5,), (4,)), ((5,), ()), ((), (1,)), ((2, 3), (3, 2)), ((6,), (2, 3)), ((1, 5), (5,)), ((5,), (0,))]


@pytest.mark.parametrize("batches", MISMATCHED, ids=str)
@pytest.mark.parametrize("method", [m for m in READS_X if m in READS_GRAD_OUTPUT])
@pytest.mark.parametrize("convert", [np.asarray, lambda a: np.repeat(a, 2, -1)[..., ::2]], ids=["plain", "strided"])
def test_batches_that_do_not_match(isa, dtype, layer, method, batches, convert):
    """x and grad_output must have the same leading axes, which the message names."""
    x, grad_output = (convert(np.ones((*b, n), dtype)) for b, n in zip(batches, (IN, OUT), strict=True))
    says = f"grad_output must have shape {(*batches[0], OUT)} to match x of shape {x.shape}, got {grad_output.shape}"
    with unchanged(layer, x, grad_output), pytest.raises(ValueError, match=re.escape(says)):
        METHODS[method](layer, x, grad_output, None)


BAD_OUT = {
    "read-only": (read_only, ValueError, "must be writable, got a read-only"),
    "too few rows": (lambda a: a[:-1], ValueError, r"must have shape .*, got \("),
    "too many columns": (lambda a: np.repeat(a, 2, 1), ValueError, r"must have shape .*, got \("),
    "flat": (np.ravel, ValueError, r"must have shape .*, got \("),
    "one axis more": (lambda a: a[None], ValueError, r"must have shape .*, got \("),
    "0-D": (lambda a: a[:1, :1].reshape(()), ValueError, r"must have shape .*, got \(\)"),
    "integers": (lambda a: a.astype(int), TypeError, "must have dtype float.*, got int64"),
    "float16": (lambda a: a.astype(np.float16), TypeError, "must have dtype float.*, got float16"),
    "longdouble": (lambda a: a.astype(np.longdouble), TypeError, "must have dtype float.*, got"),
    "byte-swapped": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, "must have dtype float.*, got >f"),
    "object": (lambda a: a.astype(object), TypeError, "must have dtype float.*, got object"),
    "list": (np.ndarray.tolist, TypeError, "must be a numpy.ndarray, got list"),
    "__array__": (ArrayOnly, TypeError, "must be a numpy.ndarray, got ArrayOnly"),
    "number": (lambda a: 1.0, TypeError, "must be a numpy.ndarray, got float"),
}


@pytest.mark.parametrize(("make", "error", "says"), BAD_OUT.values(), ids=BAD_OUT)
@pytest.mark.parametrize("x_too", [np.asarray, strided], ids=["plain x", "strided x"])
@pytest.mark.parametrize("method", WRITES_OUT)
def test_bad_out(isa, problem, layer, method, x_too, make, error, says):
    """An out that cannot take the result is refused before anything is written."""
    out = make(np.full(result_shape(method, (5,), IN, OUT), 42, problem.x.dtype))
    x, grad_output = x_too(problem.x), x_too(problem.grad_output)
    watched = [x, grad_output, *([out] if isinstance(out, np.ndarray) else [])]
    with unchanged(layer, *watched), pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): out {says}"):
        METHODS[method](layer, x, grad_output, out)


@pytest.mark.parametrize("method", ["backward", "backward_update"])
def test_out_without_input_grad(isa, problem, layer, method):
    """out is for grad_input: asking for one without the other is a mistake."""
    x, grad_output, *_ = problem
    positional = () if method == "backward" else (0.5,)
    with unchanged(layer, x), pytest.raises(ValueError, match="out is for grad_input"):
        getattr(layer, method)(x, grad_output, *positional, out=np.empty_like(x), input_grad=False)


BAD_NUMBERS = {
    "text": ("0.5", TypeError),
    "None": (None, TypeError),
    "complex": (1j, TypeError),
    "list": ([0.5], TypeError),
    "array": (np.ones(2), TypeError),
    "object": (object(), TypeError),
    "beyond any float": (10**400, ValueError),
    "NumPy complex": (np.complex64(1 + 2j), TypeError),
}


@pytest.mark.parametrize(("number", "error"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_bad_numbers(isa, problem, layer, number, error):
    """scale, lr and stdv must be real numbers."""
    x, grad_output, *_ = problem
    with unchanged(layer, x, grad_output):
        for method in ("backward", "backward_params"):
            with pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): scale must"):
                getattr(layer, method)(x, grad_output, scale=number)
        with pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): lr must"):
            layer.backward_update(x, grad_output, number)
        with pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): lr must"):
            layer.step(number)
        if number is not None:  # which is the default of stdv
            with pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): stdv must"):
                layer.reset(stdv=number)


@pytest.mark.parametrize("number", [1e39, -1e300, 3.41e38])
def test_numbers_that_do_not_fit_float32(isa, number):
    """A finite scale, lr or stdv that would become infinite is refused; a float64 layer takes it."""
    problem = integers(5, IN, OUT, np.float32)
    layer = layer_of(problem)
    for call in (
        lambda: layer.backward(problem.x, problem.grad_output, scale=number),
        lambda: layer.backward_update(problem.x, problem.grad_output, number),
        lambda: layer.step(number),
        lambda: layer.reset(stdv=abs(number)),
    ):
        with unchanged(layer), pytest.raises(ValueError, match=r"float32|finite"):
            call()
    problem = integers(5, IN, OUT, np.float64)
    layer_of(problem).backward(problem.x, problem.grad_output, scale=number)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_infinite_numbers(isa, dtype, number):
    """A scale or lr that is no finite number does what IEEE says, in either dtype."""
    weight, x, grad_output = np.zeros((2, 3), dtype), np.ones(3, dtype), np.ones(2, dtype)
    layer = Linear.from_weights(weight)
    layer.backward(x, grad_output, scale=number)
    assert np.array_equal(layer.grad_weight, np.full_like(weight, number), equal_nan=True)
    layer.backward_update(x, grad_output, number)
    assert np.array_equal(layer.weight, np.full_like(weight, -number), equal_nan=True)


@pytest.mark.parametrize("stdv", [-1, np.nan, np.inf])
def test_bad_stdv(layer, stdv):
    with unchanged(layer), pytest.raises(ValueError, match="stdv must be finite and not negative, got"):
        layer.reset(stdv=stdv)


@pytest.mark.parametrize("rng", ["seed", -1, 1.5, object()], ids=repr)
def test_bad_rng(layer, rng):
    with unchanged(layer), pytest.raises((TypeError, ValueError)):
        layer.reset(rng=rng)


# ---- bad layers


BAD_SIZES = {
    "negative": (-1, ValueError, "must not be negative, got -1"),
    "float": (2.0, TypeError, "must be an integer, got float"),
    "text": ("2", TypeError, "must be an integer, got str"),
    "None": (None, TypeError, "must be an integer, got NoneType"),
    "array": (np.ones(2), TypeError, "must be an integer, got ndarray"),
    "huge": (sys.maxsize + 1, ValueError, f"must be at most {sys.maxsize}, got {sys.maxsize + 1}"),
}


@pytest.mark.parametrize(("size", "error", "says"), BAD_SIZES.values(), ids=BAD_SIZES)
def test_bad_sizes(size, error, says):
    with pytest.raises(error, match=f"in_features {says}"):
        Linear(size, 2)
    with pytest.raises(error, match=f"out_features {says}"):
        Linear(2, size)


@pytest.mark.parametrize(
    "shape", [(sys.maxsize, 1), (1, sys.maxsize), (sys.maxsize // 4, 1), (1 << 40, 1 << 40)], ids=repr
)
def test_sizes_beyond_all_memory(shape):
    """A MemoryError, where the number of bytes overflows, too."""
    with pytest.raises(MemoryError):
        Linear(*shape)


@pytest.mark.parametrize("sizes", [(1 << 40, 1 << 40), (1 << 62, 8), (1 << 70, 1)], ids=str)
def test_impossible_sizes(sizes):
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        Linear(*sizes)


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, int, complex, object, ">f4", "U3", None.__class__])
def test_bad_dtypes(dtype):
    """Only native float32 and float64 make a layer."""
    with pytest.raises(TypeError):
        Linear(2, 2, dtype=dtype)
    with pytest.raises(TypeError):
        Linear(2, 2).astype(dtype)


BAD_WEIGHTS = {
    "1-D": ((np.ones(4),), ValueError, r"weight must have shape \(out_features, in_features\), got \(4,\)"),
    "3-D": ((np.ones((4, 5, 1)),), ValueError, r"got \(4, 5, 1\)"),
    "integers": ((np.ones((4, 5), int),), TypeError, "weight must be float32 or float64, got int64"),
    "complex": ((np.ones((4, 5), complex),), TypeError, "got complex128"),
    "object": ((np.ones((4, 5), object),), TypeError, "got object"),
    "None": ((None,), TypeError, "must be an array of numbers, got None"),
    "ragged": (([[1.0], [1.0, 2.0]],), ValueError, "inhomogeneous"),
    "bias of in_features": ((np.ones((4, 5)), np.ones(5)), ValueError, r"bias must have shape \(4,\).*, got \(5,\)"),
    "bias 2-D": ((np.ones((4, 5)), np.ones((4, 1))), ValueError, r"got \(4, 1\)"),
    "bias wider": ((np.ones((4, 5), "f4"), np.ones(4)), TypeError, "bias has dtype float64, which .* float32"),
    "bias complex": ((np.ones((4, 5)), np.ones(4, complex)), TypeError, "bias has dtype complex128"),
}


@pytest.mark.parametrize(("arguments", "error", "says"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
@pytest.mark.parametrize("share", [True, False], ids=["copied", "shared"])
def test_bad_weights(arguments, error, says, share):
    with pytest.raises(error, match=f"from_weights: .*{says}"):
        Linear.from_weights(*arguments, copy=share)


@pytest.mark.parametrize("name", ["weight", "bias", "grad_weight", "grad_bias"])
def test_bad_assignments(layer, dtype, name):
    """Assigning a wrong shape or dtype to a parameter raises and changes nothing; nothing is broadcast."""
    shape = getattr(layer, name).shape
    with unchanged(layer):
        for bad in (
            np.ones((), dtype),
            np.ones(1, dtype),
            np.ones((2, *shape), dtype),
            1.0,
            np.ones((*shape, 1), dtype),
        ):
            with pytest.raises((ValueError, TypeError), match=rf"Linear\({IN}, {OUT}\): {name} "):
                setattr(layer, name, bad)
        for bad in (np.ones(shape, complex), np.ones(shape, object), None):
            with pytest.raises(TypeError, match=rf"Linear\({IN}, {OUT}\): {name} "):
                setattr(layer, name, bad)
        with pytest.raises((AttributeError, NotImplementedError)):
            delattr(layer, name)


@pytest.mark.parametrize("name", ["bias", "grad_bias"])
def test_no_bias_to_assign(name):
    with pytest.raises(ValueError, match="made with bias=False"):
        setattr(Linear(5, 4, bias=False), name, np.ones(4, np.float32))


BAD_STATES = {
    "missing bias": (lambda s: {"weight": s["weight"]}, ValueError, r"keys \['bias', 'weight'\], got \['weight'\]"),
    "missing all": (lambda s: {}, ValueError, r"keys \['bias', 'weight'\], got \[\]"),
    "surplus": (lambda s: s | {"scale": 1}, ValueError, r"got \['bias', 'scale', 'weight'\]"),
    "surplus number": (lambda s: s | {1: 1}, ValueError, "got .*'1'"),
    "weight transposed": (lambda s: s | {"weight": s["weight"].T}, ValueError, r"weight must have shape .*, got \("),
    "bias too long": (lambda s: s | {"bias": np.ones(OUT + 1)[:].astype("f4")}, ValueError, r"bias must have shape .*"),
    "bias complex": (lambda s: s | {"bias": s["bias"] * 1j}, TypeError, "bias has dtype complex"),
    "bias object": (lambda s: s | {"bias": s["bias"].astype(object)}, TypeError, "bias has dtype object"),
    "bias None": (lambda s: s | {"bias": None}, TypeError, "bias must be an array of numbers, got None"),
    "list": (lambda s: list(s.items()), TypeError, "must be a mapping, got list"),
    "None": (lambda s: None, TypeError, "must be a mapping, got NoneType"),
}


@pytest.mark.parametrize(("spoil", "error", "says"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_states(layer, spoil, error, says):
    """A state that does not fit in one part changes no part of the layer."""
    state = {name: np.zeros_like(value) for name, value in layer.state_dict().items()}
    with unchanged(layer), pytest.raises(error, match=rf"Linear\({IN}, {OUT}\): .*{says}"):
        layer.load_state_dict(spoil(state))


def test_state_of_a_layer_with_bias_into_one_without():
    with pytest.raises(ValueError, match=r"keys \['weight'\], got \['bias', 'weight'\]"):
        Linear(5, 4, bias=False).load_state_dict(Linear(5, 4).state_dict())


# ---- frozen and unmade layers


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer, p: layer.step(0.5),
        lambda layer, p: layer.backward_update(p.x, p.grad_output, 0.5),
        lambda layer, p: layer.load_state_dict({"weight": p.weight * 0, "bias": p.bias * 0}),
        lambda layer, p: layer.reset(rng=0),
    ],
    ids=["step", "backward_update", "load_state_dict", "reset"],
)
def test_a_frozen_parameter_stops_the_whole_change(isa, problem, layer, name, change):
    """With one of two parameters made read-only, what would change both raises and changes neither."""
    getattr(layer, name).flags.writeable = False
    with unchanged(layer), pytest.raises(ValueError, match="read-only"):
        change(layer, problem)
    assert np.array_equal(layer(problem.x), problem.x @ problem.weight.T + problem.bias)


@pytest.mark.parametrize("name", ["grad_weight", "grad_bias"])
@pytest.mark.parametrize("method", ["backward", "backward_params", "zero_grad"])
def test_a_frozen_gradient_stops_the_whole_change(isa, problem, layer, name, method):
    getattr(layer, name).flags.writeable = False
    arguments = () if method == "zero_grad" else (problem.x, problem.grad_output)
    with unchanged(layer), pytest.raises(ValueError, match="read-only"):
        getattr(layer, method)(*arguments)


def test_a_layer_whose_init_was_not_called(tmp_path):
    """Every method and attribute that needs memory says so, and nothing is written. repr says it, too."""
    layer, x, path = Linear.__new__(Linear), np.ones((2, 0), np.float32), tmp_path / "layer.npz"
    calls = [lambda m=m: m(layer, x, x, None) for m in METHODS.values()]
    calls += [lambda name=name: getattr(layer, name) for name in ("weight", "bias", "grad_weight", "grad_bias")]
    calls += [lambda name=name: setattr(layer, name, x) for name in ("weight", "bias", "grad_weight", "grad_bias")]
    calls += [lambda: layer.step(1), layer.zero_grad, layer.reset, lambda: layer.reset(stdv=1), layer._memory]
    calls += [layer.state_dict, lambda: layer.load_state_dict({}), lambda: layer.save(path), layer.to_torch]
    calls += [lambda: layer.astype(float), lambda: copy.copy(layer), lambda: copy.deepcopy(layer)]
    calls += [lambda: pickle.dumps(layer), lambda: layer._store(x, None), lambda: layer._values("weight", x)]
    calls += [lambda: fastlinear.verify(layer, x, x)]
    for call in calls:
        with pytest.raises(RuntimeError, match="its __init__ was not called"):
            call()
    assert "its __init__ was not called" in repr(layer)
    assert not path.exists()


@pytest.mark.parametrize("name", ["__call__", *(name for name in dir(Layer) if not name.startswith("__"))])
def test_self_is_checked(name):
    """A method or attribute of the compiled class that is handed another self is a TypeError, not a crash."""
    member = inspect.getattr_static(Layer, name)
    call = member.__get__ if inspect.isdatadescriptor(member) else member
    for other in (object(), None, 1, np.ones(3, np.float32), Linear, type("Layer", (), {})()):
        if other is not None or not inspect.isdatadescriptor(member):  # None is what a class hands over
            with pytest.raises(TypeError, match=r"doesn't apply to|requires a"):
                call(other, *[1.0] * 4) if call is member else call(other, type(other))


def test_the_layers_memory_cannot_be_resized(layer):
    """Kernels write to it by address, so no one may move it."""
    for name in ("weight", "bias", "grad_weight", "grad_bias"):
        with pytest.raises(ValueError, match="resize"):
            getattr(layer, name).resize(1)


BEYOND = {"list": [[1e300] * IN], "tuple": ([-1e39] * IN,), "one of many": [[1.0] * (IN - 1) + [3.5e38]]}


@pytest.mark.parametrize("value", BEYOND.values(), ids=BEYOND)
def test_lists_beyond_the_dtype(isa, value):
    """A number that float32 does not hold is a ValueError wherever a list may stand; an infinity is one it holds."""
    layer, g = Linear(IN, OUT, rng=0), np.ones((1, OUT), np.float32)
    calls = [
        lambda: layer(value),
        lambda: layer.backward(value, g),
        lambda: layer.backward_update(value, g, 0.5),
        lambda: Linear(OUT, IN).backward_input(value),
        lambda: setattr(layer, "weight", [*value] * OUT),
        lambda: layer.load_state_dict({"weight": [*value] * OUT, "bias": [0] * OUT}),
        lambda: Linear.from_weights(np.ones((IN, 1), np.float32), value[0]),
    ]
    for call in calls:
        with unchanged(layer), pytest.raises(ValueError, match=r"must fit float32, got -?[13]"):
            call()
    assert np.isinf(layer([np.inf] + [0.0] * (IN - 1))).all()
    assert np.isfinite(Linear(IN, OUT, dtype=np.float64)(value)).all()


def test_no_rows_and_no_features_take_no_time(isa, dtype):
    """A layer of 2**50 features on one side and none on the other, on no rows: the answer comes at once."""
    many, none = np.empty((0, 1 << 50), dtype), np.empty((0, 0), dtype)
    for sizes, x, grad_output in (((1 << 50, 0), many, none), ((0, 1 << 50), none, many)):
        layer = Linear(*sizes, bias=False, dtype=dtype)
        assert layer(x).shape == grad_output.shape
        assert layer.backward_input(grad_output).shape == x.shape
        assert layer.backward(x, grad_output).shape == x.shape
        assert layer.backward_update(x, grad_output, 0.5).shape == x.shape
        layer.step(0.5)
        layer.zero_grad()


def test_masked_arrays(layer, problem):
    """A mask would be lost without a word: a TypeError, wherever the array is."""
    x, y = np.ma.array(problem.x, mask=False), np.ma.array(problem.grad_output, mask=False)
    calls = [
        lambda: layer(x),
        lambda: layer(problem.x, out=y),
        lambda: layer.backward(x, problem.grad_output),
        lambda: layer.backward_update(problem.x, y, 0.5),
        lambda: layer.step(np.ma.masked),
        lambda: layer.load_state_dict({"weight": np.ma.array(problem.weight), "bias": problem.bias}),
        lambda: Linear.from_weights(np.ma.array(problem.weight)),
        lambda: Linear.from_weights(problem.weight, np.ma.array(problem.bias)),
    ]
    for call in calls:
        with unchanged(layer), pytest.raises(TypeError, match=r"is a masked array, .* filled"):
            call()
