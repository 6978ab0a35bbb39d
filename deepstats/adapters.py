"""Fits as other packages want them: marginaleffects and maketables.

maketables reads its plug-in attributes (``__maketables_coef_table__`` and others) from
`Results` itself. marginaleffects takes an instance of its ``ModelAbstract``, which
`for_marginaleffects` makes: ``avg_slopes(for_marginaleffects(results))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .expressions import expression_variables

if TYPE_CHECKING:
    from .results import Results

__all__ = ["for_marginaleffects", "maketables_statistic", "maketables_table"]


def for_marginaleffects(results: Results) -> Any:
    """Wrap a fit for the marginaleffects package.

    Parameters
    ----------
    results : Results

    Returns
    -------
    marginaleffects.classes.ModelAbstract
        Give it to ``predictions``, ``comparisons``, ``slopes``, ``hypotheses`` and
        their averages. ``vcov=`` takes the names of deepstats' covariances.

    Raises
    ------
    ImportError
        If marginaleffects is not installed.
    """
    try:
        from marginaleffects.classes import ModelAbstract, ModelVault
    except ImportError as error:
        raise ImportError(
            "marginaleffects is not installed: pip install marginaleffects; or use "
            "results.marginal_effects()."
        ) from error

    class ModelDeepstats(ModelAbstract):
        """What marginaleffects asks of a fit."""

        def validation(self) -> None:
            # The design was checked when it was built, with a larger formula language.
            self.coef, self.formula = self.vault.coef, self.vault.formula
            self.response_name = results.response_name
            self.vault.variables_type = _types(results, self.vault.modeldata)

        def get_vcov(self, vcov: Any = True) -> np.ndarray | None:
            if vcov is False:
                return None
            if vcov is True or vcov is None:
                return _covariance(results)
            return _covariance(results.get_robustcov_results(vcov))

        def find_response(self) -> str:
            return results.response_name

        def find_predictors(self) -> list[str]:
            return list(_variables(results))

        def find_variables(self) -> list[str]:
            return [results.response_name, *_variables(results)]

        def get_exog(self, newdata: Any) -> pd.DataFrame:
            return newdata.to_pandas()

        def get_predict(self, params: np.ndarray, newdata: Any) -> Any:
            return _predicted(results, params, newdata)

    vault = ModelVault(
        coef=results.params.to_numpy(),
        coefnames=np.array(results.names),
        formula=results.formula_text,
        modeldata=_data(results),
        package="deepstats",
        vcov=_covariance(results),
        variable_names=[results.response_name, *_variables(results)],
    )
    return ModelDeepstats(results, vault)


def _covariance(results: Results) -> np.ndarray:
    """Covariance in use; parameters at the edge of their range are held there."""
    V, held = results._cov.copy(), list(results.fit_info.at_bound)
    V[held] = V[:, held] = 0.0
    return V


def _variables(results: Results) -> dict[str, None]:
    spec = results.model.design.spec
    expressions = [
        e for r in (spec.formula.rhs, *spec.parts) for t in r.terms for e in t.factors
    ]
    names = (v for e in expressions for v in expression_variables(e))
    return dict.fromkeys(v for v in names if v not in spec.context)


def _data(results: Results) -> Any:
    """Return the rows of the fit, all columns, as a polars frame."""
    import polars as pl

    design = results.likelihood.design
    table: Any = design.spec.table
    columns = {}
    for name in table.columns:
        column = pd.Series(table.full(name))
        column = column if design.rows is None else column.iloc[design.rows]
        values: Any = pl.from_pandas(column.reset_index(drop=True))
        if values.dtype == pl.String:
            # marginaleffects refuses strings: it wants their levels.
            values = values.cast(pl.Enum(values.drop_nulls().unique().sort()))
        columns[name] = values
    return pl.DataFrame(columns)


def _types(results: Results, data: Any) -> dict[str, str]:
    """Types of the variables, in marginaleffects' words."""
    states = results.model.design.spec.states
    out = {}
    for name in [*_variables(results), results.response_name]:
        if name not in data.columns:
            continue
        column = data[name]
        uses = [e for e in states if name in expression_variables(e)]
        coded = [states[e].get("kind") == "categorical" for e in uses]
        if column.dtype.is_numeric():
            values = set(column.unique().to_list())
            plain = "integer" if column.dtype.is_integer() else "numeric"
            out[name] = "binary" if values <= {0, 1} else plain
        else:
            out[name] = "boolean" if str(column.dtype) == "Boolean" else "character"
        if coded and all(coded) and out[name] != "boolean":
            out[name] = "character"
    return out


def _predicted(results: Results, params: np.ndarray, newdata: Any) -> Any:
    """Means (or probabilities of all levels) at other parameters, in a polars frame."""
    import polars as pl

    data = newdata.to_pandas() if hasattr(newdata, "to_pandas") else newdata
    found, model = results._new(data, None, None)[0], results.model
    values = torch.as_tensor(np.array(params, dtype=np.float64))
    x = model.parameters.working(values)
    levels = getattr(model, "levels", None) if hasattr(model, "probabilities") else None
    if levels is None:
        mean = found.map(x, lambda b, e: model.mean(*e)).numpy()
        rows = pl.Series(range(len(mean)), dtype=pl.Int32)
        return pl.DataFrame({"rowid": rows, "estimate": mean})
    many: Any = model
    table = found.map(x, lambda b, e: many.probabilities(*e), len(levels)).numpy()
    frames = [
        pl.DataFrame(
            {
                "rowid": pl.Series(range(len(table)), dtype=pl.Int32),
                "group": [str(level)] * len(table),
                "estimate": table[:, k],
            }
        )
        for k, level in enumerate(levels)
    ]
    return pl.concat(frames)


# -- maketables -----------------------------------------------------------------------

_STATISTICS = {
    "N": "nobs", "r2": "rsquared", "adj_r2": "rsquared_adj", "fvalue": "fvalue",
    "f_statistic": "fvalue", "ll": "llf", "aic": "aic", "bic": "bic",
    "deviance": "deviance", "pseudo_r2": "prsquared", "rmse": None, "se_type": None,
    "df_resid": "df_resid", "df_model": "df_model",
}  # fmt: skip


def maketables_table(results: Results) -> pd.DataFrame:
    """Coefficients as maketables reads them: columns b, se, t, p and 95% limits."""
    interval = results.conf_int()
    return pd.DataFrame(
        {
            "b": results.params, "se": results.bse, "t": results.tvalues,
            "p": results.pvalues, "ci95l": interval[0], "ci95u": interval[1],
        }
    ).rename_axis("Coefficient")  # fmt: skip


def maketables_statistic(results: Results, key: str) -> Any:
    """Return a statistic by maketables' name, None where the model has none."""
    if key == "se_type":
        return results.cov_description
    if key == "rmse":
        return (
            float(np.sqrt(results.scale)) if "ssr" in results.fit_info.facts else None
        )
    name = _STATISTICS.get(key)
    value = None if name is None else getattr(results, name, None)
    return int(value) if key == "N" and value is not None else value
