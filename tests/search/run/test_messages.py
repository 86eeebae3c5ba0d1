"""What the engine and a worker tell each other arrives as it was."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from anomtune.errors import DataError, ImageError, StorageError, SweepError
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.run.messages import (
    Aborted,
    Assignment,
    ConfirmReport,
    Failed,
    OutOfMemory,
    TrialReport,
    from_result,
    to_result,
)
from anomtune.search.run.trial import TrialResult, TrialSpec
from anomtune.search.store.records import ConfirmResult, Cost, Rung
from tests.search.conftest import FACTS

RUNG = Rung(step=2, auroc=0.1 + 0.2, auroc_low=0, auroc_high=1, loss=1 / 3, figures={"a": 1e-300})
COST = Cost(train_seconds=1.5, gpu=1 / 3, peak_memory_bytes=2**40)


@pytest.mark.parametrize(
    ("message", "final"),
    [
        (TrialReport(result=TrialResult(rung=RUNG, cost=COST)), False),
        (TrialReport(result=TrialResult(rung=RUNG, cost=COST, facts=FACTS)), True),
        (
            ConfirmReport(
                result=ConfirmResult(val_auroc=0.7, test=None, shifted={}, facts=FACTS, cost=COST)
            ),
            True,
        ),
        (Failed(error="ValueError: no", traceback=None), True),
        (Failed(error="ValueError: no", traceback="File x\n  line 1"), True),
        (OutOfMemory(), True),
        (Aborted.by(StorageError("s3://x: full")), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_message_arrives_as_it_was(message, final):
    result = to_result(message)
    assert from_result(json.loads(json.dumps(result))) == message
    assert result["done"] is final
    assert len(result) == 2, "Tune keeps what results hold"


@pytest.mark.parametrize("result", [None, {}, {"done": True, "trial_id": "1"}])
def test_a_result_without_a_message_has_none(result):
    assert from_result(result) is None


def test_what_is_no_message_is_refused():
    with pytest.raises(ValidationError):
        from_result({"message": '{"kind": "other"}'})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("no such folder"), DataError),
        (SweepError("not so"), SweepError),
        (StorageError("full"), StorageError),
        (ImageError("a.png", "cut off"), DataError),
    ],
)
def test_an_abort_comes_back_as_the_error_that_it_was(error, kind):
    again = from_result(to_result(Aborted.by(error))).exception()
    assert type(again) is kind
    assert str(again) == str(error)


def test_an_assignment_arrives_as_it_was():
    training = TrainingSpec(
        dataset={"name": "folder", "root": "/d", "categories": ["a"]},
        category="a",
        method="toy",
        seed=2**62,
        hyperparameters={
            "lr": 0.1 + 0.2,
            "n": 3,
            "flag": True,
            "name": "x",
            "float": 2.0,
            "no": None,
        },
    )
    spec = TrialSpec(
        training=training,
        directory="/x",
        record_path="trials/a/toy/0",
        rungs=3,
        threads=1,
        gpu=1 / 3,
    )
    given = Assignment(spec=spec, confirm=True, shape={"CPU": 1.0, "GPU": 1 / 3})
    again = Assignment.of(json.loads(json.dumps(given.to_config())))
    assert again == given
    assert {name: type(v) for name, v in again.spec.training.hyperparameters.items()} == {
        name: type(v) for name, v in training.hyperparameters.items()
    }
