"""Choice as in Wheeler's deep learning RTM: random dropout, then pruning.

Of each factor one candidate, drawn anew at every step, enters the model while Adam
follows the gradient of the Poisson loss; the largest effect of each factor stays. What
is found depends on the seed: it is here to be compared with.
"""

from __future__ import annotations

import numpy as np
import torch

from .terrain import Terrain

__all__ = ["dropped_out"]


def dropped_out(
    terrain: Terrain, steps: int = 10_000, rate: float = 0.001, seed: int = 0,
    weights: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the candidate of each factor that dropout and pruning leave; shape (F,).

    Parameters
    ----------
    terrain : Terrain
    steps : int, default 10000
    rate : float, default 0.001
        Learning rate of Adam.
    seed : int, default 0
    weights : ndarray, shape (n,), optional
        How often each unit counts.

    Returns
    -------
    ndarray of int
        From 1; 0 for a factor all of whose effects end at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    p = terrain.exposed
    sums = torch.as_tensor(
        p.sums(terrain.y, False, weights, np.exp(terrain.offset)) / terrain.n
    )
    Z = torch.as_tensor(p.covariates)
    columns = torch.as_tensor(p.columns, dtype=torch.float64).T.contiguous()
    forced = torch.zeros(Z.shape[1], dtype=torch.float64, requires_grad=True)
    effects = 0.1 * torch.rand(len(columns), dtype=torch.float64, generator=generator)
    effects.requires_grad_()
    # A factor none of whose candidates varies has nothing to be drawn.
    able = torch.as_tensor(terrain.sizes) > 0
    sizes = torch.as_tensor(terrain.sizes)[able]
    starts = torch.as_tensor(terrain.starts)[able]
    draws = torch.rand(steps, len(sizes), generator=generator)
    picks = starts + (draws * sizes).long()
    adam = torch.optim.Adam([forced, effects], lr=rate)
    for pick in picks:
        adam.zero_grad()
        eta = Z @ forced + torch.relu(effects[pick]) @ columns[pick]
        (sums[:, 0] @ eta.exp() - sums[:, 1] @ eta).backward()
        adam.step()
    ended = torch.relu(effects.detach()).split(terrain.sizes)
    largest = [int(e.argmax()) + 1 if bool((e > 0).any()) else 0 for e in ended]
    return np.array(largest)
