"""Tests of the terms of the fixed part: sequential, marginal, and by leaving out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...coding import codings, encode
from ...columns import Categorical
from ...compute import Compute
from ...contrasts import Contrast
from ...design import Design
from ...errors import ModelError
from ...formula import Term
from ...inference import likelihood_ratio, wald
from ...matrix import ModelMatrix
from ...transforms import evaluate
from .degrees import contrast_test

if TYPE_CHECKING:
    from ...results import Results
    from .results import MixedResults

__all__ = ["FixedColumns", "anova_table", "drop1", "term_contrasts"]

# Rows of a matrix reduced to a triangle at a time.
_ROWS = 20_000
# Columns with less than this share of their length left are combinations of others.
_RANK = 1e-9
_COLUMNS = ["Sum Sq", "Mean Sq", "NumDF", "DenDF", "F value", "Pr(>F)"]


def anova_table(results: MixedResults, type: int | str = 3) -> pd.DataFrame:
    """Test each term of the fixed part by F with the results' degrees of freedom.

    Parameters
    ----------
    results : MixedResults
    type : {1, 2, 3}
        Also "I", "II" and "III". In sequence; each after all terms that do not contain
        it; marginal, averaged over the terms that contain it. The hypotheses are those
        of SAS and lmerTest and do not depend on how factors are coded.

    Returns
    -------
    DataFrame
        A row a term, in lmerTest's layout. Sums of squares are the F of the Wald test
        times its degrees of freedom and the residual variance.

    References
    ----------
    Kuznetsova, Brockhoff & Christensen (2017), lmerTest package, Journal of Statistical
    Software 82(13). SAS Institute, The four types of estimable functions.
    """
    number = {"1": 1, "I": 1, "2": 2, "II": 2, "3": 3, "III": 3}.get(str(type).upper())
    if number is None:
        raise ValueError(f"type must be 1, 2 or 3, not {type!r}.")
    rows = {
        name: _row(results, R) for name, R in term_contrasts(results, number).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)


def _row(results: MixedResults, R: np.ndarray) -> tuple[float, ...]:
    q = np.zeros(len(R))
    test = contrast_test(results, R, q, True)
    plain = wald(results.params.to_numpy(), results._cov, R, q, np.inf)
    mean_sq = plain.statistic * results.scale
    # With normal quantiles the test is a chi-squared one of df_num times as much.
    F = test.statistic if test.distribution == "F" else test.statistic / test.df_num
    df = np.inf if test.df_denom is None else test.df_denom
    return mean_sq * plain.df_num, mean_sq, test.df_num, df, F, test.pvalue


def term_contrasts(results: MixedResults, type: int) -> dict[str, np.ndarray]:
    """Hypotheses about the fixed effects that test each term.

    Parameters
    ----------
    results : MixedResults
    type : {1, 2, 3}

    Returns
    -------
    dict of str to ndarray, each (restrictions, p)
        By term, in the order of the formula; terms with no coefficient are left out.
    """
    columns = FixedColumns(results.model.design)
    tested = [t for t in columns.terms if t.factors]
    found = {1: columns.sequential, 2: columns.adjusted, 3: columns.marginal}[type]
    out = {term.name: found(term) for term in tested}
    return {name: R for name, R in out.items() if len(R)}


class FixedColumns:
    """The columns of the fixed part, as fitted and with a column for every level.

    All hypotheses follow from what the columns span, so that each matrix is kept as
    the triangle of its QR decomposition.

    Parameters
    ----------
    design : Design
        Of a model that is prepared: without aliased columns.
    """

    def __init__(self, design: Design) -> None:
        self.terms, self.factors = _factors(design)
        full, self.every_term = _matrix(self.terms, self.factors, design.n, True)
        self.X, self.every = _triangle([design.X, full], design.X.k)
        self.first = _without_first(self.terms, self.factors, full.names)
        owner = _matrix(self.terms, self.factors, design.n, False)[1]
        kept = design.spec.kept.get(0)
        self.owner = owner if kept is None else [owner[j] for j in kept]
        self.numeric = {
            t: {e for e in t.factors if not isinstance(self.factors[e], Categorical)}
            for t in self.terms
        }

    def contains(self, small: Term, large: Term) -> bool:
        """Whether `large` has the same numeric factors and more categorical ones."""
        return (
            set(small.factors) < set(large.factors)
            and self.numeric[small] == self.numeric[large]
        )

    def _own(self, term: Term) -> list[int]:
        return [j for j, t in enumerate(self.owner) if t == term]

    def _after(self, before: list[int], own: list[int]) -> np.ndarray:
        """Hypothesis that `own` columns add nothing to those before, others left out.

        These are rows of the triangle of the columns in this order.
        """
        rest = [j for j in range(len(self.owner)) if j not in {*before, *own}]
        order = [*before, *own, *rest]
        R: np.ndarray = np.linalg.qr(self.X[:, order])[1]
        out = np.zeros((len(own), len(order)))
        at = np.arange(len(before), len(before) + len(own))
        # Scaled as Doolittle's factor: of several contrasts Satterthwaite's degrees of
        # freedom depend a little on their lengths, and these are lmerTest's.
        out[:, order] = R[at] / R[at, at][:, None]
        return out

    def sequential(self, term: Term) -> np.ndarray:
        """Type 1: terms in their order."""
        own = self._own(term)
        return self._after(list(range(min(own, default=0))), own)

    def adjusted(self, term: Term) -> np.ndarray:
        """Type 2: after all terms that do not contain it."""
        if not any(self.contains(term, t) for t in self.terms):
            return self.marginal(term)
        before = [
            j for j, t in enumerate(self.owner)
            if t != term and not self.contains(term, t)
        ]  # fmt: skip
        return self._after(before, self._own(term))

    def marginal(self, term: Term) -> np.ndarray:
        """Type 3: from the general form of estimable functions, as SAS builds it.

        What a basis of the rows of the matrix with all levels says of a term is made
        orthogonal to what it says of the terms that contain it, larger terms first.
        """
        basis, owner = self._basis
        own = np.array([t == term for t in owner])
        return self._to_coefficients(basis[:, own].T)

    @cached_property
    def _basis(self) -> tuple[np.ndarray, list[Term]]:
        """Functions, one a column, of the coefficients of all levels; their terms."""
        chosen = _independent(self.every, self.first)
        picked = self.every[:, chosen]
        L = np.linalg.lstsq(picked, self.every, rcond=None)[0].T
        L[np.abs(L) < 1e-10 * np.abs(L).max()] = 0.0
        owner = [self.every_term[j] for j in chosen]
        for term in sorted(set(owner), key=lambda t: -t.degree):
            above = np.array([self.contains(term, t) for t in owner])
            if above.any():
                own = np.array([t == term for t in owner])
                base = L[:, above]
                L[:, own] -= base @ np.linalg.lstsq(base, L[:, own], rcond=1e-10)[0]
        return L, owner

    def _to_coefficients(self, functions: np.ndarray) -> np.ndarray:
        """Functions of the coefficients of all levels as ones of those fitted."""
        to_every = np.linalg.lstsq(self.every, self.X, rcond=1e-10)[0]
        out = functions @ to_every
        size = np.abs(out).max(initial=0.0)
        out[np.abs(out) < 1e-10 * size] = 0.0
        return out[np.abs(out).max(axis=1, initial=0.0) > 0]


def _factors(design: Design) -> tuple[tuple[Term, ...], dict[str, Any]]:
    """Terms of the fixed part and the values of their factors."""
    spec = design.spec
    if spec.table is None:
        raise ModelError("tests of terms need the data the model was fitted to.")
    terms, factors = tuple(spec.formula.rhs.terms), {}
    for expression in dict.fromkeys(e for t in terms for e in t.factors):
        if "lag(" in expression and spec.table.rows is not None:
            raise ModelError(
                f"tests of terms need {expression} as a column of the data: its first "
                "rows were left out."
            )
        stored = dict(spec.states.get(expression, {}).get("state", {}))
        factors[expression] = evaluate(expression, spec.table, stored, spec.context)
    return terms, factors


def _matrix(
    terms: Sequence[Term], factors: dict[str, Any], n: int, full: bool
) -> tuple[ModelMatrix, list[Term]]:
    """Columns of terms, coded as the model does or with one for every level."""
    names: list[str] = []
    dense: list[tuple] = []
    coded: list[tuple] = []
    owner: list[Term] = []
    done = 0
    for number, term in enumerate(terms):
        if full:
            new = [tuple((e, True) for e in term.factors)]
        else:
            every = codings(terms[: number + 1], factors)
            new, done = every[done:], len(every)
        for coding in new:
            encode(coding, _plain(factors) if full else factors, n, names, dense, coded)
        owner += [term] * (len(names) - len(owner))
    matrix = ModelMatrix(
        n, tuple(names), tuple(c for c, _ in dense), [a for _, a in dense],
        tuple(c for c, _ in coded), [a for _, a in coded],
    )  # fmt: skip
    return matrix, owner


def _plain(factors: dict[str, Any]) -> dict[str, Any]:
    """Factors whose columns are zeros and ones, whatever their coding."""
    return {
        e: replace(f, contrast=Contrast()) if isinstance(f, Categorical) else f
        for e, f in factors.items()
    }


def _triangle(
    matrices: Sequence[ModelMatrix], first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Triangle of matrices side by side, cut after the columns of the first."""
    n, cpu = matrices[0].n, Compute("cpu", threads=1)
    rows = min(_ROWS, n)
    scratches = [m.scratch(rows, cpu) for m in matrices]
    held = np.zeros((0, sum(m.k for m in matrices)))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        parts = [s.block(start, stop).columns().numpy() for s in scratches]
        held = np.linalg.qr(np.concatenate([held, np.hstack(parts)]), mode="r")
    return held[:, :first], held[:, first:]


def _without_first(
    terms: Sequence[Term], factors: dict[str, Any], names: Sequence[str]
) -> list[int]:
    """Order of the columns of all levels: those of no factor's first level first."""
    plain, reduced = _plain(factors), []
    for term in terms:
        new = tuple((e, False) for e in term.factors)
        encode(new, plain, 0, reduced, [], [])
    last = set(names) - set(reduced)
    return sorted(range(len(names)), key=lambda j: (names[j] in last, j))


def _independent(X: np.ndarray, order: Sequence[int]) -> list[int]:
    """Columns that are no combination of those before them in an order."""
    chosen: list[int] = []
    Q = np.zeros((len(X), 0))
    for j in order:
        column = X[:, j]
        left = column - Q @ (Q.T @ column)
        left = left - Q @ (Q.T @ left)
        size = np.linalg.norm(left)
        if size > _RANK * np.linalg.norm(column):
            chosen.append(j)
            Q = np.column_stack([Q, left / size])
    return chosen


# -- leaving out ----------------------------------------------------------------------


def drop1(results: MixedResults, test: str = "lrt") -> pd.DataFrame:
    """Leave out each term of the fixed part that no other contains.

    Parameters
    ----------
    results : MixedResults
    test : {"lrt", "f"}
        "lrt": refit by maximum likelihood without the term; "f": F test of the term's
        coefficients, with the results' degrees of freedom.

    Returns
    -------
    DataFrame
        In the layout of lme4 (npar, AIC, LRT, Pr(Chi)) or of lmerTest.
    """
    if test not in ("lrt", "f"):
        raise ValueError(f"test must be 'lrt' or 'f', not {test!r}.")
    scope = droppable(results)
    if test == "f":
        columns = FixedColumns(results.model.design)
        rows = {t.name: _row(results, _without(columns, t)) for t in scope}
        return pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)
    full = results.refit(reml=False) if results.reml else results
    return dropped_table(full, {t.name: _fit_without(full, t) for t in scope})


def droppable(results: Results) -> list[Term]:
    """Terms of the fixed part that no other contains.

    Parameters
    ----------
    results : Results

    Raises
    ------
    ModelError
        Where there is none.
    """
    terms = [t for t in results.model.design.spec.formula.rhs.terms if t.factors]
    scope = [
        t for t in terms
        if not any(set(t.factors) < set(other.factors) for other in terms)
    ]  # fmt: skip
    if not scope:
        raise ModelError("the fixed part has no term that could be left out.")
    return scope


def dropped_table(full: Results, smaller: Mapping[str, Results]) -> pd.DataFrame:
    """Table of likelihood-ratio tests of a fit against smaller ones.

    Parameters
    ----------
    full : Results
    smaller : mapping of str to Results
        By the term that was left out.

    Returns
    -------
    DataFrame
        Columns npar, AIC, LRT, Pr(Chi).
    """
    frame = {"<none>": (np.nan, full.aic, np.nan, np.nan)}
    for name, small in smaller.items():
        found = likelihood_ratio(full.llf, small.llf, full._counted - small._counted)
        frame[name] = (found.df_num, small.aic, found.statistic, found.pvalue)
    return pd.DataFrame.from_dict(
        frame, orient="index", columns=["npar", "AIC", "LRT", "Pr(Chi)"]
    )


def _without(columns: FixedColumns, term: Term) -> np.ndarray:
    """Hypothesis that the model without the term holds."""
    own = [j for j, t in enumerate(columns.every_term) if t != term]
    rest = columns.every[:, own]
    left = columns.X - rest @ np.linalg.lstsq(rest, columns.X, rcond=1e-10)[0]
    lengths = np.linalg.norm(columns.X, axis=0)
    _, sizes, right = np.linalg.svd(left / lengths, full_matrices=False)
    found = right[sizes > 1e-8] * lengths
    # The same hypothesis, in the contrasts that lmerTest would take.
    usual = columns.marginal(term)
    return usual if len(usual) == len(found) else found


def _fit_without(results: MixedResults, term: Term) -> MixedResults:
    model = model_without(results, term)
    model._prepared, model.aliased = None, ()
    return model.fit(reml=False, ddf="normal")


def model_without(results: Results, term: Term) -> Any:
    """Return the model of a fit without a term of its fixed part.

    Parameters
    ----------
    results : Results
        Of a mixed model, linear or generalised.
    term : Term
    """
    model = copy.copy(results.model)
    design = model.design
    terms, factors = _factors(design)
    kept = tuple(t for t in terms if t != term)
    formula = design.spec.formula
    X, _ = _matrix(kept, factors, design.n, False)
    rhs = replace(formula.rhs, terms=kept)
    spec = replace(design.spec, formula=replace(formula, rhs=rhs), kept={})
    model.design = replace(design, X=X, spec=spec)
    model.dropped, model.cautions = (), ()
    return model
