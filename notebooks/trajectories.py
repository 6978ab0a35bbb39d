# %% [markdown]
# # Trajectories, from a blog post to the counties of North Carolina
#
# In 2020 Andrew Wheeler fitted a group-based trajectory model with a deep learning
# library. It took 30,000 steps of Adam, and he left five questions open: standard
# errors, counts, 0/1 outcomes, new units, and an equation for the groups. Here are
# his example, the answers, and real data. Every picture is also written to
# `demo_output/`.

# %%
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import deepstats as ds
from deepstats import datasets, plots
from deepstats.models.trajectory.pictures import plot_alluvial

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
BLUE, ORANGE, GREEN, PINK = plots.OKABE_ITO[:4]
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(figure, name):
    """Write a figure."""
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## 1. The example
#
# Two groups of 50, eleven occasions, a tiny bit of noise: 1 + t/2 in one, 3/2 t² in the
# other, and noise uniform between -0.05 and 0.05.

# %%
OCCASIONS, EACH = 11, 50
t = 2 * np.arange(OCCASIONS) / OCCASIONS - 1
curves = np.array([1.5 * t**2, 1 + 0.5 * t])
truth = np.repeat([1, 2], EACH)


def panel(y):
    """Return a table (units, occasions) in long form."""
    units = len(y)
    return pd.DataFrame(
        {"id": np.repeat(np.arange(units), OCCASIONS), "t": np.tile(t, units),
         "y": y.ravel()}
    )  # fmt: skip


rng = np.random.default_rng(10)
eta = curves[truth - 1]
blog = panel(eta + rng.uniform(-0.05, 0.05, eta.shape))
FORMULA = "traj(y ~ t + I(t**2), groups=2, id=id)"
normal = ds.traj(FORMULA, blog).fit()
print(normal.summary())

# %% [markdown]
# All starts end in one maximum, every unit is in its group, and there are standard
# errors. As nobody doubts the groups, they are those of two regressions. The noise is
# uniform, so sigma estimates its standard deviation, 0.1/√12 = 0.0289.

# %%
right = (normal.assign().to_numpy() == truth).sum()
print(f"{right} of {2 * EACH} units in their group; optima: {len(normal.optima)}")
true_values = pd.Series([0, 0, 1.5, 1, 0.5, 0], normal.params.index[:6], name="truth")
table = pd.concat([true_values, normal.params[:6], normal.bse[:6]], axis=1)
table["z"] = (table["coef"] - table["truth"]) / table["std err"]
print(table.round(4))

# %%
ax = normal.plot("spaghetti")
keep(ax.figure, "trajectories_blog")

# %% [markdown]
# One data set is an anecdote. Forty, each fitted by default settings: are the units
# found, and do 95% intervals hold the true coefficients 95% of the time? (The tests of
# the package ask this of a hundred others.)

# %%
found, hits = [], []
for seed in range(40):
    draw = np.random.default_rng(1000 + seed)
    one = ds.traj(FORMULA, panel(eta + draw.uniform(-0.05, 0.05, eta.shape))).fit()
    found.append((one.assign().to_numpy() == truth).all())
    limits = one.conf_int().to_numpy()[:6]
    hits.append((limits[:, 0] <= true_values) & (true_values <= limits[:, 1]))
print(f"all units right in {sum(found)} of {len(found)} data sets")
print(f"coverage of 95% intervals: {np.mean(hits):.3f}")

# %% [markdown]
# ## 2. Counts, and 0/1 outcomes
#
# The same curves as logarithms of a mean count, and as log odds: only `family` changes.
# Now units can be mistaken, and the page says how often to expect it (APP, the average
# posterior probability of those assigned).

# %%
rng = np.random.default_rng(11)
counts = panel(rng.poisson(np.exp(1.5 * eta)))
binary = panel((rng.random(eta.shape) < 1 / (1 + np.exp(2.8 - 4 * eta))).astype(float))
poisson = ds.traj(FORMULA, counts, family="poisson").fit()
logit = ds.traj(FORMULA, binary, family="binomial").fit()
for name, one, truths in (
    ("Poisson", poisson, 1.5 * true_values),
    ("logit", logit, 4 * true_values - [2.8, 0, 0, 2.8, 0, 0]),
):
    right = (one.assign().to_numpy() == truth).mean()
    expected = one.posterior.max(axis=1).mean()
    print(f"{name}: {right:.0%} in their group; by the model {expected:.1%}")
    table = pd.concat([truths, one.params[:6], one.bse[:6]], axis=1)
    print(table.round(3).to_string(), "\n")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for ax, one, title in zip(axes, (poisson, logit), ("Counts", "0/1"), strict=True):
    one.plot(ax=ax)
    ax.set_title(title)
keep(figure, "trajectories_families")

# %% [markdown]
# ## 3. New units
#
# Two units that were not in the data, one of each group, first seen at the third
# occasion. After each answer the model says which group they are likely to be in, and
# what to expect of the rest: at first next to nothing, for there the curves cross.

# %%
rng = np.random.default_rng(4)
probability = 1 / (1 + np.exp(2.8 - 4 * curves[:, 2:]))
newcomers = pd.DataFrame(
    {"id": np.repeat(["parabola", "line"], OCCASIONS - 2), "t": np.tile(t[2:], 2),
     "y": (rng.random(probability.shape) < probability).astype(float).ravel()}
)  # fmt: skip
step = logit.predict(newcomers, "sequential")
newcomers["p_line"] = step["g2"]
wide = newcomers.round(3).pivot(index="t", columns="id", values=["y", "p_line"])
print(wide.to_string())
early = newcomers.assign(y=newcomers["y"].where(newcomers["t"] < 0))
print("after four answers, the probability of a 1 in the middle and at the end:")
ahead = newcomers.assign(p=logit.predict(early, "mean"))[newcomers["t"] > 0]
print(ahead.groupby("id")["p"].agg(["first", "last"]).round(3))

# %%
figure, ax = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
ax.axhline(logit.group_probs.loc["g2", "share"], color="0.75", linewidth=1)
ax.text(t[-1], logit.group_probs.loc["g2", "share"] + 0.02, "share of the group",
        ha="right", fontsize=9, color="0.5")  # fmt: skip
for (name, one), colour, place in zip(
    newcomers.groupby("id"), (ORANGE, BLUE), (1.1, -0.1), strict=True
):
    ax.plot(one["t"], one["p_line"], color=colour, marker="o", markersize=4)
    for when, answer in zip(one["t"], one["y"], strict=True):
        ax.text(when, place, f"{answer:.0f}", color=colour, ha="center", va="center")
    ax.text(t[-1] + 0.08, place, f"answers of the {name}", color=colour, va="center")
ax.set(xlabel="t", ylabel="Probability of the line", ylim=(-0.18, 1.18))
ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
ax.spines[["top", "right"]].set_visible(False)
keep(figure, "trajectories_newcomers")

# %% [markdown]
# ## 4. An equation for the groups
#
# 1,000 units whose log odds of the second group are -0.5 + x. `risk=~ x` estimates them
# together with the trajectories. The way that suggests itself, a logit of the groups
# assigned, takes guesses for facts: its effect is too weak, and its standard error too
# small.

# %%
rng = np.random.default_rng(12)
x = rng.normal(size=1000)
second = rng.random(1000) < 1 / (1 + np.exp(0.5 - x))
odds = 0.5 * (4 * curves[second.astype(int)] - 2.8)
people = panel((rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float))
people["x"] = np.repeat(x, OCCASIONS)
joint = ds.traj(FORMULA, people, family="binomial", risk="~ x").fit()
plain = ds.traj(FORMULA, people, family="binomial").fit()
naive = ds.logit("g ~ x", {"g": (plain.assign() == 2).to_numpy() * 1.0, "x": x}).fit()
known = ds.logit("g ~ x", {"g": second * 1.0, "x": x}).fit()
answers = pd.DataFrame(
    {"estimate": [joint.params["g2:membership:x"], naive.params["x"],
                  known.params["x"]],
     "std err": [joint.bse["g2:membership:x"], naive.bse["x"], known.bse["x"]]},
    index=["risk=~ x", "logit of groups assigned", "were the groups known"],
)  # fmt: skip
print(answers.round(3))

# %% [markdown]
# ## 5. Ninety counties
#
# Crime in the counties of North Carolina, 1981 to 1987 (Cornwell and Trumbull 1994):
# the logarithm of reported crimes per 1,000 people. How many groups?

# %%
crime = datasets.load("crime")
crime["log_rate"] = np.log(1000 * crime["crmrte"])
crime["year"] += 1900
CALL = "traj(log_rate ~ poly(year, 2), id=county)"
grid = ds.traj_select(CALL, crime, range(1, 7))
print(grid.summary())

# %% [markdown]
# From four groups on there is a warning, and it is right: one group is a single county.

# %%
alone = grid.results[4].assign()
county = alone.index[alone == 1][0]
rates = crime[crime["county"] == county].set_index("year")["log_rate"]
print(f"county {county}:", np.exp(rates).round(1).to_dict())

# %% [markdown]
# Crime in county 115 fell by two thirds until 1983 and was back two years later, at a
# fifth of the other counties' level. Whatever happened there, in the county or in its
# records, it is no kind of county, and is set aside.

# %%
counties = crime[crime["county"] != county]
grid = ds.traj_select(CALL, counties, range(1, 7))
columns = ["groups", "llf", "bic_units", "bic_rows", "icl", "entropy", "smallest_share",
           "min_app"]  # fmt: skip
print(grid.table[columns].round(2).to_string(index=False))
ax = grid.plot()
keep(ax.figure, "trajectories_bic")

# %% [markdown]
# BIC wants more groups without end: counties differ in level by degrees, and groups cut
# a continuum ever finer. But what is gained by one more halves each time, from 494 to
# 269, 120 and 43. Who goes where, from three to five groups:

# %%
ax = plot_alluvial(*(grid.results[groups] for groups in (3, 4, 5)))
keep(ax.figure, "trajectories_alluvial")

# %% [markdown]
# Four groups then, as a description, not as four kinds of counties. Bands are
# simultaneous over each curve, dots are means of the counties by posterior probability.
# Standard errors are the sandwich's: years of a county are not independent, given its
# group.

# %%
four = grid.results[4].get_robustcov_results("HC0")
print(four.summary())
ax = four.plot(interval="simultaneous")
ax.set_ylabel("log of crimes per 1,000 people")
keep(ax.figure, "trajectories_bands")

# %%
print(four.adequacy().round(3).to_string())
print(four.adequacy_rules().to_string())
axes = four.plot_posterior()
keep(axes[0].figure, "trajectories_posterior")

# %% [markdown]
# ### Does the shape differ?
#
# Levels do. Trajectories that have the same shape are a story of one trend, and the
# test asks for the slopes and bends alone.

# %%
print(four.wald_test("g1:poly1 = g2:poly1, g1:poly1 = g3:poly1, g1:poly1 = g4:poly1"))
print(four.wald_test("g1:poly2 = g2:poly2, g1:poly2 = g3:poly2, g1:poly2 = g4:poly2"))

# %% [markdown]
# ### Which counties?
#
# Density (people per square mile, in hundreds, in 1981) as a risk factor, on the
# logarithmic scale.

# %%
first = counties[counties["year"] == 1981].set_index("county")["density"]
counties = counties.assign(dense=np.log(counties["county"].map(first)))
urban = ds.traj(CALL, counties, groups=4, risk="~ dense").fit()
print(urban.coef_table().filter(like="dense", axis=0).round(3).to_string())
print(urban.wald_test("g2:membership:dense = 0, g3:membership:dense = 0, "
                      "g4:membership:dense = 0"))  # fmt: skip
ask = pd.DataFrame({"county": ["rural", "town", "city"], "year": 1984,
                    "dense": np.log([0.3, 1.0, 5.0])})  # fmt: skip
print(urban.predict(ask, responses=False).round(3))

# %% [markdown]
# ### Levels that vary at will
#
# A random intercept lets every county have its own level, and groups are left with what
# levels do not say.

# %%
levels = ds.traj_select(CALL, counties, range(1, 3), random="~ 1")
print(levels.summary())

# %% [markdown]
# One group with a random intercept and 5 parameters has a far lower BIC than six groups
# with 24; a second is found for two counties, and the page says so. The groups above
# were the levels' histogram: useful to tell of, and no discovery of four kinds.
