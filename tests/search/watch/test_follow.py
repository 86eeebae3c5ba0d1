"""A sweep directory as the page is told of it: the same figures as leaderboard and status."""

from __future__ import annotations

import json
import math
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from anomtune.errors import SweepError
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.leaderboard import compile_leaderboard
from anomtune.search.results.status import sweep_status
from anomtune.search.store.directory import read_sweep, write_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage
from anomtune.search.watch.follow import SweepFollower
from anomtune.search.watch.picture import picture, sheets
from tests.search.sample_sweep import write_sample_sweep

NASTY = 'a</script><b onload="x">&amp;\'é\x1b[2J'


def follow(follower):
    for _ in follower.poll():
        pass
    assert follower.state.trouble is None
    return picture(follower.state)


def sample(root, **changes):
    usual = {"categories": ("bottle", "screw"), "methods": ("patchcore", "padim"), "trials": 6}
    return write_sample_sweep(root, **{**usual, "confirm": 1, "seeds": (1, 11), **changes})


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    sample(root, pruner="median", fails=lambda r: f"broke: {NASTY}" if r.number == 2 else None)
    return root


def own(root: Path, since: str | None = None) -> None:
    """Leaves the mark of a live owner."""
    from anomtune.search.store.lock import _who

    changes = {"pid": os.getpid()} | ({"since": since} if since else {})
    (root / "owner.json").write_text(json.dumps(_who() | changes))


def test_it_says_what_leaderboard_and_status_say(ended):
    found = follow(SweepFollower(ended))
    config, store = read_sweep(ended)
    for row in compile_leaderboard(config, store).to_pylist():
        [category] = [one for one in found["categories"] if one["name"] == row["category"]]
        index = [method["name"] for method in found["methods"]].index(row["method"])
        study = category["studies"][index]
        assert (study["rank"], study["tied"]) == (row["rank"], row["tied"])
        for name, column in (
            ("value", "confirmed_auroc_mean"),
            ("low", "confirmed_auroc_low"),
            ("high", "confirmed_auroc_high"),
            ("test", "test_auroc_mean"),
        ):
            assert study[name] == pytest.approx(row[column], abs=5e-5)
        if row["rank"] == 1:
            assert category["verdict"]["method"] == row["method"]
            assert ("cannot be told" in category["verdict"]["words"]) == row["tied"]
    status = sweep_status(config, store, datetime.now(UTC))
    for study in status.studies:
        [category] = [one for one in found["categories"] if one["name"] == study.key.category]
        shown = category["studies"][list(config.methods).index(study.key.method)]
        assert shown["done"] == [study.complete, study.pruned, study.failed]
        assert shown["confirm"][:2] == [study.confirmed, study.confirm_target]
    assert found["phase"] == "finished"
    assert found["totals"]["failed"] == 4
    assert found["failures"]["count"] == 4
    assert len(found["failures"]["latest"]) == 4
    assert "\x1b" not in found["failures"]["reasons"][0][0]
    assert sum(sum(s["seconds"]) for c in found["categories"] for s in c["studies"]) > 0


def test_the_best_curve_ends_at_the_best_figure(ended):
    follower = SweepFollower(ended)
    found = follow(follower)
    trials = read_studies(RecordStore(Storage(ended)))
    for category in found["categories"]:
        for method, study in zip(found["methods"], category["studies"], strict=True):
            [best] = [curve for curve in study["curves"] if curve["kind"] == "best"]
            known = trials[StudyKey(category["name"], method["name"])]
            highest = max(record.value for record in known if record.value is not None)
            assert best["points"][-1] == [4, pytest.approx(highest, abs=5e-5)]


def test_followed_piece_by_piece_it_is_what_it_is_when_read_at_once(ended, tmp_path):
    growing = tmp_path / "sweep"
    growing.mkdir()
    for path in sorted(ended.iterdir()):
        if path.is_file():
            shutil.copy(path, growing)
    shutil.copytree(ended / "scorings", growing / "scorings")
    for labels in ended.glob("trials/*/labels.npy"):
        (growing / labels.relative_to(ended).parent).mkdir(parents=True)
        shutil.copy(labels, growing / labels.relative_to(ended))
    follower = SweepFollower(growing)
    assert follow(follower)["words"].endswith("No trial has begun yet.")
    paths = sorted(
        (json.loads(path.read_text())["cost"]["finished_at"] or "later", path)
        for folder in ("trials", "confirm")
        for path in ended.glob(f"{folder}/*/*/*.json")
    )
    for index, (_, path) in enumerate(paths):
        target = growing / path.relative_to(ended)
        target.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(path.read_text())
        if index % 3 == 0:  # seen while it ran, too
            running = {"state": "RUNNING", "cost": {"started_at": record["cost"]["started_at"]}}
            target.write_text(json.dumps(record | running))
            follow(follower)
            target.unlink()  # replaced, as the driver does
        for more in path.parent.glob(f"{path.stem}.*"):
            if more != path:
                shutil.copy(more, target.parent)
        shutil.copy(path, target.with_suffix(".new"))
        target.with_suffix(".new").rename(target)
        if index % 5 == 0:
            follow(follower)
    whole = follow(SweepFollower(ended))
    piecewise = follow(follower)
    for one in (whole, piecewise):
        one.pop("place")
        for category in one["categories"]:
            for study in category["studies"]:  # which curves are kept depends on the order
                study["curves"] = [c for c in study["curves"] if c["kind"] in {"best", "paper"}]
        one["failures"]["latest"].sort(key=json.dumps)
    assert piecewise == whole


def test_a_sweep_that_runs_is_killed_and_goes_on(tmp_path):
    sample(tmp_path, trials=12, killed_after=50)
    config, _ = read_sweep(tmp_path)
    records = [json.loads(p.read_text()) for p in tmp_path.glob("trials/*/*/*.json")]
    running = [record for record in records if record["state"] == "RUNNING"]
    assert running
    own(tmp_path, since="2026-01-01T00:00:00+00:00")
    follower = SweepFollower(tmp_path)
    found = follow(follower)
    assert found["phase"] == "running"
    assert found["totals"]["running"] == len(found["running"]) == len(running)
    assert found["left"] > 0
    (tmp_path / "owner.json").write_text(
        json.dumps(json.loads((tmp_path / "owner.json").read_text()) | {"pid": 2**22 + 1})
    )
    found = follow(follower)
    assert found["phase"] == "stopped"
    assert (found["totals"]["running"], found["totals"]["interrupted"]) == (0, len(running))
    assert found["left"] is None
    assert found["running"] == []
    own(tmp_path)  # another start: what ran before does not run now
    found = follow(follower)
    assert found["phase"] == "running"
    assert found["totals"]["interrupted"] == len(running)
    assert found["totals"]["target"] == 48
    assert config.trials == 12


def test_a_directory_that_goes_and_comes(ended, tmp_path):
    place = tmp_path / "sweep"
    shutil.copytree(ended, place)
    follower = SweepFollower(place)
    before = follow(follower)
    place.rename(tmp_path / "away")
    gone = follow(follower)
    assert gone["phase"] == "gone"
    assert gone["totals"] == before["totals"]
    (tmp_path / "away").rename(place)
    assert follow(follower)["phase"] == "finished"
    shutil.rmtree(place)
    follow(follower)
    sample(place, trials=3, confirm=0)  # another sweep in its place
    assert follow(follower)["totals"]["target"] == 12


def test_no_sweep_and_one_that_is_about_to_begin(tmp_path):
    with pytest.raises(SweepError, match=r"no sweep\.yaml there"):
        SweepFollower(tmp_path)
    own(tmp_path)
    mark = tmp_path / "owner.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"pid": 2**22 + 1}))
    with pytest.raises(SweepError, match=r"no sweep\.yaml there"):
        SweepFollower(tmp_path)  # killed before it had begun
    own(tmp_path)
    follower = SweepFollower(tmp_path)
    found = follow(follower)
    assert found["phase"] == "waiting"
    assert "Waiting for the sweep to begin" in found["words"]
    sample(tmp_path, trials=3, confirm=0, killed_after=0)
    found = follow(follower)
    assert found["totals"]["ended"] == 0


def test_half_a_record_is_named_and_the_rest_goes_on(ended, tmp_path):
    place = tmp_path / "sweep"
    shutil.copytree(ended, place)
    path = place / "trials/bottle/padim/00004.json"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    (place / "trials/screw/padim/00005.json").write_bytes(b"")
    follower = SweepFollower(place)
    found = follow(follower)
    assert found["unreadable"]["count"] == 1
    assert "00004.json: not a trial record" in found["unreadable"]["first"][0]
    assert found["totals"]["ended"] == 22
    path.unlink()
    path.write_bytes(content)
    found = follow(follower)
    assert found["unreadable"]["count"] == 0
    assert found["totals"]["ended"] == 23


def test_a_damaged_file_is_a_trouble_that_passes(ended, tmp_path):
    place = tmp_path / "sweep"
    shutil.copytree(ended, place)
    follower = SweepFollower(place)
    follow(follower)
    path = next(place.glob("scorings/*/*.json"))
    content = path.read_bytes()
    path.write_bytes(content[:20])
    record = next(place.glob("trials/*/*/*.json"))
    record.write_bytes(record.read_bytes())  # something has changed
    fresh = SweepFollower(place)
    list(fresh.poll())
    assert path.name in fresh.state.trouble
    assert "damaged; delete the file" in fresh.state.trouble
    path.write_bytes(content)
    list(fresh.poll())
    assert fresh.state.trouble is None


def test_a_record_that_is_deleted_and_done_again_is_counted_once(ended, tmp_path):
    place = tmp_path / "sweep"
    shutil.copytree(ended, place)
    follower = SweepFollower(place)
    before = follow(follower)
    (place / "trials/bottle/padim/00003.json").unlink()
    assert follow(follower)["totals"]["ended"] == 23
    shutil.copy(ended / "trials/bottle/padim/00003.json", place / "trials/bottle/padim/00003.json")
    after = follow(follower)
    assert after["totals"] == before["totals"]
    assert (
        after["categories"][0]["studies"][1]["seconds"]
        == (before["categories"][0]["studies"][1]["seconds"])
    )


def test_nothing_is_written(ended):
    def files():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in ended.rglob("*")}

    before = files()
    follower = SweepFollower(ended)
    for _ in range(3):
        follow(follower)
    assert files() == before


def test_the_picture_is_bounded(tmp_path):
    """Of many failures, running trials and studies it shows some and counts all."""
    sample(tmp_path, trials=4, confirm=0, killed_after=3)
    store = RecordStore(Storage(tmp_path))
    record = next(iter(store.read_all().values()))[0]
    for number in range(10, 400):
        failed = record.model_copy(
            update={"number": number, "state": "FAIL", "curve": [], "error": f"{number}" * 500}
        )
        store.write(failed)
    for number in range(400, 500):
        store.write(record.model_copy(update={"number": number, "state": "RUNNING", "curve": []}))
    own(tmp_path, since="2026-01-01T00:00:00+00:00")
    follower = SweepFollower(tmp_path)
    found = follow(follower)
    assert found["failures"]["count"] == 390
    assert sum(len(study.trials) for study in follower.state.studies.values()) < 130
    assert len(found["failures"]["reasons"]) == 8
    assert len(found["failures"]["latest"]) == 12
    assert len(found["running"]) == 40
    assert found["totals"]["running"] >= 100
    assert len(json.dumps(found)) < 30_000
    assert math.isfinite(found["categories"][0]["studies"][0]["target"])


def test_pictures_of_confirmed_detectors(ended):
    follower = SweepFollower(ended)
    found = follow(follower)
    assert [sheet["rank"] for sheet in found["sheets"]] == [1, 1, 2, 2]
    for entry, run in sheets(follower.state):
        assert run.seed == 1  # the one whose detector is kept
        assert follower.store.read_examples(run)
        assert len(entry["examples"]) == 5


def test_more_trials_are_asked_for(ended, tmp_path):
    place = tmp_path / "sweep"
    shutil.copytree(ended, place)
    follower = SweepFollower(place)
    follow(follower)
    config, store = read_sweep(place)
    write_config(store.storage, config.model_copy(update={"trials": 10}))
    found = follow(follower)
    assert (found["totals"]["ended"], found["totals"]["target"]) == (24, 40)
    assert found["phase"] == "stopped"
