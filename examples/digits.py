"""Train a softmax classifier, one Linear(64, 10), on 1,797 real scans of handwritten digits.

    pip install '.[examples]' && python examples/digits.py

It learns twice from the same start: with `backward` and `step`, and with `backward_update`, which does both in one
pass over the weights. Written to the output folder: the weights, and a picture of what was learned.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from fastlinear import Linear

WANTED = 0.95


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def backward_then_step(layer, x, grad_output, lr):
    layer.zero_grad()
    layer.backward(x, grad_output, input_grad=False)
    layer.step(lr)


def backward_update(layer, x, grad_output, lr):
    layer.backward_update(x, grad_output, lr, input_grad=False)


def train(learn, x, digits, options):
    """A layer trained with `learn`, the mean loss of each epoch, and the µs that the layer takes for one step."""
    rng = np.random.default_rng(0)
    layer = Linear(x.shape[1], 10, rng=rng)
    losses, steps, seconds = [], 0, 0.0
    for _ in tqdm(range(options.epochs), desc=learn.__name__, unit="epoch"):
        order = rng.permutation(len(x))
        loss = 0.0
        for start in range(0, len(x), options.batch_size):
            rows = order[start : start + options.batch_size]
            batch, truth = x[rows], (np.arange(len(rows)), digits[rows])

            begin = perf_counter()
            scores = layer(batch)
            seconds += perf_counter() - begin

            # The gradient of the mean cross-entropy: probabilities, minus one at the true digit, over the batch.
            grad_output = softmax(scores)
            loss -= np.log(grad_output[truth] + 1e-12).sum()
            grad_output[truth] -= 1
            grad_output /= len(rows)

            begin = perf_counter()
            learn(layer, batch, grad_output, options.lr)
            seconds += perf_counter() - begin
            steps += 1
        losses.append(loss / len(x))
    return layer, losses, 1e6 * seconds / steps


def accuracy(layer, x, digits):
    return np.mean(layer(x).argmax(axis=1) == digits)


def picture(layer, curves):
    """What each output looks for, as an image, and the losses."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    images, plot = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    images.suptitle("What each output looks for: ink that speaks for the digit is red, against it blue")
    limit = abs(layer.weight).max()
    for digit, axes in enumerate(images.subplots(2, 5).flat):
        image = axes.imshow(layer.weight[digit].reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(digit)
        axes.set_axis_off()
    images.colorbar(image, ax=images.axes, label="weight", shrink=0.8)

    axes = plot.subplots()
    for style, (name, losses) in zip(("-", "--"), curves.items(), strict=True):
        axes.plot(range(1, len(losses) + 1), losses, style, linewidth=2, label=name)
    axes.set(xlabel="epoch", ylabel="mean cross-entropy", title="Loss on the training data")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main():
    parser = argparse.ArgumentParser(description="Train a softmax classifier on scikit-learn's handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.5, help="learning rate")
    parser.add_argument("--output", type=Path, default=Path("digits-output"), help="folder for weights and picture")
    options = parser.parse_args()
    if options.epochs < 1 or options.batch_size < 1:
        parser.error("--epochs and --batch-size must be at least 1")
    options.output.mkdir(parents=True, exist_ok=True)

    images, digits = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    x, x_test, digits, digits_test = train_test_split(x, digits, test_size=0.2, stratify=digits, random_state=0)

    curves = {}
    for learn in (backward_then_step, backward_update):
        layer, losses, microseconds = train(learn, x, digits, options)
        curves[learn.__name__] = losses
        on_train, on_test = accuracy(layer, x, digits), accuracy(layer, x_test, digits_test)
        print(f"{learn.__name__:19} train {on_train:.4f}  test {on_test:.4f}  {microseconds:.1f} µs a step")
        if on_test < WANTED:
            sys.exit(f"{learn.__name__}: test accuracy {on_test:.4f} is below {WANTED}")

    weights = options.output / "digits.safetensors"
    layer.save(weights)
    loaded = Linear.load(weights)
    if not np.array_equal(loaded(x_test), layer(x_test)):
        sys.exit(f"the layer loaded from {weights} predicts something else than the one saved")
    print(f"{weights}: saved, loaded, same predictions")

    picture(layer, curves).savefig(options.output / "digits.png", dpi=150)
    print(f"{options.output / 'digits.png'}: the weights and the losses")


if __name__ == "__main__":
    main()
