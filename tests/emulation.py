"""What the kernels compute, to the last bit, in NumPy: the documented order of additions and nothing of the kernels.

Written from README (*Promises*) and docs/reliability.md (*The bits of a result*). The arithmetic works on whole arrays
of outputs and loops over the terms of a sum, so a million multiply-adds take some tenths of a second. Each operation
takes the multiply-add that it uses: `fused` rounds a b + c once, as IEEE 754's fusedMultiplyAdd does; `unfused` rounds
the product, too, as an instruction set without the former does. tests/test_emulation.py holds `fused` to fractions.

Where the documents are silent, this holds (found by trying, and kept from here on):

- Each lane of forward, and each block of grad_input, is a chain that begins at +0. So it ends at -0 only where
  products underflow, and a sum without terms is +0.
- A lane without elements is +0, and is added like any other. A lane whose elements have ended is not touched again.
- The first block, and the first long block, are taken as they are and not added to 0. The bias is added to the sum of
  all blocks; without a bias nothing is added.
- Whether a result is NaN follows from the order, but not which of the NaNs it is.
"""

import math

import numpy as np

LANE_BYTES = 32  # forward: element k is added in lane k mod 8 (float64: 4)
K_BLOCK_BYTES = 4096  # forward: lanes are added up after so many bytes of k
LONG_BLOCKS = 32  # forward: the sums of so many blocks are added up before they meet the others
O_BLOCK = 256  # grad_input: a chain over out is at most so long

quiet = np.errstate(all="ignore")
"""Overflow, 0 · inf and the like give what IEEE 754 says, without a warning."""

# ---- exact multiply-adds


@quiet
def fused(a, b, c):
    """a * b + c, rounded once. Arrays of one dtype, float32 or float64, that broadcast."""
    return _fused_float32(a, b, c) if c.dtype == np.float32 else _fused_float64(a, b, c)


@quiet
def unfused(a, b, c):
    """a * b + c, the product rounded before the sum."""
    return a * b + c


def _two_sum(a, b):
    """a + b, rounded, and what is missing to the exact sum (Knuth). Exact unless the sum overflows."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _two_product(a, b):
    """a * b, rounded, and what is missing to the exact product (Dekker), by Veltkamp's halves of 26 bits.

    Exact if nothing overflows, and if the product's last bits, 2**-106 times it, are not below the smallest number.
    """

    def halves(v):
        high = v * 134217729.0  # 2**27 + 1
        high = high - (high - v)
        return high, v - high

    product = a * b
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _sum_to_odd(a, b):
    """a + b in float64, rounded to odd: a sum that is not exact becomes that neighbour whose last bit is 1.

    Rounded once more, to at least two bits less, it gives what the exact sum gives, where a sum that had been rounded
    to nearest could lie on a tie that the exact one does not (Boldo and Melquiond, "Emulation of FMA and Correctly
    Rounded Sums: Proved Algorithms Using Rounding to Odd", IEEE Transactions on Computers 57, 2008).
    """
    total, missing = _two_sum(a, b)
    bits = total.view(np.int64)
    even = np.isfinite(missing) & (missing != 0) & (bits & 1 == 0)
    return (bits + even * np.where((missing > 0) == (total > 0), 1, -1)).view(np.float64)


def _fused_float32(a, b, c):
    # The product of two float32 is exact in float64, which has more than twice the bits, and range to spare.
    return _sum_to_odd(a.astype(np.float64) * b, c.astype(np.float64)).astype(np.float32)


def _fused_float64(a, b, c):
    # Boldo and Melquiond's figure 5: all that is lost on the way to a b + c is gathered in one number, rounded to odd.
    product, product_low = _two_product(a, b)
    low, lowest = _two_sum(product_low, c)
    high, middle = _two_sum(product, low)
    result = high + _sum_to_odd(middle, lowest)
    # A 0 is exact here, and a plain sum gives it its sign.
    result = np.where(result == 0, product + c, result)
    # Too large or too small for the steps above (see _two_product), infinite, or NaN: one by one, in integers.
    sizes = np.abs(product)
    fits = ((sizes > 2.0**-900) & (sizes < 2.0**1000)) | (a == 0) | (b == 0)
    fits = fits & (np.abs(a) < 2.0**990) & (np.abs(b) < 2.0**990) & (np.abs(c) < 2.0**1000)
    if not fits.all():
        a, b, c, fits = np.broadcast_arrays(a, b, c, fits)
        odd = ~fits
        result[odd] = [*map(fused_exactly, a[odd].tolist(), b[odd].tolist(), c[odd].tolist())]
    return result


def fused_exactly(a, b, c):
    """The same for three Python floats, without any floating-point arithmetic on finite numbers."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c
    (a_over, a_under), (b_over, b_under), (c_over, c_under) = (v.as_integer_ratio() for v in (a, b, c))
    over, under = a_over * b_over * c_under + c_over * a_under * b_under, a_under * b_under * c_under
    if over == 0:
        return a * b + c
    try:
        return over / under  # Python divides integers with one rounding, subnormal numbers included
    except OverflowError:
        return math.inf if over > 0 else -math.inf


# ---- the operations


@quiet
def forward(x, weight, bias=None, multiply_add=fused):
    """out[b, o] = sum_i x[b, i] weight[o, i] + bias[o]."""
    dtype, terms = x.dtype, x.shape[1]
    lanes, block = LANE_BYTES // dtype.itemsize, K_BLOCK_BYTES // dtype.itemsize
    blocks = max(-(-terms // block), 1)

    def cut(rows):
        """(rows, terms) as (rows, blocks, steps, lanes), with zeros where there are no more terms."""
        padded = np.zeros((len(rows), blocks * block), rows.dtype)
        padded[:, :terms] = rows
        return padded.reshape(len(rows), blocks, block // lanes, lanes)

    x, weight, there = cut(x), cut(weight), cut(np.ones((1, terms), bool))[0]
    sums = np.zeros((len(x), len(weight), blocks, lanes), dtype)
    for step in range(min(-(-terms // lanes), block // lanes)):
        added = multiply_add(x[:, None, :, step], weight[:, :, step], sums)
        sums = np.where(there[:, step], added, sums)
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    of_blocks = [sums[:, :, n, 0] for n in range(blocks)]
    total = _in_turn([_in_turn(of_blocks[n : n + LONG_BLOCKS]) for n in range(0, blocks, LONG_BLOCKS)])
    return total if bias is None else total + bias


@quiet
def grad_input(grad_output, weight, multiply_add=fused, in_features=None):
    """out[b, i] = sum_o grad_output[b, o] weight[o, i]. Of in_features columns some may be given; one alone, of a layer
    with one input feature, is summed as forward sums a row."""
    if (in_features or weight.shape[1]) == 1:
        return forward(grad_output, np.ascontiguousarray(weight.T), multiply_add=multiply_add)
    (batch, terms), columns = grad_output.shape, weight.shape[1]
    blocks = max(-(-terms // O_BLOCK), 1)
    sums = np.zeros((batch, blocks, columns), grad_output.dtype)
    for step in range(min(terms, O_BLOCK)):
        g, w = grad_output[:, step::O_BLOCK], weight[step::O_BLOCK]  # a term of each block that has so many
        sums[:, : len(w)] = multiply_add(g[:, :, None], w, sums[:, : len(w)])
    return _in_turn([sums[:, n] for n in range(blocks)])


@quiet
def grad_weight(x, grad_output, scale, start, multiply_add=fused):
    """start[o, i] + sum_b scale grad_output[b, o] x[b, i]."""
    total = start
    for x_b, scaled_b in zip(x, grad_output.dtype.type(scale) * grad_output, strict=True):
        total = multiply_add(scaled_b[:, None], x_b, total)
    return total


@quiet
def grad_bias(grad_output, scale, start):
    """start[o] + sum_b scale grad_output[b, o]: here no multiply-add is fused."""
    return _in_turn([start, *(grad_output.dtype.type(scale) * grad_output)])


@quiet
def step(gradient, lr, parameter):
    """parameter[j] - lr gradient[j]: here no multiply-add is fused."""
    return parameter - parameter.dtype.type(lr) * gradient


def _in_turn(terms):
    """The sum of arrays, one after another: accumulate() is defined that way, where sum() is free to pair them."""
    return np.add.accumulate(terms)[-1]
