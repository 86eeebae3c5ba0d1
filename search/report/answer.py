"""The first screen: which detector, how good, how sure, what next; a line per category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomtune.search.config import ConfirmConfig, Sweep
from anomtune.search.report.accuracy_figures import ranked_interval, ranked_value
from anomtune.search.report.evidence import CategoryEvidence
from anomtune.search.report.more_images import MoreImages
from anomtune.search.report.operating import Operating
from anomtune.search.report.verdict import is_finished, milliseconds
from anomtune.search.results.column import Row
from anomtune.search.results.figures import figure, interval

#: Width of an interval from which more images are worth more than anything else.
_WIDE = 0.15
TOO_FEW = "Label more images: those held out are too few, or too alike, to say how good it is."
#: A tied method must cost at most this share of the first to be named in its place.
_CHEAPER = 0.8


@dataclass(frozen=True)
class Answer:
    """What one must know of a category.

    Attributes:
        category: Its name.
        method: The detector; ``None`` without a completed trial.
        auroc: How good it is.
        images: Of which images that is.
        sure: How sure: the interval, and what cannot be told from it.
        missed: Missed defects at the chosen threshold, if known.
        alarms: False alarms there.
        next: What to do.
    """

    category: str
    method: str | None
    auroc: str
    images: str
    sure: str
    missed: str
    alarms: str
    next: str


def answer(
    category: CategoryEvidence,
    config: Sweep,
    thresholds: Operating | None,
    more: MoreImages | None,
) -> Answer:
    """Returns the line of a category.

    Args:
        category: What is known of it.
        config: Of the sweep.
        thresholds: Of its detector on held-out images.
        more: What more images would buy.
    """
    study, verdict = category.studies[0], category.verdict
    row = study.row
    if verdict.method is None:
        return Answer(category.name, None, "", "", "", "", "", _without_result(category))
    if row["test_auroc_mean"] is not None:
        value, images, found = row["test_auroc_mean"], "held out", study.held_out
        ends = interval(found.low, found.high) if found else ""
    else:
        value, images = ranked_value(row), "validation: optimistic"
        ends = interval(*(ranked_interval(row) or (None, None)))
    sure = [ends] if ends else []
    if verdict.tied:
        sure.append(f"not to be told from {_some(verdict.tied)}")
    chosen = None if thresholds is None else thresholds.chosen
    return Answer(
        category=category.name,
        method=verdict.method,
        auroc=figure(value),
        images=images,
        sure="; ".join(sure),
        missed=f"{chosen.missed.number} of {chosen.missed.total}" if chosen else "",
        alarms=f"{chosen.alarms.number} of {chosen.alarms.total}" if chosen else "",
        next=_next(category, config, more),
    )


def _some(names: Sequence[str]) -> str:
    """Returns names, of many the first two."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} others"


def _without_result(category: CategoryEvidence) -> str:
    progress = [study.progress for study in category.studies]
    if not is_finished(progress):
        return "Let the sweep go on: no trial has completed yet."
    return "See under Studies why trials failed."


def _next(category: CategoryEvidence, config: Sweep, more: MoreImages | None) -> str:
    """Returns the one thing that helps most, in order of what would be wrong without it."""
    row = category.studies[0].row
    if missing := what_is_missing(category, config):
        return missing
    if more is None and (found := category.studies[0].held_out) and found.high - found.low > _WIDE:
        return TOO_FEW
    if more is not None and more.rows[0].width > _WIDE:
        now, then = more.rows[0], more.after(100)
        if more.seeds > now.width / 2:
            return (
                f"Confirm with more seeds: with {row['n_seeds']}, chance of training alone makes "
                f"the interval {more.seeds:.2f} wide."
            )
        return (
            f"Label more images: with 100 more the interval would be {then.width:.2f} wide, "
            f"not {now.width:.2f}."
        )
    if cheaper := _cheaper(category):
        return (
            f"Take {cheaper['method']} if time matters: {milliseconds(cheaper['image_ms'])} "
            f"instead of {milliseconds(row['image_ms'])} ms per image."
        )
    what = "Use it; set the threshold by what a missed defect costs."
    if category.kept is not None and category.kept.saved:
        what += f" It lies in models/{category.name}/{row['method']}."
    return what


def _unconfirmed(confirm: ConfirmConfig) -> str:
    """Returns what to do where a sweep has ended and nothing is confirmed."""
    if confirm.top:
        return "Give it more hours and run the same command: its budget ended before confirm runs."
    return "Set confirm.top to 1 or more and run the same command: nothing is held out."


def what_is_missing(category: CategoryEvidence, config: Sweep) -> str | None:
    """Returns what must be done before a held-out figure says anything; nothing if there is one."""
    row = category.studies[0].row
    if not is_finished(study.progress for study in category.studies):
        return "Let the sweep go on: it is not finished."
    if row["test_auroc_mean"] is not None:
        return None
    if config.validation.protocol == "test":
        return "Sweep with protocol labelled or synthetic: nothing is held out."
    if category.studies[0].progress.confirm_failed:
        return "Mend what made its confirm runs fail and run again: nothing is held out."
    if row["n_seeds"]:
        return "Add test images of both kinds: none are held out."
    return _unconfirmed(config.confirm)


def _cheaper(category: CategoryEvidence) -> Row | None:
    """Returns the cheapest method that is tied with the first and costs clearly less."""
    row = category.studies[0].row
    if row["image_ms"] is None:
        return None
    tied = [
        study.row
        for study in category.studies[1:]
        if study.row["tied"] and study.row["image_ms"] is not None
    ]
    cheapest = min(tied, key=lambda other: other["image_ms"], default=None)
    if cheapest is None or cheapest["image_ms"] > _CHEAPER * row["image_ms"]:
        return None
    return cheapest
