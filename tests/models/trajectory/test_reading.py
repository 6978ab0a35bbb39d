"""The call and its options: every option, how they combine, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from deepstats.errors import FormulaError, ModelError
from deepstats.families import (
    Binomial,
    CensoredNormal,
    GammaML,
    GaussianML,
    NegativeBinomial,
    ZeroInflatedPoisson,
    ZeroInflatedPoissonTau,
    get_family,
)
from deepstats.formula import Formula, Rhs, Term
from deepstats.models.trajectory.reading import OPTIONS, Values, read

CALL = "traj(y ~ poly(t, 2), groups=3, id=pid)"
TWO = "traj(y1 ~ t, y2 ~ poly(t, 2), groups=2, id=pid)"


def only(text: str, **options):
    (outcome,) = read(text, **options).outcomes
    return outcome


def test_a_call_says_what_keywords_say():
    call = "traj(y ~ poly(t, 2), groups=3, id=pid, risk=~ x1 + x2, orders=(2, 1, 0))"
    one = read(call)
    two = read("y ~ poly(t, 2)", groups=3, id="pid", risk="~ x1 + x2", orders=[2, 1, 0])
    assert (one.groups, one.id, one.risk) == (two.groups, two.id, two.risk)
    assert one.outcomes == two.outcomes
    assert one.risk == Rhs.parse("~ x1 + x2")
    assert one.outcomes[0].orders == (2, 1, 0)


def test_defaults():
    plan = read(CALL)
    assert (plan.groups, plan.id, plan.reference, plan.risk) == (3, "pid", 1, None)
    assert plan.weights is plan.cluster is plan.dropout is plan.random is None
    outcome = plan.outcomes[0]
    assert outcome.family == GaussianML()
    assert outcome.variance == "shared"
    assert outcome.orders is None
    assert outcome.zero == outcome.disp == Rhs.parse("~ 1")


def test_every_option_has_its_place_in_the_plan():
    plan = read(
        "traj(y ~ poly(t, 2) + z, groups=2, id=`my id`, risk=~ x, reference=2, "
        "weights=`my w`, cluster=village, dropout=~ z, random=~ 1 + t, family=zinb, "
        "orders=(2, 1), common=~ u, zero=~ t + I(t^2), zero_orders=(1, 2), "
        "variance='group', disp=~ v, offset=o, exposure=e)"
    )
    assert plan.id == "my id"
    assert plan.weights == "`my w`"
    assert (plan.reference, plan.cluster) == (2, "village")
    assert plan.dropout == Rhs.parse("~ z")
    assert plan.random == Rhs.parse("~ 1 + t")
    (o,) = plan.outcomes
    assert o.family.name == "zeroinflatednegativebinomial"
    assert o.common == (Term(("u",)),)
    assert o.zero == Rhs.parse("~ t + I(t^2)")
    assert (o.zero_orders, o.zero_ladder) == ((1, 2), ("t", "I(t ** 2)"))
    assert (o.variance, o.offset, o.exposure) == ("group", "o", "e")
    assert o.disp == Rhs.parse("~ v")


def test_a_formula_that_is_parsed_already_is_read_too():
    assert read(Formula.parse(CALL)) == read(CALL)


def test_plans_compare_by_what_they_ask():
    assert read(CALL) == read(CALL.replace("groups=3, id=pid", "id=pid, groups=3"))
    assert read(CALL) != read(CALL, orders=1)


# -- call and keyword --------------------------------------------------------------


def test_the_same_option_twice_must_be_the_same():
    assert read(CALL, groups=3, id="pid") == read(CALL)
    with pytest.raises(ModelError, match="groups is given in the call and as a keyw"):
        read(CALL, groups=4)


def test_none_is_not_given():
    assert read(CALL, risk=None, weights=None, orders=None) == read(CALL)


@pytest.mark.parametrize("given", ["call", "keyword"])
def test_unknown_options_are_refused_with_a_list(given):
    with pytest.raises(ModelError, match="no option 'group'.*'groups'") as caught:
        if given == "call":
            read("traj(y ~ t, group=3, id=pid)")
        else:
            read("traj(y ~ t, id=pid)", group=3)
    assert all(option in str(caught.value) for option in OPTIONS)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("traj(y ~ t, id=pid)", {}, "groups= is missing"),
        ("traj(y ~ t, groups=2)", {}, "id= is missing"),
        ("traj(y ~ t, groups=0, id=pid)", {}, "groups= is a whole number of at least"),
        ("traj(y ~ t, groups=2.5, id=pid)", {}, "groups= is a whole number"),
        ("traj(y ~ t, groups=True, id=pid)", {}, "groups= is a whole number"),
        ("traj(y ~ t, groups=2, id=3)", {}, "id= is the name of a column"),
        (CALL, {"reference": 4}, "reference=4 is no group"),
        (CALL, {"variance": "both"}, "variance= is 'shared' or 'group'"),
        (CALL, {"risk": 3}, "risk= is a one-sided formula"),
        ("traj(y ~ t, groups=2, id=pid, risk=x)", {}, "write risk=~ x"),
        (CALL, {"risk": "~ 0 + x"}, "risk= always has an intercept"),
        (CALL, {"risk": "~ x + (1 | g)"}, "takes plain terms only"),
        (CALL, {"common": "~ 1"}, "common= names no columns"),
        (CALL, {"family": "zip", "zero": 3}, "zero= is a one-sided.*'shared' or 'tau'"),
        (CALL, {"weights": 2.0}, "weights= is a column, an expression or values"),
        (CALL, {"offset": np.ones((3, 2))}, "offset= is a column, a number, or one"),
        (CALL, {"lower": float("nan")}, "lower= is not a number"),
        (CALL, {"groups": {"y": 3}}, "groups= is one value for all outcomes"),
        ("traj(y ~ t, x, groups=2, id=pid)", {}, "takes formulas, then options"),
        ("y + x ~ t", {"groups": 2, "id": "pid"}, "has several responses"),
        ("~ t", {"groups": 2, "id": "pid"}, "has no response"),
        ("y ~ t | z", {"groups": 2, "id": "pid"}, "nothing may follow '|'"),
        ("y ~ 0", {"groups": 2, "id": "pid"}, "has no columns"),
        ("traj(y ~ t + (1 | pid), groups=2, id=pid)", {}, "random=~ 1 \\+ t"),
        ("traj(y ~ t, y ~ x, groups=2, id=pid)", {}, "y is the response of two"),
        (3, {"groups": 2, "id": "pid"}, "a formula is text"),
    ],
)
def test_what_is_refused(text, options, message):
    with pytest.raises(ModelError, match=message):
        read(text, **options)


def test_text_that_cannot_be_read_points_at_the_place():
    with pytest.raises(FormulaError) as caught:
        read("traj(y ~ t +, groups=2, id=pid)")
    assert caught.value.position is not None


# -- orders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "ladder"),
    [
        ("y ~ poly(t, 2)", ("poly(t, 2)[1]", "poly(t, 2)[2]")),
        ("y ~ poly(t, degree=2)", ("poly(t, degree=2)[1]", "poly(t, degree=2)[2]")),
        ("y ~ x + poly(t, 1, raw=True)", ("poly(t, 1, raw=True)[1]",)),
        ("y ~ t + I(t^2)", ("t", "I(t ** 2)")),
        ("y ~ I(t**2) + x + t", ("t", "I(t ** 2)")),
        ("y ~ I(t / 10) + I((t / 10)**2)", ("I(t / 10)", "I((t / 10) ** 2)")),
        ("y ~ t", ("t",)),
        ("y ~ 0 + t + I(t^2) + C(g):x", ("t", "I(t ** 2)")),
    ],
)  # fmt: skip
def test_the_polynomial_of_a_formula(formula, ladder):
    outcome = only(formula, groups=2, id="pid", orders=(1, 0))
    assert outcome.ladder == ladder
    assert outcome.orders == (1, 0)


def test_one_order_is_that_of_all_groups():
    assert only(CALL, orders=1).orders == (1, 1, 1)
    assert only(CALL, orders=np.array([2, 0, 1])).orders == (2, 0, 1)


@pytest.mark.parametrize(
    ("formula", "orders", "message"),
    [
        ("y ~ poly(t, 2)", (2, 1, 0), "has 3 entries and there are 2 groups"),
        ("y ~ poly(t, 2)", (3, 1), "has degree 2; raise it there \\(poly\\(t, 3\\)"),
        ("y ~ t + t**2", (2, 1), "has degree 1; raise it there .*I\\(t\\*\\*2\\)"),
        ("y ~ poly(t, 2)", (-1, 1), "orders= is a whole number of at least 0"),
        ("y ~ poly(t, 2)", (1.5, 1), "orders= is a whole number"),
        ("y ~ poly(t, 2)", "2", "gives the polynomial order of each group"),
        ("y ~ bs(t, 3)", (2, 1), "no polynomial"),
        ("y ~ ns(t, 3) + x", (2, 1), "no polynomial"),
        ("y ~ 1", (0, 0), "no polynomial"),
        ("y ~ t + x", (1, 1), "no polynomial"),
        ("y ~ poly(t, 2) + poly(x, 2)", (2, 1), "several polynomials"),
        ("y ~ poly(t, 2) + x + I(x^2)", (2, 1), "several polynomials"),
        ("y ~ I(t^2)", (2, 1), "the powers of t .* lack t"),
        ("y ~ t + I(t^3)", (2, 1), "lack I\\(t\\*\\*2\\)"),
        ("y ~ poly(t, 2) * x", (2, 1), "part of the interaction poly\\(t, 2\\):x"),
    ],
)
def test_orders_that_cannot_be(formula, orders, message):
    with pytest.raises(ModelError, match=message):
        read(formula, groups=2, id="pid", orders=orders)


def test_a_column_cannot_be_common_and_not():
    with pytest.raises(ModelError, match=r"x is in the formula .* and in common="):
        read("y ~ t + x", groups=2, id="pid", common="~ x")


# -- families ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gaussian", GaussianML()),
        ("normal", GaussianML()),
        ("logit", Binomial()),
        ("binomial", Binomial()),
        ("nb", NegativeBinomial()),
        ("nb1", NegativeBinomial(loglike="nb1")),
        ("zip", ZeroInflatedPoisson()),
        ("ziptau", ZeroInflatedPoissonTau()),
        ("gamma", GammaML()),
        (get_family("gamma", "inverse"), GammaML("inverse")),
        (get_family("binomial", "probit"), Binomial("probit")),
        (get_family("gaussian", "log"), GaussianML("log")),
        ("ordinal", "ordinal"),
        ("mnlogit", "multinomial"),
    ],
)
def test_families_by_name_and_by_instance(name, family):
    assert only("y ~ t", groups=2, id="pid", family=name).family == family


def test_a_name_in_the_call_needs_no_quotes():
    assert only("traj(y ~ t, groups=2, id=i, family=poisson)").family.name == "poisson"


def test_limits_make_a_normal_response_censored():
    for family in ("gaussian", "cnorm", "tobit", CensoredNormal()):
        outcome = only("y ~ t", groups=2, id="pid", family=family, lower=0)
        assert isinstance(outcome.family, CensoredNormal)
        assert (outcome.lower, outcome.upper) == (0.0, None)
    own = only("y ~ t", groups=2, id="pid", family=CensoredNormal(upper=9))
    assert (own.lower, own.upper) == (None, 9.0)
    assert only("traj(y ~ t, groups=2, id=i, lower=lod, upper=9)").lower == "lod"
    values = only("y ~ t", groups=2, id="pid", upper=np.arange(4.0)).upper
    assert isinstance(values, Values)


def test_zero_tau_is_a_form_of_zip():
    options = dict(groups=2, id="pid")
    by_zero = only("y ~ t", family="zip", zero="tau", **options)
    assert by_zero == only("y ~ t", family="ziptau", **options)
    with pytest.raises(ModelError, match="zeros follow the mean"):
        read("y ~ t", family="ziptau", zero="~ t", **options)
    with pytest.raises(ModelError, match="form of zip, not of zeroinflatedneg"):
        read("y ~ t", family="zinb", zero="tau", **options)
    with pytest.raises(ModelError, match="zero_orders= has no use with zero='tau'"):
        read("y ~ t", family="ziptau", zero_orders=(1, 0), **options)


def test_zero_shared():
    outcome = only("y ~ t", groups=2, id="pid", family="zip", zero="shared")
    assert outcome.zero_shared and outcome.zero == Rhs.parse("~ 1")


@pytest.mark.parametrize(
    ("family", "option", "message"),
    [
        ("gaussian", {"zero": "~ t"}, "gaussian has no zero part"),
        ("poisson", {"zero_orders": 1}, "poisson has no zero part"),
        ("poisson", {"variance": "group"}, "poisson has no scale parameter"),
        ("binomial", {"disp": "~ x"}, "binomial has no scale parameter"),
        ("ordinal", {"disp": "~ x"}, "steps of an ordinal response have no columns"),
        ("poisson", {"lower": 0}, "only a normal response has limits"),
        ("multinomial", {"offset": "x"}, "multinomial response has several pred"),
        ("cnorm", {}, "needs its limits: lower= or upper="),
        ("cauchy", {}, "unknown family"),
        (CensoredNormal(lower=0), {"lower": 1}, "give different limits"),
    ],
)
def test_options_a_family_has_no_use_for(family, option, message):
    with pytest.raises((ModelError, ValueError), match=message):
        read("y ~ t", groups=2, id="pid", family=family, **option)


def test_a_multinomial_formula_has_no_offset():
    with pytest.raises(ModelError, match="several predictors"):
        read("y ~ t + offset(x)", groups=2, id="pid", family="multinomial")


# -- several outcomes ----------------------------------------------------------------


def test_outcomes_have_their_own_options():
    plan = read(
        TWO, family={"y1": "zip", "y2": "gaussian"}, zero={"y1": "~ t"},
        orders={"y2": (2, 1)}, lower={"y2": "low"}, variance="group",
    )  # fmt: skip
    one, two = plan.outcomes
    assert plan.names == ("y1", "y2")
    assert one.family == ZeroInflatedPoisson()
    assert isinstance(two.family, CensoredNormal)
    assert (one.orders, two.orders) == (None, (2, 1))
    assert one.zero == Rhs.parse("~ t")
    # A plain value is for the outcomes that have a use for it.
    assert (one.variance, two.variance) == ("shared", "group")


def test_families_and_orders_by_position():
    plan = read(TWO, family=["poisson", "binomial"], orders=[(1, 0), (2, 1)])
    assert [o.family.name for o in plan.outcomes] == ["poisson", "binomial"]
    assert [o.orders for o in plan.outcomes] == [(1, 0), (2, 1)]
    assert [o.orders for o in read(TWO, orders=(1, 0)).outcomes] == [(1, 0)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": ["poisson"]}, "family= has 1 entries and there are 2 outcomes"),
        ({"family": {"y1": "poisson"}}, "family= says nothing of y2"),
        ({"orders": {"y3": (1, 0)}}, "no response 'y3'.*There are: y1, y2"),
        ({"zero": {"y2": "~ t"}}, "has no zero part"),
        ({"family": "poisson", "variance": "group"}, "has no scale parameter"),
    ],
)
def test_options_of_several_outcomes_that_cannot_be(options, message):
    with pytest.raises(ModelError, match=message):
        read(TWO, **options)


def test_functions_of_the_caller():
    plan = read("traj(y ~ half(t), groups=2, id=pid)", context={"half": np.sqrt})
    assert plan.context == {"half": np.sqrt}
    with pytest.raises(FormulaError, match="unknown function `half`"):
        read("traj(y ~ half(t), groups=2, id=pid)")
