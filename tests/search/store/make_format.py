"""Writes the sweep directory that later versions must be able to read and go on with.

To be run once for each format, when `FORMAT` has been raised; what it has written is checked in and
never written again. A real sweep of the toy method: two categories of tiny images, trials that
completed, were stopped and failed, confirm runs, a detector, and a trial that a killed driver left.

Run: python tests/search/store/make_format.py
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from anomtune.search.config import parse_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.store.directory import FORMAT
from anomtune.search.store.records import TrialRecord
from anomtune.search.sweep import run
from tests.conftest import draw_category  # also makes the toy method known

#: Where the images lie, as the checked-in files have it.
IMAGES = "/images-of-line-3"
#: What is kept: records, what belongs to them, and a detector; the rest is made of these.
KEPT = ("sweep.yaml", "searched.json", "held_out.json", "trials", "confirm", "scorings", "models")
SWEEP = {
    "name": "line-3",
    "dataset": {"name": "folder"},
    "image_size": 32,
    "trials": 8,
    "rungs": 4,
    "methods": {
        "toy": {"space": {"behaviour": {"choices": ["work", "raise"]}}},
    },
    "pruner": "successive_halving",
    "sampler": "random",
    "confirm": {"top": 1, "seeds": [1]},
}


def main() -> None:
    """Writes ``format_N`` beside this file."""
    target = Path(__file__).parent / f"format_{FORMAT}"
    if target.exists():
        raise SystemExit(f"{target}: is there, and must stay as it was written")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["ANOMTUNE_CACHE"] = str(root / "cache")
        for seed, category in enumerate(("cup", "plate")):
            draw_category(root / "images" / category, train=2, good=4, bad=4, size=8, seed=seed)
        dataset = {"name": "folder", "root": str(root / "images")}
        states: set[str] = set()
        with ray_cluster(None):
            for seed in range(20):
                shutil.rmtree(root / "sweep", ignore_errors=True)
                config = parse_sweep(SWEEP | {"dataset": dataset, "seed": seed}, "the fixture")
                result = run(config, root / "sweep")
                states = {trial.state for study in result for trial in study.trials}
                if states == {"COMPLETE", "PRUNED", "FAIL"}:
                    break
        assert len(states) == 3, states
        failed = [trial for trial in result["plate", "toy"].trials if trial.state == "FAIL"]
        _leave_one_running(root / f"sweep/{failed[-1].path}.json")
        shutil.copytree(root / "images", target / "images")
        (target / "sweep").mkdir()
        for name in KEPT:
            source = root / "sweep" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / "sweep" / name)
        _forget_this_machine(target, str(root / "images"))


def _leave_one_running(path: Path) -> None:
    record = TrialRecord.model_validate_json(path.read_text())
    changes = {"state": "RUNNING", "curve": [], "facts": None, "error": None, "traceback": None}
    path.write_text(record.model_copy(update=changes).model_dump_json(indent=1))
    path.with_suffix(".npz").unlink(missing_ok=True)


def _forget_this_machine(target: Path, images: str) -> None:
    for path in target.rglob("*.yaml"):
        path.write_text(path.read_text().replace(images, IMAGES))
    for path in (target / "sweep/trials").rglob("*.json"):
        record = TrialRecord.model_validate_json(path.read_text())
        path.write_text(record.model_copy(update={"traceback": None}).model_dump_json(indent=1))


if __name__ == "__main__":
    main()
