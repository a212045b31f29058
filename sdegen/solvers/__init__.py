"""Solvers: small frozen values, the only place that imports an engine."""

from sdegen.solvers.adams import Adams, StochasticAdams
from sdegen.solvers.ancestral import DDIM, Ancestral
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.deis import DEIS
from sdegen.solvers.divergence import Exact, Hutchinson
from sdegen.solvers.dpm import DPMSolver
from sdegen.solvers.grids import Grid, KarrasGrid, Layout, PowerGrid, StretchedGrid
from sdegen.solvers.heun import Heun
from sdegen.solvers.loop import Ask, march
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.ode import ODE_METHODS, ODESolver
from sdegen.solvers.onestep import OneStep, Stage
from sdegen.solvers.refined import AdamsUntil
from sdegen.solvers.registry import SCHEMES
from sdegen.solvers.renoised import Churn, Langevin, Renoised, Restart
from sdegen.solvers.sasolver import SASolver
from sdegen.solvers.scheme import Row
from sdegen.solvers.sde import SDE_METHODS, SDESolver
from sdegen.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "ODE_METHODS",
    "SCHEMES",
    "SDE_METHODS",
    "Adams",
    "AdamsUntil",
    "Ancestral",
    "Ask",
    "Churn",
    "DPMSolver",
    "Exact",
    "Grid",
    "Heun",
    "Hutchinson",
    "KarrasGrid",
    "Langevin",
    "Layout",
    "Multistep",
    "ODESolver",
    "OneStep",
    "PowerGrid",
    "Problem",
    "Renoised",
    "Restart",
    "Result",
    "Row",
    "SASolver",
    "SDESolver",
    "Solver",
    "Stage",
    "StochasticAdams",
    "StretchedGrid",
    "UniPC",
    "march",
]
