"""Linear quantile regression with the standard errors of R and of statsmodels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..compute import Compute, one_thread
from ..design import Batch, Grouping
from ..errors import ModelError, NonuniqueWarning
from ..families import get_family
from ..formula import Formula
from ..inference import Covariance
from ..leastsquares import aliased_columns, triangle
from ..likelihood import Point, PredictorLikelihood
from ..quantile import QuantileFit, fit_quantile
from ..quantile_errors import kernel_sparsity, quantile_covariance
from ..results import Fit, Results, whole
from .base import RegressionModel

__all__ = ["QuantReg", "QuantRegResults", "quantreg"]

Array = np.ndarray

#: Kinds of standard errors and the options each takes.
COV_TYPES = {
    "robust": ("kernel", "bandwidth"),
    "iid": ("kernel", "bandwidth", "hs"),
    "nid": ("hs",),
    "ker": ("hs",),
    "boot": ("reps", "seed", "groups"),
}
_NO_LIKELIHOOD = (
    "quantile regression minimises a check loss and assumes no distribution, so it has "
    "no {what}; compare fits by objective or prsquared."
)


class QuantRegResults(Results):
    """Estimates of one conditional quantile."""

    def _covariance(
        self, cov_type: str, cov_kwds: Mapping[str, Any] | None
    ) -> Covariance:
        kind, options = _checked(cov_type, cov_kwds)
        X, y, w = self.model.arrays()
        q, beta = self.q, self.fit_info.x.numpy()
        if kind == "boot":
            groups = options.get("groups")
            if groups is not None:
                groups = self.model.design.groupings(groups)
            matrix, text = _bootstrap(X, y, w, q, groups, options)
        elif kind == "iid" and not options.keys().isdisjoint(("kernel", "bandwidth")):
            matrix, text = _iid_by_kernel(X, y, w, beta, q, options)
        else:
            matrix = quantile_covariance(X, y, beta, q, kind, weights=w, **options)
            text = _describe(kind, options)
        tensor = torch.from_numpy(np.ascontiguousarray(matrix))
        return Covariance(tensor, kind, text, options=options)

    def get_robustcov_results(
        self, cov_type: str = "robust", use_t: bool | None = None, **cov_kwds: Any
    ) -> QuantRegResults:
        """Return the same fit with other standard errors.

        Parameters
        ----------
        cov_type : {"robust", "iid", "nid", "ker", "boot"}, default "robust"
        use_t : bool, optional
        **cov_kwds
            See `QuantReg.fit`.
        """
        use_t = self.use_t if use_t is None else use_t
        return type(self)(
            self.model, self.fit_info, self._likelihood, cov_type, cov_kwds, use_t
        )

    @property
    def q(self) -> float:
        """Level of the quantile."""
        return self.fit_info.facts["q"]

    @property
    def objective(self) -> float:
        """Sum of (weighted) check losses."""
        return self.fit_info.facts["objective"]

    @property
    def prsquared(self) -> float:
        """Koenker and Machado's R1: one less the loss over that of a constant.

        The constant is the exact minimiser; statsmodels takes an interpolated
        percentile, whose loss may be a little higher.

        References
        ----------
        Koenker & Machado (1999), Goodness of fit and related inference processes for
        quantile regression, JASA 94(448).
        """
        return 1.0 - self.objective / self.fit_info.facts["null_objective"]

    @property
    def sparsity(self) -> float:
        """One over the kernel density of the residuals at zero, as statsmodels."""
        return self.fit_info.facts["sparsity"]

    @property
    def bandwidth(self) -> float:
        """Bandwidth of `sparsity`, on the scale of the response."""
        return self.fit_info.facts["bandwidth"]

    @property
    def nonunique(self) -> bool:
        """Whether other coefficients have the same objective."""
        return bool(self.fit_info.facts["nonunique"])

    @property
    def model_name(self) -> str:
        """Name of the model, as printed."""
        return f"{self.model.title}, q = {self.q:g}"

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(_NO_LIKELIHOOD.format(what=what))

    @property
    def llf(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("log-likelihood")

    @property
    def aic(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("AIC")

    @property
    def bic(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("BIC")

    @property
    def resid_pearson(self) -> pd.Series:
        """Not defined; raises `ModelError`."""
        self._refuse("Pearson residuals")

    def compare_lr_test(self, restricted: Results) -> NoReturn:
        """Not defined; raises `ModelError`. Use `wald_test`."""
        self._refuse("likelihood ratio (use wald_test)")

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        row = {
            "nobs": self.nobs, "df_model": self.df_model, "df_resid": self.df_resid,
            "q": self.q, "objective": self.objective, "prsquared": self.prsquared,
            "sparsity": self.sparsity, "bandwidth": self.bandwidth,
            "converged": self.converged,
        }  # fmt: skip
        return pd.DataFrame([row])

    def _extra_augment(self) -> dict[str, Any]:
        return {".tau": self.q}

    def _header(self) -> list[tuple[str, Any]]:
        return [
            ("Response", self.response_name), ("Quantile", self.q),
            ("Method", "exact (linear program)"), ("SE", self.cov_description),
            ("Observations", whole(self.nobs)), ("Df residuals", whole(self.df_resid)),
            ("Objective", self.objective), ("Pseudo R-squared", self.prsquared),
            ("Sparsity", self.sparsity), ("Bandwidth", self.bandwidth),
        ]  # fmt: skip

    def _notes(self) -> list[str]:
        out = super()._notes()
        if self.nonunique:
            out.append("Other coefficients attain the same objective.")
        return out


class QuantReg(RegressionModel):
    """Linear model of a conditional quantile.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    weights : str or array_like, optional
        Weights of the check losses, as R's `rq`.
    offset : str or array_like, optional
        Taken from the response before the fit.
    na_action, context, device, dtype : optional
        See `RegressionModel`. The solver works on the CPU in float64.
    """

    title = "Quantile regression"
    t_by_default: ClassVar[bool] = True
    results_class = QuantRegResults
    # Only its identity link is used: the predictor is the quantile.
    family = get_family("gaussian")

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        weights: Any = None,
        offset: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(
            formula, data, weights=weights, offset=offset, na_action=na_action,
            context=context, device=device, dtype=dtype,
        )  # fmt: skip
        self._arrays: tuple[Array, Array, Array | None] | None = None

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Not defined: the check loss is no log-density. Raises `ModelError`."""
        raise ModelError(_NO_LIKELIHOOD.format(what="likelihood or scores"))

    def arrays(self) -> tuple[Array, Array, Array | None]:
        """Columns, response less offset, and weights as float64 arrays."""
        if self._arrays is None:
            design = self.design
            self.compute.require(
                3 * design.n * design.X.k,
                f"the whole design of {design.n:,} rows",
                "quantile regression does not work in row blocks: raise the budget "
                "with set_default_device(memory=...).",
            )
            X = design.X.to_dense(Compute("cpu", memory=self.compute.memory)).numpy()
            y = np.array(design.y, dtype=np.float64)
            if design.offset is not None:
                y -= design.offset
            self._arrays = X, y, design.weights
        return self._arrays

    @one_thread()
    def fit(
        self,
        q: float | Sequence[float] = 0.5,
        cov_type: str | None = None,
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        vcov: str | None = None,
        kernel: str | None = None,
        bandwidth: str | None = None,
        use_t: bool | None = None,
    ) -> QuantRegResults | list[QuantRegResults]:
        """Minimise the check loss exactly.

        Parameters
        ----------
        q : float or sequence of float, default 0.5
            Level, strictly between 0 and 1. A sequence gives a list of results, one
            for each level, in its order.
        cov_type : {"robust", "iid", "nid", "ker", "boot"}, default "robust"
            "robust": Greene's sandwich with a kernel density, the default of
            statsmodels and Stata. "iid", "nid" (Hendricks-Koenker) and "ker" (Powell):
            those of R's `summary.rq`. "boot": pairs bootstrap.
        cov_kwds : mapping, optional
            "robust": kernel, bandwidth. "iid", "nid", "ker": hs (Hall-Sheather
            bandwidth, default True). "iid" with kernel or bandwidth: statsmodels'
            "iid". "boot": reps (200), seed (0), groups (clusters drawn whole).
        vcov, kernel, bandwidth : str, optional
            statsmodels' way to say ``cov_type``, ``cov_kwds["kernel"]`` and
            ``cov_kwds["bandwidth"]``; ``vcov="iid"`` is statsmodels' "iid".
        use_t : bool, optional
            Student's t with residual degrees of freedom (default) or the normal.

        Returns
        -------
        QuantRegResults or list of QuantRegResults

        Raises
        ------
        ModelError
            For unknown standard errors, or data too few or tied for them.

        Warns
        -----
        NonuniqueWarning
            If other coefficients attain the same objective.
        RankWarning
            If columns are aliased; they are dropped.
        """
        kind, options = self._standard_errors(
            cov_type, cov_kwds, vcov, kernel, bandwidth
        )
        levels = np.asarray(q, dtype=float)
        if levels.ndim > 1 or levels.size == 0:
            raise ValueError(f"q must be a number or a list of numbers, not {q!r}.")
        for level in levels.reshape(-1):
            if not 0 < level < 1:
                raise ValueError(f"q must be strictly between 0 and 1, not {level:g}.")
        self._drop_aliased()
        found = [self._fit_one(float(v), kind, options, use_t) for v in levels.flat]
        return found if levels.ndim else found[0]

    def _standard_errors(
        self,
        cov_type: str | None,
        cov_kwds: Mapping[str, Any] | None,
        vcov: str | None,
        kernel: str | None,
        bandwidth: str | None,
    ) -> tuple[str, dict[str, Any]]:
        if cov_type is not None and vcov is not None:
            raise ValueError("give cov_type= or vcov= (statsmodels' name), not both.")
        options = dict(cov_kwds or {})
        given = {"kernel": kernel, "bandwidth": bandwidth}
        options.update({k: v for k, v in given.items() if v is not None})
        if vcov == "iid":
            options = {"kernel": "epa", "bandwidth": "hsheather", **options}
        return _checked(cov_type or vcov or "robust", options)

    def _fit_one(
        self, q: float, kind: str, options: dict[str, Any], use_t: bool | None
    ) -> QuantRegResults:
        self.cautions = ()
        X, y, w = self.arrays()
        found = fit_quantile(X, y, q, w)
        if found.nonunique:
            self.caution(
                f"the check loss at q = {q:g} is flat at its minimum: other "
                "coefficients fit as well as those reported.",
                NonuniqueWarning,
            )
        nobs = float(self.design.n)
        p = len(self.parameters)
        fit = Fit(
            x=torch.from_numpy(found.params),
            bread=torch.full((p, p), torch.nan, dtype=torch.float64),
            information="none", scale=1.0, nobs=nobs, df_resid=nobs - p,
            facts=self._facts_of(found, q, options), converged=found.converged,
            iterations=found.iterations, gradient_norm=abs(found.gap),
            message=found.message, notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        likelihood = PredictorLikelihood(self, self.design, self.compute)
        use_t = True if use_t is None else use_t
        return QuantRegResults(self, fit, likelihood, kind, options, use_t)

    def _facts_of(
        self, found: QuantileFit, q: float, options: Mapping[str, Any]
    ) -> dict[str, float]:
        X, y, w = self.arrays()
        ones = np.ones((len(y), 1))
        null = fit_quantile(ones, y, q, w).objective
        residual = y - X @ found.params
        if w is not None:
            y, residual = y * w, residual * w
        chosen = {k: options[k] for k in ("kernel", "bandwidth") if k in options}
        try:
            sparsity, width = kernel_sparsity(y, residual, q, **chosen)
        except ModelError:  # tied residuals; only some standard errors need a density
            sparsity = width = float("nan")
        return {
            "q": q, "objective": found.objective, "null_objective": null,
            "sparsity": sparsity, "bandwidth": width,
            "nonunique": float(found.nonunique),
        }  # fmt: skip

    def _drop_aliased(self) -> None:
        X, _, _ = self.arrays()
        length = np.sqrt((X**2).sum(axis=0))
        scaled = X / np.where(length > 0, length, 1.0)
        pivots = np.abs(np.diag(np.linalg.qr(scaled, mode="r")))
        if pivots.min() > 1e-4:
            return
        gone = aliased_columns(*triangle(self.design, self.compute))
        if not gone:
            return
        names = self.design.X.names
        self.note_dropped([names[j] for j in gone])
        kept = [j for j in range(len(names)) if j not in gone]
        self.design, self._arrays = self.design.select_columns(kept), None


def quantreg(formula: str | Formula, data: Any, **options: Any) -> QuantReg:
    """Quantile regression.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + C(g)"``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        See `QuantReg`: weights, offset, na_action, context, device, dtype.

    Returns
    -------
    QuantReg
        Call ``.fit(q=0.5)`` on it.

    Examples
    --------
    >>> from deepstats.models.quantile import quantreg
    >>> data = {"y": [1.0, 2.0, 4.0, 4.0, 9.0], "x": [0.0, 1.0, 2.5, 3.0, 4.1]}
    >>> fit = quantreg("y ~ x", data).fit(0.4, cov_type="boot", cov_kwds={"reps": 20})
    >>> fit.params.round(2).to_dict()
    {'Intercept': 0.67, 'x': 1.33}
    """
    return QuantReg(formula, data, **options)


def _checked(
    kind: str, options: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Check the kind of standard errors and that its options belong to it."""
    if kind not in COV_TYPES:
        raise ModelError(
            f"cov_type {kind!r} does not go with quantile regression; use one of "
            f"{', '.join(COV_TYPES)}. For clusters: "
            "cov_type='boot', cov_kwds={'groups': ...}."
        )
    options = dict(options or {})
    if unknown := set(options) - set(COV_TYPES[kind]):
        raise ModelError(
            f"cov_kwds {sorted(unknown)} do not go with {kind!r}; it takes "
            f"{list(COV_TYPES[kind])}."
        )
    if kind == "iid" and "hs" in options and len(options) > 1:
        raise ModelError(
            "hs goes with R's 'iid', kernel and bandwidth with statsmodels'."
        )
    return kind, options


def _describe(kind: str, options: Mapping[str, Any]) -> str:
    rule = "Hall-Sheather" if options.get("hs", True) else "Bofinger"
    if kind == "robust":
        kernel = options.get("kernel", "epa")
        return f"robust (kernel {kernel}, {options.get('bandwidth', 'hsheather')})"
    names = {"iid": "iid", "nid": "nid, Hendricks-Koenker", "ker": "ker, Powell"}
    return f"{names[kind]} ({rule})"


def _iid_by_kernel(
    X: Array, y: Array, w: Array | None, beta: Array, q: float, options: Mapping
) -> tuple[Array, str]:
    """Return the "iid" of statsmodels: one sparsity, by a kernel."""
    if w is not None:
        X, y = X * w[:, None], y * w
    sparsity, _ = kernel_sparsity(y, y - X @ beta, q, **options)
    R = np.linalg.inv(np.linalg.qr(X, mode="r"))
    kernel, rule = options.get("kernel", "epa"), options.get("bandwidth", "hsheather")
    return sparsity**2 * q * (1 - q) * R @ R.T, f"iid (kernel {kernel}, {rule})"


def _bootstrap(
    X: Array,
    y: Array,
    w: Array | None,
    q: float,
    groups: tuple[Grouping, ...] | None,
    options: Mapping[str, Any],
) -> tuple[Array, str]:
    """Covariance over samples of rows, or of clusters, drawn with replacement.

    A sample is a vector of weights: how often each unit was drawn.
    """
    reps, seed = int(options.get("reps", 200)), options.get("seed", 0)
    if reps < 2:
        raise ValueError(f"reps must be at least 2, not {reps}.")
    if groups is not None and len(groups) != 1:
        raise ModelError("the bootstrap draws one kind of cluster: give one column.")
    units = len(y) if groups is None else len(groups[0])
    generator = np.random.default_rng(seed)
    found, failed = [], 0
    while len(found) < reps:
        drawn = np.bincount(generator.integers(0, units, units), minlength=units)
        times = drawn.astype(float) if groups is None else drawn[groups[0].codes] * 1.0
        if np.linalg.matrix_rank(X[times > 0]) < X.shape[1]:
            failed += 1
            if failed > 10 * reps:
                raise ModelError(
                    "bootstrap samples seldom have full rank: a column depends on too "
                    "few rows or clusters."
                )
            continue
        found.append(fit_quantile(X, y, q, times if w is None else w * times).params)
    what = "pairs" if groups is None else f"clusters of {groups[0].name} ({units})"
    text = f"bootstrap of {what} ({reps} samples, seed {seed})"
    if failed:
        text += f", {failed} without full rank redrawn"
    return np.atleast_2d(np.cov(np.array(found).T)), text
