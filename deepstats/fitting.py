"""The calls a user writes: each looks at the formula and builds its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import ModelError
from .families import Family, get_family
from .formula import Formula
from .models.absorbed import absorbed_glm, absorbed_ols
from .models.beta import betareg
from .models.categorical import mnlogit, ordinal
from .models.counts import hurdle, negativebinomial, zinb, zip_
from .models.glm import GLM
from .models.glmm import MixedGLM, mixed_glm
from .models.linear import OLS
from .models.mixed import LinearMixed
from .models.nonlinear import NonlinearMixed, NonlinearRegression
from .models.rtm import RiskTerrain
from .models.trajectory import Trajectory
from .models.trajectory.selection import traj_select
from .results import Results

__all__ = [
    "fit", "glm", "glmer", "lmer", "logit", "nlmer", "nls", "ols", "poisson", "probit",
    "rtm", "traj", "traj_select", "wls",
]  # fmt: skip


def lmer(formula: str | Formula, data: Any, **options: Any) -> LinearMixed:
    """Linear mixed model, as R's ``lmer``.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x + (1 + x | g)"``: correlated effects; ``(x || g)`` uncorrelated;
        ``(1 | a/b)`` nested; any number of terms, nested or crossed.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        weights, offset, sigma (a known residual standard deviation), na_action,
        context, device: see `models.mixed.LinearMixed`.

    Returns
    -------
    LinearMixed
        Call ``.fit(reml=True)`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 1.4, 3.1, 2.9, 2.2, 1.9, 4.0, 4.4],
    ...         "g": ["a", "a", "b", "b", "c", "c", "d", "d"]}
    >>> ds.lmer("y ~ 1 + (1 | g)", data).fit().varcorr["sdcor"].round(4).tolist()
    [1.2777, 0.2372]
    """
    return LinearMixed(formula, data, **options)


def glmer(formula: str | Formula, data: Any, **options: Any) -> MixedGLM:
    """Generalised linear mixed model, as R's ``glmer`` and ``glmmTMB``.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x + (1 | g)"``, ``"cbind(successes, failures) ~ x + (1 + x | g)"``; any
        number of random-effects terms, nested or crossed.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        family, link, zi_formula, disp_formula, information, weights, offset, exposure,
        na_action, context, device: see `models.glmm.MixedGLM`.

    Returns
    -------
    MixedGLM
        Call ``.fit()`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [0, 1, 0, 2, 9, 7, 8, 6, 3, 4, 2, 5], "g": list("aaaabbbbcccc")}
    >>> model = ds.glmer("y ~ 1 + (1 | g)", data, family="poisson")
    >>> model.fit().varcorr["sdcor"].round(3).tolist()
    [0.853]
    """
    return mixed_glm(formula, data, **options)


def nlmer(formula: str, data: Any, *, random: Any, **options: Any) -> NonlinearMixed:
    """Nonlinear mixed model, as R's ``nlme`` and lme4's ``nlmer``.

    Parameters
    ----------
    formula : str
        ``"y ~ SSlogis(x, Asym, xmid, scal)"``, or a response and any expression of
        columns and parameters.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    random : str or sequence of str
        ``"Asym ~ 1 | g"``, ``"Asym + xmid ~ 1 | g"`` with a full covariance,
        ``"Asym + xmid ~ 1 || g"`` uncorrelated, ``"Asym ~ 1 | g/h"`` nested; several
        terms as a list.
    **options
        fixed (covariates of parameters), start, weights, na_action, context: see
        `models.nonlinear.NonlinearMixed`.

    Returns
    -------
    NonlinearMixed
        Call ``.fit()`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"g": list("aaaabbbbcccc"), "x": [1, 2, 4, 8] * 3,
    ...         "y": [2.1, 3.9, 6.2, 8.8, 2.8, 5.0, 8.1, 11.6, 1.7, 3.3, 5.2, 7.0]}
    >>> model = ds.nlmer("y ~ SSmicmen(x, Vm, K)", data, random="Vm ~ 1 | g")
    >>> model.fit().params.round(1).to_dict()
    {'Vm': 16.0, 'K': 6.0}
    """
    return NonlinearMixed(formula, data, random=random, **options)


def nls(formula: str, data: Any, **options: Any) -> NonlinearRegression:
    """Nonlinear regression by least squares, as R's ``nls``.

    Parameters
    ----------
    formula : str
        ``"y ~ SSmicmen(x, Vm, K)"``, or a response and any expression of columns and
        parameters.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        fixed (covariates of parameters), start, weights, na_action, context: see
        `models.nonlinear.NonlinearRegression`.

    Returns
    -------
    NonlinearRegression
        Call ``.fit()`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"x": [0.5, 1, 2, 4, 8, 16], "y": [1.4, 2.5, 4.1, 5.6, 7.2, 8.3]}
    >>> ds.nls("y ~ SSmicmen(x, Vm, K)", data).fit().params.round(2).to_dict()
    {'Vm': 9.79, 'K': 2.9}
    """
    return NonlinearRegression(formula, data, **options)


def traj(formula: str | Formula, data: Any, **options: Any) -> Trajectory:
    """Group-based trajectory model: latent groups of units, a trajectory for each.

    Parameters
    ----------
    formula : str or Formula
        ``"traj(y ~ poly(t, 2), groups=3, id=pid)"``; ``risk=~ x1 + x2`` are factors of
        membership, ``orders=(2, 1, 0)`` a polynomial order for each group; several
        formulas are several outcomes that share the groups.
    data : frame or mapping
        Long: one row an occasion. pandas, polars, pyarrow or a mapping of columns.
    **options
        family and everything else: see `models.trajectory.Trajectory`.

    Returns
    -------
    Trajectory
        Call ``.fit(starts=100, seed=0)`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"id": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8],
    ...         "t": [0, 1] * 8,
    ...         "y": [0, 1, 1, 0, 8, 9, 9, 8, 2, 1, 7, 9, 0, 2, 8, 7]}
    >>> model = ds.traj("traj(y ~ t, groups=2, id=id)", data, family="poisson")
    >>> model.fit().assign().tolist()
    [1, 1, 2, 2, 1, 2, 1, 2]
    """
    return Trajectory(formula, data, **options)


def rtm(
    formula: str | Formula, units: Any, layers: Mapping[str, Any], **options: Any
) -> RiskTerrain:
    """Risk terrain model: which places near which things carry more crime.

    Parameters
    ----------
    formula : str or Formula
        ``"rtm(crimes ~ alcohol + metro, block=100)"``: names of layers are factors to
        choose from, columns of the units are forced in.
    units : frame or mapping
        Cells, streets or areas: counts, covariates and projected coordinates.
    layers : mapping of str to layer
        Points: frames, arrays (points, 2) or `models.rtm.PointLayer`.
    **options
        distances, bandwidths, family, choose and everything else: see
        `models.rtm.RiskTerrain`.

    Returns
    -------
    RiskTerrain
        Call ``.fit()`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> units = {"x": [1e5, 1.1e5, 1.2e5, 1.3e5, 1.4e5, 1.5e5], "y": [1e5] * 6,
    ...          "crimes": [9, 8, 2, 1, 2, 1]}
    >>> bars = [[1e5, 1e5], [1.1e5, 1e5]]
    >>> model = ds.rtm("rtm(crimes ~ bars, distances=(1000,))", units, {"bars": bars})
    >>> model.fit().risk_table()["rrv"].round(2).to_dict()
    {'bars_within_1000': 5.67}
    """
    return RiskTerrain(formula, units, layers, **options)


def ols(formula: str | Formula, data: Any, **options: Any) -> OLS:
    """Linear regression by ordinary (or weighted) least squares.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + C(g)"``; what follows ``|`` are fixed effects to absorb:
        ``"y ~ x | firm + year"``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        See `models.base.RegressionModel`: weights, freq_weights, offset, na_action,
        context, device, dtype; with absorbed effects see `models.absorbed`.

    Returns
    -------
    OLS
        Call ``.fit(cov_type="HC1")`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 2.0, 4.0, 4.0], "x": [0.0, 1.0, 2.0, 3.0]}
    >>> ds.ols("y ~ x", data).fit().params.round(2).to_dict()
    {'Intercept': 1.1, 'x': 1.1}
    """
    parsed = _parsed(formula, options)
    return (
        absorbed_ols(parsed, data, **options)
        if parsed.parts
        else OLS(parsed, data, **options)
    )


def wls(formula: str | Formula, data: Any, weights: Any, **options: Any) -> OLS:
    """Weighted least squares; `weights` are inverse variances up to a factor.

    Parameters
    ----------
    formula, data, **options
        See `ols`.
    weights : str or array_like
    """
    return ols(formula, data, weights=weights, **options)


def glm(formula: str | Formula, data: Any, **options: Any) -> GLM:
    """Generalised linear model.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x"`` or ``"cbind(successes, failures) ~ x"``; what follows ``|`` are
        fixed effects to absorb.
    data : frame or mapping
    **options
        family, link, scale, information: see `models.glm.GLM`; weights, freq_weights,
        offset, exposure, na_action, context, device, dtype: see
        `models.base.RegressionModel`.

    Returns
    -------
    GLM
        Call ``.fit(cov_type="HC1")`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"n": [2, 3, 6, 7, 8, 9], "t": [1, 2, 3, 4, 5, 6]}
    >>> ds.glm("n ~ t", data, family="poisson").fit().params.round(3).to_dict()
    {'Intercept': 0.757, 't': 0.26}
    """
    parsed = _parsed(formula, options)
    build = absorbed_glm if parsed.parts else GLM
    return build(parsed, data, **options)


def logit(formula: str | Formula, data: Any, **options: Any) -> GLM:
    """Logistic regression of a 0/1 or two-level response, or ``cbind`` counts.

    Parameters
    ----------
    formula, data, **options
        See `glm`. Standard errors are by the observed information, which for this
        link is the expected one.
    """
    return _named(formula, data, "binomial", "logit", "Logistic regression", options)


def probit(formula: str | Formula, data: Any, **options: Any) -> GLM:
    """Probit regression; standard errors by the observed information.

    Parameters
    ----------
    formula, data, **options
        See `glm`. R's `glm` and statsmodels' `GLM` report the expected information:
        ``glm(..., link="probit")``, or here ``fit(information="expected")``.
    """
    return _named(formula, data, "binomial", "probit", "Probit regression", options)


def poisson(formula: str | Formula, data: Any, **options: Any) -> GLM:
    """Poisson regression with a log link.

    Parameters
    ----------
    formula, data, **options
        See `glm`. For counts ``fit(cov_type="HC1")`` is the prudent choice: the
        Poisson variance is seldom right.
    """
    return _named(formula, data, "poisson", "log", "Poisson regression", options)


def _named(
    formula: Any, data: Any, family: str, link: str, title: str, options: dict[str, Any]
) -> GLM:
    parsed = _parsed(formula, options)
    if parsed.parts:
        return absorbed_glm(parsed, data, **{"family": family, "link": link, **options})
    options = {"information": "observed", "title": title, "link": link, **options}
    return GLM(parsed, data, family=family, **options)


def _parsed(formula: str | Formula, options: Mapping[str, Any]) -> Formula:
    if isinstance(formula, str):
        return Formula.parse(formula, tuple(options.get("context") or ()))
    return formula


#: Models that a family's name stands for; every other family is a GLM's.
_MODELS: dict[str, Callable[..., Any]] = {
    "gaussian": ols,
    "negativebinomial": negativebinomial,
    "zip": zip_,
    "zeroinflatedpoisson": zip_,
    "zinb": zinb,
    "zeroinflatednegativebinomial": zinb,
    "hurdle": hurdle,
    "ordinal": ordinal,
    "multinomial": mnlogit,
    "beta": betareg,
}

#: Spellings with an option of the model in them.
_VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "normal": ("gaussian", {}),
    "nb": ("negativebinomial", {}),
    "nb1": ("negativebinomial", {"loglike": "nb1"}),
    "nb2": ("negativebinomial", {"loglike": "nb2"}),
    "zinb1": ("zinb", {"loglike": "nb1"}),
    "zinb2": ("zinb", {"loglike": "nb2"}),
    "hurdlepoisson": ("hurdle", {"dist": "poisson"}),
    "hurdlenb": ("hurdle", {"dist": "negativebinomial"}),
    "hurdlenegativebinomial": ("hurdle", {"dist": "negativebinomial"}),
    "mnlogit": ("multinomial", {}),
}

_FIT_OPTIONS = ("use_t", "start_params", "maxiter", "tol", "information", "disp")
_TRAJECTORY_OPTIONS = (
    "starts", "seed", "start", "order", "maxiter", "tol", "em_steps", "progress",
)  # fmt: skip
_TERRAIN_OPTIONS = ("steps", "seed")
_GLMER_OPTIONS = ("nagq", "start", "maxiter", "tol", "disp")
_MIXED_OPTIONS = ("reml", "ddf", "start", "maxiter", "tol", "disp")


def fit(
    formula: str | Formula,
    data: Any,
    *,
    family: str | Family | None = None,
    link: Any = None,
    cov_type: str = "nonrobust",
    cov_kwds: Mapping[str, Any] | None = None,
    **options: Any,
) -> Results:
    """Fit the model that formula and family describe.

    Parameters
    ----------
    formula : str or Formula
        A plain formula is a linear model or, with `family`, a generalised linear,
        count, ordinal, multinomial or beta model. Random effects, ``(x | g)``, make
        it a linear mixed model; ``traj(...)`` is a trajectory model, ``rtm(...)`` a
        risk terrain model, whose data are its units. ``| firm`` absorbs fixed effects
        or is the second part of a two-part model.
    data : frame or mapping
    family : str or Family, optional
        "gaussian" (default), "binomial", "poisson", "negativebinomial", "gamma",
        "zip", "zinb", "hurdle", "ordinal", "multinomial", "beta" ...
    link : str or Link, optional
    cov_type, cov_kwds
        Standard errors; see `Results.get_robustcov_results`.
    **options
        Of the model (weights, freq_weights, offset, exposure, na_action, context,
        device, dtype, and its own) and of its fit (use_t, start_params, maxiter, tol,
        information, disp; of mixed models reml, ddf, start, maxiter, tol, disp).

    Returns
    -------
    Results

    Raises
    ------
    FormulaError, DesignError, ModelError, ValueError
        With what was given, what is allowed and what to do.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [0, 1, 0, 1, 1, 0], "x": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]}
    >>> ds.fit("y ~ x", data, family="binomial").model_name
    'Generalised linear model'
    """
    formula = _parsed(formula, options)
    if formula.call is not None:
        if formula.call.name == "rtm":
            return _terrain(formula, data, family, link, cov_type, cov_kwds, options)
        if formula.call.name != "traj":
            raise ModelError(
                f"{formula.call.name}(...) is read, but this version has no such model "
                "yet."
            )
        return _trajectories(formula, data, family, link, cov_type, cov_kwds, options)
    if formula.rhs.groups:
        return _mixed(formula, data, family, link, cov_type, cov_kwds, options)
    at_fit = {k: options.pop(k) for k in _FIT_OPTIONS if k in options}
    model = _model(formula, data, family, link, options)
    return model.fit(cov_type, cov_kwds, **at_fit)


def _trajectories(
    formula: Formula, data: Any, family: Any, link: Any, cov_type: str,
    cov_kwds: Mapping[str, Any] | None, options: dict[str, Any],
) -> Results:  # fmt: skip
    """Fit a trajectory model."""
    if link is not None:
        raise ModelError(
            "the link of a trajectory model is its family's: family=get_family("
            "'poisson', link='sqrt')."
        )
    at_fit = {k: options.pop(k) for k in _TRAJECTORY_OPTIONS if k in options}
    model = Trajectory(formula, data, family=family or "gaussian", **options)
    return model.fit(cov_type, cov_kwds, **at_fit)


def _terrain(
    formula: Formula, data: Any, family: Any, link: Any, cov_type: str,
    cov_kwds: Mapping[str, Any] | None, options: dict[str, Any],
) -> Any:  # fmt: skip
    """Fit a risk terrain model; the data are its units."""
    if link not in (None, "log"):
        raise ModelError("risk multiplies: a risk terrain model has the log link.")
    if "layers" not in options:
        raise ModelError(
            "layers= is missing: the points of each factor, as in "
            "ds.fit('rtm(crimes ~ alcohol, block=100)', units, layers={'alcohol': "
            "frame})."
        )
    at_fit = {k: options.pop(k) for k in _TERRAIN_OPTIONS if k in options}
    if family is not None:
        options["family"] = family
    return RiskTerrain(formula, data, **options).fit(cov_type, cov_kwds, **at_fit)


def _mixed(
    formula: Formula,
    data: Any,
    family: Any,
    link: Any,
    cov_type: str,
    cov_kwds: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Results:
    """Fit a model with random effects."""
    name = getattr(family, "name", family) or "gaussian"
    if str(name).lower() not in ("gaussian", "normal") or link not in (
        None,
        "identity",
    ):
        at_fit = {k: options.pop(k) for k in _GLMER_OPTIONS if k in options}
        if cov_type != "nonrobust":
            raise ModelError(
                f"cov_type={cov_type!r}: generalised linear mixed models have standard "
                "errors by the observed information only, in this version."
            )
        model = mixed_glm(formula, data, family=family, link=link, **options)
        return model.fit(**at_fit)
    at_fit = {k: options.pop(k) for k in _MIXED_OPTIONS if k in options}
    results = LinearMixed(formula, data, **options).fit(**at_fit)
    if cov_type == "nonrobust":
        return results
    return results.get_robustcov_results(cov_type, **dict(cov_kwds or {}))


def _model(
    formula: Formula, data: Any, family: Any, link: Any, options: dict[str, Any]
) -> Any:
    extra: dict[str, str] = {}
    if isinstance(family, Family) or family is None:
        name = getattr(family, "name", "gaussian")
    else:
        key = "".join(c for c in str(family).lower() if c.isalnum())
        name, extra = _VARIANTS.get(key, (key, {}))
    fixed = "alpha" in options or isinstance(family, Family)
    builder = None if fixed else _MODELS.get(name)
    if builder is None or (builder is ols and link not in (None, "identity")):
        if "alpha" in options or "power" in options:
            given = {k: options.pop(k) for k in ("alpha", "power") if k in options}
            family, link = get_family(family, link=link, **given), None
        return glm(formula, data, family=family or "gaussian", link=link, **options)
    if link is not None and builder is not ols:
        extra = {**extra, "link": link}
    return builder(formula, data, **{**extra, **options})
