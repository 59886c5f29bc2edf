"""The pictures of the report, from its results."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from bars import case_of
from matplotlib import pyplot as plt
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from measure import LABELS, SIZE_BATCHES, SIZE_OPERATIONS, Figures, best_peer, ratio
from peers import DTYPES, GRID_BATCHES, GRID_SHAPES, OURS, flops, traffic

mpl.use("Agg")
plt.rcParams |= {
    "figure.dpi": 110, "savefig.bbox": "tight", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip

COLOURS = dict(zip(SIZE_OPERATIONS, ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"), strict=True))
LIBRARY_COLOURS = {
    OURS: "#d55e00",
    "numpy": "#0072b2",
    "torch": "#009e73",
    "onnxruntime": "#cc79a7",
    "floor": "#777777",
}
MARKERS = {256: "o", 1024: "s", 4096: "D"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def draw(results: Figures, folder: Path) -> None:
    """Write every picture."""
    for picture in (roofline, bandwidth, forward_map, backward_map, size_curves, size_peers, call_bars, thread_bars):
        figure = picture(results)
        if figure:
            figure.savefig(folder / f"{picture.__name__.replace('_', '-')}.png")
            plt.close(figure)


def batch_name(batch: int) -> str:
    return str(batch) if batch else "vector"


def ceilings(limits: Figures) -> dict[str, float]:
    """The read bandwidth from each cache, at half its size, and from memory."""
    best = {int(size): max(streams.values()) for size, streams in limits["read"].items()}
    half = {name: best.get(size // 2) for name, size in limits["caches"].items()}
    return {name: rate for name, rate in half.items() if rate} | {"memory": best[max(best)]}


def roofline(results: Figures) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(14, 6), sharey=True)
    figure.suptitle("Roofline, one thread: every operation, from a vector to 256 rows")
    x = np.geomspace(0.1, 400, 200)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        peak = max(results["limits"]["fma"][dtype].values())
        axis.set(xscale="log", yscale="log", xlim=(0.1, 400), ylim=(1, 200), title=dtype,
                 xlabel="flop per byte that must move (each array once)")  # fmt: skip
        for name, rate in ceilings(results["limits"]).items():
            axis.plot(x, np.minimum(rate * x, peak) / 1e9, color="#555555", linewidth=1, zorder=1)
            slope = np.degrees(np.arctan(rate / 1e9))
            axis.text(0.11, 1.06 * rate * 0.11 / 1e9, f"{name} {rate / 1e9:.0f} GB/s", fontsize=8, color="#555555",
                      rotation=slope, rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip
        axis.annotate(f"FMA peak {peak / 1e9:.1f} GFLOP/s", (390, peak / 1e9), fontsize=8, color="#555555", ha="right",
                      xytext=(0, 4), textcoords="offset points")  # fmt: skip
        for point in results["roofline"]:
            if point["dtype"] != dtype:
                continue
            operation, case = point["operation"], case_of(point)
            work = flops(operation, case)
            axis.scatter(work / traffic(operation, case), work / point["seconds"][OURS] / 1e9, s=34, alpha=0.85,
                         color=COLOURS[operation], marker=MARKERS[case.in_features], linewidth=0, zorder=2)  # fmt: skip
        axis.xaxis.set_major_formatter(PLAIN)
        axis.yaxis.set_major_formatter(PLAIN)
    axes[0].set_ylabel("GFLOP/s")
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in COLOURS.items()]
    handles += [Line2D([], [], color="#555555", marker=marker, linestyle="", label=f"{size} × {size}")
                for size, marker in MARKERS.items()]  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, bbox_to_anchor=(0.5, -0.05))
    return figure


def bandwidth(results: Figures) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(9, 4.5))
    for kind, label, colour in (
        ("read", "read", "#0072b2"),
        ("rewrite", "read and write back (both counted)", "#d55e00"),
    ):
        sizes = [int(size) for size in results["limits"][kind]]
        rates = [max(streams.values()) / 1e9 for streams in results["limits"][kind].values()]
        axis.plot([size / 1024 for size in sizes], rates, "o-", markersize=4, color=colour, label=label)
    axis.set(xscale="log", ylim=0, xlabel="array", ylabel="GB/s",
             title="Bandwidth of one core against the size of the array")  # fmt: skip
    for name, size in results["limits"]["caches"].items():
        axis.axvline(size / 1024, color="#999999", linestyle=":", linewidth=1)
        axis.annotate(name, (size / 1024, 1), xycoords=("data", "axes fraction"), xytext=(-4, -12), ha="right",
                      textcoords="offset points", color="#777777", fontsize=9)  # fmt: skip
    ticks = [8, 32, 128, 512, 2048, 8192, 32768, 131072]
    axis.set_xticks(ticks, [f"{t} KiB" if t < 1024 else f"{t // 1024} MiB" for t in ticks], fontsize=8)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


def ratio_map(results: Figures, operation: str) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(15, 5), sharey=True, layout="constrained")
    norm = TwoSlopeNorm(0, -1, 3)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        found = {case_of(point): point["seconds"] for point in results["grid"][operation] if point["dtype"] == dtype}
        cells = np.full((len(GRID_SHAPES), len(GRID_BATCHES)), np.nan)
        for case, seconds in found.items():
            row, column = GRID_SHAPES.index(case[:2]), GRID_BATCHES.index(case.batch)
            cells[row, column] = value = ratio(seconds)
            initial = LABELS[best_peer(seconds)][0]
            colour = "white" if np.log2(value) > 2.2 or np.log2(value) < -0.7 else "black"
            axis.text(column, row, f"{value:.{1 if value >= 9.95 else 2}f} {initial}", ha="center", va="center",
                      fontsize=8.5, color=colour, fontweight="bold" if value < 1 else "normal")  # fmt: skip
        image = axis.imshow(np.log2(cells), cmap="PuOr", norm=norm, aspect="auto")
        axis.set_xticks(range(len(GRID_BATCHES)), map(batch_name, GRID_BATCHES))
        axis.set_yticks(range(len(GRID_SHAPES)), [f"{i} × {o}" for i, o in GRID_SHAPES])
        axis.set(title=dtype, xlabel="rows of the batch")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("in × out")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1, 2, 3], pad=0.01)
    bar.ax.set_yticklabels(["½", "1", "2", "4", "≥ 8"])
    bar.set_label("best peer's time / fastlinear's")
    figure.suptitle(f"{operation}, one thread: how many times as fast as the best of NumPy (N), PyTorch (P)"
                    + (" and ONNX Runtime (O)" if operation == "forward" else "") + "; bold: slower")  # fmt: skip
    return figure


def forward_map(results: Figures) -> plt.Figure:
    return ratio_map(results, "forward")


def backward_map(results: Figures) -> plt.Figure:
    return ratio_map(results, "backward")


def size_axes(title: str) -> tuple[plt.Figure, dict[tuple[int, str], plt.Axes]]:
    figure, axes = plt.subplots(2, 2, figsize=(14, 9), sharex=True, layout="constrained")
    figure.suptitle(title)
    panels = {}
    for row, batch in zip(axes, SIZE_BATCHES, strict=True):
        for axis, dtype in zip(row, DTYPES, strict=True):
            axis.set(title=f"{f'{batch} rows' if batch else 'vector'}, {dtype}", yscale="log", xlim=(0, 302))
            axis.set_xticks(range(0, 301, 32))
            axis.yaxis.set_major_formatter(PLAIN)
            panels[batch, dtype] = axis
    for axis in axes[1]:
        axis.set_xlabel("in = out")
    for axis in axes[:, 0]:
        axis.set_ylabel("µs")
    return figure, panels


def size_curves(results: Figures) -> plt.Figure:
    figure, panels = size_axes("fastlinear: time against size, one thread")
    for curve in results["sizes"]:
        if curve["library"] == OURS:
            panels[curve["batch"], curve["dtype"]].plot(
                curve["sizes"], np.multiply(curve["seconds"], 1e6), linewidth=1, color=COLOURS[curve["operation"]],
                label=curve["operation"])  # fmt: skip
    panels[0, "float32"].legend(frameon=False, loc="lower right")
    return figure


def size_peers(results: Figures) -> plt.Figure:
    figure, panels = size_axes("Time against size, one thread: forward (solid) and backward (dashed)")
    styles = {"forward": "-", "backward": "--"}
    for curve in results["sizes"]:
        if style := styles.get(curve["operation"]):
            library = curve["library"]
            panels[curve["batch"], curve["dtype"]].plot(
                curve["sizes"], np.multiply(curve["seconds"], 1e6), style, linewidth=1, color=LIBRARY_COLOURS[library],
                label=LABELS[library] if style == "-" else None)  # fmt: skip
    panels[0, "float32"].legend(frameon=False, loc="lower right")
    return figure


def call_bars(results: Figures) -> plt.Figure:
    rows = [(group, statement, time * 1e9) for group, found in results["calls"].items()
            for statement, time in sorted(found.items(), key=lambda item: item[1])]  # fmt: skip
    figure, axis = plt.subplots(figsize=(10, 0.36 * len(rows) + 1))
    axis.barh([f"{LABELS[group]}:  {statement}" for group, statement, _ in rows], [time for *_, time in rows],
              color=[LIBRARY_COLOURS[group] for group, *_ in rows])  # fmt: skip
    for at, (*_, time) in enumerate(rows):
        axis.annotate(f"{time:,.0f}", (time, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set(xscale="log", xlabel="ns", title="The price of a call: Linear(5, 4), one vector, float32")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.margins(y=0.01)
    return figure


def thread_bars(results: Figures) -> plt.Figure | None:
    if OURS not in results["threads"]:
        return None
    wanted = [(p["operation"], case_of(p)) for p in results["threads"]["numpy"] if p["dtype"] == "float32"]
    figure, axis = plt.subplots(figsize=(11, 4))
    found = {library: {(p["operation"], case_of(p)): p["seconds"] for p in points}
             for library, points in results["threads"].items()}  # fmt: skip
    shift = np.linspace(-0.3, 0.3, len(found))
    for at, (library, points) in zip(shift, found.items(), strict=True):
        rates = [flops(*key) / points[key][min(points[key], key=points[key].get)] / 1e9 if key in points else np.nan
                 for key in wanted]  # fmt: skip
        axis.bar(np.arange(len(wanted)) + at, rates, width=0.19, color=LIBRARY_COLOURS[library], label=LABELS[library])
    axis.set_xticks(range(len(wanted)), [f"{operation}\n{case.in_features}², {batch_name(case.batch)}"
                                         for operation, case in wanted], fontsize=9)  # fmt: skip
    axis.set(ylabel="GFLOP/s", title="Two threads, each library alone in its own process (float32)")
    axis.grid(visible=False, axis="x")
    axis.legend(frameon=False, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure
