"""The known schemes' table, their network calls, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import PATHS, affine_law, ring, slope, two_modes

import sdegen
from sdegen.solvers import SCHEMES
from sdegen.solvers.exponential import data_rows, falling_moments, half_log_snr, noise_rows, rising_moments

COUNTED = [name for name, scheme in SCHEMES.items() if scheme.calls]
FITTED = [name for name, scheme in SCHEMES.items() if scheme.order]


@pytest.mark.parametrize("name", COUNTED)
def test_the_calls_of_the_table_are_made(name):
    """Counted in the network itself; Heun and what goes around it make fewer in the step to clean data."""
    scheme, made = SCHEMES[name], []
    model = sdegen.ScoreModel(lambda x, t: made.append(1) or 0.1 * x, sdegen.VPSDE(), "v")
    inside = sdegen.solve(model, torch.zeros(3, 2), scheme.solver(20), u=(0.9, 0.1))
    assert inside.calls == len(made) == 20 * scheme.calls
    made.clear()
    whole = sdegen.solve(model, torch.zeros(3, 2), scheme.solver(20))
    assert whole.calls == len(made) == 20 * scheme.calls - {1: 0, 2: 1, 4: 3}[scheme.calls]


@pytest.mark.parametrize("name", FITTED)
def test_the_orders_of_the_table_are_fitted(name):
    """Or more: on the ODE from u = 0.9 to 0.1; for the SDE that of the law on N(0.8, 0.25), from the exact start."""
    path, steps, scheme = PATHS["vp"], [64, 128, 256], SCHEMES[name]
    if scheme.equation == "SDE":
        laws = [affine_law(path, scheme.solver(n), 0.25, 0.8, n) for n in steps]
        assert slope(steps, [abs(variance / 0.25 - 1) for _, variance in laws]) > scheme.order - 0.2
        assert max(abs(mean - 0.8) for mean, _ in laws) < 1e-3
        return
    model, u = two_modes().model(path), (0.9, 0.1)
    x = torch.linspace(-1.5, 1.5, 16)[:, None] * float(path.scale(0.9))
    exact = sdegen.solve(model, x, sdegen.ODESolver("dopri8", rtol=1e-12, atol=1e-13), u=u).x
    errors = [float((sdegen.solve(model, x, scheme.solver(n), u=u).x - exact).abs().max()) for n in steps]
    assert slope(steps, errors) > scheme.order - 0.2


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("ahead", [0, 1])
def test_rows_are_exact_where_x_hat_is_a_polynomial_in_l(eta, ahead):
    """Against the integral by Gauss-Legendre nodes, on knots that are not even."""
    u = torch.tensor([0.9, 0.62, 0.4, 0.17, 0.1])
    l, a = half_log_snr(u), 1 + eta**2
    for count in (2, 3, 4 if ahead else 3):
        k = 2
        row = data_rows(u, [count] * 3, rising_moments, eta, ahead)[k]
        nodes, weights = (torch.from_numpy(n) for n in np.polynomial.legendre.leggauss(60))
        at = l[k] + (l[k + 1] - l[k]) * 0.5 * (nodes + 1)
        half = 0.5 * (l[k + 1] - l[k]) * weights
        v = float(u[k + 1])
        for power in range(count):
            given = sum(w * l[k + ahead - j] ** power for j, w in enumerate(row.weights))
            kernel = torch.exp(at - eta**2 * (l[k + 1] - at)) * v * a
            assert given == pytest.approx(float((half * kernel * at**power).sum()), rel=1e-11)
        assert row.keep == pytest.approx(v / float(u[k]) * math.exp(-(eta**2) * (l[k + 1] - l[k])))


def test_rows_are_exact_where_eps_hat_is_a_polynomial_in_log_rho():
    u = torch.tensor([0.9, 0.62, 0.4, 0.17])
    l, rho = half_log_snr(u), (u / (1 - u)).tolist()
    row = noise_rows(u, [1, 2, 3])[2]
    nodes, weights = (torch.from_numpy(n) for n in np.polynomial.legendre.leggauss(60))
    at = rho[2] + (rho[3] - rho[2]) * 0.5 * (nodes + 1)
    for power in range(3):
        given = sum(w * l[2 - j] ** power for j, w in enumerate(row.weights))
        integral = float((0.5 * (rho[3] - rho[2]) * weights * (-at.log()) ** power).sum())
        assert given == pytest.approx((1 - float(u[3])) * integral, rel=1e-11)


def test_moments_of_short_and_of_endless_steps():
    for x in (1e-9, 1e-4, 0.3, 5.0, 40.0, 700.0):
        assert falling_moments(x, 2)[0] == pytest.approx(-math.expm1(-x), rel=1e-14)
        assert rising_moments(x, 4)[0] == pytest.approx(-math.expm1(-x), rel=1e-14)
        assert rising_moments(x, 3)[1] == pytest.approx(
            1 + math.expm1(-x) / x if x > 0.1 else x / 2 - x**2 / 6, rel=1e-7
        )
    assert falling_moments(math.inf, 3) == [1, 0, 0]
    assert rising_moments(math.inf, 3) == [1, 1, 1]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("make", [sdegen.DPMSolver, sdegen.UniPC])
def test_from_pure_noise_they_solve_as_from_just_below_it(make, order):
    """At u = 1 the log-SNR is infinite, and what that answer says of the bend of x_hat is left out."""
    model, x = ring().model(sdegen.CondOT()), torch.randn(6, 2)
    grid = (1 - torch.arange(11.0) / 10) ** 1.5
    near = torch.cat([grid.new_tensor([1 - 1e-9]), grid[1:]])
    whole = sdegen.solve(model, x, make(order=order, grid=grid)).x
    inside = sdegen.solve(model, x, make(order=order, grid=near), u=(1 - 1e-9, 0.0)).x
    torch.testing.assert_close(inside, whole, rtol=0, atol=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_sa_solver_starts_at_pure_noise_too(order, eta):
    """Where its h^2/2 of an endless step would be infinite; at eta > 0 the start is forgotten."""
    model, noise = ring().model(sdegen.CondOT()), torch.randn(10, 6, 2)
    solver = sdegen.SASolver(10, order, corrector_order=order, eta=eta)
    ends = [sdegen.solve(model, x, solver, noise=noise).x for x in torch.randn(2, 6, 2)]
    assert all(bool(end.isfinite().all()) for end in ends)
    assert torch.equal(*ends) == (eta > 0)


@pytest.mark.parametrize("make", [sdegen.DPMSolver, sdegen.UniPC, sdegen.DEIS, sdegen.SASolver, sdegen.Heun])
def test_what_they_refuse(make):
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps must be at least 1, and it is {steps}"):
            make(steps)
    with pytest.raises(TypeError, match=r"steps must be an integer, and 2.0 is float"):
        make(2.0)
    with pytest.raises(ValueError, match=f"{make.__name__} needs steps"):
        make()
    with pytest.raises(ValueError, match="needs 5 knots, and it has 3"):
        make(4, grid=torch.tensor([0.9, 0.4, 0.1]))
    with pytest.raises(ValueError, match=f"{make.__name__} runs from noise to data"):
        sdegen.solve(model, x, make(4), to="noise")
    with pytest.raises(TypeError, match=f"Only the ODE can be solved both ways.*{make.__name__}"):
        sdegen.log_prob(model, x, make(4))
    assert sdegen.solve(model, x, make(grid=torch.tensor([0.9, 0.4, 0.1])), u=(0.9, 0.1)).accepted == 2
    if make is not sdegen.Heun:
        for order in (0, 5):
            with pytest.raises(ValueError, match=f"order must be at .*{order}"):
                make(4, order)
        with pytest.raises(TypeError, match="order must be an integer"):
            make(4, 2.0)


def test_what_some_refuse():
    model, x = ring().model(sdegen.CondOT()), torch.zeros(2, 2)
    for solver in (sdegen.DEIS(4), sdegen.Heun(4)):
        with pytest.raises(ValueError, match=rf"{type(solver).__name__} cannot start at u = 1.*u=\(0.99, 0\)"):
            sdegen.solve(model, x, solver)
        assert bool(sdegen.solve(model, x, solver, u=(0.99, 0)).x.isfinite().all())
    with pytest.raises(ValueError, match=r"DPMSolver with eta = 1.0 is of order 1 or 2, not 3"):
        sdegen.DPMSolver(4, 3, eta=1.0)
    for make in (sdegen.DPMSolver, sdegen.SASolver):
        with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, inf\], and it is -1.0"):
            make(4, eta=-1.0)
    with pytest.raises(ValueError, match="corrector_order must be at most 4, and it is 5"):
        sdegen.SASolver(4, corrector_order=5)
    with pytest.raises(TypeError):
        sdegen.UniPC(4, eta=1.0)
    field = sdegen.vector_field(lambda x, t: -x, prior=sdegen.Gaussian([0.0, 0.0], 1.0))
    assert sdegen.solve(field, x, sdegen.UniPC(4)).calls == 4
    with pytest.raises(ValueError, match="DPMSolver needs the score"):
        sdegen.solve(field, x, sdegen.DPMSolver(4, eta=1.0))
