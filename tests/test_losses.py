"""The losses: formulas, gradients, bits, and what they take and refuse."""

import contextlib
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlinear
from fastlinear import Linear, _dispatch, losses, reference

from .bits import FUSED
from .helpers import COMPILED, assert_same_bits, placed, wider

NUMBERS = {"squared_error": losses.squared_error, "huber": losses.huber}
LABELS = {"hinge": losses.hinge, "log_loss": losses.log_loss}
ALL = NUMBERS | LABELS
every = pytest.mark.parametrize("name", ALL)
INTEGERS = [np.dtype(code) for code in "?bBhHiIlLqQ"]
SHAPES = [(1, 1), (1, 10), (7, 1), (16, 1), (33, 1), (5, 2), (9, 3), (4, 16), (3, 17), (6, 40), (2, 100), (1000, 1)]


@pytest.fixture(params=COMPILED)
def compiled(request):
    """The module with the elementwise functions of each instruction set."""
    return _dispatch.load(request.param, "_elementwise")


def draw(name, shape, dtype, seed=0, spread=3):
    """Outputs and what they are held against."""
    rng = np.random.default_rng(seed)
    output = (spread * rng.standard_normal(shape)).astype(dtype)
    if name in NUMBERS:
        return output, (spread * rng.standard_normal(shape)).astype(dtype)
    return output, rng.integers(0, 2 if shape[-1] == 1 else shape[-1], shape[:-1])


def by_hand(name, output, against):
    """The loss of each row, in longdouble, by its definition."""
    output = output.astype(np.longdouble)
    if name in NUMBERS:
        d = np.abs(output - against)
        return np.where((name == "huber") & (d > 1), d - 0.5, d * d / 2).sum(axis=-1)
    if output.shape[-1] == 1:
        sign = np.where(against, 1, -1)
        output = sign * output[..., 0]
        return np.maximum(0, 1 - output) if name == "hinge" else np.logaddexp(0, -output)
    mine = np.arange(output.shape[-1]) == against[..., None]
    if name == "hinge":
        return np.maximum(0, 1 - np.where(mine, 1, -1) * output).sum(axis=-1)
    return np.logaddexp.reduce(output, axis=-1) - (output * mine).sum(axis=-1)


# ---- what they compute


@every
def test_values_and_gradients(isa, dtype, name):
    """By hand, and by finite differences of that, off the corners of hinge and huber."""
    eps = np.finfo(dtype).eps
    for shape in SHAPES:
        output, against = draw(name, shape, dtype)
        loss, gradient = ALL[name](output, against)
        assert type(loss) is float
        assert gradient.dtype == dtype
        assert gradient.shape == shape
        rows = by_hand(name, output, against)
        assert math.isclose(loss, rows.mean(), rel_tol=16 * eps, abs_tol=16 * eps)
        h = np.longdouble(1e-6)
        for column in range(min(shape[1], 5)):
            step = np.zeros(shape[1], np.longdouble)
            step[column] = h
            wide = output.astype(np.longdouble)
            slope = (by_hand(name, wide + step, against) - by_hand(name, wide - step, against)) / (2 * h)
            np.testing.assert_allclose(
                gradient[:, column] * shape[0], slope, rtol=0, atol=2e-6 if eps > 1e-10 else 1e-8
            )


@every
def test_the_kernels_are_near_the_reference(compiled, dtype, name):
    """In a wider dtype, with any scale; nothing beside out is written."""
    kernel, exact = getattr(compiled, name), getattr(reference, name)
    eps = np.finfo(dtype).eps
    for shape in SHAPES:
        output, against = draw(name, shape, dtype)
        out, wide = placed(np.full(shape, np.nan, dtype)), np.empty(shape, wider(dtype))
        loss = kernel(output, against, 0.3, out)
        expected = exact(
            output.astype(wide.dtype), against.astype(wide.dtype) if name in NUMBERS else against, 0.3, wide
        )
        assert math.isclose(loss, expected, rel_tol=8 * eps)
        np.testing.assert_allclose(out, wide, rtol=0, atol=4 * eps * max(1, np.abs(wide).max()))
        assert np.count_nonzero(np.isnan(out.base)) == out.base.size - out.size


def test_formulas_of_single_elements(isa, dtype):
    """Hinge and huber at their corners, as in scikit-learn: at z = 1 hinge's gradient is that of the left."""
    loss, gradient = losses.hinge(np.array([[1], [1], [-1], [3]], dtype), [1, 0, 0, 1])
    assert loss == 0.5
    assert gradient.ravel().tolist() == [-0.25, 0.25, 0.25, 0]
    loss, gradient = losses.huber(np.array([[1, -1, 0.5, 3]], dtype), np.zeros((1, 4), dtype))
    assert loss == 0.5 + 0.5 + 0.125 + 2.5
    assert gradient.tolist() == [[1, -1, 0.5, 1]]


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_scores_do_not_overflow(isa, dtype, scale):
    """Whichever class is right: the loss is the distance, the gradient 0 or ±1."""
    for label, loss in ((0, 0), (1, 2 * scale)):
        got, gradient = losses.log_loss(np.array([scale, -scale, 0], dtype), label)
        assert math.isclose(got, loss, rel_tol=1e-6, abs_tol=1e-30)
        assert gradient.tolist() == [1 - (label == 0), -(label == 1), 0]
        got, gradient = losses.log_loss(np.array([-scale], dtype), label)
        assert math.isclose(got, loss / 2, rel_tol=1e-6, abs_tol=1e-30)
        assert gradient.tolist() == [-label]


def test_small_losses_keep_their_digits(compiled_isa, dtype):
    """Of a confident row: log(1 + e) and p - 1 do not cancel, in float32 for softmax, too."""
    if dtype == np.float32:
        loss, gradient = losses.log_loss(np.array([20, 0, 0], dtype), 0)
        assert math.isclose(loss, 2 * math.exp(-20), rel_tol=1e-6)
        assert math.isclose(gradient[0], -2 * math.exp(-20), rel_tol=1e-6)
    loss, gradient = losses.log_loss(np.array([20], dtype), 1)
    assert math.isclose(loss, math.exp(-20), rel_tol=4 * np.finfo(dtype).eps + 2e-9)
    assert math.isclose(gradient[0], -math.exp(-20), rel_tol=4 * np.finfo(dtype).eps + 3e-9)


@every
@pytest.mark.parametrize("columns", [1, 4, 33])
def test_nan_spreads(isa, dtype, name, columns):
    """To the loss, and to the gradient of its element, or with softmax of its row; not to other rows."""
    output, against = draw(name, (3, columns), dtype)
    output[1, 0] = np.nan
    loss, gradient = ALL[name](output, against)
    assert math.isnan(loss)
    assert np.isnan(gradient[1, 0])
    assert np.isnan(gradient[1]).all() == (columns == 1 or name == "log_loss")
    assert np.isfinite(gradient[[0, 2]]).all()


def test_infinities(isa, dtype):
    inf = np.inf
    loss, gradient = losses.log_loss(np.array([[inf], [-inf]], dtype), [1, 0])
    assert loss == 0
    assert not gradient.any()
    loss, gradient = losses.log_loss(np.array([inf], dtype), 0)
    assert (loss, gradient.tolist()) == (inf, [1])
    loss, gradient = losses.log_loss(np.array([0, -inf, 0], dtype), 0)
    assert math.isclose(loss, math.log(2), rel_tol=1e-6)
    assert gradient.tolist() == [-0.5, 0, 0.5]
    assert losses.log_loss(np.array([0, -inf], dtype), 1)[0] == inf
    assert losses.hinge(np.array([[-inf], [inf]], dtype), [1, 1])[0] == inf
    loss, gradient = losses.huber(np.array([[-inf]], dtype), np.zeros((1, 1), dtype))
    assert (loss, gradient.tolist()) == (inf, [[-1]])


@every
def test_no_rows_and_no_outputs(isa, dtype, name):
    """The mean of no rows is NaN; no outputs lose nothing, but no label has one."""
    output, against = draw(name, (0, 3), dtype)
    loss, gradient = ALL[name](output, against)
    assert math.isnan(loss)
    assert gradient.shape == (0, 3)
    empty = np.empty((2, 0), dtype)
    if name in NUMBERS:
        assert ALL[name](empty, empty)[0] == 0
    else:
        with pytest.raises(ValueError, match=f"{name}: labels must be absent for 0 outputs, got 0 in row 0"):
            ALL[name](empty, [0, 0])


def test_the_mean_is_over_rows_of_any_axes(isa, dtype):
    for name in ALL:
        output, against = draw(name, (2, 3, 4, 5), dtype)
        loss, gradient = ALL[name](output, against)
        flat = against.reshape(24, 5) if name in NUMBERS else against.reshape(24)
        expected, expected_gradient = ALL[name](output.reshape(24, 5), flat)
        assert loss == expected
        assert_same_bits(gradient.reshape(24, 5), expected_gradient)


def test_one_row(isa, dtype):
    """1-D scores are one row, its label a number of Python's, of NumPy's or an array without axes."""
    scores = np.array([1, 3, 2], dtype)
    expected = losses.log_loss(scores[None], [1])
    for label in (1, True, np.int8(1), np.array(1), np.uint64(1)):
        loss, gradient = losses.log_loss(scores, label)
        assert loss == expected[0]
        assert_same_bits(gradient, expected[1][0])


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_each_dtype(isa, dtype, name):
    """Integers of any size and order of bytes, bools, strided, a list, a tuple: the same bits."""
    scores, labels = draw(name, (6, 2), dtype)
    expected = LABELS[name](scores, labels)
    forms = [labels.astype(kind) for kind in INTEGERS]
    forms += [labels.astype(">i4"), labels.astype(">i8"), np.repeat(labels, 2)[::2], labels.tolist(), tuple(labels)]
    for form in forms:
        loss, gradient = LABELS[name](scores, form)
        assert loss == expected[0]
        assert_same_bits(gradient, expected[1])


# ---- bits


@every
def test_the_gradient_of_a_row_is_the_same_in_every_batch(compiled, dtype, name):
    """And off the cache lines."""
    kernel = getattr(compiled, name)
    for shape in SHAPES[:-1]:
        output, against = draw(name, shape, dtype)
        whole, shifted = np.empty_like(output), placed(output, 3)
        loss = kernel(output, against, 0.3, whole)
        assert kernel(shifted, against, 0.3, shifted) == loss
        assert_same_bits(shifted, whole)
        for r in range(shape[0]):
            one = np.empty_like(output[:1])
            kernel(output[r : r + 1], against[r : r + 1], 0.3, one)
            assert_same_bits(one, whole[r : r + 1])


@every
def test_bits_do_not_depend_on_the_instruction_set(dtype, name):
    for shape in SHAPES:
        output, against = draw(name, shape, dtype)
        results = []
        for isa in FUSED:
            out = np.empty_like(output)
            results.append((getattr(_dispatch.load(isa, "_elementwise"), name)(output, against, 0.3, out), out))
        for loss, out in results[1:]:
            assert loss == results[0][0]
            assert_same_bits(out, results[0][1])


def test_the_order_of_a_sum(compiled):
    """Sixteen chains of float64, folded by halves; here each term is exact, and another order gives other bits."""
    n = 1000
    output = (2.0 ** np.random.default_rng(0).integers(-30, 30, n)).astype(np.float32).reshape(n, 1)
    chains = np.zeros(16)
    for row in np.pad(output.astype(np.float64) ** 2 / 2, ((0, -n % 16), (0, 0))).reshape(-1, 16):
        chains += row
    for w in (8, 4, 2, 1):
        chains[:w] += chains[w : 2 * w]
    assert compiled.squared_error(output, np.zeros_like(output), 1.0, np.empty_like(output)) == chains[0]
    assert chains[0] != np.sum(output.astype(np.float64)[::-1] ** 2 / 2)


# ---- out


@every
def test_out(isa, dtype, name):
    """It is returned, and may be the output, the target, overlap them, be strided, or labels' own memory."""
    for shape in ((6, 5), (40, 1)):
        output, against = draw(name, shape, dtype)
        expected, gradient = ALL[name](output, against)

        def check(output, against, out, expected=expected, gradient=gradient):
            loss, got = ALL[name](output, against, out=out)
            assert got is out
            assert loss == expected
            assert_same_bits(np.ascontiguousarray(got), gradient)

        check(output, against, np.empty_like(output))
        same = output.copy()
        check(same, against, same)
        check(output, against, np.repeat(output, 2, 1)[:, ::2])
        memory = np.empty(output.size + 3, dtype)
        memory[3:] = output.ravel()
        check(memory[3:].reshape(shape), against, memory[:-3].reshape(shape))
        if name in NUMBERS:
            target = against.copy()
            check(output, target, target)
            memory[3:] = against.ravel()
            check(output, memory[3:].reshape(shape), memory[:-3].reshape(shape))
        else:
            memory = np.zeros(8 * output.size, dtype)
            labels = memory.view(np.int64)[: shape[0]]
            labels[...] = against
            check(output, labels, memory[: output.size].reshape(shape))


@every
def test_inputs_of_any_layout(isa, dtype, name):
    """Strided, Fortran, byte-swapped, misaligned, read-only: the same bits."""
    output, against = draw(name, (6, 5), dtype)
    expected, gradient = ALL[name](output, against)
    misaligned = np.frombuffer(b"x" + output.tobytes(), np.uint8)[1:].view(dtype).reshape(6, 5)
    forms = [np.repeat(output, 2, 1)[:, ::2], np.asfortranarray(output), output.astype(output.dtype.newbyteorder())]
    for form in [*forms, misaligned]:
        loss, got = ALL[name](form, against)
        assert loss == expected
        assert_same_bits(got, gradient)
        if name in NUMBERS:
            loss, got = ALL[name](output, np.asfortranarray(against))
            assert loss == expected


def test_dtypes():
    """Small ones become float32, lists and integers float64; a target is made the output's."""
    assert losses.huber(np.ones((2, 2), np.float16), [[0, 1], [1, 2]])[1].dtype == np.float32
    assert losses.huber([[1, 2]], [[0, 1]])[1].dtype == np.float64
    assert losses.huber(np.ones((1, 1), np.float32), [[0.1]])[1] == np.float32(1) - np.float32(0.1)
    assert losses.log_loss([[1, 2]], [0])[1].dtype == np.float64


def test_tensors_are_taken():
    torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
    scores, labels = draw("log_loss", (4, 3), np.float32)
    got = losses.log_loss(torch.from_numpy(scores), torch.from_numpy(labels))
    expected = losses.log_loss(scores, labels)
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])


# ---- judges


@every
def test_torch(isa, name):
    """PyTorch's losses and autograd in float64."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    for shape in ((5, 4), (7, 1), (3, 20)):
        output, against = draw(name, shape, np.float64)
        tensor, held = torch.tensor(output, requires_grad=True), torch.tensor(against)
        if name == "squared_error":
            theirs = 0.5 * f.mse_loss(tensor, held, reduction="sum") / shape[0]
        elif name == "huber":
            theirs = f.huber_loss(tensor, held, reduction="sum") / shape[0]
        elif name == "log_loss" and shape[1] > 1:
            theirs = f.cross_entropy(tensor, held)
        elif name == "log_loss":
            theirs = f.binary_cross_entropy_with_logits(tensor, held.double()[:, None])
        else:
            sign = 2 * (held[:, None] == torch.arange(shape[1]) + (shape[1] == 1)).double() - 1
            theirs = f.relu(1 - sign * tensor).sum() / shape[0]
        theirs.backward()
        loss, gradient = ALL[name](output, against)
        assert math.isclose(loss, theirs.item(), rel_tol=1e-14)
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=1e-15)


def test_training_by_them(isa, dtype):
    """Forward, loss, backward and step: each loss falls, and log_loss separates what can be separated."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype(dtype)
    labels = np.argmax(x[:, :3], axis=1)
    layer = Linear(4, 3, dtype=dtype, rng=0)
    first = losses.log_loss(layer(x), labels)[0]
    for _ in range(200):
        loss, gradient = losses.log_loss(layer(x), labels)
        layer.backward_update(x, gradient, 2.0, input_grad=False)
    assert loss < 0.2 * first
    assert np.mean(np.argmax(layer(x), axis=1) == labels) > 0.97


# ---- what is refused, before anything is written


X, Y = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
READ_ONLY = np.zeros((4, 3), np.float32)
READ_ONLY.flags.writeable = False
REFUSED = [
    (
        lambda o: losses.huber(X, X[:, 1:], o),
        ValueError,
        r"huber: target must have shape \(4, 3\) as the output, got \(4, 2\)",
    ),
    (lambda o: losses.huber(X, X[0], o), ValueError, r"must have shape \(4, 3\) as the output, got \(3,\)"),
    (
        lambda o: losses.huber(X, X.astype(float), o),
        TypeError,
        "huber: target has dtype float64, which does not cast safely",
    ),
    (lambda o: losses.huber(X, [[1e39] * 3] * 4, o), ValueError, "huber: target must fit float32, got 1e[+]39"),
    (lambda o: losses.huber(X.astype(complex), X, o), TypeError, "huber: output must have a dtype that casts safely"),
    (lambda o: losses.huber(X.astype(object), X, o), TypeError, "huber: output must have a dtype that casts safely"),
    (lambda o: losses.huber(1.0, 1.0, None), ValueError, r"output must have at least one axis, got shape \(\)"),
    (lambda o: losses.huber(np.ma.masked_array(X), X, o), TypeError, "huber: output is a masked array"),
    (
        lambda o: losses.hinge(X, Y[:3], o),
        ValueError,
        r"hinge: labels must have shape \(4,\), one for each row of scores",
    ),
    (lambda o: losses.hinge(X, X, o), TypeError, "hinge: labels must be integers or bools, got dtype float32"),
    (lambda o: losses.hinge(X, [0, 1, 2, 2**70], o), TypeError, "labels must be integers or bools, got dtype object"),
    (lambda o: losses.hinge(X, [0, 3, 1, 5], o), ValueError, "hinge: labels must be from 0 to 2, got 3 in row 1"),
    (lambda o: losses.hinge(X, [0, 1, 1, -1], o), ValueError, "hinge: labels must be from 0 to 2, got -1 in row 3"),
    (lambda o: losses.hinge(X[:, :1], [0, 1, 2, 0], None), ValueError, "must be 0 or 1 for one output, got 2 in row 2"),
    (lambda o: losses.hinge(X[0], 3, None), ValueError, "hinge: labels must be from 0 to 2, got 3$"),
    (lambda o: losses.hinge(X[0], 2**80, None), TypeError, "labels must be integers or bools, got dtype object"),
    (lambda o: losses.log_loss(X.reshape(2, 2, 3), [[0, 1], [9, 1]], None), ValueError, "got 9 in row 1, 0"),
    (
        lambda o: losses.log_loss(X, np.array([0, 2**64 - 1, 0, 0], np.uint64), o),
        ValueError,
        f"got {2**64 - 1} in row 1",
    ),
    (lambda o: losses.log_loss(X, Y, [0]), TypeError, "log_loss: out must be a numpy.ndarray, got list"),
    (lambda o: losses.log_loss(X, Y, o.astype(float)), TypeError, "log_loss: out must have dtype float32, got float64"),
    (lambda o: losses.log_loss(X, Y, o[:, :2]), ValueError, r"log_loss: out must have shape \(4, 3\), got \(4, 2\)"),
    (lambda o: losses.log_loss(X, Y, READ_ONLY), ValueError, "log_loss: out must be writable, got a read-only array"),
    (lambda o: losses.log_loss(X, Y, np.ma.masked_array(o)), TypeError, "log_loss: out is a masked array"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_what_is_refused(isa, call, error, message):
    out = np.full((4, 3), 7, np.float32)
    with pytest.raises(error, match=message):
        call(out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", LABELS)
def test_kernels_check_their_labels(kernels_of_labels, name):
    """The kernels by themselves and the reference, as well."""
    x = np.zeros((3, 4), np.float32)
    for labels in ([0, 4, 0], [-1, 0, 0], [0, 0]):
        with pytest.raises(ValueError, match="labels has"):
            getattr(kernels_of_labels, name)(x, np.array(labels), 1.0, x)


@pytest.fixture(params=[*COMPILED, "reference"])
def kernels_of_labels(request):
    return _dispatch.load(request.param, "_elementwise")


# ---- hostile arguments, threads


class Resizing:
    """An array whose conversion changes another argument."""

    def __init__(self, array, change):
        self.array, self.change = array, change

    def __array__(self, dtype=None, copy=None):
        self.change()
        return self.array


def test_an_argument_that_changes_another():
    """What is looked at last is what the kernel gets: a changed shape is an error, and nothing is written."""
    out = np.full((4, 3), 7, np.float32)

    def change():
        out.shape = (3, 4)

    with pytest.raises(ValueError, match=r"out must have shape \(4, 3\), got \(3, 4\)"):
        losses.huber(X, Resizing(X, change), out)
    assert (out == 7).all()


@pytest.mark.thread_unsafe(reason="starts threads")
def test_labels_that_another_thread_changes(compiled_isa):
    """The kernel believes no label that it has not just looked at: values are anything, memory is not touched."""
    scores = np.zeros((20_000, 3), np.float32)
    labels, stop = np.zeros(20_000, np.int64), threading.Event()

    def spoil():
        while not stop.is_set():
            labels[:] = 2**40
            labels[:] = 0

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for name in LABELS:
            for _ in range(30):
                with contextlib.suppress(ValueError):
                    LABELS[name](scores, labels)
    finally:
        stop.set()
        thread.join()


@pytest.mark.thread_unsafe(reason="counts allocations")
def test_no_memory(compiled_isa):
    """A failed allocation is a MemoryError, and out stays as it was."""
    testcapi = pytest.importorskip("_testcapi")
    scores, labels = draw("log_loss", (4, 3), np.float32)
    for out in (None, np.full((4, 3), 7, np.float32)):
        for n in range(3):
            testcapi.set_nomemory(n, n + 1)
            try:
                losses.log_loss(scores, labels, out)
            except MemoryError:
                pass
            finally:
                testcapi.remove_mem_hooks()


@given(
    st.sampled_from(sorted(LABELS)), st.integers(1, 12), st.integers(1, 40), st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)  # fmt: skip
def test_any_shape(name, rows, columns, dtype, seed):
    """Against the reference."""
    scores, labels = draw(name, (rows, columns), dtype, seed)
    got, gradient = LABELS[name](scores, labels)
    wide = np.empty(scores.shape, np.longdouble)
    expected = getattr(reference, name)(scores.astype(np.longdouble), labels, 1 / rows, wide) / rows
    assert math.isclose(got, expected, rel_tol=1e-5 if dtype == np.float32 else 1e-13, abs_tol=1e-15)
    np.testing.assert_allclose(gradient, wide, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_public_names():
    assert fastlinear.losses is losses
    assert sorted(losses.__all__) == sorted(ALL)
