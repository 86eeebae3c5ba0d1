"""Which config is tried next: Optuna's samplers by name, or any factory of one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from anomtune.registry import SAMPLERS
from anomtune.search.config import Sweep
from anomtune.search.decide.factories import make


def make_sampler(
    config: Sweep, study: str, number: int, space: Mapping[str, BaseDistribution]
) -> BaseSampler:
    """Returns the sampler for one trial.

    A new one for each, seeded by the trial's name: what is suggested depends on the history
    alone, so that a resumed study goes on as if it had never stopped.

    A factory is called with those of these arguments that its signature names: ``seed``;
    ``n_startup_trials``, the number of random trials at the beginning; ``search_space``, a
    distribution of Optuna's for every name.

    Args:
        config: The sweep.
        study: Name of the study.
        number: Index of the trial in it.
        space: What the study searches.

    Raises:
        SweepError: If the factory that the sweep names cannot be used.
    """
    digest = hashlib.sha256(f"{config.seed}/{study}/{number}".encode()).digest()
    offered = {
        "seed": int.from_bytes(digest[:4], "big"),
        "n_startup_trials": startup_trials(config),
        "search_space": space,
    }
    return make(SAMPLERS, config.sampler, offered, BaseSampler)  # type: ignore[type-abstract]


def startup_trials(config: Sweep) -> int:
    """Returns how many trials of a study are random before its sampler models them.

    Optuna's 10, but never more than a third of what a study is to have: of a shared budget that is
    twice its part, as a race favours some; in a number of hours it cannot be known.
    """
    trials, budget = config.trials, config.budget
    if budget is not None:
        part = 15 if budget.trials is None else 2 * budget.trials // len(config.methods)
        trials = min(trials, part)
    return min(10, max(2, trials // 3))


def tpe(
    *, seed: int, n_startup_trials: int, search_space: Mapping[str, BaseDistribution]
) -> BaseSampler:
    """Returns Optuna's TPE."""
    return _TPESampler(search_space, seed=seed, startup=n_startup_trials)


def cmaes(*, seed: int, n_startup_trials: int) -> BaseSampler:
    """Returns Optuna's CMA-ES, which draws from a distribution that earlier trials moved.

    After a restart Optuna begins a new one: its own notes are pickles, which a record must not
    hold.
    """
    return optuna.samplers.CmaEsSampler(
        seed=seed, n_startup_trials=n_startup_trials, warn_independent_sampling=False
    )


class _TPESampler(optuna.samplers.TPESampler):
    """Optuna's TPE, told the space that it would else find out from all trials at each ask."""

    def __init__(self, space: Mapping[str, BaseDistribution], *, seed: int, startup: int) -> None:
        super().__init__(seed=seed, n_startup_trials=startup)
        self._known_space = {
            name: item for name, item in sorted(space.items()) if not item.single()
        }

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the space: every trial of a study has it."""
        return self._known_space
