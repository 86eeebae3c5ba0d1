"""How well validation without labels ranks configs and scorings, on the recorded tables.

Of every recorded training there are scores of normal images that it has not seen, and of copies of
them damaged in six ways. What these say of a config is compared with its AUROC on all test images,
by Spearman's rho over all trainings of a set. The ways to make one figure of it:

* pooled: the AUROC of all copies together, as version 0.1 does.
* mean, median, lowest: of the AUROCs of the six kinds of damage, each taken alone.
* ranks: the mean over the kinds of the rank that a config has by each.
* hard: the mean over the three kinds that are hardest for the median config.
* agreeing: the mean over the kinds that agree with the mean of the others (rho above 0).
* shrunk: mean, less the spread of the kinds.

``within`` is the mean of rho within each method, ``scorings`` that of rho over the scorings of a
training, mean over all. A second table says what it all is worth: the AUROC on all test images of
what a sweep of all methods would answer with, each method with the scoring that is best over its
first eight trainings, and the mean over methods of their own answers.

Run ``python tests/benchmarks/search_quality/labels_free.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from record import COPIES, HELD
from recorded import plan
from scipy.stats import spearmanr
from tables import Table, Training, load, names

from anomtune.datasets.splits.damage import MECHANISMS
from anomtune.search.metrics.delong import placements

Figures = npt.NDArray[np.float64]
#: Of each method in the second table.
_TRIALS = 8
WAYS = ("pooled", "mean", "median", "lowest", "ranks", "hard", "agreeing", "shrunk")


def by_kind(training: Training) -> tuple[Figures, Figures]:
    """Returns AUROCs by scoring and kind of damage ``(G, 6)``, and of all together ``(G,)``."""
    scores = training.synthetic.astype(np.float64)
    normal, copies = scores[:, :HELD], scores[:, HELD:]
    each = HELD * COPIES
    parts = [copies[:, k * each : (k + 1) * each] for k in range(len(MECHANISMS))]
    return np.stack([_auroc(normal, part) for part in parts], 1), _auroc(normal, copies)


def _auroc(normal: Figures, anomalous: Figures) -> Figures:
    labels = np.repeat([0, 1], [normal.shape[1], anomalous.shape[1]])
    return placements(labels, np.concatenate([normal, anomalous], 1))[2]


def truth(table: Table, training: Training) -> Figures:
    """Returns the AUROC ``(G,)`` on all test images."""
    return placements(table.labels, training.ranks[-1].astype(np.float64))[2]


def combined(kinds: Figures, pooled: Figures) -> dict[str, Figures]:
    """Returns one figure per config by each way, of AUROCs ``(C, 6)`` and ``(C,)``."""
    mean = kinds.mean(1)
    ranks = np.argsort(np.argsort(kinds, axis=0), axis=0).mean(1)
    hard = np.argsort(np.median(kinds, axis=0))[:3]
    others = [np.delete(kinds, k, 1).mean(1) for k in range(kinds.shape[1])]
    agrees = [rho(kinds[:, k], others[k]) > 0 for k in range(kinds.shape[1])]
    chosen = np.flatnonzero(agrees) if any(agrees) else np.arange(kinds.shape[1])
    return {
        "pooled": pooled,
        "mean": mean,
        "median": np.median(kinds, axis=1),
        "lowest": kinds.min(1),
        "ranks": ranks,
        "hard": kinds[:, hard].mean(1),
        "agreeing": kinds[:, chosen].mean(1),
        "shrunk": mean - kinds.std(1),
    }


def answers(table: Table, judged: dict[str, list[tuple[Figures, Figures]]]) -> Figures:
    """Returns what a sweep and, on average, its methods would answer with by each way, ``(W, 2)``.

    Args:
        table: The recorded trainings.
        judged: What `by_kind` says of them, by method.
    """
    found = []
    for way in WAYS:
        choices = []
        for method, runs in table.trainings.items():
            each = [combined(*known)[way] for known in judged[method][:_TRIALS]]
            figures = np.stack(each)
            scoring = int((plan(table.name, method).neighbours @ figures.mean(0)).argmax())
            best = int(figures[:, scoring].argmax())
            choices.append((figures[best, scoring], truth(table, runs[best])[scoring]))
        found.append((max(choices)[1], np.mean([true for _, true in choices])))
    return np.array(found)


def rho(one: Figures, other: Figures) -> float:
    """Returns Spearman's rho; 0 where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def main() -> None:
    """Prints a table per question."""
    found: dict[str, dict[str, list[float]]] = {}
    worth: list[Figures] = []
    for name in names():
        table = load(name)
        runs = [run for trainings in table.trainings.values() for run in trainings]
        of_method = {m: [by_kind(run) for run in own] for m, own in table.trainings.items()}
        judged = [known for own in of_method.values() for known in own]
        worth.append(answers(table, of_method))
        true = [truth(table, run) for run in runs]
        kinds, pooled = (np.stack([j[part][0] for j in judged]) for part in (0, 1))
        papers = np.array([t[0] for t in true])
        ways = combined(kinds, pooled)
        methods = np.array([run.method for run in runs])
        for way in WAYS:
            row = found.setdefault(f"configs, {way}", {})
            row[name] = [rho(ways[way], papers)]
            row = found.setdefault(f"within, {way}", {})
            row[name] = [
                rho(ways[way][methods == method], papers[methods == method])
                for method in dict.fromkeys(methods)
                if (methods == method).sum() > 4
            ]
            row = found.setdefault(f"scorings, {way}", {})
            row[name] = [rho(combined(*j)[way], t) for j, t in zip(judged, true, strict=True)]
    sets = names()
    print(f"| Spearman's rho | {' | '.join(sets)} | mean |\n|{'---|' * (len(sets) + 2)}")
    for label, row in found.items():
        values = [float(np.mean(row[name])) for name in sets]
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {label} | {cells} | {np.mean(values):.2f} |")
    print(f"\n| AUROC | {' | '.join(sets)} | mean |\n|{'---|' * (len(sets) + 2)}")
    for column, label in enumerate(("answer", "methods")):
        for number, way in enumerate(WAYS):
            values = [float(known[number, column]) for known in worth]
            cells = " | ".join(f"{value:.3f}" for value in values)
            print(f"| {label}, {way} | {cells} | {np.mean(values):.3f} |")


if __name__ == "__main__":
    main()
