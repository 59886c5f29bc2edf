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

LIMIT = 4.0
"""The most that |got - exact| may be, in units of eps · Σ|a||b|, for each element of each output."""


def verify(layer: Linear, x: ArrayLike, grad_output: ArrayLike) -> dict[str, float]:
    """Run the layer and the NumPy reference on the same input and return the error of each output.

    x: (..., in_features), grad_output: (..., out_features), with the same leading axes. The reference runs in a wider
    dtype. The errors are ``max |got - exact| / (eps · Σ|a||b|)``, where the sum is over the products that make up an
    element, under the names ``output``, ``grad_input``, ``grad_weight``, ``grad_bias``, and ``updated_weight`` and
    ``updated_bias`` for ``backward_update``. The layer itself does not change.

    >>> layer, rng = Linear(64, 10, rng=0), np.random.default_rng(0)
    >>> x = rng.standard_normal((8, 64), np.float32)
    >>> grad_output = rng.standard_normal((8, 10), np.float32)
    >>> errors = fastlinear.verify(layer, x, grad_output)
    >>> sorted(errors)
    ['grad_bias', 'grad_input', 'grad_weight', 'output', 'updated_bias', 'updated_weight']
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
    got |= {"grad_weight": trial.grad_weight, "grad_bias": trial.grad_bias}
    got["update_input"] = trial.backward_update(x, grad_output, lr)
    got |= {"updated_weight": trial.weight, "updated_bias": trial.bias}

    wide = np.longdouble if layer.dtype == np.float64 else np.float64
    arguments = (x, grad_output, layer.weight, layer.bias)
    exact = _run_reference(lr, *(None if a is None else np.asarray(a, layer.dtype).astype(wide) for a in arguments))
    terms = _run_reference(
        -lr, *(None if a is None else np.abs(np.asarray(a, layer.dtype)).astype(wide) for a in arguments)
    )
    got, exact, terms = ({k: v for k, v in d.items() if v is not None} for d in (got, exact, terms))
    errors = {name: _error(value, exact[name], terms[name], layer) for name, value in got.items()}
    errors["grad_input"] = max(errors["grad_input"], errors.pop("update_input"))
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
    grad_weight, updated_weight = np.zeros_like(weight), weight.copy()
    reference.grad_weight(x, grad_output, 1.0, grad_weight)
    grad_bias = updated_bias = None
    if bias is not None:
        grad_bias, updated_bias = np.zeros_like(bias), bias.copy()
        reference.grad_bias(grad_output, 1.0, grad_bias)
    update_input = np.empty_like(x)
    reference.update(x, grad_output, lr, updated_weight, updated_bias, update_input)
    return {
        "output": output.reshape(*shape[:-1], weight.shape[0]),
        "grad_input": grad_input.reshape(shape),
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
        "update_input": update_input.reshape(shape),
        "updated_weight": updated_weight,
        "updated_bias": updated_bias,
    }


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
