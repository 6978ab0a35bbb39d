"""The density of an outcome as a kernel: which form a family has."""

from __future__ import annotations

from ...errors import ModelError
from ...families import (
    Beta,
    Binomial,
    CensoredNormal,
    ExponentialFamily,
    Family,
    Gamma,
    GammaML,
    Gaussian,
    GaussianML,
    Multinomial,
    NegativeBinomial,
    Ordinal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    ZeroInflatedPoissonTau,
)
from .density_categories import MultinomialKernel, OrdinalKernel
from .density_forms import (
    BetaKernel,
    BinomialKernel,
    GammaKernel,
    GaussianKernel,
    PoissonKernel,
    ZeroInflatedKernel,
    ZeroInflatedTauKernel,
)
from .density_kernel import FeatureKernel, Kernel, Observed
from .density_tables import (
    CensoredNormalKernel,
    NegativeBinomialKernel,
    ScaledKernel,
    TableKernel,
    ZeroInflatedNegativeBinomialKernel,
)

__all__ = ["FeatureKernel", "Kernel", "Observed", "TableKernel", "kernel_of"]

# Kernels with written derivatives, and the links for which they are written.
_WRITTEN: dict[type, tuple[type[Kernel], tuple[str, ...]]] = {
    GaussianML: (GaussianKernel, ("identity", "log")),
    Poisson: (PoissonKernel, ("log",)),
    Binomial: (BinomialKernel, ("logit",)),
    ZeroInflatedPoisson: (ZeroInflatedKernel, ("log", "logit")),
    ZeroInflatedPoissonTau: (ZeroInflatedTauKernel, ("log", "log")),
    GammaML: (GammaKernel, ("log", "log")),
    Beta: (BetaKernel, ("logit", "log")),
    NegativeBinomial: (NegativeBinomialKernel, ("log", "log")),
    ZeroInflatedNegativeBinomial: (
        ZeroInflatedNegativeBinomialKernel,
        ("log", "logit", "log"),
    ),
}


def kernel_of(family: Family | Ordinal | Multinomial, limits: bool = False) -> Kernel:
    """Kernel of a family: written derivatives where there are any.

    Parameters
    ----------
    family : Family, Ordinal or Multinomial
        Gaussian and gamma get a predictor for their spread, sigma or shape; other
        families whose dispersion is estimated get one for it, "phi". Ordinal families
        get one for each step between thresholds.
    limits : bool, default False
        Whether responses have limits of censoring: Gaussian families become censored
        normal ones, and others are refused.

    Returns
    -------
    Kernel

    Raises
    ------
    ModelError
        For quasi families, and for limits of a family that has none.
    """
    if isinstance(family, Gaussian):
        family = GaussianML(family.link)
    elif isinstance(family, Gamma):
        family = GammaML(family.link)
    if limits:
        family = _censored(family)
    if isinstance(family, CensoredNormal):
        return CensoredNormalKernel(family)
    if isinstance(family, Ordinal):
        return OrdinalKernel(family)
    if isinstance(family, Multinomial):
        return MultinomialKernel(family)
    form, links = _WRITTEN.get(type(family), (TableKernel, ()))
    named = tuple(link.name for link in family.links)
    if links == named and getattr(family, "loglike", "nb2") == "nb2":
        return form(family)
    if isinstance(family, ExponentialFamily):
        return _exponential(family)
    return TableKernel(family)


def _censored(family: Family | Ordinal | Multinomial) -> CensoredNormal:
    if isinstance(family, CensoredNormal):
        return family
    if isinstance(family, GaussianML):
        return CensoredNormal(family.link, family.sigma_link)
    raise ModelError(
        f"{family.name} takes no limits (lower, upper); the censored normal family "
        'does: family="cnorm"'
    )


def _exponential(family: ExponentialFamily) -> Kernel:
    if not family.has_likelihood:
        raise ModelError(
            f"{family.name} has no likelihood, and a mixture needs one; use poisson, "
            "negativebinomial, binomial, betabinomial, gamma or tweedie"
        )
    return (TableKernel if family.scale == "one" else ScaledKernel)(family)
