"""Studies of one-pass methods: fifty trials of ours against five of version 0.1.

Both are ``anomtune sweep`` as a user starts it, with a new cache and a new Ray instance, on the
real battery welds: start, decoding, features and all trials. Ours searches, and judges all
scorings of every trial; ``as before`` pins what 0.1 could not search (the encoder's own
resolution), so that trials are drawn from the same space.

Run ``python tests/benchmarks/one_pass.py OTHER [--backbone mobilenet_v2]`` where OTHER is the
interpreter of an environment with version 0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"


def seconds(python: str, config: dict[str, Any]) -> tuple[float, float]:
    """Returns the seconds of a sweep, and the best validation AUROC that it found."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        environment = os.environ | {
            "ANOMTUNE_CACHE": f"{folder}/cache",
            "TORCH_HOME": str(SHARED / "weights"),
        }
        command = [str(Path(python).parent / "anomtune")]
        begin = time.perf_counter()
        subprocess.run(
            [*command, "sweep", str(path), "--dir", f"{folder}/sweep"],
            check=True,
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        taken = time.perf_counter() - begin
        shown = subprocess.run(
            [*command, "leaderboard", f"{folder}/sweep", "--format", "json"],
            check=True,
            env=environment,
            cwd=folder,
            capture_output=True,
        )
        (row,) = json.loads(shown.stdout)
        return taken, row["val_auroc"]


def main() -> None:
    """Prints a row per study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"])
    arguments = parser.parse_args()
    print(
        "| method | 0.1, 5 trials | as before, 50 trials | ratio | our space, 50 trials | ratio |"
    )
    print("|---|---|---|---|---|---|")
    for method in arguments.methods:
        fixed = {"backbone": arguments.backbone, "weights": arguments.weights}

        def config(trials: int, fixed: dict[str, Any], method: str = method) -> dict[str, Any]:
            return {
                "name": "one-pass",
                "dataset": {"name": "folder", "root": str(SHARED / "data/battery_weld")},
                "image_size": 224,
                "trials": trials,
                "methods": {method: {"fixed": fixed}},
                "confirm": 0,
            }

        old, before = seconds(arguments.other, config(5, fixed))
        cells = [f"{old:.1f} s ({before:.3f})"]
        for space in (fixed | {"resolution": None}, fixed):
            taken, auroc = seconds(sys.executable, config(50, space))
            cells += [f"{taken:.1f} s ({auroc:.3f})", f"{taken / old:.2f}"]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
