"""The space of a study and its trial 0: the paper's own for that dataset and category."""

from __future__ import annotations

import pytest

from anomtune.errors import SweepError
from anomtune.models.ranges import Choice, SizeRange
from anomtune.registry import METHODS
from anomtune.search.config import MethodConfig
from anomtune.search.decide.study import plan_search, plan_studies
from anomtune.search.store.records import StudyKey
from tests.search.conftest import parse_sweep, sweep_dict


@pytest.mark.parametrize("method", METHODS.names())
def test_where_no_paper_was_trial_0_has_the_defaults(method: str) -> None:
    kind = METHODS.get(method).Hyperparameters
    own = kind()
    if isinstance(kind.search_space().get("resolution"), SizeRange):
        own = kind(resolution=96)  # what null means, so that it is a point of the space
    assert plan_search(method, MethodConfig(), image_size=96).defaults == own
    assert plan_search(method, MethodConfig(), "folder", "tile", image_size=96).defaults == own
    assert plan_search(method, MethodConfig(), image_size=None).defaults == kind()


@pytest.mark.parametrize("method", ["rd4ad", "recontrast"])
def test_on_isic_the_score_is_the_mean_of_the_map(method: str) -> None:
    assert plan_search(
        method, MethodConfig(), "isic2018", "isic2018", image_size=256
    ).defaults.scoring == (
        METHODS.get(method).Hyperparameters().scoring.changed({"reduce": "mean"})
    )


def test_each_study_of_a_sweep_has_its_own_trial_0() -> None:
    dataset = {"name": "mvtec", "root": "/data", "categories": ["tile", "bottle"]}
    methods = {"recontrast": {}, "ssae": {"fixed": {"scoring": {"diff": "squared"}}}, "padim": {}}
    plans = plan_studies(parse_sweep(sweep_dict(dataset=dataset, methods=methods), "test"))
    assert list(plans) == [
        StudyKey(category, method) for category in ("tile", "bottle") for method in methods
    ]
    modes = {
        category: plans[StudyKey(category, "recontrast")].defaults.encoder_bn
        for category in ("tile", "bottle")
    }
    assert modes == {"tile": "eval", "bottle": "train"}
    assert plans[StudyKey("tile", "ssae")].defaults.augment == "all"
    assert plans[StudyKey("bottle", "ssae")].defaults.scoring.t == 1
    assert {plan.defaults.scoring.diff for key, plan in plans.items() if key.method == "ssae"} == {
        "squared"
    }, "the sweep file goes before the paper"


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({}, "encoder_bn", "eval"),
        ({"fixed": {"encoder_bn": "train"}}, "encoder_bn", "train"),
        ({"preset": "stable"}, "encoder_bn", "partial"),
        ({"preset": "B+"}, "encoder_bn", "eval"),
        ({"preset": "stable", "fixed": {"encoder_bn": "eval"}}, "encoder_bn", "eval"),
    ],
)
def test_the_sweep_file_goes_before_the_paper(config: dict, field: str, value: str) -> None:
    plan = plan_search("recontrast", MethodConfig(**config), "mvtec", "tile", image_size=256)
    assert getattr(plan.defaults, field) == value


def test_the_papers_value_lies_in_the_space() -> None:
    """Else the sampler could learn nothing from trial 0."""
    plan = plan_search(
        "gnl", MethodConfig(space={"lr": {"low": 0.1, "high": 1.0}}), "mnist", "3", image_size=256
    )
    assert not plan.anchor()[1], "the user's own range"
    plan = plan_search("recontrast", MethodConfig(), "mvtec", "tile", image_size=256)
    assert plan.defaults.encoder_bn == "eval"
    assert "eval" in plan.distributions["encoder_bn"].choices
    assert plan.anchor()[1]


def test_the_papers_scoring_is_the_first_that_is_judged() -> None:
    plan = plan_search("rd4ad", MethodConfig(), "mnist", "3", image_size=256)
    assert plan.scorings[0] == plan.defaults.scoring.model_dump(mode="json")
    assert plan.scorings[0]["sigma"] == 32, "what the paper set there"
    assert {scoring["sigma"] for scoring in plan.scorings} == {0, 2, 4, 8, 32}
    fixed = MethodConfig(fixed={"scoring": {"sigma": 2.0}})
    plan = plan_search("rd4ad", fixed, "mnist", "3", image_size=256)
    assert {scoring["sigma"] for scoring in plan.scorings} == {2}
    assert len(plan.scorings) > 10
    plan = plan_search("rd4ad", fixed, "mnist", "3", paper_scoring=True, image_size=256)
    assert plan.scorings == (plan.defaults.scoring.model_dump(mode="json"),)


def test_a_sweep_may_judge_by_the_papers_scoring_alone() -> None:
    dataset = {"name": "mvtec", "root": "/data", "categories": ["tile"]}
    given = sweep_dict(dataset=dataset, methods={"rd4ad": {}}, scoring="paper")
    (plan,) = plan_studies(parse_sweep(given, "test")).values()
    assert len(plan.scorings) == 1


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"space": {"sigma": {"choices": [2.0]}}}, "rd4ad.space.sigma: part of the scoring"),
        ({"space": {"sigma": {"choices": [2.0]}}}, r"set methods.rd4ad.fixed.sigma$"),
        ({"fixed": {"sigm": 2.0}}, "rd4ad.fixed.sigm: unknown hyperparameter"),
        ({"fixed": {"sigma": -2.0}}, "rd4ad.fixed.scoring.sigma: must be 0 or more"),
        (
            {"fixed": {"sigma": 2.0, "scoring": {"sigma": 2.0}}},
            "rd4ad.fixed.sigma: given as scoring.sigma too; keep one of them$",
        ),
        ({"space": {"scoring": {"choices": [2.0]}}}, "space.scoring: every trial judges"),
        ({"fixed": {"scoring": {"sigm": 2.0}}}, "rd4ad.fixed.scoring.sigm: unknown key"),
        ({"fixed": {"scoring": {"scales": ["layer9"]}}}, "layer9"),
        ({"fixed": {"scoring": {"border": 0.5}}}, "fixed.scoring.border"),
    ],
)
def test_what_is_wrong_with_a_scoring_is_named(config: dict, named: str) -> None:
    with pytest.raises(SweepError, match=named):
        plan_search("rd4ad", MethodConfig(**config), image_size=256)


def test_what_the_sweep_file_gets_wrong_is_named() -> None:
    with pytest.raises(SweepError, match=r"methods\.recontrast\.fixed\.iterations"):
        plan_search(
            "recontrast", MethodConfig(fixed={"iterations": 0}), "visa", "pcb1", image_size=256
        )
