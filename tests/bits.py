"""Digests of what the kernels compute: ``python -m tests.bits | diff tests/bits.txt - | grep '>'`` compares machines.

With ``FASTLINEAR_ISA`` for another instruction set than the best. tests/bits.txt has two recordings: of the instruction
sets with a fused multiply-add (AVX2, AVX-512 and NEON) and of those without (SSE2, plain arrays); ``python -m
tests.bits --record`` writes its own anew, which is right only after a deliberate change of the order of additions.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

import fastlinear
from fastlinear import _dispatch

from .helpers import COMPILED, DTYPES, Problem, run

RECORD = Path(__file__).with_name("bits.txt")

# batch, in, out: tails, every way of forward, several blocks, long blocks.
SHAPES = [
    (1, 1, 1),
    (3, 5, 4),
    (7, 33, 17),
    (6, 64, 64),
    (13, 100, 1),
    (9, 1, 40),
    (1, 1100, 270),
    (2, 2060, 9),
    (8, 2060, 270),
    (17, 70, 515),
    (33, 13, 70),
    (35, 34000, 9),
    (64, 1030, 70),
    (130, 129, 21),
    (257, 513, 66),
    (260, 40, 10),
    (300, 20, 400),
]
LEVELS = {"usual": {np.float32: 0, np.float64: 0}, "tiny": {np.float32: -66, np.float64: -525}}
"""The power of two that scales the data; of tiny data products are subnormal, or underflow."""


def problem(batch, in_features, out_features, dtype, power):
    """Data over five decades that is the same to the bit everywhere.

    NumPy promises the raw output of PCG64 for all versions, a 53-bit integer times a power of two is exact in float64,
    and IEEE 754 says how it is rounded to float32 or to a subnormal number: no C library has a choice.
    """
    source = np.random.PCG64(0)

    def draw(*shape):
        raw = source.random_raw(int(np.prod(shape))).reshape(shape)
        integers = (raw >> np.uint64(11)).astype(np.int64) - 2**52
        powers = (raw & np.uint64(15)).astype(np.int64) + (power - 52 - 8)
        return np.ldexp(integers.astype(np.float64), powers).astype(dtype)

    return Problem(
        draw(batch, in_features), draw(batch, out_features), draw(out_features, in_features), draw(out_features)
    )


def is_fused(kernels):
    """Whether a * b + c is rounded once: (1 + e)² - (1 + 2e) is e² then, and else 0."""
    e = 2.0**-20
    a, c = np.array([[1 + e]], np.float32), np.array([[-1 - 2 * e]], np.float32)
    kernels.grad_weight(a, a, 1.0, c)
    return c.item() != 0


FUSED = [name for name in COMPILED if is_fused(_dispatch.load(name))]
"""The instruction sets of this machine that give the same bits as each other."""


def digests(kernels):
    """One line for each dtype, level, shape and operation, the digest last."""
    rounding = "fused" if is_fused(kernels) else "unfused"
    for dtype in DTYPES:
        for level, powers in LEVELS.items():
            for shape in SHAPES:
                results = run(kernels, problem(*shape, dtype, powers[dtype]), scale=0.3, lr=0.7)
                for name, value in results.items():
                    digest = hashlib.sha256(value.tobytes()).hexdigest()[:16]
                    yield f"{rounding} {dtype.__name__} {level} {'x'.join(map(str, shape))} {name} {digest}"


def recorded(rounding):
    """The lines of one of the two recordings."""
    return [line for line in RECORD.read_text(encoding="utf-8").splitlines() if line.startswith(f"{rounding} ")]


if __name__ == "__main__":
    lines = sorted(digests(_dispatch.load(fastlinear.isa)))
    if "--record" in sys.argv:
        old = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []
        rounding = lines[0].split()[0]
        others = [line for line in old if not line.startswith(f"{rounding} ")]
        RECORD.write_text("\n".join(sorted([*others, *lines])) + "\n")
    else:
        print(*lines, sep="\n")
