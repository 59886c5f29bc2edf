"""What the figures must reach, one row for each bar; a pure function of the results of one instruction set.

What a run did not measure has no row, or a row of the points that there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hunt import FLOOR, points_of, summary
from measure import MEMORY_OPERATIONS, Figures, best_peer, ratio
from peers import DTYPES, GRID_SHAPES, OURS, Case


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
    return 2 if abs(value) < 20 else 1 if abs(value) < 100 else 0


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def case_of(point: Figures) -> Case:
    return Case(*(point[name] for name in Case._fields))


def place(point: Figures) -> str:
    """Where a point is, in words."""
    rows = f"{point['batch']} row{'s' * (point['batch'] > 1)}" if point["batch"] else "vector"
    return f"{point['in_features']}×{point['out_features']}, {rows}, {point['dtype']}"


def worst(points: Iterable[Figures], value: Callable[[Figures], float]) -> tuple[float, Figures]:
    """The point where value is least, with its value."""
    return min(((value(point), point) for point in points), key=lambda pair: pair[0])


def ceilings(limits: Figures) -> dict[str, float]:
    """The read bandwidth from each cache, at half its size, and from memory."""
    best = {int(size): max(streams.values()) for size, streams in limits["read"].items()}
    half = {name: best.get(size // 2) for name, size in limits["caches"].items()}
    return {name: rate for name, rate in half.items() if rate} | {"memory": best[max(best)]}


def bars(results: Figures, hunts: list[dict[str, Any]], isa: str) -> list[Bar]:
    parts = (grid, calls, steps, limits, vectors, cliffs, threads)
    return [*hunting(hunts, isa), *(bar for part in parts for bar in part(results))]


HUNT_MEANS = {"avx512": 3.0, "avx2": 3.3}


def hunting(hunts: list[dict[str, Any]], isa: str) -> Iterable[Bar]:
    if not (points := points_of(hunts)) or isa not in HUNT_MEANS:
        return
    found = summary(points)
    least, point = worst(points, lambda point: point["ratio"])
    where = f" ({point['operation']}, {place(point)}; below at {len(found['below'])} of {len(points)})"
    yield at_least("hunt: best peer's time over ours, worst point", FLOOR, least, "", where)
    mean = at_least("hunt: the same, geometric mean", HUNT_MEANS[isa], found["mean"])
    yield mean._replace(bar="≥ 3 on AVX-512, 3.3 on AVX2")


def grid(results: Figures) -> Iterable[Bar]:
    for operation, points in results["grid"].items():
        for dtype in DTYPES:
            some = [point for point in points if point["dtype"] == dtype]
            least, point = worst(some, lambda point: ratio(point["seconds"]))
            lost = sum(ratio(point["seconds"]) < 1 for point in some)
            where = f" ({place(point)}; below at {lost} of {len(some)})"
            yield at_least(f"grid, {operation}, {dtype}: best peer's time over ours, worst point", 1, least, "", where)
            mean = geometric_mean(ratio(point["seconds"]) for point in some)
            yield at_least(f"grid, {operation}, {dtype}: the same, geometric mean", 2, mean)


ENTRY_POINTS = {
    "layer.forward(x, out=y)": 0.6,
    "layer(x)": 1.2,
    "layer.backward(x, g, out=gx)": 1.2,
    "layer.backward_update(x, g, lr, out=gx)": 1.2,
    "layer.zero_grad()": 1,
    "layer.weight": 1,
    "layer.weight = weight": 4,
    "layer.weight -= change": 12,
    "layer.forward(strided, out=y)": 10,
    "wide.forward(x, out=y64)": 10,
}
"""In copies of four floats."""


def calls(results: Figures) -> Iterable[Bar]:
    found = results["calls"]
    ours, copy = found[OURS], found["floor"]["y.copy()"]
    for statement, bar in ENTRY_POINTS.items():
        if statement in ours:
            yield at_most(f"`{statement}` at 5→4 against `y.copy()`", bar, ours[statement] / copy, "×")
    call, out = ours["layer(x)"], ours["layer.forward(x, out=y)"]
    yield at_least("`layer(x)` at 5→4 against NumPy's `W @ x + b`", 10, found["numpy"]["W @ x + b"] / call, "×")
    [pair] = [time for statement, time in found["numpy"].items() if statement.startswith("np.matmul")]
    yield at_least("`layer.forward(x, out=y)` at 5→4 against NumPy's `np.matmul` and `np.add`", 18, pair / out, "×")


def steps(results: Figures) -> Iterable[Bar]:
    points = [
        p for p in results["steps"] if (p["in_features"], p["out_features"]) == (5, 4) and "torch" in p["seconds"]
    ]
    if points:
        least, point = worst(points, lambda p: p["seconds"]["torch"] / p["seconds"][OURS])
        yield at_least("online step at 5→4 against PyTorch's by hand, worst of vector and one row", 30, least, "×",
                       f" ({place(point)})")  # fmt: skip


def peak(point: Figures) -> float:
    """The time of as many multiply-adds on registers, over ours."""
    return min(time for name, time in point["seconds"].items() if name.isdigit()) / point["seconds"][OURS]


def limits(results: Figures) -> Iterable[Bar]:
    for dtype in DTYPES:
        points = [point for point in results["compute"] if point["dtype"] == dtype]
        least, point = worst(points, peak)
        yield at_least(f"forward, grad_input, grad_weight, 256 rows, {dtype}: part of the multiply-add peak", 0.9,
                       least, "", f" ({point['operation']}, {place(point)}; worst of {len(points)})")  # fmt: skip
        points = [point for point in points if "numpy" in point["seconds"]]
        if points:
            least, point = worst(points, lambda point: point["seconds"]["numpy"] / point["seconds"][OURS])
            yield at_least(f"the same, {dtype}: NumPy's time over ours", 1, least, "",
                           f" ({point['operation']}, {place(point)}; worst of {len(points)})")  # fmt: skip


def passes(point: Figures) -> float:
    """The time of the fastest pass over W, over ours."""
    seconds = point["seconds"]
    return min(time for name, time in seconds.items() if name.startswith(("read", "rewrite"))) / seconds[OURS]


def vectors(results: Figures) -> Iterable[Bar]:
    for operation in MEMORY_OPERATIONS:
        points = [point for point in results["memory"] if point["operation"] == operation]
        if not points:
            continue
        least, point = worst(points, passes)
        where = f" ({place(point)}; worst of {len(points)})"
        yield at_least(f"vector {operation}, W in L2, L3, memory: part of a plain pass over W", 0.9, least, "", where)
        points = [point for point in points if best_peer(point["seconds"])]
        if points:
            least, point = worst(points, lambda point: ratio(point["seconds"]))
            where = f" ({place(point)}; worst of {len(points)})"
            yield at_least(f"vector {operation}, the same: best peer's time over ours", 1, least, "", where)


def cliff(sizes: list[int], seconds: list[float]) -> tuple[float, int, int]:
    """The most that a size takes over the time of a larger one; the size, and the larger one."""
    found, least = (0.0, 0, 0), len(sizes) - 1
    for at in range(len(sizes) - 2, -1, -1):
        found = max(found, (seconds[at] / seconds[least], sizes[at], sizes[least]))
        if seconds[at] < seconds[least]:
            least = at
    return found


def cliffs(results: Figures) -> Iterable[Bar]:
    for batch, name in ((0, "vector"), (32, "32 rows")):
        curves = [c for c in results["sizes"] if c["library"] == OURS and c["batch"] == batch]
        found = [(cliff(c["sizes"], c["seconds"]), c) for c in curves]
        (most, size, larger), curve = max(found, key=lambda pair: pair[0])
        over = sum(most > 1.25 for (most, *_), _ in found)
        yield at_most(f"in = out = 1..300, {name}, all operations: a size's time over any larger one's", 1.25, most,
                      "×", f" ({curve['operation']}, {curve['dtype']}: {size} over {larger}; over the bar in {over} of "
                      f"{len(curves)} curves)")  # fmt: skip


def threads(results: Figures) -> Iterable[Bar]:
    points = results["threads"].get(OURS, [])

    def gain(point: Figures) -> float:
        return point["seconds"]["1"] / point["seconds"]["2"]

    def bar(what: str, limit: float, some: list[Figures]) -> Iterable[Bar]:
        if some:
            least, point = worst(some, gain)
            lost = sum(gain(point) < limit for point in some)
            yield at_least(f"two threads, {what}: speed-up", limit, least, "×",
                           f" ({point['operation']}, {place(point)}; below at {lost} of {len(some)})")  # fmt: skip

    def at(shape: tuple[int, int], batch: int) -> list[Figures]:
        return [p for p in points if (p["in_features"], p["out_features"], p["batch"]) == (*shape, batch)]

    yield from bar("1024², 256 rows, each operation", 1.8, at((1024, 1024), 256))
    yield from bar("training step at 784×256, 256 rows", 1.9,
                   [p for p in at((784, 256), 256) if p["operation"] == "training_step"])  # fmt: skip
    yield from bar("forward and backward on the grid, worst point", 0.97,
                   [p for p in points if (p["in_features"], p["out_features"]) in GRID_SHAPES])  # fmt: skip
