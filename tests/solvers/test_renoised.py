"""Churn, Langevin and Restart: up the clock by exact noise, down by a solver, and the law stays what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from problems import PATHS, affine_law, ring, slope, start_law

import sdegen
from sdegen.solvers.renoised import Renoised

S, MEAN = 0.25, 0.8
DATA = sdegen.Gaussian([MEAN], math.sqrt(S))
EVEN = sdegen.PowerGrid(1)


@dataclass(frozen=True, eq=False)
class Exact(sdegen.OneStep):
    """The ODE on N(0.8, 0.25) without an error: y - (1-u) m grows like the deviation of y."""

    asks = "data"

    def stages(self, u, v):
        spread = [math.hypot((1 - w) * math.sqrt(S), w) for w in (u, v)]
        ratio, gain = spread[1] / spread[0], (1 - u) * S / spread[0] ** 2
        weight = ((1 - v) - ratio * (1 - u)) / (1 - gain * (1 - u))
        return [sdegen.Stage(v, sdegen.Row(ratio - weight * gain, (weight,)))]


AROUND = {
    "churn": lambda solver: sdegen.Churn(solver, 3.0),
    "churn, inside": lambda solver: sdegen.Churn(solver, 3.0, sigma_min=0.2, sigma_max=5.0),
    "langevin": lambda solver: sdegen.Langevin(solver, 0.3),
    "langevin, twice": lambda solver: sdegen.Langevin(solver, 0.3, times=2),
    "restart": lambda solver: sdegen.Restart(solver, 0.3, 0.7),
    "restart, three times": lambda solver: sdegen.Restart(solver, 0.1, 0.9, times=3),
}


def moves(path, solver):
    """How often the clock of a solve moves: the number of its normals."""
    return len(sdegen.solve(DATA.model(path), torch.zeros(1, 1), solver).u) - 1


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("path", PATHS)
def test_with_an_exact_solver_the_law_is_exact(around, path):
    """Mean and variance of the samples, from the exact start to the data end, whatever the noise on the way."""
    path, solver = PATHS[path], AROUND[around](Exact(6, grid=EVEN))
    count = moves(path, solver)
    assert count > 6
    law = affine_law(path, solver, S, MEAN, count)
    assert law == pytest.approx(start_law(DATA.marginal(path, path.t_data)), rel=1e-9)


@pytest.mark.parametrize("around", AROUND)
def test_with_noise_of_another_scale_it_is_not(around):
    """The law above can fail: three per cent more noise is seen in the variance."""
    solver = AROUND[around](Exact(6, grid=EVEN))
    louder = type(solver)(**{**vars(solver), "noise_scale": 1.03})
    law = affine_law(PATHS["vp"], louder, S, MEAN, moves(PATHS["vp"], louder))
    assert law[0] == pytest.approx(MEAN)
    assert law[1] > 1.0005 * S


@pytest.mark.parametrize("around", AROUND)
def test_the_error_of_the_law_falls_with_that_of_the_solver(around):
    """Around a first-order solver, on VP; Langevin's own error, at a fixed snr, is a floor."""
    path = PATHS["vp"]
    solvers = [AROUND[around](sdegen.DPMSolver(n, 1, grid=sdegen.PowerGrid(2))) for n in (16, 64)]
    coarse, fine = (abs(affine_law(path, s, S, MEAN, moves(path, s))[1] / S - 1) for s in solvers)
    assert fine < (0.9 if "langevin" in around else 0.4) * coarse


@dataclass(frozen=True, eq=False)
class Corrections(sdegen.Langevin):
    """As many as make a fixed time of Langevin's dynamics, at the first knot alone."""

    def legs(self, knots, top):
        _, *corrections = super().legs([1.0, knots[0]], top)
        return [*corrections, list(knots)]


@pytest.mark.parametrize("u", [0.3, 0.8])
def test_corrections_of_first_order_keep_the_law_as_they_shrink(u):
    """1/snr^2 corrections: the variance that they leave behind at the knot is off by snr^2, for every snr smaller."""
    path, ends = sdegen.CondOT(), (u, u - 1e-9)
    model, errors, sizes = DATA.model(path), [], [0.4, 0.2, 0.1, 0.05]
    variance = (1 - u) ** 2 * S + u**2
    for snr in sizes:
        times = round(4 / snr**2)
        solver = Corrections(sdegen.DPMSolver(1, 1), snr, times=times)
        x, noise = torch.zeros(times + 2, 1), torch.zeros(2 * times + 1, times + 2, 1)
        x[1], noise[torch.arange(0, 2 * times, 2), torch.arange(2, times + 2)] = 1, 1
        out = sdegen.solve(model, x, solver, u=ends, noise=noise).x[:, 0]
        a, c = out[1] - out[0], out[2:] - out[0]
        errors.append(abs(float(a**2 * variance + (c**2).sum()) / variance - 1))
    assert abs(slope([round(1 / snr) for snr in sizes[1:]], errors[1:]) - 2) < 0.3
    assert errors[-1] < 3e-3


@pytest.mark.parametrize("inner", [sdegen.DPMSolver(1, 1), sdegen.Heun(1)], ids=repr)
@pytest.mark.parametrize("path", ["vp", "ve", "trigonometric"])
def test_a_correction_is_langevins_step_to_first_order(inner, path):
    """x + delta score + sqrt(2 delta) z with delta = 2 (snr sigma)^2, up to terms of order delta^(3/2)."""
    path, u = PATHS[path], 0.4
    model, x, z = ring(0.5).model(path), torch.randn(6, 2), torch.randn(6, 2)
    t = path.time(u)
    errors = []
    for snr in (0.04, 0.02, 0.01):
        delta = 2 * (snr * path.sigma(t)) ** 2
        step = x + delta * model.score(x, t) + (2 * delta).sqrt() * z
        ends, noise = (u, u - 1e-12), torch.stack([z, 0 * z, 0 * z])
        corrected = sdegen.solve(model, x, Corrections(inner, snr), u=ends, noise=noise).x
        errors.append(float((corrected - step).abs().max() / delta))
    assert errors[0] < 1
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0]


def test_a_step_by_the_samples_own_norms_would_not_keep_it():
    """Why `Langevin` takes expected norms: delta = 2 (snr |z|/|score|)^2 of each sample spoils N(0, I) in eight
    dimensions for good, however small snr is, and delta = 2 snr^2 does not."""
    start = torch.randn(20_000, 8)
    kept = {}
    for own in (True, False):
        x = start
        for _ in range(400):
            z = torch.randn_like(x)
            ratio = z.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True) if own else torch.ones(len(x), 1)
            delta = 2 * (0.05 * ratio) ** 2
            x = x - delta * x + (2 * delta).sqrt() * z
        kept[own] = float(x.square().mean())
    assert kept[True] > 1.3
    assert abs(kept[False] - 1) < 0.02


def test_no_restart_and_no_correction_is_the_solver_itself():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(5, 2)
    for inner in (sdegen.Adams(9), sdegen.UniPC(9, 3), sdegen.Heun(9)):
        plain = sdegen.solve(model, x, inner, trajectory=True)
        for around in (sdegen.Restart(inner, times=0), sdegen.Langevin(inner, times=0)):
            same = sdegen.solve(model, x, around, trajectory=True)
            assert torch.equal(same.trajectory, plain.trajectory)
            assert torch.equal(same.u, plain.u)
            assert same.calls == plain.calls
    still = sdegen.solve(model, x, sdegen.Churn(sdegen.Heun(9), 0.0), trajectory=True)
    torch.testing.assert_close(still.trajectory, sdegen.solve(model, x, sdegen.Heun(9), trajectory=True).trajectory)


def test_the_clock_goes_up_and_down_and_everything_is_counted():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(5, 2)
    inner = sdegen.Heun(10, grid=EVEN)
    one = float(sdegen.VPSDE().ends[1])
    knots = [one * (1 - k / 10) for k in range(11)]
    restart = sdegen.solve(model, x, sdegen.Restart(inner, 0.2, 0.45, times=2), trajectory=True)
    again = [0.45, *knots[6:9]]
    assert restart.u.tolist() == pytest.approx([*knots[:9], *again, *again, *knots[9:]])
    assert restart.calls == 19 + 2 * 2 * 3  # the way down again is three steps of two calls
    langevin = sdegen.solve(model, x, sdegen.Langevin(inner, times=2), trajectory=True)
    assert langevin.calls == 19 + 9 * 2 * 2  # none at clean data
    churn = sdegen.solve(model, x, sdegen.Churn(inner), trajectory=True)
    assert churn.calls == 19
    assert len(churn.u) == 11 + 9  # no noise above the noise end
    for solution in (restart, langevin, churn):
        torch.testing.assert_close(solution.t, sdegen.VPSDE().time(solution.u))
        assert solution.trajectory.shape == (len(solution.u), 5, 2)
        assert torch.equal(solution.trajectory[-1], solution.x)
        assert solution.accepted == len(solution.u) - 1


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("inner", [sdegen.Heun(5), sdegen.DPMSolver(5, eta=1.0), sdegen.StochasticAdams(5)], ids=repr)
def test_a_sample_does_not_depend_on_its_batch_mates(around, inner):
    """One generator per sample; and the normals of `noise=` are those that a generator draws."""
    model, solver, x = ring().model(sdegen.VPSDE()), AROUND[around](inner), torch.randn(4, 2)

    def solved(rows):
        generators = [torch.Generator().manual_seed(b) for b in rows]
        return sdegen.solve(model, x[rows], solver, generator=generators).x

    whole = solved([0, 1, 2, 3])
    for rows in ([2], [3, 1]):
        torch.testing.assert_close(solved(rows), whole[rows], rtol=1e-12, atol=1e-12)
    assert float((solved([0, 1]) - sdegen.solve(model, x[:2], solver).x).abs().max()) > 1e-3


def test_noise_is_that_of_every_move():
    """(n, B, *event) for n + 1 clocks, or a callable of the move; a generator draws the same for those in use."""
    model, x = ring().model(sdegen.VPSDE()), torch.randn(4, 2)
    solver = sdegen.Restart(sdegen.DPMSolver(5, eta=1.0), 0.2, 0.6)
    n = len(sdegen.solve(model, x, solver).u) - 1
    noise = torch.randn(n, 4, 2, generator=torch.Generator().manual_seed(3))
    given = sdegen.solve(model, x, solver, noise=noise).x
    torch.testing.assert_close(sdegen.solve(model, x, solver, noise=noise.__getitem__).x, given)
    for k in range(n - 1):  # the step to clean data adds none
        other = noise.clone()
        other[k] += 1
        assert float((sdegen.solve(model, x, solver, noise=other).x - given).abs().max()) > 1e-6
    with pytest.raises(ValueError, match=rf"\({n}, 4, 2\) for {n} steps"):
        sdegen.solve(model, x, solver, noise=noise[:-1])


@pytest.mark.parametrize(
    ("legs", "says"),
    [
        ([[0.9, 0.5], [0.4, 0.1]], r"from u = 0.5 or above, at most 1.0: not \[0.4, 0.1\]"),
        ([[0.9, 0.5], [0.6]], r"not \[0.6\]"),
        ([[0.9, 0.5], [0.5, 0.7, 0.1]], r"must go down .* not \[0.5, 0.7, 0.1\]"),
        ([[0.9, 0.5], [1.5, 0.1]], r"at most 1.0: not \[1.5, 0.1\]"),
        ([[0.9, 0.5]], r"must end at u = 0.1, and it ends at 0.5"),
        ([], r"must end at u = 0.1, and it ends at 0.9"),
    ],
)
def test_legs_of_ones_own_are_looked_at(legs, says):
    @dataclass(frozen=True, eq=False)
    class Own(sdegen.Renoised):
        def legs(self, knots, top):
            return legs

    with pytest.raises(ValueError, match=f"leg of Own .*{says}"):
        sdegen.solve(DATA.model(sdegen.CondOT()), torch.zeros(1, 1), Own(sdegen.Heun(4)), u=(0.9, 0.1))


def test_what_cannot_be_renoised_is_refused():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    with pytest.raises(TypeError, match=r"Multistep or OneStep solver, such as Heun.*ODESolver"):
        sdegen.Churn(sdegen.ODESolver("rk4", steps=4))
    with pytest.raises(TypeError, match="abstract"):
        Renoised(sdegen.Heun(4))
    bad = [
        (lambda: sdegen.Churn(sdegen.Heun(4), -1.0), "churn must be a finite number"),
        (lambda: sdegen.Churn(sdegen.Heun(4), sigma_min=2.0, sigma_max=1.0), r"sigma_max must be .*\[2.0, inf\].*1.0"),
        (lambda: sdegen.Langevin(sdegen.Heun(4), 0.0), "snr must be a finite number"),
        (lambda: sdegen.Langevin(sdegen.Heun(4), times=-1), "times must be at least 0, and it is -1"),
        (lambda: sdegen.Restart(sdegen.Heun(4), 0.5, 0.4), r"high must be .*\(0.5, 1\).*0.4"),
        (lambda: sdegen.Restart(sdegen.Heun(4), 0.1, 0.4, noise_scale=-1.0), "noise_scale must be"),
        (lambda: sdegen.solve(model, x, sdegen.Restart(sdegen.Heun(4), 0.1, 0.999)), "inside the solve"),
        (lambda: sdegen.solve(model, x, sdegen.Restart(sdegen.Heun(4)), u=(0.9, 0.2)), "inside the solve"),
        (lambda: sdegen.solve(model, x, sdegen.Churn(sdegen.Heun(4)), to="noise"), "runs from noise to data"),
    ]
    for call, says in bad:
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(TypeError, match="Only the ODE"):
        sdegen.log_prob(model, x, sdegen.Churn(sdegen.Heun(4)))
    pairs = sdegen.vector_field(lambda x, t: -x, prior=sdegen.Gaussian([0.0, 0.0], 1.0))
    with pytest.raises(ValueError, match="Langevin needs the score"):
        sdegen.solve(pairs, x, sdegen.Langevin(sdegen.DPMSolver(4)))
