"""Every method with its defaults on real welds and two drawn products, a table of the docs.

Sizes and lengths are reduced so that it ends in minutes on 2 cores; the sweep files beside this
script (methods_*.yaml) say to what. Needs MobileNetV2's weights, and the welds in ../shared/data.

Run ``python tests/benchmarks/methods.py``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from anomtune.cli.monitor import Monitor
from anomtune.search.config import load_sweep
from anomtune.search.sweep import run

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
SHARED = PROJECT.parent / "shared"


def main() -> None:
    """Prints a Markdown table: a row per method, AUROC with its interval per category."""
    os.chdir(PROJECT)
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    rows: list[dict[str, Any]] = []
    for name in ("battery_weld", "synthetic"):
        config = load_sweep(HERE / f"methods_{name}.yaml")
        if config.dataset.root and not Path(config.dataset.root).is_dir():
            print(f"skipped {name}: no {config.dataset.root}")
            continue
        with tempfile.TemporaryDirectory() as directory:
            result = run(config, directory, on_event=Monitor(Console(file=sys.stderr)))
            rows += result.leaderboard.to_pylist()
    categories = list(dict.fromkeys(row["category"] for row in rows))
    print(f"| method | {' | '.join(categories)} | seconds per trial | parameters |")
    print("| --- " * (len(categories) + 3) + "|")
    for method in sorted({row["method"] for row in rows}):
        own = {row["category"]: row for row in rows if row["method"] == method}
        cells = [_auroc(own.get(category)) for category in categories]
        trained = [row for row in own.values() if row["train_seconds"] is not None]
        seconds = ", ".join(f"{row['train_seconds']:.0f}" for row in trained)
        parameters = f"{trained[0]['parameters'] / 1e6:.2f} M" if trained else ""
        print(f"| `{method}` | {' | '.join(cells)} | {seconds} | {parameters} |")


def _auroc(row: dict[str, Any] | None) -> str:
    if row is None or row["val_auroc"] is None:
        return "failed"
    return f"{row['val_auroc']:.3f} ({row['val_auroc_low']:.3f}-{row['val_auroc_high']:.3f})"


if __name__ == "__main__":
    main()
