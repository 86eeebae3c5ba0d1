"""The installed Optuna still has what `optuna_internals` uses of it."""

from __future__ import annotations

import logging
import threading
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers._tpe import _truncnorm

from anomtune.search.decide import optuna_internals
from anomtune.search.decide.optuna_internals import (
    FAST_FUNCTIONS,
    contains,
    fast_truncated_normal,
    quiet,
    running_trial,
)


@pytest.mark.parametrize("name", FAST_FUNCTIONS)
def test_the_truncated_normal_has_the_functions_that_are_replaced(name):
    before = getattr(_truncnorm, name)
    values = np.linspace(-30, 5, 50)
    with fast_truncated_normal():
        assert getattr(_truncnorm, name) is FAST_FUNCTIONS[name]
    assert getattr(_truncnorm, name) is before, "it is not restored"
    assert FAST_FUNCTIONS[name](values) == pytest.approx(before(values), rel=1e-9)


def test_the_replaced_functions_are_what_tpe_and_ped_anova_call(monkeypatch):
    called = set()
    for name, function in FAST_FUNCTIONS.items():
        monkeypatch.setitem(
            optuna_internals.FAST_FUNCTIONS,
            name,
            lambda x, name=name, function=function: (called.add(name), function(x))[1],
        )
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2))
    with fast_truncated_normal():
        for _ in range(6):
            study.tell(trial := study.ask({"x": FloatDistribution(0, 1)}), trial.params["x"])
        assert called == set(FAST_FUNCTIONS)
        called.clear()
        optuna.importance.get_param_importances(study)
        assert "_log_ndtr" in called


def test_an_error_and_another_thread_leave_optuna_as_it_was():
    before = dict(vars(_truncnorm))

    def meanwhile():
        with fast_truncated_normal():
            pass

    thread = threading.Thread(target=meanwhile)

    def fail():
        with fast_truncated_normal():
            thread.start()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    thread.join()
    assert all(vars(_truncnorm)[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (FloatDistribution(0.1, 1, log=True), 0.5, 1.5),
        (IntDistribution(1, 9, step=2), 3, 11),
        (CategoricalDistribution(["a", 2]), "a", "b"),
    ],
)
def test_distributions_say_what_they_contain(distribution, inside, outside):
    assert contains(distribution, inside)
    assert not contains(distribution, outside)


@pytest.mark.parametrize("pruner", [SuccessiveHalvingPruner(min_resource=1), HyperbandPruner(1, 4)])
def test_a_trial_that_had_begun_goes_on_as_if_it_had_been_asked_for(pruner):
    space = {"lr": FloatDistribution(0, 1)}
    # Hyperband's brackets follow the study's name and the trial's number.
    asked, added = (
        optuna.create_study(study_name="same", direction="maximize", pruner=pruner)
        for _ in range(2)
    )
    asked.ask(space)
    asked.enqueue_trial({"lr": 0.25})
    added.enqueue_trial({})  # waits, and must not be taken for it
    first = asked.ask(space)
    second = running_trial(added, 1, {"lr": 0.25}, space)
    assert (second.number, second.params) == (1, first.params)
    for step in (1, 2, 3, 4):
        for trial in (first, second):
            trial.report(0.5, step)
        assert first.should_prune() == second.should_prune()
    asked.tell(first, 0.5)
    added.tell(second, 0.5)
    one, other = asked.trials[1], added.trials[1]
    assert one.intermediate_values == other.intermediate_values
    assert (one.state, one.value) == (other.state, other.value)
    noted = [
        {name: value for name, value in trial.system_attrs.items() if "rung" in name}
        for trial in (one, other)
    ]
    assert noted[0] == noted[1]
    assert noted[0]


def test_optuna_is_quiet_for_a_while_only(caplog):
    logger = logging.getLogger("optuna")
    before, filters = logger.level, list(warnings.filters)
    with quiet():
        assert optuna.logging.get_verbosity() >= logging.WARNING, "not the logger of set_verbosity"
        warnings.warn("experimental", optuna.exceptions.ExperimentalWarning, stacklevel=1)
    assert (logger.level, warnings.filters) == (before, filters)
