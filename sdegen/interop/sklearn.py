"""Mixtures fitted with scikit-learn as exact targets: pip install 'sdegen[examples]'.

scikit-learn fits sum_k w_k N(m_k, S_k), and stores S_k in the shape that its `covariance_type` says:

    "full" (K, d, d)      "tied" (d, d), one for all      "diag" (K, d)      "spherical" (K,)

It is imported by `from_mixture` alone, when it is called.

References:
    Variational Inference for Dirichlet Process Mixtures, Blei and Jordan, 2006, Bayesian Analysis 1(1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.exact import GaussianMixture


def from_mixture(fitted: object) -> GaussianMixture:
    """A mixture fitted with scikit-learn as a `GaussianMixture`: a density, samples, and the exact model on any path.

    Of a sklearn.mixture.GaussianMixture it is the same density: `.log_prob(x)` is `fitted.score_samples(x)`. Of a
    BayesianGaussianMixture, with a Dirichlet process or distribution over its weights, it is the plug-in density

        sum_k w_k N(x; m_k, S_k),   w_k = E_q[pi_k],  m_k = E_q[mu_k],  S_k^-1 = E_q[Lambda_k]

    with q the fitted posterior and w normalised over the components there are. There `fitted.score_samples(x)` is
    another number, log sum_k exp(E_q[log pi_k] + E_q[log N(x; mu_k, Lambda_k^-1)]): expectations of logarithms, by
    Jensen's inequality below the plug-in density's at every x, so that its exponential integrates to less than one. So
    it is for "full" and "tied"; for "diag" and "spherical" it is lower still, since scikit-learn takes the sum of
    psi((nu_k - i)/2), i = 0 ... d-1, of a Wishart law in d dimensions, where d times psi(nu_k/2) would be that
    expectation.

    Components that the fit has left without data are kept, with the little weight they have: far from the data their
    tails are the density. Only those whose weight is 0 are left out. To keep the modes alone:

        kept = fitted.weights_ > 0.01
        modes = sdegen.GaussianMixture(fitted.means_[kept], weights=fitted.weights_[kept],
                                       covariances=fitted.covariances_[kept])  # where these are "full"

    Args:
        fitted: a GaussianMixture or BayesianGaussianMixture of scikit-learn, after .fit(X), X of shape (n, d).

    Returns:
        the mixture over events of shape (d,), in the dtype of the fit.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: for what is no mixture of scikit-learn.
        ValueError: for one that has not been fitted, or whose numbers, changed since, are no mixture of the type that
            it names.

    Examples:
        >>> from sklearn.mixture import GaussianMixture
        >>> from sdegen.interop.sklearn import from_mixture
        >>> x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [7.0], [8.0]])
        >>> law = from_mixture(GaussianMixture(2, random_state=0).fit(x.numpy()))
        >>> law.model(sdegen.VPSDE()).score(x, 0.5).shape, law.sample(5).shape
        (torch.Size([6, 1]), torch.Size([5, 1]))

    References:
        Variational Inference for Dirichlet Process Mixtures, Blei and Jordan, 2006, Bayesian Analysis 1(1).
    """
    try:
        from sklearn import mixture
    except ImportError as error:
        raise ImportError(
            "from_mixture needs scikit-learn, which is not installed: pip install 'sdegen[examples]'."
        ) from error
    if not isinstance(fitted, (mixture.GaussianMixture, mixture.BayesianGaussianMixture)):
        raise TypeError(
            "fitted must be a GaussianMixture or BayesianGaussianMixture of scikit-learn, and it is "
            f"{_checks.described(fitted)}."
        )
    numbers = ("weights_", "means_", "covariances_")
    if not all(hasattr(fitted, name) for name in numbers):
        raise ValueError(f"fitted must be what .fit(X) leaves, and {fitted!r} has not been fitted.")
    weights, means, covariances = (torch.as_tensor(np.array(getattr(fitted, name))) for name in numbers)
    kind = str(fitted.covariance_type)
    _check_shape(kind, covariances, *means.shape)
    _check_values(kind, weights, covariances, len(means))
    kept = weights != 0
    components = covariances if kind == "tied" else covariances[kept]
    if kind in ("full", "tied"):
        return GaussianMixture(means[kept], weights=weights[kept], covariances=components)
    return GaussianMixture(means[kept], components.sqrt(), weights[kept])


def _check_shape(kind: str, covariances: Tensor, K: int, d: int) -> None:
    """A ValueError unless the covariances have the shape that their type says: it may be set after the fit."""
    shapes: dict[str, Sequence[int]] = {"full": (K, d, d), "tied": (d, d), "diag": (K, d), "spherical": (K,)}
    if kind not in shapes or covariances.shape != shapes[kind]:
        raise ValueError(
            f"covariance_type is {kind!r}, and the covariances of these {K} components in {d} dimensions have shape "
            f"{tuple(covariances.shape)}: it must be the one of {', '.join(map(repr, shapes))} that was fitted."
        )


def _check_values(kind: str, weights: Tensor, covariances: Tensor, K: int) -> None:
    """A ValueError unless there are K weights, one of them not 0, and variances that are none below 0."""
    if weights.shape != (K,) or not bool((weights != 0).any()):
        raise ValueError(
            f"weights_ must be one number per component, {K}, and not all of them 0, and it is {weights.tolist()}."
        )
    if kind in ("diag", "spherical") and bool((covariances < 0).any()):
        raise ValueError(f"covariances_ of type {kind!r} are variances, and the least is {float(covariances.min()):g}.")
