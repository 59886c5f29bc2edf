"""Activations: the functions between the layers of a net, over arrays of any shape.

Each is at most 2 ulp from the exact value, and gives the same bits on AVX2, AVX-512 and NEON, wherever an element lies.
(The x86 baseline has no fused multiply-add; there float64 gelu and softmax are at most 2.5 ulp off.) NaN stays NaN, and
an infinity gives the limit.

All take x (...), any array-like, and return an array of its shape. Its dtype is float32 if that of x casts safely to
float32 (float16, 8- and 16-bit integers, bool), and else float64 (other integers, Python's numbers). ``out`` is
overwritten and returned. It must have the shape of x and the dtype of the result, and can be x itself or overlap it.
Raises TypeError if the dtype of x casts safely to neither or out has another dtype, and ValueError if out has a wrong
shape or is read-only. Large arrays are divided among the threads.

>>> from fastlinear import activations
>>> activations.relu(np.array([0.5, -1], np.float32))
array([0.5, 0. ], dtype=float32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlinear._layer import activate as _activate
from fastlinear.reference import ACTIVATIONS as _ACTIVATIONS

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[Any]

NAMES: dict[str, int] = {name: kind for kind, name in enumerate(_ACTIVATIONS) if name != "identity"}
"""What each is called, and its number among the kernels."""

__all__ = ["NAMES", "elu", "gelu", "leaky_relu", "relu", "sigmoid", "silu", "softmax", "tanh"]


def relu(x: ArrayLike, out: Array | None = None) -> Array:
    """max(x, 0). Its derivative at 0 is 0.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.relu([-1, 2])
    array([0., 2.])
    """
    return _activate("relu", 1, x, out)


def leaky_relu(x: ArrayLike, out: Array | None = None) -> Array:
    """x where x > 0, and 0.01 x elsewhere.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.leaky_relu([-1, 2])
    array([-0.01,  2.  ])
    """
    return _activate("leaky_relu", 2, x, out)


def elu(x: ArrayLike, out: Array | None = None) -> Array:
    """x where x > 0, and eˣ − 1 elsewhere.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.elu([-1, 2])
    array([-0.63212056,  2.        ])
    """
    return _activate("elu", 3, x, out)


def sigmoid(x: ArrayLike, out: Array | None = None) -> Array:
    """1 / (1 + e⁻ˣ).

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.sigmoid([0, 1])
    array([0.5       , 0.73105858])
    """
    return _activate("sigmoid", 4, x, out)


def tanh(x: ArrayLike, out: Array | None = None) -> Array:
    """(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ).

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.tanh([0, 1])
    array([0.        , 0.76159416])
    """
    return _activate("tanh", 5, x, out)


def silu(x: ArrayLike, out: Array | None = None) -> Array:
    """x sigmoid(x), also known as swish. At −∞ it is −0.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.silu([0, 1])
    array([0.        , 0.73105858])
    """
    return _activate("silu", 6, x, out)


def gelu(x: ArrayLike, out: Array | None = None) -> Array:
    """x Φ(x), where Φ is the distribution function of the normal distribution. At −∞ it is −0.

    This is the exact function, not its approximation by tanh.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.gelu([0, 1])
    array([0.        , 0.84134475])
    """
    return _activate("gelu", 7, x, out)


def softmax(x: ArrayLike, out: Array | None = None) -> Array:
    """eˣ / Σ eˣ, where the sum is over the last axis. A number, which has no axis, is a ValueError.

    Large numbers do not overflow. An infinity counts as the largest number, so equal infinities in a row share the 1.

    x: (...). out: (...), overwritten; made new if None. Returns out. Dtypes and errors are those of every activation,
    which ``help(fastlinear.activations)`` names.

    >>> activations.softmax([1, 2, 1])
    array([0.21194156, 0.57611688, 0.21194156])
    """
    return _activate("softmax", 8, x, out)
