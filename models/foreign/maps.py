"""What foreign models say of images, before they smooth it: maps, layer by layer where possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from anomtune.models.foreign.borrowed import imported
from anomtune.models.foreign.table import Entry
from anomtune.models.layers.evidence import Evidence

#: What a model's ``anomaly_map_generator`` was given: positional and named arguments.
Given = tuple[tuple[Any, ...], Mapping[str, Any]]


def evidence_of(model: Any, name: str, entry: Entry, images: Tensor, n_scales: int) -> Evidence:
    """Returns what a trained model says of images.

    Args:
        model: A LightningModule in eval mode.
        name: Of the model.
        entry: What the table says of it.
        images: As the network sees them, ``(B, 3, I, I)``.
        n_scales: How many maps are meant: more than one come from `_LAYERS`.
    """
    with _given_to(model.model) as given, _smoothed() as smoothed:
        found = model.model(images)
    scores = None if found.pred_score is None else found.pred_score.reshape(len(images)).float()
    if entry.scales is not None and name in _LAYERS and given:
        maps = tuple(one.float() for one in _LAYERS[name](given[0]))
        if len(maps) == n_scales:
            return Evidence(maps, scores)
    if found.anomaly_map is None:
        assert scores is not None
        return Evidence((scores.view(-1, 1, 1),), scores)
    one = smoothed[-1] if entry.smoothing is not None and smoothed else found.anomaly_map
    return Evidence((one.reshape(len(images), *one.shape[-2:]).float(),), scores)


@contextmanager
def _given_to(network: nn.Module) -> Iterator[list[Given]]:
    """Takes what the network's generator of maps is given."""
    taken: list[Given] = []
    generator = getattr(network, "anomaly_map_generator", None)
    if generator is None:
        yield taken
        return

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append((args, kwargs))

    hook = generator.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield taken
    finally:
        hook.remove()


@contextmanager
def _smoothed() -> Iterator[list[Tensor]]:
    """Takes the maps that go into a Gaussian; some models build theirs each time."""
    kind = imported("anomalib.models.components").GaussianBlur2d
    taken: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        if isinstance(module, kind):
            taken.append(args[0])

    hook = register_module_forward_hook(take)
    try:
        yield taken
    finally:
        hook.remove()


def _stfpm(given: Given) -> Iterator[Tensor]:
    """Yields half the squared distances of normalised features, a map per layer."""
    _, named = given
    teacher, student = named["teacher_features"], named["student_features"]
    for layer in teacher:
        away = F.normalize(teacher[layer]) - F.normalize(student[layer])
        yield 0.5 * away.square().sum(1)


def _reverse_distillation(given: Given) -> Iterator[Tensor]:
    """Yields cosine distances, a map per layer."""
    encoder, decoder = given[0]
    for of_encoder, of_decoder in zip(encoder, decoder, strict=True):
        yield 1 - F.cosine_similarity(of_encoder, of_decoder)


def _cflow(given: Given) -> Iterator[Tensor]:
    """Yields the loss of each position, a map per layer.

    anomalib adds up likelihoods, each in parts of the highest in the batch: the score of an image
    then depends on those that are scored with it. The loss grows as a likelihood falls.
    """
    _, named = given
    for likelihood, height, width in zip(
        named["distribution"], named["height"], named["width"], strict=True
    ):
        yield -F.logsigmoid(likelihood).reshape(-1, height, width)


def _fastflow(given: Given) -> Iterator[Tensor]:
    """Yields one less likelihoods, a map per layer; anomalib takes the mean of their negatives."""
    ((hidden,), _) = given
    for of_layer in hidden:
        yield 1 - torch.exp(-0.5 * of_layer.square().mean(1))


#: Models whose maps can be had layer by layer, from what their generators of maps are given.
_LAYERS: Mapping[str, Callable[[Given], Iterator[Tensor]]] = {
    "cflow": _cflow,
    "fastflow": _fastflow,
    "reverse_distillation": _reverse_distillation,
    "stfpm": _stfpm,
}
