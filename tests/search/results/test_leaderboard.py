"""The leaderboard from records alone: ranks, ties, gain, and rows for studies without a result."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from anomtune.cli.tables import leaderboard_note, leaderboard_table
from anomtune.search.config import load_sweep, parse_sweep
from anomtune.search.metrics.image import auroc as area_of
from anomtune.search.results.leaderboard import compile_leaderboard, compile_trials, write_tables
from anomtune.search.store.arrays import npz_bytes
from anomtune.search.store.judged import Judged
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, Cost, Facts, Rung, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage
from tests.search.conftest import sweep_dict

LABELS = np.repeat([0, 1], 40).astype(np.int8)
SEEDS = (1, 11, 111)
FACTS = Facts(n_val_normal=40, n_val_anomalous=40, parameters=7)


def write_trial(store, method, number, scores=None, auroc=0.97, state="COMPLETE"):
    """Writes a trial with the AUROC of its scores, or a given one."""
    value = auroc if scores is None else area_of(LABELS, scores).value
    record = TrialRecord(
        dataset="folder",
        category="plate",
        method=method,
        number=number,
        state=state,
        params={"lr": 0.1 * number},
        seed=0,
        split_hash="abc",
        curve=[Rung(step=1, auroc=value, auroc_low=value / 2, auroc_high=1, loss=1)],
        facts=FACTS,
        cost=Cost(train_seconds=1, finished_at=f"2026-01-01T00:00:0{number}+00:00"),
    )
    store.write(record)
    if scores is not None:
        store.storage.write(f"{record.path}.npz", kept(scores))
    return value


def kept(scores):
    """What a run keeps of its validation scores."""
    return npz_bytes(scorings=np.zeros(1, np.int64), validation=scores[None])


def write_run(store, method, seed, scores, number=0, **changes):
    """Writes a confirm run with the AUROC of its scores, or what is given."""
    record = ConfirmRecord(
        **{
            "dataset": "folder",
            "category": "plate",
            "method": method,
            "number": number,
            "seed": seed,
            "state": "COMPLETE",
            "params": {"lr": 0.1 * number},
            "split_hash": "abc",
            "val_auroc": area_of(LABELS, scores).value,
            "facts": FACTS,
        }
        | changes
    )
    store.write(record)
    store.storage.write(f"{record.path}.npz", kept(scores))
    return record


def noisy(distance, noise, seed):
    """Scores of images whose difficulty is the same for all, with noise of one training."""
    difficulty = np.random.default_rng(99).normal(size=80)
    own = noise * np.random.default_rng(seed).normal(size=80)
    return (distance * LABELS + difficulty + own).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    store = RecordStore(Storage(tmp_path))
    store.write_labels("plate", LABELS)
    store.write_test_counts({"plate": (5, 6)})
    return store


@pytest.fixture
def compiled(store, make_sweep):
    """Compiles the leaderboard of methods; each row as (method, rank, tied, ranked by)."""

    def compile_rows(*methods, seeds=SEEDS):
        config = make_sweep(
            methods={name: {} for name in methods},
            dataset={"name": "folder", "categories": ["plate"]},
            confirm={"top": 1, "seeds": list(seeds)} if seeds else 0,
        )
        return compile_leaderboard(config, store)

    return compile_rows


def standing(table):
    return [
        (row["method"], row["rank"], row["tied"], row["ranked_by"]) for row in table.to_pylist()
    ]


@pytest.fixture
def board(store, make_sweep):
    """Four methods: a winner, one that ties with it, one clearly worse, one that only fails."""
    write_trial(store, "a", 0, noisy(2.0, 0.1, 0))
    write_trial(store, "a", 1, noisy(3.0, 0.1, 1))
    write_trial(store, "a", 2, noisy(3.0, 0.1, 1))
    write_trial(store, "a", 3, noisy(9.0, 0.1, 1), state="PRUNED")
    write_trial(store, "b", 0, noisy(2.6, 0.1, 2))
    write_trial(store, "c", 1, noisy(0.3, 0.1, 3))
    write_trial(store, "c", 0, state="FAIL")
    write_trial(store, "d", 0, state="FAIL")
    config = make_sweep(
        methods={name: {} for name in "dcba"},
        dataset={"name": "folder", "categories": ["plate"]},
    )
    return config, store, compile_leaderboard(config, store)


def test_rows(board):
    # Whether c would be worse with another seed too, its single training does not say.
    assert standing(board[2]) == [
        ("a", 1, True, "search"),
        ("b", 2, True, "search"),
        ("c", 3, None, "search"),
        ("d", 4, None, None),
    ]
    first, _, third, last = board[2].to_pylist()
    assert first["trial_number"] == 1  # the earliest of equals; a pruned trial is no candidate
    value = area_of(LABELS, noisy(3.0, 0.1, 1)).value
    assert first["val_auroc"] == value
    assert first["gain"] == pytest.approx(value - area_of(LABELS, noisy(2.0, 0.1, 0)).value)
    assert (first["trials"], first["completed"], first["pruned"]) == (4, 3, 1)
    assert (first["n_test_normal"], first["n_test_anomalous"]) == (5, 6)
    assert first["created_at"].isoformat() == "2026-01-01T00:00:03+00:00"
    assert first["confirmed_auroc_low"] is None
    assert third["default_val_auroc"] is None
    assert third["gain"] is None
    assert last["val_auroc"] is None
    assert last["params"] is None
    assert last["failed"] == 1


def test_what_ranks_is_what_is_tested(store, compiled):
    """The search's scores favour b by far, the seeds do not: nothing may be told from them."""
    write_trial(store, "a", 0, noisy(0.5, 0.1, 0))
    write_trial(store, "b", 0, noisy(4.0, 0.1, 1))
    for seed in SEEDS:
        write_run(store, "a", seed, noisy(2.1, 0.2, seed))
        write_run(store, "b", seed, noisy(2.0, 0.2, seed + 1))
    board = compiled("b", "a")
    assert standing(board) == [("a", 1, True, "confirmed"), ("b", 2, True, "confirmed")]
    first, second = board.to_pylist()
    assert first["val_auroc"] < second["val_auroc"]
    # The interval is that of the mean over the seeds, from their scores.
    area = area_of(LABELS, np.stack([noisy(2.1, 0.2, seed) for seed in SEEDS]))
    assert (first["confirmed_auroc_low"], first["confirmed_auroc_high"]) == (area.low, area.high)
    assert first["confirmed_auroc_low"] < first["confirmed_auroc_mean"]
    assert first["confirmed_auroc_mean"] == pytest.approx(area.value)


def test_seeds_can_tell_configs_apart_or_blur_them(store, compiled):
    for method, distances in {
        "a": (3, 3.1, 2.9),
        "b": (0.8, 0.9, 0.7),
        "c": (0.2, 1.2, 3.5),
    }.items():
        write_trial(store, method, 0, noisy(2, 0.1, 0))
        for seed, distance in zip(SEEDS, distances, strict=True):
            write_run(store, method, seed, noisy(distance, 0.1, seed))
    assert standing(compiled("c", "b", "a")) == [
        ("a", 1, True, "confirmed"),
        ("c", 2, True, "confirmed"),  # a far lower mean, but of seeds that are far apart
        ("b", 3, False, "confirmed"),
    ]


#: No neighbours: they differ in two fields.
_TWO_SCORINGS = [{"sigma": 4.0, "reduce": "max"}, {"sigma": 0.0, "reduce": "top"}]


def test_what_a_scoring_may_have_won_by_chance_ranks_no_method(store, compiled):
    for method, values, error in (("a", [0.9, 0.95], 0.1), ("b", [0.93, 0.94], 0.005)):
        write_trial(store, method, 0)
        store.write_scorings(StudyKey("plate", method), _TWO_SCORINGS)
        record = store.read_trials(StudyKey("plate", method))[0]
        known = [np.array(part) for part in (values, [0.5] * 2, [1.0] * 2, [0.0, error])]
        record.curve[0].judged = Judged.of(LABELS, *known)
        record.curve[0].auroc = values[0]
        store.write(record)
    first, second = compiled("a", "b", seeds=()).to_pylist()
    assert (first["method"], first["val_auroc"]) == ("b", pytest.approx(0.94))
    assert (second["method"], second["val_auroc"]) == ("a", pytest.approx(0.95))
    # Of a single training twice the standard error.
    assert (first["scoring_error"], second["scoring_error"]) == pytest.approx((0.01, 0.2))


def test_below_by_that_alone_is_not_told_apart(store, compiled):
    """The row below has the higher mean, and the paired test would tell the two apart."""
    scores = {"a": noisy(3.0, 0.1, 1), "b": noisy(1.2, 0.1, 3)}
    for method, own in scores.items():
        write_trial(store, method, 0, own)
        for seed in SEEDS:
            write_run(store, method, seed, own)
    assert standing(compiled("b", "a"))[1][2] is False
    key = StudyKey("plate", "a")
    store.write_scorings(key, _TWO_SCORINGS)
    record = store.read_trials(key)[0]
    value = record.curve[0].auroc
    known = [np.array(part) for part in ([0.4, value], [0.4] * 2, [1.0] * 2, [0.0, 0.6])]
    record.curve[0].judged = Judged.of(LABELS, *known)
    record.curve[0].auroc = 0.4
    store.write(record)
    params = {"lr": 0.0, "scoring": _TWO_SCORINGS[1]}
    for seed in SEEDS:
        write_run(store, "a", seed, scores["a"], params=params)
    assert standing(compiled("b", "a")) == [
        ("b", 1, True, "confirmed"),
        ("a", 2, True, "confirmed"),
    ]


def test_equal_scores_are_tied(store, compiled):
    for method in "ab":
        write_trial(store, method, 0, noisy(2, 0.1, 0))
        for seed in SEEDS:
            write_run(store, method, seed, noisy(2, 0.1, seed))
    assert [row[2] for row in standing(compiled("a", "b"))] == [True, True]


def test_a_single_seed_says_nothing_of_others(store, compiled):
    for method, distance in {"a": 3, "b": 0.5}.items():
        write_trial(store, method, 0, noisy(distance, 0.1, 0))
        write_run(store, method, 1, noisy(distance, 0.1, 1))
    assert standing(compiled("a", "b", seeds=[1])) == [
        ("a", 1, None, "confirmed"),
        ("b", 2, None, "confirmed"),
    ]


def test_without_confirm_runs_a_row_comes_after_those_with(store, compiled):
    """Its figure is the best of many trials of one seed; every confirm run of b has failed."""
    write_trial(store, "a", 0, noisy(1, 0.1, 0))
    write_trial(store, "b", 0, noisy(4, 0.1, 1))
    write_trial(store, "c", 0, noisy(3, 0.1, 1))
    write_trial(store, "d", 0, state="FAIL")
    for seed in SEEDS:
        write_run(store, "a", seed, noisy(1, 0.1, seed))
        write_run(
            store, "b", seed, noisy(4, 0.1, seed), state="FAIL", val_auroc=None, error="broken"
        )
    for seed in SEEDS[:2]:  # one is missing
        write_run(store, "c", seed, noisy(3, 0.1, seed))
    board = compiled("d", "c", "b", "a")
    assert standing(board) == [
        ("a", 1, None, "confirmed"),
        ("b", 2, None, "search"),
        ("c", 3, None, "search"),
        ("d", 4, None, None),
    ]
    assert board["confirmed_auroc_low"].to_pylist()[1:] == [None, None, None]
    shown = text_of(board)
    assert "95 % interval" in shown
    assert "confirmed 95 %" in shown
    assert "not confirmed (-) come last, ranked by the search" in leaderboard_note(board)
    assert "Unmarked rows may be as good" in leaderboard_note(board)


@pytest.mark.parametrize("damage", ["missing", "half", "short", "nan", "of another training"])
def test_without_the_scores_of_a_seed_nothing_is_said(store, compiled, damage):
    for method, distance in {"a": 3, "b": 0.5}.items():
        write_trial(store, method, 0, noisy(distance, 0.1, 0))
        for seed in SEEDS:
            run = write_run(store, method, seed, noisy(distance, 0.1, seed))
    assert [row[2] for row in standing(compiled("a", "b"))] == [False, False]
    good = noisy(0.5, 0.1, SEEDS[-1])
    content = {
        "missing": b"",
        "half": kept(good)[:-9],
        "short": kept(good[1:]),
        "nan": kept(np.full_like(good, np.nan)),
        "of another training": kept(noisy(5, 0.1, 7)),
    }[damage]
    store.storage.write(f"{run.path}.npz", content)
    board = compiled("a", "b")
    assert standing(board) == [("a", 1, None, "confirmed"), ("b", 2, None, "confirmed")]
    first, second = board.to_pylist()
    assert first["confirmed_auroc_low"] is not None
    assert (second["confirmed_auroc_low"], second["confirmed_auroc_high"]) == (None, None)
    assert "None" not in text_of(board)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 4), min_size=2, max_size=4), st.integers(0, 1000), st.booleans())
def test_told_apart_is_worse_on_the_tested_scores(distances, luck, confirms):
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(Storage(folder))
        store.write_labels("plate", LABELS)
        tested = {}
        for index, distance in enumerate(distances):
            name = f"m{index}"
            # What the search saw is unrelated to what the seeds gave.
            write_trial(store, name, 0, noisy((7 * distance + luck) % 4, 0.5, luck + index))
            runs = [noisy(distance, 0.8, luck + 10 * index + seed) for seed in SEEDS]
            if confirms or index:
                for seed, scores in zip(SEEDS, runs, strict=True):
                    write_run(store, name, seed, scores)
                tested[name] = np.mean([area_of(LABELS, scores).value for scores in runs])
        config = parse_sweep(
            sweep_dict(
                methods={f"m{index}": {} for index in range(len(distances))},
                dataset={"name": "folder", "root": "/nowhere", "categories": ["plate"]},
                confirm={"top": 1, "seeds": SEEDS},
            ),
            "test",
        )
        first, *others = compile_leaderboard(config, store).to_pylist()
        for row in others:
            if row["tied"] is False:
                assert tested[row["method"]] < tested[first["method"]]
            if row["method"] not in tested:
                assert row["tied"] is None


def text_of(board):
    console = Console(width=200)
    with console.capture() as shown:
        console.print(leaderboard_table(board))
    return shown.get()


def test_no_figure_is_nan(board):
    for row in board[2].to_pylist():
        for name, value in row.items():
            assert not (isinstance(value, float) and math.isnan(value)), name


def test_tables_are_the_same_bytes_again(board, tmp_path):
    config, store, _ = board
    write_tables(config, store)
    first = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("leaderboard", "trials")]
    write_tables(config, store)
    second = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("leaderboard", "trials")]
    assert first == second
    trials = compile_trials(config, [r for study in store.read_all().values() for r in study])
    assert trials.num_rows == 8


def test_the_table_for_people(board):
    text = text_of(board[2])
    assert "=1  a" in text
    assert f"{board[2]['val_auroc'][0].as_py():.3f}" in text
    assert "confirmed" not in text + leaderboard_note(board[2])
    assert "4 (1 pruned)" in text
    assert "nan" not in text.lower()
    assert "None" not in text
    assert "= :" in leaderboard_note(board[2])


def test_the_demo_sweep_fits_the_schema():
    config = load_sweep(None)
    assert config.dataset.name == "synthetic"
    assert set(config.methods) == {"patchcore", "padim", "rd4ad", "recontrast"}
