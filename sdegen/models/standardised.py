"""Units: data of any mean and deviation, and a network that only meets numbers of order one.

With m and s the mean and the deviation of every value of the data, the model lives on

    z = (x - m) / s        x = m + s z        log p(x) = log p(z) - sum of log s

Data have the user's units wherever they are handed over; whatever is noised (x_T, latents, the states inside a path)
has the network's, z_t = alpha z + sigma eps, so that the law at the noise end is the path's own prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdegen import _checks


class Standardize(nn.Module):
    """The units of the data: z = (x - mean)/std is what the network is trained on.

    Given as ScoreModel(net, path, standardize=Standardize.of(data)), it is kept with the weights. `loss`, `log_prob`
    and `encode` then take data, and `sample` and `decode` return data, in their own units; densities are those of the
    data, log p(x) = log p(z) - sum of log std. Latents, `x_T`, the states inside a path and a model's own predictions
    are in the units of z.

    Args:
        mean: a tensor, array or number that broadcasts over one sample: (d,) for points, (C, 1, 1) for channels.
        std: likewise, positive.

    Raises:
        TypeError: an argument that holds no real numbers.
        ValueError: numbers that are not finite, a `std` that is not positive, shapes that do not broadcast.

    Examples:
        >>> import torch, sdegen
        >>> x = torch.tensor([[1000.0, 2.0], [3000.0, 6.0]])
        >>> units = sdegen.Standardize.of(x)
        >>> units(x).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float, std: Tensor | float):
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers, dtype = _checks.numbers(name, value)
            self.register_buffer(name, numbers.to(dtype))
            if not bool(torch.isfinite(numbers).all()):
                raise ValueError(f"{name} must be finite, and it is {value!r}.")
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, and it is {std!r}: a value that never changes has no density.")
        try:
            torch.broadcast_shapes(self.mean.shape, self.std.shape)
        except RuntimeError as error:
            raise ValueError(
                f"mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} must broadcast against each other."
            ) from error

    @classmethod
    def of(cls, data: Tensor | NDArray[np.floating[Any]]) -> Standardize:
        """The mean and the deviation of data: of every value for points (N, d), of all values together otherwise.

        Args:
            data: a tensor or array (N, *event), N at least 2.

        Returns:
            the units in which each of the d values, or all values together, have mean 0 and mean square 1.

        Raises:
            TypeError: data that are no real tensor.
            ValueError: fewer than two samples, NaN, or a value that is the same in all of them.

        Examples:
            >>> import torch, sdegen
            >>> sdegen.Standardize.of(torch.tensor([[1.0, 5.0], [3.0, 9.0]])).std.tolist()
            [1.0, 2.0]
        """
        data = _checks.batch("data", torch.as_tensor(data) if isinstance(data, np.ndarray) else data)
        if len(data) < 2:
            raise ValueError(f"A deviation needs two samples or more, and data have shape {tuple(data.shape)}.")
        wide = data.detach().double()
        std, mean = torch.std_mean(wide, dim=0 if data.ndim == 2 else tuple(range(data.ndim)), correction=0)
        constant = torch.nonzero(std.reshape(-1) <= 1e-12 * mean.reshape(-1).abs())[:, 0].tolist()
        if constant:
            where = f"Columns {constant[:5]} of data never change" if data.ndim == 2 else "The data never change"
            raise ValueError(f"{where}, so that they have no density: leave them out.")
        return cls(mean.to(data.dtype), std.to(data.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Data `x` (B, *event) in the network's units, z = (x - mean)/std."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """The data behind `z` (B, *event): mean + std z."""
        return self.mean.to(z) + self.std.to(z) * z

    def log_volume(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum of log std over the values of one sample, those of `mask` alone if it is given, (B,)."""
        logs = self.std.to(x).log().expand_as(x)
        return (logs if mask is None else logs * mask).flatten(1).sum(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardize:
        """Moves the numbers and never rounds them: `model.half()` is about the network."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        for name, value in before.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and not (value.is_meta or moved.is_meta):
                self._buffers[name] = value.to(moved.device)
        return self

    def check(self, x: Tensor, name: str = "x") -> None:
        """A ValueError unless mean and std broadcast over one sample of `x` (B, *event)."""
        event = tuple(x.shape[1:])
        for own in (self.mean, self.std):
            fits = own.ndim <= len(event) and all(
                a in (1, b) for a, b in zip(reversed(own.shape), reversed(event), strict=False)
            )
            if not fits:
                raise ValueError(
                    f"The model's units are {tuple(own.shape)} numbers, which do not broadcast over one sample of "
                    f"{name}, {event}."
                )

    def extra_repr(self) -> str:
        """The numbers where they are few, their shapes otherwise."""
        shown = (v.tolist() if v.numel() <= 4 else tuple(v.shape) for v in (self.mean, self.std))
        return "mean={}, std={}".format(*shown)
