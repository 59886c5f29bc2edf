"""Linear models in scikit-learn's form: a `Linear`, trained by minibatch gradient descent. Extra ``sklearn``.

Scores are the layer's forward, a step is its ``backward_update``; here are the losses, the order of the rows, when to
stop, and scikit-learn's conventions. ``fit`` and ``partial_fit`` train a copy and put it in place at the end, so an
error, a divergence or Ctrl-C leaves the estimator bit for bit as it was.
"""

# X is what scikit-learn calls it:
# ruff: noqa: N803, N806

from __future__ import annotations

import warnings
from copy import copy
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state, check_scalar
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(
        f"fastlinear.sklearn needs scikit-learn 1.6 or newer and tqdm: pip install 'fastlinear[sklearn]' ({error})"
    ) from error

from fastlinear.linear import Linear

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    Array = NDArray[Any]

__all__ = ["LinearClassifier", "LinearRegressor"]

_ADVICE = "scale the features (sklearn.preprocessing.StandardScaler) or lower learning_rate, which is"


class _LinearModel(BaseEstimator):
    """What both have in common: their parameters, training, scores."""

    layer_: Linear

    def __init__(
        self,
        *,
        learning_rate: float = 0.1,
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
            Float32 and float64 are kept as they are, the rest becomes float64.
        y : array-like of shape (n_samples,), for a regressor also (n_samples, n_targets)
        sample_weight : array-like of shape (n_samples,), optional
            Factors of the rows' losses, divided by their mean first: they say how rows compare.

        Raises
        ------
        ValueError
            If the input is empty, not finite or of the wrong shape, or the loss does not stay finite. TypeError if X
            is sparse. The estimator then is as before.
        """
        model, X, y, weights = self._prepare(X, y, sample_weight, begin=not self.warm_start)
        if weights is not None:
            if not weights.any():
                raise ValueError("sample_weight is zero for every row: nothing to learn from")
            weights = weights / weights.max()  # first, for their sum may overflow
            weights /= weights.mean()
        random = check_random_state(self.random_state)
        losses: list[float] = []
        best, waited = np.inf, 0
        with tqdm(total=self.max_iter, desc=type(self).__name__, unit="epoch", disable=not self.verbose) as progress:
            for _ in range(self.max_iter):
                order = random.permutation(len(X)) if self.shuffle else np.arange(len(X))
                loss = model._epoch(X, y, weights, order)
                losses.append(loss)
                progress.set_postfix(loss=f"{loss:.4g}", refresh=False)
                progress.update()
                waited = waited + 1 if self.tol is not None and loss > best - self.tol else 0
                best = min(best, loss)
                if waited == self.n_iter_no_change:
                    break
        if losses[-1] > losses[0] + (self.tol or 0):
            self._warn(f"the loss rose from {losses[0]:.4g} to {losses[-1]:.4g}; {_ADVICE} {self.learning_rate}")
        elif self.tol is not None and waited < self.n_iter_no_change:
            self._warn(f"not converged after {self.max_iter} epochs (max_iter), the loss is {losses[-1]:.4g}")
        return self._adopt(model, losses)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        model, X, y, weights = self._prepare(X, y, sample_weight, begin=False, classes=classes)
        return self._adopt(model, [model._epoch(X, y, weights, np.arange(len(X)))])

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, begin: bool, classes: Any = None
    ) -> tuple[Self, Array, Array, Array | None]:
        """A copy of the model to train, at zero if it begins, and the data as training wants them."""
        for name, kind, least in (
            ("learning_rate", Real, 0), ("alpha", Real, 0), ("batch_size", Integral, 1), ("max_iter", Integral, 1),
            ("n_iter_no_change", Integral, 1),
        ):  # fmt: skip
            check_scalar(getattr(self, name), name, kind, min_val=least)
        if self.tol is not None:
            check_scalar(self.tol, "tol", Real, min_val=0)
            if not np.isfinite(self.tol):
                raise ValueError(f"tol must be finite or None, got {self.tol}")
        for name in ("fit_intercept", "shuffle", "warm_start", "verbose"):
            check_scalar(getattr(self, name), name, (bool, np.bool_, Integral))
        model = copy(self)
        begin = begin or not hasattr(self, "layer_")
        dtype = [np.float64, np.float32] if begin else self.layer_.dtype
        X, y = validate_data(model, X, y, reset=begin, dtype=dtype, order="C", **self._y_options)
        y, out_features = model._targets(y, X.dtype, begin, classes)
        weights = None
        if sample_weight is not None:
            weights = check_array(sample_weight, ensure_2d=False, dtype=X.dtype, input_name="sample_weight")
            if weights.shape != y.shape[:1] or (weights < 0).any():
                raise ValueError(
                    f"sample_weight must have shape {y.shape[:1]} and no negative value, got shape {weights.shape} "
                    f"and a least value of {weights.min()}"
                )
        if begin:
            bias = np.zeros(out_features, X.dtype) if self.fit_intercept else None
            model.layer_ = Linear.from_weights(np.zeros((out_features, X.shape[1]), X.dtype), bias)
        else:
            model.layer_ = Linear.from_weights(self.layer_.weight, self.layer_.bias)
        return model, X, y, weights

    def _epoch(self, X: Array, y: Array, weights: Array | None, order: Array) -> float:
        """Step along the rows in this order, a batch at a time. The mean loss, each batch's before its step."""
        layer, total = self.layer_, 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(X), self.batch_size):
                rows = order[start : start + self.batch_size]
                x = X.take(rows, axis=0)
                losses, grad_output = self._loss(layer(x), y.take(rows, axis=0))
                if weights is not None:
                    w = weights[rows, np.newaxis]
                    losses, grad_output = losses * w, grad_output * w
                total += float(losses.sum())
                if self.alpha:  # the gradient of alpha/2·|W|² is alpha·W, so its step is a factor
                    weight = layer.weight
                    weight *= float(1 - self.learning_rate * self.alpha)
                layer.backward_update(x, grad_output, self.learning_rate / len(rows), input_grad=False)
        if not all(np.isfinite(result).all() for result in (total, layer.weight, self.intercept_)):
            raise ValueError(
                f"{type(self).__name__}: the loss or the weights are not finite any more; {_ADVICE} "
                f"{self.learning_rate}. The estimator is as it was before this call"
            )
        return total / len(X)

    def _adopt(self, model: Self, losses: list[float]) -> Self:
        model.n_iter_, model.loss_curve_ = len(losses), losses
        self.__dict__ = model.__dict__
        return self

    def _warn(self, what: str) -> None:
        warnings.warn(f"{type(self).__name__}: {what}", ConvergenceWarning, stacklevel=3)

    def _scores(self, X: Any) -> Array:
        """(n_samples, out_features)"""
        check_is_fitted(self)
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


class LinearClassifier(ClassifierMixin, _LinearModel):
    """Softmax regression, trained by minibatch gradient descent on the cross-entropy.

    Minimises the mean of -log p(y) plus ``alpha/2·|W|²``, where p is the softmax of x Wᵀ + b; steps have constant
    length. With two classes there is one row of W: the score of ``classes_[1]``, that of ``classes_[0]`` being 0, so p
    is the logistic function, and ``coef_`` and ``decision_function`` are as in scikit-learn's own linear classifiers.

    Parameters
    ----------
    learning_rate : float
        Of the mean gradient of a batch; constant.
    batch_size : int
        Rows to a step. The last batch of an epoch has what is left.
    max_iter : int
        The most epochs of ``fit``.
    alpha : float
        Strength of the L2 penalty on the weights; the biases have none.
    fit_intercept : bool
        Whether there is a b.
    tol : float or None
        ``fit`` stops when the loss has not fallen by this much below its best in ``n_iter_no_change`` epochs in a row.
        None: it runs for ``max_iter`` epochs.
    n_iter_no_change : int
    shuffle : bool
        Whether ``fit`` draws a new order of the rows for each epoch. ``partial_fit`` never does.
    random_state : int, numpy.random.RandomState or None
        Of the shuffling. An int gives the same bits in each run.
    warm_start : bool
        Whether ``fit`` goes on from the model that is there.
    verbose : bool
        Whether ``fit`` shows its epochs and the loss (tqdm).

    Attributes
    ----------
    layer_ : fastlinear.Linear
        The model. It has the dtype of the X of the first fit, float32 or float64; later X is converted to that.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,) for two classes
    classes_ : ndarray of shape (n_classes,)
    loss_curve_ : list of float
        Of each epoch of the last ``fit`` or ``partial_fit``: the mean loss of the rows, each before the step it was
        part of, without the penalty.
    n_iter_ : int
        Its length.
    n_features_in_, feature_names_in_
        As in all of scikit-learn.

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

    _y_options: dict[str, bool] = {}  # noqa: RUF012

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
            raise ValueError("the first partial_fit needs classes: all labels that y will ever have")
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

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Logarithms of the probabilities, (n_samples, n_classes), accurate also where those are near 0."""
        scores = self._scores(X)
        total = _log_total(scores)
        return np.hstack([-total, scores - total]) if scores.shape[1] == 1 else scores - total

    def predict_proba(self, X: ArrayLike) -> Array:
        """The softmax of the scores, (n_samples, n_classes)."""
        return np.exp(self.predict_log_proba(X))

    def _targets(self, y: Array, dtype: Any, begin: bool, classes: Any) -> tuple[Array, int]:
        """Each label's place in classes_; the number of scores."""
        if begin or classes is not None:
            if classes is None:
                check_classification_targets(y)
            classes = np.unique(y if classes is None else classes)
        if begin:
            if len(classes) < 2:
                number = f"{len(classes)} class{'es' * (len(classes) != 1)}"
                raise ValueError(f"{type(self).__name__} needs at least two classes, got {number}: {classes}")
            self.classes_: Array = classes
        elif classes is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_}, got {classes}")
        known = self.classes_
        if (known != known).any():
            raise ValueError(f"classes must not have NaN, got {known}")
        places = np.searchsorted(known, y).clip(max=len(known) - 1)
        strange = known[places] != y
        if strange.any():
            raise ValueError(f"y has labels that are not in classes_, {known}: {np.unique(y[strange])}")
        return places, 1 if len(known) == 2 else len(known)

    def _loss(self, scores: Array, y: Array) -> tuple[Array, Array]:
        """-log p(y) of each row, (rows, 1), and its gradient by the scores: p, less 1 at the truth."""
        classes = np.arange(len(self.classes_))[-scores.shape[1] :]
        truth = y[:, np.newaxis] == classes
        total = _log_total(scores)
        return total - np.where(truth, scores, 0).sum(axis=1, keepdims=True), np.exp(scores - total) - truth


def _log_total(scores: Array) -> Array:
    """log Σ exp(score) over the classes, (rows, 1). A single score is that of the second class, the first has 0."""
    if scores.shape[1] == 1:
        return np.logaddexp(0, scores)
    top = scores.max(axis=1, keepdims=True)
    total: Array = top + np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return total


class LinearRegressor(RegressorMixin, _LinearModel):
    """Linear regression of one or more targets, trained by minibatch gradient descent on the squared error.

    Minimises the mean over the rows of ``|x Wᵀ + b - y|²/2``, summed over the targets, plus ``alpha/2·|W|²``.

    Parameters
    ----------
    learning_rate : float
        Of the mean gradient of a batch; constant. Steps along one row diverge from ``2/(|x|² + 1)``, 1 for the bias;
        larger batches bear more.
    batch_size, max_iter, alpha, fit_intercept, n_iter_no_change, shuffle, random_state, warm_start, verbose
        As in `LinearClassifier`.
    tol : float or None
        As in `LinearClassifier`, in the unit of the loss, y's squared.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) if y was 2-D
    intercept_ : ndarray of shape (n_targets,), which is (1,) if y was 1-D
    layer_, loss_curve_, n_iter_, n_features_in_, feature_names_in_
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

    _y_options: dict[str, bool] = {"multi_output": True, "y_numeric": True}  # noqa: RUF012

    def __init__(
        self,
        *,
        learning_rate: float = 0.01,
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
        """Columns of targets; how many."""
        y = check_array(y, ensure_2d=False, dtype=dtype, input_name="y")
        if begin:
            self._y_shape: tuple[int, ...] = y.shape[1:]
        elif y.shape[1:] != self._y_shape:
            shape = ("n_samples", *self._y_shape)
            raise ValueError(f"y must have shape {shape} as in the first call, got {y.shape}".replace("'", ""))
        y = y.reshape(len(y), -1)
        return y, y.shape[1]

    def _loss(self, scores: Array, y: Array) -> tuple[Array, Array]:
        """Half the squared error of each row, (rows, 1), and its gradient by the scores."""
        error = scores - y
        return (error * error).sum(axis=1, keepdims=True) / 2, error

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
