"""Samplers and pruners of somebody else, named in sweep files by import path."""

from __future__ import annotations

import optuna


def make_sampler(seed, search_space):
    assert sorted(search_space) == ["colour", "quality"]
    return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)


def make_pruner(n_warmup_steps, lower=0.2):
    return optuna.pruners.ThresholdPruner(lower=lower, n_warmup_steps=n_warmup_steps)


def make_nothing():
    return None


def make_error(seed=0, min_resource=0):
    raise ValueError("not on\na Sunday")


def make_unknown(seed=0, *, temperature):
    return optuna.samplers.RandomSampler(seed=seed + temperature)


NOT_A_FACTORY = 7
