"""The likelihood of a trajectory model, as inference asks of it: units are its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...compute import Compute
from ...errors import ModelError
from ...optimize import Derivatives
from ...parameters import Parameters
from .assemble import Assembled

__all__ = ["TrajectoryLikelihood"]


class TrajectoryLikelihood:
    """Value, derivatives and scores in the user's parameters.

    Parameters
    ----------
    assembled : Assembled
    parameters : Parameters
    """

    def __init__(self, assembled: Assembled, parameters: Parameters) -> None:
        self.assembled, self.parameters = assembled, parameters
        self.compute: Compute = assembled.mixture.compute
        self._back = torch.linalg.inv(assembled.change)

    def _at(self, x: Tensor) -> Tensor:
        return self.assembled.to_mixture(x)

    def derivatives(self, x: Tensor, information: str = "observed") -> Derivatives:
        """Value, gradient and information matrix at `x`, (P,)."""
        if information != "observed":
            raise ModelError(
                "mixtures have no closed-form expected information; use 'observed'."
            )
        found = self.assembled.mixture.derivatives(self._at(x)[None])
        back = self._back
        return Derivatives(
            float(found.value),
            back.T @ found.gradient[0],
            back.T @ found.information[0] @ back,
        )

    def scores(self, x: Tensor) -> Tensor:
        """Score of every unit; (N, P)."""
        return self.assembled.mixture.scores(self._at(x)) @ self._back

    def score_gram(
        self, x: Tensor, leverage: Tensor | None = None, power: int = 0
    ) -> Tensor:
        """Sum over units of score times score'; (P, P)."""
        if power:
            raise ModelError(
                "HC2 and HC3 have no leverages in a mixture; use HC0, HC1 or cluster."
            )
        found = self.assembled.mixture.derivatives(self._at(x)[None])
        return self._back.T @ found.meat[0] @ self._back

    def group_scores(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Sum of the scores of the units of each cluster; (groups, P)."""
        scores = self.scores(x)
        total = scores.new_zeros(groups, scores.shape[1])
        return total.index_add_(0, codes.to(scores.device), scores)

    def group_gram(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Cross-products of the clusters' scores; (P, P)."""
        summed = self.group_scores(x, codes, groups)
        return summed.T @ summed
