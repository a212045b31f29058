"""Every public verb on the pretend device: the numbers of the CPU, and hardly a wait in the loops."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, PREDICTIONS, SCORED, Net, few, marked, network, same
from pretend import DEVICE, PretendDevice, counted, put

import sdegen

CHAIN = sdegen.DDPM.linear(20, 1e-3, 0.3, smooth=True)


def batch(n=4):
    torch.manual_seed(2)
    return torch.randn(n, 2)


def two_step(n):
    return sdegen.ODESolver("midpoint", steps=n)


def learned():
    return sdegen.ScoreModel(Net(learns=True), CHAIN, "eps", time=CHAIN.index, learns_variance=True)


@pytest.mark.parametrize("solver", [sdegen.SDESolver("euler", 8), two_step(8), sdegen.Ancestral(8), sdegen.DDIM(8)])
def test_sample(solver):
    model = network(PATHS["vp"])
    here = sdegen.sample(model, (4, 2), solver, generator=torch.Generator().manual_seed(3), x_T=batch())
    model = put(model)
    with PretendDevice():
        drawn = sdegen.sample(model, (4, 2), solver)
        assert drawn.device.type == DEVICE.type
        g = torch.Generator(DEVICE).manual_seed(3)
        there = sdegen.sample(model, (4, 2), solver, generator=g, x_T=batch())
        if not solver.solves_ode:
            each = [torch.Generator(DEVICE).manual_seed(i) for i in range(4)]
            assert sdegen.sample(model, (4, 2), solver, generator=each).device.type == DEVICE.type
        with pytest.raises(ValueError, match="generator lives on cpu, and the samples are drawn on meta"):
            sdegen.sample(model, (4, 2), solver, generator=torch.Generator())
    torch.testing.assert_close(there.held, here, rtol=0, atol=1e-12)


def test_conditions_there():
    """A row per sample, in every verb that takes one."""
    shift, x = torch.randn(4, 2), batch()
    model = network(PATHS["ddpm"], "eps")
    verbs = {
        "solve": lambda m, x, s: sdegen.solve(m, x, sdegen.SDESolver("euler", 4), cond={"shift": s}).x,
        "log_prob": lambda m, x, s: sdegen.log_prob(m, x, two_step(4), cond={"shift": s}),
        "vlb": lambda m, x, s: sdegen.vlb(m, x, cond={"shift": s}, steps=4, batch_size=2).total,
        "iwae": lambda m, x, s: sdegen.iwae(m, x, 2, cond={"shift": s}, steps=4, batch_size=3).log_prob,
        "shared": lambda m, x, s: sdegen.vlb(m, x, cond={"shift": sdegen.Shared(s[0])}, steps=4, batch_size=3).total,
    }
    for verb in verbs.values():
        same(verb, model, x, shift)
        model = network(PATHS["ddpm"], "eps")


@pytest.mark.parametrize("path", marked(PATHS))
def test_encode_and_decode(path):
    part = {"encode": (0.05, 0.95), "decode": (0.95, 0.05)}
    for verb in (sdegen.encode, sdegen.decode):
        u = part[verb.__name__]
        model = network(PATHS[path])
        same(lambda m, x, verb=verb, u=u: verb(m, x, two_step(4), u=u), model, batch())
        model, x = put(model), put(batch())
        few(lambda n, verb=verb, u=u: verb(model, x, two_step(n), u=u))  # noqa: B023


@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(1), sdegen.Hutchinson(3)], ids=str)
@pytest.mark.parametrize("path", marked(PATHS, "vp", "condot"))
def test_log_prob(path, trace):
    model, u = network(PATHS[path]), (0.05, 0.9)
    prior = sdegen.Gaussian(torch.zeros(2), 1.0)
    same(lambda m, x: sdegen.log_prob(m, x, two_step(8), trace=trace, u=u, prior=prior), model, batch())
    model, x = put(model), put(batch())
    few(lambda n: sdegen.log_prob(model, x, two_step(n), trace=trace, u=u, prior=prior))


@pytest.mark.parametrize("path", ["vp", "condot"])
def test_log_prob_of_a_moved_model_and_of_an_exact_one(path):
    mixture = sdegen.GaussianMixture(torch.randn(3, 2), 0.5)
    for model in (network(PATHS["ddpm"]).on(PATHS[path]), mixture.model(PATHS[path])):
        same(lambda m, x: sdegen.log_prob(m, x, two_step(8), u=(0.01, 0.8)), model, batch())
        model, x = put(model), put(batch())
        few(lambda n: sdegen.log_prob(model, x, two_step(n), u=(0.01, 0.8)))  # noqa: B023


def test_log_prob_as_it_comes():
    """dopri8, chosen by itself: counted and printed, not bounded."""
    waits = same(lambda m, x: sdegen.log_prob(m, x, u=(0.01, 0.8)), network(PATHS["vp"]), batch())
    print(f"log_prob by dopri8: {waits.total()} waits")


@pytest.mark.parametrize("path", marked(SCORED, *SCORED[:-2]))
def test_every_bound_on_every_path(path):
    path = PATHS[path]
    model, x = network(path), batch()
    same(lambda m, x: _fields(sdegen.vlb(m, x, steps=8)), model, x)
    same(lambda m, x: _fields(sdegen.continuous_vlb(m, x, draws=8)), network(path), x)
    model, x = put(network(path)), put(x)
    few(lambda n: sdegen.vlb(model, x, steps=n))
    few(lambda n: sdegen.continuous_vlb(model, x, draws=n))


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_bound_of_every_prediction(predicts):
    for verb in (
        lambda m, x: _fields(sdegen.vlb(m, x)),
        lambda m, x: sdegen.optimal_variance(m, x),
        lambda m, x: sdegen.iwae(m, x, 2).log_weights,
    ):
        same(_on_the_cpu(verb), network(CHAIN, predicts), batch())


BOUNDS = {
    "vlb": lambda m, x, n: sdegen.vlb(m, x, steps=n),
    "vlb, posterior": lambda m, x, n: sdegen.vlb(m, x, steps=n, variance="posterior"),
    "vlb, optimal": lambda m, x, n: sdegen.vlb(m, x, steps=n, variance="optimal"),
    "vlb, learned": lambda m, x, n: sdegen.vlb(m, x, steps=n, variance="learned"),
    "vlb, some steps": lambda m, x, n: sdegen.vlb(m, x, steps=20, draws=n),
    "vlb, given noise": lambda m, x, n: sdegen.vlb(m, x, steps=n, noise=torch.ones_like(x)),
    "vlb of a part": lambda m, x, n: sdegen.vlb(m, x, grid=sdegen.PowerGrid(2), steps=n, u=(0.05, 0.6)),
    "continuous_vlb": lambda m, x, n: sdegen.continuous_vlb(m, x, draws=n),
    "continuous_vlb of a part": lambda m, x, n: sdegen.continuous_vlb(m, x, draws=n, u=(0.05, 0.6)),
    "iwae": lambda m, x, n: sdegen.iwae(m, x, 2, steps=n),
    "iwae, learned": lambda m, x, n: sdegen.iwae(m, x, 2, steps=n, variance="learned"),
    "optimal_variance": lambda m, x, n: sdegen.optimal_variance(m, x, n),
    "entropy_form": lambda m, x, n: sdegen.entropy_form(m, sdegen.Gaussian([0.1, 0.2], 0.7), x, steps=n),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_no_loop_of_a_bound_waits(name):
    call = BOUNDS[name]
    same(_on_the_cpu(lambda m, x: _fields(call(m, x, 8))), learned(), batch())
    model, x = put(learned()), put(batch())
    few(lambda n: call(model, x, n))


@pytest.mark.parametrize("path", ["vp", "ve", "interpolant"])
def test_importance(path):
    """Two solves, each of half the steps that are counted."""

    def call(m, n, **options):
        return sdegen.importance(m, lambda x: -x.square().sum(1), 4, shape=(2,), solver=two_step(n // 2), **options)

    def numbers(m, x):
        found = call(m, 8, batch_size=2)
        mean = found.mean(lambda x: x[:, 0] > 0)
        return [found.samples, found.log_weights, found.effective_size, *found.log_normaliser, *mean]

    same(numbers, network(PATHS[path]), batch())
    model = put(network(PATHS[path]))
    few(lambda n: call(model, n))


def test_levels():
    x = torch.round(batch()).clamp(-2, 2)
    decoder = sdegen.Discretized(5, -2.0, 2.0)
    same(lambda m, x: _fields(sdegen.vlb(m, x, decoder=decoder)), network(CHAIN), x)
    same(lambda m, x: _fields(sdegen.continuous_vlb(m, x, decoder=decoder, draws=4)), network(CHAIN), x)


def test_reflow():
    model = network(PATHS["interpolant"], "velocity")
    same(lambda m, z: sdegen.rectify(m, z, two_step(4)), model, batch())
    same(lambda m, z: sdegen.straightness(m, z, two_step(4)), network(PATHS["condot"]), batch())
    model, z = put(model), put(batch())
    few(lambda n: sdegen.rectify(model, z, two_step(n)))
    few(lambda n: sdegen.straightness(model, z, two_step(n)))


def test_a_vector_field():
    def build(t_data, t_noise):
        return sdegen.vector_field(Net(), t_data=t_data, t_noise=t_noise)

    for ends in ((1.0, 0.0), (0.0, 2.0)):
        same(lambda m, x: sdegen.log_prob(m, x, two_step(4)), build(*ends), batch())
        same(lambda m, x: sdegen.encode(m, x, two_step(4)), build(*ends), batch())


@pytest.mark.parametrize("path", SCORED)
def test_a_prediction_never_waits(path):
    """Questions to a model at times that live there, as in a loop of the user's own."""
    for predicts in PREDICTIONS:
        for name in PREDICTIONS:
            model, x, t = network(PATHS[path], predicts), batch(), torch.linspace(0.3, 0.6, 4)
            same(lambda m, x, t, name=name: getattr(m, name)(x, t), model, x, t)
            model, x, t = put(model), put(x), put(t)
            _, waits = counted(lambda name=name: getattr(model, name)(x, t))  # noqa: B023
            assert not waits, (predicts, name, dict(waits))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_never_waits(path):
    """alpha, sigma and what follows from them, at times that live there."""
    path = PATHS[path]
    t = path.t_data + (path.t_noise - path.t_data) * torch.linspace(0.1, 0.9, 4)
    questions = {name: getattr(path, name) for name in ("alpha", "sigma", "slopes", "clock", "log_snr", "diffusion")}
    questions["drift"] = lambda t: path.drift(torch.ones(4, 2).to(t), t)
    questions["perturb"] = lambda t: path.perturb(torch.zeros_like(t)[:, None], t)
    if path.has_score:
        questions["transition"] = lambda t: path.transition(torch.full_like(t, path.t_data), t)
        questions["bridge"] = lambda t: path.bridge(torch.full_like(t, path.t_data), t)
    there = put(t)
    for name, question in questions.items():
        same(lambda _, t, question=question: tuple(question(t)), torch.nn.Identity(), t)
        _, waits = counted(lambda question=question: question(there))
        assert waits.total() == (1 if name == "drift" else 0), (name, dict(waits))


@pytest.mark.parametrize("path", PATHS)
def test_an_inverse_never_waits(path):
    u = torch.linspace(0.1, 0.9, 4)
    same(lambda _, u: (PATHS[path].time(u), PATHS[path].scale(u)), torch.nn.Identity(), u)
    there = put(u)
    _, waits = counted(lambda: PATHS[path].time(there))
    assert not waits, dict(waits)


def _fields(answer):
    """The tensors of a bound, whichever it is."""
    if isinstance(answer, (torch.Tensor, tuple)):
        return answer
    return tuple(v for v in vars(answer).values() if isinstance(v, torch.Tensor))


def _on_the_cpu(call):
    """Some answers live on the CPU wherever the data are, such as variances of the steps: compared where they are."""

    def moved(m, x):
        return [v.to(x) for v in (lambda a: a if isinstance(a, tuple) else (a,))(_fields(call(m, x)))]

    return moved
