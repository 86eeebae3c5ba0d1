"""Which trial is stopped early: Optuna's pruners by name, or any factory of one."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner

from anomtune.registry import PRUNERS
from anomtune.search.config import Sweep
from anomtune.search.decide.factories import make
from anomtune.search.decide.samplers import startup_trials

#: From so many rungs, and random trials at the beginning, on the first look is an early one.
_MANY_RUNGS, _MANY_STARTUP_TRIALS = 8, 5


def make_pruner(config: Sweep) -> BasePruner:
    """Returns the pruner of a study; for its first look see `first_look`.

    A factory is called with those of these arguments that its signature names, in rungs:
    ``min_resource`` and ``n_warmup_steps``, the first look; ``max_resource``, the last; and
    ``n_startup_trials``, how many trials are random.

    Raises:
        SweepError: If the factory that the sweep names cannot be used.
    """
    first = first_look(config)
    offered = {
        "min_resource": first,
        "max_resource": config.rungs,
        "n_warmup_steps": first,
        "n_startup_trials": startup_trials(config),
    }
    return make(PRUNERS, config.pruner, offered, BasePruner)  # type: ignore[type-abstract]


def first_look(config: Sweep) -> int:
    """Returns the rung at which trials are compared for the first time.

    After a quarter of the rungs; after half of them where there are few rungs or few trials: an
    early look is noisy, and with few trials it compares with little but trial 0.
    """
    few = config.rungs < _MANY_RUNGS or startup_trials(config) < _MANY_STARTUP_TRIALS
    return max(1, -(-config.rungs // (2 if few else 4)))


def successive_halving(*, min_resource: int) -> BasePruner:
    """Returns Optuna's successive halving, which keeps the best third."""
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=min_resource, reduction_factor=3)
