"""What a trial costs that does no work: in anomtune, and in plain Ray Tune with OptunaSearch.

Both run in the same Ray instance, in turn. Ours is the whole engine: pool, records, curves,
scores on disk, image cache, AUROC. Plain Ray Tune runs a function that reports a number.

Run: python tests/benchmarks/trial_overhead.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.sweep import run
from tests.conftest import draw_category  # also makes the toy method known


def plain_ray_tune(trials: int, storage: str) -> float:
    """Returns the seconds per trial of a function trainable under OptunaSearch."""

    def objective(config: dict) -> None:
        tune.report({"value": config["quality"]})

    begin = time.perf_counter()
    tune.Tuner(
        objective,
        param_space={"quality": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max",
            search_alg=OptunaSearch(),
            num_samples=trials,
            max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(storage_path=storage, verbose=0),
    ).fit()
    return (time.perf_counter() - begin) / trials


def sweep(root: Path, categories: int, trials: int) -> Sweep:
    """Returns a sweep of the toy method: one rung, no sleep, nothing to learn."""
    names = [f"category-{index:02}" for index in range(categories)]
    return parse_sweep(
        {
            "name": "overhead",
            "dataset": {"name": "folder", "root": str(root), "categories": names},
            "image_size": 32,
            "trials": trials,
            "rungs": 1,
            "methods": {"toy": {}},
            "confirm": 0,
        },
        "benchmark",
    )


def anomtune(config: Sweep) -> float:
    """Returns the seconds per trial of a sweep, start and tables included."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        result = run(config, directory)
        seconds = time.perf_counter() - begin
        done = sum(row["completed"] for row in result.leaderboard.to_pylist())
    return seconds / done


def main() -> None:
    """Prints both ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    scale = 10 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["ANOMTUNE_CACHE"] = str(root / "cache")
        for index in range(60):
            draw_category(
                root / "data" / f"category-{index:02}", train=2, good=4, bad=4, seed=index
            )
        with ray_cluster(None):
            few, many = sweep(root / "data", 6, 50 // scale), sweep(root / "data", 60, 50 // scale)
            anomtune(few)  # decode the images, warm the page cache
            plain, ours = [], []
            for _ in range(3):
                plain.append(plain_ray_tune(40 // scale or 4, str(root / "tune")))
                ours.append(anomtune(few))
            ratio = statistics.median(p / o for p, o in zip(plain, ours, strict=True))
            print(f"plain Ray Tune + OptunaSearch: {statistics.median(plain):.3f} s a trial")
            print(f"anomtune, 6 studies x 50:      {statistics.median(ours):.3f} s a trial")
            print(f"ratio: {ratio:.1f}x less (must be at least 10)")
            large = anomtune(many)
            print(f"anomtune, 60 studies x 50:     {large:.3f} s a trial")
            print(f"growth: {large / statistics.median(ours):.2f}x (must be at most 1.3)")


if __name__ == "__main__":
    main()
