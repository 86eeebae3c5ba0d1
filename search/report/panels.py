"""The panels of the page, of which one is shown at a time: one per category, one per study."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from PIL import Image

from anomtune.search.detector.heatmaps import sheet_rows
from anomtune.search.report import accuracy_figures, search_figures
from anomtune.search.report.defects import DefectType, defect_types
from anomtune.search.report.evidence import CategoryEvidence, Evidence, StudyEvidence
from anomtune.search.report.gains import held_out_parts
from anomtune.search.report.more_images import MoreImages, foretell
from anomtune.search.report.operating import Operating, operating
from anomtune.search.report.search_figures import drawn_trials, short, time_unit
from anomtune.search.report.traces import Figure
from anomtune.search.report.verdict import confirmed, spread
from anomtune.search.results.figures import figure as auroc
from anomtune.search.results.figures import signed
from anomtune.search.store.held_out import Example

#: Width of a row of example images; a report of 15 categories stays within a few megabytes.
_EXAMPLE_WIDTH = 600
#: Failed trials that are listed; the records have all.
_FAILURES = 8

_KINDS = {
    "missed": "the defect with the lowest score",
    "typical anomaly": "the defect with the median score",
    "found": "the defect with the highest score",
    "false alarm": "the normal image with the highest score",
    "typical normal": "the normal image with the median score",
}


class Figures:
    """The figures of the page by name, in the order in which they were added."""

    def __init__(self) -> None:
        self.by_name: dict[str, Figure] = {}

    def add(self, title: str, drawn: Figure | None, caption: str = "") -> Panel | None:
        """Keeps a figure and returns its place on the page; ``None`` if there is none."""
        if drawn is None:
            return None
        name = f"f{len(self.by_name)}"
        self.by_name[name] = drawn
        return Panel(name, title, caption)


@dataclass(frozen=True)
class Panel:
    """Where a figure is drawn: its name among the figures, its title, and what it shows."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class ExampleImage:
    """A row of the example sheet as a data URI, with what it shows."""

    kind: str
    meaning: str
    source: str
    width: int
    height: int
    example: Example


@dataclass(frozen=True)
class CategoryPanel:
    """A category in detail.

    Attributes:
        name: Its name.
        figures: What is drawn of it.
        domains: Names of its shifted domains.
        shifted: Method and AUROC on each domain, in order of rank.
        winner: The method whose examples are shown.
        examples: Held-out images.
        thresholds: What each threshold costs, of the detector that is kept.
        defects: Which types of defects it misses.
        more: What more labelled images would buy.
    """

    name: str
    figures: Sequence[Panel]
    domains: Sequence[str]
    shifted: Sequence[tuple[str, Sequence[str]]]
    winner: str | None
    examples: Sequence[ExampleImage]
    thresholds: Operating | None
    defects: Sequence[DefectType]
    more: MoreImages | None


def category_panel(
    category: CategoryEvidence, evidence: Evidence, palette: Mapping[str, str], figures: Figures
) -> CategoryPanel:
    """Draws a category.

    Args:
        category: What is known of it.
        evidence: The sweep.
        palette: A colour for each method.
        figures: Gets its figures.
    """
    rows = [study.row for study in category.studies]
    first, kept, store = category.studies[0], category.kept, category.store
    winner = first.winner
    scores = [
        (run.seed, held_out)
        for run in (winner.runs if winner else ())
        if (held_out := store.read_held_out(run)) is not None
    ]
    interval = "Bars: 95 % intervals of the search's figure."
    records = {study.row["method"]: study.records for study in category.studies}
    drawn = [
        figures.add(
            "Accuracy against latency",
            accuracy_figures.cost(rows, palette, "image_ms", "milliseconds per image"),
            f"Up and to the left is better; a star is rank 1. {interval}",
        ),
        figures.add(
            "Accuracy against size",
            accuracy_figures.cost(rows, palette, "parameters", "parameters"),
            f"Up and to the left is better. {interval}",
        ),
        figures.add(
            "Search of all methods",
            search_figures.race(records, palette),
            "The best validation AUROC so far over the compute spent on the method.",
        ),
        figures.add(
            f"ROC of {first.row['method']} on held-out images",
            accuracy_figures.roc(scores, palette[first.row["method"]]),
            "The chosen config, one curve per seed.",
        ),
    ]
    shifted = [
        (study.row["method"], json.loads(study.row["shifted_auroc"]))
        for study in category.studies
        if study.row["shifted_auroc"] is not None
    ]
    domains = list(dict.fromkeys(domain for _, by_domain in shifted for domain in by_domain))
    examples: list[ExampleImage] = []
    for run in winner.runs if winner else ():
        examples = examples or _examples(store.read_examples(run), run.examples)
    return CategoryPanel(
        name=category.name,
        figures=[panel for panel in drawn if panel is not None],
        domains=domains,
        shifted=[
            (method, [auroc(by_domain.get(domain)) for domain in domains])
            for method, by_domain in shifted
        ],
        winner=category.verdict.method,
        examples=examples,
        thresholds=None if kept is None else operating(kept),
        defects=[] if kept is None else defect_types(kept),
        more=(
            None
            if first.measured is None
            else foretell(*first.measured, evidence.config.validation)
        ),
    )


def _examples(content: bytes | None, examples: Sequence[Example]) -> list[ExampleImage]:
    """Cuts a sheet into pictures that are small enough for the page."""
    if content is None:
        return []
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            sheet = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return []  # half a file: the figures are there all the same
    pictures = []
    for example, row in zip(examples, sheet_rows(sheet, len(examples)), strict=True):
        picture = Image.fromarray(row)
        picture.thumbnail((_EXAMPLE_WIDTH, _EXAMPLE_WIDTH))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        meaning = _KINDS[example.kind]
        pictures.append(ExampleImage(example.kind, meaning, source, *picture.size, example=example))
    return pictures


@dataclass(frozen=True)
class StudyPanel:
    """A study in detail.

    Attributes:
        category: Its category.
        method: Its method.
        facts: Its figures in words: names and values.
        params: The chosen config, searched values first: name, value, the paper's value, whether it
            was searched.
        search: Figures of the search.
        importances: Share of each hyperparameter in [0, 1], the largest first.
        completed: How many completed trials these are of.
        slices: A figure per hyperparameter.
        failures: Number and reason of failed trials, the first few.
        n_failures: How many failed.
        n_trials: How many trials there are.
        n_drawn: How many of them the figures show.
    """

    category: str
    method: str
    facts: Sequence[tuple[str, str]]
    params: Sequence[tuple[str, str, str, bool]]
    search: Sequence[Panel]
    importances: Sequence[tuple[str, float]]
    completed: int
    slices: Sequence[Panel]
    failures: Sequence[tuple[int, str]]
    n_failures: int
    n_trials: int
    n_drawn: int


def study_panel(study: StudyEvidence, rebuilt: optuna.Study | None, figures: Figures) -> StudyPanel:
    """Draws a study.

    Args:
        study: What is known of it.
        rebuilt: The same as Optuna keeps it, ``None`` without a trial.
        figures: Gets its figures.
    """
    row, records, space = study.row, study.records, study.plan.space
    shown = drawn_trials(records)
    some = [record for record in records if record.number in shown]
    shares = (search_figures.importances(rebuilt) if rebuilt else None) or {}
    order = [*shares, *(name for name in space if name not in shares)]
    drawn = [
        figures.add(
            "Search over trials",
            search_figures.history(records, shown),
            "A pruned trial stands at the AUROC of its last rung.",
        ),
        figures.add("Search over compute", search_figures.history(records, shown, by_time=True)),
        figures.add(
            "Pruning",
            search_figures.pruning(some),
            "Every trial at each of its rungs; grey ones were stopped.",
        ),
        figures.add(
            "Parallel coordinates",
            search_figures.parallel(records, space, order, shown),
            "A line per trial: its hyperparameters, and at the right its AUROC.",
        ),
    ]
    slices = [figures.add(name, search_figures.slice_of(some, name, space[name])) for name in order]
    failures = [(r.number, r.error or "no reason given") for r in records if r.state == "FAIL"]
    return StudyPanel(
        category=row["category"],
        method=row["method"],
        facts=_facts(study),
        params=_params(study),
        search=[panel for panel in drawn if panel is not None],
        importances=list(shares.items()),
        completed=row["completed"],
        slices=[panel for panel in slices if panel is not None],
        failures=failures[:_FAILURES],
        n_failures=len(failures),
        n_trials=len(records),
        n_drawn=len(some),
    )


def _facts(study: StudyEvidence) -> list[tuple[str, str]]:
    row, records = study.row, study.records
    states = [record.state for record in records]
    counted = [("COMPLETE", "completed"), ("PRUNED", "pruned"), ("FAIL", "failed"),
               ("RUNNING", "running")]  # fmt: skip
    parts = [f"{states.count(state)} {word}" for state, word in counted if state in states]
    facts = [("trials", f"{len(records)} ({', '.join(parts)})" if parts else "none yet")]
    seconds = sum(record.cost.train_seconds + record.cost.evaluate_seconds for record in records)
    if seconds:
        scale, unit = time_unit(seconds)
        facts.append(("compute", f"{seconds / scale:.1f} {unit}"))
    if row["val_auroc"] is not None:
        low, high = auroc(row["val_auroc_low"]), auroc(row["val_auroc_high"])
        facts.append(("validation AUROC", f"{auroc(row['val_auroc'])} ({low}-{high})"))
    if row["default_val_auroc"] is not None:
        facts.append(("the paper's own config", auroc(row["default_val_auroc"])))
    if row["scoring_gain"] is not None and row["gain"] is not None:
        scoring, training = row["scoring_gain"], row["gain"] - row["scoring_gain"]
        facts.append(("gain of scoring, of training", f"{signed(scoring)}, {signed(training)}"))
    held = held_out_parts(study)
    if held.scoring is not None and held.training is not None:
        both = f"{signed(held.scoring)}, {signed(held.training)}"
        facts.append(("the same, held out", both))
    if row["n_seeds"]:
        facts.append((f"retrained, {row['n_seeds']} seeds", confirmed(row)))
    if row["test_auroc_mean"] is not None:
        facts.append(("held out", spread(row, "test_auroc")))
    return facts


def _params(study: StudyEvidence) -> list[tuple[str, str, str, bool]]:
    if study.row["params"] is None:
        return []
    chosen: dict[str, Any] = json.loads(study.row["params"])
    papers = study.plan.defaults.model_dump(mode="json")
    changed = {f"scoring.{name}" for scoring in study.plan.scorings for name in scoring
               if scoring[name] != papers["scoring"][name]}  # fmt: skip
    chosen, papers = _flat(chosen), _flat(papers)
    searched = [name for name in chosen if name in study.plan.space or name in changed]
    names = [*searched, *(name for name in chosen if name not in searched)]
    return [
        (name, short(chosen[name]), short(papers.get(name, "")), name in searched) for name in names
    ]


def _flat(params: dict[str, Any]) -> dict[str, Any]:
    """Returns hyperparameters with those of the scoring one by one, at the end."""
    scoring = params.pop("scoring", {})
    return params | {
        f"scoring.{name}": "+".join(value) if isinstance(value, list) else value
        for name, value in scoring.items()
    }
