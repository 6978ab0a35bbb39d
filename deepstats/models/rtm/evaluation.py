"""How well a map of risk finds crime: PAI, PEI, recapture, overlaps of risk factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["accuracy", "captured", "conjunctive", "hit_curve"]


def captured(
    score: np.ndarray, crimes: np.ndarray, area: np.ndarray, share: float
) -> float:
    """Return the crimes in the riskiest share of the area.

    Units with the same score are taken together: of those that reach over the border
    each gives the same part, which is the mean over all orders.

    Parameters
    ----------
    score, crimes, area : ndarray, shape (n,)
    share : float
        Of the area, between 0 and 1.

    Examples
    --------
    >>> score = np.array([3.0, 2.0, 2.0, 1.0])
    >>> captured(score, np.array([5.0, 4.0, 2.0, 0.0]), np.ones(4), 0.5)
    8.0
    """
    room = share * area.sum()
    values, level = np.unique(-score, return_inverse=True)
    areas = np.bincount(level, area, len(values))
    hits = np.bincount(level, crimes, len(values))
    before = np.concatenate([[0.0], areas.cumsum()[:-1]])
    part = np.clip((room - before) / np.where(areas > 0, areas, 1), 0, 1)
    return float(part @ hits)


def accuracy(
    score: np.ndarray,
    crimes: np.ndarray,
    area: np.ndarray,
    shares: Sequence[float],
    earlier: np.ndarray | None = None,
) -> pd.DataFrame:
    """Measure a prediction at several shares of the area.

    Parameters
    ----------
    score, crimes, area : ndarray, shape (n,)
        Predicted risk for each unit of area, what happened, and the area.
    shares : sequence of float
    earlier : ndarray, shape (n,), optional
        Crimes of the period of the fit.

    Returns
    -------
    DataFrame
        share, crimes, hit_rate, pai (hit rate over share; Chainey et al. 2008), pei
        (pai over that of the best possible map; Hunt 2016) and, with `earlier`, rri:
        the hit rate over that of the earlier period (Levine 2008).
    """
    total = float(crimes.sum())
    perfect = crimes / np.where(area > 0, area, 1)
    rows = []
    for share in shares:
        hits = captured(score, crimes, area, share)
        row = {
            "share": share, "crimes": hits, "hit_rate": hits / total,
            "pai": hits / total / share,
            "pei": hits / captured(perfect, crimes, area, share),
        }  # fmt: skip
        if earlier is not None:
            before = captured(score, earlier, area, share) / earlier.sum()
            row["rri"] = hits / total / before if before else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def hit_curve(
    score: np.ndarray, crimes: np.ndarray, area: np.ndarray, points: int = 200
) -> pd.DataFrame:
    """Return the hit rate over the share of the area, of the map and of a perfect one.

    Parameters
    ----------
    score, crimes, area : ndarray, shape (n,)
    points : int, default 200

    Returns
    -------
    DataFrame
        share, hit_rate, best.
    """
    shares = np.linspace(0, 1, points)
    perfect = crimes / np.where(area > 0, area, 1)
    total = crimes.sum()
    return pd.DataFrame({
        "share": shares,
        "hit_rate": [captured(score, crimes, area, s) / total for s in shares],
        "best": [captured(perfect, crimes, area, s) / total for s in shares],
    })  # fmt: skip


def conjunctive(
    columns: dict[str, np.ndarray], sums: dict[str, np.ndarray], risk: np.ndarray
) -> pd.DataFrame:
    """Add up units by which risk factors overlap there.

    Parameters
    ----------
    columns : dict of str to ndarray of 0 and 1, each (n,)
        The risk factors.
    sums : dict of str to ndarray, each (n,)
        What is added up.
    risk : ndarray, shape (n,)
        Relative risk, the same wherever the same factors meet.

    Returns
    -------
    DataFrame
        A column for each factor, overlaps (how many), units, relative_risk, and the
        sums; the riskiest first.
    """
    frame = pd.DataFrame({n: c.astype(int) for n, c in columns.items()})
    frame["overlaps"] = frame.sum(axis=1)
    keys = list(frame)
    frame = frame.assign(units=1, relative_risk=risk, **sums)
    how = {"units": "sum", "relative_risk": "first", **dict.fromkeys(sums, "sum")}
    table = frame.groupby(keys, sort=True).agg(how).reset_index()
    return table.sort_values(
        ["relative_risk", "units"], ascending=[False, True]
    ).reset_index(drop=True)
