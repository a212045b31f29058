"""Standardize: data in their own units, the network in its own, one law."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import sdegen

MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ([100.0, 5.0], [20.0, 0.1]))
MEANS, STDS = (torch.tensor(v, dtype=torch.float64) for v in ([[-0.8, 0.2], [0.9, -0.1]], [[0.3, 0.5], [0.4, 0.2]]))
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
INNER = sdegen.GaussianMixture(MEANS, STDS, WEIGHTS)
OUTER = sdegen.GaussianMixture(MEAN + STD * MEANS, STD * STDS, WEIGHTS)
"""The same mixture in the units of the data."""
UNITS = sdegen.Standardize(MEAN, STD)
PATHS = [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE(sigma_max=50.0), sdegen.DDPM.linear(100)]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
SOLVERS = [
    sdegen.Adams(12),
    sdegen.ODESolver("rk4", steps=8),
    sdegen.SDESolver("euler", steps=20),
    sdegen.Ancestral(20),
    sdegen.StochasticAdams(12),
]


def pair(path, predicts="v"):
    """The network of the inner law with units and without."""
    exact = INNER.model(path)
    net = getattr(exact, predicts)
    return sdegen.ScoreModel(net, path, predicts, standardize=UNITS), sdegen.ScoreModel(net, path, predicts)


@every_path
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_samples_are_those_of_the_network_in_other_units(path, solver):
    own, plain = pair(path)
    z = path.prior.sample((64, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
    x, inner = (
        sdegen.sample(m, (64, 2), solver, x_T=z, generator=torch.Generator().manual_seed(1)) for m in (own, plain)
    )
    torch.testing.assert_close(x, MEAN + STD * inner, rtol=1e-13, atol=1e-12)


@every_path
def test_the_density_is_that_of_the_data(path):
    """log p(x) = log p(z) - sum of log std: beside the closed form in the units of the data."""
    own, plain = pair(path)
    x, solver = OUTER.sample(32, generator=torch.Generator().manual_seed(2)), sdegen.Adams(40)
    found = sdegen.log_likelihood(own, x, solver, data=x)
    inner = sdegen.log_likelihood(plain, (x - MEAN) / STD, solver, data=(x - MEAN) / STD)
    torch.testing.assert_close(found.log_prob, inner.log_prob - STD.log().sum(), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(found.prior_gap, inner.prior_gap, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.latent, inner.latent)


def test_the_density_is_the_closed_form():
    own, _ = pair(sdegen.CondOT(), "velocity")
    x = OUTER.sample(32, generator=torch.Generator().manual_seed(3))
    found = sdegen.log_prob(own, x, sdegen.ODESolver("dopri8", rtol=1e-10))
    torch.testing.assert_close(found, OUTER.log_prob(x), rtol=0, atol=1e-7)


def test_encode_gives_the_paths_own_latents_and_decode_takes_them():
    own, plain = pair(sdegen.VPSDE())
    x = OUTER.sample(8, generator=torch.Generator().manual_seed(4))
    z = sdegen.encode(own, x)
    torch.testing.assert_close(z, sdegen.encode(plain, (x - MEAN) / STD), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sdegen.decode(own, z), x, rtol=1e-5, atol=1e-5)


def test_inside_the_path_states_are_the_networks():
    own, plain = pair(sdegen.VPSDE())
    z_t = torch.randn(8, 2, dtype=torch.float64)
    half = [sdegen.solve(m, z_t, sdegen.Adams(5), u=(0.8, 0.3)).x for m in (own, plain)]
    torch.testing.assert_close(*half, rtol=0, atol=0)
    x = sdegen.solve(own, half[0], sdegen.Adams(5), u=(0.3, 0.0)).x
    torch.testing.assert_close(x, UNITS.inverse(sdegen.solve(plain, half[1], sdegen.Adams(5), u=(0.3, 0.0)).x))
    inner = [sdegen.log_prob(m, z_t, sdegen.Adams(20), u=(0.3, 0.9)) for m in (own, plain)]
    torch.testing.assert_close(*inner, rtol=0, atol=0)


def test_the_callback_is_told_of_data_in_their_units():
    own, plain = pair(sdegen.VPSDE())
    told = {}
    for name, model in (("own", own), ("plain", plain)):
        z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        told[name] = []
        sdegen.solve(model, z, sdegen.Adams(6), callback=lambda k, u, x, x_hat, to=told[name]: to.append((x, x_hat)))
    for k, ((x, x_hat), (y, y_hat)) in enumerate(zip(told["own"], told["plain"], strict=True)):
        torch.testing.assert_close(x_hat, UNITS.inverse(y_hat))
        torch.testing.assert_close(x, UNITS.inverse(y) if k == 5 else y)


def test_the_loss_is_that_of_standardised_data():
    own, plain = pair(sdegen.VPSDE())
    x = OUTER.sample(16, generator=torch.Generator().manual_seed(6))
    given = {"t": torch.rand(16).double(), "noise": torch.randn(16, 2).double()}
    for options in ({}, {"weighting": sdegen.MinSNR()}):
        a = sdegen.loss(own, x, **given, **options, reduction="none")
        b = sdegen.loss(plain, (x - MEAN) / STD, **given, **options, reduction="none")
        torch.testing.assert_close(a, b)


def test_wrapped_and_moved_models_keep_the_units():
    own, plain = pair(sdegen.VPSDE())
    x, solver = OUTER.sample(8, generator=torch.Generator().manual_seed(7)), sdegen.Adams(30)
    moved = [
        sdegen.log_prob(m.on(sdegen.SubVPSDE()), y, solver, u=(0.0, 0.99)) for m, y in ((own, x), (plain, UNITS(x)))
    ]
    torch.testing.assert_close(moved[0], moved[1] - STD.log().sum())


def test_it_travels_with_the_weights():
    net = torch.nn.Linear(2, 2)
    model = sdegen.ScoreModel(net, sdegen.VPSDE(), standardize=sdegen.Standardize(MEAN, STD))
    other = sdegen.ScoreModel(copy.deepcopy(net), sdegen.VPSDE(), standardize=sdegen.Standardize(0.0 * MEAN, STD))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.standardize.mean, MEAN)
    assert sum(p.requires_grad for p in model.parameters()) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_cast_rounds_the_units(dtype):
    """They are numbers of the data, whatever the network computes in."""
    units = sdegen.Standardize([1001.0, 1e5], [0.5, 1e-9])
    model = sdegen.ScoreModel(torch.nn.Linear(2, 2), sdegen.VPSDE(), standardize=units).to(dtype)
    assert model.net.weight.dtype is dtype
    assert torch.equal(model.standardize.mean, torch.tensor([1001.0, 1e5]))
    assert torch.equal(model.standardize.std, torch.tensor([0.5, 1e-9]))
    assert model.to("meta").standardize.mean.device.type == "meta"


def test_what_is_printed_tells_the_units():
    model = sdegen.ScoreModel(torch.nn.Linear(2, 2), sdegen.VPSDE(), "v", standardize=sdegen.Standardize(3.0, 2.0))
    assert repr(model).endswith("predicts='v', standardize=Standardize(mean=3.0, std=2.0))")


def test_of_data_every_column_has_mean_zero_and_mean_square_one():
    x = OUTER.sample(500, generator=torch.Generator().manual_seed(8))
    z = sdegen.Standardize.of(x)(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.square().mean(0), torch.ones(2).double())
    images = 255 * torch.rand(10, 3, 4, 4).double()
    units = sdegen.Standardize.of(images)
    assert units.mean.shape == units.std.shape == ()
    assert math.isclose(float(units(images).square().mean()), 1.0)


def test_arrays_and_numbers_are_taken():
    assert sdegen.Standardize(np.array([1.0, 2.0]), 3.0).std.item() == 3.0
    x = OUTER.sample(50)
    assert torch.equal(sdegen.Standardize.of(x.numpy()).std, sdegen.Standardize.of(x).std)
    assert repr(sdegen.Standardize(1.0, 2.0)) == "Standardize(mean=1.0, std=2.0)"


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: sdegen.Standardize(0.0, 0.0), ValueError, "std must be positive"),
        (lambda: sdegen.Standardize(math.nan, 1.0), ValueError, "mean must be finite"),
        (lambda: sdegen.Standardize(torch.zeros(2), torch.ones(3)), ValueError, "must broadcast against each other"),
        (lambda: sdegen.Standardize("a", 1.0), TypeError, "mean must be real numbers"),
        (lambda: sdegen.Standardize.of(torch.ones(1, 2)), ValueError, "needs two samples or more"),
        (lambda: sdegen.Standardize.of(torch.tensor([[1.0, 5.0], [2.0, 5.0]])), ValueError, r"Columns \[1\] of data"),
        (lambda: sdegen.Standardize.of(torch.ones(3, 2, 2)), ValueError, "The data never change"),
        (lambda: sdegen.Standardize.of(torch.ones(3, 2).long()), TypeError, "real floating dtype"),
        (
            lambda: sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE(), standardize=2.0),
            TypeError,
            "must be a Standardize",
        ),
        (lambda: sdegen.log_prob(pair(sdegen.VPSDE())[0], torch.ones(2, 3)), ValueError, "do not broadcast over one"),
        (lambda: sdegen.loss(pair(sdegen.VPSDE())[0], torch.ones(2, 3)), ValueError, "do not broadcast over one"),
        (lambda: sdegen.sample(pair(sdegen.VPSDE())[0], (4, 3), sdegen.Adams(4)), ValueError, "do not broadcast over"),
        (lambda: sdegen.vlb(pair(PATHS[3])[0], torch.ones(2, 2)), ValueError, "works in the network's units"),
        (lambda: sdegen.Clipped(pair(PATHS[0])[0], -1, 1), ValueError, "Clipping works in the network's units"),
        (lambda: sdegen.Guided(pair(PATHS[0])[0], lambda x, t: x[:, 0]), ValueError, "Guidance by a gradient works in"),
        (
            lambda: sdegen.Observed(pair(PATHS[0])[0], torch.eye(2), torch.zeros(2), 0.1),
            ValueError,
            "An observation works in the network's units",
        ),
    ],
)
def test_refusals(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
