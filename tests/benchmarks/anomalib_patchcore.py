"""PatchCore beside anomalib's own: 37 training images of 224 pixels, a coreset of 10 %.

Both have wide_resnet50_2 with the same random weights, concatenate the same two layers, keep 10 %
of the patches and re-weight by nine neighbours; theirs runs in its own Engine. The time is that of
fitting and of scoring all test images. Needs anomalib and the battery welds in ../shared/data.

Run: python tests/benchmarks/anomalib_patchcore.py
"""

from __future__ import annotations

import time
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from anomtune.models.foreign.borrowed import quiet
from anomtune.models.patchcore import PatchCore, PatchCoreHyperparameters
from anomtune.registry import METHODS
from tests.benchmarks.anomalib_engine import WELDS, scores_of_engine, welds

SIZE = 224


def main() -> None:
    """Prints seconds and AUROC of both, and the ratio."""
    if not WELDS.is_dir():
        print("skipped: no ../shared/data/battery_weld")
        return
    train, test, labels = welds(SIZE)
    ours = PatchCore(PatchCoreHyperparameters(weights="random"), image_size=SIZE)
    method = METHODS.get("anomalib.patchcore")
    theirs = method(method.Hyperparameters(weights="random"), image_size=SIZE)
    encoder = ours.network.features.encoder.state_dict()
    extractor = theirs.network.model.feature_extractor.feature_extractor
    extractor.load_state_dict({k: v for k, v in encoder.items() if k in extractor.state_dict()})

    begin = time.perf_counter()
    ours.fit(train, 1)
    fitted = time.perf_counter()
    mine = ours.score(test)
    seconds = fitted - begin, time.perf_counter() - fitted
    print(f"{len(train)} training and {len(test)} test images, {torch.get_num_threads()} threads")
    print(f"anomtune: fit {seconds[0]:.2f} s, score {seconds[1]:.2f} s")
    print(f"AUROC: anomtune {roc_auc_score(labels, mine):.4f}", flush=True)

    hp: Any = theirs.hyperparameters
    begin = time.perf_counter()
    with quiet():
        other = scores_of_engine(
            theirs.network, theirs, hp, train, test, torch.Generator().manual_seed(0)
        )
    engine = time.perf_counter() - begin
    print(f"anomalib's Engine: {engine:.2f} s for both")
    print(f"ratio {engine / sum(seconds):.1f}")
    print(f"       anomalib {roc_auc_score(labels, other):.4f}")


if __name__ == "__main__":
    main()
