"""A network on a path: the model that is trained.

Its answer to every question is the one conversion (*) of base.py, with a single network call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sdegen import _checks
from sdegen._checks import stacklevel_outside
from sdegen._derivatives import following
from sdegen._shapes import batch_of_times, dtype_of
from sdegen.models.base import PREDICTIONS, Cond, Model, Query, combined, instead_of_model, prediction_row
from sdegen.models.identity import as_tensor, differences, from_tensor, identity
from sdegen.models.standardised import Standardize
from sdegen.models.wrapped import OnPath
from sdegen.paths.gaussian import GaussianPath


def trainable(verb: str, model: object) -> ScoreModel:
    """`model`, after a TypeError unless it is a ScoreModel; around one, DistributedDataParallel sees no training."""
    if isinstance(model, ScoreModel):
        return model
    what = type(model).__name__ if isinstance(model, Model) else instead_of_model(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        what += ", and to average gradients wrap the network, ScoreModel(DistributedDataParallel(net), path)"
    raise TypeError(f"{verb} needs a ScoreModel, whose network it trains, and model is {what}.")


class ScoreModel(Model):
    """A network on a path: `net(x_t, t)` returns its prediction, shaped like x_t, for t of shape (B,).

    `model(x_t, t)` is the network's own output; `.eps .score .data .velocity .v` are conversions of it, each one
    network call.

    Args:
        net: an nn.Module or any callable; with `cond` it is called as net(x_t, t, **cond).
        path: the Gaussian path it was, or will be, trained on.
        predicts: "eps" | "score" | "data" | "velocity" | "v", what the network returns.
        time: a callable from the path's time t (B,) to what the network sees instead: for a network trained on the
            integers of a `DDPM` chain, `time=path.index`. It receives t in at least float32; its answer is passed on.
        learns_variance: the network returns twice the channels, (B, 2C, ...): its prediction, then for every value a
            number in [-1, 1] that places the log-variance of a chain's step between its least and its largest, as
            `Ancestral(variance="learned")` samples, `vlb` scores and `hybrid_loss` trains it.
        standardize: the units of the data, `Standardize.of(data)`, where they are not of order one: `loss`, `log_prob`
            and `encode` take data, and `sample` and `decode` return them, in their own units.

    Raises:
        TypeError: an argument of another type; later, an output of the network that holds no real numbers.
        ValueError: an unknown prediction, or one that the path has not; later, an output of another shape.

    Examples:
        >>> net = lambda x, t: torch.tanh(x) * t[:, None]  # yours is trained by `loss`
        >>> model = sdegen.ScoreModel(net, sdegen.VPSDE())
        >>> x_t, t = torch.randn(64, 2), torch.rand(64)
        >>> sigma = model.path.sigma(t)[:, None]
        >>> torch.allclose(model.score(x_t, t) * sigma, -model.eps(x_t, t))
        True
    """

    predicts: str
    _units: Standardize | None

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: GaussianPath,
        predicts: str = "eps",
        *,
        time: Callable[[Tensor], Tensor] | None = None,
        learns_variance: bool = False,
        standardize: Standardize | None = None,
    ):
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x_t, t), and {net!r} is {type(net).__name__}.")
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {_checks.described(path)}.")
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
        if not isinstance(standardize, (Standardize, type(None))):
            raise TypeError(f"standardize must be a Standardize, such as Standardize.of(data), not {standardize!r}.")
        self._units = standardize

    @property
    def standardize(self) -> Standardize | None:
        """See `Model.standardize`."""
        return self._units

    def extra_repr(self) -> str:
        """The class of the network and its size, the path and the prediction, for printing."""
        net, more = self.net, "" if self.time is None else ", time=..."
        more += ", learns_variance=True" if self.learns_variance else ""
        more += "" if self.standardize is None else f", standardize={self.standardize!r}"
        name = type(net).__name__ if isinstance(net, nn.Module) else getattr(net, "__name__", type(net).__name__)
        if isinstance(net, nn.Module):
            name += f" with {sum(p.numel() for p in net.parameters() if not is_lazy(p)):,} parameters"
        return f"{name}, {self.path!r}, predicts={self.predicts!r}{more}"

    def get_extra_state(self) -> Tensor:
        """What the weights answer, for `state_dict`: the prediction and the path, as JSON in numbers."""
        return as_tensor(identity(self))

    def set_extra_state(self, state: object) -> None:
        """A ValueError, before any weight is loaded, if the state is that of a model which answers otherwise."""
        meta = isinstance(state, Tensor) and state.is_meta
        differ = [] if meta else differences(from_tensor(state), identity(self))
        if differ:
            raise ValueError(
                f"These are the weights of another model, which differs in {'; '.join(differ)}. Give ScoreModel the "
                "same arguments; to start from these weights all the same, load those of the network into model.net."
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, object], prefix: str, local_metadata: object, strict: bool, *lists: list[str]
    ) -> None:
        """Loads what was saved before a state said what it is, too; after a warning, if it is a whole model's."""
        key = f"{prefix}_extra_state"
        if key not in state_dict:
            state_dict[key] = self.get_extra_state()
            if state_dict.keys() >= {prefix + name for name in self.state_dict()}:
                warnings.warn(
                    f"This state has no {key!r}, so that nobody can tell whether its weights predict "
                    f"{self.predicts!r} on {self.path!r}: they are loaded as if they did.",
                    stacklevel=stacklevel_outside("torch", "safetensors", "accelerate"),
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def forward(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The network's own output at `x_t` (B, *event), in its dtype; `t` is the path's own time, a scalar or (B,)."""
        _checks.batch("x_t", x_t, finite=False)
        t = self.path.checked_times(batch_of_times(t, x_t.to(torch.promote_types(x_t.dtype, torch.float32))))
        return self.predict(x_t.clone(), t, _checks.network_arguments(_checks.conditions(cond)))

    def predict(self, x_t: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """The same for arguments that are known to be right: nothing is checked, and the network may write into x_t."""
        x, seen = self._shown(x_t, t, self.working_dtype(x_t.dtype))
        return self._answer(self.net(x, seen, **cond), x_t)[0]

    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype of the network's parameters, or `default` where there are none."""
        return dtype_of(self.net, default)

    def _shown(self, x_t: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, object]:
        """What the network takes, in `dtype`: x_t as it is, and a copy of t, since the network may write into it."""
        x = x_t if x_t.dtype is dtype else x_t.to(dtype)
        if self.time is None:
            return x, t.clone() if t.dtype is dtype else t.to(dtype)
        seen = self.time(t.clone())  # in double precision only where the network is
        double = isinstance(seen, Tensor) and seen.dtype is torch.float64 and dtype is not torch.float64
        return x, seen.float() if double else seen

    def _answer(self, out: object, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """(prediction, variance or None) from what the network returned for `x_t`, in the dtype of `x_t`."""
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
        if not self.learns_variance:
            return out, None
        prediction, variance = out.chunk(2, 1)
        return prediction, variance

    def on(self, path: GaussianPath) -> Model:
        """See `Model.on`."""
        return OnPath(self, path)

    @property
    def clocks(self) -> tuple[float, float]:
        """The ends of the path it is trained on."""
        return self.path.ends

    @property
    def has_score(self) -> bool:
        """What the path says."""
        return self.path.has_score

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The time, the scale r and the two factors of (*); q = 1 - u."""
        r, q = self.path.scale_at(u, t), 1 - u
        a, b, m = prediction_row(self.predicts, self.path, t, q * r, u * r)
        det = q * b - u * a
        return t, (r, (c * b - d * a) / det + e, (q * d - u * c) * m / det)

    def gain(self, u: Tensor) -> Tensor:
        """See `Model.gain`."""
        r = self.path.scale(u)
        a, b, _ = prediction_row(self.predicts, self.path, self.path.time(u), (1 - u) * r, u * r)
        return torch.hypot(a, b) / ((1 - u) * b - u * a).abs()

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """(*) with one network call; this runs at every step, so it is kept short."""
        t, (r, from_y, from_p), dtype = query.fitting(y)
        x, seen = self._shown(r * y, t, dtype)
        prediction = self._answer(self.net(x, seen, **cond), y)[0]
        if following.get() and x.requires_grad and not prediction.requires_grad:
            self._is_constant(prediction, x, t, cond)
        return combined(from_y, y, from_p, prediction)

    def _is_constant(self, prediction: Tensor, x: Tensor, t: Tensor, cond: Mapping[str, object]) -> None:
        """A ValueError unless a prediction without a gradient stays the same at another state: one call more."""
        with torch.no_grad():
            x, seen = self._shown(x + 0.1, t, x.dtype)
            other = self._answer(self.net(x, seen, **cond), x)[0].to(prediction)
        if other.device.type == "cpu" and not torch.equal(other, prediction):
            raise ValueError(
                "The network blocks gradients, and this model takes one through it: look for torch.no_grad, detach or "
                "a conversion out of torch in it."
            )

    def estimate_with_variance(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> tuple[Tensor, Tensor]:
        """See `Model.estimate_with_variance`."""
        t, (r, from_y, from_p), dtype = query.fitting(y)
        x, seen = self._shown(r * y, t, dtype)
        prediction, position = self._answer(self.net(x, seen, **cond), y)
        if following.get() and x.requires_grad and not prediction.requires_grad:
            self._is_constant(prediction, x, t, cond)
        if position is None:
            return super().estimate_with_variance(y, query, cond)
        return combined(from_y, y, from_p, prediction), 0.5 * (position + 1)
