"""sdegen: score-based generative models in continuous time, every formula tested against a closed form.

Three nouns, path, model and solver, and three verbs, loss, sample and log_prob; the rest are values given to them.
Networks, data, other libraries and pictures are in `sdegen.nets`, `sdegen.datasets`, `sdegen.interop` and
`sdegen.plot`, each imported when it is first asked for.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from sdegen._checks import AccuracyWarning, NonFiniteError, Shared
from sdegen._version import __version__
from sdegen.bulk import Samples, sample_many, seeds
from sdegen.checkpoints import load, load_state, save
from sdegen.comparison import Comparison, compare, energy_distance
from sdegen.likelihoods.chain import optimal_variance
from sdegen.likelihoods.continuous import continuous_vlb
from sdegen.likelihoods.decoders import Discretized
from sdegen.likelihoods.density import LogLikelihood, log_likelihood, log_prob
from sdegen.likelihoods.entropy import EntropyForm, entropy_form
from sdegen.likelihoods.evaluation import Evaluation, evaluate
from sdegen.likelihoods.posterior import Bound, score_kl
from sdegen.likelihoods.quantised import DiscreteLogProb, Quantized, discrete_log_prob
from sdegen.likelihoods.variational import IWAE, VLB, iwae, vlb
from sdegen.likelihoods.weighted import Estimate, Importance, importance
from sdegen.models.base import Model
from sdegen.models.exact import Gaussian, GaussianMixture
from sdegen.models.guidance import ClassifierFree, Clipped, Guided
from sdegen.models.latent import LatentModel
from sdegen.models.model import ScoreModel
from sdegen.models.observed import Observed
from sdegen.models.preconditioned import Preconditioned
from sdegen.models.standardised import Standardize
from sdegen.models.wrapped import Wrapped
from sdegen.paths.chain import DDPM
from sdegen.paths.diffusions import EDM, VESDE, VPSDE, CosineVPSDE, SubVPSDE
from sdegen.paths.flows import CondOT, Interpolant, Retimed, Trigonometric
from sdegen.paths.gaussian import GaussianPath, Slopes
from sdegen.reflow import rectify, straightness, vector_field
from sdegen.sampling import Solution, decode, encode, sample, solve
from sdegen.solvers import (
    DDIM,
    DEIS,
    Adams,
    AdamsUntil,
    Ancestral,
    Ask,
    Churn,
    DPMSolver,
    Exact,
    Grid,
    Heun,
    Hutchinson,
    KarrasGrid,
    Langevin,
    Layout,
    Multistep,
    ODESolver,
    OneStep,
    PowerGrid,
    Problem,
    Renoised,
    Restart,
    Result,
    Row,
    SASolver,
    SDESolver,
    Solver,
    Stage,
    StochasticAdams,
    StretchedGrid,
    UniPC,
    march,
)
from sdegen.training.couplings import Independent, OptimalTransport
from sdegen.training.fitting import fit
from sdegen.training.hybrid import hybrid_loss
from sdegen.training.losses import EDMWeighting, LikelihoodWeighting, MinSNR, loss
from sdegen.training.ratios import contrastive_loss, jsd, ratio_loss
from sdegen.training.times import (
    ChainTimes,
    ClockTimes,
    LikelihoodTimes,
    LogNormalTimes,
    LowDiscrepancyTimes,
    UniformTimes,
)
from sdegen.tuning import tune

if TYPE_CHECKING:
    from sdegen import datasets as datasets
    from sdegen import interop as interop
    from sdegen import nets as nets
    from sdegen import plot as plot
else:

    def __getattr__(name: str) -> ModuleType:
        """A leaf, imported when it is first asked for; type checkers read the lines above instead."""
        if name in _LEAVES:
            return import_module(f"sdegen.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LEAVES = ("datasets", "interop", "nets", "plot")


def __dir__() -> list[str]:
    """What is exported, and the leaves, imported or not."""
    return sorted({*__all__, *_LEAVES, *(name for name in globals() if name.startswith("__"))})


__all__ = ["__version__"]
# Nouns: paths, models, solvers
__all__ += ["DDPM", "EDM", "VESDE", "VPSDE", "CosineVPSDE", "GaussianPath", "SubVPSDE"]
__all__ += ["CondOT", "Interpolant", "Retimed", "Trigonometric"]
__all__ += ["Gaussian", "GaussianMixture", "Model", "Preconditioned", "ScoreModel", "Wrapped", "vector_field"]
__all__ += ["ClassifierFree", "Clipped", "Guided", "LatentModel", "Observed"]
__all__ += ["DDIM", "Adams", "AdamsUntil", "Ancestral", "ODESolver", "SDESolver", "StochasticAdams"]
__all__ += ["DEIS", "DPMSolver", "Heun", "SASolver", "UniPC"]
__all__ += ["Churn", "Langevin", "Renoised", "Restart"]
__all__ += ["Ask", "Multistep", "OneStep", "Problem", "Result", "Row", "Solver", "Stage", "march"]
__all__ += ["Grid", "KarrasGrid", "Layout", "PowerGrid", "StretchedGrid"]
# Verbs: train, move, score
__all__ += ["contrastive_loss", "fit", "hybrid_loss", "jsd", "loss", "ratio_loss"]
__all__ += ["load", "load_state", "save"]
__all__ += ["decode", "encode", "rectify", "sample", "sample_many", "solve", "straightness"]
__all__ += ["compare", "energy_distance", "tune"]
__all__ += ["continuous_vlb", "discrete_log_prob", "entropy_form", "evaluate", "importance", "iwae"]
__all__ += ["log_likelihood", "log_prob", "optimal_variance", "score_kl", "vlb"]
# Values: given to verbs, returned and raised by them
__all__ += ["Discretized", "Exact", "Hutchinson", "Quantized", "Shared", "Slopes", "Standardize"]
__all__ += ["ChainTimes", "ClockTimes", "LikelihoodTimes", "LogNormalTimes", "LowDiscrepancyTimes", "UniformTimes"]
__all__ += ["EDMWeighting", "Independent", "LikelihoodWeighting", "MinSNR", "OptimalTransport"]
__all__ += ["IWAE", "VLB", "AccuracyWarning", "Bound", "Comparison", "DiscreteLogProb", "EntropyForm", "Estimate"]
__all__ += ["Evaluation", "Importance", "LogLikelihood", "NonFiniteError", "Samples", "Solution", "seeds"]
