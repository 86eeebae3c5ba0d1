"""Scores and heat maps of new images from a saved detector.

In Python::

    import anomtune as at

    model = at.load_model("models/bottle")
    for p in model.predict(["new_images"]):
        print(p.path, p.score, p.anomalous)

Images are decoded in threads, a batch ahead of the detector, so that a million of them take no more
memory than a hundred.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from anomtune.datasets.io.files import image_files
from anomtune.datasets.io.imagefile import read_rgb, resize_image, workers
from anomtune.errors import ImageError
from anomtune.models.base import Detector
from anomtune.search.detector.devices import as_images, choose_device
from anomtune.search.detector.saved import SavedConfig, load_detector, save_model
from anomtune.search.store.storage import Storage

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of one image.

    Attributes:
        path: The file.
        score: Higher where more anomalous.
        anomalous: Whether the score reaches the model's threshold.
        map: float32 ``(S, S)``, higher where more anomalous.
        image: uint8 ``(I, I, 3)``, as the detector saw it.
    """

    path: Path
    score: float
    anomalous: bool
    map: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Model:
    """A trained detector and what is known of it.

    Attributes:
        detector: Trained. A loaded one cannot go on training.
        config: What its folder's ``config.yaml`` says.
    """

    detector: Detector[Any]
    config: SavedConfig

    def predict(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        batch_size: int = 32,
        unreadable: list[ImageError] | None = None,
        passed_over: list[Path] | None = None,
    ) -> Iterator[Prediction]:
        """Yields a prediction for each image, in the order of `image_files`.

        Args:
            paths: Image files, and folders that are searched for some, or one of either.
            batch_size: Images that pass through the network together.
            unreadable: Takes the errors of the files that cannot be read, which are left out.
                Without it the first such file is an error.
            passed_over: Takes what is left out of folders: no images by name, or hidden.

        Raises:
            ImageError: If a file cannot be read and ``unreadable`` is not given.
        """
        side, resize = self.detector.input_size, self.detector.hyperparameters.resize
        if isinstance(paths, str | os.PathLike):
            paths = [paths]

        def decode(path: Path) -> npt.NDArray[np.uint8] | ImageError:
            try:
                return resize_image(read_rgb(path), side, resize)
            except ImageError as error:
                return error

        with ThreadPoolExecutor(workers()) as pool:
            for files, futures in _ahead(pool, decode, image_files(paths, passed_over), batch_size):
                good, images = [], []
                for path, future in zip(files, futures, strict=True):
                    decoded = future.result()
                    if not isinstance(decoded, ImageError):
                        good.append(path)
                        images.append(decoded)
                    elif unreadable is None:
                        raise decoded
                    else:
                        unreadable.append(decoded)
                if good:
                    yield from self._predict(good, np.stack(images))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a model folder that `load_model` reads, or replaces the one that is there.

        Args:
            directory: A local path or a pyarrow filesystem URI.

        Raises:
            StorageError: If it cannot be written.
        """
        save_model(Storage(directory), "", self.detector, self.config)

    def _predict(self, paths: list[Path], images: npt.NDArray[np.uint8]) -> Iterator[Prediction]:
        maps, scored = self.detector.predict(as_images(images, self.detector.device))
        scores = scored.float().cpu().tolist()
        arrays = maps.float().cpu().numpy()
        for path, score, anomaly_map, image in zip(paths, scores, arrays, images, strict=True):
            anomalous = score >= self.config.threshold
            yield Prediction(path, score, anomalous, anomaly_map, image)


def load_model(
    directory: str | os.PathLike[str], device: torch.device | str | None = None
) -> Model:
    """Opens a model folder, as ``anomtune train`` and a sweep's confirm runs write it.

    Args:
        directory: A local path or a pyarrow filesystem URI.
        device: Where the detector shall run; default: a GPU if there is one.

    Raises:
        MethodError: If there is no model, or it cannot be used here; says what to do.
    """
    return Model(*load_detector(directory, choose_device(None if device is None else str(device))))


def _ahead(
    pool: ThreadPoolExecutor, decode: Callable[[Path], D], files: Iterator[Path], batch_size: int
) -> Iterator[tuple[list[Path], list[Future[D]]]]:
    """Yields batches of files and what becomes of them, when the next batch has been started."""
    started: deque[tuple[list[Path], list[Future[D]]]] = deque()
    while batch := list(islice(files, batch_size)):
        started.append((batch, [pool.submit(decode, path) for path in batch]))
        if len(started) == 2:
            yield started.popleft()
    yield from started
