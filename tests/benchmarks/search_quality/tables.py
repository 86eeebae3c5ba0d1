"""The recorded tables: what every config of `record.py` scores the test images, as ranks.

A table holds of one set of images, for each training, rung and scoring, which rank each test image
has: AUROCs of any part of the images follow exactly, and no image is in it. Of the scorings that a
search judges those are kept that differ from the paper's in scales, deviations, smoothing and
reduction.

``python tests/benchmarks/search_quality/tables.py WORK`` makes ``tables/*.npz.xz`` of what
`record.py` has left in WORK.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TABLES = Path(__file__).parent / "tables"
#: Side of the maps of all recorded trainings.
SIDE = 64
#: Subsets of the scales that are kept beside the paper's.
_SCALES = (("layer1", "layer2"), ("layer2", "layer3"))

Ranks = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Training:
    """One recorded training.

    Attributes:
        method: Its method.
        number: Of the config; 0 is the paper's.
        params: All its hyperparameters.
        point: Where in the searched space they are.
        fit_seconds: Of CPU time up to each rung since the one before.
        score_seconds: Of CPU time to score all test images at each rung.
        ranks: ``(R, G, N)``, of the test images by rung and scoring.
        synthetic: ``(G, M)``, of normal images and their damaged copies at the last rung.
    """

    method: str
    number: int
    params: dict[str, Any]
    point: dict[str, Any]
    fit_seconds: list[float]
    score_seconds: list[float]
    ranks: Ranks
    synthetic: Ranks

    @cached_property
    def seconds(self) -> float:
        """CPU time of the whole training, its evaluations included."""
        return sum(self.fit_seconds) + sum(self.score_seconds)


@dataclass(frozen=True)
class Table:
    """All recorded trainings on one set of images.

    Attributes:
        name: Of the set.
        labels: ``(N,)`` of the test images, 1 = anomalous.
        scorings: By method, in the order of the ranks; the paper's first.
        trainings: By method, in order of number.
    """

    name: str
    labels: npt.NDArray[np.int8]
    scorings: dict[str, list[dict[str, Any]]]
    trainings: dict[str, list[Training]]


def load(name: str) -> Table:
    """Returns a table."""
    content = lzma.decompress((TABLES / f"{name}.npz.xz").read_bytes())
    arrays = np.load(io.BytesIO(content))
    about = json.loads(arrays["about"].tobytes())
    trainings: dict[str, list[Training]] = {}
    for entry in about["trainings"]:
        key = f"{entry['method']}-{entry['number']:02d}"
        ranks = np.cumsum(arrays[f"{key}/ranks"], axis=1, dtype=np.uint8)
        found = Training(**entry, ranks=ranks, synthetic=arrays[f"{key}/synthetic"])
        trainings.setdefault(found.method, []).append(found)
    return Table(name, arrays["labels"], about["scorings"], trainings)


def names() -> list[str]:
    """Returns the sets that there are tables of."""
    return sorted(path.name.removesuffix(".npz.xz") for path in TABLES.glob("*.npz.xz"))


def _kept(scoring: Any, paper: Any) -> bool:
    """Whether a scoring differs from the paper's in nothing but what tables vary."""
    varied = {"scales", "normalise", "sigma", "reduce"}
    fixed = set(type(scoring).model_fields) - varied
    if any(getattr(scoring, name) != getattr(paper, name) for name in fixed):
        return False
    return scoring.scales in (paper.scales, *_SCALES)


def make(folder: Path) -> int:
    """Makes the table of one set and returns its size in bytes."""
    arrays: dict[str, Any] = {}
    trainings: list[dict[str, Any]] = []
    scorings: dict[str, Any] = {}
    for path in sorted(folder.glob("*.npz")):
        recorded = np.load(path)
        about = json.loads(recorded["about"].tobytes())
        method, _, number = path.stem.rpartition("-")
        judge = _Judge(method, recorded, about)
        scorings[method] = [scoring.model_dump(mode="json") for scoring in judge.scorings]
        rungs = [entry["rung"] for entry in about["rungs"]]
        ranks = np.stack([judge.test(rung, last=rung == rungs[-1]) for rung in rungs])
        # Alike scorings rank alike: differences compress.
        arrays[f"{path.stem}/ranks"] = np.diff(ranks, axis=1, prepend=np.uint8(0))
        arrays[f"{path.stem}/synthetic"] = judge.synthetic()
        arrays["labels"] = recorded["labels"]
        trainings.append(
            {
                "method": method,
                "number": int(number),
                "params": about["params"],
                "point": about["point"],
                "fit_seconds": [round(entry["fit"], 3) for entry in about["rungs"]],
                "score_seconds": [round(entry["score"], 3) for entry in about["rungs"]],
            }
        )
    about = {"scorings": scorings, "trainings": trainings}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{folder.name}.npz.xz").write_bytes(content)
    return len(content)


class _Judge:
    """Scores the recorded evidence of one training."""

    def __init__(self, method: str, recorded: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        from anomtune.registry import METHODS

        kind = METHODS.get(method)
        given = about["params"] | ({"weights": "random"} if "weights" in about["params"] else {})
        hyperparameters = kind.Hyperparameters(**given)
        self.detector = kind(hyperparameters, image_size=SIDE, device="cpu", seed=0)
        paper = hyperparameters.scoring
        self.scorings = [s for s in hyperparameters.scorings() if _kept(s, paper)]
        self._recorded = recorded
        self._scales = len(about["scales"])
        self._last = about["rungs"][-1]["rung"]

    def test(self, rung: int, *, last: bool) -> Ranks:
        """Returns the ranks ``(G, N)`` of the test images at a rung."""
        scores = self._scores(f"{rung}/0/test", rung, fine=last)
        scores[0] = self._recorded[f"{rung}/paper"]
        return _ranks(scores)

    def synthetic(self) -> Ranks:
        """Returns the ranks ``(G, M)`` of normal images and their damaged copies."""
        return _ranks(self._scores("synthetic", self._last, fine=True))

    def _scores(self, name: str, rung: int, *, fine: bool) -> npt.NDArray[np.float64]:
        import torch

        from anomtune.models.layers.evidence import Evidence
        from anomtune.search.detector.judging import judge_evidence

        def maps(part: str) -> tuple[Any, ...]:
            return tuple(
                torch.from_numpy(self._recorded[f"{part}/{scale}"].astype(np.float32))
                for scale in range(self._scales)
            )

        normal = maps(f"{rung}/0/normal")
        self.detector.normal = tuple(
            torch.stack([n.mean(0), n.std(0, correction=0)]) for n in normal
        )
        own = self._recorded.get(f"{name}/own")
        evidence = Evidence(maps(name), None if own is None else torch.from_numpy(own))
        found = dict(judge_evidence(self.detector, evidence, self.scorings, fine=fine))
        return np.stack([found[scoring.key].double().numpy() for scoring in self.scorings])


def _ranks(scores: npt.NDArray[np.float64]) -> Ranks:
    """Returns which rank each score has in its row; equal ones have the same."""
    ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in scores])
    assert ranks.max() < 256, ranks.max()
    return ranks.astype(np.uint8)


def _make(folder: Path) -> str:
    import torch

    torch.set_num_threads(1)
    return f"{folder.name}: {make(folder) / 1e6:.2f} MB"


def main() -> None:
    """Makes the tables of all sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    folders = [path for path in sorted(parser.parse_args().work.iterdir()) if path.is_dir()]
    with get_context("spawn").Pool() as workers:
        for line in workers.imap_unordered(_make, folders):
            print(line, flush=True)


if __name__ == "__main__":
    main()
