"""sdegen: score-based generative models in continuous time, every formula tested against a closed form."""

from sdegen._checks import NonFiniteError, Shared
from sdegen._version import __version__
from sdegen.likelihoods.chain import optimal_variance
from sdegen.likelihoods.continuous import continuous_vlb
from sdegen.likelihoods.decoders import Discretized
from sdegen.likelihoods.density import log_prob
from sdegen.likelihoods.entropy import EntropyForm, entropy_form
from sdegen.likelihoods.variational import IWAE, VLB, iwae, vlb
from sdegen.models.base import Model
from sdegen.models.exact import Gaussian, GaussianMixture
from sdegen.models.model import ScoreModel
from sdegen.models.wrapped import Wrapped
from sdegen.paths.chain import DDPM
from sdegen.paths.diffusions import VESDE, VPSDE, CosineVPSDE, SubVPSDE
from sdegen.paths.flows import CondOT, Interpolant, Retimed, Trigonometric
from sdegen.paths.gaussian import GaussianPath
from sdegen.reflow import rectify, straightness, vector_field
from sdegen.sampling import Solution, decode, encode, sample, solve
from sdegen.solvers import (
    DDIM,
    Ancestral,
    Hutchinson,
    ODESolver,
    PowerGrid,
    Problem,
    Result,
    SDESolver,
    Solver,
    march,
)
from sdegen.training.couplings import Independent, OptimalTransport
from sdegen.training.hybrid import hybrid_loss
from sdegen.training.losses import LikelihoodWeighting, MinSNR, loss
from sdegen.training.times import ChainTimes, ClockTimes, LikelihoodTimes, LowDiscrepancyTimes, UniformTimes

__all__ = [
    "DDIM",
    "DDPM",
    "IWAE",
    "VESDE",
    "VLB",
    "VPSDE",
    "Ancestral",
    "ChainTimes",
    "ClockTimes",
    "CondOT",
    "CosineVPSDE",
    "Discretized",
    "EntropyForm",
    "Gaussian",
    "GaussianMixture",
    "GaussianPath",
    "Hutchinson",
    "Independent",
    "Interpolant",
    "LikelihoodTimes",
    "LikelihoodWeighting",
    "LowDiscrepancyTimes",
    "MinSNR",
    "Model",
    "NonFiniteError",
    "ODESolver",
    "OptimalTransport",
    "PowerGrid",
    "Problem",
    "Result",
    "Retimed",
    "SDESolver",
    "ScoreModel",
    "Shared",
    "Solution",
    "Solver",
    "SubVPSDE",
    "Trigonometric",
    "UniformTimes",
    "Wrapped",
    "__version__",
    "continuous_vlb",
    "decode",
    "encode",
    "entropy_form",
    "hybrid_loss",
    "iwae",
    "log_prob",
    "loss",
    "march",
    "optimal_variance",
    "rectify",
    "sample",
    "solve",
    "straightness",
    "vector_field",
    "vlb",
]
