"""Pretrained weights of foreign models: from files on the machine, or none. Nothing is downloaded.

timm's networks are found where timm and Hugging Face keep them, as ``NAME.safetensors`` beside
them, and, for those that are torchvision's, as torchvision's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from anomtune.errors import MethodError
from anomtune.models.foreign.borrowed import imported

#: Tags of timm's networks whose weights are torchvision's.
_TORCHVISIONS = {"tv_in1k": "IMAGENET1K_V1", "tv2_in1k": "IMAGENET1K_V2"}


@contextmanager
def weights_from_files(*, pretrained: bool) -> Iterator[None]:
    """Builds networks with weights from files on the machine, or with random ones.

    Args:
        pretrained: Whether networks that ask for pretrained weights get them; else all weights
            are random.

    Raises:
        MethodError: If they should and a file is not there.
    """
    timm = imported("timm")
    registered = imported("torchvision.models._api")
    create, read = timm.create_model, registered.WeightsEnum.get_state_dict
    timm.create_model = _creator(create, pretrained)
    registered.WeightsEnum.get_state_dict = _from_file if pretrained else _at_random
    try:
        yield
    finally:
        timm.create_model, registered.WeightsEnum.get_state_dict = create, read


def _creator(create: Callable[..., Any], pretrained: bool) -> Callable[..., Any]:
    def create_model(model_name: str, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.pop("pretrained", False)
        kwargs.pop("pretrained_cfg", None)
        if not (wanted and pretrained):
            return create(model_name, *args, pretrained=False, **kwargs)
        overlay = {"file": str(timm_file(model_name))}
        return create(model_name, *args, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)

    return create_model


def timm_file(name: str) -> Path:
    """Returns the file of the pretrained weights of one of timm's networks.

    Raises:
        MethodError: If it is not on the machine.
    """
    config = imported("timm").get_pretrained_cfg(name)
    if config is None:
        raise MethodError(f"timm has no pretrained weights for {name}: use weights: random")
    whole = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    folder = _folder()
    own = folder / f"{whole}.safetensors"
    places = [own]
    if config.url:
        places.append(folder / PurePosixPath(config.url).name)
    if config.tag in _TORCHVISIONS:
        places += _torchvisions(config.architecture, _TORCHVISIONS[config.tag])
    if config.hf_hub_id:
        places += _hugging_faces(config.hf_hub_id)
    for place in places:
        if place.is_file():
            return place
    remedy = f"put the file {_address(config)} there as {own}" if _address(config) else "do so"
    raise MethodError(
        f"no weights of timm's {whole} on this machine, and nothing is downloaded: {remedy}, "
        "or use weights: random"
    )


def _address(config: Any) -> str:
    """Returns where the world keeps the weights."""
    if config.hf_hub_id:
        return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
    return str(config.url or "")


def _torchvisions(architecture: str, version: str) -> list[Path]:
    models = imported("torchvision.models")
    try:
        found = models.get_model_weights(architecture)[version]
    except (ValueError, KeyError):
        return []
    return [_folder() / PurePosixPath(found.url).name]


def _hugging_faces(repository: str) -> list[Path]:
    """Returns what the cache of Hugging Face holds of a repository."""
    hub = imported("huggingface_hub")
    found = [
        hub.try_to_load_from_cache(repository, name)
        for name in ("model.safetensors", "pytorch_model.bin")
    ]
    return [Path(place) for place in found if isinstance(place, str)]


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_file(weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for torchvision's reader, which would download."""
    path = _folder() / PurePosixPath(weights.url).name
    if not path.is_file():
        raise MethodError(
            f"no weights {weights} on this machine, and nothing is downloaded: put the file "
            f"{weights.url} into {path.parent}, or use weights: random"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _at_random(weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for torchvision's reader where weights are to be random."""
    name = type(weights).__name__.removesuffix("_Weights").lower()
    models = imported("torchvision.models")
    return models.get_model(name, weights=None).state_dict()
