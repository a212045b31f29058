"""The known multistep schemes against diffusers', every state, on the same sigmas and the same network times."""

from __future__ import annotations

import math
import types
import warnings

import pytest
import torch

import sdegen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    dpm_module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    sa_module = pytest.importorskip("diffusers.schedulers.scheduling_sasolver")

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # they call NumPy on tensors, as NumPy 2 deprecates

PATH = sdegen.VPSDE()
GRIDS = {"power": sdegen.PowerGrid(2), "time": sdegen.PowerGrid(1, "t"), "log-snr": sdegen.KarrasGrid(math.inf)}
INSIDE = (PATH.ends[1], 0.01)

every_grid = pytest.mark.parametrize("grid", GRIDS)
every_length = pytest.mark.parametrize("steps", [1, 2, 3, 9, 21])  # below 15 they fall to lower orders at the end
whole_or_inside = pytest.mark.parametrize("u", [None, INSIDE], ids=["to zero", "inside"])


def net(x, t):
    """A smooth noise predictor, which knows its time."""
    return torch.tanh(0.7 * x + 0.3) * torch.cos(t).reshape(-1, 1, 1) + 0.5 * x


@pytest.fixture
def start():
    g = torch.Generator().manual_seed(11)
    return torch.randn(3, 2, 4, generator=g), torch.randn(21, 3, 2, 4, generator=g)


def ours(solver, x, u, noise=None):
    return sdegen.solve(sdegen.ScoreModel(net, PATH), x, solver, u=u, noise=noise, trajectory=True)


def theirs(kind, solution, x, steps, noise=None, **options):
    """Every state of their loop on the knots of our solution, in double."""
    if noise is None:
        noise = [None] * steps
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = solution.u / (1 - solution.u)
    scheduler.timesteps = torch.arange(1000, 1000 - steps, -1)  # names of the steps, no more
    states = [x]
    for k, z in zip(scheduler.timesteps.tolist(), noise, strict=False):
        out = net(x, solution.t[1000 - k].expand(len(x)))
        x = scheduler.step(out, k, x, **({} if z is None else {"variance_noise": z})).prev_sample
        states.append(x)
    return torch.stack(states)


def same(a, b, tolerance):
    assert a.shape == b.shape
    assert bool(b.isfinite().all())
    assert float(((a - b).abs() / (1 + b.abs())).max()) < tolerance


@every_grid
@every_length
@whole_or_inside
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_theirs(start, order, grid, steps, u):
    solution = ours(sdegen.UniPC(steps, order, grid=GRIDS[grid]), start[0], u)
    same(
        solution.trajectory,
        theirs(diffusers.UniPCMultistepScheduler, solution, start[0], steps, solver_order=order),
        1e-10,
    )


@every_grid
@every_length
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_theirs(start, order, grid, steps):
    """Which has no step to zero."""
    solution = ours(sdegen.DEIS(steps, order, grid=GRIDS[grid]), start[0], INSIDE)
    same(
        solution.trajectory,
        theirs(diffusers.DEISMultistepScheduler, solution, start[0], steps, solver_order=order),
        1e-10,
    )


@every_grid
@every_length
@whole_or_inside
@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (3, 0.0), (1, 1.0), (2, 1.0)])
@pytest.mark.parametrize("wide", [False, True], ids=["as it is", "its float32 as float64"])
def test_dpm_solver_is_theirs(monkeypatch, start, order, eta, grid, steps, u, wide):
    """Their `step` casts the state to float32; with that cast taken out, to rounding."""
    if wide:
        torch_of_theirs = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
        monkeypatch.setattr(dpm_module, "torch", torch_of_theirs)
    noise = start[1][:steps] if eta else None
    solution = ours(sdegen.DPMSolver(steps, order, eta=eta, grid=GRIDS[grid]), start[0], u, noise)
    their_states = theirs(
        diffusers.DPMSolverMultistepScheduler,
        solution,
        start[0],
        steps,
        noise,
        solver_order=order,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        final_sigmas_type="zero" if u is None else "sigma_min",
    )
    same(solution.trajectory, their_states, 1e-10 if wide else 5e-6)


@every_grid
@every_length
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 3), (2, 3), (4, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sa_solver_is_theirs(monkeypatch, start, orders, eta, grid, steps):
    """Their closed-form integrals cancel: at order 4 on short steps they lose six digits, and ours do not."""
    x, noise = start[0], start[1][:steps]
    normals = iter(noise)
    monkeypatch.setattr(sa_module, "randn_tensor", lambda *_, **__: next(normals))
    predictor, corrector = orders
    solver = sdegen.SASolver(steps, predictor, corrector_order=corrector, eta=eta, grid=GRIDS[grid])
    solution = ours(solver, x, INSIDE, noise)
    their_states = theirs(
        diffusers.SASolverScheduler,
        solution,
        x,
        steps,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: eta,
    )
    same(solution.trajectory, their_states, 1e-10 if max(orders) < 3 else 1e-7)
