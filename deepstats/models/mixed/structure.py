"""Random-effects terms, the grouping factors they share, and their parameters.

A term ``(1 + x | g)`` gives every level of ``g`` a vector of effects with covariance
``sigma^2 V``. Terms on one factor are merged into one block a level, whose ``V`` has a
block for each of them. Columns are standardised inside a term (a linear map `U`, which
lower triangles absorb), so that parameters are of order one whatever the data's units:
``z~ = z U`` and ``V = U V~ U'``.

A scalar's parameter is its relative variance, bounded by zero, where the gradient with
respect to a standard deviation would vanish; a vector's are the entries of the lower
triangle of its factor, column by column. A structured covariance has its own
(`covariances`), and its U is diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...design import RandomTerm
from ...errors import ModelError
from ...formula import PLACES
from ...matrix import ModelMatrix
from .covariances import KINDS, Covariance, covariance_of, lower_factor

__all__ = [
    "Factor", "Structure", "Term", "fresh_label", "kind_of", "lower_factor",
    "structured",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Term:
    """One random-effects term.

    Attributes
    ----------
    text : str
        As written, ``"(1 + x | g)"``.
    names : tuple of str
        Columns that vary.
    kind : str
        "us" for correlated and "diag" for uncorrelated effects, or the name of a
        structured covariance.
    factor : int
        Number of its grouping factor.
    at : slice
        Its place among the columns of that factor.
    params : slice
        Its place among the parameters.
    U : ndarray, shape (K, K)
        Standardisation, lower triangular.
    order : int
        Its place in the formula.
    covariance : Covariance or None
        The structured covariance, where it has one.
    """

    text: str
    names: tuple[str, ...]
    kind: str
    factor: int
    at: slice
    params: slice
    U: np.ndarray
    order: int
    covariance: Covariance | None = None

    @property
    def k(self) -> int:
        """Number of columns."""
        return len(self.names)

    @cached_property
    def variances(self) -> bool:
        """Whether the parameters are variances of uncorrelated effects."""
        return self.covariance is None and (self.kind == "diag" or self.k == 1)

    @property
    def by_triangle(self) -> bool:
        """Whether the parameters are entries of a lower triangle."""
        return self.covariance is None and not self.variances

    @cached_property
    def triangle(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the lower triangle, column by column, as in lme4."""
        return _triangle(self.k)

    def root(self, x: np.ndarray) -> np.ndarray:
        """Lower-triangular factor of the standardised covariance."""
        part = x[self.params]
        if self.covariance is not None:
            return self.covariance.root(part)
        if self.variances:
            return np.diag(np.sqrt(np.maximum(part, 0.0)))
        out = np.zeros((self.k, self.k))
        out[self.triangle] = part
        return out


@dataclass(frozen=True, eq=False)
class Factor:
    """A grouping factor and all columns that vary over its levels.

    Attributes
    ----------
    name : str
    levels : tuple
    codes : ndarray of int, shape (n,)
    matrices : tuple of ModelMatrix
        Columns of its terms, one matrix a term.
    """

    name: str
    levels: tuple
    codes: np.ndarray
    matrices: tuple[ModelMatrix, ...]

    @property
    def m(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @cached_property
    def k(self) -> int:
        """Effects a level."""
        return sum(z.k for z in self.matrices)

    @property
    def q(self) -> int:
        """Effects in all."""
        return self.m * self.k


@dataclass(frozen=True, eq=False)
class Structure:
    """All random effects of a model.

    Attributes
    ----------
    factors : tuple of Factor
        By decreasing number of effects.
    terms : tuple of Term
        In the order of the formula.
    """

    factors: tuple[Factor, ...]
    terms: tuple[Term, ...]

    @classmethod
    def build(
        cls, random: Sequence[RandomTerm], standardise: Sequence[np.ndarray]
    ) -> Structure:
        """Merge terms on the same grouping factor.

        Parameters
        ----------
        random : sequence of RandomTerm
        standardise : sequence of ndarray
            Mean cross-product ``Z'WZ / n`` of the columns of each term.

        Raises
        ------
        ModelError
            For a covariance structure that mixed models here do not have.
        """
        groups: dict[str, list[int]] = {}
        for number, term in enumerate(random):
            groups.setdefault(term.grouping.name, []).append(number)
        ordered = sorted(
            groups.values(),
            key=lambda g: -len(random[g[0]].grouping) * sum(random[j].Z.k for j in g),
        )
        factors, places = [], {}
        for numbers in ordered:
            first, start = random[numbers[0]].grouping, 0
            for j in numbers:
                places[j] = (len(factors), slice(start, start + random[j].Z.k))
                start += random[j].Z.k
            matrices = tuple(random[j].Z for j in numbers)
            factors.append(Factor(first.name, first.levels, first.codes, matrices))
        terms, start = [], 0
        for j, term in enumerate(random):
            kind, k, own = kind_of(term), term.Z.k, structured(term)
            size = k if kind == "diag" else k * (k + 1) // 2
            if own is not None:
                size = own.size
            U = _standardisation(standardise[j], kind, own)
            terms.append(
                Term(term.term.text or str(term.term), term.names, kind, *places[j],
                     slice(start, start + size), U, j, own)
            )  # fmt: skip
            start += size
        return cls(tuple(factors), tuple(terms))

    @property
    def size(self) -> int:
        """Number of covariance parameters."""
        return self.terms[-1].params.stop if self.terms else 0

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds of the parameters: zero for variances."""
        out = np.full(self.size, -np.inf)
        for term in self.terms:
            if term.variances:
                out[term.params] = 0.0
            elif term.covariance is not None:
                out[term.params] = term.covariance.lower
        return out

    @property
    def structured(self) -> list[Term]:
        """Terms with a structured covariance."""
        return [t for t in self.terms if t.covariance is not None]

    def determined(self, x: np.ndarray) -> np.ndarray:
        """Which parameters are inside their range and mean something."""
        out = x > self.lower
        for term in self.structured:
            assert term.covariance is not None
            out[term.params] = term.covariance.determined(x[term.params])
        return out

    def begun(self, x: np.ndarray, value: Callable[[np.ndarray], float]) -> np.ndarray:
        """Choose where structured covariances begin, by the value of a criterion.

        Parameters
        ----------
        x : ndarray
            A start, of whose structured covariances only the size counts.
        value : callable
            From parameters to the criterion, which is minimised.
        """
        best = x.copy()
        for term in self.structured:
            assert term.covariance is not None
            variance = float((term.covariance.sizes(x[term.params]) ** 2).mean())
            least = np.inf
            for start in term.covariance.starts(variance):
                tried = best.copy()
                tried[term.params] = start
                found = value(tried)
                if found < least:
                    least, chosen = found, tried
            if np.isfinite(least):
                best = chosen
        return best

    def of(self, factor: int) -> list[Term]:
        """Terms on a factor."""
        return [t for t in self.terms if t.factor == factor]

    def roots(self, x: np.ndarray) -> list[np.ndarray]:
        """Lower factors of each grouping factor's standardised covariance."""
        out = [np.zeros((f.k, f.k)) for f in self.factors]
        for term in self.terms:
            out[term.factor][term.at, term.at] = term.root(x)
        return out

    def raw_roots(self, x: np.ndarray) -> list[np.ndarray]:
        """Lower factor of each term's covariance over sigma^2, in the data's units."""
        return [self.canonical(t.U @ t.root(x)) for t in self.terms]

    @staticmethod
    def canonical(root: np.ndarray) -> np.ndarray:
        """Give every column of a factor a positive diagonal."""
        signs = np.where(np.diag(root) < 0, -1.0, 1.0)
        return root * signs

    @cached_property
    def order(self) -> list[int]:
        """Terms by decreasing number of levels, ties as in the formula: as lme4."""
        return sorted(
            range(len(self.terms)),
            key=lambda j: (-self.factors[self.terms[j].factor].m, j),
        )

    def theta(self, x: np.ndarray) -> dict[str, float]:
        """Entries of the relative factors, in the order and with the names of lme4.

        Of a structured covariance its standard deviations over sigma and what it is
        made of: ``"g.sd(t)"``, ``"g.cor"``.
        """
        roots = self.raw_roots(x)
        out = {}
        for j in self.order:
            term, root = self.terms[j], roots[j]
            name = self.factors[term.factor].name
            if term.covariance is not None:
                values = term.covariance.natural(x[term.params], term.U)
                for label, value in zip(term.covariance.labels, values, strict=True):
                    out[fresh_label(out, f"{name}.{label}")] = float(value)
                continue
            for r, c in zip(*term.triangle, strict=True):
                if term.kind == "diag" and r != c:
                    continue
                label = term.names[r] if r == c else f"{term.names[r]}.{term.names[c]}"
                out[fresh_label(out, f"{name}.{label}")] = float(root[r, c])
        return out

    def from_theta(self, values: Sequence[float]) -> np.ndarray:
        """Parameters of values in the order of `theta`."""
        x, place = np.zeros(self.size), iter(values)
        for j in self.order:
            term = self.terms[j]
            if term.covariance is not None:
                own = [next(place) for _ in term.covariance.labels]
                x[term.params] = term.covariance.parameters(own, term.U)
                continue
            root = np.zeros((term.k, term.k))
            for r, c in zip(*term.triangle, strict=True):
                if term.kind != "diag" or r == c:
                    root[r, c] = next(place)
            x[term.params] = self._from_raw_root(term, root)
        return x

    def from_raw_roots(self, roots: Sequence[np.ndarray]) -> np.ndarray:
        """Parameters of given relative factors in the data's units, by term."""
        x = np.zeros(self.size)
        for term, root in zip(self.terms, roots, strict=True):
            x[term.params] = self._from_raw_root(term, root)
        return x

    @staticmethod
    def _from_raw_root(term: Term, root: np.ndarray) -> np.ndarray:
        if term.covariance is not None:
            raise ModelError(
                f"{term.text}: not every covariance is one of {term.kind}; give its "
                "parameters."
            )
        inner = np.linalg.solve(term.U, root)
        return np.diag(inner) ** 2 if term.variances else inner[term.triangle]

    @cached_property
    def only_variances(self) -> bool:
        """Whether every parameter is a variance, so that V is linear in them."""
        return all(term.variances for term in self.terms)

    def directions(self, x: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Factor and derivative of its standardised V, for each parameter."""
        if self.only_variances:
            return self.entries
        out = []
        for term in self.terms:
            k, start = self.factors[term.factor].k, term.at.start
            if term.covariance is not None:
                for inner in term.covariance.directions(x[term.params]):
                    D = np.zeros((k, k))
                    D[term.at, term.at] = inner
                    out.append((term.factor, D))
                continue
            root = term.root(x)
            rows, columns = term.triangle
            if term.variances:
                rows = columns = np.arange(term.k)
            for r, c in zip(rows, columns, strict=True):
                D = np.zeros((k, k))
                if term.variances:
                    D[start + r, start + r] = 1.0
                else:
                    D[start + r, term.at] += root[:, c]
                    D[term.at, start + r] += root[:, c]
                out.append((term.factor, D))
        return out

    @cached_property
    def entries(self) -> list[tuple[int, np.ndarray]]:
        """Factor and direction of V for every entry of every covariance, by term.

        Of a structured covariance the one that all its variances have in common.
        """
        out = []
        for term in self.terms:
            k, start = self.factors[term.factor].k, term.at.start
            if term.covariance is not None:
                D = np.zeros((k, k))
                D[term.at, term.at] = np.eye(term.k)
                out.append((term.factor, D))
                continue
            rows, columns = term.triangle
            if term.variances:
                rows = columns = np.arange(term.k)
            for r, c in zip(rows, columns, strict=True):
                D = np.zeros((k, k))
                D[start + r, start + c] = D[start + c, start + r] = 1.0
                out.append((term.factor, D))
        return out

    def gradient(self, x: np.ndarray, G: Sequence[np.ndarray]) -> np.ndarray:
        """Gradient in the parameters from that in each factor's standardised V."""
        out = np.zeros(self.size)
        for term in self.terms:
            part = G[term.factor][term.at, term.at]
            if term.covariance is not None:
                out[term.params] = term.covariance.gradient(x[term.params], part)
            elif term.variances:
                out[term.params] = np.diag(part)
            else:
                out[term.params] = (2 * part @ term.root(x))[term.triangle]
        return out

    def curvature(self, x: np.ndarray, G: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the bend of V adds to the Hessian: sum of ``G d2V``."""
        out = np.zeros((self.size, self.size))
        if self.only_variances:
            return out
        for term in self.terms:
            if term.covariance is not None:
                own = G[term.factor][term.at, term.at]
                bend = term.covariance.curvature(x[term.params], own)
                out[term.params, term.params] = bend
            elif not term.variances:
                rows, columns = term.triangle
                part = 2 * G[term.factor][term.at, term.at][np.ix_(rows, rows)]
                part *= columns[:, None] == columns
                out[term.params, term.params] = part
        return out


@lru_cache(maxsize=64)
def _triangle(k: int) -> tuple[np.ndarray, np.ndarray]:
    column, row = np.triu_indices(k)
    return row, column


def kind_of(random: RandomTerm) -> str:
    """Return "us" for correlated and "diag" for uncorrelated effects, or the structure.

    Raises
    ------
    ModelError
        For a covariance structure that mixed models here do not have.
    """
    structure = random.term.structure
    text = random.term.text or random.term
    if structure not in ("us", "diag", *KINDS):
        raise ModelError(
            f"{text}: mixed models here do not have the structure {structure}; they "
            f"have us, diag, {', '.join(KINDS)}."
        )
    if random.term.options:
        names = ", ".join(f"{name}=" for name, _ in random.term.options)
        raise ModelError(f"{text}: {structure} takes no {names}; leave it out.")
    if structure in KINDS:
        if not random.term.correlated:
            raise ModelError(
                f"{text}: {structure} says how effects are correlated; write | for ||."
            )
        return structure
    return "diag" if structure == "diag" or not random.term.correlated else "us"


def structured(random: RandomTerm) -> Covariance | None:
    """Return the structured covariance of a term, None where it has none."""
    kind = kind_of(random)
    if kind not in KINDS:
        return None
    term = random.term
    varying = [t for t in term.terms if t.factors or kind not in PLACES]
    label = " + ".join("1" if not t.factors else str(t) for t in varying)
    label = f"{random.label}:{label}" if random.label else label
    return covariance_of(kind, random.names, term.text or str(term), label)


def _standardisation(
    gram: np.ndarray, kind: str, covariance: Covariance | None = None
) -> np.ndarray:
    """Lower-triangular U with ``U' gram U = I`` (diagonal for uncorrelated effects).

    A structured covariance must stay one: U is diagonal, and where all columns have one
    variance a number.
    """
    if covariance is not None and not covariance.heterogeneous:
        return np.eye(len(gram)) / np.sqrt(np.diag(gram).mean())
    scale = 1 / np.sqrt(np.diag(gram))
    if covariance is not None:
        return np.diag(scale)
    if kind == "diag" or len(gram) == 1:
        return np.diag(scale)
    correlation = gram * scale[:, None] * scale
    values, vectors = np.linalg.eigh(correlation)
    # A column that others determine leaves V undetermined along it: it is kept, with
    # a variance the data cannot tell from zero, and the fit says so.
    inverse = (vectors / np.maximum(values, 1e-10)) @ vectors.T
    return scale[:, None] * np.linalg.cholesky(inverse)


def fresh_label(taken: Container[str], label: str) -> str:
    """Return a label not taken yet: terms may repeat a column."""
    number, out = 1, label
    while out in taken:
        number += 1
        out = f"{label}.{number}"
    return out
