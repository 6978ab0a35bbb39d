"""Deep mixed models: checks, the mixed models they start from, the fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch

from ...compute import one_thread
from ...errors import ConvergenceWarning, DesignError, ModelError, caution
from ...families import ExponentialFamily, get_family
from ..glmm import MixedGLM
from ..mixed import LinearMixed
from ..mixed.structure import lower_factor
from .decoder import Decoder, Start
from .nets import Net
from .reading import Reader, Reading, as_frame
from .results import DeepMixedResults
from .training import Plan, Trained, train

__all__ = ["DeepMixed", "dgmm"]

_FAMILIES = ("gaussian", "bernoulli", "binomial", "poisson")
#: Fewest subjects that may be held out: fewer say too little.
_FEWEST = 10


class DeepMixed:
    """Deep mixed model; see `dgmm`.

    Parameters
    ----------
    formula, data, group, time, family, random, deep_fixed, deep_random, deep_prior
        See `dgmm`.
    """

    title: ClassVar[str] = "Deep mixed model"

    def __init__(
        self,
        formula: str | Mapping[str, str],
        data: Any,
        *,
        group: str,
        time: str | None = None,
        family: str | Mapping[str, str] = "gaussian",
        random: str | Mapping[str, str] = "1",
        deep_fixed: Net | None = None,
        deep_random: Net | None = None,
        deep_prior: Net | None = None,
    ) -> None:
        formulas = {"": formula} if isinstance(formula, str) else dict(formula)
        if not formulas:
            raise ModelError("there is no outcome; give a formula for each.")
        if "" in formulas and len(formulas) == 1:
            formulas = {formulas[""].partition("~")[0].strip(): formulas[""]}
        declared = {"deep_fixed": deep_fixed, "deep_random": deep_random,
                    "deep_prior": deep_prior}  # fmt: skip
        for what, given in declared.items():
            if not (given is None or isinstance(given, Net)):
                raise ModelError(
                    f'{what} must be declared by ds.net("x + t", (32, 32)), not '
                    f"{type(given).__name__}; modules of torch are not in this version."
                )
        self.nets = declared
        self.families = {
            name: _family(name, one)
            for name, one in _by_outcome(family, formulas, "family").items()
        }
        self.data = as_frame(data)
        if time is not None and time not in self.data:
            raise DesignError(f"there is no column {time!r} for the time.")
        self.reader = Reader.read(
            formulas, self.data, group, time, _by_outcome(random, formulas, "random"),
            deep_fixed, deep_random, deep_prior,
        )  # fmt: skip
        self._starts: tuple[Start, ...] | None = None
        #: Fits of the mixed models of single outcomes that the model starts from.
        self.anchors: dict[str, Any] = {}

    @one_thread()
    def anchor(self) -> tuple[Start, ...]:
        """Fit the mixed model of each outcome; what the networks start from."""
        if self._starts is None:
            starts = []
            for reading in self.reader.outcomes:
                try:
                    starts.append(self._anchor(reading))
                except DesignError as error:
                    raise DesignError(f"outcome {reading.name}: {error}") from error
            self._starts = tuple(starts)
            self.reader.reread(self.data)
        return self._starts

    def _anchor(self, reading: Reading) -> Start:
        rows, family = reading.design.rows, self.families[reading.name]
        data = self.data if rows is None else self.data.iloc[rows]
        gaussian = family.scale == "estimated"
        if gaussian:
            fit: Any = LinearMixed(reading.formula, data).fit(reml=False)
        else:
            fit = MixedGLM(reading.formula, data, family=family).fit()
        names = fit.model.design.X.names
        reading.keep_columns(names)
        self.anchors[reading.name] = fit
        beta = fit.params.loc[list(names)].to_numpy() if names else np.zeros(0)
        return Start(
            family,
            torch.from_numpy(np.array(beta, dtype=np.float64)),
            torch.from_numpy(lower_factor(fit.mixed.covariances[0])),
            float(fit.mixed.sigma) if gaussian else None,
        )

    @one_thread()
    def fit(
        self,
        inference: str = "vlap",
        *,
        missing: str = "ignore",
        epochs: int = 300,
        batch: int = 200,
        rate: float = 5e-3,
        decay: float = 0.3,
        draws: int | None = None,
        validation: float = 0.15,
        patience: int = 100,
        every: int = 5,
        margin: float = 1.0,
        refit: bool = True,
        seed: int = 1,
        progress: bool = False,
    ) -> DeepMixedResults:
        """Start at the mixed model, train, and keep what held-out subjects prefer.

        Parameters
        ----------
        inference : {"vlap"}
            Variational Laplace: each subject's latent effects are normal around one
            scoring step from their stored mode. Amortised encoders are not in this
            version.
        missing : {"ignore"}
            Missing responses add nothing to the likelihood, which is right where they
            are missing at random. Other ways are not in this version.
        epochs : int, default 300
            The most; 0 keeps the mixed model.
        batch : int, default 200
            Subjects a step.
        rate : float, default 0.005
            Longest step of AdamW, after a warm start and along half a cosine.
        decay : float, default 0.3
            Decoupled weight decay of the networks; the linear part has none.
        draws : int, optional
            Draws of the bound, an even number: 4 where all outcomes are normal (the
            ELBO), else 8 (importance weighted, which keeps variances from shrinking).
        validation : float, default 0.15
            Share of the subjects that is held out to choose the epoch.
        patience, every : int, default 100 and 5
            Epochs without a gain before training stops, and between looks at it.
        margin : float, default 1.0
            The mixed model is left only for a held-out gain per subject above this many
            standard errors.
        refit : bool, default True
            Train again from the start on all subjects, for the chosen epochs.
        seed : int, default 1
            The same seed gives the same fit.
        progress : bool, default False
            Show a bar (tqdm).

        Returns
        -------
        DeepMixedResults

        Warns
        -----
        ConvergenceWarning
            Where the bound became infinite or no number; the last good state is kept.

        Notes
        -----
        The mixed model at the start was fitted to all subjects, also those held out:
        this favours the start, by about the number of its parameters over that of the
        subjects.
        """
        if inference != "vlap":
            raise ModelError(
                f'inference={inference!r} is not in this version; use "vlap".'
            )
        if missing != "ignore":
            raise ModelError(
                f'missing={missing!r} is not in this version; "ignore" uses the '
                "likelihood of what was observed."
            )
        gaussian = all(f.scale == "estimated" for f in self.families.values())
        draws = (4 if gaussian else 8) if draws is None else draws
        _check_numbers(epochs, batch, rate, decay, draws, patience, every, margin)
        plan = Plan(
            int(epochs), int(batch), float(rate), float(decay), int(draws),
            not gaussian, int(patience), int(every), float(margin), int(seed),
        )  # fmt: skip
        starts = self.anchor()
        sample = self.reader.sample
        start = self._decoder(starts, plan.seed)
        if not plan.epochs:
            return DeepMixedResults(self, start, start, plan, Trained(), None)
        decoder = copy.deepcopy(start)
        learn, held = _split(sample.n, validation, plan.seed)
        with _Progress(progress) as advance:
            chosen = train(
                decoder, sample.subjects(learn), plan, sample.subjects(held),
                advance=advance,
            )  # fmt: skip
            again = None
            if refit and chosen.epoch:
                decoder = copy.deepcopy(start)
                again = train(decoder, sample, plan, epochs=chosen.epoch,
                              advance=advance)  # fmt: skip
        for run in (chosen, again):
            if run is not None and run.trouble:
                caution(
                    f"training stopped: {run.trouble}. The last good state is kept; a "
                    "smaller rate= may help.",
                    ConvergenceWarning,
                )
        return DeepMixedResults(self, decoder, start, plan, chosen, again)

    def _decoder(self, starts: tuple[Start, ...], seed: int) -> Decoder:
        return Decoder(
            starts, self.reader.sample, self.nets["deep_fixed"],
            self.nets["deep_random"], self.nets["deep_prior"], seed,
        )  # fmt: skip


def dgmm(
    formula: str | Mapping[str, str],
    data: Any,
    *,
    group: str,
    time: str | None = None,
    family: str | Mapping[str, str] = "gaussian",
    random: str | Mapping[str, str] = "1",
    deep_fixed: Net | None = None,
    deep_random: Net | None = None,
    deep_prior: Net | None = None,
) -> DeepMixed:
    """Deep mixed model: a mixed model, and networks that may add to it.

    The linear predictor of a row is ``x'beta + z'Lb + m1(x, t) + m2(b, t)``, with
    latent effects b of its subject, normal of mean g(x). The networks m1, m2 and g are
    zero at the start, which is the mixed model exactly.

    Parameters
    ----------
    formula : str or mapping of str to str
        Fixed part of the mixed model, ``"y ~ t * sex"``; one for each outcome, by name.
    data : frame or mapping
        One row for each occasion; responses that were not measured are missing.
    group : str
        Column of the subject.
    time : str, optional
        Column of the time, for `DeepMixedResults.dynamic_predict`.
    family : str or mapping, default "gaussian"
        "gaussian", "bernoulli" or "poisson", with canonical links.
    random : str or mapping, default "1"
        What varies by subject in the mixed model: ``"1 + ns(t, 2)"``. Outcomes share
        all latent effects; at the start each has its own.
    deep_fixed : Net, optional
        m1, declared by ``ds.net("sex + age + poly(t, 3)", (32, 32))``.
    deep_random : Net, optional
        m2; the latent effects are inputs besides those named.
    deep_prior : Net, optional
        g, of what describes the subject.

    Returns
    -------
    DeepMixed
        Call ``.fit()`` on it.

    Raises
    ------
    ModelError, DesignError
        For a model that is not in this version, or data that cannot be used.

    References
    ----------
    Park, Kim & Kim (2019), Variational Laplace autoencoders, ICML. Mandel, Ghosh &
    Barnett (2023), Neural networks for clustered and longitudinal data using mixed
    effects models, Biometrics 79.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 1.4, 3.1, 2.9, 2.2, 1.9, 4.0, 4.4],
    ...         "t": [0, 1, 0, 1, 0, 1, 0, 1],
    ...         "g": ["a", "a", "b", "b", "c", "c", "d", "d"]}
    >>> model = ds.dgmm("y ~ t", data, group="g", deep_fixed=ds.net("t", (4,)))
    >>> fit = model.fit(epochs=0)
    >>> lmer = ds.lmer("y ~ t + (1 | g)", data).fit(reml=False)
    >>> bool(abs(fit.loglik().value - lmer.llf) < 1e-6)
    True
    """
    return DeepMixed(
        formula, data, group=group, time=time, family=family, random=random,
        deep_fixed=deep_fixed, deep_random=deep_random, deep_prior=deep_prior,
    )  # fmt: skip


# -- reading of options ----------------------------------------------------------------


def _by_outcome(
    given: str | Mapping[str, str], formulas: Mapping[str, str], what: str
) -> dict[str, str]:
    """Return an option by outcome, given once or for each."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(formulas, given)
    if set(given) != set(formulas):
        raise ModelError(
            f"{what}= names {', '.join(map(str, given))}; the outcomes are "
            f"{', '.join(formulas)}."
        )
    return dict(given)


def _family(name: str, given: Any) -> ExponentialFamily:
    if not isinstance(given, str) or given.lower() not in _FAMILIES:
        raise ModelError(
            f"outcome {name}: family={given!r} is not in this version of deep mixed "
            "models; gaussian, bernoulli and poisson are."
        )
    lower = given.lower()
    family = get_family("binomial" if lower == "bernoulli" else lower)
    assert isinstance(family, ExponentialFamily)
    return family


def _check_numbers(
    epochs: Any, batch: Any, rate: Any, decay: Any, draws: Any, patience: Any,
    every: Any, margin: Any,
) -> None:  # fmt: skip
    whole = {"batch": batch, "draws": draws, "patience": patience, "every": every}
    for name, value in whole.items():
        if not (isinstance(value, Integral) and value > 0):
            raise ValueError(f"{name} must be a positive integer, not {value!r}.")
    if not (isinstance(epochs, Integral) and epochs >= 0):
        raise ValueError(f"epochs must be an integer from 0 on, not {epochs!r}.")
    if draws % 2:
        raise ValueError(f"draws come in antithetic pairs: not {draws!r}.")
    if not (isinstance(rate, Real) and 0 < rate < np.inf):
        raise ValueError(f"rate must be a positive number, not {rate!r}.")
    for name, value in {"decay": decay, "margin": margin}.items():
        if not (isinstance(value, Real) and 0 <= value < np.inf):
            raise ValueError(f"{name} must be a number from 0 on, not {value!r}.")


def _split(n: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Subjects to learn from and subjects held out."""
    if not (isinstance(share, Real) and 0 < share < 1):
        raise ValueError(f"validation must be between 0 and 1, not {share!r}.")
    out = round(n * share)
    if out < _FEWEST or n - out < _FEWEST:
        raise DesignError(
            f"validation={share} of {n} subjects are {out}: at least {_FEWEST} are "
            "needed to learn from and to judge by. Use another share, or epochs=0 for "
            "the mixed model."
        )
    generator = torch.Generator().manual_seed(seed + 3)
    order = torch.randperm(n, generator=generator)
    return order[out:].sort().values, order[:out].sort().values


class _Progress:
    """A bar that counts epochs, where one is asked for."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.bar: Any = None

    def __enter__(self) -> Callable[[], object] | None:
        if not self.show:
            return None
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True needs tqdm: pip install tqdm, or leave it out."
            ) from error
        self.bar = tqdm(desc="epochs", unit=" epoch", leave=False)
        return self.bar.update

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
