"""Fits the polynomials of fastlinear/_activation.h and prints them as they stand there: python bench/fit_activations.py

Needs mpmath. Each is a weighted least-squares fit at Chebyshev nodes, which is within a bit of the minimax polynomial.
Coefficients are rounded to the dtype one after another, the lowest first, and those that are left are fitted again, so
that they make up for what the rounding took. Printed with each: log2 of the largest error, with its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mpmath as mp
import numpy as np

mp.mp.prec = 300
Function = Callable[[mp.mpf], mp.mpf]

SHIFT = 2
"""c below. It must be a small integer, so that the rounding error of a + c is found exactly."""


class Polynomial(NamedTuple):
    name: str
    what: str
    function: Function
    weight: Function
    degree: dict[type, int]
    interval: dict[type, tuple[mp.mpf, mp.mpf]]


def rest_of_exp(r: mp.mpf) -> mp.mpf:
    return (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2


def scaled_mills(t: mp.mpf) -> mp.mpf:
    a = SHIFT * (1 + t) / (1 - t)
    return (a + SHIFT) * mp.erfc(a / mp.sqrt(2)) * mp.exp(a * a / 2)


def argument(top: float) -> tuple[mp.mpf, mp.mpf]:
    return mp.mpf(-1), (mp.mpf(top) - SHIFT) / (mp.mpf(top) + SHIFT)


HALF_STEP = mp.log(2) / 2 * mp.mpf("1.001")
"""The reduced argument is at most that; a little more where the rounding to an integer is not to the nearest."""
REDUCED = (-HALF_STEP, HALF_STEP)

POLYNOMIALS = [
    Polynomial(
        "EXP",
        "e^r = 1 + r + r² p(r); the error of r p(r)",
        rest_of_exp,
        abs,
        {np.float32: 4, np.float64: 9},
        {np.float32: REDUCED, np.float64: REDUCED},
    ),
    Polynomial(
        "MILLS",
        f"2 (a + {SHIFT}) Phi(-a) e^(a²/2) = 1 + p(t), t = (a - {SHIFT}) / (a + {SHIFT}); the relative error",
        lambda t: scaled_mills(t) - 1,
        lambda t: 1 / scaled_mills(t),
        {np.float32: 12, np.float64: 29},
        {np.float32: argument(14.5), np.float64: argument(38.75)},
    ),
]


def nodes(low: mp.mpf, high: mp.mpf, n: int) -> list[mp.mpf]:
    return [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * j + 1) / (2 * n)) for j in range(n)]


def value(coefficients: list[mp.mpf], x: mp.mpf) -> mp.mpf:
    return mp.polyval(coefficients[::-1], x)


def rounded(x: mp.mpf, dtype: type) -> mp.mpf:
    bits = np.finfo(dtype).nmant + 1
    with mp.workprec(bits):
        return +x


def fit(p: Polynomial, dtype: type) -> list[mp.mpf]:
    points = nodes(*p.interval[dtype], 4 * p.degree[dtype] + 8)
    values, weights = [p.function(x) for x in points], [p.weight(x) for x in points]
    known: list[mp.mpf] = []
    for first in range(p.degree[dtype] + 1):
        columns = p.degree[dtype] + 1 - first
        matrix = mp.matrix(len(points), columns)
        right = mp.matrix(len(points), 1)
        for row, (x, f, w) in enumerate(zip(points, values, weights, strict=True)):
            right[row] = w * (f - value(known, x) if known else f)
            for column in range(columns):
                matrix[row, column] = w * x ** (first + column)
        known.append(rounded(mp.lu_solve(matrix, right)[0], dtype))
    return known


def literal(x: mp.mpf, dtype: type) -> str:
    return f"{np.float32(float(x)):.9g}f" if dtype == np.float32 else f"{float(x):.17g}"


def main() -> None:
    for p in POLYNOMIALS:
        for dtype, suffix in {np.float32: "f32", np.float64: "f64"}.items():
            found = fit(p, dtype)
            low, high = p.interval[dtype]
            points = [low + (high - low) * j / 997 for j in range(998)]
            error = max(abs(p.weight(x) * (p.function(x) - value(found, x))) for x in points)
            print(f"/* {p.what}: 2^{float(mp.log(error, 2)):.1f} */")
            print(f"static const {'float' if dtype == np.float32 else 'double'} {p.name}_{suffix}[] = {{")
            print(*(f"    {literal(c, dtype)}," for c in found), sep="\n")
            print("};")


if __name__ == "__main__":
    main()
