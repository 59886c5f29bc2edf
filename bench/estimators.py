"""fastlinear's estimators beside scikit-learn's SGDClassifier and SGDRegressor on the data sets that come with it.

    pip install '.[sklearn]' && python bench/estimators.py

Prints the tables of docs/sklearn.md (about a minute). Each seed is another split into training and test rows, the same
for both; features are standardised. *Tuned*: equal numbers of epochs and of settings of the learning rate, from which
a cross-validation on the training rows picks. *As they come*: every parameter at its default, `tol` stops. Both have
the same L2 penalty. Times are taken in turns in one process on one thread (timing.py).
"""

from __future__ import annotations

import warnings
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from timing import Work, interleave
from tqdm import tqdm

import fastlinear
from fastlinear.sklearn import LinearClassifier, LinearRegressor

SEEDS = range(5)
EPOCHS = 30
SECONDS = 0.5  # for one comparison of times
DATA = {"digits": load_digits, "breast cancer": load_breast_cancer, "diabetes": load_diabetes}
OURS = {"learning_rate": ["auto", 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]}
THEIRS = [
    {"learning_rate": ["optimal"]},
    {"learning_rate": ["constant", "invscaling"], "eta0": [0.001, 0.01, 0.1]},
]
CALLS = {
    "partial_fit, 1 row": "model.partial_fit(x[:1], y[:1])",
    "partial_fit, 32 rows": "model.partial_fit(x[:32], y[:32])",
    "predict, 1 row": "model.predict(x[:1])",
    "predict, 256 rows": "model.predict(x[:256])",
}


def rows(name: str, seed: int) -> list[Any]:
    """x, x_test, y, y_test"""
    x, x_test, y, y_test = train_test_split(*DATA[name](return_X_y=True), random_state=seed)
    scaler = StandardScaler().fit(x)
    return [scaler.transform(x), scaler.transform(x_test), y, y_test]


def estimators(name: str, **options: Any) -> dict[str, Any]:
    if name == "diabetes":
        return {"ours": LinearRegressor(**options), "theirs": SGDRegressor(**options)}
    return {"ours": LinearClassifier(**options), "theirs": SGDClassifier(loss="log_loss", **options)}


def tuned(model: Any, grid: Any, x: Any, y: Any) -> Any:
    """The model with the setting that does best on the training rows; settings that diverge lose."""
    search = GridSearchCV(model.set_params(max_iter=EPOCHS, tol=None), grid, cv=3, refit=False).fit(x, y)
    return clone(model).set_params(**search.best_params_)


def fits(name: str, tune: bool) -> dict[str, dict[str, list[float]]]:
    """Of each seed and library: the score on the test rows, the epochs, and the seconds of fit."""
    figures = ("score", "epochs", "seconds")
    result: dict[str, dict[str, list[float]]] = {who: {figure: [] for figure in figures} for who in ("ours", "theirs")}
    for seed in SEEDS:
        x, x_test, y, y_test = rows(name, seed)
        models = estimators(name, random_state=seed)
        if tune:
            models = {"ours": tuned(models["ours"], OURS, x, y), "theirs": tuned(models["theirs"], THEIRS, x, y)}
        works = {who: Work("model.fit(x, y)", {"model": model, "x": x, "y": y}) for who, model in models.items()}
        seconds = interleave(works, SECONDS)
        for who, model in models.items():
            result[who]["score"].append(model.score(x_test, y_test))
            result[who]["epochs"].append(float(np.max(model.n_iter_)))
            result[who]["seconds"].append(seconds[who])
    return result


def calls(name: str) -> dict[str, dict[str, float]]:
    """The seconds of each call of a model that has been trained."""
    x, _, y, _ = rows(name, 0)
    models = {who: model.fit(x, y) for who, model in estimators(name, random_state=0).items()}
    return {
        call: interleave({who: Work(code, {"model": model, "x": x, "y": y}) for who, model in models.items()}, SECONDS)
        for call, code in CALLS.items()
    }


def pair(ours: float, theirs: float, form: str) -> str:
    """Two cells of a table, the smaller in bold."""
    cells = [format(value, form) for value in (ours, theirs)]
    best = 0 if ours < theirs else 1
    cells[best] = f"**{cells[best]}**"
    return " | ".join(cells)


def main() -> None:
    fastlinear.set_num_threads(1)
    for category in (ConvergenceWarning, FitFailedWarning, UserWarning, RuntimeWarning):  # of settings that diverge
        warnings.simplefilter("ignore", category)
    lines = [
        "| data | setting | score, fastlinear | SGD | epochs | SGD | fit, ms | SGD |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for name in tqdm(DATA, "fit"):
        for tune in (True, False):
            result = fits(name, tune)
            ours, theirs = result["ours"], result["theirs"]
            scores = " | ".join(f"{mean(r['score']):.3f} ± {stdev(r['score']):.3f}" for r in (ours, theirs))
            epochs = " | ".join(f"{mean(r['epochs']):.0f}" for r in (ours, theirs))
            times = pair(1e3 * median(ours["seconds"]), 1e3 * median(theirs["seconds"]), ".3g")
            lines.append(f"| {name} | {'tuned' if tune else 'as they come'} | {scores} | {epochs} | {times} |")
    lines += ["", "| data | call | µs, fastlinear | SGD |", "| :-- | :-- | --: | --: |"]
    for name in tqdm(DATA, "calls"):
        for call, seconds in calls(name).items():
            lines.append(f"| {name} | {call} | {pair(1e6 * seconds['ours'], 1e6 * seconds['theirs'], '.0f')} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
