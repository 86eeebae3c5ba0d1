"""Where the gain over the paper's config comes from: scoring, or training.

Only what was measured: the search trains the paper's config with the paper's scoring and judges it
with the study's as well, and so does its confirm run on held-out images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from anomtune.search.report.evidence import CategoryEvidence, StudyEvidence
from anomtune.search.results.figures import figure, signed

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Parts:
    """AUROC of the paper's config, and what is added to it; ``None``: not measured."""

    paper: float | None
    scoring: float | None
    training: float | None
    chosen: float | None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The same for a table."""
        return (
            figure(self.paper) if self.paper is not None else NOT_MEASURED,
            signed(self.scoring) if self.scoring is not None else NOT_MEASURED,
            signed(self.training) if self.training is not None else NOT_MEASURED,
            figure(self.chosen) if self.chosen is not None else NOT_MEASURED,
        )


@dataclass(frozen=True)
class Gain:
    """The gain of the method of rank 1 of a category.

    Attributes:
        category: Its name.
        method: Of rank 1.
        validation: On the images that chose, one training of each config.
        held_out: On held-out images, mean over the seeds.
        certain: Whether the whole gain on held-out images is more than chance, in words.
    """

    category: str
    method: str
    validation: Parts
    held_out: Parts
    certain: str


def gains(categories: Sequence[CategoryEvidence]) -> list[Gain]:
    """Returns the gain of each category that has a result."""
    return [
        Gain(
            category=category.name,
            method=category.studies[0].row["method"],
            validation=_on_validation(category.studies[0]),
            held_out=held_out_parts(category.studies[0]),
            certain=_certain(category),
        )
        for category in categories
        if category.verdict.method is not None
    ]


def _on_validation(study: StudyEvidence) -> Parts:
    row = study.row
    gain, scoring = row["gain"], row["scoring_gain"]
    training = None if gain is None or scoring is None else gain - scoring
    return Parts(row["default_val_auroc"], scoring, training, row["val_auroc"])


def held_out_parts(study: StudyEvidence) -> Parts:
    """Returns what held-out images say of a study's chosen config and of the paper's."""
    chosen = None if study.winner is None else study.winner.test_auroc
    default = study.confirmed.get(0)
    if default is None:
        return Parts(None, None, None, chosen)
    paper, rescored = default.paper_test_auroc, default.test_auroc
    return Parts(
        paper,
        None if paper is None or rescored is None else rescored - paper,
        None if chosen is None or rescored is None else chosen - rescored,
        chosen,
    )


def _certain(category: CategoryEvidence) -> str:
    parts = held_out_parts(category.studies[0])
    if parts.paper is None or parts.chosen is None:
        return NOT_MEASURED
    if round(parts.chosen - parts.paper, 3) <= 0:
        return "no gain"
    tied = category.tied_with_paper
    if tied is None:
        return "not known"
    return "within chance" if tied else "more than chance"


def gains_in_words(found: Sequence[Gain]) -> list[str]:
    """Returns what the gains say together, in a sentence or two."""
    known = [gain.held_out for gain in found]
    parts = [
        (part.scoring, part.training)
        for part in known
        if part.scoring is not None and part.training is not None
    ]
    if not parts:
        return ["On held-out images neither part was measured."]
    if all(scoring == 0 for scoring, _ in parts):
        training = mean(training for _, training in parts)
        return [
            f"On held-out images, mean of {_of(len(parts), len(found))}: training "
            f"{signed(training)}. The scoring stayed the paper's."
        ]
    scoring, training = (mean(column) for column in zip(*parts, strict=True))
    sentences = [
        f"On held-out images, mean of {_of(len(parts), len(found))}: scoring {signed(scoring)}, "
        f"training {signed(training)}."
    ]
    if scoring > 0 and scoring > training + 0.0005:
        sentences.append("Scoring won more, which costs no training.")
    elif training > 0 and training > scoring + 0.0005:
        sentences.append("Other training won more.")
    elif max(scoring, training) <= 0.0005:
        sentences.append("Neither won anything.")
    return sentences


def _of(number: int, total: int) -> str:
    whole = f"{total} categories" if total != 1 else "1 category"
    return whole if number == total else f"{number} of {whole}"
