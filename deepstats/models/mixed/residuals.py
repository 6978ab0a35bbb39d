"""Covariance of the residuals of a linear mixed model: serial correlation, variances.

``e ~ N(0, sigma^2 D R D)``: R says how residuals of a group are correlated, D how much
they vary. Rows are multiplied by the inverse of a root of ``D R D``, after which their
residuals are independent with one variance; for an autoregression in time that takes
each row's neighbour before it and nothing else.

References
----------
Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, chapter 5.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...design import Design
from ...errors import DesignError, FormulaError, ModelError, listed
from ...formula import GroupTerm, Rhs

__all__ = ["Residuals", "Variance", "correlation_term", "variance_terms"]

_CORRELATIONS = ("ar1", "ou", "cs")
_VARIANCES = ("ident", "power", "exp")
_EXAMPLE = "'ar1(time | id)', 'ou(time | id)' or 'cs(1 | id)'"
#: Variables of the variance must not be farther from zero, in standard deviations.
_FAR = 100.0
#: Shapes beyond these are as good as infinite.
_FARTHEST = 30.0


# -- what was asked for ----------------------------------------------------------------


@dataclass(frozen=True)
class Variance:
    """One factor of the residual standard deviation.

    Attributes
    ----------
    kind : {"ident", "power", "exp"}
    text : str
        As written.
    rhs : Rhs
        Its variable, as a matrix without intercept.
    """

    kind: str
    text: str
    rhs: Rhs


def correlation_term(text: Any, context: Sequence[str] = ()) -> GroupTerm:
    """Read a residual correlation: ``"ar1(time | id)"``.

    Parameters
    ----------
    text : str
    context : sequence of str
        Names of functions that may be called.

    Raises
    ------
    ModelError
    """
    problem = f"correlation= is one of {_EXAMPLE}, not {text!r}."
    if not isinstance(text, str):
        raise ModelError(problem)
    try:
        rhs = Rhs.parse(text, tuple(context))
    except FormulaError as error:
        raise ModelError(f"{problem} ({error})") from None
    if len(rhs.groups) != 1 or any(t.factors for t in rhs.terms) or rhs.calls:
        raise ModelError(problem)
    (term,) = rhs.groups
    if term.structure not in _CORRELATIONS or not term.correlated or term.options:
        raise ModelError(problem)
    varying = [t for t in term.terms if t.factors]
    if len(varying) > 1 or any(t.degree > 1 for t in varying):
        raise ModelError(f"{problem} One time stands before the bar.")
    if term.structure == "ou" and not varying:
        raise ModelError(f"{text!r}: ou needs times, ou(time | id); ar1 takes rows.")
    if term.structure == "cs" and varying:
        raise ModelError(f"{text!r}: cs knows no order; write cs(1 | id).")
    return term


def variance_terms(text: Any, context: Sequence[str] = ()) -> tuple[Variance, ...]:
    """Read a residual variance: ``"ident(sex)"``, ``"ident(sex) * power(age)"``.

    Parameters
    ----------
    text : str
    context : sequence of str
        Names of functions that may be called.

    Raises
    ------
    ModelError
    """
    problem = (
        "variance= is 'ident(f)', 'power(x)' or 'exp(x)', or a product of them, "
        f"'ident(f) * power(x)'; not {text!r}."
    )
    if not isinstance(text, str):
        raise ModelError(problem)
    out = []
    for part in text.split("*"):
        found = re.fullmatch(r"\s*(\w+)\s*\((.+)\)\s*", part)
        if found is None or found[1] not in _VARIANCES:
            raise ModelError(problem)
        if "|" in found[2]:
            raise ModelError(f"{problem} One parameter is for all rows: no bar.")
        try:
            rhs = Rhs.parse(f"0 + {found[2]}", tuple(context))
        except FormulaError as error:
            raise ModelError(f"{problem} ({error})") from None
        if len(rhs.terms) != 1 or rhs.groups or rhs.calls or rhs.offsets:
            raise ModelError(f"{problem} One variable stands in brackets.")
        out.append(Variance(found[1], part.strip(), rhs))
    return tuple(out)


# -- correlations ----------------------------------------------------------------------


class _Correlation(ABC):
    """R of all rows, a block a group, as a function of one shape.

    Attributes
    ----------
    label : str
        What its parameter is called.
    scale : {"cor", "positive"}
    text : str
    """

    label: str
    scale: str
    text: str

    @abstractmethod
    def natural(self, t: float) -> tuple[float, float]:
        """Return the parameter that is printed, and its slope."""

    @abstractmethod
    def starts(self) -> list[float]:
        """Return shapes to begin from."""

    @abstractmethod
    def whiten(self, t: float, A: np.ndarray) -> np.ndarray:
        """Multiply columns, (n, c), by the inverse of a root of R."""

    @abstractmethod
    def color(self, t: float, A: np.ndarray) -> np.ndarray:
        """Multiply columns by that root."""

    @abstractmethod
    def logdet(self, t: float) -> float:
        """Logarithm of the determinant of R."""


class _Serial(_Correlation):
    """Autoregression: a correlation that falls with time.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        Group of each row.
    times : ndarray, shape (n,)
    text : str
    """

    def __init__(self, codes: np.ndarray, times: np.ndarray, text: str) -> None:
        self.text = text
        self.order = np.lexsort((times, codes))
        sorted_codes, sorted_times = codes[self.order], times[self.order]
        self.follows = np.append(False, sorted_codes[1:] == sorted_codes[:-1])
        gaps = np.append(np.inf, np.diff(sorted_times))
        self.gaps = gaps[self.follows]
        if (self.gaps <= 0).any():
            raise DesignError(
                f"correlation={text!r}: times repeat within a group; every row of a "
                "group needs a time of its own."
            )
        if not len(self.gaps):
            raise DesignError(
                f"correlation={text!r}: every group has one row, so that there is "
                "nothing to correlate."
            )
        # How far each sorted row is from the first of its group.
        starts = np.flatnonzero(~self.follows)
        lengths = np.diff(np.append(starts, len(codes)))
        self.place = np.arange(len(codes)) - np.repeat(starts, lengths)

    @abstractmethod
    def steps(self, t: float) -> np.ndarray:
        """Correlation of each row that follows with the one before it."""

    def whiten(self, t: float, A: np.ndarray) -> np.ndarray:
        r, rows = self.steps(t)[:, None], A[self.order]
        out, after = rows.copy(), np.flatnonzero(self.follows)
        out[after] = (rows[after] - r * rows[after - 1]) / np.sqrt(1 - r * r)
        back = np.empty_like(out)
        back[self.order] = out
        return back

    def color(self, t: float, A: np.ndarray) -> np.ndarray:
        r = np.zeros(len(A))
        r[self.follows] = self.steps(t)
        out = A[self.order]
        for place in range(1, int(self.place.max()) + 1):
            at = np.flatnonzero(self.place == place)
            here = r[at, None]
            out[at] = here * out[at - 1] + np.sqrt(1 - here * here) * out[at]
        back = np.empty_like(out)
        back[self.order] = out
        return back

    def logdet(self, t: float) -> float:
        return float(np.log1p(-(self.steps(t) ** 2)).sum())


class _Ar1(_Serial):
    """A power of one correlation, over whole numbers of steps."""

    label, scale = "cor", "cor"

    def __init__(self, codes: np.ndarray, times: np.ndarray, text: str) -> None:
        if (times != np.round(times)).any():
            raise DesignError(
                f"correlation={text!r}: ar1 counts steps, so that times must be whole "
                "numbers; use ou(time | g) for others."
            )
        super().__init__(codes, times, text)

    def natural(self, t: float) -> tuple[float, float]:
        size = 1 + t * t
        return t / np.sqrt(size), size**-1.5

    def starts(self) -> list[float]:
        return [r / np.sqrt(1 - r * r) for r in (0.0, 0.3, 0.6, 0.9)]

    def steps(self, t: float) -> np.ndarray:
        return self.natural(t)[0] ** self.gaps


class _Continuous(_Serial):
    """``exp(-distance / range)``: autoregression in continuous time."""

    label, scale = "range", "positive"

    def __init__(self, codes: np.ndarray, times: np.ndarray, text: str) -> None:
        super().__init__(codes, times, text)
        self.unit = float(np.median(self.gaps))

    def natural(self, t: float) -> tuple[float, float]:
        value = self.unit * float(np.exp(np.clip(t, -_FARTHEST, _FARTHEST)))
        return value, value

    def starts(self) -> list[float]:
        return [float(np.log(share)) for share in (0.3, 1.0, 3.0, 10.0)]

    def steps(self, t: float) -> np.ndarray:
        return np.exp(-self.gaps / self.natural(t)[0])


class _Exchangeable(_Correlation):
    """One correlation between all rows of a group.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
    text : str
    """

    label, scale = "cor", "cor"

    def __init__(self, codes: np.ndarray, text: str) -> None:
        self.codes, self.text = codes, text
        self.sizes = np.bincount(codes)
        largest = int(self.sizes.max())
        if largest < 2:
            raise DesignError(
                f"correlation={text!r}: every group has one row, so that there is "
                "nothing to correlate."
            )
        self.least = -1 / (largest - 1)

    def natural(self, t: float) -> tuple[float, float]:
        p, width = 1 / (1 + np.exp(-np.clip(t, -_FARTHEST, _FARTHEST))), 1 - self.least
        return self.least + width * p, width * p * (1 - p)

    def starts(self) -> list[float]:
        shares = [(r - self.least) / (1 - self.least) for r in (0.0, 0.3, 0.6)]
        return [float(np.log(s / (1 - s))) for s in shares]

    def _scaled(self, t: float, A: np.ndarray, power: float) -> np.ndarray:
        rho = self.natural(t)[0]
        own = (1 - rho) ** power
        mean = (1 - rho + self.sizes * rho) ** power
        means = np.stack(
            [np.bincount(self.codes, a, len(self.sizes)) / self.sizes for a in A.T],
            axis=1,
        )
        return own * A + ((mean - own)[:, None] * means)[self.codes]

    def whiten(self, t: float, A: np.ndarray) -> np.ndarray:
        return self._scaled(t, A, -0.5)

    def color(self, t: float, A: np.ndarray) -> np.ndarray:
        return self._scaled(t, A, 0.5)

    def logdet(self, t: float) -> float:
        rho = self.natural(t)[0]
        logs = (self.sizes - 1) * np.log1p(-rho) + np.log1p((self.sizes - 1) * rho)
        return float(logs.sum())


# -- both together ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Residuals:
    """The residuals' covariance over sigma^2, as a function of its parameters.

    Attributes
    ----------
    correlation : _Correlation or None
        It has the first parameter.
    slopes : ndarray, shape (n, d)
        Derivative of the logarithm of the standard deviation in each of the others.
    base : ndarray, shape (n,)
        What prior weights add to that logarithm.
    labels : tuple of str
        Names of the parameters of the variance.
    ratios : tuple of bool
        Whether they are logarithms of ratios of standard deviations.
    """

    correlation: _Correlation | None
    slopes: np.ndarray
    base: np.ndarray
    labels: tuple[str, ...]
    ratios: tuple[bool, ...]

    @classmethod
    def build(
        cls, design: Design, term: GroupTerm | None, variances: Sequence[Variance]
    ) -> Residuals:
        """Read the variables, the first of which is time, from a design's parts.

        Parameters
        ----------
        design : Design
        term : GroupTerm or None
        variances : sequence of Variance

        Raises
        ------
        DesignError
            For times that repeat, groups of one row, or variables of the wrong kind.
        """
        parts = list(design.parts)
        correlation = None
        if term is not None:
            timed = any(t.factors for t in term.terms)
            times = _column(parts.pop(0), term.text) if timed else None
            correlation = _correlation(design, term, times)
        slopes, labels, ratios = cls.logs(variances, parts)
        w = design.weights
        base = np.zeros(design.n) if w is None else -0.5 * np.log(w)
        out = cls(correlation, slopes, base, labels, ratios)
        out._check()
        return out

    @staticmethod
    def logs(
        variances: Sequence[Variance], parts: Sequence[Any]
    ) -> tuple[np.ndarray, tuple[str, ...], tuple[bool, ...]]:
        """Differentiate the logarithm of the standard deviation; label its slopes."""
        columns, labels, ratios = [], [], []
        for variance, matrix in zip(variances, parts, strict=True):
            if variance.kind == "ident":
                levels = matrix.to_dense().numpy()
                if levels.shape[1] < 2 or not np.isin(levels, (0.0, 1.0)).all():
                    raise DesignError(
                        f"variance={variance.text!r}: ident needs a factor with two "
                        "levels or more; write ident(C(x)) for a number."
                    )
                columns += list(levels.T[1:])
                labels += list(matrix.names[1:])
                ratios += [True] * (levels.shape[1] - 1)
                continue
            x = _column(matrix, variance.text)
            if variance.kind == "power" and (x == 0).any():
                raise DesignError(
                    f"variance={variance.text!r}: power needs a variable that is never "
                    "zero; shift it, or use exp."
                )
            columns.append(np.log(np.abs(x)) if variance.kind == "power" else x)
            _check_near(columns[-1], variance)
            labels.append(variance.text)
            ratios.append(False)
        n = parts[0].n if parts else 0
        slopes = np.stack(columns, axis=1) if columns else np.zeros((n, 0))
        return slopes, tuple(labels), tuple(ratios)

    def _check(self) -> None:
        """Refuse variables that are constant, or determine one another."""
        if not self.slopes.shape[1]:
            return
        centred = self.slopes - self.slopes.mean(0)
        size = np.sqrt((centred**2).sum(0))
        if (size <= 1e-10 * np.sqrt((self.slopes**2).sum(0))).any() or (
            np.linalg.svd(centred / size, compute_uv=False)[-1] < 1e-8
        ):
            raise DesignError(
                f"the variables of variance=, {listed(self.labels)}, are constant or "
                "determine one another; leave one out."
            )

    @property
    def size(self) -> int:
        """Number of parameters."""
        return (self.correlation is not None) + self.slopes.shape[1]

    @property
    def scales(self) -> np.ndarray:
        """Length of a step of each parameter that changes something."""
        spread = self.slopes.std(0) if self.slopes.shape[1] else np.zeros(0)
        return np.append(np.ones(int(self.correlation is not None)), 1 / spread)

    def starts(self) -> list[np.ndarray]:
        """Parameters to begin from."""
        zero = np.zeros(self.slopes.shape[1])
        if self.correlation is None:
            return [zero]
        return [np.append(t, zero) for t in self.correlation.starts()]

    def log_sd(self, phi: np.ndarray) -> np.ndarray:
        """Logarithm of the standard deviation over sigma, (n,)."""
        if not self.slopes.shape[1]:
            return self.base
        return self.base + self.slopes @ phi[self.size - self.slopes.shape[1] :]

    def whiten(self, phi: np.ndarray, A: np.ndarray) -> np.ndarray:
        """Multiply columns, (n, c), by the inverse of a root of the covariance."""
        scaled = A * np.exp(-self.log_sd(phi))[:, None]
        if self.correlation is None:
            return scaled
        return self.correlation.whiten(float(phi[0]), scaled)

    def color(self, phi: np.ndarray, A: np.ndarray) -> np.ndarray:
        """Multiply columns by that root."""
        if self.correlation is not None:
            A = self.correlation.color(float(phi[0]), A)
        return A * np.exp(self.log_sd(phi))[:, None]

    def logdet(self, phi: np.ndarray) -> float:
        """Logarithm of the determinant of the covariance."""
        out = 2 * float(self.log_sd(phi).sum())
        if self.correlation is not None:
            out += self.correlation.logdet(float(phi[0]))
        return out

    def natural(self, phi: np.ndarray) -> list[tuple[str, str, float, float, str]]:
        """Return what is printed: part, name, value, slope, and scale of intervals."""
        out, rest = [], phi
        if self.correlation is not None:
            value, slope = self.correlation.natural(float(phi[0]))
            own = self.correlation
            out.append((own.text, own.label, value, slope, own.scale))
            rest = phi[1:]
        for label, ratio, value in zip(self.labels, self.ratios, rest, strict=True):
            if ratio:
                ratio_value = float(np.exp(value))
                out.append(
                    ("variance", f"sd ratio {label}", ratio_value, ratio_value,
                     "positive")
                )  # fmt: skip
            else:
                out.append(("variance", label, float(value), 1.0, "plain"))
        return out


def _check_near(slopes: np.ndarray, variance: Variance) -> None:
    """Refuse a variable whose factor is one only far outside the data."""
    spread, most = float(slopes.std()), float(np.abs(slopes).max())
    if not 1e-8 * most < spread < most / _FAR:
        return
    name, middle = variance.text[len(variance.kind) + 1 : -1], float(np.median(slopes))
    if variance.kind == "power":
        instead = f"power(I({name} / {np.exp(middle):.4g}))"
    else:
        instead = f"exp(I({name} - {middle:.4g}))"
    raise DesignError(
        f"variance={variance.text!r}: its values are all far from where its factor is "
        f"one, which sigma is the standard deviation of; write {instead}."
    )


def _column(matrix: Any, text: str) -> np.ndarray:
    if matrix.k != 1:
        raise DesignError(f"{text!r}: one column of numbers is needed, not a factor.")
    return matrix.to_dense().numpy()[:, 0]


def _correlation(
    design: Design, term: GroupTerm, times: np.ndarray | None
) -> _Correlation:
    codes = np.zeros(design.n, dtype=np.int64)
    for name in term.factors:
        grouping = design.grouping(name.strip("`"), "correlation")
        codes = codes * len(grouping) + grouping.codes
    codes = np.unique(codes, return_inverse=True)[1].reshape(-1)
    _check_nested(design, codes, term)
    if term.structure == "cs":
        return _Exchangeable(codes, term.text)
    kind = _Ar1 if term.structure == "ar1" else _Continuous
    return kind(codes, _positions(codes) if times is None else times, term.text)


def _positions(codes: np.ndarray) -> np.ndarray:
    """Count each row among those of its group."""
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes))[:-1]])
    out = np.empty(len(codes))
    out[order] = np.arange(len(codes)) - starts[codes[order]]
    return out


def _check_nested(design: Design, codes: np.ndarray, term: GroupTerm) -> None:
    """Refuse groups that are not within one level of every grouping factor."""
    for random in design.random:
        pairs = codes * np.int64(len(random.grouping)) + random.grouping.codes
        if len(np.unique(pairs)) != int(codes.max()) + 1:
            raise DesignError(
                f"correlation={term.text!r}: rows that are correlated must be in one "
                f"level of {random.grouping.name}, and {term.name} has rows in several;"
                " correlate within a finer grouping."
            )
        alone = random.Z.names == ("Intercept",)
        if term.structure == "cs" and alone and len(random.grouping) == codes.max() + 1:
            raise DesignError(
                f"correlation={term.text!r} says the same as {random.term.text}: leave "
                "one of them out."
            )
