"""Every option of LatentModel's verbs reaches what it is for, and a prior that cannot be asked is refused first."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

import sdegen
from sdegen.paths.chain import Knots

EXACT = sdegen.Gaussian([0.3], 0.7).model(sdegen.VPSDE())
CALLS: list[int] = []
FAST = sdegen.ODESolver("rk4", steps=10)


def shifted(z, t, shift=None):
    """The velocity-like answer 'v' of N(0.3 + shift, 0.7^2)."""
    CALLS.append(len(z))
    if shift is None:
        return EXACT.v(z, t)
    alpha, sigma = EXACT.path.alpha(t)[:, None], EXACT.path.sigma(t)[:, None]
    return EXACT.v(z - alpha * shift, t) - sigma * shift


PRIOR = sdegen.ScoreModel(shifted, sdegen.VPSDE(), "v")


def encoder(x):
    return 0.5 * x, torch.full_like(x, 0.6)


def model(prior=PRIOR, size=1):
    return sdegen.LatentModel(encoder, lambda z: (z, 0.5), prior, latent_shape=(size,))


def test_the_draws_of_a_loss_are_network_calls():
    for draws in (2, 6):
        CALLS.clear()
        model().loss(torch.randn(5, 1), draws=draws)
        assert [5] * (draws + 2) == CALLS


@pytest.mark.parametrize("u_min", [None, 0.3])
def test_the_loss_is_that_of_score_kl_and_of_the_decoder(u_min):
    """In expectation, at the u_min that is asked for, by a decoder that z does not move."""
    n = 4000
    x = torch.full((n, 1), 1.0)
    bounds = {asked: sdegen.score_kl(*encoder(x), PRIOR, draws=16, u_min=asked).value for asked in (None, 0.3)}
    constant = sdegen.LatentModel(encoder, lambda z: (torch.ones(1, 1), 1.0), PRIOR)
    losses = torch.stack([constant.loss(part, draws=16, u_min=u_min) for part in x.split(100)])
    bound, other = bounds[u_min], bounds[0.3 if u_min is None else None]
    error = math.hypot(float(losses.std()) / math.sqrt(len(losses)), float(bound.std()) / math.sqrt(n))
    assert abs(float(losses.mean() - bound.mean()) - 0.5 * math.log(2 * math.pi)) < 4 * error
    assert abs(float(other.mean() - bound.mean())) > 8 * error


def test_the_loss_takes_the_condition_of_its_prior():
    """A prior moved by 2 is nearer to a posterior at 2.4: the loss falls by the difference of two divergences."""
    x = torch.full((3000, 1), 4.6)
    losses = {}
    for shift in (0.0, 2.0):
        cond = {"shift": torch.full((3000, 1), shift)}
        losses[shift] = model().loss(x, draws=32, cond=cond, generator=torch.Generator().manual_seed(1))
    q, wide = Normal(2.3, 0.6), 0.7
    away = (torch.distributions.kl_divergence(q, Normal(0.3 + shift, wide)) for shift in (0.0, 2.0))
    far, near = (float(value) for value in away)
    assert abs(float(losses[0.0] - losses[2.0]) - (far - near)) < 0.15


def test_samples_take_the_condition_of_their_prior():
    shift = torch.tensor([[5.0], [-5.0]]).repeat(2000, 1)
    x = model().sample(4000, FAST, cond={"shift": shift})
    moved = (x - 0.3 - shift)[:, 0]
    assert abs(float(moved.mean())) < 5 * math.sqrt(0.74 / 4000)
    assert abs(float(moved.var()) / 0.74 - 1) < 5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("options", [{}, {"batch_size": 6}], ids=["whole", "parts"])
@pytest.mark.parametrize("steps", [5, 10])
def test_the_density_of_the_prior_is_log_prob_s_own(steps, options):
    """As many calls of the network, of as many rows, as log_prob makes for all draws with the same options."""
    x, solver, prior = torch.randn(4, 1), sdegen.Adams(steps), sdegen.ScoreModel(shifted, sdegen.VPSDE(), "v")
    for _ in range(2):  # the first time, its gradient is held against differences
        CALLS.clear()
        sdegen.log_prob(prior, torch.randn(12, 1), solver, **options)
    wanted = [*CALLS]
    assert wanted
    for ask in (
        lambda: model(prior).elbo(x, draws=3, solver=solver, **options),
        lambda: model(prior).iwae(x, 3, solver=solver, **options),
    ):
        CALLS.clear()
        ask()
        assert wanted == CALLS


def test_the_density_of_the_prior_takes_the_trace():
    """Six coupled dimensions: with the same z, probes give other numbers, which are right in the mean."""
    coupling, x = torch.randn(6, 6) / 3, torch.randn(1, 6).expand(400, 6)
    prior = sdegen.ScoreModel(lambda z, t: torch.tanh(z @ coupling), sdegen.VPSDE(), "v")

    def bound(trace):
        generators = [torch.Generator().manual_seed(i) for i in range(400)]
        return model(prior, 6).elbo(x, solver=sdegen.Adams(8), trace=trace, generator=generators).value

    exact = bound("exact")
    off = bound(sdegen.Hutchinson(1)) - exact
    assert float(off.std()) > 0.01
    assert abs(float(off.mean())) < 5 * float(off.std()) / 20
    torch.testing.assert_close(bound("auto"), exact, rtol=0, atol=0)


NO_ANSWER = {
    "eps, CondOT": (sdegen.CondOT(), "eps", None, "A network for 'eps' is singular at u = 1, an end of CondOT"),
    "eps, Cosine": (sdegen.CosineVPSDE(), "eps", None, "A network for 'eps' is singular at u = 1, an end of CosineVP"),
    "data": (sdegen.VPSDE(), "data", None, r"A network for 'data' is singular at u = 0, .* noised data, such as VESDE"),
    "moved": (
        sdegen.VPSDE(),
        "v",
        sdegen.CondOT(),
        r"The prior answers between the clocks u = 0 and 0.993471, and it is to be followed along CondOT.* u = 0 to 1: "
        r"put it, by prior.on\(path\), on a path that stays inside",
    ),
}


@pytest.mark.parametrize("name", NO_ANSWER)
@pytest.mark.parametrize("verb", ["elbo", "iwae", "sample"])
def test_a_prior_without_an_answer_at_an_end_is_refused_with_what_to_do(name, verb):
    path, predicts, on, words = NO_ANSWER[name]
    prior = sdegen.ScoreModel(shifted, path, predicts)
    one, CALLS[:] = model(prior if on is None else prior.on(on)), []
    ask = {"elbo": lambda: one.elbo(torch.ones(2, 1)), "iwae": lambda: one.iwae(torch.ones(2, 1), 3)}
    with pytest.raises(ValueError, match=words) as raised:
        ask.get(verb, lambda: one.sample(2))()
    assert "u=(" not in str(raised.value)
    if on is None:
        assert "or train it for 'v', which is singular nowhere" in str(raised.value)
    assert not CALLS


def test_what_can_be_asked_still_is():
    """By a solver that does not ask at clean data, and by one whose grid ends inside the path."""
    data = sdegen.ScoreModel(lambda z, t: 0 * z, sdegen.VPSDE(), "data")
    assert model(data).sample(2, sdegen.Adams(4)).shape == (2, 1)
    eps = sdegen.ScoreModel(lambda z, t: 0 * z, sdegen.CondOT(), "eps")
    knots = torch.tensor([0.99, 0.5, 0.2, 0.0]).as_subclass(Knots)
    assert model(eps).sample(2, sdegen.Adams(grid=knots)).shape == (2, 1)
