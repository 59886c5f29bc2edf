"""``python -m fastlinear``: what was built, whether it is right on this machine, and how fast it is beside NumPy."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlinear import Linear, show_config, verify
from fastlinear._config import config
from fastlinear._verify import LIMIT

Array = NDArray[Any]

# (batch, in_features, out_features)
VERIFIED = [(0, 3, 2), (1, 1, 1), (1, 5, 4), (7, 13, 17), (33, 64, 10), (65, 300, 129), (3, 1100, 530)]
TIMED = [(1, 5, 4), (1, 64, 64), (1, 1024, 1024), (8, 1024, 1024), (32, 64, 10), (64, 13, 512), (256, 256, 256)]

ROUNDS = 15
SECONDS = 0.004  # of one contestant's turn in a round, about

ONE_THREAD = dict.fromkeys(
    ("FASTLINEAR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    "1",
)


def example(
    shape: tuple[int, int, int], dtype: type[np.floating[Any]], bias: bool = True
) -> tuple[Linear, Array, Array]:
    """A layer, x and grad_output of that shape."""
    batch, in_features, out_features = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, in_features)).astype(dtype)
    grad_output = rng.standard_normal((batch, out_features)).astype(dtype)
    return Linear(in_features, out_features, bias, dtype=dtype, rng=rng), x, grad_output


def check() -> tuple[dict[str, dict[str, float]], list[str]]:
    """Hold every operation against the reference: the largest error of each by dtype, and what failed."""
    errors: dict[str, dict[str, float]] = {}
    failures = []
    dtypes: tuple[type[np.floating[Any]], ...] = np.float32, np.float64
    for dtype, shape, bias in itertools.product(dtypes, VERIFIED, (True, False)):
        try:
            found = verify(*example(shape, dtype, bias))
        except ArithmeticError as error:
            failures.append(f"{shape}, {dtype.__name__}: {error}")
            continue
        for name, value in found.items():
            row = errors.setdefault(name, {})
            row[dtype.__name__] = max(value, row.get(dtype.__name__, 0.0))
    return errors, failures


def print_check(errors: dict[str, dict[str, float]], failures: list[str]) -> None:
    print(f"\nLargest error in units of eps · Σ|a||b|, over {len(VERIFIED)} shapes (at most {LIMIT:g} is right)")
    print(f"{'':17}{'float32':>9}{'float64':>9}")
    for name, row in errors.items():
        print(f"{name:17}" + "".join(f"{row.get(dtype, np.nan):9.2f}" for dtype in ("float32", "float64")))
    for failure in failures:
        print(f"WRONG {failure}")


def contestants(shape: tuple[int, int, int]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By operation: what fastlinear does, and the same in NumPy, into memory that is there already."""
    layer, x, grad_output = example(shape, np.float32)
    y, grad_input = np.empty_like(grad_output), np.empty_like(x)
    weight, bias = layer.weight.copy(), np.zeros(layer.out_features, np.float32)
    grad_weight, grad_bias, scratch = np.zeros_like(weight), np.zeros_like(bias), np.empty_like(weight)

    product = np.multiply if len(x) == 1 else np.matmul  # for one row, broadcasting is the faster outer product

    def forward() -> None:
        np.matmul(x, weight.T, out=y)
        np.add(y, bias, out=y)

    def backward() -> None:
        np.matmul(grad_output, weight, out=grad_input)
        product(grad_output.T, x, out=scratch)
        np.add(grad_weight, scratch, out=grad_weight)
        np.add(grad_bias, grad_output.sum(axis=0), out=grad_bias)

    return {
        "forward": (lambda: layer.forward(x, out=y), forward),
        "backward": (lambda: layer.backward(x, grad_output, out=grad_input), backward),
    }


def seconds(call: Callable[[], Any], repeat: int) -> float:
    """The time of one call, over `repeat` of them."""
    begin = perf_counter()
    for _ in range(repeat):
        call()
    return (perf_counter() - begin) / repeat


def duel(calls: tuple[Callable[[], Any], ...]) -> list[float]:
    """The median time of each call in seconds. They take turns, so that a change of the clock meets all alike."""
    repeats = [max(1, int(SECONDS / max(seconds(call, 3), seconds(call, 3)))) for call in calls]
    rounds = [[seconds(call, repeat) for call, repeat in zip(calls, repeats, strict=True)] for _ in range(ROUNDS)]
    return [median(times) for times in zip(*rounds, strict=True)]


def speed() -> Iterator[dict[str, Any]]:
    """How long forward and backward take at each shape, beside NumPy, in µs."""
    for shape in TIMED:
        row: dict[str, Any] = dict(zip(("batch", "in_features", "out_features"), shape, strict=True))
        for operation, calls in contestants(shape).items():
            ours, numpys = duel(calls)
            row[operation] = {"fastlinear": ours * 1e6, "numpy": numpys * 1e6}
        yield row


def print_speed() -> None:
    any_terminal()
    print(f"\nTime of a call in µs, float32, one thread each, medians of {ROUNDS} turns; NumPy {np.__version__}")
    print(f"{'':19}{'forward':^27}  {'backward':^27}")
    print(f"{'batch':>5} {'in':>6} {'out':>6}" + f"{'fastlinear':>11}{'NumPy':>10}{'ratio':>6}  " * 2)
    for row in speed():
        pairs = [(row[name]["fastlinear"], row[name]["numpy"]) for name in ("forward", "backward")]
        cells = [f"{ours:11.2f}{numpys:10.2f}{numpys / ours:6.1f}" for ours, numpys in pairs]
        print("{batch:5} {in_features:6} {out_features:6}".format(**row) + "  ".join(cells), flush=True)


def any_terminal() -> None:
    """Print something also where the encoding has no Σ or µ, as on a pipe in Windows."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def json_speed() -> None:
    print(json.dumps(list(speed())))


def on_one_thread(function: Callable[[], None], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a function of this module in a process of its own: the thread pools of two libraries disturb each other, and
    NumPy reads their number once."""
    command = [sys.executable, "-c", f"from fastlinear import __main__ as main; main.{function.__name__}()"]
    return subprocess.run(command, env=os.environ | ONE_THREAD, check=True, text=True, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastlinear",
        description="What was built, whether it is right on this machine, and how fast it is beside NumPy. The exit "
        "status is 0 only if every operation is right.",
    )
    parser.add_argument("--json", action="store_true", help="all of it as JSON, for a bug report")
    options = parser.parse_args(arguments)
    any_terminal()
    if options.json:
        errors, failures = check()
        table = json.loads(on_one_thread(json_speed, stdout=subprocess.PIPE).stdout)
        report = {"config": config(), "errors": errors, "failures": failures, "right": not failures, "speed": table}
        print(json.dumps(report, indent=2))
    else:
        show_config()
        errors, failures = check()
        print_check(errors, failures)
        print(end="", flush=True)
        on_one_thread(print_speed)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
