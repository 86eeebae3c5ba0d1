"""What every scoring makes of one training: many scorings, evidence computed once.

All but the scoring of the config itself, which is computed as a saved detector would, are judged on
smaller maps, in a fraction of the time. At the evidence's own size that moves the AUROC of a
scoring by 0.004 on average (``tests/benchmarks/search_quality/sizes.py``, docs/scoring.md): so are
maps at the rungs before the last, which only compare trials. At the last they are twice that size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomtune.models.base import Detector
from anomtune.models.layers.evidence import Evidence, image_scores
from anomtune.models.layers.precision import full_precision
from anomtune.models.scoring import Scoring
from anomtune.search.detector.devices import wait_for

_BATCH = 32
#: Sides of the maps that scorings are judged on, in pixels: the least, if they can be had, and the
#: largest; at rungs before the last the least is the largest.
_LEAST, _LARGEST = 64, 128


def judge(
    detector: Detector[Any],
    images: Tensor,
    scorings: Sequence[Scoring],
    *,
    fine: bool = True,
    seconds: list[float] | None = None,
) -> npt.NDArray[np.float32]:
    """Returns the scores ``(G, N)`` that scorings give the images.

    Args:
        detector: Trained; its own scoring is left as it is.
        images: uint8 ``(N, 3, I, I)``, at least one.
        scorings: Of which the first is the detector's own. If one is normalised, the detector has
            learnt what is normal.
        fine: Whether maps are twice the evidence's size, else of its own size: less is looked at.
        seconds: Takes what an image of each batch took with the detector's own scoring.
    """
    own = detector.scoring
    passes = [list(group) for _, group in groupby(_in_order(scorings), _pass)]
    found: list[Tensor] = []
    try:
        for batch in torch.split(images, _BATCH):
            scores: dict[str, Tensor] = {}
            for wanted in passes:
                # Once for all that needs the same evidence.
                detector.scoring = own if own in wanted else wanted[0]
                begin = time.perf_counter()
                evidence = detector.observe(batch.to(detector.device))
                if own in wanted:
                    scores[own.key] = detector.judge(evidence, own)[1]
                    if seconds is not None:
                        wait_for(detector.device)
                        seconds.append((time.perf_counter() - begin) / len(batch))
                others = [scoring for scoring in wanted if scoring != own]
                scores.update(judge_evidence(detector, evidence, others, fine=fine))
            found.append(torch.stack([scores[scoring.key] for scoring in scorings]))
    finally:
        detector.scoring = own
    ordered: npt.NDArray[np.float32] = torch.cat(found, 1).float().cpu().numpy()
    return ordered


def _in_order(scorings: Sequence[Scoring]) -> list[Scoring]:
    """Returns scorings so that those that share what is computed stand together."""
    return sorted(scorings, key=lambda s: (_pass(s), _map(s)))


def _pass(scoring: Scoring) -> str:
    """Names the evidence that a scoring needs."""
    return str([getattr(scoring, name) for name in sorted(scoring.forward)])


def _map(scoring: Scoring) -> str:
    """Names the map that a scoring reduces."""
    fields = ("scales", "normalise", "combine", "sigma", *sorted(scoring.own.get("sigma", ())))
    return str([getattr(scoring, name) for name in fields])


@torch.inference_mode()
def judge_evidence(
    detector: Detector[Any], evidence: Evidence, scorings: Sequence[Scoring], *, fine: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yields the key of each scoring and the scores ``(N,)`` that it gives.

    Args:
        detector: Trained.
        evidence: Of N images, from the forward pass that the scorings want.
        scorings: Those that share what is computed stand together.
        fine: See `judge`.
    """
    side = max(maps.shape[-1] for maps in evidence.maps)
    wanted = min(_LARGEST, max(_LEAST, 2 * side)) if fine else min(_LEAST, side)
    size = min(wanted, detector.image_size)
    with full_precision(detector.device):
        for _, alike in groupby(scorings, _map):
            group = list(alike)
            if any(scoring.reduce != "own" for scoring in group):
                maps = detector.maps_of(evidence, group[0], size)
            for scoring in group:
                if scoring.reduce == "own":
                    yield scoring.key, detector.judge(evidence, scoring, size)[1]
                else:
                    yield scoring.key, image_scores(maps, scoring)
