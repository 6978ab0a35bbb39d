"""Estimators with scikit-learn's interface; needs scikit-learn, which is optional.

Imported lazily: ``import deepstats.sklearn`` (or ``ds.sklearn``) loads scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compute import one_thread
from .errors import ConvergenceWarning, ModelError, caution
from .models.lossreg.constraints import read_constraints
from .models.lossreg.losses import Composite, check_loss_function, get_link, get_loss
from .models.lossreg.objective import Objective
from .models.lossreg.penalties import make_penalty
from .models.lossreg.solvers import Problem, minimise

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_is_fitted,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        "deepstats.sklearn needs scikit-learn 1.6 or later: "
        "pip install deepstats[sklearn]"
    ) from error

__all__ = ["LossClassifier", "LossRegressor"]

Array = np.ndarray

_INTERCEPT = "Intercept"


class _LossEstimator(BaseEstimator):
    """What regressor and classifier share: arrays to a fit, and linear predictors."""

    loss: Any
    link: Any
    penalty: Any
    lam: float
    l1_ratio: float
    standardize: bool
    constraints: Any
    fit_intercept: bool
    max_iter: int
    tol: float

    @one_thread()
    def _minimise(self, X: Array, y: Array, sample_weight: Any) -> None:
        """Set coefficients, intercept and how the search ended."""
        import torch

        loss = get_loss(self.loss)
        composite = Composite(
            loss, get_link(loss.link if self.link is None else self.link)
        )
        if loss.columns:
            raise ModelError(
                f"the loss {loss.name} takes the columns {list(loss.columns)}, which "
                "arrays do not have; use deepstats.lossreg."
            )
        weights = None
        if sample_weight is not None:
            given = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
            weights = torch.from_numpy(np.array(given, dtype=np.float64))
        names = self._names(X.shape[1])
        columns = np.hstack([np.ones((len(X), 1)), X]) if self.fit_intercept else X
        objective = Objective(
            torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float64)),
            torch.from_numpy(np.array(y, dtype=np.float64)), composite, weights=weights,
        )  # fmt: skip
        if composite.closed is None:
            eta = torch.zeros(len(y), dtype=torch.float64)
            objective = objective.with_loss(
                check_loss_function(composite, eta, objective.y, {})
            )
        share = None if weights is None else weights.numpy()
        scale = _deviations(columns, share) if self.standardize else np.ones(len(names))
        problem = Problem(
            objective,
            make_penalty(self.penalty, self.lam, names, scale, l1_ratio=self.l1_ratio,
                         groups=None),
            read_constraints(self.constraints, names, {}, {}),
        )  # fmt: skip
        found = minimise(
            problem, np.zeros(len(names)), maxiter=self.max_iter, tol=self.tol
        )
        if not found.converged:
            caution(
                f"{type(self).__name__} did not converge: {found.message}; residual of "
                f"the conditions of a minimum {found.residual:.2g}. Raise max_iter= or "
                "scale the columns.",
                ConvergenceWarning,
            )
        b = found.b
        self.intercept_ = float(b[0]) if self.fit_intercept else 0.0
        self.coef_ = b[1:].copy() if self.fit_intercept else b
        self.n_iter_ = max(int(found.iterations), 1)
        self.kkt_residual_, self.objective_ = found.residual, found.value
        self._final = composite.link.name if self.link is None else self.link

    def _names(self, k: int) -> list[str]:
        given = getattr(self, "feature_names_in_", None)
        names = (
            [f"x{j}" for j in range(k)] if given is None else [str(n) for n in given]
        )
        return [_INTERCEPT, *names] if self.fit_intercept else names

    def _linear(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return X @ self.coef_ + self.intercept_

    def _predicted(self, X: Any) -> Array:
        import torch

        eta = torch.from_numpy(self._linear(X))
        with torch.no_grad():
            return get_link(self._final).function(eta).numpy()


def _deviations(columns: Array, weights: Array | None) -> Array:
    """Return standard deviations of the columns; one where a column is constant."""
    centre = np.average(columns, axis=0, weights=weights)
    sd = np.sqrt(np.average((columns - centre) ** 2, axis=0, weights=weights))
    return np.where(sd > 0, sd, 1.0)


class LossRegressor(RegressorMixin, _LossEstimator):
    """Linear regression by any loss, for arrays.

    Parameters
    ----------
    loss : str or callable, default "squared"
        See `deepstats.lossreg`.
    link : str or callable, optional
        By default the loss's own.
    penalty : {"ridge", "lasso", "elasticnet", "integer"} or callable, optional
    lam : float, default 0.1
        Strength of the penalty; without one it is not used.
    l1_ratio : float, default 0.5
    standardize : bool, default True
        Whether coefficients are penalised in units of their columns' deviations.
    constraints : str, mapping or sequence, optional
        Columns are named as in the frame, or ``x0``, ``x1`` ...
    fit_intercept : bool, default True
    max_iter : int, default 100
    tol : float, default 1e-9

    Attributes
    ----------
    coef_ : ndarray, shape (n_features,)
    intercept_ : float
    n_iter_ : int
    kkt_residual_ : float
        See `LossResults.kkt_residual`.
    objective_ : float

    Examples
    --------
    >>> from deepstats.sklearn import LossRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 2.0, 9.0]
    >>> LossRegressor("absolute").fit(X, y).predict([[4.0]]).round(6).tolist()
    [4.0]
    """

    def __init__(
        self,
        loss: Any = "squared",
        *,
        link: Any = None,
        penalty: Any = None,
        lam: float = 0.1,
        l1_ratio: float = 0.5,
        standardize: bool = True,
        constraints: Any = None,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-9,
    ) -> None:
        self.loss, self.link, self.penalty, self.lam = loss, link, penalty, lam
        self.l1_ratio, self.standardize, self.constraints = (
            l1_ratio, standardize, constraints,
        )  # fmt: skip
        self.fit_intercept, self.max_iter, self.tol = fit_intercept, max_iter, tol

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LossRegressor:
        """Minimise the loss.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
        y : array_like, shape (n,)
        sample_weight : array_like, shape (n,), optional
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._minimise(X, y, sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Predict outcomes; shape (n,)."""
        return self._predicted(X)


class LossClassifier(ClassifierMixin, _LossEstimator):
    """Binary classification by any loss of a probability, for arrays.

    Parameters
    ----------
    loss : str or callable, default "logloss"
    link, penalty, lam, l1_ratio, standardize, constraints, fit_intercept, max_iter, tol
        See `LossRegressor`.

    Attributes
    ----------
    classes_ : ndarray, shape (2,)
    coef_ : ndarray, shape (n_features,)
    intercept_ : float
    n_iter_ : int
    kkt_residual_, objective_ : float

    Examples
    --------
    >>> from deepstats.sklearn import LossClassifier
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], ["no", "yes", "no", "yes"]
    >>> model = LossClassifier("brier", penalty="ridge", lam=0.01).fit(X, y)
    >>> model.predict([[0.0], [4.0]]).tolist()
    ['no', 'yes']
    """

    def __init__(
        self,
        loss: Any = "logloss",
        *,
        link: Any = "sigmoid",
        penalty: Any = "ridge",
        lam: float = 1e-3,
        l1_ratio: float = 0.5,
        standardize: bool = True,
        constraints: Any = None,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-9,
    ) -> None:
        self.loss, self.link, self.penalty, self.lam = loss, link, penalty, lam
        self.l1_ratio, self.standardize, self.constraints = (
            l1_ratio, standardize, constraints,
        )  # fmt: skip
        self.fit_intercept, self.max_iter, self.tol = fit_intercept, max_iter, tol

    def __sklearn_tags__(self) -> Any:
        """Say that there are two classes."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LossClassifier:
        """Minimise the loss of the probability of the second class.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
        y : array_like, shape (n,)
            Two classes.
        sample_weight : array_like, shape (n,), optional
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"multiclass: {len(self.classes_)} classes."
            )
        if len(self.classes_) < 2:
            raise ValueError(
                "Classifier can't train when only one class is present: "
                f"{self.classes_.tolist()}."
            )
        self._minimise(X, codes.astype(np.float64), sample_weight)
        return self

    def decision_function(self, X: Any) -> Array:
        """Linear predictor, less that of probability one half; shape (n,)."""
        if get_link(self.link).name == "sigmoid":
            return self._linear(X)
        return self._predicted(X) - 0.5

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes; shape (n, 2)."""
        p = np.clip(self._predicted(X), 0.0, 1.0)
        return np.column_stack([1 - p, p])

    def predict(self, X: Any) -> Array:
        """Predict the likelier class; shape (n,)."""
        over = (self.decision_function(X) > 0).astype(int)
        return self.classes_[over]
