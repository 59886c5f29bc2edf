"""Draws the pictures of the documentation, beside this file or in the folder that is named.

    python docs/pictures/draw.py [folder]

Those of the notebook are of the numbers that the page itself computes: its blocks are run, and must give what the page
says. Lines and letters have the reader's colour, dark on light or light on dark (`currentColor`).
"""

import doctest
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from fastlinear import Linear

HERE = Path(__file__).parent
INK = "#010203"  # becomes currentColor
BLUE, RED, GREEN = "#3d85c6", "#d9623b", "#3a9d5d"
SCHEME = "<style>:root{color:#24292f}@media(prefers-color-scheme:dark){:root{color:#d0d4da}}</style>"
STYLE = {
    "font.size": 10,
    "svg.hashsalt": "fastlinear",  # the same file from the same numbers
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def run(page):
    """The variables of a page after all of its blocks."""
    test = doctest.DocTestParser().get_doctest(page.read_text(), {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner()
    if runner.run(test, clear_globs=False).failed:
        sys.exit(f"{page} does not give what it says")
    return test.globs


def save(figure, path):
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    head, tag, body = path.read_text().replace(INK, "currentColor").partition("<defs>")
    path.write_text("\n".join(line.rstrip() for line in (head + SCHEME + tag + body).splitlines()) + "\n")


def canvas(width, height, across, down):
    """A figure in inches and axes without any frame, `across` by `down` squares with the first at the top left."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    return figure, axes


def cell(axes, x, y, colour=INK, strength=0.0, text="", width=1.0, height=1.0, **style):
    axes.add_patch(Rectangle((x, y), width, height, facecolor=(colour, strength), edgecolor=INK, linewidth=0.7))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **style)


def number(axes, x, y, value, most=1.0):
    """A cell with a number: red for positive ones, blue for negative."""
    cell(axes, x, y, RED if value > 0 else BLUE, 0.6 * min(1, abs(value) / most), f"{value:.3f}".replace("-", "−"))


# ---- the notebook


def forward(page):
    """Each product W[o, i] I[i], the biases, the outputs."""
    figure, axes = canvas(5.6, 3.2, 8.9, 5.1)
    products = page["weight"] * page["x"]
    for i in range(5):
        axes.text(i + 0.9, 0.7, f"$W_{{o{i}}} I_{i}$", ha="center")
    axes.text(6.4, 0.7, "$b_o$", ha="center")
    axes.text(8.1, 0.7, "$O_o$", ha="center")
    for o in range(4):
        axes.text(0.2, o + 1.5, f"{o}", ha="center", va="center")
        for i in range(5):
            number(axes, i + 0.4, o + 1, products[o, i])
        axes.text(5.65, o + 1.5, "+", ha="center", va="center")
        number(axes, 5.9, o + 1, page["bias"][o])
        axes.text(7.25, o + 1.5, "=", ha="center", va="center")
        number(axes, 7.6, o + 1, page["output"][o])
    return figure


def outer_product(page):
    """g beside, I above, gradWeight between."""
    figure, axes = canvas(5.2, 3.2, 7.4, 5.6)
    axes.text(1.35, 0.6, "$I$", ha="center", va="center")
    axes.text(0.6, 1.2, "$g$", ha="center", va="center")
    axes.text(6.95, 3.5, "gradWeight", ha="center", va="center", rotation=270)
    for i in range(5):
        number(axes, i + 1.6, 0.1, page["x"][i])
    for o in range(4):
        number(axes, 0.1, o + 1.5, page["g"][o])
        for i in range(5):
            number(axes, i + 1.6, o + 1.5, page["g"][o] * page["x"][i])
    return figure


def differences(page):
    """L along three weights with the tangents that grad_weight gives; the error of differences against h."""
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    curve, errors = figure.subplots(2, 1)
    gradient = np.outer(page["g"], page["x"])

    def loss(index=(0, 0), move=0.0):
        weight = page["weight"].copy()
        weight[index] += move
        return np.sum((Linear.from_weights(weight, page["bias"])(page["x"]) - page["target"]) ** 2) / 2

    moves = np.linspace(-2, 1, 61)
    for index, colour in zip(((1, 0), (3, 1), (0, 2)), (RED, BLUE, GREEN), strict=True):
        slope = gradient[index]
        curve.plot(moves, [loss(index, move) for move in moves], color=colour, label=f"$W_{{{index[0]}{index[1]}}}$")
        near = np.array([-0.6, 0.6])
        curve.plot(near, loss() + slope * near, "--", color=INK, linewidth=1.2)
    curve.plot(0, loss(), "o", color=INK)
    curve.set(xlabel="the weight moves by", ylabel="$L$", title="Tangents (dashed) have the slope gradWeight")
    curve.legend(frameon=False)

    sizes, index = 10.0 ** np.arange(-13, 0.25, 0.25), (1, 0)
    slope, here = gradient[index], loss()
    one_sided = [abs((loss(index, h) - here) / h - slope) for h in sizes]
    central = [abs((loss(index, h) - loss(index, -h)) / (2 * h) - slope) for h in sizes]
    errors.loglog(sizes, one_sided, "o-", markersize=3, color=RED, label="one-sided")
    errors.loglog(sizes, central, "s-", markersize=3, color=BLUE, label="central")
    errors.set(xlabel="$h$", ylabel="error of the slope", title="Differences against gradWeight")
    errors.legend(frameon=False)
    return figure


def learning(page):
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(page["losses"], color=BLUE, linewidth=2)
    axes.set(xlabel="step", ylabel="$L$", title="One layer learns what another does")
    axes.grid(alpha=0.2, color=INK)
    return figure


# ---- how it is fast


def arrow(axes, begin, end, colour=INK):
    axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.1))


def dot_tile():
    """Rows of x beside, rows of W above, a vector of sums for each pair."""
    figure, axes = canvas(5.4, 4.5, 10.8, 9)
    for r in range(6):
        cell(axes, 0.2, 3.2 + r * 0.9, BLUE, 0.45 if r == 2 else 0.2, height=0.7, width=3.2)
        cell(axes, 1.4, 3.2 + r * 0.9, BLUE, 0.5, height=0.7, width=0.8)
    axes.text(1.8, 8.85, "6 rows of x", ha="center")
    for c in range(4):
        x = 4.2 + c * 1.6
        cell(axes, x, 0.2, RED, 0.45 if c == 1 else 0.2, height=2.4, width=1.2)
        cell(axes, x, 1.1, RED, 0.5, height=0.6, width=1.2)
        for r in range(6):
            on = r == 2 and c == 1
            cell(axes, x, 3.2 + r * 0.9, GREEN, 0.75 if on else 0.3, "Σ", width=1.2, height=0.7)
    axes.text(10.5, 1.4, "4 rows of W", rotation=270, ha="center", va="center")
    axes.text(7.2, 8.85, "24 vectors of sums, in registers", ha="center")
    arrow(axes, (0.3, 2.95), (3.3, 2.95))
    axes.text(0.3, 2.75, "k, a vector at a time", fontsize=9)
    arrow(axes, (3.95, 0.3), (3.95, 2.5))
    axes.text(3.7, 1.4, "k", ha="center", va="center")
    return figure


def axpy_tile():
    """Scalars of a beside, a row of v above, whole vectors of y between."""
    figure, axes = canvas(5.4, 4.2, 10.8, 8.4)
    for r in range(6):
        for s in range(4):
            cell(axes, 0.2 + s * 0.7, 2.4 + r * 0.9, BLUE, 0.7 if s == 1 else 0.2, height=0.7, width=0.7)
        for c in range(4):
            cell(axes, 3.7 + c * 1.7, 2.4 + r * 0.9, GREEN, 0.35, "Σ", height=0.7, width=1.6)
    for c in range(4):
        for s in range(3):
            strong = 0.7 if s == 1 else 0.2
            cell(axes, 3.7 + c * 1.7, 0.2 + s * 0.6, RED, strong, height=0.5, width=1.6)
    axes.text(1.6, 8.2, "6 numbers a step", ha="center")
    axes.text(7.05, 8.2, "24 vectors of sums, in registers", ha="center")
    arrow(axes, (0.3, 2.1), (2.9, 2.1))
    axes.text(1.6, 1.9, "steps", ha="center", fontsize=9)
    arrow(axes, (3.4, 0.2), (3.4, 1.9))
    axes.text(3.1, 1.0, "steps", rotation=90, ha="center", va="center", fontsize=9)
    axes.text(10.62, 1.0, "4 vectors", rotation=270, ha="center", va="center", fontsize=9)
    return figure


def order():
    """From products to one output: lanes, the tree over lanes, blocks, long blocks."""
    figure, axes = canvas(5.4, 5.5, 10.8, 11)
    axes.text(0.2, 0.5, "1. Element k goes to lane k mod 8: a chain in each lane")
    for row in range(3):
        for lane in range(8):
            strength = 0.5 if lane == 3 else 0.12
            k = 8 * row + lane
            cell(axes, 0.2 + lane * 1.3, 0.8 + row * 0.6, RED, strength, str(k), 1.3, 0.6, fontsize=8)
    for lane in range(8):
        arrow(axes, (0.85 + lane * 1.3, 2.6), (0.85 + lane * 1.3, 3.15), RED if lane == 3 else INK)
    axes.text(0.2, 3.75, "2. Lane l and lane l + 4, then l + 2, l + 1")
    for level in range(4):
        lanes = 8 >> level
        for lane in range(lanes):
            cell(axes, 0.2 + lane * 1.3, 4.05 + level * 0.72, GREEN, 0.3, str(lane), 1.3, 0.55, fontsize=8)
    axes.text(1.8, 6.5, "the sum of a block: 4 KiB of k, 1,024 elements", va="center", fontsize=9)
    axes.text(0.2, 7.9, "3. Block after block, 32 of them make a long block")
    for at, block in enumerate((0, 1, 2, 3, 4, 5, "…", 31)):
        cell(axes, 0.2 + at * 1.1, 8.2, BLUE, 0.3, str(block), 0.8, 0.55)
        if at < 7:
            axes.text(1.15 + at * 1.1, 8.48, "+", ha="center", va="center", fontsize=9)
    axes.text(0.2, 9.5, "4. Long block after long block, and the bias last")
    for block in range(3):
        cell(axes, 0.2 + block * 2.6, 9.8, BLUE, 0.5, ("0 … 32,767", "… 65,535", "…")[block], 2.2, 0.6, fontsize=8)
        axes.text(2.6 + block * 2.6, 10.1, "+", ha="center", va="center", fontsize=9)
    cell(axes, 8.0, 9.8, RED, 0.3, "bias", 1.4, 0.6, fontsize=8)
    return figure


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    page = run(HERE.parent / "notebook.md")
    with mpl.rc_context(STYLE):
        for picture in (forward, outer_product, differences, learning):
            save(picture(page), folder / f"{picture.__name__.replace('_', '-')}.svg")
        for picture in (dot_tile, axpy_tile, order):
            save(picture(), folder / f"{picture.__name__.replace('_', '-')}.svg")


if __name__ == "__main__":
    main()
