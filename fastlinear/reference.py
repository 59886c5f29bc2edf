"""The NumPy specification of every kernel: the same names and signatures as in ``_kernels.pyx``.

``FASTLINEAR_ISA=reference`` runs the whole layer on it; ``fastlinear.verify`` and the tests hold the kernels against
it. It works in any floating dtype, so in one wider than the layer's it is a judge of rounding, too. Where a sum is
rounded differently from the kernels' fixed order, the difference is within the bound that ``verify`` checks.

x is (batch, in), grad_output (batch, out), weight (out, in), bias (out,); all in one dtype. ``threads`` is accepted
and changes nothing, as with the kernels. ``thread`` asks for what one of the threads would do: here the first does all
of it and the others nothing; -1 is all of it. A wrong shape is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from numpy.typing import NDArray

    Array = NDArray[Any]

Kernel = TypeVar("Kernel", bound=Callable[..., None])


def _silent(kernel: Kernel) -> Kernel:
    """Overflow, 0 · inf and the like give what IEEE says, without a RuntimeWarning, as in the kernels."""

    @wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> None:
        with np.errstate(all="ignore"):
            kernel(*args, **kwargs)

    return run  # type: ignore[return-value]


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape} where {shape} was expected")


@_silent
def forward(x: Array, weight: Array, bias: Array | None, out: Array, threads: int = 1, thread: int = -1) -> None:
    """out[b, o] = sum_i x[b, i] weight[o, i] + bias[o]. out is overwritten; bias may be None."""
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
    """grad_input into out (overwritten; may be None), then weight -= lr grad_output^T x and bias -= lr sum_b
    grad_output in place; bias may be None. out comes from the weights as they were."""
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
