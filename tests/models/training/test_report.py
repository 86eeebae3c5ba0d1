from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from anomtune.models.training.report import Histogram


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    histograms: dict[str, Histogram] = {}


def test_a_histogram_is_a_field_of_records_and_survives_json() -> None:
    record = Record(histograms={"weights": Histogram((0, 0.5, 1), (3, 0))})
    text = record.model_dump_json()
    assert text == '{"histograms":{"weights":{"edges":[0.0,0.5,1.0],"counts":[3,0]}}}'
    assert Record.model_validate_json(text) == record
    assert Record.model_validate(record.model_dump()) == record
    assert hash(record.histograms["weights"]) == hash(Histogram((0, 0.5, 1), (3, 0)))


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ((0.0, float("nan")), (1,)),
        ((0.0, float("inf")), (1,)),
        ((0.0, 1.0), (-1,)),
        ((0.0, 1.0), (1.0,)),
        ((0.0, 1.0), ("1",)),
        ((0.0, "1"), (1,)),
        ((0.0, 0.0), (1,)),
        ((1.0, 0.0), (1,)),
        ((0.0, 1.0), (1, 2)),
        ((), ()),
    ],
)
def test_what_is_no_histogram_is_refused(edges: Any, counts: Any) -> None:
    with pytest.raises(ValidationError):
        Histogram(edges, counts)


def test_a_histogram_does_not_change() -> None:
    histogram = Histogram((0.0, 1.0), (1,))
    with pytest.raises(FrozenInstanceError):
        histogram.counts = (2,)  # type: ignore[misc]


def test_reports_need_no_torch() -> None:
    code = "import sys, anomtune.models.training.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
