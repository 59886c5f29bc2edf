"""The judge of tests/test_space.py judged: multiply-adds against fractions, and the orders that it tells apart."""

import math
from fractions import Fraction

import numpy as np

from . import emulation
from .helpers import wild


def rounded(value, dtype):
    """A fraction as the nearest number of that dtype, ties to even, by integers alone; 0 is +0."""
    digits, lowest, largest = (24, -149, 128) if dtype == np.float32 else (53, -1074, 1024)
    if value == 0:
        return dtype(0)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += 0 if size >= Fraction(2) ** exponent else -1  # 2**exponent <= size < 2**(exponent + 1)
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    units = round(size / unit)  # Python rounds halves to even
    result = math.inf if units * unit >= Fraction(2) ** largest else float(units * unit)
    return dtype(result if value > 0 else -result)


def random_triples(rng, dtype, count):
    """a, b, c of all magnitudes; in most of them c is near -a b, or near half a unit in the last place of it."""
    lowest, largest, digits = (-149, 127, 24) if dtype == np.float32 else (-1074, 1023, 53)

    def number(exponent):
        return dtype(math.ldexp(rng.choice([-1, 1]) * rng.choice([1, 1 + rng.random(), rng.random()]), int(exponent)))

    for _ in range(count):
        a = number(rng.integers(lowest, largest) if rng.random() < 0.5 else rng.integers(-20, 20))
        b = number(rng.integers(lowest, largest) if rng.random() < 0.3 else rng.integers(-20, 20))
        product = Fraction(float(a)) * Fraction(float(b))
        near = max(min(math.frexp(float(a))[1] + math.frexp(float(b))[1], largest), lowest)
        kind = rng.integers(4)
        if kind == 0:
            c = rounded(-product, dtype)
        elif kind == 1:
            c = number(rng.integers(lowest, largest))
        else:
            far = int(rng.integers(-3, 4)) + (digits if kind == 2 else int(rng.choice([-digits, 0])))
            c = number(max(min(near + far, largest), lowest))
        if math.isfinite(c):
            yield a, b, c


def test_multiply_adds_are_rounded_once(dtype):
    """fused() is a b + c, rounded once, for numbers of all magnitudes, on ties and beside them, for every overflow and
    underflow; and another way of rounding, as that of unfused(), is not."""
    triples = [*random_triples(np.random.default_rng(0), dtype, 1500)]
    a, b, c = (np.array(v, dtype) for v in zip(*triples, strict=True))
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in triples]
    expected = np.array([rounded(value, dtype) for value in exact])
    got = emulation.fused(a, b, c)
    np.testing.assert_array_equal(got, expected)
    signs = np.array([value > 0 for value in exact])
    there = np.array([value != 0 for value in exact])
    np.testing.assert_array_equal(np.signbit(got[there]), ~signs[there])
    assert np.mean(emulation.unfused(a, b, c) != expected) > 0.1


def test_multiply_adds_in_two_roundings_are_told_apart():
    """float32 by way of float64, both times to nearest, is wrong where the first ends on a tie; fused() is not."""
    a = np.full(2, 1 + 2**-12, np.float32)  # its square is 1 + 2**-11 + 2**-24, half way between two float32
    c = np.array([2**-80, -(2**-80)], np.float32)
    expected = np.array([1 + 2**-11 + 2**-23, 1 + 2**-11], np.float32)
    np.testing.assert_array_equal(emulation.fused(a, a, c), expected)
    assert (np.float32(np.float64(a) * a + c) != expected).any()


def test_multiply_adds_of_special_values(dtype):
    """Zeros have the sign that IEEE 754 gives them; infinities and NaN spread. On numbers that a plain product and sum
    get right, fused() gives the same."""
    values = np.array([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan], dtype)
    a, b, c = (v.ravel() for v in np.meshgrid(values, values, values))
    got, expected = emulation.fused(a, b, c), emulation.unfused(a, b, c)
    np.testing.assert_array_equal(got, expected)
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[there]), np.signbit(expected[there]))


def test_underflow_keeps_its_sign(dtype):
    """A negative product too small for the dtype is -0, except that it is added to +0 exactly: then it is rounded."""
    tiny = np.array([np.finfo(dtype).smallest_subnormal] * 2)
    for zero in (0.0, -0.0):
        got = emulation.fused(tiny, np.array([0.25, -0.25], dtype), np.full(2, zero, dtype))
        np.testing.assert_array_equal(got, 0)
        np.testing.assert_array_equal(np.signbit(got), [False, True])


def test_the_order_shows(dtype):
    """The same terms in another order, or by another multiply-add, have other sums: equal bits mean an equal order."""
    x, _, few, _ = wild(5, 2100, 9, dtype)
    output = emulation.forward(x, few)
    for order in (slice(None, None, -1), np.random.default_rng(0).permutation(2100)):
        assert np.mean(output != emulation.forward(x[:, order], few[:, order])) > 0.5
    assert np.mean(output != emulation.forward(x, few, multiply_add=emulation.unfused)) > 0.5
    _, grad_output, few, _ = wild(5, 60, 6000, dtype)
    grad_input = emulation.grad_input(grad_output, few)
    assert np.mean(grad_input != emulation.grad_input(grad_output[:, ::-1], few[::-1])) > 0.5
    assert np.mean(grad_input != emulation.grad_input(grad_output, few, emulation.unfused)) > 0.5
    x, grad_output, start, _ = wild(40, 9, 50, dtype)
    grad_weight = emulation.grad_weight(x, grad_output, 0.3, start)
    assert np.mean(grad_weight != emulation.grad_weight(x[::-1], grad_output[::-1], 0.3, start)) > 0.25
    assert np.mean(grad_weight != emulation.grad_weight(x, grad_output, 0.3, start, emulation.unfused)) > 0.25
