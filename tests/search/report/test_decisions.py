"""What one must decide, as the report says it: thresholds, defects, more images, gains."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from anomtune.datasets.splits.validation import Validation
from anomtune.search.config import dump_yaml
from anomtune.search.detector.saved import CONFIG
from anomtune.search.metrics.image import auroc
from anomtune.search.report.answer import answer
from anomtune.search.report.defects import defect_types
from anomtune.search.report.evidence import gather
from anomtune.search.report.gains import NOT_MEASURED, Parts, gains, gains_in_words
from anomtune.search.report.kept import Kept
from anomtune.search.report.more_images import foretell
from anomtune.search.report.operating import Counts, operating
from anomtune.search.report.page import render
from anomtune.search.store.directory import read_sweeps
from tests.search.results.test_winners import saved_config
from tests.search.sample_sweep import write_sample_sweep


def kept(labels, scores, threshold=0.5, defects=None) -> Kept:
    return Kept(
        seed=1,
        labels=np.array(labels, np.int8),
        scores=np.array(scores, np.float32).astype(float),
        defects=None if defects is None else np.array(defects),
        threshold=threshold,
        saved=True,
    )


def many(n: int, seed: int = 0) -> Kept:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    # Coarse, so that there are ties.
    return kept(labels, np.round(labels * 1.5 + generator.normal(size=n), 2), threshold=0.75)


@pytest.mark.parametrize("n", [9, 60, 3000])
def test_counts_at_each_threshold_are_those_of_the_images(n):
    detector = many(n)
    found = operating(detector)
    good, bad = (detector.scores[detector.labels == label] for label in (0, 1))
    for threshold, missed, alarms, low, high, *_ in found.slider["steps"]:
        assert missed == (bad < threshold).sum()
        assert alarms == (good >= threshold).sum()
        interval = binomtest(missed, len(bad)).proportion_ci(method="exact")
        assert (low / 100, high / 100) == pytest.approx(tuple(interval), abs=6e-5)
    steps = found.slider["steps"]
    assert [step[0] for step in steps] == sorted(step[0] for step in steps)
    assert steps[0][1] == steps[-1][2] == 0
    assert steps[0][2] == len(good)
    assert steps[-1][1] == len(bad)
    chosen = steps[found.slider["chosen"]]
    assert chosen[:3] == [0.75, (bad < 0.75).sum(), (good >= 0.75).sum()]
    assert (found.chosen.missed.number, found.chosen.alarms.number) == tuple(chosen[1:3])


def test_the_slider_is_bounded_and_loses_no_threshold_that_a_cost_would_choose():
    detector = many(20_000)
    found = operating(detector)
    steps = np.array([step[1:3] for step in found.slider["steps"]])
    assert 200 < len(steps) < 300
    assert found.dropped > 200
    assert len(json.dumps(found.slider)) < 30_000
    good, bad = (np.sort(detector.scores[detector.labels == label]) for label in (0, 1))
    levels = np.append(np.unique(detector.scores), np.inf)
    every = np.stack(
        [np.searchsorted(bad, levels), len(good) - np.searchsorted(good, levels)], axis=1
    )
    for ratio in np.geomspace(0.01, 100, 50):
        assert (steps @ [ratio, 1]).min() == pytest.approx((every @ [ratio, 1]).min())


def test_the_table_names_the_thresholds_one_asks_for():
    labels, scores = [0] * 20 + [1] * 4, [*range(20), 5, 18.5, 30, 31]
    rows = {step.name: step for step in operating(kept(labels, scores, 19.5)).table}
    found = {name: (step.missed.number, step.alarms.number) for name, step in rows.items()}
    assert found == {
        "chosen on validation": (2, 0),
        "no defect missed": (0, 15),
        "at most 5 % false alarms": (1, 1),
        "no false alarm": (2, 0),
    }
    assert rows["no defect missed"].threshold == 4.5
    assert Counts(3, 40).text == "3 of 40 (1.6-20 %)"
    unknown = operating(kept(labels, scores, None))
    assert unknown.chosen is None
    assert len(unknown.table) == 3


def test_a_threshold_beyond_all_scores_is_a_step_too():
    for threshold, expected in ((-7.0, (0, 2)), (7.0, (2, 0))):
        found = operating(kept([0, 0, 1, 1], [0, 1, 1, 2], threshold))
        assert (found.chosen.missed.number, found.chosen.alarms.number) == expected
        assert found.chosen.threshold == threshold
    alike = operating(kept([0, 1], [1, 1], 1.0))
    assert [step[1:3] for step in alike.slider["steps"]] == [[0, 1], [1, 0]]


def test_defect_types_the_worst_first():
    labels = [0, 0, 0, 0, *[1] * 7]
    scores = [0.1, 0.2, 0.3, 0.6, 0.9, 0.8, 0.4, 0.35, 0.7, 0.7, 0.05]
    types = [*["good"] * 4, "cut", "cut", "cut", "dent", "hole", "hole", "<b>"]
    found = defect_types(kept(labels, scores, 0.5, types))
    assert [(item.name, item.missed.number, item.images) for item in found] == [
        ("<b>", 1, 1),
        ("dent", 1, 1),
        ("cut", 1, 3),
        ("hole", 0, 2),
    ]
    own = auroc(np.array([0, 0, 0, 0, 1, 1, 1]), np.array([*scores[:4], 0.9, 0.8, 0.4]))
    assert found[2].area == own.value == (4 + 4 + 3) / 12
    assert found[2].range == f"{own.low:.3f}-{own.high:.3f}"
    assert found[1].range == ""  # one image says nothing of others
    assert defect_types(kept(labels, scores, 0.5)) == []
    assert all(item.missed is None for item in defect_types(kept(labels, scores, None, types)))


def test_more_images_are_divided_as_the_sweep_divides_them():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [20, 60])
    scores = labels + generator.normal(size=(3, 80))
    found = foretell(labels, scores, Validation(fraction=0.25))
    assert [(row.more, row.normal, row.anomalous) for row in found.rows] == [
        (0, 20, 60), (50, 29, 88), (100, 39, 116), (200, 58, 172), (500, 114, 341),
    ]  # fmt: skip
    now = auroc(labels, scores)
    assert (found.rows[0].low, found.rows[0].high) == pytest.approx((now.low, now.high))
    widths = [row.width for row in found.rows]
    assert widths == sorted(widths, reverse=True)
    assert 0 < found.seeds < widths[-1]
    assert "(75 of them held out)" in found.sentence
    assert f"{widths[2]:.3f} wide instead of {widths[0]:.3f}" in found.sentence
    single = foretell(labels, scores[0], Validation(protocol="synthetic"))
    assert single.seeds < 1e-3
    assert single.rows[2].normal == 45
    assert foretell(np.array([0, 0, 1]), np.array([1, 2, 3]), Validation()) is None


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(root, methods=("patchcore", "padim"), trials=6, confirm=1, seeds=(1, 11))
    return gather(*read_sweeps([root]))


def test_gains_are_the_differences_of_what_was_measured(evidence):
    found = gains(evidence.categories)
    for gain, category in zip(found, evidence.categories, strict=True):
        study = category.studies[0]
        default = study.confirmed[0]
        rescored = np.mean([run.test.auroc for run in default.runs])
        papers = np.mean([(run.paper or run).test.auroc for run in default.runs])
        held = gain.held_out
        assert held.scoring == pytest.approx(rescored - papers)
        assert held.training == pytest.approx(study.row["test_auroc_mean"] - rescored)
        assert held.paper + held.scoring + held.training == pytest.approx(held.chosen)
        own = gain.validation
        assert own.paper + own.scoring + own.training == pytest.approx(study.row["val_auroc"])
    mean = np.mean([gain.held_out.scoring for gain in found])
    assert f"mean of 2 categories: scoring {mean:+.3f}" in gains_in_words(found)[0]


def test_the_threshold_is_that_of_the_saved_detector(tmp_path):
    write_sample_sweep(
        tmp_path, methods=("padim",), categories=("bottle",), trials=3, confirm=1, seeds=(11, 1)
    )
    (category,) = gather(*read_sweeps([tmp_path])).categories
    run = next(run for run in category.studies[0].winner.runs if run.seed == 11)
    store = category.store
    (validation,), labels = store.read_scores([run]), store.read_labels("bottle")
    assert not category.kept.saved
    assert f1_score(labels, validation >= category.kept.threshold) == pytest.approx(
        max(f1_score(labels, validation >= level) for level in validation)
    )
    np.testing.assert_array_equal(category.kept.scores, store.read_held_out(run).scores)

    def keep(config) -> None:
        content = dump_yaml(config.model_dump(mode="json")).encode()
        store.storage.write(f"models/bottle/padim/{CONFIG}", content)

    saved = saved_config(run)
    keep(saved)
    (category,) = gather(*read_sweeps([tmp_path])).categories
    assert category.kept.saved
    assert category.kept.threshold == saved.threshold == 0.5
    other = saved.model_copy(update={"seed": 1})
    keep(other)
    (category,) = gather(*read_sweeps([tmp_path])).categories
    assert not category.kept.saved, "another training's threshold says nothing of these scores"


def test_what_was_not_measured_is_not_estimated(tmp_path):
    write_sample_sweep(tmp_path, methods=("padim",), categories=("bottle",), trials=4, confirm=0)
    evidence = gather(*read_sweeps([tmp_path]))
    (gain,) = gains(evidence.categories)
    assert gain.held_out.cells == (NOT_MEASURED,) * 4
    assert gain.certain == NOT_MEASURED
    assert gain.validation.scoring is not None
    assert gains_in_words([gain]) == ["On held-out images neither part was measured."]
    line = answer(evidence.categories[0], evidence.config, None, None)
    assert line.images == "validation: optimistic"
    assert line.missed == ""
    assert line.next.startswith("Set confirm.top")
    assert "Cost of a wrong choice" not in render(evidence)


def test_the_first_screen_answers(evidence):
    category = evidence.categories[0]
    study, detector = category.studies[0], category.kept
    more = foretell(*study.measured, evidence.config.validation)
    line = answer(category, evidence.config, operating(detector), more)
    assert line.method == study.row["method"]
    assert line.auroc == f"{study.row['test_auroc_mean']:.3f}"
    assert line.sure.startswith(f"{study.held_out.low:.3f}-{study.held_out.high:.3f}")
    missed = (detector.scores[detector.labels == 1] < detector.threshold).sum()
    assert line.missed == f"{missed} of 30"
    seeds = more.seeds > more.rows[0].width / 2
    assert more.rows[0].width > 0.15
    assert line.next.startswith("Confirm with more seeds" if seeds else "Label more images")


def test_a_loss_is_no_gain_however_certain(evidence, monkeypatch):
    lost = replace(evidence.categories[0], tied_with_paper=False)
    for chosen, words in ((0.90, "no gain"), (0.99, "more than chance")):
        parts = Parts(0.95, 0.0, chosen - 0.95, chosen)
        monkeypatch.setattr("anomtune.search.report.gains.held_out_parts", lambda _, p=parts: p)
        (gain,) = gains([lost])
        assert gain.certain == words
