"""Training by a bound, and the choice of when to stop by subjects held out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .decoder import Decoder
from .posterior import antithetic, bound, modes
from .rows import Sample

__all__ = ["Plan", "Trained", "train", "validate"]

#: Epochs over which the step length grows at the start.
_WARM = 10
#: Gradients are not longer than this.
_CLIP = 5.0
#: Draws of the bound where subjects are held out; the same at every epoch.
_HELD_OUT = 16
#: A gain per subject that is no gain.
_NOTHING = 1e-3


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes
    ----------
    epochs : int
        The most.
    batch : int
        Subjects a step.
    rate : float
        Longest step of Adam.
    decay : float
        Decoupled weight decay of the networks; the linear part has none.
    draws : int
        Draws of the bound, in antithetic pairs.
    importance : bool
        Whether the bound is importance weighted.
    patience, every : int
        Epochs without a gain before it stops, and between looks.
    margin : float
        Standard errors by which the held-out gain over the start must exceed zero.
    seed : int
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    draws: int
    importance: bool
    patience: int
    every: int
    margin: float
    seed: int

    def step_length(self, epoch: int) -> float:
        """Share of the longest step: a warm start, then half a cosine."""
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))
        return min(1.0, (epoch + 1) / _WARM) * (0.02 + 0.98 * fall)


@dataclass(eq=False)
class Trained:
    """What a training left behind.

    Attributes
    ----------
    epoch : int
        That of the parameters now in the decoder; 0 for the start.
    history : list of tuple
        Epoch, training bound and held-out bound per subject (NaN where not looked at).
    gain, error : float
        Held-out gain per subject over the start at the best epoch, and its standard
        error; NaN without subjects held out.
    trouble : str
        Why training ended early, or "".
    """

    epoch: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)
    gain: float = math.nan
    error: float = math.nan
    trouble: str = ""


def train(
    decoder: Decoder, sample: Sample, plan: Plan, held_out: Sample | None = None,
    epochs: int | None = None, advance: Callable[[], object] | None = None,
) -> Trained:  # fmt: skip
    """Train a decoder in place.

    Parameters
    ----------
    decoder : Decoder
        At the start that the held-out subjects judge against.
    sample : Sample
        Subjects to train on.
    plan : Plan
    held_out : Sample, optional
        Subjects that choose the epoch; without, all epochs are run.
    epochs : int, optional
        In place of the most epochs of the plan, whose schedule stays.
    advance : callable, optional
        Called after every epoch.

    Returns
    -------
    Trained

    Notes
    -----
    Where the bound or its gradient is not finite the parameters of the last epoch that
    was whole are put back and training ends. With subjects held out the parameters of
    the best epoch are put back, or those of the start unless the gain is above
    `Plan.margin` standard errors of its mean over subjects.
    """
    out = Trained()
    runner = _Runner(decoder, sample, plan)
    watch = None if held_out is None else _Watch(decoder, held_out, plan)
    good = copy.deepcopy(decoder.state_dict())
    for epoch in range(1, (plan.epochs if epochs is None else epochs) + 1):
        value = runner.epoch(epoch)
        if value is None:
            decoder.load_state_dict(good)
            out.trouble = f"the bound was not finite in epoch {epoch}"
            break
        good = copy.deepcopy(decoder.state_dict())
        out.epoch = epoch
        look = watch is not None and epoch % plan.every == 0
        seen = watch.look(epoch) if watch is not None and look else math.nan
        out.history.append((epoch, value, seen))
        if advance is not None:
            advance()
        if watch is not None and epoch - watch.best_epoch >= plan.patience:
            break
    if watch is not None:
        out.gain, out.error = watch.gain()
        out.epoch = watch.restore()
    return out


class _Runner:
    """Epochs of AdamW over batches of subjects, with the subjects' stored modes."""

    def __init__(self, decoder: Decoder, sample: Sample, plan: Plan) -> None:
        self.decoder, self.sample, self.plan = decoder, sample, plan
        self.generator = torch.Generator().manual_seed(plan.seed + 1)
        self.modes, _ = modes(decoder, sample)
        named = [(n, p) for n, p in decoder.named_parameters() if p.requires_grad]
        deep = [p for n, p in named if _is_deep(n)]
        flat = [p for n, p in named if not _is_deep(n)]
        self.parameters = deep + flat
        self.optimiser = torch.optim.AdamW(
            [{"params": deep, "weight_decay": plan.decay},
             {"params": flat, "weight_decay": 0.0}],
            lr=plan.rate, betas=(0.9, 0.98),
        )  # fmt: skip

    def epoch(self, number: int) -> float | None:
        """Run one epoch; its mean bound, or None where something was not finite."""
        plan, n = self.plan, self.sample.n
        for group in self.optimiser.param_groups:
            group["lr"] = plan.rate * plan.step_length(number - 1)
        order = torch.randperm(n, generator=self.generator)
        total = 0.0
        for part in order.split(plan.batch):
            value = self._step(part)
            if value is None:
                return None
            total += value
        return total / n

    def _step(self, which: Tensor) -> float | None:
        decoder, batch = self.decoder, self.sample.subjects(which)
        shape = (batch.n, decoder.latent)
        z = antithetic(self.plan.draws, shape, self.generator)
        try:
            values, mode = bound(
                decoder, batch, self.modes[which], z, self.plan.importance
            )
        except torch.linalg.LinAlgError:
            return None
        self.optimiser.zero_grad()
        (-values.mean()).backward()
        length = nn.utils.clip_grad_norm_(self.parameters, _CLIP)
        total = float(values.detach().sum())
        if not (math.isfinite(total) and math.isfinite(float(length))):
            return None
        self.optimiser.step()
        self.modes[which] = mode
        return total


class _Watch:
    """The bound of subjects held out, and the best parameters seen by it."""

    def __init__(self, decoder: Decoder, sample: Sample, plan: Plan) -> None:
        self.decoder, self.sample = decoder, sample
        self.margin = plan.margin
        generator = torch.Generator().manual_seed(plan.seed + 2)
        self.z = antithetic(_HELD_OUT, (sample.n, decoder.latent), generator)
        self.start = self.best = self._values()
        self.start_state = self.best_state = copy.deepcopy(decoder.state_dict())
        self.best_epoch = 0

    def _values(self) -> Tensor:
        return validate(self.decoder, self.sample, self.z)

    def look(self, epoch: int) -> float:
        """Take the bound now, and keep the parameters if it is the best."""
        values = self._values()
        mean = float(values.mean())
        if mean > float(self.best.mean()) + 1e-4:
            self.best, self.best_epoch = values, epoch
            self.best_state = copy.deepcopy(self.decoder.state_dict())
        return mean

    def gain(self) -> tuple[float, float]:
        """Return the mean gain of the best epoch over the start, and its error."""
        more = self.best - self.start
        return float(more.mean()), float(more.std()) / len(more) ** 0.5

    def restore(self) -> int:
        """Put the chosen parameters back; their epoch, 0 for the start."""
        gain, error = self.gain()
        if gain > max(_NOTHING, self.margin * error):
            self.decoder.load_state_dict(self.best_state)
            return self.best_epoch
        self.decoder.load_state_dict(self.start_state)
        return 0


@torch.no_grad()
def validate(decoder: Decoder, sample: Sample, z: Tensor) -> Tensor:
    """Importance-weighted bound of subjects at their modes; (subjects,).

    Parameters
    ----------
    decoder : Decoder
    sample : Sample
    z : Tensor, shape (draws, subjects, latent)
    """
    mode, _ = modes(decoder, sample)
    return bound(decoder, sample, mode, z, importance=True)[0]


def _is_deep(name: str) -> bool:
    """Whether a parameter belongs to a network."""
    return name.startswith("g.") or ".m1." in name or ".m2." in name
