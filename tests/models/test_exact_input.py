"""What an exact target accepts: covariances with rounding in them, lists with all their digits, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sdegen


def generator(seed):
    return torch.Generator().manual_seed(seed)


def product(seed):
    q = torch.linalg.qr(torch.randn(64, 64, generator=generator(seed), dtype=torch.float32))[0]
    return (q * torch.logspace(-2, 0, 64, dtype=torch.float32)) @ q.T


def inverse(seed):
    x = torch.randn(64, 64, generator=generator(seed), dtype=torch.float32)
    return torch.linalg.inv(x @ x.T / 64 + 0.01 * torch.eye(64, dtype=torch.float32))


@pytest.mark.parametrize("covariance", [product, inverse])
@pytest.mark.parametrize("as_list", [False, True])
def test_covariances_computed_in_single_precision_are_covariances(covariance, as_list):
    torch.set_default_dtype(torch.float32)  # put back by the fixture of every test
    asymmetric = 0
    for seed in range(20):
        S = covariance(seed)
        asymmetric += int(not torch.equal(S, S.mT))
        law = sdegen.Gaussian(torch.zeros(64), covariance=S.tolist() if as_list else S)
        wide = S.double()
        exact = torch.linalg.eigvalsh(0.5 * (wide + wide.mT))
        torch.testing.assert_close(law.spectrum.sort().values, exact, rtol=1e-9, atol=1e-12)
    assert asymmetric == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_asymmetry_is_named(dtype):
    S = torch.eye(3, dtype=dtype)
    S[2, 0] = 0.01
    for covariances in (S, torch.stack([torch.eye(3, dtype=dtype), S])):
        with pytest.raises(ValueError, match=r"must be symmetric.*\[(0, 2|2, 0)\] and.*differ by 0.01, .*entry is 1"):
            sdegen.GaussianMixture(torch.zeros(2, 3, dtype=dtype), covariances=covariances)
    with pytest.raises(ValueError, match="must be symmetric"):  # in double precision, single's rounding is none
        sdegen.Gaussian(torch.zeros(2), covariance=torch.tensor([[1.0, 1e-5], [0.0, 1.0]], dtype=torch.float64))


def test_an_indefinite_covariance_is_named_as_such():
    with pytest.raises(ValueError, match=r"positive definite, and the least eigenvalue is -1\."):
        sdegen.Gaussian([0.0, 0.0], covariance=[[1.0, 2.0], [2.0, 1.0]])


def test_lists_keep_their_digits_and_the_samples_the_default_dtype():
    torch.set_default_dtype(torch.float32)  # put back by the fixture of every test
    law = sdegen.GaussianMixture([[0.1], [0.7]], [1e-4, 0.3], [0.1, 0.3])
    assert law._means.flatten().tolist() == [0.1, 0.7]
    assert law._variances.sqrt().flatten().tolist() == pytest.approx([1e-4, 0.3], rel=1e-15)
    assert law._log_weights.tolist() == pytest.approx([math.log(0.25), math.log(0.75)], rel=1e-15)
    assert law.sample(3).dtype is law.dtype is torch.float32
    one = sdegen.Gaussian([0.1, 0.2], 1e-4)
    assert one.mean.tolist() == [0.1, 0.2]
    assert one.spectrum.sqrt().tolist() == pytest.approx([1e-4, 1e-4], rel=1e-15)
    assert one.sample(3).dtype is torch.float32
    assert sdegen.Gaussian([0.1], covariance=[[0.1]]).spectrum.tolist() == [0.1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_give_samples_of_their_dtype(dtype):
    means = torch.tensor([[0.1], [0.7]], dtype=dtype)
    for given in (means, means.numpy()):
        assert sdegen.GaussianMixture(given, 0.1).sample(2).dtype is dtype
        assert sdegen.Gaussian(given[0], 0.1).sample(2).dtype is dtype
    assert sdegen.GaussianMixture(np.array([[1], [2]]), 0.1).sample(2).dtype is torch.get_default_dtype()


def test_a_target_does_not_change_with_the_tensor_it_was_given():
    means = torch.zeros(2, 3)
    law = sdegen.GaussianMixture(means, 1.0)
    before = law.log_prob(torch.zeros(1, 3))
    means += 1
    assert torch.equal(law.log_prob(torch.zeros(1, 3)), before)


LAW = sdegen.GaussianMixture([[0.0], [1.0]], 0.1)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.GaussianMixture("abc", 0.1), TypeError, "means must be real numbers.*'abc'"),
        (lambda: sdegen.GaussianMixture(None, 0.1), TypeError, "means must be real numbers.*None"),
        (lambda: sdegen.GaussianMixture([["a"]], 0.1), TypeError, "means must be real numbers.*'a'"),
        (lambda: sdegen.GaussianMixture([[1j]], 0.1), TypeError, "means must be real numbers.*complex"),
        (lambda: sdegen.GaussianMixture([[0.0]], "0.1"), TypeError, "stds must be real numbers.*'0.1'"),
        (lambda: sdegen.GaussianMixture([[0.0]], 0.1, "w"), TypeError, "weights must be real numbers.*'w'"),
        (lambda: sdegen.Gaussian(None, 1.0), TypeError, "mean must be real numbers.*None"),
        (lambda: sdegen.Gaussian([0.0], covariance="S"), TypeError, "covariances must be real numbers.*'S'"),
        (lambda: LAW.marginal(None, 0.5), TypeError, "path must be a GaussianPath.*None"),
        (lambda: LAW.marginal(sdegen.VPSDE(), None), TypeError, "time must be.*None"),
        (lambda: LAW.marginal(sdegen.VPSDE(), 7.0), ValueError, r"t must lie in \[0.0, 1.0\].*it is 7\."),
        (lambda: LAW.marginal(sdegen.VPSDE(), torch.rand(2)), ValueError, r"one time t, and t has shape \(2,\)"),
        (lambda: LAW.marginal(sdegen.Interpolant(source=LAW), 0.5), ValueError, "no mixture of Gaussians"),
        (lambda: LAW.sample(3, 5), TypeError, "generator must be.*5 is int"),
        (lambda: LAW.sample(3, [torch.Generator()]), ValueError, "batch of 3 needs 3 generators.*1 were"),
        (lambda: LAW.sample((3, 2)), ValueError, r"event has shape \(1,\), and \(3, 2\)"),
    ],
)
def test_bad_input_is_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_one_generator_per_sample():
    several = LAW.sample(3, [generator(s) for s in (5, 6, 7)])
    assert torch.equal(several[1:2], LAW.sample(1, generator(6)))
    assert LAW.sample(0, []).shape == (0, 1)
