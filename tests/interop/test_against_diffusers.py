"""Our chain against an independent implementation: diffusers' DDPM and DDIM schedulers, number for number."""

from __future__ import annotations

import warnings

import pytest
import torch

import sdegen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    ddpm_module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")

CHAINS = {"linear": sdegen.DDPM.linear(), "squaredcos_cap_v2": sdegen.DDPM.cosine()}
PREDICTIONS = {"eps": "epsilon", "data": "sample", "v": "v_prediction"}
VARIANCES = {"beta": "fixed_large", "posterior": "fixed_small", "learned": "learned_range"}
STEPS, SHAPE = 50, (3, 2, 4)

every_schedule = pytest.mark.parametrize("schedule", CHAINS)
every_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)
every_precision = pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-12), (False, 2e-5)])
far_out = pytest.mark.filterwarnings("ignore:At u = .*samples may explode")
"""For the first step of the cosine chain, which multiplies what eps says 20 000 times: theirs does so too."""


def net(x, k):
    """A smooth function of the state and of the integer that both libraries show a network."""
    return torch.tanh(0.7 * x + 0.3) * torch.cos(2e-3 * k).reshape(-1, 1, 1) + 0.1 * x


def net_with_variance(x, k):
    place = torch.sin(1.7 * x + 5e-3 * k.reshape(-1, 1, 1))
    return torch.cat([net(x, k), place], 1)


def scheduler_of(kind, schedule, predicts, wide, **options):
    """Theirs, without clipping; `wide` replaces its float32 tables by ours in float64."""
    theirs = kind(
        beta_schedule=schedule, prediction_type=PREDICTIONS[predicts], clip_sample=False, timestep_spacing="leading"
    )
    if options:
        theirs = kind.from_config(theirs.config, **options)
    if wide:
        theirs.betas = CHAINS[schedule].betas.clone()
        theirs.alphas = 1 - theirs.betas
        theirs.alphas_cumprod = torch.cumprod(theirs.alphas, 0)
        theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return theirs


def their_steps(monkeypatch, theirs, network, x, noise, **options):
    """Every state of their loop, fed with our noise."""
    states = []
    for k, z in zip(theirs.timesteps.tolist(), noise, strict=True):
        if isinstance(theirs, diffusers.DDPMScheduler):
            monkeypatch.setattr(ddpm_module, "randn_tensor", lambda shape, z=z, **_: z)
        out = network(x, torch.full((len(x),), float(k)))
        x = theirs.step(out, k, x, **options).prev_sample
        states.append(x)
    return torch.stack(states)


def our_steps(schedule, predicts, solver, x, noise, network=net):
    chain = CHAINS[schedule]
    model = sdegen.ScoreModel(network, chain, predicts, time=chain.index, learns_variance=network is net_with_variance)
    start = float(solver.grid[0])
    return sdegen.solve(model, x, solver, u=(start, 0.0), noise=noise, trajectory=True).trajectory[1:]


def same(ours, theirs, tolerance):
    """Relative to the size of the states, which the cosine schedule's first step throws far out."""
    assert float(((ours - theirs).abs() / (1 + theirs.abs())).max()) < tolerance


@pytest.fixture
def start():
    g = torch.Generator().manual_seed(11)
    return torch.randn(SHAPE, generator=g), torch.randn(STEPS, *SHAPE, generator=g)


@every_schedule
def test_the_schedules_are_theirs(schedule):
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule)
    torch.testing.assert_close(CHAINS[schedule].betas, theirs.betas.double(), rtol=2e-5, atol=1e-7)
    t = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(CHAINS[schedule].alpha(t) ** 2, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("steps", "spacing"), [(50, "leading"), (7, "leading"), (50, "trailing"), (7, "trailing")])
def test_the_respaced_timesteps_are_theirs(steps, spacing):
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    chain = CHAINS["linear"]
    ours = chain.index(chain.time(chain.respaced(steps, spacing)))[:-1]
    torch.testing.assert_close(ours, theirs.timesteps.double(), rtol=0, atol=1e-9)


@every_schedule
@every_prediction
@pytest.mark.parametrize("variance", ["beta", "posterior"])
@every_precision
def test_ancestral_sampling_is_theirs(monkeypatch, start, schedule, predicts, variance, wide, tolerance):
    x, noise = start
    theirs = scheduler_of(diffusers.DDPMScheduler, schedule, predicts, wide, variance_type=VARIANCES[variance])
    theirs.set_timesteps(STEPS)
    solver = sdegen.Ancestral(variance=variance, grid=CHAINS[schedule].respaced(STEPS))
    ours = our_steps(schedule, predicts, solver, x, noise)
    same(ours, their_steps(monkeypatch, theirs, net, x, noise), tolerance)


@every_schedule
@every_prediction
@every_precision
def test_learned_variances_are_theirs(monkeypatch, start, schedule, predicts, wide, tolerance):
    x, noise = start
    theirs = scheduler_of(diffusers.DDPMScheduler, schedule, predicts, wide, variance_type="learned_range")
    theirs.set_timesteps(STEPS)
    # they split the output in channels before they ask for the noise, which must then have the shape of x
    solver = sdegen.Ancestral(variance="learned", grid=CHAINS[schedule].respaced(STEPS))
    ours = our_steps(schedule, predicts, solver, x, noise, net_with_variance)
    same(ours, their_steps(monkeypatch, theirs, net_with_variance, x, noise), tolerance)


@every_schedule
@every_prediction
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@every_precision
def test_ddim_is_theirs(monkeypatch, start, schedule, predicts, eta, wide, tolerance):
    x, noise = start
    theirs = scheduler_of(diffusers.DDIMScheduler, schedule, predicts, wide)
    theirs.set_timesteps(STEPS)
    ours = our_steps(schedule, predicts, sdegen.DDIM(eta=eta, grid=CHAINS[schedule].respaced(STEPS)), x, noise)
    states = []
    for k, z in zip(theirs.timesteps.tolist(), noise, strict=True):
        x = theirs.step(net(x, torch.full((len(x),), float(k))), k, x, eta=eta, variance_noise=z).prev_sample
        states.append(x)
    same(ours, torch.stack(states), tolerance)


@far_out
@every_schedule
@every_prediction
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(
    ("k", "wide", "tolerance"),  # untouched, their float32 1 - abar_2/abar_1 keeps three digits of beta_2
    [(k, True, 1e-12) for k in (1000, 999, 500, 2, 1)] + [(k, False, 2e-5) for k in (1000, 999, 500, 1)],
)
def test_one_step_of_the_whole_chain_is_theirs(monkeypatch, start, schedule, predicts, variance, k, wide, tolerance):
    """From k to k-1 alone, so that no later step can forgive it."""
    x, noise = start
    chain, network = CHAINS[schedule], net_with_variance if variance == "learned" else net
    theirs = scheduler_of(diffusers.DDPMScheduler, schedule, predicts, wide, variance_type=VARIANCES[variance])
    monkeypatch.setattr(ddpm_module, "randn_tensor", lambda shape, **_: noise[0])
    step = theirs.step(network(x, torch.full((len(x),), k - 1.0)), k - 1, x).prev_sample
    # the last step of a solve adds no noise: go on to the data, and look at the state between
    knots = [k, k - 1, 0] if k > 1 else [1, 0]
    grid = chain.clock(torch.tensor(knots, dtype=torch.float64) / 1000)
    z = noise[: len(knots) - 1]
    same(
        our_steps(schedule, predicts, sdegen.Ancestral(variance=variance, grid=grid), x, z, network)[0], step, tolerance
    )


@far_out
@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1000, 999, 500, 2, 1])
def test_one_ddim_step_of_the_whole_chain_is_theirs(start, schedule, eta, k):
    x, noise = start
    theirs = scheduler_of(diffusers.DDIMScheduler, schedule, "eps", True)
    theirs.set_timesteps(1000)
    out = net(x, torch.full((len(x),), k - 1.0))
    step = theirs.step(out, k - 1, x, eta=eta, variance_noise=noise[0]).prev_sample
    knots = [k, k - 1, 0] if k > 1 else [1, 0]
    grid = CHAINS[schedule].clock(torch.tensor(knots, dtype=torch.float64) / 1000)
    same(our_steps(schedule, "eps", sdegen.DDIM(eta=eta, grid=grid), x, noise[: len(knots) - 1])[0], step, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_all_thousand_steps_are_theirs(monkeypatch, variance):
    g = torch.Generator().manual_seed(12)
    x, noise = torch.randn(SHAPE, generator=g), torch.randn(1000, *SHAPE, generator=g)
    theirs = scheduler_of(diffusers.DDPMScheduler, "linear", "eps", True, variance_type=VARIANCES[variance])
    chain = CHAINS["linear"]
    model = sdegen.ScoreModel(net, chain, time=chain.index)
    ours = sdegen.solve(model, x, sdegen.Ancestral(variance=variance), noise=noise, trajectory=True).trajectory[1:]
    # they form beta_k = 1 - abar_k/abar_(k-1), which in float64 is off by 1e-12 of beta_1 = 1e-4 at every small k
    same(ours, their_steps(monkeypatch, theirs, net, x, noise), 1e-10)
