"""The page of the report, and the README's claim and table, from the results and the hunts by instruction set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hunt
import peers
from bars import ENTRY_POINTS, bars, case_of, ceilings, geometric_mean, passes, peak, place
from hunt import FLOOR, points_of, summary
from measure import ISA_LABELS, LABELS, PARTS, Figures, best_peer, ratio
from peers import OURS, PEERS

Runs = dict[str, Figures]
Hunts = dict[str, list[dict[str, Any]]]


def load(folder: Path = hunt.FOLDER) -> tuple[Runs, Hunts]:
    """What has been measured, by instruction set, the widest first; not the runs of which a part is missing."""
    files = {isa: folder / f"results-{isa}.json" for isa in ISA_LABELS}
    runs = {isa: json.loads(file.read_text()) for isa, file in files.items() if file.exists()}
    runs = {isa: results for isa, results in runs.items() if set(PARTS) <= set(results)}
    return runs, {isa: hunts for isa in ISA_LABELS if (hunts := hunt.load(isa, folder))}


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others figures."""
    head = [str(name).replace("AVX-512", "AVX\u2011512") for name in head]  # a hyphen at which no line breaks
    rule = [":--" if column < left else "--:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, rule, *rows)) + "\n"


def columns(head: str, found: dict[str, dict[str, str]], left: int = 1) -> str:
    """A table with a column for each instruction set: found[isa][row] is a cell."""
    rows = dict.fromkeys(row for cells in found.values() for row in cells)
    return table([head, *(ISA_LABELS[isa] for isa in found)],
                 ((row, *(cells.get(row, "–") for cells in found.values())) for row in rows), left)  # fmt: skip


def time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, scale in (("ns", 1e9), ("µs", 1e6)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def picture(name: str, what: str) -> str:
    """A picture that is linked to its full size."""
    return f"[![{what}]({name}.png)]({name}.png)\n"


def pictures(name: str, what: str, isas: Iterable[str]) -> Iterable[str]:
    for isa in isas:
        yield picture(f"{name}-{isa}", f"{what}, {ISA_LABELS[isa]}")


def listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def write(runs: Runs, hunts: Hunts) -> str:
    parts = [
        "# Benchmarks\n",
        claim(hunts),
        "",
        columns("one thread", {isa: at_a_glance(results) for isa, results in runs.items()}),
        "A *ratio* is the time of the fastest of the other libraries (the *peers*) over fastlinear's: above 1, "
        "fastlinear is faster. "
        f"Every library is on one thread unless said otherwise. {days(runs, hunts)}\n",
        *pictures("hunt", "Random layers", hunts),
        "## Where it loses\n",
        *losses(runs, hunts),
        "## How to run it\n",
        HOW_TO_RUN,
        "## How it is measured\n",
        HOW_IT_IS_MEASURED,
        "\nThe machines:\n",
        columns("", {isa: machine_of(results) for isa, results in runs.items()}),
        *(f"{ISA_LABELS[isa]}: {note}\n" for isa, results in runs.items() for note in results["about"]["notes"]),
        "## The grid\n",
        "Nine layers, a vector and batches of 1 to 256 rows.\n",
        *pictures("forward-map", "Forward on the grid", runs),
        *pictures("backward-map", "Backward on the grid", runs),
        "## The price of a call\n",
        picture("call-bars", "What a call costs"),
        "The entry points at 5→4, a vector, float32; in brackets: the same time, in copies of four floats "
        "(`y.copy()`). *strided* and the x of *wide*, a float64 layer, are converted.\n",
        columns("statement", {isa: entry_points(results) for isa, results in runs.items()}),
        columns("beside them", {isa: beside_a_call(results) for isa, results in runs.items()}),
        "## A training step\n",
        "Every column makes the same four things: the output, grad_input, and the updated weight and bias. Autograd is "
        "`loss.backward()` and `torch.optim.SGD` on leaves that require gradients.\n",
        training(runs),
        "## Against the machine\n",
        columns("limit", {isa: limits(results) for isa, results in runs.items()}),
        *pictures("roofline", "Roofline", runs),
        "256 rows: GFLOP/s, and in brackets the part of the multiply-add peak of the same moment.\n",
        columns("operation", {isa: compute(results) for isa, results in runs.items()}),
        "One vector: the time of the fastest plain pass over W (read, or read and written back for grad_weight and the "
        "update) over the time of the operation.\n",
        columns("operation", {isa: one_vector(results) for isa, results in runs.items()}),
        picture("bandwidth", "Bandwidth"),
        "## Time against size\n",
        "Each operation at in = out = 1..300, then beside NumPy and PyTorch.\n",
        *pictures("size-curves", "Time against size", runs),
        *pictures("size-peers", "Time against size, beside NumPy and PyTorch", runs),
        "## Subnormal numbers\n",
        "The processor's mode is left alone: nothing is flushed to zero. Multiples of the time on normal numbers.\n",
        subnormals(runs),
        "## Two threads\n",
        "Wall time, each library alone in its process.\n",
        picture("thread-bars", "Two threads"),
        threads(runs),
        "## Size and import\n",
        columns("", {isa: weight(results) for isa, results in runs.items()}),
        "## Every loss\n",
        "All points of the random layers and of the grid at which another library is faster.\n",
        every_loss(runs, hunts),
        "## What was timed\n",
        "The statements, as they stand in the loop. Where there are several, the one that is fastest at a case counts. "
        "Names: x, g (grad_output), W, b, y, gx (grad_input), dW, db; `t` is a transposed view; the rest is scratch.\n",
        *statements(),
        "## The bars\n",
        "A bar is what a figure must reach before the maintainers call a part of the work done. Each bar was set "
        "before the figure was measured. All of them are here, those that are missed as well: **bold** is missed.\n",
        table(["what", "bar", *(ISA_LABELS[isa] for isa in runs)], bar_rows(runs, hunts), 4),
    ]
    return "\n".join(parts)


# ---- how fast, where it loses


def claim(hunts: Hunts) -> str:
    """The sentence that the hunts bear out, and in another one the losses by kind."""
    found = {ISA_LABELS[isa]: summary(points) for isa, there in hunts.items() if (points := points_of(there))}
    if not found:
        return ""
    counts = listed(f"{f['first']} of {f['points']} random layers on {isa}" for isa, f in found.items())
    means = listed(f"{f['mean']:.1f}{f' on {isa}' if len(found) > 1 else ''}" for isa, f in found.items())
    return (
        f"fastlinear is at least as fast as NumPy, PyTorch and ONNX Runtime at {counts} (1 to 5,000 features in and "
        "out, a vector or up to 512 rows, forward, backward and its parts, float32 and float64). In the geometric mean "
        f"the fastest of the others takes {means} times as long."
    )


THIN = 16


def kind(point: Figures) -> str:
    """The kind of layer by which losses are told apart."""
    if min(point["in_features"], point["out_features"]) < THIN:
        return f"fewer than {THIN} features in or out"
    what = "forward" if point["operation"] == "forward" else "backward and its parts"
    return f"{what} of {'a batch' if point['batch'] else 'a vector'}"


def lost_by_kind(points: Iterable[Figures]) -> dict[str, tuple[list[Figures], int]]:
    """Of each kind the points at which a peer is faster, the worst first, and how many points there are."""
    kinds: dict[str, list[Figures]] = {}
    for point in points:
        kinds.setdefault(kind(point), []).append(point)
    found = {
        name: (sorted((p for p in some if p["ratio"] < 1), key=lambda p: p["ratio"]), len(some))
        for name, some in kinds.items()
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[1][0])))


def kinds_of_loss(hunts: Hunts) -> str:
    """Where it loses, in one sentence for each instruction set."""
    sentences = []
    for isa, there in hunts.items():
        kinds = [f"{name} ({len(lost)} of {number}, down to {lost[0]['ratio']:.2f})"
                 for name, (lost, number) in lost_by_kind(points_of(there)).items() if lost]  # fmt: skip
        sentences.append(
            f"Where another one is faster on {ISA_LABELS[isa]}, at how many layers of a kind, and the least ratio of "
            f"the times: {'; '.join(kinds) or 'nowhere'}."
        )
    return " ".join(sentences)


def at_a_glance(results: Figures) -> dict[str, str]:
    """What a user wants to know first."""
    rows = {}
    for operation, points in results["grid"].items():
        ratios = [ratio(p["seconds"]) for p in points]
        rows[f"{operation} on [the grid](#the-grid): geometric mean of the ratio (least)"] = (
            f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})"
        )
    calls = results["calls"]
    call, out = calls[OURS]["layer(x)"], calls[OURS]["layer.forward(x, out=y)"]
    theirs = calls["numpy"]["W @ x + b"]
    step = next(p["seconds"] for p in results["steps"] if not p["batch"])
    parts = sorted(peak(p) for p in results["compute"])
    return rows | {
        "`layer(x)` at 5→4; with `out=`": f"{time(call)}; {time(out)}",
        "NumPy's `W @ x + b` over `layer(x)`": f"{theirs / call:.1f}",
        "forward and update at 5→4": time(step[OURS]),
        "the same in PyTorch over that, by hand; with autograd": f"{step['torch'] / step[OURS]:.0f}; "
        f"{step['autograd'] / step[OURS]:.0f}" if "torch" in step else "–",
        "large products: part of [the multiply-add peak](#against-the-machine)": f"{parts[0]:.2f} to {parts[-1]:.2f}",
    }  # fmt: skip


def days(runs: Runs, hunts: Hunts) -> str:
    """Of which day and which kernels everything is."""
    found = []
    for isa, results in runs.items():
        for day in dict.fromkeys(map(day_of, results["about"]["runs"].values())):
            found.append(f"{ISA_LABELS[isa]}: {day}")
    for isa, there in hunts.items():
        for one in there:
            found.append(f"hunt on {ISA_LABELS[isa]}, seed {one['seed']}: {len(one['points'])} points, "
                         f"{one['date']}, kernels of `{one['kernels']}`")  # fmt: skip
    quick = any("--quick" in run["command"] for r in runs.values() for run in r["about"]["runs"].values())
    text = "The figures are of these days and kernels (a commit): " + "; ".join(found) + "."
    if quick:
        text += (
            " *A run with `--quick` has few rounds and leaves out the largest products; on a shared machine, "
            "single figures are uncertain by a tenth.*"
        )
    return text


def day_of(run: Figures) -> str:
    return f"{run['date']}, `{run['command']}`, kernels of commit `{run['kernels']}`"


def days_in_brief(runs: Runs) -> str:
    """The day, the kind of run and the kernels of the grid, as the README says them."""
    found = []
    for isa, results in runs.items():
        run = results["about"]["runs"]["grid"]
        quick = ", a quick run on a shared machine" if "--quick" in run["command"] else ""
        processor = results["about"]["machine"]["processor"]
        found.append(f"{ISA_LABELS[isa]} on an {processor}, {run['date']}{quick}, kernels of commit `{run['kernels']}`")
    return f"Measured: {'; '.join(found)}."


def losses(runs: Runs, hunts: Hunts) -> Iterable[str]:
    """Where it loses, by kind."""
    rows = [
        (name, ISA_LABELS[isa], f"{len(lost)} of {number}",
         f"{lost[0]['ratio']:.2f}: {lost[0]['operation']}, {place(lost[0])}" if lost else "")
        for isa, there in hunts.items()
        for name, (lost, number) in lost_by_kind(points_of(there)).items()
    ]  # fmt: skip
    if rows:
        yield "Of the random layers:\n"
        yield table(["kind", "instruction set", "a peer is faster at", "the worst ratio"], rows, 4)
    grids = [[ratio(p["seconds"]) < 1 for points in r["grid"].values() for p in points] for r in runs.values()]
    on_grid = listed(f"{sum(lost)} of {len(lost)} on {ISA_LABELS[isa]}" for isa, lost in zip(runs, grids, strict=True))
    curves = {isa: sizes_lost(results) for isa, results in runs.items()}
    on_curves = listed(f"{lost} of {number} on {ISA_LABELS[isa]}" for isa, (lost, number) in curves.items())
    yield (
        f"Of the points of [the grid](#the-grid): {on_grid}. Of [the curves of time against size](#time-against-size), "
        f"forward and backward at in = out = 1 to 300 beside NumPy and PyTorch alone: {on_curves}. "
        "[Every loss](#every-loss) of the random layers and the grid is listed below.\n"
    )


def every_loss(runs: Runs, hunts: Hunts) -> str:
    lost = [(isa, "random", p) for isa, there in hunts.items() for p in points_of(there)]
    lost += [(isa, "grid", p) for isa, r in runs.items() for points in r["grid"].values() for p in points]
    lost = [(isa, where, p) for isa, where, p in lost if ratio(p["seconds"]) < 1]
    rows = (
        (ISA_LABELS[isa], where, f"{p['operation']}, {place(p)}", time(p["seconds"][OURS]),
         LABELS[best_peer(p["seconds"])], time(p["seconds"][best_peer(p["seconds"])]), f"{ratio(p['seconds']):.2f}")
        for isa, where, p in sorted(lost, key=lambda it: ratio(it[2]["seconds"]))
    )  # fmt: skip
    return table(["instruction set", "layers", "operation", "fastlinear", "fastest", "its time", "ratio"], rows, 3)


def sizes_lost(results: Figures) -> tuple[int, int]:
    """At how many points of the curves a peer is faster, and of how many."""
    ours, theirs = {}, {}
    for curve in results["sizes"]:
        for size, seconds in zip(curve["sizes"], curve["seconds"], strict=True):
            key = curve["operation"], curve["batch"], curve["dtype"], size
            if curve["library"] == OURS:
                ours[key] = seconds
            else:
                theirs[key] = min(seconds, theirs.get(key, seconds))
    shared = [key for key in theirs if key in ours]
    return sum(theirs[key] < ours[key] for key in shared), len(shared)


HOW_TO_RUN = f"""```sh
# With the libraries that it is compared with.
pip install -e '.[bench]' torch onnxruntime onnx
# This page, on the instruction set in use: a quarter of an hour, or four minutes.
python bench/report.py
python bench/report.py --quick
# Random layers, and at which of them a peer is faster: five minutes.
python bench/hunt.py --points 500
# Ten minutes more of the hunt that this page shows.
python bench/hunt.py --save --minutes 10
```

`--isa avx2` runs either on AVX2 where AVX-512 would be used. The report prints every [bar](#the-bars), met or missed.
The exit status of the hunt is 1 if a ratio is below {FLOOR}, the floor. `python -m fastlinear` prints a short table for
your machine at once.
"""

HOW_IT_IS_MEASURED = """Medians of interleaved rounds in one process, in the processor time of the thread (wall time
for two threads): the libraries take turns, and a slow moment of the machine falls on all of them.

- *Every peer is in its best form, fastlinear in its default one.* The peers get preallocated outputs, contiguous inputs
  and the fastest of several ways to write the operation ([the statements](#what-was-timed)); the fastest peer at a
  point counts. ONNX Runtime, which has forward only, has W as a constant and bound buffers.
- *AVX2 is measured with the peers held to AVX2* (`bench/hold.py`). ONNX Runtime cannot be held, and is compared only
  where the processor has no AVX-512.
- *Close points are measured again.* On the grid, a point at which fastlinear is less than 5 % ahead is measured
  a second time, and all rounds of both times count. In the hunt, a point below 1.03 is measured twice more and the best
  of the three counts, which is in favour of fastlinear by about the noise of a point.
- *Operations that are compared with each other take turns as well*, on the same arrays: those of the curves of time
  against size, and an operation and the limit of the machine.

The figures themselves are in `results-*.json` and `hunt-*.json` beside this page.
"""


# ---- the tables


def machine_of(results: Figures) -> dict[str, str]:
    return results["about"]["machine"]


def entry_points(results: Figures) -> dict[str, str]:
    copy = results["calls"]["floor"]["y.copy()"]
    found = results["calls"][OURS]
    order = [*ENTRY_POINTS, *(statement for statement in found if statement not in ENTRY_POINTS)]
    return {f"`{s}`": f"{time(found[s])} ({found[s] / copy:.2f})" for s in order if s in found}


def beside_a_call(results: Figures) -> dict[str, str]:
    found = results["calls"]
    rows = {f"`{statement}`": time(seconds) for statement, seconds in found["floor"].items()}
    for name in PEERS:
        rows |= {f"{LABELS[name]}: `{s}`": time(seconds) for s, seconds in found.get(name, {}).items()}
    return rows


def each(runs: Runs, part: str) -> Iterable[tuple[str, str, Figures]]:
    """The points of a part: those of one place for every instruction set, then those of the next place."""
    found = {isa: {f"{p['operation']}, {place(p)}": p for p in results[part]} for isa, results in runs.items()}
    for row in dict.fromkeys(row for points in found.values() for row in points):
        for isa, points in found.items():
            if row in points:
                yield row, ISA_LABELS[isa], points[row]


def training(runs: Runs) -> str:
    libraries = (OURS, "numpy", "torch", "autograd")
    rows = ((place(p), isa, *(time(p["seconds"][name]) if name in p["seconds"] else "–" for name in libraries))
            for _, isa, p in each(runs, "steps"))  # fmt: skip
    return table(["one step", "", *(LABELS[name] for name in libraries)], rows, 2)


def limits(results: Figures) -> dict[str, str]:
    found = results["limits"]
    rows = {
        f"multiply-adds, {dtype}": f"{max(rates.values()) / 1e9:.1f} GFLOP/s" for dtype, rates in found["fma"].items()
    }
    return rows | {f"reading, {name}": f"{rate / 1e9:.0f} GB/s" for name, rate in ceilings(found).items()}


def compute(results: Figures) -> dict[str, str]:
    return {
        f"{p['operation']}, {place(p)}": f"{peers.flops(p['operation'], case_of(p)) / p['seconds'][OURS] / 1e9:.1f} "
        f"({peak(p):.2f})"
        for p in results["compute"]
    }


def one_vector(results: Figures) -> dict[str, str]:
    return {f"{p['operation']}, {place(p)}": f"{passes(p):.2f}" for p in results["memory"]}


def subnormals(runs: Runs) -> str:
    kinds = [kind for kind in next(iter(runs.values()))["subnormals"][0]["seconds"] if kind != "normal"]
    rows = ((row, isa, *(f"{p['seconds'][kind] / p['seconds']['normal']:.2f}" for kind in kinds))
            for row, isa, p in each(runs, "subnormals"))  # fmt: skip
    return table(["operation", "", *kinds], rows, 2)


def threads(runs: Runs) -> str:
    times = {isa: {name: {(p["operation"], case_of(p)): p["seconds"] for p in points}
                   for name, points in results["threads"].items()} for isa, results in runs.items()}  # fmt: skip
    rows = []
    for key in dict.fromkeys(key for found in times.values() for key in found.get("numpy", ())):
        for isa, found in times.items():
            if key in found.get("numpy", ()):
                ours = found[OURS][key]
                theirs = (time(found[name][key][name]) if key in found.get(name, ()) else "–" for name in PEERS)
                rows.append((f"{key[0]}, {place(key[1]._asdict())}", ISA_LABELS[isa],
                             f"{ours['1'] / ours['2']:.2f}", time(ours["2"]), *theirs))  # fmt: skip
    return table(["two threads", "", "speed-up", *(LABELS[name] for name in (OURS, *PEERS))], rows, 2)


def weight(results: Figures) -> dict[str, str]:
    rest = results["rest"]
    held = rest["allocations"]
    with_out = max(held[statement] for statement in held if "out=" in statement)
    return {
        "`import fastlinear` after `import numpy`": time(rest["import"]["fastlinear"]),
        "the wheel": f"{rest['wheel'] / 1e6:.2f} MB" if rest["wheel"] else "–",
        "memory that a call with `out=` takes, as tracemalloc sees it": f"{with_out} bytes",
        "memory that `layer(x)` takes beyond its result": f"{held['layer(x)'] - held['output']} bytes",
    }


def statements() -> Iterable[str]:
    for name, library in peers.LIBRARIES.items():
        if name in peers.BUILDS:
            continue
        rows = (
            (f"`{step}`", kind, "<br>".join(f"`{form}`" for form in forms))
            for kind, table_of in (("vector", library.vector), ("batch", library.batch))
            for step, forms in table_of.items()
            if kind == "vector" or library.vector is not library.batch
        )
        yield f"{LABELS[name]}:\n"
        yield table(["step", "", "statement"], rows, 3)


def bar_rows(runs: Runs, hunts: Hunts) -> Iterable[tuple[str, ...]]:
    found = {isa: {bar.what: bar for bar in bars(results, hunts.get(isa, []), isa)} for isa, results in runs.items()}
    limits = {bar.what: bar.bar for rows in found.values() for bar in rows.values()}
    order = sorted(limits, key=lambda what: min(list(r).index(what) for r in found.values() if what in r))
    for what in order:
        cells = (rows.get(what) for rows in found.values())
        yield (what, limits[what], *("–" if bar is None else bar.measured if bar.met else f"**{bar.measured}**"
                                     for bar in cells))  # fmt: skip


# ---- the README


README_CASES = [(0, 16, 16), (1, 784, 10), (2, 479, 1024), (0, 1024, 1024), (8, 1024, 1024), (0, 4096, 4096),
                (64, 13, 512), (32, 784, 256), (64, 256, 256), (256, 256, 256)]  # fmt: skip
MARK = "<!-- {} from docs/benchmarks, by bench/report.py -->\n"


def readme(runs: Runs, hunts: Hunts, text: str) -> str:
    """The text of the README with its claim and its table, each of which stands between two marks."""
    for what, new in (
        ("claim", f"{claim(hunts)}\n\n{kinds_of_loss(hunts)}\n"),
        ("table", f"{front_table(runs)}\n{days_in_brief(runs)}\n"),
    ):
        mark = MARK.format(what)
        before, _, after = text.split(mark)
        text = before + mark + new + mark + after
    return text


def front_table(runs: Runs) -> str:
    """Times in µs, and the fastest peer's over them, float32."""

    def cell(seconds: dict[str, float]) -> str:
        ours, times = seconds[OURS] * 1e6, ratio(seconds)
        text = f"{ours:.3g} ({times:.{1 if times >= 9.95 else 2}f}×)" if ours < 1000 else f"{ours:.0f} ({times:.2f}×)"
        return f"**{text}**" if times < 1 else text

    found = {
        (operation, isa): {(p["batch"], p["in_features"], p["out_features"]): p["seconds"]
                           for p in results["grid"][operation] if p["dtype"] == "float32"}
        for operation in ("forward", "backward") for isa, results in runs.items()
    }  # fmt: skip
    head = [f"{operation}, {ISA_LABELS[isa]}" for operation, isa in found]
    rows = (
        (case[0] or "vector", f"{case[1]} → {case[2]}", *(cell(points[case]) for points in found.values()))
        for case in README_CASES
    )
    return table(["rows", "in → out", *head], rows, 2)
