"""Gram matrices of one tall matrix under many weights, most from those at hand.

``C' diag(w) C`` is linear in w, and a search asks for it under weights that differ
little: a smooth function of one number a level, with a parameter that moves less and
less. Where w is a combination of weights whose Gram matrices are kept, to rounding or
to what the answer can bear, theirs combine and nothing is multiplied. Where it is not,
what is missing is the next one kept: divided by its size, it is a direction of its own,
and combinations with it lose no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .dense import add_gram

__all__ = ["ROUNDING", "WeightedGrams"]

#: Relative difference of two weights that are the same up to rounding.
ROUNDING = 16 * torch.finfo(torch.float64).eps
# Only what is missing is kept where it is less than this; else it is new altogether.
_NEAR = 0.03
# A combination may be this many times as large as its value before digits are lost.
_CANCELS = 4.0
# More are not worth their fit, nor a fit with so few columns.
_MOST, _LEAST_COLUMNS = 8, 128
# Rows a CPU scales at a time: they are still in the cache when they are multiplied.
_ROWS = 512


@dataclass(frozen=True, eq=False)
class _Kept:
    """Weights, shape (rows,), and what belongs to them: zero above the diagonal."""

    weights: Tensor
    gram: Tensor


_Terms = list[tuple[float, _Kept]]


class WeightedGrams:
    """``A' diag(w) A`` for one A.

    Parameters
    ----------
    A : Tensor, shape (rows, columns)
        What is kept takes no more memory than it does; the last one is always kept.
    """

    def __init__(self, A: Tensor) -> None:
        self.A = A
        rows, columns = A.shape
        room = rows // max(columns, 1) if columns >= _LEAST_COLUMNS else 1
        self._most = max(1, min(_MOST, room))
        self._kept: list[_Kept] = []

    def gram(self, w: Tensor, error: float = ROUNDING) -> Tensor:
        """Return ``A' diag(w) A`` on and below the diagonal, zero above.

        Parameters
        ----------
        w : Tensor, shape (rows,)
            Not negative.
        error : float
            How far weights may be from w, relatively.
        """
        terms, misfit = self._combine(w)
        if not misfit <= error:
            terms = self._extend(w, terms, misfit)
        (first, kept), *others = terms
        out = first * kept.gram
        for factor, kept in others:
            out.add_(kept.gram, alpha=factor)
        return out

    def inner(self, w: Tensor, M: Tensor, slack: float) -> float:
        """``sum_i w_i a_i' M a_i``, the trace of the product of two matrices.

        Parameters
        ----------
        w : Tensor, shape (rows,)
            Not negative.
        M : Tensor, shape (columns, columns)
            Positive semi-definite; finite above its diagonal, which is not used.
        slack : float
            How far the result may be off: no addend is negative, so that weights that
            are off by a share change it by that share at most.
        """
        terms, misfit = self._combine(w)
        value = _inner(terms, M)
        if not (misfit <= ROUNDING or misfit * abs(value) <= slack):
            value = _inner(self._extend(w, terms, misfit), M)
        return value

    def _combine(self, w: Tensor) -> tuple[_Terms, float]:
        """Nearest combination of the weights kept, and its largest relative misfit."""
        at_hand = self._kept
        if not at_hand or not bool(w.min() > 0):
            return [], torch.inf
        A = torch.stack([kept.weights for kept in at_hand], dim=1) / w[:, None]
        normal, left = A.T @ A, torch.ones_like(w)
        found = w.new_zeros(len(at_hand))
        for _ in range(3):  # The normal equations lose digits, which this gives back.
            found += torch.linalg.solve_ex(normal, A.T @ left)[0]
            left = 1 - A @ found
        misfit, size = float(left.abs().max()), float((A @ found.abs()).max())
        terms = list(zip(found.tolist(), at_hand, strict=True))
        return terms, misfit if size <= _CANCELS else torch.inf

    def _extend(self, w: Tensor, terms: _Terms, misfit: float) -> _Terms:
        """Multiply what is missing, keep it, and return w as a combination."""
        if misfit <= _NEAR:
            near = sum(factor * kept.weights for factor, kept in terms)
            # Twice of it keeps all weights positive.
            new = self._multiply(2 * near + (w - near) / misfit)
            terms = [((1 - 2 * misfit) * factor, kept) for factor, kept in terms]
            terms.append((misfit, new))
        else:
            new = self._multiply(w)
            terms = [(1.0, new)]
        self._kept = [*self._kept, new][-self._most :]
        return terms

    def _multiply(self, w: Tensor) -> _Kept:
        rows, columns = self.A.shape
        step = min(rows, _ROWS) if self.A.is_cpu else rows
        out, scaled = self.A.new_zeros(columns, columns), self.A[:step].clone()
        root = w.sqrt()[:, None]
        for start in range(0, rows, step):
            part = self.A[start : start + step]
            block = scaled[: len(part)]
            torch.mul(part, root[start : start + step], out=block)
            add_gram(block, out)
        return _Kept(w, out.tril_())


def _inner(terms: _Terms, M: Tensor) -> float:
    """Traces of products of symmetric matrices, from what is below their diagonals."""
    total = 0.0
    for factor, kept in terms:
        twice = 2 * torch.vdot(kept.gram.view(-1), M.reshape(-1))
        diagonal = torch.vdot(kept.gram.diagonal(), M.diagonal())
        total += factor * float(twice - diagonal)
    return total
