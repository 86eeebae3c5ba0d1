"""Which trial is stopped early: Optuna's pruners by name, or any factory of one."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner

from anomtune.registry import PRUNERS
from anomtune.search.config import Sweep
from anomtune.search.decide.factories import make
from anomtune.search.decide.samplers import startup_trials


def make_pruner(config: Sweep) -> BasePruner:
    """Returns the pruner of a study; its first look comes after a quarter of the rungs.

    A factory is called with those of these arguments that its signature names, in rungs:
    ``min_resource`` and ``n_warmup_steps``, the first look; ``max_resource``, the last; and
    ``n_startup_trials``, how many trials are random.

    Raises:
        SweepError: If the factory that the sweep names cannot be used.
    """
    first = max(1, config.rungs // 4)
    offered = {
        "min_resource": first,
        "max_resource": config.rungs,
        "n_warmup_steps": first,
        "n_startup_trials": startup_trials(config),
    }
    return make(PRUNERS, config.pruner, offered, BasePruner)  # type: ignore[type-abstract]


def successive_halving(*, min_resource: int) -> BasePruner:
    """Returns Optuna's successive halving, which keeps the best third."""
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=min_resource, reduction_factor=3)
