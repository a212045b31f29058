"""A condition for each sample: every row of every verb is that of an unconditional network with its condition built in.

The network's answer is the exact eps of a Gaussian of its own for each label, in closed form and elementwise, so that
the rows of a batch meet only where a verb mixes them. `ROWS` holds what depends on the samples alone, `BATCH` what the
batch decides together; there all samples have one label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

import sdegen

VP, CHAIN = sdegen.VPSDE(), sdegen.DDPM.linear(6, 0.05, 0.4)
MEANS, STDS = torch.tensor([-1.0, 0.4, 1.5]).double(), torch.tensor([0.3, 0.6, 1.2]).double()
DATA = sdegen.Gaussian([0.2, -0.3], 0.7)
B, STEPS = 4, 6
LABELS = torch.tensor([2, 0, 1, 2])
EVERY = list(range(B))

Cond = Mapping[str, Tensor] | None
Answer = Callable[[sdegen.Model, Sequence[int], Cond], Tensor]


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


X, Z, EPS, PAIRS = (
    normals(B, 2),
    normals(1, B, 2)[0],
    normals(STEPS, 1, B, 2)[:, 0],
    normals(STEPS, 2, 1, B, 2)[:, :, 0],
)


def network(path: sdegen.GaussianPath, doubled: bool = False) -> Callable[..., Tensor]:
    """eps of N(mean, std^2) of every row's label; `doubled`, with a place for the variance that the label moves too."""

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        mean, std = MEANS[label][:, None], STDS[label][:, None]
        eps = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return torch.cat([eps, torch.tanh(x + mean)], 1) if doubled else eps

    return net


def conditional(path: sdegen.GaussianPath, doubled: bool = False) -> sdegen.ScoreModel:
    return sdegen.ScoreModel(network(path, doubled), path, learns_variance=doubled)


def fixed(path: sdegen.GaussianPath, label: int, doubled: bool = False) -> sdegen.ScoreModel:
    """The same network with one label built in."""
    net = network(path, doubled)
    own = torch.tensor([label])
    return sdegen.ScoreModel(lambda x, t: net(x, t, own.expand(len(x))), path, learns_variance=doubled)


def generators(rows: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + i) for i in rows]


# Every verb as an answer to (model, rows of the batch, their conditions)


def solved(solver: object, to: str = "data", on: sdegen.GaussianPath | None = None) -> Answer:
    """The end point; of a fixed grid every state, and of an adaptive one the number of steps too."""
    method = getattr(solver, "method", "")
    given = None if solver.solves_ode else PAIRS if method == "srk" else EPS
    many = given is not None or solver.steps is not None

    def answer(model: sdegen.Model, rows: Sequence[int], cond: Cond) -> Tensor:
        model = model if on is None else model.on(on)
        u = None if on is None else (0.9, 0.1) if to == "data" else (0.1, 0.9)
        noise = None if given is None else given[..., rows, :]
        solution = sdegen.solve(model, X[rows], solver, to=to, u=u, noise=noise, cond=cond, trajectory=many)
        return solution.trajectory.transpose(0, 1) if many else solution.x

    return answer


def sampled(solver: object) -> Answer:
    def answer(model: sdegen.Model, rows: Sequence[int], cond: Cond) -> Tensor:
        shape, noise = (len(rows), 2), None if solver.solves_ode else EPS[:, rows]
        given = sdegen.sample(model, shape, solver, x_T=X[rows], noise=noise, cond=cond, dtype=torch.float64)
        own = sdegen.sample(model, shape, solver, generator=generators(rows), cond=cond, dtype=torch.float64)
        return torch.cat([given, own], 1)

    return answer


def verb(call: Callable[..., Tensor], *options: object, **more: object) -> Answer:
    """A verb of data or latents, (model, x, ..., cond=) -> (B, ...)."""
    return lambda model, rows, cond: call(model, X[rows], *options, cond=cond, **more)


def seeded(call: Callable[..., Tensor], *options: object, **more: object) -> Answer:
    """The same, with a generator for each sample."""
    return lambda model, rows, cond: call(model, X[rows], *options, cond=cond, generator=generators(rows), **more)


def noisy(call: Callable[..., Tensor], *options: object, **more: object) -> Answer:
    """The same, with the noise given."""
    return lambda model, rows, cond: call(model, X[rows], *options, cond=cond, noise=Z[rows], **more)


def terms(*arguments: object, **options: object) -> Tensor:
    bound = sdegen.vlb(*arguments, **options)
    return torch.cat([bound.prior[:, None], bound.transitions, bound.decoder[:, None]], 1)


def continuous_terms(*arguments: object, **options: object) -> Tensor:
    bound = sdegen.continuous_vlb(*arguments, draws=4, **options)
    return torch.cat([bound.transitions, bound.decoder[:, None]], 1)


def weights(*arguments: object, **options: object) -> Tensor:
    return sdegen.iwae(*arguments, **options).log_weights


def entropy_terms(model: sdegen.Model, x: Tensor, **options: object) -> Tensor:
    return sdegen.entropy_form(model, DATA, x, **options).model


def queries(model: sdegen.Model, x: Tensor, cond: Cond) -> Tensor:
    t = 0.4 + 0.1 * x[:, 0].tanh()
    names = ("eps", "score", "data", "velocity", "v")
    return torch.cat([model(x, t, cond), *(getattr(model, name)(x, t, cond) for name in names)], 1)


RK4, TIGHT = sdegen.ODESolver("rk4", steps=STEPS), sdegen.ODESolver("dopri8", rtol=1e-9)
ADAPTIVE = {"dopri5": 1e-8, "dopri8": 1e-9, "bosh3": 1e-7, "fehlberg2": 1e-5, "adaptive_heun": 1e-5}
SDE_METHODS = ("euler", "milstein", "euler_heun", "srk", "midpoint", "heun", "log_ode")
SOLVERS = {  # towards noise the SDE of eta = 1 asks nothing of the model
    **{method: sdegen.SDESolver(method, STEPS, eta=0.6) for method in SDE_METHODS},
    "reversible_heun": sdegen.SDESolver("reversible_heun", STEPS, eta=0.3),
    **{f"ode {m}": sdegen.ODESolver(m, steps=STEPS) for m in ("euler", "midpoint", "heun2", "heun3", "rk4")},
}
CHAINS = {
    "ancestral beta": sdegen.Ancestral(STEPS),
    "ancestral posterior": sdegen.Ancestral(STEPS, variance="posterior"),
    "ancestral of given variances": sdegen.Ancestral(STEPS, variance=torch.linspace(0.01, 0.2, STEPS)),
    "ddim": sdegen.DDIM(STEPS),
    "ddim 0.5": sdegen.DDIM(STEPS, eta=0.5),
}
LEARNED = sdegen.Ancestral(STEPS, variance="learned")
ROWS: dict[str, tuple[Answer, sdegen.GaussianPath, bool]] = {
    **{f"{name} to {to}": (solved(s, to), VP, False) for name, s in SOLVERS.items() for to in ("data", "noise")},
    **{f"{name} on another path": (solved(s, on=sdegen.CondOT()), VP, False) for name, s in SOLVERS.items()},
    **{name: (solved(s), VP, False) for name, s in CHAINS.items()},
    **{f"{name} on a chain": (solved(s), CHAIN, False) for name, s in CHAINS.items()},
    "ancestral learned": (solved(LEARNED), CHAIN, True),
    **{f"sample by {name}": (sampled(s), VP, False) for name, s in CHAINS.items()},
    "sample by learned variances": (sampled(LEARNED), CHAIN, True),
    "sample by the sde": (sampled(SOLVERS["euler"]), VP, False),
    "sample by the ode": (sampled(RK4), VP, False),
    "encode": (verb(sdegen.encode, RK4), VP, False),
    "decode": (verb(sdegen.decode, RK4), VP, False),
    "log_prob": (verb(sdegen.log_prob, RK4, trace="exact"), VP, False),
    "log_prob by probes": (seeded(sdegen.log_prob, RK4, trace=sdegen.Hutchinson(2)), VP, False),
    "log_prob on another path": (
        lambda model, rows, cond: sdegen.log_prob(model.on(sdegen.CondOT()), X[rows], RK4, cond=cond, u=(0.05, 0.9)),
        VP,
        False,
    ),
    "rectify": (verb(sdegen.rectify, RK4), VP, False),
    "straightness": (verb(sdegen.straightness), VP, False),
    "queries": (verb(queries), VP, False),
    "queries of a chain": (verb(queries), CHAIN, True),
    "loss": (noisy(sdegen.loss, t=0.3, reduction="none"), VP, False),
    "loss at drawn times": (seeded(sdegen.loss, times=sdegen.ChainTimes(), reduction="none"), CHAIN, False),
    "loss by likelihood": (
        noisy(sdegen.loss, t=0.3, weighting=sdegen.LikelihoodWeighting(), reduction="none"),
        VP,
        False,
    ),
    "vlb beta": (noisy(terms), CHAIN, False),
    "vlb posterior": (noisy(terms, variance="posterior"), CHAIN, False),
    "vlb learned": (noisy(terms, variance="learned"), CHAIN, True),
    "vlb in batches": (noisy(terms, batch_size=3), CHAIN, False),
    "vlb in batches of one, drawn": (seeded(terms, draws=4, batch_size=1), CHAIN, False),
    "vlb of a path in steps": (noisy(terms, steps=STEPS), VP, False),
    "continuous_vlb": (seeded(continuous_terms), VP, False),
    "continuous_vlb in batches": (seeded(continuous_terms, batch_size=3), CHAIN, False),
    "iwae": (seeded(weights, 3), CHAIN, False),
    "iwae in batches": (seeded(weights, 3, batch_size=3), CHAIN, False),
    "iwae learned": (seeded(weights, 3, variance="learned"), CHAIN, True),
    "entropy_form": (noisy(entropy_terms), CHAIN, False),
}
LOOSE = {
    **{
        f"ode {m} to {to}": solved(sdegen.ODESolver(m, rtol=r), to)
        for m, r in ADAPTIVE.items()
        for to in ("data", "noise")
    },
    "encode, adaptive": verb(sdegen.encode, TIGHT),
    "decode, adaptive": verb(sdegen.decode, TIGHT),
    "log_prob, adaptive": verb(sdegen.log_prob, TIGHT),
    "rectify, adaptive": verb(sdegen.rectify, TIGHT),
}


def alone(answer: Answer, path: sdegen.GaussianPath, doubled: bool) -> Tensor:
    """Row by row, the answers of unconditional networks."""
    return torch.cat([answer(fixed(path, int(LABELS[i]), doubled), [i], None) for i in EVERY])


@pytest.mark.parametrize("case", ROWS)
def test_every_row_is_that_of_its_own_condition(case):
    answer, path, doubled = ROWS[case]
    model = conditional(path, doubled)
    ours = answer(model, EVERY, {"label": LABELS})
    torch.testing.assert_close(ours, alone(answer, path, doubled), rtol=1e-10, atol=1e-11)
    other = answer(model, EVERY, {"label": (LABELS + 1) % 3})
    assert float((other - ours).abs().reshape(B, -1).amax(1).min()) > 1e-3  # no row is the same under another label


@pytest.mark.parametrize("case", LOOSE)
def test_every_row_is_that_of_its_own_condition_to_a_tolerance(case):
    """Adaptive steps are shared by the batch, so that rows agree as well as the solver solves."""
    ours = LOOSE[case](conditional(VP), EVERY, {"label": LABELS})
    name = case.split()[1]
    tolerance = 30 * ADAPTIVE.get(name, 1e-9)
    torch.testing.assert_close(ours, alone(LOOSE[case], VP, False), rtol=tolerance, atol=tolerance)


# Means over the batch, and what the batch decides together


MEANS_OF_ROWS: dict[str, tuple[Answer, bool]] = {
    "hybrid_loss": (seeded(sdegen.hybrid_loss, weight=1.0), True),
    "loss": (seeded(sdegen.loss), False),
    "optimal_variance": (noisy(sdegen.optimal_variance), False),
    "optimal_variance in batches": (noisy(sdegen.optimal_variance, batch_size=3), False),
}


@pytest.mark.parametrize("case", MEANS_OF_ROWS)
def test_averages_are_those_of_the_rows_alone(case):
    answer, doubled = MEANS_OF_ROWS[case]
    model = conditional(CHAIN, doubled)
    ours = answer(model, EVERY, {"label": LABELS})
    rows = [answer(fixed(CHAIN, int(LABELS[i]), doubled), [i], None) for i in EVERY]
    torch.testing.assert_close(ours, torch.stack(rows).mean(0), rtol=1e-10, atol=1e-12)
    assert float((answer(model, EVERY, {"label": (LABELS + 1) % 3}) - ours).abs().max()) > 1e-3


def adaptive_sde(method: str) -> Answer:
    def answer(model: sdegen.Model, rows: Sequence[int], cond: Cond) -> Tensor:
        solver = sdegen.SDESolver(method, adaptive=True, rtol=0.05, atol=0.05)
        return sdegen.solve(model, X[rows], solver, generator=torch.Generator().manual_seed(1), cond=cond).x

    return answer


OPTIMAL = sdegen.Ancestral(STEPS, variance="optimal")
BATCH: dict[str, tuple[Answer, sdegen.GaussianPath]] = {
    **{f"adaptive {method}": (adaptive_sde(method), VP) for method in ("euler", "srk", "heun")},
    "ancestral optimal": (solved(OPTIMAL), CHAIN),
    "ancestral optimal on a path": (solved(OPTIMAL), VP),
    "vlb optimal": (noisy(terms, variance="optimal"), CHAIN),
    "vlb optimal in batches": (noisy(terms, variance="optimal", batch_size=3), CHAIN),
    "iwae optimal": (seeded(weights, 2, variance="optimal"), CHAIN),
    "entropy_form optimal": (noisy(entropy_terms, variance="optimal"), CHAIN),
}


@pytest.mark.parametrize("case", BATCH)
def test_a_batch_of_one_condition_is_that_of_a_network_that_has_it_built_in(case):
    answer, path = BATCH[case]
    for label in range(3):
        ours = answer(conditional(path), EVERY, {"label": torch.full((B,), label)})
        torch.testing.assert_close(ours, answer(fixed(path, label), EVERY, None), rtol=1e-10, atol=1e-11)


ALL: dict[str, tuple[Answer, sdegen.GaussianPath, bool]] = {
    **ROWS,
    **{case: (answer, VP, False) for case, answer in LOOSE.items()},
    **{case: (answer, CHAIN, doubled) for case, (answer, doubled) in MEANS_OF_ROWS.items()},
    **{case: (answer, path, False) for case, (answer, path) in BATCH.items()},
}


@pytest.mark.parametrize("case", ALL)
def test_what_is_shared_arrives_whole_and_what_is_written_into_is_a_copy(case):
    """A table with as many rows as the batch, in which each sample's condition is looked up, and a scratch pad."""
    answer, path, doubled = ALL[case]
    net, table, scratch = network(path, doubled), torch.tensor([1, 2, 0, 1]), torch.zeros(B)

    def looking_up(x: Tensor, t: Tensor, label: Tensor, table: Tensor, scratch: Tensor) -> Tensor:
        scratch += 1
        return net(x, t, table[label])

    model = sdegen.ScoreModel(looking_up, path, learns_variance=doubled)
    ours = answer(model, EVERY, {"label": LABELS, "table": sdegen.Shared(table), "scratch": scratch})
    assert torch.equal(ours, answer(conditional(path, doubled), EVERY, {"label": table[LABELS]}))
    assert torch.equal(scratch, torch.zeros(B))


def test_a_condition_made_in_inference_mode_serves_a_log_density():
    """Autograd keeps what multiplies the state; a tensor made in inference mode cannot be kept and must be copied."""
    model = sdegen.ScoreModel(lambda x, t, gain: torch.tanh(x * gain[:, None]), VP)
    gain = torch.linspace(0.5, 2, B)
    outside = sdegen.log_prob(model, X, RK4, cond={"gain": gain})
    with torch.inference_mode():
        inside = sdegen.log_prob(model, X.clone(), RK4, cond={"gain": gain.clone()})
    assert torch.equal(inside, outside)
