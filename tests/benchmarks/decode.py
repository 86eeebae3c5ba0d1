"""What opening a category costs, against the loop that everybody writes.

Run ``python tests/benchmarks/decode.py [--images 300] [--side 1024]``. It draws a category as PNG
and again as JPEG files, reads it with torchvision's ImageFolder and a DataLoader with one process
per core (which is what every epoch of such a loop costs), opens it cold, at a second size and warm,
and measures what eight trials take of memory that look at all pixels of their training and
validation images, and what of the cache's disk is theirs alone. Beside decoding and resizing, the
first opening hashes every file and all pixels at full size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.io.imagefile import workers

SIZE = 256
WORKERS = 8


def draw(root: Path, extension: str, count: int, side: int) -> int:
    """Writes a category of smooth, slightly noisy images; returns its size in bytes."""

    def one(number: int) -> int:
        rng = np.random.default_rng(number)
        coarse = rng.integers(40, 216, (side // 32, side // 32, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 1.5, (side, side, 1)).astype(np.float32)
        image = Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
        part = ("train/good", "train/good", "test/good", "test/bad")[number % 4]
        path = root / "part" / part / f"{number:04}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"compress_level": 4} if extension == "png" else {"quality": 90}))
        return path.stat().st_size

    with ThreadPoolExecutor(workers()) as pool:
        return sum(pool.map(one, range(count)))


def loader_loop(root: Path) -> None:
    """Reads all images once as people do."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.PILToTensor()])
    images = ImageFolder(str(root / "part"), transform)
    for batch, _ in DataLoader(images, batch_size=32, num_workers=workers()):
        batch.sum()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def look(root: Path, pipe: Connection) -> None:
    """A trial: says that it is there, then looks at every pixel, then waits to be measured."""
    import torch

    from anomtune.search.config import DatasetConfig
    from anomtune.search.detector.opened import open_detector
    from anomtune.search.detector.spec import TrainingSpec

    torch.set_num_threads(1)

    def spec(side: int) -> TrainingSpec:
        return TrainingSpec(
            dataset=DatasetConfig(name="folder", root=str(root)),
            category="part",
            method="patchcore",
            image_size=side,
            hyperparameters={"backbone": "mobilenet_v2", "weights": "random"},
        )

    device = torch.device("cpu")
    small = open_detector(spec(32), device)  # so that the network is not counted
    for image in small.train:
        image.sum()
    pipe.send(True)
    pipe.recv()
    trial = open_detector(spec(SIZE), device)
    # In pieces: a sum over all at once makes no copy either, but its result is of the same size.
    total = sum(int(image.sum()) for images in (trial.train, trial.validation) for image in images)
    pipe.send((total, trial.train.nbytes + trial.validation.nbytes))
    pipe.recv()


def memory(pids: Sequence[int | None]) -> tuple[int, int]:
    """Returns the proportional and the private dirty memory of processes, in bytes."""
    totals = {"Pss": 0, "Private_Dirty": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            if name in totals:
                totals[name] += int(value.split()[0]) * 1024
    return totals["Pss"], totals["Private_Dirty"]


def shared_memory(root: Path) -> None:
    """Prints what eight trials add by opening their images."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("  memory of workers: not measured, this is not Linux")
        return
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(WORKERS):
        mine, theirs = context.Pipe()
        process = context.Process(target=look, args=(root, theirs), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)
    pids = [process.pid for process in processes]
    for pipe in pipes:
        pipe.recv()
    before = memory(pids)
    for pipe in pipes:
        pipe.send(True)
    ((_, copy),) = {pipe.recv() for pipe in pipes}
    after = memory(pids)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(True)
        process.join()
    shared, private = (b - a for a, b in zip(before, after, strict=True))
    print(
        f"  {WORKERS} trials that look at all of it take {shared / 1e6:.0f} MB more "
        f"({shared / copy:.2f} x the one copy of {copy / 1e6:.0f} MB), "
        f"{private / WORKERS / 1e6:.1f} MB of it private to each"
    )


def disk(cache: Path) -> None:
    """Prints what the training images of a split take on the disk beside the category's."""
    own = [path.stat() for path in cache.glob("splits/*/train.npy")]
    alone = sum(info.st_size for info in own if info.st_nlink == 1)
    whole = sum(info.st_size for info in own)
    print(f"  of {whole / 1e6:.0f} MB of training images in splits {alone / 1e6:.0f} MB are copies")


def measure(root: Path, extension: str, count: int, side: int) -> None:
    size = draw(root, extension, count, side)
    print(
        f"{count} {extension.upper()} images {side} x {side}, {size / count / 1e6:.2f} MB each",
        flush=True,  # else the loop's forked processes print it too
    )
    time.sleep(0.2)  # Files just written are not trusted to their times.
    dataset = Folder(root)
    loop = min(seconds(lambda: loader_loop(root)) for _ in range(2))
    cold = seconds(lambda: open_category(dataset, "part", SIZE))
    second = seconds(lambda: open_category(dataset, "part", SIZE * 3 // 2))
    warm = min(seconds(lambda: open_category(dataset, "part", SIZE)) for _ in range(5))
    print(f"  ImageFolder + DataLoader, every epoch  {count / loop:7.1f} images/s")
    print(
        f"  first opening                          {count / cold:7.1f} images/s "
        f"({loop / cold:.2f} x the loop)"
    )
    print(
        f"  first opening at a second size         {count / second:7.1f} images/s "
        f"({loop / second:.2f} x the loop; {SIZE * 3 // 2} px)"
    )
    print(
        f"  every later opening                    {warm * 1e3:7.1f} ms "
        f"({loop / warm:.0f} x faster)"
    )
    shared_memory(root)
    disk(Path(os.environ["ANOMTUNE_CACHE"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for extension in ("png", "jpg"):
            os.environ["ANOMTUNE_CACHE"] = f"{scratch}/cache-{extension}"
            measure(Path(scratch) / extension, extension, options.images, options.side)


if __name__ == "__main__":
    main()
