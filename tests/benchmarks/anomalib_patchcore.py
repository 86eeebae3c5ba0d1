"""PatchCore beside anomalib's own: 37 training images of 224 pixels, a coreset of 10 %.

Both have the same backbone (ResNet18, or the one that is named) with the same random weights,
concatenate the same two layers, keep 10 % of the patches and re-weight by nine neighbours; theirs
runs in its own Engine. Fitting (features and coreset) and scoring of all test images are timed.
Needs anomalib and the battery welds in ../shared/data. glibc keeps what anomalib's loop frees
(24 GB were not enough) unless MALLOC_MMAP_THRESHOLD_=4000000 is set.

Run: python -m tests.benchmarks.anomalib_patchcore [BACKBONE]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from anomtune.models.foreign.borrowed import quiet
from anomtune.models.patchcore import PatchCore, PatchCoreHyperparameters
from anomtune.registry import METHODS
from tests.benchmarks.anomalib_engine import WELDS, scores_of_engine, welds

SIZE = 224


def main(backbone: str) -> None:
    """Prints seconds and AUROC of both, and the ratio."""
    if not WELDS.is_dir():
        print("skipped: no ../shared/data/battery_weld")
        return
    train, test, labels = welds(SIZE)
    ours = PatchCore(PatchCoreHyperparameters(backbone=backbone, weights="random"), image_size=SIZE)
    method = METHODS.get("anomalib.patchcore")
    theirs = method(method.Hyperparameters(backbone=backbone, weights="random"), image_size=SIZE)
    encoder = ours.network.features.encoder.state_dict()
    extractor = theirs.network.model.feature_extractor.feature_extractor
    extractor.load_state_dict({k: v for k, v in encoder.items() if k in extractor.state_dict()})

    ours.network(ours.inputs(train[:2]))  # the first products set up their threads
    begin = time.perf_counter()
    ours.fit(train, 1)
    fit = time.perf_counter() - begin
    mine = ours.score(test)
    score = time.perf_counter() - begin - fit
    print(f"{len(train)} training and {len(test)} test images, {torch.get_num_threads()} threads")
    print(f"anomtune: fit {fit:.2f} s, score {score:.2f} s", flush=True)

    hp: Any = theirs.hyperparameters
    begin = time.perf_counter()
    with quiet():
        other, their_fit = scores_of_engine(
            theirs.network, theirs, hp, train, test, torch.Generator().manual_seed(0)
        )
    their_score = time.perf_counter() - begin - their_fit
    print(f"anomalib's Engine: fit {their_fit:.2f} s, score {their_score:.2f} s")
    print(f"fit {their_fit / fit:.1f} times as fast, score {their_score / score:.1f} times")
    print(f"AUROC: anomtune {roc_auc_score(labels, mine):.4f}", end=", ")
    print(f"anomalib {roc_auc_score(labels, other):.4f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resnet18")
