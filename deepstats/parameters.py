"""Named blocks of parameters: the flat vector optimised, the values reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "Parameters"]


@dataclass(frozen=True)
class Block:
    """Parameters that belong together.

    Attributes
    ----------
    name : str
        ``"beta"``, ``"alpha"`` ...
    labels : tuple of str
        One for each value, as printed.
    positive : bool
        The optimiser's value is the logarithm of the one reported.
    interval : tuple of float, optional
        Ends of the range of the one reported; the optimiser's value is the logit of its
        place between them.
    component : str
        Heading of the block in tables; empty for the main block.
    lower : float
        Least value the optimiser may reach; below, the parameter is at its boundary.
    """

    name: str
    labels: tuple[str, ...]
    positive: bool = False
    component: str = ""
    lower: float = -torch.inf
    interval: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Parameters:
    """All blocks of a model, in the order of the flat vector."""

    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return sum(len(b) for b in self.blocks)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of every value."""
        return tuple(label for b in self.blocks for label in b.labels)

    @property
    def components(self) -> tuple[str, ...]:
        """Heading of every value."""
        return tuple(b.component for b in self.blocks for _ in b.labels)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the blocks of a flat vector (last axis)."""
        parts = torch.split(flat, [len(b) for b in self.blocks], dim=-1)
        return {b.name: p for b, p in zip(self.blocks, parts, strict=True)}

    def join(self, values: dict[str, Tensor]) -> Tensor:
        """Return the flat vector of blocks."""
        return torch.cat([values[b.name].reshape(-1) for b in self.blocks])

    def reported(self, flat: Tensor) -> Tensor:
        """Return the values reported for the optimiser's `flat`."""
        out = torch.where(self._positive(flat), flat.exp(), flat)
        for at, low, high in self._intervals():
            out[..., at] = low + (high - low) * torch.sigmoid(flat[..., at])
        return out

    def working(self, reported: Tensor) -> Tensor:
        """Return the optimiser's values for those reported."""
        safe = torch.where(self._positive(reported), reported, 1.0)
        out = torch.where(self._positive(reported), safe.log(), reported)
        for at, low, high in self._intervals():
            out[..., at] = torch.logit((reported[..., at] - low) / (high - low))
        return out

    def scale(self, flat: Tensor) -> Tensor:
        """Return d reported / d working, for the delta method; shape of `flat`."""
        one = torch.ones_like(flat)
        if not any(b.positive or b.interval for b in self.blocks):
            return one
        out = torch.where(self._positive(flat), flat.exp(), one)
        for at, low, high in self._intervals():
            share = torch.sigmoid(flat[..., at])
            out[..., at] = (high - low) * share * (1 - share)
        return out

    def lower(self) -> Tensor:
        """Return the least value of each of the optimiser's values."""
        return torch.tensor([b.lower for b in self.blocks for _ in b.labels]).double()

    def _intervals(self) -> Iterator[tuple[slice, float, float]]:
        """Places of the blocks that have an interval, and its ends."""
        place = 0
        for block in self.blocks:
            if block.interval is not None:
                yield slice(place, place + len(block)), *block.interval
            place += len(block)

    def _positive(self, like: Tensor) -> Tensor:
        flags = [b.positive for b in self.blocks for _ in b.labels]
        return torch.tensor(flags, dtype=torch.bool, device=like.device)
