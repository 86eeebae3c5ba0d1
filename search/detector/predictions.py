"""What ``anomtune predict`` writes: ``scores.csv``, ``scores.json`` and heat maps."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from anomtune.datasets.io.imagefile import resize_image
from anomtune.errors import ImageError, StorageError
from anomtune.search.detector.heatmaps import overlay, png_bytes
from anomtune.search.detector.predict import Prediction
from anomtune.search.detector.saved import SavedConfig

_CSV, _JSON, _MAPS = "scores.csv", "scores.json", "maps"
_PART = ".part"  # Ends the name of a file that is not yet whole.
_FILES = {_CSV, _JSON, _CSV + _PART, _JSON + _PART}


class Results:
    """A folder of results, written image by image, as a context manager.

    The tables get their names when the last image is done: a table that is there is whole. Heat
    maps lie below ``maps`` as the images lie below the folder that all inputs have in common,
    with ``.png`` after their names: two images never share a heat map.

    Args:
        folder: Where; an earlier result there is replaced.
        config: Of the model that predicts.
        inputs: The files and folders that were given.
        maps: Whether heat maps are drawn.

    Raises:
        StorageError: If the folder holds something else, or lies in an input, whose images it would
            add to.
    """

    def __init__(
        self, folder: Path, config: SavedConfig, inputs: Sequence[Path], *, maps: bool
    ) -> None:
        self.folder = folder
        self.n_images = 0
        self.n_anomalous = 0
        self._config = config
        self._maps = maps
        tops = [path if path.is_dir() else path.parent for path in map(_absolute, inputs)]
        self._common = os.path.commonpath(tops)
        _check_target(folder, inputs)

    def __enter__(self) -> Results:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / _MAPS, ignore_errors=True)
        # The csv module ends its lines itself.
        self._csv = (self.folder / (_CSV + _PART)).open("w", encoding="utf-8", newline="")
        self._json = (self.folder / (_JSON + _PART)).open("w", encoding="utf-8")
        self._table = csv.writer(self._csv)
        self._table.writerow(["path", "score", "threshold", "anomalous"])
        head = self._config.model_dump(include={"method", "dataset", "category", "threshold"})
        self._json.write(json.dumps(head)[:-1] + ', "images": [')
        return self

    def add(self, prediction: Prediction) -> None:
        """Writes the rows of one image, and its heat map."""
        path, score = str(prediction.path), prediction.score
        anomalous = str(prediction.anomalous).lower()
        self._table.writerow([path, score, self._config.threshold, anomalous])
        row: dict[str, Any] = {"path": path, "score": score, "anomalous": prediction.anomalous}
        if self._maps:
            row["map"] = self._draw(prediction)
        self._json.write(("," if self.n_images else "") + "\n" + json.dumps(row))
        self.n_images += 1
        self.n_anomalous += prediction.anomalous

    def _draw(self, prediction: Prediction) -> str:
        """Writes the heat map; returns its path below the folder."""
        below = _absolute(prediction.path).relative_to(self._common)
        place = Path(_MAPS, below.with_name(f"{below.name}.png"))
        image = prediction.image
        if len(image) != self._config.image_size:
            image = resize_image(image, self._config.image_size)
        picture = overlay(image, prediction.map, self._config.map_low, self._config.map_high)
        target = self.folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png_bytes(picture))
        return place.as_posix()

    def finish(self, unreadable: Iterable[ImageError]) -> None:
        """Ends the tables and gives them their names."""
        bad = [{"path": error.where, "reason": error.reason} for error in unreadable]
        self._json.write(f'\n], "unreadable": {json.dumps(bad)}}}\n')
        self._close()
        for name in (_CSV, _JSON):
            (self.folder / (name + _PART)).replace(self.folder / name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._csv.close()
        self._json.close()


def _absolute(path: Path) -> Path:
    # Not resolved: the heat maps lie as the images do for whoever named them.
    return Path(os.path.abspath(path))


def _check_target(folder: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise StorageError(
                f"--out {folder}: lies in {path}, whose images are scored; choose another"
            )
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        ours = names <= {*_FILES, _MAPS} and (_MAPS not in names or names & _FILES)
    else:
        ours = not folder.exists()
    if not ours:
        raise StorageError(f"--out {folder}: holds something else; choose a new folder")
