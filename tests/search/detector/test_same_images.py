"""The same images in another form are the same search: split, counts and AUROC to the last bit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomtune.datasets.base import Dataset
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.table import Table
from anomtune.search.detector.evaluate import evaluate
from anomtune.search.detector.look import look
from anomtune.search.detector.opened import open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.train import fit_whole
from anomtune.search.metrics.delong import intervals
from anomtune.search.source import DatasetConfig

_SIZE = 32


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "cache"))


def some(source: Path, target: Path, most: int) -> Path:
    """Copies a category in MVTec's layout with at most so many images of each kind."""
    if not source.is_dir():
        pytest.skip("needs the real datasets in ../shared/data")
    for sample in _few(Folder(source).scan(source.name)[0], most):
        for key in filter(None, (sample.key, sample.mask)):
            (target / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / key, target / key)
    return target


def _few(samples: Any, most: int) -> list[Any]:
    kinds: dict[Any, list[Any]] = {}
    for sample in samples:
        kinds.setdefault((sample.part, sample.defect), []).append(sample)
    return [sample for members in kinds.values() for sample in members[:most]]


def figures(dataset: Dataset) -> tuple[Any, ...]:
    """Trains PaDiM with random weights; returns the split, its counts, and what it is judged by."""
    (category,) = dataset.categories()
    spec = TrainingSpec(
        dataset=DatasetConfig.model_validate(dataset),
        category=category,
        method="padim",
        image_size=_SIZE,
        hyperparameters={"backbone": "mobilenet_v2", "weights": "random"},
    )
    opened = open_detector(spec, torch.device("cpu"))
    fit_whole(opened)
    scores = look(opened).scores[None].astype(np.float64)
    held_out = load_test_split(dataset, category, _SIZE, Validation())
    found = evaluate(opened.detector, held_out).figures[""]
    assert found.auroc is not None
    counts = len(opened.train), *np.bincount(opened.labels), *np.bincount(held_out.labels)
    areas = float(intervals(opened.labels, scores).value), found.auroc, found.figures["pixel_auroc"]
    return opened.split_hash, counts, areas


def in_mvtecs_layout(dataset: Dataset, base: Path, target: Path, *, groups: bool = False) -> Path:
    """Copies images to where the split has put them, a group at the head of a name."""
    (category,) = dataset.categories()
    for sample in open_category(dataset, category, _SIZE).samples:
        name = f"{sample.group}_{Path(sample.key).name}" if groups else Path(sample.key).name
        image = target / sample.part / sample.defect / name
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / sample.key, image)
        if sample.mask is not None:
            mask = target / "ground_truth" / sample.defect / f"{image.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(base / sample.mask, mask)
    return target


@pytest.fixture
def weld(shared_data: Path, tmp_path: Path) -> Path:
    """Some battery welds as ``good``, ``bad`` and ``masks``."""
    whole, place = some(shared_data / "battery_weld", tmp_path / "weld", 14), tmp_path / "parts"
    (place / "good").mkdir(parents=True)
    for part in ("train", "test"):
        for path in (whole / part / "good").iterdir():
            shutil.copy(path, place / "good" / f"{part}-{path.name}")
    shutil.copytree(whole / "test/defective", place / "bad")
    shutil.copytree(whole / "ground_truth/defective", place / "masks")
    return place


@pytest.mark.slow
def test_two_folders(weld: Path, tmp_path: Path) -> None:
    two = Folder(normal=weld / "good", anomalous=weld / "bad", masks=weld / "masks")
    copy = in_mvtecs_layout(two, weld, tmp_path / "mvtec")
    found = figures(two)
    assert found == figures(Folder(copy))
    assert found[1][0] == 17
    given = Folder(
        tmp_path / "weld",
        normal={"train": "train/good", "test": "test/good"},
        anomalous={"defective": "test/defective"},
        masks="ground_truth",
    )
    assert figures(given) == figures(Folder(tmp_path / "weld"))


@pytest.mark.slow
def test_a_table_with_masks_and_groups(weld: Path, tmp_path: Path) -> None:
    with (weld / "parts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "mask", "serial"))
        for kind in ("good", "bad"):
            for i, path in enumerate(sorted((weld / kind).iterdir())):
                masks = sorted((weld / "masks").glob(f"{path.stem}*")) if kind == "bad" else []
                mask = masks[0].relative_to(weld) if masks else ""
                table.writerow(
                    (
                        path.relative_to(weld),
                        "good" if kind == "good" else "weld",
                        mask,
                        f"{kind}{i // 2}",
                    )
                )
    listed = Table(weld / "parts.csv", group="serial")
    copy = in_mvtecs_layout(listed, weld, tmp_path / "mvtec", groups=True)
    assert figures(listed) == figures(Folder(copy, group=r"/([a-z]+\d+)_"))
    assert figures(listed)[0] != figures(Folder(copy))[0]


@pytest.mark.slow
def test_a_coco_file(shared_data: Path, tmp_path: Path) -> None:
    tiles = some(shared_data / "magnetic_tile", tmp_path / "tiles", 8)
    kinds = ("blowhole", "break", "crack", "fray", "uneven")
    images, annotations = [], []
    folder = Folder(tiles)
    for number, sample in enumerate(folder.scan("tiles")[0]):
        width, height = Image.open(tiles / sample.key).size
        known = {"id": number, "file_name": sample.key, "width": width, "height": height}
        images.append({**known, "split": sample.part})
        if sample.mask is not None:
            mask = folder.read_mask("tiles", sample.mask).ravel(order="F")
            ends = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
            counts = np.diff([0, *ends, mask.size]).tolist()
            runs = {"size": [height, width], "counts": [0, *counts] if mask[0] else counts}
            kind = kinds.index(sample.defect)
            annotations.append(
                {"id": number, "image_id": number, "category_id": kind, "segmentation": runs}
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(kinds)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (tiles / "coco.json").write_text(json.dumps(data))
    assert figures(Table(tiles / "coco.json")) == figures(folder)
