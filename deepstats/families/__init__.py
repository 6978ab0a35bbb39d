"""Families of distributions and their links."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable

from deepstats.families.base import ExponentialFamily, Family
from deepstats.families.bounded import Beta, BetaBinomial
from deepstats.families.categorical import CumulativeLink, Multinomial, Ordinal
from deepstats.families.censored import CensoredNormal
from deepstats.families.continuous import (
    GammaML,
    GaussianML,
    InverseGaussianML,
    StudentT,
)
from deepstats.families.counts import (
    NegativeBinomial,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
)
from deepstats.families.exponential import (
    Binomial,
    Gamma,
    Gaussian,
    InverseGaussian,
    NegativeBinomialFixed,
    Poisson,
    Quasi,
    QuasiBinomial,
    QuasiPoisson,
    Tweedie,
)
from deepstats.families.links import (
    Cauchit,
    CLogLog,
    Identity,
    Interval,
    Link,
    Log,
    Logit,
    LogLog,
    Power,
    Probit,
    get_link,
)
from deepstats.families.mixtures import (
    HurdleNegativeBinomial,
    HurdlePoisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    ZeroInflatedPoissonTau,
)
from deepstats.families.tweedie import TweedieML

__all__ = [
    "Beta",
    "BetaBinomial",
    "Binomial",
    "CLogLog",
    "Cauchit",
    "CensoredNormal",
    "CumulativeLink",
    "ExponentialFamily",
    "Family",
    "Gamma",
    "GammaML",
    "Gaussian",
    "GaussianML",
    "HurdleNegativeBinomial",
    "HurdlePoisson",
    "Identity",
    "Interval",
    "InverseGaussian",
    "InverseGaussianML",
    "Link",
    "Log",
    "LogLog",
    "Logit",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomialFixed",
    "Ordinal",
    "Poisson",
    "Power",
    "Probit",
    "Quasi",
    "QuasiBinomial",
    "QuasiPoisson",
    "StudentT",
    "Tweedie",
    "TweedieML",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "ZeroInflatedPoissonTau",
    "ZeroTruncatedNegativeBinomial",
    "ZeroTruncatedPoisson",
    "get_family",
    "get_link",
]

AnyFamily = Family | Ordinal | Multinomial

_FAMILIES: dict[str, type[AnyFamily]] = {
    "gaussian": Gaussian,
    "binomial": Binomial,
    "poisson": Poisson,
    "negativebinomial": NegativeBinomial,
    "gamma": Gamma,
    "inversegaussian": InverseGaussian,
    "tweedie": Tweedie,
    "quasi": Quasi,
    "quasipoisson": QuasiPoisson,
    "quasibinomial": QuasiBinomial,
    "gaussianml": GaussianML,
    "gammaml": GammaML,
    "inversegaussianml": InverseGaussianML,
    "tweedieml": TweedieML,
    "studentt": StudentT,
    "censorednormal": CensoredNormal,
    "beta": Beta,
    "betabinomial": BetaBinomial,
    "zeroinflatedpoisson": ZeroInflatedPoisson,
    "zeroinflatedpoissontau": ZeroInflatedPoissonTau,
    "zeroinflatednegativebinomial": ZeroInflatedNegativeBinomial,
    "hurdlepoisson": HurdlePoisson,
    "hurdlenegativebinomial": HurdleNegativeBinomial,
    "zerotruncatedpoisson": ZeroTruncatedPoisson,
    "zerotruncatednegativebinomial": ZeroTruncatedNegativeBinomial,
    "ordinal": Ordinal,
    "multinomial": Multinomial,
}
_ALIASES = {
    "normal": "gaussian",
    "bernoulli": "binomial",
    "nb": "negativebinomial",
    "negbin": "negativebinomial",
    "negbinomial": "negativebinomial",
    "zip": "zeroinflatedpoisson",
    "ziptau": "zeroinflatedpoissontau",
    "zinb": "zeroinflatednegativebinomial",
    "hurdle": "hurdlepoisson",
    "hurdlenb": "hurdlenegativebinomial",
    "hurdlenegbin": "hurdlenegativebinomial",
    "truncatedpoisson": "zerotruncatedpoisson",
    "ztp": "zerotruncatedpoisson",
    "truncatednegativebinomial": "zerotruncatednegativebinomial",
    "ztnb": "zerotruncatednegativebinomial",
    "t": "studentt",
    "cnorm": "censorednormal",
    "tobit": "censorednormal",
    "mnlogit": "multinomial",
}
_POWERS: dict[object, type[AnyFamily]] = {
    0: Gaussian,
    1: Poisson,
    2: Gamma,
    3: InverseGaussian,
}


def get_family(
    name: str | AnyFamily, link: str | Link | None = None, **options: object
) -> AnyFamily:
    """Family of a name; an instance is returned as it is.

    Parameters
    ----------
    name : str, Family, Ordinal or Multinomial
        Case, blanks, dots, hyphens and underscores do not matter. "zip", "zinb",
        "nb1", "nb2", "normal", "tobit" and "hurdle" are understood. An instance of a
        statsmodels family, with its link, is understood too.
    link : str or Link, optional
        Link of the mean; by default the family's own.
    **options
        Fields of the family: ``loglike="nb1"``, ``alpha=0.5`` (a known
        overdispersion: a GLM), ``power=1.5``, ``variance="mu^2"``, ``levels=4``,
        ``phi_link="identity"``.

    Returns
    -------
    Family, Ordinal or Multinomial

    Raises
    ------
    ValueError
        If there is no such family, or it has no such link or option.

    Examples
    --------
    >>> get_family("inverse.gaussian").links[0].name
    'inverse-squared'
    >>> get_family("nb1").loglike
    'nb1'
    >>> get_family("tweedie", power=2)
    Gamma(link=Log())
    """
    if isinstance(name, Family | Ordinal | Multinomial):
        if link is not None or options:
            raise ValueError(
                f"{name.name} was given as an instance; set its link and options there"
            )
        return name
    if type(name).__module__.startswith("statsmodels."):
        name, link, options = _from_statsmodels(name, link, options)
    family, options = _resolve(name, dict(options))
    allowed = [p for p in inspect.signature(family).parameters if p != "link"]
    unknown = [option for option in options if option not in [*allowed, "link"]]
    if unknown:
        raise ValueError(
            f"{family.name} has no option {', '.join(unknown)}; "
            f"allowed: {', '.join(allowed) or 'none'}"
        )
    if link is not None:
        if family is Multinomial:
            raise ValueError("multinomial has the logit link against the first level")
        options["link"] = link
    required = [f.name for f in dataclasses.fields(family) if f.name == "levels"]
    if required and "levels" not in options:
        raise ValueError(f"{family.name} needs the number of levels: levels=K")
    build: Callable[..., AnyFamily] = family
    return build(**options)


_STATSMODELS_LINKS = {
    "Logit": "logit", "Log": "log", "Identity": "identity", "Probit": "probit",
    "CLogLog": "cloglog", "LogLog": "loglog", "Cauchy": "cauchit", "Sqrt": "sqrt",
    "InversePower": "inverse", "InverseSquared": "inverse-squared",
}  # fmt: skip


def _from_statsmodels(
    family: object, link: str | Link | None, options: dict[str, object]
) -> tuple[str, str | Link, dict[str, object]]:
    """Name, link and options of a statsmodels family, so that its users' code runs."""
    name, theirs = type(family).__name__, getattr(family, "link", None)
    if link is None:
        kind = type(theirs).__name__
        if kind == "Power":
            link = Power(float(theirs.power))  # type: ignore[union-attr]
        elif kind in _STATSMODELS_LINKS:
            link = _STATSMODELS_LINKS[kind]
        else:
            raise ValueError(f"the statsmodels link {kind} is not known here")
    if name == "NegativeBinomial":
        options = {"alpha": float(family.alpha), **options}  # type: ignore[attr-defined]
    if name == "Tweedie":
        power = float(family.var_power)  # type: ignore[attr-defined]
        options = {"power": power, **options}
    return name, link, options


def _resolve(
    name: object, options: dict[str, object]
) -> tuple[type[AnyFamily], dict[str, object]]:
    """Class of a name, and its options after those that choose the class."""
    key = re.sub(r"[\s._-]", "", name.lower()) if isinstance(name, str) else ""
    match = re.fullmatch(r"(nb|zinb|hurdlenb|ztnb)([12])", key)
    if match:
        key = match.group(1)
        loglike = options.setdefault("loglike", f"nb{match.group(2)}")
        if loglike != f"nb{match.group(2)}":
            raise ValueError(f"family {name!r} contradicts loglike={loglike!r}")
    key = _ALIASES.get(key, key)
    if key not in _FAMILIES:
        known = ", ".join([*_FAMILIES, *_ALIASES, "nb1", "nb2"])
        raise ValueError(f"unknown family {name!r}; allowed: {known}")
    if key == "tweedie" and options.get("power") in _POWERS:
        # Tweedie's log link is kept, whichever family the power names.
        return _POWERS[options.pop("power")], {"link": "log", **options}
    if key == "negativebinomial" and "alpha" in options:
        if options.get("loglike", "nb2") != "nb2":
            raise ValueError("a known alpha needs loglike='nb2': only nb2 is a GLM")
        options.pop("loglike", None)
        return NegativeBinomialFixed, options
    return _FAMILIES[key], options
