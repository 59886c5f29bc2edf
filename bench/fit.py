#!/usr/bin/env python3
"""Fits the rule by which forward picks its way (cheapest_way in fastlinear/_kernels.pyx) to this processor.

    python bench/fit.py                         a minute for each dtype, the best instruction set
    python bench/fit.py --seconds 600 --isa avx2

Times both ways at random points of both dtypes, one thread, and fits by least squares how much longer dots take than
packed, relative to the faster of the two. It prints the constants, and how much time the rule as it is compiled and the
rule as fitted lose against the faster way of each point. A rule that loses less by 1 % is worth taking.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from fastlinear import _dispatch

MOST_WORK = 2e8
"""Multiply-adds: larger points are like others, and take the time of a hundred."""
PANEL_BYTES = {"avx512": 128, "avx2": 96, "baseline": 32}
"""The width of a panel: PANEL_VECTORS in fastlinear/_tile.h."""


def timed(call: Any, seconds: float = 3e-4) -> float:
    """The processor time of a call."""
    begin = time.perf_counter()
    call()
    repeat = max(1, int(seconds / (time.perf_counter() - begin)))
    begin = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - begin) / repeat


def measure(kernels: Any, dtype: Any, rng: np.random.Generator) -> list[float] | None:
    """batch, in_features, outs, the time of dots, of packed, and of forward."""

    def size(least: int, most: int) -> int:
        return int(np.exp(rng.uniform(np.log(least), np.log(most))))

    batch, in_features, outs = size(4, 400), size(17, 4000), size(4, 4000)
    if batch * in_features * outs > MOST_WORK:
        return None
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((batch, in_features), (outs, in_features)))
    out = np.empty((batch, outs), dtype)
    calls = [lambda way=way: kernels.forward_by(way, x, weight, out) for way in ("dots", "packed")]
    calls.append(lambda: kernels.forward(x, weight, None, out))
    rounds = [[timed(call) for call in calls] for _ in range(7)]
    return [batch, in_features, outs, *np.min(rounds, axis=0)]


def terms(batch: Any, in_features: Any, outs: Any, dtype: Any, isa: str) -> Any:
    """What dots cost more and packed costs less than that, for each multiply-add: a row for each constant."""
    panel = PANEL_BYTES[isa] // dtype.itemsize
    empty = np.ceil(outs / panel) * panel - outs
    return np.array([np.ones_like(batch), 32 / dtype.itemsize / in_features, -1 / batch, -empty / outs])


def lost(times: Any, best: Any) -> str:
    ratio = times / best
    return f"{np.exp(np.log(ratio).mean()) - 1:.1%} on average, {np.quantile(ratio, 0.99) - 1:.0%} at one point of 100"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=_dispatch.available()[0], choices=_dispatch.available()[:-1])
    parser.add_argument("--seconds", type=float, default=60, help="for each dtype")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kernels = _dispatch.load(arguments.isa)
    fits = []
    for dtype in map(np.dtype, (np.float32, np.float64)):
        rng = np.random.default_rng(arguments.seed)
        end = time.perf_counter() + arguments.seconds
        points: list[Any] = []
        while time.perf_counter() < end or not points:
            if point := measure(kernels, dtype, rng):
                points.append(point)
        batch, in_features, outs, dots, packed, ours = np.transpose(points)
        best, work = np.minimum(dots, packed), batch * in_features * outs
        speed = work / best
        print(f"{dtype}, {arguments.isa}: {len(points)} points, at most {2e-9 * speed.max():.0f} GFLOP/s")
        print(f"  the rule as compiled loses {lost(np.maximum(ours, best), best)}")
        fits.append((terms(batch, in_features, outs, dtype, arguments.isa), speed / speed.max(), dots, packed, best))
    columns = np.concatenate([(features * share).T for features, share, *_ in fits])
    more = np.concatenate([(dots - packed) / best for *_, dots, packed, best in fits])
    constants = np.linalg.lstsq(columns, more, rcond=None)[0]
    one, lanes, _, empty = constants / constants[2]
    print(f"packed if {one:.3g} + {lanes:.3g} lanes / in_features > 1 / batch + {empty:.3g} empty columns / outs loses")
    for features, _, dots, packed, best in fits:
        print(f"  {lost(np.where(constants @ features > 0, packed, dots), best)}")


if __name__ == "__main__":
    main()
