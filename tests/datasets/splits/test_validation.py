"""The validation section: what it refuses, and what it says."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from anomtune.datasets.splits.damage import MECHANISMS
from anomtune.datasets.splits.validation import Validation


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"protocol": "honest"}, "'labelled', 'synthetic' or 'test'"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"fraction": 1.0}, "less than 1"),
        ({"fraction": float("nan")}, "finite number"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**63}, "less than 9223372036854775808"),
        ({"protcol": "test"}, "not permitted"),
    ],
)
def test_bad_validation(bad: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Validation(**bad)
    (wrong,) = error.value.errors()
    assert wrong["loc"] == (next(iter(bad)),)
    assert told in wrong["msg"]


@pytest.mark.parametrize(
    ("protocol", "names", "told"),
    [
        ("synthetic", ("dent",), "no damage 'dent'; there is cut_paste"),
        ("synthetic", ("elastik",), "did you mean 'elastic'?"),
        ("synthetic", ("occlusion", "texture", "roughen"), "one of occlusion, texture, roughen"),
        ("labelled", ("elastic",), "nothing is damaged under 'labelled'; remove it"),
        ("test", ("elastic",), "nothing is damaged under 'test'; remove it"),
    ],
)
def test_damage_that_cannot_be_left_out(protocol: Any, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Validation(protocol=protocol, without_damage=names)
    (wrong,) = error.value.errors()
    assert wrong["loc"] == ("without_damage",)
    assert told in wrong["msg"]
    assert "\n" not in wrong["msg"]


def test_a_wrong_protocol_is_not_also_a_wrong_damage() -> None:
    with pytest.raises(ValidationError) as error:
        Validation(protocol="synthetics", without_damage=("elastic",))  # type: ignore[arg-type]
    assert [wrong["loc"] for wrong in error.value.errors()] == [("protocol",)]


def test_survives_files_and_processes() -> None:
    section = Validation(protocol="synthetic", fraction=0.25, seed=7, without_damage=("elastic",))
    assert Validation.model_validate(json.loads(section.model_dump_json())) == section
    assert pickle.loads(pickle.dumps(section)) == section
    assert len({section, Validation(), Validation(protocol="labelled")}) == 2
    with pytest.raises(ValidationError, match="frozen"):
        section.seed = 1  # type: ignore[misc]


def test_every_kind_of_damage_can_be_left_out() -> None:
    for name in MECHANISMS:
        Validation(protocol="synthetic", without_damage=(name,))
