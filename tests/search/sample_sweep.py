"""A sweep directory as a finished or killed sweep leaves it, without Ray, images or training.

The real pool asks, reports and prunes; only the detectors are made up. A trial's scores come
from how near its hyperparameters are to an optimum that differs from study to study, so that
curves, intervals, ties and importances look as they do in life and agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.confirm import to_confirm
from anomtune.search.decide.plan import SearchPlan, plan_studies
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.scoring import read_studies
from anomtune.search.detector.heatmaps import outline, overlay, png_bytes, sheet
from anomtune.search.metrics.delong import intervals
from anomtune.search.metrics.image import auroc
from anomtune.search.store.arrays import npz_bytes
from anomtune.search.store.directory import write_config
from anomtune.search.store.held_out import DomainFigures, Example
from anomtune.search.store.judged import Judged
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import (
    ConfirmRecord,
    Cost,
    Facts,
    PaperScored,
    Rung,
    StudyKey,
    TrialRecord,
)
from anomtune.search.store.storage import Storage

#: Distance of the classes in standard deviations at best, milliseconds per image, parameters and
#: seconds per rung.
_METHODS = {
    "patchcore": (2.9, 14.0, 24_900_000, 3.0),
    "padim": (2.4, 3.1, 70_800_000, 1.0),
    "rd4ad": (2.7, 7.9, 80_600_000, 25.0),
    "recontrast": (1.5, 15.5, 154_000_000, 31.0),
}
#: Names that a page must not take for its own.
DEFECTS = ("crack & <u>chip</u>", "scratch")
_KINDS = ("missed", "typical anomaly", "found", "false alarm", "typical normal")


def write_sample_sweep(
    root: str | Path,
    *,
    categories: Sequence[str] = ("bottle", "screw"),
    methods: Sequence[str] = ("patchcore", "padim", "rd4ad"),
    trials: int = 12,
    confirm: int = 2,
    seeds: Sequence[int] = (1, 11, 111),
    images: int = 30,
    domains: Sequence[str] = (),
    killed_after: float = math.inf,
    fails: Callable[[TrialRecord], str | None] = lambda record: None,
    **changes: Any,
) -> Sweep:
    """Writes the directory of a sweep.

    Args:
        root: Where; a local path or a URI.
        categories: Their names.
        methods: Registered ones.
        trials: Trials per study.
        confirm: Configs of each study that are confirmed beside the paper's own; 0 = none.
        seeds: What each is trained with.
        images: Normal images of validation, anomalous ones of validation, and so on.
        domains: Names of shifted domains.
        killed_after: Reports after which the driver dies; what runs then stays so.
        fails: Why a trial fails, ``None`` for one that does not.
        changes: Further keys of the sweep file.
    """
    config = parse_sweep(
        {
            "name": "sample",
            "dataset": {"name": "folder", "root": "/data", "categories": list(categories)},
            "methods": {method: {} for method in methods},
            "trials": trials,
            "rungs": 4,
            "confirm": {"top": confirm, "seeds": list(seeds)},
            **changes,
        },
        "sample",
    )
    store = RecordStore(Storage(root))
    plans = plan_studies(config)
    store.write_searched({key: bool(plan.space) for key, plan in plans.items()})
    write_config(store.storage, config)
    labels = np.repeat([0, 1], images).astype(np.int8)
    held_out = config.validation.protocol != "test"
    store.write_test_counts(dict.fromkeys(categories, (images, images) if held_out else (0, 0)))
    for category in categories:
        store.write_labels(category, labels)
    for key, plan in plans.items():
        store.write_scorings(key, plan.scorings)
    if not _search(config, plans, store, labels, killed_after, fails):
        return config
    for records in read_studies(store).values():
        for number in to_confirm(records, config.confirm):
            trial = next(record for record in records if record.number == number)
            for seed in seeds:
                distance = _distance(trial, plans[trial.key])
                write_confirm_run(
                    store, labels, trial, distance, seed, domains if held_out else None
                )
    return config


def _search(
    config: Sweep,
    plans: Mapping[StudyKey, SearchPlan],
    store: RecordStore,
    labels: npt.NDArray[np.int8],
    killed_after: float,
    fails: Callable[[TrialRecord], str | None],
) -> bool:
    """Runs trials of the pool, two at a time; returns whether it lived to the last of them."""
    clock = datetime(2026, 1, 5, 8, tzinfo=UTC)

    def save(record: TrialRecord) -> None:
        cost = record.cost.model_copy()
        cost.started_at = cost.started_at and (clock - timedelta(minutes=1)).isoformat()
        cost.finished_at = cost.finished_at and clock.isoformat()
        store.write(record.model_copy(update={"cost": cost}))

    hashes = {name: f"{index:064x}" for index, name in enumerate(config.dataset.categories or ())}
    pool = Pool(config, plans, hashes, {}, save)
    busy: list[TrialRecord] = []
    events = 0
    while pool.remaining:
        while len(busy) < 2 and (record := pool.ask()):
            busy.append(record)
        if events >= killed_after:
            return False
        events += 1
        clock += timedelta(seconds=37)
        record = busy.pop(0)
        step = len(record.curve) + 1
        cost = _cost(record, step)
        if step == 2 and (reason := fails(record)):
            pool.finish(record.key, record.number, "FAIL", cost=cost, error=reason)
            continue
        distance = _distance(record, plans[record.key]) * (0.5 + 0.5 * step / config.rungs)
        count = len(plans[record.key].scorings)
        scores = _scores(record, labels, distance * _strength(np.arange(count))[:, None], step)
        found = intervals(labels, scores[:, None].astype(np.float64))
        rung = Rung(
            step=step,
            auroc=float(found.value[0]),
            auroc_low=float(found.low[0]),
            auroc_high=float(found.high[0]),
            judged=Judged.of(labels, *found) if count > 1 else None,
            loss=1 / step,
            figures={"memory/seconds": 0.5 * step},
        )
        goes_on = pool.report(record.key, record.number, rung)
        if step == config.rungs:
            content = npz_bytes(scorings=np.arange(count), validation=scores)
            store.storage.write(f"{record.path}.npz", content)
            pool.finish(
                record.key, record.number, "COMPLETE", facts=_facts(record, labels), cost=cost
            )
        elif goes_on:
            busy.append(record)
        else:
            pool.finish(record.key, record.number, "PRUNED", cost=cost)
    return True


def write_confirm_run(
    store: RecordStore,
    labels: npt.NDArray[np.int8],
    trial: TrialRecord,
    distance: float,
    seed: int,
    domains: Sequence[str] | None,
) -> None:
    """Writes a confirm run: record, scores and sheet.

    Args:
        store: The sweep directory.
        labels: Of validation and held-out images, as many of either.
        trial: Whose config it is.
        distance: How far apart its scores keep the classes.
        seed: Of the run.
        domains: Names of shifted domains; ``None`` where nothing is held out.
    """
    paper, distance = distance, distance * float(_strength(np.array(trial.scoring)))
    validation = _scores(trial, labels, distance, f"val{seed}")
    arrays = {"scorings": np.zeros(1, np.int64), "validation": validation[None]}
    record = ConfirmRecord(
        **trial.model_dump(include={"dataset", "category", "method", "number", "params"}),
        seed=seed,
        state="COMPLETE",
        split_hash=trial.split_hash,
        val_auroc=auroc(labels, validation).value,
        facts=_facts(trial, labels),
        cost=_cost(trial, 4),
    )
    if domains is not None:
        scores = _scores(trial, labels, distance * 0.93, f"test{seed}")
        record.test = _figures(labels, scores)
        record.shifted = {
            domain: _figures(
                labels, _scores(trial, labels, distance * 0.8 / index, f"{domain}{seed}")
            )
            for index, domain in enumerate(domains, start=1)
        }
        record.examples = _examples(labels, scores)
        arrays |= {"labels": labels, "held_out": scores, "defects": np.array(defects(labels))}
        if trial.scoring and trial.number == 0:
            papers = _scores(trial, labels, paper * 0.93, f"test{seed}")
            arrays["paper_held_out"] = papers
            record.paper = PaperScored(val_auroc=0.5, test=_figures(labels, papers))
        store.storage.write(f"{record.path}.png", _sheet(tuple(e.defect for e in record.examples)))
    store.storage.write(f"{record.path}.npz", npz_bytes(**arrays))
    store.write(record)


def defects(labels: npt.NDArray[np.int8]) -> list[str]:
    """Returns the defect type of each image; a third of the anomalous ones is scratched."""
    return ["good" if not label else DEFECTS[index % 3 == 0] for index, label in enumerate(labels)]


def _strength(scoring: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns how much better than the paper's a scoring keeps the classes apart."""
    return 1 + 0.15 * np.sin(scoring * 2.4)


def _distance(record: TrialRecord, plan: SearchPlan) -> float:
    """Returns how far apart a config's scores keep the classes; each study has its optimum."""
    best = _METHODS.get(record.method, (2.0, 9.0, 1_000_000, 5.0))[0]
    generator = _generator(record.category, record.method)
    loss = 0.0
    for index, (name, item) in enumerate(plan.distributions.items()):
        optimum = generator.uniform(0.2, 0.8)
        low, high = getattr(item, "low", None), getattr(item, "high", None)
        value = record.params[name]
        if low is None or high is None or low == high:
            position = item.to_internal_repr(value) / max(
                1, len(getattr(item, "choices", "xx")) - 1
            )
        elif getattr(item, "log", False):
            position = math.log(value / low) / math.log(high / low)
        else:
            position = (value - low) / (high - low)
        loss += (position - optimum) ** 2 / (1 + index)
    return best * math.exp(-loss) + generator.uniform(-0.2, 0.2)


def _scores(
    record: TrialRecord,
    labels: npt.NDArray[np.int8],
    distance: float | npt.NDArray[np.float64],
    run: int | str,
) -> npt.NDArray[np.float32]:
    # Half of an image's score is its own difficulty, the same for every detector.
    part = run if isinstance(run, str) else "val"
    shared = _generator(record.category, part[:3]).normal(size=len(labels))
    own = _generator(record.path, run).normal(size=len(labels))
    return (labels * distance + 0.8 * shared + 0.6 * own).astype(np.float32)


def _figures(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> DomainFigures:
    area = auroc(labels, scores)
    return DomainFigures(
        n_normal=int((labels == 0).sum()),
        n_anomalous=int((labels == 1).sum()),
        figures={
            "auroc": area.value,
            "pixel_auroc": 0.5 + area.value / 2.1,
            "aupro": area.value * 0.95,
        },
        auroc_low=area.low,
        auroc_high=area.high,
    )


def _facts(record: TrialRecord, labels: npt.NDArray[np.int8]) -> Facts:
    return Facts(
        n_val_normal=int((labels == 0).sum()),
        n_val_anomalous=int((labels == 1).sum()),
        parameters=_METHODS.get(record.method, (2.0, 9.0, 1_000_000, 5.0))[2],
    )


def _cost(record: TrialRecord, rungs: int) -> Cost:
    _, image_ms, _, seconds = _METHODS.get(record.method, (2.0, 9.0, 1_000_000, 5.0))
    luck = _generator(record.path).uniform(0.9, 1.1)
    return Cost(
        train_seconds=seconds * rungs * luck,
        evaluate_seconds=0.4 * rungs,
        image_ms=image_ms * luck,
        peak_memory_bytes=1 << 30,
    )


def _examples(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> list[Example]:
    types = defects(labels)
    anomalous = sorted(np.flatnonzero(labels == 1), key=lambda index: scores[index])
    normal = sorted(np.flatnonzero(labels == 0), key=lambda index: scores[index])
    chosen = [
        anomalous[0],
        anomalous[len(anomalous) // 2],
        anomalous[-1],
        normal[-1],
        normal[len(normal) // 2],
    ]
    return [
        Example(
            kind=kind,
            key=f"test/{types[index]}/{index:03d}.png",
            defect=types[index],
            score=float(scores[index]),
        )
        for kind, index in zip(_KINDS, chosen, strict=True)
    ]


@cache
def _sheet(defects: tuple[str, ...], side: int = 96) -> bytes:
    """Returns a PNG with a row per example: image, true defect outlined, heat map."""
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    rows_of_sheet = []
    for index, name in enumerate(defects):
        image = np.full((side, side, 3), (138, 143, 152), np.uint8)
        image[np.hypot(rows, columns) < 0.4] = (185, 165, 141)
        defect = (abs(rows - columns) < 0.03) & (abs(rows) < 0.12) & (name != "good")
        image[defect] = (51, 38, 28)
        anomaly_map = np.exp(-60 * ((rows - 0.03 * index) ** 2 + columns**2))
        heat = overlay(image, anomaly_map, 0.2, 1.0 if name != "good" else 3.0)
        rows_of_sheet.append([image, outline(image, defect), heat])
    return png_bytes(sheet(rows_of_sheet))


def _generator(*names: object) -> np.random.Generator:
    text = "/".join(map(str, names))
    return np.random.default_rng(list(text.encode()))
