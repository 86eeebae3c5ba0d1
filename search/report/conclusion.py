"""What a sweep found, how sure that is, and what to do next: a sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from anomtune.datasets.splits.validation import Validation
from anomtune.search.report.accuracy_figures import ranked_value
from anomtune.search.report.answer import TOO_FEW, what_is_missing
from anomtune.search.report.evidence import CategoryEvidence, Evidence
from anomtune.search.report.more_images import MoreImages, foretell
from anomtune.search.report.verdict import NOT_BETTER, is_finished, is_papers
from anomtune.search.results.figures import figure, signed

#: Mean width of the held-out intervals from which more images are what helps most.
_WIDE = 0.05


@dataclass(frozen=True)
class Conclusion:
    """What is to be said of a whole sweep.

    Attributes:
        found: Which detectors are first, how good they are and what the search has won.
        sure: How sure these figures and that order are.
        next: What helps most now.
    """

    found: str
    sure: str
    next: str


def conclude(evidence: Evidence) -> Conclusion | None:
    """Returns what all categories say together; ``None`` without a completed trial."""
    decided = [category for category in evidence.categories if category.verdict.method]
    if not decided:
        return None
    return Conclusion(
        _found(decided, len(evidence.categories)),
        _sure(decided),
        _next(evidence, decided),
    )


def _found(decided: Sequence[CategoryEvidence], total: int) -> str:
    wins = Counter(category.verdict.method for category in decided).most_common()
    if total == 1:
        first = f"{decided[0].name}: {decided[0].verdict.method} is first"
    else:
        listed = ", ".join(f"{method} in {number}" for method, number in wins)
        first = f"First in {total} categories: {listed}"
        if len(decided) < total:
            first += f", none in {total - len(decided)} without a completed trial"
    rows = [category.studies[0].row for category in decided]
    held_out = [row["test_auroc_mean"] for row in rows if row["test_auroc_mean"] is not None]
    if not held_out:
        return f"{first}; validation AUROC {_values([ranked_value(row) for row in rows])}."
    of = f" in {len(held_out)} of them" if len(held_out) < len(rows) else ""
    sentence = f"{first}; held-out AUROC{of} {_values(held_out)}"
    both = [
        (row["test_auroc_mean"], row["default_test_auroc_mean"])
        for row in rows
        if row["test_auroc_mean"] is not None and row["default_test_auroc_mean"] is not None
    ]
    if not both:
        return f"{sentence}."
    gain = mean(chosen - paper for chosen, paper in both)
    paper = mean(paper for _, paper in both)
    than = "the paper's own config" if len(decided) == 1 else "the papers' own configs"
    where = f" in {len(both)} of them" if len(both) < len(held_out) else ""
    return f"{sentence}, {signed(gain)} over {than}{where} ({figure(paper)})."


def _values(values: Sequence[float]) -> str:
    """Returns figures as one, or as their mean and range."""
    if len(values) == 1:
        return figure(values[0])
    return f"{figure(mean(values))} on average ({figure(min(values))} to {figure(max(values))})"


def _sure(decided: Sequence[CategoryEvidence]) -> str:
    widths = [
        found.high - found.low for category in decided if (found := category.studies[0].held_out)
    ]
    if not widths:
        return (
            "Nothing is checked on held-out images, so the figures are of the images that chose "
            "the configs, and flatter them."
        )
    many = len(decided) > 1
    wide = f"{mean(widths):.2f} wide"
    if len(widths) == 1:
        parts = [f"The 95 % interval of this figure is {wide}"]
    else:
        parts = [f"95 % intervals of these figures are {wide} on average"]
    tied = sum(bool(category.verdict.tied) for category in decided)
    if tied:
        where = f"in {tied} of {len(decided)} " if many else ""
        parts.append(f"{where}the first cannot be told from another method")
    return f"{'; '.join([*parts, *_gain_is_certain(decided)])}."


def _gain_is_certain(decided: Sequence[CategoryEvidence]) -> list[str]:
    """Says where the gain over the paper's config is more than chance, if that is known at all."""
    known = [category for category in decided if category.tied_with_paper is not None]
    won = [category for category in known if NOT_BETTER not in category.verdict.marks]
    certain = sum(not category.tied_with_paper for category in won)
    if len(decided) == 1:
        if not known:
            return []
        if not won:
            return ["the search has won nothing over the paper's config"]
        return ["the gain is more than chance" if certain else "the gain may be chance"]
    if not known:
        return ["whether gains are more than chance is not known"]
    unknown = sum(
        category.tied_with_paper is None and not is_papers(category.studies[0].row)
        for category in decided
    )
    rest = f", not known in {unknown}" if unknown else ""
    return [f"the gain is more than chance in {certain} of {len(decided)}{rest}"]


def _next(evidence: Evidence, decided: Sequence[CategoryEvidence]) -> str:
    if not is_finished(study.progress for study in evidence.studies):
        return "Let the sweep go on: the same command resumes it."
    found = _foretold(decided, evidence.config.validation)
    if not found:
        missing = (what_is_missing(category, evidence.config) for category in decided)
        return next(filter(None, missing), TOO_FEW)
    now, then = (mean(more.after(images).width for more in found) for images in (0, 100))
    use = "set the threshold by what a missed defect costs"
    if now > _WIDE:
        each = " of each category" if len(decided) > 1 else ""
        intervals = "intervals" if len(found) > 1 else "interval"
        some = f" of {len(found)} of them" if len(found) < len(decided) else ""
        return (
            f"To be surer label more images: 100 more{each} would make the {intervals}{some} "
            f"{then:.2f} wide instead of {now:.2f}; to go on with what there is, {use}."
        )
    return f"What was found lies in models/: {use}."


def _foretold(decided: Sequence[CategoryEvidence], validation: Validation) -> list[MoreImages]:
    """Returns what more labelled images would buy, of each category where that can be told."""
    return [
        more
        for category in decided
        if (measured := category.studies[0].measured) is not None
        and (more := foretell(*measured, validation)) is not None
    ]
