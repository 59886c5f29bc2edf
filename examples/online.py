"""Learn from a stream on the disk in one pass, and print on the way how well it goes.

    pip install '.[examples]' && python examples/online.py
    python examples/online.py --rows 50_000_000       # 4 GB, in half a minute

First the stream is made. A row has 20 features of unlike scales, and its label is drawn with a probability that is a
logistic function of some of them. The stream is in two files of NumPy's that are mapped, so they can be larger than
memory. One call of `learn` goes over a piece; the weights have the same bits wherever the stream is cut. Each row's
loss is taken before its step, so the mean says how well the model does on rows that it has not seen (progressive
validation: Blum, Kalai and Langford, COLT 1999). It is printed at each power of two, as Vowpal Wabbit does. In the
end others learn the first rows: scikit-learn, which must find the same weights, and river and Vowpal Wabbit if they
are installed.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from sklearn.linear_model import SGDClassifier
from tqdm import tqdm

from fastlinear import Linear

try:
    from river import linear_model, optim
except ImportError:
    linear_model = None
try:
    import vowpalwabbit
except ImportError:
    vowpalwabbit = None

FEATURES = 20
MADE_AT_ONCE = 1 << 16  # rows
PIECE = 1 << 20  # rows to a call at most, so that the progress bar moves


def make(folder, rows, seed):
    """The stream: X (rows, 20) float32 and y (rows,) int8, mapped."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=FEATURES) * (rng.random(FEATURES) < 0.5)
    scales = 10 ** rng.uniform(-1, 0.5, FEATURES)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, FEATURES))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int8, (rows,))
    with tqdm(total=rows, desc="making the stream", unit="row", unit_scale=True) as progress:
        for begin in range(0, rows, MADE_AT_ONCE):
            end = min(begin + MADE_AT_ONCE, rows)
            standard = rng.standard_normal((end - begin, FEATURES), np.float32)
            x[begin:end] = standard * scales
            y[begin:end] = rng.random(end - begin) < 1 / (1 + np.exp(-2 * (standard @ truth)))
            progress.update(end - begin)
    x.flush(), y.flush()
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def pieces(rows):
    """Where to cut: at each power of two, and after PIECE rows."""
    begin = 0
    while begin < rows:
        end = min(2 * begin or 1, begin + PIECE, rows)
        yield begin, end
        begin = end


def learn(layer, x, y, lr, adaptive):
    """One pass. Prints the mean loss of all rows and of those since the last line; returns the mean, and seconds."""
    total = since = seconds = 0.0
    printed = 0
    print(f"{'average':>10} {'since':>10} {'rows':>12}\n{'loss':>10} {'last':>10}")
    with tqdm(total=len(x), desc="learning", unit="row", unit_scale=True) as progress:
        for begin, end in pieces(len(x)):
            start = perf_counter()
            loss = layer.learn(x[begin:end], y[begin:end], lr, loss="log_loss", adaptive=adaptive)
            seconds += perf_counter() - start
            total += loss * (end - begin)
            since += loss * (end - begin)
            progress.update(end - begin)
            if math.log2(end).is_integer() or end == len(x):
                tqdm.write(f"{total / end:10.6f} {since / (end - printed):10.6f} {end:12,}")
                since, printed = 0.0, end
    return total / len(x), seconds


def fastlinear_learns(x, y, lr):
    layer = new_layer()
    start = perf_counter()
    layer.learn(x, y, lr, loss="log_loss")
    return perf_counter() - start, layer.weight[0]


def scikit_learn_learns(x, y, lr):
    model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=lr, shuffle=False)
    start = perf_counter()
    model.partial_fit(x, y, classes=[0, 1])
    return perf_counter() - start, model.coef_[0]


def river_learns(x, y, lr):
    model = linear_model.LogisticRegression(optim.SGD(lr), intercept_lr=lr)
    rows = [(dict(enumerate(row.tolist())), bool(label)) for row, label in zip(x, y, strict=True)]
    start = perf_counter()
    for row, label in rows:
        model.learn_one(row, label)
    return perf_counter() - start, np.array([model.weights[i] for i in range(FEATURES)])


def vowpal_wabbit_learns(x, y, lr):
    """Its own steps, not those of the others: the time alone compares. Text is parsed before the clock runs."""
    workspace = vowpalwabbit.Workspace(f"--loss_function logistic -l {lr} --quiet")
    rows = [
        workspace.parse(f"{2 * label - 1} | " + " ".join(f"{i}:{value}" for i, value in enumerate(row)))
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    ]
    start = perf_counter()
    for row in rows:
        workspace.learn(row)
    seconds = perf_counter() - start
    for row in rows:
        workspace.finish_example(row)
    workspace.finish()
    return seconds, None


def new_layer():
    return Linear.from_weights(np.zeros((1, FEATURES), np.float32), np.zeros(1, np.float32))


def main():
    parser = argparse.ArgumentParser(description="Learn a stream on the disk in one pass.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the stream, 80 bytes each")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate")
    parser.add_argument("--adaptive", action="store_true", help="steps for each weight, by AdaGrad")
    parser.add_argument("--compared", type=int, default=10_000, help="rows that the others learn, too")
    parser.add_argument("--folder", type=Path, help="where the stream is made; otherwise it goes in the end")
    parser.add_argument("--seed", type=int, default=0, help="of the stream")
    options = parser.parse_args()
    if options.rows < 1 or options.compared < 1:
        parser.error(f"--rows and --compared must be at least 1, got {options.rows} and {options.compared}")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        x, y = make(folder, options.rows, options.seed)
        layer = new_layer()
        try:
            loss, seconds = learn(layer, x, y, options.lr, options.adaptive)
        except KeyboardInterrupt as interrupt:
            sys.exit(f"interrupted; the last piece was learned up to row {getattr(interrupt, 'rows_learned', 0):,}")
        print(f"{len(x):,} rows in {seconds:.2f} s, {len(x) / seconds / 1e6:.1f} million a second")
        print(f"progressive loss {loss:.4f}; {math.log(2):.4f} would be guessing")
        if options.rows >= 10_000 and loss > 0.6:
            sys.exit("that is hardly better than guessing")

        some = slice(0, options.compared)
        x, y = np.array(x[some]), np.array(y[some])
        learners = {"fastlinear": fastlinear_learns, "scikit-learn": scikit_learn_learns}
        learners |= {"river": river_learns} if linear_model else {}
        learners |= {"Vowpal Wabbit": vowpal_wabbit_learns} if vowpalwabbit else {}
        print(f"\n{'the first ' + format(len(x), ',') + ' rows':28} rows a second")
        weights = {}
        for name, learns in learners.items():
            seconds, weights[name] = min((learns(x, y, options.lr) for _ in range(3)), key=lambda result: result[0])
            print(f"{name:28} {len(x) / seconds:13,.0f}")
        for name in ("scikit-learn", "river"):
            if name in weights and not np.allclose(weights["fastlinear"], weights[name], rtol=1e-3, atol=1e-4):
                sys.exit(f"{name} has other weights")


if __name__ == "__main__":
    main()
