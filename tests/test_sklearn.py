"""fastlinear.sklearn: scikit-learn's own checks, the mathematics, the bits, and what errors leave behind."""

import doctest
import pickle
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
    assert_same_model(make(batch_size=4, shuffle=False, **EPOCH).fit(x, y), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_goes_on(kind):
    make, x, y = problem(kind)
    model = make(shuffle=False, warm_start=True, **EPOCH)
    for _ in range(3):
        model.fit(x, y)
    assert model.n_iter_ == 1
    assert_same_model(model, make(shuffle=False, max_iter=3, tol=None).fit(x, y))


# ---- when to stop, and what is said


def test_it_stops_when_the_loss_no_longer_falls():
    make, x, y = problem("four classes")
    model = make(random_state=0, tol=1e-3, n_iter_no_change=4).fit(x, y)
    curve = np.array(model.loss_curve_)
    assert model.n_iter_ == len(curve) < model.max_iter
    best = np.minimum.accumulate(curve)[:-1]
    waited = curve[1:] > best - 1e-3
    assert waited[-4:].all()
    assert not any(waited[i : i + 4].all() for i in range(len(waited) - 4))


def test_too_few_epochs():
    make, x, y = problem("four classes")
    with pytest.warns(ConvergenceWarning, match=r"not converged after 2 epochs \(max_iter\)"):
        make(max_iter=2).fit(x, y)


def test_a_rising_loss():
    make, x, y = problem("one target")
    with pytest.warns(ConvergenceWarning, match=r"the loss rose from .*StandardScaler.* lower learning_rate.* 1\.5"):
        make(learning_rate=1.5).fit(x, y)


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
    "text": (ValueError, "could not convert", lambda x, y: (x.astype(str).astype(object) + "?", y)),
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
    {"batch_size": 0},
    {"max_iter": 1.5},
    {"alpha": -1},
    {"tol": "small"},
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
    before, whole, calls = joblib.hash(model), make._loss, []

    def interrupted(self, scores, y):
        calls.append(len(y))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(self, scores, y)

    monkeypatch.setattr(make, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y)
    assert joblib.hash(model) == before


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
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
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


@pytest.mark.parametrize("missing", ["sklearn", "tqdm"])
def test_the_error_without_scikit_learn_names_the_extra(missing):
    result = python(f"import sys; sys.modules[{missing!r}] = None; import fastlinear; import fastlinear.sklearn")
    assert result.returncode == 1
    assert "ImportError: fastlinear.sklearn needs" in result.stderr
    assert "pip install 'fastlinear[sklearn]'" in result.stderr


def test_the_package_itself_imports_neither():
    result = python("import sys, fastlinear; assert not {'sklearn', 'tqdm'} & sys.modules.keys()")
    assert result.returncode == 0, result.stderr


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(fastlinear.sklearn).failed == 0


PAGE = Path(__file__).parents[1] / "docs" / "sklearn.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_the_examples_of_the_page():
    assert doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8").failed == 0
