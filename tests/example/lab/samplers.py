"""Samplers of the laboratory."""

import optuna


def make(seed: int) -> optuna.samplers.BaseSampler:
    """Returns a sampler that fills the space evenly."""
    return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)
