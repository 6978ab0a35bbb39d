"""Results of a trajectory model: methods that call their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...inference import Covariance, HypothesisTest
from ...prediction import ContrastResults
from ...results import Fit, Results
from ...summary import Summary
from .fitted import Fitted
from .likelihood import TrajectoryLikelihood

if TYPE_CHECKING:
    from ...bootstrap import BootstrapResults
    from .adequacy import Sorting
    from .distal import Distal
    from .forecast import Simulated
    from .grolts import Grolts
    from .model import Trajectory
    from .ratio import BootstrapRatio, VuongRatio
    from .validation import CrossValidation

__all__ = ["TrajectoryResults"]

_ASYMPTOTIC = (
    "trajectory models have z and chi-squared tests: no t or F distribution is known "
    "for them. Use wald_test, with clusters where units depend on each other."
)
_EFFECTS = (
    "an effect on the mean differs by group: see coef_table(), or compare "
    "trajectories(newdata) at two values."
)


class TrajectoryResults(Results):
    """Estimates of a trajectory model.

    Tests of one coefficient are z tests, of several chi-squared. Besides what all
    `Results` have:

    Attributes
    ----------
    group_probs : pandas.DataFrame
        Shares of the groups and their standard errors.
    posterior : pandas.DataFrame, shape (units, groups)
    optima : pandas.DataFrame
        The maxima found, and how many starts reached each.
    n_units, nobs : int
        Units, and rows over all outcomes.
    bic, bic_units, bic_rows : float
        With the logarithm of the number of units (`bic` is `bic_units`), or of rows.
    caic, sabic, icl : float
    entropy, entropy_raw : float
    """

    model: Trajectory

    def __init__(
        self,
        model: Trajectory,
        fit: Fit,
        likelihood: TrajectoryLikelihood,
        found: Fitted,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        cov: Covariance | None = None,
    ) -> None:
        self.traj = found
        super().__init__(
            model, fit, likelihood, cov_type, cov_kwds, use_t=False, cov=cov
        )

    def _covariance(
        self, cov_type: str, cov_kwds: Mapping[str, Any] | None
    ) -> Covariance:
        from .covariances import fit_covariance

        return fit_covariance(
            self.fit_info, self.traj, self.likelihood, cov_type, cov_kwds
        )

    def get_robustcov_results(
        self, cov_type: str = "HC0", use_t: bool | None = None, **cov_kwds: Any
    ) -> TrajectoryResults:
        """Return the same fit with other standard errors; nothing is refitted.

        Parameters
        ----------
        cov_type : {"nonrobust", "opg", "HC0", "HC1", "cluster"}, default "HC0"
            Scores are those of units; HC1 and cluster count units.
        use_t : bool, optional
            Nothing but False: the tests are asymptotic.
        **cov_kwds
            ``groups=`` of "cluster": a column that is constant in units, several, or
            values; by default what was given to the model as ``cluster=``.
        """
        if use_t:
            raise ModelError(_ASYMPTOTIC)
        return TrajectoryResults(
            self.model, self.fit_info, self.likelihood, self.traj, cov_type, cov_kwds
        )

    # -- figures of the fit ------------------------------------------------------------

    @property
    def nobs(self) -> float:
        """Rows, over all outcomes; `n_units` counts the units."""
        return float(sum(o.n for o in self.model.study.measured))

    @property
    def n_units(self) -> int:
        """Units."""
        return len(self.model.study.units)

    @property
    def df_model(self) -> float:
        """Free parameters."""
        return self._counted

    @property
    def df_resid(self) -> float:
        """Rows less free parameters."""
        return self.nobs - self._counted

    @property
    def bic(self) -> float:
        """Schwarz's criterion with the number of units, as `bic_units`.

        Units are what is independent; Stata's traj and PROC TRAJ print both and call
        this one "N = subjects".
        """
        return self.bic_units

    @property
    def bic_units(self) -> float:
        """Schwarz's criterion, ``-2 llf + log(units) * parameters``."""
        return -2 * self.llf + float(np.log(self.n_units)) * self._counted

    @property
    def bic_rows(self) -> float:
        """Schwarz's criterion, ``-2 llf + log(rows) * parameters``."""
        return -2 * self.llf + float(np.log(self.nobs)) * self._counted

    @property
    def caic(self) -> float:
        """Consistent AIC (Bozdogan 1987): ``bic_units`` and one more per parameter."""
        return self.bic_units + self._counted

    @property
    def sabic(self) -> float:
        """BIC with (units + 2) / 24 in place of the units (Sclove 1987)."""
        n = (self.n_units + 2) / 24
        return -2 * self.llf + float(np.log(n)) * self._counted

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: `bic_units` plus twice `entropy_raw`."""
        return self.bic_units + 2 * self.entropy_raw

    @cached_property
    def _sorting(self) -> Sorting:
        from .adequacy import Sorting

        return Sorting.of(self.traj)

    @property
    def entropy(self) -> float:
        """Relative entropy: 1 where every unit's group is certain; 1 for one group."""
        return self._sorting.relative_entropy

    @property
    def entropy_raw(self) -> float:
        """Entropy of the posterior probabilities, summed over units."""
        return self._sorting.entropy

    @property
    def formula_text(self) -> str:
        """The call, as written."""
        return self.model.study.plan.text

    @property
    def response_name(self) -> str:
        """Name of the response; of several, joined by commas."""
        return ", ".join(o.name for o in self.model.study.measured)

    # -- groups ------------------------------------------------------------------------

    @cached_property
    def group_probs(self) -> pd.DataFrame:
        """Shares of the groups at 95%; see `shares`."""
        return self.shares()

    def shares(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate the shares of the groups; see `adequacy.share_table`.

        Parameters
        ----------
        alpha : float, default 0.05

        Returns
        -------
        DataFrame
            share, std_error (delta method), conf_low, conf_high, assigned (share by
            posterior assignment), n (units assigned); one row for each group. With
            risk factors a share is the mean of the units' prior probabilities.
        """
        from .adequacy import share_table

        return share_table(self, alpha)

    @cached_property
    def posterior(self) -> pd.DataFrame:
        """Probability of every group for every unit."""
        study = self.model.study
        return pd.DataFrame(
            self.traj.posterior, index=study.units.labels, columns=self.traj.names
        )

    @property
    def optima(self) -> pd.DataFrame:
        """The maxima that the search found: the first is the one reported."""
        found = self.traj.optima.solutions
        return pd.DataFrame(
            {
                "llf": [s.llf for s in found],
                "starts": [s.reached for s in found],
                "smallest_group": [s.smallest for s in found],
                "converged": [s.converged for s in found],
                "degenerate": [s.degenerate for s in found],
            }
        )

    def assign(self, threshold: float | None = None) -> pd.Series:
        """Return the most probable group of every unit, from 1.

        Parameters
        ----------
        threshold : float, optional
            Units whose largest probability is below it belong to none: missing.
        """
        best = self._sorting.best + 1
        found = pd.Series(best, self.model.study.units.labels, name="group")
        if threshold is None:
            return found
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, not {threshold!r}.")
        sure = self.traj.posterior.max(axis=1) >= threshold
        return found.astype("Int64").where(sure)

    def adequacy(self) -> pd.DataFrame:
        """Tell how well units fall into groups; see `adequacy.adequacy_table`.

        Returns
        -------
        DataFrame
            n, share, assigned, mismatch, app, occ, sd; one row for each group.
        """
        from .adequacy import adequacy_table

        return adequacy_table(self)

    def adequacy_rules(self) -> pd.DataFrame:
        """Hold the fit against rules of thumb; see `adequacy.rules_table`."""
        from .adequacy import rules_table

        return rules_table(self)

    def classification(self, given: str = "assigned") -> pd.DataFrame:
        """Cross groups assigned with groups; see `adequacy.classification_table`.

        Parameters
        ----------
        given : {"assigned", "group"}
            What a row holds: those assigned to a group, or those who belong to it.
        """
        from .adequacy import classification_table

        return classification_table(self, given)

    def grolts(self) -> Grolts:
        """Fill in the GRoLTS checklist of reporting, in Markdown; see `grolts`."""
        from .grolts import grolts

        return grolts(self)

    # -- tests -------------------------------------------------------------------------

    def wald_test(
        self, hypotheses: Any, *, use_f: bool | None = None
    ) -> HypothesisTest:
        """Test linear hypotheses jointly, by chi-squared.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            ``"g1:poly1 = g2:poly1"``; see `hypotheses.restrictions` for short names.
        use_f : bool, optional
            Nothing but False: the tests are asymptotic.
        """
        from .hypotheses import restrictions

        if use_f:
            raise ModelError(_ASYMPTOTIC)
        R, q, _ = restrictions(self.model.study, self.names, hypotheses)
        return super().wald_test((R, q), use_f=False)

    def t_test(self, hypotheses: Any, *, alpha: float = 0.05) -> ContrastResults:
        """Estimate linear combinations one by one, with z tests; see `wald_test`."""
        from .hypotheses import restrictions

        R, q, labels = restrictions(self.model.study, self.names, hypotheses)
        found = super().t_test((R, q), alpha=alpha)
        frame = found.frame.set_axis(list(labels), axis=0)
        return ContrastResults(frame, found.use_t, found.conf_level)

    def wald_equal(
        self, groups: Sequence[int] | None = None, what: str = "mean"
    ) -> HypothesisTest:
        """Test that groups have equal trajectories, or other parts.

        Parameters
        ----------
        groups : sequence of int, optional
            Two or more; by default all.
        what : {"mean", "zero", "scale", "all", "membership"}, default "mean"
            All coefficients of the mean; of zero inflation; the scales; all of these,
            and those of dropping out; or the effects of the risk factors on membership.
        """
        from .hypotheses import group_equality

        return group_equality(self, groups, what)

    def wald_groups(self, what: str = "mean") -> pd.DataFrame:
        """Test every pair of groups for equality; see `wald_equal`."""
        from .hypotheses import pairs_of_groups

        return pairs_of_groups(self, what)

    def test_orders(self) -> pd.DataFrame:
        """Test each group's highest power; see `hypotheses.highest_powers`."""
        from .hypotheses import highest_powers

        return highest_powers(self)

    def compare_lr_test(self, restricted: Results) -> HypothesisTest:
        """Likelihood-ratio test against a nested model with as many groups.

        Raises
        ------
        ValueError
            If the other model has other rows, or not fewer parameters.
        ModelError
            If it has another number of groups: then twice the difference of the
            log-likelihoods is not chi-squared.
        """
        other = getattr(restricted.model, "groups", None)
        if other != self.model.groups:
            raise ModelError(
                "models with different numbers of groups are not nested as the "
                "likelihood-ratio test needs it (a share of zero is on the edge, and "
                "its trajectory is not identified): compare BIC, or bootstrap."
            )
        return super().compare_lr_test(restricted)

    # -- rows --------------------------------------------------------------------------

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Expected responses, groups weighted by the units' posterior probabilities.

        In the order of the data; of several outcomes a DataFrame. Within the limits of
        a censored response.
        """
        from .rows import by_row, fitted_means

        outcomes = list(self.model.study.measured)
        fits = [fitted_means(self.traj, j) for j in range(len(outcomes))]
        return by_row(outcomes, fits, "fittedvalues")

    @property
    def resid_response(self) -> pd.Series:
        """Responses less `fittedvalues`."""
        from .rows import by_row

        outcomes = list(self.model.study.measured)
        y = by_row(outcomes, [o.y.double().cpu().numpy() for o in outcomes], "resid")
        return y - self.fittedvalues.to_numpy()

    @property
    def resid_pearson(self) -> pd.Series:
        """Not here: a row of a mixture has no one variance."""
        raise ModelError("trajectory models have response residuals: .resid.")

    # -- what the model has not --------------------------------------------------------

    def f_test(self, hypotheses: Any) -> HypothesisTest:
        """Not here: use `wald_test`."""
        raise ModelError(_ASYMPTOTIC)

    def wald_test_terms(self, *, use_f: bool | None = None) -> pd.DataFrame:
        """Not here: use `wald_groups`, `test_orders` or `wald_test`."""
        raise ModelError(
            "trajectory models test groups and orders: .wald_groups(), .test_orders(), "
            "or .wald_test('g1:x = 0, g2:x = 0')."
        )

    def lr_test(self, hypotheses: Any) -> HypothesisTest:
        """Not here: compare two fits with `compare_lr_test`."""
        raise ModelError("fit the smaller model too and use compare_lr_test.")

    def score_test(self, hypotheses: Any, **options: Any) -> HypothesisTest:
        """Not here: use `wald_test` or `compare_lr_test`."""
        raise ModelError("trajectory models have wald_test and compare_lr_test.")

    def get_prediction(self, exog: Any = None, **options: Any) -> Any:
        """Not here: `trajectories` has intervals."""
        raise ModelError(
            "trajectory models predict with intervals by trajectories(newdata)."
        )

    def get_margeff(self, *args: Any, **options: Any) -> Any:
        """Not here: an effect differs by group."""
        raise ModelError(_EFFECTS)

    def marginal_effects(self, *args: Any, **options: Any) -> Any:
        """Not here: an effect differs by group."""
        raise ModelError(_EFFECTS)

    def get_influence(self) -> Any:
        """Not here: leverages are those of one linear predictor."""
        raise ModelError(
            "trajectory models have no leverages; posterior probabilities "
            "(.posterior) and residuals (.resid) tell which units fit badly."
        )

    # -- tables ------------------------------------------------------------------------

    def working(self) -> pd.DataFrame:
        """Estimates and standard errors on the scale of the search.

        Returns
        -------
        DataFrame
            coef, std_error; scales as logarithms, labelled ``log(sigma)``.
        """
        positive = [b.positive for b in self.model.parameters.blocks for _ in b.labels]
        names = [
            f"log({name})" if log else name
            for name, log in zip(self.names, positive, strict=True)
        ]
        variances = self.covariance.matrix.diagonal().cpu().numpy()
        return pd.DataFrame(
            {"coef": self.fit_info.x.cpu().numpy(), "std_error": np.sqrt(variances)},
            index=names,
        )

    def coef_table(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return the coefficients group by group, as printed.

        Parameters
        ----------
        alpha : float, default 0.05

        Returns
        -------
        DataFrame
            coef, std_error, z, pvalue, conf_low, conf_high by section and term.
        """
        from .page import coefficient_frame

        return coefficient_frame(self, alpha)

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        figures = (
            "nobs", "n_units", "df_model", "df_resid", "llf", "aic", "bic", "bic_rows",
            "caic", "sabic", "icl", "entropy", "converged",
        )  # fmt: skip
        row = {"groups": self.model.groups, **{f: getattr(self, f) for f in figures}}
        row["smallest_share"] = float(self.group_probs["share"].min())
        return pd.DataFrame([row])

    def augment(self) -> pd.DataFrame:
        """Return the rows used with fitted values and groups; see `rows.augmented`."""
        from .rows import augmented

        return augmented(self)

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import trajectory_summary

        return trajectory_summary(self, alpha)

    def _notes(self) -> list[str]:
        from .page import trajectory_notes

        return list(trajectory_notes(self))

    def _family_text(self) -> str:
        from .page import family_text

        return family_text(self)

    # -- curves, forecasts, pictures ---------------------------------------------------

    def trajectories(
        self,
        newdata: Any = None,
        interval: str | None = "pointwise",
        level: float = 0.95,
        outcome: str | None = None,
        scale: str = "response",
        **options: Any,
    ) -> pd.DataFrame:
        """Estimate the course of each group, with bands; see `bands.trajectories`.

        Parameters
        ----------
        newdata : frame or mapping, optional
            Columns of the formulas; by default a grid over time.
        interval : {"pointwise", "simultaneous", None}
        level : float, default 0.95
        outcome : str, optional
            One of several responses.
        scale : {"response", "linear"}
        **options
            over ("group" or "all"), time, offset, exposure, seed, smooth.
        """
        from .bands import trajectories

        return trajectories(
            self, newdata, interval=interval, level=level, outcome=outcome,
            scale=scale, **options,
        )  # fmt: skip

    def predict(
        self, newdata: Any = None, which: str = "posterior", **options: Any
    ) -> pd.DataFrame | pd.Series:
        """Predict groups and curves of units with any history.

        Parameters
        ----------
        newdata : frame or mapping, optional
            Units of the fit or new ones; those of the fit when None.
        which : str, default "posterior"
            "posterior", "group", "mean", "by_group", "linear" or "sequential"; see
            `forecast.predict`.
        **options
            responses, time; offset, exposure, lower, upper for the new rows.
        """
        from .forecast import predict

        return predict(self, newdata, which, **options)

    def simulate(
        self, nsim: int = 1, seed: int | None = None, newdata: Any = None, **given: Any
    ) -> Simulated:
        """Draw groups, then responses in them; see `forecast.simulate`."""
        from .forecast import simulate

        return simulate(self, nsim, seed, newdata, **given)

    def plot(self, data: str | None = "means", **options: Any) -> Any:
        """Draw the trajectories with their bands over the data; see `pictures.plot`.

        Parameters
        ----------
        data : {"means", "spaghetti", None}
            Observed means by posterior probability, lines of units, or nothing.
        **options
            interval, level, over, outcome, time, most, ax.
        """
        from .pictures import plot

        return plot(self, data, **options)

    def plot_posterior(self, **options: Any) -> Any:
        """Draw how certain the assigned groups are; see `pictures.plot_posterior`."""
        from .pictures import plot_posterior

        return plot_posterior(self, **options)

    # -- replicates: bootstrap, tests of the number of groups, cross-validation --------

    def bootstrap(
        self,
        kind: str = "units",
        replications: int = 999,
        *,
        groups: Any = None,
        seed: int | None = None,
        statistic: Callable[[pd.Series], Any] | None = None,
    ) -> BootstrapResults:
        """Fit to many resampled data sets at once; see `bootstrap.bootstrap`."""
        from .bootstrap import bootstrap

        return bootstrap(
            self, kind, replications, groups=groups, seed=seed, statistic=statistic
        )

    def blrt(self, n: int = 99, **options: Any) -> BootstrapRatio:
        """Test one group less by the bootstrap; see `ratio.blrt`."""
        from .ratio import blrt

        return blrt(self, n, **options)

    def vlmr(self, **options: Any) -> VuongRatio:
        """Test one group less by Vuong's theorem, with its faults; see `ratio.vlmr`."""
        from .ratio import vlmr

        return vlmr(self, **options)

    def cross_validate(
        self, folds: int | None = None, **options: Any
    ) -> CrossValidation:
        """Refit without each unit or fold, and predict it; see `validation`."""
        from .validation import cross_validate

        return cross_validate(self, folds, **options)

    # -- dual trajectories, dropout ----------------------------------------------------

    def joint_probs(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate joint probabilities of the outcomes' groups; see `dual.joint_table`.

        Parameters
        ----------
        alpha : float, default 0.05
        """
        from .dual import joint_table

        return joint_table(self, alpha)

    def conditional_probs(
        self, given: str | Sequence[str], of: str | Sequence[str] | None = None,
        alpha: float = 0.05,
    ) -> pd.DataFrame:  # fmt: skip
        """Estimate probabilities of groups given those of another outcome.

        Parameters
        ----------
        given, of : str or sequence of str
            Outcomes; by default of all others. See `dual.conditional_table`.
        alpha : float, default 0.05
        """
        from .dual import conditional_table

        return conditional_table(self, given, of, alpha)

    def outcome_probs(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate the shares of each outcome's own groups; see `dual.own_shares`."""
        from .dual import own_shares

        return own_shares(self, alpha)

    def outcome_posterior(self, outcome: str) -> pd.DataFrame:
        """Posterior probabilities of the groups of one outcome; (units, its groups)."""
        from .dual import own_posterior

        return own_posterior(self, outcome)

    def outcome_assign(self) -> pd.DataFrame:
        """Return the most probable group of every unit in each outcome, from 1."""
        from .dual import own_assignment

        return own_assignment(self)

    def independence_test(
        self, test: str = "wald", starts: int = 20, seed: int = 0
    ) -> HypothesisTest:
        """Test that the groups of the outcomes are independent.

        Parameters
        ----------
        test : {"wald", "lr"}, default "wald"
        starts, seed : int
            Of the fits of each outcome alone, for "lr". See `dual.independence`.
        """
        from .dual import independence

        return independence(self, test, starts, seed)

    def dropout_probs(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate who drops out when, by group; see `dropout.dropout_table`.

        Parameters
        ----------
        alpha : float, default 0.05
        """
        from .dropout import dropout_table

        return dropout_table(self, alpha)

    # -- random effects within groups, distal outcomes ---------------------------------

    def random_effects(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate standard deviations and correlations of random effects in groups.

        Parameters
        ----------
        alpha : float, default 0.05
            Of the Wald intervals, made on the scales of logarithms and Fisher's z.

        Returns
        -------
        DataFrame
            Columns outcome, group ("all" where groups share the covariance matrix),
            var1, var2 (missing for a standard deviation), estimate, std_error,
            conf_low, conf_high, vcov and vcov_std_error (variances and covariances).
            Standard errors are NaN on the edge: a variance of zero, a correlation of
            one.

        Raises
        ------
        ModelError
            Where the model has no ``random=``.
        """
        from .effects import effects_table

        return effects_table(self, alpha)

    def ranef(self, by_group: bool = False) -> pd.DataFrame:
        """Predict the random effects of every unit (BLUPs).

        Parameters
        ----------
        by_group : bool, default False
            Expected effects given the responses and the group, with columns (group,
            effect); by default these are averaged over the unit's posterior.
        """
        from .effects import predicted_effects

        return predicted_effects(self.traj, by_group)

    def distal(
        self,
        formula: str,
        data: Any,
        *,
        family: Any = "gaussian",
        method: str = "bch",
        assignment: str = "modal",
        interact: bool = False,
        variance: str = "shared",
        first_step: bool = True,
    ) -> Distal:
        """Regress an outcome of units on their latent group, three-step.

        Parameters
        ----------
        formula : str
            ``"z ~ 1"`` for the means of the groups, ``"z ~ x"`` with covariates.
        data : frame or mapping
            One row for each unit, or long data in which these columns are constant in
            a unit; with the column of ids.
        family : str or Family, default "gaussian"
            "gaussian", "binomial", "poisson", or another whose mean is one number.
        method : {"bch", "ml", "three-step", "modal"}, default "bch"
            "bch": weights that undo the errors of classification; robust to what is
            assumed of the outcome. "ml": a mixture whose errors of classification are
            known; more efficient where the family is right. "three-step" and "modal"
            correct nothing: units weighted by their posteriors, or in their most
            probable group. They are biased towards no difference.
        assignment : {"modal", "proportional"}, default "modal"
            How units are assigned before the errors are undone ("bch" and "ml").
        interact : bool, default False
            Whether effects of covariates differ by group.
        variance : {"shared", "group"}, default "shared"
            Scale of the outcome.
        first_step : bool, default True
            Whether standard errors include the uncertainty of the groups' parameters
            (Bakk, Oberski & Vermunt 2014).

        Returns
        -------
        Distal
            `params`, `cov`, `coefficients()`, `means`, `pairs` (differences and their
            Wald tests), `equality`, `classification`, `summary()`. Standard errors are
            robust, by unit, or by the clusters of the fit.
        """
        from .distal import distal

        return distal(
            self, formula, data, family=family, method=method, assignment=assignment,
            interact=interact, variance=variance, first_step=first_step,
        )  # fmt: skip
