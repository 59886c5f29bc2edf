"""What the figures must reach, one row for each bar; a pure function of the results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from measure import LARGE, MEMORY_OPERATIONS, Figures, best_peer, ratio
from peers import DTYPES, GRID_SHAPES, NARROW, OURS, Case


class Bar(NamedTuple):
    what: str
    bar: str
    measured: str
    met: bool


def at_least(what: str, bar: float, value: float, unit: str = "", where: str = "") -> Bar:
    return Bar(what, f"≥ {bar:g}{unit}", f"{value:.{digits(value)}f}{unit}{where}", value >= bar)


def at_most(what: str, bar: float, value: float, unit: str = "", where: str = "") -> Bar:
    return Bar(what, f"≤ {bar:g}{unit}", f"{value:.{digits(value)}f}{unit}{where}", value <= bar)


def digits(value: float) -> int:
    return 2 if abs(value) < 20 else 0


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def case_of(point: Figures) -> Case:
    return Case(*(point[name] for name in Case._fields))


def place(point: Figures) -> str:
    """Where a point is, in words."""
    rows = f"{point['batch']} row{'s' * (point['batch'] > 1)}" if point["batch"] else "vector"
    return f"{point['in_features']}×{point['out_features']}, {rows}, {point['dtype']}"


def worst(points: Iterable[Figures], value) -> tuple[float, Figures]:
    """The point where value is least, with its value."""
    return min(((value(point), point) for point in points), key=lambda pair: pair[0])


def bars(results: Figures) -> list[Bar]:
    return [bar for part in (grid, calls, steps, limits, cliffs, threads, rest) for bar in part(results)]


def grid(results: Figures) -> Iterable[Bar]:
    for operation, mean in (("forward", 1.6), ("backward", 1.8)):
        for dtype in DTYPES:
            points = [point for point in results["grid"][operation] if point["dtype"] == dtype]
            if not points:
                continue
            ratios = [ratio(point["seconds"]) for point in points]
            lost = sum(value < 1 for value in ratios)
            least, point = worst(points, lambda point: ratio(point["seconds"]))
            where = f" ({place(point)}: {best_peer(point['seconds'])}; below 1.0 at {lost} of {len(points)} points)"
            yield at_least(f"{operation}, {dtype}: best peer's time over ours, worst point", 1.0, least, "", where)
            yield at_least(f"{operation}, {dtype}: the same, geometric mean", mean, geometric_mean(ratios))


def calls(results: Figures) -> Iterable[Bar]:
    found = results["calls"]
    call, out = found["fastlinear"]["layer(x)"], found["fastlinear"]["layer.forward(x, out=y)"]
    pairs = {
        statement.partition("(")[0]: time / out for statement, time in found["numpy"].items() if "out=" in statement
    }
    where = f" ({', '.join(f'{name}: {value:.1f}' for name, value in pairs.items())})"
    yield at_least("`layer(x)` at 5→4 against `W @ x + b`", 8, found["numpy"]["W @ x + b"] / call, "×")
    yield at_most("`layer(x)` at 5→4 against `y.copy()`", 1.5, call / found["floor"]["y.copy()"], "×")
    yield at_least("`layer.forward(x, out=y)` at 5→4 against NumPy's `out=` pair", 15, min(pairs.values()), "×", where)


def steps(results: Figures) -> Iterable[Bar]:
    points = results["steps"]
    if "torch" not in points[0]["seconds"]:
        return
    for (inputs, outputs), autograd, by_hand in (((5, 4), 300, 30), *((shape, 6, 1.5) for shape in LARGE)):
        here = [p for p in points if (p["in_features"], p["out_features"]) == (inputs, outputs)]
        for name, what, bar in (("autograd", "autograd and SGD", autograd), ("torch", "written by hand", by_hand)):
            # One row may come as a vector or as a batch of one: ours at its worse, PyTorch at its better.
            value = min(p["seconds"][name] for p in here) / max(p["seconds"][OURS] for p in here)
            yield at_least(f"online step at {inputs}→{outputs} against PyTorch's, {what}", bar, value, "×")
    last = points[-1]["seconds"]
    yield at_least("training step at 784×256, 32 rows, against PyTorch's, written by hand", 1.5,
                   last["torch"] / last[OURS], "×")  # fmt: skip


def limits(results: Figures) -> Iterable[Bar]:
    def peak(point: Figures, ours: str, most: int = 512) -> float:
        seconds = point["seconds"]
        return (
            min(seconds[bits] for bits in ("128", "256", "512") if bits in seconds and int(bits) <= most)
            / seconds[ours]
        )

    for dtype in DTYPES:
        points = [point for point in results["compute"] if point["dtype"] == dtype]
        least, point = worst(points, lambda point: peak(point, OURS))
        yield at_least(f"forward, grad_input, grad_weight at 1024² and 4096², 256 rows, {dtype}: part of the FMA peak",
                       0.9, least, "", f" ({point['operation']}, {place(point)})")  # fmt: skip
        if NARROW in points[0]["seconds"]:
            least, point = worst(points, lambda point: peak(point, NARROW, 256))
            yield at_least(f"the same with the AVX2 build, {dtype}: part of the 256-bit FMA peak", 0.9, least, "",
                           f" ({point['operation']}, {place(point)})")  # fmt: skip
    for operation, bar in zip(MEMORY_OPERATIONS, (0.9, 0.85, 0.85), strict=True):
        points = [point for point in results["memory"] if point["operation"] == operation]
        least, point = worst(points, passes)
        limit = "a read-modify-write pass over W" if operation == "backward_update" else "the read bandwidth over W"
        yield at_least(f"vector {operation} at 1024² and 4096²: part of {limit}", bar, least, "", f" ({place(point)})")
    narrow = [point for point in results["grid"]["forward"] if NARROW in point["seconds"]]
    if narrow:
        least, point = worst(narrow, lambda point: ratio(point["seconds"], NARROW))
        lost = sum(ratio(point["seconds"], NARROW) < 0.8 for point in narrow)
        where = f" ({place(point)}: {best_peer(point['seconds'])}; below at {lost} of {len(narrow)})"
        yield at_least("AVX2 build, forward: best peer's time over ours, worst point", 0.8, least, "", where)


def passes(point: Figures) -> float:
    """The time of the fastest pass over W, over ours."""
    seconds = point["seconds"]
    return min(time for name, time in seconds.items() if name != OURS) / seconds[OURS]


def cliff(sizes: list[int], seconds: list[float]) -> tuple[float, int, int]:
    """The most that a size takes over the time of a larger one; the size, and the larger one."""
    found, least = (0.0, 0, 0), len(sizes) - 1
    for at in range(len(sizes) - 2, -1, -1):
        found = max(found, (seconds[at] / seconds[least], sizes[at], sizes[least]))
        if seconds[at] < seconds[least]:
            least = at
    return found


def cliffs(results: Figures) -> Iterable[Bar]:
    for curve_batch, name in ((0, "vector"), (32, "32 rows")):
        curves = [c for c in results["sizes"] if c["library"] == OURS and c["batch"] == curve_batch]
        (most, size, larger), curve = max(
            ((cliff(c["sizes"], c["seconds"]), c) for c in curves), key=lambda pair: pair[0]
        )
        over = sum(cliff(c["sizes"], c["seconds"])[0] > 1.25 for c in curves)
        yield at_most(f"in = out = 1..300, {name}, all operations: a size over any larger one", 1.25, most, "×",
                      f" ({curve['operation']}, {curve['dtype']}: {size} over {larger}; over the bar in {over} of "
                      f"{len(curves)} curves)")  # fmt: skip


def threads(results: Figures) -> Iterable[Bar]:
    points = results["threads"].get(OURS)
    if not points:
        return

    def gain(point: Figures) -> float:
        return point["seconds"]["1"] / point["seconds"]["2"]

    def where(point: Figures) -> str:
        return f" ({point['operation']}, {place(point)})"

    square = [p for p in points if (p["in_features"], p["out_features"], p["batch"]) == (1024, 1024, 256)]
    least, point = worst(square, gain)
    yield at_least("two threads at 1024², 256 rows, every operation: speed-up", 1.8, least, "×", where(point))
    vector = [p for p in points if (p["in_features"], p["batch"]) == (2048, 0)]
    least, point = worst(vector, gain)
    yield at_least("two threads, vector forward at 2048²: speed-up", 1.6, least, "×", where(point))
    all_points = [p for p in points if (p["in_features"], p["out_features"]) in GRID_SHAPES]
    least, point = worst(all_points, gain)
    lost = sum(gain(p) < 0.97 for p in all_points)
    yield at_least("two threads, forward and backward on the grid: worst point", 0.97, least, "×",
                   f"{where(point)[:-1]}; below at {lost} of {len(all_points)})")  # fmt: skip


def rest(results: Figures) -> Iterable[Bar]:
    yield at_most("`import fastlinear` after `import numpy`", 10, 1e3 * results["import"]["fastlinear"], " ms")
    if results["wheel"]:
        yield at_most("wheel", 2, results["wheel"] / 1e6, " MB")
    held = results["allocations"]
    with_out = max(held[statement] for statement in held if "out=" in statement)
    yield at_most("memory a call with `out=` takes, as tracemalloc sees it", 0, with_out, " bytes")
    yield at_most("the same without `out=`, beyond the result", 256, held["layer(x)"] - held["output"], " bytes")
