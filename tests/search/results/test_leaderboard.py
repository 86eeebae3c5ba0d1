"""The leaderboard from records alone: ranks, ties, gain, and rows for studies without a result."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.console import Console

from anomtune.cli.tables import leaderboard_note, leaderboard_table
from anomtune.search.config import load_sweep
from anomtune.search.results.leaderboard import compile_leaderboard, compile_trials, write_tables
from anomtune.search.store.records import Cost, Facts, RecordStore, Rung, TrialRecord, npy_bytes
from anomtune.search.store.storage import Storage

LABELS = np.repeat([0, 1], 40).astype(np.int8)


def write_trial(store, method, number, auroc, scores=None, state="COMPLETE"):
    record = TrialRecord(
        dataset="folder",
        category="plate",
        method=method,
        number=number,
        state=state,
        params={"lr": 0.1 * number},
        seed=0,
        split_hash="abc",
        curve=[Rung(step=1, auroc=auroc, auroc_low=auroc / 2, auroc_high=1, loss=1)],
        facts=Facts(n_val_normal=40, n_val_anomalous=40, parameters=7, score_rule="max"),
        cost=Cost(train_seconds=1, finished_at=f"2026-01-01T00:00:0{number}+00:00"),
    )
    store.write(record)
    if scores is not None:
        store.storage.write(f"{record.path}.npy", npy_bytes(scores.astype(np.float32)))


@pytest.fixture
def board(tmp_path, make_sweep):
    """Four methods: a winner, one that ties with it, one clearly worse, one that only fails."""
    store = RecordStore(Storage(tmp_path))
    generator = np.random.default_rng(0)
    good = LABELS + 0.4 * generator.normal(size=80)
    near = good + 0.05 * generator.normal(size=80)
    poor = LABELS + 4 * generator.normal(size=80)
    write_trial(store, "a", 0, 0.90, good)
    write_trial(store, "a", 1, 0.99, good)
    write_trial(store, "a", 2, 0.99, good)
    write_trial(store, "a", 3, 0.999, good, state="PRUNED")
    write_trial(store, "b", 0, 0.98, near)
    write_trial(store, "c", 1, 0.60, poor)
    write_trial(store, "c", 0, 0.40, poor, state="FAIL")
    write_trial(store, "d", 0, 0.97, state="FAIL")
    store.write_labels("plate", LABELS)
    store.write_test_counts({"plate": (5, 6)})
    config = make_sweep(
        methods={name: {} for name in "dcba"},
        dataset={"name": "folder", "categories": ["plate"]},
    )
    return config, store, compile_leaderboard(config, store)


def test_rows(board):
    rows = board[2].to_pylist()
    assert [(row["method"], row["rank"], row["tied"]) for row in rows] == [
        ("a", 1, True),
        ("b", 2, True),
        ("c", 3, False),
        ("d", 4, None),
    ]
    first, _, third, last = rows
    assert first["trial_number"] == 1  # the earliest of equals; a pruned trial is no candidate
    assert first["gain"] == pytest.approx(0.09)
    assert (first["trials"], first["completed"], first["pruned"]) == (4, 3, 1)
    assert (first["n_test_normal"], first["n_test_anomalous"]) == (5, 6)
    assert first["created_at"].isoformat() == "2026-01-01T00:00:03+00:00"
    assert third["default_val_auroc"] is None
    assert third["gain"] is None
    assert last["val_auroc"] is None
    assert last["params"] is None
    assert last["failed"] == 1


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
    console = Console(width=120)
    with console.capture() as shown:
        console.print(leaderboard_table(board[2]))
    text = shown.get()
    assert "=1  a" in text
    assert "0.990" in text
    assert "4 (1 pruned)" in text
    assert "nan" not in text.lower()
    assert "None" not in text
    assert "= :" in leaderboard_note(board[2])


def test_the_demo_sweep_fits_the_schema():
    config = load_sweep(None)
    assert config.dataset.name == "synthetic"
    assert set(config.methods) == {"rd4ad", "recontrast"}
