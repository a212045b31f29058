"""Log-densities: how true their error bars are, what they cost, and what fresh probes gain.

    python benchmarks/likelihood.py [coverage] [cost] [probes] [kinks] [digits] [memory] [--points 2048] [--repeats 5]

Targets are exact mixtures on VPSDE with the exact law at the noise end as prior, so that the true log-density is known,
and four networks with kinks or without, against Adams of order 2 in 20 480 steps. Costs are CPU times
(`time.thread_time`) over those of a bare network call on the same rows, taken right before and after in this process,
medians. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import targets
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import sdegen
from sdegen.datasets import dequantise, digits, two_moons

PATH = sdegen.VPSDE()
DEFAULT = sdegen.AdamsUntil(1e-3, first=120)


def mix64() -> sdegen.GaussianMixture:
    """Three modes in 64 dimensions with deviations from 0.1 to 1 along axes of their own."""
    generator = torch.Generator().manual_seed(64)
    means = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    bases = [torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0] for _ in range(3)]
    spectrum = torch.diag(torch.logspace(-1, 0, 64, dtype=torch.float64) ** 2)
    covariances = torch.stack([Q @ spectrum @ Q.mT for Q in bases])
    return sdegen.GaussianMixture(means, covariances=covariances, weights=[0.5, 0.3, 0.2])


TARGETS = {"ring8": targets.ring8, "gmm16": targets.gmm16, "mix64": mix64}


@functools.cache
def problem(name: str, points: int) -> tuple[sdegen.GaussianMixture, sdegen.Model, Tensor, object]:
    """The target, its model, points of its own (seed 0), and its law at the noise end."""
    target = TARGETS[name]()
    x = target.sample(points, generator=torch.Generator().manual_seed(0)).double()
    return target, target.model(PATH), x, target.marginal(PATH, PATH.t_noise)


class Flow(nn.Module):
    """The kink networks: three layers of 64 on (x, t)."""

    def __init__(self, activation: type[nn.Module]):
        super().__init__()
        widths = [3, 64, 64, 64]
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation())]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


@functools.cache
def flow(activation: type[nn.Module]) -> tuple[sdegen.ScoreModel, Tensor]:
    """CondOT velocity, 600 Adam steps of two_moons(256), then float64; 16 points."""
    torch.manual_seed(0)
    model = sdegen.ScoreModel(Flow(activation), sdegen.CondOT(), "velocity")
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(600):
        optimiser.zero_grad()
        sdegen.loss(model, two_moons(256)).backward()
        optimiser.step()
    return model.double(), two_moons(16).double()


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def heads(*names: str) -> None:
    print()
    row(*names)
    row(*["---"] * len(names))


def coverage(points: int, repeats: int) -> None:
    """How often the reported solver error covers the true one, and how much larger; mix64 on a quarter of them."""
    heads("target", "dtype", "solver", "calls", "worst error", "median", "covered", "reported / true, median")
    ratios: dict[str, list[float]] = {}
    for name in TARGETS:
        for dtype in (torch.float64, torch.float32):
            tolerances = range(3, 9 if dtype is torch.float64 else 7)
            solvers = [sdegen.ODESolver("dopri8", rtol=10.0**-k) for k in tolerances]
            for solver in [*solvers, sdegen.Adams(160), sdegen.Adams(320), DEFAULT]:
                target, model, x, prior = problem(name, points // 4 if name == "mix64" else points)
                x = x.to(dtype)
                found = sdegen.log_likelihood(model, x, solver, prior=prior, batch_size=1024)
                error = (found.log_prob.double() - target.log_prob(x.double())).abs()
                ratio = float((found.solver_error / error).median())
                label = label_of(solver)
                kind = "dopri8" if "dopri8" in label else label
                ratios.setdefault(f"{kind} {dtype}"[: -len("torch.float64")] + str(dtype)[6:], []).append(ratio)
                covered = float((error <= found.solver_error).double().mean())
                numbers = (f"{float(error.max()):.1e}", f"{float(error.median()):.1e}")
                row(name, str(dtype)[6:], label, found.calls, *numbers, f"{covered:.3f}", f"{ratio:.1f}")
    print("\ngeometric means of the ratios:", {k: round(targets.geometric_mean(v), 1) for k, v in ratios.items()})


def label_of(solver: sdegen.Solver) -> str:
    if isinstance(solver, sdegen.ODESolver):
        own = ", steps_for='sample'" if solver.steps_for == "sample" else ""
        return f"dopri8 {solver.rtol:.0e}{own}"
    if isinstance(solver, sdegen.Adams):
        grid = "" if solver.grid is None else ", PowerGrid(2)"
        return f"Adams({solver.steps}{grid})"
    return (
        f"AdamsUntil({solver.atol:g}, first={solver.first})" if isinstance(solver, sdegen.AdamsUntil) else repr(solver)
    )


def by_hand(model: sdegen.Model, x: Tensor, prior: object, tolerance: float = 1e-5) -> tuple[Tensor, int]:
    """What a user writes with torchdiffeq: dopri5 in the time of VP from t = 1e-5 on, the exact trace by a loop."""
    d, calls = x.shape[1], 0
    one, zero = torch.ones(1, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)

    def slope(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        t = t.clamp(1e-5, 1.0)
        B, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
        alpha, sigma = torch.exp(-0.5 * B), torch.sqrt(-torch.expm1(-B))
        r = alpha + sigma
        (query,) = model.plan(state[:, :d], (sigma / r).reshape(1), t.reshape(1), zero, one)
        with torch.enable_grad():
            y = state[:, :d].detach().requires_grad_(True)
            velocity = -0.5 * beta * (y - model.estimate(y / r, query, {}) / sigma)
            trace = sum(torch.autograd.grad(velocity[:, i].sum(), y, retain_graph=i < d - 1)[0][:, i] for i in range(d))
        return torch.cat([velocity.detach(), trace[:, None]], 1)

    start, ends = nn.functional.pad(x, (0, 1)), torch.tensor([1e-5, 1.0], dtype=x.dtype)
    options = {"step_t": ends[1:]}
    with torch.no_grad():
        end = odeint(slope, start, ends, method="dopri5", rtol=tolerance, atol=tolerance, options=options)[-1]
    return prior.log_prob(end[:, :d]) + end[:, d], calls


def bare_call(model: sdegen.Model, x: Tensor, calls: int = 200) -> float:
    """CPU seconds of one network call on all rows."""
    half, zero, one = (torch.full((1,), n, dtype=torch.float64) for n in (0.5, 0.0, 1.0))
    (query,) = model.plan(x, half, None, zero, one)
    with torch.no_grad():
        start = time.thread_time()
        for _ in range(calls):
            model.estimate(x, query, {})
        return (time.thread_time() - start) / calls


def in_bare_calls(model: sdegen.Model, x: Tensor, run: Callable[[], object], repeats: int, calls: int = 200) -> float:
    ratios = []
    for _ in range(repeats):
        before = bare_call(model, x, calls)
        start = time.thread_time()
        run()
        spent = time.thread_time() - start
        ratios.append(2 * spent / (before + bare_call(model, x, calls)))
    return statistics.median(ratios)


def cost(points: int, repeats: int) -> None:
    """CPU time over bare calls, 256 points, and the worst error, beside torchdiffeq by hand."""
    heads("target", "solver", "trace", "network calls", "bare calls", "worst error")
    solvers = [sdegen.Adams(80), sdegen.Adams(160), sdegen.Adams(320), DEFAULT, sdegen.AdamsUntil()]
    solvers += [sdegen.ODESolver("dopri8", rtol=tolerance) for tolerance in (1e-3, 1e-4, 1e-6)]
    straight = [sdegen.Adams(steps, grid=sdegen.PowerGrid(2)) for steps in (90, 130)]
    for name in TARGETS:
        target, model, x, prior = problem(name, 256)
        true = target.log_prob(x)
        found, calls = by_hand(model, x, prior)
        spent = in_bare_calls(model, x, lambda: by_hand(model, x, prior), repeats)  # noqa: B023
        row(name, "torchdiffeq dopri5 1e-5 by hand", "exact", calls, f"{spent:.0f}", f"{worst(found, true):.1e}")
        for solver in [*solvers, *(straight if name == "ring8" else [])]:
            run = functools.partial(sdegen.log_likelihood, model, x, solver, prior=prior)
            spent, scored = in_bare_calls(model, x, run, repeats), run()
            numbers = (scored.calls, f"{spent:.0f}", f"{worst(scored.log_prob, true):.1e}")
            row(name, label_of(solver), "exact", *numbers)
        for probes in (1, 2, 4):
            run = functools.partial(
                sdegen.log_likelihood, model, x, sdegen.Adams(80), trace=sdegen.Hutchinson(probes), prior=prior
            )
            spent = in_bare_calls(model, x, run, repeats)
            row(name, "Adams(80)", f"Hutchinson({probes})", 81, f"{spent:.0f}", f"{worst(run().log_prob, true):.1e}")


def worst(found: Tensor, true: Tensor) -> float:
    return float((found - true).abs().max())


def probes(points: int, repeats: int) -> None:
    """The spread of one probe kept for a solve (dopri8) over that of fresh ones at 121 knots, and their error bars."""
    heads("target", "one kept probe, nats", "fresh ones", "ratio", "reported / true standard error of 4")
    draws = 100
    for name in (*TARGETS, "images3072"):
        target, model, x, prior = images() if name == "images3072" else problem(name, 8)
        true = None if target is None else sdegen.log_prob(model, x, sdegen.Adams(240), prior=prior)
        rounds = draws if target is not None else 8

        def spread(probes: int, kept: bool) -> tuple[float, float]:
            found = [
                sdegen.log_likelihood(
                    model,  # noqa: B023
                    x,  # noqa: B023
                    sdegen.ODESolver("dopri8", rtol=1e-3) if kept else sdegen.Adams(240),
                    trace=sdegen.Hutchinson(probes),
                    prior=prior,  # noqa: B023
                    generator=torch.Generator().manual_seed(k),
                )
                for k in range(rounds)  # noqa: B023
            ]
            values = torch.stack([one.log_prob for one in found])
            centre = values.mean(0) if true is None else true  # noqa: B023
            said = [one.probe_error for one in found]
            mean = torch.stack(said).square().mean().sqrt() if probes > 1 else torch.zeros(())
            return float((values - centre).square().mean().sqrt()), float(mean)

        kept, fresh = spread(1, True)[0], spread(1, False)[0]
        actual, said = spread(4, False)
        row(name, f"{kept:.3f}", f"{fresh:.4f}", f"{kept / fresh:.1f}", f"{said / actual:.2f}")


def images() -> tuple[None, sdegen.Model, Tensor, object]:
    """N(0, diag 1/k), k = 1 ... 3072, turned by reflections so that its Jacobian is not diagonal."""
    std = torch.arange(1, 3073, dtype=torch.float64) ** -0.5
    v = torch.randn(3072, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v / v.norm()

    def turned(x: Tensor) -> Tensor:
        return x - 2 * (x @ v)[:, None] * v

    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = PATH.alpha(t)[:, None], PATH.sigma(t)[:, None]
        return turned(sigma * turned(x) / (alpha**2 * std**2 + sigma**2))

    x = turned(std * torch.randn(2, 3072, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return None, sdegen.ScoreModel(eps, PATH, "eps"), x, None


def kinks(points: int, repeats: int) -> None:
    """Networks whose divergence jumps: calls, worst error, and how many of 16 points the reported error covers."""
    heads("network", "solver", "calls", "worst error", "reported, worst", "covered of 16")
    for activation in (nn.SiLU, nn.ELU, nn.SELU, nn.ReLU):
        model, x = flow(activation)
        true = sdegen.log_prob(model, x, sdegen.Adams(20480, order=2))
        for solver in (sdegen.Adams(160), sdegen.Adams(1280), DEFAULT, sdegen.AdamsUntil()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sdegen.AccuracyWarning)
                found = sdegen.log_likelihood(model, x, solver)
            error = (found.log_prob - true).abs()
            numbers = (found.calls, f"{float(error.max()):.1e}", f"{float(found.solver_error.max()):.1e}")
            row(activation.__name__, label_of(solver), *numbers, int((error <= found.solver_error).sum()))


def trained() -> Iterator[tuple[str, sdegen.Model, Tensor, dict[str, Tensor]]]:
    """The tests' two trained networks, in float64."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import networks

    images, labels = digits("test")
    x = dequantise(images[:4].double(), generator=torch.Generator().manual_seed(0))
    yield "plane MLP", networks.plane_mlp().double(), two_moons(64).double(), {}
    yield "digits U-Net", networks.digits_unet().double(), x, {"label": labels[:4]}


def digits_unet(points: int, repeats: int) -> None:
    """Trained networks against Adams(1280): CPU time in that of Adams(80), errors, coverage."""
    torch.set_default_dtype(torch.float64)
    heads("network", "solver", "calls", "CPU time over Adams(80)", "worst error", "reported, median / true", "covered")
    for name, model, x, cond in trained():
        true = sdegen.log_prob(model, x, sdegen.Adams(1280), cond=cond)
        unit = math.nan
        solvers = [sdegen.Adams(n) for n in (80, 160, 320, 640)] + [DEFAULT]
        for solver in [*solvers, *(sdegen.ODESolver("dopri8", rtol=t) for t in (1e-3, 1e-4, 1e-5, 1e-6))]:
            start = time.thread_time()
            found = sdegen.log_likelihood(model, x, solver, cond=cond)
            spent = time.thread_time() - start
            unit = spent if math.isnan(unit) else unit
            error = (found.log_prob - true).abs()
            ratio = float((found.solver_error / error).median())
            covered = float((error <= found.solver_error).double().mean())
            numbers = (f"{spent / unit:.1f}", f"{float(error.max()):.1e}", f"{ratio:.1f}", f"{covered:.2f}")
            row(name, label_of(solver), found.calls, *numbers)
    torch.set_default_dtype(torch.float32)


def memory(points: int, repeats: int) -> None:
    """Peak memory of a log-density of 4 images 3x32x32 with a small U-Net, over that of the process before, MiB."""
    from sdegen.nets import UNet

    heads("trace", "MiB")
    model = sdegen.ScoreModel(UNet(channels=3, width=32, multipliers=(1, 2)), PATH, "v")
    x = torch.randn(4, 3, 32, 32)
    for trace in (sdegen.Hutchinson(1), sdegen.Hutchinson(2), sdegen.Hutchinson(4), sdegen.Exact(chunk=1)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = 2 if isinstance(trace, sdegen.Exact) else 12
        sdegen.log_likelihood(model, x[:1] if steps == 2 else x, sdegen.Adams(steps), trace=trace)
        row(trace, f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}")


PARTS = {
    "coverage": coverage,
    "cost": cost,
    "probes": probes,
    "kinks": kinks,
    "digits": digits_unet,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.parts or PARTS:
        PARTS[name](options.points, options.repeats)


if __name__ == "__main__":
    main()
