"""What every solver is: a value whose `run` carries a state from one clock to another.

In straight coordinates y = x_t/r, u = sigma/r, with x_hat = E[x | y] and eps_hat = E[eps | y], on every path:

    ODE       dy/du = eps_hat - x_hat
    SDE       dy = [eps_hat - x_hat] du - gamma eps_hat |du| + w dW,    gamma = w^2 / (2u)          (noise.py)
    density   d log p / du = -div(eps_hat - x_hat) along the ODE                                    (divergence.py)

Everything on the right is a combination c x_hat + d eps_hat, which is all that is ever asked of a model.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._derivatives import twice_differentiable
from sdegen._shapes import Generators, generator_of_rows, summary
from sdegen.models.base import Model, Query
from sdegen.solvers.divergence import Probes, products
from sdegen.solvers.grids import Grid, Layout, lay
from sdegen.solvers.noise import noise_of_rows

Part = TypeVar("Part")


@dataclass
class Problem:
    """One initial value problem: `y` at the clock u_from, wanted at u_to. What a solver's `run` is handed.

    Attributes:
        model: answers for x_hat and eps_hat.
        y: the initial state x_t/r, (B, *event).
        u_from: the straight clock at the start.
        u_to: the clock at the end; below u_from on the way to the data, above it on the way to noise.
        cond: keyword arguments for the network.
        noise: standard normals to use instead of draws, as in `solve`, or None.
        generator: for the draws.
        trajectory: whether every step's state is wanted.
        progress: whether a bar is.
        probes: the vectors z of z . J z where the log-density is wanted too, else None. The state then is (B, d + R),
            whose last R = `probes.columns` columns are estimates of the integral of div(eps_hat - x_hat) over u so far:
            the log-density at the start less that at this state. R is 1 for the exact trace.
        chunk: how many of these products one backward pass may take.
        differentiable: whether a log-density keeps its graph.
        checkpoint_every: None, or the number of steps whose activations the backward pass computes again, as in
            `solve`.
        shared: the names in `cond` that belong to the whole batch and are not cut with it.
        callback: None, or what `march` calls as callback(k, u, y) after step k, with the clock and the state
            (B, *event) where it arrived.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> problem = sdegen.Problem(model, torch.zeros(1, 1), u_from=1.0, u_to=0.0)
        >>> u, t = problem.knots(sdegen.PowerGrid(2), 4)
        >>> u.tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
        >>> t.tolist()  # data at t = 1
        [0.0, 0.4375, 0.75, 0.9375, 1.0]
    """

    model: Model
    y: Tensor
    u_from: float
    u_to: float
    cond: Mapping[str, object] = field(default_factory=dict)
    noise: Tensor | Callable[[int], Tensor] | None = None
    generator: Generators = None
    trajectory: bool = False
    progress: bool = False
    probes: Probes | None = None
    chunk: int = 1
    differentiable: bool = False
    checkpoint_every: int | None = None
    shared: frozenset[str] = frozenset()
    callback: Callable[[int, float, Tensor], None] | None = None

    __repr__ = summary

    @property
    def start(self) -> Tensor:
        """The initial state: y, or with `probes` (B, d + R)."""
        return self.y if self.probes is None else nn.functional.pad(self.y.flatten(1), (0, self.probes.columns))

    def event(self, state: Tensor) -> Tensor:
        """y, (B, *event), of a state."""
        return state if self.probes is None else state[:, : -self.probes.columns].reshape(self.y.shape)

    def density(self, state: Tensor) -> Tensor | None:
        """R estimates of the integral of the divergence so far, (B, R), where the log-density is wanted."""
        return None if self.probes is None else state[:, -self.probes.columns :]

    def with_divergence(self, y: Tensor, query: Query, j: int) -> Tensor:
        """The answer at y (B, *event) and after it R estimates of its divergence, (B, d + R): one network call.

        `j` is the number of the query in this solve: on it depends which vectors z estimate the divergence.
        """
        probes, graph = cast(Probes, self.probes), self.differentiable
        with torch.enable_grad(), twice_differentiable() if graph else nullcontext():
            y = y if graph and y.requires_grad else y.detach().requires_grad_(True)
            value = self.model.estimate(y, query, self.cond)
            traces = products(value, y, probes.at(j), self.chunk, graph)
        columns = traces.reshape(probes.columns, -1, len(y)).sum(1).mT
        joined = torch.cat([value.flatten(1), columns], 1)
        return joined if graph else joined.detach()

    def cut(self, rows: Tensor | slice) -> Problem:
        """The same problem for some samples alone, `rows` (n,): their states, conditions, noise and probes."""
        cond = _checks.shared_again(self.cond, self.shared)
        received = _checks.network_arguments(cond, rows, len(self.y))
        probes = None if self.probes is None else self.probes.cut(rows)
        return replace(
            self,
            y=self.y[rows],
            cond=received,
            shared=received.shared,
            generator=generator_of_rows(self.generator, rows),
            noise=noise_of_rows(self.noise, self.y, rows),
            probes=probes,
        )

    def parts(self, batch_size: int | None) -> Iterator[Problem]:
        """This problem itself, or for more than `batch_size` samples one for every so many, under a bar of parts."""
        if batch_size is None or len(self.y) <= batch_size:
            yield self
            return
        rows = [slice(first, first + batch_size) for first in range(0, len(self.y), batch_size)]
        for of_part, progress in under_bar(rows, self.progress):
            yield replace(self.cut(of_part), progress=progress)

    def knots(self, grid: Grid | Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """(u, t) at the steps + 1 knots of `grid` from u_from to u_to, float64 on the CPU; the ends are met exactly.

        Examples:
            >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
            >>> problem = sdegen.Problem(model, torch.zeros(1, 1), u_from=0.0, u_to=1.0)
            >>> problem.knots(sdegen.PowerGrid(1), 2)[0].tolist()  # towards noise
            [0.0, 0.5, 1.0]
        """
        laid = self.lay(grid, steps)
        return laid.u, laid.t

    def lay(self, grid: Grid | Tensor, steps: int) -> Layout:
        """The same knots, with the grid's own clock s(u)."""
        _checks.whole("steps", steps)
        return lay(grid, self.model, self.u_from, self.u_to, steps)

    def bar(self, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """A function to call after every step; it moves a progress bar if one was asked for."""
        return bar(total, self.progress)


@contextmanager
def bar(total: int | None, progress: bool) -> Iterator[Callable[[], object]]:
    """A function to call after every one of `total` steps, which moves a bar where `progress` is wanted."""
    if not progress:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm; install it with `pip install tqdm`.") from error
    with tqdm(total=total, unit="step") as shown:
        yield shown.update


def under_bar(parts: Sequence[Part], progress: bool) -> Iterator[tuple[Part, bool]]:
    """Every part, and whether it shows a bar of its own: the only one does, several are the steps of one bar."""
    if len(parts) < 2:
        yield from ((part, progress) for part in parts)
        return
    with bar(len(parts), progress) as part_done:
        for part in parts:
            yield part, False
            part_done()


@dataclass
class Result:
    """What a solver's `run` returns.

    Attributes:
        y: the end point, (B, *event).
        u: the knots, from the start on.
        states: every knot's y where the problem wants a trajectory, else empty.
        times: the path's time at the knots, where it is known.
        divergence: the integral of div(eps_hat - x_hat) over u, (B,) or R estimates of it, (B, R), where the problem
            has probes: the log-density at the start less that at the end.
        calls: network calls.
        accepted: steps taken.
        rejected: steps tried in vain.
        error: (B,), the sum of an adaptive solver's local error estimates in units of its tolerance, else None.
        sample_calls: (B,), the network calls that each sample took part in, where these differ, else None.
        divergence_error: (B,), the solver's own estimate of how far its log-density is off, in nats, end point and
            integral together, where it has one, else None.
        memory: what the last step of `march` left for a next one.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> problem = sdegen.Problem(model, torch.zeros(1, 1), u_from=1.0, u_to=0.0)
        >>> result = sdegen.Adams(10).run(problem)
        >>> result.calls, result.accepted, len(result.u)
        (10, 10, 11)
    """

    y: Tensor
    u: list[float]
    states: list[Tensor] = field(default_factory=list)
    times: list[float] | None = None
    divergence: Tensor | None = None
    calls: int = 0
    accepted: int = 0
    rejected: int = 0
    error: Tensor | None = None
    sample_calls: Tensor | None = None
    divergence_error: Tensor | None = None
    memory: tuple[Tensor, ...] = ()

    __repr__ = summary


def joined(parts: Sequence[Result]) -> Result:
    """The results of the parts of a batch as one: costs are added up, and where knots differ only the ends are kept.

    A log-density is not joined.
    """
    first, *others = parts
    if not others:
        return first
    shared = all(part.u == first.u for part in others)
    if first.states and not shared:
        raise ValueError("trajectory=True needs knots that the parts of a batch share, and every part chose its own.")

    def column(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    u, times = first.u, first.times
    if not shared:
        u, times = [u[0], u[-1]], None if times is None else [times[0], times[-1]]
    return Result(
        torch.cat([part.y for part in parts]),
        u,
        [torch.cat(knot) for knot in zip(*(part.states for part in parts), strict=True)],
        times,
        calls=sum(part.calls for part in parts),
        accepted=sum(part.accepted for part in parts),
        rejected=sum(part.rejected for part in parts),
        error=column("error"),
        sample_calls=column("sample_calls"),
    )


class Solver(ABC):
    """A method for the ODE or the SDE: a small frozen value. Write your own by giving `run`; `march` is a loop for it.

    Ralston's method, the midpoint rule's sister with its second stage at two thirds of the step:

        @dataclass(frozen=True)
        class Ralston(sdegen.Solver):
            steps: int
            solves_ode = True

            def run(self, problem):
                u, t = problem.knots(sdegen.PowerGrid(1.5), self.steps)

                def step(k, y, ask):
                    h = u[k + 1] - u[k]
                    slope = ask(y, u[k])
                    return y + h / 4 * (slope + 3 * ask(y + 2 / 3 * h * slope, u[k] + 2 / 3 * h))

                return sdegen.march(problem, u, t, step)

    A solver with tensors among its fields takes `@dataclass(frozen=True, eq=False)`: it is then compared and hashed
    with them, as the library's own are.

    Attributes:
        solves_ode: whether it integrates dy/du = eps_hat - x_hat, without noise and both ways, so that `encode`,
            `decode` and `log_prob` may use it (`AdamsUntil`: `log_prob` alone).

    Examples:
        >>> sdegen.Adams(20) == sdegen.Adams(20), sdegen.Adams(20).solves_ode, sdegen.Ancestral(20).solves_ode
        (True, True, False)
    """

    solves_ode: ClassVar[bool] = False

    @abstractmethod
    def run(self, problem: Problem) -> Result:
        """Carry `problem.y` from `problem.u_from` to `problem.u_to`."""

    @property
    def follows_ode(self) -> bool:
        """Whether it adds no noise, so that its end point is that of the ODE, if only on the way to the data."""
        return self.solves_ode

    @property
    def differentiable(self) -> bool:
        """Whether autograd passes through it, as `differentiable=True` needs: not where it chooses its own steps."""
        return True

    @property
    def takes_callback(self) -> bool:
        """Whether `solve` may call the user's function after every step: where the loop is `march`, not an engine's."""
        return True

    @property
    def knows_its_error(self) -> bool:
        """Whether its log-densities come with an estimate of their error, `Result.divergence_error`."""
        return False

    @property
    def takes_fresh_probes(self) -> bool:
        """Whether a divergence may be estimated by other vectors at every query: not where its error sets the steps."""
        return self.differentiable

    @property
    def span(self) -> tuple[float, float] | None:
        """(u_high, u_low) of a grid with ends of its own, which stand for the path's where `u=` is None; else None."""
        return None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_checks.same(a, b) for a, b in zip(_values(self), _values(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), *(v.numel() if isinstance(v, Tensor) else v for v in _values(self))))


def _values(solver: Solver) -> list[object]:
    """The fields of a solver that is a dataclass, else all that it holds."""
    return [getattr(solver, f.name) for f in fields(solver)] if is_dataclass(solver) else [*vars(solver).values()]
