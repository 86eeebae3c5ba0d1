"""What is found on a node, and what is made of it."""

from __future__ import annotations

import dataclasses
import sys
from collections import namedtuple

import pytest
import yaml

from anomtune.cluster import doctor
from anomtune.cluster.doctor import Findings, examine, judge
from anomtune.search.config import parse_sweep
from anomtune.search.probe import Node
from tests.search.conftest import sweep_dict

NODE = Node("aa", "gpu-1 (10.0.0.1)", 2)
WELL = Findings(
    versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "anomtune": "0.1.0"},
    gpus=("A100", "A100"),
    gpu_problem=None,
    weights_problem="",
    images=(48, "digest"),
    images_problem=None,
    space=10**12,
    cache="/cache",
    auth="token",
)


def bad(checks):
    return {check.subject: check for check in checks if not check.good}


def test_a_node_that_is_well():
    checks = judge(NODE, WELL, WELL.versions)
    assert not bad(checks)
    assert {check.subject: check.found for check in checks}["GPUs"] == "2 x A100"


@pytest.mark.parametrize(
    ("change", "subject", "found"),
    [
        ({"gpu_problem": "torch sees 1 of 2"}, "GPUs", "torch sees 1 of 2"),
        ({"weights_problem": "rd4ad: put it there"}, "weights", "rd4ad: put it there"),
        ({"images": None, "images_problem": "/data: missing"}, "images", "/data: missing"),
        ({"images": (0, "")}, "images", "no file in dataset.root"),
        ({"space": 10**9}, "disk", "1 GB free"),
        (
            {"versions": {**WELL.versions, "ray": "2.59.0"}},
            "versions",
            "ray 2.59.0, not 2.60.0",
        ),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(change, subject, found):
    wrong = bad(judge(NODE, dataclasses.replace(WELL, **change), WELL.versions))
    assert list(wrong) == [subject]
    assert wrong[subject].found == found
    assert wrong[subject].remedy or subject == "weights"


def test_nodes_that_list_other_images_are_not_well():
    wrong = bad(judge(NODE, WELL, WELL.versions, same_images=False))
    assert "not the same as on other nodes" in wrong["images"].found


def test_an_open_cluster_is_not_well():
    assert not doctor._check_tokens(NODE, dataclasses.replace(WELL, auth="disabled")).good
    assert doctor._check_tokens(NODE, WELL).good


def test_a_clock_is_judged_by_what_cannot_be_delay(monkeypatch):
    times = iter([100.0, 101.0])
    monkeypatch.setattr(doctor.time, "time", lambda: next(times))
    other = Node("bb", "b", 0)
    monkeypatch.setattr(doctor, "ask_nodes", lambda *_: {NODE: 100.4, other: 90.0})
    skews = doctor._skews([NODE, other])
    assert skews == {NODE: 0.0, other: 10.0}
    assert doctor._check_clock(NODE, skews[NODE]).good
    assert not doctor._check_clock(other, skews[other]).good


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ('print(\'["A100", "A100"]\')', (("A100", "A100"), None)),
        ("print('[\"A100\"]')", (("A100",), "torch sees 1 of 2")),
        ("raise SystemExit('GPU 0 multiplies wrongly')", ((), "GPU 0 multiplies wrongly")),
        ("import time; time.sleep(60)", ((), "no result within 1 s")),
    ],
)
def test_gpus_compute_in_a_process_of_their_own(monkeypatch, tmp_path, output, expected):
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!{sys.executable}\nimport os\nassert "CUDA_VISIBLE_DEVICES" not in '
                        f'os.environ\n{output}\n')  # fmt: skip
    stand_in.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(stand_in))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it for a task without GPUs
    monkeypatch.setattr(doctor, "_GPU_PATIENCE", 1.0 if "sleep" in output else 60.0)
    assert doctor.look_at_gpus(2) == expected


def test_the_same_images_have_the_same_listing(toy_data, tmp_path):
    def listing(root):
        return doctor.look_at_images(parse_sweep(sweep_dict(root), "test"))

    here, problem = listing(toy_data)
    assert problem is None
    assert here[0] == sum(path.is_file() for path in toy_data.rglob("*"))
    assert listing(toy_data.as_uri())[0] == here
    (tmp_path / "one.png").write_bytes(b"1")
    assert listing(tmp_path)[0] != here
    assert listing(tmp_path / "nowhere") == (
        None,
        f"{tmp_path}/nowhere: No such file or directory",
    )


def test_this_machine(run, toy_data, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(sweep_dict(toy_data)))
    code, out, _ = run("doctor", sweep, "--dir", tmp_path / "results")
    assert code == 0
    assert "All is well." in out
    assert not (tmp_path / "results").exists(), "it left something behind"


def test_what_is_missing_here_ends_with_1_and_a_remedy(run, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(sweep_dict(tmp_path / "nowhere")))
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, out, _ = run("doctor", sweep, "--dir", blocked / "results")
    assert code == 1
    assert "nowhere: No such file or directory; mount the same images there" in out
    assert "give --dir a folder on a shared file system" in out


def test_a_full_disk_is_told(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10, 10, 0))
    assert list(bad(examine(None, None, None))) == ["disk"]


@pytest.mark.ray
def test_a_real_cluster(ray_session, toy_data, tmp_path):
    config = parse_sweep(sweep_dict(toy_data), "test")
    checks = examine(config, str(tmp_path / "results"), "auto")
    found = {check.subject: check for check in checks}
    assert set(found) == {
        *("versions", "GPUs", "disk", "weights", "images", "tokens", "clock", "storage")
    }
    assert not bad(checks)
    assert len({check.node for check in checks}) == 1
    assert not (tmp_path / "results").exists()
