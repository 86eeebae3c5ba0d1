"""Which sweep directories are read: those of this format, and no others."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
import yaml

from anomtune.errors import SweepError
from anomtune.search.config import parse_sweep
from anomtune.search.store.directory import FORMAT, read_config, read_sweep, write_config
from anomtune.search.store.storage import Storage
from tests.search.conftest import sweep_dict

#: As version 0.1 wrote it.
VERSION_0_1 = """\
# resolved sweep, sha256 db3235df6fda92cbb0cb2434234d3939a9bc54c0032071babaf46ea216c44c5a
name: sample
dataset:
  name: folder
  root: /data
  categories:
  - bottle
  - screw
  shift: null
validation:
  protocol: labelled
  fraction: 0.5
  seed: 0
  without_damage: []
methods:
  patchcore:
    preset: null
    fixed: {}
    space: {}
image_size: 256
trials: 6
rungs: 4
sampler: tpe
pruner: median
confirm:
  top: 1
  seeds:
  - 1
  - 11
resources:
  cpu: 1
  gpu: auto
  accelerator: null
concurrency: auto
seed: 0
"""


def test_a_config_is_read_as_it_was_written(tmp_path):
    storage = Storage(tmp_path)
    assert read_config(storage) is None
    config = parse_sweep(sweep_dict(trials=7), "test")
    write_config(storage, config)
    assert read_config(storage) == config
    assert read_sweep(tmp_path)[0] == config
    first = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert next(iter(first.items())) == (
        "made_by", {"anomtune": version("anomtune"), "format": FORMAT},
    )  # fmt: skip


def test_a_directory_of_version_0_1_is_refused_in_one_line(tmp_path):
    (tmp_path / "sweep.yaml").write_text(VERSION_0_1)
    with pytest.raises(SweepError) as refusal:
        read_sweep(tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path}: made by anomtune 0.1, ")
    assert "use that version, or another directory with --dir" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("made_by", "maker"),
    [
        ("{anomtune: 9.1.0, format: 99}", "9.1.0"),
        ("{anomtune: 0.1.5, format: 1}", "0.1.5"),
        ("{}", "?"),
        ("someone", "?"),
    ],
)
def test_other_formats_are_refused_with_their_version(tmp_path, made_by, maker):
    (tmp_path / "sweep.yaml").write_text(f"made_by: {made_by}\n{VERSION_0_1}")
    with pytest.raises(SweepError, match=re.escape(f"made by anomtune {maker}, ")):
        read_config(Storage(tmp_path))


def test_a_directory_of_a_later_version_is_refused_in_one_line(tmp_path, run):
    """It says which, and what to do; nothing is written, and nothing of it is lost."""
    config = parse_sweep(sweep_dict(), "test")
    write_config(Storage(tmp_path), config)
    text = (tmp_path / "sweep.yaml").read_text()
    text = text.replace(f"format: {FORMAT}", f"format: {FORMAT + 1}")
    text = text.replace(f"anomtune: {version('anomtune')}", "anomtune: 7.2.0")
    (tmp_path / "sweep.yaml").write_text(f"{text}of_the_future: true\n")
    for command in ("leaderboard", "report", "status"):
        code, _, err = run(command, tmp_path)
        assert code == 2
        assert err.splitlines() == [
            f"anomtune: {tmp_path}: made by anomtune 7.2.0, and this is {version('anomtune')}, "
            f"which reads no format after {FORMAT} (it has {FORMAT + 1}); install that version or "
            "a later one, or another directory with --dir"
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "not a text file"), (b"- a\n", "not a sweep file"), (b"{", "not valid")],
)
def test_what_is_no_sweep_file_is_refused(tmp_path, content, message):
    (tmp_path / "sweep.yaml").write_bytes(content)
    with pytest.raises(SweepError, match=message):
        read_config(Storage(tmp_path))


def test_a_folder_that_is_no_sweep_directory(tmp_path):
    with pytest.raises(SweepError, match=r"no sweep\.yaml there; give the directory of a sweep"):
        read_sweep(tmp_path)
