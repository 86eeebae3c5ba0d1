"""Trains what `choose.py` compares rules on: many configs of every method on five sets of images.

Every config is what a search would try: trial 0 of its study, then random points of its space,
with MobileNetV2 and short trainings at 64 to 96 pixels. At each rung the evidence of all test
images is kept, with the seconds that it took; no image is. Validation and held-out images are
chosen among the test images afterwards. At the last rung normal images that were left out of the
training, and damaged copies of them, say what validation without labels would.

Run ``python tests/benchmarks/search_quality/record.py WORK``: trained configs go to the folder
WORK, one file each, and a start goes on where the last one ended. ``--only battery_weld`` does one
set. `tables.py` makes of them the tables that `play.py` plays on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROJECT = Path(__file__).parent.parent.parent.parent
SHARED = PROJECT.parent / "shared"
RUNGS = 4
#: Training images beyond these tell a short training nothing new.
TRAIN = 160
#: Normal training images whose evidence is kept as well.
NORMAL = 32
#: Normal images that no training sees, and copies of each by every sort of damage: validation
#: without labels.
HELD, COPIES = 10, 2


@dataclass(frozen=True)
class ImageSet:
    """Some images of one category.

    Attributes:
        dataset: How the dataset is registered.
        root: Its folder below the shared data; "" for none.
        category: The category.
        image_size: Side of maps in pixels.
        every: Every so many test images take part.
    """

    dataset: str
    root: str
    category: str
    image_size: int
    every: int = 1


SETS = {
    "battery_weld": ImageSet("folder", "battery_weld", "battery_weld", 64),
    "magnetic_tile": ImageSet("folder", "magnetic_tile", "magnetic_tile", 64, every=4),
    "mnist_8": ImageSet("mnist", "", "8", 64, every=60),
    "synthetic_grain": ImageSet("synthetic", "", "grain", 64),
    "synthetic_board": ImageSet("synthetic", "", "board", 64),
}
#: How many configs of each method.
CONFIGS = {
    **dict.fromkeys(("padim", "patchcore", "rd4ad", "recontrast"), 24),
    **dict.fromkeys(("gmm_contrastive", "gnl", "spr", "ssae"), 8),
}
_SMALL = {"backbone": "mobilenet_v2", "batch_size": 8}
FIXED: dict[str, dict[str, Any]] = {
    "padim": {"backbone": "mobilenet_v2"},
    "patchcore": {"backbone": "mobilenet_v2"},
    "rd4ad": _SMALL,
    "recontrast": {**_SMALL, "iterations": 60},
    "gmm_contrastive": {"backbone": "mobilenet_v2", "iterations": 60},
    "gnl": _SMALL,
    "spr": {"width": 8, "lr": 1e-3, "ema_decay": 0.99, "resolution": 64},
    "ssae": {"width": 16, "iterations": 200, "lr": 2e-3, "resolution": 64},
}
#: Optimiser steps of the methods that count epochs.
STEPS = {"rd4ad": 60, "gnl": 40, "spr": 100}
#: Methods whose input size is searched, in halves of the maps' side.
SIZED = {"padim": (2, 3, 4), "patchcore": (2, 3, 4), "rd4ad": (2, 3), "recontrast": (2, 3)}


@dataclass(frozen=True)
class Config:
    """One config of one method on one set; number 0 is trial 0 of the study."""

    images: str
    method: str
    number: int

    def path(self, work: Path) -> Path:
        """Returns where its evidence lies."""
        return work / self.images / f"{self.method}-{self.number:02d}.npz"


def wanted(only: Collection[str]) -> Iterator[Config]:
    """Yields all configs, those of every study that come first first."""
    for number in range(max(CONFIGS.values())):
        for images in SETS:
            for method, count in CONFIGS.items():
                if number < count and images in only:
                    yield Config(images, method, number)


def draw(config: Config, n_train: int) -> tuple[Any, dict[str, Any]]:
    """Returns the hyperparameters of a config, and where in the space they are."""
    import optuna

    from anomtune.search.config import MethodConfig
    from anomtune.search.decide.plan import plan_search

    images, fixed = SETS[config.images], dict(FIXED[config.method])
    if steps := STEPS.get(config.method):
        batch = fixed.get("batch_size", 16)
        fixed["epochs"] = max(1, round(steps / -(-n_train // batch)))
    size = images.image_size
    sides = [size * factor // 2 for factor in SIZED.get(config.method, ())]
    space = {"resolution": {"choices": sides}} if sides else {}
    if not sides and config.method not in ("spr", "ssae"):
        fixed["resolution"] = None
    plan = plan_search(
        config.method,
        MethodConfig(fixed=fixed, space=space),
        images.dataset,
        images.category,
        image_size=size,
    )
    point = plan.anchor()[0] | ({"resolution": size} if sides else {})
    if config.number > 0:
        sampler = optuna.samplers.RandomSampler(seed=config.number)
        point = optuna.create_study(sampler=sampler).ask(plan.distributions).params
    return plan.hyperparameters(point), point


class Opened(NamedTuple):
    """What a config is trained and tried on.

    Attributes:
        detector: Untrained.
        point: Where in the space its hyperparameters are.
        seen: Training images ``(N, 3, I, I)``.
        test: Test images ``(M, 3, I, I)``.
        labels: Theirs, ``(M,)``.
        held: Normal images ``(K, I, I, 3)`` that are not trained on.
    """

    detector: Any
    point: dict[str, Any]
    seen: Any
    test: Any
    labels: Any
    held: Any


def open_config(config: Config) -> Opened:
    """Opens what a config is trained and tried on."""
    from anomtune.datasets.opening import open_dataset
    from anomtune.datasets.splits.held_out import load_whole_test
    from anomtune.datasets.splits.split import load_search_split
    from anomtune.datasets.splits.validation import Validation
    from anomtune.registry import METHODS

    images, whole = SETS[config.images], Validation(protocol="test")
    root = None if images.dataset == "synthetic" else SHARED / "data" / images.root
    dataset = open_dataset(images.dataset, root)
    known = load_search_split(dataset, images.category, images.image_size, whole)
    n_train = min(len(known.train) - HELD, TRAIN)
    hyperparameters, point = draw(config, n_train)
    side, resize = hyperparameters.input_size(images.image_size), hyperparameters.resize
    split = load_search_split(
        dataset, images.category, images.image_size, whole, input_size=side, resize=resize
    )
    test = load_whole_test(dataset, images.category, side, resize)
    detector = METHODS.get(config.method)(
        hyperparameters, image_size=images.image_size, device="cpu", seed=0
    )
    detector.first_image = split.first_image if split.first_image < n_train else 0
    return Opened(
        detector,
        point,
        seen=as_tensor(split.train[:n_train]),
        test=as_tensor(test.images[:: images.every]),
        labels=test.labels[:: images.every],
        held=split.train[n_train : n_train + HELD],
    )


def as_tensor(pixels: Any) -> Any:
    """Returns images ``(N, I, I, 3)`` as detectors take them."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def train(config: Config, path: Path) -> None:
    """Trains a config and writes what it says of the test images at each rung."""
    opened = open_config(config)
    detector = opened.detector
    arrays: dict[str, Any] = {"labels": opened.labels}
    hyperparameters = detector.hyperparameters
    about = {
        "params": hyperparameters.model_dump(mode="json"),
        "point": opened.point,
        "scales": list(hyperparameters.scales),
        **_rungs(detector, opened.seen, opened.test, arrays, every_pass=config.number == 0),
    }
    _keep(arrays, "synthetic", detector, _observe(detector, as_tensor(damaged(opened.held))))
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        np.savez(file, **arrays)
    draft.rename(path)


def damaged(normal: Any) -> Any:
    """Returns normal images and then their damaged copies, sort by sort."""
    from anomtune.datasets.splits.damage import MECHANISMS, damage

    copies = [
        damage(image, name, np.random.default_rng([number, copy, kind])).image
        for kind, name in enumerate(MECHANISMS)
        for number, image in enumerate(normal)
        for copy in range(COPIES)
    ]
    return np.stack([*normal, *copies])


def _rungs(
    detector: Any, seen: Any, chosen: Any, arrays: dict[str, Any], *, every_pass: bool
) -> dict[str, Any]:
    """Trains a detector rung by rung, keeps its evidence and returns what it took.

    Args:
        detector: Untrained.
        seen: Training images.
        chosen: Test images.
        arrays: Takes the evidence.
        every_pass: Whether scorings that need a pass of their own are looked at too.
    """
    scoring = detector.scoring
    total = detector.hyperparameters.training_iterations(len(seen))
    normal = seen[:: max(1, len(seen) // NORMAL)][:NORMAL]
    rungs, passes = [], [scoring]
    for rung in range(1, RUNGS + 1):
        iterations = rung * total // RUNGS - detector.iteration
        if iterations == 0:
            continue
        begin = time.process_time()
        detector.fit(seen, iterations)
        fitted = time.process_time()
        found = _observe(detector, chosen)
        arrays[f"{rung}/paper"] = detector.judge(found, scoring)[1].numpy()
        rungs.append({"rung": rung, "fit": fitted - begin, "score": time.process_time() - fitted})
        if rung == RUNGS and every_pass:
            passes += _forward(scoring)
        for number, other in enumerate(passes):
            detector.scoring = other
            shown = found if number == 0 else _observe(detector, chosen)
            _keep(arrays, f"{rung}/{number}/test", detector, shown)
            _keep(arrays, f"{rung}/{number}/normal", detector, _observe(detector, normal))
        detector.scoring = scoring
    dumped = [other.model_dump(mode="json") for other in passes]
    return {"rungs": rungs, "passes": dumped, "iterations": total}


def _forward(scoring: Any) -> Iterator[Any]:
    """Yields the scorings that need another pass over the images."""
    from anomtune.models.ranges import choices_of

    for name in sorted(scoring.forward):
        for value in choices_of(type(scoring), name):
            if value != getattr(scoring, name):
                yield scoring.changed({name: value})


def _observe(detector: Any, pixels: Any) -> Any:
    import torch

    from anomtune.models.layers.evidence import Evidence

    return Evidence.joined([detector.observe(batch) for batch in torch.split(pixels, 32)])


def _keep(arrays: dict[str, Any], name: str, detector: Any, found: Any) -> None:
    """Keeps evidence, at no more than the maps' side."""
    largest = detector.image_size
    for scale, given in enumerate(found.maps):
        maps = given if given.shape[-1] <= largest else detector.resized(given, largest)
        arrays[f"{name}/{scale}"] = maps.numpy().astype(
            np.float16 if maps.max() < 6e4 else np.float32
        )
    if found.scores is not None:
        arrays[f"{name}/own"] = found.scores.numpy()


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=SETS, nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str((SHARED / "weights").resolve()))
    import torch

    torch.set_num_threads(1)
    for config in wanted(arguments.only):
        path = config.path(arguments.work)
        if path.exists():
            continue
        begin, spent = time.perf_counter(), time.process_time()
        train(config, path)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - spent
        print(f"{config} {seconds:.1f} s, {cpu:.1f} of CPU", flush=True)


if __name__ == "__main__":
    main()
