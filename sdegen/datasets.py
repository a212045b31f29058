"""Small data sets for trying things out: four toy densities in the plane, and scikit-learn's digits and photographs.

The toys are closed forms of uniform and normal draws: (n, 2) in torch's default dtype, mean zero, coordinates of order
one, on the device of `generator`. They draw from it, or from torch's global generator, and from no other. A bad
argument is a TypeError or ValueError.

The digits are images n of whole levels 0 ... L-1: data of `Quantized(17)`, whose `dequantise` makes them continuous by
uniform noise within each level, and whose `bits_per_dim` turns a log-density of the result back into a code length of
the levels themselves. Both stand here as functions too. Patches of the photographs are data of `Quantized(256)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators
from sdegen.likelihoods.quantised import Quantized

STRIPE, PERIOD, FIRST, MARGIN = 32, 128, 48, 16
"""Of `patches`, in columns of pixels: the width of a held-out stripe, from one to the next, where the first begins, and
what is left out on both sides of each."""


def two_moons(n: int, *, noise: float = 0.05, generator: torch.Generator | None = None) -> Tensor:
    """Two interleaved half circles of radius 4/3, shape (n, 2), blurred by N(0, noise^2 I).

    Draws are, with equal odds, 4/3 ((cos a, sin a) - (1/2, 1/4)) or 4/3 ((1 - cos a, 1/2 - sin a) - (1/2, 1/4)), a
    uniform on [0, pi].

    Examples:
        >>> from sdegen.datasets import two_moons
        >>> x = two_moons(1000, noise=0.0)
        >>> x.shape, bool(x.mean(0).abs().max() < 0.2)
        (torch.Size([1000, 2]), True)
    """
    noise = _checks.real("noise", noise, low=0.0)
    u = _uniform(n, 2, generator)
    angle, upper = math.pi * u[:, 0], u[:, 1] < 0.5
    moon = torch.stack([angle.cos(), angle.sin()], 1)
    moon = torch.where(upper[:, None], moon, moon.new_tensor([1.0, 0.5]) - moon)
    return 4 / 3 * (moon - moon.new_tensor([0.5, 0.25])) + noise * _normal(u, generator)


def eight_gaussians(n: int, *, std: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Equal mixture of eight N(m_k, std^2 I), shape (n, 2): m_k = sqrt(2) (cos, sin)(k pi / 4), k = 0 ... 7.

    Examples:
        >>> from sdegen.datasets import eight_gaussians
        >>> x = eight_gaussians(1000, std=0.0)
        >>> x.norm(dim=1).unique().round(decimals=3).unique()
        tensor([1.4140])
    """
    std = _checks.real("std", std, low=0.0)
    u = _uniform(n, 1, generator)
    angle = (8 * u[:, 0]).floor() * (math.pi / 4)
    means = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    return means + std * _normal(means, generator)


def checkerboard(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Density 1/8 on the eight unit squares of [-2, 2]^2 in which floor(x) + floor(y) is even, shape (n, 2).

    Examples:
        >>> from sdegen.datasets import checkerboard
        >>> x = checkerboard(1000)
        >>> (x.floor().sum(1).long() % 2).unique()  # on squares of one colour alone
        tensor([0])
    """
    u = _uniform(n, 3, generator)
    x = 4 * u[:, 0] - 2
    lower_or_upper = 2 * (u[:, 1] < 0.5).to(x)
    y = lower_or_upper + x.floor().remainder(2) - 2 + u[:, 2]
    return torch.stack([x, y], 1)


def swiss_roll(n: int, *, noise: float = 0.05, generator: torch.Generator | None = None) -> Tensor:
    """The spiral a (cos a, sin a)/7, a uniform on [3 pi/2, 9 pi/2], centred and blurred by N(0, noise^2 I); (n, 2).

    Examples:
        >>> from sdegen.datasets import swiss_roll
        >>> x = swiss_roll(1000, noise=0.0)
        >>> x.shape, bool(x.mean(0).abs().max() < 0.3)
        (torch.Size([1000, 2]), True)
    """
    noise = _checks.real("noise", noise, low=0.0)
    u = _uniform(n, 1, generator)
    a = 1.5 * math.pi * (1 + 2 * u)
    centre = u.new_tensor([2.0, 2 / (3 * math.pi)])  # the exact mean of a (cos a, sin a)
    return (torch.cat([a * a.cos(), a * a.sin()], 1) - centre) / 7 + noise * _normal(u.expand(-1, 2), generator)


def digits(split: str = "train", *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8x8 pixels in 17 levels, as scikit-learn ships them.

    Args:
        split: "train" (1437 images) or "test" (360), disjoint, each label split four to one.
        seed: which split; it depends on nothing else, and the global generators are left alone.

    Returns:
        images (n, 1, 8, 8), the whole numbers 0 ... 16 in torch's default dtype; labels (n,), int64.

    Raises:
        TypeError: an argument of another type.
        ValueError: another split, or a negative seed.
        ImportError: scikit-learn is not installed.

    Examples:
        >>> from sdegen.datasets import digits
        >>> images, labels = digits("test")
        >>> images.shape, int(images.max()), labels.unique().tolist()
        (torch.Size([360, 1, 8, 8]), 16, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    References:
        Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998, UCI Machine Learning Repository.
    """
    _checks.choice("split", split, ["train", "test"])
    seed = _checks.whole("seed", seed, least=0)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed: pip install 'sdegen[examples]'."
        ) from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.get_default_dtype())[:, None]
    labels = torch.tensor(data.target, dtype=torch.int64)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_label[::5]] = True
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen]


def patches(split: str = "train", *, size: int = 16, stride: int = 4) -> Tensor:
    """Square patches of the two colour photographs that scikit-learn ships, a temple and a flower, in 256 levels.

    The photographs, 427 x 640 pixels each, are held out by stripes: "test" is cut from the columns 48 ... 79 and every
    128 columns on, five stripes of 32 columns in each photograph, "train" from what lies more than 16 columns away
    from them. So no pixel belongs to both, while both see sky, roofs and petals. A split is every patch whose corner
    stands on a lattice of `stride` pixels in a stretch of its columns, photograph after photograph: neighbours overlap
    by size - stride, and with stride = size none do.

    Args:
        split: "train" (12772 patches by default) or "test" (5150).
        size: height and width of a patch in pixels, 1 ... 32.
        stride: from one patch to the next, in both directions.

    Returns:
        patches (n, 3, size, size), red, green and blue, the whole numbers 0 ... 255 in torch's default dtype.

    Raises:
        TypeError: an argument of another type.
        ValueError: another split, a size beyond the stripes', or a stride below 1.
        ImportError: scikit-learn is not installed, or Pillow, by which it reads photographs.

    Examples:
        >>> from sdegen.datasets import patches
        >>> patches("test").shape
        torch.Size([5150, 3, 16, 16])

    References:
        Scikit-learn: Machine Learning in Python, Pedregosa et al., 2011, arXiv:1201.0490; the photographs are
        china.jpg and flower.jpg of its `load_sample_images`.
    """
    _checks.choice("split", split, ["train", "test"])
    size, stride = _checks.whole("size", size), _checks.whole("stride", stride)
    if size > STRIPE:
        raise ValueError(f"size must be at most {STRIPE}, the width of a held-out stripe, and it is {size}.")
    cut = [
        photograph[:, :, left:right].unfold(1, size, stride).unfold(2, size, stride).permute(1, 2, 0, 3, 4)
        for photograph in _photographs()
        for left, right in _stripes(split, photograph.shape[2])
    ]
    return torch.cat([stripe.flatten(0, 1) for stripe in cut]).to(torch.get_default_dtype())


def _stripes(split: str, width: int) -> list[tuple[int, int]]:
    """The columns (left, right) of a split in a photograph of `width` columns; right is the first beyond."""
    held_out = [(left, left + STRIPE) for left in range(FIRST, width - STRIPE + 1, PERIOD)]
    if split == "test":
        return held_out
    lefts = [0, *(right + MARGIN for _, right in held_out)]
    rights = [*(left - MARGIN for left, _ in held_out), width]
    return list(zip(lefts, rights, strict=True))


def _photographs() -> list[Tensor]:
    """Both as (3, height, width), uint8."""
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError as error:  # of scikit-learn here, or of Pillow by scikit-learn
        raise ImportError(
            "The photographs come with scikit-learn and are read by Pillow, and one of them is not installed: "
            "pip install 'sdegen[examples]'."
        ) from error
    return [torch.tensor(image).permute(2, 0, 1) for image in images]


def dequantise(images: Tensor, levels: int = 17, generator: Generators = None) -> Tensor:
    """Levels 0 ... L-1 spread over [-1, 1) by uniform noise, each on a cell of its own.

    y = 2 (n + u)/L - 1 with u uniform on [0, 1), one for every pixel: `Quantized(levels).dequantise(images)`, where
    more is said about u.

    Args:
        images: whole numbers n in 0 ... L-1, (B, ...), of any real dtype.
        levels: L.
        generator: for u, a torch.Generator or one per sample; torch's global one by default.

    Returns:
        a fresh draw y, like `images` if those are floating, else in torch's default dtype.

    Raises:
        TypeError: images that are no tensor of numbers, or another argument of another type.
        ValueError: a value that is not one of the levels. On an accelerator, where looking would wait for the device,
            its y is NaN instead.

    Examples:
        >>> from sdegen.datasets import dequantise
        >>> y = dequantise(torch.tensor([[0.0, 16.0]]), levels=17)
        >>> bool((y[0, 0] < 2 / 17 - 1) and (y[0, 1] >= 1 - 2 / 17))  # each on a cell of its own
        True

    References:
        A note on the evaluation of generative models, Theis et al., 2016, arXiv:1511.01844.
    """
    return Quantized(levels).dequantise(images, generator)


def bits_per_dim(log_prob: Tensor, event: int | Sequence[int], levels: int = 17) -> Tensor:
    """Bits per dimension of discrete images n, from log-densities of y = dequantise(n, levels).

    -log2 p(y)/d + log2(L/2), averaged over draws of u, is an upper bound on the true code length:
    `Quantized(levels).bits_per_dim(log_prob, event)`. The uniform density on [-1, 1)^d costs log2(L).

    Args:
        log_prob: log p(y) in nats, any shape.
        event: d, or the shape of one image, e.g. (1, 8, 8).
        levels: L.

    Returns:
        bits per dimension, shaped like log_prob.

    Raises:
        TypeError: a size or `levels` that is not an integer.
        ValueError: a size below 1, or `levels` below 2.

    Examples:
        >>> from sdegen.datasets import bits_per_dim
        >>> uniform = -64 * torch.tensor(2.0).log()  # log p(y) on [-1, 1)^64
        >>> bits_per_dim(uniform, (1, 8, 8), levels=16).round(decimals=3)  # log2 16
        tensor(4.)
    """
    return Quantized(levels).bits_per_dim(log_prob, event)


def _source(generator: torch.Generator | None) -> torch.Generator | None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, and {generator!r} is {type(generator).__name__}.")
    return generator


def _uniform(n: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on [0, 1), shape (n, columns), where the generator lives."""
    source = _source(generator)
    device = None if source is None else source.device
    return torch.rand(_checks.whole("n", n), columns, generator=source, device=device)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals, shaped like `like`."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
