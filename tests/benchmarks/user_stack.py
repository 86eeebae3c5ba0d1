"""What one has without anomtune, against ``anomtune sweep``: seconds per trial, and to an answer.

The other side is Ray Tune with OptunaSearch and ASHA around `straightforward.py`: images from their
files through a DataLoader, float32, one process per trial, maps and scores as the official code
makes them. Both run in the same Ray instance, on the same real images, two trials at a time with
one thread each.

``trials``: anomtune searches with the papers' scoring; the other side trains the very same configs,
with as many looks, the first at the same iteration. Wall-clock time of it all by the number of
trials, the best validation AUROC, and how many iterations were done.

``answer``: over several splits, the held-out AUROC of what the other side finds best on validation
images; and of what anomtune answers after 1, 2 and 4 trials, scoring searched, the confirm run
with its own held-out images included in the time.

    python tests/benchmarks/user_stack.py trials|answer [--trials 8] [--iterations 48]

Weights of ResNet18 are random where ImageNet's cannot be had: the arithmetic is the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from PIL import Image
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.manifest import manifest
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import MethodError
from anomtune.models.layers.backbones import prepare_weights
from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.pruners import first_look
from anomtune.search.results.result import open_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.sweep import run

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"
ROOT, CATEGORY = SHARED / "data/battery_weld", "battery_weld"
BATCH, RUNGS, REDUCTION = 16, 8, 3
ALPHAS = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0)
BACKBONES = ("resnet18", "mobilenet_v2")
#: What is searched, and what of our methods is not: the other side has it built in.
SPACES: dict[str, dict[str, Any]] = {
    "rd4ad": {"lr": optuna.distributions.FloatDistribution(1e-3, 1e-2, log=True)},
    "recontrast": {
        "decoder_lr": optuna.distributions.FloatDistribution(5e-4, 5e-3, log=True),
        "encoder_lr": optuna.distributions.FloatDistribution(1e-6, 1e-4, log=True),
        "alpha_final": optuna.distributions.CategoricalDistribution(ALPHAS),
    },
}
BUILT_IN: dict[str, dict[str, Any]] = {
    "rd4ad": {"loss": "global", "resolution": None},
    "recontrast": {
        "loss": "global_hm",
        "resolution": None,
        "hm_factor": 0.0,
        "encoder_bn": "train",
        "alpha_ramp": 0.1,
        "partial_threshold": 5e-4,
    },
}


@dataclass(frozen=True)
class Cell:
    """What is compared.

    Attributes:
        method: ``rd4ad`` or ``recontrast``.
        backbone: ``resnet18`` or ``mobilenet_v2``.
        size: Side of the images in pixels.
        iterations: Steps of a whole trial.
        split: Seed of the division into validation and held-out images.
    """

    method: str
    backbone: str
    size: int
    iterations: int
    split: int = 0

    @property
    def weights(self) -> str:
        try:
            prepare_weights(self.backbone, "imagenet")
        except MethodError:
            return "random"
        return "imagenet"

    def sweep(self, trials: int, **fields: Any) -> Sweep:
        """Returns the sweep of one study."""
        fixed = BUILT_IN[self.method] | {
            "backbone": self.backbone,
            "weights": self.weights,
            "batch_size": BATCH,
            "iterations": self.iterations,
        }
        content = {
            "name": "user-stack",
            "dataset": {"name": "folder", "root": str(ROOT)},
            "validation": {"protocol": "labelled", "seed": self.split},
            "image_size": self.size,
            "trials": trials,
            "rungs": RUNGS,
            "methods": {self.method: {"fixed": fixed}},
        }
        return parse_sweep(content | fields, "benchmark")


class Images(Dataset):
    """Images and labels, read from their files each time."""

    def __init__(self, files: list[tuple[str, int]], size: int) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


@torch.no_grad()
def score(model: Any, files: list[tuple[str, int]], size: int) -> float:
    """Returns the AUROC of images, one by one, as the official code does it."""
    model.eval()
    scores, labels = [], []
    for image, label in DataLoader(Images(files, size), batch_size=1):
        total = np.zeros((size, size))
        for target, prediction in model.pairs(image):
            distance = 1 - F.cosine_similarity(target, prediction)[:, None]
            total += F.interpolate(
                distance, size=size, mode="bilinear", align_corners=True
            ).numpy()[0, 0]
        scores.append(gaussian_filter(total, sigma=4).max())
        labels.append(int(label))
    model.train()
    return float(roc_auc_score(labels, scores))


def new_model(method: str, backbone: str, weights: str, config: Mapping[str, Any]) -> Any:
    """Returns a model whose encoder has its weights."""
    import straightforward
    import torchvision

    torch.manual_seed(0)
    model = straightforward.METHODS[method](backbone, **config)
    if weights == "imagenet":
        url = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"].url
        state = torch.hub.load_state_dict_from_url(url, weights_only=True)
        network = model.encoder.network
        network.load_state_dict({key: state[key] for key in network.state_dict() if key in state})
    model.prepare()
    return model


def batches(loader: DataLoader) -> Iterator[torch.Tensor]:
    while True:
        for images, _ in loader:
            yield images


def trainable(config: dict[str, Any], cell: Cell, weights: str, parts: Any, *, keep: bool) -> None:
    """Trains one config and reports its validation AUROC at every look, with its model if kept."""
    import straightforward

    torch.set_num_threads(1)
    model = new_model(cell.method, cell.backbone, weights, config).train()
    order = batches(DataLoader(Images(parts["train"], cell.size), BATCH, shuffle=True))
    done = 0
    for look in range(1, RUNGS + 1):
        while done < look * cell.iterations // RUNGS:
            straightforward.step(model, next(order), done, cell.iterations)
            done += 1
        figures = {"auroc": score(model, parts["validation"], cell.size), "steps": done}
        if not keep:
            tune.report(figures)
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            tune.report(figures, checkpoint=tune.Checkpoint.from_directory(folder))


@dataclass(frozen=True)
class Outcome:
    """Seconds of a search by the wall clock, its best validation AUROC and its iterations."""

    seconds: float
    auroc: float
    iterations: int
    held_out: float | None = None


def parts_of(cell: Cell) -> dict[str, list[tuple[str, int]]]:
    """Returns the files and labels of each part, as anomtune divides them."""
    found: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    validation = Validation(protocol="labelled", seed=cell.split)
    for row in manifest(Folder(ROOT), CATEGORY, validation):
        if row.side in found:
            found[row.side].append((str(ROOT / row.key), row.label))
    return found


def user_stack(
    cell: Cell, configs: list[dict[str, Any]], first: int, scratch: Path, *, keep: bool = False
) -> Outcome:
    """Searches with Ray Tune, OptunaSearch and ASHA; what is kept is scored on held-out images."""
    parts, weights = parts_of(cell), cell.weights
    search = OptunaSearch(
        space=SPACES[cell.method], metric="auroc", mode="max", points_to_evaluate=configs
    )
    begin = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trainable, cell=cell, weights=weights, parts=parts, keep=keep),
            {"cpu": 1},
        ),
        tune_config=tune.TuneConfig(
            metric="auroc",
            mode="max",
            search_alg=search,
            scheduler=ASHAScheduler(max_t=RUNGS, grace_period=first, reduction_factor=REDUCTION),
            num_samples=len(configs),
            max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(
            storage_path=str(scratch / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    seconds = time.perf_counter() - begin
    if results.errors:
        raise RuntimeError(f"a trial failed: {results.errors[0]}")
    best, held_out = results.get_best_result(), None
    if keep:
        model = new_model(cell.method, cell.backbone, weights, best.config)
        with best.checkpoint.as_directory() as folder:
            model.load_state_dict(torch.load(Path(folder) / "model.pt", weights_only=True))
        held_out = score(model, parts["test"], cell.size)
    steps = sum(result.metrics["steps"] for result in results)
    return Outcome(seconds, best.metrics["auroc"], steps, held_out)


def anomtune(cell: Cell, trials: int, scratch: Path, **fields: Any) -> tuple[Outcome, list[dict]]:
    """Searches with anomtune; returns the configs that were tried as well."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    sweep = cell.sweep(trials, **fields)
    begin = time.perf_counter()
    result = run(sweep, str(directory))
    seconds = time.perf_counter() - begin
    (row,) = result.leaderboard.to_pylist()
    records = open_sweep(directory)[CATEGORY, cell.method].trials
    if any(record.state not in ("COMPLETE", "PRUNED") for record in records):
        raise RuntimeError(f"a trial failed: {[record.error for record in records]}")
    outcome = Outcome(
        seconds,
        row["val_auroc"],
        sum(record.cost.iterations or 0 for record in records),
        row["test_auroc_mean"],
    )
    names = SPACES[cell.method]
    return outcome, [{name: record.params[name] for name in names} for record in records]


def compare_trials(arguments: argparse.Namespace, scratch: Path) -> None:
    """Prints the table of seconds per trial."""
    print("| method | backbone | px | user's stack | anomtune | ratio | AUROC | iterations |")
    print("|---|---|---|---|---|---|---|---|")
    for method in arguments.methods:
        for backbone in arguments.backbones:
            for size in arguments.sizes:
                cell = Cell(method, backbone, size, arguments.iterations)
                ours, configs = anomtune(
                    cell, arguments.trials, scratch, scoring="paper", confirm=0
                )
                first = first_look(cell.sweep(arguments.trials))
                other = user_stack(cell, configs, first, scratch)
                count = len(configs)
                print(
                    f"| {method} | {backbone} | {size} | {other.seconds / count:.1f} s "
                    f"| {ours.seconds / count:.1f} s | {other.seconds / ours.seconds:.1f} "
                    f"| {other.auroc:.3f}, {ours.auroc:.3f} "
                    f"| {other.iterations}, {ours.iterations} |",
                    flush=True,
                )


def compare_answers(arguments: argparse.Namespace, scratch: Path) -> None:
    """Prints what both sides' answers are worth on held-out images, and when they are there."""
    print("| method | px | split | searcher | trials | seconds | held out |")
    print("|---|---|---|---|---|---|---|")
    seen: dict[str, list[tuple[float, float]]] = {}
    for method in arguments.methods:
        for size in arguments.sizes:
            for split in range(arguments.splits):
                cell = Cell(method, "mobilenet_v2", size, arguments.iterations, split)
                rows: list[tuple[str, int, Outcome]] = []
                for trials in (1, 2, 4):
                    ours, configs = anomtune(
                        cell, trials, scratch, confirm={"top": 1, "seeds": [0]}
                    )
                    rows.append(("anomtune", trials, ours))
                _, configs = anomtune(cell, arguments.trials, scratch, scoring="paper", confirm=0)
                first = first_look(cell.sweep(arguments.trials))
                other = user_stack(cell, configs, first, scratch, keep=True)
                rows.append(("user's stack", len(configs), other))
                for name, trials, found in rows:
                    seen.setdefault(f"{name}, {trials} trials", []).append(
                        (found.seconds, found.held_out)
                    )
                    print(
                        f"| {method} | {size} | {split} | {name} | {trials} "
                        f"| {found.seconds:.1f} | {found.held_out:.3f} |",
                        flush=True,
                    )
    print("\n| searcher | seconds | held out, mean |\n|---|---|---|")
    for name, found in seen.items():
        seconds, held_out = (statistics.mean(values) for values in zip(*found, strict=True))
        print(f"| {name} | {seconds:.1f} | {held_out:.4f} |")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", choices=("trials", "answer"), nargs="?", default="trials")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=48)
    parser.add_argument("--methods", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--splits", type=int, default=3)
    arguments = parser.parse_args()
    if not ROOT.is_dir():
        print("skipped: no ../shared/data")
        return
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None):
        os.environ["ANOMTUNE_CACHE"] = f"{folder}/cache"
        {"trials": compare_trials, "answer": compare_answers}[arguments.question](
            arguments, Path(folder)
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
