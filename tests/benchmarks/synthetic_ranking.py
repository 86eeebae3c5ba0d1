"""How well synthetic validation ranks configs, on real images whose labels it does not use.

Every config is what a random search would try: trial 0 of a method, then random points of its
space, with MobileNetV2 at 128 pixels (`ssae`: 64) on at most 100 training images and with short
trainings. It is scored on the synthetic validation images of its category (normal training images
that were held out, and damaged copies of them) and on the whole test set, which that protocol
holds out. Spearman's rho says how far the two orders agree: 1 if validation ranks the configs as
the test set does, 0 if it might as well draw lots. Its 95 % interval is a bootstrap over configs.
`ssae` trains on elastic damage, so validation leaves that out, as a sweep does.

Run ``python tests/benchmarks/synthetic_ranking.py``; it writes synthetic_ranking.md beside this
file. ``--limit 2`` runs two configs per dataset and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from side_by_side import run_all

PROJECT = Path(__file__).parent.parent.parent
SHARED = PROJECT.parent / "shared"
TABLE = Path(__file__).with_suffix(".md")

#: Part of the normal training images that validates: tiles are many, and each is scored thrice.
FRACTIONS = {"battery_weld": 0.5, "magnetic_tile": 0.2}
ONE_PASS = ("patchcore", "padim")
#: How many configs of each method.
CONFIGS = {"patchcore": 10, "padim": 6, "rd4ad": 4, "recontrast": 4, "gnl": 4, "ssae": 4}
FIXED: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "mobilenet_v2", "resolution": None},
    "padim": {"backbone": "mobilenet_v2", "resolution": None},
    "rd4ad": {"backbone": "mobilenet_v2", "batch_size": 8, "resolution": None},
    "recontrast": {
        "backbone": "mobilenet_v2",
        "batch_size": 8,
        "iterations": 60,
        "resolution": None,
    },
    "gnl": {"backbone": "mobilenet_v2", "batch_size": 8, "resolution": None},
    "ssae": {
        "corruption": "elastic",
        "resolution": 64,
        "width": 16,
        "iterations": 400,
        "lr": 2e-3,
        "progressive": False,
    },
}
#: Optimiser steps of the methods that count epochs.
STEPS = {"rd4ad": 100, "gnl": 40}
WITHOUT_DAMAGE = ("elastic",)
TRAIN = 100
SIZE = 128
_RESAMPLES = 2000


@dataclass(frozen=True)
class Run:
    """One config on one dataset; number 0 is trial 0 of the method."""

    dataset: str
    method: str
    number: int


@dataclass(frozen=True)
class Result:
    """What came of a run: the point of the space, and the AUROC on either side."""

    params: dict[str, Any]
    validation: float
    held_out: float


def score(run: Run) -> tuple[Run, Result]:
    """Trains a config, and scores the synthetic validation images and the test set."""
    import optuna
    import torch
    from sklearn.metrics import roc_auc_score

    from anomtune.datasets.opening import open_dataset
    from anomtune.datasets.splits.held_out import load_test_split
    from anomtune.datasets.splits.split import load_search_split
    from anomtune.datasets.splits.validation import Validation
    from anomtune.registry import METHODS
    from anomtune.search.config import MethodConfig
    from anomtune.search.decide.plan import plan_search

    torch.set_num_threads(1)
    plan = plan_search(run.method, MethodConfig(fixed=FIXED[run.method]), image_size=SIZE)
    point = plan.anchor()[0]
    if run.number > 0:
        sampler = optuna.samplers.RandomSampler(seed=run.number)
        point = optuna.create_study(sampler=sampler).ask(plan.distributions).params
    hyperparameters = plan.hyperparameters(point)
    side, resize = hyperparameters.input_size(SIZE), hyperparameters.resize
    dataset = open_dataset("folder", SHARED / "data" / run.dataset)
    validation = Validation(
        protocol="synthetic", fraction=FRACTIONS[run.dataset], without_damage=WITHOUT_DAMAGE
    )
    opened = {"input_size": side, "resize": resize}
    search = load_search_split(dataset, run.dataset, SIZE, validation, **opened)
    test = load_test_split(dataset, run.dataset, SIZE, validation, **opened)
    train, seen, held_out = (
        torch.from_numpy(a).permute(0, 3, 1, 2)
        for a in (search.train[:TRAIN], search.validation, test.images)
    )
    if run.method in STEPS:
        epochs = round(STEPS[run.method] * FIXED[run.method]["batch_size"] / len(train))
        hyperparameters = hyperparameters.model_copy(update={"epochs": epochs})
    detector = METHODS.get(run.method)(hyperparameters, image_size=SIZE, seed=0)
    detector.fit(train, hyperparameters.training_iterations(len(train)))
    areas = [
        float(roc_auc_score(labels, detector.score(images).numpy()))
        for images, labels in ((seen, search.validation_labels), (held_out, test.labels))
    ]
    return run, Result(point, *areas)


def rho(results: Sequence[Result]) -> str:
    """Returns Spearman's rho between the two sides and its interval, as text."""
    pairs = np.array([(r.validation, r.held_out) for r in results])
    if len(pairs) < 4:
        return ""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    resampled = [spearmanr(pairs[draw]).statistic for draw in draws if len(set(draw)) > 2]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return f"{spearmanr(pairs).statistic:.2f} ({low:.2f} to {high:.2f})"


def summary(results: dict[Run, Result]) -> str:
    """Returns a Markdown table: for each dataset and set of configs, how well it was ranked."""
    lines = [
        "| dataset | configs | Spearman's rho (95 %) | held-out AUROC of validation's first "
        "| of the best | of the median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for dataset in FRACTIONS:
        for name, methods in (("one-pass", ONE_PASS), ("all", tuple(CONFIGS))):
            found = [
                result
                for run, result in results.items()
                if run.dataset == dataset and run.method in methods
            ]
            if found:
                first = max(found, key=lambda r: r.validation).held_out
                areas = [r.held_out for r in found]
                figures = (first, max(areas), statistics.median(areas))
                cells = [dataset, f"{len(found)} {name}", rho(found)]
                lines.append(f"| {' | '.join([*cells, *(f'{f:.3f}' for f in figures)])} |")
    return "\n".join(lines)


def listing(results: dict[Run, Result]) -> str:
    """Returns a Markdown table of all configs with both AUROCs, the best on the test set first."""
    lines = ["| dataset | method | config | synthetic validation | held-out test |"]
    lines.append("| --- | --- | --- | --- | --- |")
    order = sorted(results.items(), key=lambda item: (item[0].dataset, -item[1].held_out))
    for run, result in order:
        values = (
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result.params.items()
        )
        config = ", ".join(values) + (" (trial 0)" if run.number == 0 else "")
        lines.append(
            f"| {run.dataset} | {run.method} | {config} | {result.validation:.3f} "
            f"| {result.held_out:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=list(FRACTIONS), choices=FRACTIONS)
    parser.add_argument("--methods", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--limit", type=int, help="at most so many configs per dataset")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--log", type=Path, help="JSON lines: finished runs are read from here")
    options = parser.parse_args(arguments)
    if not (SHARED / "data").is_dir():
        print("skipped: no ../shared/data")
        return
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    configs = [(name, number) for name in options.methods for number in range(CONFIGS[name])]
    runs = [
        Run(dataset, *config) for config in configs[: options.limit] for dataset in options.datasets
    ]
    results = run_all(score, runs, Result, processes=options.processes, log=options.log)
    print(summary(results))
    if len(runs) == len(FRACTIONS) * sum(CONFIGS.values()):
        intro = __doc__.split("\n\n")
        TABLE.write_text(f"{intro[0]}\n\n{intro[1]}\n\n{summary(results)}\n\n{listing(results)}\n")


if __name__ == "__main__":
    main()
