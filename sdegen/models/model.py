"""Models: anything that estimates the data and the noise behind x_t, and the one conversion between predictions.

Every prediction is p with k p = a x + b eps for known numbers a, b, k:

    eps       0       1       1                data      1        0       1
    score     0       1       -sigma           velocity  alpha'   sigma'  1          v    -sigma   alpha   1

("score" is the gradient of the log-density, s = -eps/sigma; "velocity" is dx/dt in the path's own time; "v" is
Salimans and Ho's.) In straight coordinates y = x_t/r obeys y = (1-u) x + u eps, on every path, so from y and p

    c x + d eps = [ (c b - d a) y + ((1-u) d - u c) k p ] / [ (1-u) b - u a ]                                     (*)

which is the only conversion in the library: drifts, denoisers and the predictions above are all of this form. It is
finite wherever the bracket below is not 0: eps and score at u = 0, data at u = 1, v everywhere, velocity wherever dx/dt
is finite.

Progressive Distillation for Fast Sampling of Diffusion Models, Salimans and Ho, 2022, arXiv:2202.00512.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import as_time, batch_of_times, like
from sdegen.paths.gaussian import GaussianPath

Cond = Mapping[str, object] | None
Row = tuple[Tensor | float, Tensor | float, Tensor | float]

PREDICTIONS: dict[str, Callable[[GaussianPath, Tensor, Tensor, Tensor], Row]] = {
    "eps": lambda path, t, alpha, sigma: (0.0, 1.0, 1.0),
    "score": lambda path, t, alpha, sigma: (0.0, 1.0, -sigma),
    "data": lambda path, t, alpha, sigma: (1.0, 0.0, 1.0),
    "velocity": lambda path, t, alpha, sigma: (*path.slopes(t)[:2], 1.0),
    "v": lambda path, t, alpha, sigma: (-sigma, alpha, 1.0),
}
"""(a, b, k) of each prediction at (path, t, alpha, sigma): k prediction = a x + b eps."""


class Query(NamedTuple):
    """A prepared question, c E[x | y] + d E[eps | y] + e y at one clock: times for the network and a few numbers."""

    t: Tensor
    numbers: tuple[Tensor, ...]
    dtype: torch.dtype  # of the network's input


class Table(NamedTuple):
    """Prepared questions at n clocks: `t` and every number are (n,), on the device of the states."""

    t: Tensor
    numbers: tuple[Tensor, ...]
    dtype: torch.dtype

    def rows(self, k: Tensor, y: Tensor) -> Query:
        """One question for every sample of `y`: that of clock k (B,)."""
        return Query(self.t[k], tuple(like(n[k], y) for n in self.numbers), self.dtype)


class Model(nn.Module, ABC):
    """What the solvers ask of a model: `path`, `query` and `estimate`; everything else follows from them."""

    path: GaussianPath
    predicts: str | None = None  # what the network returns, on `path`; None where there is none, or it has another path
    exact: bool = False
    learns_variance: bool = False

    @property
    @abstractmethod
    def clocks(self) -> tuple[float, float]:
        """(lowest, highest) u at which the model can be asked."""

    @abstractmethod
    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Prepare c x + d eps + e y where the clock shows `u` and the path's time is `t`, elementwise.

        Returns the time the network is shown and the numbers that `estimate` will need, all shaped like `u`.
        """

    @abstractmethod
    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """Answer for y = x_t/r, shape (B, *event): one query of the network."""

    @abstractmethod
    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype in which the network takes its input: `default`, that of the state, unless it has its own."""

    @abstractmethod
    def on(self, path: GaussianPath) -> Model:
        """The same model on another path: a DDPM network sampled as a flow, a flow network by the reverse SDE.

        In straight coordinates all paths are one, so at the clock u, that is at the same log-SNR, the network is shown
        its own path's time and state. Where `path` runs beyond the clocks the network was trained on, the verbs raise a
        ValueError that names the u=(from, to) that stays inside. A learned variance, which belongs to the steps of one
        chain, stays behind. Raises ValueError for a path with another source.
        """

    def covers(self, u_from: float, u_to: float, slack: float = 1e-12) -> None:
        """A ValueError if the model cannot be asked all the way between two clocks of its path."""
        low, high = self.clocks
        if min(u_from, u_to) < low - slack or max(u_from, u_to) > high + slack:
            ends = [max(min(end, high), low) for end in (u_from, u_to)]
            raise ValueError(
                f"The network was trained between the clocks u = {low} and {high}, and {self.path!r} is to be followed "
                f"from u = {u_from} to {u_to}; u=({ends[0]}, {ends[1]}) stays inside."
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

    def table(self, y: Tensor, u: Tensor, t: Tensor | None, c: Tensor, d: Tensor, e: float | Tensor = 0.0) -> Table:
        """Queries for states like `y` at n clocks: u, c, d (n,) in float64 on the CPU, t too where it is known.

        All numbers are computed at once and moved once. Raises ValueError, before any network call, if one is infinite.
        """
        t = self.path.time(u) if t is None else t
        t, numbers = self.query(u, t, c, d, torch.as_tensor(e, dtype=u.dtype).expand_as(u))
        table = torch.stack([t, *numbers])
        wrong = torch.nonzero(~torch.isfinite(table).all(0))
        if len(wrong):
            why = "has no finite coefficients" if self.predicts is None else f"is singular for {self.predicts!r}"
            raise ValueError(
                f"The model is to be queried at u = {float(u[wrong[0]]):g}, where {self.path!r} {why}; keep away from "
                "there by u=(from, to) or another path, or train a network for 'v', which is singular nowhere."
            )
        times, *numbers = table.to(y.device, y.dtype)
        return Table(times, tuple(numbers), self.working_dtype(y.dtype))

    def plan(
        self, y: Tensor, u: Tensor, t: Tensor | None, c: Tensor, d: Tensor, e: float | Tensor = 0.0
    ) -> list[Query]:
        """The rows of `table` one by one, each for the whole batch."""
        table = self.table(y, u, t, c, d, e)
        times = table.t[:, None].expand(len(u), len(y)).unbind(0)
        rows = zip(*(n.unbind(0) for n in table.numbers), strict=True)
        return [Query(time, row, table.dtype) for time, row in zip(times, rows, strict=True)]

    def eps(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[eps | x_t]: the noise, shaped like `x_t` (B, *event); t is a scalar or (B,)."""
        return self._predict("eps", x_t, t, cond)

    def score(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The gradient of log p_t at `x_t`, -eps/sigma (Tweedie's formula)."""
        return self._predict("score", x_t, t, cond)

    def data(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[x | x_t]: the denoised data."""
        return self._predict("data", x_t, t, cond)

    def velocity(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """dx/dt of the probability-flow ODE in the path's own time, alpha' E[x | x_t] + sigma' E[eps | x_t]."""
        return self._predict("velocity", x_t, t, cond)

    def v(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """alpha E[eps | x_t] - sigma E[x | x_t], Salimans and Ho's v."""
        return self._predict("v", x_t, t, cond)

    def _predict(self, name: str, x_t: Tensor, t: float | Tensor, cond: Cond) -> Tensor:
        _checks.batch("x_t", x_t, finite=False)
        if name == "score":
            self.needs_score("This query")
        if name == self.predicts:
            return self(x_t, t, cond)
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        t = self.path.checked_times(batch_of_times(t, x))
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        if self.exact:  # its score exists at clean data too, as the limit
            sigma = torch.clamp(sigma, min=1e-30)
        r = alpha + sigma
        if len(x) and t.device.type == "cpu":
            self.covers(float((sigma / r).min()), float((sigma / r).max()), slack=1e-6)
        a, b, k = (as_time(n).to(t).expand_as(t) for n in PREDICTIONS[name](self.path, t, alpha, sigma))
        t, numbers = self.query(sigma / r, t, a / k, b / k, torch.zeros_like(t))
        query = Query(t, tuple(like(n, x) for n in numbers), self.working_dtype(x.dtype))
        return self.estimate(x / like(r, x), query, _checks.conditions(cond)).to(x_t.dtype)


class ScoreModel(Model):
    """A network on a path: `net(x_t, t)` returns its prediction, shaped like x_t, for t of shape (B,).

    net:      an nn.Module or any callable; with `cond` it is called as net(x_t, t, **cond).
    path:     the Gaussian path it was, or will be, trained on.
    predicts: "eps" | "score" | "data" | "velocity" | "v", what the network returns.
    time:     a callable from the path's time t (B,) to what the network sees instead: for a network trained on the
              integers of a `DDPM` chain, `time=path.index`. It receives t in at least float32; its answer is passed on.
    learns_variance: the network returns twice the channels, (B, 2C, ...): its prediction, then for every value a number
              in [-1, 1] that places the log-variance of a chain's step between its least and its largest, as
              `Ancestral(variance="learned")` samples, `vlb` scores and `hybrid_loss` trains it.

    `model(x_t, t)` is the network's own output; `.eps .score .data .velocity .v` are conversions of it, each one
    network call. Raises TypeError or ValueError if the path, the name or the network's output is not as described.
    """

    predicts: str

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: GaussianPath,
        predicts: str = "eps",
        *,
        time: Callable[[Tensor], Tensor] | None = None,
        learns_variance: bool = False,
    ):
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x_t, t), and {net!r} is {type(net).__name__}.")
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {path!r}.")
        if time is not None and not callable(time):
            raise TypeError(f"time must be callable, t of shape (B,) to what the network sees, and it is {time!r}.")
        self.predicts = _checks.choice("prediction", predicts, PREDICTIONS)
        if predicts == "score" and not path.has_score:
            raise ValueError(f"On {path!r} there is no score to predict; train a network for 'velocity' or 'v'.")
        self.net = net
        self.path = path
        self.time = time
        if not isinstance(learns_variance, bool):
            raise TypeError(f"learns_variance must be True or False, and it is {learns_variance!r}.")
        self.learns_variance = learns_variance

    def extra_repr(self) -> str:
        """The path and the prediction, for printing."""
        return f"path={self.path!r}, predicts={self.predicts!r}"

    def forward(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The network's own output at `x_t` (B, *event) and times `t`, a scalar or (B,), in the dtype of `x_t`."""
        t = self.path.checked_times(batch_of_times(t, x_t.to(torch.promote_types(x_t.dtype, torch.float32))))
        return self._call_network(x_t.clone(), t, self.working_dtype(x_t.dtype), _checks.conditions(cond))[0]

    def predict(self, x_t: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """The network's own output, for callers that have checked their arguments: no copies, no checks of `t` (B,)."""
        return self._call_network(x_t, t, self.working_dtype(x_t.dtype), cond)[0]

    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype of the network's parameters, or `default` where there are none."""
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), default)

    def _call_network(
        self, x_t: Tensor, t: Tensor, dtype: torch.dtype, cond: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """(prediction, variance or None), one network call in `dtype`; this runs at every step, so it is kept short."""
        x = x_t if x_t.dtype is dtype else x_t.to(dtype)  # below, a clone of t: the network may write into it
        seen = self._seen(t, dtype) if self.time is not None else t.clone() if t.dtype is dtype else t.to(dtype)
        out = self.net(x, seen, **cond)
        wanted = (len(x_t), 2 * x_t.shape[1], *x_t.shape[2:]) if self.learns_variance else x_t.shape
        if not isinstance(out, Tensor) or out.shape != wanted:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"The network must return a tensor of shape {tuple(wanted)} for such an x_t, and gave {got}."
            )
        if out.dtype is not x_t.dtype:
            if not out.is_floating_point():
                raise TypeError(f"The network must return real floating numbers, and its output has dtype {out.dtype}.")
            out = out.to(x_t.dtype)
        return out.chunk(2, 1) if self.learns_variance else (out, None)

    def _seen(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """What `time` makes of t; in double precision only where the network is."""
        seen = self.time(t.clone())
        double = isinstance(seen, Tensor) and seen.dtype is torch.float64 and dtype is not torch.float64
        return seen.float() if double else seen

    def on(self, path: GaussianPath) -> Model:
        """See `Model.on`."""
        return Moved(self, path)

    @property
    def clocks(self) -> tuple[float, float]:
        """The ends of the path it is trained on."""
        return self.path.ends

    @property
    def has_score(self) -> bool:
        """What the path says."""
        return self.path.has_score

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The time, the scale r and the two factors of (*)."""
        r = self.path.scale(u)
        a, b, k = PREDICTIONS[self.predicts](self.path, t, (1 - u) * r, u * r)
        det = (1 - u) * b - u * a
        return t, (r, (c * b - d * a) / det + e, ((1 - u) * d - u * c) * k / det)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """(*) with one network call."""
        r, from_y, from_p = query.numbers
        return torch.addcmul(from_y * y, from_p, self._call_network(r * y, query.t, query.dtype, cond)[0])

    def estimate_with_variance(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> tuple[Tensor, Tensor]:
        """The same and, from the same call of a network that `learns_variance`, its place in [0, 1], shaped like y."""
        r, from_y, from_p = query.numbers
        prediction, place = self._call_network(r * y, query.t, query.dtype, cond)
        return torch.addcmul(from_y * y, from_p, prediction), 0.5 * (place + 1)


class Moved(Model):
    """A network on another path than its own, see `Model.on`: it is shown its own path's time and state."""

    def __init__(self, model: ScoreModel, path: GaussianPath):
        super().__init__()
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as CondOT(), and it is {path!r}.")
        if path.source is not model.path.source:
            raise ValueError(
                f"A model keeps its source, {model.path.source!r}, and {path!r} has {path.source!r}; move it to an "
                "Interpolant with the same source."
            )
        self.model = model
        self.path = path

    def on(self, path: GaussianPath) -> Model:
        """The network's own model, moved once more."""
        return self.model.on(path)

    @property
    def clocks(self) -> tuple[float, float]:
        """Those of the model itself."""
        return self.model.clocks

    @property
    def has_score(self) -> bool:
        """Whether the model itself has a score; the path it is moved to takes nothing away."""
        return self.model.has_score

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The model's own answer to the same question at the same clock."""
        return self.model.query(u, self.model.path.time(u), c, d, e)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """The model's own."""
        return self.model.estimate(y, query, cond)

    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """The model's own."""
        return self.model.working_dtype(default)
