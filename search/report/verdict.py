"""What a sweep says of each category, in plain words: who is first, how sure, and what it costs.

Pure functions of the leaderboard's rows. They are as ready to say that nothing can be concluded
as to name a winner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from anomtune.search.decide.progress import StudyProgress
from anomtune.search.results.column import Row
from anomtune.search.results.figures import figure, interval, signed


@dataclass(frozen=True)
class Mark:
    """A finding in a few words; ``caution`` is what a hasty reader must not overlook."""

    kind: Literal["good", "caution", "plain"]
    text: str


#: A sentence, and the same at a glance where it is worth a mark.
Finding = tuple[str, Mark | None]

NOT_BETTER = Mark("caution", "not better than the paper's config")


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a category.

    Attributes:
        category: Its name.
        method: The method of rank 1, ``None`` without a completed trial.
        tied: The methods that cannot be told from it, in order of rank.
        sentences: Whole sentences, the most important first.
        marks: The same at a glance.
    """

    category: str
    method: str | None
    tied: tuple[str, ...]
    sentences: tuple[str, ...]
    marks: tuple[Mark, ...]


def judge(
    rows: Sequence[Row], progress: Sequence[StudyProgress], tied_with_paper: bool | None = None
) -> Verdict:
    """Returns the verdict on a category.

    Args:
        rows: Its rows of the leaderboard, in order of rank; at least one.
        progress: How far each of its studies is.
        tied_with_paper: Whether held-out images and seeds cannot tell the chosen config of rank 1
            from the paper's own (5 %); ``None`` where that is not known.
    """
    first = rows[0]
    tied: tuple[str, ...] = ()
    findings: list[Finding]
    if first["params"] is None:
        findings = [_nothing_completed(rows, finished=is_finished(progress))]
    else:
        tied = tuple(row["method"] for row in rows[1:] if row["tied"])
        findings = [
            _accuracy(first),
            _against_paper(first, tied_with_paper),
            _against_others(rows),
            *_failures(rows),
        ]
    findings += [*_failed_confirm_runs(progress), *_unfinished(progress)]
    return Verdict(
        category=first["category"],
        method=None if first["params"] is None else first["method"],
        tied=tied,
        sentences=tuple(sentence for sentence, _ in findings),
        marks=tuple(mark for _, mark in findings if mark is not None),
    )


def _nothing_completed(rows: Sequence[Row], *, finished: bool) -> Finding:
    failed, trials = (sum(row[name] for row in rows) for name in ("failed", "trials"))
    if failed and failed == trials:
        return (
            f"No method has a completed trial: every one of the {count(trials, 'trial')} failed. "
            "The studies below say why.",
            Mark("caution", "only failed trials"),
        )
    unhappy = f" {failed} of {count(trials, 'trial')} failed." if failed else ""
    if finished:
        return f"No method has a completed trial.{unhappy}", Mark("caution", "no completed trial")
    return (
        f"No method has a completed trial yet, so there is nothing to choose from.{unhappy}",
        Mark("plain", "no completed trial yet"),
    )


def _accuracy(row: Row) -> Finding:
    """How good the first is, and on which images that is known."""
    own = interval(row["val_auroc_low"], row["val_auroc_high"])
    sentence = f"{row['method']}: validation AUROC {figure(row['val_auroc'])} ({own})"
    if row["n_seeds"]:
        seeds = count(row["n_seeds"], "seed")
        sentence += f", {confirmed(row)} when retrained with {seeds}"
    if row["validation"] == "test":
        return (
            f"{sentence}. Validation is the whole test set (protocol test): the figure is "
            "optimistic, and there are no held-out images to check it on.",
            Mark("caution", "optimistic: validation = test"),
        )
    if not row["n_seeds"]:
        return (
            f"{sentence}. Nothing is confirmed: no held-out image has been looked at, and the "
            "figure is of the images that chose the config.",
            Mark("caution", "not confirmed"),
        )
    if row["test_auroc_mean"] is None:
        return (
            f"{sentence}. There are no held-out images of both kinds to check it on.",
            Mark("caution", "no held-out figure"),
        )
    return f"{sentence}; held out {spread(row, 'test_auroc')}.", None


def _against_paper(row: Row, tied: bool | None) -> Finding:
    """Whether the search was worth it: the chosen config against the paper's own."""
    if is_papers(row):
        return (
            "It is the paper's own config: the search found nothing better on validation.",
            Mark("plain", "the paper's own config"),
        )
    test, default = row["test_auroc_mean"], row["default_test_auroc_mean"]
    if test is not None and default is not None:
        sentence, mark = _gain(test - default, tied)
        return f"{sentence} {_parts(row)}".strip(), mark
    if test is not None:
        return "The paper's own config is not confirmed, so the gain over it is not known.", None
    if row["gain"] is None:
        return "The paper's own config did not complete, so the gain over it is not known.", None
    return (
        f"{signed(row['gain'])} over the paper's own config on validation, which flatters the "
        "config that it chose.",
        None,
    )


def is_papers(row: Row) -> bool:
    """Whether a row's config is the paper's own, trained and scored as it says."""
    return row["trial_number"] == 0 and bool(row["paper_scoring"])


def _parts(row: Row) -> str:
    """Says what training and what scoring have won on validation."""
    if row["gain"] is None or row["scoring_gain"] is None:
        return ""
    if row["trial_number"] == 0:
        return "Its training is the paper's, its scoring is not."
    if row["paper_scoring"]:
        return "Its scoring is the paper's, its training is not."
    scoring, training = row["scoring_gain"], row["gain"] - row["scoring_gain"]
    return (
        f"On validation the scoring alone gives the paper's config {signed(scoring)}, and other "
        f"training {signed(training)} more."
    )


def _gain(gain: float, tied: bool | None) -> Finding:
    """What the search has won on held-out images, and whether that is more than chance."""
    if round(gain, 3) <= 0:
        return (
            f"Not better than the paper's own config on held-out images ({signed(gain)}).",
            NOT_BETTER,
        )
    sentence = f"{signed(gain)} over the paper's own config on held-out images"
    good = Mark("good", f"{signed(gain)} over the paper's config")
    if tied is None:
        return f"{sentence}; whether that is more than chance is not known.", good
    if tied:
        return (
            f"{sentence}, but too little for these images to tell the two apart (paired "
            "DeLong, 5 %).",
            Mark("plain", f"{signed(gain)} over the paper's config, within chance"),
        )
    return f"{sentence}, more than chance (paired DeLong, 5 %).", good


def _against_others(rows: Sequence[Row]) -> Finding:
    """Which methods may be as good, and which of all these is the cheapest."""
    first, others = rows[0], [row for row in rows[1:] if row["params"] is not None]
    if not others:
        only = "It is the only method of the sweep."
        return only if len(rows) == 1 else "No other method has a completed trial.", None
    tied = [row for row in others if row["tied"]]
    unknown = [row for row in others if row["tied"] is None]
    note = _not_known(first, unknown)
    if not tied:
        if len(unknown) == len(others):
            return note.strip(), Mark("caution", "not compared by a test")
        rest = "every other method" if not note else "the others"
        return (
            f"It can be told from {rest} (paired DeLong, 5 %).{note}",
            Mark("good", "told from the others"),
        )
    names = _join([row["method"] for row in tied])
    what = "These images and seeds" if (first["n_seeds"] or 0) > 1 else "These images"
    sentence = f"{what} cannot tell it from {names} (paired DeLong, 5 %)"
    timed = [row for row in (first, *tied) if row["image_ms"] is not None]
    if timed:
        cheapest = min(timed, key=lambda row: row["image_ms"])
        cost = f"{milliseconds(cheapest['image_ms'])} ms/image"
        if cheapest is first:
            sentence += f"; it is also the cheapest of them ({cost})"
        else:
            sentence += f"; the cheapest of them is {cheapest['method']} ({cost})"
    return f"{sentence}.{note}", Mark("caution", f"tied with {count(len(tied), 'other')}")


def _not_known(first: Row, unknown: Sequence[Row]) -> str:
    """Says of which methods nothing is known against the first, and why."""
    by_reason: dict[str, list[str]] = {}
    for row in unknown:
        if row["ranked_by"] != first["ranked_by"]:
            reason = "not confirmed"
        elif (row["n_seeds"] or 1) == 1:
            reason = "one training of each, or its scores are missing"
        else:
            reason = "scores of a training are missing"
        by_reason.setdefault(reason, []).append(row["method"])
    return "".join(
        f" Whether it can be told from {_join(methods)} is not known ({reason})."
        for reason, methods in by_reason.items()
    )


def _failures(rows: Sequence[Row]) -> list[Finding]:
    failing = [row for row in rows if row["failed"]]
    if not failing:
        return []
    failed, trials = sum(row["failed"] for row in rows), sum(row["trials"] for row in rows)
    where = _join([f"{row['method']} {row['failed']}" for row in failing])
    sentence = f"{failed} of {count(trials, 'trial')} failed ({where})."
    useless = [row["method"] for row in failing if row["params"] is None]
    if useless:
        sentence += f" {_join(useless)} has no completed trial."
    return [(sentence, Mark("caution", f"{failed} failed"))]


def _failed_confirm_runs(progress: Sequence[StudyProgress]) -> list[Finding]:
    lost = [(study.key.method, study.failed_runs) for study in progress if study.failed_runs]
    if not lost:
        return []
    number = sum(study.confirm_failed for study in progress)
    sentence = " ".join(f"{method}: {what.rstrip('.')}." for method, what in lost)
    return [(sentence, Mark("caution", f"{count(number, 'confirm run')} failed"))]


def is_finished(progress: Iterable[StudyProgress]) -> bool:
    """Whether nothing of any study is left to do."""
    return all(study.owed == 0 for study in progress)


def _unfinished(progress: Sequence[StudyProgress]) -> list[Finding]:
    if is_finished(progress):
        return []
    ended, target = (sum(getattr(s, name) for s in progress) for name in ("ended", "target"))
    if ended < target:
        text = f"{ended} of {count(target, 'trial')}"
    else:
        runs = sum(study.confirm_target for study in progress)
        text = f"{sum(study.confirmed for study in progress)} of {count(runs, 'confirm run')}"
    return [
        (f"The sweep is not finished here: {text} done.", Mark("caution", "unfinished")),
    ]


def spread(row: Row, name: str) -> str:
    """Returns a mean over the seeds with its standard deviation, if there is one."""
    return f"{figure(row[f'{name}_mean'])} {deviation(row, name)}".strip()


def confirmed(row: Row) -> str:
    """Returns the confirmed AUROC with its deviation and its interval, if there are any."""
    ends = interval(row["confirmed_auroc_low"], row["confirmed_auroc_high"])
    return spread(row, "confirmed_auroc") + (f" ({ends})" if ends else "")


def deviation(row: Row, name: str) -> str:
    """Returns the standard deviation over the seeds; nothing if there is none."""
    std = row.get(f"{name}_std")
    return "" if std is None else f"± {std:.3f}"


def milliseconds(value: float) -> str:
    """Returns a time with the digits that matter: 0.42, 3.1, 15."""
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def count(number: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(names: Sequence[str]) -> str:
    return ", ".join(names)
