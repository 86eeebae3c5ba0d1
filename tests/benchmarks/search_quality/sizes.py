"""How far AUROCs judged on small maps are from those of whole maps, on `record.py`'s trainings.

Of each it prints the mean and the largest difference over all scorings, and how far apart the
AUROCs are of the scorings that either way chooses (`anomtune.search.decide.scoring`), both on whole
maps. Maps of these trainings are of 64 pixels: what is measured is the evidence's own size, which
is judged at all rungs but the last.

Run ``python tests/benchmarks/search_quality/sizes.py WORK``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from choose import recorded_scores

from anomtune.search.decide.scoring import neighbours
from anomtune.search.metrics.delong import placements


def main() -> None:
    """Prints a row per training."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    torch.set_num_threads(1)
    print("| training | mean | largest | of the chosen |\n|---|---|---|---|")
    rows = []
    for path in sorted(parser.parse_args().work.glob("*/*.npz")):
        labels, small, scorings = recorded_scores(path, fine=False)
        whole = recorded_scores(path, whole=True)[1]
        few, all_ = (placements(labels, scores)[2] for scores in (small, whole))
        near = neighbours(scorings)
        chosen, wanted = (int((near @ areas).argmax()) for areas in (few, all_))
        gaps = np.abs(few - all_)
        rows.append((gaps.mean(), gaps.max(), all_[wanted] - all_[chosen]))
        name = f"{path.parent.name}, {path.stem}"
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in rows[-1]) + " |", flush=True)
    print("| **mean** | " + " | ".join(f"{value:.4f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
