"""Frames to rows: what a deep mixed model reads of its data, and of new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import default_compute
from ...design import Design, Table, varying
from ...errors import DesignError, ModelError
from ...expressions import expression_variables, quote_name
from ...formula import Formula, Rhs
from ...matrix import ModelMatrix
from ...transforms import evaluate
from .nets import Net
from .rows import Rows, Sample

__all__ = ["Inputs", "Reader", "Reading", "as_frame"]

_CONSTANT = "Intercept"


def as_frame(data: Any) -> pd.DataFrame:
    """Read any frame as one of pandas."""
    if isinstance(data, pd.DataFrame):
        return data
    table = Table(data)
    return pd.DataFrame({name: np.asarray(table.full(name)) for name in table.columns})


@dataclass(frozen=True, eq=False)
class Inputs:
    """Which columns of a matrix are inputs of a network, and their scale.

    Attributes
    ----------
    keep : list of int
        Columns that vary.
    mean, sd : ndarray
        In the data of the fit.
    """

    keep: list[int]
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def learn(cls, matrix: ModelMatrix, what: str) -> Inputs:
        """Learn the scale of inputs; refuse a network without any."""
        values = _dense(matrix)
        keep = [
            j
            for j, name in enumerate(matrix.names)
            if name != _CONSTANT and np.ptp(values[:, j]) > 0
        ]
        if not keep:
            raise DesignError(
                f"{what} has no input that varies; name columns that do, or leave the "
                "network out."
            )
        return cls(keep, values[:, keep].mean(0), values[:, keep].std(0))

    def __call__(self, matrix: ModelMatrix) -> Tensor:
        """Return the standardised inputs; (rows, inputs)."""
        values = (_dense(matrix)[:, self.keep] - self.mean) / self.sd
        return torch.from_numpy(values)


@dataclass(eq=False)
class Reading:
    """One outcome: its formula, its design and the scale of its networks' inputs.

    The design's further matrices are Z, then the inputs of the networks there are.

    Attributes
    ----------
    name : str
    formula : Formula
        With the random effects.
    design : Design
        Without them.
    nets : tuple of (str, Net or None)
        Networks of the fixed and the random part.
    inputs : dict of str to Inputs
    """

    name: str
    formula: Formula
    design: Design
    nets: tuple[tuple[str, Net | None], ...]
    inputs: dict[str, Inputs]

    @classmethod
    def read(
        cls, name: str, text: str, random: str, group: str, data: pd.DataFrame,
        nets: tuple[tuple[str, Net | None], ...],
    ) -> Reading:  # fmt: skip
        """Read an outcome's formula against the data.

        Raises
        ------
        ModelError
            For random effects in the formula, or a response of several columns.
        DesignError
        """
        fixed = Formula.parse(text)
        if fixed.rhs.groups:
            raise ModelError(
                f"{text!r} has random effects of its own; give what varies by subject "
                'as random="1 + t", and the subject as group=.'
            )
        if fixed.response is None or fixed.response.kind != "single":
            raise ModelError(
                f"the outcome {name} needs one column as its response; several are not "
                "in this version."
            )
        if fixed.rhs.offsets or fixed.rhs.calls or fixed.parts:
            raise ModelError(
                f"{text!r}: offsets, models and fixed effects after | are not in this "
                "version of deep mixed models."
            )
        formula = Formula.parse(f"{text} + ({random} | {quote_name(group)})")
        term = formula.rhs.groups[0]
        parts = [Rhs(varying(term), text=term.text)]
        parts += [declared.rhs for _, declared in nets if declared is not None]
        design = Design.build(fixed, data, parts=parts)
        if design.y_levels is not None:
            raise DesignError(
                f"the outcome {name} is categorical; code it as numbers, 0 and 1."
            )
        out = cls(name, formula, design, nets, {})
        for what, matrix in out._matrices(design).items():
            out.inputs[what] = Inputs.learn(matrix, f"the network of the {what} part")
        return out

    def _matrices(self, design: Design) -> dict[str, ModelMatrix]:
        present = [what for what, declared in self.nets if declared is not None]
        return dict(zip(present, design.parts[1:], strict=True))

    def keep_columns(self, names: Sequence[str]) -> None:
        """Leave out fixed columns that others determine."""
        keep = [j for j, n in enumerate(self.design.X.names) if n in set(names)]
        if len(keep) < len(self.design.X.names):
            self.design = self.design.select_columns(keep)

    def rows(self, design: Design, y: np.ndarray, subject: np.ndarray) -> Rows:
        """Return the rows of a design as tensors."""
        matrices, n = self._matrices(design), design.n
        empty = torch.zeros(n, 0, dtype=torch.float64)
        fixed, random = (
            self.inputs[what](matrices[what]) if what in matrices else empty
            for what, _ in self.nets
        )
        return Rows(
            torch.from_numpy(np.array(y, dtype=np.float64)),
            torch.from_numpy(np.array(subject, dtype=np.int64)),
            torch.from_numpy(_dense(design.X)),
            torch.from_numpy(_dense(design.parts[0])),
            fixed, random,
        )  # fmt: skip

    def new_rows(
        self, data: pd.DataFrame, subject: np.ndarray, history: bool
    ) -> tuple[Rows, np.ndarray]:
        """Rows of new data, and their positions.

        Parameters
        ----------
        data : DataFrame
        subject : ndarray of int, shape (len(data),)
        history : bool
            Read the responses, and leave out rows without one; else responses are NaN.
        """
        y = self._response(data) if history else np.full(len(data), np.nan)
        usable = np.flatnonzero(np.isfinite(y)) if history else np.arange(len(data))
        usable = usable[self._complete(data.iloc[usable])]
        if not len(usable):
            nothing = {
                "y": 0, "F": len(self.design.X.names),
                "Z": len(self.design.parts[0].names),
                **{what: len(i.keep) for what, i in self.inputs.items()},
            }  # fmt: skip
            return _no_rows(nothing), usable
        design = self.design.spec.rebuild(data.iloc[usable])
        if design.rows is not None:
            usable = usable[design.rows]
        return self.rows(design, y[usable], subject[usable]), usable

    def _complete(self, data: pd.DataFrame) -> np.ndarray:
        """Which rows have every variable but the response."""
        spec = self.design.spec
        factors = [
            f for rhs in (spec.formula.rhs, *spec.parts) for t in rhs.terms
            for f in t.factors
        ]  # fmt: skip
        names = {v for f in factors for v in expression_variables(f)}
        used = [name for name in data.columns if name in names]
        return ~data[used].isna().any(axis=1).to_numpy()

    def _response(self, data: pd.DataFrame) -> np.ndarray:
        """Values of the response; NaN where they are missing or not given at all."""
        response = self.formula.response
        assert response is not None
        (expression,) = response.expressions
        out = np.full(len(data), np.nan)
        names = [str(v) for v in expression_variables(expression)]
        if not set(names) <= set(data.columns):
            return out
        known = data[names].notna().all(axis=1).to_numpy()
        if known.any():
            found: Any = evaluate(expression, Table(data[known]), {}, {})
            out[known] = np.asarray(found.values, dtype=np.float64)
        return out


@dataclass(eq=False)
class Reader:
    """All outcomes, the subjects, and the inputs of the latent effects' mean.

    Attributes
    ----------
    outcomes : tuple of Reading
    group : str
        Column of the subject.
    time : str or None
    subjects : Index
        Of the data of the fit.
    sample : Sample
    prior_design, prior_inputs : Design and Inputs, or None
    """

    outcomes: tuple[Reading, ...]
    group: str
    time: str | None
    subjects: pd.Index
    sample: Sample
    prior_design: Design | None
    prior_inputs: Inputs | None

    @classmethod
    def read(
        cls, formulas: Mapping[str, str], data: pd.DataFrame, group: str,
        time: str | None, random: Mapping[str, str], fixed_net: Net | None,
        random_net: Net | None, prior_net: Net | None,
    ) -> Reader:  # fmt: skip
        """Read formulas against the data.

        Raises
        ------
        DesignError, ModelError
        """
        codes, subjects = _subjects(data, group)
        nets = (("fixed", fixed_net), ("random", random_net))
        readings = tuple(
            Reading.read(name, text, random[name], group, data, nets)
            for name, text in formulas.items()
        )
        out = cls(readings, group, time, subjects, Sample((), torch.zeros(0), 0), None,
                  None)  # fmt: skip
        if prior_net is not None:
            first = _first_rows(data, codes, len(subjects))
            design = Design.build(_prior_formula(prior_net), first.assign(**{_ONES: 1}))
            out.prior_design = design
            _check_constant(_dense(design.spec.rebuild(data).X), codes, prior_net)
            out.prior_inputs = Inputs.learn(design.X, "the network of the prior")
        out.sample = out._sample(data, codes)
        return out

    def _sample(self, data: pd.DataFrame, codes: np.ndarray) -> Sample:
        rows = []
        for reading in self.outcomes:
            design = reading.design
            used = slice(None) if design.rows is None else design.rows
            assert design.y is not None
            rows.append(reading.rows(design, design.y, codes[used]))
        return Sample(
            tuple(rows), self.prior(data, codes, len(self.subjects)), len(self.subjects)
        )

    def reread(self, data: pd.DataFrame) -> None:
        """Read the sample again, after columns were left out."""
        self.sample = self._sample(data, _subjects(data, self.group)[0])

    def prior(self, data: pd.DataFrame, codes: np.ndarray, n: int) -> Tensor:
        """Return the inputs of the latent effects' mean; (subjects, inputs)."""
        if self.prior_inputs is None:
            return torch.zeros(n, 0, dtype=torch.float64)
        return self.prior_values(_first_rows(data, codes, n))

    def prior_values(self, data: pd.DataFrame) -> Tensor:
        """Return the same for rows; none may be missing."""
        assert self.prior_design is not None and self.prior_inputs is not None
        design = self.prior_design.spec.rebuild(data)
        if design.n < len(data):
            raise DesignError(
                f"inputs of deep_prior are missing in {len(data) - design.n} rows; "
                "they describe the subject and must be known in every row."
            )
        return self.prior_inputs(design.X)

    def new(
        self, data: pd.DataFrame, history: np.ndarray, wanted: np.ndarray
    ) -> tuple[Sample, Sample, list[np.ndarray], pd.Index]:
        """Read new data.

        Parameters
        ----------
        data : DataFrame
        history, wanted : ndarray of bool, shape (len(data),)
            Rows whose responses are taken as known, and rows to predict.

        Returns
        -------
        Sample
            The history, as far as responses are known.
        Sample
            Rows to predict.
        list of ndarray of int
            By outcome, their positions in the data.
        Index
            The subjects.
        """
        codes, subjects = _subjects(data, self.group)
        prior = self.prior(data, codes, len(subjects))
        known, asked, places = [], [], []
        past, ahead = np.flatnonzero(history), np.flatnonzero(wanted)
        for reading in self.outcomes:
            known.append(reading.new_rows(data.iloc[past], codes[past], True)[0])
            rows, used = reading.new_rows(data.iloc[ahead], codes[ahead], False)
            asked.append(rows)
            places.append(ahead[used])
        n = len(subjects)
        return (
            Sample(tuple(known), prior, n), Sample(tuple(asked), prior, n), places,
            subjects,
        )  # fmt: skip


_ONES = "constant response"


def _prior_formula(net: Net) -> Formula:
    return Formula.parse(f"{quote_name(_ONES)} ~ {net.formula}")


def _subjects(data: pd.DataFrame, group: str) -> tuple[np.ndarray, pd.Index]:
    if group not in data:
        raise DesignError(f"there is no column {group!r} for the subjects.")
    codes, levels = pd.factorize(data[group], sort=True)
    if (codes < 0).any():
        raise DesignError(
            f"{group} is missing in {(codes < 0).sum()} rows; leave these rows out."
        )
    return codes, pd.Index(levels, name=group)


def _first_rows(data: pd.DataFrame, codes: np.ndarray, n: int) -> pd.DataFrame:
    first = np.full(n, len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    return data.iloc[first]


def _check_constant(values: np.ndarray, codes: np.ndarray, net: Net) -> None:
    """Refuse inputs of the prior that vary within a subject."""
    frame = pd.DataFrame(values).groupby(codes)
    spread = (frame.max() - frame.min()).to_numpy().max(0)
    if (spread > 1e-9 * np.abs(values).max(0)).any():
        raise DesignError(
            f"deep_prior: {net.formula!r} varies within subjects; the mean of a "
            "subject's latent effects takes what describes the subject."
        )


def _dense(matrix: ModelMatrix) -> np.ndarray:
    dense = matrix.to_dense(default_compute().on_cpu()).numpy()
    return np.array(dense, dtype=np.float64)


def _no_rows(columns: dict[str, int]) -> Rows:
    def empty(name: str) -> Tensor:
        return torch.zeros(0, columns.get(name, 0), dtype=torch.float64)

    return Rows(
        torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64),
        empty("F"), empty("Z"), empty("fixed"), empty("random"),
    )  # fmt: skip
