"""Writes the report of a sweep: one HTML file that asks for nothing else.

Styles, scripts, pictures and plotly itself are in it, so that it opens from a disk without a
network. What it shows is made here; its own script draws figures when they come into view,
sorts tables, changes panels and moves thresholds. Figures and plotly are packed, and unpacked
after the page is there.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from anomtune.errors import StorageError, SweepError
from anomtune.files import write_whole
from anomtune.search.report.accuracy_figures import Config, agreement
from anomtune.search.report.answer import answer
from anomtune.search.report.conclusion import conclude
from anomtune.search.report.evidence import Evidence, gather
from anomtune.search.report.gains import gains, gains_in_words
from anomtune.search.report.overview import (
    agreement_in_words,
    forest,
    forest_start,
    heat_maps,
    image_counts,
    leaderboard,
    provenance,
)
from anomtune.search.report.panels import Figures, category_panel, study_panel
from anomtune.search.report.search_figures import HIGHEST
from anomtune.search.report.verdict import is_finished
from anomtune.search.results.colours import palette
from anomtune.search.results.optuna_export import rebuild_studies
from anomtune.search.store.directory import read_sweeps
from anomtune.search.store.records import StudyKey

_NAME = "report.html"


@dataclass(frozen=True)
class Written:
    """A report that has been written: where, and of how many bytes."""

    location: str
    size: int


def write_report(
    directory: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
) -> Written:
    """Writes the report of a sweep, also of one that still runs.

    Args:
        directory: The sweep's.
        others: Further ones, if its categories are divided among several.
        out: The file to write; default: ``report.html`` in the sweep directory, of one alone.

    Raises:
        SweepError: If one is not the directory of a sweep, several are not those of one sweep, or
            ``out`` is missing.
        StorageError: If one cannot be read, or the report not be written.
    """
    config, directories = read_sweeps([directory, *others])
    if out is None and others:
        raise SweepError(
            "a report of several directories belongs into none of them; say where it is to be "
            "written, with --out FILE"
        )
    storage = directories[0].store.storage
    if out is None:
        storage.check_writable()
    content = render(gather(config, directories)).encode()
    if out is None:
        storage.write(_NAME, content)
        return Written(f"{storage.location.rstrip('/')}/{_NAME}", len(content))
    try:
        write_whole(out, content)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror})") from None
    return Written(os.fspath(out), len(content))


def render(evidence: Evidence) -> str:
    """Returns the page.

    Args:
        evidence: The sweep.
    """
    colours = palette(evidence.methods)
    figures = Figures()
    trials = {
        StudyKey(study.row["category"], study.row["method"]): study.records
        for study in evidence.studies
        if study.records
    }
    rebuilt = rebuild_studies(evidence.config, trials)
    start = forest_start(evidence)
    confirmed = (
        Config(study.row["category"], study.row["method"], config, config == study.winner)
        for study in evidence.studies
        for config in study.confirmed.values()
    )
    panels = [
        category_panel(category, evidence, colours, figures) for category in evidence.categories
    ]
    answers = [
        answer(category, evidence.config, panel.thresholds, panel.more)
        for category, panel in zip(evidence.categories, panels, strict=True)
    ]
    found_gains = gains(evidence.categories)
    plotly, script = get_plotlyjs(), _resource("page.js")
    template = _environment().get_template("page.html.jinja")
    return template.render(
        evidence=evidence,
        conclusion=conclude(evidence),
        answers=answers,
        gains=found_gains,
        gains_in_words=gains_in_words(found_gains),
        finished=is_finished(study.progress for study in evidence.studies),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        forest_start=start,
        forests=[forest(category, start) for category in evidence.categories],
        heat_maps=heat_maps(evidence),
        columns=leaderboard(evidence),
        categories=panels,
        agreement=figures.add(
            "Validation against held out",
            agreement(confirmed, colours),
            "Filled: the config that was chosen; diamond: the paper's own; dots: single seeds. "
            "Below the diagonal, validation was optimistic.",
        ),
        agreement_in_words=agreement_in_words(evidence),
        studies=[
            study_panel(
                study, rebuilt.get(StudyKey(study.row["category"], study.row["method"])), figures
            )
            for study in evidence.studies
        ],
        n_highest=HIGHEST,
        provenance=provenance(evidence),
        image_counts=image_counts(evidence),
        colours=colours,
        # A figure a line: each is parsed when it is drawn.
        figures=_packed("\n".join(map(json.dumps, figures.by_name.values()))),
        plotly=_packed(plotly),
        style=_resource("page.css"),
        script=script,
        hashes=[_hash(plotly), _hash(script)],
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("anomtune.search", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _resource(name: str) -> str:
    return resources.files("anomtune.search.report").joinpath(name).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    """Returns a text as gzip in base64: a tenth of the size, and nothing in it that is a tag."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _hash(script: str) -> str:
    """Returns a script's hash as a content security policy names it: no other script may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
