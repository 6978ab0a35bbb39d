"""Results of a cumulative link mixed model: probabilities of levels, not means."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import one_thread
from ...errors import DesignError, ModelError
from .forecast import Function, Linear, _check, _confidence, _with_slopes, predict
from .results import MixedGLMResults

if TYPE_CHECKING:
    from .ordinal import MixedOrdinal

__all__ = ["MixedOrdinalResults"]

_WHICH = ("prob", "class", "link")


class MixedOrdinalResults(MixedGLMResults):
    """Estimates of a cumulative link mixed model.

    As `MixedGLMResults`, but for what rests on a mean or a variance of the response: a
    category has neither. `params` are the coefficients of the location, then the
    thresholds, ``"low|high"``.

    Attributes
    ----------
    thresholds : pandas.Series
        Thresholds between the levels, in order.
    """

    model: MixedOrdinal

    @property
    def thresholds(self) -> pd.Series:
        """Thresholds between the levels, in order."""
        return self.params[self.model.design.X.k :].rename("threshold")

    @property
    def df_model(self) -> float:
        """Coefficients of the location."""
        return float(self.model.design.X.k)

    def _notes(self) -> list[str]:
        return [*super()._notes(), *self.model.notes()]

    # -- prediction ------------------------------------------------------------------

    def predict(
        self,
        newdata: Any = None,
        *,
        which: str = "prob",
        re_form: Any = None,
        marginal: bool = False,
        allow_new_levels: bool = False,
        interval: str | None = None,
        level: float = 0.95,
        offset: Any = None,
        exposure: Any = None,
    ) -> pd.Series | pd.DataFrame:
        """Predict the levels of rows.

        Parameters
        ----------
        newdata : frame or mapping, optional
            New data; those of the fit when None. Rows with missing values get NaN.
        which : {"prob", "class", "link"}, default "prob"
            A frame of probabilities, one column for each level; the most probable
            level; the location, without thresholds.
        re_form, allow_new_levels, offset, exposure : optional
            See `MixedGLMResults.predict`.
        marginal : bool, default False
            Average probabilities over the random effects that are left out.
        interval : {"confidence"}, optional
            Of probabilities, one row for each row of the data and level: mean,
            mean_se, mean_ci_lower, mean_ci_upper (cut at 0 and 1); of the location, a
            row each.
        level : float, default 0.95

        Returns
        -------
        DataFrame or Series
        """
        if which not in _WHICH:
            reason = " (a category has no mean)" if which == "response" else ""
            raise ModelError(
                f"which={which!r} is not known for ordinal responses{reason}; "
                f"allowed: {', '.join(_WHICH)}."
            )
        if interval not in (None, "confidence") or (interval and which == "class"):
            raise ValueError(
                f"interval={interval!r} with which={which!r}: probabilities and "
                "locations have confidence intervals; other intervals there are none."
            )
        given = (newdata, re_form, marginal, allow_new_levels, offset, exposure)
        if which == "link":
            return predict(
                self, newdata, which, re_form, marginal, allow_new_levels, interval,
                level, offset, exposure,
            )  # fmt: skip
        _check(interval, level, "response", marginal)
        if interval is not None:
            return self._intervals(level, *given)
        frame = pd.concat(
            [
                label(value, name)
                for name, (label, value, *_) in zip(
                    self.model.levels, self._each(*given), strict=True
                )
            ],
            axis=1,
        )
        return frame if which == "prob" else self._most_probable(frame)

    def _most_probable(self, frame: pd.DataFrame) -> pd.Series:
        known = frame.notna().all(axis=1).to_numpy()
        best = np.where(known, np.nan_to_num(frame.to_numpy()).argmax(axis=1), -1)
        values = pd.Categorical.from_codes(best, list(self.model.levels), ordered=True)
        return pd.Series(values, frame.index, name="predicted")

    @one_thread()
    def _each(
        self, newdata: Any, re_form: Any, marginal: bool, allow_new_levels: bool,
        offset: Any, exposure: Any,
    ) -> list[tuple]:  # fmt: skip
        """By level: how rows are labelled, probabilities, and what intervals need."""
        if marginal and re_form is None:
            re_form = "none"
        linear = Linear.read(
            self, newdata, re_form, marginal, allow_new_levels, offset, exposure
        )
        v = linear.drawn if marginal else None
        out = []
        for function in self._functions():
            value, by_eta, by_v = _with_slopes(function, linear.etas, v)
            out.append((linear.data.label, value, linear, function, by_eta, by_v))
        return out

    def _functions(self) -> Iterator[Function]:
        """Probability of each level as a function of the predictors."""
        ordinal = self.model.family.ordinal

        def of(code: int) -> Function:
            def probability(*etas: Tensor) -> Tensor:
                y = torch.full_like(etas[0], float(code))
                return ordinal.log_prob_at(y, *etas).exp()

            return probability

        for code in range(ordinal.levels):
            yield of(code)

    def _intervals(self, level: float, *given: Any) -> pd.DataFrame:
        frames = []
        for label, value, linear, function, by_eta, by_v in self._each(*given):
            found = _confidence(self, linear, function, value, by_eta, by_v, level)
            se, low, high = (torch.from_numpy(f) for f in found)
            columns = {
                "mean": value, "mean_se": se, "mean_ci_lower": low.clamp(min=0),
                "mean_ci_upper": high.clamp(max=1),
            }  # fmt: skip
            frames.append(pd.DataFrame({k: label(c, k) for k, c in columns.items()}))
        levels, index = list(self.model.levels), frames[0].index
        values = np.stack([f.to_numpy() for f in frames], axis=1)
        rows = pd.MultiIndex.from_product([index, levels], names=[None, "level"])
        return pd.DataFrame(
            values.reshape(-1, values.shape[2]), rows, frames[0].columns
        )

    # -- rows ------------------------------------------------------------------------

    @cached_property
    def fittedvalues(self) -> pd.DataFrame:
        """Probabilities at the modes of the random effects, a column each level."""
        found = self.predict()
        assert isinstance(found, pd.DataFrame)
        return found

    @property
    def resid_response(self) -> pd.DataFrame:
        """Indicators of the levels less their fitted probabilities."""
        codes = np.asarray(self.model.design.y, dtype=int)
        return np.eye(len(self.model.levels))[codes] - self.fittedvalues

    @property
    def resid_pearson(self) -> pd.DataFrame:
        """Indicators less probabilities, over the root of p (1 - p)."""
        fitted, w = self.fittedvalues, self.model.design.weights
        found = self.resid_response / np.sqrt(fitted * (1 - fitted))
        return found if w is None else found.mul(np.sqrt(w), axis=0)

    def augment(self) -> pd.DataFrame:
        """Return the rows used with the most probable level and all probabilities."""
        prob = self.fittedvalues
        frame = pd.DataFrame({self.response_name: self._observed()}, prob.index)
        frame[".fitted"] = self.predict(which="class")
        frame[".eta"] = self.linear_predictor
        return frame.join(prob.add_prefix(".prob_"))

    def _observed(self) -> np.ndarray:
        levels = pd.Index(self.model.levels)
        return levels.to_numpy()[np.asarray(self.model.design.y, dtype=int)]

    def simulate(
        self, nsim: int = 1, *, seed: int | None = None, re_form: Any = "none"
    ) -> pd.DataFrame:
        """Draw responses from the fitted model, as ordered categories.

        Parameters
        ----------
        nsim : int, default 1
        seed : int, optional
        re_form : optional
            See `MixedGLMResults.simulate`.

        Returns
        -------
        DataFrame, shape (n, nsim)
        """
        codes = super().simulate(nsim, seed=seed, re_form=re_form)
        levels = list(self.model.levels)
        return codes.apply(
            lambda column: pd.Categorical.from_codes(
                column.astype(int), levels, ordered=True
            )
        )

    def read_response(self, y: Any) -> np.ndarray:
        """Codes of a response for the rows used, from levels of the data.

        Parameters
        ----------
        y : array_like, shape (n,)
            As `simulate` gives them.

        Raises
        ------
        DesignError
            For what is no level of the fit.
        """
        levels = pd.Index(self.model.levels)
        values = np.asarray(self.model.design.values(y, "y"))
        codes = levels.get_indexer(pd.Index(values.ravel()))
        if values.ndim != 1 or (codes < 0).any():
            raise DesignError(
                f"y must be one column of the levels {', '.join(map(str, levels))}."
            )
        return codes.astype(np.float64)

    def dispersion_test(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: a category has no variance to compare."""
        raise ModelError(
            "ordinal responses have no dispersion; look at resid_quantile() and "
            "plot_residuals()."
        )

    def zero_inflation_test(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: levels are no counts."""
        raise ModelError("ordinal responses are levels: none of them is a zero.")
