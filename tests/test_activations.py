"""The activations: how exact they are, that no lane, length or thread matters, and what arrays they take.

The judge is the reference in a wider dtype, which is itself held against mpmath here.
"""

from __future__ import annotations

import doctest
import hashlib
import inspect

import numpy as np
import pytest

import fastlinear
from fastlinear import _dispatch, activations, reference

from .bits import FUSED
from .helpers import COMPILED, assert_same_bits, assert_untouched_around, placed, wider

KINDS = activations.NAMES
EACH = [name for name in KINDS if name != "softmax"]
BY_BEFORE = ("silu", "gelu")
MOST = 2
"""Ulp of the exact value."""
is_wide = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
EDGES = (
    0.5,
    1,
    2,
    4,
    9.010913,
    14.5,
    19.0615,
    38.75,
    40,
    50,
    86.6,
    87.3365,
    88.7228,
    103.972,
    104,
    110,
    708.4,
    745.13,
    760,
)
"""Where a branch, a limit or a range ends; each multiple of log(2) / 2 is where n changes."""


@pytest.fixture(params=COMPILED)
def elementwise(request):
    return _dispatch.load(request.param, "_elementwise")


def activate(module, name, x):
    x = x if x.ndim == 2 else x[None]
    out = np.full_like(x, np.nan)
    module.activate(KINDS[name], np.ascontiguousarray(x), out)
    return out


def derivative(module, name, grad, values):
    out = np.full_like(grad, np.nan)
    output, before = (None, values) if name in BY_BEFORE else (values, None)
    module.derivative(KINDS[name], grad, output, before, out)
    return out


def ulp_apart(got, exact):
    """The distance in units of the last place of the exact values, subnormal ones too."""
    with np.errstate(all="ignore"):
        rounded = np.abs(exact).astype(got.dtype)
        unit = np.spacing(np.minimum(rounded, np.finfo(got.dtype).max))
        # Just below a power of two the exact value has the smaller unit.
        unit = np.where((rounded > np.abs(exact)) & (np.spacing(np.nextafter(rounded, 0)) < unit), unit / 2, unit)
        apart = np.abs(got.astype(exact.dtype) - exact) / unit
    return np.where((got == exact) | (np.isnan(got) & np.isnan(exact)), 0, np.where(np.isfinite(apart), apart, np.inf))


def most(module, name, dtype):
    """The most ulp. Without a fused multiply-add, gelu and softmax of float64 round a little more often."""
    fused = module.__name__.rpartition("_")[2] not in WITHOUT_FMA
    return MOST if fused or name not in ("gelu", "softmax") or dtype == np.float32 else 2.5


def neighbours(values, dtype, reach=3):
    x = np.asarray(values, dtype)
    return np.concatenate([x, *(np.nextafter(x, sign * np.inf) for sign in (-1, 1) for _ in range(reach))])


def everywhere(dtype, seed=0, each=24):
    """Numbers of every exponent, subnormals, both signs; the edges with their neighbours; the usual range, densely."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    significands = np.concatenate([[1, 1.5, 2 - info.eps], 1 + rng.random(each)])
    powers = np.ldexp(significands[:, None].astype(dtype), exponents).ravel()
    edges = neighbours([*EDGES, *(np.arange(1, 300) * np.log(2) / 2)], dtype)
    usual = rng.standard_normal(20_000) * rng.choice([0.1, 1, 10, 100], 20_000)
    x = np.concatenate([powers, edges, usual.astype(dtype)])
    return np.concatenate([x, -x, np.array([0, -0.0, np.inf, -np.inf, np.nan], dtype)]).astype(dtype)


def judged(name, x):
    """The exact values, but for a rounding of the wider dtype."""
    x = x.astype(wider(x.dtype))
    exact = np.empty_like(x)
    reference.activate(KINDS[name], x, exact)
    return exact


needs_a_judge = pytest.mark.skipif(not is_wide, reason="no floating dtype here is wider than float64")
DTYPES = [np.float32, pytest.param(np.float64, marks=needs_a_judge)]
WITHOUT_FMA = [name for name in COMPILED if name not in FUSED]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EACH)
def test_at_most_two_ulp(elementwise, name, dtype):
    """Over every exponent, subnormals and limits included."""
    x = everywhere(dtype)
    apart = ulp_apart(activate(elementwise, name, x)[0], judged(name, x))
    limit = most(elementwise, name, dtype)
    assert apart.max() <= limit, f"{apart.max()} ulp at {x[apart.argmax()]!r}"


@pytest.mark.long
@pytest.mark.parametrize("name", EACH)
def test_every_float32(elementwise, name):
    """All 2³² of them."""
    step = 1 << 22
    for first in range(0, 1 << 32, step):
        x = np.arange(first, first + step, dtype=np.uint64).astype(np.uint32).view(np.float32)
        apart = ulp_apart(activate(elementwise, name, x)[0], judged(name, x))
        assert apart.max() <= MOST, f"{apart.max()} ulp at {x[apart.argmax()]!r}"


def mp_exactly(mp, name, x):
    with mp.workprec(200):
        x = mp.mpf(float(x))
        near = max(min(x, mp.mpf(10_000)), mp.mpf(-10_000))  # beyond, all has come to its limit
        normal = mp.erfc(-near / mp.sqrt(2)) / 2
        logistic = 1 / (1 + mp.exp(-near))
        return {
            "relu": lambda: max(x, mp.mpf(0)),
            "leaky_relu": lambda: x if x > 0 else mp.mpf(0.01) * x,
            "elu": lambda: x if x > 0 else mp.expm1(near),
            "sigmoid": lambda: logistic,
            "tanh": lambda: mp.tanh(near),
            "silu": lambda: x * logistic,
            "gelu": lambda: x * normal,
            "silu'": lambda: logistic * (1 + x * (1 - logistic)),
            "gelu'": lambda: normal + x * mp.npdf(x),
        }[name]()


def as_wide(mp, value, dtype):
    """A number of mpmath's as one of the dtype, by way of two of float64's."""
    with mp.workprec(200):
        high = float(value)
        return dtype(high) + (dtype(float(value - mp.mpf(high))) if np.isfinite(high) else dtype(0))


def against_mpmath(module, name, x):
    mp = pytest.importorskip("mpmath")
    exact = np.array([as_wide(mp, mp_exactly(mp, name, v), np.longdouble) for v in x])
    return ulp_apart(activate(module, name, x)[0], exact)


@pytest.mark.parametrize("name", EACH)
def test_the_judge_is_right(name, dtype):
    """The reference is within half an ulp, and a little, of mpmath's value."""
    x = np.random.default_rng(2).choice(everywhere(dtype)[:-3], 400, replace=False)
    assert against_mpmath(reference, name, x).max() <= (0.51 if dtype == np.float32 or is_wide else 16)


@pytest.mark.long
@pytest.mark.parametrize("name", EACH)
def test_a_million_float64(name):
    """Against mpmath, on the best instruction set of the machine."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(10**6) * rng.choice([0.01, 1, 10, 200], 10**6)
    module = _dispatch.load(COMPILED[0], "_elementwise")
    assert max(against_mpmath(module, name, part).max() for part in x.reshape(100, -1)) <= MOST


@pytest.mark.parametrize("name", EACH)
def test_limits(elementwise, name, dtype):
    """An infinity gives the limit, NaN stays NaN, and 0 keeps its sign where the function is odd or nearly so."""
    got = activate(elementwise, name, np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype))[0]
    low = {"relu": 0, "leaky_relu": -np.inf, "elu": -1, "sigmoid": 0, "tanh": -1, "silu": -0.0, "gelu": -0.0}[name]
    high = 1 if name in ("sigmoid", "tanh") else np.inf
    assert_same_bits(got[:2], np.array([high, low], dtype), name)
    assert np.isnan(got[2])
    zeros = [0.5, 0.5] if name == "sigmoid" else [0.0, -0.0]
    assert_same_bits(got[3:], np.array(zeros, dtype), name)


@pytest.mark.parametrize("name", EACH)
def test_the_reference_keeps_the_sign_of_0(name, dtype):
    got = activate(reference, name, np.array([0.0, -0.0], dtype))[0]
    assert list(np.signbit(got)) == [False, name != "sigmoid"]


# ---- derivatives


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*EACH, "softmax"])
def test_derivatives_by_the_reference(elementwise, name, dtype):
    """From the output: 3 ulp. silu and gelu, from x: 8 ulp, or 2 eps where the derivative goes through 0."""
    rng = np.random.default_rng(4)
    grad = rng.standard_normal((7, 301)).astype(dtype)
    before = (rng.standard_normal(grad.shape) * rng.choice([0.1, 1, 10], grad.shape)).astype(dtype)
    values = before if name in BY_BEFORE else activate(elementwise, name, before)
    got = derivative(elementwise, name, grad, values)
    wide = wider(dtype)
    exact = derivative(reference, name, grad.astype(wide), values.astype(wide))
    eps = np.finfo(dtype).eps
    if name == "softmax":
        terms = values * (np.abs(grad) + (np.abs(grad) * values).sum(axis=-1, keepdims=True))
        assert (np.abs(got - exact) <= 4 * eps * terms).all()
    elif name in BY_BEFORE:
        assert (np.abs(got - exact) <= np.maximum(2 * eps * np.abs(grad), 0)).all()
        far = (before > -0.5) | (before < -1.6)
        assert ulp_apart(got, exact)[far].max() <= 8
    else:
        assert ulp_apart(got, exact).max() <= 3


@pytest.mark.parametrize("name", BY_BEFORE)
def test_derivatives_by_mpmath(name, dtype):
    """The reference's derivative, which is the judge above, at 300 points."""
    mp = pytest.importorskip("mpmath")
    x = np.random.default_rng(5).uniform(-30, 10, 300).astype(dtype)
    got = derivative(reference, name, np.ones_like(x)[None], x[None])[0]
    exact = np.array([as_wide(mp, mp_exactly(mp, f"{name}'", v), np.longdouble) for v in x])
    assert ulp_apart(got, exact).max() <= (0.51 if dtype == np.float32 or is_wide else 64)


def test_derivatives_at_the_limits(elementwise, dtype):
    """relu's is 0 at 0; silu's and gelu's go to 0 and 1; a NaN before or after the activation gives NaN."""
    x = np.array([[np.inf, -np.inf, 0, np.nan]], dtype)
    one = np.ones_like(x)
    for name in BY_BEFORE:
        got = derivative(elementwise, name, one, x)
        assert np.array_equal(got, [[1, 0, 0.5, np.nan]], equal_nan=True), name
    y = np.array([[2, 0, np.nan]], dtype)
    assert np.array_equal(derivative(elementwise, "relu", one[:, :3], y), [[1, 0, np.nan]], equal_nan=True)


# ---- softmax


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 15, 16, 17, 33, 100, 1000, 30_000])
def test_softmax_at_most_two_ulp(elementwise, columns, dtype):
    """Whatever the length of a row: differences and sums are taken to more than the dtype's precision."""
    rng = np.random.default_rng(columns)
    rows = max(2, 20_000 // columns)
    x = rng.standard_normal((rows, columns)) * rng.choice([0.1, 1, 10, 100], (rows, 1)) + rng.uniform(
        -99, 99, (rows, 1)
    )
    x = x.astype(dtype)
    apart = ulp_apart(activate(elementwise, "softmax", x), judged("softmax", x))
    assert apart.max() <= most(elementwise, "softmax", dtype)


def test_softmax_of_the_extreme(elementwise, dtype):
    """Nothing overflows; infinities that are equal share; NaN takes the row, and no other."""
    largest = np.finfo(dtype).max
    rows = {
        (largest, -largest, 0): (1, 0, 0),
        (np.inf, 5, 1e4): (1, 0, 0),
        (np.inf, np.inf, -np.inf): (0.5, 0.5, 0),
        (-np.inf, 3, 3): (0, 0.5, 0.5),
        (-np.inf, -np.inf, -np.inf): (1 / 3, 1 / 3, 1 / 3),
        (np.nan, 1, 2): (np.nan, np.nan, np.nan),
        (-np.inf, np.nan, np.inf): (np.nan, np.nan, np.nan),
    }
    got = activate(elementwise, "softmax", np.array([*rows], dtype))
    assert np.array_equal(got, np.array([*rows.values()], dtype), equal_nan=True)


# ---- bits


def mixed(dtype, n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * rng.choice([0.1, 1, 10, 100], n)
    x[rng.integers(0, n, n // 16)] = -0.0
    return x.astype(dtype)


@pytest.mark.parametrize("name", EACH)
def test_no_lane_length_or_alignment_matters(elementwise, name, dtype):
    """An element gives the same bits wherever it lies; nothing beside the output is written."""
    x, grad = mixed(dtype, 71), mixed(dtype, 71, seed=1)
    whole = activate(elementwise, name, x)[0]
    values = x if name in BY_BEFORE else whole
    slopes = derivative(elementwise, name, grad[None], values[None])[0]
    for n in (*range(1, 36), 71):
        for first in {0, 1, 5, 71 - n} if n < 71 else {0}:
            part = slice(first, first + n)
            out, slope = (placed(np.full((1, n), np.nan, dtype), first % 16) for _ in range(2))
            elementwise.activate(KINDS[name], placed(x[None, part], n % 16), out)
            assert_same_bits(out[0], whole[part], (n, first))
            v = placed(values[None, part], n % 7)
            elementwise.derivative(KINDS[name], placed(grad[None, part], first % 5), v, v, slope)
            assert_same_bits(slope[0], slopes[part], (n, first))
            assert_untouched_around(out, name)
            assert_untouched_around(slope, name)


@pytest.mark.parametrize("columns", [1, 5, 8, 16, 17, 40])
def test_a_row_of_softmax_stands_by_itself(elementwise, columns, dtype):
    """In a batch, alone, and in place; and nothing beside it is written."""
    x, grad = mixed(dtype, 9 * columns).reshape(9, columns), mixed(dtype, 9 * columns, seed=1).reshape(9, columns)
    whole = activate(elementwise, "softmax", x)
    slopes = derivative(elementwise, "softmax", grad, whole)
    for row in range(9):
        out, slope = placed(np.full((1, columns), np.nan, dtype), row), placed(grad[row : row + 1], row)
        elementwise.activate(KINDS["softmax"], placed(x[row : row + 1], 3), out)
        assert_same_bits(out[0], whole[row])
        elementwise.derivative(KINDS["softmax"], slope, whole[row : row + 1], None, slope)
        assert_same_bits(slope[0], slopes[row])
        assert_untouched_around(out, "softmax")
        assert_untouched_around(slope, "softmax")
    elementwise.activate(KINDS["softmax"], x, x)
    assert_same_bits(x, whole)


RECORDED: dict[str, dict[str, str]] = {
    "float32": {
        "relu": "d4ce2e3da35296f0",
        "leaky_relu": "396a5669a76e3d59",
        "elu": "b99fee03ebeaa6d7",
        "sigmoid": "0ea870175316e4d8",
        "tanh": "eca1d40be4c71843",
        "silu": "0a0b8ae53d13278d",
        "gelu": "8e64efab558f88ac",
        "softmax": "e75dd22a990b752b",
    },
    "float64": {
        "relu": "5f13a47f8c098456",
        "leaky_relu": "dd2e0ebde6a5ad8b",
        "elu": "bbe86a93a1ce349a",
        "sigmoid": "e931420ea3be78d4",
        "tanh": "5d2ec230819d942b",
        "silu": "3d90ce117e91d86b",
        "gelu": "bce55f3378dc1b84",
        "softmax": "b61c0922a013e9c3",
    },
}
"""Digests of what the instruction sets with a fused multiply-add compute; they must not change."""


def digest(module, name, dtype):
    # Numbers by arithmetic alone, so that no library's random numbers or functions matter.
    x = ((np.arange(30_000) * 7919 % 30_011 - 15_005) / 256).astype(dtype).reshape(300, 100)
    grad = ((np.arange(30_000) * 104_729 % 30_011 - 15_005) / 8192).astype(dtype).reshape(300, 100)
    y = activate(module, name, x)
    slope = derivative(module, name, grad, x if name in BY_BEFORE else y)
    return hashlib.sha256(y.tobytes() + slope.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", KINDS)
def test_recorded_bits(name, dtype):
    """The same on AVX2, AVX-512 and NEON, and tomorrow."""
    for isa in FUSED:
        assert digest(_dispatch.load(isa, "_elementwise"), name, dtype) == RECORDED[dtype.__name__][name], isa


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("name", KINDS)
def test_each_thread_does_its_share(elementwise, name, threads, dtype):
    """Together all of it, with the bits of one thread; the reference gives all of it to the first."""
    x = mixed(dtype, 61 * 103).reshape(61, 103)
    expected = activate(elementwise, name, x)
    out, at_once = np.full_like(x, np.nan), np.full_like(x, np.nan)
    for thread in range(threads):
        elementwise.activate(KINDS[name], x, out, threads=threads, thread=thread)
    elementwise.activate(KINDS[name], x, at_once, threads=threads)
    assert_same_bits(out, expected)
    assert_same_bits(at_once, expected)
    slope, grad = np.full_like(x, np.nan), mixed(dtype, x.size, seed=1).reshape(x.shape)
    for thread in range(threads):
        elementwise.derivative(KINDS[name], grad, expected, x, slope, threads=threads, thread=thread)
    assert_same_bits(slope, derivative(elementwise, name, grad, x if name in BY_BEFORE else expected))


# ---- the kernels' arguments


@pytest.mark.parametrize("kernel", ["activate", "derivative"])
def test_reference_has_the_signatures(elementwise, kernel):
    def parameters(module):
        return [(p.name, p.default) for p in inspect.signature(getattr(module, kernel)).parameters.values()]

    assert parameters(reference) == parameters(elementwise)


def test_kernels_refuse(elementwise, dtype):
    """A kind that is none, shapes that do not fit, impossible threads, missing values."""
    a, b = np.zeros((3, 4), dtype), np.zeros((3, 5), dtype)
    with pytest.raises(ValueError, match="kind must be from 0 to 8, got 9"):
        elementwise.activate(9, a, a)
    for wrong in (b, a[:2]):
        with pytest.raises(ValueError, match=r"\d.* expected"):
            elementwise.activate(1, a, wrong.copy())
        with pytest.raises(ValueError, match=r"\d.* expected"):
            elementwise.derivative(1, a, wrong.copy(), None, a)
    with pytest.raises(ValueError, match="threads must be from 1 to 1024, got 0"):
        elementwise.activate(1, a, a, threads=0)
    with pytest.raises(ValueError, match="needs the values"):
        elementwise.derivative(KINDS["gelu"], a, a, None, a)


# ---- the functions for users


def public(name):
    return getattr(activations, name)


@pytest.mark.parametrize("name", KINDS)
def test_any_array(isa, name, dtype):
    """Strided, reversed, Fortran-ordered, byte-swapped, misaligned, read-only, with more axes: as the plain one."""
    plain = mixed(dtype, 4 * 3 * 10).reshape(4, 3, 10)
    expected = public(name)(plain)
    assert expected.shape == plain.shape
    assert expected.dtype == dtype
    packed = np.zeros(plain.shape, [("pad", "i1"), ("x", dtype)])
    packed["x"] = plain
    frozen = plain.copy()
    frozen.flags.writeable = False
    wide = np.zeros((4, 3, 20), dtype)
    wide[..., ::2] = plain
    for x in (
        wide[..., ::2],
        np.ascontiguousarray(plain[::-1])[::-1],
        np.asfortranarray(plain),
        plain.astype(plain.dtype.newbyteorder()),
        packed["x"],
        frozen,
        plain.view(np.memmap),
    ):
        assert_same_bits(public(name)(x), expected)
        out = np.full(plain.shape[::-1], np.nan, dtype).T
        assert public(name)(x, out=out) is out
        assert_same_bits(np.ascontiguousarray(out), expected)


@pytest.mark.parametrize("name", KINDS)
def test_out_may_overlap(isa, name, dtype):
    """In place, or shifted by some elements: as if it did not."""
    for shift in (0, 1, -1, 5):
        memory = mixed(dtype, 50)
        x, out = memory[10:40], memory[10 + shift : 40 + shift]
        expected = public(name)(x.copy())
        public(name)(x, out=out)
        assert_same_bits(out.copy(), expected, shift)


def test_sizes_and_dtypes(isa):
    """0 elements, 0 axes, lists, numbers; what casts safely to float32 gives that, the rest float64."""
    for name in EACH:
        assert public(name)(np.float32(0.5)).shape == ()
    for name in KINDS:
        for shape in ((0,), (3, 0), (0, 3)):
            assert public(name)(np.zeros(shape, np.float32)).shape == shape
    for x, dtype in {
        (1, 2): np.float64,
        (0.5, 1): np.float64,
    }.items():
        assert activations.tanh(list(x)).dtype == dtype
    for given, dtype in {"f2": "f4", "i1": "f4", "u2": "f4", "?": "f4", "i4": "f8", "i8": "f8", ">f4": "f4"}.items():
        x = np.array([0, 1], given)
        got = activations.sigmoid(x)
        assert got.dtype == np.dtype(dtype)
        assert_same_bits(got, activations.sigmoid(x.astype(dtype)))


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("name", KINDS)
def test_errors_before_anything_is_written(isa, name):
    """Each says what was expected and what came."""
    x = np.ones(5, np.float32)
    frozen, right = np.zeros(5, np.float32), np.zeros(5, np.float32)
    frozen.flags.writeable = False
    for given, out, error, words in (
        (x.astype(complex), None, TypeError, f"{name}: x has dtype complex128.*float32 or float64"),
        (np.array(["a"]), None, TypeError, "x has dtype <U1"),
        (np.array([None]), None, TypeError, "x has dtype object"),
        (np.ma.array(x), None, TypeError, "masked array"),
        ([[1], [1, 2]], None, ValueError, "cannot be read as an array"),
        (x, [0] * 5, TypeError, "out must be a numpy.ndarray, got list"),
        (x, np.zeros(5), TypeError, "out must have dtype float32, got float64"),
        (x, right.astype(">f4"), TypeError, "out must have dtype float32, got >f4"),
        (x, np.zeros((1, 5), np.float32), ValueError, r"out must have shape \(5,\), got \(1, 5\)"),
        (x, frozen, ValueError, "out must be writable"),
        (x, np.ma.array(right), TypeError, "masked array"),
    ):
        with pytest.raises(error, match=words):
            public(name)(given, out=out)
    assert not right.any()
    assert not frozen.any()
    out = right.view(Sub)
    assert public(name)(x, out=out) is out
    assert_same_bits(right, public(name)(x))


def test_softmax_of_a_number_is_an_error():
    with pytest.raises(ValueError, match="softmax: x must have at least one axis"):
        activations.softmax(1.0)


@pytest.mark.parametrize("name", KINDS)
def test_large_arrays_on_threads(compiled_isa, threads, name, dtype):
    """Above the size from which they are divided, the bits are those of one thread."""
    x = mixed(dtype, 300_000).reshape(3000, 100)
    threads(1)
    expected = public(name)(x)
    threads(2)
    assert_same_bits(public(name)(x), expected)


@pytest.mark.parametrize("name", KINDS)
def test_docstrings(name):
    """The example gives what stands below it."""
    text = inspect.getdoc(public(name))
    assert ">>>" in text
    test = doctest.DocTestParser().get_doctest(text, {"activations": activations}, name, name, 0)
    with np.printoptions(precision=8, suppress=False):
        assert doctest.DocTestRunner().run(test).failed == 0


def test_names():
    """Every name is a function of the module, and a kind of the reference in the same place."""
    assert [reference.ACTIVATIONS[kind] for kind in KINDS.values()] == [*KINDS]
    assert set(KINDS) <= set(activations.__all__)
    assert "activations" in fastlinear.__all__
