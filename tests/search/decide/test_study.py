"""The space of a study and its trial 0."""

from __future__ import annotations

import pytest

from anomtune.registry import DATASETS, METHODS
from anomtune.search.config import MethodConfig
from anomtune.search.decide.study import plan_search


@pytest.mark.parametrize("method", METHODS.names())
def test_trial_0_has_what_the_papers_set_on_the_dataset(method: str) -> None:
    """ISIC 2018: the image score is the mean of the map, for methods that have the choice."""
    settings = DATASETS.get("isic2018").settings
    assert settings == {"score": "mean"}
    plan = plan_search(method, MethodConfig(), settings)
    fields = METHODS.get(method).Hyperparameters.model_fields
    assert getattr(plan.defaults, "score", None) == ("mean" if "score" in fields else None)
    assert plan_search(method, MethodConfig()).defaults == METHODS.get(method).Hyperparameters()


def test_the_sweep_file_goes_before_the_dataset() -> None:
    fixed = MethodConfig(fixed={"score": "max"})
    assert plan_search("rd4ad", fixed, {"score": "mean"}).defaults.score == "max"


def test_the_methods_that_have_the_choice() -> None:
    having = [n for n in METHODS.names() if "score" in METHODS.get(n).Hyperparameters.model_fields]
    assert {"rd4ad", "recontrast", "gnl"} <= set(having)
