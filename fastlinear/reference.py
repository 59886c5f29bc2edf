"""The NumPy specification of every kernel: the names and signatures of ``_kernels.pyx`` and ``_elementwise.pyx``.

``FASTLINEAR_ISA=reference`` runs the whole layer on it, and ``fastlinear.verify`` and the tests hold the kernels
against it. It works in any floating dtype. In one that is wider than the layer's it also judges the kernels' rounding.
Sums are rounded in NumPy's order, not in the kernels' fixed one; the difference is within the bound that ``verify``
checks.

x is (batch, in), grad_output (batch, out), weight (out, in) and bias (out,), all in one dtype. As with the kernels,
``threads`` changes no result. ``thread`` asks for the work of one of the threads alone: here the first does all of it
and the others do nothing. -1 asks for all of it. A wrong shape is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from numpy.typing import NDArray

    from fastlinear.linear import Linear

    Array = NDArray[Any]

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _silent(kernel: Kernel) -> Kernel:
    """Overflow, 0 · inf and the like give what IEEE 754 says, without a RuntimeWarning, as in the kernels."""

    @wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return kernel(*args, **kwargs)

    return run  # type: ignore[return-value]


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape} where {shape} was expected")


@_silent
def forward(x: Array, weight: Array, bias: Array | None, out: Array, threads: int = 1, thread: int = -1) -> None:
    """out[b, o] = sum_i x[b, i] weight[o, i] + bias[o]. out is overwritten; bias can be None."""
    _check("x", x, (x.shape[0], weight.shape[1]))
    _check("out", out, (x.shape[0], weight.shape[0]))
    if bias is not None:
        _check("bias", bias, (weight.shape[0],))
    if thread > 0:
        return
    np.matmul(x, weight.T, out=out)
    if bias is not None:
        out += bias


@_silent
def grad_input(grad_output: Array, weight: Array, out: Array, threads: int = 1, thread: int = -1) -> None:
    """out[b, i] = sum_o grad_output[b, o] weight[o, i]. out is overwritten."""
    _check("grad_output", grad_output, (grad_output.shape[0], weight.shape[0]))
    _check("out", out, (grad_output.shape[0], weight.shape[1]))
    if thread <= 0:
        np.matmul(grad_output, weight, out=out)


@_silent
def grad_weight(x: Array, grad_output: Array, scale: float, out: Array, threads: int = 1, thread: int = -1) -> None:
    """out[o, i] += sum_b scale grad_output[b, o] x[b, i]. out is accumulated."""
    _check("grad_output", grad_output, (x.shape[0], out.shape[0]))
    _check("out", out, (grad_output.shape[1], x.shape[1]))
    if thread <= 0:
        out += (out.dtype.type(scale) * grad_output).T @ x


@_silent
def grad_bias(grad_output: Array, scale: float, out: Array) -> None:
    """out[o] += sum_b scale grad_output[b, o]. out is accumulated."""
    _check("out", out, (grad_output.shape[1],))
    out += (out.dtype.type(scale) * grad_output).sum(axis=0)


@_silent
def update(
    x: Array,
    grad_output: Array,
    lr: float,
    weight: Array,
    bias: Array | None,
    out: Array | None,
    threads: int = 1,
    thread: int = -1,
) -> None:
    """grad_input into out (overwritten; can be None), then weight -= lr grad_output^T x and bias -= lr sum_b
    grad_output in place; bias can be None. out comes from the weights as they were."""
    _check("grad_output", grad_output, (x.shape[0], weight.shape[0]))
    _check("x", x, (x.shape[0], weight.shape[1]))
    if bias is not None:
        _check("bias", bias, (weight.shape[0],))
    if out is not None:
        _check("out", out, x.shape)
    if thread > 0:
        return
    if out is not None:
        grad_input(grad_output, weight, out)
    grad_weight(x, grad_output, -lr, weight)
    if bias is not None:
        grad_bias(grad_output, -lr, bias)


@_silent
def step(gradient: Array, lr: float, parameter: Array) -> None:
    """parameter[j] -= lr gradient[j], in place."""
    _check("gradient", gradient, parameter.shape)
    parameter -= parameter.dtype.type(lr) * gradient


# ---- activations, computed in a wider dtype than the one asked for, so that only the last rounding shows

SLOPE = 0.01
"""Of leaky_relu, left of 0."""


def _gaussian(x: Array) -> tuple[Array, Array]:
    """The density φ(x) = exp(-x²/2) / √(2π), and its integral Φ(x) from -∞, both to a few ulp of x's dtype."""
    x = np.clip(x, -200, 200)  # beyond, both are 0 or 1 in every dtype
    high = x.astype(np.float32).astype(x.dtype)  # its square is exact, so x² does not lose what exp would multiply
    density = np.exp(-high * high / 2) * np.exp((high - x) * (high + x) / 2) / np.sqrt(8 * np.arctan(x.dtype.type(1)))
    a = np.abs(x)
    near = np.minimum(a, 2)
    term = series = near
    for n in range(1, 60):  # Φ(a) = 1/2 + φ(a) (a + a³/3 + a⁵/(3·5) + ...)
        term = term * near * near / (2 * n + 1)
        series = series + term
    far = np.maximum(a, 2)
    fraction = far
    for n in range(100, 0, -1):  # Φ(-a) = φ(a) / (a + 1/(a + 2/(a + 3/(a + ...))))
        fraction = far + n / fraction
    upper = density * np.where(a < 2, series, 0)
    tail = np.where(a < 2, 0.5 - upper, density / fraction)
    return density, np.where(x > 0, np.where(a < 2, 0.5 + upper, 1 - tail), tail)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    result: Array = np.where(x < 0, e, 1) / (1 + e)
    return result


def _softmax(x: Array) -> Array:
    most = x.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(np.where(x == most, 0, x - most))  # infinities that are equal share
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def _times_finite(x: Array, weight: Array) -> Array:
    """x times a weight that is 0 at -∞, where the limit of the product is -0."""
    return np.where(x == -np.inf, -0.0, x * weight)


_FORWARD: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.where(x < 0, 0, x),
    "leaky_relu": lambda x: np.where(x > 0, x, SLOPE * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.where(x > 0, 0, x))),  # minimum(-0, 0) can be 0
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: _times_finite(x, _sigmoid(x)),
    "gelu": lambda x: _times_finite(x, _gaussian(x)[1]),
    "softmax": _softmax,
}


def _silu_terms(x: Array) -> tuple[Array, Array]:
    return _sigmoid(x), np.where(np.isinf(x), 0, x) * _sigmoid(x) * _sigmoid(-x)


def _gelu_terms(x: Array) -> tuple[Array, Array]:
    density, integral = _gaussian(x)
    return integral, np.where(np.isinf(x), 0, x) * density


TERMS = {"silu": _silu_terms, "gelu": _gelu_terms}
"""The terms of the derivative by x, for activations in which it is a sum."""


_BY_OUTPUT: dict[str, Callable[[Array, Array], Array]] = {
    "identity": lambda grad, y: grad,
    "relu": lambda grad, y: np.where(y > 0, grad, 0 * y),
    "leaky_relu": lambda grad, y: np.where(y > 0, grad, SLOPE * grad),
    "elu": lambda grad, y: grad * (np.minimum(y, 0) + 1),
    "sigmoid": lambda grad, y: grad * (y * (1 - y)),
    "tanh": lambda grad, y: grad * ((1 - y) * (1 + y)),
    "softmax": lambda grad, y: y * (grad - (grad * y).sum(axis=-1, keepdims=True)),
}
_BY_BEFORE: dict[str, Callable[[Array, Array], Array]] = {
    "silu": lambda grad, x: grad * sum(_silu_terms(x)),
    "gelu": lambda grad, x: grad * sum(_gelu_terms(x)),
}

ACTIVATIONS = tuple(_FORWARD)
"""The kind of an activation, for kernels, is its place here."""


def _wide(array: Array) -> Array:
    return array.astype(np.float64 if array.dtype == np.float32 else np.longdouble)


@_silent
def activate(kind: int, x: Array, out: Array, threads: int = 1, thread: int = -1) -> None:
    """out[b, o] = f(x[b, o]), softmax over each row. out is overwritten, and can be x."""
    _check("out", out, x.shape)
    if thread <= 0:
        out[...] = _FORWARD[ACTIVATIONS[kind]](_wide(x))


@_silent
def derivative(
    kind: int,
    grad_output: Array,
    output: Array | None,
    before: Array | None,
    out: Array,
    threads: int = 1,
    thread: int = -1,
) -> None:
    """out = the gradient before the activation, from grad_output, the gradient after it. For silu and gelu it needs
    `before`, the values before the activation, and for the others `output`, the values after it. The array that is not
    needed can be None. out is overwritten, and can be grad_output."""
    _check("out", out, grad_output.shape)
    name = ACTIVATIONS[kind]
    values, formula = (output, _BY_OUTPUT[name]) if name in _BY_OUTPUT else (before, _BY_BEFORE[name])
    if values is None:
        raise ValueError(f"the derivative of {name} needs the values {'after' if name in _BY_OUTPUT else 'before'} it")
    _check("output" if name in _BY_OUTPUT else "before", values, grad_output.shape)
    if thread <= 0:
        out[...] = formula(_wide(grad_output), _wide(values))


# ---- losses: each returns the sum of the rows' losses, and writes scale times its gradient into out


@_silent
def squared_error(output: Array, target: Array, scale: float, out: Array) -> float:
    """The sum of (output - target)^2 / 2. out = scale (output - target), and can be output or target."""
    _check("target", target, output.shape)
    _check("out", out, output.shape)
    difference = output - target
    np.multiply(out.dtype.type(scale), difference, out=out)
    return float(np.sum(difference * difference / 2, dtype=np.result_type(out, np.float64)))


@_silent
def huber(output: Array, target: Array, scale: float, out: Array) -> float:
    """The sum of d^2 / 2 where abs(d) <= 1 and of abs(d) - 1/2 elsewhere, d = output - target.
    out = scale clip(d, -1, 1), and can be output or target."""
    _check("target", target, output.shape)
    _check("out", out, output.shape)
    difference = output - target
    distance = np.abs(difference)
    near = np.minimum(distance, 1)
    np.multiply(out.dtype.type(scale), np.clip(difference, -1, 1), out=out)
    return float(np.sum(near * (distance - near / 2), dtype=np.result_type(out, np.float64)))


def _check_labels(labels: Array, scores: Array) -> None:
    _check("labels", labels, scores.shape[:1])
    columns = scores.shape[1]
    wrong = (labels < 0) | (labels >= (2 if columns == 1 else columns))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"labels has {labels[row]} at {row}, where there are {columns} columns")


def _signs(scores: Array, labels: Array) -> Array:
    """1 where a score is that of its row's label, -1 elsewhere. One column is the score of label 1 against label 0."""
    classes = [1] if scores.shape[1] == 1 else np.arange(scores.shape[1])
    return np.where(labels[:, None] == classes, 1, -1).astype(scores.dtype)


@_silent
def hinge(scores: Array, labels: Array, scale: float, out: Array) -> float:
    """The sum of max(0, 1 - z), z = sign score, where sign is 1 for the label's column and -1 for the others; one
    column is that of label 1. out = -scale sign where z <= 1, else 0, and can be scores."""
    _check_labels(labels, scores)
    _check("out", out, scores.shape)
    signs = _signs(scores, labels)
    missing = 1 - signs * scores
    missing[missing < 0] = -1
    gradient = np.where(missing < 0, 0, -signs)
    gradient[np.isnan(missing)] = np.nan
    np.multiply(out.dtype.type(scale), gradient, out=out)
    return float(np.sum(np.maximum(missing, 0), dtype=np.result_type(out, np.float64)))


@_silent
def log_loss(scores: Array, labels: Array, scale: float, out: Array) -> float:
    """The sum of -log p(label) over the rows. One column is the score of label 1 against label 0, p(1) = 1 / (1 +
    exp(-score)); of several, p = softmax(scores). out = scale (p - [the label's column]), and can be scores."""
    _check_labels(labels, scores)
    _check("out", out, scores.shape)
    if scores.shape[1] == 1:
        signs = _signs(scores, labels)
        margin = signs * scores
        small = np.exp(-np.abs(margin))
        losses = np.log1p(small) + np.maximum(-margin, 0)
        gradient = -signs * np.where(margin >= 0, small, 1) / (1 + small)
    else:
        rows = np.arange(len(labels))
        highest = scores.max(axis=1, keepdims=True, initial=-np.inf)
        exponentials = np.exp(scores - highest)
        total = exponentials.sum(axis=1, keepdims=True)
        losses = np.log(total[:, 0]) + (highest[:, 0] - scores[rows, labels])
        gradient = exponentials / total
        gradient[rows, labels] -= 1
    np.multiply(out.dtype.type(scale), gradient, out=out)
    return float(np.sum(losses, dtype=np.result_type(out, np.float64)))


# ---- optimisers


@_silent
def sgd(
    gradient: Array,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    parameter: Array,
    buffer: Array | None,
    threads: int = 1,
    thread: int = -1,
) -> None:
    """g = gradient + weight_decay parameter; buffer = momentum buffer + g, and then g = buffer, or with nesterov
    g += momentum buffer; parameter -= lr g. parameter and buffer are changed in place; buffer can be None."""
    _check("parameter", parameter, gradient.shape)
    if buffer is not None:
        _check("buffer", buffer, gradient.shape)
    if thread > 0:
        return
    real = parameter.dtype.type
    if weight_decay:
        gradient = gradient + real(weight_decay) * parameter
    if buffer is not None:
        buffer *= real(momentum)
        buffer += gradient
        gradient = gradient + real(momentum) * buffer if nesterov else buffer
    parameter -= real(lr) * gradient


@_silent
def adam(
    gradient: Array,
    rate: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
    weight_decay: float,
    decay: float,
    parameter: Array,
    mean: Array,
    square: Array,
    threads: int = 1,
    thread: int = -1,
) -> None:
    """g = gradient + weight_decay parameter; mean += (1 - beta1) (g - mean); square = beta2 square + (1 - beta2) g^2;
    parameter = decay parameter - rate mean / (correction sqrt(square) + eps). The last three are changed in place.

    At step t, rate is lr / (1 - beta1^t) and correction 1 / sqrt(1 - beta2^t); decay is 1, but for AdamW."""
    for name, array in (("parameter", parameter), ("mean", mean), ("square", square)):
        _check(name, array, gradient.shape)
    if thread > 0:
        return
    real = parameter.dtype.type
    if weight_decay:
        gradient = gradient + real(weight_decay) * parameter
    mean += real(1 - beta1) * (gradient - mean)
    square *= real(beta2)
    square += real(1 - beta2) * gradient * gradient
    parameter *= real(decay)
    parameter -= real(rate) * (mean / (real(correction) * np.sqrt(square) + real(eps)))


@_silent
def squares(array: Array) -> float:
    """The sum of the squares, in float64 at least."""
    return float(np.sum(np.square(array, dtype=np.result_type(array, np.float64))))


@_silent
def scale(factor: float, array: Array) -> None:
    """array is multiplied by factor, in place."""
    array *= array.dtype.type(factor)


# ---- learning


@_silent
def adagrad(gradient: Array, lr: float, squares: Array, parameter: Array) -> None:
    """squares += gradient^2, then parameter -= lr gradient / (sqrt(squares) + 1e-10), both in place."""
    _check("squares", squares, gradient.shape)
    _check("parameter", parameter, gradient.shape)
    real = parameter.dtype.type
    squares += gradient * gradient
    parameter -= real(lr) * gradient / (np.sqrt(squares) + real(1e-10))


@np.errstate(all="ignore")
def learn(
    layer: Linear,
    X: Array,  # noqa: N803
    y: Array,
    lr: float | Array,
    loss: str = "squared_error",
    batch_size: int = 1,
    l2: float = 0.0,
    sample_weight: Array | None = None,
    order: Array | None = None,
    adaptive: bool = False,
) -> float:
    """What ``Linear.learn`` does, in terms of the other public calls: the same bits, and the same value.

    X is (rows, in_features), y (rows,) or (rows, out_features), lr a number or (steps,), sample_weight (rows,), order
    (rows to learn,). The layer's kernels are those in use, so this is a specification for every instruction set.
    """
    from fastlinear import losses

    function, total = getattr(losses, loss), 0.0
    y = y[:, None] if y.ndim == 1 and loss in ("squared_error", "huber") else y
    order = np.arange(len(X)) if order is None else order
    for step, start in enumerate(range(0, len(order), batch_size)):
        rows = order[start : start + batch_size]
        rate = float(lr[step]) if isinstance(lr, np.ndarray) else float(lr)
        scores = layer(X[rows])
        value, grad_output = function(scores, y[rows])
        if sample_weight is None:
            total += value * len(rows)
        else:
            for score, row in zip(scores, rows, strict=True):
                total += function(score[None], y[row][None])[0] * float(sample_weight[row])
            grad_output *= sample_weight[rows, None]
        if l2:
            weight = layer.weight
            weight *= 1 - rate * float(l2)
        if adaptive:
            _adagrad(layer, X[rows], grad_output, rate)
        else:
            layer.backward_update(X[rows], grad_output, rate, input_grad=False)
    return total / len(order) if len(order) else float("nan")


def _adagrad(layer: Linear, x: Array, grad_output: Array, lr: float) -> None:
    """The steps of AdaGrad along the gradients of a batch. The sums of their squares are the layer's gradients."""
    from fastlinear import Linear

    bias = None if layer.bias is None else np.zeros_like(layer.bias)
    batch = Linear.from_weights(np.zeros_like(layer.weight), bias)
    batch.backward_params(x, grad_output)
    for name in ("weight", "bias")[: 1 if bias is None else 2]:
        parameter, squares = getattr(layer, name), getattr(layer, f"grad_{name}")
        gradient = getattr(batch, f"grad_{name}")
        adagrad(gradient, lr, squares, parameter)
