"""Networks of a deep mixed model: their declaration, and their values and tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...errors import ModelError
from ...formula import Rhs

__all__ = ["Branch", "Net", "net"]

_ACTIVATIONS = ("tanh", "silu")


@dataclass(frozen=True)
class Net:
    """A network declared: what goes in, and its hidden layers.

    Attributes
    ----------
    formula : str
        Right-hand side of a formula; its columns, standardised, are the inputs.
    layers : tuple of int
        Widths of the hidden layers.
    activation : {"tanh", "silu"}
    """

    formula: str
    layers: tuple[int, ...]
    activation: str = "tanh"

    @property
    def rhs(self) -> Rhs:
        """The inputs, read."""
        return Rhs.parse(self.formula)


def net(
    formula: str, layers: Sequence[int] = (32, 32), *, activation: str = "tanh"
) -> Net:
    """Declare a network of a deep mixed model.

    Parameters
    ----------
    formula : str
        Its inputs, ``"sex + age + poly(t, 3)"``: any terms of the formula language but
        random effects. The columns are standardised; a constant is never an input.
    layers : sequence of int, default (32, 32)
        Widths of the hidden layers.
    activation : {"tanh", "silu"}

    Returns
    -------
    Net

    Raises
    ------
    ModelError
        For random effects or offsets in the formula, or a `torch.nn.Module`, which
        this version does not take.
    ValueError
        For layers that are not positive integers, or an unknown activation.

    Examples
    --------
    >>> import deepstats as ds
    >>> ds.net("sex + poly(t, 3)", (16,))
    Net(formula='sex + poly(t, 3)', layers=(16,), activation='tanh')
    """
    if isinstance(layers, nn.Module) or isinstance(formula, nn.Module):
        raise ModelError(
            "modules of torch as networks are not in this version; give the widths of "
            'the hidden layers: ds.net("x + t", (32, 32)).'
        )
    widths = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    if not widths or not all(isinstance(w, Integral) and w > 0 for w in widths):
        raise ValueError(f"layers must be positive integers, not {layers!r}.")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation must be {' or '.join(_ACTIVATIONS)}, not {activation!r}."
        )
    declared = Net(formula, tuple(int(w) for w in widths), activation)
    rhs = declared.rhs
    if rhs.groups or rhs.offsets or rhs.calls:
        raise ModelError(
            f"{formula!r} are the inputs of a network: columns only, without random "
            "effects, offsets or models."
        )
    return declared


class Branch(nn.Module):
    """A network of the latent effects and of columns, zero at the start.

    Its output layer is zero to begin with. Its derivatives in the latent effects are
    carried forward with its values, so that they can be differentiated in turn.

    Parameters
    ----------
    latent : int
        Number of latent effects among the inputs; 0 for columns alone.
    columns : int
    net : Net
    outputs : int
    generator : torch.Generator
        Draws the hidden weights, uniform within ``1 / sqrt(inputs)``.
    """

    def __init__(
        self, latent: int, columns: int, net: Net, outputs: int, generator: Generator
    ) -> None:
        super().__init__()
        self.latent, self.activation = latent, net.activation
        widths = (latent + columns, *net.layers)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            bound = max(before, 1) ** -0.5
            self.weights.append(_uniform((after, before), bound, generator))
            self.biases.append(_uniform((after,), bound, generator))
        self.out = nn.Parameter(torch.zeros(outputs, widths[-1], dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(outputs, dtype=torch.float64))

    def forward(
        self, columns: Tensor, b: Tensor | None = None, subject: Tensor | None = None
    ) -> Tensor:
        """Values at rows.

        Parameters
        ----------
        columns : Tensor, shape (rows, columns)
        b : Tensor, shape (..., subjects, latent), optional
        subject : Tensor of int, shape (rows,), optional
            Whose effects a row has.

        Returns
        -------
        Tensor, shape (..., rows, outputs)
        """
        h = self._act(self._first(columns, b, subject))
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = self._act(h @ weight.T + bias)
        return h @ self.out.T + self.shift

    def tangents(
        self, columns: Tensor, b: Tensor, subject: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values of the first output, (rows,), and derivatives in b, (rows, latent)."""
        h = self._first(columns, b, subject)
        a = self._act(h)
        into = self.weights[0][:, : self.latent].T
        slope = self._slope(h, a)[:, None, :] * into
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = a @ weight.T + bias
            a = self._act(h)
            slope = (slope @ weight.T) * self._slope(h, a)[:, None, :]
        return a @ self.out[0] + self.shift[0], slope @ self.out[0]

    @property
    def is_zero(self) -> bool:
        """Whether the output layer is still zero."""
        return not (bool(self.out.any()) or bool(self.shift.any()))

    def _first(self, columns: Tensor, b: Tensor | None, subject: Any) -> Tensor:
        weight = self.weights[0]
        h = columns @ weight[:, self.latent :].T + self.biases[0]
        if b is None:
            return h
        return (b @ weight[:, : self.latent].T)[..., subject, :] + h

    def _act(self, h: Tensor) -> Tensor:
        return torch.tanh(h) if self.activation == "tanh" else h * torch.sigmoid(h)

    def _slope(self, h: Tensor, a: Tensor) -> Tensor:
        if self.activation == "tanh":
            return 1 - a * a
        s = torch.sigmoid(h)
        return s + a * (1 - s)


def _uniform(
    shape: tuple[int, ...], bound: float, generator: Generator
) -> nn.Parameter:
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return nn.Parameter((2 * drawn - 1) * bound)
