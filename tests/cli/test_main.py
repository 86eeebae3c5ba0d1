"""The command as people type it: bad input is one line and exit code 2, and nothing is written.

Longer than most: a list of what can be wrong with a sweep file, each with what is said of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anomtune.search.config import read_yaml
from anomtune.search.preparation import resolve
from anomtune.search.sweep import run as run_sweep
from tests.conftest import draw_category
from tests.search.conftest import parse_sweep, sweep_dict


@pytest.fixture
def refused(run, tmp_path):
    """Runs a sweep that must be refused; returns the one line that says why."""

    def call(config: dict, *arguments: object) -> str:
        path = tmp_path / "bad.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        directory = tmp_path / "result"
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run("sweep", path, "--dir", directory, *arguments)
        assert code == 2, (code, out, err)
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        assert "Traceback" not in err
        reasons = [line for line in err.splitlines() if line.startswith("anomtune: ")]
        assert len(reasons) == 1, err
        assert err.rstrip().endswith(reasons[0]), err
        return reasons[0]

    return call


def nested(keys: str, value: object) -> dict:
    for key in reversed(keys.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trails": 5}, "trails: unknown key; there is name, dataset,"),
        ({"trails": 5}, "did you mean 'trials'?"),
        ({"dataset": {"name": "folder", "rot": "x"}}, "did you mean 'root'?"),
        ({"methods": {"toy": {"fixd": {}}}}, "methods.toy.fixd: unknown key"),
        ({"methods": {"toy": {"fixd": {}}}}, "did you mean 'fixed'?"),
        ({"methods": {"rd4d": {}}}, "did you mean 'rd4ad'?"),
        ({"methods": {}}, "methods"),
        ({"methods": {"toy": {"fixed": {"qualty": 1}}}}, "did you mean 'quality'?"),
        ({"methods": {"toy": {"fixed": {"quality": 2}}}}, "quality: Input should be less than"),
        ({"methods": {"toy": {"preset": "best"}}}, "methods.toy.preset"),
        (
            {"methods": {"toy": {"space": {"quality": {"low": 0.9, "high": 0.1}}}}},
            "low (0.9) is above high (0.1)",
        ),
        (
            {"methods": {"toy": {"space": {"quality": {"low": 0.1, "high": 3}}}}},
            "methods.toy.space.quality: 3.0 cannot be",
        ),
        (
            {"methods": {"toy": {"space": {"quality": {"low": 0, "high": 1, "log": True}}}}},
            "must be positive on a log scale",
        ),
        (
            {"methods": {"toy": {"space": {"colour": {"choices": ["blue"]}}}}},
            "methods.toy.space.colour: 'blue' cannot be",
        ),
        ({"trials": 0}, "trials: Input should be greater than or equal to 1, not 0"),
        ({"trials": "many"}, "trials: Input should be a valid integer"),
        ({"image_size": 100}, "image_size: Input should be a multiple of 32"),
        ({"name": "../up"}, "name: String should match"),
        ({"pruner": "asha"}, "pruner: no pruner 'asha'; there is hyperband, median,"),
        ({"dataset": {"name": "foldr"}}, "did you mean 'folder'?"),
        ({"dataset": {"name": "folder", "root": "/no/such"}}, "/no/such"),
        ({"confirm": {"top": -1}}, "confirm.top: Input should be greater than or equal to 0"),
        ({"confirm": {"seeds": []}}, "confirm.seeds: "),
        ({"concurrency": 0}, "concurrency: Input should be 'auto' or: Input should be greater"),
        ({"resources": {"gpu": -1}}, "resources.gpu: Input should be 'auto' or: Input should"),
        pytest.param(  # known once Ray has started
            {"resources": {"cpu": 640}}, "resources: a trial wants", marks=pytest.mark.slow
        ),
        ({"seed": 10**21}, "seed: "),
        ({"seed": -1}, "seed: "),
        (
            {"methods": {"toy": {"fixed": {"others": "textures"}}}},
            "textures: give the folder by its absolute path",
        ),
        ({"dataset": {"name": "folder", "root": "s3://me:word@b/x"}}, "carries credentials"),
        (
            {"methods": {"toy": {"fixed": {"others": "/no/such"}}}},
            "/no/such: no such folder; give one that holds images",
        ),
        ({"dataset": {"name": "folder", "categories": [3]}}, "put it in quotes"),
        ("name: 2026-02-30", "not valid YAML"),
        ({1: "x"}, "1: unknown key"),
        ({"self": "x"}, "self: unknown key"),
        (
            {"dataset": {"name": "folder", "shift": {"severity": True}}},
            "dataset.shift.severity: a number is meant, not true or false",
        ),
    ],
)
def test_a_wrong_sweep_file_is_refused(refused, toy_data, change, expected):
    assert expected in refused(change if isinstance(change, str) else sweep_dict(toy_data) | change)


def test_a_category_whose_text_is_too_long_for_a_folder(refused, tmp_path):
    draw_category(tmp_path / "data" / os.fsdecode(b"\xfc" * 64))
    draw_category(tmp_path / "data/plate")
    assert "too long for a folder of results; rename it" in refused(sweep_dict(tmp_path / "data"))


def test_not_yaml_and_not_a_mapping(refused, run, tmp_path):
    assert "not valid YAML" in refused("a: [1")
    assert "is a mapping of keys" in refused("- 1")
    code, _, err = run("sweep", tmp_path / "missing.yaml")
    assert code == 2
    assert "No such file" in err


def test_unknown_category_names_those_that_exist(refused, toy_data):
    config = sweep_dict(toy_data)
    config["dataset"]["categories"] = ["plat"]
    assert "no category 'plat'; there is plate, ring; did you mean 'plate'?" in refused(config)


def test_set_overrides(refused, toy_data):
    assert "trials" in refused(sweep_dict(toy_data), "--set", "trials=none")
    assert "write key=value" in refused(sweep_dict(toy_data), "--set", "trials")
    assert "did you mean" in refused(
        sweep_dict(toy_data), "--set", "methods.toy.fixed.qualiti=1e-1"
    )


def broken(tmp_path: Path, kind: str) -> Path:
    """Draws a category and breaks it in one way."""
    root = draw_category(tmp_path / "data" / "plate")
    image, mask = root / "test/spot/000.png", root / "ground_truth/spot/000_mask.png"
    match kind:
        case "no training images":
            for path in (root / "train/good").iterdir():
                path.unlink()
        case "no anomalous image":
            for path in [*(root / "test/spot").iterdir(), *(root / "ground_truth").rglob("*.png")]:
                path.unlink()
        case "truncated image":
            image.write_bytes(image.read_bytes()[:200])
        case "mask of another size":
            Image.fromarray(np.zeros((20, 30), np.uint8)).save(mask)
        case "mask without image":
            image.unlink()
        case "16-bit image":
            Image.fromarray(np.zeros((32, 32), np.uint16)).save(image)
        case "transparent image":
            Image.fromarray(np.zeros((32, 32, 4), np.uint8)).save(image)
    return root.parent


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("no training images", "train"),
        ("no anomalous image", "validation.protocol: synthetic"),
        ("truncated image", "test/spot/000.png"),
        ("mask of another size", "000_mask.png"),
        ("mask without image", "000_mask.png"),
        ("16-bit image", "8 bit"),
        ("transparent image", "transparen"),
    ],
)
def test_broken_data_is_refused(refused, tmp_path, kind, expected):
    assert expected in refused(sweep_dict(broken(tmp_path, kind)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory, toy_data, ray_session) -> Path:
    """A finished sweep."""
    directory = tmp_path_factory.mktemp("finished")
    run_sweep(parse_sweep(sweep_dict(toy_data, trials=3), "test"), directory)
    return directory


@pytest.mark.ray
class TestOnAFinishedSweep:
    """The commands that read a sweep directory."""

    def test_leaderboard_in_three_forms(self, run, directory):
        code, out, _ = run("leaderboard", directory)
        assert code == 0
        assert "plate" in out
        assert "95 % interval" in out
        rows = json.loads(run("leaderboard", directory, "--format", "json")[1])
        table = list(
            csv.DictReader(io.StringIO(run("leaderboard", directory, "--format", "csv")[1]))
        )
        assert [row["category"] for row in rows] == [row["category"] for row in table]
        assert len(rows) == 2
        only = run("leaderboard", directory, "--category", "ring", "--format", "json")[1]
        assert [row["category"] for row in json.loads(only)] == ["ring"]

    def test_rows_for_machines(self, run, directory, toy_data, tmp_path):
        code, out, err = run("leaderboard", directory, "--json")
        assert (code, err) == (0, "")
        board = json.loads(run("leaderboard", directory, "--format", "json")[1])
        rows = [json.loads(line) for line in out.splitlines()]
        for row, same in zip(rows, board, strict=True):
            when = same.pop("created_at").replace(" ", "T")  # as ISO 8601 has it
            assert row == same | {"created_at": when}
        assert run("leaderboard", directory, "--json", "--format", "csv")[0] == 2
        *studies, whole = map(json.loads, run("status", directory, "--json")[1].splitlines())
        assert [study["category"] for study in studies] == ["plate", "ring"]
        assert {study["complete"] + study["pruned"] for study in studies} == {3}
        assert (whole["row"], whole["name"], whole["seconds_left"]) == ("sweep", "toys", 0)
        # More trials: what was there is not new, what comes is told.
        copy, path = tmp_path / "sweep", tmp_path / "more.yaml"
        shutil.copytree(directory, copy)
        path.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=5)))
        code, out, err = run("sweep", path, "--dir", copy, "--json")
        assert (code, err) == (0, "")
        rows = [json.loads(line) for line in out.splitlines()]
        events = [row["event"] for row in rows]
        assert events.count("sweep_started") == events.count("finished") == 1
        assert events.count("trial_ended") == 4
        assert events[-1] == "finished"
        assert rows[-1]["exit_code"] == 0
        best = {row["category"]: row["val_auroc"] for row in board}
        for row in rows:
            if row["event"] == "leader":
                assert row["auroc"] > best[row["category"]]
        # For people it ends with three sentences, also where nothing was left to do.
        out = run("sweep", path, "--dir", copy)[1]
        found, sure, then = (out.index(f"\n{title}: ") for title in ("Found", "How sure", "Next"))
        assert found < sure < then
        assert "First in 2 categories: toy in 2;" in out
        assert "Found: " not in run("sweep", path, "--dir", copy, "--quiet")[1]

    def test_best_is_a_config_that_can_be_read_again(self, run, directory):
        assert "say which; there is plate, ring" in run("best", directory)[2]
        code, out, _ = run("best", directory, "--category", "plate")
        assert code == 0
        best = yaml.safe_load(out)
        assert best["method"] == "toy"
        assert set(best["hyperparameters"]) >= {"quality", "colour", "iterations"}

    def test_questions_about_what_is_not_there(self, run, directory, tmp_path):
        assert "did you mean 'plate'" in run("best", directory, "--category", "plat")[2]
        assert run("leaderboard", tmp_path)[0] == 2
        assert run("leaderboard", directory, "--format", "xml")[0] == 2
        assert run("tensorboard", tmp_path)[0] == 2

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"image_size": 64}, "image_size = 32, now it is 64"),
            ({"trials": 2}, "trials = 3, now it is 2"),
            ({"seed": 1}, "seed = 0, now it is 1"),
            ({"methods": {"toy": {"fixed": {"colour": "red"}}}}, "methods.toy.fixed.colour"),
            ({"methods": {"rd4ad": {}}}, "methods.toy"),
            ({"validation": {"fraction": 0.4}}, "validation.fraction = 0.5, now it is 0.4"),
        ],
    )
    def test_a_contradiction_is_refused(self, run, directory, toy_data, tmp_path, change, expected):
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=3) | change))
        before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
        code, _, err = run("sweep", path, "--dir", directory)
        assert code == 2
        assert expected in err
        assert before == {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}

    def test_a_record_that_is_no_record_is_named(self, run, directory):
        path = directory / "trials/plate/toy/00001.json"
        content = path.read_bytes()
        path.write_bytes(b'{"number": 1}')
        code, _, err = run("leaderboard", directory)
        path.write_bytes(content)
        assert code == 2
        assert "00001.json: not a trial record" in err
        assert "delete the file" in err


def test_names_that_look_like_numbers_survive_the_resolved_file():
    config = sweep_dict("/data")
    config["dataset"]["categories"] = ["1e3", "12E4", "007", "1.5", "null", "on"]
    config["methods"] = {"toy": None}
    parsed = parse_sweep(config, "test")
    text = parsed.to_yaml()
    assert parse_sweep(read_yaml(text, "test"), "test") == parsed


def test_a_link_to_a_category_keeps_its_name(tmp_path, toy_data):
    (tmp_path / "current").symlink_to(toy_data / "plate")
    resolved = resolve(parse_sweep(sweep_dict(tmp_path / "current"), "test"))
    assert resolved.dataset.categories == ("current",)
    assert resolved.dataset.root == str(tmp_path / "current")
    assert resolve(resolved) == resolved


def test_methods_and_datasets_are_listed(run):
    code, out, _ = run("methods")
    assert code == 0
    for word in ("rd4ad", "recontrast", "toy", "backbone", "(log)"):
        assert word in out
    code, out, _ = run("datasets")
    assert code == 0
    assert "folder" in out
    assert "synthetic" in out
    assert "did you mean 'rd4ad'" in run("methods", "rd4da")[2]


def test_audit_says_what_is_wrong(run, tmp_path):
    code, out, _ = run("audit", "folder", draw_category(tmp_path / "plate"))
    assert code == 0
    assert "spot 6" in out
    code, out, _ = run("audit", "folder", broken(tmp_path, "truncated image"))
    assert code == 2
    assert "test/spot/000.png" in out
    assert run("audit", "folder", "/no/such")[0] == 2


def test_a_directory_that_cannot_be_written(refused, toy_data, run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_dict(toy_data)))
    code, _, err = run("sweep", path, "--dir", tmp_path / "file" / "sweep")
    assert code == 2
    assert "Not a directory" in err
    assert "--dir" in err


@pytest.fixture
def small_disk(tmp_path):
    """A real filesystem of its own; remounts it with other options when called."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a filesystem")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)

    yield place, remount
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_full_and_a_read_only_disk(run, tmp_path, toy_data, small_disk):
    place, remount = small_disk
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=20)))

    code, _, err = run("sweep", path, "--dir", place / "sweep")
    assert code == 2
    assert "No space left on device; free some space and start again" in err
    records = {p: json.loads(p.read_text()) for p in place.rglob("0*.json")}
    finished = {p: record for p, record in records.items() if record["state"] != "RUNNING"}
    assert finished

    remount("size=16m")
    assert run("sweep", path, "--dir", place / "sweep")[0] == 0
    again = {p: json.loads(p.read_text()) for p in place.rglob("0*.json")}
    assert len(again) == 40
    assert {p: again[p] for p in finished} == finished

    remount("ro")
    code, _, err = run("sweep", path, "--dir", place / "other")
    assert code == 2
    assert "Read-only file system; choose another directory with --dir" in err
    assert run("leaderboard", place / "sweep")[0] == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_odd_names_are_confirmed_and_a_failed_confirm_run_is_said(run, tmp_path):
    name, shown = b"M\xfc[red]\n", "M\\xfc[red]\\x0a"
    category = tmp_path / os.fsdecode(name)
    draw_category(category)
    for path in [*category.glob("test/*/*.png"), *category.glob("train/*/*.png")]:
        path.rename(path.with_name(os.fsdecode(b"\xe9\n") + path.name))
    for path in category.glob("ground_truth/*/*.png"):
        path.rename(path.with_name(os.fsdecode(b"\xe9\n") + path.name))
    (category / "test/spot").rename(category / os.fsdecode(b"test/sp\xf6t"))
    (category / "ground_truth/spot").rename(category / os.fsdecode(b"ground_truth/sp\xf6t"))
    path, directory = tmp_path / "sweep.yaml", tmp_path / os.fsdecode(b"sw\xff")
    confirm = {"top": 1, "seeds": [1]}
    path.write_text(yaml.safe_dump(sweep_dict(tmp_path, trials=2, confirm=confirm)))
    code, out, err = run("sweep", path, "--dir", directory)
    assert code == 0, err
    assert shown in out
    records = list(directory.glob("confirm/*/*/*.json"))
    assert {json.loads(record.read_text())["category"] for record in records} == {shown}
    assert (directory / "models" / shown).is_dir()
    rows = list(csv.DictReader(io.StringIO(run("leaderboard", directory, "--format", "csv")[1])))
    assert [row["category"] for row in rows] == [shown]
    assert yaml.safe_load(run("best", directory, "--category", shown)[1])["category"] == shown
    assert run("report", directory)[0] == 0

    record = json.loads(records[0].read_text())
    gone = dict.fromkeys(("val_auroc", "test", "facts"))
    records[0].write_text(json.dumps({**record, **gone, "state": "FAIL", "error": "no [luck]"}))
    code, _, err = run("sweep", path, "--dir", directory)
    assert code == 1
    said = f"{shown}/toy: 1 of {len(records)} confirm runs failed: no [luck]"
    assert said in err
    assert said in run("status", directory)[1]
    run("report", directory)
    assert "1 confirm run failed" in (directory / "report.html").read_text(encoding="utf-8")


def test_train_and_export_refuse_a_place_before_any_work(run, tmp_path, small_disk, monkeypatch):
    place, remount = small_disk
    remount("ro")
    file = tmp_path / "config.yaml"
    file.write_text("not: read")
    for command in (
        ("train", file, "--out", place / "model"),
        ("export", tmp_path, "--onnx", place / "x.onnx"),
        ("audit", "folder", tmp_path, "--manifest", place / "m.csv"),
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert "cannot be written (Read-only file system); choose another place" in err


@pytest.mark.slow
def test_commands_work_in_a_locale_without_letters(tmp_path):
    """Names, sweep files and tables are the same in it."""
    draw_category(tmp_path / "Größe")
    environment = {
        **os.environ,
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "PYTHONIOENCODING": "ascii",
    }
    command = [sys.executable, "-m", "anomtune", "audit", "folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--manifest", str(tmp_path / "m.csv")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Gr\\xf6\\xdfe" in done.stdout
    table = list(csv.DictReader((tmp_path / "m.csv").open(encoding="utf-8")))
    assert {row["category"] for row in table} == {"Größe"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_folder_is_swept_as_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setattr("anomtune.search.propose.choose.weights_at_hand", lambda name: True)
    drawn = draw_category(tmp_path / "drawn", train=6, good=6, bad=12)
    place = tmp_path / "line 3"
    for i, path in enumerate(sorted(drawn.glob("*/good/*.png"))):
        target = place / f"ok/{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (drawn / "test/spot").rename(place / "spot")
    methods = "methods={padim: {fixed: {backbone: mobilenet_v2, weights: random}}}"
    options = ["budget=null", "trials=1", "confirm=0", "image_size=32", methods]
    settings = [part for option in options for part in ("--set", option)]
    code, _, err = run("sweep", place, "--dir", tmp_path / "sweep", *settings)
    assert code == 0, err
    assert "line 3: divided by content hash: 60% of the normal images train" in " ".join(
        err.split()
    )
    written = yaml.safe_load((tmp_path / "sweep/sweep.yaml").read_text())
    assert written["name"] == "line-3"
    counts = {"train": 7, "normal": 5, "anomalous": 12}
    assert written["dataset"]["division"]["counts"] == {"line 3": counts}
    # Again: it is done, and the images are known to be the same.
    assert run("sweep", place, "--dir", tmp_path / "sweep", *settings)[0] == 0
