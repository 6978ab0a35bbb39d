# %% [markdown]
# # Simple weights: doctor visits and arrests, to be added up by hand
#
# In 2021 Andrew Wheeler pushed the coefficients of a regression towards whole numbers,
# by a penalty on their distance from them, minimised by Adam. From random numbers that
# penalty sticks: a coefficient stays near the whole number it first comes by. From
# least squares it gives the rounded coefficients. Here the penalty is one way among
# others, and the best whole numbers are **searched for**, with a proof that there are
# no better ones.

# %%
import sqlite3
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import deepstats as ds

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
pd.set_option("display.width", 100, "display.max_columns", 14)
shared = Path(ds.__file__).resolve().parents[2] / "shared" / "reference" / "data"
folder = Path("demo_output")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Doctor visits: least squares
#
# 4,406 people on Medicare, six columns between zero and one as in the post (his extract
# of the survey cannot be had; these are all of its people).

# %%
visits = pd.read_csv(shared / "reg_docvisits_nmes1988.csv")
columns = ["private", "medicaid", "age", "educ", "actlim", "chronic"]
X = visits[columns]
visits[columns] = (X - X.min()) / (X.max() - X.min())
text = "drvisits ~ " + " + ".join(columns)
ols = ds.ols(text, visits).fit(cov_type="HC1")
print(ols.summary())

# %% [markdown]
# ## 2. Whole numbers
#
# From least squares the near-integer penalty ends at the rounded coefficients, and for
# these data the exact search shows that nothing is better.

# %%
found = ds.simple_weights(text, visits)
print(found.summary())

# %%
print(found.comparison().T.round(3).to_string())
rounded = np.round(ols.params[columns])
assert found.optimal and (found.points == rounded).all()

# %% [markdown]
# What starts elsewhere ends elsewhere: the penalty from all zeros, as a fit by itself.

# %%
stuck = ds.lossreg(text, visits, penalty="integer", lam=0.4)
for start in ("zero", "ols"):
    fit = stuck.fit(start=start, cov_type="none")
    print(
        f"{start:>4}: MSE {fit.loss_value:.3f}", fit.params[columns].round(3).to_dict()
    )

# %% [markdown]
# Fewer columns, coarser steps, and an intercept that is whole too: a card for a pocket.

# %%
rows = []
for terms in range(1, 7):
    for step in (0.5, 1, 2, 5):
        fit = ds.simple_weights(
            text, visits, max_terms=terms, step=step, intercept="integer"
        )
        rows.append((terms, step, fit.loss_value, fit.optimal))
table = pd.DataFrame(rows, columns=["terms", "step", "mse", "optimal"])
assert table["optimal"].all()
print(table.pivot(index="terms", columns="step", values="mse").round(3))

# %%
pocket = ds.simple_weights(text, visits, max_terms=4, intercept="integer")
print(pocket.score_card(most=10))

# %% [markdown]
# ## 3. Arrest within 30 days of COMPAS
#
# Thirteen columns of yes and no; points from -5 to 5, for at most five of them. Every
# subset of five has a bound, the log-loss of its real coefficients; few remain to be
# searched.

# %%
c = pd.read_csv(shared / "reg_compas.csv", low_memory=False)
yes_no = {
    "age_lt25": c["YearsScreening"] < 25,
    "age_25_45": c["YearsScreening"].between(25, 45),
    "male": c["sex"] == "Male",
    "felony": c["c_charge_degree"] == "F",
    **{f"priors_ge{k}": c["priors_count"] >= k for k in (1, 2, 5, 10)},
    "juvfel": c["juv_fel_count"] > 0,
    "juvmis": c["juv_misd_count"] > 0,
    "juvoth": c["juv_other_count"] > 0,
    "single": c["marital_status"] == "Single",
    "jail_ge30": pd.to_numeric(c["JailDays"], errors="coerce") >= 30,
}
compas = pd.DataFrame(yes_no).astype(int)
outcome = "again ~ " + " + ".join(yes_no)
compas["again"] = c["Recid30"].astype(int)
score = ds.simple_weights(outcome, compas, loss="logloss", max_terms=5)
print(score.summary())

# %%
score.score_card()

# %% [markdown]
# The same card in a database.

# %%
with sqlite3.connect(":memory:") as db:
    compas.to_sql("people", db, index=False)
    query = f"select {score.to_sql('score')} as score from people"
    in_database = pd.read_sql(query, db)["score"]
db.close()
assert (in_database == score.score()).all()
print(query)

# %% [markdown]
# What each further column is worth.

# %%
losses = {
    k: ds.simple_weights(outcome, compas, loss="logloss", max_terms=k).loss_value
    for k in range(1, 9)
}
least = score.comparison().loc["real coefficients", "loss"]
axes = plt.figure(figsize=(6, 3.5)).gca()
axes.plot(list(losses), list(losses.values()), marker="o", label="best points")
axes.axhline(least, color="grey", linestyle="--", label="logit, 13 columns")
axes.set(xlabel="columns with points", ylabel="log-loss")
axes.legend()
axes.figure.savefig(folder / "simple_weights.png", dpi=110, bbox_inches="tight")
print(pd.Series(losses).round(5).to_dict())
