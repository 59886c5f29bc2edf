"""Activations: the functions between the layers of a net, over arrays of any shape.

Each is at most 2 ulp from the exact value, and gives the same bits on AVX2, AVX-512 and NEON, wherever an element lies.
NaN stays NaN, an infinity gives the limit.

All take x (...), any array-like, and give an array of its shape: of float32 if x is of that or casts safely to it
(float16, 8- and 16-bit integers, bool), else of float64 (other integers, Python's numbers). ``out`` is overwritten and
returned; it must have x's shape and the result's dtype, and may be x itself or overlap it. Raises TypeError for a dtype
that casts safely to neither, ValueError for a wrong shape. Large arrays are divided among the threads there are.

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
    """max(x, 0); its derivative at 0 is 0.

    >>> activations.relu([-1, 2])
    array([0., 2.])
    """
    return _activate("relu", 1, x, out)


def leaky_relu(x: ArrayLike, out: Array | None = None) -> Array:
    """x, and 0.01 x left of 0.

    >>> activations.leaky_relu([-1, 2])
    array([-0.01,  2.  ])
    """
    return _activate("leaky_relu", 2, x, out)


def elu(x: ArrayLike, out: Array | None = None) -> Array:
    """x, and eˣ − 1 left of 0.

    >>> activations.elu([-1, 2])
    array([-0.63212056,  2.        ])
    """
    return _activate("elu", 3, x, out)


def sigmoid(x: ArrayLike, out: Array | None = None) -> Array:
    """1 / (1 + e⁻ˣ).

    >>> activations.sigmoid([0, 1])
    array([0.5       , 0.73105858])
    """
    return _activate("sigmoid", 4, x, out)


def tanh(x: ArrayLike, out: Array | None = None) -> Array:
    """(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ).

    >>> activations.tanh([0, 1])
    array([0.        , 0.76159416])
    """
    return _activate("tanh", 5, x, out)


def silu(x: ArrayLike, out: Array | None = None) -> Array:
    """x sigmoid(x), also known as swish; at −∞ it is −0.

    >>> activations.silu([0, 1])
    array([0.        , 0.73105858])
    """
    return _activate("silu", 6, x, out)


def gelu(x: ArrayLike, out: Array | None = None) -> Array:
    """x Φ(x), where Φ is the distribution function of the normal distribution: the exact one, not tanh's
    approximation; at −∞ it is −0.

    >>> activations.gelu([0, 1])
    array([0.        , 0.84134475])
    """
    return _activate("gelu", 7, x, out)


def softmax(x: ArrayLike, out: Array | None = None) -> Array:
    """eˣ / Σ eˣ over the last axis, of which there must be one.

    Large numbers do not overflow. An infinity counts as the largest number: those in a row that are equal share.

    >>> activations.softmax([1, 2, 1])
    array([0.21194156, 0.57611688, 0.21194156])
    """
    return _activate("softmax", 8, x, out)
