"""A path is checked once, before it is used: what it states must follow from its alpha and sigma."""

from __future__ import annotations

import math
import re
import textwrap

import numpy as np
import pytest
import torch
from problems import PATHS, OwnFlow, OwnVP

import sdegen
from sdegen.paths.gaussian import Slopes


class NumPyVP(sdegen.GaussianPath):
    """VP written with NumPy, as a user would."""

    def alpha(self, t):
        return torch.from_numpy(np.exp(-0.5 * (0.1 * t.detach().numpy() + 9.95 * t.detach().numpy() ** 2)))

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t) ** 2)


class NumPyVPWithSlopes(NumPyVP):
    """The same, with its slopes."""

    def slopes(self, t):
        beta, alpha = 0.1 + 19.9 * t, self.alpha(t)
        return Slopes(-0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t), beta * alpha**2)


class NoGradVP(OwnVP):
    def alpha(self, t):
        with torch.no_grad():
            return super().alpha(t)


class UndetachedNumPyVP(NumPyVP):
    def alpha(self, t):
        return torch.from_numpy(np.exp(-5 * t.numpy() ** 2))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (NumPyVP(), r"slopes.*alpha is -[\d.]+, and slopes\(t\).alpha is 0\. Autograd must see.*or give `slopes`"),
        (NoGradVP(), r"slopes.*alpha is -[\d.]+, and slopes\(t\).alpha is 0\. Autograd must see.*or give `slopes`"),
        (UndetachedNumPyVP(), r"no slopes: Can't call numpy\(\).*Autograd must see.*or give `slopes`"),
    ],
)
def test_a_path_whose_slopes_autograd_cannot_see_is_refused_by_every_verb(path, says):
    model = sdegen.ScoreModel(lambda x, t: 1 / 0, path, "velocity")
    for act in (
        lambda: path.ends,
        lambda: sdegen.sample(model, (2, 2), sdegen.ODESolver("rk4", steps=3), u=(0.9, 0.1)),
        lambda: sdegen.log_prob(model, torch.zeros(2, 2)),
        lambda: sdegen.Interpolant(path, source=sdegen.Gaussian([0.0], 1.0)),
    ):
        with pytest.raises(ValueError, match=says):
            act()


def test_a_numpy_path_that_gives_its_slopes_is_a_path():
    own, closed = NumPyVPWithSlopes(), sdegen.VPSDE()
    torch.testing.assert_close(torch.tensor(own.ends), torch.tensor(closed.ends), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.diffusion(torch.tensor([0.3])), closed.diffusion(torch.tensor([0.3])))


def vp(**members):
    """`VPSDE()` with some of its members overridden."""
    return type("Contradicting", (sdegen.VPSDE,), members)()


VP = sdegen.VPSDE()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"slopes": lambda self, t: Slopes(*(0 * t,) * 3)}, r"alpha is -\d.*slopes\(t\).alpha is 0"),
        ({"slopes": lambda self, t: Slopes(*(-s for s in VP.slopes(t)))}, r"slopes\(t\).alpha"),
        ({"slopes": lambda self, t: Slopes(*(1.01 * s for s in VP.slopes(t)))}, r"slopes\(t\).alpha"),
        ({"slopes": lambda self, t: VP.slopes(t)._replace(sigma=2 * VP.slopes(t).sigma)}, "of sigma is .*sigma is"),
        ({"slopes": lambda self, t: VP.slopes(t)._replace(variance=VP.slopes(t).sigma)}, r"sigma\^2 is .*variance is"),
        ({"slopes": lambda self, t: VP.slopes(t)._replace(alpha=math.nan * t)}, r"slopes\(t\).alpha is nan"),
        ({"slopes": lambda self, t: None}, r"Slopes\(alpha, sigma, variance\).*None"),
        ({"slopes": lambda self, t: Slopes(*(torch.zeros(3),) * 3)}, "each shaped like t"),
        ({"time": lambda self, u: 1 - VP.time(u)}, r"time\(clock\(t\)\).*must be t: at t = 0.04775, .*0.95"),
        ({"time": lambda self, u: VP.time(u) + 1e-3}, r"time\(clock\(t\)\).*must be t"),
        ({"time": lambda self, u: math.nan * u}, "time.*nan"),
        ({"scale": lambda self, u: torch.ones_like(u)}, r"scale\(clock\(t\)\).*must be alpha \+ sigma.*is 1\."),
        ({"scale": lambda self, u: VP.scale(u) * (1 + 1e-4)}, r"scale\(clock\(t\)\).*must be alpha \+ sigma"),
        ({"sigma": lambda self, t: VP.sigma(t) ** 2}, r"slopes\(t\).sigma"),
    ],
)
def test_what_contradicts_alpha_and_sigma_is_refused(members, says):
    with pytest.raises(ValueError, match=says):
        _ = vp(**members).ends


def test_a_path_is_checked_once():
    asked = []

    class Counting(OwnVP):
        def alpha(self, t):
            asked.append(t.numel())
            return super().alpha(t)

    path = Counting()
    ends = path.ends
    first = len(asked)
    assert (path.ends, len(asked)) == (ends, first)
    assert sum(asked) < 400  # 257 for the clock, and a few for the slopes


class Float32VP(OwnVP):
    """Computed in single precision: differences over a short step see its rounding."""

    def alpha(self, t):
        return super().alpha(t.float()).to(t)

    def sigma(self, t):
        return super().sigma(t.float()).to(t)


class Kinked(sdegen.GaussianPath):
    """Straight pieces that meet at a time where the check looks."""

    def alpha(self, t):
        return torch.where(t < 1.382 / 8, 1 - t, (1 - 1.382 / 8) / (1 - 1.382 / 8 + 1e-3) * (1 - t + 1e-3))

    def sigma(self, t):
        return t + 0.0


class Learned(sdegen.GaussianPath):
    """A schedule with a parameter, which asks for gradients."""

    rate = torch.nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def alpha(self, t):
        return torch.exp(-self.rate * t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.rate * t))


def random_chains():
    g = torch.Generator().manual_seed(0)
    for K in (1, 2, 3, 10, 100, 1000, 4000):
        for low in (-1, -4, -9):
            betas = 10 ** (low * torch.rand(K, generator=g, dtype=torch.float64)) * 0.999
            yield from (sdegen.DDPM(betas, smooth=smooth) for smooth in (False, True))


HONEST = {
    **PATHS,
    "one beta": sdegen.DDPM([1e-4]),
    "one beta, smooth": sdegen.DDPM([0.9999], smooth=True),
    "two betas": sdegen.DDPM([1e-4, 0.5]),
    "two betas, smooth": sdegen.DDPM([1e-6, 0.9], smooth=True),
    "tiny beta": sdegen.DDPM([1e-12]),
    "cosine chain": sdegen.DDPM.cosine(1000),
    "cosine chain, smooth": sdegen.DDPM.cosine(4000, smooth=True),
    "flat vp": sdegen.VPSDE(1e-3, 1e-3),
    "steep vp": sdegen.VPSDE(1e-4, 65.0),
    "steep subvp": sdegen.SubVPSDE(1e-4, 60.0),
    "rough chain": sdegen.DDPM(1e-5 * torch.rand(10**6, generator=torch.Generator().manual_seed(0)).double() + 1e-9),
    "wide ve": sdegen.VESDE(1e-5, 1e5),
    "widest ve": sdegen.VESDE(0.01, 1e13),
    "almost all noise": sdegen.CondOT(0.999),
    "long": sdegen.Retimed(sdegen.VPSDE(), 0.0, 1e4),
    "short": sdegen.Retimed(sdegen.CosineVPSDE(), 1e-4, 0.0),
    "far away": sdegen.Retimed(sdegen.DDPM.linear(50), 1e6, 1e6 + 1),
    "chain counted in steps": sdegen.Retimed(sdegen.DDPM.linear(1000), 0.0, 1000.0),
    "interpolant": sdegen.Interpolant(sdegen.VPSDE()),
    "float32": Float32VP(),
    "kinked": Kinked(),
    "learned": Learned(),
}


@pytest.mark.parametrize("path", HONEST.values(), ids=HONEST.keys())
def test_an_honest_path_passes(path):
    low, high = path.ends
    assert 0 <= low < high <= 1


def test_honest_chains_of_any_shape_pass():
    """Those whose clock can be told apart up to its end: wild betas reach pure noise long before."""
    checked, t = 0, torch.linspace(0.0, 1.0, 257)
    for path in random_chains():
        u = path.sigma(t) / (path.alpha(t) + path.sigma(t))
        if bool((torch.diff(u) > 0).all()):
            assert path.ends == (0.0, float(u[-1]))
            checked += 1
    assert checked > 20


def test_the_path_that_the_docstring_writes_is_a_path():
    """As printed; it is VP with beta = 16 t."""
    text = textwrap.dedent(sdegen.GaussianPath.__doc__.split("::", 1)[1].split("Derivatives then", 1)[0])
    names: dict[str, object] = {}
    exec(text, names)
    path, t = names["model"].path, torch.linspace(0.1, 0.9, 5)
    assert re.search(r"class \w+\(sdegen.GaussianPath\)", text)
    assert type(path).__mro__[1] is sdegen.GaussianPath
    assert path.ends[0] == 0
    torch.testing.assert_close(path.diffusion(t), torch.sqrt(16 * t))
    torch.testing.assert_close(path.time(path.clock(t)), t)
    assert sdegen.sample(names["model"], (3, 2), sdegen.ODESolver("rk4", steps=4)).shape == (3, 2)


def test_a_user_path_with_its_ends_swapped_says_so_first():
    class Swapped(OwnFlow):
        t_data, t_noise = 0.0, 1.0

    with pytest.raises(ValueError, match="must rise"):
        _ = Swapped().ends
