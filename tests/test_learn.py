"""Linear.learn: bit for bit what the public calls do, whatever the rows lie in, and however a stream is cut."""

import _thread
import contextlib
import itertools
import pickle
import signal
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, reference

from .helpers import assert_same_bits, assert_same_memory, memory_of, misaligned, python, read_only, unchanged

LOSSES = "squared_error", "huber", "log_loss", "hinge"
LABELLED = "log_loss", "hinge"


def data(loss, rows, features, outputs, dtype=np.float32, seed=0):
    """X and what belongs to its rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features)).astype(dtype)
    if loss in LABELLED:
        return x, rng.integers(0, max(outputs, 2), rows)
    return x, rng.standard_normal((rows, outputs) if outputs > 1 else rows).astype(dtype)


def assert_same_learning(one, other, x, y, lr, loss, **options):
    """learn and the calls by hand leave the same layer and return the same value, which comes back."""
    got = one.learn(x, y, lr, loss, **options)
    expected = reference.learn(other, x, y, lr, loss, **options)
    assert_same_memory(one, memory_of(other))
    assert got == expected or (np.isnan(got) and np.isnan(expected))
    return got


def pair(features, outputs, bias=True, dtype=np.float32, seed=0):
    return [Linear(features, outputs, bias, dtype=dtype, rng=seed) for _ in range(2)]


def random_point(seed):
    """Sizes, data and options of a call. Features are log-uniform."""
    rng = np.random.default_rng(seed)
    loss, dtype = LOSSES[seed % 4], (np.float32, np.float64)[seed // 4 % 2]
    features = int(np.exp(rng.uniform(np.log(0.5), np.log(2000))))
    outputs, rows = int(rng.choice([1, 1, 1, 2, 3, 10, 20])), int(rng.integers(1, 50))
    batch_size = int(rng.choice([1, 1, 2, 5, 33, 100]))
    x, y = data(loss, rows, features, outputs, dtype, seed)
    order = rng.integers(0, rows, rng.integers(1, 60)) if rng.random() < 0.3 else None
    steps = -(-(rows if order is None else len(order)) // batch_size)
    scale = 0.3 / (features + 1)
    options = {
        "lr": scale if rng.random() < 0.5 else rng.random(steps) * scale,
        "loss": loss,
        "batch_size": batch_size,
        "l2": float(rng.choice([0, 0.1, 100])),
        "sample_weight": rng.random(rows).astype(dtype) if rng.random() < 0.3 else None,
        "order": order,
        "adaptive": bool(rng.random() < 0.3),
    }
    return pair(features, outputs, bool(rng.random() < 0.8), dtype, seed), x, y, options


@pytest.mark.parametrize("seeds", [pytest.param(range(160)), pytest.param(range(160, 5000), marks=pytest.mark.sweep)])
def test_learn_is_what_the_calls_do(isa, seeds):
    """At random points, with all options: every bit of the layer, and the value."""
    for seed in seeds:
        layers, x, y, options = random_point(seed)
        try:
            assert_same_learning(*layers, x, y, **options)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {layers[0]}, {len(x)} rows, {options}") from error


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("features", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 511, 513, 1023, 1024, 1025, 2500])
def test_one_output_row_by_row(compiled_isa, dtype, loss, features):
    """The loop in one pass: whole and partial vectors, one and more blocks of forward's sum, with a bias or without."""
    x, y = data(loss, 9, features, 1, dtype)
    for bias, l2 in itertools.product([True, False], [0.0, 0.5]):
        assert_same_learning(*pair(features, 1, bias, dtype), x, y, 0.5 / (features + 1), loss, l2=l2)


@pytest.mark.parametrize("features", [16_384, 16_385, 32_768, 32_769, 40_000])
def test_one_output_and_very_many_features(compiled_isa, dtype, features):
    """On both sides of where forward's sum goes in two levels, and the loop gives up."""
    x, y = data("squared_error", 3, features, 1, dtype)
    assert_same_learning(*pair(features, 1, dtype=dtype), x, y, 0.1 / features, "squared_error")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_one_row(isa, dtype, loss, outputs):
    """A vector is one row, whatever the quick way does not take."""
    x, y = data(loss, 5, 20, outputs, dtype)
    one, other = pair(20, outputs, dtype=dtype)
    for row, target in zip(x, y, strict=True):
        expected = reference.learn(other, row[None], np.array([target]), 0.1, loss)
        targets = [target, np.asarray(target)]
        targets += [int(target)] if loss in LABELLED else [float(target)] if outputs == 1 else [target.tolist()]
        for equal in targets:
            copy = pickle.loads(pickle.dumps(one))
            assert copy.learn(row, equal, 0.1, loss) == expected
            assert_same_memory(copy, memory_of(other))
        for options in ({"batch_size": 7}, {"l2": 0}, {"sample_weight": dtype(1)}, {"lr": [0.1]}):
            copy = pickle.loads(pickle.dumps(one))
            assert copy.learn(row.tolist() if dtype == np.float64 else row, target, loss=loss,
                              **({"lr": 0.1} | options)) == expected  # fmt: skip
            assert_same_memory(copy, memory_of(other))
        one.learn(row, target, 0.1, loss)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stream_may_be_cut_anywhere_between_batches(compiled_isa, dtype, outputs, batch_size):
    x, y = data("log_loss", 60, 30, outputs, dtype)
    whole, parts = pair(30, outputs, dtype=dtype)
    lr = np.linspace(0.1, 0.01, 60 // batch_size)
    whole.learn(x, y, lr, "log_loss", batch_size=batch_size, l2=0.01)
    for begin, end in itertools.pairwise([0, 3, 15, 18, 18, 45, 60]):
        steps = slice(begin // batch_size, end // batch_size)
        parts.learn(x[begin:end], y[begin:end], lr[steps], "log_loss", batch_size=batch_size, l2=0.01)
    assert_same_memory(parts, memory_of(whole))


def test_order_is_the_rows_in_that_order(compiled_isa, dtype):
    x, y = data("log_loss", 40, 30, 1, dtype)
    order = np.random.default_rng(1).integers(0, 40, 100)
    one, other = pair(30, 1, dtype=dtype)
    expected = other.learn(x[order], y[order], 0.1, "log_loss")
    for places in (order.astype(np.int8), order.astype(np.uint64), order.tolist()):
        copy = pickle.loads(pickle.dumps(one))
        assert copy.learn(x, y, 0.1, "log_loss", order=places) == expected
        assert_same_memory(copy, memory_of(other))


LAYOUTS = {
    "columns of a wider array": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "rows backwards": lambda x: x[::-1].copy()[::-1],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "Fortran": np.asfortranarray,
    "swapped bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read-only": read_only,
    "one row for all": lambda x: np.broadcast_to(x[0], x.shape),
    "lists": lambda x: x.tolist(),
    "float16": lambda x: x.astype(np.float16),
    "int8": lambda x: (10 * x).astype(np.int8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(compiled_isa, dtype, layout, monkeypatch):
    """Rows wherever they lie, and as many as make several blocks that are converted."""
    x, y = data("squared_error", 5000, 64, 1, dtype)
    odd = LAYOUTS[layout](x[:50] if layout == "lists" else x)
    plain, y = np.array(odd, dtype), y[: len(odd)]
    for batch_size, order in itertools.product([1, 7], [None, np.arange(len(plain))[::-3]]):
        one, other = pair(64, 1, dtype=dtype)
        options = {"batch_size": batch_size, "order": order}
        assert one.learn(odd, y, 1e-4, **options) == other.learn(plain, y, 1e-4, **options)
        assert_same_memory(one, memory_of(other))


@pytest.mark.parametrize("code", [*"bBhHiIlLqQ", "?"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("loss", LABELLED)
def test_labels_of_every_integer_dtype(loss, outputs, code):
    x, y = data(loss, 30, 8, outputs)
    one, other = pair(8, outputs)
    assert one.learn(x, y.astype(code), 0.1, loss) == other.learn(x, y, 0.1, loss)
    assert_same_memory(one, memory_of(other))


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("features", [0, 4])
@pytest.mark.parametrize("outputs", [0, 1, 3])
@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
def test_sizes_of_zero(isa, rows, features, outputs, loss):
    """Without rows there is no mean, and nothing changes; without features the bias learns; without outputs nothing."""
    if loss == "log_loss" and outputs == 0:
        pytest.skip("there is no label of no class")
    x = np.ones((rows, features), np.float32)
    y = np.zeros(rows, int) if loss == "log_loss" else np.zeros((rows, outputs), np.float32)
    one, other = pair(features, outputs)
    for adaptive in (False, True):
        got = assert_same_learning(one, other, x, y, 0.1, loss, batch_size=2, adaptive=adaptive)
        assert np.isnan(got) == (rows == 0)


def test_memory_mapped_files_stay_on_the_disk(dtype, tmp_path):
    """Neither a map of the layer's dtype nor one that is converted is ever in memory as a whole."""
    rows = 1 << 17
    for kind in (np.float32, np.float16):
        x = np.memmap(tmp_path / "x", kind, "w+", shape=(rows, 64))
        x[::1000, 3] = 1
        y = np.memmap(tmp_path / "y", np.int8, "w+", shape=(rows,))
        y[::1000] = 1
        one, other = pair(64, 1, dtype=dtype)
        tracemalloc.start()
        try:
            one.learn(x, y, 0.1, "log_loss")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes / 4
        other.learn(np.array(x, dtype), np.array(y), 0.1, "log_loss")
        assert_same_memory(one, memory_of(other))


def test_large_batches_take_little_memory():
    """All rows one batch, in an order: they are gathered in parts."""
    x, y = data("squared_error", 1 << 16, 64, 1)
    order = np.random.default_rng(0).permutation(len(x))
    one, other = pair(64, 1)
    tracemalloc.start()
    try:
        one.learn(x, y, 0.1, batch_size=len(x), order=order)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4
    reference.learn(other, x, y, 0.1, batch_size=len(x), order=order)
    assert_same_memory(one, memory_of(other))


# ---- what is learned


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_adaptive_is_adagrad(dtype, outputs, batch_size):
    """Against Duchi, Hazan and Singer's formula in plain NumPy."""
    x, y = data("squared_error", 40, 6, outputs, dtype)
    layer = Linear(6, outputs, dtype=dtype, rng=0)
    w = np.hstack([layer.weight, layer.bias[:, None]]).astype(np.float64)
    squares = np.zeros_like(w)
    ones = np.hstack([x, np.ones((40, 1))]).astype(np.float64)
    for begin in range(0, 40, batch_size):
        rows = slice(begin, begin + batch_size)
        gradient = (ones[rows] @ w.T - y[rows].reshape(-1, outputs)).T @ ones[rows] / len(ones[rows])
        squares += gradient**2
        w -= 0.1 * gradient / (np.sqrt(squares) + 1e-10)
    layer.learn(x, y, 0.1, batch_size=batch_size, adaptive=True)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(layer.weight, w[:, :-1], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.grad_bias, squares[:, -1], rtol=tolerance)


def test_adaptive_steps_go_on(dtype):
    """The sums of squares are the layer's: they are pickled with it, and zero_grad begins anew."""
    x, y = data("log_loss", 40, 6, 1, dtype)
    whole, parts = pair(6, 1, dtype=dtype)
    whole.learn(x, y, 0.1, "log_loss", adaptive=True)
    parts.learn(x[:20], y[:20], 0.1, "log_loss", adaptive=True)
    parts = pickle.loads(pickle.dumps(parts))
    parts.learn(x[20:], y[20:], 0.1, "log_loss", adaptive=True)
    assert_same_memory(parts, memory_of(whole))
    parts.zero_grad()
    new = Linear.from_weights(parts.weight, parts.bias)
    parts.learn(x, y, 0.1, "log_loss", adaptive=True)
    new.learn(x, y, 0.1, "log_loss", adaptive=True)
    assert_same_memory(parts, memory_of(new))


def test_the_bias_has_no_penalty():
    layer = Linear.from_weights(np.ones((1, 2)), np.ones(1))
    layer.learn([[0.0, 0.0]], [1.0], lr=0.5, l2=1.0)
    assert layer.weight.tolist() == [[0.5, 0.5]]
    assert layer.bias.tolist() == [1]


def test_nan_spreads(isa, dtype):
    """It comes back as the loss, and the docstring's line finds the row."""
    x, y = data("log_loss", 20, 5, 1, dtype)
    x[7, 2] = np.nan
    layer = Linear(5, 1, dtype=dtype, rng=0)
    assert np.isnan(layer.learn(x, y, 0.1, "log_loss"))
    assert np.isnan(layer.weight).all()
    assert np.flatnonzero(~np.isfinite(x).all(axis=1)).tolist() == [7]


def test_rows_of_the_layers_own_memory(isa):
    """What learning would change is read before."""
    layer = Linear(4, 4, dtype=np.float64, rng=0)
    other = Linear.from_weights(layer.weight, layer.bias)
    weight = layer.weight.copy()
    layer.learn(layer.weight, layer.weight.T, 0.1)
    other.learn(weight, weight.T, 0.1)
    assert_same_memory(layer, memory_of(other))


# ---- bad input

X, Y = np.ones((6, 3), np.float32), np.zeros(6, np.float32)
CLASSES = np.zeros(6, int)
BAD = {
    "features": ((X[:, :2], Y, 0.1), {}, "X must have 3 features in its last axis, got shape (6, 2)"),
    "axes": ((X[None], Y, 0.1), {}, "X must have shape (rows, 3), or (3,) for one row, got shape (1, 6, 3)"),
    "dtype of X": ((X.astype(np.float64), Y, 0.1), {}, "X has dtype float64, which does not cast safely"),
    "rows of y": ((X, Y[:5], 0.1), {}, "y must have shape (6,) to match X, got (5,)"),
    "axes of y": ((X, np.zeros((6, 2), np.float32), 0.1), {}, "y must have shape (6,) to match X, got (6, 2)"),
    "dtype of y": ((X, Y.astype(np.float64), 0.1), {}, "y has dtype float64, which does not cast safely"),
    "one row, two targets": ((X[0], [1.0, 2.0], 0.1), {}, "y must have shape (1,) to match X, got (2,)"),
    "loss": ((X, Y, 0.1), {"loss": "log"}, "loss must be one of squared_error, huber, hinge, log_loss, got 'log'"),
    "kind of loss": ((X, Y, 0.1), {"loss": None}, "loss must be one of"),
    "label": ((X, [0, 1, 0, 2, 1, 1], 0.1), {"loss": "hinge"}, "y must be labels from 0 to 1, got 2 at 3"),
    "negative label": ((X, CLASSES - 1, 0.1), {"loss": "log_loss"}, "y must be labels from 0 to 1, got -1 at 0"),
    "label of one row": ((X[0], 2, 0.1), {"loss": "log_loss"}, "y must be labels from 0 to 1, got 2 at 0"),
    "huge label": ((X[0], 2**70, 0.1), {"loss": "log_loss"}, "y must be integers, got object"),
    "floats as labels": ((X, Y, 0.1), {"loss": "log_loss"}, "y must be integers, got float32"),
    "rate": ((X, Y, "0.1"), {}, "lr must be a number"),
    "rates": ((X, Y, [0.1] * 5), {}, "lr must be a number or have shape (6,), one for each batch, got shape (5,)"),
    "rates of batches": ((X, Y, [0.1] * 6), {"batch_size": 4}, "lr must be a number or have shape (2,)"),
    "complex rates": ((X, Y, [1j] * 6), {}, "lr must be a number or one for each batch, real and of one axis"),
    "rates beyond": ((X, Y, [1e300] * 6), {}, "lr must fit float32, got 1e+300 for step 0"),
    "rate beyond": ((X, Y, 1e300), {}, "lr must fit float32, got 1e+300"),
    "masked rates": ((X, Y, np.ma.masked_array([0.1] * 6, [1] * 6)), {}, "lr is a masked array"),
    "batch": ((X, Y, 0.1), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "kind of batch": ((X, Y, 0.1), {"batch_size": 1.5}, "batch_size must be an integer, got float 1.5"),
    "penalty": ((X, Y, 0.1), {"l2": -1}, "l2 must be finite and not negative, got -1"),
    "infinite penalty": ((X, Y, 0.1), {"l2": np.inf}, "l2 must be finite and not negative, got inf"),
    "no penalty": ((X, Y, 0.1), {"l2": np.nan}, "l2 must be finite and not negative, got nan"),
    "weights": ((X, Y, 0.1), {"sample_weight": Y[:2]}, "sample_weight must have shape (6,) to match X, got (2,)"),
    "kind of weights": ((X, Y, 0.1), {"sample_weight": 1j * Y}, "sample_weight has dtype complex64"),
    "order": ((X, Y, 0.1), {"order": [0, 6]}, "order must be indices of rows from 0 to 5, got 6 at 1"),
    "negative order": ((X, Y, 0.1), {"order": [0, -1]}, "order must be indices of rows from 0 to 5, got -1 at 1"),
    "kind of order": ((X, Y, 0.1), {"order": [0.0]}, "order must be integers, got float64"),
    "mask as order": ((X, Y, 0.1), {"order": Y == 0}, "order must be integers, got bool"),
    "axes of order": ((X, Y, 0.1), {"order": [[0]]}, "order must have one axis"),
    "order of one row": ((X[0], 0.0, 0.1), {"order": [0]}, "order must have one axis"),
    "masked": ((np.ma.masked_array(X), Y, 0.1), {}, "X is a masked array"),
    "masked labels": ((X, np.ma.masked_array(CLASSES), 0.1), {"loss": "hinge"}, "y is a masked array"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(isa, what):
    """An error that says what was expected and what came, and nothing has changed."""
    arguments, options, message = BAD[what]
    layer = Linear(3, 1, rng=0)
    with unchanged(layer, X, Y), pytest.raises((TypeError, ValueError)) as error:
        layer.learn(*arguments, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("outputs", [1 << 40, 1 << 59])
def test_scores_that_no_memory_holds(outputs):
    """Of so many outputs the scores of a batch, and the cost of a row, are beyond 64 bits: an error, and no crash."""
    layer, rows = Linear(0, outputs, bias=False), 1 << 22
    with pytest.raises((ValueError, MemoryError)):
        layer.learn(np.empty((rows, 0), np.float32), np.zeros(rows, np.int8), 0.1, "log_loss", batch_size=rows)


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_far_into_a_stream_comes_before_its_first_row(place):
    """Labels and indices are looked at as a whole first, however many blocks there are."""
    rows = 1 << 19
    layer, x = Linear(2, 1, rng=0), np.ones((rows, 2), np.float32)
    bad = np.zeros(rows, np.int32)
    bad[-1] = rows
    arguments = (bad, None) if place else (np.zeros(rows, int), bad)
    with unchanged(layer), pytest.raises(ValueError, match=f"got {rows} at {rows - 1}"):
        layer.learn(x, arguments[0], 0.1, "log_loss", order=arguments[1])


def test_a_frozen_parameter_stops_the_call():
    layer = Linear(3, 1, rng=0)
    layer.bias.flags.writeable = False
    for x, y in ((X, Y), (X[0], 0.0)):
        with unchanged(layer), pytest.raises(ValueError, match="read-only"):
            layer.learn(x, y, 0.1)


def test_a_layer_whose_init_was_not_called():
    with pytest.raises(RuntimeError, match="__init__ was not called"):
        Linear.__new__(Linear).learn(X, Y, 0.1)


# ---- interrupted, on threads, with hostile arguments


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
@pytest.mark.parametrize(("outputs", "batch_size"), [(1, 1), (3, 4)])
def test_a_signal_comes_between_blocks(compiled_isa, outputs, batch_size):
    """Ctrl-C when the first block has been learned: the layer has learned as many rows as the exception says, whole
    batches, and learning can go on from there."""
    some, _ = data("squared_error", 1, 4, outputs)
    x = np.broadcast_to(some, (1 << 30, 4))  # more rows than anyone waits for, in 16 bytes
    y = np.broadcast_to(np.float32(0.5), (1 << 30, outputs) if outputs > 1 else 1 << 30)
    layer, other = pair(4, outputs)
    ended = threading.Event()

    def interrupt():
        while np.array_equal(layer.weight, other.weight) and not ended.is_set():
            time.sleep(1e-4)
        if not ended.is_set():
            _thread.interrupt_main()

    # Programs in the background of a shell are begun with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt) as error:
            layer.learn(x, y, 0.01, batch_size=batch_size)
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    done = error.value.rows_learned
    assert 0 < done < len(x)
    assert done % batch_size == 0
    other.learn(x[:done], y[:done], 0.01, batch_size=batch_size)
    assert_same_memory(layer, memory_of(other))


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_handler_that_frees_the_rows():
    """Between two blocks a handler resizes X: the call sees it."""
    x = np.zeros((1 << 20, 4), np.float32)
    y = np.zeros(1 << 20, np.float32)
    layer = Linear(4, 1, rng=0)
    freed = []

    def handler(*_):
        freed.append(1)
        x.resize((1, 4), refcheck=False)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        with pytest.raises((RuntimeError, ValueError)):
            layer.learn(x, y, 0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert freed


HANDLED = """
import signal, sys, time
import numpy as np
from fastlinear import Linear
rows = 1 << 22
x, y = np.zeros((rows, 4), np.float32), np.zeros(rows, np.int32)
layer, handled = Linear(4, 1, rng=0), []
def handler(*_):
    handled.append(1)
    {code}
begin = time.perf_counter()
y.min()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, (time.perf_counter() - begin) * {when})
try:
    layer.learn(x, y, 0.01, "log_loss")
except (RuntimeError, ValueError):
    pass
while not handled:
    pass
assert np.isfinite(layer.weight).all()
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("when", [0.5, 4])
@pytest.mark.parametrize(
    "code", ["x.resize((1, 4), refcheck=False)", "y.resize(1, refcheck=False)", "x.shape = x.shape[::-1]"]
)
def test_a_handler_while_labels_are_checked_or_converted(code, when):
    """It reshapes or frees what the call has looked at already: nothing is read out of bounds."""
    result = python(HANDLED.format(code=code, when=when))
    assert result.returncode == 0, result.stderr


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_layer_that_is_frozen_between_blocks(adaptive):
    """Nothing is written to it from then on, and the exception says how many rows it has learned."""
    x = np.broadcast_to(np.ones(4, np.float32), (1 << 40, 4))  # more rows than anyone waits for
    y = np.broadcast_to(np.float32(0.5), 1 << 40)
    layer, start, frozen = Linear(4, 1, rng=0), Linear(4, 1, rng=0), []

    def handler(*_):
        if frozen:  # and still learning
            raise TimeoutError
        if not np.array_equal(layer.weight, start.weight):
            (layer.grad_bias if adaptive else layer.weight).flags.writeable = False
            frozen.append(memory_of(layer))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-2, 0.1)
        with pytest.raises(ValueError, match="read-only") as error:
            layer.learn(x, y, 0.01, adaptive=adaptive)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < error.value.rows_learned < len(x)
    assert_same_memory(layer, frozen[0])


def test_what_a_label_raises_comes_through():
    class Label(np.int64):
        def __index__(self):
            raise KeyError("no label")

    layer = Linear(3, 1, rng=0)
    with unchanged(layer), pytest.raises(KeyError, match="no label"):
        layer.learn(X[0], Label(1), 0.1, "log_loss")


@pytest.mark.thread_unsafe(reason="makes its own threads")
def test_eight_threads_on_layers_of_their_own(compiled_isa):
    x, y = data("log_loss", 20_000, 20, 1)
    alone = Linear(20, 1, rng=0)
    alone.learn(x, y, 0.1, "log_loss")
    layers = [Linear(20, 1, rng=0) for _ in range(8)]
    threads = [threading.Thread(target=layer.learn, args=(x, y, 0.1, "log_loss")) for layer in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer in layers:
        assert_same_memory(layer, memory_of(alone))


@pytest.mark.thread_unsafe(reason="makes its own threads")
def test_others_run_meanwhile(compiled_isa):
    """Another thread runs during a call, although nobody takes the GIL from who has it."""
    x, y = data("log_loss", 1 << 17, 20, 1)
    order = np.tile(np.arange(len(x)), 8)
    layer, seen = Linear(20, 1, rng=0), [0]
    ended, begun = threading.Event(), threading.Event()

    def other():
        while not ended.is_set():
            seen[0] += 1
            begun.set()
            time.sleep(1e-4)

    thread = threading.Thread(target=other)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread.start()
        begun.wait()
        before = seen[0]
        layer.learn(x, y, 0.1, "log_loss", order=order)
        after = seen[0]
        ended.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert after > before


class Code:
    """A number that runs code when it is asked for."""

    def __init__(self, value, code):
        self.value, self.code = value, code

    def __float__(self):
        self.code()
        return float(self.value)

    def __index__(self):
        self.code()
        return self.value


@pytest.mark.parametrize("name", ["lr", "l2", "batch_size"])
@pytest.mark.parametrize("rows", [1, 6])
def test_python_code_in_the_midst_of_a_call(name, rows):
    """Numbers that reshape and resize the arrays: the call learns from what is there after, or raises."""
    for code in (
        lambda x, y: x.resize((2, 2), refcheck=False),
        lambda x, y: y.resize(1, refcheck=False),
        lambda x, y: setattr(x, "shape", x.shape[::-1]),
    ):
        x, y = X[:rows].copy(), Y[:rows].copy()
        layer = Linear(3, 1, rng=0)
        options = {"lr": 0.1} | {name: Code(1, lambda x=x, y=y, code=code: code(x, y))}
        try:
            layer.learn(x, y, **options)
        except (ValueError, RuntimeError):
            continue
        assert np.isfinite(layer.weight).all()


def test_labels_that_change_meanwhile():
    """What another thread makes of y after it was checked leads no kernel astray: the call learns, or raises."""
    layer, x = Linear(8, 3, rng=0), np.ones((1 << 17, 8), np.float32)
    y, stop = np.zeros(1 << 17, int), threading.Event()

    def change():
        while not stop.is_set():
            y[::7] = 10**12
            y[::7] = 2

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(10):
            with contextlib.suppress(ValueError, RuntimeError):
                layer.learn(x, y, 0.01, "log_loss")
    finally:
        stop.set()
        thread.join()
    assert np.isfinite(layer.weight).all()


def test_the_reference_learns_too():
    """The specification runs on any kernels, the reference's among them."""
    x, y = data("log_loss", 50, 5, 1)
    layer, other = pair(5, 1)
    value = reference.learn(layer, x, y, 0.1, "log_loss")
    before = fastlinear.isa
    try:
        fastlinear._dispatch.use("reference")
        assert other.learn(x, y, 0.1, "log_loss") == pytest.approx(value, rel=1e-5)
    finally:
        fastlinear._dispatch.use(before)
    np.testing.assert_allclose(layer.weight, other.weight, rtol=1e-4, atol=1e-6)
    assert_same_bits(np.asarray(layer.dtype), np.asarray(other.dtype))
