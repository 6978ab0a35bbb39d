"""The libraries compared: how each is called at each task, at its best.

`table` is what a user types: a data frame and a formula in, a table of coefficients
with standard errors out. `prepare` returns the fit alone, as a call without arguments:
the model, or the arrays it wants in the layout it likes, are ready before the clock
starts, and the standard errors are inside it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from harness import NAMES, Data

RESPONSES = {
    "ols_hc1": "y", "ols_cluster": "y", "poisson": "count", "logit": "binary",
    "nb2": "count",
}  # fmt: skip
GIGABYTE = 1e9


@dataclass(frozen=True)
class Task:
    """What is fitted: `name` is a key of `RESPONSES`; design "B" has the factor."""

    name: str
    design: str = "A"

    @property
    def response(self) -> str:
        return RESPONSES[self.name]

    @property
    def has_factor(self) -> bool:
        return self.design == "B"

    def formula(self, factor: str = " + factor") -> str:
        return (
            f"{self.response} ~ {' + '.join(NAMES)}{factor if self.has_factor else ''}"
        )


@dataclass(frozen=True)
class Estimates:
    """Slopes of the numeric columns and their standard errors, if there are any."""

    slopes: np.ndarray
    errors: np.ndarray | None
    iterations: int | None = None


def labelled(params: pd.Series, errors: pd.Series | None, **more: Any) -> Estimates:
    """Pick the numeric columns out of labelled estimates."""
    names = list(NAMES)
    found = None if errors is None else errors[names].to_numpy()
    return Estimates(params[names].to_numpy(), found, **more)


class Library(ABC):
    """A way to fit regressions."""

    package: ClassVar[str]
    has_fit: ClassVar[bool] = True
    has_frame: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("ols_hc1", "ols_cluster", "poisson", "logit")
    #: Peers that give no standard errors are shown and not raced against.
    reference_only: ClassVar[bool] = False

    @classmethod
    def refuses(cls, task: Task, n: int) -> str | None:
        """Why this cell is not run, if so."""
        if task.name not in cls.tasks:
            return "has no such model"
        return None

    def frame_of(self, data: Data) -> pd.DataFrame:
        """Lay the data out as a frame with a categorical of strings."""
        columns = dict(zip(NAMES, data.X, strict=True))
        levels = [f"level {i:03d}" for i in range(data.factor.max() + 1)]
        return pd.DataFrame(
            columns
            | {
                "y": data.y,
                "count": data.count.astype(np.int64),
                "binary": data.binary.astype(np.int64),
                "factor": pd.Categorical.from_codes(data.factor, levels),
                "cluster": data.cluster,
            }
        )

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        raise NotImplementedError

    def prepare(
        self, task: Task, data: Data, frame: pd.DataFrame
    ) -> Callable[[], Estimates]:
        raise NotImplementedError


class Deepstats(Library):
    """deepstats; the fit alone starts from a built model."""

    package = "deepstats"
    tasks = (*Library.tasks, "nb2")

    def __init__(self) -> None:
        import deepstats

        self.ds = deepstats

    @staticmethod
    def _options(task: Task) -> tuple[Any, ...]:
        return {
            "ols_hc1": ("HC1",),
            "ols_cluster": ("cluster", {"groups": "cluster"}),
        }.get(task.name, ("nonrobust",))

    def _model(self, task: Task, frame: pd.DataFrame) -> Any:
        ds, formula = self.ds, task.formula()
        if task.name == "nb2":
            return ds.negativebinomial(formula, frame, loglike="nb2")
        if task.name.startswith("ols"):
            return getattr(ds, "ols", ds.OLS)(formula, frame)
        if hasattr(ds, task.name):
            return getattr(ds, task.name)(formula, frame)
        family = {"poisson": "poisson", "logit": "binomial"}[task.name]
        return ds.GLM(formula, frame, family=family)

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        results = self._model(task, frame).fit(*self._options(task))
        table = results.tidy().set_index("term")
        return labelled(
            table["estimate"],
            table["std_error"],
            iterations=results.fit_info.iterations,
        )

    def prepare(
        self, task: Task, data: Data, frame: pd.DataFrame
    ) -> Callable[[], Estimates]:
        model = self._model(task, frame)

        def fit() -> Estimates:
            results = model.fit(*self._options(task))
            steps = results.fit_info.iterations
            return labelled(results.params, results.bse, iterations=steps)

        return fit


class Statsmodels(Library):
    """statsmodels: its formula interface, and its array classes for the fit alone."""

    package = "statsmodels"
    tasks = (*Library.tasks, "nb2")

    def __init__(self) -> None:
        import statsmodels.api as sm
        import statsmodels.formula.api as smf

        self.sm, self.smf = sm, smf

    @classmethod
    def refuses(cls, task: Task, n: int) -> str | None:
        if task.has_factor and n > 100_000:
            return f"dummies: about {5 * 8 * 120 * n / GIGABYTE:.0f} GB, and minutes"
        return super().refuses(task, n)

    @staticmethod
    def _fit(task: Task, model: Any, clusters: np.ndarray) -> Any:
        if task.name == "ols_hc1":
            return model.fit(cov_type="HC1")
        if task.name == "ols_cluster":
            return model.fit(cov_type="cluster", cov_kwds={"groups": clusters})
        if task.name == "nb2":
            return model.fit(disp=0, method="bfgs", maxiter=200)
        return model.fit(disp=0, method="newton")

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        call = {
            "poisson": self.smf.poisson,
            "logit": self.smf.logit,
            "nb2": self.smf.negativebinomial,
        }.get(task.name, self.smf.ols)
        model = call(task.formula(" + C(factor)"), frame)
        results = self._fit(task, model, frame["cluster"].to_numpy())
        table = pd.concat(
            [results.params, results.bse, results.tvalues, results.pvalues,
             results.conf_int()],
            axis=1,
        )  # fmt: skip
        return labelled(table.iloc[:, 0], table.iloc[:, 1])

    def prepare(
        self, task: Task, data: Data, frame: pd.DataFrame
    ) -> Callable[[], Estimates]:
        X = np.empty((len(data), 1 + len(NAMES)), order="F")
        X[:, 0], X[:, 1:] = 1.0, data.X.T
        if task.has_factor:
            dummies = np.eye(data.factor.max() + 1)[1:, data.factor]
            X = np.vstack([X.T, dummies]).T
        classes = {
            "poisson": self.sm.Poisson,
            "logit": self.sm.Logit,
            "nb2": self.sm.NegativeBinomial,
        }
        model = classes.get(task.name, self.sm.OLS)(getattr(data, task.response), X)

        def fit() -> Estimates:
            results = self._fit(task, model, data.cluster)
            part = slice(1, 1 + len(NAMES))
            return Estimates(results.params[part], results.bse[part])

        return fit


class Pyfixest(Library):
    """pyfixest: a frame and a formula are its only entry; the factor is absorbed."""

    package = "pyfixest"
    has_fit = False

    def __init__(self) -> None:
        import pyfixest

        self.pf = pyfixest

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        pf, formula = self.pf, task.formula(" | factor")
        light = {"copy_data": False, "store_data": False}
        # The same small-sample factors as the others, or tables would not agree.
        robust, plain = pf.ssc(k_fixef="full"), pf.ssc(k_adj=False, G_adj=False)
        if task.name == "ols_hc1":
            fitted = pf.feols(formula, frame, vcov="HC1", ssc=robust, **light)
        elif task.name == "ols_cluster":
            fitted = pf.feols(
                formula, frame, vcov={"CRV1": "cluster"}, ssc=robust, **light
            )
        elif task.name == "poisson":
            fitted = pf.fepois(formula, frame, vcov="iid", ssc=plain, **light)
        else:
            fitted = pf.feglm(
                formula, frame, family="logit", vcov="iid", ssc=plain, **light
            )
        table = fitted.tidy()
        return labelled(table["Estimate"], table["Std. Error"])


class Glum(Library):
    """glum: tabmat's split matrix keeps the factor as codes.

    A frame's columns go in as they are: quicker by seconds, at a million rows, than
    glum's own formulas. Its default tolerance, 1e-4, leaves logit coefficients with an
    error of 1e-4; 1e-6 costs a step at most and agrees to 1e-6 or better; at 1e-8
    rounding keeps it from ever converging on large data.
    """

    package = "glum"
    _families: ClassVar = {"poisson": "poisson", "logit": "binomial"}
    _most_steps = 100

    def __init__(self) -> None:
        import glum
        import tabmat

        self.glum, self.tabmat = glum, tabmat

    def _fitted(self, task: Task, X: Any, y: Any) -> Any:
        family = self._families.get(task.name, "normal")
        model = self.glum.GeneralizedLinearRegressor(
            alpha=0, family=family, gradient_tol=1e-6, max_iter=self._most_steps
        ).fit(X, y)
        if model.n_iter_ >= self._most_steps:
            raise RuntimeError("glum did not converge")
        return model

    @staticmethod
    def _covariance(task: Task, clusters: np.ndarray) -> dict[str, Any]:
        if task.name == "ols_hc1":
            return {"robust": True}
        if task.name == "ols_cluster":
            return {"clusters": clusters}
        # Without this its "non-robust" errors carry an estimated dispersion.
        return {"robust": False, "dispersion": 1.0}

    @staticmethod
    def _factor(task: Task, n: int, k: int) -> float:
        """Take out n / (n - k), which its non-robust covariance is multiplied by."""
        return 1.0 if task.name.startswith("ols") else np.sqrt((n - k) / n)

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        columns = [*NAMES, "factor"] if task.has_factor else list(NAMES)
        X, y = (
            self.tabmat.from_df(frame[columns], drop_first=True),
            frame[task.response],
        )
        model = self._fitted(task, X, y)
        clusters = frame["cluster"].to_numpy()
        table = model.coef_table(X, y, **self._covariance(task, clusters))
        errors = table["se"] * self._factor(task, len(frame), len(table))
        part = slice(1, 1 + len(NAMES))
        return Estimates(
            table["coef"].to_numpy()[part], errors.to_numpy()[part], int(model.n_iter_)
        )

    def prepare(
        self, task: Task, data: Data, frame: pd.DataFrame
    ) -> Callable[[], Estimates]:
        X: Any = self.tabmat.DenseMatrix(np.asfortranarray(data.X.T))
        if task.has_factor:
            codes = self.tabmat.CategoricalMatrix(frame["factor"], drop_first=True)
            X = self.tabmat.SplitMatrix([X, codes])
        y = getattr(data, task.response)

        def fit() -> Estimates:
            model = self._fitted(task, X, y)
            errors = model.std_errors(X, y, **self._covariance(task, data.cluster))
            errors = np.asarray(errors) * self._factor(task, len(y), len(errors))
            part = slice(1, 1 + len(NAMES))
            return Estimates(
                model.coef_[: len(NAMES)], errors[part], int(model.n_iter_)
            )

        return fit


class ScikitLearn(Library):
    """scikit-learn: no standard errors, for reference only."""

    package = "scikit-learn"
    reference_only = True
    tasks = ("ols_hc1", "poisson", "logit")

    @classmethod
    def refuses(cls, task: Task, n: int) -> str | None:
        gigabytes = 3 * 8 * 140 * n / GIGABYTE
        if task.has_factor and gigabytes > 14:
            return f"dense dummies: about {gigabytes:.0f} GB"
        return super().refuses(task, n)

    def _model(self, task: Task) -> Any:
        from sklearn import linear_model

        if task.name == "poisson":
            return linear_model.PoissonRegressor(
                alpha=0, solver="newton-cholesky", tol=1e-8
            )
        if task.name == "logit":
            return linear_model.LogisticRegression(
                C=np.inf, solver="newton-cholesky", tol=1e-8
            )
        return linear_model.LinearRegression()

    def _pipeline(self, task: Task) -> Any:
        from sklearn.compose import make_column_transformer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder

        coder = OneHotEncoder(drop="first", sparse_output=False)
        columns = make_column_transformer(
            ("passthrough", list(NAMES)), (coder, ["factor"])
        )
        return make_pipeline(columns, self._model(task))

    def table(self, task: Task, frame: pd.DataFrame) -> Estimates:
        y = frame[task.response]
        if not task.has_factor:
            model = self._model(task).fit(frame[list(NAMES)], y)
        else:
            model = self._pipeline(task).fit(frame, y)[-1]
        return Estimates(np.ravel(model.coef_)[: len(NAMES)], None)

    def prepare(
        self, task: Task, data: Data, frame: pd.DataFrame
    ) -> Callable[[], Estimates]:
        # A column at a time in memory: twice as fast here as a row at a time.
        X = data.X.T
        if task.has_factor:
            dummies = np.eye(data.factor.max() + 1)[1:, data.factor]
            X = np.vstack([data.X, dummies]).T
        y = getattr(data, task.response)

        def fit() -> Estimates:
            model = self._model(task).fit(X, y)
            return Estimates(np.ravel(model.coef_)[: len(NAMES)], None)

        return fit


class BaseR(Library):
    """R's lm and glm with the sandwich package; timed by cell.R."""

    package = "sandwich"
    has_fit = False

    @classmethod
    def refuses(cls, task: Task, n: int) -> str | None:
        if n > 100_000:
            return "run at 100,000 rows only"
        return super().refuses(task, n)


class Fixest(Library):
    """R's fixest; timed by cell.R."""

    package = "fixest"
    has_fit = False


LIBRARIES: dict[str, type[Library]] = {
    "deepstats": Deepstats,
    "statsmodels": Statsmodels,
    "pyfixest": Pyfixest,
    "glum": Glum,
    "scikit-learn": ScikitLearn,
    "R lm/glm": BaseR,
    "R fixest": Fixest,
}
