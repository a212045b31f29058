"""Held-out digits in bits per dimension: a score model, scikit-learn's best mixture, a Gaussian, all on the same draws.

    python benchmarks/digits.py [--images 360] [--draws 10] [--steps 6000] [--calls 60] [--threads 2] [--keep DIR]

The digits' own split, without labels. Level n = 0 ... 16 of a pixel stands for y = 2 (n + u)/17 - 1, u uniform, and

    bits/dim <= -mean over u of log2 p(y) / 64 + log2(17/2)

with the same draws of u for all three models. The mixture's kind of covariance, its order and its regularisation are
those that do best on a tenth of the training images, and it is then fitted to all of them; the network's width and
steps were chosen on the same tenth. Intervals are Student's over images, after the mean over draws; differences are
taken image by image. The score model's trace is exact.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from sklearn.mixture import GaussianMixture
from torch import Tensor

import sdegen
from sdegen.datasets import digits
from sdegen.nets import UNet

LEVELS = sdegen.Quantized(17)
COPIES = 10
"""Draws of u for every training image, to which the mixtures and the Gaussian are fitted."""


class Choice(NamedTuple):
    """What is chosen of a mixture: the kind of its covariances, its order, what is added to their diagonals."""

    kind: str
    order: int
    added: float

    def fitted(self, y: Tensor) -> GaussianMixture:
        """That mixture, fitted to rows y (N, 64)."""
        mixture = GaussianMixture(self.order, covariance_type=self.kind, reg_covar=self.added, random_state=0)
        return mixture.fit(y.numpy())


CHOICES = [
    *(Choice("full", *rest) for rest in itertools.product((2, 5, 10, 15, 20), (1e-4, 1e-3, 3e-3, 1e-2))),
    *(Choice("tied", *rest) for rest in itertools.product((20, 40), (1e-4,))),
    *(Choice("diag", *rest) for rest in itertools.product((20, 40, 80, 160, 320), (1e-6, 1e-4, 1e-3, 3e-3))),
    *(Choice("spherical", *rest) for rest in itertools.product((80, 320), (1e-4,))),
]


def drawn(images: Tensor, draws: int, seed: int) -> Tensor:
    """y for `draws` independent u of every image, (draws, n, 1, 8, 8)."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([LEVELS.dequantise(images, g) for _ in range(draws)])


def rows(y: Tensor) -> Tensor:
    """Images of any leading axes as rows of 64 numbers in float64."""
    return y.reshape(-1, 64).double()


def best_mixture(images: Tensor, choices: list[Choice]) -> GaussianMixture:
    """The mixture of the best of the choices on a tenth of the images, fitted to all of them."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tenth, rest = images[order[: len(order) // 10]], images[order[len(order) // 10 :]]
    y, judge = rows(drawn(rest, COPIES, 1)), rows(drawn(tenth, COPIES, 2)).numpy()
    scores = {choice: float(choice.fitted(y).score(judge)) for choice in choices}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    print("mixtures, bits/dim of a tenth of the training images, the best five:")
    for choice in ranked[:5]:
        bits = float(LEVELS.bits_per_dim(torch.tensor(scores[choice]), 64))
        print(f"  {choice.kind:9s} order {choice.order:3d}  + {choice.added:.0e}  {bits:.3f}")
    return ranked[0].fitted(rows(drawn(images, COPIES, 1)))


def score_model(images: Tensor, steps: int, width: int) -> sdegen.ScoreModel:
    """The U-Net, trained by `fit` on fifty draws of u for every image."""
    torch.manual_seed(0)
    path = sdegen.CosineVPSDE()
    # the network sees a clock that tells small noise levels apart
    model = sdegen.ScoreModel(
        UNet(channels=1, width=width), path, "v", time=lambda t: 0.125 * torch.log(path.sigma(t) + 1e-3)
    )
    y = drawn(images, 50, 3).flatten(0, 1)
    adam = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps, pct_start=0.05)
    times = sdegen.LogNormalTimes(mean=-1.5, std=1.8)
    start = time.process_time()
    model = sdegen.fit(model, y, steps=steps, batch_size=64, optimizer=(adam, schedule), times=times, log=said)
    print(f"trained in {time.process_time() - start:.0f} s, the time of all cores together")
    return model


def said(step: int, numbers: dict[str, float]) -> None:
    print(f"  step {step:5d}   loss {numbers['loss']:.4f}", flush=True)


def interval(values: Tensor) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t."""
    mean, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, 0.975)) * float(values.std()) / math.sqrt(n)
    return mean, mean - half, mean + half


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=360, help="held-out images")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6000, help="of the training")
    parser.add_argument("--calls", type=int, default=60, help="of the solver")
    parser.add_argument("--width", type=int, default=16, help="of the network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--choices", type=int, default=len(CHOICES), help="how many mixtures are tried")
    parser.add_argument("--keep", type=Path, help="folder for the log-densities that are done, to go on from")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, _ = digits("train")
    tests, _ = digits("test")
    chosen = torch.randperm(len(tests), generator=torch.Generator().manual_seed(0))[: args.images]
    y = drawn(tests[chosen], args.draws, seed=4)

    mixture = best_mixture(images, CHOICES[: args.choices])
    fitted = rows(drawn(images, COPIES, 1))
    gaussian = sdegen.Gaussian(fitted.mean(0), covariance=torch.cov(fitted.T))
    model = score_model(images, args.steps, args.width)
    found = sdegen.evaluate(
        model, y.flatten(0, 1), solver=sdegen.Adams(args.calls), trace="exact", directory=args.keep, progress=True
    )
    logp = {
        "score model": found.per_sample.double(),
        "best mixture": torch.from_numpy(mixture.score_samples(rows(y).numpy())),
        "Gaussian": gaussian.log_prob(rows(y)),
    }
    bits = {name: LEVELS.bits_per_dim(value, 64).reshape(args.draws, -1).mean(0) for name, value in logp.items()}
    print(f"\n| held-out digits, {len(chosen)} images, {args.draws} draws | bits/dim | 95 % interval |")
    print("|---|---|---|")
    for name, values in bits.items():
        print("| {} | {:.3f} | {:.3f} to {:.3f} |".format(name, *interval(values)))
    for name in ("best mixture", "Gaussian"):
        print(
            "| score model - {} | {:.3f} | {:.3f} to {:.3f} |".format(name, *interval(bits["score model"] - bits[name]))
        )
    if found.error is not None:
        print(f"the solver's own estimate of its error: {found.error / (64 * math.log(2)):.4f} bits/dim an image")


if __name__ == "__main__":
    main()
