"""`--quiet` and `--json`: one mechanism for every command."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime

import pytest
from PIL import Image
from rich.console import Console

from anomtune.cli import main as cli
from anomtune.cli.bars import Bars
from anomtune.cli.events import JsonEvents
from anomtune.cli.output import write_rows
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.events import (
    ConfirmEnded,
    Note,
    RungReached,
    SweepEnded,
    SweepStarted,
    TrialEnded,
)
from anomtune.search.store.records import StudyKey
from tests.conftest import draw_category
from tests.search.toy_models import save_toy


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("command", [command.__name__ for command in cli._COMMANDS])
def test_every_command_has_quiet_and_those_with_rows_json(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--quiet" in out
    assert ("--json" in out) == (command in {c.__name__ for c in cli._WITH_ROWS})


def test_rows_are_json_without_what_json_has_not(capsys):
    when = datetime(2026, 1, 2, tzinfo=UTC)
    write_rows([{"a": math.nan, "b": [math.inf, 1.5], "c": {"d": when}, "e": ("ü", None, True)}])
    assert capsys.readouterr().out == (
        '{"a": null, "b": [null, 1.5], "c": {"d": "2026-01-02T00:00:00+00:00"}, '
        '"e": ["\\u00fc", null, true]}\n'
    )


def test_methods_and_datasets(run):
    code, out, err = run("methods", "padim", "--json")
    assert (code, err) == (0, "")
    found = {row["hyperparameter"]: row for row in rows(out)}
    assert set(found["backbone"]) == {
        *("method", "hyperparameter", "default", "searched", "meaning")
    }
    assert isinstance(found["scoring.sigma"]["default"], float)  # a number, not its text
    assert found["backbone"]["method"] == "padim"
    code, out, _ = run("datasets", "--json")
    (folder,) = (row for row in rows(out) if row["dataset"] == "folder")
    assert "folder" in folder["reads"].lower()


def test_audit(run, tmp_path):
    place = draw_category(tmp_path / "plate")
    Image.new("RGB", (8, 8)).save(place / "test/spot/000.png")
    (place / "test/spot/001.png").write_text("no image")
    code, out, err = run("audit", "folder", place, "--json")
    assert (code, err) == (2, "")
    kinds = [row["row"] for row in rows(out)]
    assert kinds[0] == "category"
    assert set(kinds[1:]) == {"problem"}
    assert rows(out)[0]["category"] == "plate"
    assert any("001.png" in row["key"] and row["fatal"] for row in rows(out)[1:])


def test_cache(run):
    code, out, _ = run("cache", "--json")
    assert code == 0
    *kinds, whole = rows(out)
    assert whole["row"] == "cache"
    assert whole["bytes"] == sum(row["bytes"] for row in kinds)


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_data):
    return save_toy(toy_data, tmp_path_factory.mktemp("models") / "plate")


def test_predict(run, model, tmp_path):
    images = tmp_path / "new"
    images.mkdir()
    Image.new("RGB", (40, 30), (250, 250, 250)).save(images / "a.png")
    (images / "b.png").write_text("no image")
    (images / "readme.txt").write_text("passed over")
    code, out, err = run("predict", model, images, "--out", tmp_path / "out", "--json")
    assert (code, err) == (1, "")
    good, bad = rows(out)
    written = json.loads((tmp_path / "out/scores.json").read_text())
    assert good == {"row": "image", "threshold": written["threshold"], **written["images"][0]}
    assert bad == {"row": "unreadable", **written["unreadable"][0]}

    code, out, err = run("predict", model, images, "--out", tmp_path / "out", "--quiet")
    assert code == 1
    assert "1 images scored" in out
    assert "passed over" not in err
    assert "b.png" in err  # an error is no note
    assert "passed over" in run("predict", model, images, "--out", tmp_path / "out")[2]


def test_what_is_wrong_is_one_plain_line_in_every_form(run, tmp_path):
    for option in ("--json", "--quiet"):
        code, out, err = run("leaderboard", tmp_path, option)
        assert (code, out) == (2, "")
        assert err.startswith("anomtune: ")
        assert err.count("\n") == 1
    code, _, err = run("leaderboard", tmp_path, "--json")
    assert "no sweep.yaml there" in err


def studies() -> tuple[StudyProgress, ...]:
    return tuple(
        StudyProgress(StudyKey("plate", name), target=4, complete=1, best=best)
        for name, best in (("a", 0.8), ("b", None))
    )


def test_events_of_a_sweep():
    found: list[dict] = []
    events = JsonEvents(lambda row: found.append(dict(row)))
    for event in (
        Note("reading plate"),
        SweepStarted(2, studies(), 60.0),
        RungReached("plate", "b", 1, 1, 0.99),
        TrialEnded("plate", "b", 1, "COMPLETE", auroc=0.8),  # as good as the earlier start's best
        TrialEnded("plate", "b", 2, "COMPLETE", auroc=0.9),
        TrialEnded("plate", "a", 2, "PRUNED"),
        TrialEnded("plate", "a", 3, "COMPLETE", auroc=0.85),
        TrialEnded("ring", "a", 0, "FAIL", error="x"),
        ConfirmEnded("plate", "b", 2, 11, "COMPLETE", auroc=0.88),
        SweepEnded(),
    ):
        events(event)
    events.write("finished", directory="d", exit_code=0)
    assert [row["event"] for row in found] == [
        *("note", "sweep_started", "rung_reached"),
        *("trial_ended", "trial_ended", "leader", "trial_ended", "trial_ended", "trial_ended"),
        *("confirm_ended", "finished"),
    ]
    leader = next(row for row in found if row["event"] == "leader")
    del leader["time"]
    assert leader == {
        **{"event": "leader", "category": "plate", "method": "b", "number": 2, "auroc": 0.9}
    }
    told = {"category": "plate", "method": "a", "target": 4, "complete": 1, "best": 0.8}
    assert told.items() <= found[1]["studies"][0].items()
    write_rows(found)  # all of it is JSON


def test_bars_are_drawn_on_a_terminal_and_are_gone_at_the_end():
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=80))
    bars("reading [b]plate[/b]", 0, 3)
    bars("reading [b]plate[/b]", 2, 3)
    assert bars._progress is not None
    bars._progress.refresh()
    bars("reading [b]plate[/b]", 3, 3)
    assert bars._progress is None
    assert "reading [b]plate[/b]" in stream.getvalue()
    assert "2/3" in stream.getvalue()


@pytest.mark.parametrize(
    "console",
    [
        Console(file=io.StringIO(), force_terminal=False),
        Console(file=io.StringIO(), force_terminal=True, quiet=True),
    ],
)
def test_bars_are_drawn_nowhere_else(console):
    bars = Bars(console)
    bars("reading", 0, 3)
    assert bars._progress is None
    assert console.file.getvalue() == ""
