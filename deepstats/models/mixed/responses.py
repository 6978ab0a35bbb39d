"""Cross-products of a model's effects with many responses, in one pass over the rows.

Another response changes one column of the cross-products and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from .products import Products, Vector
from .rows import fixed_part

__all__ = ["Responses", "RowSpace"]


@dataclass(eq=False)
class Responses:
    """Cross-products of many responses with the effects of one model.

    Attributes
    ----------
    vector : Vector
        With every effect, a column a response; zero for the fixed effects, of which
        the responses are net.
    squares : Tensor, shape (R,)
        Residual sums of squares.
    center : Tensor, shape (p, R)
        Least-squares coefficients.
    """

    vector: Vector
    squares: Tensor
    center: Tensor

    def __len__(self) -> int:
        return len(self.squares)

    def products(self, base: Products, number: int) -> Products:
        """Cross-products of the model with one of the responses."""
        at = slice(number, number + 1)
        stages = [
            replace(s, XY=torch.cat([s.XY[:, :, :-1], y[:, :, at]], dim=2))
            for s, y in zip(base.stages, self.vector.stages, strict=True)
        ]
        G = base.G.clone()
        G[-1, -1] = self.squares[number]
        return replace(
            base, stages=stages, G=G, center=self.center[:, number],
            BXY=torch.cat([base.BXY[:, :-1], self.vector.rest[:, at]], dim=1),
        )  # fmt: skip


class RowSpace:
    """Columns of a model held for all its rows, to meet many responses.

    Parameters
    ----------
    design : Design
        Its `X` of full rank.
    products : Products
    compute : Compute
    """

    def __init__(self, design: Design, products: Products, compute: Compute) -> None:
        self.products, device = products, compute.device
        factors = products.structure.factors
        columns = products.p + sum(f.k for f in factors)
        compute.require(
            design.n * (columns + 4),
            f"the {columns} columns of {design.n:,} rows",
            "raise the budget with set_default_device(memory=...).",
        )
        cpu = compute.on_cpu()
        self.X = design.X.to_dense(cpu).to(device) @ products.R
        self.codes = [
            torch.from_numpy(f.codes.astype(np.int64)).to(device) for f in factors
        ]
        self.Z = []
        for j, f in enumerate(factors):
            U = torch.block_diag(
                *(torch.from_numpy(t.U) for t in products.structure.of(j))
            )
            Z = torch.cat([z.to_dense(cpu) for z in f.matrices], dim=1)
            columns = (Z @ U).T.contiguous().to(device)
            # Ones, as of an intercept, need not be multiplied by.
            self.Z.append([None if bool((z == 1).all()) else z for z in columns])
        w = design.weights
        self.weights = None if w is None else torch.tensor(w, device=device)
        base = fixed_part(design, products.center.cpu().numpy(), compute)
        self.base = torch.from_numpy(base).to(device)

    def meet(self, Y: np.ndarray) -> Responses:
        """Cross-products of responses; `Y` has shape (n, R)."""
        products, w = self.products, self.weights
        # A row a response: along a row torch adds three times as fast.
        E = torch.tensor(Y.T, dtype=torch.float64, device=self.base.device)
        E -= self.base
        shift = (E if w is None else E * w) @ self.X
        E.addmm_(shift, self.X.T, alpha=-1)
        wE = E if w is None else E * w
        parts = []
        for f, Z, codes in zip(
            products.structure.factors, self.Z, self.codes, strict=True
        ):
            part = E.new_zeros(f.k, len(E), f.m)
            for z, out in zip(Z, part, strict=True):
                out.index_add_(1, codes, wE if z is None else wE * z)
            parts.append(part.transpose(1, 2).contiguous())
        none = E.new_zeros(products.p, len(E))
        return Responses(
            products.from_factors(parts, none),
            torch.linalg.vecdot(E, wE),
            products.center[:, None] + products.R @ shift.T,
        )
