"""Measures on one GPU what cannot be tested without; `run.sh` calls it.

For every method: does it train and score, how far apart are the AUROCs of a training in bfloat16
and of one in float32, how many steps a second against a plain loop, for which share of the time is
the GPU busy, and is the result the same where its images do not fit. Then a sweep whose trials
share the GPU by the memory that they need, and what happens when there is not enough of it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import straightforward
import torch
from torch.profiler import ProfilerActivity, profile

from anomtune.models.base import Detector
from anomtune.models.images.pixels import normalise
from anomtune.models.layers import precision
from anomtune.registry import METHODS
from anomtune.search.config import parse_sweep
from anomtune.search.detector import devices
from anomtune.search.detector.devices import limit_memory, wait_for
from anomtune.search.detector.opened import OpenedDetector, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.metrics.image import auroc
from anomtune.search.results.result import open_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.sweep import run

#: Trainings that are long enough to be told from noise.
LENGTH: dict[str, dict[str, Any]] = {
    "rd4ad": {"iterations": 100},
    "recontrast": {"iterations": 100},
    "gnl": {"iterations": 60},
    "gmm_contrastive": {"iterations": 60},
    "spr": {"iterations": 60},
    "ssae": {"iterations": 60},
    "cutpaste": {"iterations": 60},
    "f_anogan": {"iterations": 60},
    "kdad": {"iterations": 60, "weights": "random"},
    "deep_svdd": {"iterations": 100},
    "patchcore": {},
    "padim": {},
}
BACKBONE = "wide_resnet50_2"
TIMED_STEPS = 20


class Settings:
    """Sizes of a run.

    Args:
        dry: Whether it only goes through everything, on a CPU.
    """

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.size = 64 if dry else 256
        self.steps = 1 if dry else TIMED_STEPS
        self.backbone = "mobilenet_v2" if dry else BACKBONE

    def fields(self, method: str) -> dict[str, Any]:
        """Returns the hyperparameters of a method's run."""
        fields = dict(LENGTH[method])
        if "backbone" in METHODS.get(method).Hyperparameters.model_fields:
            fields |= {"backbone": self.backbone, "weights": "random"}
        if self.dry:
            fields |= {"iterations": 2} if "iterations" in fields else {}
            small = {"width": 8, "resolution": 32, "batch_size": 4}
            known = METHODS.get(method).Hyperparameters.model_fields
            sized = "resolution" in known and "backbone" not in known
            fields |= {name: small[name] for name in small if sized and name in known}
        return fields

    def spec(self, method: str) -> TrainingSpec:
        """Returns what is trained: the method on a drawn product."""
        hyperparameters = METHODS.get(method).Hyperparameters(**self.fields(method))
        return TrainingSpec(
            dataset={"name": "synthetic"},
            category="washer",
            method=method,
            image_size=self.size,
            seed=0,
            hyperparameters=hyperparameters.model_dump(mode="json"),
        )


@contextmanager
def in_float32() -> Iterator[None]:
    """Lets networks learn in float32, as they do where there is no bfloat16."""
    with (
        mock.patch.object(precision, "has_bfloat16", return_value=False),
        precision.full_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    ):
        yield


def trained(settings: Settings, method: str) -> tuple[OpenedDetector, float, float]:
    """Trains a method whole; returns it, its AUROC and the seconds that it took."""
    opened = open_detector(settings.spec(method), settings.device)
    begin = time.perf_counter()
    opened.detector.fit(opened.train, opened.iterations)
    wait_for(settings.device)
    seconds = time.perf_counter() - begin
    scores = opened.detector.score(opened.validation).cpu()
    if not torch.isfinite(scores).all():
        raise ValueError("scores are not finite")
    return opened, auroc(opened.labels, scores.numpy()).value, seconds


def steps_per_second(settings: Settings, step: Callable[[int], object]) -> float:
    """Returns how many steps a second ``step(count)`` does."""
    step(settings.steps)
    rates = []
    for _ in range(3):
        wait_for(settings.device)
        begin = time.perf_counter()
        step(settings.steps)
        wait_for(settings.device)
        rates.append(settings.steps / (time.perf_counter() - begin))
    return statistics.median(rates)


def busy(settings: Settings, detector: Detector[Any], images: torch.Tensor) -> float:
    """Returns for which share of the time of some steps the GPU computes."""
    if settings.dry:
        return math.nan
    wait_for(settings.device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        detector.fit(images, settings.steps)
        wait_for(settings.device)
        seconds = time.perf_counter() - begin
    kernels = sum(event.self_device_time_total for event in found.key_averages()) / 1e6
    return min(kernels / seconds, 1.0)


def plain_loop(settings: Settings, method: str, images: torch.Tensor) -> float:
    """Returns the steps a second of a loop as one writes it, in float32."""
    backbone = "mobilenet_v2" if settings.dry else "resnet18"
    model = straightforward.METHODS[method](backbone).to(settings.device)
    model.prepare()
    model.train()
    chosen = images[:16].contiguous()

    def steps(count: int) -> None:
        for number in range(count):
            batch = normalise(chosen, settings.device).contiguous()
            straightforward.step(model, batch, number, 2000)

    return steps_per_second(settings, steps)


def measure_methods(settings: Settings) -> None:
    """Prints a row per method."""
    print(
        f"{settings.size} px, {settings.backbone} where there is a backbone\n"
        "| method | AUROC in bfloat16 | in float32 | s | steps/s | float32 | GPU busy |\n"
        "|---|---|---|---|---|---|---|"
    )
    for method in LENGTH:
        opened, value, seconds = trained(settings, method)
        detector = opened.detector
        one_pass = not hasattr(detector, "optimizers")
        rate = math.nan
        share = math.nan
        if not one_pass:
            rate = steps_per_second(settings, lambda n, d=detector, o=opened: d.fit(o.train, n))
            share = busy(settings, detector, opened.train)
        with in_float32():
            again, plain, _ = trained(settings, method)
            slow = math.nan
            if not one_pass:
                slow = steps_per_second(
                    settings, lambda n, d=again.detector, o=again: d.fit(o.train, n)
                )
        print(
            f"| {method} | {value:.3f} | {plain:.3f} | {seconds:.1f} | {rate:.1f} | {slow:.1f} "
            f"| {share:.0%} |",
            flush=True,
        )
        del opened, detector, again
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()


def measure_plain_loop(settings: Settings) -> None:
    """Prints our steps a second with ResNet18 against a plain loop's."""
    print("\n| method, ResNet18 | anomtune, steps/s | plain loop | ratio |\n|---|---|---|---|")
    for method in straightforward.METHODS:
        spec = settings.spec(method)
        backbone = "mobilenet_v2" if settings.dry else "resnet18"
        fields = spec.hyperparameters | {"backbone": backbone}
        opened = open_detector(spec.model_copy(update={"hyperparameters": fields}), settings.device)
        detector = opened.detector
        ours = steps_per_second(settings, lambda n, d=detector, o=opened: d.fit(o.train, n))
        plain = plain_loop(settings, method, opened.train)
        print(f"| {method} | {ours:.1f} | {plain:.1f} | {ours / plain:.2f} |", flush=True)


def check_images_of_the_computer(settings: Settings) -> str:
    """Returns the steps a second where images do not fit on the GPU, against where they do.

    Every method must train and score so, and learn the same as where its images lie on the GPU;
    without one only two are tried.
    """
    rates: list[float] = []
    for method in ("rd4ad", "padim") if settings.dry else LENGTH:
        scores = []
        for part in (1.0, 0.0):
            with mock.patch.object(devices, "_LARGEST_PART", part):
                opened = open_detector(settings.spec(method), settings.device)
            if not settings.dry and opened.train.is_cuda != (part > 0):
                raise RuntimeError("images lie elsewhere")
            opened.detector.fit(opened.train, 1)
            scores.append(opened.detector.score(opened.validation))
            if method == "rd4ad":
                step = opened.detector.fit
                rates.append(steps_per_second(settings, lambda n, f=step, o=opened: f(o.train, n)))
        if not torch.allclose(*scores, rtol=1e-2, atol=1e-4):
            raise RuntimeError(f"{method}: scores differ by {(scores[0] - scores[1]).abs().max()}")
    return f"rd4ad {rates[1]:.1f} steps/s, {rates[0]:.1f} with its images on the GPU"


def check_out_of_memory(settings: Settings) -> str:
    """Returns what happens to a training that wants more than its share of the GPU."""
    if settings.dry:
        return "not tried without a GPU"
    opened = open_detector(settings.spec("rd4ad"), settings.device)
    torch.cuda.empty_cache()
    limit_memory(settings.device, torch.cuda.memory_reserved() + (64 << 20))
    try:
        opened.detector.fit(opened.train, 1)
    except torch.OutOfMemoryError:
        outcome = "refused"
    else:
        raise RuntimeError("a training took more than its share of the GPU")
    finally:
        limit_memory(settings.device, torch.cuda.get_device_properties(0).total_memory)
    del opened
    torch.cuda.empty_cache()
    trained(settings, "padim")
    return f"{outcome}, and the process goes on"


def check_packing(settings: Settings) -> str:
    """Returns which shares of the GPU the trials of a sweep had."""
    fields = settings.fields("rd4ad") | {"iterations": 2 if settings.dry else 30}
    sweep = parse_sweep(
        {
            "name": "gpu",
            "dataset": {"name": "synthetic", "categories": ["washer", "grain"]},
            "image_size": settings.size,
            "trials": 4,
            "rungs": 2,
            "confirm": 0,
            "methods": {"rd4ad": {"fixed": fields}},
        },
        "gpu",
    )
    with tempfile.TemporaryDirectory() as directory, ray_cluster(None):
        begin = time.perf_counter()
        run(sweep, directory)
        seconds = time.perf_counter() - begin
        result = open_sweep(directory)
        records = [
            record
            for category in ("washer", "grain")
            for record in result[category, "rd4ad"].trials
        ]
    failed = [record.error for record in records if record.state == "FAIL"]
    shares = sorted({record.cost.gpu or 0 for record in records}, reverse=True)
    if failed:
        raise RuntimeError(f"trials failed: {failed[0]}")
    if not settings.dry and min(shares) >= 1:
        raise RuntimeError("no trial shared the GPU")
    peak = max(record.cost.peak_memory_bytes or 0 for record in records) / 2**30
    return f"shares {shares}, peak {peak:.1f} GiB, {seconds:.0f} s for {len(records)} trials"


def main() -> int:
    """Prints everything; returns how many parts went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="go through it on a CPU")
    settings = Settings(dry=parser.parse_args().dry)
    if not settings.dry and not torch.cuda.is_available():
        print("torch sees no GPU here; --dry goes through it on a CPU")
        return 2
    if not settings.dry:
        print(torch.cuda.get_device_name(), f"bfloat16: {precision.has_bfloat16(settings.device)}")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANOMTUNE_CACHE"] = folder
        parts: dict[str, Callable[[Settings], Any]] = {
            "methods": measure_methods,
            "plain loop": measure_plain_loop,
            "images that do not fit": check_images_of_the_computer,
            "out of memory": check_out_of_memory,
            "packing": check_packing,
        }
        for name, part in parts.items():
            begin = time.perf_counter()
            try:
                said = part(settings)
            except Exception:  # noqa: BLE001 - the others are worth knowing
                wrong += 1
                said = f"WRONG\n{traceback.format_exc()}"
            print(f"\n{name}: {said or 'done'} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
