"""No method is validated by damage that a method of the sweep trains on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from anomtune.cli.monitor import Monitor
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.damage import MECHANISMS
from anomtune.datasets.splits.split import Validation, load_search_split
from anomtune.errors import DataError, SweepError
from anomtune.registry import METHODS
from anomtune.search.config import ValidationConfig, parse_sweep, read_yaml
from anomtune.search.decide.study import plan_search
from anomtune.search.run.trial import TrialSpec, open_trial
from anomtune.search.sweep import leave_out_damage, run_sweep
from tests.search.conftest import sweep_dict

SYNTHETIC = {"protocol": "synthetic"}
#: What `ssae` may train on over its whole search space.
ALL = ("cut_paste", "elastic", "occlusion", "texture")


def resolved(
    methods: dict, validation: dict, monitor: Monitor | None = None
) -> tuple[ValidationConfig, str]:
    """Returns the validation section as a sweep resolves it, and what it says on the terminal."""
    config = parse_sweep(sweep_dict(methods=methods, validation=validation), "test")
    plans = {name: plan_search(name, method) for name, method in config.methods.items()}
    out = io.StringIO()
    config = leave_out_damage(config, plans, Monitor(Console(file=out, width=200)))
    again = parse_sweep(read_yaml(config.to_yaml(), "test"), "test")
    assert again == config
    assert leave_out_damage(again, plans, Monitor(Console(quiet=True))) == config
    return config.validation, out.getvalue()


@pytest.mark.parametrize(
    ("ssae", "without"),
    [
        ({}, ALL),
        ({"fixed": {"corruption": "elastic"}}, ("elastic",)),
        ({"fixed": {"corruption": "elastic+patch_swap"}}, ("cut_paste", "elastic")),
        ({"fixed": {"corruption": "zeros+brightness:2"}}, ("occlusion",)),
        ({"fixed": {"corruption": "brightness+rotation"}}, ()),
        ({"fixed": {"corruption": "elastic:0+zeros"}}, ("occlusion",)),
        ({"preset": "cable"}, ("elastic", "occlusion", "texture")),
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
    others = {name: {} for name in METHODS.names() if name != "ssae"}
    assert resolved(others, SYNTHETIC) == (ValidationConfig(protocol="synthetic"), "")
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
    with pytest.raises(SweepError, match=rf"^validation\.without_damage: {told}"):
        resolved(methods, {**SYNTHETIC, "without_damage": without})


def test_every_kind_that_a_method_names_exists() -> None:
    for name in METHODS.names():
        method = METHODS.get(name)
        plan = plan_search(name, parse_sweep(sweep_dict(methods={name: {}}), "test").methods[name])
        for variant in plan.variants():
            assert isinstance(variant, method.Hyperparameters)
            assert variant.training_damage() <= set(MECHANISMS)


def test_a_method_that_would_change_the_validation_cannot_join(tmp_path, toy_data) -> None:
    config = parse_sweep(sweep_dict(toy_data, validation=SYNTHETIC), "test")
    (tmp_path / "sweep.yaml").write_text(
        config.model_copy(
            update={
                "dataset": config.dataset.model_copy(update={"categories": ("plate", "ring")}),
            }
        ).to_yaml()
    )
    methods = {"toy": {}, "ssae": {"fixed": {"corruption": "elastic"}}}
    more = parse_sweep(sweep_dict(toy_data, validation=SYNTHETIC, methods=methods), "test")
    told = (
        r'without_damage = \[\], now it is \["elastic"\] \(no method may be validated by damage '
        r"that one of the sweep trains on\); restore it, or start another directory"
    )
    with pytest.raises(SweepError, match=told):
        run_sweep(more, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_trial_opens_what_is_left(toy_data) -> None:
    dataset = open_dataset("folder", toy_data)
    section = ValidationConfig(protocol="synthetic", without_damage=("elastic", "texture"))
    split = load_search_split(dataset, "plate", 32, Validation(**section.model_dump()))
    assert not {"elastic", "texture"} & set(split.validation_defects)
    spec = TrialSpec(
        directory="/nowhere",
        record_path="trials/plate/toy/00000",
        dataset={"name": "folder", "root": str(toy_data)},
        category="plate",
        validation=section,
        split_hash=split.split_hash,
        image_size=32,
        method="toy",
        params={},
        rungs=1,
        seed=0,
        threads=1,
        gpu=0,
    )
    spec = TrialSpec.model_validate_json(spec.model_dump_json())
    assert (open_trial(spec).labels == split.validation_labels).all()
    plain = spec.model_copy(update={"validation": ValidationConfig(protocol="synthetic")})
    with pytest.raises(DataError, match="not those that the sweep started with"):
        open_trial(plain)
