"""What ``anomtune predict`` writes: ``scores.csv``, ``scores.json`` and heat maps."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from anomtune.datasets.io.imagefile import resize_image
from anomtune.errors import ImageError, StorageError
from anomtune.files import TEMPORARY, replaced, write_whole
from anomtune.names import BYTES, readable, to_text, utf8, with_suffix
from anomtune.search.detector.heatmaps import overlay, png_bytes
from anomtune.search.detector.predict import Prediction
from anomtune.search.detector.saved import SavedConfig

_CSV, _JSON, _MAPS = "scores.csv", "scores.json", "maps"
#: What a folder's name must not end with among the heat maps, all of which do.
_LIKE_A_MAP = re.compile(r"\.png(\.d)*\Z")


class Results:
    """A folder of results, written image by image, as a context manager.

    The tables appear when the last image is done: a table that is there is whole. Heat maps lie
    below ``maps`` as the images lie below the folder that all inputs have in common, with ``.png``
    after their names: two images never share a heat map. ``scores.csv`` names each image by its
    bytes, ``scores.json`` by its text (`anomtune.names`).

    Args:
        folder: Where; an earlier result there is replaced.
        config: Of the model that predicts.
        inputs: The files and folders that were given.
        maps: Whether heat maps are drawn.
        unreadable: Takes the errors of the files that cannot be read, for the end of the table.

    Raises:
        StorageError: If the folder holds something else, or lies in an input, whose images it would
            add to.
    """

    def __init__(
        self,
        folder: Path,
        config: SavedConfig,
        inputs: Sequence[Path],
        *,
        maps: bool,
        unreadable: Sequence[ImageError] = (),
    ) -> None:
        self.folder = folder
        self.n_images = 0
        self.n_anomalous = 0
        self._config = config
        self._maps = maps
        self._unreadable = unreadable
        self._files = ExitStack()
        tops = [path if path.is_dir() else path.parent for path in map(_absolute, inputs)]
        self._common = common_folder(tops)
        _check_target(folder, inputs)

    def __enter__(self) -> Results:
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in list(self.folder.iterdir()):
            if entry.name != _MAPS:
                entry.unlink()
        with ExitStack() as files:
            table, self._json = (
                files.enter_context(replaced(self.folder / name, text=True, newline="", **BYTES))
                for name in (_CSV, _JSON)
            )
            # By the drafts a later start knows the folder for one of ours.
            shutil.rmtree(self.folder / _MAPS, ignore_errors=True)
            self._table = csv.writer(table)
            self._table.writerow(["path", "score", "threshold", "anomalous"])
            head = self._config.model_dump(include={"method", "dataset", "category", "threshold"})
            self._json.write(json.dumps(head)[:-1] + ', "images": [')
            self._files = files.pop_all()
        return self

    def add(self, prediction: Prediction) -> dict[str, Any]:
        """Writes the rows of one image, and its heat map; returns that of ``scores.json``."""
        score = prediction.score
        anomalous = str(prediction.anomalous).lower()
        self._table.writerow([utf8(str(prediction.path)), score, self._config.threshold, anomalous])
        path = to_text(prediction.path)
        row: dict[str, Any] = {"path": path, "score": score, "anomalous": prediction.anomalous}
        if self._maps:
            row["map"] = self._draw(prediction)
        self._json.write(("," if self.n_images else "") + "\n" + json.dumps(row))
        self.n_images += 1
        self.n_anomalous += prediction.anomalous
        return row

    def _draw(self, prediction: Prediction) -> str:
        """Writes the heat map; returns the text of its path below the folder."""
        *above, name = names_below(_absolute(prediction.path), self._common)
        place = Path(_MAPS, *map(_folder_of_maps, above), with_suffix(name, ".png"))
        image = prediction.image
        if len(image) != self._config.image_size:
            image = resize_image(image, self._config.image_size)
        picture = overlay(image, prediction.map, self._config.map_low, self._config.map_high)
        write_whole(self.folder / place, png_bytes(picture))
        return to_text(place.as_posix())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._files as files:
            if error is not None:
                files.__exit__(kind, error, trace)  # leaves no table
                return
            bad = [
                {"path": to_text(item.where), "reason": readable(item.reason)}
                for item in self._unreadable
            ]
            self._json.write(f'\n], "unreadable": {json.dumps(bad)}}}\n')


def _folder_of_maps(name: str) -> str:
    """Returns a name that no heat map has, and no other folder gets."""
    return with_suffix(name, ".d") if _LIKE_A_MAP.search(name) else name


def common_folder(folders: Sequence[PurePath]) -> PurePath | None:
    """Returns the folder that all are or lie in; those on two drives of Windows have none."""
    above = (folders[0], *folders[0].parents)
    return next((f for f in above if all(each.is_relative_to(f) for each in folders)), None)


def names_below(path: PurePath, common: PurePath | None) -> tuple[str, ...]:
    """Returns the names of a path below a folder; without one its drive is a name as well."""
    if common is not None:
        return path.relative_to(common).parts
    return re.sub(r"[:\\/]+", "_", path.drive).strip("_"), *path.parts[1:]


def _absolute(path: Path) -> Path:
    # Not resolved: the heat maps lie as the images do for whoever named them.
    return Path(os.path.abspath(path))


def _is_draft(name: str) -> bool:
    """Whether a file is what a killed process was writing of a table."""
    return name.startswith((f".{_CSV}.", f".{_JSON}.")) and name.endswith(TEMPORARY)


def _check_target(folder: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise StorageError(
                f"--out {folder}: lies in {path}, whose images are scored; choose another"
            )
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        tables = {name for name in names if name in {_CSV, _JSON} or _is_draft(name)}
        ours = names <= {*tables, _MAPS} and (_MAPS not in names or tables)
    else:
        ours = not folder.exists()
    if not ours:
        raise StorageError(f"--out {folder}: holds something else; choose a new folder")
