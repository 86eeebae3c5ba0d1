"""Every reader of files that others may have written: how valid ones are made, and how it reads.

A family of files has one line in `READERS`.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from anomtune.datasets.base import Dataset, Problem
from anomtune.datasets.folder import Folder
from anomtune.datasets.io import mnist_m
from anomtune.datasets.io.cache import open_category, refuse_fatal
from anomtune.datasets.io.files import Listing
from anomtune.datasets.io.imagefile import read_rgb
from anomtune.datasets.io.maskfile import read_mask
from anomtune.datasets.io.packed import Packed, read_cifar_batches, read_idx_pair
from anomtune.datasets.medical import _read_csv as read_medical_csv
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.table import Table
from anomtune.datasets.visa import _parse as parse_visa_row
from anomtune.datasets.visa import _read_csv as read_visa_csv
from anomtune.errors import DataError
from anomtune.models.layers.weights import read_weights
from anomtune.search.config import load_sweep
from anomtune.search.detector.memo import NodeMemo
from anomtune.search.detector.saved import load_detector, read_saved_config
from anomtune.search.detector.train import _complete, read_spec, train
from anomtune.search.report import write_report
from anomtune.search.results.result import open_sweep
from anomtune.search.results.status import status_line, sweep_status
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.segments import _lines as lines_of_segment
from anomtune.search.store.sent import SentRecords
from anomtune.search.store.spent import SpentClock
from anomtune.search.store.storage import Storage
from anomtune.search.watch.follow import SweepFollower
from anomtune.search.watch.picture import picture
from tests.conftest import draw_category
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record
from tests.search.sample_sweep import write_sample_sweep
from tests.search.toy_models import toy_config

#: Memory that a reader may take beyond what its process has, in bytes; that an image may take.
MEMORY, IMAGE_MEMORY = 1 << 30, 7 << 30


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        name: What it reads, for people.
        damaged: Which of the files are damaged, one at a time.
        write: Writes valid files into an empty folder.
        read: Reads them.
        weight: Its share of all inputs; readers that take long have less.
        memory: Bytes that it may take.
        seconds: Of computing that it may take.
        asks: Whether it asks for what a file announces, and refuses the file if it does not get it.
    """

    name: str
    damaged: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    weight: float = 4
    memory: int = MEMORY
    seconds: float = 5.0
    asks: bool = False


# Settings


_SWEEP = """\
name: line-3
dataset: {name: folder, root: /data/line-3, categories: [bottle, screw], division: {seed: 3}}
validation: {protocol: labelled, fraction: 0.5, seed: 0}
methods:
  recontrast: {}
  rd4ad: {space: {lr: {low: 1e-4, high: 1e-2, log: true}}, fixed: {backbone: resnet18}}
image_size: 256
trials: 50
budget: {hours: 8}
warm_start: [sweeps/line-2]
sampler: tpe
pruner: successive_halving
confirm: {top: 3, seeds: [1, 11, 111]}
resources: {cpu: 1, gpu: auto}
loggers: [mlflow]
seed: 0
"""


def _write_sweep_file(folder: Path) -> None:
    (folder / "line-3.yaml").write_text(_SWEEP)


def _read_sweep_file(folder: Path) -> None:
    config = load_sweep(folder / "line-3.yaml", ["trials=20"])
    config.to_yaml()


def _write_spec(folder: Path) -> None:
    spec = toy_config(folder) | {"found": {"trial": 3, "auroc": 0.9, "interval": [0.8, 0.95]}}
    (folder / "plate.yaml").write_text(json.dumps(spec, indent=1))


def _read_spec_file(folder: Path) -> None:
    path = folder / "plate.yaml"
    _complete(read_spec(path), path).model_dump_json()


# Sweep directories


def _write_sweep_directory(folder: Path) -> None:
    write_sample_sweep(
        folder,
        categories=("bottle",),
        methods=("padim", "patchcore"),
        trials=3,
        confirm=1,
        seeds=(1, 2),
        images=8,
        domains=("rain",),
        budget={"hours": 3.0},
    )
    config, store = read_sweep(folder)
    store.storage.write("spent.json", b'{"seconds": 60.0, "searched_for": 3.0}')
    mark = {
        "host": "node",
        "pid": 7,
        "machine": "other",
        "token": "a",
        "since": "2026-01-05T08:00Z",
    }
    store.storage.write("owner.json", json.dumps(mark).encode())
    SentRecords(store.storage).begin()
    assert config.budget


def _read_sweep_directory(folder: Path) -> None:
    result = open_sweep(folder)
    board = result.leaderboard
    assert result.trials.num_rows >= 0
    assert len(list(result)) == board.num_rows
    config, store = read_sweep(folder)
    status_line(sweep_status(config, store, datetime(2026, 1, 6, tzinfo=UTC)))


def _read_small_files(folder: Path) -> None:
    _read_sweep_directory(folder)
    config, store = read_sweep(folder)
    SentRecords(store.storage)
    SpentClock(store.storage, config, 0.0).seconds()
    lock = DirectoryLock(Storage(folder))
    with lock:
        lock.check()


def _write_segment(folder: Path) -> None:
    lines = [
        b'["trials/bottle/padim/%05d.json", "tag"]\t{"number": %d}\n' % (number, number)
        for number in range(20)
    ]
    (folder / "00.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))


def _read_segment(folder: Path) -> None:
    for path, tag, record in lines_of_segment(Storage(folder).read("00.jsonl.gz") or b""):
        assert isinstance(path + tag, str)
        assert isinstance(record, bytes)


def _watch(folder: Path) -> None:
    follower = SweepFollower(folder)
    for _ in range(2):
        for state in follower.poll(datetime(2026, 1, 6, tzinfo=UTC)):
            json.dumps(picture(state), allow_nan=False)


def _report(folder: Path) -> None:
    write_report(folder)


# Detectors


def _write_model(folder: Path) -> None:
    data = folder.parent / "data"
    if not data.is_dir():
        draw_category(data / "plate", train=3, good=3, bad=3)
    settings = {"backbone": "mobilenet_v2", "weights": "random"}
    config = {**toy_config(data), "method": "patchcore", "hyperparameters": settings}
    train(config, device="cpu").save(folder)


def _read_model(folder: Path) -> None:
    read_saved_config(Storage(folder.parent), folder.name)
    load_detector(folder)


def _write_toy_model(folder: Path) -> None:
    data = folder.parent / "data"
    draw_category(data / "plate", train=3, good=3, bad=3)
    train(toy_config(data), device="cpu").save(folder)


def _read_any_weights(folder: Path) -> None:
    """Reads a model folder whose config was made for its weights, as whoever means harm would."""
    from hashlib import sha256

    path, config = folder / "weights.safetensors", folder / "config.yaml"
    text = config.read_text()
    before = text.partition("weights_sha256: ")[2].split()[0]
    now = sha256(path.read_bytes()).hexdigest() if path.is_file() else before
    config.write_text(text.replace(before, now))
    load_detector(folder)


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.int64)}


def _write_checkpoint(folder: Path) -> None:
    Checkpoints(Storage(folder), "trials/a/b/00001", "same").write(_tensors(), ['{"auroc": 1}'])


def _read_checkpoint(folder: Path) -> None:
    Checkpoints(Storage(folder), "trials/a/b/00001", "same").read()


def _write_weights(folder: Path) -> None:
    torch.save({"state_dict": _tensors(), "epoch": 3}, folder / "net.pth")
    torch.save(_tensors(), folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(_tensors(), folder / "net.safetensors")


# Images


def _picture(size: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels[:8] = 40
    return Image.fromarray(pixels)


def _write_images(folder: Path) -> None:
    image = _picture()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("note", "x" * 90, zip=True)
    image.save(folder / "a.png", pnginfo=text)
    image.convert("P").save(folder / "palette.png")
    image.save(folder / "b.jpg", quality=90, exif=_exif())
    image.convert("CMYK").save(folder / "c.jpg", progressive=True)
    image.save(folder / "d.bmp")
    image.save(folder / "e.tif", compression="tiff_lzw", exif=_exif())
    image.convert("L").save(folder / "f.tif", compression="tiff_adobe_deflate")
    image.save(folder / "g.webp", lossless=True, exif=_exif())


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def _write_masks(folder: Path) -> None:
    values = np.zeros((24, 24), np.uint8)
    values[4:12, 4:12] = 255
    mask = Image.fromarray(values)
    mask.save(folder / "a.png")
    mask.convert("1").save(folder / "b.png")
    mask.convert("RGBA").save(folder / "c.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(folder / "d.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(folder / "e.tif")
    mask.save(folder / "f.jpg", quality=95)
    mask.save(folder / "g.bmp")


def _each(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """Returns a reader of the file that is damaged: the one that was written last."""

    def read_newest(folder: Path) -> None:
        files = [p for p in sorted(folder.iterdir()) if p.is_symlink() or p.exists()]
        read(max(files, key=lambda path: path.lstat().st_ctime_ns))

    return read_newest


# Tables


def _rows(folder: Path) -> list[dict[str, Any]]:
    for number in range(4):
        _picture(8).save(folder / f"{number}.png")
    Image.new("L", (8, 8), 255).save(folder / "mask.png")
    return [
        {
            "image": f"{number}.png",
            "label": "scratch" if number == 3 else "good",
            "mask": "mask.png" if number == 3 else "",
            "split": "test" if number > 1 else "train",
            "category": "part",
            "group": f"p{number}",
            "weight": number / 3,
        }
        for number in range(4)
    ]


def _write_csv(folder: Path) -> None:
    rows = _rows(folder)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "parts.csv").write_text("\n".join(lines) + "\n")


def _write_parquet(folder: Path) -> None:
    rows = _rows(folder)
    for row in rows:
        row |= {"when": datetime(2026, 1, 5), "blob": b"x", "nested": {"a": [1]}}
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "parts.parquet", compression="snappy")


def _write_coco(folder: Path) -> None:
    rows = _rows(folder)
    images = [
        {"id": n, "file_name": row["image"], "height": 8, "width": 8, "split": row["split"]}
        for n, row in enumerate(rows)
    ]
    runs = {"size": [8, 8], "counts": [10, 4, 50]}
    packed = {"size": [8, 8], "counts": ":d0R1"}
    shapes: list[dict[str, Any]] = [
        {"segmentation": [[1.0, 1.0, 5.0, 1.0, 5.0, 5.5]], "bbox": [1, 1, 4, 4.5], "area": 9},
        {"segmentation": runs, "bbox": [1, 1, 2, 2]},
        {"segmentation": packed},
        {"bbox": [0, 0, 3, 3]},
    ]
    annotations = [{"id": n, "image_id": 3, "category_id": 1, **s} for n, s in enumerate(shapes)]
    categories = [{"id": 1, "name": "scratch"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "parts.json").write_text(json.dumps(content))


def _table(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        table = Table(folder / name)
        for category in table.categories():
            samples = _listed(table, category)
            for sample in samples[:9]:
                if sample.mask is not None:
                    table.read_mask(category, sample.mask)
                    table.file_digest(category, sample.mask)

    return read


def _listed(dataset: Dataset, category: str) -> tuple[Any, ...]:
    samples, problems = dataset.scan(category)
    refuse_fatal(dataset, problems)
    return samples


# What downloads consist of


def _write_idx(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6), np.uint8)
    images = struct.pack(">4i", 2051, 20, 6, 6) + pixels.tobytes()
    labels = struct.pack(">2i", 2049, 20) + bytes(n % 10 for n in range(20))
    (folder / "images.idx").write_bytes(images)
    (folder / "labels.idx").write_bytes(labels)
    (folder / "images.gz").write_bytes(gzip.compress(images))
    (folder / "labels.gz").write_bytes(gzip.compress(labels))


def _read_idx(folder: Path) -> None:
    for end in ("idx", "gz"):
        _all_of(read_idx_pair(folder / f"images.{end}", folder / f"labels.{end}"))


def _write_cifar(folder: Path) -> None:
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        records = np.random.default_rng(0).integers(0, 256, (4, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def _read_cifar(folder: Path) -> None:
    _all_of(read_cifar_batches([folder / "data_batch_1.bin", folder / "data_batch_2.bin"]))


def _all_of(packed: Packed) -> None:
    for number in range(min(9, len(packed.labels))):
        packed.image(number)


def _write_mnist_m(folder: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        folder / "mnistm_data.npz",
        test_images=generator.integers(0, 256, (6, 28, 28, 3), np.uint8),
        test_labels=np.arange(6),
        test_mnist_index=np.arange(6),
    )


def _read_mnist_m(folder: Path) -> None:
    mnist_m._load(folder / "mnistm_data.npz")


def _write_lists(folder: Path) -> None:
    (folder / "labels.txt").write_text("00000000.png 7\n00000001.png 3\n")
    (folder / "medical.csv").write_text("id_code,diagnosis\nabc,0\ndef,3\n")
    rows = ["candle,train,normal,Data/Images/1.JPG,", "candle,test,anomaly,Data/2.JPG,Data/2.png"]
    (folder / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows, ""]))


def _read_lists(folder: Path) -> None:
    listed = Listing("candle", folder)
    mnist_m._labels(folder / "labels.txt", listed)
    read_medical_csv(listed, "medical.csv", ("id_code", "diagnosis"))
    _refuse(folder, listed.result()[1])
    for rows in read_visa_csv(folder / "1cls.csv").values():
        for line, row in rows:
            parse_visa_row(line, row)


def _refuse(folder: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        if problem.fatal:
            raise DataError(f"{folder}: {problem}")


# The cache of a node


def _cached(folder: Path) -> Path:
    """Returns the images of a cache that lies in a folder."""
    os.environ["ANOMTUNE_CACHE"] = str(folder)
    data = folder.parent / "images"
    if not data.is_dir():
        draw_category(data / "plate", train=3, good=3, bad=3)
    return data


def _read_cache(folder: Path) -> None:
    data = _cached(folder)
    dataset = Folder(data)
    arrays = open_category(dataset, "plate", 16)
    arrays.images[:].sum()
    for mask in arrays.masks:
        mask.sum()
    found = load_search_split(dataset, "plate", 16, Validation())
    found.train.sum()
    memo = NodeMemo(["features"])
    assert memo(["coreset"], _tensors)


# Curves


def _write_curve(folder: Path) -> None:
    CurveWriter(Storage(folder), TOY_PLANS).update(toy_record(0, "COMPLETE", 4))


def _read_curve(folder: Path) -> None:
    CurveWriter(Storage(folder), TOY_PLANS).is_whole(toy_record(0, "COMPLETE", 4))


READERS = (
    Reader("sweep file", "*.yaml", _write_sweep_file, _read_sweep_file, 2),
    Reader("training config", "*.yaml", _write_spec, _read_spec_file, 0.8),
    Reader("sweep.yaml", "sweep.yaml", _write_sweep_directory, _read_sweep_directory, 0.3),
    Reader("trial records", "trials/**/*.json", _write_sweep_directory, _read_sweep_directory, 1.2),
    Reader(
        "confirm records", "confirm/**/*.json", _write_sweep_directory, _read_sweep_directory, 0.6
    ),
    Reader("scores, labels", "**/*.np*", _write_sweep_directory, _read_sweep_directory, 0.5),
    Reader("small files", "*.json", _write_sweep_directory, _read_small_files, 0.5),
    Reader("scorings", "scorings/**/*.json", _write_sweep_directory, _read_sweep_directory, 0.3),
    Reader("records, watched", "**/*.json", _write_sweep_directory, _watch, 0.2),
    Reader("report", "**/*.[jnp]*", _write_sweep_directory, _report, 0.02),
    Reader("segments", "*.gz", _write_segment, _read_segment, 4),
    Reader("curves", "**/*tfevents*", _write_curve, _read_curve, 4),
    Reader("model folder", "*", _write_toy_model, _read_model, 0.4),
    Reader("weights of a model", "*.safetensors", _write_model, _read_any_weights, 0.1),
    Reader("checkpoint", "**/*.safetensors", _write_checkpoint, _read_checkpoint, 20),
    Reader("weights files", "*", _write_weights, _each(read_weights), 2, MEMORY, asks=True),
    Reader("image", "*", _write_images, _each(read_rgb), 16, IMAGE_MEMORY, 30.0, asks=True),
    Reader("mask", "*", _write_masks, _each(read_mask), 9, IMAGE_MEMORY, 30.0, asks=True),
    Reader("CSV table", "*.csv", _write_csv, _table("parts.csv"), 8),
    Reader("Parquet table", "*.parquet", _write_parquet, _table("parts.parquet"), 8),
    Reader("COCO file", "*.json", _write_coco, _table("parts.json"), 14),
    Reader("IDX of MNIST", "*", _write_idx, _read_idx, 2.5),
    Reader("CIFAR batches", "*", _write_cifar, _read_cifar, 7),
    Reader("MNIST-M arrays", "*.npz", _write_mnist_m, _read_mnist_m, 2),
    Reader("lists of downloads", "*", _write_lists, _read_lists, 9),
    Reader("cache", "**/*.[jnbs]*", _read_cache, _read_cache, 0.5),
)
