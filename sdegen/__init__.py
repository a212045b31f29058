"""sdegen: score-based generative models in continuous time, every formula tested against a closed form."""

from sdegen._checks import NonFiniteError
from sdegen._version import __version__
from sdegen.chain import DDPM
from sdegen.dynamics import Hutchinson
from sdegen.exact import Gaussian, GaussianMixture
from sdegen.gaussian_path import GaussianPath
from sdegen.likelihood import log_prob
from sdegen.losses import LikelihoodTimes, LikelihoodWeighting, LowDiscrepancyTimes, MinSNR, UniformTimes, loss
from sdegen.models import Model, ScoreModel
from sdegen.paths import VESDE, VPSDE, CondOT, CosineVPSDE, SubVPSDE
from sdegen.sampling import Solution, decode, encode, sample, solve
from sdegen.solvers import Ancestral, ODESolver, PowerGrid, SDESolver

__all__ = [
    "DDPM",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "CondOT",
    "CosineVPSDE",
    "Gaussian",
    "GaussianMixture",
    "GaussianPath",
    "Hutchinson",
    "LikelihoodTimes",
    "LikelihoodWeighting",
    "LowDiscrepancyTimes",
    "MinSNR",
    "Model",
    "NonFiniteError",
    "ODESolver",
    "PowerGrid",
    "SDESolver",
    "ScoreModel",
    "Solution",
    "SubVPSDE",
    "UniformTimes",
    "__version__",
    "decode",
    "encode",
    "log_prob",
    "loss",
    "sample",
    "solve",
]
