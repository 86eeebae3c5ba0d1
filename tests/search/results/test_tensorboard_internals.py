"""What we use of TensorBoard's internals is there and does what we use it for.

A test that fails here names what a new version of TensorBoard has changed;
``search/results/tensorboard_internals.py`` is the one file to mend.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.search.results import tensorboard_internals as internals

USED = {
    "tensorboard.compat.proto.event_pb2": ["Event"],
    "tensorboard.compat.proto.summary_pb2": ["Summary"],
    "tensorboard.plugins.histogram.metadata": ["create_summary_metadata"],
    "tensorboard.plugins.hparams.api_pb2": ["STATUS_SUCCESS", "STATUS_FAILURE"],
    "tensorboard.plugins.hparams.metadata": [
        "SESSION_END_INFO_TAG", "NULL_TENSOR", "create_summary_metadata",
    ],
    "tensorboard.plugins.hparams.plugin_data_pb2": ["SessionEndInfo", "HParamsPluginData"],
    "tensorboard.plugins.hparams.summary_v2": ["hparams_pb"],
    "tensorboard.plugins.image.metadata": ["create_summary_metadata"],
    "tensorboard.plugins.text.metadata": ["create_summary_metadata"],
    "tensorboard.summary.writer.record_writer": ["RecordWriter"],
    "tensorboard.util.tensor_util": ["make_tensor_proto"],
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in USED.items() for n in names])
def test_it_is_there(module, name):
    assert hasattr(importlib.import_module(module), name), f"TensorBoard has no {module}.{name}"


def test_tensorboard_reads_what_is_written(tmp_path):
    png = b"a picture"
    written = [
        internals.first_event(),
        internals.session_start({"lr": 0.1, "kind": "x", "flag": True}, "a run"),
        internals.event([internals.scalar("loss", 0.5)], 3),
        internals.event(
            [
                internals.text("note", "some *text*"),
                internals.histogram("weights", np.array([[0.0, 0.5, 3.0], [0.5, 1.0, 4.0]])),
                internals.image("example", png, 7, 5, "what it shows"),
            ]
        ),
        internals.session_end("success"),
    ]
    (tmp_path / "events.out.tfevents.0.x").write_bytes(internals.encode(written))
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    content = internals.encode(written)
    assert internals.decode(content) == written
    assert internals.decode(content[:-1]) == written[:-1]
    (loss,) = found.Scalars("loss")
    assert (loss.step, loss.value) == (3, 0.5)
    assert found.Tensors("note")[0].tensor_proto.string_val[0] == b"some *text*"
    assert list(found.Tensors("example")[0].tensor_proto.string_val) == [b"7", b"5", png]
    assert found.SummaryMetadata("example").summary_description == "what it shows"
    bins = np.frombuffer(found.Tensors("weights")[0].tensor_proto.tensor_content)
    np.testing.assert_array_equal(bins, [0.0, 0.5, 3.0, 0.5, 1.0, 4.0])
    plugins = {
        tag: found.SummaryMetadata(tag).plugin_data.plugin_name for tag in found.Tags()["tensors"]
    }
    assert plugins == {
        "note": "text",
        "weights": "histograms",
        "example": "images",
        "_hparams_/session_start_info": "hparams",
        "_hparams_/session_end_info": "hparams",
    }
