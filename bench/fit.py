#!/usr/bin/env python3
"""Fits the costs by which forward picks its way (cheapest_way in fastlinear/_kernels.pyx) to this processor.

    python bench/fit.py                         a minute for each dtype, the best instruction set
    python bench/fit.py --seconds 600 --isa avx2

Times every way at random points, one thread, and fits the costs by least squares of the relative error: how much longer
a way takes than its multiply-adds alone at the peak. It prints the constants, and how much time the rule as it is
compiled and the rule as fitted lose against the best way of each point. A rule that loses less by 1 % is worth taking.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from fastlinear import _dispatch

WAYS = ("dots", "packed", "turned")
MOST_WORK = 6e7
"""Multiply-adds: larger points are like others, and take the time of a hundred."""
PAST_L2 = 1 << 19


def timed(call: Any, seconds: float = 3e-4) -> float:
    """The least processor time of a call."""
    begin = time.perf_counter()
    call()
    repeat = max(1, int(seconds / (time.perf_counter() - begin)))
    begin = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - begin) / repeat


def measure(kernels: Any, dtype: Any, rng: np.random.Generator) -> list[float] | None:
    """batch, in_features, outs, the time of each way, that of forward."""

    def size(least: int, most: int) -> int:
        return int(np.exp(rng.uniform(np.log(least), np.log(most))))

    batch, in_features, outs = size(4, 400), size(17, 4000), size(4, 4000)
    if batch * in_features * outs > MOST_WORK:
        return None
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((batch, in_features), (outs, in_features)))
    out = np.empty((batch, outs), dtype)
    calls = [lambda way=way: kernels.forward_by(way, x, weight, out) for way in WAYS]
    calls.append(lambda: kernels.forward(x, weight, None, out))
    rounds = [[timed(call) for call in calls] for _ in range(7)]
    return [batch, in_features, outs, *np.min(rounds, axis=0)]


def terms(batch: Any, in_features: Any, outs: Any, dtype: Any) -> list[tuple[list[str], list[Any]]]:
    """What the cost of each way is a sum of, by name."""
    lanes = 32 // dtype.itemsize

    def waste(n: Any) -> Any:
        return np.ceil(n / lanes) * lanes / n - 1

    one = np.ones_like(batch)
    far = (in_features * outs * dtype.itemsize > PAST_L2).astype(float)
    return [
        (
            ["1", "lanes / in_features", "min(batch, 64)", "1 / outs", "W past L2"],
            [one, lanes / in_features, np.minimum(batch, 64), 1 / outs, far],
        ),
        (
            ["1", "lanes / in_features", "1 / batch", "1 / outs", "waste(outs)"],
            [one, lanes / in_features, 1 / batch, 1 / outs, waste(outs)],
        ),
        (
            ["1", "lanes / in_features", "1 / outs", "1 / batch", "waste(batch)"],
            [one, lanes / in_features, 1 / outs, 1 / batch, waste(batch)],
        ),
    ]


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
    for dtype in map(np.dtype, (np.float32, np.float64)):
        rng = np.random.default_rng(arguments.seed)
        end = time.perf_counter() + arguments.seconds
        points = []
        while time.perf_counter() < end:
            if point := measure(kernels, dtype, rng):
                points.append(point)
        batch, in_features, outs, *rest = np.transpose(points)
        times, ours = np.array(rest[:-1]), rest[-1]
        best = times.min(axis=0)
        work = batch * in_features * outs
        peak = (work / best).max()
        print(f"{dtype}, {arguments.isa}: {len(points)} points, at most {2e-9 * peak:.0f} GFLOP/s")
        fitted = []
        for way, took, (names, columns) in zip(WAYS, times, terms(batch, in_features, outs, dtype), strict=True):
            relative = took * peak / work
            constants, *_ = np.linalg.lstsq(np.transpose(columns) / relative[:, None], np.ones(len(points)), rcond=None)
            fitted.append(constants @ np.array(columns))
            print(f"  {way:7}", "  ".join(f"{c:.4g} * {name}" for c, name in zip(constants, names, strict=True)))
        chosen = np.argmin(fitted, axis=0)
        print(f"  the rule as compiled loses {lost(np.maximum(ours, best), best)}")
        print(f"  the rule as fitted loses   {lost(times[chosen, np.arange(len(points))], best)}")


if __name__ == "__main__":
    main()
