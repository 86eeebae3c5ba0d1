"""What a search judges of one training, how a scoring is given, and what it leaves alone."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anomtune.errors import SweepError
from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters, Setting
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import Choice, SizeRange
from anomtune.models.rd4ad import RD4ADHyperparameters
from anomtune.models.scoring import Scoring
from anomtune.models.spr import SPRScoring
from anomtune.models.ssae import SSAEHyperparameters
from anomtune.registry import METHODS
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search

NAMES = sorted(set(METHODS.declared()) - {"toy"})
SIDE = 32

#: Settings that a study may have, beside the defaults of each method.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("gnl", {"scoring": {"fdm": "none"}}),
    ("gnl", {"scoring": {"fdm_weight": 0.0}}),
    ("padim", {"scoring": {"sigma": 0.0, "reduce": "mean"}}),
    ("patchcore", {"scoring": {"squared": True, "n_neighbours": 1}}),
    ("patchcore", {"scoring": {"reduce": "max"}}),
    ("rd4ad", {"scoring": {"reduce": "mean", "sigma": 32.0}}),
    ("rd4ad", {"scoring": {"scales": ("layer3", "layer1"), "combine": "maximum"}}),
    ("rd4ad", {"scoring": {"scales": ("layer3", "layer2", "layer1"), "reduce": "sum"}}),
    ("rd4ad", {"scoring": {"border": 0.125, "reduce": "top", "share": 0.05}}),
    ("spr", {"scoring": {"sigma": 4.0, "t_star": 2e-3}}),
    ("ssae", {"objective": "ensemble"}),
    ("ssae", {"objective": "ensemble", "scoring": {"t": 1, "diff": "ssim"}}),
    ("ssae", {"scoring": {"t": 4}}),
    ("ssae", {"scoring": {"t": 3, "reduce": "max"}}),
]
CASES = [*((name, {}) for name in NAMES), *OTHERS]


def hyperparameters(method: str, **fields: Any) -> Any:
    small: dict[str, Any] = {
        "cutpaste": {"width": 8},
        "deep_svdd": {"resolution": SIDE},
        "f_anogan": {"width": 2, "resolution": SIDE},
        "kdad": {"weights": "random"},
        "spr": {"width": 4, "resolution": SIDE},
        # 81 pixels of an input of 512 are 5 of one of 32; the usual 21 would be one.
        "ssae": {"width": 2, "resolution": SIDE, "iterations": 4, "scoring": {"k": 81}},
    }.get(method, {"backbone": "mobilenet_v2", "weights": "random"})
    kind = METHODS.get(method).Hyperparameters
    return kind(**kind.merged(small, fields))


def build(hp: Any, method: str, seed: int = 0) -> Any:
    return METHODS.get(method)(hp, image_size=SIDE, device="cpu", seed=seed)


def images(n: int = 5, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("method", "fields"), CASES)
def test_a_scoring_and_its_alternatives(method: str, fields: dict[str, Any]) -> None:
    hp = hyperparameters(method, **fields)
    judged = hp.scorings()
    assert judged[0] == hp.scoring
    assert len(judged) == 1 if not hp.localises else 10 < len(judged) < 500
    assert len({scoring.key for scoring in judged}) == len(judged)
    for scoring in judged:
        again = type(scoring)(**json.loads(scoring.key))
        assert (again, again.key) == (scoring, scoring.key)
        assert hp.scored(scoring).scoring == scoring, "it suits the method"
    assert hp.scorings(None) == (hp.scoring,)


@pytest.mark.parametrize(("method", "fields"), CASES)
def test_pinned_fields_keep_their_value(method: str, fields: dict[str, Any]) -> None:
    hp = hyperparameters(method, **fields)
    varied = hp.scorings()
    for name in type(hp.scoring).model_fields:
        judged = hp.scorings((name,))
        assert {str(getattr(scoring, name)) for scoring in judged} == {
            str(getattr(hp.scoring, name))
        }
        free = [s for s in varied if getattr(s, name) == getattr(hp.scoring, name)]
        assert {scoring.key for scoring in judged} >= {scoring.key for scoring in free}, name
    assert hp.scorings(tuple(type(hp.scoring).model_fields)) == (hp.scoring,)


@pytest.mark.parametrize("method", NAMES)
def test_all_trials_of_a_study_are_judged_with_the_same_scorings(method: str) -> None:
    """Whatever is searched: what is chosen is chosen from all trials together."""
    kind = METHODS.get(method).Hyperparameters
    expected = [scoring.key for scoring in kind().scorings()]
    for name, item in kind.search_space().items():
        match item:
            case Choice():
                values = item.choices
            case SizeRange():
                values = tuple(item.sides(64))
            case _:
                values = (item.low, item.high)
        for value in values:
            judged = kind(**{name: value}).scorings()
            assert [scoring.key for scoring in judged] == expected, (name, value)


class Given:
    """Random evidence of 60 images for each pass, as a network would give it."""

    def __init__(self, detector: Detector[Any], method: str) -> None:
        self.detector = detector
        self.method = method
        generator = torch.Generator().manual_seed(1)
        detector.normal = tuple(
            torch.rand(2, SIDE, SIDE, generator=generator) / 10 + 1
            for _ in detector.hyperparameters.scales
        )
        if method == "ssae":
            average: Any = detector
            average.average = torch.rand_like(average.average) / 2

    def of(self, scoring: Any) -> Evidence:
        forward: Any = sorted((name, getattr(scoring, name)) for name in scoring.forward)
        if self.method == "gnl" and (scoring.fdm == "none" or scoring.fdm_weight == 0):
            forward = "unmatched"
        generator = torch.Generator().manual_seed(zlib.crc32(str(forward).encode()))
        names = self.detector.hyperparameters.scales
        maps = [torch.rand(60, SIDE, SIDE, generator=generator) + 0.1 for _ in names]
        scores = torch.rand(60, generator=generator)
        if self.method == "patchcore":
            maps[0] = maps[1] + maps[2] if scoring.squared else maps[1].hypot(maps[2])
        return Evidence(tuple(maps), scores)


@pytest.mark.parametrize(("method", "fields"), CASES)
def test_no_two_scorings_rank_all_images_alike(method: str, fields: dict[str, Any]) -> None:
    hp = hyperparameters(method, **fields)
    detector = build(hp, method)
    given = Given(detector, method)
    judged = hp.scorings()
    rows = []
    for scoring in judged:
        detector.scoring = scoring
        rows.append(detector.judge(given.of(scoring), scoring)[1].double())
    scores = torch.stack(rows)
    # Scores that are a multiple of others rank images as they do.
    scores /= scores.mean(1, keepdim=True)
    for index, row in enumerate(scores):
        close = (scores[:index] - row).abs().amax(1) < 1e-5
        twins = [judged[i].key for i in close.nonzero().flatten().tolist()]
        assert not twins, f"{judged[index].key} is like {twins}"


def test_what_takes_no_part_is_left_out() -> None:
    names = ("layer1", "layer2")
    assert Scoring(sigma=4.0).acting(names) == {
        **{"scales": names, "normalise": "none", "combine": "sum"},
        **{"sigma": 4.0, "border": 0.0, "reduce": "max"},
    }
    assert Scoring(sigma=4.0, reduce="sum", scales=("layer2",)).acting(names) == {
        **{"scales": ("layer2",), "normalise": "none", "border": 0.0, "reduce": "mean"},
    }
    bordered = Scoring(sigma=4.0, reduce="mean", border=0.0625).acting(names)
    assert (bordered["border"], bordered.get("sigma")) == (0.0625, None)
    assert "smoothing" in SPRScoring(sigma="own").acting(("map",))
    assert "smoothing" not in SPRScoring(sigma=4.0).acting(("map",))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sigma": -1.0}, "must be 0 or more"),
        ({"sigma": "owl"}, "'own'"),
        ({"sigma": float("inf")}, "finite"),
        ({"sigma": True}, "a number is meant"),
        ({"sigma": "own"}, "none of its own; use 0.0 or another"),
        ({"reduce": "own"}, "none of its own; use max or another"),
        ({"border": 0.5}, "less than 0.5"),
        ({"share": 0.0}, "greater than 0"),
        ({"scales": ()}, "at least 1"),
        ({"scales": ("a", "a")}, "names one twice"),
        ({"score": "max"}, "Extra inputs"),
        ({"normalise": "position", "combine": "product"}, "a product of deviations"),
    ],
)
def test_scorings_that_make_no_sense_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Scoring(**values)


# How it is given


def test_of_a_scoring_a_few_keys_may_be_given_and_the_rest_is_the_methods() -> None:
    for name in NAMES:
        kind = METHODS.get(name).Hyperparameters
        usual = kind().scoring
        given = kind(scoring={"border": 0.125}).scoring
        assert type(given) is type(usual)
        assert given == usual.changed({"border": 0.125}), name
        assert kind(scoring={}).scoring == usual


def test_parts_of_hyperparameters_are_merged_key_by_key() -> None:
    merged = Hyperparameters.merged(
        {"lr": 1, "scoring": {"sigma": 4.0, "reduce": "mean"}},
        {"epochs": 2},
        {"lr": 3, "scoring": {"sigma": 0.0, "border": 0.125}},
    )
    scoring = {"sigma": 0.0, "reduce": "mean", "border": 0.125}
    assert merged == {"lr": 3, "epochs": 2, "scoring": scoring}
    part = {"scoring": {"sigma": 1.0}}
    Hyperparameters.merged(part, {"scoring": {"reduce": "sum"}})
    assert part == {"scoring": {"sigma": 1.0}}, "the parts stay as they are"
    assert Hyperparameters.merged() == {}


def test_settings_of_a_paper_are_merged_and_say_where_each_key_is_from() -> None:
    class Mine(Hyperparameters):
        settings = (
            Setting("mvtec", {"scoring": {"sigma": 2.0, "reduce": "mean"}}, "paper."),
            Setting("mvtec", {"scoring": {"sigma": 8.0}}, "code.", categories=("tile",)),
        )

    assert Mine.paper_values("mvtec", "tile") == {"scoring": {"sigma": 8.0, "reduce": "mean"}}
    decided = Mine.settings_for("mvtec", "tile")
    assert {name: setting.source for name, setting in decided.items()} == {
        "scoring.sigma": "code.",
        "scoring.reduce": "paper.",
    }
    scoring = Mine(**Mine.paper_values("mvtec", "tile")).scoring
    assert scoring == Scoring(sigma=8.0, reduce="mean")


def planned(method: str, dataset: str, category: str, **config: Any) -> Any:
    return plan_search(method, MethodConfig(**config), dataset, category, image_size=256)


def test_what_a_sweep_fixes_of_a_scoring_leaves_the_rest_to_paper_and_preset() -> None:
    plan = planned("ssae", "mvtec", "cable", fixed={"scoring": {"n": 2}})
    how = plan.defaults.scoring
    assert (how.n, how.t, how.diff, how.sigma, how.reduce) == (2, 1, "ssim", "own", "sum")
    assert plan.pinned == ("n",)
    assert {scoring["n"] for scoring in plan.scorings} == {2}
    assert {scoring["t"] for scoring in plan.scorings} == {0, 1, 4}
    fixed = {"resolution": 64, "crop": 56, "scoring": {"sigma": 2.0}}
    plan = planned("patchcore", "mvtec", "cable", preset="official", fixed=fixed)
    how = plan.defaults.scoring
    assert (how.n_neighbours, how.squared, how.sigma, how.reduce) == (1, True, 2.0, "own")
    assert how.scales == ("patches",)
    plan = planned("recontrast", "isic2018", "isic2018", fixed={"scoring": {"sigma": 0.0}})
    assert (plan.defaults.scoring.sigma, plan.defaults.scoring.reduce) == (0.0, "mean")
    plan = planned("recontrast", "isic2018", "isic2018", preset="stable")
    assert (plan.defaults.scoring.sigma, plan.defaults.scoring.reduce) == (4.0, "top")


@pytest.mark.parametrize(
    ("method", "scoring", "told"),
    [
        ("rd4ad", {"scales": ["layer9"]}, "scales: no map 'layer9'; there is layer1, layer2, lay"),
        ("padim", {"scales": ["layer1"]}, "scales: no map 'layer1'; there is map"),
        ("rd4ad", {"sigma": "own"}, "sigma: this method has none of its own; use 0.0 or another"),
        ("ssae", {"reduce": "own"}, "reduce: this method has none of its own; use max or anoth"),
        ("padim", {"sigma": -2}, "sigma: must be 0 or more"),
        ("padim", {"smoothing": 3}, "smoothing: unknown key; there is scales, normalise, combine"),
        ("spr", {"smoothing": 30}, "smoothing: the filter has a middle: use 31 or another odd"),
    ],
)
def test_a_scoring_that_does_not_suit_is_refused_in_one_line_when_a_sweep_is_read(
    method: str, scoring: dict[str, Any], told: str
) -> None:
    with pytest.raises(SweepError) as refusal:
        planned(method, "mvtec", "tile", fixed={"scoring": scoring})
    assert str(refusal.value).startswith(f"methods.{method}.fixed.scoring.{told}")
    assert "\n" not in str(refusal.value)


def test_scales_are_those_of_the_settings() -> None:
    hp = SSAEHyperparameters(objective="ensemble", scoring={"scales": ["amplify"]})  # type: ignore[arg-type]
    assert hp.scoring.scales == ("amplify",)
    with pytest.raises(ValidationError, match="no map 'amplify'; there is map"):
        SSAEHyperparameters(scoring={"scales": ["amplify"]})  # type: ignore[arg-type]


def test_another_scoring_is_checked_and_changes_nothing_else() -> None:
    hp = RD4ADHyperparameters(lr=2e-3)
    assert hp.scored(Scoring(reduce="mean")).lr == 2e-3
    assert hp.scoring == Scoring(sigma=4.0)
    with pytest.raises(ValidationError, match="no map 'map'"):
        hp.scored(Scoring(scales=("map",)))
    with pytest.raises(ValidationError, match="SPRScoring"):
        METHODS.get("spr").Hyperparameters().scored(Scoring())


# What is kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields", "others"),
    [
        (
            "ssae",
            {"objective": "ensemble", "scoring": {"t": 1}},
            [{"diff": "ssim", "t": 4}, {"scales": ("amplify",)}, {"sigma": 2.0, "reduce": "max"}],
        ),
        (
            "gnl",
            {"batch_size": 2},
            [{"fdm": "mixstyle"}, {"fdm": "none"}, {"fdm_stages": "1,2,3"}, {"fdm_weight": 1.0}],
        ),
        ("spr", {}, [{"draws": 9}, {"draws": 1}, {"t_star": 3e-3}, {"smoothing": 3}]),
        ("patchcore", {}, [{"squared": True}, {"n_neighbours": 1}, {"reduce": "top"}]),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_loaded_detector_predicts_the_same_with_any_scoring(
    method: str, fields: dict[str, Any], others: list[dict[str, Any]], inference: bool
) -> None:
    hp = hyperparameters(method, **fields)
    original, copy = build(hp, method), build(hp, method, seed=3)
    original.fit(images(), 2)
    copy.fit(images(seed=9), 2)
    copy.score(images())  # what it keeps of itself must not outlive the load
    if inference:
        copy.load_inference_state(original.inference_state())
    else:
        copy.load_state_dict(original.state_dict())
    own, state = original.scoring, original.state_dict()
    seen: list[Any] = []
    for changes in ({}, *others):
        for detector in (original, copy):
            detector.scoring = own.changed(changes)
        found, loaded = (detector.predict(images(3, seed=2)) for detector in (original, copy))
        assert all(torch.equal(a, b) for a, b in zip(found, loaded, strict=True)), changes
        assert not any(
            torch.equal(found[0], maps) and torch.equal(found[1], scores) for maps, scores in seen
        )
        seen.append(found)
        fresh = build(hp.scored(own.changed(changes)), method)
        fresh.load_state_dict(state)
        assert torch.equal(fresh.score(images(3, seed=2)), found[1]), "whatever came before"
    original.scoring = own
    assert torch.equal(original.predict(images(3, seed=2))[0], seen[0][0])
    after = original.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
