"""Every use of TensorBoard's internals: its event format, and what its plugins expect in it.

TensorBoard has no public way to write an event but ``torch.utils.tensorboard`` and
``tensorboardX``, which keep an open file and a thread per run and write to nothing but a path. A
sweep has thousands of runs and may lie in an object store, so events are made and encoded here.
The protobufs and the metadata of the plugins are those of tensorboard 2.21 (they have not changed
since 2.3, when scalars and hyperparameters got their present form); its next major version is
excluded by ``pyproject.toml``. ``tests/search/results/test_tensorboard_internals.py`` fails and
names what is gone when a version changes them.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

__all__ = [
    "Event",
    "Summary",
    "decode",
    "encode",
    "event",
    "first_event",
    "histogram",
    "image",
    "says_the_end",
    "scalar",
    "session_end",
    "session_start",
    "text",
]

#: Bytes before an event, its length and the checksum of that, and with its own checksum behind it.
_HEAD, _FRAME = 12, 16
_STATUS = {"success": api_pb2.STATUS_SUCCESS, "failure": api_pb2.STATUS_FAILURE}


def scalar(tag: str, value: float) -> Summary.Value:
    """Returns a figure."""
    return Summary.Value(tag=tag, simple_value=value)


def text(tag: str, content: str) -> Summary.Value:
    """Returns a text in Markdown."""
    return Summary.Value(
        tag=tag,
        metadata=text_metadata.create_summary_metadata(None, None),
        tensor=make_tensor_proto(np.array([content.encode()], dtype=object)),
    )


def histogram(tag: str, bins: npt.NDArray[np.float64]) -> Summary.Value:
    """Returns a distribution; bins are ``(K, 3)``: left edge, right edge, count."""
    return Summary.Value(
        tag=tag,
        metadata=histogram_metadata.create_summary_metadata(None, None),
        tensor=make_tensor_proto(bins),
    )


def image(tag: str, png: bytes, width: int, height: int, description: str) -> Summary.Value:
    """Returns a picture."""
    content = [str(width).encode(), str(height).encode(), png]
    return Summary.Value(
        tag=tag,
        metadata=image_metadata.create_summary_metadata(None, description),
        tensor=make_tensor_proto(np.array(content, dtype=object)),
    )


def event(values: Iterable[Summary.Value], step: int = 0) -> Event:
    """Returns what is told of a run at one step."""
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))


def first_event() -> Event:
    """Returns the event with which every file begins."""
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def session_start(settings: Mapping[str, bool | float | str], name: str) -> Event:
    """Returns the event that tells of a run's hyperparameters.

    Args:
        settings: The hyperparameters.
        name: Of the row in the table of hyperparameters; runs of one name share a row.
    """
    return Event(
        wall_time=time.time(), summary=summary_v2.hparams_pb(dict(settings), trial_id=name)
    )


def session_end(outcome: Literal["success", "failure"]) -> Event:
    """Returns the event that says that a run has ended, and how."""
    end = plugin_data_pb2.SessionEndInfo(status=_STATUS[outcome], end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    return event([value])


def says_the_end(content: bytes) -> bool:
    """Whether an event file has a `session_end`."""
    return metadata.SESSION_END_INFO_TAG.encode() in content


def decode(content: bytes) -> list[Event]:
    """Returns the events of an event file, as far as they are whole.

    Checksums are not compared.
    """
    found: list[Event] = []
    at = 0
    while len(content) - at >= _FRAME:
        (length,) = struct.unpack_from("<Q", content, at)
        begin, at = at + _HEAD, at + _FRAME + length
        if at > len(content):
            break
        try:
            found.append(Event.FromString(content[begin : begin + length]))
        except Exception:  # noqa: BLE001 - protobuf has no public name for what it raises
            break
    return found


def encode(events: Iterable[Event]) -> bytes:
    """Returns events as they stand in an event file."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for one in events:
        writer.write(one.SerializeToString())
    return buffer.getvalue()
