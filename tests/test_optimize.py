"""Newton's method on functions whose maxima are known."""

from __future__ import annotations

import pytest
import torch

from deepstats.optimize import Derivatives, newton, solve_information


def objective(function):
    """Derivatives of a function by torch.func."""

    def at(x):
        return Derivatives(
            float(function(x)),
            torch.func.grad(function)(x),
            -torch.func.jacrev(torch.func.grad(function))(x),
        )

    return at


def quadratic(x):
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 1e4, 1e-4], dtype=torch.float64)
    return -0.5 * (scale * (x - target) ** 2).sum() + 7.0


def rosenbrock(x):
    return -(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


def steep(x):
    """Concave, but a full Newton step from far away overshoots."""
    return -(torch.logaddexp(3 * x, -3 * x)).sum()


def test_quadratic_takes_one_step():
    found = newton(objective(quadratic), torch.zeros(3).double())
    assert found.converged
    assert found.iterations == 2  # the second sees that nothing is left
    torch.testing.assert_close(found.x, torch.tensor([1.0, -2.0, 3.0]).double())
    assert found.value == pytest.approx(7.0, abs=1e-14)


@pytest.mark.parametrize("reevaluate", (True, False))
def test_value_at_the_solution(reevaluate):
    start = torch.tensor([0.8, 1.0, 1.0]).double()

    def function(x):
        return -torch.cosh(x - 1.0).sum()

    found = newton(objective(function), start, reevaluate=reevaluate)
    assert found.converged
    assert found.value == pytest.approx(-3.0, abs=1e-12)


def test_rosenbrock():
    found = newton(objective(rosenbrock), torch.tensor([-1.2, 1.0]).double())
    assert found.converged
    torch.testing.assert_close(found.x, torch.ones(2).double(), rtol=1e-9, atol=1e-9)
    assert found.gradient_norm < 1e-8


def test_overshooting_is_halved():
    found = newton(objective(steep), torch.tensor([2.0, -1.5]).double())
    assert found.converged
    torch.testing.assert_close(found.x, torch.zeros(2).double(), rtol=0, atol=1e-8)
    values = [value for value, _ in found.history]
    assert values == sorted(values)


def test_not_concave_at_the_start():
    def function(x):
        return -((x**2 - 1) ** 2).sum()

    found = newton(objective(function), torch.tensor([0.1, -0.2]).double())
    assert found.converged
    torch.testing.assert_close(found.x, torch.tensor([1.0, -1.0]).double())


def test_stops_at_the_limit_and_says_so():
    found = newton(
        objective(rosenbrock), torch.tensor([-1.2, 1.0]).double(), max_iterations=2
    )
    assert not found.converged
    assert "not converged in 2" in found.message


def test_a_value_that_is_not_finite():
    found = newton(objective(lambda x: torch.log(x).sum()), -torch.ones(2).double())
    assert not found.converged
    assert "not finite" in found.message


def test_bound():
    """A parameter that runs off to minus infinity is fixed at its least value."""

    def function(x):
        return -torch.exp(x[0]) - (x[1] - 2) ** 2

    lower = torch.tensor([-10.0, -torch.inf]).double()
    found = newton(objective(function), torch.zeros(2).double(), lower=lower)
    assert found.at_bound == (0,)
    assert found.x[0] == -10.0
    assert float(found.x[1]) == pytest.approx(2.0, abs=1e-9)
    assert found.converged


def test_solve_information():
    A = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).double()
    torch.testing.assert_close(solve_information(A), torch.linalg.inv(A))
    wide = torch.diag(torch.tensor([1e-12, 1e12]).double())
    torch.testing.assert_close(solve_information(wide), torch.linalg.inv(wide))
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
    assert torch.linalg.eigvalsh(solve_information(bad)).min() > 0
    free = torch.tensor([True, False])
    torch.testing.assert_close(
        solve_information(A, free), torch.tensor([[0.25]]).double()
    )
