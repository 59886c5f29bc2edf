"""The page of the report, from its results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import peers
from bars import bars, case_of, geometric_mean, place
from measure import LABELS, Figures, best_peer, ratio
from peers import OURS, PEERS
from pictures import ceilings


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others figures."""
    head = list(head)
    rule = [":--" if column < left else "--:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, rule, *rows)) + "\n"


def time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, scale in (("ns", 1e9), ("µs", 1e6)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def write(results: Figures) -> str:
    about = results["about"]
    parts = [
        "# Benchmarks\n",
        f"Made by `{about['command']}` on {about['date']}. One thread unless said otherwise; medians of interleaved "
        "rounds in one process, in processor time of that thread (wall time for two threads); a ratio is the best "
        "peer's time over fastlinear's, so above 1 fastlinear is faster. "
        "Peers get preallocated outputs and contiguous inputs, and the fastest of several ways to write the operation "
        "counts ([the statements](#what-was-timed)). All figures are in [results.json](results.json).\n",
        table(["", ""], about["machine"].items(), 2),
        "## Against the bars\n",
        table(["what", "bar", "measured", "met"],
              [(*bar[:3], "yes" if bar.met else "**no**") for bar in bars(results)], 4),
        "## Speed against NumPy, PyTorch and ONNX Runtime\n",
        *grid(results),
        "## The price of a call\n",
        "![What a call costs](call-bars.png)\n",
        "### A training step\n",
        training(results),
        "\nEvery column makes the same four things: the output, grad_input, and the updated weight and bias. Autograd "
        "is `loss.backward()` and `torch.optim.SGD` on leaves that require gradients.\n",
        "## Against the machine\n",
        "![Roofline](roofline.png)\n",
        machine(results),
        "![Bandwidth](bandwidth.png)\n",
        "## Time against size\n",
        "![Each operation](size-curves.png)\n",
        "![Against the peers](size-peers.png)\n",
        "## Subnormal numbers\n",
        "The processor's mode is left alone: nothing is flushed to zero. In brackets: multiples of the time on normal "
        "numbers.\n",
        subnormals(results),
        *threads(results),
        "## What was timed\n",
        "The statements, as they stand in the loop. Where there are several, the one that is fastest at a case counts. "
        "Names: x, g (grad_output), W, b, y, gx (grad_input), dW, db; `t` is a transposed view; the rest is scratch.\n",
        *statements(),
    ]  # fmt: skip
    return "\n".join(parts)


README_CASES = [(0, 16, 16), (1, 784, 10), (2, 479, 1024), (0, 1024, 1024), (8, 1024, 1024), (0, 4096, 4096),
                (64, 13, 512), (32, 784, 256), (64, 256, 256), (256, 256, 256)]  # fmt: skip
README_MARK = "<!-- from docs/benchmarks/results.json, by bench/report.py -->\n"


def readme(results: Figures, text: str) -> str:
    """The text of the README with its table, which stands between two marks, made of these results."""

    def cells(seconds: dict[str, float], libraries: list[str]) -> Iterable[str]:
        for name in libraries:
            figure = f"{seconds[name] * 1e6:.3g}" if seconds[name] < 1e-3 else f"{seconds[name] * 1e6:.0f}"
            yield f"**{figure}**" if seconds[name] == min(seconds[name] for name in libraries) else figure

    steps = {
        step: {
            (p["batch"], p["in_features"], p["out_features"]): p["seconds"] for p in points if p["dtype"] == "float32"
        }
        for step, points in results["grid"].items()
    }
    measured = {
        step: [name for name in (OURS, *PEERS) if name in found[README_CASES[0]]] for step, found in steps.items()
    }
    head = [f"{step}, {LABELS[name]}" if name == OURS else LABELS[name] for step in steps for name in measured[step]]
    rows = (
        (case[0] or "vector", f"{case[1]} → {case[2]}",
         *(cell for step, found in steps.items() for cell in cells(found[case], measured[step])))
        for case in README_CASES
    )  # fmt: skip
    before, _, after = text.split(README_MARK)
    return before + README_MARK + table(["rows", "in → out", *head], rows, 2) + README_MARK + after


def grid(results: Figures) -> Iterable[str]:
    for operation, points in results["grid"].items():
        yield f"![{operation}: ratio to the best peer]({operation}-map.png)\n"
        lost = [point for point in points if ratio(point["seconds"]) < 1]
        means = ", ".join(
            f"{geometric_mean(ratio(p['seconds']) for p in points if p['dtype'] == dtype):.2f} ({dtype})"
            for dtype in peers.DTYPES
        )
        yield f"Geometric mean of {operation}: {means}.\n"
        if lost:
            yield f"Where {operation} is slower than the best peer:\n"
            yield table(
                ["point", "fastlinear", "best peer", "its time", "ratio"],
                (
                    (place(p), time(p["seconds"][OURS]), LABELS[best_peer(p["seconds"])],
                     time(p["seconds"][best_peer(p["seconds"])]), f"{ratio(p['seconds']):.2f}")
                    for p in sorted(lost, key=lambda p: ratio(p["seconds"]))
                ),
            )  # fmt: skip


def training(results: Figures) -> str:
    libraries = list(results["steps"][0]["seconds"])
    rows = ((place(p), *(time(p["seconds"][name]) for name in libraries)) for p in results["steps"])
    return table(["one step", *(LABELS[name] for name in libraries)], rows)


def machine(results: Figures) -> str:
    limits = results["limits"]
    peaks = [
        (f"FMA peak, {dtype}", " · ".join(f"{bits}-bit: {rate / 1e9:.1f}" for bits, rate in found.items()) + " GFLOP/s")
        for dtype, found in limits["fma"].items()
    ]
    rates = [(f"read bandwidth, {name}", f"{rate / 1e9:.0f} GB/s") for name, rate in ceilings(limits).items()]
    floor = [(f"call of `{name}`", time(found)) for name, found in results["calls"]["floor"].items()]
    widths = [bits for bits in limits["fma"]["float32"] if bits in results["compute"][0]["seconds"]]
    compute = table(
        ["256 rows", "GFLOP/s", *(f"time of {bits}-bit FMAs alone / ours" for bits in widths)],
        (
            (
                f"{p['operation']}, {place(p)}",
                f"{peers.flops(p['operation'], case_of(p)) / p['seconds'][OURS] / 1e9:.1f}",
                *(f"{p['seconds'][bits] / p['seconds'][OURS]:.2f}" for bits in widths),
            )
            for p in results["compute"]
        ),
    )
    vectors = table(
        ["one vector", "time", "fastest pass over W (read, or rewrite for the update)", "pass / ours"],
        (
            (f"{p['operation']}, {place(p)}", time(p["seconds"][OURS]), time(best), f"{best / p['seconds'][OURS]:.2f}")
            for p in results["memory"]
            for best in [min(seconds for name, seconds in p["seconds"].items() if name != OURS)]
        ),
    )
    return table(["limit", "measured"], [*peaks, *rates, *floor], 2) + "\n" + compute + "\n" + vectors


def subnormals(results: Figures) -> str:
    points = results["subnormals"]
    kinds = list(points[0]["seconds"])
    rows = (
        (f"{p['operation']}, {place(p)}", *(f"{time(took)} ({took / p['seconds']['normal']:.2f})"
                                            for took in p["seconds"].values()))
        for p in points
    )  # fmt: skip
    return table(["", *kinds], rows)


def threads(results: Figures) -> Iterable[str]:
    found = results["threads"]
    if OURS not in found:
        return
    yield "## Two threads\n"
    yield "![Two threads](thread-bars.png)\n"
    times = {library: {(p["operation"], case_of(p)): p["seconds"] for p in points} for library, points in found.items()}
    libraries = [name for name in (OURS, *PEERS) if name in times]
    rows = (
        (
            f"{point['operation']}, {place(point)}",
            f"{point['seconds']['1'] / point['seconds']['2']:.2f}",
            *(time(times[name][key].get("2", times[name][key].get(name))) if key in times[name] else "–"
              for name in libraries),
        )
        for point in found[OURS]
        for key in [(point["operation"], case_of(point))]
        if "numpy" in times and key in times["numpy"]
    )  # fmt: skip
    yield table(["two threads", "fastlinear's speed-up", *(LABELS[name] for name in libraries)], rows)


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
