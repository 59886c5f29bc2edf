"""SGD, Adam, AdamW and clip_grad_norm: their formulas, their bits, what they take and refuse, and PyTorch's states."""

import copy
import gc
import math
import pickle
import signal
import sys
import threading
import time
import warnings
from itertools import pairwise, product

import numpy as np
import pytest

import fastlinear
from fastlinear import SGD, Adam, AdamW, Linear, _dispatch, clip_grad_norm, reference

from .bits import FUSED
from .helpers import COMPILED, assert_same_bits, placed, python, wider
from .memory import in_child


@pytest.fixture(params=COMPILED)
def compiled(request):
    """The module with the elementwise functions of each instruction set."""
    return _dispatch.load(request.param, "_elementwise")


class Net:
    """The least that a model of several layers is."""

    def __init__(self, *layers):
        self.layers = layers


def net(dtype=np.float64, *sizes, bias=True):
    sizes = sizes or (5, 7, 3)
    return Net(*(Linear(i, o, bias, dtype=dtype, rng=o) for i, o in pairwise(sizes)))


def draw(model, seed):
    """New gradients, other ones for each seed."""
    rng = np.random.default_rng(seed)
    for layer in layers_of(model):
        layer.grad_weight = rng.standard_normal(layer.weight.shape, layer.dtype)
        if layer.bias is not None:
            layer.grad_bias = rng.standard_normal(layer.bias.shape, layer.dtype)


def layers_of(model):
    return getattr(model, "layers", [model])


def parameters(model):
    return [p for layer in layers_of(model) for p in (layer.weight, layer.bias) if p is not None]


def gradients(model):
    return [g for layer in layers_of(model) for g in (layer.grad_weight, layer.grad_bias) if g is not None]


def contents(optimiser):
    """The bytes of everything that a step may change."""
    arrays = [*parameters(optimiser.model), *(b for buffers in optimiser._buffers() for b in buffers)]
    return [array.tobytes() for array in arrays], optimiser.steps


KINDS = {
    "SGD": (SGD, {}),
    "SGD momentum": (SGD, {"momentum": 0.9}),
    "SGD nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD weight_decay": (SGD, {"weight_decay": 0.1}),
    "SGD all": (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    "Adam": (Adam, {}),
    "Adam weight_decay": (Adam, {"weight_decay": 0.1}),
    "Adam betas": (Adam, {"betas": (0.4, 0.7), "eps": 1e-3}),
    "Adam beta 0": (Adam, {"betas": (0.0, 0.9)}),
    "AdamW": (AdamW, {}),
    "AdamW weight_decay": (AdamW, {"weight_decay": 0.3, "betas": (0.8, 0.99)}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind, model, lr=0.05):
    cls, options = KINDS[kind]
    return cls(model, lr, **options)


def step_by_hand(kind, lr, steps, parameter, gradients):
    """The parameter after those gradients, in the formulas of PyTorch's documentation."""
    cls, options = KINDS[kind]
    momentum, nesterov = options.get("momentum", 0), options.get("nesterov", False)
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    decay = options.get("weight_decay", 0.01 if cls is AdamW else 0)
    m = v = buffer = 0
    for t, g in zip(range(1, steps + 1), gradients, strict=True):
        if cls is AdamW:
            parameter = parameter - lr * decay * parameter
        else:
            g = g + decay * parameter
        if cls is SGD:
            buffer = momentum * buffer + g
            parameter = parameter - lr * (g + momentum * buffer if nesterov else buffer)
        else:
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            unbiased = m / (1 - beta1**t), v / (1 - beta2**t)
            parameter = parameter - lr * unbiased[0] / (np.sqrt(unbiased[1]) + options.get("eps", 1e-8))
    return parameter


# ---- what a step computes


@kinds
def test_the_formulas(isa, dtype, kind):
    """Ten steps, weights and biases of three layers, by the formulas in a wider dtype."""
    model = net(dtype, 4, 33, 6, 2)
    starts, history = [p.copy() for p in parameters(model)], []
    optimiser = make(kind, model)
    for step in range(10):
        draw(model, step)
        history.append([g.copy() for g in gradients(model)])
        optimiser.step()
    for k, (got, start) in enumerate(zip(parameters(model), starts, strict=True)):
        wide = wider(dtype)
        exact = step_by_hand(kind, 0.05, 10, start.astype(wide), [drawn[k].astype(wide) for drawn in history])
        np.testing.assert_allclose(got, exact, rtol=0, atol=60 * np.finfo(dtype).eps)
        assert np.abs(got - start).max() > 0.01


def test_sgd_without_options_is_step(isa, dtype):
    model, twin = net(dtype), net(dtype)
    draw(model, 0), draw(twin, 0)
    SGD(model, 0.3).step()
    for layer in twin.layers:
        layer.step(0.3)
    for got, expected in zip(parameters(model), parameters(twin), strict=True):
        assert_same_bits(got, expected)


@kinds
def test_a_linear_is_a_model(isa, dtype, kind):
    """A layer by itself, in a net, and there twice: the same bits, each layer stepped once."""
    results = []
    for wrap in (lambda layer: layer, lambda layer: Net(layer), lambda layer: Net(layer, layer)):
        layer = Linear(9, 4, dtype=dtype, rng=0)
        optimiser = make(kind, wrap(layer))
        for step in range(3):
            draw(layer, step)
            optimiser.step()
        results.append(layer.weight.copy())
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


def test_layers_of_both_dtypes(isa):
    """A model may mix them: each layer is stepped in its own."""
    alone, mixed = (net(np.float32, 3, 2), net(np.float64, 2, 4)), []
    for part in alone:
        draw(part, 1)
        mixed.append(copy.deepcopy(part.layers[0]))
        Adam(part, 0.1).step()
    Adam(Net(*mixed), 0.1).step()
    for layer, part in zip(mixed, alone, strict=True):
        assert_same_bits(layer.weight, part.layers[0].weight)


def test_the_learning_rate_may_change(isa):
    model = Linear.from_weights(np.zeros((1, 1)))
    optimiser = SGD(model, 1)
    model.grad_weight[...] = 1
    optimiser.step()
    optimiser.lr = 0.25
    optimiser.step()
    assert model.weight == -1.25
    assert optimiser.lr == 0.25


@kinds
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_sizes_of_0(isa, dtype, kind, sizes):
    layer = Linear(*sizes, dtype=dtype, rng=0)
    optimiser = make(kind, layer)
    layer.grad_bias[...] = 1
    optimiser.step()
    optimiser.zero_grad()
    assert not layer.grad_bias.any()
    assert clip_grad_norm(layer, 1) == 0


@kinds
def test_nan_and_infinity_spread_and_stay_where_they_are(isa, dtype, kind):
    """Elements do not see each other."""
    layer, twin = (Linear(40, 1, False, dtype=dtype, rng=0) for _ in range(2))
    optimiser, other = make(kind, layer), make(kind, twin)
    draw(layer, 0), draw(twin, 0)
    layer.grad_weight[0, 7], layer.grad_weight[0, 11] = np.nan, np.inf
    optimiser.step(), other.step()
    assert not np.isfinite(layer.weight[0, [7, 11]]).all()
    assert np.isnan(layer.weight[0, 7])
    keep = np.delete(np.arange(40), [7, 11])
    assert_same_bits(layer.weight[:, keep], twin.weight[:, keep])


def test_gradients_that_nobody_used_are_zero(isa):
    """A step makes them; zero_grad and clip_grad_norm do not."""
    layer = Linear(3, 2)
    optimiser = Adam(layer)
    before = layer.weight.copy()
    optimiser.zero_grad()
    assert clip_grad_norm(layer, 1) == 0
    assert layer._memory()[2] is None
    optimiser.step()
    assert layer._memory()[2] is not None
    assert_same_bits(layer.weight, before)


# ---- bits


SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 64, 100, 1023, 1025, 5000]
CALLS = {
    "sgd": (lambda k, g, p, a, b, **t: k.sgd(g, 0.1, 0.0, False, 0.0, p, None, **t)),
    "sgd momentum": (lambda k, g, p, a, b, **t: k.sgd(g, 0.1, 0.9, False, 0.01, p, a, **t)),
    "sgd nesterov": (lambda k, g, p, a, b, **t: k.sgd(g, 0.1, 0.9, True, 0.01, p, a, **t)),
    "adam": (lambda k, g, p, a, b, **t: k.adam(g, 0.1, 0.9, 0.999, 1.7, 1e-8, 0.01, 1.0, p, a, b, **t)),
    "adamw": (lambda k, g, p, a, b, **t: k.adam(g, 0.1, 0.9, 0.999, 1.7, 1e-8, 0.0, 0.99, p, a, b, **t)),
}
calls = pytest.mark.parametrize("call", CALLS)


def arrays(n, dtype, offset=0, seed=0):
    """gradient, parameter, and two buffers of which the second is positive."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, n)) * 10 ** rng.uniform(-3, 3, (4, n))
    values[3] = abs(values[3])
    return [placed(v.astype(dtype), offset) for v in values]


@calls
def test_each_kernel_is_near_the_reference(compiled, dtype, call):
    """In a wider dtype, where the kernels have theirs; nothing beside the arrays is written."""
    for n in SIZES:
        mine = arrays(n, dtype)
        exact = [a.astype(wider(dtype)) for a in mine]
        CALLS[call](compiled, *mine)
        CALLS[call](reference, *exact)
        for got, expected in zip(mine, exact, strict=True):
            np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(dtype).eps, atol=2000 * np.finfo(dtype).eps)
            assert np.count_nonzero(np.isnan(got.base)) == got.base.size - got.size


@calls
def test_bits_do_not_depend_on_place_or_length(compiled, dtype, call):
    """An element alone, and the arrays off the cache lines: the same bits as in the middle of all."""
    for n in SIZES[:-3]:
        whole, shifted = arrays(n, dtype), arrays(n, dtype, offset=3)
        each = [np.array_split(a, max(n, 1)) for a in arrays(n, dtype)]
        CALLS[call](compiled, *whole)
        CALLS[call](compiled, *shifted)
        for part in zip(*each, strict=True):
            CALLS[call](compiled, *part)
        for w, s, e in zip(whole, shifted, each, strict=True):
            assert_same_bits(s, w)
            assert_same_bits(np.concatenate(e), w)


@calls
def test_bits_do_not_depend_on_threads(compiled, dtype, call):
    """By OpenMP, and what each thread does one after another; the threads share out all of it, and none of it twice."""
    for n, threads in product((0, 5, 1024, 10_000), (2, 3, 8)):
        one, many, apart = (arrays(n, dtype) for _ in range(3))
        CALLS[call](compiled, *one)
        CALLS[call](compiled, *many, threads=threads)
        for thread in reversed(range(threads)):
            CALLS[call](compiled, *apart, threads=threads, thread=thread)
        for expected, m, a in zip(one, many, apart, strict=True):
            assert_same_bits(m, expected)
            assert_same_bits(a, expected)


@pytest.mark.skipif(len(COMPILED) < 2, reason="one instruction set")
@calls
def test_bits_do_not_depend_on_the_instruction_set(dtype, call):
    """Of those with fused multiply-adds; sgd has none in its formula, so there it is all of them."""
    results = []
    for name in COMPILED if call.startswith("sgd") else FUSED:
        mine = arrays(3000, dtype)
        CALLS[call](_dispatch.load(name, "_elementwise"), *mine)
        results.append(mine)
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert_same_bits(got, expected)


def test_the_order_of_a_sum_of_squares(dtype):
    """Sixteen chains in float64, folded by halves: on every instruction set, with or without fma where squares of
    float32 are exact."""
    for n in (*SIZES, 70_001):
        array = arrays(n, dtype)[0]
        chains = np.zeros(16)
        for row in np.pad(array.astype(np.float64), (0, -n % 16)).reshape(-1, 16):
            chains += row * row
        for w in (8, 4, 2, 1):
            chains[:w] += chains[w : 2 * w]
        for name in COMPILED:
            got = _dispatch.load(name, "_elementwise").squares(array)
            assert got == chains[0] if dtype == np.float32 else math.isclose(got, chains[0], rel_tol=1e-14)
        assert len({_dispatch.load(name, "_elementwise").squares(array) for name in FUSED}) <= 1
        assert math.isclose(reference.squares(array), chains[0], rel_tol=1e-12)


def test_large_parameters_on_threads(compiled_isa, threads):
    """Through the optimiser, with enough elements for threads and for other Python threads to run."""
    results = []
    for n in (1, 2, 4):
        threads(n)
        layer = Linear(700, 500, rng=0)
        draw(layer, 0)
        optimiser = Adam(layer)
        optimiser.step()
        results.append(layer.weight.copy())
    for got in results[1:]:
        assert_same_bits(got, results[0])


# ---- PyTorch


def in_torch(model, kind, lr):
    torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
    cls, options = KINDS[kind]
    if cls is AdamW:
        options = {"weight_decay": 0.01} | options
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in parameters(model)]
    return tensors, getattr(torch.optim, cls.__name__)(tensors, lr=lr, **options)


def step_both(model, optimiser, tensors, theirs, seed):
    import torch

    draw(model, seed)
    optimiser.step()
    for tensor, gradient in zip(tensors, gradients(model), strict=True):
        tensor.grad = torch.tensor(gradient)
    theirs.step()


def assert_near_torch(model, tensors, eps):
    for p, tensor in zip(parameters(model), tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=0, atol=eps)


@kinds
def test_100_steps_of_torch(isa, kind):
    """In float64, with a learning rate that changes half-way."""
    model = net(np.float64)
    tensors, theirs = in_torch(model, kind, 0.05)
    optimiser = make(kind, model)
    starts = [p.copy() for p in parameters(model)]
    for step in range(100):
        if step == 50:
            optimiser.lr = theirs.param_groups[0]["lr"] = 0.01
        step_both(model, optimiser, tensors, theirs, step)
    assert_near_torch(model, tensors, 500 * np.finfo(np.float64).eps)
    assert all(np.abs(p - start).max() > 0.05 for p, start in zip(parameters(model), starts, strict=True))


@kinds
def test_defaults_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    cls, _ = KINDS[kind]
    theirs = getattr(torch.optim, cls.__name__)([torch.nn.Parameter(torch.zeros(1))])
    ours = cls(Linear(1, 1)).state_dict()["param_groups"][0]
    assert {name: theirs.param_groups[0][name] for name in ours if name not in ("params", "capturable")} == {
        name: value for name, value in ours.items() if name not in ("params", "capturable")
    }


@kinds
def test_a_state_goes_to_torch_and_back(dtype, kind):
    """In the midst of training a state moves over, in either direction, and training goes on the same."""
    torch = pytest.importorskip("torch")
    model = net(dtype)
    tensors, theirs = in_torch(model, kind, 0.05)
    optimiser = make(kind, model)
    for step in range(5):
        draw(model, step)
        optimiser.step()
    with torch.no_grad():
        for tensor, p in zip(tensors, parameters(model), strict=True):
            tensor.copy_(torch.tensor(p))
    theirs.load_state_dict(optimiser.state_dict())
    for step in range(5):
        step_both(model, optimiser, tensors, theirs, step)
    assert_near_torch(model, tensors, 60 * np.finfo(dtype).eps)

    cls, _ = KINDS[kind]
    third = cls(model)
    third.load_state_dict(theirs.state_dict())
    assert third._settings == optimiser._settings
    assert third.steps == (optimiser.steps if cls is not SGD else third.steps)
    for step in range(5):
        step_both(model, third, tensors, theirs, step)
    assert_near_torch(model, tensors, 90 * np.finfo(dtype).eps)


def test_a_state_without_torch_is_arrays():
    """Where nobody imported torch."""
    run = python(
        "import numpy, sys; from fastlinear import Adam, Linear\n"
        "opt = Adam(Linear(3, 2)); opt.step(); state = opt.state_dict()\n"
        "assert type(state['state'][0]['exp_avg']) is numpy.ndarray and 'torch' not in sys.modules\n"
        "opt.load_state_dict(state)"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("most", [0.0, 0.01, 3.0, 1e6, math.inf])
def test_clip_grad_norm_is_that_of_torch(isa, dtype, most):
    torch = pytest.importorskip("torch")
    model = net(dtype)
    draw(model, 3)
    tensors = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients(model)]
    for tensor, gradient in zip(tensors, gradients(model), strict=True):
        tensor.data = tensor.data.to(torch.tensor(gradient).dtype)
        tensor.grad = torch.tensor(gradient)
    expected = torch.nn.utils.clip_grad_norm_(tensors, most).item()
    assert math.isclose(clip_grad_norm(model, most), expected, rel_tol=4 * np.finfo(dtype).eps)
    for tensor, gradient in zip(tensors, gradients(model), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=8 * np.finfo(dtype).eps)


# ---- clip_grad_norm


def test_clip_grad_norm(isa, dtype):
    """The norm before, as a float; afterwards it is max_norm, and a second time nothing changes."""
    model = net(dtype)
    draw(model, 0)
    norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients(model)))
    got = clip_grad_norm(model, 0.5)
    assert type(got) is float
    assert math.isclose(got, norm, rel_tol=1e-12)
    assert math.isclose(clip_grad_norm(model, 1.0), 0.5, rel_tol=1e-5)
    before = [g.copy() for g in gradients(model)]
    clip_grad_norm(model, 0.6)
    for got, expected in zip(gradients(model), before, strict=True):
        assert_same_bits(got, expected)


def test_the_norm_of_large_float32_is_finite(isa):
    layer = Linear(2, 1, False)
    layer.grad_weight[...] = 3e38
    assert math.isclose(clip_grad_norm(layer, 1), 3e38 * math.sqrt(2), rel_tol=1e-6)
    np.testing.assert_allclose(layer.grad_weight, math.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite(isa, dtype, bad):
    layer = Linear(3, 1, False, dtype=dtype)
    layer.grad_weight = np.array([[1, bad, 2]], dtype)
    before = layer.grad_weight.copy()
    with pytest.raises(RuntimeError, match=r"the norm of the gradients is (nan|inf), so they cannot be scaled"):
        clip_grad_norm(layer, 1, error_if_nonfinite=True)
    assert_same_bits(layer.grad_weight, before)
    norm = clip_grad_norm(layer, 1)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert np.isnan(layer.grad_weight[0, 1])


# ---- what is refused, before anything is written


MADE_WRONG = [
    (lambda: SGD(None), TypeError, "SGD: model must be a Linear or a Sequential, got NoneType"),
    (lambda: Adam(Net()), TypeError, "Adam: model must be a Linear or a Sequential, got Net"),
    (lambda: Adam(Net(Linear(1, 1), 3)), TypeError, r"Adam: each of model.layers must be a Linear, got int"),
    (lambda: SGD(Linear.__new__(Linear)), RuntimeError, "Linear has no parameters yet"),
    (lambda: SGD(Linear(1, 1), -1), ValueError, "SGD: lr must be finite and not negative, got -1"),
    (lambda: SGD(Linear(1, 1), math.inf), ValueError, "SGD: lr must be finite and not negative, got inf"),
    (lambda: Adam(Linear(1, 1), math.nan), ValueError, "Adam: lr must be finite and not negative, got nan"),
    (lambda: Adam(Linear(1, 1), "1"), TypeError, "Adam: lr must be a real number, got str"),
    (lambda: Adam(Linear(1, 1), 1j), TypeError, "Adam: lr must be a real number, got complex"),
    (lambda: Adam(Linear(1, 1), np.complex64(1)), TypeError, "Adam: lr must be a real number, got complex64"),
    (lambda: Adam(Linear(1, 1), 10**400), ValueError, "Adam: lr must be finite, got an integer beyond float64"),
    (lambda: SGD(Linear(1, 1), momentum=-0.1), ValueError, "SGD: momentum must be finite and not negative, got -0.1"),
    (lambda: SGD(Linear(1, 1), nesterov=True), ValueError, "SGD: nesterov needs a momentum, got 0"),
    (lambda: SGD(Linear(1, 1), 0.1, 0.9, 1e-4), TypeError, "SGD: nesterov must be True or False, got 0.0001"),
    (lambda: SGD(Linear(1, 1), weight_decay=-1), ValueError, "SGD: weight_decay must be finite and not negative"),
    (lambda: Adam(Linear(1, 1), betas=0.9), TypeError, "Adam: betas must be two numbers, got 0.9"),
    (lambda: Adam(Linear(1, 1), betas=(1, 2, 3)), TypeError, r"Adam: betas must be two numbers, got \(1, 2, 3\)"),
    (lambda: Adam(Linear(1, 1), betas=(0.9, 1)), ValueError, r"Adam: betas\[1\] must be below 1, got 1"),
    (lambda: AdamW(Linear(1, 1), betas=(-0.9, 0)), ValueError, r"AdamW: betas\[0\] must be finite and not negative"),
    (lambda: AdamW(Linear(1, 1), eps=-1), ValueError, "AdamW: eps must be finite and not negative, got -1"),
    (lambda: clip_grad_norm(3, 1), TypeError, "clip_grad_norm: model must be a Linear or a Sequential, got int"),
    (lambda: clip_grad_norm(Linear(1, 1), -1), ValueError, "clip_grad_norm: max_norm must not be negative, got -1"),
    (lambda: clip_grad_norm(Linear(1, 1), math.nan), ValueError, "max_norm must not be negative, got nan"),
    (lambda: clip_grad_norm(Linear(1, 1), "2"), TypeError, "clip_grad_norm: max_norm must be a real number, got str"),
]


@pytest.mark.parametrize(("call", "error", "message"), MADE_WRONG, ids=[case[2] for case in MADE_WRONG])
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_learning_rate_that_is_refused_changes_nothing():
    optimiser = SGD(Linear(1, 1), 0.5)
    for bad in (-1, math.nan, math.inf, "x", None):
        with pytest.raises((ValueError, TypeError), match="SGD: lr must be"):
            optimiser.lr = bad
    assert optimiser.lr == 0.5
    optimiser.lr = np.float32(0.25)
    assert optimiser.lr == 0.25


@pytest.mark.parametrize(
    ("cls", "name"),
    [(SGD, "lr"), (SGD, "momentum"), (SGD, "weight_decay"), *((Adam, n) for n in ("lr", "eps", "weight_decay"))],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_numbers_beyond_float32(cls, name):
    """They would be infinity in the layer's dtype, where PyTorch raises or makes it so. float64 takes them; a state
    that has them is refused for float32, and nothing has changed."""
    options = {"lr": 0.5, name: 1e39}
    message = f"{cls.__name__}: {name} must fit float32, got 1e\\+39"
    single, mixed = Linear(1, 1), Net(Linear(1, 1, dtype=np.float64), Linear(1, 1))
    for model in (single, mixed):
        with pytest.raises(ValueError, match=message):
            cls(model, **options)
    double = cls(Linear(1, 1, dtype=np.float64), **options)
    assert getattr(double, name) == 1e39
    optimiser = cls(single, 0.125)
    before = contents(optimiser)
    state = double.state_dict()
    with pytest.raises(ValueError, match=message):
        optimiser.load_state_dict(state)
    assert contents(optimiser) == before
    if name == "lr":
        with pytest.raises(ValueError, match=message):
            optimiser.lr = 1e39
    assert optimiser.lr == 0.125


@pytest.mark.parametrize("dtype_", [np.float32, np.float64])
@pytest.mark.parametrize("first", [0, 3])
def test_numbers_that_a_step_makes_infinite(isa, dtype_, first):
    """lr / (1 - beta1**t) and 1 - lr * weight_decay beyond the dtype: an error, and no step was taken; a later one is.
    PyTorch raises, too, but with the means already changed."""
    largest = float(np.finfo(dtype_).max)
    for cls, options in (
        (Adam, {"lr": largest / 2, "betas": (0.999, 0.999)}),
        (AdamW, {"lr": largest / 2, "betas": (0.0, 0.999), "weight_decay": largest / 2}),
    ):
        model = Net(Linear(2, 2, dtype=np.float64), Linear(2, 1, dtype=dtype_))
        draw(model, 0)
        optimiser = cls(model, **{**options, "lr": 1e-3, "weight_decay": 0})
        for _ in range(first):
            optimiser.step()
        state = optimiser.state_dict()
        group(state).update(options)
        optimiser.load_state_dict(state)
        before = contents(optimiser)
        with pytest.raises(ValueError, match=f"{cls.__name__}: lr .* is too large for step {first + 1} in the model's"):
            optimiser.step()
        assert contents(optimiser) == before
        optimiser.lr = 0
        optimiser.step()
        assert optimiser.steps == first + 1


NEAR_0_AND_1 = [
    (SGD, {"lr": 1e-50}),
    (SGD, {"momentum": 1e-50}),
    (SGD, {"momentum": 1 - 1e-9}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-50}),
    (Adam, {"lr": 1e-50}),
    (Adam, {"eps": 1e-50}),
    (Adam, {"weight_decay": 1e-50}),
    (Adam, {"betas": (1 - 1e-9, 0.999)}),
    (Adam, {"betas": (0.9, 1 - 1e-9)}),
    (Adam, {"betas": (1 - 2**-53, 1 - 2**-53)}),
    (Adam, {"betas": (1e-50, 1e-50)}),
    (AdamW, {"weight_decay": 1e-9}),
]


@pytest.mark.parametrize(("cls", "options"), NEAR_0_AND_1, ids=str)
def test_numbers_that_round_to_0_or_1_in_float32(isa, cls, options):
    """They do what PyTorch's do there: 1 - beta is taken in float64, and the rest rounds."""
    torch = pytest.importorskip("torch")
    model = net(np.float32)
    options = {"lr": 0.05, "weight_decay": 0, **options}
    optimiser = cls(model, **options)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in parameters(model)]
    theirs = getattr(torch.optim, cls.__name__)(tensors, **options)
    for step in range(5):
        step_both(model, optimiser, tensors, theirs, step)
    assert_near_torch(model, tensors, 60 * np.finfo(np.float32).eps)
    for buffers, tensor in zip(optimiser._buffers(), tensors, strict=True):
        for name, buffer in zip(optimiser._BUFFERS, buffers, strict=True):
            if (kept := theirs.state[tensor].get(name)) is not None:
                np.testing.assert_allclose(buffer, kept.numpy(), rtol=1e-5, atol=1e-7 * np.abs(kept.numpy()).max())


@kinds
def test_frozen_parameters(isa, kind):
    """Weights that were made read-only refuse a step, gradients zero_grad and clip_grad_norm; nothing has changed."""
    model = net()
    optimiser = make(kind, model)
    draw(model, 0)
    model.layers[1].bias.flags.writeable = False
    before = contents(optimiser)
    with pytest.raises(ValueError, match="made read-only"):
        optimiser.step()
    assert contents(optimiser) == before
    model.layers[1].grad_weight.flags.writeable = False
    kept = [g.tobytes() for g in gradients(model)]
    with pytest.raises(ValueError, match="made read-only"):
        optimiser.zero_grad()
    with pytest.raises(ValueError, match="made read-only"):
        clip_grad_norm(model, 0.1)
    assert [g.tobytes() for g in gradients(model)] == kept


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_without_init(cls):
    """An optimiser whose __init__ was not called says so in every method; a second __init__ is refused."""
    bare = cls.__new__(cls)
    assert repr(bare) == f"{cls.__name__}() without a model: its __init__ was not called"
    for call in (bare.step, bare.zero_grad, bare.state_dict, bare._buffers, lambda: bare._load(0, [], {})):
        with pytest.raises(RuntimeError, match="has no model yet: its __init__ was not called"):
            call()
    ready = cls(Linear(2, 1))
    with pytest.raises(RuntimeError, match="has its model and keeps it"):
        ready.__init__(Linear(3, 1))


def test_compiled_methods_check_their_self():
    for method in (SGD.step, Adam.step, SGD.zero_grad):
        with pytest.raises(TypeError):
            method(Linear(1, 1))


class Hostile:
    """A number whose conversion runs code."""

    def __init__(self, run):
        self.run = run

    def __float__(self):
        self.run()
        return 0.5


def test_a_hostile_learning_rate():
    """What its conversion does comes before anything is written: another __init__ is refused."""
    optimiser = SGD(Linear(2, 1), 0.125)

    def reset():
        optimiser.lr = 7
        with pytest.raises(RuntimeError, match="has its model"):
            optimiser.__init__(Linear(5, 5))

    optimiser.lr = Hostile(reset)
    assert optimiser.lr == 0.5


def test_hostile_layers():
    """`layers` is asked for once, and what it gives is looked at as it is then."""
    asked = []

    class Changing:
        @property
        def layers(self):
            asked.append(len(asked))
            return [Linear(2, 1, dtype=np.float64)] if len(asked) == 1 else None

    optimiser = SGD(Changing())
    optimiser.step()
    assert asked == [0]


# ---- states, copies


def test_state_dict_before_and_after_a_step():
    layer = Linear(3, 2)
    optimiser = Adam(layer)
    assert optimiser.state_dict()["state"] == {}
    layer.grad_weight[...] = 1
    optimiser.step()
    state = optimiser.state_dict()["state"]
    assert sorted(state) == [0, 1]
    assert sorted(state[0]) == ["exp_avg", "exp_avg_sq", "step"]
    assert state[0]["step"] == 1
    np.testing.assert_allclose(np.asarray(state[0]["exp_avg"]), 0.1, rtol=1e-6)
    state[0]["exp_avg"][...] = 5  # a copy
    np.testing.assert_allclose(optimiser._buffers()[0][0], 0.1, rtol=1e-6)
    plain = SGD(layer)
    plain.step()
    assert plain.state_dict()["state"] == {}


def good_state():
    optimiser = Adam(Linear(3, 2, dtype=np.float32, rng=0), 0.25)
    optimiser.step()
    return optimiser.state_dict()


def group(state):
    return state["param_groups"][0]


def setting(**values):
    return lambda state: group(state).update(values)


def kept(number, **values):
    return lambda state: state["state"][number].update(values)


def steps(number):
    return lambda state: [kept.update(step=number) for kept in state["state"].values()]


STATES_WRONG = [
    (lambda s: s.pop("state"), ValueError, r"Adam: the state must have the keys \['param_groups', 'state'\], got"),
    (lambda s: s.update(param_groups=[]), ValueError, "Adam: the state must have one parameter group, got 0"),
    (setting(params=[0]), ValueError, "Adam: the model has 2 parameters, the state has 1"),
    (lambda s: group(s).pop("eps"), ValueError, "Adam: the parameter group of the state lacks eps"),
    (setting(amsgrad=True), ValueError, "Adam: amsgrad must be False in the state, got True"),
    (setting(maximize=True), ValueError, "Adam: maximize must be False in the state, got True"),
    (setting(decoupled_weight_decay=True), ValueError, "decoupled_weight_decay must be False in the state, got True"),
    (setting(rho=3), ValueError, "Adam: the state has an option rho=3 that is not known here"),
    (setting(lr=-1), ValueError, "Adam: lr must be finite and not negative, got -1"),
    (setting(lr=1e39), ValueError, "Adam: lr must fit float32"),
    (setting(betas=(0.9, 2)), ValueError, r"Adam: betas\[1\] must be below 1"),
    (lambda s: s["state"].pop(1), ValueError, r"must have taken the same number of steps, got \[0.0, 1.0\]"),
    (kept(1, step=2), ValueError, r"Adam: all parameters must have taken the same number of steps, got \[1.0, 2.0\]"),
    (steps(0.5), ValueError, r"the same number of steps, got \[0.5\]"),
    (steps(2**60), ValueError, "the same number of steps, got"),
    (steps(-1), ValueError, "the same number of steps, got"),
    (steps("1"), TypeError, "Adam: step must be a real number, got str"),
    (lambda s: s["state"][1].pop("step"), ValueError, "Adam: the state of parameter 1 must have step, got"),
    (
        lambda s: s.update(param_groups=3),
        TypeError,
        "Adam: param_groups must be a list of mappings in the state, got 3",
    ),
    (lambda s: s.update(param_groups=[3]), TypeError, "Adam: param_groups must be a list of mappings in the state"),
    (lambda s: group(s).pop("params"), TypeError, "Adam: params must be a list of numbers in the group of the state"),
    (setting(params=[0, [1]]), TypeError, r"Adam: params must be a list of numbers in the group of the state, got \[0"),
    (lambda s: s.update(state=[]), TypeError, "Adam: the parameters of the state must be a mapping, got list"),
    (lambda s: s["state"].update({1: 3}), TypeError, "Adam: the state of parameter 1 must be a mapping, got int"),
    (
        lambda s: s.update(state={str(number): kept for number, kept in s["state"].items()}),  # as JSON has it
        ValueError,
        r"Adam: the state has a parameter '0', its group has \[0, 1\]",
    ),
    (
        lambda s: s["state"][1].pop("exp_avg"),
        ValueError,
        "Adam: the state of parameter 1 must have exp_avg and exp_avg_sq",
    ),
    (kept(0, exp_avg=np.zeros((2, 3))), TypeError, "Adam: exp_avg of parameter 0 has dtype float64"),
    (kept(0, exp_avg=np.zeros((2, 4), "f4")), ValueError, r"0 must have shape \(2, 3\), got \(2, 4\)"),
    (
        kept(1, exp_avg_sq=object()),
        TypeError,
        "exp_avg_sq of parameter 1 must be an array of numbers, got object",
    ),
]


@pytest.mark.parametrize(("spoil", "error", "message"), STATES_WRONG, ids=[case[2] for case in STATES_WRONG])
def test_a_state_that_is_refused_changes_nothing(spoil, error, message):
    state = good_state()
    spoil(state)
    optimiser = Adam(Linear(3, 2, dtype=np.float32, rng=1), 0.125)
    before = contents(optimiser)
    with pytest.raises(error, match=message):
        optimiser.load_state_dict(state)
    assert contents(optimiser) == before
    assert optimiser.lr == 0.125


def test_a_state_is_loaded_at_once():
    """Wherever a signal hits load_state_dict, settings and state are all old or all new."""
    optimiser, seen = Adam(Linear(3, 2, rng=1), 0.125), []

    def look(*_):
        seen.append((optimiser.lr, optimiser.steps))
        return look

    state, before = good_state(), sys.gettrace()
    sys.settrace(look)
    try:
        optimiser.load_state_dict(state)
    finally:
        sys.settrace(before)
    look()
    assert set(seen) == {(0.125, 0), (0.25, 1)}


def test_steps_beyond_31_bits():
    """A small net takes as many in a quarter of an hour."""
    optimiser = Adam(Linear(3, 2, rng=1), 0.125)
    state = good_state()
    steps(2**31 - 2)(state)
    optimiser.load_state_dict(state)
    draw(optimiser.model, 0)
    for _ in range(3):
        optimiser.step()
    assert optimiser.steps == 2**31 + 1
    assert all(np.isfinite(p).all() for p in parameters(optimiser.model))


def test_a_state_that_is_no_mapping():
    with pytest.raises(TypeError, match="Adam: the state must be a mapping, got int"):
        Adam(Linear(3, 2)).load_state_dict(3)


def test_states_of_other_kinds():
    """SGD's dampening, which is not here; Adam's state for AdamW."""
    sgd = SGD(Linear(3, 2), momentum=0.5)
    state = sgd.state_dict()
    group(state)["dampening"] = 0.1
    with pytest.raises(ValueError, match=r"dampening must be 0 in the state, got 0\.1"):
        sgd.load_state_dict(state)
    with pytest.raises(ValueError, match="decoupled_weight_decay must be True"):
        AdamW(Linear(3, 2)).load_state_dict(good_state())
    with pytest.raises(ValueError, match="lacks momentum"):
        sgd.load_state_dict(good_state())


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimiser: pickle.loads(pickle.dumps(optimiser)),
    "state_dict": lambda optimiser: _reloaded(optimiser),
}


def _reloaded(optimiser):
    other = type(optimiser)(copy.deepcopy(optimiser.model), 123)
    other.load_state_dict(optimiser.state_dict())
    return other


@kinds
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_as_the_original(isa, dtype, kind, how):
    """Same bits after the same gradients, and neither sees the other's steps."""
    optimiser = make(kind, net(dtype))
    for step in range(3):
        draw(optimiser.model, step)
        optimiser.step()
    twin = COPIES[how](optimiser)
    assert type(twin) is type(optimiser)
    assert twin._settings == optimiser._settings
    between = contents(twin)
    draw(optimiser.model, 7)
    optimiser.step()
    assert contents(twin) == between
    draw(twin.model, 7)
    twin.step()
    assert contents(twin)[0] == contents(optimiser)[0]


def test_copy_has_the_same_model():
    optimiser = Adam(Linear(2, 2))
    assert copy.copy(optimiser).model is optimiser.model


class Remembering(Adam):
    __slots__ = ("note",)


class Free(SGD):
    pass


def test_what_a_subclass_keeps_comes_along():
    optimiser, other = Remembering(Linear(2, 1)), Free(Linear(2, 1))
    optimiser.note, other.word = "x", [1]
    for twin in (copy.deepcopy(optimiser), pickle.loads(pickle.dumps(optimiser))):
        assert twin.note == "x"
    assert copy.deepcopy(other).word == [1]


def _part(at, change):
    def damage(state):
        state[at] = change(state[at])

    return damage


DAMAGES = {
    "no model": _part(0, lambda model: None),
    "a model whose init was not called": _part(0, lambda model: Linear.__new__(Linear)),
    "another model": _part(0, lambda model: Linear(3, 3)),
    "settings gone": _part(1, lambda settings: {}),
    "settings that are refused": _part(1, lambda settings: {**settings, "lr": -1}),
    "no settings": _part(1, lambda settings: None),
    "steps below 0": _part(2, lambda steps: -1),
    "steps beyond 63 bits": _part(2, lambda steps: 2**70),
    "steps of another kind": _part(2, lambda steps: "3"),
    "a buffer of another shape": _part(3, lambda b: [[a[:-1] for a in b[0]], *b[1:]]),
    "a buffer of another dtype": _part(3, lambda b: [[a.astype("c8") for a in b[0]], *b[1:]]),
    "the last buffer of another shape": _part(3, lambda b: [*b[:-1], [*b[-1][:-1], np.zeros(7, "f4")]]),
    "a buffer missing": _part(3, lambda b: [b[0][:-1], *b[1:]]),
    "a parameter missing": _part(3, lambda b: b[:-1]),
    "a parameter more": _part(3, lambda b: [*b, b[0]]),
    "no buffers": _part(3, lambda b: None),
    "attributes of no kind": _part(4, lambda attributes: 3),
    "three attributes": _part(4, lambda attributes: ({}, {}, {})),
    "an attribute that is none": _part(4, lambda attributes: (None, {"unheard": 1})),
    "cut": list.pop,
}


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "AdamW"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pickle_leaves_nothing(kind, damage):
    """Whatever is wrong with the state, the optimiser has no model afterwards; a sound state can still come."""
    optimiser = make(kind, Linear(3, 2, rng=0))
    draw(optimiser.model, 0)
    optimiser.step()
    function, arguments, state = optimiser.__reduce__()
    twin, damaged = function(*arguments), list(state)
    DAMAGES[damage](damaged)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)):
        twin.__setstate__(tuple(damaged))
    assert twin.model is None
    for call in (twin.step, twin.zero_grad, twin.state_dict, lambda: setattr(twin, "lr", 1)):
        with pytest.raises(RuntimeError, match="has no model yet"):
            call()
    twin.__setstate__(state)
    assert contents(twin) == contents(optimiser)
    before = contents(twin), twin._settings
    for again in (state, damaged):
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)):
            twin.__setstate__(tuple(again))
        assert (contents(twin), twin._settings) == before


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SGD, {"lr": -1}),
        (SGD, {"nesterov": True}),
        (SGD, {"momentum": 1e39}),
        (Adam, {"betas": (0.9, 1)}),
        (Adam, {"eps": "x"}),
        (AdamW, {"weight_decay": math.nan}),
    ],
    ids=str,
)
def test_settings_that_are_refused_leave_no_model(cls, options):
    """An __init__ that raises has bound nothing, and a second one may."""
    optimiser, layer = cls.__new__(cls), Linear(2, 1)
    with pytest.raises((ValueError, TypeError)):
        optimiser.__init__(layer, **options)
    assert optimiser.model is None
    with pytest.raises(RuntimeError, match="has no model yet"):
        optimiser.step()
    optimiser.__init__(layer, 0.25)
    optimiser.step()
    assert optimiser.lr == 0.25


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam"])
def test_a_step_has_the_memory_it_needs(kind):
    """Whatever a subclass says that is kept for each parameter."""
    cls, options = KINDS[kind]

    class Forgetful(cls):
        _BUFFERS = ()

    optimiser, other = Forgetful(Linear(3, 2), 0.1, **options), Forgetful.__new__(Forgetful)
    optimiser.step()
    with pytest.raises(ValueError, match="zip"):
        other.__setstate__((optimiser.model, optimiser._settings, 0, [[]] * 2, None))
    assert other.model is None


def test_what_a_subclass_says_of_shapes_does_not_count():
    class Boasting(Adam):
        def _shapes(self):
            return [((1000, 1000), np.dtype(np.float64))] * 2

    class Renamed(Linear):
        dtype = "float16"

    layer = Renamed.from_weights(np.ones((2, 3)), np.ones(2))
    assert [[a.shape for a in arrays] for arrays in Boasting(layer)._buffers()] == [[(2, 3)] * 2, [(2,)] * 2]
    assert [dtype for _, dtype in Adam(layer)._shapes()] == [np.float64] * 2


def test_repr():
    assert repr(SGD(Linear(3, 2), 0.1)) == (
        "SGD(Linear(in_features=3, out_features=2, bias=True, dtype=float32), lr=0.1, momentum=0.0, nesterov=False, "
        "weight_decay=0.0)"
    )


# ---- memory, threads, signals


@kinds
def test_no_allocation_after_the_first_step(kind):
    """Python's allocator fails from the second step on, and steps go on; so do zero_grad and a change of lr."""
    testcapi = pytest.importorskip("_testcapi")
    if fastlinear.isa == "reference":
        pytest.skip("the reference allocates")
    optimiser = make(kind, net())
    draw(optimiser.model, 0)
    optimiser.step()
    before = contents(optimiser)
    gc.disable()
    testcapi.set_nomemory(0)
    try:
        optimiser.step()
        optimiser.zero_grad()
    finally:
        testcapi.remove_mem_hooks()
        gc.enable()
    assert contents(optimiser) != before
    assert not any(g.any() for g in gradients(optimiser.model))


def starve():
    """Let the first allocation of load_state_dict fail, then the second, and so on until it does not notice it."""
    import _testcapi

    failures = 0
    for kind in ("SGD momentum", "Adam"):
        state = make(kind, net(), 0.25)
        draw(state.model, 0)
        state.step()
        state = state.state_dict()

        def load(n, kind=kind, state=state):
            optimiser, missed = make(kind, net()), False
            _testcapi.set_nomemory(n, n + 1)
            try:
                optimiser.load_state_dict(state)
            except Exception:
                missed = True
            finally:
                _testcapi.remove_mem_hooks()
            return missed, (contents(optimiser), optimiser.lr)

        before, after, successes = (contents(make(kind, net())), 0.05), load(1 << 30)[1], 0
        for n in range(1000):
            missed, now = load(n)
            assert now == (before if missed else after), (kind, n)
            failures, successes = failures + missed, 0 if missed else successes + 1
            if successes == 20:
                break
    assert failures > 100, failures


def test_a_state_is_loaded_whole_or_not_at_all():
    """Whichever allocation of Python's fails in load_state_dict: settings and state are all old or all new."""
    pytest.importorskip("_testcapi")
    run = in_child(starve)
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_state_of_odd_arrays():
    """Fortran's order, other strides and byte orders, and memory that a copy would overlap."""
    optimiser, state = Adam(Linear(3, 2, rng=1)), good_state()
    expected = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + n for n, name in enumerate(Adam._BUFFERS)}
    optimiser.load_state_dict({**state, "state": {**state["state"], 0: {"step": 1, **expected}}})
    mine = dict(zip(Adam._BUFFERS, optimiser._buffers()[0], strict=True))
    for odd in (np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a.astype(">f4"), np.copy):
        kept = {"step": 1, **{name: odd(a) for name, a in expected.items()}}
        optimiser.load_state_dict({**state, "state": {**state["state"], 0: kept}})
        for name, a in expected.items():
            assert_same_bits(mine[name], a)
    swapped = {"exp_avg": mine["exp_avg_sq"], "exp_avg_sq": mine["exp_avg"]}
    optimiser.load_state_dict({**state, "state": {**state["state"], 0: {"step": 1, **swapped}}})
    assert_same_bits(mine["exp_avg"], expected["exp_avg_sq"])
    assert_same_bits(mine["exp_avg_sq"], expected["exp_avg"])


@pytest.mark.skipif(sys.platform != "linux", reason="sets Linux's limits")
def test_no_memory_for_the_state():
    """Where the system has none left, making the optimiser is a MemoryError."""
    run = python(
        "import resource, fastlinear\n"
        "layer = fastlinear.Linear(5000, 5000)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "fastlinear.Adam\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)\n"
        "try:\n    fastlinear.Adam(layer)\n"
        "except MemoryError:\n    print('refused')\n"
    )
    assert run.stdout == "refused\n", run.stderr


def test_memory_is_shared_by_nobody(isa):
    """The arrays of the state are views that cannot free it, and outlive the optimiser."""
    optimiser = Adam(Linear(30, 20))
    view = optimiser._buffers()[0][0]
    with pytest.raises(ValueError, match=r"resize|own"):
        view.resize(3)
    del optimiser
    gc.collect()
    view += 1
    assert view.sum() == 600


@pytest.mark.thread_unsafe(reason="starts threads")
def test_many_threads_on_one_optimiser(compiled_isa):
    """Steps, states and copies at once on one optimiser: nothing crashes, each step is counted."""
    optimiser = Adam(net(np.float32, 300, 300, 10), 1e-5)
    draw(optimiser.model, 0)
    optimiser.step()
    failures = []

    def work(n):
        try:
            for _ in range(10):
                optimiser.step()
                if n == 1:
                    optimiser.load_state_dict(optimiser.state_dict())
                if n == 2:
                    copy.deepcopy(optimiser).step()
                if n == 3:
                    optimiser.zero_grad()
                    clip_grad_norm(optimiser.model, 1)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(np.isfinite(p).all() for p in parameters(optimiser.model))


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_comes_before_or_after_a_step(compiled_isa):
    """All parameters of a step have changed, with their state, or none."""

    class Interrupt(BaseException):
        pass

    def handler(*_):
        raise Interrupt

    model = net(np.float32, 300, 300, 300)
    optimiser = Adam(model)
    draw(model, 0)
    optimiser.step()
    begin = time.perf_counter()
    optimiser.step()
    duration = time.perf_counter() - begin
    before_handler = signal.signal(signal.SIGALRM, handler)
    try:
        for part in (1.5, 2, 3, 4, 5, 7, 10, 20):
            twin = copy.deepcopy(optimiser)
            before = contents(optimiser)
            twin.step()
            after = contents(twin)
            try:
                signal.setitimer(signal.ITIMER_REAL, max(duration / part, 1e-6))
                optimiser.step()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                pass
            assert contents(optimiser) in (before, after)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_handler)


def test_no_warning(isa):
    """Overflow and 0/0 in a step are what IEEE says, without a RuntimeWarning."""
    layer = Linear(2, 1, False)
    layer.grad_weight[...] = 3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Adam(layer, eps=0).step()
        SGD(layer, 10).step()
