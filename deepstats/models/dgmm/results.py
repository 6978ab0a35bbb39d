"""What the fit of a deep mixed model gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ...compute import one_thread
from ...errors import DesignError, ModelError
from ...summary import Summary
from .decoder import Decoder
from .forecast import Forecast, forecast
from .posterior import Marginal, marginal, modes
from .reading import as_frame
from .rows import Sample
from .training import Plan, Trained

if TYPE_CHECKING:
    from .model import DeepMixed

__all__ = ["DeepMixedResults", "LogLikelihood"]

_COLUMNS = ("mean", "lower", "upper")


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """Marginal log-likelihood.

    Attributes
    ----------
    value : float
    error : float
        Monte-Carlo standard error; 0 where the value is exact.
    by_subject : DataFrame
        Columns loglik, error, ess: the effective share of the draws.
    """

    value: float
    error: float
    by_subject: pd.DataFrame


class DeepMixedResults:
    """Fit of a deep mixed model.

    Parameters
    ----------
    model : DeepMixed
    decoder, start : Decoder
        The model fitted, and the mixed model it started from.
    plan : Plan
    chosen : Trained
        Training with subjects held out.
    again : Trained or None
        Training on all subjects.
    """

    def __init__(
        self, model: DeepMixed, decoder: Decoder, start: Decoder, plan: Plan,
        chosen: Trained, again: Trained | None,
    ) -> None:  # fmt: skip
        self.model, self.decoder, self.start = model, decoder, start
        self.plan, self.chosen, self.again = plan, chosen, again

    @property
    def left_start(self) -> bool:
        """Whether the mixed model was left."""
        return self.chosen.epoch > 0

    @property
    def anchors(self) -> dict[str, Any]:
        """Fits of the mixed models it started from, by outcome."""
        return self.model.anchors

    @cached_property
    def history(self) -> pd.DataFrame:
        """Bounds per subject by epoch: columns run, epoch, training, held_out.

        The run is "choose" with subjects held out, "refit" on all.
        """
        runs = {"choose": self.chosen, "refit": self.again}
        rows = [
            (name, *line) for name, run in runs.items() if run for line in run.history
        ]
        return pd.DataFrame(rows, columns=["run", "epoch", "training", "held_out"])

    @one_thread()
    def loglik(self, data: Any = None, *, n: int = 500, seed: int = 1) -> LogLikelihood:
        """Marginal log-likelihood of the data of the fit, or of new subjects.

        Parameters
        ----------
        data : frame or mapping, optional
            Every subject is taken as new.
        n : int, default 500
            Draws a subject, an even number.
        seed : int, default 1

        Returns
        -------
        LogLikelihood

        Notes
        -----
        Exact where all responses are normal and the predictor linear in the latent
        effects. Else by importance sampling from a t distribution around each subject's
        mode, scaled by the information there; densities of counts and proportions with
        their constants.
        """
        sample, subjects = self._observed(data)
        found = marginal(self.decoder, sample, _even(n), _generator(seed))
        return _log_likelihood(found, subjects)

    @one_thread()
    def anchor_comparison(self, *, n: int = 500, seed: int = 1) -> pd.DataFrame:
        """Log-likelihood of the data of the fit, at the start and fitted.

        The data chose the parameters; `held_out_gain` is the fair comparison.

        Returns
        -------
        DataFrame
            Rows mixed, deep; columns loglik, error, per_subject.
        """
        sample = self.model.reader.sample
        rows = []
        for decoder in (self.start, self.decoder):
            found = marginal(decoder, sample, _even(n), _generator(seed))
            value = float(found.values.sum())
            rows.append((value, float(found.errors.square().sum()) ** 0.5,
                         value / sample.n))  # fmt: skip
        columns = ["loglik", "error", "per_subject"]
        return pd.DataFrame(rows, index=["mixed", "deep"], columns=columns)

    @property
    def held_out_gain(self) -> tuple[float, float]:
        """Gain per held-out subject over the mixed model, and its standard error.

        Of the best epoch, which the same subjects chose; NaN without training.
        """
        return self.chosen.gain, self.chosen.error

    @one_thread()
    def ranef(self) -> pd.DataFrame:
        """Modes of the latent effects, standard normal at the start, by subject."""
        mode, _ = modes(self.decoder, self.model.reader.sample)
        names = [f"b{j + 1}" for j in range(self.decoder.latent)]
        return pd.DataFrame(mode.numpy(), self.model.reader.subjects, names)

    @one_thread()
    def diagnostics(self, *, n: int = 500, seed: int = 1) -> pd.Series:
        """How well importance sampling and the latent effects are doing.

        Returns
        -------
        Series
            Least and mean effective share of draws, Monte-Carlo error of the
            log-likelihood per subject, and the number of active latent effects: those
            whose modes vary by more than 0.1 between subjects.
        """
        sample = self.model.reader.sample
        found = marginal(self.decoder, sample, _even(n), _generator(seed))
        spread = self.ranef().std(ddof=0)
        return pd.Series(
            {
                "ess_min": float(found.ess.min()),
                "ess_mean": float(found.ess.mean()),
                "mc_error": float(found.errors.square().sum()) ** 0.5 / sample.n,
                "latent": self.decoder.latent,
                "active_latent": int((spread > 0.1).sum()),
            },
            name="diagnostics",
        )

    # -- prediction --------------------------------------------------------------------

    @one_thread()
    def predict(
        self,
        data: Any = None,
        *,
        type: str = "subject",
        interval: str | None = None,
        level: float = 0.95,
        n: int = 1000,
        seed: int = 1,
    ) -> pd.DataFrame:
        """Predict responses of rows, for subjects of the fit or for the population.

        Parameters
        ----------
        data : frame or mapping, optional
            Rows to predict; those of the fit when None. Responses in it are not used.
        type : {"subject", "population"}
            Curves of the subjects, given their responses in the data of the fit (new
            subjects are predicted as the population); or means over all subjects.
        interval : {"confidence", "prediction"}, optional
            For the subject's own mean, or for a new response. With "population" the
            limits are those of the subjects' means, or of responses, of a new subject.
            Parameters are taken as known.
        level : float, default 0.95
        n : int, default 1000
            Draws of the latent effects a subject, an even number.
        seed : int, default 1

        Returns
        -------
        DataFrame
            A column for each outcome; with an interval columns (outcome, mean), lower
            and upper. Rows with missing values get NaN.
        """
        _check_prediction(interval, level)
        if type not in ("subject", "population"):
            raise ValueError(f"type must be subject or population, not {type!r}.")
        model, reader = self.model, self.model.reader
        frame = model.data if data is None else as_frame(data)
        every = np.ones(len(frame), dtype=bool)
        _, wanted, places, subjects = reader.new(frame, ~every, every)
        known = None
        if type == "subject":
            known = self._history_of(subjects, wanted)
        found = forecast(
            self.decoder, known, wanted, _even(n), level, interval == "prediction",
            _generator(seed),
        )  # fmt: skip
        parts = {}
        for reading, f, at in zip(reader.outcomes, found, places, strict=True):
            for column in _COLUMNS if interval else ("mean",):
                values = np.full(len(frame), np.nan)
                values[at] = getattr(f, column)
                parts[(reading.name, column) if interval else reading.name] = values
        return pd.DataFrame(parts, index=frame.index)

    def _history_of(self, subjects: pd.Index, wanted: Sample) -> Sample:
        """Responses in the data of the fit of some subjects; none of new ones."""
        reader = self.model.reader
        place = torch.from_numpy(np.array(subjects.get_indexer(reader.subjects)))
        parts = []
        for rows in reader.sample.rows:
            subject = place[rows.subject]
            keep = torch.nonzero(subject >= 0)[:, 0]
            parts.append(rows.take(keep, subject[keep]))
        return Sample(tuple(parts), wanted.prior, wanted.n)

    @one_thread()
    def dynamic_predict(
        self,
        data: Any,
        *,
        landmark: float | None = None,
        times: Sequence[float] | None = None,
        interval: str = "prediction",
        level: float = 0.95,
        n: int = 1000,
        seed: int = 1,
    ) -> pd.DataFrame:
        """Predict all outcomes of subjects from any part of their history.

        Parameters
        ----------
        data : frame or mapping
            Subjects, new or of the fit, with the responses known of them; any may be
            missing, and outcomes may be left out altogether.
        landmark : float, optional
            Only responses up to this time are used; all there are when None.
        times : sequence of float, optional
            Times to predict at, with the other columns of the subject's last row up to
            the landmark (of its first row where there is none). When None, the rows of
            `data` after the landmark, or all rows without one.
        interval : {"prediction", "confidence"}
            Limits for responses, or for the subject's mean.
        level : float, default 0.95
        n : int, default 1000
            Draws of the latent effects a subject, an even number.
        seed : int, default 1

        Returns
        -------
        DataFrame
            One row for each subject, time and outcome: columns of the subject, the
            time, outcome, mean, lower, upper.

        Raises
        ------
        ModelError
            Without ``time=`` in the model.

        Notes
        -----
        The latent effects are drawn given the history, by importance sampling; the
        parameters are taken as known, so that limits are a little too narrow where the
        data of the fit were few.
        """
        _check_prediction(interval, level)
        reader = self.model.reader
        if reader.time is None:
            raise ModelError("dynamic_predict needs time= in ds.dgmm(...).")
        frame = as_frame(data)
        if reader.time not in frame:
            raise DesignError(f"there is no column {reader.time!r} for the time.")
        frame, history, wanted = _landmarked(
            frame, reader.group, reader.time, landmark, times
        )
        known, asked, places, _ = reader.new(frame, history, wanted)
        found = forecast(
            self.decoder, known, asked, _even(n), level, interval == "prediction",
            _generator(seed),
        )  # fmt: skip
        parts = [
            _labelled(frame.iloc[at], reader.group, reader.time, reading.name, f)
            for reading, f, at in zip(reader.outcomes, found, places, strict=True)
        ]
        out = pd.concat(parts, ignore_index=True)
        by = [reader.group, reader.time]
        return out.sort_values(by, kind="stable", ignore_index=True)

    def _observed(self, data: Any) -> tuple[Sample, pd.Index]:
        reader = self.model.reader
        if data is None:
            return reader.sample, reader.subjects
        frame = as_frame(data)
        every = np.ones(len(frame), dtype=bool)
        known, _, _, subjects = reader.new(frame, every, ~every)
        return known, subjects

    # -- the page ----------------------------------------------------------------------

    def summary(self) -> Summary:
        """Lay out the page: what was fitted, and what held-out subjects said.

        Returns
        -------
        Summary
        """
        from .page import deep_summary

        return deep_summary(self)

    def __repr__(self) -> str:
        return self.summary().as_text()

    def save(self, path: Any) -> NoReturn:
        """Refuse: deep mixed models are not saved in this version."""
        raise ModelError(
            "deep mixed models cannot be saved in this version; the same data, options "
            "and seed give the same fit."
        )

    def cov_params(self, **options: Any) -> NoReturn:
        """Refuse: there are no standard errors beside networks in this version."""
        raise ModelError(
            "standard errors of a deep mixed model are not in this version; those of "
            "the mixed models it started from are in .anchors."
        )


def _log_likelihood(found: Marginal, subjects: pd.Index) -> LogLikelihood:
    frame = pd.DataFrame(
        {"loglik": found.values.numpy(), "error": found.errors.numpy(),
         "ess": found.ess.numpy()},
        index=subjects,
    )  # fmt: skip
    error = float(found.errors.square().sum()) ** 0.5
    return LogLikelihood(float(found.values.sum()), error, frame)


def _labelled(
    frame: pd.DataFrame, group: str, time: str, outcome: str, found: Forecast
) -> pd.DataFrame:
    out = frame[[group, time]].reset_index(drop=True)
    out["outcome"] = outcome
    for column in _COLUMNS:
        out[column] = getattr(found, column)
    return out


def _landmarked(
    frame: pd.DataFrame, group: str, time: str, landmark: float | None,
    times: Sequence[float] | None,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:  # fmt: skip
    """Return data with the rows to predict; which are history, which wanted."""
    when = frame[time].to_numpy(dtype=np.float64)
    if np.isnan(when).any():
        raise DesignError(f"{time} is missing in {np.isnan(when).sum()} rows.")
    before = np.full(len(frame), True) if landmark is None else when <= landmark
    if times is None:
        after = ~before if landmark is not None else before
        if not after.any():
            raise DesignError("there is no row after the landmark; give times=.")
        return frame, before, after
    at = np.asarray(times, dtype=np.float64).ravel()
    if not len(at) or not np.isfinite(at).all():
        raise ValueError(f"times must be finite numbers, not {times!r}.")
    # The last row up to the landmark; where there is none, the first of all.
    order = np.lexsort((np.where(before, when, -when), before))
    last = frame.iloc[order].drop_duplicates(group, keep="last")
    last = last.sort_values(group, kind="stable")
    ahead = last.iloc[np.repeat(np.arange(len(last)), len(at))]
    ahead = ahead.assign(**{time: np.tile(at, len(last))})
    both = pd.concat([frame, ahead], ignore_index=True)
    new = np.arange(len(both)) >= len(frame)
    return both, np.concatenate([before, np.zeros(len(ahead), bool)]), new


def _check_prediction(interval: str | None, level: float) -> None:
    if interval not in (None, "confidence", "prediction"):
        raise ValueError(
            f"interval must be confidence or prediction, not {interval!r}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}.")


def _even(n: Any) -> int:
    if not (isinstance(n, Integral) and n >= 4 and n % 2 == 0):
        raise ValueError(f"n must be an even number of draws, at least 4; not {n!r}.")
    return int(n)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed))
