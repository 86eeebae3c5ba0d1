"""The space of a study and its trial 0: the paper's own for that dataset and category."""

from __future__ import annotations

import pytest

from anomtune.errors import MethodError, SweepError
from anomtune.models.ranges import Choice, IntRange, SizeRange
from anomtune.registry import METHODS
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search, plan_studies
from anomtune.search.store.records import StudyKey
from tests.search.conftest import parse_sweep, sweep_dict


@pytest.mark.parametrize("method", METHODS.declared())
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


#: Methods whose own sizes are those of their papers, whatever the sweep's.
ABSOLUTE = {
    "deep_svdd": (32, 64, 96),
    "f_anogan": (32, 64, 128),
    "spr": (128, 192, 256),
    "ssae": (256, 384, 512),
}
SIZED = sorted(set(METHODS.declared()) - {"toy", *ABSOLUTE})


@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize("image_size", [32, 64, 96, 256])
def test_sizes_are_searched_around_that_of_the_sweep(method: str, image_size: int) -> None:
    plan = plan_search(method, MethodConfig(), image_size=image_size)
    factors = (0.75, 1, 1.5, 2) if method in {"padim", "patchcore"} else (0.75, 1, 1.5)
    item = plan.space["resolution"]
    assert item == Choice(choices=tuple(SizeRange(factors=factors).sides(image_size)))
    assert plan.defaults.resolution == image_size
    assert plan.defaults.model_copy(update={"resolution": None}) == type(plan.defaults)()
    assert plan.anchor()[0]["resolution"] == image_size
    assert plan.anchor()[1], "the sampler learns from trial 0"
    assert plan.distributions["resolution"].choices == item.choices
    assert {v.input_size(image_size) for v in plan.variants()} == set(item.choices)
    for side in item.choices:
        found = plan.hyperparameters(plan.anchor()[0] | {"resolution": side})
        assert type(found.resolution) is int
        METHODS.get(method).check_input_size(found, image_size)


@pytest.mark.parametrize("method", sorted(ABSOLUTE))
def test_sizes_of_the_papers_do_not_depend_on_the_sweep(method: str) -> None:
    for image_size in (64, 256, None):
        plan = plan_search(method, MethodConfig(), image_size=image_size)
        assert plan.space["resolution"] == Choice(choices=ABSOLUTE[method])


def test_a_sweep_plans_with_its_own_size() -> None:
    dataset = {"name": "mvtec", "root": "/data", "categories": ["tile"]}
    given = sweep_dict(dataset=dataset, methods={"rd4ad": {}}, image_size=128)
    (plan,) = plan_studies(parse_sweep(given, "test")).values()
    assert plan.space["resolution"] == Choice(choices=(96, 128, 192))
    assert plan.defaults.resolution == 128


@pytest.mark.parametrize(
    ("method", "config", "place", "resolution"),
    [
        ("rd4ad", {"fixed": {"resolution": 128}}, ("", None), 128),
        ("rd4ad", {"fixed": {"resolution": None}}, ("", None), None),
        ("patchcore", {"preset": "official"}, ("mvtec", "tile"), 256),
        ("rd4ad", {}, ("mnist", "3"), 32),
        ("gnl", {}, ("fashion_mnist", "3"), 32),
        ("recontrast", {}, ("isic2018", "isic2018"), 224),
    ],
)
def test_a_size_that_is_set_is_not_searched(
    method: str, config: dict, place: tuple, resolution: int | None
) -> None:
    plan = plan_search(method, MethodConfig(**config), *place, image_size=256)
    assert plan.defaults.resolution == resolution
    assert "resolution" not in plan.space
    assert plan.anchor()[1]


def test_a_users_own_sizes_replace_the_methods() -> None:
    own = {"space": {"resolution": {"choices": [64, 128]}}}
    plan = plan_search("rd4ad", MethodConfig(**own), image_size=128)
    assert plan.space["resolution"] == Choice(choices=(64, 128))
    assert (plan.defaults.resolution, plan.anchor()[1]) == (128, True)
    plan = plan_search("rd4ad", MethodConfig(**own), "mnist", "3", image_size=128)
    assert (plan.defaults.resolution, plan.anchor()[1]) == (32, False)
    grid = {"space": {"resolution": {"low": 64, "high": 192, "step": 32}}}
    plan = plan_search("gmm_contrastive", MethodConfig(**grid), image_size=128)
    assert plan.space["resolution"] == IntRange(low=64, high=192, step=32)
    assert plan.anchor()[1]
    loose = {"space": {"resolution": {"low": 64, "high": 192}}}
    with pytest.raises(SweepError, match=r"space\.resolution: 65 cannot be: .* multiple of 32"):
        plan_search("rd4ad", MethodConfig(**loose), image_size=128)


def test_no_size_is_searched_that_the_method_refuses() -> None:
    plan = plan_search("patchcore", MethodConfig(fixed={"crop": 224}), image_size=256)
    assert plan.space["resolution"] == Choice(choices=(256, 384, 512)), "192 have no middle of 224"
    assert plan.defaults.resolution == 256
    plan = plan_search("patchcore", MethodConfig(fixed={"crop": 224}), image_size=64)
    assert "resolution" not in plan.space
    with pytest.raises(MethodError, match="crop 224 of images of 64 pixels: set resolution"):
        METHODS.get("patchcore")(plan.defaults, image_size=64)


def test_without_a_size_of_maps_sizes_stay_null() -> None:
    plan = plan_search("rd4ad", MethodConfig(), image_size=None)
    assert "resolution" not in plan.space
    assert plan.defaults.resolution is None


@pytest.mark.parametrize(
    ("method", "place", "fixed", "length"),
    [
        ("recontrast", ("visa", "pcb1"), {}, (None, 3000)),
        ("recontrast", ("visa", "pcb1"), {"epochs": 5}, (5, None)),
        ("gnl", ("mnist", "3"), {}, (5, None)),
        ("gnl", ("mnist", "3"), {"iterations": 40}, (None, 40)),
        ("spr", ("", None), {"iterations": 40}, (None, 40)),
        ("ssae", ("mvtec", "tile"), {"epochs": 4, "iterations": None}, (4, None)),
    ],
)
def test_a_length_that_is_fixed_replaces_the_papers(
    method: str, place: tuple, fixed: dict, length: tuple
) -> None:
    plan = plan_search(method, MethodConfig(fixed=fixed), *place, image_size=64)
    assert (plan.defaults.epochs, plan.defaults.iterations) == length
    for variant in (plan.hyperparameters(plan.anchor()[0]), *plan.variants()):
        assert (variant.epochs, variant.iterations) == length


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"fixed": {"epochs": 5, "iterations": 9}},
            r"^methods.recontrast.fixed.epochs: set epochs or iterations, not both$",
        ),
        ({"fixed": {"iterations": None}}, r"fixed.epochs: set epochs or iterations$"),
        (
            {"space": {"epochs": {"low": 5, "high": 9}}},
            r"^methods.recontrast.space.epochs: trial 0 counts iterations; search over those",
        ),
        (
            {"fixed": {"epochs": 5}, "space": {"iterations": {"low": 5, "high": 9}}},
            r"space.iterations: trial 0 counts epochs; search over those instead$",
        ),
    ],
)
def test_one_length_is_told(config: dict, told: str) -> None:
    with pytest.raises(SweepError, match=told):
        plan_search("recontrast", MethodConfig(**config), "visa", "pcb1", image_size=64)


def test_the_length_that_trial_0_counts_may_be_searched() -> None:
    config = MethodConfig(space={"iterations": {"low": 100, "high": 4000, "log": True}})
    plan = plan_search("recontrast", config, image_size=64)
    assert plan.space["iterations"] == IntRange(low=100, high=4000, log=True)
    found = plan.hyperparameters({**plan.anchor()[0], "iterations": 100})
    assert (found.epochs, found.iterations) == (None, 100)


def test_a_part_of_the_scoring_may_be_fixed_in_short() -> None:
    short, long = (
        plan_search(method, MethodConfig(fixed=fixed), "mvtec", "tile", image_size=64)
        for method, fixed in (
            ("patchcore", {"sigma": 0.0, "n_neighbours": 1, "scoring": {"border": 0.0}}),
            ("patchcore", {"scoring": {"sigma": 0.0, "n_neighbours": 1, "border": 0.0}}),
        )
    )
    assert short == long
    assert short.pinned == ("border", "n_neighbours", "sigma")
    assert {scoring["sigma"] for scoring in short.scorings} == {0}
    assert short.defaults.scoring.scales == ("patches",), "the rest stays the paper's"


def test_a_name_that_the_method_has_itself_is_its_own() -> None:
    plan = plan_search("spr", MethodConfig(fixed={"sigma": 20.0, "draws": 9}), image_size=64)
    assert (plan.defaults.sigma, plan.defaults.scoring.sigma) == (20.0, "own")
    assert (plan.defaults.scoring.draws, plan.pinned) == (9, ("draws",))
