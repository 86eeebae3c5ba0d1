"""What people watch in TensorBoard: scalars per rung, and hyperparameters while trials run.

Event files are written through the sweep's storage, record by record and without a thread or
an open file per trial, so a killed driver loses nothing and a remote directory works too.

No study declares its hyperparameters beforehand: TensorBoard would take the first declaration
that it finds for all studies. Without any it gathers them from the trials themselves, so that
one page shows every method, and the table can be filtered by category and method.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from anomtune.search.records import Rung, TrialRecord
from anomtune.search.storage import Storage
from anomtune.search.study import SearchPlan

#: TensorBoard takes any file with "tfevents" in its name.
_EVENT_FILE = "events.out.tfevents.0.anomtune"

_STATUS = {
    "COMPLETE": api_pb2.STATUS_SUCCESS,
    "PRUNED": api_pb2.STATUS_SUCCESS,
    "FAIL": api_pb2.STATUS_FAILURE,
}


class CurveWriter:
    """Writes the event files of a sweep: a folder per study, below it a folder per trial.

    Args:
        storage: The sweep directory.
        plans: How each method is searched.
    """

    def __init__(self, storage: Storage, plans: Mapping[str, SearchPlan]) -> None:
        self._storage = storage
        self._plans = plans
        self._written: dict[str, int] = {}

    def update(self, record: TrialRecord) -> None:
        """Adds what is new in a record: its start, a rung, its end."""
        folder = f"tensorboard/{record.key}/{record.number:05d}"
        events = []
        written = self._written.get(record.path)
        if written is None or written > len(record.curve):  # begun, or begun again
            self._storage.delete_folder(folder)
            written = 0
            space = self._plans[record.method].space
            settings: dict[str, bool | float | str] = {
                "category": record.category,
                "method": record.method,
            }
            settings |= {name: _plain(record.params[name]) for name in space}
            start = summary_v2.hparams_pb(settings, trial_id=f"{record.key}/{record.number}")
            events += [_version_event(), Event(wall_time=time.time(), summary=start)]
        for rung in record.curve[written:]:
            values = [*_scalars(rung), *_histograms(rung)]
            events.append(
                Event(wall_time=time.time(), step=rung.step, summary=Summary(value=values))
            )
        if record.state != "RUNNING":
            events.append(Event(wall_time=time.time(), summary=_session_end(record.state)))
            self._written.pop(record.path, None)
        else:
            self._written[record.path] = len(record.curve)
        if events:
            self._append(folder, *events)

    def _append(self, folder: str, *events: Event) -> None:
        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        self._storage.append(f"{folder}/{_EVENT_FILE}", buffer.getvalue())


def _scalars(rung: Rung) -> list[Summary.Value]:
    figures = {"validation/auroc": rung.auroc}
    if rung.loss is not None:
        figures["train/loss"] = rung.loss
    figures |= {f"train/{name}": value for name, value in rung.figures.items()}
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]


def _histograms(rung: Rung) -> list[Summary.Value]:
    """Returns the distributions as TensorBoard's own bins: left edge, right edge, count."""
    values = []
    for name, histogram in rung.histograms.items():
        edges = histogram.edges
        bins = np.array([edges[:-1], edges[1:], histogram.counts], dtype=np.float64).T
        values.append(
            Summary.Value(
                tag=f"train/{name}",
                metadata=histogram_metadata.create_summary_metadata(None, None),
                tensor=make_tensor_proto(bins),
            )
        )
    return values


def _version_event() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _session_end(state: str) -> Summary:
    end = plugin_data_pb2.SessionEndInfo(status=_STATUS[state], end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])
