"""A chain of N(m, S) in closed form, the exact law of a sampler along it, and a network that counts its calls."""

from __future__ import annotations

import math

import torch
from problems import start_law

import sdegen

S, M = 0.25, 0.8

DATA = sdegen.Gaussian(torch.tensor([M], dtype=torch.float64), math.sqrt(S))


def nodes():
    """m +- sqrt(S) against +-1: means over these four rows are expectations of any polynomial of degree three."""
    x = torch.tensor([M - math.sqrt(S), M + math.sqrt(S)]).repeat_interleave(2)[:, None]
    return x, torch.tensor([-1.0, 1.0]).repeat(2)[:, None]


def sigma_points(law):
    """The same in d dimensions: 2d points of the data against 2d of the noise, exact for every quadratic."""
    d = len(law.mean)
    root = torch.linalg.cholesky((law._rotations[0] * law.spectrum) @ law._rotations[0].T)
    both = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)])
    return (law.mean + both @ root.T).repeat_interleave(2 * d, 0), both.repeat(2 * d, 1)


class Theory:
    """THEORY 11.4 in one dimension: everything about a chain on N(m, S) with the optimal eps."""

    def __init__(self, chain):
        bars = torch.cat([torch.ones(1), torch.cumprod(1 - chain.betas, 0)])
        V = bars * S + 1 - bars
        self.beta, self.bars, self.V = chain.betas, bars, V
        self.optimal = self.beta * V[:-1] / V[1:]
        self.posterior = self.beta * (1 - bars[:-1]) / (1 - bars[1:])
        clipped = torch.cat([self.posterior[1:2], self.posterior[1:]])
        self.variances = {"beta": self.beta, "posterior": clipped, "optimal": self.optimal}

    def prior(self):
        """KL( q(x_K | x) | N(0, sigma_K^2) ): the path's own prior, where THEORY's formula has N(0, 1)."""
        return float(self.bars[-1] * (S + M**2) / (2 * (1 - self.bars[-1])))

    def transitions(self, variance):
        var, tilde, beta = self.variances[variance][1:], self.posterior[1:], self.beta[1:]
        weight = beta**2 / (2 * var * (1 - beta) * (1 - self.bars[2:]))
        kernel = 0.5 * (torch.log(var / tilde) - 1 + tilde / var)
        return kernel + weight * self.bars[2:] * S / self.V[2:]

    def decoder(self, variance):
        var = self.variances[variance][0]
        return float(0.5 * torch.log(2 * math.pi * var) + S * self.beta[0] / (2 * var * self.V[1]))


def off_by(path, factor=0.9, shift=0.1):
    """An affine network that is wrong by a factor and a shift."""
    exact = DATA.model(path)
    return sdegen.ScoreModel(lambda x, t: factor * exact.eps(x, t) + shift, path)


def levels(decoder):
    return torch.linspace(decoder.low, decoder.high, decoder.levels)


class Counting:
    """A network that remembers what it was shown."""

    def __init__(self, doubled: bool = False):
        self.calls, self.times, self.doubled = 0, [], doubled

    def __call__(self, x, t, **cond):
        self.calls += 1
        self.times.append(t.clone())
        out = torch.tanh(x) * (1 + t.to(x).reshape(-1, *[1] * (x.ndim - 1)))
        return torch.cat([out, torch.cos(x)], 1) if self.doubled else out


def law_along(path, solver) -> tuple[float, float]:
    """Mean and variance of a chain of any length in three rows: b, a x_T + b, and b + every noise at once.

    The ratio of two differences of states gives a step's factor, and then the third row its deviation.
    """
    exact = sdegen.Gaussian([M], math.sqrt(S))
    x_T, push = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    states = sdegen.solve(exact.model(path), x_T, solver, noise=lambda k: push, trajectory=True).trajectory[:, :, 0]
    gain, pushed = states[:, 1] - states[:, 0], states[:, 2] - states[:, 0]
    std = pushed[1:] - gain[1:] / gain[:-1] * pushed[:-1]
    mean, variance = start_law(exact.marginal(path, path.t_noise))
    total = gain[-1] ** 2 * variance + ((std * gain[-1] / gain[1:]) ** 2).sum()
    return float(gain[-1] * mean + states[-1, 0]), float(total)


def chain_law(solver, steps) -> tuple[float, float]:
    return law_along(sdegen.DDPM.from_path(sdegen.VPSDE(), steps), solver)
