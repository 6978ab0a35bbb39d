# %% [markdown]
# # Risk terrain modelling, on the streets of Washington and the grid of New York
#
# In 2021 Andrew Wheeler fitted a risk terrain model with a deep learning library: each
# layer of points becomes columns of yes and no (within 100 metres, in the top of the
# density ...), 10,000 steps of Adam with random dropout and 10,000 after pruning leave
# one column for each layer. What was left depended on the seed. Columns of yes and no
# make small tables, so that here **all** models with one column for each layer are
# fitted, in less than a tenth of a second, and the choice is the best there is.
#
# The street units are those of his post. Their public file has one count of crimes, not
# one for 2011 and one for 2012: it is halved at random into a first and a second
# period. New York's shootings below have dates, and a real next year.

# %%
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

import deepstats as ds
from deepstats.models.rtm import PointLayer, grid

if "inline" not in matplotlib.get_backend():
    matplotlib.use("Agg")
pd.set_option("display.width", 100, "display.max_columns", 12)
shared = Path(ds.__file__).resolve().parents[2] / "shared" / "reference" / "data"
folder = Path("demo_output")
folder.mkdir(exist_ok=True)


def keep(axes, name):
    """Write the figure of some axes."""
    axes.figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## 1. Street units and layers
#
# 20,319 intersections and street segments, in metres. Places that sell alcohol, and two
# kinds of 311 calls (detritus, infrastructure), stand at street units themselves.

# %%
units = pd.read_csv(shared / "reg_dc_streetunits.csv")
rng = np.random.default_rng(1)
units["first"] = rng.binomial(units["TotalCrime"], 0.5)
units["second"] = units["TotalCrime"] - units["first"]
SIZES = (50, 100, 200, 300, 400, 500, 600, 700, 800)


def layer(column, distances=()):
    """Points of street units, as many as the column says."""
    return PointLayer(units, weight=column, distances=distances, bandwidths=SIZES)


layers = {
    "alcohol": layer("TotalLic", SIZES), "detritus": layer("CFS1"),
    "broken": layer("CFS2"),
}  # fmt: skip
model = ds.rtm(
    "rtm(first ~ alcohol + detritus + broken, x=XMeters, y=YMeters, id=MarID)",
    units, layers,
)  # fmt: skip
print(f"{model.terrain.combinations} models of {sum(model.terrain.sizes)} candidates")

# %% [markdown]
# ## 2. The choice
#
# All models, under Poisson and both negative binomials. The Poisson model is off by
# 21,000 points of BIC, and under the negative binomial another alcohol column is best:
# a selection under the wrong family is another selection.

# %%
results = model.fit()
print(results.summary())
print(results.families().drop(columns="risk factors").round(2))
print("chosen under Poisson:", results.families().loc["poisson", "risk factors"])

# %%
print(results.models(5).drop(columns=["llf"]).round(2).to_string())
table = results.candidates()
print(table.groupby("factor")["alone"].idxmin())

# %% [markdown]
# ## 3. How sure is the choice?
#
# Standard errors of the summary take the columns for given. Chosen on one half of the
# street units and estimated on the other they do not; and drawing street units anew (by
# neighbourhood) tells how often each column would have been chosen.

# %%
split = results.split_sample(seed=1, cov_type="HC1")
print(split.table[["rrv", "conf_low", "conf_high"]].round(2))
poisson = ds.rtm(
    "rtm(first ~ alcohol + detritus + broken, x=XMeters, y=YMeters, family='poisson')",
    units, layers,
).fit("cluster", {"groups": "FishID"})  # fmt: skip
drawn = poisson.bootstrap(40, seed=1, groups="FishID")
print(drawn.factors.round(2))
often = drawn.candidates["frequency"].sort_values(ascending=False)
print(often[often > 0].head(8))

# %% [markdown]
# ## 4. The map, and the other period
#
# The riskiest 5% of the street units have about 14% of the crimes of the second period:
# simple models of three yes-or-no columns do not do much better, as the post says.

# %%
print(results.evaluate("second").round(3).to_string(index=False))
overlap = results.conjunctive("second")
overlap = overlap.rename(columns=lambda c: c.replace("alcohol_", "alc_"))
print(overlap.round(1).to_string(index=False))

# %%
ax = results.plot_map()
ax.set_title("Relative risk of crime, Washington street units")
keep(ax, "rtm_washington")
ax = results.plot_hits("second")
ax.set_title("Second period")
keep(ax, "rtm_hits")

# %%
path = folder / "rtm_washington.geojson"
results.to_geojson(path, crs="EPSG:26985")
feature = json.loads(path.read_text())["features"][0]
print(feature["geometry"], sorted(feature["properties"])[:3])

# %% [markdown]
# ## 5. Random dropout, as in the post
#
# `choose="dropout"` is Wheeler's scheme (10,000 steps on the table of patterns; the
# effects are then estimated to convergence). Two seeds, and what the exact search has.

# %%
best = poisson.bic
for seed in (10, 12):
    found = ds.rtm(
        "rtm(first ~ alcohol + detritus + broken, x=XMeters, y=YMeters)", units, layers,
        family="poisson", choose="dropout",
    ).fit(seed=seed, steps=4000)  # fmt: skip
    names = ", ".join(r.name for r in found.rules)
    print(f"seed {seed}: {names}; {found.bic - best:.0f} points of BIC above the best")

# %% [markdown]
# ## 6. Cells of a grid: shootings in New York
#
# Shootings of 2019 and 2020, counted in cells of 1,000 feet. Two layers, in half blocks
# of 1,000 feet: licences to sell alcohol, and shootings of the four years before. Then
# the shootings of 2021, which no part of the model has seen.

# %%
rings = pd.read_csv(shared / "reg_nyc_bor.csv")
boroughs = {
    "type": "MultiPolygon",
    "coordinates": [[r[["x", "y"]].values.tolist()]
                    for _, r in rings.groupby(["boro", "ring"])],
}  # fmt: skip
shootings = pd.read_csv(shared / "reg_nyc_shoot.csv")
year = pd.to_datetime(shootings["OCCUR_DATE"]).dt.year
earlier, before, after = (
    shootings[year.between(*y)] for y in ((2015, 2018), (2019, 2020), (2021, 2021))
)
cells = grid(shootings, 1000, within=boroughs)
licences = pd.read_csv(shared / "reg_nyc_liq.csv")
city = ds.rtm(
    "rtm(shootings ~ alcohol + earlier, block=1000, id=id)", cells,
    {"shootings": before, "alcohol": licences, "earlier": earlier},
)  # fmt: skip
york = city.fit()
print(york.summary())
print(york.evaluate(after, shares=(0.05, 0.1, 0.2)).round(2).to_string(index=False))

# %%
ax = york.plot_map("expected")
ax.set_title("Expected shootings by cell, New York")
keep(ax, "rtm_new_york")
