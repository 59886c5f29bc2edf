"""Sequential: to the bit what its parts compute one after another, in every shape and layout, with and without a tape;
what it takes, what it refuses, and how it moves."""

import copy
import gc
import math
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, Sequential, _dispatch, reference, verify
from fastlinear._network import Tape

from .helpers import DTYPES, assert_same_bits, misaligned, read_only

ACTIVATIONS = reference.ACTIVATIONS[1:]
HIDDEN = ACTIVATIONS[:-1]


def random_net(rng, dtype, depth=None, most=300, ends=None):
    """A net of random widths and activations, and how many rows to try it with."""
    depth = depth or int(rng.integers(1, 7))
    widths = [int(w) for w in np.exp(rng.uniform(0, math.log(most), depth + 1))]
    if rng.random() < 0.1:
        widths[int(rng.integers(depth + 1))] = 0
    parts = []
    for n in range(depth):
        parts.append(Linear(*widths[n : n + 2], bias=bool(rng.random() < 0.8), dtype=dtype, rng=rng))
        last = n == depth - 1
        if rng.random() < 0.75:
            parts.append(str(rng.choice(ACTIVATIONS if last else HIDDEN)))
    return Sequential(*parts), int(rng.choice([0, 1, 2, 3, 7, 17, 33, 70]))


def batch(rng, net, shape):
    x = rng.standard_normal((*shape, net.in_features)).astype(net.dtype)
    return x, rng.standard_normal((*shape, net.out_features)).astype(net.dtype)


def elementwise():
    return _dispatch.load(fastlinear.isa, "_elementwise")


def rows_of(a):
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def activate(name, x):
    out = np.empty_like(x)
    elementwise().activate(ACTIVATIONS.index(name) + 1, rows_of(x), rows_of(out))
    return out


def derivative(name, grad_output, output, before):
    out = np.empty_like(grad_output)
    arrays = map(rows_of, (grad_output, output, before, out))
    elementwise().derivative(ACTIVATIONS.index(name) + 1, *arrays)
    return out


def part_by_part(net, x):
    """x, and what each part makes of it, through the public calls of the parts."""
    values = [np.ascontiguousarray(x)]
    for part in net:
        values.append(activate(part, values[-1]) if isinstance(part, str) else part(values[-1]))
    return values


def back_part_by_part(net, values, gradient, back):
    """grad_input; back(layer, x, grad_output) is the backward of a layer."""
    for place, part in reversed(list(enumerate(net))):
        if isinstance(part, str):
            gradient = derivative(part, gradient, values[place + 1], values[place])
        else:
            gradient = back(part, values[place], gradient)
    return gradient


def memory_of(net):
    names = ("weight", "bias", "grad_weight", "grad_bias")
    return [
        None if getattr(layer, name) is None else getattr(layer, name).tobytes()
        for layer in net.layers
        for name in names
    ]


def assert_same_memory(net, other):
    assert memory_of(net) == memory_of(other)


def assert_is_its_parts(net, x, grad_output):
    values = part_by_part(net, x)
    assert_same_bits(net(x), values[-1], f"{net!r} forward")
    tape = net.record(x)
    assert_same_bits(tape.output, values[-1], f"{net!r} tape")

    alone, whole = copy.deepcopy(net), net
    for scale in (1.0, 0.5):
        gx = whole.backward(tape, grad_output, scale=scale)
        expected = back_part_by_part(alone, values, grad_output, lambda p, x, g, s=scale: p.backward(x, g, scale=s))
        assert_same_bits(gx, expected, f"{net!r} grad_input")
        assert_same_memory(whole, alone)
    assert whole.backward(tape, grad_output, input_grad=False) is None
    back_part_by_part(alone, values, grad_output, lambda p, x, g: p.backward(x, g))
    assert_same_memory(whole, alone)

    gx = whole.backward_update(tape, grad_output, 0.25)
    expected = back_part_by_part(alone, values, grad_output, lambda p, x, g: p.backward_update(x, g, 0.25))
    assert_same_bits(gx, expected, f"{net!r} grad_input of an update")
    assert_same_memory(whole, alone)

    whole.step(0.125)
    for layer in alone.layers:
        layer.step(0.125)
    assert_same_memory(whole, alone)
    whole.zero_grad()
    assert not any(np.any(layer.grad_weight) for layer in whole.layers)
    assert not any(np.any(layer.grad_bias) for layer in whole.layers if layer.bias is not None)


@pytest.mark.parametrize("seed", range(12))
def test_a_net_is_its_parts(compiled_isa, dtype, seed):
    """Output, tape, gradients, updates and steps of random nets, to the bit."""
    rng = np.random.default_rng(seed)
    net, rows = random_net(rng, dtype)
    assert_is_its_parts(net, *batch(rng, net, (rows,)))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 500))
def test_many_nets_are_their_parts(compiled_isa, dtype, seed):
    """The same of more of them."""
    rng = np.random.default_rng(seed)
    net, rows = random_net(rng, dtype)
    assert_is_its_parts(net, *batch(rng, net, (rows,)))


@pytest.mark.parametrize("seed", range(3))
def test_a_net_is_its_parts_in_the_reference(dtype, seed):
    """The reference runs its parts' functions on the same arrays, and rounds as they do."""
    before = fastlinear.isa
    fastlinear.isa = _dispatch.REFERENCE
    _dispatch.use(_dispatch.REFERENCE)
    try:
        rng = np.random.default_rng(seed)
        net, rows = random_net(rng, dtype, most=40)
        x, grad_output = batch(rng, net, (rows,))
        values = part_by_part(net, x)
        np.testing.assert_allclose(net(x), values[-1], rtol=1e-5)
        tape, alone = net.record(x), copy.deepcopy(net)
        np.testing.assert_array_equal(tape.output, net(x))
        gx = net.backward(tape, grad_output)
        expected = back_part_by_part(alone, values, grad_output, lambda p, x, g: p.backward(x, g))
        np.testing.assert_allclose(gx, expected, rtol=1e-4, atol=1e-6)
        for layer, other in zip(net.layers, alone.layers, strict=True):
            np.testing.assert_allclose(layer.grad_weight, other.grad_weight, rtol=1e-4, atol=1e-6)
        net.backward_update(tape, grad_output, 0.25)
        back_part_by_part(alone, values, grad_output, lambda p, x, g: p.backward_update(x, g, 0.25))
        for layer, other in zip(net.layers, alone.layers, strict=True):
            np.testing.assert_allclose(layer.weight, other.weight, rtol=1e-4, atol=1e-6)
    finally:
        fastlinear.isa = before
        _dispatch.use(before)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation(compiled_isa, dtype, name):
    """Behind the last layer, and where it may be also before it, by both kinds of derivative."""
    rng = np.random.default_rng(0)
    hidden = name if name in HIDDEN else "tanh"
    net = Sequential(Linear(5, 33, dtype=dtype, rng=0), hidden, Linear(33, 9, dtype=dtype, rng=1), name)
    assert_is_its_parts(net, *batch(rng, net, (6,)))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (2, 1, 3)], ids=str)
def test_leading_axes(isa, dtype, shape):
    """Vectors, batches, more axes and none of them: as the rows one by one."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(7, 20, dtype=dtype, rng=0), "relu", Linear(20, 3, dtype=dtype, rng=1))
    x, grad_output = batch(rng, net, shape)
    y, tape = net(x), net.record(x)
    gx = net.backward(tape, grad_output)
    assert (y.shape, tape.output.shape, gx.shape) == ((*shape, 3), (*shape, 3), x.shape)
    for n, row in enumerate(rows_of(x)):
        tape = net.record(row)
        got = net(row), tape.output, net.backward(tape, rows_of(grad_output)[n])
        for one, whole in zip(got, (y, y, gx), strict=True):
            if isa == _dispatch.REFERENCE:  # whose sums are in the order of NumPy's BLAS
                np.testing.assert_allclose(one, rows_of(whole)[n], rtol=1e-4, atol=1e-6)
            else:
                assert_same_bits(one, rows_of(whole)[n])


@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0), (0, 5, 0)], ids=str)
def test_sizes_of_zero(isa, dtype, sizes):
    """A width of 0 anywhere: what is after it is the bias."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(*sizes[:2], dtype=dtype, rng=0), "relu", Linear(*sizes[1:], dtype=dtype, rng=1))
    x, grad_output = batch(rng, net, (4,))
    values = part_by_part(net, x)
    assert_same_bits(net(x), values[-1])
    tape = net.record(x)
    assert_same_bits(tape.output, values[-1])
    assert net.backward(tape, grad_output).shape == x.shape
    assert net.backward_update(tape, grad_output, 0.5).shape == x.shape


def test_rows_that_have_nothing_in_them():
    """More rows than could be counted through: of no features, and nothing is asked of them."""
    net = Sequential(Linear(0, 4, rng=0), "relu", Linear(4, 0, rng=1))
    rows = np.empty((1 << 40, 0), np.float32)
    assert net(rows).shape == rows.shape
    with pytest.raises(MemoryError, match="tape"):
        net.record(np.empty((1 << 60, 0), np.float32))


BLOCKS = [(64, 3000), (300, 700), (2048, 150)]


@pytest.mark.parametrize(("width", "rows"), BLOCKS)
def test_blocks_of_rows(compiled_isa, dtype, width, rows):
    """Batches of several blocks: a row's bits are those it has alone, and the gradients those of the whole batch."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(5, width, dtype=dtype, rng=0), "relu", Linear(width, 4, dtype=dtype, rng=1), "tanh")
    x, grad_output = batch(rng, net, (rows,))
    assert_is_its_parts(net, x, grad_output)
    y = net(x)
    for row in (0, 1, rows // 2, rows - 1):
        assert_same_bits(net(x[row]), y[row])


@pytest.mark.parametrize("threads_wanted", [1, 2, 3, 5])
def test_threads(compiled_isa, threads, dtype, threads_wanted):
    """Rows or outputs shared among threads: the same bits."""
    rng = np.random.default_rng(0)
    for sizes, rows in (((64, 512, 64), 300), ((1500, 1500, 3), 2), ((8, 64, 2), 40000)):
        parts = [Linear(a, b, dtype=dtype, rng=0) for a, b in pairwise(sizes)]
        net = Sequential(parts[0], "relu", parts[1], "sigmoid")
        x, grad_output = batch(rng, net, (rows,))
        threads(1)
        one = copy.deepcopy(net)
        expected = one(x), one.backward(one.record(x), grad_output)
        threads(threads_wanted)
        assert_same_bits(net(x), expected[0])
        assert_same_bits(net.backward(net.record(x), grad_output), expected[1])
        assert_same_memory(net, one)


def test_a_batch_in_parts(compiled_isa, dtype):
    """Gradients of consecutive parts of a batch add up to the whole's, to the bit."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(9, 31, dtype=dtype, rng=0), "tanh", Linear(31, 4, dtype=dtype, rng=1))
    x, grad_output = batch(rng, net, (23,))
    other = copy.deepcopy(net)
    whole = net.backward(net.record(x), grad_output)
    parts = [
        other.backward(other.record(x[a:b]), grad_output[a:b]) for a, b in ((0, 1), (1, 2), (2, 10), (10, 10), (10, 23))
    ]
    assert_same_bits(np.concatenate(parts), whole)
    assert_same_memory(net, other)


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


LAYOUTS = [
    np.asfortranarray,
    strided,
    swapped,
    misaligned,
    read_only,
    np.ndarray.tolist,
    lambda a: a.astype(np.float16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts_and_lists(isa, dtype, layout):
    """Arguments of any layout, of a dtype that casts safely, and lists."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(6, 20, dtype=dtype, rng=0), "relu", Linear(20, 3, dtype=dtype, rng=1))
    x, grad_output = (a.astype(np.float16).astype(dtype) for a in batch(rng, net, (8,)))
    other = copy.deepcopy(net)
    tape = net.record(layout(x))
    assert_same_bits(net(layout(x)), other(x))
    assert_same_bits(tape.output, other(x))
    assert_same_bits(net.backward(tape, layout(grad_output)), other.backward(other.record(x), grad_output))
    net.backward_update(tape, layout(grad_output), 0.5)
    other.backward_update(other.record(x), grad_output, 0.5)
    assert_same_memory(net, other)


def test_out(isa, dtype):
    """out is what is returned, and may lie anyhow and overlap anything: x, itself, parameters, gradients."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(4, 9, dtype=dtype, rng=0), "relu", Linear(9, 4, dtype=dtype, rng=1))
    x, grad_output = batch(rng, net, (300,))
    y, one = net(x), copy.deepcopy(net)
    gx = one.backward(one.record(x), grad_output)
    for out in (np.empty_like(y), strided(y), misaligned(y), np.asfortranarray(y)):
        assert net(x, out=out) is out
        np.testing.assert_array_equal(out, y)
        two = copy.deepcopy(net)
        assert two.backward(two.record(x), grad_output, out=out) is out
        np.testing.assert_array_equal(out, gx)
        assert_same_memory(one, two)
    memory = np.zeros((301, 4), dtype)
    memory[:300] = x
    assert_same_bits(net(memory[:300], out=memory[1:]), y)
    memory[:300] = x
    assert_same_bits(net(memory[:300], out=memory[:300]), y)
    memory[1:] = grad_output
    two = copy.deepcopy(net)
    assert_same_bits(two.backward(two.record(x), memory[1:], out=memory[:300]), gx)
    before = net(x[:4])
    assert_same_bits(net(x[:4], out=net.layers[1].weight.ravel()[:16].reshape(4, 4)), before)


def test_grad_output_that_backward_writes_to(isa, dtype):
    """grad_output on gradients or weights of the net: as if it were apart."""
    net = Sequential(Linear(4, 4, dtype=dtype, rng=0), "relu", Linear(4, 4, dtype=dtype, rng=1))
    x = np.ones((4, 4), dtype)
    for place in (0, 1):
        one, two = copy.deepcopy(net), copy.deepcopy(net)
        one.layers[place].grad_weight[...] = two.layers[place].grad_weight[...] = np.arange(16).reshape(4, 4)
        gx = one.backward(one.record(x), one.layers[place].grad_weight)
        assert_same_bits(two.backward(two.record(x), two.layers[place].grad_weight.copy()), gx)
        assert_same_memory(one, two)
        gx = one.backward_update(one.record(x), one.layers[place].weight, 0.5)
        assert_same_bits(two.backward_update(two.record(x), two.layers[place].weight.copy(), 0.5), gx)
        assert_same_memory(one, two)


# ---- the tape


def two_layers(dtype=np.float32):
    return Sequential(Linear(3, 8, dtype=dtype, rng=0), "silu", Linear(8, 2, dtype=dtype, rng=1))


def test_a_tape_stands_by_itself(isa, dtype):
    """x may change after record, and so may the weights: backward uses x as it was and the weights as they are."""
    net, x, grad_output = two_layers(dtype), np.ones((5, 3), dtype), np.ones((5, 2), dtype)
    tape, other = net.record(x), copy.deepcopy(net)
    other_tape = other.record(x)
    x[...] = np.nan
    assert_same_bits(net.backward(tape, grad_output), other.backward(other_tape, grad_output))
    assert_same_bits(net.backward(tape, grad_output), other.backward(other_tape, grad_output))
    assert_same_memory(net, other)
    net.layers[1].weight[...] = 0
    assert not net.backward(tape, grad_output).any()


def test_a_tape_again(isa, dtype):
    """Written again in its place, for the same batch shape; an output from before shows the new values."""
    net, rng = two_layers(dtype), np.random.default_rng(0)
    first, second = (rng.standard_normal((2, 3, 3)).astype(dtype) for _ in range(2))
    tape = net.record(first)
    output = tape.output
    assert net.record(second, tape) is tape
    assert net.record(second, tape=tape) is tape
    assert_same_bits(output, net(second))
    assert np.shares_memory(output, tape.output)
    twin = copy.deepcopy(net)
    assert_same_bits(net.backward(tape, output), twin.backward(twin.record(second), output))


def test_the_output_of_a_tape_as_its_next_x(isa, dtype):
    """A recurrent net: x is copied before anything is written."""
    net = Sequential(Linear(4, 4, dtype=dtype, rng=0), "tanh", Linear(4, 4, dtype=dtype, rng=1))
    x = np.ones((3, 4), dtype)
    tape = net.record(x)
    for _ in range(3):
        x = net(x)
        assert_same_bits(tape.output, x)
        net.record(tape.output, tape)


def test_the_output_cannot_be_written_to(isa):
    """Nor resized, nor given other memory: backward reads it."""
    net = two_layers()
    tape = net.record(np.ones((5, 3), np.float32))
    for change in (lambda a: a.__isub__(1), lambda a: a.fill(0), lambda a: a.resize(100, refcheck=False)):
        with pytest.raises(ValueError, match=r"read-only|not own its data|does not own"):
            change(tape.output)
    tape.output.shape = (2, 5)
    assert tape.output.shape == (5, 2)
    output = tape.output
    del tape, net
    gc.collect()
    assert np.isfinite(output).all()
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        output.flags.writeable = True
    assert not np.frombuffer(output.base, np.float32).flags.writeable


def test_tapes_that_do_not_fit(isa):
    """Of another net, of another batch, or none: an error that says so, and nothing has changed."""
    net, other, x = two_layers(), two_layers(), np.ones((5, 3), np.float32)
    tape, theirs, grad_output = net.record(x), other.record(x), np.ones((5, 2), np.float32)
    before, output = memory_of(net), tape.output.copy()
    for wrong in (np.ones((4, 3), np.float32), np.ones(3, np.float32), np.ones((1, 5, 3), np.float32)):
        with pytest.raises(ValueError, match=r"the tape is of a batch whose output has shape \(5, 2\), and x has"):
            net.record(wrong, tape)
    with pytest.raises(ValueError, match=r"grad_output must have shape \(5, 2\) to match the tape, got \(4, 2\)"):
        net.backward(tape, np.ones((4, 2), np.float32))
    for call in (
        lambda: net.record(x, theirs),
        lambda: net.backward(theirs, grad_output),
        lambda: net.backward_update(theirs, grad_output, 1),
    ):
        with pytest.raises(ValueError, match="must be one that this net has recorded"):
            call()
    for no_tape in (None, output, "tape", object()):
        with pytest.raises(TypeError, match=r"must be a Tape, which record\(\) gives"):
            net.backward(no_tape, grad_output)
    assert memory_of(net) == before
    assert_same_bits(tape.output, output)


def test_a_tape_is_only_made_by_record():
    """It cannot be made, copied, pickled or derived from; and an empty one is no way to a crash."""
    tape = two_layers().record(np.ones(3, np.float32))
    for make in (Tape, lambda: copy.copy(tape), lambda: copy.deepcopy(tape), lambda: pickle.dumps(tape)):
        with pytest.raises(TypeError, match="a Tape"):
            make()
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Mine", (Tape,), {})
    empty = Tape.__new__(Tape)
    assert repr(empty) == "Tape() of no net"
    with pytest.raises(TypeError, match="made by"):
        empty.output  # noqa: B018
    with pytest.raises(ValueError, match="that this net has recorded"):
        two_layers().backward(empty, np.ones(2, np.float32))
    assert repr(tape) == "<Tape of Sequential(3, 2): output of shape (2,)>"


# ---- what makes a net


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ((), ValueError, r"there must be a Linear among the parts, got \(\)"),
        (("relu", Linear(2, 3)), ValueError, "must follow a Linear, and part 0, 'relu', is the first"),
        ((Linear(2, 3), "relu", "tanh"), ValueError, "must follow a Linear, and part 2, 'tanh', follows 'relu'"),
        ((Linear(2, 3), Linear(2, 3)), ValueError, "part 1 takes 2 features, and what comes before it gives 3: Linear"),
        ((Linear(2, 3), "relu", Linear(4, 3)), ValueError, "part 2 takes 4 features, and what comes before it gives 3"),
        ((Linear(2, 3), "softmax", Linear(3, 3)), ValueError, "softmax must be the last part, and part 2 is Linear"),
        (
            (Linear(2, 3), "rleu"),
            ValueError,
            "one of relu, leaky_relu, elu, sigmoid, tanh, silu, gelu, softmax, got 'rl",
        ),
        ((Linear(2, 3), "identity"), ValueError, "got 'identity'"),
        ((Linear(2, 3), Linear(3, 2, dtype=np.float64)), ValueError, "one dtype, and part 1 has float64 after float32"),
        ((Linear(2, 3), np.tanh), TypeError, "part 1 must be a Linear or the name of an activation .*, got ufunc"),
        (([Linear(2, 3), "relu"],), TypeError, "part 0 must be a Linear .*, got list"),
        ((Linear.__new__(Linear),), RuntimeError, "has no parameters yet"),
        ((Linear,), TypeError, "part 0 must be a Linear .*, got type"),
    ],
)
def test_parts_that_make_no_net(parts, error, words):
    """Which part, and what is wrong with it."""
    with pytest.raises(error, match=words):
        Sequential(*parts)


def test_a_layer_twice():
    """The same layer at two places would need weights that change between its two uses: a net has it once."""
    layer = Linear(3, 3)
    with pytest.raises(ValueError, match="parts 0 and 2 are the same layer; a net has each layer once"):
        Sequential(layer, "relu", layer)
    assert len(Sequential(layer, "relu", copy.deepcopy(layer))) == 3


def test_the_parts():
    """layers, parts, places, iteration, sizes and repr; the net has the layers themselves."""
    first, last = Linear(3, 8, rng=0), Linear(8, 2, rng=1)
    net = Sequential(first, "gelu", last, "softmax")
    assert net.layers == (first, last)
    assert net.parts == tuple(net) == (first, "gelu", last, "softmax")
    assert net[0] is first
    assert net[-1] == "softmax"
    assert len(net) == 4
    assert (net.in_features, net.out_features, net.dtype) == (3, 2, np.float32)
    assert repr(net) == f"Sequential(\n  (0): {first!r}\n  (1): gelu\n  (2): {last!r}\n  (3): softmax\n)"
    with pytest.raises(IndexError):
        net[4]
    for name in ("layers", "parts", "in_features", "dtype"):
        with pytest.raises(AttributeError):
            setattr(net, name, None)
    last.weight[...] = last.bias[...] = 0
    np.testing.assert_array_equal(net([1, 2, 3]), [0.5, 0.5])


def test_a_net_without_parts():
    """What __init__ has not made raises, and does not crash; what it has made it keeps."""
    net = Sequential.__new__(Sequential)
    x = np.ones(3, np.float32)
    for call in (
        lambda: net(x),
        lambda: net.record(x),
        lambda: net.backward(None, x),
        lambda: net.step(1),
        net.zero_grad,
        net.state_dict,
        lambda: net.layers,
        lambda: len(net),
    ):
        with pytest.raises(RuntimeError, match="has no parameters yet"):
            call()
    assert repr(net) == "Sequential() without parts: its __init__ was not called"
    net = two_layers()
    with pytest.raises(RuntimeError, match="has its parts and keeps them"):
        net.__init__(Linear(3, 3))
    assert len(net) == 3


ONES = np.ones((5, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda net, tape: net(ONES[:, :2]),
            ValueError,
            r"Sequential\(3, 2\): x must have 3 features .* shape \(5, 2\)",
        ),
        (
            lambda net, tape: net(ONES.astype(float)),
            TypeError,
            "float64, which does not cast safely to the model's float32",
        ),
        (lambda net, tape: net(ONES, out=ONES), ValueError, r"out must have shape \(5, 2\), got \(5, 3\)"),
        (lambda net, tape: net(ONES, out=[1]), TypeError, "out must be a numpy.ndarray, got list"),
        (lambda net, tape: net(ONES, out=read_only(ONES[:, :2])), ValueError, "out must be writable"),
        (lambda net, tape: net("x"), TypeError, "x must be an array of numbers, got str 'x'"),
        (lambda net, tape: net(np.float32(1)), ValueError, "x must have 3 features"),
        (lambda net, tape: net.record(ONES[0, :2]), ValueError, "x must have 3 features"),
        (lambda net, tape: net.record(ONES * 1j), TypeError, "complex64"),
        (lambda net, tape: net.backward(tape, ONES), ValueError, "grad_output must have 2 features"),
        (lambda net, tape: net.backward(tape, ONES[:, :2], scale="x"), TypeError, "scale must be a real number"),
        (lambda net, tape: net.backward(tape, ONES[:, :2], scale=1e300), ValueError, "scale must fit float32"),
        (
            lambda net, tape: net.backward(tape, ONES[:, :2], out=ONES[:, :2]),
            ValueError,
            r"out must have shape \(5, 3\)",
        ),
        (
            lambda net, tape: net.backward(tape, ONES[:, :2], out=ONES.copy(), input_grad=False),
            ValueError,
            "out is for grad_input",
        ),
        (lambda net, tape: net.backward_update(tape, ONES[:, :2], None), TypeError, "lr must be a real number"),
        (lambda net, tape: net.backward_update(tape, ONES[:, :2], 1j), TypeError, "lr must be a real number"),
        (lambda net, tape: net.step(1e39), ValueError, "lr must fit float32"),
        (lambda net, tape: net.step(np.nan), ValueError, "lr must be finite, got nan"),
        (lambda net, tape: net.backward_update(tape, ONES[:, :2], np.inf), ValueError, "lr must be finite, got inf"),
        (lambda net, tape: net.record(np.ma.ones((5, 3), np.float32)), TypeError, "masked array"),
    ],
)
def test_bad_arguments(isa, call, error, words):
    """An error that says what was expected and what came, and nothing has changed."""
    net = two_layers()
    tape = net.record(ONES)
    net.backward(tape, ONES[:, :2])
    before, output = memory_of(net), tape.output.copy()
    with pytest.raises(error, match=words):
        call(net, tape)
    assert memory_of(net) == before
    assert_same_bits(tape.output, output)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ["weight", "bias", "grad_weight", "grad_bias"])
def test_frozen_memory(isa, place, name):
    """One array of one layer is frozen: what would write to it changes no layer."""
    net = two_layers()
    tape = net.record(ONES)
    net.backward(tape, ONES[:, :2])
    before = memory_of(net)
    getattr(net.layers[place], name).flags.writeable = False
    calls = (
        [lambda: net.backward(tape, ONES[:, :2]), net.zero_grad]
        if name.startswith("grad")
        else [
            lambda: net.backward_update(tape, ONES[:, :2], 1),
            lambda: net.step(1),
            lambda: net.load_state_dict(two_layers().astype(np.float32).state_dict()),
        ]
    )
    for call in calls:
        with pytest.raises(ValueError, match="made read-only"):
            call()
    assert memory_of(net) == before


# ---- moving state


def test_state_dict(isa, dtype):
    """PyTorch's names; copies; loaded as a whole or not at all."""
    net, other = two_layers(dtype), two_layers(dtype)
    for layer in other.layers:
        layer.reset(rng=7)
    state = net.state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not np.shares_memory(state["2.weight"], net.layers[1].weight)
    before = memory_of(other)
    for key, value, error in (
        ("2.bias", np.ones(3, dtype), ValueError),
        ("2.bias", np.ones(2, complex), TypeError),
        ("1.bias", np.ones(2, dtype), ValueError),
    ):
        with pytest.raises(error, match="Sequential"):
            other.load_state_dict(state | {key: value})
    with pytest.raises(ValueError, match=r"must have the keys .*, got \['0.bias', '0.weight', '2.weight'\]"):
        other.load_state_dict({name: a for name, a in state.items() if name != "2.bias"})
    with pytest.raises(ValueError, match=r"part 2: Linear\(8, 2\): bias must have shape \(2,\), got \(3,\)"):
        other.load_state_dict(state | {"2.bias": np.ones(3, dtype)})
    with pytest.raises(TypeError, match="must be a mapping, got list"):
        other.load_state_dict([*state])
    assert memory_of(other) == before
    other.load_state_dict(state)
    assert memory_of(other)[:2] == memory_of(net)[:2]


class Named(Sequential):
    """A subclass with attributes."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.name = "net"


class Slotted(Sequential):
    __slots__ = ("name",)

    def __init__(self, *parts):
        super().__init__(*parts)
        self.name = "net"


@pytest.mark.parametrize("kind", [Sequential, Named, Slotted])
def test_copies_and_pickles(isa, dtype, kind):
    """copy shares the layers; deepcopy, pickle and astype have their own, with the gradients; attributes come along."""
    net = kind(Linear(3, 8, dtype=dtype, rng=0), "silu", Linear(8, 2, bias=False, dtype=dtype, rng=1))
    net.backward(net.record(np.ones(3, dtype)), np.ones(2, dtype))
    assert copy.copy(net).layers == net.layers
    others = [copy.deepcopy(net), *(pickle.loads(pickle.dumps(net, protocol)) for protocol in range(2, 6))]
    for other in [copy.copy(net), *others]:
        assert type(other) is kind
        assert other.parts[1] == "silu"
        assert kind is Sequential or other.name == "net"
        assert_same_memory(net, other)
    for other in others:
        assert not set(net.layers) & set(other.layers)
        other.step(1)
        assert memory_of(other) != memory_of(net)
    wide = net.astype(np.float64)
    assert type(wide) is kind
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide.layers[0].grad_weight, net.layers[0].grad_weight)
    with pytest.raises(TypeError, match="float32 or float64"):
        net.astype(np.int64)


@pytest.mark.parametrize(
    "state", [((), None), (("relu",), None), (("x", Linear(2, 2)), None), ((3,), None), (None, None)]
)
def test_pickles_that_lie(state):
    """A state that makes no net is an error, and the net stays without parts."""
    net = Sequential.__new__(Sequential)
    with pytest.raises((TypeError, ValueError)):
        net.__setstate__(state)
    assert net.dtype is None


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files(isa, dtype, suffix, tmp_path):
    """load needs nothing but the file; one layer of it is a Linear."""
    path = tmp_path / f"net{suffix}"
    net = Sequential(Linear(3, 8, dtype=dtype, rng=0), "silu", Linear(8, 2, bias=False, dtype=dtype, rng=1), "softmax")
    net.save(path)
    for kind in (Sequential, Named):
        other = kind.load(path)
        assert type(other) is kind
        assert other.parts[1::2] == ("silu", "softmax")
        assert other.state_dict().keys() == net.state_dict().keys()
        for name, array in other.state_dict().items():
            assert_same_bits(array, net.state_dict()[name])
    layer = Linear.load(path, prefix="2.")
    assert layer.bias is None
    assert_same_bits(layer.weight, net.layers[1].weight)
    with pytest.raises(ValueError, match=r"must have the arrays '1.weight' and may have '1.bias'; missing"):
        Linear.load(path, prefix="1.")
    with pytest.raises(TypeError, match="prefix must be a str, got int"):
        Linear.load(path, prefix=1)
    with pytest.raises(ValueError, match="missing: 'weight'"):
        Linear.load(path)


def noted(path, state, note):
    from fastlinear import _files

    _files.save(state, path, note)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("note", "words"),
    [
        (None, "does not say what its parts are"),
        ("", "in no known way"),
        ("{}", "must be a list of names"),
        ("[1]", "must be a list of names"),
        ("[" * 100_000, "in no known way"),
        ('["linear"]', "surplus: '2.bias', '2.weight'"),
        ('["linear", "tanh", "linear", "linear"]', "missing: '3.weight'"),
        ('["linear", "linear", "linear"]', "missing: '1.weight'"),
        ('["tanh", "linear", "linear"]', "missing: '1.weight'"),
        ('["linear", "tanhh", "linear"]', "got 'tanhh'"),
        ('["linear", "softmax", "linear"]', "softmax must be the last part"),
        ('["linear", "tanh", "linear", "os.system"]', "got 'os.system'"),
        ("[]", "surplus"),
    ],
)
def test_files_that_lie(tmp_path, suffix, note, words):
    """What a file says of its parts must match its arrays and make a net: else an error that names the file."""
    path = tmp_path / f"net{suffix}"
    noted(path, two_layers().state_dict(), note)
    with pytest.raises(ValueError, match=words) as caught:
        Sequential.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_that_do_not_meet(tmp_path, suffix):
    """Sizes and dtypes of the arrays in a file make a net, or the error says which part does not fit."""
    path = tmp_path / f"net{suffix}"
    state, note = two_layers().state_dict(), '["linear", "tanh", "linear"]'
    for change, error, words in (
        ({"2.weight": np.ones((2, 7), np.float32)}, ValueError, "part 2 takes 7 features"),
        ({"2.weight": np.ones((2, 8)), "2.bias": np.ones(2)}, ValueError, "one dtype"),
        ({"0.weight": np.ones((8, 3), np.int32)}, TypeError, "must be float32 or float64"),
        ({"0.weight": np.ones(8, np.float32)}, ValueError, "must have shape"),
    ):
        noted(path, state | change, note)
        with pytest.raises(error, match=words) as caught:
            Sequential.load(path)
        assert str(path) in str(caught.value)
    noted(path, {}, "[]")
    with pytest.raises(ValueError, match="there must be a Linear"):
        Sequential.load(path)


def test_a_note_that_is_no_text(tmp_path):
    """Of another dtype, too long, not UTF-8, or not a string in the metadata."""
    arrays = two_layers().state_dict()
    path = tmp_path / "net.npz"
    for note, words in (
        (np.zeros(3), "must be UTF-8 in an array of uint8, got float64"),
        (np.zeros((1 << 20) + 1, np.uint8), "more than 1048576"),
        (np.full(3, 255, np.uint8), "damaged"),
    ):
        np.savez(path, parts=note, **arrays)
        with pytest.raises(ValueError, match=words):
            Sequential.load(path)
    path = tmp_path / "net.safetensors"
    noted(path, arrays, '["linear"]')
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"[\\"linear\\"]"', b"123456789012345"[: len(b'"[\\"linear\\"]"')]))
    with pytest.raises(ValueError, match="must be text in the metadata, got a int"):
        Sequential.load(path)


def test_verify(isa, dtype):
    """Errors of each part under its place, and an error where the net is not its parts."""
    rng = np.random.default_rng(0)
    net, _ = random_net(rng, dtype, depth=3, most=40)
    x, grad_output = batch(rng, net, (2, 3))
    before = memory_of(net)
    errors = verify(net, x, grad_output)
    assert {name.partition(".")[0] for name in errors} == {str(place) for place in range(len(net))}
    assert max(errors.values()) <= 4
    assert memory_of(net) == before
    with pytest.raises(ValueError, match="x must have"):
        verify(net, x[..., :-1], grad_output)


# ---- threads and memory


def test_many_threads_on_one_net(isa, dtype):
    """Calls and tapes of their own: each gets what it gets alone."""
    net, rng = two_layers(dtype), np.random.default_rng(0)
    inputs = [rng.standard_normal((rows, 3)).astype(dtype) for rows in (1, 2, 300, 5000)]
    expected = [net(x) for x in inputs]

    def work(_):
        tapes = [net.record(x) for x in inputs]
        for _ in range(20):
            for x, y, tape in zip(inputs, expected, tapes, strict=True):
                assert net(x).tobytes() == y.tobytes()
                assert net.record(x, tape).output.tobytes() == y.tobytes()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_cycles_are_collected():
    """A net in its own attribute, with a tape: the garbage collector finds it, and what outlives it still works."""
    net = Named(Linear(3, 8, rng=0), "silu", Linear(8, 2, rng=1))
    net.itself, net.tape = net, net.record(np.ones(3, np.float32))
    output, gone = net.tape.output, weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    assert np.isfinite(output).all()


def test_the_layers_outlive_nothing_they_need():
    """A net keeps its layers, a tape its net."""
    layer = Linear(3, 2, rng=0)
    net, gone = Sequential(layer), weakref.ref(layer)
    expected = layer(ONES)
    del layer
    tape = net.record(ONES)
    del net
    gc.collect()
    assert gone() is not None
    assert_same_bits(tape.output, expected)
    del tape
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype_", DTYPES)
def test_one_layer_alone(compiled_isa, dtype_):
    """A net of one Linear is that Linear."""
    layer, x = Linear(3, 2, dtype=dtype_, rng=0), np.ones((4, 3), dtype_)
    net = Sequential(layer)
    assert_same_bits(net(x), layer(x))
    assert_same_bits(net.backward(net.record(x), x[:, :2].copy()), layer.backward(x, x[:, :2].copy()))


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_verify_where_a_derivative_goes_through_0(isa, dtype, name):
    """There the error is not small beside the derivative itself, but beside the terms of its sum."""
    zero = {"silu": -1.2784645427610738, "gelu": -0.7517915936521127}[name]
    net = Sequential(Linear.from_weights(np.eye(64, dtype=dtype)), name)
    x = (zero + np.linspace(-1e-5, 1e-5, 64 * 50).reshape(50, 64)).astype(dtype)
    assert max(fastlinear.verify(net, x, np.ones_like(x)).values()) <= 4


def test_verify_of_what_is_no_model():
    with pytest.raises(TypeError, match=r"verify: model must be a Linear or a Sequential, got int"):
        fastlinear.verify(5, [1], [1])


def test_weak_references():
    """To a net, a tape and an optimiser, as to a layer."""
    net = two_layers()
    things = [net, net.record(np.ones(3, np.float32)), fastlinear.Adam(net)]
    weak = [weakref.ref(thing) for thing in things]
    assert [ref() for ref in weak] == things
    del things, net
    gc.collect()
    assert not any(ref() for ref in weak)
