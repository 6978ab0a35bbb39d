"""How the levels of a categorical variable become columns: treatment, sum, Helmert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from formulaic.transforms import ContrastsRegistry

from .errors import DesignError, listed

__all__ = ["CONTRASTS", "PATSY_CONTRASTS", "Contrast", "as_contrast", "contrast_of"]

CONTRASTS = ("treatment", "sum", "helmert", "poly", "diff", "SAS")
"""Names `c` for which `contr.c` may be written in a formula."""


PATSY_CONTRASTS = {
    "Treatment": "treatment",
    "Sum": "sum",
    "Helmert": "helmert",
    "Poly": "poly",
    "Diff": "diff",
}
"""The patsy spelling of the same contrasts: `C(g, Treatment(reference="b"))`."""


_CONTRAST_OPTIONS = {
    "treatment": ("base",),
    "SAS": ("base",),
    "sum": (),
    "helmert": ("reverse", "scale"),
    "diff": ("backward",),
    "poly": ("scores",),
}


@dataclass(frozen=True)
class Contrast:
    """How the levels of a categorical variable become columns.

    Parameters
    ----------
    kind : str
        One of `CONTRASTS`, or ``"custom"``.
    options : tuple of (str, object)
        Arguments of the coding: ``base`` (treatment, SAS), ``scores`` (poly),
        ``reverse`` and ``scale`` (helmert), ``backward`` (diff), ``columns`` (custom:
        pairs of a name and one weight for each level).
    """

    kind: str = "treatment"
    options: tuple[tuple[str, Any], ...] = ()

    def matrix(self, levels: Iterable[Any], reduced: bool) -> np.ndarray:
        """Return the coding matrix.

        Parameters
        ----------
        levels : iterable
            The levels in order.
        reduced : bool
            Whether to leave out what the intercept already spans; otherwise every
            level has its own indicator.

        Returns
        -------
        numpy.ndarray of float64, shape (len(levels), columns)

        Raises
        ------
        DesignError
            If an option does not fit the levels, such as an unknown base level.
        """
        levels = list(levels)
        if not reduced:
            return np.eye(len(levels))
        if len(levels) < 2:
            return np.zeros((len(levels), 0))
        if self.kind == "custom":
            return self._custom(levels)
        coding = self._coding(levels)
        table = coding.get_coding_matrix(levels, reduced_rank=True)
        return np.ascontiguousarray(np.asarray(table, dtype=np.float64))

    def names(self, levels: Iterable[Any], reduced: bool) -> tuple[str, ...]:
        """Return the column suffixes, such as ``"[T.b]"``, in the order of `matrix`."""
        levels = list(levels)
        if not reduced:
            return tuple(f"[{level}]" for level in levels)
        if len(levels) < 2:
            return ()
        if self.kind == "custom":
            return tuple(f"[{name}]" for name, _ in dict(self.options)["columns"])
        coding = self._coding(levels)
        form = coding.get_factor_format(levels, reduced_rank=True)
        fields = coding.get_coding_column_names(levels, reduced_rank=True)
        return tuple(form.format(name="", field=field) for field in fields)

    def _coding(self, levels: list[Any]) -> Any:
        options = dict(self.options)
        if "base" in options:
            options["base"] = _base_level(options["base"], levels)
        scores = options.get("scores")
        if scores is not None:
            if len(scores) != len(levels):
                raise DesignError(
                    f"contr.poly has {len(scores)} scores for {len(levels)} levels: "
                    "give one score for each level"
                )
            options["scores"] = list(scores)
        return getattr(ContrastsRegistry, self.kind)(**options)

    def _custom(self, levels: list[Any]) -> np.ndarray:
        columns = [weights for _, weights in dict(self.options)["columns"]]
        if any(len(weights) != len(levels) for weights in columns):
            raise DesignError(
                f"a custom contrast needs one weight for each of the {len(levels)} "
                f"levels ({listed(levels)})"
            )
        return np.array(columns, dtype=np.float64).T


def _base_level(base: Any, levels: list[Any]) -> Any:
    """Find the base among the levels, by value or else by R's one-based position."""
    if base in levels:
        return base
    numbered = any(isinstance(level, (int, float)) for level in levels)
    whole = isinstance(base, int) and not isinstance(base, bool)
    if whole and not numbered and 1 <= base <= len(levels):
        return levels[base - 1]
    raise DesignError(
        f"the base level {base!r} does not occur; the levels are {listed(levels)}"
    )


def contrast_of(kind: str, args: tuple[Any, ...], words: Mapping[str, Any]) -> Contrast:
    """Return a coding with the options it was called with, checked."""
    allowed = _CONTRAST_OPTIONS[kind]
    given = dict(zip(allowed, args, strict=False))
    if len(args) > len(allowed) or set(words) - set(allowed) or set(given) & set(words):
        options = ", ".join(allowed) or "no options"
        raise DesignError(f"contr.{kind} takes {options}")
    given.update(words)
    if any(hasattr(value, "dtype") for value in given.values()):
        raise DesignError(
            f"the options of contr.{kind} are constants: put the name of a level in "
            'quotes, as in contr.treatment(base="b")'
        )
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Contrast(kind, tuple(sorted(frozen.items())))


def as_contrast(value: Any) -> Contrast:
    """Read the contrasts that `C` was given: a coding, its name, or weights."""
    if isinstance(value, Contrast):
        return value
    if isinstance(value, str) and value.removeprefix("contr.") in CONTRASTS:
        return Contrast(value.removeprefix("contr."))
    if isinstance(value, list) and value and all(isinstance(v, list) for v in value):
        value = {i: list(w) for i, w in enumerate(zip(*value, strict=True), start=1)}
    if isinstance(value, dict) and value:
        columns = tuple((str(k), tuple(map(float, w))) for k, w in value.items())
        return Contrast("custom", (("columns", columns),))
    names = ", ".join(f"contr.{name}" for name in CONTRASTS)
    raise DesignError(
        f"the contrasts of C() must be one of {names}, "
        f"or a dictionary of weights, not {value!r}"
    )
