"""Linear models in scikit-learn's form: a `Linear`, trained by minibatch gradient descent. Extra ``sklearn``.

Scores are the layer's forward, and an epoch is its ``learn``. This file decides the order of the rows, the length of
the steps and when to stop, and keeps scikit-learn's conventions. ``fit`` and ``partial_fit`` train a copy and put it in
place at the end, so an error, a divergence or Ctrl-C leaves the estimator bit for bit as it was.
"""

# X is what scikit-learn calls it:
# ruff: noqa: N803, N806

from __future__ import annotations

import warnings
from contextlib import suppress
from copy import copy
from math import isfinite
from numbers import Integral, Real
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state, check_scalar
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
    from tqdm import tqdm
except ImportError as error:
    from fastlinear._advice import missing

    raise ImportError(
        missing("fastlinear.sklearn", "scikit-learn 1.6 or newer and tqdm", "scikit-learn tqdm", "sklearn", error)
    ) from error

from fastlinear.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    Array = NDArray[Any]

__all__ = ["LinearClassifier", "LinearRegressor"]

_ADVICE = "scale the features (sklearn.preprocessing.StandardScaler) or lower learning_rate, which is"

_CURVATURE = {"squared_error": 4.0, "huber": 4.0, "hinge": 1.0, "log_loss": 0.5}
"""The largest curvature of each loss: how much its gradient by the scores can change for a change of the scores. For
log_loss it is that of the softmax of several scores. For a regressor's losses it is four times the curvature, because
the error that remains is in proportion to the length of the steps."""


class _Settings(NamedTuple):
    """The parameters of training as Python's own numbers, because NumPy's would round or overflow at their width."""

    learning_rate: float | None
    """None for "auto"."""
    alpha: float
    tol: float | None
    batch_size: int
    max_iter: int
    n_iter_no_change: int


class _LinearModel(BaseEstimator):
    """The parts that both estimators share: parameters, training, scores."""

    layer_: Linear
    _losses: tuple[str, ...]
    _y_options: dict[str, bool]  # how scikit-learn checks y
    _check_y: Callable[[str, Any], None]  # a check of what scikit-learn would let pass

    def __init__(
        self,
        *,
        loss: str,
        learning_rate: float | str = "auto",
        batch_size: int = 32,
        max_iter: int = 1000,
        alpha: float = 0.0001,
        fit_intercept: bool = True,
        tol: float | None = 1e-3,
        n_iter_no_change: int = 5,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.shuffle = shuffle
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for at most ``max_iter`` epochs, from zero or, with ``warm_start``, from where the model is.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            float32 and float64 are kept as they are; everything else becomes float64.
        y : array-like of shape (n_samples,), for a regressor also (n_samples, n_targets)
        sample_weight : array-like of shape (n_samples,), optional
            Factors of the rows' losses. They are divided by their mean first, so they only say how rows compare.

        Raises
        ------
        ValueError
            If the input is empty, not finite, of the wrong shape, or text or dates where numbers are wanted, or if the
            loss does not stay finite.
        TypeError
            If X is sparse. After any error the estimator is as it was before.
        """
        settings = self._settings()
        model, X, y, weights = self._prepare(X, y, sample_weight, begin=not self.warm_start)
        weights = model._weighted(y, weights)
        if weights is not None:
            if not weights.any():
                raise ValueError(f"{type(self).__name__}: the weight is zero for every row: nothing to learn from")
            weights = weights / weights.max()  # first, because their sum can overflow
            weights /= weights.mean()
        rate = model.learning_rate_ = model._rate(X, weights, settings)
        scaling = None if settings.learning_rate is not None else _Scaling(X, weights, bool(self.fit_intercept))
        if scaling is not None:
            X = scaling.begin(model.layer_, X)
            rate = model._rate(X, weights, settings)
        random = check_random_state(self.random_state)
        losses: list[float] = []
        best, waited, tol = np.inf, 0, settings.tol
        with tqdm(
            total=settings.max_iter, desc=type(self).__name__, unit="epoch", disable=not self.verbose
        ) as progress:
            for _ in range(settings.max_iter):
                order = random.permutation(len(X)) if self.shuffle else None
                loss = model._epoch(X, y, weights, order, rate, settings, scaling)
                losses.append(loss)
                if self.verbose:
                    progress.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    progress.update()
                # Only a loss that is less by tol replaces the best, so slow falls add up.
                waited = 0 if tol is None or loss <= best - tol else waited + 1
                best = loss if waited == 0 else best
                if waited == settings.n_iter_no_change:
                    break
        if scaling is not None:
            scaling.end(model.layer_)
        if losses[-1] > losses[0] + (tol or 0):
            self._warn(f"the loss rose from {losses[0]:.4g} to {losses[-1]:.4g}; {_ADVICE} {rate:.3g}")
        elif tol is not None and waited < settings.n_iter_no_change:
            self._warn(
                f"not converged after {settings.max_iter} epochs (max_iter): the loss is {losses[-1]:.4g}, and may "
                "still fall"
            )
        return self._adopt(model, losses)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        settings = self._settings()
        model, X, y, weights = self._prepare(X, y, sample_weight, begin=False, classes=classes)
        weights = model._weighted(y, weights)
        if settings.learning_rate is not None or not hasattr(self, "learning_rate_"):
            # From the first batch alone, so that it does not matter where a stream is cut.
            model.learning_rate_ = model._rate(X[: settings.batch_size], None, settings)
        return self._adopt(model, [model._epoch(X, y, weights, None, model.learning_rate_, settings)])

    def _rate(self, X: Array, weights: Array | None, settings: _Settings) -> float:
        """The length of the steps: 1 / L, where L bounds the curvature of the mean loss."""
        for name, value in (("learning_rate", settings.learning_rate), ("alpha", settings.alpha)):
            if value is not None and value > float(np.finfo(X.dtype).max):
                raise ValueError(f"{type(self).__name__}: {name} must fit {X.dtype}, got {value!r}")
        if settings.learning_rate is not None:
            return settings.learning_rate
        curvature = _CURVATURE[self.loss]
        if self.loss == "log_loss" and self.layer_.out_features == 1:
            curvature /= 2
        with np.errstate(over="ignore"):
            squares = sum(float(w @ (x * x).sum(axis=1)) for x, w in _some_rows(X, weights))
            squares /= len(X) if weights is None else float(weights.sum(dtype=np.float64))
        if not isfinite(squares):
            raise ValueError(
                f"{type(self).__name__}: the squares of X are beyond float64, which no learning_rate can be derived "
                "from; scale the features (sklearn.preprocessing.MaxAbsScaler)"
            )
        return 1 / (curvature * (squares + 1))

    def _weighted(self, y: Array, weights: Array | None) -> Array | None:
        """The rows' weights, multiplied by those of their classes."""
        return weights

    def _settings(self) -> _Settings:
        numbers: dict[str, float | None] = {}
        if not isinstance(self.loss, str) or self.loss not in self._losses:
            raise ValueError(f"{type(self).__name__}: loss must be one of {', '.join(self._losses)}, got {self.loss!r}")
        for name, other in (("learning_rate", "auto"), ("alpha", None), ("tol", None)):
            value = getattr(self, name)
            if name != "alpha" and isinstance(value, type(other)) and value == other:
                numbers[name] = None
                continue
            if isinstance(value, str) and name == "learning_rate":
                raise ValueError(f'{type(self).__name__}: learning_rate must be "auto" or a number, got {value!r:.80}')
            check_scalar(value, name, Real, min_val=0)
            if not _is_finite(value):
                alternative = "" if name == "alpha" else f" or {other}"
                raise ValueError(f"{type(self).__name__}: {name} must be finite{alternative}, got {value!r:.80}")
            numbers[name] = float(value)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            check_scalar(getattr(self, name), name, Integral, min_val=1)
            numbers[name] = index(getattr(self, name))
        for name in ("fit_intercept", "shuffle", "warm_start", "verbose"):
            check_scalar(getattr(self, name), name, (bool, np.bool_, Integral))
        return _Settings(**numbers)  # type: ignore[arg-type]

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, begin: bool, classes: Any = None
    ) -> tuple[Self, Array, Array, Array | None]:
        """A copy of the model to train, at zero if it begins, and the data as training wants them."""
        model = copy(self)
        begin = begin or not hasattr(self, "layer_")
        dtype = [np.float64, np.float32] if begin else self.layer_.dtype
        _check_numbers("X", X)
        self._check_y("y", y)
        X, y = validate_data(model, X, y, reset=begin, dtype=dtype, order="C", **self._y_options)
        y, out_features = model._targets(y, X.dtype, begin, classes)
        weights = None
        if sample_weight is not None:
            _check_numbers("sample_weight", sample_weight)
            weights = check_array(sample_weight, ensure_2d=False, dtype=X.dtype, input_name="sample_weight")
            if weights.shape != y.shape[:1] or (weights < 0).any():
                raise ValueError(
                    f"{type(self).__name__}: sample_weight must have shape {y.shape[:1]} and no negative value, "
                    f"got shape {weights.shape} and a least value of {weights.min()}"
                )
        if begin:
            bias = np.zeros(out_features, X.dtype) if self.fit_intercept else None
            model.layer_ = Linear.from_weights(np.zeros((out_features, X.shape[1]), X.dtype), bias)
        else:
            model.layer_ = Linear.from_weights(self.layer_.weight, self.layer_.bias)
        return model, X, y, weights

    def _epoch(
        self,
        X: Array,
        y: Array,
        weights: Array | None,
        order: Array | None,
        rate: float,
        settings: _Settings,
        scaling: _Scaling | None = None,
    ) -> float:
        """Step along the rows in this order, a batch at a time. Returns the mean loss, each batch's before its step."""
        layer = self.layer_
        loss = layer.learn(
            X,
            y,
            rate,
            self.loss,
            settings.batch_size,
            l2=settings.alpha if scaling is None else 0.0,
            sample_weight=weights,
            order=order,
        )
        if scaling is not None and settings.alpha:
            scaling.decay(layer, rate * settings.alpha, -(-len(X) // settings.batch_size))
        if not isfinite(loss):  # as it is after weights that are not
            raise self._diverged(rate)
        return loss

    def _diverged(self, rate: float) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: the loss or the weights are not finite any more; {_ADVICE} "
            f"{rate:.3g}. The estimator is as it was before this call"
        )

    def _adopt(self, model: Self, losses: list[float]) -> Self:
        if not (np.isfinite(model.layer_.weight).all() and np.isfinite(model.intercept_).all()):
            raise model._diverged(model.learning_rate_)
        model.n_iter_, model.loss_curve_ = len(losses), losses
        self.__dict__ = model.__dict__
        return self

    def _warn(self, what: str) -> None:
        warnings.warn(f"{type(self).__name__}: {what}", ConvergenceWarning, stacklevel=3)

    def _scores(self, X: Any) -> Array:
        """(n_samples, out_features)"""
        check_is_fitted(self)
        _check_numbers("X", X)
        return self.layer_(validate_data(self, X, reset=False, dtype=self.layer_.dtype))

    @property
    def coef_(self) -> Array:
        """The weights, in scikit-learn's shape; the layer's own memory."""
        return self.layer_.weight

    @property
    def intercept_(self) -> Array:
        """The biases, (out_features,), zeros without ``fit_intercept``."""
        layer = self.layer_
        return np.zeros(layer.out_features, layer.dtype) if layer.bias is None else layer.bias


def _some_rows(X: Array, weights: Array | None) -> Iterator[tuple[Array, Array]]:
    """Rows and their weights in float64, some at a time."""
    for start in range(0, len(X), 1024):
        rows = slice(start, start + 1024)
        x = X[rows].astype(np.float64)
        yield x, np.ones(len(x)) if weights is None else weights[rows].astype(np.float64)


_CONSTANT = {"float32": 1e-6, "float64": 1e-11}
"""A deviation that is so small a part of the mean is what rounding makes of a constant, or of the scores."""


class _Scaling:
    """Training on features of mean 0 and deviation 1, of a layer for the features as they are: w (x - m) / s + b."""

    def __init__(self, X: Array, weights: Array | None, centre: bool) -> None:
        """Without a bias, which could absorb the means, the features keep them, and are divided by their root mean
        squares."""
        total = len(X) if weights is None else weights.sum(dtype=np.float64)
        self.mean, square = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        if centre:
            for x, w in _some_rows(X, weights):
                self.mean += w @ x / total
        for x, w in _some_rows(X, weights):
            square += w @ (x - self.mean) ** 2 / total
        self.deviation = np.sqrt(square)
        self._decay: Array | None = None
        # A feature that is the same in each row, but for rounding, teaches nothing that the bias does not teach.
        constant = self.deviation <= _CONSTANT[X.dtype.name] * abs(self.mean)
        self.deviation[constant] = np.maximum(abs(self.mean[constant]), 1) if not centre else np.inf

    def begin(self, layer: Linear, X: Array) -> Array:
        """Turn the layer into one for scaled features, and return these."""
        if layer.bias is not None:
            layer.bias += (layer.weight @ self.mean).astype(layer.dtype)
        layer.weight *= np.where(np.isinf(self.deviation), 0, self.deviation).astype(layer.dtype)
        scaled, start = np.empty_like(X), 0
        for x, _ in _some_rows(X, None):
            scaled[start : start + len(x)] = (x - self.mean) / self.deviation
            start += len(x)
        return scaled

    def end(self, layer: Linear) -> None:
        """Turn the layer back into one for the features as they are."""
        layer.weight = (layer.weight / self.deviation).astype(layer.dtype)
        if layer.bias is not None:
            layer.bias -= (layer.weight @ self.mean).astype(layer.dtype)

    def decay(self, layer: Linear, strength: float, steps: int) -> None:
        """Apply the penalty of so many steps at once, on the weights as they will be at the end. It is an implicit
        step, so it cannot overshoot."""
        if self._decay is None:
            with np.errstate(over="ignore", divide="ignore"):
                self._decay = ((1 + strength / self.deviation**2) ** -steps).astype(layer.dtype)
        layer.weight *= self._decay


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def _check_numbers(name: str, values: Any) -> None:
    """Refuse text that looks like numbers, and dates: NumPy would convert both without a word."""
    with suppress(Exception):  # scikit-learn refuses what is no array at all
        values = np.asarray(values)
    dtype = getattr(values, "dtype", None)
    kind = getattr(dtype, "kind", "")
    text = kind in ("S", "U", "m", "M")
    if kind == "O":
        text = any(isinstance(value, (str, bytes)) for value in values.flat)
        if not text and any(isinstance(value, Integral) and not _is_finite(value) for value in values.flat):
            raise ValueError(f"{name} has an integer too large for float64")
    if text:
        raise ValueError(f"{name} must be numbers, got text or dates (dtype {dtype}); convert it with astype(float)")


def _check_labels(name: str, labels: Any) -> None:
    """Refuse labels that would be rounded. NumPy makes floats of integers beside floats, and two could become one."""
    if hasattr(labels, "dtype"):
        return
    try:
        given, array = np.asarray(labels, object), np.asarray(labels)
    except ValueError:  # scikit-learn refuses what is no array at all
        return
    if array.dtype.kind == "f":
        for label, rounded in zip(given.ravel().tolist(), array.ravel().tolist(), strict=True):
            if isinstance(label, Integral) and index(label) != rounded:
                raise ValueError(f"{name} has the label {label}, which rounds to {rounded!r} beside floats")


def _places(labels: Array, known: Array) -> Array:
    """The place of each label in known, which is sorted; -1 for one that is not there."""
    if labels.dtype.kind == known.dtype.kind != "O":
        places = np.searchsorted(known, labels).clip(max=len(known) - 1)
        return np.where(known[places] == labels, places, -1)
    # Python compares numbers of any two kinds exactly, where NumPy would round them to a common dtype first.
    table = {label: place for place, label in enumerate(known.tolist())}
    return np.array([table.get(label, -1) for label in labels.tolist()], np.intp)


class LinearClassifier(ClassifierMixin, _LinearModel):
    """Softmax regression or a linear support vector machine, trained by minibatch gradient descent.

    Minimises the mean loss plus ``alpha/2·|W|²`` with steps of constant length. With ``loss="log_loss"`` a row's loss
    is -log p(y), where p is the softmax of x Wᵀ + b; with ``"hinge"`` it is max(0, 1 - z), summed over the classes,
    each against the rest. With two classes there is one row of W: the score of ``classes_[1]``, that of ``classes_[0]``
    being 0, so p is the logistic function, and ``coef_`` and ``decision_function`` are as in scikit-learn's own linear
    classifiers.

    Parameters
    ----------
    loss : "log_loss" or "hinge"
    learning_rate : "auto" or float
        The length of the steps along the mean gradient of a batch; it is constant. ``"auto"`` is
        ``1 / (c·mean(|x|² + 1))``, where c is the largest curvature of the loss: 1/4 for log_loss with two classes, 1/2
        with more, and 1 for hinge. With ``"auto"``, ``fit`` also trains on features of mean 0 and deviation 1 and turns
        the weights back in the end, so features need not be scaled. The penalty, which is still on the weights as they
        are in ``coef_``, then acts after each epoch. ``partial_fit`` takes the mean over the first batch that it gets.
    batch_size : int
        Rows to a step. The last batch of an epoch has the rows that are left.
    max_iter : int
        The most epochs of ``fit``.
    alpha : float
        Strength of the L2 penalty on the weights; the biases have none.
    fit_intercept : bool
        Whether there is a b.
    tol : float or None
        ``fit`` stops when the loss has not fallen by this much in ``n_iter_no_change`` epochs, taken together.
        None: it runs for ``max_iter`` epochs.
    n_iter_no_change : int
    shuffle : bool
        Whether ``fit`` draws a new order of the rows for each epoch. ``partial_fit`` never does.
    random_state : int, numpy.random.RandomState or None
        The source of the shuffling. An int gives the same bits in each run.
    warm_start : bool
        Whether ``fit`` goes on from the model that is there.
    verbose : bool
        Whether ``fit`` shows its epochs and the loss (tqdm).
    class_weight : dict, "balanced" or None
        Factors of the rows' losses by class, as in scikit-learn; ``"balanced"`` only in ``fit``.

    Attributes
    ----------
    layer_ : fastlinear.Linear
        The model. It has the dtype of the X of the first fit, float32 or float64; later X is converted to that.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,) for two classes
    classes_ : ndarray of shape (n_classes,)
    loss_curve_ : list of float
        For each epoch of the last ``fit`` or ``partial_fit``: the mean loss of the rows without the penalty, each row's
        before the step that it was part of.
    n_iter_ : int
        The length of ``loss_curve_``.
    learning_rate_ : float
        The number that ``learning_rate`` came to, on the features as they are.
    n_features_in_, feature_names_in_
        As in every estimator of scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from fastlinear.sklearn import LinearClassifier
    >>> X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> model = make_pipeline(StandardScaler(), LinearClassifier(random_state=0)).fit(X, y)
    >>> model.score(X_test, y_test) > 0.95
    True
    >>> model.predict_proba(X_test).shape
    (450, 10)
    """

    _losses = "log_loss", "hinge"
    _y_options: dict[str, bool] = {}  # noqa: RUF012
    _check_y = staticmethod(_check_labels)

    def __init__(
        self,
        *,
        loss: str = "log_loss",
        learning_rate: float | str = "auto",
        batch_size: int = 32,
        max_iter: int = 1000,
        alpha: float = 0.0001,
        fit_intercept: bool = True,
        tol: float | None = 1e-3,
        n_iter_no_change: int = 5,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            alpha=alpha,
            fit_intercept=fit_intercept,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            shuffle=shuffle,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Step once along these rows, in the order that they have, ``batch_size`` at a time.

        Consecutive calls with a multiple of ``batch_size`` rows give the same bits as one call with all of the rows.
        Arguments and errors are those of ``fit``, except for two: ``classes``, all labels that y will ever have, is
        needed in the first call; and ``sample_weight`` is not divided by its mean.

        Examples
        --------
        >>> from fastlinear.sklearn import LinearClassifier
        >>> model = LinearClassifier(learning_rate=0.1)
        >>> for x, label in [([0.0, 1.0], "a"), ([1.0, 0.0], "b")]:
        ...     model = model.partial_fit([x], [label], classes=["a", "b"])
        >>> model.predict([[0.0, 2.0]])
        array(['a'], dtype='<U1')
        """
        if classes is None and not hasattr(self, "layer_"):
            raise ValueError(
                f"{type(self).__name__}: the first partial_fit needs classes: all labels that y will ever have"
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"{type(self).__name__}: class_weight={self.class_weight!r} needs all rows, which only fit has; give "
                "partial_fit a dict (sklearn.utils.class_weight.compute_class_weight makes one)"
            )
        return self._partial_fit(X, y, sample_weight, classes)

    def decision_function(self, X: ArrayLike) -> Array:
        """x Wᵀ + b: (n_samples, n_classes), or for two classes (n_samples,), positive for ``classes_[1]``."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: ArrayLike) -> Array:
        """The label of the highest score, (n_samples,)."""
        scores = self._scores(X)
        best = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
        labels: Array = self.classes_[best]
        return labels

    def _weighted(self, y: Array, weights: Array | None) -> Array | None:
        if self.class_weight is None:
            return weights
        try:
            of_class = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[y])
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{type(self).__name__}: class_weight: {error}") from error
        with np.errstate(over="ignore"):
            of_class = of_class.astype(self.layer_.dtype)
        if not (np.isfinite(of_class).all() and (of_class >= 0).all()):
            raise ValueError(f"{type(self).__name__}: class_weight must be finite and not negative, got {of_class}")
        rows: Array = of_class[y]
        if weights is not None:
            rows *= weights
        return rows

    @available_if(lambda self: _has_probabilities(self))  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Logarithms of the probabilities, (n_samples, n_classes), accurate also where those are near 0."""
        scores = self._scores(X)
        total = _log_total(scores)
        return np.hstack([-total, scores - total]) if scores.shape[1] == 1 else scores - total

    @available_if(lambda self: _has_probabilities(self))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> Array:
        """The softmax of the scores, (n_samples, n_classes)."""
        probabilities: Array = np.exp(self.predict_log_proba(X))
        return probabilities

    def _targets(self, y: Array, dtype: Any, begin: bool, classes: Any) -> tuple[Array, int]:
        """Each label's place in classes_, and the number of scores."""
        if begin or classes is not None:
            if classes is None:
                check_classification_targets(y)
            else:
                _check_labels("classes", classes)
            try:
                classes = np.unique(y if classes is None else classes)
            except TypeError as error:
                raise TypeError(
                    f"{type(self).__name__}: {'y' if classes is None else 'classes'} must be of one kind: {error}"
                ) from error
        if begin:
            if len(classes) < 2:
                number = f"{len(classes)} class{'es' * (len(classes) != 1)}"
                raise ValueError(f"{type(self).__name__} needs at least two classes, got {number}: {classes}")
            self.classes_: Array = classes
        elif classes is not None and classes.tolist() != self.classes_.tolist():
            raise ValueError(
                f"{type(self).__name__}: classes must be those of the first call, {self.classes_}, got {classes}"
            )
        known = self.classes_
        if (known != known).any():
            raise ValueError(f"{type(self).__name__}: classes must not have NaN, got {known}")
        places = _places(y, known)
        strange = list(dict.fromkeys(y[places < 0].tolist()))
        if strange:
            raise ValueError(f"{type(self).__name__}: y has labels that are not in classes_, {known}: {strange[:10]}")
        return places, 1 if len(known) == 2 else len(known)


def _has_probabilities(model: LinearClassifier) -> bool:
    if model.loss != "log_loss":
        raise AttributeError(
            f'{type(model).__name__}: there are probabilities with loss="log_loss" only, not {model.loss!r}'
        )
    return True


def _log_total(scores: Array) -> Array:
    """log Σ exp(score) over the classes, (rows, 1). A single score is that of the second class; the first has 0."""
    if scores.shape[1] == 1:
        return np.logaddexp(0, scores)
    top = scores.max(axis=1, keepdims=True)
    total: Array = top + np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return total


class LinearRegressor(RegressorMixin, _LinearModel):
    """Linear regression of one or more targets, trained by minibatch gradient descent.

    Minimises the mean over the rows of the loss, summed over the targets, plus ``alpha/2·|W|²``. With
    ``loss="squared_error"`` it is d²/2 of the difference d = x Wᵀ + b - y, with ``"huber"`` abs(d) - 1/2 if abs(d) > 1.

    Parameters
    ----------
    loss : "squared_error" or "huber"
    learning_rate : "auto" or float
        As in `LinearClassifier`, with c = 4. Steps along one row diverge from ``2/(|x|² + 1)``, 1 for the bias; larger
        batches bear more.
    batch_size, max_iter, alpha, fit_intercept, n_iter_no_change, shuffle, random_state, warm_start, verbose
        As in `LinearClassifier`.
    tol : float or None
        As in `LinearClassifier`, in the unit of the loss, y's squared.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) if y was 2-D
    intercept_ : ndarray of shape (n_targets,), which is (1,) if y was 1-D
    layer_, loss_curve_, n_iter_, learning_rate_, n_features_in_, feature_names_in_
        As in `LinearClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from fastlinear.sklearn import LinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), LinearRegressor(random_state=0)).fit(X, y)
    >>> model.score(X, y) > 0.5
    True
    """

    _losses = "squared_error", "huber"
    _y_options: dict[str, bool] = {"multi_output": True, "y_numeric": True}  # noqa: RUF012
    _check_y = staticmethod(_check_numbers)

    def __init__(
        self,
        *,
        loss: str = "squared_error",
        learning_rate: float | str = "auto",
        batch_size: int = 32,
        max_iter: int = 1000,
        alpha: float = 0.0001,
        fit_intercept: bool = True,
        tol: float | None = 1e-3,
        n_iter_no_change: int = 5,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            loss=loss,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            alpha=alpha,
            fit_intercept=fit_intercept,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            shuffle=shuffle,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
        )

    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Step once along these rows, in the order that they have, ``batch_size`` at a time.

        Consecutive calls with a multiple of ``batch_size`` rows give the same bits as one call with all of the rows.
        Arguments and errors are those of ``fit``, except that ``sample_weight`` is not divided by its mean.

        Examples
        --------
        >>> from fastlinear.sklearn import LinearRegressor
        >>> model = LinearRegressor(learning_rate=0.1, alpha=0)
        >>> for x in range(300):
        ...     model = model.partial_fit([[x % 3]], [2 * (x % 3) + 1])
        >>> model.predict([[10.0]]).round(2)
        array([21.])
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: ArrayLike) -> Array:
        """x Wᵀ + b, (n_samples,) or (n_samples, n_targets) as y was in ``fit``."""
        scores = self._scores(X)
        return scores.reshape(len(scores), *self._y_shape)

    @property
    def coef_(self) -> Array:
        """The weights, (n_features,) or (n_targets, n_features) as y was in ``fit``; the layer's own memory."""
        return self.layer_.weight.reshape(*self._y_shape, self.layer_.in_features)

    def _targets(self, y: Any, dtype: Any, begin: bool, classes: Any) -> tuple[Array, int]:
        """The targets as columns, and their number."""
        y = check_array(y, ensure_2d=False, dtype=dtype, input_name="y")
        if begin:
            self._y_shape: tuple[int, ...] = y.shape[1:]
        elif y.shape[1:] != self._y_shape:
            shape = ("n_samples", *self._y_shape)
            raise ValueError(
                f"{type(self).__name__}: y must have shape {shape} as in the first call, got {y.shape}".replace("'", "")
            )
        y = y.reshape(len(y), -1)
        return y, y.shape[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
