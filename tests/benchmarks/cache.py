"""What the image cache saves: opening a category cold, again, and without a cache.

Run ``python tests/benchmarks/cache.py [ROOT] [CATEGORY]``; without arguments the built-in dataset
is written to a temporary folder first.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import decode
from anomtune.datasets.io.imagefile import resize_image
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.synthetic import Synthetic

SIZE = 256


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Returns the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ANOMTUNE_CACHE"] = f"{scratch}/cache"
        if len(sys.argv) > 1:
            root = Path(sys.argv[1])
        else:
            root = Path(scratch) / "data"
            Synthetic().write(root)
        dataset = Folder(root)
        category = sys.argv[2] if len(sys.argv) > 2 else dataset.categories()[0]

        def load() -> object:
            return load_search_split(dataset, category, SIZE, Validation())

        def decode_all() -> None:
            for sample in dataset.scan(category)[0]:
                resize_image(decode(dataset, category, sample)[0], SIZE)

        time.sleep(0.2)  # Files just written are not trusted to their times.
        cold, warm = seconds(load), seconds(load, repeats=5)
        plain = seconds(decode_all)
        print(f"{category}, {len(dataset.scan(category)[0])} images at {SIZE} x {SIZE}")
        print(f"decode and resize, no cache  {plain:8.3f} s")
        print(f"first opening                {cold:8.3f} s  ({cold / plain:.2f} x decoding)")
        print(f"every later opening          {warm:8.3f} s  ({plain / warm:.0f} x faster)")


if __name__ == "__main__":
    main()
