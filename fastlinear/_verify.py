"""Holding a layer against the NumPy reference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlinear import reference
from fastlinear.linear import Linear

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[Any]

SCALE = 0.5
"""Of the second accumulation, which checks that the first is kept."""
LIMIT = 4.0
"""The most that |got - exact| may be, in units of eps · Σ|a||b|, for each element of each output."""


def verify(layer: Linear, x: ArrayLike, grad_output: ArrayLike) -> dict[str, float]:
    """Run the layer and the NumPy reference on the same input and return the error of each output.

    x: (..., in_features), grad_output: (..., out_features), with the same leading axes. The reference runs in a wider
    dtype. The errors are ``max |got - exact| / (eps · Σ|a||b|)``, where the sum is over the products that make up an
    element, under the names ``output``, ``grad_input``, ``grad_weight``, ``grad_bias`` (each the largest of all the
    ways to them, ``scale`` included), ``updated_weight`` and ``updated_bias`` for ``backward_update``,
    ``stepped_weight`` and ``stepped_bias`` for ``step``. The layer itself does not change.

    >>> layer, rng = Linear(64, 10, rng=0), np.random.default_rng(0)
    >>> x = rng.standard_normal((8, 64), np.float32)
    >>> grad_output = rng.standard_normal((8, 10), np.float32)
    >>> errors = fastlinear.verify(layer, x, grad_output)
    >>> sorted(errors)  # doctest: +NORMALIZE_WHITESPACE
    ['grad_bias', 'grad_input', 'grad_weight', 'output',
     'stepped_bias', 'stepped_weight', 'updated_bias', 'updated_weight']
    >>> max(errors.values()) < 4
    True

    Raises ArithmeticError if one is over 4, and what a call raises for arguments of the wrong shape or dtype. The
    bound holds for sums whose terms have mixed signs; one-signed sums over many thousand terms may exceed it, with
    any library.
    """
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
    errors: dict[str, float] = {}
    for name, value in got.items():
        result = name.split()[-1]
        errors[result] = max(errors.get(result, 0.0), _error(value, exact[name], terms[name], layer))
    if bad := {name: error for name, error in errors.items() if not error <= LIMIT}:
        raise ArithmeticError(f"{layer!r}: error over {LIMIT} eps · Σ|a||b| in {bad}")
    return errors


def _run_reference(lr: float, *arguments: Any) -> dict[str, Any]:
    """What the layer computes from x, grad_output, weight, bias, by the reference, in their dtype."""
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


def _error(got: Array, exact: Array, terms: Array, layer: Linear) -> float:
    """max |got - exact| / (eps · terms); where exact is not finite or a sum is of nothing, got must be the same."""
    if not got.size:
        return 0.0
    limits = np.finfo(layer.dtype)
    exact_here = exact.astype(layer.dtype)
    with np.errstate(all="ignore"):
        # The second term is for products below the smallest normal number, whose rounding is absolute.
        unit = limits.eps * terms + max(layer.in_features, layer.out_features, 1) * limits.smallest_subnormal
        error = np.abs(got.astype(exact.dtype) - exact) / unit
    same = (got == exact_here) | (np.isnan(got) & np.isnan(exact_here))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))))
