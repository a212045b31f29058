"""sdegen: score-based generative models in continuous time, every formula tested against a closed form."""

from sdegen._checks import NonFiniteError
from sdegen._version import __version__
from sdegen.bounds import IWAE, VLB, iwae, vlb
from sdegen.continuous_bound import continuous_vlb
from sdegen.couplings import Independent, OptimalTransport
from sdegen.ddpm import hybrid_loss, optimal_variance
from sdegen.ddpm_path import DDPM
from sdegen.decoders import Discretized
from sdegen.dynamics import Hutchinson
from sdegen.entropy_form import EntropyForm, entropy_form
from sdegen.exact import Gaussian, GaussianMixture
from sdegen.flow_paths import CondOT, Interpolant, Retimed, Trigonometric
from sdegen.flows import rectify, straightness, vector_field
from sdegen.gaussian_path import GaussianPath
from sdegen.likelihood import log_prob
from sdegen.losses import LikelihoodWeighting, MinSNR, loss
from sdegen.models import Model, ScoreModel
from sdegen.paths import VESDE, VPSDE, CosineVPSDE, SubVPSDE
from sdegen.sampling import Solution, decode, encode, sample, solve
from sdegen.solvers import DDIM, Ancestral, ODESolver, PowerGrid, SDESolver
from sdegen.times import ChainTimes, LikelihoodTimes, LowDiscrepancyTimes, UniformTimes

__all__ = [
    "DDIM",
    "DDPM",
    "IWAE",
    "VESDE",
    "VLB",
    "VPSDE",
    "Ancestral",
    "ChainTimes",
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
    "Retimed",
    "SDESolver",
    "ScoreModel",
    "Solution",
    "SubVPSDE",
    "Trigonometric",
    "UniformTimes",
    "__version__",
    "continuous_vlb",
    "decode",
    "encode",
    "entropy_form",
    "hybrid_loss",
    "iwae",
    "log_prob",
    "loss",
    "optimal_variance",
    "rectify",
    "sample",
    "solve",
    "straightness",
    "vector_field",
    "vlb",
]
