"""Many data sets of one design, or many weightings of one data set, fitted together.

A replicate is a row of weights of the units (the bootstrap, cross-validation), or
responses of its own on the same rows (simulation, tests). All replicates of a batch
are one tensor: EM steps and Newton steps are taken for all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ...batched import BatchOptimum, batched_newton, inverses
from ...errors import DesignError, ModelError
from .assemble import Assembled, emission_of, grid_of
from .cells import Dense, rows_of_units
from .densities import Observed
from .emission import Emission, GridEmission, unit_sums
from .fitted import outcome_etas, permuted
from .growth import GrowthEmission
from .mixture import Mixture
from .quadratic import QuadraticEmission
from .search import EMPTY
from .slots import Basis

if TYPE_CHECKING:
    from .model import Trajectory
    from .study import Outcome, Study

__all__ = [
    "Drawn",
    "Redrawn",
    "Refits",
    "SimulatedTrajectories",
    "batches",
    "chosen",
    "covariances",
    "draw",
    "refit",
    "refit_matched",
    "simulate_fits",
]

#: EM steps before Newton's, which may not begin far from a maximum.
_WARM = 5
#: Replicates worked on at once, where memory does not say fewer.
_TOGETHER = 64
#: Numbers that the tables of a batch may hold.
_NUMBERS = 20_000_000


# -- batches of replicates -------------------------------------------------------------


def batches(
    count: int, mixture: Mixture, together: bool = True, copies: int = 1
) -> Iterator[range]:
    """Cut replicates into batches that fit the memory.

    Parameters
    ----------
    count : int
        Number of replicates.
    mixture : Mixture
    together : bool, default True
        Whether several replicates can be one tensor; otherwise a batch is one.
    copies : int, default 1
        Sets of parameters that each replicate is worked on at.
    """
    per = mixture.units * (mixture.groups + 1) + mixture.count**2
    per += sum(_numbers(e, mixture.units) for e in mixture.emissions)
    size = max(1, min(_TOGETHER, _NUMBERS // (per * copies))) if together else 1
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _numbers(emission: Emission, units: int) -> int:
    """Numbers that a replicate's own responses take."""
    incidence = getattr(emission, "incidence", None)
    return units * incidence.matrix.shape[-1] if isinstance(incidence, Dense) else 0


def chosen(mixture: Mixture, which: Tensor) -> Mixture:
    """Return the mixture of some replicates, each as often as it is named.

    Parameters
    ----------
    mixture : Mixture
        Whose weights, responses or both have a leading axis of replicates; one that
        has none is returned as it is.
    which : Tensor of int, shape (S,)
    """
    count = _replicates(mixture)
    everything = torch.arange(count, device=which.device)
    if not count or torch.equal(which, everything):
        return mixture
    weights = mixture.weights
    if weights is not None and weights.ndim == 2:
        weights = weights[which]
    emissions = tuple(_chosen(e, which) for e in mixture.emissions)
    return replace(mixture, emissions=emissions, weights=weights)


def _replicates(mixture: Mixture) -> int:
    """Length of the axis of replicates; zero where there is none."""
    if mixture.weights is not None and mixture.weights.ndim == 2:
        return len(mixture.weights)
    for emission in mixture.emissions:
        matrix = getattr(getattr(emission, "incidence", None), "matrix", None)
        if matrix is not None and matrix.ndim == 3:
            return len(matrix)
    return 0


def _chosen(emission: Emission, which: Tensor) -> Emission:
    if not isinstance(emission, GridEmission | QuadraticEmission):
        return emission
    incidence = emission.incidence
    if not isinstance(incidence, Dense) or incidence.matrix.ndim == 2:
        return emission
    normaliser = emission.normaliser
    if normaliser is not None and normaliser.ndim == 2:
        normaliser = normaliser[which]
    dense = Dense(incidence.matrix[which])
    return replace(emission, incidence=dense, normaliser=normaliser)


# -- responses that are drawn ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """Data sets drawn from a model.

    Attributes
    ----------
    groups : Tensor of int, shape (R, N)
        Group of every unit, from 0.
    responses : tuple of Tensor, each (R, n)
        Of every outcome.
    """

    groups: Tensor
    responses: tuple[Tensor, ...]


def draw(
    study: Study, assembled: Assembled, x: Tensor, count: int, generator: Generator
) -> Drawn:
    """Draw groups of the units, then responses given the groups.

    Parameters
    ----------
    study : Study
    assembled : Assembled
    x : Tensor, shape (P,)
        The user's parameters (scales as logarithms).
    count : int
        Number of data sets.
    generator : torch.Generator
    """
    if study.attendance is not None:
        raise ModelError(
            "who drops out depends on responses before, so that no replicates are "
            "drawn of a dropout model; resample units instead (kind='units')."
        )
    mixture = assembled.mixture
    *free, theta = mixture.split(x.cpu().double()[None])
    membership = mixture.membership.full(theta)[:, 0]
    shares = torch.softmax(study.units.W.cpu().double() @ membership.T, dim=1)
    groups = torch.multinomial(shares, count, replacement=True, generator=generator).T
    responses = []
    for number, (outcome, kernel, emission, part) in enumerate(
        zip(study.outcomes, assembled.kernels, mixture.emissions, free, strict=True)
    ):
        unit, own = outcome.unit.cpu(), groups
        of_class = mixture.groups_of[number] if mixture.groups_of else None
        if of_class is not None:
            own = torch.tensor(of_class)[groups]
        b, n = emission.slots.spread(part)[:, 0], len(unit)
        rows = torch.arange(n)
        etas = [
            eta.cpu().expand(len(b), n)[own[:, unit], rows]
            for eta in outcome_etas(outcome, b)
        ]
        if isinstance(emission, GrowthEmission):
            etas[0] += _effects(outcome, emission.factor(b).cpu()[own], generator)
        flat = tuple(eta.reshape(-1) for eta in etas)
        data = Observed(
            *(None if v is None else v.cpu().double().expand(count, n).reshape(-1)
              for v in (outcome.y, outcome.size, outcome.lower, outcome.upper))
        )  # fmt: skip
        drawn = kernel.sample(flat, generator, data)
        responses.append(drawn.double().reshape(count, n))
    return Drawn(groups, tuple(responses))


def _effects(outcome: Outcome, roots: Tensor, generator: Generator) -> Tensor:
    """Draw random effects and return them at the rows; (count, n).

    `roots`, (count, N, q, q), are factors of the covariance matrix of each unit.
    """
    assert outcome.effects is not None
    z = torch.randn(roots.shape[:-1], dtype=torch.float64, generator=generator)
    u = (roots @ z[..., None])[..., 0]
    Z = outcome.effects.Z.cpu().double()
    return (u[:, outcome.unit.cpu()] * Z).sum(2)


class Redrawn:
    """Mixtures of other responses on the rows of a study.

    Parameters
    ----------
    study : Study
    assembled : Assembled

    Attributes
    ----------
    together : bool
        Whether several data sets can be one mixture: their outcomes are sums over a
        few features or cells that do not depend on the responses.
    """

    def __init__(self, study: Study, assembled: Assembled) -> None:
        self.study, self.assembled = study, assembled
        emissions = assembled.mixture.emissions
        self.together = all(
            isinstance(e, QuadraticEmission)
            or (
                isinstance(e, GridEmission)
                and isinstance(e.incidence, Dense)
                and not e.linear.kernel.needs_y
            )
            for e in emissions
        )
        self._fixed: dict[int, tuple[Tensor, ...]] = {}

    def mixture(self, responses: Sequence[Tensor]) -> Mixture:
        """Return the mixture of data sets; responses (R, n) of every outcome.

        R is one where data sets cannot be worked on together.
        """
        mixture = self.assembled.mixture
        emissions = []
        for number, (outcome, emission, y) in enumerate(
            zip(self.study.outcomes, mixture.emissions, responses, strict=True)
        ):
            if not self.together:
                again = replace(outcome, y=y[0].to(outcome.y))
                emissions.append(emission_of(again, mixture.units, mixture.compute)[0])
            elif isinstance(emission, QuadraticEmission):
                emissions.append(self._quadratic(number, outcome, emission, y))
            else:
                assert isinstance(emission, GridEmission)
                emissions.append(self._grid(number, outcome, emission, y))
        return replace(mixture, emissions=tuple(emissions))

    def _quadratic(
        self, number: int, outcome: Outcome, emission: QuadraticEmission, y: Tensor
    ) -> QuadraticEmission:
        if number not in self._fixed:
            basis = Basis.of(outcome.X[0], np.asarray(outcome.patterns[0]))
            x = (outcome.X[0] @ basis.change.to(outcome.X[0])).cpu().double()
            taken = x @ emission.centre.cpu().double()
            if outcome.offsets[0] is not None:
                taken = taken + outcome.offsets[0].cpu()
            start = rows_of_units(outcome.unit.cpu(), len(self.study.units))
            self._fixed[number] = (x.T.contiguous(), taken, start)
        columns, taken, start = self._fixed[number]
        p = len(columns)
        e = y - taken
        products = torch.stack([e * e, *(e * column for column in columns)])
        own = unit_sums(products, start).permute(1, 2, 0)
        fixed = emission.incidence.matrix.expand(len(y), -1, -1)
        matrix = torch.cat([fixed[..., :1], own.to(fixed), fixed[..., 2 + p :]], dim=2)
        return replace(emission, incidence=Dense(matrix))

    def _grid(
        self, number: int, outcome: Outcome, emission: GridEmission, y: Tensor
    ) -> GridEmission:
        kernel, units = emission.linear.kernel, len(self.study.units)
        cells = len(emission.linear.X[0])
        if number not in self._fixed:
            found = grid_of(outcome, kernel)
            assert found is not None
            place = outcome.unit.cpu() * emission.incidence.matrix.shape[1]
            start = rows_of_units(outcome.unit.cpu(), units)
            self._fixed[number] = (place + found[0], start)
        place, start = self._fixed[number]
        R, n = y.shape
        size = outcome.size
        if size is not None:
            size = size.cpu().double().expand(R, n).reshape(-1)
        flat = y.reshape(-1)
        features = kernel.features(flat, size).reshape(-1, R, n)
        M = len(features)
        # Rows first, so that a replicate's numbers stand side by side while adding.
        matrix = features.new_zeros(units * M * cells, R)
        for m in range(M):
            matrix.index_add_(0, place + m * cells, features[m].T.contiguous())
        constant = kernel.constant(flat, size).reshape(1, R, n)
        like = emission.incidence.matrix
        return replace(
            emission,
            incidence=Dense(matrix.T.reshape(R, units, M * cells).to(like)),
            normaliser=unit_sums(constant, start)[0].to(like),
        )


# -- fits ------------------------------------------------------------------------------


def refit(
    mixture: Mixture, start: Tensor, *, warm: int = _WARM, steps: int = 50,
    tolerance: float = 1e-7,
) -> BatchOptimum:  # fmt: skip
    """Take each replicate from its start to its maximum.

    Parameters
    ----------
    mixture : Mixture
        With S replicates, or with none for S starts on the same data.
    start : Tensor, shape (S, P)
    warm : int, default 5
        EM steps before Newton's.
    steps : int, default 50
        Largest number of Newton steps.
    tolerance : float, default 1e-7
        On the Newton decrement, in standard errors.
    """

    def objective(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = chosen(mixture, which).derivatives(points)
        return found.value, found.gradient, found.information

    x = start
    for _ in range(warm):
        x = mixture.step(x).x
    return batched_newton(
        objective, x, lower=mixture.lower, max_iterations=steps, tolerance=tolerance
    )


@dataclass(frozen=True, eq=False)
class Refits:
    """Fits of S replicates, their groups numbered as those of a reference.

    Attributes
    ----------
    x : Tensor, shape (S, P)
        The mixture's parameters.
    llf : Tensor, shape (S,)
    information : Tensor, shape (S, P, P)
    free : Tensor of bool, shape (S, P)
        Parameters that are not at their bound.
    good : Tensor of bool, shape (S,)
        Whether the search has ended at a maximum in which no group is empty.
    agreement : Tensor, shape (S,)
        Share of the units whose most probable group is that of the reference.
    """

    x: Tensor
    llf: Tensor
    information: Tensor
    free: Tensor
    good: Tensor
    agreement: Tensor


def refit_matched(
    assembled: Assembled, mixture: Mixture, start: Tensor, reference: Tensor,
    **options: Any,
) -> Refits:  # fmt: skip
    """Fit replicates and number their groups as those of a reference.

    Groups are given the numbers under which most units, by posterior probability, are
    where the reference has them. Groups that differ in more than their numbers (in
    their orders) keep theirs.

    Parameters
    ----------
    assembled : Assembled
    mixture : Mixture
        Of S replicates.
    start : Tensor, shape (S, P)
    reference : Tensor, shape (K, N) or (K, S, N)
        Probabilities, or zeros and ones.
    **options
        Of `refit`.
    """
    found = refit(mixture, start, **options)
    x, information, free = found.x.clone(), found.information.clone(), found.free
    R, _ = mixture.posteriors(x)
    mass = R.sum(2) if mixture.weights is None else (R * mixture.weights).sum(2)
    least = torch.stack([own.amin(0) for own in mixture.own(mass)]).amin(0)
    good = found.converged & torch.isfinite(found.value) & (least > EMPTY)
    reference = reference.to(R)
    target = reference if reference.ndim == 3 else reference[:, None]
    target = target.expand(R.shape)
    ranks = _ranks(torch.einsum("ksn,jsn->skj", target, torch.nan_to_num(R)))
    if not mixture.exchangeable:
        ranks[:] = torch.arange(mixture.groups)
    for s in torch.nonzero((ranks != torch.arange(mixture.groups)).any(1)).flatten():
        order = ranks[s].tolist()
        x[s] = permuted(assembled, x[s], order)
        again = chosen(mixture, s[None]).derivatives(x[s][None])
        information[s] = again.information[0]
        R[:, s] = R[order, s]
    agreement = (R.argmax(0) == target.argmax(0)).to(R).mean(1)
    return Refits(x, found.value, information, free, good, agreement)


def _ranks(overlap: Tensor) -> Tensor:
    """Group of the fit that is each group of the reference; (S, K)."""
    S, K = overlap.shape[:2]
    ranks = torch.arange(K).repeat(S, 1)
    plain = (overlap.argmax(2) == torch.arange(K, device=overlap.device)).all(1)
    others = torch.nonzero(~plain).flatten().tolist()
    if others:
        from scipy.optimize import linear_sum_assignment

        for s in others:
            table = overlap[s].cpu().numpy()
            ranks[s] = torch.from_numpy(linear_sum_assignment(table, maximize=True)[1])
    return ranks


def covariances(assembled: Assembled, fits: Refits) -> tuple[Tensor, Tensor]:
    """Inverse information of each fit in the user's parameters.

    Returns
    -------
    cov : Tensor, shape (S, P, P)
        Zero for parameters at their bound.
    regular : Tensor of bool, shape (S,)
        Whether the information is positive definite.
    """
    keep = fits.free[:, :, None] & fits.free[:, None, :]
    eye = torch.eye(fits.x.shape[1]).to(fits.x)
    information = torch.where(keep, torch.nan_to_num(fits.information), eye)
    d = information.diagonal(dim1=1, dim2=2).abs().clamp_min(1e-300).rsqrt()
    scaled = information * d[:, :, None] * d[:, None, :]
    regular = torch.linalg.cholesky_ex(scaled)[1] == 0
    inverse = torch.where(keep, inverses(information), 0.0)
    change = assembled.change.to(inverse)
    return change @ inverse @ change.T, regular


# -- simulation studies ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SimulatedTrajectories:
    """Fits of one model to many data sets drawn from it.

    Attributes
    ----------
    params, bse : DataFrame, shape (R, P)
        Estimates and their standard errors, groups numbered as those drawn from.
    truth : Series, shape (P,)
        What was drawn from.
    llf : ndarray, shape (R,)
    converged : ndarray of bool, shape (R,)
        Whether the fit is a regular maximum in which no group is empty.
    accuracy : ndarray, shape (R,)
        Share of the units whose most probable group is the one they were drawn from.
    """

    params: pd.DataFrame
    bse: pd.DataFrame
    truth: pd.Series
    llf: np.ndarray
    converged: np.ndarray
    accuracy: np.ndarray

    def coverage(self, level: float = 0.95) -> pd.Series:
        """Share of the fits that converged whose normal interval holds the truth."""
        from scipy import special

        z = float(special.ndtri(0.5 + level / 2))
        inside = (self.params - self.truth).abs() <= z * self.bse
        return inside[self.converged].mean().rename("coverage")

    def bias(self) -> pd.DataFrame:
        """Mean error of the fits that converged, and its Monte-Carlo standard error."""
        error = (self.params - self.truth)[self.converged]
        return pd.DataFrame(
            {"bias": error.mean(), "mc_error": error.std() / np.sqrt(len(error)),
             "se_ratio": self.bse[self.converged].mean() / error.std()}
        )  # fmt: skip


def simulate_fits(
    model: Trajectory, params: Any, count: int = 1000, *, seed: int = 0,
    start: Any = None,
) -> SimulatedTrajectories:  # fmt: skip
    """Draw data sets from a model and fit it to all of them.

    Parameters
    ----------
    model : Trajectory
        Whose design (units, times, factors of membership) all data sets have.
    params : array_like or Series, shape (P,)
        What is drawn from: parameters as `TrajectoryResults.params` has them.
    count : int, default 1000
    seed : int, default 0
    start : array_like, shape (P,), optional
        Where every search begins; by default at `params`. Fits are then those of the
        maximum next to the truth, as studies of coverage want them.

    Returns
    -------
    SimulatedTrajectories

    Examples
    --------
    >>> import numpy as np
    >>> import deepstats as ds
    >>> data = {"id": np.repeat(np.arange(100), 5), "t": np.tile(np.arange(5), 100),
    ...         "y": np.arange(500) % 7}
    >>> model = ds.traj("traj(y ~ t, groups=2, id=id)", data, family="poisson")
    >>> truth = [0.0, 0.1, 1.5, -0.1, 0.2]
    >>> fits = simulate_fits(model, truth, 20)
    >>> fits.params.shape, bool(fits.accuracy.mean() > 0.95)
    ((20, 5), True)
    """
    study, assembled = model.study, model.assembled
    truth = _reported(model, params, "params")
    x = model.parameters.working(truth)
    begin = x if start is None else model.parameters.working(
        _reported(model, start, "start")
    )  # fmt: skip
    first = assembled.to_mixture(model.compute.tensor(begin))
    redrawn, generator = Redrawn(study, assembled), Generator().manual_seed(seed)
    kinds = torch.arange(model.groups)[:, None, None]
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches(count, assembled.mixture, redrawn.together):
        drawn = draw(study, assembled, x, len(batch), generator)
        mixture = redrawn.mixture(drawn.responses)
        reference = (drawn.groups == kinds).double()
        begins = first.expand(len(batch), -1)
        found = refit_matched(assembled, mixture, begins, reference)
        cov, regular = covariances(assembled, found)
        se = cov.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        parts.append(
            (assembled.to_user(found.x), se, found.llf, found.good & regular,
             found.agreement)
        )  # fmt: skip
    user, se, llf, good, accuracy = (
        torch.cat(p).cpu() for p in zip(*parts, strict=True)
    )
    names = list(model.parameters.labels)
    scale = model.parameters.scale(user)
    return SimulatedTrajectories(
        pd.DataFrame(model.parameters.reported(user).numpy(), columns=names),
        pd.DataFrame((se * scale).numpy(), columns=names),
        pd.Series(truth.numpy(), index=names), llf.numpy(), good.numpy(),
        accuracy.numpy(),
    )  # fmt: skip


def _reported(model: Trajectory, params: Any, what: str) -> Tensor:
    """Parameters as they are reported, in their order; (P,)."""
    names = list(model.parameters.labels)
    if isinstance(params, pd.Series):
        missing = [n for n in names if n not in params.index]
        if missing:
            raise DesignError(f"{what} has no value for {', '.join(missing)}.")
        params = params[names]
    values = torch.from_numpy(np.array(params, dtype=np.float64))
    if values.shape != (len(names),):
        raise DesignError(
            f"{what} has shape {tuple(values.shape)}; give {len(names)} numbers, for "
            f"{', '.join(names)}."
        )
    return values
