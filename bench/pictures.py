"""The pictures of the report, from its results: five inches wide, so that they can be read at the width of a phone."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from bars import case_of, ceilings
from hunt import OPERATIONS, points_of, summary
from matplotlib import pyplot as plt
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from measure import ISA_LABELS, LABELS, SIZE_BATCHES, Figures, best_peer, ratio
from peers import DTYPES, GRID_BATCHES, GRID_SHAPES, OURS, flops, traffic
from PIL import Image

mpl.use("Agg")
plt.rcParams |= {
    "figure.dpi": 160, "savefig.bbox": "tight", "font.size": 9.5, "axes.titlesize": 10.5, "figure.titlesize": 10.5,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip

WIDTH = 5.0
COLOURS = dict(zip(OPERATIONS, ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"), strict=True))
LIBRARY_COLOURS = {
    OURS: "#d55e00",
    "numpy": "#0072b2",
    "torch": "#009e73",
    "onnxruntime": "#cc79a7",
    "floor": "#777777",
}
MARKERS = {256: "o", 1024: "s", 4096: "D"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")

Runs = dict[str, Figures]
"""The results by instruction set."""


def draw(runs: Runs, folder: Path) -> None:
    """Write every picture: some for each instruction set, some of all of them."""
    for isa, results in runs.items():
        for picture in (roofline, forward_map, backward_map, size_curves, size_peers):
            keep(picture(results, ISA_LABELS[isa]), folder / f"{picture.__name__.replace('_', '-')}-{isa}.png")
    for picture in (bandwidth, call_bars, thread_bars):
        keep(picture(runs), folder / f"{picture.__name__.replace('_', '-')}.png")


def keep(figure: plt.Figure, file: Path) -> None:
    """Write a picture, with as many colours as it needs: that makes a third of the bytes."""
    memory = io.BytesIO()
    figure.savefig(memory)
    plt.close(figure)
    Image.open(memory).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def panels(number: int, height: float, **options: Any) -> tuple[plt.Figure, list[plt.Axes]]:
    """Panels one below the other."""
    figure, axes = plt.subplots(number, 1, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)
    return figure, list(axes[:, 0])


def batch_name(batch: int) -> str:
    return str(batch) if batch else "vector"


def hunt(hunts: list[dict[str, Any]], isa: str, folder: Path) -> None:
    """How often which ratio, and the ratio over the multiply-adds of a call, by operation."""
    points = points_of(hunts)
    found = summary(points)
    figure, (top, bottom) = panels(2, 6.6)
    figure.suptitle(f"{found['points']} random layers, {ISA_LABELS[isa]}, one thread:\n"
                    "the fastest peer's time over fastlinear's")  # fmt: skip
    logs = [math.log2(p["ratio"]) for p in points]
    edges = np.arange(math.floor(4 * min(logs)), math.ceil(4 * max(logs)) + 1) / 4  # 1 is an edge
    top.hist([x for x in logs if x < 0], bins=edges, color="#777777", label="a peer is faster")
    top.hist([x for x in logs if x >= 0], bins=edges, color=LIBRARY_COLOURS[OURS], label="fastlinear is faster")
    top.axvline(0, color="black", linewidth=1)
    top.set(xlabel="times as fast as the fastest peer", ylabel="layers")
    top.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{2.0**x:g}"))
    top.set_xticks(range(math.floor(edges[0]), math.ceil(edges[-1]) + 1))
    top.legend()
    for operation in OPERATIONS:
        some = [p for p in points if p["operation"] == operation]
        work = [p["in_features"] * p["out_features"] * max(p["batch"], 1) for p in some]
        bottom.scatter(work, [p["ratio"] for p in some], s=11, label=operation, color=COLOURS[operation])
    bottom.axhline(1, color="black", linewidth=1)
    bottom.set(
        xscale="log", yscale="log", xlabel="multiply-adds of one product: rows × in × out", ylabel="times as fast"
    )
    bottom.yaxis.set_major_formatter(PLAIN)
    bottom.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncol=3)
    keep(figure, folder / f"hunt-{isa}.png")


def roofline(results: Figures, isa: str) -> plt.Figure:
    figure, axes = panels(2, 8.5, sharex=True)
    figure.suptitle(f"{isa}, one thread: every operation, vector to 256 rows")
    x = np.geomspace(0.1, 400, 200)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        peak = max(results["limits"]["fma"][dtype].values())
        axis.set(xscale="log", yscale="log", xlim=(0.1, 400), ylim=(1, 200), title=dtype, ylabel="GFLOP/s")
        for name, rate in ceilings(results["limits"]).items():
            axis.plot(x, np.minimum(rate * x, peak) / 1e9, color="#555555", linewidth=1, zorder=1)
            slope = np.degrees(np.arctan(rate / 1e9))
            at = max(0.11, 1.15e9 / rate)
            axis.text(at, 1.08 * rate * at / 1e9, f"{name} {rate / 1e9:.0f} GB/s", fontsize=8.5, color="#555555",
                      rotation=slope, rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip
        axis.annotate(f"multiply-adds {peak / 1e9:.0f} GFLOP/s", (0.12, peak / 1e9), fontsize=8.5, color="#555555",
                      xytext=(0, 4), textcoords="offset points")  # fmt: skip
        for point in results["roofline"]:
            if point["dtype"] != dtype:
                continue
            operation, case = point["operation"], case_of(point)
            work = flops(operation, case)
            axis.scatter(work / traffic(operation, case), work / point["seconds"][OURS] / 1e9, s=26, alpha=0.85,
                         color=COLOURS[operation], marker=MARKERS[case.in_features], linewidth=0, zorder=2)  # fmt: skip
        axis.xaxis.set_major_formatter(PLAIN)
        axis.yaxis.set_major_formatter(PLAIN)
    axes[-1].set_xlabel("operations for each byte that must move")
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in COLOURS.items()]
    handles += [Line2D([], [], color="#555555", marker=marker, linestyle="", label=f"{size} × {size}")
                for size, marker in MARKERS.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure


def bandwidth(runs: Runs) -> plt.Figure:
    figure, axes = panels(len(runs), 3.3 * len(runs), sharex=True)
    figure.suptitle("Bandwidth of one core against the size of the array")
    for axis, (isa, results) in zip(axes, runs.items(), strict=True):
        for kind, label, colour in (
            ("read", "read", "#0072b2"),
            ("rewrite", "read and write back, both counted", "#d55e00"),
        ):
            sizes = [int(size) for size in results["limits"][kind]]
            rates = [max(streams.values()) / 1e9 for streams in results["limits"][kind].values()]
            axis.plot([size / 1024 for size in sizes], rates, "o-", markersize=3, color=colour, label=label)
        axis.set(xscale="log", ylim=0, ylabel="GB/s", title=f"the machine of {ISA_LABELS[isa]}")
        for name, size in results["limits"]["caches"].items():
            axis.axvline(size / 1024, color="#999999", linestyle=":", linewidth=1)
            axis.annotate(name, (size / 1024, 1), xycoords=("data", "axes fraction"), xytext=(-3, -10), ha="right",
                          textcoords="offset points", color="#777777")  # fmt: skip
        ticks = [8, 64, 512, 4096, 32768, 262144]
        axis.set_xticks(ticks, [f"{t} KiB" if t < 1024 else f"{t // 1024} MiB" for t in ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.minorticks_off()
    axes[0].legend(loc="lower left")
    return figure


def ratio_map(results: Figures, operation: str, isa: str) -> plt.Figure:
    figure, axes = panels(2, 8.6)
    norm = TwoSlopeNorm(0, -1, 3)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        found = {case_of(point): point["seconds"] for point in results["grid"][operation] if point["dtype"] == dtype}
        cells = np.full((len(GRID_SHAPES), len(GRID_BATCHES)), np.nan)
        for case, seconds in found.items():
            row, column = GRID_SHAPES.index(case[:2]), GRID_BATCHES.index(case.batch)
            cells[row, column] = value = ratio(seconds)
            initial = LABELS[best_peer(seconds)][0]
            colour = "white" if np.log2(value) > 2.2 or np.log2(value) < -0.7 else "black"
            axis.text(column, row, f"{value:.{1 if value >= 9.95 else 2}f}\n{initial}", ha="center", va="center",
                      fontsize=8.5, linespacing=0.95, color=colour,
                      fontweight="bold" if value < 1 else "normal")  # fmt: skip
        image = axis.imshow(np.log2(cells), cmap="PuOr", norm=norm, aspect="auto")
        axis.set_xticks(range(len(GRID_BATCHES)), ["vec.", *map(str, GRID_BATCHES[1:])])
        axis.set_yticks(range(len(GRID_SHAPES)), [f"{i} × {o}" for i, o in GRID_SHAPES])
        axis.set_title(dtype)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("rows of the batch, by in × out")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1, 2, 3], location="bottom", pad=0.01, aspect=40)
    bar.ax.set_xticklabels(["½", "1", "2", "4", "≥ 8"])
    peers = "NumPy (N), PyTorch (P)" + (", ONNX Runtime (O)" if operation == "forward" else "")
    figure.suptitle(f"{operation}, {isa}, one thread: times as fast as the best of\n{peers}; bold: slower")
    return figure


def forward_map(results: Figures, isa: str) -> plt.Figure:
    return ratio_map(results, "forward", isa)


def backward_map(results: Figures, isa: str) -> plt.Figure:
    return ratio_map(results, "backward", isa)


def size_panels(title: str) -> tuple[plt.Figure, dict[tuple[int, str], plt.Axes]]:
    figure, axes = panels(4, 12, sharex=True)
    figure.suptitle(title)
    keys = [(batch, dtype) for batch in SIZE_BATCHES for dtype in DTYPES]
    for axis, (batch, dtype) in zip(axes, keys, strict=True):
        axis.set(title=f"{f'{batch} rows' if batch else 'vector'}, {dtype}", yscale="log", xlim=(0, 302), ylabel="µs")
        axis.set_xticks(range(0, 301, 32))
        axis.yaxis.set_major_formatter(PLAIN)
    axes[-1].set_xlabel("in = out")
    return figure, dict(zip(keys, axes, strict=True))


def size_curves(results: Figures, isa: str) -> plt.Figure:
    figure, axes = size_panels(f"fastlinear, {isa}, one thread: time against size")
    for curve in results["sizes"]:
        if curve["library"] == OURS:
            axes[curve["batch"], curve["dtype"]].plot(
                curve["sizes"], np.multiply(curve["seconds"], 1e6), linewidth=1, color=COLOURS[curve["operation"]],
                label=curve["operation"])  # fmt: skip
    axes[0, "float32"].legend(loc="upper left", ncol=2)
    return figure


def size_peers(results: Figures, isa: str) -> plt.Figure:
    figure, axes = size_panels(f"{isa}, one thread: forward (solid), backward (dashed)")
    styles = {"forward": "-", "backward": "--"}
    for curve in results["sizes"]:
        if style := styles.get(curve["operation"]):
            library = curve["library"]
            axes[curve["batch"], curve["dtype"]].plot(
                curve["sizes"], np.multiply(curve["seconds"], 1e6), style, linewidth=1, color=LIBRARY_COLOURS[library],
                label=LABELS[library] if style == "-" else None)  # fmt: skip
    axes[0, "float32"].legend(loc="lower right", ncol=3)
    return figure


CALLS = ("layer.forward(x, out=y)", "layer(x)", "y.copy()")
"""Of fastlinear's calls and the yardsticks, those in the picture; of the peers' calls, all."""


def call_bars(runs: Runs) -> plt.Figure:
    wanted = list(dict.fromkeys(
        (group, statement) for results in runs.values() for group, found in results["calls"].items()
        for statement in found if group not in (OURS, "floor") or statement in CALLS))  # fmt: skip
    times = {key: {isa: r["calls"][key[0]][key[1]] for isa, r in runs.items() if key[1] in r["calls"].get(key[0], {})}
             for key in wanted}  # fmt: skip
    wanted.sort(key=lambda key: max(times[key].values()))
    figure, [axis] = panels(1, 0.46 * len(wanted) + 1)
    shapes = dict(zip(runs, ("o", "D", "s", "^"), strict=False))
    for at, (group, statement) in enumerate(wanted):
        figures = ", ".join(f"{seconds * 1e9:,.0f}" for seconds in times[group, statement].values())
        name = "" if group == "floor" else f"{LABELS[group]}: "
        axis.text(
            0.01, at - 0.3, f"{name}{statement}  {figures} ns", transform=axis.get_yaxis_transform(), fontsize=8.5
        )
        axis.axhline(at, color="#dddddd", linewidth=0.6)
        for isa, seconds in times[group, statement].items():
            axis.plot(seconds * 1e9, at, shapes[isa], color=LIBRARY_COLOURS[group], markersize=6)
    axis.set(xscale="log", xlabel="ns", title="A call of Linear(5, 4), one vector, float32", yticks=[],
             ylim=(len(wanted) - 0.4, -0.9))  # fmt: skip
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    handles = [Line2D([], [], color="#555555", marker=shapes[isa], linestyle="", label=ISA_LABELS[isa]) for isa in runs]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles))
    return figure


def thread_bars(runs: Runs) -> plt.Figure:
    figure, axes = panels(len(runs), 4.6 * len(runs))
    figure.suptitle("Two threads, each library in its own process, float32")
    for axis, (isa, results) in zip(axes, runs.items(), strict=True):
        found = {library: {(p["operation"], case_of(p)): p["seconds"] for p in points if p["dtype"] == "float32"}
                 for library, points in results["threads"].items()}  # fmt: skip
        wanted = list(found.get("numpy", {}))
        for at, (library, points) in zip(np.linspace(-0.3, 0.3, 4), found.items(), strict=False):
            rates = [flops(*key) / points[key]["2" if library == OURS else library] / 1e9 if key in points else np.nan
                     for key in wanted]  # fmt: skip
            axis.barh(np.arange(len(wanted)) + at, rates, height=0.19, color=LIBRARY_COLOURS[library],
                      label=LABELS[library])  # fmt: skip
        names = [f"{what}\n{case.in_features}×{case.out_features}, {batch_name(case.batch)}" for what, case in wanted]
        axis.set_yticks(range(len(wanted)), names, fontsize=8.5)
        axis.set(title=ISA_LABELS[isa], xlabel="GFLOP/s")
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncol=2)
    return figure
