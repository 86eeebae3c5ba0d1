"""What people watch in TensorBoard: trials while they run, and what was confirmed of them.

A trial has scalars per rung. A confirm run has its figures, its example images with their heat
maps, and the ROC curve of its held-out images.

Event files are written through the sweep's storage, record by record and without a thread or
an open file per trial, so a killed driver loses nothing and a remote directory works too.

No study declares its hyperparameters beforehand: TensorBoard would take the first declaration
that it finds for all studies. Without any it gathers them from the trials themselves, so that
one page shows every method, and the table can be filtered by category, method and stage (search
or confirm). The confirm runs of a config, one per seed, are one row with their means.

TensorBoard draws no ROC curve. As a scalar, the true positive rate with the false positive rate in
per mille as its step, it lies in one chart with those of other seeds, configs and methods, where a
picture would stand alone. It is so dense that TensorBoard's smoothing does not bend it, and has a
run of its own, because every scalar of a confirm run is a column of the table.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from anomtune.search.decide.plan import SearchPlan
from anomtune.search.detector.heatmaps import png_bytes, sheet_rows
from anomtune.search.metrics.image import roc_curve
from anomtune.search.results import tensorboard_internals as events
from anomtune.search.store.held_out import DomainFigures, HeldOutScores
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, ConfirmRecord, Rung, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

#: TensorBoard takes any file with "tfevents" in its name.
_EVENT_FILE = "events.out.tfevents.0.anomtune"

#: Between two points of a ROC curve, in per mille. TensorBoard keeps 1000 points of a scalar.
_ROC_SPACING = 2

#: Between two parts of the curve of a running trial, in an object store.
_SECONDS = 30.0

#: Metrics that are no column of TensorBoard's table: there is enough to read.
_LEFT_OUT = {"auroc", "aupro_per_image", "accuracy"}

_ROC_TAG = "roc/TPR by FPR (per mille)"


@dataclass(frozen=True)
class _Written:
    """What the event file of a running trial has.

    Attributes:
        rungs: AUROCs with the paper's scoring, by which a rung is known again; ``None`` before the
            first part.
        parts: How many parts were added one by one.
        at: When the last one was, of `CurveWriter`'s clock.
    """

    rungs: tuple[float, ...] | None = ()
    parts: int = 0
    at: float = -math.inf


class CurveWriter:
    """Writes the event files of a sweep: a folder per study, below it a folder per run.

    In an object store, where each part of a curve is a request, a running trial gets one at most
    every half a minute, with all rungs since the last; its end writes the rest.

    Args:
        storage: The sweep directory.
        plans: How each study is searched.
        clock: Seconds.
    """

    def __init__(
        self,
        storage: Storage,
        plans: Mapping[StudyKey, SearchPlan],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._plans = plans
        self._clock = clock
        self._written: dict[str, _Written] = {}

    def update(self, record: AnyRecord) -> None:
        """Adds what is new in a record: a trial's start, a rung, its end; a confirm run's end."""
        if isinstance(record, ConfirmRecord):
            self._update_confirmed(record)
        else:
            self._update_trial(record)

    def is_whole(self, record: AnyRecord) -> bool:
        """Whether all is written of a run that has ended, and nothing else.

        A driver that was stopped, and followed by another, may have added a rung that is there
        already.
        """
        files = self._storage.list(_folder(record), "")
        if isinstance(record, ConfirmRecord):
            return bool(files) or record.state != "COMPLETE"
        content = b"".join(part or b"" for part in self._storage.read_many(files))
        steps = [event.step for event in events.decode(content)]
        # Of the file, its hyperparameters, each rung, the end.
        expected = [0, 0, *(rung.step for rung in record.curve), 0]
        return events.says_the_end(content) and steps == expected

    def _update_trial(self, record: TrialRecord) -> None:
        path, new = _folder(record), []
        written = self._written.get(record.path)
        rungs = tuple(map(_paper_auroc, record.curve))
        if written is None and record.state == "RUNNING" and self._storage.local_root is None:
            # What an earlier start has left is deleted when there is something in its place.
            self._written[record.path] = _Written(None, at=self._clock())
            return
        if written is not None and record.state == "RUNNING" and not self._is_due(written):
            return
        had = None if written is None else written.rungs
        if written is None or had is None or had != rungs[: len(had)]:  # begun, or again
            if self._storage.list(path, ""):  # an object store is asked less than to delete
                self._storage.delete_folder(path)
            had, written = (), _Written()
            new += self._start(record, "search", f"{record.key}/{record.number:05d}")
        for rung in record.curve[len(had) :]:
            values = [*_scalars(_rung_figures(rung)), *_histograms(rung)]
            new.append(events.event(values, rung.step))
        if record.state != "RUNNING":
            new.append(events.session_end("failure" if record.state == "FAIL" else "success"))
            self._written.pop(record.path, None)
        else:
            at = self._clock() if new else written.at
            self._written[record.path] = _Written(rungs, written.parts + bool(new), at)
        if new:
            self._storage.append(f"{path}/{_EVENT_FILE}", events.encode(new), written.parts)

    def _is_due(self, written: _Written) -> bool:
        return self._storage.local_root is not None or self._clock() >= written.at + _SECONDS

    def _update_confirmed(self, record: ConfirmRecord) -> None:
        """Writes all of a completed run at once: what an earlier start left of it is replaced."""
        study, run = f"tensorboard/{record.key}", f"{record.number:05d}-{record.seed}"
        if record.state != "COMPLETE":
            for folder in ("confirm", "roc"):
                self._storage.delete_folder(f"{study}/{folder}/{run}")
            return
        store = RecordStore(self._storage)
        values = [
            *_scalars(_confirmed_figures(record)),
            events.text("confirm/figures", _summary(record)),
            *_images(record, store.read_examples(record)),
        ]
        whole = [
            # The same name for every seed: TensorBoard shows them as one, with their means.
            *self._start(record, "confirm", f"{record.key}/confirm/{record.number:05d}"),
            events.event(values),
            events.session_end("success"),
        ]
        held_out = store.read_held_out(record)
        if held_out is not None and record.test is not None and record.test.auroc is not None:
            curve = [events.first_event(), *_roc(held_out)]
            self._storage.write(f"{study}/roc/{run}/{_EVENT_FILE}", events.encode(curve))
        # Last: where it is, the other is too.
        self._storage.write(f"{_folder(record)}/{_EVENT_FILE}", events.encode(whole))

    def _start(self, record: AnyRecord, stage: str, session: str) -> list[events.Event]:
        """Returns the events that tell TensorBoard of a run's hyperparameters."""
        settings: dict[str, bool | float | str] = {
            "category": record.category,
            "method": record.method,
            "stage": stage,
        }
        space = self._plans[record.key].space
        settings |= {name: _plain(record.params[name]) for name in space}
        return [events.first_event(), events.session_start(settings, session)]


def _folder(record: AnyRecord) -> str:
    """Returns where the event file of a run lies."""
    if isinstance(record, ConfirmRecord):
        return f"tensorboard/{record.key}/confirm/{record.number:05d}-{record.seed}"
    return f"tensorboard/{record.key}/{record.number:05d}"


def _paper_auroc(rung: Rung) -> float:
    return rung.auroc if rung.paper_auroc is None else rung.paper_auroc


def _rung_figures(rung: Rung) -> dict[str, float]:
    # TensorBoard's table shows its first few metrics by name: what decides begins with an a.
    figures = {"auroc/validation": rung.auroc}
    if rung.loss is not None:
        figures["train/loss"] = rung.loss
    return figures | {f"train/{name}": value for name, value in rung.figures.items()}


def _confirmed_figures(record: ConfirmRecord) -> dict[str, float]:
    figures = {"auroc/confirmed": record.val_auroc}
    if (test := record.test) is not None:
        figures |= {
            "auroc/held_out": test.auroc,
            **{
                f"held_out/{name}": value
                for name, value in test.figures.items()
                if name not in _LEFT_OUT
            },
        }
    figures |= {f"shifted/{domain}": shift.auroc for domain, shift in record.shifted.items()}
    return {tag: value for tag, value in figures.items() if value is not None}


def _summary(record: ConfirmRecord) -> str:
    """Returns the figures of a confirm run as a table in Markdown."""
    lines = [
        "images | normal | anomalous | AUROC | 95 % interval | pixel AUROC | AUPRO",
        "--- | --- | --- | --- | --- | --- | ---",
    ]
    if record.facts is not None:
        counts = f"{record.facts.n_val_normal} | {record.facts.n_val_anomalous}"
        lines.append(f"validation | {counts} | {_shown(record.val_auroc)} | | |")
    domains = {} if record.test is None else {"held out": record.test}
    lines += [_row(name, figures) for name, figures in (domains | record.shifted).items()]
    return "\n".join(lines)


def _row(name: str, figures: DomainFigures) -> str:
    low, high = _shown(figures.auroc_low), _shown(figures.auroc_high)
    cells = [
        name,
        str(figures.n_normal),
        str(figures.n_anomalous),
        _shown(figures.auroc),
        f"{low} to {high}" if low else "",
        _shown(figures.figures.get("pixel_auroc")),
        _shown(figures.figures.get("aupro")),
    ]
    return " | ".join(cells)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _images(record: ConfirmRecord, sheet: bytes | None) -> list[events.Summary.Value]:
    """Returns a picture per example: the image, its defect outlined, and its heat map."""
    if sheet is None:
        return []
    try:
        picture = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    except OSError:  # half a file of a machine that lost power: no reason to end a sweep
        return []
    values = []
    for example, row in zip(
        record.examples, sheet_rows(picture, len(record.examples)), strict=True
    ):
        height, width, _ = row.shape
        about = f"{example.key}, {example.defect}, score {example.score:.4g}"
        tag = f"examples/{example.kind}"
        values.append(events.image(tag, png_bytes(row), width, height, about))
    return values


def _roc(held_out: HeldOutScores) -> Iterator[events.Event]:
    false_rate, true_rate = roc_curve(held_out.labels, held_out.scores)
    for step in range(0, 1001, _ROC_SPACING):
        # Of several true positive rates at one false positive rate this is the highest.
        value = float(np.interp(step / 1000, false_rate, true_rate))
        yield events.event([events.scalar(_ROC_TAG, value)], step)


def _scalars(figures: Mapping[str, float]) -> list[events.Summary.Value]:
    return [events.scalar(tag, value) for tag, value in figures.items()]


def _histograms(rung: Rung) -> list[events.Summary.Value]:
    """Returns the distributions as TensorBoard's own bins: left edge, right edge, count."""
    values = []
    for name, histogram in rung.histograms.items():
        edges = histogram.edges
        bins = np.array([edges[:-1], edges[1:], histogram.counts], dtype=np.float64).T
        values.append(events.histogram(f"train/{name}", bins))
    return values


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)
