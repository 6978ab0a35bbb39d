# %% [markdown]
# # Five regressions on real data
#
# Counts of doctor visits, wages, clustered errors, quantiles and fixed effects. Every
# picture is also written to `demo_output/`.

# %%
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import deepstats as ds
from deepstats import datasets, plots

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
BLUE, ORANGE, GREEN, PINK = plots.OKABE_ITO[:4]
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(axes, name):
    """Write the figure that the axes belong to."""
    axes.figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## 1. How often do older Americans see a doctor?
#
# 4,406 people aged 66 and over, in 1987-88. Least squares first: visits per person for
# each unit of a regressor, with HC1 standard errors because the variance is anything
# but constant.

# %%
docvisits = datasets.load_docvisits()
formula = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
linear = ds.ols(formula, docvisits).fit("HC1")
print(linear.summary())

# %% [markdown]
# The residuals fan out and lean to one side: these are counts. Poisson regression is
# the model for a mean of counts; its own standard errors believe that the variance
# equals the mean, which it does not, so they are HC1 too.

# %%
axes = plots.residual_plot(linear)
keep(axes, "residuals")

# %%
poisson = ds.poisson(formula, docvisits).fit("HC1")
nb2 = ds.negativebinomial(formula, docvisits).fit()
zip_ = ds.zip(f"{formula} | private + educ + chronic", docvisits).fit()
zinb = ds.zinb(f"{formula} | private + educ + chronic", docvisits).fit()
print(poisson.summary())
print(zinb.summary())

# %% [markdown]
# ### Which of them fits?
#
# By AIC, and by the counts that each expects. A Poisson expects almost no zeros;
# inflating it mends the zeros and nothing else; the negative binomial has the tail, and
# a few too few zeros.

# %%
models = {"Poisson": poisson, "ZIP": zip_, "NB2": nb2, "ZINB": zinb}
counts = np.arange(0, 31)
shares = {
    name: results.predict(which="prob", y_values=counts).mean().to_numpy()
    for name, results in models.items()
}
observed = np.array([(docvisits["drvisits"] == k).mean() for k in counts])
fit = pd.DataFrame(
    {
        "log-likelihood": {name: r.llf for name, r in models.items()},
        "AIC": {name: r.aic for name, r in models.items()},
        "expected zeros": {name: share[0] * 4406 for name, share in shares.items()},
    }
)
print(fit.round(1))
print(f"observed zeros: {observed[0] * 4406:.0f}")

# %%
figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
axes.bar(counts, observed, color="0.85", width=0.9, label="observed")
styles = [(ORANGE, ":"), (PINK, "--"), (BLUE, "-"), (GREEN, "-")]
for (name, share), (colour, line) in zip(shares.items(), styles, strict=True):
    axes.plot(counts, share, line, color=colour, linewidth=1.8, label=name)
axes.set(xlabel="Doctor visits", ylabel="Share of people", xlim=(-0.8, 30.5))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
keep(axes, "counts")

# %% [markdown]
# ### What the numbers mean
#
# Coefficients of a count model are changes of the logarithm of the mean. Average
# marginal effects are visits again, and here they are close to those of least squares.

# %%
effects = nb2.marginal_effects()
print(effects.drop(columns="contrast").round(3).to_string(index=False))
axes = plots.effects_plot(effects)
axes.set_xlabel("Average marginal effect: visits, with 95% confidence interval")
keep(axes, "effects")

# %%
slopes = "^(private|medicaid|age|educ|actlim|chronic)$"
axes = plots.coefplot(
    poisson, nb2, zinb, names=["Poisson (HC1)", "NB2", "ZINB"], keep=slopes
)
keep(axes, "coefficients")

# %% [markdown]
# ## 2. Wages
#
# 28,155 men, March 1988. Wages rise with experience and fall again at its end: a
# natural spline lets the data say how. Do the returns to education differ by ethnicity?

# %%
cps = datasets.load_cps1988()
wages = ds.ols(
    "log(wage) ~ education * ethnicity + ns(experience, df=5) + smsa + region", cps
).fit("HC1")
print(wages.summary())
print(wages.wald_test("education:ethnicity[T.afam] = 0"))
print(wages.wald_test_terms().round(4))

# %%
grid = pd.DataFrame({"experience": np.linspace(0, 55, 111)}).assign(
    education=12, ethnicity="cauc", smsa="yes", region="northeast"
)
band = wages.get_prediction(grid).summary_frame()
quadratic = ds.ols("log(wage) ~ education * ethnicity + poly(experience, 2) + smsa"
                   " + region", cps).fit("HC1")  # fmt: skip
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
x = grid["experience"]
axes.fill_between(
    x, band["mean_ci_lower"], band["mean_ci_upper"], color=BLUE, alpha=0.25, lw=0,
    label="95% confidence band",
)  # fmt: skip
axes.plot(x, band["mean"], color=BLUE, label="natural spline")
axes.plot(x, quadratic.predict(grid), "--", color=ORANGE, label="quadratic")
axes.set(xlabel="Years of experience", ylabel="Expected log weekly wage")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
keep(axes, "wages")

# %% [markdown]
# ## 3. Standard errors that know about clusters
#
# Petersen's panel: 500 firms in ten years, with an effect of the firm in regressor and
# error. The estimate does not change; how sure we are of it does.

# %%
petersen = datasets.load_petersen()
classical = ds.ols("y ~ x", petersen).fit()
kinds = {
    "classical": classical,
    "HC1": classical.get_robustcov_results("HC1"),
    "firm": classical.get_robustcov_results("cluster", groups="firm"),
    "year": classical.get_robustcov_results("cluster", groups="year"),
    "firm, year": classical.get_robustcov_results("cluster", groups=["firm", "year"]),
}
print(ds.etable(*kinds.values(), headers=list(kinds), digits=4, stats=["nobs"]))

# %% [markdown]
# ## 4. Engel's law by quantiles
#
# What a household spends on food, by its income (235 Belgian households, 1857): rich
# households differ more from one another than poor ones do.

# %%
engel = datasets.load_engel()
levels = [0.1, 0.25, 0.5, 0.75, 0.9]
quantiles = ds.quantreg("foodexp ~ income", engel).fit(q=levels, cov_type="nid")
print(ds.etable(*quantiles, headers=[f"q = {q:g}" for q in levels], stats=["nobs"]))

# %%
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
axes.scatter(engel["income"], engel["foodexp"], s=12, color="0.6", linewidths=0)
ends = pd.DataFrame({"income": [350, 3000]})
for one, colour in zip(quantiles, plt.get_cmap("viridis")(np.linspace(0, 0.85, 5)),
                       strict=True):  # fmt: skip
    line = one.predict(ends)
    axes.plot(ends["income"], line, color=colour)
    axes.annotate(f"{one.q:g}", (3020, line.iloc[-1]), color=colour, va="center")
axes.set(xlabel="Income (Belgian francs)", ylabel="Food expenditure", xlim=(300, 3150))
axes.spines[["top", "right"]].set_visible(False)
keep(axes, "quantiles")

# %% [markdown]
# ## 5. Does a tax on beer save lives?
#
# Traffic deaths per 10,000 people in 48 states, 1982-88. Across states, higher taxes go
# with more deaths. Within a state they go with fewer: what stays the same about a state
# (its roads, its habits) is taken out by its fixed effect, what is common to a year by
# the year's.

# %%
fatalities = datasets.load("fatalities").assign(
    rate=lambda d: 1e4 * d["fatal"] / d["pop"]
)
by_state = {"cov_type": "cluster", "cov_kwds": {"groups": "state"}}
panel = [
    ds.ols("rate ~ beertax", fatalities).fit(**by_state),
    ds.ols("rate ~ beertax | state", fatalities).fit(**by_state),
    ds.ols("rate ~ beertax + unemp + log(income) | state + year", fatalities).fit(
        **by_state
    ),
    ds.poisson(
        "fatal ~ beertax + unemp + log(income) | state + year",
        fatalities,
        exposure="pop",
    ).fit(**by_state),
]
print(panel[2].summary())

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
within = fatalities[["rate", "beertax"]]
within = within - within.groupby(fatalities["state"], observed=True).transform("mean")
for ax, frame, results, title in (
    (axes[0], fatalities, panel[0], "Across states"),
    (axes[1], within, panel[1], "Within states"),
):
    ax.scatter(frame["beertax"], frame["rate"], s=12, color=BLUE, alpha=0.5, lw=0)
    x = frame["beertax"].agg(["min", "max"])
    slope = results.params["beertax"]
    centre = frame["rate"].mean() - slope * frame["beertax"].mean()
    ax.plot(x, centre + slope * x, color=ORANGE)
    ax.set(title=title, xlabel="Tax on a case of beer (dollars)")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("Deaths per 10,000")
axes[1].set_ylabel("... less the state's mean")
keep(axes[0], "beertax")

# %% [markdown]
# ## A table for the paper
#
# On the screen, and as LaTeX in a file.

# %%
labels = {
    "beertax": "Beer tax",
    "unemp": "Unemployment",
    "log(income)": "Log income",
    "rate": "Deaths per 10,000",
    "fatal": "Deaths",
}
table = {
    "headers": ["Pooled", "State", "State, year", "Poisson"],
    "labels": labels,
    "stats": ["nobs", "rsquared", "rsquared_within"],
    "notes": "Standard errors clustered by state in parentheses.",
}
print(ds.etable(*panel, **table))
ds.etable(*panel, **table, filename=folder / "beertax.tex")
print((folder / "beertax.tex").read_text())
