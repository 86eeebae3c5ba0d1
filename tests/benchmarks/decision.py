"""A full sweep with four methods on real images, from the search to the decision.

Battery welds as they are, and every fifth image of the magnetic tiles, so that it ends in minutes
on 2 cores; the sweep file is beside this script. The sweep directory is kept, for
``anomtune report``, ``best`` and ``predict``.

Run ``python tests/benchmarks/decision.py DIR``; started again after a kill it goes on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from anomtune.cli.main import app

PROJECT = Path(__file__).parent.parent.parent
SHARED = PROJECT.parent / "shared"
EVERY = {"battery_weld": 1, "magnetic_tile": 5}
#: Null by nature: no paper has published figures of these images.
UNPUBLISHED = "paper_auroc"


def link_images(target: Path) -> None:
    """Fills a folder with links to every k-th image of each kind, and to all masks."""
    for name, step in EVERY.items():
        source = SHARED / "data" / name
        for folder in (*source.glob("train/*"), *source.glob("test/*")):
            place = target / folder.relative_to(source.parent)
            place.mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[::step]:
                (place / image.name).unlink(missing_ok=True)
                (place / image.name).symlink_to(image)
                for mask in source.glob(f"ground_truth/{folder.name}/{image.stem}*"):
                    beside = target / mask.relative_to(source.parent)
                    beside.parent.mkdir(parents=True, exist_ok=True)
                    beside.unlink(missing_ok=True)
                    beside.symlink_to(mask)


def summarise(directory: Path) -> None:
    """Prints which columns hold a null, and whether the decision beats the paper's own config."""
    board = pq.read_table(directory / "leaderboard.parquet")
    empty = [name for name in board.column_names if board[name].null_count]
    print(f"columns with a null: {', '.join(empty) or 'none'} (allowed: {UNPUBLISHED})")
    for row in board.to_pylist():
        if row["rank"] == 1:
            test, default = row["test_auroc_mean"], row["default_test_auroc_mean"]
            print(
                f"{row['category']}: {row['method']}, held out {test:.3f}, "
                f"the paper's own config {default:.3f} ({test - default:+.3f})"
            )


def main() -> None:
    """Runs the sweep, writes its report and prints what came of it."""
    if not (SHARED / "data/magnetic_tile").is_dir():
        print("skipped: no ../shared/data")
        return
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str((SHARED / "weights").resolve()))
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="decision-"))
    images = directory.absolute().with_name(f"{directory.name}-images")
    link_images(images)
    sweep = str(Path(__file__).with_suffix(".yaml"))
    where = ["--dir", str(directory), "--set", f"dataset.root={images}"]
    app(["sweep", sweep, *where], standalone_mode=False)
    app(["report", str(directory)], standalone_mode=False)
    summarise(directory)


if __name__ == "__main__":
    main()
