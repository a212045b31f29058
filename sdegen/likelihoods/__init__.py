"""Likelihoods: exact densities of the ODE, and the bounds of the chain, discrete and in the limit of many steps."""
