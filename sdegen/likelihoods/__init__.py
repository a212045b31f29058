"""Likelihoods: exact densities of the ODE, bounds of the chain."""
