"""The adapter beside anomalib's own Engine: image AUROC at the same seed, size and images.

Four models with random weights on the battery welds: both begin from the same weights, see the same
batches and draw the same numbers, so that only the loop differs. Needs anomalib and the welds in
../shared/data.

Run: python tests/benchmarks/anomalib_engine.py [MODEL...]
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomtune.datasets.io.cache import open_category
from anomtune.datasets.opening import open_dataset
from anomtune.models.foreign.borrowed import imported, quiet
from anomtune.models.foreign.loop import as_batch
from anomtune.models.training.batches import BatchOrder
from anomtune.registry import METHODS

WELDS = Path(__file__).parent.parent.parent.parent / "shared/data/battery_weld"
SIZE = 128
SEED = 0
BATCH = 8
MODELS: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "resnet18", "coreset_sampling_ratio": 0.1},
    "padim": {"n_features": 100},
    "stfpm": {"epochs": 4, "batch_size": BATCH},
    "reverse_distillation": {"backbone": "resnet18", "epochs": 3, "batch_size": BATCH},
}


def main() -> None:
    """Prints a line for each model."""
    if not WELDS.is_dir():
        print("skipped: no ../shared/data/battery_weld")
        return
    torch.set_num_threads(1)
    train, test, labels = welds(SIZE)
    for name in sys.argv[1:] or MODELS:
        ours, theirs = compare(name, MODELS[name], train, test, labels)
        print(
            f"{name:22} adapter {ours:.4f}  Engine {theirs:.4f}  "
            f"difference {abs(ours - theirs):.4f} (must be within 0.005)",
            flush=True,
        )


def welds(size: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Returns training images, test images and the labels of these."""
    dataset = open_dataset("folder", str(WELDS))
    (category,) = dataset.categories()
    arrays = open_category(dataset, category, size)
    images = torch.from_numpy(np.asarray(arrays.images)).permute(0, 3, 1, 2)
    train = [row for row, sample in enumerate(arrays.samples) if sample.part == "train"]
    test = [row for row, sample in enumerate(arrays.samples) if sample.part == "test"]
    return images[train], images[test], np.array([arrays.samples[i].anomalous for i in test], int)


def compare(
    name: str, settings: dict[str, Any], train: Tensor, test: Tensor, labels: np.ndarray
) -> tuple[float, float]:
    """Returns the image AUROC of the adapter and that of anomalib's Engine."""
    method = METHODS.get(f"anomalib.{name}")
    hp = method.Hyperparameters(**settings, weights="random")
    detector = method(hp, image_size=train.shape[-1], seed=SEED)
    model = method(hp, image_size=train.shape[-1], seed=SEED).network  # the same weights
    generator = detector.generator.clone_state()
    detector.fit(train, hp.training_iterations(len(train)))
    ours = detector.score(test)
    with quiet():
        theirs, _ = scores_of_engine(model, detector, hp, train, test, generator)
    return roc_auc_score(labels, ours), roc_auc_score(labels, theirs)


def scores_of_engine(
    model: Any, detector: Any, hp: Any, train: Tensor, test: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Trains and scores by anomalib's Engine; returns the test images' scores and fit's seconds."""
    pl = imported("lightning.pytorch")
    engine_kind = imported("anomalib.engine").Engine
    model._trainer = None
    for noisy in ("log", "log_dict"):
        model.__dict__.pop(noisy, None)
    model.pre_processor = None  # images come as it would make them
    one_pass = type(detector).one_pass
    order = BatchOrder(getattr(hp, "batch_size", 16), SEED, smallest=2)

    class Loader:
        def __init__(self, *, training: bool) -> None:
            self.training = training

        def __len__(self) -> int:
            count = len(train if self.training else test)
            return math.ceil(count / getattr(hp, "batch_size", 16))

        def __iter__(self) -> Iterator[Any]:
            if self.training and not one_pass:
                for _ in range(len(self)):
                    yield as_batch(detector.inputs(train[order.draw(len(train))]))
                return
            images = train if self.training else test
            for batch in torch.split(images, getattr(hp, "batch_size", 16)):
                yield as_batch(detector.inputs(batch))

    class Data(pl.LightningDataModule):
        name = category = "welds"

        def train_dataloader(self) -> Any:
            return Loader(training=True)

        def predict_dataloader(self) -> Any:
            return Loader(training=False)

    class SameNumbers(pl.Callback):
        """Before the bank is thinned numbers are drawn: the same as in the adapter."""

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - anomalib draws its projection from these

    with tempfile.TemporaryDirectory() as folder:
        engine = engine_kind(
            max_epochs=1 if one_pass else hp.epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            callbacks=[SameNumbers()] if one_pass else [],
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        data = Data()
        begin = time.perf_counter()
        engine.fit(model=model, datamodule=data)
        seconds = time.perf_counter() - begin
        found = engine.predict(model=model, datamodule=data)
    return torch.cat([batch.pred_score.reshape(-1) for batch in found]), seconds


if __name__ == "__main__":
    main()
