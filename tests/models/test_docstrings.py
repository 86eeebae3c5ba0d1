from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import anomtune.models

MODULES = [
    found.name
    for found in pkgutil.walk_packages(anomtune.models.__path__, "anomtune.models.")
    if not found.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["hyperparameters", "training.gradient_detector"])
def test_what_users_derive_from_has_an_example(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"anomtune.models.{name}")).attempted > 0
