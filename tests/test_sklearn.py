"""fastlinear.sklearn: scikit-learn's own checks, the mathematics, the bits, and what errors leave behind."""

import doctest
import pickle
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("tqdm")

import joblib
from scipy.sparse import csr_array
from scipy.special import log_softmax
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastlinear.sklearn
from fastlinear.sklearn import LinearClassifier, LinearRegressor

from .helpers import DTYPES, assert_same_bits, python

ROWS, FEATURES, LR, ALPHA = 75, 5, 0.1, 0.3
EPOCH = {"max_iter": 1, "tol": None}
KINDS = ("two classes", "four classes", "one target", "three targets")


def problem(kind, dtype=np.float64):
    """An estimator's class, X and y."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES)).astype(dtype)
    if "classes" in kind:
        names = np.array(["ash", "birch", "cedar", "oak"][: 2 if kind == "two classes" else 4])
        noise = rng.standard_normal((ROWS, len(names)))
        return LinearClassifier, x, names[(x[:, : len(names)] + noise).argmax(axis=1)]
    targets = x @ rng.standard_normal((FEATURES, 3)) + rng.standard_normal((ROWS, 3)) + 1
    return LinearRegressor, x, targets[:, 0] if kind == "one target" else targets


DIGITS = {
    "text": lambda a: a.astype(int).astype(str),
    "bytes": lambda a: a.astype(int).astype("S"),
    "objects": lambda a: a.astype(int).astype(str).astype(object),
    "one object": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 3, "1", a.astype(object)),
    "lists": lambda a: a.astype(int).astype(str).tolist(),
    "dates": lambda a: a.astype("M8[s]"),
    "durations": lambda a: a.astype("m8[s]"),
}


def learn(model, x, y, **options):
    """partial_fit, which wants the classes of a classifier."""
    classes = {"classes": np.unique(y)} if isinstance(model, LinearClassifier) else {}
    return model.partial_fit(x, y, **classes, **options)


def assert_same_model(got, expected):
    assert_same_bits(got.layer_.weight, expected.layer_.weight, "weight")
    assert_same_bits(got.layer_.bias, expected.layer_.bias, "bias")


# ---- scikit-learn's opinion


@parametrize_with_checks([LinearClassifier(), LinearRegressor()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("jobs", [None, 2])
def test_pipeline_in_a_grid_search(jobs):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LinearClassifier(random_state=0)),
        {"linearclassifier__learning_rate": [0.01, 0.3], "linearclassifier__batch_size": [16, 64]},
        n_jobs=jobs,
    )
    assert search.fit(*load_iris(return_X_y=True)).best_score_ > 0.9


def test_digits():
    x, y = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), LinearClassifier(random_state=0)).fit(x[:1200], y[:1200])
    assert model.score(x[1200:], y[1200:]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_joblib(kind, tmp_path):
    """Memory-mapped is how joblib hands large models to its workers: read-only, and still good to learn further."""
    make, x, y = problem(kind)
    model = make(**EPOCH).fit(x, y)
    joblib.dump(model, tmp_path / "model")
    copies = pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model", mmap_mode="r")
    learn(model, x, y)
    for copy in copies:
        assert_same_model(learn(copy, x, y), model)
        np.testing.assert_array_equal(copy.predict(x), model.predict(x))


# ---- the mathematics


def objective(kind, weight, bias, alpha, x, y, rows=None):
    """What is minimised, from its definition: the mean loss, rows weighted, and the penalty."""
    scores = x @ weight.T + bias
    if "classes" in kind:
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        losses = -log_softmax(scores, axis=1)[np.arange(len(y)), np.unique(y, return_inverse=True)[1]]
    else:
        losses = ((scores - y.reshape(len(y), -1)) ** 2).sum(axis=1) / 2
    return (losses * (1 if rows is None else rows)).mean() + alpha / 2 * (weight**2).sum()


def slope(function, array, step=1e-5):
    """The gradient of function() by one of the arrays that it uses, by central differences."""
    result = np.empty_like(array)
    for place in np.ndindex(array.shape):
        middle, ends = array[place], []
        for array[place] in (middle + step, middle - step):
            ends.append(function())
        array[place] = middle
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_gradient_descent_on_the_objective(kind, weighted):
    make, x, y = problem(kind)
    rows = np.linspace(0, 3, ROWS) if weighted else None
    model = make(learning_rate=LR, alpha=ALPHA, batch_size=ROWS)
    learn(model, x, y, sample_weight=rows)
    weight, bias = model.coef_.reshape(-1, FEATURES).copy(), model.intercept_.copy()
    learn(model, x, y, sample_weight=rows)

    def value():
        return objective(kind, weight, bias, ALPHA, x, y, rows)

    np.testing.assert_allclose(model.layer_.weight, weight - LR * slope(value, weight), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.layer_.bias, bias - LR * slope(value, bias), rtol=1e-7, atol=1e-9)
    assert model.loss_curve_ == [pytest.approx(objective(kind, weight, bias, 0, x, y, rows))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_that_of_scikit_learns_solvers(kind):
    """Whole batches until nothing changes: coef_ and intercept_ of LogisticRegression and Ridge, in their shapes."""
    make, x, y = problem(kind)
    model = make(learning_rate=0.5, alpha=ALPHA, batch_size=ROWS, max_iter=500, tol=None).fit(x, y)
    if "classes" in kind:
        exact = LogisticRegression(C=1 / (ALPHA * ROWS), tol=1e-10, max_iter=1000).fit(x, y)
        np.testing.assert_allclose(model.predict_proba(x), exact.predict_proba(x), atol=1e-6)
        np.testing.assert_array_equal(model.predict(x), exact.predict(x))
    else:
        exact = Ridge(alpha=ALPHA * ROWS).fit(x, y)
        np.testing.assert_allclose(model.predict(x), exact.predict(x), atol=1e-6)
    assert model.coef_.shape == exact.coef_.shape
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, exact.intercept_, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_a_classifier_says_belongs_together(kind):
    make, x, y = problem(kind)
    model = make(random_state=0).fit(x, y)
    scores = x @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.decision_function(x), scores.squeeze())
    np.testing.assert_allclose(model.predict_proba(x).sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(x), model.classes_[model.predict_proba(x).argmax(axis=1)])
    far = model.predict_log_proba(x * 1e4)
    assert np.isfinite(far).all()
    assert far.min() < -1000  # where the probability is 0


def test_without_an_intercept():
    make, x, y = problem("one target")
    model = make(fit_intercept=False).fit(x, y)
    assert model.layer_.bias is None
    np.testing.assert_array_equal(model.intercept_, [0])
    np.testing.assert_allclose(model.predict(x), x @ model.coef_)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_repetitions_where_a_batch_has_all_rows(kind):
    make, x, y = problem(kind)
    times = np.arange(ROWS) % 4
    options = {"batch_size": 3 * ROWS, "max_iter": 20, "tol": None}
    weighted = make(**options).fit(x, y, sample_weight=times)
    repeated = make(**options).fit(x.repeat(times, axis=0), y.repeat(times, axis=0))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_the_other_losses(kind):
    """hinge and huber: one step of whole batches is gradient descent on the objective of their definitions."""
    make, x, y = problem(kind)
    loss = "hinge" if "classes" in kind else "huber"
    model = learn(make(loss=loss, learning_rate=LR, alpha=ALPHA, batch_size=ROWS), x, y)
    weight, bias = model.layer_.weight.copy(), model.layer_.bias.copy()
    learn(model, x, y)

    def value():
        scores = x @ weight.T + bias
        if loss == "huber":
            distance = abs(scores - y.reshape(ROWS, -1))
            losses = np.where(distance <= 1, distance**2 / 2, distance - 0.5)
        else:
            truth = np.unique(y, return_inverse=True)[1][:, None] == np.arange(len(np.unique(y)))[-scores.shape[1] :]
            losses = np.maximum(1 - np.where(truth, 1, -1) * scores, 0)
        return losses.sum(axis=1).mean() + ALPHA / 2 * (weight**2).sum()

    np.testing.assert_allclose(model.layer_.weight, weight - LR * slope(value, weight, 1e-7), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.layer_.bias, bias - LR * slope(value, bias, 1e-7), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_needs_no_scaling(kind, dtype):
    """Units and origins of the features make no difference to what is predicted, beyond rounding."""
    make, x, y = problem(kind)
    scales, offsets = np.array([1e-3, 1, 1e3, 30, 0.1]), np.array([0, 5, -2e3, 10, 0.1])
    options = {"random_state": 0, "alpha": 0, "max_iter": 50, "tol": None}
    plain = make(**options).fit(x.astype(dtype), y)
    other = make(**options).fit((x * scales + offsets).astype(dtype), y)
    np.testing.assert_allclose(other.loss_curve_, plain.loss_curve_, rtol=1e-3)
    np.testing.assert_allclose(other.coef_ * scales, plain.coef_, rtol=0.02, atol=0.01)


def test_auto_with_a_constant_feature_and_without_an_intercept():
    make, x, y = problem("one target")
    x = np.hstack([x, np.full((ROWS, 1), 7.0), np.zeros((ROWS, 1))])
    model = make(random_state=0).fit(x, y)
    assert model.coef_[5:].tolist() == [0, 0]
    model = make(random_state=0, fit_intercept=False).fit(x, y)
    assert np.isfinite(model.coef_).all()
    assert model.score(x, y) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_auto_with_a_feature_far_from_zero(kind):
    """A time in seconds since 1970, over some minutes, is no constant."""
    make, x, y = problem(kind)
    options = {"random_state": 0, "alpha": 0, "max_iter": 50, "tol": None}
    plain = make(**options).fit(x, y)
    other = make(**options).fit(1.7e9 + 100 * x, y)
    np.testing.assert_allclose(other.coef_ * 100, plain.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other._scores(1.7e9 + 100 * x), plain._scores(x), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_auto_with_features_whose_squares_are_beyond_float64(kind):
    """An error, and no model that learned nothing; very small ones are learned, and penalised, without a warning."""
    make, x, y = problem(kind)
    model = make(random_state=0)
    for call in (model.fit, lambda *data: learn(model, *data)):
        with pytest.raises(ValueError, match="the squares of X are beyond float64"):
            call(1e160 * x, y)
    assert not hasattr(model, "layer_")
    assert model.set_params(alpha=0).fit(1e-150 * x, y).score(1e-150 * x, y) > 0.5
    assert abs(model.set_params(alpha=1e-4).fit(1e-160 * x, y).coef_).max() < 1e-100


@pytest.mark.parametrize("kind", KINDS[:2])
def test_class_weight(kind):
    """By a dict, as "balanced", and as weights of rows, with those that are given."""
    make, x, y = problem(kind)
    names, counts = np.unique(y, return_counts=True)
    balanced = dict(zip(names.tolist(), (ROWS / len(names) / counts).tolist(), strict=True))
    rows = np.array([balanced[name] for name in y])
    given = np.linspace(0.5, 2, ROWS)
    options = {"random_state": 0, "max_iter": 5, "tol": None}
    expected = make(**options).fit(x, y, sample_weight=rows * given)
    for weights in ("balanced", balanced):
        got = make(class_weight=weights, **options).fit(x, y, sample_weight=given)
        np.testing.assert_allclose(got.coef_, expected.coef_, rtol=1e-10)
    with pytest.raises(ValueError, match="LinearClassifier: class_weight='balanced' needs all rows"):
        learn(make(class_weight="balanced"), x, y)
    with pytest.raises(ValueError, match="LinearClassifier: class_weight must be finite"):
        make(class_weight={"ash": 1e300}).fit(x.astype(np.float32), y)
    for bad in ("even", {"ash": -1}, {"ash": np.nan}, {"maple": 1}, 3):
        with pytest.raises(ValueError, match="LinearClassifier: class_weight"):
            make(class_weight=bad).fit(x, y)


def test_there_are_no_probabilities_of_a_hinge():
    make, x, y = problem("two classes")
    model = make(loss="hinge", random_state=0).fit(x, y)
    assert model.score(x, y) > 0.7
    assert not hasattr(model, "predict_proba")
    with pytest.raises(AttributeError, match="predict_log_proba"):
        model.predict_log_proba(x)


@pytest.mark.parametrize("loss", ["log", None, "huber"])
def test_unknown_losses(loss):
    make, x, y = problem("two classes")
    with pytest.raises(ValueError, match="LinearClassifier: loss must be one of log_loss, hinge, got"):
        make(loss=loss).fit(x, y)


@pytest.mark.parametrize("parameter", ["learning_rate", "alpha"])
def test_parameters_beyond_float32(parameter):
    make, x, y = problem("one target", np.float32)
    with pytest.raises(ValueError, match=f"LinearRegressor: {parameter} must fit float32"):
        make(**{parameter: 1e300}).fit(x, y)


# ---- the bits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_that_of_the_data(kind, dtype):
    make, x, y = problem(kind, dtype)
    model = make(random_state=0).fit(x, y)
    results = [model.coef_, model.intercept_]
    if "classes" in kind:
        results += [model.decision_function(x), model.predict_proba(x), model.predict_log_proba(x)]
    else:
        results += [model.predict(x), model.predict(x.astype(np.float64))]
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    assert learn(model, x.astype(np.float64), y).coef_.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_bit(kind):
    make, x, y = problem(kind)
    first, again, other = (make(random_state=seed).fit(x, y) for seed in (7, 7, 8))
    assert_same_model(again, first)
    assert (first.coef_ != other.coef_).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_give_the_bits_of_the_whole(kind, dtype):
    """partial_fit on consecutive parts of whole batches, on all at once, and fit without shuffling."""
    make, x, y = problem(kind, dtype)
    whole = learn(make(batch_size=4), x, y)
    parts = make(batch_size=4)
    for start, stop in [(0, 4), (4, 24), (24, ROWS)]:
        classes = {"classes": np.unique(y)} if "classes" in kind else {}
        parts.partial_fit(x[start:stop], y[start:stop], **classes)
    assert_same_model(parts, whole)
    whole = learn(make(batch_size=4, learning_rate=LR), x, y)
    assert_same_model(make(batch_size=4, learning_rate=LR, shuffle=False, **EPOCH).fit(x, y), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_goes_on(kind):
    make, x, y = problem(kind)
    model = make(learning_rate=LR, shuffle=False, warm_start=True, **EPOCH)
    for _ in range(3):
        model.fit(x, y)
    assert model.n_iter_ == 1
    assert_same_model(model, make(learning_rate=LR, shuffle=False, max_iter=3, tol=None).fit(x, y))


# ---- when to stop, and what is said


def test_it_stops_when_the_loss_no_longer_falls():
    make, x, y = problem("four classes")
    model = make(random_state=0, tol=1e-3, n_iter_no_change=4).fit(x, y)
    curve = np.array(model.loss_curve_)
    assert model.n_iter_ == len(curve) < model.max_iter
    assert curve[-5] - curve[-4:].min() < 1e-3  # together, the last four did not fall by that much
    assert all(curve[i] - curve[i + 1 : i + 5].min() >= 1e-3 for i in range(len(curve) - 8))


def test_a_loss_that_falls_slowly_is_not_at_its_end():
    """Less than tol in one epoch, but more in those that are waited for."""
    make, x, y = problem("one target")
    model = make(learning_rate=1e-3, batch_size=ROWS, random_state=0, max_iter=200, tol=2e-3)
    with pytest.warns(ConvergenceWarning, match="not converged after 200 epochs"):
        model.fit(x, y)
    falls = -np.diff(model.loss_curve_)
    assert 0 < falls.min() < falls.max() < 2e-3 * 2
    assert falls.min() > 2e-3 / 5


def test_too_few_epochs():
    make, x, y = problem("four classes")
    with pytest.warns(ConvergenceWarning, match=r"not converged after 2 epochs \(max_iter\)"):
        make(max_iter=2).fit(x, y)


def test_a_rising_loss():
    make, x, y = problem("one target")
    with pytest.warns(ConvergenceWarning, match=r"the loss rose from .*StandardScaler.* lower learning_rate.* 2\.5"):
        make(learning_rate=2.5, random_state=0).fit(x, y)


def test_progress_shows_the_loss(capsys):
    make, x, y = problem("four classes")
    model = make(random_state=0).fit(x, y)
    assert capsys.readouterr().err == ""
    model.set_params(verbose=True).fit(x, y)
    shown = capsys.readouterr().err
    assert f"{model.n_iter_}/{model.max_iter}" in shown
    assert f"loss={model.loss_curve_[-1]:.4g}" in shown


# ---- bad input: what to do, and nothing has changed


def spoilt(array, value):
    array = array.copy()
    array[-1, -1] = value
    return array


BAD = {
    "nan": (ValueError, "X contains NaN", lambda x, y: (spoilt(x, np.nan), y)),
    "infinite": (ValueError, "X contains infinity", lambda x, y: (spoilt(x, np.inf), y)),
    "sparse": (TypeError, r"Use '\.toarray\(\)'", lambda x, y: (csr_array(x), y)),
    "empty": (ValueError, "0 sample", lambda x, y: (x[:0], y[:0])),
    "no features": (ValueError, "0 feature", lambda x, y: (x[:, :0], y)),
    "lengths": (ValueError, "inconsistent numbers of samples", lambda x, y: (x, y[1:])),
    "text": (ValueError, "X must be numbers", lambda x, y: (x.astype(str).astype(object) + "?", y)),
    "too large": (ValueError, "X has an integer too large", lambda x, y: (x.astype(int).astype(object) + 10**400, y)),
    "weights of text": (ValueError, "sample_weight must be numbers", lambda x, y: (x, y, ["1"] * ROWS)),
    "weights of NaN": (
        ValueError,
        "sample_weight contains NaN",
        lambda x, y: (x, y, spoilt(np.ones((1, ROWS)), np.nan)[0]),
    ),
    "weights without end": (
        ValueError,
        "sample_weight contains infinity",
        lambda x, y: (x, y, spoilt(np.ones((1, ROWS)), np.inf)[0]),
    ),
    "weights' shape": (ValueError, r"sample_weight must have shape \(75,\)", lambda x, y: (x, y, np.ones(3))),
    "weights' sign": (ValueError, "no negative value", lambda x, y: (x, y, np.linspace(-1, 1, ROWS))),
}
BAD_LATER = {
    "features": (ValueError, "expecting 5 features", lambda x, y: (x[:, 1:], y)),
    "targets": (ValueError, r"not in classes_|y must have shape \(n_samples|1d", lambda x, y: (x, other_targets(y))),
}
BAD_PARAMETERS = [
    {"learning_rate": "fast"},
    {"learning_rate": -1},
    {"learning_rate": np.nan},
    {"learning_rate": 1e300},
    {"learning_rate": 10**400},
    {"learning_rate": np.inf},
    {"batch_size": 0},
    {"max_iter": 1.5},
    {"alpha": -1},
    {"alpha": np.nan},
    {"alpha": np.longdouble("1e4000")},
    {"tol": "small"},
    {"tol": 10**400},
    {"tol": np.inf},
    {"n_iter_no_change": 0},
]


def other_targets(y):
    return np.where(np.arange(len(y)) == 3, "zelkova", y) if y.dtype.kind == "U" else y[:, np.newaxis, np.newaxis][:, 0]


def call(model, method, x, y, sample_weight=None):
    if method == "fit":
        model.fit(x, y, sample_weight=sample_weight)
    else:
        names = ["ash", "birch", "cedar", "oak"]
        classes = {"classes": names} if isinstance(model, LinearClassifier) else {}
        model.partial_fit(x, y, sample_weight=sample_weight, **classes)


@pytest.mark.parametrize("kind", ["four classes", "one target"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_data_changes_nothing(kind, method, fitted, name):
    make, x, y = problem(kind)
    model = make(random_state=0)
    if fitted:
        model.fit(x, y)
    before = joblib.hash(model)
    error, message, spoil = BAD[name]
    with pytest.raises(error, match=message):
        call(model, method, *spoil(x, y))
    assert joblib.hash(model) == before
    assert vars(model).keys() == vars(pickle.loads(pickle.dumps(model))).keys()


@pytest.mark.parametrize("kind", ["four classes", "one target"])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", BAD_LATER)
def test_data_of_another_kind_changes_nothing(kind, name, warm):
    make, x, y = problem(kind)
    model = make(random_state=0, warm_start=warm).fit(x, y)
    before = joblib.hash(model)
    error, message, spoil = BAD_LATER[name]
    with pytest.raises(error, match=message):
        call(model, "fit" if warm else "partial_fit", *spoil(x, y))
    assert joblib.hash(model) == before


@pytest.mark.parametrize("kind", ["four classes", "one target"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("parameters", BAD_PARAMETERS, ids=str)
def test_bad_parameters_change_nothing(kind, method, parameters):
    """Among them rates so large that the loss or the weights overflow: divergence in the middle of the training."""
    make, x, y = problem(kind)
    model = make(random_state=0).fit(x, y).set_params(**parameters)
    before = joblib.hash(model)
    (name,) = parameters
    with pytest.raises((ValueError, TypeError), match=name):
        call(model, method, x, y)
    assert joblib.hash(model) == before
    model.predict(x)


def test_an_interruption_changes_nothing(monkeypatch):
    make, x, y = problem("four classes")
    model = make(random_state=0).fit(x, y)
    before, epoch, calls = joblib.hash(model), make._epoch, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return epoch(self, *args)

    monkeypatch.setattr(make, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y)
    assert joblib.hash(model) == before


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("kind", ["four classes", "one target"])
def test_digits_in_text_are_no_numbers(kind, name):
    """Nor are dates: a column of codes or of days is no feature, and no target. Learning and predicting agree."""
    make, x, y = problem(kind)
    model = make(random_state=0).fit(x, y)
    text = DIGITS[name](x)
    for use in (model.fit, lambda text, y: learn(model, text, y), lambda text, y: model.predict(text)):
        with pytest.raises(ValueError, match="X must be numbers"):
            use(text, y)
    if kind == "one target":
        for use in (model.fit, model.partial_fit):
            with pytest.raises(ValueError, match="y must be numbers"):
                use(x, DIGITS[name](y))


INTEGERS = {"batch_size": 120, "max_iter": 3, "n_iter_no_change": 100, "random_state": 3}
NUMBERS = {"learning_rate": 0.125, "alpha": 0.0625, "tol": 0.375}
WIDTHS = dict.fromkeys((np.int8, np.uint8, np.int16), INTEGERS)
WIDTHS |= dict.fromkeys((np.float16, np.float32, np.longdouble, Fraction), NUMBERS)


@pytest.mark.parametrize("kind", ["four classes", "one target"])
@pytest.mark.parametrize("narrow", WIDTHS)
def test_numbers_of_any_width(kind, narrow):
    """Each parameter is what it says; sums and products of them are not of its width."""
    make, x, y = problem(kind)
    x, y = x.repeat(4, axis=0), y.repeat(4)
    given = {name: narrow(value) for name, value in WIDTHS[narrow].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = make(**INTEGERS | NUMBERS).fit(x, y)
        got = make(**INTEGERS | NUMBERS | given).fit(x, y)
    assert_same_model(got, expected)
    assert got.loss_curve_ == expected.loss_curve_
    assert all(got.get_params()[name] is value for name, value in given.items())


def test_products_of_narrow_parameters():
    """2 · 100 is not an int8."""
    make, x, y = problem("one target")
    got, expected = (learn(make(learning_rate=k(2), alpha=k(100)), x[:40], y[:40]) for k in (np.int8, float))
    assert_same_model(got, expected)


def test_divergence_says_what_to_do():
    make, x, y = problem("one target")
    with pytest.raises(ValueError, match=r"not finite.*StandardScaler.*lower learning_rate, which is 1e\+50"):
        make(learning_rate=1e50).fit(x, y)


def test_overflow_in_the_last_step_changes_nothing():
    """The loss of the batch, taken before the step, is finite."""
    make, x, _ = problem("one target")
    model = make(learning_rate=1e308)
    with pytest.raises(ValueError, match="the weights are not finite"):
        model.partial_fit(x[:1], [1e6])
    assert not hasattr(model, "layer_")


def test_weights_of_zero():
    make, x, y = problem("one target")
    with pytest.raises(ValueError, match="LinearRegressor: the weight is zero for every row"):
        make().fit(x, y, sample_weight=np.zeros(ROWS))
    model = make(alpha=0).fit(x, y)
    before = model.coef_.copy()
    model.partial_fit(x[:1], y[:1], sample_weight=[0.0])
    assert_same_bits(model.coef_, before)


def test_classes():
    make, x, y = problem("four classes")
    with pytest.raises(ValueError, match="the first partial_fit needs classes"):
        make().partial_fit(x, y)
    with pytest.raises(ValueError, match="at least two classes, got 1 class"):
        make().fit(x, np.full(ROWS, "oak"))
    with pytest.raises(ValueError, match="continuous"):
        make().fit(x, x[:, 0])
    model = make().partial_fit(x[:1], y[:1], classes=["oak", "ash", "cedar", "birch", "elm"])
    np.testing.assert_array_equal(model.classes_, ["ash", "birch", "cedar", "elm", "oak"])
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(x, y, classes=np.unique(y))
    with pytest.raises(ValueError, match="not in classes_"):
        model.partial_fit(x, np.arange(ROWS))
    with pytest.raises(NotFittedError):
        make().predict(x)


NEAR = [2**53, 2**53 + 1, 2**53 + 2]


@pytest.mark.parametrize("of_y", [np.int64, np.uint64, np.float64, np.float32, list, tuple])
@pytest.mark.parametrize("of_classes", [np.int64, np.uint64, np.float64, list])
def test_labels_that_floats_do_not_tell_apart(of_y, of_classes):
    """An integer and a float are the same label if they are the same number, not if they are after rounding."""

    def labels(kind, values):
        return kind(values) if kind in (list, tuple) else np.array(values, kind)

    x = np.eye(3)
    exact = 2 if np.float64 in (of_classes, of_y) or of_y is np.float32 else 1
    classes = [2**53, 2**53 + 2] if of_classes is np.float64 else NEAR
    model = LinearClassifier().partial_fit(x[:1], labels(of_y, [2**53]), classes=labels(of_classes, classes))
    before = model.layer_.bias.copy()
    place = classes.index(2**53 + exact) if of_y is not np.float32 else 0
    model.partial_fit(x[:1], labels(of_y, [classes[place]]))
    step = model.layer_.bias - before
    assert (step.argmax() if len(step) > 1 else int(step[0] > 0)) == place
    if of_classes is np.float64 and of_y in (np.int64, np.uint64, list, tuple):
        with pytest.raises(ValueError, match=r"not in classes_, .*: \[9007199254740993\]"):
            model.partial_fit(x[:1], labels(of_y, [2**53 + 1]))
    model.partial_fit(x[:1], labels(of_y, [2**53]), classes=labels(of_classes, classes))


def test_other_classes_that_round_to_the_same():
    x = np.eye(3)
    model = LinearClassifier().partial_fit(x, NEAR, classes=NEAR)
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(x, NEAR, classes=np.array([2**53, 2**53, 2**53 + 2], np.float64))
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(x, NEAR, classes=[2**53, 2**53 + 1, 2**53 + 4])
    model.partial_fit(x, NEAR, classes=np.array(NEAR, np.uint64))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_labels_at_the_ends_of_the_integers(dtype):
    """They come back as they were, and -1 is not 2^64 - 1."""
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max - 1, np.iinfo(dtype).max], dtype)
    model = LinearClassifier(random_state=0).fit(np.eye(3), ends)
    assert_same_bits(model.classes_, ends)
    assert_same_bits(model.predict(np.eye(3)), ends)
    other = np.array([-1], np.int64) if dtype == np.uint64 else np.array([2**64 - 1], np.uint64)
    with pytest.raises(ValueError, match="not in classes_"):
        model.partial_fit(np.eye(3)[:1], other)
    with pytest.raises(ValueError, match="not in classes_"):
        model.partial_fit(np.eye(3)[:1], [float(np.iinfo(dtype).max)])


@pytest.mark.parametrize("labels", [[2**53, 2**53 + 1, 0.0], [-1, 2**64 - 1, 2**64 - 2]], ids=str)
def test_lists_that_numpy_would_round(labels):
    """A list of integers and floats becomes an array of floats. Labels that would change by that are refused."""
    with pytest.raises(ValueError, match=r"y has the label .* rounds to"):
        LinearClassifier().fit(np.eye(3), labels)
    with pytest.raises(ValueError, match=r"classes has the label .* rounds to"):
        LinearClassifier().partial_fit(np.eye(3), [0, 0, 0], classes=labels)
    assert LinearClassifier(random_state=0).fit(np.eye(3), [1, 2.0, 3]).classes_.tolist() == [1, 2, 3]


def test_labels_of_other_types():
    """What is equal in Python is the same label: text in any kind of array, a truth and its integer; text and number
    are not."""
    x = np.eye(2)
    for classes, y in (
        (np.array(["a", "bc"], object), np.array(["bc", "a"])),
        (np.array(["a", "bc"]), np.array(["bc", "a"], object)),
        ([0, 1], np.array([True, False])),
        (np.array([False, True]), [1, 0]),
        (np.array([0.0, 1.0], np.float32), [1, 0]),
    ):
        model = LinearClassifier(alpha=0).partial_fit(x, y, classes=classes)
        assert model.layer_.weight[0, 0] > 0 > model.layer_.weight[0, 1]
    for classes, y in ((["0", "1"], [0, 1]), ([0, 1], ["0", "1"]), ([0, 1], np.array(["0", 1], object))):
        with pytest.raises(ValueError, match="not in classes_"):
            LinearClassifier().partial_fit(x, y, classes=classes)
    for classes in (np.array(["0", 1], object), np.array([None, 1], object)):
        with pytest.raises(TypeError, match="classes must be of one kind"):
            LinearClassifier().partial_fit(x, [1, 1], classes=classes)


@pytest.mark.parametrize("missing", ["sklearn", "tqdm"])
def test_the_error_without_scikit_learn_names_it_and_two_commands(missing):
    result = python(f"import sys; sys.modules[{missing!r}] = None; import fastlinear; import fastlinear.sklearn")
    assert result.returncode == 1
    assert "ImportError: fastlinear.sklearn needs" in result.stderr
    assert "`pip install scikit-learn tqdm`" in result.stderr
    assert "`pip install '.[sklearn]'`" in result.stderr


def test_the_package_itself_imports_neither():
    result = python("import sys, fastlinear; assert not {'sklearn', 'tqdm'} & sys.modules.keys()")
    assert result.returncode == 0, result.stderr


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(fastlinear.sklearn).failed == 0


PAGE = Path(__file__).parents[1] / "docs" / "sklearn.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_the_examples_of_the_page():
    assert doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8").failed == 0
