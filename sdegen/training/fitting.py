"""Training in one call: batches, gradients, an average of the weights, checkpoints; on one process or on many.

Step k = 0, 1, ... of a training of seed s, with theta the weights, B the batch size and l_i the loss of sample i
(losses.py),

    L_k = 1/B sum over i of l_i(theta_k)            theta_{k+1} = optimiser(theta_k, grad L_k, clipped to norm c)
    m_{k+1} = d_k m_k + (1 - d_k) theta_{k+1}       d_k = min(ema, (1 + k) / (10 + k)),    m_0 = theta_0

Which samples, t, noise and partners of a coupling the whole batch has depends on (s, k) alone; each process, and each
of the parts in which a process takes its rows one after another, gets its rows of them. So every division of the batch
walks one curve, up to rounding, and a training that was interrupted goes on as if it had not been: it holds no state of
a random generator but k, for dropout inside the network either. d_k lets the first weights go quickly: after 100 steps
they weigh less than 1e-12.

References:
    Acceleration of Stochastic Approximation by Averaging, Polyak and Juditsky, 1992 (the average).
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239 (its use here).
"""

from __future__ import annotations

import copy
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, uniform
from sdegen.models.base import Cond
from sdegen.models.model import ScoreModel
from sdegen.paths.gaussian import GaussianPath
from sdegen.training.batches import Batches, Data, Draws, batches_of, warn_of_scale
from sdegen.training.couplings import Coupling, pairs
from sdegen.training.losses import Weighting, loss
from sdegen.training.losses import _checked as check_objective
from sdegen.training.resuming import Checkpoint
from sdegen.training.times import Times

if TYPE_CHECKING:
    from accelerate import Accelerator

Log = Callable[[int, dict[str, float]], object]
Part = tuple[Tensor, Tensor, dict[str, object], Tensor, Tensor | None]
"""x, noise, conditions, times and their importance weights, None for 1: what one call of the network is about."""

INSTALL = "pip install 'sdegen[train]'"
LOOK_EVERY = 32
"""Steps between two looks at the losses where a look means waiting: for an accelerator, for other processes."""


def fit(
    model: ScoreModel,
    data: Data,
    *,
    steps: int,
    batch_size: int = 128,
    optimizer: Optimizer | tuple[Optimizer, LRScheduler] | None = None,
    ema: float | None = 0.999,
    clip: float | None = 1.0,
    accumulate: int = 1,
    precision: str | None = None,
    times: Times | None = None,
    weighting: Weighting | None = None,
    coupling: Coupling | None = None,
    cond: Cond = None,
    validation: Data | tuple[Data, Cond] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1000,
    seed: int = 0,
    progress: bool = True,
    log: Log | None = None,
) -> ScoreModel:
    """Train a model on data, and return it with the average of its weights.

    Under `torchrun` or `accelerate launch` every process calls it with the same arguments; they share each batch.

    Args:
        model: the `ScoreModel` to train, on the device where it is; each of several processes moves it to its own. It
            ends with the last weights, in training mode.
        data: (N, *event), a tensor or a NumPy array, whose samples come in a new order in every epoch; or a `Dataset`
            or `DataLoader` that yields x or (x, cond). A loader's own order and batch size count. What items draw from
            torch's generator depends on the seed and their place; what they draw elsewhere, from NumPy say, is their
            own affair. Batches get the dtype of the network; with units, after these are taken off.
        steps: of the optimiser, those before a checkpoint included.
        batch_size: samples in one step, over all processes together.
        optimizer: an optimiser on the model's parameters, or (optimiser, scheduler), the scheduler moved after every
            step. None for Adam at 1e-3, reached over the first twentieth of the steps (1000 at most), and down to 0
            along a cosine.
        ema: d, the decay of the average; None or 0 for the last weights themselves.
        clip: c, the largest norm of the gradient; None for any.
        accumulate: parts of the batch, one after another, for a batch that does not fit into memory.
        precision: "bf16" or "fp16" for the network's own arithmetic, by accelerate; "no" for none; None for what
            `accelerate launch` was told, else none.
        times: as in `loss`; drawn for the whole batch.
        weighting: as in `loss`.
        coupling: as in `loss`; it gets the whole batch.
        cond: keyword arguments for the network, one row per sample of data, or `Shared`.
        validation: data like `data`, or a pair (x, cond): the average's mean loss on them, always with the same draws.
        checkpoint: a file, written every `every` steps and at the end, from which the training goes on if it is there;
            `sdegen.load(file, net)` reads the averaged model from it. More steps than it was begun with are allowed:
            what was walked stays, and a default schedule goes on where the longer one is at that step.
        every: steps between two checkpoints, logs and validations.
        seed: of all draws. torch's global generators are left as they were.
        progress: whether a bar is shown, with the loss; only in a terminal.
        log: log(step, numbers) after every `every` steps and at the end, on the first process: the mean "loss" since
            the last call, the rate "lr" of the last step and, where it is asked for, the "validation".

    Returns:
        A copy of the model, in eval mode, with the averaged weights.

    Raises:
        TypeError: an argument of another type, data of another dtype among them.
        ValueError: an argument that does not fit; a checkpoint of another network or another training.
        NonFiniteError: a loss or weights that became NaN or infinite, with the step; the last checkpoint stays. On an
            accelerator, or with several processes, the losses are looked at every 32 steps and before a checkpoint.
        OSError: a checkpoint that cannot be written, before the training; later there is a warning, and it goes on.
        ImportError: without accelerate or tqdm.

    Examples:
        >>> import torch, sdegen
        >>> from sdegen.nets import MLP
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> model = sdegen.ScoreModel(MLP(2, hidden=16, depth=1), sdegen.VPSDE())
        >>> trained = sdegen.fit(model, x, steps=20, progress=False)
        >>> trained.training, model.training
        (False, True)
    """
    _check_arguments(model, times, weighting, coupling, log)
    steps, batch_size, accumulate, every, seed = _whole_numbers(steps, batch_size, accumulate, every, seed)
    _check_real_numbers(ema, clip)
    recipe = _Recipe(times, weighting, coupling, accumulate, seed)
    with _own_randomness(model), _accelerated(model, precision) as accelerator:
        run = _Run(model, recipe, accelerator, _batches(data, cond, validation, batch_size))
        optimiser, schedule = _optimisers(optimizer, run, steps)
        saved = run.checkpoint(checkpoint, optimiser, schedule, {"ema": ema, "clip": clip})
        start = run.agreed(saved.resume(steps))
        with _bar(progress and accelerator.is_main_process, start, steps) as show:
            losses = _Losses(run, show)
            for step in range(start, steps):
                values = []
                for part, last in run.parts(step):
                    with nullcontext() if last else accelerator.no_sync(run.objective):
                        value = run.objective(*part) / accumulate
                        accelerator.backward(value)
                    values.append(value.detach())
                losses.add(step, sum(values))
                rate = run.descend(optimiser, schedule, clip)
                run.average.update(min(ema or 0.0, (1 + step) / (10 + step)))
                show(1)
                if (step + 1) % every == 0 or step + 1 == steps:
                    mean = losses.mean()
                    run.check_weights(step)
                    run.average.follow()
                    saved.write(step + 1)
                    show(**run.report(log, step + 1, {"loss": mean, "lr": rate}))
    return run.average.model


@dataclass(frozen=True)
class _Recipe:
    """On which draws a model is trained, and how these are weighted.

    Attributes:
        times: as `fit` takes them, and so are the others.
        weighting: the same.
        coupling: the same.
        accumulate: the same.
        seed: the same.
    """

    times: Times | None
    weighting: Weighting | None
    coupling: Coupling | None
    accumulate: int
    seed: int


class _Objective(nn.Module):
    """The loss as the forward pass of a module, which is what can be spread over processes."""

    def __init__(self, model: ScoreModel, weighting: Weighting | None):
        super().__init__()
        self.model, self.weighting = model, weighting

    def forward(
        self, x: Tensor, noise: Tensor, cond: dict[str, object], t: Tensor, importance: Tensor | None
    ) -> Tensor:
        """The mean loss of these samples at these times, with this noise."""
        if importance is None:
            return loss(self.model, x, weighting=self.weighting, cond=cond, t=t, noise=noise)
        drawn = t, importance
        return loss(self.model, x, weighting=self.weighting, cond=cond, times=lambda *_: drawn, noise=noise)


class _Average:
    """A copy of a model whose weights follow it; what is no weight, such as the buffers, is the model's own.

    torch's `AveragedModel` keeps its count in a tensor and looks at it in every step, which an accelerator waits for.
    """

    def __init__(self, model: ScoreModel):
        tensors: dict[int, Tensor] = {}
        tensors |= {id(p): nn.Parameter(p.detach().clone(), p.requires_grad) for p in model.parameters()}
        tensors |= {id(b): b.detach().clone() for b in model.buffers()}
        self.model = copy.deepcopy(model, {**tensors, id(model.path): model.path}).eval()
        here, there = ([*m.parameters(), *m.buffers()] for m in (self.model, model))
        weights = {id(p) for p in model.parameters() if p.is_floating_point()}
        both = [(a.detach(), b.detach()) for a, b in zip(here, there, strict=True) if id(b) in weights]
        self.weights = [a for a, _ in both], [b for _, b in both]
        self.source = model

    def update(self, decay: float) -> None:
        """The average is `decay` times itself and the rest the model's weights."""
        get_ema_multi_avg_fn(decay)(*self.weights, 0)

    def follow(self) -> None:
        """Take over what is no weight, as it is now: a network may put new tensors in place of its buffers."""
        for mine, its in zip(self.model.modules(), self.source.modules(), strict=True):
            for name, value in its._buffers.items():
                mine._buffers[name] = None if value is None else value.detach().clone()


class _Run:
    """One training: the model, its average, its batches and its draws."""

    def __init__(
        self,
        model: ScoreModel,
        recipe: _Recipe,
        accelerator: Accelerator,
        batches: Callable[[torch.dtype, Draws], tuple[Batches, Batches | None]],
    ):
        if accelerator.num_processes > 1:
            model.to(accelerator.device)
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("The model has no parameters to train: its net must be an nn.Module with some.")
        self.device = self.parameters[0].device
        _warn_of_half(self.parameters)
        self.draws = Draws(recipe.seed, self.device, accelerator.process_index)
        self.dtype = torch.promote_types(model.working_dtype(torch.get_default_dtype()), torch.float32)
        self.batches, self.validation = batches(self.dtype, self.draws)
        for data in (self.batches, self.validation):
            if data is not None:
                data.wide = model.standardize is not None
        self.batches.check(recipe.accumulate * accelerator.num_processes)
        if self.validation is not None:
            event, other = self.batches.some().shape[1:], self.validation.some().shape[1:]
            if event != other:
                raise ValueError(
                    f"validation must hold samples like those of data, {tuple(event)}, not {tuple(other)}."
                )
        if model.standardize is None:
            warn_of_scale(self.batches.some())
        model.train().zero_grad()
        self.objective = accelerator.prepare_model(_Objective(model, recipe.weighting), device_placement=False)
        self.average = _Average(model)  # after the processes have agreed on the weights

    def checkpoint(
        self,
        file: str | os.PathLike[str] | None,
        optimiser: Optimizer,
        schedule: LRScheduler | None,
        settings: Mapping[str, object],
    ) -> Checkpoint:
        """The file from which this training goes on; the number of steps, processes and parts is free."""

        def about() -> dict[str, object]:
            recipe, model = self.recipe, self.model
            drawn = {n: getattr(recipe, n) for n in ("times", "weighting", "coupling", "seed")}
            data = {"batch_size": self.batches.size, **self.batches.identity}
            asked = {n: getattr(model, n) for n in ("path", "predicts", "learns_variance", "standardize")}
            groups = [{k: v for k, v in group.items() if k != "params"} for group in optimiser.param_groups]
            how: dict[str, object] = {"optimizer": (type(optimiser), groups), "time": model.time}
            how["schedule"] = None if schedule is None else (type(schedule), schedule.state_dict())
            return {**settings, **drawn, **data, **asked, **how, "precision": self.accelerator.mixed_precision}

        parts = {"optimizer": optimiser, "schedule": schedule, "scaler": self.accelerator.scaler}
        return Checkpoint(file, self.model, self.average.model, parts, about, self.accelerator.is_main_process)

    def agreed(self, start: int) -> int:
        """The step to go on from, after a ValueError unless it is the same in every process."""
        if self.accelerator.num_processes > 1:
            starts = self.accelerator.gather(torch.tensor([start], device=self.device)).tolist()
            if len(set(starts)) > 1:
                raise ValueError(
                    f"The processes find checkpoints of the steps {starts}: `checkpoint` must be one file, on a disk "
                    "that all of them see."
                )
        return start

    def parts(self, step: int) -> Iterator[tuple[Part, bool]]:
        """The rows of this process in the batch of a step, part by part, each with whether it is the last."""
        recipe, path, B = self.recipe, self.model.path, self.batches.size
        share = B // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        x, cond = self.batches.rows(step, mine if recipe.coupling is None else slice(0, B))
        g = self.draws.generator(Draws.STEP, step)
        t, importance = (recipe.times or _uniform)(path, B, g, x.dtype, x.device)
        noise = path.noise_like(x.new_empty(()).expand(B, *x.shape[1:]), g)
        if recipe.coupling is None:
            noise = noise[mine]
        else:
            seen = x if self.model.standardize is None else self.model.standardize(x)
            i, j = (rows[mine] for rows in pairs(recipe.coupling, seen, noise, g, cond))
            x, noise, cond = x[i], noise[j], _checks.conditions_of_rows(cond, i, B)
        t, importance = t[mine], None if importance is None else importance[mine]
        self.draws.seed_torch(Draws.NETWORK + self.draws.process, step)
        size = share // recipe.accumulate
        for start in range(0, share, size):
            rows = slice(start, start + size)
            of_rows = _checks.conditions_of_rows(cond, rows, share)
            weights = None if importance is None else importance[rows]
            yield (x[rows], noise[rows], of_rows, t[rows], weights), start + size == share

    def descend(self, optimiser: Optimizer, schedule: LRScheduler | None, clip: float | None) -> float:
        """One step of the optimiser and of its schedule; the rate it was taken at."""
        if clip is not None:
            self.accelerator.unscale_gradients(optimiser)
            held = [p for group in optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(held, clip, foreach=True if self.device.type == "cpu" else None)
        rate = float(optimiser.param_groups[0]["lr"])
        optimiser.step()
        self.model.zero_grad()
        if schedule is not None and not self.accelerator.optimizer_step_was_skipped:
            schedule.step()
        return rate

    def check_weights(self, step: int) -> None:
        """A NonFiniteError unless the weights and their average are finite: one wait."""
        sums = [w.sum().float() for weights in self.average.weights for w in weights]
        if not math.isfinite(float(torch.stack(sums).sum())):
            raise NonFiniteError(f"The weights are NaN or infinite after step {step + 1}, whose loss was still finite.")

    def report(self, log: Log | None, step: int, numbers: dict[str, float]) -> dict[str, float]:
        """The numbers, with that of the validation, told to the user's function; every process computes it alike."""
        if self.validation is not None:
            numbers["validation"] = self._validation_loss(self.validation)
        if log is not None and self.accelerator.is_main_process:
            log(step, numbers)
            self.model.train()  # whatever it was put into to be looked at
        return {name: number for name, number in numbers.items() if name == "validation"}

    def _validation_loss(self, data: Batches) -> float:
        """The average's mean loss on other data, with the same draws every time."""
        self.draws.seed_torch(Draws.VALIDATION)
        score = functools.partial(
            loss,
            self.average.model,
            weighting=self.recipe.weighting,
            times=self.recipe.times,
            coupling=self.recipe.coupling,
            generator=self.draws.generator(Draws.VALIDATION),
            reduction="none",
        )
        with torch.no_grad(), self.accelerator.autocast():
            parts = [score(x, cond=cond) for x, cond in data.in_order()]
        return float(torch.cat(parts).mean())


class _Losses:
    """The losses of the steps, on their device, looked at from time to time: NaN is found, and the bar gets one."""

    def __init__(self, run: _Run, show: Callable[..., None]):
        self.accelerator, self.show = run.accelerator, show
        alone = run.accelerator.num_processes == 1 and run.device.type == "cpu"
        self.each = 1 if alone else LOOK_EVERY
        self.waiting: list[Tensor] = []
        self.seen: list[float] = []
        self.step = 0

    def add(self, step: int, value: Tensor) -> None:
        """That of a step; on one CPU it is looked at before the step is taken."""
        self.waiting.append(value)
        self.step = step
        if len(self.waiting) >= self.each:
            self._look()

    def mean(self) -> float:
        """The mean since it was last asked for, over all processes."""
        self._look()
        mean, self.seen = math.fsum(self.seen) / len(self.seen), []
        return mean

    def _look(self) -> None:
        if not self.waiting:
            return
        values = torch.stack(self.waiting)
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        first, found = self.step + 1 - len(self.waiting), values.tolist()
        self.waiting = []
        for step, value in enumerate(found, first):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"The loss is {value} at step {step + 1}: take a smaller rate, or look at the data, the network "
                    "and the precision. The checkpoint, if there is one, is of an earlier step."
                )
        self.seen += found
        self.show(loss=found[-1])


class _WarmCosine(LambdaLR):
    """The default schedule of `steps` steps: up along a line over the first w, then down to 0 along a cosine.

    The factor of step k is min(1, (k + 1)/w) (1 + cos(pi k/steps))/2 with w a twentieth of the steps, 1000 at most.
    """

    def __init__(self, optimizer: Optimizer, steps: int):
        warm = max(1, min(1000, steps // 20))
        super().__init__(optimizer, lambda k: min(1, (k + 1) / warm) * 0.5 * (1 + math.cos(math.pi * k / steps)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, at the rates of this number of steps."""
        super().load_state_dict(state_dict)
        for group, factor, base in zip(self.optimizer.param_groups, self.lr_lambdas, self.base_lrs, strict=True):
            group["lr"] = base * factor(self.last_epoch)


def _optimisers(given: object, run: _Run, steps: int) -> tuple[Optimizer, LRScheduler | None]:
    """The optimiser and its schedule; the default's fused kernel is one call where a loop would be hundreds."""
    if given is None:
        fused = run.device.type in ("cpu", "cuda")
        adam = torch.optim.Adam(run.parameters, 1e-3, fused=fused)
        return adam, _WarmCosine(adam, steps)
    optimiser, schedule = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    right = isinstance(schedule, (LRScheduler, type(None))) and not isinstance(schedule, ReduceLROnPlateau)
    if not isinstance(optimiser, Optimizer) or not right:
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or a pair of it and an LRScheduler that needs no numbers, and "
            f"it is {given!r}."
        )
    if isinstance(optimiser, torch.optim.LBFGS):
        raise TypeError("optimizer must take its step from gradients, and LBFGS asks for the loss again and again.")
    if schedule is not None and getattr(schedule, "optimizer", optimiser) is not optimiser:
        raise ValueError(
            f"optimizer is a pair whose {type(schedule).__name__} moves the rates of another optimiser: make it with "
            "the one that stands beside it."
        )
    own = {id(p) for p in run.model.parameters()}
    others = sum(id(p) not in own for group in optimiser.param_groups for p in group["params"])
    if others:
        raise ValueError(
            f"optimizer must hold parameters of the model, and {others} of its tensors are not among them: make it "
            "with model.parameters(), of this very model."
        )
    wrapped = run.accelerator.prepare_optimizer(optimiser, device_placement=False)
    return (optimiser if run.accelerator.scaler is None else wrapped), schedule


def _batches(
    data: Data, cond: Cond, validation: Data | tuple[Data, Cond] | None, batch_size: int
) -> Callable[[torch.dtype, Draws], tuple[Batches, Batches | None]]:
    """What makes the batches, once dtype and device are known."""

    def made(dtype: torch.dtype, draws: Draws) -> tuple[Batches, Batches | None]:
        if validation is None:
            return batches_of("data", data, cond, batch_size, dtype, draws), None
        held_out, its = validation if isinstance(validation, tuple) else (validation, None)
        return batches_of("data", data, cond, batch_size, dtype, draws), batches_of(
            "validation", held_out, its, batch_size, dtype, draws
        )

    return made


def _warn_of_half(parameters: list[nn.Parameter]) -> None:
    """A UserWarning where the weights themselves are too coarse for small steps, and for an average."""
    coarse = next((p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)), None)
    if coarse is not None:
        warnings.warn(
            f"The weights are {coarse}, in which small steps and their average round away: keep them in float32, by "
            "model.float(), and give precision='bf16' for the arithmetic alone.",
            UserWarning,
            stacklevel=_checks.stacklevel_outside(),
        )


def _uniform(
    path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, None]:
    """The times that `loss` draws by default, whose weights are 1."""
    return path.at(uniform(n, generator, dtype, device)), None


def _check_arguments(model: object, times: object, weighting: object, coupling: object, log: object) -> None:
    """What `loss` would refuse, but for the data, and a `log` that cannot be called."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"fit needs a ScoreModel, whose network it trains, and model is {type(model).__name__}.")
    check_objective(model, torch.zeros(1, 1), weighting, times, coupling, "mean", None)
    if log is not None and not callable(log):
        raise TypeError(f"log must be callable as log(step, numbers), and it is {log!r}.")


def _whole_numbers(*values: object) -> list[int]:
    names = ("steps", "batch_size", "accumulate", "every", "seed")
    return [_checks.whole(name, value, int(name != "seed")) for name, value in zip(names, values, strict=True)]


def _check_real_numbers(ema: object, clip: object) -> None:
    if ema is not None and _checks.real("ema", ema, 0, 1) == 1:
        raise ValueError(f"ema must be below 1, where an average would never move, and it is {ema}.")
    if clip is not None:
        _checks.real("clip", clip, 0, strict=True)


@contextmanager
def _own_randomness(model: nn.Module) -> Iterator[None]:
    """Gradients are on, and torch's global generators, of the CPU and of the model's device, are left as they were."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kinds = {"devices": [device], "device_type": device.type} if device.type in ("cuda", "xpu") else {"devices": []}
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(**kinds):
        yield


@contextmanager
def _accelerated(model: nn.Module, precision: str | None) -> Iterator[Accelerator]:
    """An Accelerator on the device of the model, or of this process; accelerate's global settings come back after it.

    They can be set once only: a training in another precision, or on another device, would be refused.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise ImportError(f"fit needs accelerate; install it with `{INSTALL}`.") from error
    if precision is not None:
        _checks.choice("precision", precision, ("no", "bf16", "fp16"))
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    on_cpu = not torch.cuda.is_available() if together else device.type not in ("cuda", "xpu", "mps")
    if precision == "fp16" and on_cpu:
        raise ValueError(f"precision='fp16' needs an accelerator, and the model is on {device}: take 'bf16' or None.")
    states = (GradientState, AcceleratorState) if together else (GradientState, AcceleratorState, PartialState)
    kept = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        once = GradientAccumulationPlugin(num_steps=1)  # not what the environment says: the loop has its own parts
        yield Accelerator(cpu=on_cpu, mixed_precision=precision, gradient_accumulation_plugin=once)
    finally:
        for state, before in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)


@contextmanager
def _bar(progress: bool, start: int, steps: int) -> Iterator[Callable[..., None]]:
    """show(n, **numbers) moves the bar by n steps and writes numbers beside it; without a terminal there is none."""
    if not progress:
        yield lambda n=0, **numbers: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(f"progress=True needs tqdm; install it with `{INSTALL}`.") from error
    with tqdm(initial=start, total=steps, unit="step", disable=None) as shown:
        beside: dict[str, float] = {}

        def show(n: int = 0, **numbers: float) -> None:
            if not shown.disable:
                beside.update(numbers)
                shown.set_postfix(beside, refresh=False)
                shown.update(n)

        yield show
