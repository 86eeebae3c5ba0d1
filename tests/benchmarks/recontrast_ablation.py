"""ReContrast's ablation (Table 5 of its paper) on real images that are not the paper's.

Every preset is trained with several seeds on the welds and tiles of ../shared/data, with
MobileNetV2 at 96 pixels on up to 100 images, and scored on the whole test set, as the paper does
it. "final" is the last iteration, "best" the best of the evaluations by test AUROC, as in the
paper's "final-best".
The paper trains 2,000 iterations with an encoder learning rate of 1e-5; the run here is shorter,
so the encoder's rate is raised by as much as the iterations are fewer, and it moves as far.

Run ``python tests/benchmarks/recontrast_ablation.py`` (about an hour on 2 cores); it writes
recontrast_ablation.md beside this file. ``--seeds 1 --datasets battery_weld`` is a short version.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from side_by_side import run_all

PROJECT = Path(__file__).parent.parent.parent
SHARED = PROJECT.parent / "shared"
TABLE = Path(__file__).with_suffix(".md")

PRESETS = ("A", "B", "C", "D", "E-", "E", "B+", "full")
#: MVTec I-AUROC of the paper's Table 5, final and best.
PAPER = {
    "A": (95.31, 97.55),
    "B": (98.86, 99.07),
    "C": (91.54, 95.96),
    "D": (94.64, 97.07),
    "E-": (97.59, 97.88),
    "E": (99.13, 99.34),
    "B+": (99.00, 99.12),
    "full": (99.45, 99.52),
}
#: At most so many training images: with more, a run this short would be a few passes over them,
#: and the paper's are a hundred.
TRAIN = 100
SIZE = 96
BATCH = 8
EVALUATIONS = 4
_PAPER_ITERATIONS = 2000
_PAPER_ENCODER_LR = 1e-5


@dataclass(frozen=True)
class Run:
    """One training run of the ablation."""

    dataset: str
    preset: str
    seed: int
    iterations: int


@dataclass(frozen=True)
class Result:
    """What came of a run: the test AUROC at each evaluation, the feature diversity at the last."""

    auroc: list[float]
    diversity: float


def train(run: Run) -> tuple[Run, Result]:
    """Trains a run and scores the test set now and then."""
    import torch
    from sklearn.metrics import roc_auc_score

    from anomtune.datasets.opening import open_dataset
    from anomtune.datasets.splits.split import load_search_split
    from anomtune.datasets.splits.validation import Validation
    from anomtune.models.recontrast import ReContrast, ReContrastHyperparameters

    torch.set_num_threads(1)
    dataset = open_dataset("folder", SHARED / "data" / run.dataset)
    split = load_search_split(dataset, run.dataset, SIZE, Validation(protocol="test"))
    images, tests = (
        torch.from_numpy(a).permute(0, 3, 1, 2) for a in (split.train[:TRAIN], split.validation)
    )
    detector = ReContrast(
        ReContrastHyperparameters(
            **ReContrastHyperparameters.presets[run.preset],
            backbone="mobilenet_v2",
            batch_size=BATCH,
            iterations=run.iterations,
            encoder_lr=_PAPER_ENCODER_LR * _PAPER_ITERATIONS / run.iterations,
        ),
        image_size=SIZE,
        seed=run.seed,
    )
    areas, diversity = [], 0.0
    for step in range(1, EVALUATIONS + 1):
        report = detector.fit(images, step * run.iterations // EVALUATIONS - detector.iteration)
        diversity = float(report["feature_diversity"])
        scores = detector.score(tests).numpy()
        areas.append(float(roc_auc_score(split.validation_labels, scores)))
    return run, Result(areas, diversity)


def table(results: dict[Run, Result]) -> str:
    """Returns a Markdown table: a row per preset; AUROC in per cent."""
    datasets = sorted({run.dataset for run in results})
    head = ["config", *(f"{d} {what}" for d in datasets for what in ("final", "best", "diversity"))]
    lines = [
        "| " + " | ".join([*head, "MVTec in the paper, final-best"]) + " |",
        "| --- " * (len(head) + 1) + "|",
    ]
    for preset in PRESETS:
        cells = [preset]
        for dataset in datasets:
            found = [
                result
                for run, result in results.items()
                if (run.dataset, run.preset) == (dataset, preset)
            ]
            if not found:
                cells += ["", "", ""]
                continue
            for values in ([r.auroc[-1] for r in found], [max(r.auroc) for r in found]):
                spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{100 * statistics.mean(values):.1f}{spread}")
            cells.append(f"{statistics.mean(r.diversity for r in found):.4f}")
        lines.append("| " + " | ".join([*cells, "{:.2f}-{:.2f}".format(*PAPER[preset])]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["battery_weld", "magnetic_tile"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 11, 111])
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--log", type=Path, help="JSON lines: finished runs are read from here")
    options = parser.parse_args(arguments)
    if not (SHARED / "data").is_dir():
        print("skipped: no ../shared/data")
        return
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    runs = [
        Run(dataset, preset, seed, options.iterations)
        for seed in options.seeds
        for dataset in options.datasets
        for preset in options.presets
    ]
    results = run_all(train, runs, Result, processes=options.processes, log=options.log)
    text = table(results)
    print(text)
    if set(options.presets) == set(PRESETS) and len(options.seeds) > 1:
        TABLE.write_text(
            f"{__doc__.split('Run ')[0].strip()}\n\nImage AUROC in per cent, mean and standard "
            f"deviation over seeds {', '.join(map(str, options.seeds))}; {options.iterations} "
            f"iterations, batch {BATCH}.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
