"""Mixtures fitted with scikit-learn: the same density, the plug-in of the Bayesian ones, and exact models of both."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn import cluster, mixture, pipeline

import sdegen
from sdegen.datasets import eight_gaussians
from sdegen.interop.sklearn import from_mixture

TYPES = ("full", "tied", "diag", "spherical")
BOTH = (mixture.GaussianMixture, mixture.BayesianGaussianMixture)


def correlated(n=400, d=3, seed=0):
    """Three clusters of d correlated coordinates, (n, d)."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.randn(d, d, generator=g)
    centres = 3 * torch.randn(3, d, generator=g)
    return torch.randn(n, d, generator=g) @ turn + centres[torch.randint(3, (n,), generator=g)]


def fit(kind=mixture.GaussianMixture, covariance_type="full", x=None, components=3, **options):
    x = correlated() if x is None else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the fit has not converged
        return kind(n_components=components, covariance_type=covariance_type, random_state=0, **options).fit(x.numpy())


def on_ring():
    """A Dirichlet process with room for 20 components, on 1000 draws from a ring of eight."""
    x = eight_gaussians(1000, generator=torch.Generator().manual_seed(0))
    return fit(mixture.BayesianGaussianMixture, x=x, components=20, max_iter=200)


def plugged_in(fitted, x):
    """The same as scikit-learn would compute it: a plain mixture that is told the numbers."""
    plain = mixture.GaussianMixture(len(fitted.weights_), covariance_type=fitted.covariance_type)
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        setattr(plain, name, getattr(fitted, name))
    return torch.as_tensor(plain.score_samples(x.numpy()))


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_density_is_that_of_scikit_learn(covariance_type, d):
    """d = 3 is also the number of components, where shapes could be mistaken for one another."""
    x = correlated(d=d)
    fitted = fit(covariance_type=covariance_type, x=x)
    law = from_mixture(fitted)
    assert (type(law), law.event_shape, law.dtype) == (sdegen.GaussianMixture, (d,), torch.float64)
    y = torch.cat([x, 20 * torch.randn(50, d)])
    torch.testing.assert_close(
        law.log_prob(y), torch.as_tensor(fitted.score_samples(y.numpy())), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("prior", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_of_a_bayesian_fit_it_is_the_plug_in_density(covariance_type, prior):
    """Theirs, log sum exp(E log w + E log N), lies below at every x, by Jensen: E log w <= log E w, and so for N."""
    x = correlated(60)
    fitted = fit(mixture.BayesianGaussianMixture, covariance_type, x, 6, weight_concentration_prior_type=prior)
    y = torch.cat([x, 20 * torch.randn(50, 3)])
    law = from_mixture(fitted)
    torch.testing.assert_close(law.log_prob(y), plugged_in(fitted, y), rtol=1e-10, atol=1e-10)
    theirs = torch.as_tensor(fitted.score_samples(y.numpy()))
    assert float((law.log_prob(y) - theirs).min()) > 0.01


def test_the_other_number_integrates_to_less_than_one():
    fitted = fit(mixture.BayesianGaussianMixture, x=correlated(60, d=1), components=4)
    grid = torch.linspace(-60, 60, 20_001)[:, None]
    ours, theirs = from_mixture(fitted).log_prob(grid), torch.as_tensor(fitted.score_samples(grid.numpy()))
    masses = [float(torch.trapezoid(log.exp(), grid[:, 0])) for log in (ours, theirs)]
    assert abs(masses[0] - 1) < 1e-8
    assert masses[1] < 0.95


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT()], ids=lambda path: type(path).__name__)
def test_its_model_has_its_density(covariance_type, path):
    """Under the exact model, with the law at the noise end as its prior, the ODE gives back the density."""
    law = from_mixture(fit(covariance_type=covariance_type))
    x, prior = correlated(4, seed=1), law.marginal(path, path.t_noise)
    found = sdegen.log_prob(law.model(path), x, sdegen.ODESolver("dopri8", rtol=1e-9), prior=prior)
    torch.testing.assert_close(found, law.log_prob(x), rtol=0, atol=1e-6)


def test_a_dirichlet_process_finds_the_eight_modes_of_a_ring():
    fitted = on_ring()
    kept = fitted.weights_ > 0.01
    assert kept.sum() == 8
    turns = np.sort((4 / math.pi * np.arctan2(*fitted.means_[kept].T) + 0.5) % 8)
    np.testing.assert_allclose(turns, np.arange(8) + 0.5, atol=0.05)
    np.testing.assert_allclose(fitted.weights_[kept], 1 / 8, atol=0.04)
    law, path = from_mixture(fitted), sdegen.CondOT()
    x = eight_gaussians(16)
    found = sdegen.log_prob(law.model(path), x, sdegen.ODESolver("dopri8", rtol=1e-9))
    torch.testing.assert_close(found, law.log_prob(x), rtol=0, atol=1e-6)


def test_components_without_data_are_kept_unless_their_weight_is_zero():
    """Far away a component of weight 1e-8 is the density; one of weight 0 is none."""
    fitted = fit(x=correlated(d=2))
    fitted.weights_ = np.array([1.0, 0.0, 1e-8])
    fitted.covariances_ = np.stack([np.eye(2), np.full((2, 2), np.nan), 100 * np.eye(2)])
    law, far = from_mixture(fitted), torch.full((1, 2), 50.0)
    alone = sdegen.Gaussian(fitted.means_[2], 10.0).log_prob(far) + math.log(1e-8)
    torch.testing.assert_close(law.log_prob(far), alone, rtol=0, atol=1e-6)
    assert repr(law) == "GaussianMixture(2 components, event (2,))"
    assert repr(from_mixture(on_ring())) == "GaussianMixture(20 components, event (2,))"


def test_what_is_fitted_in_single_precision_is_sampled_in_it():
    fitted = fit(x=correlated().float())
    law = from_mixture(fitted)
    assert law.sample(4).dtype == torch.as_tensor(fitted.means_).dtype
    x = law.sample(500, torch.Generator().manual_seed(0)).numpy()
    theirs = torch.as_tensor(fitted.score_samples(x)).double()
    torch.testing.assert_close(law.log_prob(torch.as_tensor(x)).double(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prior", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("concentration", [0.5, 30.0])
def test_the_weights_are_the_expected_ones_of_the_fitted_sticks(concentration, prior):
    """E[pi_k] = E[v_k] prod E[1 - v_j] over j < k, v_k ~ Beta(a_k, b_k), cut off and normalised; or of a Dirichlet law.

    Read off the density, at means so far apart that each component stands alone.
    """
    options = {"weight_concentration_prior": concentration, "weight_concentration_prior_type": prior}
    fitted = fit(mixture.BayesianGaussianMixture, components=5, **options)
    if prior == "dirichlet_process":
        a, b = (torch.as_tensor(pair) for pair in fitted.weight_concentration_)
        v = a / (a + b)
        expected = v * torch.cat([torch.ones(1), (1 - v).cumprod(0)[:-1]])
    else:
        expected = torch.as_tensor(fitted.weight_concentration_)
    fitted.means_ = 1e3 * np.arange(5)[:, None] * np.ones(3)
    heights = -0.5 * np.linalg.slogdet(2 * math.pi * fitted.covariances_)[1]
    found = (from_mixture(fitted).log_prob(torch.as_tensor(fitted.means_)) - torch.as_tensor(heights)).exp()
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("fitted", "error", "message"),
    [
        (
            mixture.GaussianMixture(3),
            ValueError,
            r"^fitted must be what \.fit\(X\) leaves, and Gau.*\(n.*=3\) ",
        ),
        (mixture.BayesianGaussianMixture(), ValueError, r"and BayesianGaussianMixture\(\) has not been fitted\.$"),
        (mixture.GaussianMixture, TypeError, r"it is the class GaussianMixture itself: call it, .*\.$"),
        (cluster.KMeans(2), TypeError, r"^fitted must be a GaussianMixture or Bayes.*it is KMeans\(n_clusters=2\)\.$"),
        (cluster.KMeans(2).fit([[0.0], [1.0], [1.1]]), TypeError, r"it is KMeans\(n_clusters=2\)\.$"),
        (pipeline.make_pipeline(mixture.GaussianMixture()), TypeError, r"and it is Pipeline\("),
        (sdegen.Gaussian([0.0], 1.0), TypeError, r"and it is Gaussian\(event \(1,\)\)\.$"),
        (None, TypeError, "and it is None"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_fitted_mixture_is_refused(fitted, error, message):
    with pytest.raises(error, match=message):
        from_mixture(fitted)


@pytest.mark.parametrize("changed", ["diag", "spherical", "tied", "round"])
def test_a_type_that_was_set_after_the_fit_is_refused(changed):
    fitted = fit().set_params(covariance_type=changed)
    words = rf"^covariance_type is '{changed}', and the .* 3 components in 3 dimensions have shape \(3, 3, 3\): .*\.$"
    with pytest.raises(ValueError, match=words):
        from_mixture(fitted)


def test_weights_that_are_no_numbers_are_refused():
    fitted = fit()
    fitted.weights_ = np.array([0.5, 0.5, math.nan])
    with pytest.raises(ValueError, match="weights must be finite"):
        from_mixture(fitted)


@pytest.mark.parametrize(
    ("covariance_type", "changed", "words"),
    [
        (
            "full",
            {"weights_": np.array([0.5, 0.5])},
            r"^weights_ must be one number per .*, 3, .*it is \[0\.5, 0\.5\]\.$",
        ),
        ("tied", {"weights_": np.ones((3, 1))}, r"^weights_ must be one number per component, 3, "),
        ("diag", {"weights_": np.zeros(3)}, r"and not all of them 0, and it is \[0\.0, 0\.0, 0\.0\]\.$"),
        ("diag", {"covariances_": -np.eye(3)}, r"^covariances_ of type 'diag' are variances, and the least is -1\.$"),
        (
            "spherical",
            {"covariances_": np.array([1, -2.5, 1])},
            r"^covariances_ of type 'spherical' .* least is -2\.5\.$",
        ),
        ("full", {"covariances_": np.ones((3, 3, 2))}, r"^covariance_type is 'full', .* have shape \(3, 3, 2\)"),
        ("diag", {"covariances_": np.ones((3, 2))}, r"^covariance_type is 'diag', .* have shape \(3, 2\)"),
        ("tied", {"covariances_": np.eye(2)}, r"^covariance_type is 'tied', .* have shape \(2, 2\)"),
        ("spherical", {"covariances_": np.ones(2)}, r"^covariance_type is 'spherical', .* have shape \(2,\)"),
    ],
)
def test_numbers_that_were_changed_after_the_fit_are_refused(covariance_type, changed, words):
    fitted = fit(covariance_type=covariance_type)
    vars(fitted).update(changed)
    with pytest.raises(ValueError, match=words):
        from_mixture(fitted)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_of_weight_zero_is_left_out_of_every_type(covariance_type):
    """The density is that of the other two, whose numbers are these two's own."""
    fitted, x = fit(covariance_type=covariance_type), correlated(50, seed=2)
    fitted.weights_ = np.array([0.25, 0.0, 0.75])
    S = fitted.covariances_ if covariance_type == "tied" else fitted.covariances_[[0, 2]]
    own = {"covariances": S} if covariance_type in ("full", "tied") else {"stds": np.sqrt(S)}
    alone = sdegen.GaussianMixture(fitted.means_[[0, 2]], weights=[0.25, 0.75], **own)
    assert repr(from_mixture(fitted)) == "GaussianMixture(2 components, event (3,))"
    torch.testing.assert_close(from_mixture(fitted).log_prob(x), alone.log_prob(x), rtol=1e-12, atol=0)


def test_numbers_that_cannot_be_written_are_read():
    """As joblib.load(..., mmap_mode="r") leaves them; and what is written into the fit later changes nothing."""
    fitted, x = fit(), correlated(9, seed=3)
    for name in ("weights_", "means_", "covariances_"):
        getattr(fitted, name).setflags(write=False)
    law = from_mixture(fitted)
    before = law.log_prob(x)
    for name in ("weights_", "means_", "covariances_"):
        numbers = getattr(fitted, name)
        numbers.setflags(write=True)
        numbers *= 2
    torch.testing.assert_close(law.log_prob(x), before, rtol=0, atol=0)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    fitted = fit()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    words = r"^from_mixture needs scikit-learn, which is not installed: pip install 'sdegen\[examples\]'\.$"
    with pytest.raises(ImportError, match=words):
        from_mixture(fitted)
