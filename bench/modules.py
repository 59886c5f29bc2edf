"""``fastlinear.torch.Linear`` beside ``torch.nn.Linear``, in PyTorch: python bench/modules.py

One thread each, float32, medians of interleaved rounds, µs a call. *Forward* is without autograd (torch.no_grad), *with
backward* is with it: the gradients of the input, the weights and the bias, accumulated into tensors that are there.
"""

import argparse
from collections.abc import Iterator

import torch
from timing import Work, interleave
from torch import nn

import fastlinear
from fastlinear.torch import Linear

# (rows or 0 for a vector, in_features, out_features)
SHAPES = [
    (0, 4, 2),
    (1, 64, 64),
    (0, 1024, 1024),
    (8, 1024, 1024),
    (2, 479, 1024),
    (32, 784, 10),
    (32, 784, 256),
    (64, 13, 512),
    (256, 256, 256),
    (64, 1024, 1024),
    (256, 1024, 1024),
    (1, 4096, 4096),
]


def microseconds(seconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{seconds * 1e6:.0f}" if seconds > 1e-4 else f"{seconds * 1e6:.3g}"


def works(shape: tuple[int, int, int]) -> Iterator[dict[str, Work]]:
    """What is timed at a shape: forward, then forward and backward, each on both modules."""
    rows, in_features, out_features = shape
    batch = (rows,) if rows else ()
    ours = Linear(in_features, out_features)
    theirs = nn.Linear(in_features, out_features)
    theirs.load_state_dict(ours.state_dict())
    modules = {"ours": ours, "theirs": theirs}
    x, gradient = torch.randn(*batch, in_features), torch.randn(*batch, out_features)
    yield {name: Work("module(x)", {"module": m, "x": x}, torch.no_grad) for name, m in modules.items()}
    x.requires_grad_()
    yield {
        name: Work("module(x).backward(gradient)", {"module": m, "x": x, "gradient": gradient})
        for name, m in modules.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare fastlinear.torch.Linear with torch.nn.Linear.")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each comparison, about")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fastlinear.set_num_threads(1)
    print(f"<!-- PyTorch {torch.__version__}, {fastlinear.isa}: python bench/modules.py -->")
    print(
        "| rows | in → out | forward, fastlinear | nn.Linear | ratio | with backward, fastlinear | nn.Linear | ratio |"
    )
    print("| :-- | :-- | --: | --: | --: | --: | --: | --: |")
    for shape in SHAPES:
        cells = []
        for pair in works(shape):
            ours, theirs = interleave(pair, options.seconds).values()
            cells += [microseconds(ours), microseconds(theirs), f"{theirs / ours:.2f}"]
        rows, in_features, out_features = shape
        print("|", " | ".join([str(rows or "vector"), f"{in_features} → {out_features}", *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
