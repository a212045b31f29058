"""Models: anything that estimates the data and the noise behind x_t, and the one conversion between predictions.

Every prediction is p with m p = a x + b eps for known numbers a, b, m:

    eps       0       1       1                data      1        0       1
    score     0       1       -sigma           velocity  alpha'   sigma'  1          v    -sigma   alpha   1

("score" is the gradient of the log-density, s = -eps/sigma; "velocity" is dx/dt in the path's own time; "v" is
Salimans and Ho's.) In straight coordinates y = x_t/r obeys y = (1-u) x + u eps, on every path, so from y and p

    c x + d eps = [ (c b - d a) y + ((1-u) d - u c) m p ] / [ (1-u) b - u a ]                                     (*)

which is the only conversion in the library: drifts, denoisers and the predictions above are all of this form. It is
finite wherever the denominator is not 0: eps and score at u = 0, data at u = 1, v everywhere, velocity wherever dx/dt
is finite.

References:
    Progressive Distillation for Fast Sampling of Diffusion Models, Salimans and Ho, 2022, arXiv:2202.00512.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._derivatives import outside_inference
from sdegen._shapes import batch_of_times, like
from sdegen.models.standardised import Standardize
from sdegen.paths.gaussian import GaussianPath

Cond = Mapping[str, object] | None
Number = Tensor | float
Coefficients = tuple[Number, Number, Number]

CoefficientsAt = Callable[[GaussianPath, Tensor, Tensor, Tensor], Coefficients]
"""(path, t, alpha, sigma) to (a, b, m)."""

SHORT_OF_AN_END = 1e-3
"""How far from a singular end of the clock a solve is advised to stay: there 1/u and 1/(1-u) are 1000."""

PREDICTIONS: dict[str, CoefficientsAt] = {
    "eps": lambda path, t, alpha, sigma: (0.0, 1.0, 1.0),
    "score": lambda path, t, alpha, sigma: (0.0, 1.0, -sigma),
    "data": lambda path, t, alpha, sigma: (1.0, 0.0, 1.0),
    "velocity": lambda path, t, alpha, sigma: (*path.slopes(t)[:2], 1.0),
    "v": lambda path, t, alpha, sigma: (-sigma, alpha, 1.0),
}
"""(a, b, m) of each prediction p at (path, t, alpha, sigma): m p = a x + b eps."""


def prediction_row(
    name: str, path: GaussianPath, t: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, m) of the prediction p called `name`, each shaped like t: m p = a x + b eps."""
    return _full(PREDICTIONS[name](path, t, alpha, sigma), t)


def _full(row: Coefficients, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, m), each shaped like t."""
    a, b, m = (n.to(t) if isinstance(n, Tensor) else torch.full_like(t, n) for n in row)
    return a, b, m


def combined(a: Number, y: Tensor, b: Number, p: Tensor) -> Tensor:
    """a y + b p, for numbers or for one of each per sample."""
    return torch.addcmul(a * y, b, p) if isinstance(b, Tensor) else torch.add(a * y, p, alpha=b)


def instead_of_model(value: object) -> str:
    """What stands where a model should, and what to give: the end of a sentence."""
    inner, way = value, "model"
    while isinstance(inner, nn.Module) and not isinstance(inner, Model):
        name = next((n for n in ("_orig_mod", "module") if isinstance(getattr(inner, n, None), nn.Module)), None)
        if name is None:
            break
        inner, way = getattr(inner, name), f"{way}.{name}"
    if isinstance(inner, Model):
        return f"{type(value).__name__} around one: pass {way}"
    network = isinstance(value, nn.Module) or (callable(value) and not isinstance(value, type))
    return f"{_checks.described(value)}: give ScoreModel(net, path, predicts)" if network else _checks.described(value)


class Query(NamedTuple):
    """One question to a model: c E[x | y] + d E[eps | y] + e y at one clock, or at one clock per sample.

    Attributes:
        t: the time that the network is shown, before `time=` translates it, (B,).
        numbers: the coefficients that `Model.query` computed from c, d and e, each a number or (B, 1, ...).
        dtype: of the network's input.
    """

    t: Tensor
    numbers: tuple[Number, ...]
    dtype: torch.dtype

    def fitting(self, y: Tensor) -> Query:
        """The same question for `y`, which may hold the batch several times over, one copy after another."""
        if len(self.t) == len(y):
            return self
        copies = len(y) // len(self.t)
        numbers = (torch.cat([n] * copies) if isinstance(n, Tensor) and n.ndim else n for n in self.numbers)
        return Query(torch.cat([self.t] * copies), tuple(numbers), self.dtype)


@dataclass(frozen=True)
class Plan:
    """Questions at n clocks, their coefficients computed at once: what `Model.plan` returns.

    `plan[k]` is the question at clock k for the whole batch, `plan.rows(k, y)` that at clock k[b] for row b.

    Attributes:
        t: the times that the network is shown, (n,), on the device of the states.
        numbers: as in `Query`, each (n,).
        dtype: of the network's input.
        size: B, the number of rows of a whole batch.
        known: the numbers where they were computed on the CPU, in float64, (m, n): a question for the whole batch then
            holds Python's numbers, which cost an operation nothing on any device.
    """

    t: Tensor
    numbers: tuple[Tensor, ...]
    dtype: torch.dtype
    size: int
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    def __iter__(self) -> Iterator[Query]:
        return iter(self._whole)

    def __getitem__(self, k: int) -> Query:
        return self._whole[k]

    @cached_property
    def _whole(self) -> list[Query]:
        """Every question for the whole batch: cut once, so that a step costs no indexing."""
        times = self.t[:, None].expand(len(self), self.size).unbind(0)
        columns = [n.unbind(0) for n in self.numbers] if self.known is None else self.known.tolist()
        return [Query(time, row, self.dtype) for time, row in zip(times, zip(*columns, strict=True), strict=True)]

    def rows(self, k: Tensor | slice, y: Tensor) -> Query:
        """One question for every row of `y` (B, *event): that of clock k (B,); slice(None) where n = B."""
        return Query(self.t[k], tuple(like(n[k], y) for n in self.numbers), self.dtype)


class Model(nn.Module, ABC):
    """What the solvers ask of a model: `path`, `query` and `estimate`; everything else follows from them.

    Attributes:
        path: the Gaussian path it answers on.
        predicts: what its network returns on that path; None where there is none, or where it has another path.
        exact: whether its answers are conditional expectations in closed form.
        learns_variance: whether its network also answers for the variance of a chain's steps.
        clips: whether x_hat is held in the range of the data, so that no error of the network can grow beyond it.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> isinstance(model, sdegen.Model), model.exact, model.predicts
        (True, True, None)
        >>> x_t, t = torch.tensor([[0.3]]), torch.tensor([0.6])
        >>> x_hat, eps_hat = model.denoise(x_t, t)
        >>> torch.allclose(0.6 * x_hat + 0.4 * eps_hat, x_t)  # alpha x_hat + sigma eps_hat
        True
    """

    path: GaussianPath
    predicts: str | None = None
    exact: bool = False
    learns_variance: bool = False
    clips: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """What is printed of a model, in one line: `print(model.net)` shows the layers of a network."""
        return repr(self.path)

    @property
    def standardize(self) -> Standardize | None:
        """The units of the data, where they are not the network's own; None where both are one."""
        return None

    @property
    @abstractmethod
    def clocks(self) -> tuple[float, float]:
        """(lowest, highest) u at which the model can be asked."""

    @abstractmethod
    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Prepare c E[x | y] + d E[eps | y] + e y where the clock shows `u` and the path's time is `t`, elementwise.

        Args:
            u: the straight clock, (n,).
            t: the path's own time there, (n,).
            c: the factor of E[x | y], (n,).
            d: the factor of E[eps | y], (n,).
            e: the factor of y, (n,).

        Returns:
            the time the network is shown, and the numbers that `estimate` will need, all shaped like `u`.
        """

    @abstractmethod
    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """Answer for y = x_t/r, shape (B, *event): one query of the network."""

    def estimate_with_variance(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> tuple[Tensor, Tensor]:
        """The same and, from the same call of a network that `learns_variance`, its position in [0, 1], shaped like y.

        0 is the least log-variance of a chain's step, 1 the largest.
        """
        raise ValueError(f"{type(self).__name__} has no learned variance; give ScoreModel(..., learns_variance=True).")

    @abstractmethod
    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype in which the network takes its input: `default`, that of the state, unless it has its own."""

    @abstractmethod
    def on(self, path: GaussianPath) -> Model:
        """The same model on another path: a DDPM network sampled as a flow, a flow network by the reverse SDE.

        In straight coordinates all paths are one, so at the clock u, that is at the same log-SNR, the network is shown
        its own path's time and state. Where `path` runs beyond the clocks the network was trained on, the verbs raise a
        ValueError that names the u=(from, to) that stays inside. A learned variance, which belongs to the steps of one
        chain, stays behind.

        Args:
            path: the path to follow.

        Returns:
            a model that every verb takes.

        Raises:
            TypeError: `path` is none.
            ValueError: the path has another source.

        Examples:
            >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
            >>> x = sdegen.sample(model.on(sdegen.CondOT()), (1, 1), sdegen.Adams(20), x_T=torch.zeros(1, 1))
            >>> f"{x.item():.3f}"
            '1.000'
        """

    def gain(self, u: Tensor) -> Tensor:
        """How many times an error of the network's answer, relative to sqrt(a^2 + b^2), enters dy/du = eps_hat - x_hat.

            sqrt(a^2 + b^2) / |(1-u) b - u a|         for a network that predicts a x + b eps, where that is finite

        1/(1-u) for eps, 1/u for data, sqrt(2) for the velocity of `CondOT`: it decides where `Adams` steps.

        Args:
            u: the straight clock, (n,), float64 on the CPU.

        Returns:
            the gain, (n,); 1 for a model without a network, such as an exact one.
        """
        return torch.ones_like(u)

    def covers(self, u_from: float, u_to: float, slack: float = 1e-12) -> None:
        """A ValueError if the model cannot be asked all the way between two clocks of its path."""
        low, high = self.clocks
        if min(u_from, u_to) < low - slack or max(u_from, u_to) > high + slack:
            ends = [max(min(end, high), low) for end in (u_from, u_to)]
            raise ValueError(
                f"The model answers between the clocks u = {low} and {high}, and {self.path!r} is to be followed from "
                f"u = {u_from} to {u_to}; u=({ends[0]}, {ends[1]}) stays inside."
            )

    def needs_own_units(self, what: str) -> None:
        """A ValueError if the data have other units than the network."""
        if self.standardize is not None:
            raise ValueError(
                f"{what} works in the network's units, and this model has {self.standardize!r}: leave standardize out "
                "of the ScoreModel, and hand over data that are standardised already."
            )

    def needs_score(self, what: str) -> None:
        """A ValueError if the model's source is not independent Gaussian noise, so that no score exists."""
        if not self.has_score:
            raise ValueError(
                f"{what} needs the score, and this model was trained on pairs, where there is none: its source is not "
                "Gaussian noise independent of the data; use an ODESolver."
            )

    @property
    @abstractmethod
    def has_score(self) -> bool:
        """Whether E[eps | x_t] tells the score: whether eps is Gaussian and independent of the data."""

    def plan(self, y: Tensor, u: Tensor, t: Tensor | None, c: Tensor, d: Tensor, e: float | Tensor = 0.0) -> Plan:
        """Prepare c E[x | y] + d E[eps | y] + e y at n clocks, for states like `y` (B, *event): how a model is asked.

        Args:
            y: a state; only its batch size, dtype and device are read.
            u: the straight clock, (n,), float64 on the CPU, so that all numbers are computed at once and moved once; or
                one per sample, wherever the states are.
            t: the path's time at these clocks where it is known, else None.
            c: the factor of E[x | y], (n,).
            d: the factor of E[eps | y], (n,).
            e: the factor of y.

        Returns:
            the questions, for `estimate`.

        Raises:
            ValueError: a number is infinite, so that the network cannot tell; before any network call. The values of
                an accelerator are not waited for.
        """
        t = self.path.time(u) if t is None else t
        t, numbers = self.query(u, t, c, d, e if isinstance(e, Tensor) else torch.full_like(u, e))
        table = torch.stack([t, *numbers])
        if table.device.type == "cpu" and not bool(torch.isfinite(table).all()):
            wrong = float(u[~torch.isfinite(table).all(0)][0])
            why = "has no finite coefficients" if self.predicts is None else f"is singular for {self.predicts!r}"
            raise ValueError(
                f"The model is to be queried at u = {wrong:g}, where {self.path!r} {why}; {self._advice(wrong)}another "
                "path may do, or a network trained for 'v', which is singular nowhere."
            )
        known = table[1:] if table.device.type == "cpu" and not table.requires_grad else None
        times, *rest = table.to(y.device, y.dtype)
        return Plan(times, tuple(rest), self.working_dtype(y.dtype), len(y), known)

    def _advice(self, wrong: float) -> str:
        """The pairs u=(from, to) that stay away from a singular end of the path, `wrong` or the other one."""
        ends = tuple(min(max(end, self.clocks[0]), self.clocks[1]) for end in self.path.ends)
        u = torch.tensor(ends, dtype=torch.float64)
        t, numbers = self.query(u, self.path.time(u), -torch.ones_like(u), torch.ones_like(u), torch.zeros_like(u))
        finite = torch.isfinite(torch.stack([t, *numbers])).all(0).tolist()
        singular = [not ok or abs(wrong - end) < SHORT_OF_AN_END for ok, end in zip(finite, ends, strict=True)]
        if not any(singular):
            return "keep away from there by u=(from, to); "
        low, high = (
            round(end + inwards, 12) if wrong_end else end
            for end, inwards, wrong_end in zip(ends, (SHORT_OF_AN_END, -SHORT_OF_AN_END), singular, strict=True)
        )
        return f"u=({high}, {low}) towards the data, or u=({low}, {high}) towards noise, stays inside; "

    def denoise(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        """What is behind x_t, the data and the noise, by one network call.

        With y = x_t/r, u = sigma/r, r = alpha + sigma, and the slope D = eps_hat - x_hat,

            x_hat = y - u D        eps_hat = y + (1-u) D

        which is finite wherever D is: for a network that predicts eps at clean data too, where `.data` is x_t itself,
        and for one that predicts the data at pure noise.

        Args:
            x_t: states, (B, *event).
            t: the path's own time, `path.t_data` at the data and `path.t_noise` at the noise, a number or (B,).
            cond: keyword arguments for the network.

        Returns:
            (x_hat, eps_hat), E[x | x_t] and E[eps | x_t], each shaped like `x_t` and in its dtype.

        Raises:
            TypeError: an argument of another type.
            ValueError: a time off the path, or at an end where D is infinite.

        Examples:
            >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
            >>> x_hat, eps_hat = model.denoise(torch.tensor([[1.0]]), 0.5)
            >>> f"{x_hat.item():.3f} {eps_hat.item():.3f}"  # x_t = (x + eps)/2: both have the same share
            '1.000 1.000'
        """
        y, u, D = self._answer_at(x_t, t, cond, lambda path, t, alpha, sigma: (-1.0, 1.0, 1.0), "slope")
        return (y - u * D).to(x_t.dtype), (y + (1 - u) * D).to(x_t.dtype)

    def eps(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[eps | x_t], the noise; the other predictions below take the same arguments.

        Args:
            x_t: states, (B, *event).
            t: the path's own time, `path.t_data` at the data and `path.t_noise` at the noise, a number or (B,).
            cond: keyword arguments for the network.

        Returns:
            a tensor shaped like `x_t`, by one network call.

        Raises:
            TypeError: an argument of another type.
            ValueError: a time off the path, or at an end where the answer is infinite.

        Examples:
            >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
            >>> f"{model.eps(torch.tensor([[1.0]]), 0.5).item():.3f}"  # x_t = (x + eps)/2
            '1.000'
        """
        return self._predict("eps", x_t, t, cond)

    def score(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The gradient of log p_t at `x_t`, -eps/sigma (Tweedie); arguments as in `eps`, t the path's own time.

        Examples:
            >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
            >>> f"{model.score(torch.tensor([[0.0]]), 0.999).item():.1f}"  # near that of N(1, 0.25) at 0: (1 - 0)/0.25
            '4.0'
        """
        return self._predict("score", x_t, t, cond)

    def data(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[x | x_t]: the denoised data; arguments as in `eps`, t the path's own time.

        Examples:
            >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
            >>> f"{model.data(torch.tensor([[7.0]]), 0.0).item():.3f}"  # in pure noise, the mean of the data
            '1.000'
        """
        return self._predict("data", x_t, t, cond)

    def velocity(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """dx/dt of the probability-flow ODE, alpha' E[x | x_t] + sigma' E[eps | x_t].

        Arguments as in `eps`; t is the path's own time, in which alpha' and sigma' are the derivatives.

        Examples:
            >>> model = sdegen.Gaussian([3.0], 1e-4).model(sdegen.CondOT())
            >>> f"{model.velocity(torch.tensor([[1.0]]), 0.0).item():.3f}"  # from the noise 1 to the data 3
            '2.000'
        """
        return self._predict("velocity", x_t, t, cond)

    def v(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """alpha E[eps | x_t] - sigma E[x | x_t], Salimans and Ho's v; arguments as in `eps`, t the path's own time."""
        return self._predict("v", x_t, t, cond)

    def _predict(self, name: str, x_t: Tensor, t: float | Tensor, cond: Cond) -> Tensor:
        if name == "score":
            self.needs_score("This query")
        if name == self.predicts:
            return cast(Tensor, self(x_t, t, cond))
        return self._answer_at(x_t, t, cond, PREDICTIONS[name], name)[2].to(x_t.dtype)

    def _answer_at(
        self, x_t: Tensor, t: float | Tensor, cond: Cond, row: CoefficientsAt, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y, u, p) at `x_t`: the p with m p = a x_hat + b eps_hat for the (a, b, m) of `row`, by one network call."""
        _checks.batch("x_t", x_t, finite=False)
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        t = self.path.checked_times(batch_of_times(t, x))
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        if self.exact:  # its score exists at clean data too, as the limit
            sigma = torch.clamp(sigma, min=1e-30)
        r = alpha + sigma
        if len(x) and t.device.type == "cpu":
            self.covers(float((sigma / r).min()), float((sigma / r).max()), slack=1e-6)
        a, b, m = _full(row(self.path, t, alpha, sigma), t)
        c, d = a / m, b / m
        if t.device.type == "cpu" and not bool((torch.isfinite(c) & torch.isfinite(d)).all()):
            wrong = float(t[~(torch.isfinite(c) & torch.isfinite(d))][0])
            raise ValueError(f"The {name} is infinite at t = {wrong:g} on {self.path!r}; ask for it inside the path.")
        with outside_inference():
            query, y = self.plan(x, sigma / r, t, c, d).rows(slice(None), x), x / like(r, x)
            answer = self.estimate(y, query, _checks.network_arguments(_checks.conditions(cond)))
        return y, like(sigma / r, x), answer
