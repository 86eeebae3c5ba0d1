"""No method is validated by damage that a method of the sweep trains on."""

from __future__ import annotations

import pytest

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.damage import MECHANISMS
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, SweepError
from anomtune.registry import METHODS
from anomtune.search.config import parse_sweep, read_yaml
from anomtune.search.decide.plan import plan_search
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.preparation import leave_out_damage
from anomtune.search.run.trial import TrialSpec, open_trial
from anomtune.search.store.directory import write_config
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage
from anomtune.search.sweep import run
from tests.search.conftest import sweep_dict

SYNTHETIC = {"protocol": "synthetic"}
#: What `ssae` may train on over its whole search space.
ALL = ("cut_paste", "elastic", "occlusion", "texture")


def resolved(methods: dict, validation: dict) -> tuple[Validation, str]:
    """Returns the validation section as a sweep resolves it, and what it tells of that."""
    config = parse_sweep(sweep_dict(methods=methods, validation=validation), "test")
    plans = {
        StudyKey("plate", name): plan_search(name, m, image_size=64)
        for name, m in config.methods.items()
    }
    told = []
    config = leave_out_damage(config, plans, lambda note: told.append(f"{note.text}\n"))
    again = parse_sweep(read_yaml(config.to_yaml(), "test"), "test")
    assert again == config
    assert leave_out_damage(again, plans, lambda note: None) == config
    return config.validation, "".join(told)


@pytest.mark.parametrize(
    ("ssae", "without"),
    [
        ({}, ALL),
        ({"fixed": {"corruption": "elastic"}}, ("elastic",)),
        ({"fixed": {"corruption": "elastic+patch_swap"}}, ("cut_paste", "elastic")),
        ({"fixed": {"corruption": "zeros+brightness:2"}}, ("occlusion",)),
        ({"fixed": {"corruption": "brightness+rotation"}}, ()),
        ({"fixed": {"corruption": "elastic:0+zeros"}}, ("occlusion",)),
        ({"fixed": {"corruption": "elastic+occlusion"}}, ("elastic", "occlusion", "texture")),
        (
            # Trial 0 is the paper's elastic, whatever is searched.
            {"space": {"corruption": {"choices": ["patch_swap", "zeros"]}}},
            ("cut_paste", "elastic", "occlusion"),
        ),
    ],
)
def test_what_the_whole_search_may_train_on_is_left_out(ssae: dict, without: tuple) -> None:
    section, told = resolved({"toy": {}, "ssae": ssae}, SYNTHETIC)
    assert section.without_damage == without
    assert told == (
        f"ssae may train on {', '.join(without)}: left out of the validation\n" if without else ""
    )


def test_other_methods_and_protocols_leave_nothing_out() -> None:
    others = {name: {} for name in METHODS.declared() if name not in ("cutpaste", "ssae")}
    assert resolved(others, SYNTHETIC) == (Validation(protocol="synthetic"), "")
    for protocol in ("labelled", "test"):
        assert resolved({"ssae": {}}, {"protocol": protocol})[0].without_damage == ()


def test_the_users_own_choice_is_added_to() -> None:
    section, told = resolved(
        {"ssae": {"fixed": {"corruption": "elastic"}}},
        {**SYNTHETIC, "without_damage": ["roughen", "blur"]},
    )
    assert section.without_damage == ("blur", "elastic", "roughen")
    assert "ssae may train on elastic:" in told


@pytest.mark.parametrize(
    ("methods", "without", "told"),
    [
        ({"toy": {}}, ["dent"], "no damage 'dent'; there is cut_paste"),
        ({"ssae": {}}, ["blur"], "leaves roughen to damage .*; ssae may train on cut_paste, "),
    ],
)
def test_too_little_is_left(methods: dict, without: list[str], told: str) -> None:
    with pytest.raises(SweepError, match=rf"^(test: )?validation\.without_damage: {told}"):
        resolved(methods, {**SYNTHETIC, "without_damage": without})


def test_every_kind_that_a_method_names_exists() -> None:
    for name in METHODS.declared():
        method = METHODS.get(name)
        config = parse_sweep(sweep_dict(methods={name: {}}), "test")
        plan = plan_search(name, config.methods[name], image_size=64)
        for variant in plan.variants():
            assert isinstance(variant, method.Hyperparameters)
            assert variant.training_damage() <= set(MECHANISMS)


def test_a_method_that_would_change_the_validation_cannot_join(tmp_path, toy_data) -> None:
    config = parse_sweep(sweep_dict(toy_data, validation=SYNTHETIC), "test")
    dataset = config.dataset.model_copy(update={"categories": ("plate", "ring")})
    write_config(Storage(tmp_path), config.model_copy(update={"dataset": dataset}))
    methods = {"toy": {}, "ssae": {"fixed": {"corruption": "elastic"}}}
    more = parse_sweep(sweep_dict(toy_data, validation=SYNTHETIC, methods=methods), "test")
    told = (
        r'without_damage = \[\], now it is \["elastic"\] \(no method may be validated by damage '
        r"that one of the sweep trains on\); restore it, or start another directory"
    )
    with pytest.raises(SweepError, match=told):
        run(more, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_trial_opens_what_is_left(toy_data) -> None:
    dataset = open_dataset("folder", toy_data)
    section = Validation(protocol="synthetic", without_damage=("elastic", "texture"))
    split = load_search_split(dataset, "plate", 32, section)
    assert not {"elastic", "texture"} & set(split.validation_defects)
    training = TrainingSpec(
        dataset={"name": "folder", "root": str(toy_data)},
        category="plate",
        validation=section,
        split_hash=split.split_hash,
        image_size=32,
        method="toy",
    )
    spec = TrialSpec(
        training=training,
        directory="/nowhere",
        record_path="trials/plate/toy/00000",
        rungs=1,
        threads=1,
        gpu=0,
    )
    spec = TrialSpec.model_validate_json(spec.model_dump_json())
    assert (open_trial(spec).labels == split.validation_labels).all()
    plain = training.model_copy(update={"validation": Validation(protocol="synthetic")})
    with pytest.raises(DataError, match="not those that the sweep started with"):
        open_trial(spec.model_copy(update={"training": plain}))
