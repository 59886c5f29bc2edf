#!/usr/bin/env python3
"""Hunts for layers at which a peer is faster: random points of the whole space, one thread, processor time.

    python bench/hunt.py                        1,000 points of seed 0, the best instruction set (ten minutes)
    python bench/hunt.py --points 50 --seed 7   some others
    python bench/hunt.py --isa avx2             ours on AVX2, and the peers held to it as well
    python bench/hunt.py --seed 7 --only 3 12   these two points of that seed again
    python bench/hunt.py --save --minutes 10    go on with the hunt in docs/benchmarks/hunt-ISA.json, ten minutes of it

A point is an operation, a dtype, sizes that are log-uniform in 1..5,000 and a batch: a vector for a quarter of the
points, else log-uniform in 1..512. Every peer is in its fastest form (bench/peers.py), and the fastest one counts. A
point below 1.03 is measured twice more, and the best of the three counts, because a slow moment of a shared machine
falls on one of them alone. The exit status is 1 if a point is below the floor.

With --save the points go to the file one by one, and a hunt that was cut short goes on at the point after the last one,
so that a long one can be done in pieces. Each seed is a hunt of its own; what is printed, and the pictures, are of all
of them. --fresh begins anew, as one does after a change of the kernels.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from hold import ROOT, hold, kernels

FLOOR, DOUBTFUL = 0.97, 1.03
MOST_SIZE, MOST_BATCH = 5000, 512
OPERATIONS = ("forward", "grad_input", "grad_weight", "backward", "backward_update")
FOLDER = ROOT / "docs" / "benchmarks"

Point = dict[str, Any]


def draw(rng: Any) -> tuple[str, Any]:
    """An operation and a case."""
    from peers import DTYPES, Case

    def size(most: int) -> int:
        return int(math.exp(rng.uniform(0, math.log(most + 1))))

    operation, dtype = rng.choice(OPERATIONS), rng.choice(DTYPES)
    batch = 0 if rng.random() < 0.25 else size(MOST_BATCH)
    return str(operation), Case(size(MOST_SIZE), size(MOST_SIZE), batch, str(dtype))


def measure(operation: str, case: Any, seconds: float) -> Point:
    """The seconds of each library at a point, and the fastest peer's time over ours."""
    import peers
    from timing import interleave

    def attempt(seconds: float) -> Point:
        names = [name for name in (peers.OURS, *peers.PEERS) if not peers.LIBRARIES[name].missing()]
        times = interleave(peers.works(operation, case, names), seconds)
        theirs = min(time for name, time in times.items() if name != peers.OURS)
        return {"seconds": times, "ratio": theirs / times[peers.OURS]}

    best = attempt(seconds)
    for _ in range(2):
        if best["ratio"] < DOUBTFUL:
            best = max(best, attempt(2 * seconds), key=lambda point: point["ratio"])
    peers.forget()
    return best


# ---- what has been found


def load(isa: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The hunts so far, one for each seed: seed, date, kernels, points."""
    file = folder / f"hunt-{isa}.json"
    return json.loads(file.read_text())["hunts"] if file.exists() else []


def save(hunts: list[dict[str, Any]], isa: str, folder: Path = FOLDER) -> None:
    """Write the whole file or none of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"hunt-{isa}.json"
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps({"hunts": hunts}, indent=0) + "\n")
    beside.replace(file)


def points_of(hunts: list[dict[str, Any]]) -> list[Point]:
    """Every point of every hunt, with its seed."""
    return [point | {"seed": hunt["seed"]} for hunt in hunts for point in hunt["points"]]


def summary(points: list[Point]) -> dict[str, Any]:
    """How many points; those below the floor, worst first; how many at which no peer is faster; the geometric mean."""
    return {
        "points": len(points),
        "below": sorted((p for p in points if p["ratio"] < FLOOR), key=lambda p: p["ratio"]),
        "first": sum(p["ratio"] >= 1 for p in points),
        "mean": math.exp(sum(math.log(p["ratio"]) for p in points) / len(points)),
    }


def report(points: list[Point]) -> bool:
    """Print the points below the floor and the mean; whether there are none below."""
    found = summary(points)
    for p in found["below"]:
        times = "  ".join(f"{name} {time * 1e6:.4g}" for name, time in p["seconds"].items())
        layer = f"{p['in_features']}->{p['out_features']}, batch {p['batch'] or 'vector'}, {p['dtype']}"
        print(f"{p['ratio']:.2f}  {p['operation']:15} {layer}: {times} us (seed {p['seed']}, point {p['number']})")
    print(
        f"{found['points']} points, {len(found['below'])} below {FLOOR}, no peer faster at {found['first']}, "
        f"geometric mean {found['mean']:.2f}"
    )
    return not found["below"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these points of the seed, unsaved")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no point after so many")
    parser.add_argument("--seconds", type=float, default=0.1, help="for the turns of all libraries at a point")
    parser.add_argument("--isa", help="an instruction set of ours; avx2 holds the peers to it, too")
    parser.add_argument("--save", action="store_true", help="write docs/benchmarks/hunt-ISA.json and .png")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to save, if not in docs/benchmarks")
    parser.add_argument("--fresh", action="store_true", help="with --save: leave nothing of earlier hunts")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    isa = hold(options.isa)

    import numpy as np
    import peers
    from tqdm import tqdm

    peers.set_threads(1)
    hunts = load(isa, options.folder) if options.save and not options.fresh else []
    mine = next((hunt for hunt in hunts if hunt["seed"] == options.seed), None)
    if mine is None:
        mine = {"seed": options.seed, "date": dt.date.today().isoformat(), "kernels": kernels(), "points": []}
        hunts.append(mine)
    rng = np.random.default_rng(options.seed)
    drawn = [draw(rng) for _ in range(max([options.points, *(number + 1 for number in options.only or ())]))]
    for number in tqdm(options.only or range(len(mine["points"]), options.points), "hunt", disable=None):
        if time.monotonic() > end:
            break
        operation, case = drawn[number]
        found = measure(operation, case, options.seconds)
        mine["points"].append({"number": number, "operation": operation, **case._asdict()} | found)
        if options.save and not options.only:
            save(hunts, isa, options.folder)
    if options.save and not options.only:
        import pictures

        pictures.hunt(hunts, isa, options.folder)
    return int(not report(points_of(hunts)))


if __name__ == "__main__":
    sys.exit(main())
