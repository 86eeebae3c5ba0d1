"""A paper's row: its config, its seeds and its protocol, beside what was published.

Papers judge by the whole test set, the same one that they chose their settings by. So does this, to
be comparable with them and with nothing else: no figure here is one of unseen images.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ValidationError

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.cache import CategoryArrays, open_category
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.split import load_whole_test
from anomtune.errors import SweepError, TrainingDivergedError
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.training.report import Report
from anomtune.registry import METHODS
from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.study import plan_studies
from anomtune.search.detector.devices import choose_device
from anomtune.search.detector.evaluate import evaluate
from anomtune.search.detector.opened import check_loss, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.preparation import prepare_methods, resolve
from anomtune.search.results.paper_results import published
from anomtune.search.store.held_out import DomainFigures
from anomtune.search.store.part import Part
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage

#: A training is done in so many parts, each followed by a report.
_PARTS = 10

#: Told of a run: category, seed, iterations done, their total.
OnProgress = Callable[[str, int, int, int], None]


class PaperRun(Part):
    """One training of the paper's config, judged as the paper does.

    Attributes:
        dataset: Name of the dataset.
        category: One of its categories.
        method: Name of the method.
        seed: What it was trained with.
        image_size: Side of the maps in pixels.
        content: Digest of the category's images and masks.
        hyperparameters: All of them.
        state: ``COMPLETE``, or ``FAIL`` of a training that gave no usable detector.
        figures: On all test images, by domain; "" is that of the training images.
        error: Why it failed.
        train_seconds: Time spent in training.
        parameters: Of the network.
    """

    dataset: str
    category: str
    method: str
    seed: int
    image_size: int
    content: str
    hyperparameters: dict[str, Any]
    state: Literal["COMPLETE", "FAIL"]
    figures: dict[str, DomainFigures] = {}  # noqa: RUF012 - pydantic copies it
    error: str | None = None
    train_seconds: float | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Figure:
    """One figure beside its published value; both in [0, 1].

    Attributes:
        mean: Over the seeds, ``None`` if it is not defined or no run gave it.
        std: Of the seeds, ``None`` of less than two.
        published: What the paper reports, if it does.
    """

    mean: float | None
    std: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.mean is None or self.published is None:
            return None
        return self.mean - self.published


@dataclass(frozen=True)
class Row:
    """A category, or the mean of all of them.

    Attributes:
        category: Its name, ``mean`` of all of them.
        domain: The shifted domain, "" for that of the training images.
        figures: By name: ``auroc``, ``pixel_auroc`` and the paper's own ``aupro``.
        source: The paper and its table, if it is published.
    """

    category: str
    domain: str
    figures: Mapping[str, Figure]
    source: str | None = None


@dataclass(frozen=True)
class Reproduction:
    """What was trained and found.

    Attributes:
        config: The resolved sweep whose trials 0 these are.
        runs: Of each category, one per seed.
        differs: What of the config is not the paper's own, in words; empty if all of it is.
        warnings: What is odd about the images, one line each: a copy that is not complete.
    """

    config: Sweep
    runs: Mapping[str, Sequence[PaperRun]]
    differs: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def method(self) -> str:
        """Name of the method."""
        return next(iter(self.config.methods))

    @property
    def inferred(self) -> list[str]:
        """The hyperparameters whose value for some category no source tells."""
        kind, dataset = METHODS.get(self.method).Hyperparameters, self.config.dataset.name
        settings = (kind.settings_for(dataset, category) for category in self.runs)
        return sorted({name for each in settings for name, s in each.items() if s.inferred})

    @property
    def figure_names(self) -> tuple[str, str, str]:
        """Image AUROC, pixel AUROC and AUPRO in the paper's variant, as metrics are called."""
        return figure_names(METHODS.get(self.method).Hyperparameters)

    def rows(self) -> list[Row]:
        """Returns a row for each category and domain, then the mean if there are several."""
        rows = [row for category in self.runs for row in self._rows(category)]
        own = [row for row in rows if row.domain == ""]
        if len(own) > 1:
            rows.append(
                Row(
                    "mean",
                    "",
                    {name: _mean([row.figures[name] for row in own]) for name in self.figure_names},
                )
            )
        return rows

    def _rows(self, category: str) -> Iterator[Row]:
        runs = [run for run in self.runs[category] if run.state == "COMPLETE"]
        known = published(self.config.dataset.name, category, self.method)
        for domain in sorted({domain for run in runs for domain in run.figures} | {""}):
            told = known if domain == "" else None
            values = {
                name: [run.figures[domain].figures.get(name) for run in runs]
                for name in self.figure_names
            }
            yield Row(
                category,
                domain,
                {
                    name: _figure(found, told.figures.get(name) if told else None)
                    for name, found in values.items()
                },
                told.source if told else None,
            )


def reproduce(
    method: str,
    dataset: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (),
    image_size: int = 256,
    preset: str | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> Reproduction:
    """Trains a paper's config on every category and judges it on the whole test set.

    Every run is written when it is done: the same call again goes on where it stopped, and tries
    again what failed.

    Args:
        method: Name of the method, or an import path.
        dataset: ``name``, ``root`` and maybe ``categories``, as in a sweep file.
        out: Where the runs are written, ``<category>/<seed>.json``: a path or a URI.
        seeds: Default: the paper's.
        image_size: Side of the maps in pixels; papers have 256.
        preset: A named setting of the paper instead of its final one.
        hyperparameters: Values that replace the paper's.
        device: ``cpu`` or ``cuda``; default: a GPU if there is one.
        on_progress: Is told of the progress.

    Raises:
        SweepError: If something does not exist, or ``out`` holds runs of another config.
        DataError: If the images cannot be read.
        MethodError: If weights cannot be had, or the device not be used.
        StorageError: If a run cannot be written.
    """
    config = _config(method, dataset, image_size, preset, hyperparameters or {})
    kind = METHODS.get(method).Hyperparameters
    # Each seed once: two copies have no deviation.
    chosen, storage = tuple(dict.fromkeys(seeds or kind.protocol.seeds)), Storage(out)
    plans, source = plan_studies(config), config.dataset.open()
    opened = {
        key.category: open_category(
            source, key.category, plan.defaults.input_size(image_size), kind.resize
        )
        for key, plan in plans.items()
    }
    wanted = {
        key.category: [
            _run(config, key, plan.defaults, opened[key.category].content, seed) for seed in chosen
        ]
        for key, plan in plans.items()
    }
    known = {category: [_known(storage, run) for run in runs] for category, runs in wanted.items()}
    torch_device = choose_device(device)
    if any(run is None for runs in known.values() for run in runs):
        prepare_methods(plans.values(), config.dataset.root)
        storage.write(_README, _README_TEXT)  # what cannot be written is told before any training
    done: dict[str, list[PaperRun]] = {}
    for category, runs in wanted.items():
        done[category] = []
        for run, found in zip(runs, known[category], strict=True):
            trained = found or _train(config, run, torch_device, on_progress)
            if found is None:
                content = trained.model_dump_json(indent=1).encode()
                storage.write(_path(trained), content, durable=True)
            done[category].append(trained)
    return Reproduction(
        config,
        done,
        differs=tuple(_differences(kind, chosen, image_size, preset, hyperparameters or {})),
        warnings=tuple(dict.fromkeys(_warnings(source, opened, done))),
    )


_README = "README.md"
_README_TEXT = (
    b"Runs of `anomtune reproduce`: a paper's config on the whole test set, one file a run.\n"
    b"None of these figures is one of unseen images.\n"
)


def figure_names(kind: type[Hyperparameters]) -> tuple[str, str, str]:
    """Returns what is compared of a method: metrics by name."""
    aupro = "aupro_per_image" if kind.protocol.aupro_per_image else "aupro"
    return ("auroc", "pixel_auroc", aupro)


def _config(
    method: str,
    dataset: Mapping[str, Any],
    image_size: int,
    preset: str | None,
    fixed: Mapping[str, Any],
) -> Sweep:
    return resolve(
        parse_sweep(
            {
                "name": "reproduce",
                "dataset": dict(dataset),
                "validation": {"protocol": "test"},
                "methods": {method: {"preset": preset, "fixed": dict(fixed)}},
                "image_size": image_size,
            },
            "reproduce",
        )
    )


def _run(
    config: Sweep, key: StudyKey, defaults: Hyperparameters, content: str, seed: int
) -> PaperRun:
    return PaperRun(
        dataset=config.dataset.name,
        category=key.category,
        method=key.method,
        seed=seed,
        image_size=config.image_size,
        content=content,
        hyperparameters=defaults.model_dump(mode="json"),
        state="COMPLETE",
    )


def _warnings(
    source: Dataset, opened: Mapping[str, CategoryArrays], done: Mapping[str, Sequence[PaperRun]]
) -> Iterator[str]:
    """Yields what is odd about the images, and why figures that should be there are not."""
    yield from map(str, source.warnings())
    for category, runs in done.items():
        yield from map(str, find_missing(source, category, opened[category].samples))
        yield from map(str, opened[category].warnings)
        for run in runs:
            for found in run.figures.values():
                yield from (f"{category}: {note}" for note in found.notes)


def _path(run: PaperRun) -> str:
    return f"{run.category}/{run.seed}.json"


def _known(storage: Storage, wanted: PaperRun) -> PaperRun | None:
    """Returns the run that is there already, if it did not fail.

    Raises:
        SweepError: If it is one of another config.
    """
    content = storage.read(_path(wanted))
    if content is None:
        return None
    where = f"{storage.location}/{_path(wanted)}"
    try:
        found = PaperRun.model_validate_json(content)
    except ValidationError:
        raise SweepError(
            f"{where}: not a run of `anomtune reproduce`; give another --out"
        ) from None
    for name in ("dataset", "category", "method", "image_size", "hyperparameters"):
        if getattr(found, name) != getattr(wanted, name):
            raise SweepError(f"{where}: a run of another config ({name}); give another --out")
    if found.content != wanted.content:
        raise SweepError(f"{where}: a run on other images; give another --out")
    return found if found.state == "COMPLETE" else None


def _train(
    config: Sweep, run: PaperRun, device: torch.device, on_progress: OnProgress | None
) -> PaperRun:
    """Returns the run with what it found."""
    spec = TrainingSpec(
        dataset=config.dataset,
        category=run.category,
        method=run.method,
        image_size=run.image_size,
        seed=run.seed,
        hyperparameters=run.hyperparameters,
        validation=config.validation,
    )
    kind = METHODS.get(run.method).Hyperparameters
    begin = time.perf_counter()
    try:
        opened = open_detector(spec, device)
        detector, total = opened.detector, opened.iterations
        for part in range(1, _PARTS + 1):
            iterations = part * total // _PARTS - detector.iteration
            if iterations == 0:
                continue
            report: Report = detector.fit(opened.train, iterations)
            check_loss(report)
            if on_progress is not None:
                on_progress(run.category, run.seed, detector.iteration, total)
        seconds = time.perf_counter() - begin
        images = load_whole_test(
            config.dataset.open(), run.category, detector.input_size, kind.resize
        )
        figures = evaluate(detector, images, masks=kind.protocol.masks).figures
    except (TrainingDivergedError, torch.OutOfMemoryError) as error:
        return run.model_copy(update={"state": "FAIL", "error": str(error)})
    if not math.isfinite(figures[""].auroc if figures[""].auroc is not None else math.nan):
        return run.model_copy(update={"state": "FAIL", "error": "; ".join(figures[""].notes)})
    return run.model_copy(
        update={
            "figures": dict(figures),
            "train_seconds": seconds,
            "parameters": opened.facts().parameters,
        }
    )


def _figure(values: Sequence[float | None], told: float | None) -> Figure:
    found = [value for value in values if value is not None]
    return Figure(
        mean=statistics.fmean(found) if found else None,
        std=statistics.stdev(found) if len(found) > 1 else None,
        published=told,
    )


def _mean(figures: Sequence[Figure]) -> Figure:
    """Returns the mean over categories; it is not defined if one of them has none."""
    ours = [figure.mean for figure in figures]
    told = [figure.published for figure in figures]
    return Figure(
        mean=statistics.fmean(v for v in ours if v is not None) if None not in ours else None,
        std=None,
        published=statistics.fmean(v for v in told if v is not None) if None not in told else None,
    )


def _differences(
    kind: type[Hyperparameters],
    seeds: Sequence[int],
    image_size: int,
    preset: str | None,
    hyperparameters: Mapping[str, Any],
) -> Iterator[str]:
    """Yields what of a config is not the paper's own."""
    if preset is not None:
        yield f"preset {preset}"
    yield from (f"{name} {json.dumps(value)}" for name, value in hyperparameters.items())
    if image_size != 256:
        yield f"image_size {image_size}, not 256"
    if set(seeds) != set(kind.protocol.seeds):
        yield "seeds " + ", ".join(map(str, seeds))
