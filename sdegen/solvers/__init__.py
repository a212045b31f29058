"""Solvers: small frozen values, the only place that imports an engine."""

from sdegen.solvers.adams import Adams, StochasticAdams
from sdegen.solvers.ancestral import DDIM, Ancestral
from sdegen.solvers.base import Ask, Problem, Result, Solver, march
from sdegen.solvers.divergence import Hutchinson
from sdegen.solvers.grids import Grid, KarrasGrid, PowerGrid, StretchedGrid
from sdegen.solvers.multistep import Multistep, Row
from sdegen.solvers.ode import ODE_METHODS, ODESolver
from sdegen.solvers.sde import SDE_METHODS, SDESolver

__all__ = [
    "DDIM",
    "ODE_METHODS",
    "SDE_METHODS",
    "Adams",
    "Ancestral",
    "Ask",
    "Grid",
    "Hutchinson",
    "KarrasGrid",
    "Multistep",
    "ODESolver",
    "PowerGrid",
    "Problem",
    "Result",
    "Row",
    "SDESolver",
    "Solver",
    "StochasticAdams",
    "StretchedGrid",
    "march",
]
