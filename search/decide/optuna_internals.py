"""All that is used of Optuna beyond its public interface; `test_optuna_internals.py` guards it.

Seen in Optuna 5.0. A later Optuna that has changed one of these fails that test, which names it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from scipy.special import erf, log_ndtr

try:
    from optuna.samplers._tpe import _truncnorm

    _NORMAL: dict[str, Any] = vars(_truncnorm)
except ImportError:  # moved: TPE is slower, and as good
    _NORMAL = {}

#: TPE calculates the logarithm of the normal distribution in Python, number by number: most of
#: the time of its suggestions. SciPy has the same functions in C.
FAST_FUNCTIONS = {"_log_ndtr": log_ndtr, "erf": erf}

_fast = threading.RLock()


@contextmanager
def fast_truncated_normal() -> Iterator[None]:
    """Lets TPE and PED-ANOVA calculate in C for a while; afterwards Optuna's module is as before.

    A sampler has no argument for it.
    """
    with _fast:  # else the second of two threads would restore what the first has put there
        before = {name: _NORMAL[name] for name in FAST_FUNCTIONS if name in _NORMAL}
        _NORMAL.update({name: FAST_FUNCTIONS[name] for name in before})
        try:
            yield
        finally:
            _NORMAL.update(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Mutes what Optuna says of a study that it makes, and of samplers that are experimental."""
    logger = logging.getLogger("optuna")  # `set_verbosity` sets the level of this one
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been suggested: `create_trial` says so only by an exception."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False


def running_trial(
    study: optuna.Study,
    number: int,
    point: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
) -> optuna.Trial:
    """Adds a trial that has begun, with its place in the space, as if it had been asked for.

    Optuna makes trials that can be reported to by `ask` alone, which takes waiting ones first.
    """
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=dict(point),
            distributions=dict(distributions),
        )
    )
    added = study.get_trials(deepcopy=False)[number]
    return optuna.Trial(study, added._trial_id)
