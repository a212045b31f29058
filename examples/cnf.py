"""Two continuous normalising flows whose answers are known: a planar one and a Hamiltonian one.

    python examples/cnf.py [--out outputs]

With x at t = 0 the data and x at t = T the latents,

    planar        dx/dt = v tanh(w.x + b)                 stretches along v around the line w.x + b = 0
    Hamiltonian   dx1/dt = x2, dx2/dt = -sin(x1)          a pendulum: keeps every area and the energy, turns and shears

and log p(x) = log p_latent(x(T)) + integral of tr(df/dx). Prints the errors and draws the densities.
Neural Ordinary Differential Equations, Chen et al., 2018, arXiv:1806.07366.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import sdegen
from sdegen import plot

matplotlib.use("Agg")

W, V = torch.tensor([[1.2, -0.6], [-0.6, 0.5]], dtype=torch.float64)
B, T = 0.2, 1.5
LATENT = sdegen.GaussianMixture([[1.4, 0.0], [-0.7, 1.2], [-0.7, -1.2]], 0.45)
TIGHT = sdegen.ODESolver("dopri8", rtol=1e-10)


def planar(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x @ W + B)[:, None] * V


def pendulum(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -torch.sin(x[:, 0])], 1)


def planar_in_closed_form(x: Tensor) -> tuple[Tensor, Tensor]:
    """x(T) and the integral of the trace: y = w.x + b obeys sinh y(t) = e^{ct} sinh y(0) with c = w.v."""
    c, y = float(W @ V), x @ W + B
    after = torch.asinh(math.exp(c * T) * torch.sinh(y))
    return x + V * ((after - y) / c)[:, None], c * T + torch.log(torch.cosh(y)) - torch.log(torch.cosh(after))


def area(polygon: Tensor) -> float:
    """Of a closed curve through (n, 2) points, by the shoelace formula."""
    return float(0.5 * torch.linalg.det(torch.stack([polygon, polygon.roll(-1, 0)], 1)).sum().abs())


def main(argv: list[str] | None = None) -> None:
    """Check both flows against what is known of them, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the picture")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    flows = [sdegen.vector_field(f, t_data=0.0, t_noise=T, prior=LATENT) for f in (planar, pendulum)]
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, trace = planar_in_closed_form(x)
    (z, logp), (turned, logp_turned) = ((sdegen.encode(f, x, TIGHT), sdegen.log_prob(f, x, TIGHT)) for f in flows)
    circle = torch.view_as_real(torch.exp(2j * math.pi * torch.arange(2000, dtype=torch.float64) / 2000))
    energy, after = (0.5 * p[:, 1] ** 2 - torch.cos(p[:, 0]) for p in (x, turned))
    areas = [area(sdegen.encode(flow, circle, TIGHT)) / area(circle) for flow in flows]
    for name, error in (
        ("planar: end point", z - known),
        ("planar: log-density", logp - LATENT.log_prob(known) - trace),
        ("Hamiltonian: energy", after - energy),
        ("Hamiltonian: log-density", logp_turned - LATENT.log_prob(turned)),
    ):
        print(f"{name:26s} off by at most {float(error.abs().max()):.0e}")
    print("the unit circle's area is multiplied by {:.6f} (planar) and {:.6f} (Hamiltonian)".format(*areas))
    laws = dict(zip(("latents", "data, planar", "data, Hamiltonian"), (LATENT, *flows), strict=True))
    cheap, square = sdegen.ODESolver("rk4", steps=30), ((-4.2, 4.2), (-4.2, 4.2))
    plot.write(plot.density(laws, limits=square, points=150, solver=cheap), args.out / "flow_cnf.png")


if __name__ == "__main__":
    main()
