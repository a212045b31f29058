"""Flows by name, exact networks on any path, and a source that is not Gaussian."""

from __future__ import annotations

from torch import Tensor, nn

import sdegen
from sdegen.datasets import eight_gaussians

VP, OT = sdegen.VPSDE(), sdegen.CondOT()

TIGHT = sdegen.ODESolver("dopri8", rtol=1e-10)

FLOWS = {
    "condot": OT,
    "condot with sigma_min": sdegen.CondOT(0.05),
    "trigonometric": sdegen.Trigonometric(),
    "condot backwards": sdegen.Retimed(OT, 0.0, 1.0),
    "vp on [1, 3]": sdegen.Retimed(VP, 3.0, 1.0),
    "interpolant": sdegen.Interpolant(sdegen.Trigonometric()),
}


class Exact(nn.Module):
    """The exact prediction of a mixture, dressed as a network."""

    def __init__(self, mixture: sdegen.GaussianMixture, path: sdegen.GaussianPath, predicts: str):
        super().__init__()
        self.answer = getattr(mixture.model(path), predicts)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(x, t)


def network(mixture, path, predicts) -> sdegen.ScoreModel:
    return sdegen.ScoreModel(Exact(mixture, path, predicts), path, predicts)


class EightGaussians:
    """A source of the user's."""

    def sample(self, shape, generator=None):
        return eight_gaussians(shape[0], generator=generator)
