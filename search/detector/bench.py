"""What a saved detector takes on this machine: latency, throughput, memory, with and without files.

Each figure is of calls that follow one another, after one that warms up. Measured are:

* ``network``: decoded images to maps and scores, as `timing` defines ``image_ms``;
* ``decoding``: reading a file and resizing it, one after another in one thread;
* ``files``: all of `Model.predict`, which decodes in threads, a batch ahead of the network;

and the first of them again with ONNX Runtime, where it is installed and the model can be exported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomtune.datasets.io.imagefile import read_rgb, resize_image
from anomtune.errors import MethodError
from anomtune.progress import step
from anomtune.search.detector.devices import (
    as_images,
    choose_device,
    peak_memory,
    reset_peak_memory,
)
from anomtune.search.detector.onnx_export import export_onnx
from anomtune.search.detector.predict import Model, load_model
from anomtune.search.detector.timing import network_times, times, usual_batch

Engine = Literal["torch", "onnxruntime"]
Work = Literal["network", "decoding", "files"]


@dataclass(frozen=True)
class Timing:
    """How long calls of one kind took.

    Attributes:
        engine: What computes.
        work: What a call does; see the module.
        batch: Images of a call.
        median_ms: Median of the calls, in milliseconds.
        p95_ms: Their 95th percentile.
        image_ms: The median divided by the images of a call.
        images_per_second: Images of all calls by the time of all calls.
        calls: How many were measured.
    """

    engine: Engine
    work: Work
    batch: int
    median_ms: float
    p95_ms: float
    image_ms: float
    images_per_second: float
    calls: int


@dataclass(frozen=True)
class Benchmark:
    """What a saved detector takes.

    Attributes:
        method: Its method.
        category: What it was trained on.
        device: What torch computes on, ``cpu`` or the GPU's name.
        threads: Threads that torch, and ONNX Runtime as well, computes with on a CPU.
        load_seconds: From the folder to a detector that can predict.
        peak_memory_bytes: Of GPU memory, on a CPU of this process's resident memory, without ONNX
            Runtime; ``None`` where the operating system does not say.
        parameters: Of the network.
        input_size: Side of the images that it sees, in pixels.
        notes: What was not measured and why, a line each.
        timings: The figures.
    """

    method: str
    category: str
    device: str
    threads: int
    load_seconds: float
    peak_memory_bytes: int | None
    parameters: int
    input_size: int
    notes: tuple[str, ...]
    timings: tuple[Timing, ...]


def bench(
    directory: Path,
    *,
    images: Sequence[Path] = (),
    device: str | None = None,
    batches: Sequence[int] = (),
    seconds: float = 10.0,
    onnx: bool = True,
) -> Benchmark:
    """Measures a saved detector.

    Args:
        directory: The folder of the model.
        images: Files; without any, random images are shown and no file is read.
        device: ``cpu`` or ``cuda``; default: a GPU if there is one.
        batches: Images of a call; default: one, and as many as ``image_ms`` is measured with.
        seconds: What all measurements take together, if a few calls of each take no longer; the
            export to ONNX comes on top.
        onnx: Whether ONNX Runtime is measured too.

    Raises:
        MethodError: If the model cannot be used.
        ImageError: If an image cannot be read.
    """
    place = choose_device(device)
    reset_peak_memory(place)
    begin = time.perf_counter()
    model = load_model(directory, place)
    loaded = time.perf_counter() - begin
    sizes = sorted(set(batches or (1, usual_batch(place))))
    each = seconds / (len(sizes) * (2 if onnx else 1) + (1 + len(sizes) if images else 0))
    shown = _images(model, images, max(sizes))
    found = [
        _timing("torch", "network", size, network_times(model.detector, shown[:size], each))
        for size in sizes
    ]
    notes: list[str] = []
    if images:
        found += _files(model, images, sizes, each)
    else:
        notes.append("files are not read: give some with --images")
    peak = peak_memory(place)
    if onnx:
        try:
            found += _onnx(directory, shown, sizes, each, place)
        except MethodError as error:
            notes.append(f"not measured with ONNX Runtime: {error}")
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    return Benchmark(
        method=model.config.method,
        category=model.config.category,
        device=name,
        threads=torch.get_num_threads(),
        load_seconds=loaded,
        peak_memory_bytes=peak,
        parameters=sum(p.numel() for p in model.detector.network.parameters()),
        input_size=model.detector.input_size,
        notes=tuple(notes),
        timings=tuple(found),
    )


def _timing(engine: Engine, work: Work, batch: int, seconds: Sequence[float]) -> Timing:
    median, high = np.quantile(seconds, (0.5, 0.95)) * 1e3
    return Timing(
        engine=engine,
        work=work,
        batch=batch,
        median_ms=float(median),
        p95_ms=float(high),
        image_ms=float(median) / batch,
        images_per_second=batch * len(seconds) / sum(seconds),
        calls=len(seconds),
    )


def _images(model: Model, files: Sequence[Path], count: int) -> Tensor:
    """Returns images as the detector sees them, uint8 ``(count, 3, I, I)``, on its device."""
    side = model.detector.input_size
    if files:
        decode = _decoder(model)
        known = [decode(path) for path in files[:count]]
        array = np.stack(list(islice(cycle(known), count)))
    else:
        array = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return as_images(array, model.detector.device)


def _decoder(model: Model) -> Callable[[Path], npt.NDArray[np.uint8]]:
    side, resize = model.detector.input_size, model.detector.hyperparameters.resize
    return lambda path: resize_image(read_rgb(path), side, resize)


def _files(
    model: Model, files: Sequence[Path], sizes: Sequence[int], seconds: float
) -> Iterator[Timing]:
    """Yields what it takes to read files: alone, and with all that `predict` does of them."""
    decode, paths = _decoder(model), cycle(files)
    yield _timing("torch", "decoding", 1, times(lambda: decode(next(paths)), seconds))
    for size in sizes:
        # A batch is decoded while the network works on another: two batches are the least.
        count = 1 if size == 1 else 2 * size

        def call(size: int = size, count: int = count) -> None:
            for _ in model.predict(list(islice(paths, count)), batch_size=size):
                pass

        found = times(call, seconds)
        yield _timing("torch", "files", size, [taken * size / count for taken in found])


def _onnx(
    directory: Path, shown: Tensor, sizes: Sequence[int], seconds: float, device: torch.device
) -> list[Timing]:
    """Returns the times of the same model in ONNX Runtime.

    Raises:
        MethodError: If it is not installed, or cannot compute the model there.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        with step("exporting to ONNX"):
            export_onnx(load_model(directory, "cpu"), file)
        session = _session(file, device)
        arrays = {size: shown[:size].cpu().contiguous().numpy() for size in sizes}

        def call(array: Any) -> None:
            session.run(["maps", "scores"], {"images": array})

        return [
            _timing(
                "onnxruntime",
                "network",
                size,
                times(lambda array=array: call(array), seconds),  # type: ignore[misc]
            )
            for size, array in arrays.items()
        ]


def _session(file: Path, device: torch.device) -> Any:
    import onnxruntime  # noqa: PLC0415 - optional

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise MethodError("the installed ONNX Runtime has no CUDA; install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=[provider])
