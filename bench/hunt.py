#!/usr/bin/env python3
"""Hunts for layers at which a peer is faster: random points of the whole space, one thread, processor time.

    python bench/hunt.py                        1,000 points, seed 0, the best instruction set
    python bench/hunt.py --points 50 --seed 7   some others
    python bench/hunt.py --isa avx2             ours on AVX2, and NumPy and PyTorch held to it as well
    python bench/hunt.py --save                 what is found goes to docs/benchmarks, with pictures

A point is an operation, a dtype, sizes that are log-uniform in 1..5,000 and a batch: a vector for a quarter of the
points, else log-uniform in 1..512. Every peer is in its fastest form (bench/peers.py), and the fastest one counts. A
point below 1.03 is measured twice more, and the best of the three counts, because a slow moment of a shared machine
falls on one of them alone. The exit status is 1 if a point is below the floor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

HELD_TO_AVX2 = {
    "FASTLINEAR_ISA": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FLOOR, DOUBTFUL = 0.97, 1.03
MOST_SIZE, MOST_BATCH = 5000, 512
OPERATIONS = ("forward", "grad_input", "grad_weight", "backward", "backward_update")
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks"

Point = dict[str, Any]


def draw(rng: Any) -> tuple[str, Any]:
    """An operation and a case."""
    from peers import DTYPES, Case

    def size(most: int) -> int:
        return int(math.exp(rng.uniform(0, math.log(most + 1))))

    operation, dtype = rng.choice(OPERATIONS), rng.choice(DTYPES)
    batch = 0 if rng.random() < 0.25 else size(MOST_BATCH)
    return str(operation), Case(size(MOST_SIZE), size(MOST_SIZE), batch, str(dtype))


def measure(operation: str, case: Any, seconds: float) -> dict[str, float]:
    """Seconds of each library. ONNX Runtime cannot be held to AVX2, so it is no peer there."""
    import peers
    from timing import interleave

    held = "ATEN_CPU_CAPABILITY" in os.environ
    wanted = [name for name in (peers.OURS, *peers.PEERS) if not (held and name == "onnxruntime")]
    names = [name for name in wanted if not peers.LIBRARIES[name].missing()]
    return interleave(peers.works(operation, case, names), seconds)


def ratio(times: dict[str, float]) -> float:
    """The fastest peer's time over ours."""
    from peers import OURS

    return min(time for name, time in times.items() if name != OURS) / times[OURS]


def hunt(points: int, seed: int, seconds: float) -> list[Point]:
    import numpy as np
    import peers
    from tqdm import tqdm

    rng = np.random.default_rng(seed)
    found = []
    for number in tqdm(range(points), "hunt", disable=None):
        operation, case = draw(rng)
        times = measure(operation, case, seconds)
        for _ in range(2):
            if ratio(times) < DOUBTFUL:
                times = max(times, measure(operation, case, 2 * seconds), key=ratio)
        peers.forget()
        point = {"number": number, "operation": operation, **case._asdict()}
        found.append(point | {"seconds": times, "ratio": ratio(times)})
    return found


def report(found: list[Point]) -> bool:
    """Print the points below the floor and the mean; whether there are none."""
    below = sorted((p for p in found if p["ratio"] < FLOOR), key=lambda p: p["ratio"])
    for p in below:
        times = "  ".join(f"{name} {time * 1e6:.4g}" for name, time in p["seconds"].items())
        layer = f"{p['in_features']}->{p['out_features']}, batch {p['batch'] or 'vector'}, {p['dtype']}"
        print(f"{p['ratio']:.2f}  {p['operation']:15} {layer}: {times} us (point {p['number']})")
    mean = math.exp(sum(math.log(p["ratio"]) for p in found) / len(found))
    print(f"{len(found)} points, {len(below)} below {FLOOR}, geometric mean {mean:.2f}")
    return not below


def draw_pictures(found: list[Point], folder: Path, title: str) -> None:
    """How often which ratio, and the ratio over the multiply-adds of a call, by operation."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.hist([math.log2(p["ratio"]) for p in found], bins=40, color="tab:blue")
    left.axvline(0, color="black", linewidth=1)
    left.set(xlabel="times as fast as the fastest peer", ylabel="layers", title=title)
    left.xaxis.set_major_formatter(lambda x, _: f"{2.0**x:g}")
    for operation in OPERATIONS:
        some = [p for p in found if p["operation"] == operation]
        work = [p["in_features"] * p["out_features"] * max(p["batch"], 1) for p in some]
        right.scatter(work, [p["ratio"] for p in some], s=9, label=operation)
    right.set(xscale="log", yscale="log", xlabel="multiply-adds of one product")
    right.axhline(1, color="black", linewidth=1)
    right.legend()
    figure.savefig(folder, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.1, help="for the turns of all libraries at a point")
    parser.add_argument("--isa", help="an instruction set of ours; avx2 holds the peers to it, too")
    parser.add_argument("--save", action="store_true", help="write docs/benchmarks/hunt-ISA.json and .png")
    options = parser.parse_args()
    ours = {"FASTLINEAR_ISA": options.isa} if options.isa else {}
    wanted = ONE_THREAD | (HELD_TO_AVX2 if options.isa == "avx2" else ours)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # The libraries read these when they are loaded.
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], os.environ | wanted)
    import peers

    import fastlinear

    peers.set_threads(1)
    found = hunt(options.points, options.seed, options.seconds)
    right = report(found)
    if options.save:
        name = RESULTS / f"hunt-{fastlinear.isa}"
        name.with_suffix(".json").write_text(json.dumps({"seed": options.seed, "points": found}) + "\n")
        draw_pictures(found, name.with_suffix(".png"), f"{len(found)} random layers, {fastlinear.isa}")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
