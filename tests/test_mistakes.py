"""What a new user does wrong first, at every entry point: each is an error that says what was expected, what came and,
where that is one thing, what to write instead, which then works; and nothing has been written."""

from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import (
    SGD,
    Adam,
    AdamW,
    Linear,
    Sequential,
    activations,
    clip_grad_norm,
    losses,
    set_num_threads,
    show_config,
    verify,
)
from fastlinear._layer import zeros

from .helpers import assert_same_bits, memory_of

IN, HIDDEN, OUT, ROWS = 7, 4, 3, 5
WEIGHT, BIAS = np.ones((OUT, IN), np.float32), np.ones(OUT, np.float32)
KERNEL = WEIGHT.T
ONE_HOT = np.eye(OUT, dtype=np.float32)[[0, 1, 2, 0, 1]]


class World:
    """Models, their arguments and a folder, to which nothing may happen."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.layer = Linear(IN, OUT, rng=rng)
        self.net = Sequential(Linear(IN, HIDDEN, rng=rng), "tanh", Linear(HIDDEN, OUT, rng=rng))
        self.x = rng.standard_normal((ROWS, IN), np.float32)
        self.g = rng.standard_normal((ROWS, OUT), np.float32)
        self.out = np.full((ROWS, OUT), 7, np.float32)
        self.labels = np.array([0, 1, 2, 0, 1])
        self.tape = self.net.record(self.x)
        for layer in (self.layer, *self.net.layers):
            layer.grad_weight[...], layer.grad_bias[...] = 3, 5
        self.folder = folder

    def path(self, name):
        return self.folder / name

    def arrays(self):
        yield from (self.x, self.g, self.out, self.labels, self.tape.output)
        for layer in (self.layer, *self.net.layers):
            yield from memory_of(layer).values()


class Frame:
    """What a data frame is to others: something with __array__ and astype, of one dtype or of objects."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def astype(self, dtype):
        return Frame(self.array.astype(dtype))


class Sparse:
    """What a matrix of scipy.sparse is to others."""

    def __init__(self, array):
        self.array = array

    def toarray(self):
        return self.array


def assign(model, name, value):
    setattr(model, name, value)


KEYWORDS = "Linear: dtype and rng come by keyword"
NO_NUMBERS = "x must be an array of numbers, got "
TO_FLOAT32 = (
    r"does not cast safely to the model's float32; convert it with x.astype\(np.float32\), or make the layer with "
)
SUFFIX = r"must be one of .npz, .safetensors, got '.*{}'"

# name: (the mistake, the error, what it says, and what it says to write, if that is one thing)
MISTAKES = {
    # ---- making a layer
    "dtype third": (
        lambda w: Linear(64, 10, np.float64),
        TypeError,
        "Linear: bias must be True or False, got the class float64; a dtype comes by keyword, dtype=np.float64$",
        lambda w: Linear(64, 10, dtype=np.float64),
    ),
    "Python's dtype third": (lambda w: Linear(64, 10, float), TypeError, "keyword, dtype=np.float64$"),
    "name of a dtype third": (lambda w: Linear(64, 10, "f4"), TypeError, "'f4'; .*keyword, dtype=np.float32$"),
    "dtype object third": (lambda w: Linear(64, 10, np.dtype("f4")), TypeError, "keyword, dtype=np.float32$"),
    "seed third": (
        lambda w: Linear(64, 10, 7),
        TypeError,
        "bias must be True or False, got int 7; a seed comes by keyword, rng=7$",
        lambda w: Linear(64, 10, rng=7),
    ),
    "seed 0 third": (
        lambda w: Linear(64, 10, 0),
        TypeError,
        "got int 0; a seed comes by keyword, rng=0; no bias is bias=False$",
        lambda w: (Linear(64, 10, rng=0), Linear(64, 10, bias=False)),
    ),
    "NumPy's seed third": (lambda w: Linear(64, 10, np.int64(3)), TypeError, "got int64; a seed .* rng="),
    "generator third": (
        lambda w: Linear(64, 10, np.random.default_rng(0)),
        TypeError,
        "got Generator; a seed or a Generator comes by keyword, rng=",
        lambda w: Linear(64, 10, rng=np.random.default_rng(0)),
    ),
    "bias as text": (lambda w: Linear(64, 10, bias="no"), TypeError, "must be True or False, got str 'no'$"),
    "bias a float": (lambda w: Linear(64, 10, bias=1.0), TypeError, "must be True or False, got float 1.0$"),
    "bias None": (
        lambda w: Linear(64, 10, bias=None),
        TypeError,
        "must be True or False, got None; no bias is bias=False$",
        lambda w: Linear(64, 10, bias=False),
    ),
    "bias of values": (
        lambda w: Linear(IN, OUT, BIAS),
        TypeError,
        r"got ndarray of float32 and shape \(3,\); Linear.from_weights\(weight, bias\) makes a layer of values$",
        lambda w: Linear.from_weights(WEIGHT, BIAS),
    ),
    "bias a list": (lambda w: Linear(64, 10, [0.0] * 10), TypeError, "got list; Linear.from_weights"),
    "dtype fourth": (lambda w: Linear(64, 10, True, np.float64), TypeError, KEYWORDS, None),
    "dtype and seed by place": (lambda w: Linear(64, 10, True, np.float64, 0), TypeError, KEYWORDS, None),
    "dtype None": (lambda w: Linear(64, 10, dtype=None), TypeError, "got None; leave it out for float32$"),
    "dtype unknown": (lambda w: Linear(64, 10, dtype="real"), TypeError, "float32 or float64, got str 'real'$"),
    "dtype int": (lambda w: Linear(64, 10, dtype=int), TypeError, "dtype must be float32 or float64, got int64"),
    "shape for a size": (
        lambda w: Linear((32, 784), 10),
        TypeError,
        r"in_features must be an integer, got tuple \(32, 784\); the features of that shape are its last number, 784$",
        lambda w: Linear(784, 10),
    ),
    "sizes in a list": (lambda w: Linear([784, 10]), TypeError, "missing 1 required .* 'out_features'"),
    "size a float": (lambda w: Linear(784 / 2, 10), TypeError, "must be an integer, got float 392.0"),
    "seed as text": (lambda w: Linear(64, 10, rng="seed"), TypeError, r"rng must be a seed .*, got str 'seed'$"),
    "seed negative": (
        lambda w: Linear(64, 10, rng=-1),
        ValueError,
        "rng must be a seed .* negative.*, got int -1",
    ),
    "NumPy's module as rng": (lambda w: w.layer.reset(np.random), TypeError, "rng must be a seed .*, got module"),
    # ---- weights from elsewhere
    "Keras's kernel": (
        lambda w: Linear.from_weights(KERNEL, BIAS),
        ValueError,
        r"bias must have shape \(7,\) .*, got \(3,\); weight is \(out_features, in_features\), and weight.T would fit$",
        lambda w: Linear.from_weights(KERNEL.T, BIAS),
    ),
    "get_weights as one": (
        lambda w: Linear.from_weights([WEIGHT, BIAS]),
        ValueError,
        "weight cannot be read as an array: .*; a weight and a bias are two arguments$",
        lambda w: Linear.from_weights(*[WEIGHT, BIAS]),
    ),
    "a state as the weight": (
        lambda w: Linear.from_weights(w.layer.state_dict()),
        TypeError,
        r"array of numbers, got dict; .* from_weights\(\*\*state\)$",
        lambda w: Linear.from_weights(**w.layer.state_dict()),
    ),
    "no weight": (lambda w: Linear.from_weights(None), TypeError, "weight must be an array of numbers, got None"),
    "bias False": (
        lambda w: Linear.from_weights(WEIGHT, False),
        TypeError,
        r"bias must be an array of shape \(3,\), or None, got False",
        lambda w: Linear.from_weights(WEIGHT, None),
    ),
    "weights of integers": (
        lambda w: Linear.from_weights(WEIGHT.astype(int)),
        TypeError,
        r"weight must be float32 or float64, got int64; convert it with weight.astype\(np.float32\)$",
        lambda w: Linear.from_weights(WEIGHT.astype(int).astype(np.float32)),
    ),
    "half precision": (lambda w: Linear.from_weights(WEIGHT.astype("f2")), TypeError, r"float16; .*astype\(np.f"),
    "assigned kernel": (
        lambda w: assign(w.layer, "weight", KERNEL),
        ValueError,
        r"weight must have shape \(3, 7\), got \(7, 3\); weight.T would fit$",
        lambda w: assign(w.layer, "weight", KERNEL.T),
    ),
    "assigned None": (lambda w: assign(w.layer, "weight", None), TypeError, "weight must be an array .* None$"),
    "assigned column": (
        lambda w: assign(w.layer, "bias", BIAS[:, None]),
        ValueError,
        r"bias must have shape \(3,\), got \(3, 1\); bias.reshape\(3\) would fit$",
        lambda w: assign(w.layer, "bias", BIAS[:, None].reshape(3)),
    ),
    "assigned float64": (
        lambda w: assign(w.layer, "weight", WEIGHT.astype(float)),
        TypeError,
        r"weight has dtype float64, .* convert it with weight.astype\(np.float32\)",
        lambda w: assign(w.layer, "weight", WEIGHT.astype(float).astype(np.float32)),
    ),
    # ---- a call
    "x None": (lambda w: w.layer(None, out=w.out), TypeError, NO_NUMBERS + "None$"),
    "x a name": (lambda w: w.layer("x.npy", out=w.out), TypeError, NO_NUMBERS + "str 'x.npy'$"),
    "x an object": (lambda w: w.layer(object(), out=w.out), TypeError, NO_NUMBERS + "object$"),
    "x a dict": (lambda w: w.layer({"x": w.x}), TypeError, NO_NUMBERS + "dict$"),
    "x a set": (lambda w: w.layer({1.0, 2.0}), TypeError, NO_NUMBERS + "set$"),
    "x a layer": (lambda w: w.layer(w.net), TypeError, NO_NUMBERS + "Sequential$"),
    "x a tape": (
        lambda w: w.layer(w.tape),
        TypeError,
        NO_NUMBERS + "Tape; what a tape has of the output is tape.output$",
        lambda w: Linear(OUT, 1)(w.tape.output),
    ),
    "x an iterator": (
        lambda w: w.layer(map(float, range(7))),
        TypeError,
        NO_NUMBERS + "map; make a list of it first$",
        lambda w: w.layer(list(map(float, range(7)))),
    ),
    "x sparse": (
        lambda w: w.layer(Sparse(w.x)),
        TypeError,
        NO_NUMBERS + r"Sparse; a sparse matrix has toarray\(\)$",
        lambda w: w.layer(Sparse(w.x).toarray()),
    ),
    "x of text": (lambda w: w.layer([["1"] * IN]), TypeError, "dtype <U1, .*; it must hold numbers, not text$"),
    "x with None": (
        lambda w: w.layer([None] * IN),
        TypeError,
        "object, .*must hold numbers, not Python objects$",
    ),
    "x of dates": (lambda w: w.layer(np.zeros(IN, "M8[s]")), TypeError, "must hold numbers, not dates$"),
    "x complex": (lambda w: w.layer(w.x * 1j), TypeError, "complex64, .*; it must hold real numbers$"),
    "x float64": (
        lambda w: w.layer(w.x.astype(float), out=w.out),
        TypeError,
        "x has dtype float64, which " + TO_FLOAT32 + "dtype=np.float64$",
        lambda w: (w.layer(w.x.astype(float).astype(np.float32)), w.layer.astype(np.float64)(w.x.astype(float))),
    ),
    "x of integers": (
        lambda w: w.layer(np.ones((ROWS, IN), int)),
        TypeError,
        "x has dtype int64, which " + TO_FLOAT32 + "dtype=np.float64$",
        lambda w: w.layer(np.ones((ROWS, IN), int).astype(np.float32)),
    ),
    "x a frame of float64": (
        lambda w: w.layer(Frame(w.x.astype(float))),
        TypeError,
        "x has dtype float64, which " + TO_FLOAT32,
        lambda w: w.layer(Frame(w.x.astype(float)).astype(np.float32)),
    ),
    "x a frame with text": (lambda w: w.layer(Frame(w.x.astype(object))), TypeError, "numbers, not Python obj"),
    "x a range": (
        lambda w: w.layer(range(IN)),
        TypeError,
        r"x has dtype int64, .* convert it with np.asarray\(x, np.float32\)",
        lambda w: w.layer(np.asarray(range(IN), np.float32)),
    ),
    "x transposed": (
        lambda w: w.layer(w.x.T, out=w.out),
        ValueError,
        r"x must have 7 features in its last axis, got shape \(7, 5\); x.T would fit$",
        lambda w: w.layer(w.x.T.T),
    ),
    "pictures": (
        lambda w: Linear(784, 10)(np.ones((32, 28, 28), np.float32)),
        ValueError,
        r"784 features in its last axis, got shape \(32, 28, 28\); x.reshape\(32, 784\) would fit$",
        lambda w: Linear(784, 10)(np.ones((32, 28, 28), np.float32).reshape(32, 784)),
    ),
    "a picture": (
        lambda w: Linear(784, 10)(np.ones((28, 28), np.float32)),
        ValueError,
        r"got shape \(28, 28\); x.reshape\(784\) would fit$",
        lambda w: Linear(784, 10)(np.ones((28, 28), np.float32).reshape(784)),
    ),
    "rows of one feature": (
        lambda w: Linear(1, 3)(np.ones(5, np.float32)),
        ValueError,
        r"1 features in its last axis, got shape \(5,\); x\[:, None\] would fit, as 5 rows$",
        lambda w: Linear(1, 3)(np.ones(5, np.float32)[:, None]),
    ),
    "too many features": (lambda w: w.layer(np.ones((5, 8), np.float32)), ValueError, r"got shape \(5, 8\)$"),
    "out a flag": (lambda w: w.layer(w.x, True), TypeError, "out must be a numpy.ndarray, got bool"),
    "out of another dtype": (lambda w: w.layer(w.x, np.empty((5, 3))), TypeError, "out must have dtype float32"),
    "a net's x None": (lambda w: w.net(None), TypeError, r"Sequential\(7, 3\): " + NO_NUMBERS + "None$"),
    "a net's x float64": (lambda w: w.net(w.x.astype(float)), TypeError, TO_FLOAT32),
    "a net's x transposed": (lambda w: w.net(w.x.T), ValueError, r"got shape \(7, 5\); x.T would fit$"),
    # ---- backward
    "arguments of backward swapped": (
        lambda w: w.layer.backward(w.g, w.x),
        ValueError,
        r"x must have 7 .* shape \(5, 3\), and grad_output 3, got shape \(5, 7\); x comes first, then grad_output$",
        lambda w: w.layer.backward(w.x, w.g),
    ),
    "arguments of an update swapped": (
        lambda w: w.layer.backward_update(w.g, w.x, 0.1),
        ValueError,
        "x comes first, then grad_output$",
        lambda w: w.layer.backward_update(w.x, w.g, 0.1),
    ),
    "no grad_output": (lambda w: w.layer.backward(w.x, None), TypeError, "grad_output must be an array .* None$"),
    "scale in out's place": (
        lambda w: w.layer.backward(w.x, w.g, 0.5),
        TypeError,
        "out must be a numpy.ndarray, got float 0.5; a scale comes by keyword, scale=0.5$",
        lambda w: w.layer.backward(w.x, w.g, scale=0.5),
    ),
    "what a loss returns": (
        lambda w: w.layer.backward(w.x, losses.log_loss(w.layer(w.x), w.labels)),
        ValueError,
        "of what a loss returns, the gradient is the second part: loss, grad_output = ...$",
        lambda w: w.layer.backward(w.x, losses.log_loss(w.layer(w.x), w.labels)[1]),
    ),
    "rows that differ": (
        lambda w: w.layer.backward(w.x, w.g[:3]),
        ValueError,
        r"grad_output must have shape \(5, 3\) to match x of shape \(5, 7\), got \(3, 3\)$",
        lambda w: w.layer.backward(w.x[:3], w.g[:3]),
    ),
    "x for backward_input": (
        lambda w: w.layer.backward_input(w.x, w.g),
        ValueError,
        r"grad_output must have 3 features in its last axis, got shape \(5, 7\); that is the shape of x$",
        lambda w: w.layer.backward_input(w.g),
    ),
    "lr a list": (lambda w: w.layer.backward_update(w.x, w.g, [0.1]), TypeError, "lr must be a real .* list$"),
    "lr an array": (
        lambda w: w.layer.backward_update(w.x, w.g, np.full(3, 0.1)),
        TypeError,
        r"lr must be a real number, got ndarray of float64 and shape \(3,\)$",
    ),
    "lr an array of one": (lambda w: w.layer.step(np.full(1, 0.1)), TypeError, r"float64 and shape \(1,\)$"),
    "lr as text": (lambda w: w.layer.step("0.1"), TypeError, "lr must be a real number, got str '0.1'$"),
    "lr None": (lambda w: w.layer.step(None), TypeError, "lr must be a real number, got None$"),
    "a net's lr in a list": (lambda w: w.net.step([0.1]), TypeError, "lr must be a real number, got list$"),
    "x for a tape": (
        lambda w: w.net.backward(w.x, w.g),
        TypeError,
        r"tape must be a Tape, which record\(\) gives, got ndarray; tape = net.record\(x\)$",
        lambda w: w.net.backward(w.net.record(w.x), w.g),
    ),
    "a tape for grad_output": (lambda w: w.net.backward(w.tape, w.tape), TypeError, "Tape; .* tape.output$"),
    "a net's scale in out's place": (lambda w: w.net.backward(w.tape, w.g, 2), TypeError, "keyword, scale=2$"),
    # ---- parts of a net
    "parts in a list": (
        lambda w: Sequential([Linear(3, 2), "relu"]),
        TypeError,
        r"part 0 must be a Linear or the name of an activation \(relu, .*\), got list; write Sequential\(\*parts\)$",
        lambda w: Sequential(*[Linear(3, 2), "relu"]),
    ),
    "NumPy's function": (
        lambda w: Sequential(Linear(3, 2), np.tanh),
        TypeError,
        "got ufunc; write 'tanh'$",
        lambda w: Sequential(Linear(3, 2), "tanh"),
    ),
    "our function": (lambda w: Sequential(Linear(3, 2), activations.elu), TypeError, "function; write 'elu'$"),
    "capitals": (
        lambda w: Sequential(Linear(3, 2), "ReLU"),
        ValueError,
        "one of relu, .*, got 'ReLU'; write 'relu'$",
        lambda w: Sequential(Linear(3, 2), "relu"),
    ),
    "without underscore": (lambda w: Sequential(Linear(3, 2), "LeakyReLU"), ValueError, "write 'leaky_relu'$"),
    "another name": (lambda w: Sequential(Linear(3, 2), "swish"), ValueError, "'swish'; write 'silu'$"),
    "another function": (lambda w: Sequential(Linear(3, 2), "selu"), ValueError, "softmax, got 'selu'$"),
    "sizes": (
        lambda w: Sequential((3, 2), "relu"),
        TypeError,
        r"part 0 .*, got tuple; write Linear\(3, 2\)$",
        lambda w: Sequential(Linear(3, 2), "relu"),
    ),
    "the class": (lambda w: Sequential(Linear, "relu"), TypeError, r"got type; write Linear\(in_features, out_"),
    "no activation": (
        lambda w: Sequential(Linear(3, 2), None),
        TypeError,
        "part 1 .*, got NoneType; leave it out$",
        lambda w: Sequential(Linear(3, 2)),
    ),
    "a net in a net": (
        lambda w: Sequential(w.net, "relu"),
        TypeError,
        r"part 0 .*, got Sequential; write \*net.parts",
        lambda w: Sequential(*w.net.parts, "relu"),
    ),
    "sizes that do not meet": (
        lambda w: Sequential(Linear(3, 2), "relu", Linear(3, 2)),
        ValueError,
        "part 2 takes 3 features, and what comes before it gives 2",
    ),
    # ---- states and files
    "kernel in a state": (
        lambda w: w.layer.load_state_dict({"weight": KERNEL, "bias": BIAS}),
        ValueError,
        r"weight must have shape \(3, 7\), got \(7, 3\); weight.T would fit$",
        lambda w: w.layer.load_state_dict({"weight": KERNEL.T, "bias": BIAS}),
    ),
    "Keras's names": (
        lambda w: w.layer.load_state_dict({"kernel": KERNEL, "bias": BIAS}),
        ValueError,
        r"must have the keys \['bias', 'weight'\], got \['bias', 'kernel'\]; Keras's and JAX's kernel is weight.T$",
        lambda w: w.layer.load_state_dict({"weight": KERNEL.T, "bias": BIAS}),
    ),
    "names with a prefix": (
        lambda w: w.layer.load_state_dict({"0.weight": WEIGHT, "0.bias": BIAS}),
        ValueError,
        r"got \['0.bias', '0.weight'\]; those that begin with '0.' would fit without it$",
    ),
    "a net's names with a prefix": (
        lambda w: w.net.load_state_dict({f"module.{name}": a for name, a in w.net.state_dict().items()}),
        ValueError,
        "those that begin with 'module.' would fit without it$",
    ),
    "a net's kernel": (
        lambda w: w.net.load_state_dict(w.net.state_dict() | {"0.weight": np.ones((IN, HIDDEN), np.float32)}),
        ValueError,
        r"part 0: .* weight must have shape \(4, 7\), got \(7, 4\); weight.T would fit$",
    ),
    "a layer as a state": (
        lambda w: w.layer.load_state_dict(Linear(IN, OUT)),
        TypeError,
        r"must be a mapping, got Linear; give its state_dict\(\)$",
        lambda w: w.layer.load_state_dict(Linear(IN, OUT).state_dict()),
    ),
    "a net as a state": (lambda w: w.net.load_state_dict(w.net), TypeError, r"got Sequential; give its state_"),
    "a path as a state": (
        lambda w: w.net.load_state_dict("net.npz"),
        TypeError,
        r"must be a mapping, got str; load\(path\) makes a model of a file$",
    ),
    "an optimiser as a state": (
        lambda w: Adam(w.net).load_state_dict(Adam(w.net)),
        TypeError,
        r"must be a mapping, got Adam; give its state_dict\(\)$",
        lambda w: Adam(w.net).load_state_dict(Adam(w.net).state_dict()),
    ),
    "saved without a suffix": (
        lambda w: w.layer.save(w.path("model")),
        ValueError,
        SUFFIX.format("model") + "; write '.*model.npz'$",
        lambda w: w.layer.save(w.path("model.npz")),
    ),
    "a net saved without one": (lambda w: w.net.save(w.path("net")), ValueError, "; write '.*net.npz'$"),
    "saved in capitals": (
        lambda w: w.layer.save(w.path("model.NPZ")),
        ValueError,
        "; write '.*model.npz'$",
        lambda w: w.layer.save(w.path("model.npz")),
    ),
    "saved as PyTorch does": (
        lambda w: w.net.save(w.path("net.pt")),
        ValueError,
        SUFFIX.format("net.pt") + "; write '.*net.safetensors', which safetensors.torch reads$",
        lambda w: w.net.save(w.path("net.safetensors")),
    ),
    "saved nowhere": (lambda w: w.layer.save(None), TypeError, "must be a str, bytes or .*, got NoneType$"),
    "PyTorch's file": (
        lambda w: Linear.load(w.path("model.pt")),
        ValueError,
        SUFFIX.format("model.pt") + r"; load_state_dict\(torch.load\(path, weights_only=True\)\) takes PyTorch's$",
    ),
    "PyTorch's file as a net": (lambda w: Sequential.load("model.pth"), ValueError, "weights_only=True"),
    "one array": (
        lambda w: Linear.load("w.npy"),
        ValueError,
        "; np.load reads one array, and Linear.from_weights",
    ),
    "loaded from nowhere": (lambda w: Linear.load(None), TypeError, "must be a str, bytes or .*, got NoneType$"),
    "a net from nowhere": (
        lambda w: Sequential.load(None),
        TypeError,
        "must be a str, bytes or .*, got NoneType$",
    ),
    # ---- optimisers
    "parameters": (
        lambda w: SGD([w.layer.weight, w.layer.bias], lr=0.1),
        TypeError,
        "model must be a Linear or a Sequential, got list; give the model itself, not its parameters or layers$",
        lambda w: SGD(w.layer, lr=0.1),
    ),
    "layers": (
        lambda w: SGD(w.net.layers, lr=0.1),
        TypeError,
        "got tuple; give the model itself",
        lambda w: SGD(w.net),
    ),
    "a state for a model": (lambda w: Adam(w.net.state_dict()), TypeError, "got dict; give the model itself"),
    "a generator of them": (lambda w: Adam(iter(w.net.layers)), TypeError, "give the model itself"),
    "lr first": (
        lambda w: SGD(0.1, w.net),
        TypeError,
        "got float; the model comes first, then lr$",
        lambda w: SGD(w.net, 0.1),
    ),
    "class for a model": (lambda w: SGD(Linear, 0.1), TypeError, "got type; it must be an object"),
    "an optimiser's lr as text": (lambda w: Adam(w.net, "1e-3"), TypeError, "Adam: lr must be .* str '1e-3'$"),
    "an optimiser's lr an array": (
        lambda w: AdamW(w.net, np.full(2, 0.1)),
        TypeError,
        r"lr must .* shape \(2,\)$",
    ),
    "PyTorch's order": (
        lambda w: SGD(w.net, 0.1, 0.9, 1e-4),
        TypeError,
        "nesterov must be True or False, got 0.0001; weight_decay comes after it, weight_decay=0.0001$",
        lambda w: SGD(w.net, 0.1, 0.9, weight_decay=1e-4),
    ),
    "betas one by one": (
        lambda w: Adam(w.net, 1e-3, 0.9, 0.999),
        TypeError,
        "betas must be two numbers, got 0.9",
    ),
    "gradients to clip": (
        lambda w: clip_grad_norm(w.layer.grad_weight, 1.0),
        TypeError,
        "clip_grad_norm: model must be .*, got ndarray; give the model itself",
        lambda w: clip_grad_norm(w.layer, 1.0),
    ),
    "arguments of clip_grad_norm swapped": (
        lambda w: clip_grad_norm(1.0, w.net),
        TypeError,
        "max_norm must be a real number, got Sequential$",
        lambda w: clip_grad_norm(w.net, 1.0),
    ),
    # ---- losses
    "one-hot labels": (
        lambda w: losses.log_loss(w.g, ONE_HOT, w.out),
        TypeError,
        r"labels must be integers or bools, got dtype float32; of one-hot rows take np.argmax\(labels, -1\)$",
        lambda w: losses.log_loss(w.g, np.argmax(ONE_HOT, -1)),
    ),
    "one-hot labels of integers": (
        lambda w: losses.hinge(w.g, ONE_HOT.astype(int), w.out),
        ValueError,
        r"labels must have shape \(5,\), .*, got \(5, 3\); of one-hot rows take np.argmax\(labels, -1\)$",
        lambda w: losses.hinge(w.g, np.argmax(ONE_HOT.astype(int), -1)),
    ),
    "floats as labels": (
        lambda w: losses.log_loss(w.g, [0.0, 1.0, 2.0, 0.0, 1.0]),
        TypeError,
        r"got dtype float64; np.asarray\(labels, int\) converts them$",
        lambda w: losses.log_loss(w.g, np.asarray([0.0, 1.0, 2.0, 0.0, 1.0], int)),
    ),
    "labels in a column": (
        lambda w: losses.log_loss(w.g, w.labels[:, None], w.out),
        ValueError,
        r"must have shape \(5,\), .*, got \(5, 1\); labels.reshape\(5\) would fit$",
        lambda w: losses.log_loss(w.g, w.labels[:, None].reshape(5)),
    ),
    "text as labels": (
        lambda w: losses.log_loss(w.g, ["a", "b", "c", "a", "b"]),
        TypeError,
        r"got dtype <U1; np.unique\(labels, return_inverse=True\)\[1\] numbers them$",
        lambda w: losses.log_loss(w.g, np.unique(["a", "b", "c", "a", "b"], return_inverse=True)[1]),
    ),
    "labels from 1": (lambda w: losses.log_loss(w.g, w.labels + 1), ValueError, "from 0 to 2, got 3 in row 2$"),
    "labels of signs": (
        lambda w: losses.hinge(w.g[:, :1], [-1, 1, 1, -1, 1]),
        ValueError,
        r"labels must be 0 or 1 for one output, got -1 in row 0; of labels -1 and 1 take np.asarray\(labels\) > 0$",
        lambda w: losses.hinge(w.g[:, :1], np.asarray([-1, 1, 1, -1, 1]) > 0),
    ),
    "no labels": (
        lambda w: losses.log_loss(w.g, None),
        TypeError,
        "labels must be an array of numbers, got None$",
    ),
    "no scores": (lambda w: losses.log_loss(None, w.labels), TypeError, "scores must be an array .* None$"),
    "labels first": (
        lambda w: losses.log_loss(w.labels, w.g),
        TypeError,
        "labels must be integers or bools, got dtype float32; scores come first, then labels$",
        lambda w: losses.log_loss(w.g, w.labels),
    ),
    "a flat target": (
        lambda w: losses.squared_error(w.g[:, :1], w.g[:, 0]),
        ValueError,
        r"target must have shape \(5, 1\) as the output, got \(5,\); target.reshape\(5, 1\) would fit$",
        lambda w: losses.squared_error(w.g[:, :1], w.g[:, 0].reshape(5, 1)),
    ),
    "a transposed target": (lambda w: losses.huber(w.g, w.g.T), ValueError, "; target.T would fit$"),
    "a target of float64": (
        lambda w: losses.squared_error(w.g, w.g.astype(float)),
        TypeError,
        r"does not cast safely to the output's float32; convert it with target.astype\(np.float32\)$",
        lambda w: losses.squared_error(w.g, w.g.astype(float).astype(np.float32)),
    ),
    "a tape for an output": (
        lambda w: losses.squared_error(w.tape, w.g),
        TypeError,
        "output must be an array of numbers, got Tape; what a tape has of the output is tape.output$",
        lambda w: losses.squared_error(w.tape.output, w.g),
    ),
    "a complex output": (
        lambda w: losses.huber(w.g * 1j, w.g),
        TypeError,
        "complex64; it must hold real numbers$",
    ),
    # ---- activations
    "an activation of None": (
        lambda w: activations.tanh(None, w.out),
        TypeError,
        "tanh: " + NO_NUMBERS + "None$",
    ),
    "an activation of text": (lambda w: activations.relu("x"), TypeError, "relu: " + NO_NUMBERS + "str 'x'$"),
    "of objects": (lambda w: activations.elu(w.g.astype(object)), TypeError, "numbers, not Python objects$"),
    "of complex numbers": (lambda w: activations.elu(w.g * 1j), TypeError, "; it must hold real numbers$"),
    "of a tape": (lambda w: activations.gelu(w.tape), TypeError, "Tape; .* tape.output$"),
    "out of an activation": (
        lambda w: activations.silu(w.g, True),
        TypeError,
        "out must be .*ndarray, got bool$",
    ),
    # ---- learn
    "one-hot y": (
        lambda w: w.layer.learn(w.x, ONE_HOT, 0.1, "log_loss"),
        TypeError,
        r"y must be integers, got float32; of one-hot rows take np.argmax\(y, -1\)$",
        lambda w: w.layer.learn(w.x, np.argmax(ONE_HOT, -1), 0.1, "log_loss"),
    ),
    "one-hot y of integers": (
        lambda w: w.layer.learn(w.x, ONE_HOT.astype(int), 0.1, "log_loss"),
        ValueError,
        r"y must have shape \(5,\) to match X, got \(5, 3\); of one-hot rows take np.argmax\(y, -1\)$",
        lambda w: w.layer.learn(w.x, np.argmax(ONE_HOT.astype(int), -1), 0.1, "log_loss"),
    ),
    "labels without a loss for them": (
        lambda w: w.layer.learn(w.x, w.labels, 0.1),
        ValueError,
        r"y must have shape \(5, 3\) to match X, got \(5,\); for labels give loss='log_loss' or 'hinge'$",
        lambda w: w.layer.learn(w.x, w.labels, 0.1, loss="hinge"),
    ),
    "y transposed": (lambda w: w.layer.learn(w.x, w.g.T, 0.1), ValueError, r"got \(3, 5\); y.T would fit$"),
    "X transposed": (lambda w: w.layer.learn(w.x.T, w.g, 0.1), ValueError, r"got shape \(7, 5\); X.T would fit$"),
    "X None": (lambda w: w.layer.learn(None, w.g, 0.1), TypeError, "X must be an array of numbers, got None$"),
    "y None": (lambda w: w.layer.learn(w.x, None, 0.1), TypeError, "y must be an array of numbers, got None$"),
    "no y for labels": (lambda w: w.layer.learn(w.x, None, 0.1, "hinge"), TypeError, "y must .*, got None$"),
    "X float64": (
        lambda w: w.layer.learn(w.x.astype(float), w.g, 0.1),
        TypeError,
        r"X has dtype float64, .* convert it with X.astype\(np.float32\), or make the layer with dtype=np.float64$",
        lambda w: w.layer.learn(w.x.astype(float).astype(np.float32), w.g, 0.1),
    ),
    "y of signs": (
        lambda w: Linear(IN, 1).learn(w.x, [-1, 1, 1, -1, 1], 0.1, "log_loss"),
        ValueError,
        r"labels from 0 to 1, got -1 at 0; of labels -1 and 1 take np.asarray\(y\) > 0$",
        lambda w: Linear(IN, 1).learn(w.x, np.asarray([-1, 1, 1, -1, 1]) > 0, 0.1, "log_loss"),
    ),
    "y of text": (lambda w: w.layer.learn(w.x, ["a"] * 5, 0.1, "hinge"), TypeError, r"<U1; np.unique\(y, "),
    "PyTorch's name of a loss": (
        lambda w: w.layer.learn(w.x, w.labels, 0.1, "cross_entropy"),
        ValueError,
        "loss must be one of .*, got 'cross_entropy'; write 'log_loss'$",
        lambda w: w.layer.learn(w.x, w.labels, 0.1, "log_loss"),
    ),
    "mse": (lambda w: w.layer.learn(w.x, w.g, 0.1, "mse"), ValueError, "got 'mse'; write 'squared_error'$"),
    "the function of a loss": (
        lambda w: w.layer.learn(w.x, w.labels, 0.1, losses.log_loss),
        ValueError,
        "got <.*log_loss.*>; write 'log_loss'$",
    ),
    "the loss in lr's place": (
        lambda w: w.layer.learn(w.x, w.labels, "log_loss"),
        TypeError,
        "lr must be a number or one for each batch, got 'log_loss'; it comes before the loss$",
        lambda w: w.layer.learn(w.x, w.labels, 0.1, "log_loss"),
    ),
    "order as text": (lambda w: w.layer.learn(w.x, w.g, 0.1, order="random"), TypeError, "order must be"),
    # ---- the rest
    "verify's model second": (lambda w: verify(w.x, w.layer, w.g), TypeError, "model must be .*, got ndarray"),
    "verify of None": (lambda w: verify(w.layer, w.x, None), TypeError, "grad_output must be an array .* None$"),
    "threads as text": (lambda w: set_num_threads("2"), TypeError, "n must be an integer, got str"),
    "no threads": (lambda w: set_num_threads(0), ValueError, "n must be from 1 to 1024, got 0"),
    "threads in halves": (lambda w: set_num_threads(1.5), TypeError, "n must be an integer, got float"),
    "mode of show_config": (
        lambda w: show_config("json"),
        ValueError,
        "mode must be 'stdout' or 'dicts', got 'js",
    ),
}


def check(folder, mistake, error, says, instead=None):
    world = World(folder)
    arrays, threads = [a.copy() for a in world.arrays()], fastlinear.get_num_threads()
    with pytest.raises(error, match=says) as caught:
        mistake(world)
    assert type(caught.value) is error
    for now, before in zip(world.arrays(), arrays, strict=True):
        assert_same_bits(now, before)
    assert not list(folder.iterdir())
    assert fastlinear.get_num_threads() == threads
    if instead is not None:
        instead(world)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, tmp_path):
    """The error has the helpful words, nothing was written, and what it says to write does work."""
    check(tmp_path, *MISTAKES[name])


# name: the same, of PyTorch's module and a World
TORCH_MISTAKES = {
    "dtype third": (lambda t, w: Linear(64, 10, t.float64), TypeError, "got torch.float64; .*dtype=np.float64$"),
    "dtype": (lambda t, w: Linear(64, 10, dtype=t.float32), TypeError, "got torch.float32; write np.float32$"),
    "rng": (lambda t, w: Linear(64, 10, rng=t.Generator()), TypeError, "rng must be a seed .*, got Generator$"),
    "requires_grad": (
        lambda t, w: w.layer(t.ones(5, 7, requires_grad=True)),
        TypeError,
        r"x cannot be read as an array: Tensor: .* Use tensor.detach\(\)",
    ),
    "double": (
        lambda t, w: w.layer(t.ones(5, 7, dtype=t.float64)),
        TypeError,
        r"x has dtype float64, .*convert it with x.float\(\), or make the layer with dtype=np.float64$",
    ),
    "integers": (lambda t, w: w.layer(t.ones(5, 7, dtype=t.int64)), TypeError, r"int64, .* with x.float\(\)"),
    "float into float64": (
        lambda t, w: losses.huber(w.g, t.ones(5, 3).double()),
        TypeError,
        r"target has dtype float64, .* convert it with target.float\(\)$",
    ),
    "bfloat16": (lambda t, w: w.layer(t.ones(7).bfloat16()), TypeError, r"BFloat16; x.float\(\) can be$"),
    "a parameter": (lambda t, w: Linear.from_weights(t.nn.Linear(3, 2).weight), TypeError, r"tensor.detach\(\)"),
    "a module as weight": (
        lambda t, w: Linear.from_weights(t.nn.Linear(3, 2)),
        TypeError,
        "weight must be an array of numbers, got Linear; from_torch takes PyTorch's modules$",
    ),
    "a module as a state": (
        lambda t, w: w.layer.load_state_dict(t.nn.Linear(7, 3)),
        TypeError,
        r"must be a mapping, got Linear; give its state_dict\(\)$",
    ),
    "a Sequential for a Linear": (
        lambda t, w: Linear.from_torch(t.nn.Sequential(t.nn.Linear(3, 2))),
        TypeError,
        "must be a torch.nn.Linear, got Sequential; Sequential.from_torch takes it$",
    ),
    "a state for a module": (
        lambda t, w: Linear.from_torch(t.nn.Linear(3, 2).state_dict()),
        TypeError,
        "must be a torch.nn.Linear, got OrderedDict$",
    ),
    "our layer for a module": (lambda t, w: Sequential.from_torch(w.layer), TypeError, "torch.nn.Module, got Linear"),
    "an object as activation": (
        lambda t, w: Sequential(Linear(3, 2), t.nn.ReLU()),
        TypeError,
        "got ReLU; write 'relu'$",
    ),
    "a class as activation": (lambda t, w: Sequential(Linear(3, 2), t.nn.LeakyReLU), TypeError, "'leaky_relu'$"),
    "a function as activation": (lambda t, w: Sequential(Linear(3, 2), t.tanh), TypeError, "write 'tanh'$"),
    "another activation": (lambda t, w: Sequential(Linear(3, 2), t.nn.LogSoftmax(-1)), TypeError, "got LogSoftmax$"),
    "a module as a part": (
        lambda t, w: Sequential(t.nn.Linear(3, 2), "relu"),
        TypeError,
        "part 0 .*, got Linear; Linear.from_torch takes PyTorch's modules$",
    ),
    "a module to optimise": (
        lambda t, w: SGD(t.nn.Linear(3, 2), 0.1),
        TypeError,
        "got Linear; PyTorch's modules and parameters have torch.optim$",
    ),
    "parameters()": (lambda t, w: SGD(t.nn.Linear(3, 2).parameters()), TypeError, "give the model itself"),
    "floats as labels": (
        lambda t, w: losses.log_loss(w.g, t.zeros(5)),
        TypeError,
        r"got dtype float32; np.asarray\(labels, int\) converts them$",
    ),
    "a module to verify": (lambda t, w: verify(t.nn.Linear(7, 3), w.x, w.g), TypeError, "model must be .*, got Linear"),
}


@pytest.mark.parametrize("name", TORCH_MISTAKES)
def test_mistakes_with_pytorch(name, tmp_path):
    """The same of tensors, modules and dtypes of PyTorch's."""
    torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
    mistake, error, says = TORCH_MISTAKES[name]
    check(tmp_path, lambda world: mistake(torch, world), error, says)


def test_a_frame_of_pandas(tmp_path):
    """The real thing says the same as the stand-in."""
    pandas = pytest.importorskip("pandas", reason="not needed for anything else: pip install pandas")
    frame = pandas.DataFrame(np.ones((ROWS, IN)))
    says = "x has dtype float64, which " + TO_FLOAT32
    check(tmp_path, lambda w: w.layer(frame), TypeError, says, lambda w: w.layer(frame.astype(np.float32)))


# ---- True or False


@pytest.mark.parametrize("given", [True, False, np.True_, np.False_], ids=repr)
def test_bias_is_true_or_false(given):
    """Python's and NumPy's, and a layer has a bias or none accordingly."""
    assert (Linear(3, 2, given).bias is not None) == bool(given)
    assert (Linear(3, 2, bias=given).bias is not None) == bool(given)


def test_a_hostile_bias_runs_nothing():
    """Whatever an object would answer to bool(), repr(), == or isinstance(), it is not asked."""
    asked = []

    class Hostile:
        __class__ = property(lambda self: asked.append("__class__") or bool)

        def __getattr__(self, name):
            asked.append(name)
            return True

        def answer(self, *args):
            asked.append("answer")
            return True

        __bool__ = __len__ = __eq__ = __hash__ = __index__ = __int__ = __float__ = __array__ = answer
        __repr__ = __str__ = lambda self: asked.append("repr") or "True"

    with pytest.raises(TypeError, match=r"bias must be True or False, got Hostile$"):
        Linear(3, 2, Hostile())
    assert not asked


def test_a_subclass_may_hand_everything_on():
    """super().__init__ with keywords is as before; by place it is told the keywords."""

    class Named(Linear):
        def __init__(self, name, *args, **options):
            super().__init__(*args, **options)
            self.name = name

    assert Named("a", 3, 2, False, dtype=np.float64, rng=0).dtype == np.float64
    with pytest.raises(TypeError, match=KEYWORDS):
        Named("a", 3, 2, False, np.float64)


def test_no_array_is_made_of_no_dtype():
    """The compiled function behind every parameter refuses what is not a dtype."""
    for kind in (None, np.float32, "f4"):
        with pytest.raises(TypeError):
            zeros((2, 3), kind)


# ---- objects that an error must not ask


def _raises(*args):
    raise ZeroDivisionError


class Silent:
    """Can say nothing of itself."""

    __repr__ = __str__ = _raises
    __name__ = ndim = property(_raises)


class Talkative:
    """Says ten million letters."""

    def __repr__(self):
        return "x" * 10**7


class Nowhere:
    """Its class belongs to no module."""

    __module__ = None


class Seldom(float):
    """A number that has no repr."""

    __repr__ = __str__ = _raises


class Text(str):
    """A text that has no repr."""

    __repr__ = __str__ = _raises


def liar(kind):
    """An object that says it is of this class."""
    return type("Liar", (), {"__class__": kind})()


STRANGE = {
    "silent": Silent(),
    "a list of them": [Silent(), [1]],
    "keys of them": {Silent(): 1},
    "talkative": Talkative(),
    "of no module": Nowhere(),
    "a class of no module": Nowhere,
    "nan without a repr": Seldom("nan"),
    "negative without a repr": Seldom(-1),
    "too large, without a repr": Seldom(1e300),
    "a text without a repr": Text("x"),
    "a text without a repr, which is known": Text("tanh"),
    "more digits than Python prints": -(10**5000),
    "a long text": "x" * 10**7,
    "many keys": dict.fromkeys(range(10**5)),
    "a long key": {"x" * 10**7: 1},
    "many numbers": [0.5] * 10**5,
    **{f"no {kind.__name__}": liar(kind) for kind in (np.ndarray, np.generic, float, str, Linear, Sequential)},
}


def _group(world, **entries):
    state = Adam(world.layer).state_dict()
    return state | {"param_groups": [state["param_groups"][0] | entries]}


# name: what is done with the strange object and a World
TAKERS = {
    "in_features": lambda v, w: Linear(v, 2),
    "bias": lambda v, w: Linear(3, 2, v),
    "dtype": lambda v, w: Linear(3, 2, dtype=v),
    "weight": lambda v, w: Linear.from_weights(v),
    "x": lambda v, w: w.layer(v),
    "grad_output": lambda v, w: w.layer.backward(w.x, v),
    "scale": lambda v, w: w.layer.backward(w.x, w.g[:2], scale=v),
    "out of backward": lambda v, w: w.layer.backward(w.x, w.g, v),
    "lr of step": lambda v, w: w.net.step(v),
    "stdv": lambda v, w: w.layer.reset(0, v),
    "state": lambda v, w: w.layer.load_state_dict(v),
    "state of a net": lambda v, w: w.net.load_state_dict(v),
    "path": lambda v, w: w.layer.save(v),
    "verify": lambda v, w: verify(v, w.x, w.g),
    "threads": lambda v, w: set_num_threads(v),
    "mode": lambda v, w: show_config(v),
    "part": lambda v, w: Sequential(v),
    "parts": lambda v, w: Sequential(w.layer, "relu", v),
    "tape": lambda v, w: w.net.backward(v, w.g),
    "model": lambda v, w: SGD(v, 0.1),
    "lr of SGD": lambda v, w: SGD(w.layer, v),
    "nesterov": lambda v, w: SGD(w.layer, 0.1, 0.9, v),
    "betas": lambda v, w: Adam(w.layer, betas=v),
    "state of Adam": lambda v, w: Adam(w.layer).load_state_dict(v),
    "parameters of Adam": lambda v, w: Adam(w.layer).load_state_dict({"state": v, "param_groups": [v]}),
    "groups of Adam": lambda v, w: Adam(w.layer).load_state_dict({"state": {}, "param_groups": v}),
    "amsgrad": lambda v, w: Adam(w.layer).load_state_dict(_group(w, amsgrad=v)),
    "an option": lambda v, w: Adam(w.layer).load_state_dict(_group(w, decay=v)),
    "max_norm": lambda v, w: clip_grad_norm(w.layer, v),
    "output": lambda v, w: losses.huber(v, w.g),
    "labels": lambda v, w: losses.log_loss(w.g, v),
    "x of softmax": lambda v, w: activations.softmax(v),
    "X": lambda v, w: w.layer.learn(v, w.labels, 0.1, "log_loss"),
    "y": lambda v, w: w.layer.learn(w.x, v, 0.1),
    "loss": lambda v, w: w.layer.learn(w.x, w.labels, 0.1, v),
    "batch_size": lambda v, w: w.layer.learn(w.x, w.labels, 0.1, "log_loss", v),
    "l2": lambda v, w: w.layer.learn(w.x, w.labels[1:], 0.1, "log_loss", 1, v),
    "order": lambda v, w: w.layer.learn(w.x, w.labels, 0.1, "log_loss", order=v),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_an_error_does_not_fail_for_its_own_words(tmp_path, taker):
    """What has no repr, one of ten million letters, or lies about its class gets a TypeError or a ValueError as any
    other object does, of at most 2,000 letters and not about the digits of an integer; nothing is written then."""
    for name, value in STRANGE.items():
        world = World(tmp_path)
        before = [a.copy() for a in world.arrays()]
        error = None
        try:
            TAKERS[taker](value, world)
        except Exception as raised:
            error = raised
        if error is None:
            continue  # a number without a repr is a number
        assert isinstance(error, (TypeError, ValueError)), f"{name}: {error!r:.200}"
        assert len(str(error)) < 2000, f"{name}: {error!s:.200}"
        assert "string conversion" not in str(error), name
        for now, then in zip(world.arrays(), before, strict=True):
            assert_same_bits(now, then)
    assert not list(tmp_path.iterdir())


# ---- packages that are not there


def test_no_error_names_a_package_that_no_index_has():
    """fastlinear is on none, so `pip install fastlinear[...]` would not work."""
    for file in Path(fastlinear.__file__).parent.glob("*.py*"):
        assert "install 'fastlinear" not in file.read_text(encoding="utf-8")
        assert "install fastlinear" not in file.read_text(encoding="utf-8")
