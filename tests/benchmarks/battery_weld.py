"""A whole sweep on real images: how long it takes and what it finds.

Needs the battery welds in ../shared/data and MobileNetV2's weights; the sweep file is beside this
script.

Run: python tests/benchmarks/battery_weld.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from anomtune.cli.tables import leaderboard_table
from anomtune.search.config import load_sweep
from anomtune.search.sweep import run

PROJECT = Path(__file__).parent.parent.parent
SHARED = PROJECT.parent / "shared"


def main() -> None:
    """Prints the leaderboard, the time and the selected AUROC."""
    if not (SHARED / "data/battery_weld").is_dir():
        print("skipped: no ../shared/data/battery_weld")
        return
    os.chdir(PROJECT)
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    config = load_sweep(Path(__file__).with_suffix(".yaml"))
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        board = run(config, directory).leaderboard
        seconds = time.perf_counter() - begin
    Console(file=sys.stdout, width=120).print(leaderboard_table(board))
    selected = board.to_pylist()[0]
    print(f"{seconds / 60:.1f} minutes (must be under 10)")
    print(f"selected {selected['method']}: {selected['val_auroc']:.3f} (must be above 0.93)")


if __name__ == "__main__":
    main()
