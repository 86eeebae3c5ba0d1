"""What the report concludes, in words."""

from __future__ import annotations

import pytest

from anomtune.search.decide.progress import StudyProgress
from anomtune.search.report.search_figures import (
    short,
)
from anomtune.search.report.verdict import (
    judge,
    milliseconds,
)
from anomtune.search.results.columns import leaderboard_columns
from anomtune.search.results.figures import signed
from anomtune.search.store.records import StudyKey


def progress(ended=12, confirmed=6) -> list[StudyProgress]:
    """Returns how far a category of one study is that wants 12 trials and 6 confirm runs."""
    key = StudyKey("plate", "a")
    return [StudyProgress(key, 12, ended, confirmed=confirmed, confirm_target=6)]


DONE = progress()


def row(method="a", rank=1, **changes) -> dict:
    """Returns a row of the leaderboard: confirmed, alone at the top, better than the paper's."""
    blank = dict.fromkeys(column.name for column in leaderboard_columns())
    return (
        blank
        | {
            "category": "plate",
            "method": method,
            "rank": rank,
            "params": "{}",
            "trial_number": 3,
            "val_auroc": 0.949,
            "val_auroc_low": 0.834,
            "val_auroc_high": 0.986,
            "gain": 0.012,
            "scoring_gain": 0.005,
            "paper_scoring": False,
            "confirmed_auroc_mean": 0.94,
            "confirmed_auroc_std": 0.01,
            "confirmed_auroc_low": 0.85,
            "confirmed_auroc_high": 0.98,
            "ranked_by": "confirmed",
            "test_auroc_mean": 0.93,
            "test_auroc_std": 0.012,
            "default_test_auroc_mean": 0.924,
            "n_seeds": 3,
            "validation": "labelled",
            "trials": 12,
            "failed": 0,
            "image_ms": 15.2,
        }
        | changes
    )


UNCONFIRMED = dict.fromkeys(
    ("confirmed_auroc_mean", "confirmed_auroc_std", "confirmed_auroc_low", "confirmed_auroc_high",
     "test_auroc_mean", "test_auroc_std", "default_test_auroc_mean", "n_seeds")
) | {"ranked_by": "search"}  # fmt: skip
EMPTY = UNCONFIRMED | dict.fromkeys(
    ("ranked_by", "params", "trial_number", "val_auroc", "gain", "image_ms")
)


def said(rows, progress=DONE, tied_with_paper=None) -> str:
    return " ".join(judge(rows, progress, tied_with_paper).sentences)


def test_a_clear_winner():
    verdict = judge([row(), row("b", 2, tied=False)], DONE, tied_with_paper=False)
    assert verdict.method == "a"
    assert verdict.tied == ()
    assert verdict.sentences == (
        "a: validation AUROC 0.949 (0.834-0.986), 0.940 ± 0.010 (0.850-0.980) when retrained with "
        "3 seeds; held out 0.930 ± 0.012.",
        "+0.006 over the paper's own config on held-out images, more than chance (paired DeLong, "
        "5 %). On validation the scoring alone gives the paper's config +0.005, and other training "
        "+0.007 more.",
        "It can be told from every other method (paired DeLong, 5 %).",
    )
    assert [mark.kind for mark in verdict.marks] == ["good", "good"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [row(tied=True), row("b", 2, tied=True, image_ms=3.14), row("c", 3, tied=True)],
            "cannot tell it from b, c (paired DeLong, 5 %); the cheapest of them is b "
            "(3.1 ms/image)",
        ),
        (
            [row(tied=True, image_ms=0.5), row("b", 2, tied=True), row("c", 3, tied=False)],
            "cannot tell it from b (paired DeLong, 5 %); it is also the cheapest of them "
            "(0.50 ms/image)",
        ),
        ([row(image_ms=None), row("b", 2, tied=True, image_ms=None)], "it from b (paired DeLong"),
        (
            [row(), row("b", 2, tied=None)],
            "Whether it can be told from b is not known (scores of a training are missing).",
        ),
        (
            [row(), row("b", 2, tied=False), row("c", 3, tied=None, **UNCONFIRMED)],
            "told from the others (paired DeLong, 5 %). Whether it can be told from c is not known "
            "(not confirmed).",
        ),
        (
            [row(**UNCONFIRMED), row("b", 2, **UNCONFIRMED), row("c", 3, tied=True, **UNCONFIRMED)],
            "These images cannot tell it from c (paired DeLong, 5 %); it is also the cheapest of "
            "them (15 ms/image). Whether it can be told from b is not known (one training of each, "
            "or its scores are missing).",
        ),
        ([row()], "the only method of the sweep"),
        ([row(), row("b", 2, **EMPTY)], "No other method has a completed trial."),
    ],
)  # fmt: skip
def test_against_the_other_methods(rows, expected):
    assert expected in said(rows)


@pytest.mark.parametrize(
    ("changes", "tied", "expected"),
    [
        ({}, True, "too little for these images to tell the two apart"),
        ({}, False, "on held-out images, more than chance (paired DeLong, 5 %)"),
        ({}, None, "on held-out images; whether that is more than chance is not known."),
        ({"test_auroc_mean": 0.92}, True, "Not better than the paper's own config on held"),
        ({"test_auroc_mean": 0.924}, None, "Not better than the paper's own config on held"),
        ({"trial_number": 0, "paper_scoring": True}, None, "It is the paper's own config"),
        ({"trial_number": 0, "paper_scoring": False}, None, "training is the paper's, its scoring"),
        ({"paper_scoring": True}, None, "Its scoring is the paper's, its training is not."),
        ({}, None, "the scoring alone gives the paper's config +0.005, and other training +0.007"),
        ({"default_test_auroc_mean": None}, None, "own config is not confirmed"),
        (UNCONFIRMED, None, "+0.012 over the paper's own config on validation, which flatters"),
        (UNCONFIRMED | {"gain": None}, None, "own config did not complete"),
    ],
)
def test_against_the_papers_config(changes, tied, expected):
    assert expected in said([row(**changes)], tied_with_paper=tied)


def test_what_the_accuracy_rests_on():
    assert "Nothing is confirmed" in said([row(**UNCONFIRMED)])
    optimistic = said([row(**UNCONFIRMED, validation="test")])
    assert "optimistic" in optimistic
    assert "Nothing is confirmed" not in optimistic
    assert "no held-out images of both kinds" in said([row(test_auroc_mean=None)])
    assert "± " not in said([row(n_seeds=1, confirmed_auroc_std=None, test_auroc_std=None)])
    assert "with 1 seed;" in said([row(n_seeds=1)])


def test_failures_and_what_is_not_finished():
    rows = [row(), row("b", 2, tied=False, failed=3), row("c", 3, **EMPTY, failed=12)]
    assert "15 of 36 trials failed (b 3, c 12). c has no completed trial." in said(rows)
    only = judge([row(**EMPTY, failed=12)], DONE)
    assert only.method is None
    assert "every one of the 12 trials failed" in only.sentences[0]
    pruned = judge([row(**EMPTY, failed=2)], DONE)
    assert pruned.sentences == ("No method has a completed trial. 2 of 12 trials failed.",)
    started = judge([row(**EMPTY, trials=0)], progress(0, 0))
    assert "no completed trial yet" in " ".join(mark.text for mark in started.marks)
    assert "0 of 12 trials done" in " ".join(started.sentences)
    assert "5 of 6 confirm runs done" in said([row()], progress(confirmed=5))


def test_numbers_in_words():
    assert signed(-0.0004) == "+0.000"
    assert signed(-0.0006) == "-0.001"
    assert [short(v) for v in (0.00123, 166.4, 25_000.0, 3e7, "max", 5)] == [
        "0.00123", "166", "25000", "3e+07", "max", "5",
    ]  # fmt: skip
    assert [milliseconds(value) for value in (0.4231, 3.14, 9.96, 151.7)] == [
        "0.42",
        "3.1",
        "10",
        "152",
    ]
