from __future__ import annotations

import pytest
import torch

from anomtune.errors import MethodError
from anomtune.models.layers.backbones import prepare_weights

# Small networks: a second thread costs more than it gives, above all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> str:
    """``imagenet`` where MobileNetV2's file is at hand, else ``random``."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no downloads in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    try:
        prepare_weights("mobilenet_v2", "imagenet")
    except MethodError:
        return "random"
    return "imagenet"
