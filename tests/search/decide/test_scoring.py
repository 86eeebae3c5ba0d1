"""The scoring of a study: chosen from all its trials, and shown to Optuna."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomtune.errors import SweepError
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search
from anomtune.search.decide.scoring import (
    Judgements,
    auroc_with,
    neighbours,
    pooled_scoring,
    read_study,
    read_with,
)
from anomtune.search.store.judged import Judged
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import Rung, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

SCORINGS = [{"sigma": sigma, "reduce": reduce} for reduce in ("max", "mean") for sigma in range(4)]
NEAR = neighbours(SCORINGS)
LABELS = np.repeat([0, 1], 20)


def trial(number, values, state="COMPLETE", **changes):
    judged = Judged.of(LABELS, *[np.array(values)] * 3)
    rung = Rung(step=1, auroc=values[0], auroc_low=0.1, auroc_high=0.9, judged=judged)
    return TrialRecord(
        **{
            "dataset": "folder",
            "category": "plate",
            "method": "toy",
            "number": number,
            "state": state,
            "params": {"lr": 0.1, "scoring": SCORINGS[0]},
            "seed": 0,
            "split_hash": "abc",
            "curve": [rung],
        }
        | changes
    )


def test_without_a_completed_trial_it_is_the_papers():
    best_last = [0.5] * 7 + [0.9]
    assert pooled_scoring([], NEAR) == 0
    assert pooled_scoring([trial(0, best_last, "PRUNED"), trial(1, best_last, "FAIL")], NEAR) == 0
    assert Judgements(NEAR).leading(3) == ()


def test_a_scoring_must_beat_the_papers_by_part_of_its_standard_error():
    near = np.eye(8)  # no neighbours

    def judged(errors):
        values = np.array([0.7, 0.72, 0.73, *[0.5] * 5])
        one = trial(0, values)
        one.curve[0].judged = Judged.of(LABELS, values, values, values, np.array(errors))
        return one

    assert pooled_scoring([judged([0.0] * 8)], near) == 2
    assert pooled_scoring([judged([0, 0, 0.08, *[0.0] * 5])], near) == 1
    assert pooled_scoring([judged([0, 0.2, 0.2, *[0.2] * 5])], near) == 0
    read = read_with(judged([0, 0.01, 0.02, *[0.0] * 5]), 2, SCORINGS)
    assert read.curve[-1].scoring_error == pytest.approx(0.02)
    known = Judgements(near)
    assert known.doubt(2) == 0
    known.add(judged([0, 0.01, 0.02, *[0.0] * 5]))
    assert known.doubt(2) == pytest.approx(0.02 * 2)
    known.add(judged([0, 0.01, 0.04, *[0.0] * 5]))
    assert known.doubt(2) == pytest.approx(0.03 * 1.5)
    assert known.doubt(0) == 0


#: Number 5 is the best, and so are its neighbours.
BROAD = [0.55, 0.65, 0.55, 0.55, 0.6, 0.9, 0.6, 0.6]


def test_the_luckiest_figure_does_not_decide():
    lone = [0.7, 0.7, 0.7, 0.9, 0.5, 0.5, 0.5, 0.5]
    assert int(np.argmax(lone)) == 3
    assert pooled_scoring([trial(0, lone)], NEAR) != 3, "its neighbours are worse than others'"
    assert pooled_scoring([trial(0, BROAD)], NEAR) == 5
    usual = [0.9, 0.7, 0.8, 0.8, 0.7, 0.5, 0.5, 0.5]
    trials = [trial(0, BROAD), trial(1, usual), trial(2, usual)]
    assert pooled_scoring(trials, NEAR) == 0, "one trial of three"


def test_of_equals_it_is_the_papers():
    assert pooled_scoring([trial(0, [0.7] * 8), trial(1, [0.9] * 8)], NEAR) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=8, max_size=8), min_size=1, max_size=5))
def test_the_order_of_the_trials_does_not_matter(tables):
    trials = [trial(number, values) for number, values in enumerate(tables)]
    one, other = Judgements(NEAR), Judgements(NEAR)
    for trial_, reversed_ in zip(trials, trials[::-1], strict=True):
        one.add(trial_)
        other.add(reversed_)
    assert one.leading(8) == other.leading(8)


def test_neighbours_differ_in_one_field():
    assert np.flatnonzero(NEAR[0]).tolist() == [0, 1, 2, 3, 4]
    assert NEAR.sum(1) == pytest.approx(1)
    assert neighbours([]).shape == (0, 0)
    plan = plan_search("rd4ad", MethodConfig(), image_size=64)
    assert plan.neighbours.shape == (len(plan.scorings),) * 2
    assert ((plan.neighbours > 0).sum(1) > 3).all(), "no scoring stands alone"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=400))
def test_aurocs_are_kept_as_they_are(values):
    areas = np.round(np.array(values) * 800) / 800
    judged = Judged.of(LABELS, areas, areas / 2, areas)
    again = Judged.model_validate_json(judged.model_dump_json())
    assert again.values().tolist() == areas.tolist(), "to the bit"
    assert again.interval(0) == pytest.approx((areas[0] / 2, areas[0]), abs=1e-9)
    assert Judged.of(LABELS, areas).interval(0) == (None, None)


def test_a_record_stays_small():
    of_images = np.random.default_rng(0).integers(600, 720, 300) / (2 * 20 * 20)
    assert len(Judged.of(LABELS, of_images).model_dump_json()) < 1200


def test_a_trial_is_read_with_the_scoring_of_its_study():
    kept = [trial(0, BROAD), trial(1, BROAD, "PRUNED")]
    for read, record in zip(read_study(kept, SCORINGS), kept, strict=True):
        assert read.scoring == 5
        assert read.params == {"lr": 0.1, "scoring": SCORINGS[5]}
        (rung,) = read.curve
        assert rung.auroc == 0.9
        assert rung.paper_auroc == 0.55
        assert (record.params["scoring"], record.curve[0].auroc) == (SCORINGS[0], 0.55)
    assert read_study(kept, SCORINGS)[0].paper_value == 0.55
    assert read_study(kept, []) == kept
    assert read_with(kept[0], 0, SCORINGS) is kept[0]
    for scoring in range(len(SCORINGS)):
        for rung, own in zip(
            read_with(kept[0], scoring, SCORINGS).curve, kept[0].curve, strict=True
        ):
            assert auroc_with(own, scoring) == rung.auroc


def test_scorings_of_another_version_are_refused(tmp_path):
    store, key = RecordStore(Storage(tmp_path)), StudyKey("plate", "toy")
    store.write_scorings(key, SCORINGS)
    store.write_scorings(key, SCORINGS)
    assert store.read_scorings(key) == SCORINGS
    assert store.read_scorings(StudyKey("plate", "other")) == []
    with pytest.raises(SweepError, match="other scorings"):
        store.write_scorings(key, SCORINGS[:-1])
    assert store.read_scorings(key) == SCORINGS


@pytest.mark.parametrize("workers", [1, 3])
def test_optuna_sees_what_the_studys_scoring_says(simulation, make_sweep, workers):
    config = make_sweep(trials=12)
    pool = simulation.run(config, workers=workers)
    moved = 0
    for study in pool.studies.values():
        assert study.scoring == pooled_scoring(study.records.values(), study.plan.neighbours)
        moved += study.scoring > 0
        for seen, record in zip(study.search.trials, study.read, strict=True):
            assert seen.number == record.number
            assert seen.state.name == record.state
            assert seen.intermediate_values == {r.step: r.auroc for r in record.curve}
            if record.state == "COMPLETE":
                assert seen.value == record.value
    assert moved


def test_with_the_papers_scoring_alone_nothing_is_judged(simulation, make_sweep):
    pool = simulation.run(make_sweep(trials=3, scoring="paper"))
    for study in pool.studies.values():
        assert len(study.plan.scorings) == 1
        assert study.scoring == 0
        assert study.read == list(study.records.values())
