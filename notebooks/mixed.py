# %% [markdown]
# # Mixed models, from eighteen subjects to 73,421 marks
#
# Reactions of sleepless drivers, penicillin and paste, and the lecturers of ETH Zürich
# beside lme4. Every picture is also written to `demo_output/`.

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
here = Path(__file__).parent if "__file__" in globals() else Path()
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(figure, name):
    """Write a figure."""
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## 1. Ten days without sleep
#
# Belenky et al. (2003) let eighteen people sleep three hours a night and measured their
# reactions for ten days. A random intercept and a random slope for each subject say
# that people differ in how fast they are and in how much they suffer.

# %%
sleepstudy = datasets.load("sleepstudy")
mixed = ds.lmer("Reaction ~ Days + (Days | Subject)", sleepstudy).fit()
print(mixed.summary())

# %% [markdown]
# Each subject has two lines: its own least squares (dashed) and the mixed model's
# (solid), which is the first drawn towards the line of all. Subject 335 gets faster by
# its own line, 2.9 ms a day; the model takes nine tenths of that for chance.

# %%
lines = mixed.coef()["Subject"]
figure, axes = plt.subplots(
    3, 6, figsize=(9.6, 5.4), sharex=True, sharey=True, layout="constrained"
)
ends = np.array([0, 9])
for ax, (subject, one) in zip(axes.flat, sleepstudy.groupby("Subject"), strict=True):
    slope, level = np.polyfit(one["Days"], one["Reaction"], 1)
    ax.plot(one["Days"], one["Reaction"], "o", color="0.6", markersize=3)
    own = ax.plot(ends, level + slope * ends, "--", color=ORANGE, linewidth=1.1)
    shrunk = lines.loc[subject]
    model = ax.plot(ends, shrunk["Intercept"] + shrunk["Days"] * ends, color=BLUE)
    ax.set_title(subject, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
figure.legend(
    [*own, *model], ["least squares of the subject alone", "mixed model"],
    loc="outside upper right", ncols=2, frameon=False,
)  # fmt: skip
figure.supxlabel("Days without enough sleep")
figure.supylabel("Reaction time (ms)")
keep(figure, "mixed_subjects")

# %% [markdown]
# The random effects with 95% intervals, ordered by intercept. The slopes have an order
# of their own: their correlation is next to nothing.

# %%
axes = mixed.plot.caterpillar()
keep(axes[0].figure, "mixed_caterpillar")

# %% [markdown]
# ### Does the slope vary?
#
# The variance of a slope that does not vary lies at the edge of its range, and the
# p-value is that of the mixture of chi-squared distributions. The correlation is
# another matter: without it nothing is lost.

# %%
intercepts = ds.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy).fit()
apart = ds.lmer("Reaction ~ Days + (Days || Subject)", sleepstudy).fit()
print(mixed.compare_lr_test(intercepts))
print(mixed.compare_lr_test(apart))
print(ds.anova(intercepts, apart, mixed).to_string(float_format="{:.4g}".format))

# %% [markdown]
# ### How sure are we?
#
# Three intervals for the same numbers: Wald's, those of the profile likelihood, which
# are not symmetric, and the parametric bootstrap's. The profiles are drawn as zeta, the
# signed root of the rise in deviance: a line where Wald's interval is right, bent for
# standard deviations.

# %%
profile = mixed.profile()
bootstrap = mixed.bootstrap(1000, seed=1)
wald = mixed.random_params()[["conf_low", "conf_high"]].set_axis(
    ["sd(Intercept)|Subject", "sd(Days)|Subject", "cor(Days,Intercept)|Subject",
     "sigma"]
)  # fmt: skip
intervals = {
    "Wald": pd.concat([wald.set_axis([0, 1], axis=1), mixed.conf_int()]),
    "profile": profile.conf_int(),
    "bootstrap": bootstrap.conf_int(),
}
print(pd.concat(intervals, axis=1).round(2).to_string())
axes = profile.plot()
keep(axes[0].figure, "mixed_zeta")

# %% [markdown]
# ### Prediction
#
# Subject 308 has told us of itself, a newcomer has not: its effects are zero on average
# and may be anything that the variances allow. Dark bands are 95% confidence intervals
# of the mean reaction, light ones prediction intervals of a measurement.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True, layout="constrained")
for ax, subject in zip(axes, ["308", "a newcomer"], strict=True):
    grid = pd.DataFrame({"Days": np.linspace(0, 12, 49)}).assign(Subject=subject)
    for interval, columns, shade in (("prediction", "obs", 0.18),
                                     ("confidence", "mean", 0.4)):  # fmt: skip
        band = mixed.predict(grid, allow_new_levels=True, interval=interval)
        ax.fill_between(
            grid["Days"], band[f"{columns}_ci_lower"], band[f"{columns}_ci_upper"],
            color=BLUE, alpha=shade, linewidth=0,
        )  # fmt: skip
    ax.plot(grid["Days"], band["mean"], color=BLUE)
    ax.set(title=f"Subject: {subject}", xlabel="Days")
    ax.spines[["top", "right"]].set_visible(False)
own = sleepstudy[sleepstudy["Subject"].astype(str) == "308"]
axes[0].plot(own["Days"], own["Reaction"], "o", color=ORANGE, markersize=4)
axes[0].set_ylabel("Reaction time (ms)")
keep(figure, "mixed_prediction")

# %% [markdown]
# ### What does it rest on?
#
# The residuals have long tails: three reactions, of subjects 308 and 332, are four and
# five standard deviations off. Leaving out any one subject moves the fixed effects by
# little more than half a standard error.

# %%
axes = mixed.plot.panels()
keep(axes[0, 0].figure, "mixed_panels")
influence = mixed.influence("Subject")
print(influence.dfbetas.abs().max().round(2).to_dict())
print(mixed.check_convergence())
print(mixed.r2().round(3).to_dict())

# %% [markdown]
# ## 2. Crossed and nested
#
# Penicillin: 24 plates, six samples, and every sample on every plate. Both are random,
# and neither is inside the other. There are six samples only, and the interval of their
# standard deviation says so.

# %%
penicillin = ds.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)",
                     datasets.load("penicillin")).fit()  # fmt: skip
print(penicillin.summary())
print(penicillin.conf_int(method="profile").round(3))

# %% [markdown]
# Pastes: casks within batches. Almost all of the variation is between casks of a batch;
# that batches differ is not shown.

# %%
pastes = datasets.load("pastes")
nested = ds.lmer("strength ~ 1 + (1 | batch/cask)", pastes).fit()
print(nested.varcorr.round(3).to_string())
print(nested.icc().round(3))
print(nested.compare_lr_test(ds.lmer("strength ~ 1 + (1 | batch:cask)", pastes).fit()))

# %% [markdown]
# ## 3. Students, lecturers, departments
#
# 73,421 marks that 2,972 students of ETH gave to 1,128 lecturers of 14 departments:
# partially crossed, and the test of every program for mixed models. `service` says that
# the lecture was held for another department.

# %%
insteval = datasets.load("insteval")
marks = ds.lmer("y ~ service + (1 | s) + (1 | d) + (1 | dept)", insteval).fit()
print(marks.summary())

# %% [markdown]
# Beside lme4: its random effects, to six digits, are in `insteval_lme4.csv`, written by
# `insteval_lme4.R` (R 4.2.2, lme4 1.1-31). They differ by 2e-6 at most from the effects
# of this model that came with Edward's tutorial on linear mixed models.

# %%
lme4 = pd.read_csv(here / "insteval_lme4.csv", dtype={"level": str})
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.5), layout="constrained")
for ax, factor, title in zip(
    axes, ["s", "d", "dept"], ["Students", "Lecturers", "Departments"], strict=True
):
    theirs = lme4[lme4["factor"] == factor].set_index("level")["effect"]
    ours = marks.ranef()[factor]["Intercept"]
    ours = ours.set_axis(ours.index.astype(str)).reindex(theirs.index)
    largest = (ours - theirs).abs().max()
    print(f"{title}: {len(ours):,}, largest difference {largest:.1e}")
    edge = 1.08 * theirs.abs().max()
    ax.plot([-edge, edge], [-edge, edge], color=ORANGE, linewidth=1)
    ax.scatter(theirs, ours, s=6 if len(ours) > 100 else 26, color=BLUE, alpha=0.5,
               linewidths=0, rasterized=True, zorder=3)  # fmt: skip
    ax.text(0.05, 0.93, f"largest difference\n{largest:.0e}", transform=ax.transAxes,
            va="top", fontsize=9)  # fmt: skip
    ax.set(title=f"{len(ours):,} {title.lower()}", xlabel="lme4", aspect="equal")
    ax.set(xlim=(-edge, edge), ylim=(-edge, edge))
    ax.locator_params(nbins=5)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("deepstats")
keep(figure, "mixed_insteval")

# %% [markdown]
# What is left of the differences is the rounding of the file and lme4's search, which
# stops a little short of the optimum. The lecturers, from the worst to the best marked:

# %%
keep(marks.plot.caterpillar("d").figure, "mixed_lecturers")
