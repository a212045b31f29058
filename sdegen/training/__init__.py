"""Training: the loss, its times and couplings."""
