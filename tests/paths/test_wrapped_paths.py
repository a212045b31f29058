"""Paths that wrap a path, the fraction of a path, and the clock of the bounds."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from problems import PATHS

import sdegen
from sdegen.paths.flows import WrappedPath
from sdegen.paths.gaussian import clock_at_log1p_snr, log1p_snr

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
ATTRIBUTES = ("t_data", "t_noise", "steps", "has_score", "source", "ends")


@every_path
def test_a_wrapped_path_is_the_path(path):
    same = WrappedPath(path)
    for name in ATTRIBUTES:
        assert getattr(same, name) == getattr(path, name), name
    t, u = path.at(torch.linspace(0.1, 0.9, 5)), torch.linspace(0.2, 0.7, 5)
    for name in ("alpha", "sigma"):
        assert torch.equal(getattr(same, name)(t), getattr(path, name)(t))
    for name in ("time", "scale"):
        assert torch.equal(getattr(same, name)(u), getattr(path, name)(u))
    assert all(torch.equal(a, b) for a, b in zip(same.slopes(t), path.slopes(t), strict=True))


@every_path
def test_what_a_wrapper_states_is_its_own_and_the_rest_is_the_path_s(path):
    retimed = sdegen.Retimed(path, 5.0, -2.0)
    assert (retimed.t_data, retimed.t_noise) == (5.0, -2.0)
    assert (retimed.steps, retimed.has_score, retimed.source) == (path.steps, path.has_score, path.source)
    tied = sdegen.Interpolant(path)
    assert (tied.t_data, tied.t_noise, tied.steps) == (path.t_data, path.t_noise, path.steps)
    assert (tied.has_score, tied.source) == (False, None)


def test_wrappers_of_wrappers_and_their_heirs_keep_what_is_stated():
    source = sdegen.Gaussian([0.0], 2.0)
    retimed = sdegen.Retimed(sdegen.Interpolant(sdegen.CondOT(), source), 0.0, 2.0)
    assert retimed.source is source
    assert not retimed.has_score

    class Heir(sdegen.Interpolant):
        """States nothing; what Interpolant states holds for it too."""

    @dataclass(frozen=True)
    class Chained(WrappedPath):
        steps: int = 7

    assert not Heir(sdegen.VPSDE()).has_score
    assert (Heir(sdegen.VPSDE()).t_data, Heir(sdegen.CondOT()).t_data) == (0.0, 1.0)
    assert Chained(sdegen.DDPM.linear(3)).steps == 7


@pytest.mark.parametrize("path", [sdegen.Retimed(sdegen.DDPM.linear(5), 0.0, 5.0), sdegen.Interpolant()])
def test_wrappers_are_values(path):
    for same in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert same == path
        assert hash(same) == hash(path)
        assert [getattr(same, name) for name in ATTRIBUTES] == [getattr(path, name) for name in ATTRIBUTES]


@pytest.mark.parametrize("wrapper", [WrappedPath, sdegen.Interpolant, sdegen.Retimed])
def test_only_paths_are_wrapped(wrapper):
    with pytest.raises(TypeError, match=r"path must be a GaussianPath.*'vp'"):
        wrapper("vp")


@every_path
def test_a_fraction_of_a_path_runs_from_its_data_to_its_noise(path):
    assert (path.at(0.0), path.at(1.0)) == (path.t_data, path.t_noise)
    assert isinstance(path.at(0.5), float)
    f = torch.linspace(0.0, 1.0, 11)
    assert torch.equal(path.at(f), path.t_data + (path.t_noise - path.t_data) * f)
    assert bool((torch.diff(path.clock(path.at(f))) > 0).all())


def test_the_clock_of_the_bounds_and_its_inverse():
    u = torch.cat([torch.tensor([0.0]), torch.logspace(-12, -1e-9, 200), torch.tensor([1.0])])
    w = log1p_snr(u)
    assert (float(w[0]), float(w[-1])) == (math.inf, 0.0)
    assert (float(clock_at_log1p_snr(w)[0]), float(clock_at_log1p_snr(w)[-1])) == (0.0, 1.0)
    torch.testing.assert_close(clock_at_log1p_snr(w), u, rtol=1e-14, atol=0)
    torch.testing.assert_close(w[1:-1], torch.log(1 + ((1 - u) / u) ** 2)[1:-1], rtol=1e-9, atol=1e-15)
    path, t = sdegen.VPSDE(), torch.linspace(0.1, 1.0, 10)
    B = path.integrated_beta(t)  # SNR = 1/(exp(B) - 1), so exp(-w) + exp(-B) = 1
    torch.testing.assert_close(torch.exp(-log1p_snr(path.clock(t))) + torch.exp(-B), torch.ones(10), rtol=1e-12, atol=0)


class Sampler:
    """A source by its one method."""

    def __init__(self, sample):
        self.sample = sample


def test_a_source_is_called_with_shape_and_generator():
    with pytest.raises(TypeError, match=r"sample\(shape, generator\).*Normal\(loc: 0.0.*sample_shape.*wrap it"):
        sdegen.Interpolant(source=torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"sample\(shape, generator\).*wrap it"):
        sdegen.Interpolant(source=Sampler(lambda shape: torch.zeros(shape)))
    with pytest.raises(TypeError, match=r"source must have \.sample.*class"):
        sdegen.Interpolant(source=sdegen.Gaussian)
    for sample in (lambda shape, generator: torch.ones(shape), lambda *args: torch.ones(args[0])):
        path = sdegen.Interpolant(source=Sampler(sample))
        assert torch.equal(path.perturb(torch.zeros(3, 2), 0.0)[0], torch.ones(3, 2))


def test_a_mixture_as_source_takes_one_generator_per_sample():
    source = sdegen.GaussianMixture([[0.0, 1.0], [2.0, 3.0]], [0.5, 0.1])
    path, x = sdegen.Interpolant(source=source), torch.zeros(3, 2)

    def several(seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    _, z = path.perturb(x, 0.3, generator=several((1, 2, 3)))
    _, alone = path.perturb(x[:1], 0.3, generator=several((2,)))
    assert torch.equal(z[1:2], alone)
    assert torch.equal(alone, source.sample(1, torch.Generator().manual_seed(2)))
