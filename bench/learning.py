"""Rows a second of Linear.learn beside scikit-learn's compiled loop and ten lines of numba; loss over rows by AdaGrad.

    pip install '.[bench]' && python bench/learning.py

Prints the tables of docs/learn.md and draws its pictures (two minutes). float32, log_loss, rows in order, one thread;
times are processor time, taken in turns (timing.py). numba's loop adds in any order (fastmath) and computes no losses.
scikit-learn's includes what partial_fit does before its loop. What is not installed is left out.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from timing import Work, interleave
from tqdm import tqdm

import fastlinear
from fastlinear import Linear

try:
    from numba import njit
except ImportError:
    njit = None
try:
    from sklearn.linear_model import SGDClassifier
except ImportError:
    SGDClassifier = None

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
BYTES = 1 << 24  # of rows to a call, which L3 holds
FEATURES = 2, 4, 8, 20, 64, 200, 784, 2000
SECONDS = 2.0  # for one comparison


def loop(x: Any, y: Any, w: Any, b: Any, lr: Any) -> Any:
    for i in range(x.shape[0]):
        score = b
        for j in range(x.shape[1]):
            score += x[i, j] * w[j]
        step = lr * (np.float32(1) / (np.float32(1) + np.exp(-score)) - y[i])
        b -= step
        for j in range(x.shape[1]):
            w[j] -= step * x[i, j]
    return b


def learners(features: int, classes: int) -> tuple[int, dict[str, Work]]:
    """Rows to a call, and the calls."""
    rng = np.random.default_rng(0)
    rows = BYTES // 4 // features // max(classes - 1, 1)
    x, y = rng.random((rows, features), np.float32) - 0.5, rng.integers(0, classes, rows)
    outputs = 1 if classes == 2 else classes
    names: dict[str, Any] = {"x": x, "y": y, "layer": Linear(features, outputs, rng=0), "classes": np.arange(classes)}
    works = {"fastlinear": Work("layer.learn(x, y, 0.01, 'log_loss')", names)}
    if SGDClassifier is not None:
        names["model"] = SGDClassifier(
            loss="log_loss", penalty=None, learning_rate="constant", eta0=0.01, shuffle=False
        )
        works["scikit-learn"] = Work("model.partial_fit(x, y, classes)", names)
    if njit is not None and classes == 2:
        names |= {"loop": njit(loop, fastmath=True), "reals": y.astype(np.float32), "w": np.zeros(features, np.float32)}
        names |= {"zero": np.float32(0), "lr": np.float32(0.01)}
        works["numba"] = Work("loop(x, reals, w, zero, lr)", names)
    return rows, works


def rows_a_second() -> None:
    rates: dict[str, dict[int, float]] = {}
    for features in tqdm(FEATURES, "rows a second"):
        rows, works = learners(features, 2)
        for name, seconds in interleave(works, SECONDS).items():
            rates.setdefault(name, {})[features] = rows / seconds / 1e6
    print("| million rows a second | " + " | ".join(map(str, FEATURES)) + " features |")
    print("| :-- |" + " --: |" * len(FEATURES))
    for name, values in rates.items():
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in values.values()) + " |")
    _, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, values in rates.items():
        axes.loglog([*values], [*values.values()], "o-", label=name)
    axes.set(xlabel="features", ylabel="million rows a second", xticks=FEATURES, xticklabels=map(str, FEATURES))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    plt.savefig(PICTURES / "learn-speed.png", dpi=120)

    rows, works = learners(64, 10)
    ten = interleave(works, SECONDS)
    print("\n10 classes, 64 features, million rows a second:")
    print(", ".join(f"{name} {rows / seconds / 1e6:.2f}" for name, seconds in ten.items()))
    names = {"layer": Linear(64, 1, rng=0), "x": np.ones(64, np.float32), "out": np.empty(1, np.float32)}
    one = interleave(
        {
            "learn": Work("layer.learn(x, 1, 0.01, loss='log_loss')", names),
            "forward": Work("layer.forward(x, out=out)", names),
        },
        SECONDS / 2,
    )
    print("\none row of 64 features, ns a call:", ", ".join(f"{name} {1e9 * s:.0f}" for name, s in one.items()))


def loss_over_rows() -> None:
    """Features of unlike scales: plain steps, as large as they can be, and AdaGrad's."""
    rng = np.random.default_rng(0)
    rows, features = 1 << 17, 20
    standard = rng.standard_normal((rows, features))
    y = (standard @ rng.standard_normal(features) + rng.logistic(size=rows) > 0).astype(int)
    x = (standard * 10 ** rng.uniform(-2, 1, features)).astype(np.float32)
    cuts = [0, *2 ** np.arange(4, 18)]
    _, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, lr, adaptive in (
        ("lr=0.0001", 1e-4, False),
        ("lr=0.001", 1e-3, False),
        ("lr=0.01", 1e-2, False),
        ("adaptive, lr=0.3", 0.3, True),
    ):
        layer = Linear.from_weights(np.zeros((1, features), np.float32), np.zeros(1, np.float32))
        losses = [layer.learn(x[a:b], y[a:b], lr, "log_loss", adaptive=adaptive) for a, b in pairwise(cuts)]
        axes.semilogx(cuts[1:], losses, "o-", label=name)
    axes.set(xlabel="rows", ylabel="loss of the rows since the last point", ylim=(0, 1.5))
    axes.grid(alpha=0.3)
    axes.legend()
    plt.savefig(PICTURES / "learn-loss.png", dpi=120)


def main() -> None:
    fastlinear.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows_a_second()
    loss_over_rows()


if __name__ == "__main__":
    main()
