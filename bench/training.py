"""Optimisers and losses beside PyTorch's and NumPy's: python bench/training.py

One thread each, float32, medians of interleaved rounds, µs a call. NumPy is written by hand with out= everywhere; PyTorch
runs its fused optimisers, and its losses with autograd, which is how it comes to the gradient. *Floor* is a pass that
moves the same bytes as the optimiser and adds one to each.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from timing import Work, interleave

import fastlinear
from fastlinear import SGD, Adam, Linear, losses


class Net:
    """The least that a model is."""

    def __init__(self, *sizes: int) -> None:
        self.layers = [Linear(i, o, rng=0) for i, o in zip(sizes, sizes[1:], strict=False)]


NETS = [(8, 64, 64, 2), (784, 256, 10), (1024, 1024), (4096, 4096)]
SCORES = [(1, 10), (32, 10), (64, 1), (256, 1000), (10_000, 1)]

ADAM = """
for p, g, m, v, t in memory:
    np.multiply(m, 0.9, out=m)
    np.multiply(g, 0.1, out=t)
    np.add(m, t, out=m)
    np.multiply(v, 0.999, out=v)
    np.multiply(g, g, out=t)
    np.multiply(t, 0.001, out=t)
    np.add(v, t, out=v)
    np.sqrt(v, out=t)
    np.multiply(t, correction, out=t)
    np.add(t, 1e-8, out=t)
    np.divide(m, t, out=t)
    np.multiply(t, rate, out=t)
    np.subtract(p, t, out=p)
"""
MOMENTUM = """
for p, g, m, v, t in memory:
    np.multiply(m, 0.9, out=m)
    np.add(m, g, out=m)
    np.multiply(m, rate, out=t)
    np.subtract(p, t, out=p)
"""
SOFTMAX = """
np.subtract(scores, scores.max(axis=1, keepdims=True), out=out)
picked = out[rows, labels]
np.exp(out, out=out)
total = out.sum(axis=1, keepdims=True)
np.divide(out, total, out=out)
out[rows, labels] -= 1
np.divide(out, len(scores), out=out)
loss = float((np.log(total[:, 0]) - picked).mean())
"""
LOGISTIC = """
np.negative(scores, out=out)
np.exp(out, out=out)
np.add(out, 1, out=out)
loss = float((np.log(out) + scores * (1 - held)).mean())
np.reciprocal(out, out=out)
np.subtract(out, held, out=out)
np.divide(out, len(scores), out=out)
"""
FLOORS = {"Adam": "np.add(a, 1, out=a); np.add(b, 1, out=b); np.add(c, d, out=c)",
          "SGD momentum": "np.add(a, 1, out=a); np.add(b, d, out=b)"}  # fmt: skip


def optimisers(sizes: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Work]]]:
    """What is timed of a step over a net."""
    for name in ("Adam", "SGD momentum"):
        net = Net(*sizes)
        for layer in net.layers:
            layer.grad_weight[...], layer.grad_bias[...] = 0.01, 0.01
        ours = Adam(net) if name == "Adam" else SGD(net, momentum=0.9)
        arrays = [p.copy() for layer in net.layers for p in (layer.weight, layer.bias)]
        memory = [[p, np.full_like(p, 0.01), np.zeros_like(p), np.zeros_like(p), np.empty_like(p)] for p in arrays]
        tensors = [torch.nn.Parameter(torch.tensor(p)) for p in arrays]
        for tensor in tensors:
            tensor.grad = torch.full_like(tensor, 0.01)
        theirs = (torch.optim.Adam(tensors, fused=True) if name == "Adam"
                  else torch.optim.SGD(tensors, momentum=0.9, fused=True))  # fmt: skip
        flat = np.ones((4, sum(p.size for p in arrays)), np.float32)
        by_hand = ADAM if name == "Adam" else MOMENTUM
        yield name, {
            "fastlinear": Work("step()", {"step": ours.step}),
            "NumPy": Work(by_hand, {"np": np, "memory": memory, "rate": 1e-3, "correction": 1.0}),
            "PyTorch": Work("step()", {"step": theirs.step}),
            "floor": Work(FLOORS[name], {"np": np} | dict(zip("abcd", flat, strict=True))),
        }


def losses_of(shape: tuple[int, int]) -> dict[str, Work]:
    """What is timed of log_loss at a shape."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(shape, np.float32)
    labels = rng.integers(0, max(shape[1], 2), shape[0])
    held, out = labels[:, None].astype(np.float32), np.empty_like(scores)
    tensor, f = torch.tensor(scores, requires_grad=True), torch.nn.functional
    names = {"np": np, "scores": scores, "labels": labels, "held": held, "out": out, "rows": np.arange(shape[0])}
    theirs = "f.cross_entropy(x, y).backward()" if shape[1] > 1 else "f.binary_cross_entropy_with_logits(x, y).backward()"
    return {
        "fastlinear": Work("log_loss(scores, labels, out)", names | {"log_loss": losses.log_loss}),
        "NumPy": Work(SOFTMAX if shape[1] > 1 else LOGISTIC, names),
        "PyTorch": Work(theirs, {"f": f, "x": tensor, "y": torch.tensor(labels if shape[1] > 1 else held)}),
    }


def row(what: str, seconds: dict[str, float]) -> str:
    ours = seconds["fastlinear"]
    cells = [f"{ours * 1e6:.3g}"]
    cells += [f"{seconds[name] * 1e6:.3g} ({seconds[name] / ours:.2f})" if name in seconds else ""
              for name in ("NumPy", "PyTorch", "floor")]  # fmt: skip
    return f"| {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare optimisers and losses with PyTorch's and NumPy's.")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each comparison, about")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fastlinear.set_num_threads(1)
    print(f"<!-- PyTorch {torch.__version__}, {fastlinear.isa}: python bench/training.py -->")
    print("| what | fastlinear | NumPy (times ours) | PyTorch | floor |")
    print("| :-- | --: | --: | --: | --: |")
    for sizes in NETS:
        for name, works in optimisers(sizes):
            print(row(f"{name}, {'-'.join(map(str, sizes))}", interleave(works, options.seconds)), flush=True)
    for shape in SCORES:
        print(row(f"log_loss, {shape[0]} x {shape[1]}", interleave(losses_of(shape), options.seconds)), flush=True)


if __name__ == "__main__":
    main()
