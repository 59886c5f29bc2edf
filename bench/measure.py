"""The measurements of the report. Each function returns plain lists and dictionaries of seconds, ready for JSON."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peers
from peers import OURS, PEERS, Case
from timing import Work, interleave
from tqdm import tqdm

import fastlinear

Figures = dict[str, Any]
LABELS = {OURS: "fastlinear", "numpy": "NumPy", "torch": "PyTorch", "onnxruntime": "ONNX Runtime",
          "autograd": "PyTorch autograd + SGD", "floor": "floor"}  # fmt: skip
ISA_LABELS = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline", "neon": "NEON", "reference": "reference"}
LARGE = [(1024, 1024), (4096, 4096)]
PARTS = ("limits", "calls", "steps", "grid", "compute", "memory", "roofline", "sizes", "subnormals", "threads", "rest")
COMPUTE_SHAPES = [(256, 256), (784, 256), (931, 458), *LARGE]
COMPUTE_BATCH = 256
COMPUTE_OPERATIONS = ["forward", "grad_input", "grad_weight"]
MEMORY_SHAPES = [(256, 256), *LARGE]
MEMORY_OPERATIONS = ["forward", "grad_input", "grad_weight", "backward_update"]
SIZE_OPERATIONS = ["forward", "grad_input", "grad_weight", "backward", "backward_update"]
SIZE_BATCHES = [0, 32]
SIZE_PEERS = [OURS, "numpy", "torch"]
SMALLEST_CALL = (5, 4)


def installed(names: Iterable[str]) -> list[str]:
    """Those of the libraries that are here."""
    return [name for name in names if name in peers.LIBRARIES and not peers.LIBRARIES[name].missing()]


def figure(operation: str, case: Case, seconds: dict[str, float]) -> Figures:
    return {"operation": operation, **case._asdict(), "seconds": seconds}


# ---- against the machine


def limits(seconds: float) -> Figures:
    """FMA peak in flop/s by dtype and width; bandwidths in bytes/s by size and number of streams."""
    flops, smallest = 1e7, 1 << 20
    result: Figures = {"fma": {}, "read": {}, "rewrite": {}, "caches": machine.caches()}
    for dtype in peers.DTYPES:
        works = {str(bits): machine.fma(dtype, bits, flops) for bits in machine.widths()}
        result["fma"][dtype] = {bits: flops / time for bits, time in interleave(works, seconds).items()}
    for size in tqdm([1 << power for power in range(13, 29)], "bandwidth"):
        array, passes = peers.aligned((size // 4,), "float32"), max(1, smallest // size)
        for name, work, moved in (("read", machine.read, 1), ("rewrite", machine.rewrite, 2)):
            times = interleave({str(n): work(array, n, passes) for n in machine.STREAMS}, seconds)
            result[name][str(size)] = {n: moved * passes * size / time for n, time in times.items()}
    return result


def compute(shapes: list[tuple[int, int]], seconds: float) -> list[Figures]:
    """Large products, taking turns with NumPy's and with as many operations on registers alone (named by their width
    in bits)."""
    points = []
    for dtype, shape, operation in tqdm(list(product(peers.DTYPES, shapes, COMPUTE_OPERATIONS)), "compute limit"):
        case = Case(*shape, COMPUTE_BATCH, dtype)
        works = peers.works(operation, case, [OURS, "numpy"])
        works |= {str(bits): machine.fma(dtype, bits, peers.flops(operation, case)) for bits in machine.widths()[-2:]}
        points.append(figure(operation, case, interleave(works, seconds)))
    return points


def memory(shapes: list[tuple[int, int]], seconds: float) -> list[Figures]:
    """Vectors, taking turns with the peers and with a pass over the same W (read or rewritten, in 1, 2 and 4
    streams)."""
    points = []
    for dtype, shape, operation in tqdm(list(product(peers.DTYPES, shapes, MEMORY_OPERATIONS)), "memory limit"):
        case = Case(*shape, 0, dtype)
        works = peers.works(operation, case, installed([OURS, *PEERS]))
        limit = machine.rewrite if operation in ("grad_weight", "backward_update") else machine.read
        weight = works[OURS].names["W"]
        works |= {f"{limit.__name__} {n}": limit(weight, n) for n in machine.STREAMS}
        points.append(figure(operation, case, interleave(works, seconds)))
    return points


def roofline(shapes: list[tuple[int, int]], seconds: float) -> list[Figures]:
    """Every operation alone, from one vector to a large batch."""
    grid = list(product(peers.DTYPES, [(256, 256), *shapes], [0, 8, 32, 256], SIZE_OPERATIONS))
    return [
        figure(operation, case, interleave(peers.works(operation, case, [OURS]), seconds))
        for dtype, shape, batch, operation in tqdm(grid, "roofline")
        for case in [Case(*shape, batch, dtype)]
    ]


# ---- against the peers


def compare(
    operation: str, cases: list[Case], libraries: list[str], seconds: float, doubtful: float = 1.05
) -> list[Figures]:
    """Time the libraries at each case. Where ours is not faster than the best peer by some margin, the case is timed
    once more at the end, at another moment of the machine, and all rounds count."""
    rounds: dict[Case, dict[str, Work]] = {}

    def add(cases: Iterable[Case], what: str) -> None:
        for case in tqdm(cases, f"{operation}, {what}"):
            works = peers.works(operation, case, libraries)
            interleave(works, seconds)
            for name, work in works.items():
                earlier = rounds.get(case, {}).get(name)
                work.times += earlier.times if earlier else []
                work.forget()
            rounds[case] = works

    add(cases, "all")
    add([case for case in cases if ratio(medians(rounds[case])) < doubtful], "again")
    return [figure(operation, case, medians(rounds[case])) for case in cases]


def medians(works: dict[str, Work]) -> dict[str, float]:
    return {name: work.median for name, work in works.items()}


def best_peer(seconds: dict[str, float]) -> str | None:
    return min((name for name in PEERS if name in seconds), key=seconds.__getitem__, default=None)


def ratio(seconds: dict[str, float], ours: str = OURS) -> float:
    """The best peer's time over ours."""
    best = best_peer(seconds)
    return seconds[best] / seconds[ours] if best else math.nan


def calls(seconds: float) -> dict[str, dict[str, float]]:
    """What a call costs where there is next to nothing to compute: seconds, by group and statement."""
    case = Case(*SMALLEST_CALL, 0, "float32")
    names = peers.LIBRARIES[OURS].names(case)
    names["strided"] = np.repeat(names["x"], 2)[::2]
    names["weight"], names["change"] = names["W"].copy(), np.zeros_like(names["W"])
    names["wide"], names["y64"] = names["layer"].astype(np.float64), names["y"].astype(np.float64)
    groups: dict[str, dict[str, Work]] = {
        "floor": {
            "[].clear()": Work("empty.clear()", {"empty": []}),
            "y.copy()": Work("y.copy()", names),
        },
        "fastlinear": {
            statement: Work(statement, names)
            for statement in [
                "layer(x)",
                "layer.forward(x, out=y)",
                "layer.backward_input(g, out=gx)",
                "layer.backward_params(x, g)",
                "layer.backward(x, g, out=gx)",
                "layer.backward_update(x, g, lr, out=gx)",
                "layer.step(lr)",
                "layer.zero_grad()",
                "layer.weight",
                "layer.weight = weight",
                "layer.weight -= change",
                "layer.forward(strided, out=y)",
                "wide.forward(x, out=y64)",
            ]
        },
        "numpy": {"W @ x + b": Work("W @ x + b", names)},
    }
    for name in installed(PEERS):
        how = peers.LIBRARIES[name]
        theirs = how.names(case)
        groups.setdefault(name, {}).update(
            {form: Work(form, theirs, how.context) for form in how.forms("forward", case)}
        )
    interleave({f"{group} {s}": work for group, works in groups.items() for s, work in works.items()}, seconds)
    return {group: {statement: work.median for statement, work in works.items()} for group, works in groups.items()}


def steps(seconds: float) -> list[Figures]:
    """One step of training: hand-written in each library, and PyTorch's autograd with its SGD."""
    online = [Case(*shape, batch, "float32") for shape in (SMALLEST_CALL, *LARGE) for batch in (0, 1)]
    libraries = installed([OURS, "numpy", "torch", "autograd"])
    return [
        figure("training_step", case, interleave(peers.works("training_step", case, libraries), seconds))
        for case in tqdm([*online, Case(784, 256, 32, "float32")], "training step")
    ]


# ---- over all sizes


def sizes(seconds: float, every: int = 1) -> list[Figures]:
    """in = out = 1..300: a curve of seconds for each operation and library, of fewer points for the peers.

    At each size all operations and libraries take turns, on the same arrays: curves that were measured one after
    another show the moments of the machine, so that a part of an operation can seem slower than the whole.
    """
    curves = []
    for batch, dtype in tqdm(list(product(SIZE_BATCHES, peers.DTYPES)), "sizes"):
        keys = [(operation, library) for operation in SIZE_OPERATIONS for library in installed(SIZE_PEERS)
                if library == OURS or operation in ("forward", "backward")]  # fmt: skip
        works: dict[tuple[str, str], dict[int, Work]] = {key: {} for key in keys}
        for size, (operation, library) in product(range(1, 301), keys):
            if (size - 1) % (every if library == OURS else max(every, 5)) == 0:
                case = Case(size, size, batch, dtype)
                works[operation, library][size] = peers.works(operation, case, [library])[library]
        sweep([work for size in range(1, 301) for at in works.values() if (work := at.get(size))], seconds)
        for _ in range(3):  # a size that looks slow, and the larger one that shows it, are timed once more
            sweep([at[size] for (_, name), at in works.items() if name == OURS for pair in cliffs(at) for size in pair],
                  seconds)  # fmt: skip
        curves += [
            {"operation": operation, "batch": batch, "dtype": dtype, "library": library, "sizes": list(at),
             "seconds": [work.median for work in at.values()]}
            for (operation, library), at in works.items()
        ]  # fmt: skip
    return curves


def sweep(works: list[Work], seconds: float) -> None:
    """Time all the works in short rounds, again and again from the first to the last; together they outgrow the
    caches, so each round begins with a run that is not timed."""
    for work in works:
        if not work.number:
            work.calibrate(seconds / 20)
    for _ in range(15):
        for work in works:
            work.round(warm=True)


def cliffs(works: dict[int, Work], limit: float = 1.2) -> list[tuple[int, int]]:
    """The sizes that take over `limit` times as long as some larger size, with that size."""
    found, fastest = [], max(works)
    for size in sorted(works, reverse=True):
        if works[size].median > limit * works[fastest].median:
            found.append((size, fastest))
        if works[size].median < works[fastest].median:
            fastest = size
    return found


# ---- subnormal numbers

SUBNORMAL_CASES = [Case(256, 256, rows, dtype) for dtype in peers.DTYPES for rows in (0, 32)]
SUBNORMAL_DATA = {
    "normal": (0, 0),
    "x and grad_output subnormal": (1, 0),
    "W subnormal": (0, 1),
    "products subnormal": (0.5, 0.5),
}
"""x and grad_output, and W, are in ±1 times this power of the smallest normal number."""


def subnormals(seconds: float) -> list[Figures]:
    """Each operation on normal numbers and on subnormal ones."""
    points = []
    for case, operation in tqdm(list(product(SUBNORMAL_CASES, SIZE_OPERATIONS[:3])), "subnormals"):
        works = {}
        for what, (data, weights) in SUBNORMAL_DATA.items():
            peers.forget()
            works[what] = peers.works(operation, case, [OURS])[OURS]
            for name, power in (("x", data), ("g", data), ("W", weights)):
                works[what].names[name] *= np.finfo(case.dtype).tiny ** power
        points.append(figure(operation, case, interleave(works, seconds)))
    peers.forget()
    return points


# ---- two threads


@contextmanager
def limited(number: int) -> Iterator[None]:
    """Let fastlinear use so many threads."""
    fastlinear.set_num_threads(number)
    try:
        yield
    finally:
        fastlinear.set_num_threads(1)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


THREADS_CASES = [
    *[(operation, Case(1024, 1024, 256, dtype)) for operation in SIZE_OPERATIONS for dtype in peers.DTYPES],
    *[("forward", Case(2048, 2048, 0, dtype)) for dtype in peers.DTYPES],
    *[("training_step", Case(784, 256, 256, dtype)) for dtype in peers.DTYPES],
]


def threads(grid: list[Case], seconds: float) -> dict[str, list[Figures]]:
    """Two threads: ours also on the grid, the peers at the large cases."""
    everywhere = [(operation, case) for operation in ("forward", "backward") for case in grid]
    found = {OURS: alone(speed_up, list(dict.fromkeys([*THREADS_CASES, *everywhere])), 2, seconds)}
    return found | {name: alone(peer_threads, name, THREADS_CASES, 2, seconds) for name in installed(PEERS)}


def speed_up(cases: list[tuple[str, Case]], number: int, seconds: float) -> list[Figures]:
    """fastlinear with one thread and with more, taking turns in one process where nothing else runs threads."""
    rounds: dict[tuple[str, Case], dict[str, Work]] = {}

    def add(cases: list[tuple[str, Case]]) -> None:
        for operation, case in tqdm(cases, "threads"):
            works = {}
            for n in (1, number):
                works[str(n)] = peers.works(operation, case, [OURS])[OURS]
                works[str(n)].context = partial(limited, n)
                works[str(n)].use_wall_clock()
            interleave(works, seconds)
            for n, work in works.items():
                work.times += rounds[operation, case][n].times if (operation, case) in rounds else []
                work.forget()
            rounds[operation, case] = works

    def slow(works: dict[str, Work]) -> bool:
        return works["1"].median < works[str(number)].median

    add(cases)
    add([key for key in cases if slow(rounds[key])])
    return [figure(operation, case, medians(rounds[operation, case])) for operation, case in cases]


def peer_threads(library: str, cases: list[tuple[str, Case]], number: int, seconds: float) -> list[Figures]:
    """One library with so many threads, alone in its process."""
    peers.set_threads(number, [library])
    found = []
    for operation, case in cases:
        if works := peers.works(operation, case, [library]):
            works[library].use_wall_clock()
            found.append(figure(operation, case, interleave(works, seconds)))
    return found


# ---- import and size


def importing() -> dict[str, float]:
    """Seconds to import NumPy, and what fastlinear adds: medians over fresh processes, from byte code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = (
        "import time; a = time.perf_counter(); import numpy; b = time.perf_counter(); import fastlinear;"
        "print(b - a, time.perf_counter() - b)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
        for _ in range(16)
    ]
    pairs = sorted(tuple(map(float, run.stdout.split()))[::-1] for run in runs[1:])
    ours, theirs = pairs[len(pairs) // 2]
    return {"numpy": theirs, "fastlinear": ours}


def wheel() -> int:
    """The bytes of the wheel, built from this source folder."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            str(root),
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            folder,
        ]
        subprocess.run(command, check=True)
        [file] = Path(folder).glob("*.whl")
        return file.stat().st_size


def allocations() -> dict[str, int]:
    """The most bytes that a call holds beyond what was there before, as tracemalloc sees them."""
    case = Case(1024, 1024, 32, "float32")
    names = peers.LIBRARIES[OURS].names(case)
    statements = ["pass", "layer.forward(x, out=y)", "layer.backward(x, g, out=gx)",
                  "layer.backward_update(x, g, lr, out=gx)", "layer(x)"]  # fmt: skip
    held = {}
    for statement in statements:
        run = Work(statement, names).function()
        run()
        tracemalloc.start()
        run()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        run()
        held[statement] = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    nothing = held.pop("pass")
    return {"output": names["y"].nbytes} | {statement: most - nothing for statement, most in held.items()}


def save(results: Figures, path: Path) -> None:
    """As JSON, with four digits of each figure."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    path.write_text(json.dumps(rounded(results)) + "\n")
