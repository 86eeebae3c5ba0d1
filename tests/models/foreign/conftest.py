"""The networks of anomalib's models, made small: the same code with fewer numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

_SMALL = {"embed_dim": 48, "num_heads": 6}


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes transformers and the networks that models build of a fixed width narrow."""
    import timm
    from anomalib.models.image.dinomaly import torch_model as dinomaly
    from anomalib.models.image.draem import torch_model as draem
    from anomalib.models.image.dsr import torch_model as dsr
    from anomalib.models.image.inp_former import torch_model as inp_former

    create = timm.create_model

    def create_model(name: str, *args: Any, **kwargs: Any) -> Any:
        return create(name, *args, **kwargs, **(_SMALL if name.startswith("vit") else {}))

    monkeypatch.setattr(timm, "create_model", create_model)
    for known in (dinomaly.DINO_ARCHITECTURES, inp_former.DINOV2_ARCHITECTURES):
        monkeypatch.setitem(known, "small", {**known["small"], **_SMALL})
    for name in ("ReconstructiveSubNetwork", "DiscriminativeSubNetwork"):
        monkeypatch.setattr(draem, name, partial(getattr(draem, name), base_width=4))
    for name in ("AnomalyDetectionModule", "UpsamplingModule"):
        narrow = partial(_narrow, getattr(dsr, name))
        monkeypatch.setattr(dsr, name, narrow)
    model = dsr.DsrModel
    monkeypatch.setattr(
        "anomalib.models.image.dsr.lightning_model.DsrModel",
        partial(model, embedding_dim=8, num_embeddings=16, num_hiddens=8, num_residual_hiddens=4),
    )


def _narrow(kind: Any, *args: Any, **kwargs: Any) -> Any:
    return kind(*args, **{**kwargs, "base_width": 4})
