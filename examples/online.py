"""Learn from a stream, one row at a time: predict the digit, see the truth, learn, next row.

    pip install '.[examples]' && python examples/online.py

Each row is predicted before it is learned, so the share of right predictions needs no test data (progressive
validation: Blum, Kalai and Langford, COLT 1999). The model is one logistic regression for each digit, which is what
scikit-learn's SGDClassifier makes of ten classes: here all ten are one Linear(64, 10). NumPy, scikit-learn and PyTorch
do the same arithmetic on the same rows, so all must predict (nearly) the same, and the rows a second compare. They take
turns, a piece of the stream each; the figures are medians over the pieces.
"""

import argparse
import sys
from time import perf_counter

import numpy as np
from scipy.special import expit  # 1 / (1 + exp(-x)); scikit-learn brings SciPy with it
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from tqdm import tqdm

from fastlinear import Linear, set_num_threads

try:
    import torch
except ImportError:
    torch = None

FEATURES, CLASSES = 64, 10
PIECE = 100  # rows until the next has its turn
LEARN_ALONE = 300  # rows, to time learning without predictions
LATEST = 500  # rows at the end of the stream, of which WANTED must be predicted right
WANTED = 0.85


class Fastlinear:
    def __init__(self, lr):
        self.lr = lr
        self.layer = Linear.from_weights(np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32))
        self.scores = np.empty(CLASSES, np.float32)

    def predict(self, x):
        return self.layer(x, out=self.scores).argmax()

    def learn(self, x, digit):
        # The gradient of the log loss: the probability of each digit, minus one at the true one.
        grad_output = expit(self.layer(x, out=self.scores), out=self.scores)
        grad_output[digit] -= 1
        self.layer.backward_update(x, grad_output, self.lr, input_grad=False)


class NumPy:
    def __init__(self, lr):
        self.lr = lr
        self.weight, self.bias = np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32)
        self.scores, self.change = np.empty(CLASSES, np.float32), np.empty_like(self.weight)

    def forward(self, x):
        return np.add(np.dot(self.weight, x, out=self.scores), self.bias, out=self.scores)

    def predict(self, x):
        return self.forward(x).argmax()

    def learn(self, x, digit):
        grad_output = expit(self.forward(x), out=self.scores)
        grad_output[digit] -= 1
        grad_output *= self.lr
        self.weight -= np.multiply(grad_output[:, None], x, out=self.change)
        self.bias -= grad_output


class ScikitLearn:
    def __init__(self, lr):
        self.model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=lr)
        self.classes = np.arange(CLASSES)

    def predict(self, x):
        return self.model.predict(x[None])[0] if hasattr(self.model, "coef_") else 0

    def learn(self, x, digit):
        self.model.partial_fit(x[None], [digit], classes=self.classes)


class PyTorchModule:
    """As a training loop in PyTorch is usually written."""

    def __init__(self, lr):
        self.layer = torch.nn.Linear(FEATURES, CLASSES)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr, foreach=False)

    def predict(self, x):
        with torch.inference_mode():
            return int(self.layer(torch.from_numpy(x)).argmax())

    def learn(self, x, digit):
        target = torch.zeros(CLASSES)
        target[digit] = 1
        self.optimizer.zero_grad()
        scores = self.layer(torch.from_numpy(x))
        torch.nn.functional.binary_cross_entropy_with_logits(scores, target, reduction="sum").backward()
        self.optimizer.step()


class PyTorchByHand:
    """Without autograd, in memory that is there already."""

    def __init__(self, lr):
        self.lr = lr
        self.weight, self.bias, self.scores = torch.zeros(CLASSES, FEATURES), torch.zeros(CLASSES), torch.zeros(CLASSES)

    def forward(self, x):
        return torch.addmv(self.bias, self.weight, x, out=self.scores)

    def predict(self, x):
        return int(self.forward(torch.from_numpy(x)).argmax())

    def learn(self, x, digit):
        x = torch.from_numpy(x)
        grad_output = self.forward(x).sigmoid_()
        grad_output[digit] -= 1
        self.weight.addr_(grad_output, x, alpha=-self.lr)
        self.bias.sub_(grad_output, alpha=self.lr)


LEARNERS = {"fastlinear": Fastlinear, "NumPy": NumPy, "scikit-learn": ScikitLearn}
if torch is not None:
    LEARNERS |= {"PyTorch, by hand": PyTorchByHand, "PyTorch, autograd": PyTorchModule}


def stream(rows, seed):
    """The 1,797 scans again and again, in a new order each time: x (rows, 64) in [0, 1], and the digits, plain ints."""
    rng = np.random.default_rng(seed)
    images, digits = load_digits(return_X_y=True)
    rounds = -(-rows // len(digits))
    order = np.concatenate([rng.permutation(len(digits)) for _ in range(rounds)])[:rows]
    return (images / 16).astype(np.float32)[order], digits[order].tolist()


def predict_and_learn(learner, x, digits):
    """The predictions, each made before its row was learned."""
    predictions = []
    for row, digit in zip(x, digits, strict=True):
        predictions.append(learner.predict(row))
        learner.learn(row, digit)
    return predictions


def learn_only(learner, x, digits):
    for row, digit in zip(x, digits, strict=True):
        learner.learn(row, digit)


def run(work, x, digits, lr):
    """For each learner, new at the start: rows a second (the median over the pieces), and what `work` returned."""
    learners = {name: make(lr) for name, make in LEARNERS.items()}
    rates, results = {name: [] for name in learners}, {name: [] for name in learners}
    for start in tqdm(range(0, len(x), PIECE), desc=work.__name__, unit_scale=PIECE, unit="row"):
        piece = slice(start, start + PIECE)
        for name, learner in learners.items():
            begin = perf_counter()
            result = work(learner, x[piece], digits[piece])
            rates[name].append(len(x[piece]) / (perf_counter() - begin))
            results[name].extend(result or ())
    return {name: np.median(rates[name]) for name in learners}, results


def main():
    parser = argparse.ArgumentParser(description="Learn scikit-learn's handwritten digits from a stream, row by row.")
    parser.add_argument("--rows", type=int, default=3000, help="of the stream")
    parser.add_argument("--lr", type=float, default=0.2, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error(f"--rows must be at least 1, or there is nothing to learn from; got {options.rows}")
    if torch is None:
        print("PyTorch is not installed and is left out")
    else:
        torch.set_num_threads(1)
    set_num_threads(1)

    x, digits = stream(options.rows, options.seed)
    both, predictions = run(predict_and_learn, x, digits, options.lr)
    learning, _ = run(learn_only, x[:LEARN_ALONE], digits[:LEARN_ALONE], options.lr)

    truth, ours = np.array(digits), np.array(predictions["fastlinear"])
    print(f"{len(x):,} rows, one after another" + " " * 12 + "rows a second")
    print(f"{'':18} right predictions  predict, learn     learn alone")
    for name in LEARNERS:
        right = np.mean(predictions[name] == truth)
        print(f"{name:18} {right:17.4f} {both[name]:15,.0f} {learning[name]:15,.0f}")
    for name, theirs in predictions.items():
        if np.mean(ours == theirs) < 0.999:
            sys.exit(f"{name} and fastlinear disagree on {np.sum(ours != theirs)} of {len(x)} rows")
    latest = np.mean((ours == truth)[-LATEST:])
    print(f"right predictions in the last {LATEST} rows: {latest:.4f}")
    if latest < WANTED:
        sys.exit(f"that is below {WANTED}")


if __name__ == "__main__":
    main()
