"""Training may be in bfloat16; nothing is scored in less than float32 (METHODS 14, row 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from anomtune.models.layers import precision
from anomtune.registry import METHODS

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random"}
SMALL: dict[str, dict[str, Any]] = {
    "cutpaste": {"width": 8, "batch_size": 3},
    "deep_svdd": {"resolution": 64, "batch_size": 3},
    "f_anogan": {"width": 4, "batch_size": 3, "iterations": 1},
    "gmm_contrastive": {**TINY, "batch_size": 3, "dimensions": 8, "components": 2},
    "gnl": {**TINY, "batch_size": 3},
    "kdad": {"weights": "random", "batch_size": 3},
    "padim": {**TINY, "channels": 20},
    "patchcore": TINY,
    "rd4ad": {**TINY, "batch_size": 3},
    "recontrast": {**TINY, "batch_size": 3},
    "spr": {"width": 8, "resolution": 64, "batch_size": 3},
    "ssae": {"width": 4, "resolution": 64, "batch_size": 3},
}
GRADIENTS = set(SMALL) - {"padim", "patchcore"}


@pytest.fixture
def _hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)


@contextmanager
def precisions() -> Iterator[set[torch.dtype]]:
    """Notes in which precision layers with weights work."""
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(output, Tensor):
            seen.add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_every_method_is_looked_at() -> None:
    assert set(SMALL) == set(METHODS.declared()) - {"toy"}


@pytest.mark.usefixtures("_hardware")
@pytest.mark.parametrize("name", SMALL)
def test_training_is_in_bfloat16_and_scores_are_in_float32(name: str) -> None:
    method = METHODS.get(name)
    detector = method(method.Hyperparameters(**SMALL[name]), image_size=64)
    with precisions() as seen:
        detector.fit(images(), 1)
    assert (torch.bfloat16 in seen) == (name in GRADIENTS)
    with precisions() as seen:
        maps, scores = detector.predict(images())
    assert seen == {torch.float32}
    assert {maps.dtype, scores.dtype} == {torch.float32}


@pytest.mark.usefixtures("_hardware")
def test_a_training_in_bfloat16_goes_on_bit_for_bit() -> None:
    method = METHODS.get("rd4ad")
    hp = method.Hyperparameters(**SMALL["rd4ad"])
    once, again = (method(hp, image_size=64) for _ in range(2))
    once.fit(images(), 2)
    again.fit(images(), 1)
    again.fit(images(), 1)
    assert torch.equal(once.score(images()), again.score(images()))
    assert all(parameter.dtype == torch.float32 for parameter in once.network.parameters())


def test_what_a_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name, expected in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda n=name: {n: True}, raising=False)
        assert precision.has_bfloat16(cpu) == expected, name
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not precision.has_bfloat16(cpu), "an older torch does not say"
