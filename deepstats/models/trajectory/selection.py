"""How many groups, and of which orders: the whole grid fitted, and one table of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ...errors import DesignError, ModelError
from ...formula import Formula
from ...summary import Notes, Pairs, Summary, Table
from .model import Progress, Trajectory, schedule_of
from .reading import OPTIONS, Plan, read
from .results import TrajectoryResults
from .search import search
from .study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CRITERIA", "Selection", "traj_select"]

#: Criteria to choose by, the smallest being best.
CRITERIA = (
    "aic", "bic_units", "bic_rows", "caic", "sabic", "icl", "cv_error",
)  # fmt: skip
#: Models that one grid may have.
_MOST = 300
#: Ways to give orders to the groups of the full model that are tried as starts.
_WAYS = 24
#: Largest number of rounds of dropping terms.
_ROUNDS = 20

Orders = tuple[int, ...] | None
Key = tuple[int, Orders]

#: Columns of the page: their heads, and how they are written.
_COLUMNS = {
    "groups": ("K", "d"), "orders": ("orders", ""), "llf": ("log-lik.", ".2f"),
    "parameters": ("params", ".0f"), "bic_units": ("BIC units", ".2f"),
    "bic_rows": ("BIC rows", ".2f"), "icl": ("ICL", ".2f"),
    "entropy": ("entropy", ".3f"), "smallest_share": ("smallest", ".3f"),
    "min_app": ("min APP", ".3f"), "cv_error": ("CV error", ".4f"),
    "reached": ("reached", ".0f"),
}  # fmt: skip


# -- what is returned ------------------------------------------------------------------


class Fits(dict[Key, TrajectoryResults]):
    """Fits by (groups, orders); ``fits[3]`` is the best of those with three groups."""

    def __init__(self, fits: dict[Key, TrajectoryResults], ranks: list[Key]) -> None:
        super().__init__(fits)
        self.ranks = ranks

    def __missing__(self, key: Any) -> TrajectoryResults:
        for k in self.ranks:
            if k[0] == key:
                return self[k]
        known = ", ".join(map(str, self))
        raise KeyError(f"{key}: there is no such fit; there are {known}")


@dataclass(frozen=True, eq=False)
class Selection:
    """A grid of fitted models, and what tells them apart.

    Attributes
    ----------
    table : DataFrame, one row for each model
        groups, orders, llf, parameters, aic, bic_units, bic_rows, caic, sabic, icl,
        entropy (relative), smallest_share, min_app, min_occ, max_mismatch, cv_error
        (NaN unless asked for), reached (starts that came to the maximum) and starts,
        usable (converged and not degenerate), warnings.
    results : mapping
        Fits by (groups, orders), orders None where the formula's are kept;
        ``results[3]`` is the best of three groups. Models that could not be fitted are
        not there; `table` says why.
    criterion : str
        What `best` goes by.
    formula : str
    """

    table: pd.DataFrame
    results: Fits = field(repr=False)
    criterion: str
    formula: str

    @cached_property
    def best(self) -> TrajectoryResults:
        """The usable fit whose criterion is smallest."""
        return self.results[self.results.ranks[0]]

    def plot(self, criterion: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw a criterion against the number of groups.

        Parameters
        ----------
        criterion : str, optional
            A column of `table`; by default the one chosen by.
        ax : Axes, optional
        """
        from .pictures import plot_selection

        usable = self.table[self.table["usable"]]
        return plot_selection(usable, criterion or self.criterion, ax)

    def plot_alluvial(self, ax: Axes | None = None) -> Axes:
        """Draw where units go as groups are added: the best fit of each number."""
        from .pictures import plot_alluvial

        return plot_alluvial(*(r for _, r in self._ladder()), ax=ax)

    def _ladder(self) -> Iterator[tuple[int, TrajectoryResults]]:
        """Best fit of each number of groups, ascending."""
        for groups in sorted({k for k, _ in self.results.ranks}):
            yield groups, self.results[groups]

    def _pairs(self) -> Iterator[tuple[TrajectoryResults, TrajectoryResults]]:
        """Fits of K - 1 and K groups, where both are there."""
        fits = dict(self._ladder())
        for groups, fit in fits.items():
            if groups - 1 in fits:
                yield fits[groups - 1], fit

    def blrt(self, n: int = 99, **options: Any) -> pd.DataFrame:
        """Bootstrap likelihood-ratio tests of each number of groups against one less.

        Parameters
        ----------
        n : int, default 99
            Replicates of each test.
        **options
            starts, seed, stop: see `ratio.blrt`.

        Returns
        -------
        DataFrame
            By the number of groups: statistic, p_value, replicates.
        """
        from .ratio import blrt, ratio_table

        return ratio_table(
            [blrt(large, n, null=small, **options) for small, large in self._pairs()]
        )

    def vlmr(self) -> pd.DataFrame:
        """Vuong-Lo-Mendell-Rubin tests of each number of groups against one less.

        See `ratio.vlmr` for what is wrong with them.
        """
        from .ratio import ratio_table, vlmr

        return ratio_table([vlmr(large, null=small) for small, large in self._pairs()])

    # -- as a page ---------------------------------------------------------------------

    def summary(self) -> Summary:
        """Lay the table out as a page: text, HTML, LaTeX or Markdown."""
        best = self.results.ranks[0]
        frame = pd.DataFrame({"": ["*" if key == best else "" for key in self._keys()]})
        for column, (name, spec) in _COLUMNS.items():
            if self.table[column].notna().any():
                frame[name] = [_written(v, spec) for v in self.table[column]]
        header = [
            ("Models", str(len(self.table))), ("Chosen by", self.criterion),
            ("Best", self._named(best)),
            ("Units", str(self.best.n_units)), ("Rows", str(int(self.best.nobs))),
            ("Family", self.best._family_text()),
        ]  # fmt: skip
        notes = [
            f"{self._named(key)}: {text}"
            for key, text in zip(self._keys(), self.table["warnings"], strict=True)
            if text
        ]
        blocks: list[Any] = [Pairs(tuple(header), columns=2)]
        align = "l" + "r" * (frame.shape[1] - 1)
        blocks.append(Table(frame, align=align, index=False))
        if notes:
            blocks.append(Notes(tuple(notes)))
        return Summary("Selection of trajectory groups", self.formula, tuple(blocks))

    def _keys(self) -> list[Key]:
        pairs = zip(self.table["groups"], self.table["orders"], strict=True)
        return [(int(k), o) for k, o in pairs]

    def _named(self, key: Key) -> str:
        groups = f"{key[0]} group" + ("s" if key[0] > 1 else "")
        return groups if key[1] is None else f"{groups}, orders {_orders_text(key[1])}"

    def as_text(self, width: int = 78) -> str:
        """Render the page as plain text."""
        return self.summary().as_text(width)

    def as_html(self) -> str:
        """Render the page as HTML."""
        return self.summary().as_html()

    def as_latex(self) -> str:
        """Render the page as LaTeX."""
        return self.summary().as_latex()

    def as_markdown(self) -> str:
        """Render the page as Markdown."""
        return self.summary().as_markdown()

    def _repr_html_(self) -> str:
        return self.as_html()

    def __repr__(self) -> str:
        return self.as_text()


def _orders_text(orders: Orders) -> str:
    return "" if orders is None else ",".join(map(str, orders))


def _written(value: Any, spec: str) -> str:
    """Write a cell; nothing where there is no value."""
    if value is None or isinstance(value, tuple):
        return _orders_text(value)
    return "" if np.isnan(value) else f"{value:{spec}}"


# -- the call --------------------------------------------------------------------------


def traj_select(
    formula: str | Formula,
    data: Any,
    groups: int | Iterable[int] = range(1, 7),
    *,
    orders: Any = None,
    criterion: str = "bic_units",
    cv: int | str | None = None,
    level: float = 0.05,
    starts: int = 100,
    seed: int = 0,
    em_steps: Sequence[int] = (10, 25, 60),
    tol: float = 1e-6,
    maxiter: int = 100,
    order: str = "mean",
    cov_type: str = "nonrobust",
    progress: bool = False,
    **options: Any,
) -> Selection:
    """Fit trajectory models of several numbers of groups and orders, and compare them.

    Parameters
    ----------
    formula : str or Formula
        ``"traj(y ~ poly(t, 2), id=pid)"``, without ``groups=`` and ``orders=``.
    data : frame or mapping
        Long: one row an occasion. It is read once.
    groups : int or iterable of int, default 1 to 6
    orders : optional
        Polynomial orders of the groups. By default those of the formula in all groups.
        A list: each item is one number for all groups, or a tuple with an order for
        each group, which is used for that number of groups. "all": every multiset of
        orders from 0 to the formula's degree. "reduce": the highest term of every group
        is dropped while it is not significant (Nagin 2005), and what is left is
        reported beside the full model. For one outcome.
    criterion : str, default "bic_units"
        "aic", "bic_units", "bic_rows", "caic", "sabic", "icl" or "cv_error".
    cv : int or "units", optional
        Cross-validate each model: a number of folds, or every unit left out by itself.
    level : float, default 0.05
        Of the tests of ``orders="reduce"``.
    starts, seed, em_steps, tol, maxiter, order, cov_type
        Of each fit; see `Trajectory.fit`.
    progress : bool, default False
        Show a bar (tqdm) of the EM steps of each model.
    **options
        Of the model: family, risk, variance ...; see `Trajectory`.

    Returns
    -------
    Selection

    Raises
    ------
    ModelError, DesignError
        For a grid that cannot be made, and where no model of it can be fitted.

    Notes
    -----
    Warnings of single models are not raised: they stand in the table. Models that did
    not converge or are degenerate (an empty group, a variance at its floor) are shown
    and never chosen, unless there are no others.

    References
    ----------
    Nagin (2005), Group-based modeling of development, ch. 4; Nylund, Asparouhov &
    Muthen (2007); Nielsen et al. (2014), on cross-validation.

    Examples
    --------
    >>> import numpy as np
    >>> import deepstats as ds
    >>> rng = np.random.default_rng(0)
    >>> high = np.repeat(rng.random(60) < 0.5, 5)
    >>> data = {"id": np.repeat(np.arange(60), 5), "t": np.tile(np.arange(5), 60)}
    >>> data["y"] = rng.poisson(np.where(high, 8, 1))
    >>> found = ds.traj_select("traj(y ~ t, id=id)", data, range(1, 4),
    ...                        family="poisson", starts=10)
    >>> found.best.model.groups
    2
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {CRITERIA}, not {criterion!r}.")
    if criterion == "cv_error" and cv is None:
        raise ValueError("criterion='cv_error' needs cv=: folds, or 'units'.")
    if cv is not None and cv != "units" and (isinstance(cv, str) or int(cv) != cv):
        raise ValueError(f"cv must be a number of folds or 'units', not {cv!r}.")
    if not isinstance(starts, int) or starts < 1:
        raise ValueError(f"starts must be a whole number >= 1, not {starts!r}.")
    schedule = schedule_of(em_steps, tol, maxiter)
    grid = _Grid(formula, data, _numbers(groups), options)

    def fit(model: Trajectory, also: Tensor | None) -> TrajectoryResults:
        generator = Generator().manual_seed(seed)
        model.cautions = model.study.notes
        with Progress(progress) as advance:
            optima = search(
                model.assembled.mixture, starts, generator, schedule, also=also,
                progress=advance,
            )  # fmt: skip
        return model.finish(optima, order, cov_type)

    grid.fit = fit
    grid.run(orders, level)
    return grid.selection(criterion, cv, seed)


def _numbers(groups: int | Iterable[int]) -> tuple[int, ...]:
    found = (groups,) if isinstance(groups, int) else tuple(groups)
    good = all(isinstance(k, (int, np.integer)) and k >= 1 for k in found)
    if not found or not good:
        raise ModelError(f"groups= are whole numbers from 1, not {groups!r}.")
    return tuple(sorted({int(k) for k in found}))


# -- the grid --------------------------------------------------------------------------


class _Grid:
    """Models to fit, and fits that there are.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    groups : tuple of int
        Ascending.
    options : dict
        Of the model.
    """

    fit: Any

    def __init__(
        self, formula: str | Formula, data: Any, groups: tuple[int, ...],
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        if isinstance(formula, str):
            formula = Formula.parse(formula, tuple(options.get("context") or ()))
        given = dict(formula.call.options) if formula.call is not None else {}
        twice = sorted({"groups", "orders", "zero_orders"} & (given.keys() | options))
        if twice:
            raise ModelError(
                f"{', '.join(twice)}: traj_select goes through these; leave them out "
                "of the formula, and give groups= and orders= to traj_select."
            )
        at_reading = {"device", "dtype"}
        unknown = options.keys() - {*OPTIONS, *at_reading, "na_action", "context"}
        if unknown:
            raise TypeError(f"traj_select has no option {', '.join(sorted(unknown))}.")
        self.formula, self.groups = formula, groups
        self.options = {k: v for k, v in options.items() if k not in at_reading}
        first = Trajectory(formula, data, groups=groups[0], **options)
        self.study: Study = first.study
        self.fits: dict[Key, TrajectoryResults] = {}
        self.failed: dict[Key, str] = {}

    def plan(self, groups: int, orders: Orders) -> Plan:
        """Read the call for some groups and orders."""
        extra = {} if orders is None else {"orders": orders}
        return read(self.formula, groups=groups, **self.options, **extra)

    @property
    def degree(self) -> int:
        """Degree of the formula's polynomial."""
        self._single()
        return len(self.plan(1, (0,)).outcomes[0].ladder)

    def _single(self) -> None:
        if len(self.study.outcomes) > 1:
            raise ModelError(
                "orders= of traj_select is for one outcome; with several give each "
                "its own polynomial in the formula."
            )

    # -- fits --------------------------------------------------------------------------

    def add(self, groups: int, orders: Orders, also: Tensor | None = None) -> bool:
        """Fit one model; whether it could be."""
        key = (groups, orders)
        if key in self.fits:
            return True
        try:
            study = self.study.replanned(self.plan(groups, orders))
        except DesignError as error:
            self.failed[key] = str(error)
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.fits[key] = self.fit(Trajectory.of_study(study), also)
        return True

    def run(self, orders: Any, level: float) -> None:
        """Fit what was asked for."""
        if orders is None:
            for groups in self.groups:
                self.add(groups, None)
        elif isinstance(orders, str) and orders == "all":
            self._all()
        elif isinstance(orders, str) and orders == "reduce":
            if not 0 < level < 1:
                raise ValueError(f"level must be between 0 and 1, not {level!r}.")
            self._single()
            for groups in self.groups:
                self._reduce(groups, level)
        else:
            for groups, one in self._listed(orders):
                self.add(groups, one)

    def _listed(self, orders: Any) -> list[Key]:
        """Models of orders that were listed."""
        self._single()
        items = [orders] if isinstance(orders, int) else orders
        if isinstance(items, str) or not isinstance(items, Iterable):
            raise ModelError(
                f"orders={orders!r}: give 'all', 'reduce', or a list of numbers and "
                "tuples such as [2, (2, 1, 0)]."
            )
        keys: list[Key] = []
        for item in items:
            if isinstance(item, (int, np.integer)):
                keys += [(k, (int(item),) * k) for k in self.groups]
            elif len(item) in self.groups:
                keys.append((len(item), tuple(int(o) for o in item)))
            else:
                raise ModelError(
                    f"orders={tuple(item)} are for {len(item)} groups, and groups= "
                    f"are {self.groups}."
                )
        return sorted(set(keys), key=lambda key: (key[0], [-o for o in key[1] or ()]))

    def _all(self) -> None:
        degrees = range(self.degree, -1, -1)
        grid = [
            (k, o)
            for k in self.groups
            for o in combinations_with_replacement(degrees, k)
        ]
        if len(grid) > _MOST:
            raise ModelError(
                f"orders='all' makes {len(grid)} models; use fewer groups, a lower "
                "degree, or orders='reduce'."
            )
        for groups, orders in grid:
            full = self.fits.get((groups, (self.degree,) * groups))
            self.add(groups, orders, None if full is None else _ways(full, orders))

    def _reduce(self, groups: int, level: float) -> None:
        """Drop the highest term of each group while it is not significant."""
        orders = (self.degree,) * groups
        also = None
        for _ in range(_ROUNDS):
            if not self.add(groups, orders, also):
                return
            fit = self.fits[groups, orders]
            lower = _lowered(fit, orders, level)
            if lower == orders:
                return
            also = _assigned(fit)[None]
            orders = lower

    # -- the table ---------------------------------------------------------------------

    def selection(self, criterion: str, cv: Any, seed: int) -> Selection:
        """Tabulate the fits."""
        if not self.fits:
            raise DesignError(next(iter(self.failed.values())))
        rows = []
        for key, fit in self.fits.items():
            row = _row(key, fit)
            if cv is not None:
                folds = None if cv == "units" else min(int(cv), fit.n_units)
                row["cv_error"] = _error(fit.cross_validate(folds, seed=seed).mae)
            rows.append(row)
        rows += [
            {"groups": k, "orders": o, "usable": False, "warnings": text}
            for (k, o), text in self.failed.items()
        ]
        table = pd.DataFrame(rows)
        table["_"] = [tuple(-v for v in o or ()) for o in table["orders"]]
        table = table.sort_values(["groups", "_"]).drop(columns="_")
        table = table.reset_index(drop=True)
        keys = zip(table["groups"], table["orders"], strict=True)
        values = dict(zip(keys, table[criterion], strict=True))
        usable = {k: _usable(fit) for k, fit in self.fits.items()}
        ranks = sorted(
            self.fits,
            key=lambda k: (not usable[k], np.nan_to_num(values[k], nan=np.inf)),
        )
        return Selection(
            table, Fits(self.fits, ranks), criterion, self.formula.text.strip()
        )


def _lowered(fit: TrajectoryResults, orders: tuple[int, ...], level: float) -> Orders:
    """Orders without the highest terms that are not significant."""
    ladder = fit.model.study.plan.outcomes[0].ladder
    found = []
    for k, order in enumerate(orders, start=1):
        name = f"g{k}:{ladder[order - 1]}" if len(orders) > 1 else ladder[order - 1]
        p = fit.pvalues[name] if order else 0.0
        found.append(order if p <= level or np.isnan(p) else order - 1)
    return tuple(found)


def _assigned(fit: TrajectoryResults) -> Tensor:
    return torch.from_numpy(fit.traj.posterior.argmax(1))


def _ways(full: TrajectoryResults, orders: tuple[int, ...]) -> Tensor:
    """Give the groups of the full model to the orders in every way."""
    ways: dict[tuple[int, ...], tuple[int, ...]] = {}
    for ranks in permutations(range(len(orders))):
        ways.setdefault(tuple(orders[r] for r in ranks), ranks)
        if len(ways) == _WAYS:
            break
    labels = _assigned(full)
    return torch.stack([torch.tensor(ranks)[labels] for ranks in ways.values()])


def _usable(fit: TrajectoryResults) -> bool:
    solution = fit.traj.solution
    return bool(solution.converged and not solution.degenerate)


def _row(key: Key, fit: TrajectoryResults) -> dict[str, Any]:
    adequacy = fit.adequacy()
    several = key[0] > 1
    return {
        "groups": key[0], "orders": key[1], "llf": fit.llf,
        "parameters": int(fit.df_model), "aic": fit.aic, "bic_units": fit.bic_units,
        "bic_rows": fit.bic_rows, "caic": fit.caic, "sabic": fit.sabic, "icl": fit.icl,
        "entropy": fit.entropy if several else np.nan,
        "smallest_share": float(adequacy["share"].min()),
        "min_app": float(adequacy["app"].min(skipna=False)),
        "min_occ": float(adequacy["occ"].min(skipna=False)) if several else np.nan,
        "max_mismatch": float(adequacy["mismatch"].abs().max()),
        "cv_error": np.nan, "reached": fit.traj.solution.reached,
        "starts": fit.traj.optima.starts, "usable": _usable(fit),
        "warnings": " ".join(fit.fit_info.notes),
    }  # fmt: skip


def _error(mae: float | pd.Series) -> float:
    """One error of all outcomes."""
    return mae if isinstance(mae, float) else float(mae.mean())
