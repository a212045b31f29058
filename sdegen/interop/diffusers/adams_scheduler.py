"""`Adams` as a diffusers scheduler: its own pipelines sample with the predictor and corrector of sdegen.

Diffusers' loop calls the network once at every one of `timesteps` and hands the answer to `step`. That is the pattern
of `Adams`: one answer at each knot but the last. The rows, the knots and the conversion to the slope are those of
sdegen/solvers/adams.py and of `from_diffusers`, so that the numbers are those of `sdegen.sample`.

An adaptive method is no scheduler, since there the loop belongs to the pipeline: it asks once a step, at times that
are known beforehand, and takes every step that is made. An adaptive method asks several times a step, sets the next
time by the error it has just seen, and takes a step back where that is too large. `SdegenPipeline` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._arguments import warn_of_tiny_alpha
from sdegen.interop.diffusers.loading import from_diffusers, not_imported
from sdegen.interop.diffusers.schedules import CHAINS, Schedule
from sdegen.solvers.adams import Adams
from sdegen.solvers.base import Problem
from sdegen.solvers.grids import Layout
from sdegen.solvers.scheme import Move, moved

try:
    import diffusers
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except (ImportError, RuntimeError, OSError) as error:
    raise not_imported("AdamsScheduler", error) from error

LIKE = 1e-4
"""How far a timestep may be from the one that is due: a pipeline may have rounded it to float32."""


class _Answered(nn.Module):
    """A network that has been asked already: it returns the answer that it was given."""

    answer: Tensor

    def forward(self, x: Tensor, t: Tensor, **_: object) -> tuple[Tensor]:
        """The answer, whatever the question."""
        return (self.answer,)


class AdamsScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # their two config_name differ
    """`sdegen.Adams` for diffusers' own pipelines: AdamsScheduler.from_config(pipe.scheduler.config).

    One network call a step, n for set_timesteps(n), at the knots of `StretchedGrid`, whose timesteps are fractions.
    From the same start x_T the samples are those of sample(from_diffusers(unet, scheduler), shape, Adams(n), x_T=x_T).
    Pipelines that start halfway, such as image-to-image, do not fit: there take `sample` with `u=(from, to)`.

    Args:
        num_train_timesteps: K, the number of betas.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: as in diffusers: "linear", "scaled_linear", "squaredcos_cap_v2" or "sigmoid".
        trained_betas: the betas themselves; those above then do not count.
        prediction_type: what the network predicts: "epsilon", "sample" or "v_prediction"; "flow_prediction" in a flow.
        variance_type: "learned_range" where the network also answers for the variance, which an ODE does not need.
        clip_sample: whether x_hat is clipped at every step, so that eps_hat goes with the clipped x_hat.
        clip_sample_range: to [-clip_sample_range, clip_sample_range].
        thresholding: whether x_hat is clipped to a quantile of its own size.
        dynamic_thresholding_ratio: that quantile.
        sample_max_value: the largest value that it may take.
        rescale_betas_zero_snr: whether the betas are rescaled so that the chain ends in pure noise.
        use_flow_sigmas: whether the network is one of flow matching, x_t = (1-s) x + s eps, and the betas do not count.
        adams_order: `Adams.order`: answers that a step uses, 1 to 4; 2 for strong guidance in few steps.

    Raises:
        ValueError: a schedule or a prediction that `from_diffusers` does not know.

    Examples:
        >>> from sdegen.interop.diffusers import AdamsScheduler
        >>> scheduler = AdamsScheduler()
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps)
        10

    References:
        Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section III.1.
    """

    order = 1
    _compatibles = [name for name in CHAINS if hasattr(diffusers, name)]  # noqa: RUF012  # diffusers wants a list

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        variance_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        rescale_betas_zero_snr: bool = False,
        use_flow_sigmas: bool = False,
        adams_order: int | None = None,
    ) -> None:
        self._net = _Answered()
        self._model, self._time = from_diffusers(self._net, self), Schedule.of(self).time
        path = self._model.path
        self.timesteps = torch.empty(0, dtype=torch.float64)
        self.init_noise_sigma = float(path.sigma(torch.tensor(path.t_noise, dtype=torch.float64)))
        self.num_inference_steps: int | None = None

    @classmethod
    def from_config(  # type: ignore[override]  # theirs says it may be a tuple
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler with the schedule of another one.

        Args:
            config: of a scheduler with betas. What it left to the defaults of its own class stays, which diffusers
                would replace by those of this one: a DDPMScheduler clips unless it is told not to.
            return_unused_kwargs: as in diffusers.
            kwargs: values that replace those of `config`, such as adams_order=2.

        Returns:
            the scheduler.

        Raises:
            ValueError: the config holds no betas.
        """
        theirs = getattr(diffusers, str(config.get("_class_name")), cls)
        if theirs is not cls:
            config = theirs.from_config(config).config
        if "beta_schedule" not in config:
            raise ValueError(
                "AdamsScheduler takes the config of a scheduler with betas, and this one has no beta_schedule but "
                f"{', '.join(config)}. For flow matching give AdamsScheduler(use_flow_sigmas=True, "
                "prediction_type='flow_prediction')."
            )
        own = {key: value for key, value in config.items() if key != "_use_default_values"}
        return super().from_config(own, return_unused_kwargs, **kwargs)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay the knots, and forget the answers of an earlier run.

        Args:
            num_inference_steps: n, the number of steps and of network calls.
            device: where `timesteps` are wanted.

        Raises:
            TypeError: n is no integer.
            ValueError: n is not positive, or the network is singular at the noise end.
        """
        steps = _checks.whole("num_inference_steps", num_inference_steps)
        solver, path = Adams(steps, order=self.config["adams_order"]), self._model.path
        low, high = path.ends
        warn_of_tiny_alpha(self._model, high, low, fixed=True)
        self._knots: Layout = solver.laid(Problem(self._model, torch.empty(0), high, low))
        self._moves: list[Move] = solver.moves(self._knots)
        self._scale: list[float] = path.scale(self._knots.u).tolist()
        self._answers: tuple[Tensor, ...] = ()
        self._taken = 0
        self.num_inference_steps = steps
        dtype = torch.float32 if torch.device(device or "cpu").type == "mps" else None  # which has no float64
        self.timesteps = self._time(self._knots.t[:-1]).to(device, dtype)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample: the network takes it as it is."""
        return sample

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From one knot to the next.

        Args:
            model_output: the network's answer at `sample`, (B, *event), or twice the channels with a variance.
            timestep: that of the answer; every one of `timesteps` in turn.
            sample: x_t, (B, *event).
            generator: not used, since an ODE draws no noise.
            return_dict: whether to return a SchedulerOutput, or a tuple.

        Returns:
            x at the next knot as `prev_sample`, (B, *event).

        Raises:
            ValueError: a timestep that is not the next of `timesteps`, which the message names.
        """
        k = self._checked_step(timestep)
        y = sample.to(torch.promote_types(sample.dtype, torch.float32)) / self._scale[k]
        self._net.answer = model_output
        if k == 0:  # all questions at once: a device is waited for once a run
            u, one = self._knots.u[:-1], torch.ones_like(self._knots.u[:-1])
            self._plan = self._model.plan(y, u, self._knots.t[:-1], -one, one)
        _, (row,), kept = self._moves[k]
        answers = (self._model.estimate(y, self._plan[k], {}), *self._answers)
        x = (self._scale[k + 1] * moved(row, y, answers)).to(sample.dtype)
        self._answers, self._taken = answers[:kept], k + 1
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _checked_step(self, timestep: float | Tensor) -> int:
        """The number of the step, after a ValueError unless `timestep` is the one that is due."""
        k, steps = (0, 0) if self.num_inference_steps is None else (self._taken, self.num_inference_steps)
        if k == steps:
            done = f"after the {steps} steps of set_timesteps({steps})" if steps else "before set_timesteps"
            raise ValueError(f"step was called {done}, with timestep {timestep}: call set_timesteps(n) for a new run.")
        known = [n.device.type == "cpu" for n in (timestep, self.timesteps) if isinstance(n, Tensor)]
        if all(known) and not abs(float(timestep) - float(self.timesteps[k])) <= LIKE:
            raise ValueError(
                f"Adams remembers its last answers and takes its timesteps in turn: step {k} is that of timestep "
                f"{float(self.timesteps[k])}, and step was called with {timestep}."
            )
        return k
