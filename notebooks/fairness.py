# %% [markdown]
# # Fair losses: COMPAS watched, the NIJ challenge optimised
#
# Two posts by Andrew Wheeler. One fits a logit of the COMPAS data with PyTorch and
# watches its loss in and out of the sample; the other minimises the score of the NIJ
# recidivism challenge, (1 - Brier)(1 - difference of false-positive rates), by 25,000
# steps of Adam. Here both are calls that end where the conditions of a minimum hold.

# %%
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import deepstats as ds

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
pd.set_option("display.width", 110, "display.max_columns", 12)
shared = Path(ds.__file__).resolve().parents[2] / "shared" / "reference" / "data"
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(axes, name):
    """Write the figure of some axes."""
    axes.figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## 1. COMPAS: a logit whose loss is watched
#
# The outcome and covariates of the post, three quarters of the rows to fit, the others
# to watch. Newton's method needs five steps, so that there is not much to watch: the
# loss outside flattens with that inside.

# %%
recid = pd.read_csv(shared / "reg_compas.csv").rename(
    columns=lambda name: name.replace(".", "")
)
recid["male"] = 1 * (recid["sex"] == "Male")
recid["felony"] = 1 * (recid["c_charge_degree"] == "F")
scores = "CompScore1 + CompScore2 + CompScore3"
priors = "juv_fel_count + juv_misd_count + juv_other_count + priors_count"
text = f"Recid30 ~ {scores} + {priors} + YearsScreening + male + felony"
used = [*scores.split(" + "), *priors.split(" + "), "YearsScreening", "Recid30"]
recid = recid.dropna(subset=used)
drawn = np.random.default_rng(10).random(len(recid)) < 0.75
logit = ds.lossreg(f"{text} + C(race)", recid[drawn], loss="logloss")
watched = logit.fit(start="zero", eval_data=recid[~drawn])
print(watched.loss_history.drop(columns="objective").round(4).to_string(index=False))
print(watched.params.round(3).to_dict())
ax = watched.plot_loss(skip=1)
ax.set_title("COMPAS: log-loss at each step")
keep(ax, "fairness_compas_loss")

# %% [markdown]
# ## 2. The seed's fairness term has no gradient
#
# Its `1*(pred > thresh)` is constant almost everywhere: whatever the optimiser does, it
# minimises the Brier score. A loss like that is let through with a warning. (It also
# divides the false positives by the rows flagged, which is a false discovery rate; NIJ
# divides by all who did not recidivate.)

# %%
nij = pd.read_csv(shared / "reg_nij.csv")
outcome = "Recidivism_Arrest_Year1"
names = [c for c in nij if c not in (outcome, "Training_Sample")]
train, test = (nij[nij["Training_Sample"] == side] for side in (1, 0))
formula = f"{outcome} ~ {' + '.join(names)}"


def brier_fair(pred, obs, minority, thresh=0.25):
    """Return the loss of the post."""
    over = 1.0 * (pred > thresh)
    false = over * (obs == 0)
    rates = [(false * g).sum() / (over * g).sum().clamp(1)
             for g in (minority, 1 - minority)]  # fmt: skip
    return -(1 - ((pred - obs) ** 2).mean()) * (1 - torch.abs(rates[0] - rates[1]))


blind = ds.lossreg(
    formula, train, loss=brier_fair, link="sigmoid", loss_columns={"minority": "Race"}
)
try:
    blind.fit("none", maxiter=1)
except UserWarning as warning:  # in scripts that make warnings errors
    print("GradientWarning:", warning)

# %% [markdown]
# ## 3. One that is seen, and its table
#
# `ds.fairness.nij` flags by sigmoid((p - t)/h), in three stages of smaller h. All
# figures below are counted: nothing in them is smooth.

# %%
plain = ds.lossreg(formula, train, loss="brier").fit("none")
rows = []
for threshold in (0.25, 0.5):
    fair = ds.lossreg(formula, train, loss=ds.fairness.nij("Race", threshold)).fit(
        "none"
    )
    for label, fit in (("Brier", plain), ("NIJ", fair)):
        for sample, data in (("train", train), ("test", test)):
            p = fit.predict(data)
            table = ds.fairness_table(
                data[outcome], p, data["Race"], threshold, reps=200
            )
            every = table["estimate"].xs("all", level="group")
            rates = table["estimate"].loc["fpr"]
            rows.append({
                "t": threshold, "loss": label, "sample": sample, "nij": every["nij"],
                "brier": every["brier"], "fpr white": rates[0], "fpr black": rates[1],
                "gap": every["gap_fpr"],
            })  # fmt: skip
    print(
        fair.loss_history.groupby("stage", sort=False)["in_sample"].agg(
            ["size", "last"]
        )
    )
print(pd.DataFrame(rows).round(4).to_string(index=False))

# %% [markdown]
# In the test rows the gap is not zero, and its interval says how little that means. The
# Brier score pays less than .001.

# %%
fair = ds.lossreg(formula, train, loss=ds.fairness.nij("Race", 0.25)).fit("none")
table = ds.fairness_table(test[outcome], fair.predict(test), test["Race"], 0.25)
print(table.loc[["fpr", "fnr", "gap_fpr", "nij"]].round(3).to_string())

# %% [markdown]
# ## 4. What fairness costs, in COMPAS
#
# In these data a difference is worth something. The frontier runs from the Brier fit to
# one that is even; the price of evenness without race among the covariates is a tenth
# of the Brier score. With race as a covariate it is hardly anything, which is what
# "treatment" against "outcome" is about.

# %%
two = recid[recid["race"].isin(["African-American", "Caucasian"])]
inside = np.random.default_rng(10).random(len(two)) < 0.75
two_train, two_test = two[inside], two[~inside]
frontier = ds.fairness_frontier(text, two_train, "race", eval_data=two_test)
print(frontier.table.drop(columns="converged").round(3).to_string(index=False))
with_race = ds.fairness_frontier(
    f"{text} + race", two_train, "race", eval_data=two_test,
    gap_weights=(0, 0.02, 0.05, 0.1, 0.5),
)  # fmt: skip
print(with_race.table.iloc[[1, -1]][["weight", "brier", "gap", "nij"]].round(3))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
for ax, found, title in zip(
    axes, (frontier, with_race), ("Without race", "Race a covariate"), strict=True
):
    found.plot(ax).set_title(title)
keep(axes[0], "fairness_frontier")

# %% [markdown]
# ## 5. A cap instead of a difference
#
# A difference is also closed by flagging more of the group that was better off. A cap
# on the false-positive rate of each group never asks for that.

# %%
capped = ds.lossreg(text, two_train, loss=ds.fairness.capped("race", 0.15)).fit("none")
table = ds.fairness_table(two_train["Recid30"], capped.predict(two_train),
                          two_train["race"], reps=200)  # fmt: skip
print(table.loc[["fpr", "brier"], ["estimate", "low", "high"]].round(3))

ax = plt.figure(figsize=(5.2, 3.4), layout="constrained").gca()
for label, fit in (("Brier", plain), ("NIJ, t = .25", fair)):
    p = np.asarray(fit.predict(test))
    cuts = np.linspace(0.05, 0.6, 56)
    negative = test[outcome].to_numpy() == 0
    black = test["Race"].to_numpy() == 1
    gaps = [
        (p[negative & black] >= c).mean() - (p[negative & ~black] >= c).mean()
        for c in cuts
    ]
    ax.plot(cuts, gaps, lw=1.4, label=label)
ax.axhline(0, color="0.6", lw=0.8)
ax.set(xlabel="Threshold", ylabel="FPR, black less white", title="NIJ, test rows")
ax.legend(frameon=False)
keep(ax, "fairness_thresholds")
