"""`fit`: one call that picks the model from the formula's own structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import ModelError
from .families import Family, get_family
from .formula import Formula
from .models.beta import betareg
from .models.categorical import mnlogit, ordinal
from .models.counts import hurdle, negativebinomial, zinb, zip_
from .models.glm import glm
from .models.linear import ols
from .results import Results

__all__ = ["fit"]

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
        count, ordinal, multinomial or beta model. ``| firm`` absorbs fixed effects or
        is the second part of a two-part model.
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
        information, disp).

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
    if isinstance(formula, str):
        formula = Formula.parse(formula, tuple(options.get("context") or ()))
    _refuse(formula)
    at_fit = {k: options.pop(k) for k in _FIT_OPTIONS if k in options}
    model = _model(formula, data, family, link, options)
    return model.fit(cov_type, cov_kwds, **at_fit)


def _refuse(formula: Formula) -> None:
    """Raise for formulas whose model is not part of this version."""
    if formula.call is not None:
        raise ModelError(
            f"{formula.call.name}(...) is read, but this version has no such model yet."
        )
    if formula.rhs.groups:
        raise ModelError(
            f"random effects such as {formula.rhs.groups[0].text} are read into a "
            "design (`Design.build`), but this version has no mixed model yet."
        )


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
