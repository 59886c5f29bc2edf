"""Compare fastlinear with NumPy, PyTorch and ONNX Runtime on this machine.

    python bench/report.py --only forward --shapes 256x256 --batches 256 --dtypes float32

prints a plain table of a few points, for tuning.
"""

from __future__ import annotations

import argparse
import math
from itertools import product

import peers
from peers import OURS, PEERS, Case


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def shape(text: str) -> tuple[int, int]:
    inputs, outputs = text.split("x")
    return int(inputs), int(outputs)


def batch(text: str) -> int:
    return 0 if text in ("vector", "v") else int(text)


def table(operations: list[str], cases: list[Case], libraries: list[str], seconds: float) -> None:
    """Print time, rate and the ratio of each library's time to ours, point by point."""
    print(f"{'':36}{'µs':>10}{'GFLOP/s':>9}" + "".join(f"{name.removeprefix(OURS):>12}" for name in libraries)
          + f"{'best/ours':>11}")  # fmt: skip
    for operation in operations:
        ratios = []
        for case in cases:
            times = peers.compare(operation, case, [OURS, *libraries], seconds)
            ours = times.pop(OURS)
            against = [times[name] for name in times if name in PEERS]
            ratio = min(against, default=math.nan) / ours
            ratios.append(ratio)
            products = {"backward": 2, "backward_update": 2, "training_step": 3}.get(operation, 1)
            rate = 2 * products * max(case.batch, 1) * case.in_features * case.out_features / ours / 1e9
            cells = "".join(f"{times[name] / ours:12.2f}" if name in times else f"{'–':>12}" for name in libraries)
            print(f"{operation:16}{case!s:20}{ours * 1e6:10.2f}{rate:9.1f}{cells}{ratio:11.2f}"
                  + (" <" if ratio < 1 else ""), flush=True)  # fmt: skip
        print(f"{operation:16}geometric mean {geometric_mean(ratios):.2f}, "
              f"worst {min(ratios):.2f}, below 1: {sum(r < 1 for r in ratios)} of {len(ratios)}\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=peers.OPERATIONS, default=["forward", "backward"])
    parser.add_argument("--shapes", nargs="+", type=shape, default=peers.GRID_SHAPES, metavar="INxOUT")
    parser.add_argument("--batches", nargs="+", type=batch, default=peers.GRID_BATCHES, metavar="ROWS|vector")
    parser.add_argument("--dtypes", nargs="+", choices=peers.DTYPES, default=peers.DTYPES)
    parser.add_argument("--libraries", nargs="+", choices=peers.LIBRARIES, default=PEERS)
    parser.add_argument("--seconds", type=float, default=0.25, help="how long to time each point")
    options = parser.parse_args()
    peers.set_threads(1)
    cases = [
        Case(*shape, batch, dtype) for dtype, shape, batch in product(options.dtypes, options.shapes, options.batches)
    ]
    table(
        options.only,
        cases,
        [name for name in options.libraries if not peers.LIBRARIES[name].missing()],
        options.seconds,
    )


if __name__ == "__main__":
    main()
