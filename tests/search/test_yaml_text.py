"""YAML is data, and says each thing once."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

import anomtune as at
from anomtune.errors import SweepError
from anomtune.search.config import load_sweep, parse_sweep
from anomtune.search.detector.train import read_spec
from anomtune.search.yaml_text import dump_yaml, read_yaml, read_yaml_file

PLAIN = {"name": "s", "dataset": {"name": "synthetic"}, "methods": {"padim": {}}}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a"),
        ("{a: 1, a: 1}", 1, "a"),
        ("m:\n  x: {}\n  'x': {}", 3, "x"),
        ("- k: 1\n  k: 2", 2, "k"),
    ],
)
def test_a_key_given_twice_is_refused(text, line, key):
    with pytest.raises(SweepError, match=rf"^f: line {line}: the key '{key}' is given twice"):
        read_yaml(text, "f")


def test_a_merged_key_may_be_given_again():
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\nc: {y: 3, <<: *a}"
    assert read_yaml(text, "f")["b"] == {"x": 2, "y": 1}
    assert read_yaml(text, "f")["c"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_file_is_utf_8_with_or_without_a_mark(tmp_path, start):
    file = tmp_path / "a.yaml"
    file.write_bytes(start + "größe: ü".encode())
    assert read_yaml_file(file, "file") == {"größe": "ü"}
    file.write_bytes(b"a: M\xfcller")
    with pytest.raises(SweepError, match="cannot read the file: not a text file in UTF-8"):
        read_yaml_file(file, "file")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()))
def test_what_is_dumped_is_read_back_and_ascii(data):
    text = dump_yaml(data)
    assert text.isascii()
    assert read_yaml(text, "f") == data


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("trials", True, "trials"),
        ("seed", False, "seed"),
        ("image_size", True, "image_size"),
        ("concurrency", True, "concurrency"),
        ("confirm", True, "confirm.top"),
        ("confirm", {"seeds": [1, True]}, "confirm.seeds"),
        ("validation", {"fraction": True}, "validation.fraction"),
        ("resources", {"gpu": True}, "resources.gpu"),
    ],
)
def test_a_boolean_is_no_number(key, value, place):
    with pytest.raises(SweepError, match=rf"^f: {place}: a number is meant, not true or false"):
        parse_sweep({**PLAIN, key: value}, "f")
    with pytest.raises(SweepError, match=rf"^{place}: a number is meant"):
        at.Sweep(**{**PLAIN, key: value})


def test_neither_is_it_in_hyperparameters_nor_in_a_config(tmp_path):
    kind = at.Hyperparameters

    class Mine(kind):
        number: int = 1
        flag: bool = False

    assert Mine(flag=True).flag
    with pytest.raises(ValueError, match="a number is meant"):
        Mine(number=True)
    with pytest.raises(ValueError, match="a number is meant"):
        at.IntRange(low=0, high=True)
    file = tmp_path / "c.yaml"
    file.write_text("dataset: {name: synthetic}\ncategory: a\nmethod: padim\nseed: yes\n")
    with pytest.raises(SweepError, match=r"c.yaml: seed: a number is meant"):
        read_spec(file)
    file.write_text(dump_yaml(PLAIN))
    with pytest.raises(SweepError, match="trials: a number is meant"):
        load_sweep(file, ["trials=yes"])
    with pytest.raises(SweepError, match="'a' is given twice"):
        load_sweep(file, ["methods={a: {}, a: {}}"])


def test_a_sweep_in_python_says_in_one_line_what_is_wrong():
    with pytest.raises(SweepError, match=r"^trails: unknown key; .*did you mean 'trials'\?$"):
        at.Sweep(**PLAIN, trails=5)
    with pytest.raises(SweepError, match=r"^f: trails: unknown key"):
        parse_sweep({**PLAIN, "trails": 5}, "f")
