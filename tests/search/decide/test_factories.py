"""Samplers and pruners by name and by import path."""

from __future__ import annotations

import optuna
import pytest

from anomtune.errors import SweepError
from anomtune.registry import PRUNERS, SAMPLERS
from anomtune.search.decide.plan import plan_search
from anomtune.search.decide.pool import check_deciders
from anomtune.search.decide.pruners import make_pruner
from anomtune.search.decide.samplers import make_sampler
from anomtune.search.store.records import StudyKey
from tests.search.conftest import Simulation

LAB = "tests.search.decide.lab"


def run(config) -> dict[str, dict]:
    simulation = Simulation()
    simulation.run(config, workers=2)
    return simulation.outcome()


def check(config) -> None:
    check_deciders(
        config,
        {
            StudyKey("bottle", n): plan_search(n, m, image_size=64)
            for n, m in config.methods.items()
        },
    )


def test_what_is_built_in():
    assert SAMPLERS.names() == ("cmaes", "gp", "random", "tpe")
    assert PRUNERS.names() == ("hyperband", "median", "none", "successive_halving")


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("random", optuna.samplers.RandomSampler),
        ("gp", optuna.samplers.GPSampler),
        ("cmaes", optuna.samplers.CmaEsSampler),
        ("optuna.samplers:NSGAIISampler", optuna.samplers.NSGAIISampler),
    ],
)
def test_a_sampler_is_new_for_every_trial_and_seeded_by_its_name(make_sweep, sampler, kind):
    config = make_sweep(sampler=sampler, trials=30)
    assert isinstance(make_sampler(config, "a/toy", 3, {}), kind)

    def drawn(study: str, number: int) -> float:
        made = make_sampler(config, study, number, {})
        return optuna.create_study(sampler=made).ask().suggest_float("x", 0, 1)

    assert drawn("a/toy", 3) == drawn("a/toy", 3)
    assert len({drawn("a/toy", 3), drawn("a/toy", 4), drawn("b/toy", 3)}) == 3


def test_pruners_are_told_of_the_rungs_and_the_random_trials(make_sweep):
    seen = {}

    def factory(min_resource, max_resource, n_startup_trials, n_warmup_steps):
        seen.update(
            min_resource=min_resource,
            max_resource=max_resource,
            n_startup_trials=n_startup_trials,
            n_warmup_steps=n_warmup_steps,
        )
        return optuna.pruners.NopPruner()

    config = make_sweep(pruner="successive_halving", trials=12, rungs=8)
    PRUNERS.register("spy", factory)
    try:
        make_pruner(config.model_copy(update={"pruner": "spy"}))
    finally:
        PRUNERS._registered.pop("spy")
    assert seen == {
        "min_resource": 4,
        "max_resource": 8,
        "n_startup_trials": 4,
        "n_warmup_steps": 4,
    }


@pytest.mark.parametrize("sampler", [f"{LAB}:make_sampler", "optuna.samplers:CmaEsSampler"])
def test_a_sampler_by_import_path_searches(make_sweep, sampler):
    first = run(make_sweep(sampler=sampler, trials=8))
    assert len(first) == 16
    assert first == run(make_sweep(sampler=sampler, trials=8))
    assert first != run(make_sweep(sampler="random", trials=8))


def test_a_class_of_optuna_by_import_path_is_what_its_name_means(make_sweep):
    path = "optuna.samplers:TPESampler"
    by_path, by_name = (run(make_sweep(sampler=name, trials=14)) for name in (path, "tpe"))
    assert by_path == by_name


@pytest.mark.parametrize("pruner", [f"{LAB}:make_pruner", "optuna.pruners:MedianPruner"])
def test_a_pruner_by_import_path_prunes(make_sweep, pruner):
    states = [record["state"] for record in run(make_sweep(pruner=pruner, trials=16)).values()]
    assert set(states) == {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        (
            "sampler",
            "tpex",
            "there is cmaes, gp, random, tpe; did you mean 'tpe'",
        ),
        (
            "pruner",
            "nine",
            "there is hyperband, median, none, successive_halving",
        ),
        ("sampler", f"{LAB}:nothing", "AttributeError: .* has no attribute 'nothing'"),
        ("sampler", "no_lab:make", "ModuleNotFoundError: No module named 'no_lab'"),
        ("sampler", f"{LAB}:NOT_A_FACTORY", "it cannot be called"),
        ("sampler", f"{LAB}:make_nothing", "it makes a NoneType, not an Optuna BaseSampler"),
        ("pruner", f"{LAB}:make_nothing", "it makes a NoneType, not an Optuna BasePruner"),
        ("sampler", "optuna.pruners:NopPruner", "it makes a NopPruner, not an Optuna BaseSampler"),
        ("sampler", f"{LAB}:make_error", "ValueError: not on a Sunday"),
        ("pruner", f"{LAB}:make_error", "ValueError: not on a Sunday"),
        (
            "sampler",
            f"{LAB}:make_unknown",
            "it wants temperature, and there is only seed, n_startup_trials, search_space",
        ),
        ("pruner", "optuna.pruners:PercentilePruner", "it wants percentile, and there is only"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_its_key(make_sweep, key, name, message):
    with pytest.raises(SweepError, match=rf"^{key}: .*{message}") as caught:
        check(make_sweep().model_copy(update={key: name}))
    assert "\n" not in str(caught.value)
    if ":" in name:
        assert name in str(caught.value)


@pytest.mark.parametrize("sampler", SAMPLERS.names())
@pytest.mark.parametrize("pruner", PRUNERS.names())
def test_what_is_built_in_can_be_used(make_sweep, sampler, pruner):
    check(make_sweep(sampler=sampler, pruner=pruner))
