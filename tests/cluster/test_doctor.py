"""What is found on a node, and what is made of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from anomtune.cluster import doctor, findings
from anomtune.cluster.doctor import examine, judge
from anomtune.cluster.findings import Findings
from anomtune.search.config import parse_sweep
from anomtune.search.run import probe
from anomtune.search.run.probe import Node
from anomtune.search.store.storage import Storage
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
    stand_in_for_python(monkeypatch, tmp_path, output)
    monkeypatch.setattr(findings, "_GPU_PATIENCE", 1.0 if "sleep" in output else 60.0)
    assert findings.look_at_gpus(2) == expected


def stand_in_for_python(monkeypatch, folder, script):
    """Lets the process that is to compute on the GPUs run something else."""
    stand_in = folder / "python"
    stand_in.write_text(f"#!{sys.executable}\n{script}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(findings.sys, "executable", str(stand_in))


@pytest.fixture
def start_raylet(monkeypatch):
    """Starts what stands for a node's raylet, in an environment; this process is its worker."""
    started = []

    def start(environment):
        process = subprocess.Popen(["/bin/sleep", "600"], env=environment)
        started.append(process)
        # Linux shows arguments and environment a moment after the start.
        while b"sleep" not in Path("/proc", str(process.pid), "cmdline").read_bytes():
            time.sleep(0.001)
        monkeypatch.setenv("RAY_RAYLET_PID", str(process.pid))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def gpus_that_are_tried(monkeypatch, folder, variable):
    told = f"[os.environ.get({variable!r}), sys.argv[2][-2]]"
    stand_in_for_python(monkeypatch, folder, f"import json, os, sys\nprint(json.dumps({told}))")
    (tried, number), problem = findings.look_at_gpus(2)
    assert problem is None
    assert number == "2", "more than Ray hands out"
    return tried


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
@pytest.mark.parametrize(
    ("nodes", "tasks", "expected"),
    [
        ("2,3", "", "2,3"),  # as Ray may set it for a task without GPUs
        ("2,3", "2", "2,3"),
        ("2,3", None, "2,3"),
        (None, "", None),
        ("", "", ""),
    ],
)
def test_a_node_answers_for_the_gpus_that_it_was_started_with(
    monkeypatch, tmp_path, start_raylet, variable, nodes, tasks, expected
):
    start_raylet({} if nodes is None else {variable: nodes})
    monkeypatch.delenv(variable, raising=False)
    if tasks is not None:
        monkeypatch.setenv(variable, tasks)
    assert gpus_that_are_tried(monkeypatch, tmp_path, variable) == expected


@pytest.mark.parametrize(("tasks", "expected"), [("", None), ("2,3", "2,3")])
def test_gpus_are_not_taken_as_hidden_by_a_node_that_cannot_be_asked(
    monkeypatch, tmp_path, start_raylet, tasks, expected
):
    raylet = start_raylet({"CUDA_VISIBLE_DEVICES": "4,5"})
    raylet.kill()
    raylet.wait()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", tasks)
    assert gpus_that_are_tried(monkeypatch, tmp_path, "CUDA_VISIBLE_DEVICES") == expected


@pytest.mark.parametrize("chosen", ["", "2,3"])
def test_without_ray_the_gpus_are_those_that_the_user_chose(monkeypatch, tmp_path, chosen):
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus_that_are_tried(monkeypatch, tmp_path, "CUDA_VISIBLE_DEVICES") == chosen


@pytest.mark.parametrize(("most", "expected"), [(0, 3), (2, 2), (8, 3)])
def test_only_gpus_that_ray_hands_out_compute(monkeypatch, capsys, most, expected):
    import torch

    devices = []

    def to(matrix, device):
        devices.append(device)
        return matrix

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.Tensor, "to", to)
    findings.compute(most)
    assert devices == [f"cuda:{index}" for index in range(expected)]
    assert json.loads(capsys.readouterr().out) == [f"GPU {index}" for index in range(expected)]


def test_the_same_images_have_the_same_listing(toy_data, tmp_path):
    def listing(root):
        return findings.look_at_images(parse_sweep(sweep_dict(root), "test"))

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


def check_here(directory):
    return doctor._try_storage(Storage(directory))


def check_from_nodes(directory):
    return doctor._probe_storage(Storage(directory), [NODE])[NODE]


@pytest.fixture(params=[check_here, check_from_nodes])
def check_storage(request, monkeypatch):
    """Checks a sweep directory, from this machine or from a node that shares it."""
    monkeypatch.setattr(
        probe, "ask_nodes", lambda question, nodes: {node: question(node) for node in nodes}
    )
    return request.param


def test_what_the_user_has_in_the_directory_stays(check_storage, tmp_path):
    kept = tmp_path / "probe" / "here"
    kept.parent.mkdir()
    kept.write_text("precious")
    (tmp_path / "empty").mkdir()
    assert check_storage(tmp_path) is None
    assert kept.read_text() == "precious"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty", kept.parent, kept]


def test_an_empty_directory_that_was_there_stays(check_storage, tmp_path):
    directory = tmp_path / "parent" / "results"
    directory.mkdir(parents=True)
    assert check_storage(directory) is None
    assert list(tmp_path.rglob("*")) == [directory.parent, directory]


def test_a_directory_that_was_not_there_is_not_left_behind(check_storage, tmp_path):
    (tmp_path / "parent").mkdir()
    assert check_storage(tmp_path / "parent" / "new" / "results") is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "parent"]


def test_a_sweep_that_begins_during_the_check_stays(check_storage, monkeypatch, tmp_path):
    record = tmp_path / "new" / "results" / "sweep.yaml"
    delete = Storage.delete

    def begin_and_delete(self, path):
        record.write_text("name: toys")
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", begin_and_delete)
    assert check_storage(record.parent) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [record]


def test_what_a_check_leaves_that_is_killed_goes_with_the_next_start(
    check_storage, monkeypatch, tmp_path
):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "delete", die)
    with suppress(KeyboardInterrupt):
        check_storage(tmp_path)
    assert list(tmp_path.iterdir()), "nothing was written"
    Storage(tmp_path).delete_left_overs()
    assert not list(tmp_path.iterdir())


def test_the_address_may_come_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    code, _, err = run("doctor")
    assert code == 2
    assert "http://127.0.0.1:9: no Ray dashboard answers there" in err


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
    monkeypatch.setattr(findings.shutil, "disk_usage", lambda _: usage(10, 10, 0))
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
