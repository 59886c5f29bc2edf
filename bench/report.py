"""Compare fastlinear with NumPy, PyTorch and ONNX Runtime, and with the limits of this machine.

    python bench/report.py                   measure everything (15 minutes) on the instruction set in use
    python bench/report.py --isa avx2        the same on another one; avx2 holds the peers to it, too
    python bench/report.py --quick           the same with few rounds (about 4 minutes)
    python bench/report.py --parts calls     measure this part of the report again, and keep the others
    python bench/report.py --redraw          measure nothing

The figures go to docs/benchmarks/results-ISA.json. From all of these files that are there, and those of
bench/hunt.py, come the page, its pictures, and the README's claim and table.

For tuning, a plain table of some points, at once:

    python bench/report.py --only forward --shapes 256x256 --batches vector 256 --dtypes float32
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import bars
import hold
import machine
import measure
import peers
from peers import OURS, PEERS, Case
from timing import interleave

import fastlinear

FOLDER = hold.ROOT / "docs" / "benchmarks"


def shape(text: str) -> tuple[int, int]:
    inputs, outputs = text.split("x")
    return int(inputs), int(outputs)


def batch(text: str) -> int:
    return 0 if text in ("vector", "v") else int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--isa", help="an instruction set of ours; avx2 holds the peers to it, too")
    parser.add_argument(
        "--parts", nargs="*", choices=measure.PARTS, default=measure.PARTS, help="measure these alone; the rest stays"
    )
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (docs/benchmarks)")
    points = parser.add_argument_group("a plain table on the terminal")
    points.add_argument(
        "--only", nargs="+", choices=peers.OPERATIONS, help="these operations; the default is the report"
    )
    points.add_argument("--shapes", nargs="+", type=shape, default=peers.GRID_SHAPES, metavar="INxOUT")
    points.add_argument("--batches", nargs="+", type=batch, default=peers.GRID_BATCHES, metavar="ROWS|vector")
    points.add_argument("--dtypes", nargs="+", choices=peers.DTYPES, default=peers.DTYPES)
    points.add_argument("--libraries", nargs="+", choices=peers.LIBRARIES, default=PEERS)
    points.add_argument("--seconds", type=float, default=0.25, help="how long to time each point")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    isa = hold.hold(options.isa)
    peers.set_threads(1)
    if options.only:
        cases = [Case(*layer, rows, dtype)
                 for dtype, layer, rows in product(options.dtypes, options.shapes, options.batches)]  # fmt: skip
        print_table(options.only, cases, measure.installed(options.libraries), options.seconds)
        return
    if not options.redraw:
        options.folder.mkdir(parents=True, exist_ok=True)
        measure_parts(options.parts, options.quick, options.folder / f"results-{isa}.json")
    import page
    import pictures

    runs, hunts = page.load(options.folder)
    pictures.draw(runs, options.folder)
    for name, there in hunts.items():
        pictures.hunt(there, name, options.folder)
    (options.folder / "README.md").write_text(page.write(runs, hunts))
    if options.folder.resolve() == FOLDER:
        front = hold.ROOT / "README.md"
        front.write_text(page.readme(runs, hunts, front.read_text()))
    for name, results in runs.items():
        for bar in bars.bars(results, hunts.get(name, []), name):
            print(f"{'ok  ' if bar.met else 'MISS'} {name:7} {bar.what}: {bar.bar}, measured {bar.measured}")


def measure_parts(names: list[str], quick: bool, file: Path) -> None:
    """Measure these parts of the report; each goes to the file as soon as it is there."""
    results = json.loads(file.read_text()) if file.exists() else {"about": {"runs": {}, "notes": []}}
    run = {
        "command": "python bench/report.py" + (" --quick" if quick else ""),
        "date": dt.date.today().isoformat(),
        "kernels": hold.kernels(),
    }
    for name, part in parts(quick).items():
        if name in names:
            results |= {name: part()}
            results["about"]["runs"][name] = run
            results["about"]["machine"] = about()
            measure.save(results, file)


def print_table(operations: list[str], cases: list[Case], libraries: list[str], seconds: float) -> None:
    """Time, rate and the ratio of each library's time to ours, point by point."""
    heads = "".join(f"{name.removeprefix(OURS):>12}" for name in libraries)
    print(f"{'':40}{'µs':>10}{'GFLOP/s':>9}{heads}{'best/ours':>11}")
    for operation in operations:
        ratios = []
        for case in cases:
            times = interleave(peers.works(operation, case, [OURS, *libraries]), seconds)
            ours, ratio = times[OURS], measure.ratio(times)
            ratios.append(ratio)
            cells = "".join(f"{times[name] / ours:12.2f}" if name in times else f"{'–':>12}" for name in libraries)
            rate = peers.flops(operation, case) / ours / 1e9
            flag = " <" if ratio < 1 else ""
            print(f"{operation:16}{case!s:24}{ours * 1e6:10.2f}{rate:9.1f}{cells}{ratio:11.2f}{flag}", flush=True)
        lost, mean = sum(ratio < 1 for ratio in ratios), bars.geometric_mean(ratios)
        print(f"{operation}: geometric mean {mean:.2f}, worst {min(ratios):.2f}, below 1: {lost} of {len(ratios)}\n")


def about() -> dict[str, str]:
    """The machine and the versions."""
    versions = {}
    for name in ("numpy", *PEERS[1:]):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in machine.caches().items())
    return {
        "processor": f"{machine.processor()}, {len(peers.cores())} cores",
        "caches": caches,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {compiler}",
        "fastlinear": f"{fastlinear.__version__}, instruction set {fastlinear.isa}",
        **{measure.LABELS[name]: found for name, found in versions.items()},
    }


def parts(quick: bool) -> dict[str, Callable[[], Any]]:
    """What measures each part of the report."""
    seconds = 0.03 if quick else 0.3
    huge = measure.LARGE[-1:]  # its products take seconds each
    most = 1 << 28 if quick else math.inf
    shapes = [shape for shape in measure.COMPUTE_SHAPES if not quick or shape not in huge]
    cases = [
        Case(*layer, rows, dtype)
        for dtype, layer, rows in product(peers.DTYPES, peers.GRID_SHAPES, peers.GRID_BATCHES)
        if rows * math.prod(layer) <= most
    ]
    everyone = measure.installed([OURS, *PEERS])
    return {
        "limits": lambda: measure.limits(seconds / 2),
        "calls": lambda: measure.calls(40 * seconds),
        "steps": lambda: measure.steps(3 * seconds),
        "grid": lambda: {
            operation: measure.compare(operation, cases, everyone, seconds) for operation in ("forward", "backward")
        },
        "compute": lambda: measure.compute(shapes, 3 * seconds),
        "memory": lambda: measure.memory(measure.MEMORY_SHAPES, 3 * seconds),
        "roofline": lambda: measure.roofline([s for s in measure.LARGE if s in shapes], seconds / 3),
        "sizes": lambda: measure.sizes(2e-3, 10 if quick else 1),
        "subnormals": lambda: measure.subnormals(seconds),
        "threads": lambda: measure.threads(cases[::5] if quick else cases, seconds) if len(peers.cores()) > 1 else {},
        "rest": lambda: {
            "import": measure.importing(),
            "wheel": None if quick else measure.wheel(),
            "allocations": measure.allocations(),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
