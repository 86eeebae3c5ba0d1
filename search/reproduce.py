"""A paper's row: its config, its seeds and its protocol, beside what was published.

Papers judge by the whole test set, the same one that they chose their settings by. So does this, to
be comparable with them and with nothing else: no figure here is one of unseen images.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.cache import CategoryArrays, open_category
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.held_out import load_whole_test
from anomtune.errors import SweepError, TrainingDivergedError
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.training.report import Report
from anomtune.registry import METHODS
from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.plan import plan_studies
from anomtune.search.detector.devices import choose_device
from anomtune.search.detector.evaluate import evaluate
from anomtune.search.detector.opened import open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.train import fit_whole
from anomtune.search.preparation import prepare_methods, resolve
from anomtune.search.results.reproduction import PaperRun, Reproduction
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage

#: Told of a run: category, seed, iterations done, their total.
OnProgress = Callable[[str, int, int, int], None]


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
    fixed = dict(hyperparameters or {})
    config = _config(method, dataset, image_size, preset, fixed)
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
        prepare_methods(plans.values(), config.dataset, config.image_size)
        storage.check_writable()
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
        differs=tuple(_differences(kind, chosen, image_size, preset, fixed)),
        warnings=tuple(dict.fromkeys(_warnings(source, opened, done))),
    )


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
        seen=_seen(defaults, config.image_size),
        state="COMPLETE",
    )


def _seen(hyperparameters: Hyperparameters, image_size: int) -> float:
    """Returns how much of each side of the images a method sees."""
    name = hyperparameters.protocol.middle
    side = None if name is None else getattr(hyperparameters, name)
    return 1.0 if side is None else side / hyperparameters.input_size(image_size)


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
    for name in ("dataset", "category", "method", "image_size", "hyperparameters", "seen"):
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

    def tell(iteration: int, total: int, report: Report) -> None:
        if on_progress is not None:
            on_progress(run.category, run.seed, iteration, total)

    begin = time.perf_counter()
    try:
        opened = open_detector(spec, device)
        fit_whole(opened, tell)
        seconds = time.perf_counter() - begin
        images = load_whole_test(
            config.dataset.open(), run.category, opened.detector.input_size, kind.resize
        )
        figures = evaluate(
            opened.detector, images, masks=kind.protocol.masks, seen=run.seen
        ).figures
    except (TrainingDivergedError, torch.OutOfMemoryError) as error:
        return run.model_copy(update={"state": "FAIL", "error": str(error)})
    if figures[""].auroc is None:
        return run.model_copy(update={"state": "FAIL", "error": "; ".join(figures[""].notes)})
    return run.model_copy(
        update={
            "figures": dict(figures),
            "train_seconds": seconds,
            "parameters": opened.facts().parameters,
        }
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
