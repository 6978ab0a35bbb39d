"""Random effects by cluster: groups of rows that share no effect with other rows.

With one grouping factor a cluster is a level; with nested ones a level of the
outermost; crossed factors may be one cluster. The effects of a cluster are one vector,
those of small clusters padded, so that all clusters are computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ..mixed.structure import Structure
from .reading import Effect

__all__ = ["Effects"]


class Effects:
    """Where the effects of every row stand.

    Parameters
    ----------
    structure : Structure
    effects : sequence of Effect
        In the order of the formula.
    parameters : int
        Parameters of the curve.
    compute : Compute

    Attributes
    ----------
    clusters, size : int
        Clusters, and effects of the largest.
    cluster : Tensor, shape (n,)
    spread : Tensor, shape (n, P, K)
        How the standardised effects of a row move its parameters.
    at : Tensor, shape (n, K)
        Places of these effects in their cluster.
    """

    def __init__(
        self, structure: Structure, effects: Sequence[Effect], parameters: int,
        compute: Compute,
    ) -> None:  # fmt: skip
        self.structure = structure
        factors = structure.factors
        codes = [f.codes.astype(np.int64) for f in factors]
        row_cluster, level_clusters = _components(codes, [f.m for f in factors])
        self.clusters = max(int(owner.max()) for owner in level_clusters) + 1
        fill = np.zeros(self.clusters, dtype=np.int64)
        places = []
        for factor, owner in zip(factors, level_clusters, strict=True):
            place = np.empty(factor.m, dtype=np.int64)
            order = np.argsort(owner, kind="stable")
            counts = np.bincount(owner, minlength=self.clusters)
            first = np.cumsum(counts) - counts
            place[order] = (np.arange(factor.m) - first[owner[order]]) * factor.k
            places.append(place + fill[owner])
            fill += counts * factor.k
        self.size = int(fill.max())
        compute.require(
            8 * self.clusters * self.size**2,
            f"the matrices of {self.clusters} clusters of {self.size} effects",
            "use fit(method='lindstrom-bates'), which eliminates one factor after "
            "another.",
        )
        self.cluster = torch.from_numpy(row_cluster.astype(np.int64))
        n = len(row_cluster)
        spread, at, self._slots = [], [], []
        for j, factor in enumerate(factors):
            columns = torch.arange(factor.k)
            at.append(torch.from_numpy(places[j][codes[j]])[:, None] + columns)
            moved = torch.zeros(n, parameters, factor.k, dtype=torch.float64)
            for term in structure.of(j):
                effect = effects[term.order]
                B, U = torch.from_numpy(effect.columns), torch.from_numpy(term.U)
                for column, owner in enumerate(effect.owner):
                    moved[:, owner, term.at] += B[:, column, None] * U[column]
            spread.append(moved)
            start = torch.from_numpy(level_clusters[j] * self.size + places[j])
            self._slots.append(start[:, None] + columns)  # (m, K), flat places
        self.spread, self.at = torch.cat(spread, dim=2), torch.cat(at, dim=1)
        self._flat = self.cluster[:, None] * self.size + self.at
        pairs = self.at[:, :, None] * self.size + self.at[:, None, :]
        self._pairs = self.cluster[:, None, None] * self.size**2 + pairs
        self._blocks = [
            slots[:, :, None] * self.size + slots[:, None, :] % self.size
            for slots in self._slots
        ]

    def zeros(self) -> Tensor:
        """Return effects of zero; (clusters, size)."""
        return torch.zeros(self.clusters, self.size, dtype=torch.float64)

    def move(self, b: Tensor) -> Tensor:
        """How far effects, (clusters, size), move the parameters of rows; (n, P)."""
        return torch.einsum("npk,nk->np", self.spread, b.reshape(-1)[self._flat])

    def columns(self, D: Tensor) -> Tensor:
        """Return derivatives of rows in their effects, from those in parameters."""
        return torch.einsum("np,npk->nk", D, self.spread)

    def gather(self, values: Tensor) -> Tensor:
        """Add up values of rows and their effects, (n, K), to (clusters, size)."""
        out = torch.zeros(self.clusters * self.size, dtype=torch.float64)
        out = out.index_add(0, self._flat.reshape(-1), values.reshape(-1))
        return out.view(self.clusters, self.size)

    def matrices(self, values: Tensor) -> Tensor:
        """Add up matrices of rows, (n, K, K), to (clusters, size, size)."""
        out = torch.zeros(self.clusters * self.size**2, dtype=torch.float64)
        out = out.index_add(0, self._pairs.reshape(-1), values.reshape(-1))
        return out.view(self.clusters, self.size, self.size)

    def covariance(self, V: Sequence[Tensor]) -> Tensor:
        """Covariance of the effects of clusters, from that of each factor's.

        Parameters
        ----------
        V : sequence of Tensor, each (K, K)

        Returns
        -------
        Tensor, shape (clusters, size, size)
        """
        out = torch.zeros(self.clusters * self.size**2, dtype=torch.float64)
        for block, at in zip(V, self._blocks, strict=True):
            out = out.index_add(0, at.reshape(-1), block.expand(at.shape).reshape(-1))
        return out.view(self.clusters, self.size, self.size)

    def sums(self, values: Tensor) -> Tensor:
        """Add up values of rows by cluster; (clusters,)."""
        out = torch.zeros(self.clusters, dtype=torch.float64)
        return out.index_add(0, self.cluster, values)

    def by_factor(self, b: Tensor) -> list[Tensor]:
        """Effects of every factor, each (m, K)."""
        return [b.reshape(-1)[slots] for slots in self._slots]

    def from_factors(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `by_factor`."""
        out = torch.zeros(self.clusters * self.size, dtype=torch.float64)
        for slots, part in zip(self._slots, parts, strict=True):
            out[slots.reshape(-1)] = part.reshape(-1)
        return out.view(self.clusters, self.size)


def _components(
    codes: Sequence[np.ndarray], sizes: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cluster of every row, and of every level of each factor."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.cumsum([0, *sizes])
    one = np.concatenate([codes[0]] * len(codes)) + edges[0]
    two = np.concatenate([c + e for c, e in zip(codes, edges, strict=False)])
    graph = coo_matrix((np.ones(len(one)), (one, two)), shape=(edges[-1], edges[-1]))
    _, labels = connected_components(graph, directed=False)
    levels = [labels[a:b] for a, b in pairwise(edges)]
    return levels[0][codes[0]], levels
