"""The example of the documentation, as a user would write it: search, read, load, predict.

Run as a script: ``python line_3.py IMAGES OUT``. ``IMAGES`` is a folder in MVTec's layout.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import anomtune as at


class MineHyperparameters(at.Hyperparameters):
    """What can be set of `Mine`."""

    width: Annotated[int, at.IntRange(low=2, high=8)] = Field(
        default=4, ge=1, description="Channels of the code. Source: ours."
    )
    lr: Annotated[float, at.FloatRange(low=1e-3, high=1e-1, log=True)] = Field(
        default=1e-2, gt=0, description="Learning rate of Adam. Source: ours."
    )
    steps: int = Field(default=20, ge=1, description="Optimiser steps. Source: ours.")

    def training_iterations(self, n_images: int) -> int:
        """Returns the steps."""
        return self.steps


@at.register_method("mine")
class Mine(at.GradientDetector[MineHyperparameters]):
    """An autoencoder of patches: what it cannot rebuild is anomalous."""

    def build(self) -> nn.Module:
        """Returns the autoencoder."""
        width = self.hyperparameters.width
        return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ConvTranspose2d(width, 3, 4, 4))

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the error of the reconstruction."""
        return F.mse_loss(self.network(images / 255), images / 255)

    def evidence(self, images: Tensor) -> at.Evidence:
        """Returns the squared error of each pixel."""
        error = self.network(images / 255) - images / 255
        return at.Evidence((error.square().mean(1),))


@at.register_dataset("stripes")
class Stripes(at.Dataset):
    """Drawn stripes, and some with a blot."""

    def categories(self) -> tuple[str, ...]:
        """Returns the one category."""
        return ("cloth",)

    def scan(self, category: str) -> tuple[tuple[at.Sample, ...], tuple[at.Problem, ...]]:
        """Lists the images by key, and what is wrong with them: nothing."""
        if category != "cloth":
            raise at.DataError(f"stripes: no category {category!r}; there is cloth")
        kinds = (("test", "blot"), ("test", "good"), ("train", "good"))
        return tuple(
            at.Sample(f"{part}/{kind}/{i}", part, kind, f"mask/{i}" if kind == "blot" else None)
            for part, kind in kinds
            for i in range(8)
        ), ()

    def file_digest(self, category: str, key: str) -> str:
        """Returns the key: an image depends on nothing else."""
        return self._known(category, key)

    def read_image(self, category: str, key: str) -> np.ndarray:
        """Draws an image."""
        random = np.random.default_rng(list(self._known(category, key).encode()))
        image = np.full((32, 32, 3), 90, np.uint8)
        image[:, ::4] = 130
        image += random.integers(0, 20, image.shape, dtype=np.uint8)
        if "blot" in key:
            image[self.read_mask(category, key.replace("test/blot", "mask"))] = 250
        return image

    def read_mask(self, category: str, key: str) -> np.ndarray:
        """Draws a mask."""
        self._known(category, key)
        return np.pad(np.ones((8, 8), bool), ((8, 16), (8, 16)))

    def _known(self, category: str, key: str) -> str:
        samples, _ = self.scan(category)
        if key not in {name for sample in samples for name in (sample.key, sample.mask)}:
            raise at.DataError(f"stripes: no image {key!r} in {category!r}")
        return key


def main(images: str, out: Path) -> None:
    """Runs two small sweeps and uses what they leave."""
    events = []
    sweep = at.Sweep(
        name="line-3",
        dataset=at.Folder(images),
        methods={"mine": {}, "lab.detectors:Brightness": {}},
        sampler="lab.samplers:make",
        image_size=32,
        trials=3,
        rungs=2,
        confirm={"top": 1, "seeds": [1]},
    )
    result = at.run(sweep, out / "line-3", on_event=events.append)
    print(*events, sep="\n")
    assert result.finished

    result = at.open_sweep(out / "line-3")
    print(result.leaderboard.select(["category", "rank", "method", "val_auroc", "gain"]))
    assert result.leaderboard.num_rows == 4
    assert result.trials.num_rows == 2 * 3 + 2 * 1  # nothing of Brightness is searched
    assert {trial.number for trial in result["plate", "mine"].trials} == {0, 1, 2}
    assert result["plate", "mine"].trials[0].params["width"] == 4

    best = result.best("plate")
    model = best.load(device="cpu")
    scored = list(model.predict([Path(images) / "plate/test"]))
    assert len(scored) == 12
    for prediction in scored[:2]:
        print(prediction.path.name, prediction.score, prediction.anomalous)

    again = at.train(best.spec, device="cpu")
    again.save(out / "again")
    assert at.load_model(out / "again").config.measured.auroc == best.row["val_auroc"]

    drawn = at.Sweep(
        name="cloth",
        dataset=Stripes(),
        methods={"mine": {}},
        pruner="none",
        image_size=32,
        trials=2,
        rungs=2,
        confirm=0,
    )
    assert at.run(drawn, out / "cloth").best("cloth").method == "mine"

    at.testing.check_method(Mine, image_size=32)
    at.testing.check_dataset(Stripes())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    print("all as documented")
