"""The interface of the layer: making it, calling it, its parameters and gradients, copies and state."""

import copy
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, _dispatch, _layer, _verify, reference

from . import emulation
from .helpers import assert_same_bits, assert_same_memory, integers, layer_of, memory_of, normal

BATCHES = [(), (1,), (0,), (3,), (2, 3), (2, 0, 3), (2, 1, 3, 2)]
SIZES = [(5, 4), (1, 1), (0, 3), (3, 0), (0, 0), (7, 1), (40, 33)]


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def bias(request):
    return request.param


def case(batch, in_features, out_features, dtype, bias=True):
    """A layer, x and grad_output with these leading axes, and exact results by formula."""
    rows = int(np.prod(batch))
    x, g, w, b = integers(rows, in_features, out_features, dtype)
    expected = SimpleNamespace(
        output=(x @ w.T + b * bias).reshape(*batch, out_features),
        grad_input=(g @ w).reshape(*batch, in_features),
        grad_weight=g.T @ x,
        grad_bias=g.sum(0),
    )
    layer = Linear.from_weights(w, b if bias else None)
    return layer, x.reshape(*batch, in_features), g.reshape(*batch, out_features), expected


# ---- making a layer


def test_attributes(dtype, bias):
    """A new layer has the sizes, dtype, shapes and layout that were asked for."""
    layer = Linear(784, 10, bias=bias, dtype=dtype, rng=0)
    assert (layer.in_features, layer.out_features, layer.dtype) == (784, 10, np.dtype(dtype))
    assert layer.weight.shape == layer.grad_weight.shape == (10, 784)
    assert layer.weight.dtype == layer.grad_weight.dtype == dtype
    assert layer.weight.flags.carray
    if bias:
        assert layer.bias.shape == layer.grad_bias.shape == (10,)
        assert layer.bias.dtype == layer.grad_bias.dtype == dtype
    else:
        assert layer.bias is None
        assert layer.grad_bias is None


def test_defaults():
    """float32 with a bias."""
    layer = Linear(3, 2)
    assert layer.dtype == np.float32
    assert layer.bias is not None


@pytest.mark.parametrize("name", ["in_features", "out_features", "dtype"])
def test_sizes_and_dtype_cannot_be_assigned(name):
    layer = Linear(3, 2)
    with pytest.raises(AttributeError):
        setattr(layer, name, getattr(layer, name))


@pytest.mark.parametrize("spelling", ["float64", "d", float, np.float64, np.dtype("f8")], ids=str)
def test_dtype_in_any_spelling(spelling):
    assert Linear(3, 2, dtype=spelling).dtype == np.float64


def test_initial_parameters_are_uniform(dtype):
    """Within ±1/sqrt(in_features), both ends nearly reached, and centred."""
    layer = Linear(400, 100, dtype=dtype, rng=0)
    for parameter in (layer.weight, layer.bias):
        assert -0.05 <= parameter.min() < -0.045
        assert 0.045 < parameter.max() <= 0.05
    assert abs(layer.weight.mean()) < 5 * 0.05 / 3**0.5 / 200
    assert layer.weight.std() == pytest.approx(0.05 / 3**0.5, rel=0.01)


def test_rng(dtype):
    """A seed and a Generator of that seed give the same layer; another seed, or the same Generator again, do not."""
    generator = np.random.default_rng(7)
    seeded, drawn, next_drawn = (Linear(5, 4, dtype=dtype, rng=rng) for rng in (7, generator, generator))
    assert_same_memory(drawn, memory_of(seeded))
    assert not np.array_equal(drawn.weight, next_drawn.weight)
    assert not np.array_equal(Linear(5, 4, rng=8).weight, Linear(5, 4, rng=7).weight)
    assert not np.array_equal(Linear(5, 4).weight, Linear(5, 4).weight)


def test_reset(dtype):
    """reset draws anew as the constructor does, stdv sets the standard deviation, gradients stay."""
    layer = Linear(300, 200, dtype=dtype, rng=0)
    layer.grad_weight[...] = 3
    memory = layer.weight
    layer.reset(rng=1)
    assert layer.weight is memory
    assert_same_bits(layer.weight, Linear(300, 200, dtype=dtype, rng=1).weight)
    layer.reset(rng=1, stdv=2)
    assert layer.weight.std() == pytest.approx(2, rel=0.01)
    assert 2 * 3**0.5 * 0.99 < abs(layer.weight).max() <= 2 * 3**0.5 * (1 + 1e-6)
    assert np.all(layer.grad_weight == 3)
    layer.reset(stdv=0)
    assert not layer.weight.any()
    assert not layer.bias.any()


def test_from_weights_copies_by_default(dtype):
    weight, bias = np.ones((4, 5), dtype), np.ones(4, dtype)
    layer = Linear.from_weights(weight, bias)
    weight[...] = bias[...] = 2
    assert np.all(layer.weight == 1)
    assert np.all(layer.bias == 1)
    assert layer.weight.dtype == dtype


def test_from_weights_shares_on_request(dtype):
    """copy=False: both ways, writing into one changes the other."""
    weight, bias = np.ones((4, 5), dtype), np.ones(4, dtype)
    layer = Linear.from_weights(weight, bias, copy=False)
    weight[0] = bias[0] = 2
    assert np.array_equal(layer(np.ones(5, dtype)), [12, 6, 6, 6])
    layer.weight[1] = layer.bias[1] = 3
    assert np.all(weight[1] == 3)
    assert bias[1] == 3


def test_from_weights_takes_other_arrays(dtype):
    """Lists, Fortran order, other byte order and a bias of a smaller dtype are copied; no bias means none."""
    weight = np.arange(20, dtype=dtype).reshape(4, 5)
    for given in (np.asfortranarray(weight), weight.astype(weight.dtype.newbyteorder())):
        layer = Linear.from_weights(given, np.arange(4, dtype=np.int8))
        assert layer.dtype == dtype
        assert_same_bits(layer.weight, weight)
        assert_same_bits(layer.bias, np.arange(4, dtype=dtype))
    assert np.array_equal(Linear.from_weights([[1.0, 2.0]]).weight, [[1, 2]])
    assert Linear.from_weights(weight).bias is None


SHARED = {
    "fortran": lambda w, b: (np.asfortranarray(w), b),
    "strided": lambda w, b: (np.repeat(w, 2, 1)[:, ::2], b),
    "strided bias": lambda w, b: (w, np.repeat(b, 2)[::2]),
    "read-only": lambda w, b: (np.broadcast_to(w, w.shape), b),
    "byte-swapped": lambda w, b: (w.astype(w.dtype.newbyteorder()), b.astype(b.dtype.newbyteorder())),
    "misaligned": lambda w, b: (np.ndarray(w.shape, w.dtype, bytearray(w.nbytes + 1), 1), b),
    "list": lambda w, b: (w.tolist(), b.tolist()),
    "list bias": lambda w, b: (w, b.tolist()),
    "other bias dtype": lambda w, b: (w, b.astype(np.float16)),
    "overlapping": lambda w, b: (w, w.reshape(-1)[:4]),
}


@pytest.mark.parametrize("given", SHARED.values(), ids=SHARED)
def test_from_weights_refuses_to_share(dtype, given):
    """What cannot be the layer's own memory is a ValueError, not a silent copy."""
    with pytest.raises(ValueError, match="copy=False needs"):
        Linear.from_weights(*given(np.ones((4, 5), dtype), np.ones(4, dtype)), copy=False)


# ---- forward and backward


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_passes(isa, dtype, bias, batch, sizes):
    """forward and each backward, any number of leading axes, sizes 0 and 1: the formulas, exactly."""
    layer, x, g, expected = case(batch, *sizes, dtype, bias)
    for forward in (layer, layer.forward):
        y = forward(x)
        assert y.shape == (*batch, layer.out_features)
        assert y.dtype == dtype
        assert np.array_equal(y, expected.output)
    backward_input, backward = layer.backward_input(g), layer.backward(x, g)
    assert_same_bits(backward_input, expected.grad_input.astype(dtype))
    assert_same_bits(backward, backward_input)
    assert np.array_equal(layer.grad_weight, expected.grad_weight)
    assert layer.backward_params(x, g, scale=-3) is None
    assert np.array_equal(layer.grad_weight, -2 * expected.grad_weight)
    if bias:
        assert np.array_equal(layer.grad_bias, -2 * expected.grad_bias)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_backward_update(isa, dtype, bias, batch, sizes):
    """grad_input from the old weights, one SGD step, and no gradient touched."""
    layer, x, g, expected = case(batch, *sizes, dtype, bias)
    old = layer.state_dict()
    layer.grad_weight[...] = 9
    assert_same_bits(layer.backward_update(x, g, 0.5), expected.grad_input.astype(dtype))
    assert np.array_equal(layer.weight, old["weight"] - 0.5 * expected.grad_weight)
    if bias:
        assert np.array_equal(layer.bias, old["bias"] - 0.5 * expected.grad_bias)
    assert np.all(layer.grad_weight == 9)


def test_out(isa, dtype):
    """out is overwritten, NaN and all, and returned."""
    layer, x, g, expected = case((2, 3), 19, 11, dtype)
    for call, value in (
        (lambda out: layer(x, out=out), expected.output),
        (lambda out: layer(x, out), expected.output),
        (lambda out: layer.forward(x, out=out), expected.output),
        (lambda out: layer.backward(x, g, out=out), expected.grad_input),
        (lambda out: layer.backward_input(g, out=out), expected.grad_input),
        (lambda out: layer.backward_update(x, g, 0, out=out), expected.grad_input),
    ):
        out = np.full(value.shape, np.nan, dtype)
        assert call(out) is out
        assert np.array_equal(out, value)


def test_input_grad_can_be_left_out(isa, dtype):
    """input_grad=False returns None and does all the rest."""
    layer, x, g, expected = case((3,), 19, 11, dtype)
    old = layer.state_dict()
    assert layer.backward(x, g, input_grad=False) is None
    assert np.array_equal(layer.grad_weight, expected.grad_weight)
    assert np.array_equal(layer.grad_bias, expected.grad_bias)
    assert layer.backward_update(x, g, 0.5, input_grad=False) is None
    assert np.array_equal(layer.weight, old["weight"] - 0.5 * expected.grad_weight)
    assert np.array_equal(layer.bias, old["bias"] - 0.5 * expected.grad_bias)


def test_scale_applies_to_parameters_only(isa, dtype):
    layer, x, g, expected = case((3,), 19, 11, dtype)
    assert np.array_equal(layer.backward(x, g, scale=0.5), expected.grad_input)
    assert np.array_equal(layer.grad_weight, 0.5 * expected.grad_weight)
    assert np.array_equal(layer.grad_bias, 0.5 * expected.grad_bias)


def test_backward_is_stateless(isa, dtype):
    """What forward saw last is of no matter to backward, and backward_input touches no gradient."""
    layer, x, g, expected = case((3,), 19, 11, dtype)
    layer.forward(-x)
    layer.backward_input(g)
    assert not layer.grad_weight.any()
    layer.backward(x, g)
    assert np.array_equal(layer.grad_weight, expected.grad_weight)


def test_gradients_are_made_on_first_use():
    """A layer that only runs forward has no gradients; then they are zero and stay the same arrays."""
    layer = Linear(5, 4, rng=0)
    layer(np.ones(5, np.float32))
    layer.backward_update(np.ones(5, np.float32), np.ones(4, np.float32), 0.1)
    layer.zero_grad()
    assert layer._memory()[2:] == (None, None)
    assert not layer.grad_weight.any()
    assert not layer.grad_bias.any()
    assert layer.grad_weight is layer.grad_weight


@pytest.mark.parametrize("lr", [0.5, np.float32(0.5), np.float64(0.5), 2, np.int64(2), True], ids=repr)
def test_step_and_zero_grad(isa, dtype, bias, lr):
    """step subtracts lr times the gradients, whatever kind of number lr is; zero_grad makes them zero."""
    layer, x, g, expected = case((3,), 19, 11, dtype, bias)
    old = layer.state_dict()
    layer.backward(x, g)
    assert layer.step(lr) is None
    assert np.array_equal(layer.weight, old["weight"] - float(lr) * expected.grad_weight)
    if bias:
        assert np.array_equal(layer.bias, old["bias"] - float(lr) * expected.grad_bias)
    assert np.array_equal(layer.grad_weight, expected.grad_weight)
    layer.zero_grad()
    assert not layer.grad_weight.any()
    if bias:
        assert not layer.grad_bias.any()


# ---- the parameters


@pytest.mark.parametrize("name", ["weight", "bias", "grad_weight", "grad_bias"])
def test_parameters_are_the_layers_own_memory(isa, dtype, name):
    """Writing into one changes the layer; assigning copies values in and keeps the memory."""
    layer, x, _, _ = case((3,), 5, 4, dtype)
    memory = getattr(layer, name)
    memory[...] = 7
    assert np.all(getattr(layer, name) == 7)
    value = np.arange(memory.size, dtype=dtype).reshape(memory.shape)
    setattr(layer, name, value)
    assert getattr(layer, name) is memory
    assert np.array_equal(memory, value)
    reversed_values = value[::-1].copy()
    setattr(layer, name, memory[::-1])  # a view of the very memory that is written
    assert np.array_equal(memory, reversed_values)
    for convert in (np.ndarray.tolist, np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder())):
        setattr(layer, name, convert(value))
        assert np.array_equal(memory, value)
    layer.weight[...], layer.bias[...] = 1, 2
    assert np.array_equal(layer(x), x.sum(1, keepdims=True) + np.full(4, 2, dtype))


def test_state_dict_is_a_copy(dtype, bias):
    layer = Linear(5, 4, bias=bias, dtype=dtype, rng=0)
    state = layer.state_dict()
    assert list(state) == (["weight", "bias"] if bias else ["weight"])
    assert_same_bits(state["weight"], layer.weight)
    state["weight"][...] = 0
    assert layer.weight.any()


def test_load_state_dict(dtype, bias):
    """The values of another layer's state come in; the memory and the gradients stay."""
    source, layer = (Linear(5, 4, bias=bias, dtype=dtype, rng=seed) for seed in (0, 1))
    memory = layer.weight
    layer.grad_weight[...] = 3
    assert layer.load_state_dict(source.state_dict()) is None
    assert layer.weight is memory
    assert_same_bits(layer.weight, source.weight)
    if bias:
        assert_same_bits(layer.bias, source.bias)
    assert np.all(layer.grad_weight == 3)
    layer.load_state_dict(
        {name: value.tolist() for name, value in Linear(5, 4, bias, dtype=dtype, rng=2).state_dict().items()}
    )
    assert_same_bits(layer.weight, Linear(5, 4, bias, dtype=dtype, rng=2).weight)


@pytest.mark.parametrize("part", [np.s_[:, 0], np.s_[0]], ids=["column", "row"])
def test_load_state_dict_of_its_own_memory(part):
    """A state whose bias is a view of the weight, contiguous or not, is read before the weight changes."""
    layer = Linear(4, 4, rng=0)
    before = layer.weight[part].copy()
    layer.load_state_dict({"weight": np.zeros((4, 4), np.float32), "bias": layer.weight[part]})
    assert np.array_equal(layer.bias, before)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(dtype, bias, protocol):
    """A pickled layer comes back with parameters and gradients bit for bit, in memory of its own, and works."""
    layer, x, g, _ = case((3,), 19, 11, dtype, bias)
    layer.backward(x, g)
    other = pickle.loads(pickle.dumps(layer, protocol))
    assert type(other) is Linear
    assert_same_memory(other, memory_of(layer))
    assert_same_bits(other(x), layer(x))
    other.weight[...] = 0
    assert layer.weight.any()


def test_pickle_keeps_gradients_lazy():
    assert pickle.loads(pickle.dumps(Linear(5, 4)))._memory()[2:] == (None, None)


def test_deepcopy(dtype, bias):
    layer, x, g, _ = case((3,), 19, 11, dtype, bias)
    layer.backward(x, g)
    other = copy.deepcopy(layer)
    assert_same_memory(other, memory_of(layer))
    for mine, theirs in zip(layer._memory(), other._memory(), strict=True):
        assert mine is theirs is None or not np.shares_memory(mine, theirs)


def test_shallow_copy_shares_the_parameters(dtype, bias):
    layer = case((3,), 19, 11, dtype, bias)[0]
    other = copy.copy(layer)
    assert other is not layer
    layer.weight[...] = 0
    assert_same_memory(other, memory_of(layer))


def test_astype(dtype, bias):
    """A copy in another dtype, gradients included; in the same dtype, a copy too."""
    layer, x, g, _ = case((3,), 19, 11, dtype, bias)
    layer.backward(x, g)
    for wanted in (np.float32, np.float64):
        other = layer.astype(wanted)
        assert other.dtype == wanted
        for name, value in memory_of(layer).items():
            assert_same_bits(getattr(other, name), value.astype(wanted))
        assert not np.shares_memory(other.weight, layer.weight)
        assert other(x.astype(wanted)).dtype == wanted


def test_repr(dtype, bias):
    """repr names the sizes, the bias and the dtype."""
    text = repr(Linear(784, 10, bias=bias, dtype=dtype))
    assert text == f"Linear(in_features=784, out_features=10, bias={bias}, dtype={np.dtype(dtype)})"


class Doubled(Linear):
    """A user's layer: forward gives twice as much, and it has an attribute of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.note = "mine"

    def forward(self, x, out=None):
        return 2 * super().forward(x, out)


@pytest.mark.parametrize("convert", [np.asarray, np.asfortranarray, np.ndarray.tolist], ids=lambda f: f.__name__)
def test_subclass_that_overrides_forward(convert):
    """Its forward applies once, on the short way of a call and on the long way alike."""
    layer = Doubled(5, 4, rng=0)
    x = np.ones((3, 5), np.float32)
    assert np.array_equal(layer.forward(convert(x)), 2 * Linear(5, 4, rng=0).forward(x))


MODELS = {"Linear": lambda kind: kind(3, 2, rng=0), "Sequential": lambda kind: kind(Linear(3, 2, rng=0), "tanh")}


@pytest.mark.parametrize("kind", MODELS)
def test_every_way_to_write_a_call(isa, kind):
    """A call means the same however its arguments are written, and wrong ones are a TypeError that names them."""
    model, x, y = MODELS[kind](getattr(fastlinear, kind)), np.float32([1, -2, 3]), np.empty(2, np.float32)
    expected = model.forward(x)
    for result in (model(x), model(x=x), model(x, None), model(x, out=None), model(*[x], out=None)):
        assert_same_bits(result, expected)
    not_interned = "".join(["o", "ut"])
    for call in (lambda: model(x, y), lambda: model(x, out=y), lambda: model(out=y, x=x),
                 lambda: model(x, **{not_interned: y})):  # fmt: skip
        y[:] = np.nan
        assert call() is y
        assert_same_bits(y, expected)
    for call, named in ((lambda: model(), "x|argument"), (lambda: model(out=y), "x|argument"),
                        (lambda: model(x, y, 1), "3 given"), (lambda: model(x, outt=y), "outt"),
                        (lambda: model(x, y, out=y), "out|argument"), (lambda: model(x, x=x), "x")):  # fmt: skip
        y[:] = np.nan
        with pytest.raises(TypeError, match=named):
            call()
        assert np.isnan(y).all()


@pytest.mark.parametrize("kind", MODELS)
def test_a_call_of_ones_own(kind):
    """What a class says that a call does is done, also if it says so after the first call, and takes it back."""

    class Model(getattr(fastlinear, kind)):
        pass

    class Loud(Model):
        def __call__(self, x, out=None):
            return "loud", super().__call__(x, out)

    make, x = MODELS[kind], np.float32([1, -2, 3])
    model, loud = make(Model), make(Loud)
    expected = model(x)
    assert loud(x)[0] == loud(x, out=None)[0] == "loud"
    assert_same_bits(loud(x)[1], expected)
    Model.__call__ = lambda self, *args, **named: (self, args, named)
    for other in (model, make(Model)):
        assert other(x) == (other, (x,), {})
        assert other(x, out=1, more=2) == (other, (x,), {"out": 1, "more": 2})
    Model.__call__ = model  # which calls itself
    with pytest.raises(RecursionError):
        model(x)
    del Model.__call__
    assert_same_bits(model(x), expected)
    assert_same_bits(make(Model)(x), expected)


def test_subclass_survives_pickle_and_copies():
    layer = Doubled(5, 4, rng=0)
    for other in (pickle.loads(pickle.dumps(layer)), copy.copy(layer), copy.deepcopy(layer), layer.astype("d")):
        assert type(other) is Doubled
        assert np.array_equal(other.weight, layer.weight)
    assert pickle.loads(pickle.dumps(layer)).note == "mine"


class Slotted(Linear):
    """A layer with an attribute in a slot, one in a private slot, and one slot that stays empty."""

    __slots__ = ("__hidden", "empty", "note")

    def hide(self, value):
        self.__hidden = value
        return self

    def hidden(self):
        return self.__hidden


class SlottedToo(Slotted):
    """The same with a __dict__ beside them."""


@pytest.mark.parametrize("cls", [Slotted, SlottedToo])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_slots_survive_pickle_and_copies(cls, again):
    layer = cls(5, 4, rng=0).hide("inside")
    layer.note = ["mine"]
    if cls is SlottedToo:
        layer.more = 1
    other = again(layer)
    assert (other.note, other.hidden(), getattr(other, "more", None)) == (
        ["mine"],
        "inside",
        getattr(layer, "more", None),
    )
    assert not hasattr(other, "empty")
    assert np.array_equal(other.weight, layer.weight)


def test_a_state_that_fails_leaves_no_memory():
    """A state with attributes, for a class that has no place for them: the error comes before the memory."""
    layer = Linear.__new__(Linear)
    for attributes in ({"note": 1}, (None, {"note": 1})):
        with pytest.raises(AttributeError):
            layer.__setstate__((Linear(5, 4)._memory(), attributes))
        with pytest.raises(RuntimeError, match="no parameters yet"):
            layer.weight  # noqa: B018
    layer.__setstate__((Linear(5, 4)._memory(), None))
    assert layer.weight.shape == (4, 5)


def test_weak_references():
    import weakref

    layer = Linear(5, 4)
    assert weakref.ref(layer)() is layer


# ---- the module


def test_public_names():
    for name in fastlinear.__all__:
        assert hasattr(fastlinear, name)
    assert {"Linear", "verify", "reference", "set_num_threads", "get_num_threads", "isa", "show_config"} <= set(
        fastlinear.__all__
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", fastlinear.__version__)
    assert fastlinear.isa in _dispatch.available()


def test_show_config(isa, capsys):
    """It prints the version, the instruction set in use, those available and the threads."""
    assert fastlinear.show_config() is None
    text = capsys.readouterr().out
    for word in (
        fastlinear.__version__,
        isa,
        *_dispatch.available(),
        str(fastlinear.get_num_threads()),
        np.__version__,
    ):
        assert word in text


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_verify(isa, dtype, bias, batch):
    """The errors of all outputs, none over 4, and the layer as it was."""
    layer = Linear(70, 33, bias=bias, dtype=dtype, rng=0)
    rng = np.random.default_rng(1)
    before = memory_of(layer)
    x, g = rng.standard_normal((*batch, 70), dtype), rng.standard_normal((*batch, 33), dtype)
    errors = fastlinear.verify(layer, x, g)
    assert set(errors) == {"output", "grad_input", "grad_weight", "updated_weight", "stepped_weight"} | (
        {"grad_bias", "updated_bias", "stepped_bias"} if bias else set()
    )
    assert all(0 <= error <= 4 for error in errors.values())
    assert any(errors.values()) or x.size == 0
    assert_same_memory(layer, before)


@pytest.mark.parametrize("kernel", ["forward", "grad_input", "grad_weight", "grad_bias", "update", "step"])
@pytest.mark.parametrize("flaw", [1e-5, np.nan], ids=["off", "nan"])
def test_verify_finds_a_wrong_kernel(monkeypatch, kernel, flaw):
    """One element of one kernel's result that is off, or NaN, is an ArithmeticError."""
    problem = normal(3, 7, 5, np.float32)
    layer, right = layer_of(problem), getattr(reference, kernel)

    def wrong(*args):
        right(*args)
        result = args[3] if kernel in ("forward", "grad_weight", "update") else args[2]
        if result.dtype == np.float32:
            result.flat[-1] += flaw

    kernels = SimpleNamespace(**{**vars(reference), kernel: wrong})
    _layer.use_kernels(kernels, reference)
    try:
        with pytest.raises(ArithmeticError, match="error over its limit"):
            fastlinear.verify(layer, problem.x, problem.grad_output)
    finally:
        _dispatch.use(fastlinear.isa)


@pytest.mark.thread_unsafe(reason="sets the kernels of the process")
@pytest.mark.parametrize("kernel", ["grad_weight", "grad_bias"])
@pytest.mark.parametrize("slip", ["scale", "accumulation"])
def test_verify_finds_what_one_plain_backward_does_not_show(kernel, slip):
    """A kernel that ignores scale, and one that overwrites instead of adding, is an ArithmeticError."""
    problem = normal(3, 7, 5, np.float32)
    layer, right = layer_of(problem), getattr(reference, kernel)

    def wrong(*args):
        *inputs, scale, out = args
        if slip == "accumulation":
            out[...] = 0
        right(*inputs, scale if slip == "accumulation" else 1.0, out)

    kernels = SimpleNamespace(**{**vars(reference), kernel: wrong})
    _layer.use_kernels(kernels, reference)
    try:
        with pytest.raises(ArithmeticError, match=f"error over its limit.*{kernel}"):
            fastlinear.verify(layer, problem.x, problem.grad_output)
    finally:
        _dispatch.use(fastlinear.isa)


SUMS = {
    "one value": lambda rng, shape: np.full(shape, 0.1),
    "ones and zeros": lambda rng, shape: 0.1 * rng.integers(0, 2, shape),
    "one sign": lambda rng, shape: rng.random(shape),
}


@pytest.mark.parametrize("values", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"),
    [(300, 8, 5), (5000, 3, 2), (1, 1000, 3), (1, 3, 256), (1, 3000, 2), (1, 2, 800)],
)
def test_verify_where_roundings_add_up(isa, dtype, values, rows, in_features, out_features):
    """Long sums of one sign are off by more than 4 units with the right kernels, too, and no false alarm."""
    rng = np.random.default_rng(0)
    w, x, g = (values(rng, s) for s in ((out_features, in_features), (rows, in_features), (rows, out_features)))
    layer = Linear.from_weights(w.astype(dtype), np.zeros(out_features, dtype))
    assert fastlinear.verify(layer, x.astype(dtype), g.astype(dtype))


@pytest.mark.parametrize("features", [8, 9, 41, 256, 257, 1024, 1025, 4097, 33000])
@pytest.mark.parametrize("name", ["output", "grad_input", "grad_input of one feature"])
def test_verify_where_every_term_is_lost(compiled_isa, dtype, features, name):
    """The largest error that the order of additions allows is no false alarm: a 1 comes first in every lane or chain,
    and each term after it is half of the 1's last place, which rounds away."""
    values = np.full(features, np.finfo(dtype).eps / 2, dtype)
    chain = 256 if name == "grad_input" else 4096 // dtype().itemsize
    first = 1 if name == "grad_input" else emulation.LANE_BYTES // dtype().itemsize
    for begin in range(0, features, chain):
        values[begin : begin + first] = 1
    if name == "output":
        layer, x, g = Linear.from_weights(np.ones((1, features), dtype)), values, np.ones(1, dtype)
    else:
        width = 1 if name == "grad_input of one feature" else 3
        layer, x, g = Linear.from_weights(np.ones((features, width), dtype)), np.ones(width, dtype), values
    errors = fastlinear.verify(layer, x, g)
    assert errors[name.split()[0]] > 4 or features < 100


def test_verify_needs_its_limits():
    """Sums as in the test before this one would be false alarms with a limit of 4."""
    for name, rows, in_features, out_features in (
        ("output", 1, 1000, 3),
        ("grad_input", 1, 3, 256),
        ("grad_weight", 300, 3, 2),
        ("updated_bias", 300, 3, 2),
    ):
        layer = Linear.from_weights(np.full((out_features, in_features), 0.1, np.float32), np.zeros(out_features, "f4"))
        x, g = (np.full((rows, width), 0.1, np.float32) for width in (in_features, out_features))
        assert fastlinear.verify(layer, x, g)[name] > 4


def test_verify_knows_the_order():
    """Its limits are made of the constants of the documented order."""
    for name in ("LANE_BYTES", "K_BLOCK_BYTES", "LONG_BLOCKS", "O_BLOCK"):
        assert getattr(_verify, name) == getattr(emulation, name)


def _narrow(right, *given):
    """Sums in float32."""
    with np.errstate(all="ignore"):  # an output that is to be overwritten holds anything
        rounded = [a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in given]
    right(*rounded)
    for result, into in zip(rounded[2:], given[2:], strict=True):
        if isinstance(into, np.ndarray):
            into[...] = result


def _with(change):
    """The kernel with other rows of x, which do not change grad_input."""

    def wrong(right, x, g, *rest):
        x = x.copy()
        change(x)
        right(x, g, *rest)

    return wrong


def _behind(x):
    x[1:] = x[:-1].copy()


WRONG_ROWS = {
    "the last row is missing": _with(lambda x: x[-1].fill(0)),
    "the first row is missing": _with(lambda x: x[0].fill(0)),
    "a row amid them is missing": _with(lambda x: x[len(x) // 2].fill(0)),
    "the last row counts twice": _with(lambda x: np.multiply(x[-1], 2, out=x[-1])),
    "the last row is the one before": _with(lambda x: np.copyto(x[-1], x[-2])),
    "x is a row behind": _with(_behind),
    "narrow sums": _narrow,
}


@pytest.mark.thread_unsafe(reason="sets the kernels of the process")
@pytest.mark.parametrize("slip", WRONG_ROWS)
@pytest.mark.parametrize("rows", [3, 1500])
@pytest.mark.parametrize("kernel", ["grad_weight", "update"])
@pytest.mark.parametrize("values", ["normal", "one sign"])
def test_verify_finds_a_wrong_row(dtype, kernel, rows, slip, values):
    """One row of many that is missing, wrong or there twice, and float32's sums of float64, are ArithmeticErrors."""
    if slip == "narrow sums" and dtype == np.float32:
        pytest.skip("they are its own")
    rng = np.random.default_rng(rows)
    draw = rng.standard_normal if values == "normal" else rng.random
    layer = Linear.from_weights(draw((6, 9)).astype(dtype), draw(6).astype(dtype))
    x, g = draw((rows, 9)).astype(dtype), draw((rows, 6)).astype(dtype)
    right = getattr(reference, kernel)

    def wrong(x, g, *rest):
        if x.dtype == dtype:
            WRONG_ROWS[slip](right, x, g, *rest)
        else:
            right(x, g, *rest)

    _layer.use_kernels(SimpleNamespace(**{**vars(reference), kernel: wrong}), reference)
    try:
        with pytest.raises(ArithmeticError, match=r"error over its limit.*weight .* \(limit"):
            fastlinear.verify(layer, x, g)
    finally:
        _dispatch.use(fastlinear.isa)


def test_verify_checks_its_arguments():
    with pytest.raises(ValueError, match="5 features"):
        fastlinear.verify(Linear(5, 4), np.ones((3, 6), np.float32), np.ones((3, 4), np.float32))
    with pytest.raises(TypeError, match="float64"):
        fastlinear.verify(Linear(5, 4), np.ones((3, 5)), np.ones((3, 4), np.float32))
