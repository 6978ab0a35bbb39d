"""What every family of distributions offers to the models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.errors import DesignError
from deepstats.families.links import REAL, UNIT, Link, covers, get_link, link_names

__all__ = ["ExponentialFamily", "Family"]


@dataclass(frozen=True)
class Family:
    """Distribution of a response given one linear predictor per parameter.

    Attributes
    ----------
    name : str
        Name as `get_family` reads it.
    predictors : tuple of str
        One name per linear predictor; the first is the mean's, "mu".
    links : tuple of Link
        One link per predictor.
    domains : tuple of tuple
        Open interval in which each parameter lives.
    sized : bool
        Whether responses are proportions of a number of trials, `size`.
    has_expected : bool
        Whether the expected information of the mean's predictor has a closed form, as
        in all exponential dispersion families.
    """

    name: ClassVar[str]
    predictors: ClassVar[tuple[str, ...]]
    domains: ClassVar[tuple[tuple[float, float], ...]]
    sized: ClassVar[bool] = False
    has_expected: ClassVar[bool] = False

    @property
    def links(self) -> tuple[Link, ...]:
        """Link of every predictor."""
        fields = self.link_fields()[: len(self.predictors)]
        return tuple(getattr(self, field) for field in fields)

    @classmethod
    def link_fields(cls) -> tuple[str, ...]:
        """Names of the fields that hold the links, one per predictor."""
        return ("link", *(f"{name}_link" for name in cls.predictors[1:]))

    def __post_init__(self) -> None:
        """Turn names of links into links and refuse those that cannot work."""
        fields = zip(self.link_fields(), self.predictors, self.domains, strict=True)
        for field, predictor, domain in fields:
            link = get_link(getattr(self, field))
            # A mean on the whole line may be modelled inside any part of it.
            if domain != REAL and not covers(link.domain, domain):
                raise ValueError(
                    f"{self.name} cannot use the {link.name} link for {predictor}; "
                    f"allowed: {link_names(domain)}"
                )
            object.__setattr__(self, field, link)

    def log_prob(self, y: Tensor, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Point-wise log density as a function of the linear predictors.

        Parameters
        ----------
        y : Tensor
            Responses; checked by `check`, not here.
        *etas : Tensor
            One linear predictor for each name in `predictors`, broadcast with `y`.
        size : Tensor, optional
            Numbers of trials, for families of proportions.

        Returns
        -------
        Tensor
            Twice differentiable in `etas`; NaN where a linear predictor is outside
            the range of its link.
        """
        self._expect(etas, size)
        return self._log_prob(y.to(etas[0].dtype), *etas)

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        raise NotImplementedError

    def mean(self, *etas: Tensor) -> Tensor:
        """Mean of the response at the linear predictors."""
        raise NotImplementedError

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Variance of the response at the linear predictors."""
        raise NotImplementedError

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw one response for each row of the linear predictors."""
        raise NotImplementedError

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses that the family cannot produce.

        Parameters
        ----------
        y : Tensor
            Responses, one per row.
        size : Tensor, optional
            Numbers of trials, for families of proportions.

        Raises
        ------
        DesignError
            With the number of rows at fault, the first of them, and what to do.
        """
        raise NotImplementedError

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Return starting intercepts, one per predictor, from the response."""
        raise NotImplementedError

    def expected_information(self, *etas: Tensor) -> Tensor:
        """Fisher information of the mean's predictor, for one trial.

        Raises
        ------
        ValueError
            For a family without a closed form.
        """
        if not self.has_expected:
            raise ValueError(f"{self.name} has no closed-form expected information")
        slope = self.links[0].derivative(etas[0])
        return slope * (slope / self.variance(*etas))

    def _hold(
        self, parameter: str, interval: tuple[float, float] | None = None
    ) -> None:
        """Drop the predictor of the last parameter, which has a known value.

        It is in an interval, by default that of values that can be estimated.
        """
        value = getattr(self, parameter)
        low, high = interval or self.domains[-1]
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not (known and low < value < high):
            raise ValueError(
                f"{self.name} needs {parameter} between {low:g} and {high:g}, or None "
                f"to estimate it; got {value!r}"
            )
        object.__setattr__(self, "predictors", type(self).predictors[:-1])
        object.__setattr__(self, "domains", type(self).domains[:-1])

    def parameters(self, *etas: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters at the linear predictors, each through its link."""
        pairs = zip(self.links, etas, strict=True)
        return tuple(link.inverse(eta) for link, eta in pairs)

    def _expect(self, etas: tuple[Tensor, ...], size: Tensor | None) -> None:
        if len(etas) != len(self.predictors):
            raise ValueError(
                f"{self.name} needs {len(self.predictors)} linear predictors "
                f"({', '.join(self.predictors)}), got {len(etas)}"
            )
        self._refuse_size(size)

    def _refuse_size(self, size: Tensor | None) -> None:
        if size is not None and not self.sized:
            raise ValueError(
                f"{self.name} takes no number of trials (size); "
                "binomial, quasibinomial and betabinomial do"
            )


@dataclass(frozen=True)
class ExponentialFamily(Family):
    """Exponential dispersion family with one predictor: what a GLM fits.

    The density is ``exp(size * kernel(y, eta) / scale + terms free of eta)``.

    Attributes
    ----------
    scale : {"one", "estimated"}
        Whether the dispersion is known to be one.
    has_likelihood : bool
        False for quasi families, whose `log_prob` is a quasi-likelihood.
    canonical_link : Link
        Link at which observed and expected information are equal.
    """

    predictors: ClassVar[tuple[str, ...]] = ("mu",)
    has_expected: ClassVar[bool] = True
    scale: ClassVar[str] = "one"
    has_likelihood: ClassVar[bool] = True

    link: Link

    @property
    def canonical_link(self) -> Link | None:
        """The canonical link, up to a factor; None where there is none."""
        return None

    @property
    def canonical(self) -> bool:
        """Whether observed and expected information agree."""
        return self.link == self.canonical_link

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Variance function V(mu): the variance at dispersion one."""
        raise NotImplementedError

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return the derivative of the variance function in the mean."""
        raise NotImplementedError

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Quasi-likelihood of eta: all that a GLM maximises over coefficients.

        Multiplied by size and divided by the scale it is the log density up to terms
        free of eta. Its derivative is (y - mu) mu'(eta) / V(mu).
        """
        raise NotImplementedError

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        """Terms of the log density that do not depend on eta."""
        raise NotImplementedError

    def log_prob(
        self,
        y: Tensor,
        *etas: Tensor,
        size: Tensor | None = None,
        scale: Tensor | float = 1.0,
    ) -> Tensor:
        """Point-wise log density at a linear predictor.

        Parameters
        ----------
        y : Tensor
            Responses (proportions where `size` is given).
        *etas : Tensor
            The linear predictor of the mean.
        size : Tensor, optional
            Numbers of trials; one if not given.
        scale : Tensor or float
            Dispersion phi, the variance being ``phi V(mu)``. Families whose
            `scale` is "one" take no other value.

        Returns
        -------
        Tensor
        """
        self._expect(etas, size)
        self._expect_scale(scale)
        (eta,) = etas
        y = y.to(eta.dtype)
        phi = torch.as_tensor(scale, dtype=eta.dtype, device=eta.device)
        kernel = self.kernel(y, eta) / phi
        kernel = kernel if size is None else kernel * size
        return kernel + self._normaliser(y, size, phi)

    def mean(self, *etas: Tensor) -> Tensor:
        """Mean of the response (of the proportion, for families that take a size)."""
        (eta,) = etas
        return self.link.inverse(eta)

    def variance(
        self,
        *etas: Tensor,
        size: Tensor | None = None,
        scale: Tensor | float = 1.0,
    ) -> Tensor:
        """Variance of the response, ``scale * V(mu) / size``."""
        self._expect(etas, size)
        self._expect_scale(scale)
        variance = scale * self.unit_variance(self.mean(*etas))
        return variance if size is None else variance / size

    def expected_weight(self, eta: Tensor) -> Tensor:
        """Fisher information of eta at dispersion one, (d mu / d eta)^2 / V(mu)."""
        slope = self.link.derivative(eta)
        return slope * (slope / self.unit_variance(self.link.inverse(eta)))

    def expected_information(self, *etas: Tensor) -> Tensor:
        """Return `expected_weight`."""
        (eta,) = etas
        return self.expected_weight(eta)

    def deviance(self, y: Tensor, mu: Tensor, size: Tensor | None = None) -> Tensor:
        """Deviance of each row at dispersion one, times `size` where it is given."""
        self._refuse_size(size)
        deviance = self._unit_deviance(y.to(mu.dtype), mu).clamp(min=0)
        return deviance if size is None else deviance * size

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        raise NotImplementedError

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Fitted means to start from: the responses, moved inside the domain."""
        raise NotImplementedError

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Link of the weighted mean, moved inside the domain of the link."""
        if size is not None:
            weights = size if weights is None else weights * size
        mean, _ = moments(y, weights)
        domain = self.domains[0] if self.domains[0] != REAL else self.link.domain
        return (linked(self.link, mean, domain),)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
        scale: Tensor | float = 1.0,
    ) -> Tensor:
        """Draw one response for each linear predictor."""
        self._expect(etas, size)
        self._expect_scale(scale)
        mu = self.mean(*etas)
        phi = torch.as_tensor(scale, dtype=mu.dtype, device=mu.device).expand_as(mu)
        return self._draw(mu, phi, size, generator)

    def _draw(
        self,
        mu: Tensor,
        phi: Tensor,
        size: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        raise NotImplementedError

    def _expect_scale(self, scale: Tensor | float) -> None:
        if self.scale == "one" and not (isinstance(scale, int | float) and scale == 1):
            raise ValueError(
                f"{self.name} has dispersion one and takes no other scale; "
                "use a quasi family to estimate the dispersion"
            )


# ---------------------------------------------------------------- responses


def refuse(bad: Tensor, y: Tensor, family: str, problem: str, advice: str) -> None:
    """Raise a DesignError if any row of `bad` is true."""
    if not bool(bad.any()):
        return
    row = int(bad.reshape(-1).nonzero()[0])
    value = float(y.reshape(-1)[row])
    raise DesignError(
        f"{family}: {int(bad.sum())} of {y.numel()} responses are {problem}, the first "
        f"at row {row} (value {value:g}); {advice}"
    )


def check_real(y: Tensor, family: str) -> None:
    """Refuse missing and infinite responses."""
    advice = "drop or impute those rows"
    refuse(~torch.isfinite(y), y, family, "missing or infinite", advice)


def check_counts(y: Tensor, family: str) -> None:
    """Refuse responses that are not whole numbers of at least zero."""
    check_real(y, family)
    advice = "counts must be whole numbers of at least 0"
    refuse(y < 0, y, family, "negative", advice)
    advice = f"{advice}; use quasipoisson for other amounts that are not negative"
    refuse(y != y.round(), y, family, "not whole", advice)


def check_proportions(y: Tensor, size: Tensor | None, family: str) -> None:
    """Refuse proportions outside [0, 1] and, given sizes, counts that are not whole."""
    check_real(y, family)
    advice = "give 0/1, proportions in [0, 1] with their size, or cbind(yes, no)"
    refuse((y < 0) | (y > 1), y, family, "outside [0, 1]", advice)
    if size is None:
        return
    size = torch.as_tensor(size, dtype=y.dtype, device=y.device).expand_as(y)
    bad = ~(torch.isfinite(size) & (size > 0) & (size == size.round()))
    advice = "numbers of trials must be whole and at least 1"
    refuse(bad, size, family, "out of an impossible number of trials", advice)
    yes = y * size
    bad = (yes - yes.round()).abs() > 1e-6 * size.clamp(min=1)
    advice = "a proportion times its number of trials must be a whole number"
    refuse(bad, yes, family, "not whole numbers of successes", advice)


def moments(y: Tensor, weights: Tensor | None) -> tuple[float, float]:
    """Weighted mean and variance of the response."""
    y = y.to(torch.float64)
    w = torch.ones_like(y) if weights is None else weights.to(y)
    total = w.sum()
    mean = (w * y).sum() / total
    return float(mean), float((w * (y - mean) ** 2).sum() / total)


def linked(link: Link, value: float, domain: tuple[float, float]) -> float:
    """Link of a number after moving it inside the domain."""
    low, high = domain
    if (low, high) == UNIT:
        value = min(max(value, 0.01), 0.99)
    elif math.isfinite(low):
        value = max(value, low + 1e-2)
    return float(link.link(torch.tensor(value, dtype=torch.float64)))


# --------------------------------------------------------------------- draws


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform draws on (0, 1], so that their logarithm is finite."""
    shape, dtype, device = like.shape, like.dtype, like.device
    return 1 - torch.rand(shape, generator=generator, dtype=dtype, device=device)


def normal(like: Tensor, generator: Generator | None) -> Tensor:
    """Draw from the standard normal distribution."""
    shape, dtype, device = like.shape, like.dtype, like.device
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def gamma(shape: Tensor, generator: Generator | None) -> Tensor:
    """Gamma draws of scale one."""
    # torch.distributions draws from the same kernel but takes no generator.
    return torch._standard_gamma(shape.contiguous(), generator=generator)


def beta(a: Tensor, b: Tensor, generator: Generator | None) -> Tensor:
    """Beta draws, inside (0, 1)."""
    x, y = gamma(a, generator), gamma(b, generator)
    edge = torch.finfo(x.dtype).eps / 2
    return (x / (x + y)).clamp(edge, 1 - edge)
