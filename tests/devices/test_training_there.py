"""Training on the pretend device: a step through `loss` never waits, and its numbers are those of the CPU.

That holds for a path that does not state its own inverse too, which times drawn by the clock or by their log-SNR need.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import PATHS, PREDICTIONS, SCORED, Net, network, same
from pretend import DEVICE, PretendDevice, counted, put
from problems import ring

import sdegen

WEIGHTINGS = {
    "plain": None,
    "likelihood": sdegen.LikelihoodWeighting(),
    "min-snr": sdegen.MinSNR(),
    "edm": sdegen.EDMWeighting(),
}
TIMES = {
    "uniform": sdegen.UniformTimes(),
    "low discrepancy": sdegen.LowDiscrepancyTimes(),
    "chain": sdegen.ChainTimes(20),
    "likelihood": sdegen.LikelihoodTimes(),
    "clock": sdegen.ClockTimes(),
    "log-normal": sdegen.LogNormalTimes(),
}


def batch(n=8):
    torch.manual_seed(2)
    return torch.randn(n, 2)


def step(model, x, objective=sdegen.loss, **options):
    """One step of gradient descent: the loss and the parameters after it, which live where x does."""
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    value = objective(model, x, **options)
    optimiser.zero_grad()
    value.backward()
    optimiser.step()
    return value.detach(), [p.detach().clone() for p in model.parameters()]


def never_waits(model, x, **options):
    """The numbers of the CPU in the first step, which may move what a path keeps, and no wait in the second."""
    same(lambda model, x: step(model, x, **options), model, x)
    model, x = put(model), put(x)
    _, waits = counted(lambda: step(model, x, **options))
    assert not waits, dict(waits)


@pytest.mark.parametrize("path", PATHS)
def test_a_step_never_waits(path):
    for predicts in PREDICTIONS:
        if predicts != "score" or path in SCORED:
            never_waits(network(PATHS[path], predicts), batch())


@pytest.mark.parametrize(
    ("path", "times"),
    [
        pytest.param(path, times, marks=[] if path in ("vp", "ddpm") or times == "likelihood" else pytest.mark.nightly)
        for path, times in itertools.product(SCORED, TIMES)
    ],
)
def test_no_time_sampler_and_no_weighting_waits(path, times):
    for weighting in WEIGHTINGS.values():
        never_waits(network(PATHS[path]), batch(), times=TIMES[times], weighting=weighting)


def test_given_times_noise_and_conditions_do_not_wait():
    x = batch()
    t, noise, shift = torch.linspace(0.1, 0.9, 8), torch.randn(8, 2), torch.randn(8, 2)

    def given(model, x, t, noise, shift):
        return step(model, x, t=t, noise=noise, cond={"shift": shift}, reduction="mean")

    same(given, network(PATHS["vp"]), x, t, noise, shift)
    model, inputs = put(network(PATHS["vp"])), put((x, t, noise, shift))
    _, waits = counted(lambda: given(model, *inputs))
    assert not waits, dict(waits)


@pytest.mark.parametrize("several", [False, True])
def test_generators_there(several):
    x, model = put(batch()), put(network(PATHS["vp"]))
    with PretendDevice() as waits:
        g = [torch.Generator(DEVICE).manual_seed(i) for i in range(8 if several else 1)]
        for times in TIMES.values():
            sdegen.loss(model, x, times=times, generator=g if several else g[0]).backward()
        assert not waits, dict(waits)
        with pytest.raises(ValueError, match="generator lives on cpu, and the samples are drawn on meta"):
            sdegen.loss(model, x, generator=torch.Generator())


@pytest.mark.parametrize("coupling", [sdegen.Independent(), sdegen.OptimalTransport(), sdegen.OptimalTransport(True)])
def test_couplings_there(coupling):
    """SciPy solves the assignment on the CPU: there and back is two waits."""
    model = network(PATHS["interpolant"], "velocity")
    waits = same(lambda model, x: step(model, x, coupling=coupling), model, batch())
    assert waits.total() == (0 if isinstance(coupling, sdegen.Independent) else 2), dict(waits)


def test_a_source_there():
    class Uniform:
        def sample(self, shape, generator=None):
            return torch.rand(shape)

    model = network(sdegen.Interpolant(source=Uniform()), "velocity")
    waits = same(step, model, batch())
    assert waits.total() == 1, dict(waits)  # this source draws on the CPU


def test_the_hybrid_objective_moves_its_chain_at_every_step():
    """Three copies, however long the chain: reported, and not to become more."""
    for steps in (10, 40):
        path = sdegen.DDPM.linear(steps, 1e-3, 0.3, smooth=True)
        model = sdegen.ScoreModel(Net(learns=True), path, "eps", time=path.index, learns_variance=True)
        same(lambda model, x: step(model, x, sdegen.hybrid_loss), model, batch())
        model, x = put(model), put(batch())
        _, waits = counted(lambda: step(model, x, sdegen.hybrid_loss))  # noqa: B023
        print(f"hybrid_loss: {waits.total()} waits in a step, {dict(waits)}")
        assert waits.total() <= 3


def test_data_drawn_there():
    """A mixture whose means live there."""
    data = ring()
    with PretendDevice() as waits:
        there = sdegen.GaussianMixture(put(data._means), 0.1)
        assert there.sample(4, torch.Generator(DEVICE).manual_seed(0)).device.type == DEVICE.type
        counts = waits.total()
        for _ in range(3):
            there.log_prob(there.sample(4))
        assert waits.total() == counts, dict(waits)
    same(lambda _, x: data.log_prob(x), torch.nn.Identity(), batch())
