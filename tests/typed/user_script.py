"""A user's script that names everything sdegen exports, on tiny inputs: mypy --strict reads it, and a test runs it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import sdegen
from sdegen.datasets import bits_per_dim, dequantise, digits, patches, two_moons
from sdegen.interop import Adapted, from_edm, from_flow_matching, from_torchcfm
from sdegen.nets import MLP, UNet


class Mine(sdegen.GaussianPath):
    """A path of my own: VPSDE with a constant beta of 8."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(-4 * torch.as_tensor(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-8 * torch.as_tensor(t)))

    def slopes(self, t: float | Tensor) -> sdegen.Slopes:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return sdegen.Slopes(-4 * alpha, 4 * alpha**2 / sigma, 8 * alpha**2)


class TwoHeads(nn.Module):
    """A network that also answers for its variance: twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(4, hidden=8, depth=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.net(torch.cat([x, x], 1), t)
        return answer


@dataclass(frozen=True)
class Heun(sdegen.Solver):
    """A solver of my own, on the library's loop."""

    steps: int
    solves_ode = True

    def run(self, problem: sdegen.Problem) -> sdegen.Result:
        u, t = problem.knots(sdegen.PowerGrid(1.5), self.steps)

        def step(k: int, y: Tensor, ask: sdegen.Ask) -> Tensor:
            h = u[k + 1] - u[k]
            slope = ask(y, u[k])
            return y + 0.5 * h * (slope + ask(y + h * slope, u[k + 1]))

        return sdegen.march(problem, u, t, step)


@dataclass(frozen=True)
class Bashforth(sdegen.Solver):
    """A multistep scheme of one's own: Adams-Bashforth on equal steps."""

    steps: int
    solves_ode = True

    def run(self, problem: sdegen.Problem) -> sdegen.Result:
        """March with a memory."""
        u, t = problem.knots(sdegen.PowerGrid(1), self.steps)

        def step(k: int, y: Tensor, ask: sdegen.Ask, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            slope = ask(y, u[k])
            before = memory[0] if memory else slope
            return y + (u[k + 1] - u[k]) * (1.5 * slope - 0.5 * before), (slope,)

        return sdegen.march(problem, u, t, step, memory=())


class Shrunk(sdegen.Wrapped):
    """A model of my own: another model's slope, a little less of it."""

    def change(
        self, D: Callable[..., Tensor], y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]
    ) -> Tensor:
        return 0.9 * D(y, cond=cond)


def steered(model: sdegen.Model) -> list[sdegen.Model]:
    """Models that steer a model."""
    free = sdegen.ClassifierFree(model, lambda u: 1 + 2 * (u > 0.5), {"label": 0}, rescale=0.5)
    guided = sdegen.Guided(model, lambda x, t: -x.square().sum(1), 0.5, of="data")
    observed = sdegen.Observed(model, torch.eye(2), torch.zeros(2), 0.1, "pigdm", iterations=2)
    return [free, guided, observed, sdegen.Clipped(model, -1, 1.0, quantile=0.99)]


def paths() -> list[sdegen.GaussianPath]:
    """Every path, and what a path answers."""
    betas = torch.linspace(1e-3, 0.3, 8)
    diffusions = [sdegen.VPSDE(), sdegen.SubVPSDE(), sdegen.VESDE(), sdegen.CosineVPSDE(), sdegen.DDPM(betas), Mine()]
    diffusions += [sdegen.EDM(), sdegen.DDPM([0.1, 0.3, 1.0])]
    flows = [sdegen.CondOT(), sdegen.Trigonometric(), sdegen.Retimed(sdegen.CondOT(), 0.0, 1.0)]
    for path in [*diffusions, *flows]:
        x_t, eps = path.perturb(torch.randn(4, 2), 0.5)
        u: Tensor | float = path.clock(torch.tensor(0.5))
        drift: Tensor = path.drift(x_t, 0.5)
        assert x_t.shape == eps.shape == drift.shape
        assert float(u) > 0
    return [*diffusions, *flows]


def exact() -> None:
    """Closed forms: densities, samples, models on any path."""
    mixture = sdegen.GaussianMixture(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 0.3, [0.5, 0.5])
    gaussian = sdegen.Gaussian([0.0, 1.0], covariance=torch.eye(2))
    for path in paths():
        model: sdegen.Model = mixture.model(path)
        score: Tensor = model.score(mixture.sample(4), 0.5)
        assert bool(score.isfinite().all())
    path = sdegen.DDPM.linear(8)
    x = gaussian.sample(4)
    form: sdegen.EntropyForm = sdegen.entropy_form(gaussian.model(path), gaussian, x)
    total: float = form.total
    assert math.isfinite(total)


def train(model: sdegen.ScoreModel, x: Tensor) -> None:
    """Losses with every weighting, every times and every coupling that is independent."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    loss: Tensor = sdegen.loss(model, x)
    loss = loss + sdegen.loss(model, x, weighting=sdegen.MinSNR(), times=sdegen.UniformTimes())
    loss = loss + sdegen.loss(model, x, weighting=sdegen.LikelihoodWeighting(), times=sdegen.LikelihoodTimes())
    loss = loss + sdegen.loss(model, x, times=sdegen.LowDiscrepancyTimes(), coupling=sdegen.Independent())
    loss = loss + sdegen.loss(model, x, times=sdegen.ClockTimes())
    loss = loss + sdegen.loss(model, x, times=sdegen.LogNormalTimes(), weighting=sdegen.EDMWeighting())
    loss = loss + sdegen.loss(model, x, times=sdegen.ChainTimes(8), generator=torch.Generator().manual_seed(0))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    seen: list[tuple[int, float]] = []
    averaged: sdegen.ScoreModel = sdegen.fit(
        model,
        x.numpy(),
        steps=2,
        batch_size=4,
        optimizer=(optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser)),
        validation=(x, None),
        progress=False,
        log=lambda step, numbers: seen.append((step, numbers["loss"])),
    )
    assert not averaged.training
    assert len(seen) == 1


class Discriminator(nn.Module):
    """A logit: one number per row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(2, hidden=8, depth=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.net(x, t)
        return answer.sum(1)


def ratios(model: sdegen.ScoreModel, x: Tensor) -> None:
    """Real samples told from fakes: a discriminator that guides, its divergence, and a contrastive bound."""
    fake, net = sdegen.sample(model, (2 * len(x), 2), sdegen.Adams(4)), Discriminator()
    loss: Tensor = sdegen.ratio_loss(net, x, fake, model.path, generator=torch.Generator().manual_seed(0))
    loss = loss + sdegen.ratio_loss(lambda x: x.sum(1), x, fake)
    loss = loss + sdegen.contrastive_loss(lambda x: x.sum(1), x, fake.unflatten(0, (2, -1)))
    loss.backward()
    found: sdegen.Estimate = sdegen.jsd(lambda x: net(x, torch.zeros(len(x))), x, fake)
    guided: sdegen.Guided = sdegen.Guided(model, net)
    assert found.value.shape == found.standard_error.shape == ()
    assert guided.eps(x, 0.5).shape == x.shape


def sample(model: sdegen.ScoreModel) -> None:
    """Every solver; the ODE both ways; a solve with everything it returns."""
    shape, grid = (4, 2), sdegen.PowerGrid(2)
    x: Tensor = sdegen.sample(model, shape, sdegen.SDESolver("euler", 4), generator=torch.Generator().manual_seed(0))
    x = sdegen.sample(model, shape, sdegen.SDESolver("srk", 4, grid=grid, w=lambda u: (2 * u).sqrt()))
    x = sdegen.sample(model, shape, sdegen.ODESolver("dopri5", rtol=1e-2), u=(0.9, 0.0), x_T=torch.randn(shape))
    x = sdegen.sample(model, shape, sdegen.Ancestral(4))
    x = sdegen.sample(model, shape, sdegen.DDIM(4, eta=0.5))
    ode = sdegen.ODESolver("rk4", steps=2)
    z: Tensor = sdegen.encode(model, x, ode)
    x = sdegen.decode(model, z, ode)
    x = sdegen.decode(Shrunk(model).on(sdegen.CondOT()), z, Heun(4), u=(0.8, 0.1))
    solution: sdegen.Solution = sdegen.solve(model, z, ode, trajectory=True)
    sdegen.decode(model, z, Bashforth(2), differentiable=True, checkpoint_every=2).sum().backward()
    calls: int = solution.calls
    assert calls == 8
    clocks: list[float] = []

    def told(k: int, u: float, x: Tensor, x_hat: Tensor) -> None:
        clocks.append(u + 0 * k + float((x - x_hat).sum()))

    sdegen.solve(model, z, sdegen.Adams(4), callback=told)
    assert len(clocks) == 4
    x_hat, eps_hat = model.denoise(x, 0.5)
    assert x_hat.shape == eps_hat.shape
    own: Tensor | None = sdegen.solve(model, z, sdegen.ODESolver("dopri5", rtol=1e-2, steps_for="sample")).sample_calls
    assert own is not None
    assert own.shape == (4,)
    try:
        sdegen.sample(sdegen.ScoreModel(lambda x, t: x / 0, model.path), shape, sdegen.Ancestral(4))
    except sdegen.NonFiniteError as error:
        print(f"refused, as it should be: {error}")


def leaves() -> None:
    """Without an import of their own; a name that is not there is an error of types too."""
    net: sdegen.nets.MLP = sdegen.nets.MLP(2)
    x = sdegen.datasets.two_moons(8)
    print(net(x, torch.zeros(8)).shape, sdegen.interop.diffusers.spacing.__name__, sdegen.plot.__name__)
    to_source: Callable[[nn.Module], sdegen.interop.zuko.FlowSource] = sdegen.interop.zuko.source
    to_law: Callable[[object], sdegen.GaussianMixture] = sdegen.interop.sklearn.from_mixture
    for call in (to_source, to_law):
        with contextlib.suppress(TypeError, ImportError):  # where what they take is not installed
            call(net)
    with contextlib.suppress(AttributeError):
        sdegen.smaple  # type: ignore[attr-defined]  # noqa: B018


class Leapfrog(sdegen.Multistep):
    """A multistep scheme of rows, and grids for it."""

    solves_ode = True

    def predictor(self, knots: sdegen.Layout) -> list[sdegen.Row]:
        """Adams-Bashforth of order 2 on equal steps, after one of Euler's."""
        h = float(knots.u[1] - knots.u[0])
        return [sdegen.Row(1.0, [h])] + [sdegen.Row(1.0, [1.5 * h, -0.5 * h])] * (len(knots.u) - 2)


@dataclass(frozen=True, eq=False)
class Ralston(sdegen.OneStep):
    """A one-step scheme of rows."""

    solves_ode = True

    def stages(self, u: float, v: float) -> list[sdegen.Stage]:
        """Two thirds of the step, and the step."""
        h = v - u
        ahead = sdegen.Stage(u + 2 / 3 * h, sdegen.Row(1.0, [2 / 3 * h]))
        return [ahead, sdegen.Stage(v, sdegen.Row(1.0, [0.75 * h, 0.25 * h]))]


class Twice(sdegen.Renoised):
    """Every step again, from where it began."""

    def legs(self, knots: Sequence[float], top: float) -> list[list[float]]:
        """Down, up and down, one step after another."""
        return [[u, v] for u, v in pairwise(knots) for _ in range(2)]


def known_schemes(model: sdegen.ScoreModel) -> None:
    """The schemes that others have, and what goes around them."""
    ode: list[sdegen.Solver] = [sdegen.DPMSolver(4, 3), sdegen.UniPC(4), sdegen.DEIS(4, 2), sdegen.Heun(4), Ralston(4)]
    sde: list[sdegen.Solver] = [sdegen.DPMSolver(4, eta=1.0), sdegen.SASolver(4, 3, corrector_order=4)]
    around: list[sdegen.Renoised] = [
        sdegen.Churn(sdegen.Heun(4), 10.0, sigma_min=0.05, sigma_max=50.0, noise_scale=1.003),
        sdegen.Langevin(sdegen.DPMSolver(4, 1), 0.16, times=2),
        sdegen.Restart(sdegen.UniPC(4), 0.2, 0.6, times=2),
        Twice(sdegen.Heun(4)),
    ]
    for solver in [*ode, *sde, *around]:
        x: Tensor = sdegen.sample(model, (4, 2), solver)
        assert bool(x.isfinite().all())


def few_calls(model: sdegen.ScoreModel) -> None:
    """Adams' methods, their grids, a scheme of one's own; a warning where steps are too long."""
    grids: list[sdegen.Grid] = [sdegen.StretchedGrid(0.5, gain=1.0), sdegen.KarrasGrid(7.0), sdegen.PowerGrid(2, "t")]
    for grid in grids:
        x: Tensor = sdegen.sample(model, (4, 2), sdegen.Adams(6, order=2, grid=grid))
    z: Tensor = sdegen.encode(model, x, sdegen.Adams(4))
    x = sdegen.decode(model, z, Leapfrog(4, grid=sdegen.PowerGrid(1)))
    x = sdegen.sample(model, (4, 2), sdegen.StochasticAdams(4, order=1, eta=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdegen.AccuracyWarning)
        sdegen.SDESolver("srk", 4)
    assert x.shape == z.shape


def choose(model: sdegen.ScoreModel, x: Tensor) -> None:
    """Solvers compared on a model of my own, and one tuned to it."""
    solvers: dict[str, Callable[[int], sdegen.Solver]] = {"Adams": sdegen.Adams, "mine": Heun}
    compared: sdegen.Comparison = sdegen.compare(model, solvers, x_T=torch.randn(4, 2), calls=(2, 3), data=x)
    error: float | None = compared.rows[0].error
    tuned: sdegen.Adams = sdegen.tune(model, sdegen.Adams(2), torch.randn(4, 2))
    distance: float = sdegen.energy_distance(sdegen.sample(model, (8, 2), tuned), x)
    assert error is not None
    assert math.isfinite(error + distance)
    print(compared)


def read(model: sdegen.ScoreModel, x: Tensor) -> None:
    """Every likelihood and every bound."""
    ode = sdegen.ODESolver("rk4", steps=2)
    logp: Tensor = sdegen.log_prob(model, x, ode)
    logp = sdegen.log_prob(model, x, ode, trace=sdegen.Hutchinson(probes=2))
    scored: sdegen.LogLikelihood = sdegen.log_likelihood(
        model, x, sdegen.AdamsUntil(50.0, first=8, max_steps=16), trace=sdegen.Exact(chunk=1), data=x
    )
    print(scored.log_prob, scored.latent, scored.error, scored.unknown, scored.calls, scored.kind)
    variance: Tensor = sdegen.optimal_variance(model, x, 8)
    bound: sdegen.VLB = sdegen.vlb(model, x, steps=8, variance=variance)
    limit: sdegen.VLB = sdegen.continuous_vlb(model, x.round(), decoder=sdegen.Discretized(9, -4.0, 4.0), draws=4)
    tighter: sdegen.IWAE = sdegen.iwae(model, x, 2, steps=8)
    part: sdegen.VLB = sdegen.continuous_vlb(model, x, u=(0.05, 0.9), draws=4)
    kinds: set[str] = {bound.kind, tighter.kind}
    assert kinds == {"bound"}
    weighted: sdegen.Importance = sdegen.importance(model, lambda y: -y.square().sum(1), 4, shape=(2,), solver=ode)
    moment: sdegen.Estimate = weighted.mean(lambda y: y**2)
    log_normaliser, its_error = weighted.log_normaliser
    assert moment.value.shape == (2,)
    assert float(weighted.effective_size) <= 4.1
    assert math.isfinite(float(log_normaliser + its_error))
    held_out: sdegen.Evaluation = sdegen.evaluate(model, x, solver=ode, batch_size=4)
    low, high = held_out.interval
    assert held_out.complete
    assert low <= held_out.mean <= high
    print(held_out)
    found = [logp, bound.total, limit.bits_per_dim, tighter.log_prob, part.cross_entropy]
    assert all(values.shape == (len(x),) for values in found)
    heads = sdegen.ScoreModel(TwoHeads(), sdegen.DDPM.linear(8), learns_variance=True)
    hybrid: Tensor = sdegen.hybrid_loss(heads, x)
    assert hybrid.ndim == 0


def latent(model: sdegen.ScoreModel, x: Tensor) -> None:
    """A model of latents, trained and scored."""
    autoencoder = sdegen.LatentModel(lambda x: (x, 0 * x + 0.5), lambda z: (z, 0 * z + 1), model, latent_shape=(2,))
    loss: Tensor = autoencoder.loss(x, draws=2)
    divergence: sdegen.Bound = sdegen.score_kl(x, torch.full_like(x, 0.5), model, draws=4)
    solver = sdegen.ODESolver("rk4", steps=2)
    elbo: sdegen.Bound = autoencoder.elbo(x, draws=2, solver=solver)
    tighter: sdegen.IWAE = autoencoder.iwae(x, 2, solver=solver)
    assert loss.ndim == 0
    assert divergence.value.shape == elbo.value.shape == tighter.log_prob.shape
    assert autoencoder.sample(3, sdegen.Adams(3)).shape == (3, 2)


def many(model: sdegen.ScoreModel, directory: str) -> None:
    """Samples on the disk, and the same ones in memory."""
    samples: sdegen.Samples = sdegen.sample_many(model, (9, 2), sdegen.Adams(3), directory=directory, batch_size=4)
    generators: list[torch.Generator] = sdegen.seeds(9)
    x: Tensor = sdegen.sample(model, samples.shape, sdegen.Adams(3), generator=generators, batch_size=4, progress=False)
    one, several, chunk = samples[-1], samples[2:5], next(samples.chunks())
    assert samples.complete
    assert len(samples.paths) == 3
    assert one.shape == (2,)
    assert several.shape == (3, 2)
    assert torch.allclose(samples.tensor(), x, atol=1e-5)
    assert torch.allclose(chunk, x[:4], atol=1e-5)
    assert samples.dtype is x.dtype


def flow(x: Tensor) -> None:
    """Couplings, reflow, vector fields, moved models, networks of other libraries."""
    straight = sdegen.Interpolant(sdegen.CondOT())
    model = sdegen.ScoreModel(MLP(2, hidden=8, depth=1), straight, predicts="velocity")
    loss: Tensor = sdegen.loss(model, x, coupling=sdegen.OptimalTransport())
    z = torch.randn_like(x)
    pairs: Tensor = sdegen.rectify(model, z, sdegen.ODESolver("euler", steps=2))
    bend: Tensor = sdegen.straightness(model, z, sdegen.ODESolver("rk4", steps=2))
    field: sdegen.ScoreModel = sdegen.vector_field(lambda x, t: -x, prior=sdegen.Gaussian([0.0, 0.0], 1.0))
    ended: Tensor = sdegen.decode(field, z, sdegen.ODESolver("rk4", steps=2))
    assert loss.ndim == 0
    assert pairs.shape == ended.shape == x.shape
    assert bend.shape == (len(x),)
    net = MLP(2, hidden=8, depth=1)
    theirs: list[sdegen.ScoreModel] = [from_torchcfm(Adapted(net, time_last)), from_flow_matching(net)]
    theirs.append(from_edm(sdegen.Preconditioned(net, sigma_data=1.0), sigma_min=0.002, sigma_max=80.0))
    assert all(isinstance(one, sdegen.Model) for one in theirs)


def time_last(net: nn.Module, t: Tensor, x: Tensor) -> Tensor:
    """net(x, t), for a library that calls net(t, x)."""
    answer: Tensor = net(x, t)
    return answer


def images() -> None:
    """A conditional network on dequantised digits, and one condition for the whole batch."""
    levels, labels = digits("test")
    x, cond = dequantise(levels[:4]), {"label": labels[:4]}
    model = sdegen.ScoreModel(UNet(width=8, classes=10), sdegen.VPSDE(), predicts="v")
    loss: Tensor = sdegen.loss(model, x, cond=cond)
    shared = sdegen.ScoreModel(scaled_mlp(), sdegen.VPSDE(), predicts="eps")
    units = sdegen.Standardize.of(x)
    own = sdegen.ScoreModel(UNet(width=8, classes=10), sdegen.VPSDE(), "v", standardize=units)
    there: Tensor = sdegen.loss(own, units.inverse(x), cond=cond, mask=x > -1)
    assert own.standardize is units
    assert there.ndim == 0
    sdegen.sample(shared, (4, 2), sdegen.Ancestral(2), cond={"scales": sdegen.Shared(torch.ones(4))})
    logp = sdegen.log_prob(model, x[:1], sdegen.ODESolver("euler", steps=1), cond={"label": labels[:1]})
    bits: Tensor = bits_per_dim(logp, x.shape[1:])
    colours: Tensor = patches("test", size=8, stride=8)
    assert loss.ndim == 0
    assert bits.shape == (1,)
    assert colours.shape[1:] == (3, 8, 8)


class Tilted:
    """A law of my own for where in its cell a value lies: r(u | n) is the product of 2 u_i."""

    def sample(
        self, n: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One draw."""
        u = (1 - torch.rand_like(n)).sqrt().clamp(max=0.999)
        return u, (2 * u).log().sum(1)


def quantised(model: sdegen.ScoreModel) -> None:
    """Whole numbers, the cells that stand for them, and the probability of the numbers themselves."""
    q, n = sdegen.Quantized(8, -2.0, 2.0), torch.tensor([[1, 6], [3, 4]])
    y: Tensor = q.dequantise(n, torch.Generator().manual_seed(0))
    assert torch.equal(q.quantise(y), n.to(y))
    ode = sdegen.ODESolver("rk4", steps=2)
    bits: Tensor = q.bits_per_dim(sdegen.log_prob(model, y, ode), 2)
    bound: sdegen.DiscreteLogProb = sdegen.discrete_log_prob(model, n, q, draws=4, dequantiser=Tilted(), solver=ode)
    error: Tensor | None = bound.standard_error
    decoder: sdegen.Discretized = sdegen.Quantized.centred(8, -2.0, 2.0).decoder
    assert error is not None
    assert bits.shape == bound.bits_per_dim.shape == error.shape == (2,)
    assert decoder.levels == 8


def kept(model: sdegen.ScoreModel) -> None:
    """A checkpoint: the model, the state of its training, and both again."""
    optimizer = torch.optim.Adam(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.safetensors"
        sdegen.save(file, model, optimizer=optimizer.state_dict(), step=3)
        again: sdegen.ScoreModel = sdegen.load(file, MLP(2, hidden=8, depth=1))
        state: dict[str, object] = sdegen.load_state(str(file))
    assert again.predicts == model.predicts
    assert state["step"] == 3


def scaled_mlp() -> Callable[..., Tensor]:
    """A network with a condition that is one for all samples."""
    net = MLP(2, hidden=8, depth=1)

    def call(x: Tensor, t: Tensor, scales: Tensor) -> Tensor:
        answer: Tensor = net(x, t)
        return answer * scales.mean()

    return call


def main() -> None:
    """All of it, once."""
    torch.manual_seed(0)
    print(f"sdegen {sdegen.__version__}")
    x = two_moons(8)
    model = sdegen.ScoreModel(MLP(2, hidden=8, depth=1), sdegen.VPSDE(), predicts="eps")
    exact()
    train(model, x)
    ratios(model, x)
    sample(model)
    known_schemes(model)
    few_calls(model)
    choose(model, x)
    read(model, x)
    latent(model, x)
    flow(x)
    images()
    quantised(model)
    kept(model)
    assert len(steered(model)) == 4
    with tempfile.TemporaryDirectory() as directory:
        many(model, directory)
    leaves()


if __name__ == "__main__":
    main()
