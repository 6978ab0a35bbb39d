"""Covariances of estimates, tests of hypotheses, the delta method: once for all models.

Names as in Zeileis (2006): the *bread* is the inverse information, the *meat* the sum
of outer products of scores, over rows, clusters or lags.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .design import Grouping
from .errors import BoundaryWarning, ModelError
from .likelihood import Likelihood

__all__ = [
    "Covariance",
    "HypothesisTest",
    "covariance",
    "delta_method",
    "hac_meat",
    "linear_hypotheses",
    "wald",
]

COV_TYPES = (
    "nonrobust", "oim", "eim", "opg", "HC0", "HC1", "HC2", "HC3", "cluster", "HAC",
)  # fmt: skip

_ALIASES = {
    "bhhh": "opg", "iid": "nonrobust", "robust": "HC1", "hetero": "HC1",
    "sandwich": "HC0", "hac": "HAC", "newey-west": "HAC", "neweywest": "HAC",
    "observed": "oim", "expected": "eim", "hessian": "oim", "crv1": "cluster",
}  # fmt: skip


@dataclass(frozen=True)
class Covariance:
    """An estimated covariance matrix and how it was made.

    Attributes
    ----------
    matrix : Tensor, shape (p, p)
        Of the optimiser's parameters.
    kind : str
        One of `COV_TYPES`.
    description : str
        As printed, ``"cluster by firm (500)"``.
    df : float or None
        Degrees of freedom for t and F when they are used: clusters less one.
    groups : tuple of int
        Number of clusters in each dimension.
    options : dict
        The options it was made with.
    """

    matrix: Tensor
    kind: str
    description: str
    df: float | None = None
    groups: tuple[int, ...] = ()
    options: Mapping[str, Any] | None = None


def canonical(kind: str) -> str:
    """Return the standard name of a covariance type.

    Raises
    ------
    ValueError
        For a name that is not known.
    """
    key = str(kind)
    if key in COV_TYPES:
        return key
    found = _ALIASES.get(key.lower()) or next(
        (k for k in COV_TYPES if k.lower() == key.lower()), None
    )
    if found is None:
        raise ValueError(f"cov_type {kind!r} is not known; use one of {COV_TYPES}.")
    return found


def covariance(
    likelihood: Likelihood,
    x: Tensor,
    bread: Tensor,
    kind: str,
    *,
    scale: float = 1.0,
    nobs: float,
    df_resid: float,
    information: str = "observed",
    hat_bread: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
) -> Covariance:
    """Covariance of the estimates of a model.

    Parameters
    ----------
    likelihood : Likelihood
    x : Tensor, shape (p,)
        Estimates.
    bread : Tensor, shape (p, p)
        Inverse information at `x`, for a dispersion of one.
    kind : str
        "nonrobust": the information the model reports by default; "oim" and "eim":
        the observed and the expected information; "opg" (also "bhhh"): outer products
        of scores; "HC0", "HC1": White's sandwich, HC1 times n / (n - p); "HC2", "HC3":
        with each score over ``(1 - h)**(1/2)`` and ``(1 - h)``; "cluster": sums of
        scores in clusters; "HAC": Newey-West.
    scale : float, default 1
        Dispersion.
    nobs, df_resid : float
    information : str
        Which information `bread` inverts; printed.
    hat_bread : Tensor, shape (p, p), optional
        Inverse expected information, from which HC2 and HC3 make leverages where
        `bread` inverts the observed one.
    options : mapping, optional
        For "cluster": `groups` (one or two `Grouping`), `use_correction` (default
        True), `df_correction` (default True), `ssc` ("each", the default, multiplies
        every term by its own G / (G - 1) as Stata's vce2way, statsmodels and R's
        sandwich do; "min" all by the smallest G, as fixest does), `parameters` (number
        of parameters the correction counts). For "HAC": `maxlags`, `kernel`
        ("bartlett", "uniform", "parzen" or "quadratic-spectral"), `use_correction`
        (default False).

    Returns
    -------
    Covariance

    References
    ----------
    White (1980); MacKinnon & White (1985); Liang & Zeger (1986); Cameron, Gelbach &
    Miller (2011), Robust inference with multiway clustering; Newey & West (1987).
    """
    kind, given = canonical(kind), dict(options or {})
    taken = {
        "cluster": {"groups", "use_correction", "df_correction", "ssc", "parameters"},
        "HAC": {"maxlags", "kernel", "use_correction"},
    }.get(kind, set())
    if unknown := set(given) - taken:
        allowed = f"it takes {sorted(taken)}" if taken else "it takes none"
        raise ValueError(
            f"cov_kwds {sorted(unknown)} do not go with {kind}; {allowed}."
        )
    if kind in ("nonrobust", "oim", "eim"):
        return _from_information(likelihood, x, bread, kind, scale, information)
    if kind == "opg":
        gram = likelihood.score_gram(x) / scale**2
        return Covariance(
            _inverse(gram), kind, "outer product of gradients", options={}
        )
    if kind in ("HC0", "HC1", "HC2", "HC3"):
        power = {"HC2": 1, "HC3": 2}.get(kind, 0)
        hat = bread if hat_bread is None else hat_bread
        meat = likelihood.score_gram(x, hat if power else None, power)
        if power and bool(meat.isnan().any()) and bool(bread.isfinite().all()):
            warnings.warn(
                f"{kind} is not defined: the estimates fit some rows exactly whatever "
                "their response (leverage one). Leave those rows out, or use HC1.",
                BoundaryWarning,
                stacklevel=2,
            )
        factor = _ratio(nobs, df_resid) if kind == "HC1" else 1.0
        return Covariance(factor * bread @ meat @ bread, kind, kind, options={})
    if kind == "cluster":
        return _clustered(likelihood, x, bread, nobs, df_resid, given)
    lags = given.get("maxlags")
    if lags is None:
        raise ValueError("HAC needs cov_kwds={'maxlags': number of lags}.")
    if lags != int(lags) or not 0 <= lags < nobs:
        raise ValueError(
            f"maxlags must be a whole number from 0 to less than the {nobs:g} "
            f"observations, not {lags!r}."
        )
    lags = int(lags)
    kernel = given.get("kernel", "bartlett")
    meat = hac_meat(likelihood.scores(x), lags, kernel)
    factor = _ratio(nobs, df_resid) if given.get("use_correction", False) else 1.0
    text = f"HAC ({kernel}, {lags} lags)"
    return Covariance(factor * bread @ meat @ bread, kind, text, options=given)


def _ratio(count: float, residual: float) -> float:
    """Small-sample factor; NaN where no degrees of freedom are left."""
    return count / residual if residual > 0 else float("nan")


def _from_information(
    likelihood: Likelihood, x: Tensor, bread: Tensor, kind: str, scale: float,
    information: str,
) -> Covariance:  # fmt: skip
    asked = {"oim": "observed", "eim": "expected"}.get(kind, information)
    if asked != information:
        bread = _inverse(likelihood.derivatives(x, asked).information)
    return Covariance(scale * bread, kind, f"{asked} information", options={})


def _clustered(
    likelihood: Likelihood,
    x: Tensor,
    bread: Tensor,
    nobs: float,
    df_resid: float,
    options: dict[str, Any],
) -> Covariance:
    groupings: Sequence[Grouping] = options["groups"]
    ssc = options.get("ssc", "each")
    if ssc not in ("each", "min"):
        raise ValueError(f"ssc must be 'each' or 'min', not {ssc!r}.")
    correct = options.get("use_correction", True)
    degrees = options.get("df_correction", True)
    counted = options.get("parameters")
    residual = df_resid if counted is None else nobs - counted
    sizes = tuple(len(g) for g in groupings)
    if min(sizes) < 2:
        raise ModelError("cluster-robust standard errors need at least two clusters.")
    total = torch.zeros_like(bread)
    for size in range(1, len(groupings) + 1):
        for chosen in combinations(groupings, size):
            codes, count = _joint(chosen)
            factor = 1.0
            if correct:
                g = min(sizes) if ssc == "min" else count
                factor = g / (g - 1)
            gram = likelihood.group_gram(x, codes, count)
            total += (-1) ** (size + 1) * factor * gram
    if correct and degrees:
        total *= _ratio(nobs - 1, residual)
    names = " and ".join(f"{g.name} ({len(g)})" for g in groupings)
    df = float(min(sizes) - 1)
    return Covariance(
        bread @ total @ bread, "cluster", f"cluster by {names}", df, sizes, options
    )


def _joint(groupings: Sequence[Grouping]) -> tuple[Tensor, int]:
    codes = groupings[0].codes.astype(np.int64, copy=False)
    for g in groupings[1:]:
        codes = codes * len(g) + g.codes
    if len(groupings) == 1:
        with warnings.catch_warnings():
            # A read-only column of the caller's frame; nothing here writes to it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not")
            return torch.from_numpy(codes), len(groupings[0])
    present, codes = np.unique(codes, return_inverse=True)
    return torch.from_numpy(codes.reshape(-1)), len(present)


def hac_meat(scores: Tensor, lags: int, kernel: str = "bartlett") -> Tensor:
    """Long-run sum of score products of rows in time order.

    Parameters
    ----------
    scores : Tensor, shape (n, p)
    lags : int
    kernel : {"bartlett", "uniform", "parzen", "quadratic-spectral"}
        Weight of lag j at ``j / (lags + 1)``.
    """
    weights = _kernel(kernel, torch.arange(1, lags + 1).double() / (lags + 1))
    total = scores.T @ scores
    for lag, weight in enumerate(weights.tolist(), start=1):
        gamma = scores[lag:].T @ scores[:-lag]
        total = total + weight * (gamma + gamma.T)
    return total


def _kernel(kernel: str, u: Tensor) -> Tensor:
    if kernel == "bartlett":
        return 1 - u
    if kernel == "uniform":
        return torch.ones_like(u)
    if kernel == "parzen":
        return torch.where(u <= 0.5, 1 - 6 * u**2 + 6 * u**3, 2 * (1 - u) ** 3)
    if kernel in ("quadratic-spectral", "qs"):
        z = 6 * torch.pi * u / 5
        return 3 / z**2 * (torch.sin(z) / z - torch.cos(z))
    raise ValueError(
        f"kernel {kernel!r} is not known; use 'bartlett', 'uniform', 'parzen' or "
        "'quadratic-spectral'."
    )


def _inverse(information: Tensor) -> Tensor:
    """Inverse of a positive definite matrix, scaled first; NaN where it has none."""
    d = information.diagonal().clamp_min(1e-300).rsqrt()
    factor, failed = torch.linalg.cholesky_ex(information * d[:, None] * d)
    if int(failed):
        return torch.full_like(information, torch.nan)
    return torch.cholesky_inverse(factor) * d[:, None] * d


# -- tests of linear hypotheses -------------------------------------------------------


@dataclass(frozen=True)
class HypothesisTest:
    """A test and its p-value.

    Attributes
    ----------
    statistic : float
    df_num : float
        Restrictions tested.
    df_denom : float or None
        Set when the statistic has an F distribution, else chi-squared.
    pvalue : float
    distribution : {"F", "chi2"}
    name : str
        "Wald", "likelihood ratio" or "score".
    """

    statistic: float
    df_num: float
    df_denom: float | None
    pvalue: float
    distribution: str
    name: str = "Wald"

    @property
    def fvalue(self) -> float:
        """The statistic, when it is an F."""
        return self.statistic

    def __str__(self) -> str:
        df = f"{self.df_num:g}"
        df += f", {self.df_denom:g}" if self.df_denom is not None else ""
        kind = "F" if self.distribution == "F" else "chi2"
        value, p = f"{self.statistic:.4f}", f"{self.pvalue:.4g}"
        return f"{self.name} test: {kind}({df}) = {value}, p = {p}"

    __repr__ = __str__


def wald(
    params: np.ndarray,
    cov: np.ndarray,
    R: np.ndarray,
    q: np.ndarray,
    df_denom: float | None = None,
) -> HypothesisTest:
    """Test ``R params = q``; an F test when `df_denom` is given, else chi-squared.

    Redundant restrictions are counted once, as Stata's `test` does. The statistic is
    NaN where the covariance of the restrictions is not positive semidefinite, as that
    of two-way clusters need not be.
    """
    from scipy import linalg, stats

    difference = R @ params - q
    middle = R @ cov @ R.T
    scale = np.sqrt(np.maximum(np.diag(middle), 1e-300))
    if not np.isfinite(middle).all() or not np.isfinite(difference).all():
        kind = "chi2" if df_denom is None else "F"
        return HypothesisTest(np.nan, len(R), df_denom, np.nan, kind)
    values, vectors = linalg.eigh(middle / np.outer(scale, scale))
    keep = np.abs(values) > values.max() * 1e-10
    rotated = vectors[:, keep].T @ (difference / scale)
    chi2, df = float((rotated**2 / values[keep]).sum()), int(keep.sum())
    if (values[keep] < 0).any():
        chi2 = np.nan
    if df_denom is None:
        return HypothesisTest(chi2, df, None, float(stats.chi2.sf(chi2, df)), "chi2")
    value = chi2 / df
    p = float(stats.f.sf(value, df, df_denom))
    return HypothesisTest(value, df, df_denom, p, "F")


def likelihood_ratio(full: float, restricted: float, df: float) -> HypothesisTest:
    """Test of a restriction by twice the fall of the log-likelihood."""
    from scipy import stats

    statistic = 2 * (full - restricted)
    p = float(stats.chi2.sf(statistic, df))
    return HypothesisTest(statistic, df, None, p, "chi2", "likelihood ratio")


def score_statistic(gradient: Tensor, inverse: Tensor, df: float) -> HypothesisTest:
    """Rao's test from the gradient and inverse information at the restricted fit."""
    from scipy import stats

    statistic = float(gradient @ inverse @ gradient)
    p = float(stats.chi2.sf(statistic, df))
    return HypothesisTest(statistic, df, None, p, "chi2", "score")


def linear_hypotheses(
    hypotheses: Any, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read linear hypotheses about named parameters.

    Parameters
    ----------
    hypotheses : str, sequence of str, array_like or (R, q)
        ``"x1 = x2, x3 = 0"``, ``"2*x1 - x2/3 = 1"``; a matrix R with one row for each
        restriction; or a pair (R, q).
    names : sequence of str

    Returns
    -------
    R : ndarray, shape (restrictions, p)
    q : ndarray, shape (restrictions,)
    labels : tuple of str

    Raises
    ------
    ValueError
        For a name that is not a parameter, or text that is not linear in them.
    """
    names = list(names)
    if isinstance(hypotheses, tuple) and len(hypotheses) == 2:
        R, q = hypotheses
        if not isinstance(R, str):
            R = np.atleast_2d(np.asarray(R, dtype=float))
            q = np.broadcast_to(np.asarray(q, dtype=float), (len(R),))
            return _checked(R, names), q, tuple(f"c{i}" for i in range(len(R)))
    if isinstance(hypotheses, str):
        hypotheses = [hypotheses]
    if isinstance(hypotheses, (list, tuple)) and all(
        isinstance(h, str) for h in hypotheses
    ):
        rows = [_equation(e, names) for h in hypotheses for e in _equations(h, names)]
        R = np.array([row for row, _, _ in rows])
        return R, np.array([q for _, q, _ in rows]), tuple(t for _, _, t in rows)
    R = np.atleast_2d(np.asarray(hypotheses, dtype=float))
    return _checked(R, names), np.zeros(len(R)), tuple(f"c{i}" for i in range(len(R)))


def _checked(R: np.ndarray, names: list[str]) -> np.ndarray:
    if R.shape[1] != len(names):
        raise ValueError(
            f"each row of the hypothesis needs {len(names)} entries, one for each of "
            f"{names}; it has {R.shape[1]}."
        )
    return R


def _tokens(text: str, names: list[str]) -> list[tuple[str, str]]:
    """Split into names (longest first), numbers and signs."""
    longest = sorted(names, key=len, reverse=True)
    number = re.compile(r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?")
    out, i = [], 0
    while i < len(text):
        if text[i].isspace():
            i += 1
            continue
        name = next((n for n in longest if _starts(text, i, n)), None)
        if name is not None:
            out.append(("name", name))
            i += len(name)
        elif found := number.match(text, i):
            out.append(("number", found[0]))
            i = found.end()
        elif text[i] in "+-*/=,()":
            out.append(("sign", text[i]))
            i += 1
        else:
            word = re.match(r"[^\s+*/=,()-]+", text[i:])
            raise ValueError(
                f"{word[0] if word else text[i]!r} in the hypothesis {text!r} is not a "
                f"parameter; they are {names}."
            )
    return out


def _starts(text: str, i: int, name: str) -> bool:
    if not text.startswith(name, i):
        return False
    end = i + len(name)
    follows = text[end] if end < len(text) else " "
    return not (name[-1].isalnum() and (follows.isalnum() or follows in "_[.:("))


def _equations(text: str, names: list[str]) -> list[list[tuple[str, str]]]:
    out: list[list[tuple[str, str]]] = [[]]
    for token in _tokens(text, names):
        if token == ("sign", ","):
            out.append([])
        else:
            out[-1].append(token)
    if any(not e for e in out):
        raise ValueError(f"an empty hypothesis in {text!r}.")
    return out


def _equation(
    tokens: list[tuple[str, str]], names: list[str]
) -> tuple[np.ndarray, float, str]:
    label = " ".join(t for _, t in tokens)
    sides: list[list[tuple[str, str]]] = [[]]
    for token in tokens:
        if token == ("sign", "="):
            sides.append([])
        else:
            sides[-1].append(token)
    if len(sides) == 1:
        sides.append([("number", "0")])
        label += " = 0"
    if len(sides) != 2 or not sides[1]:
        raise ValueError(f"a hypothesis has one '=' and two sides: {label!r}.")
    left, right = (_Linear(side, names, label).read() for side in sides)
    row = left[:-1] - right[:-1]
    if not row.any():
        raise ValueError(f"the hypothesis {label!r} involves no parameter.")
    return row, float(right[-1] - left[-1]), label


class _Linear:
    """Reads sums and products that are linear in the names."""

    def __init__(self, tokens: list[tuple[str, str]], names: list[str], text: str):
        self.tokens, self.names, self.text, self.i = tokens, names, text, 0

    def read(self) -> np.ndarray:
        out = self._sum()
        if self.i != len(self.tokens):
            raise self._wrong()
        return out

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.i] if self.i < len(self.tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        self.i += 1
        return self.tokens[self.i - 1] if self.i <= len(self.tokens) else ("end", "")

    def _sum(self) -> np.ndarray:
        total = self._product()
        while self._peek() in (("sign", "+"), ("sign", "-")):
            sign = 1.0 if self._next()[1] == "+" else -1.0
            total = total + sign * self._product()
        return total

    def _product(self) -> np.ndarray:
        total = self._atom()
        while self._peek() in (("sign", "*"), ("sign", "/")):
            divide, other = self._next()[1] == "/", self._atom()
            if divide and not other[:-1].any() and other[-1]:
                total = total / other[-1]
            elif not divide and not other[:-1].any():
                total = total * other[-1]
            elif not divide and not total[:-1].any():
                total = total[-1] * other
            else:
                raise self._wrong()
        return total

    def _atom(self) -> np.ndarray:
        kind, text = self._next()
        out = np.zeros(len(self.names) + 1)
        if kind == "name":
            out[self.names.index(text)] = 1.0
        elif kind == "number":
            out[-1] = float(text)
        elif (kind, text) == ("sign", "-"):
            return -self._atom()
        elif (kind, text) == ("sign", "+"):
            return self._atom()
        elif (kind, text) == ("sign", "("):
            out = self._sum()
            if self._next() != ("sign", ")"):
                raise self._wrong()
        else:
            raise self._wrong()
        return out

    def _wrong(self) -> ValueError:
        return ValueError(
            f"the hypothesis {self.text!r} is not a linear equation in the parameters."
        )


def delta_method(
    function: Callable[[Tensor], Tensor], params: Tensor, cov: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and covariance of a smooth function of the parameters.

    Parameters
    ----------
    function : callable
        From a tensor of shape (p,) to one of shape (m,) or a scalar, in torch.
    params : Tensor, shape (p,)
    cov : Tensor, shape (p, p)

    Returns
    -------
    value : Tensor, shape (m,)
    cov : Tensor, shape (m, m)
    """

    def flat(x: Tensor) -> Tensor:
        return torch.as_tensor(function(x)).reshape(-1)

    jacobian = torch.func.jacrev(flat)(params)
    return flat(params).detach(), jacobian @ cov @ jacobian.T
