"""A script as a user writes it: a method of its own, a sweep on Ray, and a process to keep.

Run by test_process.py: python own_script.py IMAGES DIRECTORY
"""

from __future__ import annotations

import gc
import json
import os
import sys

from process_state import changes, process_state

# Loggers, variables and the like that a user has set.
os.environ["TUNE_WARN_THRESHOLD_S"] = "7"
gc.set_threshold(701, 11, 9)

import torch  # noqa: E402
from anomtune_toy import Toy, ToyHyperparameters  # noqa: E402

from anomtune.registry import METHODS  # noqa: E402
from anomtune.search.config import parse_sweep  # noqa: E402
from anomtune.search.sweep import run  # noqa: E402


class MineHyperparameters(ToyHyperparameters):
    """Hyperparameters that no module has."""

    brightness: float = 0.5


@METHODS.register("mine")
class Mine(Toy):
    """A method that no module has."""

    Hyperparameters = MineHyperparameters

    def fit(self, images, iterations):
        return super().fit(images, iterations) | {"brightness": self.hyperparameters.brightness}

    def anomaly_maps(self, images):
        return torch.clamp(super().anomaly_maps(images), max=10)


def main() -> None:
    images, directory = sys.argv[1:]
    sweep = parse_sweep(
        {
            "name": "own",
            "dataset": {"name": "folder", "root": images, "categories": ["plate"]},
            "image_size": 32,
            "trials": 4,
            "rungs": 2,
            "concurrency": 1,
            "methods": {"mine": {"fixed": {"brightness": 0.25}}, "toy": {}},
            "confirm": {"top": 1, "seeds": [1]},
        },
        "script",
    )
    before = process_state()
    result = run(sweep, directory)
    found = changes(before, process_state())
    trials = [record for study in result for record in study.trials]
    print(
        json.dumps(
            {
                "changes": found,
                "finished": result.finished,
                "errors": [record.error for record in trials if record.error],
                "figures": [
                    record.curve and record.curve[-1].figures.get("brightness") for record in trials
                ],
                "methods": [record.method for record in trials],
            }
        )
    )


if __name__ == "__main__":
    main()
