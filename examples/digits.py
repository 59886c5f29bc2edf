"""Train a softmax classifier, one Linear(64, 10), and a net of 64-32-10 on 1,797 real scans of handwritten digits.

    pip install '.[examples]' && python examples/digits.py

The one layer learns twice from the same start: with `backward` and `step`, and with `backward_update`, which does both
in one pass over the weights. The net has 32 relu units between its two layers and learns with Adam. The weights of both
and a picture of what was learned are written to the output folder.
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

from fastlinear import Adam, Linear, Sequential, losses

WANTED = 0.95


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
    curve, steps, seconds = [], 0, 0.0
    for _ in tqdm(range(options.epochs), desc=learn.__name__, unit="epoch"):
        order = rng.permutation(len(x))
        loss = 0.0
        for start in range(0, len(x), options.batch_size):
            rows = order[start : start + options.batch_size]
            batch = x[rows]

            begin = perf_counter()
            scores = layer(batch)
            seconds += perf_counter() - begin

            loss_of_batch, grad_output = losses.log_loss(scores, digits[rows])
            loss += loss_of_batch * len(rows)

            begin = perf_counter()
            learn(layer, batch, grad_output, options.lr)
            seconds += perf_counter() - begin
            steps += 1
        curve.append(loss / len(x))
    return layer, curve, 1e6 * seconds / steps


def train_net(x, digits, options):
    """A net trained with Adam, the mean loss of each epoch, and the µs of a whole step."""
    rng = np.random.default_rng(0)
    net = Sequential(Linear(x.shape[1], 32, rng=rng), "relu", Linear(32, 10, rng=rng))
    optimiser, curve, steps, seconds = Adam(net, lr=0.01), [], 0, 0.0
    for epoch in tqdm(range(options.epochs), desc="net_with_adam", unit="epoch"):
        optimiser.lr = 0.01 * (1 - epoch / options.epochs)
        order = rng.permutation(len(x))
        loss = 0.0
        for start in range(0, len(x), options.batch_size):
            rows = order[start : start + options.batch_size]
            batch, truth = x[rows], digits[rows]

            begin = perf_counter()
            tape = net.record(batch)
            loss_of_batch, grad_output = losses.log_loss(tape.output, truth)
            optimiser.zero_grad()
            net.backward(tape, grad_output, input_grad=False)
            optimiser.step()
            seconds += perf_counter() - begin

            loss += loss_of_batch * len(rows)
            steps += 1
        curve.append(loss / len(x))
    return net, curve, 1e6 * seconds / steps


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
    for style, (name, curve) in zip(("-", "--", "-."), curves.items(), strict=True):
        axes.plot(range(1, len(curve) + 1), curve, style, linewidth=2, label=name)
    axes.set(xlabel="epoch", ylabel="mean cross-entropy", title="Loss on the training data")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main():
    parser = argparse.ArgumentParser(
        description="Train a softmax classifier and a net on scikit-learn's handwritten digits."
    )
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

    def report(name, model, curve, microseconds):
        curves[name] = curve
        on_train, on_test = accuracy(model, x, digits), accuracy(model, x_test, digits_test)
        print(f"{name:19} train {on_train:.4f}  test {on_test:.4f}  {microseconds:.1f} µs a step")
        if on_test < WANTED:
            sys.exit(f"{name}: test accuracy {on_test:.4f} is below {WANTED}")

    for learn in (backward_then_step, backward_update):
        layer, curve, microseconds = train(learn, x, digits, options)
        report(learn.__name__, layer, curve, microseconds)
    net, curve, microseconds = train_net(x, digits, options)
    report("net_with_adam", net, curve, microseconds)

    for model, name in ((layer, "digits"), (net, "digits-net")):
        weights = options.output / f"{name}.safetensors"
        model.save(weights)
        loaded = type(model).load(weights)
        if not np.array_equal(loaded(x_test), model(x_test)):
            sys.exit(f"what was loaded from {weights} predicts something else than what was saved")
        print(f"{weights}: saved, loaded, same predictions")

    picture(layer, curves).savefig(options.output / "digits.png", dpi=150)
    print(f"{options.output / 'digits.png'}: the weights and the losses")


if __name__ == "__main__":
    main()
