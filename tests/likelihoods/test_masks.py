"""A mask in loss and log_prob: padded sequences and point clouds, each of its own number of values."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

PATHS = [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE(sigma_max=50.0)]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]]).bool()


def on_points(n=4):
    """A network for n values that sees which of them are there: data that share one Gaussian mean, in closed form."""

    class Net(torch.nn.Module):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def forward(self, x, t, mask):
            # x_i = c + e_i, c ~ N(0, 1), e_i ~ N(0, 1/4): covariance 1/4 I + 1 1^T on what is there
            alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
            own, k = 0.25 * alpha**2 + sigma**2, mask.sum(1, keepdim=True)
            shared = (x * mask).sum(1, keepdim=True) * alpha**2 / (own + k * alpha**2)
            return sigma * (x - shared) / own

    return Net


def law(k):
    """The data's own law of k values."""
    return sdegen.Gaussian(torch.zeros(k), covariance=0.25 * torch.eye(k) + 1.0)


@every_path
@pytest.mark.parametrize("solver", [sdegen.Adams(160), sdegen.ODESolver("dopri8", rtol=1e-9)], ids=["adams", "dopri8"])
def test_every_sample_has_the_density_of_its_own_dimension(path, solver):
    """The pushforward of the path's prior, in closed form, on 4, 3, 2 and 2 values; whatever stands in the padding."""
    model = sdegen.ScoreModel(on_points()(path), path, "eps")
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = (path.ends[0], min(path.ends[1], 0.999))
    found = sdegen.log_likelihood(model, x.masked_fill(~MASK, 1e30), solver, cond={"mask": MASK}, mask=MASK, u=u)
    for i, there in enumerate(MASK):
        exact = law(int(there.sum())).model(path)
        expected = sdegen.log_prob(exact, x[i, there][None], sdegen.ODESolver("dopri8", rtol=1e-10), u=u)
        assert math.isclose(
            float(found.log_prob[i]), float(expected), abs_tol=2e-5 if "Adams" in repr(solver) else 1e-7
        )
    assert torch.equal(found.latent[~MASK], torch.zeros(5, dtype=torch.float64))


def test_a_full_mask_changes_nothing():
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(on_points()(path), path, "eps")
    x, full = torch.randn(4, 4).double(), torch.ones(4, 4).bool()
    plain = sdegen.log_prob(model, x, sdegen.Adams(20), cond={"mask": full})
    masked = sdegen.log_prob(model, x, sdegen.Adams(20), cond={"mask": full}, mask=full)
    torch.testing.assert_close(masked, plain, rtol=1e-13, atol=1e-13)


def test_rows_probes_and_units_go_with_the_mask():
    """Cut into batches, with probes, with units of the data: one number."""
    path, units = sdegen.VPSDE(), sdegen.Standardize(3.0, 2.0)
    net, x = on_points()(path), torch.randn(4, 4).double()
    model, own = (sdegen.ScoreModel(net, path, "eps", standardize=s) for s in (None, units))
    given = {"cond": {"mask": MASK}, "mask": MASK}
    whole = sdegen.log_prob(model, x, sdegen.Adams(20), **given)
    torch.testing.assert_close(sdegen.log_prob(model, x, sdegen.Adams(20), batch_size=3, **given), whole)
    in_units = sdegen.log_prob(own, units.inverse(x), sdegen.Adams(20), **given)
    torch.testing.assert_close(in_units, whole - MASK.sum(1) * math.log(2.0))
    probed = [
        sdegen.log_likelihood(
            model, x, sdegen.Adams(20), trace=sdegen.Hutchinson(64), generator=torch.Generator().manual_seed(i), **given
        )
        for i in range(2)
    ]
    for found in probed:
        assert bool(((found.log_prob - whole).abs() < 6 * found.probe_error + 1e-9).all())


def test_the_loss_is_the_mean_over_what_is_there():
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(on_points()(path), path, "eps")
    x, noise, t = torch.randn(4, 4).double(), torch.randn(4, 4).double(), torch.rand(4).double()
    given = {"t": t, "noise": noise, "cond": {"mask": MASK}}
    found = sdegen.loss(model, x.masked_fill(~MASK, 7e7), mask=MASK, reduction="none", **given)
    x_t = (path.alpha(t)[:, None] * x + path.sigma(t)[:, None] * noise) * MASK
    missed = (model.net(x_t, t, MASK) - noise) ** 2 * MASK
    torch.testing.assert_close(found, missed.sum(1) / MASK.sum(1))
    torch.testing.assert_close(sdegen.loss(model, x, mask=MASK, **given), found.mean())


def test_padding_has_no_gradient():
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(on_points()(path), path, "eps")
    x = torch.randn(4, 4).double().requires_grad_()
    found = sdegen.log_likelihood(model, x, sdegen.Adams(10), cond={"mask": MASK}, mask=MASK, differentiable=True)
    (gradient,) = torch.autograd.grad(found.log_prob.sum(), x)
    assert bool((gradient[~MASK] == 0).all())
    assert bool((gradient[MASK] != 0).all())


@pytest.mark.parametrize(
    ("mask", "kind", "words"),
    [
        (MASK.float(), TypeError, "mask must be a tensor of bools, True where a value is there, and it is torch.float"),
        ([True], TypeError, "and it is list"),
        (torch.ones(4, 3).bool(), ValueError, r"must broadcast against x, \(4, 4\), and it has shape \(4, 3\)"),
        (torch.zeros(4, 1).bool(), ValueError, "leaves 4 of 4 samples without any value"),
    ],
)
def test_refusals(mask, kind, words):
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(on_points()(path), path, "eps")
    for verb in (sdegen.loss, sdegen.log_prob):
        with pytest.raises(kind, match=words):
            verb(model, torch.zeros(4, 4), mask=mask)


def test_a_mask_goes_with_the_paths_own_prior_alone():
    path = sdegen.VPSDE()
    model, x = sdegen.ScoreModel(on_points()(path), path, "eps"), torch.zeros(4, 4)
    for given in ({"prior": law(4)}, {"data": x}):
        with pytest.raises(ValueError, match="A mask leaves every sample a dimension of its own"):
            sdegen.log_likelihood(model, x, mask=MASK, **given)


def test_a_network_that_knows_of_no_mask_sees_zeros_in_the_padding():
    """And the mask follows its sample through a coupling."""
    seen = []

    def net(x, t):
        seen.append(x)
        return 0 * x

    def turned(x, z, generator):
        return torch.tensor([2, 3, 0, 1]), torch.tensor([1, 0, 3, 2])

    model = sdegen.ScoreModel(net, sdegen.Interpolant(sdegen.CondOT()), "velocity")
    x, noise, t = torch.randn(4, 4).double(), torch.randn(4, 4).double(), torch.full((4,), 0.25).double()
    found = sdegen.loss(model, x, t=t, noise=noise, mask=MASK, coupling=turned, reduction="none")
    rows, partners = turned(x, noise, None)
    mask = MASK[rows]
    torch.testing.assert_close(seen[0], mask * (0.25 * x[rows] + 0.75 * noise[partners]))
    torch.testing.assert_close(found, (mask * (x[rows] - noise[partners]) ** 2).sum(1) / mask.sum(1))


@every_path
def test_inside_the_path_padding_is_none_whatever_the_units(path):
    """States there are the network's own, and so is the density."""
    x, net = torch.randn(4, 4).double(), on_points()(path)
    plain, own = (
        sdegen.ScoreModel(net, path, "eps", standardize=s)
        for s in (None, sdegen.Standardize([5.0, 1.0, 2.0, 3.0], 2.0))
    )
    given = {"cond": {"mask": MASK}, "mask": MASK, "u": (0.3, 0.9)}
    ours, theirs = (sdegen.log_likelihood(m, x, sdegen.Adams(20), **given) for m in (own, plain))
    torch.testing.assert_close(ours.log_prob, theirs.log_prob)
    assert bool((ours.latent[~MASK] == 0).all())


def test_the_network_behind_a_slope_sees_no_padding_either():
    """A model of its own that mixes values: its answer on what is there must not depend on what pads."""
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(lambda x, t: x.mean(1, keepdim=True).expand_as(x), path, "eps")
    x = torch.randn(4, 4).double()
    units = sdegen.ScoreModel(model.net, path, "eps", standardize=sdegen.Standardize(3.0, 2.0))
    found = sdegen.log_prob(units, 3.0 + 2.0 * x, sdegen.Adams(20), mask=MASK)
    expected = sdegen.log_prob(model, x, sdegen.Adams(20), mask=MASK) - MASK.sum(1) * math.log(2.0)
    torch.testing.assert_close(found, expected)
