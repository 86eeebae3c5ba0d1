"""What it saves that frozen encoders look at each image once: trials of a study with and without.

Trials of ``patchcore``, ``padim``, ``rd4ad`` and ``recontrast`` on one category, as a worker runs
them but for Ray: opened, trained, all scorings judged, scores and time of an image. Every other
trial computes all features anew. The first one with them fills the cache and is told apart.

Run ``python tests/benchmarks/known_features.py [ROOT CATEGORY] [--image-size 224] [--trials 3]``;
without ROOT, a folder in MVTec AD's layout, on the built-in washers. The weights are random unless
``--weights imagenet``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from anomtune.search.config import parse_sweep
from anomtune.search.decide.plan import plan_studies
from anomtune.search.detector.opened import OpenedDetector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.run.trial import TrialSpec, run_trial

#: As long as a trial that is stopped early.
METHODS: dict[str, dict[str, Any]] = {
    "patchcore": {},
    "padim": {},
    "rd4ad": {"iterations": 12},
    "recontrast": {"iterations": 12},
}


def spec(arguments: argparse.Namespace, method: str, folder: str) -> TrialSpec:
    """Returns a trial of the paper's config."""
    fixed = METHODS[method] | {"backbone": arguments.backbone, "weights": arguments.weights}
    source: dict[str, Any] = {"name": "synthetic"}
    if arguments.root is not None:
        source = {"name": "folder", "root": str(arguments.root)}
    sweep = parse_sweep(
        {
            "name": "known",
            "dataset": {**source, "categories": [arguments.category]},
            "image_size": arguments.image_size,
            "methods": {method: {"fixed": fixed}},
        },
        "known",
    )
    (plan,) = plan_studies(sweep).values()
    training = TrainingSpec(
        dataset=sweep.dataset.model_dump(include={"name", "root"}),
        category=arguments.category,
        method=method,
        image_size=arguments.image_size,
        validation=sweep.validation,
        seed=0,
        hyperparameters=plan.defaults.model_dump(mode="json"),
    )
    return TrialSpec(
        training=training,
        directory=folder,
        record_path="known/0",
        rungs=2,
        threads=1,
        gpu=0,
        pinned=plan.pinned,
    )


@contextmanager
def nothing_known() -> Iterator[None]:
    """Lets every trial compute all features itself."""
    with mock.patch.object(OpenedDetector, "know_features", return_value=None):
        yield


def seconds(trial: TrialSpec) -> tuple[float, float]:
    """Returns the seconds that a trial takes, and its AUROC."""
    begin = time.perf_counter()
    *_, last = run_trial(trial)
    return time.perf_counter() - begin, last.rung.auroc


def main() -> None:
    """Prints seconds per trial, and how far apart the AUROCs are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("category", nargs="?", default="washer")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | anew | first | then | ratio | AUROC apart |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANOMTUNE_CACHE"] = f"{folder}/cache"
        for method in METHODS:
            trial = spec(arguments, method, folder)
            with nothing_known():
                seconds(trial)  # the images are decoded
            first, _ = seconds(trial)
            anew, then, apart = [], [], 0.0
            for _ in range(arguments.trials):
                with nothing_known():
                    taken, plain = seconds(trial)
                anew.append(taken)
                taken, known = seconds(trial)
                then.append(taken)
                apart = max(apart, abs(plain - known))
            one, other = statistics.median(anew), statistics.median(then)
            figures = f"{one:.2f} s | {first:.2f} s | {other:.2f} s | {one / other:.1f}"
            print(f"| {method} | {figures} | {apart:.4f} |", flush=True)


if __name__ == "__main__":
    main()
