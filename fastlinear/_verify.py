"""Holding a layer or a net against the NumPy reference."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np

import fastlinear
from fastlinear import _dispatch, reference
from fastlinear.linear import Linear
from fastlinear.sequential import Sequential

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[Any]

SCALE = 0.5
"""The scale of the second accumulation, which checks that the first is kept."""
LIMIT = 4.0
"""What |got - exact| may be in any case, in units of eps · Σ|a||b|, for each element of each output: see _limits()."""
LANE_BYTES, K_BLOCK_BYTES, LONG_BLOCKS, O_BLOCK = 32, 4096, 32, 256
"""Of the order that is promised (docs/reliability.md, The bits of a result)."""


def verify(model: Linear | Sequential, x: ArrayLike, grad_output: ArrayLike) -> dict[str, float]:
    """Run a layer or a net and the NumPy reference on the same input. Returns the error of each output by name.

    model: a Linear or a Sequential, which does not change. x: (..., in_features), grad_output: (..., out_features),
    with the same leading axes. The reference runs in a wider dtype. An error is ``max |got - exact| / (eps ·
    Σ|a||b|)``, where the sum is over the products that make up an element. The names are ``output``, ``grad_input``,
    ``grad_weight`` and ``grad_bias`` (each is the largest error of all the ways to compute it, ``scale`` included),
    ``updated_weight`` and ``updated_bias`` for ``backward_update``, and ``stepped_weight`` and ``stepped_bias`` for
    ``step``.

    >>> layer, rng = Linear(64, 10, rng=0), np.random.default_rng(0)
    >>> x = rng.standard_normal((8, 64), np.float32)
    >>> grad_output = rng.standard_normal((8, 10), np.float32)
    >>> errors = fastlinear.verify(layer, x, grad_output)
    >>> sorted(errors)  # doctest: +NORMALIZE_WHITESPACE
    ['grad_bias', 'grad_input', 'grad_weight', 'output',
     'stepped_bias', 'stepped_weight', 'updated_bias', 'updated_weight']
    >>> max(errors.values()) < 4
    True

    Each part of a net is verified on what the other parts give it; its errors have its place before their names. The
    unit for an activation is ``eps · |exact|``. If the gradient of an activation is a sum (softmax, silu, gelu), the
    unit has the sum of the terms' magnitudes in place of ``|exact|``. Then the net as a whole must give, to the bit,
    what its parts give one after another.

    >>> errors = fastlinear.verify(Sequential(layer, "tanh"), x, grad_output)
    >>> [name for name in errors if name.startswith("1.")]
    ['1.output', '1.grad_input']

    Raises TypeError if model is neither a Linear nor a Sequential, what a call raises for arguments of the wrong shape
    or dtype, and ArithmeticError if the net is not its parts, or if an error is over 4 and over what rounding can do.
    Rounding can do half a unit each time that the sum with a term in it is rounded, in the order that is promised. The
    gradients are running sums over the rows, so for them that is once for each row of each call that makes them, and
    with many terms of one sign, or of one value, an error over 4 is right. A row that is missing or wrong still shows
    with up to some thousand rows.
    """
    if not issubclass(type(model), (Linear, Sequential)):  # unlike __class__ a type cannot be made up
        raise TypeError(f"verify: model must be a Linear or a Sequential, got {type(model).__name__}")
    found = _errors_of_net(model, x, grad_output) if isinstance(model, Sequential) else _errors(model, x, grad_output)
    if bad := [f"{name} {error:.4g} (limit {limit:g})" for name, (error, limit) in found.items() if not error <= limit]:
        raise ArithmeticError(f"{model!r}: error over its limit, in eps · Σ|a||b|: {', '.join(bad)}")
    return {name: error for name, (error, _) in found.items()}


def _limits(layer: Linear, rows: int) -> dict[str, float]:
    """The largest error of each output that is right, in units of eps · Σ|a||b|.

    An error is at most eps / 2 for each rounding that a term goes through, times Σ|a||b|: N. Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd edition, 2002, section 4.2, and without terms of eps² C.-P. Jeannerod and
    S. Rump, Improved Error Bounds for Inner Products in Floating-Point Arithmetic, 2013. Terms of mixed signs stay far
    below; terms of one value can come near.
    """
    rounded = {"grad": 2 * rows, "updated": rows, "stepped": 3 * rows}  # the most of all ways to them; see _errors()
    parameters = {f"{what}_{name}": times for what, times in rounded.items() for name in ("weight", "bias")}
    if fastlinear.isa == _dispatch.REFERENCE:  # in an order of NumPy's BLAS
        output, grad_input = layer.in_features, layer.out_features
    else:
        output = _roundings_of_lanes(layer.in_features, layer.dtype.itemsize)
        if layer.in_features == 1:
            grad_input = _roundings_of_lanes(layer.out_features, layer.dtype.itemsize)
        else:  # a chain, the chains
            grad_input = min(layer.out_features, O_BLOCK) + layer.out_features // O_BLOCK
    # Beside these: a product where there is no fused multiply-add, scale or lr, the bias or what was there before.
    times = {"output": output, "grad_input": grad_input, **parameters}
    return {name: max(LIMIT, (count + 3) / 2) for name, count in times.items()}


def _roundings_of_lanes(terms: int, itemsize: int) -> int:
    """Of a sum in forward's order: in a lane, the lanes, the blocks of a long block, the long blocks."""
    lanes, block = LANE_BYTES // itemsize, K_BLOCK_BYTES // itemsize
    of_blocks = min(terms // block, LONG_BLOCKS) + terms // (LONG_BLOCKS * block)
    return math.ceil(min(terms, block) / lanes) + int(math.log2(lanes)) + of_blocks


def _errors(layer: Linear, x: ArrayLike, grad_output: ArrayLike) -> dict[str, tuple[float, float]]:
    """The error of each output, and its limit."""
    trial = copy.deepcopy(layer)
    trial.zero_grad()
    lr = 0.5
    got: dict[str, Any] = {"output": trial.forward(x), "grad_input": trial.backward(x, grad_output)}
    got |= _copies(grad_weight=trial.grad_weight, grad_bias=trial.grad_bias)
    got["alone grad_input"] = trial.backward_input(grad_output)
    trial.backward_params(x, grad_output, scale=SCALE)
    got |= _copies(**{"scaled grad_weight": trial.grad_weight, "scaled grad_bias": trial.grad_bias})
    got["update grad_input"] = trial.backward_update(x, grad_output, lr)
    got |= _copies(updated_weight=trial.weight, updated_bias=trial.bias)
    trial.step(lr)
    got |= _copies(stepped_weight=trial.weight, stepped_bias=trial.bias)

    wide = np.longdouble if layer.dtype == np.float64 else np.float64
    arguments = (x, grad_output, layer.weight, layer.bias)
    exact = _run_reference(lr, *(None if a is None else np.asarray(a, layer.dtype).astype(wide) for a in arguments))
    terms = _run_reference(
        -lr, *(None if a is None else np.abs(np.asarray(a, layer.dtype)).astype(wide) for a in arguments)
    )
    limits = _limits(layer, math.prod(got["output"].shape[:-1]))
    errors: dict[str, tuple[float, float]] = {}
    for name, value in got.items():
        result = name.split()[-1]
        length = max(layer.in_features, layer.out_features, 1)
        error = _error(value, exact[name], terms[name], length)
        errors[result] = max(errors.get(result, (0.0, 0.0))[0], error), limits[result]
    return errors


def _errors_of_net(net: Sequential, x: ArrayLike, grad_output: ArrayLike) -> dict[str, tuple[float, float]]:
    whole, alone = copy.deepcopy(net), copy.deepcopy(net)
    whole.zero_grad()
    alone.zero_grad()
    tape = whole.record(x)
    got = {"output": whole(x), "tape.output": tape.output, "grad_input": whole.backward(tape, grad_output)}

    errors: dict[str, tuple[float, float]] = {}
    values = [np.ascontiguousarray(x, net.dtype)]
    gradient = np.ascontiguousarray(grad_output, net.dtype)
    for part in alone:
        values.append(part.forward(values[-1]) if isinstance(part, Linear) else _activate(part, values[-1]))
    for place, part in reversed(list(enumerate(alone))):
        before, after = values[place : place + 2]
        if isinstance(part, Linear):
            found = _errors(part, before, gradient)
            gradient = part.backward(before, gradient)
        else:
            after_it, gradient = gradient, _differentiate(part, gradient, after, before)
            found = _errors_of_activation(part, before, after, after_it, gradient)
        errors |= {f"{place}.{name}": error for name, error in found.items()}

    expected = {"output": values[-1], "tape.output": values[-1], "grad_input": gradient}
    for results, layers in ((got, whole.layers), (expected, alone.layers)):
        for place, layer in enumerate(layers):
            results |= _copies(**{f"grad_weight {place}": layer.grad_weight, f"grad_bias {place}": layer.grad_bias})
    differing = [name for name, array in got.items() if array.tobytes() != expected[name].tobytes()]
    if differing and fastlinear.isa != _dispatch.REFERENCE:  # whose sums are in the order of NumPy's BLAS
        raise ArithmeticError(f"{net!r}: {', '.join(differing)} differ from what its parts compute one after another")
    return errors


def _activate(name: str, x: Array) -> Array:
    out = np.empty_like(x)
    _elementwise().activate(reference.ACTIVATIONS.index(name), _rows(x), _rows(out))
    return out


def _differentiate(name: str, grad_output: Array, output: Array, before: Array) -> Array:
    out = np.empty_like(grad_output)
    arrays = map(_rows, (grad_output, output, before, out))
    _elementwise().derivative(reference.ACTIVATIONS.index(name), *arrays)
    return out


def _errors_of_activation(
    name: str, before: Array, after: Array, grad_output: Array, grad_input: Array
) -> dict[str, tuple[float, float]]:
    """The errors of the output, and of the gradient as a function of the output that was computed."""
    kind = reference.ACTIVATIONS.index(name)
    wide = np.longdouble if before.dtype == np.float64 else np.float64
    x, y, g = (_rows(array.astype(wide)) for array in (before, after, grad_output))
    output, gradient, terms = np.empty_like(y), np.empty_like(g), np.empty_like(g)
    reference.activate(kind, x, output)
    reference.derivative(kind, g, y, x, gradient)
    # If the gradient is a sum, its terms can cancel, and then their magnitudes count: softmax's y (g - Σ g y), whose
    # minus becomes a plus here, silu's σ(x) + x σ(x) σ(-x), and gelu's Φ(x) + x φ(x). The latter two have a zero.
    if name == "softmax":
        reference.derivative(kind, np.abs(g), -y, x, terms)
    elif name in reference.TERMS:
        np.copyto(terms, g * sum(map(np.abs, reference.TERMS[name](x))))
    else:
        np.copyto(terms, gradient)
    return {
        "output": (_error(_rows(after), output, np.abs(output), 1), LIMIT),
        "grad_input": (_error(_rows(grad_input), gradient, np.abs(terms), 1), LIMIT),
    }


def _elementwise() -> ModuleType:
    return _dispatch.load(fastlinear.isa, "_elementwise")


def _rows(array: Array) -> Array:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _run_reference(lr: float, *arguments: Any) -> dict[str, Any]:
    """What the reference computes from x, grad_output, weight and bias, in their dtype, by the names in _errors."""
    x, grad_output, weight, bias = arguments
    shape = x.shape
    rows = int(np.prod(shape[:-1]))
    x, grad_output = x.reshape(rows, weight.shape[1]), grad_output.reshape(rows, weight.shape[0])
    output, grad_input = np.empty_like(grad_output), np.empty_like(x)
    reference.forward(x, weight, bias, output)
    reference.grad_input(grad_output, weight, grad_input)
    parameters, gradients = [weight.copy()], [np.zeros_like(weight)]
    if bias is not None:
        parameters.append(bias.copy())
        gradients.append(np.zeros_like(bias))
    results = {}
    for name, scale in (("grad", 1.0), ("scaled grad", SCALE)):
        reference.grad_weight(x, grad_output, scale, gradients[0])
        if bias is not None:
            reference.grad_bias(grad_output, scale, gradients[1])
        results[name] = [gradient.copy() for gradient in gradients]
    reference.update(x, grad_output, lr, parameters[0], parameters[1] if bias is not None else None, None)
    results["updated"] = [parameter.copy() for parameter in parameters]
    for gradient, parameter in zip(gradients, parameters, strict=True):
        reference.step(gradient, lr, parameter)
    results["stepped"] = parameters
    found = {f"{name}_weight": arrays[0] for name, arrays in results.items()}
    if bias is not None:
        found |= {f"{name}_bias": arrays[1] for name, arrays in results.items()}
    grad_input = grad_input.reshape(shape)
    found |= dict.fromkeys(("grad_input", "alone grad_input", "update grad_input"), grad_input)
    return found | {"output": output.reshape(*shape[:-1], weight.shape[0])}


def _copies(**arrays: Array | None) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items() if array is not None}


def _error(got: Array, exact: Array, terms: Array, length: int) -> float:
    """max |got - exact| / (eps · terms). If exact is not finite, or a sum has no terms, got must be the same."""
    if not got.size:
        return 0.0
    limits = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        exact_here = exact.astype(got.dtype)
        # The second term is for products below the smallest normal number, whose rounding is absolute.
        unit = limits.eps * terms + length * limits.smallest_subnormal
        error = np.abs(got.astype(exact.dtype) - exact) / unit
    same = (got == exact_here) | (np.isnan(got) & np.isnan(exact_here))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))))
