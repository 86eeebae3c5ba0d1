"""The space of a study and its trial 0."""

from __future__ import annotations

import pytest

from anomtune.datasets.registry import dataset_type
from anomtune.models.registry import available, get_method
from anomtune.search.config import MethodConfig
from anomtune.search.study import plan_search


@pytest.mark.parametrize("method", available())
def test_trial_0_has_what_the_papers_set_on_the_dataset(method: str) -> None:
    """ISIC 2018: the image score is the mean of the map, for methods that have the choice."""
    settings = dataset_type("isic2018").settings
    assert settings == {"score": "mean"}
    plan = plan_search(method, MethodConfig(), settings)
    fields = get_method(method).Hyperparameters.model_fields
    assert getattr(plan.defaults, "score", None) == ("mean" if "score" in fields else None)
    assert plan_search(method, MethodConfig()).defaults == get_method(method).Hyperparameters()


def test_the_sweep_file_goes_before_the_dataset() -> None:
    fixed = MethodConfig(fixed={"score": "max"})
    assert plan_search("rd4ad", fixed, {"score": "mean"}).defaults.score == "max"


def test_the_methods_that_have_the_choice() -> None:
    having = [n for n in available() if "score" in get_method(n).Hyperparameters.model_fields]
    assert {"rd4ad", "recontrast", "gnl"} <= set(having)
