# %% [markdown]
# # Doctor visits, and sleepless drivers
#
# How often 4,406 Americans aged 66 and over see a doctor (Deb and Trivedi 1997):
# least squares with robust standard errors, then two count models, side by side. Then
# a mixed model of the reactions of eighteen people who do not sleep enough.

# %%
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import deepstats as ds
from deepstats import datasets, plots
from deepstats.design import Design

docvisits = datasets.load_docvisits()
print(docvisits[["drvisits", "private", "age", "educ", "chronic", "region"]].head())

# %% [markdown]
# ## Least squares
# The counts are skewed and their variance grows with the mean, so the standard
# errors are the heteroskedasticity-robust ones (HC1).

# %%
formula = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
linear = ds.ols(formula, data=docvisits).fit(cov_type="HC1")
print(linear.summary())

# %% [markdown]
# ## Counts
# Poisson, and the negative binomial (NB2) that allows for overdispersion: its
# `alpha` is far from nought, and the likelihood improves by thousands.

# %%
poisson = ds.poisson(formula, data=docvisits).fit(cov_type="HC1")
print(poisson.summary())

# %%
negative_binomial = ds.negativebinomial(formula, data=docvisits).fit()
print(negative_binomial.summary())

# %% [markdown]
# ## A table for a paper

# %%
print(ds.etable(linear, poisson, negative_binomial))

# %% [markdown]
# ## A coefficient plot

# %%
folder = Path("demo_output")
folder.mkdir(exist_ok=True)
axes = plots.coefplot(
    poisson, negative_binomial, names=["Poisson", "Negative binomial"], drop="alpha"
)
axes.figure.savefig(folder / "coefplot.png", dpi=150, bbox_inches="tight")
print(f"Coefficient plot: {folder / 'coefplot.png'}")

# %% [markdown]
# ## Groups
# A formula with a random intercept is read, and built into its design: grouping
# factors are integer codes with levels, never dummy columns.

# %%
design = Design.build("drvisits ~ age + (1|region)", docvisits)
print(f"{design.n} rows; fixed columns: {', '.join(design.X.names)}")
for random in design.random:
    levels = ", ".join(map(str, random.grouping.levels))
    print(f"random term {random.term.text}: {len(random.grouping)} groups ({levels})")

# %% [markdown]
# Four regions are too few to learn a variance from. Ten days of eighteen subjects
# (Belenky et al. 2003) are enough: a line for each, intercepts and slopes random.

# %%
sleepstudy = datasets.load("sleepstudy")
mixed = ds.lmer("Reaction ~ Days + (Days | Subject)", data=sleepstudy).fit()
print(mixed.summary())
axes = mixed.plot.caterpillar()
axes[0].figure.savefig(folder / "caterpillar.png", dpi=150, bbox_inches="tight")
print(f"Random effects by subject: {folder / 'caterpillar.png'}")
