"""How a scoring is best chosen: rules side by side, on what `record.py` has trained.

Of every training all scorings judge all test images, on maps of the evidence's own size. Half of
the images, drawn anew many times, choose a scoring by some rule, and the other half says what the
choice is worth. The rules:

* paper: the paper's own scoring, always.
* best: the highest AUROC.
* neighbours: the highest mean AUROC over a scoring and those that differ from it in one field.
* shrunk: the highest AUROC less its standard error against the paper's scoring.
* one-standard-error: of all that are within one standard error of the best, the one that differs
  from the paper's in the fewest fields.
* average: no choice, but the mean of the standardised scores of the 15 best.

Run ``python tests/benchmarks/search_quality/choose.py WORK``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anomtune.models.layers.evidence import Evidence
from anomtune.registry import METHODS
from anomtune.search.decide.scoring import neighbours
from anomtune.search.detector.judging import judge_evidence
from anomtune.search.metrics.delong import placements

Array = npt.NDArray[np.float64]

SPLITS = 60
#: Side of the maps of all recorded trainings.
_SIDE = 64
RULES = ("paper", "best", "neighbours", "shrunk", "one-standard-error", "average")


def recorded_scores(
    path: Path, *, whole: bool = False, fine: bool = True
) -> tuple[npt.NDArray[np.int8], Array, list[dict[str, Any]]]:
    """Returns labels ``(N,)``, scores ``(G, N)`` and the scorings of a recorded training.

    Args:
        path: What `record.py` has written.
        whole: Whether maps are of their whole size, not of that which a search judges.
        fine: Whether that is the size of a last rung.
    """
    recorded = np.load(path)
    about = json.loads(recorded["about"].tobytes())
    kind = METHODS.get(path.stem.rpartition("-")[0])
    given = about["params"] | ({"weights": "random"} if "weights" in about["params"] else {})
    hyperparameters = kind.Hyperparameters(**given)
    detector = kind(hyperparameters, image_size=_SIDE, device="cpu", seed=0)
    rung = about["rungs"][-1]["rung"]
    scorings = hyperparameters.scorings()
    found: dict[str, Array] = {}
    for number in range(len(about["passes"])):
        wanted = [s for s in scorings if _pass(s) == _pass(s.changed(about["passes"][number]))]
        maps, normal = (
            tuple(
                torch.from_numpy(recorded[f"{rung}/{number}/{part}/{scale}"].astype(np.float32))
                for scale in range(len(about["scales"]))
            )
            for part in ("test", "normal")
        )
        own = recorded.get(f"{rung}/{number}/test/own")
        detector.normal = tuple(torch.stack([n.mean(0), n.std(0, correction=0)]) for n in normal)
        evidence = Evidence(maps, None if own is None else torch.from_numpy(own))
        judged = (
            ((scoring.key, detector.judge(evidence, scoring)[1]) for scoring in wanted)
            if whole
            else judge_evidence(detector, evidence, wanted, fine=fine)
        )
        found |= {key: scores.numpy().astype(np.float64) for key, scores in judged}
    known = [scoring for scoring in scorings if scoring.key in found]
    scores = np.stack([found[scoring.key] for scoring in known])
    scores[0] = recorded[f"{rung}/paper"]
    return recorded["labels"], scores, [scoring.model_dump(mode="json") for scoring in known]


def _pass(scoring: Any) -> list[Any]:
    return [getattr(scoring, name) for name in sorted(scoring.forward)]


def halves(labels: npt.NDArray[np.int8]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yields random halves of the normal and of the anomalous images."""
    generator = np.random.default_rng(0)
    for _ in range(SPLITS):
        chosen = np.zeros(len(labels), np.bool_)
        for label in (0, 1):
            images = generator.permutation(np.flatnonzero(labels == label))
            chosen[images[: len(images) // 2]] = True
        yield chosen


def held_out(labels: npt.NDArray[np.int8], scores: Array, scorings: list[dict[str, Any]]) -> Array:
    """Returns the held-out AUROC of each rule, mean over the halves."""
    near = neighbours(scorings)
    changed = np.array([sum(s[k] != scorings[0][k] for k in s) for s in scorings])
    standard = scores - scores.mean(1, keepdims=True)
    standard /= scores.std(1, keepdims=True) + 1e-12
    rows = []
    for seen in halves(labels):
        anomalous, normal, areas = placements(labels[seen], scores[:, seen])
        unseen = placements(labels[~seen], scores[:, ~seen])[2]
        best = int(areas.argmax())

        def error(other: int, parts: tuple[Array, Array] = (anomalous, normal)) -> Array:
            differences = [part - part[other] for part in parts]
            return np.sqrt(sum(d.var(1, ddof=1) / d.shape[1] for d in differences))

        close = np.flatnonzero(areas >= areas[best] - error(best))
        simplest = close[np.lexsort((-areas[close], changed[close]))[0]]
        leading = standard[np.argsort(-areas, kind="stable")[:15]].mean(0)
        rows.append(
            [
                unseen[0],
                unseen[best],
                unseen[int((near @ areas).argmax())],
                unseen[int((areas - error(0)).argmax())],
                unseen[simplest],
                placements(labels[~seen], leading[~seen])[2],
            ]
        )
    return np.mean(rows, axis=0)


def main() -> None:
    """Prints the table, a row per training and the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    torch.set_num_threads(1)
    print(f"| training | scorings | {' | '.join(RULES)} |\n|{'---|' * (len(RULES) + 2)}")
    found = []
    for path in sorted(parser.parse_args().work.glob("*/*.npz")):
        labels, scores, scorings = recorded_scores(path, fine=False)
        row = held_out(labels, scores, scorings)
        found.append(row)
        figures = " | ".join(f"{value:.3f}" for value in row)
        print(f"| {path.parent.name}, {path.stem} | {len(scorings)} | {figures} |", flush=True)
    table = np.array(found)
    worst = (table - table[:, :1]).min(0)
    print(f"| **mean of {len(table)}** | | {' | '.join(f'{v:.3f}' for v in table.mean(0))} |")
    print(f"| largest loss against the paper's | | {' | '.join(f'{v:+.3f}' for v in worst)} |")


if __name__ == "__main__":
    main()
